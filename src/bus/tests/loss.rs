//! Losses that leave a node with something wrong to believe: numbers that another purge has taken, a
//! history that was renamed, a purge that Redis took and forgot.

use super::*;
use crate::cache::PurgeTarget;
use crate::fleet::PeerEndpoint;

/// The user of the nodes that a test cuts off; `redis-cli` goes on as the default user.
const CUT_OFF: &str = "edge";

impl Redis {
    /// A URL whose connections [`Redis::cut_off`] closes.
    fn url_to_cut_off(&self) -> RedisUrl {
        let user = ["ACL", "SETUSER", CUT_OFF, "on", ">pw", "~*", "&*", "+@all"];
        assert_eq!(self.command(&user), "OK");
        format!("redis://{CUT_OFF}:pw@127.0.0.1:{}", self.port).parse().unwrap()
    }

    fn cut_off(&self) {
        self.command(&["ACL", "SETUSER", CUT_OFF, "off"]);
        self.command(&["CLIENT", "KILL", "USER", CUT_OFF]);
    }

    fn let_in(&self) {
        self.command(&["ACL", "SETUSER", CUT_OFF, "on", "~*"]);
    }

    fn state(&self, field: &str) -> String {
        self.command(&["HGET", "{skerry:purge}:state", field])
    }

    /// As after a failover to a replica that never got the later entries.
    fn lose_entries_after(&self, number: &str, id: &str) {
        let entries = self.command(&["XRANGE", STREAM, &format!("({id}"), "+"]);
        for lost in entries.lines().filter(|line| line.contains('-')) {
            self.command(&["XDEL", STREAM, lost]);
        }
        self.command(&["HSET", "{skerry:purge}:state", "number", number, "id", id]);
    }

    /// Appends an entry as a node of the build before did.
    fn append(&self, number: &str, record: &PurgeRecord) {
        let (epoch, previous) = (self.state("epoch"), self.state("id"));
        let record = String::from_utf8(record.to_bytes().to_vec()).unwrap();
        let entry = ["e", &epoch, "n", number, "p", &previous, "r", &record];
        let id = self.command(&[&["XADD", STREAM, "*"][..], &entry].concat());
        self.command(&["HSET", "{skerry:purge}:state", "number", number, "id", &id]);
    }
}

fn node(directory: &tempfile::TempDir, name: &str, url: RedisUrl) -> Node {
    let own = directory.path().join(name);
    std::fs::create_dir(&own).unwrap();
    Node::start(name, own, settings(url))
}

fn outbox_is_empty(node: &Node) -> bool {
    node.store.purges().outbox_len() == 0
}

#[test]
fn a_number_that_another_purge_has_taken_is_no_receipt() {
    let Some(redis) = Redis::forgetful() else { return };
    let directory = tempfile::tempdir().unwrap();
    let a = node(&directory, "a", redis.url_to_cut_off());
    let b = node(&directory, "b", redis.url());
    until("they have met", || a.bus.table().members().len() == 2);
    let b = b.kill();
    let (id, _) = a.purge("https://x/1", Wait::Local);
    until("it is read back", || outbox_is_empty(&a));
    redis.cut_off();
    redis.lose_entries_after("0", "0-0");
    let b = Node::start(&b.0, b.1, b.2);
    b.purge("https://x/other", Wait::Local);
    let row = || redis.command(&["HGET", "{skerry:purge}:nodes", "b"]);
    until("b has told its place", || row().contains("\"number\":1"));
    b.kill();
    redis.let_in();
    until("the loss is noticed", || a.gaps(Gap::Backwards) == 1);
    let status = a.status(&id).unwrap();
    assert!(matches!(status.nodes["b"], NodeState::Pending(_)), "{status:?}");
    assert!(!status.is_enough(Wait::All));
}

#[test]
fn a_purge_with_an_impossible_time_holds_up_no_other() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    let request = request_for("https://x/1");
    for (at, at_ms) in [-1e300, 1e300].into_iter().enumerate() {
        let id = format!("z-{at}");
        let record = PurgeRecord::new(id.clone(), "z".into(), at_ms, request.clone());
        redis.append(&(at + 1).to_string(), &record);
        until("both have it", || nodes.iter().all(|node| node.knows(&id)));
    }
    assert!(nodes[0].purge("https://x/2", Wait::All).1.is_enough(Wait::All));
}

#[test]
fn a_receipt_that_was_never_sent_is_sent_after_a_restart() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    let ids: Vec<String> =
        (0..20).map(|n| nodes[0].purge(&format!("https://x/{n}"), Wait::All).0).collect();
    let killed: Vec<_> = nodes.into_iter().map(Node::kill).collect();
    // As if b had died between its disk and Redis.
    for id in &ids {
        redis.command(&["HDEL", &format!("{{skerry:purge}}:receipts:{id}"), "b"]);
    }
    let nodes: Vec<_> = killed.into_iter().map(|it| Node::start(&it.0, it.1, it.2)).collect();
    until("they have met", || nodes.iter().all(|node| node.bus.table().members().len() == 2));
    until("all are confirmed", || {
        ids.iter().all(|id| nodes[0].status(id).is_some_and(|it| it.is_enough(Wait::All)))
    });
}

#[test]
fn a_receipt_that_did_not_reach_redis_is_sent_again() {
    let Some(redis) = Redis::forgetful() else { return };
    let directory = tempfile::tempdir().unwrap();
    let a = node(&directory, "a", redis.url());
    let b = node(&directory, "b", redis.url_to_cut_off());
    until("they have met", || a.bus.table().members().len() == 2);
    // b hears of purges, and each of its receipts ends its connection.
    let keys = ["state", "stream", "nodes", "members", "beats", "changes"];
    let keys = keys.map(|key| format!("~{{skerry:purge}}:{key}"));
    let mut rule = vec!["ACL", "SETUSER", CUT_OFF, "resetkeys"];
    rule.extend(keys.iter().map(String::as_str));
    assert_eq!(redis.command(&rule), "OK");
    let purge = |number: u32| a.purge(&format!("https://x/{number}"), Wait::Local).0;
    let mut ids: Vec<String> = (0..5).map(purge).collect();
    let talks_ended = || b.metrics.total(Metric::BusDisconnects, 1);
    until("b has lost a connection", || talks_ended() >= 1);
    // These meet receipts that are sent again.
    ids.extend((5..10).map(purge));
    until("b has applied all", || ids.iter().all(|id| b.knows(id)));
    until("b has lost another connection", || talks_ended() >= 3);
    let is_complete = |id: &String| a.status(id).is_some_and(|status| status.is_enough(Wait::All));
    assert!(!ids.iter().any(is_complete));
    redis.let_in();
    until("all are complete", || ids.iter().all(is_complete));
}

#[test]
fn a_node_that_renames_the_history_meets_one_gap() {
    let Some(redis) = Redis::forgetful() else { return };
    let directory = tempfile::tempdir().unwrap();
    let a = node(&directory, "a", redis.url_to_cut_off());
    for number in 1..=2 {
        a.purge(&format!("https://x/{number}"), Wait::Local);
    }
    until("both are read back", || outbox_is_empty(&a));
    let lost = redis.state("epoch");
    redis.cut_off();
    redis.lose_entries_after("0", "0-0");
    let request = request_for("https://x/3");
    redis.append("1", &PurgeRecord::new("of-another".into(), "c".into(), 0.0, request));
    redis.let_in();
    until("the entry is applied", || a.knows("of-another"));
    let (_, status) = a.purge("https://x/4", Wait::All);
    assert!(status.is_enough(Wait::All));
    until("it is read back", || outbox_is_empty(&a));
    let cursor = record::StreamCursor::parse(&a.store.purges().cursor().unwrap()).unwrap();
    assert_eq!(cursor.epoch, redis.state("epoch"));
    assert_ne!(cursor.epoch, lost);
    assert_eq!((a.gaps(Gap::Backwards), a.gaps(Gap::Replaced)), (1, 0));
}

#[test]
fn after_a_loss_nodes_with_peers_ask_each_other_again_once_everything_was_purged() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    for node in &nodes {
        let peer = PeerEndpoint { address: "127.0.0.1:9".parse().unwrap(), protocol: 1 };
        node.bus.announce(|own| own.peer = Some(peer));
    }
    nodes[0].purge("https://x/1", Wait::All);
    let target = PurgeTarget { site: "x", url: "https://x/2", tags: &[] };
    let requirement = |node: &Node| node.store.purges().requirement(&target);
    until("they meet each other's requirement", || {
        nodes[1].store.purges().meets(&requirement(&nodes[0]))
            && nodes[0].store.purges().meets(&requirement(&nodes[1]))
    });
    redis.lose_entries_after("0", "0-0");
    until("both notice", || nodes.iter().all(Node::purged_softly));
    // A node may read the purge of the other one meanwhile, and asks nobody until that is in force.
    until("both may ask again", || {
        nodes.iter().all(|node| node.store.purges().meets(&requirement(node)))
    });
    let is_of_everything = |(_, purge): &(String, KnownPurge)| {
        purge.first_scopes == [RecordScope::All] && purge.reason.is_some()
    };
    for node in &nodes {
        assert!(node.bus.since(0.0, 99).iter().any(is_of_everything));
    }
}

#[test]
fn a_purge_that_redis_took_and_lost_unnoticed_is_published_again() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    until("it is read back", || outbox_is_empty(&nodes[0]));
    let (number, id) = (redis.state("number"), redis.state("id"));
    let b = nodes.pop().unwrap().kill();
    // Nodes can publish, and can't read.
    redis.command(&["ACL", "SETUSER", "default", "-xread"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    let (purge, _) = nodes[0].purge("https://x/2", Wait::Local);
    let published = || nodes[0].bus.inner.publish_progress().position().next;
    until("Redis has answered", || published() == 2);
    redis.lose_entries_after(&number, &id);
    redis.command(&["ACL", "SETUSER", "default", "+xread"]);
    until("it is read back", || outbox_is_empty(&nodes[0]));
    let b = Node::start(&b.0, b.1, b.2);
    assert!(b.knows(&purge));
    assert!(!nodes[0].purged_softly() && !b.purged_softly(), "no gap is visible");
}

#[test]
fn a_cursor_is_never_ahead_of_the_purges_in_force() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    let before = nodes[1].store.purges().cursor();
    // Too long for a wake-up: it comes by the stream alone.
    let scopes = (0..10_000).map(|tag| PurgeScope::Tag(format!("tag-{tag}").into())).collect();
    let request = PurgeRequest { scopes, kind: Hard, reason: None, refresh: 0 };
    nodes[0].runtime.block_on(async { nodes[0].bus.purge(request, None).unwrap() });
    until("the cursor moves", || nodes[1].store.purges().cursor() != before);
    // Counted when all are in force. A look into the table would wait for that itself.
    assert!(nodes[1].metrics.total(Metric::Purges, 0) >= 10_000);
}

const STREAM: &str = "{skerry:purge}:stream";
