//! A real CouchDB, started where `COUCHDB` names an installation: a folder with `bin/couchdb`, which takes
//! `COUCHDB_ARGS_FILE` and `COUCHDB_INI_FILES`, and `etc/default.ini`, as the packages of CouchDB 3 have them.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::common::{unable, write};

/// The installation, or a note that there is none.
pub(crate) fn installation() -> Option<PathBuf> {
    let found = std::env::var_os("COUCHDB").map(PathBuf::from);
    if found.is_none() {
        unable("no real CouchDB: set COUCHDB to an installation of it (a folder with bin/couchdb and etc/default.ini)");
    }
    found
}

/// A part of a path.
pub(crate) fn quote(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A node with a directory of its own. Stopped when dropped.
pub(crate) struct Node {
    pub(crate) dir: PathBuf,
    pub(crate) name: String,
    pub(crate) url: String,
    client: reqwest::Client,
}

impl Node {
    /// Its settings and commands; nothing runs yet.
    pub(crate) fn new(couchdb: &Path, dir: &Path, short: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let name = format!("{short}{}x{port}@127.0.0.1", std::process::id());
        let data = dir.join("data");
        let ini = format!(
            "[couchdb]\ndatabase_dir = {data}\nview_index_dir = {data}\nuuid = 0123456789abcdef0123456789abcdef\n\
             [chttpd]\nport = {port}\nbind_address = 127.0.0.1\n[admins]\nadmin = secret\n[cluster]\nq = 2\nn = 1\n\
             [prometheus]\nadditional_port = false\n[log]\nwriter = file\nfile = {log}\n[replicator]\nmax_jobs = 0\n\
             [smoosh]\ndb_channels = ,\nview_channels = ,\n",
            data = data.display(),
            log = dir.join("log").display(),
        );
        fs::create_dir_all(&data).unwrap();
        write(dir, "etc/local.ini", &ini);
        let args = format!(
            "-name {name}\n-setcookie cookie{port}\n-kernel inet_dist_use_interface {{127,0,0,1}}\n-kernel error_logger silent\n\
             -sasl sasl_error_logger false\n+Bd -noinput\n-ssl session_lifetime 300\n"
        );
        write(dir, "etc/vm.args", &args);
        let start = format!(
            "#!/bin/sh\ncd {dir}\nexport COUCHDB_ARGS_FILE={dir}/etc/vm.args COUCHDB_INI_FILES='{couchdb}/etc/default.ini {dir}/etc/local.ini'\n\
             # Whoever runs this ends its process group with it: the node must have left it by then.\n\
             setsid sh -c 'echo $$ >{dir}/pid; exec {couchdb}/bin/couchdb' >{dir}/out 2>&1 </dev/null &\n\
             until [ -s {dir}/pid ]; do sleep 0.05; done\n",
            dir = dir.display(),
            couchdb = couchdb.display(),
        );
        write(dir, "start", &start);
        let stop = "#!/bin/sh\n[ -f DIR/pid ] || exit 0\nkill \"$(cat DIR/pid)\" 2>/dev/null\n\
                    while kill -0 \"$(cat DIR/pid)\" 2>/dev/null; do sleep 0.1; done\nrm DIR/pid\n";
        write(dir, "stop", &stop.replace("DIR", &dir.display().to_string()));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { dir: dir.to_owned(), name, url: format!("http://127.0.0.1:{port}"), client }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn command(&self, what: &str) {
        let status = Command::new("sh").arg(self.dir.join(what)).status().unwrap();
        assert!(status.success(), "{what}: {status}");
    }

    /// What it wrote to its terminal, and the end of its log.
    pub(crate) fn said(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let log = read("log");
        let tail: Vec<&str> = log.lines().rev().take(15).collect();
        format!("{}\n{}", read("out"), tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(&self) {
        self.command("start");
        for _ in 0..600 {
            if self.client.get(&self.url).send().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{}", self.said());
    }

    /// Settings of a service for it, with commands that start and stop it.
    pub(crate) fn settings(&self) -> String {
        let command = |what: &str| format!(r#"["sh", {:?}]"#, self.dir.join(what).display().to_string());
        let password = write(&self.dir, "password", "secret\n");
        fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        format!(
            r#", "url": "{}", "username": "admin", "password": {{"file": "{password}"}}, "start": {}, "stop": {}"#,
            self.url,
            command("start"),
            command("stop")
        )
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut request =
            self.client.request(method, format!("{}{path}", self.url)).basic_auth("admin", Some("secret"));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "GET {path}: {answer}");
        answer
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) {
        let (status, answer) = self.ask(Method::PUT, path, Some(body)).await;
        assert!(status < 300, "PUT {path}: {status} {answer}");
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(Method::POST, path, Some(body)).await;
        assert!(status < 300, "POST {path}: {status} {answer}");
        answer
    }

    pub(crate) async fn databases(&self) -> Vec<String> {
        serde_json::from_value(self.get("/_all_dbs").await).unwrap()
    }

    /// All that a user can see of a database: documents with conflicts and attachments, local ones, tombstones,
    /// security. What belongs to the node, such as sequences, is left out, and so is the one document that each node
    /// adds to `_users` by itself.
    pub(crate) async fn everything(&self, db: &str) -> Value {
        let db = quote(db);
        let docs = self.get(&format!("/{db}/_all_docs?include_docs=true&conflicts=true&attachments=true")).await;
        let changes = self.get(&format!("/{db}/_changes?style=all_docs")).await;
        let own = |row: &&Value| row["id"] != "_design/_auth";
        let docs: Vec<&Value> = docs["rows"].as_array().unwrap().iter().filter(own).collect();
        let leaves = changes["results"].as_array().unwrap().iter().filter(own);
        let mut leaves: Vec<Value> = leaves.map(|c| json!([c["id"], c["changes"], c["deleted"]])).collect();
        leaves.sort_by_key(ToString::to_string);
        let local = self.get(&format!("/{db}/_local_docs?include_docs=true")).await;
        json!([docs, leaves, local["rows"], self.get(&format!("/{db}/_security")).await])
    }

    /// Databases with awkward names and with everything that CouchDB knows.
    pub(crate) async fn fill(&self) {
        for db in ["_users", "_replicator", "user/foo", "user", "a+b$c_d", "plain", "empty"] {
            self.put(&format!("/{}", quote(db)), &json!({})).await;
        }
        for (db, n) in [("plain", 600), ("user/foo", 150), ("a+b$c_d", 90), ("user", 5)] {
            let docs: Vec<Value> =
                (0..n).map(|n| json!({"_id": format!("doc-{n:04}"), "n": n, "text": "x".repeat(n % 50)})).collect();
            self.post(&format!("/{}/_bulk_docs", quote(db)), &json!({"docs": docs})).await;
        }
        let torn = json!({"new_edits": false, "docs": [
            {"_id": "torn", "_rev": "1-a", "v": 1}, {"_id": "torn", "_rev": "1-b", "v": 2},
        ]});
        self.post("/plain/_bulk_docs", &torn).await;
        for n in 0..5 {
            let doc = self.get(&format!("/plain/doc-{n:04}")).await;
            let path = format!("/plain/doc-{n:04}?rev={}", doc["_rev"].as_str().unwrap());
            assert_eq!(self.ask(Method::DELETE, &path, None).await.0, 200);
        }
        let file = json!({"_attachments": {"a.bin": {"content_type": "x/y", "data": "aGVsbG8gd29ybGQ="}}});
        self.put("/user%2Ffoo/with-file", &file).await;
        self.put("/plain/_local/checkpoint", &json!({"seq": 5})).await;
        self.put(
            "/user%2Ffoo/_security",
            &json!({"admins": {"names": ["boss"], "roles": []}, "members": {"names": [], "roles": []}}),
        )
        .await;
        let design = json!({
            "views": {"by_n": {"map": "function(doc){emit(doc.n,1)}", "reduce": "_sum"}},
            "validate_doc_update": "function(d,o,u){if(d.forbidden)throw({forbidden:'no'})}",
        });
        self.put("/user%2Ffoo/_design/v", &design).await;
        self.put(
            "/_users/org.couchdb.user:jan",
            &json!({"name": "jan", "password": "apple", "roles": [], "type": "user"}),
        )
        .await;
        self.put("/_replicator/job", &json!({"source": "http://x:y@127.0.0.1:1/a", "target": "http://127.0.0.1:1/b"}))
            .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("sh").arg(self.dir.join("stop")).status();
    }
}
