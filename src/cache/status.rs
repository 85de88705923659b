//! The member of `Cache-Status` (RFC 9211), built along the path. Its reasons are a closed list,
//! [`Reason`], that log, metrics, `skerry explain` and docs share.

use std::io::Write as _;

use http::StatusCode;

pub(crate) use crate::labels::{Fwd, Reason};
use crate::planted::{self, Bug}; // fault injection, in debug builds with `planted-bugs` only

/// How the cache handled a request: one member of `Cache-Status`, built along the path.
///
/// ```text
/// skerry; hit; ttl=3599
/// skerry; hit; ttl=-5; detail=stale-while-revalidate
/// skerry; fwd=stale; fwd-status=304; ttl=60; detail=validated
/// skerry; fwd=uri-miss; fwd-status=200; stored; ttl=3600
/// skerry; detail=denied
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheStatus {
    /// Where the response comes from.
    pub handling: Handling,
    /// The status of the upstream response.
    pub fwd_status: Option<StatusCode>,
    /// Whether the response was stored.
    pub stored: bool,
    /// Whether the request was collapsed into another one.
    pub collapsed: bool,
    /// Remaining seconds of freshness when the response was generated; negative if stale.
    pub ttl: Option<i64>,
    /// Further details: why the response was served stale or not stored.
    pub detail: Option<Reason>,
}

/// Where a response comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handling {
    /// The cache, without upstream.
    Hit,
    /// Upstream, and why the request was forwarded; also if upstream did not respond.
    Forwarded(Reason),
    /// The node itself, without cache and upstream, and why.
    Generated(Reason),
}

impl CacheStatus {
    /// The response comes from the cache.
    pub(crate) fn hit(ttl: i64) -> Self {
        let made_up = if planted::has(Bug::TtlMadeUp) { 1000 } else { 0 };
        Self { ttl: Some(ttl + made_up), ..Self::EMPTY }
    }

    /// The request was forwarded.
    pub(crate) const fn forwarded(reason: Reason) -> Self {
        Self { handling: Handling::Forwarded(reason), ..Self::EMPTY }
    }

    /// The node generated the response. It has neither `hit` nor `fwd`, which is for forwarded requests
    /// (RFC 9211 §2.2).
    pub(crate) const fn generated(reason: Reason) -> Self {
        Self { handling: Handling::Generated(reason), ..Self::EMPTY }
    }

    /// Whether the node generated the response.
    pub(crate) const fn is_generated(&self) -> bool {
        matches!(self.handling, Handling::Generated(_))
    }

    /// Whether the response comes from the cache without forwarding, fresh or stale.
    pub(crate) fn is_hit(&self) -> bool {
        matches!(self.handling, Handling::Hit)
    }

    /// The reason to log and count: `detail` if there is one, else why it was no hit.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.detail.or(match self.handling {
            Handling::Hit => None,
            Handling::Forwarded(reason) | Handling::Generated(reason) => Some(reason),
        })
    }

    /// The word in the access log: `hit`, that of `fwd`, or `none`.
    pub(crate) fn word(&self) -> &'static str {
        match self.handling {
            Handling::Hit => "hit",
            Handling::Forwarded(reason) => reason.fwd().map_or("none", Fwd::as_str),
            Handling::Generated(_) => "none",
        }
    }

    /// Writes the member for `Cache-Status`, printable ASCII. `node` is a token (RFC 9211 §2),
    /// `key` is given where the rule shows it.
    pub(crate) fn write(&self, node: &str, key: Option<&str>, text: &mut Vec<u8>) {
        let mut push = |part: &str| text.extend_from_slice(part.as_bytes());
        push(node);
        match self.handling {
            Handling::Hit => push("; hit"),
            Handling::Forwarded(reason) => {
                if let Some(fwd) = reason.fwd() {
                    push("; fwd=");
                    push(fwd.as_str());
                }
            }
            Handling::Generated(_) => {}
        }
        if let Some(status) = self.fwd_status {
            push("; fwd-status=");
            push(status.as_str());
        }
        if self.stored {
            push("; stored");
        }
        if self.collapsed {
            push("; collapsed");
        }
        if let Some(ttl) = self.ttl {
            push("; ttl=");
            push(itoa::Buffer::new().format(ttl));
        }
        if let Some(key) = key {
            push_key(text, key);
        }
        if let Some(detail) = self.detail_shown() {
            text.extend_from_slice(b"; detail=");
            text.extend_from_slice(detail.as_str().as_bytes());
        }
    }

    /// The reason, unless `fwd` says the same, as in `fwd=stale; detail=stale`.
    fn detail_shown(&self) -> Option<Reason> {
        let is_in_fwd = |reason: &Reason| matches!(reason, Reason::Stale | Reason::Absent);
        self.reason().filter(|reason| self.is_generated() || !is_in_fwd(reason))
    }

    const EMPTY: Self = Self {
        handling: Handling::Hit,
        fwd_status: None,
        stored: false,
        collapsed: false,
        ttl: None,
        detail: None,
    };
}

/// A key as an sf-string: printable ASCII, with `%` for the rest (RFC 8941 §3.3.3).
fn push_key(text: &mut Vec<u8>, key: &str) {
    text.extend_from_slice(b"; key=\"");
    for byte in key.bytes() {
        match byte {
            b'"' | b'\\' => text.extend_from_slice(&[b'\\', byte]),
            b'\n' => text.push(b' '),
            0x20..=0x7e => text.push(byte),
            _ => write!(text, "%{byte:02X}").expect("a Vec takes all"),
        }
    }
    text.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use sfv::{BareItem, List, ListEntry, Parser};

    fn check(status: CacheStatus, key: Option<&str>, expected: &str) {
        let mut written = Vec::new();
        status.write("skerry", key, &mut written);
        assert_eq!(std::str::from_utf8(&written), Ok(expected));
        let list: List = Parser::new(&written).parse().expect("a structured list");
        assert!(matches!(&list[0], ListEntry::Item(item)
            if matches!(&item.bare_item, BareItem::Token(token) if token.as_str() == "skerry")));
    }

    #[test]
    fn members_are_written_as_rfc_9211_shows() {
        check(CacheStatus::hit(376), None, "skerry; hit; ttl=376");
        let stale = CacheStatus { detail: Some(Reason::WhileRevalidate), ..CacheStatus::hit(-412) };
        check(stale, None, "skerry; hit; ttl=-412; detail=stale-while-revalidate");
        let stored = CacheStatus {
            fwd_status: Some(StatusCode::OK),
            stored: true,
            collapsed: true,
            ttl: Some(60),
            ..CacheStatus::forwarded(Reason::Absent)
        };
        let expected = "skerry; fwd=uri-miss; fwd-status=200; stored; collapsed; ttl=60";
        check(stored, None, expected);
        check(
            CacheStatus::forwarded(Reason::BypassCookie),
            None,
            "skerry; fwd=bypass; detail=bypass-cookie",
        );
    }

    #[test]
    fn a_generated_response_says_neither_hit_nor_forwarded() {
        for reason in [Reason::Denied, Reason::OnlyIfCached, Reason::Stale, Reason::Absent] {
            let status = CacheStatus::generated(reason);
            check(status, None, &format!("skerry; detail={}", reason.as_str()));
            assert_eq!(status.word(), "none");
        }
        check(CacheStatus::forwarded(Reason::Denied), None, "skerry; detail=denied");
        assert_eq!(CacheStatus::forwarded(Reason::Stale).word(), "stale");
        assert_eq!(CacheStatus::hit(1).word(), "hit");
    }

    #[test]
    fn a_key_of_any_characters_stays_a_structured_string() {
        check(
            CacheStatus::hit(1),
            Some("http://e/\"a\\b\nc: ü"),
            "skerry; hit; ttl=1; key=\"http://e/\\\"a\\\\b c: %C3%BC\"",
        );
    }

    #[test]
    fn reasons_are_distinct_tokens_with_a_sentence() {
        let mut seen = std::collections::HashSet::new();
        for reason in Reason::ALL {
            assert!(seen.insert(reason.as_str()), "{reason:?} twice");
            assert!(sfv::TokenRef::from_str(reason.as_str()).is_ok(), "{reason:?}");
            assert!(reason.sentence().ends_with('.'));
        }
    }
}
