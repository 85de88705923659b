//! Entity tags of coded content (RFC 9110 §8.8.3). Each coding of a representation has a tag of its own,
//! which is the origin's with a suffix:
//!
//! ```text
//! "v1"  W/"v1"            the origin's
//! "v1~br.1a2b3c4d"        stored with this coding: the number stands for these bytes and no others
//! W/"v1~br"  W/"v1~gzip"  coded on the way to one client, or the origin's tag was weak
//! ```

use crate::labels::Coding;

/// The tag of the origin's content in this coding (`None`: decoded). `number` is of the stored bytes; with
/// it the tag is as strong as the origin's, without it weak. `None` if `origin` is not an entity tag.
pub(crate) fn coded_tag(
    origin: &[u8],
    coding: Option<Coding>,
    number: Option<u32>,
) -> Option<Vec<u8>> {
    let origin = origin.trim_ascii();
    let opaque = origin.strip_prefix(WEAK).unwrap_or(origin);
    let text = opaque.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let number = number.filter(|_| opaque.len() == origin.len());
    let weak: &[u8] = if number.is_some() { b"" } else { WEAK };
    let suffix = coding.map_or(DECODED, Coding::as_str);
    let mut tag = [weak, b"\"", text, b"~", suffix.as_bytes()].concat();
    if let Some(number) = number {
        tag.extend_from_slice(format!(".{number:08x}").as_bytes());
    }
    tag.push(b'"');
    Some(tag)
}

/// The number in `form`, if that is the tag of stored content in this coding whose origin's tag is `origin`. Both are strong.
pub(crate) fn number_of_form(origin: &[u8], coding: Coding, form: &[u8]) -> Option<u32> {
    let digits = form.trim_ascii().strip_suffix(b"\"")?.rsplit(|byte| *byte == b'.').next()?;
    let number = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    let tag = coded_tag(origin, Some(coding), Some(number))?;
    (tag == form.trim_ascii() && !tag.starts_with(WEAK)).then_some(number)
}

/// The text between the quotes of an entity tag. `None` if it is malformed.
pub(crate) fn text_of(tag: &[u8]) -> Option<&[u8]> {
    let tag = tag.trim_ascii();
    let opaque = tag.strip_prefix(WEAK).unwrap_or(tag);
    opaque.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""))
}

/// The text of an entity tag without the suffix of a coding. `None` if it has none.
pub(crate) fn without_coding(tag: &[u8]) -> Option<&[u8]> {
    let text = text_of(tag)?;
    let at = memchr::memrchr(b'~', text)?;
    is_suffix(&text[at + 1..]).then_some(&text[..at])
}

/// `br`, `identity`, or with a number `br.1a2b3c4d`.
fn is_suffix(suffix: &[u8]) -> bool {
    let (word, number) = match memchr::memchr(b'.', suffix) {
        Some(dot) => (&suffix[..dot], Some(&suffix[dot + 1..])),
        None => (suffix, None),
    };
    let words = Coding::WORDS.iter().chain([&DECODED]);
    words.into_iter().any(|known| known.as_bytes() == word)
        && number.is_none_or(|digits| digits.len() == 8 && digits.iter().all(u8::is_ascii_hexdigit))
}

/// The members of a list of entity tags. Commas within quotes are part of the tag, and a
/// backslash is an ordinary character there (RFC 9110 §8.8.3).
pub(crate) fn entity_tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|tag| !tag.is_empty())
}

const WEAK: &[u8] = b"W/";
/// The suffix of content that the origin sent coded and that was decoded.
const DECODED: &str = "identity";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn coded(origin: &str, coding: Option<Coding>, number: Option<u32>) -> Option<String> {
        let tag = coded_tag(origin.as_bytes(), coding, number);
        tag.map(|tag| String::from_utf8(tag).unwrap())
    }

    #[test]
    fn a_coded_tag_is_strong_only_for_stored_bytes_of_a_strong_tag() {
        let br = Some(Coding::Brotli);
        let check = |origin, coding, number, expected: &str| {
            assert_eq!(coded(origin, coding, number).as_deref(), Some(expected), "{origin}");
        };
        check("\"v1\"", br, Some(0x1a2b_3c4d), "\"v1~br.1a2b3c4d\"");
        check("\"v1\"", br, None, "W/\"v1~br\"");
        check("W/\"v1\"", br, Some(7), "W/\"v1~br\"");
        check("\"\"", None, Some(7), "\"~identity.00000007\"");
        for malformed in ["v1", "\"v1", "w/\"v1\"", ""] {
            assert_eq!(coded(malformed, br, None), None, "{malformed}");
        }
    }

    #[test]
    fn the_number_of_a_form_is_that_of_its_origins_tag_and_coding() {
        let check = |origin: &str, form: &str, expected| {
            let number = number_of_form(origin.as_bytes(), Coding::Brotli, form.as_bytes());
            assert_eq!(number, expected, "{origin} {form}");
        };
        check("\"v1\"", "\"v1~br.1a2b3c4d\"", Some(0x1a2b_3c4d));
        check("\"v1~br.00000001\"", "\"v1~br.00000001~br.00000002\"", Some(2));
        for other in
            ["\"v2~br.1a2b3c4d\"", "\"v1~gzip.1a2b3c4d\"", "\"v1~br.1A2B3C4D\"", "\"v1~br\""]
        {
            check("\"v1\"", other, None);
        }
        check("\"v1\"", "W/\"v1~br\"", None);
        check("W/\"v1\"", "W/\"v1~br\"", None);
        check("\"v1\"", "\"v1\"", None);
    }

    #[test]
    fn only_the_suffix_of_a_coding_is_removed() {
        let check = |tag: &str, expected: Option<&str>| {
            assert_eq!(without_coding(tag.as_bytes()), expected.map(str::as_bytes), "{tag}");
        };
        check("\"v1~br.1a2b3c4d\"", Some("v1"));
        check("W/\"v1~zstd\"", Some("v1"));
        check("\"v1~br~gzip\"", Some("v1~br"));
        for without in
            ["\"v1~deflate\"", "\"v1~br.12\"", "\"v1-gzip\"", "\"v1\"", "*", "v1~br", "\"v1~br"]
        {
            check(without, None);
        }
    }

    proptest! {
        #[test]
        fn the_origins_text_comes_back(text in "[!#-~]{0,20}", number in any::<Option<u32>>()) {
            let tag = coded(&format!("\"{text}\""), Some(Coding::Gzip), number).unwrap();
            prop_assert_eq!(without_coding(tag.as_bytes()), Some(text.as_bytes()));
        }
    }
}
