//! Request collapsing: many requests for one key, one upstream request (RFC 9111 §4).
//!
//! The first to ask leads; the others follow. The leader's task lives apart from its client,
//! so that a client that leaves takes nobody with it. What turns out uncacheable releases the
//! followers at header time and is remembered for a while, so that the next requests are not
//! put in a queue for nothing ("hit-for-miss").
//!
//! A newcomer never follows a fill that a purge has overtaken: it leads a new one, which takes
//! the old one's place. The old one goes on for those who came before the purge.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::StatusCode;

use super::pump::Filled;
use super::slices::{Cut, Step, next_step};
use super::{Fill, Filling, Interest, NotJoinable, Settings, Shared};
use crate::body::Body;
use crate::cache::{KeyHash, PurgeSequence, StoredResponse};
use crate::clock::Clock;
use crate::metrics::{Metric, Recorder};
use crate::planted::{self, Bug};
use crate::store::Store;

/// All fills of a node. Clones share them.
#[derive(Clone, Debug)]
pub struct Fills(Arc<Table>);

#[derive(Debug)]
struct Table {
    shards: [Mutex<Shard>; SHARDS],
    count: AtomicUsize,
    shared: Arc<Shared>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Shard {
    fills: HashMap<KeyHash, Arc<Fill>>,
    uncacheable: HashMap<KeyHash, SystemTime>,
    /// No remembered key is forgotten before this.
    sweep_at: Option<SystemTime>,
}

/// What a request that needs upstream is to do.
#[derive(Debug)]
pub enum Join {
    /// Ask upstream, for all. Look into the store once more before: the fill that would have
    /// been followed may have ended between the lookup and this.
    Lead(Lead),
    /// Wait for what another request is bringing.
    Follow(Follower),
    /// Ask upstream for this request alone.
    Uncollapsed(Uncollapsed),
}

/// Why a request is not collapsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncollapsed {
    /// The key was uncacheable a short while ago.
    Uncacheable,
    /// [`Settings::fills_max`] is reached.
    Fills,
    /// [`Settings::followers_max`] is reached.
    Followers,
}

/// Why the response to one request alone is not stored though it is storable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdopted {
    /// Another fill of the key is on its way.
    InFlight,
    /// [`Settings::fills_max`] is reached.
    Limit,
}

impl Fills {
    /// No fills yet. `slice_bytes` is the store's.
    pub fn new(settings: Settings, slice_bytes: u64, clock: Clock, recorder: Recorder) -> Self {
        Self(Arc::new(Table {
            shards: std::array::from_fn(|_| Mutex::default()),
            count: AtomicUsize::new(0),
            shared: Arc::new(Shared::new(settings, slice_bytes, recorder)),
            clock,
        }))
    }

    /// Joins the fill of `key`, or starts it.
    ///
    /// `sequence` reads the purge log's position; whoever leads stamps the response with it.
    /// `overtaken` says whether a purge after a position may cover the response; while its
    /// head has not come (`None`), by all that is known of it, and any purge of a tag may.
    pub fn join(
        &self,
        key: KeyHash,
        sequence: impl FnOnce() -> PurgeSequence,
        overtaken: impl FnOnce(Option<&StoredResponse>, PurgeSequence) -> bool,
    ) -> Join {
        let mut shard = self.0.shard(key);
        if shard.is_uncacheable(key, &self.0.clock) {
            return Join::Uncollapsed(self.0.alone(Uncollapsed::Uncacheable));
        }
        let sequence = sequence();
        let Some(fill) = shard.fills.get(&key) else {
            return self.lead(&mut shard, key, sequence);
        };
        if planted::has(Bug::DoubleFill) {
            return Join::Uncollapsed(self.0.alone(Uncollapsed::Followers));
        }
        // Compare first: without a purge since, nothing need be matched.
        if fill.sequence < sequence && overtaken(fill.response().as_deref(), fill.sequence) {
            return self.lead(&mut shard, key, sequence);
        }
        match fill.interest() {
            Ok(interest) => {
                self.0.shared.recorder.count(Metric::RequestsCollapsed);
                Join::Follow(Follower(interest))
            }
            Err(NotJoinable::Full) => Join::Uncollapsed(self.0.alone(Uncollapsed::Followers)),
            Err(NotJoinable::Over) => self.lead(&mut shard, key, sequence),
        }
    }

    /// Makes a fill of a response that was asked for by one request alone and turned out to be
    /// storable. `sequence` was read before that request was sent.
    ///
    /// # Errors
    /// Why it cannot be stored.
    pub fn adopt(&self, key: KeyHash, sequence: PurgeSequence) -> Result<Lead, NotAdopted> {
        let mut shard = self.0.shard(key);
        if shard.fills.contains_key(&key) {
            return Err(NotAdopted::InFlight);
        }
        shard.uncacheable.remove(&key);
        self.begin(&mut shard, key, sequence).ok_or(NotAdopted::Limit)
    }

    /// [`Settings::range_request_bytes_max`] in whole slices.
    pub(super) fn request_bytes_max(&self, slice_bytes: u64) -> u64 {
        let bytes_max = self.0.shared.settings.range_request_bytes_max;
        (bytes_max - bytes_max % slice_bytes).max(slice_bytes)
    }

    /// What to ask upstream for at first, when bytes from `start` to `end` are wanted of an
    /// object of which nothing is known: whole slices.
    pub fn first_asked(&self, start: u64, end: u64) -> Range<u64> {
        let Shared { settings, slice_bytes, .. } = &*self.0.shared;
        let start = if start < settings.whole_bytes_max { 0 } else { start };
        let wanted = start..end.max(settings.whole_bytes_max);
        let request_bytes_max = self.request_bytes_max(*slice_bytes);
        let cut = Cut { slice_bytes: *slice_bytes, request_bytes_max };
        match next_step(&wanted, None, &[], cut) {
            Step::Ask(range) => range,
            Step::Stored(_) | Step::Done => start..start.saturating_add(*slice_bytes),
        }
    }

    /// What counts for the node.
    pub fn recorder(&self) -> &Recorder {
        &self.0.shared.recorder
    }

    fn lead(&self, shard: &mut Shard, key: KeyHash, sequence: PurgeSequence) -> Join {
        match self.begin(shard, key, sequence) {
            Some(lead) => Join::Lead(lead),
            None => Join::Uncollapsed(self.0.alone(Uncollapsed::Fills)),
        }
    }

    /// Begins a fill, in the place of any fill of `key` that nobody can join any more. `None`:
    /// [`Settings::fills_max`] is reached.
    fn begin(&self, shard: &mut Shard, key: KeyHash, sequence: PurgeSequence) -> Option<Lead> {
        let table = &self.0;
        let fill = match shard.fills.entry(key) {
            Entry::Occupied(mut old) => {
                old.insert(Fill::new(table.shared.clone(), sequence));
                old.get().clone()
            }
            Entry::Vacant(place) => {
                if table.count.load(Ordering::Relaxed) >= table.shared.settings.fills_max {
                    return None;
                }
                table.count.fetch_add(1, Ordering::Relaxed);
                place.insert(Fill::new(table.shared.clone(), sequence)).clone()
            }
        };
        Some(Lead { table: table.clone(), key, fill, to_the_end: false, decided: false })
    }
}

impl Table {
    fn shard(&self, key: KeyHash) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[key.0 as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self, why: Uncollapsed) -> Uncollapsed {
        self.shared.recorder.count_labelled(Metric::RequestsUncollapsed, why as usize);
        why
    }

    fn remember(&self, key: KeyHash, remember_for: Duration) {
        let now = self.clock.now();
        let per_shard_max = self.shared.settings.remembered_max.div_ceil(SHARDS);
        let mut shard = self.shard(key);
        if shard.uncacheable.len() >= per_shard_max {
            shard.sweep(now);
        }
        if shard.uncacheable.len() >= per_shard_max {
            drop(shard);
            self.shared.recorder.count(Metric::UncacheableForgotten);
            return;
        }
        let until = now + remember_for;
        shard.uncacheable.insert(key, until);
        shard.sweep_at = Some(shard.sweep_at.map_or(until, |at| at.min(until)));
    }

    fn remove(&self, key: KeyHash, fill: &Arc<Fill>) {
        let mut shard = self.shard(key);
        if shard.fills.get(&key).is_some_and(|known| Arc::ptr_eq(known, fill)) {
            shard.fills.remove(&key);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Shard {
    fn is_uncacheable(&mut self, key: KeyHash, clock: &Clock) -> bool {
        let Entry::Occupied(known) = self.uncacheable.entry(key) else {
            return false;
        };
        let remembered = *known.get() > clock.now();
        if !remembered {
            known.remove();
        }
        remembered
    }

    /// Looks through all keys only when one of them is due.
    fn sweep(&mut self, now: SystemTime) {
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.uncacheable.retain(|_, until| *until > now);
            self.sweep_at = self.uncacheable.values().min().copied();
        }
    }
}

/// The right and the duty to ask upstream for all who follow. Dropped undecided, the
/// followers have [`FillFailure::Abandoned`].
#[derive(Debug)]
pub struct Lead {
    table: Arc<Table>,
    key: KeyHash,
    fill: Arc<Fill>,
    to_the_end: bool,
    decided: bool,
}

impl Lead {
    /// The purge-log position for [`StoredResponse::stored_at_sequence`].
    pub fn sequence(&self) -> PurgeSequence {
        self.fill.sequence
    }

    /// The leader's own client, as one who follows. While it lives, the fill goes on.
    pub fn follower(&self) -> Follower {
        Follower(self.fill.interest_of_leader())
    }

    /// The fill goes on to its end though nobody reads it: for refreshes in the background.
    pub fn to_the_end(mut self) -> Self {
        self.to_the_end = true;
        self
    }

    /// Not for all: each follower asks upstream on its own, and so do the next requests, for
    /// as long as the key is to be remembered.
    pub fn release(mut self, remember_for: Option<Duration>) {
        if let Some(remember_for) = remember_for {
            self.table.remember(self.key, remember_for);
        }
        self.leave_table();
        self.decided = true;
        self.fill.release();
    }

    /// Every follower has the same failure.
    pub fn fail(mut self, failure: FillFailure) {
        self.leave_table();
        self.decided = true;
        self.fill.fail(failure);
    }

    /// What is in the store may be served: it was validated, or was there already. The store
    /// must have it in place by now.
    pub fn stored(mut self) {
        self.leave_table();
        self.decided = true;
        self.fill.stored();
    }

    /// Hands `response` to the followers at once and moves `body` to them and into `store`,
    /// until its end. Await it on a task of its own. Until the lead is dropped, newcomers find
    /// the fill: time to list a variant where they will look for it.
    pub async fn fill(
        &mut self,
        store: &Store,
        response: Arc<StoredResponse>,
        body: Body,
    ) -> Filled {
        self.decided = true;
        self.fill.run(store, response, body, self.to_the_end).await
    }

    /// Newcomers lead anew.
    fn leave_table(&self) {
        self.table.remove(self.key, &self.fill);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.leave_table();
        if !self.decided {
            self.fill.fail(FillFailure::Abandoned);
        }
    }
}

/// One who waits for what a [`Lead`] brings. The fill goes on for it until it has the outcome.
#[derive(Debug)]
pub struct Follower(Interest);

impl Follower {
    /// What came of it. Cancel-safe: the caller sets the deadline and may ask again.
    pub async fn outcome(&self) -> Outcome {
        let outcome = self.0.fill().outcome().await;
        self.0.end();
        outcome
    }
}

/// What a leader's exchange with upstream came to.
#[derive(Debug)]
pub enum Outcome {
    /// A response for all; its body is on its way. The caller checks that it fits its own
    /// request (`Vary`, freshness) as it does with what the store has.
    Filling(Filling),
    /// A response for the leader alone: ask upstream.
    Released,
    /// There is a response in the store that may be served: look again.
    Stored,
    /// There is no response.
    Failed(FillFailure),
}

/// Why there is no response; shared by all who followed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillFailure {
    /// The exchange with upstream failed: a [`crate::upstream::Unanswered`], or why its response is none.
    #[error("the collapsed upstream request failed")]
    Upstream(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Upstream answered with an error in whose place a stale response may be served.
    #[error("upstream answered {0}")]
    Status(StatusCode),
    /// What was asked for is of an object that is no longer what the origin has.
    #[error("the object changed at its origin")]
    Changed,
    /// The leader's task ended without an answer. Ask upstream.
    #[error("the task that asked upstream ended without an answer")]
    Abandoned,
}

const SHARDS: usize = 64;
