//! Reads the action of a site or rule: forward to a pool, redirect, or a fixed response.
//!
//! To add an action, add its table to [`Actions::read`] and to [`check_ignored`].

use std::ops::Range;
use std::sync::Arc;

use http::StatusCode;
use http::header::HeaderValue;
use toml::Spanned;
use toml::de::DeValue;

use super::mistakes::suggestion;
use super::names::{PLAIN_NAME, check_plain_name, is_host_name, is_plain_name, is_token};
use super::reader::{Reader, Section};
use super::remedy;
use super::sources::unreadable;
use super::values::{Value, text};
use crate::guard::normal_path;
use crate::route::{
    Action, Fixed, Forward, GeoRedirect, Mirror, PoolByClient, Redirect, Rewrite, Shield,
    ShieldGone, Template,
};

/// Reads actions, which may name these pools and nodes of these regions.
pub(super) struct Actions<'a> {
    pub pools: &'a [Arc<str>],
    pub peers: KnownPeers,
}

/// The facts that the configuration states about the other nodes, which may be a shield.
pub(super) struct KnownPeers {
    /// Whether this node has peers.
    pub are_on: bool,
    /// The regions of all nodes. `None`: only the fleet knows them.
    pub regions: Option<Vec<Arc<str>>>,
}

impl Actions<'_> {
    /// The action of a site or rule; `None` if it sets none and inherits none.
    pub(super) fn read(
        &self,
        section: &Section<'_>,
        inherited: Option<&Forward>,
    ) -> Option<Action> {
        let forward = self.forward(section, inherited);
        let redirect = read_redirect(&section.section("redirect"));
        let fixed = read_fixed(&section.section("respond"));
        let own = [section.has("pool"), section.has("redirect"), section.has("respond")];
        if own.into_iter().filter(|own| *own).count() > 1 {
            section.mistake("", "only one of \"pool\", \"redirect\" and \"respond\" can be set");
        }
        redirect.map(Action::Redirect).or(fixed.map(Action::Fixed)).or(forward.map(Action::Forward))
    }

    fn forward(&self, section: &Section<'_>, inherited: Option<&Forward>) -> Option<Forward> {
        let only = self.only_pool();
        let mut forward =
            inherited.or(only.as_ref()).cloned().unwrap_or_else(|| to_pool("".into()));
        let own_pool = section.read("pool", &mut forward.pool);
        if own_pool {
            self.check_pool(section, "pool", &forward.pool);
            forward.split = None;
        }
        let split = section.section("split");
        forward.split = self.read_split(&split, forward.split.take());
        if own_pool && forward.split.is_some() {
            let message = "\"pool\" has no effect with \"split\", which names the pools of all visitors: remove one of them";
            section.mistake("pool", message);
        }
        if let Some(split) = &forward.split {
            forward.pool = split.largest().clone();
        }
        forward.mirror = self.read_mirror(&section.section("mirror"), forward.mirror.take());
        forward.shield = self.read_shield(section, forward.shield.take());
        if let Some(redirect) = read_geo_redirect(&section.section("geo_redirect")) {
            forward.geo_redirect = Some(Box::new(redirect)).filter(|it| !it.names.is_empty());
        }
        let by_client = section.has("pools_by");
        let listed = section.list("pools_by");
        if by_client {
            forward.by_client =
                listed.iter().filter_map(|section| self.read_by_client(section)).collect();
        }
        let countries = section.section("pools_by_country");
        self.read_places(
            &countries,
            &mut forward.by_country,
            "a country's two-letter code (ISO 3166-1)",
        );
        let continents = section.section("pools_by_continent");
        let expected = "a continent: AF, AN, AS, EU, NA, OC or SA";
        self.read_places(&continents, &mut forward.by_continent, expected);
        for (name, prefix) in [
            ("strip_prefix", &mut forward.rewrite.strip_prefix),
            ("add_prefix", &mut forward.rewrite.add_prefix),
        ] {
            let mut written = Prefix(prefix.clone());
            section.read(name, &mut written);
            *prefix = written.0;
        }
        if forward.pool.is_empty() {
            if by_client || countries.is_written() || continents.is_written() {
                section.mistake("", "\"pools_by\", \"pools_by_country\" and \"pools_by_continent\" need a \"pool\" or a \"split\" for all other clients");
            }
            return None;
        }
        Some(forward)
    }

    /// The mirror of a site or rule: the inherited one, changed by what the table sets.
    fn read_mirror(
        &self,
        section: &Section<'_>,
        inherited: Option<Box<Mirror>>,
    ) -> Option<Box<Mirror>> {
        let mut mirror = inherited.unwrap_or_else(|| Box::new(Mirror::new()));
        if section.read("pool", &mut mirror.pool) {
            self.check_pool(section, "pool", &mirror.pool);
        }
        section.read_within("percent", &mut mirror.percent, 0..=100);
        section.read_size_within("body_max", &mut mirror.body_bytes_max, 0..=16 << 20);
        section.read_within("in_flight_max", &mut mirror.in_flight_max, 1..=100_000);
        if mirror.pool.is_empty() {
            if section.is_written() {
                section.mistake("", "the mirror has no \"pool\", such as pool = \"shadow\"");
            }
            return None;
        }
        Some(mirror)
    }

    /// The shield of a site or rule: the inherited one, changed by what is set.
    fn read_shield(&self, section: &Section<'_>, inherited: Option<Shield>) -> Option<Shield> {
        let (mut regions, mut when_gone) = match inherited {
            Some(shield) => (Some(shield.regions), shield.when_gone),
            None => (None, ShieldGone::default()),
        };
        let is_set = section.read("shield", &mut regions);
        let words = [("direct", ShieldGone::Direct), ("error", ShieldGone::Error)];
        section.choice("shield_gone", &mut when_gone, &words);
        let Some(regions) = regions else {
            if section.has("shield_gone") && !is_set {
                let message = "\"shield_gone\" has no effect without \"shield\", which names the region that is asked before the origin, such as shield = \"fra\"";
                section.mistake("shield_gone", message);
            }
            return None;
        };
        if is_set {
            self.check_shield(section, &regions);
        }
        Some(Shield { regions, when_gone })
    }

    fn check_shield(&self, section: &Section<'_>, regions: &[Arc<str>]) {
        let most = Shield::REGIONS_MAX;
        if !(1..=most).contains(&regions.len()) || regions.iter().any(|region| region.is_empty()) {
            let expected = format!(
                "expected the names of 1 to {most} regions (node.region), such as \"fra\" or [\"fra\", \"ams\"], or \"none\""
            );
            section.mistake("shield", expected);
        }
        if let Some(region) =
            regions.iter().find(|region| !region.is_empty() && !is_plain_name(region))
        {
            section.mistake("shield", format!("expected {PLAIN_NAME}, found {region:?}"));
        }
        let is_again = |(at, region): (usize, &Arc<str>)| regions[..at].contains(region);
        if let Some(at) = regions.iter().enumerate().position(is_again) {
            section.mistake("shield", format!("region {:?} is listed twice", regions[at]));
        }
        if !self.peers.are_on {
            let message = "a shield has no effect without [peers], over which nodes ask each other: set \"peers.addresses\" and the certificate of this node, or remove \"shield\"";
            return section.mistake("shield", message);
        }
        let Some(known) = &self.peers.regions else { return };
        for region in regions.iter().filter(|region| !known.contains(region)) {
            let near = suggestion(region, known.iter().map(|name| &**name));
            section.warn("shield", format!("shield: no node of [peers.nodes] has the region {region:?} in [dns.nodes], so that it is never asked{near}"));
        }
    }

    fn read_by_client(&self, section: &Section<'_>) -> Option<PoolByClient> {
        let mut read = PoolByClient::default();
        section.read("countries", &mut read.countries);
        section.read("continents", &mut read.continents);
        section.read("asns", &mut read.asns);
        section.read("networks", &mut read.networks);
        if section.read("pool", &mut read.pool) {
            self.check_pool(section, "pool", &read.pool);
        } else {
            section.mistake("", "the entry has no \"pool\", such as pool = \"europe\"");
        }
        const CONDITIONS: [&str; 4] = ["countries", "continents", "asns", "networks"];
        if read.is_empty() && !CONDITIONS.into_iter().any(|name| section.has(name)) {
            let message = "the entry matches no client: set \"countries\", \"continents\", \
                           \"asns\" or \"networks\"; the pool of all other clients is \"pool\" \
                           of the site or rule";
            section.mistake("", message);
        }
        (!read.is_empty()).then_some(read)
    }

    fn read_places<P>(&self, section: &Section<'_>, places: &mut Vec<(P, Arc<str>)>, expected: &str)
    where
        P: std::str::FromStr + PartialEq + std::fmt::Debug,
    {
        for (key, span, value) in section.entries() {
            let Ok(place) = key.parse::<P>() else {
                section.reader.mistake(&span, format!("expected {expected}, found {key:?}"));
                continue;
            };
            let Some(pool) = Arc::<str>::read(value, section.reader) else { continue };
            self.check_name(section.reader, &value.span(), &pool);
            places.retain(|(other, _)| *other != place);
            places.push((place, pool));
        }
        section.record("", places);
    }

    pub(super) fn check_pool(&self, section: &Section<'_>, name: &'static str, pool: &str) {
        if let Some(value) = section.raw(name) {
            self.check_name(section.reader, &value.span(), pool);
        }
    }

    pub(super) fn check_name(&self, reader: &Reader<'_>, span: &Range<usize>, pool: &str) {
        if !self.pools.iter().any(|known| **known == *pool) {
            let near = suggestion(pool, self.pools.iter().map(|name| &**name));
            reader.mistake(span, format!("unknown pool {pool:?}{near}"));
        }
    }

    /// The only pool, which sites use without naming it.
    pub(super) fn only_pool(&self) -> Option<Forward> {
        let [pool] = self.pools else { return None };
        Some(to_pool(pool.clone()))
    }
}

/// Every request to this pool.
pub(super) fn to_pool(pool: Arc<str>) -> Forward {
    Forward {
        pool,
        by_client: Vec::new(),
        by_country: Vec::new(),
        by_continent: Vec::new(),
        split: None,
        mirror: None,
        shield: None,
        geo_redirect: None,
        rewrite: Rewrite::default(),
    }
}

/// Reports options that have no effect with the site's or rule's action. `passes_on`: the site has
/// rules that inherit them.
pub(super) fn check_ignored(section: &Section<'_>, action: Option<&Action>, passes_on: bool) {
    const OF_ORIGINS: [&str; 10] = [
        "strip_prefix",
        "add_prefix",
        "pools_by",
        "pools_by_country",
        "pools_by_continent",
        "split",
        "mirror",
        "shield",
        "shield_gone",
        "geo_redirect",
    ];
    let (does, inherited): (_, &[&str]) = match action {
        Some(Action::Redirect(_)) => ("redirect", &["cache", "compression", "request_fields"]),
        Some(Action::Fixed(_)) => ("respond", &["cache", "request_fields"]),
        Some(Action::Forward(_)) | None => return,
    };
    let inherited = inherited.iter().copied().filter(|_| !passes_on);
    for name in OF_ORIGINS.into_iter().chain(inherited).filter(|name| section.has(name)) {
        let message = format!(
            "{name:?} has no effect with {does:?}, which sends no request to an origin: remove \
             {name:?}, or set \"pool\" instead of {does:?}"
        );
        section.mistake(name, message);
    }
}

/// Regions and their host names; an empty table takes back an inherited one.
fn read_geo_redirect(section: &Section<'_>) -> Option<GeoRedirect> {
    let mut redirect = GeoRedirect::default();
    for (region, _, value) in section.entries() {
        check_plain_name(section, region, region);
        if let Some(name) = RegionHost::read(value, section.reader) {
            redirect.names.push((region.into(), name.0));
        }
    }
    section.record("", &redirect.names);
    section.is_written().then_some(redirect)
}

fn read_redirect(section: &Section<'_>) -> Option<Redirect> {
    let mut redirect = Redirect { status: StatusCode::FOUND, location: Template::default() };
    section.read("status", &mut redirect.status);
    if ![301, 302, 303, 307, 308].contains(&redirect.status.as_u16()) {
        let found = redirect.status.as_u16();
        section.mistake("status", format!("expected 301, 302, 303, 307 or 308, found {found}"));
    }
    let located = section.read("location", &mut redirect.location);
    if let Some(DeValue::String(text)) = section.raw("location").map(Spanned::get_ref) {
        warn_of_location(section, text);
    }
    if located && section.raw("location").is_some_and(is_unusable_location) {
        let expected =
            "expected a URL or a path without spaces, such as \"https://${request.host}/\"";
        section.mistake("location", expected);
    }
    if section.is_written() && !located {
        section.mistake(
            "",
            "the redirect has no \"location\", such as location = \"https://${request.host}/\"",
        );
    }
    section.is_written().then_some(redirect)
}

/// A text that is empty or has a space: no URL has one.
fn is_unusable_location(value: &Spanned<DeValue<'_>>) -> bool {
    matches!(value.get_ref(), DeValue::String(text) if text.is_empty() || text.contains(' '))
}

/// Warns of a location that is hardly meant so: a host without scheme, or variables of another server.
fn warn_of_location(section: &Section<'_>, text: &str) {
    let host = text.split(['/', '?', '#']).next().unwrap_or_default();
    let is_host =
        is_host_name(host) && host.contains('.') && host.split('.').all(|label| !label.is_empty());
    let variable = text.split_once('{').filter(|(before, _)| !before.ends_with('$'));
    let variable = variable.and_then(|(_, rest)| rest.split_once('}'));
    let message = if is_host {
        format!(
            "the location {text:?} is relative to the path of the request: write \"https://{text}\""
        )
    } else if let Some(name) = variable.and_then(|(name, _)| remedy::template_variable(name)) {
        format!("\"{{\" without \"$\" begins no variable: write ${{{name}}}")
    } else {
        return;
    };
    section.warn("location", message);
}

fn read_fixed(section: &Section<'_>) -> Option<Fixed> {
    let mut content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    let mut status = StatusCode::OK;
    let mut content = String::new();
    let mut path = std::path::PathBuf::new();
    section.read("status", &mut status);
    section.read("content", &mut content);
    let mut content = bytes::Bytes::from(content);
    if section.read("content_file", &mut path) {
        if section.has("content") {
            section
                .mistake("content_file", "only one of \"content\" and \"content_file\" can be set");
        }
        match std::fs::read(&path) {
            Ok(bytes) if bytes.len() <= CONTENT_BYTES_MAX => content = bytes.into(),
            Ok(_) => {
                section.mistake("content_file", "the file is too large: expected at most 1 MiB")
            }
            Err(error) => {
                let path = path.display();
                let why = unreadable(&error);
                section.mistake("content_file", format!("cannot read {path}: {why}"));
            }
        }
    }
    section.read("content_type", &mut content_type);
    if !content_type.to_str().is_ok_and(is_media_type) {
        let found = content_type.to_str().unwrap_or_default();
        let message =
            format!("expected a media type such as \"text/html; charset=utf-8\", found {found:?}");
        section.mistake("content_type", message);
    }
    if [301, 302, 303, 307, 308].contains(&status.as_u16()) {
        let status = status.as_u16();
        let message = format!(
            "a fixed response redirects nowhere: write redirect = {{ status = {status}, location = \"https://…\" }} instead of respond"
        );
        section.mistake("status", message);
    }
    if !content.is_empty() && [204, 205, 304].contains(&status.as_u16()) {
        let message = format!(
            "a response of status {} cannot have content: remove the content, or choose another status",
            status.as_u16()
        );
        section.mistake("status", message);
    }
    section.is_written().then_some(Fixed { status, content, content_type })
}

/// Whether the text begins with a type and a subtype (RFC 9110 §8.3.1).
fn is_media_type(text: &str) -> bool {
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
}

/// `"eu.example.org"`, in lower case.
#[derive(Debug)]
struct RegionHost(Box<str>);

impl Value for RegionHost {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected =
            "the host name of a region without scheme and port, such as \"eu.example.org\"";
        text(value, reader, expected, |text| {
            is_host_name(text).then(|| Self(text.to_ascii_lowercase().into()))
        })
    }
}

/// `"/api"`: begins with a slash, ends without; `"none"` for none.
#[derive(Debug)]
struct Prefix(Option<Box<str>>);

impl Value for Prefix {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        if matches!(value.get_ref(), DeValue::String(text) if text == "none") {
            return Some(Self(None));
        }
        let expected = "a path of at most 1000 bytes that begins with \"/\" and does not end with \"/\", or \"none\"";
        text(value, reader, expected, |text| {
            let lengths = 2..=Rewrite::PREFIX_BYTES_MAX;
            let right =
                lengths.contains(&text.len()) && text.starts_with('/') && !text.ends_with('/');
            let normal = right && normal_path(text).is_ok_and(|normal| normal == text);
            normal.then(|| Self(Some(text.into())))
        })
    }
}

/// Maximum size of a fixed response: it is for a page, not for a site.
const CONTENT_BYTES_MAX: usize = 1 << 20;
