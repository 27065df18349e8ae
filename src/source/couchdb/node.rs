//! A node over HTTP: its version and name, its shard maps, its shards.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::config::CouchdbConfig;
use crate::config::secret::Secret;
use crate::error::{Error, ErrorKind, Result};

/// All but what may stand in a URL as it is; the `/` of `user/foo` must not.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time in which all documents of one database are read.
const WHOLE_DATABASE: Duration = Duration::from_secs(24 * 3600);
/// No answer that is asked for is longer.
const MAX_ANSWER: usize = 512 << 20;

/// A name as a part of a path.
pub(super) fn quote(name: &str) -> String {
    utf8_percent_encode(name, QUOTED).to_string()
}

/// A node, asked as a server admin if one is configured.
#[derive(Debug)]
pub(super) struct Node {
    client: reqwest::Client,
    url: String,
    local_url: String,
    login: Option<(String, Secret)>,
}

/// What it says of itself.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) version: String,
    /// `couchdb@host`.
    pub(super) name: String,
}

/// What a node says of one shard, or of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) doc_count: u64,
    pub(super) del_count: u64,
}

impl Node {
    /// Does not ask anything yet. `login` says whether the admin's password is needed.
    pub(super) fn new(config: &CouchdbConfig, login: bool) -> Result<Self> {
        // A node is asked directly: a proxy of the environment is not for it.
        let mut client =
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(TIMEOUT);
        if ![&config.url, &config.node_local_url].iter().any(|url| url.starts_with("https:")) {
            // The system's certificates are not read for nothing: that takes longer than many a question.
            client = client.tls_certs_only([]);
        }
        let client = client
            .build()
            .map_err(|e| Error::new(ErrorKind::Internal, "could not make an HTTP client").caused_by(e))?;
        let login = match (&config.username, &config.password) {
            (Some(user), Some(password)) if login => Some((user.clone(), password.load()?)),
            _ => None,
        };
        let trimmed = |url: &str| url.trim_end_matches('/').to_owned();
        Ok(Self { client, url: trimmed(&config.url), local_url: trimmed(&config.node_local_url), login })
    }

    /// Whether anything answers at the address.
    pub(super) async fn answers(&self) -> bool {
        let asked = self.client.get(&self.url).timeout(Duration::from_secs(5)).send().await;
        // Somebody who takes the connection and says nothing is up as well.
        !asked.is_err_and(|e| e.is_connect())
    }

    /// Its version, without login.
    pub(super) async fn version(&self) -> Result<String> {
        let answer = self.ask(Method::GET, &format!("{}/", self.url), None).await?;
        let version = answer["version"].as_str().filter(|_| answer["couchdb"] == "Welcome");
        version.map(str::to_owned).ok_or_else(|| {
            Error::new(ErrorKind::Failed, format!("what answers at {} is no CouchDB", self.url))
                .hint("correct `url` of the service.")
        })
    }

    /// Version and name.
    ///
    /// # Errors
    /// `Refused` when it is a member of a cluster: maps of several nodes are not for this program to decide.
    pub(super) async fn identity(&self) -> Result<Identity> {
        let version = self.version().await?;
        let members = self.ask(Method::GET, &format!("{}/_membership", self.url), None).await?;
        let names = |key: &str| -> Vec<String> {
            let list = members[key].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect()
        };
        let mut all = [names("all_nodes"), names("cluster_nodes")].concat();
        all.sort();
        all.dedup();
        match all.as_slice() {
            [name] => Ok(Identity { version, name: name.clone() }),
            [] => Err(Error::new(ErrorKind::Failed, format!("{} does not say which node it is", self.url))),
            many => Err(Error::new(ErrorKind::Refused, format!("the node is one of a cluster: {}", many.join(", ")))
                .hint("restore onto a node of its own, or restore a cluster by hand: docs/couchdb.md.")),
        }
    }

    fn local(&self, who: &Identity) -> String {
        // Only since 3.0 the port for everybody leads to the node-local databases.
        if who.version.starts_with("2.") { self.local_url.clone() } else { format!("{}/_node/_local", self.url) }
    }

    /// All shard maps, with their revisions.
    pub(super) async fn maps(&self, who: &Identity) -> Result<Vec<Value>> {
        let url = format!("{}/_dbs/_all_docs?include_docs=true", self.local(who));
        let mut answer = self.ask(Method::GET, &url, None).await?;
        let rows = answer["rows"].as_array_mut().map(std::mem::take);
        let rows = rows.ok_or_else(|| Error::new(ErrorKind::Failed, "the node does not list its shard maps"))?;
        let maps = rows.into_iter().map(|mut row| row["doc"].take());
        Ok(maps.filter(|doc| doc["_id"].as_str().is_some_and(|id| !id.starts_with("_design/"))).collect())
    }

    /// One shard map; `None` if there is none.
    pub(super) async fn map(&self, who: &Identity, db: &str) -> Result<Option<Value>> {
        match self.ask(Method::GET, &format!("{}/_dbs/{}", self.local(who), quote(db)), None).await {
            Ok(doc) => Ok(Some(doc)),
            Err(e) if e.kind == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a shard map; one that is there already needs its revision in it.
    pub(super) async fn put_map(&self, who: &Identity, db: &str, map: &Value) -> Result<()> {
        let url = format!("{}/_dbs/{}", self.local(who), quote(db));
        let put = self.ask(Method::PUT, &url, Some(map)).await;
        put.map(drop).map_err(|e| e.within(format!("could not write the shard map of database {db:?}")))
    }

    /// Removes a shard map.
    pub(super) async fn delete_map(&self, who: &Identity, db: &str, rev: &str) -> Result<()> {
        let url = format!("{}/_dbs/{}?rev={}", self.local(who), quote(db), quote(rev));
        let deleted = self.ask(Method::DELETE, &url, None).await;
        deleted.map(drop).map_err(|e| e.within(format!("could not remove the shard map of database {db:?}")))
    }

    /// What one shard holds, by its path below the data directory.
    pub(super) async fn shard(&self, who: &Identity, path: &str) -> Result<Counts> {
        let name = path.strip_suffix(".couch").unwrap_or(path);
        counts(&self.ask(Method::GET, &format!("{}/{}", self.local(who), quote(name)), None).await?)
    }

    /// What a database holds, as its users see it.
    pub(super) async fn database(&self, db: &str) -> Result<Counts> {
        counts(&self.ask(Method::GET, &format!("{}/{}", self.url, quote(db)), None).await?)
    }

    /// Reads every live document of a database; how many there were.
    ///
    /// # Errors
    /// `Failed` when the answer names a document without its content, or does not reach its end.
    pub(super) async fn read_all(&self, db: &str) -> Result<u64> {
        let url = format!("{}/{}/_all_docs?include_docs=true", self.url, quote(db));
        let what = format!("{} {url}", Method::GET);
        let request = self.request(Method::GET, &url).timeout(WHOLE_DATABASE);
        let mut answer = request.send().await.map_err(|e| unanswered(&what, e))?;
        let status = answer.status();
        let (mut rows, mut line) = (Rows::default(), Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(|e| unanswered(&what, e))? {
            // A document stands on a line of its own.
            let mut parts = chunk.split(|b| *b == b'\n').peekable();
            while let Some(part) = parts.next() {
                line.extend_from_slice(part);
                if line.len() > MAX_ANSWER {
                    return Err(Error::new(ErrorKind::Failed, format!("the answer to {what} does not end")));
                }
                if parts.peek().is_some() && status.is_success() {
                    rows.line(&line)?;
                    line.clear();
                }
            }
        }
        if !status.is_success() {
            judge(&what, status, &line)?;
        }
        rows.line(&line)?;
        rows.end()
    }

    fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, url).header("accept", "application/json");
        match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password.expose())),
            None => request,
        }
    }

    async fn ask(&self, method: Method, url: &str, body: Option<&Value>) -> Result<Value> {
        let what = format!("{method} {url}");
        let mut request = self.request(method, url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let failed = |e: reqwest::Error| unanswered(&what, e);
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(Error::new(ErrorKind::Failed, format!("the answer to {what} does not end")));
            }
        }
        judge(&what, status, &bytes)
    }
}

fn unanswered(what: &str, e: reqwest::Error) -> Error {
    let e = e.without_url();
    Error::new(ErrorKind::Unavailable, format!("could not ask the node: {what}"))
        .caused_by(root_cause(&e))
        .hint("check that the node runs, and `url` of the service.")
}

/// The lines of an answer of `_all_docs`.
#[derive(Debug, Default)]
struct Rows {
    found: u64,
    ended: bool,
}

#[derive(Deserialize)]
struct Row {
    id: Option<String>,
    #[serde(default)]
    doc: Option<serde::de::IgnoredAny>,
    error: Option<String>,
    reason: Option<String>,
}

impl Rows {
    fn line(&mut self, line: &[u8]) -> Result<()> {
        let text = line.trim_ascii();
        let text = text.strip_suffix(b",").unwrap_or(text);
        if text.is_empty() || text.starts_with(b"{\"total_rows\"") {
            return Ok(());
        }
        if text == b"]}" {
            self.ended = true;
            return Ok(());
        }
        let failed = |what: String| Err(Error::new(ErrorKind::Failed, what));
        match serde_json::from_slice(text) {
            Ok(Row { id: Some(_), doc: Some(_), error: None, .. }) => self.found += 1,
            Ok(Row { error: Some(error), reason, .. }) => {
                return failed(format!("the node says {error}: {}", reason.unwrap_or_default()));
            }
            Ok(Row { id, .. }) => return failed(format!("document {:?} has no content", id.unwrap_or_default())),
            Err(_) => return failed("the node lists documents in a way that is not known".into()),
        }
        Ok(())
    }

    fn end(self) -> Result<u64> {
        if self.ended { Ok(self.found) } else { Err(Error::new(ErrorKind::Failed, "the list of documents breaks off")) }
    }
}

/// The innermost reason: what is around it repeats the request.
fn root_cause(e: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = e;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

fn judge(what: &str, status: StatusCode, bytes: &[u8]) -> Result<Value> {
    let json: Option<Value> = serde_json::from_slice(bytes).ok();
    if status.is_success() {
        return json.ok_or_else(|| {
            Error::new(ErrorKind::Failed, format!("the answer to {what} is not JSON"))
                .hint("is there something else, such as a proxy, at `url`?")
        });
    }
    let said = |key: &str| json.as_ref().and_then(|j| j[key].as_str()).unwrap_or_default().chars().take(300);
    let reason: String = match &json {
        Some(_) => said("error").chain(": ".chars()).chain(said("reason")).collect(),
        None => "an answer that is not JSON".into(),
    };
    let (kind, hint) = match status.as_u16() {
        401 | 403 => {
            (ErrorKind::Denied, Some("set `username` and `password` to a server admin of the node's configuration."))
        }
        404 => (ErrorKind::NotFound, None),
        409 => (ErrorKind::Busy, None),
        500.. => (ErrorKind::Unavailable, Some("see the node's log.")),
        _ => (ErrorKind::Failed, None),
    };
    let e = Error::new(kind, format!("the node refused {what}")).caused_by(format!("{}: {reason}", status.as_u16()));
    Err(match hint {
        Some(hint) => e.hint(hint),
        None => e,
    })
}

fn counts(answer: &Value) -> Result<Counts> {
    match (answer["doc_count"].as_u64(), answer["doc_del_count"].as_u64()) {
        (Some(doc_count), Some(del_count)) => Ok(Counts { doc_count, del_count }),
        _ => Err(Error::new(ErrorKind::Failed, "the node does not say how many documents there are")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_to_the_last_letter() {
        assert_eq!(
            quote("shards/00000000-7fffffff/user/a+b$c_d.1"),
            "shards%2F00000000-7fffffff%2Fuser%2Fa%2Bb%24c_d.1"
        );
    }

    #[test]
    fn documents_are_counted_and_what_breaks_off_is_told() {
        let read = |text: &str| {
            let mut rows = Rows::default();
            text.split('\n').try_for_each(|line| rows.line(line.as_bytes()))?;
            rows.end()
        };
        let two = "{\"total_rows\":2,\"offset\":0,\"rows\":[\r\n{\"id\":\"a\",\"key\":\"a\",\"value\":{},\"doc\":{\"_id\":\"a\"}},\r\n\
                   {\"id\":\"b\",\"key\":\"b\",\"value\":{},\"doc\":{}}\r\n]}\n";
        assert_eq!(read(two).unwrap(), 2);
        assert!(read(two.trim_end_matches("]}\n")).unwrap_err().message.contains("breaks off"));
        assert!(
            read(&two.replace(",\"doc\":{}}", ",\"doc\":null}")).unwrap_err().message.contains("\"b\" has no content")
        );
        let broke = two.replace("\r\n]}", "\r\n{\"error\":\"badmatch\",\"reason\":\"x\"}");
        assert!(read(&broke).unwrap_err().message.contains("badmatch: x"));
    }

    #[test]
    fn answers_are_judged_by_their_status_and_form() {
        let html = judge("GET x", StatusCode::OK, b"<html>").unwrap_err();
        assert!(
            html.report().contains("is not JSON\nhint: is there something else, such as a proxy"),
            "{}",
            html.report()
        );
        for (status, kind) in [(401, ErrorKind::Denied), (403, ErrorKind::Denied), (404, ErrorKind::NotFound)] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(judge("GET x", status, br#"{"error":"e","reason":"r"}"#).unwrap_err().kind, kind);
        }
        let err = judge("GET x", StatusCode::INTERNAL_SERVER_ERROR, br#"{"error":"internal","reason":"No DB shards"}"#);
        assert!(err.unwrap_err().report().contains("caused by: 500: internal: No DB shards"));
    }
}
