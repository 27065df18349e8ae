//! Names of indices that only drills and restores use, and what a killed one left of them. The name of a service holds no
//! `_`, nor does the mark of an installation: whose such an index is cannot be mistaken.

use super::super::client::Client;
use super::super::indices::{self, Index};
use super::super::snapshot::{mark, random_hex};
use crate::error::Result;
use crate::source::Context;

const DRILL: &str = "backstay-drill-";
const RESTORE: &str = "backstay-restore-";

/// First part of the names of a service's drill indices.
pub(super) fn of_drills(cx: &Context) -> String {
    format!("{DRILL}{}_{}_", cx.service, mark(&cx.agent_id))
}

fn of_restores(cx: &Context) -> String {
    format!("{RESTORE}{}_{}_", cx.service, mark(&cx.agent_id))
}

/// First part of the names of one restore's temporary indices; the rest is the name that they are to have.
pub(super) fn of_one_restore(cx: &Context) -> Result<String> {
    Ok(format!("{}{}_", of_restores(cx), random_hex()?))
}

/// Whether an index is of this sort, whoever made it: nothing that a backup has to hold.
pub(in super::super) fn is_temporary(name: &str) -> bool {
    [DRILL, RESTORE].iter().any(|start| {
        let mut parts = name.strip_prefix(start).unwrap_or_default().splitn(3, '_');
        let service = parts.next().is_some_and(crate::units::is_name);
        let marked = parts.next().is_some_and(|m| m.len() == 8 && m.bytes().all(|b| b.is_ascii_hexdigit()));
        service && marked && parts.next().is_some_and(|rest| !rest.is_empty())
    })
}

/// What a temporary index of a restore of this service is to replace.
fn target<'n>(name: &'n str, cx: &Context) -> Option<&'n str> {
    let (random, target) = name.strip_prefix(&of_restores(cx))?.split_once('_')?;
    (random.len() == 6 && !target.is_empty()).then_some(target)
}

/// Removes the temporary indices that killed restores of this service left; nobody else may restore it meanwhile. One
/// whose target is not there, or not whole, may be the only copy: such stay, and are named.
pub(in super::super) async fn sweep(client: &Client, cx: &Context, there: &[Index]) -> Result<Vec<String>> {
    let left: Vec<(&String, &str)> = there.iter().filter_map(|i| Some((&i.name, target(&i.name, cx)?))).collect();
    if left.is_empty() {
        return Ok(Vec::new());
    }
    let red = indices::red(client).await?;
    let is_whole = |target: &str| there.iter().any(|i| i.name == target && i.open) && !red.contains(target);
    let (over, only): (Vec<_>, Vec<_>) = left.into_iter().partition(|(_, target)| is_whole(target));
    super::remove(client, over.into_iter().map(|(name, _)| name)).await?;
    Ok(only
        .into_iter()
        .map(|(name, target)| format!("{name} stays: {target:?} is not there, or not whole; reindex or remove it"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_an_index_is_cannot_be_mistaken() {
        for ours in ["backstay-drill-a_0a1b2c3d_i", "backstay-restore-a-b_0a1b2c3d_012345_.i_j"] {
            assert!(is_temporary(ours), "{ours}");
        }
        for other in
            ["backstay-drill-a-i", "backstay-drill-a_i", "backstay-drill-a_0a1b2c3d_", "drill-a_0a1b2c3d_i", "a", ""]
        {
            assert!(!is_temporary(other), "{other}");
        }
    }
}
