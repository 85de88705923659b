//! Invariant 1: a response that was fetched before an acknowledged purge is not served as fresh.
//!
//! Only certain cases are reported: the upstream request started before the purge was *issued*, and
//! the client's request was sent after the node's acknowledgement had *arrived*.

use super::{CheckContext, Checker, Findings, Observation};
use crate::journal::{Fetch, Purge};

/// Checks responses against purges; see the module documentation.
#[derive(Default)]
pub struct PurgedStaysPurged(Findings);

impl Checker for PurgedStaysPurged {
    fn name(&self) -> &'static str {
        "purged stays purged"
    }

    fn promise(&self) -> &'static str {
        "no response older than a purge that the node acknowledged is served as fresh"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let Ok(response) = &observation.outcome else { return };
        let Some(fetch) = response.fetch.and_then(|serial| context.facts.fetch(serial)) else {
            return;
        };
        self.0.count_check();
        let claims_fresh = match observation.status_of_store() {
            Some(status) => status.claims_fresh(),
            None => observation.cache_status().is_none(),
        };
        if let Some(purge) = violated_purge(context, observation, fetch, claims_fresh) {
            let what = describe(purge, observation, fetch);
            self.0.report(context, observation, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

fn violated_purge<'a>(
    context: CheckContext<'a>,
    observation: &Observation,
    fetch: &Fetch,
    claims_fresh: bool,
) -> Option<&'a Purge> {
    let object = context.object(observation);
    context.facts.purges.iter().rev().find(|purge| {
        let in_force =
            purge.acknowledged_by(observation.node).is_some_and(|at| at <= observation.sent);
        let older = fetch.began < purge.issued;
        in_force && older && (claims_fresh || !purge.soft) && purge.scope.covers(object)
    })
}

fn describe(purge: &Purge, observation: &Observation, fetch: &Fetch) -> String {
    let acknowledged = purge.acknowledged_by(observation.node).unwrap_or(purge.issued);
    format!(
        "served from upstream request {}, which started {} ms before {} purge {} of {} \
         was issued; the node acknowledged the purge {} ms before this request",
        fetch.serial,
        (purge.issued - fetch.began) / 1000,
        if purge.soft { "soft" } else { "hard" },
        purge.id.as_deref().unwrap_or("?"),
        purge.scope.describe(),
        (observation.sent - acknowledged) / 1000,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, verdict};
    use crate::journal::{SECOND, Scope};
    use crate::plan::object::Class;

    fn purge(issued: u64, acknowledged: u64, soft: bool) -> Purge {
        Purge {
            number: 0,
            id: Some("p1".into()),
            scope: Scope::All,
            soft,
            via: 1,
            targets: vec![0, 1],
            issued,
            acknowledged: vec![(0, acknowledged)],
            propagation_ms: Vec::new(),
            pending: Vec::new(),
            complete: true,
            failed: None,
        }
    }

    fn check(purge: Purge, sent: u64, cache_status: &str, expected: Option<&str>) {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Static);
        let fetch = fixture.fetch(&object, 0, SECOND);
        fixture.facts.purges.push(purge);
        let observation = fixture.observation(fetch, sent, cache_status);
        let verdict = verdict(&mut PurgedStaysPurged::default(), &fixture, &observation);
        match expected {
            Some(text) => assert!(verdict.as_deref().is_some_and(|what| what.contains(text))),
            None => assert_eq!(verdict, None),
        }
    }

    #[test]
    fn a_hit_from_before_an_acknowledged_purge_is_reported() {
        let expected = "upstream request 1, which started 1000 ms before hard purge p1 of all";
        check(
            purge(2 * SECOND, 3 * SECOND, false),
            4 * SECOND,
            "skerry; hit; ttl=9",
            Some(expected),
        );
    }

    #[test]
    fn before_the_acknowledgement_old_and_new_are_accepted() {
        check(purge(2 * SECOND, 5 * SECOND, false), 4 * SECOND, "skerry; hit; ttl=9", None);
    }

    #[test]
    fn a_response_fetched_after_the_purge_was_issued_is_accepted() {
        check(purge(SECOND / 2, SECOND, false), 4 * SECOND, "skerry; hit; ttl=9", None);
    }

    #[test]
    fn a_soft_purge_allows_stale_and_a_hard_one_does_not() {
        let stale = "skerry; hit; ttl=-2; detail=\"stale while revalidating\"";
        check(purge(2 * SECOND, 3 * SECOND, true), 4 * SECOND, stale, None);
        check(purge(2 * SECOND, 3 * SECOND, true), 4 * SECOND, "skerry; hit; ttl=9", Some("soft"));
        check(purge(2 * SECOND, 3 * SECOND, false), 4 * SECOND, stale, Some("hard"));
        let of_owner = "skerry; hit; ttl=9, skerry; fwd=uri-miss";
        check(purge(2 * SECOND, 3 * SECOND, true), 4 * SECOND, of_owner, Some("soft"));
        let stale = format!("skerry; hit; ttl=9, {stale}, skerry; fwd=uri-miss");
        check(purge(2 * SECOND, 3 * SECOND, true), 4 * SECOND, &stale, None);
    }

    #[test]
    fn joining_a_fill_from_before_the_purge_is_reported() {
        let collapsed = "skerry; fwd=miss; collapsed";
        check(purge(2 * SECOND, 3 * SECOND, false), 4 * SECOND, collapsed, Some("hard"));
    }
}
