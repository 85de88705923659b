//! The request path. [`serve`] calls the stages in this order:
//!
//! ```text
//! normalise → route → admit ┬ redirect, fixed response, PURGE ────────────────────────────┐
//!                           ├ bypass → pass (no lookup) ─────────────────────────────────┤
//!                           └ key → lookup → decide ─ Serve ─────────────────────────────┤
//!                                  │                └ bytes missing → fetch the ranges ──┤
//!                                  ├ ServeStale (+ refresh in background) ───────────────┤→ select → encode → finish
//!                                  ├ Validate → fetch (conditional) ─────────────────────┤
//!                                  ├ Forward(reason) → fetch (collapse, fill) ───────────┤
//!                                  └ GatewayTimeout → 504 ───────────────────────────────┘
//! ```
//!
//! Stages return their outcome as a value, [`Answered`] or [`PathError`]; only *finish* writes
//! `Cache-Status` and the access log, and counts the response. If the response is in memory, no stage
//! waits: [`serve`] returns a reply that is ready. Only stages that wait for disk or upstream run in a boxed future. [`serve`]
//! never fails: [`respond::ErrorReply`] turns an error into a reply.

mod added_fields;
mod answer;
mod detach_on_drop;
mod errors;
mod exchange;
mod explain;
mod fetching;
mod forms;
mod geo_redirect;
mod internal_requests;
mod lookup;
mod max_forwards;
mod mirror;
mod outcome;
mod pass;
mod popular;
mod purging;
mod ranges;
mod region;
mod repaired_body;
mod request_content;
mod routing;
mod visitors;
mod worker;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{HOST, REFERER, USER_AGENT};
use http::request::Parts;
use http::{
    Extensions, HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};

use crate::body::{Body, BodySource};
use crate::cache::{self, CacheStatus, Decision, Reason, RequestDirectives};
use crate::context::{Connection, RequestContext, RequestHead, ResponseFacts};
use crate::guard::{self, Applicant, Normalised, Rates, Refusal};
use crate::interim::{Interims, ReplyFuture};
use crate::labels::HopRefusal;
use crate::metrics::{Metric, Recorder};
use crate::peers::PURGES;
use crate::purge::Requirement;
use crate::reply::Reply;
use crate::respond::{self, ErrorReply, Transaction};
use crate::route::{Action, Rule, Site};
use crate::transform::Accepted;
use crate::upgrade::OnUpgrade;
use crate::upstream::StickyToken;

pub(crate) use explain::Explainer;
pub(crate) use forms::hot_forms::{HotFormSettings, HotForms};
pub(crate) use internal_requests::{InternalRequest, run_internal_requests};
pub(crate) use popular::Popular;
pub(crate) use purging::PurgeByMethod;
pub(crate) use region::patience::DEADLINES_MAX;
pub(crate) use region::peer_calls::PeerCall;
pub(crate) use region::{PeerCounts, PeerLink, Region, SharedRegion};
pub(crate) use routing::canonical_url;
pub(crate) use worker::{Plan, Worker, WorkerParts};

use forms::form_lookup::WantedForms;
use lookup::{CacheQuery, LookupResult, Search};
use outcome::{AnswerFuture, Answered, Encoded, PathError, facts_of};
use routing::{route, rules_of_other_readings};

/// A reply that is ready, or a future of one.
pub(crate) enum Serving {
    /// The reply, which was ready at once. `None` after it has been taken.
    Ready(Option<Reply>),
    /// Waits for disk or upstream. Interim responses (1xx) may precede the reply.
    Waiting(Pin<Box<dyn Future<Output = Reply>>>, Arc<Interims>),
}

impl Future for Serving {
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        match self.get_mut() {
            Self::Ready(reply) => Poll::Ready(reply.take().expect("not polled after completion")),
            Self::Waiting(future, _) => future.as_mut().poll(cx),
        }
    }
}

impl ReplyFuture for Serving {
    fn poll_interim(self: Pin<&mut Self>, cx: &Context<'_>) -> Poll<Response<()>> {
        match &*self {
            Self::Ready(_) => Poll::Pending,
            Self::Waiting(_, interims) => interims.poll_next(cx),
        }
    }
}

/// One admitted request on its way through the stages: facts, and the services of its worker.
///
/// A clone shares everything and allocates nothing.
#[derive(Clone)]
struct Visit {
    worker: Rc<Worker>,
    plan: Rc<Plan>,
    context: RequestContext,
    /// The request fields after the gate: normalised, without hop-by-hop fields.
    fields: Rc<HeaderMap>,
    request: Normalised,
    site: Arc<Site>,
    rule: Arc<Rule>,
    directives: RequestDirectives,
    /// The codings that the client accepts.
    accepted: Accepted,
    /// The origin at which the visitor is kept, from its cookie.
    sticky: Option<StickyToken>,
    /// Interim responses for the client. `None` on the stages that do not wait.
    interims: Option<Arc<Interims>>,
    /// No peer is asked: they have been, in vain.
    leaves_peers_out: bool,
    /// The purge requirement of the peer that sends the request, if this node does not meet it.
    unmet: Option<Requirement>,
}

/// The parts of a request that can be sent upstream only once.
#[derive(Default)]
struct Payload {
    body: Body,
    /// Present if the client wants to switch protocols and the rule allows it.
    switch: Option<Box<ProtocolSwitch>>,
}

/// A switch of protocols that is forwarded (RFC 9110 §7.8).
struct ProtocolSwitch {
    /// The `Upgrade` value for the origin.
    protocols: HeaderValue,
    /// The client's connection, available after the 101.
    client: OnUpgrade,
}

/// Serves one request.
pub(crate) fn serve(
    worker: &Rc<Worker>,
    connection: Rc<Connection>,
    request: Request<Body>,
) -> Serving {
    if region::peer_calls::is_call(&connection, request.uri()) {
        let (calls, nodes) = (worker.peer_calls.clone(), worker.nodes.borrow().clone());
        let recorder = worker.recorder.clone();
        let answer = region::peer_calls::answer(calls, nodes, recorder, connection, request);
        return Serving::Waiting(Box::pin(answer), Arc::default());
    }
    worker.recorder.count(Metric::Requests);
    let plan = worker.plan();
    let (Parts { method, uri, version, mut headers, mut extensions, .. }, body) =
        request.into_parts();
    let head = RequestHead::new(method, uri, version);
    let mut context = request_context(worker, connection, head, &headers);
    let (request, site, rule) = match admit(worker, &plan, &mut context, &mut headers) {
        Ok(admitted) => admitted,
        Err(error) => return Serving::Ready(Some(finish_error(worker, &plan, context, *error))),
    };
    let sticky = visitors::take_sticky_token(&rule, &context, &mut headers);
    let directives = RequestDirectives::of(&headers, rule.settings.cache.honoured);
    let switch = protocol_switch(&request, &rule, &body, &mut extensions, &worker.recorder);
    let body = request_content::prepare(body, &mut headers, &rule, &worker.recorder);
    let payload = Payload { body, switch };
    // The peer states the codings of its client; a client states its own.
    let codings = context.hop.as_deref().and_then(|hop| hop.codings.as_deref());
    let accepted = codings.map_or_else(|| worker.accepted(&headers), Accepted::parse);
    let (worker, fields) = (worker.clone(), Rc::new(headers));
    let mut visit = Visit {
        worker,
        plan,
        context,
        fields,
        request,
        site,
        rule,
        directives,
        accepted,
        sticky,
        interims: None,
        leaves_peers_out: false,
        unmet: None,
    };
    let outcome = visit.answer_at_once(&payload);
    visit.note_lookup();
    match outcome {
        Ok(answered) => match visit.encode(answered) {
            Encoded::Ready(answered) => Serving::Ready(Some(visit.finish(answered))),
            Encoded::Recoding(recoding) => {
                let interims = visit.interims.insert(Arc::default()).clone();
                Serving::Waiting(Box::pin(visit.finish_recoding(recoding)), interims)
            }
            Encoded::Refused => {
                let interims = visit.interims.insert(Arc::default()).clone();
                Serving::Waiting(Box::pin(visit.finish_uncoded()), interims)
            }
        },
        Err(wait) => {
            let interims = visit.interims.insert(Arc::default()).clone();
            Serving::Waiting(Box::pin(visit.wait(wait, payload)), interims)
        }
    }
}

/// A request that the listener refuses because it cannot be parsed.
pub(crate) struct UnreadRequest {
    /// The status of the reply.
    pub status: StatusCode,
    /// The word for the log.
    pub reason: &'static str,
    /// The sentence for the client.
    pub detail: String,
    /// How long the listener waited for the request.
    pub waited: Duration,
}

/// Counts and logs a request that the listener refuses. Only its connection is known. Returns the reply.
pub(crate) fn refuse_unread(
    worker: &Worker,
    connection: Rc<Connection>,
    unread: UnreadRequest,
) -> Reply {
    let method = Method::from_bytes(b"-").expect("a token");
    let head = RequestHead::new(method, Uri::from_static("*"), Version::HTTP_11);
    let UnreadRequest { status, reason, detail, waited } = unread;
    let mut context = request_context(worker, connection, head, &HeaderMap::new());
    context.started = context.started.checked_sub(waited).unwrap_or(context.started);
    let error = ErrorReply::new(status, reason, detail);
    let error = facts_of(CacheStatus::generated(Reason::Refused)).fail(error);
    finish_error(worker, &worker.plan(), context, *error)
}

fn request_context(
    worker: &Worker,
    connection: Rc<Connection>,
    mut request: RequestHead,
    headers: &HeaderMap,
) -> RequestContext {
    let (received_at, started) = worker.clock.both();
    if worker.log.is_on() {
        for (name, value) in headers {
            match *name {
                USER_AGENT => request.user_agent = Some(value.clone()),
                REFERER => request.referer = Some(value.clone()),
                _ => {}
            }
        }
    }
    RequestContext {
        id: worker.next_request_id(),
        client: connection.peer.ip(),
        hop: None,
        hop_purges: None,
        connection,
        received_at,
        started,
        request,
        place: geo::Place::default(),
        site: None,
        site_number: 0,
        log_share: u32::MAX,
        rule: None,
        group: None,
        timing: None,
    }
}

/// normalise → route → admit. The first refusal wins.
fn admit(
    worker: &Worker,
    plan: &Plan,
    context: &mut RequestContext,
    headers: &mut HeaderMap,
) -> Result<(Normalised, Arc<Site>, Arc<Rule>), Box<PathError>> {
    if plan.gate.is_debug(headers) {
        context.timing = Some(Box::default());
    }
    let hop = region::peer_requests::take_hop(&worker.nodes, &worker.recorder, context, headers)?;
    if hop.is_some() {
        context.hop_purges = headers.get(&PURGES).cloned();
    }
    let mut request =
        plan.gate.normalise(&context.request, headers, &context.connection).map_err(|refusal| {
            let cause = received_host(refusal, headers);
            errors::refused_with_cause(refusal, cause, &worker.recorder)
        })?;
    if let Some(hop) = hop {
        region::peer_requests::believe(hop, context, &mut request);
    }
    context.client = request.client;
    context.place = worker.geo.locate(request.client);
    context.request.host = Some(request.authority.to_field());

    let method = &context.request.method;
    let (site, rule) = route(&plan.routes, &request, method, &context.place)
        .ok_or_else(|| errors::no_site(request.authority.host()))?;
    context.site = Some(site.name.clone());
    context.site_number = site.number;
    context.log_share = site.log_share;
    context.rule = rule.settings.logged_name().cloned();
    // The node that the client asked has counted the request of a peer.
    if context.hop.is_none() {
        worker.recorder.count_rule(rule.settings.number);
    }
    if rule.settings.server_timing {
        context.timing.get_or_insert_default();
    }

    let applicant = Applicant {
        requester: context.connection.requester,
        client: request.client,
        country: context.place.country,
        method,
        headers,
        now: context.started,
    };
    let keep_limits = |rule: &Rule| {
        let rates = Rates::Take(&plan.rates, &worker.recorder);
        guard::admit(&rule.settings.guard, &applicant, rates)
            .map_err(|rejection| errors::refused(*rejection, &worker.recorder))
    };
    if site.has_various_limits {
        let others = rules_of_other_readings(site, rule, &request, method, &context.place);
        others.into_iter().try_for_each(|other| keep_limits(other))?;
    }
    keep_limits(rule)?;
    if let Some(split) = rule.split() {
        context.group = visitors::assign_group(rule, split, context, headers, &worker.recorder);
    }
    Ok((request, site.clone(), rule.clone()))
}

/// The host as received, for the log, if the request was refused because of it.
fn received_host(refusal: Refusal, headers: &HeaderMap) -> Option<Box<str>> {
    if !matches!(refusal, Refusal::HostInvalid | Refusal::HostDisagrees) {
        return None;
    }
    let host = headers.get(HOST)?.as_bytes();
    let host = String::from_utf8_lossy(&host[..host.len().min(LOGGED_HOST_BYTES_MAX)]);
    Some(format!("Host: {host}").into())
}

/// The protocol switch to forward: only to protocols that the rule allows, and only for a request
/// without content, because no content may be left on a connection that becomes a tunnel. A server
/// may ignore `Upgrade` (RFC 9110 §7.8).
fn protocol_switch(
    request: &Normalised,
    rule: &Rule,
    body: &Body,
    extensions: &mut Extensions,
    recorder: &Recorder,
) -> Option<Box<ProtocolSwitch>> {
    let requested = request.upgrade.as_ref()?;
    let protocols = guard::upgrade::allowed(requested, &rule.settings.guard.access.upgrade);
    match (protocols, extensions.remove()) {
        (Some(protocols), Some(client)) if body.is_end_stream() => {
            Some(Box::new(ProtocolSwitch { protocols, client }))
        }
        _ => {
            recorder.count(Metric::UpgradesIgnored);
            None
        }
    }
}

/// Why a request cannot be answered at once.
enum Wait {
    /// The request is a purge, which must first be durable.
    Purge,
    /// The request bypasses the cache.
    Pass(Reason),
    /// The request is of a peer that has purges in force which this node may not have applied.
    Purges(Requirement),
    /// Its lookup must continue on disk.
    LookUp(Box<Search>),
    /// The lookup is complete, and the stored response cannot be sent as it is.
    Continue(NextStage),
}

/// The stage after *decide* for a request that the store cannot answer alone.
enum NextStage {
    /// Validate the stored response, or fetch a new one.
    Fetch(LookupResult, Reason),
    /// The stored response is fresh, but some of the requested bytes are not stored.
    FillGaps(LookupResult),
    /// 504: the request says only-if-cached, and no stored response can answer it alone.
    GatewayTimeout(Reason),
}

impl Visit {
    /// key → lookup → decide, from memory only.
    fn answer_at_once(&self, payload: &Payload) -> Result<Answered, Wait> {
        if self.is_purge() {
            return Err(Wait::Purge);
        }
        if let Some(refused) = self.refuse_peer() {
            return Ok(refused);
        }
        if let Some(requirement) = self.unmet_by_this_node() {
            return Err(Wait::Purges(requirement));
        }
        let generated =
            |reply| Ok(Answered::new(reply, CacheStatus::generated(Reason::AnsweredHere)));
        match &self.rule.settings.action {
            Action::Redirect(redirect) => {
                return generated(answer::redirect(redirect, &self.query().facts()));
            }
            Action::Fixed(fixed) => return generated(answer::fixed(fixed)),
            Action::Forward(forward) => {
                if let Some(redirect) = &forward.geo_redirect
                    && let Some(reply) = self.redirect_to_region(redirect, payload)
                {
                    return generated(reply);
                }
            }
        }
        if let Some(reply) = self.reply_if_max_forwards_is_zero() {
            return generated(reply);
        }
        if let Some(reason) = self.bypass_reason(payload) {
            return Err(Wait::Pass(reason));
        }
        let query = self.query();
        let found = query.look_up_in_memory(query.search()).map_err(Wait::LookUp)?;
        self.use_stored(found).map_err(Wait::Continue)
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` would store `self` twice in its future"
    )]
    fn wait(mut self, wait: Wait, payload: Payload) -> impl Future<Output = Reply> {
        async move {
            let outcome = match wait {
                // On the heap: each request that waits moves this future, and few need the room.
                Wait::Purge => Box::pin(self.purge()).await,
                Wait::Pass(reason) => self.pass(reason, None, payload).await,
                Wait::Purges(requirement) => Box::pin(self.answer_after_purges(requirement)).await,
                Wait::LookUp(search) => {
                    let found = self.query().look_up(*search, lookup::Lookup::Find).await;
                    self.note_lookup();
                    match self.use_stored(found) {
                        Ok(answered) => Ok(answered),
                        Err(next) => self.run_stage(next).await,
                    }
                }
                Wait::Continue(next) => self.run_stage(next).await,
            };
            match outcome {
                Ok(answered) => match self.encode(answered) {
                    Encoded::Ready(answered) => self.finish(answered),
                    Encoded::Recoding(recoding) => Box::pin(self.finish_recoding(recoding)).await,
                    Encoded::Refused => Box::pin(self.finish_uncoded()).await,
                },
                Err(error) => finish_error(&self.worker, &self.plan, self.context, *error),
            }
        }
    }

    /// Why the request bypasses the cache: its method, content, a protocol switch, or a configured bypass.
    /// `None` if it does not.
    fn bypass_reason(&self, payload: &Payload) -> Option<Reason> {
        if payload.switch.is_some() || !payload.body.is_end_stream() {
            // RFC 9211 has no word for content or a switch; "method" is the closest.
            return Some(Reason::Method);
        }
        self.query().bypass_reason()
    }

    /// decide: the answer if the stored response can be sent as it is, fresh or stale; otherwise the
    /// next stage.
    fn use_stored(&self, found: LookupResult) -> Result<Answered, NextStage> {
        if let Some(form) = &found.form
            && let Some(answered) = self.hit(found.hash, form, None)
        {
            return Ok(answered);
        }
        let decision = self.query().decide(&found, self.context.received_at);
        let only_if_cached = self.directives.only_if_cached;
        let bytes_missing = |found| match only_if_cached {
            true => NextStage::GatewayTimeout(Reason::BytesMissing),
            false => NextStage::Fetch(LookupResult { head: None, ..found }, Reason::BytesMissing),
        };
        match (decision, &found.head) {
            (Decision::Serve { .. }, Some(head)) => match self.hit(found.hash, head, None) {
                Some(answered) => Ok(answered),
                None if only_if_cached => Err(bytes_missing(found)),
                None => Err(NextStage::FillGaps(found)),
            },
            (Decision::ServeStale { why, refresh, .. }, Some(head)) => {
                let Some(answered) = self.hit(found.hash, head, Some(why)) else {
                    return Err(bytes_missing(found));
                };
                if refresh {
                    self.refresh(LookupResult { validate: true, ..found });
                }
                Ok(answered)
            }
            (Decision::Serve { .. } | Decision::ServeStale { .. }, None) => {
                Err(bytes_missing(found))
            }
            (Decision::Validate(reason), _) => {
                Err(NextStage::Fetch(LookupResult { validate: true, ..found }, reason))
            }
            (Decision::Forward(reason), _) => {
                // Unless the stored response must never be used again, keep it: it may be served
                // stale if upstream fails, or updated by the response to a HEAD request.
                let gone =
                    matches!(reason, Reason::HardPurged | Reason::Invalidated | Reason::TooOld);
                let head = found.head.filter(|_| !gone);
                Err(NextStage::Fetch(LookupResult { head, ..found }, reason))
            }
            (Decision::GatewayTimeout(reason), _) => Err(NextStage::GatewayTimeout(reason)),
        }
    }

    fn run_stage(&self, next: NextStage) -> AnswerFuture<'_> {
        self.acknowledge_to_peer();
        match next {
            NextStage::Fetch(found, reason) => self.fetch(found, reason),
            NextStage::FillGaps(found) => Box::pin(self.fill_gaps_or_fetch(found)),
            NextStage::GatewayTimeout(reason) => {
                Box::pin(async move { Err(errors::only_if_cached(reason)) })
            }
        }
    }

    async fn fill_gaps_or_fetch(&self, found: LookupResult) -> Result<Answered, Box<PathError>> {
        if let Some(answered) = self.fill_gaps(&found).await? {
            return Ok(answered);
        }
        self.fetch(LookupResult { head: None, ..found }, Reason::BytesMissing).await
    }

    /// The facts that lookup and decision depend on.
    fn query(&self) -> CacheQuery<'_> {
        CacheQuery {
            store: &self.worker.store,
            gate: &self.plan.gate,
            connection: &self.context.connection,
            rule: &self.rule,
            request: &self.request,
            method: &self.context.request.method,
            fields: &self.fields,
            directives: &self.directives,
            place: &self.context.place,
            id: &self.context.id,
            group: self.context.group_name(),
            forms: match self.is_for_storing_peer() {
                true => WantedForms::None,
                false => WantedForms::Preferred(self.accepted, self.context.received_at),
            },
        }
    }

    /// Notes for `Server-Timing` that the lookup is complete.
    fn note_lookup(&mut self) {
        if let Some(timing) = &mut self.context.timing {
            timing.looked_up = Some(self.worker.elapsed(self.context.started));
        }
    }

    /// finish: applies the rule's response fields, and writes `Via`, `Cache-Status`, metrics and log.
    fn finish(self, answered: Answered) -> Reply {
        if self.context.hop.is_some() {
            return self.finish_for_peer(answered);
        }
        let Answered { mut reply, facts, .. } = answered;
        let settings = &self.rule.settings;
        // A 304 has no fields that describe content (RFC 9110 §15.4.5).
        if reply.status == StatusCode::NOT_MODIFIED {
            cache::fields::leave_content_out(&mut reply.fields);
        }
        if !settings.response_fields.is_empty() {
            settings.response_fields.apply(&mut reply.fields, &self.query().facts());
        }
        if let (Some(group), Some(split)) = (&self.context.group, self.rule.split()) {
            visitors::tell_group(split, group, self.request.scheme, &mut reply);
        }
        if self.rule.has_sticky_pools() {
            self.keep_visitor(&facts, &mut reply);
        }
        let shows_key = settings.cache.show_key && !facts.cache_status.is_generated();
        let key = shows_key.then(|| self.query().key_in_memory().text);
        respond::add_via_and_cache_status(&mut reply, &facts, &self.plan.identity, key.as_deref());
        account(&self.worker, self.context, facts, reply)
    }
}

/// finish for a request that was refused or failed.
fn finish_error(
    worker: &Worker,
    plan: &Plan,
    context: RequestContext,
    PathError { mut error, mut facts }: PathError,
) -> Reply {
    facts.failure = Some(error.reason);
    facts.failure_detail = error.cause.take();
    tracing::debug!(request = %context.id, reason = error.reason, detail = %error.detail, "refused or failed");
    // A peer goes to the origin itself: no failure of this node is an error for its client.
    let mut reply = match &context.hop {
        Some(_) => errors::refusal_to_peer(HopRefusal::Upstream),
        None => error.complete(&plan.identity.name, &context.id.to_string()),
    };
    if context.site.is_some() {
        respond::add_via_and_cache_status(&mut reply, &facts, &plan.identity, None);
    }
    account(worker, context, facts, reply)
}

/// Adds `Server-Timing` if the client may see it, counts and logs the reply, and returns it.
fn account(
    worker: &Worker,
    request: RequestContext,
    response: ResponseFacts,
    mut reply: Reply,
) -> Reply {
    let elapsed = worker.elapsed(request.started);
    if let Some(timing) = &request.timing {
        respond::add_server_timing(&mut reply, timing, &response, elapsed);
    }
    let transaction = Transaction { request, response };
    respond::count_and_log(transaction, &worker.recorder, &worker.log, elapsed, reply)
}

/// The log shows this much of a host that is not valid.
const LOGGED_HOST_BYTES_MAX: usize = 256;
