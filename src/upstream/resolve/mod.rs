//! Resolves names to addresses: one resolver for the process, with its tasks on the background runtime.
//!
//! Answers are kept for their TTL and renewed shortly before its end. While name servers fail or are silent, the last
//! good answers are used for longer (RFC 8767). hickory-resolver sends the queries; the table of answers is our own,
//! because hickory's cache drops expired answers.

pub(in crate::upstream) mod records;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{ResolverBuilder, TokioResolver};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::error::FetchError;
use super::settings::DnsSettings;
use crate::metrics::{Metric, Recorder};

/// The resolver, shared by all cores.
pub(crate) struct Resolver {
    pub(in crate::upstream) settings: DnsSettings,
    names: Mutex<HashMap<Arc<str>, Name>>,
    pub(in crate::upstream) servers: TokioResolver,
    background: Handle,
    pub(in crate::upstream) recorder: Recorder,
}

/// The state of one name.
#[derive(Default)]
struct Name {
    /// The last good answer, which may be past its TTL.
    answer: Option<CachedAddresses>,
    /// The last failure, if it is newer than the last good answer.
    failure: Option<LookupFailure>,
    /// Present during a query.
    query: Option<Query>,
}

/// A query that is under way.
#[derive(Clone)]
struct Query {
    /// The channel closes when the query is answered.
    ended: watch::Receiver<()>,
    /// A stale answer is used from then on.
    late_at: Instant,
}

#[derive(Clone)]
struct CachedAddresses {
    addresses: Arc<[IpAddr]>,
    asked: Instant,
    valid_until: Instant,
}

#[derive(Clone)]
struct LookupFailure {
    timed_out: bool,
    reason: Arc<str>,
    valid_until: Instant,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolver({} names)", self.lock().len())
    }
}

impl Resolver {
    /// Uses the servers in the settings, or the system's. The hosts file and literal addresses work
    /// without any server.
    pub(crate) fn new(settings: DnsSettings, background: Handle, recorder: Recorder) -> Arc<Self> {
        let _runtime = background.enter();
        let servers = servers(&settings);
        Arc::new(Self { settings, names: Mutex::default(), servers, background, recorder })
    }

    /// The addresses of a name or a literal address, never empty. Waits only if no answer within its TTL is
    /// known, and at most [`STALE_AFTER`] if a stale one may be used. The caller sets the deadline.
    pub(crate) async fn addresses(
        self: &Arc<Self>,
        host: &Arc<str>,
    ) -> Result<Arc<[IpAddr]>, FetchError> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok([address].into());
        }
        let (mut query, stale) = match self.known(host) {
            Known::Answer(addresses) => return Ok(addresses),
            Known::Failure(failure) => return Err(self.error(host, failure)),
            Known::Pending(query, stale) => (query, stale),
        };
        // The error of `changed` means that the query has ended: the sender was dropped.
        if let Some(stale) = stale {
            if timeout_at(query.late_at, query.ended.changed()).await.is_err() {
                self.recorder.count(Metric::DnsStale);
                return Ok(stale);
            }
        } else {
            let _ = query.ended.changed().await;
        }
        let now = Instant::now();
        let names = self.lock();
        let name = names.get(host);
        let answer = name.and_then(|name| name.answer.as_ref());
        if let Some(answer) = answer.filter(|answer| self.usable(answer, now)) {
            return Ok(answer.addresses.clone());
        }
        let failure = name.and_then(|name| name.failure.clone()).unwrap_or_else(|| LookupFailure {
            timed_out: false,
            reason: "the query was abandoned".into(),
            valid_until: now,
        });
        drop(names);
        Err(self.error(host, failure))
    }

    /// Looks the name up in the table, and starts a query if one is due.
    fn known(self: &Arc<Self>, host: &Arc<str>) -> Known {
        let now = Instant::now();
        let mut names = self.lock();
        if !names.contains_key(host) && names.len() >= self.settings.names_max {
            forget_one(&mut names);
            self.recorder.count(Metric::DnsForgotten);
        }
        let name = names.entry(host.clone()).or_default();
        let failed = name.failure.clone().filter(|failure| failure.valid_until > now);
        let answer = name.answer.clone();
        if failed.is_none() && answer.as_ref().is_none_or(|answer| answer.is_due(now)) {
            self.ask(host, name);
        }
        match (answer, failed) {
            (Some(answer), _) if answer.valid_until > now => Known::Answer(answer.addresses),
            // The last query has failed, perhaps long ago: the next one may be as slow.
            (Some(answer), _) if name.failure.is_some() && self.usable(&answer, now) => {
                self.recorder.count(Metric::DnsStale);
                Known::Answer(answer.addresses)
            }
            (_, Some(failure)) => Known::Failure(failure),
            (answer, None) => {
                let stale = answer.filter(|answer| self.usable(answer, now));
                let query = name.query.clone().expect("a query was started just above");
                Known::Pending(query, stale.map(|answer| answer.addresses))
            }
        }
    }

    fn usable(&self, answer: &CachedAddresses, now: Instant) -> bool {
        now < answer.valid_until + self.settings.stale_max
    }

    fn ask(self: &Arc<Self>, host: &Arc<str>, name: &mut Name) {
        if name.query.is_some() {
            return;
        }
        let (answered, ended) = watch::channel(());
        let asked = Instant::now();
        name.query = Some(Query { ended, late_at: asked + STALE_AFTER });
        let (resolver, host) = (self.clone(), host.clone());
        self.recorder.count(Metric::DnsQuestions);
        self.background.spawn(async move {
            let outcome = resolver.servers.lookup_ip(&*host).await;
            resolver.learn(
                &host,
                asked,
                outcome.map(|lookup| {
                    let addresses: Arc<[IpAddr]> = lookup.iter().collect();
                    (addresses, Instant::from_std(lookup.valid_until()))
                }),
            );
            drop(answered);
        });
    }

    fn learn(
        &self,
        host: &Arc<str>,
        asked: Instant,
        outcome: Result<(Arc<[IpAddr]>, Instant), NetError>,
    ) {
        let now = Instant::now();
        let mut names = self.lock();
        let name = names.entry(host.clone()).or_default();
        name.query = None;
        match outcome {
            Ok((addresses, valid_until)) if !addresses.is_empty() => {
                let (min, max) = (now + self.settings.ttl_min, now + self.settings.ttl_max);
                let valid_until = valid_until.min(max).max(min);
                name.answer = Some(CachedAddresses { addresses, asked, valid_until });
                name.failure = None;
            }
            outcome => {
                self.recorder.count(Metric::DnsFailures);
                let (timed_out, reason) = match outcome {
                    Ok(_) => (false, "no address".into()),
                    Err(NetError::Timeout) => (true, "no answer".into()),
                    Err(error) if error.is_no_records_found() => {
                        (false, "no such name, or no A or AAAA record".into())
                    }
                    Err(error) => (false, error.to_string().into()),
                };
                let valid_until = now + self.settings.negative_ttl;
                name.failure = Some(LookupFailure { timed_out, reason, valid_until });
            }
        }
    }

    fn error(&self, host: &Arc<str>, failure: LookupFailure) -> FetchError {
        if failure.timed_out {
            let after = self.settings.timeout * u32::try_from(self.settings.attempts).unwrap_or(1);
            return FetchError::DnsTimeout { host: host.clone(), after };
        }
        FetchError::Dns { host: host.clone(), reason: failure.reason }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Known {
    Answer(Arc<[IpAddr]>),
    Failure(LookupFailure),
    /// The query to wait for, and a stale answer that may be used if it is late.
    Pending(Query, Option<Arc<[IpAddr]>>),
}

impl CachedAddresses {
    /// Whether the answer is in the last fifth of its lifetime. It is renewed then, so that no request
    /// has to wait.
    fn is_due(&self, now: Instant) -> bool {
        let life = self.valid_until.saturating_duration_since(self.asked);
        now + life / 5 >= self.valid_until
    }
}

/// Drops the name whose last answer is oldest, preferring those without any.
fn forget_one(names: &mut HashMap<Arc<str>, Name>) {
    let oldest = names
        .iter()
        .filter(|(_, name)| name.query.is_none())
        .min_by_key(|(_, name)| name.answer.as_ref().map(|answer| answer.asked))
        .map(|(host, _)| host.clone());
    if let Some(host) = oldest {
        names.remove(&host);
    }
}

fn servers(settings: &DnsSettings) -> TokioResolver {
    let named = settings.servers.iter().map(|server| {
        let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
        (udp.port, tcp.port) = (server.port(), server.port());
        NameServerConfig::new(server.ip(), true, vec![udp, tcp])
    });
    let named = ResolverConfig::from_parts(None, Vec::new(), named.collect());
    let with = |config| TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let builder = if settings.servers.is_empty() {
        TokioResolver::builder_tokio().unwrap_or_else(|error| {
            tracing::warn!(%error, "no name servers found in the system's configuration: only IP addresses and the hosts file can be used; set resolver.servers");
            with(named)
        })
    } else {
        with(named)
    };
    build(builder, settings)
}

fn build(
    mut builder: ResolverBuilder<TokioRuntimeProvider>,
    settings: &DnsSettings,
) -> TokioResolver {
    let options = builder.options_mut();
    options.timeout = settings.timeout;
    options.attempts = settings.attempts;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Our table is the cache. A second cache would return the rest of a TTL instead of a new answer.
    options.cache_size = 0;
    options.negative_max_ttl = Some(Duration::ZERO);
    builder.build().expect("a resolver without TLS and DNSSEC needs nothing that can fail")
}

/// How long a query may take before a stale answer is used in its place. Well below `deadlines.connect`, which
/// includes name resolution; most queries take less.
const STALE_AFTER: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::net::UdpSocket;

    use super::*;
    use crate::metrics::Metrics;

    /// A name server that knows one answer for A, none for AAAA, and can be told to fail.
    struct Server {
        address: SocketAddr,
        answer: Arc<Mutex<DnsAnswer>>,
        asked: Arc<AtomicU32>,
    }

    #[derive(Clone, Copy)]
    enum DnsAnswer {
        Address(Ipv4Addr, u32),
        NoSuchName,
        Failure,
        Nothing,
    }

    impl Server {
        async fn start(said: DnsAnswer) -> Self {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
            let address = socket.local_addr().expect("its address");
            let (answer, asked) = (Arc::new(Mutex::new(said)), Arc::new(AtomicU32::new(0)));
            let (said, count) = (answer.clone(), asked.clone());
            tokio::spawn(async move {
                let mut query = [0; 512];
                while let Ok((length, peer)) = socket.recv_from(&mut query).await {
                    let said = *said.lock().expect("no panic");
                    let query = &query[..length];
                    let question = question_end(query);
                    let is_a = query[question - 4..question - 2] == [0, 1];
                    if is_a {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    if let Some(reply) = reply(query, question, said, is_a) {
                        socket.send_to(&reply, peer).await.expect("a reply");
                    }
                }
            });
            Self { address, answer, asked }
        }

        fn says(&self, said: DnsAnswer) {
            *self.answer.lock().expect("no panic") = said;
        }

        fn resolver(&self, settings: DnsSettings) -> Arc<Resolver> {
            self.patient_resolver(Duration::from_millis(100), settings)
        }

        fn patient_resolver(&self, timeout: Duration, settings: DnsSettings) -> Arc<Resolver> {
            let settings = DnsSettings {
                servers: vec![self.address],
                timeout,
                attempts: 1,
                ttl_min: Duration::ZERO,
                ..settings
            };
            let recorder = Metrics::new(1).background();
            Resolver::new(settings, Handle::current(), recorder)
        }
    }

    /// Where the one question of a query ends (RFC 1035 §4.1).
    fn question_end(query: &[u8]) -> usize {
        let mut at = 12;
        while query[at] != 0 {
            at += 1 + usize::from(query[at]);
        }
        at + 5
    }

    fn reply(query: &[u8], question: usize, said: DnsAnswer, is_a: bool) -> Option<Vec<u8>> {
        let (code, answer) = match said {
            DnsAnswer::Address(address, ttl) if is_a => (0, Some((address, ttl))),
            DnsAnswer::Address(..) => (0, None),
            DnsAnswer::NoSuchName => (3, None),
            DnsAnswer::Failure => (2, None),
            DnsAnswer::Nothing => return None,
        };
        let mut reply = query[..2].to_vec();
        reply.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(answer.is_some()), 0, 0, 0, 0]);
        reply.extend(&query[12..question]);
        if let Some((address, ttl)) = answer {
            reply.extend([0xc0, 12, 0, 1, 0, 1]);
            reply.extend(ttl.to_be_bytes());
            reply.extend([0, 4]);
            reply.extend(address.octets());
        }
        Some(reply)
    }

    const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const TWO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    async fn first(resolver: &Arc<Resolver>, host: &str) -> Result<IpAddr, FetchError> {
        Ok(resolver.addresses(&host.into()).await?[0])
    }

    #[tokio::test]
    async fn an_answer_is_kept_for_its_ttl_and_asked_for_again_after_it() {
        let server = Server::start(DnsAnswer::Address(ONE, 1)).await;
        let resolver = server.resolver(DnsSettings::default());
        for _ in 0..10 {
            assert_eq!(first(&resolver, "a.example.").await.expect("an address"), ONE);
        }
        assert_eq!(server.asked.load(Ordering::SeqCst), 1);
        server.says(DnsAnswer::Address(TWO, 1));
        while first(&resolver, "a.example.").await.expect("an address") != TWO {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn the_last_good_addresses_serve_while_dns_fails() {
        for failing in [DnsAnswer::Failure, DnsAnswer::NoSuchName, DnsAnswer::Nothing] {
            let server = Server::start(DnsAnswer::Address(ONE, 0)).await;
            let resolver = server.resolver(DnsSettings::default());
            assert_eq!(first(&resolver, "a.example.").await.expect("an address"), ONE);
            server.says(failing);
            for _ in 0..3 {
                assert_eq!(first(&resolver, "a.example.").await.expect("the last one"), ONE);
            }
            assert!(resolver.recorder.metrics().total(Metric::DnsFailures, 0) > 0);
        }
    }

    /// Connections have less time than a silent name server.
    #[tokio::test]
    async fn silence_holds_up_no_connection_while_the_last_good_addresses_are_known() {
        let server = Server::start(DnsAnswer::Address(ONE, 0)).await;
        let settings = DnsSettings { negative_ttl: Duration::ZERO, ..DnsSettings::default() };
        let resolver = server.patient_resolver(Duration::from_secs(60), settings);
        let look_up = async |longest: Duration| {
            let found = tokio::time::timeout(longest, first(&resolver, "a.example.")).await;
            assert_eq!(found.expect("in time").expect("the last one"), ONE);
        };
        look_up(Duration::from_secs(5)).await;
        server.says(DnsAnswer::Nothing);
        look_up(Duration::from_secs(5)).await;
        // The same query is late for all later connections.
        look_up(STALE_AFTER / 2).await;
        assert_eq!(resolver.recorder.metrics().total(Metric::DnsStale, 0), 2);
    }

    #[tokio::test]
    async fn after_a_failure_the_last_good_addresses_are_used_at_once() {
        let server = Server::start(DnsAnswer::Address(ONE, 0)).await;
        let settings = DnsSettings { negative_ttl: Duration::ZERO, ..DnsSettings::default() };
        let resolver = server.patient_resolver(Duration::from_secs(60), settings);
        for said in [DnsAnswer::Failure, DnsAnswer::Nothing] {
            assert_eq!(first(&resolver, "a.example.").await.expect("an address"), ONE);
            server.says(said);
        }
        let found = tokio::time::timeout(STALE_AFTER / 2, first(&resolver, "a.example.")).await;
        assert_eq!(found.expect("at once").expect("the last one"), ONE);
    }

    #[tokio::test]
    async fn a_failure_is_kept_shortly_and_named() {
        let server = Server::start(DnsAnswer::NoSuchName).await;
        let negative_ttl = Duration::from_millis(300);
        let resolver = server.resolver(DnsSettings { negative_ttl, ..DnsSettings::default() });
        for _ in 0..5 {
            let error = first(&resolver, "none.example.").await.expect_err("no such name");
            assert_eq!(error.proxy_error(), "dns_error");
        }
        assert_eq!(server.asked.load(Ordering::SeqCst), 1);
        server.says(DnsAnswer::Address(ONE, 60));
        while first(&resolver, "none.example.").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn silence_is_a_timeout() {
        let server = Server::start(DnsAnswer::Nothing).await;
        let resolver = server.resolver(DnsSettings::default());
        let error = first(&resolver, "silent.example.").await.expect_err("no answer");
        assert_eq!(error.proxy_error(), "dns_timeout");
        assert_eq!(error.status(), http::StatusCode::GATEWAY_TIMEOUT);
    }

    #[tokio::test]
    async fn many_lookups_of_a_name_send_one_query() {
        let server = Server::start(DnsAnswer::Address(ONE, 60)).await;
        let resolver = server.resolver(DnsSettings::default());
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let resolver = resolver.clone();
            asking.spawn(async move { first(&resolver, "a.example.").await.is_ok() });
        }
        assert!(asking.join_all().await.into_iter().all(|found| found));
        assert_eq!(server.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn literals_and_the_hosts_file_need_no_server() {
        let server = Server::start(DnsAnswer::Failure).await;
        let resolver = server.resolver(DnsSettings::default());
        for (host, loopback) in [("127.0.0.1", true), ("::1", true), ("localhost", true)] {
            let address = first(&resolver, host).await.expect(host);
            assert_eq!(address.is_loopback(), loopback, "{host}");
        }
        assert_eq!(server.asked.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn the_table_of_names_has_a_limit() {
        let server = Server::start(DnsAnswer::Address(ONE, 60)).await;
        let resolver = server.resolver(DnsSettings { names_max: 3, ..DnsSettings::default() });
        for number in 0..10 {
            first(&resolver, &format!("{number}.example.")).await.expect("an address");
        }
        assert_eq!(resolver.lock().len(), 3);
        assert!(resolver.lock().contains_key("9.example."));
    }
}
