//! Elasticsearch and OpenSearch: snapshots in real repositories, taken, found, lost, restored and counted.

mod archived;
mod bucket;
mod disks;
mod drilled;
mod fake;
mod faults;
mod real;
mod running;

#[test]
fn the_configuration_in_the_document_is_right() {
    let page = include_str!("../docs/elasticsearch.md");
    let blocks = page.split("```yaml\n").skip(1).map(|b| b.split("```").next().unwrap());
    let whole: Vec<&str> = blocks.filter(|b| b.starts_with("environment")).collect();
    assert_eq!(whole.len(), 2);
    for block in whole {
        backstay::config::parse::from_text(block, "elasticsearch.md").unwrap();
    }
}
