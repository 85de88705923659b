//! The latest purges that this node has seen. Their ids reveal purges that arrive twice (wake-up and
//! stream), and `GET /purges` lists them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::record::{PurgeRecord, RecordKind, RecordScope};
use crate::cache::PurgeSequence;

/// How long a node took to apply a purge, measured from the time in its record. The time is from the
/// clock of another node, so the difference between the two clocks is part of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Receipt {
    /// Time until the purge was in force, in milliseconds.
    pub in_force_ms: f64,
    /// Time until the purge was durable, in milliseconds.
    pub durable_ms: f64,
}

impl Receipt {
    /// Encodes as stored in Redis: two numbers.
    pub(crate) fn to_text(self) -> String {
        format!("{:.3} {:.3}", self.in_force_ms, self.durable_ms)
    }

    /// Decodes a stored receipt. `None`: not a receipt.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (in_force, durable) = text.split_once(' ')?;
        Some(Self { in_force_ms: in_force.parse().ok()?, durable_ms: durable.parse().ok()? })
    }
}

/// A purge that this node has seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KnownPurge {
    /// The node that received the purge request.
    pub node: String,
    /// When it received the request, in milliseconds since 1970.
    pub at_ms: f64,
    /// Soft or hard.
    pub kind: RecordKind,
    /// Number of scopes.
    pub scopes: usize,
    /// The first few scopes; long ones are truncated.
    pub first_scopes: Vec<RecordScope>,
    /// The caller's note for the audit log.
    pub reason: Option<String>,
    /// This node's purge sequence, once the purge is durable here.
    pub sequence: Option<PurgeSequence>,
    /// Whether it was read from the stream.
    pub is_published: bool,
    /// Receipts by node name.
    pub receipts: BTreeMap<String, Receipt>,
    /// When it came into force here, in milliseconds after `at_ms`.
    in_force_ms: Option<f64>,
    /// Whether no node is waited for any more: see `overdue.rs`.
    is_complete: bool,
}

#[cfg(test)]
impl KnownPurge {
    /// A purge with the receipt of the node that ordered it.
    pub(super) fn for_tests(node: &str, at_ms: f64) -> Self {
        Self {
            node: node.to_owned(),
            at_ms,
            kind: RecordKind::Soft,
            scopes: 1,
            first_scopes: Vec::new(),
            reason: None,
            sequence: None,
            is_published: true,
            receipts: BTreeMap::from([(node.to_owned(), Receipt::default())]),
            in_force_ms: None,
            is_complete: false,
        }
    }
}

/// A purge that some nodes have not confirmed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OverduePurge {
    /// Its id, as in `GET /purges/ID`.
    pub id: String,
    /// Time since it was ordered.
    pub age: Duration,
    /// The nodes without a receipt, by name.
    pub nodes: Vec<Arc<str>>,
    /// Whether all of these nodes are out, so that no client is sent to them.
    pub are_out: bool,
}

/// The latest purges, by id. The oldest is removed when there are more than `entries_max`.
#[derive(Debug)]
pub(super) struct Ledger {
    known: HashMap<String, KnownPurge>,
    order: VecDeque<String>,
    entries_max: usize,
}

impl Ledger {
    /// An empty ledger.
    pub(super) fn new(entries_max: usize) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), entries_max: entries_max.max(1) }
    }

    /// Adds a purge, unless it is known.
    pub(super) fn record(&mut self, record: &PurgeRecord) {
        if self.known.contains_key(&record.id) {
            return;
        }
        let known = KnownPurge {
            node: record.node.clone(),
            at_ms: record.at_ms,
            kind: record.kind,
            scopes: record.scopes.len(),
            first_scopes: record
                .scopes
                .iter()
                .take(SCOPES_KEPT)
                .map(RecordScope::shortened)
                .collect(),
            reason: record.reason.clone(),
            sequence: None,
            is_published: false,
            receipts: BTreeMap::new(),
            in_force_ms: None,
            is_complete: false,
        };
        self.known.insert(record.id.clone(), known);
        self.order.push_back(record.id.clone());
        if self.order.len() > self.entries_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Removes a purge that was refused. The search starts at the newest entry, because a refused
    /// purge was just added.
    pub(super) fn remove(&mut self, id: &str) {
        self.known.remove(id);
        if let Some(at) = self.order.iter().rposition(|other| other == id) {
            self.order.remove(at);
        }
    }

    /// Records that the purge came into force here, `after_ms` after its request. Returns whether
    /// it was not in force before.
    pub(super) fn set_in_force(&mut self, id: &str, after_ms: f64) -> bool {
        let Some(known) = self.known.get_mut(id) else { return false };
        let is_first = known.in_force_ms.is_none();
        known.in_force_ms.get_or_insert(after_ms);
        is_first
    }

    /// Whether the purge is in force here.
    pub(super) fn is_in_force(&self, id: &str) -> bool {
        self.known.get(id).is_some_and(|known| known.in_force_ms.is_some())
    }

    /// Whether the purge is durable here.
    #[cfg(test)]
    pub(super) fn is_durable(&self, id: &str) -> bool {
        self.known.get(id).is_some_and(|known| known.sequence.is_some())
    }

    /// Records that the purge is durable here, on node `name`. Returns the receipt, or `None` if the
    /// purge was durable before or is unknown.
    pub(super) fn set_durable(
        &mut self,
        id: &str,
        name: &str,
        sequence: PurgeSequence,
        after_ms: f64,
    ) -> Option<Receipt> {
        let known = self.known.get_mut(id)?;
        if known.sequence.is_some() {
            return None;
        }
        known.sequence = Some(sequence);
        let in_force_ms = known.in_force_ms.unwrap_or(after_ms);
        let receipt = Receipt { in_force_ms, durable_ms: after_ms.max(in_force_ms) };
        known.receipts.insert(name.to_owned(), receipt);
        Some(receipt)
    }

    /// Records that the purge was read from the stream.
    pub(super) fn set_published(&mut self, id: &str) {
        if let Some(known) = self.known.get_mut(id) {
            known.is_published = true;
        }
    }

    /// The receipt of node `name`.
    pub(super) fn receipt(&self, id: &str, name: &str) -> Option<Receipt> {
        self.known.get(id)?.receipts.get(name).copied()
    }

    /// Adds the receipt of another node.
    pub(super) fn add_receipt(&mut self, id: &str, node: &str, receipt: Receipt) {
        if let Some(known) = self.known.get_mut(id) {
            known.receipts.entry(node.to_owned()).or_insert(receipt);
        }
    }

    /// Adds the receipts of a node that has all deliveries of this node up to this purge sequence, with the time
    /// until now, which is `now_ms`.
    pub(super) fn add_receipts_up_to(&mut self, node: &str, sequence: PurgeSequence, now_ms: f64) {
        let known = self.known.values_mut();
        for known in known.filter(|known| known.sequence.is_some_and(|own| own <= sequence)) {
            let after_ms = (now_ms - known.at_ms).max(0.0);
            let receipt = Receipt { in_force_ms: after_ms, durable_ms: after_ms };
            known.receipts.entry(node.to_owned()).or_insert(receipt);
        }
    }

    /// The oldest purge for which `is_complete` does not hold. Complete ones are not looked at again.
    pub(super) fn oldest_incomplete(
        &mut self,
        is_complete: impl Fn(&KnownPurge) -> bool,
    ) -> Option<(&str, &KnownPurge)> {
        let id = self.order.iter().find(|id| {
            let Some(known) = self.known.get_mut(*id).filter(|known| !known.is_complete) else {
                return false;
            };
            known.is_complete = is_complete(known);
            !known.is_complete
        })?;
        Some((id.as_str(), self.known.get(id)?))
    }

    /// The purge with this id.
    pub(super) fn get(&self, id: &str) -> Option<&KnownPurge> {
        self.known.get(id)
    }

    /// The purges requested since `at_ms`, newest first, at most `limit`.
    pub(super) fn since(&self, at_ms: f64, limit: usize) -> Vec<(String, KnownPurge)> {
        let newest = self.order.iter().rev();
        let known = newest.filter_map(|id| Some((id.clone(), self.known.get(id)?.clone())));
        known.filter(|(_, known)| known.at_ms >= at_ms).take(limit).collect()
    }
}

/// Scopes of a purge that are kept; of the others only their number.
const SCOPES_KEPT: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{PurgeKind, PurgeScope};
    use crate::purge::PurgeRequest;

    fn record(id: &str, at_ms: f64) -> PurgeRecord {
        let (scopes, kind) = (vec![PurgeScope::All], PurgeKind::Hard);
        let request = PurgeRequest { scopes, kind, reason: None, refresh: 0 };
        PurgeRecord::new(id.into(), "n".into(), at_ms, request)
    }

    #[test]
    fn a_purge_that_arrives_twice_has_one_receipt_per_node() {
        let mut ledger = Ledger::new(10);
        ledger.record(&record("a", 1.0));
        assert!(ledger.set_in_force("a", 2.0));
        assert!(!ledger.set_in_force("a", 9.0), "the first time counts");
        assert!(!ledger.is_durable("a"));
        let receipt = ledger.set_durable("a", "here", PurgeSequence(7), 3.0);
        assert_eq!(receipt, Some(Receipt { in_force_ms: 2.0, durable_ms: 3.0 }));
        assert_eq!(ledger.set_durable("a", "here", PurgeSequence(8), 4.0), None);
        ledger.record(&record("a", 1.0));
        assert_eq!(ledger.get("a").unwrap().sequence, Some(PurgeSequence(7)));
    }

    #[test]
    fn the_oldest_purge_is_removed_first() {
        let mut ledger = Ledger::new(2);
        for (at, id) in ["a", "b", "c"].iter().enumerate() {
            ledger.record(&record(id, at as f64));
        }
        assert!(ledger.get("a").is_none());
        let ids: Vec<_> = ledger.since(1.0, 9).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["c", "b"]);
        assert_eq!(ledger.since(2.0, 9).len(), 1);
    }

    #[test]
    fn a_receipt_is_read_as_it_was_written() {
        let receipt = Receipt { in_force_ms: 1.25, durable_ms: 12.5 };
        assert_eq!(Receipt::parse(&receipt.to_text()), Some(receipt));
        assert_eq!(Receipt::parse("x"), None);
    }
}
