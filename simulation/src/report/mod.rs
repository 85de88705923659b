//! The report of a run: one HTML file that needs no network, and JSON for other programs.
//!
//! `land.js` is a grid of 2.5 degrees, 144 columns from 180 W and 53 rows from 77.5 N: a bit
//! for each cell whose middle is land. Generated from Natural Earth 4.1's 1:110m land polygons
//! (public domain, by way of the npm package world-atlas 2.0.2).

pub mod origins;
pub mod progress;
pub mod record;
pub mod regions;

use crate::report::record::RunRecord;
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// The HTML page for a record.
pub fn html(record: &RunRecord) -> anyhow::Result<String> {
    let json = serde_json::to_string(record)?;
    // Inside a script element `</` would end it, and `<!--` would start a comment.
    let json = json.replace('<', "\\u003c");
    Ok(PAGE.replace("__LAND__", LAND.trim()).replace("__RECORD__", &json))
}

/// Writes `NAME.html` and `NAME.json` into `folder` and returns the path of the page.
pub fn write(record: &RunRecord, folder: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let stem: String =
        record.scenario.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    let page = folder.join(format!("{stem}.html"));
    let json = folder.join(format!("{stem}.json"));
    std::fs::write(&page, html(record)?).with_context(|| page.display().to_string())?;
    std::fs::write(&json, serde_json::to_string_pretty(record)?)
        .with_context(|| json.display().to_string())?;
    Ok(page)
}

const PAGE: &str = include_str!("report.html");
const LAND: &str = include_str!("land.js");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Findings;
    use crate::report::origins::{OriginFaultRow, RoutingRow};
    use crate::report::record::{FaultRow, NodeRow, PlaceRow, PurgeRow, Second, Totals, Verdict};
    use crate::report::regions::RegionRow;

    /// A record with example data for every part of the page.
    pub(crate) fn sample() -> RunRecord {
        let fault =
            |what: &str, from, to| FaultRow { kind: "cut".into(), what: what.into(), from, to };
        let purge = |at: usize| PurgeRow {
            at: at as f64,
            scope: "tag group-3".into(),
            soft: at.is_multiple_of(3),
            ms: vec![0.9, 48.0, 121.0 + at as f64],
            pending: usize::from(at == 36),
            failed: None,
        };
        let verdict = |name: &str, broken: u64| Verdict {
            name: name.into(),
            promise: "a promise with <script>alert(1)</script> & \"quotes\"".into(),
            kept: broken == 0,
            findings: Findings { checked: 7200, broken, ..Findings::default() },
        };
        RunRecord {
            scenario: "sample".into(),
            about: "what the page can show </script>".into(),
            seed: 7,
            plan: "0123456789abcdef".into(),
            duration_s: 90,
            passed: false,
            totals: Totals {
                requests: 5400,
                hits: 3900,
                other_node: 600,
                bytes: 90_000_000,
                ..Totals::default()
            },
            regions: regions(),
            routing: routing(),
            origin_faults: origin_faults(),
            nodes: vec![
                node("frankfurt-1", 0, vec![[30.0, 38.0]]),
                node("frankfurt-2", 0, vec![]),
                node("virginia-1", 1, vec![]),
                node("tokyo-1", 2, vec![]),
            ],
            origins: vec![PlaceRow::in_region("origin-frankfurt".into(), 0)],
            redis: Some(PlaceRow::in_region("redis".into(), 0)),
            clients: clients(),
            seconds: (0..90).map(second).collect(),
            faults: vec![
                fault("frankfurt-1 killed", 30.0, 38.0),
                fault("Redis paused", 33.0, 52.0),
                fault("tokyo cut from origins", 80.0, 88.0),
            ],
            purges: (0..90).step_by(4).map(purge).collect(),
            verdicts: vec![verdict("whole bytes", 0), verdict("purged stays purged", 2)],
            trouble: vec!["a fault that could not be made".into()],
            notes: vec!["a note".into()],
        }
    }

    fn second(at: usize) -> Second {
        let wave = (at as f64 / 7.0).sin();
        let down = (30..40).contains(&at);
        Second {
            requests: (60.0 + 20.0 * wave) as u64,
            hits: if down { 30 } else { 36 },
            other_node: if down { 2 } else { 9 },
            errors: u64::from(down) * 3,
            latency_ms: [0.8, 60.0 + 30.0 * wave, 180.0],
            fetches: (15.0 + 8.0 * wave) as u64,
            validations: 5,
            fetched_bytes: 100_000,
            memory_mib: 300 + at as u64,
        }
    }

    fn node(name: &str, region: usize, down: Vec<[f64; 2]>) -> NodeRow {
        NodeRow {
            place: PlaceRow::in_region(name.into(), region),
            region: crate::plan::place::REGIONS[region].label.into(),
            requests: 1800,
            hits: 1300,
            other_node: 120,
            bytes_to_nodes: 3_000_000,
            memory_mib: 96,
            files: 80,
            cpu_ms: 2300,
            down,
        }
    }

    fn regions() -> Vec<RegionRow> {
        vec![RegionRow {
            region: "Frankfurt".into(),
            nodes: 2,
            requests: 3600,
            own_store: 2600,
            other_node: 400,
            origin: 590,
            fills: 310,
            repeated: 4,
            has_peers: true,
        }]
    }

    fn routing() -> Vec<RoutingRow> {
        vec![RoutingRow {
            country: "US".into(),
            down: Some("origin-virginia".into()),
            expected: "origin-frankfurt".into(),
            got: [("origin-frankfurt".to_owned(), 41), ("origin-tokyo".to_owned(), 1)].into(),
        }]
    }

    fn origin_faults() -> Vec<OriginFaultRow> {
        vec![OriginFaultRow {
            what: "origin-frankfurt down".into(),
            from: 12.0,
            lasted: 9.0,
            left: 4,
            left_after: Some([0.2, 1.4]),
            back_after: Some([0.9, 7.5]),
            still_left: 0,
        }]
    }

    fn clients() -> Vec<crate::report::record::ClientRow> {
        let mut rows = crate::report::record::client_rows(&[]);
        let weights = crate::plan::place::COUNTRIES.map(|country| u64::from(country.weight) * 54);
        rows.iter_mut().zip(weights).for_each(|(row, requests)| row.requests = requests);
        rows
    }

    #[test]
    fn nothing_in_a_record_can_end_the_script_that_holds_it() {
        let page = html(&sample()).expect("page");
        assert!(page.contains("\\u003cscript>alert(1)\\u003c/script>"));
        let own = PAGE.matches("</script>").count();
        assert_eq!(page.matches("</script>").count(), own);
    }

    /// `cargo test -p simulation sample_page -- --ignored` writes a page to look at.
    #[test]
    #[ignore = "writes a page to look at"]
    fn sample_page() {
        let page = write(&sample(), &std::env::temp_dir().join("skerry-report")).expect("page");
        println!("{}", page.display());
    }

    #[test]
    fn the_page_needs_no_network() {
        let page = html(&sample()).expect("page").replace("http://www.w3.org/2000/svg", "");
        for word in ["http://", "https://", "//cdn", "@import", "url("] {
            assert!(!page.contains(word), "{word}");
        }
    }

    /// In a real browser, the script draws everything and writes nothing to the console.
    #[test]
    fn a_browser_draws_the_page_without_an_error() {
        let browsers = ["chromium", "chromium-browser", "google-chrome"];
        let Some(browser) = browsers.iter().find_map(|name| crate::fleet::redis::on_path(name))
        else {
            eprintln!("skipped: no chromium on the PATH");
            return;
        };
        let folder = tempfile::tempdir().expect("folder");
        let page = write(&sample(), folder.path()).expect("page");
        let out = std::process::Command::new(browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--enable-logging=stderr", "--dump-dom"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .arg(format!("file://{}", page.display()))
            .output()
            .expect("chromium runs");
        let (dom, log) =
            (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let console: Vec<_> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert!(console.is_empty(), "{console:?}");
        assert!(dom.contains("data-drawn=\"yes\""), "the script did not reach its end");
        assert!(dom.matches("<svg").count() == 2 && dom.contains("Redis paused"));
        assert!(dom.contains("asked again") && dom.contains("origin-virginia is down"));
        assert!(!dom.contains("NaN") || dom.matches("NaN").count() == PAGE.matches("NaN").count());
    }
}
