"""Backups as the scripts of commcare-cloud left them are restored by backstay-restore-old."""

import gzip
import os
import pathlib
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "roles/commcare/files/backstay-restore-old"


def sh(command, cwd):
    subprocess.run(["sh", "-c", command], cwd=cwd, check=True, capture_output=True)


class Old(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.dir = pathlib.Path(temporary.name)
        self.data = self.dir / "opt/data/blobdb"
        (self.data / "db").mkdir(parents=True)
        (self.data / "db/one").write_text("precious\n")
        os.link(self.data / "db/one", self.data / "two")
        (self.data / "a name, with a\nline end").write_text("x")

    def restore(self, file, to="new"):
        ran = subprocess.run(["sh", SCRIPT, file, self.dir / to], capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout + ran.stderr

    def assert_restored(self, to="new"):
        def tree(root):
            return {str(path.relative_to(root)): path.read_text() if path.is_file() else None for path in root.rglob("*")}
        self.assertEqual(tree(self.dir / to), tree(self.data))
        self.assertEqual((self.dir / to / "two").stat().st_nlink, 2)

    def test_an_archive_with_absolute_names_as_of_couchdb_and_blobs(self):
        archive = self.dir / "blobdb_daily_2026_01_01.tar.gz"
        sh(f"tar -Pzcf {archive} {self.data}", self.dir)
        code, said = self.restore(archive)
        self.assertEqual(code, 0, said)
        self.assertIn(f"{self.data}/ of {archive} is in {self.dir}/new", said)
        self.assert_restored()

    def test_an_archive_without_the_first_slash_as_of_postgres(self):
        archive = self.dir / "postgres_env_daily_2026_01_01.tar.gz"
        sh(f"tar -czf {archive} {self.data}", self.dir)
        self.assertEqual(self.restore(archive)[0], 0)
        self.assert_restored()

    def test_one_that_is_cut_off_or_goes_elsewhere_or_over_data_is_refused(self):
        archive = self.dir / "blobdb_daily_2026_01_01.tar.gz"
        sh(f"tar -Pzcf {archive} {self.data}", self.dir)
        (self.dir / "cut.tar.gz").write_bytes(archive.read_bytes()[:-20])
        code, said = self.restore(self.dir / "cut.tar.gz")
        self.assertEqual((code, "is damaged or cut off" in said), (65, True), said)
        sh(f"tar -Pzcf {archive} {self.data} /etc/hostname", self.dir)
        code, said = self.restore(archive, "other")
        self.assertEqual((code, "holds a member outside of" in said), (65, True), said)
        sh(f"tar -Pzcf {archive} {self.data} {self.data}/../blobdb/db", self.dir)
        self.assertEqual(self.restore(archive, "third")[0], 65)
        code, said = self.restore(archive, "opt")
        self.assertEqual((code, "is not empty" in said), (73, True), said)

    def test_a_dump_counts_only_with_its_end_mark(self):
        dump = self.dir / "postgres_env_daily_2026_01_01.gz"
        with gzip.open(dump, "wt") as file:
            file.write("select 1;\n--\n-- PostgreSQL database cluster dump complete\n--\n\n")
        self.assertEqual(self.restore(dump)[0], 0)
        self.assertIn("select 1;", (self.dir / "new/dump.sql").read_text())
        # What `pg_dumpall | gzip` left when pg_dumpall failed.
        with gzip.open(dump, "wt"):
            pass
        code, said = self.restore(dump, "empty")
        self.assertEqual((code, "has no end mark" in said), (65, True), said)


if __name__ == "__main__":
    unittest.main()
