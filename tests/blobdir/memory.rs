//! A sink and an opener that keep artefacts in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backstay::artefact::{ArtefactInfo, ArtefactSink, ArtefactSpec, ArtefactWriter, Role};
use backstay::destination::Location;
use backstay::error::{Error, ErrorKind, Result};
use backstay::manifest::{Agent, Algorithm, Artefact, Limits, Manifest, State};
use backstay::monitor::Silent;
use backstay::source::{ArtefactReader, Captured, Context, OpenArtefact, PointReader};
use backstay::units::{Cadence, Clock};
use chrono::{TimeZone, Utc};
use tokio_util::sync::CancellationToken;

type Kept = Arc<Mutex<Vec<(String, Role, Vec<u8>)>>>;

/// Keeps what was finished.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    pub kept: Kept,
    /// Bytes are counted but not kept.
    pub forget: bool,
    /// The pipeline fails after this many bytes.
    pub break_after: Option<usize>,
}

#[async_trait]
impl ArtefactSink for Memory {
    async fn open(&self, spec: ArtefactSpec) -> Result<ArtefactWriter> {
        let (writer, mut feed) = ArtefactWriter::channel(4);
        let me = self.clone();
        tokio::spawn(async move {
            let (mut bytes, mut n) = (Vec::new(), 0);
            while let Some(chunk) = feed.chunks.recv().await {
                n += chunk.len();
                if me.break_after.is_some_and(|limit| n > limit) {
                    drop(feed.chunks);
                    let _ = feed.done.send(Err(Error::new(ErrorKind::NoSpace, "the bucket is full")));
                    return;
                }
                if !me.forget {
                    bytes.extend_from_slice(&chunk);
                }
            }
            let file_name = format!("{}.{}", spec.name, spec.ext);
            if feed.commit.await.is_ok() {
                me.kept.lock().unwrap().push((file_name.clone(), spec.role, bytes));
                let info = ArtefactInfo { file_name, plain_bytes: n as u64, stored_bytes: n as u64 };
                let _ = feed.done.send(Ok(info));
            }
        });
        Ok(writer)
    }
}

impl Memory {
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.kept.lock().unwrap().iter().find(|(n, ..)| n == name).map(|(.., b)| b.clone()).unwrap()
    }
    pub fn set(&self, name: &str, bytes: Vec<u8>) {
        self.kept.lock().unwrap().iter_mut().find(|(n, ..)| n == name).unwrap().2 = bytes;
    }
    /// The inventory's lines, without its header.
    pub fn lines(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.bytes("inventory.jsonl")).unwrap();
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    }
    pub fn line(&self, path: &str) -> serde_json::Value {
        self.lines().into_iter().find(|l| l["path"] == path).unwrap_or_else(|| panic!("no line for {path}"))
    }
    pub fn point(&self, captured: &Captured) -> PointReader {
        let kept = self.kept.lock().unwrap();
        let artefacts = kept.iter().map(|(name, role, bytes)| Artefact {
            name: name.clone(),
            role: *role,
            location: Location { key: name.clone(), version: None },
            plain_bytes: bytes.len() as u64,
            stored_bytes: bytes.len() as u64,
            blake3: String::new(),
            sha256: String::new(),
            compression: Algorithm::None,
            recipients: Vec::new(),
        });
        let manifest = manifest(captured.counts.clone(), artefacts.collect());
        PointReader { manifest: Arc::new(manifest), from: Arc::new(self.clone()) }
    }
}

pub fn manifest(counts: BTreeMap<String, u64>, artefacts: Vec<Artefact>) -> Manifest {
    let at = Utc.with_ymd_and_hms(2026, 11, 20, 0, 3, 12).unwrap();
    Manifest {
        format_version: 1,
        agent: Agent { version: "0".into(), id: "test".into() },
        id: "blobs_daily_2026_11_20_000312".into(),
        service: "blobs".into(),
        kind: "blobdir".into(),
        method: "files".into(),
        environment: None,
        host: "db1".into(),
        cadence: Cadence::Daily,
        started: at,
        finished: at,
        state: State::Complete,
        suspect_reasons: Vec::new(),
        accepted: None,
        limits: Limits::default(),
        artefacts,
        sums: None,
        external: Vec::new(),
        consistency: backstay::manifest::Consistency::Fuzzy,
        server_version: None,
        position: None,
        counts,
        attributes: BTreeMap::new(),
        base: None,
        warnings: Vec::new(),
    }
}

#[async_trait]
impl OpenArtefact for Memory {
    async fn open(&self, artefact: &Artefact) -> Result<ArtefactReader> {
        Ok(Box::pin(std::io::Cursor::new(self.bytes(&artefact.name))))
    }
}

pub fn context(workdir: &Path) -> Context {
    Context {
        service: "blobs".into(),
        clock: Clock::new(|| Utc.with_ymd_and_hms(2026, 11, 20, 1, 2, 3).unwrap()),
        cancel: CancellationToken::new(),
        workdir: workdir.to_path_buf(),
        monitor: Arc::new(Silent),
        previous: None,
        agent_id: "agent".into(),
        point: None,
        unfinished: Vec::new(),
    }
}
