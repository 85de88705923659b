//! Every purge has a receipt from every node at the end of the run.
//!
//! Redis stores receipts. If it loses its data, a receipt that was pending may stay pending; the nodes
//! then revalidate everything that they have stored.

use super::{CheckContext, Checker, Findings};
use crate::journal::{Fault, Micros, NodeId, ProcessEvent, Purge, SECOND};

/// Checks the receipts of purges; see the module documentation.
#[derive(Default)]
pub struct EveryReceipt(Findings);

impl Checker for EveryReceipt {
    fn name(&self) -> &'static str {
        "every receipt"
    }

    fn promise(&self) -> &'static str {
        "every purge gets a receipt from every node, or the admin API reports an error"
    }

    fn end(&mut self, context: CheckContext) {
        for purge in &context.facts.purges {
            for &node in &purge.targets {
                self.0.count_check();
                if let Some((at, what)) = missing(context, purge, node) {
                    let id = purge.id.as_deref().unwrap_or("without id");
                    let subject = format!("purge {id} of {}", purge.scope.describe());
                    self.0.record_violation(at, subject, what);
                }
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

fn missing(context: CheckContext, purge: &Purge, node: NodeId) -> Option<(Micros, String)> {
    let name = &context.nodes[node];
    if purge.failed.is_some() || purge.acknowledged_by(node).is_some() {
        return None;
    }
    let lost = |fault: &Fault| fault.kind == "redis-empty" && fault.ended > Some(purge.issued);
    if purge.pending.contains(&node) && context.facts.faults.iter().any(lost) {
        return None;
    }
    // A stopped node is not a member of the fleet; it applies missed purges before it serves.
    let period = (purge.issued.saturating_sub(5 * SECOND), purge.issued + 3 * SECOND);
    let restarted =
        |event: &ProcessEvent| event.node == node && (period.0..period.1).contains(&event.at);
    if !purge.pending.contains(&node) && context.facts.process_events.iter().any(restarted) {
        return None;
    }
    let what = if purge.pending.contains(&node) {
        format!("{name} is still pending at the end of the run")
    } else {
        format!("{name} is neither applied nor pending in any response")
    };
    Some((purge.issued, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Fixture;
    use crate::journal::Scope;

    fn check(change: impl FnOnce(&mut Purge), expected: Option<&str>) {
        let mut fixture = Fixture::new();
        let mut purge = Purge {
            number: 0,
            id: Some("p1".into()),
            scope: Scope::Group(3),
            soft: false,
            via: 0,
            targets: vec![0, 1],
            issued: 1,
            acknowledged: vec![(0, 10), (1, 20)],
            propagation_ms: Vec::new(),
            pending: Vec::new(),
            complete: true,
            failed: None,
        };
        change(&mut purge);
        fixture.facts.purges.push(purge);
        let mut checker = EveryReceipt::default();
        checker.end(fixture.context());
        let what = checker.findings().violations.first().map(|violation| violation.what.clone());
        match expected {
            Some(text) => assert!(what.as_deref().is_some_and(|what| what.contains(text))),
            None => assert_eq!(what, None),
        }
    }

    #[test]
    fn a_purge_with_all_receipts_is_accepted() {
        check(|_| (), None);
    }

    #[test]
    fn a_pending_node_is_reported() {
        let pending = |purge: &mut Purge| {
            purge.acknowledged.pop();
            purge.pending.push(1);
        };
        check(pending, Some("tokyo-1 is still pending"));
    }

    #[test]
    fn a_receipt_may_stay_pending_if_redis_loses_its_data() {
        let mut fixture = Fixture::new();
        let (kind, what, nodes) = ("redis-empty".to_owned(), String::new(), vec![0, 1]);
        let (began, ended) = (50, Some(90));
        fixture.facts.faults.push(Fault { kind, what, nodes, began, ended, ..Fault::default() });
        let purge = |issued, pending: Vec<NodeId>| Purge {
            number: 0,
            id: None,
            scope: Scope::All,
            soft: false,
            via: 0,
            targets: vec![0, 1],
            issued,
            acknowledged: vec![(0, issued)],
            propagation_ms: Vec::new(),
            complete: pending.is_empty(),
            pending,
            failed: None,
        };
        fixture.facts.purges = vec![purge(10, vec![1]), purge(95, vec![1]), purge(10, vec![])];
        let mut checker = EveryReceipt::default();
        checker.end(fixture.context());
        assert_eq!(
            checker.findings().broken,
            2,
            "one issued after the loss, one missing in all responses"
        );
    }

    #[test]
    fn a_missing_node_is_reported() {
        check(
            |purge| purge.acknowledged.clear(),
            Some("frankfurt-1 is neither applied nor pending"),
        );
    }

    #[test]
    fn a_purge_that_was_refused_needs_no_receipts() {
        let refused = |purge: &mut Purge| {
            purge.acknowledged.clear();
            purge.failed = Some("503".into());
        };
        check(refused, None);
    }
}
