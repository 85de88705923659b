//! No client gets an error that the scenario does not allow.
//!
//! An error that the origin itself answered (its `X-Fetch` leads to that answer) is the
//! origin's, not the edge's. A body that was stored in part may break off where its object has
//! changed at the origin: what is missing of the old version cannot be had, and the new one must
//! not be mixed in.

use super::{Answer, Checker, Findings, Seen, WAY_TO_ORIGIN, World};
use crate::client::BODY_BROKE_OFF;
use crate::journal::{Fetch, LAB_PAUSED, LifeEvent, Micros, Purge, SECOND};
use crate::plan::object::Class;
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
    /// Whether bodies may end early then: their origin went away while it sent them.
    #[serde(default)]
    pub cut_short: bool,
    /// Seconds after the fault in which it still counts.
    #[serde(default)]
    pub grace_s: f64,
    /// Not when the node has a stored response that it may serve stale: then the error is the
    /// edge's after all. Only for fleets whose caches hold the whole catalog.
    #[serde(default)]
    pub unless_stored: bool,
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
            Err(error) => excuse.broken || excuse.cut_short && error.starts_with(BODY_BROKE_OFF),
        };
        let in_force = |excuse: &Excuse| {
            let grace = (excuse.grace_s * SECOND as f64) as u64;
            world.facts.faults.iter().any(|fault| {
                fault.kind == excuse.during
                    && fault.nodes.contains(&seen.node)
                    && fault.overlaps(seen.sent, seen.done, grace)
            })
        };
        let counts =
            |excuse: &&Excuse| !excuse.unless_stored || stale_instead(world, seen).is_none();
        self.excuses.iter().filter(fits).filter(counts).any(in_force)
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
        let is_excused = self.is_excused(world, seen) || changed_in_between(world, seen);
        if !is_excused && !in_a_pause(world, seen) {
            let instead = stale_instead(world, seen).map_or(String::new(), |fetch| {
                let ago = seen.sent.saturating_sub(fetch.began) / 1000;
                format!(", although it got upstream request {} {ago} ms before", fetch.serial)
            });
            self.findings.blame(world, seen, what + &instead);
        }
    }

    fn findings(&self) -> &Findings {
        &self.findings
    }
}

/// When the lab itself stood still, deadlines passed on all sides at once.
fn in_a_pause(world: World, seen: &Seen) -> bool {
    let mut pauses = world.facts.faults.iter().filter(|fault| fault.kind == LAB_PAUSED);
    pauses.any(|pause| pause.overlaps(seen.sent, seen.done, 15 * SECOND))
}

/// Whether the body broke off because, for what was missing of it, the node asked an origin that
/// had another version by then than the node had got before.
fn changed_in_between(world: World, seen: &Seen) -> bool {
    let broke_off = seen.outcome.as_ref().is_err_and(|error| error.starts_with(BODY_BROKE_OFF));
    let theirs = |fetch: &&Fetch| fetch.node == Some(seen.node) && fetch.object == seen.object;
    let asked = || world.facts.fetches.iter().filter(theirs);
    let mut now = asked().filter(|fetch| (seen.sent..=seen.done).contains(&fetch.began));
    let had_another = |now: &Fetch| {
        asked().any(|before| before.began < now.began && before.version < now.version)
    };
    broke_off && world.object(seen).class == Class::Large && now.any(had_another)
}

/// The upstream request whose answer could have been served instead: this node, in its present
/// life, has got it whole for this key, its origin allows to serve it stale on error still, and
/// no hard purge has come since.
fn stale_instead<'a>(world: World<'a>, seen: &Seen) -> Option<&'a Fetch> {
    let object = world.object(seen);
    let began = |life: &&LifeEvent| life.node == seen.node && life.up && life.at < seen.sent;
    let alive_since = world.facts.lives.iter().rev().find(began).map_or(0, |life| life.at);
    let allowed = (object.max_age + object.stale_if_error).saturating_sub(MARGIN_S) * SECOND;
    let scheme = if seen.tls { "https" } else { "http" };
    // What its origin had handed over may have been lost on its way when something broke.
    let arrived = |fetch: &Fetch, ended: Micros| {
        !world.facts.disturbed(seen.node, fetch.began, ended + WAY_TO_ORIGIN, 0)
    };
    let useful = |fetch: &&Fetch| {
        fetch.object == seen.object
            && fetch.node == Some(seen.node)
            && fetch.scheme.as_deref() == Some(scheme)
            && matches!(fetch.status, 200)
            && fetch.whole
            && fetch.range.is_none()
            && fetch.began > alive_since
            && fetch.ended.is_some_and(|ended| ended + SECOND < seen.sent && arrived(fetch, ended))
            && fetch.answered.is_some_and(|answered| answered + allowed > seen.sent)
    };
    let purged_since = |fetch: &Fetch| {
        let hard = |purge: &&Purge| !purge.soft && purge.scope.covers(object);
        world.facts.purges.iter().filter(hard).any(|purge| {
            purge.issued <= seen.done
                && purge.acknowledged_by(seen.node).unwrap_or(Micros::MAX)
                    >= world.sent_after(fetch)
        })
    };
    let is_kept = object.class.is_shared() && object.class != Class::Large;
    let stored = world.facts.fetches.iter().rev().find(useful).filter(|_| is_kept);
    stored.filter(|fetch| !purged_since(fetch))
}

/// Roundings of `Age` and `Date`.
const MARGIN_S: u64 = 3;

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
    use crate::journal::{Fault, Scope};
    use crate::plan::object::Class;

    fn check(change: impl FnOnce(&mut Lab, &mut Seen), expected: Option<&str>) {
        check_with(false, change, expected);
    }

    fn check_with(
        unless_stored: bool,
        change: impl FnOnce(&mut Lab, &mut Seen),
        expected: Option<&str>,
    ) {
        let mut lab = Lab::new();
        let object = lab.object(Class::Static);
        let fetch = lab.fetch(&object, 0, SECOND);
        let mut seen = lab.seen(fetch, 9 * SECOND, "skerry; fwd=miss");
        change(&mut lab, &mut seen);
        let (during, status) = ("cut".to_owned(), vec![504]);
        let excuse =
            Excuse { during, status, broken: false, cut_short: true, grace_s: 1.0, unless_stored };
        let mut checker = NoClientErrors::new(vec![excuse]);
        assert_eq!(verdict(&mut checker, &lab, &seen).as_deref(), expected);
    }

    fn cut(node: usize) -> Fault {
        let (kind, what, nodes) = ("cut".to_owned(), String::new(), vec![node]);
        Fault { kind, what, nodes, began: 5 * SECOND, ended: Some(8 * SECOND + 500_000) }
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
        let fails = |error: &'static str| {
            move |lab: &mut Lab, seen: &mut Seen| {
                lab.facts.faults.push(cut(0));
                seen.outcome = Err(error.into());
            }
        };
        check(fails("the body broke off (status 200)"), None);
        check(fails("connection refused"), Some("no answer: connection refused"));
    }

    #[test]
    fn a_large_body_may_break_off_where_its_object_has_changed() {
        let fetched = |class: Class, versions: [u32; 2], error: &str| {
            let mut lab = Lab::new();
            let object = lab.object(class);
            let first = lab.fetch(&object, versions[0], SECOND);
            let mut seen = lab.seen(first, 9 * SECOND, "skerry; hit");
            lab.fetch(&object, versions[1], seen.sent);
            seen.outcome = Err(error.into());
            verdict(&mut NoClientErrors::new(Vec::new()), &lab, &seen)
        };
        let broke_off = "the body broke off (status 206)";
        assert_eq!(fetched(Class::Large, [0, 1], broke_off), None);
        assert!(fetched(Class::Large, [1, 1], broke_off).is_some());
        assert!(fetched(Class::Large, [0, 1], "connection refused").is_some());
        assert!(fetched(Class::Static, [0, 1], broke_off).is_some());
    }

    #[test]
    fn what_broke_while_the_lab_stood_still_is_nobodys_fault() {
        let paused = |lab: &mut Lab, seen: &mut Seen| {
            lab.facts.faults.push(Fault { kind: LAB_PAUSED.to_owned(), ..cut(0) });
            seen.outcome = Err("no whole answer within 30s".into());
        };
        check(paused, None);
    }

    #[test]
    fn what_is_stored_and_may_be_served_stale_is_no_excuse() {
        let stored = |scheme: &str, purged: bool| {
            let scheme = scheme.to_owned();
            move |lab: &mut Lab, seen: &mut Seen| {
                lab.facts.faults.push(cut(0));
                lab.facts.fetches[0].scheme = Some(scheme);
                answer(seen).status = 504;
                if purged {
                    lab.facts.purges.push(Purge {
                        number: 0,
                        id: None,
                        scope: Scope::All,
                        soft: false,
                        via: 0,
                        meant_for: vec![0, 1],
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
        let named = "status 504, although it got upstream request 1 8000 ms before";
        check_with(true, stored("http", false), Some(named));
        check_with(true, stored("https", false), None);
        let lost = |lab: &mut Lab, seen: &mut Seen| {
            stored("http", false)(lab, seen);
            lab.facts.faults[0].began = SECOND;
        };
        check_with(true, lost, None);
        check_with(true, stored("http", true), None);
        check_with(false, stored("http", false), None);
    }
}
