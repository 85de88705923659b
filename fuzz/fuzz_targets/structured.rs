//! Structured fields: targeted directives, groups, No-Vary-Search.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skerry_fuzz::cache::search::NoVarySearch;
use skerry_fuzz::cache::{Settings, tags, targeted};
use skerry_fuzz::field;

fuzz_target!(|data: &[u8]| {
    let settings = Settings::default();
    targeted::addressed(&field("cdn-cache-control", data), &settings.targeted);
    targeted::addressed(&field("surrogate-control", data), &settings.targeted);
    for name in ["cache-groups", "surrogate-key", "cache-tag"] {
        tags::tags(&field(name, data), "https://e.org");
    }
    if let Some(said) = NoVarySearch::of(&field("no-vary-search", data)) {
        let query = String::from_utf8_lossy(data);
        let once = said.canonical(&query);
        assert_eq!(said.canonical(&once), once);
    }
});
