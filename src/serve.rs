//! The request path, one line per stage. Read it from the top.
//!
//! ```text
//! normalise → route → admit → key → lookup → decide ─ Serve ───────────────────────────┐
//!                                          ├ ServeStale (+ refresh in background) ──────┤
//!                                          ├ Validate → fetch (conditional) ────────────┤→ select → encode → finish
//!                                          └ Forward(reason) → fetch (collapse, fill) ──┘
//! ```
//!
//! If the response is in memory, no stage up to *decide* waits: [`serve`] returns a response
//! that is ready, and only stages that wait for disk or upstream run in a boxed future. It never
//! fails: [`crate::respond::failure`] turns an error into a response.

mod added_fields;
mod answer;
mod exchange;
mod explain;
mod failures;
mod fetching;
mod hops;
mod internal_requests;
mod lookup;
mod pass;
mod popular;
mod purging;
mod ranges; // of long objects, in slices
mod repaired_body;
mod worker;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{REFERER, USER_AGENT};
use http::request::Parts;
use http::{
    Extensions, HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};

use crate::body::{Body, BodySource};
use crate::cache::{self, CacheStatus, Decision, Reason, RequestDirectives};
use crate::context::{Asked, Connection, RequestContext};
use crate::guard::{self, Normalised, Refusal};
use crate::interim::{Answer, Interims};
use crate::metrics::{Metric, Recorder};
use crate::reply::Reply;
use crate::respond::{self, Failure};
use crate::route::{Action, Facts, Question, Rule, Site};
use crate::transform;
use crate::upgrade::OnUpgrade;

pub(crate) use explain::Explainer;
pub(crate) use internal_requests::{InternalRequest, run_internal_requests};
pub(crate) use lookup::canonical_url;
pub(crate) use popular::Popular;
pub(crate) use purging::PurgeByMethod;
pub(crate) use worker::{Plan, Worker, WorkerParts};

use lookup::{Found, Target};

/// A response that is ready, or a future of one.
pub(crate) enum Serving {
    /// A response that was ready at once. `None` once taken.
    Ready(Option<Reply>),
    /// Waits for disk or upstream; interim responses (1xx) may come first.
    Waiting(Pin<Box<dyn Future<Output = Reply>>>, Arc<Interims>),
}

impl Future for Serving {
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        match self.get_mut() {
            Self::Ready(response) => Poll::Ready(response.take().expect("polled after its end")),
            Self::Waiting(future, _) => future.as_mut().poll(cx),
        }
    }
}

impl Answer for Serving {
    fn poll_interim(self: Pin<&mut Self>, cx: &Context<'_>) -> Poll<Response<()>> {
        match &*self {
            Self::Ready(_) => Poll::Pending,
            Self::Waiting(_, interims) => interims.poll_next(cx),
        }
    }
}

/// One admitted request on its way through the stages.
struct Visit {
    worker: Rc<Worker>,
    plan: Rc<Plan>,
    context: RequestContext,
    /// Present if the request asks to switch protocols and the rule allows it.
    switch: Option<Box<Switch>>,
    /// The request fields after `guard`: normalised, without hop-by-hop fields.
    fields: Rc<HeaderMap>,
    body: Body,
    asked: Normalised,
    site: Arc<Site>,
    rule: Arc<Rule>,
    directives: RequestDirectives,
    /// There once it waits.
    interims: Option<Arc<Interims>>,
}

/// A switch of protocols that is forwarded (RFC 9110 §7.8).
struct Switch {
    /// The `Upgrade` value sent to the origin.
    protocols: HeaderValue,
    /// The client's connection, once the 101 is out.
    client: OnUpgrade,
}

/// Serves one request.
pub(crate) fn serve(
    worker: &Rc<Worker>,
    connection: Rc<Connection>,
    request: Request<Body>,
) -> Serving {
    worker.recorder.count(Metric::Requests);
    let plan = worker.plan();
    let (Parts { method, uri, version, mut headers, mut extensions, .. }, body) =
        request.into_parts();
    let asked = Asked::of(method, uri, version);
    let mut context = begin(worker, connection, asked, &headers);
    match admit(worker, &plan, &mut context, &mut headers) {
        Ok((asked, site, rule)) => {
            let directives = RequestDirectives::of(&headers, rule.settings.cache.honoured);
            let switch = switch(&asked, &rule, &body, &mut extensions, &worker.recorder);
            let worker = worker.clone();
            let fields = Rc::new(headers);
            let mut visit = Visit {
                worker,
                plan,
                context,
                switch,
                fields,
                body,
                asked,
                site,
                rule,
                directives,
                interims: None,
            };
            match visit.step() {
                Step::Answered(response) => Serving::Ready(Some(visit.finish(response))),
                Step::Waits(wait) => {
                    let interims = visit.interims.insert(Arc::default()).clone();
                    Serving::Waiting(Box::pin(visit.wait(wait)), interims)
                }
            }
        }
        Err(failure) => {
            let response = fail(&plan, &mut context, &failure);
            Serving::Ready(Some(send(worker, context, response)))
        }
    }
}

/// Counts and logs a request that the listener refused because it could not be parsed. Only its
/// connection, the status and the reason are known.
pub(crate) fn log_refused(
    worker: &Worker,
    connection: Rc<Connection>,
    status: StatusCode,
    why: &'static str,
) {
    let method = Method::from_bytes(b"-").expect("a token");
    let asked = Asked::of(method, Uri::from_static("*"), Version::HTTP_11);
    let mut context = begin(worker, connection, asked, &HeaderMap::new());
    context.failure = Some(why);
    // The listener has answered already.
    drop(send(worker, context, Reply::new(status)));
}

fn begin(
    worker: &Worker,
    connection: Rc<Connection>,
    mut asked: Asked,
    headers: &HeaderMap,
) -> RequestContext {
    let (received_at, started) = worker.clock.both();
    if worker.log.is_on() {
        for (name, value) in headers {
            match *name {
                USER_AGENT => asked.user_agent = Some(value.clone()),
                REFERER => asked.referer = Some(value.clone()),
                _ => {}
            }
        }
    }
    RequestContext {
        id: worker.next_request_id(),
        client: connection.peer.ip(),
        connection,
        received_at,
        started,
        asked,
        place: geo::Place::default(),
        site: None,
        cache_status: CacheStatus::generated(Reason::Refused),
        upstream: None,
        failure: None,
    }
}

/// normalise → route → admit; the first refusal wins. Access rules do not apply to the node's own
/// requests.
fn admit(
    worker: &Worker,
    plan: &Plan,
    context: &mut RequestContext,
    headers: &mut HeaderMap,
) -> Result<(Normalised, Arc<Site>, Arc<Rule>), Failure> {
    let refused = |refusal| failures::refused(refusal, &worker.recorder);
    let asked = plan.gate.normalise(&context.asked, headers, &context.connection);
    let asked = asked.map_err(refused)?;
    context.client = asked.client;
    context.place = worker.geo.locate(asked.client);
    context.asked.host = Some(asked.authority.to_field());

    let question = Question {
        host: asked.authority.host(),
        path: asked.path(),
        method: &context.asked.method,
        place: &context.place,
    };
    let (site, rule) = plan.routes.find(&question).ok_or_else(failures::no_site)?;
    context.site = Some(site.name.clone());

    if context.connection.own.is_some() {
        return Ok((asked, site.clone(), rule.clone()));
    }
    let (client, country) = (asked.client, context.place.country);
    let access = &rule.settings.access;
    let admitted = guard::access::admit(access, client, country, &context.asked.method, headers);
    if let Err(refusal) = admitted {
        context.cache_status = CacheStatus::generated(Reason::Denied);
        let allow = (refusal == Refusal::MethodDenied).then(|| access.allow_field());
        return Err(Failure { allow, ..refused(refusal) });
    }
    if let Some(limit) = rule.settings.rate {
        let number = rule.settings.number;
        let counted = plan.rates.admit(number, limit, client, context.started, &worker.recorder);
        counted.map_err(|refusal| {
            context.cache_status = CacheStatus::generated(Reason::RateLimited);
            refused(refusal)
        })?;
    }
    Ok((asked, site.clone(), rule.clone()))
}

/// The protocol switch to forward: only to protocols that the rule allows, and only for a request
/// without content, because no content may be left on a connection that becomes a tunnel. A server
/// may ignore `Upgrade` (RFC 9110 §7.8).
fn switch(
    asked: &Normalised,
    rule: &Rule,
    body: &Body,
    extensions: &mut Extensions,
    recorder: &Recorder,
) -> Option<Box<Switch>> {
    let wish = asked.upgrade.as_ref()?;
    let protocols = guard::upgrade::allowed(wish, &rule.settings.access.upgrade);
    match (protocols, extensions.remove()) {
        (Some(protocols), Some(client)) if body.is_end_stream() => {
            Some(Box::new(Switch { protocols, client }))
        }
        _ => {
            recorder.count(Metric::UpgradesIgnored);
            None
        }
    }
}

/// The result of the stages that do not wait.
enum Step {
    Answered(Reply),
    Waits(Wait),
}

/// Why a request has to wait.
enum Wait {
    /// The purge log.
    Purge,
    /// Upstream, for this request alone.
    Pass(Reason),
    /// The disk.
    LookUp(Target),
    /// The stored response that was found cannot be used as it is.
    Act(Found),
}

impl Visit {
    /// key → lookup → decide, using memory only.
    fn step(&mut self) -> Step {
        self.context.cache_status = CacheStatus::generated(Reason::AnsweredHere);
        if self.is_purge() {
            return Step::Waits(Wait::Purge);
        }
        match &self.rule.settings.action {
            Action::Redirect(redirect) => {
                return Step::Answered(answer::redirect(redirect, &self.facts()));
            }
            Action::Fixed(fixed) => return Step::Answered(answer::fixed(fixed)),
            Action::Pass(_) => {}
        }
        if let Some(reply) = self.last_recipient() {
            return Step::Answered(reply);
        }
        if let Some(reason) = self.skips_cache() {
            return Step::Waits(Wait::Pass(reason));
        }
        match self.look_in_memory(self.target()) {
            Err(target) => Step::Waits(Wait::LookUp(target)),
            Ok(found) => match self.act_now(&found) {
                Some(response) => Step::Answered(response),
                None => Step::Waits(Wait::Act(found)),
            },
        }
    }

    #[expect(clippy::manual_async_fn, reason = "an `async fn` would hold `self` twice")]
    fn wait(mut self, wait: Wait) -> impl Future<Output = Reply> {
        async move {
            let outcome = match wait {
                Wait::Purge => self.purge().await,
                Wait::Pass(reason) => self.pass(reason, None).await,
                Wait::LookUp(target) => {
                    let found = self.look_everywhere(target).await;
                    self.act(found).await
                }
                Wait::Act(found) => self.act(found).await,
            };
            match outcome {
                Ok(response) => self.finish(response),
                Err(failure) => {
                    let response = fail(&self.plan, &mut self.context, &failure);
                    send(&self.worker, self.context, response)
                }
            }
        }
    }

    /// Requests that bypass the cache: methods other than GET and HEAD, configured bypasses,
    /// requests with content, and protocol switches.
    fn skips_cache(&self) -> Option<Reason> {
        if self.switch.is_some() || !self.body.is_end_stream() {
            return Some(Reason::Method);
        }
        let settings = &self.rule.settings.cache;
        cache::skips_cache(&self.context.asked.method, &self.fields, &self.directives, settings)
    }

    /// A response that needs no waiting: a hit, fresh or permitted stale.
    fn act_now(&mut self, found: &Found) -> Option<Reply> {
        let head = found.head.as_ref()?;
        match self.decide(found) {
            Decision::Serve { .. } => self.hit(found, head, None),
            Decision::ServeStale { why, refresh, .. } => {
                let response = self.hit(found, head, Some(why))?;
                if refresh {
                    self.refresh(Found { validate: true, ..found.clone() });
                }
                Some(response)
            }
            Decision::Validate(_) | Decision::Forward(_) | Decision::GatewayTimeout(_) => None,
        }
    }

    async fn act(&mut self, found: Found) -> Result<Reply, Failure> {
        if let Some(response) = self.act_now(&found) {
            return Ok(response);
        }
        match self.decide(&found) {
            Decision::GatewayTimeout(reason) => {
                self.context.cache_status = CacheStatus::generated(reason);
                Err(failures::only_if_cached())
            }
            Decision::Validate(reason) => {
                self.fetch(Found { validate: true, ..found }, reason).await
            }
            Decision::Forward(reason) => {
                // What has no validator may still stand in for an error, or be freshened by HEAD.
                let gone = matches!(reason, Reason::HardPurged | Reason::TooOld);
                let head = found.head.filter(|_| !gone);
                self.fetch(Found { head, ..found }, reason).await
            }
            // Not all the bytes that are asked for are stored.
            Decision::Serve { .. } => {
                if let Some(head) = &found.head
                    && let Some(response) = self.answer_in_parts(&found, head).await?
                {
                    return Ok(response);
                }
                self.fetch(Found { head: None, ..found }, Reason::BytesMissing).await
            }
            Decision::ServeStale { .. } => {
                self.fetch(Found { head: None, ..found }, Reason::BytesMissing).await
            }
        }
    }

    fn decide(&self, found: &Found) -> Decision {
        let Some(head) = &found.head else {
            return cache::decide_absent(&self.directives, found.absent);
        };
        let purged = self.worker.store.purge_verdict(head);
        let settings = &self.rule.settings.cache;
        cache::decide(&head.response, purged, &self.directives, settings, self.context.received_at)
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            client: self.asked.client,
            place: &self.context.place,
            request_id: &self.context.id,
            scheme: self.asked.scheme,
            authority: self.asked.authority.as_str(),
            path: self.asked.path(),
            query: self.asked.query(),
        }
    }

    /// encode → finish.
    fn finish(self, response: Reply) -> Reply {
        let settings = &self.rule.settings;
        let (method, fields) = (&self.context.asked.method, &*self.fields);
        let mut response = transform::transform(
            method,
            fields,
            response,
            &settings.compression,
            &self.worker.recorder,
        );
        if response.status == StatusCode::NOT_MODIFIED {
            cache::fields::leave_content_out(&mut response.fields);
        }
        if !settings.response_fields.is_empty() {
            settings.response_fields.apply(&mut response.fields, &self.facts());
        }
        let key = self.shown_key();
        respond::mark(&mut response, &self.context, &self.plan.identity, key.as_deref());
        send(&self.worker, self.context, response)
    }

    fn shown_key(&self) -> Option<Box<str>> {
        let settings = &self.rule.settings.cache;
        (settings.show_key && !self.context.cache_status.is_generated()).then(|| {
            let target = self.aliased_in_memory(self.target());
            target.unwrap_or_else(|target| target).key.text
        })
    }

    fn target(&self) -> Target {
        let selecting = self.selecting(&self.rule.settings.cache.key.headers);
        Target::of(&self.rule, &self.asked, &selecting)
    }
}

fn fail(plan: &Plan, context: &mut RequestContext, failure: &Failure) -> Reply {
    context.failure = Some(failure.reason);
    tracing::debug!(request = %context.id, reason = failure.reason, detail = %failure.detail, "refused or failed");
    let id = context.id.to_string();
    let mut response = respond::failure::response(failure, &plan.identity.name, &id);
    if context.site.is_some() {
        respond::mark(&mut response, context, &plan.identity, None);
    }
    response
}

/// Counts and logs the response and returns it.
fn send(worker: &Worker, context: RequestContext, response: Reply) -> Reply {
    let elapsed = worker.clock.instant().duration_since(context.started);
    respond::account(context, &worker.recorder, &worker.log, elapsed, response)
}
