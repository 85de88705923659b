//! May this request come in at all, and what exactly does it ask for?
//!
//! [`Gate::normalise`] stands before routing: it refuses what two HTTP implementations could
//! read in two ways (RFC 9112 §11.2) and leaves one spelling of everything else. [`access`]
//! and [`rate`] stand behind it, with the rule's own limits. The first refusal wins. Sizes and
//! times of request heads are the listeners' business.

pub mod access;
mod authority;
mod fields;
mod forwarded;
mod normalise;
mod path;
pub mod rate;
mod refusal;

pub use authority::Authority;
pub use normalise::{Gate, Normalised};
pub use refusal::Refusal;

use std::borrow::Cow;

use http::HeaderName;
use ipnet::IpNet;

/// The spelling of `path` that requests have behind the gate. For what configuration and admin
/// API name; `//` is left as it is.
///
/// # Errors
/// The gate would refuse a request for it.
pub fn normal_path(path: &str) -> Result<Cow<'_, str>, Refusal> {
    if path.starts_with('/') { path::normalise(path, false) } else { Err(Refusal::TargetInvalid) }
}

/// What the gate does where the RFCs leave a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
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
pub enum ClientField {
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

/// [`Settings::strip_fields`] as shipped: method overrides, other names for the URL, the host
/// or the client (the list of "Web Cache Entanglement", PortSwigger 2020, and what
/// frameworks have read since), and `Proxy` (httpoxy, CVE-2016-5385).
pub const STRIP_FIELDS: &[&str] = &[
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "forwarded-for",
    "forwarded-host",
    "forwarded-proto",
    "front-end-https",
    "proxy",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-forwarded-by",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-override-url",
    "x-real-ip",
    "x-rewrite-url",
    "x-url-scheme",
];
