//! Content coding: what a client gets decodes to the origin's bytes, a stored response is recoded once for each
//! coding, and the recoded form is part of its stored response.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_compression::codecs::{BrotliDecoder, DecodeV2};
use async_compression::core::util::{PartialBuffer, WriteBuffer};

use crate::harness::victim::Victim;
use crate::harness::{Answer, Client, Edge, Gate, Origin, Random, Request, exchange, until};

const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];
const BROWSER: &str = "Accept-Encoding: gzip, deflate, br, zstd";

/// Text with some structure.
pub fn text(bytes: usize) -> Vec<u8> {
    let mut random = Random(bytes as u64);
    let mut text = Vec::with_capacity(bytes + 64);
    while text.len() < bytes {
        let (class, word) = (random.below(61), random.below(1 << 24));
        text.extend_from_slice(format!("<p class=\"w{class}\">{word:x}</p>\n").as_bytes());
    }
    text.truncate(bytes);
    text
}

/// The output of the coding's own program.
pub fn decoded(coding: &str, input: &[u8]) -> Vec<u8> {
    match coding {
        "" | "identity" => input.to_vec(),
        coding => piped(coding, "-dc", input),
    }
}

pub fn encoded(coding: &str, input: &[u8]) -> Vec<u8> {
    piped(coding, "-c", input)
}

fn piped(coding: &str, argument: &str, input: &[u8]) -> Vec<u8> {
    let program = if coding == "br" { "brotli" } else { coding };
    let mut child = Command::new(program)
        .arg(argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let (mut stdin, input) = (child.stdin.take().expect("piped"), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("the program ends");
    let _ = writer.join().expect("no panic");
    output.stdout
}

pub fn accept(coding: &str) -> String {
    format!("Accept-Encoding: {coding}")
}

pub fn html(body: impl Into<Vec<u8>>) -> Answer {
    Answer::ok(body).header("Content-Type", "text/html").header("ETag", "\"v1\"").fresh_for(60)
}

fn encoded_count(edge: &Edge, coding: &str) -> f64 {
    edge.metric(&format!("skerry_bodies_encoded_total{{coding=\"{coding}\""))
}

/// An origin that sends the number of bytes in the target, `/5000` or in chunks `/5000/chunked`.
fn sized_origin() -> Origin {
    Origin::start(|request| {
        let mut parts = request.target[1..].split('/');
        let bytes = parts.next().and_then(|bytes| bytes.parse().ok()).expect("a number");
        let answer = html(text(bytes));
        if parts.next() == Some("chunked") { answer.chunked() } else { answer }
    })
}

#[test]
fn every_size_and_framing_comes_back_from_every_coding() {
    let origin = sized_origin();
    let edge = Edge::before(&origin.url());
    for bytes in [0, 1, 255, 256, 16_384, 16_385, 65_535, 65_536, 65_537, 5 << 20] {
        for framing in ["", "/chunked"] {
            let target = format!("/{bytes}{framing}");
            for coding in CODINGS {
                // A miss for the first coding, then hits: the first of each makes the form.
                for number in 0..3 {
                    let response = edge.get_with(&target, &[&accept(coding)]);
                    let about = format!("{target} {coding} {number}: {:?}", response.headers);
                    assert!(response.is_complete, "{about}");
                    let found = response.header("content-encoding");
                    assert!(found == coding || (found.is_empty() && bytes < 256), "{about}");
                    assert!(decoded(&found, &response.body) == text(bytes), "{about}");
                    if number == 2 {
                        let length = response.header("content-length");
                        assert_eq!(length, response.body.len().to_string(), "{about}");
                        assert!(response.is_hit(), "{about}");
                    }
                }
            }
            assert!(edge.get(&target).body == text(bytes), "{target} without a coding");
        }
    }
}

#[test]
fn a_stored_response_is_recoded_once_for_each_coding() {
    let origin = sized_origin();
    let edge = Edge::before(&origin.url());
    for (number, target) in ["/5000", "/300000"].into_iter().enumerate() {
        for coding in CODINGS {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..4 {
                            let response = edge.get_with(target, &[&accept(coding)]);
                            assert!(response.is_complete, "{target} {coding}");
                        }
                    });
                }
            });
            // Two workers may begin with short content at the same time.
            let count = encoded_count(&edge, coding) - number as f64;
            let most = if number == 0 { 2.0 } else { 3.0 };
            assert!((1.0..=most).contains(&count), "{target} {coding}: {count}");
        }
    }
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn one_stored_object_serves_all_codings_whatever_the_origin_sent() {
    let zipped = |coding: &str| {
        let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        coder.write_all(&text(200_000)).expect("memory");
        (coding.to_owned(), coder.finish().expect("memory"))
    };
    for (sent, body) in [(String::new(), text(200_000)), zipped("gzip")] {
        let coding = sent.clone();
        let origin = Origin::start(move |_| {
            let answer = html(body.clone()).header("Vary", "Accept-Encoding");
            if coding.is_empty() { answer } else { answer.header("Content-Encoding", &coding) }
        });
        let edge = Edge::before(&origin.url());
        for _ in 0..2 {
            for accepted in ["br", "gzip", "zstd", "identity", "deflate", "gzip;q=0.1, br;q=0.2"] {
                let response = edge.get_with("/", &[&accept(accepted)]);
                let found = response.header("content-encoding");
                let expected = match accepted {
                    "identity" | "deflate" => "",
                    "gzip;q=0.1, br;q=0.2" => "br",
                    coding => coding,
                };
                assert_eq!(found, expected, "origin {sent:?}, {accepted}");
                assert!(decoded(&found, &response.body) == text(200_000), "{sent:?} {accepted}");
                assert_eq!(response.header("vary"), "Accept-Encoding", "{sent:?} {accepted}");
            }
        }
        // A browser takes what the origin chose.
        let browser = edge.get_with("/", &[BROWSER]).header("content-encoding");
        assert_eq!(browser, if sent.is_empty() { "zstd" } else { "gzip" });
        let requests = origin.received();
        assert_eq!(requests.len(), 1, "{sent:?}");
        assert_eq!(requests[0].header("accept-encoding"), Some("zstd, br, gzip"));
    }
}

#[test]
fn the_dictionaries_of_clients_make_no_variants() {
    let origin = Origin::start(|request| {
        for name in ["available-dictionary", "dictionary-id"] {
            assert_eq!(request.header(name), None);
        }
        html(text(5000)).header("Vary", "accept-encoding, available-dictionary")
    });
    let edge = Edge::before(&origin.url());
    for number in 0..3 {
        let dictionary =
            format!("Available-Dictionary: :{number}pZGm1Av0IEBKARczz7exkNYsZb8LzaMrV7J32a2fFG=:");
        let accepted = "Accept-Encoding: gzip, deflate, br, zstd, dcb, dcz";
        let response = edge.get_with("/", &[accepted, &dictionary, "Dictionary-ID: \"a\""]);
        assert_eq!(response.header("content-encoding"), "zstd");
        assert_eq!(response.is_hit(), number > 0, "{:?}", response.headers);
    }
    assert_eq!(origin.request_count(), 1);
}

#[test]
fn each_coding_has_an_entity_tag_of_its_own_and_each_revalidates() {
    let origin = sized_origin();
    let edge = Edge::before(&origin.url());
    for target in ["/5000", "/300000"] {
        let mut tags = vec![edge.get(target).header("etag")];
        for coding in CODINGS {
            edge.get_with(target, &[&accept(coding)]);
            let stored = edge.get_with(target, &[&accept(coding)]).header("etag");
            assert!(stored.starts_with(&format!("\"v1~{coding}.")), "{stored}");
            tags.push(stored);
        }
        tags.push("W/\"v1~br\"".to_owned());
        for tag in &tags {
            for accepted in ["identity", "br", "gzip"] {
                let condition = format!("If-None-Match: \"x\", {tag}");
                let response = edge.get_with(target, &[&accept(accepted), &condition]);
                assert_eq!((response.status, response.header("etag")), (304, tag.clone()));
                assert_eq!(response.header("vary"), "Accept-Encoding", "{tag}");
                let held = edge.get_with(target, &[&accept(accepted), &format!("If-Match: {tag}")]);
                assert_eq!(held.status, 200, "{tag} {accepted}");
                let other = edge.get_with(target, &[&accept(accepted), "If-Match: \"v2\""]);
                assert_eq!(other.status, 412, "{tag} {accepted}");
            }
        }
    }
}

#[test]
fn a_range_is_of_the_negotiated_form_and_continues_only_the_same_bytes() {
    let origin = sized_origin();
    let edge = Edge::before(&origin.url());
    for target in ["/5000", "/1000000"] {
        edge.get_with(target, &[&accept("br")]);
        let whole = edge.get_with(target, &[&accept("br")]);
        let plain = edge.get(target);
        let (range, tag) = ("Range: bytes=100-", format!("If-Range: {}", whole.header("etag")));
        for condition in [None, Some(&*tag)] {
            let mut fields = vec!["Accept-Encoding: br", range];
            fields.extend(condition);
            let part = edge.get_with(target, &fields);
            assert_eq!((part.status, part.header("content-encoding")), (206, "br".to_owned()));
            assert!(part.body == whole.body[100..], "{target}");
            let length = whole.body.len();
            let expected = format!("bytes 100-{}/{length}", length - 1);
            assert_eq!(part.header("content-range"), expected);
        }
        let other = edge.get_with(target, &["Accept-Encoding: identity", range, &tag]);
        assert_eq!((other.status, other.body == plain.body), (200, true), "other bytes");
        let same = format!("If-Range: {}", plain.header("etag"));
        let part = edge.get_with(target, &["Accept-Encoding: identity", range, &same]);
        assert!(part.status == 206 && part.body == plain.body[100..]);
        let beyond = edge.get_with(target, &["Accept-Encoding: br", "Range: bytes=9000000-"]);
        let expected = format!("bytes */{}", whole.body.len());
        assert_eq!((beyond.status, beyond.header("content-range")), (416, expected));
    }
}

/// `curl -C -` and `wget -c` send no `If-Range`, and would append compressed bytes to what they have.
#[test]
fn a_range_is_never_of_a_coding_that_the_client_does_not_accept() {
    for length in [5000, 1_000_000] {
        let zipped = encoded("gzip", &text(length));
        let origin =
            Origin::start(move |_| html(zipped.clone()).header("Content-Encoding", "gzip"));
        let edge = Edge::before(&origin.url());
        let stored = edge.get_with("/", &[&accept("gzip")]);
        let range = "Range: bytes=100-";
        // Until the decoded form is stored, the whole is sent.
        let of_decoded = |fields: &[&str]| {
            let response = edge.get_with("/", fields);
            assert_eq!(response.header("content-encoding"), "", "{fields:?} {length}");
            let from = if response.status == 206 { 100 } else { 0 };
            assert!(response.body == text(length)[from..], "{fields:?} {length}");
            response.status
        };
        assert_eq!(of_decoded(&[range]), 200);
        until("a range of the decoded form", || of_decoded(&[range]) == 206);
        assert_eq!(of_decoded(&[range, &accept("identity")]), 206);
        assert_eq!(of_decoded(&[range, &accept("gzip;q=0")]), 206);
        // The client has bytes of the stored coding, and says so.
        let same = format!("If-Range: {}", stored.header("etag"));
        let rest = edge.get_with("/", &[range, &same]);
        assert_eq!((rest.status, rest.header("content-encoding")), (206, "gzip".to_owned()));
        assert!(rest.body == stored.body[100..], "{length}");
    }
}

#[test]
fn a_download_continues_in_the_form_in_which_it_began() {
    let origin = Origin::start(|request| {
        let answer = html(text(request.target[1..].parse().expect("a number")));
        answer.header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
    });
    let edge = Edge::before(&origin.url());
    let range = "Range: bytes=100-";
    for target in ["/5000", "/1000000"] {
        let plain = edge.get(target);
        let tag = format!("If-Range: {}", plain.header("etag"));
        let date = format!("If-Range: {}", plain.header("last-modified"));
        // Before and after the form is stored.
        for _ in 0..2 {
            let rest = edge.get_with(target, &["Accept-Encoding: br", range, &tag]);
            assert_eq!((rest.status, rest.header("content-encoding")), (206, String::new()));
            assert!(rest.body == plain.body[100..], "{target}");
            // All forms have this date: a part could be joined to bytes of another.
            let whole = edge.get_with(target, &["Accept-Encoding: br", range, &date]);
            assert_eq!((whole.status, whole.header("content-encoding")), (200, "br".to_owned()));
            assert!(decoded("br", &whole.body) == plain.body, "{target}");
        }
        // A client that accepts no coding has bytes without one.
        let rest = edge.get_with(target, &[range, &date]);
        assert!(rest.status == 206 && rest.body == plain.body[100..], "{target}");
    }
}

/// A date is the same for all forms: the client may have bytes of one that it got from another node.
#[test]
fn a_date_continues_no_download_of_text_that_is_fetched_just_now() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |request| {
        let body = text(3_000_000);
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes="));
        let answer = match range.and_then(|range| range.split_once('-')) {
            Some((first, last)) => {
                let first: usize = first.parse().expect("a number");
                let last = last.parse().unwrap_or(usize::MAX).min(body.len() - 1);
                let place = format!("bytes {first}-{last}/{}", body.len());
                Answer::part(&body[first..=last]).header("Content-Range", &place)
            }
            None => Answer::ok(body).pause_at(1_000_000, &held),
        };
        let kind = if request.target.ends_with("film") { "video/mp4" } else { "text/html" };
        let answer = answer.header("Content-Type", kind).header("ETag", "\"v1\"").fresh_for(60);
        answer.header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
    });
    let edge = Edge::before(&origin.url());
    let date = "If-Range: Mon, 01 Jan 2024 00:00:00 GMT";
    let fields = ["Accept-Encoding: br", "Range: bytes=2000000-2000099", date];
    let check = |target: &str, fields: &[&str]| {
        let whole = edge.get_with(target, fields);
        assert_eq!((whole.status, &*whole.header("content-encoding")), (200, "br"), "{target}");
        assert!(decoded("br", &whole.body) == text(3_000_000), "{target}");
    };
    // Nothing is stored, and the origin is asked for a range.
    check("/text", &fields);
    // A fill that has begun.
    let before = origin.request_count();
    std::thread::scope(|scope| {
        scope.spawn(|| edge.get("/filled"));
        origin.wait_for_requests(before + 1);
        let follower = scope.spawn(|| check("/filled", &fields));
        gate.open();
        follower.join().expect("the follower");
    });
    // A film is not coded for any client.
    let part = edge.get_with("/film", &fields);
    assert!(part.status == 206 && part.body == text(3_000_000)[2_000_000..2_000_100]);
}

#[test]
fn a_coded_response_that_must_not_be_changed_is_asked_for_again_without_the_coding() {
    let origin = Origin::start(|request| {
        let accepted = request.header("accept-encoding").unwrap_or_default();
        let answer = match accepted.contains("gzip") {
            true => html(encoded("gzip", &text(5000))).header("Content-Encoding", "gzip"),
            false => html(text(5000)),
        };
        answer.header("Cache-Control", "no-transform")
    });
    let edge = Edge::before(&origin.url());
    let check = |fields: &[&str], coding: &str, requests: usize| {
        let response = edge.get_with("/", fields);
        assert_eq!(response.header("content-encoding"), coding, "{fields:?}");
        assert!(decoded(coding, &response.body) == text(5000), "{fields:?}");
        assert_eq!(response.header("vary"), "Accept-Encoding", "{fields:?}");
        assert_eq!(origin.request_count(), requests, "{fields:?}");
    };
    check(&[], "", 2);
    check(&[BROWSER], "gzip", 2);
    check(&["Accept-Encoding: br"], "", 3);
    check(&[BROWSER], "gzip", 3);
    check(&["Cache-Control: only-if-cached"], "gzip", 3);
    let head = edge.connect().request(Request {
        method: "HEAD",
        host: "edge.test",
        target: "/",
        fields: &[],
        body: b"",
    });
    assert_eq!((head.status, head.header("content-encoding")), (200, String::new()));
}

/// Parts cannot be decoded, so they must be of identity, whatever codings the site asks for.
#[test]
fn an_origin_is_asked_for_ranges_of_identity() {
    let body = text(3 << 20);
    let origin = Origin::start(move |request| {
        let coded = request.header("accept-encoding") != Some("identity");
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes="));
        let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
            return Answer::ok("whole").header("X-Coded", &coded.to_string());
        };
        let first: usize = first.parse().expect("a number");
        let last = last.parse().unwrap_or(usize::MAX).min(body.len() - 1);
        let total = body.len();
        Answer::part(&body[first..=last])
            .header("Content-Range", &format!("bytes {first}-{last}/{total}"))
            .header("Content-Encoding", if coded { "br" } else { "identity" })
            .header("Content-Type", "text/plain")
            .header("ETag", "\"v1\"")
            .fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    let expected = text(3 << 20);
    for start in [0_usize, 2_000_000, 1_000_000] {
        let range = format!("Range: bytes={start}-{}", start + 99);
        let part = edge.get_with("/film", &[BROWSER, &range]);
        assert_eq!(part.status, 206, "{part:?}");
        assert!(part.body == expected[start..start + 100]);
    }
    for request in origin.received() {
        assert_eq!(request.header("accept-encoding"), Some("identity"), "{request:?}");
    }
}

#[test]
fn a_purge_or_a_new_version_takes_the_forms_along() {
    let version = AtomicUsize::new(0);
    let origin = Origin::start(move |request| {
        let version = match request.header("if-none-match") {
            Some(_) => version.load(Ordering::SeqCst) + 1,
            None => version.fetch_add(1, Ordering::SeqCst) + 1,
        };
        let length = request.target[1..].parse().expect("a number");
        let body = [format!("version {version} ").into_bytes(), text(length)].concat();
        html(body)
    });
    let edge = Edge::before(&origin.url());
    for target in ["/5000", "/300000"] {
        let mut seen = Vec::new();
        for _ in 0..3 {
            for coding in ["br", "gzip", "br"] {
                let response = edge.get_with(target, &[&accept(coding)]);
                let found = decoded(coding, &response.body);
                seen.push(String::from_utf8_lossy(&found[..10]).into_owned());
            }
            assert_eq!(edge.purge(target).status, 200);
        }
        for round in seen.chunks(3) {
            assert!(round.iter().all(|version| *version == round[0]), "{seen:?}");
        }
        assert!(seen[0] != seen[3] && seen[3] != seen[6], "{seen:?}");
        edge.advance(3600);
        let stale = edge.get_with(target, &[&accept("br")]);
        let found = decoded("br", &stale.body);
        assert_ne!(String::from_utf8_lossy(&found[..10]), seen[8], "a new version");
    }
}

#[test]
fn a_304_keeps_the_bytes_of_the_forms_and_renews_their_fields() {
    let origin = Origin::start(|request| match request.header("if-none-match") {
        Some(tag) => {
            assert_eq!(tag, "\"v1\"", "the origin's own tag");
            Answer::status(304).header("ETag", "\"v1\"").header("X-Round", "2").fresh_for(60)
        }
        None => html(text(request.target[1..].parse().expect("a number"))).header("X-Round", "1"),
    });
    let edge = Edge::before(&origin.url());
    for (number, target) in ["/5000", "/300000"].into_iter().enumerate() {
        edge.get_with(target, &[&accept("br")]);
        let before = edge.get_with(target, &[&accept("br")]);
        assert_eq!(before.header("x-round"), "1");
        edge.advance(90);
        for hit in [false, true, true] {
            let after = edge.get_with(target, &[&accept("br")]);
            assert_eq!((after.is_hit(), after.header("x-round")), (hit, "2".to_owned()));
            assert!(after.body == before.body && after.header("etag") == before.header("etag"));
            assert_eq!(after.header("content-length"), before.header("content-length"));
        }
        assert_eq!(encoded_count(&edge, "br"), number as f64 + 1.0, "{target}");
        let stale = format!("If-None-Match: {}", before.header("etag"));
        edge.advance(90);
        assert_eq!(edge.get_with(target, &[&accept("br"), &stale]).status, 304);
    }
}

#[test]
fn head_says_what_get_says() {
    let origin = sized_origin();
    let edge = Edge::before(&origin.url());
    for target in ["/5000", "/300000"] {
        for accepted in ["br", "identity"] {
            edge.get_with(target, &[&accept(accepted)]);
            let get = edge.get_with(target, &[&accept(accepted)]);
            let head = edge.connect().request(Request {
                method: "HEAD",
                host: "edge.test",
                target,
                fields: &[&accept(accepted)],
                body: b"",
            });
            for name in ["content-length", "content-encoding", "etag", "vary", "content-type"] {
                assert_eq!(head.header(name), get.header(name), "{target} {accepted} {name}");
            }
        }
    }
}

/// A client that decodes what comes, as it comes.
struct StreamClient {
    curl: Child,
    decoder: Option<BrotliDecoder>,
}

impl StreamClient {
    /// curl decodes gzip and zstd itself. Of brotli it holds back what one read decodes to beyond 16 KiB, until more
    /// comes: libbrotli then asks for input while it has output, and curl asks no further.
    fn start(edge: &Edge, coding: &str) -> Self {
        let mut curl = Command::new("curl");
        curl.args(["-sN", "--max-time", "60", "-H", &accept(coding), "-H", "Host: edge.test"]);
        let decoder = (coding == "br").then(BrotliDecoder::new);
        if decoder.is_none() {
            curl.arg("--compressed");
        }
        curl.arg(format!("http://{}/", edge.http)).stdout(Stdio::piped());
        Self { curl: curl.spawn().expect("curl runs"), decoder }
    }

    /// Reads until `length` bytes have come, or all.
    fn read(&mut self, length: usize) -> Vec<u8> {
        let (mut decoded, mut piece) = (Vec::new(), [0; 4096]);
        while decoded.len() < length {
            let count = self.curl.stdout.as_mut().expect("piped").read(&mut piece);
            let piece = &piece[..count.expect("curl writes")];
            if piece.is_empty() {
                break;
            }
            match &mut self.decoder {
                Some(decoder) => decode(decoder, piece, &mut decoded),
                None => decoded.extend_from_slice(piece),
            }
        }
        decoded
    }

    fn leave(mut self) {
        self.curl.kill().expect("it runs");
        self.curl.wait().expect("it ends");
    }
}

/// Decodes all that `input` gives.
fn decode(decoder: &mut BrotliDecoder, input: &[u8], decoded: &mut Vec<u8>) {
    let (mut input, mut scratch) = (PartialBuffer::new(input), [0; 4096]);
    loop {
        let mut output = WriteBuffer::new_initialized(&mut scratch);
        decoder.decode(&mut input, &mut output).expect("valid brotli");
        decoded.extend_from_slice(output.written());
        if input.unwritten().is_empty() && output.written().is_empty() {
            return;
        }
    }
}

#[test]
fn the_origins_pause_does_not_hold_back_what_it_sent() {
    for coding in CODINGS {
        let gate = Gate::default();
        let open = gate.clone();
        let origin = Origin::start(move |_| html(text(400_000)).pause_at(100_000, &gate));
        let edge = Edge::before(&origin.url());
        let start = || {
            let mut client = StreamClient::start(&edge, coding);
            // Content from before the pause can be decoded before the origin goes on.
            assert!(client.read(100_000) == text(400_000)[..100_000], "{coding}");
            client
        };
        // The first client, for whose request the content is fetched and coded, leaves in the middle; the others get the rest, and
        // so do later ones.
        let (first, others) = (start(), [start(), start()]);
        first.leave();
        open.open();
        for mut client in others {
            assert!(client.read(usize::MAX) == text(400_000)[100_000..], "{coding}");
            assert!(client.curl.wait().expect("curl ends").success(), "{coding}");
        }
        let after = edge.get_with("/", &[&accept(coding)]);
        assert!(decoded(coding, &after.body) == text(400_000), "{coding}");
        assert_eq!((origin.request_count(), encoded_count(&edge, coding)), (1, 1.0), "{coding}");
    }
}

#[test]
fn an_origin_that_breaks_off_breaks_off_every_coding_and_stores_none() {
    let requests = AtomicUsize::new(0);
    let origin = Origin::start(move |_| {
        // Without an entity tag the rest cannot be requested.
        let answer = Answer::ok(text(300_000)).header("Content-Type", "text/html").fresh_for(60);
        if requests.fetch_add(1, Ordering::SeqCst) == 0 {
            answer.cut_after(200_000)
        } else {
            answer
        }
    });
    let edge = Edge::before(&origin.url());
    let cut = edge.get_with("/", &[&accept("gzip")]);
    assert!(!cut.is_complete, "{:?}", cut.headers);
    for _ in 0..2 {
        let whole = edge.get_with("/", &[&accept("gzip")]);
        assert!(whole.is_complete && decoded("gzip", &whole.body) == text(300_000));
    }
}

#[test]
fn the_origin_gets_conditions_in_its_own_tags() {
    let origin = Origin::start(|_| Answer::ok("changed"));
    let edge = Edge::before(&origin.url());
    let sent = "If-Match: \"v1~br.0000000a\"";
    edge.connect().request(Request {
        method: "PUT",
        host: "edge.test",
        target: "/",
        fields: &[sent],
        body: b"new",
    });
    let request = &origin.received()[0];
    let tags: Vec<_> =
        request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("if-match")).collect();
    let tags = tags.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ");
    assert_eq!(tags, "\"v1~br.0000000a\", \"v1\"");
}

#[test]
fn a_site_decides_what_is_coded() {
    let origin = Origin::start(|request| {
        let answer = Answer::ok(text(5000)).fresh_for(60);
        match &*request.target {
            "/events" | "/listed" => answer.header("Content-Type", "text/event-stream"),
            "/secret" => answer.header("Content-Type", "text/html").header("Set-Cookie", "a=b"),
            "/coded-secret" => {
                assert_eq!(request.header("accept-encoding"), Some("gzip"));
                html(encoded("gzip", &text(5000)))
                    .header("Content-Encoding", "gzip")
                    .header("Set-Cookie", "a=b")
            }
            "/no-transform" => {
                let answer = Answer::ok(text(5000)).header("Content-Type", "text/html");
                answer.header("Cache-Control", "max-age=60, no-transform")
            }
            _ => answer.header("Content-Type", "text/html"),
        }
    });
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         compression = {{ private = false, origin_codings = [\"gzip\"] }}\n\
         [[sites.all.rules]]\npath = \"/listed\"\n\
         compression = {{ content_types = [\"text/event-stream\"], codings = [\"gzip:9\"] }}\n",
        origin.url()
    ));
    for _ in 0..2 {
        for (target, fields, expected) in [
            ("/page", &[BROWSER][..], "zstd"),
            ("/page", &["Accept-Encoding: *"], "gzip"),
            ("/page", &["Accept-Encoding: identity;q=0, br"], "br"),
            ("/page", &[BROWSER, "Cache-Control: no-transform"], ""),
            ("/page", &[BROWSER, "Authorization: x"], ""),
            ("/events", &[BROWSER], ""),
            ("/listed", &[BROWSER], "gzip"),
            ("/secret", &[BROWSER], ""),
            // The origin codes it as it is asked to, and a client that does not accept that gets it decoded.
            ("/coded-secret", &[BROWSER], "gzip"),
            ("/coded-secret", &["Accept-Encoding: br"], ""),
            ("/coded-secret", &[], ""),
            ("/no-transform", &[BROWSER], ""),
        ] {
            let response = edge.get_with(target, fields);
            let found = response.header("content-encoding");
            assert_eq!(found, expected, "{target} {fields:?}");
            assert!(decoded(&found, &response.body) == text(5000), "{target} {fields:?}");
        }
    }
    assert!(origin.received().iter().all(|it| it.header("accept-encoding") == Some("gzip")));
}

#[test]
fn a_reload_applies_to_responses_whose_forms_are_stored() {
    let origin = sized_origin();
    let config = |compression: &str| {
        format!(
            "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\ncompression = {{ {compression} }}\n",
            origin.url()
        )
    };
    let edge = Edge::with(&config("content_types = [\"text/html\"]"));
    let coding = |target: &str| {
        let response = edge.get_with(target, &[&accept("br")]);
        let found = response.header("content-encoding");
        assert!(decoded(&found, &response.body) == text(target[1..].parse().expect("a number")));
        found
    };
    for target in ["/5000", "/300000"] {
        edge.get(target);
        for (compression, expected) in [
            ("content_types = [\"text/html\"]", "br"),
            ("content_types = [\"text/css\"]", ""),
            ("bytes_min = \"1MiB\"", ""),
            ("content_types = [\"text/html\"]", "br"),
        ] {
            edge.reload(&config(compression)).expect("a good file");
            for _ in 0..2 {
                assert_eq!(coding(target), expected, "{target} {compression}");
            }
        }
    }
}

#[test]
fn clients_of_both_http_versions_decode_to_the_same_bytes() {
    let origin = sized_origin();
    let edge = Edge::before(&origin.url());
    for bytes in [1, 256, 16_384, 65_537, 5 << 20] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            for coding in CODINGS {
                for _ in 0..2 {
                    let mut curl = Command::new("curl");
                    curl.args(["-s", "--compressed", "--max-time", "60", version]);
                    curl.args(["-H", "Host: edge.test", "-H", &accept(coding)]);
                    let output = curl.arg(format!("http://{}/{bytes}", edge.http)).output();
                    let output = output.expect("curl runs").stdout;
                    assert!(output == text(bytes), "{bytes} {version} {coding}");
                }
            }
        }
    }
}

#[test]
fn forms_after_a_kill_are_right_or_made_again_and_those_of_a_purged_response_are_gone() {
    let version = std::sync::Arc::new(AtomicUsize::new(1));
    let now = version.clone();
    let body = |key: usize, version: usize| {
        [format!("{key} {version} ").into_bytes(), text(2000 + key * 9000)].concat()
    };
    let origin = Origin::start(move |request| {
        let key = request.target[1..].parse().expect("a number");
        let version = now.load(Ordering::SeqCst);
        let answer = Answer::ok(body(key, version)).header("Content-Type", "text/html");
        answer.header("ETag", &format!("\"{version}\"")).fresh_for(36_000)
    });
    let config = "[store]\nmemory = \"32MiB\"\ndisk = \"256MiB\"\nadmission = \"all\"\n\
                  preallocate = false\n[log]\naccess = \"off\"\n";
    let directory = tempfile::tempdir().expect("a folder");
    let keys = 0..40;
    let get = |victim: &Victim, key: usize, coding: &str| {
        let fields = [&*accept(coding)];
        exchange(victim.address, "a.test", &format!("/{key}"), &fields)
    };
    let victim = Victim::start(directory.path(), &origin.url(), config);
    for key in keys.clone() {
        for coding in ["br", "gzip", "br"] {
            get(&victim, key, coding);
        }
    }
    version.store(2, Ordering::SeqCst);
    for key in keys.clone().step_by(4) {
        let purge = format!("{{\"url\": \"http://a.test/{key}\"}}");
        let purged = Client::connect(victim.admin).request(Request {
            method: "POST",
            host: "localhost",
            target: "/purge",
            fields: &["Content-Type: application/json"],
            body: purge.as_bytes(),
        });
        assert_eq!(purged.status, 200, "{purged:?}");
    }
    victim.kill();
    let victim = Victim::start(directory.path(), &origin.url(), config);
    let mut hits = 0;
    for key in keys.clone() {
        for coding in ["br", "gzip", "zstd", "identity"] {
            let response = get(&victim, key, coding);
            let found = decoded(&response.header("content-encoding"), &response.body);
            let is_purged = key % 4 == 0;
            let is_old = found == body(key, 1);
            assert!(is_old && !is_purged || found == body(key, 2), "{key} {coding}");
            hits += usize::from(response.is_hit() && is_old);
        }
    }
    assert!(hits >= 60, "nearly all are still there: {hits} of 120");
}

#[test]
fn coded_request_content_is_decoded_for_origins_that_cannot() {
    let origin = Origin::start(|_| Answer::ok("fine"));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\naccess.content_max = \"2MiB\"\n\
         compression = {{ decode_requests = true, decode_ratio_max = 100 }}\n",
        origin.url()
    ));
    let post = |fields: &[&str], body: &[u8]| {
        edge.connect().request(Request {
            method: "POST",
            host: "edge.test",
            target: "/",
            fields,
            body,
        })
    };
    for coding in CODINGS {
        let header = format!("Content-Encoding: {coding}");
        let content = text(1_000_000);
        assert_eq!(post(&[&header], &encoded(coding, &content)).status, 200, "{coding}");
        let request = origin.received().pop().expect("a request");
        assert!(request.body == content, "{coding}");
        assert_eq!(request.header("content-encoding"), None, "{coding}");

        // Longer than the rule allows, and a bomb: the origin sees no end of either.
        let (before, long) = (origin.request_count(), encoded(coding, &text(3_000_000)));
        assert_eq!(post(&[&header], &long).status, 413, "{coding}");
        let bomb = encoded(coding, &vec![0; 64 << 20]);
        assert_eq!(post(&[&header], &bomb).status, 413, "{coding}");
        assert_eq!(post(&[&header], b"not coded").status, 400, "{coding}");
        assert_eq!(origin.request_count(), before, "{coding}");
    }
    // Content that cannot be decoded passes as it is.
    for field in ["Content-Encoding: deflate", "Content-Encoding: gzip, br", "X-Plain: 1"] {
        assert_eq!(post(&[field], b"as it is").status, 200);
        assert_eq!(origin.received().pop().expect("a request").body, b"as it is", "{field}");
    }
}

#[test]
fn a_bomb_to_the_node_or_through_it_is_refused_with_little_memory() {
    const BOMB_BYTES: usize = 128 << 20;
    let bombs = CODINGS.map(|coding| (coding, encoded(coding, &vec![0; BOMB_BYTES])));
    let sent = bombs.clone();
    let origin = Origin::start(move |request| {
        let bomb = sent.iter().find(|(coding, _)| request.target == format!("/{coding}"));
        let Some((coding, bomb)) = bomb else { return Answer::ok("fine") };
        html(bomb.clone()).header("Content-Encoding", coding)
    });
    let directory = tempfile::tempdir().expect("a folder");
    // A site beside that of `--origin`, which has no options, with the same pool.
    let config = "[store]\nmemory = \"32MiB\"\ndisk = \"none\"\n[sites.all]\nhosts = \"a.test\"\n\
                  compression = { decode_requests = true, decode_bytes_max = \"16MiB\" }\n";
    let node = Victim::start(directory.path(), &origin.url(), config);
    for (coding, bomb) in &bombs {
        let before = node.memory_bytes_max();
        let plain = exchange(node.address, "a.test", &format!("/{coding}"), &[&accept("identity")]);
        assert!(
            !plain.is_complete && plain.body.len() <= 16 << 20,
            "{coding}: {}",
            plain.body.len()
        );
        let to_us = node.memory_bytes_max();
        let requests = origin.request_count();
        let refused = Client::connect(node.address).request(Request {
            method: "POST",
            host: "a.test",
            target: "/upload",
            fields: &[&format!("Content-Encoding: {coding}")],
            body: bomb,
        });
        assert_eq!(refused.status, 413, "{coding}");
        assert_eq!(origin.request_count(), requests, "{coding}: the origin has no whole request");
        let grown = [to_us - before, node.memory_bytes_max() - to_us].map(|bytes| bytes >> 20);
        println!("{coding}: {} bytes, memory grew by {grown:?} MiB", bomb.len());
        assert!(grown.iter().all(|mib| *mib <= 48), "{coding}: {grown:?} MiB");
    }
}

#[test]
fn request_content_is_encoded_for_origins_that_accept_it() {
    let origin = Origin::start(|_| Answer::ok("fine"));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         compression.encode_requests = \"gzip\"\n",
        origin.url()
    ));
    for (content_type, length, coding) in [
        ("application/json", 50_000, Some("gzip")),
        ("image/png", 50_000, None),
        ("text/html", 9, None),
    ] {
        let content = text(length);
        let answer = edge.connect().request(Request {
            method: "PUT",
            host: "edge.test",
            target: "/",
            fields: &[&format!("Content-Type: {content_type}")],
            body: &content,
        });
        assert_eq!(answer.status, 200, "{content_type}");
        let request = origin.received().pop().expect("a request");
        assert_eq!(request.header("content-encoding"), coding, "{content_type}");
        assert!(decoded(coding.unwrap_or_default(), &request.body) == content, "{content_type}");
    }
}

/// A page that loads each of the targets and reports the length of each, and a hash of its bytes.
const DECODER_PAGE: &str = r#"<!doctype html><script>
const report = (said) => fetch('/report', { method: 'POST', body: said.join('\n') })
const load = async (target) => {
  const response = await fetch(target)
  const bytes = new Uint8Array(await response.arrayBuffer())
  let hash = 0
  for (const byte of bytes) hash = (Math.imul(hash, 31) + byte) >>> 0
  return target + ' ' + response.headers.get('content-encoding') + ' ' + bytes.length + ' ' + hash
}
const all = async () => {
  const said = []
  for (const target of TARGETS) said.push(await load(target))
  await report(said)
}
all().catch((error) => report(['' + error]))
</script>"#;

/// A browser that opens a page and keeps nothing that it has loaded.
fn browser(profile: &Path, url: &str) -> Child {
    Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--ignore-certificate-errors", "--no-proxy-server", "--disk-cache-size=1"])
        .arg("--remote-debugging-port=0")
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(url)
        .stderr(Stdio::null())
        .spawn()
        .expect("chromium is on the PATH")
}

#[test]
fn a_browser_decodes_every_coding_to_the_origins_bytes() {
    let sizes = [0_usize, 1, 255, 256, 65_535, 65_536, 65_537, 5 << 20];
    let target = |coding: &str, bytes: usize, framing: &str, number: usize| {
        format!("/{coding}/{bytes}{framing}?{number}")
    };
    let mut targets = Vec::new();
    let mut expected = Vec::new();
    for coding in CODINGS {
        for bytes in sizes {
            let hash = text(bytes)
                .iter()
                .fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
            for framing in ["", "/chunked"] {
                // A miss, the hit that makes the form, and a hit of the form: the query is not part of the key.
                for number in 0..3 {
                    let target = target(coding, bytes, framing, number);
                    // Short content is not coded, unless its length is unknown.
                    let codings = if bytes < 256 { vec![coding, "null"] } else { vec![coding] };
                    let line = |coding| format!("{target} {coding} {bytes} {hash}");
                    expected.push(codings.into_iter().map(line).collect::<Vec<_>>());
                    targets.push(target);
                }
            }
        }
    }
    let page = DECODER_PAGE.replace("TARGETS", &serde_json::json!(targets).to_string());
    let origin = Origin::start(move |request| {
        let path = request.target.split('?').next().expect("a path");
        let mut parts = path[1..].split('/').skip(1);
        match (request.method.as_str(), parts.next().and_then(|bytes| bytes.parse().ok())) {
            ("GET", Some(bytes)) => {
                let answer = html(text(bytes));
                if parts.next() == Some("chunked") { answer.chunked() } else { answer }
            }
            ("GET", None) if path == "/page" => {
                Answer::ok(page.as_bytes()).header("Content-Type", "text/html")
            }
            _ => Answer::ok("").header("Cache-Control", "no-store"),
        }
    });
    // A browser asks for zstd only over TLS.
    let edge = Edge::with_tls(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\ncache.key.query = \"none\"\n\
         compression.codings = []\n{}",
        origin.url(),
        CODINGS
            .map(|coding| format!(
                "[[sites.all.rules]]\npath_prefix = \"/{coding}/\"\ncompression.codings = [{coding:?}]\n"
            ))
            .concat()
    ));
    let profile = tempfile::tempdir().expect("a temporary folder");
    let page = format!("https://{}/page", edge.https.expect("TLS"));
    let mut chromium = browser(profile.path(), &page);
    let report = || {
        let requests = origin.received().into_iter();
        requests.filter(|request| request.method == "POST").map(|request| request.body).next()
    };
    let until = Instant::now() + Duration::from_secs(180);
    while report().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    chromium.kill().expect("it runs");
    chromium.wait().expect("it ended");
    let report = String::from_utf8(report().expect("a report")).expect("text");
    let lines: Vec<_> = report.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{report}");
    for (line, expected) in lines.iter().zip(&expected) {
        assert!(expected.iter().any(|one| one == line), "{line}: expected {expected:?}");
    }
}
