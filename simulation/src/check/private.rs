//! Invariant 3: a response for one client is never given to another.

use super::{Checker, Findings, Seen, World};
use crate::plan::object::Class;

/// See the module's text.
#[derive(Default)]
pub struct PrivateStaysPrivate(Findings);

impl Checker for PrivateStaysPrivate {
    fn name(&self) -> &'static str {
        "private stays private"
    }

    fn promise(&self) -> &'static str {
        "a response made for one client is never given to another"
    }

    fn saw(&mut self, world: World, seen: &Seen) {
        let Some(Ok(identity)) = seen.outcome.as_ref().ok().map(|answer| &answer.body) else {
            return;
        };
        self.0.look();
        let private = world.object(seen).class == Class::Private;
        let expected = if private { seen.client } else { 0 };
        if identity.owner != expected {
            let what = format!("its body was made for client {}", identity.owner);
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
    use crate::journal::SECOND;

    fn check(class: Class, owner: u32, expected: Option<&str>) {
        let mut lab = Lab::new();
        let object = lab.object(class);
        let fetch = lab.fetch(&object, 0, SECOND);
        let mut seen = lab.seen(fetch, SECOND, "skerry; fwd=bypass");
        answer(&mut seen).body.as_mut().expect("body").owner = owner;
        let verdict = verdict(&mut PrivateStaysPrivate::default(), &lab, &seen);
        assert_eq!(verdict.as_deref(), expected);
    }

    #[test]
    fn ones_own_private_body_is_fine() {
        check(Class::Private, 5, None);
    }

    #[test]
    fn anothers_private_body_is_named() {
        check(Class::Private, 6, Some("its body was made for client 6"));
        check(Class::Private, 0, Some("its body was made for client 0"));
    }

    #[test]
    fn a_body_for_all_must_be_nobodys() {
        check(Class::Static, 0, None);
        check(Class::Static, 5, Some("its body was made for client 5"));
    }
}
