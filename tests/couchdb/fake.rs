//! A strict stand-in for a node: it knows the requests that a real one was asked, each once, and no other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// One request and its answer.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) request: String,
    pub(super) body: Value,
    pub(super) status: u16,
    pub(super) answer: Value,
}

/// What was recorded, by the name of its file.
pub(super) fn recorded(name: &str) -> Vec<Exchange> {
    let path = format!("{}/tests/couchdb/data/{name}-3.4.3.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let read = |line: &str| {
        let mut e: Value = serde_json::from_str(line).unwrap();
        Exchange {
            request: e["request"].as_str().unwrap().to_owned(),
            body: e["body"].take(),
            status: u16::try_from(e["status"].as_u64().unwrap()).unwrap(),
            answer: e["answer"].take(),
        }
    };
    text.lines().map(read).collect()
}

/// How a request is answered instead.
#[derive(Debug, Clone)]
pub(super) enum Instead {
    /// With a status and a text.
    Text(u16, &'static str),
    /// With the first half of the answer.
    Half,
    /// Not at all.
    Hangup,
}

/// The stand-in.
#[derive(Debug, Clone)]
pub(super) struct Fake {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    left: Vec<Exchange>,
    asked: Vec<String>,
    unknown: Vec<String>,
    instead: Option<(String, Instead)>,
}

impl Fake {
    pub(super) fn start(known: Vec<Exchange>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { left: known, ..State::default() }));
        let fake = Self { url, state: Arc::clone(&state) };
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                serve(&connection, &state);
            }
        });
        fake
    }

    /// Requests that begin with this are answered in another way.
    pub(super) fn instead(&self, begin: &str, how: Instead) {
        self.state.lock().unwrap().instead = Some((begin.to_owned(), how));
    }

    /// All requests, in their order.
    pub(super) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Demands that nothing unknown was asked.
    pub(super) fn assert_known(&self) {
        assert_eq!(self.state.lock().unwrap().unknown, Vec::<String>::new());
    }

    /// Demands that all that is known was asked, and nothing else.
    pub(super) fn assert_all(&self) {
        self.assert_known();
        let left: Vec<String> = self.state.lock().unwrap().left.iter().map(|e| e.request.clone()).collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

fn serve(mut connection: &TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(connection);
    let mut first = String::new();
    if lines.read_line(&mut first).unwrap_or(0) == 0 {
        return;
    }
    let (mut length, mut login) = (0, String::new());
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let Some((key, value)) = line.trim().split_once(": ") else { break };
        match key.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => login = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body).unwrap();
    let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    let request = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let mut state = state.lock().unwrap();
    state.asked.push(request.clone());
    let found = state.left.iter().position(|e| e.request == request && e.body == body);
    let instead = state.instead.clone().filter(|(begin, _)| request.starts_with(begin.as_str())).map(|(_, how)| how);
    let good = login == "Basic YWRtaW46c2VjcmV0";
    let (status, mut text) = match (found, &instead) {
        (_, Some(Instead::Text(status, text))) => (*status, (*text).to_owned()),
        (Some(at), _) if good => {
            let known = state.left.remove(at);
            (known.status, known.answer.to_string())
        }
        _ => {
            state.unknown.push(format!("{request} {body} {login}"));
            (599, "{}".to_owned())
        }
    };
    if matches!(instead, Some(Instead::Hangup)) {
        return;
    }
    let length = text.len();
    if matches!(instead, Some(Instead::Half)) {
        text.truncate(length / 2);
    }
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(text.as_bytes()));
}
