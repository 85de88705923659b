//! The affinity of a request to origins of its pool: the client's location, and the hash by which the
//! pool chooses.

use std::net::IpAddr;

use http::HeaderValue;

use super::Visit;
use crate::cache::{CacheKey, cookie};
use crate::upstream::{Affinity, Balance, HashBy, Policy, Pool, PoolSettings};

impl Visit {
    /// The location and the hash that the choice of an origin in this pool depends on.
    pub(super) fn affinity(&self, pool: &Pool, key: &CacheKey) -> Affinity {
        let PoolSettings { policy, balance, hash_by, .. } = pool.settings();
        let point = match policy {
            Policy::Nearest => self.context.place.unit_vector(),
            Policy::Failover | Policy::NearestToNode => None,
        };
        if *balance != Balance::Hash {
            return Affinity { point, hash: 0 };
        }
        let value = match hash_by {
            HashBy::Url => return Affinity { point, hash: key.hash.0 as u64 },
            HashBy::Client => None,
            HashBy::Header(name) => self.fields.get(name).map(HeaderValue::as_bytes),
            HashBy::Cookie(name) => cookie(&self.fields, name),
        };
        let hash = match (value, self.context.client.to_canonical()) {
            (Some(value), _) => Affinity::hash_of(value),
            (None, IpAddr::V4(client)) => Affinity::hash_of(&client.octets()),
            (None, IpAddr::V6(client)) => Affinity::hash_of(&client.octets()),
        };
        Affinity { point, hash }
    }
}
