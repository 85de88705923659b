//! A region asks the origins about once for a response, whichever of its nodes the clients come to.
//!
//! The promise is checked at the end, from the requests that the origins recorded. A request for a whole response that a node
//! of the region got before, and may still use, is one too many. Some are right: an owner that is late by 250 ms is
//! passed over, and for a moment after a purge nodes may not agree on what they may use. So a region may ask again
//! for [`REPEATED_PERCENT`] of its responses, and requests around purges and faults do not count. Large objects do
//! not count either: the parts of them that are requested depend on the clients.

use super::{CheckContext, Checker, Findings};
use crate::journal::{Fetch, Micros, NodeId, SECOND, Scope};
use crate::plan::object::{Class, ObjectId};
use std::collections::HashMap;

/// The requests of a region for whole responses.
#[derive(Debug, Default, PartialEq)]
pub struct RegionFills {
    /// A node of the region.
    pub node: NodeId,
    /// Requests for responses that no node of the region could use.
    pub needed: u64,
    /// Requests for responses that a node of the region could use: when, and what.
    pub repeated: Vec<(Micros, String)>,
}

impl RegionFills {
    /// Whether the region has asked again too often.
    fn is_too_often(&self) -> bool {
        self.repeated.len() as u64 > REPEATED_FREE + self.needed * REPEATED_PERCENT / 100
    }
}

/// The requests of each region whose nodes ask each other, in the order of the regions.
pub fn region_fills(context: CheckContext) -> Vec<RegionFills> {
    let is_first = |node: &NodeId| context.regions[*node].first() == Some(node);
    let has_peers = |node: &NodeId| context.regions[*node].len() > 1;
    let regions = (0..context.nodes.len()).filter(|node| is_first(node) && has_peers(node));
    regions.map(|node| fills_of_region(context, node)).collect()
}

/// The response that a region has for a key.
struct KnownResponse<'a> {
    fill: &'a Fetch,
    fresh_until: Micros,
}

fn fills_of_region(context: CheckContext, node: NodeId) -> RegionFills {
    let mut fills = RegionFills { node, ..RegionFills::default() };
    let mut known: HashMap<Key<'_>, KnownResponse<'_>> = HashMap::new();
    let is_own = |fetch: &Fetch| fetch.node.is_some_and(|it| context.regions[node].contains(&it));
    let is_counted = |fetch: &&Fetch| is_own(fetch) && is_whole(context, fetch);
    for fetch in context.facts.fetches.iter().filter(is_counted) {
        let key = key(context, fetch);
        let object = context.catalog.get(fetch.object);
        let fresh_until = fetch.answered.unwrap_or(fetch.began) + object.max_age * SECOND;
        if !fetch.conditional {
            let before = known.get(&key).filter(|known| is_repeated(context, node, known, fetch));
            match before {
                Some(before) => fills.count_repeated(context, before.fill, fetch),
                None => fills.needed += 1,
            }
        }
        let fresh_until = fresh_until.saturating_sub(ROUNDING);
        known.insert(key, KnownResponse { fill: fetch, fresh_until });
    }
    fills
}

impl RegionFills {
    fn count_repeated(&mut self, context: CheckContext, before: &Fetch, fetch: &Fetch) {
        let name = |fetch: &Fetch| fetch.node.map_or("", |node| &context.nodes[node]);
        let path = context.catalog.get(fetch.object).path();
        // Two nodes may have asked at the same moment: the later one is the first in the list then.
        let ms = fetch.began.saturating_sub(before.began) / 1000;
        let (again, first) = (name(fetch), name(before));
        let what = format!("{again} requested {path} {ms} ms after {first} had done so");
        self.repeated.push((fetch.began, what));
    }
}

type Key<'a> = (ObjectId, Option<&'a str>, Option<usize>);

/// The cache key of a request. Groups of visitors have origins and keys of their own.
fn key<'a>(context: CheckContext, fetch: &'a Fetch) -> Key<'a> {
    let has_groups = context.has_groups(context.catalog.get(fetch.object));
    (fetch.object, fetch.scheme.as_deref(), has_groups.then_some(fetch.origin))
}

/// Whether the response to a request is whole and may be stored, or confirms one that is.
fn is_whole(context: CheckContext, fetch: &Fetch) -> bool {
    let class = context.catalog.get(fetch.object).class;
    let is_answered = fetch.status == 200 || fetch.status == 304 && fetch.conditional;
    let is_stored = class.is_shared() && class != Class::Large;
    is_stored && is_answered && fetch.whole && fetch.range.is_none() && !fetch.head
}

/// Whether a node of the region could have used the response that the region has.
fn is_repeated(
    context: CheckContext,
    node: NodeId,
    known: &KnownResponse<'_>,
    fetch: &Fetch,
) -> bool {
    let (since, at) = (known.fill.began, fetch.began);
    at < known.fresh_until
        && !is_purged(context, known.fill, fetch)
        && !context.disturbed(node, since, at, RECOVERY)
}

fn is_purged(context: CheckContext, before: &Fetch, fetch: &Fetch) -> bool {
    let object = context.catalog.get(fetch.object);
    let (since, at) = (before.began.saturating_sub(PURGE_SETTLES), fetch.began);
    let covers = |scope: &Scope| scope.covers(object);
    context.facts.purges.iter().any(|purge| {
        let is_recent = (at.saturating_sub(PURGE_SETTLES)..=at).contains(&purge.issued);
        is_recent || covers(&purge.scope) && (since..=at).contains(&purge.issued)
    })
}

/// Rounding of lifetimes to seconds, and the way of the response.
const ROUNDING: Micros = 2 * SECOND;
/// How long nodes may differ in the purges that they have applied: a wake-up over the longest round trip, several
/// times, and a busy machine.
const PURGE_SETTLES: Micros = 3 * SECOND;
/// How long a region may take after a fault until its nodes agree on the owners of all keys.
const RECOVERY: Micros = 10 * SECOND;
/// The requests that may be one too many, in percent of those that are needed.
const REPEATED_PERCENT: u64 = 5;
/// The requests that may be one too many in a region that needs few.
const REPEATED_FREE: u64 = 3;

/// Checks that a region fetches a response about once; see the module documentation.
#[derive(Default)]
pub struct OneFillInRegion(Findings);

impl Checker for OneFillInRegion {
    fn name(&self) -> &'static str {
        "one fill a region"
    }

    fn promise(&self) -> &'static str {
        "nodes of a region ask an origin again for at most 5 % of the responses that one of them has"
    }

    fn end(&mut self, context: CheckContext) {
        for fills in region_fills(context) {
            let RegionFills { node, needed, repeated } = &fills;
            (0..*needed).for_each(|_| self.0.count_check());
            if !fills.is_too_often() {
                continue;
            }
            let count = repeated.len();
            let region = format!("region of {}, {count} beside {needed}", context.nodes[*node]);
            for (at, what) in repeated {
                self.0.record_violation(*at, region.clone(), what.clone());
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::Fixture;
    use crate::journal::{Fault, Purge};

    /// Requests by both nodes of a region for ten objects, the second ones five seconds after the first ones.
    fn fetched(class: Class) -> Fixture {
        let mut fixture = Fixture::with_peers();
        let objects: Vec<_> = { fixture.catalog.objects.iter() }
            .filter(|object| object.class == class)
            .take(10)
            .cloned()
            .collect();
        for (node, at) in [(0, SECOND), (1, 6 * SECOND)] {
            for object in &objects {
                let serial = fixture.fetch(object, 0, at);
                fixture.facts.fetches[serial as usize - 1].node = Some(node);
            }
        }
        fixture
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Fixture), needed: u64, repeated: usize) {
        let mut fixture = fetched(Class::Static);
        change(&mut fixture);
        let fills = region_fills(fixture.context());
        assert_eq!((fills[0].needed, fills[0].repeated.len()), (needed, repeated));
        let mut checker = OneFillInRegion::default();
        checker.end(fixture.context());
        assert_eq!(checker.findings().broken, repeated as u64, "{:?}", checker.findings());
    }

    #[test]
    fn a_region_that_requests_what_it_has_is_reported() {
        check(|_| {}, 10, 10);
        let mut fixture = fetched(Class::Static);
        fixture.facts.fetches.truncate(13);
        assert!(!region_fills(fixture.context())[0].is_too_often(), "three are free");
    }

    #[test]
    fn nodes_that_do_not_ask_each_other_are_not_checked() {
        let mut fixture = fetched(Class::Static);
        fixture.set_regions(Fixture::new().fleet.regions);
        assert_eq!(region_fills(fixture.context()), []);
    }

    #[test]
    fn a_response_is_requested_again_when_it_is_stale_purged_or_lost() {
        let stale = |fixture: &mut Fixture| {
            for fetch in &mut fixture.facts.fetches[10..] {
                fetch.began += 1000 * SECOND;
            }
        };
        check(stale, 20, 0);
        let purge = |issued_s: u64, scope: Scope| {
            move |fixture: &mut Fixture| {
                fixture.facts.purges.push(Purge {
                    number: 0,
                    id: None,
                    scope,
                    soft: false,
                    via: 0,
                    targets: vec![0, 1],
                    issued: issued_s * SECOND,
                    acknowledged: Vec::new(),
                    propagation_ms: Vec::new(),
                    pending: Vec::new(),
                    complete: true,
                    failed: None,
                });
            }
        };
        check(purge(2, Scope::All), 20, 0);
        check(purge(2, Scope::Class(Class::Page)), 10, 10);
        check(purge(4, Scope::Class(Class::Page)), 20, 0);
        let fault = |began_s: u64, ended_s: u64| {
            move |fixture: &mut Fixture| {
                let (kind, what) = ("node-pause".to_owned(), String::new());
                let (began, ended) = (began_s * SECOND, Some(ended_s * SECOND));
                let fault = Fault { kind, what, nodes: vec![1], began, ended, ..Fault::default() };
                fixture.facts.faults.push(fault);
            }
        };
        check(fault(2, 3), 20, 0);
        check(fault(20, 30), 10, 10);
    }

    #[test]
    fn a_validation_keeps_a_response_fresh() {
        let validated = |fixture: &mut Fixture| {
            let late: Vec<Fetch> = { fixture.facts.fetches[10..].iter() }
                .map(|fetch| Fetch { began: fetch.began + 5 * SECOND, ..fetch.clone() })
                .collect();
            for fetch in &mut fixture.facts.fetches[10..] {
                (fetch.conditional, fetch.status) = (true, 304);
            }
            fixture.facts.fetches.extend(late);
        };
        check(validated, 10, 10);
    }
}
