"""The collection on a copy of this very host, with cron, where no machine can run. tests/ansible/run prepares the copy."""

import os
import pathlib
import subprocess
import unittest

from fleet import Fleet

DEPLOY = "backstay.backstay.deploy"


@unittest.skipUnless(os.environ.get("IN_A_COPY"), "would change this host")
class Local(unittest.TestCase):
    def test_it_is_deployed_backs_up_by_the_line_of_cron_and_goes(self):
        pathlib.Path("/srv/files").mkdir(parents=True)
        pathlib.Path("/srv/files/one").write_text("precious\n")
        pathlib.Path("/etc/cron.d").mkdir(exist_ok=True)
        files = {"blobdir": {"path": "/srv/files"}, "backup_dir": "/opt/backups/files", "keep": {"daily": 2}}
        host = {"ansible_connection": "local", "ansible_user": "root", "agent_services": {"files": files}}
        common = {
            "agent_binary_src": os.environ["BACKSTAY"], "agent_environment": "test", "agent_scheduler": "cron", "check_scheduler": "cron",
            "agent_drill": "daily", "check_email": ["ops@example.com"], "agent_secrets": {"planted": {"content": "x"}},
        }
        fleet = Fleet({"all": {"vars": common, "children": {"backstay": {"hosts": {"db1": host}}}}})
        self.addCleanup(fleet.close)
        fleet.done(DEPLOY, "--tags", "backups", "--check", "--diff")
        self.assertFalse(pathlib.Path("/etc/backstay").exists())
        fleet.done(DEPLOY, "--tags", "backups")
        again = fleet.done(DEPLOY, "--tags", "backups")
        self.assertEqual(again.counts("db1")["changed"], 0, again.changed_tasks())
        jobs = [line for line in pathlib.Path("/etc/cron.d/backstay").read_text().splitlines() if " root " in line]
        self.assertEqual(len(jobs), 2)
        for job in jobs:
            subprocess.run(["sh", "-c", job.split(" root ")[1]], check=True)
        subprocess.run(["backstay", "restore", "files", "latest", "--to", "/srv/again"], check=True)
        self.assertEqual(pathlib.Path("/srv/again/one").read_text(), "precious\n")
        fleet.done("backstay.backstay.uninstall")
        self.assertFalse(pathlib.Path("/usr/local/bin/backstay").exists() or pathlib.Path("/etc/backstay").exists())
        self.assertTrue(list(pathlib.Path("/opt/backups/files").glob("files_test_*/manifest.json")))


if __name__ == "__main__":
    unittest.main()
