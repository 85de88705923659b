//! The connection for everything that doesn't block: the outbox on its way out, wake-ups on
//! their way in, receipts both ways.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use redis::{RedisError, RedisResult};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::inner::{Backoff, Inner};
use super::ledger::Receipt;
use super::link::{Link, OnMessage, ReceiptMessage, brief};
use super::publishing::OutboxPart;
use super::record::PurgeRecord;
use crate::metrics::Metric;
use crate::planted::{self, Bug};
use crate::purge::PurgeError;

/// The answer to something that was sent.
type Answered = JoinHandle<RedisResult<()>>;

/// Receipts that Redis has not taken yet.
struct Leaving {
    incoming: mpsc::Receiver<ReceiptMessage>,
    /// What was sent and is not answered; it is sent again on the next connection.
    unanswered: VecDeque<Arc<Vec<ReceiptMessage>>>,
}

/// Until the runtime ends.
pub(super) async fn run(inner: Arc<Inner>, incoming: mpsc::Receiver<ReceiptMessage>) {
    let mut receipts = Leaving { incoming, unanswered: VecDeque::new() };
    let mut backoff = Backoff::new(inner.settings.reconnect_pause_max);
    let mut was_told = false;
    loop {
        let Err(error) = session(&inner, &mut receipts, &mut backoff, &mut was_told).await;
        *inner.link() = None;
        inner.recorder.count_labelled(Metric::BusDisconnects, TALK);
        if !std::mem::replace(&mut was_told, true) {
            tracing::warn!(
                error = brief(&error),
                "purge bus: Redis takes no purges, they wait here"
            );
        }
        backoff.pause().await;
    }
}

async fn session(
    inner: &Arc<Inner>,
    receipts: &mut Leaving,
    backoff: &mut Backoff,
    was_told: &mut bool,
) -> RedisResult<Infallible> {
    let Some(connector) = &inner.connector else { std::future::pending().await };
    let (sender, wakes) = mpsc::channel(WAKES_MAX);
    let recorder = inner.recorder.clone();
    let on_message: OnMessage = Box::new(move |channel, payload| {
        // The stream has it too.
        if sender.try_send((channel, payload)).is_err() {
            recorder.count(Metric::BusWakesDropped);
        }
    });
    let mut link = connector.connect(Duration::ZERO, Some(on_message)).await?;
    link.load_scripts().await?;
    let receipts_to_me = format!("{}{}", connector.keys().receipts_to, inner.identity.name);
    link.subscribe(&[&connector.keys().wake, &receipts_to_me]).await?;
    *inner.link() = Some(link.clone());
    let is_well = || {
        backoff.reset();
        *was_told = false;
    };
    tokio::select! {
        ended = publish(inner, link.clone()) => ended,
        ended = send_receipts(inner, link.clone(), receipts) => ended,
        ended = ping(inner, link, is_well) => ended,
        () = listen(inner, wakes) => Err(broken_off()),
    }
}

/// Publishes the outbox in its order. The next batch does not wait for the answer to the one
/// before: over a long link a purge would take one more round trip.
async fn publish(inner: &Inner, link: Link) -> RedisResult<Infallible> {
    let mut sent: VecDeque<(OutboxPart, Answered)> = VecDeque::new();
    let mut part = inner.publishing().part();
    loop {
        let current = inner.publishing().part();
        if current.generation != part.generation {
            part = current;
        }
        let mut messages = Vec::new();
        if sent.len() < SENT_MAX {
            messages = bounded(inner.purges.outbox_from(part.next, PUBLISH_AT_ONCE));
        }
        if let Some((last, _)) = messages.last() {
            part.next = last + 1;
            let purges = inner.publishing().note(messages);
            let mut link = link.clone();
            let (retention, kept) = (inner.settings.retention, inner.settings.receipts_kept);
            let sending = async move { link.publish(&purges, retention, kept).await };
            sent.push_back((part, begin(sending).await));
            continue;
        }
        tokio::select! {
            answered = next(&mut sent) => inner.publishing().sent(answered?),
            () = inner.outgoing.notified() => {}
        }
    }
}

/// The oldest answer that is outstanding; the first error ends the session, and what was not
/// answered is published again in the next one.
async fn next<T: Copy>(sent: &mut VecDeque<(T, Answered)>) -> RedisResult<T> {
    let Some((what, answered)) = sent.front_mut() else { std::future::pending().await };
    let what = *what;
    let answered = answered.await.unwrap_or_else(|_| Err(broken_off()));
    sent.pop_front();
    answered.map(|()| what)
}

/// What a future does before it first waits is done when this returns; the rest is done by a task.
async fn begin<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let mut future = Box::pin(future);
    match poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
        Poll::Ready(done) => tokio::spawn(std::future::ready(done)),
        Poll::Pending => tokio::spawn(future),
    }
}

fn broken_off() -> RedisError {
    io::Error::from(io::ErrorKind::ConnectionReset).into()
}

/// As many as have no more than a few megabytes together, and at least one.
fn bounded(mut messages: Vec<(u64, Bytes)>) -> Vec<(u64, Bytes)> {
    let mut bytes = 0;
    let fits = messages.iter().take_while(|(_, message)| {
        bytes += message.len();
        bytes <= PUBLISH_BYTES
    });
    let count = fits.count().max(1);
    messages.truncate(count);
    messages
}

async fn send_receipts(
    inner: &Inner,
    link: Link,
    receipts: &mut Leaving,
) -> RedisResult<Infallible> {
    let send = |batch: Arc<Vec<ReceiptMessage>>| {
        let (mut link, name) = (link.clone(), inner.identity.name.clone());
        let kept = inner.settings.receipts_kept;
        begin(async move { link.leave_receipts(&name, &batch, kept).await })
    };
    let mut sent = VecDeque::new();
    for batch in &receipts.unanswered {
        sent.push_back(((), send(batch.clone()).await));
    }
    let mut batch = Vec::new();
    loop {
        let incoming = receipts.incoming.recv_many(&mut batch, RECEIPTS_AT_ONCE);
        tokio::select! {
            answered = next(&mut sent) => {
                answered?;
                receipts.unanswered.pop_front();
            }
            count = incoming, if sent.len() < SENT_MAX => {
                if count == 0 {
                    return std::future::pending().await;
                }
                let batch = Arc::new(std::mem::take(&mut batch));
                receipts.unanswered.push_back(batch.clone());
                sent.push_back(((), send(batch).await));
            }
        }
    }
}

/// A dead link must not look like a quiet one. What has held for a heartbeat is well: that a
/// connection came about says little of a Redis that then takes nothing (a replica, or one that is
/// out of memory).
async fn ping(inner: &Inner, mut link: Link, mut is_well: impl FnMut()) -> RedisResult<Infallible> {
    loop {
        tokio::time::sleep(inner.settings.heartbeat).await;
        link.ping().await?;
        is_well();
    }
}

/// Wake-ups are in force as fast as they come; the disk is waited for in tasks of their own, no
/// more of them than the purge log's queue has places.
async fn listen(inner: &Arc<Inner>, mut wakes: mpsc::Receiver<(String, Bytes)>) {
    let wake = inner.connector.as_ref().map_or("", |connector| &connector.keys().wake);
    let mut writing = JoinSet::new();
    let mut batch = Vec::new();
    while wakes.recv_many(&mut batch, WAKES_AT_ONCE).await > 0 {
        let mut records = Vec::new();
        for (channel, payload) in batch.drain(..) {
            if channel == wake {
                if planted::has(Bug::StreamEntryDropped) || planted::has(Bug::StreamUnread) {
                    continue;
                }
                records.extend(PurgeRecord::parse(&payload));
            } else {
                note_receipt(inner, &payload);
            }
        }
        {
            let ledger = inner.ledger();
            records.retain(|record| !ledger.is_in_force(&record.id));
        }
        if records.is_empty() {
            continue;
        }
        match inner.put_in_force(&records, None).await {
            Err(error) => inner.complain(&error),
            Ok(in_force) => {
                let inner = inner.clone();
                writing.spawn(async move {
                    let durable = inner.make_durable(&records, in_force).await;
                    durable.unwrap_or_else(|error| inner.complain(&error));
                });
            }
        }
        while writing.try_join_next().is_some() {}
    }
}

/// `ID NODE MS MS`
fn note_receipt(inner: &Inner, payload: &[u8]) {
    let text = String::from_utf8_lossy(payload);
    let mut words = text.splitn(3, ' ');
    let (Some(id), Some(node), Some(rest)) = (words.next(), words.next(), words.next()) else {
        return;
    };
    if let Some(receipt) = Receipt::parse(rest) {
        inner.ledger().receipt(id, node, receipt);
        inner.changed(id);
    }
}

impl Inner {
    /// The stream brings a wake-up's purge once more, and waits until it is written.
    fn complain(&self, error: &PurgeError) {
        if self.complaints.take(self.clock.instant()) {
            tracing::warn!(%error, "purge bus: a wake-up could not be applied");
        }
    }
}

/// In the order of [`crate::metrics::BUS_CONNECTIONS`].
const TALK: usize = 1;
const WAKES_MAX: usize = 4096;
const WAKES_AT_ONCE: usize = 256;
/// Batches on their way to Redis whose answers are outstanding.
const SENT_MAX: usize = 32;
const PUBLISH_AT_ONCE: usize = 128;
const PUBLISH_BYTES: usize = 8 << 20;
const RECEIPTS_AT_ONCE: usize = 256;
