//! Absolute URLs: their origin, references to other URLs (RFC 3986 §5), and their form in keys.

use super::key::{UrlParts, url_part};
use super::settings::KeyPolicy;

/// The `scheme://authority` at the start of `url`.
pub(super) fn origin_of(url: &str) -> &str {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url[authority..].find('/').map_or(url.len(), |at| authority + at);
    &url[..end]
}

/// An absolute URL in the form that it has in keys under `policy`.
pub(super) fn under_policy(url: &str, policy: &KeyPolicy) -> String {
    let origin = origin_of(url);
    let (scheme, authority) = origin.split_once("://").unwrap_or(("https", origin));
    let (path, query) = match url[origin.len()..].split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&url[origin.len()..], None),
    };
    url_part(policy, &UrlParts { scheme, authority, path, query })
}

/// Resolves a reference against `base` (RFC 3986 §5.2). The result has no fragment, the authority in lower case, and no
/// default port. `None` for other schemes than http and https, and for a URL with user information.
pub(super) fn resolve(base: &str, reference: &str) -> Option<String> {
    let reference = reference.trim().split('#').next().unwrap_or_default();
    let origin = origin_of(base);
    let (scheme, _) = origin.split_once("://")?;
    let base_path = &base[origin.len()..];
    let base_path_only = base_path.split('?').next().unwrap_or_default();
    let absolute = if has_scheme(reference) {
        reference.to_owned()
    } else if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else if reference.starts_with('/') {
        format!("{origin}{}", without_dots(reference))
    } else if reference.is_empty() {
        base.to_owned()
    } else if reference.starts_with('?') {
        format!("{origin}{base_path_only}{reference}")
    } else {
        let folder = base_path_only.rfind('/').map_or("/", |at| &base_path_only[..=at]);
        format!("{origin}{}", without_dots(&format!("{folder}{reference}")))
    };
    normalised(&absolute)
}

fn has_scheme(reference: &str) -> bool {
    let end = reference.find([':', '/', '?']).filter(|at| reference[*at..].starts_with(':'));
    end.is_some_and(|at| reference[..at].starts_with(|c: char| c.is_ascii_alphabetic()))
}

fn normalised(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !matches!(&*scheme, "http" | "https") || authority.is_empty() || authority.contains('@') {
        return None;
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some(under_policy(&format!("{scheme}://{authority}{path}"), &KeyPolicy::default()))
}

/// Removes dot segments (RFC 3986 §5.2.4) from a path that starts with `/`. A query stays as it is.
fn without_dots(path: &str) -> String {
    let (path, query) = match path.find('?') {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (i, segment) in segments.iter().enumerate() {
        let last = i + 1 == segments.len();
        match *segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://e.org/a/b?c=d";

    #[test]
    fn references_are_resolved_as_rfc_3986_says() {
        let check = |reference: &str, expected: &str| {
            assert_eq!(resolve(URL, reference).as_deref(), Some(expected), "{reference}");
        };
        check("", URL);
        check("x", "https://e.org/a/x");
        check("../x/./y?z#f", "https://e.org/x/y?z");
        check("../../../x", "https://e.org/x");
        check("..", "https://e.org/");
        check("?q", "https://e.org/a/b?q");
        check("//other.org", "https://other.org/");
        check("HTTP://Other.org:80?q", "http://other.org/?q");
        check("/a:b", "https://e.org/a:b");
        assert_eq!(resolve(URL, "data:text/plain,x"), None);
    }
}
