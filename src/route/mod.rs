//! Selects the site and the rule of a request. The rule says what to do with the request.
//!
//! A site is found by its host: exact match, then the longest wildcard, then the default site.
//! Within a site, rules are **in the order of the configuration and the first match wins**: with
//! conditions on path, method and country, an order by "specificity" would be hard to predict. A
//! rule that an earlier rule covers is a mistake, see [`Settings::shadowed_rules`]. There are no
//! regular expressions; a request costs one hash and a few comparisons.
//!
//! To add an action, add a variant to [`Action`], read it in `config/actions.rs`, and answer it in
//! the one match of `serve.rs`.

mod edit;
mod geo_redirect;
mod matches;
mod mirror;
mod rewrite;
mod routes;
mod shield;
mod split;
mod template;

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use geo::{Continent, Country, Place};
use http::{HeaderValue, StatusCode};
use ipnet::IpNet;

use crate::{cache, guard, transform};

pub(crate) use crate::labels::{MirrorOutcome, SplitChoice};
pub(crate) use edit::FieldEdits;
pub(crate) use geo_redirect::{GeoRedirect, GeoRedirectMistake, GeoRedirectOutcome, RegionTable};
pub(crate) use matches::{Matches, PathGlob, PathPattern};
pub(crate) use mirror::{Mirror, MirrorPlace, RuleMirror};
pub(crate) use rewrite::Rewrite;
pub(crate) use routes::{RouteRequest, Routes, Rule, ShadowedRule, Site};
pub(crate) use shield::{Shield, ShieldGone};
pub(crate) use split::{Forced, ForcedBy, GroupCookie, Split, SplitBy, SplitGroup, Visitor};
pub(crate) use template::{Facts, Template, TemplateError, VARIABLES};

/// All sites. Inherited settings have been filled in, so that each rule is complete.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// In any order.
    pub sites: Vec<SiteSettings>,
}

/// One site.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SiteSettings {
    /// The name in purges, logs and metrics.
    pub name: Arc<str>,
    /// The number in the metrics, which the node gives: a name keeps its number across reloads.
    pub number: u32,
    /// The share of requests in the access log, of `u32::MAX`. Failures are always logged.
    pub log_share: u32,
    /// The hosts that it serves.
    pub hosts: Vec<HostPattern>,
    /// The first match wins. The site's own action, if it has one, is the last rule and matches
    /// every request.
    pub rules: Vec<RuleSettings>,
}

/// Hosts that a site serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum HostPattern {
    /// This host, lower case, without port.
    Exact(Box<str>),
    /// Any name below this one, which is written without `*.`.
    Below(Box<str>),
    /// Every host that no other site has.
    Any,
}

/// One rule: its conditions, its action, and the settings for requests that match.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RuleSettings {
    /// For logs and `skerry explain`; unique within its site.
    pub name: Arc<str>,
    /// The number in the metrics, which the node gives: a rule keeps its number across reloads.
    pub number: u32,
    /// The conditions.
    pub matches: Matches,
    /// The answer to a request that matches.
    pub action: Action,
    /// The requests that are let in.
    pub guard: guard::RuleLimits,
    /// The responses that may be stored and reused.
    pub cache: Arc<cache::Settings>,
    /// Content coding of responses to clients.
    pub compression: Arc<transform::Settings>,
    /// Changes to the fields of requests to origins.
    pub request_fields: FieldEdits,
    /// Changes to the fields of responses to clients.
    pub response_fields: FieldEdits,
    /// Adds `Server-Timing` to responses to clients.
    pub server_timing: bool,
}

impl RuleSettings {
    /// The name of the rule made from the site's own action.
    pub(crate) const DEFAULT: &'static str = "default";

    /// The name, unless the site's own action applies.
    pub(crate) fn logged_name(&self) -> Option<&Arc<str>> {
        Some(&self.name).filter(|name| ***name != *Self::DEFAULT)
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Answer from the cache, or forward to a pool.
    Forward(Forward),
    /// Redirect the client.
    Redirect(Redirect),
    /// Answer with a response from the configuration.
    Fixed(Fixed),
}

/// The pool to forward to, and the path to request there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Forward {
    /// The pool for clients that the lists below do not name.
    pub pool: Arc<str>,
    /// Pools for clients that match conditions. The first match wins, before the two lists below.
    pub by_client: Vec<PoolByClient>,
    /// Pools for clients of a country.
    pub by_country: Vec<(Country, Arc<str>)>,
    /// Pools for clients of a continent whose country has none.
    pub by_continent: Vec<(Continent, Arc<str>)>,
    /// Pools by weight, in the place of `pool`.
    pub split: Option<Box<Split>>,
    /// Where copies of requests are sent.
    pub mirror: Option<Box<Mirror>>,
    /// The regions that are asked before the origin. `None`: none is.
    pub shield: Option<Shield>,
    /// Sends clients to the name of the nearest region, before all else.
    pub geo_redirect: Option<Box<GeoRedirect>>,
    /// Changes the path for the origin.
    pub rewrite: Rewrite,
}

/// A pool for clients that match one of the conditions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PoolByClient {
    /// The client is in one of these countries,
    pub countries: Vec<Country>,
    /// or on one of these continents,
    pub continents: Vec<Continent>,
    /// or in the network of one of these autonomous systems,
    pub asns: Vec<u32>,
    /// or has an address in one of these networks.
    pub networks: Vec<IpNet>,
    /// The pool's name.
    pub pool: Arc<str>,
}

impl PoolByClient {
    /// Whether there is no condition, so that no client matches.
    pub(crate) fn is_empty(&self) -> bool {
        self.countries.is_empty()
            && self.continents.is_empty()
            && self.asns.is_empty()
            && self.networks.is_empty()
    }

    /// Whether a client with this address at `place` matches. IPv4 addresses that are mapped into
    /// IPv6 match as IPv4.
    pub(crate) fn matches(&self, place: &Place, client: IpAddr) -> bool {
        let client = client.to_canonical();
        place.country.is_some_and(|country| self.countries.contains(&country))
            || place.continent.is_some_and(|continent| self.continents.contains(&continent))
            || place.asn().is_some_and(|asn| self.asns.contains(&asn))
            || self.networks.iter().any(|network| network.contains(&client))
    }
}

/// A redirect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// `Location`.
    pub location: Template,
}

/// A response from the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fixed {
    /// Any final status.
    pub status: StatusCode,
    /// The content; may be empty.
    pub content: Bytes,
    /// `Content-Type`, when there is content.
    pub content_type: HeaderValue,
}
