//! Forms of often requested responses, which are coded again at a high level in the background.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::coding::{accept, decoded, encoded, html, text};
use crate::harness::victim::Victim;
use crate::harness::{Answer, Edge, Origin, Response, exchange, until};

const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];

/// Bodies of one slice and of several.
const TARGETS: [&str; 2] = ["/3000", "/40000"];

fn config(origin: &Origin, compression: &str, hot_forms: &str) -> String {
    format!(
        "[pools.main]\norigins = {:?}\n[store]\nslice = \"8KiB\"\ndisk = \"none\"\n[hot_forms]\n{hot_forms}\n\
         [sites.all]\nhosts = \"*\"\n[sites.all.compression]\n{compression}\n",
        origin.url()
    )
}

/// Codes again after the first hit that is counted, without a rest.
fn eager(origin: &Origin) -> Edge {
    Edge::with(&config(origin, "hot_requests = 1", "cpu_percent = 100"))
}

/// An origin that sends the number of bytes in the target, with validators.
fn sized_origin() -> Origin {
    Origin::start(|request| match request.header("if-none-match") {
        Some(_) => Answer::status(304).header("ETag", "\"v1\"").fresh_for(60),
        None => html(text(request.target[1..].parse().expect("a number"))),
    })
}

fn outcomes(edge: &Edge, outcome: &str) -> f64 {
    edge.metric(&format!("skerry_hot_forms_total{{outcome=\"{outcome}\""))
}

/// Requests again until `is_enough`; one of sixteen hits is counted.
#[track_caller]
fn get_until(
    edge: &Edge,
    target: &str,
    coding: &str,
    is_enough: impl Fn(&Response) -> bool,
) -> Response {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let response = edge.get_with(target, &[&accept(coding)]);
        if is_enough(&response) {
            return response;
        }
        assert!(Instant::now() < deadline, "{target} {coding}: {:?}", response.headers);
    }
}

/// The form before and after it was coded again.
#[track_caller]
fn hot(edge: &Edge, target: &str, coding: &str) -> (Response, Response) {
    edge.get_with(target, &[&accept(coding)]);
    let before = edge.get_with(target, &[&accept(coding)]);
    let length = before.body.len();
    (before, get_until(edge, target, coding, |now| now.body.len() < length))
}

#[test]
fn an_often_requested_response_is_coded_again_to_fewer_bytes_of_the_same_content() {
    let origin = sized_origin();
    let edge = eager(&origin);
    for target in TARGETS {
        let content = text(target[1..].parse().expect("a number"));
        for coding in CODINGS {
            let (before, after) = hot(&edge, target, coding);
            let about = format!("{target} {coding}: {:?}", after.headers);
            assert!(decoded(coding, &after.body) == content, "{about}");
            assert!(after.is_hit() && after.is_complete, "{about}");
            assert_eq!(after.header("content-length"), after.body.len().to_string(), "{about}");
            assert_ne!(after.header("etag"), before.header("etag"), "other bytes: {about}");
            // A client that has the content with the earlier tag need not load it again, and one that has a
            // part of the earlier bytes must.
            let condition = format!("If-None-Match: {}", before.header("etag"));
            assert_eq!(edge.get_with(target, &[&accept(coding), &condition]).status, 304);
            let resume = [
                &*accept(coding),
                "Range: bytes=10-",
                &format!("If-Range: {}", before.header("etag")),
            ];
            assert_eq!(edge.get_with(target, &resume).status, 200);
            let resume = [
                &*accept(coding),
                "Range: bytes=10-",
                &format!("If-Range: {}", after.header("etag")),
            ];
            let part = edge.get_with(target, &resume);
            assert_eq!((part.status, &part.body[..]), (206, &after.body[10..]), "{about}");
        }
    }
    assert_eq!(origin.request_count(), 2);
    // A form is counted after it is stored.
    until("all are counted", || edge.metric("skerry_hot_form_cpu_seconds_count") == 6.0);
    assert_eq!(outcomes(&edge, "smaller"), 6.0);
    assert!(edge.metric("skerry_hot_form_saved_bytes_total") > 0.0);
}

#[test]
fn content_that_the_origin_coded_is_decoded_and_coded_again() {
    let origin = Origin::start(|_| {
        let zipped = encoded("gzip", &text(40_000));
        html(zipped).header("Content-Encoding", "gzip")
    });
    let edge = eager(&origin);
    let (_, after) = hot(&edge, "/", "br");
    assert!(decoded("br", &after.body) == text(40_000));
    // Content that the origin coded stays as it is.
    let stored = edge.get_with("/", &[&accept("gzip")]);
    assert!(stored.body == encoded("gzip", &text(40_000)));
}

#[test]
fn a_form_that_would_not_become_shorter_keeps_its_bytes_and_is_not_tried_again() {
    let origin = sized_origin();
    let compression = "codings = [\"gzip:9\"]\nhot_codings = [\"gzip:1\"]\nhot_requests = 1";
    let edge = Edge::with(&config(&origin, compression, "cpu_percent = 100"));
    edge.get_with("/3000", &[&accept("gzip")]);
    let before = edge.get_with("/3000", &[&accept("gzip")]);
    get_until(&edge, "/3000", "gzip", |_| outcomes(&edge, "kept") > 0.0);
    // A validation makes a new record of the source, which has not been offered.
    edge.advance(90);
    for _ in 0..200 {
        let now = edge.get_with("/3000", &[&accept("gzip")]);
        assert_eq!((now.header("etag"), now.body), (before.header("etag"), before.body.clone()));
    }
    assert_eq!(outcomes(&edge, "kept"), 1.0);
}

#[test]
fn a_validation_keeps_a_hot_form_and_a_purge_takes_it_along() {
    let version = AtomicUsize::new(1);
    let origin = Origin::start(move |request| {
        let tag = format!("\"{}\"", version.load(Ordering::SeqCst));
        if request.header("if-none-match") == Some(&tag) {
            return Answer::status(304).header("ETag", &tag).fresh_for(60);
        }
        let version = version.fetch_add(usize::from(request.target == "/purged"), Ordering::SeqCst);
        let answer = Answer::ok([format!("{version} ").into_bytes(), text(3000)].concat());
        answer.header("Content-Type", "text/html").header("ETag", &tag).fresh_for(60)
    });
    let edge = eager(&origin);
    let (_, after) = hot(&edge, "/kept", "br");
    edge.advance(90);
    for is_hit in [false, true, true] {
        let validated = edge.get_with("/kept", &[&accept("br")]);
        assert_eq!((validated.is_hit(), &validated.body), (is_hit, &after.body));
        assert_eq!(validated.header("etag"), after.header("etag"));
    }
    let (_, before) = hot(&edge, "/purged", "br");
    assert!(decoded("br", &before.body).starts_with(b"1 "));
    assert_eq!(edge.purge("/purged").status, 200);
    let (_, after) = hot(&edge, "/purged", "br");
    assert!(decoded("br", &after.body).starts_with(b"2 "));
}

#[test]
fn nothing_is_coded_again_before_enough_hits_or_where_it_is_off() {
    let origin = sized_origin();
    let off = ["hot_codings = []\nhot_requests = 1", "hot_requests = 1000000"];
    for compression in off {
        let edge = Edge::with(&config(&origin, compression, "cpu_percent = 100"));
        for _ in 0..300 {
            edge.get_with("/3000", &[&accept("br")]);
        }
        assert_eq!(edge.metric("skerry_hot_forms_total"), 0.0, "{compression}");
    }
    let edge = Edge::with(&config(&origin, "hot_requests = 1", "cpu_percent = 0"));
    for _ in 0..300 {
        edge.get_with("/3000", &[&accept("br")]);
    }
    assert_eq!(edge.metric("skerry_hot_forms_total"), 0.0);
    edge.reload(&config(&origin, "hot_requests = 1", "cpu_percent = 100")).expect("it is valid");
    hot(&edge, "/3000", "br");
}

#[test]
fn forms_that_the_queue_has_no_room_for_are_counted_and_offered_again() {
    let origin = sized_origin();
    // The thread rests for long after the first one, and a second one waits.
    let edge = Edge::with(&config(&origin, "hot_requests = 1", "cpu_percent = 1\nqueue_max = 1"));
    let deadline = Instant::now() + Duration::from_secs(120);
    while outcomes(&edge, "queue-full") == 0.0 {
        for length in 40_001..40_005 {
            edge.get_with(&format!("/{length}"), &[&accept("br")]);
        }
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn hot_forms_after_a_kill_are_whole_or_those_of_before() {
    let origin = sized_origin();
    let config = "[store]\nmemory = \"32MiB\"\ndisk = \"256MiB\"\nadmission = \"all\"\n\
                  preallocate = false\nslice = \"8KiB\"\n[hot_forms]\ncpu_percent = 100\n\
                  [defaults.compression]\nhot_requests = 1\n[log]\naccess = \"off\"\n";
    let directory = tempfile::tempdir().expect("a folder");
    let targets = || (0..20).map(|number| format!("/{}", 2000 + 2000 * number));
    let get = |victim: &Victim, target: &str| {
        exchange(victim.address, "a.test", target, &[&*accept("zstd")])
    };
    let victim = Victim::start(directory.path(), &origin.url(), config);
    for _ in 0..40 {
        for target in targets() {
            get(&victim, &target);
        }
    }
    victim.kill();
    let victim = Victim::start(directory.path(), &origin.url(), config);
    let mut hits = 0;
    for target in targets() {
        let response = get(&victim, &target);
        assert!(response.is_complete, "{target}");
        let content = text(target[1..].parse().expect("a number"));
        assert!(
            decoded(&response.header("content-encoding"), &response.body) == content,
            "{target}"
        );
        hits += usize::from(response.is_hit());
    }
    assert!(hits > 10, "nearly all are still there: {hits} of 20");
}
