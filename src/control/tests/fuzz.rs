//! Fuzz targets: what callers of the admin API send, and sitemaps.

use bytes::Bytes;
use http::Uri;
use serde_json::{Value, json};

use super::http::{check_parameters, parameter};
use super::purge_request::{
    REASON_CHARS_MAX, REFRESH_MAX, SCOPE_BYTES_MAX, SCOPES_MAX, SiteLookup,
};
use super::sitemap;
use crate::cache::{PurgeKind, PurgeScope};
use crate::percent::percent_decode;
use crate::purge::PurgeRequest;

struct AnyName;

impl SiteLookup for AnyName {
    fn canonical_url(&self, uri: &Uri) -> Result<String, String> {
        Ok(uri.to_string())
    }

    fn check_site(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// An accepted purge is within its limits, and ordering the keys that it names gives the same purge.
pub(crate) fn admin_purge(data: &[u8]) {
    let Ok(order) = PurgeRequest::parse(data, &AnyName) else { return };
    assert!(serde_json::from_slice::<Value>(data).is_ok_and(|value| value.is_object()));
    assert!(!order.scopes.is_empty() && order.scopes.len() <= 2 * SCOPES_MAX + 8);
    assert!(order.refresh <= REFRESH_MAX);
    let reason = order.reason.as_deref().unwrap_or_default();
    assert!(reason.chars().count() <= REASON_CHARS_MAX);
    let (mut urls, mut tags, mut prefixes, mut sites, mut all) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), false);
    for scope in &order.scopes {
        let text = match scope {
            PurgeScope::All => {
                all = true;
                continue;
            }
            PurgeScope::Url(url) if url.starts_with("http:") => continue,
            PurgeScope::Prefix(prefix) if prefix.starts_with("http:") => continue,
            PurgeScope::Url(text) => urls.push_text(text),
            PurgeScope::Prefix(text) => prefixes.push_text(text),
            PurgeScope::Tag(text) => tags.push_text(text),
            PurgeScope::Site(text) => sites.push_text(text),
        };
        // A scheme may have become longer, and a path been added.
        assert!(!text.is_empty() && text.len() <= SCOPE_BYTES_MAX + 2);
    }
    assert!(prefixes.len() <= 1 && sites.len() <= 1);
    let mut again = json!({
        "urls": urls, "tags": tags, "all": all,
        "soft": order.kind == PurgeKind::Soft, "refresh": order.refresh, "reason": order.reason,
    });
    for (name, value) in [("prefix", prefixes.pop()), ("site", sites.pop())] {
        if let Some(value) = value {
            again[name] = value.into();
        }
    }
    if urls.iter().all(|url| url.len() <= SCOPE_BYTES_MAX) && urls.len() + tags.len() <= SCOPES_MAX
    {
        assert_eq!(PurgeRequest::parse(again.to_string().as_bytes(), &AnyName), Ok(order));
    }
}

trait PushText {
    fn push_text<'a>(&mut self, text: &'a str) -> &'a str;
}

impl PushText for Vec<String> {
    fn push_text<'a>(&mut self, text: &'a str) -> &'a str {
        self.push(text.to_owned());
        text
    }
}

/// `percent_decode` accepts exactly the texts in which two hex digits follow every percent sign and the decoded
/// bytes are UTF-8. An accepted query has each parameter at most once, with the value that is read.
pub(crate) fn admin_query(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let decoded = percent_decode(text);
    assert_eq!(decoded.as_deref(), decode_simply(text).as_deref());
    if let Some(decoded) = decoded {
        let encoded: String = decoded.bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(percent_decode(&encoded), Some(decoded));
    }
    if check_parameters(text, &["url", "wait"]).is_ok() {
        for name in ["url", "wait"] {
            let of_name = |pair: &&str| pair.split('=').next() == Some(name);
            let pairs: Vec<&str> = text.split('&').filter(of_name).collect();
            assert!(pairs.len() <= 1);
            let value = pairs.first().and_then(|pair| pair.split_once('='));
            let expected = value.map(|(_, value)| decode_simply(value));
            assert_eq!(parameter(text, name).ok(), expected.map_or(Some(None), |it| it.map(Some)));
        }
    }
}

fn decode_simply(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.as_bytes().split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        bytes.extend_from_slice(rest);
    }
    String::from_utf8(bytes).ok()
}

/// The locations of a sitemap are together no longer than its text, and a sitemap written from them lists the
/// same locations.
pub(crate) fn sitemap(data: &[u8]) {
    let Ok(text) = sitemap::decode(Bytes::copy_from_slice(data)) else { return };
    let Ok((locations, is_index)) = sitemap::locations(&text) else { return };
    assert!(locations.iter().map(String::len).sum::<usize>() <= text.len());
    let escaped = locations.iter().map(|location| {
        let references = location.chars().map(|letter| match letter {
            // No reference may name it.
            '\0' => "\0".to_owned(),
            letter => format!("&#x{:x};", u32::from(letter)),
        });
        format!("<loc>{}</loc>", references.collect::<String>())
    });
    let root = if is_index { "sitemapindex" } else { "urlset" };
    let written = format!("<{root}>{}</{root}>", escaped.collect::<String>());
    assert_eq!(sitemap::locations(&written).expect("well-formed"), (locations, is_index));
}
