//! What the admin API asks of the node as a whole; node/actions.rs answers.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

use bytes::Bytes;
use http::{StatusCode, Uri};
use serde_json::Value;

use super::purge_order::Names;
use super::refresh::Refresh;

/// What a [`NodeActions`] method promises.
pub(crate) type Coming<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a caller may ask of the node as a whole.
pub(crate) trait NodeActions: Names + Send + Sync + 'static {
    /// `None` while the node serves; otherwise why it doesn't.
    fn not_ready(&self) -> Option<&'static str>;
    /// Reads the configuration anew; the lines say what changed, or what was wrong.
    fn reload(&self) -> Coming<'_, Result<Vec<String>, Vec<String>>>;
    /// Begins to drain.
    fn drain(&self);
    /// The site that a URL belongs to.
    fn site_of(&self, uri: &Uri) -> Option<String>;
    /// Asks for a URL as a client would, and reads the whole answer: status and content. Without a
    /// bound for the content that is dropped.
    fn fetch<'a>(
        &'a self,
        url: &'a str,
        content_bytes_max: Option<usize>,
    ) -> Coming<'a, Result<(StatusCode, Bytes), String>>;
    /// The most popular URLs of what a purge has covered.
    fn to_refresh(&self, refresh: Refresh) -> Coming<'_, Vec<Box<str>>>;
    /// Why a request for this URL would be a hit or a miss.
    fn explain<'a>(
        &'a self,
        uri: &'a Uri,
        headers: &'a http::HeaderMap,
        client: Option<IpAddr>,
        country: Option<geo::Country>,
    ) -> Coming<'a, Result<Value, String>>;
}
