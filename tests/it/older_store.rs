//! A store that an earlier version wrote: it opens warm.
//!
//! fixtures/store-before-forms.tar.gz is the data directory of a node from before forms, after a clean stop. Its
//! configuration was [`CONFIG`]. It had fetched each of [`TARGETS`] from `http://a.test`.

use std::process::Command;

use crate::coding::{accept, decoded, html};
use crate::harness::victim::Victim;
use crate::harness::{Answer, Origin, exchange, until};

const CONFIG: &str = "[store]\nmemory = \"32MiB\"\ndisk = \"2MiB\"\nslice = \"4KiB\"\nadmission = \"all\"\n\
                      object_age_max = \"36500d\"\n[log]\naccess = \"off\"\n";

/// The number of bytes of the content, and whether the origin had sent it coded, with `Vary: Accept-Encoding`.
const TARGETS: [&str; 4] = ["/1000", "/20000", "/1000/gzip", "/60000/gzip"];

fn content(target: &str) -> Vec<u8> {
    let bytes: usize = target.split('/').nth(1).and_then(|it| it.parse().ok()).expect("a number");
    let line = |number: usize| format!("<p class=\"w{}\">line {number}</p>\n", number % 7);
    let mut text = (0..=bytes / 20).map(line).collect::<String>().into_bytes();
    text.truncate(bytes);
    text
}

#[test]
fn a_store_from_before_forms_opens_warm_and_gets_forms() {
    // The stored responses may be used for a year without a validation, and any time with one.
    let origin = Origin::start(|request| match request.header("if-none-match") {
        Some(tag) => Answer::status(304).header("ETag", tag).fresh_for(3600),
        // Stored as a variant of `Accept-Encoding`, which is no selecting field any more: fetched again.
        None if request.target.ends_with("/gzip") => html(content(&request.target)),
        None => Answer::status(503).header("Cache-Control", "no-store"),
    });
    let directory = tempfile::tempdir().expect("a folder");
    let data = directory.path().join("data");
    std::fs::create_dir(&data).expect("a folder");
    let archive =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/store-before-forms.tar.gz");
    let unpacked = Command::new("tar").args(["-xzf", archive, "-C"]).arg(&data).status();
    assert!(unpacked.expect("tar runs").success());
    for start in 1..=2 {
        let victim = Victim::start(directory.path(), &origin.url(), CONFIG);
        for target in TARGETS {
            let get = |coding: &str| exchange(victim.address, "a.test", target, &[&accept(coding)]);
            until("the index has been read", || get("identity").status == 200);
            for coding in ["identity", "gzip", "br", "br"] {
                let response = get(coding);
                let about = format!("start {start}, {target} {coding}: {:?}", response.headers);
                assert!(response.status == 200 && response.is_complete, "{about}");
                let found = response.header("content-encoding");
                assert_eq!(found, coding.replace("identity", ""), "{about}");
                assert!(decoded(&found, &response.body) == content(target), "{about}");
            }
        }
        victim.kill();
    }
}
