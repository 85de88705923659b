//! Mistakes that were accepted once, or whose line lacked the place or the remedy.

use super::{MINIMAL, check_each, read_text};

const MISTAKES: &[(&str, &str)] = &[
    // Names.
    (
        "cache.bypass_cookies = [\"a; b\"]",
        "1:25: sites.www.cache.bypass_cookies: expected the name of a cookie, which may end in \"*\", found \"a; b\"; write each by itself: [\"a\", \"b\"]",
    ),
    (
        "cache.bypass_cookies = [\"a*b\"]",
        "1:25: sites.www.cache.bypass_cookies: expected the name of a cookie, which may end in \"*\", found \"a*b\"",
    ),
    (
        "cache.key.cookies = [\"plan=gold\"]",
        "1:22: sites.www.cache.key.cookies: expected the name of a cookie, found \"plan=gold\"; write \"plan\"",
    ),
    (
        "cache.key.query_only = [\"id=1\"]",
        "1:25: sites.www.cache.key.query_only: expected the name of a query parameter, which may end in \"*\", found \"id=1\"",
    ),
    (
        "response_fields.remove = [\"X-Debug-*\"]",
        "1:27: sites.www.response_fields.remove: expected a header field's name, found \"X-Debug-*\"; names of fields have no wildcards: list each name",
    ),
    (
        "[node]\nregion = \"eu west\"",
        "2:10: node.region: expected a name of 1 to 64 letters, digits, \"-\", \".\" and \"_\", found \"eu west\"",
    ),
    (
        "[dns.nodes.e]\nregion = \"eu west\"\naddresses = \"192.0.2.1\"",
        "2:10: dns.nodes.e.region: expected a name of 1 to 64 letters, digits, \"-\", \".\" and \"_\", found \"eu west\"",
    ),
    (
        "[sites.\"a/b\"]\nhosts = \"b.test\"",
        "1:8: sites.\"a/b\": expected a name of 1 to 64 letters, digits, \"-\", \".\" and \"_\", found \"a/b\"",
    ),
    (
        "pool = \"main\"\n[pools.\"a,b\"]\norigins = \"http://b.test\"",
        "2:8: pools.\"a,b\": expected a name of 1 to 64 letters, digits, \"-\", \".\" and \"_\", found \"a,b\"",
    ),
    (
        "[[sites.www.rules]]\npath = \"/a\"\nname = \"\"",
        "3:8: sites.www.rules[0].name: expected a name of 1 to 64 letters, digits, \"-\", \".\" and \"_\", found \"\"",
    ),
    (
        "[[listeners]]\naddress = \"127.0.0.1:81\"\nname = \"a\"\n[[listeners]]\naddress = \"127.0.0.1:82\"\nname = \"a\"",
        "6:8: two listeners have the name \"a\": choose another one",
    ),
    // Hosts and addresses.
    (
        "[sites.b]\nhosts = \"-bad-\"",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"-bad-\"; \"-bad-\" begins or ends with \"-\", and no part of a host name does",
    ),
    (
        "[sites.b]\nhosts = \"256.1.1.1\"",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"256.1.1.1\"; a name that ends in a number is an IPv4 address, which has four numbers from 0 to 255",
    ),
    (
        "[sites.b]\nhosts = \"::1\"",
        "2:9: sites.b.hosts: expected a host without port, such as \"example.org\", \"*.example.org\" or \"*\", found \"::1\"; write \"[::1]\"",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"http://-bad-\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://-bad-\"; \"-bad-\" begins or ends with \"-\", and no part of a host name does",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"http://\"",
        "3:11: pools.b.origins: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://\"; the host is missing: write \"http://origin.example\"",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"https://b.test\"\ntls.server_name = \"a b\"",
        "4:19: pools.b.tls.server_name: expected the host name that the certificate has, or \"none\", found \"a b\"; write each by itself: [\"a\", \"b\"]",
    ),
    (
        "[node]\naddresses = \"192.0.2.1:80\"",
        "2:13: node.addresses: expected an address such as \"192.0.2.1\" or \"2001:db8::1\", found \"192.0.2.1:80\"; write \"192.0.2.1\"",
    ),
    (
        "[node]\naddresses = \"edge.test\"",
        "2:13: node.addresses: expected an address such as \"192.0.2.1\" or \"2001:db8::1\", found \"edge.test\"; names are not looked up here: write addresses",
    ),
    (
        "[resolver]\nservers = \"9.9.9.9\"",
        "2:11: resolver.servers: expected an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\", found \"9.9.9.9\"; add the port, as in \"9.9.9.9:PORT\"",
    ),
    (
        "[dns.nodes.a]\nregion = \"eu\"\naddresses = \"192.0.2.1\"\n[dns.zones.\"c.test\"]\nname_servers = \"ns.a.test\"\n[dns.zones.\"c.test\".edges.\"x.*\"]",
        "6:27: \"x.*\": \"*\" stands only at the beginning, for all labels before a name (RFC 4592 §2.1.1): no query has this name",
    ),
    // The store.
    (
        "[store]\nobject_max = 0",
        "2:14: store.object_max: expected a size above 0, found 0: no response with content would be stored; the default is 16GiB",
    ),
    (
        "[[store.directories]]\npath = \"/nowhere/a\"\nsize = \"64MiB\"\n[[store.directories]]\npath = \"/proc/../nowhere/a\"\nsize = \"64MiB\"",
        "5:8: /proc/../nowhere/a is listed twice",
    ),
    // The purge bus.
    (
        "[bus]\nredis = \"redis:// a\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"redis:// a\"; a URL has no spaces",
    ),
    (
        "[bus]\nredis = \"redis://a:6379?db=1\"",
        "2:9: bus.redis: expected a URL such as redis://host:6379, rediss://user@host:6380/0, redis+sentinel://host:26379/service or redis+cluster://host:6379, found \"redis://a:6379?db=1\"; the URL of a Redis server has no query: a database is the path, such as /1",
    ),
    // Requests and responses.
    (
        "request_fields.remove = [\"Cookie\", \"Host\"]",
        "1:25: the field \"host\" is set by the node and cannot be removed",
    ),
    (
        "response_fields.remove = \"Age\"",
        "1:26: the field \"age\" is set by the node and cannot be removed",
    ),
    (
        "respond = { status = 301 }",
        "1:22: a fixed response redirects nowhere: write redirect = { status = 301, location = \"https://…\" } instead of respond",
    ),
    (
        "respond = { content = \"x\", content_type = \"html\" }",
        "1:43: sites.www.respond.content_type: expected a media type such as \"text/html; charset=utf-8\", found \"html\"",
    ),
    (
        "redirect = { location = \"a b\" }",
        "1:25: sites.www.redirect.location: expected a URL or a path without spaces, such as \"https://${request.host}/\"",
    ),
    (
        "redirect = { location = \"https://${request.host}${request.target}\" }",
        "1:12: requests over https are redirected to themselves, without end: set https_redirect = true in the site, or schemes = [\"http\"] in the rule",
    ),
    (
        "cache.honour = [\"no-stor\"]",
        "1:17: sites.www.cache.honour: expected \"all\", \"none\" or some of no-store, no-cache, max-age, min-fresh, max-stale, only-if-cached, stale-if-error, found \"no-stor\"; write \"no-store\"",
    ),
    (
        "cache.lifetimes.fixed = \"400d\"",
        "1:25: sites.www.cache.lifetimes.fixed: expected at most \"lifetime_max\", which is 365d, found 400d",
    ),
    (
        "cache.lifetimes.fixed = \"1y\"",
        "1:25: sites.www.cache.lifetimes.fixed: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"1y\"; write \"365d\"",
    ),
    (
        "cache.stale.if_error = \"99999d\"",
        "1:24: sites.www.cache.stale.if_error: expected a duration such as \"30s\", \"250ms\" or \"12h\", found \"99999d\"; a duration is at most a century, \"36500d\"",
    ),
    (
        "cache = \"off\"",
        "1:9: sites.www.cache: expected a table, found \"off\"; write cache.enabled = false",
    ),
    (
        "compression.enabled = false",
        "1:13: unknown option \"enabled\" in [sites.www.compression]; set codings = [] to compress nothing",
    ),
    (
        "compression.codings = \"none\"",
        "1:23: sites.www.compression.codings: expected a coding, \"zstd\", \"br\" or \"gzip\", with or without a level such as \"br:4\", found \"none\"; write [] to compress nothing",
    ),
    (
        "compression.codings = [\"gzip\", \"gzip:3\"]",
        "1:23: coding \"gzip\" is listed twice: list it once",
    ),
    (
        "[guard]\nstrip_fields_more = [\"Host\"]",
        "2:21: no request can do without host: remove it from the list",
    ),
    // Origins, limits, logs, the store.
    (
        "pool = \"main\"\n[pools.b]\norigins = \"https://b.test\"\ntls.system_roots = false",
        "4:20: without the system's CA certificates no origin is trusted: set \"ca_files\", or remove \"system_roots\"",
    ),
    (
        "pool = \"main\"\n[pools.b]\norigins = \"https://b.test\"\nretry.on = [\"conect\"]",
        "4:13: pools.b.retry.on: expected \"connect\", \"reset\", \"timeout\", \"truncated\", \"invalid\" or a status from 400 to 599, found \"conect\"; write \"connect\"",
    ),
    (
        "[limits]\nrequests_per_connection_max = 0",
        "2:31: limits.requests_per_connection_max: expected at least 1, found 0: write \"none\" for no limit",
    ),
    (
        "[log]\naccess = \"on\"",
        "2:10: log.access: expected \"off\", \"stdout\" or a path, found \"on\"; write \"stdout\"",
    ),
    (
        "[geo]\ndatabases = \"builtin\"",
        "2:13: geo.databases: expected \"built-in\" or the path of an mmdb file, found \"builtin\"; write \"built-in\"",
    ),
    (
        "[geo]\ndatabases = \"missing.mmdb\"",
        "2:13: cannot read /nowhere/missing.mmdb: No such file or directory (os error 2); create it, or correct the path",
    ),
    (
        "[[store.sites]]\nname = \"wwww\"\npercent_max = 10",
        "2:8: store.sites[0].name: there is no site \"wwww\"; did you mean \"www\"?",
    ),
    // The name server.
    (
        "[dns.nodes.e]\nregion = \"eu\"\naddresses = []",
        "3:13: the node has no \"addresses\", such as addresses = [\"192.0.2.1\"]",
    ),
    (
        "[dns.nodes.e]\nregion = \"eu\"\naddresses = \"0.0.0.0\"",
        "3:13: dns.nodes.e.addresses: expected an IP address of the node, such as \"192.0.2.1\" or \"2001:db8::1\", found \"0.0.0.0\"",
    ),
    (
        "[dns.zones.\"c.test\"]\nname_servers = \"ns.x.test\"\ncontact = \"nobody\"",
        "3:11: dns.zones.\"c.test\".contact: expected a mail address such as \"hostmaster@example.org\", found \"nobody\"",
    ),
    (
        "[dns.nodes.e]\nregion = \"eu\"\naddresses = \"192.0.2.1\"\n[dns.zones.\"c.test\"]\nname_servers = \"ns.x.test\"\n[dns.zones.\"c.test\".edges.\"@\"]\nttl = \"0s\"",
        "7:7: dns.zones.\"c.test\".edges.\"@\".ttl: expected 1s to 7d, found 0s: resolvers would ask for each connection of each client; the default is 30s",
    ),
    (
        "[dns.nodes.e]\nregion = \"eu\"\naddresses = \"192.0.2.1\"\n[dns.zones.\"c.test\"]\nname_servers = \"ns.x.test\"\n[dns.zones.\"c.test\".edges.\"@\"]\npolicy = \"weighted\"\nweights = { eu = 0 }",
        "8:11: all weights are 0: give at least one region a weight",
    ),
    (
        "[dns.nodes.e]\nregion = \"eu\"\naddresses = \"192.0.2.1\"\n[dns.zones.\"c.test\"]\nname_servers = \"ns.x.test\"\n[dns.zones.\"c.test\".edges.\"www.C.test\"]",
        "6:27: a name in \"edges\" is below the zone, so that this one ends in \"c.test\" twice: write \"www\" for \"www.C.test\"",
    ),
    (
        "[dns.nodes.e]\nregion = \"eu\"\naddresses = \"192.0.2.1\"\n[dns.zones.\"c.test\"]\nname_servers = \"ns.x.test\"\n[dns.zones.\"c.test\".edges.\"c.test.\"]",
        "6:27: a name in \"edges\" is below the zone, so that this one ends in \"c.test\" twice: write \"@\" for \"c.test.\"",
    ),
    (
        "[dns.nodes.e]\nregion = \"eu\"\naddresses = \"192.0.2.1\"\n[dns.zones.\"c.test\"]\nname_servers = \"ns.x.test\"\nrecords = \"child NS ns.y.test.\"\n[dns.zones.\"c.test\".edges.www]\n[dns.zones.\"c.test\".edges.\"a.child\"]",
        "8:27: a.child.c.test. is delegated by the record NS of child.c.test., so that the name servers named there answer for it: leave the edge name out",
    ),
    (
        "[dns.nodes.e]\nregion = \"eu\"\naddresses = \"192.0.2.1\"\n[dns.zones.\"c.test\"]\nname_servers = \"ns.x.test\"\n[dns.zones.\"c.test\".edges.www]\n[dns.zones.\"c.test\".edges.WWW]",
        "7:27: there are two edge names www.c.test.",
    ),
    // Other formats.
    ("; a comment", "1:3: a comment begins with \"#\", found \"; a comment\""),
    ("// a comment", "1:4: a comment begins with \"#\", found \"// a comment\""),
    ("/* a comment */", "1:4: a comment begins with \"#\", found \"/* a comment */\""),
];

#[test]
fn each_mistake_has_its_place_its_cause_and_its_remedy() {
    check_each(MISTAKES);
}

/// Configurations that a node starts with, and the warning for each.
const WARNINGS: &[(&str, &str)] = &[
    ("[node]\nworkers = 1000", "1000 workers are too many for this machine, which has "),
    (
        "[[listeners]]\naddress = \"127.0.0.1:443\"",
        "browsers expect TLS at port 443: set tls = true",
    ),
    (
        "[[listeners]]\naddress = \"127.0.0.1:80\"\ntls = true",
        "browsers expect no TLS at port 80: remove \"tls\", or write port 443",
    ),
    (
        "[[listeners]]\naddress = \"0.0.0.0:9000\"",
        "pools.main.origins: http://127.0.0.1:9000 is a listener of this node itself, so that requests run in a circle (508): name the origin's own address",
    ),
    (
        "pool = \"b\"\n[pools.b]\norigins = [\"http://b.test\", \"http://b.test\"]",
        "pools.b.origins: http://b.test:80 is listed twice: list it once, with a \"weight\" if it is to have a larger share",
    ),
    (
        "access.allow_countries = \"DE\"\n[geo]\ndatabases = []",
        "geo.databases: no client has a country without a database, and site \"www\" asks for countries or continents: set databases = \"built-in\"",
    ),
    (
        "access = { allow = [\"10.1.0.0/16\"], deny = [\"10.0.0.0/8\"] }",
        "sites.www.hosts: access allows and denies 10.1.0.0/16, and then it is denied: remove it from one of the two lists",
    ),
    (
        "[guard]\ntrusted_proxies = [\"0.0.0.0/0\"]",
        "0.0.0.0/0 trusts every client, so that each can state any address for itself: list the networks of your proxies",
    ),
    (
        "[dns.zones.\"c.test\"]\nname_servers = \"ns.x.test\"",
        "dns.zones.\"c.test\".name_servers: this node is no name server, and answers no queries for the zone: set \"addresses\" of [dns.server], such as \"0.0.0.0:53\", or remove it",
    ),
    (
        "[dns.server]\naddresses = \"127.0.0.1:53\"",
        "dns.server.addresses: the name server has no zone, and refuses each query: add [dns.zones.\"cdn.example.org\"]",
    ),
];

#[test]
fn a_doubtful_configuration_is_warned_of() {
    for (written, expected) in WARNINGS {
        let config = read_text(&format!("{MINIMAL}{written}\n"));
        let config = config.unwrap_or_else(|mistakes| panic!("{written}\n{mistakes}"));
        let warnings: Vec<String> =
            config.warnings.iter().map(|warning| warning.message.clone()).collect();
        let is_there = warnings.iter().any(|warning| warning.starts_with(expected));
        assert!(is_there, "{written}\n{warnings:#?}");
    }
}

#[test]
fn a_file_with_a_secret_is_for_the_node_alone() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("sticky.key");
    std::fs::write(&key, "x".repeat(40)).expect("a file");
    let text = format!("{MINIMAL}[pools.main.sticky]\nkey_file = {:?}\n", key.display());
    let warnings_at = |mode: u32| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&key, permissions).expect("the owner may");
        read_text(&text).expect("a valid text").warnings
    };
    let warnings = warnings_at(0o644);
    assert!(
        warnings.iter().any(|warning| warning.message.contains("which has a secret: run chmod o=")),
        "{warnings:?}"
    );
    assert_eq!(warnings_at(0o640), []);
}
