//! Reads the `cache` table of a site or rule.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Reader, Section};
use super::super::remedy;
use super::super::values::{Value, text};
use crate::cache;
use crate::cache::settings::{Honoured, KeyPolicy, QueryPolicy, SetCookie, TargetedField};

pub(crate) fn read_cache(section: &Section<'_>, cache: &mut cache::Settings) {
    section.read("enabled", &mut cache.enabled);
    read_cache_key(&section.section("key"), &mut cache.key);

    let lifetimes = section.section("lifetimes");
    lifetimes.read("respect_origin", &mut cache.lifetimes.respect_origin);
    lifetimes.read("fixed", &mut cache.lifetimes.fixed);
    let by_status = read_by_status(&lifetimes.section("by_status"));
    if !by_status.is_empty() {
        cache.lifetimes.by_status = by_status;
    }
    lifetimes.read_within("heuristic_fraction", &mut cache.lifetimes.heuristic_fraction, 0.0..=1.0);
    lifetimes.read("heuristic_max", &mut cache.lifetimes.heuristic_max);
    lifetimes.read("lifetime_max", &mut cache.lifetimes.lifetime_max);

    let stale = section.section("stale");
    stale.read("while_revalidate", &mut cache.stale.while_revalidate);
    stale.read("if_error", &mut cache.stale.if_error);
    stale.read("soft_deadline", &mut cache.stale.soft_deadline);
    if cache.stale.soft_deadline.is_some_and(|deadline| deadline.is_zero()) {
        let remedy = "set while_revalidate to serve stale responses at once";
        stale.mistake("soft_deadline", format!("expected more than 0s, found 0s: {remedy}"));
    }
    stale.read("despite_s_maxage", &mut cache.stale.despite_s_maxage);

    let mut honoured = HonouredList(cache.honoured);
    section.read("honour", &mut honoured);
    cache.honoured = honoured.0;
    section.choice(
        "set_cookie",
        &mut cache.set_cookie,
        &[("pass", SetCookie::Pass), ("strip", SetCookie::Strip), ("store", SetCookie::Store)],
    );
    let mut targeted: Vec<Targeted> = cache.targeted.iter().cloned().map(Targeted).collect();
    section.read("targeted", &mut targeted);
    cache.targeted = targeted.into_iter().map(|field| field.0).collect();
    section.read("bypass_cookies", &mut cache.bypass.cookies);
    section.read("bypass_headers", &mut cache.bypass.headers);
    section.read_within("variants_max", &mut cache.variants_max, 1..=10_000);
    section.read("select_language", &mut cache.select_language);
    section.read("no_vary_search", &mut cache.no_vary_search);
    section.read("deception_guard", &mut cache.deception_guard);
    section.read("pass_memory", &mut cache.pass_memory);
    section.read("show_key", &mut cache.show_key);
    section.read("tags", &mut cache.tags);
    if let Some(wrong) = cache.tags.iter().find(|tag| !is_tag(tag)) {
        section.mistake(
            "tags",
            format!("expected tags of visible ASCII characters without commas, found {wrong:?}"),
        );
    }

    let ranges = section.section("ranges");
    ranges.read_within("ranges_max", &mut cache.ranges.ranges_max, 1..=1000);
    ranges.read("overlaps_max", &mut cache.ranges.overlaps_max);
    ranges.read_size("gap_max", &mut cache.ranges.gap_bytes_max);
}

/// Whether a tag can be purged: the admin API takes any text, and fields part tags by spaces and commas.
fn is_tag(tag: &str) -> bool {
    !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

fn read_cache_key(section: &Section<'_>, key: &mut KeyPolicy) {
    section.choice(
        "query",
        &mut key.query,
        &[("all", QueryPolicy::All), ("none", QueryPolicy::None)],
    );
    let (mut only, mut except) = (Vec::new(), Vec::new());
    let named = [section.read("query_only", &mut only), section.read("query_except", &mut except)];
    match named {
        [true, false] => key.query = QueryPolicy::Only(only),
        [false, true] => key.query = QueryPolicy::Except(except),
        _ => {}
    }
    let written = [section.has("query"), named[0], named[1]];
    if written.into_iter().filter(|written| *written).count() > 1 {
        section
            .mistake("", "only one of \"query\", \"query_only\" and \"query_except\" can be set");
    }
    section.read("sort_query", &mut key.sort_query);
    section.read("headers", &mut key.headers);
    section.read("cookies", &mut key.cookies);
}

/// `{ 404 = "10s", 500-599 = "1s" }`; narrow ranges before wide ones.
fn read_by_status(section: &Section<'_>) -> Vec<(RangeInclusive<u16>, Duration)> {
    let mut lifetimes = Vec::new();
    for (key, span, value) in section.entries() {
        let (low, high) = key.split_once('-').unwrap_or((key, key));
        let status = |text: &str| text.parse().ok().filter(|status| (200..600).contains(status));
        match (status(low), status(high)) {
            (Some(low), Some(high)) if low <= high => {
                let lifetime = Duration::read(value, section.reader);
                lifetimes.extend(lifetime.map(|lifetime| (low..=high, lifetime)));
            }
            _ => {
                let remedy = remedy::status_range(key).map(|remedy| format!("; {remedy}"));
                let remedy = remedy.unwrap_or_default();
                let message = format!(
                    "expected a status such as 404 or a range such as \"500-599\", found {key:?}{remedy}"
                );
                section.reader.mistake(&span, message);
            }
        }
    }
    lifetimes.sort_by_key(|(codes, _)| codes.end() - codes.start());
    section.record("", &lifetimes);
    lifetimes
}

/// `"all"`, `"none"` or a list of directives.
#[derive(Debug)]
struct HonouredList(Honoured);

impl Value for HonouredList {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) if text == "all" => return Some(Self(Honoured::ALL)),
            DeValue::String(text) if text == "none" => return Some(Self(Honoured::NONE)),
            _ => {}
        }
        let mut honoured = Honoured::NONE;
        for Directive(name) in Vec::<Directive>::read(value, reader)? {
            match name {
                "no-store" => honoured.no_store = true,
                "no-cache" => honoured.no_cache = true,
                "max-age" => honoured.max_age = true,
                "min-fresh" => honoured.min_fresh = true,
                "max-stale" => honoured.max_stale = true,
                "only-if-cached" => honoured.only_if_cached = true,
                _ => honoured.stale_if_error = true,
            }
        }
        Some(Self(honoured))
    }
}

/// A cache directive of requests.
#[derive(Debug)]
struct Directive(&'static str);

impl Value for Directive {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        const KNOWN: [&str; 7] = [
            "no-store",
            "no-cache",
            "max-age",
            "min-fresh",
            "max-stale",
            "only-if-cached",
            "stale-if-error",
        ];
        let expected = format!("\"all\", \"none\" or some of {}", KNOWN.join(", "));
        text(value, reader, &expected, |text| {
            KNOWN.into_iter().find(|known| *known == text).map(Self)
        })
    }
}

/// The name of a targeted field (RFC 9213); `Surrogate-Control` has its own syntax.
#[derive(Debug)]
struct Targeted(TargetedField);

impl Value for Targeted {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let name = http::HeaderName::read(value, reader)?;
        let is_loose = name == "surrogate-control";
        Some(Self(if is_loose {
            TargetedField::loose(name)
        } else {
            TargetedField::structured(name)
        }))
    }
}
