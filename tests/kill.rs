//! The program is stopped and killed where it hurts: what was there stays, nothing half is listed, and the next run
//! clears up.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::fake::{Fake, HALF_THEN_HOLD, WHOLE, alive, collect, ended, until};

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn a_signal_while_capturing_leaves_everything_as_it_was() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let d = Fake::new("");
        d.run(&["backup"]).ok();
        let (files, listed) = (d.files(), d.listed());
        d.behave(HALF_THEN_HOLD);
        let (child, tool) = d.run_until_held(&["backup", "--manual"]);
        until("both places are written to", || d.unfinished().len() >= 4);
        send(&child, signal);
        let ran = ended(child);
        assert_eq!(ran.code, code, "{ran:#?}");
        assert!(ran.stderr.contains("no restore point was made\n  caused by: "), "{ran:#?}");
        assert!(ran.stderr.contains("stopped"), "{ran:#?}");
        assert_eq!(d.files(), files, "right away, not by the next run");
        assert_eq!(d.listed(), listed);
        assert!(!d.path("state/services/db/work").exists());
        until("the tool is gone", || !alive(tool));
        d.behave(WHOLE);
        d.run(&["backup", "--manual"]).ok();
        assert_eq!((d.listed().at("local").len(), d.listed().at("second").len()), (2, 2));
    }
}

#[test]
fn after_kill_9_nothing_half_is_listed_and_the_next_run_clears_up() {
    let d = Fake::new("");
    d.run(&["backup"]).ok();
    let (files, listed) = (d.files(), d.listed());
    d.behave(HALF_THEN_HOLD);
    let (child, tool) = d.run_until_held(&["backup", "--manual"]);
    until("both places are written to", || d.unfinished().len() >= 4);
    send(&child, Signal::SIGKILL);
    assert_eq!(ended(child).code, -1);
    assert!(!d.unfinished().is_empty(), "it had no time to clear up");
    assert_eq!(d.listed().points, listed.points);
    let kept: Vec<_> = d.files().into_iter().filter(|(path, _)| files.contains_key(path)).collect();
    assert_eq!(kept, files.into_iter().collect::<Vec<_>>());
    // The tool outlives a killed parent, and has no part in its lock.
    assert!(alive(tool));
    d.behave(WHOLE);
    d.run(&["backup", "--manual"]).ok();
    let listed = d.listed();
    assert_eq!((listed.at("local").len(), listed.at("local")), (2, listed.at("second")));
    assert!(listed.others.is_empty(), "{listed:#?}");
    assert_eq!(d.unfinished(), Vec::<std::path::PathBuf>::new());
    let _ = kill(tool, Signal::SIGKILL);
}

#[test]
fn a_signal_during_the_second_service_keeps_the_point_of_the_first() {
    let d = Fake::new("");
    let root = d.root();
    std::fs::create_dir(d.path("blobs")).unwrap();
    std::fs::write(d.path("blobs/one"), "one").unwrap();
    let more = format!(
        "    after: [blobs]\n  blobs:\n    blobdir: {{path: {root}/blobs}}\n    backup_dir: {root}/blobs-local\n    \
         keep: {{daily: 7}}\n"
    );
    let config = std::fs::read_to_string(d.path("backstay.yml")).unwrap() + &more;
    d.configure(&config);
    d.behave(HALF_THEN_HOLD);
    let (child, tool) = d.run_until_held(&["backup"]);
    send(&child, Signal::SIGTERM);
    let ran = ended(child);
    // One of two services is done, so this is "incomplete"; the reason stands above.
    assert!([10, 143].contains(&ran.code), "{ran:#?}");
    assert!(ran.stderr.contains("stopped"), "{ran:#?}");
    let listed = d.listed();
    assert_eq!(listed.at("local").len(), 1, "{listed:#?}");
    assert!(listed.at("local")[0].starts_with("blobs_test_daily_"));
    assert!(listed.others.is_empty() && listed.at("second").is_empty(), "{listed:#?}");
    assert!(d.files().is_empty(), "{:?}", d.files().keys());
    until("the tool is gone", || !alive(tool));
}

#[test]
fn a_signal_reaches_a_run_as_another_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let d = Fake::new("    user: nobody\n");
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(d.dir.path(), mode).unwrap();
    for dir in [".", "local", "second"] {
        std::fs::create_dir_all(d.path(dir)).unwrap();
        std::os::unix::fs::chown(d.path(dir), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    }
    d.run(&["backup"]).ok();
    let (files, listed) = (d.files(), d.listed());
    assert_eq!(listed.at("local").len(), 1);
    d.behave(HALF_THEN_HOLD);
    let (child, tool) = d.run_until_held(&["backup", "--manual"]);
    send(&child, Signal::SIGTERM);
    let ran = ended(child);
    assert_eq!(ran.code, 143, "{ran:#?}");
    until("the tool is gone", || !alive(tool));
    assert_eq!((d.files(), d.listed()), (files, listed));
}

#[test]
fn a_run_as_another_user_survives_an_upgrade_and_needs_no_open_umask() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let d = Fake::new("    user: nobody\n");
    let root = d.root();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    std::fs::create_dir(d.path("blobs")).unwrap();
    std::fs::write(d.path("blobs/one"), "one").unwrap();
    let more = format!(
        "  zblobs:\n    blobdir: {{path: {root}/blobs}}\n    user: nobody\n    after: [db]\n    destinations: [second]\n    \
         keep: {{daily: 7}}\n"
    );
    d.configure(&(std::fs::read_to_string(d.path("backstay.yml")).unwrap() + &more));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(d.dir.path(), mode).unwrap();
    for dir in [".", "local", "second"] {
        std::fs::create_dir_all(d.path(dir)).unwrap();
        std::os::unix::fs::chown(d.path(dir), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    }
    std::fs::copy(env!("CARGO_BIN_EXE_backstay"), d.path("program")).unwrap();
    std::fs::write(d.path("other"), "#!/bin/sh\nexit 3\n").unwrap();
    // While the first service is captured, another program takes the place of this one, as an upgrade does.
    d.behave(&format!("mv -f {root}/other {root}/program\n{WHOLE}"));
    let plain = d.command(&["backup"]);
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(d.path("program")).args(plain.get_args());
    let out = command.output().unwrap();
    assert!(out.status.success(), "{out:#?}");
    assert!(!d.path("other").exists(), "it was replaced");
    let listed = d.listed();
    assert_eq!(listed.at("second").len(), 2, "{listed:#?}");
}

/// Runs a backup under `strace`, which sends `signal` with the n-th call of one kind in each thread.
fn killed_at(d: &Fake, call: &str, n: usize, signal: &str) -> std::process::ExitStatus {
    let plain = d.command(&["backup", "--manual"]);
    let mut command = Command::new("strace");
    command.args(["-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={call}:signal={signal}:when={n}")]);
    command.arg(plain.get_program()).args(plain.get_args()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null()).status().unwrap()
}

/// Killed before it could write whose folder it is: that waits for the grace period, which this test does not.
fn forget_the_nameless(d: &Fake) {
    for place in ["local", "second/test/h1/blobs"] {
        for entry in std::fs::read_dir(d.path(place)).unwrap().flatten() {
            let is_nameless = |e: std::fs::DirEntry| e.file_name().to_str().unwrap().starts_with(".owner.tmp-");
            let files = std::fs::read_dir(entry.path()).unwrap().flatten();
            if entry.file_name().to_str().unwrap().starts_with(".partial-") && files.into_iter().all(is_nameless) {
                std::fs::remove_dir_all(entry.path()).unwrap();
            }
        }
    }
}

#[test]
fn wherever_it_is_killed_what_is_listed_is_good_and_the_next_run_makes_it_whole() {
    let d = Fake::new("");
    let root = d.root();
    for n in 0..8 {
        let path = d.path(&format!("blobs/{n}/file"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![n; 100_000]).unwrap();
    }
    d.configure(&format!(
        "environment: test\nhost: h1\nstate_dir: {root}/state\n\
         destinations: {{second: {{local: {{path: {root}/second}}}}}}\nservices:\n  blobs:\n    \
         blobdir: {{path: {root}/blobs}}\n    backup_dir: {root}/local\n    destinations: [second]\n    keep: {{daily: 7}}\n"
    ));
    d.run(&["backup"]).ok();
    if !Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: strace is not here, or must not trace");
        return;
    }
    let mut killed = Vec::new();
    for signal in ["KILL", "TERM"] {
        for (call, count) in [("rename,renameat2", 4), ("unlink", 2), ("fsync,fdatasync", 4), ("mkdir,mkdirat", 2)] {
            for n in 1..=count {
                let what = format!("{signal} at call {n} of {call}");
                let before = d.listed().points;
                let status = killed_at(&d, call, n, signal);
                if !status.success() {
                    killed.push(what.clone());
                }
                for id in d.listed().points.values().flatten() {
                    d.run(&["verify", "blobs", id]).ok();
                }
                let found = d.listed().points;
                for (place, ids) in &before {
                    assert!(ids.iter().all(|id| found[place].contains(id)), "{what}: a point of {place} is gone");
                }
                d.run(&["backup", "--manual"]).ok();
                forget_the_nameless(&d);
                let listed = d.listed();
                assert_eq!(listed.at("local"), listed.at("second"), "{what}");
                assert_eq!(listed.others, Vec::<String>::new(), "{what}");
                assert_eq!(d.unfinished(), Vec::<std::path::PathBuf>::new(), "{what}");
                // Few points, so that looking at all of them stays cheap.
                for place in ["local", "second/test/h1/blobs"] {
                    for id in listed.at("local").iter().filter(|id| id.contains("_manual_")) {
                        std::fs::remove_dir_all(d.path(place).join(id)).unwrap();
                    }
                }
            }
        }
    }
    assert!(killed.len() >= 16, "only these runs were killed: {killed:#?}");
    let mut state = std::collections::BTreeMap::new();
    collect(&d.path("state"), &mut state);
    assert!(state.keys().all(|p| !p.to_str().unwrap().contains("work")), "{:?}", state.keys());
}
