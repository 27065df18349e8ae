//! Real nodes of OpenSearch and Elasticsearch, one of each kind per run of the tests, and deployments that back them up.

#![allow(clippy::disallowed_methods, reason = "the programs are run as users run them")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use super::fake::{ended, until};
use super::{Ran, backstay};

/// A running node.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) dir: PathBuf,
    /// Documents have types.
    typed: bool,
    /// User and password, where it asks for them.
    login: Option<(&'static str, &'static str)>,
}

/// Which product and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Engine(pub(crate) &'static str, pub(crate) &'static str);

/// The two that every run of the tests starts.
pub(crate) const OPENSEARCH: Engine = Engine("opensearch", "2.19.1");
pub(crate) const ELASTICSEARCH: Engine = Engine("elasticsearch", "7.17.0");

/// The engine that `tests/matrix-search` asks for, instead of these two.
pub(crate) fn asked_for() -> Option<Engine> {
    static ASKED: OnceLock<Option<String>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| std::env::var("BACKSTAY_SEARCH").ok()).as_deref()?;
    let (product, version) = asked.split_once(':').expect("BACKSTAY_SEARCH=PRODUCT:VERSION");
    Some(Engine(product, version))
}

fn script(args: &[&str], environment: &[(&str, &str)]) -> Result<(), String> {
    let errors = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    // The node outlives the script, so its standard error must not be a pipe.
    let status = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/search.sh"))
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.reopen().map_err(|e| e.to_string())?)
        .status()
        .map_err(|e| e.to_string())?;
    if status.success() {
        return Ok(());
    }
    Err(std::fs::read_to_string(errors.path()).unwrap_or_default().trim().to_owned())
}

fn cache() -> String {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("search");
    path.to_str().unwrap().to_owned()
}

/// Starts a node of its own; `None`, and a note for the end of `tests/run`, where it cannot be had.
pub(crate) fn start(engine: Engine, environment: &[(&str, &str)]) -> Option<Node> {
    let Engine(product, version) = engine;
    if let Err(why) = script(&["fetch", product, version, &cache()], &[]) {
        super::skip(&format!("{product} {version} cannot be fetched: {why}"));
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let dir = std::env::temp_dir().join(format!("backstay-search-{}-{port}", std::process::id()));
    let (text, parent) = (dir.to_str().unwrap().to_owned(), std::process::id().to_string());
    let started = script(&["start", product, version, &cache(), &text, &port, &parent], environment);
    started.unwrap_or_else(|why| panic!("{product} {version} does not start: {why}"));
    let typed = product == "elasticsearch" && version.starts_with('6');
    Some(Node { url: format!("http://127.0.0.1:{port}"), dir, typed, login: None })
}

/// The node of this engine that the tests share.
pub(crate) fn shared(engine: Engine) -> Option<Node> {
    static OPEN: OnceLock<Option<Node>> = OnceLock::new();
    static ELASTIC: OnceLock<Option<Node>> = OnceLock::new();
    let slot = if engine.0 == OPENSEARCH.0 { &OPEN } else { &ELASTIC };
    slot.get_or_init(|| start(engine, &[])).clone()
}

impl Node {
    /// The same node, asked as this user.
    pub(crate) fn with_login(self, user: &'static str, password: &'static str) -> Self {
        Self { login: Some((user, password)), ..self }
    }
    /// One request; status and answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap();
            let mut request = client.request(method.parse().unwrap(), format!("{}{path}", self.url));
            if let Some((user, password)) = self.login {
                request = request.basic_auth(user, Some(password));
            }
            if let Some(body) = body {
                let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
                request = request.header("content-type", "application/json").body(text);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
        })
    }
    /// One request that must succeed. Old versions remove no snapshot while another test makes or restores one: that
    /// is waited for.
    pub(crate) fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (mut status, mut answer) = self.ask(method, path, body);
        for _ in 0..300 {
            if status != 503 || !answer.to_string().contains("cannot delete") {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
            (status, answer) = self.ask(method, path, body);
        }
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }
    /// An index with `documents` documents and `shards` shards.
    pub(crate) fn fill(&self, index: &str, documents: usize, shards: u32) {
        let settings = json!({"settings": {"number_of_shards": shards, "number_of_replicas": 0}});
        if self.ask("GET", &format!("/{index}/_settings"), None).0 == 404 {
            self.must("PUT", &format!("/{index}"), Some(&settings));
        }
        let mut bulk = String::new();
        for n in 0..documents {
            let text = format!("document {n} of {index}");
            bulk.push_str(&format!("{{\"index\":{{\"_id\":\"{n}\"}}}}\n{{\"n\":{n},\"text\":\"{text}\"}}\n"));
        }
        let path = if self.typed { format!("/{index}/_doc/_bulk") } else { format!("/{index}/_bulk") };
        let answer = self.must("POST", &format!("{path}?refresh=true"), Some(&Value::String(bulk)));
        assert_eq!(answer["errors"], false, "{answer}");
    }
    /// Every document of an index, by id.
    pub(crate) fn documents(&self, index: &str) -> std::collections::BTreeMap<String, Value> {
        let found = self.must("GET", &format!("/{index}/_search?size=10000"), None);
        let hits = found["hits"]["hits"].as_array().unwrap();
        hits.iter().map(|h| (h["_id"].as_str().unwrap().to_owned(), h["_source"].clone())).collect()
    }
    /// Names of the snapshots in a repository.
    pub(crate) fn snapshots(&self, repository: &str) -> Vec<String> {
        let all = self.must("GET", &format!("/_snapshot/{repository}/_all"), None);
        let name = |s: &Value| s["snapshot"].as_str().unwrap().to_owned();
        all["snapshots"].as_array().unwrap().iter().map(name).collect()
    }
    /// Elasticsearch 6.
    pub(crate) fn is_old(&self) -> bool {
        self.typed
    }
    /// Its process.
    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        let text = std::fs::read_to_string(self.dir.join("pid")).unwrap();
        nix::unistd::Pid::from_raw(text.trim().parse().unwrap())
    }
    /// Starts it again after it was killed.
    pub(crate) fn again(&self) {
        until("the node is gone", || !super::fake::alive(self.pid()));
        script(&["again", self.dir.to_str().unwrap()], &[]).unwrap();
    }
}

/// A configuration with a service `search`, its state and its places.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) dir: tempfile::TempDir,
}

impl Deployment {
    /// `search` stands below `elasticsearch:`, `more` below the service; `{root}` is the deployment's directory.
    pub(crate) fn new(url: &str, search: &str, more: &str) -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        made.configure(url, search, more);
        made
    }
    /// Writes the configuration anew.
    pub(crate) fn configure(&self, url: &str, search: &str, more: &str) {
        self.configure_with("second: {local: {path: {root}/second}}", url, search, more);
    }
    /// The same with other destinations.
    pub(crate) fn configure_with(&self, destinations: &str, url: &str, search: &str, more: &str) {
        let root = self.root();
        let text = format!(
            "environment: test\nhost: h1\nstate_dir: {root}/state\ndestinations: {{{destinations}}}\n\
             services:\n  search:\n    elasticsearch:\n      url: {url}\n{search}    backup_dir: {root}/local\n{more}"
        );
        std::fs::write(self.dir.path().join("backstay.yml"), text.replace("{root}", &root)).unwrap();
    }
    pub(crate) fn root(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }
    /// The program with this configuration.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let config = self.dir.path().join("backstay.yml");
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(args);
        let mut command = backstay(&all);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        ended(self.command(args).spawn().unwrap())
    }
    /// Lines of JSON that a command says.
    pub(crate) fn json(&self, args: &[&str]) -> Vec<Value> {
        let ran = self.run(&[&["--json"], args].concat());
        ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
    /// Id and state of each point in the service's own directory.
    pub(crate) fn points(&self) -> Vec<(String, String)> {
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let lines = self.json(&["list", "--from", "local"]);
        lines
            .iter()
            .filter(|l| l["message_type"] == "restore_point")
            .map(|l| (text(&l["id"]), text(&l["state"])))
            .collect()
    }
    /// The manifest of a point.
    pub(crate) fn manifest(&self, id: &str) -> Value {
        let text = std::fs::read_to_string(self.dir.path().join("local").join(id).join("manifest.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}
