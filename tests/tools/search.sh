#!/usr/bin/env bash
# search.sh: a throw-away OpenSearch or Elasticsearch node on loopback, from the artefacts of their own builds.
#
#   search.sh fetch ENGINE VERSION CACHE                  get and unpack it into CACHE/ENGINE-VERSION, once
#   search.sh plugin ENGINE VERSION CACHE                 make CACHE/ENGINE-VERSION-s3.zip, the plugin repository-s3, once
#   search.sh start ENGINE VERSION CACHE DIR PORT PARENT  start it in DIR; DIR/pid is its process. It is stopped, and DIR
#                                                         removed, as soon as the process PARENT is gone
#   search.sh again DIR                                   start the node of DIR again after it was stopped or killed
#
# ENGINE is opensearch or elasticsearch. Snapshots may go below DIR/repo (path.repo). What is set in the environment:
#   S3_ENDPOINT S3_KEY S3_SECRET   client "default" of repository-s3 (the node needs the plugin: PLUGIN=file.zip); client
#                                  "wrong" has other keys, and client "hanging" goes to S3_HANGING
#   LOGIN_PASSWORD                 the node asks for a login: user elastic (Elasticsearch 8)
#   JAVA_HOME JAVA_MORE            another Java, more options for it
# Packages: maven openjdk-17-jre-headless curl. Artefacts come from the repository that this machine's Maven uses.
set -euo pipefail

fetch() {
  local engine=$1 version=$2 cache=$3 group=org.$1 home=$3/$1-$2
  [[ -x $home/bin/$engine ]] && return 0
  mkdir -p "$cache"
  exec 9>"$cache/.lock"
  flock 9
  [[ -x $home/bin/$engine ]] && return 0
  local work
  work=$(mktemp -d "$cache/.fetch-XXXXXX")
  mvn --quiet --batch-mode dependency:copy -Dartifact="$group.distribution.integ-test-zip:$engine:$version:zip" \
    -DoutputDirectory="$work" >&2
  python3 -m zipfile -e "$work/$engine-$version.zip" "$work/x"
  chmod +x "$work/x/"*/bin/*
  # The serial collector below, and no module that small Java run times lack.
  sed -i -E '/Use(G1|ConcMarkSweep)GC|G1Reserve|InitiatingHeap|CMSInit|incubator.vector/d' "$work/x/"*/config/jvm.options
  mv "$work/x/"* "$home"
  rm -rf "$work"
}

# Maven has the plugin's parts, but no archive of it. What the server brings itself stays out.
plugin() {
  local engine=$1 version=$2 cache=$3 zip=$3/$1-$2-s3.zip work
  fetch "$engine" "$version" "$cache"
  [[ -e $zip ]] && return 0
  [[ $engine == opensearch ]] || { echo "only for opensearch" >&2; return 64; }
  work=$(mktemp -d "$cache/.plugin-XXXXXX")
  local maven=(mvn --quiet --batch-mode) coordinates=org.opensearch.plugin:repository-s3:$version part
  mkdir "$work/pom" "$work/zip"
  for part in jar pom; do
    "${maven[@]}" dependency:copy -Dartifact="$coordinates:$part" -DoutputDirectory="$work/pom" >&2
  done
  mv "$work/pom/repository-s3-$version.pom" "$work/pom/pom.xml"
  (cd "$work/pom" && "${maven[@]}" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$work/zip" >&2)
  for part in "$work"/zip/*.jar; do
    [[ ! -e $cache/$engine-$version/lib/${part##*/} ]] || rm "$part"
  done
  mv "$work/pom/repository-s3-$version.jar" "$work/zip/"
  printf '%s\n' "name=repository-s3" "description=snapshots in a bucket" "version=$version" \
    "classname=org.opensearch.repositories.s3.S3RepositoryPlugin" "java.version=11" "opensearch.version=$version" \
    "has.native.controller=false" >"$work/zip/plugin-descriptor.properties"
  printf '%s\n' 'grant {' '  permission java.lang.RuntimePermission "accessDeclaredMembers";' \
    '  permission java.lang.RuntimePermission "getClassLoader";' \
    '  permission java.lang.reflect.ReflectPermission "suppressAccessChecks";' \
    '  permission java.net.SocketPermission "*", "connect,resolve";' \
    '  permission java.net.NetPermission "setDefaultAuthenticator";' \
    '  permission java.util.PropertyPermission "*", "read,write";' \
    '  permission java.io.FilePermission "<<ALL FILES>>", "read";' '};' >"$work/zip/plugin-security.policy"
  (cd "$work/zip" && python3 -m zipfile -c "$work/s3.zip" ./*)
  chmod 644 "$work/s3.zip"
  mv "$work/s3.zip" "$zip"
  rm -rf "$work"
}

prepare() {
  local engine=$1 version=$2 cache=$3 dir=$4 port=$5
  mkdir -p "$dir"/{data,logs,tmp,repo}
  chmod 755 "$dir"
  # Plugins, the keystore and the configuration are this node's own.
  cp -a --reflink=auto "$cache/$engine-$version" "$dir/home"
  local transport=transport.port
  [[ $engine == elasticsearch && $version == [56].* ]] && transport=transport.tcp.port
  {
    printf '%s\n' "cluster.name: backstay-test" "node.name: n1" "discovery.type: single-node" \
      "network.host: 127.0.0.1" "http.port: $port" "$transport: $((port < 55000 ? port + 1000 : port - 1000))" \
      "path.data: $dir/data" "path.logs: $dir/logs" "path.repo: [\"$dir/repo\"]" "node.store.allow_mmap: false" \
      "cluster.routing.allocation.disk.threshold_enabled: false" "action.destructive_requires_name: false"
    if [[ -n ${LOGIN_PASSWORD:-} ]]; then
      printf 'xpack.security.%s\n' "enabled: true" "http.ssl.enabled: false" "transport.ssl.enabled: false" \
        "autoconfiguration.enabled: false"
    elif [[ -d $dir/home/modules/x-pack-security ]]; then
      echo "xpack.security.enabled: false"
    fi
    if [[ -n ${S3_ENDPOINT:-} ]]; then
      local client at
      for client in default wrong hanging; do
        at=$S3_ENDPOINT
        [[ $client != hanging ]] || at=${S3_HANGING:-$S3_ENDPOINT}
        printf "s3.client.$client.%s\n" "endpoint: ${at#http://}" "protocol: http" "path_style_access: true" "region: us-east-1"
      done
    fi
  } >"$dir/home/config/$engine.yml"
  [[ $(id -u) != 0 ]] || chown -R nobody: "$dir"
}

as_nobody() {
  if [[ $(id -u) == 0 ]]; then setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups "$@"; else "$@"; fi
}

launch() {
  local dir=$1 engine port upper
  read -r engine port <"$dir/node"
  upper=OPENSEARCH
  [[ $engine == elasticsearch ]] && upper=ES
  export "${upper}_PATH_CONF=$dir/home/config" "${upper}_TMPDIR=$dir/tmp" "${upper}_JAVA_HOME=$JAVA_HOME" \
    "${upper}_JAVA_OPTS=-Xms256m -Xmx256m -XX:-AlwaysPreTouch -XX:TieredStopAtLevel=1 -XX:+UseSerialGC ${JAVA_MORE:-}"
  if [[ -n ${PLUGIN:-} && ! -d $dir/home/plugins/repository-s3 ]]; then
    cp "$PLUGIN" "$dir/plugin.zip" # where nobody may read it
    as_nobody "$dir/home/bin/$engine-plugin" install -b "file://$dir/plugin.zip" >>"$dir/logs/start.log" 2>&1
  fi
  if [[ -n ${S3_KEY:-} && ! -f $dir/home/config/$engine.keystore ]]; then
    as_nobody "$dir/home/bin/$engine-keystore" create >>"$dir/logs/start.log" 2>&1
    local client
    secret() { as_nobody "$dir/home/bin/$engine-keystore" add -x -f "$1"; }
    for client in default hanging; do
      printf %s "$S3_KEY" | secret "s3.client.$client.access_key"
      printf %s "$S3_SECRET" | secret "s3.client.$client.secret_key"
    done
    printf WRONG | secret s3.client.wrong.access_key
    printf WRONG | secret s3.client.wrong.secret_key
  fi
  if [[ -n ${LOGIN_PASSWORD:-} ]]; then
    as_nobody "$dir/home/bin/$engine-keystore" create >>"$dir/logs/start.log" 2>&1
    printf %s "$LOGIN_PASSWORD" | as_nobody "$dir/home/bin/$engine-keystore" add -x -f bootstrap.password
  fi
  rm -f "$dir/pid"
  cd "$dir"
  if [[ $(id -u) == 0 ]]; then
    setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups "$dir/home/bin/$engine" \
      </dev/null >>"$dir/logs/start.log" 2>&1 9>&- &
  else
    "$dir/home/bin/$engine" </dev/null >>"$dir/logs/start.log" 2>&1 9>&- &
  fi
  local pid=$!
  disown
  echo "$pid" >"$dir/pid"
  local try
  for ((try = 0; try < 480; try++)); do
    printf 'user = "elastic:%s"\n' "${LOGIN_PASSWORD:-}" |
      curl -fs -K - -o "$dir/health" "http://127.0.0.1:$port/_cluster/health?timeout=1s" && return 0
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.25
  done
  tail -n 30 "$dir/logs/start.log" >&2
  return 1
}

# Stops the node and removes its directory when the tests are gone.
guard() {
  local dir=$1 parent=$2 pid
  while kill -0 "$parent" 2>/dev/null && [[ -e $dir/keep ]]; do sleep 1; done
  pid=$(cat "$dir/pid" 2>/dev/null) && kill -KILL "$pid" 2>/dev/null
  sleep 0.5
  rm -rf "$dir"
}

JAVA_HOME=${JAVA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")}
export JAVA_HOME
case ${1:-} in
  fetch)
    fetch "$2" "$3" "$4"
    ;;
  plugin)
    plugin "$2" "$3" "$4"
    ;;
  start)
    [[ $# == 7 ]] || { sed -n '2,9p' "$0" >&2; exit 64; }
    fetch "$2" "$3" "$4"
    mkdir -p "$5"
    touch "$5/keep"
    guard "$5" "$7" </dev/null >/dev/null 2>&1 9>&- &
    disown
    prepare "$2" "$3" "$4" "$5" "$6"
    echo "$2 $6" >"$5/node"
    launch "$5"
    ;;
  again)
    launch "$2"
    ;;
  *)
    sed -n '2,9p' "$0" >&2
    exit 64
    ;;
esac
