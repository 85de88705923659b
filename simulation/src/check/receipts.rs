//! Every purge is accounted for at every node: applied, or openly pending, and in the end
//! applied everywhere. Receipts live in Redis: what was pending when Redis lost its data stays
//! openly pending, and nodes that come out of it validate all that they have.

use super::{Checker, Findings, World};
use crate::journal::{Fault, LifeEvent, Micros, NodeId, Purge, SECOND};

/// See the module's text.
#[derive(Default)]
pub struct EveryReceipt(Findings);

impl Checker for EveryReceipt {
    fn name(&self) -> &'static str {
        "every receipt"
    }

    fn promise(&self) -> &'static str {
        "every purge ends with a receipt from every node, or was refused openly"
    }

    fn end(&mut self, world: World) {
        for purge in &world.facts.purges {
            for &node in &purge.meant_for {
                self.0.look();
                if let Some((at, what)) = missing(world, purge, node) {
                    let id = purge.id.as_deref().unwrap_or("without id");
                    let subject = format!("purge {id} of {}", purge.scope.describe());
                    self.0.break_promise(at, subject, what);
                }
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

fn missing(world: World, purge: &Purge, node: NodeId) -> Option<(Micros, String)> {
    let name = &world.nodes[node];
    if purge.failed.is_some() || purge.acknowledged_by(node).is_some() {
        return None;
    }
    let lost = |fault: &Fault| fault.kind == "redis-empty" && fault.ended > Some(purge.issued);
    if purge.pending.contains(&node) && world.facts.faults.iter().any(lost) {
        return None;
    }
    // A node that left in order is no member meanwhile; it reads what it missed before it serves.
    let around = (purge.issued.saturating_sub(5 * SECOND), purge.issued + 3 * SECOND);
    let away = |life: &LifeEvent| life.node == node && (around.0..around.1).contains(&life.at);
    if !purge.pending.contains(&node) && world.facts.lives.iter().any(away) {
        return None;
    }
    let what = if purge.pending.contains(&node) {
        format!("{name} is still pending at the end of the run")
    } else {
        format!("{name} is in no answer: neither applied nor pending")
    };
    Some((purge.issued, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Lab;
    use crate::journal::Scope;

    fn check(change: impl FnOnce(&mut Purge), expected: Option<&str>) {
        let mut lab = Lab::new();
        let mut purge = Purge {
            number: 0,
            id: Some("p1".into()),
            scope: Scope::Group(3),
            soft: false,
            via: 0,
            meant_for: vec![0, 1],
            issued: 1,
            acknowledged: vec![(0, 10), (1, 20)],
            propagation_ms: Vec::new(),
            pending: Vec::new(),
            complete: true,
            failed: None,
        };
        change(&mut purge);
        lab.facts.purges.push(purge);
        let mut checker = EveryReceipt::default();
        checker.end(lab.world());
        let what = checker.findings().violations.first().map(|violation| violation.what.clone());
        match expected {
            Some(text) => assert!(what.as_deref().is_some_and(|what| what.contains(text))),
            None => assert_eq!(what, None),
        }
    }

    #[test]
    fn a_receipt_from_each_node_is_fine() {
        check(|_| (), None);
    }

    #[test]
    fn a_node_that_never_says_applied_is_named() {
        let pending = |purge: &mut Purge| {
            purge.acknowledged.pop();
            purge.pending.push(1);
        };
        check(pending, Some("tokyo-1 is still pending"));
    }

    #[test]
    fn what_was_pending_when_redis_lost_its_data_stays_pending() {
        let mut lab = Lab::new();
        let (kind, what, nodes) = ("redis-empty".to_owned(), String::new(), vec![0, 1]);
        lab.facts.faults.push(Fault { kind, what, nodes, began: 50, ended: Some(90) });
        let purge = |issued, pending: Vec<NodeId>| Purge {
            number: 0,
            id: None,
            scope: Scope::All,
            soft: false,
            via: 0,
            meant_for: vec![0, 1],
            issued,
            acknowledged: vec![(0, issued)],
            propagation_ms: Vec::new(),
            complete: pending.is_empty(),
            pending,
            failed: None,
        };
        lab.facts.purges = vec![purge(10, vec![1]), purge(95, vec![1]), purge(10, vec![])];
        let mut checker = EveryReceipt::default();
        checker.end(lab.world());
        assert_eq!(checker.findings().broken, 2, "after the loss, and in no answer at all");
    }

    #[test]
    fn a_node_that_no_answer_knows_is_named() {
        check(|purge| purge.acknowledged.clear(), Some("frankfurt-1 is in no answer"));
    }

    #[test]
    fn a_purge_that_was_refused_openly_is_not_lost() {
        let refused = |purge: &mut Purge| {
            purge.acknowledged.clear();
            purge.failed = Some("503".into());
        };
        check(refused, None);
    }
}
