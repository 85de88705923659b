//! Losses that leave a node with something wrong to believe: numbers that another purge has taken, a
//! history that was renamed, a purge that Redis took and forgot.

use super::*;

impl Redis {
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
}

fn outbox_is_empty(node: &Node) -> bool {
    node.store.purges().outbox_len() == 0
}

#[test]
fn a_purge_that_redis_took_and_lost_unnoticed_is_published_again() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    until("it is read back", || outbox_is_empty(&nodes[0]));
    let (number, id) = (redis.state("number"), redis.state("id"));
    let b = nodes.pop().unwrap().kill();
    // It can publish, and can't read.
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
