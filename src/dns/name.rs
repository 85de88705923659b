//! Domain names in wire form (RFC 1035 §3.1): labels with their lengths, the root last, no compression.

use std::fmt::Write;
use std::str::FromStr;

use hickory_proto::rr::Name;

/// The longest name in wire form, with the root (RFC 1035 §2.3.4).
pub(super) const NAME_MAX: usize = 255;

/// A name in wire form and lower case, as names are compared (RFC 4343). Lives on the stack.
#[derive(Clone, Copy)]
pub(super) struct LowerName {
    bytes: [u8; NAME_MAX],
    length: u8,
}

impl LowerName {
    /// Copies the uncompressed name at the start of `wire`. `None`: no complete name is there.
    pub(super) fn read(wire: &[u8]) -> Option<Self> {
        let length = length_of(wire)?;
        let mut name = Self { bytes: [0; NAME_MAX], length: length as u8 };
        // A length byte is at most 63, which is below every letter.
        for (to, from) in name.bytes.iter_mut().zip(&wire[..length]) {
            *to = from.to_ascii_lowercase();
        }
        Some(name)
    }

    /// The name in wire form.
    pub(super) fn wire(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The length in bytes of the uncompressed name at the start of `wire`. `None`: a compression pointer,
/// a name above [`NAME_MAX`], or the bytes end before the name.
pub(super) fn length_of(wire: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let label = usize::from(*wire.get(at)?);
        at += 1 + label;
        if label > LABEL_MAX || at > NAME_MAX {
            return None;
        }
        if label == 0 {
            return Some(at);
        }
    }
}

/// Where each label of a name in wire form begins, the root last.
pub(super) fn label_starts(wire: &[u8]) -> impl Iterator<Item = usize> {
    let next = |at: &usize| {
        let label = usize::from(wire[*at]);
        (label > 0).then_some(at + 1 + label)
    };
    std::iter::successors(Some(0), next)
}

/// Whether `name` is `zone` or below it; both in wire form and lower case.
pub(super) fn is_within(name: &[u8], zone: &[u8]) -> bool {
    name.ends_with(zone) && label_starts(name).any(|start| start == name.len() - zone.len())
}

/// The absolute name of `text`, such as `www.example.org` or `www.example.org.`, in wire form and lower case.
///
/// # Errors
/// `text` is no domain name.
pub(crate) fn from_text(text: &str) -> Result<Box<[u8]>, String> {
    let name = Name::from_str(text).map_err(|error| match text.contains("..") {
        true => format!("{text:?} is no domain name: two dots stand side by side"),
        false => {
            format!("{text:?} is no domain name: {}", error.to_string().trim_end_matches(": "))
        }
    })?;
    Ok(to_wire(&name))
}

/// The name in wire form and lower case.
pub(super) fn to_wire(name: &Name) -> Box<[u8]> {
    let mut wire = Vec::with_capacity(name.len() + 1);
    for label in name.iter() {
        wire.push(label.len() as u8);
        wire.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    wire.push(0);
    wire.into()
}

/// The name as in a zone file (RFC 1035 §5.1), with a dot at the end.
pub(super) fn to_text(wire: &[u8]) -> String {
    let mut text = String::new();
    for start in label_starts(wire) {
        let label = &wire[start + 1..start + 1 + usize::from(wire[start])];
        for byte in label {
            match byte {
                b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                    text.extend(['\\', *byte as char]);
                }
                0x21..=0x7e => text.push(*byte as char),
                _ => write!(text, "\\{byte:03}").expect("a String"),
            }
        }
        if !label.is_empty() || text.is_empty() {
            text.push('.');
        }
    }
    text
}

const LABEL_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_lowered_and_its_bounds_are_those_of_the_rfc() {
        let name = LowerName::read(b"\x03wWw\x07ExAmple\x00rest").expect("a name");
        assert_eq!(name.wire(), b"\x03www\x07example\x00");
        assert_eq!(length_of(b"\x00"), Some(1));
        for broken in [&b"\x03ww"[..], b"", b"\xc0\x0c", b"\x40aaaa\x00", b"\x03www"] {
            assert_eq!(length_of(broken), None, "{broken:?}");
        }
        let label = [&[63][..], &[b'a'; 63]].concat();
        let longest = [&label[..], &label, &label, &[61], &[b'a'; 61], &[0]].concat();
        assert_eq!((longest.len(), length_of(&longest)), (255, Some(255)));
        let longer = [&label[..], &label, &label, &[62], &[b'a'; 62], &[0]].concat();
        assert_eq!(length_of(&longer), None);
    }

    #[test]
    fn a_name_is_within_a_zone_by_labels_not_by_letters() {
        let check = |name: &str, zone: &str, expected| {
            let (name, zone) = (from_text(name).expect("a name"), from_text(zone).expect("a name"));
            assert_eq!(is_within(&name, &zone), expected);
        };
        check("www.example.org", "example.org", true);
        check("example.org.", "Example.org", true);
        check("wwwexample.org", "example.org", false);
        check("org", "example.org", false);
    }

    #[test]
    fn text_and_wire_are_the_same_name() {
        for text in ["www.example.org.", "*.example.org.", r"a\.b.example."] {
            assert_eq!(to_text(&from_text(text).expect("a name")), text);
        }
        assert_eq!(to_text(b"\x02a\xff\x00"), r"a\255.");
        assert_eq!(to_text(b"\x00"), ".");
        assert!(from_text("a..b").is_err());
    }
}
