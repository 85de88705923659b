//! Parses sitemaps (sitemaps.org). The caller fetches them.

use std::collections::BTreeSet;
use std::io::Read;

use bytes::Bytes;
use flate2::read::GzDecoder;
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;

/// The text of a sitemap file, decompressed if it is gzip.
///
/// # Errors
/// Invalid gzip, too long, or not UTF-8.
pub(super) fn decode(content: Bytes) -> Result<String, String> {
    let content = if content.starts_with(&GZIP) {
        let mut plain = Vec::new();
        let mut reader = GzDecoder::new(&content[..]).take(SITEMAP_BYTES_MAX as u64 + 1);
        reader.read_to_end(&mut plain).map_err(|error| error.to_string())?;
        if plain.len() > SITEMAP_BYTES_MAX {
            return Err(format!("longer than {SITEMAP_BYTES_MAX} bytes after decompression"));
        }
        plain
    } else {
        content.into()
    };
    String::from_utf8(content).map_err(|_| "not UTF-8 text".to_owned())
}

/// The URLs in `<loc>`, and whether the file is an index (the URLs are those of sitemaps).
///
/// # Errors
/// The XML is malformed.
pub(super) fn locations(text: &str) -> Result<(BTreeSet<String>, bool), quick_xml::Error> {
    let mut reader = Reader::from_str(text);
    let (mut locations, mut is_index) = (BTreeSet::new(), false);
    // The text of the `<loc>` that is being read.
    let mut location: Option<String> = None;
    loop {
        match reader.read_event()? {
            Event::Start(tag) => match tag.local_name().as_ref() {
                "sitemapindex" => is_index = true,
                "loc" => location = Some(String::new()),
                _ => {}
            },
            Event::Text(text) => location.iter_mut().for_each(|location| location.push_str(&text)),
            Event::CData(text) => location.iter_mut().for_each(|location| location.push_str(&text)),
            Event::GeneralRef(entity) => {
                let character = entity.resolve_char_ref()?.map(String::from);
                let named = || resolve_predefined_entity(&entity).map(str::to_owned);
                let text = character.or_else(named).unwrap_or_default();
                location.iter_mut().for_each(|location| location.push_str(&text));
            }
            Event::End(tag) if tag.local_name().as_ref() == "loc" => {
                locations.extend(location.take().map(|text| text.trim().to_owned()));
            }
            Event::Eof => return Ok((locations, is_index)),
            _ => {}
        }
    }
}

/// The first bytes of a gzip file (RFC 1952 §2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// The longest sitemap that sitemaps.org allows.
pub(super) const SITEMAP_BYTES_MAX: usize = 50 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locations_of_a_sitemap_are_found() {
        let check = |text: &str, expected: &[&str], is_index| {
            let (found, index) = locations(text).expect("it can be read");
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            assert_eq!((&found[..], index), (expected, is_index));
        };
        let map = "<urlset><url><loc> https://a/?b=1&amp;c=2 </loc></url>\n\
                   <url><loc><![CDATA[https://a/?d&e]]></loc></url></urlset>";
        check(map, &["https://a/?b=1&c=2", "https://a/?d&e"], false);
        let index = "<s:sitemapindex><s:sitemap><s:loc>https://a/1.xml</s:loc></s:sitemap>\
                     </s:sitemapindex>";
        check(index, &["https://a/1.xml"], true);
        check("<urlset><loc>https://a/", &[], false);
        check("<loc>https://a/&amp;lt;&#x41;</loc>", &["https://a/&lt;A"], false);
        assert!(locations("<urlset></url>").is_err());
    }

    #[test]
    fn a_compressed_sitemap_is_limited_by_its_decompressed_length() {
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            std::io::Write::write_all(&mut encoder, bytes).unwrap();
            Bytes::from(encoder.finish().unwrap())
        };
        assert_eq!(decode(gzip(b"<urlset/>")).as_deref(), Ok("<urlset/>"));
        let why = decode(gzip(&vec![b' '; SITEMAP_BYTES_MAX + 1])).unwrap_err();
        assert!(why.contains("longer than"), "{why}");
        assert!(decode(gzip(b"\xff")).unwrap_err().contains("UTF-8"));
    }
}
