//! Reads the `compression` table of a site or rule, and the table `hot_forms`.

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Reader, Section};
use super::super::remedy;
use super::super::values::{Value, text, text_or};
use crate::{serve, transform};

pub(crate) fn read_compression(section: &Section<'_>, compression: &mut transform::Settings) {
    let mut codings: Vec<Coding> = compression.codings.iter().cloned().map(Coding).collect();
    section.read("codings", &mut codings);
    compression.codings = codings.into_iter().map(|coding| coding.0).collect();
    let codings: Vec<_> = compression.codings.iter().map(|level| level.coding()).collect();
    let is_again = |at: &usize| codings[..*at].contains(&codings[*at]);
    if let Some(at) = (0..codings.len()).find(is_again) {
        let name = codings[at].as_str();
        section.mistake("codings", format!("coding {name:?} is listed twice: list it once"));
    }
    let mut hot: Vec<HotCoding> = compression.hot_codings.iter().copied().map(HotCoding).collect();
    section.read("hot_codings", &mut hot);
    compression.hot_codings = hot.into_iter().map(|coding| coding.0).collect();
    section.read_within("hot_requests", &mut compression.hot_requests, 1..=1_000_000);
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

pub(crate) fn read_hot_forms(section: &Section<'_>, hot_forms: &mut serve::HotFormSettings) {
    section.read_within("cpu_percent", &mut hot_forms.cpu_percent, 0..=100);
    let lengths = 1 << 10..=16 << 20;
    section.read_size_within("content_max", &mut hot_forms.content_bytes_max, lengths);
    section.read_within("queue_max", &mut hot_forms.queue_max, 1..=10_000);
}

/// `"zstd"`, or with its level `"br:4"`.
#[derive(Debug)]
struct Coding(transform::Level);

impl Value for Coding {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let shipped = transform::Settings::default().codings;
        read_level(value, reader, &shipped, transform::Level::new).map(Self)
    }
}

/// As [`Coding`], at a level for often requested responses.
#[derive(Debug)]
struct HotCoding(transform::Level);

impl Value for HotCoding {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let shipped = transform::Settings::default().hot_codings;
        read_level(value, reader, &shipped, transform::Level::hot).map(Self)
    }
}

/// A coding, with a level that `level_of` accepts, or else with the level that `shipped` has.
fn read_level(
    value: &Spanned<DeValue<'_>>,
    reader: &Reader<'_>,
    shipped: &[transform::Level],
    level_of: fn(transform::Coding, i32) -> Result<transform::Level, transform::UnknownLevel>,
) -> Option<transform::Level> {
    let expected =
        "a coding, \"zstd\", \"br\" or \"gzip\", with or without a level such as \"br:4\"";
    let parse = |text: &str| {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<i32>().ok()?)),
            None => (text, None),
        };
        Some((name.parse::<transform::Coding>().ok()?, level))
    };
    let remedy = |value: &DeValue<'_>| {
        if found_text(value) == Some("none") {
            return Some("write [] to compress nothing".to_owned());
        }
        let several = found_text(value).and_then(remedy::several);
        several.or_else(|| remedy::word(value, ["zstd", "br", "gzip"]))
    };
    let (name, level) = text_or(value, reader, expected, parse, remedy)?;
    let Some(level) = level else {
        return shipped.iter().copied().find(|level| level.coding() == name);
    };
    match level_of(name, level) {
        Ok(level) => Some(level),
        Err(error) => {
            reader.mistake(&value.span(), error.to_string());
            None
        }
    }
}

fn found_text<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    if let DeValue::String(text) = value { Some(text) } else { None }
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
        let remedy = |value: &DeValue<'_>| found_text(value).and_then(remedy::several);
        text_or(value, reader, expected, |text| text.parse().ok().map(Self), remedy)
    }
}
