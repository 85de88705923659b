//! The checkers: promises that must hold in every scenario.
//!
//! Each checker is a small struct that is fed with what clients saw and what the journal
//! knows, and says which answer broke its promise. A scenario chooses load, faults and which
//! client errors are no fault of the edge; it never chooses what is checked.

mod bytes;
mod errors;
mod fills;
mod freshness;
mod geo;
mod private;
mod purged;
mod receipts;
mod resources;
mod status;

pub use errors::Excuse;
pub use resources::{Limits, Sample};

use crate::journal::{Facts, Fault, Fetch, Micros, NodeId, SECOND};
use crate::plan::object::{BodyFault, Catalog, Identity, Object, ObjectId};
use crate::plan::place::Country;
use serde::Serialize;

/// One answer, or the lack of one, as a client saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Position in the plan: names the request in reports.
    pub number: usize,
    /// The node that was asked.
    pub node: NodeId,
    /// Which client.
    pub client: u32,
    /// The client's country, by position in the list of countries.
    pub country: usize,
    /// The requested object.
    pub object: ObjectId,
    /// First and last byte asked for, inclusive.
    pub range: Option<(u64, u64)>,
    /// Whether it was asked for over TLS: https and http are two keys.
    pub tls: bool,
    /// When the request was sent.
    pub sent: Micros,
    /// When the answer's header was there; when it failed, if it did.
    pub first_byte: Micros,
    /// When the last byte was there.
    pub done: Micros,
    /// The answer, or what went wrong.
    pub outcome: Result<Answer, String>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `X-Fetch`: the upstream request that it came from.
    pub fetch: Option<u64>,
    /// `X-Version`.
    pub version: Option<u32>,
    /// `X-Origin`.
    pub origin: Option<String>,
    /// `ETag`.
    pub etag: Option<String>,
    /// `Age`, when it is there once and a number.
    pub age: Option<u64>,
    /// `Cache-Status`, all fields joined.
    pub cache_status: Option<String>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// Bytes of body.
    pub length: u64,
    /// The identity that the bytes of the body state.
    pub body: Result<Identity, BodyFault>,
}

/// The parts of an RFC 9211 `Cache-Status` member that checkers use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// `hit`.
    pub hit: bool,
    /// `fwd=`.
    pub fwd: Option<String>,
    /// `fwd-status=`.
    pub fwd_status: Option<u16>,
    /// `stored`.
    pub stored: bool,
    /// `collapsed`.
    pub collapsed: bool,
    /// `ttl=`; negative is stale.
    pub ttl: Option<i64>,
    /// `detail=`, quotes removed.
    pub detail: Option<String>,
}

impl CacheStatus {
    /// Reads the member of the cache nearest to the client: the last one.
    pub fn read(field: &str) -> Option<CacheStatus> {
        let member = split_outside_quotes(field, ',').last()?;
        let mut parameters = split_outside_quotes(member, ';').map(str::trim);
        parameters.next().filter(|name| !name.is_empty())?;
        let mut status = CacheStatus::default();
        for parameter in parameters {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, "?1"));
            let value = value.trim_matches('"');
            match name {
                "hit" => status.hit = value == "?1",
                "stored" => status.stored = value == "?1",
                "collapsed" => status.collapsed = value == "?1",
                "fwd" => status.fwd = Some(value.to_owned()),
                "fwd-status" => status.fwd_status = value.parse().ok(),
                "ttl" => status.ttl = value.parse().ok(),
                "detail" => status.detail = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(status)
    }

    /// Whether it says that a fresh stored response was used.
    pub fn claims_fresh(&self) -> bool {
        let says_stale = self.detail.as_deref().is_some_and(|detail| detail.contains("stale"));
        self.hit && self.ttl.is_none_or(|ttl| ttl >= 0) && !says_stale
    }
}

fn split_outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |character| {
        quoted ^= character == '"';
        character == separator && !quoted
    })
}

impl Seen {
    /// The answer's `Cache-Status`.
    pub fn cache_status(&self) -> Option<CacheStatus> {
        CacheStatus::read(self.outcome.as_ref().ok()?.cache_status.as_deref()?)
    }

    /// Whether a stored response was used, by the node's own word.
    pub fn is_hit(&self) -> bool {
        self.cache_status().is_some_and(|status| status.hit)
    }
}

/// The facts that checkers may read.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// Every object.
    pub catalog: &'a Catalog,
    /// The facts of the journal.
    pub facts: &'a Facts,
    /// The nodes' names.
    pub nodes: &'a [String],
    /// The countries of the clients.
    pub countries: &'a [Country],
    /// For each country, the origin that the configuration maps it to; empty when the
    /// configuration is not the lab's own.
    pub origin_of_country: &'a [String],
}

impl World<'_> {
    fn object(&self, seen: &Seen) -> &Object {
        self.catalog.get(seen.object)
    }

    /// The earliest that a node can have sent what its origin had read when the upstream request
    /// began: a handshake and the way before, and longer when a fault held it on its way.
    fn sent_after(&self, fetch: &Fetch) -> Micros {
        let earliest = fetch.began.saturating_sub(WAY_TO_ORIGIN);
        let held = |fault: &&Fault| {
            let touches = fetch.node.is_some_and(|node| fault.nodes.contains(&node));
            touches && fault.overlaps(earliest, fetch.began, 0)
        };
        let since = self.facts.faults.iter().filter(held).map(|fault| fault.began).min();
        since.map_or(earliest, |since| earliest.min(since.saturating_sub(WAY_TO_ORIGIN)))
    }
}

/// Two round trips around the world, and what a busy machine adds.
const WAY_TO_ORIGIN: Micros = 2 * SECOND;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Violation {
    /// Microseconds since the run began.
    pub at: Micros,
    /// Which request, in words: number, node, object.
    pub subject: String,
    /// The violation.
    pub what: String,
}

/// The findings of a checker so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    /// How often it looked.
    pub checked: u64,
    /// How often its promise was broken.
    pub broken: u64,
    /// The first of them.
    pub violations: Vec<Violation>,
}

/// Violations that are kept in words; more are only counted.
const KEPT: usize = 25;

impl Findings {
    fn look(&mut self) {
        self.checked += 1;
    }

    fn break_promise(&mut self, at: Micros, subject: String, what: String) {
        self.broken += 1;
        if self.violations.len() < KEPT {
            self.violations.push(Violation { at, subject, what });
        }
    }

    fn blame(&mut self, world: World, seen: &Seen, what: String) {
        self.break_promise(seen.sent, subject(world, seen), what);
    }
}

fn subject(world: World, seen: &Seen) -> String {
    let object = world.object(seen);
    let node = &world.nodes[seen.node];
    let range = seen.range.map_or(String::new(), |(from, to)| format!(" bytes {from}-{to}"));
    let status = match &seen.outcome {
        Ok(answer) => answer.cache_status.as_deref().unwrap_or("no Cache-Status"),
        Err(error) => error,
    };
    format!(
        "request {} at {node}: {}{}{range}, client {} in {} [{status}]",
        seen.number,
        object.class.host(),
        object.path(),
        seen.client,
        world.countries[seen.country].code,
    )
}

/// One promise.
pub trait Checker: Send {
    /// For tables: one word or two.
    fn name(&self) -> &'static str;

    /// The promise, as a sentence that is true of a run that passes.
    fn promise(&self) -> &'static str;

    /// An answer, or the lack of one.
    fn saw(&mut self, _world: World, _seen: &Seen) {}

    /// Called about once a second with the resources of a node's process.
    fn sampled(&mut self, _world: World, _sample: &Sample) {}

    /// The run is over; the fleet has been given time to settle.
    fn end(&mut self, _world: World) {}

    /// The findings.
    fn findings(&self) -> &Findings;
}

/// Every checker, in the order of the report.
pub fn all(excuses: Vec<Excuse>, limits: Limits) -> Vec<Box<dyn Checker>> {
    vec![
        Box::<bytes::WholeBytes>::default(),
        Box::<purged::PurgedStaysPurged>::default(),
        Box::<freshness::NeverTooOld>::default(),
        Box::<private::PrivateStaysPrivate>::default(),
        Box::<fills::OneFill>::default(),
        Box::new(errors::NoClientErrors::new(excuses)),
        Box::<status::TruthfulStatus>::default(),
        Box::<receipts::EveryReceipt>::default(),
        Box::<geo::RightOrigin>::default(),
        Box::new(resources::Bounded::new(limits)),
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::object::{Class, Mix};
    use crate::plan::place::COUNTRIES;

    /// A small world to make observations in.
    pub(crate) struct Lab {
        pub catalog: Catalog,
        pub facts: Facts,
        nodes: Vec<String>,
        origins: Vec<String>,
    }

    impl Lab {
        pub(crate) fn new() -> Self {
            let catalog = Catalog::new(1, 300, &Mix::default());
            let nodes = vec!["frankfurt-1".to_owned(), "tokyo-1".to_owned()];
            let origins = vec!["origin-frankfurt".to_owned(); COUNTRIES.len()];
            Lab { catalog, facts: Facts::default(), nodes, origins }
        }

        pub(crate) fn world(&self) -> World<'_> {
            let (catalog, facts) = (&self.catalog, &self.facts);
            let (nodes, origin_of_country) = (&self.nodes, &self.origins);
            World { catalog, facts, nodes, countries: &COUNTRIES, origin_of_country }
        }

        pub(crate) fn object(&self, class: Class) -> Object {
            let of_class = |object: &&Object| object.class == class;
            self.catalog.objects.iter().find(of_class).expect("every class").clone()
        }

        /// An upstream request from node 0 that took a tenth of a second.
        pub(crate) fn fetch(&mut self, object: &Object, version: u32, began: Micros) -> u64 {
            let serial = self.facts.fetches.len() as u64 + 1;
            self.facts.fetches.push(Fetch {
                serial,
                origin: 0,
                node: Some(0),
                object: object.id,
                version,
                range: None,
                bound: None,
                conditional: false,
                scheme: None,
                head: false,
                began,
                answered: Some(began + SECOND / 20),
                ended: Some(began + SECOND / 10),
                whole: true,
                status: 200,
                bytes: object.length(version),
            });
            serial
        }

        /// An answer of node 0 made from an upstream request, all as it should be.
        pub(crate) fn seen(&self, fetch: u64, sent: Micros, cache_status: &str) -> Seen {
            let fetch = self.facts.fetch(fetch).expect("fetched").clone();
            let object = self.catalog.get(fetch.object);
            let body = Identity { object: object.id, version: fetch.version, owner: 0 };
            let age = sent.saturating_sub(fetch.answered.unwrap_or(sent)) / SECOND;
            Seen {
                number: 1,
                node: 0,
                client: 5,
                country: 0,
                object: object.id,
                range: None,
                tls: false,
                sent,
                first_byte: sent.max(fetch.answered.unwrap_or(sent)) + 1000,
                done: sent.max(fetch.ended.unwrap_or(sent)) + 2000,
                outcome: Ok(Answer {
                    status: 200,
                    fetch: Some(fetch.serial),
                    version: Some(fetch.version),
                    origin: Some("origin-frankfurt".into()),
                    etag: Some(crate::fleet::origin::entity_tag(&body)),
                    age: Some(age),
                    cache_status: Some(cache_status.to_owned()),
                    content_range: None,
                    length: object.length(fetch.version),
                    body: Ok(body),
                }),
            }
        }
    }

    /// Changes the answer of an observation.
    pub(crate) fn answer(seen: &mut Seen) -> &mut Answer {
        seen.outcome.as_mut().expect("an answer")
    }

    /// The verdict of a checker on one observation; `None`: the promise holds.
    pub(crate) fn verdict(checker: &mut dyn Checker, lab: &Lab, seen: &Seen) -> Option<String> {
        let before = checker.findings().broken;
        checker.saw(lab.world(), seen);
        let findings = checker.findings();
        (findings.broken > before).then(|| findings.violations.last().expect("kept").what.clone())
    }

    #[test]
    fn cache_status_is_read_from_the_nearest_cache() {
        let read = |text: &str| CacheStatus::read(text).expect("a member");
        let hit = read("skerry; hit; ttl=30");
        assert!(hit.hit && hit.claims_fresh() && hit.ttl == Some(30));
        assert!(!read("skerry; hit; ttl=-3").claims_fresh());
        let miss = read("shield; hit, skerry; fwd=miss; fwd-status=200; stored; collapsed");
        assert!(!miss.hit && miss.stored && miss.collapsed);
        assert_eq!((miss.fwd.as_deref(), miss.fwd_status), (Some("miss"), Some(200)));
        let quoted = read("skerry; fwd=stale; key=\"https://a/?b=1;c,d\"; detail=\"x, y\"");
        assert_eq!(quoted.detail.as_deref(), Some("x, y"));
        assert_eq!(CacheStatus::read(""), None);
    }

    #[test]
    fn what_a_fault_held_on_its_way_was_sent_before_it_or_later() {
        let mut lab = Lab::new();
        let object = lab.object(Class::Static);
        let fetch = lab.fetch(&object, 0, 30 * SECOND);
        let sent_after = |lab: &Lab| lab.world().sent_after(lab.facts.fetch(fetch).expect("it"));
        assert_eq!(sent_after(&lab), 28 * SECOND);
        for (node, expected) in [(1, 28 * SECOND), (0, 18 * SECOND)] {
            let (kind, what, nodes) = ("cut".to_owned(), String::new(), vec![node]);
            let (began, ended) = (20 * SECOND, Some(29 * SECOND));
            lab.facts.faults.push(Fault { kind, what, nodes, began, ended });
            assert_eq!(sent_after(&lab), expected);
        }
    }

    #[test]
    fn an_answer_that_is_as_it_should_be_breaks_no_promise() {
        let mut lab = Lab::new();
        for class in [Class::Static, Class::Page, Class::Large] {
            let object = lab.object(class);
            let fetch = lab.fetch(&object, 0, SECOND);
            let ttl = object.max_age - 1;
            let miss = lab.seen(fetch, SECOND - 1000, "skerry; fwd=uri-miss; stored");
            let hit = lab.seen(fetch, 2 * SECOND + 100_000, &format!("skerry; hit; ttl={ttl}"));
            for mut checker in all(Vec::new(), Limits::default()) {
                for seen in [&miss, &hit] {
                    let verdict = verdict(&mut *checker, &lab, seen);
                    assert_eq!(verdict, None, "{} on {class:?}", checker.name());
                }
                checker.end(lab.world());
                assert_eq!(checker.findings().broken, 0, "{}", checker.name());
            }
        }
    }
}
