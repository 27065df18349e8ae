"""The collection on disposable machines with systemd, as users run it. Needs root; tests/ansible/run prepares all.

The tests of a class are steps of one story, in the order of their names: `-f` stops at the first that fails.
"""

import functools
import hashlib
import http.server
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import unittest

from fleet import ACCESS, ROOT, SECRET, Fleet, Gateway, Machine, Missing, Search, note_skipped, wait_until

DEPLOY = "backstay.backstay.deploy"
PROGRAM = pathlib.Path(os.environ["BACKSTAY"])
VERSION = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
# What must be nowhere to be seen.
PLANTED = "planted-9vR2xq7LwT"
ROWS = "select count(*), md5(string_agg(name, ',' order by id)) from people"


def quiet_hour(machine):
    """Half a day from now: nothing that is scheduled then fires while a test looks, whenever the tests run."""
    return (int(machine.ssh("date +%-H")) + 12) % 24


def generic(machines, program, search):
    """Hosts in the words of the roles: PostgreSQL, files and, where it can be had, a search engine on db1."""
    keep = {"daily": 2, "weekly": 2}
    services = {
        "postgres": {"postgres": {"method": "plain"}, "user": "postgres", "backup_dir": "/opt/backups/postgresql", "keep": keep},
        "files": {"blobdir": {"path": "/srv/files"}, "after": ["postgres"], "backup_dir": "/opt/backups/files", "keep": keep},
    }
    if search:
        services["search"] = {
            "elasticsearch": {"url": search.url, "repositories": {"near": {"fs": {"location": f"{search.dir}/repo/near"}}}},
            "user": "backup", "after": ["files"], "backup_dir": "/opt/backups/search", "keep": keep,
        }
    common = {
        "agent_binary_src": str(program), "agent_environment": "test", "check_email": ["ops@example.com"],
        "agent_secrets": {"planted": {"content": PLANTED}}, "agent_drill": "weekly",
    }
    hour = quiet_hour(machines["db1"])
    common.update(agent_hours=[hour], check_hours=[hour], agent_drill_hour=hour)
    hosts = {"db1": {"agent_services": services, **machines["db1"].vars}}
    return {"all": {"vars": common, "children": {"backstay": {"hosts": hosts}}}}


def by_old_names(machines, program, url):
    """The same in the words of commcare-cloud, with a bucket, a monitoring host, and ghost1, which is nowhere."""
    common = {
        "agent_binary_src": str(program), "deploy_env": "test", "encrypted_root": "/opt/data", "postgres_s3": True, "blobdb_s3": True,
        "backup_blobdb": True, "blobdb_dir_path": "/srv/files", "postgres_snapshot_bucket": "acme-postgres",
        "blobdb_snapshot_bucket": "acme-blobs", "aws_endpoint": url, "aws_region": "None", "aws_versioning_enabled": False,
        "AMAZON_S3_ACCESS_KEY": ACCESS, "AMAZON_S3_SECRET_KEY": SECRET, "check_s3_backups_email": "ops@example.com",
        "remote_couch_backup": None, "check_metrics_dir": "/srv/metrics",
    }
    hour = quiet_hour(machines["db1"])
    common.update(nadir_hour=hour, commcare_check_hours=[hour])
    hosts = {name: machine.vars for name, machine in machines.items()}
    hosts["ghost1"] = {}
    groups = {"pg_backup": ["db1"], "shared_dir_host": ["db1", "ghost1"], "backstay_monitor": ["monitor1"]}
    children = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
    return {"all": {"vars": common, "hosts": hosts, "children": children}}


def stripped_program(directory):
    """A small copy of the program: it crosses ssh with every first apply."""
    program = pathlib.Path(directory) / "backstay"
    shutil.copy(PROGRAM, program)
    # Where there is no strip, it only takes longer.
    if shutil.which("strip"):
        subprocess.run(["strip", program], check=True)
    return program


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_):
        pass


class Story(unittest.TestCase):
    """What both stories share."""

    names = ("db1",)
    playbook = DEPLOY

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.temporary.cleanup)
        cls.program = stripped_program(cls.temporary.name)
        cls.machines = {}
        for name in cls.names:
            cls.machines[name] = Machine(name)
            cls.addClassCleanup(cls.machines[name].down)
            cls.machines[name].ssh("mkdir /srv/metrics")
        cls.db1 = cls.machines["db1"]
        cls.db1.ssh("mkdir -p /srv/files && echo precious >/srv/files/one")
        cls.fleet = Fleet(cls.inventory())
        cls.addClassCleanup(cls.fleet.close)

    def deploy(self, *words, **variables):
        return self.fleet.done(self.playbook, "--limit", "!ghost1", *words, **variables)

    def assert_unchanged(self, played):
        for name in self.machines:
            self.assertEqual(played.counts(name)["changed"], 0, played.changed_tasks())

    def assert_everything_is_gone(self):
        left = self.db1.ssh(
            "find / -xdev \\( -path /proc -o -path /sys -o -path /opt -o -path /var/lib/backstay -o -path /tmp -o -path /var/tmp"
            " -o -path /var/lib/systemd/timers \\) -prune -o -name '*backstay*' -print")
        self.assertEqual(left, "")
        timers = self.db1.ssh("systemctl list-timers --all --no-legend 'backstay*'; systemctl list-unit-files --no-legend 'backstay*' || true")
        self.assertEqual(timers, "")


class Short(Story):
    """The life of an installation without a bucket, in the words of the roles."""

    @classmethod
    def inventory(cls):
        cls.search = None
        try:
            cls.search = Search()
        except Missing as why:
            note_skipped(f"ansible: no search engine on the machine: {why}")
            return generic(cls.machines, cls.program, None)
        cls.addClassCleanup(cls.search.stop)
        for number in range(25):
            cls.search.ask("PUT", f"/people/_doc/{number}?refresh=true", {"name": f"person {number}"})
        return generic(cls.machines, cls.program, cls.search)

    def test_1_check_mode_on_a_new_host_changes_nothing(self):
        played = self.deploy("--tags", "backups", "--check", "--diff")
        self.assertGreater(played.counts("db1")["changed"], 5)
        for path in ("etc/backstay", "usr/local/bin/backstay", "opt/backups", "var/lib/backstay"):
            self.assertFalse((self.db1.root / path).exists(), path)

    def test_2_wrong_variables_are_told_at_once_before_any_change(self):
        everything = {
            "agent_minute": 75, "agent_hours": [25], "agent_binary_src": "", "agent_binary_url": "https://example.com/b",
            "agent_secrets": {"s3": {"access_key": PLANTED}}, "agent_settings": {"check": {}}}
        told = [
            "agent_minute and agent_jitter_minutes must be 0 to 59", "agent_hours must be a list of hours from 0 to 23",
            "agent_binary_url needs agent_binary_checksum", "agent_secrets: s3 must have either content",
            "agent_settings cannot set check"]
        other = {"agent_state": "gone"}
        for wrong, parts in [(everything, told), (other, ["value of agent_state must be one of: present, absent"])]:
            played = self.fleet.play(DEPLOY, "--tags", "backups", **wrong)
            self.assertNotEqual(played.code, 0, wrong)
            for part in parts:
                self.assertIn(part, " ".join(played.output.split()))
            self.assertNotIn(PLANTED, played.output)
        self.assertFalse((self.db1.root / "etc/backstay").exists())

    def test_3_a_second_run_changes_nothing(self):
        played = self.deploy("--tags", "backups", "--diff", "-vvvvv")
        self.assertFalse(PLANTED in played.output, "the secret is in the output of -vvvvv --diff")
        self.assertEqual(self.db1.ssh("stat -c '%a %U' /etc/backstay/credentials/planted"), "600 root\n")
        self.assertEqual(self.db1.ssh("cat /etc/backstay/credentials/planted"), PLANTED)
        self.assert_unchanged(self.deploy("--tags", "backups"))
        self.db1.start("backstay-backup.service", "backstay-check.service")
        self.assertEqual(len(self.db1.points("postgres", "local")), 1)

    def test_3a_drills_run_in_their_sandbox_and_a_failed_one_is_mailed(self):
        self.assertEqual(self.db1.ssh("systemctl is-enabled backstay-drill.timer"), "enabled\n")
        self.db1.ssh("systemctl show -p NextElapseUSecRealtime backstay-drill.timer | grep -q Sun")
        self.db1.start("backstay-drill.service")
        said = self.db1.ssh("journalctl --no-pager -o cat -u backstay-drill; backstay list")
        self.assertEqual(said.count("proven"), 6 if self.search else 4, said)
        self.assertEqual(self.db1.ssh("find /var/lib/backstay/scratch -mindepth 1"), "")
        self.db1.ssh("cd /opt/backups/files/*_weekly_*; cp data.* /var/tmp; truncate -s -1 data.*")
        self.assertNotEqual(self.db1.ran("systemctl start backstay-drill.service").returncode, 0)
        self.db1.wait_for_mail("Subject: [backstay] backstay-drill.service failed on")
        self.db1.ssh("cp /var/tmp/data.* /opt/backups/files/*_weekly_*/")

    def test_3b_the_restore_scripts_are_there_and_need_no_agent(self):
        """Run here, from the machine's disk: jq is not on every host."""
        scripts = self.db1.root / "usr/local/share/backstay/restore-scripts"
        self.assertEqual(len(list(scripts.iterdir())), 5)
        to = pathlib.Path(self.temporary.name) / "again"
        words = ["restore", self.db1.root / "opt/backups/files", "--to", to, "--yes"]
        ran = subprocess.run([scripts / "restore-blobdir.sh", *words], capture_output=True, text=True, check=False)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertEqual((to / "one").read_text(), "precious\n")

    def test_3c_indices_come_back_by_a_playbook_that_asks_for_a_word(self):
        if not self.search:
            self.skipTest("there is no search engine")
        owner = self.db1.ssh("stat -c %U /opt/backups/search /opt/backups/search/search_test_*")
        self.assertEqual(owner, "backup\nbackup\n")
        self.search.ask("DELETE", "/people")
        restore = ["backstay.backstay.restore_elasticsearch", "-e", "target=db1", "-e", "service=search"]
        refused = self.fleet.play(*restore)
        self.assertNotEqual(refused.code, 0)
        self.assertIn("again with -e confirm=yes", " ".join(refused.output.split()))
        self.fleet.done(*restore, "-e", "confirm=yes")
        self.assertEqual(self.search.ask("GET", "/people/_count")["count"], 25)

    def test_3d_so_do_files(self):
        (self.db1.root / "srv/files/one").write_text("spoiled")
        played = self.fleet.done("backstay.backstay.restore_blobdb", target="db1", service="files", confirm="yes")
        self.assertIn("the old data lies in /srv/files", " ".join(played.output.split()))
        self.assertEqual((self.db1.root / "srv/files/one").read_text(), "precious\n")

    def test_4_a_wrong_configuration_fails_in_check_mode_too(self):
        played = self.fleet.play(DEPLOY, "--check", "--tags", "agent_configure", agent_services={"x": {"blobdri": {}}})
        self.assertNotEqual(played.code, 0)
        self.assertIn("unknown key", played.output)

    def test_5_a_download_is_taken_only_with_the_right_checksum(self):
        at = pathlib.Path(self.temporary.name)
        new = at / "new"
        new.write_bytes(self.program.read_bytes() + b"\0" * 16)
        handler = functools.partial(Silent, directory=at)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = {"agent_binary_src": "", "agent_binary_url": f"http://127.0.0.1:{server.server_port}/new"}
        installed = self.db1.root / "usr/local/bin/backstay"
        wrong = self.fleet.play(DEPLOY, "--tags", "agent_install", agent_binary_checksum="sha256:" + "0" * 64, **there)
        self.assertNotEqual(wrong.code, 0)
        self.assertEqual(installed.read_bytes(), self.program.read_bytes())
        checksum = "sha256:" + hashlib.sha256(new.read_bytes()).hexdigest()
        self.deploy("--tags", "agent_install", agent_binary_checksum=checksum, agent_version=VERSION, **there)
        self.assertEqual(installed.read_bytes(), new.read_bytes())

    def test_5a_a_package_takes_the_place_of_the_binary(self):
        tree = pathlib.Path(self.temporary.name) / "package"
        (tree / "usr/bin").mkdir(parents=True)
        (tree / "DEBIAN").mkdir()
        shutil.copy(self.program, tree / "usr/bin/backstay")
        (tree / "DEBIAN/control").write_text(
            f"Package: backstay\nVersion: {VERSION}\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: test\n")
        package = tree.with_suffix(".deb")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, package], check=True, capture_output=True)
        there = {"agent_binary_src": "", "agent_deb_src": str(package), "agent_version": VERSION}
        self.deploy("--tags", "agent_install", **there)
        self.assertEqual(self.db1.ssh("command -v backstay; dpkg-query -W -f '${Version}' backstay"), f"/usr/bin/backstay\n{VERSION}")
        self.assert_unchanged(self.deploy("--tags", "agent_install", **there))

    def test_6_cron_takes_the_place_of_the_timers(self):
        self.deploy("--tags", "cron", agent_scheduler="cron", check_scheduler="cron")
        self.assertEqual(self.db1.ssh("systemctl list-timers --all --no-legend 'backstay*'"), "")
        self.assertEqual(self.db1.ssh("ls /etc/cron.d | grep backstay"), "backstay\nbackstay-check\n")
        self.assertIn(" * * 0 root nice -n 19 ionice -c 3 /usr/local/bin/backstay --quiet drill --random\n",
                      (self.db1.root / "etc/cron.d/backstay").read_text())

    def test_7_it_goes_and_leaves_the_backups(self):
        self.fleet.done("backstay.backstay.uninstall")
        self.assert_everything_is_gone()
        self.assertEqual(len(list((self.db1.root / "opt/backups/postgresql").glob("postgres_test_*/manifest.json"))), 1)
        self.assert_unchanged(self.fleet.done("backstay.backstay.uninstall"))


class Whole(Story):
    """A deployment of commcare-cloud moves over, by its old names: a night, a loss, a restore, wrong keys, the end."""

    names = ("db1", "monitor1")
    playbook = "backstay.backstay.commcare"

    @classmethod
    def inventory(cls):
        cls.gateway = Gateway()
        cls.addClassCleanup(cls.gateway.stop)
        cls.gateway.make_bucket("acme-postgres")
        cls.gateway.make_bucket("acme-blobs")
        return by_old_names(cls.machines, cls.program, cls.gateway.url)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.monitor1 = cls.machines["monitor1"]
        cls.psql(
            "create table people (id int primary key, name text);"
            " insert into people select n, 'person ' || n from generate_series(1, 5000) n")
        cls.rows = cls.psql(ROWS)

    @classmethod
    def psql(cls, text):
        (cls.db1.root / "var/tmp/sql").write_text(text)
        return cls.db1.ssh("cd /; runuser -u postgres -- psql -v ON_ERROR_STOP=1 -At -f /var/tmp/sql")

    def forget_points(self):
        """As if nothing had been made here: what is due is made again."""
        self.db1.ssh("rm -rf /opt/data/backups/*/*_test_*")

    def status(self):
        return (self.db1.root / "opt/data/backups/postgresql/s3_backup_status.txt").read_text()

    def test_01_beside_the_older_system_nothing_is_done(self):
        old = self.db1.root / "etc/cron.d/backup_postgres"
        old.write_text("0 0 * * 1-6 postgres /usr/local/sbin/create_postgres_dump.sh daily 2\n")
        (self.db1.root / "usr/local/sbin/create_postgres_dump.sh").write_text("#!/bin/sh\nfind /opt/data -name 'postgres_*' -delete\n")
        keys = self.db1.root / "var/lib/postgresql/.aws/credentials"
        keys.parent.mkdir()
        keys.write_text("[default]\n")
        refused = self.fleet.play(self.playbook, "--limit", "db1", "--tags", "agent_preflight")
        self.assertNotEqual(refused.code, 0)
        self.assertIn("/etc/cron.d/backup_postgres, /usr/local/sbin/create_postgres_dump.sh", refused.output)
        self.assertIn("-e commcare_remove_legacy=true", refused.output)
        shutil.copy(self.program, self.db1.root / "usr/local/bin/backstay")
        refused = self.db1.ran("backstay backup")
        self.assertEqual(refused.returncode, 73, refused)
        self.assertIn("an older backup system is still on this host: /etc/cron.d/backup_postgres", refused.stderr)

    def test_02_one_command_moves_over_and_shows_no_secret(self):
        played = self.deploy("--tags", "backups", "--diff", "-vvvvv", commcare_remove_legacy=True)
        self.assertFalse(SECRET in played.output, "the secret is in the output of -vvvvv --diff")
        self.assertNotIn(SECRET, self.db1.ssh("journalctl --no-pager"))
        self.assertNotIn(SECRET, self.db1.ssh("cat /etc/backstay/*.yml /etc/backstay/conf.d/* /etc/systemd/system/backstay*"))
        self.assertEqual(self.db1.ssh("stat -c '%a %U %n' /etc/backstay/credentials/*"), "600 root /etc/backstay/credentials/s3\n")
        self.assertFalse((self.db1.root / "etc/cron.d/backup_postgres").exists())
        self.assertIn("backstay", (self.db1.root / "usr/local/sbin/create_postgres_dump.sh").read_text())
        self.assertTrue((self.db1.root / "var/lib/postgresql/.aws/credentials").exists())

    def test_03_the_trap_for_secrets_does_catch(self):
        leak = self.fleet.dir / "leak.yml"
        leak.write_text(
            "- hosts: db1\n  gather_facts: false\n  tasks:\n    - name: Leak\n      ansible.builtin.command: echo {{ leaked }}\n")
        played = self.fleet.done(str(leak), "-vvvvv", leaked=PLANTED)
        self.assertIn(PLANTED, played.output)
        self.assertIn(PLANTED, self.db1.ssh("journalctl --no-pager"))

    def test_04_a_second_run_changes_nothing(self):
        self.assert_unchanged(self.deploy("--tags", "backups"))

    def test_04a_so_does_deploy_stack_of_a_checkout(self):
        """Roles, tags and groups as in commcare-cloud's playbooks; its two roles hold what the page says."""
        checkout = self.fleet.dir / "ansible"
        page = (ROOT / "docs/commcare.md").read_text()
        [tasks] = re.findall(r"```yaml\n(- ansible.builtin.import_role:.*?)```", page, re.S)
        for role in ("backups", "pg_backup"):
            (checkout / "roles" / role / "tasks").mkdir(parents=True)
            (checkout / "roles" / role / "tasks/main.yml").write_text(tasks)
        (checkout / "deploy_stack.yml").write_text(
            "".join(f"- import_playbook: {name}.yml\n" for name in ("deploy_db", "deploy_postgres", "deploy_couchdb2")))
        for name, hosts, roles in (
            ("deploy_db", "redis:elasticsearch:formplayer:django_manage", "{role: backups, tags: [backups, backups-only]}"),
            ("deploy_postgres", "postgresql:pg_standby:pg_backup", "{role: backups, tags: backups}, {role: pg_backup, tags: [pg_backup, backups]}"),
            ("deploy_couchdb2", "couchdb2", "{role: backups, tags: backups}"),
        ):
            (checkout / f"{name}.yml").write_text(f"- hosts: {hosts}\n  become: true\n  roles: [{roles}]\n")
        [command] = re.findall(r"`commcare-cloud ENV (deploy-stack --tags=backups)`", page)
        played = self.fleet.done(str(checkout / "deploy_stack.yml"), *command.split()[1:], "--limit", "!ghost1")
        self.assertGreater(played.counts("db1")["ok"], 30)
        self.assertEqual(played.counts("db1")["changed"], 0, played.changed_tasks())
        # It does deploy.
        (self.db1.root / "usr/local/sbin/restore_from_backup.sh").unlink()
        self.fleet.done(str(checkout / "deploy_stack.yml"), "--tags=pg_backup", "--limit", "db1")
        self.db1.ssh("test -x /usr/local/sbin/restore_from_backup.sh")

    def test_05_a_night_the_timer_fires_and_backs_up_to_the_buckets(self):
        self.assertIn("backstay-backup.timer", self.db1.ssh("systemctl list-timers --no-legend 'backstay*'"))
        dropin = self.db1.root / "etc/systemd/system/backstay-backup.timer.d/test.conf"
        dropin.parent.mkdir()
        dropin.write_text("[Timer]\nOnCalendar=\nOnCalendar=*:*:0/2\nRandomizedDelaySec=0\n")
        self.db1.ssh("systemctl daemon-reload")
        for service, bucket in (("postgres", "s3-postgres"), ("blobdb", "s3-blobdb")):
            for place in ("local", bucket):
                wait_until(f"a point of {service} at {place}", lambda s=service, p=place: self.db1.points(s, p))
        shutil.rmtree(dropin.parent)
        self.db1.ssh("systemctl daemon-reload")
        wait_until("the end of the run", lambda: "inactive" in self.db1.ran("systemctl is-active backstay-backup").stdout)
        owner = self.db1.ssh("cd /opt/data/backups; stat -c %U . postgresql blobdb postgresql/postgres_*")
        self.assertEqual(owner, "root\npostgres\nroot\npostgres\n")

    def test_06_what_was_destroyed_is_restored_by_the_old_script(self):
        self.psql("drop table people")
        (self.db1.root / "srv/files/one").write_text("spoiled")
        refused = self.db1.ran("restore_from_backup.sh latest")
        self.assertEqual(refused.returncode, 73, refused)
        self.assertIn("to do it: /usr/local/sbin/restore_from_backup.sh latest --replace", refused.stderr)
        self.assertIn("postgres_test_weekly", refused.stderr)
        self.assertIn("restored into /var/lib/postgresql/15/main", self.db1.ssh("restore_from_backup.sh latest --replace --from s3-postgres"))
        wait_until("the server", lambda: self.db1.ran("cd /; runuser -u postgres -- psql -c 'select 1'").returncode == 0)
        self.assertEqual(self.psql(ROWS), self.rows)
        self.db1.ssh("restore_blobdb_backup.sh latest --replace")
        self.assertEqual((self.db1.root / "srv/files/one").read_text(), "precious\n")

    def test_06a_what_the_older_system_left_is_restored_by_the_old_script(self):
        """As its script made it: a copy in a directory, and a tar of that by its path."""
        old = "postgres_test_daily_2026_01_02"
        self.db1.ssh(
            f"cd /opt/data/backups/postgresql && runuser -u postgres -- pg_basebackup -Fp -Xs -D $PWD/{old}"
            f" && tar -czf {old}.tar.gz $PWD/{old} 2>/dev/null && rm -r {old}")
        self.assertIn(f"{old}.tar.gz", self.db1.ssh("backstay list postgres"))
        self.psql("drop table people")
        self.db1.ssh(f"restore_from_backup.sh {old}.tar.gz --replace --to /var/lib/postgresql/15/main")
        wait_until("the server", lambda: self.db1.ran("cd /; runuser -u postgres -- psql -c 'select 1'").returncode == 0)
        self.assertEqual(self.psql(ROWS), self.rows)
        self.db1.ssh("cd /var/tmp && retrieve_backup.py latest && test -f latest/PG_VERSION && rm -r latest")
        self.db1.ssh("create_postgres_dump.sh hourly 1 && backup_snapshots.py postgres_test_hourly.tar.gz name bucket")

    def test_07_and_by_a_playbook_that_asks_for_a_word(self):
        self.psql("drop table people")
        refused = self.fleet.play("backstay.backstay.restore_postgres", target="db1")
        self.assertNotEqual(refused.code, 0)
        self.assertIn("again with -e confirm=yes", " ".join(refused.output.split()))
        self.assertIn("does not exist", self.db1.ran("cd /; runuser -u postgres -- psql -c 'table people'").stderr)
        played = self.fleet.done("backstay.backstay.restore_postgres", target="db1", confirm="yes", restore_from="s3-postgres")
        self.assertIn("the old data lies in /var/lib/postgresql/15/main", " ".join(played.output.split()))
        self.assertEqual(self.psql(ROWS), self.rows)

    def test_08_the_monitoring_host_reports_all_of_it(self):
        self.db1.start("backstay-check.service")
        self.assertIn("[OK] postgres", self.status())
        self.assertIn("[OK] postgres", self.db1.ssh("check_s3_backup.py postgres"))
        self.assertEqual(self.db1.mails(), [])
        self.monitor1.ran("systemctl start backstay-fleet.service")
        said = self.monitor1.ssh("journalctl --no-pager -o cat -u backstay-fleet")
        self.assertIn("[OK] postgres weekly at s3-postgres", said)
        self.assertIn("[OK] blobdb weekly at s3-blobdb", said)
        self.assertIn("ghost1 blobdb at s3-blobdb: has no complete", said)
        self.assertIn("ghost1", (self.monitor1.root / "srv/metrics/backstay-fleet.prom").read_text())
        [mail] = self.monitor1.mails()
        self.assertIn("ghost1", mail)
        self.assertIn("To: ops@example.com", mail)

    def test_09_wrong_keys_lead_to_mail_and_a_status_file(self):
        self.deploy("--tags", "agent_credentials", "--limit", "db1", AMAZON_S3_SECRET_KEY="wrong")
        self.forget_points()
        self.db1.ran("systemctl start backstay-check.service")
        self.assertIn("UNKNOWN", "".join(self.db1.mails()))
        self.assertIn("[UNKNOWN]", self.status())
        self.db1.forget_mails()
        self.assertNotEqual(self.db1.ran("systemctl start backstay-backup.service").returncode, 0)
        self.db1.wait_for_mail("Subject: [backstay] backstay-backup.service failed on", "is incomplete: it is not at s3-postgres")

    def test_10_cron_takes_the_place_of_the_timers_and_fires_and_mails(self):
        self.forget_points()
        self.db1.forget_mails()
        self.deploy("--tags", "cron", "--limit", "db1", agent_scheduler="cron", check_scheduler="cron")
        self.assertEqual(self.db1.ssh("systemctl list-timers --all --no-legend 'backstay*'"), "")
        self.assertEqual(self.db1.ssh("ls /etc/cron.d | grep backstay"), "backstay\nbackstay-check\n")
        # Every minute, instead of the hours that are configured.
        self.db1.ssh(r"sed -i -E 's/^[0-9]+ [0-9,]+ /* * /' /etc/cron.d/backstay")
        self.db1.wait_for_mail("Subject: Cron <root@", "is incomplete: it is not at s3-", seconds=200)

    def test_11_half_of_an_installation_is_repaired(self):
        self.db1.ssh("rm -rf /etc/backstay/credentials /etc/backstay/conf.d /usr/local/sbin/backstay-report-failure /usr/local/sbin/restore_*")
        self.deploy("--tags", "backups", "--limit", "db1")
        self.assertEqual(self.db1.ssh("ls /etc/cron.d | grep backstay || true"), "")
        self.assertEqual(self.db1.ssh("systemctl is-enabled backstay-backup.timer backstay-check.timer"), "enabled\nenabled\n")
        self.db1.ssh("test -x /usr/local/sbin/restore_from_backup.sh")
        self.forget_points()
        self.db1.start("backstay-backup.service", "backstay-check.service")

    def test_12_an_upgrade_does_not_disturb_a_running_backup(self):
        new = pathlib.Path(self.temporary.name) / "new"
        new.write_bytes(self.program.read_bytes() + b"\0" * 16)
        # Stopped at its first breath: the shell waits for it, and stops it before anything is read from it.
        slow = self.db1.root / "var/tmp/slow"
        slow.mkdir()
        self.db1.ssh("chmod 777 /var/tmp/slow; ln -s /usr/lib/postgresql/*/bin/* /var/tmp/slow; mv /var/tmp/slow/pg_basebackup /var/tmp/slow/real")
        (slow / "pg_basebackup").write_text(
            "#!/bin/sh\nif [ ! -e /var/tmp/slow/pid ]; then echo $$ >/var/tmp/slow/pid; kill -STOP $$; fi\nexec /var/tmp/slow/real \"$@\"\n")
        self.db1.ssh("chmod 755 /var/tmp/slow/pg_basebackup")
        config = self.db1.root / "etc/backstay/backstay.yml"
        text = config.read_text()
        config.write_text(text.replace("method: plain", "method: plain\n      bin_dir: /var/tmp/slow"))
        self.db1.ssh("systemd-run --unit running backstay backup --manual")
        pid = wait_until("pg_basebackup", lambda: self.db1.ran("cat /var/tmp/slow/pid").stdout).strip()
        self.deploy("--tags", "agent_install", "--limit", "db1", agent_binary_src=str(new))
        self.assertEqual((self.db1.root / "usr/local/bin/backstay").read_bytes(), new.read_bytes())
        self.db1.ssh(f"kill -CONT {pid}")
        wait_until("the end of the run", lambda: "inactive" in self.db1.ran("systemctl is-active running").stdout)
        config.write_text(text)
        for service, bucket in (("postgres", "s3-postgres"), ("blobdb", "s3-blobdb")):
            points = [point for point in self.db1.points(service, bucket) if point["cadence"] == "manual"]
            self.assertEqual([point["state"] for point in points], ["complete"], self.db1.ssh("journalctl -u running --no-pager"))

    def test_13_it_goes_and_leaves_the_backups(self):
        self.deploy("--tags", "backups", commcare_state="absent")
        self.assert_everything_is_gone()
        self.assertFalse((self.db1.root / "usr/local/sbin/restore_from_backup.sh").exists())
        self.assertTrue(list((self.db1.root / "opt/data/backups/postgresql").glob("postgres_test_*/manifest.json")))
        self.assert_unchanged(self.deploy("--tags", "backups", commcare_state="absent"))


if __name__ == "__main__":
    unittest.main()
