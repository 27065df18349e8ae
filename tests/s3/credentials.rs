//! Whose keys sign the requests, without `credentials`: the environment's, a profile's, an instance role's.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use crate::common::Ran;
use crate::common::fake::{Fake, ended};
use crate::common::s3_fault::{ACCESS, FaultServer, SECRET};

/// What no environment of this host may change.
const AWS: [&str; 9] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

struct Host {
    d: Fake,
    server: FaultServer,
}

impl Host {
    fn new(more: &str) -> Self {
        let (d, server) = (Fake::new(""), FaultServer::start());
        let (root, endpoint, bucket) = (d.root(), server.endpoint(), server.bucket());
        std::fs::create_dir(d.path("blobs")).expect("a directory");
        std::fs::write(d.path("blobs/file"), "content").expect("a file");
        d.configure(&format!(
            "host: h1\nstate_dir: {root}/state\ndestinations:\n  offsite:\n    \
             s3: {{bucket: {bucket}, endpoint: \"{endpoint}\", retries: 0{more}}}\nservices:\n  blobs:\n    \
             blobdir: {{path: {root}/blobs}}\n    destinations: [offsite]\n    keep: {{daily: 7}}\n"
        ));
        Self { d, server }
    }

    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        let mut command: Command = self.d.command(args);
        for name in AWS {
            command.env_remove(name);
        }
        // Without an instance, nothing answers there, and asking takes its time.
        command.env("HOME", self.d.root()).env("AWS_EC2_METADATA_DISABLED", "true").envs(env.iter().copied());
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        ended(child.expect("the program"))
    }

    /// A backup, and a restore that is compared.
    fn works(&self, env: &[(&str, &str)]) {
        self.run(&["backup", "--manual"], env).ok();
        let to = self.d.path("restored");
        self.run(&["restore", "blobs", "latest", "--from", "offsite", "--to", to.to_str().expect("text")], env).ok();
        assert_eq!(std::fs::read_to_string(to.join("file")).expect("restored"), "content");
    }
}

#[test]
fn keys_of_the_environment_are_used() {
    let host = Host::new("");
    host.works(&[("AWS_ACCESS_KEY_ID", ACCESS), ("AWS_SECRET_ACCESS_KEY", SECRET)]);
    assert!(host.server.guards("PutObject").iter().all(|guard| guard.token.is_none()));
}

#[test]
fn keys_of_a_profile_are_used() {
    let wrong = "[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n";
    let text = format!("{wrong}[backup]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n");
    for (more, profile) in [(", profile: backup", None), ("", Some("backup"))] {
        let host = Host::new(more);
        std::fs::create_dir(host.d.path(".aws")).expect("a directory");
        std::fs::write(host.d.path(".aws/credentials"), &text).expect("a file");
        host.works(&profile.map(|name| ("AWS_PROFILE", name)).into_iter().collect::<Vec<_>>());
    }
    let host = Host::new("");
    let elsewhere = host.d.path("keys");
    std::fs::write(&elsewhere, &text).expect("a file");
    let elsewhere = elsewhere.to_str().expect("text").to_owned();
    host.works(&[("AWS_SHARED_CREDENTIALS_FILE", &elsewhere), ("AWS_PROFILE", "backup")]);
}

#[test]
fn keys_of_the_instance_role_are_used() {
    let host = Host::new("");
    let metadata = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", metadata.local_addr().expect("a port"));
    std::thread::spawn(move || metadata.incoming().flatten().for_each(|client| answer(client).unwrap_or_default()));
    host.works(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint), ("AWS_EC2_METADATA_DISABLED", "false")]);
    let guards = host.server.guards("PutObject");
    assert!(!guards.is_empty() && guards.iter().all(|guard| guard.token.as_deref() == Some("role-token")));
}

/// As much of the metadata service as the role takes, second version: it wants a token that it gave.
fn answer(mut client: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let mut request = String::new();
    let mut trusted = false;
    for line in lines.by_ref() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        trusted |= line.eq_ignore_ascii_case("x-aws-ec2-metadata-token: metadata-token");
        if request.is_empty() {
            request = line;
        }
    }
    let role = format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"AccessKeyId\":\"{ACCESS}\",\"SecretAccessKey\":\"{SECRET}\",\
         \"Token\":\"role-token\",\"LastUpdated\":\"2026-01-01T00:00:00Z\",\"Expiration\":\"2099-01-01T00:00:00Z\"}}"
    );
    let roles = "/latest/meta-data/iam/security-credentials/";
    let mut words = request.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("PUT"), Some("/latest/api/token")) => ("200 OK", "metadata-token"),
        (Some("GET"), Some(_)) if !trusted => ("401 Unauthorized", ""),
        (Some("GET"), Some(path)) if path == roles => ("200 OK", "backup-role"),
        (Some("GET"), Some(path)) if path.strip_prefix(roles) == Some("backup-role") => ("200 OK", role.as_str()),
        _ => ("404 Not Found", ""),
    };
    let length = body.len();
    let headers =
        format!("x-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: {length}\r\nConnection: close");
    write!(client, "HTTP/1.1 {status}\r\n{headers}\r\n\r\n{body}")
}

#[test]
fn without_keys_it_says_how_to_give_them() {
    let host = Host::new("");
    let said = host.run(&["backup", "--manual"], &[]);
    assert_ne!(said.code, 0);
    let hint = "hint: set `credentials` of the destination, or the environment that the AWS tools use.";
    assert!(said.stderr.contains(hint), "{}", said.stderr);
}
