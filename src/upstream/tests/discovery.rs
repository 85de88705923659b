//! Sources of members: DNS from a real name server, files, HTTP.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use hickory_server::proto::rr::{Record, RecordType};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::settings::Scheme;
use super::name_server::{Mode, NameServer, address, srv};
use super::*;
use crate::clock::Clock;
use crate::labels::DiscoveryOutcome;
use crate::metrics::Metrics;

/// The pools of a configuration with their sources followed, and one core.
struct DiscoveryBed {
    pools: Pools,
    discovery: Discovery,
    bed: Bed,
}

impl DiscoveryBed {
    fn new(definition: &PoolDefinition, resolver: Arc<Resolver>, metrics: Arc<Metrics>) -> Self {
        let pools = Pools::new(std::slice::from_ref(definition)).expect("a good pool");
        let pool = pools.named("test").expect("the pool").clone();
        let mut discovery =
            Discovery::new(resolver.clone(), metrics.background(), Handle::current());
        drop(discovery.replace(&pools));
        let upstreams = Upstreams::new(resolver, Clock::system(), metrics.worker(0));
        Self { pools, discovery, bed: Bed { upstreams, pool, metrics } }
    }

    /// The pool of these sources, with names from this server.
    fn with_names(server: &NameServer, sources: Vec<MemberSource>) -> Self {
        let metrics = Metrics::new(1);
        let resolver = server.resolver(metrics.background());
        Self::new(&of_sources(sources), resolver, metrics)
    }

    fn without_names(sources: Vec<MemberSource>) -> Self {
        let metrics = Metrics::new(1);
        let resolver =
            Resolver::new(DnsSettings::default(), Handle::current(), metrics.background());
        Self::new(&of_sources(sources), resolver, metrics)
    }

    /// `URL*WEIGHT@PRIORITY` of each member.
    fn origins(&self) -> Vec<String> {
        let members = self.bed.pool.members();
        let entries = members.entries();
        entries.map(|(_, it)| format!("{}*{}@{}", it.url(), it.weight, it.priority)).collect()
    }

    fn count(&self, outcome: DiscoveryOutcome) -> u64 {
        self.bed.metrics.total(Metric::UpstreamDiscoveries, outcome.index())
    }

    async fn until_origins(&self, expected: &[&str]) {
        until(|| self.origins() == expected, || format!("{:?}, not {expected:?}", self.origins()))
            .await;
    }

    /// Waits until the source has replied so `count` times.
    async fn until_count(&self, outcome: DiscoveryOutcome, count: u64) {
        let message = || format!("{outcome:?} {} times", self.count(outcome));
        until(|| self.count(outcome) >= count, message).await;
    }
}

/// Whether the source has answered since then, and not just before.
fn answered_after(source: &SourceReport, then: Instant) -> bool {
    source.answered.is_some_and(|age| age + Duration::from_millis(50) < then.elapsed())
}

async fn until(condition: impl Fn() -> bool, message: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{}", message());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn of_sources(sources: Vec<MemberSource>) -> PoolDefinition {
    PoolDefinition { sources, ..pool(Vec::new()) }
}

fn source(kind: SourceKind) -> MemberSource {
    MemberSource { kind, defaults: MemberDefaults::default() }
}

fn each_address_of(host: &str, port: u16) -> MemberSource {
    source(SourceKind::Addresses { scheme: Scheme::Http, host: host.into(), port })
}

fn srv_of(name: &str) -> MemberSource {
    source(SourceKind::Srv { scheme: Scheme::Http, name: name.into() })
}

fn a(host: &str, ttl: u32, addresses: &[&str]) -> Vec<Record> {
    addresses.iter().map(|it| address(host, ttl, it)).collect()
}

#[tokio::test]
async fn members_follow_the_addresses_of_a_name_after_its_ttl() {
    on_core(async {
        let server = NameServer::start().await;
        server.set(a("app.internal.", 1, &["10.0.0.2", "10.0.0.1", "2001:db8::1"])).await;
        let bed = DiscoveryBed::with_names(&server, vec![each_address_of("app.internal.", 81)]);
        let first =
            ["http://10.0.0.1:81*1@0", "http://10.0.0.2:81*1@0", "http://[2001:db8::1]:81*1@0"];
        bed.until_origins(&first).await;
        let stays = bed.bed.pool.members().at(1).clone();

        server.set(a("app.internal.", 3600, &["10.0.0.3", "10.0.0.2"])).await;
        let changed = Instant::now();
        bed.until_origins(&["http://10.0.0.2:81*1@0", "http://10.0.0.3:81*1@0"]).await;
        assert!(Arc::ptr_eq(&stays, bed.bed.pool.members().at(0)), "it is the same member");
        let asked = server.asked(RecordType::A);
        assert!(asked[1] - asked[0] > Duration::from_millis(900), "the TTL is a second");
        let later = asked.iter().filter(|at| **at > changed).count();
        assert_eq!(later, 1, "the TTL is an hour now");
    })
    .await;
}

#[tokio::test]
async fn the_last_addresses_stay_while_the_name_server_fails() {
    on_core(async {
        let server = NameServer::start().await;
        server.set(a("app.internal.", 0, &["10.0.0.1"])).await;
        let bed = DiscoveryBed::with_names(&server, vec![each_address_of("app.internal.", 80)]);
        let last = ["http://10.0.0.1:80*1@0"];
        bed.until_origins(&last).await;

        server.answer(Mode::ServFail(None));
        bed.until_count(DiscoveryOutcome::Failed, 2).await;
        assert_eq!(bed.origins(), last);
        let failure = |bed: &DiscoveryBed| bed.bed.pool.sources()[0].failure.clone();
        assert!(failure(&bed).is_some());
        server.answer(Mode::Silence);
        let failed = bed.count(DiscoveryOutcome::Failed);
        bed.until_count(DiscoveryOutcome::Failed, failed + 2).await;
        assert_eq!(bed.origins(), last);
        // The name is gone.
        server.set(a("other.internal.", 0, &["10.0.0.9"])).await;
        server.answer(Mode::Zone);
        bed.until_count(DiscoveryOutcome::Empty, 2).await;
        assert_eq!(bed.origins(), last);
        assert_eq!(failure(&bed).as_deref(), Some("there is no such name"));

        server.set(a("app.internal.", 0, &["10.0.0.2"])).await;
        bed.until_origins(&["http://10.0.0.2:80*1@0"]).await;
        assert_eq!(failure(&bed), None);
    })
    .await;
}

#[tokio::test]
async fn a_family_that_fails_keeps_its_addresses_and_one_that_is_empty_does_not() {
    on_core(async {
        let server = NameServer::start().await;
        server.set(a("app.internal.", 0, &["10.0.0.1", "2001:db8::1"])).await;
        let bed = DiscoveryBed::with_names(&server, vec![each_address_of("app.internal.", 80)]);
        bed.until_origins(&["http://10.0.0.1:80*1@0", "http://[2001:db8::1]:80*1@0"]).await;
        server.set(a("app.internal.", 0, &["10.0.0.2"])).await;
        server.answer(Mode::ServFail(Some(RecordType::AAAA)));
        bed.until_origins(&["http://10.0.0.2:80*1@0", "http://[2001:db8::1]:80*1@0"]).await;
        server.answer(Mode::Zone);
        bed.until_origins(&["http://10.0.0.2:80*1@0"]).await;
    })
    .await;
}

#[tokio::test]
async fn srv_records_give_port_weight_and_priority() {
    on_core(async {
        let server = NameServer::start().await;
        let records = |list: &[(u16, u16, u16, &str)]| -> Vec<Record> {
            list.iter().map(|it| srv("_http._tcp.app.internal.", 0, *it)).collect()
        };
        server
            .set(records(&[
                (20, 0, 8080, "spare.internal."),
                (10, 3, 81, "a.internal."),
                (10, 1, 80, "b.internal."),
            ]))
            .await;
        let bed = DiscoveryBed::with_names(&server, vec![srv_of("_http._tcp.app.internal.")]);
        bed.until_origins(&[
            "http://a.internal:81*3@10",
            "http://b.internal:80*1@10",
            "http://spare.internal:8080*1@20",
        ])
        .await;
        let before: Vec<u64> = bed.bed.pool.members().iter().map(|it| it.id).collect();
        // Weight and priority are no part of a member's identity.
        server.set(records(&[(5, 9, 8080, "spare.internal."), (10, 3, 81, "a.internal.")])).await;
        bed.until_origins(&["http://spare.internal:8080*9@5", "http://a.internal:81*3@10"]).await;
        let after: Vec<u64> = bed.bed.pool.members().iter().map(|it| it.id).collect();
        assert_eq!(after, [before[2], before[0]]);
        // "The service is decidedly not available" (RFC 2782).
        server.set(records(&[(0, 0, 0, ".")])).await;
        bed.until_count(DiscoveryOutcome::Empty, 1).await;
        assert_eq!(bed.origins().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn the_members_of_lower_srv_priority_get_requests_when_the_others_are_down() {
    on_core(async {
        let (server, origin) = (NameServer::start().await, Scripted::bind().await);
        let closed = closed_port().await;
        let mut records = a("o.internal.", 60, &["127.0.0.1"]);
        records.push(srv("_http._tcp.app.internal.", 60, (1, 1, closed.port, "o.internal.")));
        records.push(srv(
            "_http._tcp.app.internal.",
            60,
            (2, 1, origin.origin().port, "o.internal."),
        ));
        server.set(records).await;
        let bed = DiscoveryBed::with_names(&server, vec![srv_of("_http._tcp.app.internal.")]);
        until(|| bed.origins().len() == 2, || "no members".to_owned()).await;
        let (body, ()) = tokio::join!(bed.bed.fetch(), async {
            origin.accept().await.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        });
        assert_eq!(body, "ok");
    })
    .await;
}

#[tokio::test]
async fn a_member_that_vanishes_finishes_its_exchange_and_gets_no_other() {
    on_core(async {
        let server = NameServer::start().await;
        let (old, new) = (Scripted::bind().await, Scripted::bind().await);
        let name = "_http._tcp.app.internal.";
        let at = |origin: &Scripted| {
            let mut records = a("o.internal.", 60, &["127.0.0.1"]);
            records.push(srv(name, 0, (1, 1, origin.origin().port, "o.internal.")));
            records
        };
        server.set(at(&old)).await;
        let bed = DiscoveryBed::with_names(&server, vec![srv_of(name)]);
        until(|| bed.origins().len() == 1, || "no members".to_owned()).await;
        let (response, mut peer) = tokio::join!(bed.bed.get(), async {
            let mut peer = old.accept().await;
            peer.head().await;
            peer.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nha\r\n").await;
            peer
        });
        server.set(at(&new)).await;
        let port = new.origin().port;
        bed.until_origins(&[&format!("http://o.internal:{port}*1@1")]).await;
        let (next, ()) = tokio::join!(bed.bed.fetch(), async {
            new.accept().await.answer("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnew").await;
        });
        assert_eq!(next, "new");
        peer.say("2\r\nlf\r\n0\r\n\r\n").await;
        assert_eq!(read(response.expect("a head")).await.expect("a whole body"), "half");
        peer.closed().await;
    })
    .await;
}

#[tokio::test]
async fn a_member_that_comes_back_has_its_health_and_new_ones_ramp() {
    on_core(async {
        let server = NameServer::start().await;
        server.set(a("app.internal.", 0, &["10.0.0.1", "10.0.0.2"])).await;
        let mut definition = of_sources(vec![each_address_of("app.internal.", 80)]);
        definition.settings.health.slow_start = Duration::from_secs(600);
        let metrics = Metrics::new(1);
        let resolver = server.resolver(metrics.background());
        let bed = DiscoveryBed::new(&definition, resolver, metrics);
        let classes = || -> Vec<HealthClass> {
            bed.bed.pool.members().iter().map(|it| it.health.view().class()).collect()
        };
        until(|| bed.origins().len() == 2, || "no members".to_owned()).await;
        assert_eq!(classes(), [HealthClass::Up; 2], "the first answer does not ramp");
        let first = bed.bed.pool.members().at(0).clone();

        server.set(a("app.internal.", 0, &["10.0.0.2", "10.0.0.3"])).await;
        bed.until_origins(&["http://10.0.0.2:80*1@0", "http://10.0.0.3:80*1@0"]).await;
        assert_eq!(classes(), [HealthClass::Up, HealthClass::Ramping]);
        assert!(first.is_removed());
        server.set(a("app.internal.", 0, &["10.0.0.1"])).await;
        bed.until_origins(&["http://10.0.0.1:80*1@0"]).await;
        assert!(Arc::ptr_eq(&first, bed.bed.pool.members().at(0)), "it is the same member");
        assert!(!first.is_removed());
    })
    .await;
}

#[tokio::test]
async fn sources_add_up_to_the_limit_of_a_pool() {
    on_core(async {
        let server = NameServer::start().await;
        let address = |at: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + at)).to_string();
        let addresses: Vec<String> = (0..1_030).map(address).collect();
        let addresses: Vec<&str> = addresses.iter().map(|it| &**it).collect();
        server.set(a("many.internal.", 60, &addresses)).await;
        let mut definition = of_sources(vec![each_address_of("many.internal.", 80)]);
        definition.origins = vec![Origin::http("10.255.0.1", 80)];
        let metrics = Metrics::new(1);
        // 1,030 records travel over TCP.
        let timeout = Duration::from_secs(5);
        let resolver = server.resolver_with_timeout(metrics.background(), timeout);
        let bed = DiscoveryBed::new(&definition, resolver, metrics);
        until(|| bed.origins().len() == 1_024, || format!("{}", bed.origins().len())).await;
        assert_eq!(bed.origins()[0], "http://10.255.0.1:80*1@0", "the fixed ones are first");
        until(|| bed.bed.total(Metric::UpstreamOriginsLeftOut) == 7, || "not counted".to_owned())
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_pool_whose_sources_gave_nothing_yet_refuses_with_retry_after() {
    on_core(async {
        let server = NameServer::start().await;
        server.answer(Mode::Silence);
        let bed = DiscoveryBed::with_names(&server, vec![each_address_of("app.internal.", 80)]);
        let error = bed.bed.get().await.expect_err("no member");
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(error.retry_after() >= 1);
        assert_eq!(error.to_string(), "pool test has no origins yet: its sources gave none");
    })
    .await;
}

#[tokio::test]
async fn a_reload_keeps_a_source_s_members_and_one_task_for_each_source() {
    on_core(async {
        let server = NameServer::start().await;
        server.set(a("app.internal.", 0, &["10.0.0.1"])).await;
        let app = each_address_of("app.internal.", 80);
        let mut bed = DiscoveryBed::with_names(&server, vec![app.clone()]);
        bed.until_origins(&["http://10.0.0.1:80*1@0"]).await;
        let member = bed.bed.pool.members().at(0).clone();
        for round in 0..20 {
            let mut definition = of_sources(vec![app.clone()]);
            // Every second reload replaces the pool.
            definition.settings.connections_max = 100 + round / 2;
            let (pools, mut changes) =
                bed.pools.reload(std::slice::from_ref(&definition)).expect("a good pool");
            changes.apply();
            drop(bed.discovery.replace(&pools));
            bed.pools = pools;
            changes.close_pools();
            bed.bed.pool = bed.pools.named("test").expect("the pool").clone();
            assert!(Arc::ptr_eq(&member, bed.bed.pool.members().at(0)), "round {round}");
            assert!(!member.is_removed(), "round {round}");
        }
        // Each task asks once in 100 ms: 21 tasks would ask 210 times in a second.
        let before = server.asked(RecordType::A).len();
        let began = Instant::now();
        until(|| server.asked(RecordType::A).len() >= before + 5, || "not asked".to_owned()).await;
        assert!(began.elapsed() > Duration::from_millis(300), "more than one task asks");

        // Without the source, its members leave.
        let definition = pool(vec![Origin::http("10.9.9.9", 80)]);
        let (pools, mut changes) =
            bed.pools.reload(std::slice::from_ref(&definition)).expect("a good pool");
        changes.apply();
        drop(bed.discovery.replace(&pools));
        changes.close_pools();
        assert!(member.is_removed());
    })
    .await;
}

#[tokio::test]
async fn a_file_of_members_is_read_again_when_it_changes() {
    on_core(async {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("members.toml");
        let write = |text: &str| std::fs::write(&path, text).expect("written");
        write("origins = [\"http://10.0.0.1\"]");
        let defaults = MemberDefaults { weight: 5, ..MemberDefaults::default() };
        let file = MemberSource { kind: SourceKind::File { path: path.clone() }, defaults };
        let bed = DiscoveryBed::without_names(vec![file]);
        bed.until_origins(&["http://10.0.0.1:80*5@0"]).await;
        let since = Instant::now();
        let is_confirmed = || answered_after(&bed.bed.pool.sources()[0], since);
        until(is_confirmed, || "the file was looked at, and has not changed".to_owned()).await;
        write("{\"origins\": [\"http://10.0.0.1\", {\"url\": \"http://10.0.0.2:81\", \"weight\": 2}]}");
        bed.until_origins(&["http://10.0.0.1:80*5@0", "http://10.0.0.2:81*2@0"]).await;
        write("origins = [\n7]");
        bed.until_count(DiscoveryOutcome::Failed, 1).await;
        assert_eq!(bed.origins().len(), 2);
        let failure = bed.bed.pool.sources()[0].failure.clone().expect("a failure");
        assert!(failure.contains("members.toml:2:1: invalid type"), "{failure}");
        write("origins = []");
        bed.until_count(DiscoveryOutcome::Empty, 1).await;
        std::fs::remove_file(&path).expect("removed");
        bed.until_count(DiscoveryOutcome::Failed, 2).await;
        assert_eq!(bed.origins().len(), 2);
        write("[[origins]]\nurl = \"http://10.0.0.3\"\n");
        bed.until_origins(&["http://10.0.0.3:80*5@0"]).await;
    })
    .await;
}

/// Else its saved origins would be too old for a restart, however often it has confirmed them.
#[tokio::test]
async fn an_endpoint_that_confirms_its_document_has_answered_and_does_not_fail() {
    on_core(async {
        let registry = Scripted::bind().await;
        let kind = SourceKind::Http {
            server: registry.origin(),
            path: "/app".parse().expect("a path"),
            interval: Duration::from_millis(100),
            token_file: None,
        };
        let bed = DiscoveryBed::without_names(vec![source(kind)]);
        let answer = async |head: &str, content: &str| {
            let mut peer = registry.accept().await;
            let asked = peer.head().await;
            let length = content.len();
            peer.say(&format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{content}"))
                .await;
            asked
        };
        let report = || bed.bed.pool.sources().remove(0);
        answer("200 OK\r\netag: \"1\"", "{\"origins\": [\"http://10.0.0.1\"]}").await;
        bed.until_origins(&["http://10.0.0.1:80*1@0"]).await;
        let began = Instant::now();
        answer("500 Internal Server Error", "").await;
        bed.until_count(DiscoveryOutcome::Failed, 1).await;
        assert!(report().failure.is_some());
        answer("304 Not Modified", "").await;
        until(|| report().failure.is_none(), || format!("{:?}", report().failure)).await;
        assert!(answered_after(&report(), began));
        // The members of before stay in place of none, and no confirmation of that is asked for.
        answer("200 OK\r\netag: \"2\"", "{\"origins\": []}").await;
        bed.until_count(DiscoveryOutcome::Empty, 1).await;
        let asked = answer("200 OK", "{\"origins\": []}").await;
        assert!(!asked.contains("if-none-match"), "{asked}");
        assert!(report().failure.is_some());
    })
    .await;
}

#[tokio::test]
async fn an_http_endpoint_gives_members_and_its_errors_change_nothing() {
    on_core(async {
        let (registry, directory) =
            (Scripted::bind().await, tempfile::tempdir().expect("a directory"));
        let token_file = directory.path().join("token");
        std::fs::write(&token_file, "s3cret\n").expect("written");
        let kind = SourceKind::Http {
            server: registry.origin(),
            path: "/app?x=1".parse().expect("a path"),
            interval: Duration::from_millis(100),
            token_file: Some(token_file),
        };
        let bed = DiscoveryBed::without_names(vec![source(kind)]);
        let last = Cell::new(String::new());
        let answer = async |head: &str, content: &str| {
            let mut peer = registry.accept().await;
            last.set(peer.head().await);
            let length = content.len();
            peer.say(&format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{content}"))
                .await;
        };
        answer("200 OK\r\netag: \"1\"", "{\"origins\": [\"http://10.0.0.1\"]}").await;
        bed.until_origins(&["http://10.0.0.1:80*1@0"]).await;
        let head = last.take().to_ascii_lowercase();
        assert!(head.starts_with("get /app?x=1 http/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: bearer s3cret\r\n"), "{head}");
        assert!(!head.contains("if-none-match"), "{head}");
        answer("304 Not Modified", "").await;
        answer("500 Internal Server Error", "{\"origins\": [\"http://10.0.0.9\"]}").await;
        assert!(last.take().contains("if-none-match: \"1\""));
        bed.until_count(DiscoveryOutcome::Failed, 1).await;
        answer("302 Found\r\nlocation: /other", "").await;
        answer("200 OK", "<html>down for maintenance</html>").await;
        answer("200 OK", "{\"origins\": []}").await;
        bed.until_count(DiscoveryOutcome::Empty, 1).await;
        assert_eq!(bed.count(DiscoveryOutcome::Failed), 3);
        assert_eq!(bed.origins(), ["http://10.0.0.1:80*1@0"]);
        answer("200 OK", "origins = [\"http://10.0.0.2\"]").await;
        bed.until_origins(&["http://10.0.0.2:80*1@0"]).await;
    })
    .await;
}
