//! Sites and rules: inheritance of their settings, and checks across them.
//!
//! A rule has its site's settings unless it says otherwise, a site has those of `[defaults]`.
//! The action of the site itself becomes its last rule, named `default`.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use http::{HeaderName, Method, StatusCode};
use toml::Spanned;
use toml::de::DeValue;

use super::mistakes::suggestion;
use super::reader::{Reader, Section};
use super::rooms;
use super::values::{Size, Value, text};
use crate::control::bus::Silence;
use crate::guard::{access, normal_path, rate};
use crate::route::{
    Action, FieldEdits, Fixed, HostPattern, Matches, Pass, PathGlob, PathPattern, Redirect,
    Rewrite, RuleSettings, Settings, SiteSettings, Template,
};
use crate::{cache, transform};

/// The settings that a rule inherits from its site, and a site from `[defaults]`.
#[derive(Clone, Debug, Default)]
struct Scope {
    access: access::Settings,
    rate: Option<rate::Limit>,
    cache: Arc<cache::Settings>,
    compression: Arc<transform::Settings>,
    request_fields: FieldEdits,
    response_fields: FieldEdits,
}

/// Reads `[defaults]` and `[sites.NAME]`. `pools`: the names of the configured pools.
/// `object_age_max` bounds every lifetime, because purges are forgotten after it.
///
/// Also returns the sites that set `silence` themselves.
pub(super) fn sites(
    root: &Section<'_>,
    pools: &[Arc<str>],
    object_age_max: Duration,
) -> (Settings, BTreeMap<Arc<str>, Silence>) {
    let mut scope = Scope::default();
    Arc::make_mut(&mut scope.cache).object_age_max = object_age_max;
    read_scope(&root.section("defaults"), &mut scope);
    let mut sites =
        Sites { pools, hosts: BTreeMap::new(), rules: HashMap::new(), silences: BTreeMap::new() };
    let named = root.named("sites");
    let read = named.iter().map(|(name, section)| sites.site(name, section, scope.clone()));
    let settings = Settings { sites: read.collect() };
    for (site, rule, cover) in settings.hidden_rules() {
        let span = &sites.rules[&(site.name.clone(), rule.name.clone())];
        let message = format!(
            "rule {:?} never applies: the earlier rule {:?} matches every request it matches",
            rule.name, cover.name
        );
        root.reader.mistake(span, message);
    }
    (settings, sites.silences)
}

/// A site for all hosts with one rule: everything to `pool`.
pub(super) fn catch_all(pool: &Arc<str>, object_age_max: Duration) -> SiteSettings {
    let mut scope = Scope::default();
    Arc::make_mut(&mut scope.cache).object_age_max = object_age_max;
    let pass = Pass {
        pool: pool.clone(),
        by_country: Vec::new(),
        by_continent: Vec::new(),
        rewrite: Rewrite::default(),
    };
    let name: Arc<str> = DEFAULT.into();
    let rule = rule_of(&name, &name, Matches::default(), Action::Pass(pass), scope);
    SiteSettings { name, hosts: vec![HostPattern::Any], rules: vec![rule] }
}

struct Sites<'a> {
    pools: &'a [Arc<str>],
    hosts: BTreeMap<HostPattern, String>,
    rules: HashMap<(Arc<str>, Arc<str>), Range<usize>>,
    silences: BTreeMap<Arc<str>, Silence>,
}

impl Sites<'_> {
    fn site(&mut self, name: &str, section: &Section<'_>, mut scope: Scope) -> SiteSettings {
        let hosts = self.hosts(name, section);
        read_scope(section, &mut scope);
        let name: Arc<str> = name.into();
        let mut silence = None;
        let words = rooms::SILENCES.map(|(word, meant)| (word, Some(meant)));
        section.choice("silence", &mut silence, &words);
        self.silences.extend(silence.map(|silence| (name.clone(), silence)));
        let own = self.action(section, None);
        let inherited = match &own {
            Some(Action::Pass(pass)) => Some(pass.clone()),
            _ => self.only_pool(),
        };
        let own = own.or_else(|| inherited.clone().map(Action::Pass));
        let mut rules = Vec::new();
        let listed = section.list("rules");
        refuse_ignored(section, own.as_ref(), !listed.is_empty());
        for (at, section) in listed.iter().enumerate() {
            let rule = self.rule(&name, at, section, scope.clone(), inherited.clone());
            rules.extend(rule);
        }
        if let Some(action) = own {
            self.rules.insert((name.clone(), DEFAULT.into()), section.span());
            // A last rule that matches every request replaces the site's own action.
            if !rules.last().is_some_and(|rule| rule.matches.is_everything()) {
                rules.push(rule_of(&name, DEFAULT, Matches::default(), action, scope));
            }
        } else if rules.is_empty() {
            let message =
                "the site has no action: set \"pool\", \"redirect\" or \"respond\", or add rules";
            section.mistake("", message);
        }
        SiteSettings { name, hosts, rules }
    }

    fn hosts(&mut self, site: &str, section: &Section<'_>) -> Vec<HostPattern> {
        let mut hosts: Vec<Host> = Vec::new();
        let written = section.read("hosts", &mut hosts);
        if !written {
            let message = format!("site {site:?} has no hosts, such as hosts = [\"example.org\"]");
            section.mistake("hosts", message);
        }
        let hosts: Vec<HostPattern> = hosts.into_iter().map(|host| host.0).collect();
        for host in &hosts {
            if let Some(other) = self.hosts.insert(host.clone(), site.to_owned()) {
                let host = host_text(host);
                let message = if other == site {
                    format!("host {host:?} is listed twice")
                } else {
                    format!("host {host:?} already belongs to site {other:?}")
                };
                section.mistake("hosts", message);
            }
        }
        hosts
    }

    fn rule(
        &mut self,
        site: &Arc<str>,
        at: usize,
        section: &Section<'_>,
        mut scope: Scope,
        inherited: Option<Pass>,
    ) -> Option<RuleSettings> {
        let mut name: Arc<str> = format!("rule-{}", at + 1).into();
        section.read("name", &mut name);
        let taken = self.rules.insert((site.clone(), name.clone()), section.span());
        if taken.is_some() || &*name == DEFAULT {
            let message = format!("site {site:?} has another rule named {name:?}");
            section.mistake("name", message);
        }
        let matches = read_matches(section);
        read_scope(section, &mut scope);
        let action = self.action(section, inherited.as_ref());
        refuse_ignored(section, action.as_ref(), false);
        if action.is_none() {
            let message = "the rule has no action: set \"pool\" (in the rule or its site), \"redirect\" or \"respond\"";
            section.mistake("", message);
        }
        Some(rule_of(site, &name, matches, action?, scope))
    }

    /// The action of a site or rule; `None` if it sets none and inherits none.
    fn action(&self, section: &Section<'_>, inherited: Option<&Pass>) -> Option<Action> {
        let pass = self.pass(section, inherited);
        let redirect = read_redirect(&section.section("redirect"));
        let fixed = read_fixed(&section.section("respond"));
        let own = [section.has("pool"), section.has("redirect"), section.has("respond")];
        if own.into_iter().filter(|own| *own).count() > 1 {
            section.mistake("", "only one of \"pool\", \"redirect\" and \"respond\" can be set");
        }
        redirect.map(Action::Redirect).or(fixed.map(Action::Fixed)).or(pass.map(Action::Pass))
    }

    fn pass(&self, section: &Section<'_>, inherited: Option<&Pass>) -> Option<Pass> {
        let only = self.only_pool();
        let mut pass = inherited.or(only.as_ref()).cloned().unwrap_or_else(|| Pass {
            pool: "".into(),
            by_country: Vec::new(),
            by_continent: Vec::new(),
            rewrite: Rewrite::default(),
        });
        if section.read("pool", &mut pass.pool) {
            self.check_pool(section, "pool", &pass.pool);
        }
        let countries = section.section("pools_by_country");
        self.read_places(
            &countries,
            &mut pass.by_country,
            "a country's two-letter code (ISO 3166-1)",
        );
        let continents = section.section("pools_by_continent");
        let expected = "a continent: AF, AN, AS, EU, NA, OC or SA";
        self.read_places(&continents, &mut pass.by_continent, expected);
        for (name, prefix) in [
            ("strip_prefix", &mut pass.rewrite.strip_prefix),
            ("add_prefix", &mut pass.rewrite.add_prefix),
        ] {
            let mut written = Prefix(prefix.clone());
            section.read(name, &mut written);
            *prefix = written.0;
        }
        if pass.pool.is_empty() {
            if countries.is_written() || continents.is_written() {
                section.mistake("", "\"pools_by_country\" and \"pools_by_continent\" need a \"pool\" for all other places");
            }
            return None;
        }
        Some(pass)
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

    fn check_pool(&self, section: &Section<'_>, name: &'static str, pool: &str) {
        if let Some(value) = section.raw(name) {
            self.check_name(section.reader, &value.span(), pool);
        }
    }

    fn check_name(&self, reader: &Reader<'_>, span: &Range<usize>, pool: &str) {
        if !self.pools.iter().any(|known| **known == *pool) {
            let near = suggestion(pool, self.pools.iter().map(|name| &**name));
            reader.mistake(span, format!("unknown pool {pool:?}{near}"));
        }
    }

    /// The only pool, which sites use without naming it.
    fn only_pool(&self) -> Option<Pass> {
        let [pool] = self.pools else { return None };
        Some(Pass {
            pool: pool.clone(),
            by_country: Vec::new(),
            by_continent: Vec::new(),
            rewrite: Rewrite::default(),
        })
    }
}

/// Reports options that have no effect with the site's or rule's action. `passes_on`: the site has
/// rules that inherit them.
fn refuse_ignored(section: &Section<'_>, action: Option<&Action>, passes_on: bool) {
    const OF_ORIGINS: [&str; 4] =
        ["strip_prefix", "add_prefix", "pools_by_country", "pools_by_continent"];
    let (does, inherited): (_, &[&str]) = match action {
        Some(Action::Redirect(_)) => ("redirect", &["cache", "compression", "request_fields"]),
        Some(Action::Fixed(_)) => ("respond", &["cache", "request_fields"]),
        Some(Action::Pass(_)) | None => return,
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

fn rule_of(site: &str, name: &str, matches: Matches, action: Action, scope: Scope) -> RuleSettings {
    let number = xxhash_rust::xxh3::xxh3_64(format!("{site}\n{name}").as_bytes());
    let Scope { access, rate, cache, compression, request_fields, response_fields } = scope;
    let name = name.into();
    RuleSettings {
        name,
        number,
        matches,
        action,
        access,
        rate,
        cache,
        compression,
        request_fields,
        response_fields,
    }
}

fn read_scope(section: &Section<'_>, scope: &mut Scope) {
    let access = section.section("access");
    access.read("allow", &mut scope.access.allow_addresses);
    access.read("deny", &mut scope.access.deny_addresses);
    access.read("allow_countries", &mut scope.access.allow_countries);
    access.read("deny_countries", &mut scope.access.deny_countries);
    access.read("methods", &mut scope.access.methods);
    let mut content_max = scope.access.content_bytes_max.map(Size);
    access.read("content_max", &mut content_max);
    scope.access.content_bytes_max = content_max.map(|size| size.0);
    access.read("upgrade", &mut scope.access.upgrade);

    let rate = section.section("rate");
    let mut per_second = scope.rate.map(|limit| limit.per_second);
    rate.read("per_second", &mut per_second);
    if per_second.is_some_and(|per_second| per_second <= 0.0) {
        rate.mistake("per_second", "expected a rate above 0, or \"none\"");
    }
    if rate.has("burst") && !rate.has("per_second") && scope.rate.is_none() {
        rate.mistake("burst", "\"burst\" has no effect without \"per_second\": set both");
    }
    let mut burst =
        scope.rate.map_or(per_second.map_or(1, |rate| rate as u32), |limit| limit.burst);
    rate.read_within("burst", &mut burst, 0..=1_000_000);
    scope.rate = per_second.map(|per_second| rate::Limit { per_second, burst: burst.max(1) });

    rooms::cache(&section.section("cache"), Arc::make_mut(&mut scope.cache));
    let compression = section.section("compression");
    rooms::compression(&compression, Arc::make_mut(&mut scope.compression));
    let request = section.section("request_fields");
    read_fields(&request, &mut scope.request_fields, REQUEST_FIELDS_OURS, &[]);
    let response = section.section("response_fields");
    let once = RESPONSE_FIELDS_ONCE;
    read_fields(&response, &mut scope.response_fields, RESPONSE_FIELDS_OURS, once);
}

/// The edits of a rule are applied after those of its site. Fields in `ours` cannot be changed;
/// fields in `once` cannot be added, only set.
fn read_fields(section: &Section<'_>, edits: &mut FieldEdits, ours: &[&str], once: &[&str]) {
    let mut remove: Vec<HeaderName> = Vec::new();
    section.read("remove", &mut remove);
    for name in remove {
        edits.set.retain(|(other, _)| *other != name);
        edits.add.retain(|(other, _)| *other != name);
        edits.remove.push(name);
    }
    for (name, template) in read_templates(&section.section("set"), ours) {
        edits.set.retain(|(other, _)| *other != name);
        edits.set.push((name, template));
    }
    let add = section.section("add");
    for (key, span, _) in add.entries() {
        if once.iter().any(|name| key.eq_ignore_ascii_case(name)) {
            let message =
                format!("the field {key:?} may occur only once in a response: use \"set\"");
            section.reader.mistake(&span, message);
        }
    }
    edits.add.extend(read_templates(&add, ours));
}

fn read_templates(section: &Section<'_>, ours: &[&str]) -> Vec<(HeaderName, Template)> {
    let mut templates = Vec::new();
    for (key, span, value) in section.entries() {
        let name = match key.parse::<HeaderName>() {
            Ok(name) if ours.contains(&name.as_str()) => {
                section.reader.mistake(
                    &span,
                    format!("the field {key:?} is set by the node and cannot be changed"),
                );
                continue;
            }
            Ok(name) => name,
            Err(_) => {
                section
                    .reader
                    .mistake(&span, format!("expected a header field's name, found {key:?}"));
                continue;
            }
        };
        if let Some(template) = Template::read(value, section.reader) {
            templates.push((name, template));
        }
    }
    section.record("", &templates);
    templates
}

fn read_matches(section: &Section<'_>) -> Matches {
    let mut matches = Matches::default();
    let (mut exact, mut prefixes, mut globs) = (Vec::new(), Vec::new(), Vec::new());
    section.read("path", &mut exact);
    section.read("path_prefix", &mut prefixes);
    section.read("path_glob", &mut globs);
    matches.paths.extend(exact.into_iter().map(|NormalPath(path)| PathPattern::Exact(path)));
    matches.paths.extend(prefixes.into_iter().map(|NormalPath(path)| PathPattern::Prefix(path)));
    matches.paths.extend(globs.into_iter().map(|Glob(glob)| PathPattern::Glob(glob)));
    section.read::<Vec<Method>>("methods", &mut matches.methods);
    section.read("countries", &mut matches.countries);
    section.read("continents", &mut matches.continents);
    matches
}

fn read_redirect(section: &Section<'_>) -> Option<Redirect> {
    let mut redirect = Redirect { status: StatusCode::FOUND, location: Template::default() };
    section.read("status", &mut redirect.status);
    if ![301, 302, 303, 307, 308].contains(&redirect.status.as_u16()) {
        section.mistake("status", "expected 301, 302, 303, 307 or 308");
    }
    let located = section.read("location", &mut redirect.location);
    if section.is_written() && !located {
        section.mistake("", "the redirect has no \"location\"");
    }
    section.is_written().then_some(redirect)
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
                section.mistake("content_file", format!("cannot read {path}: {error}"));
            }
        }
    }
    section.read("content_type", &mut content_type);
    if !content.is_empty() && [204, 205, 304].contains(&status.as_u16()) {
        let message = format!("a response of status {} has no content", status.as_u16());
        section.mistake("status", message);
    }
    section.is_written().then_some(Fixed { status, content, content_type })
}

/// `"example.org"`, `"*.example.org"` or `"*"`.
#[derive(Debug)]
struct Host(HostPattern);

impl Value for Host {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a host without port, such as \"example.org\", \"*.example.org\" or \"*\"";
        text(value, reader, expected, |text| {
            let lower = text.to_ascii_lowercase();
            let pattern = match lower.strip_prefix("*.") {
                _ if lower == "*" => HostPattern::Any,
                Some(parent) => HostPattern::Below(is_name(parent).then(|| parent.into())?),
                None => HostPattern::Exact(
                    (is_name(&lower) || is_address(&lower)).then(|| lower.as_str().into())?,
                ),
            };
            Some(Self(pattern))
        })
    }
}

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

/// IPv4 reads like a name; IPv6 stands in brackets.
fn is_address(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

fn host_text(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Below(parent) => format!("*.{parent}"),
        HostPattern::Any => "*".to_owned(),
    }
}

/// A path as requests have it after normalisation.
#[derive(Debug)]
struct NormalPath(Box<str>);

impl Value for NormalPath {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let is_path = |text: &str| text.starts_with('/') && !text.contains(['?', '#']);
        let expected = "a path that begins with \"/\"";
        let path = text(value, reader, expected, |text| is_path(text).then(|| text.to_owned()))?;
        match normal_path(&path) {
            Ok(normal) if normal == path => return Some(Self(path.into())),
            Ok(normal) => {
                let message =
                    format!("no request can have this path: {path:?} is normalised to {normal:?}");
                reader.mistake(&value.span(), message);
            }
            Err(refusal) => reader.mistake(&value.span(), refusal.to_string()),
        }
        None
    }
}

#[derive(Debug)]
struct Glob(PathGlob);

impl Value for Glob {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a path pattern that begins with \"/\", such as \"/**.css\"";
        text(value, reader, expected, |text| {
            text.starts_with('/').then(|| Self(PathGlob::new(text)))
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
        let expected = "a path that begins with \"/\" and does not end with \"/\", or \"none\"";
        text(value, reader, expected, |text| {
            let right = text.len() > 1 && text.starts_with('/') && !text.ends_with('/');
            let normal = right && normal_path(text).is_ok_and(|normal| normal == text);
            normal.then(|| Self(Some(text.into())))
        })
    }
}

/// The name of the rule made from the site's own action.
const DEFAULT: &str = "default";

/// Maximum size of a fixed response: it is for a page, not for a site.
const CONTENT_BYTES_MAX: usize = 1 << 20;

/// Request fields that rules cannot change: framing, hop-by-hop fields and authority.
const REQUEST_FIELDS_OURS: &[&str] =
    &["cdn-loop", "connection", "content-length", "host", "te", "transfer-encoding", "upgrade"];

/// See above; `Age` and `Cache-Status` must stay true.
const RESPONSE_FIELDS_OURS: &[&str] = &[
    "age",
    "cache-status",
    "connection",
    "content-length",
    "content-range",
    "transfer-encoding",
    "upgrade",
];

/// Fields that may occur only once in a response (RFC 9110 §5.3).
const RESPONSE_FIELDS_ONCE: &[&str] = &[
    "accept-ranges",
    "content-location",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "retry-after",
    "server",
];
