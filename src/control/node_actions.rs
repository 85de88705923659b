//! Actions on the whole node that the admin API needs; node/actions.rs implements them.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri};
use serde_json::Value;
use tokio::sync::mpsc;

use super::origin_request::{OriginRefusal, OriginRequest, OriginSetting};
use super::purge_request::SiteLookup;
use crate::bus::refresh::Refresh;

/// The parameters of `GET /overview`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverviewQuery {
    /// Only the node and its alarms.
    pub is_brief: bool,
    /// Only intervals that ended later, in milliseconds since 1970.
    pub since_ms: u64,
    /// How many of the most requested URLs to list.
    pub top: usize,
}

/// Whether the configuration sets a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConfiguredTag {
    /// A rule has it in `cache.tags`, so that responses are stored with it.
    OfRule,
    /// The site or rule that sets it in `response_fields`, which only clients see.
    ShownOnly(String),
    /// Nothing.
    Absent,
}

/// The future that a [`NodeActions`] method returns.
pub(crate) type ActionFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Actions on the whole node.
pub(crate) trait NodeActions: SiteLookup + Send + Sync + 'static {
    /// Why the node is not ready. `None`: it is ready.
    fn not_ready(&self) -> Option<&'static str>;
    /// Reloads the configuration. Returns the changes or the mistakes, one line each.
    fn reload(&self) -> ActionFuture<'_, Result<Vec<String>, Vec<String>>>;
    /// Starts to drain. Returns for how long connections are still accepted.
    fn drain(&self) -> Duration;
    /// Takes a drain back. Returns whether there was one.
    ///
    /// # Errors
    /// The listeners are closed already.
    fn undrain(&self) -> Result<bool, &'static str>;
    /// The configuration in use, for `GET /config`.
    fn configuration(&self) -> Value;
    /// The changes that a reload would make, or the mistakes, one line each.
    fn configuration_diff(&self) -> ActionFuture<'_, Result<Vec<String>, Vec<String>>>;
    /// Applies the configuration from before the last change again. Returns the changes or the mistakes.
    fn roll_back(&self) -> ActionFuture<'_, Result<Vec<String>, Vec<String>>>;
    /// Lines of the access log from now on. `None`: too many callers watch it.
    fn watch_log(&self) -> Option<mpsc::Receiver<Bytes>>;
    /// Name of the site that serves a URL. `None`: no site of this node has its host.
    fn site_of(&self, uri: &Uri) -> Option<String>;
    /// The rules of all sites, each as site and rule, in the order in which they are tried.
    fn rules(&self) -> Vec<(Arc<str>, Arc<str>)>;
    /// Whether the configuration sets a tag.
    fn configured_tag(&self, tag: &str) -> ConfiguredTag;
    /// Requests a URL as a client would, and reads the whole response. Returns status and content;
    /// without `content_bytes_max` the content is discarded.
    ///
    /// # Errors
    /// Why there is no whole response, or that its content is longer than `content_bytes_max`.
    fn fetch<'a>(
        &'a self,
        url: &'a str,
        content_bytes_max: Option<usize>,
    ) -> ActionFuture<'a, Result<(StatusCode, Bytes), String>>;
    /// The most requested URLs among the purged objects.
    fn urls_to_refresh(&self, refresh: Refresh) -> ActionFuture<'_, Vec<Box<str>>>;
    /// The state of the node and its last hour, for `GET /overview`.
    fn overview(&self, query: OverviewQuery) -> Value;
    /// The certificates of the listeners, for `GET /certificates`.
    fn certificates(&self) -> Value;
    /// The pools with the state of each origin, for `GET /origins`.
    fn origins(&self) -> Value;
    /// The zones, edge names and nodes of the name server, for `GET /dns`.
    fn dns(&self) -> Value;
    /// The response of the name server to a query for this name and type, from a client with this address,
    /// and how its region was chosen.
    ///
    /// # Errors
    /// The name or the type cannot be asked for.
    fn explain_dns(
        &self,
        name: &str,
        kind: Option<&str>,
        client: Option<IpAddr>,
    ) -> Result<Value, String>;
    /// All zones, or one, as zone files, with the addresses for this client.
    ///
    /// # Errors
    /// The name server has no such zone.
    fn export_dns(&self, zone: Option<&str>, client: Option<IpAddr>) -> Result<Value, String>;
    /// Sets the state or the weight of an origin.
    ///
    /// # Errors
    /// Why it is refused.
    fn set_origin(
        &self,
        request: OriginRequest,
    ) -> ActionFuture<'_, Result<OriginSetting, OriginRefusal>>;
    /// Explains whether a request for this URL would be a hit, and why.
    ///
    /// # Errors
    /// The request would be refused as invalid, or the URL cannot be explained.
    fn explain<'a>(
        &'a self,
        uri: &'a Uri,
        headers: &'a http::HeaderMap,
        client: Option<IpAddr>,
        country: Option<geo::Country>,
    ) -> ActionFuture<'a, Result<Value, String>>;
}
