"""What the role commcare makes of the variables of commcare-cloud."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GROUPS = {"pg_backup": ["db1"], "couchdb2": ["db1", "db2"], "shared_dir_host": ["web1"], "elasticsearch": ["es1", "es2"],
          "backstay_monitor": ["monitor1"]}


def mapped(**variables):
    """By host, what the role would deploy."""
    with tempfile.TemporaryDirectory() as directory:
        at = pathlib.Path(directory)
        children = {group: {"hosts": {host: {} for host in hosts}} for group, hosts in GROUPS.items()}
        (at / "hosts.json").write_text(json.dumps({"all": {"vars": {"deploy_env": "icds_New", **variables}, "children": children}}))
        # The playbook reads the role's defaults as variables of the play, which go before those of the inventory.
        own = {name: value for name, value in variables.items() if name.startswith("commcare_")}
        ran = subprocess.run(
            ["ansible-playbook", "-i", str(at / "hosts.json"), "-e", json.dumps(own), str(ROOT / "tests/ansible/mapping.yml")],
            capture_output=True, text=True, check=False, cwd=directory)
        if ran.returncode != 0:
            raise AssertionError(ran.stdout + ran.stderr)
        said = re.findall(r"^ok: \[(\w+)\] => (\{.*?^\})$", ran.stdout, re.M | re.S)
        return {host: json.loads(text)["msg"] for host, text in said}


class Mapping(unittest.TestCase):
    maxDiff = None

    def test_nothing_set_means_what_it_did(self):
        hosts = mapped()
        self.assertEqual({host: one["problems"] for host, one in hosts.items()}, {host: [] for host in hosts})
        self.assertEqual(hosts["db1"]["mapping"], {
            "hours": [0, 1, 2, 3],
            "services": {"postgres": {
                "postgres": {"method": "plain"}, "user": "postgres", "backup_dir": "/opt/data/backups/postgresql",
                "destinations": [], "keep": {"daily": 3, "weekly": 3}}},
            "destinations": {}, "fleet_destinations": {}, "expect": {}})
        states = {host: one["state"] for host, one in hosts.items()}
        self.assertEqual(states, {"db1": "present", "db2": "absent", "web1": "absent", "es1": "absent", "es2": "absent", "monitor1": "present"})

    def test_everything_on(self):
        hosts = mapped(
            backup_postgres="dump", postgres_s3=True, postgresql_backup_days=1, postgres_backup_hourly=True, postgresql_backup_hours=7,
            postgresql_version=14, postgresql_port="5433", backup_couch=True, couch_s3=True, COUCH_USERNAME="c", COUCH_PASSWORD="p",
            backup_blobdb="yes", blobdb_s3=True, blobdb_user="cchq", blobdb_snapshot_bucket="blobs",
            backup_es_s3=True, es_local_repo=True, aws_region="eu-west-1", aws_endpoint="s3.eu-west-1.amazonaws.com",
            AMAZON_S3_ACCESS_KEY="key", AMAZON_S3_SECRET_KEY="secret", nadir_hour=22, encrypted_root="/data",
            check_s3_backups_email="a@example.com, b@example.com")
        db1 = hosts["db1"]
        self.assertEqual(db1["problems"], [])
        self.assertEqual(db1["email"], ["a@example.com", "b@example.com"])
        self.assertEqual(db1["secrets"], {"s3": {"access_key": "key", "secret_key": "secret"}, "couchdb": {"content": "p"}})
        self.assertEqual(db1["mapping"]["hours"], [0, 1, 3, 6, 9, 12, 15, 18, 21, 22, 23])
        self.assertEqual(db1["mapping"]["services"]["postgres"], {
            "postgres": {"method": "dump", "port": 5433, "bin_dir": "/usr/lib/postgresql/14/bin"}, "user": "postgres",
            "backup_dir": "/data/backups/postgresql", "destinations": ["s3-postgres"], "keep": {"daily": 2, "weekly": 3, "hourly": 3}})
        self.assertEqual(db1["mapping"]["services"]["couchdb"], {
            "couchdb": {"data_dir": "/data/couchdb2", "url": "http://127.0.0.1:15984", "username": "c",
                        "password": {"file": "/etc/backstay/credentials/couchdb"}}, "user": "couchdb",
            "backup_dir": "/data/backups/couchdb2", "destinations": ["s3-couchdb"], "keep": {"daily": 3, "weekly": 3}})
        versioned = {"key_style": "versioned", "sse": "aes256", "region": "eu-west-1", "credentials": {"file": "/etc/backstay/credentials/s3"}}
        self.assertEqual(db1["mapping"]["destinations"], {
            "s3-postgres": {"s3": {"bucket": "dimagi-icds-new-postgres-backups", **versioned}},
            "s3-couchdb": {"s3": {"bucket": "dimagi-icds-new-couch-backups", **versioned}}})
        web1 = hosts["web1"]["mapping"]
        self.assertEqual(web1["services"]["blobdb"]["user"], "cchq")
        self.assertEqual(web1["services"]["blobdb"]["after"], [])
        self.assertEqual(web1["destinations"]["s3-blobdb"]["s3"]["bucket"], "blobs")
        self.assertEqual(web1["hours"], [0, 1, 22, 23])
        self.assertEqual(hosts["es2"]["state"], "absent")
        self.assertEqual(hosts["es1"]["mapping"]["services"]["elasticsearch"]["elasticsearch"]["repositories"], {
            "icds_new_es_snapshot": {"s3": {"bucket": "dimagi-icds-new-es-snapshots"}},
            "icds_new_es_snapshot_local": {"fs": {"location": "icds_new_es_snapshot"}}})
        self.assertEqual(hosts["monitor1"]["mapping"]["expect"], {
            "db1": ["postgres@s3-postgres", "couchdb@s3-couchdb"], "db2": ["couchdb@s3-couchdb"], "web1": ["blobdb@s3-blobdb"],
            "es1": ["elasticsearch@s3-es"]})
        self.assertEqual(sorted(hosts["monitor1"]["mapping"]["fleet_destinations"]), ["s3-blobdb", "s3-couchdb", "s3-es", "s3-postgres"])

    def test_what_is_made_of_them_is_a_configuration(self):
        program = os.environ["BACKSTAY"]
        schema = subprocess.run([program, "config", "schema"], capture_output=True, text=True, check=True).stdout
        hosts = mapped(
            postgres_s3=True, postgres_backup_hourly=True, postgresql_version="15", postgresql_data_dir="/opt/data/postgresql/15/main",
            backup_couch=True, couch_s3=True, COUCH_USERNAME="c", COUCH_PASSWORD="p", couchdb2_local_port=15986, backup_blobdb=True,
            blobdb_s3=True, backup_es_s3=True, es_local_repo=True, aws_endpoint="s3.example.com", AMAZON_S3_ACCESS_KEY="key",
            AMAZON_S3_SECRET_KEY="secret")
        for host, one in hosts.items():
            services = one["mapping"]["services"]
            if "elasticsearch" in services and '"elasticsearch"' not in schema:
                continue
            config = {"host": host, "services": services, "destinations": one["mapping"]["destinations"]}
            checked = subprocess.run([program, "config", "check", "--file", "-"], input=json.dumps(config), capture_output=True, text=True, check=False)
            self.assertEqual(checked.returncode, 0, f"{host}: {checked.stderr}")

    def test_words_for_nothing_are_nothing(self):
        hosts = mapped(
            postgres_s3=True, aws_region="None", aws_endpoint="s3.None.amazonaws.com", AMAZON_S3_ACCESS_KEY=None, AMAZON_S3_SECRET_KEY="",
            check_s3_backups_email="None", remote_couch_backup="False", backup_es_swift="no", pg_backup_from=False, aws_versioning_enabled=False)
        db1 = hosts["db1"]
        self.assertEqual((db1["problems"], db1["secrets"], db1["email"]), ([], {}, []))
        self.assertEqual(db1["mapping"]["destinations"], {
            "s3-postgres": {"s3": {"bucket": "dimagi-icds-new-postgres-backups", "key_style": "timestamped", "sse": "aes256"}}})

    def test_another_store_and_another_server(self):
        users = {"replication": {"username": "repl", "password": "p:w"}}
        db1 = mapped(postgres_s3=True, aws_endpoint="s3.example.com", pg_backup_from="10.1.1.1", postgres_users=users)["db1"]
        self.assertEqual(db1["mapping"]["destinations"]["s3-postgres"]["s3"]["endpoint"], "https://s3.example.com")
        self.assertNotIn("sse", db1["mapping"]["destinations"]["s3-postgres"]["s3"])
        self.assertEqual(db1["mapping"]["services"]["postgres"]["postgres"], {
            "method": "plain", "host": "10.1.1.1", "username": "repl", "passfile": "/etc/backstay/credentials/pgpass"})
        self.assertEqual(db1["secrets"]["pgpass"], {"owner": "postgres", "content": "*:*:*:repl:p\\:w\n"})

    def test_what_is_wrong_or_not_supported_is_told_with_what_to_write(self):
        told = mapped(
            remote_couch_backup="couch9", backup_es_swift=True, pg_backup_to="x", backup_postgres="full", AMAZON_S3_ACCESS_KEY="key",
            nadir_hour=24, commcare_check_hours=[3, 24], postgresql_backup_days="two", deploy_env="")["db1"]["problems"]
        for part in [
            "remote_couch_backup is not supported: set couch_s3", "backup_es_swift is not supported: set backup_es_s3",
            "pg_backup_to is not supported", "backup_postgres is full: write plain, dump or false",
            "AMAZON_S3_ACCESS_KEY and AMAZON_S3_SECRET_KEY go together", "nadir_hour must be 0 to 23", "deploy_env is not set",
            "commcare_check_hours must be a list of hours from 0 to 23",
            "these must be numbers from 0: postgresql_backup_days",
        ]:
            self.assertTrue(any(part in text for text in told), f"{part} is not in {told}")


if __name__ == "__main__":
    unittest.main()
