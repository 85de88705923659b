//! The purge bus: every purge reaches every node, and leaves a receipt of each.
//!
//! ```text
//! purge() ─▶ store: in force, durable, in the outbox ─▶ one script: XADD + PUBLISH
//!                                                          │           │
//!            cursor ◀─ in order, without a gap ◀─ stream ◀─┘           │
//!            in force at once ◀─ wake-up with the same record ◀────────┘
//! receipts ◀─ a hash in Redis for each purge, and a message to who ordered it
//! ```
//!
//! The stream is the truth; the wake-up only saves time and may be lost. A node that cannot
//! know what it missed ([`Gap`](record::Gap)) purges everything softly and says so. Without Redis the
//! same code serves one node. docs/concepts-purge.md says what is promised.

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
mod inner;
mod ledger;
mod link;
mod publisher;
mod publishing;
mod reader;
mod record;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) use self::ledger::{KnownPurge, Receipt};
pub(crate) use self::record::{PurgeRecord, RecordScope};
pub(crate) use self::settings::{RedisUrl, Settings, Silence};

use self::inner::{Gauges, Inner};
use self::ledger::Ledger;
use self::link::{Connector, Receipts};
use self::settings::Policy;
use super::fleet::{FleetMember, NodeIdentity, StreamPlace};
use super::purge_order::PurgeOrder;
use super::rate::Rate;
use super::refresh::Refresh;
use crate::cache::PurgeSequence;
use crate::clock::Clock;
use crate::metrics::{Metric, Metrics};
use crate::purge::{PurgeError, Purged, Purges};
use crate::random::random_u64;

/// The bus, as the rest of the node sees it. Clones share it.
#[derive(Clone)]
pub(crate) struct Bus {
    inner: Arc<Inner>,
}

/// A purge under way.
pub(crate) struct Issued {
    /// Its name in the whole fleet.
    pub id: String,
    in_force: oneshot::Receiver<()>,
    durable: JoinHandle<Result<Purged, PurgeError>>,
}

/// The parts of the node that the bus works with.
pub(crate) struct BusParts {
    /// The name under which this node appears in the fleet.
    pub identity: NodeIdentity,
    /// The purge table and its log.
    pub purges: Arc<Purges>,
    /// The clock of receipts and heartbeats.
    pub clock: Clock,
    /// Where the bus registers its gauges and counts.
    pub metrics: Arc<Metrics>,
}

/// How long `POST /purge` waits before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitLimit {
    /// The nodes that must have the purge.
    pub nodes: Wait,
    /// The longest wait; after it the answer tells which nodes are pending.
    pub timeout: Duration,
}

/// How many nodes must have a purge before the caller is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// None but this one, which need not have it on disk.
    None,
    /// This one, on disk.
    Local,
    /// More than half of the fleet, on disk.
    Quorum,
    /// All of the fleet, on disk.
    All,
}

/// What a node says, or doesn't, of a purge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum NodeState {
    /// It has it on disk. Without a receipt, that follows from its place in the stream.
    Applied(Option<Receipt>),
    /// Nothing is known of it yet; when the node was last heard.
    Pending(Option<Duration>),
}

/// All that is known of one purge.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PurgeStatus {
    /// What was purged. `None`: too long ago, only receipts are left.
    pub known: Option<KnownPurge>,
    /// Each node of the fleet.
    pub nodes: BTreeMap<String, NodeState>,
    /// Whether the stream has it; if not, it waits here for Redis. `None`: there is no fleet.
    pub published: Option<bool>,
}

/// Why a purge was refused, or is not durable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// Nothing was purged.
    #[error(
        "a purge of {length} bytes is too long for the bus, {limit} are allowed: order it in parts"
    )]
    TooLong {
        /// The record's length.
        length: usize,
        /// `record_bytes_max`.
        limit: usize,
    },
    /// The store refused it, or could not write it.
    #[error(transparent)]
    Store(#[from] PurgeError),
    /// The node is ending.
    #[error("the node is shutting down")]
    Ending,
}

impl Bus {
    /// Starts the bus on `background`, and waits until this node has what it missed, or for
    /// `start_wait`.
    ///
    /// # Errors
    /// A file that the settings name can't be read. A Redis that doesn't answer is none: the
    /// node starts as silent.
    pub(crate) async fn start(
        settings: Settings,
        parts: BusParts,
        background: &Handle,
    ) -> io::Result<Self> {
        let BusParts { identity, purges, clock, metrics } = parts;
        let connector =
            settings.redis.as_ref().map(|url| Connector::new(&settings, url)).transpose()?;
        let (receipts, receipts_to_send) = mpsc::channel(RECEIPTS_MAX);
        let (refreshes, refreshes_to_do) = mpsc::channel(REFRESHES_MAX);
        let bus = Self {
            inner: Arc::new(Inner {
                identity,
                instance: format!("{:08x}", random_u64() as u32),
                purges,
                started: clock.instant(),
                complaints: Rate::new(1, clock.instant()),
                clock,
                recorder: metrics.background(),
                gauges: Gauges::register(&metrics),
                connector,
                link: Mutex::new(None),
                ledger: Mutex::new(Ledger::new(settings.remembered_max)),
                awaited: Mutex::default(),
                waiting: Semaphore::new(WAITING_MAX),
                members: Mutex::default(),
                publishing: Mutex::default(),
                outgoing: Notify::new(),
                receipts,
                caught_up: watch::Sender::new(false),
                refreshes,
                refreshes_to_do: Mutex::new(Some(refreshes_to_do)),
                heard_ms: AtomicU64::new(0),
                is_silent: Arc::default(),
                policy: Mutex::new(Policy::new(
                    settings.silence,
                    settings.silence_of_sites.clone(),
                )),
                last_id_us: AtomicU64::new(0),
                settings,
            }),
        };
        if bus.inner.connector.is_some() {
            background.spawn(reader::run(bus.inner.clone()));
            background.spawn(publisher::run(bus.inner.clone(), receipts_to_send));
            let is_up = bus.inner.catch_up().await;
            background.spawn(inner::watch_silence(bus.inner.clone(), is_up));
        }
        Ok(bus)
    }

    /// Purges here and in the whole fleet. The purge goes on when the caller drops the result.
    /// `room`: the order's share of the admin API's memory, returned once the purge is on disk.
    ///
    /// # Errors
    /// The record would be too long.
    pub(crate) fn purge(
        &self,
        order: PurgeOrder,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Issued, OrderError> {
        let inner = self.inner.clone();
        let id = inner.next_id();
        let (name, at_ms) = (inner.identity.name.clone(), inner.now_ms());
        let record = PurgeRecord::new(id.clone(), name, at_ms, order);
        let message = inner.connector.is_some().then(|| record.to_bytes());
        let (length, limit) =
            (message.as_ref().map_or(0, Bytes::len), inner.settings.record_bytes_max);
        if length > limit {
            return Err(OrderError::TooLong { length, limit });
        }
        let (is_in_force, in_force) = oneshot::channel();
        let durable = tokio::spawn(async move {
            let _room = room;
            inner.order(&record, message, is_in_force).await
        });
        Ok(Issued { id, in_force, durable })
    }

    /// Waits until as many nodes as asked for have the purge, but no longer than `timeout`.
    /// This node's own part is always waited for.
    ///
    /// # Errors
    /// What the store said.
    pub(crate) async fn wait(
        &self,
        issued: Issued,
        limit: WaitLimit,
    ) -> Result<(String, Option<PurgeSequence>, PurgeStatus), OrderError> {
        let Issued { id, in_force, durable } = issued;
        if limit.nodes == Wait::None && in_force.await.is_ok() {
            return Ok((id.clone(), None, self.status_here(&id)));
        }
        let purged = durable.await.map_err(|_| OrderError::Ending)??;
        let status = self.watch(&id, limit).await;
        Ok((id, Some(purged.sequence), status))
    }

    async fn watch(&self, id: &str, limit: WaitLimit) -> PurgeStatus {
        let WaitLimit { nodes, timeout } = limit;
        let status = self.status_here(id);
        if status.is_enough(nodes) {
            return status;
        }
        let Ok(_place) = self.inner.waiting.try_acquire() else {
            self.inner.recorder.count(Metric::BusWaitsRefused);
            return status;
        };
        let mut awaiting = self.inner.awaiting(id);
        let watching = async {
            loop {
                let status = self.status_here(id);
                if status.is_enough(nodes) {
                    return status;
                }
                // The sender lives as long as who waits.
                let _ = awaiting.changed.changed().await;
            }
        };
        // A look takes a round trip, which what comes meanwhile does not wait for; nor does the
        // caller, when Redis does not answer.
        tokio::select! {
            biased;
            status = watching => status,
            never = self.keep_looking(id, LOOK_EVERY.min(timeout / 2)) => match never {},
            () = tokio::time::sleep(timeout) => self.status_here(id),
        }
    }

    /// Messages may be lost: the hash is not.
    async fn keep_looking(&self, id: &str, pause: Duration) -> Infallible {
        loop {
            tokio::time::sleep(pause).await;
            self.inner.look_up(id).await;
        }
    }

    /// All that is known of a purge, in Redis too. `None`: nothing.
    pub(crate) async fn status(&self, id: &str) -> Option<PurgeStatus> {
        let found = self.inner.look_up(id).await;
        let known = self.inner.ledger().get(id).cloned();
        match known {
            Some(known) => Some(self.status_of(Some(known), Receipts::default())),
            None if found.is_empty() => None,
            None => Some(self.status_of(None, found)),
        }
    }

    fn status_here(&self, id: &str) -> PurgeStatus {
        let known = self.inner.ledger().get(id).cloned();
        self.status_of(known, Receipts::default())
    }

    /// By what this node knows of the purge, or else by what Redis has `kept`.
    fn status_of(&self, known: Option<KnownPurge>, kept: Receipts) -> PurgeStatus {
        let (place, receipts) = match &known {
            Some(known) => (known.place.as_ref(), &known.receipts),
            None => (kept.place.as_ref(), &kept.receipts),
        };
        let state = |name: &str, its_place: Option<&StreamPlace>, heard| {
            let has_passed = |(epoch, number): &StreamPlace| {
                place.is_some_and(|(its, at)| its == epoch && at <= number)
            };
            match receipts.get(name) {
                Some(receipt) => NodeState::Applied(Some(*receipt)),
                None if its_place.is_some_and(has_passed) => NodeState::Applied(None),
                None => NodeState::Pending(heard),
            }
        };
        let mut nodes = BTreeMap::new();
        let now = self.inner.clock.instant();
        for (name, member) in &*self.inner.members() {
            let heard = Some(now.saturating_duration_since(member.heard));
            nodes.insert(name.clone(), state(name, member.place.as_ref(), heard));
        }
        let own = &self.inner.identity.name;
        nodes.entry(own.clone()).or_insert_with(|| state(own, None, None));
        // A node that has left since may have left a receipt.
        for (name, receipt) in receipts {
            nodes.entry(name.clone()).or_insert(NodeState::Applied(Some(*receipt)));
        }
        let published = self.inner.connector.is_some().then_some(place.is_some());
        PurgeStatus { known, nodes, published }
    }

    /// The purges that this node has met since `at_ms`, newest first.
    pub(crate) fn since(&self, at_ms: f64, limit: usize) -> Vec<(String, KnownPurge)> {
        self.inner.ledger().since(at_ms, limit)
    }

    /// This node's own name.
    pub(crate) fn name(&self) -> &str {
        &self.inner.identity.name
    }

    /// The nodes of the fleet, this one among them.
    pub(crate) fn members(&self) -> BTreeMap<String, FleetMember> {
        let mut members = self.inner.members().clone();
        let own = &self.inner.identity;
        members.entry(own.name.clone()).or_insert_with(|| FleetMember {
            region: own.region.clone(),
            heard: self.inner.clock.instant(),
            place: None,
        });
        members
    }

    /// Why this node should get no requests, as far as the bus goes.
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        let is_silent = self.inner.is_silent.load(Ordering::Relaxed);
        (is_silent && self.inner.policy().drains()).then_some("purge bus silent")
    }

    /// What purges want fetched again, whoever ordered them. Given once.
    pub(crate) fn refreshes(&self) -> Option<mpsc::Receiver<Refresh>> {
        let refreshes = self.inner.refreshes_to_do.lock();
        refreshes.unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the bus is silent: set for as long as that lasts.
    pub(crate) fn silent_flag(&self) -> Arc<AtomicBool> {
        self.inner.is_silent.clone()
    }

    /// What sites want done during a silence, from now on.
    pub(crate) fn set_silence_of_sites(&self, sites: Vec<(Arc<str>, Silence)>) {
        *self.inner.policy() = Policy::new(self.inner.settings.silence, sites);
    }

    /// Tells the fleet that this node ends, so that nobody waits for its receipts.
    pub(crate) async fn leave(&self) {
        let link = self.inner.link().clone();
        if let Some(mut link) = link {
            // Without it the fleet forgets the node after `member_kept`.
            let _ = link.leave(&self.inner.identity.name).await;
        }
    }
}

impl PurgeStatus {
    /// Whether as many nodes as asked for have it.
    pub(crate) fn is_enough(&self, wait: Wait) -> bool {
        let applied = self.nodes.values().filter(|state| matches!(state, NodeState::Applied(_)));
        match wait {
            Wait::None | Wait::Local => true,
            Wait::Quorum => applied.count() > self.nodes.len() / 2,
            Wait::All => applied.count() == self.nodes.len(),
        }
    }
}

/// Receipts that wait for the connection.
const RECEIPTS_MAX: usize = 20_000;
/// Purges whose refresh has not begun.
const REFRESHES_MAX: usize = 256;
/// How often who waits for receipts looks into Redis.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Callers that wait for other nodes; the next one is told at once what is known. They must not
/// take up every connection of the admin API.
const WAITING_MAX: usize = 512;
