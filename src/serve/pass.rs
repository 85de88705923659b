//! pass: forwards one request uncollapsed: unsafe methods, bypasses, HEAD, protocol switches, and GETs
//! that cannot share a response. The response may still be stored, update a stored response, or
//! invalidate one.

use http::header::{ACCEPT_ENCODING, CONTENT_TYPE, HOST, MAX_FORWARDS, RANGE, VIA};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::task::spawn_local;

use super::exchange::{Disposition, Job};
use super::lookup::LookupResult;
use super::outcome::{
    AnswerFuture, Answered, PathError, facts_of, unanswered_facts, upstream_facts,
};
use super::{Payload, ProtocolSwitch, Visit, errors, finish_error};
use crate::body::{Body, BodySource};
use crate::cache::vary::OF_DICTIONARIES;
use crate::cache::{
    self, CacheStatus, Freshened, PurgeScope, PurgeSequence, Reason, StoredResponse,
};
use crate::context::ResponseFacts;
use crate::fields::is_grpc;
use crate::fill::collapse::NotAdopted;
use crate::labels::UpstreamKind;
use crate::reply::Reply;
use crate::route::Action;
use crate::store::StoredHead;
use crate::transform;
use crate::upstream::{FetchError, Intent, Times, Unanswered, UpstreamResponse, tunnel};

impl Visit {
    /// Forwards this request uncollapsed, because of `reason`. `found` is the result of the lookup, if
    /// there was one. Boxed, so that the future of a collapsed request does not contain an exchange.
    pub(super) fn pass(
        &self,
        reason: Reason,
        found: Option<LookupResult>,
        payload: Payload,
    ) -> AnswerFuture<'_> {
        let found = found.unwrap_or_else(|| LookupResult::none(self.query().key(), Reason::Absent));
        Box::pin(self.forward(reason, found, payload))
    }

    async fn forward(
        &self,
        reason: Reason,
        found: LookupResult,
        Payload { body, switch }: Payload,
    ) -> Result<Answered, Box<PathError>> {
        let job = self.job_without_condition(&found)?;
        let sequence = self.worker.store.purges().sequence();
        let intent = Intent {
            affinity: job.affinity,
            proxied: job.proxied.clone(),
            is_idempotent: self.context.request.method.is_idempotent(),
            upgrade: switch.as_ref().map(|switch| switch.protocols.clone()),
            takes_trailers: self.request.takes_trailers,
            is_call: self.is_call(),
            for_many: false,
            interims: self.interims.clone(),
            acknowledged: None,
        };
        // The answer to a GET may depend on its content, which no key contains. If it were stored, one
        // client's content would affect the response to others.
        let is_unkeyed = self.context.request.method == Method::GET && !body.is_end_stream();
        let body = if switch.is_none() && !intent.is_call { self.mirror(body) } else { body };
        let request = || self.upstream_request(None);
        let sent = self.worker.upstreams.send(&job.upstream, request, body, &intent).await;
        let facts = facts_of(CacheStatus::forwarded(reason));
        let response = match sent {
            Ok(response) => response,
            Err(unanswered) => return self.without_response(&job, &found, &unanswered, facts),
        };
        let facts =
            facts.after(Some(upstream_facts(&response, &job.upstream, UpstreamKind::Origin)));
        let invalid = self.invalidated(&job, &response.response);
        let is_for_peers = self.worker.region.is_some() && !invalid.is_empty();
        let is_for_client = switch.is_some() || intent.is_call;
        let received = Received { response, facts, invalid, is_for_client, is_unkeyed };
        // On the heap: most exchanges do not need the room.
        match self.pass_response(&job, &found, sequence, switch, received)? {
            passed if is_for_peers => Box::pin(self.store_and_wait_for_peers(job, passed)).await,
            Passed::Storable(storable) => Box::pin(self.store(job, storable)).await,
            Passed::Through(answered) => Ok(answered),
        }
    }

    /// Stores the response, if it may be stored, and waits until the peers have applied what the request has invalidated.
    async fn store_and_wait_for_peers(
        &self,
        job: Job,
        passed: Passed,
    ) -> Result<Answered, Box<PathError>> {
        let answered = match passed {
            Passed::Through(answered) => answered,
            Passed::Storable(storable) => self.store(job, storable).await?,
        };
        self.wait_for_peers().await;
        Ok(answered)
    }

    /// The job of an exchange that validates nothing: `found` is what may be served stale.
    fn job_without_condition(&self, found: &LookupResult) -> Result<Job, Box<PathError>> {
        let mut job = self.job(found)?;
        (job.stale, job.stale_if_error) = (None, false);
        Ok(job)
    }

    /// Waits until the peers have applied what this request has invalidated, at most for their deadline.
    async fn wait_for_peers(&self) {
        if let Some(region) = &self.worker.region {
            let limit = region.load().settings.deadline;
            self.worker.store.purges().peers_take_deliveries(limit).await;
        }
    }

    /// Requests the response for this client alone, with the codings that it accepts: the shared one has another,
    /// which must not be changed (`no-transform`).
    pub(super) async fn finish_uncoded(self) -> Reply {
        match self.pass_uncoded().await {
            Ok(mut answered) => {
                transform::add_vary(&mut answered.reply.fields);
                self.finish(answered)
            }
            Err(error) => finish_error(&self.worker, &self.plan, self.context, *error),
        }
    }

    async fn pass_uncoded(&self) -> Result<Answered, Box<PathError>> {
        let facts = facts_of(CacheStatus::forwarded(Reason::VariantAbsent));
        let found = LookupResult::none(self.query().key(), Reason::VariantAbsent);
        let job = self.job_without_condition(&found)?;
        let intent = Intent {
            affinity: job.affinity,
            proxied: job.proxied.clone(),
            is_idempotent: true,
            upgrade: None,
            takes_trailers: self.request.takes_trailers,
            is_call: false,
            for_many: false,
            interims: self.interims.clone(),
            acknowledged: None,
        };
        let codings = self.fields.get(ACCEPT_ENCODING).cloned().unwrap_or(IDENTITY);
        let request = || {
            let mut request = self.upstream_request(None);
            request.headers_mut().insert(ACCEPT_ENCODING, codings.clone());
            request
        };
        let sent = self.worker.upstreams.send(&job.upstream, request, Body::Empty, &intent).await;
        match sent {
            Ok(response) => {
                let upstream = upstream_facts(&response, &job.upstream, UpstreamKind::Origin);
                let facts = facts.after(Some(upstream));
                Ok(facts.answer(response.response))
            }
            Err(unanswered) => self.without_response(&job, &found, &unanswered, facts),
        }
    }

    /// Whether the request is a gRPC call: a stream of messages in each direction, of which only its
    /// client can make sense.
    fn is_call(&self) -> bool {
        self.fields.get(CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes()))
    }

    /// Upstream gave no response: a stale one, or the error.
    fn without_response(
        &self,
        job: &Job,
        found: &LookupResult,
        Unanswered { error, tried }: &Unanswered,
        facts: ResponseFacts,
    ) -> Result<Answered, Box<PathError>> {
        let (request, site) = (self.context.id, &self.site.name);
        match error {
            // Any client can break off as often as it likes: not a line in the error log.
            FetchError::RequestBody { .. } => {
                tracing::debug!(%request, %site, %error, "the request body failed");
            }
            _ => job.log_no_response(error),
        }
        let facts = facts.after(Some(unanswered_facts(tried)));
        self.serve_stale_on_error(found, facts)
            .map_err(|facts| facts.fail(errors::upstream(error, &self.worker.recorder)))
    }

    /// Decides what to do with the response.
    fn pass_response(
        &self,
        job: &Job,
        found: &LookupResult,
        sequence: PurgeSequence,
        switch: Option<Box<ProtocolSwitch>>,
        Received { mut response, mut facts, invalid, is_for_client, is_unkeyed }: Received,
    ) -> Result<Passed, Box<PathError>> {
        // RFC 5861 §4, also for uncollapsed requests.
        if cache::decide::is_upstream_error(response.response.status()) {
            match self.serve_stale_on_error(found, facts) {
                Ok(answered) => return Ok(Passed::Through(answered)),
                Err(unchanged) => facts = unchanged,
            }
        }
        if is_for_client {
            self.invalidate(invalid, None);
            if let Some(ProtocolSwitch { client, .. }) = switch.map(|switch| *switch)
                && let Some(origin) = response.upgraded.take()
            {
                spawn_local(tunnel(client, *origin, job.upstream.tunnel_idle()));
            }
            return Ok(Passed::Through(facts.answer(response.response)));
        }
        if self.context.request.method == Method::HEAD {
            self.freshen_from_head(found, &response.response, response.times, sequence);
        }
        let disposition = job.decide_disposition(&mut response.response, response.times, sequence);
        let response = response.response;
        match disposition {
            Disposition::Store(stored) => Ok(Passed::Storable(Box::new(Storable {
                stored,
                response,
                invalid,
                is_unkeyed,
                facts,
            }))),
            Disposition::Pass { reason, .. } => {
                self.invalidate(invalid, None);
                // A 206 was requested as such; the others follow from method and rule.
                let expected = matches!(
                    reason,
                    Reason::MethodUnstorable | Reason::CachingOff | Reason::RangeInvalid
                );
                let detail = (!expected).then_some(reason);
                let facts = facts.with_status(|status| CacheStatus { detail, ..status });
                Ok(Passed::Through(facts.answer(response)))
            }
            // Nothing was being validated, no part requested, and no stale response permitted.
            Disposition::StorePart(_)
            | Disposition::Validated(_)
            | Disposition::ValidatedOnce(_)
            | Disposition::UpstreamError(_) => Err(facts.fail(errors::abandoned())),
        }
    }

    /// Stores the response and answers from the fill.
    async fn store(&self, job: Job, storable: Box<Storable>) -> Result<Answered, Box<PathError>> {
        let Storable { mut stored, response, invalid, is_unkeyed, facts } = *storable;
        job.store_no_vary_search(&stored).await;
        self.invalidate(invalid, Some(&mut stored));
        if is_unkeyed {
            return Ok(facts.answer(response));
        }
        let (hash, sequence) = (stored.hash(), stored.stored_at_sequence);
        let lead = match self.worker.fills.adopt(hash, sequence) {
            Ok(lead) => lead,
            Err(why) => {
                let detail = (why == NotAdopted::Limit).then_some(Reason::FillLimit);
                let facts = facts.with_status(|status| CacheStatus { detail, ..status });
                return Ok(facts.answer(response));
            }
        };
        let follower = lead.follower();
        let own = cache::fields::unshared_fields(response.headers(), &stored.headers);
        spawn_local(job.fill(lead, stored, response));
        self.answer_from_own_fill(&follower, &own, facts).await
    }

    /// Invalidates these scopes before the client has its answer. `cause` is the response to the
    /// request that invalidates them, if it will be stored.
    fn invalidate(&self, invalid: Vec<PurgeScope>, cause: Option<&mut StoredResponse>) {
        if !invalid.is_empty() {
            self.worker.store.purges().invalidate(invalid, cause);
        }
    }

    /// The stored responses that this one invalidates (RFC 9111 §4.4).
    fn invalidated(&self, job: &Job, response: &Response<Body>) -> Vec<PurgeScope> {
        if self.context.request.method.is_safe() {
            return Vec::new();
        }
        let policy = &self.rule.settings.cache.key;
        let (status, headers) = (response.status(), response.headers());
        cache::invalidates(&self.context.request.method, job.key.url(), status, headers, policy)
            .scopes
    }

    /// Updates or invalidates the stored response by that to a HEAD request (RFC 9111 §4.3.5).
    fn freshen_from_head(
        &self,
        found: &LookupResult,
        response: &Response<Body>,
        times: Times,
        sequence: PurgeSequence,
    ) {
        let Some(head) = &found.head else { return };
        let exchange = cache::UpstreamExchange {
            method: &self.context.request.method,
            request: &self.fields,
            version: response.version(),
            status: response.status(),
            response: response.headers(),
            request_time: times.asked,
            response_time: times.came,
        };
        let settings = &self.rule.settings.cache;
        match cache::freshen_from_head(&head.response, &exchange, sequence, settings) {
            Freshened::Updated(fresh) => drop(self.worker.store.replace(head, *fresh)),
            Freshened::ValidButUnstorable(..) => {}
            Freshened::OtherRepresentation if response.status().is_success() => {
                let url = found.key.url().into();
                self.worker.store.purges().invalidate(vec![PurgeScope::Url(url)], None);
            }
            Freshened::OtherRepresentation => {}
        }
    }

    /// The request for a fill: for the whole object, or to validate `stale`.
    pub(super) fn fill_request(&self, stale: Option<&StoredHead>) -> Request<()> {
        let mut request = self.upstream_request(stale);
        if stale.is_none() {
            cache::fields::remove_conditions(request.headers_mut());
        }
        request
    }

    /// Adds the fields that tell of this hop: by which way the client came, and the node itself.
    pub(super) fn add_hop_fields(&self, headers: &mut HeaderMap) {
        // The authority of the key. HTTP/2 requests have no Host, and HTTP/1.0 requests need none.
        headers.insert(HOST, self.request.authority.to_field());
        self.plan.gate.add_forwarding_fields(&self.request, &self.context.connection, headers);
        headers.append(VIA, self.plan.identity.via(self.context.request.version).clone());
        if let Some(left) = self.forwards_left() {
            headers.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
        }
    }

    /// The request as it is sent to the origin.
    pub(super) fn upstream_request(&self, stale: Option<&StoredHead>) -> Request<()> {
        let mut headers = HeaderMap::clone(&self.fields);
        headers.reserve(ADDED_FIELDS);
        match stale {
            Some(stale) => cache::validation_fields(&stale.response, &mut headers),
            None => cache::add_tags_without_coding(&mut headers),
        }
        if let Some(codings) = self.codings_for_origin(&headers) {
            let theirs = headers.insert(ACCEPT_ENCODING, codings);
            // A client names a dictionary only beside the codings `dcb` and `dcz`: nearly all other fields have no `c`.
            if theirs.is_some_and(|theirs| memchr::memchr(b'c', theirs.as_bytes()).is_some()) {
                for name in &OF_DICTIONARIES {
                    headers.remove(name);
                }
            }
        }
        self.add_hop_fields(&mut headers);
        self.query().sent().add_fields(&mut headers);
        let target = match &self.rule.settings.action {
            Action::Forward(pass) => pass.rewrite.apply(&self.request.target),
            Action::Redirect(_) | Action::Fixed(_) => self.request.target.clone(),
        };
        let mut request = Request::new(());
        *request.method_mut() = self.context.request.method.clone();
        *request.uri_mut() = target.into();
        *request.headers_mut() = headers;
        request
    }
}

impl Visit {
    /// The `Accept-Encoding` for the origin: the site's own, because the response is stored once for all
    /// clients, whatever they accept; for a range identity, because a part cannot be decoded. `None`: the
    /// client's, because no other client gets the response.
    fn codings_for_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        self.asks_for_all().then(|| match headers.keys().any(|name| *name == RANGE) {
            true => IDENTITY,
            false => self.rule.accept_encoding.clone(),
        })
    }

    /// Whether the origin is asked in the node's own name, because the response may be for other clients too.
    pub(super) fn asks_for_all(&self) -> bool {
        matches!(self.context.request.method, Method::GET | Method::HEAD)
            && self.query().bypass_reason().is_none()
    }
}

/// A response, and what is known of its exchange.
struct Received {
    response: Box<UpstreamResponse>,
    facts: ResponseFacts,
    /// The stored responses that it invalidates.
    invalid: Vec<PurgeScope>,
    /// The response to a protocol switch or a gRPC call is for its client only, because no key contains what it
    /// depends on.
    is_for_client: bool,
    /// See [`Storable::is_unkeyed`].
    is_unkeyed: bool,
}

/// The use of the response to an uncollapsed request.
enum Passed {
    /// The response is passed on.
    Through(Answered),
    /// The response may be stored.
    Storable(Box<Storable>),
}

/// A response that may be stored.
struct Storable {
    stored: Box<StoredResponse>,
    response: Response<Body>,
    /// The stored responses that it invalidates.
    invalid: Vec<PurgeScope>,
    /// The request has content, which no key contains: the response is passed on and not stored.
    is_unkeyed: bool,
    facts: ResponseFacts,
}

/// `Accept-Encoding` without any coding.
pub(super) const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// The number of fields that are usually added to a request.
const ADDED_FIELDS: usize = 8;
