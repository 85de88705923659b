//! The records of the purge stream, a node's cursor in it, and the detection of gaps.
//!
//! ```text
//! stream entry   e EPOCH  n NUMBER  p ID-OF-THE-ENTRY-BEFORE  r RECORD
//! record         {"v":1,"id":…,"node":…,"at_ms":…,"kind":"hard","scopes":[{"url":…},…],"reason":…}
//! cursor         {"epoch":…,"entry_epoch":…,"number":…,"id":…,"since":…,"fence":…}    in the purge log
//! ```
//!
//! Entries are numbered without a gap. The epoch is a random name for one unbroken sequence of entries:
//! after Redis has lost entries, the stream gets a new epoch. Entries that were appended between the loss and
//! the renaming carry the old epoch.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::refresh::Refresh;
use crate::cache::{PurgeKind, PurgeScope};
use crate::purge::{
    BusCursor, DeliveryPart, EntryId, PurgeId, PurgeRequest, RecordPart, StreamPosition,
};

/// One purge, as published to all nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PurgeRecord {
    /// Version of the format. A node that reads a later version soft-purges everything.
    v: u32,
    /// Id of the purge, unique in the fleet.
    pub id: String,
    /// The node that received the purge request.
    pub node: String,
    /// When it received the request, by its clock, in milliseconds since 1970.
    pub at_ms: f64,
    /// Soft or hard.
    pub kind: RecordKind,
    /// The scopes to purge.
    pub scopes: Vec<RecordScope>,
    /// The caller's note for the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of purged objects, most requested first, that each node fetches again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refresh: usize,
}

/// [`PurgeKind`] in the JSON of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RecordKind {
    /// See [`PurgeKind::Soft`].
    Soft,
    /// See [`PurgeKind::Hard`].
    Hard,
    /// See [`PurgeKind::Invalidated`]. Only peers get it, over the peer link; the stream does not have it.
    Invalidated,
}

/// [`PurgeScope`] in the JSON of a record.
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
    /// A record in this version's format.
    pub(crate) fn new(id: String, node: String, at_ms: f64, request: PurgeRequest) -> Self {
        let PurgeRequest { scopes, kind, reason, refresh } = request;
        let kind = match kind {
            PurgeKind::Invalidated => RecordKind::Invalidated,
            PurgeKind::Hard => RecordKind::Hard,
            PurgeKind::Soft | PurgeKind::Missed => RecordKind::Soft,
        };
        let scopes = scopes.into_iter().map(RecordScope::from).collect();
        Self { v: VERSION, id, node, at_ms, kind, scopes, reason, refresh }
    }

    /// The objects to fetch again; `None` if the caller asked for none.
    pub(crate) fn refresh(&self) -> Option<Refresh> {
        let url = |scope: &RecordScope| match scope {
            RecordScope::Url(url) => Some(url.clone()),
            _ => None,
        };
        let count = self.refresh;
        (count > 0).then(|| Refresh { count, urls: self.scopes.iter().map(url).collect() })
    }

    /// Encodes for the stream.
    pub(crate) fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and numbers are JSON").into()
    }

    /// Decodes a published record. `None`: not a record, or one of a later version.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|record: &Self| record.v == VERSION)
    }

    /// Whether it has this version's format, and purges something.
    pub(crate) fn is_readable(&self) -> bool {
        self.v == VERSION && !self.scopes.is_empty()
    }

    /// Its id in the purge table.
    pub(crate) fn purge_id(&self) -> PurgeId {
        PurgeId::of(&self.id)
    }

    /// Its part of a batch on the node `name`. `message`: the record, if the stream has not brought it yet.
    pub(crate) fn part(&self, name: &str, message: Option<Bytes>) -> RecordPart {
        let (id, count) = (self.purge_id(), self.scopes.len());
        RecordPart { id, count, is_own: self.node == name, message }
    }

    /// Its part of a batch, where this node delivers it to its peers. `message`: the record.
    pub(crate) fn delivery(&self, message: Bytes) -> DeliveryPart {
        let (id, count) = (self.purge_id(), self.scopes.len());
        DeliveryPart { id, count, message, is_of_everything: self.is_of_everything() }
    }

    /// Whether an unsafe method has caused it: then nobody waits for its receipts.
    pub(crate) fn is_invalidation(&self) -> bool {
        self.kind == RecordKind::Invalidated
    }

    /// Whether it purges everything.
    pub(crate) fn is_of_everything(&self) -> bool {
        self.scopes.contains(&RecordScope::All)
    }

    /// The purges for the purge table, one per scope.
    pub(crate) fn purges(&self) -> impl Iterator<Item = (PurgeScope, PurgeKind)> + '_ {
        let kind = match self.kind {
            RecordKind::Soft => PurgeKind::Soft,
            RecordKind::Hard => PurgeKind::Hard,
            RecordKind::Invalidated => PurgeKind::Invalidated,
        };
        self.scopes.iter().cloned().map(move |scope| (scope.into(), kind))
    }
}

impl RecordScope {
    /// Truncates the text, for lists of purges: the ledger keeps thousands of scopes in memory.
    pub(crate) fn shortened(&self) -> Self {
        let short = |text: &str| match text.char_indices().nth(SCOPE_CHARS_MAX) {
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

/// The position in the stream up to which a node has applied purges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamCursor {
    /// Epoch of the stream: the name that Redis gave it last, never that of an entry.
    pub epoch: String,
    /// The epoch in the last applied entry, if it is another one: the stream was renamed after the entry
    /// was appended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_epoch: Option<String>,
    /// Number of the last applied entry. `None` after a gap: any number may follow.
    pub number: Option<u64>,
    /// Id of the last applied entry.
    pub id: EntryId,
    /// The node has applied every entry from this number on. `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// See [`Fence`]. `None`: there was no gap, or the fence was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
}

/// A purge of everything that a node must read after a gap, before others may rely on its position. After a failover,
/// some nodes may go on using the old primary: this node may have purges in force that nobody else in
/// the history that it joins will ever read. A node that has read the fence has nothing from before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fence {
    /// Number of the last entry when this node had joined: the fence is a later one. `None`: not known yet.
    pub after: Option<u64>,
}

impl Fence {
    fn is_read_with(self, entry: &StreamEntry) -> bool {
        let is_later = self.after.is_some_and(|after| entry.number > after);
        is_later && entry.record.as_ref().is_some_and(PurgeRecord::is_of_everything)
    }
}

impl StreamCursor {
    /// The cursor after an entry of the stream that this cursor is in.
    pub(super) fn after(&self, entry: &StreamEntry) -> Self {
        Self {
            epoch: self.epoch.clone(),
            entry_epoch: (entry.epoch != self.epoch).then(|| entry.epoch.clone()),
            number: Some(entry.number),
            id: entry.id,
            since: self.since.or(Some(entry.number)),
            fence: self.fence.filter(|fence| !fence.is_read_with(entry)),
        }
    }

    /// The cursor of a node that has nothing stored yet, at a stream's head: no entry concerns it.
    pub(super) fn new(head: &StreamHead) -> Self {
        Self { since: Some(0), ..Self::at(head) }
    }

    /// The cursor at a stream's head after a gap.
    pub(super) fn at(head: &StreamHead) -> Self {
        let (epoch, number, id) = (head.epoch.clone(), Some(head.number), head.id);
        Self { epoch, entry_epoch: None, number, id, since: None, fence: None }
    }

    /// The entries of `entries`, which are the last ones up to this cursor, latest first, that the node has
    /// certainly applied: an unbroken row of this history that ends at this very cursor.
    pub(super) fn applied<'a>(
        &self,
        entries: &'a [StreamEntry],
    ) -> impl Iterator<Item = &'a StreamEntry> {
        let mut next = self.position().zip(Some(self.id));
        let since = self.since.unwrap_or(u64::MAX);
        let epoch = self.epoch.clone();
        entries.iter().take_while(move |entry| {
            let is_next = next == Some((entry.number, entry.id));
            next = entry.number.checked_sub(1).zip(entry.previous);
            is_next && entry.epoch == epoch && entry.number >= since
        })
    }

    /// The number of the last applied entry, as others may rely on it. `None` after a gap until the number
    /// is known, and while the last entry carries another epoch: other nodes may have seen another entry
    /// under that epoch and number.
    pub(super) fn position(&self) -> Option<u64> {
        self.number.filter(|_| self.entry_epoch.is_none())
    }

    /// The position that the caches of other nodes are asked with.
    fn stream_position(&self) -> Option<StreamPosition> {
        let number = self.position().filter(|_| self.fence.is_none())?;
        Some(StreamPosition { history: self.epoch.as_str().into(), number, entry: self.id })
    }

    /// The cursor for the purge log, after a batch with these entries and the purges in them.
    pub(super) fn bus_cursor(&self, entries: Vec<EntryId>, read: Vec<PurgeId>) -> BusCursor {
        BusCursor { bytes: self.to_bytes(), position: self.stream_position(), entries, read }
    }

    /// Encodes for the purge log.
    pub(super) fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and numbers are JSON").into()
    }

    /// Decodes a stored cursor. `None`: not a cursor.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl std::fmt::Display for StreamCursor {
    /// `EPOCH:NUMBER (ID)`; the number is `?` after a gap.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = self.number.map_or_else(|| "?".to_owned(), |number| number.to_string());
        write!(f, "{}:{number} ({})", self.epoch, self.id)
    }
}

/// An entry of the purge stream.
pub(super) struct StreamEntry {
    pub id: EntryId,
    pub epoch: String,
    pub number: u64,
    /// Id of the entry before it, as of the time when it was appended.
    pub previous: Option<EntryId>,
    /// `None`: a format that this version does not know.
    pub record: Option<PurgeRecord>,
    /// Length of the encoded record.
    pub record_bytes: usize,
}

/// Epoch and last entry of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamHead {
    /// Epoch of the stream.
    pub epoch: String,
    /// Number of the last entry; zero if there is none.
    pub number: u64,
    /// Id of the last entry.
    pub id: EntryId,
}

/// Why a node may have missed purges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// The node has no cursor yet.
    New,
    /// Entries that the node has not read were removed.
    Trimmed,
    /// Entries that the node has read are missing: Redis lost them, and other nodes may not have read
    /// them.
    Backwards,
    /// The stream has another epoch: it was deleted, or it is another Redis.
    Replaced,
    /// An entry cannot be parsed: a later version of Skerry has written it.
    Unreadable,
}

impl Gap {
    /// The values of the metric's label, in the order of the variants.
    pub(crate) const NAMES: &'static [&'static str] = crate::metrics::BUS_GAPS;

    /// The value in logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The cause in words, for the log.
    pub(super) fn cause(self) -> &'static str {
        match self {
            Self::New => "this node has no cursor in the stream",
            Self::Trimmed => "entries that this node has not read were removed from the stream",
            Self::Backwards => "Redis has lost entries of the stream",
            Self::Replaced => "the stream is new (Redis lost its data, or is another server)",
            Self::Unreadable => {
                "a later version has written an entry that this version cannot read"
            }
        }
    }

    /// Whether entries were lost that this node, or every node, has not read.
    pub(crate) fn lost_entries(self) -> bool {
        self != Self::Unreadable
    }

    /// Whether all nodes must detect the gap, which a new epoch makes them do.
    pub(crate) fn needs_new_epoch(self) -> bool {
        self == Self::Backwards
    }
}

/// Checks that a node at this cursor can continue to read a stream with this head.
pub(super) fn check_cursor(cursor: Option<&StreamCursor>, head: &StreamHead) -> Result<(), Gap> {
    let Some(cursor) = cursor else { return Err(Gap::New) };
    if cursor.epoch != head.epoch {
        return Err(Gap::Replaced);
    }
    match cursor.number {
        Some(number) if number > head.number => Err(Gap::Backwards),
        // The same number and another id, or more entries and no later id: rewritten.
        Some(number) if number == head.number && cursor.id != head.id => Err(Gap::Backwards),
        Some(number) if number < head.number && cursor.id >= head.id => Err(Gap::Backwards),
        // After a gap the number is not known: another loss shows by the id alone.
        None if cursor.id > head.id => Err(Gap::Backwards),
        _ => Ok(()),
    }
}

/// Checks that an entry follows the cursor. The number alone is not enough: a replica that lost entries and
/// then accepted others has the expected numbers.
pub(super) fn check_follows(cursor: &StreamCursor, entry: &StreamEntry) -> Result<(), Gap> {
    let is_known = entry.epoch == cursor.epoch || cursor.entry_epoch.as_ref() == Some(&entry.epoch);
    match cursor.number {
        // After a gap any number may follow, but no entry between may have been removed.
        None if entry.previous.is_some_and(|previous| previous > cursor.id) => Err(Gap::Trimmed),
        None => Ok(()),
        Some(_) if !is_known => Err(Gap::Replaced),
        Some(last) if entry.number > last + 1 => Err(Gap::Trimmed),
        Some(last) if entry.number <= last => Err(Gap::Backwards),
        Some(_) if entry.previous.is_some_and(|previous| previous != cursor.id) => {
            Err(Gap::Backwards)
        }
        Some(_) => Ok(()),
    }
}

/// The cursor after a gap. Entries that are still available and not yet applied come after it.
pub(super) fn cursor_after_gap(cursor: Option<&StreamCursor>, head: &StreamHead) -> StreamCursor {
    // A new node has stored no response yet, so the entries before the head do not matter.
    let Some(cursor) = cursor else { return StreamCursor::new(head) };
    // Otherwise it is another Redis, whose clock is behind: read all of its entries.
    let id = if cursor.id <= head.id { cursor.id } else { EntryId::default() };
    let epoch = head.epoch.clone();
    StreamCursor { epoch, entry_epoch: None, number: None, id, since: None, fence: None }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

const VERSION: u32 = 1;
/// Characters of a scope in lists of purges.
const SCOPE_CHARS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(epoch: &str, number: u64, ms: u64) -> StreamCursor {
        let (epoch, number, id) = (epoch.into(), Some(number), EntryId(ms, 0));
        StreamCursor { epoch, entry_epoch: None, number, id, since: None, fence: None }
    }

    fn entry(epoch: &str, number: u64, previous: Option<EntryId>) -> StreamEntry {
        let (epoch, id) = (epoch.to_owned(), EntryId(10 * number, 0));
        StreamEntry { id, epoch, number, previous, record: None, record_bytes: 0 }
    }

    fn head(epoch: &str, number: u64, ms: u64) -> StreamHead {
        StreamHead { epoch: epoch.into(), number, id: EntryId(ms, 0) }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let scopes = [PurgeScope::All, PurgeScope::Tag("é\"".into())];
        let request = PurgeRequest {
            scopes: scopes.to_vec(),
            kind: PurgeKind::Soft,
            reason: Some("r".into()),
            refresh: 3,
        };
        let record = PurgeRecord::new("i".into(), "n".into(), 1.25, request);
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
        let cursor = cursor("e", 7, 12);
        assert_eq!(StreamCursor::parse(&cursor.to_bytes()), Some(cursor));
    }

    #[test]
    fn every_way_of_losing_history_is_noticed_at_a_connect() {
        let check = |cursor: Option<StreamCursor>, head: StreamHead, expected| {
            assert_eq!(check_cursor(cursor.as_ref(), &head), expected);
        };
        check(Some(cursor("e", 5, 50)), head("e", 5, 50), Ok(()));
        check(Some(cursor("e", 5, 50)), head("e", 9, 90), Ok(()));
        check(None, head("e", 5, 50), Err(Gap::New));
        check(Some(cursor("e", 5, 50)), head("f", 5, 50), Err(Gap::Replaced));
        check(Some(cursor("e", 5, 50)), head("e", 4, 40), Err(Gap::Backwards));
        check(Some(cursor("e", 5, 50)), head("e", 5, 60), Err(Gap::Backwards));
        check(Some(cursor("e", 5, 50)), head("e", 6, 45), Err(Gap::Backwards));
        let unnumbered = |ms| Some(StreamCursor { number: None, ..cursor("e", 5, ms) });
        check(unnumbered(50), head("e", 2, 50), Ok(()));
        check(unnumbered(50), head("e", 2, 20), Err(Gap::Backwards));
    }

    #[test]
    fn entries_must_come_one_by_one() {
        let at = cursor("e", 5, 50);
        let check = |at: &StreamCursor, epoch: &str, number, previous: Option<u64>, expected| {
            let previous = previous.map(|ms| EntryId(ms, 0));
            assert_eq!(check_follows(at, &entry(epoch, number, previous)), expected);
        };
        check(&at, "e", 6, Some(50), Ok(()));
        check(&at, "e", 6, None, Ok(()));
        check(&at, "e", 6, Some(49), Err(Gap::Backwards));
        check(&at, "e", 7, Some(50), Err(Gap::Trimmed));
        check(&at, "e", 5, Some(50), Err(Gap::Backwards));
        check(&at, "f", 6, Some(50), Err(Gap::Replaced));
        let unnumbered = StreamCursor { number: None, ..at };
        check(&unnumbered, "f", 3, Some(50), Ok(()));
        check(&unnumbered, "f", 3, Some(40), Ok(()));
        check(&unnumbered, "f", 3, Some(60), Err(Gap::Trimmed));
    }

    #[test]
    fn an_entry_from_before_the_renaming_is_read_and_is_no_position() {
        let renamed = StreamCursor { number: None, ..cursor("f", 5, 50) };
        let old = renamed.after(&entry("e", 3, None));
        assert_eq!((&*old.epoch, old.number, old.position()), ("f", Some(3), None));
        let previous = Some(old.id);
        assert_eq!(check_follows(&old, &entry("e", 4, previous)), Ok(()));
        assert_eq!(check_follows(&old, &entry("f", 4, previous)), Ok(()));
        assert_eq!(check_follows(&old, &entry("g", 4, previous)), Err(Gap::Replaced));
        let new = old.after(&entry("f", 4, previous));
        assert_eq!(new.position(), Some(4));
        assert_eq!(check_follows(&new, &entry("e", 5, Some(new.id))), Err(Gap::Replaced));
        assert_eq!(StreamCursor::parse(&old.to_bytes()), Some(old));
    }

    #[test]
    fn a_fence_is_a_purge_of_everything_from_after_the_gap() {
        let entry = |number, scope| {
            let request = PurgeRequest {
                scopes: vec![scope],
                kind: PurgeKind::Soft,
                reason: None,
                refresh: 0,
            };
            let record = Some(PurgeRecord::new("i".into(), "n".into(), 1.0, request));
            StreamEntry { record, ..entry("e", number, None) }
        };
        let at = |after| StreamCursor { fence: Some(Fence { after }), ..cursor("e", 5, 50) };
        let is_read = |cursor: &StreamCursor, entry| {
            let cursor = cursor.after(&entry);
            assert_eq!(cursor.fence.is_none(), cursor.stream_position().is_some());
            cursor.fence.is_none()
        };
        assert!(!is_read(&at(None), entry(6, PurgeScope::All)), "it may be from before the gap");
        assert!(!is_read(&at(Some(6)), entry(6, PurgeScope::All)));
        assert!(!is_read(&at(Some(5)), entry(6, PurgeScope::Site("a".into()))));
        assert!(is_read(&at(Some(5)), entry(6, PurgeScope::All)));
        let restarted = StreamCursor::parse(&at(Some(5)).to_bytes()).expect("a cursor");
        assert_eq!(restarted, at(Some(5)));
    }

    #[test]
    fn only_an_unbroken_row_that_ends_at_the_cursor_is_applied() {
        let numbered = |number| entry("e", number, Some(EntryId(10 * (number - 1), 0)));
        let row = || vec![numbered(5), numbered(4), numbered(3)];
        let check = |cursor: StreamCursor, row: Vec<StreamEntry>, expected: &[u64]| {
            let applied: Vec<u64> = cursor.applied(&row).map(|entry| entry.number).collect();
            assert_eq!(applied, expected);
        };
        let at = |since| StreamCursor { since, ..cursor("e", 5, 50) };
        check(at(Some(0)), row(), &[5, 4, 3]);
        check(at(Some(4)), row(), &[5, 4]);
        check(at(None), row(), &[]);
        check(StreamCursor { id: EntryId(49, 0), ..at(Some(0)) }, row(), &[]);
        check(StreamCursor { number: Some(6), ..at(Some(0)) }, row(), &[]);
        check(at(Some(0)), vec![numbered(5), entry("d", 4, None), numbered(3)], &[5]);
        check(at(Some(0)), vec![numbered(5), numbered(3)], &[5]);
        let unlinked = StreamEntry { previous: Some(EntryId(1, 0)), ..numbered(5) };
        check(at(Some(0)), vec![unlinked, numbered(4)], &[5]);
    }
}
