//! Deliveries between the buses of nodes without Redis. The calls are made by hand.

use http::StatusCode;

use super::*;
use crate::fleet::PeerEndpoint;

/// Nodes that list each other.
fn peers(names: &[&str]) -> (tempfile::TempDir, Vec<Node>) {
    let directory = tempfile::tempdir().unwrap();
    let node = |name: &&str| {
        let own = directory.path().join(name);
        std::fs::create_dir(&own).unwrap();
        let address = "127.0.0.1:9443".parse().unwrap();
        let peer = Some(PeerEndpoint { address, protocol: 1 });
        let announcement = Announcement { peer, ..Announcement::of_region("here") };
        let node = Node::start_with(name, own, Settings::default(), announcement);
        let others = names.iter().filter(|other| *other != name);
        node.bus.set_static_peers(others.map(|other| (*other).into()).collect());
        names.iter().for_each(|other| node.store.purges().add_peer(&(*other).into()));
        node
    };
    let nodes = names.iter().map(node).collect();
    (directory, nodes)
}

fn next(from: &Node, to: &Node, position: PeerPosition) -> Option<Bytes> {
    from.runtime.block_on(async { from.bus.next_delivery(&to.name, position) })
}

fn take(to: &Node, from: &str, content: &[u8]) -> (StatusCode, Bytes) {
    to.runtime.block_on(to.bus.take_delivery(from, content))
}

/// Makes calls until there is nothing to deliver. Returns their number, without the one for the position.
fn deliver(from: &Node, to: &Node) -> usize {
    let mut position = PeerPosition::Unknown;
    let mut calls = 0;
    while let Some(content) = next(from, to, position) {
        let (status, answer) = take(to, &from.name, &content);
        assert_eq!(status, StatusCode::OK, "{answer:?}");
        position = from.bus.note_delivery(&to.name, position, (status, &answer)).unwrap();
        calls += 1;
    }
    calls - 1
}

fn applied(node: &Node) -> u64 {
    node.metrics.total(Metric::Purges, 0)
}

fn is_applied(at: &Node, id: &str, name: &str) -> bool {
    matches!(at.status(id).unwrap().nodes[name], NodeState::Applied(_))
}

#[test]
fn a_delivery_is_applied_once_by_each_way_and_brings_receipts() {
    let (_kept, nodes) = peers(&["a", "b", "c"]);
    let [a, b, c] = &nodes[..] else { unreachable!() };
    let timeout = Duration::from_millis(1);
    let (id, status) = a.try_purge("https://x/1", Wait::All, timeout).unwrap();
    assert!(!status.is_enough(Wait::All));
    assert_eq!(status.nodes.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(deliver(a, b), 1);
    assert!(is_applied(a, &id, "b") && !is_applied(a, &id, "c"));
    assert!(is_applied(b, &id, "a"), "it was on disk there before");
    let scopes = applied(a);
    assert_eq!(deliver(b, a), 0, "it came from there");
    assert_eq!(deliver(b, c), 1);
    assert_eq!(deliver(a, c), 1, "it does not know that the other one has it");
    assert!(is_applied(a, &id, "c") && is_applied(b, &id, "c"));
    assert_eq!([applied(b), applied(c)], [scopes, scopes]);
    assert_eq!((deliver(a, b), deliver(a, c), deliver(c, a)), (0, 0, 1));
    assert_eq!(applied(a), scopes);
}

#[test]
fn receipts_and_positions_are_there_again_after_a_restart() {
    let (_kept, mut nodes) = peers(&["a", "b"]);
    let (id, _) = nodes[0].purge("https://x/1", Wait::Local);
    assert_eq!(deliver(&nodes[0], &nodes[1]), 1);
    let address = "127.0.0.1:9443".parse().unwrap();
    let announcement = Announcement {
        peer: Some(PeerEndpoint { address, protocol: 1 }),
        ..Announcement::of_region("here")
    };
    for number in [0, 1] {
        let (name, directory, settings) = nodes.remove(number).kill();
        let node = Node::start_with(&name, directory, settings, announcement.clone());
        nodes.insert(number, node);
    }
    let [a, b] = &nodes[..] else { unreachable!() };
    a.bus.set_static_peers(vec!["b".into()]);
    a.store.purges().add_peer(&"b".into());
    assert!(!is_applied(a, &id, "b"), "it has not asked yet");
    assert_eq!(deliver(a, b), 0);
    assert!(is_applied(a, &id, "b"));
}

#[test]
fn a_call_must_follow_the_last_one_or_begin_with_a_purge_of_everything() {
    let (_kept, nodes) = peers(&["a"]);
    let call = |after: u64, up_to: u64, scope: &str| {
        let record = format!(
            r#"{{"v":1,"id":"b-{up_to}","node":"b","at_ms":1.0,"kind":"soft","scopes":[{scope}]}}"#
        );
        let lineage = "000000000000002a";
        let content = format!(
            r#"{{"v":1,"lineage":"{lineage}","after":{after},"up_to":{up_to},"purges":[{record}]}}"#
        );
        let (status, answer) = take(&nodes[0], "b", content.as_bytes());
        (status.as_u16(), String::from_utf8_lossy(&answer).into_owned())
    };
    let url = r#"{"url":"https://x/1"}"#;
    assert_eq!(call(0, 5, url).0, 200);
    let (status, answer) = call(7, 9, url);
    assert_eq!(status, 409, "{answer}");
    assert!(answer.contains("\"at\":5"), "{answer}");
    assert_eq!(call(7, 9, "\"all\"").0, 200);
    assert_eq!(call(9, 11, url).0, 200);
    let (status, answer) = call(0, 5, url);
    assert_eq!(status, 200, "the same again");
    assert!(answer.contains("\"at\":11"), "a position does not go back: {answer}");
    assert_eq!(call(11, 12, "").0, 400, "it purges nothing");
    for content in ["", "{}", "[]", r#"{"v":2,"lineage":"1","after":0,"up_to":0,"purges":[]}"#] {
        assert_eq!(take(&nodes[0], "b", content.as_bytes()).0, StatusCode::BAD_REQUEST);
    }
}

#[test]
fn invalidations_by_unsafe_requests_are_delivered_and_not_listed() {
    let (_kept, nodes) = peers(&["a", "b"]);
    let [a, b] = &nodes[..] else { unreachable!() };
    let target = crate::cache::PurgeTarget { site: "s", url: "https://x/1", tags: &[] };
    a.store.purges().invalidate(vec![PurgeScope::Url("https://x/1".into())], None);
    assert!(!a.store.purges().peer_has_purges("b", &target));
    // The log thread writes the purge while the test goes on.
    until("the other node has it", || deliver(a, b) == 1);
    assert!(a.store.purges().peer_has_purges("b", &target));
    assert_eq!(applied(b), 1);
    assert!(b.bus.since(0.0, 9).is_empty());
}
