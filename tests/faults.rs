//! Full disks, hanging, missing and lying programs, places that are none: what is said, with which code, and that
//! nothing is listed that cannot be restored.

#![allow(clippy::disallowed_methods, reason = "mounts are made as administrators make them")]

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};

use crate::common::Ran;
use crate::common::fake::{Fake, HALF_THEN_HOLD, WHOLE, alive, ended, until};

/// A file system of its own, unmounted at the end.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// `None`, with the reason noted, where mounting is not possible.
    pub(crate) fn new(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        Self::attach(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], at)
    }
    /// A directory mounted over itself.
    pub(crate) fn bind(at: &Path) -> Option<Self> {
        Self::attach(&["--bind", at.to_str().unwrap()], at)
    }
    fn attach(args: &[&str], at: &Path) -> Option<Self> {
        let out = Command::new("mount").args(args).arg(at).output().unwrap();
        if out.status.success() {
            return Some(Self(at.to_owned()));
        }
        crate::common::skip(&format!("mounts: cannot mount here: {}", String::from_utf8_lossy(&out.stderr)));
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Demands an exit code and parts of what stderr says.
#[track_caller]
fn expect(ran: &Ran, code: i32, said: &[&str]) {
    assert_eq!(ran.code, code, "{ran:#?}");
    for part in said {
        assert!(ran.stderr.contains(part), "{part:?} is not said: {}", ran.stderr);
    }
}

#[test]
fn a_full_disk_costs_one_place_and_the_next_run_tops_it_up() {
    let d = Fake::new("    compression: {algorithm: none}\n");
    let Some(mount) = Mount::new(&d.path("local"), "2m") else { return };
    d.run(&["backup"]).ok();
    let before = d.listed();
    let filler = d.path("local/lost+found");
    std::fs::write(&filler, vec![1; 1 << 20]).unwrap();
    d.behave(&format!("head -c 3000000 /dev/zero | tr '\\0' -\n{WHOLE}"));
    let ran = d.run(&["backup", "--manual"]);
    let id = d.listed().at("second").iter().find(|id| id.contains("_manual_")).cloned().unwrap();
    expect(
        &ran,
        10,
        &[
            &format!("error: service \"db\": restore point {id} is incomplete: it is not at local\n"),
            "No space left on device",
            "\nhint: free some space there, keep fewer points, or move the destination to a larger disk. Then the next \
             run copies the point there.\n",
        ],
    );
    assert!(ran.stdout.contains("  local: FAILED: ") && ran.stdout.contains("  second: whole\n"), "{ran:#?}");
    assert_eq!(d.listed().at("local"), before.at("local"));
    assert_eq!(d.unfinished(), Vec::<PathBuf>::new(), "what was half written there is gone");
    d.run(&["verify", "db", &id]).ok();
    std::fs::remove_file(&filler).unwrap();
    // Still too small: said, and no failure of the run, which had nothing to do.
    let said = d.run(&["backup"]).ok();
    assert!(said.contains("could not copy"), "{said}");
    assert!(Command::new("mount").args(["-o", "remount,size=20m"]).arg(d.path("local")).status().unwrap().success());
    let said = d.run(&["backup"]).ok();
    assert!(said.contains(&format!("copied {id} there from second, it was missing")), "{said}");
    let listed = d.listed();
    assert_eq!((listed.at("local"), listed.others.len()), (listed.at("second"), 0), "{listed:#?}");
    d.run(&["verify", "db", &id, "--from", "local"]).ok();
    drop(mount);
}

#[test]
fn all_disks_full_is_a_failure_that_leaves_nothing() {
    let d = Fake::new("    compression: {algorithm: none}\n");
    let (Some(local), Some(second)) = (Mount::new(&d.path("local"), "2m"), Mount::new(&d.path("second"), "2m")) else {
        return;
    };
    d.run(&["backup"]).ok();
    let files = d.files();
    d.behave(&format!("head -c 9000000 /dev/zero | tr '\\0' -\n{WHOLE}"));
    let ran = d.run(&["backup", "--manual"]);
    expect(&ran, 1, &["no restore point was made", "No space left on device"]);
    assert_eq!(d.files(), files);
    drop((local, second));
}

#[test]
fn a_service_that_hangs_is_stopped_after_its_timeout() {
    let d = Fake::new("    timeout: 2s\n");
    d.run(&["backup"]).ok();
    let files = d.files();
    d.behave(HALF_THEN_HOLD);
    let (child, tool) = d.run_until_held(&["backup", "--manual"]);
    expect(
        &ended(child),
        69,
        &[
            "error: service \"db\": no restore point was made\n  caused by: the backup did not end within 2s\n",
            "hint: look at what the source waits for; `timeout` of the service sets the limit.",
        ],
    );
    until("the tool is gone", || !alive(tool));
    assert_eq!(d.files(), files);
}

#[test]
fn a_missing_program_is_named_with_what_to_do() {
    let d = Fake::new("");
    d.run(&["backup"]).ok();
    let files = d.files();
    for name in ["pg_dumpall", "psql"] {
        std::fs::remove_file(d.path("bin").join(name)).unwrap();
        let ran = d.run(&["backup", "--manual"]);
        let cause = format!("could not run {name}\n  caused by: {}: No such file", d.path("bin").join(name).display());
        expect(&ran, 78, &[&cause, &format!("install the package that has {name}")]);
        assert_eq!(d.files(), files);
    }
}

#[test]
fn a_program_that_lies_makes_no_point() {
    let d = Fake::new("");
    d.run(&["backup"]).ok();
    let (files, listed) = (d.files(), d.listed());
    let half = "head -c 1000000 /dev/urandom | od -An -v\n";
    let no_mark = "pg_dumpall ended without an error, but its dump has no end mark";
    for (name, script, said) in [
        ("half and exit 1", format!("{half}echo 'the disk is on fire' >&2\nexit 1\n"), "the disk is on fire"),
        ("whole and exit 1", format!("{WHOLE}exit 1\n"), "pg_dumpall failed (exit status: 1)"),
        ("cut and exit 0", format!("{half}exit 0\n"), no_mark),
        ("empty and exit 0", "exit 0\n".to_owned(), no_mark),
        ("killed half-way", format!("{half}kill -9 $$\n"), "pg_dumpall failed (signal: 9 (SIGKILL))"),
        ("mark in the middle", format!("{WHOLE}{half}"), no_mark),
    ] {
        d.behave(&script);
        let ran = d.run(&["backup", "--manual"]);
        expect(&ran, 69, &["error: service \"db\": no restore point was made\n", said]);
        assert!(ran.stdout.is_empty(), "{name}: {}", ran.stdout);
        assert_eq!(d.files(), files, "{name}");
        assert_eq!(d.listed(), listed, "{name}");
    }
}

#[test]
fn a_place_that_is_a_file_costs_that_place_only() {
    let d = Fake::new("");
    std::fs::write(d.path("local"), "a file").unwrap();
    let ran = d.run(&["backup"]);
    expect(&ran, 10, &["is incomplete: it is not at local", "local: cannot make the directory ", "File exists"]);
    assert_eq!(d.listed_at("second").len(), 1);
    assert_eq!(std::fs::read_to_string(d.path("local")).unwrap(), "a file");
    std::fs::remove_file(d.path("local")).unwrap();
    std::fs::remove_dir_all(d.path("second")).unwrap();
    for place in ["local", "second"] {
        std::fs::write(d.path(place), "a file").unwrap();
    }
    let ran = d.run(&["backup"]);
    assert!(![0, 10].contains(&ran.code), "{ran:#?}");
    expect(&ran, ran.code, &["no restore point was made", "local: ", "second: "]);
}

#[test]
fn a_second_run_is_refused_while_the_first_holds() {
    let d = Fake::new("");
    d.behave(HALF_THEN_HOLD);
    let (child, tool) = d.run_until_held(&["backup"]);
    let ran = d.run(&["backup"]);
    let holder = format!("error: service \"db\" is locked by pid {} since 20", child.id());
    expect(&ran, 75, &[&holder, "hint: wait for it to end, or stop that process; its lock goes with it."]);
    assert!(alive(tool), "the first run goes on");
    kill(nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(ended(child).code, 143);
    d.behave(WHOLE);
    d.run(&["backup"]).ok();
}
