//! A repository in a real bucket and one in a directory, in one run. `tests/matrix-search` runs this.

use aws_sdk_s3::config::{BehaviorVersion, Config, Credentials, Region};

use crate::common::rgw;
use crate::common::search::{Deployment, Node, asked_for, start};

fn client() -> aws_sdk_s3::Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(rgw::ACCESS, rgw::SECRET, None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(rgw::endpoint())
        .force_path_style(true)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

fn blocking<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

const SEARCH: &str = "      repositories:\n        near: {fs: {location: near}}\n        \
                      far: {s3: {bucket: search-snapshots, base_path: one}, settings: {shard_path_type: FIXED}}\n";
const MORE: &str = "    destinations: [offsite]\n    keep: {daily: 3}\n";

#[test]
#[ignore = "tests/matrix-search runs it with a node that has the plugin repository-s3"]
fn a_bucket_and_a_directory_in_one_run() {
    let engine = asked_for().expect("BACKSTAY_SEARCH");
    // The kernel takes connections to it, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = format!("http://{}", silent.local_addr().unwrap());
    let environment = [
        ("S3_ENDPOINT", rgw::endpoint()),
        ("S3_KEY", rgw::ACCESS),
        ("S3_SECRET", rgw::SECRET),
        ("S3_HANGING", &hanging),
    ];
    let node = start(engine, &environment).expect("a node");
    for bucket in ["search-snapshots", "search-records"] {
        blocking(rgw::make_bucket(bucket, false));
    }
    let at = Deployment::new(&node.url, SEARCH, "");
    let keys = at.dir.path().join("keys");
    let text = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", rgw::ACCESS, rgw::SECRET);
    std::fs::write(&keys, text).unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let offsite = format!(
        "offsite: {{s3: {{bucket: search-records, endpoint: '{}', credentials: {{file: {}}}}}}}",
        rgw::endpoint(),
        keys.display()
    );
    at.configure_with(&offsite, &node.url, SEARCH, MORE);
    let names: Vec<String> = (0..20).map(|n| format!("index-{n:02}")).collect();
    names.iter().enumerate().for_each(|(n, name)| node.fill(name, 10 + n, 1 + u32::try_from(n % 3).unwrap()));
    let before: Vec<_> = names.iter().map(|n| node.documents(n)).collect();

    at.run(&["backup"]).ok();
    let manifest = at.manifest(&at.points()[0].0);
    // The directory is the first, although its name is not.
    let far = &manifest["external"][1];
    assert_eq!(
        (&far["repository"], &far["bucket"], &far["base_path"]),
        (&"far".into(), &"search-snapshots".into(), &"one".into())
    );
    at.run(&["check-s3"]).ok();

    // The directory is lost, and the bucket is not.
    node.must("DELETE", &format!("/_snapshot/near/{}", manifest["external"][0]["name"].as_str().unwrap()), None);
    node.must("DELETE", "/index-*", None);
    let said = at.run(&["restore", "search", "latest"]).ok();
    assert!(said.contains("390 documents, 20 indices"), "{said}");
    for (name, documents) in names.iter().zip(&before) {
        assert_eq!(&node.documents(name), documents, "{name}");
    }

    // The cluster does not see that the bucket has lost it; check-s3 does.
    let key = format!("one/snap-{}.dat", far["uuid"].as_str().unwrap());
    blocking(client().delete_object().bucket("search-snapshots").key(&key).send()).unwrap();
    let checked = at.run(&["check-s3"]);
    assert_eq!(checked.code, 2, "{checked:#?}");
    let gone = format!("snapshot {} in bucket search-snapshots (gone)", far["name"].as_str().unwrap());
    assert!(checked.stdout.contains(&gone), "{checked:#?}");

    buckets_that_do_not_work(&at, &node, &offsite);
    drop(silent);
}

/// No such bucket, wrong keys, no answer: the directory has the snapshot each time.
fn buckets_that_do_not_work(at: &Deployment, node: &Node, offsite: &str) {
    let wrong = SEARCH.replace("search-snapshots", "no-such-bucket").replace("far", "wrong");
    at.configure_with(offsite, &node.url, &wrong, MORE);
    let ran = at.run(&["backup", "--cadence", "daily"]);
    assert_eq!(ran.code, 10, "the directory has it: {ran:#?}");
    assert!(ran.stderr.contains("repository wrong: the cluster could not use repository \"wrong\""), "{ran:#?}");
    assert!(ran.stderr.contains("no_such_bucket") || ran.stderr.contains("Status Code: 404"), "{ran:#?}");
    assert_eq!(at.points().last().unwrap().1, "complete");

    let with = |client: &str| {
        let search = SEARCH.replace("far:", &format!("{client}:"));
        search.replace("bucket: search-snapshots", &format!("bucket: search-snapshots, client: {client}"))
    };
    let before = at.points();
    at.configure_with(offsite, &node.url, &with("wrong"), MORE);
    let ran = at.run(&["backup", "--cadence", "daily"]);
    assert_eq!(ran.code, 10, "{ran:#?}");
    assert!(ran.stderr.contains("repository wrong: the cluster could not use repository \"wrong\""), "{ran:#?}");
    assert!(ran.stderr.contains("Status Code: 403"), "{ran:#?}");
    assert!(ran.stderr.contains("correct s3.client.wrong.access_key"), "{ran:#?}");
    at.configure_with(offsite, &node.url, &format!("      call_timeout: 5s\n{}", with("hanging")), MORE);
    let ran = at.run(&["backup", "--cadence", "daily"]);
    assert_eq!(ran.code, 10, "{ran:#?}");
    let text = "the cluster did not answer POST /_snapshot/hanging/_verify within 5 s";
    assert!(ran.stderr.contains(text), "{ran:#?}");
    assert!(ran.stderr.contains("a repository that hangs lets it hang"), "{ran:#?}");
    assert_eq!(at.points()[..before.len()], before, "nothing was pruned");
}
