//! Drills against real nodes: only they show that a repository has lost a file. Nothing of them is left, however they end.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use super::real::{blobs, both, deployment};
use crate::common::search::{Deployment, Node};

/// Copies that drills made of the indices of one test and that are there.
fn copies(node: &Node, of: &str) -> Vec<String> {
    let found = node.must("GET", "/_cluster/state/metadata?filter_path=metadata.indices.*.state", None);
    let names = found["metadata"]["indices"].as_object().into_iter().flatten().map(|(name, _)| name.clone());
    names.filter(|n| n.starts_with("backstay-drill-search_") && n.contains(of)).collect()
}

/// The record that was kept last.
fn record(at: &Deployment) -> Value {
    let records = std::fs::read_dir(at.dir.path().join("state/services/search/drills")).unwrap();
    let newest = records.map(|e| e.unwrap().path()).max().unwrap();
    serde_json::from_str(&std::fs::read_to_string(newest).unwrap()).unwrap()
}

#[test]
fn a_lost_file_is_found_by_a_drill_and_by_nothing_else() {
    both(|node| {
        node.fill("drilled-a", 20, 1);
        node.fill("drilled-b", 30, 1);
        let at = deployment(node, "drilled", "");
        at.run(&["backup"]).ok();
        // Of a service whose name begins with ours.
        node.fill("backstay-drill-search-more_0a1b2c3d_x", 1, 1);
        let said = at.run(&["drill"]).ok();
        assert!(said.contains(": proven from local in "), "{said}");
        let kept = record(&at);
        assert_eq!((&kept["result"], &kept["level"]), (&"proven".into(), &"server".into()), "{kept}");
        assert_eq!((&kept["counts"]["indices"], &kept["counts"]["documents"]), (&2.into(), &50.into()), "{kept}");
        assert_eq!(copies(node, "drilled"), [""; 0]);
        node.must("DELETE", "/backstay-drill-search-more_0a1b2c3d_x", None);

        let before = node.documents("drilled-b");
        let all = blobs(&node.dir.join("repo/drilled-a"));
        // The largest belongs to the index with more documents.
        let lost = all.iter().max_by_key(|b| b.metadata().unwrap().len()).unwrap();
        std::fs::rename(lost, lost.with_extension("gone")).unwrap();
        at.run(&["verify", "search", "--level", "format"]).ok();
        let ran = at.run(&["drill"]);
        assert_eq!(ran.code, 65, "{ran:#?}");
        let found = "repository drilled-a: 1 of 2 indices could not be restored whole: drilled-b: ";
        assert!(ran.stderr.contains(found), "{ran:#?}");
        assert!(ran.stderr.contains("_drilled-b: shard 0: NoSuchFileException["), "{ran:#?}");
        assert!(!ran.stderr.contains("repository drilled-b:"), "the other one has all: {ran:#?}");
        assert_eq!(record(&at)["result"], "damaged");
        assert_eq!((copies(node, "drilled"), node.documents("drilled-b")), (Vec::new(), before));
        std::fs::rename(lost.with_extension("gone"), lost).unwrap();
        node.must("DELETE", "/drilled-*", None);
    });
}

#[test]
fn a_repository_that_cannot_be_read_is_not_damage() {
    both(|node| {
        node.fill("unread-a", 20, 1);
        let at = deployment(node, "unread", "");
        at.run(&["backup"]).ok();
        let allow = |mode| {
            let path = node.dir.join("repo/unread-b");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        allow(0o000);
        let ran = at.run(&["drill"]);
        allow(0o755);
        assert_eq!(ran.code, 69, "{ran:#?}");
        let text = "everything came back from unread-a, and the rest could not be tried";
        assert!(ran.stderr.contains(text), "{ran:#?}");
        assert!(ran.stderr.contains("repository unread-b: "), "{ran:#?}");
        assert_eq!((record(&at)["result"].as_str(), copies(node, "unread")), (Some("failed"), Vec::new()));

        // Retention may have removed one of the two.
        let manifest = at.manifest(&at.points()[0].0);
        let name = manifest["external"][1]["name"].as_str().unwrap();
        node.must("DELETE", &format!("/_snapshot/unread-b/{name}"), None);
        at.run(&["drill"]).ok();
        assert_eq!(record(&at)["notes"][0], "1 of 2 snapshots are gone");
        node.must("DELETE", "/unread-*", None);
    });
}
