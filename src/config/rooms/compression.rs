//! Reads the `compression` table of a site or rule.

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Reader, Section};
use super::super::remedy;
use super::super::values::{Value, text, text_or};
use crate::transform;

pub(crate) fn read_compression(section: &Section<'_>, compression: &mut transform::Settings) {
    let mut codings: Vec<Coding> = compression.codings.iter().cloned().map(Coding).collect();
    section.read("codings", &mut codings);
    compression.codings = codings.into_iter().map(|coding| coding.0).collect();
    let mut types: Vec<MediaRange> =
        compression.content_types.iter().cloned().map(MediaRange).collect();
    section.read("content_types", &mut types);
    compression.content_types = types.into_iter().map(|range| range.0).collect();
    section.read_size("bytes_min", &mut compression.bytes_min);
    section.read("private", &mut compression.private);
    section.read("decode_requests", &mut compression.decode_requests);
    let mut encode = compression.encode_requests.map(Coding);
    section.read("encode_requests", &mut encode);
    compression.encode_requests = encode.map(|coding| coding.0);
    let mut asked: Vec<OriginCoding> =
        compression.origin_codings.iter().copied().map(OriginCoding).collect();
    section.read("origin_codings", &mut asked);
    compression.origin_codings = asked.into_iter().map(|coding| coding.0).collect();
    section.read("decode", &mut compression.decode);
    section.read_size("decode_bytes_max", &mut compression.decode_limit.bytes_max);
    section.read_within("decode_ratio_max", &mut compression.decode_limit.ratio_max, 1..);
}

/// `"zstd"`, or with its level `"br:4"`.
#[derive(Debug)]
struct Coding(transform::Level);

impl Value for Coding {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected =
            "a coding, \"zstd\", \"br\" or \"gzip\", with or without a level such as \"br:4\"";
        let parse = |text: &str| {
            let (name, level) = match text.split_once(':') {
                Some((name, level)) => (name, Some(level.parse::<i32>().ok()?)),
                None => (text, None),
            };
            Some((name.parse::<transform::Coding>().ok()?, level))
        };
        let remedy = |value: &DeValue<'_>| remedy::word(value, ["zstd", "br", "gzip"]);
        let (name, level) = text_or(value, reader, expected, parse, remedy)?;
        let shipped = transform::Settings::default();
        let Some(level) = level else {
            return shipped.codings.into_iter().find(|level| level.coding() == name).map(Self);
        };
        match transform::Level::new(name, level) {
            Ok(level) => Some(Self(level)),
            Err(error) => {
                reader.mistake(&value.span(), error.to_string());
                None
            }
        }
    }
}

#[derive(Debug)]
struct OriginCoding(transform::Coding);

impl Value for OriginCoding {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a coding without a level: \"zstd\", \"br\" or \"gzip\"";
        text(value, reader, expected, |text| text.parse().ok().map(Self))
    }
}

#[derive(Debug)]
struct MediaRange(transform::MediaRange);

impl Value for MediaRange {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a media type such as \"text/html\", \"text/*\" or \"*/*+json\"";
        text(value, reader, expected, |text| text.parse().ok().map(Self))
    }
}
