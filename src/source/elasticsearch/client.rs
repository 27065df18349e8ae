//! Requests to the cluster: login, limits, and what its answers mean. What is no JSON of the cluster is never taken for an
//! answer: a proxy's page with status 200 is an error.

use std::fmt;
use std::time::Duration;

use reqwest::header::AUTHORIZATION;
use reqwest::{Method, redirect};
use serde_json::Value;

use crate::config::ElasticsearchConfig;
use crate::config::secret::Secret;
use crate::error::{Error, ErrorKind, Result};

/// No answer of the API that is used here is longer.
const LIMIT_BYTES: usize = 256 << 20;
/// Characters of a reason that are quoted.
const LONGEST_REASON: usize = 800;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// The cluster's own "no": a status that is no success, and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// HTTP status.
    pub(super) status: u16,
    /// The exception, such as `snapshot_missing_exception`; empty where the cluster names none.
    pub(super) exception: String,
    /// The reasons, outermost first.
    pub(super) reason: String,
}

impl Refusal {
    /// As an error; `what` says what could not be done.
    pub(super) fn into_error(self, what: impl Into<String>) -> Error {
        let kind = match self.status {
            401 | 403 => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            429 | 502..=504 => ErrorKind::Unavailable,
            _ if self.reason.contains("No space left on device") => ErrorKind::NoSpace,
            _ => ErrorKind::Failed,
        };
        let err = Error::new(kind, what).caused_by(self.to_string());
        match self.status {
            401 => err.hint("check `username` and `password`, or `api_key`, of the service."),
            403 => err.hint("grant the user what docs/elasticsearch.md lists under \"Rights\"."),
            _ => err,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, reason, .. } = self;
        if reason.is_empty() { write!(f, "HTTP status {status}") } else { write!(f, "{reason} (HTTP status {status})") }
    }
}

/// A cluster, as one login sees it.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    login: Login,
    url: String,
    timeout: Duration,
}

/// A part of a path, encoded.
pub(super) fn part(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

impl Client {
    /// Reads the secrets and the certificate authority. Makes no connection.
    pub(super) fn new(config: &ElasticsearchConfig) -> Result<Self> {
        let failed =
            |e: reqwest::Error| Error::new(ErrorKind::Config, "could not prepare TLS for the cluster").caused_by(e);
        // Neither followed redirects nor proxies: the login goes to the configured address and nowhere else.
        let mut builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT.min(config.call_timeout.0));
        if let Some(path) = &config.ca_file {
            let pem = std::fs::read(path).map_err(|e| Error::io(e, format!("could not read {}", path.display())))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(failed)?;
            builder = builder.tls_certs_merge(certificates);
        }
        let http = builder.build().map_err(failed)?;
        let login = Login::load(config)?;
        Ok(Self { http, login, url: config.url.trim_end_matches('/').to_owned(), timeout: config.call_timeout.0 })
    }

    /// `GET`; the outer error is one of the way, the inner one the cluster's own.
    pub(super) async fn get(&self, path: &str) -> Result<Result<Value, Refusal>> {
        self.call(Method::GET, path, None, self.timeout).await
    }
    /// `GET` that must succeed.
    pub(super) async fn must_get(&self, path: &str, what: &str) -> Result<Value> {
        self.get(path).await?.map_err(|r| r.into_error(what))
    }
    /// `POST`.
    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> Result<Result<Value, Refusal>> {
        self.call(Method::POST, path, body, self.timeout).await
    }
    /// `PUT`.
    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<Result<Value, Refusal>> {
        self.call(Method::PUT, path, Some(body), self.timeout).await
    }
    /// `DELETE`; old clusters hold the call until all is done, so it may take `timeout`.
    pub(super) async fn delete(&self, path: &str, timeout: Duration) -> Result<Result<Value, Refusal>> {
        self.call(Method::DELETE, path, None, timeout.max(self.timeout)).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<Result<Value, Refusal>> {
        let what = format!("{method} {}", path.split('?').next().unwrap_or_default());
        tracing::debug!(target: "backstay::source", "{method} {path}");
        let request = self.http.request(method, format!("{}{path}", self.url)).timeout(timeout);
        let mut request = self.login.sign(request);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.map_err(|e| self.unreachable(&e, &what, timeout))?;
        let status = answer.status().as_u16();
        let bytes = read(answer, &what, timeout).await?;
        let json = serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object);
        match (status, json) {
            (200..=299, Some(json)) => Ok(Ok(json)),
            (200..=399, _) => Err(not_json(&what, status, &bytes)),
            (_, Some(json)) => Ok(Err(refusal(status, &json))),
            (401 | 403 | 429 | 502..=504, None) => {
                Ok(Err(Refusal { status, exception: String::new(), reason: begin_of(&bytes) }))
            }
            (_, None) => Err(not_json(&what, status, &bytes)),
        }
    }

    fn unreachable(&self, err: &reqwest::Error, what: &str, timeout: Duration) -> Error {
        if err.is_timeout() && !err.is_connect() {
            return hung(what, timeout);
        }
        Error::new(ErrorKind::Unavailable, format!("could not reach the cluster at {}", self.url))
            .caused_by(innermost(err))
            .hint("is it running, and is `url` right?")
    }
}

async fn read(mut answer: reqwest::Response, what: &str, timeout: Duration) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| broken(&e, what, timeout))? {
        if bytes.len() + chunk.len() > LIMIT_BYTES {
            return Err(Error::new(ErrorKind::Failed, format!("the answer to {what} is too long")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn broken(err: &reqwest::Error, what: &str, timeout: Duration) -> Error {
    if err.is_timeout() {
        return hung(what, timeout);
    }
    Error::new(ErrorKind::Unavailable, format!("the answer to {what} broke off")).caused_by(innermost(err))
}

/// Who asks.
#[derive(Debug)]
enum Login {
    Nobody,
    User(String, Secret),
    ApiKey(Secret),
}

impl Login {
    fn load(config: &ElasticsearchConfig) -> Result<Self> {
        Ok(match (&config.username, &config.password, &config.api_key) {
            (_, _, Some(key)) => Self::ApiKey(key.load()?),
            (Some(user), Some(password), None) => Self::User(user.clone(), password.load()?),
            _ => Self::Nobody,
        })
    }

    fn sign(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::User(user, password) => request.basic_auth(user, Some(password.expose())),
            Self::ApiKey(key) => request.header(AUTHORIZATION, format!("ApiKey {}", key.expose())),
        }
    }
}

fn hung(what: &str, timeout: Duration) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the cluster did not answer {what} within {} s", timeout.as_secs()))
        .hint("look at its log; a repository that hangs lets it hang. `call_timeout` sets the limit.")
}

/// The last cause says what happened; those before it repeat each other.
fn innermost(err: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = err;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

fn not_json(what: &str, status: u16, bytes: &[u8]) -> Error {
    let begin = begin_of(bytes);
    let kind = if status >= 500 { ErrorKind::Unavailable } else { ErrorKind::Failed };
    Error::new(kind, format!("the answer to {what} is not one of Elasticsearch or OpenSearch"))
        .caused_by(format!("HTTP status {status}, it begins with {begin:?}"))
        .hint("does `url` lead to a proxy, a login page or another program?")
}

fn begin_of(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(80).collect()
}

/// Every form that an error had: a text in 1.x, since then an object with causes.
fn refusal(status: u16, json: &Value) -> Refusal {
    let error = &json["error"];
    if let Some(text) = error.as_str() {
        let exception = text.split('[').next().unwrap_or_default().trim_end_matches(['.', ' ', ';']);
        return Refusal { status, exception: snake(exception), reason: text.to_owned() };
    }
    let exception = error["type"].as_str().unwrap_or_default().to_owned();
    let mut reasons: Vec<&str> = Vec::new();
    let mut at = error;
    while let Some(reason) = at["reason"].as_str() {
        if !reasons.iter().any(|known| known.contains(reason)) {
            reasons.push(reason);
        }
        at = &at["caused_by"];
    }
    Refusal { status, exception, reason: shortened(reasons.join(": ")) }
}

/// Some causes repeat themselves for pages.
fn shortened(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(LONGEST_REASON) {
        text.truncate(at);
        text.push_str(" ...");
    }
    text
}

/// `SnapshotMissingException` is `snapshot_missing_exception` since 2.0.
fn snake(camel: &str) -> String {
    let mut text = String::new();
    for c in camel.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_errors_of_all_versions_are_read() {
        let old = refusal(404, &json!({"error": "RepositoryMissingException[[x] missing]", "status": 404}));
        assert_eq!(old.exception, "repository_missing_exception");
        assert_eq!(old.to_string(), "RepositoryMissingException[[x] missing] (HTTP status 404)");
        let new = refusal(
            500,
            &json!({"error": {"type": "repository_exception", "reason": "[bad] failed to create repository",
                "caused_by": {"type": "repository_exception", "reason": "[bad] location [/opt] doesn't match"}}}),
        );
        assert_eq!(new.exception, "repository_exception");
        assert_eq!(new.reason, "[bad] failed to create repository: [bad] location [/opt] doesn't match");
        assert_eq!(refusal(403, &json!({"message": "no"})).to_string(), "HTTP status 403");
    }
}
