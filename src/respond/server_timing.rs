//! `Server-Timing` (W3C): where the time of a request went, for clients that may see it.
//!
//! ```text
//!  started ──lookup──▶ looked up ──wait · queue · connect · origin──▶ answered ──coding──▶ recoded
//!  └──────────────────────────────────total──────────────────────────────────────────────┘
//! ```

use std::io::Write;
use std::time::Duration;

use http::HeaderName;

use crate::context::{ResponseFacts, Timing, UpstreamFacts};
use crate::reply::Reply;

/// Adds the field. `total`: from the request to its reply. The times are in milliseconds; a part that did not
/// happen is left out. A line of the origin's own stays beside it.
pub(crate) fn add_server_timing(
    Reply { fields, .. }: &mut Reply,
    timing: &Timing,
    facts: &ResponseFacts,
    total: Duration,
) {
    fields.append_text(&SERVER_TIMING, |text| write(timing, facts, total, text));
}

fn write(timing: &Timing, facts: &ResponseFacts, total: Duration, text: &mut Vec<u8>) {
    let cache = &facts.cache_status;
    text.extend_from_slice(b"cache;desc=\"");
    text.extend_from_slice(cache.word().as_bytes());
    if let Some(reason) = cache.reason() {
        text.extend_from_slice(b" ");
        text.extend_from_slice(reason.as_str().as_bytes());
    }
    text.extend_from_slice(b"\"");
    let looked_up = timing.looked_up.unwrap_or(total);
    let answered = timing.recoding.unwrap_or(total);
    push(text, "lookup", looked_up);
    let waited = answered.saturating_sub(looked_up);
    match &facts.upstream {
        Some(upstream) => push_upstream(text, upstream, waited),
        None if cache.collapsed => push(text, "wait", waited),
        None => {}
    }
    if timing.recoding.is_some() {
        push(text, "coding", total.saturating_sub(answered));
    }
    push(text, "total", total);
}

/// `waited`: the time until the exchange had its outcome.
fn push_upstream(text: &mut Vec<u8>, upstream: &UpstreamFacts, waited: Duration) {
    let until_head = upstream.answered.map_or(waited, |(_, first_byte)| first_byte);
    let queued = upstream.queued;
    if !queued.is_zero() {
        push(text, "queue", queued);
    }
    if let Some(connected) = upstream.connected {
        push(text, "connect", connected);
    }
    let connected = upstream.connected.unwrap_or_default();
    push(text, "origin", until_head.saturating_sub(queued + connected));
}

fn push(text: &mut Vec<u8>, name: &str, duration: Duration) {
    let us = duration.as_micros();
    write!(text, ", {name};dur={}.{:03}", us / 1000, us % 1000)
        .expect("writing to a Vec does not fail");
}

/// The field (W3C Server Timing §2).
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::cache::{CacheStatus, Reason};

    fn micros(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[track_caller]
    fn check(status: CacheStatus, upstream: Option<UpstreamFacts>, timing: Timing, expected: &str) {
        let upstream = upstream.map(Box::new);
        let facts = ResponseFacts {
            cache_status: status,
            upstream,
            failure: None,
            failure_detail: None,
            is_purged: false,
        };
        let mut text = Vec::new();
        write(&timing, &facts, micros(50_000), &mut text);
        assert_eq!(String::from_utf8(text).expect("text"), expected);
    }

    #[test]
    fn each_part_of_the_time_is_stated_once() {
        let (looked_up, recoding) = (Some(micros(41)), None);
        let timing = Timing { looked_up, recoding };
        let upstream = UpstreamFacts {
            kind: crate::labels::UpstreamKind::Origin,
            pool: "main".into(),
            origin: None,
            address: None,
            attempts: 1,
            unretried: None,
            answered: Some((StatusCode::OK, micros(40_000))),
            has_age: false,
            queued: micros(5_000),
            connected: Some(micros(3_000)),
        };
        let absent = || CacheStatus::forwarded(Reason::Absent);
        check(
            absent(),
            Some(upstream.clone()),
            timing.clone(),
            "cache;desc=\"uri-miss absent\", lookup;dur=0.041, queue;dur=5.000, connect;dur=3.000, origin;dur=32.000, total;dur=50.000",
        );
        let reused = UpstreamFacts { queued: Duration::ZERO, connected: None, ..upstream };
        check(
            absent(),
            Some(reused.clone()),
            Timing { recoding: Some(micros(45_000)), ..timing },
            "cache;desc=\"uri-miss absent\", lookup;dur=0.041, origin;dur=40.000, coding;dur=5.000, total;dur=50.000",
        );
        check(
            absent(),
            Some(UpstreamFacts { answered: None, ..reused }),
            timing.clone(),
            "cache;desc=\"uri-miss absent\", lookup;dur=0.041, origin;dur=49.959, total;dur=50.000",
        );
        check(
            CacheStatus { collapsed: true, ..absent() },
            None,
            timing.clone(),
            "cache;desc=\"uri-miss absent\", lookup;dur=0.041, wait;dur=49.959, total;dur=50.000",
        );
        check(
            CacheStatus::generated(Reason::AnsweredHere),
            None,
            Timing::default(),
            "cache;desc=\"none answered-here\", lookup;dur=50.000, total;dur=50.000",
        );
    }
}
