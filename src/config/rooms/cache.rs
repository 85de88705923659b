//! Reads the `cache` table of a site or rule.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::StatusCode;
use toml::Spanned;
use toml::de::DeValue;

use super::super::names::{CookieName, CookiePattern, ParameterPattern};
use super::super::reader::{Reader, Section};
use super::super::remedy;
use super::super::values::{Value, text_or};
use crate::cache::settings::{
    Honoured, KeyPolicy, Lifetimes, QueryPolicy, SetCookie, StalePolicy, TargetedField,
};
use crate::cache::{self, statuses};

pub(crate) fn read_cache(section: &Section<'_>, cache: &mut cache::Settings) {
    section.read("enabled", &mut cache.enabled);
    read_cache_key(&section.section("key"), &mut cache.key);
    read_lifetimes(&section.section("lifetimes"), &mut cache.lifetimes);
    read_stale(&section.section("stale"), &mut cache.stale);
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
    let cookies = cache.bypass.cookies.iter().cloned();
    let mut cookies: Vec<CookiePattern> = cookies.map(CookiePattern).collect();
    section.read("bypass_cookies", &mut cookies);
    cache.bypass.cookies = cookies.into_iter().map(|cookie| cookie.0).collect();
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

fn read_lifetimes(section: &Section<'_>, lifetimes: &mut Lifetimes) {
    section.read("respect_origin", &mut lifetimes.respect_origin);
    section.read("fixed", &mut lifetimes.fixed);
    let by_status = read_by_status(&section.section("by_status"));
    if !by_status.is_empty() {
        lifetimes.by_status = by_status;
    }
    section.read_within("heuristic_fraction", &mut lifetimes.heuristic_fraction, 0.0..=1.0);
    section.read("heuristic_max", &mut lifetimes.heuristic_max);
    section.read("lifetime_max", &mut lifetimes.lifetime_max);
    let (fixed, max) = (lifetimes.fixed, lifetimes.lifetime_max);
    if let Some(fixed) = fixed.filter(|fixed| section.has("fixed") && *fixed > max) {
        let (fixed, max) = (fixed.shown(), max.shown());
        section.mistake(
            "fixed",
            format!("expected at most \"lifetime_max\", which is {max}, found {fixed}"),
        );
    }
}

fn read_stale(section: &Section<'_>, stale: &mut StalePolicy) {
    section.read("while_revalidate", &mut stale.while_revalidate);
    section.read("if_error", &mut stale.if_error);
    section.read("soft_deadline", &mut stale.soft_deadline);
    if stale.soft_deadline.is_some_and(|deadline| deadline.is_zero()) {
        let remedy = "set while_revalidate to serve stale responses at once";
        section.mistake("soft_deadline", format!("expected more than 0s, found 0s: {remedy}"));
    }
    section.read("despite_s_maxage", &mut stale.despite_s_maxage);
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
    let (mut only, mut except) = (Vec::<ParameterPattern>::new(), Vec::<ParameterPattern>::new());
    let named = [section.read("query_only", &mut only), section.read("query_except", &mut except)];
    match named {
        [true, false] => key.query = QueryPolicy::Only(texts(only)),
        [false, true] => key.query = QueryPolicy::Except(texts(except)),
        _ => {}
    }
    let written = [section.has("query"), named[0], named[1]];
    if written.into_iter().filter(|written| *written).count() > 1 {
        section
            .mistake("", "only one of \"query\", \"query_only\" and \"query_except\" can be set");
    }
    section.read("sort_query", &mut key.sort_query);
    section.read("headers", &mut key.headers);
    let mut cookies: Vec<CookieName> = key.cookies.iter().cloned().map(CookieName).collect();
    section.read("cookies", &mut cookies);
    key.cookies = cookies.into_iter().map(|cookie| cookie.0).collect();
}

fn texts(names: Vec<ParameterPattern>) -> Vec<Box<str>> {
    names.into_iter().map(|name| name.0).collect()
}

/// `{ 404 = "10s", 500-599 = "1s" }`; narrow ranges before wide ones.
fn read_by_status(section: &Section<'_>) -> Vec<(RangeInclusive<u16>, Duration)> {
    let mut lifetimes = Vec::new();
    for (key, span, value) in section.entries() {
        let (low, high) = key.split_once('-').unwrap_or((key, key));
        let status = |text: &str| text.parse().ok().filter(|status| (200..600).contains(status));
        match (status(low), status(high)) {
            (Some(low), Some(high)) if low == high && is_never_stored(low) => {
                let message =
                    format!("expected a status that may be stored, found {key:?}; remove it");
                section.reader.mistake(&span, message);
            }
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

fn is_never_stored(status: u16) -> bool {
    StatusCode::from_u16(status).is_ok_and(statuses::is_never_stored)
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
        let parse = |text: &str| KNOWN.into_iter().find(|known| *known == text).map(Self);
        text_or(value, reader, &expected, parse, |value| remedy::word(value, KNOWN))
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
