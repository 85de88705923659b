//! Decides whether a request may come in, and normalises it.
//!
//! [`Gate::normalise`] runs before routing: it refuses requests that two HTTP implementations could
//! read differently (RFC 9112 §11.2) and normalises all others. [`admit`] runs after routing and
//! applies the rule's own [`RuleLimits`]: [`access`], then [`rate`]. The first refusal wins. [`upgrade`]
//! selects the protocols that a client may switch to. Limits on the size and duration of request heads
//! belong to the listeners.

pub(crate) mod access;
mod admission;
mod authority;
mod debug_key;
mod fields;
mod forwarded;
#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
mod normalise;
mod path;
pub(crate) mod rate;
mod readings;
mod refusal;
pub(crate) mod upgrade;

pub(crate) use admission::{ALL_BUT_TRACE, Applicant, Rates, Rejection, RuleLimits, admit};
pub(crate) use authority::Authority;
pub(crate) use debug_key::DebugKey;
pub(crate) use normalise::{Gate, Normalised};
pub(crate) use readings::other_readings;
pub(crate) use refusal::Refusal;

use std::borrow::Cow;

use http::HeaderName;
use ipnet::IpNet;

/// Normalises a path from the configuration or the admin API as the gate normalises request paths,
/// except that `//` stays.
///
/// # Errors
/// The gate would refuse a request for this path.
pub(crate) fn normal_path(path: &str) -> Result<Cow<'_, str>, Refusal> {
    if path.starts_with('/') { path::normalise(path, false) } else { Err(Refusal::TargetInvalid) }
}

/// The settings of request normalisation: choices that the RFCs leave open, trusted proxies, loop
/// detection, stripped fields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Replaces `//` by `/` in paths. Off by default, because an origin may distinguish them.
    pub merge_slashes: bool,
    /// Forwards TRACE to the origin. Off by default, because its response echoes credentials.
    pub trace: bool,
    /// Networks of the proxies in front of this node. Only their statements about the client are
    /// used.
    pub trusted_proxies: Vec<IpNet>,
    /// The field in which trusted proxies state the client's address. The other one is dropped.
    pub client_field: ClientField,
    /// Sends `Forwarded` (RFC 7239) to origins.
    pub send_forwarded: bool,
    /// Sends `X-Forwarded-For`, `-Proto` and `-Host` to origins.
    pub send_x_forwarded: bool,
    /// The CDN's name in `CDN-Loop` (RFC 8586), the same on all nodes of a fleet.
    pub cdn_id: String,
    /// A client's request whose `CDN-Loop` contains `cdn_id` this many times is refused with 508. The node that the
    /// client asks adds one, and the nodes that this one asks as peers add none.
    pub loop_hops_max: usize,
    /// Networks that may purge with the method `PURGE`. Empty by default: `PURGE` is then forwarded to
    /// the origin like any unknown method.
    pub purge_from: Vec<IpNet>,
    /// Request fields that are dropped because origins obey them although they are in no cache key.
    pub strip_fields: Vec<HeaderName>,
    /// The key of debug requests. `None`: there are none.
    pub debug_key: Option<DebugKey>,
}

/// The field in which trusted proxies state the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientField {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            merge_slashes: false,
            trace: false,
            trusted_proxies: Vec::new(),
            client_field: ClientField::XForwardedFor,
            send_forwarded: false,
            send_x_forwarded: true,
            cdn_id: "skerry".to_owned(),
            loop_hops_max: 4,
            purge_from: Vec::new(),
            strip_fields: STRIP_FIELDS.iter().map(|name| HeaderName::from_static(name)).collect(),
            debug_key: None,
        }
    }
}

/// The default of [`Settings::strip_fields`], grouped by what a field would change, with the software
/// that obeys it. Sources: "Web Cache Entanglement" (PortSwigger 2020), the header list of Param Miner
/// (2025) as far as a known framework or server reads the field, and later advisories.
pub(crate) const STRIP_FIELDS: &[&str] = &[
    // Method overrides: Rails, Symfony, Laravel, Express's method-override, ASP.NET.
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    // The URL: IIS Rewrite, Zend and Symfony of old, Gunicorn (SCRIPT_NAME, PATH_INFO), Apache NiFi
    // (X-Forwarded-Context), Flask behind a prefix (X-Script-Name), Envoy, Sun's and Oracle's proxies.
    "base-url",
    "path-info",
    "script-name",
    "x-envoy-original-path",
    "x-forwarded-context",
    "x-forwarded-path",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-http-destinationurl",
    "x-original-uri",
    "x-original-url",
    "x-override-url",
    "x-rewrite-url",
    "x-script-name",
    // The host and the port: Rails, Django, Symfony, Spring, Envoy, WebSphere and Liberty, which by
    // default accept their plug-in's `$WS…` fields from any client.
    "$wssn",
    "$wssp",
    "forwarded-host",
    "http-host",
    "x-backend-host",
    "x-envoy-original-host",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-host",
    "x-http-host-override",
    "x-original-host",
    // The scheme: Tornado (X-Scheme), Gunicorn (X-Forwarded-Protocol), Rack (X-Forwarded-Scheme), IIS
    // (X-ARR-SSL), WordPress (CF-Visitor), WebLogic (WL-Proxy-SSL), WebSphere.
    "$wsis",
    "$wspr",
    "cf-visitor",
    "forwarded-proto",
    "front-end-https",
    "wl-proxy-ssl",
    "x-arr-ssl",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "x-proto",
    "x-scheme",
    "x-url-scheme",
    // The client: Rails (Client-IP), request-ip for Node.js, django-ipware, WebLogic, WebSphere, Envoy,
    // and the fields of other CDNs and clouds.
    "$wsra",
    "$wsrh",
    "$wsru",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "fastly-client-ip",
    "forwarded-for",
    "proxy-client-ip",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-forwarded-by",
    "x-proxyuser-ip",
    "x-real-ip",
    // The client's certificate, which this node requests of no client (RFC 9440 §4): WebLogic, WebSphere, IIS and
    // Azure (X-ARR-ClientCert), Envoy (X-Forwarded-Client-Cert).
    "$wscc",
    "client-cert",
    "client-cert-chain",
    "wl-proxy-client-cert",
    "x-arr-clientcert",
    "x-forwarded-client-cert",
    // The client's country: WooCommerce.
    "cf-ipcountry",
    "x-country-code",
    // Internal fields of frameworks: Next.js (X-Middleware-Prefetch: CVE-2023-46298, X-Middleware-Subrequest:
    // CVE-2025-29927), React Router (CVE-2025-43864, CVE-2025-43865), Astro on Vercel.
    "x-astro-path",
    "x-invoke-error",
    "x-invoke-output",
    "x-invoke-path",
    "x-invoke-query",
    "x-invoke-status",
    "x-matched-path",
    "x-middleware-prefetch",
    "x-middleware-subrequest",
    "x-now-route-matches",
    "x-react-router-prerender-data",
    "x-react-router-spa-mode",
    // Capabilities of a server in front: Rack::Sendfile (CVE-2025-61780); Symfony and Drupal, which then
    // send unprocessed ESI (Surrogate-Capability).
    "surrogate-capability",
    "x-accel-mapping",
    "x-sendfile-type",
    // CGI's proxy for outgoing requests (httpoxy, CVE-2016-5385).
    "proxy",
];
