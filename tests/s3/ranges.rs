//! Long objects are read in several ranges at once: the same bytes in the same order, of one object, in bounded memory.

use std::time::Duration;

use backstay::destination::s3::S3;
use backstay::destination::{Destination, Location, PutMode};
use backstay::error::ErrorKind;
use bytes::Bytes;
use futures_util::StreamExt;

use super::contract::{get, put, sample};
use super::real::{PART, config, keys, open};
use crate::common::rgw;
use crate::common::s3_fault::{ACCESS, Fault, FaultServer, SECRET};

/// Ranges of a [`PART`] each.
fn reader(server: &FaultServer, at_once: u32) -> S3 {
    let mut config = config(server.endpoint(), server.bucket());
    config.download_concurrency = at_once;
    open(&config, keys(ACCESS, SECRET))
}

#[tokio::test]
async fn an_object_has_as_many_requests_as_ranges() {
    let server = FaultServer::start();
    for (len, requests) in [(0, 2), (1, 1), (PART, 1), (PART + 1, 2), (3 * PART + 9, 4)] {
        let (bytes, place) = (sample(len), reader(&server, 3));
        let at = put(&place, &format!("k/{len}"), PutMode::WriteOnce, &bytes).await.expect("stored");
        let before = server.count("GetObject");
        assert!(get(&place, &at).await.expect("read") == bytes, "{len}");
        assert_eq!(server.count("GetObject") - before, requests, "{len}: an empty object has no ranges");
        assert!(get(&reader(&server, 1), &at).await.expect("read") == bytes, "{len}");
        assert_eq!(server.count("GetObject") - before, requests + 1, "{len}: in one request");
    }
}

#[tokio::test]
async fn a_real_store_gives_ranges_of_the_newest_and_of_a_version() {
    for (bucket, versioned) in [("ranges", false), ("ranges-versioned", true)] {
        rgw::make_bucket(bucket, versioned).await;
        let mut config = config(rgw::endpoint(), bucket);
        config.download_concurrency = 2;
        let place = open(&config, keys(rgw::ACCESS, rgw::SECRET));
        let mode = if versioned { PutMode::Versioned } else { PutMode::WriteOnce };
        for len in [0, 9, 4 * PART + 9] {
            let (key, bytes) = (format!("k/{len}"), sample(len));
            let at = put(&place, &key, mode, &bytes).await.expect("stored");
            assert_eq!(at.version.is_some(), versioned);
            assert!(get(&place, &at).await.expect("read") == bytes, "{len}");
            assert!(get(&place, &Location::newest(key)).await.expect("read") == bytes, "{len}");
        }
        let (at, new) = (Location::newest(format!("k/{}", 4 * PART + 9)), sample(4 * PART + 10));
        let mut stream = place.get(&at).await.expect("opened");
        stream.next().await.expect("a range").expect("read");
        put(&place, &at.key, PutMode::Replace, &new).await.expect("replaced");
        assert_replaced(stream).await;
    }
}

/// Reading on ends in the error that says so, and with it.
async fn assert_replaced(mut stream: backstay::destination::ByteStream) {
    let mut last = None;
    while let Some(chunk) = stream.next().await {
        assert!(last.is_none(), "it goes on after {last:?}");
        last = chunk.err();
    }
    let err = last.expect("it was replaced");
    assert_eq!(err.kind, ErrorKind::Corrupt, "{}", err.report());
    assert!(err.chain().contains("it was replaced while it was read"), "{}", err.report());
}

#[tokio::test]
async fn ranges_are_of_one_object() {
    for heeds in [true, false] {
        let server = FaultServer::start();
        if !heeds {
            server.ignore_if_match();
        }
        let place = reader(&server, 2);
        put(&place, "k", PutMode::Replace, &sample(6 * PART)).await.expect("stored");
        let mut stream = place.get(&Location::newest("k")).await.expect("opened");
        stream.next().await.expect("a range").expect("read");
        let other = Bytes::from(vec![7; 6 * PART]);
        put(&place, "k", PutMode::Replace, &other).await.expect("replaced");
        assert_replaced(stream).await;
    }
    let server = FaultServer::start_versioned();
    let (place, old) = (reader(&server, 2), sample(4 * PART));
    let at = put(&place, "k", PutMode::Versioned, &old).await.expect("stored");
    put(&place, "k", PutMode::Versioned, &Bytes::from(vec![7; 4 * PART])).await.expect("a newer one");
    assert!(get(&place, &at).await.expect("read") == old, "a version is not another one");
}

#[tokio::test]
async fn a_store_without_ranges_is_read_in_one_request() {
    let server = FaultServer::start();
    server.ignore_range();
    let (place, bytes) = (reader(&server, 3), sample(3 * PART));
    let at = put(&place, "k", PutMode::WriteOnce, &bytes).await.expect("stored");
    assert!(get(&place, &at).await.expect("read") == bytes);
    assert_eq!(server.count("GetObject"), 1);
}

#[tokio::test]
async fn a_range_that_fails_is_asked_for_again() {
    let server = FaultServer::start();
    let (place, bytes) = (reader(&server, 3), sample(5 * PART + 9));
    let at = put(&place, "k", PutMode::WriteOnce, &bytes).await.expect("stored");
    let again = [
        Fault::short_body("GetObject", 1000),
        Fault::short_body("GetObject", 2 << 20),
        Fault::error("GetObject", 503, "SlowDown"),
        Fault::reset("GetObject"),
    ];
    for fault in again {
        for range in 0..6 {
            server.clear_faults();
            server.set_fault(fault.clone().after(range).times(1));
            assert!(get(&place, &at).await.expect("read in the end") == bytes, "{fault:?}, range {range}");
        }
    }
}

#[tokio::test]
async fn a_range_that_stays_away_ends_the_read_and_the_others() {
    let server = FaultServer::start();
    let (place, bytes) = (reader(&server, 3), sample(12 * PART));
    let at = put(&place, "k", PutMode::WriteOnce, &bytes).await.expect("stored");
    server.set_fault(Fault::error("GetObject", 503, "SlowDown").after(4));
    let mut stream = place.get(&at).await.expect("opened");
    let mut whole = 0;
    let err = loop {
        match stream.next().await.expect("not its end") {
            Ok(chunk) => whole += chunk.len(),
            Err(err) => break err,
        }
    };
    assert_eq!((err.kind, whole), (ErrorKind::Unavailable, 4 * PART), "{}", err.report());
    assert!(stream.next().await.is_none(), "nothing comes after an error");
    let tried = server.count("GetObject");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.count("GetObject"), tried, "what is on its way is given up");
}

#[tokio::test]
async fn no_more_ranges_are_asked_for_than_may_wait() {
    let server = FaultServer::start();
    let (place, bytes) = (reader(&server, 3), sample(12 * PART));
    let at = put(&place, "k", PutMode::WriteOnce, &bytes).await.expect("stored");
    let mut stream = place.get(&at).await.expect("opened");
    for taken in 1..=4 {
        assert_eq!(stream.next().await.expect("a range").expect("read").len(), PART);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(server.count("GetObject"), taken + 2, "nobody took more than {taken}");
    }
}
