//! `restore` for people in trouble: the choices, what would happen, and in which order everything comes back.

use serde_json::Value;

use crate::drill::Blobs;

/// The database `db` is named by `wiki`: its blobs are captured after it, and restored before it.
fn two_services() -> Blobs {
    let d = Blobs::new("", "");
    let root = d.path("").display().to_string();
    let more = format!(
        "  wiki:\n    blobdir: {{path: {root}blobs}}\n    after: [blobs]\n    backup_dir: {root}wiki\n    keep: {{daily: 7}}\n"
    );
    d.configure(&more, "");
    d.run(&["backup"]).ok();
    d
}

#[test]
fn without_a_point_the_choices_are_shown_and_nothing_is_restored() {
    let d = two_services();
    d.run(&["backup", "blobs", "--manual"]).ok();
    let ids = d.ids("local");
    let ran = d.run(&["restore"]);
    assert_eq!(ran.code, 64, "{ran:#?}");
    assert!(ran.stdout.starts_with("blobs:\n  "), "{ran:#?}");
    let at = |id: &str| ran.stdout.find(id).unwrap_or_else(|| panic!("{id}: {ran:#?}"));
    assert!(at(&ids[1]) < at(&ids[0]) && at(&ids[0]) < at("wiki:"), "newest first, by service: {ran:#?}");
    assert!(ran.stdout.contains(" s old: ") && ran.stdout.contains("at local and second)"), "{ran:#?}");
    assert!(
        ran.stderr.contains("no restore point was named, so nothing was restored\nhint: see what would happen: "),
        "{ran:#?}"
    );
    let one = d.run(&["restore", "blobs", "--to", d.path("out").to_str().unwrap()]);
    assert!(one.code == 64 && !one.stdout.contains("wiki") && !d.path("out").exists(), "{one:#?}");
    let lines = d.run(&["--json", "restore", "blobs"]).stdout;
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((first["message_type"].as_str(), first["id"].as_str()), (Some("choice"), Some(ids[1].as_str())));
    let other = d.run(&["restore", "blobs", "latest", "--from", "second", "--host", "h2"]);
    assert_eq!(other.code, 66, "{other:#?}");
    assert!(other.stderr.contains("there are points of these hosts: h1; name one with --host."), "{other:#?}");
}

#[test]
fn a_plan_says_what_would_happen_and_changes_nothing() {
    let d = two_services();
    let id = d.ids("local")[0].clone();
    let plan = d.run(&["restore", "blobs", "latest", "--plan"]).ok();
    assert!(plan.contains(&format!("1. blobs: {id}, ")), "{plan}");
    assert!(plan.contains("takes a time that nobody knows: no drill has restored one yet"), "{plan}");
    assert!(plan.contains("there is data: it is moved aside and kept (--replace)"), "{plan}");
    assert!(plan.ends_with(&format!("   backstay restore blobs {id} --replace\n")), "{plan}");
    d.run(&["drill", "blobs"]).ok();
    let out = d.path("out");
    let args = ["--json", "restore", "blobs", "latest", "--from", "second", "--to", out.to_str().unwrap(), "--plan"];
    let plan: Value = serde_json::from_str(&d.run(&args).ok()).unwrap();
    assert!(plan["expected_seconds"].as_f64().unwrap() > 0.0 && plan["occupied"] == false, "{plan}");
    assert_eq!(plan["command"], format!("backstay restore blobs {id} --from second --to {}", out.display()));
    assert!(!out.exists());
    // The command of a plan does what the plan says.
    let words: Vec<&str> = plan["command"].as_str().unwrap().split(' ').skip(1).collect();
    d.run(&words).ok();
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 20);
}

#[test]
fn everything_is_planned_in_the_order_in_which_it_is_to_be_done() {
    let d = two_services();
    let plan = d.run(&["restore", "--all", "--plan"]).ok();
    let (first, second) = (plan.find("1. wiki: ").unwrap(), plan.find("2. blobs: ").unwrap());
    assert!(first < second, "{plan}");
    d.run(&["drill", "--from", "local"]).ok();
    assert!(d.run(&["restore", "--all", "--plan"]).ok().contains("in all about "), "drilled, so the time is known");
    std::fs::remove_dir_all(d.path("wiki")).unwrap();
    let ran = d.run(&["restore", "--all", "--plan"]);
    assert_eq!(ran.code, 66, "{ran:#?}");
    assert!(ran.stdout.contains("1. wiki: CANNOT BE RESTORED: ") && ran.stdout.contains("2. blobs: "), "{ran:#?}");
    assert!(ran.stderr.contains("1 of 2 services cannot be restored from here"), "{ran:#?}");
    assert_eq!(d.run(&["restore", "--all"]).code, 64, "all at once is only a plan");
}

#[test]
fn a_failed_restore_names_the_next_command() {
    let d = two_services();
    let data = d.folder(&d.ids("second")[0]).join("data.tar.zst");
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(data, bytes).unwrap();
    let ran = d.run(&["restore", "blobs", "latest", "--from", "second", "--replace"]);
    assert_eq!(ran.code, 65, "{ran:#?}");
    assert!(ran.stderr.contains("hint: ") && ran.stderr.contains("backstay list"), "{ran:#?}");
    assert_eq!(std::fs::read_dir(d.path("blobs")).unwrap().count(), 20, "the old data is as it was");
}
