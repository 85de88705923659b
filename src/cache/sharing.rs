//! Keeps caches between this node and a client from sharing a response that is not for every client
//! (RFC 9111 §5.2.2.7, RFC 9213).

use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue};

use super::directives::Members;
use crate::fields::{FieldLines, Fields, FieldsMut};

/// Adds `private` to `Cache-Control` and removes the directives that are for shared caches only, as well
/// as all fields that a shared cache reads before `Cache-Control`. The client's own cache may still
/// store the response for as long as before.
pub(crate) fn forbid_sharing(fields: &mut FieldLines) {
    let mut control = b"private".to_vec();
    for line in fields.lines(&CACHE_CONTROL) {
        for member in Members::of(line)
            .filter(|member| !FOR_SHARED.iter().any(|name| member.name.eq_ignore_ascii_case(name)))
        {
            control.extend_from_slice(b", ");
            control.extend_from_slice(member.written);
        }
    }
    let mut targeted: Vec<HeaderName> = Vec::new();
    for line in fields.walk() {
        let name = line.name().as_bytes();
        if is_targeted(name) {
            targeted.push(HeaderName::from_bytes(name).expect("a line has a valid name"));
        }
    }
    targeted.push(CACHE_CONTROL);
    fields.remove_all(&targeted);
    let control = HeaderValue::from_maybe_shared(control);
    fields.append(&CACHE_CONTROL, &control.expect("members of valid lines are valid"));
}

/// Whether a field in lower case addresses some caches before `Cache-Control`. RFC 9213 §2 lets the
/// names of such fields end in `-Cache-Control`.
fn is_targeted(name: &[u8]) -> bool {
    name.ends_with(b"-cache-control") || name == b"surrogate-control"
}

/// Directives without a meaning for a private cache. `private` is written anew, for the whole response.
const FOR_SHARED: [&[u8]; 4] = [b"public", b"private", b"s-maxage", b"proxy-revalidate"];

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[track_caller]
    fn check(lines: &[(&'static str, &'static str)], expected: &str) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut fields = FieldLines::from(&headers);
        forbid_sharing(&mut fields);
        let map = fields.to_map();
        let lines = map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        assert_eq!(lines.collect::<Vec<_>>().join("\n"), expected);
    }

    #[test]
    fn only_the_client_s_own_cache_may_store_the_response() {
        check(&[], "cache-control: private");
        check(
            &[
                ("cache-control", "Public, max-age=60, S-MaxAge=600"),
                ("cache-control", "immutable"),
            ],
            "cache-control: private, max-age=60, immutable",
        );
        check(&[("cache-control", "no-store")], "cache-control: private, no-store");
        check(
            &[("cache-control", "private=\"a, b\", ext=\"c, public\"")],
            "cache-control: private, ext=\"c, public\"",
        );
    }

    #[test]
    fn fields_for_shared_caches_are_removed() {
        check(
            &[
                ("cdn-cache-control", "max-age=60"),
                ("example-cdn-cache-control", "max-age=60"),
                ("surrogate-control", "max-age=60"),
                ("access-control-allow-origin", "*"),
                ("expires", "0"),
            ],
            "access-control-allow-origin: *\nexpires: 0\ncache-control: private",
        );
    }
}
