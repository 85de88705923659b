//! Counts what the name server does: in plain numbers for a batch, then in the node's metrics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::labels::{QueryType, Rcode};
use super::plan::{DnsPlan, PlanCounters};
use super::respond::Response;
use super::settings::EdgeState;
use crate::metrics::{Metric, Recorder};

/// The counts of one batch.
#[derive(Debug)]
pub(super) struct Counts {
    types: [u64; QueryType::WORDS.len()],
    rcodes: [u64; Rcode::WORDS.len()],
    truncated: u64,
    not_ready: u64,
    /// Responses above the rate: dropped, truncated.
    pub limited: [u64; 2],
    /// Queries that the kernel has dropped.
    pub queue_full: u64,
    /// Datagrams that are longer than a query.
    pub too_long: u64,
    /// Datagrams without a response.
    pub not_queries: u64,
    /// Responses that the kernel has not taken.
    pub not_sent: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            types: [0; QueryType::WORDS.len()],
            rcodes: [0; Rcode::WORDS.len()],
            truncated: 0,
            not_ready: 0,
            limited: [0; 2],
            queue_full: 0,
            too_long: 0,
            not_queries: 0,
            not_sent: 0,
        }
    }
}

impl Counts {
    /// Counts a response that is sent.
    #[inline]
    pub(super) fn response(&mut self, plan: &DnsPlan, response: &Response) {
        self.types[QueryType(response.kind).index()] += 1;
        self.rcodes[response.rcode as usize] += 1;
        self.truncated += u64::from(response.is_truncated);
        if let Some(zone) = response.zone {
            plan.zone_counts[usize::from(zone)].fetch_add(1, Ordering::Relaxed);
        }
        if let Some((edge, region)) = response.edge {
            plan.region_counts[edge as usize][region].fetch_add(1, Ordering::Relaxed);
            let state = plan.edges[edge as usize].state_for(response.kind);
            self.not_ready += u64::from(state != Some(EdgeState::Ready));
        }
    }

    /// Adds the counts to the metrics. `elapsed`: from the receipt of the batch until its responses were sent.
    pub(super) fn flush(&self, recorder: &Recorder, elapsed: Duration) {
        let labelled = [
            (Metric::DnsServerQueries, &self.types[..]),
            (Metric::DnsServerResponses, &self.rcodes),
            (Metric::DnsServerLimited, &self.limited),
            (
                Metric::DnsServerDropped,
                &[self.queue_full, self.too_long, self.not_queries, self.not_sent],
            ),
        ];
        for (metric, counts) in labelled {
            for (label, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                recorder.add_labelled(metric, label, *count);
            }
        }
        for (metric, count) in [
            (Metric::DnsServerTruncated, self.truncated),
            (Metric::DnsServerNotReady, self.not_ready),
        ] {
            if count > 0 {
                recorder.add(metric, count);
            }
        }
        let responses = self.rcodes.iter().sum();
        recorder.observe_many(Metric::DnsServerSeconds, elapsed, responses);
    }
}

/// Collects the responses by zone and by region. Their number is bounded by the configuration.
pub(crate) struct DnsMetrics(pub(super) Arc<PlanCounters>);

impl fmt::Debug for DnsMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DnsMetrics")
    }
}

impl Collector for DnsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, label, values) in [
            (
                "dns_server_zone_responses",
                "Responses of the name server, by zone",
                "zone",
                self.0.zones(),
            ),
            (
                "dns_server_region_answers",
                "Answers for edge names, by region",
                "region",
                self.0.regions(),
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (value, count) in values {
                let labels = [(label, &*value)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
