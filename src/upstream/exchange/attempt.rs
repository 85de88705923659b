//! One try of a request at one origin: take an idle connection or open one, send the request, and
//! wait until the response has begun, or is whole if it is small.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, EXPECT, TE, UPGRADE};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::super::choice::Chosen;
use super::super::connection::HttpVersion;
use super::super::connection::connect::{Connected, Target, connect};
use super::super::connection::core::{Active, Core};
use super::super::connection::http1::Http1;
use super::super::connection::http2::{Http2, Share};
use super::super::connection::io::ConnectionSlot;
use super::super::connection::proxy_header;
use super::super::connection::tunnel::UpgradedOrigin;
use super::super::error::{FetchError, HeaderLimit, LinkError, NoHead, NoHeadReason};
use super::super::pool::members::Member;
use super::super::send::{Failed, Outgoing, TryResult};
use super::super::settings::{PoolSettings, ProxyVersion};
use super::deadline::{Deadline, Limits, monotonic_ms};
use super::fields::{self, Misframed, Present, Upgrade};
use super::hold::HeldContent;
use super::patience::{PaceRef, Patience};
use super::request_body::{ClientUpload, hold_for_continue};
use super::response_body::{Content, Incoming, Link, NoContent, ResponseBody};
use super::resume::{ResumedBody, Resumption};
use super::{Times, UpstreamResponse};
use crate::body::{Body, BodyError, BodyFault, BodySource};
use crate::fields::ranges::is_conditional;
use crate::interim::Interims;
use crate::labels::RetryReason;
use crate::metrics::Metric;
use crate::peers::HOP;

/// One try at one origin.
pub(in crate::upstream) struct Attempt<'a> {
    pub(in crate::upstream) outgoing: &'a Outgoing<'a>,
    pub(in crate::upstream) chosen: Chosen,
    /// From 1.
    pub(in crate::upstream) number: u32,
    pub(in crate::upstream) pace: PaceRef<'a>,
    pub(in crate::upstream) limits: Limits,
    /// The attempt waits in the pool's queue for a connection.
    pub(in crate::upstream) is_queued: Cell<bool>,
}

impl Attempt<'_> {
    /// Makes the try. An idle connection that turns out to be closed is replaced once.
    pub(in crate::upstream) async fn exchange(self, mut body: Body) -> TryResult {
        let Outgoing { core, state, .. } = self.outgoing;
        let active = Active::begin(core, &state.pool, &self.chosen);
        let deadline = core.timers.deadline();
        let mut open = self.open_link().await;
        loop {
            let reused = open.is_some();
            let (mut link, connected_in) = match open.take() {
                Some(link) => (link, None),
                // On the heap: most exchanges do not open a connection, and their future stays small.
                None => match Box::pin(self.open_in_time()).await {
                    Ok((link, connected_in)) => (link, Some(connected_in)),
                    Err(NotOpened { error, is_anothers }) => {
                        let failed = Failed::new(error, Some(body));
                        // One failed connection counts once, however many requests waited for it.
                        let outcome = failed.outcome.filter(|_| !is_anothers);
                        return Err(Box::new(Failed { outcome, ..failed }));
                    }
                },
            };
            let connected = link.address();
            let upload = Rc::new(ClientUpload::default());
            let (limits, pace) = (&self.limits, &*self.pace);
            let patience = Patience { limits, deadline: &deadline, pace };
            let head = match &mut link {
                Link::Http1(http1) => {
                    let mut before = http1.before(&upload);
                    // The block ends before the await, so that the future does not hold the request.
                    let mut response = pin!({
                        let request = self.request(body, &upload, HttpVersion::Http1);
                        http1.send(request)
                    });
                    poll_fn(|cx| http1.poll_head(cx, response.as_mut(), &mut before, &patience))
                        .await
                        .map(|response| response.map(Incoming::Http1))
                }
                Link::Http2(http2) => {
                    let exchange = {
                        let request = self.request(body, &upload, HttpVersion::Http2);
                        let hear = |interim: &Response<()>| self.pass_on_interim(interim);
                        Box::pin(http2.head(request, hear, &patience, &upload))
                    };
                    exchange.await.map(|response| response.map(Incoming::Http2))
                }
            };
            let no_head = match head {
                Ok(response) => {
                    self.note_head(response.status(), &active);
                    let exchanged = Exchanged { link, response, connected_in, upload };
                    let responded = match exchanged.response.status() {
                        StatusCode::SWITCHING_PROTOCOLS => {
                            let switched = Box::pin(self.switch(exchanged)).await;
                            switched.inspect(|_| active.answered())
                        }
                        _ => match self.respond(exchanged, deadline, active) {
                            Ok((upstream, None)) => Ok(upstream),
                            Ok((upstream, Some(awaited))) => {
                                Box::pin(self.await_content(upstream, awaited)).await
                            }
                            Err(error) => Err(error),
                        },
                    };
                    return responded.map_err(|error| {
                        Box::new(Failed { connected, ..Failed::new(error, None) })
                    });
                }
                Err(no_head) => no_head,
            };
            let failed = Failed { connected, ..self.failed(no_head, &upload, &deadline) };
            body = self.replace_closed(failed, reused, &link)?;
        }
    }

    /// The request's body for another connection, if the origin closed an idle connection while the
    /// request was being sent. That is no fault of the origin and costs no retry budget. It happens
    /// once: the next connection is a new one.
    fn replace_closed(
        &self,
        failed: Failed,
        reused: bool,
        link: &Link,
    ) -> Result<Body, Box<Failed>> {
        if !reused || !matches!(failed.error, FetchError::Terminated { .. }) {
            return Err(Box::new(failed));
        }
        let outgoing = self.outgoing;
        if let Link::Http1(http1) = link {
            let now_ms = outgoing.core.timers.now_ms();
            self.chosen.member.closing.note(http1.idle_ms, now_ms);
        }
        let may_repeat = || !failed.error.origin_may_have_seen() || outgoing.is_repeatable();
        let again = failed.body.or_else(|| outgoing.kept.again().filter(|_| may_repeat()));
        let Some(body) = again else {
            return Err(Box::new(Failed { body: None, outcome: None, ..failed }));
        };
        let reason = RetryReason::Closed.index();
        outgoing.core.recorder.count_labelled(Metric::UpstreamRetries, reason);
        Ok(body)
    }

    /// Notes how long the origin took. An error must not make it look fast.
    fn note_head(&self, status: StatusCode, active: &Active) {
        if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
            self.outgoing.state.note_failure(&self.chosen.member);
        } else {
            active.measured();
        }
    }

    /// A connection that is already open.
    async fn open_link(&self) -> Option<Link> {
        let Outgoing { core, intent, .. } = self.outgoing;
        let is_sent_once = self.outgoing.is_sent_once();
        if is_sent_once && !self.chosen.member.idle.borrow().is_empty() {
            // One turn of the event loop: it may hold that the origin has closed a connection.
            yield_now().await;
        }
        let proxied = intent.proxied.as_ref().filter(|_| self.proxy_version().is_some());
        let http1 = || core.take_idle(&self.chosen.member, proxied, is_sent_once).map(Link::Http1);
        self.shared().or_else(http1)
    }

    fn proxy_version(&self) -> Option<ProxyVersion> {
        self.outgoing.state.pool.settings().send_proxy
    }

    /// A stream on a shared connection.
    fn shared(&self) -> Option<Link> {
        let possible = self.outgoing.intent.upgrade.is_none();
        let share =
            || self.outgoing.core.share_http2(&self.outgoing.state.pool, &self.chosen.member);
        possible.then(share).flatten().map(Link::Http2)
    }

    /// As [`Attempt::open`], with the time that it took. A try that has no connection after
    /// `deadlines.connect`, TLS included, is late.
    async fn open_in_time(&self) -> Result<(Link, Duration), NotOpened> {
        let began = self.outgoing.core.clock.instant();
        let connect = self.outgoing.state.pool.settings().deadlines.connect;
        let mut opening = pin!(self.open());
        let link = loop {
            match timeout(connect, opening.as_mut()).await {
                Ok(opened) => break opened?,
                // That all connections are in use is no fault of the origin.
                Err(_) if self.is_queued.get() => {}
                Err(_) => {
                    self.pace.set_late();
                    break opening.await?;
                }
            }
        };
        Ok((link, self.outgoing.core.clock.instant() - began))
    }

    /// A new connection, or a stream on one that another request is just opening.
    async fn open(&self) -> Result<Link, NotOpened> {
        let may_share = || {
            self.outgoing.intent.upgrade.is_none()
                && self.chosen.member.http_version.get() != Some(HttpVersion::Http1)
        };
        while may_share()
            && let Some(opening) = self.chosen.member.opening()
        {
            opening.done.notified().await;
            if let Some(link) = self.shared() {
                return Ok(link);
            }
            if let Some(error) = opening.failure.borrow().as_ref().and_then(FetchError::of_opening)
            {
                return Err(NotOpened { error, is_anothers: true });
            }
            if !opening.is_shared.get() {
                // The connection cannot be shared, or was given up. Waiting for others could take as long again.
                break;
            }
        }
        let guard = may_share().then(|| self.chosen.member.begin_opening());
        let opened = self.open_alone().await;
        if let Some(guard) = guard {
            guard.opening.is_shared.set(matches!(opened, Ok(Link::Http2(_))));
            let failure = opened.as_ref().err().and_then(FetchError::of_opening);
            *guard.opening.failure.borrow_mut() = failure;
        }
        opened.map_err(|error| NotOpened { error, is_anothers: false })
    }

    async fn open_alone(&self) -> Result<Link, FetchError> {
        let Outgoing { core, state, intent, .. } = self.outgoing;
        // Only an HTTP/1.1 connection can be handed over.
        let http1_only = intent.upgrade.is_some();
        let Core { resolver, recorder, .. } = &***core;
        let turn = state.turn.get();
        let slot = self.slot().await?;
        let header = |version| proxy_header::header(version, intent.proxied.as_deref());
        let preface = &self.proxy_version().map(header).unwrap_or_default();
        let connected = connect(
            &Target { pool: &state.pool, origin: self.origin(), turn, http1_only, preface },
            slot,
            resolver,
            recorder,
        )
        .await?;
        if !http1_only {
            self.chosen.member.http_version.set(Some(connected.version));
        }
        let opened = match connected.version {
            HttpVersion::Http1 => self.open_http1(connected).await.map(Link::Http1),
            HttpVersion::Http2 => self.open_http2(connected).await.map(Link::Http2),
        };
        opened.map_err(|source| FetchError::Protocol { origin: self.origin().name.clone(), source })
    }

    /// A slot for a new connection: that of the choice, or a free one. Without any, the first try of a request
    /// waits in the pool's queue: what it had counted on was closed, or cannot be shared.
    async fn slot(&self) -> Result<Box<ConnectionSlot>, FetchError> {
        let Outgoing { core, state, .. } = self.outgoing;
        let pool = &state.pool;
        let take = || ConnectionSlot::take(pool, self.origin(), &core.recorder);
        // An idle connection may be of another client, or closed.
        let take_another = || {
            core.release_one(&self.chosen.member);
            take()
        };
        if let Some(slot) = self.chosen.slot.take().or_else(take).or_else(take_another) {
            return Ok(slot);
        }
        let limit = pool.settings().connections_max;
        if self.number > 1 || pool.settings().queue.length == 0 {
            return Err(FetchError::ConnectionLimit { origin: self.origin().name.clone(), limit });
        }
        self.is_queued.set(true);
        let take_or_ask = || {
            take().or_else(|| {
                pool.queue.want_connection();
                None
            })
        };
        let slot = self.outgoing.wait_in_queue(take_or_ask).await;
        self.is_queued.set(false);
        slot
    }

    async fn open_http1(&self, connected: Connected) -> Result<Box<Http1>, LinkError> {
        let settings = self.outgoing.state.pool.settings();
        let mut builder = http1::Builder::new();
        builder.max_header_size(settings.header_bytes_max);
        builder.max_buf_size(READ_BYTES_MAX.max(settings.header_bytes_max));
        if settings.header_count_max != HEADERS_ON_STACK {
            builder.max_headers(settings.header_count_max);
        }
        let traffic = connected.io.traffic();
        let (sender, connection) = builder.handshake(TokioIo::new(connected.io)).await?;
        let now_ms = self.outgoing.core.timers.now_ms();
        let mut http1 = Http1::new(sender, connection, traffic, connected.address, now_ms);
        let proxied = self.outgoing.intent.proxied.clone();
        http1.proxied = proxied.filter(|_| self.proxy_version().is_some());
        Ok(Box::new(http1))
    }

    async fn open_http2(&self, connected: Connected) -> Result<Share, LinkError> {
        let settings = self.outgoing.state.pool.settings();
        let now_ms = self.outgoing.core.timers.now_ms();
        let http2 = Http2::open(connected, now_ms, settings).await?;
        self.chosen.member.add_http2(&http2);
        Ok(Share::of(&http2))
    }

    /// The request as it is sent on a connection.
    fn request(
        &self,
        body: Body,
        upload: &Rc<ClientUpload>,
        version: HttpVersion,
    ) -> Request<Body> {
        let Outgoing { core, state, intent, request, .. } = self.outgoing;
        let has_content = !body.is_end_stream();
        let mut request = request().map(|()| body);
        if let Some(protocol) = &intent.upgrade {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(UPGRADE, protocol.clone());
        }
        let present = Present::among(request.headers());
        fields::direct(&mut request, present, self.origin(), version);
        if let Some(access) = &state.pool.access {
            access.authorize(&mut request, core.clock.now());
        }
        if present.expect && !has_content {
            // RFC 9110 §10.1.1: a request without content must not expect 100 (Continue).
            request.headers_mut().remove(EXPECT);
        }
        if has_content {
            request = request.map(|body| upload.watch(body));
        }
        if version == HttpVersion::Http2 {
            if let Some(acknowledged) = &intent.acknowledged {
                acknowledged.note_sent();
            }
            if intent.takes_trailers {
                request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
            }
            return request;
        }
        fields::frame_content(&mut request, present);
        let held = (present.expect && has_content).then(|| {
            let timeout = state.pool.settings().deadlines.expect_continue;
            hold_for_continue(&mut request, timeout)
        });
        let interims = self.interims().cloned();
        if held.is_some() || interims.is_some() {
            let recorder = core.recorder.clone();
            // hyper keeps one callback for a request.
            hyper::ext::on_informational(&mut request, move |received| {
                if received.status() == StatusCode::CONTINUE {
                    held.iter().for_each(|held| held.permit());
                } else if let Some(interims) = &interims {
                    fields::pass_on(interims, &recorder, received.status(), received.headers());
                }
            });
        }
        request
    }

    /// The receiver of interim responses. Those of further tries could contradict the first's.
    fn interims(&self) -> Option<&Arc<Interims>> {
        self.outgoing.intent.interims.as_ref().filter(|_| self.number == 1)
    }

    /// Passes on an interim response of HTTP/2.
    fn pass_on_interim(&self, interim: &Response<()>) {
        if interim.status() == StatusCode::PROCESSING
            && let Some(acknowledged) = &self.outgoing.intent.acknowledged
        {
            return acknowledged.note_arrival();
        }
        if let Some(interims) = self.interims() {
            fields::pass_on(
                interims,
                &self.outgoing.core.recorder,
                interim.status(),
                interim.headers(),
            );
        }
    }

    /// The error for an exchange without a head.
    fn failed(&self, no_head: NoHead, upload: &ClientUpload, deadline: &Deadline) -> Failed {
        let origin = self.origin().name.clone();
        let settings = self.outgoing.state.pool.settings();
        let source = match no_head.why {
            NoHeadReason::Error(source) => source,
            NoHeadReason::Switched => {
                return Failed::new(FetchError::UnaskedUpgrade { origin }, None);
            }
            NoHeadReason::Deadline => {
                return self.late(upload, deadline);
            }
        };
        if source.is_too_large() {
            let PoolSettings { header_bytes_max, header_count_max, .. } = *settings;
            let limit = match usize::try_from(no_head.received) {
                Ok(received) if received < header_bytes_max => HeaderLimit::Count(header_count_max),
                _ => HeaderLimit::Bytes(header_bytes_max),
            };
            return Failed::new(FetchError::HeaderSize { origin, limit }, None);
        }
        let error = if let Some(failure) = upload.failure() {
            FetchError::request_body(&failure)
        } else if source.is_request_body(no_head.body.is_none()) {
            FetchError::request_body(&BodyError::new(source.to_string()))
        } else if source.is_invalid_response() {
            FetchError::Protocol { origin, source }
        } else if no_head.received > 0 {
            FetchError::Incomplete { origin, source }
        } else {
            FetchError::Terminated { origin, sent: no_head.sent, source }
        };
        Failed::new(error, no_head.body)
    }

    /// The error for an exchange whose head is late: the client's, if the origin is still waiting for
    /// the rest of the request.
    fn late(&self, upload: &ClientUpload, deadline: &Deadline) -> Failed {
        let origin = self.origin().name.clone();
        let awaits_client = upload.awaits_client();
        let total = self.outgoing.state.pool.settings().deadlines.total;
        let total = total.filter(|_| self.limits.total_passed(deadline));
        let (after, option) = match total {
            Some(total) => (total, "total"),
            None if self.limits.is_call => (self.limits.first_byte, "tunnel_idle"),
            None => (self.limits.first_byte, "first_byte"),
        };
        let error = if awaits_client && !self.limits.is_call {
            let why = format!(
                "the client did not send the request within {after:?} (deadlines.{option})"
            );
            FetchError::request_body(&BodyError::of(BodyFault::Late, why))
        } else {
            FetchError::ResponseTimeout { origin, after, option }
        };
        let failed = Failed::new(error, None);
        Failed { outcome: failed.outcome.filter(|_| !awaits_client), ..failed }
    }

    /// Turns the head of a response and its connection into a response. Content that must be waited
    /// for is returned beside it.
    fn respond(
        &self,
        exchanged: Exchanged,
        deadline: Deadline,
        active: Active,
    ) -> Result<(Box<UpstreamResponse>, Option<Awaited>), FetchError> {
        let Exchanged { mut link, response, connected_in, upload } = exchanged;
        let (mut head, incoming) = response.into_parts();
        fields::keep_one_line(&mut head.headers).map_err(|field| FetchError::FieldsDiffer {
            origin: self.origin().name.clone(),
            field,
        })?;
        if head.status == StatusCode::NOT_MODIFIED
            && !is_conditional((self.outgoing.request)().headers())
        {
            return Err(FetchError::UnaskedNotModified { origin: self.origin().name.clone() });
        }
        let upgrade = Upgrade::of(head.status);
        let is_of_peer = self.outgoing.state.pool.settings().is_of_peers;
        let verdict = is_of_peer.then(|| head.headers.remove(HOP)).flatten();
        let hop_by_hop = fields::take_hop_by_hop(&mut head.headers, upgrade);
        hop_by_hop.check_framing().map_err(|misframed| self.misframed(misframed))?;
        if let Link::Http1(http1) = &mut link {
            http1.kept_for = hop_by_hop.kept_for;
        }
        let address = link.address();
        active.set_status(head.status);
        let (body, awaited) = match Content::take(link, incoming, deadline, self.limits, active) {
            Content::Whole(body) => (body, None),
            Content::Streaming(body) => self.await_or_pass_on(&head, body.beside(upload)),
        };
        let mut upstream = self.response(head, body, address, connected_in);
        upstream.verdict = verdict;
        Ok((upstream, awaited))
    }

    /// A body that is small enough to be held, or of which a first piece is announced, is waited for.
    fn await_or_pass_on(&self, head: &Parts, body: Box<ResponseBody>) -> (Body, Option<Awaited>) {
        let Outgoing { core, state, .. } = self.outgoing;
        let now_ms = core.timers.now_ms();
        let held = HeldContent::begin(&state.pool, body.exact_length(), now_ms, &core.recorder);
        if held.is_some() || body.is_awaited() {
            body.await_more(&self.pace, held.as_ref());
            return (Body::Empty, Some(Awaited { body, held }));
        }
        body.answered();
        (self.pass_on(head.status, &head.headers, body), None)
    }

    /// The body that is passed on: one that another origin continues, where that is possible.
    fn pass_on(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        mut body: Box<ResponseBody>,
    ) -> Body {
        let length = body.exact_length();
        let Some(rest) = Resumption::of(self.outgoing, status, headers, length) else {
            return Body::Stream(body);
        };
        body.expect_within(self.outgoing.limits.per_try);
        Body::stream(ResumedBody::new(rest, Body::Stream(body), self.chosen.member.member.id))
    }

    /// Waits for content.
    async fn await_content(
        &self,
        mut upstream: Box<UpstreamResponse>,
        Awaited { mut body, mut held }: Awaited,
    ) -> Result<Box<UpstreamResponse>, FetchError> {
        let awaited = poll_fn(|cx| body.poll_awaited(cx, &mut held, &self.pace)).await;
        let origin = || self.origin().name.clone();
        awaited.map_err(|why| match why {
            NoContent::RequestBody(error) => FetchError::request_body(&error),
            NoContent::BrokeOff(source) => FetchError::ContentMissing { origin: origin(), source },
            NoContent::Deadline => {
                let after = self.limits.between_bytes;
                FetchError::ContentTimeout { origin: origin(), after }
            }
        })?;
        let response = &mut upstream.response;
        let passed_on = match held {
            Some(held) => held.into_body(),
            None => self.pass_on(response.status(), response.headers(), body),
        };
        *response.body_mut() = passed_on;
        Ok(upstream)
    }

    /// Hands over the connection after a 101.
    async fn switch(&self, exchanged: Exchanged) -> Result<Box<UpstreamResponse>, FetchError> {
        let Exchanged { link, response, connected_in, .. } = exchanged;
        let (mut head, _) = response.into_parts();
        let asked = self.outgoing.intent.upgrade.as_ref();
        if !asked.is_some_and(|asked| fields::is_asked_for(asked, &head.headers)) {
            return Err(FetchError::UnaskedUpgrade { origin: self.origin().name.clone() });
        }
        fields::take_hop_by_hop(&mut head.headers, Upgrade::Kept);
        let address = link.address();
        let upgraded = Some(Box::new(self.upgraded(link).await?));
        let mut upstream = self.response(head, Body::Empty, address, connected_in);
        upstream.upgraded = upgraded;
        Ok(upstream)
    }

    fn response(
        &self,
        mut head: Parts,
        body: Body,
        address: Option<SocketAddr>,
        connected: Option<Duration>,
    ) -> Box<UpstreamResponse> {
        head.extensions.clear();
        let Outgoing { core, began: (asked, began), .. } = self.outgoing;
        let (came, now) = core.clock.both();
        let first_byte = now - *began;
        if connected.is_none() {
            core.recorder.count(Metric::UpstreamReuses);
        }
        core.recorder.observe(Metric::UpstreamFirstByte, first_byte);
        self.origin().first_byte.note(first_byte, monotonic_ms());
        if self.number == 1 {
            self.outgoing.state.note_latency(first_byte);
        }
        Box::new(UpstreamResponse {
            response: Response::from_parts(head, body),
            origin: self.origin().name.clone(),
            address,
            attempts: self.number,
            unretried: None,
            verdict: None,
            first_byte,
            queued: self.outgoing.queued.get(),
            connected,
            times: Times { asked: *asked, came },
            upgraded: None,
        })
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
        &self.chosen.member.member
    }
}

/// Content of a response that must be waited for.
struct Awaited {
    body: Box<ResponseBody>,
    /// Present if all of it is waited for.
    held: Option<HeldContent>,
}

/// No connection could be opened.
struct NotOpened {
    error: FetchError,
    /// The error is of another request's connection, which this one waited for.
    is_anothers: bool,
}

/// The head of a response, and its connection.
struct Exchanged {
    link: Link,
    response: Response<Incoming>,
    /// The time in which the connection was opened. `None`: it was open.
    connected_in: Option<Duration>,
    upload: Rc<ClientUpload>,
}

/// hyper parses this many fields without an allocation.
const HEADERS_ON_STACK: usize = 100;
/// Bytes of one read from an origin, of which a body's frames are made. hyper's default is 400 KiB, which takes half a millisecond
/// in which no other request of the core is served.
const READ_BYTES_MAX: usize = 64 << 10;
