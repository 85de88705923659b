//! Writes the metrics as text, on a thread of the lowest priority.
//!
//! A thousand sites take milliseconds, in which a hit would wait for its core.

use std::sync::{Arc, mpsc};
use std::{io, thread};

use tokio::sync::oneshot;

use super::Metrics;
use crate::thread_priority::{self, Niceness};

/// The format of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScrapeFormat {
    /// OpenMetrics 1.0.
    Open,
    /// The text format 0.0.4 of Prometheus.
    Classic,
}

/// The thread. It ends with this value.
#[derive(Debug)]
pub(crate) struct Scrapes(mpsc::SyncSender<Scrape>);

#[derive(Debug)]
struct Scrape {
    format: ScrapeFormat,
    reply: oneshot::Sender<String>,
}

impl Scrapes {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub(crate) fn start(metrics: Arc<Metrics>) -> io::Result<Self> {
        let (scrapes, waiting) = mpsc::sync_channel::<Scrape>(WAITING_MAX);
        thread::Builder::new().name("scrapes".to_owned()).spawn(move || {
            thread_priority::lower(Niceness::Lowest, "writes the metrics");
            for Scrape { format, reply } in waiting {
                let text = match format {
                    ScrapeFormat::Open => metrics.encode(),
                    ScrapeFormat::Classic => metrics.encode_classic(),
                };
                // The caller may be gone.
                _ = reply.send(text);
            }
        })?;
        Ok(Self(scrapes))
    }

    /// The metrics now. `None`: [`WAITING_MAX`] scrapes wait already.
    pub(crate) async fn text(&self, format: ScrapeFormat) -> Option<String> {
        let (reply, text) = oneshot::channel();
        self.0.try_send(Scrape { format, reply }).ok()?;
        text.await.ok()
    }
}

/// Scrapes that may wait for the thread. Each is of a caller whose connection is open.
const WAITING_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrapes_are_answered_and_no_more_wait_than_allowed() {
        let scrapes = Scrapes::start(Metrics::new(1)).expect("a thread");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let text = |format| runtime.block_on(scrapes.text(format)).expect("an answer");
        assert!(text(ScrapeFormat::Open).ends_with("# EOF\n"));
        assert!(text(ScrapeFormat::Classic).contains("# TYPE skerry_requests_total counter\n"));
        let (full, _waiting) = mpsc::sync_channel(0);
        assert_eq!(runtime.block_on(Scrapes(full).text(ScrapeFormat::Open)), None);
    }
}
