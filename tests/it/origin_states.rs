//! `POST /origins/state` at the socket: which origins get requests after it, and for how long.

use serde_json::{Value, json};
use skerry::Clock;

use crate::harness::{Answer, Edge, Gate, Origin, Restarted, skerry, until};

fn config(origins: &[&Origin], more: &str) -> String {
    let origins: Vec<String> = origins.iter().map(|origin| origin.url()).collect();
    format!("[pools.main]\norigins = {origins:?}\n{more}\n[sites.all]\nhosts = \"*\"\n")
}

fn named(name: &'static str) -> Origin {
    Origin::start(move |_| Answer::ok(name).header("Cache-Control", "no-store"))
}

/// Calls the API about an origin of the pool `main`.
fn set(edge: &Edge, origin: &str, change: Value) -> (u16, Value) {
    let mut body = change;
    (body["pool"], body["origin"]) = (json!("main"), json!(origin));
    let reply = edge.admin("POST", "/origins/state", &body.to_string());
    (reply.status, serde_json::from_str(reply.text()).expect("JSON"))
}

/// The origins of the first pool.
fn origins(edge: &Edge) -> Vec<Value> {
    let report = edge.admin("GET", "/origins", "");
    let report: Value = serde_json::from_str(report.text()).expect("JSON");
    report["pools"][0]["origins"].as_array().expect("origins").clone()
}

fn states(edge: &Edge) -> Vec<Value> {
    origins(edge).iter().map(|origin| origin["state"].clone()).collect()
}

/// The texts of the responses to so many requests.
fn texts(edge: &Edge, count: usize) -> Vec<String> {
    (0..count).map(|_| edge.get("/").text().to_owned()).collect()
}

#[test]
fn a_drained_origin_finishes_its_requests_and_gets_no_new_ones() {
    let gate = Gate::default();
    let closed = gate.clone();
    let first = Origin::start(move |request| {
        let answer = Answer::ok("first").header("Cache-Control", "no-store");
        if request.target.starts_with("/slow") { answer.behind(&closed) } else { answer }
    });
    let second = named("second");
    let edge = Edge::with(&config(&[&first, &second], ""));
    std::thread::scope(|scope| {
        let edge = &edge;
        let get = |at| scope.spawn(move || edge.get(&format!("/slow{at}")));
        let slow: Vec<_> = (0..4).map(get).collect();
        until("both origins have their requests", || {
            first.request_count() + second.request_count() == 4 && first.request_count() > 0
        });
        let (status, answer) = set(edge, &first.url(), json!({"state": "drain"}));
        assert_eq!((status, &answer["state"]), (200, &json!("drain")), "{answer}");
        assert_eq!(states(edge), ["draining", "up"]);
        assert_eq!(texts(edge, 10), vec!["second"; 10]);
        gate.open();
        for response in slow {
            assert_eq!(response.join().expect("a response").status, 200);
        }
    });
    assert_eq!(set(&edge, &first.url(), json!({"state": "ready"})).0, 200);
    assert_eq!(states(&edge), ["up", "up"]);
    assert!(texts(&edge, 10).contains(&"first".to_owned()));
    assert_eq!(edge.metric("skerry_upstream_origins{pool=\"main\",state=\"draining\""), 0.0);
}

#[test]
fn the_last_usable_origin_is_taken_out_only_by_force() {
    let (first, second) = (named("first"), named("second"));
    let edge = Edge::with(&config(&[&first, &second], ""));
    assert_eq!(set(&edge, &first.url(), json!({"state": "maintenance"})).0, 200);
    let (status, problem) = set(&edge, &second.url(), json!({"state": "maintenance"}));
    assert_eq!(status, 409);
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.starts_with("no other origin of pool \"main\" is up"), "{detail}");
    assert_eq!(edge.get("/").text(), "second");
    let forced = json!({"state": "maintenance", "force": true});
    assert_eq!(set(&edge, &second.url(), forced).0, 200);
    let refused = edge.get("/");
    assert_eq!(refused.status, 503);
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(set(&edge, &first.url(), json!({"state": "ready"})).0, 200);
    assert_eq!(edge.get("/").text(), "first");
}

#[test]
fn a_weight_that_is_set_holds_over_a_reload_until_it_is_the_configured_one_again() {
    let (first, second) = (named("first"), named("second"));
    let edge = Edge::with(&config(&[&first, &second], ""));
    assert_eq!(set(&edge, &first.url(), json!({"weight": 0})).0, 200);
    assert_eq!(texts(&edge, 10), vec!["second"; 10]);
    for more in ["connections_max = 100", "host = \"origin\""] {
        edge.reload(&config(&[&first, &second], more)).expect("a good file");
        assert_eq!(texts(&edge, 10), vec!["second"; 10], "{more}");
    }
    assert_eq!(origins(&edge)[0]["set"], json!({"state": "ready", "weight": 0, "kept": false}));
    let (_, answer) = set(&edge, &first.url(), json!({"weight": null}));
    assert_eq!(answer["weight"], Value::Null);
    assert!(texts(&edge, 10).contains(&"first".to_owned()));
    assert_eq!(origins(&edge)[0]["set"], Value::Null);
}

#[test]
fn a_state_that_is_kept_is_there_after_a_restart() {
    let (first, second) = (named("first"), named("second"));
    let text = config(&[&first, &second], "");
    let edge = Edge::with(&text);
    let file = edge.path("data/origins.json");
    assert_eq!(set(&edge, &first.url(), json!({"state": "drain"})).0, 200);
    assert!(!file.exists(), "it is not asked for");
    let kept = json!({"state": "drain", "weight": 7, "keep": true});
    assert_eq!(set(&edge, &first.url(), kept).0, 200);

    let report = Restarted::with(&text, &file, Clock::system()).origins();
    let origin = &report["pools"][0]["origins"][0];
    assert_eq!((&origin["state"], &origin["weight"]), (&json!("draining"), &json!(7)));

    // A later call that does not ask for it ends it.
    assert_eq!(set(&edge, &first.url(), json!({"state": "ready", "weight": null})).0, 200);
    assert_eq!(std::fs::read_to_string(&file).expect("the file").trim(), "{}");
}

#[test]
fn calls_with_mistakes_change_nothing_and_every_call_is_audited() {
    let (first, second) = (named("first"), named("second"));
    let more = "[admin]\naudit_log = \"audit.log\"";
    let edge = Edge::with(&config(&[&first, &second], more));
    let check = |body: &str, status: u16, expected: &str| {
        let reply = edge.admin("POST", "/origins/state", body);
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        assert!(reply.text().contains(expected), "{body}: {}", reply.text());
    };
    check("{\"pool\": \"main\"}", 400, "field \\\"origin\\\" is missing");
    check("{\"pool\": \"main\", \"origin\": \"x\"}", 400, "\\\"state\\\", \\\"weight\\\" or both");
    check(
        "{\"pool\": \"main\", \"origin\": \"x\", \"weight\": 70000}",
        400,
        "a whole number from 0 to 65535",
    );
    check(
        "{\"pool\": \"mian\", \"origin\": \"x\", \"weight\": 1}",
        404,
        "no pool \\\"mian\\\"; did you mean \\\"main\\\"?",
    );
    check(
        "{\"pool\": \"main\", \"origin\": \"http://x\", \"weight\": 1}",
        404,
        "no origin \\\"http://x\\\"",
    );
    check(
        &json!({"pool": "main", "origin": first.url(), "state": "down"}).to_string(),
        400,
        "found \\\"down\\\"",
    );
    assert_eq!(edge.admin("GET", "/origins/state", "").status, 405);
    assert_eq!(states(&edge), ["up", "up"]);
    assert_eq!(set(&edge, &first.url(), json!({"state": "drain"})).0, 200);
    let audit = std::fs::read_to_string(edge.path("audit.log")).expect("a file");
    let lines: Vec<Value> =
        audit.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let of_call = |line: &&Value| line["call"] == "POST /origins/state";
    let last = lines.iter().rfind(of_call).expect("a line");
    assert_eq!((&last["state"], &last["error"]), (&json!("drain"), &Value::Null));
    assert!(lines.iter().filter(of_call).any(|line| line["error"].is_string()));
}

#[test]
fn the_command_drains_an_origin_and_sets_its_weight() {
    let (first, second) = (named("first"), named("second"));
    let edge = Edge::with(&config(&[&first, &second], ""));
    let admin = edge.admin.to_string();
    let url = first.url();
    let place = url.strip_prefix("http://").expect("a URL");
    let run = |arguments: &[&str]| {
        let output = skerry(&[&["origins"], arguments, &["--admin", &admin]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
    };
    let drained = (true, format!("{url}: drain, the configured weight\n"));
    assert_eq!(run(&["drain", "main", place]), drained);
    assert_eq!(states(&edge), ["draining", "up"]);
    assert!(run(&["ready", "main", &url]).0);
    assert_eq!(run(&["weight", "main", &url, "3"]), (true, format!("{url}: ready, weight 3\n")));
    assert!(run(&["weight", "main", &url, "default"]).0);
    let (is_good, error) = run(&["weight", "main", &url, "many"]);
    assert!(!is_good && error.contains("expected 0 to 65535, or \"default\""), "{error}");
    assert_eq!(origins(&edge)[0]["set"], Value::Null);
}
