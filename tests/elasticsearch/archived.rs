//! A repository's directory as a part of the point: with nothing but the bucket, its snapshots come back.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use super::fake::Fake;
use super::real::both;
use crate::common::rgw;
use crate::common::search::{Deployment, Node};

/// Runs a block of commands of the document, word for word.
#[allow(clippy::disallowed_methods, reason = "as a person would")]
fn by_hand(node: &Node, point: &Path, directory: &Path) {
    let page = include_str!("../../docs/elasticsearch.md");
    let block = page.split("## The archive of a repository").nth(1).unwrap();
    let block = block.split("```sh\n").nth(2).unwrap().split("```").next().unwrap();
    let mut command = std::process::Command::new("bash");
    command.args(["-e", "-o", "pipefail", "-c", block]).current_dir(point);
    let out = command.env("URL", &node.url).env("DIRECTORY", directory).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

fn search(name: &str) -> String {
    format!(
        "      include: ['{name}-*']\n      wait_for_others: 5m\n      repositories:\n        \
         {name}: {{fs: {{location: {name}}}, archive: true}}\n"
    )
}

#[test]
fn a_repository_comes_back_from_the_bucket_alone() {
    both(|node| {
        node.fill("packed-a", 60, 2);
        node.fill("packed-b", 20, 1);
        let before = [node.documents("packed-a"), node.documents("packed-b")];
        let port = node.url.rsplit(':').next().unwrap();
        let bucket = format!("search-archive-{port}");
        tokio::runtime::Runtime::new().unwrap().block_on(rgw::make_bucket(&bucket, false));
        let at = Deployment::new(&node.url, &search("packed"), "    keep: {daily: 3}\n");
        let keys = at.dir.path().join("keys");
        let text = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", rgw::ACCESS, rgw::SECRET);
        std::fs::write(&keys, text).unwrap();
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
        let offsite = format!(
            "offsite: {{s3: {{bucket: {bucket}, endpoint: '{}', credentials: {{file: {}}}}}}}",
            rgw::endpoint(),
            keys.display()
        );
        let more = "    destinations: [offsite]\n    keep: {daily: 3}\n";
        at.configure_with(&offsite, &node.url, &search("packed"), more);
        at.run(&["backup"]).ok();
        let id = at.points()[0].0.clone();
        let manifest = at.manifest(&id);
        assert_eq!(manifest["attributes"]["archived_repository"], "packed");
        assert!(manifest["counts"]["archived_files"].as_u64().unwrap() > 5, "{manifest}");
        at.run(&["check-s3"]).ok();
        at.run(&["verify", "search", "--from", "offsite", "--level", "format"]).ok();
        let kit = std::fs::read_to_string(at.dir.path().join("local").join(&id).join("RESTORE.md")).unwrap();
        assert!(kit.contains("zstd --decompress --stdout data.tar.zst | tar --extract"), "{kit}");

        // First by hand, then all but the bucket is lost.
        node.must("DELETE", "/packed-*", None);
        let unpacked = node.dir.join("repo/packed-by-hand");
        by_hand(node, &at.dir.path().join("local").join(&id), &unpacked);
        assert_eq!([node.documents("packed-a"), node.documents("packed-b")], before);
        node.must("DELETE", "/_snapshot/restored", None);
        node.must("DELETE", "/packed-*", None);
        node.must("DELETE", "/_snapshot/packed", None);
        std::fs::remove_dir_all(node.dir.join("repo/packed")).unwrap();
        std::fs::remove_dir_all(at.dir.path().join("local")).unwrap();
        let back = node.dir.join("repo/packed");
        let to = ["restore", "search", "latest", "--to", back.to_str().unwrap(), "--owner", "nobody:nogroup"];
        let said = at.run(&to).ok();
        assert!(said.contains("note: this is a repository with snapshot search_test_"), "{said}");
        at.run(&["restore", "search", "latest"]).ok();
        assert_eq!([node.documents("packed-a"), node.documents("packed-b")], before);
        let registered = node.must("GET", "/_snapshot/packed", None);
        assert_eq!(registered["packed"]["settings"]["readonly"], "true", "only a backup makes it writable");
        at.run(&["backup", "--manual"]).ok();
        node.must("DELETE", "/packed-*", None);
    });
}

#[test]
fn a_snapshot_that_is_gone_from_its_repository_lives_in_the_archive() {
    both(|node| {
        node.fill("lives-a", 10, 1);
        let at = Deployment::new(&node.url, &search("lives"), "    keep: {daily: 3}\n");
        at.run(&["backup"]).ok();
        let (id, _) = at.points().remove(0);
        let name = at.manifest(&id)["external"][0]["name"].as_str().unwrap().to_owned();
        node.must("DELETE", &format!("/_snapshot/lives/{name}"), None);
        assert_eq!(at.points()[0].1, "complete");
        at.run(&["verify", "search", "--level", "format"]).ok();
        let drilled = at.json(&["drill"]);
        let drilled = drilled.iter().find(|l| l["message_type"] == "drill").unwrap_or_else(|| panic!("{drilled:?}"));
        assert_eq!((&drilled["result"], &drilled["level"]), (&json!("proven"), &json!("stream")), "{drilled}");
        let refused = at.run(&["restore", "search", "latest", "--index", "lives-a", "--as", "again"]);
        assert_eq!(refused.code, 65, "{refused:#?}");
        assert!(refused.stderr.contains("hint: the point has an archive of the repository"), "{refused:#?}");
        let mixed = at.run(&["restore", "search", "latest", "--to", "/nowhere/x", "--index", "lives-a"]);
        assert_eq!(mixed.code, 64, "{mixed:#?}");
        node.must("DELETE", "/lives-*", None);
    });
}

#[test]
fn a_directory_that_is_not_here_makes_the_point_incomplete() {
    let fake = Fake::start();
    let plain = "      repositories: {r: {fs: {location: r}}}\n";
    let at = Deployment::new(&fake.url, plain, "    keep: {daily: 1}\n");
    at.run(&["backup"]).ok();
    let archive = "      repositories: {r: {fs: {location: r}, archive: true}}\n";
    at.configure(&fake.url, archive, "    keep: {daily: 1}\n");
    let ran = at.run(&["backup", "--cadence", "daily"]);
    assert_eq!(ran.code, 10, "{ran:#?}");
    assert!(ran.stderr.contains("the archive of repository r: could not open /nowhere/snapshots/r/snap-"), "{ran:#?}");
    assert!(ran.stderr.contains("under the path that the nodes know: mount it."), "{ran:#?}");
    assert_eq!((fake.snapshots().len(), at.points().len()), (2, 2), "nothing was pruned");
}
