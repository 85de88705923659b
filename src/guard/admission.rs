//! Whether a rule lets a request in: access limits first, then the request rate. The first refusal
//! wins and is the answer to the request.

use std::net::IpAddr;
use std::time::Instant;

use geo::Country;
use http::header::{ALLOW, CONNECTION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method};

use super::rate::{Limit, RateTable};
use super::{Refusal, access};
use crate::context::Requester;
use crate::fields::FieldsMut;
use crate::metrics::Recorder;
use crate::reply::Reply;

/// A rule's limits on requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RuleLimits {
    /// Clients, methods and content that are allowed.
    pub access: access::Settings,
    /// The request rate that each client is allowed. `None`: any rate.
    pub rate: Option<Limit>,
    /// Identifies the rule in the [`RateTable`]; stable over reloads.
    pub rule_number: u64,
}

/// The facts of a request that [`RuleLimits`] are applied to.
#[derive(Clone, Copy)]
pub(crate) struct Applicant<'a> {
    /// The sender of the request.
    pub requester: Requester,
    /// The client's address.
    pub client: IpAddr,
    /// The client's country, if known.
    pub country: Option<Country>,
    /// Any method.
    pub method: &'a Method,
    /// The request fields after the gate.
    pub headers: &'a HeaderMap,
    /// The time of the request.
    pub now: Instant,
}

/// How the rate of a client is judged.
#[derive(Clone, Copy)]
pub(crate) enum Rates<'a> {
    /// Counts the request.
    Take(&'a RateTable, &'a Recorder),
    /// Tells whether the request would be let in, without counting it.
    Peek(&'a RateTable),
}

/// A request that is not let in.
#[derive(Debug)]
pub(crate) struct Rejection {
    /// Why, for the log and the metrics.
    pub refusal: Refusal,
    /// The answer. A reply without content gets a text that states the reason, see
    /// [`crate::respond::ErrorReply`].
    pub reply: Reply,
}

/// Lets the request in or rejects it. The node's own requests are subject to no limit: they fetch
/// what clients will request, and are sent from no client's address. Nor are those of peers, which have
/// applied the same limits to their clients.
pub(crate) fn admit(
    limits: &RuleLimits,
    applicant: &Applicant<'_>,
    rates: Rates<'_>,
) -> Result<(), Box<Rejection>> {
    let Applicant { requester, client, country, method, headers, now } = *applicant;
    match requester {
        Requester::Node { .. } | Requester::Peer => return Ok(()),
        Requester::Client => {}
    }
    access::admit(&limits.access, client, country, method, headers).map_err(|refusal| {
        let mut rejection = Rejection::from(refusal);
        if refusal == Refusal::MethodDenied {
            // RFC 9110 §15.5.6
            rejection.reply.fields.append(&ALLOW, &limits.access.allow_field());
        }
        Box::new(rejection)
    })?;
    let Some(limit) = limits.rate else { return Ok(()) };
    let rule = limits.rule_number;
    let within_rate = match rates {
        Rates::Take(table, recorder) => table.take(rule, limit, client, now, recorder),
        Rates::Peek(table) => table.peek(rule, limit, client, now),
    };
    within_rate.map_err(|refusal| Box::new(refusal.into()))
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        let mut reply = Reply::new(refusal.status());
        if let Refusal::RateLimited { retry_after } = refusal {
            reply.fields.append_number(&RETRY_AFTER, retry_after.as_secs().max(1));
        }
        if refusal == Refusal::MethodTrace {
            reply.fields.append(&ALLOW, &ALL_BUT_TRACE);
        }
        if refusal.closes() {
            reply.fields.append(&CONNECTION, &HeaderValue::from_static("close"));
        }
        Self { refusal, reply }
    }
}

/// `Allow` for a resource whose methods no rule limits, where TRACE is off.
pub(crate) const ALL_BUT_TRACE: HeaderValue =
    HeaderValue::from_static("DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;

    fn limits() -> RuleLimits {
        RuleLimits {
            access: access::Settings {
                methods: vec![Method::GET, Method::HEAD],
                deny_addresses: vec!["192.0.2.9/32".parse().unwrap()],
                ..access::Settings::default()
            },
            rate: Some(Limit { per_second: 0.5, burst: 1 }),
            rule_number: 7,
        }
    }

    /// Checks the answers to two requests of a client at `client`.
    fn check(requester: Requester, client: &str, method: Method, expected: [&str; 2]) {
        let now = Clock::system().instant();
        let (table, metrics) = (RateTable::new(100, now), Metrics::new(1));
        let recorder = metrics.background();
        let headers = HeaderMap::new();
        let client = client.parse().unwrap();
        let applicant =
            Applicant { requester, client, country: None, method: &method, headers: &headers, now };
        let text = |answer: Result<(), Box<Rejection>>| match answer {
            Ok(()) => "in".to_owned(),
            Err(rejection) => {
                let fields = rejection.reply.fields.to_map();
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| format!(" {name}={}", value.to_str().unwrap()))
                    .collect();
                format!("{}{}", rejection.reply.status.as_u16(), fields.concat())
            }
        };
        for expected in expected {
            let peeked = text(admit(&limits(), &applicant, Rates::Peek(&table)));
            assert_eq!(peeked, expected, "peek, {client} {method}");
            let taken = text(admit(&limits(), &applicant, Rates::Take(&table, &recorder)));
            assert_eq!(taken, expected, "take, {client} {method}");
        }
    }

    #[test]
    fn the_first_refusal_wins_and_carries_its_fields() {
        let client = Requester::Client;
        check(client, "192.0.2.1", Method::GET, ["in", "429 retry-after=2"]);
        check(client, "192.0.2.9", Method::PUT, ["403"; 2]);
        check(client, "192.0.2.1", Method::PUT, ["405 allow=GET, HEAD"; 2]);
    }

    #[test]
    fn no_limit_applies_to_the_nodes_own_requests_and_those_of_peers() {
        let node = Requester::Node { scheme: "http" };
        check(node, "192.0.2.9", Method::PUT, ["in"; 2]);
        check(Requester::Peer, "192.0.2.9", Method::PUT, ["in"; 2]);
    }

    #[test]
    fn a_refusal_of_doubtful_framing_closes_the_connection() {
        let reply = Rejection::from(Refusal::FramingDouble).reply;
        assert_eq!(reply.fields.to_map()["connection"], "close");
        let reply = Rejection::from(Refusal::MethodTrace).reply;
        assert_eq!(reply.fields.to_map()["allow"], ALL_BUT_TRACE);
    }
}
