//! The guard against web cache deception: a response is not stored if its path looks like a file and its type is
//! another one, such as `/account/x.css` that is the HTML of an account's page.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

/// Whether a successful response's type does not go with its path's extension.
pub(crate) fn is_deceptive(url: &str, status: StatusCode, headers: &HeaderMap) -> bool {
    if !status.is_success() {
        return false;
    }
    let Some(name) = file_name(url) else { return false };
    let Some(found) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    !goes_with(name, found.split(';').next().unwrap_or_default().trim())
}

/// A path's last segment. `/account;x.css` reaches many frameworks as `/account`, and still is a name that ends in
/// `.css`.
fn file_name(url: &str) -> Option<&str> {
    Some(url.split('?').next()?.rsplit_once('/')?.1)
}

/// Whether a media type goes with the name of a file. Any type goes with an extension that is not in the table.
fn goes_with(name: &str, media_type: &str) -> bool {
    let Some((stem, extension)) = name.rsplit_once('.') else { return true };
    let Some(types) = expected_types(extension) else { return true };
    let is_of = |types: &[&str]| types.iter().any(|prefix| starts_with(media_type, prefix));
    // `app.css.gz` may have the type of `app.css`, and `data.json.gz` that of `data.json`.
    let inner = if is_one_of(&COMPRESSED, extension) { stem.rsplit_once('.') } else { None };
    let inner = inner.map(|(_, inner)| inner);
    let may_be_data =
        !types.contains(&"application/") || inner.is_some_and(|inner| is_one_of(&DATA, inner));
    is_of(types) && (may_be_data || !is_data(media_type))
        || inner.and_then(expected_types).is_some_and(is_of)
        || is_of(&UNTYPED)
}

/// Whether a type is JSON, XML or written in them, such as `application/problem+json`. Applications answer in such types,
/// and they begin with `application/` as the types of documents and archives do.
fn is_data(media_type: &str) -> bool {
    let subtype = media_type.rsplit_once('/').map_or("", |(_, subtype)| subtype);
    is_one_of(&["json", "xml"], subtype.rsplit('+').next().unwrap_or_default())
}

/// The beginnings of the types that go with an extension. `None` if any type goes with it.
fn expected_types(extension: &str) -> Option<&'static [&'static str]> {
    let row = TABLE.iter().find(|(extensions, _)| is_one_of(extensions, extension));
    row.map(|(_, types)| *types)
}

fn is_one_of(list: &[&str], word: &str) -> bool {
    list.iter().any(|known| known.eq_ignore_ascii_case(word))
}

fn starts_with(media_type: &str, prefix: &str) -> bool {
    media_type.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

type Row = (&'static [&'static str], &'static [&'static str]);

/// Extensions that caches are often told to keep for long, and the types that go with them.
const TABLE: [Row; 9] = [
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
    (&["mp4", "webm", "m4v", "mov", "ogv", "mkv", "avi"], &["video/", "audio/", "application/mp4"]),
    (
        &["mp3", "ogg", "wav", "flac", "m4a", "aac", "opus"],
        &["audio/", "video/", "application/ogg"],
    ),
    (
        &["zip", "gz", "bz2", "7z", "rar", "tar", "zst", "jar", "apk", "dmg", "exe", "iso"],
        &["application/", "binary/"],
    ),
    (&["csv"], &["text/csv", "text/plain", "application/csv", "application/vnd.ms-excel"]),
    (&["pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx"], &["application/"]),
];

/// Extensions of files that are another file, compressed.
const COMPRESSED: [&str; 3] = ["gz", "bz2", "zst"];

/// Extensions of files that have the types of [`is_data`].
const DATA: [&str; 3] = ["json", "geojson", "xml"];

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
        check("https://e.org/account/x.csv", "text/html", StatusCode::OK, true);
        for data in ["application/json; charset=utf-8", "Application/XML", "application/hal+json"] {
            check("https://e.org/account/x.zip", data, StatusCode::OK, true);
            check("https://e.org/account/x.pdf", data, StatusCode::OK, true);
        }
    }

    #[test]
    fn honest_responses_are_not() {
        check("https://e.org/x.css", "Text/CSS;charset=utf-8", StatusCode::OK, false);
        check("https://e.org/x.png", "image/webp", StatusCode::OK, false);
        check("https://e.org/x.js", "application/octet-stream", StatusCode::OK, false);
        check("https://e.org/x.pdf", "application/pdf", StatusCode::OK, false);
        check("https://e.org/x.gz", "application/x-gzip", StatusCode::OK, false);
        check("https://e.org/x.css.gz", "text/css", StatusCode::OK, false);
        check("https://e.org/x.json.gz", "application/json", StatusCode::OK, false);
        check("https://e.org/x.json.gz", "text/html", StatusCode::OK, true);
        check("https://e.org/x.tar.gz", "application/gzip", StatusCode::OK, false);
        check(
            "https://e.org/x.docx",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            StatusCode::OK,
            false,
        );
        check("https://e.org/x.svg", "image/svg+xml", StatusCode::OK, false);
        check("https://e.org/x.csv", "text/csv", StatusCode::OK, false);
        check("https://e.org/x.css", "text/html", StatusCode::NOT_FOUND, false);
        check("https://e.org/x.php", "text/html", StatusCode::OK, false);
        check("https://e.css/account", "text/html", StatusCode::OK, false);
        check("https://e.org/a?x=.css", "text/html", StatusCode::OK, false);
        assert!(!is_deceptive("https://e.org/x.css", StatusCode::OK, &HeaderMap::new()));
    }
}
