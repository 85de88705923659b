//! route: the site and the rule that answer a request or a URL.

use std::sync::Arc;

use geo::Place;
use http::{Method, Uri};

use crate::cache::UrlParts;
use crate::cache::key::url_part;
use crate::guard::{Gate, Normalised};
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
