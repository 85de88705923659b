//! Reads `[pools.NAME.sticky]`.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::names::CookieName;
use crate::config::reader::Section;
use crate::config::values::COOKIE_AGE_MAX;
use crate::upstream::{StickySettings, sticky_key_mistake};

/// How the pool keeps visitors at its origins; `None` without a key file.
pub(super) fn read_sticky(section: &Section<'_>) -> Option<StickySettings> {
    let mut cookie = CookieName("skerry_origin".into());
    let mut key_file = PathBuf::new();
    let mut max_age = Duration::ZERO;
    section.read("cookie", &mut cookie);
    section.read("max_age", &mut max_age);
    if max_age > COOKIE_AGE_MAX {
        let message = "expected at most \"400d\", which is as long as browsers keep a cookie";
        section.mistake("max_age", message);
    }
    let has_key = section.read_file("key_file", &mut key_file);
    if !has_key && (section.has("cookie") || section.has("max_age")) {
        let message = "set \"key_file\", such as key_file = \"sticky.key\" with a line of \"openssl rand -hex 32\"";
        section.mistake("key_file", message);
    }
    let sticky = StickySettings { cookie: cookie.0, key_file, max_age };
    if has_key && let Some(reason) = sticky_key_mistake(&sticky) {
        let path = sticky.key_file.display();
        section.mistake_in_file("key_file", format!("{path}: {reason}"));
    }
    has_key.then_some(sticky)
}
