//! Fields of an answer on its way to the wire.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{FieldSection, Fields, FieldsMut, Known, KnownSet, Line, Walk, push_line};

/// The fields of an answer, in the order in which they go out: lines of a stored section, which
/// are not copied, without those that were taken out; and behind them lines of its own. Few
/// lines are walked through faster than a map is made and thrown away.
#[derive(Clone, Default)]
pub(crate) struct FieldLines {
    stored: FieldSection,
    /// A bit for each line of `stored` that was taken out, the first in the lowest.
    out: u64,
    own: Vec<u8>,
    /// Of all that go out.
    known: KnownSet,
}

impl FieldLines {
    /// What was stored, with room for lines of its own.
    pub(crate) fn of(stored: &FieldSection) -> Self {
        let known = stored.known();
        Self { stored: stored.clone(), out: 0, own: Vec::with_capacity(OWN_BYTES), known }
    }

    /// Whether there is a line of such a name.
    pub(crate) fn has(&self, known: Known) -> bool {
        self.known.has(known)
    }

    /// The value of the last line of such a name.
    pub(crate) fn last(&self, known: Known) -> Option<&[u8]> {
        let lines = self.has(known).then(|| self.walk().filter(|line| line.known() == known));
        lines?.last().map(|line| line.value())
    }

    /// Every line.
    #[inline]
    pub(crate) fn walk(&self) -> impl Iterator<Item = Line<'_>> {
        self.kept().chain(Walk { rest: &self.own })
    }

    /// Of what was stored, what was not taken out.
    #[inline]
    fn kept(&self) -> impl Iterator<Item = Line<'_>> {
        let mut out = self.out;
        self.stored.walk().filter(move |_| {
            let is_out = out & 1 == 1;
            out >>= 1;
            !is_out
        })
    }

    /// Adds a line with a number.
    pub(crate) fn append_number(&mut self, name: &HeaderName, number: u64) {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(number).as_bytes();
        self.push(name, |text| text.extend_from_slice(digits));
    }

    /// Adds a line with what `write` puts at the end of the bytes it is given, which it knows to
    /// be a field value.
    pub(crate) fn append_text(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        self.push(name, |text| {
            let start = text.len();
            write(text);
            debug_assert!(HeaderValue::from_bytes(&text[start..]).is_ok(), "{name}");
        });
    }

    fn push(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        self.known.add(push_line(&mut self.own, name, write));
    }

    /// Puts a line with a number in the place of all of its name.
    pub(crate) fn set_number(&mut self, name: &HeaderName, number: u64) {
        self.remove(name);
        self.append_number(name, number);
    }

    /// Takes out all lines of these names.
    pub(crate) fn remove_all(&mut self, names: &[HeaderName]) {
        let is_one = |line: &Line<'_>| names.iter().any(|name| line.name().is(name));
        let found = self.stored.walk().enumerate().filter(|(_, line)| is_one(line));
        let mut out = self.out;
        for (place, _) in found {
            if place >= PLACES {
                return self.copy_without(names);
            }
            out |= 1 << place;
        }
        self.out = out;
        if (Walk { rest: &self.own }).any(|line| is_one(&line)) {
            return self.copy_without(names);
        }
        self.known = self.walk().collect();
    }

    /// As a map, for who needs one.
    pub(crate) fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.walk().count() + 2);
        for line in self.kept() {
            map.append(line.name().to_name(), self.stored.field_value(line.value()));
        }
        for line in (Walk { rest: &self.own }) {
            let value = HeaderValue::from_bytes(line.value()).expect("it was a value");
            map.append(line.name().to_name(), value);
        }
        map
    }

    /// All but lines of these names become its own.
    fn copy_without(&mut self, names: &[HeaderName]) {
        let mut own = Vec::with_capacity(self.own.len() + OWN_BYTES);
        for line in self.walk().filter(|line| !names.iter().any(|name| line.name().is(name))) {
            push_line(&mut own, &line.name().to_name(), |text| {
                text.extend_from_slice(line.value())
            });
        }
        *self = Self::own(own);
    }

    fn own(own: Vec<u8>) -> Self {
        let known = (Walk { rest: &own }).collect();
        Self { own, known, ..Self::default() }
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
        let mut own = Vec::with_capacity(map.iter().map(room).sum::<usize>() + OWN_BYTES);
        for (name, value) in map {
            push_line(&mut own, name, |text| text.extend_from_slice(value.as_bytes()));
        }
        Self::own(own)
    }
}

impl std::fmt::Debug for FieldLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines = self.walk().map(|line| (line.name().as_str(), line.value().escape_ascii()));
        f.debug_map().entries(lines).finish()
    }
}

/// So many lines of a stored section can be taken out one by one.
const PLACES: usize = u64::BITS as usize;
/// What an answer says beside what is stored: `Age`, `Via`, `Cache-Status`.
const OWN_BYTES: usize = 160;

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

    fn said(lines: &FieldLines) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        lines.walk().map(|line| (text(line.name().as_bytes()), text(line.value()))).collect()
    }

    #[test]
    fn what_is_taken_out_is_gone_and_what_is_added_comes_last() {
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
        assert_eq!(said(&lines), [pair("etag", "1"), pair("link", "<d>"), pair("age", "8")]);
        lines.remove(&named("etag"));
        assert!(!lines.contains(&named("etag")) && lines.get(&named("age")) == Some(b"8"));
        assert_eq!(FieldLines::of(&stored).lines(&named("link")).count(), 2, "others see all");
    }

    #[test]
    fn lines_beyond_the_places_can_be_taken_out_too() {
        let many = (0..PLACES + 10).map(|number| (format!("x-{number}"), "y"));
        let stored = section(many.chain([("x-3".into(), "again")]));
        let mut lines = FieldLines::of(&stored);
        lines.remove(&named("x-5"));
        lines.remove(&named("x-3"));
        assert_eq!(lines.walk().count(), PLACES + 8);
        assert!(!lines.contains(&named("x-3")) && !lines.contains(&named("x-5")));
        assert!(lines.contains(&named("x-70")));
    }

    #[test]
    fn a_map_says_what_the_lines_say() {
        let long = format!("x-{}", "long".repeat(30));
        let stored = section([("etag".into(), "1"), (long, "2"), ("link".into(), "<a>")]);
        let mut lines = FieldLines::of(&stored);
        lines.remove(&named("etag"));
        lines.append(&named("link"), &HeaderValue::from_bytes(b"<\xe9>").unwrap());
        let map = lines.to_map();
        assert_eq!(said(&FieldLines::from(&map)), said(&lines));
        assert_eq!(map.len(), 3);
    }
}
