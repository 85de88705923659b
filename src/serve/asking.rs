//! Asking the owner of a key before the origin.
//!
//! ```text
//! Job::send ─▶ owner ──102 or head within the deadline──▶ head ─ verdict ─▶ response of the peer
//!                └ late, unreachable, refused, no verdict ─▶ next owner ─▶ origin
//! ```
//!
//! No failure of a peer reaches the client. The deadline covers the acknowledgement only: an owner that asks
//! the origin says so by a 102 (Processing), and then the origin's deadlines, which it keeps, hold.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{
    ACCEPT_ENCODING, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use tokio::sync::Notify;

use super::Visit;
use super::hop_body::{HopBody, SendToOrigin};
use super::region::{AtPeer, NextHop, OwnLoad, PeerLink, Region};
use super::worker::Worker;
use crate::body::Body;
use crate::cache::purge::ALIASED;
use crate::cache::{CacheKey, PurgeTarget};
use crate::context::RequestId;
use crate::interim::Interims;
use crate::labels::{HopFailure, WhyOrigin};
use crate::peers::{HOP, Hop, HopVerdict, PROTOCOL, PURGES};
use crate::purge::Requirement;
use crate::upstream::{Intent, Upstream, UpstreamResponse};

/// The peers that a request goes to before the origin, and how it is written for them.
pub(super) struct HopPlan {
    region: Arc<Region>,
    targets: Vec<Arc<PeerLink>>,
    /// With the scheme and authority of the client's request.
    uri: Uri,
    /// The client's fields after the gate, with those that tell of the client and of this hop.
    headers: HeaderMap,
    content: HopContent,
}

/// The content that peers are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HopContent {
    /// As the origin sent it: to validate or to complete a response that is stored here.
    AsStored,
    /// The whole, coded for the client.
    Negotiated,
    /// As `Negotiated`, by the client's own conditions and ranges. They may name the entity tags of
    /// codings, which the origin does not know.
    Relayed,
}

/// The next hop of a request.
pub(super) enum Route {
    /// The origin. The value counts the request while it is in flight, if this node owns its key.
    Origin(Option<OwnLoad>),
    /// Peers, then the origin.
    Peers(Rc<HopPlan>),
}

/// On whose behalf peers are asked.
pub(super) struct Asker {
    pub worker: Rc<Worker>,
    /// The id of the request.
    pub id: RequestId,
    /// Receives the interim responses of peers.
    pub interims: Option<Arc<Interims>>,
    /// Sends a request to the origin, if a peer breaks off.
    pub origin: SendToOrigin,
}

/// A response and where it comes from.
pub(super) struct Received {
    pub upstream: UpstreamResponse,
    /// The verdict of a peer about its response. `None`: the response is of the origin.
    pub verdict: Option<HopVerdict>,
}

impl Visit {
    /// Whether another node may own the key of this request. Without peers none does.
    pub(super) fn may_ask_owner(&self) -> bool {
        self.worker.region.is_some() && self.context.hop.is_none() && !self.leaves_peers_out
    }

    /// The next hop of this request for `key`. Without peers it is the origin, which costs nothing.
    ///
    /// Call it after the purge sequence was read with which the response will be stored: the peer must have all
    /// purges that are in force here then.
    pub(super) async fn route_hop(&self, key: &CacheKey, content: HopContent) -> Route {
        // The owner of a region asks no other one.
        let shared = self.worker.region.as_ref().filter(|_| self.may_ask_owner());
        let Some(shared) = shared else { return Route::Origin(None) };
        let region = shared.load_full();
        let now = self.worker.clock.instant();
        match region.next_hop(key.hash.0 as u64, &self.plan.digest, now) {
            NextHop::Origin(WhyOrigin::Own) => Route::Origin(Some(OwnLoad::begin(&region))),
            NextHop::Origin(_) => Route::Origin(None),
            NextHop::Peers(targets) => {
                let purges = self.purge_requirement(key).await;
                let plan = purges.and_then(|purges| self.hop_plan(&region, key, content, &purges));
                let plan = plan.map(|plan| HopPlan { targets, ..plan });
                plan.map_or(Route::Origin(None), |plan| Route::Peers(Rc::new(plan)))
            }
        }
    }

    /// The purges that a peer must have applied, as a field. `None`: no peer will do.
    async fn purge_requirement(&self, key: &CacheKey) -> Option<HeaderValue> {
        // As long as the response is unknown, a purge of any tag may cover it.
        let tags: &[u64] = if self.rule.settings.cache.no_vary_search { &[ALIASED] } else { &[] };
        let target = PurgeTarget { site: &self.site.name, url: key.url(), tags };
        let purges = self.worker.store.purges();
        match purges.requirement_within(&target, PURGES_AWAITED).await {
            Requirement::OriginOnly => None,
            entries => HeaderValue::try_from(entries.to_field()).ok(),
        }
    }

    /// A plan without targets. `None`: the hop cannot be written.
    fn hop_plan(
        &self,
        region: &Arc<Region>,
        key: &CacheKey,
        content: HopContent,
        purges: &HeaderValue,
    ) -> Option<HopPlan> {
        let hop = Hop {
            version: PROTOCOL,
            from: region.node.clone(),
            digest: self.plan.digest.clone(),
            hops: 1,
            client: self.context.client.to_canonical(),
            id: self.context.id.0,
            key: self.hop_key(key),
            group: self.context.group.as_ref().map(|group| group.name.clone()),
            codings: match content {
                HopContent::AsStored => None,
                HopContent::Negotiated | HopContent::Relayed => {
                    Some(self.accepted.to_string().into())
                }
            },
            is_for_shield: false,
        };
        let mut headers = HeaderMap::clone(&self.fields);
        self.add_hop_fields(&mut headers);
        headers.insert(HOP, hop.to_field()?);
        headers.insert(PURGES, purges.clone());
        let uri = Uri::builder()
            .scheme(self.request.scheme)
            .authority(self.request.authority.as_str())
            .path_and_query(self.request.target.clone());
        let (region, uri) = (region.clone(), uri.build().ok()?);
        Some(HopPlan { region, targets: Vec::new(), uri, headers, content })
    }

    /// The number by which owner and asker compare their keys: of the key before any `No-Vary-Search` rule,
    /// which only one of them may know.
    pub(super) fn hop_key(&self, key: &CacheKey) -> u64 {
        match self.rule.settings.cache.no_vary_search {
            true => self.query().key().hash.0 as u64,
            false => key.hash.0 as u64,
        }
    }
}

impl HopPlan {
    /// Sends the request to the owner, and to the next one if that fails. `None`: neither has answered.
    pub(super) async fn ask(&self, asker: &Asker, request: &Request<()>) -> Option<Received> {
        for link in &self.targets {
            let failure = match self.ask_one(asker, link, request).await {
                Ok(received) => return Some(received),
                Err(failure) => failure,
            };
            self.note_failure(asker, link, failure);
            if failure == HopFailure::Upstream {
                // Another owner would wait for the origin as long again.
                break;
            }
        }
        None
    }

    async fn ask_one(
        &self,
        asker: &Asker,
        link: &Arc<PeerLink>,
        request: &Request<()>,
    ) -> Result<Received, HopFailure> {
        let at_peer = AtPeer::begin(link);
        let acknowledged = Rc::new(Notify::new());
        let intent = Intent {
            for_many: true,
            interims: asker.interims.clone(),
            acknowledged: Some(acknowledged.clone()),
            ..Intent::default()
        };
        let upstream = Upstream::Pool(link.pool.clone());
        let written = || self.written(request);
        let sending = asker.worker.upstreams.send(&upstream, written, Body::Empty, &intent);
        let sent = in_time(sending, &acknowledged, self.region.settings.deadline).await;
        let mut received = sent.ok_or(HopFailure::Deadline)?.map_err(|_| HopFailure::Connection)?;
        link.note_answer();
        let field = received.response.headers_mut().remove(HOP);
        let verdict = field.as_ref().and_then(HopVerdict::parse).ok_or(HopFailure::Verdict)?;
        if let HopVerdict::Refused(why) = verdict {
            return Err(HopFailure::of_refusal(why));
        }
        link.counts.responses.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(received.first_byte.as_micros()).unwrap_or(u64::MAX);
        link.counts.first_byte_us.fetch_add(micros, Ordering::Relaxed);
        received.origin = link.name.clone();
        let (head, body) = received.response.into_parts();
        let body = HopBody::begin(body, at_peer, &head, &asker.origin, request);
        received.response = http::Response::from_parts(head, body);
        Ok(Received { upstream: received, verdict: Some(verdict) })
    }

    /// The request as a peer gets it: that of the client, with the codings of the request for the origin, and with
    /// its conditions and ranges unless those of the client are relayed.
    fn written(&self, for_origin: &Request<()>) -> Request<()> {
        let mut headers = self.headers.clone();
        let of_parts = if self.content == HopContent::Relayed { &[][..] } else { &OF_PARTS };
        for name in of_parts.iter().chain([&ACCEPT_ENCODING]) {
            headers.remove(name);
            if let Some(value) = for_origin.headers().get(name) {
                headers.insert(name, value.clone());
            }
        }
        let mut request = Request::new(());
        *request.method_mut() = for_origin.method().clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        request
    }

    fn note_failure(&self, asker: &Asker, link: &PeerLink, failure: HopFailure) {
        link.count_failure(failure);
        if failure.is_silence() {
            link.note_silence(self.region.settings.skip_for, asker.worker.clock.instant());
        }
        tracing::debug!(request = %asker.id, peer = %link.name, reason = failure.as_str(), "a peer gave no usable response");
    }
}

/// Waits for the response, but for its acknowledgement no longer than `deadline`.
async fn in_time<R>(
    sending: impl Future<Output = R>,
    acknowledged: &Notify,
    deadline: Duration,
) -> Option<R> {
    let mut sending = pin!(sending);
    tokio::select! {
        biased;
        sent = &mut sending => return Some(sent),
        () = acknowledged.notified() => {}
        () = tokio::time::sleep(deadline) => return None,
    }
    Some(sending.await)
}

/// A purge of this node is read back from the bus within milliseconds.
const PURGES_AWAITED: Duration = Duration::from_millis(50);

/// The fields of conditions and ranges.
const OF_PARTS: [HeaderName; 6] =
    [IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE];
