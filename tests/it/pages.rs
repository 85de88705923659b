//! Checks the pages of the documentation: links lead somewhere, every page is in the table of contents, every
//! configuration is valid, and the indexes of rooms and of tests are complete.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use skerry::config::{self, Flags};

use crate::harness::markdown::{self, Mark, blocks};

const SUMMARY: &str = "docs/SUMMARY.md";

/// The text without fenced blocks and code spans.
fn prose(page: &Path) -> String {
    let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{page:?}: {error}"));
    let mut is_fenced = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fence && !is_fenced
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    text.split('`').step_by(2).collect()
}

/// The targets of `[text](target)` and `![text](target)`.
fn links(page: &Path) -> Vec<String> {
    let prose = prose(page);
    let links = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    links.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(page).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// `a/b/../c` → `a/c`.
fn without_dots(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut whole, part| {
        match part {
            Component::ParentDir => _ = whole.pop(),
            part => whole.push(part),
        }
        whole
    })
}

#[test]
fn every_link_leads_to_a_page_and_a_heading() {
    let mut broken = Vec::new();
    for page in markdown::pages() {
        for link in links(&page) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = page.parent().expect("a folder");
            let target = match file {
                "" => page.clone(),
                file => without_dots(&folder.join(file)),
            };
            let leaves_the_site = page.starts_with("docs") && !target.starts_with("docs");
            if !target.exists() {
                broken.push(format!("{}: {link}: no such file", page.display()));
            } else if leaves_the_site {
                broken.push(format!("{}: {link}: is not in the site", page.display()));
            } else if !anchor.is_empty() && !anchors(&target).contains(anchor) {
                broken.push(format!("{}: {link}: no such heading", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_page_is_in_the_table_of_contents_once() {
    let summary = Path::new(SUMMARY);
    let listed = links(summary);
    let mut listed: Vec<_> = listed.iter().map(|link| Path::new("docs").join(link)).collect();
    listed.sort();
    let mut pages = markdown::pages_in(Path::new("docs"));
    pages.retain(|page| page != summary);
    assert_eq!(listed, pages, "{SUMMARY} on the left, the folder on the right");
}

#[test]
fn every_file_of_tests_is_in_their_index() {
    let index = fs::read_to_string("tests/README.md").expect("the index of tests");
    let rows: BTreeSet<_> = index.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    let rows = rows.iter().filter_map(|row| row.split_once('`')).map(|(name, _)| name.to_owned());
    let listed: BTreeSet<_> = rows.filter(|name| name.ends_with(".rs")).collect();
    let files = names_in("tests/it").into_iter().filter(|name| name.ends_with(".rs"));
    let files: BTreeSet<_> = files.filter(|name| name != "main.rs").collect();
    let odd: Vec<_> = listed.symmetric_difference(&files).collect();
    assert!(odd.is_empty(), "in tests/README.md or tests/it, and not in both: {odd:?}");
}

#[test]
fn every_room_is_in_the_architecture() {
    let page = fs::read_to_string("docs/ARCHITECTURE.md").expect("the architecture");
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let rooms = names_in("src").into_iter().filter(|name| !name.ends_with(".rs"));
    let missing: Vec<_> =
        rooms.filter(|room| !rows.iter().any(|row| row.contains(&format!("`{room}/`")))).collect();
    assert!(
        missing.is_empty(),
        "folders of src without a row in docs/ARCHITECTURE.md: {missing:?}"
    );
}

/// The names of the files and folders in a folder.
fn names_in(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    entries.map(name).map(|name| name.into_string().expect("a name in UTF-8")).collect()
}

#[test]
fn every_configuration_in_the_documentation_is_valid_and_gives_no_warning() {
    let mut wrong = Vec::new();
    for page in markdown::pages() {
        for block in blocks(&page).iter().filter(|block| block.language == "toml") {
            if block.mark == Some(Mark::NotRun) {
                continue;
            }
            let mistakes = mistakes(&block.content);
            if !mistakes.is_empty() {
                let place = format!("{}:{}", page.display(), block.line);
                wrong.push(format!("{place}:\n{}", mistakes.join("\n")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// The mistakes and warnings of `skerry check` about a configuration or a part of one, except that files are missing.
fn mistakes(text: &str) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("edge.toml");
    let mut whole = text.to_owned();
    let is_of_another_pool =
        |line: &str| line.starts_with("[pools.") && !line.starts_with("[pools.main.");
    let has_pools = text.lines().any(is_of_another_pool);
    if !text.contains("[pools.main]") && (!has_pools || text.contains("\"main\"")) {
        whole.push_str("\n[pools.main]\norigins = \"http://127.0.0.1:8000\"\n");
    }
    if !text.contains("[sites.") {
        whole.push_str("\n[sites.www]\nhosts = \"*\"\n");
    }
    fs::write(&file, whole).expect("a file");
    let flags = Flags { config: Some(file), ..Flags::default() };
    match config::load(&flags) {
        Ok(config) => config.warnings.iter().map(ToString::to_string).collect(),
        Err(mistakes) => {
            let lines = mistakes.to_string();
            let lines = lines.lines().filter(|line| !line.contains("No such file"));
            lines.map(str::to_owned).collect()
        }
    }
}
