//! No response is served beyond its freshness lifetime plus the stale time that the origin allows.

use super::{CheckContext, Checker, Findings, Observation};
use crate::journal::{Fetch, Micros, SECOND};

/// Checks the age of responses; see the module documentation.
#[derive(Default)]
pub struct NeverTooOld(Findings);

impl Checker for NeverTooOld {
    fn name(&self) -> &'static str {
        "never too old"
    }

    fn promise(&self) -> &'static str {
        "no response is served beyond its lifetime plus the stale time that the origin allows"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let Ok(response) = &observation.outcome else { return };
        let object = context.object(observation);
        let fetch = response.fetch.and_then(|serial| context.facts.fetch(serial));
        let Some(fetch) = fetch.filter(|_| object.class.is_shared()) else { return };
        let Some(answered) = fetch.answered else { return };
        self.0.count_check();
        let age = observation.sent.saturating_sub(answered);
        let allowed = allowed(context, observation, fetch);
        if age > allowed {
            let (age, allowed) = (age / 1000, allowed / 1000);
            let what = format!("{age} ms old, but its origin allows {allowed} ms");
            self.0.report(context, observation, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

/// The maximum age of a response. `stale-if-error` applies if a fault affected the node or its sources recently.
fn allowed(context: CheckContext, observation: &Observation, fetch: &Fetch) -> Micros {
    let object = context.object(observation);
    let disturbed = context.disturbed(observation.node, fetch.began, observation.done, GRACE);
    let stale_if_error = if disturbed { object.stale_if_error } else { 0 };
    let seconds = object.max_age + object.stale_while_revalidate.max(stale_if_error);
    seconds * SECOND + SLACK
}

/// Rounding of `Age` and `Date` to whole seconds, and the transit of the response.
const SLACK: Micros = 2_500_000;
/// How long after a fault the node may still regard its origin as failing.
const GRACE: Micros = 20 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, verdict};
    use crate::journal::Fault;
    use crate::plan::object::Class;

    fn check(after_s: u64, fault: bool, expected: Option<&str>) {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Page);
        let fetch = fixture.fetch(&object, 0, SECOND);
        if fault {
            let kind = "origin-down".to_owned();
            let what = String::new();
            fixture.facts.faults.push(Fault {
                kind,
                what,
                nodes: vec![0],
                began: SECOND,
                ..Fault::default()
            });
        }
        let lifetime = object.max_age + object.stale_while_revalidate;
        let observation =
            fixture.observation(fetch, (1 + lifetime + after_s) * SECOND, "skerry; hit; ttl=-1");
        let verdict = verdict(&mut NeverTooOld::default(), &fixture, &observation);
        match expected {
            Some(text) => assert!(verdict.as_deref().is_some_and(|what| what.contains(text))),
            None => assert_eq!(verdict, None),
        }
    }

    #[test]
    fn a_response_within_its_lifetime_and_stale_time_is_accepted() {
        check(0, false, None);
    }

    #[test]
    fn a_response_beyond_them_is_reported() {
        check(4, false, Some("ms old, but its origin allows"));
    }

    #[test]
    fn a_failing_origin_allows_stale_if_error_and_not_more() {
        check(30, true, None);
        check(70, true, Some("ms old, but its origin allows"));
    }
}
