//! Invariant 4: a key has at most one fill in flight on a node.
//!
//! Looked at from the origin's side, at the end. Two whole upstream requests of one node for
//! one key that overlap in time are one too many, unless a purge of it came between (the
//! second must not join the first), or something was broken on the way.

use super::{Checker, Findings, World};
use crate::journal::{Fetch, Micros, NodeId, SECOND, Scope};
use crate::plan::object::ObjectId;
use std::collections::HashMap;

/// See the module's text.
#[derive(Default)]
pub struct OneFill(Findings);

/// The unit that is filled at most once at a time. Ranges of large objects count each for itself, and
/// so do http and https. A range of a version that is gone fills nothing: the node asks anew at
/// once, while the origin may still hand over what is thrown away. It counts among its like.
type Key<'a> = (NodeId, ObjectId, Option<(u64, u64)>, Option<&'a str>, Option<&'a str>);

impl Checker for OneFill {
    fn name(&self) -> &'static str {
        "one fill"
    }

    fn promise(&self) -> &'static str {
        "a node asks for a key once at a time, however many clients want it"
    }

    fn end(&mut self, world: World) {
        let mut by_key: HashMap<Key<'_>, Vec<&Fetch>> = HashMap::new();
        for fetch in world.facts.fetches.iter().filter(|fetch| counts(world, fetch)) {
            let Some(node) = fetch.node else { continue };
            let scheme = fetch.scheme.as_deref();
            let key = (node, fetch.object, fetch.range, scheme, fetch.refused());
            by_key.entry(key).or_default().push(fetch);
        }
        for ((node, ..), fetches) in by_key {
            self.check_key(world, node, &fetches);
        }
        self.0.violations.sort_by_key(|violation| violation.at);
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

impl OneFill {
    /// `fetches` in the order in which they began.
    fn check_key(&mut self, world: World, node: NodeId, fetches: &[&Fetch]) {
        let mut running: Option<&Fetch> = None;
        for &fetch in fetches {
            self.0.look();
            if let Some(earlier) = running.filter(|earlier| overlaps(earlier, fetch))
                && !is_excused(world, node, earlier, fetch)
            {
                self.blame(world, node, earlier, fetch);
            }
            let ends_later = |earlier: &&Fetch| earlier.ended > fetch.ended;
            running = running.filter(ends_later).or(Some(fetch));
        }
    }

    fn blame(&mut self, world: World, node: NodeId, earlier: &Fetch, later: &Fetch) {
        let object = world.catalog.get(later.object);
        let subject = format!("{} fetching {}", world.nodes[node], object.path());
        let into = (later.began - earlier.began) / 1000;
        let (first, second) = (describe(earlier), describe(later));
        let what = format!("{second} began {into} ms into {first}, which went on");
        self.0.break_promise(later.began, subject, what);
    }
}

/// `upstream request 7 (https, bytes 0-99 of "5-2-0", answered 206 of version 3)`.
fn describe(fetch: &Fetch) -> String {
    let scheme = fetch.scheme.as_deref().unwrap_or("unknown scheme");
    let bound = fetch.bound.as_ref().map(|tag| format!(" of {tag}")).unwrap_or_default();
    let range = fetch.range.map(|(from, to)| format!("bytes {from}-{to}{bound}, "));
    let Fetch { serial, status, version, .. } = fetch;
    let range = range.unwrap_or_default();
    format!("upstream request {serial} ({scheme}, {range}answered {status} of version {version})")
}

/// Only whole answers for what a shared cache stores. One that broke off was given up, and
/// the origin learns of that later than the node.
fn counts(world: World, fetch: &Fetch) -> bool {
    world.catalog.get(fetch.object).class.is_shared() && fetch.whole && fetch.status < 400
}

fn overlaps(earlier: &Fetch, later: &Fetch) -> bool {
    earlier.ended.is_some_and(|ended| ended > later.began)
}

fn is_excused(world: World, node: NodeId, earlier: &Fetch, later: &Fetch) -> bool {
    let object = world.catalog.get(later.object);
    // Until its head has come, a response may have any tag.
    let tags_unknown = earlier.answered.is_none_or(|at| world.sent_after(later) <= at);
    let may_cover =
        |scope: &Scope| scope.covers(object) || tags_unknown && matches!(scope, Scope::Group(_));
    let purged_between = world.facts.purges.iter().any(|purge| {
        let settled = purge.acknowledged_by(node).unwrap_or(Micros::MAX);
        // What a purge met on its way to the origin is older than the purge.
        let came_after = settled >= world.sent_after(earlier);
        may_cover(&purge.scope) && purge.issued <= later.began && came_after
    });
    purged_between || world.facts.disturbed(node, earlier.began, later.began, SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Lab;
    use crate::journal::{LifeEvent, Purge};
    use crate::plan::object::Class;

    fn check(class: Class, second_at: Micros, change: impl FnOnce(&mut Lab), broken: u64) {
        let mut lab = Lab::new();
        let object = lab.object(class);
        lab.fetch(&object, 0, SECOND);
        lab.fetch(&object, 0, second_at);
        change(&mut lab);
        let mut checker = OneFill::default();
        checker.end(lab.world());
        assert_eq!(checker.findings().broken, broken, "{:?}", checker.findings());
    }

    #[test]
    fn one_after_the_other_is_fine_and_two_at_once_are_named() {
        check(Class::Static, SECOND + 100_000, |_| (), 0);
        check(Class::Static, SECOND + 50_000, |_| (), 1);
    }

    #[test]
    fn what_may_not_be_shared_is_not_collapsed() {
        check(Class::Private, SECOND + 50_000, |_| (), 0);
    }

    #[test]
    fn two_nodes_fill_each_for_itself() {
        check(Class::Static, SECOND + 50_000, |lab| lab.facts.fetches[1].node = Some(1), 0);
    }

    #[test]
    fn two_ranges_are_two_keys_and_the_same_range_is_one() {
        let ranges = |second| {
            move |lab: &mut Lab| {
                lab.facts.fetches[0].range = Some((0, 9));
                lab.facts.fetches[1].range = Some(second);
            }
        };
        check(Class::Large, SECOND + 50_000, ranges((10, 19)), 0);
        check(Class::Large, SECOND + 50_000, ranges((0, 9)), 1);
    }

    #[test]
    fn a_range_of_a_version_that_is_gone_is_asked_for_anew_but_not_twice() {
        let bound = |bounds: [(Option<&'static str>, u16); 2]| {
            move |lab: &mut Lab| {
                for (fetch, (bound, status)) in lab.facts.fetches.iter_mut().zip(bounds) {
                    (fetch.range, fetch.status) = (Some((0, 9)), status);
                    fetch.bound = bound.map(str::to_owned);
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
    fn a_purge_between_them_makes_the_second_right() {
        let purged = |scope: Scope| move |lab: &mut Lab| purge(lab, scope);
        check(Class::Static, SECOND + 50_000, purged(Scope::All), 0);
        check(Class::Static, SECOND + 50_000, purged(Scope::Class(Class::Page)), 1);
        // Its tags are not known yet: it might have this one.
        check(Class::Static, SECOND + 50_000, purged(Scope::Group(u32::MAX)), 0);
    }

    fn purge(lab: &mut Lab, scope: Scope) {
        lab.facts.purges.push(Purge {
            number: 0,
            id: None,
            scope,
            soft: false,
            via: 0,
            meant_for: vec![0, 1],
            issued: SECOND + 20_000,
            acknowledged: vec![(0, SECOND + 30_000)],
            propagation_ms: Vec::new(),
            pending: Vec::new(),
            complete: true,
            failed: None,
        });
    }

    #[test]
    fn a_restart_between_them_makes_the_second_right() {
        let restarted = |lab: &mut Lab| {
            lab.facts.lives.push(LifeEvent { node: 0, at: SECOND + 20_000, up: false });
        };
        check(Class::Static, SECOND + 50_000, restarted, 0);
    }
}
