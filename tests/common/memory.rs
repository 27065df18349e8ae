//! A sink and a point in memory: keeps the plain bytes of what was finished, and nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backstay::artefact::{ArtefactFeed, ArtefactInfo, ArtefactSink, ArtefactSpec, ArtefactWriter, Role};
use backstay::destination::Location;
use backstay::error::{Error, ErrorKind, Result};
use backstay::manifest::{Agent, Algorithm, Artefact, Limits, Manifest, State};
use backstay::monitor::Silent;
use backstay::source::{ArtefactReader, Captured, Context, OpenArtefact, PointReader, Source};
use backstay::units::{Cadence, Clock};

/// The moment at which all these tests happen.
pub(crate) fn now() -> chrono::DateTime<chrono::Utc> {
    "2026-11-20T00:03:12Z".parse().unwrap()
}

/// A context for a service of this name.
pub(crate) fn context(service: &str, workdir: &std::path::Path) -> Context {
    Context {
        service: service.into(),
        clock: Clock::new(now),
        cancel: Default::default(),
        workdir: workdir.into(),
        monitor: Arc::new(Silent),
        previous: None,
        agent_id: "agent".into(),
        point: None,
        unfinished: Vec::new(),
    }
}

type Kept = BTreeMap<String, (Role, Vec<u8>)>;

/// Collects artefacts by their plain name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    kept: Arc<Mutex<Kept>>,
}

impl Memory {
    /// Names of the artefacts that were finished.
    pub(crate) fn names(&self) -> Vec<String> {
        self.kept.lock().unwrap().keys().cloned().collect()
    }
    /// Bytes of one artefact.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.kept.lock().unwrap()[name].1.clone()
    }
    /// Changes the bytes of one artefact.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.kept.lock().unwrap().get_mut(name).unwrap().1);
    }
    /// The point made of what was captured.
    pub(crate) fn point(&self, source: &dyn Source, captured: &Captured) -> PointReader {
        let kept = self.kept.lock().unwrap();
        let artefacts = kept.iter().map(|(name, (role, bytes))| Artefact {
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
        let manifest = Manifest {
            format_version: 1,
            agent: Agent { version: "0".into(), id: "test".into() },
            id: "test".into(),
            service: "test".into(),
            kind: source.kind().into(),
            method: source.method().into(),
            environment: None,
            host: "test".into(),
            cadence: Cadence::Manual,
            started: now(),
            finished: now(),
            state: if captured.suspect.is_empty() { State::Complete } else { State::Suspect },
            suspect_reasons: captured.suspect.clone(),
            accepted: None,
            limits: Limits::default(),
            artefacts: artefacts.collect(),
            external: captured.external.clone(),
            consistency: captured.consistency,
            server_version: captured.server_version.clone(),
            position: captured.position.clone(),
            counts: captured.counts.clone(),
            attributes: captured.attributes.clone(),
            base: None,
            sums: None,
            warnings: captured.warnings.clone(),
        };
        PointReader { manifest: Arc::new(manifest), from: Arc::new(self.clone()) }
    }
}

async fn collect(spec: ArtefactSpec, mut feed: ArtefactFeed, kept: Arc<Mutex<Kept>>) {
    let mut bytes = Vec::new();
    while let Some(chunk) = feed.chunks.recv().await {
        bytes.extend_from_slice(&chunk);
    }
    let outcome = match feed.commit.await {
        Err(_) => Err(Error::new(ErrorKind::Cancelled, "abandoned")),
        Ok(()) => {
            let file_name = format!("{}.{}", spec.name, spec.ext);
            let length = bytes.len() as u64;
            kept.lock().unwrap().insert(file_name.clone(), (spec.role, bytes));
            Ok(ArtefactInfo { file_name, plain_bytes: length, stored_bytes: length })
        }
    };
    let _ = feed.done.send(outcome);
}

#[async_trait]
impl ArtefactSink for Memory {
    async fn open(&self, spec: ArtefactSpec) -> Result<ArtefactWriter> {
        let (writer, feed) = ArtefactWriter::channel(2);
        tokio::spawn(collect(spec, feed, self.kept.clone()));
        Ok(writer)
    }
}

#[async_trait]
impl OpenArtefact for Memory {
    async fn open(&self, artefact: &Artefact) -> Result<ArtefactReader> {
        Ok(Box::pin(std::io::Cursor::new(self.bytes(&artefact.name))))
    }
}
