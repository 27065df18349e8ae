//! The indices of a cluster: which there are, which are wanted, how many documents they hold.

use std::collections::{BTreeMap, BTreeSet};

use globset::{GlobBuilder, GlobMatcher};
use serde_json::Value;

use super::client::{Client, part};
use super::restore::temporary::is_temporary;
use super::version::Version;
use crate::error::{Error, ErrorKind, Result};

/// Longest list of names in one address: servers take 4096 bytes.
const NAMES_BYTES: usize = 3000;

/// An index, as the cluster's metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    /// Its name.
    pub(super) name: String,
    /// Primary shards.
    pub(super) shards: u64,
    /// The number of the version that made it.
    pub(super) created: u64,
    /// Closed ones hold data that cannot be searched.
    pub(super) open: bool,
    /// One of the product's own.
    pub(super) system: bool,
    /// Other names of it.
    pub(super) aliases: Vec<String>,
    /// The data stream that it is part of.
    pub(super) data_stream: Option<String>,
}

/// Everything that has a name, from the cluster's metadata.
pub(super) async fn all(client: &Client) -> Result<Vec<Index>> {
    let what = "could not ask the cluster for its indices";
    let fields = ["state", "system", "aliases", "settings.index.number_of_shards", "settings.index.version.created"];
    let fields: Vec<String> = fields.iter().map(|f| format!("metadata.indices.*.{f}")).collect();
    let streams = "metadata.data_stream.data_stream.*.indices.index_name";
    let path = format!("/_cluster/state/metadata?filter_path=cluster_name,{streams},{}", fields.join(","));
    let state = client.must_get(&path, what).await?;
    if !state["cluster_name"].is_string() {
        return Err(Error::new(ErrorKind::Failed, what).caused_by("the answer is not whole"));
    }
    let streams = data_streams(&state["metadata"]);
    let metadata = state["metadata"]["indices"].as_object();
    Ok(metadata.into_iter().flatten().map(|(name, json)| index(name, json, streams.get(name))).collect())
}

fn index(name: &str, json: &Value, data_stream: Option<&String>) -> Index {
    let settings = &json["settings"]["index"];
    let number = |v: &Value| v.as_u64().or_else(|| v.as_str()?.parse().ok()).unwrap_or(0);
    let aliases = json["aliases"].as_array().into_iter().flatten();
    Index {
        name: name.to_owned(),
        shards: number(&settings["number_of_shards"]),
        created: number(&settings["version"]["created"]),
        open: json["state"] != "close",
        system: json["system"] == true,
        aliases: aliases.filter_map(|a| Some(a.as_str()?.to_owned())).collect(),
        data_stream: data_stream.cloned(),
    }
}

/// The data stream of each index that belongs to one. The metadata is asked, because not every build has the API for
/// them, and an index of a data stream that is not known as such would be taken for one of the product's own.
fn data_streams(metadata: &Value) -> BTreeMap<String, String> {
    let mut of = BTreeMap::new();
    for (name, stream) in metadata["data_stream"]["data_stream"].as_object().into_iter().flatten() {
        for index in stream["indices"].as_array().into_iter().flatten() {
            of.extend(index["index_name"].as_str().map(|i| (i.to_owned(), name.clone())));
        }
    }
    of
}

/// Patterns with `*` and `?`. Names that begin with a dot are the product's own: a pattern must begin with one, too.
#[derive(Debug)]
pub(super) struct Patterns(Vec<(bool, GlobMatcher)>);

impl Patterns {
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        let one = |p: &String| {
            let glob = GlobBuilder::new(p).build();
            let glob = glob.map_err(|e| Error::new(ErrorKind::Usage, format!("not a pattern: {p:?}")).caused_by(e))?;
            Ok((p.starts_with('.'), glob.compile_matcher()))
        };
        Ok(Self(patterns.iter().map(one).collect::<Result<_>>()?))
    }
    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|(dot, glob)| (*dot || !name.starts_with('.')) && glob.is_match(name))
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a snapshot is to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What the request names: indices, and data streams as a whole.
    pub(super) names: BTreeSet<String>,
    /// The indices that must be in it then.
    pub(super) indices: Vec<Index>,
    /// Closed indices that would be wanted, were they open.
    pub(super) closed: usize,
}

/// Chooses; pure.
pub(super) fn choose(all: &[Index], include: &Patterns, exclude: &Patterns) -> Wanted {
    let mut wanted = Wanted::default();
    for index in all {
        let name = index.data_stream.as_ref().unwrap_or(&index.name);
        let own = name.starts_with('.') || index.system;
        let chosen = if include.is_empty() { !own } else { include.matches(name) };
        if !chosen || exclude.matches(name) || is_temporary(name) {
            continue;
        }
        if !index.open {
            wanted.closed += 1;
            continue;
        }
        wanted.names.insert(name.clone());
        wanted.indices.push(index.clone());
    }
    wanted
}

/// Documents and bytes of the primary shards of one index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    /// As the index counts them: nested documents count too.
    pub(super) documents: u64,
    /// On disk.
    pub(super) bytes: u64,
}

/// Indices with a primary shard that is not there: whatever is asked of them waits in vain.
pub(super) async fn red(client: &Client) -> Result<BTreeSet<String>> {
    let path = "/_cluster/health?level=indices&filter_path=status,indices.*.status";
    let health = client.must_get(path, "could not ask for the health of the indices").await?;
    let indices = health["indices"].as_object().into_iter().flatten();
    Ok(indices.filter(|(_, json)| json["status"] == "red").map(|(name, _)| name.clone()).collect())
}

/// Makes what was written last countable; `false` when this login may not.
pub(super) async fn refresh(client: &Client, names: &BTreeSet<String>) -> Result<bool> {
    for list in lists(names) {
        match client.post(&format!("/{list}/_refresh"), None).await? {
            Ok(_) => {}
            Err(no) if matches!(no.status, 401 | 403) => return Ok(false),
            // Deleted meanwhile.
            Err(no) if no.status == 404 => {}
            Err(no) => return Err(no.into_error("could not refresh the indices to count their documents")),
        }
    }
    Ok(true)
}

/// The size of every open index.
pub(super) async fn sizes(client: &Client, version: &Version) -> Result<BTreeMap<String, Size>> {
    let hidden = if version.knows_hidden() { "&expand_wildcards=open,hidden" } else { "" };
    let path = format!("/_stats/docs,store?level=indices&filter_path=_shards,indices.*.primaries{hidden}");
    let what = "could not ask the cluster for the sizes of its indices";
    let stats = client.must_get(&path, what).await?;
    if !stats["_shards"].is_object() {
        return Err(Error::new(ErrorKind::Failed, what).caused_by("the answer is not whole"));
    }
    let size = |json: &Value| Size {
        documents: json["primaries"]["docs"]["count"].as_u64().unwrap_or(0),
        bytes: json["primaries"]["store"]["size_in_bytes"].as_u64().unwrap_or(0),
    };
    Ok(stats["indices"].as_object().into_iter().flatten().map(|(name, json)| (name.clone(), size(json))).collect())
}

/// Names joined for addresses that are not too long.
pub(super) fn lists<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut lists: Vec<String> = Vec::new();
    for name in names.into_iter().map(|n| part(n)) {
        match lists.last_mut().filter(|l| l.len() + name.len() < NAMES_BYTES) {
            Some(list) => {
                list.push(',');
                list.push_str(&name);
            }
            None => lists.push(name),
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, stream: Option<&str>) -> Index {
        Index {
            name: name.into(),
            shards: 1,
            created: 7_170_099,
            open: !name.ends_with("closed"),
            system: name == "tasks",
            aliases: Vec::new(),
            data_stream: stream.map(str::to_owned),
        }
    }

    fn patterns(list: &[&str]) -> Patterns {
        Patterns::new(&list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn own_indices_stay_out_and_data_streams_are_taken_as_a_whole() {
        let all = [
            named("a", None),
            named(".kibana", None),
            named("tasks", None),
            named("closed", None),
            named("backstay-drill-search_0a1b2c3d_a", None),
            named(".ds-logs-1", Some("logs")),
            named(".ds-logs-2", Some("logs")),
        ];
        let names = |include: &[&str], exclude: &[&str]| {
            let wanted = choose(&all, &patterns(include), &patterns(exclude));
            (wanted.names.into_iter().collect::<Vec<_>>().join(" "), wanted.indices.len(), wanted.closed)
        };
        assert_eq!(names(&[], &[]), ("a logs".into(), 3, 1));
        assert_eq!(names(&["*"], &["lo*"]), ("a tasks".into(), 2, 1));
        assert_eq!(names(&[".k*", "a"], &[]), (".kibana a".into(), 2, 0));
    }

    #[test]
    fn names_are_joined_into_addresses_that_servers_take() {
        let names: Vec<String> = (0..500).map(|n| format!("index-{n:03}")).collect();
        let lists = lists(&names);
        assert!(lists.len() > 1 && lists.iter().all(|l| l.len() <= NAMES_BYTES));
        assert_eq!(lists.iter().map(|l| l.split(',').count()).sum::<usize>(), 500);
    }
}
