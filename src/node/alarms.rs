//! Faults that a node has now, each with its cause and remedy: the banner of the dashboard.
//!
//! The rules are pure functions of reports; `overview` collects the reports.

use std::time::{Duration, SystemTime};

use crate::bus::{BusReport, OverduePurge};
use crate::listen::CertificateReport;
use crate::metrics::Interval;
use crate::store::{DirectoryStat, Service};

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    /// Clients are affected, or soon will be.
    pub is_urgent: bool,
    /// One sentence without a full stop.
    pub cause: String,
    /// The remedy, or the consequence.
    pub action: &'static str,
}

fn urgent(cause: String, action: &'static str) -> Alarm {
    Alarm { is_urgent: true, cause, action }
}

fn notable(cause: String, action: &'static str) -> Alarm {
    Alarm { is_urgent: false, cause, action }
}

/// The node reports itself as not ready for this reason.
pub(super) fn of_readiness(not_ready: Option<&'static str>) -> Option<Alarm> {
    let why = not_ready?;
    let action = match why {
        "draining" => {
            "load balancers send no new clients here; skerry undrain takes it back as long as the node accepts connections, after that a restart"
        }
        _ => "load balancers send no new clients here until the bus is heard again",
    };
    Some(notable(format!("not ready: {why}"), action))
}

/// The purge bus; `None` without one.
pub(super) fn of_bus(bus: Option<BusReport>) -> Vec<Alarm> {
    let Some(bus) = bus else { return Vec::new() };
    let mut alarms = Vec::new();
    let check = "check Redis and the network to it; the option silence of each site decides how stored responses are used meanwhile";
    if bus.is_silent {
        let cause =
            "nothing heard from Redis for bus.silence_max: purges of other nodes may be missing";
        alarms.push(urgent(cause.to_owned(), check));
    } else if !bus.is_connected {
        alarms.push(notable("the purge bus is not connected to Redis".to_owned(), check));
    }
    if bus.outbox > 0 && !bus.is_connected {
        let purges = if bus.outbox == 1 { "purge" } else { "purges" };
        let cause = format!("{} {purges} ordered here not sent to the other nodes", bus.outbox);
        alarms.push(urgent(cause, "stored on this node's disk, and sent when Redis is back"));
    }
    alarms
}

/// The oldest purge ordered here that some node has not applied.
pub(super) fn of_overdue_purge(purge: Option<OverduePurge>) -> Option<Alarm> {
    let OverduePurge { id, age, nodes, are_out } = purge.filter(|it| it.age >= OVERDUE)?;
    let minutes = age.as_secs() / 60;
    let (first, others) = nodes.split_first()?;
    let nodes = match others {
        [] => first.to_string(),
        [other] => format!("{first} and {other}"),
        others => format!("{first} and {} more nodes", others.len()),
    };
    let cause = format!("{nodes} did not apply purge {id} of {minutes} min ago");
    let action = "check that the node runs, reaches Redis, and can write its disk; skerry nodes forget removes one that is gone for good";
    // No client is sent to a node that is out.
    Some(if are_out { notable(cause, action) } else { urgent(cause, action) })
}

/// A pool with the number of its origins, and of those that are down or ejected.
pub(super) fn of_pool(pool: &str, origins: usize, out: usize) -> Option<Alarm> {
    match out {
        0 => None,
        _ if out == origins => Some(urgent(
            format!("pool {pool}: no origin is up"),
            "clients get stale responses where permitted, else 503; the view of origins shows the reason of each",
        )),
        _ => Some(notable(
            format!("pool {pool}: {out} of {origins} origins are down or ejected"),
            "the others take over; the view of origins shows the reason",
        )),
    }
}

/// A pool with the origins that begin to answer after [`SLOW_ORIGIN`] or more, and their smoothed times.
pub(super) fn of_slow_origins(pool: &str, slow: &[(String, Duration)]) -> Option<Alarm> {
    let (origin, time) = slow.iter().max_by_key(|(_, time)| *time)?;
    let others = match slow.len() {
        1 => String::new(),
        2 => ", and 1 more is slow".to_owned(),
        count => format!(", and {} more are slow", count - 1),
    };
    let seconds = time.as_secs_f64();
    Some(notable(
        format!("pool {pool}: {origin} begins to answer after {seconds:.1} s{others}"),
        "what is not a hit waits for it; balance = \"peak-ewma\" sends less to slow origins, and cache.stale answers meanwhile",
    ))
}

/// The last minute beside the last hour.
pub(super) fn of_hit_ratio(minute: &Interval, hour: &Interval) -> Option<Alarm> {
    let percent = |it: &Interval| it.hits * 100 / it.lookups.max(1);
    let (now, before) = (percent(minute), percent(hour));
    let is_known = minute.lookups >= LOOKUPS_MIN && hour.length_ms >= 5 * minute.length_ms;
    (is_known && now + HIT_PERCENT_FALL <= before).then(|| {
        notable(
            format!("{now} % of the requests of the last minute were hits, {before} % of those of the last hour"),
            "why not a hit, below, has the reasons; explain shows the key, the variants and the freshness of one URL; a purge has this effect for a while",
        )
    })
}

/// A directory of the store.
pub(super) fn of_directory(directory: &DirectoryStat) -> Option<Alarm> {
    let path = directory.path.display();
    match directory.service {
        Service::Out => Some(urgent(
            format!("the cache directory {path} is out of service"),
            "check the disk and the error log; the node serves without it and tries it again",
        )),
        Service::ReadOnly => Some(urgent(
            format!("the cache directory {path} cannot be written"),
            "check the disk and its free space; stored responses are still read from it",
        )),
        Service::Serving if directory.is_short_of_space => Some(notable(
            format!(
                "the cache directory {path} cannot grow: its file system is full up to store.disk_reserve"
            ),
            "free space on the file system, or configure a smaller cache",
        )),
        Service::Serving | Service::Recovering => None,
    }
}

/// A certificate that has expired or soon will. A self-signed one is renewed by the node.
pub(super) fn of_certificate(certificate: &CertificateReport, now: SystemTime) -> Option<Alarm> {
    let until = certificate.until.filter(|_| !certificate.is_self_signed)?;
    let name = match certificate.names.first() {
        Some(name) => name.clone(),
        None => certificate.file.display().to_string(),
    };
    let action = "replace its files; the node notices within tls.reload_interval";
    match until.duration_since(now) {
        Err(_) => Some(urgent(format!("the certificate of {name} has expired"), action)),
        Ok(left) if left < EXPIRES_SOON => {
            let left = match left.as_secs() / 86_400 {
                0 => "less than a day".to_owned(),
                1 => "a day".to_owned(),
                days => format!("{days} days"),
            };
            Some(notable(format!("the certificate of {name} expires in {left}"), action))
        }
        Ok(_) => None,
    }
}

/// The last minute of requests.
pub(super) fn of_requests(minute: &Interval) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    if minute.requests >= REQUESTS_MIN && minute.server_errors * 20 >= minute.requests {
        let percent = minute.server_errors * 100 / minute.requests;
        alarms.push(urgent(
            format!("{percent} % of the responses of the last minute were errors (5xx)"),
            "recent errors below has examples; the fields failure and upstream in the access log name the reasons",
        ));
    }
    if minute.log_lines_dropped > 0 {
        let cause = format!(
            "{} lines of the access log were dropped in the last minute",
            minute.log_lines_dropped
        );
        alarms.push(notable(cause, "the destination of log.access is too slow"));
    }
    alarms
}

/// A purge is everywhere within a second, and a node that restarts is back within a minute.
const OVERDUE: Duration = Duration::from_secs(60);
/// How long before its end a certificate is worth a word.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);
/// An origin is slow from this smoothed time to the first byte on: people notice a second.
pub(super) const SLOW_ORIGIN: Duration = Duration::from_secs(1);
/// Fewer lookups in a minute say nothing about the hit ratio.
const LOOKUPS_MIN: u64 = 100;
/// A fall of the hit ratio by so many points is worth a word.
const HIT_PERCENT_FALL: u64 = 20;
/// Fewer requests in a minute say nothing about the share of errors.
const REQUESTS_MIN: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_bus_is_an_alarm_by_its_effect() {
        let bus = BusReport { is_connected: true, is_silent: false, lag: 0, outbox: 0 };
        assert_eq!(of_bus(None), []);
        assert_eq!(of_bus(Some(bus)), []);
        let urgency = |bus| of_bus(Some(bus)).iter().map(|it| it.is_urgent).collect::<Vec<_>>();
        assert_eq!(urgency(BusReport { is_connected: false, ..bus }), [false]);
        assert_eq!(urgency(BusReport { is_connected: false, is_silent: true, ..bus }), [true]);
        assert_eq!(urgency(BusReport { is_connected: false, outbox: 3, ..bus }), [false, true]);
    }

    #[test]
    fn a_purge_that_a_node_does_not_apply_is_an_alarm_after_a_minute() {
        let purge = |seconds, nodes: &[&str], are_out| OverduePurge {
            id: "7-a".to_owned(),
            age: Duration::from_secs(seconds),
            nodes: nodes.iter().map(|name| (*name).into()).collect(),
            are_out,
        };
        assert_eq!(of_overdue_purge(None), None);
        assert_eq!(of_overdue_purge(Some(purge(59, &["b"], false))), None);
        let alarm = of_overdue_purge(Some(purge(130, &["b"], false))).expect("an alarm");
        assert_eq!(
            (alarm.is_urgent, &*alarm.cause),
            (true, "b did not apply purge 7-a of 2 min ago")
        );
        let alarm = of_overdue_purge(Some(purge(130, &["b", "c", "d"], true))).expect("an alarm");
        assert_eq!(
            (alarm.is_urgent, &*alarm.cause),
            (false, "b and 2 more nodes did not apply purge 7-a of 2 min ago")
        );
        let two = of_overdue_purge(Some(purge(130, &["b", "c"], true))).expect("an alarm").cause;
        assert_eq!(two, "b and c did not apply purge 7-a of 2 min ago");
    }

    #[test]
    fn a_pool_without_origins_is_urgent_and_one_with_some_is_not() {
        assert_eq!(of_pool("main", 3, 0), None);
        assert_eq!(of_pool("main", 3, 1).map(|it| it.is_urgent), Some(false));
        assert_eq!(of_pool("main", 3, 3).map(|it| it.is_urgent), Some(true));
    }

    #[test]
    fn a_certificate_is_an_alarm_two_weeks_before_its_end() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let days = |days: u64| now + Duration::from_secs(days * 86_400 + 60);
        let certificate = |until, is_self_signed| CertificateReport {
            file: "a.pem".into(),
            names: vec!["a.test".to_owned()],
            until: Some(until),
            is_self_signed,
        };
        let cause = |it| of_certificate(&it, now).map(|alarm| alarm.cause);
        assert_eq!(cause(certificate(days(20), false)), None);
        assert_eq!(cause(certificate(days(1), true)), None);
        let soon = "the certificate of a.test expires in 3 days";
        assert_eq!(cause(certificate(days(3), false)).as_deref(), Some(soon));
        let last = "the certificate of a.test expires in less than a day";
        assert_eq!(cause(certificate(days(0), false)).as_deref(), Some(last));
        let gone = "the certificate of a.test has expired";
        let past = now - Duration::from_secs(1);
        assert_eq!(cause(certificate(past, false)).as_deref(), Some(gone));
    }

    #[test]
    fn the_slowest_origin_is_named() {
        assert_eq!(of_slow_origins("app", &[]), None);
        let slow = |ms| (format!("http://a:{ms}"), Duration::from_millis(ms));
        let cause = |slow: &[_]| of_slow_origins("app", slow).map(|alarm| alarm.cause);
        let one = "pool app: http://a:1520 begins to answer after 1.5 s";
        assert_eq!(cause(&[slow(1520)]).as_deref(), Some(one));
        let two = "pool app: http://a:1520 begins to answer after 1.5 s, and 1 more is slow";
        assert_eq!(cause(&[slow(1000), slow(1520)]).as_deref(), Some(two));
    }

    #[test]
    fn a_hit_ratio_that_falls_is_an_alarm() {
        let interval =
            |length_ms, lookups, hits| Interval { length_ms, lookups, hits, ..Interval::default() };
        let hour = interval(3_600_000, 100_000, 95_000);
        let minute = |hits| interval(60_000, 1_000, hits);
        assert_eq!(of_hit_ratio(&minute(760), &hour), None);
        let fallen = of_hit_ratio(&minute(410), &hour).expect("an alarm").cause;
        assert!(
            fallen.starts_with("41 % of the requests of the last minute were hits, 95 %"),
            "{fallen}"
        );
        let young = interval(120_000, 100_000, 95_000);
        assert_eq!(of_hit_ratio(&minute(410), &young), None, "the hour is not known yet");
        assert_eq!(of_hit_ratio(&interval(60_000, 99, 0), &hour), None, "too few requests");
    }

    #[test]
    fn errors_are_an_alarm_from_one_in_twenty() {
        let minute =
            |requests, server_errors| Interval { requests, server_errors, ..Interval::default() };
        assert_eq!(of_requests(&minute(100, 4)), []);
        assert_eq!(of_requests(&minute(100, 5)).len(), 1);
        assert_eq!(of_requests(&minute(10, 10)), [], "too few requests");
    }
}
