//! No client gets an error that the scenario does not allow.
//!
//! An error that the origin itself answered (its `X-Fetch` leads to that answer) is the
//! origin's, not the edge's.

use super::{Answer, Checker, Findings, Seen, World};
use crate::journal::SECOND;
use serde::Deserialize;

/// Errors that a scenario allows while one of its faults is in force.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Excuse {
    /// The fault's kind.
    pub during: String,
    /// Status codes that are no surprise then.
    #[serde(default)]
    pub status: Vec<u16>,
    /// Whether connections may break then.
    #[serde(default)]
    pub broken: bool,
    /// Seconds after the fault in which it still counts.
    #[serde(default)]
    pub grace_s: f64,
}

/// See the module's text.
pub struct NoClientErrors {
    excuses: Vec<Excuse>,
    findings: Findings,
}

impl NoClientErrors {
    /// With what the scenario allows.
    pub fn new(excuses: Vec<Excuse>) -> Self {
        NoClientErrors { excuses, findings: Findings::default() }
    }

    fn is_excused(&self, world: World, seen: &Seen) -> bool {
        let fits = |excuse: &&Excuse| match &seen.outcome {
            Ok(answer) => excuse.status.contains(&answer.status),
            Err(_) => excuse.broken,
        };
        let in_force = |excuse: &Excuse| {
            let grace = (excuse.grace_s * SECOND as f64) as u64;
            world.facts.faults.iter().any(|fault| {
                fault.kind == excuse.during
                    && fault.nodes.contains(&seen.node)
                    && fault.overlaps(seen.sent, seen.done, grace)
            })
        };
        self.excuses.iter().filter(fits).any(in_force)
    }
}

impl Checker for NoClientErrors {
    fn name(&self) -> &'static str {
        "no client errors"
    }

    fn promise(&self) -> &'static str {
        "no client gets an error, except where the scenario says that it must"
    }

    fn saw(&mut self, world: World, seen: &Seen) {
        self.findings.look();
        let what = match &seen.outcome {
            Ok(answer) if is_fine(world, seen, answer) => return,
            Ok(answer) => format!("status {}", answer.status),
            Err(error) => format!("no answer: {error}"),
        };
        if !self.is_excused(world, seen) {
            self.findings.blame(world, seen, what);
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

fn is_fine(world: World, seen: &Seen, answer: &Answer) -> bool {
    match answer.status {
        200 | 304 => true,
        206 | 416 => seen.range.is_some(),
        status => {
            let fetch = answer.fetch.and_then(|serial| world.facts.fetch(serial));
            fetch.is_some_and(|fetch| fetch.status == status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Lab, answer, verdict};
    use crate::journal::Fault;
    use crate::object::Class;

    fn check(change: impl FnOnce(&mut Lab, &mut Seen), expected: Option<&str>) {
        let mut lab = Lab::new();
        let object = lab.object(Class::Static);
        let fetch = lab.fetch(&object, 0, SECOND);
        let mut seen = lab.seen(fetch, 3 * SECOND, "skerry; fwd=miss");
        change(&mut lab, &mut seen);
        let excuse =
            Excuse { during: "cut".into(), status: vec![504], broken: false, grace_s: 1.0 };
        let mut checker = NoClientErrors::new(vec![excuse]);
        assert_eq!(verdict(&mut checker, &lab, &seen).as_deref(), expected);
    }

    fn cut(node: usize) -> Fault {
        let (kind, what, nodes) = ("cut".to_owned(), String::new(), vec![node]);
        Fault { kind, what, nodes, began: SECOND, ended: Some(2 * SECOND + 500_000) }
    }

    #[test]
    fn an_error_of_the_edge_is_named() {
        check(|_, seen| answer(seen).status = 502, Some("status 502"));
        check(|_, seen| seen.outcome = Err("reset".into()), Some("no answer: reset"));
    }

    #[test]
    fn the_origins_own_error_is_the_origins() {
        let origins = |lab: &mut Lab, seen: &mut Seen| {
            lab.facts.fetches[0].status = 503;
            answer(seen).status = 503;
        };
        check(origins, None);
    }

    #[test]
    fn what_the_scenario_allows_is_allowed_there_and_nowhere_else() {
        let during = |node, status| {
            move |lab: &mut Lab, seen: &mut Seen| {
                lab.facts.faults.push(cut(node));
                answer(seen).status = status;
            }
        };
        check(during(0, 504), None);
        check(during(0, 502), Some("status 502"));
        check(during(1, 504), Some("status 504"));
    }
}
