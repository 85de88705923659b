//! The cookies of this node: removed from requests, so that no key, no `Vary` and no origin depends on
//! them, and added to responses on their way out, so that they are never stored.

use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::cache;

/// Removes all cookies with this name from a request.
pub(in crate::serve) fn remove_cookie(headers: &mut HeaderMap, name: &str) {
    if cache::cookie(headers, name).is_none() {
        return;
    }
    let kept: Vec<HeaderValue> =
        headers.get_all(COOKIE).iter().filter_map(|line| line_without(line, name)).collect();
    headers.remove(COOKIE);
    for line in kept {
        headers.append(COOKIE, line);
    }
}

/// A `Set-Cookie` for all paths of the host (RFC 6265 §4.1). Name and value must be tokens. A `max_age` of
/// zero is left out: the browser then keeps the cookie until it is closed.
pub(in crate::serve) fn set_cookie(
    name: &str,
    value: &str,
    max_age: Duration,
    scheme: &str,
) -> HeaderValue {
    let mut text = format!("{name}={value}; Path=/");
    if !max_age.is_zero() {
        text.push_str(&format!("; Max-Age={}", max_age.as_secs().max(1)));
    }
    text.push_str("; HttpOnly; SameSite=Lax");
    if scheme == "https" {
        text.push_str("; Secure");
    }
    HeaderValue::try_from(text).expect("tokens are field text")
}

/// The line without the cookies of this name; `None` if no other is left.
fn line_without(line: &HeaderValue, name: &str) -> Option<HeaderValue> {
    let is_other = |pair: &&[u8]| {
        let found = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        !pair.is_empty() && *found != *name.as_bytes()
    };
    let pairs = line.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let kept: Vec<&[u8]> = pairs.filter(is_other).collect();
    let text = kept.join(&b"; "[..]);
    (!text.is_empty())
        .then(|| HeaderValue::from_bytes(&text).expect("a part of a field value is one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cookies_of_the_name_are_removed() {
        let check = |lines: &[&'static str], expected: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(COOKIE, HeaderValue::from_static(line));
            }
            remove_cookie(&mut headers, "g");
            let left: Vec<_> = headers.get_all(COOKIE).iter().collect();
            assert_eq!(left, expected, "{lines:?}");
        };
        check(&["a=1; g=x; b=2"], &["a=1; b=2"]);
        check(&["g=x"], &[]);
        check(&["g"], &[]);
        check(&["a=1", "g=x;g=y ;  c=\"3\""], &["a=1", "c=\"3\""]);
        check(&["G=x;gg=g=1"], &["G=x;gg=g=1"]);
    }

    #[test]
    fn a_cookie_is_kept_as_long_as_it_says_and_is_secure_over_tls() {
        let day = Duration::from_secs(86_400);
        assert_eq!(
            set_cookie("g", "main", day, "https"),
            "g=main; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax; Secure"
        );
        assert_eq!(
            set_cookie("g", "main", Duration::ZERO, "http"),
            "g=main; Path=/; HttpOnly; SameSite=Lax"
        );
    }
}
