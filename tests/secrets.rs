//! Planted secrets must not be found again: in no argument of a program, no output, no log, no file.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::common::fake::{Fake, WHOLE, collect};
use crate::common::smtpd::Smtpd;
use crate::common::write;

const SECRETS: [(&str, &str); 6] = [
    ("password of PostgreSQL", "planted-pg-7d1f0c"),
    ("S3 key in a file", "planted-s3file-93ab41/x+y"),
    ("session token in a file", "planted-token-55ee02"),
    ("S3 key in the environment", "planted-s3env-c2c8d9/x+y"),
    ("session token in the environment", "planted-tokenenv-0b77fa"),
    ("password of the mail server", "planted-mail-e41b6a"),
];

/// A store that answers every request with 403; the requests it got. It ends with the test.
fn denying_store() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, shared) = (stream.unwrap(), Arc::clone(&shared));
            std::thread::spawn(move || {
                let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
                while !text.windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read(&mut buffer) {
                        Ok(n @ 1..) => text.extend(&buffer[..n]),
                        _ => return,
                    }
                }
                shared.lock().unwrap().push(String::from_utf8_lossy(&text).into_owned());
                let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
                let _ = write!(
                    stream,
                    "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            });
        }
    });
    (port, seen)
}

fn private(path: &str, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A deployment that uses every secret; the requests that the store got; the mail server.
fn planted() -> (Fake, Arc<Mutex<Vec<String>>>, Smtpd) {
    let d = Fake::new("");
    let smtpd = Smtpd::start_with_password("starttls", SECRETS[5].1);
    let (port, seen) = denying_store();
    let root = d.root();
    let pass = write(d.dir.path(), "secret/pgpass", &format!("*:*:*:*:{}\n", SECRETS[0].1));
    let keys = format!(
        "[default]\naws_access_key_id = AKFILE\naws_secret_access_key = {}\naws_session_token = {}\n",
        SECRETS[1].1, SECRETS[2].1
    );
    let keys = write(d.dir.path(), "secret/s3", &keys);
    private(&pass, 0o600);
    private(&keys, 0o600);
    let s3 = |credentials: &str| {
        format!("s3: {{bucket: b, endpoint: \"http://127.0.0.1:{port}\", retries: 0, credentials: {credentials}}}")
    };
    d.configure(&format!(
        "environment: test\nhost: h1\nstate_dir: {root}/state\ndestinations:\n  byfile:\n    {}\n  byenv:\n    {}\n\
         services:\n  db:\n    postgres: {{method: dump, bin_dir: {root}/bin, passfile: {pass}}}\n    \
         backup_dir: {root}/local\n    destinations: [byfile, byenv]\n    keep: {{daily: 7}}\n\
         check: {{email: [ops@example.com]}}\n\
         mail: {{smtp: \"smtp://localhost:{}\", ca_file: {:?}, from: a@example.com, username: u, \
         password: {{env: PLANTED_MAIL}}}}\n",
        s3(&format!("{{file: {keys}}}")),
        s3("{env: PLANTED_S3}"),
        smtpd.port,
        smtpd.ca_file(),
    ));
    d.behave(WHOLE);
    (d, seen, smtpd)
}

/// Forms in which a secret may be written: as it is, and in the forms of URLs, of base64 and of `Debug`.
fn forms(secret: &str) -> Vec<String> {
    let base64 = |text: &str| {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let triples = text.as_bytes().chunks_exact(3);
        let number = |t: &[u8]| u32::from(t[0]) << 16 | u32::from(t[1]) << 8 | u32::from(t[2]);
        triples
            .map(number)
            .flat_map(|n| [18, 12, 6, 0].map(|by| char::from(LETTERS[(n >> by & 63) as usize])))
            .collect::<String>()
    };
    let mut forms = vec![secret.to_owned(), secret.replace('/', "%2F").replace('+', "%2B")];
    forms.extend([base64(secret), base64(&secret[1..]), base64(&secret[2..]), base64(&format!("\0u\0{secret}"))]);
    let bytes: Vec<String> = secret.bytes().map(|b| b.to_string()).collect();
    forms.push(bytes.join(", "));
    forms
}

/// The first secret in a text: its name, and what stands around it.
fn found(text: &[u8]) -> Option<(&'static str, String)> {
    let all = SECRETS.iter().flat_map(|(what, secret)| forms(secret).into_iter().map(move |form| (*what, form)));
    all.into_iter().find_map(|(what, form)| {
        let at = text.windows(form.len()).position(|w| w == form.as_bytes())?;
        Some((what, String::from_utf8_lossy(&text[at.saturating_sub(200)..(at + 80).min(text.len())]).into_owned()))
    })
}

#[track_caller]
fn must_not_be_in(text: &[u8], place: &str) {
    if let Some((what, around)) = found(text) {
        panic!("the {what} is in {place}: ...{around}...");
    }
}

#[test]
fn a_planted_secret_would_be_found() {
    let [.., (what, secret)] = SECRETS;
    let name = |text: &str| found(text.as_bytes()).map(|(what, _)| what);
    // The base64 of a login by AUTH PLAIN, as a mail library might log it.
    for text in [secret, "AHUAcGxhbnRlZC1tYWlsLWU0MWI2YQ==", &format!("{:?}", secret.as_bytes())] {
        assert_eq!(name(&format!("a line with {text} in it")), Some(what));
    }
    assert_eq!(name("planted-s3file-93ab41%2Fx%2By"), Some(SECRETS[1].0));
    assert_eq!(name("planted"), None);
}

#[test]
fn planted_secrets_are_in_no_argument_no_output_no_log_and_no_file() {
    if !Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success()) {
        return crate::common::skip("planted secrets: strace is not here, or must not trace");
    }
    let (d, seen, smtpd) = planted();
    let calls = d.path("calls");
    for args in [
        &["backup"][..],
        &["backup", "--json", "--manual"],
        &["list"],
        &["check-s3"],
        &["config", "show"],
        &["config", "check"],
        &["verify", "db", "latest", "--from", "local"],
        &["test-alert"],
        &["prune"],
    ] {
        let plain = d.command(args);
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=execve", "-s", "4096", "-o"]).arg(&calls);
        command.arg(plain.get_program()).args(plain.get_args()).arg("-vvv").env("BACKSTAY_LOG", "trace");
        let keys = format!(
            "[default]\naws_access_key_id = AKENV\naws_secret_access_key = {}\naws_session_token = {}",
            SECRETS[3].1, SECRETS[4].1
        );
        command.env("PLANTED_S3", keys).env("PLANTED_MAIL", SECRETS[5].1).stdin(Stdio::null());
        let out = command.output().unwrap();
        let name = args.join(" ");
        must_not_be_in(&out.stdout, &format!("the output of {name}"));
        must_not_be_in(&out.stderr, &format!("the log of {name}"));
        let called = std::fs::read(&calls).unwrap();
        assert!(String::from_utf8_lossy(&called).contains("execve("));
        must_not_be_in(&called, &format!("an argument of a program that {name} started"));
        if args[0] == "backup" {
            assert_eq!(out.status.code(), Some(10), "{}", String::from_utf8_lossy(&out.stderr));
            assert!(String::from_utf8_lossy(&called).contains("pg_dumpall"));
        }
        if args[0] == "test-alert" {
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
    }
    let requests = seen.lock().unwrap().concat();
    for key in ["AKFILE", "AKENV"] {
        assert!(requests.contains(&format!("Credential={key}/")), "the store was not asked with {key}");
    }
    let mails = smtpd.mails();
    assert!(mails.len() >= 2 && mails.iter().all(|m| m.contains("X-Auth: True")), "{mails:#?}");
    mails.iter().for_each(|mail| must_not_be_in(mail.as_bytes(), "a mail"));
    let mut files = BTreeMap::new();
    for place in ["local", "state"] {
        collect(&d.path(place), &mut files);
    }
    assert!(files.keys().any(|p| p.ends_with("manifest.json")) && files.keys().any(|p| p.starts_with(d.path("state"))));
    for (path, content) in files {
        must_not_be_in(&content, &path.display().to_string());
    }
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    let (d, ..) = planted();
    let root = d.root();
    let config = std::fs::read_to_string(d.path("backstay.yml")).unwrap();
    d.configure(&config.replace("{env: PLANTED_S3}", &format!("{{file: {root}/secret/s3}}")));
    private(&format!("{root}/secret/pgpass"), 0o640);
    let ran = d.run(&["backup"]);
    assert_eq!(ran.code, 78, "{ran:#?}");
    assert!(ran.stderr.contains(&format!("the passfile {root}/secret/pgpass can be read by others")), "{ran:#?}");
    assert!(ran.stderr.contains(&format!("hint: run chmod 600 {root}/secret/pgpass.")), "{ran:#?}");
    private(&format!("{root}/secret/pgpass"), 0o600);
    private(&format!("{root}/secret/s3"), 0o604);
    let ran = d.run(&["backup"]);
    assert_eq!(ran.code, 78, "{ran:#?}");
    let said = format!("others can read the secret in \"{root}/secret/s3\" (mode 0604)");
    assert!(ran.stderr.contains(&said), "{ran:#?}");
    assert!(
        ran.stderr.contains(&format!(
            "hint: run `chmod 600 {root}/secret/s3` (640 with a group of the users who need it), and"
        )),
        "{ran:#?}"
    );
    must_not_be_in(ran.stderr.as_bytes(), "what is said about it");
}
