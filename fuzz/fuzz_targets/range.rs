#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| skerry_fuzz::targets::range(data));
