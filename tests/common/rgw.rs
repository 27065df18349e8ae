//! A real Ceph object gateway, started once per run of the tests, with the first test that asks for it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};

/// The access key of the gateway's user.
pub(crate) const ACCESS: &str = "AKTEST";
/// Its secret.
pub(crate) const SECRET: &str = "SKTEST";

/// `http://127.0.0.1:PORT` of the gateway. Panics, saying what to do, where it cannot be started.
pub(crate) fn endpoint() -> &'static str {
    static STARTED: OnceLock<Result<String, String>> = OnceLock::new();
    match STARTED.get_or_init(|| start().or_else(|_| start())) {
        Ok(endpoint) => endpoint,
        Err(why) => panic!("{why}"),
    }
}

/// A client with the gateway's keys.
pub(crate) fn client() -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(ACCESS, SECRET, None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(endpoint())
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

/// Makes a bucket.
pub(crate) async fn make_bucket(name: &str, versioned: bool) {
    let client = client();
    client.create_bucket().bucket(name).send().await.expect("a new bucket");
    if versioned {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        client.put_bucket_versioning().bucket(name).versioning_configuration(on).send().await.expect("versions");
    }
}

#[allow(clippy::disallowed_methods, reason = "the script must outlive no test, and its daemons all of them")]
fn start() -> Result<String, String> {
    let needed = ["radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "uuidgen", "curl"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &&str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let missing: Vec<&str> = needed.into_iter().filter(|tool| !is_there(tool)).collect();
    if !missing.is_empty() {
        return Err(format!("{} missing: install the packages with `tests/run packages`", missing.join(", ")));
    }
    let listeners: Vec<TcpListener> =
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let ports: Vec<String> = listeners
        .iter()
        .map(|l| l.local_addr().map(|a| a.port().to_string()))
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())?;
    drop(listeners);
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let dir: PathBuf = base.join(format!("backstay-rgw-{}-{}", std::process::id(), ports[0]));
    let errors = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    // The daemons outlive the script, so its standard error must not be a pipe.
    let status = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/rgw.sh"))
        .arg(&dir)
        .args(&ports)
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.reopen().map_err(|e| e.to_string())?)
        .status()
        .map_err(|e| e.to_string())?;
    if !status.success() {
        let text = std::fs::read_to_string(errors.path()).unwrap_or_default();
        return Err(format!("the gateway does not start: {}", text.trim()));
    }
    Ok(format!("http://127.0.0.1:{}", ports[0]))
}
