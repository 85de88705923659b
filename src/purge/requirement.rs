//! The purge requirement of a request between nodes, and its text form.
//!
//! A node that asks another one for a response has purges in force that the other may not have yet. The
//! requirement names the last entry of the purge stream that the asker has applied: a node meets it once it has
//! applied that very entry itself. docs/concepts/purge.md tells the whole rule.
//!
//! ```text
//! Skerry-Purges: origin-only                                       no response from a cache will do
//! Skerry-Purges: none                                              every cache will do
//! Skerry-Purges: ("5f3a09c2d1b4e687" 1207 "1764504000123-0")       history, number and id of an entry
//! Skerry-Purges: ("5f3a…" 1207 "…"), ("5f3a…" 1209 "…")            behind a second hop: both must be met
//! ```

use sfv::{BareItem, InnerList, List, ListEntry, Parser};

use super::position::{EntryId, StreamPosition};

/// The purges that a node must have applied before it may answer a request from its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Requirement {
    /// Only a response will do that the origin is asked for after this request: no stored one, and none of a
    /// fill that began earlier. It holds through all hops.
    OriginOnly,
    /// Every one of these entries of the purge stream, at most [`ENTRIES_MAX`]. Empty: none.
    Entries(Vec<StreamPosition>),
}

impl Requirement {
    /// Whether a fill that was begun for this requirement will do for a request with `other`. Nothing will do
    /// for an origin-only request but a fill of its own.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::OriginOnly) => false,
            (Self::OriginOnly, Self::Entries(others)) => others.is_empty(),
            (Self::Entries(entries), Self::Entries(others)) => {
                others.iter().all(|other| entries.contains(other))
            }
        }
    }

    /// Both requirements, each once, for the next hop of a request that came with `other`. More than
    /// [`ENTRIES_MAX`] entries become origin-only.
    pub(crate) fn and(self, other: &Self) -> Self {
        let (Self::Entries(mut entries), Self::Entries(others)) = (self, other) else {
            return Self::OriginOnly;
        };
        for entry in others {
            if !entries.contains(entry) {
                entries.push(entry.clone());
            }
        }
        match entries.len() <= ENTRIES_MAX {
            true => Self::Entries(entries),
            false => Self::OriginOnly,
        }
    }

    /// The value of the field `Skerry-Purges`. A position that the field cannot express is written as
    /// origin-only.
    pub(crate) fn to_field(&self) -> String {
        let Self::Entries(entries) = self else { return ORIGIN_ONLY.to_owned() };
        if entries.is_empty() {
            return NONE.to_owned();
        }
        if !entries.iter().all(is_expressible) {
            return ORIGIN_ONLY.to_owned();
        }
        let mut text = String::with_capacity(entries.len() * ENTRY_BYTES);
        for StreamPosition { history, number, entry: EntryId(ms, counter) } in entries {
            let comma = if text.is_empty() { "" } else { ", " };
            let mut digits = [itoa::Buffer::new(); 3];
            let [number, ms, counter] = {
                let [first, second, third] = &mut digits;
                [first.format(*number), second.format(*ms), third.format(*counter)]
            };
            text.extend([comma, "(\"", history, "\" ", number, " \"", ms, "-", counter, "\")"]);
        }
        text
    }

    /// Parses the value of the field `Skerry-Purges`. `None`: not a requirement, or longer than any.
    pub(crate) fn parse(field: &[u8]) -> Option<Self> {
        match field {
            _ if field.len() > FIELD_BYTES_MAX => return None,
            field if field == ORIGIN_ONLY.as_bytes() => return Some(Self::OriginOnly),
            field if field == NONE.as_bytes() => return Some(Self::Entries(Vec::new())),
            _ => {}
        }
        let list = Parser::new(field).parse::<List>().ok()?;
        if !(1..=ENTRIES_MAX).contains(&list.len()) {
            return None;
        }
        let entry = |member| match member {
            ListEntry::InnerList(inner) => position(inner),
            ListEntry::Item(_) => None,
        };
        list.into_iter().map(entry).collect::<Option<Vec<_>>>().map(Self::Entries)
    }
}

/// Remembers the last field that was read: the requests of a peer have the same one until that applies another purge.
#[derive(Debug, Default)]
pub(crate) struct RequirementMemo(Option<(Vec<u8>, Requirement)>);

impl RequirementMemo {
    /// As [`Requirement::parse`].
    pub(crate) fn parse(&mut self, field: &[u8]) -> Option<Requirement> {
        if let Some((known, requirement)) = &self.0
            && known == field
        {
            return Some(requirement.clone());
        }
        let requirement = Requirement::parse(field)?;
        self.0 = Some((field.to_vec(), requirement.clone()));
        Some(requirement)
    }
}

fn position(list: InnerList) -> Option<StreamPosition> {
    let [history, number, entry] = <[_; 3]>::try_from(list.items).ok()?;
    let (BareItem::String(history), BareItem::Integer(number), BareItem::String(entry)) =
        (history.bare_item, number.bare_item, entry.bare_item)
    else {
        return None;
    };
    let number = u64::try_from(i64::from(number)).ok()?;
    let entry = entry.as_str().parse().ok()?;
    let position = StreamPosition { history: history.as_str().into(), number, entry };
    is_expressible(&position).then_some(position)
}

/// Whether a position can be written in the field: RFC 8941 §3.3.1 limits integers to 15 digits.
fn is_expressible(position: &StreamPosition) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=HISTORY_BYTES_MAX).contains(&position.history.len())
        && position.history.bytes().all(is_plain)
        && position.number <= 999_999_999_999_999
}

const ORIGIN_ONLY: &str = "origin-only";
const NONE: &str = "none";
/// Entries of a requirement: one for each hop, and the hop limit is below this. A longer requirement becomes
/// origin-only.
const ENTRIES_MAX: usize = 4;
/// The usual length of an entry in the field.
const ENTRY_BYTES: usize = 64;
/// Length of a history's name; Skerry gives names of 16 characters.
const HISTORY_BYTES_MAX: usize = 64;
/// Length of the longest value: [`ENTRIES_MAX`] entries of 130 characters.
const FIELD_BYTES_MAX: usize = 600;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::purge::EntryId;

    fn at(number: u64) -> StreamPosition {
        StreamPosition { history: "5f3a09c2".into(), number, entry: EntryId(10 * number, 1) }
    }

    fn entries<const COUNT: usize>(numbers: [u64; COUNT]) -> Requirement {
        Requirement::Entries(numbers.map(at).to_vec())
    }

    #[test]
    fn a_requirement_has_one_text() {
        for (requirement, text) in [
            (Requirement::OriginOnly, "origin-only"),
            (entries([]), "none"),
            (entries([7]), "(\"5f3a09c2\" 7 \"70-1\")"),
            (entries([7, 9]), "(\"5f3a09c2\" 7 \"70-1\"), (\"5f3a09c2\" 9 \"90-1\")"),
        ] {
            assert_eq!(requirement.to_field(), text);
            assert_eq!(Requirement::parse(text.as_bytes()), Some(requirement));
        }
    }

    #[test]
    fn a_memo_tells_the_same() {
        let mut memo = RequirementMemo::default();
        let seven = "(\"e\" 7 \"70-1\")";
        for text in [seven, seven, "none", "(\"e\" 8 \"80-1\")", "(\"e\"", seven, "origin-only"] {
            let expected = Requirement::parse(text.as_bytes());
            assert_eq!(memo.parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_requirement_is_refused() {
        for text in [
            "",
            "origin",
            "(\"e\" 7)",
            "(\"e\" 7 \"70\")",
            "(\"e\" -7 \"70-1\")",
            "(\"e\" \"7\" \"70-1\")",
            "(\"\" 7 \"70-1\")",
            "(\"a b\" 7 \"70-1\")",
            "(\"e\" 7 \"70-1\" 1)",
            "(\"e\" 7 \"70-1\"), origin-only",
        ] {
            assert_eq!(Requirement::parse(text.as_bytes()), None, "{text}");
        }
        let five = ["(\"e\" 7 \"70-1\")"; ENTRIES_MAX + 1].join(", ");
        assert_eq!(Requirement::parse(five.as_bytes()), None);
        assert_eq!(Requirement::parse(&[b' '; FIELD_BYTES_MAX + 1]), None);
    }

    #[test]
    fn a_position_that_the_field_cannot_express_becomes_origin_only() {
        let history = "a\"b".into();
        let odd = StreamPosition { history, ..at(7) };
        assert_eq!(Requirement::Entries(vec![odd]).to_field(), "origin-only");
    }

    #[test]
    fn behind_a_second_hop_both_requirements_must_be_met() {
        let check = |own: Requirement, other: Requirement, both: Requirement| {
            assert_eq!(own.clone().and(&other), both, "{own:?} and {other:?}");
            assert!(
                both == Requirement::OriginOnly || both.includes(&own) && both.includes(&other)
            );
        };
        check(entries([7]), entries([9]), entries([7, 9]));
        check(entries([7]), entries([7]), entries([7]));
        check(entries([]), entries([9]), entries([9]));
        check(entries([9]), entries([]), entries([9]));
        check(entries([1, 2]), entries([2, 3, 4]), entries([1, 2, 3, 4]));
        check(entries([1, 2]), entries([3, 4, 5]), Requirement::OriginOnly);
        check(Requirement::OriginOnly, entries([9]), Requirement::OriginOnly);
        check(entries([9]), Requirement::OriginOnly, Requirement::OriginOnly);
    }

    #[test]
    fn a_fill_may_be_joined_only_with_a_requirement_that_it_carries() {
        assert!(entries([7, 9]).includes(&entries([9])));
        assert!(entries([7]).includes(&entries([])));
        assert!(
            !entries([7]).includes(&entries([9])),
            "a later purge may be in force at the asker"
        );
        assert!(!entries([9]).includes(&entries([7])), "the numbers may be of two histories");
        assert!(
            !Requirement::OriginOnly.includes(&entries([7])),
            "it may have begun before entry 7"
        );
        assert!(!Requirement::OriginOnly.includes(&Requirement::OriginOnly));
    }

    proptest! {
        #[test]
        fn a_requirement_is_read_as_it_was_written(
            positions in proptest::collection::vec(
                ("[0-9A-Za-z_-]{1,64}", 0_u64..=999_999_999_999_999, any::<(u64, u64)>()), 0..=ENTRIES_MAX,
            ),
        ) {
            let position = |(history, number, (ms, counter)): (String, u64, (u64, u64))| {
                StreamPosition { history: history.into(), number, entry: EntryId(ms, counter) }
            };
            let requirement = Requirement::Entries(positions.into_iter().map(position).collect());
            let field = requirement.to_field();
            prop_assert_eq!(Requirement::parse(field.as_bytes()), Some(requirement));
        }

        #[test]
        fn no_text_is_read_as_another_requirement(text in proptest::collection::vec(any::<u8>(), 0..700)) {
            if let Some(requirement) = Requirement::parse(&text) {
                prop_assert_eq!(Requirement::parse(requirement.to_field().as_bytes()), Some(requirement));
            }
        }
    }
}
