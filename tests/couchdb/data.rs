//! Data directories of real nodes, and captures of them in memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use backstay::config::{CouchdbConfig, Service};
use backstay::error::Result;
use backstay::monitor::Monitor;
use backstay::source::couchdb::Couchdb;
use backstay::source::{Captured, Context, PointReader, Source, Verified};
use serde_json::Value;

use crate::common::memory::{Memory, context};

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/couchdb/data");

/// A range of most databases, with the suffix that they have.
pub(crate) const LOW: &str = "shards/00000000-7fffffff";

/// The data directory of the 3.4.3 node, below `dir`.
pub(crate) fn unpack(dir: &Path) -> PathBuf {
    let packed = fs::File::open(format!("{FILES}/couchdb-3.4.3.tar.zst")).unwrap();
    tar::Archive::new(zstd::stream::read::Decoder::new(packed).unwrap()).unpack(dir).unwrap();
    dir.join("data")
}

/// The same with the maps of a cluster: `copies` or `split`.
pub(super) fn unpack_cluster(dir: &Path, which: &str) -> PathBuf {
    let data = unpack(dir);
    let packed = fs::File::open(format!("{FILES}/dbs-3.4.3.tar.zst")).unwrap();
    tar::Archive::new(zstd::stream::read::Decoder::new(packed).unwrap()).unpack(dir).unwrap();
    fs::rename(dir.join(format!("{which}.couch")), data.join("_dbs.couch")).unwrap();
    data
}

/// What the node said of each shard.
pub(super) fn truth() -> BTreeMap<String, Value> {
    serde_json::from_str(&fs::read_to_string(format!("{FILES}/couchdb-3.4.3.json")).unwrap()).unwrap()
}

/// The path of a shard, whatever its suffix.
pub(crate) fn shard(range: &str, db: &str) -> String {
    let found = truth().into_keys().find(|path| {
        let rest = path.strip_prefix(range).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
        rest.strip_prefix(db).is_some_and(|rest| rest.starts_with('.'))
    });
    found.unwrap_or_else(|| panic!("no shard of {db} in {range}"))
}

/// The settings of a service whose data lies there.
pub(super) fn config(data_dir: &Path, more: &str) -> CouchdbConfig {
    let text = format!(r#"{{"couchdb": {{"data_dir": {:?}{more}}}}}"#, data_dir.display().to_string());
    serde_json::from_str::<Service>(&text).unwrap().couchdb.unwrap()
}

/// Remembers what a person is told.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Vec<String>>);

impl Monitor for Told {
    fn start(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: &str, _: u64) {}
    fn end(&self, _: &str) {}
    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

/// A data directory and what was captured of it.
pub(super) struct Taken {
    pub(super) source: Couchdb,
    pub(super) cx: Context,
    pub(super) sink: Memory,
    pub(super) captured: Captured,
    told: Arc<Told>,
}

impl Taken {
    pub(super) async fn of(source: Couchdb, work: &Path) -> Result<Self> {
        let told = Arc::new(Told::default());
        let mut cx = context("couchdb", work);
        cx.monitor = told.clone();
        let sink = Memory::default();
        source.probe(&cx).await?;
        let captured = source.backup(&cx, &sink).await?;
        Ok(Self { source, cx, sink, captured, told })
    }
    pub(super) fn point(&self) -> PointReader {
        self.sink.point(&self.source, &self.captured)
    }
    pub(super) fn told(&self) -> Vec<String> {
        self.told.0.lock().unwrap().clone()
    }
    pub(super) async fn verify(&self) -> Verified {
        self.source.verify(&self.cx, &self.point()).await.unwrap()
    }
    /// The lines of the inventory, without its header.
    pub(super) fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.sink.bytes("inventory.jsonl")).unwrap();
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    }
    pub(super) fn line(&self, key: &str, value: &str) -> Value {
        self.lines().into_iter().find(|l| l[key] == value).unwrap_or_else(|| panic!("no line with {key} {value}"))
    }
    /// Paths in the archive, in their order.
    pub(super) fn members(&self) -> Vec<String> {
        let bytes = self.sink.bytes("data.tar");
        let mut archive = tar::Archive::new(bytes.as_slice());
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect()
    }
}
