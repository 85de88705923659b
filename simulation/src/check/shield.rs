//! Nodes of other regions leave the origins to the shield region.
//!
//! The promise is checked at the end, from the requests that the origins recorded: those for responses that can be stored. A few
//! are right, because a shield that is late by its deadline is passed over, and those during a fault do not count.

use super::{CheckContext, Checker, Findings};
use crate::journal::{Fetch, Micros, NodeId, SECOND};

/// Checks which regions ask the origins; see the module documentation.
pub struct ShieldAsksOrigins {
    /// The name of the shield region; empty: there is none.
    shield: String,
    findings: Findings,
}

impl ShieldAsksOrigins {
    /// A checker for the shield region with this name; empty: the fleet has none.
    pub fn new(shield: &str) -> Self {
        ShieldAsksOrigins { shield: shield.to_owned(), findings: Findings::default() }
    }

    fn is_in_shield(&self, context: CheckContext, node: NodeId) -> bool {
        let region = context.nodes[node].rsplit_once('-').map(|(region, _)| region);
        region == Some(&*self.shield)
    }
}

impl Checker for ShieldAsksOrigins {
    fn name(&self) -> &'static str {
        "the shield asks origins"
    }

    fn promise(&self) -> &'static str {
        "at most 5 % of the requests for responses that can be stored come from other regions than the shield"
    }

    fn end(&mut self, context: CheckContext) {
        if self.shield.is_empty() {
            return;
        }
        let is_stored = |fetch: &&Fetch| context.catalog.get(fetch.object).class.is_shared();
        let mut others = Vec::new();
        for fetch in context.facts.fetches.iter().filter(is_stored) {
            let Some(node) = fetch.node.filter(|_| !is_disturbed(context, fetch)) else { continue };
            self.findings.count_check();
            if !self.is_in_shield(context, node) {
                others.push((fetch.began, node, fetch.object));
            }
        }
        if others.len() as u64 <= OTHERS_FREE + self.findings.checked * OTHERS_PERCENT / 100 {
            return;
        }
        for (at, node, object) in others {
            let path = context.catalog.get(object).path();
            let what = format!("asked an origin for {path}, and not the shield {}", self.shield);
            self.findings.record_violation(at, context.nodes[node].clone(), what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

/// Whether a fault of any node may have kept this one from asking the shield.
fn is_disturbed(context: CheckContext, fetch: &Fetch) -> bool {
    let mut nodes = 0..context.nodes.len();
    nodes.any(|node| context.facts.disturbed(node, fetch.began, fetch.began, RECOVERY))
}

/// How long nodes may pass a shield over after a fault.
const RECOVERY: Micros = 10 * SECOND;
const OTHERS_PERCENT: u64 = 5;
/// Requests of other regions in a run with few of them.
const OTHERS_FREE: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Fixture;
    use crate::plan::object::Class;

    /// Twenty requests of node 0 (frankfurt-1), and as many of node 1 (tokyo-1).
    fn broken(shield: &str, class: Class) -> u64 {
        let mut fixture = Fixture::new();
        let object = fixture.object(class);
        for second in 0..40 {
            let serial = fixture.fetch(&object, 0, second * SECOND);
            fixture.facts.fetches[serial as usize - 1].node = Some(usize::from(second >= 20));
        }
        let mut checker = ShieldAsksOrigins::new(shield);
        checker.end(fixture.context());
        checker.findings().broken
    }

    #[test]
    fn regions_that_ask_past_the_shield_are_reported() {
        assert_eq!(broken("frankfurt", Class::Static), 20);
        assert_eq!(broken("frankfurt", Class::Dynamic), 0, "it cannot be stored");
        assert_eq!(broken("", Class::Static), 0);
    }
}
