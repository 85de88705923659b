//! The purges that this node has lately met: by whose ids doubles are known, and what
//! `GET /purges` tells.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::record::{PurgeRecord, RecordKind, RecordScope};
use crate::cache::PurgeSequence;
use crate::control::fleet::StreamPlace;

/// How long a node took, since the purge was ordered. Clocks of two nodes are compared here:
/// it is as exact as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Receipt {
    /// Until no request could be answered with what is purged, in milliseconds.
    pub in_force_ms: f64,
    /// Until it would have survived a crash.
    pub durable_ms: f64,
}

impl Receipt {
    /// As it is kept in Redis: two numbers.
    pub(crate) fn to_text(self) -> String {
        format!("{:.3} {:.3}", self.in_force_ms, self.durable_ms)
    }

    /// What was kept.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (in_force, durable) = text.split_once(' ')?;
        Some(Self { in_force_ms: in_force.parse().ok()?, durable_ms: durable.parse().ok()? })
    }
}

/// A purge that this node knows of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KnownPurge {
    /// The node that was asked for it.
    pub node: String,
    /// When, in milliseconds since 1970.
    pub at_ms: f64,
    /// Soft or hard.
    pub kind: RecordKind,
    /// How much it covers.
    pub scopes: usize,
    /// The first few of that, long ones cut short.
    pub first_scopes: Vec<RecordScope>,
    /// The caller's words.
    pub reason: Option<String>,
    /// This node's sequence, once it is durable here.
    pub sequence: Option<PurgeSequence>,
    /// Its place in the stream, once it was read there.
    pub place: Option<StreamPlace>,
    /// Who has it.
    pub receipts: BTreeMap<String, Receipt>,
    in_force_ms: Option<f64>,
}

/// A bounded memory, oldest out first.
#[derive(Debug)]
pub(super) struct Ledger {
    known: HashMap<String, KnownPurge>,
    order: VecDeque<String>,
    entries_max: usize,
}

impl Ledger {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), entries_max: entries_max.max(1) }
    }

    /// Takes note of a purge, unless it is known.
    pub(super) fn note(&mut self, record: &PurgeRecord) {
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
                .take(SHOWN_MAX)
                .map(RecordScope::shortened)
                .collect(),
            reason: record.reason.clone(),
            sequence: None,
            place: None,
            receipts: BTreeMap::new(),
            in_force_ms: None,
        };
        self.known.insert(record.id.clone(), known);
        self.order.push_back(record.id.clone());
        if self.order.len() > self.entries_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Takes it back: it was refused. It stands near the end; a search from the start would make
    /// each refusal cost more than the purge would have.
    pub(super) fn forget(&mut self, id: &str) {
        self.known.remove(id);
        if let Some(at) = self.order.iter().rposition(|other| other == id) {
            self.order.remove(at);
        }
    }

    /// The purge is in force here since `after_ms`. Whether that is news.
    pub(super) fn in_force(&mut self, id: &str, after_ms: f64) -> bool {
        let Some(known) = self.known.get_mut(id) else { return false };
        let is_news = known.in_force_ms.is_none();
        known.in_force_ms.get_or_insert(after_ms);
        is_news
    }

    /// Whether it is in force here.
    pub(super) fn is_in_force(&self, id: &str) -> bool {
        self.known.get(id).is_some_and(|known| known.in_force_ms.is_some())
    }

    /// Whether it would survive a crash of this node.
    #[cfg(test)]
    pub(super) fn is_durable(&self, id: &str) -> bool {
        self.known.get(id).is_some_and(|known| known.sequence.is_some())
    }

    /// It is durable here, on node `name`. The receipt, if that is news.
    pub(super) fn durable(
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

    /// It stands in the stream at this place.
    pub(super) fn placed(&mut self, id: &str, epoch: &str, number: u64) {
        if let Some(known) = self.known.get_mut(id) {
            known.place = Some((epoch.to_owned(), number));
        }
    }

    /// Another node has it.
    pub(super) fn receipt(&mut self, id: &str, node: &str, receipt: Receipt) {
        if let Some(known) = self.known.get_mut(id) {
            known.receipts.entry(node.to_owned()).or_insert(receipt);
        }
    }

    pub(super) fn get(&self, id: &str) -> Option<&KnownPurge> {
        self.known.get(id)
    }

    /// The latest, ordered since `at_ms`, newest first.
    pub(super) fn since(&self, at_ms: f64, limit: usize) -> Vec<(String, KnownPurge)> {
        let newest = self.order.iter().rev();
        let known = newest.filter_map(|id| Some((id.clone(), self.known.get(id)?.clone())));
        known.filter(|(_, known)| known.at_ms >= at_ms).take(limit).collect()
    }
}

/// Scopes of a purge that are remembered; of the others only how many they were.
const SHOWN_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{PurgeKind, PurgeScope};
    use crate::control::purge_order::PurgeOrder;

    fn record(id: &str, at_ms: f64) -> PurgeRecord {
        let (scopes, kind) = (vec![PurgeScope::All], PurgeKind::Hard);
        let order = PurgeOrder { scopes, kind, reason: None, refresh: 0 };
        PurgeRecord::new(id.into(), "n".into(), at_ms, order)
    }

    #[test]
    fn a_purge_has_one_receipt_a_node_however_often_it_comes() {
        let mut ledger = Ledger::new(10);
        ledger.note(&record("a", 1.0));
        assert!(ledger.in_force("a", 2.0));
        assert!(!ledger.in_force("a", 9.0), "the first time counts");
        assert!(!ledger.is_durable("a"));
        let receipt = ledger.durable("a", "here", PurgeSequence(7), 3.0);
        assert_eq!(receipt, Some(Receipt { in_force_ms: 2.0, durable_ms: 3.0 }));
        assert_eq!(ledger.durable("a", "here", PurgeSequence(8), 4.0), None);
        ledger.note(&record("a", 1.0));
        assert_eq!(ledger.get("a").unwrap().sequence, Some(PurgeSequence(7)));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut ledger = Ledger::new(2);
        for (at, id) in ["a", "b", "c"].iter().enumerate() {
            ledger.note(&record(id, at as f64));
        }
        assert!(ledger.get("a").is_none());
        let ids: Vec<_> = ledger.since(1.0, 9).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["c", "b"]);
        assert_eq!(ledger.since(2.0, 9).len(), 1);
    }

    #[test]
    fn a_receipt_survives_redis() {
        let receipt = Receipt { in_force_ms: 1.25, durable_ms: 12.5 };
        assert_eq!(Receipt::parse(&receipt.to_text()), Some(receipt));
        assert_eq!(Receipt::parse("x"), None);
    }
}
