//! Whose keys sign the requests.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// Where the access key comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// Given.
    Static {
        /// Access key id.
        access: String,
        /// Secret access key.
        secret: String,
        /// Session token of temporary credentials.
        session: Option<String>,
    },
    /// What the AWS tools use: environment, profile, web identity, container, instance role.
    Chain {
        /// Profile in the AWS configuration files.
        profile: Option<String>,
    },
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static { .. } => f.write_str("Static(..)"),
            Self::Chain { profile } => f.debug_struct("Chain").field("profile", profile).finish(),
        }
    }
}

/// Reads the text of a file in the format of `~/.aws/credentials`. Without a profile it is `default`, or the only one.
pub fn parse_credentials_file(text: &str, profile: Option<&str>) -> Result<CredentialSource> {
    let profiles = profiles(text)?;
    let wanted = match profile {
        Some(name) => name,
        None if profiles.len() == 1 => profiles.keys().next().map_or("default", String::as_str),
        None => "default",
    };
    let found = profiles.get(wanted).ok_or_else(|| {
        let known: Vec<&str> = profiles.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        bad(format!("the credentials have no profile {wanted:?}"))
            .hint(format!("set `profile` to one that is there: {known}."))
    })?;
    let key = |name: &str| found.get(name).filter(|v| !v.is_empty()).cloned();
    let needed = |name: &str| {
        key(name).ok_or_else(|| {
            bad(format!("profile {wanted:?} has no {name}"))
                .hint("write `aws_access_key_id = ...` and `aws_secret_access_key = ...` below the profile's [name].")
        })
    };
    Ok(CredentialSource::Static {
        access: needed("aws_access_key_id")?,
        secret: needed("aws_secret_access_key")?,
        session: key("aws_session_token"),
    })
}

fn bad(message: String) -> Error {
    Error::new(ErrorKind::Config, message)
}

/// The profiles; an error names the line by its number only, for the line may hold a secret.
fn profiles(text: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut profiles: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut current: Option<String> = None;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (n, raw) in text.lines().enumerate() {
        let line = raw.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let (name, _) = rest
                .split_once(']')
                .ok_or_else(|| bad(format!("line {} of the credentials: the profile's name does not end", n + 1)))?;
            let name = name.trim();
            let name = name.strip_prefix("profile ").map_or(name, str::trim).to_owned();
            profiles.entry(name.clone()).or_default();
            current = Some(name);
            continue;
        }
        // An indented line goes on with a nested setting, which no credential is.
        if raw.starts_with([' ', '\t']) && !line.starts_with("aws_") {
            continue;
        }
        let (Some((key, value)), Some(profile)) = (line.split_once('='), &current) else {
            return Err(bad(format!("line {} of the credentials is neither a [profile] nor a setting of one", n + 1))
                .hint("the format is that of ~/.aws/credentials."));
        };
        let entry = profiles.entry(profile.clone()).or_default();
        entry.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(profiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# keys\n[default]\naws_access_key_id = AK1\naws_secret_access_key=s/e+c=\n\n[ other ]\n\
        AWS_ACCESS_KEY_ID=AK2\naws_secret_access_key = two\naws_session_token = tok\n[empty]\nregion = eu\n";

    fn keys(access: &str, secret: &str, session: Option<&str>) -> CredentialSource {
        CredentialSource::Static { access: access.into(), secret: secret.into(), session: session.map(Into::into) }
    }

    #[test]
    fn profiles_are_found() {
        assert_eq!(parse_credentials_file(TEXT, None).expect("default"), keys("AK1", "s/e+c=", None));
        assert_eq!(parse_credentials_file(TEXT, Some("other")).expect("other"), keys("AK2", "two", Some("tok")));
        let only = "[backup]\r\naws_access_key_id=A\r\naws_secret_access_key=B\r\n";
        assert_eq!(parse_credentials_file(only, None).expect("the only one"), keys("A", "B", None));
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_shown() {
        for (text, profile, message, hint) in [
            (TEXT, Some("nope"), "the credentials have no profile \"nope\"", "default, empty, other"),
            (TEXT, Some("empty"), "profile \"empty\" has no aws_access_key_id", "aws_secret_access_key = ..."),
            ("[a]\nsecretsecret", None, "line 2 of the credentials is neither a [profile] nor", "~/.aws/credentials"),
            ("AKSECRET=x", None, "line 1 of the credentials is neither", "~/.aws/credentials"),
            ("", None, "the credentials have no profile \"default\"", "none"),
        ] {
            let err = parse_credentials_file(text, profile).expect_err(text);
            assert_eq!(err.kind, ErrorKind::Config);
            assert!(err.message.contains(message), "{}", err.message);
            assert!(err.hint.as_deref().unwrap_or_default().contains(hint), "{:?}", err.hint);
            assert!(!err.report().to_lowercase().contains("secretsecret"), "{}", err.report());
        }
        assert_eq!(format!("{:?}", keys("AK", "hidden", None)), "Static(..)");
    }
}
