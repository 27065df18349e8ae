//! `docs/configuration.md` lists every key of the configuration as the types know it. The introduction is written by
//! hand; all below its end mark is made here, from the JSON Schema. `UPDATE_DOCS=1` writes it anew.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};

const END_OF_INTRODUCTION: &str = "<!-- end of the introduction; what follows is made from the JSON Schema -->\n";

#[test]
fn the_page_on_the_configuration_lists_every_key_of_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let introduction = committed.split_once(END_OF_INTRODUCTION).map_or("", |(before, _)| before);
    let schema: Value = serde_json::from_str(&backstay::config::show::schema().unwrap()).unwrap();
    let page = format!("{introduction}{END_OF_INTRODUCTION}{}", Page { schema: &schema }.text());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let now = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(now == page, "docs/configuration.md is not what the types say: run this test with UPDATE_DOCS=1");
    assert!(introduction.contains("conf.d") && introduction.lines().count() > 20, "the introduction is lost");
}

#[test]
fn the_examples_in_the_introduction_are_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let examples: Vec<&str> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect();
    assert!(examples.len() >= 4, "there is an example for each kind");
    for example in examples {
        backstay::config::parse::from_text(example, "configuration.md").unwrap_or_else(|e| panic!("{e:?}\n{example}"));
    }
}

/// One mapping of the configuration: the keys that lead to it, and its schema.
struct Section<'a> {
    path: String,
    definition: &'a str,
}

struct Page<'a> {
    schema: &'a Value,
}

impl<'a> Page<'a> {
    fn text(&self) -> String {
        let mut text = String::from(
            "\n## Every key\n\nKeys that are not here are errors. Where the default is empty, nothing is set. [Values](#values) says how durations,\n\
                                    sizes and secrets are written.\n",
        );
        let mut todo = VecDeque::from([Section { path: String::new(), definition: "" }]);
        let mut written: Vec<String> = Vec::new();
        while let Some(section) = todo.pop_front() {
            if written.iter().any(|d| d == section.definition) {
                continue;
            }
            written.push(section.definition.to_owned());
            let schema = self.definition(section.definition);
            let title = if section.path.is_empty() { "Top level".into() } else { format!("`{}`", section.path) };
            write!(text, "\n### {title}\n\n{}\n\n", cell(description(schema))).unwrap();
            text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
            let mut below = Vec::new();
            for (key, property) in properties(schema) {
                let required = schema["required"].as_array().is_some_and(|r| r.iter().any(|name| name == key));
                let default = default(property, required, self.mapping(property).is_some());
                writeln!(text, "| `{key}` | {} | {default} | {} |", self.kind(property), self.meaning(property))
                    .unwrap();
                if let Some((definition, named)) = self.mapping(property) {
                    let dot = if section.path.is_empty() { "" } else { "." };
                    let name = if named { ".NAME" } else { "" };
                    below.push(Section { path: format!("{}{dot}{key}{name}", section.path), definition });
                }
            }
            for section in below.into_iter().rev() {
                todo.push_front(section);
            }
        }
        text
    }

    fn definition(&self, name: &str) -> &'a Value {
        if name.is_empty() { self.schema } else { &self.schema["$defs"][name] }
    }

    /// The mapping that a property holds, if it does, and whether it holds many, by name.
    fn mapping(&self, property: &'a Value) -> Option<(&'a str, bool)> {
        let is_mapping = |name: &&str| !properties(self.definition(name)).is_empty();
        let named = &property["additionalProperties"];
        match reference(property) {
            Some(name) => is_mapping(&name).then_some((name, false)),
            None => reference(named).filter(is_mapping).map(|name| (name, true)),
        }
    }

    fn kind(&self, property: &'a Value) -> String {
        if let Some((_, named)) = self.mapping(property) {
            return if named { "mappings, by name".into() } else { "mapping".into() };
        }
        if let Some(name) = reference(property) {
            return match name {
                "Span" => "duration".into(),
                "Bytes" => "size".into(),
                "SecretRef" => "secret".into(),
                "UsedDestination" => "name, or `{name: NAME, keep: {...}}`".into(),
                _ => self.choices(name),
            };
        }
        match word(property) {
            "array" => format!("list of: {}", self.kind(&property["items"])),
            "object" => format!("by name: {}", self.kind(&property["additionalProperties"])),
            "boolean" => "`true` or `false`".into(),
            "integer" => "number".into(),
            "string" => "text".into(),
            other => panic!("a type without a word for it: {other:?} in {property}"),
        }
    }

    /// The values that a setting may have.
    fn choices(&self, name: &str) -> String {
        let form = |choice: &Value| match choice["const"].as_str() {
            Some(value) => format!("`{value}`"),
            None => {
                let keys: Vec<String> = properties(choice).keys().map(|k| format!("{k}: ...")).collect();
                format!("`{{{}}}`", keys.join(", "))
            }
        };
        let all: Vec<String> = self.alternatives(name).iter().map(form).collect();
        assert!(!all.is_empty(), "{name} has no values");
        all.join(", ")
    }

    fn alternatives(&self, name: &str) -> &'a [Value] {
        self.definition(name)["oneOf"].as_array().map_or(&[], Vec::as_slice)
    }

    /// What a property says of itself, and of each value it may have.
    fn meaning(&self, property: &'a Value) -> String {
        let mut text = cell(description(property));
        let name = reference(property).filter(|name| !matches!(*name, "SecretRef" | "UsedDestination"));
        for choice in name.map_or(&[][..], |name| self.alternatives(name)) {
            if let Some(value) = choice["const"].as_str() {
                write!(text, "<br>`{value}`: {}", cell(description(choice))).unwrap();
            }
        }
        text
    }
}

/// The definition that a schema refers to, be it optional or not.
fn reference(schema: &Value) -> Option<&str> {
    let direct = schema["$ref"].as_str();
    let optional = || schema["anyOf"].as_array()?.iter().find_map(|s| s["$ref"].as_str());
    direct.or_else(optional)?.strip_prefix("#/$defs/")
}

/// The type of a plain value; "or null" is said by its default.
fn word(schema: &Value) -> &str {
    match &schema["type"] {
        Value::Array(several) => several.iter().filter_map(Value::as_str).find(|t| *t != "null").unwrap_or_default(),
        one => one.as_str().unwrap_or_default(),
    }
}

fn properties(schema: &Value) -> &Map<String, Value> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    schema["properties"].as_object().unwrap_or(&NONE)
}

fn default(property: &Value, required: bool, mapping: bool) -> String {
    match &property["default"] {
        _ if required => "**required**".into(),
        _ if mapping => String::new(),
        Value::Null => String::new(),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::Object(map) if map.is_empty() => "none".into(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn description(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_else(|| panic!("nothing is said of {schema}"))
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}
