//! Whatever the store does: no half object, no unfinished upload, no wrong bytes, and a message that helps.

use std::time::Duration;

use backstay::config::{S3Config, Sse};
use backstay::destination::s3::S3;
use backstay::destination::{Destination, Location, PutMode};
use backstay::error::{Error, ErrorKind};
use backstay::units::Span;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};

use super::contract::{get, now, put, sample};
use super::real::{PART, config, in_memory, keys, open};
use crate::common::s3_fault::{ACCESS, Fault, FaultServer, SECRET};

fn nothing_is_left(server: &FaultServer) {
    let keys: Vec<_> = server.objects().into_iter().map(|o| o.key).collect();
    assert!(keys.is_empty(), "visible: {keys:?}");
    assert!(server.uploads().is_empty(), "unfinished: {:?}", server.uploads());
}

fn settings(server: &FaultServer) -> S3Config {
    config(server.endpoint(), server.bucket())
}

fn impatient(server: &FaultServer) -> S3 {
    let mut config = settings(server);
    config.call_timeout = Span(Duration::from_millis(200));
    config.retries = 1;
    open(&config, keys(ACCESS, SECRET))
}

fn tried_twice(server: &FaultServer) -> S3 {
    let mut config = settings(server);
    config.retries = 1;
    open(&config, keys(ACCESS, SECRET))
}

/// Stores an object of three parts, and of one, with a fault each; the errors.
async fn fails(op: &'static str, make: impl Fn(&'static str) -> Fault, mode: PutMode) -> Vec<Error> {
    let mut errors = Vec::new();
    for (op, len) in [(op, 2 * PART + 9), ("PutObject", 9)] {
        let server = FaultServer::start();
        let fault = make(op);
        // A busy machine may take long for an answer; only what never comes is not waited for.
        let place = if fault.hangs() { impatient(&server) } else { tried_twice(&server) };
        server.set_fault(fault);
        errors.push(put(&place, "h/s/p/data", mode, &sample(len)).await.expect_err("a fault"));
        nothing_is_left(&server);
    }
    errors
}

#[tokio::test]
async fn a_busy_store_is_waited_for() {
    let server = FaultServer::start();
    let place = in_memory(&server);
    for op in ["HeadObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject"] {
        server.set_fault(Fault::error(op, 503, "SlowDown").times(3));
    }
    server.set_fault(Fault::error("GetObject", 500, "InternalError").times(3));
    server.set_fault(Fault::error("ListObjectsV2", 429, "TooManyRequests").times(3));
    for len in [2 * PART + 9, 9] {
        let key = format!("k/{len}");
        let bytes = sample(len);
        let at = put(&place, &key, PutMode::WriteOnce, &bytes).await.expect("stored in the end");
        assert!(get(&place, &at).await.expect("read in the end") == bytes);
    }
    assert_eq!(place.list("k/").await.expect("listed in the end").len(), 2);
    assert!(server.uploads().is_empty(), "{:?}", server.uploads());
}

#[tokio::test]
async fn a_store_that_stays_busy_is_given_up() {
    for op in ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"] {
        for err in fails(op, |op| Fault::error(op, 503, "SlowDown"), PutMode::WriteOnce).await {
            assert_eq!(err.kind, ErrorKind::Unavailable, "{}", err.report());
            assert_eq!(err.message, "offsite: gave up after 2 tries");
            let chain = err.chain();
            assert!(chain.contains(" s3://backups/h/s/p/data: SlowDown: as told (HTTP 503)"), "{chain}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_within_a_part_is_made_anew() {
    let server = FaultServer::start();
    server.set_fault(Fault::reset("UploadPart").after(2).times(1));
    let bytes = sample(4 * PART);
    let at = put(&in_memory(&server), "k", PutMode::WriteOnce, &bytes).await.expect("stored");
    assert!(get(&in_memory(&server), &at).await.expect("read") == bytes);
    assert_eq!(server.count("UploadPart"), 5);
    for err in fails("UploadPart", Fault::reset, PutMode::WriteOnce).await {
        assert_eq!(err.kind, ErrorKind::Unavailable, "{}", err.report());
        assert!(err.chain().contains("s3://backups/h/s/p/data"), "{}", err.report());
    }
}

#[tokio::test]
async fn an_error_in_a_200_is_an_error() {
    let make = |op| Fault::error_in_200(op, "InternalError");
    let server = FaultServer::start();
    server.set_fault(make("CompleteMultipartUpload").times(2));
    put(&in_memory(&server), "k", PutMode::WriteOnce, &sample(PART + 1)).await.expect("stored in the end");
    assert_eq!(server.count("CompleteMultipartUpload"), 3);

    let server = FaultServer::start();
    server.set_fault(make("CompleteMultipartUpload"));
    let err = put(&in_memory(&server), "k", PutMode::WriteOnce, &sample(PART + 1)).await.expect_err("never stored");
    assert_eq!(err.kind, ErrorKind::Unavailable);
    let expected = "offsite: gave up after 4 tries: cannot complete the upload of s3://backups/k: InternalError: as told (HTTP 200)";
    assert_eq!(err.chain(), expected);
    nothing_is_left(&server);
}

#[tokio::test]
async fn a_lost_reply_is_settled_by_looking() {
    for mode in [PutMode::WriteOnce, PutMode::Replace] {
        for len in [2 * PART + 9, 9] {
            let server = FaultServer::start();
            server.set_fault(Fault::lost_reply("CompleteMultipartUpload"));
            server.set_fault(Fault::lost_reply("PutObject"));
            let bytes = sample(len);
            let at = put(&in_memory(&server), "k", mode, &bytes).await.expect("it was stored");
            assert!(get(&in_memory(&server), &at).await.expect("read") == bytes);
            assert_eq!(server.count("PutObject") + server.count("CompleteMultipartUpload"), 1);
            assert!(server.uploads().is_empty());
        }
    }
}

#[tokio::test]
async fn a_lost_reply_does_not_lose_the_version() {
    for len in [PART + 9, 9] {
        let server = FaultServer::start_versioned();
        let place = in_memory(&server);
        let old = put(&place, "k", PutMode::Versioned, &sample(len)).await.expect("stored");
        server.set_fault(Fault::lost_reply("CompleteMultipartUpload").times(1));
        server.set_fault(Fault::lost_reply("PutObject").times(1));
        let new = put(&place, "k", PutMode::Versioned, &sample(len)).await.expect("it was stored");
        assert!(new.version.is_some() && new.version != old.version);
        let listed = place.list_versions("k").await.expect("listed");
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert!(listed.iter().any(|o| o.location == new && o.latest));
    }
}

#[tokio::test]
async fn an_object_of_the_same_length_is_not_taken_for_ours() {
    let server = FaultServer::start();
    let place = in_memory(&server);
    put(&place, "k", PutMode::Replace, &sample(9)).await.expect("stored");
    server.set_fault(Fault::reset("PutObject"));
    let err = put(&place, "k", PutMode::Replace, &sample(9)).await.expect_err("the old one is there, not ours");
    assert_eq!(err.kind, ErrorKind::Unavailable);
    assert_eq!(server.objects()[0].bytes, sample(9));
}

#[tokio::test]
async fn an_upload_whose_start_was_lost_is_not_left() {
    let server = FaultServer::start();
    server.set_fault(Fault::lost_reply("CreateMultipartUpload").times(2));
    put(&in_memory(&server), "k", PutMode::WriteOnce, &sample(PART + 1)).await.expect("stored in the end");
    assert_eq!(server.count("CreateMultipartUpload"), 3);
    assert!(server.uploads().is_empty(), "{:?}", server.uploads());

    let server = FaultServer::start();
    server.set_fault(Fault::lost_reply("CreateMultipartUpload"));
    put(&in_memory(&server), "k", PutMode::WriteOnce, &sample(PART + 1)).await.expect_err("never started");
    nothing_is_left(&server);
}

#[tokio::test]
async fn a_store_that_hangs_is_given_up() {
    for op in ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"] {
        for err in fails(op, Fault::hang, PutMode::WriteOnce).await {
            assert_eq!(err.kind, ErrorKind::Unavailable, "{}", err.report());
            assert!(err.chain().contains("h/s/p/data: no answer within "), "{}", err.report());
        }
    }
    let server = FaultServer::start();
    server.set_fault(Fault::hang("*"));
    let err = impatient(&server).list("x/").await.expect_err("no answer");
    assert_eq!(err.chain(), "offsite: gave up after 2 tries: cannot list s3://backups/x/: no answer within 200ms");
}

#[tokio::test]
async fn a_store_that_is_down_is_unavailable() {
    let endpoint = FaultServer::start().endpoint().to_owned();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let place = open(&config(&endpoint, "backups"), keys(ACCESS, SECRET));
    let err = place.list("x/").await.expect_err("down");
    assert_eq!(err.kind, ErrorKind::Unavailable, "{}", err.report());
    assert!(err.report().contains("Connection refused"), "{}", err.report());
    assert!(err.hint.as_deref().unwrap_or_default().contains("`endpoint`"), "{}", err.report());
}

#[tokio::test]
async fn a_full_bucket_is_no_space() {
    for (status, code) in [(403, "QuotaExceeded"), (507, "InsufficientStorage"), (507, "")] {
        for op in ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"] {
            for err in fails(op, |op| Fault::error(op, status, code), PutMode::WriteOnce).await {
                assert_eq!(err.kind, ErrorKind::NoSpace, "{}", err.report());
                assert!(err.chain().contains("s3://backups/h/s/p/data") && err.chain().contains(code));
                assert_eq!(err.hint.as_deref(), Some("raise the quota of the bucket, keep fewer points, or prune."));
            }
        }
    }
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let server = FaultServer::start();
    server.set_fault(Fault::error("*", 403, "AccessDenied"));
    let place = in_memory(&server);
    let at = Location::newest("k");
    let version = Location { key: "k".into(), version: Some("v".into()) };
    for (err, right) in [
        (place.list("p/").await.map(drop).expect_err("denied"), "s3:ListBucket on backups/p/."),
        (place.folders("p/").await.map(drop).expect_err("denied"), "s3:ListBucket on backups/p/."),
        (place.list_versions("p/").await.map(drop).expect_err("denied"), "s3:ListBucketVersions on backups/p/."),
        (place.get(&at).await.map(drop).expect_err("denied"), "s3:GetObject on backups/k."),
        (place.get(&version).await.map(drop).expect_err("denied"), "s3:GetObjectVersion on backups/k."),
        (place.delete(&at).await.expect_err("denied"), "s3:DeleteObject on backups/k."),
        (place.delete(&version).await.expect_err("denied"), "s3:DeleteObjectVersion on backups/k."),
        (place.keeps_versions().await.map(drop).expect_err("denied"), "s3:GetBucketVersioning on backups."),
        (
            place.sweep_uploads("p/", now()).await.map(drop).expect_err("denied"),
            "s3:ListBucketMultipartUploads on backups/p/.",
        ),
        (
            put(&place, "k", PutMode::WriteOnce, &sample(9)).await.map(drop).expect_err("denied"),
            "s3:PutObject on backups/k.",
        ),
        (
            place.head(&at).await.map(drop).expect_err("403 is not \"missing\""),
            "s3:GetObject, and s3:ListBucket to tell what is missing, on backups/k.",
        ),
    ] {
        assert_eq!(err.kind, ErrorKind::Denied, "{}", err.report());
        assert_eq!(err.hint, Some(format!("allow {right}")));
    }
    assert_eq!(server.count("ListObjectsV2"), 2, "a refusal is not tried again");
}

#[tokio::test]
async fn a_user_that_can_only_write_writes() {
    let server = FaultServer::start();
    for op in ["HeadObject", "GetObject", "ListObjectsV2", "GetBucketVersioning", "HeadBucket", "DeleteObject"] {
        server.set_fault(Fault::error(op, 403, "AccessDenied"));
    }
    let place = in_memory(&server);
    for (key, len) in [("small", 9), ("large", PART + 1)] {
        put(&place, key, PutMode::WriteOnce, &sample(len)).await.expect("stored");
        let err = put(&place, key, PutMode::WriteOnce, &sample(len)).await.expect_err("taken");
        assert_eq!(err.kind, ErrorKind::AlreadyExists, "{}", err.report());
    }
    assert_eq!(server.objects().len(), 2);
    assert!(server.uploads().is_empty());
}

#[tokio::test]
async fn a_store_without_conditional_writes_is_served() {
    let server = FaultServer::start();
    let place = in_memory(&server);
    server.set_fault(Fault::error("PutObject", 501, "NotImplemented").times(1));
    put(&place, "k", PutMode::WriteOnce, &sample(9)).await.expect("stored");
    assert_eq!(server.count("PutObject"), 2);
    put(&place, "l", PutMode::WriteOnce, &sample(9)).await.expect("stored");
    assert_eq!(server.count("PutObject"), 3, "the header is not sent again");
    let err = put(&place, "k", PutMode::WriteOnce, &sample(9)).await.expect_err("taken");
    assert_eq!(err.kind, ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn a_bucket_without_versions_is_said_before_anything_is_lost() {
    let hint = "turn the versioning of bucket \"backups\" on, or use `key_style: timestamped`.";
    let server = FaultServer::start();
    let place = in_memory(&server);
    put(&place, "k", PutMode::Replace, &sample(9)).await.expect("stored");
    let err = put(&place, "k", PutMode::Versioned, &sample(8)).await.expect_err("no versions");
    assert_eq!((err.kind, err.hint.as_deref()), (ErrorKind::Config, Some(hint)));
    assert_eq!(server.objects()[0].bytes, sample(9), "the old object was touched");

    for len in [9, PART + 9] {
        let server = FaultServer::start_versioned();
        server.set_fault(Fault::no_version_id("PutObject"));
        server.set_fault(Fault::no_version_id("CompleteMultipartUpload"));
        let err = put(&in_memory(&server), "k", PutMode::Versioned, &sample(len)).await.expect_err("no version id");
        assert_eq!((err.kind, err.hint.as_deref()), (ErrorKind::Config, Some(hint)));
        assert_eq!(
            err.message,
            "cannot write s3://backups/k: the bucket keeps no versions, but `key_style: versioned` needs them"
        );
        nothing_is_left(&server);
    }
}

#[tokio::test]
async fn a_wrong_clock_is_said() {
    let server = FaultServer::start();
    server.set_fault(Fault::error("*", 403, "RequestTimeTooSkewed"));
    let err = in_memory(&server).list("p/").await.expect_err("skewed");
    assert_eq!(err.kind, ErrorKind::Config);
    assert_eq!(
        err.report(),
        "error: cannot list s3://backups/p/\n  caused by: RequestTimeTooSkewed: as told (HTTP 403)\n\
         hint: the clock of this host and the store's differ by more than 15 minutes: set the clock."
    );
}

#[tokio::test]
async fn a_read_that_breaks_off_is_resumed() {
    let server = FaultServer::start_versioned();
    let place = in_memory(&server);
    let bytes = sample(PART);
    let at = put(&place, "k", PutMode::Versioned, &bytes).await.expect("stored");
    for at in [&at, &Location::newest("k")] {
        server.clear_faults();
        server.set_fault(Fault::short_body("GetObject", 1000).times(1));
        server.set_fault(Fault::short_body("GetObject", 2 << 20).times(1));
        server.set_fault(Fault::error("GetObject", 503, "SlowDown").times(1));
        server.set_fault(Fault::reset("GetObject").times(1));
        assert!(get(&place, at).await.expect("read in the end") == bytes);
    }
    server.clear_faults();
    server.set_fault(Fault::short_body("GetObject", 10).after(1));
    server.set_fault(Fault::short_body("GetObject", 1000).times(1));
    let before = server.count("GetObject");
    let err = get(&place, &at).await.expect_err("never whole");
    assert_eq!(err.kind, ErrorKind::Unavailable, "{}", err.report());
    assert!(err.message.starts_with("cannot read s3://backups/k: it ended after 1030 of "), "{}", err.message);
    assert_eq!(server.count("GetObject") - before, 4);
}

#[tokio::test]
async fn a_read_never_mixes_two_objects() {
    use futures_util::StreamExt;
    for server in [FaultServer::start(), FaultServer::start_versioned()] {
        let place = in_memory(&server);
        let (old, new) = (sample(9000), bytes::Bytes::from(vec![7; 9000]));
        put(&place, "k", PutMode::Replace, &old).await.expect("stored");
        server.set_fault(Fault::short_body("GetObject", 1000).times(1));
        let mut stream = place.get(&Location::newest("k")).await.expect("opened");
        let first = stream.next().await.expect("a chunk").expect("read");
        put(&place, "k", PutMode::Replace, &new).await.expect("replaced");
        let mut all = first.to_vec();
        let mut failed = None;
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) => all.extend_from_slice(&chunk),
                Err(err) => failed = Some(err),
            }
        }
        match failed {
            Some(err) => assert_eq!(err.kind, ErrorKind::Corrupt, "{}", err.report()),
            None => assert!(all == old, "two objects were mixed"),
        }
    }
}

#[tokio::test]
async fn headers_are_sent_only_when_configured() {
    let server = FaultServer::start();
    let mut config = settings(&server);
    for (n, sse) in [None, Some(Sse::Aes256), Some(Sse::Kms("key-1".into()))].into_iter().enumerate() {
        config.storage_class = sse.as_ref().map(|_| "STANDARD_IA".to_owned());
        config.sse = sse;
        let place = open(&config, keys(ACCESS, SECRET));
        put(&place, &format!("{n}/a"), PutMode::WriteOnce, &sample(9)).await.expect("stored");
        put(&place, &format!("{n}/b"), PutMode::WriteOnce, &sample(PART + 1)).await.expect("stored");
    }
    let headers: Vec<String> = server.objects().iter().map(|o| o.headers.join(" ")).collect();
    let (aes, kms) = ("STANDARD_IA AES256", "STANDARD_IA aws:kms key-1");
    assert_eq!(headers, ["", "", aes, aes, kms, kms]);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_once() {
    let server = FaultServer::start();
    let good = settings(&server);
    let bad = |change: &dyn Fn(&mut S3Config)| {
        let mut config = good.clone();
        change(&mut config);
        let err = S3::new("offsite", &config, keys(ACCESS, SECRET)).expect_err("refused");
        assert_eq!(err.kind, ErrorKind::Config, "{}", err.report());
        assert!(err.hint.is_some(), "{}", err.report());
        err.message
    };
    let message = bad(&|c| c.checksum = backstay::config::S3Checksum::Crc64nvme);
    assert_eq!(message, "offsite: `checksum: crc64nvme` leaves bodies unsigned, so it needs TLS");
    assert_eq!(bad(&|c| c.part_size.0 = 1 << 20), "offsite: `part_size` is 1.0 MiB");
    let message = bad(&|c| c.upload_memory = Some(backstay::units::Bytes(9 << 20)));
    assert_eq!(message, "offsite: `upload_memory` is 9.0 MiB, and `part_size` 5.0 MiB");
    assert_eq!(bad(&|c| c.concurrency = 0), "offsite: `concurrency` is 0");
    assert_eq!(bad(&|c| c.endpoint = Some("s3.example".into())), "offsite: the endpoint \"s3.example\" is not a URL");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    assert!(bad(&|c| c.ca_file = Some(manifest.into())).ends_with("holds no certificate in PEM form"));
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn bodies_are_signed_and_sent_plainly() {
    let server = FaultServer::start();
    let place = in_memory(&server);
    put(&place, "a", PutMode::WriteOnce, &sample(9)).await.expect("stored");
    put(&place, "b", PutMode::WriteOnce, &sample(PART + 9)).await.expect("stored");
    let guards = [server.guards("PutObject"), server.guards("UploadPart")].concat();
    assert_eq!(guards.len(), 3);
    for guard in guards {
        assert!(guard.sha256.len() == 64 && guard.crc64nvme.is_none() && !guard.chunked, "{guard:?}");
    }
}

#[tokio::test]
async fn bodies_are_guarded_by_a_checksum_where_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = FaultServer::start_tls(dir.path());
    let mut config = settings(&server);
    let unknown = open(&config, keys(ACCESS, SECRET)).list("").await.expect_err("nobody vouches for it");
    assert_eq!(unknown.kind, ErrorKind::Config, "{}", unknown.report());
    assert!(unknown.hint.as_deref().unwrap_or_default().contains("`ca_file`"), "{}", unknown.report());

    config.ca_file = Some(dir.path().join("cert.pem"));
    config.checksum = backstay::config::S3Checksum::Crc64nvme;
    let place = open(&config, keys(ACCESS, SECRET));
    for len in [9, 2 * PART + 9] {
        let at = put(&place, &len.to_string(), PutMode::WriteOnce, &sample(len)).await.expect("stored");
        assert!(get(&place, &at).await.expect("read") == sample(len));
    }
    let guards = [server.guards("PutObject"), server.guards("UploadPart")].concat();
    assert_eq!(guards.len(), 4);
    for guard in guards {
        assert!(guard.sha256 == "UNSIGNED-PAYLOAD" && guard.crc64nvme.is_some() && !guard.chunked, "{guard:?}");
    }
}

#[tokio::test]
async fn a_store_that_demands_a_digest_of_the_body_gets_it() {
    let server = FaultServer::start();
    for op in ["PutObject", "UploadPart"] {
        server.set_fault(Fault::unguarded(op));
    }
    let place = in_memory(&server);
    let long = put(&place, "long", PutMode::WriteOnce, &sample(3 * PART + 9)).await.expect("stored");
    assert!(get(&place, &long).await.expect("read") == sample(3 * PART + 9));
    let refused = server.guards("UploadPart").iter().filter(|g| g.md5.is_none()).count();
    assert!((1..=2).contains(&refused), "two parts go at once, and the store's answer is remembered: {refused}");
    put(&place, "short", PutMode::WriteOnce, &sample(9)).await.expect("stored");
    let short = server.guards("PutObject");
    assert_eq!(short.len(), 1, "{short:?}");
    let digest = short[0].md5.as_deref().expect("a digest");
    assert_eq!(BASE64_STANDARD.decode(digest).expect("base64"), Md5::digest(sample(9)).to_vec());
}

#[tokio::test]
async fn what_is_too_long_for_its_parts_is_said_before_it_is_sent() {
    let server = FaultServer::start();
    let mut config = settings(&server);
    for (fixed, hint) in [
        (true, "set a larger `part_size` for this destination: it is 5.0 MiB."),
        (false, "set a larger `part_size` (5.0 MiB now) or `upload_memory` (10.0 MiB now)."),
    ] {
        config.fixed_part_size = fixed;
        config.upload_memory = Some(backstay::units::Bytes(2 * PART as u64));
        let place = open(&config, keys(ACCESS, SECRET));
        let err = place.begin("k", PutMode::WriteOnce, Some(1 << 40)).await.expect_err("too long");
        assert_eq!(err.kind, ErrorKind::Config);
        let expected =
            "cannot write s3://backups/k: it is expected to have 1.0 TiB, and 10000 parts hold 48.8 GiB at most";
        assert_eq!((err.message.as_str(), err.hint.as_deref()), (expected, Some(hint)));
    }
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn no_more_parts_are_on_their_way_than_fit_the_memory() {
    for (memory, parts) in [(2, 2), (3, 3), (100, 3)] {
        let server = FaultServer::start();
        server.set_fault(Fault::hang("UploadPart"));
        let mut config = settings(&server);
        config.concurrency = 3;
        config.upload_memory = Some(backstay::units::Bytes(memory * PART as u64));
        config.call_timeout = Span(Duration::from_millis(500));
        config.retries = 0;
        put(&open(&config, keys(ACCESS, SECRET)), "k", PutMode::WriteOnce, &sample(8 * PART)).await.expect_err("hangs");
        assert_eq!(server.count("UploadPart"), parts, "with memory for {memory} parts");
    }
}
