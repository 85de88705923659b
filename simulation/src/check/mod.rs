//! The invariants that hold in every scenario.
//!
//! Each checker tests one promise. It receives every response that a client got and the facts of the
//! journal, and reports the responses that break its promise. A scenario describes load, faults and
//! expected client errors; it cannot switch off a checker.

mod balance;
mod bytes;
mod dns;
mod errors;
mod fills;
mod freshness;
mod geo;
mod groups;
mod origins;
mod private;
mod purged;
mod receipts;
mod region;
mod resources;
mod shield;
mod status;

pub use geo::{ExpectedOrigin, expected_origin};
pub use region::{RegionFills, region_fills};
pub use resources::Sample;

use crate::journal::{Facts, Fault, Fetch, Micros, NodeId, SECOND};
use crate::plan::object::{BodyFault, Catalog, HOSTS, Identity, Object, ObjectId};
use crate::plan::place::{COUNTRIES, Country};
use crate::plan::scenario::Scenario;
use serde::Serialize;

/// The result of one client request: a response or an error.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Index in the plan; identifies the request in reports.
    pub number: usize,
    /// The node that received the request.
    pub node: NodeId,
    /// The client's number.
    pub client: u32,
    /// The client's country, as an index of [`crate::plan::place::COUNTRIES`].
    pub country: usize,
    /// The group that the client was told before, if any; sent as a cookie.
    pub group: Option<String>,
    /// The requested object.
    pub object: ObjectId,
    /// First and last byte of the requested range, inclusive.
    pub range: Option<(u64, u64)>,
    /// Whether the request used TLS. Requests over http and https have different cache keys.
    pub tls: bool,
    /// When the request was sent.
    pub sent: Micros,
    /// When the header section had arrived, or when the request failed.
    pub first_byte: Micros,
    /// When the last byte had arrived, or when the request failed.
    pub done: Micros,
    /// The response, or an error message.
    pub outcome: Result<ObservedResponse, String>,
}

/// A complete response, reduced to what checkers need.
#[derive(Clone, Debug)]
pub struct ObservedResponse {
    /// The status code.
    pub status: u16,
    /// `X-Fetch`: the serial number of the upstream request that got it.
    pub fetch: Option<u64>,
    /// `X-Version`.
    pub version: Option<u32>,
    /// `X-Origin`.
    pub origin: Option<String>,
    /// The group that a cookie tells a new visitor.
    pub new_group: Option<String>,
    /// `ETag`.
    pub etag: Option<String>,
    /// `Age`, if it is a single number.
    pub age: Option<u64>,
    /// `Cache-Status`, all field lines joined.
    pub cache_status: Option<String>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// Whether the content was coded (`Content-Encoding`).
    pub is_coded: bool,
    /// Length of the body.
    pub length: u64,
    /// The identity of the body's bytes.
    pub body: Result<Identity, BodyFault>,
}

/// The parameters of a `Cache-Status` member (RFC 9211) that checkers use.
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
    /// `ttl=`; negative for a stale response.
    pub ttl: Option<i64>,
    /// `detail=`, without quotes.
    pub detail: Option<String>,
}

impl CacheStatus {
    /// Parses the field: the member of the cache nearest to the origin comes first, that of the node that the client
    /// asked last.
    pub fn read_all(field: &str) -> Vec<CacheStatus> {
        split_outside_quotes(field, ',').filter_map(CacheStatus::read).collect()
    }

    /// Parses a member of the field.
    fn read(member: &str) -> Option<CacheStatus> {
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

    /// Whether it states that a fresh stored response was used.
    pub fn claims_fresh(&self) -> bool {
        let is_stale = self.detail.as_deref().is_some_and(|detail| detail.contains("stale"));
        self.hit && self.ttl.is_none_or(|ttl| ttl >= 0) && !is_stale
    }
}

fn split_outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |character| {
        quoted ^= character == '"';
        character == separator && !quoted
    })
}

/// The store that a response came from, as its `Cache-Status` states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedFrom {
    /// That of the node that the client asked.
    OwnStore,
    /// That of another node.
    OtherNode,
    /// None: a request to an origin got the response, this one or one that it followed.
    Origin,
}

impl Observation {
    /// The words of each cache on the way about the response; see [`CacheStatus::read_all`].
    pub fn cache_statuses(&self) -> Vec<CacheStatus> {
        let field = self.outcome.as_ref().ok().and_then(|answer| answer.cache_status.as_deref());
        field.map(CacheStatus::read_all).unwrap_or_default()
    }

    /// The `Cache-Status` of the node that the client asked.
    pub fn cache_status(&self) -> Option<CacheStatus> {
        self.cache_statuses().pop()
    }

    /// The `Cache-Status` of the store that the response came from. Members before it were stored with the response.
    pub fn status_of_store(&self) -> Option<CacheStatus> {
        self.cache_statuses().into_iter().rfind(|status| status.hit)
    }

    /// Whether the node that the client asked states that it used a stored response.
    pub fn is_hit(&self) -> bool {
        self.cache_status().is_some_and(|status| status.hit)
    }

    /// The source of the response. `None`: there is no response.
    pub fn served_from(&self) -> Option<ServedFrom> {
        let answer = self.outcome.as_ref().ok()?;
        let statuses = self.cache_statuses();
        Some(match statuses.split_last() {
            _ if answer.status >= 500 => return None,
            Some((own, _)) if own.hit => ServedFrom::OwnStore,
            Some((_, others)) if others.iter().any(|other| other.hit) => ServedFrom::OtherNode,
            _ => ServedFrom::Origin,
        })
    }
}

/// The fleet of a run as checkers know it. It stays the same during the run.
#[derive(Clone, Debug, Default)]
pub struct CheckedFleet {
    /// See [`CheckContext::nodes`].
    pub nodes: Vec<String>,
    /// See [`CheckContext::regions`].
    pub regions: Vec<Vec<NodeId>>,
    /// See [`CheckContext::sources`].
    pub sources: Vec<Vec<NodeId>>,
    /// See [`CheckContext::origins_of_country`].
    pub origins_of_country: Vec<Vec<String>>,
    /// See [`CheckContext::groups`].
    pub groups: Vec<(String, u32)>,
}

impl CheckedFleet {
    /// The context of an observation: this fleet with what has been recorded so far.
    pub fn context<'a>(&'a self, catalog: &'a Catalog, facts: &'a Facts) -> CheckContext<'a> {
        CheckContext {
            catalog,
            facts,
            nodes: &self.nodes,
            regions: &self.regions,
            sources: &self.sources,
            countries: &COUNTRIES,
            origins_of_country: &self.origins_of_country,
            groups: &self.groups,
        }
    }
}

/// The facts that checkers compare observations with.
#[derive(Clone, Copy)]
pub struct CheckContext<'a> {
    /// All objects.
    pub catalog: &'a Catalog,
    /// The recorded facts.
    pub facts: &'a Facts,
    /// The nodes' names.
    pub nodes: &'a [String],
    /// For each node, the nodes that keep one cache with it: those of its region if they ask each other, otherwise
    /// itself alone.
    pub regions: &'a [Vec<NodeId>],
    /// For each node, the nodes whose stored responses and requests it may use: those of its region and of the shield.
    pub sources: &'a [Vec<NodeId>],
    /// The countries of clients.
    pub countries: &'a [Country],
    /// For each country, the origin that the configuration maps it to, and then those that follow while it is down;
    /// empty for a user's configuration.
    pub origins_of_country: &'a [Vec<String>],
    /// The groups of the visitors of shop.test with their weights; empty if the site does not split
    /// them.
    pub groups: &'a [(String, u32)],
}

impl CheckContext<'_> {
    fn object(&self, observation: &Observation) -> &Object {
        self.catalog.get(observation.object)
    }

    /// Whether a fault, an exit or a restart disturbed a node or one of its sources; see [`Facts::disturbed`].
    fn disturbed(&self, node: NodeId, from: Micros, to: Micros, grace: Micros) -> bool {
        let mut sources = self.sources[node].iter();
        sources.any(|source| self.facts.disturbed(*source, from, to, grace))
    }

    /// Whether an upstream request is of a node or of one of its sources.
    fn is_for(&self, fetch: &Fetch, node: NodeId) -> bool {
        fetch.node.is_some_and(|sender| self.sources[node].contains(&sender))
    }

    /// Whether the object's site splits its visitors into groups.
    fn has_groups(&self, object: &Object) -> bool {
        !self.groups.is_empty() && object.class.host() == HOSTS[0]
    }

    /// The earliest time at which the node can have sent an upstream request: the time of its arrival
    /// minus a handshake and the transit, or earlier if a fault held it back.
    fn earliest_send(&self, fetch: &Fetch) -> Micros {
        let earliest = fetch.began.saturating_sub(TRANSIT_MAX);
        let held = |fault: &&Fault| {
            let touches = fetch.node.is_some_and(|node| fault.nodes.contains(&node));
            touches && fault.overlaps(earliest, fetch.began, 0)
        };
        let since = self.facts.faults.iter().filter(held).map(|fault| fault.began).min();
        since.map_or(earliest, |since| earliest.min(since.saturating_sub(TRANSIT_MAX)))
    }
}

/// Longest time on the way to an origin: two long round trips, and delays of a busy machine.
const TRANSIT_MAX: Micros = 2 * SECOND;

/// One case in which a promise was broken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Violation {
    /// Microseconds since the start of the run.
    pub at: Micros,
    /// The request or purge, in words: number, node, object.
    pub subject: String,
    /// The observation that breaks the promise, in words.
    pub what: String,
}

/// The result of a checker.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    /// Number of cases that were checked.
    pub checked: u64,
    /// Number of cases that broke the promise.
    pub broken: u64,
    /// The first of these, at most 25.
    pub violations: Vec<Violation>,
}

/// Maximum number of violations with details; further ones are only counted.
const VIOLATIONS_MAX: usize = 25;

impl Findings {
    fn count_check(&mut self) {
        self.checked += 1;
    }

    fn record_violation(&mut self, at: Micros, subject: String, what: String) {
        self.broken += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { at, subject, what });
        }
    }

    fn report(&mut self, context: CheckContext, observation: &Observation, what: String) {
        self.record_violation(observation.sent, subject(context, observation), what);
    }
}

fn subject(context: CheckContext, observation: &Observation) -> String {
    let object = context.object(observation);
    let node = &context.nodes[observation.node];
    let range = observation.range.map_or(String::new(), |(from, to)| format!(" bytes {from}-{to}"));
    let status = match &observation.outcome {
        Ok(response) => response.cache_status.as_deref().unwrap_or("no Cache-Status"),
        Err(error) => error,
    };
    format!(
        "request {} at {node}: {}{}{range}, client {} in {} [{status}]",
        observation.number,
        object.class.host(),
        object.path(),
        observation.client,
        context.countries[observation.country].code,
    )
}

/// Tests one promise.
pub trait Checker: Send {
    /// A short name for tables.
    fn name(&self) -> &'static str;

    /// The promise, as a sentence that is true for a run that passes.
    fn promise(&self) -> &'static str;

    /// Checks the result of a client request.
    fn observe(&mut self, _context: CheckContext, _observation: &Observation) {}

    /// Checks the resource usage of a node, about once a second.
    fn sample(&mut self, _context: CheckContext, _sample: &Sample) {}

    /// Checks the journal after the end of the run, when receipts have had time to arrive.
    fn end(&mut self, _context: CheckContext) {}

    /// The result so far.
    fn findings(&self) -> &Findings;
}

/// All checkers for a run of this scenario, in the order of the report.
pub fn all(scenario: &Scenario) -> Vec<Box<dyn Checker>> {
    vec![
        Box::<bytes::WholeBytes>::default(),
        Box::<purged::PurgedStaysPurged>::default(),
        Box::<freshness::NeverTooOld>::default(),
        Box::<private::PrivateStaysPrivate>::default(),
        Box::<fills::OneFill>::default(),
        Box::<region::OneFillInRegion>::default(),
        Box::<balance::NoHotNode>::default(),
        Box::new(shield::ShieldAsksOrigins::new(&scenario.fleet.shield)),
        Box::new(errors::NoClientErrors::new(scenario.excuse.clone())),
        Box::<status::TruthfulStatus>::default(),
        Box::<receipts::EveryReceipt>::default(),
        Box::<geo::RightOrigin>::default(),
        Box::new(origins::BadOriginsAreLeft::new(scenario.fleet.failover)),
        Box::<groups::StayInGroup>::default(),
        Box::<dns::AnswersNameLiveNodes>::default(),
        Box::new(dns::ClientsFollowAnswers::new(scenario.fleet.dns_ttl_s)),
        Box::new(resources::Bounded::new(scenario.limits)),
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::object::{Class, Mix};

    /// A small catalog and journal to build observations from.
    pub(crate) struct Fixture {
        pub catalog: Catalog,
        pub facts: Facts,
        pub fleet: CheckedFleet,
    }

    impl Fixture {
        pub(crate) fn new() -> Self {
            let catalog = Catalog::new(1, 300, &Mix::default());
            let nodes = vec!["frankfurt-1".to_owned(), "tokyo-1".to_owned()];
            let origins = ["origin-frankfurt", "origin-virginia"].map(str::to_owned).to_vec();
            let origins = vec![origins; COUNTRIES.len()];
            let fleet =
                CheckedFleet { nodes, origins_of_country: origins, ..CheckedFleet::default() };
            let mut fixture = Fixture { catalog, facts: Facts::default(), fleet };
            fixture.set_regions(vec![vec![0], vec![1]]);
            fixture
        }

        /// With both nodes in one region, where they ask each other.
        pub(crate) fn with_peers() -> Self {
            let mut fixture = Fixture::new();
            fixture.set_regions(vec![vec![0, 1]; 2]);
            fixture
        }

        /// Sets the nodes that keep one cache with each node. There is no shield.
        pub(crate) fn set_regions(&mut self, regions: Vec<Vec<NodeId>>) {
            self.fleet.sources.clone_from(&regions);
            self.fleet.regions = regions;
        }

        pub(crate) fn context(&self) -> CheckContext<'_> {
            self.fleet.context(&self.catalog, &self.facts)
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
                if_range: None,
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

        /// A correct response of node 0 that an upstream request got.
        pub(crate) fn observation(
            &self,
            fetch: u64,
            sent: Micros,
            cache_status: &str,
        ) -> Observation {
            let fetch = self.facts.fetch(fetch).expect("fetched").clone();
            let object = self.catalog.get(fetch.object);
            let body = Identity { object: object.id, version: fetch.version, owner: 0 };
            let age = sent.saturating_sub(fetch.answered.unwrap_or(sent)) / SECOND;
            Observation {
                number: 1,
                node: 0,
                client: 5,
                country: 0,
                group: None,
                object: object.id,
                range: None,
                tls: false,
                sent,
                first_byte: sent.max(fetch.answered.unwrap_or(sent)) + 1000,
                done: sent.max(fetch.ended.unwrap_or(sent)) + 2000,
                outcome: Ok(ObservedResponse {
                    status: 200,
                    fetch: Some(fetch.serial),
                    version: Some(fetch.version),
                    origin: Some("origin-frankfurt".into()),
                    new_group: None,
                    etag: Some(crate::fleet::origin::entity_tag(&body)),
                    age: Some(age),
                    cache_status: Some(cache_status.to_owned()),
                    content_range: None,
                    is_coded: false,
                    length: object.length(fetch.version),
                    body: Ok(body),
                }),
            }
        }
    }

    /// The response of an observation, to be changed.
    pub(crate) fn response(observation: &mut Observation) -> &mut ObservedResponse {
        observation.outcome.as_mut().expect("a response")
    }

    /// The violation that a checker reports for an observation; `None` if its promise holds.
    pub(crate) fn verdict(
        checker: &mut dyn Checker,
        fixture: &Fixture,
        observation: &Observation,
    ) -> Option<String> {
        let before = checker.findings().broken;
        checker.observe(fixture.context(), observation);
        let findings = checker.findings();
        (findings.broken > before).then(|| findings.violations.last().expect("kept").what.clone())
    }

    #[test]
    fn cache_status_has_a_member_of_each_cache() {
        let read = |text: &str| CacheStatus::read_all(text).pop().expect("a member");
        let hit = read("skerry; hit; ttl=30");
        assert!(hit.hit && hit.claims_fresh() && hit.ttl == Some(30));
        assert!(!read("skerry; hit; ttl=-3").claims_fresh());
        let miss = read("shield; hit, skerry; fwd=miss; fwd-status=200; stored; collapsed");
        assert!(!miss.hit && miss.stored && miss.collapsed);
        assert_eq!((miss.fwd.as_deref(), miss.fwd_status), (Some("miss"), Some(200)));
        let quoted = read("skerry; fwd=stale; key=\"https://a/?b=1;c,d\"; detail=\"x, y\"");
        assert_eq!(quoted.detail.as_deref(), Some("x, y"));
        assert_eq!(CacheStatus::read_all("").len(), 0);
        assert!(CacheStatus::read_all("owner; hit; ttl=9, skerry; fwd=miss")[0].hit);
    }

    #[test]
    fn a_response_comes_from_the_first_store_that_had_it() {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Static);
        let fetch = fixture.fetch(&object, 0, SECOND);
        let check = |status: &str, expected| {
            let observation = fixture.observation(fetch, 2 * SECOND, status);
            assert_eq!(observation.served_from(), Some(expected), "{status}");
        };
        check("skerry; hit; ttl=9", ServedFrom::OwnStore);
        check("skerry; fwd=uri-miss; stored, skerry; hit; ttl=9", ServedFrom::OwnStore);
        check("skerry; hit; ttl=9, skerry; fwd=uri-miss", ServedFrom::OtherNode);
        check("skerry; fwd=uri-miss; stored, skerry; fwd=uri-miss", ServedFrom::Origin);
        check("skerry; fwd=uri-miss", ServedFrom::Origin);
        let mut failed = fixture.observation(fetch, 2 * SECOND, "skerry; fwd=uri-miss");
        response(&mut failed).status = 502;
        assert_eq!(failed.served_from(), None);
    }

    #[test]
    fn a_request_that_a_fault_held_back_may_have_been_sent_before_the_fault() {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Static);
        let fetch = fixture.fetch(&object, 0, 30 * SECOND);
        let earliest_send = |fixture: &Fixture| {
            fixture.context().earliest_send(fixture.facts.fetch(fetch).expect("it"))
        };
        assert_eq!(earliest_send(&fixture), 28 * SECOND);
        for (node, expected) in [(1, 28 * SECOND), (0, 18 * SECOND)] {
            let (kind, what, nodes) = ("cut".to_owned(), String::new(), vec![node]);
            let (began, ended) = (20 * SECOND, Some(29 * SECOND));
            let fault = Fault { kind, what, nodes, began, ended, ..Fault::default() };
            fixture.facts.faults.push(fault);
            assert_eq!(earliest_send(&fixture), expected);
        }
    }

    #[test]
    fn a_correct_response_breaks_no_promise() {
        let mut fixture = Fixture::new();
        for class in [Class::Static, Class::Page, Class::Large] {
            let object = fixture.object(class);
            let fetch = fixture.fetch(&object, 0, SECOND);
            let ttl = object.max_age - 1;
            let miss = fixture.observation(fetch, SECOND - 1000, "skerry; fwd=uri-miss; stored");
            let hit = fixture.observation(
                fetch,
                2 * SECOND + 100_000,
                &format!("skerry; hit; ttl={ttl}"),
            );
            let scenario = Scenario::read("about = ''\nduration_s = 1").expect("a scenario");
            for mut checker in all(&scenario) {
                for observation in [&miss, &hit] {
                    let verdict = verdict(&mut *checker, &fixture, observation);
                    assert_eq!(verdict, None, "{} on {class:?}", checker.name());
                }
                checker.end(fixture.context());
                assert_eq!(checker.findings().broken, 0, "{}", checker.name());
            }
        }
    }
}
