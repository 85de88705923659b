//! route: the site and the rule that answer a request or a URL.

use std::sync::Arc;

use geo::Place;
use http::{Method, Uri};

use crate::cache::UrlParts;
use crate::cache::key::url_part;
use crate::guard::{Gate, Normalised, other_readings};
use crate::route::{RouteRequest, Routes, Rule, Site};

/// The site and the rule that answer a request; `None` if no site has its host.
pub(super) fn route<'r>(
    routes: &'r Routes,
    request: &Normalised,
    method: &Method,
    place: &Place,
) -> Option<(&'r Arc<Site>, &'r Arc<Rule>)> {
    let (host, path) = (request.authority.host(), request.path());
    routes.find(&RouteRequest { scheme: request.scheme, host, path, method, place })
}

/// The rules for the other paths that an origin may read in the path of a request: the request must keep their limits
/// besides those of its own rule. Needed only where [`Site::has_various_limits`]; allocates only for such paths.
pub(super) fn rules_of_other_readings<'r>(
    site: &'r Site,
    rule: &Arc<Rule>,
    request: &Normalised,
    method: &Method,
    place: &Place,
) -> Vec<&'r Arc<Rule>> {
    let mut rules: Vec<&Arc<Rule>> = Vec::new();
    let (scheme, host) = (request.scheme, request.authority.host());
    for path in other_readings(request.path()) {
        let question = RouteRequest { scheme, host, path: &path, method, place };
        let Some(other) = site.rule(&question) else { continue };
        if !Arc::ptr_eq(other, rule) && !rules.iter().any(|known| Arc::ptr_eq(known, other)) {
            rules.push(other);
        }
    }
    rules
}

/// A URL as it stands in the keys of its rule, for purges.
///
/// # Errors
/// The gate refuses the URL, or no site has its host; the text says which.
pub(crate) fn canonical_url(routes: &Routes, gate: &Gate, uri: &Uri) -> Result<String, String> {
    let request = gate.normalise_url(uri).map_err(|refusal| refusal.to_string())?;
    url_in_keys(routes, &request)
}

/// The URL of a request as it stands in the keys of the rule that answers a GET of it.
///
/// # Errors
/// No site has its host.
pub(super) fn url_in_keys(routes: &Routes, request: &Normalised) -> Result<String, String> {
    let (_, rule) = route(routes, request, &Method::GET, &Place::default())
        .ok_or_else(|| no_site(request.authority.host()))?;
    Ok(url_part(&rule.settings.cache.key, &url_parts(request)))
}

/// The parts of a request's URL that its key is made of.
pub(super) fn url_parts(request: &Normalised) -> UrlParts<'_> {
    UrlParts {
        scheme: request.scheme,
        authority: request.authority.as_str(),
        path: request.path(),
        query: request.query(),
    }
}

/// The message for clients and the admin API if no site has a host.
pub(super) fn no_site(host: &str) -> String {
    format!("this server has no site for the host {host:?}")
}
