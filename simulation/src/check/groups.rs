//! Visitors of a site that splits them stay in their group.

use super::{CheckContext, Checker, Findings, Observation};
use crate::journal::Micros;
use std::collections::HashMap;

/// Checks the groups of visitors: each response is from the origin of its visitor's group, a returning
/// visitor is not told another group, and new visitors are drawn by the weights.
#[derive(Default)]
pub struct StayInGroup {
    findings: Findings,
    /// Number of new visitors by the group that they were told.
    drawn: HashMap<String, u32>,
    last_at: Micros,
}

impl Checker for StayInGroup {
    fn name(&self) -> &'static str {
        "groups stay"
    }

    fn promise(&self) -> &'static str {
        "visitors are drawn by the weights, stay in their group and get its responses alone"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let Ok(response) = &observation.outcome else { return };
        // An error of the node has no origin.
        let Some(origin) = &response.origin else { return };
        if !context.has_groups(context.object(observation)) {
            return;
        }
        self.findings.count_check();
        self.last_at = observation.sent;
        let what = match (&observation.group, &response.new_group) {
            (None, None) => Some("a new visitor was not told its group".to_owned()),
            (Some(group), Some(other)) => {
                Some(format!("a visitor of group {group} was drawn again: {other}"))
            }
            (Some(group), None) | (None, Some(group)) => (group != origin)
                .then(|| format!("served by {origin}, but the visitor is in group {group}")),
        };
        if let (None, Some(group)) = (&observation.group, &response.new_group) {
            *self.drawn.entry(group.clone()).or_default() += 1;
        }
        if let Some(what) = what {
            self.findings.report(context, observation, what);
        }
    }

    fn end(&mut self, context: CheckContext) {
        let all: u32 = self.drawn.values().sum();
        let weights: u32 = context.groups.iter().map(|(_, weight)| weight).sum();
        if all < VISITORS_MIN {
            return;
        }
        for (group, weight) in context.groups {
            self.findings.count_check();
            let drawn = self.drawn.get(group).copied().unwrap_or_default();
            let (share, expected) = (ratio(drawn, all), ratio(*weight, weights));
            // Five standard deviations of a binomial distribution, and at least 2 %.
            let deviation = (expected * (1.0 - expected) / f64::from(all)).sqrt();
            if (share - expected).abs() > (5.0 * deviation).max(0.02) {
                let what = format!(
                    "{drawn} of {all} new visitors were drawn ({:.1} %), expected {:.1} %",
                    100.0 * share,
                    100.0 * expected
                );
                self.findings.record_violation(self.last_at, format!("group {group}"), what);
            }
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

fn ratio(part: u32, all: u32) -> f64 {
    f64::from(part) / f64::from(all.max(1))
}

/// Shares of fewer new visitors say nothing.
const VISITORS_MIN: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, response, verdict};
    use crate::journal::SECOND;
    use crate::plan::object::Class;

    fn fixture() -> Fixture {
        let groups = [("origin-frankfurt", 80), ("origin-tokyo", 20)];
        let groups = groups.map(|(name, weight)| (name.to_owned(), weight)).to_vec();
        let mut fixture = Fixture::new();
        fixture.fleet.groups = groups;
        fixture
    }

    fn check(sent: Option<&str>, told: Option<&str>, origin: &str, expected: Option<&str>) {
        let mut fixture = fixture();
        let object = fixture.object(Class::Page);
        let fetch = fixture.fetch(&object, 0, SECOND);
        let mut observation = fixture.observation(fetch, SECOND, "skerry; fwd=miss");
        observation.group = sent.map(str::to_owned);
        response(&mut observation).new_group = told.map(str::to_owned);
        response(&mut observation).origin = Some(origin.to_owned());
        let verdict = verdict(&mut StayInGroup::default(), &fixture, &observation);
        assert_eq!(verdict.as_deref(), expected, "{sent:?} {told:?} {origin}");
    }

    #[test]
    fn a_visitor_gets_the_origin_of_its_group_and_stays_in_it() {
        let (main, canary) = ("origin-frankfurt", "origin-tokyo");
        check(Some(main), None, main, None);
        check(None, Some(canary), canary, None);
        check(None, None, main, Some("a new visitor was not told its group"));
        let other = "served by origin-tokyo, but the visitor is in group origin-frankfurt";
        check(Some(main), None, canary, Some(other));
        check(None, Some(main), canary, Some(other));
        let drawn = "a visitor of group origin-frankfurt was drawn again: origin-tokyo";
        check(Some(main), Some(canary), canary, Some(drawn));
    }

    #[test]
    fn shares_that_do_not_follow_the_weights_are_reported() {
        let fixture = fixture();
        let broken = |main: u32, canary: u32| {
            let drawn = [("origin-frankfurt", main), ("origin-tokyo", canary)];
            let drawn = drawn.map(|(name, count)| (name.to_owned(), count)).into();
            let mut checker = StayInGroup { drawn, ..StayInGroup::default() };
            checker.end(fixture.context());
            checker.findings().broken
        };
        assert_eq!(broken(800, 200), 0);
        assert_eq!(broken(760, 240), 0, "by chance");
        assert_eq!(broken(500, 500), 2);
        assert_eq!(broken(5, 5), 0, "too few");
    }
}
