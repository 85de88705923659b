//! The guard against web cache deception: a response is not stored if its path looks like a file and its type is
//! another one, such as `/account/x.css` that is the HTML of an account's page.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

/// Whether a successful response's type does not go with its path's extension.
pub(crate) fn is_deceptive(url: &str, status: StatusCode, headers: &HeaderMap) -> bool {
    if !status.is_success() {
        return false;
    }
    let Some(types) = extension(url).and_then(expected_types) else { return false };
    let Some(found) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let found = found.split(';').next().unwrap_or_default().trim();
    let starts = |prefix: &str| {
        found.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    !types.iter().chain(&UNTYPED).any(|prefix| starts(prefix))
}

/// The extension of a path's last segment. `;` ends it too: `/account;x.css` reaches many
/// frameworks as `/account`, and still ends in `.css`.
fn extension(url: &str) -> Option<&str> {
    let path = url.split('?').next()?;
    let (_, extension) = path.rsplit_once('/')?.1.rsplit_once('.')?;
    Some(extension)
}

/// The beginnings of the types that go with an extension. `None` if any type goes with it.
fn expected_types(extension: &str) -> Option<&'static [&'static str]> {
    let row = TABLE.iter().find(|(extensions, _)| {
        extensions.iter().any(|known| known.eq_ignore_ascii_case(extension))
    });
    row.map(|(_, types)| *types)
}

type Row = (&'static [&'static str], &'static [&'static str]);

/// Extensions that caches are often told to keep for long, and the types that go with them.
const TABLE: [Row; 8] = [
    (&["css"], &["text/css"]),
    (
        &["js", "mjs"],
        &[
            "application/javascript",
            "text/javascript",
            "application/x-javascript",
            "application/ecmascript",
        ],
    ),
    (
        &["png", "jpg", "jpeg", "gif", "webp", "avif", "bmp", "ico", "svg", "svgz", "tif", "tiff"],
        &["image/"],
    ),
    (
        &["woff", "woff2", "ttf", "otf", "eot"],
        &["font/", "application/font", "application/x-font", "application/vnd.ms-fontobject"],
    ),
    (&["mp4", "webm", "m4v", "mov", "ogv", "mkv"], &["video/", "audio/", "application/mp4"]),
    (
        &["mp3", "ogg", "wav", "flac", "m4a", "aac", "opus"],
        &["audio/", "video/", "application/ogg"],
    ),
    (
        &["zip", "gz", "bz2", "7z", "rar", "tar", "zst", "jar", "dmg", "exe", "iso"],
        &["application/", "binary/"],
    ),
    (&["pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx"], &["application/"]),
];

/// Types that do not describe the content.
const UNTYPED: [&str; 2] = ["application/octet-stream", "binary/octet-stream"];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, content_type: &str, status: StatusCode, expected: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().expect("a value"));
        assert_eq!(is_deceptive(url, status, &headers), expected, "{url} {content_type}");
    }

    #[test]
    fn a_page_under_a_static_name_is_deceptive() {
        check("https://e.org/account/x.css", "text/html; charset=utf-8", StatusCode::OK, true);
        check("https://e.org/account;x.CSS?a=b", "text/html", StatusCode::OK, true);
        check("https://e.org/account/x.jpg", "application/json", StatusCode::OK, true);
        check("https://e.org/account/x.pdf", "text/html", StatusCode::OK, true);
    }

    #[test]
    fn honest_responses_are_not() {
        check("https://e.org/x.css", "Text/CSS;charset=utf-8", StatusCode::OK, false);
        check("https://e.org/x.png", "image/webp", StatusCode::OK, false);
        check("https://e.org/x.js", "application/octet-stream", StatusCode::OK, false);
        check("https://e.org/x.css", "text/html", StatusCode::NOT_FOUND, false);
        check("https://e.org/x.php", "text/html", StatusCode::OK, false);
        check("https://e.css/account", "text/html", StatusCode::OK, false);
        check("https://e.org/a?x=.css", "text/html", StatusCode::OK, false);
        assert!(!is_deceptive("https://e.org/x.css", StatusCode::OK, &HeaderMap::new()));
    }
}
