"""Disposable machines, an inventory of them, and plays on it; the gateway for their restore points."""

import datetime
import hashlib
import hmac
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(os.environ["ROOT"])
CACHE = pathlib.Path(os.environ["CACHE"])
MACHINE = str(ROOT / "tests/ansible/machine")
ACCESS, SECRET = "AKTEST", "SKTEST"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until(what, done, seconds=120):
    """Asks again and again; the time is only a limit."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = done()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


class Gateway:
    """A real object store on this host's loopback, stopped with this process."""

    def __init__(self):
        ports = free_ports(3)
        base = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
        self.dir = pathlib.Path(base) / f"backstay-ansible-rgw-{os.getpid()}"
        with tempfile.TemporaryFile() as log:
            started = subprocess.run(
                [str(ROOT / "tests/tools/rgw.sh"), str(self.dir), *ports, str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
            )
            log.seek(0)
            if started.returncode != 0:
                raise AssertionError("the gateway does not start: " + log.read().decode())
        self.url = f"http://127.0.0.1:{ports[0]}"

    def make_bucket(self, name):
        """A signed PUT (AWS signature version 4): the body is empty, and so is the query."""
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        empty = hashlib.sha256(b"").hexdigest()
        headers = {"host": self.url.split("//")[1], "x-amz-content-sha256": empty, "x-amz-date": stamp}
        signed = ";".join(headers)
        request = "\n".join(
            ["PUT", f"/{name}", "", *(f"{key}:{value}" for key, value in headers.items()), "", signed, empty])
        scope = f"{day}/us-east-1/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
        key = ("AWS4" + SECRET).encode()
        for part in (day, "us-east-1", "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        authorization = f"AWS4-HMAC-SHA256 Credential={ACCESS}/{scope}, SignedHeaders={signed}, Signature={signature}"
        headers = {**headers, "Authorization": authorization}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT", headers=headers)).close()

    def stop(self):
        (self.dir / "keep").unlink(missing_ok=True)


class Missing(Exception):
    """Something cannot be had here."""


def note_skipped(why):
    """For the end of tests/run."""
    print(f"skipped: {why}", flush=True)
    if os.environ.get("BACKSTAY_TEST_SKIPS"):
        with open(os.environ["BACKSTAY_TEST_SKIPS"], "a", encoding="utf-8") as notes:
            print(" ".join(why.split()), file=notes)


class Search:
    """A real OpenSearch node on this host's loopback, which a machine reaches; stopped with this process."""

    def __init__(self):
        port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        self.dir = pathlib.Path(tempfile.gettempdir()) / f"backstay-ansible-search-{port}"
        node = ["opensearch", "2.19.1", str(CACHE.parent / "search")]
        self.run(Missing, "fetch", *node)
        self.run(AssertionError, "start", *node, str(self.dir), port, str(os.getpid()))

    @staticmethod
    def run(error, *words):
        with tempfile.TemporaryFile() as log:
            tool = str(ROOT / "tests/tools/search.sh")
            ran = subprocess.run([tool, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
            log.seek(0)
            if ran.returncode != 0:
                raise error(f"search.sh {' '.join(words)}: " + log.read().decode().strip())

    def ask(self, method, path, body=None):
        """One request; its answer."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=data, method=method, headers={"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    def stop(self):
        (self.dir / "keep").unlink(missing_ok=True)


class Machine:
    """One machine. `ssh` runs a shell command there and returns what it printed."""

    def __init__(self, name):
        self.dir = pathlib.Path(f"/run/backstay-{os.getpid()}-{name}")
        subprocess.run([MACHINE, "up", str(self.dir), str(CACHE / os.environ["SUITE"])], check=True)
        self.root = self.dir / "root"
        self.vars = {
            "ansible_host": "127.0.0.1",
            "ansible_port": int((self.dir / "port").read_text()),
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.dir / "key"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def ran(self, command):
        return subprocess.run([MACHINE, "ssh", str(self.dir), command], capture_output=True, text=True, check=False)

    def ssh(self, command):
        ran = self.ran(command)
        if ran.returncode != 0:
            raise AssertionError(f"{command}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}")
        return ran.stdout

    def start(self, *units):
        """Starts units one after another, and tells what they said when one fails."""
        for unit in units:
            ran = self.ran(f"systemctl start {unit}")
            if ran.returncode != 0:
                raise AssertionError(f"{unit} failed:\n" + self.ssh(f"journalctl --no-pager -o cat -u {unit}"))

    def mails(self):
        """What its sendmail was given so far, one text per mail."""
        try:
            return (self.root / "var/tmp/mail").read_text().split("== ")[1:]
        except FileNotFoundError:
            return []

    def wait_for_mail(self, *texts, seconds=120):
        """Until one mail has all of these; it may be half written when it is first seen."""
        return wait_until(
            f"a mail with {texts}", lambda: [mail for mail in self.mails() if all(text in mail for text in texts)], seconds)[0]

    def forget_mails(self):
        (self.root / "var/tmp/mail").unlink(missing_ok=True)

    def points(self, service, place):
        """Restore points that the agent lists at a place."""
        listed = self.ran(f"backstay --json list {service} --from {place}").stdout
        lines = [json.loads(line) for line in listed.splitlines()]
        return [line for line in lines if line["message_type"] == "restore_point"]

    def down(self):
        subprocess.run([MACHINE, "down", str(self.dir)], check=True)


class Played:
    """How a play ended."""

    def __init__(self, code, output):
        self.code, self.output = code, output

    def counts(self, host):
        line = re.search(rf"^{re.escape(host)} +: (.*)$", self.output, re.M).group(1)
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line)}

    def changed_tasks(self):
        """For messages: the tasks that changed something."""
        task, found = "", []
        for line in self.output.splitlines():
            if line.startswith("TASK ["):
                task = line
            elif line.startswith("changed:"):
                found.append(f"{task} {line}")
        return "\n".join(found)


class Fleet:
    """An inventory in a directory of its own; `play` runs a playbook of the collection on it."""

    def __init__(self, inventory):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="backstay-ansible-"))
        self.seconds = []
        self.write(inventory)
        (self.dir / "ansible.cfg").write_text(
            "[defaults]\nretry_files_enabled = False\nhost_key_checking = False\n"
            "[ssh_connection]\npipelining = True\nssh_args = -o ControlMaster=auto -o ControlPersist=60s\n"
            f"control_path_dir = {self.dir}/cp\n"
        )

    def write(self, inventory):
        (self.dir / "hosts.json").write_text(json.dumps(inventory))

    def play(self, playbook, *words, **variables):
        """Runs it; `variables` are extra variables, given in a file, so that they are in nobody's command line."""
        extra = self.dir / "extra.json"
        extra.write_text(json.dumps(variables))
        began = time.monotonic()
        ran = subprocess.run(
            ["ansible-playbook", "-i", str(self.dir / "hosts.json"), "-e", f"@{extra}", playbook, *words],
            cwd=self.dir, env={**os.environ, "ANSIBLE_CONFIG": str(self.dir / "ansible.cfg")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=600,
        )
        self.seconds.append((f"{playbook} {' '.join(words)}", time.monotonic() - began, len(re.findall(r"^TASK \[", ran.stdout, re.M))))
        return Played(ran.returncode, ran.stdout)

    def done(self, playbook, *words, **variables):
        """The same, and demands success."""
        played = self.play(playbook, *words, **variables)
        if played.code != 0:
            raise AssertionError(played.output)
        return played

    def close(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        if os.environ.get("TIMES"):
            for what, seconds, tasks in self.seconds:
                print(f"{seconds:6.1f} s  {tasks:3} tasks  {seconds / max(tasks, 1):5.2f} s/task  {what}", flush=True)
