//! The call `POST /prefetch`: queues URLs, or all URLs of a sitemap.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::admin::Admin;
use super::http::{Problem, absolute_url, json_response};
use super::json_fields::JsonFields;
use super::prefetch::FETCH_TIMEOUT;
use super::purge_request::SCOPES_MAX;
use super::sitemap::{self, SITEMAP_BYTES_MAX};
use super::tokens::{Caller, Permission};

/// The JSON body of `POST /prefetch`.
#[derive(Debug)]
struct PrefetchBody {
    url: Option<String>,
    urls: Vec<String>,
    sitemap: Option<String>,
}

impl PrefetchBody {
    fn parse(body: &[u8]) -> Result<Self, String> {
        let mut fields = JsonFields::parse(body)?;
        let (url, urls) = (fields.string("url")?, fields.strings("urls")?);
        let sitemap = fields.string("sitemap")?;
        fields.finish(&["url", "urls", "sitemap"])?;
        Ok(Self { url, urls, sitemap })
    }
}

impl Admin {
    /// `POST /prefetch`
    pub(super) async fn prefetch(
        &self,
        caller: &Caller,
        body: &[u8],
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let call = PrefetchBody::parse(body)
            .map_err(|why| Problem::bad_request(format!("invalid prefetch request: {why}")))?;
        let urls: Vec<String> = call.url.into_iter().chain(call.urls).collect();
        if urls.len() > SCOPES_MAX {
            let detail = format!("too many URLs: {}, at most {SCOPES_MAX} are allowed", urls.len());
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        if urls.is_empty() && call.sitemap.is_none() {
            let detail = "nothing to fetch: expected one of url, urls, sitemap";
            return Err(Problem::bad_request(detail));
        }
        for url in &urls {
            self.check_may_fetch(caller, url)?;
        }
        let urls_max = self.prefetcher.queue_max.max(urls.len());
        let mut found = UrlsFound { urls, urls_max, dropped: 0, others: 0 };
        if let Some(sitemap) = &call.sitemap {
            self.check_may_fetch(caller, sitemap)?;
            self.read_sitemap(caller, sitemap, &mut found).await?;
        }
        let wanted = found.urls.len() + found.dropped;
        let queued = found.urls.into_iter().filter(|url| self.prefetcher.push((**url).into()));
        let queued = queued.count();
        if queued == 0 && wanted > 0 {
            let detail = "the queue is full (admin.prefetch_queue_max): try again later";
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
        }
        let body = json!({
            "queued": queued,
            "dropped": wanted - queued,
            "not_of_this_node": found.others,
        });
        Ok(json_response(StatusCode::ACCEPTED, &body))
    }

    /// Adds the URLs of a sitemap to `found`; of a sitemap index, those of its sitemaps (sitemaps.org
    /// allows one level).
    async fn read_sitemap(
        &self,
        caller: &Caller,
        url: &str,
        found: &mut UrlsFound,
    ) -> Result<(), Problem> {
        let (locations, is_index) = self.fetch_sitemap(url).await?;
        if locations.is_empty() {
            return Err(Problem::bad_request(format!("sitemap {url:?} has no <loc> with a URL")));
        }
        if !is_index {
            found.add(locations, |url| self.check_may_fetch(caller, url).is_ok());
            return Ok(());
        }
        for nested in locations.iter().take(SITEMAPS_MAX) {
            self.check_may_fetch(caller, nested)?;
            let (locations, _) = self.fetch_sitemap(nested).await?;
            found.add(locations, |url| self.check_may_fetch(caller, url).is_ok());
        }
        Ok(())
    }

    async fn fetch_sitemap(&self, url: &str) -> Result<(BTreeSet<String>, bool), Problem> {
        let unusable =
            |why: String| Problem::new(StatusCode::BAD_GATEWAY, format!("sitemap {url:?}: {why}"));
        let fetching = self.node.fetch(url, Some(SITEMAP_BYTES_MAX));
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, fetching).await;
        let (status, content) = fetched
            .unwrap_or_else(|_| Err(format!("no response within {} s", FETCH_TIMEOUT.as_secs())))
            .map_err(unusable)?;
        if status != StatusCode::OK {
            return Err(unusable(format!("status {}, expected 200", status.as_u16())));
        }
        let text = sitemap::decode(content).map_err(unusable)?;
        sitemap::locations(&text).map_err(|error| unusable(error.to_string()))
    }

    /// Checks that a site of this node has the URL's host, and that the caller may change the site.
    fn check_may_fetch(&self, caller: &Caller, url: &str) -> Result<(), Problem> {
        let site = self.node.site_of(&absolute_url(url)?);
        let site = site
            .ok_or_else(|| Problem::bad_value("url", url, &"no site of this node has this host"))?;
        match &caller.permission {
            Permission::All => Ok(()),
            Permission::Purge(sites) if sites.contains(&site) => Ok(()),
            _ => Err(caller.forbidden(&format!("a prefetch of {url:?}"))),
        }
    }
}

/// The URLs of a call.
struct UrlsFound {
    urls: Vec<String>,
    /// More URLs than this do not fit the queue.
    urls_max: usize,
    /// URLs above `urls_max`.
    dropped: usize,
    /// URLs of a sitemap that the caller may not fetch, or that no site of this node has.
    others: usize,
}

impl UrlsFound {
    fn add(&mut self, locations: BTreeSet<String>, may_fetch: impl Fn(&str) -> bool) {
        for url in locations {
            match may_fetch(&url) {
                true if self.urls.len() < self.urls_max => self.urls.push(url),
                true => self.dropped += 1,
                false => self.others += 1,
            }
        }
    }
}

/// Sitemaps of an index that are read; the others are ignored.
const SITEMAPS_MAX: usize = 100;
