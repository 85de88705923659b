//! Reads the purge stream in Redis in order, on its own connection, and detects gaps.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::RedisResult;

use super::connection::{RedisConnection, shortened};
use super::inner::{Backoff, Inner};
use super::membership::Membership;
use super::publish_progress::OutboxPosition;
use super::recent::{self, READ_COUNT_MIN, next_count};
use super::record::{
    Gap, PurgeRecord, StreamCursor, StreamEntry, StreamHead, check_cursor, check_follows,
    cursor_after_gap,
};
use crate::cache::PurgeScope;
use crate::fleet::HeartbeatSchedule;
use crate::metrics::Metric;
use crate::planted::{self, Bug};
use crate::purge::{BusCursor, EntryId, PurgeError};
use crate::random::random_u64;

/// Reads the stream until the runtime shuts down.
pub(super) async fn run(inner: Arc<Inner>) {
    let stored_cursor = inner.purges.cursor();
    let mut reader = Reader {
        cursor: stored_cursor.and_then(|cursor| StreamCursor::parse(&cursor)),
        head: None,
        confirmed: None,
        read_count: READ_COUNT_MIN,
        membership: Membership::new(inner.clone()),
        must_confirm_again: true,
        entries: Vec::new(),
        fence_due: None,
        inner,
    };
    reader.open_fence_again();
    reader.publish_position();
    let mut backoff = Backoff::new(reader.inner.settings.reconnect_pause_max);
    let mut failure_logged = false;
    loop {
        let Err(error) = reader.session(&mut backoff, &mut failure_logged).await;
        reader.inner.gauges.connected.set(0);
        reader.inner.recorder.count_labelled(Metric::BusDisconnects, READ_LABEL);
        if !std::mem::replace(&mut failure_logged, true) {
            tracing::warn!(
                error = shortened(&error),
                redis = reader.inner.redis_url(),
                "purge bus: cannot read the purge stream from Redis; retrying"
            );
        }
        backoff.pause().await;
    }
}

struct Reader {
    inner: Arc<Inner>,
    /// The last applied entry. `None`: the stream was never read.
    cursor: Option<StreamCursor>,
    /// The stream's last entry as of the last heartbeat.
    head: Option<StreamHead>,
    /// How far Redis had confirmed local purges before that heartbeat was sent. `None`: it was checked
    /// that the stream had them.
    confirmed: Option<OutboxPosition>,
    /// Number of entries of the next read.
    read_count: usize,
    membership: Membership,
    /// Whether receipts of the last purges may be missing.
    must_confirm_again: bool,
    /// The entries up to the cursor whose purges are not in force yet.
    entries: Vec<EntryId>,
    /// When this node orders the fence itself, if it has not read another one's.
    fence_due: Option<tokio::time::Instant>,
}

impl Reader {
    /// Connects and reads until the connection fails.
    async fn session(
        &mut self,
        backoff: &mut Backoff,
        failure_logged: &mut bool,
    ) -> RedisResult<Infallible> {
        let Some(connector) = &self.inner.connector else { std::future::pending().await };
        let interval = self.inner.settings.heartbeat;
        let mut connection = connector.connect(interval, None).await?;
        connection.load_scripts().await?;
        self.inner.gauges.connected.set(1);
        self.membership.begin_session();
        let mut schedule = HeartbeatSchedule::new(interval, self.inner.clock.instant());
        loop {
            let sent_at = self.inner.clock.instant();
            if sent_at >= schedule.due_at() {
                let next_out = self.send_heartbeat(&mut connection).await?;
                schedule.record_answer(sent_at, self.inner.clock.instant(), next_out);
            }
            if planted::has(Bug::StreamUnread) {
                tokio::time::sleep(interval).await;
                continue;
            }
            let Some(cursor) = &self.cursor else { continue };
            let block = schedule.due_at().saturating_duration_since(self.inner.clock.instant());
            let entries = connection.read(cursor.id, self.read_count, block).await?;
            self.inner.record_contact();
            self.read_count = next_count(&entries, self.read_count);
            // Log the recovery only after a successful read: Redis may accept heartbeats but refuse
            // XREAD.
            if std::mem::take(failure_logged) {
                tracing::info!("purge bus: reading the purge stream again");
            }
            backoff.reset();
            match entries.is_empty() {
                true => self.handle_empty_read(&mut connection).await,
                false => self.apply(&mut connection, entries).await?,
            }
            self.report_progress();
            self.order_fence();
            self.confirm_again(&mut connection).await?;
        }
    }

    /// Sends the receipts of the last purges again: once after the start, because the previous process may
    /// have died between a purge and its receipt, or may have had nothing that the purge covers; and after
    /// receipts were dropped.
    async fn confirm_again(&mut self, connection: &mut RedisConnection) -> RedisResult<()> {
        let inner = &self.inner;
        let has_room = inner.receipts.capacity() >= recent::PURGES_MAX;
        if has_room && inner.receipts_dropped.swap(false, Ordering::Relaxed) {
            self.must_confirm_again = true;
        }
        let is_due = self.must_confirm_again && has_room && *inner.caught_up.borrow();
        let Some(cursor) = self.cursor.as_ref().filter(|_| is_due) else { return Ok(()) };
        let kept = inner.settings.receipts_kept.as_secs_f64() * 1e3;
        let purges = recent::read(connection, cursor, inner.now_ms() - kept).await?;
        self.must_confirm_again = false;
        purges.iter().rev().for_each(|record| self.inner.confirm_again(record));
        Ok(())
    }

    /// Sends this node's heartbeat and checks that the stream was not trimmed or replaced. Returns the time from its arrival
    /// until the first node is out for want of heartbeats.
    async fn send_heartbeat(&mut self, connection: &mut RedisConnection) -> RedisResult<Duration> {
        let inner = self.inner.clone();
        let has_left = inner.has_left.lock().await;
        if *has_left {
            drop(has_left);
            return std::future::pending().await;
        }
        self.confirmed = Some(self.inner.publish_progress().position());
        let reply = self.membership.exchange(connection, self.cursor.as_ref()).await?;
        let (head, next_out) = (reply.head.clone(), reply.next_out);
        let cursor_check = check_cursor(self.cursor.as_ref(), &head);
        if matches!(cursor_check, Err(Gap::Backwards | Gap::Replaced)) {
            self.membership.keep_members_after_loss();
        }
        self.membership.apply(connection, self.cursor.as_ref(), reply).await?;
        drop(has_left);
        self.inner.record_contact();
        if let Err(gap) = cursor_check {
            self.recover_from_gap(connection, gap, &head).await?;
        } else {
            self.place_fence(&head);
            self.head = Some(head);
        }
        self.report_progress();
        Ok(next_out)
    }

    /// The head is from after the gap: a later purge of everything is the fence.
    fn place_fence(&mut self, head: &StreamHead) {
        if let Some(fence) = self.cursor.as_mut().and_then(|cursor| cursor.fence.as_mut())
            && fence.after.is_none()
        {
            fence.after = Some(head.number);
            let jitter = Duration::from_millis(random_u64() % FENCE_JITTER_MS);
            self.fence_due = Some(tokio::time::Instant::now() + jitter);
        }
    }

    /// Orders a soft purge of everything, if no node has done so since the gap.
    fn order_fence(&mut self) {
        if self.cursor.as_ref().is_none_or(|cursor| cursor.fence.is_none()) {
            self.fence_due = None;
        }
        let now = tokio::time::Instant::now();
        if self.fence_due.is_some_and(|due| due <= now) {
            // Again if it was refused: the outbox may be full.
            self.fence_due = Some(now + FENCE_AGAIN);
            self.inner.clone().order_fence();
        }
    }

    /// After a restart: the head from after the gap is read anew.
    fn open_fence_again(&mut self) {
        if let Some(fence) = self.cursor.as_mut().and_then(|cursor| cursor.fence.as_mut()) {
            fence.after = None;
        }
    }

    /// Applies entries in their order; each batch is written to the log together with the cursor
    /// after it.
    async fn apply(
        &mut self,
        connection: &mut RedisConnection,
        entries: Vec<StreamEntry>,
    ) -> RedisResult<()> {
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(cursor) = &self.cursor else { return Ok(()) };
            if let Err(gap) = check_follows(cursor, &entry) {
                let (number, id) = (entry.number.saturating_sub(1), cursor.id);
                let epoch = cursor.epoch.clone();
                self.apply_records(connection, std::mem::take(&mut records)).await;
                let epoch = match gap {
                    Gap::Replaced => connection.epoch().await?,
                    _ => epoch,
                };
                self.recover_from_gap(connection, gap, &StreamHead { epoch, number, id }).await?;
            }
            let Some(cursor) = &self.cursor else { return Ok(()) };
            let at = cursor.after(&entry);
            self.entries.push(entry.id);
            match entry.record {
                // A node publishes its own purge again if it does not read it back.
                Some(record)
                    if entry.number % 5 == 0
                        && record.node != self.inner.name
                        && planted::has(Bug::StreamEntryDropped) =>
                {
                    self.cursor = Some(at);
                }
                Some(record) => {
                    self.cursor = Some(at);
                    let mut ledger = self.inner.ledger();
                    ledger.record(&record);
                    ledger.set_published(&record.id);
                    records.push(record);
                }
                None => {
                    self.apply_records(connection, std::mem::take(&mut records)).await;
                    self.cursor = Some(at);
                    self.soft_purge_all(connection, Gap::Unreadable).await;
                }
            }
        }
        self.apply_records(connection, records).await;
        Ok(())
    }

    /// Applies the records and retries until they are durable. The stored cursor must never be ahead
    /// of the records in the purge log.
    async fn apply_records(&mut self, connection: &mut RedisConnection, records: Vec<PurgeRecord>) {
        let Some(cursor) = &self.cursor else { return };
        if records.is_empty() {
            return;
        }
        let read = records.iter().map(|record| record.purge_id()).collect();
        let cursor = cursor.bus_cursor(std::mem::take(&mut self.entries), read);
        let mut attempts = 0;
        while let Err(error) = self.make_durable(&records, cursor.clone()).await {
            if attempts % RETRIES_PER_LOG_LINE == 0 {
                tracing::error!(
                    %error,
                    "purge bus: purges from the stream cannot be written to the purge log; retrying every second"
                );
            }
            attempts += 1;
            self.wait_to_retry(connection).await;
        }
        let ids = records.iter().map(|record| &*record.id);
        self.inner.publish_progress().forget_read_back(ids);
        self.inner.report_outbox();
    }

    /// Waits before the purge log is written again. This node sends heartbeats meanwhile: it serves, and the purges are
    /// in force. They state no position, because the last one is not durable.
    async fn wait_to_retry(&mut self, connection: &mut RedisConnection) {
        let until = tokio::time::Instant::now() + RETRY_PAUSE;
        while tokio::time::Instant::now() < until {
            let next = tokio::time::Instant::now() + self.inner.settings.heartbeat;
            tokio::time::sleep_until(next.min(until)).await;
            // The next read reports a connection that has failed.
            _ = self.send_sign_of_life(connection).await;
        }
    }

    /// Sends a heartbeat without a look at the stream. The rows of a Redis that has lost entries wait until the gap is
    /// handled.
    async fn send_sign_of_life(&mut self, connection: &mut RedisConnection) -> RedisResult<()> {
        let inner = self.inner.clone();
        let has_left = inner.has_left.lock().await;
        if *has_left {
            return Ok(());
        }
        let reply = self.membership.exchange(connection, None).await?;
        match check_cursor(self.cursor.as_ref(), &reply.head) {
            Ok(()) => self.membership.apply(connection, None, reply).await,
            Err(_) => Ok(()),
        }
    }

    async fn make_durable(
        &self,
        records: &[PurgeRecord],
        cursor: BusCursor,
    ) -> Result<(), PurgeError> {
        let in_force = self.inner.put_in_force(records, Some(cursor)).await?;
        self.inner.make_durable(records, in_force).await
    }

    /// Called when a read returned no entries. If the cursor is still behind the head of the last
    /// heartbeat, entries were trimmed from the stream.
    async fn handle_empty_read(&mut self, connection: &mut RedisConnection) {
        let (Some(cursor), Some(head)) = (&mut self.cursor, &self.head) else { return };
        if cursor.number.is_some_and(|number| number >= head.number) {
            return;
        }
        // After a gap the number of the last entry becomes known here. If the head is a later entry, that one
        // is gone as well: another node may have read it.
        let is_last_applied = cursor.number.is_none() && cursor.id == head.id;
        let fence = cursor.fence;
        *cursor = StreamCursor { fence, ..StreamCursor::at(head) };
        if is_last_applied {
            return self.publish_position();
        }
        cursor.fence = fence.or(self.inner.fence(Gap::Trimmed));
        self.soft_purge_all(connection, Gap::Trimmed).await;
    }

    /// Tells the purge table the position where no purge comes with it.
    fn publish_position(&self) {
        if let Some(cursor) = &self.cursor {
            self.inner.purges.set_position(&cursor.bus_cursor(Vec::new(), Vec::new()));
        }
    }

    /// Handles a gap in the stream: soft-purges everything and moves the cursor to the next entry
    /// that can be read.
    async fn recover_from_gap(
        &mut self,
        connection: &mut RedisConnection,
        gap: Gap,
        head: &StreamHead,
    ) -> RedisResult<()> {
        let mut head = head.clone();
        if gap.needs_new_epoch() {
            head.epoch = connection.rename_epoch(&head.epoch).await?;
        }
        let next = match gap {
            // The gap was found while reading: the current entry is available, so keep the cursor.
            Gap::Trimmed => {
                self.cursor.clone().map(|cursor| StreamCursor { number: None, ..cursor })
            }
            _ => Some(cursor_after_gap(self.cursor.as_ref(), &head)),
        };
        self.cursor = next.map(|next| StreamCursor { fence: self.inner.fence(gap), ..next });
        self.head = Some(head);
        self.soft_purge_all(connection, gap).await;
        Ok(())
    }

    async fn soft_purge_all(&mut self, connection: &mut RedisConnection, gap: Gap) {
        self.inner.recorder.count_labelled(Metric::BusGaps, gap as usize);
        match gap {
            Gap::New => tracing::info!(
                "purge bus: no stored cursor, starting at the current end of the purge stream"
            ),
            _ => tracing::error!(
                gap = gap.as_str(),
                position = self.cursor.as_ref().map(ToString::to_string),
                "purge bus: {}; purges may have been missed, so stored responses are validated before use",
                gap.cause()
            ),
        }
        let entries = std::mem::take(&mut self.entries);
        let cursor = self.cursor.as_ref().map(|cursor| cursor.bus_cursor(entries, Vec::new()));
        while let Err(error) = self.inner.soft_purge(vec![PurgeScope::All], cursor.clone()).await {
            tracing::error!(
                %error,
                "purge bus: a soft purge of everything cannot be written to the purge log; retrying every second"
            );
            self.wait_to_retry(connection).await;
        }
        if gap.lost_entries() {
            // The lost entries may include purges published by this node: publish them again.
            self.inner.publish_progress().restart();
            self.inner.outbox_changed.notify_one();
        }
    }

    /// Updates the gauges, and `caught_up` once the cursor has reached the head.
    fn report_progress(&mut self) {
        let (Some(cursor), Some(head)) = (&self.cursor, &self.head) else { return };
        let Some(number) = cursor.number else { return };
        let lag = head.number.saturating_sub(number);
        self.inner.gauges.lag.set(lag as i64);
        self.inner.report_outbox();
        if lag == 0 && cursor.epoch == head.epoch {
            let set = |is_caught_up: &mut bool| !std::mem::replace(is_caught_up, true);
            self.inner.caught_up.send_if_modified(set);
            self.publish_lost_purges_again();
            self.adopt_lost_purges();
        }
    }

    /// Publishes purges of other nodes that came as wake-ups and that the stream has not brought for long: Redis
    /// has lost them, and the nodes that ordered them may be gone.
    fn adopt_lost_purges(&self) {
        let jitter = Duration::from_millis(random_u64() % ADOPT_JITTER_MS);
        let adopted = self.inner.purges.adopt_unread(ADOPT_AFTER + jitter);
        if adopted > 0 {
            tracing::warn!(
                purges = adopted,
                "purge bus: purges of other nodes came as wake-ups and are missing in the purge stream; publishing them"
            );
            self.inner.recorder.add(Metric::BusPurgesLost, adopted as u64);
            self.inner.publish_progress().restart();
            self.inner.outbox_changed.notify_one();
        }
    }

    /// Called when this node has read up to the head of the last heartbeat. Redis had confirmed some local
    /// purges before that heartbeat: those that were not read back were lost, and no other entry took
    /// their place, so that no gap reveals it.
    fn publish_lost_purges_again(&mut self) {
        let Some(confirmed) = self.confirmed.take() else { return };
        let lost = self.inner.publish_progress().restart_if_lost(confirmed);
        if lost > 0 {
            self.inner.recorder.add(Metric::BusPurgesLost, lost as u64);
            tracing::warn!(
                purges = lost,
                "purge bus: Redis has confirmed purges of this node and lost them; publishing them again"
            );
            self.inner.outbox_changed.notify_one();
        }
    }
}

/// Index of the read connection in [`crate::metrics::BUS_CONNECTIONS`].
const READ_LABEL: usize = 0;
/// The first node to order the fence spares the others.
const FENCE_JITTER_MS: u64 = 2000;
/// Pause until a node orders the fence again that it has not read.
const FENCE_AGAIN: Duration = Duration::from_secs(60);
/// A wake-up whose purge is not in the stream after this time is published by this node.
const ADOPT_AFTER: Duration = Duration::from_secs(60);
/// Spreads that over the nodes of a fleet: the first one's entry spares the others.
const ADOPT_JITTER_MS: u64 = 30_000;
/// Pause between attempts to write the purge log.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// One of this many failed attempts is logged.
const RETRIES_PER_LOG_LINE: u32 = 60;
