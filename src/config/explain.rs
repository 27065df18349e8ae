//! What the YAML reader says, in our words: no snippets (they show neighbouring lines), no values that may be secret.

use serde_saphyr::{Error as Yaml, MessageFormatter as _, UserMessageFormatter};

/// What is wrong, and what to do.
pub(super) struct Explained {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// Puts an error of the YAML reader into words.
pub(super) fn explain(err: &Yaml) -> Explained {
    let (message, hint) = match err {
        Yaml::WithSnippet { error, .. } | Yaml::AliasError { error, .. } => return explain(error),
        Yaml::SerdeUnknownField { field, expected, .. } => {
            (format!("unknown key \"{field}\""), Some(nearest(field, expected, "keys")))
        }
        Yaml::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("unknown value \"{variant}\""), Some(nearest(variant, expected, "values")))
        }
        Yaml::SerdeMissingField { field, .. } => (format!("key \"{field}\" is missing"), None),
        Yaml::SerdeInvalidType { unexpected, expected, .. } | Yaml::SerdeInvalidValue { unexpected, expected, .. } => {
            (format!("wrong type: {}, expected {}", kind_of(unexpected), simpler(expected)), None)
        }
        Yaml::Unexpected { expected: "mapping end", .. } => ("only one key can stand here".to_owned(), None),
        Yaml::Unexpected { expected, .. } => (format!("wrong type: expected {}", simpler(expected)), None),
        Yaml::InvalidScalar { ty, .. } => (format!("wrong type: expected {}", simpler(ty)), None),
        Yaml::InvalidBooleanStrict { .. } => (
            "wrong type: expected true or false".to_owned(),
            Some("YAML's yes, no, on and off are not accepted.".into()),
        ),
        Yaml::DuplicateMappingKey { key, .. } => match key {
            Some(key) => (format!("key \"{key}\" stands here twice"), None),
            None => ("a key stands here twice".to_owned(), None),
        },
        Yaml::MultipleDocuments { .. } => {
            ("a second YAML document begins here".to_owned(), Some("remove the line `---`.".into()))
        }
        Yaml::Eof { .. } => ("the text ends too early".to_owned(), None),
        Yaml::NullIntoString { .. } => ("a value is missing".to_owned(), None),
        Yaml::InvalidUtf8Input => ("the text is not UTF-8".to_owned(), None),
        // Our own types say `what is wrong; what to do`.
        Yaml::Message { msg, .. } => match msg.split_once("; ") {
            Some((message, hint)) => (message.to_owned(), Some(sentence(hint))),
            None => (msg.clone(), None),
        },
        other => (UserMessageFormatter.format_message(other).into_owned(), None),
    };
    Explained { message, hint }
}

/// The nearest allowed word, and all of them.
pub(super) fn nearest(word: &str, allowed: &[&str], what: &str) -> String {
    let best = allowed
        .iter()
        .map(|a| (strsim::damerau_levenshtein(word, a), *a))
        .filter(|(distance, a)| *distance <= 1 + a.len().max(word.len()) / 4)
        .min();
    let all = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    match best {
        Some((_, best)) => format!("did you mean \"{best}\"? Allowed {what}: {all}."),
        None => format!("allowed {what}: {all}."),
    }
}

/// `string "hunter2"` is only a string here.
fn kind_of(unexpected: &str) -> &str {
    let word = unexpected.split(['"', '`']).next().unwrap_or_default().trim();
    match word {
        "unit value" | "null" | "" => "nothing is there",
        "map" => "found a mapping",
        "sequence" => "found a list",
        "string" => "found text",
        "boolean" => "found true or false",
        "integer" => "found a number",
        "floating point" => "found a fraction",
        _ => "found something else",
    }
}

/// Words of Rust in the words of a person.
fn simpler(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "i8" | "i16" | "i32" | "i64" => format!("a whole number that fits ({expected})"),
        "a sequence" | "sequence" | "sequence start" => "a list".to_owned(),
        "a map" | "mapping start" => "a mapping".to_owned(),
        "a boolean" | "bool" => "true or false".to_owned(),
        "a string" | "string scalar" | "scalar" => "text".to_owned(),
        other => other.strip_prefix("struct ").map_or_else(|| other.to_owned(), |_| "a mapping".to_owned()),
    }
}

fn sentence(hint: &str) -> String {
    if hint.ends_with('.') { hint.to_owned() } else { format!("{hint}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named_only_when_it_is_near() {
        assert!(nearest("bukcet", &["bucket", "region"], "keys").starts_with("did you mean \"bucket\"?"));
        assert_eq!(nearest("zzz", &["bucket", "region"], "keys"), "allowed keys: bucket, region.");
    }
}
