//! Bugs planted on purpose, one at a time, to show that the lab's checkers find them.
//!
//! Only with the cargo feature `planted-bugs`, which no release build accepts; without it every
//! question here is a constant false and costs nothing. `SKERRY_PLANTED_BUG` names the bug.

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("planted-bugs breaks promises on purpose: it is for debug builds alone");

use std::sync::OnceLock;

/// A promise to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
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
    /// Each fifth entry of the purge stream is skipped, and wake-ups are not heard.
    StreamEntryDropped,
}

impl Bug {
    /// Every bug.
    pub const ALL: [Bug; 6] = [
        Bug::PurgesIgnored,
        Bug::SlicesMixed,
        Bug::PrivateShared,
        Bug::DoubleFill,
        Bug::NeverStale,
        Bug::StreamEntryDropped,
    ];

    /// As `SKERRY_PLANTED_BUG` names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Bug::PurgesIgnored => "purges-ignored",
            Bug::SlicesMixed => "slices-mixed",
            Bug::PrivateShared => "private-shared",
            Bug::DoubleFill => "double-fill",
            Bug::NeverStale => "never-stale",
            Bug::StreamEntryDropped => "stream-entry-dropped",
        }
    }
}

/// Whether this bug is planted.
#[inline]
pub fn has(bug: Bug) -> bool {
    cfg!(feature = "planted-bugs") && planted() == Some(bug)
}

fn planted() -> Option<Bug> {
    static PLANTED: OnceLock<Option<Bug>> = OnceLock::new();
    *PLANTED.get_or_init(|| {
        let name = std::env::var("SKERRY_PLANTED_BUG").ok()?;
        Bug::ALL.into_iter().find(|bug| bug.as_str() == name)
    })
}
