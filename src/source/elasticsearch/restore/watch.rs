//! Waiting for restored indices, and the truth about them: a restore call returns long before the shards are there, and
//! says 200 even when blobs are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::super::client::Client;
use crate::error::Result;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A cluster tries a shard this often (`index.allocation.max_retries`).
const TRIES: u64 = 5;
/// Some clusters give up after the first one, and say so only by doing nothing for this long.
const FAILED_FOR: Duration = Duration::from_secs(15);
/// A shard that no node takes for this long will not be taken.
const UNTAKEN_FOR: Duration = Duration::from_secs(120);

/// What the routing table says of the primary shards of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shards {
    /// All are there.
    Started,
    /// Some are on their way.
    Busy,
    /// No node has taken some.
    Untaken,
    /// Some failed, so often, for this reason.
    Failed(u64, String),
}

/// Waits until each of the indices is there or will not come; those that will not, with the reason.
pub(super) async fn settled(client: &Client, targets: &BTreeSet<String>) -> Result<BTreeMap<String, String>> {
    let mut lost = BTreeMap::new();
    let mut waiting = targets.clone();
    let mut since: BTreeMap<String, Instant> = BTreeMap::new();
    while !waiting.is_empty() {
        let path = "/_cluster/state/routing_table?filter_path=cluster_name,routing_table.indices.*.shards.*.state,\
                    routing_table.indices.*.shards.*.primary,routing_table.indices.*.shards.*.unassigned_info";
        let table = client.must_get(path, "could not look at the shards that are being restored").await?;
        for name in waiting.clone() {
            match shards(&table["routing_table"]["indices"][&name]["shards"]) {
                Shards::Started => {
                    waiting.remove(&name);
                }
                Shards::Busy => {
                    since.remove(&name);
                }
                bad => {
                    let bad_for = since.entry(name.clone()).or_insert_with(Instant::now).elapsed();
                    if let Some(why) = given_up(bad, bad_for) {
                        waiting.remove(&name);
                        lost.insert(name, why);
                    }
                }
            }
        }
        if !waiting.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(lost)
}

/// Why an index that has been in this state for so long will not come; `None` = it may still.
fn given_up(shards: Shards, bad_for: Duration) -> Option<String> {
    match shards {
        Shards::Failed(tries, why) if tries >= TRIES || bad_for > FAILED_FOR => Some(why),
        Shards::Untaken if bad_for > UNTAKEN_FOR => {
            Some("no node takes its shards (GET /_cluster/allocation/explain says why)".into())
        }
        _ => None,
    }
}

fn shards(json: &Value) -> Shards {
    let Some(all) = json.as_object().filter(|all| !all.is_empty()) else { return Shards::Untaken };
    let mut worst = Shards::Started;
    let rank = |s: &Shards| match s {
        Shards::Started => 0,
        Shards::Untaken => 1,
        Shards::Failed(..) => 2,
        Shards::Busy => 3,
    };
    for (shard, copies) in all {
        let primary = copies.as_array().into_iter().flatten().find(|c| c["primary"] == true);
        let now = primary.map_or(Shards::Untaken, |primary| one(shard, primary));
        // What failed for good counts more than what is still on its way.
        if matches!(&now, Shards::Failed(tries, _) if *tries >= TRIES) {
            return now;
        }
        if rank(&now) > rank(&worst) {
            worst = now;
        }
    }
    worst
}

fn one(shard: &str, primary: &Value) -> Shards {
    let info = &primary["unassigned_info"];
    match primary["state"].as_str() {
        Some("STARTED" | "RELOCATING") => Shards::Started,
        Some("INITIALIZING") => Shards::Busy,
        _ if info["reason"] == "ALLOCATION_FAILED" => {
            let details = info["details"].as_str().unwrap_or("no reason is given");
            // The innermost exception says what happened.
            let why = details.trim_end_matches([' ', ';']).rsplit("nested: ").next().unwrap_or(details);
            Shards::Failed(info["failed_attempts"].as_u64().unwrap_or(0), format!("shard {shard}: {why}"))
        }
        _ => Shards::Untaken,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shards_are_judged_by_their_primaries() {
        let shard = |primary: Value| json!([{"state": "UNASSIGNED", "primary": false}, primary]);
        let started = json!({"state": "STARTED", "primary": true});
        let failed = |n: u64| {
            json!({"state": "UNASSIGNED", "primary": true, "unassigned_info": {"reason": "ALLOCATION_FAILED",
                "failed_attempts": n, "details": "failed shard; nested: A[x]; nested: NoSuchFileException[/r/__1]; "}})
        };
        let busy = json!({"state": "INITIALIZING", "primary": true});
        assert_eq!(shards(&json!({"0": shard(started.clone())})), Shards::Started);
        assert_eq!(shards(&json!({"0": shard(started), "1": shard(busy.clone())})), Shards::Busy);
        assert_eq!(shards(&json!({"0": shard(failed(2)), "1": shard(busy.clone())})), Shards::Busy, "tried again");
        let lost = Shards::Failed(5, "shard 0: NoSuchFileException[/r/__1]".into());
        assert_eq!(shards(&json!({"0": shard(failed(5)), "1": shard(busy)})), lost);
        assert_eq!(shards(&Value::Null), Shards::Untaken);
        assert_eq!(given_up(Shards::Untaken, Duration::from_secs(1)), None);
        let untaken = given_up(Shards::Untaken, UNTAKEN_FOR + Duration::from_secs(1)).unwrap();
        assert!(untaken.contains("no node takes its shards (GET /_cluster/allocation/explain says why)"));
    }
}
