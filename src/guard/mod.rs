//! May this request come in at all, and what exactly does it ask for?
//!
//! [`Gate::normalise`] stands before routing: it refuses what two HTTP implementations could
//! read in two ways (RFC 9112 §11.2) and leaves one spelling of everything else. [`access`],
//! [`rate`] and [`upgrade`] stand behind it, with the rule's own limits. The first refusal wins. Sizes and
//! times of request heads are the listeners' business.

pub(crate) mod access;
mod authority;
mod fields;
mod forwarded;
mod normalise;
mod path;
pub(crate) mod rate;
mod refusal;
pub(crate) mod upgrade;

pub(crate) use authority::Authority;
pub(crate) use normalise::{Gate, Normalised};
pub(crate) use refusal::Refusal;

use std::borrow::Cow;

use http::HeaderName;
use ipnet::IpNet;

/// The spelling of `path` that requests have behind the gate. For what configuration and admin
/// API name; `//` is left as it is.
///
/// # Errors
/// The gate would refuse a request for it.
pub(crate) fn normal_path(path: &str) -> Result<Cow<'_, str>, Refusal> {
    if path.starts_with('/') { path::normalise(path, false) } else { Err(Refusal::TargetInvalid) }
}

/// What the gate does where the RFCs leave a choice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// `//` becomes `/` in paths. Off as shipped: an origin may tell them apart.
    pub merge_slashes: bool,
    /// Lets TRACE through to the origin. Off as shipped: it echoes credentials.
    pub trace: bool,
    /// Networks of the proxies in front of us, whose word on the client is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The field by which trusted proxies name the client; the other one is dropped.
    pub client_field: ClientField,
    /// Sends `Forwarded` (RFC 7239) to origins.
    pub send_forwarded: bool,
    /// Sends `X-Forwarded-For`, `-Proto` and `-Host` to origins.
    pub send_x_forwarded: bool,
    /// Our name in `CDN-Loop` (RFC 8586); one for all nodes of a fleet.
    pub cdn_id: String,
    /// How often our name may stand in `CDN-Loop` before the request is refused with 508.
    /// Owner, shield and the node itself each add one.
    pub loop_hops_max: usize,
    /// Networks from where `PURGE` requests purge. Empty as shipped: they go to the origin like
    /// any method that we don't know.
    pub purge_from: Vec<IpNet>,
    /// Fields that are dropped since origins obey them though no cache key has them.
    pub strip_fields: Vec<HeaderName>,
}

/// How trusted proxies name the client.
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
        }
    }
}

/// [`Settings::strip_fields`] as shipped, by what they would change, with those that obey them: the
/// list of "Web Cache Entanglement" (PortSwigger 2020), of Param Miner (2025) what a known
/// framework or server reads, and what frameworks have been found to obey since.
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
    // The host and the port: Rails, Django, Symfony, Spring, Envoy, WebSphere and Liberty, which believe
    // their plug-in's `$WS…` from everybody as shipped.
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
    // and what else CDNs and clouds call it.
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
    // The client's country: WooCommerce.
    "cf-ipcountry",
    "x-country-code",
    // What frameworks say to themselves: Next.js (X-Middleware-Subrequest: CVE-2025-29927), React Router
    // (CVE-2025-43864, CVE-2025-43865), Astro on Vercel.
    "x-astro-path",
    "x-invoke-error",
    "x-invoke-output",
    "x-invoke-path",
    "x-invoke-query",
    "x-invoke-status",
    "x-matched-path",
    "x-middleware-subrequest",
    "x-now-route-matches",
    "x-react-router-prerender-data",
    "x-react-router-spa-mode",
    // What a server in front can do: Rack::Sendfile (CVE-2025-61780); Symfony and Drupal, which leave ESI
    // in what they send (Surrogate-Capability).
    "surrogate-capability",
    "x-accel-mapping",
    "x-sendfile-type",
    // CGI's proxy for outgoing requests (httpoxy, CVE-2016-5385).
    "proxy",
];
