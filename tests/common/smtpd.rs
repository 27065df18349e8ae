//! A real SMTP server (`tests/tools/smtpd.py`).

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backstay::config::Mail;
use backstay::notify::mail::Mailer;
use tempfile::TempDir;

/// A mail server of its own for each test; it ends with its standard input.
#[derive(Debug)]
pub(crate) struct Smtpd {
    dir: TempDir,
    child: Child,
    pub(crate) port: u16,
}

impl Smtpd {
    /// The login is `u` with the password `pw`.
    pub(crate) fn start(mode: &str) -> Self {
        Self::start_with_password(mode, "pw")
    }

    /// The login is `u` with this password.
    #[allow(clippy::disallowed_methods, reason = "a test server that is waited for by its port file")]
    pub(crate) fn start_with_password(mode: &str, password: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("target/venv/bin/python");
        assert!(
            python.exists(),
            "the mail tests need aiosmtpd: python3 -m venv target/venv && target/venv/bin/pip install aiosmtpd==1.4.6"
        );
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(python)
            .arg(root.join("tests/tools/smtpd.py"))
            .arg(dir.path())
            .arg(mode)
            .env("SMTPD_PASSWORD", password)
            .stdin(Stdio::piped())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut smtpd = Self { dir, child, port: 0 };
        for _ in 0..600 {
            if let Ok(text) = std::fs::read_to_string(smtpd.dir.path().join("port")) {
                smtpd.port = text.trim().parse().unwrap();
                return smtpd;
            }
            let log = std::fs::read_to_string(smtpd.dir.path().join("log")).unwrap_or_default();
            assert!(smtpd.child.try_wait().unwrap().is_none(), "the mail server ended: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the mail server did not start");
    }

    /// Where the certificate of its authority is.
    pub(crate) fn ca_file(&self) -> std::path::PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn ca(&self) -> Vec<u8> {
        std::fs::read(self.ca_file()).unwrap()
    }

    pub(crate) fn mails(&self) -> Vec<String> {
        let path = |n: usize| self.dir.path().join(format!("mail/{n}.eml"));
        (1..).map_while(|n| std::fs::read_to_string(path(n)).ok()).collect()
    }

    /// Every recipient that the server was asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("rcpt")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn config(&self, url: &str, username: Option<&str>) -> Mail {
        Mail {
            smtp: Some(url.replace("PORT", &self.port.to_string())),
            from: "Backstay <backstay@example.com>".into(),
            username: username.map(str::to_owned),
            password: None,
            ca_file: None,
            sendmail: "/nonexistent".into(),
        }
    }

    pub(crate) fn mailer(&self) -> Mailer {
        let config = self.config("smtp://localhost:PORT", Some("u"));
        Mailer::new(&config, Some("pw"), Some(&self.ca())).unwrap().backoff(Duration::from_millis(5))
    }
}

impl Drop for Smtpd {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
