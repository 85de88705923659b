//! Reads the stream, in order and without a gap, on a connection of its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::RedisResult;
use serde_json::{Value, json};

use super::link::{Beat, Entry, Heard, Link, brief};
use super::record::{Gap, Head, Position, Record, follows, reconcile, resume};
use super::{Backoff, Inner, Member};
use crate::cache::PurgeScope;
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
        strangers_until: None,
        absent: Absent::default(),
        read_count: READ_COUNT_MIN,
        has_beaten: false,
        twin_until: None,
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
    head: Option<Head>,
    /// Until then a node that Redis does not name is not gone: Redis has lost what it knew, and
    /// the others have yet to say again that they are there.
    members_kept_until: Option<Instant>,
    /// Until then there may be members that this node has never heard of: it started when Redis had
    /// lost what it knew.
    strangers_until: Option<Instant>,
    absent: Absent,
    /// Entries of one read.
    read_count: usize,
    /// Whether this process has beaten before; what it finds under its name is its own since.
    has_beaten: bool,
    /// Another node uses this one's name. It is not met at every heartbeat, and counts until then.
    twin_until: Option<Instant>,
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
                self.strangers_until = until;
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
        let says = json!({
            "region": inner.identity.region,
            "instance": inner.instance,
            "epoch": self.position.as_ref().map(|position| &position.epoch),
            "number": self.position.as_ref().and_then(|position| position.number),
            "twin": self.twin_until.is_some(),
        });
        link.beat(&inner.identity.name, &says.to_string()).await
    }

    /// A node that has not come back to Redis within `silence_max` mistrusts its own cache by
    /// then; until then no purge is complete without it.
    fn kept_after_loss(&self) -> Duration {
        let settings = &self.inner.settings;
        settings.silence_max.max(BEATS_AFTER_LOSS * settings.heartbeat)
    }

    /// Two nodes of one name have one receipt between them: the fleet must not take it for both.
    /// True when this is news.
    fn note_twin(&mut self, before: &str) -> bool {
        let before: Value = serde_json::from_str(before).unwrap_or_default();
        let other = before["instance"].as_str().unwrap_or_default();
        let is_new = !std::mem::replace(&mut self.has_beaten, true);
        let had_twin = self.twin_until.is_some();
        let now = self.inner.clock.instant();
        if !is_new && !other.is_empty() && other != self.inner.instance {
            self.twin_until = Some(now + BEATS_OF_A_TWIN * self.inner.settings.heartbeat);
        }
        self.twin_until = self.twin_until.filter(|until| now < *until);
        if !had_twin && self.twin_until.is_some() {
            tracing::error!(
                name = self.inner.identity.name,
                "purge bus: another node has this one's name (node.name, --name): wait=all can't be complete"
            );
        }
        had_twin != self.twin_until.is_some()
    }

    fn note_members(&self, beat: &Beat) {
        let now = self.inner.clock.instant();
        let members = beat.nodes.iter().flat_map(|Heard { node: name, ago_ms, says, .. }| {
            let says: Value = serde_json::from_str(says).unwrap_or_default();
            let text = |field: &str| says[field].as_str().unwrap_or_default().to_owned();
            let heard = now.checked_sub(Duration::from_millis(*ago_ms)).unwrap_or(now);
            let place = says["number"].as_u64().map(|number| (text("epoch"), number));
            let member = Member { region: text("region"), heard, place };
            let twin = says["twin"].as_bool().unwrap_or_default();
            let twin =
                twin.then(|| (format!("{name}{TWIN}"), Member { place: None, ..member.clone() }));
            std::iter::once((name.clone(), member)).chain(twin)
        });
        let mut known = self.inner.members();
        if self.members_kept_until.is_none_or(|until| until < now) {
            known.clear();
        }
        // A heartbeat that a killed node had sent may come after the first of its successor, which
        // then looks like two nodes, for one heartbeat.
        known.retain(|name, _| !name.ends_with(TWIN) && name != STRANGERS);
        known.extend(members);
        self.inner.gauges.members.set(known.len() as i64);
        if self.strangers_until.is_some_and(|until| now < until) {
            let strangers = Member { region: String::new(), heard: now, place: None };
            known.insert(STRANGERS.to_owned(), strangers);
        }
        drop(known);
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
                let head = Head { epoch: entry.epoch.clone(), number: before, id: position.id };
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
    async fn apply_all(&self, records: Vec<Record>) {
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

    async fn make_durable(&self, records: &[Record], cursor: Bytes) -> Result<(), PurgeError> {
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
    async fn bridge(&mut self, link: &mut Link, gap: Gap, head: &Head) -> RedisResult<()> {
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

/// Nodes that Redis has not heard for longer than members are kept.
#[derive(Debug, Default)]
struct Absent {
    /// By name: when Redis heard it last, and since when that is known here.
    nodes: BTreeMap<String, (u64, Instant)>,
}

impl Absent {
    /// The nodes that are members no more: absent for `kept` by Redis' clock, and silent for
    /// `patience` by this node's own since that was noticed. Redis' clock alone may jump, and then
    /// everybody seems to be absent.
    fn gone(
        &mut self,
        heard: &[Heard],
        kept: Duration,
        patience: Duration,
        now: Instant,
    ) -> Vec<String> {
        let mut gone = Vec::new();
        let mut nodes = BTreeMap::new();
        for Heard { node, at_ms, .. } in
            heard.iter().filter(|heard| u128::from(heard.ago_ms) > kept.as_millis())
        {
            let known = self.nodes.get(node).filter(|(known, _)| known == at_ms);
            let since = known.map_or(now, |(_, since)| *since);
            match now.saturating_duration_since(since) >= patience {
                true => gone.push(node.clone()),
                false => drop(nodes.insert(node.clone(), (*at_ms, since))),
            }
        }
        self.nodes = nodes;
        gone
    }
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
/// What a second node of one name is called.
const TWIN: &str = " (another of this name)";
/// What stands for members that a node can't name.
pub(super) const STRANGERS: &str = "(members before Redis lost its data)";
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

    #[test]
    fn who_is_absent_by_one_look_at_redis_clock_is_not_gone() {
        let heard = |at_ms, now_ms: u64| {
            let ago_ms = now_ms.saturating_sub(at_ms);
            [Heard { node: "b".to_owned(), at_ms, ago_ms, says: String::new() }]
        };
        let start = crate::clock::Clock::system().instant();
        let (kept, patience) = (Duration::from_secs(100), Duration::from_secs(60));
        let mut absent = Absent::default();
        let mut gone = |heard: &[Heard], after_s| {
            absent.gone(heard, kept, patience, start + Duration::from_secs(after_s)).len()
        };
        assert_eq!(gone(&heard(1_000, 100_000), 0), 0);
        // The clock jumps: everybody was heard long ago, and then is heard again.
        assert_eq!(gone(&heard(1_000, 900_000), 1), 0);
        assert_eq!(gone(&heard(901_000, 902_000), 2), 0);
        // This one is not.
        assert_eq!(gone(&heard(901_000, 2_000_000), 900), 0);
        assert_eq!(gone(&heard(901_000, 2_059_000), 959), 0);
        assert_eq!(gone(&heard(901_000, 2_060_000), 960), 1);
    }
}
