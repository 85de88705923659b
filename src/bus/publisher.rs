//! The bus connection for non-blocking commands: publishes the outbox, sends receipts, and receives
//! wake-ups and receipts.

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

use super::connection::{MessageHandler, ReceiptMessage, RedisConnection, shortened};
use super::inner::{Backoff, Inner};
use super::ledger::Receipt;
use super::publish_progress::OutboxPosition;
use super::record::PurgeRecord;
use crate::metrics::Metric;
use crate::planted::{self, Bug};
use crate::purge::PurgeError;

/// The reply of Redis to a batch that was sent.
type PendingReply = JoinHandle<RedisResult<()>>;

/// Receipts that Redis has not confirmed yet.
struct ReceiptQueue {
    incoming: mpsc::Receiver<ReceiptMessage>,
    /// Batches that were sent and not confirmed; the next connection sends them again.
    unconfirmed: VecDeque<Arc<Vec<ReceiptMessage>>>,
}

/// Publishes purges and receipts until the runtime shuts down.
pub(super) async fn run(inner: Arc<Inner>, incoming: mpsc::Receiver<ReceiptMessage>) {
    let mut receipts = ReceiptQueue { incoming, unconfirmed: VecDeque::new() };
    let mut backoff = Backoff::new(inner.settings.reconnect_pause_max);
    let mut failure_logged = false;
    loop {
        let Err(error) = session(&inner, &mut receipts, &mut backoff, &mut failure_logged).await;
        *inner.connection() = None;
        inner.recorder.count_labelled(Metric::BusDisconnects, TALK_LABEL);
        if !std::mem::replace(&mut failure_logged, true) {
            tracing::warn!(
                error = shortened(&error),
                redis = inner.redis_url(),
                "purge bus: cannot reach Redis, or it refuses commands; new purges of this node are kept in the outbox, retrying"
            );
        }
        backoff.pause().await;
    }
}

/// Connects and works until the connection fails.
async fn session(
    inner: &Arc<Inner>,
    receipts: &mut ReceiptQueue,
    backoff: &mut Backoff,
    failure_logged: &mut bool,
) -> RedisResult<Infallible> {
    let Some(connector) = &inner.connector else { std::future::pending().await };
    let (sender, messages) = mpsc::channel(MESSAGES_MAX);
    let recorder = inner.recorder.clone();
    let on_message: MessageHandler = Box::new(move |channel, payload| {
        // If the queue is full, drop the message: the reader finds the purge in the stream.
        if sender.try_send((channel, payload)).is_err() {
            recorder.count(Metric::BusWakesDropped);
        }
    });
    let mut connection = connector.connect(Duration::ZERO, Some(on_message)).await?;
    connection.load_scripts().await?;
    let own_receipts = format!("{}{}", connector.keys().receipts_to, inner.name);
    connection.subscribe(&[&connector.keys().wake, &own_receipts]).await?;
    *inner.connection() = Some(connection.clone());
    let on_healthy = || {
        backoff.reset();
        *failure_logged = false;
    };
    tokio::select! {
        ended = publish(inner, connection.clone()) => ended,
        ended = send_receipts(inner, connection.clone(), receipts) => ended,
        ended = ping(inner, connection, on_healthy) => ended,
        () = handle_messages(inner, messages) => Err(connection_reset()),
    }
}

/// Publishes the outbox in its order. A batch does not wait for the reply to the one before: with a
/// slow network each purge would take one more round trip.
async fn publish(inner: &Inner, connection: RedisConnection) -> RedisResult<Infallible> {
    let mut in_flight: VecDeque<(OutboxPosition, PendingReply)> = VecDeque::new();
    let mut position = inner.publish_progress().position();
    loop {
        let current = inner.publish_progress().position();
        if current.generation != position.generation {
            position = current;
        }
        let mut messages = Vec::new();
        if in_flight.len() < IN_FLIGHT_MAX {
            messages = limit_bytes(inner.purges.outbox_from(position.next, PUBLISH_BATCH_MAX));
        }
        if let Some((last, _)) = messages.last() {
            position.next = last + 1;
            let purges = inner.publish_progress().start(messages);
            let mut connection = connection.clone();
            let (retention, kept) = (inner.settings.retention, inner.settings.receipts_kept);
            let sending = async move { connection.publish(&purges, retention, kept).await };
            in_flight.push_back((position, poll_once_then_spawn(sending).await));
            continue;
        }
        tokio::select! {
            confirmed = next_reply(&mut in_flight) => {
                inner.publish_progress().confirm(confirmed?);
            }
            () = inner.outbox_changed.notified() => {}
        }
    }
}

/// Waits for the oldest pending reply and returns its value. The first error ends the session; the
/// next session publishes again what was not confirmed.
async fn next_reply<T: Copy>(in_flight: &mut VecDeque<(T, PendingReply)>) -> RedisResult<T> {
    let Some((value, reply)) = in_flight.front_mut() else { std::future::pending().await };
    let value = *value;
    let reply = reply.await.unwrap_or_else(|_| Err(connection_reset()));
    in_flight.pop_front();
    reply.map(|()| value)
}

/// Polls the future once, so that its command is queued in the order of these calls, and spawns a
/// task that waits for the rest.
async fn poll_once_then_spawn<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let mut future = Box::pin(future);
    match poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
        Poll::Ready(output) => tokio::spawn(std::future::ready(output)),
        Poll::Pending => tokio::spawn(future),
    }
}

fn connection_reset() -> RedisError {
    io::Error::from(io::ErrorKind::ConnectionReset).into()
}

/// Keeps as many messages as fit `PUBLISH_BYTES`, and at least one.
fn limit_bytes(mut messages: Vec<(u64, Bytes)>) -> Vec<(u64, Bytes)> {
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
    connection: RedisConnection,
    receipts: &mut ReceiptQueue,
) -> RedisResult<Infallible> {
    let send = |batch: Arc<Vec<ReceiptMessage>>| {
        let (mut connection, name) = (connection.clone(), inner.name.clone());
        let kept = inner.settings.receipts_kept;
        poll_once_then_spawn(async move { connection.store_receipts(&name, &batch, kept).await })
    };
    let mut in_flight = VecDeque::new();
    for batch in &receipts.unconfirmed {
        in_flight.push_back(((), send(batch.clone()).await));
    }
    let mut batch = Vec::new();
    loop {
        let incoming = receipts.incoming.recv_many(&mut batch, RECEIPT_BATCH_MAX);
        tokio::select! {
            confirmed = next_reply(&mut in_flight) => {
                confirmed?;
                receipts.unconfirmed.pop_front();
            }
            count = incoming, if in_flight.len() < IN_FLIGHT_MAX => {
                if count == 0 {
                    return std::future::pending().await;
                }
                let batch = Arc::new(std::mem::take(&mut batch));
                receipts.unconfirmed.push_back(batch.clone());
                in_flight.push_back(((), send(batch).await));
            }
        }
    }
}

/// Pings Redis every heartbeat, because a dead connection looks like an idle one. Calls `on_healthy`
/// after each reply: a successful connect is not enough, Redis may refuse writes (a replica, or out of
/// memory) and close the connection.
async fn ping(
    inner: &Inner,
    mut connection: RedisConnection,
    mut on_healthy: impl FnMut(),
) -> RedisResult<Infallible> {
    loop {
        tokio::time::sleep(inner.settings.heartbeat).await;
        connection.ping().await?;
        on_healthy();
    }
}

/// Handles wake-ups and receipts. A wake-up's purge is in force at once; a task of its own waits for the
/// disk. The queue of the purge log limits the number of these tasks.
async fn handle_messages(inner: &Arc<Inner>, mut messages: mpsc::Receiver<(String, Bytes)>) {
    let wake_channel = inner.connector.as_ref().map_or("", |connector| &connector.keys().wake);
    let mut writing = JoinSet::new();
    let mut batch = Vec::new();
    while messages.recv_many(&mut batch, MESSAGE_BATCH_MAX).await > 0 {
        let mut records = Vec::new();
        for (channel, payload) in batch.drain(..) {
            if channel == wake_channel {
                if planted::has(Bug::StreamEntryDropped) || planted::has(Bug::StreamUnread) {
                    continue;
                }
                records.extend(PurgeRecord::parse(&payload));
            } else {
                add_receipts(inner, &payload);
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
            Err(error) => inner.log_wake_up_failure(&error),
            Ok(in_force) => {
                let inner = inner.clone();
                writing.spawn(async move {
                    let durable = inner.make_durable(&records, in_force).await;
                    durable.unwrap_or_else(|error| inner.log_wake_up_failure(&error));
                });
            }
        }
        while writing.try_join_next().is_some() {}
    }
}

/// Adds receipts to the ledger, one a line: `ID NODE IN-FORCE-MS DURABLE-MS`. Other text is ignored.
fn add_receipts(inner: &Inner, payload: &[u8]) {
    for line in String::from_utf8_lossy(payload).lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(id), Some(node), Some(rest)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if let Some(receipt) = Receipt::parse(rest) {
            inner.ledger().add_receipt(id, node, receipt);
            inner.notify_waiters(id);
        }
    }
}

impl Inner {
    /// A failed wake-up loses nothing: the reader gets the same purge from the stream, and retries.
    fn log_wake_up_failure(&self, error: &PurgeError) {
        if self.log_rate.take(self.clock.instant()) {
            tracing::warn!(
                %error,
                "purge bus: a wake-up could not be applied; the purge is read from the stream"
            );
        }
    }
}

/// Index of this connection in [`crate::metrics::BUS_CONNECTIONS`].
const TALK_LABEL: usize = 1;
/// Wake-ups and receipts that wait to be handled.
const MESSAGES_MAX: usize = 4096;
const MESSAGE_BATCH_MAX: usize = 256;
/// Batches that were sent to Redis and have no reply yet.
const IN_FLIGHT_MAX: usize = 32;
const PUBLISH_BATCH_MAX: usize = 128;
const PUBLISH_BYTES: usize = 8 << 20;
const RECEIPT_BATCH_MAX: usize = 256;
