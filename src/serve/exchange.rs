//! An exchange with upstream on behalf of one or many requests, and what becomes of its
//! response. It may outlive the client that caused it.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{DATE, IF_MODIFIED_SINCE, IF_NONE_MATCH};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::sync::oneshot;

use super::lookup::CODINGS;
use super::ranges::Asked;
use super::worker::Worker;
use crate::body::{Body, BodySource};
use crate::cache::vary::Variant;
use crate::cache::{
    self, CacheKey, Exchange, Freshened, Place, PurgeSequence, Reason, StoredResponse, Storing,
    Vary, VaryList, search,
};
use crate::context::{RequestId, UpstreamFacts};
use crate::fill::FillEnd;
use crate::fill::collapse::{FillFailure, Lead};
use crate::fill::parts::{First, Parts};
use crate::interim::Interims;
use crate::metrics::Metric;
use crate::notices::{self, Notice};
use crate::route::{Rule, Site};
use crate::store::{Head, Record};
use crate::upstream::{FetchError, Intent, Times, Tried, Unanswered, Upstream, UpstreamResponse};

/// All that an exchange needs to know of the request, so that it can go on without it.
#[derive(Clone)]
pub(super) struct Job {
    /// The request that caused it.
    pub request: RequestId,
    pub worker: Rc<Worker>,
    pub site: Arc<Site>,
    pub rule: Arc<Rule>,
    pub upstream: Upstream,
    pub key: CacheKey,
    pub method: Method,
    /// The client's fields, as the gate left them.
    pub fields: Rc<HeaderMap>,
    /// Those that `Vary` selects by: as the origin gets them.
    pub selecting: Rc<HeaderMap>,
    /// What is being validated.
    pub stale: Option<Arc<Head>>,
    /// Whether an error of upstream may be answered with `stale`.
    pub stale_if_error: bool,
    /// The range to begin with, when nothing is stored and a range is all that is asked for.
    pub asked: Option<Asked>,
    /// Where interim responses go: to the client that caused the exchange.
    pub interims: Option<Arc<Interims>>,
}

/// What the client that caused an exchange is told of it.
pub(super) struct Report {
    pub upstream: Option<Box<UpstreamFacts>>,
    pub came: ExchangeOutcome,
}

/// What an exchange came to.
pub(super) enum ExchangeOutcome {
    /// A response for the client that caused it, and why it is not stored.
    Alone(Response<Body>, Reason),
    /// On its way into the store; whoever follows the fill reads it. The fields are for the
    /// client that caused it alone.
    Filling(HeaderMap),
    /// In part; the bytes that are not stored are to be had like this.
    Parts(Box<(Parts, First)>),
    /// A part, as upstream sent it, which is stored apart; and for how long it is fresh.
    Apart(Response<Body>, i64),
    /// What was asked for of it can't be cut from what came, which is not stored: ask alone.
    Released(Option<Reason>),
    /// The stored response holds; this is its new head.
    Validated(Arc<Head>),
    /// Upstream answered with an error, in whose place a stale response may be served.
    Error(StatusCode),
    /// No response at all.
    Failed(Arc<Unanswered>),
}

/// What is to be done with a response from upstream.
pub(super) enum Settled {
    Pass {
        reason: Reason,
        remember: Option<std::time::Duration>,
    },
    Store(Box<StoredResponse>),
    /// A part that is to be stored apart.
    Apart(Box<StoredResponse>),
    Validated(Arc<Head>),
    Error(StatusCode),
}

impl Job {
    /// Leads: asks upstream for all who follow.
    pub(super) async fn lead(
        self,
        request: Request<()>,
        lead: Lead,
        report: oneshot::Sender<Report>,
    ) {
        let sent = match self.send_validating(request).await {
            Ok(upstream) => self.open(upstream).await,
            Err(error) => Err(error),
        };
        let (mut upstream, part) = match sent {
            Ok(opened) => opened,
            Err(unanswered) => {
                let unanswered = Arc::<Unanswered>::from(unanswered);
                lead.fail(FillFailure::Upstream(unanswered.clone()));
                // A client that left needs no report; here and below.
                let _ = report
                    .send(Report { upstream: None, came: ExchangeOutcome::Failed(unanswered) });
                return;
            }
        };
        let upstream_facts = Some(Box::new(facts(&upstream, &self.upstream)));
        let tell = |came| drop(report.send(Report { upstream: upstream_facts, came }));
        let settled = self.settle(&mut upstream.response, upstream.times, lead.sequence());
        let response = upstream.response;
        match settled {
            Settled::Pass { reason, remember } => {
                lead.release(remember);
                tell(match part {
                    None => ExchangeOutcome::Alone(response, reason),
                    Some(_) => ExchangeOutcome::Released(Some(reason)),
                });
            }
            Settled::Validated(head) => {
                lead.stored();
                tell(ExchangeOutcome::Validated(head));
            }
            Settled::Error(status) => {
                lead.fail(FillFailure::Status(status));
                tell(ExchangeOutcome::Error(status));
            }
            Settled::Apart(stored) => {
                let ttl = stored.freshness.ttl(self.worker.clock.now());
                let (head, body) = response.into_parts();
                match self.keep_apart(*stored, body).await {
                    Some(bytes) => {
                        lead.stored();
                        tell(ExchangeOutcome::Apart(Response::from_parts(head, bytes.into()), ttl));
                    }
                    None => {
                        lead.release(None);
                        tell(ExchangeOutcome::Released(None));
                    }
                }
            }
            Settled::Store(stored) => {
                self.note_rule(&stored).await;
                let Some(bytes) = part else {
                    let own = cache::fields::own_fields(response.headers(), &stored.headers);
                    tell(ExchangeOutcome::Filling(own));
                    // Who asked for a range leaves early; the next one would begin anew.
                    let lead = if self.asked.is_some() { lead.to_the_end() } else { lead };
                    return self.fill(lead, stored, response).await;
                };
                match self.begin_parts(*stored, bytes, response.into_body()).await {
                    Some(begun) => {
                        lead.stored();
                        tell(ExchangeOutcome::Parts(Box::new(begun)));
                    }
                    None => {
                        lead.release(None);
                        tell(ExchangeOutcome::Released(None));
                    }
                }
            }
        }
    }

    /// Moves a response's body into the store, and to whoever reads it, until its end.
    pub(super) async fn fill(
        self,
        mut lead: Lead,
        stored: Box<StoredResponse>,
        response: Response<Body>,
    ) {
        let stored = Arc::new(*stored);
        let filled = lead.fill(&self.worker.store, stored.clone(), response.into_body()).await;
        if matches!(filled.end, FillEnd::Stored) {
            self.note_variant(&stored).await;
        }
    }

    /// Sends the request; a 304 that is not about what we have is asked again for the whole.
    async fn send_validating(
        &self,
        mut request: Request<()>,
    ) -> Result<UpstreamResponse, Box<Unanswered>> {
        let upstream = self.send(|| request.clone()).await?;
        let Some(stale) = self.stale.as_ref().filter(|_| is_304(&upstream.response)) else {
            return Ok(upstream);
        };
        let exchange = self.exchange(&upstream.response, upstream.times);
        let settings = &self.rule.settings.cache;
        match cache::freshen(&stale.response, &exchange, PurgeSequence::default(), settings) {
            Freshened::NotThisOne => {
                request.headers_mut().remove(IF_NONE_MATCH);
                request.headers_mut().remove(IF_MODIFIED_SINCE);
                self.send(|| request.clone()).await
            }
            Freshened::Updated(_) | Freshened::Once(..) => Ok(upstream),
        }
    }

    /// Sends the request upstream and waits for the head of the response.
    pub(super) async fn send(
        &self,
        request: impl Fn() -> Request<()>,
    ) -> Result<UpstreamResponse, Box<Unanswered>> {
        // Whoever is answered from what is stored may take no trailers.
        let intent = Intent {
            hash: self.key.hash.0 as u64,
            interims: self.interims.clone(),
            ..Intent::default()
        };
        let sent = self.worker.upstreams.send(&self.upstream, request, Body::Empty, &intent).await;
        if let Err(unanswered) = &sent {
            self.note_no_response(&unanswered.error);
        }
        sent
    }

    /// Says in the log that upstream gave no response; a cause that repeats is told as a number.
    pub(super) fn note_no_response(&self, error: &FetchError) {
        let notice = Notice {
            is_error: false,
            message: "no response from upstream",
            reason: error.reason(),
            pool: self.upstream.name(),
            origin: error.origin().unwrap_or_default(),
        };
        let (method, url, request) = (&self.method, self.key.url(), self.request);
        notices::note(&notice, format_args!("{error}; {method} {url}, request {request}"));
    }

    /// What is to be done with a response whose head is in.
    pub(super) fn settle(
        &self,
        response: &mut Response<Body>,
        times: Times,
        sequence: PurgeSequence,
    ) -> Settled {
        let status = response.status();
        if self.stale_if_error && cache::decide::is_upstream_error(status) {
            return Settled::Error(status);
        }
        let apart = status == StatusCode::PARTIAL_CONTENT;
        if apart && !self.asked.as_ref().is_some_and(|asked| asked.is_for_the_last()) {
            // What is wanted as a part is made a whole of before: see `open`.
            return Settled::Pass { reason: Reason::RangeInvalid, remember: None };
        }
        self.complete(response);
        let settings = &self.rule.settings.cache;
        if let Some(stale) = self.stale.as_ref().filter(|_| is_304(response)) {
            let exchange = self.exchange(response, times);
            match cache::freshen(&stale.response, &exchange, sequence, settings) {
                Freshened::Updated(fresh) => {
                    return Settled::Validated(self.worker.store.replace(stale, *fresh));
                }
                // It holds this once: stale from the start, so that nobody else is given it.
                Freshened::Once(once, _) => {
                    return Settled::Validated(self.worker.store.replace(stale, *once));
                }
                Freshened::NotThisOne => {}
            }
        }
        let site = &*self.site.name;
        let place =
            Place { key: &self.key, selecting: &self.selecting, codings: CODINGS, site, sequence };
        match cache::may_store(&self.exchange(response, times), &place, settings) {
            Storing::Store(stored) if apart => {
                // Collected before any of it goes on: no more than goes on in one piece.
                let length = response.body().exact_length();
                if length.is_none_or(|length| length > self.worker.store.slice_bytes()) {
                    return Settled::Pass { reason: Reason::TooLarge, remember: None };
                }
                Settled::Apart(stored)
            }
            Storing::Store(stored) => Settled::Store(stored),
            Storing::Pass { reason, remember } => Settled::Pass { reason, remember },
        }
    }

    /// Remembers the rule of `No-Vary-Search` by which a response is going to be stored.
    pub(super) async fn note_rule(&self, stored: &StoredResponse) {
        if let Some(record) = self.unknown_rule(stored) {
            // Without it other URLs are asked of upstream; the store has counted it. On the
            // heap: nearly no response has one.
            _ = Box::pin(self.worker.store.writer(record).finish()).await;
        }
    }

    fn exchange<'a>(&'a self, response: &'a Response<Body>, times: Times) -> Exchange<'a> {
        Exchange {
            method: &self.method,
            request: &self.fields,
            version: response.version(),
            status: response.status(),
            response: response.headers(),
            request_time: times.asked,
            response_time: times.came,
        }
    }

    /// What upstream left out and a recipient may add: `Date` (RFC 9110 §6.6.1).
    fn complete(&self, response: &mut Response<Body>) {
        // Nearly all have it: a look at each name costs less than to hash one.
        if !response.headers().keys().any(|name| *name == DATE) {
            let now = cache::fields::http_date(self.worker.clock.now());
            response.headers_mut().insert(DATE, now);
        }
    }

    /// The rule of `No-Vary-Search` by which a response is going to be stored, if it is not
    /// remembered yet.
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

    /// Lists a variant just stored under its key.
    pub(super) async fn note_variant(&self, stored: &StoredResponse) {
        let Vary::Fields(fields) = Vary::of(&stored.headers) else { return };
        let store = &self.worker.store;
        let key = CacheKey::new(stored.key.clone());
        // Two fills of one key may end at once; neither may lose the other's variant.
        let _listing = self.worker.listing.lock().await;
        let mut list = match store.find(key.hash).await {
            Some(Record::Variants(list)) => VaryList::clone(&list),
            _ => VaryList::default(),
        };
        let (hash, _) = cache::variant_key(&key, &fields, &self.selecting, CODINGS);
        let variant = Variant::new(hash, &fields, &self.selecting, &stored.headers, CODINGS);
        for dropped in list.note(&fields, variant, self.rule.settings.cache.variants_max) {
            self.worker.recorder.count(Metric::VariantsDropped);
            store.forget(dropped);
        }
        store.put_variants(key.hash, list);
    }
}

/// What the log and `Cache-Status` tell of an exchange.
pub(super) fn facts(response: &UpstreamResponse, upstream: &Upstream) -> UpstreamFacts {
    UpstreamFacts {
        pool: upstream.name().clone(),
        origin: Some(response.origin.clone()),
        address: Some(response.address),
        attempts: response.attempts,
        answered: Some((response.response.status(), response.first_byte)),
    }
}

/// The same of one that was not answered.
pub(super) fn facts_tried(tried: &Tried) -> UpstreamFacts {
    let Tried { pool, origin, address, attempts } = tried.clone();
    UpstreamFacts { pool, origin, address, attempts, answered: None }
}

fn is_304(response: &Response<Body>) -> bool {
    response.status() == StatusCode::NOT_MODIFIED
}
