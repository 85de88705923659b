//! Files that the configuration names, and the space of disks and memory.

use super::*;

#[test]
fn files_must_be_readable() {
    check(
        "[[tls.certificates]]\ncertificate = \"no.pem\"\n",
        &[
            "1:1: the certificate has no \"key\": expected the path of a PEM file",
            "2:15: cannot read /nowhere/no.pem: No such file or directory (os error 2); create it, or correct the path",
        ],
    );
    check(
        "[geo]\ndatabases = [\"built-in\", \"no.mmdb\"]\n",
        &[
            "2:26: cannot read /nowhere/no.mmdb: No such file or directory (os error 2); create it, or correct the path",
        ],
    );
}

#[test]
fn every_file_is_opened_and_parsed_and_all_mistakes_come_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let pair = || rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let (one, other) = (pair(), pair());
    for (name, text) in [
        ("one.pem", one.cert.pem()),
        ("one.key", one.signing_key.serialize_pem()),
        ("other.key", other.signing_key.serialize_pem()),
        ("junk", "junk".to_owned()),
    ] {
        std::fs::write(path(name), text).unwrap();
    }
    let tls = |certificate: &str, key: &str| {
        let (certificate, key) = (path(certificate), path(key));
        format!("[[tls.certificates]]\ncertificate = {certificate:?}\nkey = {key:?}\n")
    };
    let junk = path("junk");
    let (one, other) = (path("one.pem"), path("other.key"));
    let text = [
        tls("one.pem", "one.key"),
        tls("one.pem", "other.key"),
        tls("junk", "one.key"),
        tls("one.pem", "junk"),
        format!("[tls]\nticket_key_file = {junk:?}\n"),
        format!("[admin]\ntokens = {junk:?}\naudit_log = \"/nowhere/audit.log\"\n"),
        format!("[admin.tls]\ncertificate = {one:?}\nkey = {other:?}\nclient_ca = {one:?}\n"),
        format!("[bus]\npassword_file = {:?}\nca_file = {junk:?}\n", path("none")),
        format!("[geo]\ndatabases = [\"built-in\", {junk:?}]\n"),
        format!("[pools.main.tls]\nca_files = [{one:?}, {junk:?}]\n"),
        format!("[pools.b]\norigins = [\"https://b.test\"]\n[pools.b.tls]\nclient_certificate = {one:?}\nclient_key = {other:?}\n"),
        "[log]\naccess = \"/nowhere/access.log\"\n".to_owned(),
    ]
    .concat();
    let minimal = format!("{MINIMAL}pool = \"main\"\n");
    let Err(Mistakes(mistakes)) = read_text(&format!("{minimal}{text}")) else {
        panic!("it has mistakes")
    };
    let lines: Vec<&str> = text.lines().collect();
    let told: Vec<String> = mistakes
        .iter()
        .map(|mistake| {
            let Some((line, _)) = mistake.place.filter(|(line, _)| *line > minimal.lines().count())
            else {
                panic!("{mistake}")
            };
            let line = lines[line - minimal.lines().count() - 1];
            format!("{}: {}", line.split(" =").next().unwrap_or_default(), mistake.message)
        })
        .map(|told| told.replace(&folder.path().display().to_string(), ""))
        .collect();
    let expected = [
        "key: /one.pem and /other.key do not match",
        "certificate: /junk: ",
        "key: /junk: no private key",
        "ticket_key_file: /junk: line 1: expected 32 bytes",
        "tokens: /junk",
        "audit_log: directory /nowhere does not exist",
        "certificate: /one.pem: does not match the key /other.key",
        "password_file: cannot read /none",
        "ca_file: /junk: the file has no certificate",
        "databases: /junk: not an mmdb database: ",
        "ca_files: pool main: /junk: the file has no certificate",
        "client_key: pool b: ",
        "access: directory /nowhere does not exist",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}, expected {expected}");
    }
}

#[test]
fn a_certificate_that_has_ended_is_told_and_does_not_keep_a_node_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let mut parameters = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = folder.path().join("pem");
    let text = parameters.self_signed(&key).unwrap().pem() + &key.serialize_pem();
    std::fs::write(&pem, text).unwrap();
    let text = format!("{MINIMAL}[[tls.certificates]]\ncertificate = {pem:?}\nkey = {pem:?}\n");
    let warnings = read_text(&text).unwrap().warnings;
    let warning = warnings.iter().find(|warning| warning.message.contains("has expired")).unwrap();
    let told = "has expired on Wed, 01 Jan 2020 00:00:00 GMT: clients refuse it; renew it";
    assert!(warning.message.ends_with(told), "{warning}");
    assert_eq!(warning.place, Some((MINIMAL.lines().count() + 2, 15)));
}

#[test]
fn a_disk_cache_must_fit_its_file_system() {
    let found = |text: &str| match read_text(&format!("{MINIMAL}{text}")) {
        Ok(config) => config.warnings.iter().map(|it| format!("warning {it}")).collect(),
        Err(Mistakes(mistakes)) => {
            mistakes.iter().map(ToString::to_string).collect::<Vec<String>>()
        }
    };
    let above = MINIMAL.lines().count();
    let check = |text: &str, place: &str, words: &str| {
        let found = found(text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("edge.toml:{place}")), "{found:?}");
        assert!(found[0].contains(words) && found[0].contains("at most"), "{found:?}");
    };
    let (first, second) = (above + 2, above + 3);
    check(
        "[store]\ndisk = \"900TiB\"\n",
        &format!("{first}:8"),
        "900.0 TiB of disk cache does not",
    );
    let two = "[[store.directories]]\npath = \"/nowhere/a\"\nsize = \"500TiB\"\n\
               [[store.directories]]\npath = \"/nowhere/b\"\nsize = \"400TiB\"\n";
    check(two, &format!("{second}:8"), "900.0 TiB of disk cache in 2 directories do not fit");
    let reserved = "[store]\ndisk = \"64MiB\"\ndisk_reserve = \"900TiB\"\n";
    check(reserved, &format!("{first}:8"), "900.0 TiB are reserved");
    assert!(found("[store]\ndisk = \"64MiB\"\ndisk_reserve = \"0B\"\n").is_empty());
    let unwritten = found("[store]\ndisk_reserve = \"900TiB\"\n");
    assert!(
        unwritten[0].starts_with("warning edge.toml"),
        "a size that nobody chose: {unwritten:?}"
    );
}

#[test]
fn a_disk_that_others_have_filled_keeps_no_node_from_a_reload() {
    let text = format!("{MINIMAL}[store]\ndisk = \"900TiB\"\n");
    let read = |purpose| parse_for(&text, "a", Path::new("/nowhere"), &Flags::default(), purpose);
    assert!(read(Purpose::Start).is_err());
    assert_eq!(read(Purpose::Reload).unwrap().warnings.len(), 1);
}

#[test]
fn more_memory_than_there_is_is_told() {
    let warnings = |memory: &str| {
        read_text(&format!("{MINIMAL}[store]\nmemory = {memory:?}\ndisk = \"none\"\n"))
            .unwrap()
            .warnings
    };
    let told = warnings("900TiB");
    assert!(
        told[0].message.starts_with("900.0 TiB of memory is too much for this machine"),
        "{told:?}"
    );
    assert_eq!(warnings("16MiB"), []);
}
