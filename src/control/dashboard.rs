//! The dashboard at `/` of the admin API: a page, its style and its script. It is made of what
//! the other calls answer, asked for by the browser; so it needs no leave of its own. And since
//! browsers come here: what other sites' pages may not have them do.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;

use super::http::Problem;

/// The file of this path. `None`: it is not of the dashboard.
pub(super) fn file(path: &str) -> Option<Response<Full<Bytes>>> {
    let (_, kind, content) = FILES.iter().find(|(name, ..)| *name == path)?;
    let mut response = Response::new(Full::new(Bytes::from_static(content.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Some(response)
}

/// Refuses what a page of another site made an operator's browser send: a call with another
/// origin than this one. What is no browser sends no `Origin`. [`super::host`] refuses borrowed
/// names.
pub(super) fn admit<B>(request: &Request<B>) -> Result<(), Problem> {
    let field =
        |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(origin) = field(ORIGIN) else { return Ok(()) };
    let host = field(HOST).unwrap_or_default();
    if origin.split_once("://").is_none_or(|(_, authority)| authority != host) {
        let detail = format!("a page of {origin} may not call this");
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    Ok(())
}

const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("dashboard/page.html")),
    ("/dashboard.css", "text/css; charset=utf-8", include_str!("dashboard/style.css")),
    ("/dashboard.js", "text/javascript; charset=utf-8", include_str!("dashboard/script.js")),
];

/// Nothing from elsewhere, and nobody may frame it: a click on *Purge* is the operator's own.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
    connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(fields: &[(&str, &str)]) -> bool {
        let mut request = Request::new(());
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().expect("a name");
            request.headers_mut().append(name, value.parse().expect("a value"));
        }
        admit(&request).is_ok()
    }

    #[test]
    fn pages_of_other_sites_may_not_call() {
        let host = ("host", "127.0.0.1:9180");
        assert!(admitted(&[host]));
        assert!(admitted(&[host, ("origin", "http://127.0.0.1:9180")]));
        for origin in ["https://evil.example", "http://127.0.0.1:8080", "null"] {
            assert!(!admitted(&[host, ("origin", origin)]), "{origin}");
        }
    }

    #[test]
    fn the_page_names_its_own_files() {
        let page = FILES[0].2;
        for (path, ..) in &FILES[1..] {
            assert!(page.contains(&format!("\"{}\"", &path[1..])), "{path}");
        }
        assert!(file("/").is_some() && file("/dashboard").is_none());
    }
}
