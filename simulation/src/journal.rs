//! The record of events on one clock, with which checkers compare the responses.
//!
//! The journal knows upstream requests because the origins write them down themselves, and
//! purges because the load generator issued them. Nothing here is taken from a node's word.

use crate::plan::object::{Class, ObjectId};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Microseconds since the run began.
pub type Micros = u64;

/// A position in the fleet's list of nodes.
pub type NodeId = usize;

/// One second in [`Micros`].
pub const SECOND: Micros = 1_000_000;

/// One upstream request, as the origin saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetch {
    /// Unique; the answer carries it in `X-Fetch`, and so does what a cache stores of it.
    pub serial: u64,
    /// Which origin.
    pub origin: usize,
    /// From which node, known by the port it came in at.
    pub node: Option<NodeId>,
    /// The requested object.
    pub object: ObjectId,
    /// The version that was current when the request began.
    pub version: u32,
    /// The bytes asked for, when it was a range.
    pub range: Option<(u64, u64)>,
    /// `If-Range`: the version of which the range must be, or the whole is sent.
    pub bound: Option<String>,
    /// Whether it asked "has it changed".
    pub conditional: bool,
    /// `X-Forwarded-Proto`, when the node said it: http and https are two keys.
    pub scheme: Option<String>,
    /// Whether it was a HEAD.
    pub head: bool,
    /// When the origin had read the request.
    pub began: Micros,
    /// When it answered.
    pub answered: Option<Micros>,
    /// When the last byte was handed over, or the connection broke.
    pub ended: Option<Micros>,
    /// Whether the whole answer was handed over.
    pub whole: bool,
    /// The status answered with; 0 before that.
    pub status: u16,
    /// Bytes of body handed over.
    pub bytes: u64,
}

impl Fetch {
    /// The version that a range was asked for of and that its origin no longer had. The answer
    /// has another, in whole, and is of no use to who asked.
    pub fn refused(&self) -> Option<&str> {
        self.bound.as_deref().filter(|_| self.range.is_some() && self.status == 200)
    }
}

/// The scope of a purge, in the lab's terms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One URL.
    Object(ObjectId),
    /// The tag `group-N`.
    Group(u32),
    /// All URLs of a class: a prefix purge.
    Class(Class),
    /// A site, by its host.
    Site(&'static str),
    /// Everything.
    All,
}

impl Scope {
    /// Whether the scope covers this object.
    pub fn covers(&self, object: &crate::plan::object::Object) -> bool {
        match self {
            Scope::Object(id) => *id == object.id,
            Scope::Group(group) => *group == object.group,
            Scope::Class(class) => *class == object.class,
            Scope::Site(host) => *host == object.class.host(),
            Scope::All => true,
        }
    }

    /// For reports: `object 17`, `tag group-3`.
    pub fn describe(&self) -> String {
        match self {
            Scope::Object(id) => format!("object {id}"),
            Scope::Group(group) => format!("tag group-{group}"),
            Scope::Class(class) => format!("prefix /{}/", class.as_str()),
            Scope::Site(host) => format!("site {host}"),
            Scope::All => "all".to_owned(),
        }
    }
}

/// A purge that the lab issued, and who acknowledged it when.
#[derive(Clone, Debug, PartialEq)]
pub struct Purge {
    /// Position in [`Facts::purges`].
    pub number: usize,
    /// The fleet's own id, once it answered.
    pub id: Option<String>,
    /// The purged scope.
    pub scope: Scope,
    /// Whether what it covers may still be served stale.
    pub soft: bool,
    /// Through which node.
    pub via: NodeId,
    /// The nodes that it is meant for: all of them when there is a bus.
    pub meant_for: Vec<NodeId>,
    /// When the request was sent.
    pub issued: Micros,
    /// When the lab had the answer that says "applied", for each node.
    pub acknowledged: Vec<(NodeId, Micros)>,
    /// The time from issue to application that each node's receipt states, in milliseconds.
    pub propagation_ms: Vec<(NodeId, f64)>,
    /// Nodes that the latest answer called pending.
    pub pending: Vec<NodeId>,
    /// Whether the latest answer said that all nodes have it.
    pub complete: bool,
    /// Set when the admin API refused or did not answer.
    pub failed: Option<String>,
}

impl Purge {
    /// When this node acknowledged it.
    pub fn acknowledged_by(&self, node: NodeId) -> Option<Micros> {
        self.acknowledged.iter().find(|(by, _)| *by == node).map(|(_, at)| *at)
    }
}

/// Something that the plan breaks on purpose, from when until when.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The kind, as scenarios write it.
    pub kind: String,
    /// For people: `frankfurt-1 killed`.
    pub what: String,
    /// Nodes that it touches.
    pub nodes: Vec<NodeId>,
    /// When it began.
    pub began: Micros,
    /// When it was undone; none while it lasts.
    pub ended: Option<Micros>,
}

/// The kind of a fault that nobody planned: the lab itself, with all its processes, was stopped
/// for a while.
pub const LAB_PAUSED: &str = "lab-paused";

impl Fault {
    /// Whether it was in force at any time between `from` and `to`, with `grace` after its end.
    pub fn overlaps(&self, from: Micros, to: Micros, grace: Micros) -> bool {
        self.began <= to && self.ended.is_none_or(|ended| ended + grace >= from)
    }
}

/// When a node's process came up or went away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LifeEvent {
    /// Which node.
    pub node: NodeId,
    /// When.
    pub at: Micros,
    /// Up, or gone.
    pub up: bool,
}

/// Everything written down so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Upstream requests; `serial` is the position plus one.
    pub fetches: Vec<Fetch>,
    /// Purges.
    pub purges: Vec<Purge>,
    /// Faults.
    pub faults: Vec<Fault>,
    /// Starts and ends of processes.
    pub lives: Vec<LifeEvent>,
    /// `(object, version, when)`: the origin's content changed.
    pub changes: Vec<(ObjectId, u32, Micros)>,
}

impl Facts {
    /// The upstream request with this serial number.
    pub fn fetch(&self, serial: u64) -> Option<&Fetch> {
        self.fetches.get(usize::try_from(serial.checked_sub(1)?).ok()?)
    }

    /// Whether any fault that touches `node` was in force between `from` and `to` or within
    /// `grace` before, or its process went away or came back. Its first start disturbs nothing:
    /// nobody had asked it before.
    pub fn disturbed(&self, node: NodeId, from: Micros, to: Micros, grace: Micros) -> bool {
        let touches = |fault: &&Fault| fault.nodes.contains(&node);
        let mut lives = self.lives.iter().filter(|life| life.node == node).enumerate();
        let changes = |(number, life): (usize, &LifeEvent)| {
            (number > 0 || !life.up) && (from..=to).contains(&life.at)
        };
        self.faults.iter().filter(touches).any(|fault| fault.overlaps(from, to, grace))
            || lives.any(changes)
    }
}

/// The shared notebook. Clones write into the same one.
#[derive(Clone, Debug)]
pub struct Journal {
    start: Instant,
    facts: Arc<Mutex<Facts>>,
}

impl Journal {
    /// An empty notebook; its clock starts now.
    #[allow(clippy::new_without_default, reason = "it starts a clock: not a neutral value")]
    pub fn new() -> Self {
        Journal { start: Instant::now(), facts: Arc::default() }
    }

    /// Now.
    pub fn now(&self) -> Micros {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The instant `at` of this journal's clock.
    pub fn instant(&self, at: Micros) -> Instant {
        self.start + Duration::from_micros(at)
    }

    /// The facts, for as long as the guard is held. Never hold it over an await.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes down that an upstream request began; returns its serial number.
    pub fn fetch_began(&self, mut fetch: Fetch) -> u64 {
        let mut facts = self.facts();
        fetch.serial = facts.fetches.len() as u64 + 1;
        let serial = fetch.serial;
        facts.fetches.push(fetch);
        serial
    }

    /// Changes the record of an upstream request.
    pub fn fetch_update(&self, serial: u64, change: impl FnOnce(&mut Fetch)) {
        let mut facts = self.facts();
        let at = usize::try_from(serial).unwrap_or(usize::MAX).wrapping_sub(1);
        if let Some(fetch) = facts.fetches.get_mut(at) {
            change(fetch);
        }
    }

    /// Writes down that a fault began; returns its position.
    pub fn fault_began(&self, kind: &str, what: String, nodes: Vec<NodeId>) -> usize {
        let began = self.now();
        let mut facts = self.facts();
        facts.faults.push(Fault { kind: kind.to_owned(), what, nodes, began, ended: None });
        facts.faults.len() - 1
    }

    /// Writes down that a fault was undone.
    pub fn fault_ended(&self, fault: usize) {
        let now = self.now();
        if let Some(fault) = self.facts().faults.get_mut(fault) {
            fault.ended = Some(now);
        }
    }

    /// Writes down that a node's process came up or went away.
    pub fn life(&self, node: NodeId, up: bool) {
        let at = self.now();
        self.facts().lives.push(LifeEvent { node, at, up });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_cover_what_they_name() {
        let catalog =
            crate::plan::object::Catalog::new(1, 100, &crate::plan::object::Mix::default());
        let object = catalog.get(42);
        assert!(Scope::Object(42).covers(object) && !Scope::Object(41).covers(object));
        assert!(Scope::Group(2).covers(object) && !Scope::Group(1).covers(object));
        assert!(Scope::Class(object.class).covers(object) && Scope::All.covers(object));
        assert!(Scope::Site(object.class.host()).covers(object));
    }

    #[test]
    fn a_restart_disturbs_and_a_first_start_does_not() {
        let mut facts = Facts::default();
        let life = |node, at, up| LifeEvent { node, at, up };
        facts.lives = vec![life(1, 5, true), life(0, 10, true), life(0, 20, false)];
        assert!(!facts.disturbed(0, 0, 19, 0) && facts.disturbed(0, 15, 25, 0));
        facts.lives.push(life(0, 30, true));
        assert!(facts.disturbed(0, 25, 35, 0) && !facts.disturbed(1, 0, 35, 0));
    }

    #[test]
    fn a_fault_counts_until_its_grace_is_over() {
        let fault = Fault {
            kind: "cut".into(),
            what: String::new(),
            nodes: vec![0],
            began: 10,
            ended: Some(20),
        };
        assert!(fault.overlaps(0, 10, 0) && fault.overlaps(20, 30, 0) && fault.overlaps(24, 30, 5));
        assert!(!fault.overlaps(0, 9, 0) && !fault.overlaps(26, 30, 5));
    }
}
