//! The health of origins for operators: the response of `GET /origins` and the metric
//! `skerry_upstream_origins`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::{Value, json};

use crate::clock::unix_ms;
use crate::serve::Plan;
use crate::upstream::{HealthClass, OriginReport, Pools, SourceReport, Why};

/// The pools by name, each with its origins in the order of the configuration.
pub(super) fn report(pools: &Pools, now: SystemTime) -> Value {
    let mut pools: Vec<_> = pools.iter().collect();
    pools.sort_by_key(|pool| pool.name().clone());
    let pools = pools.into_iter().map(|pool| {
        let origins = pool.origins();
        let origins: Vec<_> = origins.iter().map(|origin| origin_report(origin, now)).collect();
        let sources = pool.sources();
        let sources: Vec<_> = sources.iter().map(|source| source_report(source, now)).collect();
        json!({ "pool": &**pool.name(), "waiting": pool.waiting(), "origins": origins, "sources": sources })
    });
    json!({ "now_ms": unix_ms(now), "pools": pools.collect::<Vec<_>>() })
}

fn source_report(source: &SourceReport, now: SystemTime) -> Value {
    json!({
        "source": source.source,
        "origins": source.origins,
        "answered_ms": source.answered.map(|ago| past(now, ago)),
        "failure": source.failure.as_deref(),
    })
}

/// Milliseconds since 1970 of a time before now.
fn past(now: SystemTime, ago: Duration) -> u64 {
    unix_ms(now.checked_sub(ago).unwrap_or(now))
}

fn origin_report(origin: &OriginReport, now: SystemTime) -> Value {
    let why = match origin.why {
        _ if origin.is_check_failing => Some("check"),
        Some(Why::Unreachable) => Some("unreachable"),
        Some(Why::Faulty) => Some("faulty"),
        None => None,
    };
    let last_check = origin.last_check.as_ref().map(|check| {
        json!({
            "at_ms": past(now, check.age()),
            "took_ms": check.took.as_millis() as u64,
            "passed": check.failure.is_none(),
            "failure": check.failure.as_deref(),
        })
    });
    json!({
        "origin": origin.origin,
        "state": origin.class.as_str(),
        "why": why,
        "since_ms": past(now, origin.since),
        "until_ms": origin.until.map(|until| unix_ms(now + until)),
        "on_trial": origin.is_on_trial,
        "failures": origin.failures,
        "ejections": origin.ejections,
        "weight": origin.weight,
        "priority": origin.priority,
        "set": origin.set.map(|set| json!({
            "state": set.state.as_str(), "weight": set.weight, "kept": set.is_kept,
        })),
        "source": origin.source,
        "in_flight": origin.in_flight,
        "first_byte_ms": origin.first_byte.map(|time| time.as_micros() as f64 / 1000.0),
        "connections": origin.connections,
        "last_check": last_check,
    })
}

/// Collects the number of origins in each state, by pool. The pools are those of the configuration, so
/// that the number of series is bounded by it.
pub(super) struct OriginMetrics(Arc<ArcSwap<Plan>>);

impl OriginMetrics {
    pub(super) fn new(plan: Arc<ArcSwap<Plan>>) -> Self {
        Self(plan)
    }
}

impl fmt::Debug for OriginMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OriginMetrics")
    }
}

impl Collector for OriginMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (name, help) = ("upstream_origins", "Origins of each pool, by state");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for pool in self.0.load().pools.iter() {
            for (class, count) in HealthClass::ALL.iter().zip(pool.counts()) {
                let labels = [("pool", &**pool.name()), ("state", class.as_str())];
                ConstGauge::new(count as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
