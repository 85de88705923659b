//! Invariant 3: a response for one client is never sent to another.

use super::{CheckContext, Checker, Findings, Observation};
use crate::plan::object::Class;

/// Checks the owner of each body; see the module documentation.
#[derive(Default)]
pub struct PrivateStaysPrivate(Findings);

impl Checker for PrivateStaysPrivate {
    fn name(&self) -> &'static str {
        "private stays private"
    }

    fn promise(&self) -> &'static str {
        "a response for one client is never sent to another"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let Some(Ok(identity)) = observation.outcome.as_ref().ok().map(|response| &response.body)
        else {
            return;
        };
        self.0.count_check();
        let private = context.object(observation).class == Class::Private;
        let expected = if private { observation.client } else { 0 };
        if identity.owner != expected {
            let what = format!("body belongs to client {}", identity.owner);
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
    use crate::journal::SECOND;

    fn check(class: Class, owner: u32, expected: Option<&str>) {
        let mut fixture = Fixture::new();
        let object = fixture.object(class);
        let fetch = fixture.fetch(&object, 0, SECOND);
        let mut observation = fixture.observation(fetch, SECOND, "skerry; fwd=bypass");
        response(&mut observation).body.as_mut().expect("body").owner = owner;
        let verdict = verdict(&mut PrivateStaysPrivate::default(), &fixture, &observation);
        assert_eq!(verdict.as_deref(), expected);
    }

    #[test]
    fn a_clients_own_private_body_is_accepted() {
        check(Class::Private, 5, None);
    }

    #[test]
    fn a_private_body_of_another_client_is_reported() {
        check(Class::Private, 6, Some("body belongs to client 6"));
        check(Class::Private, 0, Some("body belongs to client 0"));
    }

    #[test]
    fn a_public_body_must_not_belong_to_a_client() {
        check(Class::Static, 0, None);
        check(Class::Static, 5, Some("body belongs to client 5"));
    }
}
