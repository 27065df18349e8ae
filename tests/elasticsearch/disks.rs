//! Repositories on real disks that are full or may not be written: nothing is called whole, and what was good stays.

#![allow(clippy::disallowed_methods, reason = "disks are changed as administrators change them")]

use std::process::Command;

use serde_json::json;

use super::real::both;
use crate::common::search::Deployment;
use crate::faults::Mount;

#[test]
fn a_full_and_a_read_only_disk_are_told_and_cost_nothing_that_was_good() {
    both(|node| {
        let disk = node.dir.join("repo/tight");
        let Some(_mount) = Mount::new(&disk, "600k,mode=777") else { return };
        let remount = |options: &str| {
            let done = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&disk).status().unwrap();
            assert!(done.success(), "{options}");
        };
        node.fill("tight-a", 10, 1);
        let search = "      include: ['tight-*']\n      wait_for_others: 5m\n      \
                      repositories: {tight: {fs: {location: tight}}}\n";
        let at = Deployment::new(&node.url, search, "    keep: {daily: 1}\n");
        at.run(&["backup"]).ok();
        let good = at.points();
        let before = node.documents("tight-a");
        let noise = |seed: u64| -> String {
            (0..60_000u64)
                .map(|n| format!("{:016x}", n.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
                .collect()
        };
        for n in 0..3u64 {
            let path = format!("/tight-noise/_doc/{n}?refresh=true");
            node.must("PUT", &path, Some(&json!({"noise": noise(n * 1_000_003)})));
        }
        let full = at.run(&["backup", "--cadence", "daily"]);
        // The cluster accepts it, and says nothing more of it.
        assert_eq!(full.code, 69, "{full:#?}");
        assert!(full.stderr.contains("was accepted, and then it was gone"), "{full:#?}");
        assert!(full.stderr.contains("the log of the elected master node has the reason: a full"), "{full:#?}");
        assert_eq!(at.points(), good, "nothing was made, and nothing pruned");

        remount("ro");
        let ran = at.run(&["backup", "--cadence", "daily"]);
        assert_eq!(ran.code, 69, "{ran:#?}");
        assert!(ran.stderr.contains("the cluster could not use repository \"tight\""), "{ran:#?}");
        assert!(ran.stderr.contains("Read-only file system"), "{ran:#?}");
        assert!(ran.stderr.contains("hint: let the nodes' user write there, on every node."), "{ran:#?}");
        assert_eq!(at.points(), good);
        node.must("DELETE", "/tight-a", None);
        at.run(&["restore", "search", "latest"]).ok();
        assert_eq!(node.documents("tight-a"), before, "what may not be written can be read");

        remount("rw,size=20m");
        at.run(&["backup", "--cadence", "daily"]).ok();
        assert_eq!(node.snapshots("tight").len(), 1, "what failed is gone, and the old one superseded");
        node.must("DELETE", "/_snapshot/tight", None);
        node.must("DELETE", "/tight-*", None);
    });
}
