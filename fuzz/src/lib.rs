//! What fuzz targets share. `cargo fuzz run NAME` from the repository's root, or without
//! cargo-fuzz as docs/conformance.md says.

#[path = "../../src/cache/mod.rs"]
pub mod cache;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The lines of `data` as lines of the field `name`; bytes that no field may have are left out.
pub fn field(name: &'static str, data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    headers
}
