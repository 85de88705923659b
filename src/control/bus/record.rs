//! What travels on the bus, and a node's place in it.
//!
//! ```text
//! stream entry   e EPOCH  n NUMBER  p ID-OF-THE-ENTRY-BEFORE  r RECORD
//! record         {"v":1,"id":…,"node":…,"at_ms":…,"kind":"hard","scopes":[{"url":…},…],"reason":…}
//! position       {"epoch":…,"number":…,"id":…}      kept in the purge log as the cursor
//! ```
//!
//! Entries are numbered without a gap. The epoch is a random name that the fleet gives to one
//! unbroken history: a Redis that lost anything gets another one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cache::{PurgeKind, PurgeScope};
use crate::control::purge_order::PurgeOrder;
use crate::control::refresh::Refresh;

/// One purge, as every node of the fleet reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PurgeRecord {
    /// The version of this form. A node that meets a later one validates everything.
    v: u32,
    /// Names the purge in the whole fleet.
    pub id: String,
    /// The node that was asked.
    pub node: String,
    /// When, in milliseconds since 1970 by that node's clock.
    pub at_ms: f64,
    /// Soft or hard.
    pub kind: RecordKind,
    /// What it covers.
    pub scopes: Vec<RecordScope>,
    /// The caller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many of the most popular of what is purged each node fetches again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refresh: usize,
}

/// [`PurgeKind`] as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RecordKind {
    /// See [`PurgeKind::Soft`].
    Soft,
    /// See [`PurgeKind::Hard`].
    Hard,
}

/// [`PurgeScope`] as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RecordScope {
    /// Everything.
    All,
    /// See [`PurgeScope::Site`].
    Site(Box<str>),
    /// See [`PurgeScope::Url`].
    Url(Box<str>),
    /// See [`PurgeScope::Prefix`].
    Prefix(Box<str>),
    /// See [`PurgeScope::Tag`].
    Tag(Box<str>),
}

impl PurgeRecord {
    /// A record in this version's form.
    pub(crate) fn new(id: String, node: String, at_ms: f64, order: PurgeOrder) -> Self {
        let PurgeOrder { scopes, kind, reason, refresh } = order;
        let kind = match kind {
            PurgeKind::Soft => RecordKind::Soft,
            PurgeKind::Hard => RecordKind::Hard,
        };
        let scopes = scopes.into_iter().map(RecordScope::from).collect();
        Self { v: VERSION, id, node, at_ms, kind, scopes, reason, refresh }
    }

    /// What is to be fetched again, if anything.
    pub(crate) fn refresh(&self) -> Option<Refresh> {
        let url = |scope: &RecordScope| match scope {
            RecordScope::Url(url) => Some(url.clone()),
            _ => None,
        };
        let count = self.refresh;
        (count > 0).then(|| Refresh { count, urls: self.scopes.iter().map(url).collect() })
    }

    /// As it is published.
    pub(crate) fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and numbers are JSON").into()
    }

    /// What was published. `None`: not a record, or one of a later version.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|record: &Self| record.v == VERSION)
    }

    /// What the store is told.
    pub(crate) fn purges(&self) -> impl Iterator<Item = (PurgeScope, PurgeKind)> + '_ {
        let kind = match self.kind {
            RecordKind::Soft => PurgeKind::Soft,
            RecordKind::Hard => PurgeKind::Hard,
        };
        self.scopes.iter().cloned().map(move |scope| (scope.into(), kind))
    }
}

impl RecordScope {
    /// For people to recognise; thousands of these are remembered.
    pub(crate) fn shortened(&self) -> Self {
        let short = |text: &str| match text.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((at, _)) => format!("{}…", &text[..at]).into(),
            None => text.into(),
        };
        match self {
            Self::All => Self::All,
            Self::Site(text) => Self::Site(short(text)),
            Self::Url(text) => Self::Url(short(text)),
            Self::Prefix(text) => Self::Prefix(short(text)),
            Self::Tag(text) => Self::Tag(short(text)),
        }
    }
}

impl From<PurgeScope> for RecordScope {
    fn from(scope: PurgeScope) -> Self {
        match scope {
            PurgeScope::All => Self::All,
            PurgeScope::Site(text) => Self::Site(text),
            PurgeScope::Url(text) => Self::Url(text),
            PurgeScope::Prefix(text) => Self::Prefix(text),
            PurgeScope::Tag(text) => Self::Tag(text),
        }
    }
}

impl From<RecordScope> for PurgeScope {
    fn from(scope: RecordScope) -> Self {
        match scope {
            RecordScope::All => Self::All,
            RecordScope::Site(text) => Self::Site(text),
            RecordScope::Url(text) => Self::Url(text),
            RecordScope::Prefix(text) => Self::Prefix(text),
            RecordScope::Tag(text) => Self::Tag(text),
        }
    }
}

/// Up to where a node has applied the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The history that it belongs to.
    pub epoch: String,
    /// The last entry's number. `None` after a gap: the next entry's number is taken as it is.
    pub number: Option<u64>,
    /// The last entry's id in the stream.
    pub id: EntryId,
}

impl Position {
    /// As it is kept in the purge log.
    pub(super) fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and numbers are JSON").into()
    }

    /// What was kept.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// An entry's id in the stream, `milliseconds-counter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId(u64, u64);

impl std::str::FromStr for EntryId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text
            .split_once('-')
            .and_then(|(ms, counter)| Some(Self(ms.parse().ok()?, counter.parse().ok()?)));
        parsed.ok_or("not the id of a stream entry")
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

/// What Redis says of the stream as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamHead {
    /// The name of its history.
    pub epoch: String,
    /// The last entry's number; zero without any.
    pub number: u64,
    /// The last entry's id.
    pub id: EntryId,
}

/// Why a node can't know what it has missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// It has no place in the stream yet.
    New,
    /// What it had not read yet is not there any more.
    Trimmed,
    /// What it had read is not there any more: Redis lost entries, which others may not have
    /// read.
    Backwards,
    /// It is another stream, or was emptied.
    Replaced,
    /// An entry can't be read; a later version has written it.
    Unreadable,
}

impl Gap {
    /// The values of the metric's label, in the order of the variants.
    pub(crate) const NAMES: &'static [&'static str] = crate::metrics::BUS_GAPS;

    /// The word for logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether entries may be gone that nobody, or not this node, has read.
    pub(crate) fn lost_entries(self) -> bool {
        self != Self::Unreadable
    }

    /// Whether the whole fleet must be told, by a new epoch.
    pub(crate) fn concerns_all(self) -> bool {
        self == Self::Backwards
    }
}

/// Whether a node at `position` can go on reading a stream with this head.
pub(super) fn reconcile(position: Option<&Position>, head: &StreamHead) -> Result<(), Gap> {
    let Some(position) = position else { return Err(Gap::New) };
    if position.epoch != head.epoch {
        return Err(Gap::Replaced);
    }
    match position.number {
        Some(number) if number > head.number => Err(Gap::Backwards),
        // The same number and another id, or more entries and no later id: rewritten.
        Some(number) if number == head.number && position.id != head.id => Err(Gap::Backwards),
        Some(number) if number < head.number && position.id >= head.id => Err(Gap::Backwards),
        _ => Ok(()),
    }
}

/// Whether an entry of this epoch and number, appended behind `previous`, may follow `position`. A
/// number alone would not do: a replica that lost entries and took others in their place, while its
/// clock was behind, has the numbers that are expected.
pub(super) fn follows(
    position: &Position,
    epoch: &str,
    number: u64,
    previous: Option<EntryId>,
) -> Result<(), Gap> {
    match position.number {
        None => Ok(()),
        Some(_) if position.epoch != epoch => Err(Gap::Replaced),
        Some(last) if number > last + 1 => Err(Gap::Trimmed),
        Some(last) if number <= last => Err(Gap::Backwards),
        Some(_) if previous.is_some_and(|previous| previous != position.id) => Err(Gap::Backwards),
        Some(_) => Ok(()),
    }
}

/// Where to read on after a gap: what is still there and not yet read is applied all the same.
pub(super) fn resume(position: Option<&Position>, head: &StreamHead) -> Position {
    match position {
        Some(position) if position.id <= head.id => {
            Position { epoch: head.epoch.clone(), number: None, id: position.id }
        }
        // Another Redis, whose clock is behind: what it has is read from the start.
        Some(_) => Position { epoch: head.epoch.clone(), number: None, id: EntryId::default() },
        // Nothing that a new node has stored is older than its start.
        None => Position { epoch: head.epoch.clone(), number: Some(head.number), id: head.id },
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

const VERSION: u32 = 1;
/// Of a scope, in lists of purges.
const SHOWN_CHARS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn position(epoch: &str, number: u64, ms: u64) -> Position {
        Position { epoch: epoch.into(), number: Some(number), id: EntryId(ms, 0) }
    }

    fn head(epoch: &str, number: u64, ms: u64) -> StreamHead {
        StreamHead { epoch: epoch.into(), number, id: EntryId(ms, 0) }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let scopes = [PurgeScope::All, PurgeScope::Tag("é\"".into())];
        let order = PurgeOrder {
            scopes: scopes.to_vec(),
            kind: PurgeKind::Soft,
            reason: Some("r".into()),
            refresh: 3,
        };
        let record = PurgeRecord::new("i".into(), "n".into(), 1.25, order);
        let read = PurgeRecord::parse(&record.to_bytes()).expect("a record");
        assert_eq!(read, record);
        assert_eq!(read.purges().collect::<Vec<_>>(), scopes.map(|scope| (scope, PurgeKind::Soft)));
    }

    #[test]
    fn a_record_of_a_later_version_is_not_guessed_at() {
        let text = br#"{"v":2,"id":"i","node":"n","at_ms":1,"kind":"hard","scopes":["all"]}"#;
        assert_eq!(PurgeRecord::parse(text), None);
        let known = String::from_utf8_lossy(text).replace("\"v\":2", "\"v\":1");
        assert!(PurgeRecord::parse(known.as_bytes()).is_some());
    }

    #[test]
    fn a_position_survives_the_log() {
        let position = position("e", 7, 12);
        assert_eq!(Position::parse(&position.to_bytes()), Some(position));
    }

    #[test]
    fn every_way_of_losing_history_is_noticed_at_a_connect() {
        let check = |position: Option<Position>, head: StreamHead, expected| {
            assert_eq!(reconcile(position.as_ref(), &head), expected);
        };
        check(Some(position("e", 5, 50)), head("e", 5, 50), Ok(()));
        check(Some(position("e", 5, 50)), head("e", 9, 90), Ok(()));
        check(None, head("e", 5, 50), Err(Gap::New));
        check(Some(position("e", 5, 50)), head("f", 5, 50), Err(Gap::Replaced));
        check(Some(position("e", 5, 50)), head("e", 4, 40), Err(Gap::Backwards));
        check(Some(position("e", 5, 50)), head("e", 5, 60), Err(Gap::Backwards));
        check(Some(position("e", 5, 50)), head("e", 6, 45), Err(Gap::Backwards));
    }

    #[test]
    fn entries_must_come_one_by_one() {
        let at = position("e", 5, 50);
        let before = Some(EntryId(50, 0));
        assert_eq!(follows(&at, "e", 6, before), Ok(()));
        assert_eq!(follows(&at, "e", 6, None), Ok(()));
        assert_eq!(follows(&at, "e", 6, Some(EntryId(49, 0))), Err(Gap::Backwards));
        assert_eq!(follows(&at, "e", 7, before), Err(Gap::Trimmed));
        assert_eq!(follows(&at, "e", 5, before), Err(Gap::Backwards));
        assert_eq!(follows(&at, "f", 6, before), Err(Gap::Replaced));
        assert_eq!(follows(&Position { number: None, ..at }, "f", 3, before), Ok(()));
    }
}
