//! A bucket that locks its objects: points are made and read, and nobody removes them before their time.

use backstay::destination::Destination;
use backstay::error::ErrorKind;

use super::real::{PART, config, keys, open};
use crate::common::fake::Fake;
use crate::common::rgw;

#[tokio::test]
async fn backups_into_a_bucket_with_object_lock_are_made_and_cannot_be_removed() {
    rgw::make_locked_bucket("locked").await;
    let d = Fake::new("");
    let (root, endpoint) = (d.root(), rgw::endpoint());
    let noise = super::contract::sample(2 * PART + 9);
    std::fs::create_dir(d.path("blobs")).expect("a directory");
    std::fs::write(d.path("blobs/large"), &noise).expect("a file");
    let text = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", rgw::ACCESS, rgw::SECRET);
    std::fs::write(d.path("keys"), text).expect("a file");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(d.path("keys"), private).expect("its mode");
    for style in ["timestamped", "versioned"] {
        d.configure(&format!(
            "host: h1\nstate_dir: {root}/state\ndestinations:\n  offsite:\n    s3: {{bucket: locked, endpoint: \
             \"{endpoint}\", key_style: {style}, prefix: {style}, part_size: 5MiB, credentials: {{file: {root}/keys}}}}\n\
             services:\n  blobs:\n    blobdir: {{path: {root}/blobs}}\n    destinations: [offsite]\n    keep: {{daily: 7}}\n"
        ));
        d.run(&["backup", "--manual"]).ok();
        let to = d.path(style);
        d.run(&["restore", "blobs", "latest", "--from", "offsite", "--to", to.to_str().expect("text")]).ok();
        assert!(std::fs::read(to.join("large")).expect("restored") == noise);
    }
    let place = open(&config(endpoint, "locked"), keys(rgw::ACCESS, rgw::SECRET));
    let versions = place.list_versions("").await.expect("listed");
    assert!(versions.len() >= 6, "{versions:?}");
    for version in &versions {
        let err = place.delete(&version.location).await.expect_err("it is locked");
        assert_eq!(err.kind, ErrorKind::Denied, "{}", err.report());
        assert!(err.hint.as_deref().unwrap_or_default().contains("s3:DeleteObjectVersion"), "{}", err.report());
    }
    assert_eq!(place.list_versions("").await.expect("listed"), versions);
}
