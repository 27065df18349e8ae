//! What every destination does. Each check has a prefix of its own, for the place may be shared.

use std::time::Duration;

use backstay::destination::{Destination, Location, ObjectMeta, PutMode, Upload};
use backstay::error::{ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;

const MIB: usize = 1 << 20;

#[allow(clippy::disallowed_methods, reason = "the times of stores are compared with it")]
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now()
}

/// Bytes that do not repeat within a part.
pub(crate) fn sample(len: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(len);
    let mut x = 0x2545_f491_4f6c_dd1d_u64 ^ len as u64;
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let word = x.to_le_bytes();
        bytes.extend_from_slice(&word[..word.len().min(len - bytes.len())]);
    }
    bytes.freeze()
}

/// Begins an object and writes it in uneven chunks.
pub(crate) async fn send(to: &dyn Destination, key: &str, mode: PutMode, bytes: &Bytes) -> Result<Box<dyn Upload>> {
    let mut upload = to.begin(key, mode, None).await?;
    let mut rest = bytes.clone();
    let mut size = 1;
    while !rest.is_empty() {
        if let Err(err) = upload.write(rest.split_to(size.min(rest.len()))).await {
            let _ = upload.abort().await;
            return Err(err);
        }
        size = (size * 7 + 13).min(700_001);
    }
    Ok(upload)
}

/// Stores an object.
pub(crate) async fn put(to: &dyn Destination, key: &str, mode: PutMode, bytes: &Bytes) -> Result<Location> {
    send(to, key, mode, bytes).await?.complete().await
}

/// Reads an object.
pub(crate) async fn get(from: &dyn Destination, at: &Location) -> Result<Bytes> {
    let mut stream = from.get(at).await?;
    let mut all = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all.freeze())
}

/// The keys of a listing, sorted.
pub(crate) fn keys(listing: &[ObjectMeta]) -> Vec<&str> {
    let mut keys: Vec<&str> = listing.iter().map(|o| o.location.key.as_str()).collect();
    keys.sort_unstable();
    keys
}

/// All of the contract that needs no versions.
pub(crate) async fn holds(place: &dyn Destination, parts_of: usize) {
    bytes_come_back(place, parts_of).await;
    nothing_is_seen_before_it_is_whole(place, parts_of).await;
    keys_are_written_once(place, parts_of).await;
    listings(place).await;
    what_is_missing(place).await;
    unfinished_uploads_are_swept(place, parts_of).await;
    points_are_published(place).await;
}

async fn bytes_come_back(place: &dyn Destination, part: usize) {
    for len in [0, 1, 4096, part - 1, part, part + 1, 2 * part, 2 * part + MIB + 3] {
        let key = format!("bytes/{len}/data.tar.zst");
        let bytes = sample(len);
        let at = put(place, &key, PutMode::WriteOnce, &bytes).await.expect("stored");
        assert_eq!(at, Location::newest(&key));
        let seen = place.head(&at).await.expect("looked at").expect("there");
        assert_eq!((seen.bytes, seen.delete_marker, &seen.location), (len as u64, false, &at));
        let age = now() - seen.modified.expect("a time");
        assert!(age.num_seconds().abs() < 120, "{age}");
        assert!(get(place, &at).await.expect("read") == bytes, "{len} bytes differ");
        place.delete(&at).await.expect("deleted");
        assert_eq!(place.head(&at).await.expect("looked at"), None);
    }
}

async fn nothing_is_seen_before_it_is_whole(place: &dyn Destination, part: usize) {
    for len in [10, 2 * part + 1] {
        let key = format!("unseen/{len}");
        let at = Location::newest(&key);
        let upload = send(place, &key, PutMode::WriteOnce, &sample(len)).await.expect("sent");
        assert_eq!(place.head(&at).await.expect("looked at"), None);
        assert!(place.list("unseen/").await.expect("listed").is_empty());
        upload.abort().await.expect("aborted");
        assert_eq!(place.head(&at).await.expect("looked at"), None);
        let upload = send(place, &key, PutMode::WriteOnce, &sample(len)).await.expect("sent");
        drop(upload);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(place.head(&at).await.expect("looked at"), None);
        assert!(place.folders("").await.expect("listed").iter().all(|f| f != "unseen"));
        let left = place.sweep_uploads("unseen/", now() + chrono::Duration::hours(1)).await.expect("swept");
        assert_eq!(left, 0, "an upload was left");
    }
}

async fn keys_are_written_once(place: &dyn Destination, part: usize) {
    let (first, second) = (sample(100), sample(part + 5));
    let at = put(place, "once/a", PutMode::WriteOnce, &first).await.expect("stored");
    for bytes in [&sample(7), &second] {
        let err = put(place, "once/a", PutMode::WriteOnce, bytes).await.expect_err("taken");
        assert_eq!(err.kind, ErrorKind::AlreadyExists, "{}", err.report());
        assert_eq!(get(place, &at).await.expect("read"), first);
    }
    for bytes in [&second, &first] {
        put(place, "once/a", PutMode::Replace, bytes).await.expect("replaced");
        assert!(get(place, &at).await.expect("read") == *bytes);
    }
    place.delete(&at).await.expect("deleted");
}

async fn listings(place: &dyn Destination) {
    let all =
        ["list/a/x/1", "list/a/x/2", "list/a/y/1", "list/ab/1", "list/b", "list/c/%41~_-.1", "list/d", "list/e/f/g/h"];
    for key in all {
        put(place, key, PutMode::WriteOnce, &sample(key.len())).await.expect("stored");
    }
    let listing = place.list("list/").await.expect("listed");
    assert_eq!(keys(&listing), all);
    assert!(listing.iter().all(|o| o.bytes == o.location.key.len() as u64 && o.latest && !o.delete_marker));
    assert_eq!(keys(&place.list("list/a").await.expect("listed")), all[..4]);
    assert_eq!(keys(&place.list("list/a/").await.expect("listed")), all[..3]);
    assert!(place.list("list/nothing/").await.expect("listed").is_empty());
    let mut folders = place.folders("list/").await.expect("listed");
    folders.sort_unstable();
    assert_eq!(folders, ["a", "ab", "c", "e"]);
    assert_eq!(place.folders("list/a/").await.expect("listed").len(), 2);
    assert!(place.folders("list/nothing/").await.expect("listed").is_empty());
    if !place.keeps_versions().await.expect("asked") {
        let versions = place.list_versions("list/").await.expect("listed");
        assert_eq!(keys(&versions), all);
        assert!(versions.iter().all(|o| o.location.version.is_none() && o.latest), "{versions:?}");
    }
    for key in all {
        place.delete(&Location::newest(key)).await.expect("deleted");
    }
    assert!(place.list("list/").await.expect("listed").is_empty());
    assert!(place.folders("list/").await.expect("listed").is_empty());
}

async fn what_is_missing(place: &dyn Destination) {
    let at = Location::newest("missing/key");
    assert_eq!(place.head(&at).await.expect("looked at"), None);
    let err = place.get(&at).await.err().expect("nothing there");
    assert_eq!(err.kind, ErrorKind::NotFound, "{}", err.report());
    assert!(err.report().contains("missing/key"), "{}", err.report());
    place.delete(&at).await.expect("missing is success");
}

async fn unfinished_uploads_are_swept(place: &dyn Destination, part: usize) {
    let upload = send(place, "sweep/data", PutMode::WriteOnce, &sample(part + 1)).await.expect("sent");
    // As after a crash: neither aborted nor dropped.
    std::mem::forget(upload);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let hour = chrono::Duration::hours(1);
    assert_eq!(place.sweep_uploads("sweep/", now() - hour).await.expect("swept"), 0);
    assert_eq!(place.sweep_uploads("other/", now() + hour).await.expect("swept"), 0);
    assert_eq!(place.sweep_uploads("sweep/", now() + hour).await.expect("swept"), 1);
    assert_eq!(place.sweep_uploads("sweep/", now() + hour).await.expect("swept"), 0);
    assert!(place.folders("").await.expect("listed").iter().all(|f| f != "sweep"));
}

async fn points_are_published(place: &dyn Destination) {
    let staged = place.staging("host/db/point");
    put(place, &format!("{staged}/data"), PutMode::WriteOnce, &sample(9)).await.expect("stored");
    put(place, &format!("{staged}/manifest.json"), PutMode::WriteOnce, &sample(8)).await.expect("stored");
    assert_eq!(place.list(&format!("{staged}/")).await.expect("listed").len(), 2);
    place.publish(&staged, "host/db/point").await.expect("published");
    let all = ["host/db/point/data", "host/db/point/manifest.json"];
    assert_eq!(keys(&place.list("host/db/").await.expect("listed")), all);
    for key in all {
        place.delete(&Location::newest(key)).await.expect("deleted");
    }
}

/// The rest of the contract, where versions are kept.
pub(crate) async fn versions_hold(place: &dyn Destination, part: usize) {
    assert!(place.keeps_versions().await.expect("asked"));
    let key = "versions/db_daily_host/data";
    let (first, second) = (sample(part + 77), sample(50));
    let a = put(place, key, PutMode::Versioned, &first).await.expect("stored");
    let b = put(place, key, PutMode::Versioned, &second).await.expect("stored");
    assert!(a.version.is_some() && b.version.is_some() && a.version != b.version, "{a:?} {b:?}");
    assert!(get(place, &a).await.expect("read") == first);
    assert_eq!(get(place, &b).await.expect("read"), second);
    assert_eq!(get(place, &Location::newest(key)).await.expect("read"), second);
    assert_eq!(place.head(&a).await.expect("looked at").expect("there").bytes, first.len() as u64);
    let listed = place.list_versions("versions/").await.expect("listed");
    assert_eq!(listed.len(), 2);
    let latest: Vec<_> = listed.iter().filter(|o| o.latest).map(|o| &o.location).collect();
    assert_eq!(latest, [&b]);

    place.delete(&b).await.expect("deleted");
    assert!(get(place, &Location::newest(key)).await.expect("read") == first);
    place.delete(&b).await.expect("missing is success");

    place.delete(&Location::newest(key)).await.expect("hidden");
    assert_eq!(place.head(&Location::newest(key)).await.expect("looked at"), None);
    assert!(place.list("versions/").await.expect("listed").is_empty());
    let listed = place.list_versions("versions/").await.expect("listed");
    let marker = listed.iter().find(|o| o.delete_marker).expect("a delete marker");
    assert!(marker.latest && marker.bytes == 0 && listed.len() == 2, "{listed:?}");
    assert!(get(place, &a).await.expect("read") == first);
    assert_eq!(place.head(&marker.location).await.expect("looked at"), None);

    for object in &listed {
        place.delete(&object.location).await.expect("deleted");
    }
    assert!(place.list_versions("versions/").await.expect("listed").is_empty());
    let err = place.get(&a).await.err().expect("nothing there");
    assert_eq!(err.kind, ErrorKind::NotFound, "{}", err.report());
    many_versions(place).await;
}

async fn many_versions(place: &dyn Destination) {
    let mut all = Vec::new();
    for n in 0..5 {
        for key in ["many/a", "many/b"] {
            all.push(put(place, key, PutMode::Versioned, &sample(n)).await.expect("stored"));
        }
    }
    let mut listed: Vec<Location> =
        place.list_versions("many/").await.expect("listed").into_iter().map(|o| o.location).collect();
    all.sort();
    listed.sort();
    assert_eq!(listed, all);
    for at in &all {
        place.delete(at).await.expect("deleted");
    }
}
