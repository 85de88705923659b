//! Fuzz target: the gate.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};

use super::{Gate, Settings, normal_path};
use crate::context::{Connection, RequestHead};

/// Normalising a request that the gate accepted changes nothing. Its path has no dot segments and only bytes
/// that a URI allows, and no hop-by-hop field is left. The first byte chooses method, version, trust and
/// `merge_slashes`; the first line is the target, the other lines are fields.
pub(crate) fn gate(data: &[u8]) {
    let Some((&choice, text)) = data.split_first() else { return };
    let is = |bit: u8| choice & (1 << bit) != 0;
    let mut lines = text.split(|byte| *byte == b'\n').take(32);
    let target = lines.next().unwrap_or_default();
    if let Ok(path) = str::from_utf8(target)
        && let Ok(normal) = normal_path(path)
    {
        has_one_spelling(&normal);
    }
    let Ok(target) = Uri::try_from(target) else { return };
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let trusted = if is(0) { vec!["192.0.2.0/24".parse().expect("a network")] } else { Vec::new() };
    let settings =
        Settings { merge_slashes: is(1), trusted_proxies: trusted, ..Settings::default() };
    let gate = Gate::new(settings);
    let address = |text: &str| text.parse().expect("an address");
    let connection = Connection::new(address("192.0.2.7:4711"), address("198.51.100.1:8080"));
    let request = RequestHead {
        method: if is(2) { Method::OPTIONS } else { Method::GET },
        target,
        host: None,
        version: [Version::HTTP_11, Version::HTTP_2, Version::HTTP_10]
            [usize::from(choice >> 4) % 3],
        user_agent: None,
        referer: None,
    };
    let Ok(normal) = gate.normalise(&request, &mut headers, &connection) else { return };
    for name in
        ["connection", "keep-alive", "te", "transfer-encoding", "upgrade", "proxy-connection"]
    {
        assert!(!headers.contains_key(name), "{name} is left");
    }
    let authority = normal.authority.as_str();
    assert!(!authority.is_empty() && !authority.bytes().any(|byte| byte.is_ascii_uppercase()));
    assert!(authority.is_ascii() && !authority.contains(['@', '/', '?', '#', ' ']), "{authority}");
    assert!(authority.starts_with(normal.authority.host()));
    if normal.target != "*" {
        has_one_spelling(normal.path());
    }
    // The next hop normalises the request again.
    let mut again = headers.clone();
    again.insert(http::header::HOST, normal.authority.to_field());
    let target = Uri::from(normal.target.clone());
    let request = RequestHead { target, version: Version::HTTP_11, ..request };
    let second = gate.normalise(&request, &mut again, &connection).expect("it was let in before");
    assert_eq!(second.target, normal.target);
    if second.scheme == normal.scheme {
        assert_eq!(second.authority, normal.authority);
    }
    assert_eq!(second.client, normal.client);
}

fn has_one_spelling(path: &str) {
    assert_eq!(normal_path(path).as_deref(), Ok(path));
    assert!(path.starts_with('/'));
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}?#".contains(&byte)));
    let decoded = path.replace("%2E", ".").replace("%2e", ".");
    assert!(!decoded.split('/').any(|segment| segment == "." || segment == ".."), "{path}");
}
