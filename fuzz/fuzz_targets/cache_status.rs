//! Cache-Status: whatever the key, what is written is one valid member of a structured list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sfv::{List, Parser};
use skerry_fuzz::cache::{CacheStatus, Reason};

fuzz_target!(|input: (&str, u8, i64)| {
    let (key, reason, ttl) = input;
    let reason = Reason::ALL[usize::from(reason) % Reason::ALL.len()];
    // sf-integers have fifteen digits.
    let ttl = ttl % 1_000_000_000_000_000;
    let status = CacheStatus { ttl: Some(ttl), ..CacheStatus::forwarded(reason) };
    let written = status.render("skerry", Some(key));
    let list: List = Parser::new(written.as_bytes()).parse().expect("a structured list");
    assert_eq!(list.len(), 1);
});
