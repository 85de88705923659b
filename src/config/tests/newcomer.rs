//! Mistakes that people make with their first files: units, types, names, quotes, options of other servers.
//! Each gives one line with its place, its cause and, where it can be known, its remedy.

use super::check;

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
        "1:1: unknown option \"name\" in [sites.www]; it is an option of [node] and [pools.NAME.secret_header]",
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
        "2:11: listeners[0].address: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"0.0.0.0\"; add the port, such as \"0.0.0.0:443\"",
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
        "1:31: there is no variable ${client.contry}; the variables are client.address, client.country, client.continent, request.id, request.scheme, request.host, request.hostname, request.path, request.query, request.target, split.group",
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
        "2:1: unknown option \"path\" in [pools.main.health]; it is an option of [pools.NAME.check]",
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

#[test]
fn a_mistake_of_a_newcomer_is_one_line_with_place_cause_and_remedy() {
    for (written, expected) in MISTAKES {
        check(&format!("{written}\n"), &[expected]);
    }
}
