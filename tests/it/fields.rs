//! Header fields of all kinds of responses: fields that the node writes occur once, and a 304 has the fields
//! of the 200 (RFC 9110 §5.3, §15.4.5).

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use skerry::Clock;

use crate::harness::{Answer, Client, Edge, Origin, Request};

/// One request of a scenario; `after` seconds pass before it.
#[derive(Clone, Copy)]
struct Ask {
    method: &'static str,
    target: &'static str,
    fields: &'static [&'static str],
    after: u64,
    status: u16,
}

const fn get(target: &'static str, fields: &'static [&'static str], status: u16) -> Ask {
    ask("GET", target, fields, status)
}

const fn ask(
    method: &'static str,
    target: &'static str,
    fields: &'static [&'static str],
    status: u16,
) -> Ask {
    Ask { method, target, fields, after: 0, status }
}

const fn later(after: u64, ask: Ask) -> Ask {
    Ask { after, ..ask }
}

/// Ways in which a response comes about.
const SCENARIOS: &[(&str, &[Ask])] = &[
    ("miss and hit", &[get("/page", &[], 200), get("/page", &[], 200)]),
    ("reload", &[get("/page", &[], 200), get("/page", &["Cache-Control: no-cache"], 200)]),
    ("304 made from a miss", &[get("/page", &["If-None-Match: \"v\""], 304)]),
    (
        "304 made from a hit",
        &[get("/page", &[], 200), get("/page", &["If-None-Match: \"v\""], 304)],
    ),
    (
        "304 by date",
        &[
            get("/page", &[], 200),
            get("/page", &["If-Modified-Since: Tue, 06 Jan 2026 00:00:00 GMT"], 304),
        ],
    ),
    ("412", &[get("/page", &["If-Match: \"w\""], 412), get("/page", &["If-Match: \"w\""], 412)]),
    ("validated", &[get("/short", &[], 200), later(5, get("/short", &[], 200))]),
    (
        "304 after validation",
        &[get("/short", &[], 200), later(5, get("/short", &["If-None-Match: \"v\""], 304))],
    ),
    ("206", &[get("/page", &["Range: bytes=0-9"], 206), get("/page", &["Range: bytes=5-9"], 206)]),
    ("206 of the origin", &[get("/part", &["Range: bytes=0-9"], 206)]),
    (
        "parts",
        &[
            get("/page", &["Range: bytes=0-0,9-9"], 206),
            get("/page", &["Range: bytes=0-0,9-9"], 206),
        ],
    ),
    (
        "416",
        &[get("/page", &["Range: bytes=9000-"], 416), get("/page", &["Range: bytes=9000-"], 416)],
    ),
    ("404", &[get("/missing", &[], 404), get("/missing", &[], 404)]),
    (
        "another variant",
        &[get("/page", &["Accept-Language: de"], 200), get("/page", &["Accept-Language: fr"], 200)],
    ),
    ("not stored", &[get("/passed", &[], 200), get("/passed", &[], 200)]),
    ("304 of the origin", &[get("/bypass", &["If-None-Match: \"v\""], 304)]),
    ("POST", &[ask("POST", "/page", &[], 200)]),
    (
        "HEAD",
        &[ask("HEAD", "/page", &[], 200), get("/page", &[], 200), ask("HEAD", "/page", &[], 200)],
    ),
    ("redirect of the origin", &[get("/moved", &[], 301), get("/moved", &[], 301)]),
    ("no content", &[get("/empty", &[], 204), get("/empty", &[], 204)]),
    ("own fields", &[get("/private", &[], 200), get("/private", &[], 200)]),
    ("stale, validated behind", &[get("/while", &[], 200), later(5, get("/while", &[], 200))]),
    ("stale for an error", &[get("/error", &[], 200), later(5, get("/error", &[], 200))]),
    ("502", &[get("/broken", &[], 502)]),
    ("504", &[get("/page", &["Cache-Control: only-if-cached"], 504)]),
    ("redirect", &[get("/redirect", &[], 302)]),
    ("fixed", &[get("/fixed", &[], 200), ask("HEAD", "/fixed", &[], 200)]),
    ("denied", &[get("/denied", &[], 403)]),
    ("method", &[ask("DELETE", "/get-only", &[], 405)]),
    ("rate", &[get("/limited", &[], 200), get("/limited", &[], 429)]),
    ("purge", &[get("/page", &[], 200), ask("PURGE", "/page", &[], 200)]),
    (
        "gzip",
        &[
            get("/page", &["Accept-Encoding: gzip"], 200),
            get("/page", &["Accept-Encoding: gzip"], 200),
        ],
    ),
    (
        "br",
        &[get("/page", &["Accept-Encoding: br"], 200), get("/page", &["Accept-Encoding: br"], 200)],
    ),
    (
        "zstd",
        &[
            get("/page", &["Accept-Encoding: zstd"], 200),
            get("/page", &["Accept-Encoding: zstd"], 200),
        ],
    ),
    ("coded, passed", &[get("/passed", &["Accept-Encoding: gzip"], 200)]),
    (
        "coded HEAD and 304",
        &[
            ask("HEAD", "/page", &["Accept-Encoding: gzip"], 200),
            get("/page", &["Accept-Encoding: gzip"], 200),
            get("/page", &["Accept-Encoding: gzip", "If-None-Match: W/\"v\""], 304),
        ],
    ),
    (
        "decoded",
        &[get("/gzip", &["Accept-Encoding: br"], 200), get("/gzip", &["Accept-Encoding: br"], 200)],
    ),
];

/// Fields that must occur at most once in a response.
const ONCE: &[&str] = &[
    "accept-ranges",
    "age",
    "allow",
    "connection",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "date",
    "etag",
    "last-modified",
    "location",
    "proxy-status",
    "retry-after",
    "server",
    "transfer-encoding",
];

/// Lists in which the node names itself, or a field, once.
const MEMBERS_ONCE: &[&str] = &["cache-status", "vary", "via"];

/// The response fields of an origin behind another cache, each line twice if `twice`.
fn origin(twice: bool) -> Origin {
    let is_first = AtomicBool::new(true);
    let date = httpdate::fmt_http_date(Clock::system().now());
    Origin::start(move |request| {
        let times = if twice { 2 } else { 1 };
        let path = request.target.split('?').next().unwrap_or_default();
        let condition = request.header("if-none-match").is_some();
        let (answer, control) = match path {
            "/missing" => (Answer::status(404).body("missing"), "max-age=60"),
            "/passed" => (Answer::ok(vec![b'x'; 3000]), "no-store"),
            "/bypass" => (Answer::status(304), "no-store"),
            "/short" if condition => (Answer::status(304), "max-age=1"),
            "/short" => (Answer::ok(vec![b'x'; 3000]), "max-age=31"),
            "/moved" => (Answer::status(301).header("Location", "/page"), "max-age=60"),
            "/empty" => (Answer::status(204), "max-age=60"),
            "/private" => (
                Answer::ok(vec![b'x'; 3000]).header("X-Own", "1"),
                "max-age=60, private=\"x-own, age, date, etag, content-type\"",
            ),
            "/part" if request.header("range").is_some() => {
                let part = Answer::part("xxxxxxxxxx").header("Content-Range", "bytes 0-9/10");
                (part, "max-age=60")
            }
            "/while" => (Answer::ok(vec![b'x'; 3000]), "max-age=31, stale-while-revalidate=90"),
            "/error" if is_first.swap(false, Ordering::SeqCst) => {
                (Answer::ok("x"), "max-age=31, stale-if-error=90")
            }
            "/error" => (Answer::status(503), "no-store"),
            "/gzip" => (Answer::ok(gzipped()).header("Content-Encoding", "gzip"), "max-age=60"),
            "/broken" => return Answer::raw("HTTP/1.1 200"),
            _ => (Answer::ok(vec![b'x'; 3000]), "max-age=60"),
        };
        (0..times).fold(answer.header("Cache-Control", control), |answer, _| {
            let answer = answer
                .header("Age", "30")
                .header("Date", &date)
                .header("ETag", "\"v\"")
                .header("Last-Modified", "Tue, 06 Jan 2026 00:00:00 GMT")
                .header("Server", "origin")
                .header("Accept-Ranges", "bytes")
                .header("Content-Location", "/here");
            match path {
                "/gzip" => answer.header("Content-Type", "text/html"),
                _ => answer.header("Content-Type", "text/html").header("Vary", "Accept-Language"),
            }
        })
    })
}

/// `x` three thousand times.
fn gzipped() -> Vec<u8> {
    let pipe = "head -c 3000 /dev/zero | tr '\\0' x | gzip -c";
    Command::new("sh").args(["-c", pipe]).output().expect("gzip runs").stdout
}

fn edge_before(origin: &Origin) -> Edge {
    Edge::with(&format!(
        "[guard]\npurge_from = [\"127.0.0.0/8\"]\n[pools.main]\norigins = {:?}\n\
         [sites.all]\nhosts = \"*\"\n\
         [[sites.all.rules]]\npath = \"/redirect\"\nredirect.location = \"/page\"\n\
         [[sites.all.rules]]\npath = \"/fixed\"\nrespond.content = \"fixed\"\n\
         [[sites.all.rules]]\npath = \"/denied\"\naccess.deny = [\"127.0.0.0/8\"]\n\
         [[sites.all.rules]]\npath = \"/get-only\"\naccess.methods = [\"GET\"]\n\
         [[sites.all.rules]]\npath = \"/limited\"\nrate = {{ per_second = 0.01, burst = 1 }}\n\
         [[sites.all.rules]]\npath = \"/bypass\"\ncache.enabled = false\n",
        origin.url()
    ))
}

/// Status and fields, names in lower case.
type Head = (u16, Vec<(String, String)>);

fn over_http1(edge: &Edge, ask: &Ask, target: &str) -> Head {
    let mut client = Client::connect(edge.http);
    let response = client.request(Request {
        method: ask.method,
        host: "edge.test",
        target,
        fields: ask.fields,
        body: b"",
    });
    assert!(response.is_complete || ask.method == "HEAD", "{response:?}");
    let lower = |(name, value): (String, String)| (name.to_lowercase(), value);
    (response.status, response.headers.into_iter().map(lower).collect())
}

fn over_http2(edge: &Edge, ask: &Ask, target: &str) -> Head {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-D", "-", "-o", "/dev/null", "--http2-prior-knowledge", "--max-time", "30"]);
    match ask.method {
        "HEAD" => curl.arg("--head"),
        method => curl.args(["-X", method]),
    };
    for field in ["Host: edge.test"].iter().chain(ask.fields) {
        curl.args(["-H", field]);
    }
    curl.arg(format!("http://{}{target}", edge.http));
    let said = curl.output().expect("curl runs").stdout;
    let said = String::from_utf8(said).expect("a head is text");
    let mut lines = said.lines();
    let first = lines.next().unwrap_or_default();
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let fields = lines.filter_map(|line| line.split_once(": "));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    (status.unwrap_or_else(|| panic!("{said:?}")), fields.collect())
}

fn values<'a>(head: &'a Head, name: &str) -> Vec<&'a str> {
    let fields = head.1.iter().filter(|(other, _)| other == name);
    fields.map(|(_, value)| value.as_str()).collect()
}

/// The fields that occur more than once.
fn repeated(head: &Head) -> Vec<String> {
    let lines = ONCE.iter().filter(|name| values(head, name).len() > 1);
    let mut found: Vec<String> = lines.map(ToString::to_string).collect();
    for name in MEMBERS_ONCE {
        let lines = values(head, name).join(",").to_lowercase();
        let mut members: Vec<&str> = lines.split(',').map(str::trim).collect();
        if *name == "cache-status" {
            members.retain(|member| member.starts_with("skerry;"));
            members.truncate(if members.len() > 1 { 2 } else { members.len() });
            members = members.iter().map(|_| "edge").collect();
        }
        members.sort_unstable();
        if members.windows(2).any(|pair| pair[0] == pair[1] && !pair[0].is_empty()) {
            found.push((*name).to_owned());
        }
    }
    found
}

/// A request of a scenario, its response, and the number of upstream requests for it.
type Answered = (Ask, Head, usize);

/// Runs every scenario, each on URLs of its own: its number is their query.
fn run_all(
    edge: &Edge,
    origin: &Origin,
    over: fn(&Edge, &Ask, &str) -> Head,
    mut check: impl FnMut(&str, Answered),
) {
    for (number, (name, asks)) in SCENARIOS.iter().enumerate() {
        for ask in *asks {
            edge.advance(ask.after);
            let target = format!("{}?{number}", ask.target);
            let asked =
                || origin.received().iter().filter(|request| request.target == target).count();
            let before = asked();
            let head = over(edge, ask, &target);
            assert_eq!(head.0, ask.status, "{name}: {} {} {head:?}", ask.method, ask.target);
            check(name, (*ask, head, asked() - before));
        }
    }
}

fn stand_once(over: fn(&Edge, &Ask, &str) -> Head) {
    for twice in [false, true] {
        let origin = origin(twice);
        run_all(&edge_before(&origin), &origin, over, |name, (ask, head, _)| {
            let found = repeated(&head);
            assert!(found.is_empty(), "{name}: {found:?}: {} {} {head:?}", ask.method, ask.target);
        });
    }
}

#[test]
fn no_field_of_ours_leaves_twice_over_http_1() {
    stand_once(over_http1);
}

#[test]
fn no_field_of_ours_leaves_twice_over_http_2() {
    stand_once(over_http2);
}

#[test]
fn no_log_or_field_claims_a_hit_without_one() {
    let origin = origin(false);
    let edge = edge_before(&origin);
    let (mut all, mut hits, mut fresh, mut forwarded) = (0, 0, 0, 0);
    run_all(&edge, &origin, over_http1, |name, (_, head, asked)| {
        let status = values(&head, "cache-status").join(",");
        let is_hit = status.contains("skerry; hit");
        // The origin is asked behind it.
        let is_refreshed = status.contains("detail=stale-while-revalidate");
        assert!(!is_hit || is_refreshed || asked == 0, "{name}: {status}");
        assert_eq!(status.contains("fwd="), asked > 0 && !is_hit, "{name}: {status}");
        all += 1;
        hits += usize::from(is_hit);
        fresh += usize::from(is_hit && !status.contains("detail="));
        forwarded += usize::from(status.contains("fwd="));
    });
    let lines = edge.log(all);
    let hit_lines = lines.iter().filter(|line| line["cache"] == "hit").count();
    assert_eq!((lines.len(), hit_lines), (all, hits));
    let upstream = lines.iter().filter(|line| !line["upstream"].is_null()).count();
    assert_eq!(upstream, forwarded, "{lines:?}");
    let counted = edge.metric("skerry_cache_requests_total{result=\"hit\"");
    assert_eq!(counted, f64::from(u32::try_from(fresh).expect("few")));
}

/// The members of `Vary`, sorted, in lower case.
fn varies(head: &Head) -> Vec<String> {
    let lines = values(head, "vary").join(",").to_lowercase();
    let mut members: Vec<String> = lines.split(',').map(|name| name.trim().to_owned()).collect();
    members.sort();
    members.retain(|name| !name.is_empty());
    members
}

#[test]
fn a_304_varies_as_the_200_does() {
    let date = "If-Modified-Since: Tue, 06 Jan 2026 00:00:00 GMT";
    let tag = "If-None-Match: \"v\"";
    let origin = Origin::start(move |request| {
        let (content_type, length) = match &*request.target {
            "/image" => ("image/png", 3000),
            "/small" => ("text/html", 10),
            _ => ("text/html", 3000),
        };
        let answer = match request.header("if-none-match").or(request.header("if-modified-since")) {
            Some(_) => Answer::status(304),
            None if request.target == "/coded" => {
                Answer::ok(gzipped()).header("Content-Encoding", "gzip")
            }
            None => Answer::ok(vec![b'x'; length]).header("Content-Type", content_type),
        };
        let control = match &*request.target {
            "/bypass" => "no-store",
            "/no-transform" => "max-age=60, no-transform",
            _ => "max-age=60",
        };
        answer
            .header("Cache-Control", control)
            .header("Last-Modified", "Tue, 06 Jan 2026 00:00:00 GMT")
            .header("ETag", "\"v\"")
    });
    for over in [over_http1, over_http2] {
        for target in ["/page", "/image", "/small", "/coded", "/no-transform", "/bypass"] {
            for condition in [tag, date] {
                let coding = "Accept-Encoding: gzip";
                let edge = edge_before(&origin);
                let ask = |fields: &'static [&'static str], status| get(target, fields, status);
                let made = over(&edge, &ask(&[], 200), target);
                let plain: &'static [&'static str] = vec![condition].leak();
                let coded: &'static [&'static str] = vec![condition, coding].leak();
                for asked in [ask(plain, 304), ask(coded, 304)] {
                    let head = over(&edge, &asked, target);
                    assert_eq!(head.0, 304, "{target} {head:?}");
                    assert_eq!(
                        varies(&head),
                        varies(&made),
                        "{target} {:?} {head:?}",
                        asked.fields
                    );
                    for name in ["content-type", "content-length", "content-encoding"] {
                        assert!(values(&head, name).is_empty(), "{target} {head:?}");
                    }
                }
                edge.advance(90);
                let validated = over(&edge, &ask(plain, 304), target);
                assert_eq!(varies(&validated), varies(&made), "{target} {validated:?}");
            }
        }
    }
}

#[test]
fn fields_of_the_origin_that_contradict_each_other_are_a_502_with_a_reason() {
    let twice = |name: &'static str, value: &'static str| {
        Origin::start(move |_| {
            let answer = Answer::ok("hello").header("Content-Type", "text/plain");
            answer.header("Location", "/a").fresh_for(60).header(name, value)
        })
    };
    for (name, value) in [("Content-Type", "text/html"), ("Location", "/b")] {
        let origin = twice(name, value);
        let edge = Edge::before(&origin.url());
        for count in 1..=2 {
            let response = edge.get("/");
            assert_eq!(response.status, 502, "{name} {response:?}");
            assert_eq!(response.header("proxy-status"), "skerry; error=http_protocol_error");
            let named = format!("{} twice, with different values", name.to_lowercase());
            assert!(response.text().contains(&named), "{}", response.text());
            assert_eq!(origin.request_count(), count, "nothing is stored");
        }
        assert_eq!(edge.log(2)[0]["failure"], "fields_differ");
    }
    let length = Origin::start(|_| {
        Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 2\r\n\r\nhello")
    });
    let edge = Edge::before(&length.url());
    assert_eq!(edge.get("/").status, 502);
    let same = "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5, 5\r\n\r\nhello";
    let length = Origin::start(move |_| Answer::raw(same));
    let response = Edge::before(&length.url()).get("/");
    assert_eq!((response.status, response.text()), (200, "hello"));
    assert_eq!(response.header("content-length"), "5", "{response:?}");
}

#[test]
fn of_date_entity_tag_and_age_that_the_origin_says_twice_the_first_counts() {
    let origin = Origin::start(|_| {
        let date = httpdate::fmt_http_date(Clock::system().now());
        let answer = Answer::ok("hello").header("Date", &date).header("ETag", "\"a\"");
        let answer = answer.header("Age", "7").header("Cache-Control", "max-age=60");
        let answer = answer.header("Date", "Tue, 06 Jan 2026 00:00:00 GMT");
        answer.header("ETag", "\"b\"").header("Age", "9000")
    });
    let edge = Edge::before(&origin.url());
    for hit in [false, true] {
        let response = edge.get("/");
        assert_eq!((response.status, response.is_hit()), (200, hit), "{response:?}");
        assert_eq!(response.header("etag"), "\"a\"", "{response:?}");
        assert!(!response.header("date").contains("06 Jan"), "{response:?}");
        let age: u64 = response.header("age").parse().expect("one age");
        assert!((7..17).contains(&age), "{response:?}");
    }
}
