#!/usr/bin/env bash
# Restores PostgreSQL from a restore point of Backstay, with standard tools only: tar, psql, pg_restore.
SCRIPT=${0##*/} KIND=postgres
OPTIONS='  --to DIR          method plain: the data directory (default: where it was captured)
  --owner U:G       method plain: owner of the data directory (default: postgres:postgres as root, else oneself)
  --map OID=DIR     method plain: directory of the tablespace OID; needed for each tablespace
  --database NAME   method databases: only this one
  --as NAME         method databases: under this name
Methods dump and databases go into a running server: PGHOST, PGPORT, PGUSER and PGPASSFILE say which.'
# shellcheck source=restore-scripts/common.sh
. "$(dirname "$0")/common.sh"

declare -A MAP=()
DATABASE='' AS=''

take_option() {
  [[ $# -gt 1 ]] || return 1
  case $1 in
    --map)
      [[ $2 =~ ^([0-9]+)=(/.+)$ ]] || die 64 "--map takes OID=DIR, with an absolute DIR"
      MAP[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
      ;;
    --database) DATABASE=$2 ;;
    --as) AS=$2 ;;
    *) return 1 ;;
  esac
}

# ---- plain ----

restore_plain() {
  need mountpoint
  local data=data.tar bytes
  if [[ -n $(artefact base.tar) ]]; then data=base.tar; fi
  if [[ -z $TARGET ]]; then TARGET=$(manifest '.attributes.data_directory // ""'); fi
  prepare_target
  refuse_running
  if [[ -z $OWNER ]]; then
    if [[ $(id -u) == 0 ]]; then OWNER=postgres:postgres; else OWNER=$(id -un):$(id -gn); fi
  fi
  bytes=$(manifest '[.artefacts[] | select(.role == "data") | .plain_bytes] | add')
  require_space "$TARGET" "$bytes"
  local oid oids=()
  mapfile -t oids < <(manifest '.artefacts[].name | select(test("^[0-9]+\\.tar")) | split(".")[0]')
  for oid in "${oids[@]}"; do
    [[ -n ${MAP[$oid]:-} ]] || die 64 "it is not known where the tablespace $oid goes" "name an empty directory with --map $oid=DIR."
    if holds_data "${MAP[$oid]}"; then die 73 "${MAP[$oid]} is not empty" "name an empty directory with --map $oid=DIR."; fi
  done
  say "target:   $TARGET, for $OWNER ($bytes bytes; PostgreSQL $(manifest .server_version), needs the same major version)"
  if [[ $DRY_RUN == yes ]]; then say "dry run:  nothing was changed"; return; fi
  mkdir -p -- "$(dirname "$NEW")"
  mkdir -m 700 -- "$NEW"
  trap 'rm -rf -- "$NEW"; clean_up' EXIT
  open_artefact "$data" | tar --extract --no-same-owner --directory="$NEW" --file=- || die 69 "tar could not extract everything" "nothing at the target was changed."
  if [[ -n $(artefact backup_manifest.json) ]]; then open_artefact backup_manifest.json >"$NEW/backup_manifest"; fi
  place_tablespaces "${oids[@]}"
  verify_plain
  rm -f -- "$NEW/postmaster.pid" "$NEW/postmaster.opts"
  if [[ -f $NEW/standby.signal ]]; then
    rm -f -- "$NEW/standby.signal"
    sed -i -E '/^[[:space:]]*primary_(conninfo|slot_name)/d' "$NEW/postgresql.auto.conf"
    say "note:     it was a standby; it will start as a server of its own"
  fi
  put_config
  chmod 700 -- "$NEW"
  if [[ $(id -u) == 0 ]]; then chown -R --no-dereference "$OWNER" -- "$NEW"; fi
  settle_target
  trap clean_up EXIT
  say "restored: $TARGET"
  say "next:     start the server, and wait until: psql -Atc 'select pg_is_in_recovery()' says f"
}

refuse_running() {
  local pid
  if [[ -f $TARGET/postmaster.pid ]]; then
    pid=$(head -n 1 "$TARGET/postmaster.pid")
    if [[ $pid =~ ^[0-9]+$ ]] && kill -0 "$pid" 2>/dev/null; then
      die 73 "a server runs in $TARGET (process $pid)" "stop it first, or restore elsewhere with --to."
    fi
  fi
}

place_tablespaces() {
  local oid
  [[ -z ${1:-} ]] || : >"$NEW/tablespace_map"
  for oid in "$@"; do
    mkdir -p -- "${MAP[$oid]}"
    open_artefact "$oid.tar" | tar --extract --no-same-owner --directory="${MAP[$oid]}" --file=- || die 69 "tar could not extract the tablespace $oid"
    if [[ $(id -u) == 0 ]]; then chown -R --no-dereference "$OWNER" -- "${MAP[$oid]}"; fi
    chmod 700 -- "${MAP[$oid]}"
    ln -sfn -- "${MAP[$oid]}" "$NEW/pg_tblspc/$oid"
    printf '%s %s\n' "$oid" "${MAP[$oid]}" >>"$NEW/tablespace_map"
  done
}

# Every file against the copy's own manifest, if the program is here.
verify_plain() {
  local tool said major
  major=$(manifest '.server_version | capture("^(?<n>[0-9]+)").n')
  for tool in "/usr/lib/postgresql/$major/bin/pg_verifybackup" pg_verifybackup; do
    if command -v "$tool" >/dev/null; then
      # The map of tablespaces was written anew.
      said=$("$tool" --ignore=tablespace_map "$NEW" 2>&1) || die 65 "what was restored is not what was captured: $said" "nothing at the target was changed."
      say "compared: every file with the copy's manifest (pg_verifybackup)"
      return
    fi
  done
  warn "pg_verifybackup of PostgreSQL $major is not here: files were not compared"
}

# ---- dump and databases ----

# psql without start files; a password is never asked for.
sql() { psql --no-psqlrc --no-password --quiet --tuples-only --no-align "$@"; }

occupants() {
  sql --dbname="${PGDATABASE:-postgres}" --command="select 'database ' || datname from pg_database
    where not datistemplate and datname <> 'postgres' and datname <> current_database()"
}

restore_dump() {
  need psql
  local found errors
  found=$(occupants) || die 69 "psql cannot reach the server" "set PGHOST, PGPORT, PGUSER and PGPASSFILE."
  [[ -z $found ]] || die 73 "the server is not empty: $found" "a dump goes only into an empty cluster: make one with initdb or pg_createcluster."
  say "target:   the server at ${PGHOST:-the local socket}, port ${PGPORT:-5432}"
  if [[ $DRY_RUN == yes ]]; then say "dry run:  nothing was changed"; return; fi
  errors=$(open_artefact all.sql | sql --dbname="${PGDATABASE:-postgres}" --set=ON_ERROR_STOP=0 --file=- 2>&1 >/dev/null |
    grep -E 'ERROR:|FATAL:|error:' | grep -vE 'ERROR:  role "[^"]*" already exists$') || true
  [[ -z $errors ]] || die 69 "psql reported errors: $(head -n 20 <<<"$errors")" "remove the cause, and restore into an empty cluster again."
  compare_rows
  say "restored: run ANALYZE, because a dump has no statistics"
}

# conninfo NAME: a connection string that names a database, whatever its characters.
conninfo() { local name=${1//\\/\\\\}; printf "dbname='%s'" "${name//\'/\\\'}"; }

# quoted NAME: as an SQL identifier.
quoted() { local name=${1//\"/\"\"}; printf '"%s"' "$name"; }

# The rows of each table against those that were counted at capture.
compare_rows() {
  local line database schema table rows counted tables=0
  while IFS= read -r line; do
    database=$(jq -r .database <<<"$line") schema=$(jq -r .schema <<<"$line")
    table=$(jq -r .table <<<"$line") rows=$(jq -r .rows <<<"$line")
    if [[ -n $DATABASE && $database != "$DATABASE" ]]; then continue; fi
    counted=$(PGDATABASE=${AS:-$database} sql --command="select count(*) from only $(quoted "$schema").$(quoted "$table")") || die 65 "cannot count $schema.$table"
    [[ $counted == "$rows" ]] || die 65 "$schema.$table in $database has $counted rows, $rows were captured"
    tables=$((tables + 1))
  done < <(open_artefact inventory.jsonl | jq -c 'select(.table != null and .rows != null)')
  say "compared: the rows of $tables tables with those that were captured"
}

restore_databases() {
  need psql pg_restore createdb
  local lines=() line name artefact as exists
  mapfile -t lines < <(open_artefact inventory.jsonl | jq -c 'select(.artefact != null)')
  for line in "${lines[@]}"; do
    name=$(jq -r .database <<<"$line")
    if [[ -n $DATABASE && $name != "$DATABASE" ]]; then continue; fi
    as=${AS:-$name}
    exists=$(sql --dbname=template1 --set=name="$as" <<<"select count(*) from pg_database where datname = :'name'") || die 69 "psql cannot reach the server" "set PGHOST, PGPORT, PGUSER and PGPASSFILE."
    if [[ $exists != 0 && $as != postgres ]]; then die 73 "there is a database $as already" "restore one with --database NAME --as OTHER, or rename the old one."; fi
    say "target:   database $as at ${PGHOST:-the local socket}, port ${PGPORT:-5432}"
  done
  if [[ $DRY_RUN == yes ]]; then say "dry run:  nothing was changed"; return; fi
  if [[ -z $DATABASE ]]; then restore_globals; fi
  for line in "${lines[@]}"; do
    name=$(jq -r .database <<<"$line") artefact=$(jq -r .artefact <<<"$line")
    if [[ -n $DATABASE && $name != "$DATABASE" ]]; then continue; fi
    as=${AS:-$name}
    if [[ $as == "$name" && $as != postgres ]]; then
      # With its encoding, its locale and its settings.
      open_artefact "$artefact.dump" | pg_restore --no-password --exit-on-error --create --dbname=template1
    else
      if [[ $as != postgres ]]; then
        sql --dbname=template1 --command="create database $(quoted "$as") template template0" || die 69 "could not make the database $as"
      fi
      open_artefact "$artefact.dump" | pg_restore --no-password --exit-on-error --dbname="$(conninfo "$as")"
    fi || die 69 "pg_restore failed in the database $as" "drop that database, remove the cause, and try again."
  done
  compare_rows
  say "restored: run ANALYZE, because a dump has no statistics"
}

restore_globals() {
  local errors
  errors=$(open_artefact globals.sql | sql --dbname=template1 --set=ON_ERROR_STOP=0 --file=- 2>&1 >/dev/null |
    grep -E 'ERROR:|FATAL:|error:' | grep -vE 'ERROR:  (role|tablespace) "[^"]*" already exists$') || true
  [[ -z $errors ]] || die 69 "psql reported errors: $(head -n 20 <<<"$errors")"
}

main() {
  parse "$@"
  if [[ $COMMAND == list ]]; then need jq; list_points; exit; fi
  fetch_point
  check_point
  need_openers
  case $(manifest .method) in
    plain) restore_plain ;;
    dump) restore_dump ;;
    databases) restore_databases ;;
    *) die 78 "the point was taken by the method $(manifest .method)" "take a newer script." ;;
  esac
}
main "$@"
