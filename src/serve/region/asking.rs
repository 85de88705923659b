//! Asking peers before the origin: the owner of a key in the region, and the owner in the rule's shield.
//!
//! ```text
//! Job::send ─▶ owner ──102 or head within the deadline──▶ head ─ verdict ─▶ response of the peer
//!                └ silent, slow, unreachable, refused, no verdict ─▶ next owner ─▶ shield ─▶ origin
//! ```
//!
//! No failure of a peer reaches the client, unless the rule says that only its shield may ask the origin. The
//! deadline covers the acknowledgement only: an owner that asks further says so by a 102 (Processing), and then
//! the origin's deadlines, which the last node keeps, hold. `patience.rs` tells a slow peer from a dead one.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{
    ACCEPT_ENCODING, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use super::super::Visit;
use super::super::worker::Worker;
use super::hop_body::{HopBody, PeerWatch, SendToNextHop};
use super::patience::{LinkLife, Patience, PeerLife, in_time};
use super::{AtPeer, NextHop, OwnLoad, PURGES_AWAITED, PeerLink, Region, ShieldNodes};
use crate::body::Body;
use crate::cache::purge::ALIASED;
use crate::cache::{CacheKey, PurgeTarget};
use crate::context::RequestId;
use crate::interim::Interims;
use crate::labels::{HopFailure, UpstreamKind, WhyOrigin};
use crate::peers::{HOP, HOPS_MAX, Hop, HopVerdict, PROTOCOL, PURGES};
use crate::purge::Requirement;
use crate::route::Shield;
use crate::upstream::{Acknowledgement, FetchError, Intent, Upstream, UpstreamResponse};

/// The peers of one region that a request goes to before the origin, and how it is written for them.
pub(in crate::serve) struct HopPlan {
    /// Peers of this node's region, or of the shield.
    pub kind: UpstreamKind,
    region: Arc<Region>,
    targets: Vec<Arc<PeerLink>>,
    /// The next step if none of them answers.
    then: AfterHop,
    /// With the scheme and authority of the client's request.
    uri: Uri,
    /// The method of the client's request.
    method: Method,
    /// The client's fields after the gate, with those that tell of the client and of this hop.
    headers: HeaderMap,
    content: HopContent,
}

/// The content that peers are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serve) enum HopContent {
    /// As the origin sent it: to validate or to complete a response that is stored here.
    AsStored,
    /// The whole, coded for the client.
    Negotiated,
    /// As `Negotiated`, by the client's own conditions and ranges. They may name the entity tags of
    /// codings, which the origin does not know.
    Relayed,
}

/// The next step if no peer of a plan answers.
#[derive(Clone)]
pub(in crate::serve) enum AfterHop {
    /// The origin is asked.
    Origin,
    /// These peers are asked.
    Peers(Rc<HopPlan>),
    /// Nothing: the shield of these regions is gone, and the rule lets no other node ask the origin.
    ShieldGone(Box<str>),
}

/// The next hops of a request.
#[derive(Default)]
pub(in crate::serve) struct Route {
    /// Peers. `None`: the origin.
    pub peers: Option<Rc<HopPlan>>,
    /// Counts the request while it is in flight, if this node owns its key.
    pub load: Option<OwnLoad>,
}

/// On whose behalf peers are asked.
pub(in crate::serve) struct Asker<'a> {
    pub worker: &'a Rc<Worker>,
    /// The id of the request.
    pub id: RequestId,
    /// Receives the interim responses of peers.
    pub interims: Option<&'a Arc<Interims>>,
    /// Sends further requests to what follows a peer that breaks off.
    pub sender_to: &'a dyn Fn(&AfterHop) -> SendToNextHop,
    /// Writes the request for the origin.
    pub for_origin: &'a dyn Fn() -> Request<()>,
}

/// A response and where it comes from.
pub(in crate::serve) struct Received {
    pub upstream: Box<UpstreamResponse>,
    /// The kind of server that it comes from.
    pub kind: UpstreamKind,
    /// The verdict of a peer about its response. `None`: the response is of the origin.
    pub verdict: Option<HopVerdict>,
}

impl Visit {
    /// Whether another node may own the key of this request. Without peers none does.
    pub(in crate::serve) fn may_ask_owner(&self) -> bool {
        self.worker.region.is_some() && self.context.hop.is_none() && !self.leaves_peers_out
    }

    /// The next hops of this request for `key`. Without peers it is the origin, which costs nothing.
    ///
    /// Call it after the purge sequence was read with which the response will be stored: each peer must have all
    /// purges that are in force here then.
    pub(in crate::serve) async fn route_hop(&self, key: &CacheKey, content: HopContent) -> Route {
        let Some(shared) = &self.worker.region else { return Route::default() };
        // The owner of a region asks no other node of it.
        let asks_region = self.context.hop.is_none();
        if self.leaves_peers_out || !(asks_region || self.shield().is_some()) {
            return Route::default();
        }
        let region = shared.load_full();
        let mut route = Route::default();
        let mut targets = Vec::new();
        if asks_region {
            let now = self.worker.clock.instant();
            match region.next_hop(key.hash.0 as u64, &self.plan.digest, now) {
                NextHop::Origin(WhyOrigin::Own) => route.load = Some(OwnLoad::begin(&region)),
                NextHop::Origin(_) => {}
                NextHop::Peers(peers) => targets = peers,
            }
        }
        if targets.is_empty() && self.shield().is_none() {
            return route;
        }
        let purges = self.worker.store.purges();
        let target = self.purge_target(key);
        let requirement = purges.requirement_within(&target, PURGES_AWAITED).await;
        self.leave_out_peers(&mut targets, &target).await;
        let then = self.after_region(&region, key, &requirement);
        // No store of a peer will do for an origin-only request: its owner is not asked.
        let asks_owner = !targets.is_empty() && requirement != Requirement::OriginOnly;
        let leg = Leg { kind: UpstreamKind::Peer, region, targets, content, then: then.clone() };
        let owner = if asks_owner { self.hop_plan(leg, key, &requirement) } else { None };
        route.peers = owner.or(match then {
            AfterHop::Peers(shield) => Some(shield),
            AfterHop::Origin | AfterHop::ShieldGone(_) => None,
        });
        route
    }

    /// The shield of the rule, unless the request comes from a node that has asked this one as its shield.
    pub(in crate::serve) fn shield(&self) -> Option<&Shield> {
        let is_asked = |hop: &Hop| hop.is_for_shield || hop.hops >= HOPS_MAX;
        self.rule.shield().filter(|_| !self.context.hop.as_deref().is_some_and(is_asked))
    }

    /// The peers of the shield for requests that are sent later, such as those for missing bytes.
    pub(in crate::serve) fn shield_hop(&self, key: &CacheKey) -> Option<Rc<HopPlan>> {
        let shared = self.worker.region.as_ref().filter(|_| self.shield().is_some())?;
        let requirement = self.worker.store.purges().requirement(&self.purge_target(key));
        match self.after_region(&shared.load_full(), key, &requirement) {
            AfterHop::Peers(plan) => Some(plan),
            AfterHop::Origin | AfterHop::ShieldGone(_) => None,
        }
    }

    /// The next step after the nodes of this region. `requirement`: the purges that this node has in force; the
    /// requirement that came with the request must be met, too.
    fn after_region(
        &self,
        region: &Arc<Region>,
        key: &CacheKey,
        requirement: &Requirement,
    ) -> AfterHop {
        let Some(shield) = self.shield() else { return AfterHop::Origin };
        let ShieldNodes { links, may_ask_origin } =
            region.shield_nodes(shield, key.hash.0 as u64, &self.plan.digest);
        let then = match may_ask_origin {
            true => AfterHop::Origin,
            false => AfterHop::ShieldGone(shield.regions.join(", ").into()),
        };
        if links.is_empty() && may_ask_origin {
            return AfterHop::Origin;
        }
        let (purges, target) = (self.worker.store.purges(), self.purge_target(key));
        let has_purges = |link: &Arc<PeerLink>| purges.peer_has_purges(&link.name, &target);
        let own = match links.iter().all(has_purges) {
            true => requirement.clone(),
            // The store of a node that may lack a purge which the peer link brings will not do.
            false => Requirement::OriginOnly,
        };
        let both = match self.received_requirement() {
            Some(received) => own.and(&received),
            None => own,
        };
        let (region, kind) = (region.clone(), UpstreamKind::Shield);
        // This node stores what it gets.
        let content = HopContent::AsStored;
        let leg = Leg { kind, region, targets: links, content, then: then.clone() };
        self.hop_plan(leg, key, &both).map_or(then, AfterHop::Peers)
    }

    /// The target of purges that cover this key. As long as the response is unknown, a purge of any tag may cover it.
    fn purge_target<'k>(&'k self, key: &'k CacheKey) -> PurgeTarget<'k> {
        let tags: &[u64] = if self.rule.settings.cache.no_vary_search { &[ALIASED] } else { &[] };
        PurgeTarget { site: &self.site.name, url: key.url(), tags }
    }

    /// Leaves out the peers that may lack a purge which the peer link brings. Waits briefly for the first one.
    async fn leave_out_peers(&self, targets: &mut Vec<Arc<PeerLink>>, target: &PurgeTarget<'_>) {
        let purges = self.worker.store.purges();
        if let Some(owner) = targets.first()
            && !purges.peer_has_purges(&owner.name, target)
        {
            // On the heap: most requests do not wait.
            Box::pin(purges.peer_takes_purges(&owner.name, target, PURGES_AWAITED)).await;
        }
        targets.retain(|link| purges.peer_has_purges(&link.name, target));
    }

    /// `None`: the hop cannot be written.
    fn hop_plan(&self, leg: Leg, key: &CacheKey, purges: &Requirement) -> Option<Rc<HopPlan>> {
        let Leg { kind, region, targets, content, then } = leg;
        let hop = Hop {
            version: PROTOCOL,
            from: region.node.clone(),
            digest: self.plan.digest.clone(),
            hops: self.context.hop.as_ref().map_or(0, |hop| hop.hops) + 1,
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
            is_for_shield: kind == UpstreamKind::Shield,
        };
        let mut headers = HeaderMap::clone(&self.fields);
        headers.reserve(ADDED_FIELDS);
        if content == HopContent::Negotiated {
            OF_PARTS.iter().for_each(|name| drop(headers.remove(name)));
        }
        self.add_hop_fields(&mut headers);
        headers.insert(HOP, hop.to_field()?);
        headers.insert(PURGES, HeaderValue::try_from(purges.to_field()).ok()?);
        let uri = Uri::builder()
            .scheme(self.request.scheme)
            .authority(self.request.authority.as_str())
            .path_and_query(self.request.target.clone());
        let uri = uri.build().ok()?;
        let method = self.context.request.method.clone();
        Some(Rc::new(HopPlan { kind, region, targets, then, uri, method, headers, content }))
    }

    /// The number by which owner and asker compare their keys: of the key before any `No-Vary-Search` rule,
    /// which only one of them may know.
    pub(in crate::serve) fn hop_key(&self, key: &CacheKey) -> u64 {
        match self.rule.settings.cache.no_vary_search {
            true => self.query().key().hash.0 as u64,
            false => key.hash.0 as u64,
        }
    }
}

/// One of the hops of a request, before it is written.
struct Leg {
    kind: UpstreamKind,
    region: Arc<Region>,
    targets: Vec<Arc<PeerLink>>,
    content: HopContent,
    then: AfterHop,
}

impl HopPlan {
    /// The number of recent requests from which a response is copied. 0: none is.
    pub(in crate::serve) fn copy_after(&self) -> u8 {
        match self.content {
            HopContent::AsStored => self.region.settings.copy_after,
            // Coded for other clients, or a part.
            HopContent::Negotiated | HopContent::Relayed => 0,
        }
    }

    /// Whether the response is coded for the client, and not stored here.
    pub(in crate::serve) fn is_for_client(&self) -> bool {
        self.content == HopContent::Negotiated
    }

    /// Sends the request to the owner, to the next one if that fails, and then to the peers that follow. `None`: none
    /// has answered, and the origin is asked.
    ///
    /// # Errors
    /// No peer has answered, and the origin must not be asked.
    pub(in crate::serve) async fn ask(
        &self,
        asker: &Asker<'_>,
    ) -> Result<Option<Received>, FetchError> {
        let mut plan = self;
        loop {
            match plan.ask_targets(asker).await? {
                LegOutcome::Received(received) => return Ok(Some(*received)),
                LegOutcome::Then(AfterHop::Peers(next)) => plan = next,
                LegOutcome::Then(AfterHop::Origin) => return Ok(None),
                LegOutcome::Then(AfterHop::ShieldGone(regions)) => {
                    return Err(FetchError::ShieldGone { regions: regions.clone() });
                }
            }
        }
    }

    async fn ask_targets(&self, asker: &Asker<'_>) -> Result<LegOutcome<'_>, FetchError> {
        let mut is_alive = false;
        for link in self.targets.iter().filter(|link| self.may_ask(link, asker)) {
            let life = LinkLife { link, worker: asker.worker };
            let before = life.signs();
            let failure = match self.ask_one(asker, link, &life).await {
                Ok(received) => return Ok(LegOutcome::Received(Box::new(received))),
                Err(failure) => failure,
            };
            // A connection may fail at a peer that answers on others.
            let has_answered = failure == HopFailure::Connection && life.signs() > before;
            self.note_failure(asker, link, failure, has_answered);
            is_alive |= failure.is_alive();
            if failure == HopFailure::Upstream {
                // Another owner would wait for the origin as long again.
                return match (&self.then, self.kind) {
                    (AfterHop::Origin, UpstreamKind::Peer) => {
                        Ok(LegOutcome::Then(&AfterHop::Origin))
                    }
                    // The origin is spared by all nodes but those of the shield.
                    _ => Err(FetchError::FailedAtPeer { peer: link.name.clone() }),
                };
            }
        }
        Ok(LegOutcome::Then(match (&self.then, is_alive) {
            // The shield is not gone: nodes with two configurations stand beside each other for a while.
            (AfterHop::ShieldGone(_), true) => &AfterHop::Origin,
            (then, _) => then,
        }))
    }

    /// Whether a peer may be asked now. Those of this region were chosen so; those of the shield are only tried
    /// when it is their turn.
    fn may_ask(&self, link: &PeerLink, asker: &Asker<'_>) -> bool {
        let now = asker.worker.clock.instant();
        self.kind == UpstreamKind::Peer || link.may_be_asked(self.region.settings.skip_for, now)
    }

    async fn ask_one(
        &self,
        asker: &Asker<'_>,
        link: &Arc<PeerLink>,
        life: &LinkLife<'_>,
    ) -> Result<Received, HopFailure> {
        let at_peer = AtPeer::begin(link);
        let acknowledged = Rc::new(Acknowledgement::default());
        let intent = Intent {
            is_idempotent: self.method.is_idempotent(),
            for_many: true,
            interims: asker.interims.cloned(),
            acknowledged: Some(acknowledged.clone()),
            ..Intent::default()
        };
        let upstream = Upstream::Pool(link.pool.clone());
        let written = || self.written(asker);
        let sending = asker.worker.upstreams.send(&upstream, written, Body::Empty, &intent);
        let mut patience = self.patience(link);
        let sent = in_time(sending, &acknowledged, life, &mut patience).await?;
        let mut received = sent.map_err(|_| HopFailure::Connection)?;
        link.note_answer();
        link.distance.note(patience.round_trip);
        let field = received.verdict.take();
        let verdict = field.as_ref().and_then(HopVerdict::parse).ok_or(HopFailure::Verdict)?;
        if let HopVerdict::Refused(why) = verdict {
            return Err(HopFailure::of_refusal(why));
        }
        link.counts.responses.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(received.first_byte.as_micros()).unwrap_or(u64::MAX);
        link.counts.first_byte_us.fetch_add(micros, Ordering::Relaxed);
        received.origin = link.name.clone();
        let (head, body) = received.response.into_parts();
        let next_hop = || (asker.sender_to)(&self.then);
        let skip_for = self.region.settings.skip_for;
        let watch = PeerWatch::new(asker.worker.clone(), patience.deadline, skip_for);
        let body = HopBody::begin(body, (at_peer, watch), &head, next_hop, asker.for_origin);
        received.response = http::Response::from_parts(head, body);
        Ok(Received { upstream: received, kind: self.kind, verdict: Some(verdict) })
    }

    fn patience(&self, link: &PeerLink) -> Patience {
        let floor = self.region.settings.deadline;
        match self.kind {
            UpstreamKind::Shield => Patience::far(link.distance.deadline(floor)),
            UpstreamKind::Peer | UpstreamKind::Origin => Patience::near(floor),
        }
    }

    /// The request as a peer gets it: that of the client. For a response as it is stored it has the codings, conditions
    /// and ranges of the request for the origin.
    fn written(&self, asker: &Asker<'_>) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if self.content == HopContent::AsStored {
            let for_origin = (asker.for_origin)();
            request.method_mut().clone_from(for_origin.method());
            for name in OF_PARTS.iter().chain([&ACCEPT_ENCODING]) {
                request.headers_mut().remove(name);
                if let Some(value) = for_origin.headers().get(name) {
                    request.headers_mut().insert(name, value.clone());
                }
            }
        }
        request
    }

    fn note_failure(
        &self,
        asker: &Asker<'_>,
        link: &PeerLink,
        failure: HopFailure,
        has_answered: bool,
    ) {
        link.count_failure(failure);
        if matches!(failure, HopFailure::Deadline | HopFailure::Slow) {
            link.distance.forget();
        }
        if failure.is_silence() && !has_answered {
            link.note_silence(self.region.settings.skip_for, asker.worker.clock.instant());
        }
        tracing::debug!(request = %asker.id, peer = %link.name, reason = failure.as_str(), "a peer gave no usable response");
    }
}

/// The outcome of asking the peers of one plan.
enum LegOutcome<'p> {
    Received(Box<Received>),
    Then(&'p AfterHop),
}

/// More fields than a hop usually adds.
const ADDED_FIELDS: usize = 10;
/// The fields of conditions and ranges.
const OF_PARTS: [HeaderName; 6] =
    [IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE];
