//! The fields of a stored response.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::names::Number;
use super::{Fields, Known, KnownSet, LINE_END, NAME_END, START_BYTES, Walk, push_line, start_of};

/// Field lines in the order in which they were received. A line takes eight bytes and its value; in a
/// [`HeaderMap`] it takes 104 and its value. Values returned from it share its allocation.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSection {
    /// The set of known fields in two bytes, then the lines. Empty if there are no lines. Made by
    /// [`FieldSection::of`] only, from values that are valid.
    block: Bytes,
}

impl FieldSection {
    /// The number of lines.
    pub(crate) fn len(&self) -> usize {
        self.walk().count()
    }

    /// The name and the value of each line.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.walk().map(|line| (line.name().as_str(), line.value()))
    }

    /// The values of all lines with this name, without a copy.
    pub(crate) fn values(&self, name: &HeaderName) -> impl Iterator<Item = HeaderValue> {
        self.lines(name).map(|value| self.field_value(value))
    }

    /// The lines as a map, with room for `more` names.
    pub(crate) fn to_map(&self, more: usize) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.len() + more);
        for line in self.walk() {
            map.append(line.name().to_name(), self.field_value(line.value()));
        }
        map
    }

    /// Bytes of memory that the section holds, in addition to the struct itself.
    pub(crate) fn weight(&self) -> usize {
        if self.block.is_empty() { 0 } else { self.block.len() + SHARED_BYTES }
    }

    /// Stores lines in a block of exactly their size. Values are copied, because each received value keeps the
    /// read buffer of its connection alive: 8 KiB and more.
    fn of(lines: &[(HeaderName, HeaderValue)]) -> Self {
        if lines.is_empty() {
            return Self::default();
        }
        let numbers: Vec<Number> = lines.iter().map(|(name, _)| Number::of(name)).collect();
        let room = |(number, (name, value)): (&Number, &(HeaderName, HeaderValue))| {
            let name = NAME_END.len() + name.as_str().len() + LINE_END.len();
            START_BYTES + if number.is_listed() { 0 } else { name } + value.len()
        };
        let room = numbers.iter().zip(lines).map(room).sum::<usize>();
        let mut block = Vec::with_capacity(KNOWN_BYTES + room);
        block.extend_from_slice(&[0; KNOWN_BYTES]);
        let mut known = KnownSet::default();
        for (number, (name, value)) in numbers.iter().zip(lines) {
            known.add(number.known());
            if number.is_listed() {
                block.extend_from_slice(&start_of(*number, 0, value.len()));
                block.extend_from_slice(value.as_bytes());
            } else {
                push_line(&mut block, name, |text| text.extend_from_slice(value.as_bytes()));
            }
        }
        block[..KNOWN_BYTES].copy_from_slice(&known.0.to_le_bytes());
        Self { block: block.into() }
    }

    /// Whether a line of this field is there, without a pass over the lines.
    #[inline]
    pub(crate) fn has(&self, known: Known) -> bool {
        self.known().has(known)
    }

    pub(super) fn known(&self) -> KnownSet {
        self.block
            .first_chunk()
            .map_or_else(KnownSet::default, |bits| KnownSet(u16::from_le_bytes(*bits)))
    }

    pub(super) fn walk(&self) -> Walk<'_> {
        Walk { rest: self.block.get(KNOWN_BYTES..).unwrap_or_default() }
    }

    #[expect(unsafe_code, reason = "checking each byte again costs a hit 100 ns and more")]
    pub(super) fn field_value(&self, value: &[u8]) -> HeaderValue {
        let shared = self.block.slice_ref(value);
        // SAFETY: `value` is a line's value in this block. Blocks are made by `of` alone, which copies the
        // values of `HeaderValue`s, and nothing writes to a block afterwards.
        unsafe { HeaderValue::from_maybe_shared_unchecked(shared) }
    }
}

impl Fields for FieldSection {
    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        self.walk().filter(move |line| line.name().is(name)).map(|line| line.value())
    }
}

impl From<HeaderMap> for FieldSection {
    fn from(map: HeaderMap) -> Self {
        let mut lines: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(map.len());
        for (name, value) in map {
            // A map names a field once, before the first of its lines.
            let name = name.or_else(|| lines.last().map(|(name, _)| name.clone()));
            lines.extend(name.map(|name| (name, value)));
        }
        lines.into_iter().collect()
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for FieldSection {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(lines: I) -> Self {
        let lines: Vec<_> = lines.into_iter().collect();
        Self::of(&lines)
    }
}

impl std::fmt::Debug for FieldSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(name, value)| (name, value.escape_ascii())))
            .finish()
    }
}

const KNOWN_BYTES: usize = size_of::<KnownSet>();
/// The overhead of a shared `Bytes`.
const SHARED_BYTES: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(section: &FieldSection) -> Vec<(&str, &[u8])> {
        section.iter().collect()
    }

    #[test]
    fn lines_are_as_they_came_and_let_go_of_the_buffer_they_were_read_into() {
        let buffer = Bytes::from(b"one, two three".repeat(600));
        let line = |(name, range)| {
            let value = HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
            (HeaderName::from_static(name), value)
        };
        let lines_of = [("x-a", 0..3), ("x-b", 5..8), ("x-a", 9..14), ("x-empty", 0..0)];
        let section: FieldSection = lines_of.into_iter().map(line).collect();
        let expected: [(&str, &[u8]); 4] =
            [("x-a", b"one"), ("x-b", b"two"), ("x-a", b"three"), ("x-empty", b"")];
        assert_eq!(lines(&section), expected);
        assert!(buffer.is_unique(), "no value keeps it alive");
    }

    #[test]
    fn repeated_lines_keep_their_order_from_map_to_map() {
        let mut map = HeaderMap::new();
        for (name, value) in [("link", "<a>"), ("etag", "\"1\""), ("link", "<b>")] {
            map.append(name, HeaderValue::from_static(value));
        }
        let section = FieldSection::from(map.clone());
        assert_eq!(section.to_map(0), map);
        let links: Vec<_> = section.lines(&http::header::LINK).collect();
        assert_eq!(links, [b"<a>", b"<b>"]);
        assert!(section.contains(&http::header::ETAG) && !section.contains(&http::header::AGE));
        assert_eq!(section.get(&http::header::AGE), None);
        assert_eq!(section.values(&http::header::ETAG).next().unwrap(), "\"1\"");
    }

    #[test]
    fn names_that_the_table_does_not_take_stand_in_their_lines() {
        let long = "x-".to_owned() + &"long-".repeat(30);
        let odd = HeaderValue::from_bytes(b"\xff\xfe").unwrap();
        let of = |name: &str| (HeaderName::from_bytes(name.as_bytes()).unwrap(), odd.clone());
        let section: FieldSection = [of("etag"), of(&long), of("x-b")].into_iter().collect();
        assert_eq!(section.len(), 3);
        assert_eq!(section.get(&of(&long).0), Some(odd.as_bytes()));
        let map = section.to_map(0);
        assert_eq!(map.len(), 3);
        assert_eq!((&map[&long], &map["x-b"]), (&odd, &odd));
        assert!(section.weight() > long.len() + 6);
    }
}
