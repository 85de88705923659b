//! The health of origins at the socket: which origins get requests, and when they get them again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Answer, Edge, Gate, Origin, Request, Response, skerry, until};

/// A node with one pool of these origins, with these tables more.
fn edge(origins: &[&Origin], more: &str) -> Edge {
    Edge::with(&config(origins, more))
}

fn config(origins: &[&Origin], more: &str) -> String {
    let origins: Vec<String> = origins.iter().map(|origin| origin.url()).collect();
    format!("[pools.main]\norigins = {origins:?}\n{more}\n[sites.all]\nhosts = \"*\"\n")
}

fn good(text: &str) -> Answer {
    Answer::ok(text).header("Cache-Control", "no-store")
}

/// The origins of the pool, as the admin API reports them.
fn origins(edge: &Edge) -> Vec<Value> {
    let report = edge.admin("GET", "/origins", "");
    let report: Value = serde_json::from_str(report.text()).expect("JSON");
    report["pools"][0]["origins"].as_array().expect("origins").clone()
}

fn states(edge: &Edge) -> Vec<String> {
    let state = |origin: &Value| origin["state"].as_str().expect("a state").to_owned();
    origins(edge).iter().map(state).collect()
}

fn is_whole_200(response: &Response) -> bool {
    response.status == 200 && response.is_complete
}

/// The first origin is bad in some way while `is_bad`; the second is good.
#[track_caller]
fn check_ejected_and_back(more: &str, bad: fn() -> Answer) {
    let is_bad = Arc::new(AtomicBool::new(true));
    let now = is_bad.clone();
    let first = Origin::start(move |_| match now.load(Ordering::SeqCst) {
        true => bad(),
        false => good("first"),
    });
    let second = Origin::start(|_| good("second"));
    let edge = edge(
        &[&first, &second],
        &format!(
            "health = {{ consecutive_5xx = 3, eject_for = \"400ms\", eject_for_max = \"800ms\" }}\n{more}"
        ),
    );
    let failures = (0..12).filter(|_| !is_whole_200(&edge.get("/"))).count();
    assert!(failures <= 4, "{failures} requests failed before and after the ejection");
    assert_eq!(states(&edge), ["ejected", "up"]);
    is_bad.store(false, Ordering::SeqCst);
    let began = Instant::now();
    until("it is up again", || {
        edge.get("/");
        states(&edge) == ["up", "up"]
    });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!((0..8).all(|_| is_whole_200(&edge.get("/"))));
}

#[test]
fn an_origin_that_responds_with_errors_is_ejected_and_back_after_a_good_response() {
    check_ejected_and_back("", || Answer::status(500));
}

#[test]
fn an_origin_that_cuts_bodies_short_is_ejected_and_back() {
    check_ejected_and_back("", || {
        let long = Answer::ok(vec![b'x'; 200_000]).header("Cache-Control", "no-store");
        long.cut_after(100_000)
    });
}

#[test]
fn an_origin_that_stalls_is_ejected_and_back() {
    check_ejected_and_back("deadlines.first_byte = \"200ms\"", || {
        std::thread::sleep(Duration::from_millis(600));
        good("late")
    });
}

#[test]
fn an_origin_that_refuses_connections_is_down_and_back() {
    let (first, second) = (Origin::start(|_| good("first")), Origin::start(|_| good("second")));
    let edge = edge(&[&first, &second], "health = { connect_failures = 2, eject_for = \"300ms\" }");
    first.kill();
    assert!((0..12).all(|_| is_whole_200(&edge.get("/"))), "each is sent to the other origin");
    let report = &origins(&edge)[0];
    assert_eq!((&report["state"], &report["why"]), (&"down".into(), &"unreachable".into()));
    let before = edge.metric("skerry_upstream_marked_down_total");
    until("its time has passed more than once", || {
        std::thread::sleep(Duration::from_millis(900));
        is_whole_200(&edge.get("/"))
    });
    let after = edge.metric("skerry_upstream_marked_down_total");
    assert!(after - before <= 1.0, "clients do not pay for trials of an origin that is gone");
    let _first = Origin::start_at(first.address, |_| good("first"));
    until("it is up again", || {
        assert_eq!(edge.get("/").status, 200);
        states(&edge) == ["up", "up"]
    });
    assert_eq!(edge.metric("skerry_upstream_origins{pool=\"main\",state=\"up\""), 2.0);
}

#[test]
fn a_single_origin_is_back_one_second_after_its_return() {
    let origin = Origin::start(|_| good("first life"));
    let edge = edge(&[&origin], "");
    origin.kill();
    for _ in 0..3 {
        assert_eq!(edge.get("/").status, 502, "the failure itself");
    }
    let refused = edge.get("/");
    let is_refused = |response: &Response| {
        let seconds: u32 = response.header("retry-after").parse().expect("seconds");
        response.status == 503 && (1..=4).contains(&seconds)
    };
    // The first request after the third failure may be the trial.
    assert!(refused.status == 502 || is_refused(&refused), "{refused:?}");
    assert!(is_refused(&edge.get("/")));
    let _origin = Origin::start_at(origin.address, |_| good("second life"));
    let began = Instant::now();
    until("it answers", || edge.get("/").status == 200);
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    assert!((0..8).all(|_| edge.get("/").status == 200));
}

#[test]
fn while_all_are_down_one_request_tries_and_the_others_are_refused() {
    let gate = Gate::default();
    let (behind, origin) = (gate.clone(), Origin::start(|_| good("x")));
    let edge = edge(&[&origin], "");
    origin.kill();
    (0..3).for_each(|_| _ = edge.get("/"));
    let origin = Origin::start_at(origin.address, move |_| good("x").behind(&behind));
    std::thread::scope(|scope| {
        let requests: Vec<_> = (0..16)
            .map(|number| {
                let edge = &edge;
                // Different targets, so that no request waits for the response to another.
                scope.spawn(move || {
                    let began = Instant::now();
                    let get = || edge.get(&format!("/{number}")).status;
                    let mut status = get();
                    while status == 503 && began.elapsed() < Duration::from_millis(1500) {
                        status = get();
                    }
                    status
                })
            })
            .collect();
        origin.wait_for_requests(1);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(origin.request_count(), 1);
        assert_eq!(origins(&edge)[0]["on_trial"], true);
        gate.open();
        let statuses: Vec<u16> =
            requests.into_iter().map(|request| request.join().expect("a response")).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    });
    assert_eq!(edge.get("/").status, 200);
}

#[test]
fn while_all_are_down_a_stale_response_is_served() {
    let origin = Origin::start(|_| {
        Answer::ok("kept").header("Cache-Control", "max-age=10, stale-if-error=1000")
    });
    let edge = edge(&[&origin], "");
    edge.get("/kept");
    origin.kill();
    (0..4).for_each(|_| _ = edge.get("/other"));
    assert_eq!(states(&edge), ["down"]);
    edge.advance(11);
    let kept = edge.get("/kept");
    assert_eq!((kept.status, kept.text()), (200, "kept"));
}

#[test]
fn a_late_success_does_not_bring_an_ejected_origin_back() {
    let gate = Gate::default();
    let behind = gate.clone();
    let first = Origin::start(move |request| match request.target.as_str() {
        "/slow" => good("slow").behind(&behind),
        _ => Answer::status(500),
    });
    let second = Origin::start(|_| good("second"));
    let text = config(&[&first, &second], "health.consecutive_5xx = 2").replace(
        &format!("{:?}]", second.url()),
        &format!("{{ url = {:?}, weight = 0 }}]", second.url()),
    );
    let edge = Edge::with(&text);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| edge.get("/slow"));
        first.wait_for_requests(1);
        (0..2).for_each(|_| assert_eq!(edge.get("/").status, 500));
        assert_eq!(states(&edge), ["ejected", "up"]);
        gate.open();
        assert_eq!(slow.join().expect("a response").text(), "slow");
    });
    assert_eq!(states(&edge), ["ejected", "up"]);
    assert_eq!(edge.get("/").text(), "second");
}

#[test]
fn two_workers_eject_no_more_than_the_share() {
    let all: Vec<_> = (0..4).map(|_| Origin::start(|_| Answer::status(500))).collect();
    let edge = edge(&all.iter().collect::<Vec<_>>(), "health.consecutive_5xx = 2");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..8).for_each(|_| assert_eq!(edge.get("/").status, 500)));
        }
    });
    let ejected = states(&edge).iter().filter(|state| *state == "ejected").count();
    assert_eq!(ejected, 2);
    assert!(edge.metric("skerry_upstream_ejections_refused_total") > 0.0);
}

#[test]
fn a_post_is_not_sent_again_to_another_origin() {
    let (first, second) = (Origin::start(|_| Answer::raw("")), Origin::start(|_| Answer::raw("")));
    let edge = edge(&[&first, &second], "");
    let response = edge.connect().request(Request {
        method: "POST",
        host: "edge.test",
        target: "/",
        fields: &[],
        body: b"once",
    });
    assert_eq!(response.status, 502);
    assert_eq!(first.request_count() + second.request_count(), 1);
}

const CHECK: &str = "[pools.main.check]\npath = \"/health\"\nstatuses = 200\ncontains = \"fine\"\n\
                     interval = \"200ms\"\ntimeout = \"100ms\"\nrise = 2\nfall = 3";

/// An origin whose `/health` is fine while the switch is on.
fn checked(switch: &Arc<AtomicBool>) -> Origin {
    let switch = switch.clone();
    Origin::start(move |request| match request.target.as_str() {
        "/health" if switch.load(Ordering::SeqCst) => good("all is fine"),
        "/health" => good("on fire"),
        _ => good("page"),
    })
}

#[test]
fn a_check_takes_an_origin_down_and_up_within_its_intervals() {
    let switch = Arc::new(AtomicBool::new(true));
    let (first, second) = (checked(&switch), checked(&Arc::new(AtomicBool::new(true))));
    let edge = edge(&[&first, &second], CHECK);
    first.wait_for_requests(2);
    let check = first.received().remove(0);
    assert_eq!((&*check.method, check.header("user-agent")), ("GET", Some("skerry-check")));
    assert_eq!(check.header("host"), Some(&*first.address.to_string()));
    let within = |state: &str, is_on, bound: Duration| {
        switch.store(is_on, Ordering::SeqCst);
        let began = Instant::now();
        until(state, || states(&edge) == [state, "up"]);
        assert!(began.elapsed() < bound, "{state} after {:?}", began.elapsed());
    };
    within("down", false, Duration::from_millis(3 * 200 + 1000));
    let report = &origins(&edge)[0];
    assert_eq!(report["why"], "check");
    assert_eq!(report["last_check"]["failure"], "the body does not contain check.contains");
    let pages =
        |origin: &Origin| origin.received().iter().filter(|request| request.target == "/").count();
    assert!((0..8).all(|_| edge.get("/").text() == "page"));
    assert_eq!((pages(&first), pages(&second)), (0, 8));
    within("up", true, Duration::from_millis(2 * 200 + 1000));
    assert!(edge.metric("skerry_upstream_checks_total{outcome=\"failed\"") >= 3.0);
}

#[test]
fn a_wrong_check_of_all_origins_does_not_take_the_site_down() {
    let switch = Arc::new(AtomicBool::new(false));
    let (first, second) = (checked(&switch), checked(&switch));
    let edge = edge(&[&first, &second], CHECK);
    until("their checks fail", || states(&edge) == ["down", "down"]);
    // Trials succeed, one at a time, until the checks are in doubt.
    until("both are used", || {
        edge.get("/");
        states(&edge) == ["ejected", "ejected"]
    });
    assert!((0..8).all(|_| edge.get("/").status == 200));
}

#[test]
fn a_tcp_check_and_an_origin_that_is_assumed_down() {
    let origin = Origin::start(|_| good("page"));
    let edge = edge(
        &[&origin],
        "[pools.main.check]\nkind = \"tcp\"\ninterval = \"200ms\"\nassume = \"down\"\nfall = 1",
    );
    until("its first check has passed", || states(&edge) == ["up"]);
    origin.kill();
    until("its check fails", || states(&edge) == ["down"]);
    assert_eq!(edge.metric("skerry_upstream_marked_down_total"), 1.0, "no request has failed");
}

#[test]
fn reloads_leave_one_check_per_interval() {
    let switch = Arc::new(AtomicBool::new(true));
    let origin = checked(&switch);
    let text =
        |attempts: u32| config(&[&origin], &format!("retry.attempts_max = {attempts}\n{CHECK}"));
    let edge = Edge::with(&text(1));
    for attempts in 2..=6 {
        edge.reload(&text(attempts)).expect("a good configuration");
    }
    edge.reload(&text(6)).expect("the same configuration");
    let before = origin.request_count();
    std::thread::sleep(Duration::from_secs(2));
    let checks = origin.request_count() - before;
    assert!((7..=12).contains(&checks), "{checks} checks in 10 intervals");
    // Without the table the checks end.
    edge.reload(&config(&[&origin], "")).expect("a good configuration");
    let before = origin.request_count();
    std::thread::sleep(Duration::from_millis(700));
    assert!(origin.request_count() - before <= 1, "one may have been under way");
}

#[test]
fn the_command_prints_the_origins_of_a_pool_as_a_table_and_as_json() {
    let (first, second) = (Origin::start(|_| good("x")), Origin::start(|_| good("x")));
    let edge = edge(&[&first, &second], "health.connect_failures = 1");
    second.kill();
    until("a request has tried it", || {
        assert_eq!(edge.get("/").status, 200);
        states(&edge) == ["up", "down"]
    });
    let admin = edge.admin.to_string();
    let run = |arguments: &[&str]| {
        let output = skerry(&[&["origins", "--admin", &admin][..], arguments].concat());
        let error = String::from_utf8(output.stderr).expect("text");
        (output.status.success(), String::from_utf8(output.stdout).expect("text"), error)
    };
    let (_, table, _) = run(&["main"]);
    let words: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[1][..5], ["main", &first.url(), "0", "1", "up"]);
    assert_eq!(words[2][..6], ["main", &second.url(), "0", "1", "down", "(unreachable)"]);
    let (_, json, _) = run(&["--json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["pools"][0]["origins"][1]["state"], "down");
    let (is_good, _, error) = run(&["other"]);
    assert!(!is_good && error.contains("the node has no pool \"other\""), "{error}");
}
