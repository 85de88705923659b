//! Each mistake is one line here: what is written, and what is said of it.

mod include;
mod newcomer;
mod pasted;
mod peers;

use super::overrides::{HTTP, HTTPS};
use super::*;
use crate::listen::Transport;
use crate::route::{Action, Forward};

const MINIMAL: &str = r#"
[pools.main]
origins = ["http://127.0.0.1:9000"]
[sites.www]
hosts = ["www.example.org"]
"#;

fn read_text(text: &str) -> Result<Config, Mistakes> {
    parse(text, "edge.toml", Path::new("/nowhere"), &Flags::default())
}

/// `text` after a minimal site has these mistakes.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    assert_eq!(mistakes_after(text), expected, "{text}");
}

/// Each text has this one mistake. All that have not are shown at once.
#[track_caller]
fn check_each<'a>(cases: impl IntoIterator<Item = &'a (&'a str, &'a str)>) {
    let wrong = cases.into_iter().filter_map(|(written, expected)| {
        let found = mistakes_after(&format!("{written}\n"));
        (found != [*expected])
            .then(|| format!("{written}\n  found    {found:#?}\n  expected {expected:?}"))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// The mistakes of `text` after a minimal site; lines count from the end of the minimum.
fn mistakes_after(text: &str) -> Vec<String> {
    let above = MINIMAL.lines().count();
    let whole = format!("{MINIMAL}{text}");
    let found = match read_text(&whole) {
        Ok(_) => Vec::new(),
        Err(Mistakes(mistakes)) => mistakes,
    };
    let found = found.into_iter().map(|mut mistake| {
        mistake.place = mistake.place.map(|(line, column)| (line - above, column));
        mistake.to_string().replace("edge.toml:", "")
    });
    found.collect()
}

#[test]
fn a_minimal_file_is_enough() {
    let config = read_text(MINIMAL).unwrap();
    let site = &config.routes.sites[0];
    assert_eq!((&*site.name, site.rules.len()), ("www", 1));
    let Action::Forward(Forward { pool, .. }) = &site.rules[0].action else { panic!("{site:?}") };
    assert_eq!(&**pool, "main");
    assert_eq!(config.listen.listeners, [Listener::plain(HTTP), Listener::tls(HTTPS)]);
}

#[test]
fn a_flag_is_enough() {
    let flags = Flags {
        origins: vec!["https://Example.org".to_owned()],
        http: vec!["127.0.0.1:0".parse().unwrap()],
        workers: Some(3),
        name: Some("edge-1".to_owned()),
        ..Flags::default()
    };
    let config = load(&flags).unwrap();
    assert_eq!(config.upstream.pools[0].origins, [upstream::Origin::https("example.org", 443)]);
    assert_eq!(config.routes.sites[0].hosts, [route::HostPattern::Any]);
    assert_eq!(config.listen.listeners, [Listener::plain(flags.http[0])]);
    assert_eq!((config.node.workers, &*config.node.name), (3, "edge-1"));
    assert_eq!(config.node.data_directory, Path::new("skerry-data"));
}

#[test]
fn nothing_at_all_is_a_mistake() {
    let mistakes = load(&Flags::default()).unwrap_err().to_string();
    assert!(mistakes.contains("nothing to serve"), "{mistakes}");
    let flags = Flags { origins: vec!["example.org".to_owned()], ..Flags::default() };
    let mistakes = load(&flags).unwrap_err().to_string();
    assert!(mistakes.contains("--origin: expected an origin's URL"), "{mistakes}");
    let flags = Flags { name: Some("a b".to_owned()), workers: Some(0), ..Flags::default() };
    let mistakes = load(&flags).unwrap_err().to_string();
    assert!(mistakes.contains("--name: expected a name of letters"), "{mistakes}");
    assert!(mistakes.contains("--workers: expected 1 to 1024, found 0"), "{mistakes}");
    let flags = Flags { config: Some("/nowhere/edge.toml".into()), ..Flags::default() };
    let mistakes = load(&flags).unwrap_err().to_string();
    assert!(
        mistakes.starts_with("/nowhere/edge.toml: cannot read the file: No such file"),
        "{mistakes}"
    );
}

#[test]
fn flags_are_stronger_than_the_file() {
    let text = format!(
        "{MINIMAL}[admin]\naddress = \"127.0.0.1:1\"\n[[listeners]]\naddress = \"127.0.0.1:2\"\n\
         [[listeners]]\naddress = \"127.0.0.1:3\"\ntls = true\n"
    );
    let flags = Flags {
        admin: Some("127.0.0.1:4".parse().unwrap()),
        http: vec!["127.0.0.1:5".parse().unwrap()],
        ..Flags::default()
    };
    let config = parse(&text, "edge.toml", Path::new(""), &flags).unwrap();
    assert_eq!(config.admin.address.port(), 4);
    let ports: Vec<(u16, Transport)> =
        config.listen.listeners.iter().map(|l| (l.address.port(), l.transport)).collect();
    assert_eq!(ports, [(3, Transport::Tls), (5, Transport::Plain)]);
}

#[test]
fn all_mistakes_come_at_once_with_their_places() {
    check(
        "[limits]\nidle_timeout = \"30 parsecs\"\nhandshake_timout = \"1s\"\nheaders_max = true\n[gard]\n",
        &[
            "2:16: limits.idle_timeout: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"30 parsecs\"",
            "3:1: unknown option \"handshake_timout\" in [limits]; did you mean \"handshake_timeout\"?",
            "4:15: limits.headers_max: expected a whole number, 0 or more, found true",
            "5:2: unknown option \"gard\" at the top level; did you mean \"guard\"?",
        ],
    );
}

#[test]
fn syntax_is_reported_with_its_place() {
    check(
        "[limits]\nidle_timeout = 30 s\n",
        &["2:16: expected a value, found 30 s: text needs quotes, write \"30 s\""],
    );
    check(
        "[node]\nname = \"a\"\nname = \"b\"\n",
        &["3:1: \"name\" is set twice, first at line 7: remove one"],
    );
}

#[test]
fn values_have_kinds_and_bounds() {
    check(
        "[limits]\nheader_bytes_max = \"1KiB\"\n",
        &["2:20: limits.header_bytes_max: expected 8KiB to 1MiB, found 1KiB"],
    );
    check(
        "[tls]\nreload_interval = \"0s\"\n",
        &["2:19: tls.reload_interval: expected more than 0s, found 0s: the default is 5s"],
    );
    check(
        "[limits.http2]\nstreams_max = 0\n",
        &["2:15: limits.http2.streams_max: expected 1 to 10000, found 0"],
    );
    check(
        "[node]\nworkers = 0\n",
        &["2:11: node.workers: expected \"auto\" or a number from 1 to 1024, found 0"],
    );
    check(
        "[log]\nlevel = \"loud\"\n",
        &[
            "2:9: log.level: expected \"error\", \"warn\", \"info\", \"debug\" or \"trace\", found \"loud\"",
        ],
    );
    check(
        "[guard]\ntrusted_proxies = [\"10.0.0.0/8\", \"10.1\"]\n",
        &[
            "2:34: guard.trusted_proxies: expected a network such as \"192.0.2.0/24\" or an address, found \"10.1\"",
        ],
    );
    check(
        "[resolver]\nservers = [\"9.9.9.9\"]\n",
        &[
            "2:12: resolver.servers: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"9.9.9.9\"; add the port, such as \"9.9.9.9:443\"",
        ],
    );
    check(
        "[resolver]\nttl_min = \"2h\"\n",
        &["2:11: \"ttl_min\" must not be greater than \"ttl_max\""],
    );
    check(
        "[dns]\nservers = [\"9.9.9.9:53\"]\n",
        &[
            "2:11: \"servers\" is an option of [resolver], which looks up the names of origins: move it there; [dns] is the name server",
        ],
    );
    check(
        "[guard]\nclient_field = \"X-Real-IP\"\n",
        &[
            "2:16: guard.client_field: expected \"X-Forwarded-For\" or \"Forwarded\", found \"X-Real-IP\"",
        ],
    );
}

#[test]
fn a_time_of_zero_is_a_mistake_unless_it_has_a_meaning() {
    let zeros = zero_durations();
    let is_refused = |option: &String| {
        let found = read_text(&format!("{MINIMAL}{}", setting(option, "\"0s\"")));
        let Err(Mistakes(mistakes)) = found else { return false };
        mistakes.iter().any(|mistake| mistake.to_string().contains("0s"))
    };
    let accepted: Vec<&str> =
        zeros.iter().filter(|option| !is_refused(option)).map(String::as_str).collect();
    assert_eq!(accepted, ZERO_HAS_A_MEANING);
    check(
        "[pools.main.deadlines]\nconnect = \"0s\"\ntotal = \"0s\"\n",
        &[
            "2:11: pools.main.deadlines.connect: expected more than 0s, found 0s: the default is 3s",
            "3:9: pools.main.deadlines.total: expected more than 0s, found 0s: write \"none\" for no limit",
        ],
    );
    check(
        "[bus]\nsilence_max = \"2s\"\n",
        &["2:15: bus.silence_max: expected at least three times \"heartbeat\" (3s), found 2s"],
    );
    check(
        "[bus]\nheartbeat = \"30s\"\n",
        &["2:13: bus.heartbeat: expected at most a third of \"silence_max\" (1m), found 30s"],
    );
}

/// The options that are durations, by the reader.
fn zero_durations() -> Vec<String> {
    let text = every_option();
    let document = Document::single("edge.toml", Path::new("/nowhere"), &text);
    let reader = Reader::new(&document);
    read(&reader, &Flags::default());
    let is_duration = |kind: &reader::OptionKind| matches!(kind, reader::OptionKind::Type(name) if name.contains("Duration"));
    let kinds = reader.into_notes().kinds;
    let durations = kinds.into_iter().filter(|(_, kind)| is_duration(kind));
    // Sites and rules have the options of [defaults].
    durations.map(|(option, _)| option).filter(|option| !option.starts_with("sites.*.")).collect()
}

/// The option of this pattern, in a table of its own.
fn setting(pattern: &str, value: &str) -> String {
    let (table, name) = pattern.rsplit_once('.').expect("no duration stands at the top level");
    let table = table.replace("pools.*", "pools.main").replace('*', "example");
    format!("[{table}]\n{name} = {value}\n")
}

/// Durations that may be zero: nothing is cached or remembered, nothing is waited for, or a function is off.
const ZERO_HAS_A_MEANING: [&str; 20] = [
    "bus.start_wait",
    "defaults.cache.lifetimes.fixed",
    "defaults.cache.lifetimes.heuristic_max",
    "defaults.cache.lifetimes.lifetime_max",
    "defaults.cache.pass_memory",
    "defaults.cache.stale.if_error",
    "defaults.cache.stale.while_revalidate",
    "dns.zones.*.edges.*.ttl",
    "dns.zones.*.negative_ttl",
    "dns.zones.*.ttl",
    "fills.patience",
    "node.drain_notice",
    "node.drain_timeout",
    "pools.*.deadlines.expect_continue",
    "pools.*.health.slow_start",
    "pools.*.sticky.max_age",
    "resolver.negative_ttl",
    "resolver.stale_max",
    "resolver.ttl_max",
    "resolver.ttl_min",
];

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
        &["2:26: cannot read /nowhere/no.mmdb: No such file or directory (os error 2)"],
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

#[test]
fn listeners_have_addresses_of_their_own() {
    check(
        "[[listeners]]\naddress = \"127.0.0.1:80\"\n[[listeners]]\naddress = \"127.0.0.1:80\"\n[[listeners]]\ntls = true\n",
        &[
            "4:11: two listeners have the address 127.0.0.1:80: remove one, or change its port",
            "5:1: the listener has no \"address\", such as \"0.0.0.0:443\"",
        ],
    );
    check(
        "[admin]\naddress = \"127.0.0.1:8443\"\n",
        &[
            "2:11: admin.address: 127.0.0.1:8443 is also the address of listener \"127.0.0.1:8443\": choose another port",
        ],
    );
    check(
        "[admin]\naddress = \"0.0.0.0:9180\"\n",
        &[
            "2:11: admin.address: 0.0.0.0:9180 is reachable from other hosts, so callers must identify themselves: set \"admin.tokens\" or \"admin.tls.client_ca\", or use a loopback address",
        ],
    );
}

#[test]
fn pools_have_origins() {
    check(
        "pool = \"main\"\n[pools.b]\n",
        &[
            "2:8: pool \"b\" needs 1 to 1024 origins, such as origins = [\"https://origin.example\"]",
        ],
    );
    check(
        "pool = \"main\"\n[pools.b]\norigins = [\"a.example\", \"https://b.example/x\", { url = \"http://[::1]:80\", wieght = 2 }]\n",
        &[
            "3:12: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"a.example\"; write \"https://a.example\"",
            "3:25: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"https://b.example/x\"; write \"https://b.example\", and add_prefix = \"/x\" in the site or rule",
            "3:75: unknown option \"wieght\" of an origin; did you mean \"weight\"?",
        ],
    );
    // With two pools, a site has to say which.
    let two = "[pools.a]\norigins = \"http://a\"\n[pools.b]\norigins = \"http://b\"\n[sites.s]\nhosts = \"*\"\n";
    let mistakes = read_text(two).unwrap_err().to_string();
    assert_eq!(
        mistakes,
        "edge.toml:5:8: the site has no action, and there are 2 pools to choose from: set \"pool\", \"redirect\" or \"respond\", or add rules"
    );
}

#[test]
fn origins_have_a_priority_and_a_place() {
    let text = format!(
        "{MINIMAL}pool = \"main\"\n[node]\nlatitude = 50\nlongitude = 8.5\n[pools.b]\n\
         policy = \"nearest\"\nbalance = \"hash\"\nhash_by = \"cookie sid\"\n\
         origins = [\"http://a\", {{ url = \"http://b\", weight = 2, priority = 1, latitude = -33.9, longitude = 151 }}]\n"
    );
    let config = read_text(&text).unwrap();
    let pool = &config.upstream.pools[1];
    let (settings, origins) = (&pool.settings, &pool.origins);
    let point = |latitude, longitude| Some(geo::Coordinates::new(latitude, longitude).unwrap());
    assert_eq!((settings.policy, settings.node), (upstream::Policy::Nearest, point(50.0, 8.5)));
    assert_eq!(settings.hash_by, upstream::HashBy::Cookie("sid".into()));
    assert_eq!(settings.hash_balance_factor, 0, "a visitor stays at one origin");
    assert_eq!(config.upstream.pools[0].settings.hash_balance_factor, 125);
    assert_eq!((origins[0].priority, origins[0].coordinates), (0, None));
    assert_eq!((origins[1].weight, origins[1].priority), (2, 1));
    assert_eq!(origins[1].coordinates, point(-33.9, 151.0));
}

#[test]
fn origins_come_from_sources() {
    use upstream::SourceKind;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("members.toml"), "origins = []").expect("a file");
    let text = "[sites.www]\nhosts = [\"w\"]\n[pools.main]\norigins = [\n\
         \"http://fixed.example\",\n\
         { each_address_of = \"https://app.internal\", weight = 3 },\n\
         { srv = \"http://_http._tcp.app.internal\", latitude = 1, longitude = 2 },\n\
         { file = \"members.toml\", priority = 7 },\n\
         { http = \"https://registry.example:8443/app?x=1\", interval = \"30s\" },\n]\n";
    let config = parse(text, "edge.toml", folder.path(), &Flags::default());
    let config = config.map_err(|mistakes| mistakes.to_string()).unwrap();
    let pool = &config.upstream.pools[0];
    assert_eq!((pool.origins.len(), pool.sources.len()), (1, 4));
    let shown: Vec<String> = pool.sources.iter().map(ToString::to_string).collect();
    let file = folder.path().join("members.toml");
    let expected = [
        "each_address_of https://app.internal:443",
        "srv http://_http._tcp.app.internal",
        &format!("file {}", file.display()),
        "http https://registry.example:8443/app?x=1",
    ];
    assert_eq!(shown, expected);
    let defaults =
        pool.sources.iter().map(|source| (source.defaults.weight, source.defaults.priority));
    assert_eq!(defaults.collect::<Vec<_>>(), [(3, 0), (1, 0), (1, 7), (1, 0)]);
    assert!(matches!(
        pool.sources[3].kind,
        SourceKind::Http { interval, .. } if interval.as_secs() == 30
    ));
}

#[test]
fn a_source_of_origins_that_cannot_be_read_is_a_mistake() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("bad"), "origins = [\n7]").expect("a file");
    let check = |entry: &str, expected: &str| {
        let text = format!("[sites.www]\nhosts = [\"w\"]\n[pools.main]\norigins = [{entry}]\n");
        let found = parse(&text, "edge.toml", folder.path(), &Flags::default());
        let found = found.map(|_| ()).map_err(|mistakes| mistakes.to_string());
        let found = found.expect_err(entry).replace(&format!("{}/", folder.path().display()), "");
        assert!(found.ends_with(expected), "{entry}: {found:?}");
    };
    check(
        "{ each_address_of = \"http://10.0.0.1\" }",
        "expected a URL with a name, such as \"http://app.internal:8080\"; an address is written as url, found \"http://10.0.0.1\"",
    );
    check(
        "{ srv = \"http://_http._tcp.x:80\" }",
        "\"http://_http._tcp.app.internal\", found \"http://_http._tcp.x:80\"",
    );
    check(
        "{ srv = \"http://_http._tcp.x\", weight = 2 }",
        "\"weight\" has no effect on an entry with \"srv\": remove it",
    );
    check(
        "{ file = \"bad\" }",
        "bad:2:1: invalid type: integer `7`, expected an origin's URL, or a table with \"url\"",
    );
    check("{ file = \"none\" }", "cannot read none: No such file or directory (os error 2)");
    check("{ http = \"registry.example\" }", "found \"registry.example\"");
    check("{ http = \"http://r/\", interval = \"1ms\" }", "expected 100ms to 3600s");
    check(
        "{ url = \"http://a\", srv = \"http://b\" }",
        "an origin has one of \"url\" and \"srv\", not both",
    );
    check(
        "{ srv = \"http://b\" }, { srv = \"http://b\" }",
        "srv http://b is listed twice: list it once",
    );
    check("{ files = \"x\" }", "unknown option \"files\" of an origin; did you mean \"file\"?");
}

#[test]
fn a_pool_that_cannot_choose_by_place_is_a_mistake() {
    let pool = |lines: &str| format!("pool = \"main\"\n[pools.b]\n{lines}\n");
    check(
        &pool(
            "origins = [{ url = \"http://a\", latitude = 91, longitude = 0 }, { url = \"http://b\", latitude = 9, longitude = -181.5 }]",
        ),
        &[
            "3:43: pools.b.origins: expected degrees north of the equator from -90 to 90, found 91",
            "3:110: pools.b.origins: expected degrees east of Greenwich from -180 to 180, found -181.5",
        ],
    );
    check(
        &pool(
            "origins = [{ url = \"http://a\", latitude = 9 }, { url = \"http://b\", priority = 65536 }]",
        ),
        &[
            "3:43: \"latitude\" needs \"longitude\": set both, or neither",
            "3:79: pools.b.origins: expected a whole number from 0 to 65535, found 65536",
        ],
    );
    check(
        &pool("origins = \"http://a\"\npolicy = \"nearest\""),
        &[
            "4:10: \"nearest\" needs the coordinates of origins, and none has them: set them, such as origins = [{ url = \"https://eu.example\", latitude = 50.1, longitude = 8.7 }]",
        ],
    );
    check(
        &pool(
            "origins = { url = \"http://a\", latitude = 9, longitude = 9 }\npolicy = \"nearest-to-node\"",
        ),
        &[
            "4:10: \"nearest-to-node\" needs the coordinates of this node: set \"latitude\" and \"longitude\" in [node]",
        ],
    );
    check(
        &pool("origins = [\"http://a\", { url = \"http://a:80\", priority = 1 }]"),
        &[
            "3:11: http://a:80 is listed twice, with different priorities or coordinates: list it once",
        ],
    );
    check(
        "pool = \"main\"\n[node]\nlongitude = 181\n",
        &["3:13: \"longitude\" needs \"latitude\": set both, or neither"],
    );
}

#[test]
fn a_balance_has_only_the_options_that_it_reads() {
    let pool =
        |lines: &str| format!("pool = \"main\"\n[pools.b]\norigins = \"http://a\"\n{lines}\n");
    check(
        &pool("hash_by = \"client\""),
        &[
            "4:11: \"hash_by\" has no effect without balance = \"hash\": set it, or remove \"hash_by\"",
        ],
    );
    check(
        &pool("balance = \"hash\"\nhash_by = \"ip\"\nhash_balance_factor = 100"),
        &[
            "5:11: pools.b.hash_by: expected \"url\", \"client\", \"header NAME\" or \"cookie NAME\", found \"ip\"",
            "6:23: pools.b.hash_balance_factor: expected 0 (no bound) or 101 to 1000 percent of the mean: at 100 or less, not all requests can have an origin",
        ],
    );
}

#[test]
fn a_pool_by_client_has_conditions_and_a_pool_that_exists() {
    check(
        "pool = \"main\"\npools_by = [{ asns = 64496, pool = \"mian\" }, { pool = \"main\" }, { networks = \"10.0.0.0/8\" }]\n",
        &[
            "2:36: unknown pool \"mian\"; did you mean \"main\"?",
            "2:46: the entry matches no client: set \"countries\", \"continents\", \"asns\" or \"networks\"; the pool of all other clients is \"pool\" of the site or rule",
            "2:65: the entry has no \"pool\", such as pool = \"europe\"",
        ],
    );
    check(
        "[[sites.www.rules]]\nredirect.location = \"/\"\npools_by = []\n",
        &[
            "3:12: \"pools_by\" has no effect with \"redirect\", which sends no request to an origin: remove \"pools_by\", or set \"pool\" instead of \"redirect\"",
        ],
    );
}

#[test]
fn sites_name_pools_that_exist() {
    check("pool = \"mian\"\n", &["1:8: unknown pool \"mian\"; did you mean \"main\"?"]);
    check(
        "[sites.www.pools_by_country]\nDE = \"mainn\"\nXX = \"main\"\n",
        &[
            "2:6: unknown pool \"mainn\"; did you mean \"main\"?",
            "3:1: sites.www.pools_by_country: expected a country's two-letter code (ISO 3166-1), found \"XX\"",
        ],
    );
}

#[test]
fn an_invalid_default_is_reported_once() {
    check(
        "[defaults.rate]\nper_second = 0\n[sites.b]\nhosts = \"b.test\"\n",
        &["2:14: defaults.rate.per_second: expected a rate above 0, or \"none\""],
    );
}

#[test]
fn a_host_belongs_to_one_site() {
    check(
        "[sites.b]\nhosts = [\"WWW.example.org\", \"*\"]\n[sites.c]\nhosts = [\"*\", \"b.example:80\"]\n",
        &[
            "2:9: host \"www.example.org\" already belongs to site \"www\"",
            "4:9: host \"*\" already belongs to site \"b\"",
            "4:15: sites.c.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"b.example:80\"; write \"b.example\"",
        ],
    );
    check("[sites.b]\n", &["1:8: site \"b\" has no hosts, such as hosts = [\"example.org\"]"]);
}

#[test]
fn rules_can_match_and_do_one_thing() {
    check(
        "[[sites.www.rules]]\npath_prefix = \"/a/\"\n[[sites.www.rules]]\npath = \"/a/b\"\nname = \"b\"\n",
        &[
            "3:1: rule \"b\" never applies: the earlier rule \"rule-1\" matches every request it matches",
        ],
    );
    // The rule would match everything only because its condition is not known.
    check(
        "[[sites.www.rules]]\npath_prefx = \"/a\"\n[[sites.www.rules]]\npath = \"/b\"\n",
        &[
            "2:1: unknown option \"path_prefx\" in [[sites.www.rules]] number 1; did you mean \"path_prefix\"?",
        ],
    );
    check(
        "[[sites.www.rules]]\npath = \"/a/../b\"\nredirect = {}\n",
        &[
            "2:8: no request can have this path: \"/a/../b\" is normalised to \"/b\"; write \"/b\"",
            "3:12: the redirect has no \"location\", such as location = \"https://${request.host}/\"",
        ],
    );
    check(
        "[[sites.www.rules]]\npath = \"/a\"\npool = \"main\"\nrespond = { status = 204 }\n",
        &["1:1: only one of \"pool\", \"redirect\" and \"respond\" can be set"],
    );
    check(
        "[[sites.www.rules]]\npath = \"/a\"\nredirect = { location = \"${request.pth}\", status = 304 }\n",
        &[
            "3:25: there is no variable ${request.pth}; write ${request.path}; the variables are client.address, client.country, client.continent, request.id, request.scheme, request.host, request.hostname, request.path, request.query, request.target, split.group",
            "3:52: sites.www.rules[0].redirect.status: expected 301, 302, 303, 307 or 308, found 304",
        ],
    );
    check(
        "[sites.www.request_fields]\nset = { Host = \"x\", \"a b\" = \"y\" }\n",
        &[
            "2:9: the field \"Host\" is set by the node and cannot be changed",
            "2:21: sites.www.request_fields.set: expected a header field's name, found \"a b\"",
        ],
    );
}

#[test]
fn options_without_an_effect_are_mistakes() {
    let beside = |line: usize, at: usize, name: &str, does: &str| {
        format!(
            "{line}:{at}: \"{name}\" has no effect with \"{does}\", which sends no request to an origin: remove \
             \"{name}\", or set \"pool\" instead of \"{does}\""
        )
    };
    let rule = "[[sites.www.rules]]\npath = \"/a\"\n";
    let redirect = format!("{rule}redirect.location = \"/b\"\n");
    for (option, name, at) in [
        ("strip_prefix = \"/a\"", "strip_prefix", 16),
        ("add_prefix = \"/a\"", "add_prefix", 14),
        ("pools_by_country = { DE = \"main\" }", "pools_by_country", 20),
        ("pools_by_continent = { EU = \"main\" }", "pools_by_continent", 22),
        ("cache = { enabled = false }", "cache", 9),
        ("compression = { codings = [] }", "compression", 15),
        ("request_fields = { set = { a = \"b\" } }", "request_fields", 18),
    ] {
        check(&format!("{redirect}{option}\n"), &[&beside(4, at, name, "redirect")]);
    }
    let respond = format!("{rule}respond.content = \"b\"\n");
    check(
        &format!("{respond}strip_prefix = \"/a\"\n"),
        &[&beside(4, 16, "strip_prefix", "respond")],
    );
    check(&format!("{respond}compression.codings = []\naccess.methods = [\"GET\"]\n"), &[]);
    // The rules of a site inherit what they have an effect on.
    let site = "[sites.b]\nhosts = \"b\"\nredirect.location = \"/b\"\ncache.enabled = false\n";
    check(site, &[&beside(4, 1, "cache", "redirect")]);
    let rules = "[[sites.b.rules]]\npath = \"/a\"\npool = \"main\"\n";
    check(&format!("{site}{rules}"), &[]);
    check(
        &format!("{rule}rate.burst = 5\n"),
        &["3:14: \"burst\" has no effect without \"per_second\": set both"],
    );
    check(
        &format!("{rule}respond = {{ status = 204, content = \"b\" }}\n"),
        &[
            "3:22: a response of status 204 cannot have content: remove the content, or choose another status",
        ],
    );
    check(
        "[sites.www.response_fields]\nadd = { Content-Type = \"a/b\", Link = \"</b>\" }\n",
        &["2:9: the field \"Content-Type\" may occur only once in a response: use \"set\""],
    );
}

#[test]
fn a_split_has_pools_with_weights_and_one_cookie_for_its_groups() {
    let site = |options: &str| {
        format!(
            "pool = \"main\"\n[pools.canary]\norigins = \"http://a\"\n[pools.\"a b\"]\norigins = \"http://a\"\n\
             [sites.b]\nhosts = \"b\"\n[sites.b.split]\n{options}"
        )
    };
    check(&site("pools = { main = 95, canary = 5 }\nby = \"client\"\n"), &[]);
    check(
        &site(
            "pools = { main = 95, cannery = 5, \"a b\" = 10001 }\nby = \"lot\"\ncookie = \"a b\"\n",
        ),
        &[
            "9:22: unknown pool \"cannery\"; did you mean \"canary\"?",
            "9:35: the pool \"a b\" names a group in a cookie: rename it with letters, digits, \"-\", \"_\" and \".\"",
            "9:43: sites.b.split.pools: expected a weight from 0 to 10000, found 10001",
            "10:6: sites.b.split.by: expected \"cookie\" or \"client\", found \"lot\"",
            "11:10: sites.b.split.cookie: expected the name of a cookie, found \"a b\"",
        ],
    );
    check(
        &site("pools = { main = 0, canary = 0 }\n"),
        &["9:9: all weights are 0: give at least one pool a weight"],
    );
    check(
        &site("pools.main = 1\nby = \"client\"\ncookie = \"g\"\ncookie_max_age = \"1d\"\n"),
        &[
            "11:10: \"cookie\" has no effect without by = \"cookie\": remove it",
            "12:18: \"cookie_max_age\" has no effect without by = \"cookie\": remove it",
        ],
    );
    check(
        &site(
            "pools.main = 1\ncookie_max_age = \"401d\"\nforce = [{ pool = \"canary\" }, { header = \"X\" }]\n",
        ),
        &[
            "10:18: sites.b.split.cookie_max_age: expected at most \"400d\", which is as long as browsers keep a cookie",
            "11:10: the entry needs either a \"header\" or a \"cookie\", such as header = \"X-Canary\"",
            "11:19: pool \"canary\" is not one of the split's \"pools\": add it there, with weight 0 if only forced requests may go to it",
            "11:31: the entry has no \"pool\", such as pool = \"canary\"",
        ],
    );
    check(
        "split.cookie = \"g\"\n",
        &["1:1: the split has no \"pools\", such as pools = { main = 95, canary = 5 }"],
    );
}

#[test]
fn a_rule_inherits_a_split_unless_it_has_a_pool() {
    let above = "pool = \"main\"\n[pools.canary]\norigins = \"http://a\"\n[sites.b]\nhosts = \"b\"\n\
                 split.pools = { main = 9, canary = 1 }\n";
    let rules = "[[sites.b.rules]]\npath = \"/a\"\npool = \"main\"\n\
                 [[sites.b.rules]]\npath = \"/b\"\nsplit.by = \"client\"\n\
                 [[sites.b.rules]]\npath = \"/c\"\nsplit.pools = {}\n";
    let config = read_text(&format!("{MINIMAL}{above}{rules}")).unwrap();
    let site = config.routes.sites.iter().find(|site| &*site.name == "b").expect("the site");
    let split = |at: usize| match &site.rules[at].action {
        Action::Forward(forward) => {
            (&*forward.pool, forward.split.as_ref().map(|split| (split.groups.len(), split.by)))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(split(0), ("main", None));
    assert_eq!(split(1), ("main", Some((2, route::SplitBy::Client))));
    assert_eq!(split(2), ("main", None));
    assert_eq!(split(3), ("main", Some((2, route::SplitBy::Cookie))));
    check(
        "pool = \"main\"\nsplit.pools.main = 1\n",
        &[
            "1:8: \"pool\" has no effect with \"split\", which names the pools of all visitors: remove one of them",
        ],
    );
    let other = "[pools.beta]\norigins = \"http://a\"\n\
                 [[sites.b.rules]]\npath = \"/d\"\nname = \"d\"\nsplit.pools = { main = 1, beta = 1 }\n";
    check(
        &format!("{above}{other}"),
        &[
            "4:8: the splits of rules \"d\" and \"default\" have different pools and one cookie, so that each changes the groups of the other: set \"cookie\" in one of them",
        ],
    );
}

#[test]
fn caching_has_words_and_ranges_of_statuses() {
    check(
        "[sites.www.cache]\nhonour = [\"no-store\", \"no-cash\"]\nset_cookie = \"eat\"\nlifetimes = { by_status = { 404 = \"1s\", 99 = \"1s\" } }\nkey = { query = \"none\", query_only = \"a\" }\n",
        &[
            "2:23: sites.www.cache.honour: expected \"all\", \"none\" or some of no-store, no-cache, max-age, min-fresh, max-stale, only-if-cached, stale-if-error, found \"no-cash\"",
            "3:14: sites.www.cache.set_cookie: expected \"pass\", \"strip\" or \"store\", found \"eat\"",
            "4:41: sites.www.cache.lifetimes.by_status: expected a status such as 404 or a range such as \"500-599\", found \"99\"",
            "5:7: only one of \"query\", \"query_only\" and \"query_except\" can be set",
        ],
    );
    check(
        "[store]\nmemory = \"1MiB\"\ndisk = \"none\"\n",
        &[
            "2:10: store.memory of 1.0 MiB is too small: expected at least 16.0 MiB (64 times store.slice = 256.0 KiB)",
        ],
    );
}

#[test]
fn a_rule_inherits_from_its_site_and_the_site_from_the_defaults() {
    let config = read_text(
        r#"
        [pools.a]
        origins = "http://127.0.0.1:1"
        [pools.b]
        origins = "http://127.0.0.1:2"
        [defaults.access]
        deny = "10.0.0.0/8"
        [defaults.response_fields]
        set = { A = "1", B = "1" }
        [sites.www]
        hosts = "*"
        pool = "a"
        add_prefix = "/v1"
        pools_by_country = { DE = "b" }
        rate = { per_second = 10 }
        response_fields = { set = { B = "2" } }
        [[sites.www.rules]]
        path_prefix = "/own"
        pool = "b"
        rate = { per_second = "none" }
        add_prefix = "none"
        access = { allow = "192.0.2.0/24" }
        response_fields = { remove = "A", add = { C = "3" } }
        "#,
    )
    .unwrap();
    let [own, site] = &*config.routes.sites[0].rules else { panic!("{:?}", config.routes) };
    let edits = |rule: &route::RuleSettings| {
        let mut headers = http::HeaderMap::new();
        let facts = route::Facts {
            client: "192.0.2.1".parse().unwrap(),
            place: &geo::Place::default(),
            request_id: &1,
            scheme: "http",
            authority: "x",
            path: "/",
            query: None,
            group: None,
        };
        rule.response_fields.apply(&mut headers, &facts);
        let mut found: Vec<String> =
            headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        found.sort();
        found.join(" ")
    };
    assert_eq!(edits(site), "a=1 b=2");
    assert_eq!(edits(own), "b=2 c=3");
    assert_eq!(site.guard.rate, Some(guard::rate::Limit { per_second: 10.0, burst: 10 }));
    assert_eq!(own.guard.rate, None);
    assert_eq!(own.guard.access.deny_addresses, site.guard.access.deny_addresses);
    assert_eq!(
        (own.guard.access.allow_addresses.len(), site.guard.access.allow_addresses.len()),
        (1, 0)
    );
    let pass = |rule: &route::RuleSettings| match &rule.action {
        Action::Forward(pass) => {
            (pass.pool.to_string(), pass.by_country.len(), pass.rewrite.add_prefix.clone())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(pass(site), ("a".to_owned(), 1, Some("/v1".into())));
    assert_eq!(pass(own), ("b".to_owned(), 1, None));
}

#[test]
fn protocols_to_switch_to_are_inherited_and_none_of_them_carries_http() {
    let config = read_text(
        r#"
        [pools.a]
        origins = "http://127.0.0.1:1"
        [sites.shipped]
        hosts = "*"
        [sites.own]
        hosts = "a.example"
        access.upgrade = ["websocket", "irc/6.9"]
        [[sites.own.rules]]
        path_prefix = "/same"
        [[sites.own.rules]]
        path_prefix = "/none"
        access.upgrade = []
        "#,
    )
    .unwrap();
    let lists: Vec<Vec<String>> = (config.routes.sites.iter().flat_map(|site| &site.rules))
        .map(|rule| rule.guard.access.upgrade.iter().map(ToString::to_string).collect())
        .collect();
    let (shipped, own) = (vec!["websocket"], vec!["websocket", "irc/6.9"]);
    assert_eq!(lists, [shipped, own.clone(), vec![], own]);
    check(
        "[sites.x]\nhosts = \"*\"\naccess.upgrade = [\"h2c\", \"TLS/1.0\", \"a b\", 1]\n",
        &[
            "3:19: \"h2c\" carries HTTP requests that would bypass every rule, limit and log line; \
             list only protocols that carry none, such as \"websocket\"",
            "3:26: \"TLS/1.0\" carries HTTP requests that would bypass every rule, limit and log line; \
             list only protocols that carry none, such as \"websocket\"",
            "3:37: sites.x.access.upgrade: expected a protocol's name as in an Upgrade field, such as \"websocket\", found \"a b\"",
            "3:44: sites.x.access.upgrade: expected a protocol's name, found 1",
        ],
    );
}

#[test]
fn a_signed_pool_has_region_keys_and_a_host_that_clients_do_not_choose() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let keys =
        path("keys", "[default]\naws_access_key_id = AKID\naws_secret_access_key = hunter2\n");
    let secret = path("secret", "hunter2\n");
    let (bad, empty) = (path("bad", "[default]\naws_access_key_id = AKID\n"), path("empty", " \n"));
    let pool = |options: &str| {
        format!("pool = \"main\"\n[pools.a]\norigins = \"https://b.example\"\n{options}\n")
    };
    let options = format!(
        "host = \"origin\"\nsign = {{ kind = \"aws-sigv4\", region = \"eu-west-1\", credentials_file = {keys:?} }}\n\
         secret_header = {{ name = \"X-Secret\", file = {secret:?} }}"
    );
    let config = read_text(&format!("{MINIMAL}{}", pool(&options))).unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("eu-west-1") && !shown.contains("hunter2"), "{shown}");
    let check_pool = |options: &str, expected: &[&str]| check(&pool(options), expected);
    let good = format!("kind = \"aws-sigv4\", region = \"r\", credentials_file = {keys:?}");
    check_pool(
        &format!("sign = {{ {good} }}"),
        &[
            "2:8: signed requests need host = \"origin\" or a fixed host, because the signature covers \
           Host and a client must not choose it",
        ],
    );
    let grpc = |methods: &str| {
        format!("host = \"b\"\nsign = {{ {good}{methods} }}\ncheck.kind = \"grpc\"")
    };
    check_pool(
        &grpc(""),
        &[
            "5:8: a check of kind \"grpc\" is a POST, which must be signed too: add \"POST\" to \"methods\"",
        ],
    );
    check_pool(&grpc(", methods = [\"POST\"]"), &[]);
    check_pool("sign = { region = \"r\" }", &["4:8: set \"kind\", such as kind = \"aws-sigv4\""]);
    check_pool(
        &format!("host = \"b\"\nsign = {{ kind = \"aws-sigv4\", credentials_file = {keys:?} }}"),
        &["5:8: set the bucket's \"region\", such as region = \"eu-central-1\""],
    );
    check_pool(
        &format!(
            "host = \"b\"\n[pools.a.sign]\nkind = \"aws-sigv4\"\nregion = \"a/b\"\ncredentials_file = {bad:?}"
        ),
        &[
            "7:10: pools.a.sign.region: expected a name of letters, digits, \"-\", \"_\" and \".\", found \"a/b\"",
            &format!("8:20: pool a: {bad}: profile [default]: aws_secret_access_key is not set"),
        ],
    );
    check_pool(
        &format!(
            "host = \"b\"\nsign = {{ {good} }}\nsecret_header = {{ name = \"Authorization\", file = {secret:?} }}"
        ),
        &["6:26: the signature sets this field: choose another field"],
    );
    check_pool(
        &format!("secret_header = {{ name = \"Host\", file = {empty:?} }}"),
        &[
            "4:26: host is a field of the connection or the message: choose another field",
            &format!("4:41: pool a: {empty}: the file is empty: expected the value of the field"),
        ],
    );
    check_pool(
        "secret_header.name = \"X-Secret\"",
        &["4:22: set both \"name\" and \"file\", or neither"],
    );
}

#[test]
fn a_reload_knows_what_changed_and_what_waits_for_a_restart() {
    let before = read_text(MINIMAL).unwrap();
    let text = format!(
        "{MINIMAL}rate = {{ per_second = 5 }}\n[node]\nworkers = 7\n[guard]\ntrace = true\n"
    );
    let after = read_text(&text).unwrap();
    let changes: Vec<String> = after.changes(&before).iter().map(Change::to_string).collect();
    assert_eq!(
        changes,
        [
            "guard.trace: false → true".to_owned(),
            "node.workers: \"auto\" → 7 (after a restart)".to_owned(),
            "sites.www.rate.burst: 1 → 5".to_owned(),
            "sites.www.rate.per_second: \"none\" → 5".to_owned(),
        ]
    );
    let changes = after.changes(&before);
    let restarts = changes.iter().filter(|change| change.needs_restart);
    assert_eq!(restarts.map(|change| &*change.option).collect::<Vec<_>>(), ["node.workers"]);
    assert!(after.changes(&after.clone()).is_empty());
}

/// The samples' text, by their names.
const SAMPLES: [(&str, &str); 4] = [
    ("edge.toml", include_str!("../../../config/edge.toml")),
    ("simple.toml", include_str!("../../../config/simple.toml")),
    ("conformance.toml", include_str!("../../../config/conformance.toml")),
    ("geo.toml", include_str!("../../../config/geo.toml")),
];

#[test]
fn every_sample_loads() {
    for (name, text) in SAMPLES {
        if let Err(mistakes) = parse(text, name, Path::new("config"), &Flags::default()) {
            panic!("{mistakes}");
        }
    }
}

#[test]
fn edge_toml_has_every_option_there_is() {
    let text = every_option();
    let document = Document::single("edge.toml", Path::new("/nowhere"), &text);
    let reader = Reader::new(&document);
    read(&reader, &Flags::default());
    let notes = reader.into_notes();
    let missing: Vec<&String> =
        notes.known.iter().filter(|option| !is_documented(option, &notes.written)).collect();
    assert!(missing.is_empty(), "not in config/edge.toml: {missing:#?}");
    // The mistakes that remain: files that don't exist here, and options that exclude each other.
    for mistake in notes.mistakes(known_options) {
        let expected = [
            "cannot read",
            "No such file",
            "does not exist",
            "of disk cache does not fit",
            "only one of",
            "rotate keys by",
            "signed requests need host",
            "has no effect with [[store.directories]]",
            "has no effect without balance = \"hash\"",
        ];
        assert!(expected.iter().any(|part| mistake.message.contains(part)), "{mistake}");
    }
}

/// Sites and rules have the tables of `[defaults]`, which are documented there.
fn is_documented(option: &str, written: &std::collections::BTreeSet<String>) -> bool {
    let shared =
        option.strip_prefix("sites.*.rules.*.").or_else(|| option.strip_prefix("sites.*."));
    let in_site = |name: &str| written.contains(&format!("sites.*.{name}"));
    written.contains(option)
        || shared.is_some_and(|name| written.contains(&format!("defaults.{name}")) || in_site(name))
        || shared.is_some_and(|name| written.contains(&format!("sites.*.rules.*.{name}")))
        // Empty tables: nothing is written in them.
        || ["set", "add"].iter().any(|name| option.ends_with(&format!("_fields.{name}")))
}

#[test]
fn edge_toml_shows_the_defaults() {
    let examples =
        ["node.name", "listeners", "content_types", "by_status", "_fields.", "defaults.rate"];
    let shown = parse(SAMPLES[0].1, "edge.toml", Path::new(""), &Flags::default()).unwrap();
    let empty = parse(
        "[pools.main]\norigins = \"http://x\"\n[sites.www]\nhosts = \"*\"\n",
        "",
        Path::new(""),
        &Flags::default(),
    );
    for change in shown.changes(&empty.unwrap()) {
        let is_example = examples.iter().any(|example| change.option.contains(example))
            || change.option.starts_with("sites.")
            || change.option.starts_with("pools.europe")
            || change.option.starts_with("dns.zones")
            || change.option.starts_with("dns.nodes")
            || change.option == "dns.server.nsid"
            || change.option == "pools.main.origins";
        assert!(is_example, "{change}");
    }
}

#[test]
fn a_dump_is_read_as_the_same_configuration_and_shows_no_secret() {
    let secret = "[bus]\nredis = \"redis://me:pa55@127.0.0.1:1/3\"\n[sites.\"a.b\"]\nhosts = \"a.b\"\n\
                  request_fields.set = { X-Key = \"s3cret\" }\n";
    for (name, text) in SAMPLES.iter().copied().chain([("secret", &*format!("{MINIMAL}{secret}"))])
    {
        let flags = Flags { workers: Some(3), ..Flags::default() };
        let config = parse(text, name, Path::new("config"), &flags).unwrap();
        let dump = config.dump();
        assert!(!dump.contains("pa55") && !dump.contains("s3cret"), "{dump}");
        // Values as Rust prints them have brackets.
        for line in dump.lines() {
            let value = line.split_once(" = ").map_or("", |(_, value)| value);
            let is_rust = value.contains("Some(") || value.contains(" { ") && line.starts_with('#');
            assert!(!is_rust, "{line}");
        }
        let again = match parse(&dump, "dump", Path::new("config"), &Flags::default()) {
            Ok(again) => again,
            Err(wrong) => panic!("{name}: {wrong}\n{dump}"),
        };
        let changes = again.changes(&config);
        let hidden = |change: &&Change| {
            !["bus.redis", "listeners"].contains(&&*change.option)
                && !change.option.ends_with("request_fields.set")
        };
        let changes: Vec<String> = changes.iter().filter(hidden).map(ToString::to_string).collect();
        assert!(changes.is_empty(), "{name}: {changes:#?}");
    }
}

#[test]
fn a_tag_that_no_purge_finds_is_a_warning() {
    let text = "response_fields.set = { Cache-Tag = \"news\" }\nrequest_fields.set = { Cache-Tag = \"x\" }\n";
    let warnings = read_text(&format!("{MINIMAL}{text}")).unwrap().warnings;
    let about: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    let about: Vec<&String> = about.iter().filter(|it| it.contains("Cache-Tag")).collect();
    assert_eq!(about.len(), 1, "{warnings:?}");
    assert!(about[0].contains("no purge by tag finds it: set cache.tags"), "{about:?}");
}

#[test]
fn a_default_is_shown_as_it_is_written() {
    let before = read_text(MINIMAL).unwrap();
    let text = "compression.codings = \"gzip:1\"\ncache.honour = \"none\"\nstrip_prefix = \"/a\"\n";
    let after = read_text(&format!("{MINIMAL}{text}")).unwrap();
    let changes: Vec<String> = after.changes(&before).iter().map(Change::to_string).collect();
    assert_eq!(
        changes,
        [
            "sites.www.cache.honour: \"all\" → \"none\"",
            "sites.www.compression.codings: [\"zstd:3\", \"br:4\", \"gzip:4\"] → \"gzip:1\"",
            "sites.www.strip_prefix: \"none\" → \"/a\"",
        ]
    );
}

#[test]
fn options_of_health_that_are_gone_name_their_successors() {
    check(
        "[pools.main.health]\nfailures_max = 3\nskip = \"1s\"\ntry_when_all_down = true\n",
        &[
            "2:16: there is no option \"failures_max\" any more: set \"connect_failures\" (failed connections in a row) and \"consecutive_5xx\" (faulty responses in a row)",
            "3:8: there is no option \"skip\" any more: set \"eject_for\"",
            "4:21: there is no option \"try_when_all_down\" any more: if all origins are down, one request at a time tries one; set \"trial_interval\" for the time between two",
        ],
    );
}

#[test]
fn a_check_that_cannot_work_is_a_mistake() {
    check(
        "[pools.main.check]\nkind = \"tcp\"\npath = \"/health\"\ninterval = \"500ms\"\ntimeout = \"1s\"\n",
        &[
            "3:8: \"path\" has no effect on a check of kind \"tcp\"",
            "5:11: pools.main.check.timeout: expected more than 0s and at most \"interval\", which is 500ms, found 1s",
        ],
    );
    check(
        "[pools.main.check]\nkind = \"grpc\"\nstatuses = [200]\nservice = \"/shop.Cart\"\n",
        &[
            "3:12: \"statuses\" has no effect on a check of kind \"grpc\"",
            "4:11: pools.main.check.service: expected the full name of a gRPC service, such as \"shop.Cart\", found \"/shop.Cart\"",
        ],
    );
    check(
        "[pools.main.check]\nservice = \"shop.Cart\"\n",
        &["2:11: \"service\" has no effect on a check of kind \"http\""],
    );
    check(
        "[pools.main.check]\nmethod = \"HEAD\"\ncontains = \"ok\"\nstatuses = [\"399-200\", 99]\n",
        &[
            "3:12: a response to HEAD has no content to search",
            "4:13: pools.main.check.statuses: expected a status code or a range of them, such as 200 or \"200-399\", found \"399-200\"",
            "4:24: pools.main.check.statuses: expected a status code or a range of them, such as 200 or \"200-399\", found 99",
        ],
    );
    let config =
        read_text(&format!("{MINIMAL}[pools.main.check]\ninterval = \"500ms\"\n")).unwrap();
    let check = config.upstream.pools[0].settings.check.as_ref().expect("a check");
    assert_eq!(check.timeout, check.interval, "the default is not above the interval");
}

#[test]
fn retries_that_cannot_work_are_mistakes() {
    check(
        "[pools.main.retry]\non = [\"conect\", 200]\nattempts_max = \"all\"\nper_try_timeout = \"1m\"\nhold_response = \"2MiB\"\n",
        &[
            "2:7: pools.main.retry.on: expected \"connect\", \"reset\", \"timeout\", \"truncated\", \"invalid\" or a status from 400 to 599, found \"conect\"",
            "2:17: pools.main.retry.on: expected \"connect\", \"reset\", \"timeout\", \"truncated\", \"invalid\" or a status from 400 to 599, found 200",
            "3:16: pools.main.retry.attempts_max: expected \"members\" or a number from 1 to 10, found \"all\"",
            "4:19: pools.main.retry.per_try_timeout: expected \"first_byte\" or 100ms to 30s (deadlines.first_byte), found 1m",
            "5:17: pools.main.retry.hold_response: expected at most 1MiB, found 2MiB",
        ],
    );
    check(
        "[pools.main.retry]\nfailover_on = [404, 503]\n",
        &[
            "2:15: 503 is listed in \"on\" too: leave it in \"on\" to try the other origins of the tier first, or in \"failover_on\" to go to the next tier at once",
        ],
    );
}

#[test]
fn a_unix_socket_is_an_origin_and_its_mistakes_are_named() {
    let long = format!("unix:/{}", "x".repeat(107));
    let url = |place: &str, found: &str, remedy: &str| {
        format!(
            "{place}: pools.c.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", \
             found {found:?}; {remedy}"
        )
    };
    let expected = [
        url("5:12", "unix:app.sock", "write the absolute path of a Unix socket, as in \"unix:/run/app.sock\""),
        url("5:29", &long, "the path of a Unix socket has at most 107 bytes, this one 108"),
        url("5:146", "https://unix:/run/a", "write \"unix:/PATH\" for a Unix socket, which has no TLS"),
        "7:19: pools.d.origins: expected the name of SRV records with the scheme of the origins and without port, such as \"http://_http._tcp.app.internal\", found \"unix:/run/app.sock\"".to_owned(),
    ];
    check(
        &format!(
            "pool = \"main\"\n[pools.b]\n\
             origins = [\"unix:/run/app.sock\", {{ url = \"unix:///run/b.sock\", weight = 2 }}]\n\
             [pools.c]\norigins = [\"unix:app.sock\", \"{long}\", \"https://unix:/run/a\"]\n\
             [pools.d]\norigins = {{ srv = \"unix:/run/app.sock\" }}\n"
        ),
        &expected.each_ref().map(String::as_str),
    );
}

#[test]
fn a_pool_that_states_its_clients_speaks_http1() {
    check(
        "pool = \"main\"\n[pools.b]\norigins = \"http://a\"\nprotocol = \"http2\"\nsend_proxy_protocol = \"v1\"\n",
        &[
            "5:23: a connection with a PROXY protocol header serves one client, and HTTP/2 is for many: set protocol = \"http1\"",
        ],
    );
    let config = read_text(&format!(
        "{MINIMAL}pool = \"main\"\n[pools.b]\norigins = \"https://a\"\nsend_proxy_protocol = \"v2\"\n"
    ));
    let config = config.expect("no mistakes");
    let pool = config.upstream.pools.iter().find(|pool| &*pool.settings.name == "b");
    assert_eq!(pool.expect("the pool").settings.protocol, upstream::Protocol::Http1);
}

#[test]
fn keys_of_the_instance_exclude_those_of_a_file() {
    let sign = |more: &str| {
        format!(
            "pool = \"main\"\n[pools.b]\norigins = \"http://a\"\nhost = \"origin\"\n[pools.b.sign]\n\
             kind = \"aws-sigv4\"\nregion = \"r\"\n{more}"
        )
    };
    check(&sign("credentials = \"instance http://[fd00:ec2::254]\"\n"), &[]);
    check(
        &sign("credentials = \"instance http://metadata.internal\"\n"),
        &[
            "8:15: pools.b.sign.credentials: expected \"auto\", \"instance\", or \"instance URL\" with the address of a metadata service, such as \"instance http://169.254.169.254\", found \"instance http://metadata.internal\"",
        ],
    );
    check(
        &sign("credentials_file = \"/dev/null\"\ncredentials = \"instance\"\n"),
        &[
            "8:20: \"credentials_file\" has no effect with credentials = \"instance\": remove one of the two",
        ],
    );
}
