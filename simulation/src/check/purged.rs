//! Invariant 1: nothing that was fetched before an acknowledged purge is served as fresh.
//!
//! Strict about what is certain, silent about what is not: an upstream request that began
//! before the purge was *issued* is older than it beyond doubt, and a request sent after the
//! node's acknowledgement had *arrived* comes after it beyond doubt.

use super::{Checker, Findings, Seen, World};
use crate::journal::{Fetch, Purge};

/// See the module's text.
#[derive(Default)]
pub struct PurgedStaysPurged(Findings);

impl Checker for PurgedStaysPurged {
    fn name(&self) -> &'static str {
        "purged stays purged"
    }

    fn promise(&self) -> &'static str {
        "nothing older than a purge that the node acknowledged is served as fresh"
    }

    fn saw(&mut self, world: World, seen: &Seen) {
        let Ok(answer) = &seen.outcome else { return };
        let Some(fetch) = answer.fetch.and_then(|serial| world.facts.fetch(serial)) else { return };
        self.0.look();
        let claims_fresh = seen.cache_status().is_none_or(|status| status.claims_fresh());
        if let Some(purge) = broken_by(world, seen, fetch, claims_fresh) {
            let what = describe(purge, seen, fetch);
            self.0.blame(world, seen, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

fn broken_by<'a>(
    world: World<'a>,
    seen: &Seen,
    fetch: &Fetch,
    claims_fresh: bool,
) -> Option<&'a Purge> {
    let object = world.object(seen);
    world.facts.purges.iter().rev().find(|purge| {
        let in_force = purge.acknowledged_by(seen.node).is_some_and(|at| at <= seen.sent);
        let older = fetch.began < purge.issued;
        in_force && older && (claims_fresh || !purge.soft) && purge.scope.covers(object)
    })
}

fn describe(purge: &Purge, seen: &Seen, fetch: &Fetch) -> String {
    let acknowledged = purge.acknowledged_by(seen.node).unwrap_or(purge.issued);
    format!(
        "served from upstream request {}, which began {} ms before {} purge {} of {} \
         was issued; the node had acknowledged it {} ms before this request",
        fetch.serial,
        (purge.issued - fetch.began) / 1000,
        if purge.soft { "soft" } else { "hard" },
        purge.id.as_deref().unwrap_or("?"),
        purge.scope.describe(),
        (seen.sent - acknowledged) / 1000,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Lab, verdict};
    use crate::journal::{SECOND, Scope};
    use crate::plan::object::Class;

    fn purge(issued: u64, acknowledged: u64, soft: bool) -> Purge {
        Purge {
            number: 0,
            id: Some("p1".into()),
            scope: Scope::All,
            soft,
            via: 1,
            meant_for: vec![0, 1],
            issued,
            acknowledged: vec![(0, acknowledged)],
            propagation_ms: Vec::new(),
            pending: Vec::new(),
            complete: true,
            failed: None,
        }
    }

    fn check(purge: Purge, sent: u64, cache_status: &str, expected: Option<&str>) {
        let mut lab = Lab::new();
        let object = lab.object(Class::Static);
        let fetch = lab.fetch(&object, 0, SECOND);
        lab.facts.purges.push(purge);
        let seen = lab.seen(fetch, sent, cache_status);
        let verdict = verdict(&mut PurgedStaysPurged::default(), &lab, &seen);
        match expected {
            Some(text) => assert!(verdict.as_deref().is_some_and(|what| what.contains(text))),
            None => assert_eq!(verdict, None),
        }
    }

    #[test]
    fn a_hit_from_before_an_acknowledged_purge_is_named() {
        let expected = "upstream request 1, which began 1000 ms before hard purge p1 of all";
        check(
            purge(2 * SECOND, 3 * SECOND, false),
            4 * SECOND,
            "skerry; hit; ttl=9",
            Some(expected),
        );
    }

    #[test]
    fn before_the_acknowledgement_either_is_right() {
        check(purge(2 * SECOND, 5 * SECOND, false), 4 * SECOND, "skerry; hit; ttl=9", None);
    }

    #[test]
    fn what_was_fetched_after_the_purge_was_issued_is_new() {
        check(purge(SECOND / 2, SECOND, false), 4 * SECOND, "skerry; hit; ttl=9", None);
    }

    #[test]
    fn a_soft_purge_allows_stale_and_a_hard_one_does_not() {
        let stale = "skerry; hit; ttl=-2; detail=\"stale while revalidating\"";
        check(purge(2 * SECOND, 3 * SECOND, true), 4 * SECOND, stale, None);
        check(purge(2 * SECOND, 3 * SECOND, true), 4 * SECOND, "skerry; hit; ttl=9", Some("soft"));
        check(purge(2 * SECOND, 3 * SECOND, false), 4 * SECOND, stale, Some("hard"));
    }

    #[test]
    fn joining_a_fill_from_before_the_purge_is_named() {
        let collapsed = "skerry; fwd=miss; collapsed";
        check(purge(2 * SECOND, 3 * SECOND, false), 4 * SECOND, collapsed, Some("hard"));
    }
}
