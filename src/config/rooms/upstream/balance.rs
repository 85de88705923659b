//! Reads the options of `[pools.NAME]` that say which origin gets a request.

use toml::Spanned;
use toml::de::DeValue;

use crate::config::names::is_token;
use crate::config::reader::{Reader, Section};
use crate::config::values::{Value, text};
use crate::upstream::{Balance, HashBy, MemberSource, Origin, Policy, PoolSettings, SourceKind};

pub(super) fn read_policy(
    section: &Section<'_>,
    pool: &mut PoolSettings,
    origins: &[Origin],
    sources: &[MemberSource],
) {
    let words = [Policy::Failover, Policy::Nearest, Policy::NearestToNode]
        .map(|policy| (policy.as_str(), policy));
    section.choice("policy", &mut pool.policy, &words);
    let policy = pool.policy.as_str();
    let is_by_distance = pool.policy != Policy::Failover;
    let may_have_place = |source: &MemberSource| {
        let is_document = matches!(source.kind, SourceKind::File { .. } | SourceKind::Http { .. });
        is_document || source.defaults.coordinates.is_some()
    };
    let has_places = origins.iter().any(|origin| origin.coordinates.is_some())
        || sources.iter().any(may_have_place);
    if is_by_distance && !has_places {
        let message = format!(
            "{policy:?} needs the coordinates of origins, and none has them: set them, such as \
             origins = [{{ url = \"https://eu.example\", latitude = 50.1, longitude = 8.7 }}]"
        );
        section.mistake("policy", message);
    } else if pool.policy == Policy::NearestToNode && pool.node.is_none() {
        let message = format!(
            "{policy:?} needs the coordinates of this node: set \"latitude\" and \"longitude\" in [node]"
        );
        section.mistake("policy", message);
    }
    for (at, origin) in origins.iter().enumerate() {
        let other = origins[..at].iter().find(|other| other.is_same_server(origin));
        let is_elsewhere = |other: &Origin| {
            other.priority != origin.priority || other.coordinates != origin.coordinates
        };
        if other.is_some_and(is_elsewhere) {
            let message = format!(
                "{} is listed twice, with different priorities or coordinates: list it once",
                origin.url()
            );
            section.mistake("origins", message);
        }
    }
}

pub(super) fn read_balance(section: &Section<'_>, pool: &mut PoolSettings) {
    section.choice(
        "balance",
        &mut pool.balance,
        &[
            ("round-robin", Balance::RoundRobin),
            ("least-connections", Balance::LeastConnections),
            ("peak-ewma", Balance::PeakEwma),
            ("hash", Balance::Hash),
        ],
    );
    let mut hash_by = HashKey(pool.hash_by.clone());
    section.read("hash_by", &mut hash_by);
    pool.hash_by = hash_by.0;
    if pool.hash_by != HashBy::Url {
        // Visitors must stay at their origin, which may have their session.
        pool.hash_balance_factor = 0;
    }
    section.read_within("hash_balance_factor", &mut pool.hash_balance_factor, 0..=1000);
    if (1..=100).contains(&pool.hash_balance_factor) {
        let message = "expected 0 (no bound) or 101 to 1000 percent of the mean: at 100 or less, \
                       not all requests can have an origin";
        section.mistake("hash_balance_factor", message);
    }
    for name in ["hash_by", "hash_balance_factor"] {
        if section.has(name) && pool.balance != Balance::Hash {
            let message = format!(
                "{name:?} has no effect without balance = \"hash\": set it, or remove {name:?}"
            );
            section.mistake(name, message);
        }
    }
}

/// `"url"`, `"client"`, `"header NAME"` or `"cookie NAME"`.
#[derive(Debug)]
struct HashKey(HashBy);

impl Value for HashKey {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "\"url\", \"client\", \"header NAME\" or \"cookie NAME\"";
        text(value, reader, expected, |text| match (text, text.split_once(' ')) {
            ("url", _) => Some(Self(HashBy::Url)),
            ("client", _) => Some(Self(HashBy::Client)),
            (_, Some(("header", name))) => name.parse().ok().map(HashBy::Header).map(Self),
            (_, Some(("cookie", name))) => {
                is_token(name).then(|| Self(HashBy::Cookie(name.into())))
            }
            _ => None,
        })
    }
}
