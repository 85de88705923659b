//! The promise of retries: while one origin of a pool is good, no idempotent request whose content can be
//! sent again gets a 5xx, a truncated body, or waits longer than `deadlines.connect` +
//! `retry.per_try_timeout`. Four of five origins are bad, each in the same way, then each in another.
//! `tests/bench/bad-members` measures the same for longer, and beside HAProxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Answer, Client, Edge, Gate, Origin, ReceivedRequest, Request, Response};

/// How an origin is bad.
#[derive(Clone, Copy, Debug)]
enum Bad {
    /// The origin refuses connections.
    Killed,
    /// The origin accepts requests and does not respond.
    Stalled,
    /// The origin closes every second connection without a response.
    Flapping,
    /// The origin responds after twice the time that a try has.
    Slowed,
    /// The origin responds with 500 and 503.
    Failing,
    /// Its responses end before their length.
    Truncating,
}

const ALL: [Bad; 6] =
    [Bad::Killed, Bad::Stalled, Bad::Flapping, Bad::Slowed, Bad::Failing, Bad::Truncating];

const CONNECT: Duration = Duration::from_secs(1);
const PER_TRY: Duration = Duration::from_millis(1500);
/// The deadline of an origin that is alone. A request that waits for it in spite of other origins is found.
const FIRST_BYTE: Duration = Duration::from_secs(16);
/// The time that a busy machine may take on top. The tight bound is that of tests/bench/bad-members.
const SLACK: Duration = Duration::from_secs(10);

/// A small page; or a large one with a strong tag, or the part of it that is asked for.
fn page(request: &ReceivedRequest) -> Answer {
    if !request.target.ends_with("/large") {
        return Answer::ok(vec![b'x'; 10_000]).header("Cache-Control", "no-store");
    }
    let large: Vec<u8> = (0..LARGE).map(|at| (at / 7) as u8).collect();
    let asked = request.header("range").and_then(|range| range.strip_prefix("bytes="));
    let answer = match asked.and_then(|range| range.split_once('-')?.0.parse::<usize>().ok()) {
        None => Answer::ok(large),
        Some(from) => Answer::part(&large[from..])
            .header("Content-Range", &format!("bytes {from}-{}/{LARGE}", LARGE - 1)),
    };
    answer.header("Cache-Control", "no-store").header("ETag", "\"v1\"")
}

/// More than is held back until it is whole.
const LARGE: usize = 300_000;

/// Stalls end when `stall` is opened.
fn bad_origin(bad: Bad, stall: &Gate) -> Origin {
    let (stall, count) = (stall.clone(), AtomicUsize::new(0));
    let origin = Origin::start(move |request| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        match bad {
            Bad::Killed => page(request),
            Bad::Stalled => {
                while !stall.is_open() {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Answer::raw("")
            }
            Bad::Flapping if number % 2 == 0 => Answer::raw(""),
            Bad::Flapping => page(request),
            Bad::Slowed => {
                std::thread::sleep(PER_TRY * 2);
                page(request)
            }
            Bad::Failing => Answer::status(if number % 2 == 0 { 500 } else { 503 }),
            // A response to HEAD has no content to cut.
            Bad::Truncating if request.method == "HEAD" => page(request),
            Bad::Truncating => page(request).cut_after(number % 3 * 4_000),
        }
    });
    if matches!(bad, Bad::Killed) {
        origin.kill();
    }
    origin
}

/// The outcomes of requests of one kind, as clients saw them.
#[derive(Debug, Default)]
struct Seen {
    requests: usize,
    errors: usize,
    truncated: usize,
    slowest: Duration,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.truncated += other.truncated;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Each of `clients` at the same time sends all methods in turn, `rounds` times. Returns what was seen
/// of idempotent methods, and of POST.
fn load(edge: &Edge, clients: usize, rounds: usize) -> (Seen, Seen) {
    let client = |number: usize| {
        let (mut idempotent, mut post) = (Seen::default(), Seen::default());
        for round in 0..rounds {
            for (at, method) in METHODS.iter().enumerate() {
                let size =
                    if *method == "GET" && number.is_multiple_of(2) { "large" } else { "small" };
                let target = format!("/{number}/{round}/{at}/{size}");
                let body: &[u8] = if *method == "PUT" { b"content" } else { b"" };
                let (host, fields) = ("edge.test", ["Connection: close"]);
                let began = Instant::now();
                let request = Request { method, host, target: &target, fields: &fields, body };
                let response = Client::connect(edge.http).request(request);
                let seen = if *method == "POST" { &mut post } else { &mut idempotent };
                seen.add(&Seen {
                    requests: 1,
                    errors: usize::from(response.status >= 500),
                    truncated: usize::from(!is_whole(&response, size)),
                    slowest: began.elapsed(),
                });
            }
        }
        (idempotent, post)
    };
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..clients).map(|number| scope.spawn(move || client(number))).collect();
        let (mut idempotent, mut post) = (Seen::default(), Seen::default());
        for ended in running {
            let (more, more_post) = ended.join().expect("a client");
            idempotent.add(&more);
            post.add(&more_post);
        }
        (idempotent, post)
    })
}

/// The response ended as it said, and a large body has each byte in its place.
fn is_whole(response: &Response, size: &str) -> bool {
    let is_right = || {
        response.body.len() == LARGE
            && response.body.iter().enumerate().all(|(at, byte)| *byte == (at / 7) as u8)
    };
    response.is_complete && (size == "small" || response.status != 200 || is_right())
}

const METHODS: [&str; 6] = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"];

fn check(bad: [Bad; 4], clients: usize, rounds: usize) {
    let stall = Gate::default();
    let _end = OpenAtEnd(stall.clone());
    let good = Origin::start(page);
    let origins: Arc<[Origin]> = bad.iter().map(|bad| bad_origin(*bad, &stall)).collect();
    let mut urls: Vec<String> = origins.iter().map(Origin::url).collect();
    urls.insert(2, good.url());
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {urls:?}\ndeadlines = {{ connect = \"{}ms\", first_byte = \"{}s\" }}\n\
         [pools.main.retry]\nper_try_timeout = \"{}ms\"\n\
         on = [\"connect\", \"reset\", \"timeout\", \"truncated\", \"invalid\", 500, 502, 503, 504]\n\
         keep_request_body = \"64KiB\"\n\
         [sites.all]\nhosts = \"*\"\n",
        CONNECT.as_millis(),
        FIRST_BYTE.as_secs(),
        PER_TRY.as_millis(),
    ));
    let (idempotent, post) = load(&edge, clients, rounds);
    assert_eq!((idempotent.errors, idempotent.truncated), (0, 0), "{bad:?}: {idempotent:?}");
    let bound = CONNECT + PER_TRY + SLACK;
    assert!(idempotent.slowest <= bound, "{bad:?}: {idempotent:?}");
    assert_eq!(post.requests, clients * rounds);
    // RFC 9110 §9.2.2 forbids to send these again; each is counted.
    let unretried = edge.metric("skerry_upstream_unretried_total{reason=\"method\"") as usize;
    assert_eq!(post.errors + post.truncated, unretried, "{bad:?}: {post:?}");
}

/// Ends the stalls of origins, also when a test fails.
struct OpenAtEnd(Gate);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[test]
fn with_four_bad_origins_of_five_no_idempotent_request_fails() {
    for bad in ALL {
        check([bad; 4], 32, 1);
    }
}

#[test]
fn with_four_origins_bad_in_four_ways_no_idempotent_request_fails() {
    check([Bad::Killed, Bad::Stalled, Bad::Failing, Bad::Truncating], 32, 2);
    check([Bad::Flapping, Bad::Slowed, Bad::Stalled, Bad::Killed], 32, 2);
}

#[test]
fn with_256_requests_in_flight_no_idempotent_request_fails() {
    check([Bad::Stalled, Bad::Failing, Bad::Flapping, Bad::Killed], 256, 1);
}
