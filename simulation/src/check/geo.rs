//! Clients get the origin that the configuration maps their country to.

use super::{CheckContext, Checker, Findings, Observation};
use crate::journal::SECOND;
use crate::plan::object::Class;

/// Checks the origin of geo-routed responses; see the module documentation.
#[derive(Default)]
pub struct RightOrigin(Findings);

impl Checker for RightOrigin {
    fn name(&self) -> &'static str {
        "right origin"
    }

    fn promise(&self) -> &'static str {
        "clients are served by the origin that their country is mapped to"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let Ok(response) = &observation.outcome else { return };
        let mapped = context.origin_of_country.get(observation.country);
        let (Some(mapped), Some(origin)) = (mapped, &response.origin) else { return };
        // During a fault, another origin may be used.
        let recently = observation.sent.saturating_sub(10 * SECOND);
        let disturbed =
            context.disturbed(observation.node, recently, observation.done, 10 * SECOND);
        if context.object(observation).class != Class::World || disturbed {
            return;
        }
        self.0.count_check();
        if origin != mapped {
            let what = format!("served by {origin}, but its country is mapped to {mapped}");
            self.0.report(context, observation, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, response, verdict};

    fn check(origin: &str, expected: Option<&str>) {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::World);
        let fetch = fixture.fetch(&object, 0, SECOND);
        let mut observation = fixture.observation(fetch, SECOND, "skerry; fwd=miss");
        response(&mut observation).origin = Some(origin.to_owned());
        let verdict = verdict(&mut RightOrigin::default(), &fixture, &observation);
        assert_eq!(verdict.as_deref(), expected);
    }

    #[test]
    fn the_mapped_origin_is_accepted_and_another_reported() {
        check("origin-frankfurt", None);
        let expected = "served by origin-tokyo, but its country is mapped to origin-frankfurt";
        check("origin-tokyo", Some(expected));
    }
}
