//! `Age` and `Cache-Status` agree with the journal (RFC 9111 §5.1, RFC 9211).

use super::{CacheStatus, CheckContext, Checker, Findings, Observation, ObservedResponse};
use crate::journal::{Fetch, Micros, NodeId, SECOND};
use crate::plan::object::ObjectId;
use std::collections::HashMap;

/// Checks `Age` and `Cache-Status`; see the module documentation.
#[derive(Default)]
pub struct TruthfulStatus {
    findings: Findings,
    /// The client requests for each object at the nodes that use each other's responses. Any of them may have
    /// caused an upstream request.
    requests: HashMap<(Vec<NodeId>, ObjectId), Vec<Span>>,
    /// Hits whose upstream request started after the client's request. They are correct only if another
    /// client's request caused it.
    late_hits: Vec<(Observation, Micros, String)>,
}

/// A client request: its number, and the times of its start and end.
type Span = (usize, Micros, Micros);

impl Checker for TruthfulStatus {
    fn name(&self) -> &'static str {
        "truthful status"
    }

    fn promise(&self) -> &'static str {
        "Age and Cache-Status agree with what the origin saw"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let sources = context.sources[observation.node].clone();
        let requests = self.requests.entry((sources, observation.object)).or_default();
        requests.push((observation.number, observation.sent, observation.done));
        let Ok(response) = &observation.outcome else { return };
        self.findings.count_check();
        if let Err(what) = check(context, observation, response) {
            self.findings.report(context, observation, what);
        }
        let fetch = response.fetch.and_then(|serial| context.facts.fetch(serial));
        if let Some(fetch) =
            fetch.filter(|fetch| observation.is_hit() && fetch.began > observation.sent)
        {
            let after = (fetch.began - observation.sent) / 1000;
            let what = format!(
                "Cache-Status has hit, but upstream request {} started {after} ms after this request, and \
                 no other request caused it",
                fetch.serial
            );
            self.late_hits.push((observation.clone(), fetch.began, what));
        }
    }

    fn end(&mut self, context: CheckContext) {
        for (observation, began, what) in std::mem::take(&mut self.late_hits) {
            let sources = context.sources[observation.node].clone();
            let others = self.requests.get(&(sources, observation.object)).into_iter().flatten();
            let may_have_caused = |(number, sent, done): &&Span| {
                // A background revalidation continues after the response to its client.
                *number != observation.number && *sent <= began && *done + SECOND >= began
            };
            if others.clone().find(may_have_caused).is_none() {
                self.findings.report(context, &observation, what);
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

fn check(
    context: CheckContext,
    observation: &Observation,
    response: &ObservedResponse,
) -> Result<(), String> {
    let statuses = observation.cache_statuses();
    let status = statuses.last().ok_or("the response has no Cache-Status")?;
    if statuses.iter().any(|status| status.hit && status.fwd.is_some()) {
        return Err("Cache-Status has both hit and fwd".to_owned());
    }
    let fetch = response.fetch.and_then(|serial| context.facts.fetch(serial));
    let Some(fetch) = fetch else { return Ok(()) };
    check_origin(context, observation, &statuses, fetch)?;
    check_age(context, observation, response, status, fetch)?;
    check_ttl(context, observation, status, fetch)
}

/// Checks that the upstream response of a hit came before it, and that a request that every cache has forwarded,
/// and none has collapsed, has its own upstream request.
fn check_origin(
    context: CheckContext,
    observation: &Observation,
    statuses: &[CacheStatus],
    fetch: &Fetch,
) -> Result<(), String> {
    let is_hit = statuses.iter().any(|status| status.hit);
    if is_hit && fetch.answered.is_some_and(|answered| answered > observation.first_byte) {
        let serial = fetch.serial;
        return Err(format!(
            "Cache-Status has hit, but the response to upstream request {serial} came later"
        ));
    }
    // During a fault, a forwarded request may not have arrived at the origin.
    let disturbed =
        context.disturbed(observation.node, observation.sent, observation.done, 10 * SECOND);
    let is_forwarded = statuses.iter().all(|status| status.fwd.is_some() && !status.collapsed);
    if is_forwarded && !disturbed && !has_upstream_request(context, observation) {
        return Err(
            "Cache-Status has fwd, but the node sent no upstream request for the object".to_owned()
        );
    }
    Ok(())
}

fn has_upstream_request(context: CheckContext, observation: &Observation) -> bool {
    let same = |fetch: &&Fetch| {
        fetch.object == observation.object && context.is_for(fetch, observation.node)
    };
    let meanwhile = |fetch: &Fetch| {
        let ended = fetch.ended.unwrap_or(Micros::MAX);
        fetch.began <= observation.done && ended.saturating_add(SECOND) >= observation.sent
    };
    // The newest requests are at the end of the journal: search backwards.
    context.facts.fetches.iter().rev().filter(same).any(meanwhile)
}

fn check_age(
    context: CheckContext,
    observation: &Observation,
    response: &ObservedResponse,
    status: &CacheStatus,
    fetch: &Fetch,
) -> Result<(), String> {
    let Some(answered) = fetch.answered else { return Ok(()) };
    let at_least = (observation.sent.saturating_sub(answered) / SECOND).saturating_sub(1);
    // Age counts from when the node sent its request (RFC 9111 §4.2.3).
    let earliest_send = context.earliest_send(fetch);
    let at_most = observation.first_byte.saturating_sub(earliest_send) / SECOND + AGE_SLACK_S;
    match response.age {
        Some(age) if age < at_least => {
            Err(format!("Age is {age}, but the response is at least {at_least} s old"))
        }
        Some(age) if age > at_most => {
            Err(format!("Age is {age}, but the response is at most {at_most} s old"))
        }
        None if status.hit => Err("a hit has no Age".to_owned()),
        _ => Ok(()),
    }
}

/// Checks `ttl` of a hit against `max-age`. Responses that may have been soft-purged are skipped.
fn check_ttl(
    context: CheckContext,
    observation: &Observation,
    status: &CacheStatus,
    fetch: &Fetch,
) -> Result<(), String> {
    let (Some(ttl), Some(answered)) = (status.ttl.filter(|_| status.hit), fetch.answered) else {
        return Ok(());
    };
    let object = context.object(observation);
    // A node that may have missed purges marks all its stored responses stale.
    let may_be_marked_stale =
        context.facts.purges.iter().any(|purge| purge.soft && purge.scope.covers(object))
            || context.disturbed(observation.node, fetch.began, observation.done, 60 * SECOND);
    let age = (observation.first_byte.saturating_sub(answered) / SECOND) as i64;
    let expected = object.max_age as i64 - age;
    if object.class.is_shared() && !may_be_marked_stale && (ttl - expected).abs() > TTL_SLACK_S {
        return Err(format!("ttl is {ttl}, but {expected} s of the lifetime remain"));
    }
    Ok(())
}

/// Rounding at node and client, and delays of a busy machine.
const AGE_SLACK_S: u64 = 3;
/// Rounding at node and client, and the upstream round trip.
const TTL_SLACK_S: i64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, response, verdict};
    use crate::plan::object::Class;

    fn check(sent: Micros, status: &str, age: Option<u64>, expected: Option<&str>) {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Static);
        let fetch = fixture.fetch(&object, 0, 10 * SECOND);
        let status = status.replace("TTL", &(object.max_age - 20).to_string());
        let mut observation = fixture.observation(fetch, sent, &status);
        response(&mut observation).age = age;
        let verdict = verdict(&mut TruthfulStatus::default(), &fixture, &observation);
        match expected {
            Some(text) => assert!(verdict.as_deref().is_some_and(|what| what.contains(text))),
            None => assert_eq!(verdict, None),
        }
    }

    #[test]
    fn a_correct_hit_and_a_correct_miss_are_accepted() {
        check(30 * SECOND, "skerry; hit; ttl=TTL", Some(20), None);
        check(10 * SECOND - 500, "skerry; fwd=uri-miss; stored", None, None);
    }

    #[test]
    fn a_hit_that_caused_its_upstream_request_is_reported() {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Static);
        let fetch = fixture.fetch(&object, 0, 10 * SECOND);
        let late_hit = fixture.observation(fetch, 9 * SECOND, "skerry; hit");
        let check = |others: &[Observation], expected: u64| {
            let mut checker = TruthfulStatus::default();
            others
                .iter()
                .chain([&late_hit])
                .for_each(|observation| checker.observe(fixture.context(), observation));
            checker.end(fixture.context());
            assert_eq!(checker.findings().broken, expected, "{:?}", checker.findings());
        };
        check(&[], 1);
        let mut leader = fixture.observation(fetch, 9 * SECOND + 1, "skerry; fwd=uri-miss");
        leader.number = 2;
        check(&[leader], 0);
    }

    #[test]
    fn a_hit_on_a_later_upstream_response_is_reported() {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Static);
        let fetch = fixture.fetch(&object, 0, 10 * SECOND);
        let mut observation = fixture.observation(fetch, 9 * SECOND, "skerry; hit");
        observation.first_byte = 10 * SECOND;
        let verdict = verdict(&mut TruthfulStatus::default(), &fixture, &observation);
        assert!(verdict.is_some_and(|what| what.contains("came later")));
    }

    #[test]
    fn a_miss_without_an_upstream_request_is_reported() {
        check(30 * SECOND, "skerry; fwd=uri-miss", Some(20), Some("sent no upstream request"));
    }

    #[test]
    fn a_response_of_another_node_needs_an_upstream_request_of_the_region() {
        let check = |status: &str, node: NodeId, has_peers: bool, expected: Option<&str>| {
            let mut fixture = if has_peers { Fixture::with_peers() } else { Fixture::new() };
            let object = fixture.object(Class::Static);
            let fetch = fixture.fetch(&object, 0, 10 * SECOND);
            let mut observation = fixture.observation(fetch, 10 * SECOND - 500, status);
            (observation.node, observation.first_byte) = (node, 10 * SECOND);
            response(&mut observation).age = None;
            let found = verdict(&mut TruthfulStatus::default(), &fixture, &observation);
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()));
        };
        let filled = "skerry; fwd=uri-miss; stored, skerry; fwd=uri-miss";
        check(filled, 1, true, None);
        check(filled, 1, false, Some("sent no upstream request"));
        check("skerry; hit; ttl=9, skerry; fwd=uri-miss", 1, true, Some("came later"));
    }

    #[test]
    fn a_wrong_age_is_reported() {
        check(30 * SECOND, "skerry; hit; ttl=TTL", Some(3), Some("Age is 3"));
        check(30 * SECOND, "skerry; hit; ttl=TTL", Some(300), Some("Age is 300"));
        check(30 * SECOND, "skerry; hit; ttl=TTL", None, Some("has no Age"));
    }

    #[test]
    fn a_wrong_ttl_is_reported() {
        check(30 * SECOND, "skerry; hit; ttl=7", Some(20), Some("ttl is 7"));
    }

    #[test]
    fn missing_and_contradictory_cache_status_are_reported() {
        check(30 * SECOND, "", Some(20), Some("no Cache-Status"));
        check(30 * SECOND, "skerry; hit; fwd=stale", Some(20), Some("both hit and fwd"));
    }
}
