#!/usr/bin/env bash
# Restores indices of Elasticsearch or OpenSearch from a restore point of Backstay, with curl and jq. The point names a
# snapshot; the data itself lies in the cluster's repository, which the cluster must have registered.
SCRIPT=${0##*/} KIND=elasticsearch
OPTIONS='  --url URL            the cluster, such as http://127.0.0.1:9200
  --login FILE         a configuration file of curl with the line: user = "NAME:PASSWORD"
  --index NAME         only this index or data stream; may be given several times (default: all but those with a dot)
  --rename-prefix P    restore beside what is there: each index gets a name that begins with P
  --repository NAME    take the snapshot in this repository (default: the first that has all)'
# shellcheck source=restore-scripts/common.sh
. "$(dirname "$0")/common.sh"
REPLACES='allow indices that are there: they are deleted once the new ones were restored beside them and counted,
                    which needs room for both'

URL='' PREFIX='' REPOSITORY='' SNAPSHOT='' STATE='' PROBLEMS=()
ONLY=()
# Shards that failed are tried again by the cluster; seconds until it is believed that they will not come.
FAILED_FOR=15 UNTAKEN_FOR=120

take_option() {
  [[ $# -gt 1 ]] || return 1
  case $1 in
    --url) URL=${2%/} ;;
    --login) LOGIN=$2 ;;
    --index) ONLY+=("$2") ;;
    --rename-prefix) PREFIX=$2 ;;
    --repository) REPOSITORY=$2 ;;
    *) return 1 ;;
  esac
}

quoted() { jq -rn --arg text "$1" '$text | @uri'; }

# The lines of the inventory that are wanted, each with the name that its index gets: $STATE/jobs.
read_inventory() {
  local missing counted
  STATE=$(mktemp -d)
  trap 'rm -rf -- "$STATE"; clean_up' EXIT
  open_artefact inventory.jsonl >"$STATE/inventory"
  counted=$(jq -s length "$STATE/inventory") || die 65 "the inventory cannot be read"
  [[ $counted == "$(manifest '.counts.indices // 0')" ]] || die 65 "the inventory has $counted indices, the manifest counts $(manifest '.counts.indices // 0')"
  jq -c --arg prefix "$PREFIX" '. as $l | ($l.data_stream // $l.index) as $name
    | select(if $ARGS.positional == [] then $name | startswith(".") | not
        else any($ARGS.positional[]; . == $name or . == $l.index) end)
    | ([.documents, .documents_after // .documents] | map(tonumber)) as $counted
    | . + {name: $name, target: ($prefix + .index), least: ($counted | min), most: ($counted | max)}' "$STATE/inventory" --args "${ONLY[@]}" >"$STATE/jobs" ||
    die 65 "the inventory cannot be read"
  missing=$(jq -rs '. as $jobs | [$ARGS.positional[] | . as $n | select(any($jobs[]; .name == $n or .index == $n) | not)] | join(", ")' "$STATE/jobs" --args "${ONLY[@]}")
  [[ -z $missing ]] || die 66 "the restore point does not hold $missing" "it holds: $(jq -rs '[.[] | .data_stream // .index] | unique | .[:20] | join(", ")' "$STATE/inventory")."
  [[ -s $STATE/jobs ]] || die 66 "the restore point holds no index" "choose those whose names begin with a dot by --index."
  if [[ -n $PREFIX ]] && jq -es 'any(.data_stream)' "$STATE/jobs" >/dev/null; then
    die 64 "a data stream cannot be restored under another name" "choose plain indices with --index, or leave --rename-prefix out."
  fi
}

# The first snapshot of the point that is there and has all that is wanted.
choose_snapshot() {
  local repository name why gone=yes
  while IFS=$'\t' read -r repository name; do
    if [[ -n $REPOSITORY && $repository != "$REPOSITORY" ]]; then continue; fi
    ask GET "$URL/_snapshot/$(quoted "$repository")/$(quoted "$name")"
    if [[ $STATUS != 200 ]]; then
      [[ $STATUS == 404 ]] || gone=no
      PROBLEMS+=("repository $repository: $(jq -r '.error.reason? // .error? // "an answer that is not understood"' <<<"$ANSWER" 2>/dev/null) ($STATUS)")
      continue
    fi
    why=$(jq -r --slurpfile jobs "$STATE/jobs" '.snapshots[0] as $s
      | if ($s.state | . != "SUCCESS" and . != "PARTIAL") then "is \($s.state)" else
        ([$jobs[].index | select(. as $i | any($s.indices[]; . == $i) | not)] | if . == [] then empty else "lacks \(join(", "))" end),
        ([$s.failures[]? | .index as $i | select(any($jobs[]; .index == $i)) | $i] | unique | if . == [] then empty else "has not all shards of \(join(", "))" end) end' <<<"$ANSWER")
    if [[ -z $why ]]; then
      REPOSITORY=$repository SNAPSHOT=$name
      return
    fi
    PROBLEMS+=("snapshot $name in repository $repository ${why//$'\n'/, }")
  done < <(jq -r '.external[] | [.repository, .name] | @tsv' "$DIR/manifest.json")
  local code=65
  [[ $gone == yes ]] || code=69
  die "$code" "no snapshot of the point can be used: $(joined "${PROBLEMS[@]}")" \
    "register the repository in this cluster, as readonly: $(jq -r '[.external[] | "\(.repository) (\([.type, .bucket, .base_path] | map(values) | join(" ")))"] | join(", ")' "$DIR/manifest.json"); or restore another point."
}

# What is in the way: $STATE/over has the jobs whose index is there.
look_at_targets() {
  local bad
  must GET "$URL/_cluster/state/metadata?filter_path=cluster_name,metadata.indices.*.state,metadata.indices.*.aliases"
  jq -c '.metadata.indices // {}' <<<"$ANSWER" >"$STATE/there"
  jq -c --slurpfile there "$STATE/there" 'select(.target as $t | $there[0] | has($t))' "$STATE/jobs" >"$STATE/over"
  bad=$(jq -r --slurpfile there "$STATE/there" '.target as $t | $there[0] | to_entries[] | select(any(.value.aliases[]?; . == $t)) | "\($t) is an alias of \(.key)"' "$STATE/jobs")
  [[ -z $bad ]] || die 73 "an alias is in the way: ${bad//$'\n'/, }" "remove it, or restore beside it with --rename-prefix."
  bad=$(jq -rs '[.[] | select(.data_stream) | .data_stream] | unique | join(", ")' "$STATE/over")
  [[ -z $bad ]] || die 73 "data streams of these names are there: $bad" "delete them first; they cannot be replaced."
  bad=$(jq -rs 'map(.target) | join(", ")' "$STATE/over")
  if [[ -n $bad && $REPLACE == no ]]; then
    die 73 "refused to restore over indices that are there: $bad" "restore beside them with --rename-prefix P, or allow --replace: they are deleted."
  fi
}

# ---- restoring ----

# bring JOBS PREFIX: restores the jobs of a file, waits, counts. What is not whole is removed again: it was not there before.
bring() {
  local body
  body=$(jq -cs --arg prefix "$2" '{indices: (map(.name) | unique), ignore_unavailable: false, partial: false,
      include_global_state: false, include_aliases: false}
    + if $prefix == "" then {} else {rename_pattern: "^(.+)$", rename_replacement: ($prefix + "$1")} end' "$1")
  must POST "$URL/_snapshot/$(quoted "$REPOSITORY")/$(quoted "$SNAPSHOT")/_restore?wait_for_completion=false" "$body"
  wait_for_shards "$1"
  count "$1"
}

# One line per index that is not there yet: how it stands, its name, why.
shards() {
  jq -r --slurpfile jobs "$1" '.routing_table.indices as $indices | $jobs[] | .target as $t
    | [($indices[$t].shards // {})[] | ([.[] | select(.primary)][0] // {}) | .unassigned_info as $info
       | if .state == "STARTED" or .state == "RELOCATING" then "started"
         elif .state == "INITIALIZING" then "busy"
         elif $info.reason == "ALLOCATION_FAILED" then
           (if ($info.failed_attempts // 0) >= 5 then "lost\t" else "failed\t" end)
             + (($info.details // "no reason is given") | rtrimstr("; ") | split("nested: ") | last | gsub("[\t\n]"; " "))
         else "untaken" end] as $all
    | if $all == [] then "untaken" else
        ([$all[] | select(startswith("lost"))] + [$all[] | select(. == "busy")] + [$all[] | select(startswith("failed"))]
         + [$all[] | select(. == "untaken")])[0] // empty end
    | split("\t") as [$state, $why] | "\($state)\t\($t)\t\($why // "no node takes its shards")"' <<<"$ANSWER"
}

# Until every shard is there, or will not come: those indices are in $STATE/lost.
wait_for_shards() {
  local since=$SECONDS standing
  : >"$STATE/lost"
  while :; do
    must GET "$URL/_cluster/state/routing_table?filter_path=cluster_name,routing_table.indices.*.shards.*.state,routing_table.indices.*.shards.*.primary,routing_table.indices.*.shards.*.unassigned_info"
    standing=$(shards "$1")
    grep '^lost' <<<"$standing" >"$STATE/lost" || true
    if [[ $standing == *busy$'\t'* ]]; then
      since=$SECONDS
    elif ! grep -qE '^(failed|untaken)' <<<"$standing"; then
      return
    elif ! grep -q '^untaken' <<<"$standing" && ((SECONDS - since > FAILED_FOR)) || ((SECONDS - since > UNTAKEN_FOR)); then
      printf '%s\n' "$standing" >"$STATE/lost"
      return
    fi
    sleep 0.5
  done
}

# count JOBS: the documents of each index with those that were counted at capture.
count() {
  local lost name target least most stream found documents=0 indices=0 bad=()
  while IFS=$'\t' read -r name target least most stream; do
    lost=$(awk -F '\t' -v name="$target" '$2 == name { print $3 }' "$STATE/lost")
    if [[ -n $lost ]]; then
      bad+=("$name: $lost")
    else
      must POST "$URL/$(quoted "$target")/_refresh"
      must GET "$URL/$(quoted "$target")/_stats/docs"
      found=$(jq -r '._all.primaries.docs.count // 0 | tonumber' <<<"$ANSWER")
      if [[ $found -ge $least && $found -le $most ]]; then
        documents=$((documents + found)) indices=$((indices + 1))
        continue
      fi
      bad+=("$name has $found documents, $least to $most were counted when it was captured")
    fi
    if [[ -z $stream ]]; then ask DELETE "$URL/$(quoted "$target")"; else warn "$target was left there, as a part of the data stream $stream"; fi
  done < <(jq -r '[.index, .target, .least, .most, .data_stream // ""] | @tsv' "$1")
  # The hint says what state things are in.
  [[ ${#bad[@]} == 0 ]] || die 65 "${#bad[@]} indices could not be restored whole: $(joined "${bad[@]}")" "$(cat "$STATE/hint")"
  say "compared: $documents documents in $indices indices with those that were captured"
}

delete_targets() {
  local target
  while IFS= read -r target; do must DELETE "$URL/$(quoted "$target")"; done < <(jq -r .target "$1")
}

restore() {
  local indices temporary
  indices=$(jq -rs 'map(.target) | join(", ")' "$STATE/jobs")
  say "source:   snapshot $SNAPSHOT in repository $REPOSITORY"
  say "target:   $URL: $indices"
  if [[ -s $STATE/over ]]; then say "replaced: $(jq -rs 'map(.target) | join(", ")' "$STATE/over")"; fi
  if [[ $DRY_RUN == yes ]]; then say "dry run:  nothing was changed"; return; fi
  echo "the others are there, these are not: restore them from another point, or take another --repository." >"$STATE/hint"
  if [[ -s $STATE/over ]]; then
    # A file that a repository has lost shows in nothing but a restore: until then the present index is the last copy.
    temporary=backstay-restore-$(od -An -N3 -tx1 /dev/urandom | tr -d ' ')-
    jq -c --arg prefix "$temporary" '.target = $prefix + .index' "$STATE/over" >"$STATE/temporary"
    echo "nothing was replaced; indices $temporary* can be deleted. Restore another point, or take another --repository." >"$STATE/hint"
    bring "$STATE/temporary" "$temporary"
    echo "the old indices are gone; what was restored and counted is in the indices $temporary*: reindex from there." >"$STATE/hint"
    delete_targets "$STATE/over"
  fi
  bring "$STATE/jobs" "$PREFIX"
  if [[ -s $STATE/over ]]; then delete_targets "$STATE/temporary"; fi
  say "restored: $indices"
}

main() {
  parse "$@"
  if [[ $COMMAND == list ]]; then need jq; list_points; exit; fi
  need curl
  [[ $PREFIX =~ ^([a-z0-9][a-z0-9._-]*)?$ ]] || die 64 "no name of an index begins with $PREFIX"
  [[ -n $URL ]] || die 64 "it is not known where to restore" "name the cluster with --url."
  require_url "$URL"
  fetch_point
  check_point
  need_openers
  read_inventory
  choose_snapshot
  look_at_targets
  restore
}
main "$@"
