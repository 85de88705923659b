//! The state of a node for the dashboard: `GET /overview` and `GET /certificates`, and the samples of its history.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::alarms::{self, Alarm};
use super::shared::Shared;
use crate::clock::unix_ms;
use crate::control::node_actions::{NodeActions, OverviewQuery};
use crate::listen::{CertificateReport, TlsState};
use crate::metrics::{History, Interval};
use crate::respond::ErrorExample;
use crate::upstream::HealthClass;

impl Shared {
    /// Adds a sample to the history once in [`History::PERIOD`], as long as the node runs.
    pub(super) async fn record_history(self: Arc<Self>) {
        loop {
            tokio::time::sleep(History::PERIOD).await;
            self.history.sample(unix_ms(self.clock.now()));
        }
    }

    /// The response of `GET /overview`.
    pub(super) fn overview_report(&self, query: OverviewQuery) -> Value {
        let now_ms = unix_ms(self.clock.now());
        let config = self.config().node.clone();
        let mut report = json!({
            "node": config.name,
            "region": config.region,
            "version": env!("CARGO_PKG_VERSION"),
            "now_ms": now_ms,
            "started_ms": self.started_ms,
            "not_ready": self.not_ready(),
            "alarms": self.alarms().iter().map(alarm_as_json).collect::<Vec<_>>(),
        });
        if query.is_brief {
            return report;
        }
        let intervals = self.history.since(query.since_ms);
        let errors = self.recent_errors.list();
        report["period_ms"] = json!(History::PERIOD.as_millis() as u64);
        report["columns"] = json!(COLUMNS);
        report["intervals"] = intervals.iter().map(|interval| json!(row(interval))).collect();
        report["now"] = json!(row(&self.history.last(NOW, now_ms)));
        report["reasons"] = json!(self.history.reasons(now_ms));
        report["errors"] = errors.iter().map(error_as_json).collect();
        if query.top > 0 {
            report["top"] = json!(self.popular.top(query.top));
        }
        report
    }

    /// The response of `GET /certificates`.
    pub(super) fn certificate_report(&self) -> Value {
        let reports = self.certificates_in_use();
        let certificates = reports.iter().map(|certificate| {
            json!({
                "file": certificate.file,
                "names": certificate.names,
                "until_ms": certificate.until.map(unix_ms),
                "self_signed": certificate.is_self_signed,
            })
        });
        let now_ms = unix_ms(self.clock.now());
        json!({ "now_ms": now_ms, "certificates": certificates.collect::<Vec<_>>() })
    }

    /// The certificates of the listeners, and that of the peer link.
    fn certificates_in_use(&self) -> Vec<CertificateReport> {
        let mut reports = self.tls.as_deref().map(TlsState::report).unwrap_or_default();
        reports.extend(self.peer_tls.as_deref().map(|tls| CertificateReport {
            file: tls.certificate_file(),
            names: vec![self.bus.name().to_owned()],
            until: tls.current().until,
            is_self_signed: false,
        }));
        reports
    }

    /// The most urgent first.
    fn alarms(&self) -> Vec<Alarm> {
        let now = self.clock.now();
        let minute = self.history.last(Duration::from_secs(60), unix_ms(now));
        let certificates = self.certificates_in_use();
        let plan = self.plan.load();
        let pools = plan.pools.iter().filter_map(|pool| {
            let counts = HealthClass::ALL.iter().zip(pool.counts());
            let (mut all, mut out) = (0, 0);
            for (class, count) in counts {
                all += count;
                out += if class.is_usable() { 0 } else { count };
            }
            alarms::of_pool(pool.name(), all, out)
        });
        let mut alarms: Vec<Alarm> = alarms::of_readiness(self.not_ready()).into_iter().collect();
        alarms.extend(pools);
        let slow = plan.pools.iter().filter_map(|pool| {
            let origins = pool.slow_origins(alarms::SLOW_ORIGIN);
            alarms::of_slow_origins(pool.name(), &origins)
        });
        alarms.extend(slow);
        let hour = self.history.last(Duration::from_secs(3600), unix_ms(now));
        alarms.extend(alarms::of_requests(&minute));
        alarms.extend(alarms::of_hit_ratio(&minute, &hour));
        alarms.extend(alarms::of_bus(self.bus.report()));
        alarms.extend(alarms::of_overdue_purge(self.bus.overdue()));
        alarms.extend(self.store.stat().directories.iter().filter_map(alarms::of_directory));
        alarms.extend(certificates.iter().filter_map(|it| alarms::of_certificate(it, now)));
        alarms.sort_by_key(|alarm| !alarm.is_urgent);
        alarms.truncate(ALARMS_MAX);
        alarms
    }
}

fn alarm_as_json(alarm: &Alarm) -> Value {
    json!({ "urgent": alarm.is_urgent, "cause": alarm.cause, "action": alarm.action })
}

fn error_as_json(error: &ErrorExample) -> Value {
    json!({
        "at_ms": error.at_ms,
        "id": error.id,
        "status": error.status,
        "request": error.request,
        "failure": error.failure,
        "origin": error.origin,
    })
}

/// The values of [`COLUMNS`].
fn row(interval: &Interval) -> [u64; COLUMNS.len()] {
    let [p50, p90, p99] = interval.first_byte_us;
    [
        interval.end_ms,
        interval.length_ms,
        interval.requests,
        interval.lookups,
        interval.hits,
        interval.bytes,
        interval.forwarded_bytes,
        interval.client_errors,
        interval.server_errors,
        interval.upstream_requests,
        interval.upstream_failures,
        p50,
        p90,
        p99,
    ]
}

/// The names of the values of an interval, so that an hour of them is short.
const COLUMNS: [&str; 14] = [
    "end_ms",
    "length_ms",
    "requests",
    "lookups",
    "hits",
    "bytes",
    "forwarded_bytes",
    "client_errors",
    "server_errors",
    "upstream_requests",
    "upstream_failures",
    "p50_us",
    "p90_us",
    "p99_us",
];

/// The time that counts as now: from the sample that is at least this old.
const NOW: Duration = Duration::from_secs(10);
/// Alarms in one answer: a thousand expired certificates are one problem.
const ALARMS_MAX: usize = 20;
