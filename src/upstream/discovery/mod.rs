//! Sources of members: one task for each, on the background runtime.
//!
//! ```text
//! SourceReader::next ──▶ publish ──▶ the pool's roster ──▶ a new set of members
//!        ▲                  │ failed or empty: the last members stay
//!        └──── wait ◀───────┘
//! ```
//!
//! [`SourceReader`] is the one interface of all kinds of sources: it waits until its source has
//! something to say. The consequences are the same for all of them ([`publish()`]).

mod addresses;
mod document;
mod file;
mod http;
mod publish;
mod reader;
mod reply;
mod saved;
mod srv;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::sleep;

use super::pool::Pool;
use super::pool::pools::Pools;
use super::pool::roster::SourceRecord;
use super::resolve::Resolver;
use super::settings::{MemberSource, Origin};
use crate::metrics::Recorder;
use publish::publish;
use reader::SourceReader;
use reply::{SourceNews, SourceReply};

pub(crate) use document::read_members_file;

/// The tasks of all sources. They end when it is dropped.
pub(crate) struct Discovery {
    tasks: Vec<Task>,
    resolver: Arc<Resolver>,
    recorder: Recorder,
    background: Handle,
    changed: Arc<Notify>,
}

struct Task {
    pool: Arc<Pool>,
    source: Arc<MemberSource>,
    handle: AbortHandle,
}

/// The first replies of new sources.
#[must_use]
pub(crate) struct FirstReplies {
    /// Closed when each source has replied.
    pending: Receiver<()>,
}

impl Discovery {
    /// No sources yet. Their tasks will run on `background`.
    pub(crate) fn new(resolver: Arc<Resolver>, recorder: Recorder, background: Handle) -> Self {
        Self { tasks: Vec::new(), resolver, recorder, background, changed: Arc::default() }
    }

    /// Notified when a source has given other origins.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Follows the sources of these pools from now on, and no other. A source that stays in its pool
    /// is followed on undisturbed.
    pub(crate) fn replace(&mut self, pools: &Pools) -> FirstReplies {
        let is_present = |task: &Task| {
            let pool = pools.named(task.pool.name()).filter(|pool| Arc::ptr_eq(pool, &task.pool));
            pool.is_some_and(|pool| pool.roster().record(&task.source).is_some())
        };
        self.tasks.retain(|task| {
            let stays = is_present(task);
            if !stays {
                task.handle.abort();
            }
            stays
        });
        let (replied, pending) = channel();
        for pool in pools.iter() {
            let records = pool.roster().sources().to_vec();
            for record in records {
                let is_same =
                    |task: &Task| Arc::ptr_eq(&task.pool, pool) && task.source == record.source;
                if !self.tasks.iter().any(is_same) {
                    let replied = record.found.is_none().then(|| replied.clone());
                    self.start(pool, &record, replied);
                }
            }
        }
        FirstReplies { pending }
    }

    fn start(&mut self, pool: &Arc<Pool>, record: &SourceRecord, replied: Option<Sender<()>>) {
        let followed = Followed {
            pool: pool.clone(),
            source: record.source.clone(),
            recorder: self.recorder.clone(),
            changed: self.changed.clone(),
        };
        let known = record.found.as_deref().unwrap_or_default();
        let reader = SourceReader::new(&record.source, known, pool, &self.resolver);
        let handle = self.background.spawn(followed.run(reader, replied)).abort_handle();
        self.tasks.push(Task { pool: pool.clone(), source: record.source.clone(), handle });
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.handle.abort());
    }
}

impl FirstReplies {
    /// Waits (blocking) until each source that gave no members yet has replied or failed, at most
    /// [`FIRST_REPLIES_WAIT`]. A pool without members refuses requests.
    pub(crate) fn wait(self) {
        for waited in [Duration::from_secs(1), FIRST_REPLIES_WAIT - Duration::from_secs(1)] {
            if self.pending.recv_timeout(waited) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            tracing::info!(
                "sources of origins have not answered yet; the node waits up to {} s for them",
                FIRST_REPLIES_WAIT.as_secs()
            );
        }
    }
}

/// A source that is followed.
#[derive(Clone)]
struct Followed {
    pool: Arc<Pool>,
    source: Arc<MemberSource>,
    recorder: Recorder,
    changed: Arc<Notify>,
}

impl Followed {
    async fn run(self, mut reader: SourceReader, mut replied: Option<Sender<()>>) {
        loop {
            let SourceReply { news, next_in } = reader.next().await;
            if let Some(news) = news {
                let followed = self.clone();
                // New members with TLS read files.
                if spawn_blocking(move || followed.publish(news)).await.is_err() {
                    tracing::error!("publishing the members of a source panicked");
                }
            }
            drop(replied.take());
            sleep(next_in).await;
        }
    }

    fn publish(&self, news: SourceNews) {
        if publish(&self.pool, &self.source, news, &self.recorder) {
            self.changed.notify_one();
        }
    }
}

/// Asks each source of a pool once: the URLs of its origins, or why it gives none.
pub(crate) async fn ask_once(
    pool: &Arc<Pool>,
    resolver: &Arc<Resolver>,
) -> Vec<(String, Result<Vec<String>, String>)> {
    let records = pool.roster().sources().to_vec();
    let mut replies = Vec::new();
    for record in records {
        let reply = SourceReader::new(&record.source, &[], pool, resolver).next().await;
        let origins = match reply.news {
            Some(SourceNews::Origins(found)) => Ok(found.iter().map(Origin::url).collect()),
            Some(SourceNews::Failed(failure)) => Err(failure.reason),
            // The first reply is neither.
            Some(SourceNews::Confirmed) | None => Ok(Vec::new()),
        };
        replies.push((record.source.to_string(), origins));
    }
    replies
}

/// How long a start or a reload waits for the first replies.
const FIRST_REPLIES_WAIT: Duration = Duration::from_secs(5);
