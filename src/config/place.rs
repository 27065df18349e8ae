//! Where in a file each key stands, so that a problem found later can still name its line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, Options, Spanned};

/// Line and column, from 1.
pub(super) type Place = (u64, u64);

/// How YAML is read here.
pub(super) fn options() -> Options {
    serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    }
}

/// The shape of a text: its keys and lists with their places, without its scalars.
#[derive(Debug, Default)]
pub(super) struct Places {
    root: Node,
}

#[derive(Debug, Default)]
enum Node {
    #[default]
    Leaf,
    Map(Vec<(String, Place, Node)>),
    List(Vec<(Place, Node)>),
}

impl Places {
    /// Of a text that has been parsed before; anything wrong with it has been said then.
    pub(super) fn of(text: &str) -> Self {
        let node = serde_saphyr::from_str_with_options::<Option<Node>>(text, options());
        Self { root: node.ok().flatten().unwrap_or_default() }
    }

    /// The place of the deepest part of `path` that is there.
    pub(super) fn find(&self, path: &[String]) -> Option<Place> {
        let (mut node, mut found) = (&self.root, None);
        for part in path {
            let next = match node {
                Node::Map(entries) => entries.iter().find(|(key, ..)| key == part).map(|(_, at, node)| (at, node)),
                Node::List(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)).map(|(at, node)| (at, node)),
                Node::Leaf => None,
            };
            match next {
                Some((at, below)) => (node, found) = (below, Some(*at)),
                None => break,
            }
        }
        found
    }

    /// The keys directly below `path`.
    pub(super) fn keys(&self, path: &[&str]) -> Vec<&str> {
        let mut node = &self.root;
        for part in path {
            let Node::Map(entries) = node else { return Vec::new() };
            let Some((_, _, below)) = entries.iter().find(|(key, ..)| key == part) else { return Vec::new() };
            node = below;
        }
        match node {
            Node::Map(entries) => entries.iter().map(|(key, ..)| key.as_str()).collect(),
            _ => Vec::new(),
        }
    }
}

fn place(at: Location) -> Place {
    (at.line(), at.column())
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

macro_rules! leaf {
    ($($name:ident: $type:ty),*) => {
        $(fn $name<E>(self, _: $type) -> Result<Node, E> {
            Ok(Node::Leaf)
        })*
    };
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    leaf!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, visit_bytes: &[u8]);
    leaf!(visit_i128: i128, visit_u128: u128);
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        Node::deserialize(d)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Node>>()? {
            items.push((place(item.referenced), item.value));
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            entries.push((key.value, place(key.referenced), map.next_value::<Node>()?));
        }
        Ok(Node::Map(entries))
    }
}

/// Whether the text holds anything but comments.
pub(super) fn is_blank(text: &str) -> bool {
    serde_saphyr::from_str_with_options::<Option<IgnoredAny>>(text, options())
        .map_or_else(|e| matches!(e.without_snippet(), serde_saphyr::Error::Eof { .. }), |v| v.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_items_have_the_place_where_they_stand() {
        let places = Places::of("a:\n  b: {c: 1}\n  d:\n    - x\n    - {name: y}\n");
        let find = |path: &str| places.find(&path.split('.').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(find("a"), Some((1, 1)));
        assert_eq!(find("a.b.c"), Some((2, 7)));
        assert_eq!(find("a.d.1.name"), Some((5, 8)));
        assert_eq!(find("a.b.nothing"), Some((2, 3)), "the deepest part that is there");
        assert_eq!(find("nothing"), None);
        assert_eq!(places.keys(&["a"]), ["b", "d"]);
    }

    #[test]
    fn comments_alone_are_blank() {
        assert!(is_blank(""));
        assert!(is_blank("# nothing\n\n"));
        assert!(is_blank("---\n"));
        assert!(!is_blank("a: 1"));
        assert!(!is_blank("a: [1"));
    }
}
