//! `Age` and `Cache-Status` say what really happened (RFC 9111 §5.1, RFC 9211).

use super::{Answer, CacheStatus, Checker, Findings, Seen, World};
use crate::journal::{Fetch, Micros, NodeId, SECOND};
use crate::plan::object::ObjectId;
use std::collections::HashMap;

/// See the module's text.
#[derive(Default)]
pub struct TruthfulStatus {
    findings: Findings,
    /// When requests for an object were under way at a node: any of them may have asked its
    /// origin.
    under_way: HashMap<(NodeId, ObjectId), Vec<Span>>,
    /// Hits on what was fetched after they were sent: right only if another request asked.
    late_hits: Vec<(Seen, Micros, String)>,
}

/// A request: its number, when it was sent, when it was done.
type Span = (usize, Micros, Micros);

impl Checker for TruthfulStatus {
    fn name(&self) -> &'static str {
        "truthful status"
    }

    fn promise(&self) -> &'static str {
        "Age and Cache-Status agree with what the origin saw"
    }

    fn saw(&mut self, world: World, seen: &Seen) {
        let under_way = self.under_way.entry((seen.node, seen.object)).or_default();
        under_way.push((seen.number, seen.sent, seen.done));
        let Ok(answer) = &seen.outcome else { return };
        self.findings.look();
        if let Err(what) = check(world, seen, answer) {
            self.findings.blame(world, seen, what);
        }
        let fetch = answer.fetch.and_then(|serial| world.facts.fetch(serial));
        if let Some(fetch) = fetch.filter(|fetch| seen.is_hit() && fetch.began > seen.sent) {
            let after = (fetch.began - seen.sent) / 1000;
            let what = format!(
                "says hit, but its upstream request {} began {after} ms after it was sent, and \
                 nobody else asked",
                fetch.serial
            );
            self.late_hits.push((seen.clone(), fetch.began, what));
        }
    }

    fn end(&mut self, world: World) {
        for (seen, began, what) in std::mem::take(&mut self.late_hits) {
            let others = self.under_way.get(&(seen.node, seen.object)).into_iter().flatten();
            let asked = |(number, sent, done): &&Span| {
                // A refresh in the background goes on after its client has its answer.
                *number != seen.number && *sent <= began && *done + SECOND >= began
            };
            if others.clone().find(asked).is_none() {
                self.findings.blame(world, &seen, what);
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

fn check(world: World, seen: &Seen, answer: &Answer) -> Result<(), String> {
    let status = seen.cache_status().ok_or("it has no Cache-Status")?;
    if status.hit && status.fwd.is_some() {
        return Err("Cache-Status says both hit and fwd".to_owned());
    }
    let fetch = answer.fetch.and_then(|serial| world.facts.fetch(serial));
    let Some(fetch) = fetch else { return Ok(()) };
    check_origin(world, seen, &status, fetch)?;
    check_age(world, seen, answer, &status, fetch)?;
    check_ttl(world, seen, &status, fetch)
}

/// A hit's upstream request was answered before; what was forwarded alone made its own.
fn check_origin(
    world: World,
    seen: &Seen,
    status: &CacheStatus,
    fetch: &Fetch,
) -> Result<(), String> {
    if status.hit && fetch.answered.is_some_and(|answered| answered > seen.first_byte) {
        let serial = fetch.serial;
        return Err(format!("says hit, but upstream request {serial} was answered later"));
    }
    // What was sent on to a broken link or a dead origin may never have arrived there.
    let disturbed = world.facts.disturbed(seen.node, seen.sent, seen.done, 10 * SECOND);
    if status.fwd.is_some() && !status.collapsed && !disturbed && !asked_upstream(world, seen) {
        return Err("says forwarded, but its node asked no origin for it meanwhile".to_owned());
    }
    Ok(())
}

fn asked_upstream(world: World, seen: &Seen) -> bool {
    let same = |fetch: &&Fetch| fetch.object == seen.object && fetch.node == Some(seen.node);
    let meanwhile = |fetch: &Fetch| {
        let ended = fetch.ended.unwrap_or(Micros::MAX);
        fetch.began <= seen.done && ended.saturating_add(SECOND) >= seen.sent
    };
    // The journal grows at its end, and the answer is new: look from there.
    world.facts.fetches.iter().rev().filter(same).any(meanwhile)
}

fn check_age(
    world: World,
    seen: &Seen,
    answer: &Answer,
    status: &CacheStatus,
    fetch: &Fetch,
) -> Result<(), String> {
    let Some(answered) = fetch.answered else { return Ok(()) };
    let at_least = (seen.sent.saturating_sub(answered) / SECOND).saturating_sub(1);
    // Age counts from when the node sent its request (RFC 9111 §4.2.3).
    let sent_after = world.sent_after(fetch);
    let at_most = seen.first_byte.saturating_sub(sent_after) / SECOND + AGE_SLACK_S;
    match answer.age {
        Some(age) if age < at_least => Err(format!("Age is {age}, but it is {at_least} s old")),
        Some(age) if age > at_most => Err(format!("Age is {age}, but it is {at_most} s old")),
        None if status.hit => Err("a hit without Age".to_owned()),
        _ => Ok(()),
    }
}

/// Only for a plain lifetime, and only for hits.
fn check_ttl(world: World, seen: &Seen, status: &CacheStatus, fetch: &Fetch) -> Result<(), String> {
    let (Some(ttl), Some(answered)) = (status.ttl.filter(|_| status.hit), fetch.answered) else {
        return Ok(());
    };
    let object = world.object(seen);
    // A node that may have missed purges marks all that it has stale by itself.
    let soft = world.facts.purges.iter().any(|purge| purge.soft && purge.scope.covers(object))
        || world.facts.disturbed(seen.node, fetch.began, seen.done, 60 * SECOND);
    let age = (seen.first_byte.saturating_sub(answered) / SECOND) as i64;
    let expected = object.max_age as i64 - age;
    if object.class.is_shared() && !soft && (ttl - expected).abs() > TTL_SLACK_S {
        return Err(format!("ttl is {ttl}, but {expected} s of its lifetime are left"));
    }
    Ok(())
}

/// Roundings on both sides, and what a busy machine adds.
const AGE_SLACK_S: u64 = 3;
/// Roundings on both sides, and the upstream round trip.
const TTL_SLACK_S: i64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Lab, answer, verdict};
    use crate::plan::object::Class;

    fn check(sent: Micros, status: &str, age: Option<u64>, expected: Option<&str>) {
        let mut lab = Lab::new();
        let object = lab.object(Class::Static);
        let fetch = lab.fetch(&object, 0, 10 * SECOND);
        let status = status.replace("TTL", &(object.max_age - 20).to_string());
        let mut seen = lab.seen(fetch, sent, &status);
        answer(&mut seen).age = age;
        let verdict = verdict(&mut TruthfulStatus::default(), &lab, &seen);
        match expected {
            Some(text) => assert!(verdict.as_deref().is_some_and(|what| what.contains(text))),
            None => assert_eq!(verdict, None),
        }
    }

    #[test]
    fn a_true_hit_and_a_true_miss_are_fine() {
        check(30 * SECOND, "skerry; hit; ttl=TTL", Some(20), None);
        check(10 * SECOND - 500, "skerry; fwd=uri-miss; stored", None, None);
    }

    #[test]
    fn a_hit_that_asked_its_origin_itself_is_named() {
        let mut lab = Lab::new();
        let object = lab.object(Class::Static);
        let fetch = lab.fetch(&object, 0, 10 * SECOND);
        let late_hit = lab.seen(fetch, 9 * SECOND, "skerry; hit");
        let check = |others: &[Seen], expected: u64| {
            let mut checker = TruthfulStatus::default();
            others.iter().chain([&late_hit]).for_each(|seen| checker.saw(lab.world(), seen));
            checker.end(lab.world());
            assert_eq!(checker.findings().broken, expected, "{:?}", checker.findings());
        };
        check(&[], 1);
        let mut leader = lab.seen(fetch, 9 * SECOND + 1, "skerry; fwd=uri-miss");
        leader.number = 2;
        check(&[leader], 0);
    }

    #[test]
    fn a_hit_on_what_was_answered_later_is_named() {
        let mut lab = Lab::new();
        let object = lab.object(Class::Static);
        let fetch = lab.fetch(&object, 0, 10 * SECOND);
        let mut seen = lab.seen(fetch, 9 * SECOND, "skerry; hit");
        seen.first_byte = 10 * SECOND;
        let verdict = verdict(&mut TruthfulStatus::default(), &lab, &seen);
        assert!(verdict.is_some_and(|what| what.contains("was answered later")));
    }

    #[test]
    fn a_miss_that_asked_nobody_is_named() {
        check(30 * SECOND, "skerry; fwd=uri-miss", Some(20), Some("asked no origin"));
    }

    #[test]
    fn a_wrong_age_is_named() {
        check(30 * SECOND, "skerry; hit; ttl=TTL", Some(3), Some("Age is 3"));
        check(30 * SECOND, "skerry; hit; ttl=TTL", Some(300), Some("Age is 300"));
        check(30 * SECOND, "skerry; hit; ttl=TTL", None, Some("without Age"));
    }

    #[test]
    fn a_wrong_ttl_is_named() {
        check(30 * SECOND, "skerry; hit; ttl=7", Some(20), Some("ttl is 7"));
    }

    #[test]
    fn saying_nothing_or_both_is_named() {
        check(30 * SECOND, "", Some(20), Some("no Cache-Status"));
        check(30 * SECOND, "skerry; hit; fwd=stale", Some(20), Some("both hit and fwd"));
    }
}
