//! Positions in the purge stream, as nodes tell them to each other.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::unread::PurgeId;

/// An entry's id in the purge stream, `milliseconds-counter`. Redis never gives an id twice in a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId(pub(crate) u64, pub(crate) u64);

/// A position in the purge stream: the last entry that a node has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamPosition {
    /// The history that the node has joined: the name that Redis gave the stream last, never the label of
    /// an entry. After Redis has lost entries, the stream gets another name.
    pub history: Arc<str>,
    /// The entry's number; entries of a history are numbered without a gap. 0: before the first entry.
    pub number: u64,
    /// The entry's id. Two entries may have had the same number, but never the same id.
    pub entry: EntryId,
}

/// The bus' cursor after a batch of purges.
#[derive(Clone, Debug, Default)]
pub(crate) struct BusCursor {
    /// As the purge log stores it; see [`Purges::cursor`](super::Purges::cursor).
    pub bytes: Bytes,
    /// The position in the stream that it stands for. `None`: the node has none, after a gap for example.
    pub position: Option<StreamPosition>,
    /// The entries since the cursor before it, oldest first; the last one is that of `position`.
    pub entries: Vec<EntryId>,
    /// The purges in these entries.
    pub read: Vec<PurgeId>,
}

impl std::str::FromStr for EntryId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text
            .split_once('-')
            .and_then(|(ms, counter)| Some(Self(ms.parse().ok()?, counter.parse().ok()?)));
        parsed.ok_or("expected the id of a stream entry, MILLISECONDS-COUNTER")
    }
}

impl TryFrom<String> for EntryId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EntryId> for String {
    fn from(id: EntryId) -> Self {
        id.to_string()
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}
