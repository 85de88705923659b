//! An exchange with upstream on behalf of one or many requests, and what is done with its response. It
//! may outlive the client that caused it.

use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{AUTHORIZATION, DATE, IF_MODIFIED_SINCE, IF_NONE_MATCH};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::sync::oneshot;

use super::Visit;
use super::added_fields::{Sender, SentRequest};
use super::lookup::CODINGS;
use super::outcome::upstream_facts;
use super::ranges::FirstRange;
use super::region::OwnLoad;
use super::region::asking::{AfterHop, Asker, HopPlan, Received};
use super::region::hop_body::SendToNextHop;
use super::worker::Worker;
use crate::body::{Body, BodySource};
use crate::cache::vary::Variant;
use crate::cache::{
    self, CacheKey, Freshened, PurgeSequence, Reason, StorageContext, StoreDecision,
    StoredResponse, UpstreamExchange, Vary, VaryList, search, unshared_fields_of_update,
};
use crate::context::{RequestId, UpstreamFacts};
use crate::fill::FillEnd;
use crate::fill::collapse::{FillFailure, Lead};
use crate::fill::parts::{PartResponse, Parts};
use crate::interim::Interims;
use crate::labels::UpstreamKind;
use crate::metrics::Metric;
use crate::notices::{self, Notice};
use crate::peers::HopVerdict;
use crate::route::{Rule, Site};
use crate::store::{NewVariant, Record, StoredHead};
use crate::upstream::{
    Affinity, FetchError, Intent, ProxiedClient, Times, Tried, Unanswered, Upstream,
    UpstreamResponse,
};

/// The facts that an exchange needs of the request that caused it, so that it can outlive it.
#[derive(Clone)]
pub(super) struct Job {
    /// The request that caused it.
    pub request: RequestId,
    pub worker: Rc<Worker>,
    pub site: Arc<Site>,
    pub rule: Arc<Rule>,
    pub upstream: Upstream,
    /// The facts that the choice of an origin depends on.
    pub affinity: Affinity,
    /// The client that connections to the origin state.
    pub proxied: Option<Rc<ProxiedClient>>,
    pub key: CacheKey,
    pub method: Method,
    /// The request fields after the gate.
    pub fields: Rc<HeaderMap>,
    /// The facts from which fields are added to the request.
    pub sender: Sender,
    /// The stored response that is being validated.
    pub stale: Option<Arc<StoredHead>>,
    /// Whether a stale response may be served in place of an upstream error.
    pub stale_if_error: bool,
    /// The range request to begin with, if nothing is stored and the client wants a range.
    pub first_range: Option<FirstRange>,
    /// Receives interim responses for the client that caused the exchange.
    pub interims: Option<Arc<Interims>>,
    /// The peers that are asked before the origin, and how. `None`: the origin is asked.
    pub hop: Option<Rc<HopPlan>>,
    /// Counts the exchange as one for a key of this node.
    pub load: Option<Rc<OwnLoad>>,
}

/// The request of an exchange as the origin gets it.
pub(super) enum OriginRequest {
    Written(Box<Request<()>>),
    /// The request is written only if the origin is asked: the peer that is asked first nearly always answers.
    OfVisit(Box<Visit>),
}

impl OriginRequest {
    fn written(&self) -> Request<()> {
        match self {
            Self::Written(request) => Request::clone(request),
            Self::OfVisit(visit) => visit.fill_request(None),
        }
    }
}

/// The facts about an exchange for the client that caused it.
pub(super) struct Report {
    pub upstream: Option<Box<UpstreamFacts>>,
    pub outcome: ExchangeOutcome,
}

/// The outcome of an exchange for the client that caused it.
pub(super) enum ExchangeOutcome {
    /// The response is for this client only, and the reason why it is not stored.
    NotStored(Response<Body>, Reason),
    /// The response is being stored, or comes from a peer; followers of the fill read it. The fields go to this
    /// client only.
    Filling(HeaderMap),
    /// The response comes from a peer, and the followers ask that themselves: it is for this client only.
    Streaming(Response<Body>),
    /// A part of a long object is being stored; the other bytes are fetched on demand.
    StoringSlices(Box<(Parts, PartResponse)>),
    /// A part, as upstream sent it, which is stored on its own, and its remaining freshness in
    /// seconds.
    StoredPart(Response<Body>, i64),
    /// The response cannot answer this request and is not stored: send the request again, uncollapsed.
    /// The reason is shown in `Cache-Status`.
    Retry(Option<Reason>),
    /// Upstream confirmed the stored response; this is its updated head record. The fields go to this client only.
    Validated(Arc<StoredHead>, HeaderMap),
    /// The same for this client only: the record is not stored.
    ValidatedOnce(Arc<StoredHead>, HeaderMap),
    /// Upstream answered with an error, in place of which a stale response may be served.
    UpstreamError(StatusCode),
    /// Upstream gave no response.
    NoResponse(Arc<Unanswered>),
}

/// The use of a response from upstream.
pub(super) enum Disposition {
    /// Pass it on without storing it. `remember`: how long requests for the key are not collapsed.
    Pass { reason: Reason, remember: Option<std::time::Duration> },
    /// Store it.
    Store(Box<StoredResponse>),
    /// Store it on its own: it is a part of an object.
    StorePart(Box<StoredResponse>),
    /// The response confirms the stored one, whose updated head record this is.
    Validated(Arc<StoredHead>),
    /// The same for this request only: the record is not stored.
    ValidatedOnce(Arc<StoredHead>),
    /// An error status, in place of which a stale response may be served.
    UpstreamError(StatusCode),
}

impl Job {
    /// Carries out the exchange for the leader's client and all followers, and reports to the
    /// leader's client.
    pub(super) async fn lead(
        self,
        request: OriginRequest,
        lead: Lead,
        report: oneshot::Sender<Report>,
    ) {
        let response = match self.send_validating(&request).await {
            Ok(received) => self.open(received).await,
            Err(unanswered) => Err(unanswered),
        };
        // A client that has disconnected takes no report; here and below.
        let (Received { mut upstream, kind, verdict }, part) = match response {
            Ok(opened) => opened,
            Err(unanswered) => {
                let unanswered = Arc::<Unanswered>::from(unanswered);
                lead.fail(FillFailure::Upstream(unanswered.clone()));
                let outcome = ExchangeOutcome::NoResponse(unanswered);
                drop(report.send(Report { upstream: None, outcome }));
                return;
            }
        };
        let facts = Some(upstream_facts(&upstream, &self.upstream, kind));
        let report = |outcome| drop(report.send(Report { upstream: facts, outcome }));
        let lead = match part.is_none() && self.has_owner_answered(&upstream, kind, verdict) {
            false => lead,
            true => match lead.end_alone() {
                Ok(()) => return report(ExchangeOutcome::Streaming(upstream.response)),
                Err(followed) => followed,
            },
        };
        let disposition = self.judge(&mut upstream, verdict, lead.sequence());
        let response = upstream.response;
        match disposition {
            Disposition::Pass { reason, remember } => {
                match verdict {
                    // The peer answers each follower.
                    Some(HopVerdict::Purged) => lead.leave_to_peer(),
                    _ => lead.release(remember),
                }
                report(match part {
                    None => ExchangeOutcome::NotStored(response, reason),
                    Some(_) => ExchangeOutcome::Retry(Some(reason)),
                });
            }
            Disposition::Validated(head) => {
                lead.stored();
                let own = unshared_fields_of_update(response.headers(), &head.response.headers);
                report(ExchangeOutcome::Validated(head, own));
            }
            Disposition::ValidatedOnce(head) => {
                lead.release(None);
                let own = unshared_fields_of_update(response.headers(), &head.response.headers);
                report(ExchangeOutcome::ValidatedOnce(head, own));
            }
            Disposition::UpstreamError(status) => {
                lead.fail(FillFailure::Status(status));
                report(ExchangeOutcome::UpstreamError(status));
            }
            // The owner of the region stores it. A response that a shield stores is stored in each region, too.
            Disposition::Store(stored)
                if let (Some(verdict), UpstreamKind::Peer) = (verdict, kind) =>
            {
                self.lead_from_peer(lead, stored, response, (verdict, report)).await;
            }
            Disposition::StorePart(stored) => report(self.lead_part(lead, stored, response).await),
            Disposition::Store(stored) => {
                self.store_no_vary_search(&stored).await;
                match part {
                    None => self.lead_fill(lead, stored, response, report).await,
                    Some(bytes) => {
                        report(self.lead_slices(lead, stored, bytes, response).await);
                    }
                }
            }
        }
    }

    /// The request as its origin sees it.
    fn sent(&self) -> SentRequest<'_> {
        self.sender.sent(&self.rule, &self.fields, &self.request)
    }

    /// Decides what to do with a response, by the verdict of the peer that it comes from, if any.
    fn judge(
        &self,
        upstream: &mut UpstreamResponse,
        verdict: Option<HopVerdict>,
        sequence: PurgeSequence,
    ) -> Disposition {
        match verdict {
            // A purge covers it: it must not become fresh here.
            Some(HopVerdict::Purged) => {
                Disposition::Pass { reason: Reason::SoftPurged, remember: None }
            }
            _ => self.decide_disposition(&mut upstream.response, upstream.times, sequence),
        }
    }

    /// Whether a response is all that its client needs: the owner has stored it and coded it for this client, it is
    /// whole, and this node neither has it nor copies it.
    fn has_owner_answered(
        &self,
        upstream: &UpstreamResponse,
        kind: UpstreamKind,
        verdict: Option<HopVerdict>,
    ) -> bool {
        let is_stored_there = matches!(verdict, Some(HopVerdict::Hit | HopVerdict::Stored));
        let response = &upstream.response;
        is_stored_there
            && kind == UpstreamKind::Peer
            && self.hop.as_ref().is_some_and(|hop| hop.is_for_client())
            && response.status() == StatusCode::OK
            && matches!(response.body(), Body::Full(_) | Body::Empty)
    }

    /// Stores the whole response, which followers read meanwhile.
    async fn lead_fill(
        self,
        lead: Lead,
        stored: Box<StoredResponse>,
        response: Response<Body>,
        report: impl FnOnce(ExchangeOutcome),
    ) {
        let unshared = cache::fields::unshared_fields(response.headers(), &stored.headers);
        report(ExchangeOutcome::Filling(unshared));
        // A client that wants a range disconnects before the end. If the fill ended with it, the next
        // range would start it again.
        let lead = if self.first_range.is_some() { lead.run_to_end() } else { lead };
        self.fill(lead, stored, response).await;
    }

    /// Stores a 206 as a standalone part. Reads all of it before the client gets any.
    async fn lead_part(
        self,
        lead: Lead,
        stored: Box<StoredResponse>,
        response: Response<Body>,
    ) -> ExchangeOutcome {
        let ttl = stored.freshness.ttl(self.worker.clock.now());
        let (head, body) = response.into_parts();
        match self.store_part(*stored, body).await {
            Some(bytes) => {
                lead.stored();
                ExchangeOutcome::StoredPart(Response::from_parts(head, bytes.into()), ttl)
            }
            None => {
                lead.release(None);
                ExchangeOutcome::Retry(None)
            }
        }
    }

    /// Creates an object that is stored in part, with this range of bytes. Other ranges are fetched when
    /// they are requested.
    async fn lead_slices(
        self,
        lead: Lead,
        stored: Box<StoredResponse>,
        bytes: Range<u64>,
        response: Response<Body>,
    ) -> ExchangeOutcome {
        match self.create_partial_object(*stored, bytes, response.into_body()).await {
            Some(partial) => {
                lead.stored();
                ExchangeOutcome::StoringSlices(Box::new(partial))
            }
            None => {
                lead.release(None);
                ExchangeOutcome::Retry(None)
            }
        }
    }

    /// Moves a response's body into the store and to the readers of the fill, until its end.
    pub(super) async fn fill(
        self,
        mut lead: Lead,
        stored: Box<StoredResponse>,
        response: Response<Body>,
    ) {
        let stored = Arc::new(*stored);
        let end = lead.fill(&self.worker.store, stored.clone(), response.into_body()).await;
        if end == FillEnd::Stored {
            self.add_variant(&stored, NewVariant::Own).await;
        }
    }

    /// Sends the request. After a 304 that does not match the stored response, or by which a peer confirms what a
    /// purge covers, sends it again without conditions.
    async fn send_validating(&self, request: &OriginRequest) -> Result<Received, Box<Unanswered>> {
        let received = self.send(|| request.written()).await?;
        let upstream = &received.upstream;
        let Some(stale) = self.stale.as_ref().filter(|_| is_304(&upstream.response)) else {
            return Ok(received);
        };
        let exchange = self.exchange(&upstream.response, upstream.times);
        let settings = &self.rule.settings.cache;
        let freshened =
            cache::freshen(&stale.response, &exchange, PurgeSequence::default(), settings);
        let is_other = matches!(freshened, Freshened::OtherRepresentation);
        if !is_other && received.verdict != Some(HopVerdict::Purged) {
            return Ok(received);
        }
        let mut request = request.written();
        request.headers_mut().remove(IF_NONE_MATCH);
        request.headers_mut().remove(IF_MODIFIED_SINCE);
        self.send(|| request.clone()).await
    }

    /// Sends the request to the peers that own the key, if there are any, and else to the origin, and waits
    /// for the head of the response.
    pub(super) async fn send(
        &self,
        request: impl Fn() -> Request<()>,
    ) -> Result<Received, Box<Unanswered>> {
        if let Some(hop) = &self.hop {
            match Box::pin(self.ask_peers(hop, &request)).await {
                Ok(Some(received)) => return Ok(received),
                Ok(None) => {}
                Err(error) => return Err(self.unanswered(error)),
            }
        }
        // Stored trailers would also go to clients that do not accept them, so none are requested.
        let intent = Intent {
            affinity: self.affinity,
            proxied: self.proxied.clone(),
            is_idempotent: true,
            for_many: true,
            interims: self.interims.clone(),
            ..Intent::default()
        };
        let sent = self.worker.upstreams.send(&self.upstream, request, Body::Empty, &intent).await;
        if let Err(unanswered) = &sent {
            self.log_no_response(&unanswered.error);
        }
        Ok(Received { upstream: sent?, kind: UpstreamKind::Origin, verdict: None })
    }

    /// A request that no peer answered, and that the origin must not get. Logs it.
    pub(super) fn unanswered(&self, error: FetchError) -> Box<Unanswered> {
        self.log_no_response(&error);
        let pool = self.upstream.name().clone();
        let tried = Tried { pool, origin: None, address: None, attempts: 0, unretried: None };
        Box::new(Unanswered { error, tried })
    }

    /// Asks the peers of a plan; see [`HopPlan::ask`]. `for_origin` writes the request for the origin.
    pub(super) async fn ask_peers(
        &self,
        plan: &HopPlan,
        for_origin: &dyn Fn() -> Request<()>,
    ) -> Result<Option<Received>, FetchError> {
        let asker = Asker {
            worker: &self.worker,
            id: self.request,
            interims: self.interims.as_ref(),
            sender_to: &|next| self.sender_to(next),
            for_origin,
        };
        plan.ask(&asker).await
    }

    /// Sends requests to what follows the peers that have answered, such as for the rest of their response.
    fn sender_to(&self, next: &AfterHop) -> SendToNextHop {
        let is_end = matches!(next, AfterHop::ShieldGone(_));
        let hop = match next {
            AfterHop::Peers(plan) => Some(plan.clone()),
            AfterHop::Origin | AfterHop::ShieldGone(_) => None,
        };
        let job = Self { hop, interims: None, ..self.clone() };
        Rc::new(move |request| {
            let job = job.clone();
            Box::pin(async move {
                if is_end {
                    return None;
                }
                Some(job.send(|| request.clone()).await.ok()?.upstream.response)
            })
        })
    }

    /// Logs that upstream gave no response. A repeated cause is logged as a count.
    pub(super) fn log_no_response(&self, error: &FetchError) {
        let message = match error {
            FetchError::ShieldGone { .. } => "request failed at the shield",
            _ => "request failed at the origin",
        };
        let notice = Notice {
            is_error: false,
            message,
            reason: error.reason(),
            pool: self.upstream.name(),
            origin: error.origin().unwrap_or_default(),
        };
        let (method, url, request) = (&self.method, self.key.url(), self.request);
        notices::note(&notice, format_args!("{error}; {method} {url}, request {request}"));
    }

    /// Decides what to do with a response whose header section has arrived.
    pub(super) fn decide_disposition(
        &self,
        response: &mut Response<Body>,
        times: Times,
        sequence: PurgeSequence,
    ) -> Disposition {
        let status = response.status();
        if self.stale_if_error && cache::decide::is_upstream_error(status) {
            return Disposition::UpstreamError(status);
        }
        let is_part = status == StatusCode::PARTIAL_CONTENT;
        if is_part && !self.first_range.as_ref().is_some_and(FirstRange::is_suffix) {
            // `Job::open` has turned a 206 to a range that this node asked for into a 200.
            return Disposition::Pass { reason: Reason::RangeInvalid, remember: None };
        }
        self.add_missing_date(response);
        let settings = &self.rule.settings.cache;
        if let Some(stale) = self.stale.as_ref().filter(|_| is_304(response)) {
            let exchange = self.exchange(response, times);
            match cache::freshen(&stale.response, &exchange, sequence, settings) {
                Freshened::Updated(fresh) => {
                    return Disposition::Validated(self.worker.store.replace(stale, *fresh));
                }
                Freshened::ValidButUnstorable(once) => {
                    let store = &self.worker.store;
                    // An origin's answer to an authorized request holds for no other request.
                    if !self.fields.contains_key(AUTHORIZATION) {
                        store.expire(stale);
                    }
                    return Disposition::ValidatedOnce(store.updated_head(stale, *once).into());
                }
                Freshened::OtherRepresentation => {}
            }
        }
        let site = &*self.site.name;
        let selecting = match Vary::of(response.headers()) {
            Vary::Fields(names) => self.sent().selecting_fields(&names),
            Vary::Nothing | Vary::Star => Cow::Borrowed(&*self.fields),
        };
        let place = StorageContext {
            key: &self.key,
            selecting: &selecting,
            codings: CODINGS,
            site,
            sequence,
        };
        match cache::may_store(&self.exchange(response, times), &place, settings) {
            StoreDecision::Store(stored) if is_part => {
                // The part is collected in memory before it is passed on: at most one slice.
                let length = response.body().exact_length();
                if length.is_none_or(|length| length > self.worker.store.slice_bytes()) {
                    return Disposition::Pass { reason: Reason::TooLarge, remember: None };
                }
                Disposition::StorePart(stored)
            }
            StoreDecision::Store(stored) => Disposition::Store(stored),
            StoreDecision::Refuse { reason, remember } => Disposition::Pass { reason, remember },
        }
    }

    /// Remembers the `No-Vary-Search` rule by which a response will be stored.
    pub(super) async fn store_no_vary_search(&self, stored: &StoredResponse) {
        if let Some(record) = self.unknown_rule(stored) {
            // Without the rule, requests for equivalent URLs go upstream. The store counts the
            // failure. On the heap, because nearly no response has a rule.
            _ = Box::pin(self.worker.store.writer(record).finish()).await;
        }
    }

    fn exchange<'a>(&'a self, response: &'a Response<Body>, times: Times) -> UpstreamExchange<'a> {
        UpstreamExchange {
            method: &self.method,
            request: &self.fields,
            version: response.version(),
            status: response.status(),
            response: response.headers(),
            request_time: times.asked,
            response_time: times.came,
        }
    }

    /// Adds `Date` if upstream left it out (RFC 9110 §6.6.1).
    fn add_missing_date(&self, response: &mut Response<Body>) {
        // Nearly all responses have it: comparing each name costs less than hashing one.
        if !response.headers().keys().any(|name| *name == DATE) {
            let now = cache::fields::http_date(self.worker.clock.now());
            response.headers_mut().insert(DATE, now);
        }
    }

    /// The `No-Vary-Search` rule by which a response will be stored, if it is not remembered yet.
    fn unknown_rule(&self, stored: &StoredResponse) -> Option<StoredResponse> {
        let record = search::rule_record(stored)?;
        match self.worker.store.in_memory(record.hash()) {
            Some(Record::Response(known))
                if known.response.key == record.key && known.response.headers == record.headers =>
            {
                None
            }
            _ => Some(record),
        }
    }

    /// Adds a stored variant to the list under its key.
    pub(super) async fn add_variant(&self, stored: &StoredResponse, newest: NewVariant) {
        let Vary::Fields(fields) = Vary::of(&stored.headers) else { return };
        let store = &self.worker.store;
        let key = CacheKey::new(stored.key.clone());
        // Two fills of one key may end at the same time; both variants must be listed.
        let _locked = self.worker.variant_list_lock.lock().await;
        let mut list = match store.find(key.hash).await {
            Some(Record::Variants(list)) => VaryList::clone(&list),
            _ => VaryList::default(),
        };
        let selecting = self.sent().selecting_fields(&fields);
        let (hash, _) = cache::variant_key(&key, &fields, &selecting, CODINGS);
        let variant = Variant::new(hash, &fields, &selecting, &stored.headers, CODINGS);
        for dropped in list.add(&fields, variant, self.rule.settings.cache.variants_max) {
            self.worker.recorder.count(Metric::VariantsDropped);
            store.forget(dropped);
        }
        store.put_variants(key.hash, list, newest);
    }
}

fn is_304(response: &Response<Body>) -> bool {
    response.status() == StatusCode::NOT_MODIFIED
}
