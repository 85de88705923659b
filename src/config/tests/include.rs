//! Files that `include` names.

use super::*;

const MAIN: &str =
    "include = \"sites/*.toml\"\n[pools.main]\norigins = \"http://127.0.0.1:9000\"\n";

/// Loads `main` with these files beside it. Mistakes name the files relative to their folder.
fn load_files(main: &str, files: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files.iter().chain([&("edge.toml", main)]) {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let flags = Flags { config: Some(folder.path().join("edge.toml")), ..Flags::default() };
    let prefix = format!("{}/", folder.path().display());
    load(&flags).map_err(|mistakes| mistakes.to_string().replace(&prefix, ""))
}

#[test]
fn included_files_are_read_in_the_order_of_their_names() {
    let files = [
        ("sites/b.toml", "[sites.b]\nhosts = \"b.test\"\n"),
        ("sites/a.toml", "# a comment\n\n[sites.a]\nhosts = \"a.test\""),
        ("sites/notes.txt", "not TOML"),
    ];
    let config = load_files(MAIN, &files).unwrap();
    let names: Vec<&str> = config.routes.sites.iter().map(|site| &*site.name).collect();
    assert_eq!((names, config.files().len()), (vec!["a", "b"], 3));
}

#[test]
fn a_mistake_is_reported_in_its_own_file() {
    let files = [
        ("sites/a.toml", "[sites.a]\nhosts = \"a.test\"\ncach.enabled = false\n"),
        ("sites/b.toml", "[sites.b]\nhosts = \"b.test\"\nrespond.content_file = \"b.html\"\n"),
    ];
    let wrong = load_files(MAIN, &files).unwrap_err();
    let lines: Vec<&str> = wrong.lines().collect();
    assert_eq!(lines.len(), 2, "{wrong}");
    assert_eq!(
        lines[0],
        "sites/a.toml:3:1: unknown option \"cach\" in [sites.a]; did you mean \"cache\"?"
    );
    // A relative path starts at the directory of the file that has it.
    assert!(
        lines[1].starts_with("sites/b.toml:3:24: cannot read sites/b.html: No such file"),
        "{wrong}"
    );
}

#[test]
fn a_table_belongs_to_one_file() {
    let site = "[sites.a]\nhosts = \"a.test\"\n";
    let wrong = load_files(MAIN, &[("sites/a.toml", site), ("sites/b.toml", site)]).unwrap_err();
    assert_eq!(
        wrong,
        "sites/b.toml:1:8: table [sites.a] occurs twice: put its options into the first one, at sites/a.toml:1"
    );
}

#[test]
fn the_syntax_of_each_file_is_checked_by_itself() {
    let files = [
        ("sites/a.toml", "[sites.a]\nhosts = [\"a.test\"\n"),
        ("sites/b.toml", "hosts = \"b.test\"\n"),
        ("sites/c.toml", "[sites.c]\nhosts = c.test\n"),
    ];
    let wrong = load_files(MAIN, &files).unwrap_err();
    let expected = [
        "sites/a.toml:2:9: this array is never closed: add \"]\" after its last item",
        "sites/b.toml:1:1: an included file begins with a table, such as [sites.NAME]: options without a table belong in the main file",
        "sites/c.toml:2:9: expected a value, found c.test: text needs quotes, write \"c.test\"",
    ];
    assert_eq!(wrong, expected.join("\n"));
}

#[test]
fn a_pattern_may_match_nothing_and_a_name_may_not() {
    let site = "[sites.a]\nhosts = \"a.test\"\n";
    assert!(load_files(&format!("{MAIN}{site}"), &[("sites/a.txt", "")]).is_ok());
    let wrong = load_files(&format!("{MAIN}{site}"), &[]).unwrap_err();
    assert_eq!(
        wrong,
        "edge.toml:1:11: include: no directory sites: create it, or remove it from \"include\""
    );
    let main = MAIN.replace("sites/*.toml", "a.toml");
    let wrong = load_files(&main, &[]).unwrap_err();
    assert_eq!(
        wrong,
        "edge.toml:1:11: include: no file a.toml: create it, or remove it from \"include\""
    );
    let wrong = load_files(&MAIN.replace("sites/*.toml", "a[.toml"), &[]).unwrap_err();
    assert!(
        wrong.starts_with("edge.toml:1:11: include: \"a[.toml\" is no pattern of paths"),
        "{wrong}"
    );
}

#[test]
fn nodes_whose_files_lie_in_different_folders_have_one_digest() {
    let site = "[sites.a]\nhosts = \"a.test\"\nrespond.content_file = \"a.html\"\n";
    let main = format!(
        "{}, {{ file = \"more.json\" }}]\ntls.ca_files = \"ca.pem\"\nsticky.key_file = \"sticky.key\"\n\
         [guard]\ndebug_key_file = \"debug.key\"\n",
        MAIN.trim_end().replace("= \"http", "= [\"http")
    );
    let certificate = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let key = "0123456789abcdef".repeat(4);
    let pem = certificate.cert.pem();
    let digest = |main: &str, site: &str| {
        let files = [
            ("sites/a.toml", site),
            ("sites/a.html", "a"),
            ("ca.pem", &*pem),
            ("sticky.key", &key),
            ("debug.key", &key),
            ("more.json", "{\"origins\": [\"http://127.0.0.1:9001\"]}"),
        ];
        load_files(main, &files).unwrap().digest()
    };
    assert_eq!(digest(&main, site), digest(&main, site), "each load has a folder of its own");
    let listed = main.replace("sites/*.toml", "sites/a.toml");
    assert_eq!(digest(&listed, site), digest(&main, site), "the way to a file decides nothing");
    let other = site.replace("a.test", "b.test");
    assert_ne!(digest(&main, &other), digest(&main, site));
    let other = main.replace("\"sticky.key\"", "\"debug.key\"");
    assert_ne!(digest(&other, site), digest(&main, site));
}

#[test]
fn an_included_file_includes_no_other_and_not_itself() {
    let nested = [("sites/a.toml", "[sites.a]\nhosts = \"a.test\"\ninclude = \"b.toml\"\n")];
    let wrong = load_files(MAIN, &nested).unwrap_err();
    assert!(
        wrong.starts_with("sites/a.toml:3:1: unknown option \"include\" in [sites.a]"),
        "{wrong}"
    );
    let main = format!("{}[sites.a]\nhosts = \"a.test\"\n", MAIN.replace("sites/*.toml", "*.toml"));
    assert_eq!(load_files(&main, &[]).unwrap().files().len(), 1);
}
