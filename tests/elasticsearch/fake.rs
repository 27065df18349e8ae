//! A cluster that answers as real ones did (`answers.jsonl`: recorded), and as proxies, full disks and dying servers do.
//! It knows exactly what a backup asks; anything else fails the test.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// What it answers instead of the usual.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Json(u16, Value),
    Text(u16, &'static str),
    /// Fewer bytes than announced.
    Half,
    /// Nothing, until the client goes away.
    Hang,
}

#[derive(Debug, Default)]
struct State {
    /// Replies by question: `create`, `get`, `verify`, `nodes`, ...
    instead: BTreeMap<&'static str, Reply>,
    snapshots: BTreeMap<String, Value>,
    asked: Vec<String>,
    logins: Vec<String>,
    unknown: Vec<String>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
}

/// A recorded answer: status and body.
pub(super) fn recorded(case: &str) -> (u16, Value) {
    let lines = include_str!("answers.jsonl").lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let line = lines.into_iter().find(|l| l["case"] == case).unwrap_or_else(|| panic!("{case} was not recorded"));
    (u16::try_from(line["status"].as_u64().unwrap()).unwrap(), line["answer"].clone())
}

/// The cluster has an index `a` with one shard and `lost` with two.
const SHARDS: [(&str, u64); 2] = [("a", 1), ("lost", 2)];

impl Fake {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { url, state }
    }
    /// Answers like this from now on.
    pub(super) fn instead(&self, question: &'static str, reply: Reply) {
        self.state.lock().unwrap().instead.insert(question, reply);
    }
    /// Answers as usual again.
    pub(super) fn heal(&self) {
        self.state.lock().unwrap().instead.clear();
    }
    /// What was asked so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }
    /// The logins that came with the questions.
    pub(super) fn logins(&self) -> Vec<String> {
        self.state.lock().unwrap().logins.clone()
    }
    /// Names of the snapshots it has.
    pub(super) fn snapshots(&self) -> Vec<String> {
        self.state.lock().unwrap().snapshots.keys().cloned().collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let unknown = self.state.lock().unwrap().unknown.clone();
        assert!(std::thread::panicking() || unknown.is_empty(), "no cluster was ever asked this: {unknown:#?}");
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    while let Some((head, body)) = request(&mut stream) {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let login = head.lines().find(|l| l.to_ascii_lowercase().starts_with("authorization:"));
        let reply = {
            let mut state = state.lock().unwrap();
            state.asked.push(line.clone());
            state.logins.extend(login.map(str::to_owned));
            answer(&mut state, &line, &body)
        };
        let (status, text, announced) = match reply {
            Reply::Json(status, json) => (status, json.to_string(), None),
            Reply::Text(status, text) => (status, text.to_owned(), None),
            Reply::Half => (200, "{\"snapshots\":[".to_owned(), Some(4000)),
            Reply::Hang => {
                let _ = stream.read(&mut [0]);
                return;
            }
        };
        let length = announced.unwrap_or(text.len());
        let sent = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{text}");
        if sent.is_err() || announced.is_some() {
            return;
        }
    }
}

fn request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let mut bytes = Vec::new();
    let mut one = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut one).ok()? == 0 {
            return None;
        }
        bytes.push(one[0]);
    }
    let head = String::from_utf8(bytes).ok()?;
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

fn answer(state: &mut State, line: &str, body: &Value) -> Reply {
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default().replace("%5F", "_");
    let snapshot = path.strip_prefix("/_snapshot/r/").map(str::to_owned);
    let question = match (method, path.as_str(), &snapshot) {
        ("GET", "/_nodes", _) => "nodes",
        ("GET", "/_nodes/settings", _) => "settings",
        ("GET", "/_nodes/stats/fs", _) => "room",
        ("GET", "/_cluster/state/metadata", _) => "indices",
        ("GET", "/_cluster/health", _) => "health",
        ("POST", "/a,lost/_refresh", _) => "refresh",
        ("GET", "/_stats/docs,store", _) => "sizes",
        ("GET", "/_snapshot/_status", _) => "running",
        ("GET", "/_snapshot/r", _) => "repository",
        ("POST", "/_snapshot/r/_verify", _) => "verify",
        ("GET", "/_snapshot/r/_all", _) => "list",
        ("PUT", _, Some(_)) => "create",
        ("GET", _, Some(_)) => "get",
        ("DELETE", _, Some(_)) => "delete",
        _ => {
            state.unknown.push(format!("{line} {body}"));
            return Reply::Json(501, json!({"error": {"type": "unknown", "reason": "unknown"}}));
        }
    };
    let name = snapshot.unwrap_or_default();
    if question == "create" {
        assert_eq!(body["partial"], false);
        assert_eq!(body["indices"], json!(["a", "lost"]));
        assert_eq!(body["metadata"]["taken_by"], "backstay");
        state.snapshots.insert(name.clone(), whole(&name));
    }
    if question == "delete" {
        state.snapshots.remove(&name);
    }
    // The list says the same as a look at one.
    if question == "get"
        && state.snapshots.contains_key(&name)
        && let Some(Reply::Json(200, json)) = state.instead.get("get")
    {
        let seen = renamed(json, &name)["snapshots"][0].clone();
        state.snapshots.insert(name.clone(), seen);
    }
    if question == "get" && matches!(state.instead.get("get"), Some(Reply::Json(404, _))) {
        state.snapshots.remove(&name);
    }
    match state.instead.get(question) {
        // What was removed is gone, whatever it was before.
        Some(_) if question == "get" && !state.snapshots.contains_key(&name) => usual(state, question, &name),
        Some(Reply::Json(status, json)) => Reply::Json(*status, renamed(json, &name)),
        Some(reply) => reply.clone(),
        None => usual(state, question, &name),
    }
}

fn whole(name: &str) -> Value {
    json!({"snapshot": name, "uuid": format!("uuid-of-{name}"), "indices": ["a", "lost"], "state": "SUCCESS",
        "failures": [], "shards": {"total": 3, "failed": 0, "successful": 3}})
}

/// A recorded answer about the snapshot that is asked for.
fn renamed(json: &Value, name: &str) -> Value {
    let mut json = json.clone();
    for snapshot in json["snapshots"].as_array_mut().into_iter().flatten() {
        snapshot["snapshot"] = name.into();
    }
    json
}

fn usual(state: &State, question: &str, name: &str) -> Reply {
    let per_index = |of: &dyn Fn(u64) -> Value| -> Value {
        SHARDS
            .iter()
            .map(|(index, shards)| ((*index).to_owned(), of(*shards)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    Reply::Json(
        200,
        match question {
            "nodes" => json!({"nodes": {"n": {"version": "2.19.1", "modules": [{"classname": "org.opensearch.X"}]}}}),
            "room" => json!({"nodes": {"n": {"roles": ["data"], "fs": {"total": {"available_in_bytes": 2000}}}}}),
            "settings" => json!({"nodes": {"n": {"settings": {"path": {"repo": ["/nowhere/snapshots"]}}}}}),
            "indices" => {
                let index = |shards: u64| {
                    json!({"state": "open", "settings": {"index": {"number_of_shards": shards.to_string(),
                        "version": {"created": "136407927"}}}})
                };
                json!({"cluster_name": "fake", "metadata": {"indices": per_index(&index)}})
            }
            "health" => json!({"status": "green"}),
            "refresh" | "verify" => json!({}),
            "sizes" => {
                let size = |_| json!({"primaries": {"docs": {"count": 7}, "store": {"size_in_bytes": 1000}}});
                json!({"_shards": {"total": 3}, "indices": per_index(&size)})
            }
            "running" => json!({"snapshots": []}),
            "repository" => json!({"r": {"type": "fs", "settings": {"location": "r"}}}),
            "list" => json!({"snapshots": state.snapshots.values().collect::<Vec<_>>()}),
            "create" => recorded("rofs-create-nowait").1,
            "delete" => json!({"acknowledged": true}),
            _ => match state.snapshots.get(name) {
                Some(snapshot) => json!({"snapshots": [snapshot]}),
                None => return Reply::Json(404, recorded("get-missing").1),
            },
        },
    )
}
