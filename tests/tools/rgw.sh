#!/usr/bin/env bash
# rgw.sh DIR PORT MON_V2 MON_V1 PARENT: a throw-away Ceph object gateway on loopback, all of it in memory and in DIR.
# Keys: AKTEST / SKTEST. It is stopped, and DIR removed, as soon as the process PARENT is gone.
# Packages: radosgw ceph-mon ceph-osd ceph-common uuid-runtime curl. Takes about 15 s.
set -euo pipefail
dir=$1 port=$2 mon_v2=$3 mon_v1=$4 parent=$5
mkdir -p "$dir"/{mon,osd,rgw,run}
conf=$dir/ceph.conf

# The guard first, so that nothing stays when a later step fails.
guard() {
  while kill -0 "$parent" 2>/dev/null && [[ -e $dir/keep ]]; do sleep 1; done
  cat "$dir"/run/*.pid 2>/dev/null | xargs -r -n 1 kill 2>/dev/null || true
  sleep 1
  cat "$dir"/run/*.pid 2>/dev/null | xargs -r -n 1 kill -KILL 2>/dev/null || true
  rm -rf "$dir"
}
touch "$dir/keep"
guard </dev/null >/dev/null 2>&1 &
disown
trap '[[ $? == 0 ]] || rm -f "$dir/keep"' EXIT

cat >"$conf" <<END
[global]
fsid=$(uuidgen)
mon_host=v2:127.0.0.1:$mon_v2,v1:127.0.0.1:$mon_v1
public_network=127.0.0.0/8
osd_pool_default_size=1
osd_pool_default_min_size=1
osd_pool_default_pg_num=8
mon_allow_pool_size_one=true
osd_crush_chooseleaf_type=0
mon_max_pg_per_osd=1000
mon_data=$dir/mon
osd_data=$dir/osd
osd_objectstore=memstore
memstore_device_bytes=2147483648
osd_memory_target=939524096
run_dir=$dir/run
admin_socket=$dir/run/\$name.asok
pid_file=$dir/run/\$name.pid
log_file=$dir/\$name.log
keyring=$dir/keyring
mon_initial_members=a
ms_bind_ipv4=true
auth_allow_insecure_global_id_reclaim=false
rgw_enable_usage_log=false
rgw_data=$dir/rgw
rgw_frontends=beast endpoint=127.0.0.1:$port
rgw_dynamic_resharding=false
END
export CEPH_CONF=$conf
fsid=$(sed -n 's/^fsid=//p' "$conf")
{
  ceph-authtool --create-keyring "$dir/keyring" --gen-key -n client.admin \
    --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  ceph-authtool --create-keyring "$dir/mon.keyring" --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool "$dir/mon.keyring" --import-keyring "$dir/keyring"
  monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon_v2,v1:127.0.0.1:$mon_v1]" "$dir/monmap"
  ceph-mon -c "$conf" --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/mon.keyring"
  ceph-mon -c "$conf" -i a
  uuid=$(uuidgen)
  key=$(ceph-authtool --gen-print-key)
  id=$(echo "{\"cephx_secret\":\"$key\"}" | ceph -c "$conf" osd new "$uuid" -i -)
  ceph-authtool "$dir/keyring" --name "osd.$id" --add-key "$key"
  ceph-osd -c "$conf" -i "$id" --mkfs --osd-uuid "$uuid"
  ceph-osd -c "$conf" -i "$id"
  radosgw -c "$conf" -n client.admin
} >"$dir/start.log" 2>&1 </dev/null || { tail -n 20 "$dir/start.log" >&2; exit 1; }
up=0
for _ in $(seq 120); do
  if curl -s -o /dev/null "http://127.0.0.1:$port"; then
    up=1
    break
  fi
  sleep 0.5
done
[[ $up == 1 ]] || { echo "the gateway does not answer" >&2; exit 1; }
radosgw-admin -c "$conf" -n client.admin user create --uid=test --display-name=t \
  --access-key=AKTEST --secret=SKTEST >"$dir/admin.log" 2>&1 </dev/null || { tail -n 5 "$dir/admin.log" >&2; exit 1; }
