//! Sites and rules.

use super::*;

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
            "pool = \"main\"\n[pools.canary]\norigins = \"http://a\"\n[pools.other]\norigins = \"http://a\"\n\
             [sites.b]\nhosts = \"b\"\n[sites.b.split]\n{options}"
        )
    };
    check(&site("pools = { main = 95, canary = 5 }\nby = \"client\"\n"), &[]);
    check(
        &site(
            "pools = { main = 95, cannery = 5, other = 10001 }\nby = \"lot\"\ncookie = \"a b\"\n",
        ),
        &[
            "9:22: unknown pool \"cannery\"; did you mean \"canary\"?",
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
        "[sites.www.cache]\nhonour = [\"no-store\", \"no-cash\"]\nset_cookie = \"eat\"\nlifetimes = { by_status = { 404 = \"1s\", 99 = \"1s\", 429 = \"1s\" } }\nkey = { query = \"none\", query_only = \"a\" }\n",
        &[
            "2:23: sites.www.cache.honour: expected \"all\", \"none\" or some of no-store, no-cache, max-age, min-fresh, max-stale, only-if-cached, stale-if-error, found \"no-cash\"; write \"no-cache\"",
            "3:14: sites.www.cache.set_cookie: expected \"pass\", \"strip\" or \"store\", found \"eat\"",
            "4:41: sites.www.cache.lifetimes.by_status: expected a status such as 404 or a range such as \"500-599\", found \"99\"",
            "4:52: sites.www.cache.lifetimes.by_status: expected a status that may be stored, found \"429\"; remove it",
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
