//! The state that the tasks of the purge bus share, and the steps that both a caller's purge and one from the
//! stream take here: in force, durable, a receipt, a refresh.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use super::ledger::Ledger;
use super::link::{Connector, Link, ReceiptMessage, Receipts};
use super::publishing::Publishing;
use super::record::PurgeRecord;
use super::settings::{Policy, Settings};
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence};
use crate::clock::{Clock, unix_us};
use crate::control::fleet::{FleetMember, NodeIdentity};
use crate::control::rate::Rate;
use crate::control::refresh::{PrefetchOutcome, Refresh};
use crate::metrics::{Metric, Metrics, Recorder};
use crate::purge::{InForce, PurgeBatch, PurgeError, Purged, Purges};
use crate::random::random_u64;

/// The state that the tasks of the bus share.
pub(super) struct Inner {
    pub settings: Settings,
    pub identity: NodeIdentity,
    /// Different at each start, so that two nodes of one name notice each other.
    pub instance: String,
    pub purges: Arc<Purges>,
    pub clock: Clock,
    pub started: Instant,
    pub recorder: Recorder,
    pub gauges: Gauges,
    pub connector: Option<Connector>,
    /// The connection for everything that doesn't block, while there is one.
    pub link: Mutex<Option<Link>>,
    pub ledger: Mutex<Ledger>,
    /// By purge, what moves when a receipt of it came; those that somebody waits for.
    pub awaited: Mutex<HashMap<String, watch::Sender<()>>>,
    /// How many may wait for others.
    pub waiting: Semaphore,
    pub members: Mutex<BTreeMap<String, FleetMember>>,
    pub publishing: Mutex<Publishing>,
    pub outgoing: Notify,
    pub receipts: mpsc::Sender<ReceiptMessage>,
    pub caught_up: watch::Sender<bool>,
    pub refreshes: mpsc::Sender<Refresh>,
    pub refreshes_to_do: Mutex<Option<mpsc::Receiver<Refresh>>>,
    /// When the bus was last heard, in milliseconds since `started`.
    pub heard_ms: AtomicU64,
    pub is_silent: Arc<AtomicBool>,
    pub policy: Mutex<Policy>,
    pub last_id_us: AtomicU64,
    /// Lines that would come with each purge while the disk fails.
    pub complaints: Rate,
}

pub(super) struct Gauges {
    pub lag: Gauge,
    pub outbox: Gauge,
    pub silent: Gauge,
    pub connected: Gauge,
    pub members: Gauge,
}

impl Inner {
    /// Purges here, and puts the record into the outbox.
    pub(super) async fn order(
        &self,
        record: &PurgeRecord,
        message: Option<Bytes>,
        is_in_force: oneshot::Sender<()>,
    ) -> Result<Purged, PurgeError> {
        self.ledger().note(record);
        let batch = PurgeBatch { purges: record.purges().collect(), message, cursor: None };
        let in_force = match self.purges.put_in_force(batch).await {
            Ok(in_force) => in_force,
            Err(error) => {
                self.ledger().forget(&record.id);
                return Err(error);
            }
        };
        self.ledger().in_force(&record.id, self.since_ms(record.at_ms));
        self.ask_for_refresh(record);
        // The fleet need not wait for the disk of this node.
        self.outgoing.notify_one();
        let _ = is_in_force.send(());
        let purged = in_force.durable().await?;
        self.give_receipt(record, purged.sequence);
        self.changed(&record.id);
        Ok(purged)
    }

    /// Puts records of other nodes in force, as far as they aren't yet. With `cursor`, this node's
    /// place in the stream becomes durable with them.
    pub(super) async fn put_in_force(
        &self,
        records: &[PurgeRecord],
        cursor: Option<Bytes>,
    ) -> Result<InForce, PurgeError> {
        let fresh: Vec<&PurgeRecord> = {
            let mut ledger = self.ledger();
            records.iter().for_each(|record| ledger.note(record));
            records.iter().filter(|record| !ledger.is_in_force(&record.id)).collect()
        };
        let purges = fresh.iter().flat_map(|record| record.purges()).collect();
        let in_force =
            self.purges.put_in_force(PurgeBatch { purges, cursor, message: None }).await?;
        self.note_in_force(&fresh);
        Ok(in_force)
    }

    /// Waits for the disk, then leaves receipts: of all `records`, for what was in force before
    /// is durable too by then.
    pub(super) async fn make_durable(
        &self,
        records: &[PurgeRecord],
        in_force: InForce,
    ) -> Result<(), PurgeError> {
        let sequence = in_force.durable().await?.sequence;
        for record in records {
            self.give_receipt(record, sequence);
            self.changed(&record.id);
        }
        Ok(())
    }

    pub(super) fn note_in_force(&self, records: &[&PurgeRecord]) {
        for record in records {
            let after_ms = self.since_ms(record.at_ms);
            let is_news = self.ledger().in_force(&record.id, after_ms);
            if is_news {
                self.ask_for_refresh(record);
            }
            if is_news && record.node != self.identity.name {
                let elapsed = Duration::from_secs_f64(after_ms / 1e3);
                self.recorder.observe(Metric::PurgePropagation, elapsed);
            }
        }
    }

    pub(super) fn ask_for_refresh(&self, record: &PurgeRecord) {
        let Some(refresh) = record.refresh() else { return };
        // Clients fetch what they miss anyway.
        if self.refreshes.try_send(refresh).is_err() {
            self.recorder.count_labelled(Metric::Prefetches, PrefetchOutcome::Dropped as usize);
        }
    }

    pub(super) fn give_receipt(&self, record: &PurgeRecord, sequence: PurgeSequence) {
        let after_ms = self.since_ms(record.at_ms);
        let name = &self.identity.name;
        let Some(receipt) = self.ledger().durable(&record.id, name, sequence, after_ms) else {
            return;
        };
        if self.connector.is_none() {
            return;
        }
        let text = receipt.to_text();
        let message = ReceiptMessage { id: record.id.clone(), to: record.node.clone(), text };
        // Beyond the limit the fleet sees the node's place in the stream instead.
        if self.receipts.try_send(message).is_err() {
            self.recorder.count(Metric::BusReceiptsDropped);
        }
    }

    /// This must be validated: nobody knows what was missed.
    pub(super) async fn purge_softly(
        &self,
        scopes: Vec<PurgeScope>,
        cursor: Option<Bytes>,
    ) -> Result<(), PurgeError> {
        let purges = scopes.into_iter().map(|scope| (scope, PurgeKind::Soft)).collect();
        self.purges.purge(PurgeBatch { purges, cursor, message: None }).await.map(drop)
    }

    /// Asks Redis for a purge's receipts.
    pub(super) async fn look_up(&self, id: &str) -> Receipts {
        let link = self.link().clone();
        let Some(mut link) = link else { return Receipts::default() };
        let found = link.receipts(id).await.unwrap_or_default();
        let mut ledger = self.ledger();
        for (node, receipt) in &found.receipts {
            ledger.receipt(id, node, *receipt);
        }
        drop(ledger);
        self.changed(id);
        found
    }

    /// To be told when something is heard of a purge.
    pub(super) fn awaiting<'a>(&'a self, id: &'a str) -> Awaiting<'a> {
        let mut awaited = self.awaited();
        let changed = awaited.entry(id.to_owned()).or_default().subscribe();
        Awaiting { inner: self, id, changed }
    }

    /// Something was heard of a purge.
    pub(super) fn changed(&self, id: &str) {
        if let Some(changed) = self.awaited().get(id) {
            changed.send_replace(());
        }
    }

    /// Something was heard that may concern any purge.
    pub(super) fn all_changed(&self) {
        self.awaited().values().for_each(|changed| changed.send_replace(()));
    }

    /// Whether this node had all that it missed within `start_wait`.
    pub(super) async fn catch_up(&self) -> bool {
        let mut caught_up = self.caught_up.subscribe();
        let waiting = caught_up.wait_for(|is_up| *is_up);
        let is_up = tokio::time::timeout(self.settings.start_wait, waiting).await.is_ok();
        if !is_up {
            tracing::error!(redis = ?self.settings.redis, "purge bus: not reached in time, starting without the purges that were missed");
        }
        is_up
    }

    /// The bus was heard: nothing is missing up to now.
    pub(super) fn heard(&self) {
        let elapsed = self.clock.instant().saturating_duration_since(self.started);
        self.heard_ms.store(elapsed.as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn silent_for(&self) -> Duration {
        let elapsed = self.clock.instant().saturating_duration_since(self.started);
        elapsed.saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }

    /// `NAME-MICROSECONDS-INSTANCE`: unique though clocks are set back.
    pub(super) fn next_id(&self) -> String {
        let now = unix_us(self.clock.now());
        let next = |last: u64| Some((last + 1).max(now));
        let before = self.last_id_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let us = before.map_or(now, |last| (last + 1).max(now));
        format!("{}-{us:x}-{}", self.identity.name, self.instance)
    }

    pub(super) fn now_ms(&self) -> f64 {
        unix_us(self.clock.now()) as f64 / 1e3
    }

    pub(super) fn since_ms(&self, at_ms: f64) -> f64 {
        (self.now_ms() - at_ms).max(0.0)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn awaited(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn members(&self) -> MutexGuard<'_, BTreeMap<String, FleetMember>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publishing(&self) -> MutexGuard<'_, Publishing> {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn policy(&self) -> MutexGuard<'_, Policy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gauges {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            metrics.register(name, help, gauge.clone());
            gauge
        };
        Self {
            lag: gauge("bus_lag", "Entries of the purge stream that this node has not applied yet"),
            outbox: gauge("bus_outbox", "Purges ordered here that the bus has not taken yet"),
            silent: gauge("bus_silent", "Whether the bus was not heard for longer than allowed"),
            connected: gauge("bus_connected", "Whether the purge stream is being read"),
            members: gauge("bus_members", "Nodes of the fleet, by their heartbeats"),
        }
    }
}

/// A place among those who wait for a purge.
pub(super) struct Awaiting<'a> {
    inner: &'a Inner,
    id: &'a str,
    pub changed: watch::Receiver<()>,
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        let mut awaited = self.inner.awaited();
        if awaited.get(self.id).is_some_and(|changed| changed.receiver_count() <= 1) {
            awaited.remove(self.id);
        }
    }
}

/// Does what the operator wants done when the bus is not heard.
pub(super) async fn watch_silence(inner: Arc<Inner>, mut is_up: bool) {
    let limit = inner.settings.silence_max;
    let mut purged_after = Duration::ZERO;
    loop {
        let silent_for = inner.silent_for();
        let is_silent = !is_up || silent_for > limit;
        is_up |= *inner.caught_up.borrow();
        if is_silent != inner.is_silent.swap(is_silent, Ordering::Relaxed) {
            inner.gauges.silent.set(i64::from(is_silent));
            match is_silent {
                true => {
                    tracing::error!(policy = %inner.policy(), ?silent_for, "purge bus: silent")
                }
                false => tracing::warn!("purge bus: heard again"),
            }
            purged_after = Duration::ZERO;
        }
        let is_due = purged_after.is_zero() || silent_for > purged_after + limit;
        let validated = inner.policy().validated();
        if is_silent && is_due && !validated.is_empty() {
            purged_after = silent_for.max(Duration::from_millis(1));
            if let Err(error) = inner.purge_softly(validated, None).await {
                tracing::error!(%error, "purge bus: silent, and the purge log can't be written");
            }
        }
        tokio::time::sleep((limit / 10).clamp(SILENCE_CHECK_MIN, SILENCE_CHECK_MAX)).await;
    }
}

/// A pause before the next try: doubled each time, up to the limit, never in step with others.
pub(super) struct Backoff {
    tries: u32,
    pause_max: Duration,
}

impl Backoff {
    pub(super) fn new(pause_max: Duration) -> Self {
        Self { tries: 0, pause_max }
    }

    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }

    pub(super) async fn pause(&mut self) {
        let whole = (self.pause_max / 50 * (1 << self.tries.min(6))).min(self.pause_max);
        self.tries += 1;
        let part = 0.5 + (random_u64() % 1024) as f64 / 2048.0;
        tokio::time::sleep(whole.mul_f64(part)).await;
    }
}

const SILENCE_CHECK_MIN: Duration = Duration::from_millis(20);
const SILENCE_CHECK_MAX: Duration = Duration::from_secs(1);
