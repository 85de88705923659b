//! Mistakes that come from what people paste: shells, web pages, other servers' files, URLs with more than is
//! wanted, options in the wrong table, files of the wrong kind. Each is one line with place, cause and remedy, or a warning
//! where a node can start despite it.

use super::{MINIMAL, check_each, read_text, write_secret};
use crate::config::Flags;

/// The text after a minimal site, and the line about it.
const AFTER: &[(&str, &str)] = &[
    // Options of other tables.
    (
        "connections_maxx = 5",
        "1:1: unknown option \"connections_maxx\" in [sites.www]; did you mean \"connections_max\" in [limits], [peers] and [pools.NAME]?",
    ),
    (
        "[node]\nidle_timout = \"5s\"",
        "2:1: unknown option \"idle_timout\" in [node]; did you mean \"idle_timeout\" in [limits]?",
    ),
    (
        "while_revalidat = \"1h\"",
        "1:1: unknown option \"while_revalidat\" in [sites.www]; did you mean \"while_revalidate\" in [sites.www.cache.stale]?",
    ),
    (
        "[cache]\nenabled = true",
        "1:2: unknown option \"cache\" at the top level; it is an option of [sites.NAME]",
    ),
    (
        "include = \"sites/*.toml\"",
        "1:1: unknown option \"include\" in [sites.www]; it stands at the top of a file, before the first [table]",
    ),
    (
        "limits.idle_timeout = \"5s\"",
        "1:1: unknown option \"limits\" in [sites.www]; [limits] is a table at the top level",
    ),
    (
        "[pools.main.tls]\nca = \"ca.pem\"",
        "2:1: unknown option \"ca\" in [pools.main.tls]; set \"ca_files\"",
    ),
    ("[bus]\nurl = \"redis://a\"", "2:1: unknown option \"url\" in [bus]; set \"redis\""),
    (
        "respond.body = \"x\"",
        "1:9: unknown option \"body\" in [sites.www.respond]; set \"content\"",
    ),
    (
        "[[sites.www.rules]]\nheaders = { X-A = \"1\" }",
        "2:1: unknown option \"headers\" in [[sites.www.rules]] number 1; set cache.bypass_headers or cache.bypass_cookies, or cache.key: rules have no conditions on header fields",
    ),
    // A shell's notation.
    (
        "[[listeners]]\naddress = \"0.0.0.0:${PORT}\"",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"0.0.0.0:${PORT}\"; write \"0.0.0.0:${env.PORT}\"",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"http://$HOST:8000\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://$HOST:8000\"; write \"http://${env.HOST}:8000\"",
    ),
    (
        "[node]\ndata_directory = \"~/data\"",
        "2:18: node.data_directory: expected a path, found \"~/data\"; write \"${env.HOME}/data\"",
    ),
    (
        "[node]\ndata_directory = \"$HOME/data\"",
        "2:18: node.data_directory: expected a path, found \"$HOME/data\"; write \"${env.HOME}/data\"",
    ),
    (
        "[log]\naccess = \"~/access.log\"",
        "2:10: log.access: expected \"off\", \"stdout\" or a path, found \"~/access.log\"; write \"${env.HOME}/access.log\"",
    ),
    (
        "[log]\naccess = \"stderr\"",
        "2:10: log.access: expected \"off\", \"stdout\" or a path, found \"stderr\"; write \"stdout\": standard error has the error log",
    ),
    // Durations, numbers and sizes.
    (
        "[limits]\nidle_timeout = \"1h30m\"",
        "2:16: limits.idle_timeout: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"1h30m\"; write \"90m\"",
    ),
    (
        "[limits]\nidle_timeout = \"PT5M\"",
        "2:16: limits.idle_timeout: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"PT5M\"; write \"5m\"",
    ),
    (
        "[limits]\nidle_timeout = \"forever\"",
        "2:16: limits.idle_timeout: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"forever\"; a duration has an end: write a long one, such as \"365d\"",
    ),
    (
        "[store]\ndisk = 0",
        "2:8: store.disk: expected a size above 0, found 0: write \"none\" for a cache in memory only",
    ),
    (
        "[store]\ndisk = \"/var/cache\"",
        "2:8: store.disk: expected a size such as \"64KiB\" or \"10GiB\", found \"/var/cache\"; this is a path: node.data_directory or [[store.directories]] name the folders of the cache",
    ),
    (
        "[node]\nlatitude = \"50,1\"\nlongitude = 8",
        "2:12: node.latitude: expected a number, found \"50,1\"; write 50.1 without quotes",
    ),
    (
        "[node]\nworkers = 04",
        "2:11: a number begins with another digit than 0: remove the zeros before it",
    ),
    (
        "respond.status = \"404\"",
        "1:18: sites.www.respond.status: expected a status from 200 to 599, found \"404\"; write 404 without quotes",
    ),
    (
        "cache.lifetimes.by_status = { \"200,404\" = \"1h\" }",
        "1:31: sites.www.cache.lifetimes.by_status: expected a status such as 404 or a range such as \"500-599\", found \"200,404\"; write each by itself: 200 = …, 404 = …",
    ),
    (
        "cache.lifetimes.by_status = { any = \"1h\" }",
        "1:31: sites.www.cache.lifetimes.by_status: expected a status such as 404 or a range such as \"500-599\", found \"any\"; write \"200-599\"",
    ),
    (
        "cache.lifetimes.by_status = \"1h\"",
        "1:29: sites.www.cache.lifetimes.by_status: expected a table, found \"1h\"; write { 404 = \"10s\", \"500-599\" = \"1s\" }, or set fixed for all statuses",
    ),
    // Several items in one text.
    (
        "[guard]\ntrusted_proxies = \"10.0.0.0/8,192.168.0.0/16\"",
        "2:19: guard.trusted_proxies: expected a network such as \"192.0.2.0/24\" or an address, found \"10.0.0.0/8,192.168.0.0/16\"; write each by itself: [\"10.0.0.0/8\", \"192.168.0.0/16\"]",
    ),
    (
        "[[sites.www.rules]]\nmethods = \"get,HEAD\"",
        "2:11: sites.www.rules[0].methods: expected a method in upper case such as \"GET\", found \"get,HEAD\"; write each by itself: [\"GET\", \"HEAD\"]",
    ),
    (
        "compression.codings = \"gzip, br\"",
        "1:23: sites.www.compression.codings: expected a coding, \"zstd\", \"br\" or \"gzip\", with or without a level such as \"br:4\", found \"gzip, br\"; write each by itself: [\"gzip\", \"br\"]",
    ),
    (
        "compression.content_types = \"text/*, application/json\"",
        "1:29: sites.www.compression.content_types: expected a media type such as \"text/html\", \"text/*\" or \"*/*+json\", found \"text/*, application/json\"; write each by itself: [\"text/*\", \"application/json\"]",
    ),
    // Addresses, hosts and origins.
    (
        "[[listeners]]\naddress = \"http://0.0.0.0:80/\"",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"http://0.0.0.0:80/\"; write \"0.0.0.0:80\"",
    ),
    (
        "[[listeners]]\naddress = \"[::]\"",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"[::]\"; add the port, as in \"[::]:PORT\"",
    ),
    (
        "[[listeners]]\naddress = [\"0.0.0.0:80\", \"[::]:80\"]",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found an array; write one address; each listener is a table [[listeners]]",
    ),
    (
        "[[listeners]]\naddress = \"unix:/run/skerry.sock\"",
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"unix:/run/skerry.sock\"; a node listens on IP addresses, and not on Unix sockets",
    ),
    ("[sites.b]\nhosts = []", "2:9: site \"b\" has no hosts, such as hosts = [\"example.org\"]"),
    (
        "[sites.b]\nhosts = \"_\"",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"_\"; write \"*\" for all other hosts",
    ),
    (
        "[sites.b]\nhosts = \"b.example.\"",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"b.example.\"; write \"b.example\"",
    ),
    (
        "[sites.b]\nhosts = \"www.*.org\"",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"www.*.org\"; \"*\" stands only at the beginning, for the labels before a name",
    ),
    (
        "[sites.b]\nhosts = '~^www\\d+'",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"~^www\\\\d+\"; there are no regular expressions: write each host, or \"*.example.org\" for all below one",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"http://a:8000 weight=3\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://a:8000 weight=3\"; options of an origin stand in a table: write { url = \"http://a:8000\", weight = 2 }",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = [{ address = \"http://a\" }]",
        "3:14: unknown option \"address\" of an origin; set \"url\"",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = [{ url = \"http://a\", port = 8000 }]",
        "3:32: unknown option \"port\" of an origin; write the port in the URL, such as \"http://a.example:8080\"",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"http://_http._tcp.app.internal\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://_http._tcp.app.internal\"; this is a name of SRV records: write { srv = \"http://_http._tcp.app.internal\" }",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"http://me:s3cret@a\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://me:***@a\"; a URL has no user and password here: set request_fields.set = { Authorization = … }, or [pools.NAME.secret_header] with a file",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"me:s3cret@a:80 weight=2\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"me:***@a:80 weight=2\"; a URL has no user and password here: set request_fields.set = { Authorization = … }, or [pools.NAME.secret_header] with a file",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"h2c://a:8000\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"h2c://a:8000\"; write \"http://a:8000\", and protocol = \"http2\" in the pool",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"http://*.example.org\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://*.example.org\"; an origin is one server: its name has no wildcard",
    ),
    // Redis.
    (
        "[bus]\nredis = \"redis+sentinel://a:26379\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"redis+sentinel://a:26379\"; a Sentinel URL must end with /SERVICE, the name of the monitored service",
    ),
    (
        "[bus]\nredis = \"sentinel://a:26379/main\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"sentinel://a:26379/main\"; the URL of such Redis servers begins with redis+sentinel://",
    ),
    (
        "[bus]\nredis = \"redis://a:6379,b:6379\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"redis://a:6379,b:6379\"; several hosts require redis+sentinel:// or redis+cluster://",
    ),
    (
        "[bus]\nredis = \"unix:///run/redis.sock\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"unix:///run/redis.sock\"; a Redis server is reached over TCP: write \"redis://127.0.0.1:6379\"",
    ),
    (
        "[bus]\nredis = [\"redis://a:6379\"]",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found an array; write one URL; it may list several hosts, as in \"redis+cluster://a:6379,b:6379\"",
    ),
    // Fields, paths and variables.
    (
        "request_fields.remove = \"X-A:\"",
        "1:25: sites.www.request_fields.remove: expected a header field's name, found \"X-A:\"; write \"X-A\"",
    ),
    (
        "request_fields.set = \"X-A: 1\"",
        "1:22: sites.www.request_fields.set: expected a table, found \"X-A: 1\"; write set = { X-A = \"1\" }",
    ),
    (
        "[[sites.www.rules]]\npath_glob = \"/*.{jpg,png}\"",
        "2:13: sites.www.rules[0].path_glob: expected a path pattern that begins with \"/\", such as \"/**.css\", found \"/*.{jpg,png}\"; write each by itself: [\"/*.jpg\", \"/*.png\"]",
    ),
    (
        "[[sites.www.rules]]\npath_glob = \"/(?!api).*\"",
        "2:13: sites.www.rules[0].path_glob: expected a path pattern that begins with \"/\", such as \"/**.css\", found \"/(?!api).*\"; there are no regular expressions: set path_prefix or path_glob",
    ),
    (
        "[[sites.www.rules]]\npath_glob = \"/my file/*\"",
        "2:13: no request can have a path of this pattern: paths are normalised, as in \"/my%20file/*\"",
    ),
    (
        "redirect.location = \"https://${host}/\"",
        "1:21: there is no variable ${host}; write ${request.host}; the variables are client.address, client.country, client.continent, request.id, request.scheme, request.host, request.hostname, request.path, request.query, request.target, split.group",
    ),
    (
        "redirect.location = \"https://a.test$request_uri\"",
        "1:21: sites.www.redirect.location: expected \"{\" or \"$\" after \"$\": write $$ for a dollar sign; write ${request.target}; the variables are client.address, client.country, client.continent, request.id, request.scheme, request.host, request.hostname, request.path, request.query, request.target, split.group",
    ),
    (
        "compression = true",
        "1:15: sites.www.compression: expected a table, found true; responses are compressed by default: remove this option",
    ),
    // Characters of web pages and other systems.
    (
        "https_redirect = True",
        "1:18: expected true or false, found True: write true, or \"True\" if it is a text",
    ),
    (
        "[node]\nname\u{a0}= \"x\"",
        "2:5: found an invisible character (U+00A0): write an ordinary space, or remove it",
    ),
    (
        "[node]\nname = \"x\"\u{a0}",
        "2:11: found an invisible character (U+00A0): write an ordinary space, or remove it",
    ),
    (
        "[node]\n\u{200b}name = \"x\"",
        "2:1: found an invisible character (U+200B): write an ordinary space, or remove it",
    ),
    (
        "[node]\ndata_directory = \"C:\\Users\\me\"",
        "2:23: a backslash in double quotes begins an escape: write \\\\ for one backslash, or put the text in single quotes",
    ),
    (
        "[admin]\ntokens = \"s3cret\"",
        "2:10: cannot read /nowhere/s3cret: No such file or directory (os error 2); expected a file with a line of `skerry token NAME` for each caller",
    ),
];

#[test]
fn pasted_text_gets_one_line_with_place_cause_and_remedy() {
    check_each(AFTER);
}

/// The mistakes of a whole file.
fn mistakes_of(text: &str) -> String {
    read_text(text).expect_err("mistakes").to_string()
}

#[test]
fn an_option_in_the_wrong_table_names_the_right_one() {
    let pool = |option: &str| {
        mistakes_of(&format!(
            "[pools.main]\norigins = \"http://a\"\n{option}\n[sites.www]\nhosts = \"a.test\"\n"
        ))
    };
    assert_eq!(
        pool("error_rate_percnt = 20"),
        "edge.toml:3:1: unknown option \"error_rate_percnt\" in [pools.main]; did you mean \"error_rate_percent\" in [pools.main.health]?"
    );
    assert_eq!(
        pool("slow_start = \"10s\""),
        "edge.toml:3:1: unknown option \"slow_start\" in [pools.main]; it is an option of [pools.main.health]"
    );
    assert_eq!(
        pool("interval = \"10s\"\n[[listeners]]\naddress = \"127.0.0.1:1\"\ncertificate = \"a\""),
        "edge.toml:3:1: unknown option \"interval\" in [pools.main]; it is an option of [pools.main.check]\n\
         edge.toml:6:1: unknown option \"certificate\" in [[listeners]] number 1; it is an option of [peers], [admin.tls] and [[tls.certificates]]"
    );
}

#[test]
fn pools_that_cannot_be_read_are_the_only_mistake() {
    let site = "[sites.www]\nhosts = \"a.test\"\n";
    for (pools, expected) in [
        (
            "[pools]\nmain = \"http://a\"\n",
            "edge.toml:2:8: pools.main: expected a table [pools.main], found \"http://a\"; write pools.main.origins = \"http://a\"",
        ),
        (
            "[[pools]]\nname = \"main\"\n",
            "edge.toml:1:1: pools: expected tables [pools.NAME], found an array",
        ),
        (
            "[Pools.main]\norigins = \"http://a\"\n",
            "edge.toml:1:2: unknown option \"Pools\" at the top level; did you mean \"pools\"?",
        ),
        (
            "\"pools.main\".origins = \"http://a\"\n",
            "edge.toml:1:1: unknown option \"pools.main\" at the top level; without quotation marks it is the table [pools.main]",
        ),
    ] {
        assert_eq!(mistakes_of(&format!("{pools}{site}")), expected);
    }
}

/// The warnings after a minimal site.
fn warnings(text: &str) -> String {
    let config = read_text(&format!("{MINIMAL}{text}\n"));
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let lines: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn text_that_is_hardly_meant_so_is_a_warning() {
    for (text, expected) in [
        (
            "[[sites.www.rules]]\npath_prefix = \"/api/*\"\n[[sites.www.rules]]\npath = \"/a*b\"",
            "path_prefix has no wildcards, and \"*\" stands for itself: write path_prefix = \"/api/\"",
        ),
        (
            "[[sites.www.rules]]\npath = \"/a*b*\"",
            "path has no wildcards, and \"*\" stands for itself: write path_glob = \"/a*b*\"",
        ),
        (
            "[[sites.www.rules]]\npath = \"/old\"\nredirect.location = \"www.example.org/new\"",
            "the location \"www.example.org/new\" is relative to the path of the request: write \"https://www.example.org/new\"",
        ),
        (
            "[[sites.www.rules]]\npath = \"/old\"\nredirect.location = \"https://a.test{uri}\"",
            "\"{\" without \"$\" begins no variable: write ${request.target}",
        ),
        (
            "[[sites.www.rules]]\nmethods = [\"POST\", \"GETT\"]",
            "methods: no client is known to use the method \"GETT\"; did you mean \"GET\"?",
        ),
        (
            "access.methods = \"HAED\"",
            "methods: no client is known to use the method \"HAED\"; did you mean \"HEAD\"?",
        ),
        (
            "[guard]\nclient_field = \"Forwarded\"",
            "client_field: no proxy is trusted, so that the field is dropped from all requests",
        ),
        (
            "[bus]\nsilence = \"drain\"",
            "edge.toml:7:11: bus.silence: it has no effect without \"bus.redis\"",
        ),
        (
            "silence = \"serve\"",
            "edge.toml:6:11: sites.www.silence: it has no effect without \"bus.redis\"",
        ),
        (
            "[bus]\nredis = \"redis://a\"\nretention = \"1s\"",
            "retention: a node that does not read the stream for 1s, as during a restart, validates everything",
        ),
        (
            "[[store.directories]]\npath = \"/nowhere/a\"\nsize = \"64MiB\"\n[[store.directories]]\npath = \"/nowhere/a/b\"\nsize = \"64MiB\"",
            "/nowhere/a/b and /nowhere/a lie one in the other",
        ),
    ] {
        let found = warnings(text);
        assert!(found.contains(expected), "{text}: {found}");
    }
    for fine in [
        "[[sites.www.rules]]\npath = \"/old\"\nredirect.location = \"/new/index.html\"",
        "[[sites.www.rules]]\nmethods = [\"PURGE\", \"PROPFIND\", \"X-SYNC\"]",
    ] {
        assert_eq!(warnings(fine), "", "{fine}");
    }
}

/// The mistakes and warnings about a certificate and a key in files with these bytes.
fn about_pair(certificate: &[u8], key: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("one"), certificate).unwrap();
    write_secret(&folder.path().join("two"), key);
    let text = format!(
        "[[listeners]]\naddress = \"127.0.0.1:1\"\ntls = true\n\
         [[tls.certificates]]\ncertificate = \"one\"\nkey = \"two\"\n{MINIMAL}"
    );
    let found = match crate::config::parse(&text, "edge.toml", folder.path(), &Flags::default()) {
        Ok(config) => config.warnings.iter().map(ToString::to_string).collect(),
        Err(mistakes) => mistakes.lines(),
    };
    found.join("\n").replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn a_file_of_the_wrong_kind_is_named_with_the_command_that_converts_it() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["www.example.org".to_owned()]).unwrap();
    let made = params.self_signed(&key).unwrap();
    let (certificate, key_text) = (made.pem(), key.serialize_pem());
    let with_certificate = |bytes: &[u8]| about_pair(bytes, key_text.as_bytes());
    let with_key = |bytes: &[u8]| about_pair(certificate.as_bytes(), bytes);
    assert_eq!(with_key(key_text.as_bytes()), "");
    assert_eq!(
        with_key(certificate.as_bytes()),
        "edge.toml:6:7: two: the file has a certificate, not a private key: are \"certificate\" and \"key\" swapped?"
    );
    assert_eq!(
        with_certificate(made.der()),
        "edge.toml:5:15: one: the file has no certificate: the file is DER, and PEM is expected: convert it with openssl x509 -inform DER -in FILE -out PEM-FILE"
    );
    assert_eq!(
        with_key(key.serialized_der()),
        "edge.toml:6:7: two: no private key: the file is DER, and PEM is expected: convert it with openssl pkey -inform DER -in FILE -out PEM-FILE"
    );
    assert_eq!(
        with_certificate(&[0x30, 0x82, 9, 9, 2, 1, 3, 0]),
        "edge.toml:5:15: one: the file has no certificate: the file is PKCS#12, and PEM is expected: convert it with openssl pkcs12 -in FILE -nodes -out PEM-FILE"
    );
    assert_eq!(
        with_certificate(&[0x1f, 0x8b, 8]),
        "edge.toml:5:15: one: the file has no certificate: the file is compressed with gzip: decompress it with gunzip FILE"
    );
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    assert_eq!(
        with_certificate(request.as_bytes()),
        "edge.toml:5:15: one: the file has a request for a certificate, not a certificate: name the file that the authority made of it"
    );
    assert_eq!(
        with_certificate(b""),
        "edge.toml:5:15: one: the file has no certificate: the file is empty"
    );
    assert_eq!(
        with_certificate(b"hello"),
        "edge.toml:5:15: one: the file has no certificate: the file is not PEM, which has a line such as -----BEGIN CERTIFICATE-----"
    );
    let authority = rcgen::KeyPair::generate().unwrap();
    let of_authority = params.self_signed(&authority).unwrap().pem();
    assert_eq!(
        with_certificate(format!("{of_authority}{certificate}").as_bytes()),
        "edge.toml:5:15: one: the certificate of two is not the first one in the file: put it before those of the authorities"
    );
    params.not_before = rcgen::date_time_ymd(2095, 1, 1);
    params.not_after = rcgen::date_time_ymd(2096, 1, 1);
    let future = with_certificate(params.self_signed(&key).unwrap().pem().as_bytes());
    assert!(
        future.starts_with("edge.toml:5:15: one is not valid before Sat, 01 Jan 2095"),
        "{future}"
    );
}

#[test]
fn a_compressed_database_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("geo.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    let text = format!("{MINIMAL}[geo]\ndatabases = \"geo.gz\"\n");
    let mistakes = crate::config::parse(&text, "edge.toml", folder.path(), &Flags::default());
    let found = mistakes.expect_err("a mistake").to_string();
    assert!(
        found.ends_with("geo.gz: the file is compressed with gzip: decompress it with gunzip FILE"),
        "{found}"
    );
}
