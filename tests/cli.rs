//! The program as users run it: wiring, help, exit codes, streams.

use std::path::Path;
use std::process::Stdio;

use backstay::cli::Cli;
use clap::CommandFactory as _;
use serde_json::Value;

use crate::common::{backstay, run, run_with_input, write};

const GOOD: &str = "environment: production
services:
  files: {blobdir: {path: /srv/files}, backup_dir: /backup, keep: {daily: 7}}
";

/// All commands, as words.
fn commands() -> Vec<Vec<String>> {
    let mut root = Cli::command();
    root.build();
    let mut all = Vec::new();
    let mut todo = vec![(Vec::new(), &root)];
    while let Some((words, command)) = todo.pop() {
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let words: Vec<String> = words.iter().cloned().chain([sub.get_name().to_owned()]).collect();
            todo.push((words.clone(), sub));
            all.push(words);
        }
    }
    all
}

fn last_json_line(stderr: &str) -> Value {
    serde_json::from_str(stderr.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {stderr}"))
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let all = commands();
    assert!(all.len() >= 15, "{all:?}");
    for words in all {
        let args: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let help = run(&args).ok();
        assert!(help.contains("Example"), "{words:?} has no example:\n{help}");
        assert!(help.contains(&format!("backstay {}", words.join(" "))), "{words:?}:\n{help}");
    }
}

#[test]
fn help_and_version_go_to_stdout_and_the_exit_codes_are_told() {
    assert!(run(&["--help"]).ok().contains("Exit codes:"));
    assert!(run(&["--version"]).ok().starts_with("backstay "));
}

#[test]
fn a_wrong_command_line_is_64() {
    for args in [
        &["--nonsense"][..],
        &["restore", "--all"],
        &["backup", "--manual", "--cadence", "daily"],
        &[],
        &["man", "nothing"],
    ] {
        let ran = run(args);
        assert_eq!(ran.code, 64, "{args:?}: {ran:#?}");
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{args:?}: {ran:#?}");
    }
}

#[test]
fn a_wrong_command_line_with_json_ends_with_one_object() {
    let ran = run(&["--json", "backup", "--nonsense"]);
    let last = last_json_line(&ran.stderr);
    assert_eq!((ran.code, &last["message_type"], &last["code"]), (64, &"exit_error".into(), &64.into()));
    assert!(last["message"].as_str().unwrap().contains("--nonsense"), "{last}");
}

#[test]
fn a_good_configuration_is_ok_from_a_file_and_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "backstay.yml", GOOD);
    assert_eq!(run(&["--config", &file, "config", "check"]).ok(), format!("{file}: ok, 1 services, 0 destinations\n"));
    assert!(run(&["config", "check", "--file", &file]).ok().contains("ok"));
    assert!(run_with_input(&["config", "check", "--file", "-"], GOOD).ok().starts_with("<stdin>: ok"));
    assert_eq!(run(&["--quiet", "--config", &file, "config", "check"]).ok(), "");
    let line: Value = serde_json::from_str(&run(&["--json", "--config", &file, "config", "check"]).ok()).unwrap();
    assert_eq!((&line["message_type"], &line["services"]), (&"config_check".into(), &1.into()));
}

#[test]
fn the_configuration_of_the_environment_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "backstay.yml", GOOD);
    let out = backstay(&["config", "check"]).env("BACKSTAY_CONFIG", &file).output().unwrap();
    assert!(out.status.success());
}

#[test]
fn a_wrong_configuration_is_78_and_told_on_stderr() {
    let ran = run_with_input(&["config", "check", "--file", "-"], "enviroment: x\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (78, ""));
    assert!(
        ran.stderr.starts_with("error: <stdin>:1:1: unknown key \"enviroment\"\nhint: did you mean \"environment\"?"),
        "{}",
        ran.stderr
    );
    let ran = run(&["--config", "/nonexistent/backstay.yml", "--json", "config", "check"]);
    let last = last_json_line(&ran.stderr);
    assert_eq!((ran.code, &last["code"], &last["message_type"]), (78, &78.into(), &"exit_error".into()));
    assert!(last["hint"].as_str().unwrap().contains("--config"), "{last}");
}

#[test]
fn check_s3_answers_every_error_as_unknown() {
    let ran = run(&["--config", "/nonexistent/backstay.yml", "check-s3"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
}

#[test]
fn a_secret_file_that_others_can_read_is_refused_when_it_is_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let keys = write(dir.path(), "keys", "[default]\naws_access_key_id = AKIA\naws_secret_access_key = hunter2\n");
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).unwrap();
    let err = backstay::config::secret::SecretRef::File(keys.clone().into()).load().unwrap_err();
    assert_eq!(
        err.report(),
        format!(
            "error: others can read the secret in \"{keys}\" (mode 0644)\n\
             hint: run `chmod 600 {keys}` (640 with a group of the users who need it), and change the secret if others have read it."
        )
    );
}

#[test]
fn what_config_show_prints_is_a_configuration_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "backstay.yml", GOOD);
    let shown = run(&["--config", &file, "config", "show"]).ok();
    assert!(shown.contains("timeout: ") && shown.contains("timezone: UTC"), "{shown}");
    let again = write(dir.path(), "again.yml", &shown);
    assert_eq!(run(&["--config", &again, "config", "show"]).ok(), shown);
}

#[test]
fn the_committed_schema_is_the_one_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.schema.json");
    let schema = run(&["config", "schema"]).ok();
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == schema,
        "run `backstay config schema > docs/config.schema.json`"
    );
    let schema: Value = serde_json::from_str(&schema).unwrap();
    assert_eq!(schema["additionalProperties"], Value::Bool(false));
    assert!(schema["properties"]["services"].is_object());
}

#[test]
fn completions_and_manual_pages_are_written_for_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).ok().contains("check-s3"), "{shell}");
    }
    assert!(run(&["man"]).ok().contains(".TH"));
    assert!(run(&["man", "restore"]).ok().contains("keep\\-standby"));
    let dir = tempfile::tempdir().unwrap();
    let printed = run(&["man", "--dir", dir.path().to_str().unwrap()]).ok();
    assert_eq!(printed.lines().count(), commands().len() + 1, "{printed}");
    assert!(dir.path().join("backstay-config-check.1").is_file(), "{printed}");
}

#[test]
fn a_reader_that_goes_away_is_not_an_error() {
    let mut child = backstay(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn a_full_disk_under_the_answer_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = backstay(&["config", "schema"]).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("could not write to standard output"));
}

#[test]
fn a_wrong_log_level_is_told() {
    let out = backstay(&["config", "schema"]).env("BACKSTAY_LOG", "backstay=loud").output().unwrap();
    assert_eq!(out.status.code(), Some(78));
}

/// Whether the process catches SIGINT and SIGTERM yet.
fn listens(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
    let both = (1 << (nix::libc::SIGINT - 1)) | (1 << (nix::libc::SIGTERM - 1));
    u64::from_str_radix(&caught, 16).unwrap() & both == both
}

#[test]
fn a_signal_stops_the_command_and_is_its_exit_code() {
    use nix::sys::signal::{Signal, kill};
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut command = backstay(&["config", "check", "--file", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let open = child.stdin.take();
        while !listens(child.id()) {
            std::thread::yield_now();
        }
        kill(nix::unistd::Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let out = child.wait_with_output().unwrap();
        drop(open);
        assert_eq!(out.status.code(), Some(code), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
