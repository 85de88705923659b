//! Each mistake is one line here: what is written, and what is said of it.

mod files;
mod include;
mod newcomer;
mod pasted;
mod peers;
mod pools;
mod refused;
mod samples;
mod sites;

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

/// Writes a file that only its owner can read.
fn write_secret(path: &Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt;

    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
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
fn the_site_of_the_origin_flag_has_the_settings_of_defaults() {
    let flags = Flags { origins: vec!["https://example.org".to_owned()], ..Flags::default() };
    let text = "[store]\nobject_age_max = \"3d\"\n[defaults]\nserver_timing = true\n\
                [defaults.compression]\norigin_codings = []\n";
    let config = parse(text, "edge.toml", Path::new(""), &flags).unwrap();
    let settings = &config.routes.sites[0].rules[0];
    assert!(settings.compression.origin_codings.is_empty());
    assert_eq!(settings.cache.object_age_max, std::time::Duration::from_secs(3 * 86400));
    assert!(settings.server_timing);
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
    assert!(mistakes.contains("--name: expected a name of 1 to 64 letters"), "{mistakes}");
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
            "2:12: resolver.servers: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"9.9.9.9\"; add the port, as in \"9.9.9.9:PORT\"",
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
const ZERO_HAS_A_MEANING: [&str; 19] = [
    "bus.start_wait",
    "defaults.cache.lifetimes.fixed",
    "defaults.cache.lifetimes.heuristic_max",
    "defaults.cache.lifetimes.lifetime_max",
    "defaults.cache.pass_memory",
    "defaults.cache.stale.if_error",
    "defaults.cache.stale.while_revalidate",
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
