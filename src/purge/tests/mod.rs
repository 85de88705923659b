//! Purges: the table, the log, and both over restarts.

mod deliveries;
mod hops;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use crate::cache::Freshness;
use crate::metrics::Metrics;

use PurgeKind::{Hard, Soft};

struct Node {
    directory: tempfile::TempDir,
    clock: Clock,
    recorder: Recorder,
    settings: Settings,
}

impl Node {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock: Clock::system(),
            recorder: Metrics::new(1).background(),
            settings: Settings::default(),
        }
    }

    fn open(&self) -> Arc<Purges> {
        let directory = Some(self.directory.path().to_owned());
        let settings = Settings { directory, ..self.settings.clone() };
        loop {
            match Purges::open(&settings, &self.clock, &self.recorder, &Handle::current()) {
                // A command that another test starts has a lock until it is executed.
                Err(PurgeLogError::InUse { .. }) => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    fn open_in_memory(&self) -> Arc<Purges> {
        let (clock, recorder) = (&self.clock, &self.recorder);
        Purges::open(&self.settings, clock, recorder, &Handle::current()).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("purge.log")
    }

    fn total(&self, metric: Metric) -> u64 {
        self.recorder.metrics().total(metric, 0)
    }
}

/// A stored response with its checkpoint.
struct Stored {
    response: StoredResponse,
    checkpoint: Checkpoint,
}

fn stored_at(purges: &Purges, url: &str) -> Stored {
    let response = StoredResponse {
        key: url.into(),
        variant: "".into(),
        site: "site".into(),
        status: http::StatusCode::OK,
        headers: http::HeaderMap::new().into(),
        freshness: Freshness {
            response_time: std::time::SystemTime::UNIX_EPOCH.into(),
            initial_age: Duration::ZERO.into(),
            lifetime: Duration::from_secs(60).into(),
            heuristic: false,
            stale_while_revalidate: Duration::ZERO.into(),
            stale_if_error: Duration::ZERO.into(),
            must_revalidate: false,
            no_cache: false,
            immutable: false,
        },
        tags: [1, 2].into(),
        stored_at_sequence: purges.sequence(),
        complete_length: None,
        parts: None,
        version: http::Version::HTTP_11,
        form: None,
    };
    Stored { response, checkpoint: Checkpoint::of(purges.lineage()) }
}

fn verdict(purges: &Purges, stored: &Stored) -> Option<PurgeKind> {
    purges.verdict(&stored.response, &stored.checkpoint)
}

fn batch(scope: PurgeScope, kind: PurgeKind) -> PurgeBatch {
    PurgeBatch { purges: vec![(scope, kind)], ..PurgeBatch::default() }
}

/// A record of this node with one purge, in the outbox.
fn message(id: &str, message: bytes::Bytes) -> RecordPart {
    RecordPart { id: PurgeId::of(id), count: 1, is_own: true, message: Some(message) }
}

/// Tells that the stream has brought these purges.
async fn read(purges: &Purges, ids: &[&str]) {
    let read = ids.iter().map(|id| PurgeId::of(id)).collect();
    let cursor = Some(BusCursor { read, ..BusCursor::default() });
    purges.purge(PurgeBatch { cursor, ..PurgeBatch::default() }).await.unwrap();
}

fn url(text: &str) -> PurgeScope {
    PurgeScope::Url(text.into())
}

#[tokio::test]
async fn a_purge_covers_what_was_stored_before_and_not_what_comes_after() {
    let node = Node::new();
    let purges = node.open();
    let before = stored_at(&purges, "https://a/1");
    assert_eq!(verdict(&purges, &before), None);
    let purged = purges.purge(batch(url("https://a/1"), Soft)).await.unwrap();
    assert!(purged.sequence > before.response.stored_at_sequence);
    assert_eq!(verdict(&purges, &before), Some(Soft));
    let after = stored_at(&purges, "https://a/1");
    assert_eq!(verdict(&purges, &after), None);
    assert_eq!(verdict(&purges, &stored_at(&purges, "https://a/2")), None);
}

#[tokio::test]
async fn a_response_outlives_what_it_makes_invalid_whatever_else_is_purged_meanwhile() {
    let node = Node::new();
    let purges = node.open_in_memory();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                purges.invalidate(vec![url("https://a/other")], None);
            }
        });
        for _ in 0..2000 {
            let mut cause = stored_at(&purges, "https://a/1");
            purges.invalidate(vec![url("https://a/1")], Some(&mut cause.response));
            assert_eq!(verdict(&purges, &cause), None);
        }
        done.store(true, Ordering::Relaxed);
    });
    // Unless it was purged itself while it was on its way.
    let mut cause = stored_at(&purges, "https://a/1");
    purges.purge(batch(url("https://a/1"), Hard)).await.unwrap();
    purges.invalidate(vec![url("https://a/1")], Some(&mut cause.response));
    assert_eq!(verdict(&purges, &cause), Some(PurgeKind::Invalidated));
}

#[tokio::test]
async fn an_acknowledged_purge_survives_a_restart() {
    let node = Node::new();
    let purges = node.open();
    let (one, two) = (stored_at(&purges, "https://a/1"), stored_at(&purges, "https://a/2"));
    purges.purge(batch(url("https://a/1"), Hard)).await.unwrap();
    drop(purges);
    let purges = node.open();
    assert_eq!(verdict(&purges, &one), Some(Hard));
    assert_eq!(verdict(&purges, &two), None);
}

#[tokio::test]
async fn sequences_never_fall_when_the_clock_does_over_a_restart() {
    let node = Node::new();
    let purges = node.open();
    // As far ahead as the log has promised, and no further.
    node.clock.advance(Duration::from_secs(3600));
    let stored = stored_at(&purges, "https://a/1");
    drop(purges);
    let earlier = Node { clock: Clock::system(), ..node };
    let purges = earlier.open();
    let purged = purges.purge(batch(url("https://a/1"), Hard)).await.unwrap();
    assert!(purged.sequence > stored.response.stored_at_sequence);
    assert_eq!(verdict(&purges, &stored), Some(Hard));
}

#[tokio::test]
async fn without_its_log_everything_stored_must_be_validated() {
    let node = Node::new();
    let purges = node.open();
    let stored = stored_at(&purges, "https://a/1");
    drop(purges);
    std::fs::remove_file(node.log()).unwrap();
    let purges = node.open();
    assert_eq!(verdict(&purges, &stored), Some(PurgeKind::Missed));
    assert_eq!(verdict(&purges, &stored_at(&purges, "https://a/1")), None);
}

#[tokio::test]
async fn a_damaged_log_means_validating_everything_and_is_said() {
    let node = Node::new();
    let purges = node.open();
    let (one, two) = (stored_at(&purges, "https://a/1"), stored_at(&purges, "https://a/2"));
    for number in 1..=9 {
        purges.purge(batch(url(&format!("https://a/{number}9")), Hard)).await.unwrap();
        purges.purge(batch(url("https://a/1"), Hard)).await.unwrap();
    }
    drop(purges);
    let mut bytes = std::fs::read(node.log()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(node.log(), bytes).unwrap();
    let purges = node.open();
    assert_eq!(verdict(&purges, &one), Some(Hard), "what stands before the damage still counts");
    assert_eq!(verdict(&purges, &two), Some(PurgeKind::Missed));
    assert_eq!(node.total(Metric::PurgeLogDamaged), 1);
    drop(purges);
    let purges = node.open();
    assert_eq!(verdict(&purges, &two), Some(PurgeKind::Missed), "after the next restart too");
    assert_eq!(node.total(Metric::PurgeLogDamaged), 1);
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_and_counted() {
    let node = Node::new();
    let purges = node.open();
    let stored = stored_at(&purges, "https://a/1");
    purges.purge(batch(url("https://a/2"), Hard)).await.unwrap();
    drop(purges);
    let mut bytes = std::fs::read(node.log()).unwrap();
    let whole = bytes.len();
    bytes.extend_from_within(whole - 10..);
    std::fs::write(node.log(), bytes).unwrap();
    let purges = node.open();
    assert_eq!(verdict(&purges, &stored), None);
    assert_eq!(node.total(Metric::PurgeLogTornBytes), 10);
    purges.purge(batch(url("https://a/1"), Hard)).await.unwrap();
    drop(purges);
    assert_eq!(verdict(&node.open(), &stored), Some(Hard));
}

#[tokio::test]
async fn purges_that_wait_together_share_one_fsync() {
    let node = Node::new();
    let purges = node.open();
    let many = (0..500).map(|number| {
        let purges = purges.clone();
        async move { purges.purge(batch(url(&format!("https://a/{number}")), Hard)).await }
    });
    let tasks: Vec<_> = many.map(tokio::spawn).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let syncs = node.total(Metric::PurgeLogSyncs);
    assert!(syncs < 100, "{syncs} fsyncs for 500 purges");
}

#[tokio::test]
async fn a_grown_log_becomes_a_snapshot_that_knows_as_much() {
    let node = Node::new();
    let node = Node { settings: Settings { log_bytes: 4096, ..node.settings.clone() }, ..node };
    let purges = node.open();
    let stored: Vec<_> =
        (0..300).map(|number| stored_at(&purges, &format!("https://a/{number}"))).collect();
    for number in 0..200 {
        let mut next = batch(url(&format!("https://a/{number}")), Hard);
        next.cursor =
            Some(BusCursor { bytes: format!("cursor {number}").into(), ..BusCursor::default() });
        next.records = vec![message(&format!("{number}"), format!("message {number}").into())];
        if number % 2 == 1 {
            let read = vec![PurgeId::of(&format!("{}", number / 2))];
            next.cursor = next.cursor.map(|cursor| BusCursor { read, ..cursor });
        }
        purges.purge(next).await.unwrap();
    }
    let outbox = purges.outbox_from(0, usize::MAX);
    drop(purges);
    let purges = node.open();
    for (number, head) in stored.iter().enumerate() {
        assert_eq!(verdict(&purges, head), (number < 200).then_some(Hard), "{number}");
    }
    assert_eq!(purges.cursor().unwrap(), "cursor 199");
    assert_eq!(purges.outbox_from(0, usize::MAX), outbox);
    assert_eq!(outbox.len(), 100);
    for round in 0..50 {
        purges.purge(batch(PurgeScope::All, Soft)).await.unwrap();
        assert!(std::fs::metadata(node.log()).unwrap().len() < 64 << 10, "round {round}");
    }
}

#[tokio::test]
async fn purges_older_than_anything_stored_are_pruned() {
    let node = Node::new();
    let purges = node.open();
    let old = stored_at(&purges, "https://a/1");
    purges.purge(batch(url("https://a/1"), Soft)).await.unwrap();
    assert_eq!(purges.entries(), 1);
    node.clock.advance(node.settings.object_age_max + Duration::from_secs(600));
    // The first moves the ceiling, so that a fresh head is stamped with the new time.
    purges.maintain().await;
    purges.maintain().await;
    assert_eq!(purges.entries(), 0);
    assert_eq!(verdict(&purges, &old), Some(Hard));
    assert_eq!(verdict(&purges, &stored_at(&purges, "https://a/1")), None);
}

#[tokio::test]
async fn a_log_that_cannot_be_written_says_so_and_the_purge_is_in_force() {
    let node = Node::new();
    let node = Node { settings: Settings { log_bytes: 0, ..node.settings.clone() }, ..node };
    let purges = node.open();
    let stored = stored_at(&purges, "https://a/1");
    for number in 0..20 {
        // Grown beyond twice the snapshot, so that the next write is a snapshot.
        purges.purge(batch(url(&format!("https://b/{number}")), Hard)).await.unwrap();
    }
    std::fs::remove_file(node.log()).unwrap();
    std::fs::remove_dir_all(node.directory.path()).unwrap();
    let mut failed = None;
    for number in 0..40 {
        let url = format!("https://a/{number}");
        failed = purges.purge(batch(PurgeScope::Url(url.into()), Hard)).await.err().or(failed);
    }
    assert!(matches!(failed, Some(PurgeError::NotDurable { .. })), "{failed:?}");
    assert_eq!(verdict(&purges, &stored), Some(Hard));
    assert!(node.total(Metric::PurgeLogErrors) > 0);
    // The log heals when the directory is back, with all that happened meanwhile.
    std::fs::create_dir(node.directory.path()).unwrap();
    purges.purge(batch(url("https://c/"), Hard)).await.unwrap();
    drop(purges);
    assert_eq!(verdict(&node.open(), &stored), Some(Hard));
}

#[tokio::test]
async fn limits_refuse_before_anything_is_purged() {
    let node = Node::new();
    let settings = Settings { scope_bytes_max: 20, outbox_entries_max: 1, ..node.settings.clone() };
    let node = Node { settings, ..node };
    let purges = node.open();
    let long = url("https://a/0123456789abcdef");
    let refused = purges.purge(batch(long, Hard)).await;
    assert!(matches!(refused, Err(PurgeError::ScopeTooLong { limit: 20, .. })));
    let with_message = |id| PurgeBatch {
        records: vec![message(id, "m".into())],
        ..batch(url("https://a/1"), Hard)
    };
    purges.purge(with_message("1")).await.unwrap();
    let full = purges.purge(with_message("2")).await;
    assert!(matches!(full, Err(PurgeError::OutboxFull { messages: 1, .. })), "{full:?}");
    assert_eq!(purges.entries(), 1);
    assert_eq!(node.total(Metric::PurgesRefused), 1);
    read(&purges, &["1"]).await;
    purges.purge(with_message("2")).await.unwrap();
}

#[tokio::test]
async fn purges_of_other_nodes_and_invalidations_are_never_too_long() {
    let node = Node::new();
    let settings = Settings { scope_bytes_max: 20, ..node.settings.clone() };
    let node = Node { settings, ..node };
    let purges = node.open();
    let stored = |number: u32| stored_at(&purges, &format!("https://a/0123456789abcdef/{number}"));
    let long = [1, 2, 3, 4].map(stored);
    let purge = |number: usize| batch(url(&long[number].response.key), Hard);
    let wake_up = RecordPart { is_own: false, ..message("1", "m".into()) };
    purges.purge(PurgeBatch { records: vec![wake_up], ..purge(0) }).await.unwrap();
    let cursor = Some(BusCursor::default());
    purges.purge(PurgeBatch { cursor, ..purge(1) }).await.unwrap();
    let position = SenderPosition { lineage: 7, place: 9 };
    let sender = Some(DeliverySender { name: "b".into(), position });
    purges.purge(PurgeBatch { sender, ..purge(2) }).await.unwrap();
    purges.invalidate(vec![url(&long[3].response.key)], None);
    let verdicts = [0, 1, 2, 3].map(|number| verdict(&purges, &long[number]));
    assert_eq!(verdicts, [Hard, Hard, Hard, PurgeKind::Invalidated].map(Some));
}

#[tokio::test]
async fn the_outbox_holds_so_many_bytes_and_one_long_message() {
    let node = Node::new();
    let settings = Settings { outbox_bytes_max: 10, ..node.settings.clone() };
    let node = Node { settings, ..node };
    let check = |purges: &Arc<Purges>, length: usize| {
        let purges = purges.clone();
        let records = vec![message(&length.to_string(), vec![b'm'; length].into())];
        let batch = PurgeBatch { records, ..batch(url("https://a/1"), Hard) };
        async move { purges.purge(batch).await.map(drop).map_err(|error| error.to_string()) }
    };
    let purges = node.open();
    assert_eq!(check(&purges, 100).await, Ok(()), "it could never go out");
    assert!(check(&purges, 1).await.unwrap_err().contains("1 purges of 100 bytes wait"));
    read(&purges, &["100"]).await;
    for length in [4, 6] {
        assert_eq!(check(&purges, length).await, Ok(()));
    }
    assert!(check(&purges, 1).await.is_err());
    // After a restart too.
    drop(purges);
    let purges = node.open();
    assert!(check(&purges, 1).await.unwrap_err().contains("2 purges of 10 bytes wait"));
    let (number, message) = purges.outbox_from(0, 1)[0].clone();
    purges.restore_unread(number, PurgeId::of(&message.len().to_string()), true, &[]);
    read(&purges, &["4", "4"]).await;
    assert_eq!(check(&purges, 4).await, Ok(()));
}

#[tokio::test]
async fn a_long_batch_is_in_force_and_durable_as_a_whole() {
    let node = Node::new();
    let purges = node.open();
    let target = |number: usize| format!("https://a/{number}");
    let before: Vec<Stored> = (0..2000).map(|number| stored_at(&purges, &target(number))).collect();
    let scopes = (0..2000).map(|number| (url(&target(number)), Hard)).collect();
    let purged = purges.purge(PurgeBatch { purges: scopes, ..PurgeBatch::default() }).await;
    assert!(purged.unwrap().sequence > before[1999].response.stored_at_sequence);
    assert!(before.iter().all(|head| verdict(&purges, head) == Some(Hard)));
    drop(purges);
    let purges = node.open();
    assert!(before.iter().all(|head| verdict(&purges, head) == Some(Hard)));
    assert_eq!(purges.entries(), 2000);
}
