//! Bugs planted on purpose, one at a time, to show that the simulation's checkers find them.
//!
//! Only with the cargo feature `planted-bugs`, which no release build accepts; without it every
//! question here is a constant false and costs nothing. `SKERRY_PLANTED_BUG` names the bug.

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("planted-bugs breaks promises on purpose: it is for debug builds alone");

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A promise to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Stored responses are used although they were purged.
    PurgesIgnored,
    /// The first slice of a body is served in the second's place.
    SlicesMixed,
    /// `private` and `Set-Cookie` do not keep a response from being stored.
    PrivateShared,
    /// Requests for one key are not collapsed.
    DoubleFill,
    /// Stored responses stay fresh for ever.
    NeverStale,
    /// Each fifth entry of the purge stream is skipped if it is of another node, and wake-ups are not heard.
    StreamEntryDropped,
    /// The purge stream is not read, and wake-ups are not heard.
    StreamUnread,
    /// Each twentieth upstream request fails by itself.
    AnswersFail,
    /// `Cache-Status` gives hits a longer `ttl` than they have.
    TtlMadeUp,
    /// Clients of every country are served by the usual pool.
    CountryIgnored,
    /// Each upstream request leaves a few megabytes behind.
    MemoryHeld,
    /// Each tenth visitor with the cookie of a group is drawn again.
    GroupsRedrawn,
    /// Groups of visitors share stored responses.
    GroupsShared,
    /// An owner answers from its cache whatever purges the asker requires.
    PositionIgnored,
    /// An asker ignores the purges that it has not read from the stream yet.
    UnreadIgnored,
    /// A request of another node follows any fill.
    AnyFillJoined,
    /// An asker asks peers that lack its deliveries.
    DeliveriesIgnored,
    /// Edge names answer nodes that are out.
    DeadNodesAnswered,
}

impl Bug {
    /// Every bug.
    pub(crate) const ALL: [Bug; 18] = [
        Bug::PurgesIgnored,
        Bug::SlicesMixed,
        Bug::PrivateShared,
        Bug::DoubleFill,
        Bug::NeverStale,
        Bug::StreamEntryDropped,
        Bug::StreamUnread,
        Bug::AnswersFail,
        Bug::TtlMadeUp,
        Bug::CountryIgnored,
        Bug::MemoryHeld,
        Bug::GroupsRedrawn,
        Bug::GroupsShared,
        Bug::PositionIgnored,
        Bug::UnreadIgnored,
        Bug::AnyFillJoined,
        Bug::DeliveriesIgnored,
        Bug::DeadNodesAnswered,
    ];

    /// As `SKERRY_PLANTED_BUG` names it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Bug::PurgesIgnored => "purges-ignored",
            Bug::SlicesMixed => "slices-mixed",
            Bug::PrivateShared => "private-shared",
            Bug::DoubleFill => "double-fill",
            Bug::NeverStale => "never-stale",
            Bug::StreamEntryDropped => "stream-entry-dropped",
            Bug::StreamUnread => "stream-unread",
            Bug::AnswersFail => "answers-fail",
            Bug::TtlMadeUp => "ttl-made-up",
            Bug::CountryIgnored => "country-ignored",
            Bug::MemoryHeld => "memory-held",
            Bug::GroupsRedrawn => "groups-redrawn",
            Bug::GroupsShared => "groups-shared",
            Bug::PositionIgnored => "position-ignored",
            Bug::UnreadIgnored => "unread-ignored",
            Bug::AnyFillJoined => "any-fill-joined",
            Bug::DeliveriesIgnored => "deliveries-ignored",
            Bug::DeadNodesAnswered => "dead-nodes-answered",
        }
    }
}

/// Whether this bug is planted.
#[inline]
pub(crate) fn has(bug: Bug) -> bool {
    cfg!(feature = "planted-bugs") && planted() == Some(bug)
}

/// Whether this bug is planted, and this is each `nth` time that it is asked for.
pub(crate) fn each(bug: Bug, nth: u64) -> bool {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    has(bug) && ASKED.fetch_add(1, Ordering::Relaxed) % nth == nth - 1
}

/// Loses eight megabytes, where that bug is planted.
pub(crate) fn hold_memory() {
    if has(Bug::MemoryHeld) {
        std::mem::forget(vec![1_u8; 8 << 20]);
    }
}

fn planted() -> Option<Bug> {
    static PLANTED: OnceLock<Option<Bug>> = OnceLock::new();
    *PLANTED.get_or_init(|| {
        let name = std::env::var("SKERRY_PLANTED_BUG").ok()?;
        Bug::ALL.into_iter().find(|bug| bug.as_str() == name)
    })
}
