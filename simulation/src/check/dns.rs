//! DNS answers follow the nodes, and clients follow the answers.
//!
//! A node that dies is out after three missed heartbeats, and the others read that at that moment. A node
//! that drains says so at once. While Redis is away, or a name server is cut off from it, answers stay as they
//! are, so that they are not checked then.

use super::{CheckContext, Checker, Findings, Observation};
use crate::journal::{DnsAnswer, Facts, Micros, NodeId, SECOND};

/// No answer names a node that has died or drains; see the module documentation.
#[derive(Default)]
pub struct AnswersNameLiveNodes(Findings);

impl Checker for AnswersNameLiveNodes {
    fn name(&self) -> &'static str {
        "live answers"
    }

    fn promise(&self) -> &'static str {
        "no DNS answer names a node that died more than 3.25 s before or began to drain more than 2 s before"
    }

    fn end(&mut self, context: CheckContext) {
        for answer in &context.facts.dns_answers {
            self.0.count_check();
            for node in &answer.nodes {
                if let Some((since, why)) = gone(context.facts, *node, answer) {
                    let (server, node) = (&context.nodes[answer.server], &context.nodes[*node]);
                    let country = context.countries[answer.country].code;
                    let subject = format!("answer of {server} for a client in {country}");
                    let ms = (answer.at - since) / 1000;
                    let what = format!("names {node}, which {why} {ms} ms before");
                    self.0.record_violation(answer.at, subject, what);
                }
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

/// Since when the node should not have been in the answer any more, and why.
fn gone(facts: &Facts, node: NodeId, answer: &DnsAnswer) -> Option<(Micros, &'static str)> {
    let asked = answer.at.saturating_sub(answer.took);
    let is_undisturbed = |since: Micros| !cannot_know(facts, answer.server, since, answer.at);
    if let Some(died) = dead_since(facts, node, asked) {
        return (died + OUT_AFTER < asked && is_undisturbed(died)).then_some((died, "had died"));
    }
    let drains = |began: Micros| {
        let stopped = facts.process_events.iter();
        let stopped = { stopped }.any(|it| it.node == node && (began..asked).contains(&it.at));
        !stopped && began + DRAINED_AFTER < asked && is_undisturbed(began)
    };
    let faults = facts.faults.iter().filter(|fault| fault.kind == DRAIN);
    let mut drain = faults.filter(|fault| fault.nodes.contains(&node) && fault.began < asked);
    drain.find(|fault| drains(fault.began)).map(|fault| (fault.began, "had begun to drain"))
}

/// Clients leave a node that has died after the expiry and a TTL.
pub struct ClientsFollowAnswers {
    /// `None`: clients do not use DNS.
    ttl: Option<Micros>,
    findings: Findings,
}

impl ClientsFollowAnswers {
    /// A checker of clients that get answers with this TTL in seconds; 0: they use no DNS.
    pub fn new(ttl_s: u64) -> Self {
        let ttl = (ttl_s > 0).then_some(ttl_s * SECOND);
        ClientsFollowAnswers { ttl, findings: Findings::default() }
    }
}

impl Checker for ClientsFollowAnswers {
    fn name(&self) -> &'static str {
        "clients follow"
    }

    fn promise(&self) -> &'static str {
        "no client connects to a node that died more than 3.25 s and a TTL before"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let Some(ttl) = self.ttl else { return };
        self.findings.count_check();
        let (facts, sent) = (context.facts, observation.sent);
        let Some(died) = dead_since(facts, observation.node, sent) else { return };
        let is_late = died + OUT_AFTER + ttl < sent;
        let others =
            (0..context.nodes.len()).filter(|node| dead_since(facts, *node, sent).is_none());
        let disturbed = { others }.all(|node| cannot_know(facts, node, died, sent));
        if is_late && !disturbed {
            let what = format!("connects {} ms after the node had died", (sent - died) / 1000);
            self.findings.report(context, observation, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

/// Since when a node has not been running. `None`: it runs.
fn dead_since(facts: &Facts, node: NodeId, at: Micros) -> Option<Micros> {
    let events = facts.process_events.iter().rev();
    let last = { events }.find(|event| event.node == node && event.at <= at)?;
    (!last.is_start).then_some(last.at)
}

/// Whether a name server may not have heard of a change, because of a fault other than the death or drain of nodes.
fn cannot_know(facts: &Facts, server: NodeId, from: Micros, to: Micros) -> bool {
    facts.faults.iter().any(|fault| {
        !["node-kill", DRAIN].contains(&&*fault.kind)
            && fault.nodes.contains(&server)
            && fault.overlaps(from.saturating_sub(RECOVERY), to, RECOVERY)
    })
}

const DRAIN: &str = "node-drain";
/// Three missed heartbeats (3 s) after the last one, which came up to 1 s before the death. Then the way of Redis' reply to the
/// name server (0.13 s to Tokyo), to which Redis adds up to 0.1 s before it ends a read that waits.
const OUT_AFTER: Micros = 3_250_000;
/// A node that drains says so at once: the next heartbeat of the name server (1 s), two round trips to Redis, and a
/// busy machine.
const DRAINED_AFTER: Micros = 2 * SECOND;
/// After Redis was away, nobody goes out before all nodes can have connected again.
const RECOVERY: Micros = 12 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, verdict};
    use crate::journal::{Fault, ProcessEvent};
    use crate::plan::object::Class;

    fn answer(at_s: u64) -> DnsAnswer {
        DnsAnswer { at: at_s * SECOND, country: 0, server: 1, nodes: vec![0], took: SECOND / 10 }
    }

    fn event(at_s: u64, is_start: bool) -> ProcessEvent {
        ProcessEvent { node: 0, at: at_s * SECOND, is_start }
    }

    fn fault(kind: &str, node: NodeId, began_s: u64) -> Fault {
        let (what, nodes, began) = (String::new(), vec![node], began_s * SECOND);
        Fault { kind: kind.to_owned(), what, nodes, began, ..Fault::default() }
    }

    #[track_caller]
    fn check(at_s: u64, change: impl FnOnce(&mut Facts), expected: Option<&str>) {
        let mut facts = Facts { process_events: vec![event(0, true)], ..Facts::default() };
        change(&mut facts);
        assert_eq!(gone(&facts, 0, &answer(at_s)).map(|(_, why)| why), expected);
    }

    #[test]
    fn an_answer_that_names_a_dead_node_after_its_expiry_is_reported() {
        let died = |facts: &mut Facts| facts.process_events.push(event(20, false));
        check(10, |_| {}, None);
        check(23, died, None);
        check(24, died, Some("had died"));
        let restarted = |facts: &mut Facts| {
            died(facts);
            facts.process_events.push(event(24, true));
        };
        check(25, restarted, None);
        let without_redis = |facts: &mut Facts| {
            died(facts);
            facts.faults.push(fault("redis-kill", 1, 15));
        };
        check(40, without_redis, None);
    }

    #[test]
    fn an_answer_that_names_a_draining_node_is_reported() {
        let drains = |facts: &mut Facts| facts.faults.push(fault(DRAIN, 0, 20));
        check(22, drains, None);
        check(23, drains, Some("had begun to drain"));
        check(23, |facts| facts.faults.push(fault(DRAIN, 1, 20)), None);
    }

    #[test]
    fn a_client_of_a_dead_node_is_reported_after_a_ttl() {
        let verdict_at = |sent_s: u64| {
            let mut fixture = Fixture::new();
            let object = fixture.object(Class::Static);
            let fetch = fixture.fetch(&object, 0, SECOND);
            let mut observation = fixture.observation(fetch, sent_s * SECOND, "skerry; hit");
            observation.sent = sent_s * SECOND;
            fixture.facts.process_events = vec![event(0, true), event(10, false)];
            verdict(&mut ClientsFollowAnswers::new(3), &fixture, &observation)
        };
        assert_eq!(verdict_at(16), None);
        assert!(verdict_at(17).expect("reported").contains("connects 7000 ms after"));
    }
}
