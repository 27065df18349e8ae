//! What several test modules need.

pub mod fake;
pub mod faulty;
pub mod memory;
pub mod postgres;
pub(crate) mod rgw;
pub(crate) mod s3_fault;
pub(crate) mod search;
pub(crate) mod smtpd;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// How a run of the program ended.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ran {
    /// Its exit code; -1 for a signal.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Demands exit code 0 and returns its answer.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.stdout
    }
}

/// Notes, for the end of `tests/run`, that a test could not run here.
pub(crate) fn skip(reason: &str) {
    let Some(path) = std::env::var_os("BACKSTAY_TEST_SKIPS") else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{}", reason.trim().replace('\n', " ")).unwrap();
}

/// The same, for what nothing that can be installed here would help with.
pub(crate) fn unable(reason: &str) {
    skip(&format!("cannot be done here: {reason}"));
}

/// The program, without any setting of the machine that tests it.
#[allow(clippy::disallowed_methods, reason = "run as users run it")]
pub(crate) fn backstay(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstay"));
    command.args(args).env_remove("BACKSTAY_CONFIG").env_remove("BACKSTAY_LOG").env_remove("CREDENTIALS_DIRECTORY");
    command
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Ran {
    run_with_input(args, "")
}

/// Runs the program with `input` on its standard input.
pub(crate) fn run_with_input(args: &[&str], input: &str) -> Ran {
    let mut command = backstay(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let out = child.wait_with_output().unwrap();
    Ran {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8(out.stdout).unwrap(),
        stderr: String::from_utf8(out.stderr).unwrap(),
    }
}

/// Writes a file below `dir`, with its folders, and returns its path as text.
pub(crate) fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
