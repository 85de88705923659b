//! The commands of the node table in Redis. A heartbeat is one script: it writes this node's row, finds the
//! nodes that have missed heartbeats, and returns the rows that have changed since the reader's version, so
//! that its cost does not grow with the number of nodes.
//!
//! ```text
//! nodes     hash    name → MS HEARTBEAT      written at each heartbeat, by every build
//! members   hash    name → ANNOUNCEMENT      written when it changes
//! beats     zset    name → MS                nodes that have not missed three heartbeats
//! changes   zset    name → VERSION           also those that have left
//! state     hash    table: the last version; beat: the last heartbeat of anybody, MS; quiet_until: MS;
//!                   scan: when rows of the build before were looked for, MS
//! ```
//!
//! All times are by the Redis clock.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{Cmd, RedisResult};

use super::connection::{RedisConnection, new_epoch, parse_id, sha1};
use super::record::StreamHead;
use crate::fleet::{AbsentNode, Announcement, Heartbeat, MemberRow, TablePage};

/// The row that a node writes at a heartbeat.
pub(super) struct OwnRow<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Its heartbeat.
    pub heartbeat: &'a Heartbeat,
    /// Its announcement.
    pub announcement: &'a Announcement,
}

/// When a node without heartbeats is out.
#[derive(Clone, Copy, Debug)]
pub(super) struct BeatLimits {
    /// Age of its last heartbeat.
    pub missed_after: Duration,
    /// If nobody has sent a heartbeat for this long, Redis was away …
    pub quiet_after: Duration,
    /// … and nobody is out before this much time has passed, so that all can connect again.
    pub quiet_for: Duration,
}

/// The reply of Redis to a heartbeat.
pub(super) struct HeartbeatReply {
    /// The stream's last entry.
    pub head: StreamHead,
    /// The heartbeat that this one replaced: of this node, or of another node with its name.
    pub previous: Heartbeat,
    /// The rows of the node table that have changed.
    pub page: TablePage,
    /// Time from the heartbeat's arrival until the first node will be out, unless that one sends a heartbeat before.
    pub next_out: Duration,
}

/// The reply of the script.
pub(super) type RawReply = (String, u64, String, u64, String, u64, Vec<RawRow>, u64);
/// Name, version, heartbeat, announcement, and whether it has not missed three heartbeats.
type RawRow = (String, u64, String, String, bool);

impl HeartbeatReply {
    /// Reads the reply to a heartbeat that asked for rows above the version `since`.
    pub(super) fn read(since: u64, reply: RawReply) -> RedisResult<Self> {
        let (epoch, number, id, now_ms, previous, version, rows, next_out_ms) = reply;
        let is_last = rows.len() < PAGE_ROWS;
        let row = |(name, version, heartbeat, announcement, is_live): RawRow| MemberRow {
            name: name.into(),
            version,
            heartbeat: (!heartbeat.is_empty()).then(|| parse_heartbeat(&heartbeat)),
            announcement: Announcement::parse(&announcement),
            is_live,
        };
        Ok(Self {
            head: StreamHead { epoch, number, id: parse_id(&id)? },
            previous: parse_heartbeat(&previous).1,
            page: TablePage {
                since,
                version,
                now_ms,
                rows: rows.into_iter().map(row).collect(),
                is_last,
            },
            next_out: Duration::from_millis(next_out_ms),
        })
    }
}

/// A node's last heartbeat, with its age by the Redis clock.
#[derive(Clone, Debug)]
pub(crate) struct HeartbeatAge {
    /// The heartbeat.
    pub heartbeat: Heartbeat,
    /// Time since then.
    pub age: Duration,
}

/// The last heartbeats of the fleet, by node name.
pub(crate) type HeartbeatAges = BTreeMap<String, HeartbeatAge>;

impl RedisConnection {
    /// Stores this node's row, and reads the stream's head and a page of the rows that have changed since
    /// `version`. [`NO_ROWS`]: none.
    pub(super) async fn exchange_heartbeat(
        &mut self,
        own: &OwnRow<'_>,
        limits: BeatLimits,
        version: u64,
    ) -> RedisResult<HeartbeatReply> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(sha1(HEARTBEAT));
        self.add_heartbeat(&mut command, own, limits, version);
        HeartbeatReply::read(version, command.query_async(self).await?)
    }

    /// Adds the keys and arguments of the script.
    pub(super) fn add_heartbeat(
        &self,
        command: &mut Cmd,
        own: &OwnRow<'_>,
        limits: BeatLimits,
        version: u64,
    ) {
        let keys = &self.keys;
        command.arg(5).arg(&keys.state).arg(&keys.nodes).arg(&keys.members);
        command.arg(&keys.beats).arg(&keys.changes);
        command.arg(new_epoch()).arg(own.name);
        command.arg(own.heartbeat.to_text()).arg(own.announcement.to_text());
        command.arg(version).arg(PAGE_ROWS);
        for limit in [limits.missed_after, limits.quiet_after, limits.quiet_for] {
            command.arg(limit.as_millis() as u64);
        }
    }

    /// Removes a node from the fleet.
    pub(super) async fn remove_node(&mut self, name: &str) -> RedisResult<()> {
        self.remove_if(name, "").await
    }

    /// Removes an absent node, unless it has sent a heartbeat since.
    pub(super) async fn remove_absent_node(&mut self, node: &AbsentNode) -> RedisResult<()> {
        self.remove_if(&node.name, &node.at_ms.to_string()).await
    }

    async fn remove_if(&mut self, name: &str, last_heartbeat: &str) -> RedisResult<()> {
        let mut command = redis::cmd("EVALSHA");
        let keys = &self.keys;
        command.arg(sha1(LEAVE)).arg(5).arg(&keys.state).arg(&keys.nodes).arg(&keys.members);
        command.arg(&keys.beats).arg(&keys.changes).arg(name).arg(last_heartbeat);
        command.arg(TOMBSTONES_MAX).exec_async(self).await
    }

    /// Reads the last heartbeats of all nodes, by name. Its cost grows with the number of nodes.
    pub(super) async fn read_heartbeats(&mut self) -> RedisResult<HeartbeatAges> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME").cmd("HGETALL").arg(&self.keys.nodes);
        type Reply = ((u64, u64), Vec<(String, String)>);
        let ((seconds, micros), rows): Reply = pipeline.query_async(self).await?;
        let now_ms = seconds * 1000 + micros / 1000;
        let aged = |(name, row): (String, String)| {
            let (at_ms, heartbeat) = parse_heartbeat(&row);
            let age = Duration::from_millis(now_ms.saturating_sub(at_ms));
            (name, HeartbeatAge { heartbeat, age })
        };
        Ok(rows.into_iter().map(aged).collect())
    }
}

/// Parses `MILLISECONDS-SINCE-1970 HEARTBEAT`.
fn parse_heartbeat(text: &str) -> (u64, Heartbeat) {
    let (at_ms, heartbeat) = text.split_once(' ').unwrap_or((text, ""));
    (at_ms.parse().unwrap_or_default(), Heartbeat::parse(heartbeat))
}

/// A version that no table reaches: the caller wants no rows.
pub(super) const NO_ROWS: u64 = 1 << 53;
/// Rows that a heartbeat returns: less than half a millisecond of Redis, so that purges need not wait.
const PAGE_ROWS: usize = 256;
/// Names of nodes that have left which the table keeps for readers of an older version. A reader that
/// misses one finds the node gone when it reads the whole table again.
const TOMBSTONES_MAX: usize = 1024;

/// Stores a row and returns the changes; see [`RedisConnection::exchange_heartbeat`].
pub(super) const HEARTBEAT: &str = "\
local state, nodes, members, beats, changes = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local name, announcement, known, page = ARGV[2], ARGV[4], ARGV[5], ARGV[6]
local missed, quiet_after, quiet_for = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local fields = redis.call('HMGET', state, 'epoch', 'number', 'id', 'table', 'beat', 'quiet_until', 'scan')
local epoch, version, beat = fields[1], tonumber(fields[4] or '0'), tonumber(fields[5] or '0')
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', state, 'epoch', epoch)
end
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
local function changed(node)
  version = version + 1
  redis.call('ZADD', changes, version, node)
end
local before = redis.call('HGET', nodes, name) or ''
redis.call('HSET', nodes, name, string.format('%.0f', now) .. ' ' .. ARGV[3])
if beat > now + quiet_after then
  for _, node in ipairs(redis.call('ZRANGE', beats, 0, -1)) do redis.call('ZADD', beats, now, node) end
end
local is_new = redis.call('ZADD', beats, now, name) == 1
if redis.call('HGET', members, name) ~= announcement then
  redis.call('HSET', members, name, announcement)
  changed(name)
elseif is_new then
  changed(name)
end
local quiet_until = math.min(tonumber(fields[6] or '0'), now + quiet_for)
if now - beat > quiet_after then quiet_until = now + quiet_for end
if now >= quiet_until then
  local late = redis.call('ZRANGEBYSCORE', beats, '-inf', now - missed - 1, 'LIMIT', 0, 64)
  for _, node in ipairs(late) do
    redis.call('ZREM', beats, node)
    changed(node)
  end
end
local oldest = tonumber(redis.call('ZRANGE', beats, 0, 0, 'WITHSCORES')[2])
local next_out = math.max(oldest + missed + 1, quiet_until, now) - now
local scan = tonumber(fields[7] or '0')
if math.abs(now - scan) >= 1000 and redis.call('HLEN', nodes) > redis.call('HLEN', members) then
  scan = now
  local rows = redis.call('HGETALL', nodes)
  for at = 1, #rows, 2 do
    local node, row = rows[at], rows[at + 1]
    if redis.call('HEXISTS', members, node) == 0 then
      local sent = tonumber(string.match(row, '^%d+')) or 0
      local is_live = now - sent <= missed
      local is_first = is_live and redis.call('ZADD', beats, sent, node) == 1
      local is_unknown = not redis.call('ZSCORE', changes, node)
      if is_first or is_unknown or string.find(row, '\"twin\":true', 1, true) then changed(node) end
    end
  end
end
redis.call('HSET', state, 'table', version, 'beat', now, 'quiet_until', quiet_until, 'scan', scan)
local rows = {}
if tonumber(known) < version then
  local list = redis.call('ZRANGEBYSCORE', changes, '(' .. known, '+inf', 'WITHSCORES', 'LIMIT', 0, page)
  for at = 1, #list, 2 do
    local node = list[at]
    local row, text = redis.call('HGET', nodes, node), redis.call('HGET', members, node)
    if text and not row then
      redis.call('HDEL', members, node)
      redis.call('ZREM', beats, node)
    end
    local is_live = redis.call('ZSCORE', beats, node) and 1 or 0
    rows[#rows + 1] = {node, tonumber(list[at + 1]), row or '', text or '', is_live}
  end
end
return {epoch, tonumber(fields[2] or '0'), fields[3] or '0-0', now, before, version, rows, next_out}
";

/// Removes a node, unless it has sent another heartbeat than the one of the given time.
pub(super) const LEAVE: &str = "\
local state, nodes, members, beats, changes = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local name, sent = ARGV[1], ARGV[2]
local row = redis.call('HGET', nodes, name)
if sent ~= '' and row and string.match(row, '^%d+') ~= sent then return 0 end
redis.call('HDEL', nodes, name)
redis.call('HDEL', members, name)
redis.call('ZREM', beats, name)
redis.call('ZADD', changes, redis.call('HINCRBY', state, 'table', 1), name)
if redis.call('ZCARD', changes) - redis.call('HLEN', nodes) > tonumber(ARGV[3]) then
  local gone = 0
  for _, node in ipairs(redis.call('ZRANGE', changes, 0, -1)) do
    if redis.call('HEXISTS', nodes, node) == 0 then
      redis.call('ZREM', changes, node)
      gone = gone + 1
    end
    if gone == 256 then break end
  end
end
return 1
";
