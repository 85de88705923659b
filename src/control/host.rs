//! Under which names the admin API is asked.
//!
//! Where everyone who can connect may call, a page in an operator's browser could have its own name
//! point at a loopback address and then call with `Host: evil.example` (DNS rebinding). So there the
//! API answers only under names that no stranger can have: an address, `localhost`, and those that
//! `admin.hosts` lists.

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request, StatusCode, Version};

use super::http::Problem;

/// The authority that a request is for, as RFC 9112 §3.2 wants it: one `Host`, which HTTP/1.0 alone
/// may leave out; the authority of a target in absolute form counts in its place (§3.2.2).
///
/// # Errors
/// 400: no `Host`, several, or one that is none.
pub(super) fn authority<B>(request: &Request<B>) -> Result<Option<Authority>, Problem> {
    let mut fields = request.headers().get_all(HOST).iter();
    let host = match (fields.next(), fields.next()) {
        (Some(_), Some(_)) => {
            return Err(Problem::bad_request("Host is given twice: expected one (RFC 9112 §3.2)"));
        }
        (Some(host), None) => Some(parse(host)?),
        (None, _) if request.version() == Version::HTTP_10 => None,
        (None, _) => {
            return Err(Problem::bad_request("Host is missing: expected one (RFC 9112 §3.2)"));
        }
    };
    Ok(request.uri().authority().cloned().or(host))
}

fn parse(host: &HeaderValue) -> Result<Authority, Problem> {
    let authority = Authority::try_from(host.as_bytes()).ok();
    authority.filter(|authority| !authority.as_str().contains('@')).ok_or_else(|| {
        Problem::bad_request(format!("Host {host:?}: expected a name or an address, and a port"))
    })
}

/// Refuses a name that a stranger can have. `allowed`: those of `admin.hosts`.
///
/// # Errors
/// 421 (RFC 9110 §15.5.20), with what to do about it.
pub(super) fn admit(authority: Option<&Authority>, allowed: &[String]) -> Result<(), Problem> {
    let Some(authority) = authority else { return Ok(()) };
    let name = authority.host();
    let is_listed = allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    if is_listed || is_local(name) {
        return Ok(());
    }
    let detail = format!(
        "this API is open to whoever reaches it, and so answers under an address or localhost only, \
         not under {name:?}: list the name in \"admin.hosts\", or name a file of \"admin.tokens\""
    );
    Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail))
}

/// An IP address, or a name that is always this machine (RFC 6761 §6.3).
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
    fn an_open_api_answers_under_names_that_no_stranger_can_have() {
        let admitted = |host: &str| {
            let authority: Authority = host.parse().expect("an authority");
            admit(Some(&authority), &["Edge-1.example".to_owned()]).is_ok()
        };
        for host in ["localhost", "LOCALHOST:9180", "127.0.0.1:9180", "[::1]:9180", "10.0.0.1"] {
            assert!(admitted(host), "{host}");
        }
        assert!(admitted("edge-1.EXAMPLE:9180"));
        for host in ["evil.example:9180", "localhost.evil.example", "edge-2.example", "admin"] {
            assert!(!admitted(host), "{host}");
        }
        assert!(admit(None, &[]).is_ok(), "no browser leaves it out");
    }
}
