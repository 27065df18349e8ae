//! What is in force, as YAML; the JSON Schema of the configuration.

use serde_json::Value;

use super::Config;
use crate::error::{Error, ErrorKind, Result};

/// What is in force, defaults included. No secret can be in it: the configuration names only where they are.
pub fn effective(config: &Config) -> Result<String> {
    let mut text = String::new();
    emit(&mut text, &value(config)?, 0);
    Ok(text)
}

/// The same as a JSON value. Keys that are not set are left out.
pub fn value(config: &Config) -> Result<Value> {
    let mut config = config.clone();
    config.host = Some(config.host_name()?);
    let mut value = serde_json::to_value(&config).map_err(not_shown)?;
    strip(&mut value);
    Ok(value)
}

/// The JSON Schema of the configuration, from the same types as the parser.
pub fn schema() -> Result<String> {
    let schema = schemars::schema_for!(Config);
    let mut text = serde_json::to_string_pretty(&schema).map_err(not_shown)?;
    text.push('\n');
    Ok(text)
}

fn not_shown(err: serde_json::Error) -> Error {
    Error::new(ErrorKind::Internal, "could not show the configuration").caused_by(err)
}

/// Removes nulls and what is empty because of that.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(strip);
            map.retain(|_, v| !v.is_null());
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

fn emit(text: &mut String, value: &Value, depth: usize) {
    let Value::Object(map) = value else { return };
    for (key, value) in map {
        text.push_str(&"  ".repeat(depth));
        text.push_str(&scalar(&Value::String(key.clone())));
        text.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                text.push('\n');
                emit(text, value, depth + 1);
            }
            Value::Array(list) if !list.is_empty() => emit_list(text, list, depth + 1),
            other => {
                text.push(' ');
                text.push_str(&scalar(other));
                text.push('\n');
            }
        }
    }
}

fn emit_list(text: &mut String, list: &[Value], depth: usize) {
    text.push('\n');
    for item in list {
        text.push_str(&"  ".repeat(depth));
        text.push_str("- ");
        // JSON is YAML: what stands inside a list stays on its line.
        text.push_str(&if item.is_string() { scalar(item) } else { item.to_string() });
        text.push('\n');
    }
}

/// A scalar; text is quoted unless it can be nothing but text.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(s) if is_plain(s) => s.clone(),
        other => other.to_string(),
    }
}

fn is_plain(s: &str) -> bool {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/' | b'.' | b'@');
    s.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'/')
        && s.bytes().all(safe)
        && !WORDS.contains(&s.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::from_text;

    #[test]
    fn what_is_shown_reads_back_as_the_same_configuration() {
        let text = "host: db1\nenvironment: 'no'\nservices:\n  pg:\n    postgres: {method: databases, include: ['a*', 'true', '1']}\n    \
                    backup_dir: \"/b/with: colon\"\n    destinations: [off, {name: off2, keep: {monthly: 12}}]\n    keep: {daily: 2}\n\
                    destinations:\n  off: {s3: {bucket: b, credentials: s3, sse: {kms: k}}}\n  off2: {s3: {bucket: b, credentials: {file: /k}, sse: aes256}}\n\
                    check: {email: [ops@example.com], max_age: {daily: 50h}}\n\
                    mail: {smtp: 'smtp://m:587', from: a@example.com, username: u, password: {env: P}}\n";
        let config = from_text(text, "x").unwrap();
        let shown = effective(&config).unwrap();
        assert_eq!(from_text(&shown, "shown").unwrap(), config, "{shown}");
        assert!(shown.contains("timeout: \"6h\"") || shown.contains("timeout: 6h"), "defaults are shown:\n{shown}");
    }
}
