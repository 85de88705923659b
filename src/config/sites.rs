//! Sites and rules: inheritance of their settings, and checks across them.
//!
//! A rule has its site's settings unless it says otherwise, a site has those of `[defaults]`.
//! The action of the site itself becomes its last rule, named `default`.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use toml::Spanned;
use toml::de::DeValue;

use super::actions::{Actions, KnownPeers, check_ignored, to_pool};
use super::matches::read_matches;
use super::names::{check_plain_name, is_host_name};
use super::reader::{Reader, Section};
use super::remedy;
use super::rooms;
use super::scope::{Scope, read_scope};
use super::split::clashing_cookies;
use super::values::{Value, text_or};
use crate::bus::SilenceAction;
use crate::guard;
use crate::route::{
    Action, Forward, GeoRedirectMistake, HostPattern, Matches, Redirect, RuleSettings, Settings,
    ShadowedRule, SiteSettings, Template,
};
use crate::upstream::Scheme;

/// Reads `[defaults]` and `[sites.NAME]`. `pools`: the names of the configured pools; `peers`: the facts that the
/// configuration states about other nodes. `object_age_max` bounds every lifetime, because purges are forgotten after
/// it.
///
/// Also returns the sites that set `silence` themselves, and the settings of `[defaults]`.
pub(super) fn read_sites(
    root: &Section<'_>,
    pools: &[Arc<str>],
    peers: KnownPeers,
    object_age_max: Duration,
) -> (Settings, BTreeMap<Arc<str>, SilenceAction>, Scope) {
    let mut scope = Scope::default();
    Arc::make_mut(&mut scope.cache).object_age_max = object_age_max;
    read_scope(&root.section("defaults"), &mut scope);
    let mut sites = Sites {
        actions: Actions { pools, peers },
        hosts: BTreeMap::new(),
        rules: HashMap::new(),
        silences: BTreeMap::new(),
    };
    let named = root.named("sites");
    let read = named.iter().map(|(name, section)| sites.site(name, section, scope.clone()));
    let settings = Settings { sites: read.collect() };
    // A condition that could not be read is missing from its rule, which then matches too much.
    let shadowed = if root.reader.has_mistakes() { Vec::new() } else { settings.shadowed_rules() };
    for ShadowedRule { site, rule, earlier } in shadowed {
        let span = &sites.rules[&(site.name.clone(), rule.name.clone())];
        let message = match &*rule.name == DEFAULT {
            true => format!(
                "the action of site {:?} never applies: rule {:?} matches every request",
                site.name, earlier.name
            ),
            false => format!(
                "rule {:?} never applies: the earlier rule {:?} matches every request it matches",
                rule.name, earlier.name
            ),
        };
        root.reader.mistake(span, message);
    }
    if !root.reader.has_mistakes() {
        for GeoRedirectMistake { site, rule, message } in settings.geo_redirect_mistakes() {
            let span = &sites.rules[&(site.name.clone(), rule.name.clone())];
            root.reader.mistake(span, message);
        }
    }
    (settings, sites.silences, scope)
}

/// A site for all hosts with one rule: everything to `pool`, with the settings of `[defaults]`.
pub(super) fn catch_all(pool: &Arc<str>, defaults: Scope) -> SiteSettings {
    let forward = to_pool(pool.clone());
    let name: Arc<str> = DEFAULT.into();
    let rule = rule_of(&name, &name, Matches::default(), Action::Forward(forward), defaults);
    SiteSettings {
        name,
        number: 0,
        log_share: u32::MAX,
        hosts: vec![HostPattern::Any],
        rules: vec![rule],
    }
}

struct Sites<'a> {
    actions: Actions<'a>,
    hosts: BTreeMap<HostPattern, String>,
    rules: HashMap<(Arc<str>, Arc<str>), Range<usize>>,
    silences: BTreeMap<Arc<str>, SilenceAction>,
}

impl Sites<'_> {
    fn site(&mut self, name: &str, section: &Section<'_>, mut scope: Scope) -> SiteSettings {
        check_plain_name(section, "", name);
        let hosts = self.hosts(name, section);
        read_scope(section, &mut scope);
        let name: Arc<str> = name.into();
        let mut silence = None;
        let words = rooms::SILENCES.map(|(word, meant)| (word, Some(meant)));
        section.choice("silence", &mut silence, &words);
        self.silences.extend(silence.map(|silence| (name.clone(), silence)));
        let own = self.actions.read(section, None);
        let inherited = match &own {
            Some(Action::Forward(forward)) => Some(forward.clone()),
            _ => self.actions.only_pool(),
        };
        refuse_endless_redirect(section, &Matches::default(), own.as_ref());
        let own = own.or_else(|| inherited.clone().map(Action::Forward));
        let mut rules = Vec::new();
        let mut redirects_to_https = false;
        section.read("https_redirect", &mut redirects_to_https);
        if redirects_to_https {
            rules.push(https_redirect(&name, &scope));
            self.rules.insert((name.clone(), HTTPS_REDIRECT.into()), section.span());
        }
        let listed = section.list("rules");
        check_ignored(section, own.as_ref(), !listed.is_empty());
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
            let several = match self.actions.pools.len() {
                0 | 1 => String::new(),
                count => format!(", and there are {count} pools to choose from"),
            };
            let message = format!(
                "the site has no action{several}: set \"pool\", \"redirect\" or \"respond\", or add rules"
            );
            match self.actions.pools {
                // Pools are missing, or could not be read.
                [] => section.mistake_alone(&message),
                _ => section.mistake("", message),
            }
        }
        for (rule, earlier) in clashing_cookies(&rules) {
            let message = format!(
                "the splits of rules {:?} and {:?} have different pools and one cookie, so that each \
                 changes the groups of the other: set \"cookie\" in one of them",
                earlier.name, rule.name
            );
            section.reader.mistake(&self.rules[&(name.clone(), rule.name.clone())], message);
        }
        let log_share = read_log_share(&section.section("log"));
        SiteSettings { name, number: 0, log_share, hosts, rules }
    }

    fn hosts(&mut self, site: &str, section: &Section<'_>) -> Vec<HostPattern> {
        let mut hosts: Vec<Host> = Vec::new();
        section.read("hosts", &mut hosts);
        if !section.has_items("hosts") {
            let message = format!("site {site:?} has no hosts, such as hosts = [\"example.org\"]");
            section.missing("hosts", &message);
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
        inherited: Option<Forward>,
    ) -> Option<RuleSettings> {
        let mut name: Arc<str> = format!("rule-{}", at + 1).into();
        section.read("name", &mut name);
        check_plain_name(section, "name", &name);
        let taken = self.rules.insert((site.clone(), name.clone()), section.span());
        if &*name == DEFAULT {
            let message = "\"default\" is the name of the site's own action: choose another name";
            section.mistake("name", message);
        } else if taken.is_some() {
            let message =
                format!("site {site:?} has another rule named {name:?}: choose another name");
            section.mistake("name", message);
        }
        let matches = read_matches(section);
        read_scope(section, &mut scope);
        let action = self.actions.read(section, inherited.as_ref());
        check_ignored(section, action.as_ref(), false);
        refuse_endless_redirect(section, &matches, action.as_ref());
        if action.is_none() {
            let message = "the rule has no action: set \"pool\" (in the rule or its site), \"redirect\" or \"respond\"";
            section.mistake("", message);
        }
        Some(rule_of(site, &name, matches, action?, scope))
    }
}

/// Refuses a redirect of requests over https to the same URL.
fn refuse_endless_redirect(section: &Section<'_>, matches: &Matches, action: Option<&Action>) {
    let Some(Action::Redirect(redirect)) = action else { return };
    let same = |host| Template::parse(&format!("https://${{request.{host}}}${{request.target}}"));
    let is_same = ["host", "hostname"]
        .into_iter()
        .any(|host| same(host).is_ok_and(|it| it == redirect.location));
    if is_same && matches.schemes != [Scheme::Http] {
        let message = "requests over https are redirected to themselves, without end: set https_redirect = true in the site, or schemes = [\"http\"] in the rule";
        section.mistake("redirect", message);
    }
}

/// The share of requests in the access log, of `u32::MAX`.
fn read_log_share(section: &Section<'_>) -> u32 {
    let mut sample = 1.0;
    section.read_within("sample", &mut sample, 0.0..=1.0);
    (sample * f64::from(u32::MAX)) as u32
}

/// The first rule of a site that answers plain HTTP only with redirects. 308 keeps method and content.
fn https_redirect(site: &str, scope: &Scope) -> RuleSettings {
    let matches = Matches { schemes: vec![Scheme::Http], ..Matches::default() };
    let location = Template::parse("https://${request.hostname}${request.target}");
    let location = location.expect("a template of known variables");
    let redirect = Redirect { status: StatusCode::PERMANENT_REDIRECT, location };
    rule_of(site, HTTPS_REDIRECT, matches, Action::Redirect(redirect), scope.clone())
}

/// The name of the rule of `https_redirect`.
pub(super) const HTTPS_REDIRECT: &str = "https-redirect";

fn rule_of(site: &str, name: &str, matches: Matches, action: Action, scope: Scope) -> RuleSettings {
    let rule_number = xxhash_rust::xxh3::xxh3_64(format!("{site}\n{name}").as_bytes());
    let Scope { access, rate, cache, compression, request_fields, response_fields, .. } = scope;
    let (name, server_timing) = (name.into(), scope.server_timing);
    RuleSettings {
        name,
        number: 0,
        matches,
        action,
        guard: guard::RuleLimits { access, rate, rule_number },
        cache,
        compression,
        request_fields,
        response_fields,
        server_timing,
    }
}

/// `"example.org"`, `"*.example.org"` or `"*"`.
#[derive(Debug)]
struct Host(HostPattern);

impl Value for Host {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a host without port, such as \"example.org\", \"*.example.org\" or \"*\"";
        let parse = |text: &str| {
            let lower = text.to_ascii_lowercase();
            let pattern = match lower.strip_prefix("*.") {
                _ if lower == "*" => HostPattern::Any,
                // The name of nginx's server for all other hosts.
                None if lower == "_" => return None,
                Some(parent) => HostPattern::Below(is_host_name(parent).then(|| parent.into())?),
                None => HostPattern::Exact(
                    (is_host_name(&lower) || is_address(&lower)).then(|| lower.as_str().into())?,
                ),
            };
            Some(Self(pattern))
        };
        text_or(value, reader, expected, parse, remedy::host)
    }
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

const DEFAULT: &str = RuleSettings::DEFAULT;
