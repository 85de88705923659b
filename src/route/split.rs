//! Splits the visitors of a rule between pools by weight, for A/B tests and canary releases.
//!
//! Each visitor is in one *group*, which has the name of its pool. The group is part of the cache key, so
//! groups never share a stored response. The choice is a weighted rendezvous over a number that stands
//! for the visitor: it is the same on each node, and a changed weight moves only as many visitors as it must.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::cache;
use crate::client_network::ClientNetwork;
use crate::labels::SplitChoice;
use crate::planted::{self, Bug};
use crate::rendezvous;
use crate::upstream::Affinity;

/// The groups of a rule's visitors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Split {
    /// In any order; at most [`Split::GROUPS_MAX`], and at least one with a weight above 0.
    pub groups: Vec<SplitGroup>,
    /// The mark that keeps a visitor in a group.
    pub by: SplitBy,
    /// The cookie for [`SplitBy::Cookie`].
    pub cookie: GroupCookie,
    /// Requests that go to a group whatever the weights. The first one that matches applies.
    pub force: Vec<Forced>,
}

/// One group of visitors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SplitGroup {
    /// The pool that serves it, which is also the group's name.
    pub pool: Arc<str>,
    /// The share of the group relative to the others. A group of weight 0 has forced requests only.
    pub weight: u16,
}

/// The mark that keeps a visitor in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SplitBy {
    /// A cookie of this node with the group's name. Visitors without one are drawn by lot.
    #[default]
    Cookie,
    /// The hash of the client's address (IPv6: of its /64).
    Client,
}

/// The cookie that keeps a visitor in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupCookie {
    /// A token (RFC 6265 §4.1.1).
    pub name: Box<str>,
    /// How long browsers keep it; zero: until they are closed.
    pub max_age: Duration,
}

/// Requests with a header field or a cookie go to this group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Forced {
    /// The field or cookie.
    pub by: ForcedBy,
    /// The value that it must have; `None`: any.
    pub value: Option<Box<str>>,
    /// One of the groups.
    pub pool: Arc<str>,
}

/// A part of a request that names its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ForcedBy {
    /// A header field.
    Header(HeaderName),
    /// A cookie.
    Cookie(Box<str>),
}

/// The facts of a request that its group depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visitor<'a> {
    /// The request fields after the gate.
    pub headers: &'a HeaderMap,
    /// The client's address.
    pub client: IpAddr,
    /// A random number.
    pub lot: u64,
}

impl Default for Split {
    fn default() -> Self {
        let cookie =
            GroupCookie { name: "skerry_group".into(), max_age: Duration::from_secs(30 * 86_400) };
        Self { groups: Vec::new(), by: SplitBy::default(), cookie, force: Vec::new() }
    }
}

impl Split {
    /// Maximum number of groups.
    pub(crate) const GROUPS_MAX: usize = 16;

    /// Copies the names, so that their reference counts are not shared between CPU cores.
    pub(super) fn own_names(&mut self) {
        let groups = self.groups.iter_mut().map(|group| &mut group.pool);
        let forced = self.force.iter_mut().map(|forced| &mut forced.pool);
        groups.chain(forced).for_each(|name| *name = Arc::from(&**name));
    }

    /// The group of a request that names it by a field or a cookie.
    pub(crate) fn forced(&self, headers: &HeaderMap) -> Option<&Arc<str>> {
        self.force.iter().find(|forced| forced.matches(headers)).map(|forced| &forced.pool)
    }

    /// The group of any other request, and how it was found.
    pub(crate) fn choose(&self, visitor: &Visitor<'_>) -> (&Arc<str>, SplitChoice) {
        if self.by == SplitBy::Client {
            let client = Affinity::hash_of(ClientNetwork::of(visitor.client).bytes());
            return (self.by_lot(client), SplitChoice::Client);
        }
        let known = cache::cookie(visitor.headers, &self.cookie.name);
        let is_known = |group: &&SplitGroup| {
            group.weight > 0 && known.is_some_and(|name| *name == *group.pool.as_bytes())
        };
        match self.groups.iter().find(is_known) {
            Some(group) if !planted::each(Bug::GroupsRedrawn, 10) => {
                (&group.pool, SplitChoice::Cookie)
            }
            _ => (self.by_lot(visitor.lot), SplitChoice::Lot),
        }
    }

    /// The group with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<str>> {
        self.groups.iter().map(|group| &group.pool).find(|pool| &***pool == name)
    }

    /// The group with the largest weight, for requests of the node itself.
    pub(crate) fn largest(&self) -> &Arc<str> {
        let groups = self.groups.iter().rev();
        &groups.max_by_key(|group| group.weight).expect(NOT_EMPTY).pool
    }

    fn by_lot(&self, number: u64) -> &Arc<str> {
        let score = |group: &SplitGroup| {
            rendezvous::score(number, Affinity::hash_of(group.pool.as_bytes()), group.weight)
        };
        let groups = self.groups.iter().filter(|group| group.weight > 0);
        let chosen = groups.max_by(|one, other| score(one).total_cmp(&score(other)));
        &chosen.expect(NOT_EMPTY).pool
    }
}

impl Forced {
    fn matches(&self, headers: &HeaderMap) -> bool {
        let found = match &self.by {
            ForcedBy::Header(name) => headers.get(name).map(HeaderValue::as_bytes),
            ForcedBy::Cookie(name) => cache::cookie(headers, name),
        };
        let is_wanted =
            |found: &[u8]| self.value.as_ref().is_none_or(|wanted| *found == *wanted.as_bytes());
        found.is_some_and(is_wanted)
    }
}

const NOT_EMPTY: &str = "a split has a group with a weight";

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use http::header::COOKIE;

    use super::*;

    fn split(groups: &[(&str, u16)]) -> Split {
        let group =
            |(pool, weight): &(&str, u16)| SplitGroup { pool: (*pool).into(), weight: *weight };
        Split { groups: groups.iter().map(group).collect(), ..Split::default() }
    }

    fn visitor(headers: &HeaderMap, lot: u64) -> Visitor<'_> {
        Visitor {
            headers,
            client: IpAddr::from([192, 0, 2, 1]),
            lot: Affinity::hash_of(&lot.to_le_bytes()),
        }
    }

    fn client(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 | number).to_be_bytes())
    }

    fn with_cookie(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, value.parse().expect("a value"))])
    }

    /// The shares of `count` visitors differ by less than 2 % of all from those of the weights.
    #[track_caller]
    fn check_shares<'a>(groups: &[(&str, u16)], chosen: impl Iterator<Item = &'a Arc<str>>) {
        let mut counts: HashMap<&str, u32> = HashMap::new();
        chosen.for_each(|pool| *counts.entry(pool).or_default() += 1);
        let all: u32 = counts.values().sum();
        let weights: u32 = groups.iter().map(|(_, weight)| u32::from(*weight)).sum();
        for (pool, weight) in groups {
            let share = f64::from(counts.get(pool).copied().unwrap_or_default()) / f64::from(all);
            let expected = f64::from(*weight) / f64::from(weights);
            println!("{pool}: {share:.4}, expected {expected:.4}");
            assert!((share - expected).abs() < 0.02);
        }
    }

    #[test]
    fn shares_of_new_visitors_and_of_clients_follow_the_weights() {
        let none = HeaderMap::new();
        for groups in [
            &[("main", 95), ("canary", 5)][..],
            &[("a", 1), ("b", 1), ("c", 2)],
            &[("main", 1), ("off", 0)],
        ] {
            let by_cookie = split(groups);
            let lots = (0..100_000).map(|lot| by_cookie.choose(&visitor(&none, lot)).0);
            check_shares(groups, lots);
            let by_client = Split { by: SplitBy::Client, ..split(groups) };
            let clients = (0..100_000).map(|number| {
                let visitor = Visitor { client: client(number), ..visitor(&none, 0) };
                by_client.choose(&visitor).0
            });
            check_shares(groups, clients);
        }
    }

    #[test]
    fn a_visitor_with_a_cookie_stays_in_its_group() {
        let split = split(&[("main", 95), ("canary", 5)]);
        let check = |cookie: &str, expected: Option<&str>| {
            let headers = with_cookie(cookie);
            for lot in 0..1000 {
                let (pool, choice) = split.choose(&visitor(&headers, lot));
                match expected {
                    Some(expected) => {
                        assert_eq!((&**pool, choice), (expected, SplitChoice::Cookie))
                    }
                    None => assert_eq!(choice, SplitChoice::Lot),
                }
            }
        };
        check("a=b; skerry_group=canary; c=d", Some("canary"));
        check("skerry_group=main", Some("main"));
        check("skerry_group=beta", None);
        check("skerry_group=", None);
        check("Skerry_group=canary", None);
        check("x=skerry_group=canary", None);
    }

    #[test]
    fn a_group_without_weight_loses_its_visitors_but_not_its_forced_requests() {
        let force = vec![
            Forced {
                by: ForcedBy::Header(HeaderName::from_static("x-canary")),
                value: Some("1".into()),
                pool: "canary".into(),
            },
            Forced { by: ForcedBy::Cookie("beta".into()), value: None, pool: "canary".into() },
        ];
        let split = Split { force, ..split(&[("main", 1), ("canary", 0)]) };
        let headers = with_cookie("skerry_group=canary");
        assert_eq!(&**split.choose(&visitor(&headers, 1)).0, "main");
        let check = |name: &'static str, value: &str, expected: Option<&str>| {
            let name = HeaderName::from_static(name);
            let headers = HeaderMap::from_iter([(name, value.parse().expect("a value"))]);
            assert_eq!(split.forced(&headers).map(|pool| &**pool), expected, "{headers:?}");
        };
        check("x-canary", "1", Some("canary"));
        check("x-canary", "0", None);
        check("cookie", "beta=", Some("canary"));
        check("cookie", "alpha=1", None);
    }

    #[test]
    fn a_changed_weight_moves_only_the_clients_that_it_must() {
        let none = HeaderMap::new();
        let by_client = |groups| Split { by: SplitBy::Client, ..split(groups) };
        let (before, after) =
            (by_client(&[("main", 95), ("canary", 5)]), by_client(&[("main", 80), ("canary", 20)]));
        let mut moved = 0;
        for number in 0..20_000 {
            let visitor = Visitor { client: client(number), ..visitor(&none, 0) };
            match (&**before.choose(&visitor).0, &**after.choose(&visitor).0) {
                ("canary", "main") => panic!("client {number} left the group that grew"),
                ("main", "canary") => moved += 1,
                _ => {}
            }
        }
        assert!((2600..3400).contains(&moved), "{moved} of 20,000, expected 15 %");
    }

    #[test]
    fn a_host_keeps_its_group_when_it_changes_its_address_in_a_network_of_ipv6() {
        let none = HeaderMap::new();
        let split = Split { by: SplitBy::Client, ..split(&[("a", 1), ("b", 1)]) };
        let group = |client: &str| {
            let client = client.parse().expect("an address");
            split.choose(&Visitor { client, ..visitor(&none, 0) }).0.clone()
        };
        for network in 0..100 {
            let base = format!("2001:db8:0:{network:x}");
            assert_eq!(group(&format!("{base}::1")), group(&format!("{base}:a:b:c:d")));
        }
        assert_eq!(group("::ffff:192.0.2.7"), group("192.0.2.7"));
    }
}
