//! Measurements, not tests: `cargo test --release --lib store::tests::bench -- --ignored --nocapture
//! --test-threads 1`. The figures are in docs/benchmarks-store.md.

use std::time::Instant;

use super::super::*;
use super::{open, open_with_log, response};
use crate::cache::PurgeScope;
use crate::purge::PurgeBatch;

fn settings(objects: u64, directory: Option<&std::path::Path>) -> Settings {
    let directories = directory
        .map(|path| Directory { path: path.to_owned(), bytes: (objects * 8192).max(256 << 20) });
    Settings {
        memory_bytes: if directory.is_some() { 64 << 20 } else { (objects * 4096).max(64 << 20) },
        directories: directories.into_iter().collect(),
        preallocate: false,
        admission: Admission::All,
        write_queue_bytes: 256 << 20,
        disk_reserve: DiskReserve::Bytes(0),
        ..Settings::default()
    }
}

fn url(number: u64) -> String {
    format!("https://www.example.org/assets/images/{number:08}.html")
}

fn hash(number: u64) -> KeyHash {
    KeyHash::of(url(number).as_bytes())
}

async fn fill(store: &Store, objects: u64) {
    for number in 0..objects {
        let mut response = response(&url(number), store.purges().sequence());
        response.complete_length = Some(1024);
        let mut writer = store.writer(response);
        writer.push(Bytes::from(vec![number as u8; 1024])).await.unwrap();
        let head = writer.finish().await.unwrap();
        let queued = store.stat().directories.first().map_or(0, |disk| disk.queued_bytes);
        if number % 256 == 255 && queued > 32 << 20 {
            while head.disk_state.load(Ordering::Acquire) != disk_state::WRITTEN {
                tokio::task::yield_now().await;
            }
        }
    }
}

fn now() -> Instant {
    Instant::now()
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Numbers below `limit` in an order that no cache foresees, the same each time.
fn shuffled(limit: u64) -> impl Iterator<Item = u64> {
    (0_u64..).map(move |at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % limit)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn hits_in_memory() {
    // The most first: later ones live in what it leaves free.
    for objects in [1_000_000, 100_000, 1_000] {
        let before = resident_bytes();
        let store = open(&settings(objects, None)).await;
        fill(&store, objects).await;
        let bytes = resident_bytes().saturating_sub(before) / objects;
        let weight = store.stat().memory_bytes / store.stat().memory_pieces.max(1);
        println!("{objects} objects of 1 KiB: {weight} B weighed");
        if objects == 1_000_000 {
            println!("  {bytes} B each resident");
        }
        let hashes: Vec<_> = shuffled(objects).take(1 << 16).map(hash).collect();
        for threads in [1, 2] {
            let each = |hashes: &[KeyHash]| {
                let started = now();
                let mut found = 0;
                for _ in 0..16 {
                    found += hashes.iter().filter(|it| store.in_memory(**it).is_some()).count();
                }
                assert_eq!(found, hashes.len() * 16);
                started.elapsed().as_nanos() as f64 / found as f64
            };
            let slowest = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| each(&hashes))).collect();
                running.into_iter().map(|it| it.join().unwrap()).fold(0.0, f64::max)
            });
            println!("  in_memory, {threads} threads: {slowest:.0} ns");
        }
        let heads: Vec<_> = hashes.iter().map(|it| store.in_memory(*it)).collect();
        let verdicts = |what: &str| {
            let started = now();
            for record in &heads {
                if let Some(Record::Response(head)) = record {
                    assert_eq!(store.purge_verdict(head), None);
                }
            }
            let each = started.elapsed().as_nanos() as f64 / heads.len() as f64;
            println!("  purge_verdict, {what}: {each:.1} ns");
        };
        verdicts("first time");
        verdicts("nothing purged since");
        for number in 0..10_000 {
            let scopes = [
                PurgeScope::Prefix(format!("https://www.example.org/other/{number}").into()),
                PurgeScope::Url(format!("https://www.example.org/other/{number}").into()),
                PurgeScope::Tag(format!("tag-{number}").into()),
            ];
            let purges = scopes.map(|scope| (scope, PurgeKind::Hard)).into();
            store.purges().purge(PurgeBatch { purges, ..PurgeBatch::default() }).await.unwrap();
        }
        verdicts("after 30,000 purges of other things");
    }
}

/// The cost of a purge that covers everything in a full store, and the cost of purges for hits. The
/// figures are in docs/benchmarks-purge.md.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn purges() {
    const OBJECTS: u64 = 1_000_000;
    let directory = tempfile::tempdir_in(std::env::current_dir().unwrap().join("target")).unwrap();
    let store = open_with_log(&settings(OBJECTS, None), Some(directory.path())).await;
    for number in 0..OBJECTS {
        store_tagged(&store, &url(number), &["everywhere"]).await;
    }
    let hashes: Vec<_> = shuffled(OBJECTS).take(1 << 16).map(hash).collect();
    let heads = |hashes: &[KeyHash]| {
        let found = hashes.iter().map(|hash| match store.in_memory(*hash) {
            Some(Record::Response(head)) => head,
            _ => panic!("all are in memory"),
        });
        found.collect::<Vec<_>>()
    };
    let heads = heads(&hashes);
    println!("a hit's look at {} of {OBJECTS} objects, in no order:", heads.len());
    let status = |head: &StoredHead| usize::from(head.response.status.as_u16() == 200);
    let without = each_ns(&heads, |head| status(head));
    let with = |head: &StoredHead| status(head) + usize::from(store.purge_verdict(head).is_some());
    println!("  without purges: {without:.1} ns");
    println!("  with, first time since a purge: {:.1} ns", each_ns(&heads, with));
    println!("  with, nothing was purged since: {:.1} ns", each_ns(&heads, with));

    println!("a purge that covers all {OBJECTS} objects, in force and durable, of 200:");
    let scopes = [
        ("tag", PurgeScope::Tag("everywhere".into())),
        ("prefix", PurgeScope::Prefix("https://www.example.org/".into())),
        ("site", PurgeScope::Site((*heads[0].response.site).into())),
        ("all", PurgeScope::All),
    ];
    for (what, scope) in scopes {
        let (mut in_force, mut durable) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let purges = vec![(scope.clone(), PurgeKind::Soft)];
            let started = now();
            let purge = store.purges().put_in_force(PurgeBatch { purges, ..PurgeBatch::default() });
            let purge = purge.await.unwrap();
            in_force.push(started.elapsed());
            purge.durable().await.unwrap();
            durable.push(started.elapsed());
        }
        assert!(heads.iter().all(|head| store.purge_verdict(head) == Some(PurgeKind::Soft)));
        println!("  by {what}: {}; {}", percentiles(in_force), percentiles(durable));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_thousand_tags() {
    const OBJECTS: u64 = 10_000;
    let tags: Vec<String> = (0..1000).map(|number| format!("product-{number:06}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    for count in [0, 1, 10, 100, 1000] {
        let store = open(&settings(10 * OBJECTS, None)).await;
        let (started, before) = (now(), resident_bytes());
        for number in 0..OBJECTS {
            store_tagged(&store, &url(number), &tags[..count]).await;
        }
        let stored_us = started.elapsed().as_secs_f64() * 1e6 / OBJECTS as f64;
        let bytes = resident_bytes().saturating_sub(before) / OBJECTS;
        let heads: Vec<_> = shuffled(OBJECTS)
            .take(1 << 12)
            .map(|number| match store.in_memory(hash(number)) {
                Some(Record::Response(head)) => head,
                _ => panic!("all are in memory"),
            })
            .collect();
        let verdict = |head: &StoredHead| usize::from(store.purge_verdict(head).is_some());
        for number in 0..10_000 {
            let tag = PurgeScope::Tag(format!("other-{number}").into());
            let purges = vec![(tag, PurgeKind::Hard)];
            store.purges().purge(PurgeBatch { purges, ..PurgeBatch::default() }).await.unwrap();
        }
        let first = each_ns(&heads, verdict);
        let then = each_ns(&heads, verdict);
        println!(
            "{count} tags: stored in {stored_us:.1} µs, {bytes} B resident; verdict after a purge \
             (10,000 tags in the table) {first:.0} ns, nothing purged since {then:.1} ns"
        );
    }
}

/// Stores a body of 100 bytes, with tags as they come in a field.
async fn store_tagged(store: &Store, url: &str, tags: &[&str]) {
    let mut response = response(url, store.purges().sequence());
    response.tags = tags.iter().map(|tag| crate::cache::purge::tag_hash(tag)).collect();
    response.complete_length = Some(100);
    let mut writer = store.writer(response);
    writer.push(Bytes::from_static(&[b'x'; 100])).await.unwrap();
    writer.finish().await.unwrap();
}

fn each_ns(heads: &[Arc<StoredHead>], look: impl Fn(&StoredHead) -> usize) -> f64 {
    let started = now();
    let found: usize = heads.iter().map(|head| look(head)).sum();
    let elapsed = started.elapsed();
    std::hint::black_box(found);
    elapsed.as_nanos() as f64 / heads.len() as f64
}

fn percentiles(mut times: Vec<std::time::Duration>) -> String {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    format!("p50 {:?}, p99 {:?}, max {:?}", at(0.5), at(0.99), at(1.0))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn hits_on_disk() {
    for objects in [1_000, 100_000, 1_000_000] {
        let directory =
            tempfile::tempdir_in(std::env::current_dir().unwrap().join("target")).unwrap();
        let settings = settings(objects, Some(directory.path()));
        let store = open(&settings).await;
        let started = now();
        fill(&store, objects).await;
        store.close().await;
        store.purges().close();
        println!("{objects} objects of 1 KiB: written in {:.1} s", started.elapsed().as_secs_f64());
        drop(store);
        let before = resident_bytes();
        let started = now();
        let store = open(&settings).await;
        let opened = started.elapsed();
        store.recovered().await;
        assert!(store.find(hash(objects - 1)).await.is_some());
        let (open_ms, hit_ms) = (opened.as_millis(), started.elapsed().as_millis());
        let bytes = (resident_bytes() - before) / objects;
        println!(
            "  restart: serves after {open_ms} ms, first hit {hit_ms} ms, {bytes} B resident each"
        );
        let mut times = Vec::new();
        let mut found = 0;
        for number in shuffled(objects).take(20_000) {
            let started = now();
            found += usize::from(store.find(hash(number)).await.is_some());
            times.push(started.elapsed());
        }
        times.sort();
        println!(
            "  find: {:.1} % hits, p50 {} µs, p99 {} µs (page cache)",
            found as f64 / 200.0,
            times[times.len() / 2].as_micros(),
            times[times.len() * 99 / 100].as_micros()
        );
        let mut times = Vec::new();
        for number in objects..objects + 20_000 {
            let started = now();
            assert!(store.find(hash(number)).await.is_none());
            times.push(started.elapsed());
        }
        times.sort();
        println!(
            "  find of what is not there: p50 {} ns, p99 {} ns",
            times[times.len() / 2].as_nanos(),
            times[times.len() * 99 / 100].as_nanos()
        );
        store.close().await;
        store.purges().close();
    }
}

/// Requests for few objects that are popular and many that are asked for once: what the
/// frequency sketch saves the disk, and what it costs in hits.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn admission_over_a_replay() {
    const REQUESTS: u64 = 200_000;
    const POPULAR: u64 = 40_000;
    let mut sums = vec![0.0];
    for rank in 1..=POPULAR {
        sums.push(sums[rank as usize - 1] + (rank as f64).powf(-0.9));
    }
    for admission in [Admission::All, Admission::Frequent] {
        let directory =
            tempfile::tempdir_in(std::env::current_dir().unwrap().join("target")).unwrap();
        let settings = Settings { admission, ..settings(12_000, Some(directory.path())) };
        let settings = Settings { memory_bytes: 16 << 20, ..settings };
        let store = open(&settings).await;
        store.recovered().await;
        let (mut hits, mut popular_hits, mut popular) = (0, 0, 0);
        for at in 0..REQUESTS {
            let random = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let random = (random ^ (random >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let is_popular = random & 1 == 0;
            let place = (random >> 11) as f64 / (1_u64 << 53) as f64 * sums[POPULAR as usize];
            let number = match is_popular {
                true => sums.partition_point(|sum| *sum <= place) as u64,
                false => POPULAR + at,
            };
            let is_hit = store.find(hash(number)).await.is_some();
            if at >= REQUESTS / 2 {
                hits += u64::from(is_hit);
                popular += u64::from(is_popular);
                popular_hits += u64::from(is_hit && is_popular);
            }
            if !is_hit {
                let mut writer = store.writer(response(&url(number), store.purges().sequence()));
                writer.push(Bytes::from(vec![number as u8; 8000])).await.unwrap();
                writer.finish().await.unwrap();
            }
            while store.stat().directories[0].queued_bytes > 8 << 20 {
                tokio::task::yield_now().await;
            }
        }
        let writes =
            store.tiers.recorder.metrics().total(crate::metrics::Metric::StoreDiskWrites, 0);
        println!(
            "{admission:?}: {writes} disk writes, {:.1} % hits, {:.1} % of the popular half",
            hits as f64 * 200.0 / REQUESTS as f64,
            popular_hits as f64 * 100.0 / popular as f64
        );
        store.close().await;
        store.purges().close();
    }
}
