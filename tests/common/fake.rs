//! A deployment whose PostgreSQL programs are shell scripts: they fail, hang and lie as a test wants, and no server is
//! needed. A script that holds is a hold point: the test goes on when it has been reached.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Ran, backstay};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

const PSQL: &str = r#"case "$*" in
*server_version_num*) echo 150000 ;;
*system_identifier*) echo '{"version":"15.0","in_recovery":false,"data_directory":null,"config_file":null,"hba_file":null,"ident_file":null,"checksums":"on","system_identifier":"1"}' ;;
*) echo '[]' ;;
esac
"#;

/// A dump as `pg_dumpall` ends it.
pub(crate) const WHOLE: &str = "echo 'create table t (x int);'\necho '-- PostgreSQL database cluster dump complete'\n";
/// A megabyte, and then nothing more: no end, no end mark.
pub(crate) const HALF_THEN_HOLD: &str = "head -c 1000000 /dev/urandom | od -An -v\nhold\n";

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) dir: tempfile::TempDir,
}

impl Fake {
    /// Service `db` of method `dump`, with a local and a second place. `more` is added to the service.
    pub(crate) fn new(more: &str) -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        made.tool("psql", PSQL);
        made.tool("pg_dumpall", &format!(". {}/behaviour\n", made.root()));
        made.tool("pg_dump", &format!(". {}/behaviour-one\n", made.root()));
        made.behave(WHOLE);
        let root = made.root();
        let text = format!(
            "environment: test\nhost: h1\nstate_dir: {root}/state\n\
             destinations: {{second: {{local: {{path: {root}/second}}}}}}\nservices:\n  db:\n    \
             postgres: {{method: dump, bin_dir: {root}/bin}}\n    backup_dir: {root}/local\n    \
             destinations: [second]\n    keep: {{daily: 7}}\n{more}"
        );
        made.configure(&text);
        made
    }
    pub(crate) fn root(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    /// Replaces the configuration.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.path("backstay.yml"), text).unwrap();
    }
    /// What `pg_dumpall` does from now on.
    pub(crate) fn behave(&self, script: &str) {
        std::fs::write(self.path("behaviour"), script).unwrap();
    }
    /// Another process writes the program: a descriptor open for writing here could reach a child that another test
    /// starts, and the kernel does not run a file that is open for writing.
    pub(crate) fn tool(&self, name: &str, script: &str) {
        let root = self.root();
        let source = self.path("tool.txt");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo '{name} (PostgreSQL) 15.0' && exit 0\n\
             hold() {{ echo $$ >{root}/pid.new; mv {root}/pid.new {root}/pid; read -r _ <{root}/fifo; }}\n{script}"
        );
        std::fs::write(&source, text).unwrap();
        let fifo = self.path("fifo");
        if !fifo.exists() {
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        }
        let status =
            Command::new("install").args(["-D", "-m", "755"]).arg(source).arg(self.path("bin").join(name)).status();
        assert!(status.unwrap().success());
    }
    /// The program with this configuration.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let config = self.path("backstay.yml");
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(args);
        backstay(&all)
    }
    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        ended(self.command(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }
    /// Starts the program and waits until a script holds; the program and the script's process.
    pub(crate) fn run_until_held(&self, args: &[&str]) -> (Child, nix::unistd::Pid) {
        let _ = std::fs::remove_file(self.path("pid"));
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut early = None;
        until("a script holds", || {
            early = child.try_wait().unwrap();
            early.is_some() || self.path("pid").exists()
        });
        if early.is_some() {
            panic!("it ended before a script held: {:#?}", ended(child));
        }
        let pid = std::fs::read_to_string(self.path("pid")).unwrap();
        (child, nix::unistd::Pid::from_raw(pid.trim().parse().unwrap()))
    }
    /// Ids at each place, and everything else that is listed.
    pub(crate) fn listed(&self) -> Listed {
        let mut listed = Listed::default();
        for line in self.run(&["--json", "list"]).ok().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let place = line["destination"].as_str().unwrap().to_owned();
            match line["message_type"].as_str().unwrap() {
                "restore_point" if line["state"] == "complete" => {
                    listed.points.entry(place).or_default().push(line["id"].as_str().unwrap().to_owned());
                }
                _ => listed.others.push(line.to_string()),
            }
        }
        listed
    }
    /// Complete points at one place, which need not be all that can be listed.
    pub(crate) fn listed_at(&self, place: &str) -> Vec<String> {
        let said = self.run(&["--json", "list", "--from", place]).ok();
        let lines = said.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.filter(|l| l["state"] == "complete").map(|l| l["id"].as_str().unwrap().to_owned()).collect()
    }
    /// Every file and its content below the two places.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for place in ["local", "second"] {
            collect(&self.path(place), &mut found);
        }
        found
    }
    /// Unfinished folders and files below the two places.
    pub(crate) fn unfinished(&self) -> Vec<PathBuf> {
        let is = |p: &PathBuf| p.to_str().unwrap().contains(".partial-") || p.to_str().unwrap().contains(".tmp-");
        self.files().into_keys().filter(is).collect()
    }
}

/// What `list` says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Complete points by place.
    pub(crate) points: BTreeMap<String, Vec<String>>,
    /// Everything else: damaged, foreign, unfinished.
    pub(crate) others: Vec<String>,
}

impl Listed {
    /// Ids at a place.
    pub(crate) fn at(&self, place: &str) -> &[String] {
        self.points.get(place).map_or(&[], Vec::as_slice)
    }
}

/// Every file and its content below `dir`.
pub(crate) fn collect(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            collect(&path, found);
        } else {
            found.insert(path.clone(), std::fs::read(path).unwrap_or_default());
        }
    }
}

/// Waits for the end of a program.
pub(crate) fn ended(child: Child) -> Ran {
    let out = child.wait_with_output().unwrap();
    Ran {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// Polls until something is so.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process runs (one that waits to be reaped does not).
pub(crate) fn alive(pid: nix::unistd::Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}
