//! `restore-elasticsearch.sh` against a real nodes.

use std::path::Path;
use std::process::Command;

use super::{Ran, carried_off, commands, open_dir, plain};
use crate::common::search::{Deployment, ELASTICSEARCH, Node, OPENSEARCH, asked_for, shared};

/// A point of the node's indices `scr-*`, carried off.
fn taken(node: &Node, clean: &Path) -> (Deployment, std::path::PathBuf) {
    let search = "      include: ['scr-*']\n      wait_for_others: 5m\n      repositories:\n        scr: {fs: {location: scr}}\n";
    let at = Deployment::new(&node.url, search, "    keep: {daily: 3}\n");
    at.run(&["backup"]).ok();
    let id = at.points().remove(0).0;
    let point = carried_off(&at.dir.path().join("local").join(id), clean);
    (at, point)
}

#[test]
fn indices_come_back_by_the_kit_and_are_counted() {
    let engines = asked_for().map_or(vec![OPENSEARCH, ELASTICSEARCH], |e| vec![e]);
    engines.into_iter().filter_map(shared).for_each(|node| back_and_counted(&node));
}

fn back_and_counted(node: &Node) {
    node.fill("scr-a.2026", 50, 2);
    node.fill("scr-b", 30, 1);
    let (a, b) = (node.documents("scr-a.2026"), node.documents("scr-b"));
    let clean = open_dir();
    let (_at, point) = taken(node, clean.path());
    let text = std::fs::read_to_string(point.join("RESTORE.md")).unwrap();
    assert!(text.contains("_snapshot/$REPOSITORY") && !text.contains("{{"), "{text}");
    let kit = || plain(&point, &[("URL", &node.url)], &["bash", "-euxc", &commands(&text)]);
    let script = |more: &[&str]| -> Ran {
        let words = ["bash", "restore-elasticsearch.sh", "restore", ".", "--url", &node.url, "--yes"];
        plain(&point, &[], &[&words[..], more].concat())
    };
    let refused = kit();
    assert_eq!(refused.code, 73, "{refused:#?}");
    let why = "error: refused to restore over indices that are there: scr-a.2026, scr-b\n";
    assert!(refused.stderr.contains(why), "{refused:#?}");

    script(&["--rename-prefix", "beside-"]).ok();
    assert_eq!((node.documents("beside-scr-a.2026"), node.documents("beside-scr-b")), (a.clone(), b.clone()));

    node.fill("scr-a.2026", 60, 2);
    let newer = node.documents("scr-a.2026");
    let dry = script(&["--replace", "--index", "scr-a.2026", "--dry-run"]).ok();
    assert!(dry.contains("replaced: scr-a.2026\ndry run:  nothing was changed\n"), "{dry}");
    assert_eq!(node.documents("scr-a.2026"), newer);
    script(&["--replace", "--index", "scr-a.2026"]).ok();
    assert_eq!(node.documents("scr-a.2026"), a);
    assert_eq!(script(&["--index", "scr-c"]).code, 66);

    node.must("DELETE", "/scr-a.2026,scr-b,beside-scr-a.2026,beside-scr-b", None);
    let ran = kit();
    assert_eq!(ran.code, 0, "{text}\n{ran:#?}");
    assert!(ran.stdout.contains("compared: 80 documents in 2 indices"), "{ran:#?}");
    assert_eq!((node.documents("scr-a.2026"), node.documents("scr-b")), (a.clone(), b.clone()));
    lost(node, &script);
    assert_eq!((node.documents("scr-a.2026"), node.documents("scr-b")), (a, b));
    node.must("DELETE", "/scr-a.2026,scr-b", None);
}

/// What the repository has lost is named, and nothing that is there is touched.
fn lost(node: &Node, script: &dyn Fn(&[&str]) -> Ran) {
    let repository = node.dir.join("repo/scr");
    assert!(Command::new("find").arg(repository).args(["-name", "__*", "-delete"]).status().unwrap().success());
    let damaged = script(&["--replace"]);
    assert_eq!(damaged.code, 65, "{damaged:#?}");
    assert!(damaged.stderr.contains("error: 2 indices could not be restored whole: scr-a.2026: "), "{damaged:#?}");
    assert!(damaged.stderr.contains("NoSuchFileException"), "{damaged:#?}");
    assert!(damaged.stderr.contains("hint: nothing was replaced"), "{damaged:#?}");
    assert_eq!(node.ask("GET", "/backstay-restore-*/_count", None).1["_shards"]["total"], 0, "nothing is left");
    node.must("DELETE", "/_snapshot/scr", None);
    let gone = script(&["--rename-prefix", "beside-"]);
    assert_eq!(gone.code, 65, "{gone:#?}");
    assert!(gone.stderr.contains("error: no snapshot of the point can be used: repository scr: "), "{gone:#?}");
    assert!(gone.stderr.contains("hint: register the repository in this cluster"), "{gone:#?}");
}
