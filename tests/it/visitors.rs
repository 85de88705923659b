//! Visitors that a rule splits into groups: they stay in their group, and groups share nothing.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Answer, Client, Edge, Gate, Origin, Request, Response, until};

/// An origin that tells its name in cacheable and other responses.
fn named(name: &'static str) -> Origin {
    Origin::start(move |request| {
        let answer = Answer::ok(format!("{name} {}", request.target));
        match &*request.target {
            path if path.starts_with("/stored") => {
                answer.header("Cache-Control", "public, max-age=600, s-maxage=900")
            }
            _ => answer.header("Cache-Control", "no-store"),
        }
        .header(
            "CDN-Cache-Control",
            if request.target.starts_with("/stored") { "max-age=600" } else { "no-store" },
        )
    })
}

struct Sides {
    main: Origin,
    canary: Origin,
}

impl Sides {
    fn start() -> Self {
        Self { main: named("main"), canary: named("canary") }
    }

    /// A node that splits its visitors as these options of `split` say.
    fn edge(&self, split: &str) -> Edge {
        Edge::with(&self.config(split))
    }

    fn config(&self, split: &str) -> String {
        format!(
            "[guard]\ntrusted_proxies = [\"127.0.0.1\"]\n\
             [pools.main]\norigins = {:?}\n[pools.canary]\norigins = {:?}\n\
             [sites.all]\nhosts = \"*\"\n\
             request_fields.set = {{ X-Group = \"${{split.group}}\" }}\n\
             response_fields.set = {{ X-Group = \"${{split.group}}\" }}\n\
             [sites.all.split]\n{split}\n",
            self.main.url(),
            self.canary.url()
        )
    }

    fn received(&self) -> Vec<(&'static str, Option<String>, Option<String>)> {
        let sides = [("main", &self.main), ("canary", &self.canary)];
        let requests = sides.into_iter().flat_map(|(name, side)| {
            side.received().into_iter().map(move |request| (name, request))
        });
        let field = |value: Option<&str>| value.map(str::to_owned);
        requests
            .map(|(name, request)| {
                (name, field(request.header("x-group")), field(request.header("cookie")))
            })
            .collect()
    }
}

/// The group that a response tells a new visitor.
fn new_cookie(response: &Response) -> Option<String> {
    let cookie = response.header("set-cookie");
    let (group, _) = cookie.strip_prefix("skerry_group=")?.split_once(';')?;
    Some(group.to_owned())
}

/// The name of the origin that wrote the body.
fn side(response: &Response) -> &str {
    response.text().split(' ').next().expect("a name")
}

#[test]
fn returning_visitors_stay_in_their_group_through_hits_reloads_and_changed_weights() {
    let sides = Sides::start();
    let edge = sides.edge("pools = { main = 1, canary = 1 }");
    let mut counts = BTreeMap::new();
    let mut visitors = Vec::new();
    for at in 0..64 {
        let target = ["/passed", "/stored"][at % 2];
        let response = edge.get_with(target, &["Cookie: a=b"]);
        let group = new_cookie(&response).expect("a cookie for a new visitor");
        assert_eq!(
            response.header("set-cookie"),
            format!("skerry_group={group}; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax")
        );
        assert_eq!((side(&response), response.header("x-group")), (&*group, group.clone()));
        *counts.entry(group.clone()).or_insert(0) += 1;
        visitors.push(group);
    }
    assert_eq!(counts.len(), 2, "{counts:?}");
    for weights in
        ["{ main = 1, canary = 1 }", "{ main = 99, canary = 1 }", "{ canary = 3, main = 1 }"]
    {
        edge.reload(&sides.config(&format!("pools = {weights}"))).expect("a good configuration");
        for (at, group) in visitors.iter().enumerate() {
            let target = ["/stored", "/passed", "/stored/2"][at % 3];
            let response =
                edge.get_with(target, &[&format!("Cookie: a=b; skerry_group={group}; c=d")]);
            assert_eq!((side(&response), response.header("set-cookie")), (&**group, String::new()));
        }
    }
    for (side, group, cookie) in sides.received() {
        assert_eq!(group.as_deref(), Some(side));
        let cookie = cookie.expect("the visitor's own cookies");
        assert!(["a=b", "a=b; c=d"].contains(&&*cookie), "{cookie}");
    }
    // The canary is called back: a group without weight loses its visitors.
    edge.reload(&sides.config("pools = { main = 1, canary = 0 }")).expect("a good configuration");
    let response = edge.get_with("/passed", &["Cookie: skerry_group=canary"]);
    assert_eq!((side(&response), new_cookie(&response)), ("main", Some("main".into())));
}

#[test]
fn groups_share_no_stored_response_and_a_purge_of_a_url_covers_all_groups() {
    let sides = Sides::start();
    let edge = sides.edge("pools = { main = 1, canary = 1 }");
    let get =
        |group: &str, target| edge.get_with(target, &[&format!("Cookie: skerry_group={group}")]);
    for (group, hit) in [("main", false), ("canary", false), ("main", true), ("canary", true)] {
        let response = get(group, "/stored");
        assert_eq!((side(&response), response.is_hit()), (group, hit));
    }
    edge.purge("/stored");
    for group in ["main", "canary"] {
        let response = get(group, "/stored");
        assert_eq!((side(&response), response.is_hit()), (group, false));
    }
}

#[test]
fn a_cookie_for_one_visitor_is_never_stored_and_its_response_is_private() {
    let sides = Sides::start();
    let edge = sides.edge("pools = { main = 1, canary = 0 }");
    let check = |fields: &[&str], hit: bool, new: bool| {
        let response = edge.get_with("/stored", fields);
        assert_eq!((response.is_hit(), new_cookie(&response).is_some()), (hit, new), "{fields:?}");
        assert_eq!(response.header("cache-control"), "private, max-age=600");
        assert_eq!(response.header("cdn-cache-control"), "");
        response
    };
    check(&[], false, true);
    check(&[], true, true);
    check(&["Cookie: skerry_group=main"], true, false);
    check(&["Cookie: skerry_group=nothing"], true, true);
    check(&["Range: bytes=0-3"], true, true);
    let head =
        Request { method: "HEAD", host: "edge.test", target: "/stored", fields: &[], body: b"" };
    let head = edge.connect().request(head);
    assert_eq!((head.is_hit(), new_cookie(&head)), (true, Some("main".into())));
    assert_eq!(sides.main.request_count(), 1);
}

#[test]
fn a_field_or_cookie_of_a_request_forces_its_group() {
    let sides = Sides::start();
    let edge = sides.edge(
        "pools = { main = 1, canary = 0 }\n\
         force = [{ header = \"X-Canary\", value = \"1\", pool = \"canary\" }, { cookie = \"beta\", pool = \"canary\" }]\n\
         [sites.all.pools_by_country]\nDE = \"main\"",
    );
    let check = |fields: &[&str], expected: &str, cookie: Option<&str>| {
        let response = edge.get_with("/passed", fields);
        assert_eq!(
            (side(&response), new_cookie(&response).as_deref()),
            (expected, cookie),
            "{fields:?}"
        );
    };
    check(&[], "main", Some("main"));
    check(&["X-Canary: 1"], "canary", None);
    check(&["X-Canary: 0", "Cookie: skerry_group=main"], "main", None);
    check(&["Cookie: skerry_group=main; beta=yes"], "canary", None);
    // A place is named before any lot, and a tester decides before that.
    check(&["X-Forwarded-For: 80.128.0.1"], "main", None);
    check(&["X-Forwarded-For: 80.128.0.1", "X-Canary: 1"], "canary", None);
    let lines = edge.log(6);
    let groups = |client: &str| {
        let mut groups: Vec<_> = lines
            .iter()
            .filter(|line| line["client"] == client)
            .map(|line| (line["group"].as_str(), line["pool"].as_str()))
            .collect();
        groups.sort();
        groups
    };
    let (main, canary) = (Some("main"), Some("canary"));
    assert_eq!(
        groups("127.0.0.1"),
        [(canary, canary), (canary, canary), (main, main), (main, main)]
    );
    assert_eq!(groups("80.128.0.1"), [(None, main), (canary, canary)]);
    for (by, count) in [("forced", 3.0), ("lot", 1.0), ("cookie", 1.0), ("client", 0.0)] {
        assert_eq!(
            edge.metric(&format!("skerry_split_requests_total{{by=\"{by}\"")),
            count,
            "{by}"
        );
    }
}

#[test]
fn a_client_without_cookies_stays_in_the_group_of_its_address() {
    let sides = Sides::start();
    let edge = sides.edge("pools = { main = 1, canary = 1 }\nby = \"client\"");
    let mut found = BTreeMap::new();
    for client in 0..32 {
        let from = format!("X-Forwarded-For: 192.0.2.{client}");
        let responses =
            [(); 3].map(|()| edge.get_with("/stored", &[&from, "Cookie: skerry_group=x"]));
        let [first, rest @ ..] = &responses;
        assert!(rest.iter().all(|response| side(response) == side(first)));
        assert!(responses.iter().all(|response| response.header("set-cookie").is_empty()));
        found.insert(client, side(first).to_owned());
    }
    assert!(["main", "canary"].iter().all(|side| found.values().any(|found| found == side)));
    let explain = |query: &str, fields: &[&str]| -> Value {
        let target = format!("/explain?url=http://edge.test/stored{query}");
        let response = Client::connect(edge.admin).get("localhost", &target, fields);
        serde_json::from_str(response.text()).expect("JSON")
    };
    for (client, side) in &found {
        let told = explain(&format!("&client=192.0.2.{client}"), &[]);
        assert_eq!((&told["group"], &told["group_by"]), (&side.as_str().into(), &"client".into()));
        assert_eq!(told["pool"], **side);
        assert_eq!(told["decision"]["act"], "hit", "{told}");
    }
    let told = explain("", &[]);
    assert_eq!((&told["group_by"], &told["group_weights"]["canary"]), (&Value::Null, &1.into()));
}

#[test]
fn explain_names_the_group_of_a_cookie_and_prefetches_go_to_the_largest_group() {
    let sides = Sides::start();
    let edge = sides.edge(
        "pools = { main = 9, canary = 1 }\nforce = [{ header = \"X-Canary\", pool = \"canary\" }]",
    );
    let explain = |fields: &[&str]| -> Value {
        let target = "/explain?url=http://edge.test/stored";
        let response = Client::connect(edge.admin).get("localhost", target, fields);
        serde_json::from_str(response.text()).expect("JSON")
    };
    let check = |fields: &[&str], group: &str, by: &str| {
        let told = explain(fields);
        assert_eq!((&told["group"], &told["group_by"]), (&group.into(), &by.into()), "{told}");
        assert_eq!(told["key"], format!("http://edge.test/stored\nsplit {group}"));
    };
    check(&[], "main", "lot");
    check(&["X-Explain-Cookie: skerry_group=canary"], "canary", "cookie");
    check(&["X-Explain-X-Canary: 1"], "canary", "forced");
    edge.admin("POST", "/prefetch", "{\"url\": \"http://edge.test/stored\"}");
    until("it is fetched", || edge.metric("skerry_prefetches_total{outcome=\"fetched\"") == 1.0);
    assert!(edge.get_with("/stored", &["Cookie: skerry_group=main"]).is_hit());
    assert!(!edge.get_with("/stored", &["Cookie: skerry_group=canary"]).is_hit());
}

#[test]
fn requests_of_two_groups_are_not_collapsed() {
    let gate = Gate::default();
    let slow = gate.clone();
    let main = Origin::start(move |_| Answer::ok("main").fresh_for(60).behind(&slow));
    let sides = Sides { main, canary: named("canary") };
    let edge = sides.edge("pools = { main = 1, canary = 1 }");
    let waiting = std::thread::scope(|scope| {
        let leader = scope.spawn(|| edge.get_with("/stored", &["Cookie: skerry_group=main"]));
        sides.main.wait_for_requests(1);
        let response = edge.get_with("/stored", &["Cookie: skerry_group=canary"]);
        assert_eq!(side(&response), "canary");
        gate.open();
        leader.join().expect("an answer")
    });
    assert_eq!(side(&waiting), "main");
}
