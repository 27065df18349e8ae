//! The artefact pipeline against real files: what goes in comes out, and what is not whole is nowhere.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backstay::artefact::{ArtefactSink as _, ArtefactSpec};
use backstay::destination::local::Local;
use backstay::destination::{Destination, PutMode};
use backstay::error::ErrorKind;
use backstay::manifest::{Algorithm, Artefact};
use backstay::monitor::Silent;
use backstay::pipeline::decode::{self, Identities};
use backstay::pipeline::encrypt::Recipients;
use backstay::pipeline::{Encoding, Leg, PointSink};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::faulty::{Fault, Faulty};

fn leg(destination: Arc<dyn Destination>) -> Arc<Leg> {
    Arc::new(Leg::new(destination, "point".into(), PutMode::WriteOnce))
}

fn local(name: &str, dir: &Path) -> Arc<dyn Destination> {
    Arc::new(Local::new(name, dir.join(name), false))
}

fn sink(legs: &[Arc<Leg>], encoding: Encoding) -> PointSink {
    PointSink::new(legs.to_vec(), encoding, Duration::from_secs(2), Arc::new(Silent), &[])
}

fn zstd() -> Encoding {
    Encoding::new(Algorithm::Zstd, None, 2, Recipients::default())
}

async fn store(sink: &PointSink, name: &str, data: &[u8], step: usize) -> backstay::error::Result<()> {
    let mut writer = sink.open(ArtefactSpec::data(name, "bin")).await?;
    for part in data.chunks(step.max(1)) {
        if writer.write_all(part).await.is_err() {
            return Err(writer.failure().await);
        }
    }
    writer.finish().await.map(drop)
}

async fn load(destination: &dyn Destination, artefact: &Artefact, keys: &Identities) -> std::io::Result<Vec<u8>> {
    let stored = destination.get(&artefact.location).await?;
    let mut out = Vec::new();
    decode::reader(stored, artefact, keys)?.read_to_end(&mut out).await?;
    Ok(out)
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                todo.push(entry.path());
            } else {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

fn noise(len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut data);
    data
}

fn key_pair(dir: &Path) -> (Recipients, Identities) {
    let identity = age::x25519::Identity::generate();
    let path = dir.join("key.txt");
    let secret = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
    std::fs::write(&path, format!("# a comment\n{secret}\n")).unwrap();
    let recipients = Recipients::load(&[identity.to_public().to_string()]).unwrap();
    (recipients, Identities::load(&path).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_goes_in_comes_out_however_it_is_cut(
        len in 0usize..3_000_000,
        step in 1usize..700_000,
        algorithm in prop_oneof![Just(Algorithm::None), Just(Algorithm::Zstd), Just(Algorithm::Gzip)],
        encrypted: bool,
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (recipients, keys) = key_pair(dir.path());
            let recipients = if encrypted { recipients } else { Recipients::default() };
            let destination = local("a", dir.path());
            let legs = [leg(Arc::clone(&destination))];
            let sink = sink(&legs, Encoding::new(algorithm, None, 2, recipients));
            let data: Vec<u8> = noise(len / 2).into_iter().chain(std::iter::repeat_n(7, len - len / 2)).collect();
            store(&sink, "data", &data, step).await.unwrap();
            let artefacts = sink.artefacts_at(&legs[0]).unwrap();
            assert_eq!(artefacts[0].plain_bytes, len as u64);
            assert_eq!(artefacts[0].blake3, blake3::hash(&data).to_hex().to_string());
            assert!(load(destination.as_ref(), &artefacts[0], &keys).await.unwrap() == data);
            if encrypted {
                let err = load(destination.as_ref(), &artefacts[0], &Identities::default()).await.unwrap_err();
                assert!(err.to_string().contains("is encrypted"), "{err}");
            }
        });
    }
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let legs = [leg(local("a", dir.path())), leg(local("b", dir.path()))];
    let sink = sink(&legs, zstd());
    let mut writer = sink.open(ArtefactSpec::data("data", "bin")).await.unwrap();
    writer.write_all(&noise(5_000_000)).await.unwrap();
    drop(writer);
    sink.drain().await;
    assert_eq!(files_below(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_destination_that_fails_is_out_and_the_other_is_whole() {
    for fault in [Fault::FailWrite("second", 1000), Fault::HangWrite("second", 1000), Fault::FailComplete("second")] {
        let dir = tempfile::tempdir().unwrap();
        let good = local("good", dir.path());
        let bad = Faulty::wrap(local("bad", dir.path()), fault.clone());
        let legs = [leg(bad), leg(Arc::clone(&good))];
        let sink = sink(&legs, zstd());
        let data = noise(20_000_000);
        store(&sink, "first", &data, 100_000).await.unwrap();
        store(&sink, "second", &data, 100_000).await.unwrap();
        store(&sink, "third", b"small", 1).await.unwrap();
        assert!(sink.artefacts_at(&legs[0]).is_none(), "{fault:?}: it must be out for the whole point");
        assert!(legs[0].failure().is_some());
        let artefacts = sink.artefacts_at(&legs[1]).unwrap();
        assert_eq!(artefacts.len(), 3);
        assert!(load(good.as_ref(), &artefacts[1], &Identities::default()).await.unwrap() == data);
        sink.drain().await;
        let left: Vec<String> = files_below(&dir.path().join("bad"));
        assert!(!left.iter().any(|f| f.contains("second.bin.zst") && !f.contains("tmp")), "{left:?}");
    }
}

#[tokio::test]
async fn one_artefact_failing_here_and_another_there_leaves_neither_whole() {
    let dir = tempfile::tempdir().unwrap();
    let a = Faulty::wrap(local("a", dir.path()), Fault::FailWrite("first", 10));
    let b = Faulty::wrap(local("b", dir.path()), Fault::FailWrite("second", 10));
    let legs = [leg(a), leg(b)];
    let sink = sink(&legs, zstd());
    store(&sink, "first", &noise(100_000), 1000).await.unwrap();
    let err = store(&sink, "second", &noise(100_000), 1000).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Unavailable);
    assert!(err.chain().contains("at any destination"), "{}", err.chain());
    assert!(legs.iter().all(|l| sink.artefacts_at(l).is_none()));
}

#[tokio::test]
async fn a_damaged_artefact_never_reaches_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let destination = local("a", dir.path());
    for algorithm in [Algorithm::None, Algorithm::Zstd, Algorithm::Gzip] {
        let legs = [Arc::new(Leg::new(Arc::clone(&destination), format!("{algorithm:?}"), PutMode::WriteOnce))];
        let sink = sink(&legs, Encoding::new(algorithm, None, 1, Recipients::default()));
        store(&sink, "data", &noise(400_000), 1000).await.unwrap();
        let artefact = sink.artefacts_at(&legs[0]).unwrap().remove(0);
        let path = dir.path().join("a").join(&artefact.location.key);
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let longer: Vec<u8> = whole.iter().copied().chain([0; 9]).collect();
        for bad in [flipped, whole[..whole.len() / 2].to_vec(), Vec::new(), longer] {
            std::fs::write(&path, bad).unwrap();
            let err = load(destination.as_ref(), &artefact, &Identities::default()).await.unwrap_err();
            let err = backstay::error::Error::from(err);
            assert_eq!(err.kind, ErrorKind::Corrupt, "{algorithm:?}: {}", err.chain());
        }
    }
}
