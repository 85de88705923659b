//! The metrics of each peer of the region and of the shields that rules name. The number of series is bounded by that
//! of these nodes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::labels::HopFailure;
use crate::serve::{PeerCounts, PeerLink, SharedRegion};
use crate::store::Store;

/// Collects what was counted of each peer.
pub(super) struct PeerMetrics(pub(super) SharedRegion, pub(super) Store);

impl fmt::Debug for PeerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerMetrics")
    }
}

/// The name of a counter, its help, and where it is counted.
type CounterOfPeer = (&'static str, &'static str, fn(&PeerCounts) -> &AtomicU64);

const COUNTERS: [CounterOfPeer; 3] = [
    ("peer_requests", "Requests to each peer that is asked.", |counts| &counts.requests),
    ("peer_responses", "Usable responses of each peer that is asked.", |counts| &counts.responses),
    ("peer_response_bytes", "Bytes of the bodies of these responses.", |counts| &counts.bytes),
];

impl Collector for PeerMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let region = self.0.load();
        let links = || region.links.values();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, counter) in COUNTERS {
            let help = help.trim_end_matches('.');
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for link in links() {
                let labels = labels(link);
                let value = read(counter(&link.counts));
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Time until the header sections of these responses arrived, summed";
        let name = "peer_first_byte_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for link in links() {
            let seconds = read(&link.counts.first_byte_us) as f64 / 1e6;
            ConstCounter::new(seconds).encode(family.encode_family(&labels(link))?)?;
        }
        let help = "Requests to each peer that is asked without a usable response, by reason";
        let mut family =
            encoder.encode_descriptor("peer_failures", help, None, MetricType::Counter)?;
        for link in links() {
            for (reason, count) in HopFailure::WORDS.iter().zip(&link.counts.failures) {
                let [peer, region] = labels(link);
                let labels = [peer, ("reason", *reason), region];
                ConstCounter::new(read(count)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Whether each peer that is asked answers, as far as is known";
        let mut family = encoder.encode_descriptor("peer_up", help, None, MetricType::Gauge)?;
        for link in links() {
            ConstGauge::new(i64::from(link.is_up()))
                .encode(family.encode_family(&labels(link))?)?;
        }
        let help = "Measured round trip to each peer that is asked, smoothed; 0: not measured";
        let name = "peer_round_trip_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for link in links() {
            let round_trip = link.round_trip().unwrap_or_default().as_secs_f64();
            ConstGauge::new(round_trip).encode(family.encode_family(&labels(link))?)?;
        }
        let help = "Purges that each peer has not taken yet over the peer link";
        let mut family =
            encoder.encode_descriptor("peer_purges_untaken", help, None, MetricType::Gauge)?;
        for (peer, count) in self.1.purges().untaken() {
            let labels = [("peer", &*peer)];
            ConstGauge::new(count as i64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn labels(link: &PeerLink) -> [(&str, &str); 2] {
    [("peer", &*link.name), ("region", &*link.region)]
}
