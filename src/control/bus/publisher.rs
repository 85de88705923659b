//! The connection for everything that doesn't block: the outbox on its way out, wake-ups on
//! their way in, receipts both ways.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use redis::{RedisError, RedisResult};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::ledger::Receipt;
use super::link::{Link, OnMessage, ReceiptMessage};
use super::record::Record;
use super::{Backoff, Inner};
use crate::metrics::Metric;
use crate::planted::{self, Bug};

/// Up to where the outbox was published, and since which loss.
#[derive(Clone, Copy, Debug)]
struct Part {
    next: u64,
    generation: u64,
}

/// The answer to something that was sent.
type Answered = JoinHandle<RedisResult<()>>;

/// What of the outbox was published. It leaves the outbox when it was read back from the
/// stream, not before.
#[derive(Debug, Default)]
pub(super) struct Publishing {
    /// The first message that was not published.
    next: u64,
    /// Moves when all of the outbox must be published anew.
    generation: u64,
    /// Ids of published messages, and their numbers in the outbox.
    in_flight: HashMap<String, u64>,
}

impl Publishing {
    fn part(&self) -> Part {
        Part { next: self.next, generation: self.generation }
    }

    /// These are about to be published.
    fn note(&mut self, messages: &[(u64, Bytes)]) {
        let ids = messages.iter().filter_map(|(number, message)| Some((id_of(message)?, *number)));
        self.in_flight.extend(ids);
    }

    /// Redis has everything before `part.next`, unless it has lost it since.
    fn sent(&mut self, part: Part) {
        if part.generation == self.generation {
            self.next = part.next;
        }
    }

    /// Redis has lost what it was given: all that is still in the outbox goes out once more.
    pub fn again(&mut self) {
        self.next = 0;
        self.generation += 1;
    }

    /// The outbox numbers of these purges, which were read from the stream.
    pub fn read_back<'a>(&mut self, ids: impl Iterator<Item = &'a str>) -> Vec<u64> {
        ids.filter_map(|id| self.in_flight.remove(id)).collect()
    }
}

/// Until the runtime ends.
pub(super) async fn run(inner: Arc<Inner>, mut receipts: mpsc::Receiver<ReceiptMessage>) {
    let mut backoff = Backoff::new(inner.settings.reconnect_pause_max);
    let mut was_told = false;
    loop {
        let Err(error) = session(&inner, &mut receipts, &mut backoff, &mut was_told).await;
        *inner.link() = None;
        inner.recorder.count_labelled(Metric::BusDisconnects, TALK);
        if !std::mem::replace(&mut was_told, true) {
            tracing::warn!(%error, "purge bus: no connection to publish on");
        }
        backoff.pause().await;
    }
}

async fn session(
    inner: &Arc<Inner>,
    receipts: &mut mpsc::Receiver<ReceiptMessage>,
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
    backoff.reset();
    *was_told = false;
    tokio::select! {
        ended = publish(inner, link.clone()) => ended,
        ended = send_receipts(inner, link.clone(), receipts) => ended,
        ended = ping(inner, link) => ended,
        () = listen(inner, wakes) => Err(broken_off()),
    }
}

/// Publishes the outbox in its order. The next batch does not wait for the answer to the one
/// before: over a long link a purge would take one more round trip.
async fn publish(inner: &Inner, link: Link) -> RedisResult<Infallible> {
    let mut sent: VecDeque<(Part, Answered)> = VecDeque::new();
    let mut part = inner.publishing().part();
    loop {
        let current = inner.publishing().part();
        if current.generation != part.generation {
            part = current;
        }
        let mut messages = Vec::new();
        if sent.len() < SENT_MAX {
            messages = bounded(inner.store.outbox_from(part.next, PUBLISH_AT_ONCE));
        }
        if let Some((last, _)) = messages.last() {
            part.next = last + 1;
            inner.publishing().note(&messages);
            let records: Vec<Bytes> = messages.into_iter().map(|(_, message)| message).collect();
            let (mut link, retention) = (link.clone(), inner.settings.retention);
            let sending = async move { link.publish(&records, retention).await };
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

fn id_of(message: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        id: String,
    }
    serde_json::from_slice::<Named>(message).ok().map(|named| named.id)
}

async fn send_receipts(
    inner: &Inner,
    link: Link,
    receipts: &mut mpsc::Receiver<ReceiptMessage>,
) -> RedisResult<Infallible> {
    let kept = inner.settings.receipts_kept;
    let mut sent = VecDeque::new();
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            answered = next(&mut sent) => answered?,
            count = receipts.recv_many(&mut batch, RECEIPTS_AT_ONCE), if sent.len() < SENT_MAX => {
                if count == 0 {
                    return std::future::pending().await;
                }
                let (mut link, name) = (link.clone(), inner.identity.name.clone());
                let batch = std::mem::take(&mut batch);
                let sending = async move { link.leave_receipts(&name, &batch, kept).await };
                sent.push_back(((), begin(sending).await));
            }
        }
    }
}

/// A dead link must not look like a quiet one.
async fn ping(inner: &Inner, mut link: Link) -> RedisResult<Infallible> {
    loop {
        tokio::time::sleep(inner.settings.heartbeat).await;
        link.ping().await?;
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
                if planted::has(Bug::StreamEntryDropped) {
                    continue;
                }
                records.extend(Record::parse(&payload));
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
        // The stream brings them once more, and waits until they are written.
        let untold = |error| tracing::warn!(%error, "purge bus: a wake-up could not be applied");
        match inner.put_in_force(&records, None).await {
            Err(error) => untold(error),
            Ok(in_force) => {
                let inner = inner.clone();
                writing.spawn(async move {
                    inner.make_durable(&records, in_force).await.unwrap_or_else(untold);
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
        inner.changed.send_replace(());
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
