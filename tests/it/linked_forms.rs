//! Coded hits from disk: one record is read, and all that happens to the stored response happens to its forms.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::coding::{accept, decoded, text};
use crate::harness::victim::Victim;
use crate::harness::{Answer, Edge, Origin, Request, Response, exchange, until};

const SLICE_BYTES: usize = 16 << 10;

/// A node whose memory is small, so that [`Node::crowd`] empties it.
struct Node {
    edge: Edge,
    crowds: Cell<usize>,
}

impl Node {
    fn before(origin: &Origin) -> Self {
        let text = format!(
            "[store]\nmemory = \"2MiB\"\ndisk = \"256MiB\"\nslice = \"16KiB\"\nadmission = \"all\"\n\
             preallocate = false\n[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
            origin.url()
        );
        Self { edge: Edge::with(&text), crowds: Cell::new(0) }
    }

    fn get(&self, target: &str, coding: &str, fields: &[&str]) -> Response {
        self.edge.get_with(target, &[&[&*accept(coding)], fields].concat())
    }

    /// Requests other responses until memory has evicted those of before.
    fn crowd(&self) {
        self.crowds.set(self.crowds.get() + 1);
        for number in 0..80 {
            // Memory keeps what was requested several times longer.
            for _ in 0..3 {
                self.edge.get(&format!("/fill/{}/{number}", self.crowds.get()));
            }
        }
        self.until_quiet();
    }

    /// Waits until the disk has everything that is to be written.
    fn until_quiet(&self) {
        let writes = || self.edge.metric("skerry_store_disk_writes_total");
        let queued = || self.edge.metric("skerry_store_directory_queued_bytes");
        let mut before = -1.0;
        until("the disk's queue is empty", || {
            let now = writes();
            let is_quiet = now == before && queued() == 0.0;
            before = now;
            is_quiet
        });
    }

    /// The response in this coding, and how many records were read from disk for it.
    fn get_counted(&self, target: &str, coding: &str, fields: &[&str]) -> (Response, f64) {
        let reads = || self.edge.metric("skerry_store_disk_reads_total");
        let before = reads();
        let response = self.get(target, coding, fields);
        (response, reads() - before)
    }

    /// Stores a response and its form with br, and waits until only the disk has them.
    fn store_on_disk(&self, target: &str, fields: &[&str]) -> Response {
        self.get(target, "identity", fields);
        self.until_quiet();
        self.get(target, "br", fields);
        let coded = self.get(target, "br", fields);
        assert!(coded.is_hit(), "{:?}", coded.headers);
        self.until_quiet();
        self.crowd();
        coded
    }
}

/// Drops the pages of the disk cache from the kernel's memory, so that its next reads must wait for the disk.
fn drop_cached_pages(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            drop_cached_pages(&path);
        } else if path.ends_with("blocks/data") {
            let data = std::fs::File::open(path).expect("the disk cache");
            data.sync_all().expect("it is written");
            rustix::fs::fadvise(&data, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
        }
    }
}

fn filling(target: &str) -> Option<Answer> {
    let is_filling = target.starts_with("/fill/");
    is_filling.then(|| Answer::ok(vec![7; 60 << 10]).fresh_for(3600))
}

/// `/5000` is text of so many bytes that names its version.
fn versioned_origin(version: Arc<AtomicUsize>) -> Origin {
    Origin::start(move |request| {
        if let Some(answer) = filling(&request.target) {
            return answer;
        }
        let version = version.load(Ordering::SeqCst);
        let tag = format!("\"{version}\"");
        if request.header("if-none-match") == Some(&tag) {
            return Answer::status(304).header("ETag", &tag).header("X-Round", "2").fresh_for(60);
        }
        let kind = request.header("x-kind").unwrap_or_default();
        let content = content(version, kind, request.target[1..].parse().expect("a number"));
        let answer = Answer::ok(content).header("Content-Type", "text/html").header("ETag", &tag);
        let answer = answer.header("X-Round", "1").fresh_for(60);
        if kind.is_empty() { answer } else { answer.header("Vary", "X-Kind") }
    })
}

fn content(version: usize, kind: &str, length: usize) -> Vec<u8> {
    [format!("version {version} {kind} ").into_bytes(), text(length)].concat()
}

#[test]
fn a_coded_hit_from_disk_reads_one_record() {
    let origin = versioned_origin(Arc::default());
    let node = Node::before(&origin);
    for length in [5000, 300_000] {
        let target = format!("/{length}");
        let before = node.store_on_disk(&target, &[]);
        let (coded, reads) = node.get_counted(&target, "br", &[]);
        assert!(coded.is_hit() && coded.body == before.body, "{:?}", coded.headers);
        assert_eq!(coded.header("etag"), before.header("etag"));
        assert!(decoded("br", &coded.body) == content(0, "", length));
        // A form that is longer than a slice is read with its slices.
        let bytes = coded.body.len();
        let slices = if bytes > SLICE_BYTES { bytes.div_ceil(SLICE_BYTES) } else { 0 };
        assert_eq!(reads, 1.0 + slices as f64, "{target}: {bytes} bytes");
        // Memory is too small to keep a longer one.
        if slices == 0 {
            let (_, reads) = node.get_counted(&target, "br", &[]);
            assert_eq!(reads, 0.0, "{target}: it is in memory");
        }
        let stale = format!("If-None-Match: {}", before.header("etag"));
        node.crowd();
        let (held, reads) = node.get_counted(&target, "br", &[&stale]);
        assert_eq!((held.status, reads), (304, 1.0), "{target}");
        // Requests that need the response itself get it.
        let part = node.get(&target, "br", &["Range: bytes=0-9"]);
        assert!(part.status == 206 && part.body == before.body[..10], "{:?}", part.headers);
        let plain = node.get(&target, "identity", &[]);
        assert!(plain.body == content(0, "", length), "{target}");
        let kept = node.get(&target, "br", &["Cache-Control: no-transform"]);
        assert!(kept.body == content(0, "", length), "{target}");
    }
}

#[test]
fn a_purge_of_either_kind_reaches_a_form_that_only_the_disk_has() {
    let version = Arc::new(AtomicUsize::new(0));
    let origin = versioned_origin(version.clone());
    let node = Node::before(&origin);
    for (number, kind) in ["hard", "soft"].into_iter().enumerate() {
        // The form is on disk only, and then in memory without its source.
        for is_in_memory in [false, true] {
            node.store_on_disk("/5000", &[]);
            if is_in_memory {
                node.get("/5000", "br", &[]);
            }
            let next = version.fetch_add(1, Ordering::SeqCst) + 1;
            let soft = if kind == "soft" { ", \"soft\": true" } else { "" };
            let purge = format!("{{\"url\": \"http://edge.test/5000\"{soft}}}");
            let purged = node.edge.admin("POST", "/purge", &purge);
            assert_eq!(purged.status, 200, "{:?}", purged.text());
            let response = node.get("/5000", "br", &[]);
            let found = decoded("br", &response.body);
            assert!(found == content(next, "", 5000), "{number} {kind} {is_in_memory}");
        }
    }
}

#[test]
fn a_304_and_a_new_version_reach_a_form_that_only_the_disk_has() {
    let version = Arc::new(AtomicUsize::new(0));
    let origin = versioned_origin(version.clone());
    let node = Node::before(&origin);
    let before = node.store_on_disk("/5000", &[]);
    node.edge.advance(90);
    for (number, round) in ["2", "2"].into_iter().enumerate() {
        let response = node.get("/5000", "br", &[]);
        assert_eq!((response.is_hit(), response.header("x-round")), (number > 0, round.to_owned()));
        assert!(response.body == before.body, "a 304 keeps the bytes");
    }
    // The form may have been written before its source: it is linked when it is read.
    until("the form is linked again", || {
        node.until_quiet();
        node.crowd();
        let (response, reads) = node.get_counted("/5000", "br", &[]);
        assert!(response.is_hit() && response.body == before.body);
        assert_eq!(response.header("x-round"), "2");
        reads == 1.0
    });

    version.store(1, Ordering::SeqCst);
    node.edge.advance(90);
    // Another client has the response fetched, without a coding.
    assert!(node.get("/5000", "identity", &[]).body == content(1, "", 5000));
    node.until_quiet();
    node.crowd();
    for _ in 0..2 {
        let response = node.get("/5000", "br", &[]);
        assert!(response.is_hit() && decoded("br", &response.body) == content(1, "", 5000));
    }
}

#[test]
fn a_cookie_of_a_304_reaches_its_client_with_a_form_that_only_the_disk_has() {
    let origin = Origin::start(|request| {
        if let Some(answer) = filling(&request.target) {
            return answer;
        }
        match request.header("if-none-match") {
            Some(_) => Answer::status(304).header("Set-Cookie", "id=1").fresh_for(60),
            None => Answer::ok(text(300_000))
                .header("Content-Type", "text/html")
                .header("ETag", "\"a\"")
                .fresh_for(60),
        }
    });
    let node = Node::before(&origin);
    let before = node.store_on_disk("/page", &[]);
    // The record of the response comes into memory, that of its form does not.
    let head = node.edge.connect().request(Request {
        method: "HEAD",
        host: "edge.test",
        target: "/page",
        fields: &[&accept("identity")],
        body: b"",
    });
    assert!(head.is_hit(), "{:?}", head.headers);
    drop_cached_pages(&node.edge.path("data"));
    node.edge.advance(90);
    for (cookie, is_hit) in [("id=1", false), ("", true)] {
        let response = node.get("/page", "br", &[]);
        assert_eq!((&*response.header("set-cookie"), response.is_hit()), (cookie, is_hit));
        assert!(response.body == before.body && response.header("etag") == before.header("etag"));
        assert_eq!(response.header("vary"), "Accept-Encoding");
    }
}

#[test]
fn each_variant_has_forms_of_its_own_on_disk() {
    let origin = versioned_origin(Arc::default());
    let node = Node::before(&origin);
    for kind in ["a", "b"] {
        node.store_on_disk("/5000", &[&format!("X-Kind: {kind}")]);
    }
    for kind in ["a", "b", "a"] {
        let (response, reads) = node.get_counted("/5000", "br", &[&format!("X-Kind: {kind}")]);
        let about = format!("{kind}: {reads} reads, {:?}", response.headers);
        assert!(decoded("br", &response.body) == content(0, kind, 5000), "{about}");
        // The list of variants and the form.
        assert!(response.is_hit() && reads <= 2.0, "{about}");
    }
}

#[test]
fn links_hold_after_a_kill() {
    let origin = Origin::start(|request| {
        let content = text(request.target[1..].parse().expect("a number"));
        Answer::ok(content).header("Content-Type", "text/html").fresh_for(36_000)
    });
    let config = "[store]\nmemory = \"32MiB\"\ndisk = \"64MiB\"\nadmission = \"all\"\npreallocate = false\n\
                  [log]\naccess = \"off\"\n";
    let directory = tempfile::tempdir().expect("a folder");
    let targets: Vec<_> = (0..20).map(|number| format!("/{}", 3000 + number * 500)).collect();
    let get = |victim: &Victim, target: &str, coding: &str| {
        exchange(victim.address, "a.test", target, &[&accept(coding)])
    };
    let victim = Victim::start(directory.path(), &origin.url(), config);
    for (number, coding) in ["identity", "br"].into_iter().enumerate() {
        targets.iter().for_each(|target| drop(get(&victim, target, coding)));
        until("it is on disk", || {
            victim.metric("skerry_store_disk_writes_total") >= (20 * (number + 1)) as f64
        });
    }
    victim.kill();
    let victim = Victim::start(directory.path(), &origin.url(), config);
    until("the index has been read", || {
        let fields = [&*accept("br"), "Cache-Control: only-if-cached"];
        exchange(victim.address, "a.test", "/3000", &fields).is_hit()
    });
    for target in &targets {
        let response = get(&victim, target, "br");
        assert!(response.is_hit(), "{target}: {:?}", response.headers);
        let length = target[1..].parse().expect("a number");
        assert!(decoded("br", &response.body) == text(length), "{target}");
    }
    assert_eq!(victim.metric("skerry_store_disk_reads_total"), 20.0);
    assert_eq!(victim.metric("skerry_bodies_encoded_total"), 0.0);
}
