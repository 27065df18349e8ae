//! Damage: each is caught at capture or at verification, and named.

use std::fs;
use std::path::Path;

use backstay::error::ErrorKind;
use backstay::source::Source as _;
use backstay::source::couchdb::{Couchdb, Moment};

use crate::common::memory::Memory;

use super::data::{LOW, Taken, config, shard, truth, unpack};

/// Captures after `change`, and demands that the point is suspect and names the shard; so does a verification.
async fn caught(db: &str, change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let path = shard(LOW, db);
    change(&data.join(&path));
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    assert_eq!(taken.captured.suspect, ["1 shards are damaged or missing; the inventory names them"]);
    let told = taken.told();
    assert!(told.len() == 1 && told[0].starts_with(&format!("damaged or missing: {path} is ")), "{told:?}");
    assert_eq!(taken.captured.counts["databases"], 10, "a damaged database is not counted");
    let verified = taken.verify().await;
    assert!(verified.problems.iter().any(|p| p.starts_with(&path)), "{:?}", verified.problems);
    let line = taken.line("db", db);
    assert!(line["damage"][0].as_str().unwrap().starts_with(&path), "{line}");
    told[0].clone()
}

fn truncate(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_shard_is_caught_because_couchdb_would_open_it() {
    assert!(caught("plain", |path| truncate(path, 0)).await.ends_with("is damaged: it is empty"));
    let garbage = caught("plain", |path| fs::write(path, vec![b'x'; 20_000]).unwrap()).await;
    assert!(garbage.ends_with("is damaged: it has no valid header"), "{garbage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_shard_is_caught() {
    let told = caught("plain", |path| fs::remove_file(path).unwrap()).await;
    assert!(told.ends_with("is missing"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_in_a_tree_are_caught_although_the_header_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let path = shard(LOW, "a+b$c_d");
    let whole = fs::read(data.join(&path)).unwrap();
    let (mut caught, last) = (0, headers(&whole).pop().unwrap());
    for at in (0..last).step_by(4096) {
        let mut holed = whole.clone();
        holed[at + 500..at + 1600].fill(0);
        fs::write(data.join(&path), holed).unwrap();
        let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
        let line = taken.line("path", &path);
        assert_eq!(line["damage"].is_string(), !taken.captured.suspect.is_empty());
        if let Some(damage) = line["damage"].as_str() {
            assert!(damage.contains("tree"), "{damage}");
            assert!(taken.told()[0].starts_with(&format!("damaged or missing: {path} is damaged: ")));
            assert!(taken.verify().await.problems[0].starts_with(&path));
            caught += 1;
        }
    }
    // The rest are documents, whose checksums CouchDB checks, and nodes of older trees, which nobody reads.
    assert!(caught >= 3, "{caught}");
}

/// Where headers begin.
fn headers(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len()).step_by(4096).filter(|at| bytes[*at] == 1).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_of_a_newer_version_is_caught() {
    let told = caught("user/foo", |path| append_header(path, 9)).await;
    assert!(told.ends_with("its header has disk version 9, and this program knows 6 to 8"), "{told}");
}

/// Appends the newest header once more, with another disk version.
fn append_header(path: &Path, version: u8) {
    use md5::Digest as _;
    let mut bytes = fs::read(path).unwrap();
    let begin = (0..bytes.len()).step_by(4096).rev().find(|at| bytes[*at] == 1).unwrap();
    let len = u32::from_be_bytes(bytes[begin + 1..begin + 5].try_into().unwrap()) as usize;
    let mut term = bytes[begin + 21..begin + 5 + len].to_vec();
    // The version is the first small number of the tuple.
    let at = term.windows(2).position(|w| w == [97, 8]).unwrap() + 1;
    term[at] = version;
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes.push(1);
    bytes.extend_from_slice(&u32::try_from(term.len() + 16).unwrap().to_be_bytes());
    bytes.extend_from_slice(&md5::Md5::digest(&term));
    bytes.extend_from_slice(&term);
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_cut_at_any_block_is_damaged_or_an_older_state_that_verification_names() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let path = shard(LOW, "user/foo");
    let whole = fs::read(data.join(&path)).unwrap();
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let good = taken.sink.bytes("data.tar");
    let wanted = truth()[&path].clone();
    let (mut older, mut broken) = (0, 0);
    for len in (0..whole.len()).step_by(4096) {
        fs::write(data.join(&path), &whole[..len]).unwrap();
        let cut = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
        let line = cut.line("path", &path);
        if cut.captured.suspect.is_empty() {
            // CouchDB would go on from an older header: only who knows the newer one can tell.
            assert!(line["update_seq"].as_u64() <= wanted["update_seq"].as_u64(), "{len}: {line}");
            older += 1;
        } else {
            assert!(line["damage"].is_string(), "{len}: {line}");
            broken += 1;
        }
        // The same cut in the archive of a good point.
        taken.sink.change("data.tar", |tar| *tar = replaced(&good, &path, &whole[..len]));
        let problems = taken.verify().await.problems;
        assert!(problems.iter().any(|p| p.contains(&path)), "{len}: {problems:?}");
    }
    assert!(older > 0 && broken > 0, "{older} {broken}");
}

/// The archive with another content of one member.
fn replaced(archive: &[u8], path: &str, content: &[u8]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let entry = entry.unwrap();
        let mut header = entry.header().clone();
        let name = entry.path().unwrap().into_owned();
        if name == Path::new(path) {
            header.set_size(content.len() as u64);
            header.set_cksum();
            out.append_data(&mut header, &name, content).unwrap();
        } else {
            out.append_data(&mut header, &name, entry).unwrap();
        }
    }
    out.into_inner().unwrap()
}

/// The archive without one member.
fn without(archive: &[u8], path: &str) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let entry = entry.unwrap();
        let (mut header, name) = (entry.header().clone(), entry.path().unwrap().into_owned());
        if name != Path::new(path) {
            out.append_data(&mut header, &name, entry).unwrap();
        }
    }
    out.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_not_in_the_archive_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let path = shard(LOW, "plain");
    taken.sink.change("data.tar", |tar| *tar = without(tar, &path));
    let problems = taken.verify().await.problems;
    assert_eq!(
        problems,
        [
            format!("{path} is in the inventory but not in the archive"),
            format!("{path} is missing: CouchDB would open this part of database plain as an empty one"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_a_map_is_named_and_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let stray = format!("{LOW}/nobody.1.couch");
    fs::copy(data.join(shard(LOW, "plain")), data.join(&stray)).unwrap();
    fs::write(data.join(format!("{LOW}/newborn.1.couch")), "").unwrap();
    let mut taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    assert_eq!(
        taken.captured.suspect,
        ["1 shards with documents are in no shard map: maps may be lost; the inventory names them"]
    );
    assert_eq!(taken.told(), [format!("in no shard map: {LOW}/newborn.1.couch"), format!("in no shard map: {stray}")]);
    assert_eq!(taken.line("path", &stray)["no_map"], true);
    assert!(taken.captured.warnings.contains(&"2 shards are in no shard map; the inventory names them".to_owned()));
    assert_eq!(taken.verify().await.problems, Vec::<String>::new());
    // Once somebody has looked into it and accepted the point, it is no news.
    taken.cx.previous = Some(taken.point().manifest);
    let again = taken.source.backup(&taken.cx, &Memory::default()).await.unwrap();
    assert_eq!(again.suspect, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_that_went_back_in_time_are_noticed_by_the_shards_they_do_not_name() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let whole = fs::read(data.join("_dbs.couch")).unwrap();
    // Cut so that the very first header, that of an empty database, is the newest one.
    fs::write(data.join("_dbs.couch"), &whole[..4095]).unwrap();
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    assert_eq!(taken.captured.counts["databases"], 0);
    assert!(taken.captured.suspect[0].contains("maps may be lost"), "{:?}", taken.captured.suspect);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_maps_fail_the_backup_and_the_verification() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let good = fs::read(data.join("_dbs.couch")).unwrap();
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let archive = taken.sink.bytes("data.tar");
    let holes = headers(&good).into_iter().map(|at| {
        let mut holed = good.clone();
        let end = (at + 1600).min(holed.len());
        holed[(at + 500).min(end)..end].fill(0);
        holed
    });
    let mut caught = 0;
    for bad in [Vec::new(), good[..300].to_vec()].into_iter().chain(holes) {
        fs::write(data.join("_dbs.couch"), &bad).unwrap();
        let Err(failed) = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.map(drop) else { continue };
        assert_eq!(failed.kind, ErrorKind::Corrupt);
        assert!(failed.report().contains("_dbs.couch is damaged"), "{}", failed.report());
        taken.sink.change("data.tar", |tar| *tar = replaced(&archive, "_dbs.couch", &bad));
        let problems = taken.verify().await.problems;
        assert!(problems.iter().any(|p| p.contains("_dbs.couch is damaged")), "{problems:?}");
        caught += 1;
    }
    assert!(caught >= 4, "{caught}");
    fs::remove_file(data.join("_dbs.couch")).unwrap();
    let failed = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.map(drop).unwrap_err();
    assert_eq!(failed.kind, ErrorKind::NotFound);
    assert!(failed.report().contains("check `data_dir`"), "{}", failed.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_of_compaction_between_listing_and_opening_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let path = shard(LOW, "plain");
    let (full, wanted) = (data.join(&path), truth()[&path].clone());
    let compacted = full.with_extension("couch.compact");
    // The moment between the two renames of a swap, for as long as anybody looks.
    let source = Couchdb::new(config(&data, "")).with_hold({
        let full = full.clone();
        move |moment, _| {
            if moment == Moment::Listed {
                fs::rename(&full, &compacted)?;
            }
            Ok(())
        }
    });
    let taken = Taken::of(source, dir.path()).await.unwrap();
    assert_eq!(taken.captured.suspect, Vec::<String>::new());
    assert_eq!(taken.line("path", &path)["doc_count"], wanted["doc_count"]);
    assert!(taken.members().contains(&path));
    assert_eq!(taken.verify().await.problems, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_the_listing_missed_is_looked_for_by_its_map() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let path = shard(LOW, "plain");
    let (full, hidden) = (data.join(&path), dir.path().join("hidden"));
    let source = Couchdb::new(config(&data, "")).with_hold({
        let full = full.clone();
        move |moment, _| match moment {
            Moment::MapsRead => fs::rename(&full, &hidden),
            Moment::Listed => fs::rename(&hidden, &full),
            _ => Ok(()),
        }
    });
    let taken = Taken::of(source, dir.path()).await.unwrap();
    assert_eq!(taken.captured.suspect, Vec::<String>::new());
    assert!(taken.members().contains(&path));
}
