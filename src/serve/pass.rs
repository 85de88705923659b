//! Requests that go upstream for themselves alone: unsafe methods, bypasses, HEAD, switches of
//! protocol, and GETs that would only wait for each other. What comes back may still be
//! storable, freshen what is stored, or make it invalid.

use std::pin::Pin;

use http::header::{CONTENT_TYPE, HOST, MAX_FORWARDS, VIA};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::task::spawn_local;

use super::exchange::{Job, Settled, facts, facts_tried};
use super::failures;
use super::lookup::Found;
use super::{Switch, Visit};
use crate::body::{Body, BodySource};
use crate::cache::{self, Freshened, Handling, PurgeScope, PurgeSequence, Reason, StoredResponse};
use crate::fields::is_grpc;
use crate::fill::collapse::{NotAdopted, Outcome};
use crate::guard::Refusal;
use crate::reply::Reply;
use crate::respond::Failure;
use crate::route::Action;
use crate::store::Head;
use crate::upstream::{FetchError, Intent, Times, Unanswered, Upstream, UpstreamResponse, tunnel};

/// A request on its way upstream and back.
pub(super) type Passing<'a> = Pin<Box<dyn Future<Output = Result<Reply, Failure>> + 'a>>;

impl Visit {
    /// Sends this one request upstream and hands back what comes. Boxed, so that those who only
    /// wait for another's answer don't carry the room for an exchange of their own.
    pub(super) fn pass(&mut self, reason: Reason, found: Option<Found>) -> Passing<'_> {
        self.context.cache_status.handling = Handling::Forwarded(reason);
        let found = found.unwrap_or_else(|| Found::unknown(self.target()));
        Box::pin(self.exchange_alone(found))
    }

    async fn exchange_alone(&mut self, found: Found) -> Result<Reply, Failure> {
        // What is stored is not validated by this, and stands in by what is found here.
        let job = Job { stale: None, stale_if_error: false, ..self.job(&found)? };
        let sequence = self.worker.store.purges().sequence();
        let switch = self.switch.take();
        let intent = Intent {
            hash: found.key.hash.0 as u64,
            upgrade: switch.as_ref().map(|switch| switch.protocols.clone()),
            takes_trailers: self.asked.takes_trailers,
            is_call: self.is_call(),
            interims: self.interims.clone(),
        };
        // The answer to a GET may depend on its content, which no key has: a stranger's content
        // would be in what everyone gets.
        let is_unkeyed = self.context.asked.method == Method::GET && !self.body.is_end_stream();
        let body = std::mem::take(&mut self.body);
        let request = || self.upstream_request(None);
        let passed = match self.worker.upstreams.send(&job.upstream, request, body, &intent).await {
            Ok(upstream) => self.passed(&job, &found, sequence, switch, upstream)?,
            Err(unanswered) => return self.failed(&job, &found, &unanswered),
        };
        match passed {
            Passed::Through(response) => Ok(response),
            // On the heap: most exchanges don't need the room.
            Passed::Storable(storable) => {
                Box::pin(self.store_alone(job, storable, is_unkeyed)).await
            }
        }
    }

    /// A gRPC call: a stream of messages each way, which only its client understands.
    fn is_call(&self) -> bool {
        self.fields.get(CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes()))
    }

    /// No response has come.
    fn failed(
        &mut self,
        job: &Job,
        found: &Found,
        Unanswered { error, tried }: &Unanswered,
    ) -> Result<Reply, Failure> {
        self.context.upstream = Some(Box::new(facts_tried(tried)));
        let (request, site) = (self.context.id, &self.site.name);
        match error {
            // Anybody can break off, as often as they like.
            FetchError::RequestBody { .. } => {
                tracing::debug!(%request, %site, %error, "the request body was incomplete");
            }
            _ => {
                job.note_no_response(error);
            }
        }
        self.stale_on_error(found).ok_or_else(|| match error {
            FetchError::RequestBody { is_late: true, .. } => {
                failures::refused(Refusal::TimedOut, &self.worker.recorder)
            }
            _ => failures::upstream(error),
        })
    }

    /// What becomes of the response. One to a request that asked for another protocol, or to a
    /// gRPC call, is for its client alone: no key has what it answers.
    fn passed(
        &mut self,
        job: &Job,
        found: &Found,
        sequence: PurgeSequence,
        switch: Option<Box<Switch>>,
        mut upstream: UpstreamResponse,
    ) -> Result<Passed, Failure> {
        self.note(&upstream, &job.upstream);
        // RFC 5861 §4, for those too who follow nobody.
        if cache::decide::is_upstream_error(upstream.response.status())
            && let Some(response) = self.stale_on_error(found)
        {
            return Ok(Passed::Through(response));
        }
        let invalid = self.invalidated(job, &upstream.response);
        if switch.is_some() || self.is_call() {
            self.invalidate(invalid, None);
            if let Some(Switch { client, .. }) = switch.map(|switch| *switch)
                && let Some(origin) = upstream.upgraded.take()
            {
                let idle = job.upstream.tunnel_idle();
                spawn_local(tunnel(client, *origin, idle));
            }
            return Ok(Passed::Through(upstream.response.into()));
        }
        if self.context.asked.method == Method::HEAD {
            self.freshen_from_head(found, &upstream.response, upstream.times, sequence);
        }
        let settled = job.settle(&mut upstream.response, upstream.times, sequence);
        let response = upstream.response;
        match settled {
            Settled::Store(stored) => {
                Ok(Passed::Storable(Box::new(Storable { stored, response, invalid })))
            }
            Settled::Pass { reason: why, .. } => {
                self.invalidate(invalid, None);
                // A part is what was asked for.
                let expected = matches!(
                    why,
                    Reason::MethodUnstorable | Reason::CachingOff | Reason::RangeInvalid
                );
                if !expected {
                    self.context.cache_status.detail = Some(why);
                }
                Ok(Passed::Through(response.into()))
            }
            // Nothing was being validated, and nothing may stand in.
            Settled::Apart(_) | Settled::Validated(_) | Settled::Error(_) => {
                Err(failures::abandoned())
            }
        }
    }

    /// Stores what this request was answered, and answers from that.
    async fn store_alone(
        &mut self,
        job: Job,
        storable: Box<Storable>,
        is_unkeyed: bool,
    ) -> Result<Reply, Failure> {
        let Storable { mut stored, response, invalid } = *storable;
        job.note_rule(&stored).await;
        self.invalidate(invalid, Some(&mut stored));
        if is_unkeyed {
            return Ok(response.into());
        }
        let (hash, sequence) = (stored.hash(), stored.stored_at_sequence);
        let lead = match self.worker.fills.adopt(hash, sequence) {
            Ok(lead) => lead,
            Err(why) => {
                if why == NotAdopted::Limit {
                    self.context.cache_status.detail = Some(Reason::FillLimit);
                }
                return Ok(response.into());
            }
        };
        let follower = lead.follower();
        let ttl = stored.freshness.ttl(self.worker.clock.now());
        let own = cache::fields::own_fields(response.headers(), &stored.headers);
        spawn_local(job.fill(lead, stored, response));
        let Outcome::Filling(filling) = follower.outcome().await else {
            return Err(failures::abandoned());
        };
        let status = &mut self.context.cache_status;
        (status.stored, status.ttl) = (true, Some(ttl));
        Ok(self.first_hand(&filling, own))
    }

    /// In force before the client has its answer. `cause` is the response that says so.
    fn invalidate(&self, invalid: Vec<PurgeScope>, cause: Option<&mut StoredResponse>) {
        if !invalid.is_empty() {
            self.worker.store.purges().invalidate(invalid, cause);
        }
    }

    fn note(&mut self, response: &UpstreamResponse, upstream: &Upstream) {
        self.context.cache_status.fwd_status = Some(response.response.status());
        self.context.upstream = Some(Box::new(facts(response, upstream)));
    }

    /// What this response makes invalid (RFC 9111 §4.4).
    fn invalidated(&self, job: &Job, response: &Response<Body>) -> Vec<PurgeScope> {
        if self.context.asked.method.is_safe() {
            return Vec::new();
        }
        let policy = &self.rule.settings.cache.key;
        let (status, headers) = (response.status(), response.headers());
        cache::invalidates(&self.context.asked.method, job.key.url(), status, headers, policy)
            .scopes
    }

    /// RFC 9111 §4.3.5.
    fn freshen_from_head(
        &self,
        found: &Found,
        response: &Response<Body>,
        times: Times,
        sequence: PurgeSequence,
    ) {
        let Some(head) = &found.head else { return };
        let exchange = cache::Exchange {
            method: &self.context.asked.method,
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
            Freshened::Once(..) => {}
            Freshened::NotThisOne if response.status().is_success() => {
                let url = found.key.url().into();
                self.worker.store.purges().invalidate(vec![PurgeScope::Url(url)], None);
            }
            Freshened::NotThisOne => {}
        }
    }

    /// The request for a fill: the whole, or a validation of `stale`, as GET.
    pub(super) fn fill_request(&self, stale: Option<&Head>) -> Request<()> {
        let mut request = self.upstream_request(stale);
        if stale.is_none() {
            cache::fields::remove_conditions(request.headers_mut());
        }
        request
    }

    /// The request as the origin gets it.
    fn upstream_request(&self, stale: Option<&Head>) -> Request<()> {
        let mut headers = HeaderMap::clone(&self.fields);
        headers.reserve(ADDED_FIELDS);
        if let Some(stale) = stale {
            cache::validation_fields(&stale.response, &mut headers);
        }
        // As it is in the key: HTTP/2 has none, and HTTP/1.0 need not.
        headers.insert(HOST, self.asked.authority.to_field());
        self.plan.gate.announce(&self.asked, &self.context.connection, &mut headers);
        headers.append(VIA, self.plan.identity.via(self.context.asked.version).clone());
        if let Some(left) = self.forwards_left() {
            headers.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
        }
        self.tell(&mut headers);
        let target = match &self.rule.settings.action {
            Action::Pass(pass) => pass.rewrite.apply(&self.asked.target),
            Action::Redirect(_) | Action::Fixed(_) => self.asked.target.clone(),
        };
        let mut request = Request::new(());
        *request.method_mut() = self.context.asked.method.clone();
        *request.uri_mut() = target.into();
        *request.headers_mut() = headers;
        request
    }
}

/// What becomes of a response to one request alone.
enum Passed {
    Through(Reply),
    Storable(Box<Storable>),
}

/// It may be stored after all.
struct Storable {
    stored: Box<StoredResponse>,
    response: Response<Body>,
    /// What it makes invalid.
    invalid: Vec<PurgeScope>,
}

/// How many fields a request gets here, as a rule.
const ADDED_FIELDS: usize = 8;
