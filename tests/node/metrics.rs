//! What Prometheus is given, and what docs/api.md says of it.

use crate::support::node::Node;
use crate::support::scratch;

#[tokio::test]
async fn every_metric_is_on_the_page_of_the_contract() {
    let folder = scratch("metrics");
    let node = Node::start(&folder.path().join("data")).await;
    assert_eq!(node.put("a", vec![1; 100_000]).send().await.unwrap().status(), 201);
    assert_eq!(node.object("a").send().await.unwrap().bytes().await.unwrap().len(), 100_000);
    let text = node.get("/metrics").send().await.unwrap().text().await.unwrap();
    let contract = include_str!("../../docs/api.md");
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 25 && names.contains(&"reelring_http_sent_bytes"), "{text}");
    for name in names {
        // Written out, or as the end of one that stands before it.
        let written = contract.contains(&format!("`{name}"))
            || name.match_indices('_').any(|(at, _)| contract.contains(&format!("`…{}`", &name[at..])));
        assert!(written, "docs/api.md does not tell of {name}");
    }
    assert!(text.contains("reelring_http_sent_bytes_total{path=\"sendfile\"}"), "{text}");
}
