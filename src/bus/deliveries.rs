//! Deliveries: purges that nodes send to each other over the peer link. `node` makes the calls; their content is
//! written and read here.
//!
//! ```text
//! call    {"v":1,"lineage":"…","after":PLACE,"up_to":PLACE,"purges":[RECORD,…]}    after: what the peer must have taken
//! answer  200 {"at":PLACE,"receipts":[["ID","IN-FORCE-MS DURABLE-MS"],…]}          on disk there
//!         409 {"at":PLACE}                                                         it has less than `after`
//! ```
//!
//! Lineage and places are those of the sender's purge log. A call without purges asks for the position.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Bus;
use super::inner::Inner;
use super::ledger::Receipt;
use super::record::PurgeRecord;
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence};
use crate::purge::{
    DeliveryBatch, DeliveryPart, DeliverySender, NextDelivery, PurgeBatch, PurgeError,
    PurgeRequest, SenderPosition,
};

/// A call to a peer with deliveries.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DeliveryCall {
    /// Version of the format.
    v: u32,
    /// The lineage of the sender's purge log, in hexadecimal.
    lineage: String,
    after: u64,
    up_to: u64,
    purges: Vec<PurgeRecord>,
}

/// The answer of a peer.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct DeliveryAnswer {
    /// How far the peer has taken the deliveries of the sender.
    at: u64,
    /// Id and receipt of each purge that is no invalidation.
    #[serde(default)]
    receipts: Vec<(String, String)>,
}

/// The state of the deliveries to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PeerPosition {
    /// The peer must be asked for its position.
    #[default]
    Unknown,
    /// The peer has taken the deliveries up to this place.
    At(u64),
}

impl Bus {
    /// The content of the next call to a peer. `None`: it has everything that can be delivered now.
    pub(crate) fn next_delivery(&self, peer: &str, position: PeerPosition) -> Option<Bytes> {
        let lineage = self.inner.purges.lineage();
        let PeerPosition::At(place) = position else {
            let nothing = DeliveryBatch { after: 0, up_to: 0, messages: Vec::new() };
            return Some(content(lineage, &nothing));
        };
        match self.inner.purges.next_delivery(peer, place, (CALL_PURGES_MAX, CALL_BYTES_MAX)) {
            NextDelivery::Nothing => None,
            NextDelivery::Batch(batch) => Some(content(lineage, &batch)),
            NextDelivery::Dropped => {
                self.inner.clone().order_purge_for(peer);
                None
            }
        }
    }

    /// Takes note of a peer's answer to a call. Returns its position.
    ///
    /// # Errors
    /// The peer has not taken the deliveries; the text says why.
    pub(crate) fn note_delivery(
        &self,
        peer: &str,
        before: PeerPosition,
        (status, content): (StatusCode, &[u8]),
    ) -> Result<PeerPosition, String> {
        let refused = || {
            let text = String::from_utf8_lossy(content);
            format!(
                "it answers with status {status}: {}",
                text.chars().take(200).collect::<String>()
            )
        };
        if status == StatusCode::MISDIRECTED_REQUEST {
            return Err("it refuses this node: its log says why".to_owned());
        }
        if !matches!(status, StatusCode::OK | StatusCode::CONFLICT) {
            return Err(refused());
        }
        let answer: DeliveryAnswer = serde_json::from_slice(content).map_err(|_| refused())?;
        self.inner.purges.note_taken(peer, answer.at);
        let mut ledger = self.inner.ledger();
        for (id, receipt) in &answer.receipts {
            if let Some(receipt) = Receipt::parse(receipt) {
                ledger.add_receipt(id, peer, receipt);
            }
        }
        if before == PeerPosition::Unknown {
            ledger.add_receipts_up_to(peer, PurgeSequence(answer.at), self.inner.now_ms());
        }
        drop(ledger);
        match before {
            PeerPosition::Unknown => self.inner.notify_all_waiters(),
            PeerPosition::At(_) => {
                answer.receipts.iter().for_each(|(id, _)| self.inner.notify_waiters(id));
            }
        }
        Ok(PeerPosition::At(answer.at))
    }

    /// Answers a call of the node `from`, once its purges are in force here and on disk.
    pub(crate) async fn take_delivery(&self, from: &str, content: &[u8]) -> (StatusCode, Bytes) {
        let Some((call, lineage)) = DeliveryCall::parse(content) else {
            let text = "expected purges of the peer protocol's version 1";
            return (StatusCode::BAD_REQUEST, Bytes::from_static(text.as_bytes()));
        };
        let at = self.inner.purges.taken_from(from, lineage);
        let may_skip = call.purges.first().is_some_and(PurgeRecord::is_of_everything);
        if at < call.after && !may_skip {
            return (StatusCode::CONFLICT, DeliveryAnswer { at, receipts: Vec::new() }.to_bytes());
        }
        if call.up_to > at
            && let Err(error) = self.inner.apply_delivery(from, lineage, &call).await
        {
            self.inner.log_undelivered(from, &error);
            return (StatusCode::SERVICE_UNAVAILABLE, error.to_string().into());
        }
        let receipts = self.inner.receipts_of(&call.purges);
        let at = at.max(call.up_to);
        (StatusCode::OK, DeliveryAnswer { at, receipts }.to_bytes())
    }

    /// Sets the static peers.
    pub(crate) fn set_static_peers(&self, names: Vec<Arc<str>>) {
        *self.inner.static_peers() = names;
        self.inner.notify_all_waiters();
    }
}

impl Inner {
    /// The longest record of a purge that can be sent to other nodes.
    pub(super) fn record_bytes_max(&self) -> usize {
        match self.connector {
            Some(_) => self.settings.record_bytes_max,
            None => self.settings.record_bytes_max.min(CALL_BYTES_MAX),
        }
    }

    /// Tells the purge table that there are peers, and which purges the deliveries in its log are.
    pub(super) fn expect_peers(self: Arc<Self>) {
        self.purges.restore_deliveries(|message| {
            let record = PurgeRecord::parse(message)?;
            Some((record.purge_id(), record.is_of_everything()))
        });
        for (sequence, message) in self.purges.last_deliveries(REMEMBERED_MAX) {
            let record = PurgeRecord::parse(&message).filter(|record| !record.is_invalidation());
            let Some(record) = record else { continue };
            let after_ms = self.since_ms(record.at_ms);
            let mut ledger = self.ledger();
            ledger.record(&record);
            ledger.set_in_force(&record.id, after_ms);
            ledger.set_durable(&record.id, &self.name, sequence, after_ms);
        }
        // The bus owns the purges: a strong reference would be a circle.
        let (inner, purges) = (Arc::downgrade(&self), self.purges.clone());
        purges.expect_peers(Box::new(move |scopes| {
            inner.upgrade().map(|inner| inner.delivery_of_invalidation(scopes))
        }));
    }

    fn delivery_of_invalidation(&self, scopes: &[PurgeScope]) -> DeliveryPart {
        let (scopes, kind) = (scopes.to_vec(), PurgeKind::Invalidated);
        let request = PurgeRequest { scopes, kind, reason: None, refresh: 0 };
        let record = PurgeRecord::new(self.next_id(), self.name.clone(), self.now_ms(), request);
        record.delivery(record.to_bytes())
    }

    /// Puts the purges of a call in force that are not yet, and waits until they are on disk.
    async fn apply_delivery(
        &self,
        from: &str,
        lineage: u64,
        call: &DeliveryCall,
    ) -> Result<(), PurgeError> {
        let missing = self.missing(&call.purges);
        let deliveries = missing.iter().map(|record| record.delivery(record.to_bytes()));
        let position = SenderPosition { lineage, place: call.up_to };
        let sender = DeliverySender { name: from.into(), position };
        let batch = PurgeBatch {
            purges: missing.iter().flat_map(|record| record.purges()).collect(),
            deliveries: deliveries.collect(),
            sender: Some(sender.clone()),
            ..PurgeBatch::default()
        };
        let in_force = self.purges.put_in_force(batch).await?;
        self.set_in_force(&missing);
        let sequence = in_force.durable().await?.sequence;
        // Not before: a peer must not rely on what a crash may lose.
        self.purges.note_taken_from(sender);
        for record in call.purges.iter().filter(|record| !record.is_invalidation()) {
            let after_ms = self.since_ms(record.at_ms);
            let mut ledger = self.ledger();
            ledger.set_durable(&record.id, &self.name, sequence, after_ms);
            // The sender had the purge on disk before it sent it.
            let receipt = Receipt { in_force_ms: after_ms, durable_ms: after_ms };
            ledger.add_receipt(&record.id, from, receipt);
            drop(ledger);
            self.notify_waiters(&record.id);
        }
        Ok(())
    }

    /// The purges that are not in force yet, each once.
    fn missing<'r>(&self, records: &'r [PurgeRecord]) -> Vec<&'r PurgeRecord> {
        let mut ids = HashSet::new();
        let mut ledger = self.ledger();
        let is_missing = |record: &&PurgeRecord| {
            if !record.is_invalidation() {
                ledger.record(record);
            }
            !ledger.is_in_force(&record.id)
                && !self.purges.has_delivery(record.purge_id())
                && ids.insert(record.purge_id())
        };
        records.iter().filter(is_missing).collect()
    }

    fn receipts_of(&self, records: &[PurgeRecord]) -> Vec<(String, String)> {
        let ledger = self.ledger();
        let receipt = |record: &PurgeRecord| {
            let receipt = ledger.receipt(&record.id, &self.name)?;
            Some((record.id.clone(), receipt.to_text()))
        };
        records.iter().filter_map(receipt).collect()
    }

    /// Orders a soft purge of everything, because a peer lacks purges that are not kept any more.
    fn order_purge_for(self: Arc<Self>, peer: &str) {
        tracing::warn!(
            "peer {peer} has been away for longer than purges are kept for it: purging everything softly, on all nodes"
        );
        let request = PurgeRequest {
            scopes: vec![PurgeScope::All],
            kind: PurgeKind::Soft,
            reason: Some(format!("{peer} has missed purges")),
            refresh: 0,
        };
        let record = PurgeRecord::new(self.next_id(), self.name.clone(), self.now_ms(), request);
        tokio::spawn(async move {
            let message = record.to_bytes();
            let (in_force, _) = oneshot::channel();
            if let Err(error) = self.purge_locally(&record, Some(message), in_force).await {
                tracing::warn!(%error, "the purge of everything for a peer is not in force; it is ordered again");
            }
        });
    }

    fn log_undelivered(&self, from: &str, error: &PurgeError) {
        if self.log_rate.take(self.clock.instant()) {
            tracing::warn!(%error, "purges of peer {from} could not be applied; it sends them again");
        }
    }
}

impl DeliveryCall {
    /// `None`: not a call, or one of another version.
    pub(super) fn parse(content: &[u8]) -> Option<(Self, u64)> {
        let call: Self = serde_json::from_slice(content).ok()?;
        let lineage = u64::from_str_radix(&call.lineage, 16).ok()?;
        let is_valid = call.v == VERSION
            && call.purges.len() <= CALL_PURGES_MAX
            && call.purges.iter().all(PurgeRecord::is_readable);
        is_valid.then_some((call, lineage))
    }
}

impl DeliveryAnswer {
    fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and numbers are JSON").into()
    }
}

/// The content of a call with these deliveries, whose messages are records in JSON.
fn content(lineage: u64, batch: &DeliveryBatch) -> Bytes {
    let DeliveryBatch { after, up_to, messages } = batch;
    let head = format!(
        "{{\"v\":{VERSION},\"lineage\":\"{lineage:016x}\",\"after\":{after},\"up_to\":{up_to},\"purges\":["
    );
    [head.as_bytes(), &messages.join(&b','), b"]}"].concat().into()
}

const VERSION: u32 = 1;
/// Purges in a call. Their receipts fit into the longest answer that a caller reads, 64 KiB.
const CALL_PURGES_MAX: usize = 128;
/// Their total length, and the longest record on a node without Redis. A call may have 1 MiB.
const CALL_BYTES_MAX: usize = 512 << 10;
/// Purges that a node lists again after a restart.
const REMEMBERED_MAX: usize = 256;
