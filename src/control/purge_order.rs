//! The order of a purge: read from the JSON of `POST /purge`, every mistake named, or made of a
//! `PURGE` request's URL.

use http::Uri;
use serde::Deserialize;

use super::http::{Problem, absolute_url, from_json_object, non_null_string};
use crate::cache::{PurgeKind, PurgeScope};

/// A purge as the caller ordered it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PurgeOrder {
    /// What it covers; at least one, at most [`SCOPES_MAX`].
    pub scopes: Vec<PurgeScope>,
    /// Soft marks stale, hard removes.
    pub kind: PurgeKind,
    /// For the audit log, at most [`REASON_CHARS_MAX`].
    pub reason: Option<String>,
    /// How many of the most popular of what is purged each node fetches again.
    pub refresh: usize,
}

/// The most URLs or tags of one call.
pub(crate) const SCOPES_MAX: usize = 10_000;
/// The longest reason, in characters.
pub(crate) const REASON_CHARS_MAX: usize = 1024;
/// The most that is fetched again.
pub(crate) const REFRESH_MAX: usize = 10_000;
/// The longest tag, prefix or URL, in bytes.
pub(crate) const SCOPE_BYTES_MAX: usize = 8192;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, deserialize_with = "non_null_string")]
    url: Option<String>,
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "non_null_string")]
    prefix: Option<String>,
    #[serde(default, deserialize_with = "non_null_string")]
    tag: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "non_null_string")]
    site: Option<String>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    soft: bool,
    reason: Option<String>,
    #[serde(default)]
    refresh: usize,
}

/// What the node knows of the names in a purge.
pub(crate) trait Names {
    /// A URL as it is written in keys: the routing's own normalisation.
    ///
    /// # Errors
    /// Why no key is written like this.
    fn canonical_url(&self, uri: &Uri) -> Result<String, String>;
    /// Whether a site is called this.
    ///
    /// # Errors
    /// That there is none, and which may be meant.
    fn check_site(&self, name: &str) -> Result<(), String>;
}

impl PurgeOrder {
    /// A hard purge of one URL, for both schemes, that came as a `PURGE` request. `url_key` is the
    /// URL as it stands in keys.
    ///
    /// # Errors
    /// 400: it is longer than [`SCOPE_BYTES_MAX`].
    pub(crate) fn by_method(url_key: &str) -> Result<Self, Problem> {
        Ok(Self {
            scopes: both_schemes(&checked("url", url_key)?).map(PurgeScope::Url).into(),
            kind: PurgeKind::Hard,
            reason: Some("PURGE request".to_owned()),
            refresh: 0,
        })
    }

    /// Reads the body of a call.
    ///
    /// # Errors
    /// Not JSON, unknown fields, nothing to purge, too much of it, URLs that aren't absolute,
    /// or aren't of this node, sites that it doesn't have: a [`Problem`] that says which.
    pub(crate) fn parse(body: &[u8], names: &dyn Names) -> Result<Self, Problem> {
        let written: Written = from_json_object(body)
            .map_err(|why| Problem::bad_request(format!("the body is not a purge: {why}")))?;
        let mut scopes = Vec::new();
        for url in written.url.iter().chain(&written.urls) {
            scopes.extend(url_scopes(url, names)?);
        }
        for tag in written.tag.iter().chain(&written.tags) {
            scopes.push(PurgeScope::Tag(checked("tag", tag)?));
        }
        if let Some(prefix) = &written.prefix {
            scopes.extend(prefix_scopes(prefix, names)?);
        }
        if let Some(site) = &written.site {
            names.check_site(site).map_err(|why| Problem::bad_value("site", site, &why))?;
            scopes.push(PurgeScope::Site(checked("site", site)?));
        }
        if written.all {
            scopes.push(PurgeScope::All);
        }
        let asked = written.urls.len() + written.tags.len();
        if asked > SCOPES_MAX {
            let detail = format!("{asked} URLs and tags in one call: at most {SCOPES_MAX}");
            return Err(Problem::new(http::StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        if scopes.is_empty() {
            let detail = "nothing to purge: give one of url, urls, prefix, tag, tags, site, all";
            return Err(Problem::bad_request(detail));
        }
        if written.reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON_CHARS_MAX) {
            let detail = format!("the reason is longer than {REASON_CHARS_MAX} characters");
            return Err(Problem::bad_request(detail));
        }
        if written.refresh > REFRESH_MAX {
            let detail = format!("refresh {}: at most {REFRESH_MAX}", written.refresh);
            return Err(Problem::bad_request(detail));
        }
        let kind = if written.soft { PurgeKind::Soft } else { PurgeKind::Hard };
        Ok(Self { scopes, kind, reason: written.reason, refresh: written.refresh })
    }
}

/// A URL is purged for both schemes: who purges the https page wants the http one gone too.
fn url_scopes(url: &str, names: &dyn Names) -> Result<[PurgeScope; 2], Problem> {
    let uri = absolute_url(&checked("url", url)?)?;
    let url_key =
        names.canonical_url(&uri).map_err(|error| Problem::bad_value("url", url, &error))?;
    Ok(both_schemes(&url_key).map(PurgeScope::Url))
}

/// Host and path as in keys, so that no spelling of them misses; of a query, what is there is taken
/// as it stands.
fn prefix_scopes(prefix: &str, names: &dyn Names) -> Result<[PurgeScope; 2], Problem> {
    let text = checked("prefix", prefix)?;
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_whole = rest.is_some_and(|rest| rest.contains('/') && !rest.starts_with('/'));
    if !is_whole {
        let expected = "expected scheme, host and at least one slash of the path, such as https://example.org/blog/";
        return Err(Problem::bad_value("prefix", prefix, &expected));
    }
    let (path, query) = text.split_at(text.find('?').unwrap_or(text.len()));
    let uri: Uri = path.parse().map_err(|error| Problem::bad_value("prefix", prefix, &error))?;
    let path =
        names.canonical_url(&uri).map_err(|error| Problem::bad_value("prefix", prefix, &error))?;
    Ok(both_schemes(&(path + query)).map(PurgeScope::Prefix))
}

fn both_schemes(url: &str) -> [Box<str>; 2] {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    [format!("https://{rest}").into(), format!("http://{rest}").into()]
}

fn checked(what: &str, value: &str) -> Result<Box<str>, Problem> {
    if value.is_empty() {
        return Err(Problem::bad_request(format!("an empty {what}")));
    }
    if value.len() > SCOPE_BYTES_MAX {
        return Err(Problem::bad_request(format!(
            "a {what} of {} bytes: at most {SCOPE_BYTES_MAX}",
            value.len()
        )));
    }
    Ok(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Example;

    impl Names for Example {
        fn canonical_url(&self, uri: &Uri) -> Result<String, String> {
            Ok(format!(
                "https://{}{uri}",
                uri.host().unwrap_or_default().to_lowercase(),
                uri = uri.path()
            ))
        }

        fn check_site(&self, name: &str) -> Result<(), String> {
            if name == "www" { Ok(()) } else { Err("there is no such site".to_owned()) }
        }
    }

    fn parse(body: &str) -> Result<PurgeOrder, Problem> {
        PurgeOrder::parse(body.as_bytes(), &Example)
    }

    fn check_refused(body: &str, expected: &str) {
        let problem = parse(body).expect_err("refused");
        assert!(problem.detail.contains(expected), "{}", problem.detail);
        assert!(problem.status.is_client_error());
    }

    #[test]
    fn a_url_is_purged_for_both_schemes() {
        let order = parse(r#"{"url": "https://example.org/a"}"#).expect("a purge");
        let urls = ["https://example.org/a", "http://example.org/a"];
        assert_eq!(order.scopes, urls.map(|url| PurgeScope::Url(url.into())));
        assert_eq!(order.kind, PurgeKind::Hard);
    }

    #[test]
    fn the_purge_method_orders_what_a_call_would() {
        let order = parse(r#"{"url": "https://example.org/a", "reason": "PURGE request"}"#);
        assert_eq!(PurgeOrder::by_method("https://example.org/a"), order);
        let long = "https://example.org/".repeat(SCOPE_BYTES_MAX / 20 + 1);
        let problem = PurgeOrder::by_method(&long).expect_err("refused");
        assert_eq!(problem.status, http::StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_prefix_keeps_its_path_and_lowers_its_host() {
        let order =
            parse(r#"{"prefix": "https://Example.org:443/Blog/?a=", "soft": true}"#).expect("ok");
        assert_eq!(order.scopes[0], PurgeScope::Prefix("https://example.org/Blog/?a=".into()));
        assert_eq!(order.kind, PurgeKind::Soft);
    }

    #[test]
    fn mistakes_are_named() {
        check_refused("{", "not a purge");
        check_refused("", "expected a JSON object");
        check_refused(r#"["https://example.org/", []]"#, "expected a JSON object");
        check_refused(r#"{"url": "ftp://example.org/a"}"#, "expected an absolute URL");
        check_refused(r#"{"url": "https://me@example.org/a"}"#, "user and password");
        check_refused("{}", "nothing to purge");
        check_refused(r#"{"uri": "x"}"#, "unknown field `uri`");
        check_refused(r#"{"url": "/a"}"#, "expected an absolute URL");
        check_refused(r#"{"prefix": "https://example.org"}"#, "at least one slash");
        check_refused(r#"{"tag": ""}"#, "an empty tag");
        check_refused(r#"{"site": "wwww"}"#, "site \"wwww\": there is no such site");
        let many = vec!["\"t\""; SCOPES_MAX + 1].join(",");
        check_refused(&format!(r#"{{"tags": [{many}]}}"#), "at most 10000");
    }
}
