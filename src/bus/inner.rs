//! State that the tasks of the purge bus share, and the steps common to local purges and purges from the
//! stream: put in force, make durable, send the receipt, queue the refresh.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use super::connection::{Connector, ReceiptMessage, RedisConnection, StoredReceipts};
use super::heartbeats::HeartbeatAges;
use super::ledger::{Ledger, OverduePurge, Receipt};
use super::publish_progress::PublishProgress;
use super::record::{Fence, Gap, PurgeRecord};
use super::refresh::{PrefetchOutcome, Refresh};
use super::settings::{Settings, SilencePolicy};
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence};
use crate::clock::{Clock, unix_us};
use crate::fleet::{Announcement, FleetMember, Heartbeat, NodeTable, Readiness, TableReader};
use crate::metrics::{Metric, Metrics, Recorder};
use crate::purge::{BusCursor, InForce, PurgeBatch, PurgeError, PurgeRequest, Purged, Purges};
use crate::random::random_u64;
use crate::token_bucket::TokenBucket;

/// The state that the tasks of the bus share.
pub(super) struct Inner {
    pub settings: Settings,
    /// The name of this node, unique in the fleet; receipts carry it.
    pub name: String,
    /// Random, different at each start, so that two nodes with the same name detect each other.
    pub instance: String,
    pub purges: Arc<Purges>,
    pub clock: Clock,
    /// When the bus was created; the base of `last_contact_ms`.
    pub started: Instant,
    pub recorder: Recorder,
    pub gauges: Gauges,
    /// `None`: no Redis is configured.
    pub connector: Option<Connector>,
    /// The connection for non-blocking commands; `None` while disconnected.
    pub connection: Mutex<Option<RedisConnection>>,
    pub ledger: Mutex<Ledger>,
    /// The oldest purge ordered here that some node has not confirmed.
    pub overdue: Mutex<Option<OverduePurge>>,
    /// By purge id: notifies callers that wait for its receipts.
    pub purge_waiters: Mutex<HashMap<String, watch::Sender<()>>>,
    /// The static peers, which must take each purge of a node without Redis.
    pub static_peers: Mutex<Vec<Arc<str>>>,
    /// Limits the number of callers that wait for other nodes.
    pub wait_permits: Semaphore,
    /// The announcement of this node.
    pub announcement: Mutex<Announcement>,
    pub last_heartbeat: Mutex<Heartbeat>,
    /// The nodes of the fleet, for the other rooms.
    pub table: watch::Sender<Arc<NodeTable>>,
    /// The heartbeats that the admin API has read last, and when.
    pub heartbeat_ages: tokio::sync::Mutex<Option<(Instant, Arc<HeartbeatAges>)>>,
    /// Held while a heartbeat is sent, and while this node leaves the fleet: a heartbeat after that would bring its
    /// row back. True once it has left: it sends no more heartbeats.
    pub has_left: tokio::sync::Mutex<bool>,
    pub publish_progress: Mutex<PublishProgress>,
    /// Wakes the publisher when a purge was added to the outbox.
    pub outbox_changed: Notify,
    pub receipts: mpsc::Sender<ReceiptMessage>,
    /// Whether receipts were dropped because that queue was full.
    pub receipts_dropped: AtomicBool,
    /// Whether this node has applied all purges that it missed before it started.
    pub caught_up: watch::Sender<bool>,
    pub refresh_queue: mpsc::Sender<Refresh>,
    /// `None` once the prefetcher has taken it.
    pub refresh_receiver: Mutex<Option<mpsc::Receiver<Refresh>>>,
    /// Time of the last contact with the bus, in milliseconds since `started`.
    pub last_contact_ms: AtomicU64,
    /// Whether the last contact is longer ago than `silence_max`.
    pub is_silent: Arc<AtomicBool>,
    /// The behaviour while the bus is silent.
    pub silence_policy: Mutex<SilencePolicy>,
    /// The time in the last purge id, in microseconds since 1970.
    pub last_id_us: AtomicU64,
    /// Limits the log lines about a failing disk; without it each purge would log one.
    pub log_rate: TokenBucket,
}

/// The metrics of the bus that can go down.
pub(super) struct Gauges {
    pub lag: Gauge,
    pub outbox: Gauge,
    pub unread: Gauge,
    pub silent: Gauge,
    pub connected: Gauge,
    pub members: Gauge,
    pub oldest_pending: Gauge,
    /// The same by readiness, in the order of [`Readiness::ALL`].
    pub by_readiness: [Gauge; 3],
}

impl Inner {
    /// The static peers.
    pub(super) fn static_peers(&self) -> MutexGuard<'_, Vec<Arc<str>>> {
        self.static_peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the purge table that there is a stream, and which purges the messages in the log are.
    pub(super) fn expect_stream(&self) {
        for (number, message) in self.purges.outbox_from(0, usize::MAX) {
            let Some(record) = PurgeRecord::parse(&message) else { continue };
            let scopes: Vec<PurgeScope> = record.purges().map(|(scope, _)| scope).collect();
            let (id, is_own) = (record.purge_id(), record.node == self.name);
            self.purges.restore_unread(number, id, is_own, &scopes);
        }
        self.purges.expect_stream();
    }

    /// The fence after a gap. Only nodes that ask each other for responses need one.
    pub(super) fn fence(&self, gap: Gap) -> Option<Fence> {
        let has_peers = self.announcement().peer.is_some();
        (has_peers && gap != Gap::New).then_some(Fence { after: None })
    }

    /// Orders the soft purge of everything that ends a gap.
    pub(super) fn order_fence(self: Arc<Self>) {
        let request = PurgeRequest {
            scopes: vec![PurgeScope::All],
            kind: PurgeKind::Soft,
            reason: Some("entries of the purge stream were lost".to_owned()),
            refresh: 0,
        };
        let record = PurgeRecord::new(self.next_id(), self.name.clone(), self.now_ms(), request);
        tokio::spawn(async move {
            let message = Some(record.to_bytes());
            let (in_force, _) = oneshot::channel();
            if let Err(error) = self.purge_locally(&record, message, in_force).await {
                tracing::warn!(
                    %error,
                    "purge bus: the purge of everything after a gap is not published; other nodes are not asked for responses until another node orders one"
                );
            }
        });
    }

    /// Puts a purge of this node in force, adds its record to the outbox, and waits until it is durable.
    /// `in_force` is notified before the wait.
    pub(super) async fn purge_locally(
        &self,
        record: &PurgeRecord,
        message: Option<Bytes>,
        in_force: oneshot::Sender<()>,
    ) -> Result<Purged, PurgeError> {
        self.ledger().record(record);
        let (mut records, mut deliveries) = (Vec::new(), Vec::new());
        match message {
            Some(message) if self.connector.is_some() => {
                records.push(record.part(&self.name, Some(message)));
            }
            Some(message) => deliveries.push(record.delivery(message)),
            None => {}
        }
        let purges = record.purges().collect();
        let batch = PurgeBatch { purges, records, deliveries, ..PurgeBatch::default() };
        let batch_in_force = match self.purges.put_in_force(batch).await {
            Ok(batch_in_force) => batch_in_force,
            Err(error) => {
                self.ledger().remove(&record.id);
                return Err(error);
            }
        };
        self.ledger().set_in_force(&record.id, self.since_ms(record.at_ms));
        self.queue_refresh(record);
        // The other nodes need not wait for this node's disk.
        self.outbox_changed.notify_one();
        self.report_outbox();
        let _ = in_force.send(());
        let purged = batch_in_force.durable().await?;
        self.send_receipt(record, purged.sequence);
        self.notify_waiters(&record.id);
        Ok(purged)
    }

    /// Puts those records in force that are not in force yet. With `cursor`, this node's cursor in
    /// the stream becomes durable together with them.
    pub(super) async fn put_in_force(
        &self,
        records: &[PurgeRecord],
        cursor: Option<BusCursor>,
    ) -> Result<InForce, PurgeError> {
        let missing: Vec<&PurgeRecord> = {
            let mut ledger = self.ledger();
            records.iter().for_each(|record| ledger.record(record));
            records.iter().filter(|record| !ledger.is_in_force(&record.id)).collect()
        };
        let purges = missing.iter().flat_map(|record| record.purges()).collect();
        let part = |record: &&PurgeRecord| {
            let message = cursor.is_none().then(|| record.to_bytes());
            record.part(&self.name, message)
        };
        let records = missing.iter().map(part).collect();
        let batch = PurgeBatch { purges, records, cursor, ..PurgeBatch::default() };
        let in_force = self.purges.put_in_force(batch).await?;
        self.set_in_force(&missing);
        Ok(in_force)
    }

    /// Waits until the batch is durable, then sends a receipt for every record. Records that were
    /// in force before the batch are durable by then, too.
    pub(super) async fn make_durable(
        &self,
        records: &[PurgeRecord],
        in_force: InForce,
    ) -> Result<(), PurgeError> {
        let sequence = in_force.durable().await?.sequence;
        for record in records {
            self.send_receipt(record, sequence);
            self.notify_waiters(&record.id);
        }
        Ok(())
    }

    pub(super) fn set_in_force(&self, records: &[&PurgeRecord]) {
        for record in records {
            let after_ms = self.since_ms(record.at_ms);
            let is_first = self.ledger().set_in_force(&record.id, after_ms);
            if is_first {
                self.queue_refresh(record);
            }
            if is_first && record.node != self.name {
                let elapsed = Duration::from_secs_f64(after_ms / 1e3);
                self.recorder.observe(Metric::PurgePropagation, elapsed);
            }
        }
    }

    fn queue_refresh(&self, record: &PurgeRecord) {
        let Some(refresh) = record.refresh() else { return };
        // If the queue is full, drop the refresh: clients fetch the objects on demand.
        if self.refresh_queue.try_send(refresh).is_err() {
            self.recorder.count_labelled(Metric::Prefetches, PrefetchOutcome::Dropped as usize);
        }
    }

    fn send_receipt(&self, record: &PurgeRecord, sequence: PurgeSequence) {
        let after_ms = self.since_ms(record.at_ms);
        let name = &self.name;
        let receipt = self.ledger().set_durable(&record.id, name, sequence, after_ms);
        if let Some(receipt) = receipt {
            self.queue_receipt(record, receipt);
        }
    }

    fn queue_receipt(&self, record: &PurgeRecord, receipt: Receipt) {
        if self.connector.is_none() {
            return;
        }
        let text = receipt.to_text();
        let message = ReceiptMessage { id: record.id.clone(), to: record.node.clone(), text };
        // If the queue is full, drop the receipt: the reader confirms the purge again.
        if self.receipts.try_send(message).is_err() {
            self.recorder.count(Metric::BusReceiptsDropped);
            self.receipts_dropped.store(true, Ordering::Relaxed);
        }
    }

    /// Sends the receipt of a purge that this node has applied before: the one that it has sent then or, if
    /// it was started since, one with the time until now.
    pub(super) fn confirm_again(&self, record: &PurgeRecord) {
        let after_ms = self.since_ms(record.at_ms);
        let sequence = self.purges.sequence();
        let name = &self.name;
        let receipt = {
            let mut ledger = self.ledger();
            ledger.record(record);
            ledger.set_published(&record.id);
            ledger.set_in_force(&record.id, after_ms);
            ledger.set_durable(&record.id, name, sequence, after_ms);
            ledger.receipt(&record.id, name)
        };
        if let Some(receipt) = receipt {
            self.queue_receipt(record, receipt);
            self.notify_waiters(&record.id);
        }
    }

    /// Soft-purges `scopes`, because purges of them may have been missed.
    pub(super) async fn soft_purge(
        &self,
        scopes: Vec<PurgeScope>,
        cursor: Option<BusCursor>,
    ) -> Result<(), PurgeError> {
        let purges = scopes.into_iter().map(|scope| (scope, PurgeKind::Missed)).collect();
        self.purges.purge(PurgeBatch { purges, cursor, ..PurgeBatch::default() }).await.map(drop)
    }

    /// Reads a purge's receipts from Redis into the ledger. Empty if Redis is not reachable.
    pub(super) async fn fetch_receipts(&self, id: &str) -> StoredReceipts {
        let connection = self.connection().clone();
        let Some(mut connection) = connection else { return StoredReceipts::default() };
        let found = connection.fetch_receipts(id).await.unwrap_or_default();
        let mut ledger = self.ledger();
        for (node, receipt) in &found.receipts {
            ledger.add_receipt(id, node, *receipt);
        }
        drop(ledger);
        self.notify_waiters(id);
        found
    }

    /// Subscribes to the receipts of a purge.
    pub(super) fn subscribe<'a>(&'a self, id: &'a str) -> ReceiptSubscription<'a> {
        let mut waiters = self.purge_waiters();
        let changed = waiters.entry(id.to_owned()).or_default().subscribe();
        ReceiptSubscription { inner: self, id, changed }
    }

    /// Wakes the callers that wait for this purge.
    pub(super) fn notify_waiters(&self, id: &str) {
        if let Some(changed) = self.purge_waiters().get(id) {
            changed.send_replace(());
        }
    }

    /// Wakes all waiting callers.
    pub(super) fn notify_all_waiters(&self) {
        self.purge_waiters().values().for_each(|changed| changed.send_replace(()));
    }

    /// Waits until this node has applied all missed purges, at most `start_wait`. Returns whether
    /// it has.
    pub(super) async fn catch_up(&self) -> bool {
        let mut caught_up = self.caught_up.subscribe();
        let mut waiting = pin!(caught_up.wait_for(|is_caught_up| *is_caught_up));
        let start_wait = self.settings.start_wait;
        let announced_after = ANNOUNCED_AFTER.min(start_wait);
        if tokio::time::timeout(announced_after, &mut waiting).await.is_ok() {
            return true;
        }
        tracing::info!(
            redis = self.redis_url(),
            "purge bus: this node serves once it has read from Redis the purges that it missed, at the latest after {start_wait:?} (bus.start_wait)"
        );
        let rest = start_wait.saturating_sub(announced_after);
        let is_caught_up = tokio::time::timeout(rest, waiting).await.is_ok();
        if !is_caught_up {
            tracing::error!(
                redis = self.redis_url(),
                "purge bus: Redis not reached, or not read to its end, within bus.start_wait; starting without the purges missed since the last run"
            );
        }
        is_caught_up
    }

    /// The URL of Redis without its password, for the log.
    pub(super) fn redis_url(&self) -> String {
        self.settings.redis.as_ref().map(|url| format!("{url:?}")).unwrap_or_default()
    }

    /// Records that the bus was reached just now.
    pub(super) fn record_contact(&self) {
        let elapsed = self.clock.instant().saturating_duration_since(self.started);
        self.last_contact_ms.store(elapsed.as_millis() as u64, Ordering::Relaxed);
    }

    fn time_since_contact(&self) -> Duration {
        let elapsed = self.clock.instant().saturating_duration_since(self.started);
        elapsed.saturating_sub(Duration::from_millis(self.last_contact_ms.load(Ordering::Relaxed)))
    }

    /// A new purge id, `NAME-MICROSECONDS-INSTANCE`: unique even if the clock is set back.
    pub(super) fn next_id(&self) -> String {
        let now = unix_us(self.clock.now());
        let next = |last: u64| Some((last + 1).max(now));
        let before = self.last_id_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let us = before.map_or(now, |last| (last + 1).max(now));
        format!("{}-{us:x}-{}", self.name, self.instance)
    }

    /// Milliseconds since 1970.
    pub(super) fn now_ms(&self) -> f64 {
        unix_us(self.clock.now()) as f64 / 1e3
    }

    /// The time since then, in milliseconds. `at_ms` may be of another node, and wrong: at most [`AGE_MS_MAX`].
    pub(super) fn since_ms(&self, at_ms: f64) -> f64 {
        (self.now_ms() - at_ms).clamp(0.0, AGE_MS_MAX)
    }

    /// Updates the gauges of the purges that the stream has not brought yet.
    pub(super) fn report_outbox(&self) {
        self.gauges.outbox.set(self.purges.outbox_len() as i64);
        self.gauges.unread.set(self.purges.unread_len() as i64);
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn purge_waiters(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.purge_waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn announcement(&self) -> MutexGuard<'_, Announcement> {
        self.announcement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn last_heartbeat(&self) -> MutexGuard<'_, Heartbeat> {
        self.last_heartbeat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node as a member of the fleet.
    pub(super) fn own_member(&self) -> FleetMember {
        FleetMember::new(self.name.as_str().into(), self.announcement().clone())
    }

    /// Publishes the table to the other rooms, if it or this node has changed.
    pub(super) fn publish_table(&self, state: TableState<'_>) {
        let TableState { table, is_incomplete, is_changed } = state;
        self.replace_table(|current, own| {
            let is_current = !is_changed
                && current.is_incomplete == is_incomplete
                && current.get(&own.name) == Some(&own);
            (!is_current).then(|| {
                let mut next = table.table(own);
                next.is_incomplete = is_incomplete;
                next
            })
        });
    }

    /// Replaces the table by the one that `next` makes of it and of this node as it is now. `None`: it stays. All replacements
    /// take turns: none can bring back a table from before another one.
    pub(super) fn replace_table(
        &self,
        next: impl FnOnce(&NodeTable, FleetMember) -> Option<NodeTable>,
    ) {
        let is_replaced = self.table.send_if_modified(|current| {
            let Some(next) = next(current, self.own_member()) else { return false };
            self.gauges.report_members(&next);
            *current = Arc::new(next);
            true
        });
        if is_replaced {
            self.notify_all_waiters();
        }
    }

    pub(super) fn publish_progress(&self) -> MutexGuard<'_, PublishProgress> {
        self.publish_progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn silence_policy(&self) -> MutexGuard<'_, SilencePolicy> {
        self.silence_policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connection(&self) -> MutexGuard<'_, Option<RedisConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gauges {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            metrics.register(name, help, gauge.clone());
            gauge
        };
        let by_readiness = Family::<[(&str, &str); 1], Gauge>::default();
        metrics.register("fleet_members", "Nodes of the fleet, by readiness", by_readiness.clone());
        let of_readiness = |readiness: Readiness| {
            by_readiness.get_or_create(&[("readiness", readiness.as_str())]).clone()
        };
        Self {
            lag: gauge("bus_lag", "Entries of the purge stream that this node has not applied yet"),
            outbox: gauge("bus_outbox", "Local purges that were not read back from the bus yet"),
            unread: gauge(
                "purges_unread",
                "Purges in force that were not read from the purge stream yet: other nodes are not asked for what they cover",
            ),
            silent: gauge(
                "bus_silent",
                "1 if there was no contact with the bus for longer than bus.silence_max",
            ),
            connected: gauge("bus_connected", "1 while the purge stream is being read"),
            oldest_pending: gauge(
                "purge_oldest_pending_seconds",
                "Age of the oldest purge ordered here that a node of the fleet has not applied; 0: none",
            ),
            members: gauge("bus_members", "Nodes of the fleet, by their heartbeats"),
            by_readiness: Readiness::ALL.map(of_readiness),
        }
    }

    fn report_members(&self, table: &NodeTable) {
        let members = table.members();
        self.members.set(members.len() as i64);
        for (readiness, gauge) in Readiness::ALL.into_iter().zip(&self.by_readiness) {
            let count = members.iter().filter(|member| member.readiness == readiness).count();
            gauge.set(count as i64);
        }
    }
}

/// A subscription to the receipts of one purge. Dropping it ends the subscription.
pub(super) struct ReceiptSubscription<'a> {
    inner: &'a Inner,
    id: &'a str,
    pub changed: watch::Receiver<()>,
}

impl Drop for ReceiptSubscription<'_> {
    fn drop(&mut self) {
        let mut waiters = self.inner.purge_waiters();
        if waiters.get(self.id).is_some_and(|changed| changed.receiver_count() <= 1) {
            waiters.remove(self.id);
        }
    }
}

/// The table of nodes after a heartbeat.
pub(super) struct TableState<'t> {
    pub table: &'t TableReader,
    /// Members that Redis has lost may announce themselves yet.
    pub is_incomplete: bool,
    /// Rows have changed since the table was published.
    pub is_changed: bool,
}

/// Applies the silence policy while there is no contact with the bus for longer than `silence_max`,
/// or as long as the node has not caught up since its start.
pub(super) async fn enforce_silence_policy(inner: Arc<Inner>, mut is_caught_up: bool) {
    let limit = inner.settings.silence_max;
    // A restart while Redis is away keeps the outbox, and no contact reports it.
    inner.report_outbox();
    // The time since the last contact at the last soft purge; zero: none in this silence.
    let mut last_purge = Duration::ZERO;
    loop {
        let silent_for = inner.time_since_contact();
        let is_silent = !is_caught_up || silent_for > limit;
        is_caught_up |= *inner.caught_up.borrow();
        if is_silent != inner.is_silent.swap(is_silent, Ordering::Relaxed) {
            inner.gauges.silent.set(i64::from(is_silent));
            log_silence(&inner, is_silent, silent_for);
            last_purge = Duration::ZERO;
        }
        let is_due = last_purge.is_zero() || silent_for > last_purge + limit;
        let scopes = inner.silence_policy().validated_scopes();
        if is_silent && is_due && !scopes.is_empty() {
            last_purge = silent_for.max(Duration::from_millis(1));
            if let Err(error) = inner.soft_purge(scopes, None).await {
                tracing::error!(
                    %error,
                    "purge bus: cannot write the soft purge of the silence policy to the purge log"
                );
            }
        }
        tokio::time::sleep((limit / 10).clamp(SILENCE_CHECK_MIN, SILENCE_CHECK_MAX)).await;
    }
}

fn log_silence(inner: &Inner, is_silent: bool, silent_for: Duration) {
    if is_silent {
        tracing::error!(
            policy = %inner.silence_policy(),
            silent_for = ?Duration::from_secs(silent_for.as_secs()),
            "purge bus: silent (purges of other nodes may be missing); applying the silence policy"
        );
    } else {
        tracing::info!("purge bus: contact with Redis restored");
    }
}

/// The pause before the next attempt: doubled each time up to a limit, with random jitter.
pub(super) struct Backoff {
    attempts: u32,
    pause_max: Duration,
}

impl Backoff {
    pub(super) fn new(pause_max: Duration) -> Self {
        Self { attempts: 0, pause_max }
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    pub(super) async fn pause(&mut self) {
        let pause = (self.pause_max / 50 * (1 << self.attempts.min(6))).min(self.pause_max);
        self.attempts += 1;
        let jitter = 0.5 + (random_u64() % 1024) as f64 / 2048.0;
        tokio::time::sleep(pause.mul_f64(jitter)).await;
    }
}

/// A wait at the start is logged from this length on.
const ANNOUNCED_AFTER: Duration = Duration::from_secs(1);
/// A century, in milliseconds.
const AGE_MS_MAX: f64 = 100.0 * 365.25 * 86_400e3;
const SILENCE_CHECK_MIN: Duration = Duration::from_millis(20);
const SILENCE_CHECK_MAX: Duration = Duration::from_secs(1);
