//! Checks that every claim in docs/conformance.md names an existing test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn every_test_named_in_the_conformance_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    let mut folders = vec![root.join("src"), root.join("tests/it")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests.extend(tests_in(&fs::read_to_string(path).expect("text")));
            }
        }
    }
    let table = fs::read_to_string(root.join("docs/conformance.md")).expect("the table is there");
    // The rows of the third table begin with a test of the suite.
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| `"));
    let mut named = 0;
    for row in rows {
        let proof = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
        for name in proof.split('`').skip(1).step_by(2) {
            assert!(tests.contains(name), "{name}: no such test, in the row {row}");
            named += 1;
        }
    }
    assert!(named > 50, "only {named} tests are named: the table has another form now");
}

/// The names of its test functions; proptest's stand there in the same form.
fn tests_in(text: &str) -> Vec<String> {
    let after = |mark: &str| {
        let rest = text.split(mark).skip(1);
        let names = rest.filter_map(|rest| rest.split_once("fn ")?.1.split('(').next());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    [after("#[test]"), after("#[tokio::test")].concat()
}
