//! Opening the purge log, and the maintenance of the purge table.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::batch::PurgeLogError;
use super::deliveries::{Deliveries, KeptDeliveries};
use super::frame::LogEntry;
use super::hops::StreamPlace;
use super::log::{Commit, Log, LogContent};
use super::outbox::BusState;
use super::settings::Settings;
use super::table::PurgeTable;
use super::unread::UnreadPurges;
use super::{Applied, Purges};
use crate::clock::{Clock, unix_us};
use crate::lock;
use crate::metrics::{Metric, Recorder};
use crate::random::random_u64;

/// The parts that the purges of a node use.
struct Services {
    clock: Clock,
    recorder: Recorder,
    background: Handle,
}

impl Purges {
    /// Reads the log or creates one, and starts the maintenance of the table.
    ///
    /// # Errors
    /// The directory is in use, or the log cannot be read or written.
    pub(crate) fn open(
        settings: &Settings,
        clock: &Clock,
        recorder: &Recorder,
        background: &Handle,
    ) -> Result<Arc<Self>, PurgeLogError> {
        let services = Services {
            clock: clock.clone(),
            recorder: recorder.clone(),
            background: background.clone(),
        };
        let Some(directory) = &settings.directory else {
            return Ok(Self::replay(settings, None, LogContent::default(), services).0);
        };
        let unusable = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::WouldBlock => PurgeLogError::InUse { path: directory.clone() },
            _ => PurgeLogError::Log { path: directory.clone(), source },
        };
        let lock = lock::lock(directory, LOCK).map_err(unusable)?;
        let content = Log::read(directory).map_err(unusable)?;
        content.report(recorder);
        let valid_bytes = content.valid_bytes;
        let (purges, commits) = Self::replay(settings, Some(lock), content, services);
        let log = Log::open(directory, valid_bytes, &purges, settings.log_bytes);
        let log = log.map_err(unusable)?;
        std::thread::Builder::new()
            .name("purge-log".to_owned())
            .spawn(move || log.run(commits))
            .map_err(unusable)?;
        Ok(purges)
    }

    /// Applies the purges of a log. Also returns the queue for the thread that writes it.
    fn replay(
        settings: &Settings,
        lock: Option<File>,
        content: LogContent,
        services: Services,
    ) -> (Arc<Self>, mpsc::Receiver<Commit>) {
        let Services { clock, recorder, background } = services;
        let mut table = PurgeTable::default();
        let mut bus = BusState::default();
        let mut deliveries = KeptDeliveries::default();
        let mut issued = unix_us(clock.now());
        for entry in content.entries {
            apply_entry(&mut table, &mut bus, &mut deliveries, &mut issued, entry);
        }
        let (sender, commits) = mpsc::channel(COMMITS_MAX);
        let purges = Arc::new(Self {
            applied: Applied(AtomicU64::new(issued)),
            lineage: content.lineage.unwrap_or_else(|| random_u64().max(1)),
            issued: AtomicU64::new(issued),
            ceiling: AtomicU64::new(issued + CEILING_AHEAD),
            table: RwLock::new(table),
            bus: Mutex::new(bus),
            place: StreamPlace::default(),
            unread: UnreadPurges::default(),
            deliveries: Deliveries::restored(deliveries),
            log: settings.directory.is_some().then_some(sender),
            clock,
            recorder,
            settings: settings.clone(),
            background,
            lock: Mutex::new(lock),
        });
        purges.background.spawn(maintain(Arc::downgrade(&purges)));
        (purges, commits)
    }

    /// Called every few seconds: removes purges that are older than every stored response can be,
    /// and moves the ceiling ahead of the clock.
    pub(super) async fn maintain(&self) {
        let now = unix_us(self.clock.now());
        let horizon = now.saturating_sub(self.settings.object_age_max.as_micros() as u64);
        let mut pruned = 0;
        loop {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            let removed = table.prune(horizon, PRUNE_CHUNK);
            pruned += removed;
            if removed == 0 {
                break;
            }
        }
        self.recorder.add(Metric::PurgesPruned, pruned as u64);
        self.prune_deliveries(horizon);
        let ceiling = self.ceiling.load(Ordering::Acquire);
        let next = now.max(self.issued.load(Ordering::Acquire)) + CEILING_AHEAD;
        if next < ceiling + CEILING_AHEAD / 4 {
            return;
        }
        match self.commit(vec![LogEntry::Sequence(next), LogEntry::Horizon(horizon)]).await {
            Ok(()) => self.ceiling.store(next, Ordering::Release),
            Err(reason) => tracing::error!(%reason, "the purge log cannot be written"),
        }
    }
}

/// Maintains the purge table until it is dropped.
async fn maintain(purges: Weak<Purges>) {
    let mut ticks = tokio::time::interval(MAINTAIN_EVERY);
    loop {
        ticks.tick().await;
        let Some(purges) = purges.upgrade() else { return };
        purges.maintain().await;
    }
}

/// Applies one entry of a log that is being read.
fn apply_entry(
    table: &mut PurgeTable,
    bus: &mut BusState,
    deliveries: &mut KeptDeliveries,
    issued: &mut u64,
    entry: LogEntry,
) {
    match entry {
        LogEntry::Latest(scope, latest) => {
            // Applied purges that never reached the log have used higher sequences: skip them.
            *issued = (*issued).max(latest.hard.max(latest.soft) + UNLOGGED_MAX);
            table.merge(&scope, latest);
        }
        LogEntry::Sequence(ceiling) => *issued = (*issued).max(ceiling + UNLOGGED_MAX),
        LogEntry::Cursor(cursor) => bus.cursor = Some(cursor),
        LogEntry::Outbox(number, message) => bus.restore(number, message),
        LogEntry::Sent(number) => bus.remove(number),
        LogEntry::Horizon(horizon) => {
            table.prune(horizon, 0);
            deliveries.prune(horizon);
        }
        LogEntry::Delivery(place, _) => {
            // A snapshot has only the latest purge of each scope, which may hide this one.
            table.note_invalidation(place);
            deliveries.restore(entry);
        }
        LogEntry::DeliveryStart(_) | LogEntry::Sender(..) => deliveries.restore(entry),
    }
}

/// Maximum number of batches waiting for the log thread. Above it, callers wait before their purge
/// is applied.
const COMMITS_MAX: usize = 1024;
/// In microseconds, as sequences are. More than the number of purges that can be applied without
/// reaching the log.
const UNLOGGED_MAX: u64 = 1 << 20;
/// How far the ceiling is ahead of the clock, in microseconds: two minutes.
const CEILING_AHEAD: u64 = 120_000_000;
const MAINTAIN_EVERY: Duration = Duration::from_secs(10);
const LOCK: &str = "lock";
/// Entries removed under one lock.
const PRUNE_CHUNK: usize = 4096;
