//! Which site and which rule a request belongs to, and what the rule wants done.
//!
//! A site is found by host: exact, then the longest wildcard, then the default. Within it
//! rules stand **in the order written and the first match wins**: with path, method and
//! country side by side no order by "specificity" is one that a reader can predict. A rule
//! that an earlier one hides is a mistake of the configuration, see [`Settings::hidden_rules`].
//! Nothing is matched by regular expression; a request costs one hash and a few comparisons.

mod edit;
mod matches;
mod rewrite;
mod routes;
mod template;

use std::sync::Arc;

use bytes::Bytes;
use geo::{Continent, Country};
use http::{HeaderValue, StatusCode};

use crate::{cache, guard, transform};

pub(crate) use edit::FieldEdits;
pub(crate) use matches::{Matches, PathGlob, PathPattern};
pub(crate) use rewrite::Rewrite;
pub(crate) use routes::{Question, Routes, Rule, Site};
pub(crate) use template::{Facts, Template, VARIABLES};

/// All sites. Rules are complete: what they inherit has been filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    /// In any order.
    pub sites: Vec<SiteSettings>,
}

/// One site.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SiteSettings {
    /// What purges, logs and metrics call it.
    pub name: Arc<str>,
    /// Who asks for it.
    pub hosts: Vec<HostPattern>,
    /// First match wins. The last one matches everything.
    pub rules: Vec<RuleSettings>,
}

/// A host that a site answers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum HostPattern {
    /// This host, lower case, without port.
    Exact(Box<str>),
    /// Any name below this one, which is written without `*.`.
    Below(Box<str>),
    /// Any host that no other site has.
    Any,
}

/// One rule: when it applies and what is done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RuleSettings {
    /// For logs and `skerry explain`; unique within its site.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: Matches,
    /// What is done.
    pub action: Action,
    /// Which requests are let in.
    pub guard: guard::Limits,
    /// What may be stored and reused.
    pub cache: Arc<cache::Settings>,
    /// Content coding on the way to the client.
    pub compression: Arc<transform::Settings>,
    /// Changes to the fields that an origin gets.
    pub request_fields: FieldEdits,
    /// Changes to the fields that a client gets.
    pub response_fields: FieldEdits,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Answered from the cache or by an origin.
    Pass(Pass),
    /// Sent elsewhere.
    Redirect(Redirect),
    /// Always the same answer.
    Fixed(Fixed),
}

/// Which origins answer, and the path they are asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pass {
    /// The pool, unless a place below has its own.
    pub pool: Arc<str>,
    /// Pools for clients of a country.
    pub by_country: Vec<(Country, Arc<str>)>,
    /// Pools for clients of a continent whose country has none.
    pub by_continent: Vec<(Continent, Arc<str>)>,
    /// The path at the origin.
    pub rewrite: Rewrite,
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
    /// May be empty.
    pub content: Bytes,
    /// `Content-Type`, when there is content.
    pub content_type: HeaderValue,
}
