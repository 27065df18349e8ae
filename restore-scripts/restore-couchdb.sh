#!/usr/bin/env bash
# Restores a CouchDB node from a restore point of Backstay, with standard tools only: first the files, with the node down,
# then (--finish) the shard maps, with the node up.
# shellcheck disable=SC2016 # what looks like variables belongs to jq
SCRIPT=${0##*/} KIND=couchdb
OPTIONS='  --to DIR          the data directory (default: where it was captured)
  --owner U:G       owner of everything, instead of the captured ones
  --no-replicator   leave the databases with jobs of replication out; give it in both steps
  --finish URL      the second step, with the node up at URL, on its host: let the shard maps name the node that it is
                    now, and compare what it has with what was captured. Keep users away until it has ended
  --login FILE      with --finish: a configuration file of curl with the line: user = "NAME:PASSWORD"
                    (a server admin of the ini files)'
# shellcheck source=restore-scripts/common.sh
. "$(dirname "$0")/common.sh"

URL='' REPLICATOR=yes STATE=''
# Where CouchDB 2 has its node-local databases; newer ones have them below their own address.
LOCAL_OF_2=http://127.0.0.1:5986

take_option() {
  case $1 in
    --no-replicator) REPLICATOR=no TOOK=1 ;;
    --finish | --login)
      [[ $# -gt 1 ]] || return 1
      case $1 in
        --finish) URL=${2%/} ;;
        --login) LOGIN=$2 ;;
      esac
      ;;
    *) return 1 ;;
  esac
}

# The inventory as one document, in a directory of its own. A database that comes back is whole and wanted.
read_inventory() {
  STATE=$(mktemp -d)
  trap 'rm -rf -- "$STATE"; clean_up' EXIT
  open_artefact inventory.jsonl | jq -s --arg replicator "$REPLICATOR" '
    def whole: (.dropped // false | not) and ((.damage // []) == [])
      and ($replicator == "yes" or (.db == "_replicator" or (.db | endswith("/_replicator")) | not));
    def paths: . as $d | .ranges | map("shards/\(.)/\($d.db)\($d.suffix).couch");
    def plain: test("^[a-z_][a-z0-9_$()+/-]*$") and (split("/") | all(. != ""));
    [.[] | select(.type == "shard") | {(.path): .}] as $shards | ($shards | add // {}) as $shards
    | {node: (.[0].node // ""), path: .[0].path,
       databases: [.[] | select(.type == "database") | . + {comes_back: whole, paths: paths}],
       files: [.[] | select(.type == "shard" or .type == "file") | {path, size}], $shards}
    | if all(.databases[]; (.db | plain) and (.suffix | test("^[0-9.]*$"))
        and all(.ranges[]; test("^[0-9a-fA-F]{8}-[0-9a-fA-F]{8}$")))
      then . else error("a database has a name that cannot be") end' >"$STATE/inventory" ||
    die 65 "the inventory cannot be read" "restore another point: $SCRIPT list $SOURCE"
  if [[ -z $TARGET ]]; then TARGET=$(inventory '.path // ""'); fi
  local parts
  parts=$(inventory '.shards as $s | [.databases[] | select(.comes_back and any(.paths[]; in($s) | not)) | .db] | join(", ")')
  [[ -z $parts ]] || die 73 "the point holds the shards of node $(inventory .node) alone, and other nodes had ranges of: $parts" \
    "restore the points of all nodes of the cluster, each onto its node, and rewrite the maps once."
}

inventory() { jq -r "$@" "$STATE/inventory"; }

# ---- first step: files ----

# A running node holds its databases open, and would go on writing to them.
refuse_running() {
  local at
  at=$(realpath -m -- "$TARGET")
  if [[ -n $(find /proc/[0-9]*/fd -maxdepth 1 -lname "$at/*.couch" -print -quit 2>/dev/null) ]]; then
    die 73 "a node runs in $TARGET" "stop it first, or restore elsewhere with --to."
  fi
}

restore_files() {
  need mountpoint
  prepare_target
  refuse_running
  local bytes more='' tar=(--preserve-permissions --anchored --no-wildcards "--exclude-from=$STATE/out")
  if [[ $(id -u) != 0 ]]; then
    tar+=(--no-same-owner)
    warn "not root: owners are not restored"
  fi
  bytes=$(manifest '(.counts.bytes // 0) + ((.counts.files // 0) * 2048)')
  require_space "$TARGET" "$bytes"
  say "target:   $TARGET ($(inventory '.databases | map(select(.comes_back)) | length') databases, $bytes bytes needed)"
  inventory '.databases[] | select(.comes_back | not) | "left out: \(.db)" + (if .damage then ", the point does not hold it whole" else "" end)'
  if [[ $DRY_RUN == yes ]]; then say "dry run:  nothing was changed"; return; fi
  # A copy with the list of a cluster's nodes would join that cluster, and rewrite its maps.
  { echo _nodes.couch; inventory '.databases[] | select(.comes_back | not) | (.paths[], (.paths[] | "." + sub("\\.couch$"; "_design")))'; } >"$STATE/out"
  mkdir -p -- "$(dirname "$NEW")"
  mkdir -m 700 -- "$NEW"
  trap 'rm -rf -- "$NEW" "$STATE"; clean_up' EXIT
  open_artefact data.tar | tar --extract "${tar[@]}" --directory="$NEW" --file=- || die 69 "tar could not extract everything" "nothing at the target was changed."
  compare_files "${tar[@]}"
  if [[ -n $OWNER ]]; then chown -R --no-dereference "$OWNER" -- "$NEW"; fi
  refuse_running
  put_config
  settle_target
  trap 'rm -rf -- "$STATE"; clean_up' EXIT
  if [[ $REPLICATOR == no ]]; then more=' --no-replicator'; fi
  say "restored: $TARGET"
  say "next:     start the node, keep its users away, and run: $SCRIPT restore $SOURCE $POINT --to $TARGET$more --finish URL --yes"
}

# Every file with the archive, and their names and sizes with the inventory.
compare_files() {
  local differs ignored=': no difference is ignored$'
  if [[ $(id -u) != 0 ]]; then ignored=': (Uid|Gid) differs$'; fi
  differs=$(open_artefact data.tar | tar --compare "$@" --directory="$NEW" --file=- 2>&1 | grep -vE "$ignored") || true
  [[ -z $differs ]] || die 65 "what was restored is not what was captured: $(head -n 10 <<<"$differs")" "nothing at the target was changed."
  find "$NEW" -type f -printf '%P\t%s\n' | sort >"$STATE/found"
  inventory '([.databases[] | select(.comes_back | not) | .paths[] | (., "." + sub("\\.couch$"; "_design/"))]) as $out
    | .files[] | select(.path as $p | all($out[]; . as $o | $p | startswith($o) | not)) | "\(.path)\t\(.size)"' | sort >"$STATE/wanted"
  differs=$(diff "$STATE/wanted" "$STATE/found") || die 65 "what was restored is not what the inventory says: $(head -n 10 <<<"$differs")" "nothing at the target was changed."
  say "compared: $(wc -l <"$STATE/found") files with the archive and the inventory"
}

# ---- second step: shard maps ----

# What to do with each map that the inventory knows: a word, the database, its name in an address, its revision, the files
# it must have, its documents, the new map. A map that is right already has no new one.
plan() {
  jq -r --slurpfile inventory "$STATE/inventory" --arg new "$1" '
    $inventory[0].node as $old
    | ([.rows[].doc | select(._id | startswith("_design/") | not) | {(._id): .}] | add // {}) as $maps
    | $inventory[0].databases[] | . as $d | $maps[.db] as $map
    | (if $map == null then (if .comes_back then "lost" else "gone" end)
       elif ($map.shard_suffix // [] | implode) != .suffix then "other"
       elif .comes_back then "stay" else "remove" end) as $word
    | (($map.by_node // {})[$old] // ($map.by_node // {})[$new]) as $ranges
    | (if $word == "stay" and $ranges != null then
         ($map | .by_node = {($new): $ranges} | .by_range = ([$ranges[] | {(.): [$new]}] | add)
           | if .changelog then .changelog |= map(map(if . == $old then $new else . end)) else . end)
       else $map end) as $wanted
    | [$word, .db, (.db | @uri), ($map._rev // "-" | @uri), (.paths | join(" ") | if . == "" then "-" else . end), "\(.doc_count | tonumber) \(.del_count | tonumber)",
       (if (.damage // []) != [] then "damaged" else "-" end), (if $wanted == $map then "-" else ($wanted | tojson) end)] | join("\t")'
}

SHORT=()
short() { SHORT+=("$1"); warn "$1"; }

finish() {
  need curl
  require_url "$URL"
  must GET "$URL/"
  local local_url=$URL/_node/_local members
  case $(jq -r '.version? // ""' <<<"$ANSWER") in
    '') die 69 "what answers at $URL is no CouchDB" ;;
    2.*) local_url=$LOCAL_OF_2 ;;
  esac
  [[ -f $TARGET/_dbs.couch ]] || die 66 "there is no $TARGET/_dbs.couch" "run this on the node's host, and name its data directory with --to."
  must GET "$URL/_membership"
  members=$(jq -r '(.all_nodes + .cluster_nodes) | unique | join(" ")' <<<"$ANSWER")
  [[ $members != *' '* && -n $members ]] || die 73 "the node is one of a cluster: $members" "restore onto a node of its own."
  must GET "$local_url/_dbs/_all_docs?include_docs=true"
  plan "$members" <<<"$ANSWER" >"$STATE/plan" || die 69 "the shard maps of the node cannot be read"
  say "node:     $members; the maps are from $(inventory .node)"
  if [[ $DRY_RUN == yes ]]; then
    awk -F '\t' '$1 == "remove" { print "would remove the shard map of " $2 } $1 == "stay" && $8 != "-" { print "would rewrite the shard map of " $2 }' "$STATE/plan"
    say "dry run:  nothing was changed"
    return
  fi
  # What must not come back loses its map first: whoever reads it would make it anew, empty.
  remove_maps "$local_url"
  rewrite_maps "$local_url"
  compare_databases "$local_url"
  [[ ${#SHORT[@]} == 0 ]] || die 65 "${#SHORT[@]} databases are not what was captured: $(joined "${SHORT[@]}")" "keep users away, and restore another point."
}

# holds_documents LOCAL PATHS: whether a file of these is there, and the node counts documents in it.
holds_documents() {
  local path
  for path in $2; do
    [[ -s $TARGET/$path ]] || continue
    ask GET "$1/$(urlencode "${path%.couch}")"
    if [[ $STATUS != 200 || $(jq '.doc_count + .doc_del_count' <<<"$ANSWER") != 0 ]]; then return 0; fi
  done
  return 1
}

remove_maps() {
  local word db quoted rev paths counts damage map
  while IFS=$'\t' read -r word db quoted rev paths counts damage map; do
    if [[ $damage == damaged ]]; then short "$db: the point does not hold it whole"; fi
    [[ $word == remove ]] || continue
    if holds_documents "$1" "$paths"; then
      short "$db: it does not come back, but its files hold documents: it was left alone"
      continue
    fi
    must DELETE "$1/_dbs/$quoted?rev=$rev"
    say "removed:  the shard map of $db, which does not come back"
  done <"$STATE/plan"
}

rewrite_maps() {
  local word db quoted rev paths counts damage map path rewritten=0
  while IFS=$'\t' read -r word db quoted rev paths counts damage map; do
    [[ $word == stay && $map != - ]] || continue
    # A file that is not there would be made, empty, as soon as its map is right.
    for path in $paths; do [[ -s $TARGET/$path ]] || continue 2; done
    must PUT "$1/_dbs/$quoted" "$map"
    rewritten=$((rewritten + 1))
  done <"$STATE/plan"
  say "rewrote:  $rewritten shard maps"
}

# fewer WHAT WANTED: whether the answer counts less than the captured documents and deleted ones; says so.
fewer() {
  local found
  found=$(jq -r '"\(.doc_count | tonumber) \(.doc_del_count | tonumber)"' <<<"$ANSWER")
  if [[ ${found% *} -ge ${2% *} && ${found#* } -ge ${2#* } ]]; then return 1; fi
  short "$1 has ${found% *} documents and ${found#* } deleted ones, and ${2% *} and ${2#* } were captured"
}

compare_databases() {
  local word db quoted rev paths counts damage map whole=0
  while IFS=$'\t' read -r word db quoted rev paths counts damage map; do
    case $word in
      lost) short "$db: the node has no shard map of it" ;;
      other) short "$db: another database of this name was made since" ;;
      stay) if compare_database "$1" "$db" "$quoted" "$paths" "$counts"; then whole=$((whole + 1)); fi ;;
    esac
  done <"$STATE/plan"
  say "compared: $whole databases with those that were captured, shard by shard"
}

compare_database() {
  local path wanted try
  for path in $4; do
    if [[ ! -s $TARGET/$path ]]; then short "$2: $path is not in the data directory"; return 1; fi
    wanted=$(inventory --arg path "$path" '.shards[$path] | "\(.doc_count // 0 | tonumber) \(.del_count // 0 | tonumber)"')
    ask GET "$1/$(urlencode "${path%.couch}")"
    if [[ $STATUS != 200 ]]; then short "$2: $path cannot be read ($STATUS)"; return 1; fi
    if fewer "$2: $path" "$wanted"; then return 1; fi
  done
  # A map needs a moment until every part of the node knows it.
  for ((try = 0; try < 20; try++)); do
    ask GET "$URL/$3"
    if [[ $STATUS == 200 ]]; then
      if fewer "$2" "$5"; then return 1; fi
      return 0
    fi
    sleep 0.25
  done
  short "$2: it cannot be read ($STATUS)"
  return 1
}

main() {
  parse "$@"
  if [[ $COMMAND == list ]]; then need jq; list_points; exit; fi
  fetch_point
  check_point
  need_openers
  read_inventory
  if [[ -n $URL ]]; then finish; else restore_files; fi
}
main "$@"
