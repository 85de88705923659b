//! Stores that earlier versions wrote: they open warm.
//!
//! fixtures/store-before-forms.tar.gz is the data directory of a node from before forms, after a clean stop. Its
//! configuration was [`CONFIG`]. It had fetched each of [`TARGETS`] from `http://a.test`.
//!
//! fixtures/store-before-links.tar.gz is that of a node whose forms were not linked to their sources. It had fetched
//! [`TARGETS_WITH_FORMS`], and then each of them twice with br and gzip.

use std::path::Path;
use std::process::Command;

use crate::coding::{accept, decoded, html};
use crate::harness::victim::Victim;
use crate::harness::{Answer, Origin, exchange, until};

const CONFIG: &str = "[store]\nmemory = \"32MiB\"\ndisk = \"2MiB\"\nslice = \"4KiB\"\nadmission = \"all\"\n\
                      object_age_max = \"36500d\"\n[log]\naccess = \"off\"\n";

/// The number of bytes of the content, and whether the origin had sent it coded, with `Vary: Accept-Encoding`.
const TARGETS: [&str; 4] = ["/1000", "/20000", "/1000/gzip", "/60000/gzip"];

const TARGETS_WITH_FORMS: [&str; 3] = ["/1000", "/20000", "/60000"];

/// Unpacks the data directory of an earlier version below `directory`.
fn unpack(fixture: &str, directory: &Path) {
    let data = directory.join("data");
    std::fs::create_dir(&data).expect("a folder");
    let archive = format!("{}/tests/it/fixtures/{fixture}", env!("CARGO_MANIFEST_DIR"));
    let unpacked = Command::new("tar").args(["-xzf", &archive, "-C"]).arg(&data).status();
    assert!(unpacked.expect("tar runs").success());
}

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
    unpack("store-before-forms.tar.gz", directory.path());
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

#[test]
fn forms_from_before_links_are_used_and_get_links() {
    // The stored responses may be used for a year without a validation, and any time with one.
    let origin = Origin::start(|request| match request.header("if-none-match") {
        Some(tag) => Answer::status(304).header("ETag", tag).fresh_for(3600),
        None => Answer::status(503).header("Cache-Control", "no-store"),
    });
    let directory = tempfile::tempdir().expect("a folder");
    unpack("store-before-links.tar.gz", directory.path());
    for start in 1..=2 {
        let victim = Victim::start(directory.path(), &origin.url(), CONFIG);
        let get = |target: &str, coding: &str| {
            exchange(victim.address, "a.test", target, &[&accept(coding)])
        };
        until("the index has been read", || get("/1000", "identity").status == 200);
        for target in TARGETS_WITH_FORMS {
            for coding in ["br", "gzip"] {
                let response = get(target, coding);
                let about = format!("start {start}, {target} {coding}: {:?}", response.headers);
                assert!(response.status == 200 && response.is_complete, "{about}");
                assert_eq!(response.header("content-encoding"), coding, "{about}");
                assert!(decoded(coding, &response.body) == content(target), "{about}");
            }
        }
        assert_eq!(victim.metric("skerry_bodies_encoded_total"), 0.0, "start {start}");
        let reads = victim.metric("skerry_store_disk_reads_total");
        match start {
            // Of each target the response and two forms.
            1 => {
                assert!(reads >= 9.0, "{reads}");
                until("the forms are written again", || {
                    victim.metric("skerry_store_disk_writes_total") >= 6.0
                });
            }
            // The forms, of which two have two slices each, and the response that the test has asked for.
            _ => assert_eq!(reads, 11.0),
        }
        victim.kill();
    }
}
