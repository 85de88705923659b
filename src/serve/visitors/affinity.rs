//! The affinity of a request to origins of its pool: the client's location, the hash by which the pool
//! chooses, and the origin at which the visitor is kept.

use std::net::SocketAddr;
use std::rc::Rc;

use http::HeaderValue;
use http::header::SET_COOKIE;

use super::super::Visit;
use super::cookies::set_cookie;
use super::sticky_pool;
use crate::cache::{self, CacheKey, cookie};
use crate::client_network::ClientNetwork;
use crate::context::{Requester, ResponseFacts};
use crate::fields::FieldsMut;
use crate::reply::Reply;
use crate::upstream::{Affinity, Balance, HashBy, Policy, Pool, PoolSettings, ProxiedClient};

impl Visit {
    /// The facts that the choice of an origin in this pool depends on.
    pub(in crate::serve) fn affinity(&self, pool: &Pool, key: &CacheKey) -> Affinity {
        let PoolSettings { policy, balance, hash_by, .. } = pool.settings();
        let point = match policy {
            Policy::Nearest => self.context.place.unit_vector(),
            Policy::Failover | Policy::NearestToNode => None,
        };
        let sticky = self.sticky;
        if *balance != Balance::Hash {
            return Affinity { point, hash: 0, sticky };
        }
        let value = match hash_by {
            HashBy::Url => return Affinity { point, hash: key.hash.0 as u64, sticky },
            HashBy::Client => None,
            HashBy::Header(name) => self.fields.get(name).map(HeaderValue::as_bytes),
            HashBy::Cookie(name) => cookie(&self.fields, name),
        };
        let hash = match value {
            Some(value) => Affinity::hash_of(value),
            // A host changes its IPv6 address, and must stay at its origin.
            None => Affinity::hash_of(ClientNetwork::of(self.context.client).bytes()),
        };
        Affinity { point, hash, sticky }
    }

    /// The client that connections to the origins of this pool state. `None`: they state none, or the request
    /// is the node's own.
    pub(in crate::serve) fn proxied(&self, pool: &Pool) -> Option<Rc<ProxiedClient>> {
        let connection = &self.context.connection;
        let is_own = matches!(connection.requester, Requester::Node { .. });
        if pool.settings().send_proxy.is_none() || is_own {
            return None;
        }
        let client = self.context.client.to_canonical();
        // The port of a client behind another proxy or node is not known.
        let is_peer = connection.peer.ip().to_canonical() == client;
        let port = if is_peer { connection.peer.port() } else { 0 };
        let client = SocketAddr::new(client, port);
        Some(Rc::new(ProxiedClient { client, destination: connection.local }))
    }

    /// Tells the client by a cookie at which origin it is kept from now on, if that has changed. Only
    /// a response that comes from the origin, is not stored and is no error of the origin may do so: a
    /// stored one is for every client.
    pub(in crate::serve) fn keep_visitor(&self, facts: &ResponseFacts, reply: &mut Reply) {
        let status = &facts.cache_status;
        let is_of_store = status.stored || status.collapsed || status.ttl.is_some();
        let upstream = facts.upstream.as_deref().filter(|_| !is_of_store);
        let Some((upstream, pool)) = upstream.zip(sticky_pool(&self.rule, &self.context)) else {
            return;
        };
        let is_good = upstream.answered.is_some_and(|(status, _)| !status.is_server_error());
        let token = upstream.origin.as_ref().and_then(|origin| pool.sticky_token(origin));
        if let (Some(token), Some(sticky)) = (token, &pool.settings().sticky)
            && is_good
            && self.sticky != Some(token)
        {
            let (token, scheme) = (token.to_string(), self.request.scheme);
            cache::forbid_sharing(&mut reply.fields);
            let value = set_cookie(&sticky.cookie, &token, sticky.max_age, scheme);
            reply.fields.append(&SET_COOKIE, &value);
        }
    }
}
