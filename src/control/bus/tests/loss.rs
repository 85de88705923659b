//! Losses that leave a node with something wrong to believe: numbers that another purge has taken, a
//! history that was renamed, a purge that Redis took and forgot.

use super::*;

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
