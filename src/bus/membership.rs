//! This node as a member of the fleet: sends its heartbeats, keeps its copy of the node table and publishes
//! it to the other rooms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisResult;

use super::connection::RedisConnection;
use super::heartbeats::{BeatLimits, HeartbeatReply, OwnRow};
use super::inner::{Inner, TableState};
use super::record::StreamCursor;
use super::settings::Settings;
use crate::fleet::{
    AbsenceLimits, AbsentNodes, DuplicateNameDetector, Heartbeat, LossRecovery, TableReader,
};
use crate::metrics::Metric;
use crate::random::random_u64;

/// The member that the reader's connection keeps alive.
pub(super) struct Membership {
    inner: Arc<Inner>,
    table: TableReader,
    absent: AbsentNodes,
    duplicates: DuplicateNameDetector,
    /// Set if this node started after Redis lost its data: until this time the fleet may have
    /// members that this node does not know.
    unknown_members_until: Option<Instant>,
    /// When the whole table is read again.
    full_read_at: Instant,
}

impl Membership {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self {
            table: TableReader::default(),
            absent: AbsentNodes::default(),
            duplicates: DuplicateNameDetector::default(),
            unknown_members_until: None,
            full_read_at: inner.clock.instant(),
            inner,
        }
    }

    /// Called for a new connection: another Redis may answer, so the whole table is read again soon. The larger the
    /// fleet, the longer its nodes wait: most often all of them have lost their connections at once, and together they
    /// read as many rows as the square of their number.
    pub(super) fn begin_session(&mut self) {
        let spread_ms = self.table.len() as u64 * READ_SPREAD_MS_PER_MEMBER;
        let pause_ms = random_u64() % (spread_ms + 1);
        let read_at = self.inner.clock.instant() + Duration::from_millis(pause_ms);
        self.full_read_at = self.full_read_at.min(read_at);
    }

    /// Sends a heartbeat. Pass the reply to [`Self::apply`] once it is known whether Redis has lost data.
    pub(super) async fn exchange(
        &mut self,
        connection: &mut RedisConnection,
        cursor: Option<&StreamCursor>,
    ) -> RedisResult<HeartbeatReply> {
        let now = self.inner.clock.instant();
        if now >= self.full_read_at {
            let jitter = Duration::from_millis(random_u64() % FULL_READ_JITTER_MS);
            self.full_read_at = now + FULL_READ_EVERY + jitter;
            self.table.restart();
        }
        let reply = self.send(connection, cursor).await?;
        if self.detect_duplicate_name(&reply.previous) {
            // Send a second heartbeat at once, so that the other nodes learn of the duplicate name too.
            return self.send(connection, cursor).await;
        }
        Ok(reply)
    }

    async fn send(
        &self,
        connection: &mut RedisConnection,
        cursor: Option<&StreamCursor>,
    ) -> RedisResult<HeartbeatReply> {
        let inner = &self.inner;
        let has_duplicate_name = self.duplicates.is_duplicate();
        let announcement = {
            let mut announcement = inner.announcement();
            announcement.has_duplicate_name = has_duplicate_name;
            announcement.clone()
        };
        let heartbeat = Heartbeat {
            region: announcement.region.to_string(),
            instance: inner.instance.clone(),
            epoch: cursor.map(|cursor| cursor.epoch.clone()),
            number: cursor.and_then(StreamCursor::position),
            has_duplicate_name,
        };
        inner.last_heartbeat().clone_from(&heartbeat);
        let own = OwnRow { name: &inner.name, heartbeat: &heartbeat, announcement: &announcement };
        let limits = beat_limits(&inner.settings);
        connection.exchange_heartbeat(&own, limits, self.table.version()).await
    }

    /// Redis has lost its data: keeps the known members. A node that has just started knows none.
    pub(super) fn keep_members_after_loss(&mut self) {
        let now = self.inner.clock.instant();
        let settings = &self.inner.settings;
        let recovery = LossRecovery {
            ready_until: now + beat_limits(settings).quiet_for,
            member_until: now + member_lifetime_after_loss(settings),
        };
        if self.table.is_empty() {
            self.unknown_members_until = Some(recovery.member_until);
        }
        self.table.restart_after_loss(recovery);
    }

    /// Applies the rows of a heartbeat's reply and reads the pages after it. Removes members that were absent
    /// for too long, and publishes the table if it has changed.
    pub(super) async fn apply(
        &mut self,
        connection: &mut RedisConnection,
        cursor: Option<&StreamCursor>,
        reply: HeartbeatReply,
    ) -> RedisResult<()> {
        let mut page = reply.page;
        let now = self.inner.clock.instant();
        let now_ms = page.now_ms;
        let mut is_changed = self.table.end_recovery(now);
        for _ in 0..PAGES_MAX {
            self.inner.recorder.add(Metric::FleetRowsRead, page.rows.len() as u64);
            is_changed |= self.table.apply(page, now);
            if self.table.is_up_to_date() {
                break;
            }
            page = self.send(connection, cursor).await?.page;
        }
        let limits = AbsenceLimits {
            lifetime: self.inner.settings.member_kept,
            confirm_after: member_lifetime_after_loss(&self.inner.settings),
        };
        for node in self.absent.take_expired(self.table.absent(), limits, now_ms, now) {
            connection.remove_absent_node(&node).await?;
        }
        let is_incomplete = self.unknown_members_until.is_some_and(|until| now < until);
        self.inner.publish_table(TableState { table: &self.table, is_incomplete, is_changed });
        Ok(())
    }

    /// Detects another node with this node's name. Their receipts overwrite each other, so a purge
    /// cannot be confirmed by both. Returns whether the state changed.
    fn detect_duplicate_name(&mut self, previous: &Heartbeat) -> bool {
        let inner = &self.inner;
        let lifetime = DUPLICATE_NAME_HEARTBEATS * inner.settings.heartbeat;
        let now = inner.clock.instant();
        let has_changed = self.duplicates.observe(previous, &inner.instance, lifetime, now);
        if has_changed && self.duplicates.is_duplicate() {
            tracing::error!(
                name = inner.name,
                "purge bus: another node uses the name of this node: set a unique node.name (or --name); until then purges with wait=all do not complete"
            );
        }
        has_changed
    }
}

/// When nodes without heartbeats are out.
pub(super) fn beat_limits(settings: &Settings) -> BeatLimits {
    let missed_after = MISSED_HEARTBEATS * settings.heartbeat;
    BeatLimits {
        missed_after,
        quiet_after: QUIET_HEARTBEATS * settings.heartbeat,
        quiet_for: missed_after + settings.reconnect_pause_max,
    }
}

/// How long members are kept after Redis lost its data. A node without contact for `silence_max`
/// validates its cache, so later purges are complete without it.
fn member_lifetime_after_loss(settings: &Settings) -> Duration {
    settings.silence_max.max(HEARTBEATS_AFTER_LOSS * settings.heartbeat)
}

/// A node that has missed this many heartbeats is out.
const MISSED_HEARTBEATS: u32 = 3;
/// If nobody has sent one for this many heartbeats, Redis was away.
const QUIET_HEARTBEATS: u32 = 2;
/// Members are kept for at least this many heartbeats after Redis lost its data.
const HEARTBEATS_AFTER_LOSS: u32 = 3;
/// A duplicate name is reported until it has not been seen for this many heartbeats.
const DUPLICATE_NAME_HEARTBEATS: u32 = 4;
/// A replica that lost writes and was promoted has other rows under versions that were read before. Most
/// often its connections are new; otherwise the nodes find out by reading the whole table now and then.
const FULL_READ_EVERY: Duration = Duration::from_secs(300);
const FULL_READ_JITTER_MS: u64 = 60_000;
/// A row takes 2 to 8 µs of Redis' command thread: 1,000 nodes that connect at once take 2 to 8 s of it, within a minute.
const READ_SPREAD_MS_PER_MEMBER: u64 = 60;
/// Pages that are read after one heartbeat: rows of 16,384 nodes.
const PAGES_MAX: usize = 64;
