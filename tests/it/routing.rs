//! Routing: the origin for each request, changes to requests, and requests that no origin receives.

use crate::harness::{Answer, Client, Edge, Origin, Request, exchange};

#[test]
fn the_client_s_country_chooses_the_origin() {
    let main = Origin::start(|_| Answer::ok("main").header("Cache-Control", "no-store"));
    let europe = Origin::start(|_| Answer::ok("europe").header("Cache-Control", "no-store"));
    let edge = Edge::with(&format!(
        "[guard]\ntrusted_proxies = [\"127.0.0.0/8\"]\n\
         [pools.main]\norigins = {:?}\n[pools.europe]\norigins = {:?}\n\
         [sites.all]\nhosts = \"*\"\npool = \"main\"\n\
         [sites.all.pools_by_country]\nDE = \"europe\"\n\
         [sites.all.request_fields]\nset = {{ X-Country = \"${{client.country}}\" }}\n",
        main.url(),
        europe.url()
    ));
    // Deutsche Telekom in Germany, Level 3 in the United States, and an unassigned address.
    for (client, pool, country) in [
        ("80.128.0.1", "europe", Some("DE")),
        ("4.4.4.4", "main", Some("US")),
        ("10.0.0.1", "main", None),
    ] {
        let response = edge.get_with("/", &[&format!("X-Forwarded-For: {client}")]);
        assert_eq!(response.text(), pool, "{client}");
        let origin = if pool == "europe" { &europe } else { &main };
        let request = origin.received().pop().expect("a request");
        assert_eq!(request.header("x-client-country"), country, "{request:?}");
        assert_eq!(request.header("x-country").filter(|text| !text.is_empty()), country);
        assert_eq!(request.header("x-forwarded-for"), Some(&*format!("{client}, 127.0.0.1")));
    }
    // Each worker hands over its own lines: they come in any order.
    let lines = edge.log(3);
    let german = lines.iter().find(|line| line["client"] == "80.128.0.1").expect("a line");
    assert_eq!(german["country"], "DE");
}

#[test]
fn vary_on_fields_that_the_node_adds_selects_variants() {
    let told = |name: &'static str| {
        Origin::start(move |request| {
            let told = request.header(name).unwrap_or("nobody").to_owned();
            let vary = if request.target.starts_with("/vary") { name } else { "Accept" };
            Answer::ok(told).header("Vary", vary).fresh_for(60)
        })
    };
    let edge = |origin: &Origin| {
        Edge::with(&format!(
            "[guard]\ntrusted_proxies = [\"127.0.0.1\"]\n[pools.main]\norigins = {:?}\n\
             [sites.all]\nhosts = \"*\"\n\
             request_fields.set = {{ X-Continent = \"${{client.continent}}\" }}\n\
             [[sites.all.rules]]\npath_prefix = \"/key\"\n\
             cache.key.headers = [\"X-Client-Country\", \"X-Continent\"]\n",
            origin.url()
        ))
    };
    let clients = [("80.128.0.1", "DE", "EU"), ("4.4.4.4", "US", "NA")];
    for name in ["X-Client-Country", "X-Continent"] {
        let origin = told(name);
        let edge = edge(&origin);
        for target in ["/vary", "/key"] {
            for hit in [false, true] {
                for (client, country, continent) in clients {
                    let expected = if name == "X-Continent" { continent } else { country };
                    // The client's own value of the field must be ignored.
                    let fields = [
                        &*format!("X-Forwarded-For: {client}"),
                        "X-Client-Country: XX",
                        "X_Client_Country: XX",
                        "X-Continent: XX",
                    ];
                    let response = edge.get_with(target, &fields);
                    assert_eq!(
                        (response.text(), response.is_hit()),
                        (expected, hit),
                        "{target} {name}"
                    );
                }
            }
        }
        assert_eq!(origin.request_count(), 4);
    }
}

#[test]
fn a_rule_denies_countries_methods_networks_and_too_many_requests() {
    let origin = Origin::start(|_| Answer::ok("let in").fresh_for(60));
    let edge = Edge::with(&format!(
        "[guard]\ntrusted_proxies = [\"127.0.0.1\"]\n[pools.main]\norigins = {:?}\n\
         [sites.all]\nhosts = \"*\"\n\
         [[sites.all.rules]]\npath_prefix = \"/country\"\naccess.deny_countries = [\"DE\"]\n\
         [[sites.all.rules]]\npath_prefix = \"/methods\"\naccess.methods = [\"GET\", \"HEAD\"]\n\
         [[sites.all.rules]]\npath_prefix = \"/network\"\naccess.allow = [\"10.0.0.0/8\"]\n\
         [[sites.all.rules]]\npath_prefix = \"/rate\"\nrate = {{ per_second = 1, burst = 2 }}\n",
        origin.url()
    ));
    let from = |client: &str, target: &str| {
        edge.get_with(target, &[&format!("X-Forwarded-For: {client}")]).status
    };
    assert_eq!((from("80.128.0.1", "/country"), from("4.4.4.4", "/country")), (403, 200));
    assert_eq!((from("9.9.9.9", "/network"), from("10.1.2.3", "/network")), (403, 200));
    let statuses = [(); 3].map(|()| from("9.9.9.9", "/rate"));
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(from("9.9.9.8", "/rate"), 200);
    let mut client = edge.connect();
    let refused = client.request(Request {
        method: "DELETE",
        host: "edge.test",
        target: "/methods",
        fields: &[],
        body: b"",
    });
    assert_eq!((refused.status, refused.header("allow").as_str()), (405, "GET, HEAD"));
    assert_eq!(client.get("edge.test", "/methods", &[]).status, 200);
}

#[test]
fn sites_redirect_answer_and_rewrite() {
    let origin = Origin::start(|request| {
        Answer::ok(request.target.clone())
            .header("Server", "secret")
            .header("X-Powered-By", "secret")
            .header("X-Old", "old")
    });
    let edge = Edge::with(&format!(
        r#"
[pools.main]
origins = {:?}
[sites.www]
hosts = ["www.test", "*.www.test"]
[sites.www.request_fields]
remove = ["X-Secret"]
set = {{ X-Id = "${{request.id}}", X-From = "${{client.address}}" }}
add = {{ X-More = "${{request.host}}" }}
[sites.www.response_fields]
remove = ["Server", "X-Powered-By"]
set = {{ X-Old = "new", X-Path = "${{request.path}}" }}
add = {{ X-Added = "yes" }}
[[sites.www.rules]]
path_prefix = "/old/"
redirect = {{ status = 308, location = "https://${{request.host}}/new${{request.target}}" }}
[[sites.www.rules]]
path = "/robots.txt"
respond = {{ status = 200, content = "User-agent: *\n", content_type = "text/plain" }}
[[sites.www.rules]]
path_prefix = "/files"
strip_prefix = "/files"
add_prefix = "/v2"
[sites.bare]
hosts = "bare.test"
redirect = {{ status = 301, location = "https://www.test${{request.target}}" }}
"#,
        origin.url()
    ));
    let get = |host: &str, target: &str| exchange(edge.http, host, target, &["X-Secret: 1"]);

    let moved = get("www.test", "/old/a?b=c");
    assert_eq!(
        (moved.status, moved.header("location").as_str()),
        (308, "https://www.test/new/old/a?b=c")
    );
    let bare = get("bare.test", "/x?y");
    assert_eq!((bare.status, bare.header("location").as_str()), (301, "https://www.test/x?y"));
    let robots = get("a.www.test", "/robots.txt");
    assert_eq!((robots.status, robots.text()), (200, "User-agent: *\n"));
    assert_eq!(robots.header("content-type"), "text/plain");
    assert_eq!(origin.request_count(), 0);

    let files = get("www.test", "/files/a.zip?v=1");
    assert_eq!(files.text(), "/v2/a.zip?v=1");
    assert_eq!(files.header("server"), "");
    assert_eq!(files.header("x-powered-by"), "");
    assert_eq!(files.header("x-old"), "new");
    assert_eq!(files.header("x-path"), "/files/a.zip");
    assert_eq!(files.header("x-added"), "yes");
    let request = &origin.received()[0];
    assert_eq!(request.header("x-secret"), None);
    assert_eq!(request.header("x-from"), Some("127.0.0.1"));
    assert_eq!(request.header("x-more"), Some("www.test"));
    assert_eq!(request.header("x-id").map(str::len), Some(16));
    assert_eq!(request.header("x-id"), request.header("x-request-id"));

    let unknown = get("nobody.test", "/");
    assert_eq!(unknown.status, 421);
}

#[test]
fn a_line_in_the_log_tells_the_whole_story() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = Edge::before(&origin.url());
    let fields = ["User-Agent: test \"1\" \u{e9}", "Referer: http://a/"];
    edge.get_with("/a?b", &fields);
    edge.get_with("/a?b", &fields);
    edge.get_with("/%zz", &[]);
    let lines = edge.log(3);
    let line = |status: u64, cache: &str| {
        let mut found = lines.iter().filter(|line| line["status"] == status);
        found.find(|line| line["cache"] == cache || status == 400).expect("a line")
    };
    let miss = line(200, "uri-miss");
    for (name, value) in [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("scheme", "http"),
        ("host", "edge.test"),
        ("target", "/a?b"),
        ("protocol", "HTTP/1.1"),
        ("site", "all"),
        ("user_agent", "test \"1\" \u{e9}"),
        ("referer", "http://a/"),
        ("cache", "uri-miss"),
        ("reason", "absent"),
        ("upstream", &format!("origin:{}", origin.address)),
    ] {
        assert_eq!(miss[name], value, "{name} in {miss}");
    }
    assert_eq!(
        (&miss["status"], &miss["bytes"], &miss["stored"]),
        (&200.into(), &5.into(), &true.into())
    );
    assert_eq!(miss["upstream_status"], 200);
    assert!(miss["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{miss}");
    assert_eq!(miss["id"].as_str().map(str::len), Some(16));
    for number in ["duration_ms", "upstream_first_byte_ms"] {
        assert!(miss[number].as_f64().is_some_and(|ms| ms < 30_000.0), "{miss}");
    }
    let hit = line(200, "hit");
    assert_eq!((&hit["cache"], &hit["upstream"]), (&"hit".into(), &serde_json::Value::Null));
    assert_ne!(hit["id"], miss["id"]);
    let refused = line(400, "");
    assert_eq!((&refused["status"], &refused["failure"]), (&400.into(), &"percent-invalid".into()));
}

#[test]
fn a_generated_response_is_neither_a_hit_nor_forwarded() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = Edge::with(&format!(
        "[guard]\npurge_from = [\"127.0.0.0/8\"]\n[pools.main]\norigins = {:?}\n\
         [sites.all]\nhosts = \"*\"\ncache.show_key = true\n\
         [[sites.all.rules]]\npath = \"/redirect\"\nredirect.location = \"/page\"\n\
         [[sites.all.rules]]\npath = \"/fixed\"\nrespond.content = \"fixed\"\n\
         [[sites.all.rules]]\npath = \"/denied\"\naccess.deny = [\"127.0.0.0/8\"]\n\
         [[sites.all.rules]]\npath = \"/get-only\"\naccess.methods = [\"GET\"]\n\
         [[sites.all.rules]]\npath = \"/limited\"\nrate = {{ per_second = 0.01, burst = 1 }}\n",
        origin.url()
    ));
    edge.get("/limited");
    let only_if_cached = ["Cache-Control: only-if-cached"];
    let asked: [(&str, &str, &[&str], u16, &str); 8] = [
        ("GET", "/denied", &[], 403, "denied"),
        ("DELETE", "/get-only", &[], 405, "denied"),
        ("GET", "/limited", &[], 429, "rate-limited"),
        ("GET", "/redirect", &[], 302, "answered-here"),
        ("GET", "/fixed", &[], 200, "answered-here"),
        ("PURGE", "/a", &[], 200, "answered-here"),
        ("GET", "/a", &only_if_cached, 504, "only-if-cached"),
        ("GET", "/%zz", &[], 400, "refused"),
    ];
    for (method, target, fields, status, reason) in asked {
        let response = edge.connect().request(Request {
            method,
            host: "edge.test",
            target,
            fields,
            body: b"",
        });
        assert_eq!(response.status, status, "{target} {response:?}");
        let expected =
            if status == 400 { String::new() } else { format!("skerry; detail={reason}") };
        assert_eq!(response.header("cache-status"), expected, "{target}");
    }
    let lines = edge.log(1 + asked.len());
    for (_, target, _, status, reason) in asked {
        let is_it =
            |line: &&serde_json::Value| line["target"] == target && line["status"] == status;
        let line = lines.iter().find(is_it).expect("a line");
        assert_eq!((&line["cache"], &line["reason"]), (&"none".into(), &reason.into()), "{line}");
    }
    for (reason, count) in [("denied", 2.0), ("rate-limited", 1.0), ("answered-here", 3.0)] {
        let name = format!("skerry_cache_requests_total{{result=\"{reason}\"");
        assert_eq!(edge.metric(&name), count, "{reason}");
    }
    assert_eq!(edge.metric("skerry_cache_requests_total{result=\"caching-off\""), 0.0);
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn metrics_tell_hits_from_misses_by_reason() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    edge.get("/a");
    edge.get("/a");
    edge.advance(61);
    edge.get("/a");
    edge.connect().request(Request {
        method: "POST",
        host: "edge.test",
        target: "/a",
        fields: &[],
        body: b"x",
    });
    let results =
        |result: &str| edge.metric(&format!("skerry_cache_requests_total{{result=\"{result}\""));
    assert_eq!(
        (results("hit"), results("absent"), results("stale"), results("method")),
        (2.0, 1.0, 1.0, 1.0)
    );
    assert_eq!(edge.metric("skerry_requests_total"), 5.0);
    let page = edge.admin("GET", "/metrics", "");
    assert_eq!(page.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(page.text().contains("# TYPE skerry_requests_total counter\n"), "{page:?}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3";
    let page = Client::connect(edge.admin).get("localhost", "/metrics", &[accept]);
    assert!(page.header("content-type").starts_with("application/openmetrics-text"), "{page:?}");
    assert!(page.text().contains("# TYPE skerry_requests counter\n"), "{page:?}");
    assert!(page.text().ends_with("# EOF\n"));
    assert_eq!(edge.admin("GET", "/readyz", "").status, 200);
    assert_eq!(edge.admin("GET", "/healthz", "").status, 200);
}
