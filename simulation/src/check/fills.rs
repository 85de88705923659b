//! Invariant 4: a node has at most one fill in flight for a key.
//!
//! The promise is checked at the end, from the requests that the origins recorded. Two complete upstream
//! requests of one node for one key must not overlap in time, unless a purge came between them (the
//! second must not join the first) or a fault affected the node.

use super::{CheckContext, Checker, Findings};
use crate::journal::{Fetch, Micros, NodeId, SECOND, Scope};
use crate::plan::object::ObjectId;
use std::collections::HashMap;

/// Checks that fills of one key do not overlap; see the module documentation.
#[derive(Default)]
pub struct OneFill(Findings);

/// Identifies requests of which at most one may fill at a time: node, object, range, scheme, and the `If-Range` value that did
/// not match, if any. A range of an outdated version fills nothing: the node sends a new request while
/// the origin may still be sending the useless response. Such requests are compared among themselves. Groups
/// of visitors have origins and keys of their own.
type Key<'a> =
    (NodeId, ObjectId, Option<(u64, u64)>, Option<&'a str>, Option<&'a str>, Option<usize>);

impl Checker for OneFill {
    fn name(&self) -> &'static str {
        "one fill"
    }

    fn promise(&self) -> &'static str {
        "a node has at most one upstream request for a key at a time, for any number of clients"
    }

    fn end(&mut self, context: CheckContext) {
        let mut by_key: HashMap<Key<'_>, Vec<&Fetch>> = HashMap::new();
        for fetch in context.facts.fetches.iter().filter(|fetch| counts(context, fetch)) {
            let Some(node) = fetch.node else { continue };
            let scheme = fetch.scheme.as_deref();
            let has_groups = context.has_groups(context.catalog.get(fetch.object));
            let group = has_groups.then_some(fetch.origin);
            let key = (node, fetch.object, fetch.range, scheme, fetch.failed_if_range(), group);
            by_key.entry(key).or_default().push(fetch);
        }
        for ((node, ..), fetches) in by_key {
            self.check_key(context, node, &fetches);
        }
        self.0.violations.sort_by_key(|violation| violation.at);
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

impl OneFill {
    /// Checks the upstream requests for one key, ordered by their start.
    fn check_key(&mut self, context: CheckContext, node: NodeId, fetches: &[&Fetch]) {
        let mut running: Option<&Fetch> = None;
        for &fetch in fetches {
            self.0.count_check();
            if let Some(earlier) = running.filter(|earlier| overlaps(earlier, fetch))
                && !is_excused(context, node, earlier, fetch)
            {
                self.report(context, node, earlier, fetch);
            }
            let ends_later = |earlier: &&Fetch| earlier.ended > fetch.ended;
            running = running.filter(ends_later).or(Some(fetch));
        }
    }

    fn report(&mut self, context: CheckContext, node: NodeId, earlier: &Fetch, later: &Fetch) {
        let object = context.catalog.get(later.object);
        let subject = format!("{} fetching {}", context.nodes[node], object.path());
        let into = (later.began - earlier.began) / 1000;
        let (first, second) = (describe(earlier), describe(later));
        let what = format!("{second} started {into} ms after {first}, which was not complete");
        self.0.record_violation(later.began, subject, what);
    }
}

/// `upstream request 7 (https, bytes 0-99 of "5-2-0", status 206, version 3)`.
fn describe(fetch: &Fetch) -> String {
    let scheme = fetch.scheme.as_deref().unwrap_or("unknown scheme");
    let bound = fetch.if_range.as_ref().map(|tag| format!(" of {tag}")).unwrap_or_default();
    let range = fetch.range.map(|(from, to)| format!("bytes {from}-{to}{bound}, "));
    let Fetch { serial, status, version, .. } = fetch;
    let range = range.unwrap_or_default();
    format!("upstream request {serial} ({scheme}, {range}status {status}, version {version})")
}

/// Only complete responses that a shared cache may store count. A node may have given up an incomplete
/// one before its origin noticed.
fn counts(context: CheckContext, fetch: &Fetch) -> bool {
    context.catalog.get(fetch.object).class.is_shared() && fetch.whole && fetch.status < 400
}

fn overlaps(earlier: &Fetch, later: &Fetch) -> bool {
    earlier.ended.is_some_and(|ended| ended > later.began)
}

fn is_excused(context: CheckContext, node: NodeId, earlier: &Fetch, later: &Fetch) -> bool {
    let object = context.catalog.get(later.object);
    // The tags of a response are unknown until its header section arrives, so any tag may match.
    let tags_unknown = earlier.answered.is_none_or(|at| context.earliest_send(later) <= at);
    let may_cover =
        |scope: &Scope| scope.covers(object) || tags_unknown && matches!(scope, Scope::Group(_));
    let purged_between = context.facts.purges.iter().any(|purge| {
        let applied = purge.acknowledged_by(node).unwrap_or(Micros::MAX);
        // A request that was on its way when the purge was applied is older than the purge.
        let may_be_older = applied >= context.earliest_send(earlier);
        may_cover(&purge.scope) && purge.issued <= later.began && may_be_older
    });
    purged_between || context.facts.disturbed(node, earlier.began, later.began, SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Fixture;
    use crate::journal::{ProcessEvent, Purge};
    use crate::plan::object::Class;

    fn check(class: Class, second_at: Micros, change: impl FnOnce(&mut Fixture), broken: u64) {
        let mut fixture = Fixture::new();
        let object = fixture.object(class);
        fixture.fetch(&object, 0, SECOND);
        fixture.fetch(&object, 0, second_at);
        change(&mut fixture);
        let mut checker = OneFill::default();
        checker.end(fixture.context());
        assert_eq!(checker.findings().broken, broken, "{:?}", checker.findings());
    }

    #[test]
    fn sequential_fills_are_accepted_and_overlapping_ones_reported() {
        check(Class::Static, SECOND + 100_000, |_| (), 0);
        check(Class::Static, SECOND + 50_000, |_| (), 1);
    }

    #[test]
    fn private_responses_may_overlap() {
        check(Class::Private, SECOND + 50_000, |_| (), 0);
    }

    #[test]
    fn fills_of_different_nodes_may_overlap() {
        check(Class::Static, SECOND + 50_000, |fixture| fixture.facts.fetches[1].node = Some(1), 0);
    }

    #[test]
    fn different_ranges_are_different_keys() {
        let ranges = |second| {
            move |fixture: &mut Fixture| {
                fixture.facts.fetches[0].range = Some((0, 9));
                fixture.facts.fetches[1].range = Some(second);
            }
        };
        check(Class::Large, SECOND + 50_000, ranges((10, 19)), 0);
        check(Class::Large, SECOND + 50_000, ranges((0, 9)), 1);
    }

    #[test]
    fn a_range_of_an_outdated_version_is_requested_again_but_only_once() {
        let bound = |bounds: [(Option<&'static str>, u16); 2]| {
            move |fixture: &mut Fixture| {
                for (fetch, (bound, status)) in fixture.facts.fetches.iter_mut().zip(bounds) {
                    (fetch.range, fetch.status) = (Some((0, 9)), status);
                    fetch.if_range = bound.map(str::to_owned);
                }
            }
        };
        let check = |bounds, broken| check(Class::Large, SECOND + 50_000, bound(bounds), broken);
        check([(Some("old"), 200), (None, 206)], 0);
        check([(None, 206), (Some("old"), 200)], 0);
        check([(Some("old"), 200), (Some("older"), 200)], 0);
        check([(Some("old"), 200), (Some("old"), 200)], 1);
        check([(None, 206), (Some("new"), 206)], 1);
        check([(Some("new"), 206), (Some("new"), 206)], 1);
        check([(None, 200), (None, 200)], 1);
    }

    #[test]
    fn a_purge_between_two_fills_excuses_the_second() {
        let purged = |scope: Scope| move |fixture: &mut Fixture| purge(fixture, scope);
        check(Class::Static, SECOND + 50_000, purged(Scope::All), 0);
        check(Class::Static, SECOND + 50_000, purged(Scope::Class(Class::Page)), 1);
        // The response's tags are unknown yet, so the tag may match.
        check(Class::Static, SECOND + 50_000, purged(Scope::Group(u32::MAX)), 0);
    }

    fn purge(fixture: &mut Fixture, scope: Scope) {
        fixture.facts.purges.push(Purge {
            number: 0,
            id: None,
            scope,
            soft: false,
            via: 0,
            targets: vec![0, 1],
            issued: SECOND + 20_000,
            acknowledged: vec![(0, SECOND + 30_000)],
            propagation_ms: Vec::new(),
            pending: Vec::new(),
            complete: true,
            failed: None,
        });
    }

    #[test]
    fn a_restart_between_two_fills_excuses_the_second() {
        let restarted = |fixture: &mut Fixture| {
            fixture.facts.process_events.push(ProcessEvent {
                node: 0,
                at: SECOND + 20_000,
                is_start: false,
            });
        };
        check(Class::Static, SECOND + 50_000, restarted, 0);
    }
}
