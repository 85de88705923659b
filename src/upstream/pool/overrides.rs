//! States and weights that operators set of a pool's origins while the node runs. They go before the
//! configuration and the sources, and stay when the set of members changes.

use std::collections::BTreeMap;

/// By the URL of the origin ([`super::super::Origin::url`]), also of origins that are not in the pool now.
pub(crate) type Overrides = BTreeMap<String, OriginOverride>;

/// The state and weight that are set of one origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OriginOverride {
    /// Whether it gets requests.
    pub state: Administrative,
    /// In place of the weight in the configuration, or of its source.
    pub weight: Option<u16>,
    /// The override stays after a restart of the node.
    pub is_kept: bool,
}

/// Whether operators let an origin have requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Administrative {
    /// Its health decides.
    #[default]
    Ready,
    /// No new visitors. Requests of visitors that are bound to it still go there.
    Drain,
    /// No requests.
    Maintenance,
}

impl Administrative {
    const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maintenance];

    /// The word in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
        }
    }

    /// The state of this word.
    pub(crate) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A change of what is set about an origin.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OverrideChange {
    /// `None`: as before.
    pub state: Option<Administrative>,
    /// `None`: as before; `Some(None)`: the configured weight again.
    pub weight: Option<Option<u16>>,
    /// Whether all that is set about the origin stays after a restart.
    pub is_kept: bool,
    /// Take the last usable origin, too.
    pub is_forced: bool,
}

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OverrideRefusal {
    /// The pool has no such origin now.
    #[error("pool {pool:?} has no origin {origin:?}")]
    UnknownOrigin {
        /// The pool's name.
        pool: String,
        /// As in the call.
        origin: String,
    },
    /// No other origin of the pool is up.
    #[error("no other origin of pool {pool:?} is up: set \"force\" to take {origin} nevertheless")]
    LastUsable {
        /// The pool's name.
        pool: String,
        /// URL of the origin.
        origin: String,
    },
}

impl OriginOverride {
    /// This with a change. `None`: nothing is set any more.
    pub(in crate::upstream) fn changed(mut self, change: &OverrideChange) -> Option<Self> {
        self.state = change.state.unwrap_or(self.state);
        self.weight = change.weight.unwrap_or(self.weight);
        self.is_kept = change.is_kept;
        let is_set = self.state != Administrative::Ready || self.weight.is_some();
        is_set.then_some(self)
    }
}
