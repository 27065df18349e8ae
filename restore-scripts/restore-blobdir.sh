#!/usr/bin/env bash
# Restores a directory of files from a restore point of Backstay, with standard tools only.
SCRIPT=${0##*/} KIND=blobdir
OPTIONS='  --to DIR          where to restore (default: where it was captured)
  --owner U:G       owner of everything, instead of the captured ones'
# shellcheck source=restore-scripts/common.sh
. "$(dirname "$0")/common.sh"

take_option() { return 1; }

tar_options() {
  TAR=(--xattrs '--xattrs-include=*' --acls --preserve-permissions --numeric-owner --warning=no-timestamp)
  if [[ $(id -u) != 0 ]]; then
    TAR=(--xattrs --preserve-permissions --no-same-owner --warning=no-timestamp)
    warn "not root: owners are not restored"
  fi
}

restore() {
  need zstd tar mountpoint
  need_openers
  local bytes
  if [[ -z $TARGET ]]; then
    TARGET=$(open_artefact inventory.jsonl | head -n 1 | jq -r '.path // ""') || true
  fi
  prepare_target
  bytes=$(manifest '(.counts.bytes // 0) + ((.counts.files // 0) * 2048)')
  require_space "$TARGET" "$bytes"
  say "target:   $TARGET ($(manifest '.counts.files // 0') files, $bytes bytes needed)"
  if [[ $DRY_RUN == yes ]]; then say "dry run:  nothing was changed"; return; fi
  tar_options
  mkdir -p -- "$(dirname "$NEW")"
  mkdir -m 700 -- "$NEW"
  trap 'rm -rf -- "$NEW"; clean_up' EXIT
  open_artefact data.tar | tar --extract "${TAR[@]}" --directory="$NEW" --file=- || die 69 "tar could not extract everything" "nothing at the target was changed."
  compare
  if [[ -n $OWNER ]]; then chown -R --no-dereference "$OWNER" -- "$NEW"; fi
  settle_target
  trap clean_up EXIT
  say "restored: $TARGET"
}

# Content, owner, mode, time of each entry against the archive, then the number of each sort against the manifest.
compare() {
  local differs type key counted captured
  # tar has nothing to say about the size and times of directories that are being compared; all else is a difference.
  if [[ $(id -u) == 0 ]]; then
    differs=$(open_artefact data.tar | tar --compare --numeric-owner --directory="$NEW" --file=- 2>&1) ||
      die 65 "what was restored is not what was captured: $(head -n 10 <<<"$differs")" "nothing at the target was changed."
  else
    differs=$(open_artefact data.tar | tar --compare --directory="$NEW" --file=- 2>&1 | grep -vE ': (Uid|Gid) differs$') || true
    [[ -z $differs ]] || die 65 "what was restored is not what was captured: $(head -n 10 <<<"$differs")" "nothing at the target was changed."
  fi
  for type in d:directories l:symlinks; do
    key=${type#*:}
    counted=$(find "$NEW" -type "${type%%:*}" -printf x | wc -c)
    captured=$(manifest ".counts.$key // 0")
    [[ $counted == "$captured" ]] || die 65 "$counted $key were restored, $captured were captured" "nothing at the target was changed."
  done
  counted=$(find "$NEW" -type f -printf x | wc -c)
  captured=$(manifest '(.counts.files // 0) + (.counts.hardlinks // 0)')
  [[ $counted == "$captured" ]] || die 65 "$counted files were restored, $captured were captured" "nothing at the target was changed."
  say "compared: $counted files with the archive and the manifest"
}

main() {
  parse "$@"
  if [[ $COMMAND == list ]]; then need jq; list_points; exit; fi
  fetch_point
  check_point
  restore
}
main "$@"
