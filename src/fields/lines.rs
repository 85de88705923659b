//! The fields of a reply.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{FieldSection, Fields, FieldsMut, Known, KnownSet, Line, Walk, push_line};

/// The fields of a reply in the order in which they are sent: first the lines of a stored section, which are
/// not copied, without the removed ones; then added lines. Iterating over few lines is faster than building a
/// map.
#[derive(Clone, Default)]
pub(crate) struct FieldLines {
    stored: FieldSection,
    /// A bit for each line of `stored` that is removed; the lowest bit is for the first line.
    removed: u64,
    added: Vec<u8>,
    /// The known fields of the lines that are sent.
    known: KnownSet,
}

impl FieldLines {
    /// The lines of a stored section, with room for more.
    pub(crate) fn of(stored: &FieldSection) -> Self {
        let known = stored.known();
        Self { stored: stored.clone(), removed: 0, added: Vec::with_capacity(ADDED_BYTES), known }
    }

    /// Whether there is a line with this name.
    pub(crate) fn has(&self, known: Known) -> bool {
        self.known.has(known)
    }

    /// The value of the last line with this name.
    pub(crate) fn last(&self, known: Known) -> Option<&[u8]> {
        let lines = self.has(known).then(|| self.walk().filter(|line| line.known() == known));
        lines?.last().map(|line| line.value())
    }

    /// All lines.
    #[inline]
    pub(crate) fn walk(&self) -> impl Iterator<Item = Line<'_>> {
        self.kept().chain(Walk { rest: &self.added })
    }

    /// The stored lines that are not removed.
    #[inline]
    fn kept(&self) -> impl Iterator<Item = Line<'_>> {
        let mut removed = self.removed;
        self.stored.walk().filter(move |_| {
            let is_removed = removed & 1 == 1;
            removed >>= 1;
            !is_removed
        })
    }

    /// Appends a line with a number.
    pub(crate) fn append_number(&mut self, name: &HeaderName, number: u64) {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(number).as_bytes();
        self.push(name, |text| text.extend_from_slice(digits));
    }

    /// Appends a line with the value that `write` appends to its argument. The value must be valid.
    pub(crate) fn append_text(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        self.push(name, |text| {
            let start = text.len();
            write(text);
            debug_assert!(HeaderValue::from_bytes(&text[start..]).is_ok(), "{name}");
        });
    }

    fn push(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        self.known.add(push_line(&mut self.added, name, write));
    }

    /// Replaces all lines with this name by one line with a number.
    pub(crate) fn set_number(&mut self, name: &HeaderName, number: u64) {
        self.remove(name);
        self.append_number(name, number);
    }

    /// Removes all lines with these names.
    pub(crate) fn remove_all(&mut self, names: &[HeaderName]) {
        let is_one = |line: &Line<'_>| names.iter().any(|name| line.name().is(name));
        let found = self.stored.walk().enumerate().filter(|(_, line)| is_one(line));
        let mut removed = self.removed;
        for (place, _) in found {
            if place >= STORED_LINES_MAX {
                return self.copy_without(names);
            }
            removed |= 1 << place;
        }
        self.removed = removed;
        if (Walk { rest: &self.added }).any(|line| is_one(&line)) {
            return self.copy_without(names);
        }
        self.known = self.walk().collect();
    }

    /// The lines as a map.
    pub(crate) fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.walk().count() + 2);
        for line in self.kept() {
            map.append(line.name().to_name(), self.stored.field_value(line.value()));
        }
        for line in (Walk { rest: &self.added }) {
            let value = HeaderValue::from_bytes(line.value()).expect("a line has a valid value");
            map.append(line.name().to_name(), value);
        }
        map
    }

    /// Copies all lines but those with these names to the added ones.
    fn copy_without(&mut self, names: &[HeaderName]) {
        let mut added = Vec::with_capacity(self.added.len() + ADDED_BYTES);
        for line in self.walk().filter(|line| !names.iter().any(|name| line.name().is(name))) {
            push_line(&mut added, &line.name().to_name(), |text| {
                text.extend_from_slice(line.value())
            });
        }
        *self = Self::from_added(added);
    }

    fn from_added(added: Vec<u8>) -> Self {
        let known = (Walk { rest: &added }).collect();
        Self { added, known, ..Self::default() }
    }
}

impl Fields for FieldLines {
    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        self.walk().filter(move |line| line.name().is(name)).map(|line| line.value())
    }
}

impl FieldsMut for FieldLines {
    fn remove(&mut self, name: &HeaderName) {
        self.remove_all(std::slice::from_ref(name));
    }

    fn append(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.push(name, |text| text.extend_from_slice(value.as_bytes()));
    }
}

impl From<&HeaderMap> for FieldLines {
    fn from(map: &HeaderMap) -> Self {
        let room =
            |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 12;
        let room = map.iter().map(room).sum::<usize>() + ADDED_BYTES;
        let mut lines = Self { added: Vec::with_capacity(room), ..Self::default() };
        for (name, value) in map {
            lines.append(name, value);
        }
        lines
    }
}

impl std::fmt::Debug for FieldLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines = self.walk().map(|line| (line.name().as_str(), line.value().escape_ascii()));
        f.debug_map().entries(lines).finish()
    }
}

/// Lines of a stored section that can be removed without a copy.
const STORED_LINES_MAX: usize = u64::BITS as usize;
/// Room for the fields that a reply adds to a stored response: `Age`, `Via`, `Cache-Status`.
const ADDED_BYTES: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    fn section(lines: impl IntoIterator<Item = (String, &'static str)>) -> FieldSection {
        let line =
            |(name, value): (String, _)| (name.parse().unwrap(), HeaderValue::from_static(value));
        lines.into_iter().map(line).collect()
    }

    fn named(name: &'static str) -> HeaderName {
        HeaderName::from_static(name)
    }

    fn pairs(lines: &FieldLines) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        lines.walk().map(|line| (text(line.name().as_bytes()), text(line.value()))).collect()
    }

    #[test]
    fn removed_lines_are_gone_and_added_lines_come_last() {
        let stored =
            section([("etag".into(), "1"), ("link".into(), "<a>"), ("link".into(), "<b>")]);
        let mut lines = FieldLines::of(&stored);
        lines.append_number(&named("age"), 7);
        lines.append(&named("link"), &HeaderValue::from_static("<c>"));
        let links: Vec<_> = lines.lines(&named("link")).collect();
        assert_eq!(links, [b"<a>", b"<b>", b"<c>"]);
        lines.set(&named("link"), &HeaderValue::from_static("<d>"));
        lines.set_number(&named("age"), 8);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(pairs(&lines), [pair("etag", "1"), pair("link", "<d>"), pair("age", "8")]);
        lines.remove(&named("etag"));
        assert!(!lines.contains(&named("etag")) && lines.get(&named("age")) == Some(b"8"));
        assert_eq!(FieldLines::of(&stored).lines(&named("link")).count(), 2, "others see all");
    }

    #[test]
    fn lines_beyond_the_bits_can_be_removed_too() {
        let many = (0..STORED_LINES_MAX + 10).map(|number| (format!("x-{number}"), "y"));
        let stored = section(many.chain([("x-3".into(), "again")]));
        let mut lines = FieldLines::of(&stored);
        lines.remove(&named("x-5"));
        lines.remove(&named("x-3"));
        assert_eq!(lines.walk().count(), STORED_LINES_MAX + 8);
        assert!(!lines.contains(&named("x-3")) && !lines.contains(&named("x-5")));
        assert!(lines.contains(&named("x-70")));
    }

    #[test]
    fn a_map_has_the_same_fields_as_the_lines() {
        let long = format!("x-{}", "long".repeat(30));
        let stored = section([("etag".into(), "1"), (long, "2"), ("link".into(), "<a>")]);
        let mut lines = FieldLines::of(&stored);
        lines.remove(&named("etag"));
        lines.append(&named("link"), &HeaderValue::from_bytes(b"<\xe9>").unwrap());
        let map = lines.to_map();
        assert_eq!(pairs(&FieldLines::from(&map)), pairs(&lines));
        assert_eq!(map.len(), 3);
    }
}
