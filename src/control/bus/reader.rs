//! Reads the stream, in order and without a gap, on a connection of its own.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::RedisResult;

use super::inner::{Backoff, Inner};
use super::link::{Beat, Entry, Link, brief};
use super::record::{Gap, Position, PurgeRecord, StreamHead, follows, reconcile, resume};
use crate::cache::PurgeScope;
use crate::control::fleet::{
    self, AbsentNodes, FleetMember, Heartbeat, TwinWatch, UNNAMED_MEMBERS,
};
use crate::metrics::Metric;
use crate::planted::{self, Bug};
use crate::purge::PurgeError;

/// Until the runtime ends.
pub(super) async fn run(inner: Arc<Inner>) {
    let kept = inner.purges.cursor();
    let mut reader = Reader {
        position: kept.and_then(|kept| Position::parse(&kept)),
        head: None,
        members_kept_until: None,
        unnamed_until: None,
        absent: AbsentNodes::default(),
        read_count: READ_COUNT_MIN,
        twin: TwinWatch::default(),
        inner,
    };
    let mut backoff = Backoff::new(reader.inner.settings.reconnect_pause_max);
    let mut was_told = false;
    loop {
        let Err(error) = reader.session(&mut backoff, &mut was_told).await;
        reader.inner.gauges.connected.set(0);
        reader.inner.recorder.count_labelled(Metric::BusDisconnects, READ);
        if !std::mem::replace(&mut was_told, true) {
            tracing::warn!(error = brief(&error), "purge bus: the stream can't be read");
        }
        backoff.pause().await;
    }
}

struct Reader {
    inner: Arc<Inner>,
    position: Option<Position>,
    /// As of the last heartbeat.
    head: Option<StreamHead>,
    /// Until then a node that Redis does not name is not gone: Redis has lost what it knew, and
    /// the others have yet to say again that they are there.
    members_kept_until: Option<Instant>,
    /// Until then there may be members that this node has never heard of: it started when Redis had
    /// lost what it knew.
    unnamed_until: Option<Instant>,
    absent: AbsentNodes,
    /// Entries of one read.
    read_count: usize,
    twin: TwinWatch,
}

impl Reader {
    async fn session(
        &mut self,
        backoff: &mut Backoff,
        was_told: &mut bool,
    ) -> RedisResult<Infallible> {
        let Some(connector) = &self.inner.connector else { std::future::pending().await };
        let block = self.inner.settings.heartbeat;
        let mut link = connector.connect(block, None).await?;
        link.load_scripts().await?;
        self.inner.gauges.connected.set(1);
        let mut beat_at = tokio::time::Instant::now();
        loop {
            if tokio::time::Instant::now() >= beat_at {
                self.beat(&mut link).await?;
                beat_at = tokio::time::Instant::now() + block;
            }
            if planted::has(Bug::StreamUnread) {
                tokio::time::sleep(block).await;
                continue;
            }
            let Some(position) = &self.position else { continue };
            let until_beat = beat_at.saturating_duration_since(tokio::time::Instant::now());
            let entries = link.read(position.id, self.read_count, until_beat).await?;
            self.inner.heard();
            self.read_count = next_count(&entries, self.read_count);
            // Not before: Redis may take heartbeats and refuse this.
            if std::mem::take(was_told) {
                tracing::info!("purge bus: the stream is read again");
            }
            backoff.reset();
            match entries.is_empty() {
                true => self.found_nothing().await,
                false => self.apply(&mut link, entries).await?,
            }
            self.note_progress();
        }
    }

    /// Says that this node is there, and looks whether the stream still is what it was.
    async fn beat(&mut self, link: &mut Link) -> RedisResult<()> {
        let mut beat = self.say(link).await?;
        if self.note_twin(&beat.before) {
            // At once: until it is said, the fleet takes two nodes for one.
            beat = self.say(link).await?;
        }
        let found = reconcile(self.position.as_ref(), &beat.head);
        // Redis has lost what it knew. A new node has known nobody.
        if matches!(found, Err(Gap::Backwards | Gap::Replaced)) {
            let until = Some(self.inner.clock.instant() + self.kept_after_loss());
            self.members_kept_until = until;
            if self.inner.members().is_empty() {
                self.unnamed_until = until;
            }
        }
        self.note_members(&beat);
        let now = self.inner.clock.instant();
        let (kept, patience) = (self.inner.settings.member_kept, self.kept_after_loss());
        for node in self.absent.gone(&beat.nodes, kept, patience, now) {
            link.leave(&node).await?;
        }
        self.inner.heard();
        if let Err(gap) = found {
            self.bridge(link, gap, &beat.head).await?;
        } else {
            self.head = Some(beat.head);
        }
        self.note_progress();
        Ok(())
    }

    async fn say(&self, link: &mut Link) -> RedisResult<Beat> {
        let inner = &self.inner;
        let heartbeat = Heartbeat {
            region: inner.identity.region.clone(),
            instance: inner.instance.clone(),
            epoch: self.position.as_ref().map(|position| position.epoch.clone()),
            number: self.position.as_ref().and_then(|position| position.number),
            has_twin: self.twin.is_there(),
        };
        link.beat(&inner.identity.name, &heartbeat).await
    }

    /// A node that has not come back to Redis within `silence_max` mistrusts its own cache by
    /// then; until then no purge is complete without it.
    fn kept_after_loss(&self) -> Duration {
        let settings = &self.inner.settings;
        settings.silence_max.max(BEATS_AFTER_LOSS * settings.heartbeat)
    }

    /// Two nodes of one name leave one receipt between them, which the fleet must not take for both.
    /// True when the node has got a twin or has lost it.
    fn note_twin(&mut self, before: &Heartbeat) -> bool {
        let inner = &self.inner;
        let kept = BEATS_OF_A_TWIN * inner.settings.heartbeat;
        let has_changed = self.twin.note(before, &inner.instance, kept, inner.clock.instant());
        if has_changed && self.twin.is_there() {
            tracing::error!(
                name = inner.identity.name,
                "purge bus: another node has this one's name (node.name, --name): wait=all can't be complete"
            );
        }
        has_changed
    }

    fn note_members(&self, beat: &Beat) {
        let now = self.inner.clock.instant();
        let mut members = self.inner.members();
        if self.members_kept_until.is_none_or(|until| until < now) {
            members.clear();
        }
        fleet::note_heartbeats(&mut members, &beat.nodes, now);
        self.inner.gauges.members.set(members.len() as i64);
        if self.unnamed_until.is_some_and(|until| now < until) {
            members.insert(UNNAMED_MEMBERS.to_owned(), FleetMember::unnamed(now));
        }
        drop(members);
        self.inner.all_changed();
    }

    /// Applies entries in their order; each batch and the place behind it are durable together.
    async fn apply(&mut self, link: &mut Link, entries: Vec<Entry>) -> RedisResult<()> {
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(position) = &self.position else { return Ok(()) };
            if let Err(gap) = follows(position, &entry.epoch, entry.number, entry.previous) {
                self.apply_all(std::mem::take(&mut records)).await;
                let before = entry.number.saturating_sub(1);
                let head =
                    StreamHead { epoch: entry.epoch.clone(), number: before, id: position.id };
                self.bridge(link, gap, &head).await?;
            }
            let at =
                Position { epoch: entry.epoch.clone(), number: Some(entry.number), id: entry.id };
            match entry.record {
                Some(_) if entry.number % 5 == 0 && planted::has(Bug::StreamEntryDropped) => {
                    self.position = Some(at);
                }
                Some(record) => {
                    self.position = Some(at);
                    let (epoch, number) = (&entry.epoch, entry.number);
                    let mut ledger = self.inner.ledger();
                    ledger.note(&record);
                    ledger.placed(&record.id, epoch, number);
                    records.push(record);
                }
                None => {
                    self.apply_all(std::mem::take(&mut records)).await;
                    self.position = Some(at);
                    self.purge_softly(Gap::Unreadable).await;
                }
            }
        }
        self.apply_all(records).await;
        Ok(())
    }

    /// Until it is durable: the place must not go beyond what would be lost by a crash.
    async fn apply_all(&self, records: Vec<PurgeRecord>) {
        let Some(position) = &self.position else { return };
        if records.is_empty() {
            return;
        }
        let cursor = position.to_bytes();
        let mut tries = 0;
        while let Err(error) = self.make_durable(&records, cursor.clone()).await {
            if tries % RETRIES_TOLD == 0 {
                tracing::error!(%error, "purge bus: purges are in force, but not durable");
            }
            tries += 1;
            tokio::time::sleep(RETRY).await;
        }
        let own = records.iter().filter(|record| record.node == self.inner.identity.name);
        let sent = self.inner.publishing().read_back(own.map(|record| &*record.id));
        if !sent.is_empty() {
            let inner = self.inner.clone();
            tokio::spawn(async move {
                // What stays in the outbox is published once more after a restart.
                let _ = inner.purges.sent(&sent).await;
                inner.note_outbox();
            });
        }
    }

    async fn make_durable(&self, records: &[PurgeRecord], cursor: Bytes) -> Result<(), PurgeError> {
        let in_force = self.inner.put_in_force(records, Some(cursor)).await?;
        self.inner.make_durable(records, in_force).await
    }

    /// Nothing came: all that there was before the last heartbeat must have been read.
    async fn found_nothing(&mut self) {
        let (Some(position), Some(head)) = (&mut self.position, &self.head) else { return };
        if position.number.is_some_and(|number| number >= head.number) {
            return;
        }
        let was_known = position.number.is_some();
        *position = Position { epoch: head.epoch.clone(), number: Some(head.number), id: head.id };
        if was_known {
            self.purge_softly(Gap::Trimmed).await;
        }
    }

    /// Over a gap: everything is purged softly, what can still be read is read.
    async fn bridge(&mut self, link: &mut Link, gap: Gap, head: &StreamHead) -> RedisResult<()> {
        let mut head = head.clone();
        if gap.concerns_all() {
            head.epoch = link.rename_epoch(&head.epoch).await?;
        }
        let next = match gap {
            // In the midst of reading: this entry and what follows it are there.
            Gap::Trimmed => {
                self.position.clone().map(|position| Position { number: None, ..position })
            }
            _ => Some(resume(self.position.as_ref(), &head)),
        };
        self.position = next;
        self.head = Some(head);
        self.purge_softly(gap).await;
        Ok(())
    }

    async fn purge_softly(&self, gap: Gap) {
        self.inner.recorder.count_labelled(Metric::BusGaps, gap as usize);
        match gap {
            Gap::New => tracing::info!("purge bus: a new place in the stream"),
            _ => tracing::error!(
                gap = gap.as_str(),
                position = ?self.position,
                "purge bus: purges may have been missed, everything is validated before use"
            ),
        }
        let cursor = self.position.as_ref().map(Position::to_bytes);
        while let Err(error) = self.inner.purge_softly(vec![PurgeScope::All], cursor.clone()).await
        {
            tracing::error!(%error, "purge bus: everything is validated, but not durably so");
            tokio::time::sleep(RETRY).await;
        }
        if gap.lost_entries() {
            // What this node has published and not read back may be among them.
            self.inner.publishing().again();
            self.inner.outgoing.notify_one();
        }
    }

    fn note_progress(&self) {
        let (Some(position), Some(head)) = (&self.position, &self.head) else { return };
        let Some(number) = position.number else { return };
        let lag = head.number.saturating_sub(number);
        self.inner.gauges.lag.set(lag as i64);
        self.inner.note_outbox();
        if lag == 0 && position.epoch == head.epoch {
            self.inner.caught_up.send_if_modified(|is_up| !std::mem::replace(is_up, true));
        }
    }
}

/// Redis knows how many entries are asked for, not how long they are: as many as should have a few
/// megabytes together, going by the last ones.
fn next_count(entries: &[Entry], count: usize) -> usize {
    let Some(longest) = entries.iter().map(|entry| entry.record_bytes).max() else { return count };
    let fits = READ_BYTES / longest.max(1);
    fits.clamp(READ_COUNT_MIN, (2 * count).min(READ_COUNT_MAX))
}

impl Inner {
    pub(super) fn note_outbox(&self) {
        self.gauges.outbox.set(self.purges.outbox_len() as i64);
    }
}

/// In the order of [`crate::metrics::BUS_CONNECTIONS`].
const READ: usize = 0;
const READ_BYTES: usize = 8 << 20;
const READ_COUNT_MIN: usize = 8;
/// With one write of the purge log for each read, this is what a slow disk lets through.
const READ_COUNT_MAX: usize = 512;
/// Each meets the other once a heartbeat, or misses it where one beats late.
const BEATS_OF_A_TWIN: u32 = 4;
/// Before the purge log is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Of the tries to write the purge log, one so often is told.
const RETRIES_TOLD: u32 = 60;
/// Every node beats once a heartbeat; one may be late.
const BEATS_AFTER_LOSS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_entries_are_read_in_smaller_parts() {
        let entries = |record_bytes| {
            let epoch = String::new();
            [Entry {
                id: Default::default(),
                epoch,
                number: 1,
                previous: None,
                record: None,
                record_bytes,
            }]
        };
        assert_eq!(next_count(&entries(300), 8), 16, "it grows by and by");
        assert_eq!(next_count(&entries(300), 512), 512);
        assert_eq!(next_count(&[], 64), 64);
        assert_eq!(next_count(&entries(100 << 10), 512), 81);
        assert_eq!(next_count(&entries(4 << 20), 512), 8);
    }
}
