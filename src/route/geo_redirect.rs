//! Redirects clients to the name of the region nearest to them, for operators who cannot delegate a zone to the
//! nodes: without a zone, DNS does not choose the region.
//!
//! ```text
//! host is the name of a region ─┐
//! client's place unknown ───────┼─▶ served here
//! no region is ready ───────────┤
//! nearest region is this one ───┘
//! otherwise ────────────────────▶ redirect to the name of the nearest region
//! ```
//! A request for the name of a region is never redirected, and `config` checks that each name is served by a site
//! whose redirects have that name, too. Therefore no client is redirected twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use geo::{Place, UnitVector};

pub(crate) use crate::labels::GeoRedirectOutcome;

use super::{Action, HostPattern, RuleSettings, Settings, SiteSettings};

/// The names of regions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GeoRedirect {
    /// Each region with the host name of its nodes, in lower case and without port. Not empty.
    pub names: Vec<(Arc<str>, Box<str>)>,
}

/// The regions that clients may be sent to: those with a ready node, of which one says where it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RegionTable {
    /// The region of this node. Empty: it has none.
    pub own: Arc<str>,
    /// The regions with their places, sorted by name.
    pub ready: Vec<(Arc<str>, UnitVector)>,
}

/// Where a client is served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GeoChoice<'a> {
    /// The reason for the choice.
    pub outcome: GeoRedirectOutcome,
    /// `None`: no region was looked for, or none is ready.
    pub nearest: Option<NearestRegion<'a>>,
}

/// The region that is nearest to a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NearestRegion<'a> {
    /// The region.
    pub region: &'a Arc<str>,
    /// The host name of its nodes.
    pub name: &'a str,
    /// The distance of the client, in kilometres.
    pub distance_km: f64,
}

impl GeoRedirect {
    /// Chooses for a client at `place` that asks for `host`.
    pub(crate) fn choose(&self, host: &str, place: &Place, regions: &RegionTable) -> GeoChoice<'_> {
        let here = |outcome| GeoChoice { outcome, nearest: None };
        if self.names.iter().any(|(_, name)| **name == *host) {
            return here(GeoRedirectOutcome::RegionName);
        }
        let Some(from) = place.unit_vector() else { return here(GeoRedirectOutcome::UnknownPlace) };
        let place_of = |region: &Arc<str>| {
            let found = regions.ready.binary_search_by(|(name, _)| name.cmp(region));
            found.ok().map(|at| regions.ready[at].1)
        };
        let places = self.names.iter().filter_map(|(region, name)| {
            let point = place_of(region)?;
            Some((region, &**name, from.closeness(point), from.distance_km(point)))
        });
        // Of two at the same distance, the first.
        let nearest = { places }.reduce(|best, next| if next.2 > best.2 { next } else { best });
        let Some((region, name, _, distance_km)) = nearest else {
            return here(GeoRedirectOutcome::NoRegion);
        };
        let outcome = match **region == *regions.own {
            true => GeoRedirectOutcome::OwnRegion,
            false => GeoRedirectOutcome::Redirected,
        };
        let nearest = Some(NearestRegion { region, name, distance_km });
        GeoChoice { outcome, nearest }
    }
}

/// A redirect to a name at which the client would not be served.
#[derive(Clone, Debug)]
pub(crate) struct GeoRedirectMistake<'a> {
    /// The site of the rule.
    pub site: &'a SiteSettings,
    /// The rule that redirects.
    pub rule: &'a RuleSettings,
    /// The mistake and its remedy.
    pub message: String,
}

impl Settings {
    /// The names of regions at which a client would not be served, each once for each site.
    pub(crate) fn geo_redirect_mistakes(&self) -> Vec<GeoRedirectMistake<'_>> {
        let mut mistakes = Vec::new();
        for site in &self.sites {
            let mut messages = BTreeSet::new();
            for (rule, redirect) in site.geo_redirects() {
                for (region, name) in &redirect.names {
                    let Some(message) = self.mistake_of_name(region, name) else { continue };
                    if messages.insert(message.clone()) {
                        mistakes.push(GeoRedirectMistake { site, rule, message });
                    }
                }
            }
        }
        mistakes
    }

    fn mistake_of_name(&self, region: &str, name: &str) -> Option<String> {
        let Some(serving) = self.site_of(name) else {
            return Some(format!(
                "no site serves {name:?}, the name of region {region:?} in \"geo_redirect\": add it to \"hosts\" of a site"
            ));
        };
        let leads_on =
            |redirect: &GeoRedirect| !redirect.names.iter().any(|(_, other)| **other == *name);
        serving.geo_redirects().any(|(_, redirect)| leads_on(redirect)).then(|| {
            format!(
                "{name:?}, the name of region {region:?} in \"geo_redirect\", is served by site {:?}, whose own \"geo_redirect\" does not have it and sends clients on: give both the same names",
                serving.name
            )
        })
    }

    /// The site of a host, as [`super::Routes::site`] finds it.
    fn site_of(&self, host: &str) -> Option<&SiteSettings> {
        let length = |pattern: &HostPattern| match pattern {
            HostPattern::Exact(exact) => (**exact == *host).then_some(usize::MAX),
            HostPattern::Below(parent) => {
                let above = host.strip_suffix(&**parent)?.strip_suffix('.')?;
                (!above.is_empty()).then_some(parent.len())
            }
            HostPattern::Any => Some(0),
        };
        let sites = self.sites.iter();
        let matches =
            sites.filter_map(|site| Some((site.hosts.iter().filter_map(length).max()?, site)));
        matches.max_by_key(|(length, _)| *length).map(|(_, site)| site)
    }
}

impl SiteSettings {
    fn geo_redirects(&self) -> impl Iterator<Item = (&RuleSettings, &GeoRedirect)> {
        self.rules.iter().filter_map(|rule| match &rule.action {
            Action::Forward(forward) => Some((rule, forward.geo_redirect.as_deref()?)),
            Action::Redirect(_) | Action::Fixed(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use geo::{Coordinates, Country};

    use super::*;

    fn redirect() -> GeoRedirect {
        let name = |region: &str| (region.into(), format!("{region}.example.org").into());
        GeoRedirect { names: ["ap", "eu", "us"].map(name).to_vec() }
    }

    fn regions(own: &str, ready: &[(&str, f64, f64)]) -> RegionTable {
        let region = |(name, latitude, longitude): &(&str, f64, f64)| {
            let point = Coordinates::new(*latitude, *longitude).expect("a point");
            (Arc::from(*name), UnitVector::from(point))
        };
        RegionTable { own: own.into(), ready: ready.iter().map(region).collect() }
    }

    const ALL: [(&str, f64, f64); 3] =
        [("ap", 35.7, 139.7), ("eu", 50.1, 8.7), ("us", 39.0, -77.5)];

    #[track_caller]
    fn check(host: &str, country: &str, regions: &RegionTable, outcome: &str, name: Option<&str>) {
        let country = country.parse::<Country>();
        let place = country.map(Place::in_country).unwrap_or_default();
        let redirect = redirect();
        let choice = redirect.choose(host, &place, regions);
        assert_eq!(choice.outcome.as_str(), outcome);
        assert_eq!(choice.nearest.map(|nearest| nearest.name), name);
    }

    #[test]
    fn a_client_is_sent_to_the_nearest_region_that_is_ready() {
        let eu = regions("eu", &ALL);
        check("www.example.org", "JP", &eu, "redirected", Some("ap.example.org"));
        check("www.example.org", "CA", &eu, "redirected", Some("us.example.org"));
        check("www.example.org", "DE", &eu, "own_region", Some("eu.example.org"));
        check("www.example.org", "DE", &regions("", &ALL), "redirected", Some("eu.example.org"));
        let without_ap = regions("us", &ALL[1..]);
        check("www.example.org", "JP", &without_ap, "redirected", Some("eu.example.org"));
        let other = regions("us", &[("other", 0.0, 0.0)]);
        check("www.example.org", "JP", &other, "no_region", None);
    }

    #[test]
    fn a_client_of_unknown_place_or_at_the_name_of_a_region_is_served_here() {
        let eu = regions("eu", &ALL);
        check("www.example.org", "", &eu, "unknown_place", None);
        check("us.example.org", "JP", &eu, "region_name", None);
    }
}
