//! Nothing is served beyond its lifetime plus what the origin allowed on top.

use super::{Checker, Findings, Seen, World};
use crate::journal::{Fetch, Micros, SECOND};

/// See the module's text.
#[derive(Default)]
pub struct NeverTooOld(Findings);

impl Checker for NeverTooOld {
    fn name(&self) -> &'static str {
        "never too old"
    }

    fn promise(&self) -> &'static str {
        "nothing is served beyond its lifetime plus the stale time that the origin allowed"
    }

    fn saw(&mut self, world: World, seen: &Seen) {
        let Ok(answer) = &seen.outcome else { return };
        let object = world.object(seen);
        let fetch = answer.fetch.and_then(|serial| world.facts.fetch(serial));
        let Some(fetch) = fetch.filter(|_| object.class.is_shared()) else { return };
        let Some(answered) = fetch.answered else { return };
        self.0.look();
        let age = seen.sent.saturating_sub(answered);
        let allowed = allowed(world, seen, fetch);
        if age > allowed {
            let (age, allowed) = (age / 1000, allowed / 1000);
            let what = format!("{age} ms old, its origin allowed {allowed} ms");
            self.0.blame(world, seen, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

/// `stale-if-error` counts when anything was wrong between the node and its origin lately.
fn allowed(world: World, seen: &Seen, fetch: &Fetch) -> Micros {
    let object = world.object(seen);
    let disturbed = world.facts.disturbed(seen.node, fetch.began, seen.done, GRACE);
    let stale_if_error = if disturbed { object.stale_if_error } else { 0 };
    let seconds = object.max_age + object.stale_while_revalidate.max(stale_if_error);
    seconds * SECOND + SLACK
}

/// `Age` counts whole seconds, and `Date` too: two roundings, and the way of the answer.
const SLACK: Micros = 2_500_000;
/// How long after a fault the edge may still believe that its origin is failing.
const GRACE: Micros = 20 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Lab, verdict};
    use crate::journal::Fault;
    use crate::plan::object::Class;

    fn check(after_s: u64, fault: bool, expected: Option<&str>) {
        let mut lab = Lab::new();
        let object = lab.object(Class::Page);
        let fetch = lab.fetch(&object, 0, SECOND);
        if fault {
            let kind = "origin-down".to_owned();
            let what = String::new();
            lab.facts.faults.push(Fault { kind, what, nodes: vec![0], began: SECOND, ended: None });
        }
        let lifetime = object.max_age + object.stale_while_revalidate;
        let seen = lab.seen(fetch, (1 + lifetime + after_s) * SECOND, "skerry; hit; ttl=-1");
        let verdict = verdict(&mut NeverTooOld::default(), &lab, &seen);
        match expected {
            Some(text) => assert!(verdict.as_deref().is_some_and(|what| what.contains(text))),
            None => assert_eq!(verdict, None),
        }
    }

    #[test]
    fn within_lifetime_and_allowed_stale_time_is_fine() {
        check(0, false, None);
    }

    #[test]
    fn beyond_them_is_named() {
        check(4, false, Some("ms old, its origin allowed"));
    }

    #[test]
    fn a_failing_origin_allows_stale_if_error_and_not_more() {
        check(30, true, None);
        check(70, true, Some("ms old, its origin allowed"));
    }
}
