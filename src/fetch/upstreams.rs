//! [`Upstreams`]: one core's connections to origins, and sending a request over them:
//! choose an origin, take a kept connection or open one, exchange, and try again where that
//! is safe.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::balance::{self, Choice};
use super::connect::{Connected, connect};
use super::deadline::{Deadline, NEVER, Timers, monotonic_ms};
use super::dns::Resolver;
use super::error::{FetchError, error_label};
use super::exchange::{
    AtOnce, Http1, Http2, Limits, NoHead, NoHeadReason, ResponseBody, Under, hold_for_continue,
};
use super::pool::{Pool, PoolOrigin};
use super::settings::{PoolSettings, Retry};
use super::tunnel::UpgradedOrigin;
use crate::body::Body;
use crate::clock::Clock;
use crate::metrics::{Metric, Recorder};

/// One core's way to all origins. Clones are the same one. Everything it starts lives in the
/// core's `LocalSet`.
#[derive(Clone)]
pub struct Upstreams(Rc<Core>);

/// What is wanted of an exchange, besides the request.
#[derive(Clone, Debug, Default)]
pub struct Intent {
    /// What [`super::Balance::Hash`] chooses by.
    pub hash: u64,
    /// Ask for another protocol on the connection (RFC 9110 §7.8): the `Upgrade` field.
    pub upgrade: Option<HeaderValue>,
}

/// The head of a response, and how it was come by.
#[derive(Debug)]
pub struct UpstreamResponse {
    /// Without hop-by-hop fields (RFC 9110 §7.6.1; of a 101, `Upgrade` stays). Its body keeps
    /// the deadlines, and ends in an error if it is cut short.
    pub response: Response<Body>,
    /// `host:port` as configured.
    pub origin: Arc<str>,
    /// Where that was.
    pub address: SocketAddr,
    /// Whether the connection had been used before.
    pub reused: bool,
    /// Tries in all, this one included.
    pub attempts: u32,
    /// What opening the connection took, name and TLS included; zero when reused.
    pub connect: Duration,
    /// From [`Upstreams::send`] to the head, failed tries included.
    pub first_byte: Duration,
    /// Present on a 101: pass it to [`super::tunnel`].
    pub upgraded: Option<UpgradedOrigin>,
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstreams({} pools)", self.0.pools.borrow().len())
    }
}

struct Core {
    resolver: Arc<Resolver>,
    clock: Clock,
    recorder: Recorder,
    timers: Timers,
    pools: RefCell<BTreeMap<u64, Rc<PoolState>>>,
}

/// One core's part of a pool.
struct PoolState {
    pool: Arc<Pool>,
    origins: Box<[OriginState]>,
    turn: Cell<usize>,
    /// Hundredths of a retry.
    budget: Cell<u32>,
}

#[derive(Default)]
struct OriginState {
    /// The last one used is on top: what is needed no more grows old at the bottom.
    idle: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<Rc<Http2>>>,
    /// Present while a connection is being opened that will probably be shared.
    opening_http2: RefCell<Option<Rc<Notify>>>,
    speaks_http2: Cell<bool>,
    active: Cell<usize>,
}

struct Idle {
    http1: Box<Http1>,
    since_ms: u64,
}

impl Upstreams {
    /// Must be called inside the core's `LocalSet`.
    pub fn new(resolver: Arc<Resolver>, clock: Clock, recorder: Recorder) -> Self {
        let timers = Timers::start();
        let core = Core { resolver, clock, recorder, timers, pools: RefCell::default() };
        let core = Rc::new(core);
        tokio::task::spawn_local(sweep(Rc::downgrade(&core)));
        Self(core)
    }

    /// Sends a request to one of the pool's origins and waits for the head of the response.
    ///
    /// Of the URI, path and query are used; of the fields, `Host` is set as the pool says, and
    /// the others go as they are: hop-by-hop fields must be gone already. The body streams.
    /// Dropping the future, or the response's body, ends the exchange.
    ///
    /// # Errors
    /// The last try's, when several were made.
    pub async fn send(
        &self,
        pool: &Arc<Pool>,
        mut request: Request<Body>,
        intent: Intent,
    ) -> Result<UpstreamResponse, FetchError> {
        let core = &self.0;
        let state = core.state(pool);
        core.recorder.count(Metric::UpstreamRequests);
        state.earn_retry();
        if let Some(protocol) = &intent.upgrade {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(UPGRADE, protocol.clone());
        }
        let began = core.clock.instant();
        let limits = core.limits(pool.settings());
        let mut tried = 0_u64;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let Some(number) = state.choose(&intent, tried) else {
                let error = FetchError::AllDown { pool: pool.name().clone() };
                core.recorder.count_labelled(Metric::UpstreamFailures, error.label());
                return Err(error);
            };
            tried |= 1 << number;
            let attempt = Attempt { core, state: &state, number, limits, intent: &intent };
            let failed = match attempt.run(request).await {
                Ok(mut upstream) => {
                    upstream.attempts = attempts;
                    upstream.first_byte = core.clock.instant() - began;
                    core.recorder.observe(Metric::UpstreamFirstByte, upstream.first_byte);
                    return Ok(upstream);
                }
                Err(failed) => failed,
            };
            let again = failed.request.filter(|_| {
                attempts < pool.settings().retry.attempts_max
                    && core.timers.now_ms() < limits.end_ms
            });
            let Some(again) = again else { return Err(failed.error) };
            if tried == state.all() {
                // Nobody else to ask: the same one again helps only if it was there.
                if !failed.error.origin_may_have_seen() {
                    return Err(failed.error);
                }
                tried = 0;
            }
            if !state.spend_retry() {
                core.recorder.count(Metric::UpstreamRetriesRefused);
                return Err(failed.error);
            }
            core.recorder.count_labelled(Metric::UpstreamRetries, RETRY_FAILED);
            request = *again;
        }
    }
}

/// One try at one origin.
struct Attempt<'a> {
    core: &'a Rc<Core>,
    state: &'a Rc<PoolState>,
    number: usize,
    limits: Limits,
    intent: &'a Intent,
}

/// A try that failed, with the request if it may be sent again.
struct Failed {
    error: FetchError,
    request: Option<Box<Request<Body>>>,
}

/// A connection, ready for the request.
enum Link {
    Http1(Box<Http1>),
    Http2(Rc<Http2>),
}

impl Attempt<'_> {
    async fn run(&self, request: Request<Body>) -> Result<UpstreamResponse, Failed> {
        let outcome = self.exchange(request).await;
        let health = &self.origin().health;
        match &outcome {
            Ok(_) => health.succeeded(),
            Err(Failed { error, .. }) => {
                self.core.recorder.count_labelled(Metric::UpstreamFailures, error.label());
                let settings = &self.state.pool.settings().health;
                if error.blames_origin() && health.failed(monotonic_ms(), settings) {
                    self.core.recorder.count(Metric::UpstreamMarkedDown);
                    tracing::warn!(origin = %self.origin().name, %error, "origin marked down");
                }
            }
        }
        outcome
    }

    async fn exchange(&self, mut request: Request<Body>) -> Result<UpstreamResponse, Failed> {
        let active = Active::begin(self.core, self.state, self.number);
        let deadline = self.core.timers.deadline();
        if let Some(mut link) = self.kept() {
            match self.over(&mut link, request, &deadline).await {
                Ok(response) => {
                    self.core.recorder.count(Metric::UpstreamReuses);
                    let exchanged =
                        Exchanged { link, response, reused: true, connect: Duration::ZERO };
                    return self.respond(exchanged, deadline, active).await;
                }
                // The origin closed it as we were about to use it: that says nothing about
                // the origin, and so costs neither health nor budget. Once only.
                Err(Failed { error: FetchError::Terminated { .. }, request: Some(again) }) => {
                    self.core.recorder.count_labelled(Metric::UpstreamRetries, RETRY_CLOSED);
                    request = *again;
                }
                Err(failed) => return Err(failed),
            }
        }
        let began = self.core.clock.instant();
        let mut link = match self.open().await {
            Ok(link) => link,
            Err(error) => return Err(Failed { error, request: Some(Box::new(request)) }),
        };
        let connect = self.core.clock.instant() - began;
        let response = self.over(&mut link, request, &deadline).await?;
        let exchanged = Exchanged { link, response, reused: false, connect };
        self.respond(exchanged, deadline, active).await
    }

    /// A connection that is open already.
    fn kept(&self) -> Option<Link> {
        let (pool, here) = (&self.state.pool, self.here());
        let http1 = || self.core.take_idle(pool, here).map(Link::Http1);
        self.shared().or_else(http1)
    }

    /// A stream on a connection that others use too.
    fn shared(&self) -> Option<Link> {
        let possible = self.intent.upgrade.is_none();
        let share = || self.core.share_http2(&self.state.pool, self.here());
        possible.then(share).flatten().map(Link::Http2)
    }

    async fn open(&self) -> Result<Link, FetchError> {
        let here = self.here();
        let upgrade = self.intent.upgrade.is_some();
        if here.speaks_http2.get() && !upgrade {
            // Whoever opens a connection that all can share is waited for.
            while let Some(opening) = here.opening() {
                opening.notified().await;
                if let Some(link) = self.shared() {
                    return Ok(link);
                }
            }
        }
        let _opening = (here.speaks_http2.get() && !upgrade).then(|| Opening::begin(here));
        let Core { resolver, recorder, .. } = &**self.core;
        let turn = self.state.turn.get();
        let connected =
            connect(&self.state.pool, self.origin(), resolver, turn, upgrade, recorder).await?;
        here.speaks_http2.set(connected.http2);
        let opened = if connected.http2 {
            self.open_http2(connected).await.map(Link::Http2)
        } else {
            self.open_http1(connected).await.map(Link::Http1)
        };
        opened.map_err(|source| FetchError::Protocol { origin: self.origin().name.clone(), source })
    }

    async fn open_http1(&self, connected: Connected) -> hyper::Result<Box<Http1>> {
        let settings = self.state.pool.settings();
        let mut builder = http1::Builder::new();
        builder.max_header_size(settings.header_bytes_max);
        if settings.header_count_max != HEADERS_ON_STACK {
            builder.max_headers(settings.header_count_max);
        }
        let traffic = connected.io.traffic();
        let (sender, connection) = builder.handshake(TokioIo::new(connected.io)).await?;
        let now_ms = self.core.timers.now_ms();
        Ok(Box::new(Http1::new(sender, connection, traffic, connected.address, now_ms)))
    }

    async fn open_http2(&self, connected: Connected) -> hyper::Result<Rc<Http2>> {
        let settings = self.state.pool.settings();
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(settings.header_bytes_max).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(connected.io))
            .await?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 connection to an origin ended");
            }
        });
        let opened_ms = self.core.timers.now_ms();
        let http2 = Http2 { sender, address: connected.address, opened_ms, streams: Cell::new(1) };
        let http2 = Rc::new(http2);
        self.here().http2.borrow_mut().push(http2.clone());
        Ok(http2)
    }

    /// The exchange of heads over a connection.
    async fn over(
        &self,
        link: &mut Link,
        mut request: Request<Body>,
        deadline: &Deadline,
    ) -> Result<Response<Incoming>, Failed> {
        self.address(&mut request, matches!(link, Link::Http2(_)));
        let copy = copy_if_replayable(&request);
        let outcome = match link {
            Link::Http1(http1) => {
                let request = if request.headers().contains_key(EXPECT) {
                    let patience = self.state.pool.settings().deadlines.expect_continue;
                    hold_for_continue(request, patience)
                } else {
                    request
                };
                http1.head(request, &self.limits, deadline).await
            }
            Link::Http2(http2) => http2.head(request, &self.limits, deadline).await,
        };
        outcome.map_err(|no_head| {
            if let Link::Http2(http2) = link {
                self.leave_http2(http2);
            }
            self.failed(no_head, copy, deadline)
        })
    }

    /// Sets `Host` and the URI as the protocol and the pool want them.
    fn address(&self, request: &mut Request<Body>, http2: bool) {
        let origin = self.origin();
        if let Some(host) = &origin.host {
            request.headers_mut().insert(HOST, host.clone());
        } else if !request.headers().contains_key(HOST) {
            let authority = request.uri().authority().unwrap_or(&origin.authority).as_str();
            let host = HeaderValue::from_str(authority).expect("an authority is a field value");
            request.headers_mut().insert(HOST, host);
        }
        if http2 {
            let host = request.headers_mut().remove(HOST);
            let authority = host.and_then(|host| host.as_bytes().try_into().ok());
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            parts.scheme = Some(origin.origin.scheme.as_str().parse().expect("http or https"));
            parts.authority = Some(authority.unwrap_or_else(|| origin.authority.clone()));
            parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
            *request.uri_mut() = Uri::from_parts(parts).expect("all three parts are there");
            *request.version_mut() = Version::HTTP_2;
        } else {
            if request.uri().authority().is_some() {
                let path = std::mem::take(request.uri_mut()).into_parts().path_and_query;
                *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
            }
            *request.version_mut() = Version::HTTP_11;
        }
    }

    /// What a failure means, and whether the request may be sent again.
    fn failed(&self, no_head: NoHead, copy: Option<Request<Body>>, deadline: &Deadline) -> Failed {
        let origin = self.origin().name.clone();
        let settings = self.state.pool.settings();
        let source = match no_head.why {
            NoHeadReason::Error(source) => source,
            NoHeadReason::Deadline => {
                let total = self.limits.total_passed(deadline);
                let after = settings.deadlines.total.filter(|_| total);
                let after = after.unwrap_or(self.limits.first_byte);
                let error = FetchError::ResponseTimeout { origin, after };
                return Failed { error, request: None };
            }
        };
        if source.is_parse_too_large() {
            let PoolSettings { header_bytes_max, header_count_max, .. } = *settings;
            let (bytes_max, count_max) = (header_bytes_max, header_count_max);
            return Failed {
                error: FetchError::HeaderSize { origin, bytes_max, count_max },
                request: None,
            };
        }
        let error = if source.is_user() && no_head.request.is_none() {
            FetchError::RequestBody { source }
        } else if source.is_parse() {
            FetchError::Protocol { origin, source }
        } else if no_head.received {
            FetchError::Incomplete { origin, source }
        } else {
            FetchError::Terminated { origin, sent: no_head.sent, source }
        };
        let terminated = matches!(error, FetchError::Terminated { .. });
        let request = no_head.request.or_else(|| copy.filter(|_| terminated).map(Box::new));
        Failed { error, request }
    }

    /// The head has come: what becomes of the body and of the connection.
    async fn respond(
        &self,
        exchanged: Exchanged,
        deadline: Deadline,
        active: Active,
    ) -> Result<UpstreamResponse, Failed> {
        let Exchanged { link, response, reused, connect } = exchanged;
        let (mut head, incoming) = response.into_parts();
        let address = match &link {
            Link::Http1(http1) => http1.address,
            Link::Http2(http2) => http2.address,
        };
        let mut upgraded = None;
        let body = if head.status == StatusCode::SWITCHING_PROTOCOLS {
            upgraded = Some(self.upgraded(link).await?);
            Body::Empty
        } else {
            self.check_coding(&head.headers)?;
            stream(link, incoming, deadline, self.limits, active)
        };
        head.extensions.clear();
        strip_hop_by_hop(&mut head.headers, upgraded.is_some());
        Ok(UpstreamResponse {
            response: Response::from_parts(head, body),
            origin: self.origin().name.clone(),
            address,
            reused,
            attempts: 1,
            connect,
            first_byte: Duration::ZERO,
            upgraded,
        })
    }

    async fn upgraded(&self, link: Link) -> Result<UpgradedOrigin, Failed> {
        let origin = || self.origin().name.clone();
        match link {
            Link::Http1(http1) if self.intent.upgrade.is_some() => {
                http1.into_upgraded().await.map_err(|source| Failed {
                    error: FetchError::Protocol { origin: origin(), source },
                    request: None,
                })
            }
            _ => Err(Failed {
                error: FetchError::UnaskedUpgrade { origin: origin() },
                request: None,
            }),
        }
    }

    /// hyper takes `chunked` off and leaves other codings on, whose name we may not forward
    /// (RFC 9112 §7).
    fn check_coding(&self, headers: &HeaderMap) -> Result<(), Failed> {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let plain = match (codings.next(), codings.next()) {
            (None, _) => true,
            (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
            _ => false,
        };
        if plain {
            return Ok(());
        }
        let error = FetchError::TransferCoding { origin: self.origin().name.clone() };
        Err(Failed { error, request: None })
    }

    fn leave_http2(&self, http2: &Rc<Http2>) {
        http2.streams.set(http2.streams.get() - 1);
    }

    fn origin(&self) -> &PoolOrigin {
        &self.state.pool.origins[self.number]
    }

    fn here(&self) -> &OriginState {
        &self.state.origins[self.number]
    }
}

struct Exchanged {
    link: Link,
    response: Response<Incoming>,
    reused: bool,
    connect: Duration,
}

fn stream(
    link: Link,
    incoming: Incoming,
    deadline: Deadline,
    limits: Limits,
    active: Active,
) -> Body {
    let (under, at_once) = match link {
        Link::Http1(mut http1) => match http1.body_at_once(incoming) {
            AtOnce::Whole(body) => {
                active.give_back(http1);
                return body;
            }
            at_once => (Under::Http1(http1), at_once),
        },
        Link::Http2(http2) if incoming.is_end_stream() => {
            active.leave(&http2);
            return Body::Empty;
        }
        Link::Http2(http2) => (Under::Http2(http2), AtOnce::Streams(incoming)),
    };
    let (begun, incoming) = match at_once {
        AtOnce::Begun(begun, incoming) => (Some(begun), incoming),
        AtOnce::Streams(incoming) => (None, incoming),
        AtOnce::Whole(body) => return body,
    };
    Body::stream(ResponseBody::new(incoming, begun, under, deadline, limits, active))
}

/// An exchange in flight: counted where it is, until dropped.
pub(super) struct Active {
    core: Rc<Core>,
    state: Rc<PoolState>,
    number: usize,
}

impl Active {
    fn begin(core: &Rc<Core>, state: &Rc<PoolState>, number: usize) -> Self {
        let active = &state.origins[number].active;
        active.set(active.get() + 1);
        core.recorder.add(Metric::UpstreamActive, 1);
        Self { core: core.clone(), state: state.clone(), number }
    }

    /// Keeps a connection whose exchange is over, if it may be used again.
    pub(super) fn give_back(&self, mut http1: Box<Http1>) {
        let now_ms = self.core.timers.now_ms();
        let keep_alive = &self.state.pool.settings().keep_alive;
        let aged = now_ms.saturating_sub(http1.opened_ms) >= millis(keep_alive.age_max);
        if aged || keep_alive.idle_max == 0 || !http1.is_reusable() {
            return;
        }
        let mut idle = self.state.origins[self.number].idle.borrow_mut();
        if idle.len() >= keep_alive.idle_max {
            // The oldest has the least life left.
            self.core.close_idle(idle.remove(0), IDLE_LIMIT);
        }
        self.core.recorder.add(Metric::UpstreamIdle, 1);
        idle.push(Idle { http1, since_ms: now_ms });
    }

    /// Ends a share of an HTTP/2 connection.
    pub(super) fn leave(&self, http2: &Http2) {
        http2.streams.set(http2.streams.get() - 1);
    }

    /// Counts a response that did not come whole.
    pub(super) fn body_failed(&self, error: &'static str) {
        self.core.recorder.count_labelled(Metric::UpstreamFailures, error_label(error));
        let pool = &self.state.pool;
        let health = &pool.origins[self.number].health;
        if health.failed(monotonic_ms(), &pool.settings().health) {
            self.core.recorder.count(Metric::UpstreamMarkedDown);
        }
    }

    pub(super) fn origin_name(&self) -> &str {
        &self.state.pool.origins[self.number].name
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let active = &self.state.origins[self.number].active;
        active.set(active.get() - 1);
        self.core.recorder.subtract(Metric::UpstreamActive, 1);
    }
}

/// While one request opens what others will share, they wait for it.
struct Opening<'a> {
    here: &'a OriginState,
    opened: Rc<Notify>,
}

impl<'a> Opening<'a> {
    fn begin(here: &'a OriginState) -> Self {
        let opened = Rc::new(Notify::new());
        *here.opening_http2.borrow_mut() = Some(opened.clone());
        Self { here, opened }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.here.opening_http2.borrow_mut().take();
        self.opened.notify_waiters();
    }
}

impl OriginState {
    fn opening(&self) -> Option<Rc<Notify>> {
        self.opening_http2.borrow().clone()
    }
}

impl PoolState {
    fn new(pool: &Arc<Pool>) -> Self {
        Self {
            pool: pool.clone(),
            origins: pool.origins.iter().map(|_| OriginState::default()).collect(),
            turn: Cell::new(0),
            budget: Cell::new(pool.settings().retry.budget_reserve.saturating_mul(RETRY)),
        }
    }

    /// The origins' numbers as a set.
    fn all(&self) -> u64 {
        u64::MAX >> (PoolSettings::ORIGINS_MAX - self.origins.len())
    }

    fn choose(&self, intent: &Intent, tried: u64) -> Option<usize> {
        let pool = &self.pool;
        let settings = pool.settings();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let choice = Choice {
            balance: settings.balance,
            origins: self.origins.len(),
            turns: &pool.turns,
            turn,
            hash: intent.hash,
        };
        let weight = |at: usize| pool.origins[at].origin.weight;
        let active = |at: usize| self.origins[at].active.get();
        let untried = |at: usize| tried & (1 << at) == 0;
        let up = |at: usize| pool.origins[at].health.admits(monotonic_ms, &settings.health);
        balance::choose(&choice, weight, active, |at| untried(at) && up(at)).or_else(|| {
            let anyway = settings.health.try_when_all_down;
            balance::choose(&choice, weight, active, |at| anyway && untried(at))
        })
    }

    /// Each request earns a part of a retry, up to a limit.
    fn earn_retry(&self) {
        let Retry { budget_percent, budget_reserve, .. } = self.pool.settings().retry;
        let most = budget_reserve.saturating_add(RETRIES_SAVED).saturating_mul(RETRY);
        self.budget.set(self.budget.get().saturating_add(budget_percent).min(most));
    }

    fn spend_retry(&self) -> bool {
        let left = self.budget.get().checked_sub(RETRY);
        left.inspect(|left| self.budget.set(*left)).is_some()
    }

    fn in_use(&self) -> bool {
        self.origins.iter().any(|origin| {
            origin.active.get() > 0
                || !origin.idle.borrow().is_empty()
                || !origin.http2.borrow().is_empty()
        })
    }
}

impl Core {
    fn state(&self, pool: &Arc<Pool>) -> Rc<PoolState> {
        let mut pools = self.pools.borrow_mut();
        pools.entry(pool.id).or_insert_with(|| Rc::new(PoolState::new(pool))).clone()
    }

    fn limits(&self, settings: &PoolSettings) -> Limits {
        let deadlines = &settings.deadlines;
        let end = |total| self.timers.now_ms().saturating_add(millis(total));
        Limits {
            first_byte: deadlines.first_byte,
            between_bytes: deadlines.between_bytes,
            end_ms: deadlines.total.map_or(NEVER, end),
        }
    }

    /// The most recently used connection that is still good.
    fn take_idle(&self, pool: &Pool, here: &OriginState) -> Option<Box<Http1>> {
        let oldest_ms =
            self.timers.now_ms().saturating_sub(millis(pool.settings().keep_alive.idle));
        let mut idle = here.idle.borrow_mut();
        while let Some(mut kept) = idle.pop() {
            if kept.since_ms < oldest_ms {
                self.close_idle(kept, IDLE_EXPIRED);
            } else if !kept.http1.is_reusable() {
                self.close_idle(kept, IDLE_ORIGIN);
            } else {
                self.recorder.subtract(Metric::UpstreamIdle, 1);
                return Some(kept.http1);
            }
        }
        None
    }

    /// A stream on a connection that has room; the streams are counted by the caller's leave.
    fn share_http2(&self, pool: &Pool, here: &OriginState) -> Option<Rc<Http2>> {
        let settings = pool.settings();
        let mut connections = here.http2.borrow_mut();
        connections.retain(|http2| !http2.sender.is_closed());
        let born_ms = self.timers.now_ms().saturating_sub(millis(settings.keep_alive.age_max));
        let room = |http2: &&Rc<Http2>| {
            http2.streams.get() < settings.streams_max && http2.opened_ms >= born_ms
        };
        let http2 = connections.iter().find(room)?;
        http2.streams.set(http2.streams.get() + 1);
        Some(http2.clone())
    }

    fn close_idle(&self, idle: Idle, reason: usize) {
        self.recorder.subtract(Metric::UpstreamIdle, 1);
        self.recorder.count_labelled(Metric::UpstreamIdleClosed, reason);
        drop(idle);
    }

    /// Closes what is unused for too long or was closed by the origin, and forgets pools that
    /// have nothing left.
    fn sweep(&self) {
        let now_ms = self.timers.now_ms();
        self.pools.borrow_mut().retain(|_, state| {
            let keep_alive = &state.pool.settings().keep_alive;
            for origin in &state.origins {
                let kept = std::mem::take(&mut *origin.idle.borrow_mut());
                for mut idle in kept {
                    if now_ms.saturating_sub(idle.since_ms) > millis(keep_alive.idle) {
                        self.close_idle(idle, IDLE_EXPIRED);
                    } else if !idle.http1.is_reusable() {
                        self.close_idle(idle, IDLE_ORIGIN);
                    } else {
                        origin.idle.borrow_mut().push(idle);
                    }
                }
                origin.http2.borrow_mut().retain(|http2| {
                    let aged = now_ms.saturating_sub(http2.opened_ms) >= millis(keep_alive.age_max);
                    let over = aged && http2.streams.get() == 0;
                    !over && !http2.sender.is_closed()
                });
            }
            state.in_use() || Rc::strong_count(state) > 1
        });
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let pools = self.pools.get_mut().values();
        let idle = pools.flat_map(|state| &state.origins).map(|origin| origin.idle.borrow().len());
        self.recorder.subtract(Metric::UpstreamIdle, idle.sum::<usize>() as u64);
    }
}

async fn sweep(core: Weak<Core>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(core) = core.upgrade() else { return };
        core.sweep();
    }
}

/// A copy to send again, if the request is idempotent (RFC 9110 §9.2.2), its body in memory,
/// and the connection stays HTTP.
fn copy_if_replayable(request: &Request<Body>) -> Option<Request<Body>> {
    let body = match request.body() {
        Body::Empty => Body::Empty,
        Body::Full(bytes) => Body::Full(bytes.clone()),
        _ => return None,
    };
    if !request.method().is_idempotent() || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// RFC 9110 §7.6.1. hyper has acted on them.
fn strip_hop_by_hop(headers: &mut HeaderMap, upgraded: bool) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(TRANSFER_ENCODING);
        // RFC 9112 §6.3: it was overridden, and forwarded it would be a second opinion.
        headers.remove(CONTENT_LENGTH);
    }
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !(upgraded && name == UPGRADE))
            .collect();
        headers.remove(CONNECTION);
        named.into_iter().for_each(|name| drop(headers.remove(name)));
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TE);
    if !upgraded {
        headers.remove(UPGRADE);
    }
}

/// Runs hyper's HTTP/2 tasks on this core.
#[derive(Clone)]
pub(super) struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// hyper parses this many fields without an allocation.
const HEADERS_ON_STACK: usize = 100;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The budget's unit: percent of a request.
const RETRY: u32 = 100;
/// Retries that a core can save up beyond the reserve.
const RETRIES_SAVED: u32 = 100;

/// Labels of [`Metric::UpstreamRetries`].
const RETRY_CLOSED: usize = 0;
const RETRY_FAILED: usize = 1;
/// Labels of [`Metric::UpstreamIdleClosed`].
const IDLE_EXPIRED: usize = 0;
const IDLE_LIMIT: usize = 1;
const IDLE_ORIGIN: usize = 2;
