//! Mistakes that people make with their first files: units, types, names, quotes, options of other servers.
//! Each gives one line with its place, its cause and, where it can be known, its remedy.

use super::{MINIMAL, check, check_each, read_text, write_secret};
use crate::config::Flags;

/// The text after a minimal site, and the line about it.
const MISTAKES: &[(&str, &str)] = &[
    (
        "[limits]\nidle_timeout = 30",
        "2:16: limits.idle_timeout: expected a duration such as \"30s\", \"250ms\" or \"12h\", found 30; a duration has a unit: write \"30s\" for seconds",
    ),
    (
        "[limits]\nidle_timeout = \"1 day\"",
        "2:16: limits.idle_timeout: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"1 day\"; write \"1d\"",
    ),
    (
        "[limits]\nidle_timeout = \"1.5s\"",
        "2:16: limits.idle_timeout: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"1.5s\"; write \"1500ms\"",
    ),
    (
        "[limits]\nidle_timeout = \"30sec\"",
        "2:16: limits.idle_timeout: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"30sec\"; write \"30s\"",
    ),
    (
        "[store]\nmemory = \"1G\"",
        "2:10: store.memory: expected a size such as \"64KiB\" or \"10GiB\", found \"1G\"; write \"1GiB\"",
    ),
    (
        "[store]\nmemory = \"1gb\"",
        "2:10: store.memory: expected a size such as \"64KiB\" or \"10GiB\", found \"1gb\"; write \"1GB\"",
    ),
    (
        "[store]\nmemory = \"1.5GiB\"",
        "2:10: store.memory: expected a size such as \"64KiB\" or \"10GiB\", found \"1.5GiB\"; write \"1536MiB\"",
    ),
    (
        "[store]\nmemory = 1GiB",
        "2:10: expected a value, found 1GiB: text needs quotes, write \"1GiB\"",
    ),
    ("[store]\nmemory =", "2:9: expected a value after \"=\", found nothing"),
    ("[store]\nmemory = “1GiB”", "2:10: expected straight quotes, found “1GiB”: write \"1GiB\""),
    (
        "[store]\nmemory = \"0\"",
        "2:10: store.memory: expected a size such as \"64KiB\" or \"10GiB\", found \"0\"; write 0 without quotes for bytes",
    ),
    (
        "[guard]\ntrusted_proxies = [\"10.0.0.1/8\"]",
        "2:20: guard.trusted_proxies: expected the first address of the network 10.0.0.0/8, found \"10.0.0.1/8\"; write \"10.0.0.0/8\", or the address without its prefix length",
    ),
    (
        "[guard]\ntrusted_proxies = [\"10.0.0.0/33\"]",
        "2:20: guard.trusted_proxies: expected a network such as \"192.0.2.0/24\" or an address, found \"10.0.0.0/33\"; the prefix length of such an address is 0 to 32",
    ),
    (
        "[guard]\ntrusted_proxies = [\"10.0.0.0-10.0.0.255\"]",
        "2:20: guard.trusted_proxies: expected a network such as \"192.0.2.0/24\" or an address, found \"10.0.0.0-10.0.0.255\"; write \"10.0.0.0/24\"",
    ),
    (
        "access.deny_countries = [\"UK\"]",
        "1:26: sites.www.access.deny_countries: expected a country's two-letter code (ISO 3166-1), found \"UK\"; write \"GB\"",
    ),
    (
        "access.deny_countries = [\"Germany\"]",
        "1:26: sites.www.access.deny_countries: expected a country's two-letter code (ISO 3166-1), found \"Germany\"; write \"DE\"",
    ),
    (
        "[[sites.www.rules]]\npath_prefix = [\"/a\"\ncache.enabled = false\n[node]\nname = \"x\"\n[log]\naccess = \"off\"",
        "2:15: this array is never closed: add \"]\" after its last item",
    ),
    ("[node\nname = \"x\"", "1:6: this table's name is never closed: add \"]\""),
    (
        "[node]\nname = \"x\n[log]\naccess = \"off\"",
        "2:10: this string is never closed: add its quotation mark at the end",
    ),
    ("[node]\nname = x", "2:8: expected a value, found x: text needs quotes, write \"x\""),
    (
        "name = \"x\"",
        "1:1: unknown option \"name\" in [sites.www]; it is an option of [node], [[listeners]] and 2 more tables",
    ),
    (
        "[nodes]\nname = \"x\"",
        "1:2: unknown option \"nodes\" at the top level; did you mean \"node\"?",
    ),
    (
        "[[sites.www.rules]]\npath = \"/a\"\nfoo = 1\n[[sites.www.rules]]\npath_prefix = \"/\"\n[[sites.www.rules]]\npath = \"/b\"",
        "3:1: unknown option \"foo\" in [[sites.www.rules]] number 1; config/edge.toml lists the options",
    ),
    (
        "[admin]\naddress = \"9180\"",
        "2:11: admin.address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"9180\"; write \"127.0.0.1:9180\" for this machine only, or \"0.0.0.0:9180\" for all interfaces",
    ),
    (
        "[admin]\naddress = \":9180\"",
        "2:11: admin.address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \":9180\"; write \"127.0.0.1:9180\" for this machine only, or \"0.0.0.0:9180\" for all interfaces",
    ),
    (
        "[admin]\naddress = \"localhost:9180\"",
        "2:11: admin.address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"localhost:9180\"; write \"127.0.0.1:9180\"",
    ),
    (
        "[[listeners]]\naddress = \"0.0.0.0\"",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"0.0.0.0\"; add the port, as in \"0.0.0.0:PORT\"",
    ),
    (
        "[[listeners]]\naddress = \"*:80\"",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"*:80\"; write \"127.0.0.1:80\" for this machine only, or \"0.0.0.0:80\" for all interfaces",
    ),
    (
        "[listeners]\naddress = \"0.0.0.0:80\"",
        "1:1: listeners: expected an array of tables [[listeners]], found a table; write [[listeners]] with two brackets",
    ),
    (
        "[bus]\nredis = \"redis:/127.0.0.1:6379\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"redis:/127.0.0.1:6379\"; write \"redis://127.0.0.1:6379\"",
    ),
    (
        "[bus]\nredis = \"http://127.0.0.1:6379\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"http://127.0.0.1:6379\"; the URL of a Redis server begins with redis://",
    ),
    (
        "[bus]\nredis = \"127.0.0.1:6379\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"127.0.0.1:6379\"; write \"redis://127.0.0.1:6379\"",
    ),
    (
        "[bus]\nredis = \"redis://127.0.0.1:6379/db\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"redis://127.0.0.1:6379/db\"; a database is a number, such as /0",
    ),
    ("pool = \"mian\"", "1:8: unknown pool \"mian\"; did you mean \"main\"?"),
    (
        "[[sites.www.rules]]\npath_prefix = \"api\"\npool = \"main\"",
        "2:15: sites.www.rules[0].path_prefix: expected a path that begins with \"/\", found \"api\"; write \"/api\"",
    ),
    (
        "[[sites.www.rules]]\npath = \"/a b\"",
        "2:8: no request can have this path: \"/a b\" is normalised to \"/a%20b\"; write \"/a%20b\"",
    ),
    (
        "[[sites.www.rules]]\nmethods = \"get\"",
        "2:11: sites.www.rules[0].methods: expected a method in upper case such as \"GET\", found \"get\"; write \"GET\"",
    ),
    (
        "cache.lifetimes.by_status = { \"4xx\" = \"1s\" }",
        "1:31: sites.www.cache.lifetimes.by_status: expected a status such as 404 or a range such as \"500-599\", found \"4xx\"; write \"400-499\"",
    ),
    (
        "cache.ttl = \"1h\"",
        "1:7: unknown option \"ttl\" in [sites.www.cache]; set cache.lifetimes.fixed, or cache.lifetimes.by_status",
    ),
    (
        "cache.lifetimes.fixed = \"1 week\"",
        "1:25: sites.www.cache.lifetimes.fixed: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"1 week\"; write \"7d\"",
    ),
    (
        "cache = false",
        "1:9: sites.www.cache: expected a table, found false; write cache.enabled = false",
    ),
    (
        "compression.codings = [\"brotli\"]",
        "1:24: sites.www.compression.codings: expected a coding, \"zstd\", \"br\" or \"gzip\", with or without a level such as \"br:4\", found \"brotli\"; write \"br\"",
    ),
    ("compression.codings = [\"br:99\"]", "1:24: br has no level 99: expected 0 to 11"),
    (
        "rate.per_second = \"10/s\"",
        "1:19: sites.www.rate.per_second: expected a number, found \"10/s\"; write 10 without quotes",
    ),
    (
        "redirect.location = \"https://x\"\nredirect.status = 200",
        "2:19: sites.www.redirect.status: expected 301, 302, 303, 307 or 308, found 200",
    ),
    (
        "redirect = \"https://x/\"",
        "1:12: sites.www.redirect: expected a table, found \"https://x/\"; write redirect.location = \"https://x/\"",
    ),
    (
        "respond = 404",
        "1:11: sites.www.respond: expected a table, found 404; write respond.status = 404",
    ),
    ("hosts = [\"a.example\"]", "1:1: \"hosts\" is set twice, first at line 5: remove one"),
    (
        "[sites.b]\nhosts = [\"www.example.org\"]",
        "2:9: host \"www.example.org\" already belongs to site \"www\"",
    ),
    (
        "[sites.b]\nhosts = [\"https://b.example\"]",
        "2:10: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"https://b.example\"; write \"b.example\"",
    ),
    (
        "[sites.b]\nhosts = [\"b.example:443\"]",
        "2:10: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"b.example:443\"; write \"b.example\"",
    ),
    (
        "[sites.b]\nhosts = [\"*example.org\"]",
        "2:10: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"*example.org\"; write \"*.example.org\"",
    ),
    (
        "[tls]\ncertificates = [\"a.pem\"]",
        "2:17: tls.certificates: expected a table [[tls.certificates]], found \"a.pem\"",
    ),
    (
        "[tls]\nversion_min = 1.2",
        "2:15: tls.version_min: expected \"1.2\" or \"1.3\", found 1.2; write \"1.2\"",
    ),
    (
        "[tls]\nversion_min = \"1.1\"",
        "2:15: tls.version_min: expected \"1.2\" or \"1.3\", found \"1.1\"; write \"1.2\"",
    ),
    (
        "[store]\ndisk = true",
        "2:8: store.disk: expected a size such as \"64KiB\" or \"10GiB\", found true",
    ),
    (
        "[log]\nlevel = \"warning\"",
        "2:9: log.level: expected \"error\", \"warn\", \"info\", \"debug\" or \"trace\", found \"warning\"; write \"warn\"",
    ),
    (
        "[log]\naccess = true",
        "2:10: log.access: expected \"off\", \"stdout\" or a path, found true; write \"stdout\"",
    ),
    (
        "request_fields.set = { \"X Bad\" = \"1\" }",
        "1:24: sites.www.request_fields.set: expected a header field's name, found \"X Bad\"",
    ),
    (
        "request_fields.set = { Host = \"1\" }",
        "1:24: the field \"Host\" is set by the node and cannot be changed",
    ),
    (
        "response_fields.set = { X-A = \"${client.contry}\" }",
        "1:31: there is no variable ${client.contry}; write ${client.country}; the variables are client.address, client.country, client.continent, request.id, request.scheme, request.host, request.hostname, request.path, request.query, request.target, split.group",
    ),
    (
        "response_fields.set = { X-A = \"a\\nb\" }",
        "1:31: sites.www.response_fields.set: expected no control characters: the text becomes a header field; the variables are client.address, client.country, client.continent, request.id, request.scheme, request.host, request.hostname, request.path, request.query, request.target, split.group",
    ),
    (
        "[node]\nworkers = \"four\"",
        "2:11: node.workers: expected \"auto\" or a number from 1 to 1024, found \"four\"",
    ),
    (
        "[node]\nlatitude = \"50N\"\nlongitude = 8",
        "2:12: node.latitude: expected a number, found \"50N\"; write 50 without quotes",
    ),
    (
        "[pools.main]\nbalance = \"roundrobin\"",
        "1:8: table [pools.main] occurs twice: put its options into the first one, at line 2",
    ),
    (
        "[pools.main.health]\npath = \"healthz\"",
        "2:1: unknown option \"path\" in [pools.main.health]; it is an option of [pools.NAME.check] and [[store.directories]]",
    ),
    (
        "[pools.main.tls]\nverify = \"no\"",
        "2:10: pools.main.tls.verify: expected true or false, found \"no\"; write false without quotes",
    ),
    (
        "cache.enabled = \"true\"",
        "1:17: sites.www.cache.enabled: expected true or false, found \"true\"; write true without quotes",
    ),
    (
        "cache.enabled = yes",
        "1:17: expected true or false, found yes: write true, or \"yes\" if it is a text",
    ),
    ("‘x’ = 1", "1:1: expected a name of letters, digits, \"-\" and \"_\", found '‘'"),
    ("name: \"x\"", "1:7: expected \"=\" between name and value, found \":\""),
    (
        "[sites.shop.example.org]\nhosts = \"shop.example.org\"",
        "1:8: a name with dots needs quotes: write [sites.\"shop.example.org\"] instead of [sites.shop.example.org]",
    ),
    (
        "[admin]\naddress = \"127.0.0.1:8080\"",
        "2:11: admin.address: 127.0.0.1:8080 is also the address of listener \"127.0.0.1:8080\": choose another port",
    ),
    (
        "[store]\nmemory = \"1MiB\"",
        "2:10: store.memory of 1.0 MiB is too small: expected at least 16.0 MiB (64 times store.slice = 256.0 KiB)",
    ),
    (
        "[node]\nname = \"a\"\n[node]\nregion = \"x\"",
        "3:2: table [node] occurs twice: put its options into the first one, at line 6",
    ),
];

/// Further mistakes, as of people who come from another server, or from a shell.
const MORE_MISTAKES: &[(&str, &str)] = &[
    ("[node]\nname = \"x\";", "2:11: the value ends without \";\": remove it"),
    ("[node]\nname = \"x\" // y", "2:12: a comment begins with \"#\", found \"// y\""),
    (
        "[node]\nname = \"x\" region = \"y\"",
        "2:12: expected the end of the line after the value, found \"region = \\\"y\\\"\"",
    ),
    (
        "[node]\ndata_directory = \"C:\\data\"",
        "2:22: a backslash in double quotes begins an escape: write \\\\ for one backslash, or put the text in single quotes",
    ),
    ("[node]\nname = \"x\"\u{0}", "2:11: this line has a control character ('\\0'): remove it"),
    (
        "[sites.b]\nproxy_pass http://a",
        "2:12: expected NAME = VALUE, found \"proxy_pass http://a\"",
    ),
    (
        "[sites.b]\nhosts = [\"a.test\" \"b.test\"]",
        "2:19: a comma is missing between two items: add \",\"",
    ),
    (
        "[[listeners]]\naddress = \"::1:8080\"",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"::1:8080\"; an IPv6 address with a port has brackets: write \"[::1]:8080\"",
    ),
    (
        "[[listeners]]\naddress = \"$LISTEN\"",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"$LISTEN\"; write \"${env.LISTEN}\"",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = [\"http://::1:8000\"]",
        "3:12: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://::1:8000\"; an IPv6 address with a port has brackets: write \"http://[::1]:8000\"",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = [\"${ORIGIN}\"]",
        "3:12: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"${ORIGIN}\"; write \"${env.ORIGIN}\"",
    ),
    (
        "[sites.b]\nhosts = \"a.test b.test\"",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"a.test b.test\"; write each by itself: [\"a.test\", \"b.test\"]",
    ),
    (
        "[sites.b]\nhosts = \"münchen.example\"",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"münchen.example\"; write the name as DNS has it, in ASCII: an international name begins with \"xn--\"",
    ),
    (
        "access.deny_countries = \"US, CN\"",
        "1:25: sites.www.access.deny_countries: expected a country's two-letter code (ISO 3166-1), found \"US, CN\"; write each by itself: [\"US\", \"CN\"]",
    ),
    (
        "[store]\nmemory = \"50%\"",
        "2:10: store.memory: expected a size such as \"64KiB\" or \"10GiB\", found \"50%\"; a share of the machine cannot be given: write a number of bytes",
    ),
    (
        "[[sites.www.rules]]\npath = \"~ ^/api/(.*)$\"",
        "2:8: sites.www.rules[0].path: expected a path that begins with \"/\", found \"~ ^/api/(.*)$\"; there are no regular expressions: set path_prefix or path_glob",
    ),
    (
        "[[sites.www.rules]]\npath_regex = \"^/api/\"",
        "2:1: unknown option \"path_regex\" in [[sites.www.rules]] number 1; set path_prefix or path_glob: there are no regular expressions",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"http://a\"\nhosts = \"x\"",
        "4:1: unknown option \"hosts\" in [pools.b]; did you mean \"host\"? \"hosts\" is an option of [sites.NAME]",
    ),
    (
        "proxy_cache_valid = \"10m\"",
        "1:1: unknown option \"proxy_cache_valid\" in [sites.www]; set cache.lifetimes.by_status",
    ),
    (
        "maxconn = 100",
        "1:1: unknown option \"maxconn\" in [sites.www]; set connections_max of [limits] or [pools.NAME]",
    ),
    (
        "beresp.ttl = \"1h\"",
        "1:1: unknown option \"beresp\" in [sites.www]; set cache.lifetimes.fixed, or cache.stale.while_revalidate",
    ),
    (
        "[entryPoints.web]\naddress = \":80\"",
        "1:2: unknown option \"entryPoints\" at the top level; set [[listeners]] with \"address\"",
    ),
    (
        "[tls]\nmin_version = \"1.2\"",
        "2:1: unknown option \"min_version\" in [tls]; set version_min of [tls]",
    ),
    (
        "[[sites.www.rules]]\nsplit = [{ pool = \"main\" }]",
        "2:9: sites.www.rules[0].split: expected a table, found an array; write split.pools = { main = 95, canary = 5 }",
    ),
];

#[test]
fn a_mistake_of_a_newcomer_is_one_line_with_place_cause_and_remedy() {
    check_each(MISTAKES.iter().chain(MORE_MISTAKES));
}

/// The mistakes of a file with these bytes, without its path.
fn mistakes_of_file(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edge.toml");
    std::fs::write(&path, bytes).unwrap();
    let flags = Flags { config: Some(path), ..Flags::default() };
    let mistakes = super::super::load(&flags).expect_err("a mistake").to_string();
    mistakes.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn a_file_of_another_kind_is_one_mistake() {
    for (text, expected) in [
        (
            "worker_processes auto;\nhttp {\n  server { listen 80; }\n}\n",
            "edge.toml:1:1: this file is a configuration of NGINX, and the configuration of Skerry is TOML: docs/migrate/nginx.md shows how to write it",
        ),
        (
            "{\n \"sites\": {}\n}\n",
            "edge.toml:1:1: this file is JSON, and the configuration of Skerry is TOML: docs/quickstart.md shows how to write it",
        ),
        (
            "[node]\n<<<<<<< HEAD\nname = \"a\"\n=======\nname = \"b\"\n>>>>>>> b\n",
            "edge.toml:2:1: a merge conflict is not resolved: remove the lines that begin with <<<<<<<, ======= and >>>>>>>, and one of the two versions between them",
        ),
        (
            "",
            "edge.toml: nothing to serve: add [pools.NAME] with \"origins\" and [sites.NAME] with \"hosts\" to the configuration file (--config), or start the node with --origin URL",
        ),
        (
            "[pools.a]\norigins = \"http://a\"\n",
            "edge.toml: nothing to serve: add [sites.NAME] with \"hosts\" to the configuration file (--config), or start the node with --origin URL",
        ),
    ] {
        assert_eq!(mistakes_of_file(text.as_bytes()), expected);
    }
    assert_eq!(
        mistakes_of_file(b"# caf\xe9\n"),
        "edge.toml: the file is not UTF-8 text: line 1 has an invalid byte; save it as UTF-8"
    );
    assert_eq!(
        mistakes_of_file(&[0xff, 0xfe, b'a', 0]),
        "edge.toml: the file is not UTF-8 text: it is UTF-16; save it as UTF-8"
    );
}

#[test]
fn a_directory_in_the_place_of_a_file_and_the_reverse_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().display().to_string();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let pair = format!("[[tls.certificates]]\ncertificate = {directory:?}\nkey = {directory:?}");
    let is_directory = "Is a directory (os error 21); name a file in this directory";
    check(
        &pair,
        &[
            &format!("2:15: cannot read {directory}: {is_directory}"),
            &format!("3:7: cannot read {directory}: {is_directory}"),
        ],
    );
    check(
        &format!("[node]\ndata_directory = {:?}", file.display().to_string()),
        &[
            "2:18: node.data_directory: expected the path of a directory, found a file: choose another path",
        ],
    );
}

/// The warnings of a valid text.
fn warnings(text: &str) -> Vec<String> {
    let config = read_text(text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    config.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_pool_that_no_rule_names_is_told() {
    let unused = "[pools.other]\norigins = \"http://b\"\n";
    let told = "edge.toml:8:11: pools.other.origins: no site and no rule forwards to pool \"other\": name it there, or remove it";
    assert_eq!(warnings(&format!("{MINIMAL}pool = \"main\"\n{unused}")), [told]);
    let naming = [
        "pool = \"main\"\npools_by_country = { DE = \"other\" }",
        "split.pools = { main = 1, other = 1 }",
        "pool = \"main\"\nmirror = { pool = \"other\" }",
    ];
    for used in naming {
        assert_eq!(warnings(&format!("{MINIMAL}{used}\n{unused}")), [""; 0], "{used}");
    }
}

#[test]
fn hosts_without_a_certificate_are_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("pem");
    let names = ["www.example.org".to_owned(), "*.shop.example.org".to_owned()];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    write_secret(&pem, (certificate.pem() + &key.serialize_pem()).as_bytes());
    let of = |hosts: &str| {
        warnings(&format!(
            "{MINIMAL}[sites.b]\nhosts = [{hosts}]\n[[tls.certificates]]\ncertificate = {pem:?}\nkey = {pem:?}\n"
        ))
    };
    assert_eq!(of("\"de.shop.example.org\", \"*.shop.example.org\", \"192.0.2.1\""), [""; 0]);
    assert_eq!(
        of("\"example.org\", \"a.b.shop.example.org\""),
        [
            "edge.toml:7:9: sites.b.hosts: no certificate has the names of 2 hosts, such as \"example.org\": clients refuse TLS connections for them; add a certificate to [[tls.certificates]]"
        ]
    );
}

#[test]
fn a_certificate_that_no_listener_uses_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("pem");
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["www.example.org".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    write_secret(&pem, (certificate.pem() + &key.serialize_pem()).as_bytes());
    let of = |has_tls| {
        warnings(&format!(
            "{MINIMAL}[[tls.certificates]]\ncertificate = {pem:?}\nkey = {pem:?}\n\
             [[listeners]]\naddress = \"127.0.0.1:8444\"\ntls = {has_tls}\n"
        ))
    };
    assert_eq!(of(true), [""; 0]);
    let told = of(false);
    assert!(
        told[0].starts_with("edge.toml:7:15: tls.certificates[0].certificate: no listener has TLS"),
        "{told:?}"
    );
}

#[test]
fn a_token_for_a_site_that_is_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let of = |sites: &str| {
        let line = crate::control::tokens::token_line("cms", sites, "secret").unwrap();
        std::fs::write(&tokens, line).unwrap();
        warnings(&format!("{MINIMAL}[admin]\ntokens = {tokens:?}\n"))
    };
    assert_eq!(of("purge:www"), [""; 0]);
    assert_eq!(
        of("purge:www,wwww"),
        [
            "edge.toml:7:10: admin.tokens: the token \"cms\" may purge the site \"wwww\", and there is none; did you mean \"www\"?"
        ]
    );
}

#[test]
fn an_origin_with_tls_and_no_name_is_told() {
    let pool = "[pools.main]\norigins = [\"https://192.0.2.1\"]\n[sites.www]\nhosts = \"a.test\"\n";
    assert_eq!(
        warnings(pool),
        [
            "edge.toml:2:11: pools.main.origins: the certificate of this origin must have the address 192.0.2.1, because no name is given: set pools.main.tls.server_name to a name that it has"
        ]
    );
    let named = format!("{pool}[pools.main.tls]\nserver_name = \"origin.test\"\n");
    assert_eq!(warnings(&named), [""; 0]);
}
