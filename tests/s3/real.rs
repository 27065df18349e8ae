//! The contract against object stores: one in memory, and Ceph's.

use backstay::config::S3Config;
use backstay::destination::retry::RetryPolicy;
use backstay::destination::s3::{CredentialSource, S3};
use backstay::destination::{Destination, Location, PutMode};
use backstay::error::ErrorKind;
use std::time::Duration;

use super::contract::{self, put, sample};
use crate::common::rgw;
use crate::common::s3_fault::{self, FaultServer};

/// The smallest parts that S3 takes.
pub(crate) const PART: usize = 5 << 20;

pub(crate) fn keys(access: &str, secret: &str) -> CredentialSource {
    CredentialSource::Static { access: access.into(), secret: secret.into(), session: None }
}

pub(crate) fn config(endpoint: &str, bucket: &str) -> S3Config {
    let text = serde_json::json!({
        "bucket": bucket, "endpoint": endpoint, "part_size": "5MiB", "concurrency": 2, "retries": 3,
        "call_timeout": "30s",
    });
    serde_json::from_value(text).expect("settings")
}

pub(crate) fn open(config: &S3Config, credentials: CredentialSource) -> S3 {
    let policy = RetryPolicy::new(config.retries).with_base(Duration::from_millis(1));
    S3::new("offsite", config, credentials).expect("a destination").with_retry_policy(policy)
}

pub(crate) fn in_memory(server: &FaultServer) -> S3 {
    open(&config(server.endpoint(), server.bucket()), keys(s3_fault::ACCESS, s3_fault::SECRET))
}

async fn ceph(bucket: &str, versioned: bool) -> S3 {
    rgw::make_bucket(bucket, versioned).await;
    open(&config(rgw::endpoint(), bucket), keys(rgw::ACCESS, rgw::SECRET))
}

#[tokio::test]
async fn contract_in_memory() {
    let server = FaultServer::start();
    contract::holds(&in_memory(&server), PART).await;
    assert!(server.objects().is_empty(), "{:?}", server.objects().iter().map(|o| &o.key).collect::<Vec<_>>());
    assert!(server.uploads().is_empty(), "{:?}", server.uploads());
}

#[tokio::test]
async fn contract_in_memory_with_versions() {
    let server = FaultServer::start_versioned();
    contract::holds(&in_memory(&server), PART).await;
    contract::versions_hold(&in_memory(&server), PART).await;
    assert!(server.objects().is_empty() && server.uploads().is_empty());
}

#[tokio::test]
async fn contract_ceph() {
    contract::holds(&ceph("plain", false).await, PART).await;
}

#[tokio::test]
async fn contract_ceph_with_versions() {
    let place = ceph("versioned", true).await;
    contract::holds(&place, PART).await;
    contract::versions_hold(&place, PART).await;
}

#[tokio::test]
async fn ceph_says_what_is_wrong() {
    let place = ceph("errors", false).await;
    let err = put(&place, "a", PutMode::Versioned, &sample(3)).await.expect_err("no versions");
    assert_eq!(err.kind, ErrorKind::Config, "{}", err.report());
    assert!(place.list("").await.expect("listed").is_empty());

    let absent = open(&config(rgw::endpoint(), "absent"), keys(rgw::ACCESS, rgw::SECRET));
    for err in [
        absent.list("").await.map(drop).expect_err("no bucket"),
        absent.head(&Location::newest("a")).await.map(drop).expect_err("no bucket"),
        absent.get(&Location::newest("a")).await.map(drop).expect_err("no bucket"),
        absent.delete(&Location::newest("a")).await.expect_err("no bucket"),
        put(&absent, "a", PutMode::WriteOnce, &sample(3)).await.map(drop).expect_err("no bucket"),
    ] {
        assert_eq!(err.kind, ErrorKind::NotFound, "{}", err.report());
        assert!(
            err.hint.as_deref().unwrap_or_default().starts_with("create the bucket \"absent\""),
            "{}",
            err.report()
        );
    }

    for (credentials, code) in
        [(keys(rgw::ACCESS, "wrong"), "SignatureDoesNotMatch"), (keys("nobody", rgw::SECRET), "InvalidAccessKeyId")]
    {
        let place = open(&config(rgw::endpoint(), "errors"), credentials);
        for err in [
            place.list("").await.map(drop).expect_err("refused"),
            put(&place, "a", PutMode::WriteOnce, &sample(3)).await.map(drop).expect_err("refused"),
            put(&place, "b", PutMode::Replace, &sample(PART + 1)).await.map(drop).expect_err("refused"),
        ] {
            assert_eq!(err.kind, ErrorKind::Denied, "{}", err.report());
            assert!(err.chain().contains(code), "{}", err.report());
            assert!(err.hint.is_some() && !err.report().contains("wrong "), "{}", err.report());
        }
        let head = place.head(&Location::newest("a")).await.expect_err("403 is not \"missing\"");
        assert_eq!(head.kind, ErrorKind::Denied, "{}", head.report());
        assert!(head.hint.as_deref().unwrap_or_default().contains("s3:GetObject"), "{}", head.report());
    }
}
