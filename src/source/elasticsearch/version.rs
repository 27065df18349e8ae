//! Versions: of the cluster, of the indices in a snapshot, and which of them go together.

use std::fmt;

use serde_json::Value;

use super::client::Client;
use crate::error::{Error, ErrorKind, Result};

/// Indices of OpenSearch carry this bit in the number of the version that made them.
const OPENSEARCH_BIT: u64 = 0x0800_0000;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// Elasticsearch.
    Elasticsearch,
    /// OpenSearch.
    OpenSearch,
}

/// A product's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    /// Of what.
    pub(super) product: Product,
    /// Major, minor and patch.
    pub(super) number: (u64, u64, u64),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.number;
        let product = match self.product {
            Product::Elasticsearch => "Elasticsearch",
            Product::OpenSearch => "OpenSearch",
        };
        write!(f, "{product} {major}.{minor}.{patch}")
    }
}

impl Version {
    /// From the text that `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (product, number) = text.split_once(' ')?;
        let product = match product {
            "Elasticsearch" => Product::Elasticsearch,
            "OpenSearch" => Product::OpenSearch,
            _ => return None,
        };
        Some(Self { product, number: numbers(number)? })
    }

    /// From the number in an index's `version.created`.
    pub(super) fn of_index(created: u64) -> Self {
        let product = if created & OPENSEARCH_BIT == 0 { Product::Elasticsearch } else { Product::OpenSearch };
        let id = created & !OPENSEARCH_BIT;
        Self { product, number: (id / 1_000_000, id / 10_000 % 100, id / 100 % 100) }
    }

    fn major(&self) -> u64 {
        self.number.0
    }
    /// One line through both products, for "older": OpenSearch 1 comes after Elasticsearch 7.
    pub(super) fn age(&self) -> (u64, (u64, u64, u64)) {
        (generation(*self), self.number)
    }
    /// Whether a snapshot can carry notes of whoever made it.
    pub(super) fn has_metadata(&self) -> bool {
        self.product == Product::OpenSearch || self.number >= (7, 3, 0)
    }
    /// Whether snapshots can be listed without opening each.
    pub(super) fn lists_briefly(&self) -> bool {
        self.product == Product::OpenSearch || self.number >= (5, 5, 0)
    }
    /// Whether wildcards can be told to match hidden indices.
    pub(super) fn knows_hidden(&self) -> bool {
        self.product == Product::OpenSearch || self.number >= (7, 7, 0)
    }
}

fn numbers(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.split(['.', '-']).map(|p| p.parse::<u64>());
    let major = parts.next()?.ok()?;
    let mut next = || parts.next().and_then(|p| p.ok()).unwrap_or(0);
    Some((major, next(), next()))
}

/// The lowest version among the nodes. `GET /` is asked for the product only: some builds do not have it, and some
/// lie there about the number for the sake of old clients.
pub(super) async fn ask(client: &Client) -> Result<Version> {
    let what = "could not ask the nodes for their version";
    let path = "/_nodes?filter_path=nodes.*.version,nodes.*.modules.classname,nodes.*.plugins.classname";
    let nodes = client.must_get(path, what).await?;
    let all = nodes["nodes"].as_object().into_iter().flat_map(|n| n.values());
    let lowest = all.clone().filter_map(|n| numbers(n["version"].as_str()?)).min();
    let number = lowest.ok_or_else(|| {
        Error::new(ErrorKind::Failed, what)
            .caused_by("the answer names no node")
            .hint("does `url` lead to Elasticsearch or OpenSearch?")
    })?;
    let by_class = |key: &str| {
        let classes = all.clone().flat_map(|n| n[key].as_array().into_iter().flatten());
        classes.filter_map(|m| m["classname"].as_str()).any(|c| c.starts_with("org.opensearch."))
    };
    let mut product = Product::Elasticsearch;
    if by_class("modules") || by_class("plugins") {
        product = Product::OpenSearch;
    } else if let Ok(Ok(root)) = client.get("/").await
        && is_opensearch(&root)
    {
        product = Product::OpenSearch;
    }
    Ok(Version { product, number })
}

fn is_opensearch(root: &Value) -> bool {
    root["version"]["distribution"] == "opensearch"
        || root["tagline"].as_str().is_some_and(|t| t.starts_with("The OpenSearch Project"))
}

/// Why a snapshot of `made_by`, whose oldest index was made by `oldest`, cannot be restored into `target`; `None` = it
/// can. The rule of both products: a cluster reads indices of its own major version and of the one before, and no
/// snapshots of a newer version.
pub(super) fn obstacle(made_by: Option<Version>, oldest: Option<Version>, target: Version) -> Option<String> {
    let newer = |v: Version| v.product == target.product && v.number > target.number;
    if let Some(made_by) = made_by {
        if newer(made_by) {
            return Some(format!("it was made by {made_by}, and {target} reads none of a newer version"));
        }
        let foreign = match (made_by.product, target.product) {
            (Product::OpenSearch, Product::Elasticsearch) => true,
            (Product::Elasticsearch, Product::OpenSearch) => made_by.number >= (7, 11, 0),
            _ => false,
        };
        if foreign {
            return Some(format!("it was made by {made_by}, which {target} cannot read"));
        }
    }
    let oldest = oldest?;
    let lowest = lowest_index(target);
    (generation(oldest) < generation(lowest)).then(|| {
        format!(
            "an index in it was made by {oldest}, and {target} reads indices of {lowest} or newer: restore it into an \
             older cluster, reindex there, and take a snapshot again"
        )
    })
}

/// The oldest indices that a cluster reads. 3 and 4 of Elasticsearch never were; OpenSearch 1 came from 7.10.
fn lowest_index(target: Version) -> Version {
    let of = |product, major| Version { product, number: (major, 0, 0) };
    match (target.product, target.major()) {
        (Product::Elasticsearch, 5) => of(Product::Elasticsearch, 2),
        (Product::Elasticsearch, major) => of(Product::Elasticsearch, major.saturating_sub(1)),
        (Product::OpenSearch, 1) => of(Product::Elasticsearch, 6),
        (Product::OpenSearch, 2) => of(Product::Elasticsearch, 7),
        (Product::OpenSearch, major) => of(Product::OpenSearch, major.saturating_sub(1)),
    }
}

/// One line through both products: OpenSearch 1 has the rank of Elasticsearch 7 plus one.
fn generation(v: Version) -> u64 {
    match v.product {
        Product::Elasticsearch => v.major(),
        Product::OpenSearch => v.major() + 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn versions_are_read_and_written() {
        for text in ["Elasticsearch 1.7.6", "OpenSearch 2.19.1"] {
            assert_eq!(v(text).to_string(), text);
        }
        assert_eq!(numbers("8.17.0-SNAPSHOT"), Some((8, 17, 0)));
        assert_eq!(Version::of_index(136_407_927), v("OpenSearch 2.19.1"));
        assert_eq!(Version::of_index(7_170_099), v("Elasticsearch 7.17.0"));
        assert!(!v("Elasticsearch 7.2.1").has_metadata() && v("OpenSearch 1.0.0").has_metadata());
        assert!(v("Elasticsearch 7.10.2").age() < v("OpenSearch 1.0.0").age());
    }

    #[test]
    fn what_goes_together_does_and_the_rest_is_explained() {
        let says = |made: &str, oldest: &str, target: &str| obstacle(Some(v(made)), Some(v(oldest)), v(target));
        assert_eq!(says("Elasticsearch 7.17.0", "Elasticsearch 7.1.0", "Elasticsearch 8.17.0"), None);
        assert_eq!(says("Elasticsearch 7.10.2", "Elasticsearch 7.10.2", "OpenSearch 2.19.1"), None);
        assert_eq!(says("OpenSearch 2.19.1", "OpenSearch 2.19.1", "OpenSearch 3.6.0"), None);
        assert_eq!(says("Elasticsearch 2.4.6", "Elasticsearch 2.0.0", "Elasticsearch 5.6.0"), None);
        assert_eq!(
            says("Elasticsearch 7.17.0", "Elasticsearch 6.8.0", "Elasticsearch 8.17.0").unwrap(),
            "an index in it was made by Elasticsearch 6.8.0, and Elasticsearch 8.17.0 reads indices of Elasticsearch 7.0.0 \
             or newer: restore it into an older cluster, reindex there, and take a snapshot again"
        );
        assert_eq!(
            says("OpenSearch 3.6.0", "OpenSearch 3.6.0", "OpenSearch 2.19.1").unwrap(),
            "it was made by OpenSearch 3.6.0, and OpenSearch 2.19.1 reads none of a newer version"
        );
        assert!(says("Elasticsearch 7.17.0", "Elasticsearch 7.17.0", "OpenSearch 2.19.1").is_some());
        assert!(says("OpenSearch 1.3.0", "OpenSearch 1.3.0", "Elasticsearch 8.1.0").is_some());
        assert!(says("Elasticsearch 7.10.2", "Elasticsearch 7.0.0", "OpenSearch 3.6.0").is_some());
        assert!(says("Elasticsearch 5.6.0", "Elasticsearch 1.7.0", "Elasticsearch 5.6.0").is_some());
    }
}
