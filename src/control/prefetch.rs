//! Fetches URLs before anybody asks for them: those of `POST /prefetch`, and the most popular of
//! what a purge with `refresh` has covered. Through this node's own path, at a bounded rate.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::MissedTickBehavior;

use super::http::Problem;
use super::node_actions::NodeActions;
use super::refresh::{PrefetchOutcome, Refresh};
use crate::metrics::{Metric, Metrics, Recorder};

/// The queue of what is to be fetched.
pub(crate) struct Prefetcher {
    queue: mpsc::Sender<Box<str>>,
    pub(super) queue_max: usize,
    calls: Semaphore,
    queued: Gauge,
    recorder: Recorder,
}

/// How fast, and how much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
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

impl Prefetcher {
    /// Fetches on `background` what is queued, and what `refreshes` ask for.
    pub(crate) fn start(
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
    pub(super) fn push(&self, url: Box<str>) -> bool {
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

/// Calls of `/prefetch` under way at a time.
const CALLS_MAX: usize = 4;
/// Fetches under way at a time.
const AT_ONCE_MAX: usize = 8;
/// A fetch may take this long.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
