//! The connection for everything that doesn't block: the outbox on its way out, wake-ups on
//! their way in, receipts both ways.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::RedisResult;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::ledger::Receipt;
use super::link::{Link, OnMessage, ReceiptMessage};
use super::record::Record;
use super::{Backoff, Inner};
use crate::metrics::Metric;
use crate::planted::{self, Bug};

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
        () = listen(inner, wakes) => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
    }
}

/// Publishes the outbox in its order.
async fn publish(inner: &Inner, mut link: Link) -> RedisResult<Infallible> {
    loop {
        let (from, generation) = {
            let publishing = inner.publishing();
            (publishing.next, publishing.generation)
        };
        let messages = bounded(inner.store.outbox_from(from, PUBLISH_AT_ONCE));
        let Some((last, _)) = messages.last() else {
            inner.outgoing.notified().await;
            continue;
        };
        let next = last + 1;
        {
            let mut publishing = inner.publishing();
            for (number, message) in &messages {
                publishing.in_flight.extend(id_of(message).map(|id| (id, *number)));
            }
        }
        let records: Vec<Bytes> = messages.into_iter().map(|(_, message)| message).collect();
        link.publish(&records, inner.settings.retention).await?;
        let mut publishing = inner.publishing();
        if publishing.generation == generation {
            publishing.next = next;
        }
    }
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
    mut link: Link,
    receipts: &mut mpsc::Receiver<ReceiptMessage>,
) -> RedisResult<Infallible> {
    let kept = inner.settings.receipts_kept;
    let mut batch = Vec::new();
    while receipts.recv_many(&mut batch, RECEIPTS_AT_ONCE).await > 0 {
        link.leave_receipts(&inner.identity.name, &batch, kept).await?;
        batch.clear();
    }
    std::future::pending().await
}

/// A dead link must not look like a quiet one.
async fn ping(inner: &Inner, mut link: Link) -> RedisResult<Infallible> {
    loop {
        tokio::time::sleep(inner.settings.heartbeat).await;
        link.ping().await?;
    }
}

/// Wake-ups are in force as fast as they come; the disk is waited for in tasks of their own.
async fn listen(inner: &Arc<Inner>, mut wakes: mpsc::Receiver<(String, Bytes)>) {
    let wake = inner.connector.as_ref().map_or("", |connector| &connector.keys().wake);
    let mut applying = JoinSet::new();
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
        while applying.len() >= APPLYING_MAX {
            applying.join_next().await;
        }
        while applying.try_join_next().is_some() {}
        let inner = inner.clone();
        applying.spawn(async move {
            // The stream brings them once more, and waits until they are written.
            if let Err(error) = inner.apply(&records, None).await {
                tracing::warn!(%error, "purge bus: a wake-up could not be applied");
            }
        });
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
/// Batches whose fsync is waited for.
const APPLYING_MAX: usize = 64;
const PUBLISH_AT_ONCE: usize = 128;
const PUBLISH_BYTES: usize = 8 << 20;
const RECEIPTS_AT_ONCE: usize = 256;
