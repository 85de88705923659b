//! Pools and their origins.

use super::*;

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
            "2:7: pools.main.retry.on: expected \"connect\", \"reset\", \"timeout\", \"truncated\", \"invalid\" or a status from 400 to 599, found \"conect\"; write \"connect\"",
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
