//! Encryption with age to one or more recipients (age-encryption.org/v1). The host holds only public keys.

use std::io::{self, Write};
use std::str::FromStr as _;
use std::sync::Arc;

use age::x25519;

use crate::error::{Error, ErrorKind, Result};

/// Public keys to encrypt to; empty = no encryption.
#[derive(Debug, Clone, Default)]
pub struct Recipients {
    text: Arc<[String]>,
}

impl Recipients {
    /// Parses `age1...` recipients; an item that starts with `/` names a file with one per line (`#` comments).
    pub fn load(items: &[String]) -> Result<Self> {
        let mut text = Vec::new();
        for item in items {
            if item.starts_with('/') {
                let content = std::fs::read_to_string(item)
                    .map_err(|e| Error::io(e, format!("could not read the recipients in {item:?}")))?;
                let lines = content.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
                text.extend(lines.map(str::to_owned));
            } else {
                text.push(item.clone());
            }
        }
        if text.is_empty() && !items.is_empty() {
            return Err(Error::new(ErrorKind::Config, "`encrypt_to` names files without any recipient"));
        }
        for recipient in &text {
            parse(recipient)?;
        }
        Ok(Self { text: text.into() })
    }
    /// As they were written.
    pub fn as_text(&self) -> &[String] {
        &self.text
    }
}

fn parse(recipient: &str) -> Result<x25519::Recipient> {
    x25519::Recipient::from_str(recipient).map_err(|why| {
        Error::new(ErrorKind::Config, format!("not an age recipient: {recipient:?}"))
            .caused_by(why)
            .hint("make a key pair with `age-keygen` on another machine and put its public key, age1..., here.")
    })
}

/// An encrypting writer, or one that passes bytes through.
pub enum Encryptor<W: Write> {
    /// No recipients.
    Plain(W),
    /// age.
    Age(Box<age::stream::StreamWriter<W>>),
}

impl<W: Write> std::fmt::Debug for Encryptor<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encryptor")
    }
}

impl<W: Write> Encryptor<W> {
    /// Encrypts to all `recipients`.
    pub fn new(out: W, recipients: &Recipients) -> Result<Self> {
        if recipients.text.is_empty() {
            return Ok(Self::Plain(out));
        }
        let keys = recipients.text.iter().map(|r| parse(r)).collect::<Result<Vec<_>>>()?;
        let failed = |e: String| Error::new(ErrorKind::Failed, "could not start encryption").caused_by(e);
        let encryptor = age::Encryptor::with_recipients(keys.iter().map(|k| k as &dyn age::Recipient))
            .map_err(|e| failed(e.to_string()))?;
        let writer = encryptor.wrap_output(out).map_err(|e| failed(e.to_string()))?;
        Ok(Self::Age(Box::new(writer)))
    }
    /// Writes the last block and returns the writer behind.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Age(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Encryptor<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(data),
            Self::Age(writer) => writer.write(data),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
