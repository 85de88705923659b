//! Counters by rule: the requests that it matched. As for sites, each worker has cells of its own, which it alone
//! writes, and a rule keeps its number across reloads.
//!
//! The number of series is bounded: the rules of a site above [`RULES_OF_SITE_MAX`] share one, and so do all rules
//! above [`RULES_MAX`].

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// Rules of one site with a counter of their own.
pub(crate) const RULES_OF_SITE_MAX: usize = 48;
/// Rules of all sites with a counter of their own: 40 KiB for each worker.
pub(crate) const RULES_MAX: usize = 5_000;

/// The name of all further rules, and of the sites that have only such.
const OTHERS: &str = "(others)";

type RuleName = (Arc<str>, Arc<str>);

/// The counters of all rules.
#[derive(Debug)]
pub(super) struct RuleCounters {
    known: Mutex<KnownRules>,
    /// For each slot a cell of each rule, and one of all others.
    slots: Vec<Box<[AtomicU64]>>,
}

/// The rules with a number, by name and by number.
#[derive(Debug, Default)]
struct KnownRules {
    numbers: HashMap<RuleName, u32>,
    names: Vec<RuleName>,
    of_site: HashMap<Arc<str>, usize>,
}

impl RuleCounters {
    pub(super) fn new(slots: usize) -> Arc<Self> {
        let cells = || (0..=RULES_MAX).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { known: Mutex::default(), slots: (0..slots).map(|_| cells()).collect() })
    }

    /// The number of a rule, the same for each call.
    pub(super) fn number(&self, site: &Arc<str>, rule: &Arc<str>) -> u32 {
        let mut known = self.lock();
        let name = (site.clone(), rule.clone());
        if let Some(number) = known.numbers.get(&name) {
            return *number;
        }
        let of_site = known.of_site.entry(site.clone()).or_default();
        *of_site += 1;
        let name = if *of_site > RULES_OF_SITE_MAX { (site.clone(), OTHERS.into()) } else { name };
        known.number(name)
    }

    /// Counts a request of a client that a rule matched.
    pub(super) fn count(&self, slot: usize, rule: u32) {
        let cell = &self.slots[slot][rule as usize];
        // Cheaper than an atomic addition: only the worker of a slot writes its cells.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The requests since the start that a rule matched. `None`: it has no counter of its own.
    pub(super) fn matches(&self, site: &str, rule: &str) -> Option<u64> {
        let number = self.lock().numbers.get(&(site.into(), rule.into())).copied()?;
        Some(self.sum(number as usize))
    }

    fn sum(&self, number: usize) -> u64 {
        self.slots.iter().map(|slot| slot[number].load(Ordering::Relaxed)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, KnownRules> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownRules {
    fn number(&mut self, name: RuleName) -> u32 {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        if self.names.len() == RULES_MAX {
            return RULES_MAX as u32;
        }
        let number = self.names.len() as u32;
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }
}

/// Collects the counters.
#[derive(Debug)]
pub(super) struct RuleMetrics(pub Arc<RuleCounters>);

impl Collector for RuleMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut names = self.0.lock().names.clone();
        if names.len() == RULES_MAX {
            names.push((OTHERS.into(), OTHERS.into()));
        }
        let help = "Requests of clients that a rule matched, so that its action applied.";
        let mut family =
            encoder.encode_descriptor("rule_matches", help, None, MetricType::Counter)?;
        for (number, (site, rule)) in names.iter().enumerate() {
            let labels = [("site", &**site), ("rule", &**rule)];
            ConstCounter::new(self.0.sum(number)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_rule_keeps_its_number_and_its_count_across_reloads() {
        let metrics = Metrics::new(2);
        let (site, rule) = ("www".into(), "api".into());
        let number = metrics.background().rule_number(&site, &rule);
        for worker in [0, 1] {
            metrics.worker(worker).count_rule(number);
        }
        assert_eq!(metrics.background().rule_number(&site, &rule), number, "as in a reload");
        assert_eq!(metrics.rule_matches("www", "api"), Some(2));
        assert_eq!(metrics.rule_matches("www", "old"), None);
        let text = metrics.encode();
        assert!(
            text.contains("skerry_rule_matches_total{site=\"www\",rule=\"api\"} 2\n"),
            "{text}"
        );
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = Metrics::new(1);
        let recorder = metrics.worker(0);
        let number = |site: usize, rule: usize| {
            recorder.rule_number(&format!("s{site}").into(), &format!("r{rule}").into())
        };
        for rule in 0..RULES_OF_SITE_MAX + 9 {
            recorder.count_rule(number(0, rule));
        }
        for site in 1..RULES_MAX {
            recorder.count_rule(number(site, 0));
        }
        let text = metrics.encode();
        let series: Vec<&str> =
            text.lines().filter(|line| line.starts_with("skerry_rule_matches_total{")).collect();
        assert_eq!(series.len(), RULES_MAX + 1);
        let of_first = series.iter().filter(|line| line.contains("{site=\"s0\"")).count();
        assert_eq!(of_first, RULES_OF_SITE_MAX + 1);
        let has = |line: &str| assert!(series.contains(&line), "{line}");
        has("skerry_rule_matches_total{site=\"s0\",rule=\"(others)\"} 9");
        has("skerry_rule_matches_total{site=\"(others)\",rule=\"(others)\"} 48");
    }
}
