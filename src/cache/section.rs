//! A field section as it is stored, and what rules read of any: a list where a map costs more
//! than it saves.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// What rules read of a field section (RFC 9110 §5), be it stored or on its way.
pub trait Fields {
    /// The first line of this name.
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue>;

    /// All lines of this name, as received.
    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &HeaderValue>;
}

impl Fields for HeaderMap {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        Self::get(self, name)
    }

    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &HeaderValue> {
        self.get_all(name).into_iter()
    }
}

/// Field lines in the order in which they came. A line takes two thirds of its room in a
/// [`HeaderMap`], and looking for one of a dozen by its name is no slower.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSection(Vec<(HeaderName, HeaderValue)>);

impl FieldSection {
    /// The number of lines.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is a line of this name.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.0.iter().any(|(ours, _)| ours == name)
    }

    /// Every line.
    pub fn iter(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter()
    }

    /// Adds a line at the end.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push((name, value));
    }

    /// The same lines in exactly the room that they need, their values in one allocation. As they
    /// came, each holds on to the buffer that its connection was read into, 8 KiB and more.
    pub fn compact(&self) -> Self {
        let values = || self.0.iter().map(|(_, value)| value.as_bytes());
        let mut bytes = Vec::with_capacity(values().map(<[u8]>::len).sum());
        values().for_each(|value| bytes.extend_from_slice(value));
        let mut rest = Bytes::from(bytes.into_boxed_slice());
        let copy = |(name, value): &(HeaderName, HeaderValue)| {
            let copy = HeaderValue::from_maybe_shared(rest.split_to(value.len()));
            (name.clone(), copy.unwrap_or_else(|_| value.clone()))
        };
        Self(self.0.iter().map(copy).collect())
    }

    /// As a map with room for `more` names.
    pub fn to_map(&self, more: usize) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.0.len() + more);
        for (name, value) in &self.0 {
            map.append(name, value.clone());
        }
        map
    }

    /// Bytes that it holds in memory, apart from the section itself: each value is counted with
    /// its own bytes alone, as [`Self::compact`] leaves it.
    pub fn weight(&self) -> usize {
        let values: usize = self.0.iter().map(|(_, value)| value.len()).sum();
        self.0.capacity() * size_of::<(HeaderName, HeaderValue)>() + values
    }
}

impl Fields for FieldSection {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.lines(name).next()
    }

    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &HeaderValue> {
        self.0.iter().filter(move |(ours, _)| ours == name).map(|(_, value)| value)
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
        Self(lines)
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for FieldSection {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(lines: I) -> Self {
        Self(lines.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(section: &FieldSection) -> Vec<(&str, &[u8])> {
        section.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }

    #[test]
    fn compact_lines_are_the_same_and_let_go_of_the_buffer_they_were_read_into() {
        let buffer = Bytes::from(b"one, two three".repeat(600));
        let mut section = FieldSection::default();
        for (name, range) in [("x-a", 0..3), ("x-b", 5..8), ("x-a", 9..14), ("x-empty", 0..0)] {
            let value = HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
            section.append(HeaderName::from_static(name), value);
        }
        let compact = section.compact();
        assert_eq!(lines(&compact), lines(&section));
        drop(section);
        assert!(buffer.is_unique(), "nothing holds on to it");
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
        assert_eq!(links, ["<a>", "<b>"]);
        assert!(section.contains(&http::header::ETAG) && !section.contains(&http::header::AGE));
        assert_eq!(section.get(&http::header::AGE), None);
    }
}
