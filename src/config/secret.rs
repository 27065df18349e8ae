//! Secrets by reference: a file, an environment variable or a systemd credential. Never in the configuration itself.
//!
//! A secret is read when it is needed, not when the configuration is checked: `config check` needs none.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Most bytes a secret may have.
const LIMIT_BYTES: u64 = 1 << 20;

/// Where a secret is: `{file: PATH}`, `{env: NAME}`, `{credential: NAME}`, or a bare word, which names a credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    /// A file that only its owner can read.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A systemd credential (`LoadCredential=`), by name.
    Credential(String),
    /// Read before, by root, who then became a user that cannot. Never in a file.
    #[serde(skip)]
    Held {
        /// Where it was, for messages.
        from: String,
        /// What it is.
        secret: Secret,
    },
}

/// A secret's text. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text that must not be shown.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl SecretRef {
    /// Reads the secret; line ends after it are not part of it.
    ///
    /// A file is refused unless it belongs to this user or root and nobody else can read it.
    pub fn load(&self) -> Result<Secret> {
        let text = match self {
            Self::File(path) => read_private(path)?,
            Self::Env(name) => std::env::var(name).map_err(|_| {
                Error::new(ErrorKind::Config, format!("environment variable {name} is not set, or is not UTF-8"))
            })?,
            Self::Credential(name) => read(&self.credential_path(name)?, |_| Ok(()))?,
            Self::Held { secret, .. } => secret.0.clone(),
        };
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            return Err(Error::new(ErrorKind::Config, format!("the secret in {self} is empty")));
        }
        Ok(Secret(text.to_owned()))
    }

    /// Reads it now, for later. One that cannot be read stays what it was: whoever needs it will say so.
    pub fn hold(&mut self) {
        if let Ok(secret) = self.load() {
            *self = Self::Held { from: self.to_string(), secret };
        }
    }

    fn credential_path(&self, name: &str) -> Result<PathBuf> {
        let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("there is no {self}: $CREDENTIALS_DIRECTORY is not set"))
                .hint("start the agent by systemd with LoadCredential=, or name a file: {file: PATH}.")
        })?;
        Ok(Path::new(&dir).join(name))
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file \"{}\"", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Credential(name) => write!(f, "systemd credential \"{name}\""),
            Self::Held { from, .. } => f.write_str(from),
        }
    }
}

/// Reads a file that holds secrets, as [`SecretRef::load`] does; for files in formats of their own.
pub fn read_private(path: &Path) -> Result<String> {
    read(path, |file| check_private(file, path))
}

fn read(path: &Path, check: impl Fn(&File) -> Result<()>) -> Result<String> {
    let failed = |e: std::io::Error| {
        let denied = e.kind() == std::io::ErrorKind::PermissionDenied;
        let err =
            Error::new(ErrorKind::Config, format!("could not read the secret in \"{}\"", path.display())).caused_by(e);
        let us = nix::unistd::geteuid();
        let name = nix::unistd::User::from_uid(us).ok().flatten().map_or_else(|| us.to_string(), |user| user.name);
        let path = path.display();
        match denied {
            true => err.hint(format!(
                "let user {name} read it by a group: `chown root:GROUP {path}`, `chmod 640 {path}`, \
                 `usermod --append --groups GROUP {name}`."
            )),
            false => err,
        }
    };
    let file = File::open(path).map_err(failed)?;
    check(&file)?;
    let mut text = String::new();
    file.take(LIMIT_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Looks at the opened file, not at the path, so that nothing can be put in its place between check and read.
fn check_private(file: &File, path: &Path) -> Result<()> {
    let path = path.display();
    let meta = file.metadata().map_err(|e| Error::io(e, format!("could not look at \"{path}\"")))?;
    if !meta.is_file() {
        return Err(Error::new(ErrorKind::Config, format!("\"{path}\" is not a file")));
    }
    // root:group 0640 lets the users of several services share one file, and only root decides who is in the group.
    let foreign = if meta.uid() == 0 { 0o037 } else { 0o077 };
    if meta.mode() & foreign != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(Error::new(
            ErrorKind::Config,
            format!("others can read the secret in \"{path}\" (mode {mode:04o})"),
        )
        .hint(format!(
            "run `chmod 600 {path}` (640 with a group of the users who need it), and change the secret if others have \
             read it."
        )));
    }
    let us = nix::unistd::geteuid().as_raw();
    if meta.uid() != us && meta.uid() != 0 {
        return Err(Error::new(
            ErrorKind::Config,
            format!("the secret in \"{path}\" belongs to user id {}, neither root nor this user", meta.uid()),
        )
        .hint(format!("run `chown root {path}`; mode 0640 and a group share it with the users of services.")));
    }
    Ok(())
}

/// The long form only: where a bare word might be a password that someone wrote down.
pub(super) fn long_form<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SecretRef>, D::Error> {
    d.deserialize_any(RefVisitor { words: false }).map(Some)
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(RefVisitor { words: true })
    }
}

struct RefVisitor {
    words: bool,
}

impl<'de> Visitor<'de> for RefVisitor {
    type Value = SecretRef;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{file: PATH}, {env: NAME} or {credential: NAME}")
    }
    fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
        // Never repeat the word: it may be the secret.
        if !self.words {
            return Err(E::custom(
                "a secret cannot stand in the configuration; write {file: PATH}, {env: NAME} or {credential: NAME}",
            ));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if word.is_empty() || word.starts_with('.') || !word.bytes().all(plain) {
            return Err(E::custom(
                "this is not the name of a systemd credential; write a file as {file: PATH}, an environment variable as {env: NAME}",
            ));
        }
        Ok(SecretRef::Credential(word.to_owned()))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Long {
            File(PathBuf),
            Env(String),
            Credential(String),
        }
        Ok(match Long::deserialize(MapAccessDeserializer::new(map))? {
            Long::File(path) => SecretRef::File(path),
            Long::Env(name) => SecretRef::Env(name),
            Long::Credential(name) => SecretRef::Credential(name),
        })
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretRef".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = |key: &str, text: &str| {
            serde_json::json!({
                "type": "object", "properties": {key: {"type": "string", "description": text}},
                "required": [key], "additionalProperties": false,
            })
        };
        schemars::json_schema!({
            "description": "Where a secret is.",
            "oneOf": [
                {"type": "string", "description": "The name of a systemd credential (`LoadCredential=`)."},
                one("file", "A file that only its owner can read."),
                one("env", "An environment variable."),
                one("credential", "The name of a systemd credential (`LoadCredential=`)."),
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file_with_mode(mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\n").unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_private_file_is_read_without_its_line_end() {
        let file = file_with_mode(0o600);
        let secret = SecretRef::File(file.path().into()).load().unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret:?}"), "***");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_way_out() {
        for mode in [0o604, 0o644, 0o610, 0o660] {
            let file = file_with_mode(mode);
            let err = SecretRef::File(file.path().into()).load().unwrap_err();
            assert_eq!(err.kind, ErrorKind::Config);
            assert!(err.report().contains("chmod 600"), "{}", err.report());
            assert!(!err.report().contains("hunter2"));
        }
    }

    #[test]
    fn a_secret_that_is_held_needs_its_file_no_more_and_is_shown_nowhere() {
        let file = file_with_mode(0o600);
        let mut secret = SecretRef::File(file.path().into());
        let told = secret.to_string();
        secret.hold();
        drop(file);
        assert_eq!((secret.load().unwrap().expose(), secret.to_string()), ("hunter2", told));
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(serde_json::to_string(&secret).is_err());
        let mut missing = SecretRef::File("/nonexistent/secret".into());
        missing.hold();
        assert_eq!(missing, SecretRef::File("/nonexistent/secret".into()), "whoever needs it says so");
    }

    #[test]
    fn every_secret_of_a_configuration_is_held() {
        let file = file_with_mode(0o600);
        let secret = format!("{{file: {}}}", file.path().display());
        let service = "destinations: [d], keep: {daily: 1}";
        let text = format!(
            "destinations: {{d: {{s3: {{bucket: b, credentials: {secret}}}}}}}\nservices:\n  \
             c: {{couchdb: {{data_dir: /c, username: u, password: {secret}}}, {service}}}\n  \
             e: {{elasticsearch: {{url: 'http://e', username: u, password: {secret}, repositories: {{r: {{existing: true}}}}}}, {service}}}\n  \
             k: {{elasticsearch: {{url: 'http://e', api_key: {secret}, repositories: {{r: {{existing: true}}}}}}, {service}}}\n\
             mail: {{from: a@example.com, smtp: 'smtp://m:25', username: u, password: {secret}}}\n"
        );
        let mut config = crate::config::parse::from_text(&text, "x").unwrap();
        assert_eq!(format!("{config:?}").matches("File(").count(), 5);
        config.hold_secrets();
        assert_eq!(format!("{config:?}").matches("File(").count(), 0);
    }

    #[test]
    fn an_empty_secret_and_a_missing_one_are_errors() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(SecretRef::File(file.path().into()).load().unwrap_err().message.contains("is empty"));
        assert!(SecretRef::Env("BACKSTAY_NO_SUCH_VARIABLE".into()).load().is_err());
        assert!(SecretRef::File("/nonexistent/secret".into()).load().is_err());
    }

    #[test]
    fn a_secret_written_into_the_configuration_is_not_repeated() {
        let err =
            serde_saphyr::from_str::<SecretRef>("'hunter2 with spaces'").unwrap_err().without_snippet().to_string();
        assert!(!err.contains("hunter2"), "{err}");
        assert_eq!(serde_saphyr::from_str::<SecretRef>("s3").unwrap(), SecretRef::Credential("s3".into()));
        assert_eq!(serde_saphyr::from_str::<SecretRef>("{env: X}").unwrap(), SecretRef::Env("X".into()));
    }
}
