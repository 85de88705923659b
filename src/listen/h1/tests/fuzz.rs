//! Fuzz targets: the head and the chunked body of a request over HTTP/1.

use bytes::Bytes;
use http::Version;

use super::chunks::{ChunkDecoder, Decoded};
use super::head::{HeadScanner, RequestFraming, RequestHead, parse};
use crate::listen::settings::Limits;

/// Cutting the bytes in two does not change where the head ends, and the parsed head agrees with a reading
/// line by line. The first byte chooses the cut.
pub(crate) fn h1_head(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let found = HeadScanner::default().find(bytes);
    let cut = usize::from(cut).min(bytes.len());
    let mut scanner = HeadScanner::default();
    let in_two = match scanner.find(&bytes[..cut]) {
        Ok(None) => scanner.find(bytes),
        early => early,
    };
    // The cut may change which of two reasons for a refusal is found first.
    assert_eq!(in_two.ok(), found.clone().ok(), "cut at {cut}");
    let Ok(Some(range)) = found else { return };
    let limits = Limits::default();
    let lines = &bytes[range];
    if let Ok(head) = parse(Bytes::copy_from_slice(lines), &limits) {
        agrees(&head, lines);
        assert!(head.request.headers().len() <= limits.headers_max);
    }
}

/// Compares an accepted head with its lines.
fn agrees(head: &RequestHead, lines: &[u8]) {
    let text = lines.strip_suffix(b"\r\n\r\n").expect("a head ends with an empty line");
    let mut lines = split(text, b"\r\n").into_iter();
    let first = split(lines.next().expect("a request line"), b" ");
    let [method, target, version] = first[..] else { panic!("{first:?} has not three words") };
    assert_eq!(method, head.request.method().as_str().as_bytes());
    assert_eq!(version == b"HTTP/1.0", head.request.version() == Version::HTTP_10);
    assert!(target.iter().all(|byte| *byte > b' ' && *byte != 0x7f), "{target:?}");
    let mut fields = Vec::new();
    for line in lines {
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r') && !line.contains(&0), "{line:?}");
        let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
        let is_token =
            |byte: &u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(byte);
        assert!(colon > 0 && line[..colon].iter().all(is_token), "{line:?}");
        fields.push((line[..colon].to_ascii_lowercase(), trim(&line[colon + 1..]).to_vec()));
    }
    let (lengths, codings) =
        (values(&fields, "content-length"), values(&fields, "transfer-encoding"));
    match head.framing {
        RequestFraming::Length(length) => {
            assert!(codings.is_empty());
            match lengths[..] {
                [] => assert_eq!(length, 0),
                [one] => assert_eq!(str::from_utf8(one).expect("digits").parse(), Ok(length)),
                _ => panic!("{} lengths", lengths.len()),
            }
        }
        RequestFraming::Chunked => {
            assert!(lengths.is_empty() && codings.len() == 1);
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"));
        }
        RequestFraming::Unknown => assert!(lengths.is_empty() && codings.len() == 1),
    }
    let read: Vec<_> = head.request.headers().iter().collect();
    assert_eq!(read.len(), fields.len());
    for name in head.request.headers().keys() {
        let read: Vec<&[u8]> =
            head.request.headers().get_all(name).iter().map(|value| value.as_bytes()).collect();
        assert_eq!(read, values(&fields, name.as_str()), "{name}");
    }
    let closes = values(&fields, "connection").iter().any(|value| {
        split(value, b",").iter().any(|option| trim(option).eq_ignore_ascii_case(b"close"))
    });
    assert!(!closes || !head.keep_alive);
}

fn values<'a>(fields: &'a [(Vec<u8>, Vec<u8>)], name: &str) -> Vec<&'a [u8]> {
    let named = fields.iter().filter(|(field, _)| field == name.as_bytes());
    named.map(|(_, value)| &**value).collect()
}

fn split<'a>(text: &'a [u8], by: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest, by) {
        parts.push(&rest[..at]);
        rest = &rest[at + by.len()..];
    }
    parts.push(rest);
    parts
}

/// Removes spaces and tabs at both ends (RFC 9110 §5.5).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A chunked body decodes to the same content, end and verdict in one piece, in two and byte by byte. An
/// accepted body has the content that a simple decoder finds, and every correctly encoded body is accepted.
/// The first byte chooses the cut.
pub(crate) fn h1_chunks(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let cut = usize::from(cut).min(bytes.len());
    let whole = decode(&[bytes]);
    let (first, second) = bytes.split_at(cut);
    assert_eq!(decode(&[first, second]), whole, "cut at {cut}");
    let singles: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(decode(&singles), whole, "byte by byte");
    if let Some((content, Some(end))) = &whole {
        assert!(*end <= bytes.len() && content.len() < *end);
        assert_eq!(Some(content), decode_simply(bytes).as_ref());
    }
    let mut encoded = Vec::new();
    for chunk in bytes.chunks(cut.max(1)) {
        encoded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        encoded.extend_from_slice(chunk);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(decode(&[&encoded]), Some((bytes.to_vec(), Some(encoded.len()))));
}

/// The content so far, and the length of the body once it has ended; `None`: not valid.
pub(super) fn decode(pieces: &[&[u8]]) -> Option<(Vec<u8>, Option<usize>)> {
    let (mut chunks, limits) = (ChunkDecoder::default(), Limits::default());
    let (mut content, mut before) = (Vec::new(), 0);
    for piece in pieces {
        let mut used = 0;
        while used < piece.len() {
            match chunks.decode(&piece[used..], &limits) {
                Decoded::Data(range) => {
                    content.extend_from_slice(&piece[used..][range.clone()]);
                    used += range.end;
                }
                Decoded::More => used = piece.len(),
                Decoded::End(length) => return Some((content, Some(before + used + length))),
                Decoded::Invalid => return None,
            }
        }
        before += piece.len();
    }
    Some((content, None))
}

/// The content of a complete body; extensions and trailers are ignored.
fn decode_simply(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let end = memchr::memmem::find(bytes, b"\r\n")?;
        let digits = bytes[..end].split(|byte| *byte == b';').next()?;
        let size = usize::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(content);
        }
        content.extend_from_slice(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
}
