//! Reads a [`PurgeRequest`] from the JSON body of `POST /purge`, or from the URL of an HTTP request with the
//! method PURGE.

use http::Uri;

use super::http::{Problem, absolute_url};
use super::json_fields::JsonFields;
use crate::cache::{PurgeKind, PurgeScope};
use crate::purge::PurgeRequest;

/// Maximum number of `urls` and `tags` of one call.
pub(crate) const SCOPES_MAX: usize = 10_000;
/// Maximum length of `reason`, in characters.
pub(crate) const REASON_CHARS_MAX: usize = 1024;
/// Maximum of `refresh`.
pub(crate) const REFRESH_MAX: usize = 10_000;
/// Maximum length of a tag, prefix, URL or site name, in bytes.
pub(crate) const SCOPE_BYTES_MAX: usize = 8192;

/// The JSON body of `POST /purge`.
#[derive(Debug)]
struct PurgeBody {
    url: Option<String>,
    urls: Vec<String>,
    prefix: Option<String>,
    tag: Option<String>,
    tags: Vec<String>,
    site: Option<String>,
    all: bool,
    soft: bool,
    reason: Option<String>,
    refresh: usize,
}

impl PurgeBody {
    fn parse(body: &[u8]) -> Result<Self, String> {
        let mut fields = JsonFields::parse(body)?;
        let body = Self {
            url: fields.string("url")?,
            urls: fields.strings("urls")?,
            prefix: fields.string("prefix")?,
            tag: fields.string("tag")?,
            tags: fields.strings("tags")?,
            site: fields.string("site")?,
            all: fields.truth("all")?,
            soft: fields.truth("soft")?,
            reason: fields.optional_string("reason")?,
            refresh: fields.number("refresh", REFRESH_MAX)?,
        };
        fields.finish(&FIELDS)?;
        Ok(body)
    }
}

const FIELDS: [&str; 10] =
    ["url", "urls", "prefix", "tag", "tags", "site", "all", "soft", "reason", "refresh"];

/// Resolves the URLs and site names of a purge with the configuration in use.
pub(crate) trait SiteLookup {
    /// Normalises a URL as in cache keys.
    ///
    /// # Errors
    /// Why the URL cannot be a cache key.
    fn canonical_url(&self, uri: &Uri) -> Result<String, String>;
    /// Checks that a site with this name exists.
    ///
    /// # Errors
    /// No site has this name; the message suggests a similar one.
    fn check_site(&self, name: &str) -> Result<(), String>;
}

impl PurgeRequest {
    /// A hard purge of one URL, for both schemes, from an HTTP request with the method PURGE. `url_key` is
    /// the normalised URL.
    ///
    /// # Errors
    /// 400: the URL is longer than [`SCOPE_BYTES_MAX`].
    pub(crate) fn from_purge_method(url_key: &str) -> Result<Self, Problem> {
        Ok(Self {
            scopes: both_schemes(&check_length("url", url_key)?).map(PurgeScope::Url).into(),
            kind: PurgeKind::Hard,
            reason: Some("PURGE request".to_owned()),
            refresh: 0,
        })
    }

    /// Parses the body of `POST /purge`.
    ///
    /// # Errors
    /// 400 or 413, with the reason: invalid JSON, an unknown field, no scope, too many scopes, an invalid
    /// URL or an unknown site.
    pub(crate) fn parse(body: &[u8], sites: &dyn SiteLookup) -> Result<Self, Problem> {
        let body = PurgeBody::parse(body).map_err(|why| {
            Problem::bad_request(format!("invalid purge request: {}", hint(&why)))
        })?;
        let mut scopes = Vec::new();
        for url in body.url.iter().chain(&body.urls) {
            scopes.extend(url_scopes(url, sites)?);
        }
        for tag in body.tag.iter().chain(&body.tags) {
            scopes.push(PurgeScope::Tag(check_length("tag", tag)?));
        }
        if let Some(prefix) = &body.prefix {
            scopes.extend(prefix_scopes(prefix, sites)?);
        }
        if let Some(site) = &body.site {
            sites.check_site(site).map_err(|why| Problem::bad_value("site", site, &why))?;
            scopes.push(PurgeScope::Site(check_length("site", site)?));
        }
        if body.all {
            scopes.push(PurgeScope::All);
        }
        let requested = body.urls.len() + body.tags.len();
        if requested > SCOPES_MAX {
            let detail =
                format!("too many URLs and tags: {requested}, at most {SCOPES_MAX} are allowed");
            return Err(Problem::new(http::StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        if scopes.is_empty() {
            let detail =
                "nothing to purge: expected one of url, urls, prefix, tag, tags, site, all";
            return Err(Problem::bad_request(detail));
        }
        if body.reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON_CHARS_MAX) {
            let detail = format!("reason is longer than {REASON_CHARS_MAX} characters");
            return Err(Problem::bad_request(detail));
        }
        let kind = if body.soft { PurgeKind::Soft } else { PurgeKind::Hard };
        Ok(Self { scopes, kind, reason: body.reason, refresh: body.refresh })
    }
}

/// Adds what to do to a message about the fields.
fn hint(why: &str) -> String {
    let parameters = ["unknown field \"wait\"", "unknown field \"timeout\""];
    match parameters.iter().any(|start| why.starts_with(start)) {
        true => format!("{why}; wait and timeout are query parameters: /purge?wait=all&timeout=2s"),
        false => why.to_owned(),
    }
}

/// The scopes of a URL. A URL is purged for both schemes, because both usually serve the same content.
fn url_scopes(url: &str, sites: &dyn SiteLookup) -> Result<[PurgeScope; 2], Problem> {
    let uri = absolute_url(&check_length("url", url)?)?;
    let url_key =
        sites.canonical_url(&uri).map_err(|error| Problem::bad_value("url", url, &error))?;
    Ok(both_schemes(&url_key).map(PurgeScope::Url))
}

/// The scopes of a prefix. Host and path are normalised as in cache keys; a query is matched literally.
fn prefix_scopes(prefix: &str, sites: &dyn SiteLookup) -> Result<[PurgeScope; 2], Problem> {
    let text = check_length("prefix", prefix)?;
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let has_host_and_path = rest.is_some_and(|rest| rest.contains('/') && !rest.starts_with('/'));
    if !has_host_and_path {
        let expected = "expected scheme, host and at least one slash of the path, such as https://example.org/blog/";
        return Err(Problem::bad_value("prefix", prefix, &expected));
    }
    let (path, query) = text.split_at(text.find('?').unwrap_or(text.len()));
    let uri: Uri = path.parse().map_err(|error| Problem::bad_value("prefix", prefix, &error))?;
    let path =
        sites.canonical_url(&uri).map_err(|error| Problem::bad_value("prefix", prefix, &error))?;
    Ok(both_schemes(&(path + query)).map(PurgeScope::Prefix))
}

fn both_schemes(url: &str) -> [Box<str>; 2] {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    [format!("https://{rest}").into(), format!("http://{rest}").into()]
}

/// Checks the length of a value of the field `field`.
fn check_length(field: &str, value: &str) -> Result<Box<str>, Problem> {
    if value.is_empty() {
        return Err(Problem::bad_request(format!("{field} must not be empty")));
    }
    if value.len() > SCOPE_BYTES_MAX {
        return Err(Problem::bad_request(format!(
            "{field} has {} bytes, at most {SCOPE_BYTES_MAX} are allowed",
            value.len()
        )));
    }
    Ok(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct ExampleSites;

    impl SiteLookup for ExampleSites {
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

    fn parse(body: &str) -> Result<PurgeRequest, Problem> {
        PurgeRequest::parse(body.as_bytes(), &ExampleSites)
    }

    fn check_refused(body: &str, expected: &str) {
        let problem = parse(body).expect_err("refused");
        assert!(problem.detail.contains(expected), "{}", problem.detail);
        assert!(problem.status.is_client_error());
    }

    #[test]
    fn a_url_is_purged_for_both_schemes() {
        let request = parse(r#"{"url": "https://example.org/a"}"#).expect("a purge");
        let urls = ["https://example.org/a", "http://example.org/a"];
        assert_eq!(request.scopes, urls.map(|url| PurgeScope::Url(url.into())));
        assert_eq!(request.kind, PurgeKind::Hard);
    }

    #[test]
    fn the_purge_method_equals_a_purge_of_one_url() {
        let request = parse(r#"{"url": "https://example.org/a", "reason": "PURGE request"}"#);
        assert_eq!(PurgeRequest::from_purge_method("https://example.org/a"), request);
        let long = "https://example.org/".repeat(SCOPE_BYTES_MAX / 20 + 1);
        let problem = PurgeRequest::from_purge_method(&long).expect_err("refused");
        assert_eq!(problem.status, http::StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_prefix_has_a_lowercase_host_and_an_unchanged_path() {
        let request =
            parse(r#"{"prefix": "https://Example.org:443/Blog/?a=", "soft": true}"#).expect("ok");
        assert_eq!(request.scopes[0], PurgeScope::Prefix("https://example.org/Blog/?a=".into()));
        assert_eq!(request.kind, PurgeKind::Soft);
    }

    #[test]
    fn every_mistake_is_reported() {
        check_refused("{", "invalid purge request");
        check_refused(r#"{"all": true, "wait": "all"}"#, "are query parameters");
        check_refused(r#"{"url": "m.test/x"}"#, "expected an absolute http or https URL");
        check_refused("", "expected a JSON object");
        check_refused(r#"["https://example.org/", []]"#, "expected a JSON object");
        check_refused(
            r#"{"url": "ftp://example.org/a"}"#,
            "expected an absolute http or https URL",
        );
        check_refused(r#"{"url": "https://me@example.org/a"}"#, "user and password");
        check_refused("{}", "nothing to purge");
        check_refused(r#"{"uri": "x"}"#, "unknown field \"uri\"");
        check_refused(r#"{"all": true, "refresh": 10001}"#, "a whole number from 0 to 10000");
        check_refused(r#"{"url": "/a"}"#, "expected an absolute http or https URL");
        check_refused(r#"{"prefix": "https://example.org"}"#, "at least one slash");
        check_refused(r#"{"tag": ""}"#, "tag must not be empty");
        check_refused(r#"{"site": "wwww"}"#, "site \"wwww\": there is no such site");
        let many = vec!["\"t\""; SCOPES_MAX + 1].join(",");
        check_refused(&format!(r#"{{"tags": [{many}]}}"#), "at most 10000 are allowed");
    }
}
