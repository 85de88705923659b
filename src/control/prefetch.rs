//! Fetches URLs into the cache before clients request them: the URLs of `POST /prefetch`, and the most
//! requested objects of a purge with `refresh`. The requests take this node's request path, at a limited
//! rate.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::MissedTickBehavior;

use super::http::Problem;
use super::node_actions::NodeActions;
use crate::bus::refresh::{PrefetchOutcome, Refresh};
use crate::metrics::{Metric, Metrics, Recorder};

/// The queue of URLs to fetch.
pub(crate) struct Prefetcher {
    queue: mpsc::Sender<Box<str>>,
    pub(super) queue_max: usize,
    calls: Semaphore,
    queued: Gauge,
    recorder: Recorder,
}

/// Rate and queue length of the prefetcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Requests started per second.
    pub per_second: u32,
    /// Maximum number of queued URLs. Further URLs are dropped and counted.
    pub queue_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { per_second: 20, queue_max: 50_000 }
    }
}

impl Prefetcher {
    /// Starts the tasks that fetch queued URLs and handle `refreshes`.
    pub(crate) fn start(
        settings: Settings,
        node: Arc<dyn NodeActions>,
        metrics: &Arc<Metrics>,
        refreshes: Option<mpsc::Receiver<Refresh>>,
        background: &Handle,
    ) -> Arc<Self> {
        let (queue, queued_urls) = mpsc::channel(settings.queue_max);
        let queued = Gauge::default();
        metrics.register("prefetch_queue", "URLs in the prefetch queue", queued.clone());
        let prefetcher = Arc::new(Self {
            queue,
            queue_max: settings.queue_max,
            calls: Semaphore::new(CALLS_MAX),
            queued,
            recorder: metrics.background(),
        });
        background.spawn(prefetcher.clone().fetch_queued(
            settings.per_second,
            node.clone(),
            queued_urls,
        ));
        if let Some(refreshes) = refreshes {
            background.spawn(prefetcher.clone().queue_refreshes(node, refreshes));
        }
        prefetcher
    }

    /// Permission for one call of `/prefetch`, which may read sitemaps of many megabytes.
    ///
    /// # Errors
    /// 429: too many calls are in progress.
    pub(super) fn call_permit(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.calls.try_acquire().map_err(|_| {
            let detail =
                format!("{CALLS_MAX} calls of /prefetch are already in progress: try again later");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail)
        })
    }

    /// Queues a URL. Returns false if the queue is full.
    pub(super) fn push(&self, url: Box<str>) -> bool {
        let is_queued = self.queue.try_send(url).is_ok();
        if is_queued {
            self.queued.inc();
        } else {
            self.recorder.count_labelled(Metric::Prefetches, PrefetchOutcome::Dropped as usize);
        }
        is_queued
    }

    async fn fetch_queued(
        self: Arc<Self>,
        per_second: u32,
        node: Arc<dyn NodeActions>,
        mut queued_urls: mpsc::Receiver<Box<str>>,
    ) {
        let permits = Arc::new(Semaphore::new(FETCHES_MAX));
        let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(url) = queued_urls.recv().await {
            pace.tick().await;
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            self.queued.dec();
            let (node, recorder) = (node.clone(), self.recorder.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let fetched = tokio::time::timeout(FETCH_TIMEOUT, node.fetch(&url, None)).await;
                let outcome = match fetched {
                    Ok(Ok((status, _))) if status.as_u16() < 400 => PrefetchOutcome::Fetched,
                    _ => PrefetchOutcome::Failed,
                };
                recorder.count_labelled(Metric::Prefetches, outcome as usize);
            });
        }
    }

    async fn queue_refreshes(
        self: Arc<Self>,
        node: Arc<dyn NodeActions>,
        mut refreshes: mpsc::Receiver<Refresh>,
    ) {
        let mut waiting = Vec::new();
        while refreshes.recv_many(&mut waiting, REFRESHES_AT_ONCE).await > 0 {
            tokio::time::sleep(REFRESH_DELAY).await;
            for refresh in waiting.drain(..) {
                for url in node.urls_to_refresh(refresh).await {
                    self.push(url);
                }
            }
        }
    }
}

/// Calls of `/prefetch` in progress at the same time.
const CALLS_MAX: usize = 4;
/// Fetches in progress at the same time.
const FETCHES_MAX: usize = 8;
/// Purges whose refreshes begin together.
const REFRESHES_AT_ONCE: usize = 64;
/// Most purges are in force on all nodes within milliseconds. Earlier, a node would have to fetch from the origin what the
/// owner of the key in its region fetches too.
const REFRESH_DELAY: Duration = Duration::from_millis(300);
/// Timeout of a fetch.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
