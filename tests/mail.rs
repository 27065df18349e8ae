//! Mail against a real SMTP server (`tests/tools/smtpd.py`) and a sendmail program.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use backstay::config::Mail;
use backstay::error::{Error, ErrorKind};
use backstay::notify::mail::Mailer;
use backstay::notify::state::{AlarmState, Letter, Observation, advance};
use chrono::{DateTime, Utc};
use tempfile::TempDir;

use crate::common::smtpd::Smtpd;

fn now() -> DateTime<Utc> {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn to(list: &str) -> Vec<String> {
    list.split_whitespace().map(|a| format!("{a}@example.com")).collect()
}

fn letter() -> Letter {
    Letter { subject: "[backstay] ALERT db1: Größe".into(), body: "first\n.\n..dots\nüber\n".into() }
}

async fn refused(mailer: &Mailer, list: &str) -> Error {
    mailer.send(&to(list), &letter(), now()).await.unwrap_err()
}

#[tokio::test]
async fn a_mail_over_starttls_with_a_login() {
    let smtpd = Smtpd::start("starttls");
    smtpd.mailer().send(&to("ops dba"), &letter(), now()).await.unwrap();
    let mails = smtpd.mails();
    assert_eq!(mails.len(), 1, "{mails:?}");
    let (head, body) = mails[0].split_once("\r\n\r\n").unwrap();
    for line in [
        "X-Envelope-From: backstay@example.com",
        "X-Envelope-To: ops@example.com, dba@example.com",
        "X-Tls: True",
        "X-Auth: True",
        "Date: Fri, 20 Nov 2026 12:00:00 +0000",
        "To: ops@example.com, dba@example.com",
        "Auto-Submitted: auto-generated",
        "Content-Type: text/plain; charset=utf-8",
    ] {
        assert!(head.lines().any(|l| l == line), "{line:?} is not in\n{head}");
    }
    assert!(head.contains("From: ") && head.contains("<backstay@example.com>"), "{head}");
    assert!(head.contains(".backstay@example.com>"), "{head}");
    assert!(head.contains("Subject: [backstay] ALERT db1: =?utf-8?"), "{head}");
    assert!(body.starts_with("first\r\n.\r\n..dots\r\n"), "{body:?}");
}

#[tokio::test]
async fn a_mail_over_tls_from_the_first_byte() {
    let smtpd = Smtpd::start("tls");
    let config = smtpd.config("smtps://127.0.0.1:PORT", Some("u"));
    let mailer = Mailer::new(&config, Some("pw"), Some(&smtpd.ca())).unwrap();
    mailer.send(&to("ops"), &letter(), now()).await.unwrap();
    assert!(smtpd.mails()[0].contains("X-Tls: True"));
}

#[tokio::test]
async fn a_mail_in_the_clear_only_when_asked_for() {
    let smtpd = Smtpd::start("plain");
    let open = Mailer::new(&smtpd.config("smtp://localhost:PORT?tls=none", None), None, None).unwrap();
    open.send(&to("ops"), &letter(), now()).await.unwrap();
    assert!(smtpd.mails()[0].contains("X-Tls: False"));
    let strict = Mailer::new(&smtpd.config("smtp://localhost:PORT", None), None, None).unwrap();
    let err = refused(&strict, "ops").await;
    assert_eq!(err.kind, ErrorKind::Config, "{}", err.report());
    assert!(err.chain().contains("STARTTLS"), "{}", err.chain());
    assert_eq!(smtpd.mails().len(), 1);
}

#[tokio::test]
async fn a_wrong_password() {
    let smtpd = Smtpd::start("starttls");
    let config = smtpd.config("smtp://localhost:PORT", Some("u"));
    let mailer = Mailer::new(&config, Some("hunter2"), Some(&smtpd.ca())).unwrap();
    let err = refused(&mailer, "ops dba").await;
    assert_eq!(err.kind, ErrorKind::Denied, "{}", err.report());
    assert!(!err.report().contains("hunter2") && !format!("{err:?}").contains("hunter2"), "{err:?}");
    assert!(smtpd.asked().is_empty() && smtpd.mails().is_empty());
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted() {
    let smtpd = Smtpd::start("starttls");
    let other = Smtpd::start("starttls");
    let config = smtpd.config("smtp://localhost:PORT", Some("u"));
    for ca in [None, Some(other.ca())] {
        let err = refused(&Mailer::new(&config, Some("pw"), ca.as_deref()).unwrap(), "ops").await;
        assert_eq!(err.kind, ErrorKind::Config, "{}", err.report());
        assert!(err.message.ends_with("has a certificate that is not trusted, or speaks no TLS"), "{}", err.report());
    }
    // Signed by a trusted authority, but for another host.
    let elsewhere = Smtpd::start("othername");
    assert_eq!(refused(&elsewhere.mailer(), "ops").await.kind, ErrorKind::Config);
    assert!(elsewhere.mails().is_empty());
    assert!(smtpd.mails().is_empty());
}

#[tokio::test]
async fn a_refused_recipient_does_not_silence_the_others() {
    let smtpd = Smtpd::start("starttls");
    let err = refused(&smtpd.mailer(), "reject").await;
    assert_eq!(err.kind, ErrorKind::Failed, "{}", err.report());
    assert_eq!(smtpd.asked(), ["reject@example.com"], "5xx is final");
    let err = refused(&smtpd.mailer(), "ops reject dba").await;
    assert_eq!(err.message, "mail did not reach reject@example.com", "{}", err.report());
    let got: Vec<String> = smtpd.mails().iter().map(|m| m.lines().nth(1).unwrap().to_owned()).collect();
    assert_eq!(got, ["X-Envelope-To: ops@example.com", "X-Envelope-To: dba@example.com"]);
}

#[tokio::test]
async fn a_temporary_refusal_is_tried_three_times_more() {
    let smtpd = Smtpd::start("starttls");
    let err = refused(&smtpd.mailer(), "tempfail").await;
    assert_eq!(err.kind, ErrorKind::Unavailable, "{}", err.report());
    assert_eq!(smtpd.asked(), ["tempfail@example.com"; 4]);
    let err = refused(&smtpd.mailer(), "tempfail ops").await;
    assert_eq!(err.message, "mail did not reach tempfail@example.com", "{}", err.report());
    assert_eq!(smtpd.mails().len(), 1);
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let mut config = {
        let smtpd = Smtpd::start("plain");
        smtpd.config("smtp://127.0.0.1:PORT?tls=none", None)
    };
    let mailer = Mailer::new(&config, None, None).unwrap().backoff(Duration::from_millis(1));
    assert_eq!(refused(&mailer, "ops").await.kind, ErrorKind::Unavailable);
    assert_eq!(refused(&mailer, "").await.kind, ErrorKind::Config);
    config.from = "nobody".into();
    assert_eq!(Mailer::new(&config, None, None).unwrap_err().kind, ErrorKind::Config);
}

/// Written by a child: a program that this process holds open for writing cannot be run ("text file busy").
#[allow(clippy::disallowed_methods, reason = "a test's own helper")]
fn script(dir: &TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("sendmail");
    let text = text.replace("DIR", dir.path().to_str().unwrap());
    let write = "rm -f \"$1\" && printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"";
    let status = Command::new("sh").args(["-c", write, "sh"]).arg(&path).arg(text).status().unwrap();
    assert!(status.success());
    path
}

fn by_sendmail(sendmail: PathBuf) -> Mailer {
    let from = "backstay@example.com".to_owned();
    let config = Mail { smtp: None, from, username: None, password: None, ca_file: None, sendmail };
    Mailer::new(&config, None, None).unwrap().backoff(Duration::from_millis(1))
}

#[tokio::test]
async fn a_mail_by_the_sendmail_program() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(&dir, "#!/bin/sh\necho \"$@\" >DIR/args\necho noise\ncat >DIR/mail\n");
    by_sendmail(program).send(&to("ops dba"), &letter(), now()).await.unwrap();
    let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("args"), "-i -f backstay@example.com -- ops@example.com dba@example.com\n");
    let mail = read("mail");
    assert!(mail.contains("\n\nfirst\n.\n..dots\n") && !mail.contains('\r'), "{mail:?}");
}

#[tokio::test]
async fn a_sendmail_program_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(&dir, "#!/bin/sh\necho x >>DIR/tries\necho 'queue is full' >&2\nexit 75\n");
    let err = refused(&by_sendmail(program), "ops").await;
    assert_eq!(err.kind, ErrorKind::Unavailable);
    assert!(err.chain().contains("queue is full"), "{}", err.chain());
    assert_eq!(std::fs::read_to_string(dir.path().join("tries")).unwrap(), "x\nx\nx\nx\n");
    let err = refused(&by_sendmail(script(&dir, "#!/bin/sh\nexit 1\n")), "ops").await;
    assert_eq!(err.kind, ErrorKind::Failed);
    assert_eq!(refused(&by_sendmail("/nonexistent/sendmail".into()), "ops").await.kind, ErrorKind::Config);
}

fn stale(host: &str) -> Observation {
    Observation {
        host: host.into(),
        service: "postgres".into(),
        destination: "offsite".into(),
        state: backstay::freshness::State::Alert,
        summary: "has no daily restore point newer than 50h".into(),
        lines: Vec::new(),
        advice: Vec::new(),
        last_good: None,
    }
}

/// A bucket that nobody can read is one event, not one for each host.
#[tokio::test]
async fn many_alarms_at_once_are_one_mail() {
    let dir = tempfile::tempdir().unwrap();
    let works = by_sendmail(script(&dir, "#!/bin/sh\ncat >>DIR/mails\n"));
    let mut seen: Vec<Observation> = ["db1", "db2", "db3", "db4"].map(stale).into();
    let (mut alarms, due) = advance(&AlarmState::default(), &seen, now());
    backstay::notify::deliver(&works, &to("ops"), &due, &mut alarms, now()).await.unwrap();
    let mails = std::fs::read_to_string(dir.path().join("mails")).unwrap();
    assert_eq!(mails.matches("Subject: ").count(), 1, "{mails}");
    assert!(mails.contains("Subject: [backstay] 4 ALERT of 4 checks that changed or last"), "{mails}");
    for host in ["db1", "db2", "db3", "db4"] {
        assert!(
            mails.contains(&format!("ALERT {host}: postgres has no daily restore point newer than 50h")),
            "{mails}"
        );
    }
    assert_eq!(advance(&alarms, &seen, now()).1, []);
    // Three, with a recovery among them, are mails of their own.
    seen.truncate(3);
    seen.iter_mut().for_each(|s| s.state = backstay::freshness::State::Ok);
    let (mut alarms, due) = advance(&alarms, &seen, now());
    backstay::notify::deliver(&works, &to("ops"), &due, &mut alarms, now()).await.unwrap();
    let mails = std::fs::read_to_string(dir.path().join("mails")).unwrap();
    assert_eq!(mails.matches("Subject: ").count(), 4, "{mails}");
}

/// What was not taken by the next hop is due again.
#[tokio::test]
async fn an_alarm_counts_as_told_only_when_it_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let seen = [stale("db1")];
    let (mut alarms, due) = advance(&AlarmState::default(), &seen, now());
    let broken = by_sendmail(script(&dir, "#!/bin/sh\nexit 1\n"));
    let err = backstay::notify::deliver(&broken, &to("ops"), &due, &mut alarms, now()).await.unwrap_err();
    assert_eq!(err.message, "1 of 1 mails could not be sent");
    let (mut alarms, due) = advance(&alarms, &seen, now());
    assert_eq!(due.len(), 1);
    let works = by_sendmail(script(&dir, "#!/bin/sh\ncat >DIR/mail\n"));
    backstay::notify::deliver(&works, &to("ops"), &due, &mut alarms, now()).await.unwrap();
    assert_eq!(advance(&alarms, &seen, now()).1, []);
}
