//! Purges across hops, between two purge tables: each part of the rule that the model breaks on purpose
//! (simulation/models/purge_hops.py) has its test here.

use super::*;
use crate::purge::{EntryId, PurgeId, RecordPart, Requirement, StreamPosition};

const URL: &str = "https://a.example/1";
const TARGET: PurgeTarget<'_> = PurgeTarget { site: "site", url: URL, tags: &[] };

/// A purge table that reads the entries of a purge stream, as the bus does.
struct Edge(Arc<Purges>);

/// The position after the entry with this number, whose id has it too.
fn position(history: &str, number: u64) -> StreamPosition {
    StreamPosition { history: history.into(), number, entry: EntryId(number, 0) }
}

fn cursor(position: Option<StreamPosition>, read: &[&str]) -> BusCursor {
    BusCursor {
        bytes: "cursor".into(),
        entries: position.iter().map(|position| position.entry).collect(),
        position,
        read: read.iter().map(|id| PurgeId::of(id)).collect(),
    }
}

/// A record of this node with one purge.
fn part(id: &str, message: Option<bytes::Bytes>) -> RecordPart {
    RecordPart { id: PurgeId::of(id), count: 1, is_own: true, message }
}

impl Edge {
    fn new() -> Self {
        Self::of(Node::new().open_in_memory())
    }

    /// Has read the stream `h` up to entry 1.
    fn of(purges: Arc<Purges>) -> Self {
        purges.expect_stream();
        purges.set_position(&cursor(Some(position("h", 1)), &[]));
        Self(purges)
    }

    /// Reads an entry with one purge.
    async fn read(&self, position: StreamPosition, id: &str, scope: PurgeScope) {
        let records = vec![part(id, None)];
        let cursor = Some(cursor(Some(position), &[id]));
        self.0.purge(PurgeBatch { records, cursor, ..batch(scope, Hard) }).await.unwrap();
    }

    /// Applies a purge that has not come from the stream.
    async fn wake_up(&self, id: &str, scope: PurgeScope) {
        let records = vec![RecordPart { is_own: false, ..part(id, Some(id.to_owned().into())) }];
        self.0.purge(PurgeBatch { records, ..batch(scope, Hard) }).await.unwrap();
    }

    async fn order(&self, id: &str, scope: PurgeScope) {
        let records = vec![part(id, Some(id.to_owned().into()))];
        self.0.purge(PurgeBatch { records, ..batch(scope, Hard) }).await.unwrap();
    }

    /// Joins a history whose position is not known yet.
    async fn join_history(&self) {
        let cursor = Some(cursor(None, &[]));
        self.0.purge(PurgeBatch { cursor, ..batch(PurgeScope::All, Soft) }).await.unwrap();
    }

    fn requirement(&self) -> Requirement {
        self.0.requirement(&TARGET)
    }
}

fn entry(history: &str, number: u64) -> Requirement {
    Requirement::Entries(vec![position(history, number)])
}

#[tokio::test]
async fn an_owner_meets_a_requirement_once_it_has_applied_that_very_entry() {
    let (asker, owner) = (Edge::new(), Edge::new());
    asker.read(position("h", 2), "2", url(URL)).await;
    assert_eq!(asker.requirement(), entry("h", 2));
    assert!(!owner.0.meets(&asker.requirement()));
    owner.read(position("h", 2), "2", url(URL)).await;
    assert!(owner.0.meets(&asker.requirement()));
    owner.read(position("h", 3), "3", url(URL)).await;
    assert!(owner.0.meets(&asker.requirement()), "and more");
}

#[tokio::test]
async fn the_same_number_with_another_id_is_another_entry() {
    let (asker, owner) = (Edge::new(), Edge::new());
    let other = StreamPosition { entry: EntryId(77, 0), ..position("h", 2) };
    asker.read(position("h", 2), "2", url(URL)).await;
    owner.read(other, "other", url("https://a.example/2")).await;
    assert!(!owner.0.meets(&asker.requirement()));
    let next = StreamPosition { entry: EntryId(78, 0), ..position("h", 3) };
    owner.read(next, "next", url("https://a.example/2")).await;
    assert!(!owner.0.meets(&asker.requirement()), "an entry before the last one, too");
}

#[tokio::test]
async fn another_history_is_not_met() {
    let (asker, owner) = (Edge::new(), Edge::new());
    owner.read(position("i", 5), "5", url(URL)).await;
    assert!(!owner.0.meets(&asker.requirement()));
}

#[tokio::test]
async fn without_a_position_only_the_origin_will_do_and_nothing_is_met() {
    let edge = Edge::new();
    let requirement = edge.requirement();
    edge.join_history().await;
    assert_eq!(edge.requirement(), Requirement::OriginOnly);
    assert!(!edge.0.meets(&requirement));
    edge.0.set_position(&cursor(Some(position("i", 9)), &[]));
    assert_eq!(edge.requirement(), entry("i", 9));
}

#[tokio::test]
async fn a_purge_of_this_node_covers_until_it_is_read_back_and_not_only_until_it_is_published() {
    let edge = Edge::new();
    edge.order("own", url(URL)).await;
    assert_eq!(edge.requirement(), Requirement::OriginOnly);
    assert_eq!(edge.0.outbox_len(), 1);
    edge.read(position("h", 2), "another", url("https://a.example/2")).await;
    assert_eq!(edge.requirement(), Requirement::OriginOnly, "a later entry says nothing of it");
    edge.read(position("h", 3), "own", url(URL)).await;
    assert_eq!((edge.0.outbox_len(), edge.requirement()), (0, entry("h", 3)));
}

#[tokio::test]
async fn a_purge_that_came_as_a_wake_up_covers_until_it_is_read() {
    let edge = Edge::new();
    edge.wake_up("2", url(URL)).await;
    assert_eq!(edge.requirement(), Requirement::OriginOnly);
    let other = PurgeTarget { url: "https://a.example/2", ..TARGET };
    assert_eq!(edge.0.requirement(&other), entry("h", 1), "another URL is not covered");
    edge.read(position("h", 2), "2", url(URL)).await;
    assert_eq!(edge.requirement(), entry("h", 2));
}

#[tokio::test]
async fn an_unread_purge_stays_unread_over_another_history() {
    let edge = Edge::new();
    edge.wake_up("2", url(URL)).await;
    edge.join_history().await;
    edge.0.set_position(&cursor(Some(position("i", 9)), &[]));
    assert_eq!(edge.requirement(), Requirement::OriginOnly);
}

/// Opens the log again, and tells of its messages which purges they are, as the bus does.
fn restored(node: &Node) -> Arc<Purges> {
    let purges = node.open();
    for (number, message) in purges.outbox_from(0, usize::MAX) {
        let id = String::from_utf8_lossy(&message);
        let scope = if id == "2" { url(URL) } else { url("https://a.example/other") };
        purges.restore_unread(number, PurgeId::of(&id), id == "own", &[scope]);
    }
    purges
}

#[tokio::test]
async fn a_wake_up_that_the_stream_never_brings_is_published_by_this_node() {
    let node = Node::new();
    let edge = Edge::of(node.open_in_memory());
    edge.wake_up("2", url(URL)).await;
    assert_eq!((edge.0.adopt_unread(Duration::from_secs(60)), edge.0.outbox_len()), (0, 0));
    node.clock.advance(Duration::from_secs(61));
    assert_eq!((edge.0.adopt_unread(Duration::from_secs(60)), edge.0.outbox_len()), (1, 1));
    assert_eq!(edge.0.adopt_unread(Duration::from_secs(60)), 0);
    edge.read(position("h", 2), "2", url(URL)).await;
    assert_eq!((edge.0.outbox_len(), edge.requirement()), (0, entry("h", 2)));
}

#[tokio::test]
async fn unread_purges_survive_a_restart_and_leave_once_they_are_read() {
    for is_rewritten in [false, true] {
        // The log is rewritten as a snapshot at each write, or never.
        let log_bytes = if is_rewritten { 0 } else { u64::MAX };
        let settings = Settings { log_bytes, ..Settings::default() };
        let node = Node { settings, ..Node::new() };
        let edge = Edge::of(node.open());
        edge.wake_up("2", url(URL)).await;
        edge.order("own", url("https://a.example/own")).await;
        edge.wake_up("3", url("https://a.example/3")).await;
        drop(edge);
        let edge = Edge::of(restored(&node));
        assert_eq!((edge.0.unread_len(), edge.requirement()), (3, Requirement::OriginOnly));
        assert_eq!(edge.0.outbox_len(), 1, "the others publish their own");
        edge.read(position("h", 2), "2", url(URL)).await;
        drop(edge);
        let edge = Edge::of(restored(&node));
        assert_eq!((edge.0.unread_len(), edge.requirement()), (2, entry("h", 1)));
    }
}

#[tokio::test]
async fn a_purge_of_the_stream_is_unread_until_its_cursor_is_on_disk() {
    let node = Node::new();
    let edge = Edge::of(node.open());
    let records = vec![part("2", None)];
    let cursor = Some(cursor(Some(position("h", 2)), &["2"]));
    let batch = PurgeBatch { records, cursor, ..batch(url(URL), Hard) };
    // In force, and not written yet.
    let _lost = edge.0.apply(batch).unwrap();
    assert_eq!(edge.requirement(), Requirement::OriginOnly);
}

#[tokio::test]
async fn the_early_position_moves_before_a_purge_is_in_force_and_the_late_one_after() {
    let edge = Edge::new();
    let cursor = cursor(Some(position("h", 2)), &[]);
    edge.0.place.move_early(&cursor);
    assert_eq!(edge.requirement(), entry("h", 2));
    assert!(!edge.0.meets(&entry("h", 2)));
    edge.0.place.move_late(&cursor);
    assert!(edge.0.meets(&entry("h", 2)));
}

#[tokio::test]
async fn both_requirements_must_be_met() {
    let edge = Edge::new();
    edge.read(position("h", 2), "2", url(URL)).await;
    let both = |one, other| Requirement::Entries(vec![one, other]);
    assert!(edge.0.meets(&both(position("h", 1), position("h", 2))));
    assert!(!edge.0.meets(&both(position("h", 2), position("h", 3))));
    assert!(!edge.0.meets(&both(position("h", 2), position("i", 2))));
    assert!(!edge.0.meets(&Requirement::OriginOnly));
    assert!(edge.0.meets(&Requirement::Entries(Vec::new())));
}

#[tokio::test]
async fn entries_are_remembered_up_to_a_bound() {
    let edge = Edge::new();
    for first in (2..5000).step_by(500) {
        let last = position("h", first + 499);
        let entries = (first..first + 500).map(|number| EntryId(number, 0)).collect();
        edge.0.set_position(&BusCursor { entries, ..cursor(Some(last), &[]) });
    }
    assert!(edge.0.meets(&entry("h", 5001)));
    assert!(edge.0.meets(&entry("h", 5001 - 4095)));
    assert!(!edge.0.meets(&entry("h", 5001 - 4096)), "forgotten: the origin is asked");
}

#[tokio::test]
async fn a_request_waits_for_entries_that_are_on_their_way() {
    let (asker, owner) = (Edge::new(), Edge::new());
    asker.wake_up("2", url(URL)).await;
    let limit = Duration::from_secs(60);
    let read = async {
        tokio::task::yield_now().await;
        asker.read(position("h", 2), "2", url(URL)).await;
    };
    let (requirement, ()) = tokio::join!(asker.0.requirement_within(&TARGET, limit), read);
    assert_eq!(requirement, entry("h", 2));
    let read = async {
        tokio::task::yield_now().await;
        owner.read(position("h", 2), "2", url(URL)).await;
    };
    let (is_met, ()) = tokio::join!(owner.0.meets_within(&requirement, limit), read);
    assert!(is_met);
    assert!(!owner.0.meets_within(&entry("h", 3), Duration::from_millis(1)).await);
    assert!(!owner.0.meets_within(&entry("i", 3), limit).await, "it does not wait for a history");
}

#[tokio::test]
async fn wake_ups_are_refused_while_too_many_are_unread_and_purges_of_this_node_are_not() {
    let settings = Settings { outbox_entries_max: 1, ..Settings::default() };
    let edge = Edge::of(Node { settings, ..Node::new() }.open_in_memory());
    edge.wake_up("2", url(URL)).await;
    let records = vec![RecordPart { is_own: false, ..part("3", Some("3".into())) }];
    let refused = edge.0.purge(PurgeBatch { records, ..batch(url(URL), Hard) }).await;
    assert!(matches!(refused, Err(PurgeError::OutboxFull { messages: 1, .. })));
    edge.order("own", url(URL)).await;
    edge.read(position("h", 2), "3", url(URL)).await;
}
