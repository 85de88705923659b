//! Request collapsing: many requests for one key, one upstream request (RFC 9111 §4).
//!
//! The first request leads, the others follow. The leader's work goes on without its client, so
//! that a client that leaves does not affect the followers. If the response turns out to be
//! uncacheable, the followers are released as soon as its header section arrives, and the key is
//! remembered for a while, so that its next requests do not wait for each other ("hit-for-miss").
//!
//! A request never follows a fill that a later purge may cover: it leads a new fill, which
//! replaces the old one. The old fill continues for requests from before the purge.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::filling::Filling;
use super::pump::{self, WithoutReaders};
use super::settings::Settings;
use super::slices::{RangeStep, RequestSizes, next_step};
pub(crate) use super::state::FillFailure;
use super::state::{Fill, FillDecision, FollowerGuard, NotJoinable, Shared};
use crate::body::Body;
use crate::cache::{KeyHash, PurgeSequence, StoredResponse};
use crate::clock::Clock;
use crate::labels::FillEnd;
pub(crate) use crate::labels::Uncollapsed;
use crate::metrics::{Metric, Recorder};
use crate::planted::{self, Bug}; // fault injection, in debug builds with `planted-bugs` only
use crate::purge::Requirement;
use crate::store::Store;

/// All fills of a node. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Fills(Arc<FillTable>);

#[derive(Debug)]
struct FillTable {
    shards: [Mutex<Shard>; SHARDS],
    count: AtomicUsize,
    shared: Arc<Shared>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Shard {
    fills: HashMap<KeyHash, Arc<Fill>>,
    uncacheable: HashMap<KeyHash, SystemTime>,
    /// No remembered key expires before this time.
    sweep_at: Option<SystemTime>,
}

/// The part of a request in a fetch: it leads the fetch, or follows.
#[derive(Debug)]
pub(crate) enum Join {
    /// Forward the request, for all followers. Look into the store again first: a fill may have ended
    /// between the lookup and this call.
    Lead(Lead),
    /// Wait for the outcome of another request.
    Follow(Follower),
    /// Forward the request without collapsing.
    Uncollapsed(Uncollapsed),
}

/// Why no fill was started for the storable response to an uncollapsed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdopted {
    /// Another fill of the key is in progress.
    InFlight,
    /// [`Settings::fills_max`] is reached.
    Limit,
}

impl Fills {
    /// An empty table. `slice_bytes` is the slice size of the store.
    pub(crate) fn new(
        settings: Settings,
        slice_bytes: u64,
        clock: Clock,
        recorder: Recorder,
    ) -> Self {
        Self(Arc::new(FillTable {
            shards: std::array::from_fn(|_| Mutex::default()),
            count: AtomicUsize::new(0),
            shared: Arc::new(Shared::new(settings, slice_bytes, recorder)),
            clock,
        }))
    }

    /// Joins the fill of `key`, or starts it.
    ///
    /// `unmet` is the purge requirement of another node's request, where this node does not meet it: such a
    /// request follows only a fill that was begun with this requirement.
    /// `sequence` reads the purge log's position, which the leader records in the response.
    /// `overtaken` returns whether a purge after the given position may cover the response. For an
    /// unknown response (`None`), every purge of a tag may.
    pub(crate) fn join(
        &self,
        key: KeyHash,
        unmet: Option<&Requirement>,
        sequence: impl FnOnce() -> PurgeSequence,
        overtaken: impl FnOnce(Option<&StoredResponse>, PurgeSequence) -> bool,
    ) -> Join {
        let mut shard = self.0.shard(key);
        if shard.is_uncacheable(key, &self.0.clock) {
            return Join::Uncollapsed(self.0.count_uncollapsed(Uncollapsed::Uncacheable));
        }
        let sequence = sequence();
        let Some(fill) = shard.fills.get(&key) else {
            return self.lead(&mut shard, key, unmet, sequence);
        };
        if planted::has(Bug::DoubleFill) {
            return Join::Uncollapsed(self.0.count_uncollapsed(Uncollapsed::Followers));
        }
        // Compare positions first: `overtaken` is needed only after a purge since the fill began.
        if fill.sequence < sequence && overtaken(fill.response().as_deref(), fill.sequence) {
            return self.lead(&mut shard, key, unmet, sequence);
        }
        if unmet.is_some_and(|unmet| !fill.carries(unmet)) && !planted::has(Bug::AnyFillJoined) {
            return self.lead(&mut shard, key, unmet, sequence);
        }
        match fill.add_follower() {
            Ok(guard) => {
                self.0.shared.recorder.count(Metric::RequestsCollapsed);
                Join::Follow(Follower(guard))
            }
            Err(NotJoinable::Full) => {
                Join::Uncollapsed(self.0.count_uncollapsed(Uncollapsed::Followers))
            }
            Err(NotJoinable::Over) => self.lead(&mut shard, key, unmet, sequence),
        }
    }

    /// Starts a fill for the response to an uncollapsed request that turned out to be storable.
    /// `sequence` was read before that request was sent.
    ///
    /// # Errors
    /// [`NotAdopted::InFlight`] if the key already has a fill, [`NotAdopted::Limit`] if `fills_max` is
    /// reached.
    pub(crate) fn adopt(&self, key: KeyHash, sequence: PurgeSequence) -> Result<Lead, NotAdopted> {
        let mut shard = self.0.shard(key);
        if shard.fills.contains_key(&key) {
            return Err(NotAdopted::InFlight);
        }
        shard.uncacheable.remove(&key);
        self.begin(&mut shard, key, None, sequence).ok_or(NotAdopted::Limit)
    }

    /// [`Settings::range_request_bytes_max`] in whole slices.
    pub(super) fn request_bytes_max(&self, slice_bytes: u64) -> u64 {
        let bytes_max = self.0.shared.settings.range_request_bytes_max;
        (bytes_max - bytes_max % slice_bytes).max(slice_bytes)
    }

    /// The first range to request from upstream, in whole slices, if bytes from `start` to `end` of
    /// an unknown object are wanted.
    pub(crate) fn first_range_to_request(&self, start: u64, end: u64) -> Range<u64> {
        let Shared { settings, slice_bytes, .. } = &*self.0.shared;
        let start = if start < settings.whole_bytes_max { 0 } else { start };
        let wanted = start..end.max(settings.whole_bytes_max);
        let request_bytes_max = self.request_bytes_max(*slice_bytes);
        let sizes = RequestSizes { slice_bytes: *slice_bytes, request_bytes_max };
        match next_step(&wanted, None, &[], sizes) {
            RangeStep::Fetch(range) => range,
            RangeStep::Stored(_) | RangeStep::Done => start..start.saturating_add(*slice_bytes),
        }
    }

    /// Whether requests for the key are known not to be worth collapsing.
    pub(crate) fn is_uncacheable(&self, key: KeyHash) -> bool {
        self.0.shard(key).is_uncacheable(key, &self.0.clock)
    }

    /// Remembers that responses for the key cannot be stored, as [`Lead::release`] does.
    pub(crate) fn remember_uncacheable(&self, key: KeyHash, remember_for: Duration) {
        self.0.remember(key, remember_for);
    }

    /// Whether the window of a fill holds a whole body of this length, so that no reader falls behind it.
    pub(crate) fn holds(&self, length: Option<u64>) -> bool {
        length.is_some_and(|length| length <= self.0.shared.window_bytes_least())
    }

    /// Where fills are counted.
    pub(crate) fn recorder(&self) -> &Recorder {
        &self.0.shared.recorder
    }

    fn lead(
        &self,
        shard: &mut Shard,
        key: KeyHash,
        unmet: Option<&Requirement>,
        sequence: PurgeSequence,
    ) -> Join {
        match self.begin(shard, key, unmet, sequence) {
            Some(lead) => Join::Lead(lead),
            None => Join::Uncollapsed(self.0.count_uncollapsed(Uncollapsed::Fills)),
        }
    }

    /// Begins a fill and replaces any fill of `key` that requests cannot join any more. `None`:
    /// [`Settings::fills_max`] is reached.
    fn begin(
        &self,
        shard: &mut Shard,
        key: KeyHash,
        unmet: Option<&Requirement>,
        sequence: PurgeSequence,
    ) -> Option<Lead> {
        let table = &self.0;
        let fill = || Fill::new(table.shared.clone(), sequence, unmet.cloned());
        let fill = match shard.fills.entry(key) {
            Entry::Occupied(mut old) => {
                old.insert(fill());
                old.get().clone()
            }
            Entry::Vacant(place) => {
                if table.count.load(Ordering::Relaxed) >= table.shared.settings.fills_max {
                    return None;
                }
                table.count.fetch_add(1, Ordering::Relaxed);
                place.insert(fill()).clone()
            }
        };
        let without_readers = WithoutReaders::Stop;
        Some(Lead { table: table.clone(), key, fill, without_readers, decided: false })
    }
}

impl FillTable {
    fn shard(&self, key: KeyHash) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[key.0 as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_uncollapsed(&self, why: Uncollapsed) -> Uncollapsed {
        self.shared.recorder.count_labelled(Metric::RequestsUncollapsed, why.index());
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

    /// Removes a fill that nobody follows but its leader's client. False: other requests do.
    fn remove_unshared(&self, key: KeyHash, fill: &Arc<Fill>) -> bool {
        let mut shard = self.shard(key);
        // Followers are added under the lock of the shard.
        if fill.is_followed() {
            return false;
        }
        if shard.fills.get(&key).is_some_and(|known| Arc::ptr_eq(known, fill)) {
            shard.fills.remove(&key);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        true
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

    /// Removes expired keys. Scans the map only if at least one key has expired.
    fn sweep(&mut self, now: SystemTime) {
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.uncacheable.retain(|_, until| *until > now);
            self.sweep_at = self.uncacheable.values().min().copied();
        }
    }
}

/// The leader of a fill, which asks upstream for all followers. If it is dropped without a
/// decision, the followers get [`FillFailure::Abandoned`].
#[derive(Debug)]
pub(crate) struct Lead {
    table: Arc<FillTable>,
    key: KeyHash,
    fill: Arc<Fill>,
    without_readers: WithoutReaders,
    decided: bool,
}

impl Lead {
    /// The purge-log position for [`StoredResponse::stored_at_sequence`].
    pub(crate) fn sequence(&self) -> PurgeSequence {
        self.fill.sequence
    }

    /// The leader's own client as a follower. While it exists, the fill continues.
    pub(crate) fn follower(&self) -> Follower {
        Follower(self.fill.add_leader_as_follower())
    }

    /// Lets the fill continue to its end without readers: for background refreshes.
    pub(crate) fn run_to_end(mut self) -> Self {
        self.without_readers = WithoutReaders::Continue;
        self
    }

    /// The response cannot be shared: each follower asks upstream on its own, and so do later
    /// requests, for as long as the key is remembered.
    pub(crate) fn release(mut self, remember_for: Option<Duration>) {
        if let Some(remember_for) = remember_for {
            self.table.remember(self.key, remember_for);
        }
        self.leave_table();
        self.decided = true;
        self.fill.release();
    }

    /// Gives every follower the same failure.
    pub(crate) fn fail(mut self, failure: FillFailure) {
        self.leave_table();
        self.decided = true;
        self.fill.fail(failure);
    }

    /// The stored response may be served: it was validated, or the store already had it. The store must
    /// have it before this call.
    pub(crate) fn stored(mut self) {
        self.leave_table();
        self.decided = true;
        self.fill.stored();
    }

    /// Gives `response` to the followers at once, and moves `body` to them and into `store` until
    /// its end. Await it in its own task. New requests can join until the lead is dropped: drop it after
    /// the variant was added to the variant list.
    pub(crate) async fn fill(
        &mut self,
        store: &Store,
        response: Arc<StoredResponse>,
        body: Body,
    ) -> FillEnd {
        let writer = store.writer(StoredResponse::clone(&response));
        self.decided = true;
        pump::fill(&self.fill, (store, writer), response, body, self.without_readers).await
    }

    /// As [`Lead::fill`], but stores a copy of another node's response, in memory only.
    pub(crate) async fn copy(
        &mut self,
        store: &Store,
        response: Arc<StoredResponse>,
        body: Body,
    ) -> FillEnd {
        let writer = store.copy_writer(StoredResponse::clone(&response));
        self.decided = true;
        pump::fill(&self.fill, (store, writer), response, body, self.without_readers).await
    }

    /// As [`Lead::fill`], but stores nothing: followers have the body from the window, which must hold it
    /// ([`Fills::holds`]).
    pub(crate) async fn stream(&mut self, response: Arc<StoredResponse>, body: Body) -> FillEnd {
        self.decided = true;
        pump::stream(&self.fill, response, body).await
    }

    /// A peer has the response, and it is too long to be shared without being stored: each follower asks that
    /// peer on its own.
    pub(crate) fn leave_to_peer(mut self) {
        self.leave_table();
        self.decided = true;
        self.fill.leave_to_peer();
    }

    /// Ends the fill if only the leader's own client waits for it: nobody shares its response.
    ///
    /// # Errors
    /// Other requests follow: the fill goes on.
    pub(crate) fn end_alone(mut self) -> Result<(), Self> {
        if !self.table.remove_unshared(self.key, &self.fill) {
            return Err(self);
        }
        self.decided = true;
        self.fill.leave_to_peer();
        Ok(())
    }

    /// New requests lead their own fill from now on.
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

/// A request that waits for the outcome of a [`Lead`]. It keeps the fill alive until then.
#[derive(Debug)]
pub(crate) struct Follower(FollowerGuard);

impl Follower {
    /// Waits for the outcome. Cancel-safe: the caller sets the deadline and may call it again.
    pub(crate) async fn outcome(&self) -> FillOutcome {
        let (decision, guard) = self.0.fill().outcome().await;
        self.0.end();
        match decision {
            FillDecision::Released => FillOutcome::Released,
            FillDecision::Failed(failure) => FillOutcome::Failed(failure),
            FillDecision::Stored => FillOutcome::Stored,
            FillDecision::AtPeer => FillOutcome::AtPeer,
            FillDecision::Filling(response) => FillOutcome::Filling(Filling { response, guard }),
        }
    }
}

/// The outcome of a leader's exchange with upstream.
#[derive(Debug)]
pub(crate) enum FillOutcome {
    /// A response for all followers, whose body is being fetched. The caller checks that it matches
    /// its own request (`Vary`, freshness), as with a stored response.
    Filling(Filling),
    /// The response cannot be shared: the follower forwards its own request.
    Released,
    /// The store has a response that may be served: look it up again.
    Stored,
    /// A peer has a response that cannot be shared here: the follower asks the peer itself.
    AtPeer,
    /// No response came.
    Failed(FillFailure),
}

const SHARDS: usize = 64;
