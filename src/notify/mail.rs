//! Mail: SMTP with TLS that is demanded and verified, or the local sendmail program.
//!
//! - `smtp://host:587` demands STARTTLS, `smtps://host:465` begins with TLS, `smtp://host:25?tls=none` sends in the
//!   clear and never together with a password. Certificates are verified against those of the system and `ca_file`.
//! - What another try can help (4xx, no connection, a time limit) is tried three times more, 5xx is final.
//! - All recipients share one mail. When the server refuses one of them, each gets the mail alone, so that a wrong
//!   address among several does not silence an alarm; the error then names those that did not get it.
//! - Accepted means taken by the next hop, not delivered.
//! - Text from outside cannot add headers: control characters are removed, addresses are parsed.

use std::fmt;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lettre::address::Envelope;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{Address, AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};

use crate::config::Mail;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::exec::Program;
use crate::notify::state::Letter;

/// Further tries after the first.
const RETRIES: u32 = 3;
/// One try may take this long.
const TRY_LIMIT: Duration = Duration::from_secs(60);
/// A file without it would pass for an empty list of certificates.
const PEM_MARK: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// sendmail's "try again later".
const EX_TEMPFAIL: i32 = 75;

/// Sends mails as configured. Holds no connection between them.
pub struct Mailer {
    way: Way,
    from: Mailbox,
    backoff: Duration,
}

enum Way {
    Smtp { transport: AsyncSmtpTransport<Tokio1Executor>, server: String },
    Sendmail(PathBuf),
}

/// Shows the way, never the credentials.
impl fmt::Debug for Mailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mailer({})", self.way.name())
    }
}

impl Way {
    fn name(&self) -> String {
        match self {
            Self::Smtp { server, .. } => server.clone(),
            Self::Sendmail(program) => program.display().to_string(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Security {
    StartTls,
    Tls,
    None,
}

#[derive(Debug, PartialEq, Eq)]
struct Server {
    host: String,
    port: u16,
    security: Security,
}

impl Mailer {
    /// A mailer for the configuration, with the password and the content of `ca_file` already loaded.
    ///
    /// # Errors
    /// `Config` for an address, URL or certificate that is none, and for a password that would travel in the clear.
    pub fn new(mail: &Mail, password: Option<&str>, ca_pem: Option<&[u8]>) -> Result<Self> {
        let way = match &mail.smtp {
            None => Way::Sendmail(mail.sendmail.clone()),
            Some(url) => smtp(url, mail.username.as_deref(), password, ca_pem)?,
        };
        Ok(Self { way, from: address(&mail.from)?, backoff: Duration::from_secs(2) })
    }

    /// Waits this long before the second try, and four times longer before each further one.
    #[must_use]
    pub fn backoff(mut self, first: Duration) -> Self {
        self.backoff = first;
        self
    }

    /// Sends one mail to all recipients.
    ///
    /// # Errors
    /// `Denied` for a refused login, `Unavailable` when no try got through, `Failed` for a refusal, `Config` for a
    /// server that lacks STARTTLS or whose certificate is not trusted.
    pub async fn send(&self, to: &[String], letter: &Letter, now: DateTime<Utc>) -> Result<()> {
        let to: Vec<Mailbox> = to.iter().map(|a| address(a)).collect::<Result<_>>()?;
        if to.is_empty() {
            return Err(Error::new(ErrorKind::Config, "mail has no recipient").hint("name one in check.email."));
        }
        let bytes = compose(&self.from, &to, letter, now)?;
        let recipients: Vec<Address> = to.into_iter().map(|m| m.email).collect();
        match self.try_several(&recipients, &bytes, RETRIES).await {
            Err(e) if recipients.len() > 1 && matches!(e.kind, ErrorKind::Failed | ErrorKind::Unavailable) => {
                self.send_alone(&recipients, &bytes).await
            }
            r => r,
        }
    }

    async fn send_alone(&self, recipients: &[Address], bytes: &[u8]) -> Result<()> {
        let mut failed = Vec::new();
        let mut first = None;
        for one in recipients {
            if let Err(e) = self.try_several(std::slice::from_ref(one), bytes, 0).await {
                failed.push(one.to_string());
                first.get_or_insert(e);
            }
        }
        match first {
            None => Ok(()),
            Some(e) => Err(e.within(format!("mail did not reach {}", failed.join(", ")))),
        }
    }

    async fn try_several(&self, to: &[Address], bytes: &[u8], retries: u32) -> Result<()> {
        let envelope = Envelope::new(Some(self.from.email.clone()), to.to_vec())
            .map_err(|e| Error::new(ErrorKind::Internal, "could not address a mail").caused_by(e))?;
        let mut pause = self.backoff;
        let mut tries = 0;
        loop {
            let once = tokio::time::timeout(TRY_LIMIT, self.try_once(&envelope, bytes)).await;
            let error = match once {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(e)) => e,
                Err(_) => {
                    let what = format!("{} did not answer within {} s", self.way.name(), TRY_LIMIT.as_secs());
                    Error::new(ErrorKind::Unavailable, what)
                }
            };
            if !error.kind.is_transient() || tries == retries {
                return Err(error);
            }
            tries += 1;
            tokio::time::sleep(pause).await;
            pause *= 4;
        }
    }

    async fn try_once(&self, envelope: &Envelope, bytes: &[u8]) -> Result<()> {
        match &self.way {
            Way::Smtp { transport, server } => {
                transport.send_raw(envelope, bytes).await.map(drop).map_err(|e| smtp_error(e, server))
            }
            Way::Sendmail(program) => sendmail(program, envelope, bytes).await,
        }
    }
}

fn smtp(url: &str, username: Option<&str>, password: Option<&str>, ca_pem: Option<&[u8]>) -> Result<Way> {
    let server = server(url)?;
    let credentials = match (username, password) {
        (Some(user), Some(password)) => Some(Credentials::new(user.to_owned(), password.to_owned())),
        (None, None) => None,
        _ => {
            return Err(Error::new(ErrorKind::Config, "mail needs both username and password, or neither")
                .hint("set mail.username and mail.password."));
        }
    };
    if credentials.is_some() && server.security == Security::None {
        return Err(Error::new(ErrorKind::Config, "mail would send the password in the clear")
            .hint("remove ?tls=none from mail.smtp, or remove mail.username and mail.password."));
    }
    let tls = match server.security {
        Security::None => Tls::None,
        Security::StartTls => Tls::Required(tls_parameters(&server.host, ca_pem)?),
        Security::Tls => Tls::Wrapper(tls_parameters(&server.host, ca_pem)?),
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&server.host)
        .port(server.port)
        .tls(tls)
        .timeout(Some(Duration::from_secs(30)));
    if let Some(credentials) = credentials {
        builder = builder.credentials(credentials);
    }
    Ok(Way::Smtp { transport: builder.build(), server: format!("{}:{}", server.host, server.port) })
}

fn tls_parameters(host: &str, ca_pem: Option<&[u8]>) -> Result<TlsParameters> {
    let bad = |what: &str, e: BoxError| Error::new(ErrorKind::Config, what.to_owned()).caused_by(e);
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(pem) = ca_pem {
        let none = |e: BoxError| bad("mail.ca_file holds no certificate", e).hint("give a file in PEM form.");
        if !pem.windows(PEM_MARK.len()).any(|w| w == PEM_MARK) {
            return Err(none(format!("{} is missing", String::from_utf8_lossy(PEM_MARK)).into()));
        }
        let authority = Certificate::from_pem(pem).map_err(|e| none(e.into()))?;
        builder = builder.add_root_certificate(authority);
    }
    builder.build_rustls().map_err(|e| bad("could not prepare TLS for mail", e.into()))
}

/// Reads `smtp://host:port`, `smtps://host:port`, `smtp://host:port?tls=none`. The URL is not quoted in errors: a
/// password may have been written into it.
fn server(url: &str) -> Result<Server> {
    let bad = |why: &str| {
        Error::new(ErrorKind::Config, format!("mail.smtp is not the URL of a mail server: {why}"))
            .hint("write smtp://host:587 (STARTTLS), smtps://host:465 (TLS) or smtp://host:25?tls=none.")
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(r, q)| (r, Some(q)));
    let security = match (scheme, query) {
        ("smtp", None) => Security::StartTls,
        ("smtps", None) => Security::Tls,
        ("smtp", Some("tls=none")) => Security::None,
        ("smtp" | "smtps", Some(_)) => return Err(bad("only smtp:// takes an option, and only tls=none")),
        _ => return Err(bad("the scheme is neither smtp nor smtps")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err(bad("it holds credentials").hint("use mail.username and mail.password."));
    }
    let (host, port) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(|| bad("the port is unclear"))?)),
        None => rest.split_once(':').map_or((rest, None), |(h, p)| (h, Some(p))),
    };
    let usual = match security {
        Security::StartTls => 587,
        Security::Tls => 465,
        Security::None => 25,
    };
    let port = port.map_or(Ok(usual), |p| p.parse().map_err(|_| bad("the port is not a number")))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    if host.is_empty() || !host.chars().all(legal) {
        return Err(bad("the host is missing or has characters that no host has"));
    }
    Ok(Server { host: host.to_owned(), port, security })
}

fn address(text: &str) -> Result<Mailbox> {
    text.parse().map_err(|e: lettre::address::AddressError| {
        Error::new(ErrorKind::Config, format!("not a mail address: {text:?}"))
            .caused_by(e)
            .hint("write name@example.com or Name <name@example.com>.")
    })
}

fn compose(from: &Mailbox, to: &[Mailbox], letter: &Letter, now: DateTime<Utc>) -> Result<Vec<u8>> {
    let failed = |e: BoxError| Error::new(ErrorKind::Internal, "could not write a mail").caused_by(e);
    let mut unique = [0u8; 16];
    getrandom::fill(&mut unique).map_err(|e| failed(e.to_string().into()))?;
    let auto = HeaderName::new_from_ascii_str("Auto-Submitted");
    let mut builder = Message::builder()
        .from(from.clone())
        .date(now.into())
        .message_id(Some(format!("<{}.backstay@{}>", hex::encode(unique), from.email.domain())))
        .subject(one_line(&letter.subject))
        .raw_header(HeaderValue::new(auto, "auto-generated".to_owned()))
        .header(ContentType::TEXT_PLAIN);
    for recipient in to {
        builder = builder.to(recipient.clone());
    }
    let message = builder.body(plain_text(&letter.body)).map_err(|e| failed(e.into()))?;
    Ok(message.formatted())
}

/// Without control characters: they become spaces, so that nothing can begin another header.
fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c };
    text.chars().map(clean).take(300).collect()
}

fn plain_text(text: &str) -> String {
    text.replace("\r\n", "\n").chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

fn smtp_error(e: lettre::transport::smtp::Error, server: &str) -> Error {
    let code = e.status().map(u16::from);
    let make = |kind, what: &str| Error::new(kind, format!("{server} {what}"));
    let error = match code {
        Some(530 | 534 | 535 | 538) => make(ErrorKind::Denied, "refused the login for mail")
            .hint("compare mail.username and mail.password with the mail server."),
        _ if e.is_permanent() => make(ErrorKind::Failed, "refused the mail"),
        _ if e.is_transient() => make(ErrorKind::Unavailable, "could not take the mail now"),
        _ if is_untrusted(&e) => make(ErrorKind::Config, "has a certificate that is not trusted, or speaks no TLS")
            .hint("name the authority that signed it in mail.ca_file, and the host as in the certificate."),
        _ if e.is_client() || e.is_tls() => make(ErrorKind::Config, "does not offer what is configured for mail")
            .hint("smtp:// needs STARTTLS; mail.username needs AUTH PLAIN or LOGIN; smtps:// needs TLS at once."),
        _ => make(ErrorKind::Unavailable, "cannot be reached for mail"),
    };
    error.caused_by(e)
}

/// A failed handshake is an `InvalidData` of input and output somewhere down the chain.
fn is_untrusted(e: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(e);
    while let Some(cause) = next {
        if cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::InvalidData) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Hands the mail to a sendmail program, with the line ends of local files.
async fn sendmail(program: &Path, envelope: &Envelope, bytes: &[u8]) -> Result<()> {
    let io = |e| Error::io(e, "could not hand a mail to sendmail");
    let mut text = tempfile::tempfile().map_err(io)?;
    text.write_all(String::from_utf8_lossy(bytes).replace("\r\n", "\n").as_bytes()).map_err(io)?;
    text.rewind().map_err(io)?;
    let mut command = Program::new(program).arg("-i");
    if let Some(from) = envelope.from() {
        command = command.arg("-f").arg(AsRef::<str>::as_ref(from));
    }
    let command = command.arg("--").args(envelope.to().iter().map(ToString::to_string));
    let mut running = command.spawn(Stdio::from(text))?;
    let mut stdout = running.stdout();
    let drain = tokio::spawn(async move { tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await });
    let ended = running.wait().await?;
    drain.abort();
    if ended.status.success() {
        return Ok(());
    }
    let mut error = ended.failure("sendmail");
    if ended.status.code() == Some(EX_TEMPFAIL) {
        error.kind = ErrorKind::Unavailable;
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_mail_servers() {
        let is = |url: &str| server(url).map(|s| (s.host, s.port, s.security)).map_err(|e| e.message);
        assert_eq!(is("smtp://mx.example.com"), Ok(("mx.example.com".into(), 587, Security::StartTls)));
        assert_eq!(is("smtps://mx.example.com/"), Ok(("mx.example.com".into(), 465, Security::Tls)));
        assert_eq!(is("smtp://[::1]:2525?tls=none"), Ok(("::1".into(), 2525, Security::None)));
        for bad in [
            "mx.example.com:587",
            "http://mx",
            "smtp://",
            "smtp://mx:abc",
            "smtps://mx?tls=none",
            "smtp://mx?tls=opportunistic",
            "smtp://a b",
            "smtp://u:secret@mx",
        ] {
            let err = server(bad).unwrap_err();
            assert_eq!(err.kind, ErrorKind::Config, "{bad}");
            assert!(!err.report().contains("secret"), "{}", err.report());
        }
    }

    #[test]
    fn a_subject_cannot_add_headers() {
        let from = address("Backstay <backstay@example.com>").unwrap();
        let letter = Letter {
            subject: "a\r\nBcc: thief@example.com\u{2028}ü".into(),
            body: "one\r\ntwo\r.\n.\n\x07three\n".into(),
        };
        let bytes = compose(&from, &[address("ops@example.com").unwrap()], &letter, DateTime::UNIX_EPOCH).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        assert!(!head.lines().any(|l| l.starts_with("Bcc")), "{head}");
        assert!(head.contains("Auto-Submitted: auto-generated"), "{head}");
        assert!(head.contains("Date: Thu, 01 Jan 1970 00:00:00 +0000"), "{head}");
        assert!(head.contains("Content-Type: text/plain; charset=utf-8"), "{head}");
        assert!(address("ops@example.com\r\nBcc: thief@example.com").is_err());
        assert!(address("a@example.com, b@example.com").is_err());
    }

    #[test]
    fn no_password_in_the_clear() {
        let mail = |smtp: &str| Mail {
            smtp: Some(smtp.into()),
            from: "backstay@example.com".into(),
            username: Some("u".into()),
            password: None,
            ca_file: None,
            sendmail: PathBuf::new(),
        };
        let err = Mailer::new(&mail("smtp://mx:25?tls=none"), Some("pw"), None).unwrap_err();
        assert_eq!(err.message, "mail would send the password in the clear");
        assert!(Mailer::new(&mail("smtp://mx:587"), None, None).is_err());
        assert!(Mailer::new(&mail("smtp://mx:587"), Some("pw"), Some(b"no certificate")).is_err());
        assert!(!format!("{:?}", Mailer::new(&mail("smtp://mx:587"), Some("pw"), None).unwrap()).contains("pw"));
    }
}
