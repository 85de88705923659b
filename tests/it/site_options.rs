//! Options of sites and rules for the people who run a node: redirects to https, conditions on the scheme, tags
//! of rules, the access log of a site, and its metrics.

use crate::harness::{Answer, Edge, Origin, skerry, until};

#[test]
fn a_site_redirects_to_https_and_serves_there() {
    let edge = Edge::with_tls(
        "[guard]\ntrusted_proxies = [\"127.0.0.1\"]\n[sites.all]\nhosts = \"*\"\nhttps_redirect = true\nrespond.content = \"x\"\n",
    );
    let redirected = edge.get("/a?b=1");
    assert_eq!(
        (redirected.status, &*redirected.header("location")),
        (308, "https://edge.test/a?b=1")
    );
    let served = edge.get_with("/a", &["X-Forwarded-Proto: https"]);
    assert_eq!((served.status, served.text()), (200, "x"), "a trusted proxy ends TLS");
    let explained = edge.admin("GET", "/explain?url=http://edge.test/a", "");
    assert!(explained.text().contains("\"rule\": \"https-redirect\""), "{explained:?}");
    let wrong =
        edge.reload("[sites.all]\nhosts = \"*\"\nhttps_redirect = tru\nrespond.content = \"x\"\n");
    assert!(wrong.is_err());
}

#[test]
fn a_rule_can_ask_for_the_scheme() {
    let edge = Edge::with(
        "[guard]\ntrusted_proxies = [\"127.0.0.1\"]\n[sites.all]\nhosts = \"*\"\nrespond.content = \"any\"\n\
         [[sites.all.rules]]\nschemes = [\"https\"]\nrespond.content = \"secure\"\n",
    );
    assert_eq!(edge.get("/").text(), "any");
    assert_eq!(edge.get_with("/", &["X-Forwarded-Proto: https"]).text(), "secure");
}

#[test]
fn tags_of_a_rule_are_purged_and_tags_can_be_hidden() {
    let origin = Origin::start(|_| {
        Answer::ok("x").fresh_for(60).header("Surrogate-Key", "own").header("Cache-Tag", "c")
    });
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\ncache.hide_tags = true\n\
         [[sites.all.rules]]\npath_prefix = \"/news\"\ncache.tags = [\"news\"]\ncache.hide_tags = false\n",
        origin.url()
    ));
    for path in ["/news/1", "/other"] {
        edge.get(path);
        assert!(edge.get(path).is_hit());
    }
    let other = edge.get("/other");
    assert_eq!(other.header("surrogate-key") + &other.header("cache-tag"), "");
    assert_eq!(edge.get("/news/1").header("surrogate-key"), "own");
    edge.admin("POST", "/purge", "{\"tag\": \"news\"}");
    assert!(!edge.get("/news/1").is_hit());
    assert!(edge.get("/other").is_hit(), "it is not of the rule");
    edge.admin("POST", "/purge", "{\"tag\": \"own\"}");
    assert!(!edge.get("/other").is_hit(), "a hidden tag is one, too");
}

#[test]
fn a_sample_of_a_site_is_logged_and_every_failure() {
    let edge = Edge::with(
        "[pools.dead]\norigins = \"http://127.0.0.1:9\"\n[sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n\
         log.sample = 0.0\n[[sites.all.rules]]\npath = \"/dead\"\npool = \"dead\"\n",
    );
    for _ in 0..20 {
        edge.get("/");
    }
    assert_eq!(edge.get("/dead").status, 502);
    let lines = edge.log(1);
    assert!(lines.iter().all(|line| line["status"] == 502), "{lines:?}");
}

#[test]
fn a_line_has_the_chosen_fields_only() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("access.log");
    let edge = Edge::with(&format!(
        "[log]\naccess = {:?}\nfields = [\"status\", \"target\"]\n[sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n",
        path.display().to_string()
    ));
    edge.get("/a,\"b");
    let text = || std::fs::read_to_string(&path).unwrap_or_default();
    until("the line is written", || text().ends_with('\n'));
    let line: serde_json::Value = serde_json::from_str(text().trim()).expect("a JSON line");
    let names: Vec<&String> = line.as_object().expect("an object").keys().collect();
    assert_eq!(names.len(), 3, "{line}");
    assert_eq!(line["status"], 200);
}

#[test]
fn requests_and_hits_are_counted_by_site_across_a_reload() {
    let origin = Origin::start(|_| Answer::ok("12345").fresh_for(60));
    let text = format!(
        "[pools.main]\norigins = {:?}\n[sites.a]\nhosts = \"edge.test\"\n[sites.b]\nhosts = \"*\"\nrespond.status = 404\n",
        origin.url()
    );
    let edge = Edge::with(&text);
    edge.get("/1");
    assert!(edge.get("/1").is_hit());
    edge.connect().get("other.test", "/", &[]);
    let of =
        |name: &str, site: &str| edge.metric(&format!("skerry_site_{name}_total{{site=\"{site}\""));
    until("they are counted", || of("requests", "a") == 2.0 && of("requests", "b") == 1.0);
    assert_eq!(of("hits", "a"), 1.0);
    assert_eq!(of("response_body_bytes", "a"), 10.0);
    assert_eq!(of("hit_body_bytes", "a"), 5.0);
    edge.reload(&format!("{text}[sites.c]\nhosts = \"c.test\"\nrespond.status = 204\n"))
        .expect("a good file");
    edge.get("/1");
    until("it goes on", || of("requests", "a") == 3.0);
    assert_eq!(of("requests", "c"), 0.0, "a new site is there");
}

#[test]
fn the_requests_that_each_rule_matched_are_counted_and_shown() {
    let rules = "[sites.a]\nhosts = \"edge.test\"\nrespond.status = 204\n\
                 [[sites.a.rules]]\nname = \"api\"\npath_prefix = \"/api\"\nrespond.content = \"api\"\n\
                 [[sites.a.rules]]\nname = \"typo\"\npath_prefix = \"/imgaes\"\nrespond.content = \"x\"\n\
                 [sites.b]\nhosts = \"quiet.test\"\nrespond.status = 204\n";
    let edge = Edge::with(rules);
    for path in ["/api/1", "/api/2", "/images/1"] {
        edge.get(path);
    }
    let answer = |query: &str| {
        let answer = edge.admin("GET", &format!("/rules{query}"), "");
        let answer: serde_json::Value = serde_json::from_str(answer.text()).expect("JSON");
        answer["rules"].clone()
    };
    let expected = serde_json::json!([["a", "api", 2], ["a", "typo", 0], ["a", "default", 1]]);
    until("they are counted", || answer("?site=a") == expected);
    assert_eq!(answer("?unmatched=true"), serde_json::json!([["a", "typo", 0]]), "b is quiet");
    assert_eq!(edge.metric("skerry_rule_matches_total{site=\"a\",rule=\"api\""), 2.0);
    assert_eq!(edge.admin("GET", "/rules?site=c", "").status, 400);
    let admin = edge.admin.to_string();
    let explained = skerry(&["explain", "--admin", &admin, "http://edge.test/api/3"]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    let route = "site \"a\", rule \"api\" (2 requests since the start)";
    assert!(explained.contains(route), "an explanation is not counted: {explained}");
    let shown = skerry(&["rules", "--admin", &admin, "--unmatched"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert_eq!(shown, "site  rule  requests since the start\na     typo  0\n");
    edge.reload(&format!("{rules}[sites.c]\nhosts = \"c.test\"\nrespond.status = 204\n"))
        .expect("a good file");
    edge.get("/api/3");
    until("a reload sets nothing back", || answer("?site=a")[0][2] == 3);
}
