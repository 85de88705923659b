//! Clients get the origin that the configuration maps their country to.

use super::{Checker, Findings, Seen, World};
use crate::journal::SECOND;
use crate::plan::object::Class;

/// See the module's text.
#[derive(Default)]
pub struct RightOrigin(Findings);

impl Checker for RightOrigin {
    fn name(&self) -> &'static str {
        "right origin"
    }

    fn promise(&self) -> &'static str {
        "clients are served by the origin that their country is mapped to"
    }

    fn saw(&mut self, world: World, seen: &Seen) {
        let Ok(answer) = &seen.outcome else { return };
        let mapped = world.origin_of_country.get(seen.country);
        let (Some(mapped), Some(origin)) = (mapped, &answer.origin) else { return };
        // While something is broken, another origin may stand in.
        let recently = seen.sent.saturating_sub(10 * SECOND);
        let disturbed = world.facts.disturbed(seen.node, recently, seen.done, 10 * SECOND);
        if world.object(seen).class != Class::World || disturbed {
            return;
        }
        self.0.look();
        if origin != mapped {
            let what = format!("served by {origin}, its country is mapped to {mapped}");
            self.0.blame(world, seen, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Lab, answer, verdict};

    fn check(origin: &str, expected: Option<&str>) {
        let mut lab = Lab::new();
        let object = lab.object(Class::World);
        let fetch = lab.fetch(&object, 0, SECOND);
        let mut seen = lab.seen(fetch, SECOND, "skerry; fwd=miss");
        answer(&mut seen).origin = Some(origin.to_owned());
        let verdict = verdict(&mut RightOrigin::default(), &lab, &seen);
        assert_eq!(verdict.as_deref(), expected);
    }

    #[test]
    fn the_mapped_origin_is_fine_and_another_is_named() {
        check("origin-frankfurt", None);
        let expected = "served by origin-tokyo, its country is mapped to origin-frankfurt";
        check("origin-tokyo", Some(expected));
    }
}
