# What the restore scripts of all kinds share: where points are, fetching one, checking it, opening its artefacts.
# It is sourced, lies beside the scripts, and needs bash 4, GNU coreutils, tar, jq, and for what is stored: zstd or
# gzip, and age. From a bucket: the aws program, curl 7.75 or newer, or s3cmd.
# shellcheck shell=bash disable=SC2034 # the scripts that source this use what it sets

set -euo pipefail
export LC_ALL=C

COMMAND='' SOURCE='' POINT=latest
TARGET='' IDENTITY='' WORK='' OWNER='' YES=no DRY_RUN=no REPLACE=no
WORK_IS_OURS=no
# The program that reads buckets; empty = the first that suits.
WITH=''
# What --replace does.
REPLACES='allow a target that holds data: it is moved aside, and kept'
# Set by fetch_point: a directory on this machine with the point's objects.
DIR=''

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
# die CODE MESSAGE [HINT]: 64 wrong command line, 65 damage, 66 no such thing, 69 a program failed, 73 refused.
die() {
  printf 'error: %s\n' "$2" >&2
  if [[ -n ${3:-} ]]; then printf 'hint: %s\n' "$3" >&2; fi
  exit "$1"
}
# joined TEXT..: in one line.
joined() {
  local text
  text=$(printf '; %s' "$@")
  printf '%s' "${text:2}"
}
need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die 78 "the program $tool is missing" "install the package that has it."
  done
}

usage() {
  cat <<EOF
Usage: $SCRIPT list SOURCE
       $SCRIPT restore SOURCE [POINT|latest] [options]

SOURCE is the directory of a service's restore points, the directory of one point, or s3://BUCKET/PREFIX/HOST/SERVICE
(with versioned keys: s3://BUCKET/PREFIX/SERVICE_CADENCE_HOST, where a point is the id of a version of manifest.json).
For a bucket, keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the own ways of aws and s3cmd), the server from
AWS_ENDPOINT_URL and the region from AWS_REGION. Without keys, SOURCE is a file with a presigned URL per line, of each object of a
point.

Options of restore:
$OPTIONS
  --identity FILE   private age key, for an encrypted point
  --work DIR        where a point from a bucket is put first; it stays there (default: a temporary directory)
  --with PROGRAM    what reads the bucket: aws, curl or s3cmd (default: aws; without it curl, if there are keys)
  --replace         $REPLACES
  --dry-run         check the point, say what would be done, and do nothing
  --yes             really do it; nothing is ever asked
EOF
}

# Takes the command line apart; what is not known goes to the script's own take_option; one that
# has no value sets TOOK=1.
parse() {
  [[ $# -gt 0 ]] || { usage >&2; exit 64; }
  case $1 in
    -h | --help) usage; exit 0 ;;
    list | restore) COMMAND=$1 ;;
    *) usage >&2; exit 64 ;;
  esac
  shift
  local words=()
  while [[ $# -gt 0 ]]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --yes) YES=yes ;;
      --dry-run) DRY_RUN=yes ;;
      --replace) REPLACE=yes ;;
      --to | --identity | --work | --owner | --with)
        [[ $# -gt 1 ]] || die 64 "$1 needs a value"
        case $1 in
          --to) TARGET=$2 ;;
          --identity) IDENTITY=$2 ;;
          --work) WORK=$2 ;;
          --owner) OWNER=$2 ;;
          --with)
            [[ $2 =~ ^(aws|curl|s3cmd)$ ]] || die 64 "--with takes aws, curl or s3cmd"
            WITH=$2
            ;;
        esac
        shift
        ;;
      -*)
        TOOK=2
        if take_option "$@"; then shift $((TOOK - 1)); else die 64 "unknown option: $1" "see $SCRIPT --help."; fi
        ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  [[ ${#words[@]} -ge 1 && ${#words[@]} -le 2 ]] || die 64 "name a source, and at most one point" "see $SCRIPT --help."
  SOURCE=${words[0]%/} POINT=${words[1]:-latest}
  if [[ $COMMAND == restore && $YES == no && $DRY_RUN == no ]]; then
    die 73 "nothing is restored without --yes" "see first what would be done, with --dry-run."
  fi
}

# ---- buckets ----

bucket() { local rest=${SOURCE#s3://}; printf '%s' "${rest%%/*}"; }
prefix() { local rest=${SOURCE#s3://}; [[ $rest == */* ]] && printf '%s' "${rest#*/}"; return 0; }

# urlencode TEXT: every byte but the unreserved ones; with KEEP=/ slashes stay.
urlencode() {
  local text=$1 keep=${2:-} out='' c i
  for ((i = 0; i < ${#text}; i++)); do
    c=${text:i:1}
    case $c in
      [A-Za-z0-9._~-]) out+=$c ;;
      "$keep") out+=$c ;;
      *) printf -v c '%%%02X' "'$c"; out+=$c ;;
    esac
  done
  printf '%s' "$out"
}

# s3_curl PATH QUERY [curl options]: a signed GET. The keys go through standard input: the list of processes is public.
s3_curl() {
  local path=$1 query=$2 region=${AWS_REGION:-${AWS_DEFAULT_REGION:-us-east-1}} endpoint
  shift 2
  endpoint=${AWS_ENDPOINT_URL:-https://s3.$region.amazonaws.com}
  [[ -n ${AWS_ACCESS_KEY_ID:-} && -n ${AWS_SECRET_ACCESS_KEY:-} ]] ||
    die 77 "there are no keys for the bucket" "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
  {
    printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"
    # Stores want it, and older curls do not send it by themselves.
    printf 'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\n'
    if [[ -n ${AWS_SESSION_TOKEN:-} ]]; then printf 'header = "x-amz-security-token: %s"\n' "$AWS_SESSION_TOKEN"; fi
  } | curl --config - --silent --show-error --fail --retry 3 --aws-sigv4 "aws:amz:$region:s3" "$@" \
    "${endpoint%/}/$(urlencode "$(bucket)")$path${query:+?$query}"
}

# choose_program: sets WITH.
choose_program() {
  if [[ -z $WITH ]]; then
    WITH=curl
    if command -v aws >/dev/null; then
      WITH=aws
    elif [[ -z ${AWS_ACCESS_KEY_ID:-} ]] && command -v s3cmd >/dev/null; then
      WITH=s3cmd
    fi
  fi
  need "$WITH"
  if is_versioned && [[ $WITH == s3cmd ]]; then
    die 64 "s3cmd cannot read versions of keys" "use another program: --with curl."
  fi
}

# s3_aws COMMAND..: older aws programs do not read these variables by themselves.
s3_aws() {
  aws s3api ${AWS_ENDPOINT_URL:+--endpoint-url "$AWS_ENDPOINT_URL"} ${AWS_REGION:+--region "$AWS_REGION"} "$@"
}

s3_s3cmd() {
  local words=(--no-progress) host=${AWS_ENDPOINT_URL:-}
  if [[ -n $host ]]; then
    if [[ $host == http://* ]]; then words+=(--no-ssl); fi
    host=${host#*://}
    words+=(--host="${host%%/*}" --host-bucket="${host%%/*}")
  fi
  s3cmd "${words[@]}" ${AWS_REGION:+--region="$AWS_REGION"} "$@"
}

# s3_keys PREFIX: all keys below it.
s3_keys() {
  case $WITH in
    aws)
      s3_aws list-objects-v2 --bucket "$(bucket)" --prefix "$1" --output json --query 'Contents[].Key' |
        jq -r '.[]?' || die 69 "could not list the bucket $(bucket)"
      return
      ;;
    s3cmd)
      # No key of a point has a space.
      s3_s3cmd ls --recursive "s3://$(bucket)/$1" | awk -v own="s3://$(bucket)/" '{ print substr($4, length(own) + 1) }' ||
        die 69 "could not list the bucket $(bucket)"
      return
      ;;
  esac
  local after='' page keys
  while :; do
    page=$(s3_curl '' "list-type=2&prefix=$(urlencode "$1")${after:+&start-after=$(urlencode "$after")}") ||
      die 69 "could not list the bucket $(bucket)" "check the keys, AWS_ENDPOINT_URL and AWS_REGION."
    keys=$(printf '%s' "$page" | grep -o '<Key>[^<]*</Key>' | sed -e 's/^<Key>//' -e 's/<\/Key>$//' || true)
    [[ -n $keys ]] && printf '%s\n' "$keys"
    [[ $page == *'<IsTruncated>true</IsTruncated>'* ]] || break
    after=${keys##*$'\n'}
  done
}

# s3_versions KEY: its versions, oldest first: id, tab, time.
s3_versions() {
  if [[ $WITH == aws ]]; then
    s3_aws list-object-versions --bucket "$(bucket)" --prefix "$1" --output json |
      jq -r --arg key "$1" '.Versions[]? | select(.Key == $key) | [.VersionId, .LastModified] | @tsv'
  else
    s3_curl '' "prefix=$(urlencode "$1")&versions=" | sed 's/<Version>/\n&/g' | grep -F "<Key>$1</Key>" | grep '^<Version>' |
      sed 's|.*<VersionId>\([^<]*\)</VersionId>.*<LastModified>\([^<]*\)</LastModified>.*|\1\t\2|' || true
  fi | sort -t $'\t' -k 2
}

# s3_get KEY VERSION FILE
s3_get() {
  case $WITH in
    aws) s3_aws get-object --bucket "$(bucket)" --key "$1" ${2:+--version-id "$2"} "$3" >/dev/null ;;
    s3cmd) s3_s3cmd get --quiet --force "s3://$(bucket)/$1" "$3" ;;
    *) s3_curl "/$(urlencode "$1" /)" "${2:+versionId=$(urlencode "$2")}" --output "$3" ;;
  esac || die 69 "could not fetch $1 from the bucket $(bucket)"
}

# ---- points ----

# Fixed keys with versions: the folder is <service>_<cadence>_<host>, and a point is a version of its manifest.
is_versioned() { [[ $SOURCE == s3://* && ${SOURCE##*/} =~ ^[a-z0-9-]+_[a-z]+_[a-z0-9-]+$ ]]; }

# Ids of all points of the source, oldest first. A folder without a manifest is not one.
point_ids() {
  if is_versioned; then s3_versions "$(prefix)/manifest.json" | cut -f 1; return; fi
  if [[ $SOURCE == s3://* ]]; then
    local base
    base=$(prefix)
    s3_keys "$base/" | sed -n "s|^$(printf '%s' "$base" | sed 's/[][\.*^$|]/\\&/g')/\([^/]*\)/manifest\.json$|\1|p"
  else
    local manifest
    for manifest in "$SOURCE"/*/manifest.json; do
      if [[ -f $manifest ]]; then basename "$(dirname "$manifest")"; fi
    done
  fi | awk -F_ '{ print $(NF-3) $(NF-2) $(NF-1) $NF "\t" $0 }' | sort | cut -f 2
}

list_points() {
  local ids
  [[ ! -f $SOURCE ]] || die 64 "there is no list of the points behind presigned URLs" "restore the one that they are of."
  if [[ $SOURCE == s3://* ]]; then choose_program; fi
  ids=$(point_ids)
  [[ -n $ids ]] || die 66 "there are no restore points in $SOURCE" "name the folder of the service: it has a folder per point."
  if is_versioned && [[ $COMMAND == list ]]; then s3_versions "$(prefix)/manifest.json"; else say "$ids"; fi
}

clean_up() {
  if [[ $WORK_IS_OURS == yes && -n $WORK ]]; then rm -rf -- "$WORK"; fi
}
trap clean_up EXIT

# Sets DIR to a directory with the wanted point.
fetch_point() {
  need jq sha256sum tar
  if [[ -f $SOURCE/manifest.json ]]; then
    DIR=$SOURCE
    return
  fi
  if [[ -f $SOURCE ]]; then
    fetch_urls
    return
  fi
  if [[ $SOURCE == s3://* ]]; then choose_program; fi
  if [[ $POINT == latest ]]; then
    POINT=$(list_points | tail -n 1) || exit $?
  fi
  [[ $POINT =~ ^[A-Za-z0-9._-]+$ ]] || die 64 "this is not the id of a restore point: $POINT"
  if [[ $SOURCE != s3://* ]]; then
    DIR=$SOURCE/$POINT
    [[ -f $DIR/manifest.json ]] || die 66 "there is no restore point $POINT in $SOURCE" "see: $SCRIPT list $SOURCE"
    return
  fi
  make_work
  if is_versioned; then fetch_versions; else fetch_objects "$(prefix)/$POINT/"; fi
}

# make_work: a directory for what is fetched.
make_work() {
  if [[ -z $WORK ]]; then
    WORK=$(mktemp -d)
    WORK_IS_OURS=yes
  fi
  DIR=$WORK/$POINT
  mkdir -p -- "$DIR"
  chmod 700 -- "$DIR"
}

# fetch_urls: whoever sees a presigned URL can use it, so none is ever an argument.
fetch_urls() {
  local url name
  need curl
  POINT=point
  make_work
  while IFS= read -r url || [[ -n $url ]]; do
    [[ $url =~ ^https?://[^[:space:]\"\\]+$ ]] || die 64 "a line of $SOURCE is not a URL"
    name=${url%%\?*}
    name=${name##*/}
    printf -v name '%b' "${name//%/\\x}"
    [[ $name =~ ^[A-Za-z0-9._%~-]+$ && $name != .* ]] || die 64 "a URL names a file that makes no sense: $name"
    say "fetching $name"
    printf 'url = "%s"\n' "$url" |
      curl --config - --silent --show-error --fail --retry 3 --output "$DIR/$name" ||
      die 69 "could not fetch $name" "the URL may have expired: ask for a new one."
  done <"$SOURCE"
  [[ -f $DIR/manifest.json && -f $DIR/SHA256SUMS ]] ||
    die 66 "the URLs are not those of a whole point" "every object of its folder is needed, manifest.json and SHA256SUMS too."
}

# What one version of the manifest names, each in its own version.
fetch_versions() {
  local name key version
  s3_get "$(prefix)/manifest.json" "$POINT" "$DIR/manifest.json"
  while IFS=$'\t' read -r name key version; do
    [[ $name =~ ^[A-Za-z0-9._%~-]+$ && $name != .* ]] || die 65 "the manifest names a file that makes no sense: $name"
    say "fetching $name"
    s3_get "$key" "$version" "$DIR/$name"
  done < <(jq -r '(.artefacts[] | [.name, .key, .version]), ["SHA256SUMS", .sums.key, .sums.version] | @tsv' "$DIR/manifest.json")
}

# fetch_objects PREFIX: everything directly below it. Keys hold no name of a file that is not in [A-Za-z0-9._%~-].
fetch_objects() {
  local key name found=no
  while IFS= read -r key; do
    name=${key#"$1"}
    [[ $name =~ ^[A-Za-z0-9._%~-]+$ && $name != .* ]] || die 65 "the bucket holds a key that makes no sense: $key"
    say "fetching $name"
    s3_get "$key" '' "$DIR/$name"
    found=yes
  done < <(s3_keys "$1")
  [[ $found == yes ]] || die 66 "there is no restore point $POINT in $SOURCE" "see: $SCRIPT list $SOURCE"
}

manifest() { jq -r "$1" "$DIR/manifest.json"; }

# Everything that can be checked before anything is restored.
check_point() {
  local digest
  digest=$(head -n -2 "$DIR/manifest.json" | sha256sum | cut -d ' ' -f 1)
  cmp --silent <(printf '  "manifest_sha256": "%s"\n}\n' "$digest") <(tail -n 2 "$DIR/manifest.json") ||
    die 65 "the manifest of $POINT is damaged" "restore another point: $SCRIPT list $SOURCE"
  [[ $(manifest .format_version) == 1 ]] || die 78 "the point has format version $(manifest .format_version)" "take a newer script."
  [[ $(manifest .kind) == "$KIND" ]] || die 64 "this is a point of kind $(manifest .kind), not $KIND"
  [[ $(manifest '.base // ""') == '' ]] || die 78 "the point is built on $(manifest .base)" "this script restores full points only."
  cmp --silent <(jq -r '.artefacts[] | .sha256 + "  " + .name' "$DIR/manifest.json") "$DIR/SHA256SUMS" ||
    die 65 "SHA256SUMS is not what the manifest says" "restore another point: $SCRIPT list $SOURCE"
  (cd -- "$DIR" && sha256sum --check --strict --quiet SHA256SUMS) >&2 ||
    die 65 "an artefact of $POINT is damaged or missing" "fetch it again, from another destination if there is one, or restore another point."
  if [[ $(manifest .state) == suspect ]]; then
    warn "this point is suspect: $(manifest '.suspect_reasons | join("; ")')"
  fi
  say "point:    $(manifest .id), of $(manifest .service) on $(manifest .host), begun $(manifest .started)"
  say "checked:  $(manifest '.artefacts | length') artefacts, $(manifest '[.artefacts[].stored_bytes] | add') bytes as stored, $(manifest '[.artefacts[].plain_bytes] | add') plain"
}

# artefact NAME: the stored file of a plain name such as data.tar; nothing if there is none.
artefact() {
  local file
  for file in "$DIR/$1" "$DIR/$1".zst "$DIR/$1".gz "$DIR/$1".age "$DIR/$1".zst.age "$DIR/$1".gz.age; do
    if [[ -f $file ]]; then printf '%s' "$file"; return; fi
  done
}

# open_artefact NAME: the plain bytes of an artefact.
open_artefact() {
  local file
  file=$(artefact "$1")
  [[ -n $file ]] || die 65 "the point has no artefact $1"
  if [[ $file == *.age ]]; then
    [[ -n $IDENTITY ]] || die 77 "the point is encrypted" "give the private key with --identity FILE."
    need age
    age --decrypt --identity "$IDENTITY" "$file"
  else
    cat -- "$file"
  fi | case ${file%.age} in
    *.zst) zstd --decompress --stdout --quiet ;;
    *.gz) gzip --decompress --stdout ;;
    *) cat ;;
  esac
}

need_openers() {
  local name
  for name in "$DIR"/*.zst "$DIR"/*.zst.age; do if [[ -f $name ]]; then need zstd; fi; done
  for name in "$DIR"/*.age; do
    if [[ -f $name ]]; then
      [[ -n $IDENTITY ]] || die 77 "the point is encrypted" "give the private key with --identity FILE."
      need age
    fi
  done
}

# require_space DIR BYTES
require_space() {
  local at=$1 free
  # What is not a number would be evaluated as an expression.
  [[ $2 =~ ^[0-9]+$ ]] || die 65 "the manifest does not say how many bytes are needed"
  while [[ ! -d $at ]]; do at=$(dirname "$at"); done
  free=$(df --output=avail -B1 "$at" | tail -n 1 | tr -d ' ')
  [[ $free -ge $2 ]] || die 73 "$at has $free bytes free, and $2 are needed" "make room, or restore elsewhere with --to."
}

# holds_data DIR: whether anything but lost+found, and what restores put aside, is in it.
holds_data() {
  [[ -d $1 ]] && [[ -n $(find "$1" -mindepth 1 -maxdepth 1 ! -name lost+found ! -name '.old-*' ! -name '.restoring-*' -print -quit) ]]
}

# prepare_target: TARGET is absolute, and free or may be replaced. NEW is where the data is written first.
prepare_target() {
  [[ -n $TARGET ]] || die 64 "it is not known where to restore" "name a directory with --to."
  [[ $TARGET == /* ]] || die 64 "give an absolute path with --to"
  TARGET=${TARGET%/}
  [[ -n $TARGET ]] || die 73 "cannot restore over /"
  local now n=1
  now=$(date -u +%Y%m%dT%H%M%SZ) STAMP=$now
  # Twice in a second, nothing that was put aside may be written over.
  while [[ -e $TARGET.old-$STAMP || -e $TARGET/.old-$STAMP || -e $TARGET.restoring-$STAMP || -e $TARGET/.restoring-$STAMP || -e $TARGET.config-$STAMP ]]; do
    n=$((n + 1)) STAMP=$now-$n
  done
  if holds_data "$TARGET" && [[ $REPLACE == no ]]; then
    die 73 "$TARGET is not empty" "restore elsewhere with --to, or allow --replace: the old data is moved aside and kept."
  fi
  if mountpoint --quiet "$TARGET" 2>/dev/null; then NEW=$TARGET/.restoring-$STAMP; else NEW=$TARGET.restoring-$STAMP; fi
}

# settle_target: the new data takes its place; the old is moved aside.
settle_target() {
  local old entry
  if [[ $NEW == "$TARGET"/* ]]; then
    old=$TARGET/.old-$STAMP
    if holds_data "$TARGET"; then
      mkdir -m 700 -- "$old"
      while IFS= read -r -d '' entry; do mv -- "$entry" "$old/"; done < <(
        find "$TARGET" -mindepth 1 -maxdepth 1 ! -name lost+found ! -name '.old-*' ! -name '.restoring-*' -print0)
      say "the old data lies in $old"
    fi
    while IFS= read -r -d '' entry; do mv -- "$entry" "$TARGET/"; done < <(find "$NEW" -mindepth 1 -maxdepth 1 -print0)
    chmod --reference="$NEW" -- "$TARGET"
    chown --reference="$NEW" -- "$TARGET"
    rmdir -- "$NEW"
  else
    if holds_data "$TARGET"; then
      old=$TARGET.old-$STAMP
      mv -T -- "$TARGET" "$old"
      say "the old data lies in $old"
    elif [[ -d $TARGET ]]; then
      rmdir -- "$TARGET" 2>/dev/null || mv -T -- "$TARGET" "$TARGET.old-$STAMP"
    fi
    mv -T -- "$NEW" "$TARGET"
  fi
}

# put_config: what was captured from outside of the target lies beside it; it is never put over what is in use.
put_config() {
  [[ -n $(artefact config.tar) ]] || return 0
  local beside=$TARGET.config-$STAMP
  mkdir -m 700 -- "$beside"
  open_artefact config.tar | tar --extract --no-same-owner --directory="$beside" --file=-
  say "note:     the configuration from outside the data directory lies in $beside"
}

# ---- servers that are asked over HTTP ----

# The files with logins are for curl: nothing of them is ever an argument.
LOGIN=''
# Set by ask.
STATUS='' ANSWER=''

# require_url URL: an address without a login in it, which the list of processes would show.
require_url() {
  [[ $1 =~ ^https?://[^/@]+(/[^@]*)?$ ]] ||
    die 64 "this is not an address without a login, such as http://127.0.0.1:9200" "put the login into a file for --login."
  if [[ -n $LOGIN && ! -r $LOGIN ]]; then die 66 "the file $LOGIN cannot be read"; fi
}

# ask METHOD URL [BODY]: sets STATUS and ANSWER, whatever the server says.
ask() {
  local words=(--disable --silent --show-error --globoff --noproxy '*' --request "$1" --write-out '\n%{http_code}')
  if [[ -n $LOGIN ]]; then words+=(--config "$LOGIN"); fi
  if [[ $# -gt 2 ]]; then
    ANSWER=$(curl "${words[@]}" --header 'content-type: application/json' --data-binary @- "$2" <<<"$3")
  else
    ANSWER=$(curl "${words[@]}" "$2" </dev/null)
  fi || die 69 "the server cannot be asked: $1 $2" "check that it runs, and the address."
  STATUS=${ANSWER##*$'\n'} ANSWER=${ANSWER%$'\n'*}
}

# must METHOD URL [BODY]: the same, and it has to succeed.
must() {
  ask "$@"
  [[ $STATUS == 2* ]] && return
  local hint='see the log of the server.'
  if [[ $STATUS == 40[13] ]]; then hint='give a login with the needed rights: --login FILE, a configuration file of curl.'; fi
  die 69 "the server refused $1 $2: $STATUS $(jq -c '.reason? // .error? // .' <<<"$ANSWER" 2>/dev/null | head -c 500)" "$hint"
}
