//! What is fetched before anybody asks for it: `POST /prefetch`, and the most popular of what a
//! purge with `refresh` has covered. Through this node's own path, at a bounded rate.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{Response, StatusCode};
use http_body_util::Full;
use prometheus_client::metrics::gauge::Gauge;
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use serde::Deserialize;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::MissedTickBehavior;

use super::admin::{Admin, NodeActions};
use super::http::{Problem, absolute_url, from_json_object, json_response, non_null_string};
use super::purge::SCOPES_MAX;
use super::refresh::{PrefetchOutcome, Refresh};
use super::tokens::{Caller, Leave};
use crate::metrics::{Metric, Metrics, Recorder};

/// The queue of what is to be fetched.
pub struct Prefetcher {
    queue: mpsc::Sender<Box<str>>,
    queue_max: usize,
    calls: Semaphore,
    queued: Gauge,
    recorder: Recorder,
}

/// How fast, and how much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Requests begun a second.
    pub per_second: u32,
    /// URLs that may wait. Beyond, they are refused, and counted.
    pub queue_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { per_second: 20, queue_max: 50_000 }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, deserialize_with = "non_null_string")]
    url: Option<String>,
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "non_null_string")]
    sitemap: Option<String>,
}

impl Prefetcher {
    /// Fetches on `background` what is queued, and what `refreshes` ask for.
    pub fn start(
        settings: Settings,
        node: Arc<dyn NodeActions>,
        metrics: &Arc<Metrics>,
        refreshes: Option<mpsc::Receiver<Refresh>>,
        background: &Handle,
    ) -> Arc<Self> {
        let (queue, waiting) = mpsc::channel(settings.queue_max);
        let queued = Gauge::default();
        metrics.register("prefetch_queue", "URLs that wait to be fetched ahead", queued.clone());
        let prefetcher = Arc::new(Self {
            queue,
            queue_max: settings.queue_max,
            calls: Semaphore::new(CALLS_MAX),
            queued,
            recorder: metrics.background(),
        });
        background.spawn(prefetcher.clone().work(settings.per_second, node.clone(), waiting));
        if let Some(refreshes) = refreshes {
            background.spawn(prefetcher.clone().refresh(node, refreshes));
        }
        prefetcher
    }

    /// For a call; each may read sitemaps of many megabytes.
    pub(super) fn place(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.calls.try_acquire().map_err(|_| {
            let detail = format!("{CALLS_MAX} calls of /prefetch are under way: try again later");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail)
        })
    }

    /// Whether there was a place for it.
    fn push(&self, url: Box<str>) -> bool {
        let is_queued = self.queue.try_send(url).is_ok();
        if is_queued {
            self.queued.inc();
        } else {
            self.recorder.count_labelled(Metric::Prefetches, PrefetchOutcome::Dropped as usize);
        }
        is_queued
    }

    async fn work(
        self: Arc<Self>,
        per_second: u32,
        node: Arc<dyn NodeActions>,
        mut waiting: mpsc::Receiver<Box<str>>,
    ) {
        let places = Arc::new(Semaphore::new(AT_ONCE_MAX));
        let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(url) = waiting.recv().await {
            pace.tick().await;
            let Ok(place) = places.clone().acquire_owned().await else { return };
            self.queued.dec();
            let (node, recorder) = (node.clone(), self.recorder.clone());
            tokio::spawn(async move {
                let _place = place;
                let fetched = tokio::time::timeout(FETCH_TIMEOUT, node.fetch(&url, None)).await;
                let outcome = match fetched {
                    Ok(Ok((status, _))) if status.as_u16() < 400 => PrefetchOutcome::Fetched,
                    _ => PrefetchOutcome::Failed,
                };
                recorder.count_labelled(Metric::Prefetches, outcome as usize);
            });
        }
    }

    async fn refresh(
        self: Arc<Self>,
        node: Arc<dyn NodeActions>,
        mut refreshes: mpsc::Receiver<Refresh>,
    ) {
        while let Some(refresh) = refreshes.recv().await {
            for url in node.to_refresh(refresh).await {
                self.push(url);
            }
        }
    }
}

impl Admin {
    /// `POST /prefetch`
    pub(super) async fn prefetch(
        &self,
        caller: &Caller,
        body: &[u8],
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let written: Written = from_json_object(body)
            .map_err(|why| Problem::bad_request(format!("the body is not a prefetch: {why}")))?;
        let urls: Vec<String> = written.url.into_iter().chain(written.urls).collect();
        if urls.len() > SCOPES_MAX {
            let detail = format!("{} URLs in one call: at most {SCOPES_MAX}", urls.len());
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        if urls.is_empty() && written.sitemap.is_none() {
            let detail = "nothing to fetch: give one of url, urls, sitemap";
            return Err(Problem::bad_request(detail));
        }
        for url in &urls {
            self.may_fetch(caller, url)?;
        }
        let urls_max = self.prefetcher.queue_max.max(urls.len());
        let mut found = Found { urls, urls_max, dropped: 0, others: 0 };
        if let Some(sitemap) = &written.sitemap {
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
        let told = json!({
            "queued": queued,
            "dropped": wanted - queued,
            "not_of_this_node": found.others,
        });
        Ok(json_response(StatusCode::ACCEPTED, &told))
    }

    /// What a sitemap lists, or the sitemaps of an index, one level deep (sitemaps.org).
    async fn read_sitemap(
        &self,
        caller: &Caller,
        url: &str,
        found: &mut Found,
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
        let text = text_of(content).map_err(unusable)?;
        locations(&text).map_err(|error| unusable(error.to_string()))
    }

    /// Whether the URL is of a site here that the caller's token reaches.
    fn may_fetch(&self, caller: &Caller, url: &str) -> Result<(), Problem> {
        let bad = |why: String| Problem::bad_request(format!("url {url:?}: {why}"));
        let uri = absolute_url(url)?;
        let site = self.node.site_of(&uri);
        let site = site.ok_or_else(|| bad("no site here has this host".to_owned()))?;
        match &caller.leave {
            Leave::All => Ok(()),
            Leave::Purge(sites) if sites.contains(&site) => Ok(()),
            _ => Err(caller.refused(&format!("a prefetch of {url:?}"))),
        }
    }
}

/// What a call asks for.
struct Found {
    urls: Vec<String>,
    /// More would find no place in the queue.
    urls_max: usize,
    dropped: usize,
    /// Those that a sitemap lists, and this node has no site for.
    others: usize,
}

impl Found {
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

/// What a sitemap's file says, be it compressed with gzip or not.
fn text_of(content: Bytes) -> Result<String, String> {
    let content = if content.starts_with(&GZIP) {
        let mut plain = Vec::new();
        let mut reader = GzDecoder::new(&content[..]).take(SITEMAP_BYTES_MAX as u64 + 1);
        reader.read_to_end(&mut plain).map_err(|error| error.to_string())?;
        if plain.len() > SITEMAP_BYTES_MAX {
            return Err(format!("longer than {SITEMAP_BYTES_MAX} bytes"));
        }
        plain
    } else {
        content.into()
    };
    String::from_utf8(content).map_err(|_| "not text in UTF-8".to_owned())
}

/// What stands in `<loc>`, and whether these are sitemaps themselves.
fn locations(text: &str) -> Result<(BTreeSet<String>, bool), quick_xml::Error> {
    let mut reader = Reader::from_str(text);
    let (mut locations, mut is_index) = (BTreeSet::new(), false);
    // The text of the `<loc>` that is being read.
    let mut location: Option<String> = None;
    loop {
        match reader.read_event()? {
            Event::Start(tag) => match tag.local_name().as_ref() {
                "sitemapindex" => is_index = true,
                "loc" => location = Some(String::new()),
                _ => {}
            },
            Event::Text(text) => location.iter_mut().for_each(|it| it.push_str(&text)),
            Event::CData(text) => location.iter_mut().for_each(|it| it.push_str(&text)),
            Event::GeneralRef(entity) => {
                let character = entity.resolve_char_ref()?.map(String::from);
                let named = || resolve_predefined_entity(&entity).map(str::to_owned);
                let text = character.or_else(named).unwrap_or_default();
                location.iter_mut().for_each(|it| it.push_str(&text));
            }
            Event::End(tag) if tag.local_name().as_ref() == "loc" => {
                locations.extend(location.take().map(|text| text.trim().to_owned()));
            }
            Event::Eof => return Ok((locations, is_index)),
            _ => {}
        }
    }
}

/// How a file begins that is compressed with gzip (RFC 1952 §2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Calls of `/prefetch` under way at a time.
const CALLS_MAX: usize = 4;
/// Fetches under way at a time.
const AT_ONCE_MAX: usize = 8;
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Sitemaps of an index that are read.
const SITEMAPS_MAX: usize = 100;
/// As sitemaps.org allows.
const SITEMAP_BYTES_MAX: usize = 50 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sitemap_is_read_for_its_locations() {
        let check = |text: &str, expected: &[&str], is_index| {
            let (found, index) = locations(text).expect("it can be read");
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            assert_eq!((&found[..], index), (expected, is_index));
        };
        let map = "<urlset><url><loc> https://a/?b=1&amp;c=2 </loc></url>\n\
                   <url><loc><![CDATA[https://a/?d&e]]></loc></url></urlset>";
        check(map, &["https://a/?b=1&c=2", "https://a/?d&e"], false);
        let index = "<s:sitemapindex><s:sitemap><s:loc>https://a/1.xml</s:loc></s:sitemap>\
                     </s:sitemapindex>";
        check(index, &["https://a/1.xml"], true);
        check("<urlset><loc>https://a/", &[], false);
        check("<loc>https://a/&amp;lt;&#x41;</loc>", &["https://a/&lt;A"], false);
        assert!(locations("<urlset></url>").is_err());
    }

    #[test]
    fn a_compressed_sitemap_is_bounded_by_what_it_says() {
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            std::io::Write::write_all(&mut encoder, bytes).unwrap();
            Bytes::from(encoder.finish().unwrap())
        };
        assert_eq!(text_of(gzip(b"<urlset/>")).as_deref(), Ok("<urlset/>"));
        let why = text_of(gzip(&vec![b' '; SITEMAP_BYTES_MAX + 1])).unwrap_err();
        assert!(why.contains("longer than"), "{why}");
        assert!(text_of(gzip(b"\xff")).unwrap_err().contains("UTF-8"));
    }
}
