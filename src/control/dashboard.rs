//! The dashboard at `/` of the admin API: a page with a style sheet and a script. The script gets its data
//! from the other calls, so the files themselves need no permission. This module also protects the API
//! against requests that pages of other sites make an operator's browser send.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;

use super::http::Problem;

/// The file at this path. `None`: the dashboard has no such file.
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

/// Refuses a request whose `Origin` differs from its `Host`: a page of another site has made an operator's
/// browser send it (cross-site request forgery). Clients other than browsers send no `Origin`.
///
/// # Errors
/// 403, with the origin.
pub(super) fn check_origin<B>(request: &Request<B>) -> Result<(), Problem> {
    let field =
        |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(origin) = field(ORIGIN) else { return Ok(()) };
    let host = field(HOST).unwrap_or_default();
    if origin.split_once("://").is_none_or(|(_, authority)| authority != host) {
        let detail = format!(
            "Origin {origin}: expected the origin of this API; pages of other sites may not call it"
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    Ok(())
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [(&str, &str, &str); 9] = [
    ("/", HTML, include_str!("dashboard/page.html")),
    ("/dashboard.css", CSS, include_str!("dashboard/style.css")),
    ("/dashboard.svg", "image/svg+xml", include_str!("dashboard/icon.svg")),
    ("/dashboard.js", SCRIPT, include_str!("dashboard/script.js")),
    ("/dashboard-page.js", SCRIPT, include_str!("dashboard/page.js")),
    ("/dashboard-charts.js", SCRIPT, include_str!("dashboard/charts.js")),
    ("/dashboard-overview.js", SCRIPT, include_str!("dashboard/overview.js")),
    ("/dashboard-views.js", SCRIPT, include_str!("dashboard/views.js")),
    ("/dashboard-explain.js", SCRIPT, include_str!("dashboard/explain.js")),
];

/// Loads nothing from other hosts, and forbids frames, so that no page can trick an operator into a
/// click on *Purge* (clickjacking).
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
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
        check_origin(&request).is_ok()
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
    fn the_page_and_its_scripts_name_the_files_that_there_are() {
        let whole: String = FILES.iter().map(|(_, _, content)| *content).collect();
        for (path, ..) in &FILES[1..] {
            let name = &path[1..];
            let is_named = [format!("\"{name}\""), format!("\"./{name}\"")];
            assert!(is_named.iter().any(|name| whole.contains(name)), "{path}");
        }
        for (_, rest) in whole.match_indices("from \"./").map(|(at, _)| whole.split_at(at + 8)) {
            let name = rest.split('"').next().unwrap_or_default();
            assert!(file(&format!("/{name}")).is_some(), "{name}");
        }
        assert!(file("/").is_some() && file("/dashboard").is_none());
    }

    #[test]
    fn the_dashboard_is_small() {
        let bytes: usize = FILES.iter().map(|(_, _, content)| content.len()).sum();
        assert!(bytes < 100_000, "{bytes} bytes");
    }
}
