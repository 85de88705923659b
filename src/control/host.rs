//! Host names of the admin API: parses `Host` and prevents DNS rebinding.
//!
//! If the API needs neither token nor certificate, a page in an operator's browser could let its own name
//! resolve to a loopback address and then call with `Host: evil.example`. The API therefore serves only
//! hosts that an attacker cannot control: an IP address, `localhost`, and the names in `admin.hosts`.

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request, StatusCode, Version};

use super::http::Problem;

/// The authority of a request (RFC 9112 §3.2): its single `Host`, which only HTTP/1.0 may omit, or the
/// authority of a target in absolute form (§3.2.2).
///
/// # Errors
/// 400: `Host` is missing, repeated or invalid.
pub(super) fn authority<B>(request: &Request<B>) -> Result<Option<Authority>, Problem> {
    let mut fields = request.headers().get_all(HOST).iter();
    let host = match (fields.next(), fields.next()) {
        (Some(_), Some(_)) => {
            return Err(Problem::bad_request(
                "more than one Host field: expected exactly one (RFC 9112 §3.2)",
            ));
        }
        (Some(host), None) => Some(parse(host)?),
        (None, _) if request.version() == Version::HTTP_10 => None,
        (None, _) => {
            return Err(Problem::bad_request(
                "the Host field is missing: expected exactly one (RFC 9112 §3.2)",
            ));
        }
    };
    Ok(request.uri().authority().cloned().or(host))
}

fn parse(host: &HeaderValue) -> Result<Authority, Problem> {
    let authority = Authority::try_from(host.as_bytes()).ok();
    authority
        .filter(|authority| !authority.as_str().contains('@'))
        .ok_or_else(|| Problem::bad_request(format!("Host {host:?}: expected HOST or HOST:PORT")))
}

/// Refuses host names that an attacker may control. `allowed`: the names in `admin.hosts`.
///
/// # Errors
/// 421 (RFC 9110 §15.5.20), with what to configure.
pub(super) fn check_host(authority: Option<&Authority>, allowed: &[String]) -> Result<(), Problem> {
    let Some(authority) = authority else { return Ok(()) };
    let name = authority.host();
    let is_listed = allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    if is_listed || is_local(name) {
        return Ok(());
    }
    let detail = format!(
        "host {name:?}: an admin API without tokens accepts only an IP address, localhost and the names in \
         \"admin.hosts\": add the name there, or configure \"admin.tokens\""
    );
    Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail))
}

/// Whether the name is an IP address or `localhost` (RFC 6761 §6.3).
fn is_local(name: &str) -> bool {
    let name = name.trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, uri: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::new(());
        *request.version_mut() = version;
        *request.uri_mut() = uri.parse().expect("a target");
        for host in hosts {
            request.headers_mut().append(HOST, host.parse().expect("a value"));
        }
        request
    }

    #[test]
    fn a_request_has_one_host() {
        let check = |version, uri, hosts: &[&str], expected: Result<Option<&str>, u16>| {
            let found = authority(&request(version, uri, hosts));
            let found = found.as_ref().map(|found| found.as_ref().map(Authority::as_str));
            assert_eq!(found.map_err(|problem| problem.status.as_u16()), expected, "{hosts:?}");
        };
        check(Version::HTTP_11, "/", &["a:1"], Ok(Some("a:1")));
        check(Version::HTTP_11, "/", &["a:1", "a:1"], Err(400));
        check(Version::HTTP_10, "/", &["a", "b"], Err(400));
        check(Version::HTTP_11, "/", &[], Err(400));
        check(Version::HTTP_10, "/", &[], Ok(None));
        check(Version::HTTP_11, "/", &["a b"], Err(400));
        check(Version::HTTP_11, "/", &["u@a"], Err(400));
        check(Version::HTTP_11, "/", &[""], Err(400));
        check(Version::HTTP_11, "http://evil.example/", &["localhost"], Ok(Some("evil.example")));
    }

    #[test]
    fn an_api_without_tokens_accepts_only_hosts_that_an_attacker_cannot_control() {
        let admitted = |host: &str| {
            let authority: Authority = host.parse().expect("an authority");
            check_host(Some(&authority), &["Edge-1.example".to_owned()]).is_ok()
        };
        for host in ["localhost", "LOCALHOST:9180", "127.0.0.1:9180", "[::1]:9180", "10.0.0.1"] {
            assert!(admitted(host), "{host}");
        }
        assert!(admitted("edge-1.EXAMPLE:9180"));
        for host in ["evil.example:9180", "localhost.evil.example", "edge-2.example", "admin"] {
            assert!(!admitted(host), "{host}");
        }
        assert!(check_host(None, &[]).is_ok(), "every browser sends Host");
    }
}
