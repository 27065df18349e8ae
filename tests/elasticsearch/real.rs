//! Against real nodes: what is captured comes back, and what cannot come back is never called whole.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::search::{Deployment, ELASTICSEARCH, Node, OPENSEARCH, asked_for, shared};

/// Two repositories, and the indices of one test only: the node is shared.
pub(super) fn deployment(node: &Node, name: &str, more: &str) -> Deployment {
    let search = format!(
        "      include: ['{name}-*']\n      wait_for_others: 5m\n      repositories:\n        \
         {name}-a: {{fs: {{location: {name}-a}}}}\n        {name}-b: {{fs: {{location: {name}-b}}}}\n"
    );
    Deployment::new(&node.url, &search, &format!("    keep: {{daily: 3}}\n{more}"))
}

pub(super) fn both(test: impl Fn(&Node)) {
    let engines = asked_for().map_or(vec![OPENSEARCH, ELASTICSEARCH], |e| vec![e]);
    for node in engines.into_iter().filter_map(shared) {
        test(&node);
    }
}

/// Every file with documents of a repository.
pub(super) fn blobs(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(blobs(&path));
        } else if entry.file_name().to_str().unwrap().starts_with("__") {
            found.push(path);
        }
    }
    found
}

/// Runs the commands of the document, word for word, in the folder of a point.
#[allow(clippy::disallowed_methods, reason = "as a person would")]
fn by_hand(node: &Node, point: &Path) -> String {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/elasticsearch.md")).unwrap();
    let block = page.split("## By hand").nth(1).unwrap().split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let mut command = std::process::Command::new("bash");
    command.args(["-e", "-o", "pipefail", "-c", block]).env("URL", &node.url).current_dir(point);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn what_is_captured_comes_back_document_by_document() {
    both(|node| {
        let names = ["whole-a", "whole-b.2026.11.21", "whole-c_d"];
        for (n, name) in names.iter().enumerate() {
            node.fill(name, 50 * (n + 1), 1 + u32::try_from(n).unwrap());
        }
        let alias = json!({"actions": [{"add": {"index": "whole-a", "alias": "whole"}}]});
        node.must("POST", "/_aliases", Some(&alias));
        let before: Vec<_> = names.iter().map(|n| node.documents(n)).collect();
        let at = deployment(node, "whole", "    destinations: [second]\n");
        let said = at.run(&["backup"]).ok();
        assert!(said.contains("repository whole-a: whole") && said.contains("repository whole-b: whole"), "{said}");
        let points = at.points();
        assert_eq!(points.len(), 1);
        assert_eq!(points[0].1, "complete");
        let manifest = at.manifest(&points[0].0);
        assert_eq!(manifest["counts"]["documents"], 300);
        assert_eq!(manifest["counts"]["shards"], 6);
        let external = manifest["external"].as_array().unwrap();
        assert_eq!(external.len(), 2);
        for (snapshot, repository) in external.iter().zip(["whole-a", "whole-b"]) {
            assert_eq!((&snapshot["repository"], &snapshot["type"]), (&json!(repository), &json!("fs")));
            assert_eq!(node.snapshots(repository), [snapshot["name"].as_str().unwrap()]);
        }
        assert!(!manifest.to_string().contains("whole-b.2026"), "names of indices are in artefacts only");
        let checked = at.run(&["check-s3"]);
        assert_eq!(checked.code, 2, "{checked:#?}");
        assert!(checked.stdout.contains("are not off-site: their snapshots lie only in whole-a (fs), whole-b (fs)"));

        node.must("DELETE", "/whole-*", None);
        let said = by_hand(node, &at.dir.path().join("local").join(&points[0].0));
        assert!(said.contains("100\ndocuments in whole-b.2026.11.21\n"), "{said}");
        for (name, documents) in names.iter().zip(&before) {
            assert_eq!(&node.documents(name), documents, "{name}, by hand");
        }
        node.must("DELETE", "/whole-*", None);
        let said = at.run(&["restore", "search", "latest"]).ok();
        assert!(said.contains("300 documents, 3 indices"), "{said}");
        for (name, documents) in names.iter().zip(&before) {
            assert_eq!(&node.documents(name), documents, "{name}");
        }
        assert_eq!(node.ask("GET", "/whole/_count", None).0, 404, "aliases come back only when they are asked for");
        node.must("DELETE", "/whole-*", None);
        at.run(&["restore", "search", "latest", "--index", "whole-a", "--aliases"]).ok();
        assert_eq!(node.must("GET", "/whole/_count", None)["count"], 50);
        at.run(&["verify", "search", "--level", "format"]).ok();
        node.must("DELETE", "/whole-*", None);
    });
}

#[test]
fn indices_that_are_there_are_replaced_only_after_the_new_ones_were_counted() {
    both(|node| {
        node.fill("swap-a", 20, 1);
        node.fill("swap-b", 30, 2);
        let at = deployment(node, "swap", "");
        at.run(&["backup"]).ok();
        let captured = node.documents("swap-a");
        node.fill("swap-a", 25, 1);
        let newer = node.documents("swap-a");

        let refused = at.run(&["restore", "search", "latest"]);
        assert_eq!(refused.code, 73, "{refused:#?}");
        let text = "refused to restore over indices that are there: swap-a, swap-b";
        assert!(refused.stderr.contains(text), "{refused:#?}");
        assert_eq!(node.documents("swap-a"), newer);

        at.run(&["restore", "search", "latest", "--index", "*", "--as", "old-*"]).ok();
        assert_eq!((node.documents("old-swap-a"), node.documents("swap-a")), (captured.clone(), newer.clone()));
        at.run(&["restore", "search", "latest", "--index", "swap-b", "--as", "other"]).ok();
        assert_eq!(node.documents("other").len(), 30);

        // A lost file shows in nothing but a restore: the last copy must be there still.
        let lost = [blobs(&node.dir.join("repo/swap-a")), blobs(&node.dir.join("repo/swap-b"))].concat();
        for blob in &lost {
            std::fs::rename(blob, blob.with_extension("gone")).unwrap();
        }
        let damaged = at.run(&["restore", "search", "latest", "--replace"]);
        assert_eq!(damaged.code, 65, "{damaged:#?}");
        assert!(damaged.stderr.contains("2 of 2 indices could not be restored whole: swap-a, swap-b"), "{damaged:#?}");
        assert!(damaged.stderr.contains("NoSuchFileException"), "{damaged:#?}");
        assert!(damaged.stderr.contains("hint: nothing was replaced"), "{damaged:#?}");
        assert_eq!(node.documents("swap-a"), newer);
        assert_eq!(node.ask("GET", "/backstay-restore-*/_count", None).1["_shards"]["total"], 0, "nothing is left");

        // One repository has lost it, the other has not.
        for blob in lost.iter().filter(|b| b.starts_with(node.dir.join("repo/swap-b"))) {
            std::fs::rename(blob.with_extension("gone"), blob).unwrap();
        }
        let said = at.run(&["restore", "search", "latest", "--replace"]).ok();
        assert!(said.contains("taken from another repository"), "{said}");
        assert_eq!(node.documents("swap-a"), captured);
        assert_eq!(node.documents("swap-b").len(), 30);
        assert_eq!(node.ask("GET", "/backstay-restore-*/_count", None).1["_shards"]["total"], 0, "nothing is left");
        node.must("DELETE", "/swap-*,old-swap-*,other", None);
    });
}

#[test]
fn retention_removes_only_what_this_service_made() {
    both(|node| {
        node.fill("keep-a", 10, 1);
        let at = deployment(node, "keep", "");
        at.run(&["backup"]).ok();
        let body = json!({"indices": "keep-a", "include_global_state": false});
        // Another's, with a name that looks like ours, and one of another installation.
        let foreign = ["search_test_daily_2020_01_01_000000", "search_test_daily_2020_01_01_000000_0a1b2c3d_0a1b2c"];
        for name in foreign {
            node.must("PUT", &format!("/_snapshot/keep-a/{name}?wait_for_completion=true"), Some(&body));
        }
        let first = at.points()[0].0.clone();
        let said = at.run(&["backup", "--cadence", "daily"]).ok();
        let old: Vec<&str> = said.lines().filter(|l| l.contains("removed")).collect();
        assert_eq!(old.len(), 3, "the record and two snapshots: {said}");
        assert!(old.iter().all(|l| l.contains(&first) && l.contains("superseded by")), "{said}");
        let points = at.points();
        assert_eq!(points.len(), 1);
        let manifest = at.manifest(&points[0].0);
        let newest = manifest["external"][0]["name"].as_str().unwrap();
        let mut left = node.snapshots("keep-a");
        left.sort();
        assert_eq!(left, [foreign[0], foreign[1], newest]);
        let dry: Vec<Value> = at.json(&["prune", "--dry-run"]);
        assert!(dry.iter().any(|d| d["destination"] == "repository keep-a" && d["reason"] == "taken by another agent"));
        node.must("DELETE", "/keep-*", None);
    });
}

#[test]
fn a_point_whose_snapshots_are_gone_is_not_whole() {
    both(|node| {
        node.fill("gone-a", 10, 1);
        let at = deployment(node, "gone", "");
        at.run(&["backup"]).ok();
        let points = at.points();
        let manifest = at.manifest(&points[0].0);
        let name = |n: usize| manifest["external"][n]["name"].as_str().unwrap().to_owned();
        node.must("DELETE", &format!("/_snapshot/gone-a/{}", name(0)), None);
        assert_eq!(at.points()[0].1, "complete", "the other repository has it");
        at.run(&["restore", "search", "latest", "--index", "gone-a", "--as", "again"]).ok();
        node.must("DELETE", &format!("/_snapshot/gone-b/{}", name(1)), None);
        assert_eq!(at.points()[0].1, "incomplete");
        let checked = at.run(&["check-s3"]);
        assert_eq!(checked.code, 2, "{checked:#?}");
        assert!(checked.stdout.contains(&format!("snapshot {} in repository gone-a (gone)", name(0))), "{checked:#?}");
        let restored = at.run(&["restore", "search", &points[0].0]);
        assert_eq!(restored.code, 65, "{restored:#?}");
        assert_eq!(at.run(&["verify", "search"]).code, 65);
        assert_eq!(at.run(&["restore", "search", "latest"]).code, 66, "latest looks for a whole one");
        node.must("DELETE", "/gone-*,again", None);
    });
}

#[test]
fn the_cluster_says_no_and_the_person_is_told_what_to_do() {
    both(|node| {
        node.fill("refuse-a", 10, 1);
        let search = |text: &str| {
            format!("      include: ['refuse-*']\n      wait_for_others: 5m\n      repositories: {{refuse: {text}}}\n")
        };
        let keep = "    keep: {daily: 3}\n";
        let at = Deployment::new(&node.url, &search("{fs: {location: /nowhere/snapshots}}"), keep);
        let told = |at: &Deployment| at.run(&["backup"]).stderr;
        let said = told(&at);
        assert!(said.contains("doesn't match any of the locations specified by path.repo"), "{said}");
        assert!(said.contains("hint: add `path.repo: [\"/nowhere/snapshots\"]` to the .yml of every node"), "{said}");
        at.configure(&node.url, &search("{s3: {bucket: b}}"), keep);
        let said = told(&at);
        // The matrix has a node with the plugin.
        if std::env::var_os("PLUGIN").is_none() {
            assert!(said.contains("repository type [s3] does not exist"), "{said}");
            assert!(said.contains("hint: install the plugin on every node"), "{said}");
        }
        at.configure(&node.url, &search("{existing: true}"), keep);
        let said = told(&at);
        assert!(said.contains("the cluster has no repository \"refuse\""), "{said}");
        at.configure(&node.url, "      include: [nothing]\n      repositories: {refuse: {fs: {location: r}}}\n", keep);
        let said = told(&at);
        assert!(said.contains("the cluster has no index to back up"), "{said}");

        // A primary shard that no node may hold.
        let lost = json!({"settings": {"index.routing.allocation.require._name": "nobody", "number_of_replicas": 0}});
        node.must("PUT", "/refuse-lost?wait_for_active_shards=0&timeout=1s", Some(&lost));
        at.configure(&node.url, &search("{fs: {location: refuse}}"), keep);
        let ran = at.run(&["backup"]);
        assert_eq!(ran.code, 69, "{ran:#?}");
        if node.is_old() {
            let text = "its state is \"FAILED\": index refuse-lost, shard";
            assert!(ran.stderr.contains(text) && ran.stderr.contains("primary shard is not allocated"), "{ran:#?}");
        } else {
            // "Indices don't have primary shards [...]", or since 8 "unassigned primary shards".
            assert!(ran.stderr.contains("primary shards") && ran.stderr.contains("refuse-lost"), "{ran:#?}");
            assert!(ran.stderr.contains("hint: GET /_cluster/allocation/explain says why"), "{ran:#?}");
        }
        assert!(at.points().is_empty() && node.snapshots("refuse").is_empty());
        node.must("DELETE", "/refuse-*", None);
    });
}

/// Directories of this name.
fn directories(dir: &Path, name: &str) -> Vec<PathBuf> {
    let below = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    below
        .flat_map(|p| {
            let mut found = directories(&p, name);
            found.extend(p.ends_with(name).then_some(p));
            found
        })
        .collect()
}

#[test]
fn one_index_made_partial_on_purpose_is_told_and_prunes_nothing() {
    both(|node| {
        node.fill("torn-a", 10, 1);
        node.fill("torn-b", 40, 2);
        let search = "      include: ['torn-*']\n      wait_for_others: 5m\n      repositories: {torn: {fs: {location: torn}}}\n";
        let at = Deployment::new(&node.url, search, "    keep: {daily: 1}\n");
        at.run(&["backup"]).ok();
        let good = at.points();
        // Only torn-b has a shard 1, and nothing new may be written for it.
        let shard = directories(&node.dir.join("repo/torn"), "1");
        assert_eq!(shard.len(), 1, "{shard:?}");
        let allow = |mode: u32| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&shard[0], mode).unwrap();
        };
        allow(0o555);
        node.fill("torn-b", 60, 2);
        let ran = at.run(&["backup", "--cadence", "daily"]);
        allow(0o755);
        assert_eq!(ran.code, 10, "{ran:#?}");
        assert!(ran.stderr.contains(" is suspect"), "{ran:#?}");
        assert!(ran.stderr.contains("is PARTIAL: 1 of 3 shards failed: index torn-b, shard 1: "), "{ran:#?}");
        assert!(ran.stderr.contains("AccessDenied"), "{ran:#?}");
        let points = at.points();
        assert_eq!((points.len(), &points[0]), (2, &good[0]), "nothing was pruned");
        assert_eq!((points[1].1.as_str(), node.snapshots("torn").len()), ("suspect", 2));

        node.must("DELETE", "/torn-*", None);
        let refused = at.run(&["restore", "search", &points[1].0]);
        assert_eq!(refused.code, 73, "{refused:#?}");
        assert!(refused.stderr.contains("index torn-b is not whole in the snapshot"), "{refused:#?}");
        assert!(refused.stderr.contains("hint: pass --allow-partial"), "{refused:#?}");
        node.ask("DELETE", "/torn-*", None);
        let said = at.run(&["restore", "search", &points[1].0, "--allow-partial"]).ok();
        assert!(said.contains("note: lost: 1 of 2 shards of index torn-b"), "{said}");
        assert_eq!(node.documents("torn-a").len(), 10);
        assert!(node.documents("torn-b").len() < 60);
        node.must("DELETE", "/torn-*", None);
        at.run(&["restore", "search", "latest"]).ok();
        assert_eq!(node.documents("torn-b").len(), 40, "latest is the last good one");
        node.must("DELETE", "/torn-*", None);
    });
}

#[test]
fn data_streams_and_settings_of_the_cluster_come_back() {
    let Some(node) = shared(asked_for().unwrap_or(OPENSEARCH)) else { return };
    let template =
        json!({"index_patterns": ["stream-*"], "data_stream": {}, "template": {"settings": {"number_of_replicas": 0}}});
    if node.ask("PUT", "/_index_template/stream", Some(&template)).0 != 200 {
        // The test builds of Elasticsearch 7 have no data streams.
        return;
    }
    for n in 0..5 {
        let line = json!({"@timestamp": "2026-11-21T00:00:00Z", "n": n});
        node.must("POST", "/stream-logs/_doc?refresh=true", Some(&line));
    }
    let setting = |value: Value| json!({"persistent": {"indices.recovery.max_bytes_per_sec": value}});
    let in_force = || node.must("GET", "/_cluster/settings?flat_settings=true", None)["persistent"].clone();
    node.must("PUT", "/_cluster/settings", Some(&setting("41mb".into())));
    let search = "      include: ['stream-*']\n      global_state: true\n      wait_for_others: 5m\n      \
                  repositories: {streams: {fs: {location: streams}}}\n";
    let at = Deployment::new(&node.url, search, "    keep: {daily: 1}\n");
    at.run(&["backup"]).ok();
    assert_eq!(at.manifest(&at.points()[0].0)["counts"]["documents"], 5);
    node.must("PUT", "/_cluster/settings", Some(&setting(Value::Null)));
    if node.ask("GET", "/_data_stream", None).0 != 200 {
        // The test builds of Elasticsearch 8 have data streams, and not the API for them.
        return;
    }
    let refused = at.run(&["restore", "search", "latest"]);
    assert_eq!(refused.code, 73, "{refused:#?}");
    assert!(refused.stderr.contains("refused to restore data stream \"stream-logs\": it exists"), "{refused:#?}");
    node.must("DELETE", "/_data_stream/stream-logs", None);
    let said = at.run(&["restore", "search", "latest"]).ok();
    assert!(said.contains("5 documents, 1 indices"), "{said}");
    let stream = node.must("GET", "/_data_stream/stream-logs", None);
    assert_eq!(stream["data_streams"][0]["name"], "stream-logs");
    assert_eq!(node.must("GET", "/stream-logs/_count", None)["count"], 5);
    assert_eq!(in_force()["indices.recovery.max_bytes_per_sec"], Value::Null, "only when it is asked for");
    node.must("DELETE", "/_data_stream/stream-logs", None);
    at.run(&["restore", "search", "latest", "--global-state"]).ok();
    assert_eq!(in_force()["indices.recovery.max_bytes_per_sec"], "41mb");
    node.must("PUT", "/_cluster/settings", Some(&setting(Value::Null)));
    node.must("DELETE", "/_data_stream/stream-logs", None);
    node.must("DELETE", "/_index_template/stream", None);
}
