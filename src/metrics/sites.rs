//! Counters by site: requests, statuses, bytes and hits. As for all metrics, each worker has cells of its own,
//! which it alone writes.
//!
//! A site keeps its number and its counters across reloads, because counters may only grow. The sites above
//! [`SITES_MAX`] share one set of counters, so that the number of series is bounded.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::STATUS_CLASSES;

/// Sites with counters of their own.
pub(crate) const SITES_MAX: usize = 1000;

/// The name of all further sites together.
const OTHERS: &str = "(others)";

/// The cells of a site: responses by class of status, then these.
const CLASSES: usize = 5;
const BODY_BYTES: usize = CLASSES;
const HITS: usize = CLASSES + 1;
const HIT_BYTES: usize = CLASSES + 2;
const CELLS: usize = CLASSES + 3;

/// The counters of one site, summed over all workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SiteTotals {
    /// The name of the site, or [`OTHERS`].
    pub site: Arc<str>,
    /// Responses by class of status, in the order of [`STATUS_CLASSES`].
    pub classes: [u64; CLASSES],
    /// Responses from the cache.
    pub hits: u64,
    /// Body bytes.
    pub bytes: u64,
    /// Body bytes of hits.
    pub hit_bytes: u64,
}

impl SiteTotals {
    /// All responses.
    pub(crate) fn requests(&self) -> u64 {
        self.classes.iter().sum()
    }
}

/// The counters of all sites.
#[derive(Debug)]
pub(super) struct SiteCounters {
    /// By number.
    names: Mutex<Vec<Arc<str>>>,
    /// For each slot the cells of [`SITES_MAX`] sites and of the others.
    slots: Vec<Box<[AtomicU64]>>,
}

impl SiteCounters {
    pub(super) fn new(slots: usize) -> Arc<Self> {
        let cells = || (0..(SITES_MAX + 1) * CELLS).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { names: Mutex::default(), slots: (0..slots).map(|_| cells()).collect() })
    }

    /// The number of the site with this name, the same for each call.
    pub(super) fn number(&self, name: &str) -> u32 {
        let mut names = self.lock();
        let known = names.iter().position(|known| **known == *name);
        let number = known.unwrap_or_else(|| {
            if names.len() < SITES_MAX {
                names.push(name.into());
                names.len() - 1
            } else {
                SITES_MAX
            }
        });
        number as u32
    }

    /// Counts a response by its status class (0 to 4).
    pub(super) fn count(&self, slot: usize, site: u32, class: usize, is_hit: bool) {
        let cells = self.cells(slot, site);
        add(&cells[class], 1);
        if is_hit {
            add(&cells[HITS], 1);
        }
    }

    /// Counts bytes of a body.
    pub(super) fn add_bytes(&self, slot: usize, site: u32, bytes: u64, is_hit: bool) {
        let cells = self.cells(slot, site);
        add(&cells[BODY_BYTES], bytes);
        if is_hit {
            add(&cells[HIT_BYTES], bytes);
        }
    }

    fn cells(&self, slot: usize, site: u32) -> &[AtomicU64; CELLS] {
        let first = site as usize * CELLS;
        self.slots[slot][first..first + CELLS].try_into().expect("as many cells")
    }

    /// The totals of each site since the start; those of all further sites last.
    pub(super) fn totals(&self) -> Vec<SiteTotals> {
        let mut names = self.lock().clone();
        if names.len() == SITES_MAX {
            names.push(OTHERS.into());
        }
        let of = |(site, name)| SiteTotals {
            site: name,
            classes: std::array::from_fn(|class| self.sum(site, class)),
            hits: self.sum(site, HITS),
            bytes: self.sum(site, BODY_BYTES),
            hit_bytes: self.sum(site, HIT_BYTES),
        };
        names.into_iter().enumerate().map(of).collect()
    }

    fn sum(&self, site: usize, cell: usize) -> u64 {
        self.slots.iter().map(|slot| slot[site * CELLS + cell].load(Ordering::Relaxed)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<str>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cheaper than an atomic addition: only the worker of a slot writes its cells.
fn add(cell: &AtomicU64, amount: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// Collects the counters.
#[derive(Debug)]
pub(super) struct SiteMetrics(pub Arc<SiteCounters>);

impl Collector for SiteMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sites = self.0.totals();
        let mut family = |name, help, value: &dyn Fn(&SiteTotals) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for site in &sites {
                let labels = [("site", &*site.site)];
                ConstCounter::new(value(site)).encode(family.encode_family(&labels)?)?;
            }
            Ok(())
        };
        family("site_requests", "Responses of a site.", &SiteTotals::requests)?;
        let from_cache = "Responses of a site from the cache, without its origin.";
        family("site_hits", from_cache, &|site| site.hits)?;
        let bytes = "Body bytes of responses of a site.";
        family("site_response_body_bytes", bytes, &|site| site.bytes)?;
        let hit_bytes = "Body bytes of a site that came from the cache.";
        family("site_hit_body_bytes", hit_bytes, &|site| site.hit_bytes)?;
        let help = "Responses of a site, by class of status.";
        let mut family =
            encoder.encode_descriptor("site_responses", help, None, MetricType::Counter)?;
        for site in &sites {
            for (count, word) in site.classes.iter().zip(STATUS_CLASSES) {
                let labels = [("site", &*site.site), ("class", word)];
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn counters_of_a_site_are_summed_over_workers_and_outlive_its_plan() {
        let metrics = Metrics::new(2);
        let number = metrics.background().site_number("www");
        for worker in [0, 1] {
            let recorder = metrics.worker(worker);
            recorder.count_site(number, 1, true);
            recorder.add_site_bytes(number, 10, true);
            recorder.count_site(number, 4, false);
        }
        assert_eq!(metrics.background().site_number("www"), number, "as in a reload");
        let text = metrics.encode();
        for line in [
            "skerry_site_requests_total{site=\"www\"} 4\n",
            "skerry_site_hits_total{site=\"www\"} 2\n",
            "skerry_site_response_body_bytes_total{site=\"www\"} 20\n",
            "skerry_site_responses_total{site=\"www\",class=\"5xx\"} 2\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn the_number_of_series_is_bounded_and_a_scrape_is_fast() {
        let metrics = Metrics::new(2);
        let recorder = metrics.worker(0);
        for site in 0..2 * SITES_MAX {
            let number = recorder.site_number(&format!("site-{site}.example.org"));
            recorder.count_site(number, 1, true);
        }
        let clock = crate::clock::Clock::system();
        let began = clock.instant();
        let text = metrics.encode();
        let took = clock.instant() - began;
        let of_site = |name: &str| {
            text.lines().filter(|line| line.contains(&format!("{{site=\"{name}\""))).count()
        };
        assert_eq!(of_site("site-0.example.org"), 9, "60 are allowed");
        assert_eq!(
            text.lines().filter(|line| line.contains("{site=")).count(),
            9 * (SITES_MAX + 1)
        );
        assert!(text.contains("skerry_site_requests_total{site=\"(others)\"} 1000\n"));
        // 50 ms in a release build; a debug build on a busy machine is slower.
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
    }
}
