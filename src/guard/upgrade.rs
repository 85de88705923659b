//! The protocols that a client may switch its connection to (RFC 9110 §7.8). Pure functions; the list is
//! part of the rule's [`super::access::Settings`].
//!
//! After a 101 a connection is a tunnel: rules, cache and log do not see its content. A protocol that
//! carries HTTP requests would bypass all of them, and cannot be listed.

use std::fmt;
use std::str::FromStr;

use http::HeaderValue;

/// A protocol as `Upgrade` names it, such as `websocket` or `irc/6.9`. Compared case-insensitively.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpgradeProtocol(Box<str>);

/// Why a text cannot be listed as a protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpgradeProtocolError {
    /// The text is not a token with or without a version.
    #[error("expected a protocol's name as in an Upgrade field, such as \"websocket\"")]
    NotAName,
    /// The protocol carries HTTP.
    #[error(
        "{0:?} carries HTTP requests that would bypass every rule, limit and log line; \
         list only protocols that carry none, such as \"websocket\""
    )]
    CarriesHttp(Box<str>),
}

impl UpgradeProtocol {
    /// WebSocket (RFC 6455), allowed by default.
    pub(crate) fn websocket() -> Self {
        Self("websocket".into())
    }
}

impl fmt::Display for UpgradeProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UpgradeProtocol {
    type Err = UpgradeProtocolError;

    fn from_str(text: &str) -> Result<Self, UpgradeProtocolError> {
        let (name, version) = match text.split_once('/') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        if !is_token(name) || version.is_some_and(|version| !is_token(version)) {
            return Err(UpgradeProtocolError::NotAName);
        }
        if CARRIES_HTTP.iter().any(|carrier| name.eq_ignore_ascii_case(carrier)) {
            return Err(UpgradeProtocolError::CarriesHttp(text.into()));
        }
        Ok(Self(text.into()))
    }
}

/// The protocols of an `Upgrade` value that are in the list, in the client's order and spelling. `None`
/// if there are none.
pub(crate) fn allowed(asked: &HeaderValue, allowed: &[UpgradeProtocol]) -> Option<HeaderValue> {
    let members = || asked.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let is_allowed = |member: &&[u8]| {
        allowed.iter().any(|protocol| protocol.0.as_bytes().eq_ignore_ascii_case(member))
    };
    if members().all(|member| is_allowed(&member)) {
        return Some(asked.clone());
    }
    let kept: Vec<&[u8]> = members().filter(is_allowed).collect();
    if kept.is_empty() { None } else { HeaderValue::from_bytes(&kept.join(&b", "[..])).ok() }
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    let is_symbol = |byte| b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || is_symbol(byte))
}

/// HTTP itself (RFC 9113 §3.1 for `h2c`), and TLS, which has HTTP inside (RFC 2817).
const CARRIES_HTTP: &[&str] = &["http", "h2", "h2c", "h3", "tls"];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(asked: &'static str, list: &[&str], expected: Option<&str>) {
        let list: Vec<UpgradeProtocol> = list.iter().map(|name| name.parse().unwrap()).collect();
        let found = allowed(&HeaderValue::from_static(asked), &list);
        assert_eq!(found.as_ref().map(|value| value.to_str().unwrap()), expected, "{asked:?}");
    }

    #[test]
    fn only_listed_protocols_are_asked_for() {
        let list = &["websocket"];
        check("websocket", list, Some("websocket"));
        check("WebSocket", list, Some("WebSocket"));
        check("websocket, h2c", list, Some("websocket"));
        check("h2c,TLS/1.0 , websocket", list, Some("websocket"));
        check("h2c", list, None);
        check("TLS/1.0, HTTP/2.0", list, None);
        check("connect-udp", list, None);
        check("websocket/13", list, None);
        check("websocketx", list, None);
        check("\"websocket\"", list, None);
        check(",", list, None);
        check("", list, None);
        check("websocket", &[], None);
        check("irc/6.9, websocket", &["websocket", "IRC/6.9"], Some("irc/6.9, websocket"));
        check("connect-udp", &["connect-udp"], Some("connect-udp"));
    }

    #[test]
    fn a_protocol_that_carries_http_is_on_no_list() {
        for name in ["h2c", "H2C", "h2", "h3", "HTTP/2.0", "http", "TLS/1.0", "tls"] {
            let refused = name.parse::<UpgradeProtocol>().unwrap_err();
            assert_eq!(refused, UpgradeProtocolError::CarriesHttp(name.into()));
        }
        for name in ["", "/", "a/", "/1", "a b", "a,b", "a/1/2", "\u{e9}"] {
            assert_eq!(name.parse::<UpgradeProtocol>(), Err(UpgradeProtocolError::NotAName));
        }
    }
}
