//! The record of a run: one clock, and the facts that checkers compare responses with.
//!
//! Origins record the upstream requests that they receive, and the simulation records the purges and
//! faults that it starts. No fact depends on what a node reports, except receipts of purges.

use crate::plan::object::{Class, ObjectId};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Microseconds since the start of the run.
pub type Micros = u64;

/// Index of a node in the fleet's list of nodes.
pub type NodeId = usize;

/// One second in [`Micros`].
pub const SECOND: Micros = 1_000_000;

/// An upstream request, as its origin recorded it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetch {
    /// Unique number, from 1. The response carries it in `X-Fetch`, also when served from a cache.
    pub serial: u64,
    /// Index of the origin.
    pub origin: usize,
    /// The node that sent it, identified by the origin's port.
    pub node: Option<NodeId>,
    /// The requested object.
    pub object: ObjectId,
    /// The object's version when the request arrived.
    pub version: u32,
    /// First and last byte of the requested range.
    pub range: Option<(u64, u64)>,
    /// `If-Range`: the version that the range must belong to; otherwise the whole object is sent.
    pub if_range: Option<String>,
    /// Whether it has `If-None-Match`.
    pub conditional: bool,
    /// `X-Forwarded-Proto`, if present. Requests over http and https have different cache keys.
    pub scheme: Option<String>,
    /// Whether its method is HEAD.
    pub head: bool,
    /// When the origin had received the request.
    pub began: Micros,
    /// When the origin sent the header section of the response.
    pub answered: Option<Micros>,
    /// When the last byte was sent, or the connection ended.
    pub ended: Option<Micros>,
    /// Whether the complete response was sent.
    pub whole: bool,
    /// The status code of the response; 0 before there is one.
    pub status: u16,
    /// Bytes of the body that were sent.
    pub bytes: u64,
}

impl Fetch {
    /// The value of `If-Range` if it did not match, so that the origin sent the whole object instead of
    /// the range. Such a response cannot complete a stored part.
    pub fn failed_if_range(&self) -> Option<&str> {
        self.if_range.as_deref().filter(|_| self.range.is_some() && self.status == 200)
    }
}

/// The set of objects that a purge covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One URL.
    Object(ObjectId),
    /// The tag `group-N`.
    Group(u32),
    /// All URLs of a class: a prefix purge.
    Class(Class),
    /// The site with this host.
    Site(&'static str),
    /// Everything.
    All,
}

impl Scope {
    /// Whether the scope includes this object.
    pub fn covers(&self, object: &crate::plan::object::Object) -> bool {
        match self {
            Scope::Object(id) => *id == object.id,
            Scope::Group(group) => *group == object.group,
            Scope::Class(class) => *class == object.class,
            Scope::Site(host) => *host == object.class.host(),
            Scope::All => true,
        }
    }

    /// A description for reports: `object 17`, `tag group-3`.
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

/// A purge and the state of its receipts.
#[derive(Clone, Debug, PartialEq)]
pub struct Purge {
    /// Index in [`Facts::purges`].
    pub number: usize,
    /// The id that the admin API returned.
    pub id: Option<String>,
    /// The objects that it covers.
    pub scope: Scope,
    /// Whether the covered responses may still be served stale.
    pub soft: bool,
    /// The node whose admin API received it.
    pub via: NodeId,
    /// The nodes that must apply it: all if the fleet has Redis, otherwise `via` only.
    pub targets: Vec<NodeId>,
    /// When the request to the admin API was sent.
    pub issued: Micros,
    /// For each node, when the response with its "applied" receipt had arrived.
    pub acknowledged: Vec<(NodeId, Micros)>,
    /// For each node, the time from issue to applied in milliseconds, according to its receipt.
    pub propagation_ms: Vec<(NodeId, f64)>,
    /// Nodes that are pending according to the last response.
    pub pending: Vec<NodeId>,
    /// Whether all nodes have applied it according to the last response.
    pub complete: bool,
    /// The error, if the admin API refused the purge or did not respond.
    pub failed: Option<String>,
}

impl Purge {
    /// When the receipt of a node had arrived.
    pub fn acknowledged_by(&self, node: NodeId) -> Option<Micros> {
        self.acknowledged.iter().find(|(by, _)| *by == node).map(|(_, at)| *at)
    }
}

/// A fault that was injected, and its time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    /// The kind, as in scenario files.
    pub kind: String,
    /// A description for reports: `frankfurt-1 killed`.
    pub what: String,
    /// The nodes whose requests it may affect.
    pub nodes: Vec<NodeId>,
    /// The origins that fail, by their index.
    pub origins: Vec<usize>,
    /// When it started.
    pub began: Micros,
    /// When it ended; `None` while it lasts.
    pub ended: Option<Micros>,
}

/// The kind of an unplanned fault: the machine paused the simulation with all its processes.
pub const SIMULATION_PAUSED: &str = "simulation-paused";

impl Fault {
    /// Whether it was in force between `from` and `to`, or ended less than `grace` before `from`.
    pub fn overlaps(&self, from: Micros, to: Micros, grace: Micros) -> bool {
        self.began <= to && self.ended.is_none_or(|ended| ended + grace >= from)
    }
}

/// A start or an exit of a node's process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProcessEvent {
    /// The node.
    pub node: NodeId,
    /// When it happened.
    pub at: Micros,
    /// True for a start, false for an exit.
    pub is_start: bool,
}

/// Everything that was recorded so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Upstream requests; an index is the request's `serial` minus one.
    pub fetches: Vec<Fetch>,
    /// Purges.
    pub purges: Vec<Purge>,
    /// Faults.
    pub faults: Vec<Fault>,
    /// Starts and ends of processes.
    pub process_events: Vec<ProcessEvent>,
    /// Answers of the name servers.
    pub dns_answers: Vec<DnsAnswer>,
    /// Changes of the states of origins, in the order of time.
    pub origin_states: Vec<OriginState>,
    /// Bytes that nodes sent to each other, recorded at the end of the run.
    pub peer_bytes: Vec<PeerBytes>,
    /// Changes of objects at the origins: object, new version, time.
    pub changes: Vec<(ObjectId, u32, Micros)>,
}

/// A change of the state of an origin at a node, as the node reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct OriginState {
    /// When the change was noticed.
    pub at: Micros,
    /// The node.
    pub node: NodeId,
    /// The pool; an origin has a state of its own in each.
    pub pool: String,
    /// The index of the origin.
    pub origin: usize,
    /// Whether it gets its share of requests.
    pub is_in_use: bool,
}

/// The bytes of the responses of a node to another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeerBytes {
    /// The node that asked.
    pub asker: NodeId,
    /// The node that answered.
    pub asked: NodeId,
    /// The bytes, with those of TLS.
    pub bytes: u64,
}

/// An answer of a name server, as a resolver got it.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsAnswer {
    /// When it had arrived.
    pub at: Micros,
    /// The country of the resolver and its clients, as an index of [`crate::plan::place::COUNTRIES`].
    pub country: usize,
    /// The node that answered.
    pub server: NodeId,
    /// The nodes whose addresses it has.
    pub nodes: Vec<NodeId>,
    /// Time from the query to the answer.
    pub took: Micros,
}

impl Facts {
    /// The upstream request with this serial number.
    pub fn fetch(&self, serial: u64) -> Option<&Fetch> {
        self.fetches.get(usize::try_from(serial.checked_sub(1)?).ok()?)
    }

    /// The bytes that a node sent to the nodes that asked it.
    pub fn bytes_to_peers(&self, node: NodeId) -> u64 {
        let answers = self.peer_bytes.iter().filter(|sent| sent.asked == node);
        answers.map(|sent| sent.bytes).sum()
    }

    /// Whether a fault that affects `node` was in force between `from` and `to` or ended less than
    /// `grace` before, or its process exited or restarted in that time. The first start does not
    /// count, because the node had no requests before.
    pub fn disturbed(&self, node: NodeId, from: Micros, to: Micros, grace: Micros) -> bool {
        let touches = |fault: &&Fault| fault.nodes.contains(&node);
        let mut events = self.process_events.iter().filter(|event| event.node == node).enumerate();
        let changes = |(number, event): (usize, &ProcessEvent)| {
            (number > 0 || !event.is_start) && (from..=to).contains(&event.at)
        };
        self.faults.iter().filter(touches).any(|fault| fault.overlaps(from, to, grace))
            || events.any(changes)
    }
}

/// The journal of a run. Clones share the same facts.
#[derive(Clone, Debug)]
pub struct Journal {
    start: Instant,
    facts: Arc<Mutex<Facts>>,
}

impl Journal {
    /// An empty journal whose clock starts now.
    #[allow(clippy::new_without_default, reason = "it starts a clock: not a neutral value")]
    pub fn new() -> Self {
        Journal { start: Instant::now(), facts: Arc::default() }
    }

    /// The current time.
    pub fn now(&self) -> Micros {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Converts a time of this journal's clock.
    pub fn instant(&self, at: Micros) -> Instant {
        self.start + Duration::from_micros(at)
    }

    /// Locks the facts. Do not hold the guard across an await point.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Records the start of an upstream request and returns its serial number.
    pub fn record_fetch(&self, mut fetch: Fetch) -> u64 {
        let mut facts = self.facts();
        fetch.serial = facts.fetches.len() as u64 + 1;
        let serial = fetch.serial;
        facts.fetches.push(fetch);
        serial
    }

    /// Updates the record of an upstream request.
    pub fn update_fetch(&self, serial: u64, change: impl FnOnce(&mut Fetch)) {
        let mut facts = self.facts();
        let at = usize::try_from(serial).unwrap_or(usize::MAX).wrapping_sub(1);
        if let Some(fetch) = facts.fetches.get_mut(at) {
            change(fetch);
        }
    }

    /// Records that a fault starts now, and returns its index in [`Facts::faults`].
    pub fn record_fault(&self, fault: Fault) -> usize {
        let began = self.now();
        let mut facts = self.facts();
        facts.faults.push(Fault { began, ended: None, ..fault });
        facts.faults.len() - 1
    }

    /// Records the end of a fault.
    pub fn end_fault(&self, fault: usize) {
        let now = self.now();
        if let Some(fault) = self.facts().faults.get_mut(fault) {
            fault.ended = Some(now);
        }
    }

    /// Records the start or exit of a node's process.
    pub fn record_process(&self, node: NodeId, is_start: bool) {
        let at = self.now();
        self.facts().process_events.push(ProcessEvent { node, at, is_start });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_the_objects_that_it_names() {
        let catalog =
            crate::plan::object::Catalog::new(1, 100, &crate::plan::object::Mix::default());
        let object = catalog.get(42);
        assert!(Scope::Object(42).covers(object) && !Scope::Object(41).covers(object));
        assert!(Scope::Group(2).covers(object) && !Scope::Group(1).covers(object));
        assert!(Scope::Class(object.class).covers(object) && Scope::All.covers(object));
        assert!(Scope::Site(object.class.host()).covers(object));
    }

    #[test]
    fn a_restart_is_a_disturbance_and_a_first_start_is_not() {
        let mut facts = Facts::default();
        let event = |node, at, is_start| ProcessEvent { node, at, is_start };
        facts.process_events = vec![event(1, 5, true), event(0, 10, true), event(0, 20, false)];
        assert!(!facts.disturbed(0, 0, 19, 0) && facts.disturbed(0, 15, 25, 0));
        facts.process_events.push(event(0, 30, true));
        assert!(facts.disturbed(0, 25, 35, 0) && !facts.disturbed(1, 0, 35, 0));
    }

    #[test]
    fn a_fault_overlaps_until_its_grace_period_is_over() {
        let fault = Fault {
            kind: "cut".into(),
            what: String::new(),
            nodes: vec![0],
            began: 10,
            ended: Some(20),
            ..Fault::default()
        };
        assert!(fault.overlaps(0, 10, 0) && fault.overlaps(20, 30, 0) && fault.overlaps(24, 30, 5));
        assert!(!fault.overlaps(0, 9, 0) && !fault.overlaps(26, 30, 5));
    }
}
