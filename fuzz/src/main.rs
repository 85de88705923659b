//! Gives the bytes that libFuzzer makes to one target of `skerry::fuzzing`, which `SKERRY_FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

use skerry::fuzzing::TARGETS;

static CHECK: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let named = std::env::var("SKERRY_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == named);
    let names = || TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    found.unwrap_or_else(|| panic!("SKERRY_FUZZ_TARGET is {named:?}: expected one of {}", names())).1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| CHECK(data));
