//! Deliveries between purge tables: which peer is asked for what, and what a peer gets.

use super::*;
use crate::purge::deliveries::SENDERS_MAX;
use crate::purge::unread::PurgeId;
use crate::purge::{
    BusCursor, DeliveryBatch, DeliveryPart, DeliverySender, EntryId, NextDelivery, SenderPosition,
    StreamPosition,
};

const URL: &str = "https://a.example/1";
const TARGET: PurgeTarget<'_> = PurgeTarget { site: "site", url: URL, tags: &[] };
const LIMITS: (usize, usize) = (3, 1000);

/// A node whose only peer is `b`.
fn with_peer(purges: Arc<Purges>) -> Arc<Purges> {
    let ids = AtomicU64::new(0);
    purges.expect_peers(Box::new(move |_| {
        let id = format!("invalidation-{}", ids.fetch_add(1, Ordering::Relaxed));
        Some(DeliveryPart { count: 1, ..part(&id) })
    }));
    purges.restore_deliveries(|message| {
        let id = std::str::from_utf8(message).unwrap();
        Some((PurgeId::of(id), id.starts_with("all")))
    });
    purges.add_peer(&"b".into());
    purges
}

fn part(id: &str) -> DeliveryPart {
    let (message, is_of_everything) = (id.to_owned().into(), id.starts_with("all"));
    DeliveryPart { id: PurgeId::of(id), count: 1, message, is_of_everything }
}

/// Purges and delivers. Returns the place of the delivery.
async fn order(purges: &Purges, id: &str, scope: PurgeScope) -> u64 {
    let batch = PurgeBatch { deliveries: vec![part(id)], ..batch(scope, Hard) };
    purges.purge(batch).await.unwrap().sequence.0
}

async fn take(purges: &Purges, id: &str, name: &str, position: SenderPosition) {
    let sender = DeliverySender { name: name.into(), position };
    let (deliveries, own) = (vec![part(id)], Some(sender.clone()));
    let batch = PurgeBatch { deliveries, sender: own, ..batch(url(URL), Hard) };
    let in_force = purges.put_in_force(batch).await.unwrap();
    in_force.durable().await.unwrap();
    purges.note_taken_from(sender);
}

/// The ids that the peer `b` gets next, and the place after them.
fn next(purges: &Purges, position: u64) -> Option<(Vec<String>, u64)> {
    match purges.next_delivery("b", position, LIMITS) {
        NextDelivery::Batch(DeliveryBatch { messages, up_to, .. }) => {
            let text = |message: &bytes::Bytes| String::from_utf8(message.to_vec()).unwrap();
            Some((messages.iter().map(text).collect(), up_to))
        }
        NextDelivery::Nothing => None,
        NextDelivery::Dropped => panic!("dropped"),
    }
}

fn has(purges: &Purges) -> bool {
    purges.peer_has_purges("b", &TARGET)
}

#[tokio::test]
async fn a_peer_is_asked_once_it_has_taken_what_may_cover_the_key() {
    let purges = with_peer(Node::new().open_in_memory());
    assert!(has(&purges), "there is no purge");
    let other = order(&purges, "1", url("https://a.example/2")).await;
    assert!(has(&purges), "it covers another URL");
    let place = order(&purges, "2", url(URL)).await;
    assert!(!has(&purges));
    purges.note_taken("b", other);
    assert!(!has(&purges), "it has taken the one before only");
    purges.note_taken("b", place);
    assert!(has(&purges));
    assert!(!purges.peer_has_purges("c", &TARGET), "nothing is known of another node");
    order(&purges, "3", PurgeScope::Tag("t".into())).await;
    assert!(!has(&purges), "the tags of the response are not known");
    purges.note_taken("b", other);
    assert!(!has(&purges), "it has lost its disk");
}

#[tokio::test]
async fn with_a_stream_only_invalidations_count() {
    let purges = with_peer(Node::new().open_in_memory());
    purges.expect_stream();
    let position = StreamPosition { history: "h".into(), number: 2, entry: EntryId(2, 0) };
    let cursor = BusCursor { position: Some(position), ..BusCursor::default() };
    let from_stream = |scope| PurgeBatch { cursor: Some(cursor.clone()), ..batch(scope, Hard) };
    purges.purge(from_stream(PurgeScope::Site("site".into()))).await.unwrap();
    assert!(has(&purges), "the stream brings it");
    purges.invalidate(vec![url("https://a.example/2")], None);
    assert!(has(&purges), "another URL");
    purges.invalidate(vec![url(URL)], None);
    assert!(!has(&purges));
    let (ids, place) = next(&purges, 0).unwrap();
    assert_eq!(ids, ["invalidation-0", "invalidation-1"]);
    purges.note_taken("b", place);
    assert!(has(&purges));
    purges.invalidate(vec![PurgeScope::Tag("group".into())], None);
    assert!(!has(&purges), "the groups of the response are not known");
}

#[tokio::test]
async fn a_purge_of_the_stream_does_not_stand_for_an_invalidation_that_the_peer_lacks() {
    let scopes = [
        (url(URL), Hard),
        (PurgeScope::Site("site".into()), Hard),
        (PurgeScope::All, Hard),
        (PurgeScope::All, Soft),
    ];
    for (scope, kind) in scopes {
        for is_rewritten in [false, true] {
            let log_bytes = if is_rewritten { 0 } else { u64::MAX };
            let settings = Settings { log_bytes, ..Settings::default() };
            let node = Node { settings, ..Node::new() };
            let purges = with_peer(node.open());
            purges.expect_stream();
            purges.invalidate(vec![url("https://a.example/2")], None);
            purges.invalidate(vec![url(URL)], None);
            // The peer may have applied it long before the invalidation, and have asked the origin since.
            let read = async |purges: &Purges| {
                let cursor = Some(BusCursor::default());
                let batch = PurgeBatch { cursor, ..batch(scope.clone(), kind) };
                purges.purge(batch).await.unwrap();
            };
            read(&purges).await;
            let first = next_of(&purges, 0, 1);
            let second = next_of(&purges, first, 1);
            let check = |purges: &Purges| {
                purges.note_taken("b", first);
                assert!(!has(purges), "{scope:?}, {is_rewritten}");
                purges.note_taken("b", second);
                assert!(has(purges), "{scope:?}, {is_rewritten}");
            };
            check(&purges);
            drop(purges);
            for _ in 0..2 {
                let purges = with_peer(node.open());
                purges.expect_stream();
                check(&purges);
                // The first write after a start rewrites the log, if that is due.
                read(&purges).await;
            }
        }
    }
}

/// The place after the next `count` deliveries for the peer `b`.
fn next_of(purges: &Purges, position: u64, count: usize) -> u64 {
    match purges.next_delivery("b", position, (count, 1000)) {
        NextDelivery::Batch(batch) => batch.up_to,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_peer_gets_deliveries_in_order_and_in_parts_and_none_that_came_from_it() {
    let purges = with_peer(Node::new().open_in_memory());
    for id in ["1", "2", "3", "4"] {
        order(&purges, id, url(URL)).await;
    }
    let (ids, place) = next(&purges, 0).unwrap();
    assert_eq!(ids, ["1", "2", "3"]);
    purges.note_taken("b", place);
    let position = SenderPosition { lineage: 7, place: 9 };
    take(&purges, "from-b", "b", position).await;
    assert_eq!((purges.taken_from("b", 7), purges.taken_from("b", 8)), (9, 0));
    let (ids, last) = next(&purges, place).unwrap();
    assert_eq!(ids, ["4"]);
    purges.note_taken("b", last);
    take(&purges, "from-b-too", "b", SenderPosition { lineage: 7, place: 8 }).await;
    assert_eq!(purges.taken_from("b", 7), 9, "a position does not go back");
    assert_eq!(next(&purges, last), None);
    assert!(has(&purges), "it has what came from it");
    take(&purges, "4", "c", position).await;
    assert_eq!(next(&purges, last), None, "a known purge is no new delivery");
}

#[tokio::test]
async fn a_position_counts_once_its_purges_are_on_disk() {
    let node = Node::new();
    let purges = with_peer(node.open());
    let sender =
        DeliverySender { name: "c".into(), position: SenderPosition { lineage: 7, place: 9 } };
    let (deliveries, own) = (vec![part("1")], Some(sender.clone()));
    let batch = PurgeBatch { deliveries, sender: own, ..batch(url(URL), Hard) };
    let in_force = purges.put_in_force(batch).await.unwrap();
    assert!(purges.has_delivery(PurgeId::of("1")));
    assert_eq!(purges.taken_from("c", 7), 0, "a crash may lose it");
    in_force.durable().await.unwrap();
    purges.note_taken_from(sender);
    assert_eq!(purges.taken_from("c", 7), 9);
}

#[tokio::test]
async fn deliveries_and_positions_survive_a_restart() {
    for is_rewritten in [false, true] {
        // The log is rewritten as a snapshot at each write, or never.
        let log_bytes = if is_rewritten { 0 } else { u64::MAX };
        let settings = Settings { log_bytes, ..Settings::default() };
        let node = Node { settings, ..Node::new() };
        let purges = with_peer(node.open());
        order(&purges, "1", url(URL)).await;
        take(&purges, "2", "c", SenderPosition { lineage: 7, place: 9 }).await;
        let place = next(&purges, 0).unwrap().1;
        purges.note_taken("b", place);
        assert!(has(&purges));
        drop(purges);
        let purges = with_peer(node.open());
        assert!(!has(&purges), "it is not known how far the peer is");
        assert_eq!(next(&purges, 0), Some((vec!["1".into(), "2".into()], place)));
        assert!(purges.has_delivery(PurgeId::of("2")));
        assert_eq!(purges.taken_from("c", 7), 9);
        purges.note_taken("b", place);
        assert!(has(&purges));
    }
}

#[tokio::test]
async fn a_peer_that_lacks_more_than_is_kept_begins_at_a_purge_of_everything() {
    let purges = with_peer(Node::new().open_in_memory());
    // As long as half of what is kept.
    let long = |name: &str| name.to_owned() + &"-".repeat(17_000_000);
    let first = order(&purges, "1", url(URL)).await;
    order(&purges, &long("2"), url(URL)).await;
    let third = order(&purges, &long("3"), url(URL)).await;
    assert_eq!(purges.next_delivery("b", 0, LIMITS), NextDelivery::Dropped);
    assert_eq!(purges.next_delivery("b", first, LIMITS), NextDelivery::Dropped);
    let of_everything = order(&purges, "all", PurgeScope::All).await;
    let NextDelivery::Batch(batch) = purges.next_delivery("b", 0, LIMITS) else { panic!() };
    assert_eq!((batch.after, batch.up_to), (of_everything - 1, of_everything));
    assert_eq!(batch.messages, ["all"]);
    assert_eq!(next(&purges, third), Some((vec!["all".into()], of_everything)));
    // The node takes a call that skips deliveries only if that begins with a purge of everything, also with its own.
    let sender =
        DeliverySender { name: "b".into(), position: SenderPosition { lineage: 7, place: 9 } };
    let (deliveries, sender) = (vec![part("all of b")], Some(sender));
    let own = PurgeBatch { deliveries, sender, ..self::batch(PurgeScope::All, Soft) };
    purges.purge(own).await.unwrap();
    order(&purges, "4", url(URL)).await;
    let NextDelivery::Batch(batch) = purges.next_delivery("b", 0, LIMITS) else { panic!() };
    assert_eq!(batch.messages, ["all of b", "4"]);
}

#[tokio::test]
async fn positions_of_the_nodes_that_delivered_last_are_kept() {
    let purges = with_peer(Node::new().open_in_memory());
    let count = SENDERS_MAX as u64 + 10;
    for place in 1..=count {
        let (name, position) = (format!("n{place}").into(), SenderPosition { lineage: 7, place });
        purges.note_taken_from(DeliverySender { name, position });
    }
    let known = (1..=count).filter(|place| purges.taken_from(&format!("n{place}"), 7) == *place);
    assert!(known.eq(11..=count));
}

#[tokio::test]
async fn an_unsafe_request_waits_for_the_peers_that_were_reached() {
    let purges = with_peer(Node::new().open_in_memory());
    let long = Duration::from_secs(600);
    purges.invalidate(vec![url(URL)], None);
    // The peer was never reached.
    purges.peers_take_deliveries(long).await;
    purges.note_taken("b", 0);
    let began = tokio::time::Instant::now();
    purges.peers_take_deliveries(Duration::from_millis(20)).await;
    assert!(began.elapsed() >= Duration::from_millis(20));
    let place = next(&purges, 0).unwrap().1;
    let take = async {
        tokio::task::yield_now().await;
        purges.note_taken("b", place);
    };
    tokio::join!(purges.peers_take_deliveries(long), take);
    purges.invalidate(vec![url(URL)], None);
    let fail = async {
        tokio::task::yield_now().await;
        purges.note_unreached("b");
    };
    tokio::join!(purges.peers_take_deliveries(long), fail);
}

#[tokio::test]
async fn a_request_waits_for_a_peer_only_while_the_purge_is_young() {
    let node = Node::new();
    let purges = with_peer(node.open_in_memory());
    let place = order(&purges, "1", url(URL)).await;
    let limit = Duration::from_secs(60);
    let take = async {
        tokio::task::yield_now().await;
        purges.note_taken("b", place);
    };
    tokio::join!(purges.peer_takes_purges("b", &TARGET, limit), take);
    assert!(has(&purges));
    purges.note_taken("b", place - 1);
    node.clock.advance(Duration::from_secs(61));
    purges.peer_takes_purges("b", &TARGET, limit).await;
    assert!(!has(&purges), "it did not wait");
}
