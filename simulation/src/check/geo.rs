//! Clients get the origin that the configuration maps their country to, and the next one while it is down.

use super::{CheckContext, Checker, Findings, Observation};
use crate::journal::{Micros, SECOND};
use crate::plan::object::Class;

/// Checks the origin of geo-routed responses; see the module documentation.
#[derive(Default)]
pub struct RightOrigin(Findings);

impl Checker for RightOrigin {
    fn name(&self) -> &'static str {
        "right origin"
    }

    fn promise(&self) -> &'static str {
        "clients are served by the origin that their country is mapped to, and by the next one while it is down"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let Some(expected) = expected_origin(context, observation) else { return };
        let origin = observation.outcome.as_ref().ok().and_then(|answer| answer.origin.as_ref());
        let Some(origin) = origin else { return };
        self.0.count_check();
        if *origin != expected.name {
            let ExpectedOrigin { name, down } = expected;
            let why = match down {
                None => format!("its country is mapped to {name}"),
                Some(down) => format!("{name} is next, as {down} is down"),
            };
            let what = format!("served by {origin}, but {why}");
            self.0.report(context, observation, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

/// The origin that must serve a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedOrigin {
    /// Its name.
    pub name: String,
    /// The origin that the client's country is mapped to, if that is down.
    pub down: Option<String>,
}

/// The origin that must serve a request for a geo-routed object. `None`: the object is no such one, or another
/// origin may serve it, because a fault has just begun or ended.
pub fn expected_origin(context: CheckContext, observation: &Observation) -> Option<ExpectedOrigin> {
    let origins = context.origins_of_country.get(observation.country)?;
    if context.object(observation).class != Class::World {
        return None;
    }
    let (mapped, next) = (origins.first()?, origins.get(1));
    let (from, to) = (observation.sent, observation.done);
    let mut down = false;
    for fault in context.facts.faults.iter().filter(|fault| is_recent(context, fault, observation))
    {
        let is_settled = fault.began + SETTLED <= from && fault.ended.is_none_or(|end| to < end);
        match fault.kind == ORIGIN_DOWN && next.is_some() && is_settled {
            true => down |= fault.what == format!("{mapped} down"),
            false => return None,
        }
    }
    let restarted = context.sources[observation.node].iter().any(|node| {
        let mut events = context.facts.process_events.iter();
        events.any(|event| event.node == *node && (from..=to).contains(&event.at))
    });
    match (down, next) {
        _ if restarted => None,
        (true, Some(next)) => {
            Some(ExpectedOrigin { name: next.clone(), down: Some(mapped.clone()) })
        }
        _ => Some(ExpectedOrigin { name: mapped.clone(), down: None }),
    }
}

/// Whether a fault affects the node or its sources, and has begun before the end of the request and not ended long
/// before its start.
fn is_recent(
    context: CheckContext,
    fault: &crate::journal::Fault,
    observation: &Observation,
) -> bool {
    let touches = context.sources[observation.node].iter().any(|node| fault.nodes.contains(node));
    touches && fault.overlaps(observation.sent, observation.done, TRIED_AGAIN)
}

const ORIGIN_DOWN: &str = "origin-down";
/// How long requests may still try an origin that has died.
const SETTLED: Micros = SECOND;
/// How long an origin that is back may wait for its next trial: the first ejections (10 s and 20 s) and some more.
const TRIED_AGAIN: Micros = 25 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, response, verdict};
    use crate::journal::Fault;

    #[track_caller]
    fn check(origin: &str, change: impl FnOnce(&mut Fixture), expected: Option<&str>) {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::World);
        let fetch = fixture.fetch(&object, 0, 40 * SECOND);
        change(&mut fixture);
        let mut observation = fixture.observation(fetch, 40 * SECOND, "skerry; fwd=miss");
        response(&mut observation).origin = Some(origin.to_owned());
        let verdict = verdict(&mut RightOrigin::default(), &fixture, &observation);
        assert_eq!(verdict.as_deref(), expected);
    }

    fn down(origin: &str, began_s: u64, ended: Option<u64>) -> impl FnOnce(&mut Fixture) {
        let (kind, what) = (ORIGIN_DOWN.to_owned(), format!("{origin} down"));
        let (began, ended) = (began_s * SECOND, ended.map(|ended_s| ended_s * SECOND));
        let fault = Fault { kind, what, nodes: vec![0], began, ended, ..Fault::default() };
        move |fixture| fixture.facts.faults.push(fault)
    }

    #[test]
    fn the_mapped_origin_is_accepted_and_another_reported() {
        check("origin-frankfurt", |_| {}, None);
        let expected = "served by origin-tokyo, but its country is mapped to origin-frankfurt";
        check("origin-tokyo", |_| {}, Some(expected));
    }

    #[test]
    fn the_next_origin_serves_while_the_mapped_one_is_down() {
        let expected =
            "served by origin-tokyo, but origin-virginia is next, as origin-frankfurt is down";
        check("origin-virginia", down("origin-frankfurt", 30, None), None);
        check("origin-tokyo", down("origin-frankfurt", 30, None), Some(expected));
        check("origin-tokyo", down("origin-frankfurt", 40, None), None);
        check("origin-tokyo", down("origin-frankfurt", 20, Some(30)), None);
        let mapped = "served by origin-tokyo, but its country is mapped to origin-frankfurt";
        check("origin-tokyo", down("origin-virginia", 30, None), Some(mapped));
        check("origin-tokyo", down("origin-frankfurt", 5, Some(10)), Some(mapped));
    }
}
