//! What fuzzing has kept (fuzz/corpus), run once more against what must hold. A finding that is
//! put there fails here until it is mended.

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/src/targets.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate calls them")]
mod targets;

fn check(target: &str, holds: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let inputs = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{target}: {error}"));
    let mut count = 0;
    for input in inputs {
        let path = input.expect("an entry").path();
        // Shown when it fails.
        println!("{}", path.display());
        holds(&fs::read(path).expect("an input"));
        count += 1;
    }
    assert!(count > 20, "{target}: only {count} inputs");
}

#[test]
fn what_fuzzing_has_kept_of_fields_still_holds() {
    check("cache_control", targets::cache_control);
    check("vary", targets::vary);
    check("structured", targets::structured);
    check("cache_status", targets::cache_status);
}

#[test]
fn what_fuzzing_has_kept_of_dates_and_ranges_still_holds() {
    check("date", targets::date);
    check("range", targets::range);
}
