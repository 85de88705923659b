//! [`Upstreams`]: one core's connections to origins, and sending a request over them:
//! choose an origin, take a kept connection or open one, exchange, and try again where that
//! is safe.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONNECTION, EXPECT, TE, UPGRADE};
use http::response::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::connect::{Connected, connect};
use super::core::{Active, Core, MemberState, PoolState};
use super::deadline::{Deadline, Timers, monotonic_ms};
use super::error::{FetchError, LinkError, Tried, Unanswered};
use super::exchange::{
    AtOnce, ContentProgress, Http1, Incoming, Limits, Link, NoContent, NoHead, NoHeadReason,
    ResponseBody, hold_for_continue,
};
use super::fields::{self, Misframed, Upgrade};
use super::http2::{Http2, Share};
use super::members::Member;
use super::pool::Pool;
use super::resolve::Resolver;
use super::settings::PoolSettings;
use super::tunnel::UpgradedOrigin;
use crate::body::{Body, BodySource};
use crate::clock::Clock;
use crate::interim::Interims;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::planted::{self, Bug};

/// Who answers a miss.
#[derive(Clone, Debug)]
pub(crate) enum Upstream {
    /// One of the origins of a pool.
    Pool(Arc<Pool>),
}

impl Upstream {
    /// What logs and metrics call it: the pool's name.
    pub(crate) fn name(&self) -> &Arc<str> {
        let Self::Pool(pool) = self;
        pool.name()
    }

    /// How long an upgraded connection may carry nothing.
    pub(crate) fn tunnel_idle(&self) -> Duration {
        let Self::Pool(pool) = self;
        pool.settings().deadlines.tunnel_idle
    }
}

/// One core's way to all origins. Clones are the same one. Everything it starts lives in the
/// core's runtime.
#[derive(Clone)]
pub(crate) struct Upstreams(Rc<Core>);

/// What is wanted of an exchange, besides the request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intent {
    /// What [`super::Balance::Hash`] chooses by.
    pub hash: u64,
    /// Ask for another protocol on the connection (RFC 9110 §7.8): the `Upgrade` field.
    pub upgrade: Option<HeaderValue>,
    /// The client takes trailers: an origin that speaks HTTP/2 is told so (`TE: trailers`, RFC
    /// 9110 §10.1.4). One of HTTP/1.1 is not: there it would need a `Connection` of its own.
    pub takes_trailers: bool,
    /// Messages go both ways for as long as the client likes, and there may be none for a while:
    /// [`super::Deadlines::tunnel_idle`] stands in for the deadlines of head and body.
    pub is_call: bool,
    /// Where interim responses go.
    pub interims: Option<Arc<Interims>>,
}

/// The head of a response, and how it was come by.
#[derive(Debug)]
pub(crate) struct UpstreamResponse {
    /// Without hop-by-hop fields (RFC 9110 §7.6.1; of a 101 and a 426, `Upgrade` stays). Its body keeps
    /// the deadlines, and ends in an error if it is cut short. Its version is the one that the origin
    /// spoke, for `Via`.
    pub response: Response<Body>,
    /// `host:port` as configured.
    pub origin: Arc<str>,
    /// Where that was.
    pub address: SocketAddr,
    /// Whether the connection had been used before.
    pub reused: bool,
    /// Tries in all, this one included.
    pub attempts: u32,
    /// From [`Upstreams::send`] to the head, failed tries included.
    pub first_byte: Duration,
    /// Between which times that was.
    pub times: Times,
    /// Present on a 101: pass it to [`super::tunnel`].
    pub upgraded: Option<Box<UpgradedOrigin>>,
}

/// When a response was asked for at first, and when its head had come: "request_time" and
/// "response_time" of RFC 9111 §4.2.3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Before the first try.
    pub asked: SystemTime,
    /// After the head.
    pub came: SystemTime,
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstreams({} pools)", self.0.pools())
    }
}

impl Upstreams {
    /// Must be called on the core's runtime.
    pub(crate) fn new(resolver: Arc<Resolver>, clock: Clock, recorder: Recorder) -> Self {
        Self(Core::new(resolver, clock, recorder, Timers::start()))
    }

    /// Streams in flight on shared connections.
    #[cfg(test)]
    pub(super) fn streams(&self) -> usize {
        self.0.streams()
    }

    /// Sends a request upstream, to one of a pool's origins, and waits for the head of the response.
    ///
    /// `request` makes its head, for each try anew; the body streams. Of the URI, path and query
    /// are used; of the fields, `Host` is set as the pool says, and the others go as they are:
    /// hop-by-hop fields must be gone already. Dropping the future, or the response's body, ends
    /// the exchange.
    ///
    /// Of a response that announces its length the first piece of content is waited for too: an
    /// origin that breaks off before it has given no response. The head of one of unknown length,
    /// such as a stream of events, is handed over at once.
    ///
    /// # Errors
    /// The last try's, when several were made, and what was tried.
    pub(crate) async fn send(
        &self,
        upstream: &Upstream,
        request: impl Fn() -> Request<()>,
        mut body: Body,
        intent: &Intent,
    ) -> Result<UpstreamResponse, Box<Unanswered>> {
        let Upstream::Pool(pool) = upstream;
        let core = &self.0;
        let state = core.state(pool);
        core.recorder.count(Metric::UpstreamRequests);
        planted::hold_memory();
        let mut last =
            Tried { pool: pool.name().clone(), origin: None, address: None, attempts: 0 };
        let unanswered = |error, tried| Err(Box::new(Unanswered { error, tried }));
        if planted::each(Bug::AnswersFail, 20) {
            return unanswered(FetchError::AllDown { pool: pool.name().clone() }, last);
        }
        state.earn_retry();
        let mut attempt = Attempt {
            core,
            state: &state,
            number: 0,
            attempts: 0,
            began: core.clock.both(),
            limits: core.limits(pool.settings(), intent.is_call),
            request: &request,
            intent,
        };
        let mut tried = Vec::new();
        loop {
            let Some(number) = state.choose(intent, &tried) else {
                let error = FetchError::AllDown { pool: pool.name().clone() };
                core.recorder.count_labelled(Metric::UpstreamFailures, error.error_type().index());
                return unanswered(error, last);
            };
            attempt.number = number;
            attempt.attempts += 1;
            let failed = match attempt.exchange(body).await {
                Ok(upstream) => return Ok(upstream),
                Err(failed) => failed,
            };
            attempt.note_failure(&failed);
            last.origin = Some(attempt.origin().name.clone());
            (last.address, last.attempts) = (failed.address(), attempt.attempts);
            let again = failed.body.filter(|_| {
                attempt.attempts < pool.settings().retry.attempts_max
                    && core.timers.now_ms() < attempt.limits.end_ms
            });
            let Some(again) = again else { return unanswered(failed.error, last) };
            tried.push(number);
            if tried.len() == state.members.len() {
                // Nobody else to ask: the same one again helps only if it was there.
                if !failed.error.origin_may_have_seen() {
                    return unanswered(failed.error, last);
                }
                tried.clear();
            }
            if !state.spend_retry() {
                core.recorder.count(Metric::UpstreamRetriesRefused);
                return unanswered(failed.error, last);
            }
            core.recorder.count_labelled(Metric::UpstreamRetries, RETRY_FAILED);
            body = again;
        }
    }
}

/// One try at one origin.
struct Attempt<'a> {
    core: &'a Rc<Core>,
    state: &'a Rc<PoolState>,
    number: usize,
    /// Tries in all, this one included.
    attempts: u32,
    /// When the first one began.
    began: (SystemTime, Instant),
    limits: Limits,
    request: &'a dyn Fn() -> Request<()>,
    intent: &'a Intent,
}

/// A try that failed, with the request's body if it may be sent again.
struct Failed {
    error: FetchError,
    body: Option<Body>,
    /// It says something about the origin's health.
    blames_origin: bool,
    /// Where the connection led, if there was one.
    connected: Option<SocketAddr>,
}

impl Failed {
    fn new(error: FetchError, body: Option<Body>) -> Self {
        let blames_origin = error.blames_origin();
        Self { error, body, blames_origin, connected: None }
    }

    /// The origin's address, as far as it is known.
    fn address(&self) -> Option<SocketAddr> {
        match self.error {
            FetchError::Connect { address, .. } => Some(address),
            _ => self.connected,
        }
    }
}

impl Attempt<'_> {
    async fn exchange(&self, mut body: Body) -> Result<UpstreamResponse, Failed> {
        let active = Active::begin(self.core, &self.state.pool, self.here());
        let deadline = self.core.timers.deadline();
        let mut kept = self.kept();
        loop {
            let reused = kept.is_some();
            let mut link = match kept.take() {
                Some(link) => link,
                // On the heap: most exchanges don't need the room.
                None => match Box::pin(self.open()).await {
                    Ok(opened) => opened,
                    Err(error) => return Err(Failed::new(error, Some(body))),
                },
            };
            let connected = Some(link.address());
            let again;
            let content = Rc::new(ContentProgress::default());
            let head = match &mut link {
                Link::Http1(http1) => {
                    let (mut before, limits) = (http1.before(), &self.limits);
                    // The request has no room in the future: it is gone at the end of the block.
                    let mut response = pin!({
                        let (request, body) = self.request(body, &content, false);
                        again = body;
                        http1.send(request)
                    });
                    poll_fn(|cx| {
                        http1.poll_head(cx, response.as_mut(), &mut before, limits, &deadline)
                    })
                    .await
                    .map(|response| response.map(Incoming::Http1))
                }
                Link::Http2(http2) => {
                    let exchange = {
                        let (request, body) = self.request(body, &content, true);
                        again = body;
                        let hear = |interim: &Response<()>| self.hear(interim);
                        Box::pin(http2.head(request, hear, &self.limits, &deadline))
                    };
                    exchange.await.map(|response| response.map(Incoming::Http2))
                }
            };
            let no_head = match head {
                Ok(response) => {
                    if reused {
                        self.core.recorder.count(Metric::UpstreamReuses);
                    }
                    let exchanged = Exchanged { link, response, reused };
                    let responded = match exchanged.response.status() {
                        StatusCode::SWITCHING_PROTOCOLS => Box::pin(self.switch(exchanged)).await,
                        _ => match self.respond(exchanged, deadline, active) {
                            Ok((upstream, None)) => Ok(upstream),
                            Ok((upstream, Some(body))) => {
                                Box::pin(self.begin(upstream, body)).await
                            }
                            Err(error) => Err(error),
                        },
                    };
                    return responded
                        .map_err(|error| Failed { connected, ..Failed::new(error, None) });
                }
                Err(no_head) => no_head,
            };
            let failed = Failed { connected, ..self.failed(no_head, again, &content, &deadline) };
            match failed {
                // The origin closed it as we were about to use it: that says nothing about
                // the origin, and so costs neither health nor budget. Once only.
                failed @ Failed { error: FetchError::Terminated { .. }, .. } if reused => {
                    let Some(again) = failed.body else {
                        return Err(Failed { blames_origin: false, ..failed });
                    };
                    self.core.recorder.count_labelled(Metric::UpstreamRetries, RETRY_CLOSED);
                    body = again;
                }
                failed => return Err(failed),
            }
        }
    }

    /// What it says of the origin.
    fn note_failure(&self, failed: &Failed) {
        let Failed { error, blames_origin, .. } = failed;
        self.core.recorder.count_labelled(Metric::UpstreamFailures, error.error_type().index());
        let (health, settings) = (&self.origin().health, &self.state.pool.settings().health);
        if *blames_origin && health.failed(monotonic_ms(), settings) {
            self.core.recorder.count(Metric::UpstreamMarkedDown);
            let (pool, origin) = (self.state.pool.name(), &self.origin().name);
            let notice = Notice {
                is_error: false,
                message: "an origin is marked down",
                reason: error.proxy_error(),
                pool,
                origin,
            };
            notices::note(&notice, format_args!("{error}"));
        }
    }

    /// A connection that is open already.
    fn kept(&self) -> Option<Link> {
        let http1 = || self.core.take_idle(self.here()).map(Link::Http1);
        self.shared().or_else(http1)
    }

    /// A stream on a connection that others use too.
    fn shared(&self) -> Option<Link> {
        let possible = self.intent.upgrade.is_none();
        let share = || self.core.share_http2(&self.state.pool, self.here());
        possible.then(share).flatten().map(Link::Http2)
    }

    /// A new connection, or a share of one that somebody else was opening just now.
    async fn open(&self) -> Result<Link, FetchError> {
        let here = self.here();
        let may_share = || self.intent.upgrade.is_none() && here.speaks_http2.get() != Some(false);
        while may_share()
            && let Some(opening) = here.opening()
        {
            opening.done.notified().await;
            if let Some(link) = self.shared() {
                return Ok(link);
            }
            if !opening.shared.get() {
                // It failed. Waiting for the next one's failure would make a queue of them.
                break;
            }
        }
        let guard = may_share().then(|| here.open());
        let link = self.open_alone().await?;
        if let Some(guard) = guard {
            guard.opening.shared.set(matches!(link, Link::Http2(_)));
        }
        Ok(link)
    }

    async fn open_alone(&self) -> Result<Link, FetchError> {
        let upgrade = self.intent.upgrade.is_some();
        let Core { resolver, recorder, .. } = &**self.core;
        let turn = self.state.turn.get();
        let connected =
            connect(&self.state.pool, self.origin(), resolver, turn, upgrade, recorder).await?;
        if !upgrade {
            self.here().speaks_http2.set(Some(connected.http2));
        }
        let opened = if connected.http2 {
            self.open_http2(connected).await.map(Link::Http2)
        } else {
            self.open_http1(connected).await.map(Link::Http1)
        };
        opened.map_err(|source| FetchError::Protocol { origin: self.origin().name.clone(), source })
    }

    async fn open_http1(&self, connected: Connected) -> Result<Box<Http1>, LinkError> {
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

    async fn open_http2(&self, connected: Connected) -> Result<Share, LinkError> {
        let Connected { io, address, .. } = connected;
        let header_bytes_max = self.state.pool.settings().header_bytes_max;
        let now_ms = self.core.timers.now_ms();
        let http2 = Http2::open(io, address, now_ms, header_bytes_max).await?;
        self.here().add_http2(&http2);
        Ok(Share::of(&http2))
    }

    /// The request as it goes over a connection, and its body if that may be sent again.
    fn request(
        &self,
        body: Body,
        content: &Rc<ContentProgress>,
        is_http2: bool,
    ) -> (Request<Body>, Option<Body>) {
        let mut request = (self.request)().map(|()| body);
        if let Some(protocol) = &self.intent.upgrade {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(UPGRADE, protocol.clone());
        }
        fields::direct(&mut request, self.origin(), is_http2);
        if request.body().is_end_stream() {
            // RFC 9110 §10.1.1: what would be continued is not there.
            request.headers_mut().remove(EXPECT);
        }
        let again = if self.intent.upgrade.is_none() { fields::replayable(&request) } else { None };
        request = content.watch(request);
        if is_http2 {
            if self.intent.takes_trailers {
                request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
            }
            return (request, again);
        }
        fields::frame_content(&mut request);
        if let Some(interims) = &self.intent.interims {
            let (interims, recorder) = (interims.clone(), self.core.recorder.clone());
            hyper::ext::on_informational(&mut request, move |received| {
                fields::pass_on(&interims, &recorder, received.status(), received.headers());
            });
        }
        if request.headers().contains_key(EXPECT) {
            let patience = self.state.pool.settings().deadlines.expect_continue;
            request = hold_for_continue(request, patience);
        }
        (request, again)
    }

    /// Passes on an interim response of HTTP/2.
    fn hear(&self, interim: &Response<()>) {
        if let Some(interims) = &self.intent.interims {
            fields::pass_on(interims, &self.core.recorder, interim.status(), interim.headers());
        }
    }

    /// What a failure means, and whether the request may be sent again.
    fn failed(
        &self,
        no_head: NoHead,
        again: Option<Body>,
        content: &ContentProgress,
        deadline: &Deadline,
    ) -> Failed {
        let origin = self.origin().name.clone();
        let settings = self.state.pool.settings();
        let source = match no_head.why {
            NoHeadReason::Error(source) => source,
            NoHeadReason::Switched => {
                return Failed::new(FetchError::UnaskedUpgrade { origin }, None);
            }
            NoHeadReason::Deadline => {
                let total = self.limits.total_passed(deadline);
                let after = settings.deadlines.total.filter(|_| total);
                let after = after.unwrap_or(self.limits.first_byte);
                let error = FetchError::ResponseTimeout { origin, after };
                return Failed::new(error, None);
            }
        };
        if source.is_too_large() {
            let PoolSettings { header_bytes_max, header_count_max, .. } = *settings;
            let (bytes_max, count_max) = (header_bytes_max, header_count_max);
            return Failed::new(FetchError::HeaderSize { origin, bytes_max, count_max }, None);
        }
        let error = if let Some(is_late) = content.failed_late() {
            FetchError::RequestBody { is_late, source }
        } else if source.is_request_body(no_head.body.is_none()) {
            FetchError::RequestBody { is_late: false, source }
        } else if source.is_parse() {
            FetchError::Protocol { origin, source }
        } else if no_head.received {
            FetchError::Incomplete { origin, source }
        } else {
            FetchError::Terminated { origin, sent: no_head.sent, source }
        };
        let terminated = matches!(error, FetchError::Terminated { .. });
        Failed::new(error, no_head.body.or_else(|| again.filter(|_| terminated)))
    }

    /// The head has come: what becomes of the body and of the connection. A body beside it is one
    /// whose first piece is to be waited for.
    fn respond(
        &self,
        exchanged: Exchanged,
        deadline: Deadline,
        active: Active,
    ) -> Result<(UpstreamResponse, Option<Box<ResponseBody>>), FetchError> {
        let Exchanged { mut link, response, reused } = exchanged;
        let (mut head, incoming) = response.into_parts();
        fields::keep_one_line(&mut head.headers).map_err(|field| FetchError::FieldsDiffer {
            origin: self.origin().name.clone(),
            field,
        })?;
        let upgrade = Upgrade::of(head.status);
        let to_us = fields::take_hop_by_hop(&mut head.headers, upgrade);
        to_us.check_framing().map_err(|misframed| self.misframed(misframed))?;
        if let Link::Http1(http1) = &mut link {
            http1.kept_for = to_us.kept_for;
        }
        let address = link.address();
        let (body, awaited) = match stream(link, incoming, deadline, self.limits, active) {
            Streamed::Whole(body) => (body, None),
            Streamed::Coming(body) if body.is_awaited() => (Body::Empty, Some(body)),
            Streamed::Coming(body) => (Body::Stream(body), None),
        };
        Ok((self.response(head, body, address, reused), awaited))
    }

    /// Waits for the first piece of the content that a head announced.
    async fn begin(
        &self,
        mut upstream: UpstreamResponse,
        mut body: Box<ResponseBody>,
    ) -> Result<UpstreamResponse, FetchError> {
        let begun = poll_fn(|cx| body.poll_begin(cx)).await;
        let origin = || self.origin().name.clone();
        begun.map_err(|why| match why {
            NoContent::BrokeOff(LinkError::RequestBody(error)) => {
                let (is_late, source) = (error.is_late(), LinkError::RequestBody(error));
                FetchError::RequestBody { is_late, source }
            }
            NoContent::BrokeOff(source) => FetchError::ContentMissing { origin: origin(), source },
            NoContent::Deadline => {
                let after = self.limits.between_bytes;
                FetchError::ContentTimeout { origin: origin(), after }
            }
        })?;
        *upstream.response.body_mut() = Body::Stream(body);
        Ok(upstream)
    }

    /// The head of a 101 has come: the connection becomes what it says.
    async fn switch(&self, exchanged: Exchanged) -> Result<UpstreamResponse, FetchError> {
        let Exchanged { link, response, reused } = exchanged;
        let (mut head, _) = response.into_parts();
        let asked = self.intent.upgrade.as_ref();
        if !asked.is_some_and(|asked| fields::is_asked_for(asked, &head.headers)) {
            return Err(FetchError::UnaskedUpgrade { origin: self.origin().name.clone() });
        }
        fields::take_hop_by_hop(&mut head.headers, Upgrade::Kept);
        let address = link.address();
        let upgraded = Some(Box::new(self.upgraded(link).await?));
        let response = self.response(head, Body::Empty, address, reused);
        Ok(UpstreamResponse { upgraded, ..response })
    }

    fn response(
        &self,
        mut head: Parts,
        body: Body,
        address: SocketAddr,
        reused: bool,
    ) -> UpstreamResponse {
        head.extensions.clear();
        let (asked, began) = self.began;
        let (came, now) = self.core.clock.both();
        let first_byte = now - began;
        if self.origin().health.succeeded() {
            notices::recovered(self.state.pool.name(), &self.origin().name);
        }
        self.core.recorder.observe(Metric::UpstreamFirstByte, first_byte);
        UpstreamResponse {
            response: Response::from_parts(head, body),
            origin: self.origin().name.clone(),
            address,
            reused,
            attempts: self.attempts,
            first_byte,
            times: Times { asked, came },
            upgraded: None,
        }
    }

    fn misframed(&self, misframed: Misframed) -> FetchError {
        let origin = self.origin().name.clone();
        match misframed {
            Misframed::Coding => FetchError::TransferCoding { origin },
            Misframed::Twice => FetchError::FramedTwice { origin },
        }
    }

    async fn upgraded(&self, link: Link) -> Result<UpgradedOrigin, FetchError> {
        let origin = self.origin().name.clone();
        match link {
            Link::Http1(http1) => {
                let upgraded = http1.into_upgraded().await;
                upgraded.map_err(|source| FetchError::Protocol { origin, source: source.into() })
            }
            // HTTP/2 has no 101 (RFC 9113 §8.6).
            Link::Http2(_) => Err(FetchError::UnaskedUpgrade { origin }),
        }
    }

    fn origin(&self) -> &Member {
        &self.here().member
    }

    fn here(&self) -> &Rc<MemberState> {
        &self.state.members[self.number]
    }
}

/// A connection, and the head of the response that came over it.
struct Exchanged {
    link: Link,
    response: Response<Incoming>,
    reused: bool,
}

/// A response's body once its head has come.
enum Streamed {
    Whole(Body),
    Coming(Box<ResponseBody>),
}

fn stream(
    link: Link,
    incoming: Incoming,
    deadline: Deadline,
    limits: Limits,
    active: Active,
) -> Streamed {
    let (begun, incoming, link) = match (link, incoming) {
        (Link::Http1(mut http1), Incoming::Http1(incoming)) => match http1.body_at_once(incoming) {
            AtOnce::Whole(body) => {
                active.give_back(http1);
                return Streamed::Whole(body);
            }
            AtOnce::Begun(begun, incoming) => {
                let begun = begun.map(|frame| frame.map_err(LinkError::from));
                (Some(begun), Incoming::Http1(incoming), Link::Http1(http1))
            }
            AtOnce::Streams(incoming) => (None, Incoming::Http1(incoming), Link::Http1(http1)),
        },
        (_, incoming) if incoming.is_end_stream() => return Streamed::Whole(Body::Empty),
        (link, incoming) => (None, incoming, link),
    };
    let body = ResponseBody::new(incoming, begun, link, deadline, limits, active);
    Streamed::Coming(Box::new(body))
}

/// hyper parses this many fields without an allocation.
const HEADERS_ON_STACK: usize = 100;

/// Labels of [`Metric::UpstreamRetries`].
const RETRY_CLOSED: usize = 0;
const RETRY_FAILED: usize = 1;
