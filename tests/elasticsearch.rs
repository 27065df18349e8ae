//! Elasticsearch and OpenSearch: snapshots in real repositories, taken, found, lost, restored and counted.

mod bucket;
mod drilled;
mod fake;
mod faults;
mod real;
mod running;

#[test]
fn the_configuration_in_the_document_is_right() {
    let page = include_str!("../docs/elasticsearch.md");
    let block = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    backstay::config::parse::from_text(block, "elasticsearch.md").unwrap();
}
