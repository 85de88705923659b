//! No client gets an error that the scenario does not expect.
//!
//! An error status that the origin itself sent (its `X-Fetch` names that response) is not an error of
//! the node. A partly stored body may end early if its object has changed at the origin: the missing
//! part of the old version is gone, and the new version must not be mixed in.

use super::{CheckContext, Checker, Findings, Observation, ObservedResponse, TRANSIT_MAX};
use crate::client::BODY_BROKE_OFF;
use crate::journal::{Fetch, Micros, ProcessEvent, Purge, SECOND, SIMULATION_PAUSED};
use crate::plan::object::Class;
use crate::plan::tolerance::Excuse;

/// Checks client errors; see the module documentation.
pub struct NoClientErrors {
    excuses: Vec<Excuse>,
    findings: Findings,
}

impl NoClientErrors {
    /// A checker with the expected errors of a scenario.
    pub fn new(excuses: Vec<Excuse>) -> Self {
        NoClientErrors { excuses, findings: Findings::default() }
    }

    fn is_excused(&self, context: CheckContext, observation: &Observation) -> bool {
        let fits = |excuse: &&Excuse| match &observation.outcome {
            Ok(response) => excuse.status.contains(&response.status),
            Err(error) => excuse.broken || excuse.cut_short && error.starts_with(BODY_BROKE_OFF),
        };
        let in_force = |excuse: &Excuse| {
            let grace = (excuse.grace_s * SECOND as f64) as u64;
            context.facts.faults.iter().any(|fault| {
                fault.kind == excuse.during
                    && fault.nodes.contains(&observation.node)
                    && fault.overlaps(observation.sent, observation.done, grace)
            })
        };
        let counts = |excuse: &&Excuse| {
            !excuse.unless_stored || usable_stale_response(context, observation).is_none()
        };
        self.excuses.iter().filter(fits).filter(counts).any(in_force)
    }
}

impl Checker for NoClientErrors {
    fn name(&self) -> &'static str {
        "no client errors"
    }

    fn promise(&self) -> &'static str {
        "no client gets an error that the scenario does not expect"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        self.findings.count_check();
        let what = match &observation.outcome {
            Ok(response) if is_expected(context, observation, response) => return,
            Ok(response) => format!("status {}", response.status),
            Err(error) => format!("no response: {error}"),
        };
        let is_excused =
            self.is_excused(context, observation) || object_changed_meanwhile(context, observation);
        if !is_excused && !is_during_pause(context, observation) {
            let alternative = usable_stale_response(context, observation).map_or(String::new(), |fetch| {
                let ago = observation.sent.saturating_sub(fetch.began) / 1000;
                format!(", although the node got the response to upstream request {} {ago} ms before and may serve it stale", fetch.serial)
            });
            self.findings.report(context, observation, what + &alternative);
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

/// Whether the simulation was paused by the machine, so that timeouts of all processes expired.
fn is_during_pause(context: CheckContext, observation: &Observation) -> bool {
    let mut pauses = context.facts.faults.iter().filter(|fault| fault.kind == SIMULATION_PAUSED);
    pauses.any(|pause| pause.overlaps(observation.sent, observation.done, 15 * SECOND))
}

/// Whether the body ended early because its missing part was requested from the origin after the
/// object had changed there.
fn object_changed_meanwhile(context: CheckContext, observation: &Observation) -> bool {
    let broke_off =
        observation.outcome.as_ref().is_err_and(|error| error.starts_with(BODY_BROKE_OFF));
    let same_object = |fetch: &&Fetch| {
        context.is_for(fetch, observation.node) && fetch.object == observation.object
    };
    let requests = || context.facts.fetches.iter().filter(same_object);
    let mut now =
        requests().filter(|fetch| (observation.sent..=observation.done).contains(&fetch.began));
    let had_another = |now: &Fetch| {
        requests().any(|before| before.began < now.began && before.version < now.version)
    };
    broke_off && context.object(observation).class == Class::Large && now.any(had_another)
}

/// An upstream request whose response the node should have served stale instead of an error: it is
/// complete, for the same key, not older than the node's process, allowed by `stale-if-error`, and
/// not covered by a later hard purge.
fn usable_stale_response<'a>(
    context: CheckContext<'a>,
    observation: &Observation,
) -> Option<&'a Fetch> {
    let object = context.object(observation);
    let started = |event: &&ProcessEvent| {
        event.node == observation.node && event.is_start && event.at < observation.sent
    };
    let started_at =
        context.facts.process_events.iter().rev().find(started).map_or(0, |event| event.at);
    let allowed = (object.max_age + object.stale_if_error).saturating_sub(MARGIN_S) * SECOND;
    let scheme = if observation.tls { "https" } else { "http" };
    // During a fault, a response that the origin has sent may be lost on its way.
    let arrived = |fetch: &Fetch, ended: Micros| {
        !context.facts.disturbed(observation.node, fetch.began, ended + TRANSIT_MAX, 0)
    };
    let is_usable = |fetch: &&Fetch| {
        fetch.object == observation.object
            && fetch.node == Some(observation.node)
            && fetch.scheme.as_deref() == Some(scheme)
            && matches!(fetch.status, 200)
            && fetch.whole
            && fetch.range.is_none()
            && fetch.began > started_at
            && fetch
                .ended
                .is_some_and(|ended| ended + SECOND < observation.sent && arrived(fetch, ended))
            && fetch.answered.is_some_and(|answered| answered + allowed > observation.sent)
    };
    let purged_since = |fetch: &Fetch| {
        let hard = |purge: &&Purge| !purge.soft && purge.scope.covers(object);
        context.facts.purges.iter().filter(hard).any(|purge| {
            purge.issued <= observation.done
                && purge.acknowledged_by(observation.node).unwrap_or(Micros::MAX)
                    >= context.earliest_send(fetch)
        })
    };
    let is_cached = object.class.is_shared() && object.class != Class::Large;
    let stored = context.facts.fetches.iter().rev().find(is_usable).filter(|_| is_cached);
    stored.filter(|fetch| !purged_since(fetch))
}

/// Rounding of `Age` and `Date` to whole seconds.
const MARGIN_S: u64 = 3;

fn is_expected(
    context: CheckContext,
    observation: &Observation,
    response: &ObservedResponse,
) -> bool {
    match response.status {
        200 | 304 => true,
        206 | 416 => observation.range.is_some(),
        status => {
            let fetch = response.fetch.and_then(|serial| context.facts.fetch(serial));
            fetch.is_some_and(|fetch| fetch.status == status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, response, verdict};
    use crate::journal::{Fault, Scope};
    use crate::plan::object::Class;

    fn check(change: impl FnOnce(&mut Fixture, &mut Observation), expected: Option<&str>) {
        check_with(false, change, expected);
    }

    fn check_with(
        unless_stored: bool,
        change: impl FnOnce(&mut Fixture, &mut Observation),
        expected: Option<&str>,
    ) {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Static);
        let fetch = fixture.fetch(&object, 0, SECOND);
        let mut observation = fixture.observation(fetch, 9 * SECOND, "skerry; fwd=miss");
        change(&mut fixture, &mut observation);
        let (during, status) = ("cut".to_owned(), vec![504]);
        let excuse =
            Excuse { during, status, broken: false, cut_short: true, grace_s: 1.0, unless_stored };
        let mut checker = NoClientErrors::new(vec![excuse]);
        assert_eq!(verdict(&mut checker, &fixture, &observation).as_deref(), expected);
    }

    fn cut(node: usize) -> Fault {
        let (kind, what, nodes) = ("cut".to_owned(), String::new(), vec![node]);
        let (began, ended) = (5 * SECOND, Some(8 * SECOND + 500_000));
        Fault { kind, what, nodes, began, ended, ..Fault::default() }
    }

    #[test]
    fn an_error_of_the_node_is_reported() {
        check(|_, observation| response(observation).status = 502, Some("status 502"));
        check(
            |_, observation| observation.outcome = Err("reset".into()),
            Some("no response: reset"),
        );
    }

    #[test]
    fn an_error_status_of_the_origin_is_not_reported() {
        let origins = |fixture: &mut Fixture, observation: &mut Observation| {
            fixture.facts.fetches[0].status = 503;
            response(observation).status = 503;
        };
        check(origins, None);
    }

    #[test]
    fn expected_errors_are_accepted_only_during_their_fault() {
        let during = |node, status| {
            move |fixture: &mut Fixture, observation: &mut Observation| {
                fixture.facts.faults.push(cut(node));
                response(observation).status = status;
            }
        };
        check(during(0, 504), None);
        check(during(0, 502), Some("status 502"));
        check(during(1, 504), Some("status 504"));
        let fails = |error: &'static str| {
            move |fixture: &mut Fixture, observation: &mut Observation| {
                fixture.facts.faults.push(cut(0));
                observation.outcome = Err(error.into());
            }
        };
        check(fails("the body broke off (status 200)"), None);
        check(fails("connection refused"), Some("no response: connection refused"));
    }

    #[test]
    fn a_large_body_may_end_early_if_its_object_has_changed() {
        let fetched = |class: Class, versions: [u32; 2], error: &str| {
            let mut fixture = Fixture::new();
            let object = fixture.object(class);
            let first = fixture.fetch(&object, versions[0], SECOND);
            let mut observation = fixture.observation(first, 9 * SECOND, "skerry; hit");
            fixture.fetch(&object, versions[1], observation.sent);
            observation.outcome = Err(error.into());
            verdict(&mut NoClientErrors::new(Vec::new()), &fixture, &observation)
        };
        let broke_off = "the body broke off (status 206)";
        assert_eq!(fetched(Class::Large, [0, 1], broke_off), None);
        assert!(fetched(Class::Large, [1, 1], broke_off).is_some());
        assert!(fetched(Class::Large, [0, 1], "connection refused").is_some());
        assert!(fetched(Class::Static, [0, 1], broke_off).is_some());
    }

    #[test]
    fn failures_while_the_simulation_stood_still_are_no_violation() {
        let paused = |fixture: &mut Fixture, observation: &mut Observation| {
            fixture.facts.faults.push(Fault { kind: SIMULATION_PAUSED.to_owned(), ..cut(0) });
            observation.outcome = Err("no whole response within 30s".into());
        };
        check(paused, None);
    }

    #[test]
    fn an_error_instead_of_a_usable_stale_response_is_reported() {
        let stored = |scheme: &str, purged: bool| {
            let scheme = scheme.to_owned();
            move |fixture: &mut Fixture, observation: &mut Observation| {
                fixture.facts.faults.push(cut(0));
                fixture.facts.fetches[0].scheme = Some(scheme);
                response(observation).status = 504;
                if purged {
                    fixture.facts.purges.push(Purge {
                        number: 0,
                        id: None,
                        scope: Scope::All,
                        soft: false,
                        via: 0,
                        targets: vec![0, 1],
                        issued: 2 * SECOND,
                        acknowledged: vec![(0, 2 * SECOND)],
                        propagation_ms: Vec::new(),
                        pending: Vec::new(),
                        complete: true,
                        failed: None,
                    });
                }
            }
        };
        let named = "status 504, although the node got the response to upstream request 1 8000 ms before and may serve it stale";
        check_with(true, stored("http", false), Some(named));
        check_with(true, stored("https", false), None);
        let lost = |fixture: &mut Fixture, observation: &mut Observation| {
            stored("http", false)(fixture, observation);
            fixture.facts.faults[0].began = SECOND;
        };
        check_with(true, lost, None);
        check_with(true, stored("http", true), None);
        check_with(false, stored("http", false), None);
    }
}
