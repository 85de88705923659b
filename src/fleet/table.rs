//! The table of the fleet's nodes, and how a node keeps its copy up to date.
//!
//! ```text
//! TableReader   version 17 ──▶ rows with a version above 17 ──▶ version 21     each heartbeat
//!               version 0  ──▶ all rows, page by page                          each connect, and now and then
//! NodeTable     what the other rooms see: immutable, published through a watch channel
//! ```
//!
//! A table that was read from its beginning replaces the one before at its end, so that members that are gone
//! vanish then. While nothing is read, nothing changes: losing Redis removes nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::absence::AbsentNode;
use super::announcement::{Announcement, Readiness};
use super::heartbeat::Heartbeat;

/// The nodes of the fleet as this node knows them, sorted by name, with this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeTable {
    members: Vec<FleetMember>,
    /// Whether the fleet may have members that are not in the table: this node has started after Redis had
    /// lost its data.
    pub is_incomplete: bool,
}

/// A node of the fleet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FleetMember {
    /// The node's name, unique in the fleet.
    pub name: Arc<str>,
    /// Whether it takes requests, as the fleet sees it: a node without heartbeats is out whatever it has
    /// announced.
    pub readiness: Readiness,
    /// Its announcement.
    pub announcement: Announcement,
    /// Time of its last heartbeat, if it has missed three.
    pub last_heartbeat: Option<Instant>,
}

/// A row of the table in Redis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemberRow {
    /// The node's name.
    pub name: Arc<str>,
    /// The version of the table that the row's last change made.
    pub version: u64,
    /// Its last heartbeat, and when that was by the Redis clock, in milliseconds since 1970. `None`: the
    /// node has left.
    pub heartbeat: Option<(u64, Heartbeat)>,
    /// `None`: the node runs a build that does not announce itself.
    pub announcement: Option<Announcement>,
    /// Whether it has not missed three heartbeats.
    pub is_live: bool,
}

/// Rows whose version is above the reader's, in the order of their versions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TablePage {
    /// The version that was asked from.
    pub since: u64,
    /// The version of the table in Redis.
    pub version: u64,
    /// The time by the Redis clock, in milliseconds since 1970.
    pub now_ms: u64,
    /// The rows.
    pub rows: Vec<MemberRow>,
    /// Whether there are no more.
    pub is_last: bool,
}

/// Keeps a copy of the table in Redis.
#[derive(Debug, Default)]
pub(crate) struct TableReader {
    members: BTreeMap<Arc<str>, KnownMember>,
    version: u64,
    is_up_to_date: bool,
    /// After Redis lost its data, members without a row are kept for a while, so that they can register
    /// again.
    loss: Option<LossRecovery>,
}

#[derive(Debug)]
struct KnownMember {
    member: FleetMember,
    at_ms: u64,
    /// Whether the table that is being read has it.
    has_row: bool,
}

/// Until when members are kept after a loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossRecovery {
    /// As ready as they were.
    pub ready_until: Instant,
    /// As members.
    pub member_until: Instant,
}

impl NodeTable {
    /// A table of these members.
    pub(crate) fn new(mut members: Vec<FleetMember>) -> Self {
        members.sort_by(|one, other| one.name.cmp(&other.name));
        Self { members, is_incomplete: false }
    }

    /// The table with this member in the place of the one of its name.
    pub(crate) fn with(&self, member: FleetMember) -> Self {
        let others = self.members.iter().filter(|other| other.name != member.name).cloned();
        let members = others.chain([member.clone()]).collect();
        Self { is_incomplete: self.is_incomplete, ..Self::new(members) }
    }

    /// The members, sorted by name.
    pub(crate) fn members(&self) -> &[FleetMember] {
        &self.members
    }

    /// The member with this name.
    pub(crate) fn get(&self, name: &str) -> Option<&FleetMember> {
        let at = self.members.binary_search_by(|member| (*member.name).cmp(name)).ok()?;
        Some(&self.members[at])
    }
}

impl FleetMember {
    /// A member as it announces itself.
    pub(crate) fn new(name: Arc<str>, announcement: Announcement) -> Self {
        Self { name, readiness: announcement.readiness, announcement, last_heartbeat: None }
    }
}

impl TableReader {
    /// The version up to which the table was read.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether the last page was the last one.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.is_up_to_date
    }

    /// Whether no member is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The number of members that are known.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Reads the table from its beginning: another Redis may have answered, with versions of its own.
    pub(crate) fn restart(&mut self) {
        self.version = 0;
        self.is_up_to_date = false;
        self.members.values_mut().for_each(|known| known.has_row = false);
    }

    /// Redis has lost its data: reads the table from its beginning, and keeps the known members.
    pub(crate) fn restart_after_loss(&mut self, loss: LossRecovery) {
        self.loss = Some(loss);
        self.restart();
    }

    /// Takes a page, unless it was asked for before a restart. Returns whether the table has changed.
    pub(crate) fn apply(&mut self, page: TablePage, now: Instant) -> bool {
        if page.since != self.version {
            return false;
        }
        if page.version < self.version {
            self.restart();
            return false;
        }
        let mut is_changed = false;
        for row in page.rows {
            self.version = row.version;
            is_changed |= self.apply_row(row, page.now_ms, now);
        }
        if page.is_last {
            let is_complete = !std::mem::replace(&mut self.is_up_to_date, true);
            self.version = page.version;
            if is_complete && self.loss.is_none() {
                is_changed |= self.remove_members_without_row();
            }
        }
        is_changed
    }

    fn apply_row(&mut self, row: MemberRow, now_ms: u64, now: Instant) -> bool {
        let MemberRow { name, heartbeat, announcement, is_live, .. } = row;
        let Some((at_ms, heartbeat)) = heartbeat else {
            return self.members.remove(&name).is_some();
        };
        let mut announcement =
            announcement.unwrap_or_else(|| Announcement::of_region(&heartbeat.region));
        announcement.has_duplicate_name |= heartbeat.has_duplicate_name;
        let mut member = FleetMember::new(name.clone(), announcement);
        if !is_live {
            member.readiness = Readiness::Out;
            let age = Duration::from_millis(now_ms.saturating_sub(at_ms));
            member.last_heartbeat = Some(now.checked_sub(age).unwrap_or(now));
        }
        let known = KnownMember { member: member.clone(), at_ms, has_row: true };
        let before = self.members.insert(name, known);
        before.is_none_or(|before| before.member != member)
    }

    fn remove_members_without_row(&mut self) -> bool {
        let count = self.members.len();
        self.members.retain(|_, known| known.has_row);
        self.members.len() != count
    }

    /// Ends the recovery from a loss when its time is over. Returns whether the table has changed.
    pub(crate) fn end_recovery(&mut self, now: Instant) -> bool {
        let Some(loss) = self.loss else { return false };
        if now >= loss.member_until {
            self.loss = None;
            return self.is_up_to_date && self.remove_members_without_row();
        }
        let mut is_changed = false;
        if now >= loss.ready_until {
            for known in self.members.values_mut().filter(|known| !known.has_row) {
                let before = std::mem::replace(&mut known.member.readiness, Readiness::Out);
                is_changed |= before != Readiness::Out;
                known.member.last_heartbeat.get_or_insert(now);
            }
        }
        is_changed
    }

    /// The members that have missed heartbeats.
    pub(crate) fn absent(&self) -> impl Iterator<Item = AbsentNode> {
        let is_absent =
            |known: &&KnownMember| known.has_row && known.member.last_heartbeat.is_some();
        let node = |known: &KnownMember| AbsentNode {
            name: known.member.name.clone(),
            at_ms: known.at_ms,
        };
        self.members.values().filter(is_absent).map(node)
    }

    /// The table for the other rooms. This node is in it as it is now, not as the fleet sees it.
    pub(crate) fn table(&self, own: FleetMember) -> NodeTable {
        let others = self.members.values().map(|known| &known.member);
        let others = others.filter(|member| member.name != own.name).cloned();
        NodeTable::new(others.chain([own.clone()]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn row(name: &str, version: u64, is_live: bool) -> MemberRow {
        let announcement = Announcement { software: "1".into(), ..Announcement::of_region("eu") };
        MemberRow {
            name: name.into(),
            version,
            heartbeat: Some((1000, Heartbeat::default())),
            announcement: Some(announcement),
            is_live,
        }
    }

    fn page(since: u64, version: u64, rows: Vec<MemberRow>, is_last: bool) -> TablePage {
        TablePage { since, version, now_ms: 5000, rows, is_last }
    }

    fn names(reader: &TableReader) -> Vec<String> {
        let own = FleetMember::new("own".into(), Announcement::of_region(""));
        let shown = |member: &FleetMember| format!("{} {}", member.name, member.readiness.as_str());
        let table = reader.table(own);
        table.members().iter().filter(|it| &*it.name != "own").map(shown).collect()
    }

    #[test]
    fn a_reader_applies_changes_only() {
        let now = Clock::system().instant();
        let mut reader = TableReader::default();
        assert!(reader.apply(page(0, 3, vec![row("a", 1, true), row("b", 2, true)], false), now));
        assert!(!reader.is_up_to_date());
        assert_eq!(reader.version(), 2);
        assert!(reader.apply(page(2, 3, vec![row("c", 3, true)], true), now));
        assert!(reader.is_up_to_date());
        assert!(!reader.apply(page(3, 3, vec![], true), now));
        assert!(!reader.apply(page(3, 4, vec![row("c", 4, true)], true), now), "nothing new in it");
        assert!(reader.apply(page(4, 5, vec![row("c", 5, false)], true), now));
        let left = MemberRow { heartbeat: None, announcement: None, ..row("a", 6, false) };
        assert!(reader.apply(page(5, 6, vec![left], true), now));
        assert_eq!(names(&reader), ["b ready", "c out"]);
        let absent: Vec<_> = reader.absent().collect();
        assert_eq!(absent, [AbsentNode { name: "c".into(), at_ms: 1000 }]);
    }

    #[test]
    fn a_version_that_went_back_is_read_from_the_beginning() {
        let now = Clock::system().instant();
        let mut reader = TableReader::default();
        let rows = vec![row("a", 8, true), row("b", 9, true)];
        reader.apply(page(0, 9, rows, true), now);
        assert!(!reader.apply(page(9, 8, vec![], true), now));
        assert!(
            !reader.apply(page(9, 10, vec![row("c", 10, true)], true), now),
            "asked for before"
        );
        assert_eq!((reader.version(), reader.is_up_to_date()), (0, false));
        assert_eq!(names(&reader), ["a ready", "b ready"], "nobody vanishes meanwhile");
        assert!(reader.apply(page(0, 8, vec![row("b", 8, true)], true), now));
        assert_eq!(names(&reader), ["b ready"]);
    }

    #[test]
    fn after_a_loss_members_stay_ready_for_a_while_and_members_for_longer() {
        let start = Clock::system().instant();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut reader = TableReader::default();
        let rows = vec![row("a", 1, true), row("b", 2, true)];
        reader.apply(page(0, 2, rows, true), start);
        reader.restart_after_loss(LossRecovery { ready_until: at(8), member_until: at(60) });
        reader.apply(page(0, 1, vec![row("a", 1, true)], true), at(1));
        assert!(!reader.end_recovery(at(7)));
        assert_eq!(names(&reader), ["a ready", "b ready"]);
        assert!(reader.end_recovery(at(8)));
        assert!(!reader.end_recovery(at(9)));
        assert_eq!(names(&reader), ["a ready", "b out"]);
        assert!(reader.end_recovery(at(60)));
        assert_eq!(names(&reader), ["a ready"]);
    }

    #[test]
    fn a_node_of_the_build_before_is_a_member() {
        let now = Clock::system().instant();
        let mut reader = TableReader::default();
        let heartbeat = Heartbeat { region: "us".to_owned(), ..Heartbeat::default() };
        let heartbeat = Some((1, Heartbeat { has_duplicate_name: true, ..heartbeat }));
        let earlier = MemberRow { heartbeat, announcement: None, ..row("a", 1, true) };
        reader.apply(page(0, 1, vec![earlier], true), now);
        let table = reader.table(FleetMember::new("own".into(), Announcement::of_region("")));
        let member = table.get("a").unwrap();
        assert_eq!((&*member.announcement.region, member.readiness), ("us", Readiness::Ready));
        assert!(member.announcement.has_duplicate_name && table.get("own").is_some());
    }
}
