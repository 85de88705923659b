//! The purge bus: delivers every purge to every node, and collects a receipt from each.
//!
//! ```text
//! purge() ─▶ purge log: in force, durable, in the outbox ─▶ one script: XADD + PUBLISH
//!                                                             │           │
//!            cursor ◀─ in order, without a gap ◀─ stream ◀────┘           │
//!            in force at once ◀─ wake-up with the same record ◀───────────┘
//! receipts ◀─ one hash per purge in Redis, and a message to the node that received the request
//! ```
//!
//! The stream is authoritative; the wake-up only saves time and may be lost. A node that may have missed
//! purges ([`Gap`](record::Gap)) soft-purges everything and logs it. Without Redis the same code serves a
//! single node. docs/concepts/purge.md states the guarantees.

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;

mod connection;
mod deliveries;
mod heartbeats;
mod inner;
mod ledger;
mod membership;
mod overdue;
mod publish_progress;
mod publisher;
mod reader;
mod recent;
mod record;
pub(crate) mod refresh;
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

pub(crate) use self::deliveries::PeerPosition;
pub(crate) use self::heartbeats::{HeartbeatAge, HeartbeatAges};
pub(crate) use self::ledger::{KnownPurge, OverduePurge, Receipt};
pub(crate) use self::record::{PurgeRecord, RecordScope};
pub(crate) use self::settings::{RedisUrl, Settings, SilenceAction};

use self::connection::{Connector, StoredReceipts};
use self::heartbeats::{NO_ROWS, OwnRow};
use self::inner::{Gauges, Inner};
use self::ledger::Ledger;
use self::refresh::Refresh;
use self::settings::SilencePolicy;
use crate::cache::PurgeSequence;
use crate::clock::Clock;
use crate::fleet::{Announcement, FleetMember, NodeTable, Readiness};
use crate::metrics::{Metric, Metrics};
use crate::purge::{PurgeError, PurgeRequest, Purged, Purges};
use crate::random::random_u64;
use crate::token_bucket::TokenBucket;

/// The purge bus. Clones share it.
#[derive(Clone)]
pub(crate) struct Bus {
    inner: Arc<Inner>,
}

/// A purge that was started; [`Bus::wait`] waits for it.
pub(crate) struct PurgeInProgress {
    /// Id of the purge, unique in the fleet.
    pub id: String,
    in_force: oneshot::Receiver<()>,
    durable: JoinHandle<Result<Purged, PurgeError>>,
}

/// The parts of the node that the bus uses.
pub(crate) struct BusParts {
    /// The name of this node, unique in the fleet; receipts carry it.
    pub name: String,
    /// Its announcement.
    pub announcement: Announcement,
    /// The purge table and its log.
    pub purges: Arc<Purges>,
    /// The clock for receipts and heartbeats.
    pub clock: Clock,
    /// Where the bus registers its gauges and counters.
    pub metrics: Arc<Metrics>,
}

/// How long `POST /purge` waits before it responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitLimit {
    /// The nodes that must have applied the purge.
    pub nodes: Wait,
    /// The longest wait; after it the response lists the nodes that are pending.
    pub timeout: Duration,
}

/// The nodes that must have applied a purge before the caller gets its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The purge is in force on this node; it need not be durable.
    None,
    /// This node has applied it.
    Local,
    /// More than half of the fleet has applied it.
    Quorum,
    /// The whole fleet has applied it.
    All,
}

/// Whether a node has applied a purge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum NodeState {
    /// The purge is durable there.
    Applied(Receipt),
    /// Not known to be applied. Time since the node's last heartbeat, if it has missed three.
    Pending(Option<Duration>),
}

/// The result of [`Bus::wait`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PurgeResult {
    /// Id of the purge.
    pub id: String,
    /// This node's purge sequence. `None` for [`Wait::None`].
    pub sequence: Option<PurgeSequence>,
    /// Older purges of this node that became one soft purge of everything, because its table was full.
    /// 0 for [`Wait::None`], which does not know it.
    pub widened: usize,
    /// The nodes that have applied the purge.
    pub status: PurgeStatus,
}

/// The status of one purge in the fleet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PurgeStatus {
    /// The purge itself. `None`: this node does not remember it; Redis has only receipts.
    pub known: Option<KnownPurge>,
    /// State of each node, by name. Without Redis: this node and its static peers.
    pub nodes: BTreeMap<String, NodeState>,
    /// Whether the stream has the purge; otherwise it waits in the outbox. `None`: no Redis is configured.
    pub published: Option<bool>,
}

/// Why a purge was refused or is not durable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeRequestError {
    /// The record is longer than `record_bytes_max`, or than a call to a peer may be; nothing was purged.
    #[error(
        "the purge has {length} bytes, at most {limit} are allowed (bus.record_bytes_max; 512 KiB without Redis): split it into several purges"
    )]
    TooLong {
        /// The record's length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The purge log refused the purge or could not write it.
    #[error(transparent)]
    Log(#[from] PurgeError),
    /// The node shuts down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl Bus {
    /// Starts the bus on `background`, and waits until this node has applied the purges that it missed,
    /// at most `start_wait`.
    ///
    /// # Errors
    /// A file in the settings cannot be read. An unreachable Redis is no error: the node starts with
    /// a silent bus.
    pub(crate) async fn start(
        settings: Settings,
        parts: BusParts,
        background: &Handle,
    ) -> io::Result<Self> {
        let BusParts { name, announcement, purges, clock, metrics } = parts;
        let own = FleetMember::new(name.as_str().into(), announcement.clone());
        let connector =
            settings.redis.as_ref().map(|url| Connector::new(&settings, url)).transpose()?;
        let (receipts, receipts_to_send) = mpsc::channel(RECEIPTS_MAX);
        let (refresh_queue, refresh_receiver) = mpsc::channel(REFRESHES_MAX);
        let bus = Self {
            inner: Arc::new(Inner {
                name,
                instance: format!("{:08x}", random_u64() as u32),
                purges,
                started: clock.instant(),
                log_rate: TokenBucket::new(1, clock.instant()),
                clock,
                recorder: metrics.background(),
                gauges: Gauges::register(&metrics),
                connector,
                connection: Mutex::new(None),
                ledger: Mutex::new(Ledger::new(settings.remembered_max)),
                overdue: Mutex::default(),
                purge_waiters: Mutex::default(),
                static_peers: Mutex::default(),
                wait_permits: Semaphore::new(WAITING_MAX),
                announcement: Mutex::new(announcement),
                last_heartbeat: Mutex::default(),
                table: watch::Sender::new(Arc::new(NodeTable::new(vec![own]))),
                has_left: tokio::sync::Mutex::default(),
                heartbeat_ages: tokio::sync::Mutex::default(),
                publish_progress: Mutex::default(),
                outbox_changed: Notify::new(),
                receipts,
                receipts_dropped: AtomicBool::new(false),
                caught_up: watch::Sender::new(false),
                refresh_queue,
                refresh_receiver: Mutex::new(Some(refresh_receiver)),
                last_contact_ms: AtomicU64::new(0),
                is_silent: Arc::default(),
                silence_policy: Mutex::new(SilencePolicy::new(
                    settings.silence,
                    settings.silence_of_sites.clone(),
                )),
                last_id_us: AtomicU64::new(0),
                settings,
            }),
        };
        background.spawn(overdue::watch(bus.inner.clone()));
        if bus.inner.announcement().peer.is_some() {
            bus.inner.clone().expect_peers();
        }
        if bus.inner.connector.is_some() {
            bus.inner.expect_stream();
            background.spawn(reader::run(bus.inner.clone()));
            background.spawn(publisher::run(bus.inner.clone(), receipts_to_send));
            let is_caught_up = bus.inner.catch_up().await;
            background.spawn(inner::enforce_silence_policy(bus.inner.clone(), is_caught_up));
        }
        Ok(bus)
    }

    /// Starts a purge on all nodes. It continues if the caller drops the result. `body_permit`: the
    /// request's share of the admin API's memory, released once the purge is durable.
    ///
    /// # Errors
    /// The record is longer than `record_bytes_max`.
    pub(crate) fn purge(
        &self,
        request: PurgeRequest,
        body_permit: Option<OwnedSemaphorePermit>,
    ) -> Result<PurgeInProgress, PurgeRequestError> {
        let inner = self.inner.clone();
        let id = inner.next_id();
        let (name, at_ms) = (inner.name.clone(), inner.now_ms());
        let record = PurgeRecord::new(id.clone(), name, at_ms, request);
        let is_sent = inner.connector.is_some() || inner.purges.has_peers();
        let message = is_sent.then(|| record.to_bytes());
        let (length, limit) = (message.as_ref().map_or(0, Bytes::len), inner.record_bytes_max());
        if length > limit {
            return Err(PurgeRequestError::TooLong { length, limit });
        }
        let (notify_in_force, in_force) = oneshot::channel();
        let durable = tokio::spawn(async move {
            let _permit = body_permit;
            inner.purge_locally(&record, message, notify_in_force).await
        });
        Ok(PurgeInProgress { id, in_force, durable })
    }

    /// Waits until the nodes in `limit` have applied the purge, at most for its timeout. The wait for
    /// this node has no timeout.
    ///
    /// # Errors
    /// The purge log refused the purge or could not write it.
    pub(crate) async fn wait(
        &self,
        purge: PurgeInProgress,
        limit: WaitLimit,
    ) -> Result<PurgeResult, PurgeRequestError> {
        let PurgeInProgress { id, in_force, durable } = purge;
        if limit.nodes == Wait::None && in_force.await.is_ok() {
            let status = self.local_status(&id);
            return Ok(PurgeResult { id, sequence: None, widened: 0, status });
        }
        let purged = durable.await.map_err(|_| PurgeRequestError::ShuttingDown)??;
        let status = self.wait_for_receipts(&id, limit).await;
        let (sequence, widened) = (Some(purged.sequence), purged.widened);
        Ok(PurgeResult { id, sequence, widened, status })
    }

    async fn wait_for_receipts(&self, id: &str, limit: WaitLimit) -> PurgeStatus {
        let WaitLimit { nodes, timeout } = limit;
        let status = self.local_status(id);
        if status.is_enough(nodes) {
            return status;
        }
        let Ok(_permit) = self.inner.wait_permits.try_acquire() else {
            self.inner.recorder.count(Metric::BusWaitsRefused);
            return status;
        };
        let mut receipts = self.inner.subscribe(id);
        let until_enough = async {
            loop {
                let status = self.local_status(id);
                if status.is_enough(nodes) {
                    return status;
                }
                // Cannot fail: the sender lives as long as the subscription.
                let _ = receipts.changed.changed().await;
            }
        };
        // Polling Redis runs beside the wait: it must delay neither a receipt that arrives meanwhile
        // nor the timeout if Redis does not reply.
        tokio::select! {
            biased;
            status = until_enough => status,
            never = self.poll_receipts(id, POLL_INTERVAL.min(timeout / 2)) => match never {},
            () = tokio::time::sleep(timeout) => self.local_status(id),
        }
    }

    /// Reads the receipts from Redis again and again, because their messages may be lost.
    async fn poll_receipts(&self, id: &str, pause: Duration) -> Infallible {
        loop {
            tokio::time::sleep(pause).await;
            self.inner.fetch_receipts(id).await;
        }
    }

    /// The status of a purge, from this node and from Redis. `None`: neither knows the purge.
    pub(crate) async fn status(&self, id: &str) -> Option<PurgeStatus> {
        let stored = self.inner.fetch_receipts(id).await;
        let known = self.inner.ledger().get(id).cloned();
        match known {
            Some(known) => Some(self.status_of(Some(known), StoredReceipts::default())),
            None if stored.is_empty() => None,
            None => Some(self.status_of(None, stored)),
        }
    }

    /// The status by this node's ledger.
    fn local_status(&self, id: &str) -> PurgeStatus {
        let known = self.inner.ledger().get(id).cloned();
        self.status_of(known, StoredReceipts::default())
    }

    /// The status by this node's ledger or, if it does not have the purge, by the receipts in Redis. Only
    /// receipts count: after Redis has lost entries, two purges may have had the same place in the stream.
    fn status_of(&self, known: Option<KnownPurge>, stored: StoredReceipts) -> PurgeStatus {
        let (is_published, receipts) = match &known {
            Some(known) => (known.is_published, &known.receipts),
            None => (stored.is_published, &stored.receipts),
        };
        let state = |name: &str, heartbeat_age| match receipts.get(name) {
            Some(receipt) => NodeState::Applied(*receipt),
            None => NodeState::Pending(heartbeat_age),
        };
        let mut nodes = BTreeMap::new();
        let now = self.inner.clock.instant();
        let table = self.table();
        for member in table.members() {
            let age = member.last_heartbeat.map(|last| now.saturating_duration_since(last));
            nodes.insert(member.name.to_string(), state(&member.name, age));
            if member.announcement.has_duplicate_name {
                let name = format!("{}{DUPLICATE_SUFFIX}", member.name);
                nodes.insert(name, NodeState::Pending(None));
            }
        }
        if self.inner.connector.is_none() {
            for peer in &*self.inner.static_peers() {
                nodes.entry(peer.to_string()).or_insert_with(|| state(peer, None));
            }
        }
        if table.is_incomplete {
            nodes.insert(UNKNOWN_MEMBERS.to_owned(), NodeState::Pending(None));
        }
        // A node that has shut down since may have sent a receipt before.
        for (name, receipt) in receipts {
            nodes.entry(name.clone()).or_insert(NodeState::Applied(*receipt));
        }
        let published = self.inner.connector.is_some().then_some(is_published);
        PurgeStatus { known, nodes, published }
    }

    /// The oldest purge ordered here that some node has not confirmed, as of the last look.
    pub(crate) fn overdue(&self) -> Option<OverduePurge> {
        self.inner.overdue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The purges requested since `at_ms` that this node has seen, newest first, at most `limit`.
    pub(crate) fn since(&self, at_ms: f64, limit: usize) -> Vec<(String, KnownPurge)> {
        self.inner.ledger().since(at_ms, limit)
    }

    /// This node's name.
    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    /// The nodes of the fleet, including this one.
    pub(crate) fn table(&self) -> Arc<NodeTable> {
        self.inner.table.borrow().clone()
    }

    /// Receives the nodes of the fleet, including this one, after each change.
    pub(crate) fn watch_table(&self) -> watch::Receiver<Arc<NodeTable>> {
        self.inner.table.subscribe()
    }

    /// Sets the announcement of this node. The other nodes read it after the next heartbeat.
    pub(crate) fn announce(&self, change: impl FnOnce(&mut Announcement)) {
        change(&mut self.inner.announcement());
        self.inner.replace_table(|table, own| {
            (table.get(&own.name) != Some(&own)).then(|| table.with(own))
        });
    }

    /// Announces at once, and not at the next heartbeat, that this node drains.
    pub(crate) async fn announce_drain(&self) {
        self.announce(|announcement| announcement.readiness = Readiness::Draining);
        let has_left = self.inner.has_left.lock().await;
        let connection = self.inner.connection().clone().filter(|_| !*has_left);
        if let Some(mut connection) = connection {
            let (heartbeat, announcement) =
                (self.inner.last_heartbeat().clone(), self.inner.announcement().clone());
            let own = OwnRow {
                name: &self.inner.name,
                heartbeat: &heartbeat,
                announcement: &announcement,
            };
            let limits = membership::beat_limits(&self.inner.settings);
            // If this fails, the next heartbeat says so.
            let _ = connection.exchange_heartbeat(&own, limits, NO_ROWS).await;
        }
    }

    /// The last heartbeats of all nodes, by name, as they are in Redis: read at most once a second. Empty: no
    /// Redis is configured, or it is not reachable.
    pub(crate) async fn heartbeat_ages(&self) -> Arc<HeartbeatAges> {
        let now = self.inner.clock.instant();
        let mut last = self.inner.heartbeat_ages.lock().await;
        if let Some((at, ages)) = &*last
            && now.saturating_duration_since(*at) < HEARTBEAT_AGES_KEPT
        {
            return ages.clone();
        }
        let connection = self.inner.connection().clone();
        let ages = match connection {
            Some(mut connection) => connection.read_heartbeats().await.unwrap_or_default(),
            None => HeartbeatAges::default(),
        };
        let ages = Arc::new(ages);
        *last = Some((now, ages.clone()));
        ages
    }

    /// The state of the bus. `None`: this node has no bus.
    pub(crate) fn report(&self) -> Option<BusReport> {
        let inner = &self.inner;
        inner.connector.as_ref()?;
        Some(BusReport {
            is_connected: inner.gauges.connected.get() > 0,
            is_silent: inner.is_silent.load(Ordering::Relaxed),
            lag: inner.gauges.lag.get(),
            outbox: inner.purges.outbox_len(),
        })
    }

    /// Why `/readyz` must report this node as not ready. `None`: the bus gives no reason.
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        let is_silent = self.inner.is_silent.load(Ordering::Relaxed);
        (is_silent && self.inner.silence_policy().drains()).then_some("purge bus silent")
    }

    /// The receiver of refreshes, of local purges and of those from the stream. `None` after the
    /// first call.
    pub(crate) fn refreshes(&self) -> Option<mpsc::Receiver<Refresh>> {
        let refreshes = self.inner.refresh_receiver.lock();
        refreshes.unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A flag that is set while the bus is silent.
    pub(crate) fn silent_flag(&self) -> Arc<AtomicBool> {
        self.inner.is_silent.clone()
    }

    /// Replaces the sites' actions for a silent bus.
    pub(crate) fn set_silence_of_sites(&self, sites: Vec<(Arc<str>, SilenceAction)>) {
        *self.inner.silence_policy() = SilencePolicy::new(self.inner.settings.silence, sites);
    }

    /// Removes another node from the fleet, so that no purge waits for its receipts. A node that lives comes back
    /// with its next heartbeat.
    ///
    /// # Errors
    /// Redis is not configured, is not connected now, or refuses the command.
    pub(crate) async fn forget(&self, name: &str) -> Result<(), String> {
        let connection = self.inner.connection().clone();
        let connected = "this node has no connection to Redis now, which has the table of nodes";
        let mut connection = connection.ok_or(connected)?;
        connection.remove_node(name).await.map_err(|error| error.to_string())
    }

    /// Removes this node from the fleet, so that no purge waits for its receipts. Called at shutdown.
    pub(crate) async fn leave(&self) {
        *self.inner.has_left.lock().await = true;
        let connection = self.inner.connection().clone();
        if let Some(mut connection) = connection {
            // If this fails, the fleet removes the node after `member_kept`.
            let _ = connection.remove_node(&self.inner.name).await;
        }
    }
}

/// The state of the purge bus, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BusReport {
    /// The stream is being read.
    pub is_connected: bool,
    /// Nothing was heard for `bus.silence_max`.
    pub is_silent: bool,
    /// Entries of the stream that this node has not applied yet.
    pub lag: i64,
    /// Purges ordered here that the stream does not have yet.
    pub outbox: usize,
}

impl PurgeStatus {
    /// Whether the nodes in `wait` have applied the purge.
    pub(crate) fn is_enough(&self, wait: Wait) -> bool {
        let applied = self.nodes.values().filter(|state| matches!(state, NodeState::Applied(_)));
        match wait {
            Wait::None | Wait::Local => true,
            Wait::Quorum => applied.count() > self.nodes.len() / 2,
            Wait::All => applied.count() == self.nodes.len(),
        }
    }
}

/// Name under which members are listed that this node does not know.
const UNKNOWN_MEMBERS: &str = "(unknown members)";
/// Ends the name under which the second node with a duplicate name is listed.
const DUPLICATE_SUFFIX: &str = " (duplicate name)";
/// Age of the heartbeats that the admin API shows.
const HEARTBEAT_AGES_KEPT: Duration = Duration::from_secs(1);
/// Receipts that wait to be sent to Redis.
const RECEIPTS_MAX: usize = 20_000;
/// Refreshes that wait for the prefetcher.
const REFRESHES_MAX: usize = 256;
/// Pause between two reads of receipts from Redis while a caller waits for them.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Callers that may wait for other nodes; further callers get the current status at once. Fewer than the
/// connections of the admin API, so that waiting callers cannot use all of them.
const WAITING_MAX: usize = 512;
