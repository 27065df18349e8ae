"""What can be said of the collection without a machine: it holds together, and its pages are true."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
TAGS = ROOT / "tests/ansible/tags.txt"


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


def run(*words, **more):
    return subprocess.run(words, capture_output=True, text=True, check=False, **more)


def playbook(*words):
    """ansible-playbook of the installed collection, on an inventory that reaches no host."""
    return run(
        "ansible-playbook", "-i", str(ROOT / "tests/ansible/inventory.yml"), *words, cwd=tempfile.gettempdir()
    )


def tasks_of(path):
    """The tasks of a file, those in blocks too."""
    todo, found = yaml.safe_load(path.read_text()), []
    while todo:
        task = todo.pop(0)
        inner = [one for key in ("block", "rescue", "always") for one in task.get(key, [])]
        found += [] if inner else [task]
        todo = inner + todo
    return found


def task_files(role):
    return sorted((ROOT / "roles" / role).glob("tasks/*.yml")) + sorted((ROOT / "roles" / role).glob("handlers/*.yml"))


class Collection(unittest.TestCase):
    def test_it_has_the_version_of_the_crate(self):
        crate = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
        self.assertEqual(load("galaxy.yml")["version"], crate)

    def test_it_depends_on_nothing(self):
        self.assertEqual(load("galaxy.yml")["dependencies"], {})
        for role in ROLES:
            self.assertEqual(load(f"roles/{role}/meta/main.yml")["dependencies"], [], role)
            for path in task_files(role):
                for task in tasks_of(path):
                    keys = [key for key in task if "." in key]
                    known = [key for key in keys if key.startswith("ansible.builtin.")]
                    self.assertTrue(keys and keys == known, f"{path}: {task['name']}: {keys}")

    def test_it_is_built_without_rust_and_without_tests(self):
        with tempfile.TemporaryDirectory() as directory:
            built = run("ansible-galaxy", "collection", "build", "--output-path", directory, str(ROOT))
            self.assertEqual(built.returncode, 0, built.stderr)
            [package] = pathlib.Path(directory).iterdir()
            with tarfile.open(package) as tar:
                names = tar.getnames()
        tops = {name.split("/")[0] for name in names}
        self.assertLessEqual(
            tops, {"CHANGELOG.md", "FILES.json", "LICENSE", "LICENSE-APACHE", "LICENSE-MIT", "MANIFEST.json",
                   "README.md", "docs", "meta", "playbooks", "roles"})
        self.assertIn("roles/agent/tasks/main.yml", names)


class Arguments(unittest.TestCase):
    def test_every_default_is_specified_and_every_option_has_a_default(self):
        for role in ROLES:
            options = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"].get("options", {})
            defaults = load(f"roles/{role}/defaults/main.yml") or {}
            # Variables of commcare-cloud have no default of ours: that they are not set has a meaning.
            ours = [name for name, option in options.items() if option["type"] != "raw"]
            self.assertEqual(sorted(ours), sorted(defaults), role)
            for name, value in defaults.items():
                if "{{" not in str(value):
                    self.assertEqual(options[name].get("default"), value, name)

    def test_the_pages_of_the_roles_are_made_from_their_specifications(self):
        checked = run(sys.executable, str(ROOT / "tests/ansible/readme.py"), "--check")
        self.assertEqual(checked.returncode, 0, checked.stderr)

    def test_secrets_are_never_logged_nor_shown_as_differences(self):
        for role in ROLES:
            options = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"].get("options", {})
            secret = [name for name, option in options.items() if option.get("no_log")]
            for path in task_files(role):
                for task in tasks_of(path):
                    text = str({key: value for key, value in task.items() if key.startswith("ansible.builtin.") or key == "loop"})
                    if any(name in text for name in secret) and "import_role" not in text:
                        self.assertIs(task.get("no_log"), True, f"{path}: {task['name']}")
                        self.assertIs(task.get("diff"), False, f"{path}: {task['name']}")

    def test_ansible_doc_reads_every_role(self):
        for role in ROLES:
            page = run("ansible-doc", "-t", "role", f"backstay.backstay.{role}", cwd=tempfile.gettempdir())
            self.assertEqual(page.returncode, 0, page.stderr)
            for option in load(f"roles/{role}/defaults/main.yml") or {}:
                self.assertIn(option, page.stdout)


class Playbooks(unittest.TestCase):
    maxDiff = None

    def test_their_syntax_is_right(self):
        for path in sorted((ROOT / "playbooks").glob("*.yml")):
            checked = playbook("--syntax-check", f"backstay.backstay.{path.stem}")
            self.assertEqual(checked.returncode, 0, f"{path}: {checked.stderr}")

    def test_a_tag_selects_what_it_always_did(self):
        """tags.txt has the tasks of each tag; UPDATE_EXPECTED=1 writes it anew."""
        found = []
        for path in sorted((ROOT / "playbooks").glob("*.yml")):
            listed = playbook("--list-tasks", f"backstay.backstay.{path.stem}")
            self.assertEqual(listed.returncode, 0, listed.stderr)
            tasks = [line.split("TAGS:") for line in listed.stdout.splitlines() if "TAGS:" in line]
            tasks = [(name.strip(), tags.strip(" []").split(", ")) for name, tags in tasks if "play #" not in name]
            for tag in sorted({tag for _, tags in tasks for tag in tags} - {"always", ""}):
                found.append(f"== {path.stem} --tags {tag}")
                found += [name.replace("backstay.backstay.", "") for name, tags in tasks if {tag, "always"} & set(tags)]
        text = re.sub(r" - .*", "", "\n".join(found)) + "\n"
        for section in text.split("== ")[1:]:
            tag, *tasks = section.splitlines()
            works = [task for task in tasks if re.match("(agent|check) : (?!Validating)", task)]
            if tag.startswith("commcare ") and works:
                # Without it nothing would be known of what there is to be deployed.
                self.assertIn("commcare : Read what the old variables mean", tasks, tag)
        if os.environ.get("UPDATE_EXPECTED"):
            TAGS.write_text(text)
        self.assertEqual(text, TAGS.read_text())

    def test_the_list_of_one_tag_is_the_list_of_ansible(self):
        """The tasks of a tag are taken from one list of all; this compares them with --tags."""
        tasks = playbook("--list-tasks", "--tags", "cron", "backstay.backstay.deploy").stdout
        names = [line.split("TAGS:")[0] for line in tasks.splitlines() if "TAGS:" in line and "play #" not in line]
        names = [re.sub(r" - .*", "", name).strip().replace("backstay.backstay.", "") for name in names]
        expected = TAGS.read_text().split("== deploy --tags cron\n")[1].split("==")[0]
        self.assertEqual(names, expected.splitlines())


class Documents(unittest.TestCase):
    def test_the_commands_and_the_inventory_of_the_pages_are_right(self):
        page = (ROOT / "docs/ansible.md").read_text()
        inventory = re.search(r"```yaml\n(all:.*?)```", page, re.S).group(1)
        commands = []
        for name in ("README.md", "docs/ansible.md", "docs/commcare.md"):
            for block in re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(), re.S):
                commands += [line for line in block.splitlines() if line.startswith("ansible-playbook ")]
        self.assertGreater(len(commands), 5)
        with tempfile.TemporaryDirectory() as directory:
            (pathlib.Path(directory) / "hosts.yml").write_text(inventory)
            for command in sorted(set(commands)):
                checked = run("ansible-playbook", *shlex.split(command)[1:], "--syntax-check", cwd=directory)
                self.assertEqual(checked.returncode, 0, f"{command}: {checked.stderr}")
        everything = yaml.safe_load(inventory)["all"]["children"]["backstay"]
        for name, host in everything["hosts"].items():
            config = {"host": name, "destinations": {**everything["vars"]["agent_destinations"], **host.get("check_fleet_destinations", {})},
                      "services": host.get("agent_services", {})}
            checked = subprocess.run(
                [os.environ["BACKSTAY"], "config", "check", "--file", "-"], input=yaml.safe_dump(config), capture_output=True, text=True,
                check=False)
            self.assertEqual(checked.returncode, 0, checked.stderr)

    def test_every_role_and_playbook_is_in_the_pages(self):
        pages = "".join((ROOT / name).read_text() for name in ("docs/ansible.md", "docs/commcare.md"))
        for role in ROLES:
            self.assertTrue(f"roles/{role}/README.md" in pages or f"backstay.backstay.{role}`" in pages, role)
        for path in (ROOT / "playbooks").glob("*.yml"):
            self.assertTrue(f"backstay.backstay.{path.stem}" in pages or path.stem in ("restore_couchdb", "restore_elasticsearch"), path)


class Rendered(unittest.TestCase):
    """What the templates give, judged by the tools that will read it. $BACKSTAY is the program."""

    @classmethod
    def setUpClass(cls):
        cls.program = pathlib.Path(os.environ["BACKSTAY"])
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.dir = pathlib.Path(directory.name)
        done = playbook(
            str(ROOT / "tests/ansible/render.yml"), "-e", f"render_to={cls.dir}", "-e", f"agent_install_dir={cls.program.parent}"
        )
        if done.returncode != 0:
            raise AssertionError(done.stdout + done.stderr)

    def test_units_are_understood_and_closed_enough(self):
        units = sorted(str(path) for path in self.dir.glob("*.service")) + sorted(str(path) for path in self.dir.glob("*.timer"))
        self.assertGreaterEqual(len(units), 6)
        for unit in units:
            verified = run("systemd-analyze", "verify", "--man=no", unit)
            self.assertEqual((verified.returncode, verified.stderr), (0, ""), unit)
        writable = [line for line in (self.dir / "backstay-backup.service").read_text().splitlines() if "ReadWritePaths" in line]
        places = ["/var/lib/backstay", "/var/backups/postgres", "/var/backups/files", "/mnt/disk", "/var/tmp/staging"]
        self.assertEqual(writable, [f"ReadWritePaths=-{place}" for place in places])
        writable = [line for line in (self.dir / "backstay-drill.service").read_text().splitlines() if "ReadWritePaths" in line]
        self.assertEqual(writable, ["ReadWritePaths=-/var/lib/backstay", "ReadWritePaths=-/mnt/scratch"])
        for unit in ["backstay-backup.service", "backstay-drill.service", "backstay-check.service", "backstay-fleet.service"]:
            judged = run("systemd-analyze", "security", "--offline=true", "--threshold=25", str(self.dir / unit))
            self.assertEqual(judged.returncode, 0, f"{unit}: {judged.stdout}")

    def test_scripts_are_good(self):
        scripts = [path for path in self.dir.iterdir() if path.read_text().startswith("#!")]
        self.assertEqual(len(scripts), 15)
        checked = run("shellcheck", *map(str, scripts))
        self.assertEqual(checked.returncode, 0, checked.stdout)

    def test_commands_under_old_names_take_their_old_arguments(self):
        """Each with a program that says what it was asked, in place of the agent and of systemctl."""
        with tempfile.TemporaryDirectory() as directory:
            at = pathlib.Path(directory)
            for name in ("backstay", "systemctl"):
                (at / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
                (at / name).chmod(0o755)

            def called(command, *words):
                script = at / command
                script.write_text((self.dir / command).read_text().replace(str(self.program), str(at / "backstay")))
                ran = run("sh", str(script), *words, cwd=at, env={"PATH": f"{at}:/usr/bin:/bin"})
                return ran.returncode, [line.replace("backstay ", "", 1) for line in ran.stdout.splitlines()]

            dump = "postgres_test_daily_2026_01_02.tar.gz"
            stop = "systemctl stop postgresql postgresql@*.service"
            for words, asked in [
                ("create_postgres_dump.sh daily 2", ["backup postgres --cadence daily"]),
                ("create_couchdb_backup.sh weekly 14", ["backup couchdb --cadence weekly"]),
                ("create_blobdb_backup.sh hourly 1", ["backup blobdb --cadence hourly"]),
                ("create_es_snapshot.py", ["backup elasticsearch"]),
                ("check_snapshot_status.py", ["verify elasticsearch --level present"]),
                ("check_snapshot_status.py --all", ["list elasticsearch"]),
                (f"backup_snapshots.py {dump} name bucket s3.example.com", ["backup postgres"]),
                ("backup_snapshots.py /opt/b/couchdb_daily_2026_01_02.tar.gz name bucket s3.example.com", ["backup couchdb"]),
                ("check_s3_backup.py", ["check-s3"]),
                ("check_s3_backup.py couch", ["check-s3 couchdb"]),
                ("check_s3_backup.py postgres", ["check-s3 postgres"]),
                (f"retrieve_backup.py {dump} bucket s3.example.com", [f"restore postgres {dump} --to {at}/{dump[:-7]}"]),
                (f"restore_from_backup.sh {dump} --replace",
                 [stop, f"restore postgres {dump} --replace", "systemctl start postgresql"]),
                ("restore_from_backup latest --replace --from s3", [stop, "restore postgres latest --replace --from s3", "systemctl start postgresql"]),
                ("restore_couchdb_backup.sh latest --replace", ["restore couchdb latest --replace --start"]),
                ("restore_blobdb_backup.sh latest --replace", ["restore blobdb latest --replace"]),
                ("restore_es_snapshot.sh latest --replace", ["restore elasticsearch latest --replace"]),
            ]:
                self.assertEqual(called(*words.split()), (0, asked), words)
            for words, code in [
                ("create_postgres_dump.sh yesterday", 64), ("retrieve_backup.py", 64), ("backup_snapshots.py other.gz", 64),
                ("check_snapshot_status.py x", 64), ("restore_from_backup.sh", 73), ("restore_couchdb_backup.sh latest", 73),
            ]:
                code_found, asked = called(*words.split())
                self.assertEqual((code_found, asked), (code, []), words)

    def test_cron_would_read_its_files(self):
        for path in [self.dir / "backstay", self.dir / "backstay-check"]:
            lines = path.read_text().split("\n")
            self.assertEqual(lines[-1], "", "cron ignores a last line without an end")
            jobs = [line for line in lines if line and line[0] in "0123456789*"]
            self.assertTrue(jobs, path)
            for job in jobs:
                self.assertRegex(job, r"^[0-9]+ (\*|[0-9,]+) \* \* [*0] root [^%]+$")

    def test_configurations_are_valid(self):
        for path in sorted(self.dir.glob("*.yml")):
            checked = run(str(self.program), "config", "check", "--file", str(path))
            self.assertEqual(checked.returncode, 0, f"{path}: {checked.stderr}")
        fleet = yaml.safe_load((self.dir / "fleet.yml").read_text())
        self.assertEqual(fleet["check"]["expect"], {"db1": ["files@offsite", "postgres@offsite"], "10-0-0-7": ["files@offsite"]})


if __name__ == "__main__":
    unittest.main()
