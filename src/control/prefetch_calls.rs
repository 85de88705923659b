//! The call that orders a prefetch, of URLs or of all that a sitemap lists.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::json;

use super::admin::Admin;
use super::http::{Problem, absolute_url, from_json_object, json_response, non_null_string};
use super::prefetch::FETCH_TIMEOUT;
use super::purge_order::SCOPES_MAX;
use super::sitemap::{self, SITEMAP_BYTES_MAX};
use super::tokens::{Caller, Leave};

/// The body of a call.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefetchCall {
    #[serde(default, deserialize_with = "non_null_string")]
    url: Option<String>,
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "non_null_string")]
    sitemap: Option<String>,
}

impl Admin {
    /// `POST /prefetch`
    pub(super) async fn prefetch(
        &self,
        caller: &Caller,
        body: &[u8],
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let call: PrefetchCall = from_json_object(body)
            .map_err(|why| Problem::bad_request(format!("the body is not a prefetch: {why}")))?;
        let urls: Vec<String> = call.url.into_iter().chain(call.urls).collect();
        if urls.len() > SCOPES_MAX {
            let detail = format!("{} URLs in one call: at most {SCOPES_MAX}", urls.len());
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        if urls.is_empty() && call.sitemap.is_none() {
            let detail = "nothing to fetch: give one of url, urls, sitemap";
            return Err(Problem::bad_request(detail));
        }
        for url in &urls {
            self.may_fetch(caller, url)?;
        }
        let urls_max = self.prefetcher.queue_max.max(urls.len());
        let mut found = UrlsFound { urls, urls_max, dropped: 0, others: 0 };
        if let Some(sitemap) = &call.sitemap {
            self.may_fetch(caller, sitemap)?;
            self.read_sitemap(caller, sitemap, &mut found).await?;
        }
        let wanted = found.urls.len() + found.dropped;
        let queued = found.urls.into_iter().filter(|url| self.prefetcher.push((**url).into()));
        let queued = queued.count();
        if queued == 0 && wanted > 0 {
            let detail = "the queue is full (admin.prefetch_queue_max): try again later";
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
        }
        let answer = json!({
            "queued": queued,
            "dropped": wanted - queued,
            "not_of_this_node": found.others,
        });
        Ok(json_response(StatusCode::ACCEPTED, &answer))
    }

    /// What a sitemap lists, or the sitemaps of an index, one level deep (sitemaps.org).
    async fn read_sitemap(
        &self,
        caller: &Caller,
        url: &str,
        found: &mut UrlsFound,
    ) -> Result<(), Problem> {
        let (locations, is_index) = self.sitemap(url).await?;
        if locations.is_empty() {
            return Err(Problem::bad_request(format!("sitemap {url:?} lists nothing in <loc>")));
        }
        if !is_index {
            found.add(locations, |url| self.may_fetch(caller, url).is_ok());
            return Ok(());
        }
        for nested in locations.iter().take(SITEMAPS_MAX) {
            self.may_fetch(caller, nested)?;
            let (locations, _) = self.sitemap(nested).await?;
            found.add(locations, |url| self.may_fetch(caller, url).is_ok());
        }
        Ok(())
    }

    async fn sitemap(&self, url: &str) -> Result<(BTreeSet<String>, bool), Problem> {
        let unusable =
            |why: String| Problem::new(StatusCode::BAD_GATEWAY, format!("sitemap {url:?}: {why}"));
        let fetching = self.node.fetch(url, Some(SITEMAP_BYTES_MAX));
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, fetching).await;
        let (status, content) =
            fetched.unwrap_or_else(|_| Err("took too long".to_owned())).map_err(unusable)?;
        if status != StatusCode::OK {
            return Err(unusable(format!("status {}", status.as_u16())));
        }
        let text = sitemap::text_of(content).map_err(unusable)?;
        sitemap::locations(&text).map_err(|error| unusable(error.to_string()))
    }

    /// Whether the URL is of a site here that the caller's token reaches.
    fn may_fetch(&self, caller: &Caller, url: &str) -> Result<(), Problem> {
        let site = self.node.site_of(&absolute_url(url)?);
        let site =
            site.ok_or_else(|| Problem::bad_value("url", url, &"no site here has this host"))?;
        match &caller.leave {
            Leave::All => Ok(()),
            Leave::Purge(sites) if sites.contains(&site) => Ok(()),
            _ => Err(caller.refused(&format!("a prefetch of {url:?}"))),
        }
    }
}

/// The URLs that a call asks for.
struct UrlsFound {
    urls: Vec<String>,
    /// More would find no place in the queue.
    urls_max: usize,
    dropped: usize,
    /// Those that a sitemap lists, and this node has no site for.
    others: usize,
}

impl UrlsFound {
    fn add(&mut self, locations: BTreeSet<String>, is_ours: impl Fn(&str) -> bool) {
        for url in locations {
            match is_ours(&url) {
                true if self.urls.len() < self.urls_max => self.urls.push(url),
                true => self.dropped += 1,
                false => self.others += 1,
            }
        }
    }
}

/// Sitemaps of an index that are read.
const SITEMAPS_MAX: usize = 100;
