//! Repositories: registered only when missing or different, proved on all nodes, and what is missing on the nodes told
//! with the lines to add there.

use serde_json::{Map, Value, json};

use super::client::{Client, Refusal, part};
use crate::config::RepositoryConfig;
use crate::error::{Error, ErrorKind, Result};

/// What the cluster has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registered {
    /// `fs`, `s3`, ...
    pub(super) kind: String,
    /// Bucket, for object stores.
    pub(super) bucket: Option<String>,
    /// Path in the bucket, or the directory.
    pub(super) base_path: Option<String>,
}

/// Makes sure that the repository is there as configured.
pub(super) async fn ensure(client: &Client, name: &str, config: &RepositoryConfig) -> Result<Registered> {
    let found = find(client, name).await?;
    let Some(wanted) = wanted(config) else {
        let found = found.map(|json| registered(&json));
        return found.ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("the cluster has no repository {name:?}"))
                .hint("register it, or let backstay do that: write `fs` or `s3` instead of `existing: true`.")
        });
    };
    if !found.as_ref().is_some_and(|json| agrees(json, &wanted)) {
        put(client, name, config, &wanted).await?;
    }
    Ok(registered(&wanted))
}

/// For a restore: a repository that the cluster does not have is registered for reading only, because two clusters that
/// write one repository destroy it.
pub(super) async fn ensure_readable(client: &Client, name: &str, config: &RepositoryConfig) -> Result<()> {
    if find(client, name).await?.is_some() {
        return Ok(());
    }
    match wanted(config) {
        Some(mut wanted) => {
            wanted["settings"]["readonly"] = json!("true");
            put(client, name, config, &wanted).await
        }
        None => ensure(client, name, config).await.map(drop),
    }
}

/// What the cluster says of a repository; `None` when it has none of this name.
async fn find(client: &Client, name: &str) -> Result<Option<Value>> {
    match client.get(&format!("/_snapshot/{}", part(name))).await? {
        Ok(mut json) => Ok(Some(json[name].take()).filter(Value::is_object)),
        Err(no) if no.status == 404 => Ok(None),
        Err(no) => Err(no.into_error(format!("could not look at repository {name:?}"))),
    }
}

/// The body that registers it; `None` when it must exist.
fn wanted(config: &RepositoryConfig) -> Option<Value> {
    let mut settings = Map::new();
    let kind = if let Some(fs) = &config.fs {
        settings.insert("location".into(), json!(fs.location));
        "fs"
    } else {
        let s3 = config.s3.as_ref()?;
        settings.insert("bucket".into(), json!(s3.bucket));
        settings.insert("client".into(), json!(s3.client));
        if let Some(path) = &s3.base_path {
            settings.insert("base_path".into(), json!(path));
        }
        "s3"
    };
    settings.extend(config.settings.iter().map(|(k, v)| (k.clone(), json!(v))));
    Some(json!({"type": kind, "settings": settings}))
}

/// Whether what is registered is what is wanted. Settings that nobody asked for may stay, except the one that forbids to
/// write, and a path that is not the root's.
fn agrees(found: &Value, wanted: &Value) -> bool {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let (have, want) = (&found["settings"], &wanted["settings"]);
    let same = |key: &str| match (have.get(key), want.get(key)) {
        (Some(a), Some(b)) => text(a) == text(b),
        (None, Some(b)) => key == "client" && b == "default",
        (a, None) => a.is_none() || (key == "readonly" && a.is_some_and(|a| text(a) == "false")),
    };
    found["type"] == wanted["type"]
        && want.as_object().into_iter().flatten().all(|(key, _)| same(key))
        && ["readonly", "base_path"].into_iter().all(same)
}

fn registered(json: &Value) -> Registered {
    let text = |key: &str| json["settings"][key].as_str().map(str::to_owned);
    Registered {
        kind: json["type"].as_str().unwrap_or_default().to_owned(),
        bucket: text("bucket").or_else(|| text("container")),
        base_path: text("base_path").or_else(|| text("location")),
    }
}

async fn put(client: &Client, name: &str, config: &RepositoryConfig, body: &Value) -> Result<()> {
    // Verified by a call of its own: a failed one would leave it registered or not, depending on the version.
    let answer = client.put(&format!("/_snapshot/{}?verify=false", part(name)), body).await?;
    answer.map(drop).map_err(|no| explain(no, name, config, "register"))
}

/// Lets every node write to the repository and read what the others wrote.
pub(super) async fn verify(client: &Client, name: &str, config: &RepositoryConfig) -> Result<()> {
    let answer = client.post(&format!("/_snapshot/{}/_verify", part(name)), None).await?;
    answer.map(drop).map_err(|no| explain(no, name, config, "use"))
}

/// What has to be done on the nodes, where the answer shows it.
fn explain(no: Refusal, name: &str, config: &RepositoryConfig, verb: &str) -> Error {
    let reason = no.reason.clone();
    let err = no.into_error(format!("the cluster could not {verb} repository {name:?}"));
    match advice(&reason, config) {
        Some(advice) => err.hint(advice),
        None => err,
    }
}

fn advice(reason: &str, config: &RepositoryConfig) -> Option<String> {
    if reason.contains("path.repo") {
        let location = config.fs.as_ref().map_or("/path", |fs| fs.location.as_str());
        let location = if location.starts_with('/') { location } else { "/shared/snapshots" };
        return Some(format!(
            "add `path.repo: [\"{location}\"]` to the .yml of every node (a directory that all of them share and may \
             write), and restart them one after the other."
        ));
    }
    if reason.contains("repository type") && reason.contains("does not exist")
        || reason.contains("Unknown [repository]")
    {
        return Some(
            "install the plugin on every node (`bin/elasticsearch-plugin install repository-s3` or \
             `bin/opensearch-plugin install repository-s3`), and restart them one after the other."
                .into(),
        );
    }
    if reason.contains("Unknown s3 client name") || reason.contains("Unable to load credentials") {
        let client = config.s3.as_ref().map_or("default", |s3| s3.client.as_str());
        return Some(format!(
            "on every node, add the keys to its keystore (`bin/elasticsearch-keystore add s3.client.{client}.access_key` \
             and `... s3.client.{client}.secret_key`, or bin/opensearch-keystore), then POST /_nodes/reload_secure_settings."
        ));
    }
    if let Some(s3) = config.s3.as_ref().filter(|_| reason.contains("Status Code: 403")) {
        let client = &s3.client;
        return Some(format!(
            "let these keys read, write and delete there; or correct s3.client.{client}.access_key and \
             s3.client.{client}.secret_key in the keystore of every node, then POST /_nodes/reload_secure_settings."
        ));
    }
    if reason.contains("Unable to load region") {
        let client = config.s3.as_ref().map_or("default", |s3| s3.client.as_str());
        return Some(format!("add `s3.client.{client}.region: REGION` to the .yml of every node, and restart them."));
    }
    if reason.contains("no_such_bucket") || reason.contains("NoSuchBucket") || reason.contains("Status Code: 404") {
        let bucket = config.s3.as_ref().map_or("", |s3| s3.bucket.as_str());
        return Some(format!("create the bucket \"{bucket}\", or correct `bucket`."));
    }
    let denied = ["Read-only file system", "AccessDenied", "Permission denied", "access_denied"];
    if denied.iter().any(|d| reason.contains(d)) {
        return Some("let the nodes' user write there, on every node.".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> RepositoryConfig {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn a_repository_is_registered_again_only_when_it_differs() {
        let s3 = config("s3: {bucket: b}\nsettings: {server_side_encryption: 'true'}\n");
        let wanted = wanted(&s3).unwrap();
        let have = |settings: Value| json!({"type": "s3", "settings": settings});
        let same = json!({"bucket": "b", "server_side_encryption": true, "chunk_size": "1gb"});
        assert!(agrees(&have(same), &wanted), "the default client and what nobody asked for");
        for different in [
            json!({"bucket": "c", "server_side_encryption": "true"}),
            json!({"bucket": "b"}),
            json!({"bucket": "b", "server_side_encryption": "true", "readonly": "true"}),
            json!({"bucket": "b", "server_side_encryption": "true", "client": "other"}),
            json!({"bucket": "b", "server_side_encryption": "true", "base_path": "x"}),
        ] {
            assert!(!agrees(&have(different.clone()), &wanted), "{different}");
        }
        let other = json!({"type": "fs", "settings": {"bucket": "b", "server_side_encryption": "true"}});
        assert!(!agrees(&other, &wanted));
    }

    #[test]
    fn what_is_missing_on_the_nodes_is_told_with_the_lines_to_add() {
        let fs = config("fs: {location: /mnt/snapshots}");
        let s3 = config("s3: {bucket: b, client: backup}");
        let outside = "[x] location [/mnt/snapshots] doesn't match any of the locations specified by path.repo";
        assert!(advice(outside, &fs).unwrap().contains("path.repo: [\"/mnt/snapshots\"]"));
        let plugin = advice("[x] repository type [s3] does not exist", &s3).unwrap();
        assert!(plugin.contains("plugin install repository-s3"), "{plugin}");
        let region = advice("Unable to load region from any of the providers in the chain", &s3).unwrap();
        assert!(region.contains("s3.client.backup.region"), "{region}");
        let keys = advice("Unknown s3 client name [backup]. Existing client configs: default", &s3).unwrap();
        assert!(keys.contains("keystore add s3.client.backup.access_key"), "{keys}");
        let wrong = advice("Unable to upload object: (Service: S3, Status Code: 403, Request ID: tx0)", &s3).unwrap();
        assert!(wrong.contains("correct s3.client.backup.access_key"), "{wrong}");
        assert_eq!(advice("something else", &s3), None);
    }
}
