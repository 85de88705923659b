//! Vary and the normalising of selecting fields: canonical values are stable.
#![no_main]

use http::{HeaderName, HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use skerry_fuzz::cache::vary::{Vary, VaryList, fold_codings, variant_key};
use skerry_fuzz::{cache::CacheKey, field};

const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];

fuzz_target!(|data: &[u8]| {
    let _ = Vary::of(&field("vary", data));
    let key = CacheKey::new("https://e.org/");
    for name in ["accept-encoding", "accept-language", "accept", "foo", "cookie"] {
        let headers = field(name, data);
        let fields = [HeaderName::from_static(name)];
        let (hash, _) = variant_key(&key, &fields, &headers, &CODINGS);
        assert_eq!(hash, variant_key(&key, &fields, &headers, &CODINGS).0);
        VaryList::default().candidates(&key, &headers, &CODINGS, true);
    }
    // What is folded folds to itself.
    let folded = fold_codings(&field("accept-encoding", data), &CODINGS);
    let mut again = HeaderMap::new();
    again.insert("accept-encoding", HeaderValue::try_from(&folded).expect("a value"));
    assert_eq!(fold_codings(&again, &CODINGS), folded);
});
