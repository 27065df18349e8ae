//! A real Chromium, spoken to over two named pipes in its own protocol: JSON messages that end in a zero byte.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// What a page looks like from outside.
pub(super) struct Seen {
    /// Width that the page wants, in CSS pixels.
    pub(super) widest: u64,
    /// Elements that stick out.
    pub(super) overflowing: Vec<String>,
    /// All that it asked for.
    pub(super) requests: Vec<String>,
    /// What the console said.
    pub(super) complaints: Vec<String>,
    pub(super) text: String,
    pub(super) charts: u64,
    /// PNG.
    pub(super) picture: Vec<u8>,
}

pub(super) struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    session: String,
    next: u64,
    events: Vec<Value>,
    _dir: tempfile::TempDir,
}

const LOOK: &str = "(() => {
  const width = document.documentElement.clientWidth;
  const out = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width + 0.5)
    .map(e => e.tagName + ' ' + e.textContent.slice(0, 60));
  return JSON.stringify({widest: document.documentElement.scrollWidth, overflowing: out,
    text: document.body.innerText + [...document.querySelectorAll('td')].map(e => e.textContent).join(' '), charts: document.querySelectorAll('svg').length});
})()";

impl Browser {
    /// Starts it; `None` where there is none.
    pub(super) fn start() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
        let program = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|n| is_there(n))?;
        let dir = tempfile::tempdir().unwrap();
        let (to, from) = (dir.path().join("to"), dir.path().join("from"));
        for pipe in [&to, &from] {
            nix::unistd::mkfifo(pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }
        let child = Command::new("bash")
            .args(["-c", "exec \"$@\" 3<\"$TO\" 4>\"$FROM\"", "browser", program])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .env("TO", &to)
            .env("FROM", &from)
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The browser opens them in this order.
        let to = File::options().write(true).open(to).unwrap();
        let from = BufReader::new(File::open(from).unwrap());
        let mut made = Self { child, to, from, session: String::new(), next: 0, events: Vec::new(), _dir: dir };
        let target = made.call("Target.createTarget", &json!({"url": "about:blank"}))["targetId"].clone();
        let attached = made.call("Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        made.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Network", "Runtime", "Log"] {
            made.call(&format!("{domain}.enable"), &json!({}));
        }
        Some(made)
    }

    fn receive(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "the browser went away");
        serde_json::from_slice(&bytes).unwrap()
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.receive();
            if answer["id"] == json!(self.next) {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    fn open(&mut self, file: &Path) {
        self.events.clear();
        self.call("Page.navigate", &json!({"url": format!("file://{}", file.display())}));
        while !self.events.iter().any(|e| e["method"] == "Page.loadEventFired") {
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// Opens a file in a window of this size.
    pub(super) fn look(&mut self, file: &Path, width: u32, height: u32) -> Seen {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        self.open(file);
        let seen = self.call("Runtime.evaluate", &json!({"expression": LOOK, "returnByValue": true}));
        let seen: Value = serde_json::from_str(seen["result"]["value"].as_str().unwrap()).unwrap();
        let picture = self.call("Page.captureScreenshot", &json!({"format": "png", "captureBeyondViewport": true}));
        let of = |method: &str| {
            self.events.iter().filter(|e| e["method"] == method).map(|e| &e["params"]).collect::<Vec<_>>()
        };
        let complaints = ["Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"];
        Seen {
            widest: seen["widest"].as_u64().unwrap(),
            overflowing: serde_json::from_value(seen["overflowing"].clone()).unwrap(),
            requests: of("Network.requestWillBeSent")
                .iter()
                .map(|p| p["request"]["url"].as_str().unwrap().to_owned())
                .filter(|url| url != "data:,")
                .collect(),
            complaints: complaints.iter().flat_map(|m| of(m)).map(Value::to_string).collect(),
            text: seen["text"].as_str().unwrap().to_owned(),
            charts: seen["charts"].as_u64().unwrap(),
            picture: base64(picture["data"].as_str().unwrap()),
        }
    }

    /// The page as a PDF.
    pub(super) fn print(&mut self, file: &Path) -> Vec<u8> {
        self.open(file);
        let paper = self.call("Page.printToPDF", &json!({"preferCSSPageSize": true}));
        base64(paper["data"].as_str().unwrap())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for digit in text.bytes().filter(|b| *b != b'=') {
        let value = DIGITS.iter().position(|d| *d == digit).unwrap();
        bits = (bits << 6) | u32::try_from(value).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from((bits >> count) & 0xff).unwrap());
        }
    }
    out
}
