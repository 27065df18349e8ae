//! Drills without a node: every shard of the archive is read to its last document.

use std::fs;
use std::path::Path;
use std::time::Duration;

use backstay::error::ErrorKind;
use backstay::source::couchdb::Couchdb;
use backstay::source::{DrillLevel, DrillRequest, Drilled, Source as _};

use super::data::{LOW, Taken, config, shard, truth, unpack};

/// Settings with no CouchDB at hand.
const NONE: &str = r#", "bin_dir": "/nonexistent""#;

async fn drill(taken: &Taken, dir: &Path) -> backstay::error::Result<Drilled> {
    let scratch = dir.join("scratch");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir(&scratch).unwrap();
    let request = DrillRequest { scratch, stream: false, wait: Duration::from_secs(90) };
    taken.source.drill(&taken.cx, &taken.point(), &request).await
}

/// Changes a byte of a document that lies in a shard, and nothing that a tree says.
pub(crate) fn damage_document(shard: &Path) {
    let mut bytes = fs::read(shard).unwrap();
    // A document's text begins like this, however it is packed; edits come last.
    let at = bytes.windows(6).rposition(|w| w == b"lorem ").expect("a document with text");
    bytes[at] ^= 1;
    fs::write(shard, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_document_and_attachment_of_every_shard_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, NONE)), dir.path()).await.unwrap();
    // Production is gone: a drill needs nothing of it.
    fs::rename(&data, dir.path().join("elsewhere")).unwrap();
    let drilled = drill(&taken, dir.path()).await.unwrap();
    assert_eq!(drilled.differences, [""; 0]);
    assert_eq!(drilled.level, DrillLevel::Stream);
    assert_eq!(
        drilled.notes,
        ["no node was started, because there is no CouchDB in `bin_dir`: the shards were read as CouchDB reads them"]
    );
    let sum = |key: &str| truth().values().map(|shard| shard[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(drilled.counts["documents"], sum("doc_count"));
    assert_eq!(drilled.counts["deleted_documents"], sum("del_count"));
    assert_eq!(drilled.counts["bodies"], sum("doc_count") + sum("del_count") + 1, "one document has a conflict");
    assert_eq!(drilled.counts["attachments"], 1);
    assert_eq!(drilled.counts["shards"], truth().len() as u64);
    assert_eq!(fs::read_dir(dir.path().join("scratch")).unwrap().count(), 0, "what fits into the memory is not stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_damaged_before_it_was_captured_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let path = shard(LOW, "plain");
    damage_document(&data.join(&path));
    let taken = Taken::of(Couchdb::new(config(&data, NONE)), dir.path()).await.unwrap();
    assert_eq!(taken.captured.suspect, [""; 0], "its trees are good, and its digests are those of what is stored");
    let drilled = drill(&taken, dir.path()).await.unwrap();
    let [said] = drilled.differences.as_slice() else { panic!("{:?}", drilled.differences) };
    assert!(said.starts_with(&format!("{path} is damaged: ")), "{said}");
    assert!(said.contains("the document \"doc-") && said.ends_with("its checksum does not fit"), "{said}");
    assert_eq!(taken.verify().await.problems, drilled.differences, "so does `verify --level format`");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_a_capture_of_headers_did_not_look_into_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let path = shard(LOW, "plain");
    let whole = fs::read(data.join(&path)).unwrap();
    let mut caught = 0;
    for at in (0..whole.len()).step_by(4 * 4096) {
        let mut holed = whole.clone();
        holed[at + 500..at + 1600].fill(0);
        fs::write(data.join(&path), holed).unwrap();
        let taken =
            Taken::of(Couchdb::new(config(&data, r#", "bin_dir": "/nonexistent", "check": "headers""#)), dir.path())
                .await
                .unwrap();
        let drilled = drill(&taken, dir.path()).await.unwrap();
        if taken.captured.suspect.is_empty() && !drilled.differences.is_empty() {
            assert!(drilled.differences[0].starts_with(&format!("{path} is damaged: ")), "{:?}", drilled.differences);
            caught += 1;
        }
    }
    assert!(caught >= 8, "{caught}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_not_what_was_captured_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = Taken::of(Couchdb::new(config(&unpack(dir.path()), NONE)), dir.path()).await.unwrap();
    taken.sink.change("data.tar", |tar| {
        let at = tar.windows(6).rposition(|w| w == b"lorem ").unwrap();
        tar[at] ^= 1;
    });
    let drilled = drill(&taken, dir.path()).await.unwrap();
    assert_eq!(drilled.differences.len(), 2, "{:?}", drilled.differences);
    assert!(drilled.differences[0].ends_with(" has other content than the inventory says"));
    assert!(drilled.differences[1].contains(" is damaged: "));
    taken.sink.change("data.tar", |tar| tar.truncate(tar.len() / 2));
    let said = match drill(&taken, dir.path()).await {
        Ok(drilled) => drilled.differences.join("\n"),
        Err(e) => {
            assert_eq!(e.kind, ErrorKind::Corrupt);
            e.report()
        }
    };
    assert!(said.contains("in the inventory but not in the archive") || said.contains("ends early"), "{said}");
}
