//! The store from outside: what is put in comes out, survives restarts, and full or failing disks.

mod bench;
mod copies;
mod crash;
mod disk_trouble;
mod forms;
mod linked_forms;
mod pending;
mod sites;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;

use rustix::fs::FallocateFlags;
use tokio::runtime::Handle;

use super::stat::{Service, SiteStat};
use super::write::WriteError;
use super::*;
use crate::cache::vary::{Variant, variant_key};
use crate::cache::{CacheKey, Freshness, PurgeScope, PurgeSequence};
use crate::clock::Clock;
use crate::metrics::{Metric, Metrics};
use crate::purge::{self, PurgeBatch};

/// A stored response under this URL.
pub(super) fn response(url: &str, stored_at_sequence: PurgeSequence) -> StoredResponse {
    let mut headers = HeaderMap::new();
    headers.append("content-type", "text/plain".parse().unwrap());
    headers.append("x-repeated", "one".parse().unwrap());
    headers.append("x-repeated", "two".parse().unwrap());
    StoredResponse {
        key: url.into(),
        variant: "".into(),
        site: "site".into(),
        status: StatusCode::OK,
        headers: headers.into(),
        freshness: Freshness {
            response_time: (SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).into(),
            initial_age: Duration::from_secs(3).into(),
            lifetime: Duration::from_secs(60).into(),
            heuristic: false,
            stale_while_revalidate: Duration::ZERO.into(),
            stale_if_error: Duration::from_secs(5).into(),
            must_revalidate: true,
            no_cache: false,
            immutable: true,
        },
        tags: [1, 2].into(),
        stored_at_sequence,
        complete_length: None,
        parts: None,
        version: http::Version::HTTP_11,
        form: None,
    }
}

pub(super) fn head(url: &str, stored_at: PurgeSequence, lineage: u64) -> StoredHead {
    StoredHead {
        response: response(url, stored_at),
        object: ObjectId(1),
        inline: Some(Bytes::from_static(b"body")),
        slice_bytes: 4096,
        checkpoint: Checkpoint::of(lineage),
        disk_state: AtomicU8::new(disk_state::MEMORY_ONLY),
        form_marks: FormMarks::default(),
        next_form: NextForm::default(),
        coding_note: AtomicU8::new(0),
    }
}

/// Bytes that tell their offset.
fn bytes(length: usize) -> Bytes {
    (0..length).map(|at| (at / 251 + at) as u8).collect()
}

fn small() -> Settings {
    Settings {
        memory_bytes: 64 << 20,
        slice_bytes: 4096,
        preallocate: false,
        // Tests must pass on a file system that is nearly full.
        disk_reserve: DiskReserve::Bytes(0),
        ..Settings::default()
    }
}

/// A purge log in a folder of the first directory; without directories in memory only.
fn purges(
    settings: &Settings,
    log: Option<&Path>,
    handle: &Handle,
) -> Result<Arc<Purges>, purge::PurgeLogError> {
    let first = settings.directories.first().map(|directory| directory.path.join("purges"));
    let directory = log.map(Path::to_owned).or(first);
    let settings = purge::Settings { directory, log_bytes: 8 << 10, ..purge::Settings::default() };
    Purges::open(&settings, &Clock::system(), &Metrics::new(1).background(), handle)
}

pub(super) async fn open(settings: &Settings) -> Store {
    open_with_log(settings, None).await
}

/// As [`open`], with the purge log in a directory of its own.
pub(super) async fn open_with_log(settings: &Settings, log: Option<&Path>) -> Store {
    let (metrics, handle) = (Metrics::new(1), Handle::current());
    // A command that another test starts has the last process' locks until it is executed.
    let purges = loop {
        match purges(settings, log, &handle) {
            Err(purge::PurgeLogError::InUse { .. }) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    loop {
        match Store::open(settings, purges.clone(), &metrics, handle.clone()).await {
            Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
            opened => {
                let here = opened.unwrap();
                here.recovered().await;
                return here;
            }
        }
    }
}

async fn close(here: &Store) {
    here.close().await;
    here.purges().close();
}

async fn store(store: &Store, url: &str, body: &Bytes) -> Arc<StoredHead> {
    let mut writer = store.writer(response(url, store.purges().sequence()));
    for piece in body.chunks(1000) {
        writer.push(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    writer.finish().await.unwrap()
}

/// An object of which no byte is stored.
fn partial(store: &Store, response: StoredResponse) -> Result<Arc<StoredHead>, WriteError> {
    let head = store.partial_to_be(response)?;
    store.show(&head);
    Ok(head)
}

async fn read(store: &Store, head: &Arc<StoredHead>, range: Range<u64>) -> Bytes {
    let body = store.body(head, range.clone());
    assert_eq!(crate::body::BodySource::exact_length(&body), Some(range.end - range.start));
    crate::body::Body::stream(body).collect().await.unwrap().to_bytes()
}

fn found(record: Option<Record>) -> Arc<StoredHead> {
    match record {
        Some(Record::Response(head)) => head,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn written_bodies_are_found_and_read_for_every_length_and_range() {
    let here = open(&small()).await;
    for length in [0, 1, 4095, 4096, 4097, 8192, 20_000] {
        let url = format!("https://a/{length}");
        let body = bytes(length);
        store(&here, &url, &body).await;
        let key = CacheKey::new(url);
        let head = found(here.in_memory(key.hash));
        assert_eq!(head.inline.is_some(), length <= 4096);
        assert_eq!(head.response.complete_length, Some(length as u64));
        let ends = [0, 1, 4095, 4096, 4097, 8191, 8192, 12_000, 20_000];
        for start in ends.iter().filter(|at| **at <= length) {
            for end in ends.iter().filter(|at| (*start..=length).contains(at)) {
                let got = read(&here, &head, *start as u64..*end as u64).await;
                assert_eq!(got, body.slice(*start..*end), "{start}..{end} of {length}");
            }
        }
    }
}

#[tokio::test]
async fn a_writer_that_is_dropped_or_cut_short_leaves_nothing_visible() {
    let here = open(&small()).await;
    let key = CacheKey::new("https://a/1");
    let mut writer = here.writer(response(&key.text, here.purges().sequence()));
    writer.push(bytes(10_000)).await.unwrap();
    drop(writer);
    assert!(here.find(key.hash).await.is_none());

    let mut promised = response(&key.text, here.purges().sequence());
    promised.complete_length = Some(10_001);
    let mut writer = here.writer(promised);
    writer.push(bytes(10_000)).await.unwrap();
    let error = writer.finish().await.unwrap_err();
    assert_eq!(error, WriteError::Length { length: 10_000, promised: 10_001 });
    assert!(here.find(key.hash).await.is_none());
}

#[tokio::test]
async fn too_long_a_body_is_refused() {
    let here = open(&Settings { object_bytes_max: 9_999, ..small() }).await;
    let mut writer = here.writer(response("https://a/1", here.purges().sequence()));
    writer.push(bytes(9_999)).await.unwrap();
    let error = writer.push(bytes(1)).await.unwrap_err();
    assert_eq!(error, WriteError::TooLarge { limit: 9_999 });
}

#[tokio::test]
async fn variants_stand_beside_each_other_under_the_list() {
    let here = open(&small()).await;
    let key = CacheKey::new("https://a/1");
    let fields = [http::header::ACCEPT_ENCODING];
    let request = |coding: &'static str| {
        HeaderMap::from_iter([(http::header::ACCEPT_ENCODING, HeaderValue::from_static(coding))])
    };
    let mut list = VaryList::default();
    for coding in ["br", "gzip"] {
        let (hash, values) = variant_key(&key, &fields, &request(coding), &["br", "gzip"]);
        let mut response = response(&key.text, here.purges().sequence());
        response.variant = values.into();
        let variant =
            Variant::new(hash, &fields, &request(coding), &response.headers, &["br", "gzip"]);
        let mut writer = here.writer(response);
        writer.push(Bytes::from(coding)).await.unwrap();
        writer.finish().await.unwrap();
        list.add(&fields, variant, 8);
    }
    here.put_variants(key.hash, list, NewVariant::Own);
    let Some(Record::Variants(list)) = here.in_memory(key.hash) else { panic!() };
    for coding in ["br", "gzip"] {
        let candidates = list.candidates(&key, &request(coding), &["br", "gzip"], false);
        let head = found(here.in_memory(candidates[0].hash));
        assert!(candidates[0].fits(&key, &head.response));
        assert_eq!(read(&here, &head, 0..head.complete_length()).await, coding);
    }
}

#[tokio::test]
async fn an_object_is_whole_when_its_last_part_has_come() {
    let here = open(&small()).await;
    let key = CacheKey::new("https://a/1");
    let body = bytes(10_000);
    let mut whole = response(&key.text, here.purges().sequence());
    whole.complete_length = Some(10_000);
    let head = partial(&here, whole).unwrap();
    assert!(here.missing(&head, 5_000..6_000).iter().eq([&(4096..8192)]));
    for number in [2, 0, 1] {
        let range = head.slice_range(number);
        let slice = body.slice(range.start as usize..range.end as usize);
        let short = here.put_slice(&head, number, slice.slice(1..)).await.unwrap_err();
        assert!(matches!(short, WriteError::SliceLength { .. }));
        here.put_slice(&head, number, slice).await.unwrap();
        // From the first head on: others may have moved on meanwhile.
        here.add_part(&head, range);
    }
    let head = found(here.in_memory(key.hash));
    assert_eq!(head.response.parts, None);
    assert_eq!(here.missing(&head, 0..10_000), []);
    assert_eq!(read(&here, &head, 0..10_000).await, body);
}

#[tokio::test]
async fn a_missing_slice_cuts_the_body_off_with_an_error() {
    let here = open(&small()).await;
    let head = store(&here, "https://a/1", &bytes(10_000)).await;
    here.tiers.memory.remove(&PieceKey::slice(head.object, 1));
    let mut body = here.body(&head, 0..10_000);
    assert!(crate::body::next_frame(&mut body).await.unwrap().is_ok());
    assert!(crate::body::next_frame(&mut body).await.unwrap().is_err());
    assert!(crate::body::next_frame(&mut body).await.is_none());
    assert!(here.missing(&head, 0..10_000).iter().eq([&(4096..8192)]));
}

#[tokio::test]
async fn a_replaced_head_keeps_its_body() {
    let here = open(&small()).await;
    let key = CacheKey::new("https://a/1");
    let old = store(&here, &key.text, &bytes(10_000)).await;
    let purge = (PurgeScope::All, PurgeKind::Soft);
    here.purges().purge(PurgeBatch { purges: vec![purge], ..PurgeBatch::default() }).await.unwrap();
    assert_eq!(here.purge_verdict(&old), Some(PurgeKind::Soft));
    let mut fields = response(&key.text, here.purges().sequence());
    fields.headers =
        [(HeaderName::from_static("x-new"), "1".parse().unwrap())].into_iter().collect();
    here.replace(&old, fields);
    let new = found(here.in_memory(key.hash));
    assert_eq!(here.purge_verdict(&new), None);
    assert_eq!(new.response.headers.to_map(0)["x-new"], "1");
    assert_eq!(read(&here, &new, 0..10_000).await, bytes(10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_makes_room_for_what_slow_readers_have() {
    let slice = 64 << 10;
    let here = open(&Settings { memory_bytes: 8 << 20, slice_bytes: slice, ..small() }).await;
    let fill = async |from: usize, count: usize| {
        for number in from..from + count {
            store(&here, &format!("https://a/{number}"), &bytes(slice)).await;
        }
    };
    fill(0, 64).await;
    assert_eq!(here.stat().held_bytes, 0, "the tier has them all");
    // As connections that take their bytes slowly do.
    let hash = |number: usize| KeyHash::of(format!("https://a/{number}").as_bytes());
    let readers: Vec<_> = (0..64).filter_map(|number| here.in_memory(hash(number))).collect();
    here.tiers.memory.evict_all();
    let held = here.stat().held_bytes;
    assert_eq!(held, readers.len() as u64 * slice as u64);
    assert!(readers.len() >= 32, "{}", readers.len());
    let all = here.tiers.settings.memory_bytes;
    let tier = async |is_right: &dyn Fn(u64) -> bool| loop {
        fill(1000, 200).await;
        if is_right(here.stat().memory_bytes) {
            return;
        }
    };
    tier(&|bytes| bytes + held <= all + all / 64).await;
    drop(readers);
    assert!(here.stat().held_bytes < held);
    tier(&|bytes| bytes > all - all / 4).await;
}

pub(super) fn on_disk(directory: &Path) -> Settings {
    Settings {
        directories: vec![Directory { path: directory.to_owned(), bytes: 64 << 20 }],
        admission: Admission::All,
        ..small()
    }
}

/// Waits until this head, and so all its slices, are on disk.
async fn written(head: &Arc<StoredHead>) {
    while head.disk_state.load(Ordering::Acquire) != disk_state::WRITTEN {
        tokio::task::yield_now().await;
    }
}

fn total(store: &Store, metric: Metric) -> u64 {
    store.tiers.recorder.metrics().total(metric, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_brings_everything_back() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { admission: Admission::Frequent, ..on_disk(directory.path()) };
    let here = open(&settings).await;
    for number in 0..500 {
        store(&here, &format!("https://a/{number}"), &bytes(number * 40)).await;
    }
    assert_eq!(total(&here, Metric::StoreDiskWrites), 0, "one-hit wonders don't wear the disk");
    close(&here).await;
    let here = open(&settings).await;
    for number in 0..500 {
        let key = CacheKey::new(format!("https://a/{number}"));
        assert!(here.in_memory(key.hash).is_none());
        let head = found(here.find(key.hash).await);
        let length = head.complete_length();
        assert_eq!(here.purge_verdict(&head), None);
        assert_eq!(here.missing(&head, 0..length), []);
        assert_eq!(read(&here, &head, 0..length).await, bytes(number * 40), "{number}");
        assert!(here.in_memory(key.hash).is_some(), "now it is in memory");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_brings_an_object_to_disk() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { admission: Admission::Frequent, ..on_disk(directory.path()) };
    let here = open(&settings).await;
    let keys = ["https://a/1", "https://a/2"].map(CacheKey::new);
    for key in &keys {
        assert!(here.find(key.hash).await.is_none());
        store(&here, &key.text, &bytes(20_000)).await;
    }
    let hot = found(here.in_memory(keys[0].hash));
    written(&hot).await;
    // As a crash would: nothing is flushed.
    here.tiers.disks.close().await;
    here.purges().close();
    let here = open(&settings).await;
    let head = found(here.find(keys[0].hash).await);
    assert_eq!(read(&here, &head, 0..20_000).await, bytes(20_000));
    assert!(here.find(keys[1].hash).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_response_does_not_come_back_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_disk(directory.path());
    let here = open(&settings).await;
    let keys = ["https://a/1", "https://a/2"].map(CacheKey::new);
    for key in &keys {
        store(&here, &key.text, &bytes(100)).await;
    }
    let purge = (PurgeScope::Url(keys[0].text.clone()), PurgeKind::Hard);
    here.purges().purge(PurgeBatch { purges: vec![purge], ..PurgeBatch::default() }).await.unwrap();
    close(&here).await;
    drop(here);
    let here = open(&settings).await;
    let verdicts = [
        here.purge_verdict(&found(here.find(keys[0].hash).await)),
        here.purge_verdict(&found(here.find(keys[1].hash).await)),
    ];
    assert_eq!(verdicts, [Some(PurgeKind::Hard), None]);
    close(&here).await;
    drop(here);
    std::fs::remove_file(directory.path().join("purges/purge.log")).unwrap();
    let here = open(&settings).await;
    let head = found(here.find(keys[1].hash).await);
    assert_eq!(here.purge_verdict(&head), Some(PurgeKind::Missed), "without its log");
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_on_disk_are_misses_and_never_wrong_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_disk(directory.path());
    let here = open(&settings).await;
    for number in 0..200 {
        store(&here, &format!("https://a/{number}"), &bytes(10_000 + number)).await;
    }
    close(&here).await;
    for block in std::fs::read_dir(directory.path().join("blocks")).unwrap() {
        let path = block.unwrap().path();
        let mut content = std::fs::read(&path).unwrap();
        for at in (1000..content.len()).step_by(23 * 4096) {
            content[at] ^= 0x40;
        }
        std::fs::write(path, content).unwrap();
    }
    let here = open(&settings).await;
    let (mut whole, mut cut) = (0, 0);
    for number in 0..200 {
        let key = CacheKey::new(format!("https://a/{number}"));
        let Some(Record::Response(head)) = here.find(key.hash).await else { continue };
        let length = head.complete_length();
        match crate::body::Body::stream(here.body(&head, 0..length)).collect().await {
            Ok(body) => {
                assert_eq!(body.to_bytes(), bytes(10_000 + number));
                whole += 1;
            }
            Err(_) => cut += 1,
        }
    }
    assert!(whole > 0, "some survived");
    assert!(whole < 200, "and some did not ({cut} were cut off)");
}

/// The store's background stands still, so that recovery takes as long as the test wants.
#[test]
fn a_store_serves_while_it_recovers_and_what_came_meanwhile_stays_the_newest() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { admission: Admission::Frequent, ..on_disk(directory.path()) };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let front = runtime();
    let keys = ["old", "replaced", "forgotten"].map(|it| CacheKey::new(format!("https://a/{it}")));
    let open = |background: &tokio::runtime::Runtime| {
        let (metrics, handle) = (Metrics::new(1), background.handle().clone());
        let purges = purges(&settings, None, &handle).unwrap();
        front.block_on(Store::open(&settings, purges, &metrics, handle)).unwrap()
    };
    let background = runtime();
    let before = open(&background);
    front.block_on(async {
        for key in &keys {
            store(&before, &key.text, &bytes(100)).await;
        }
    });
    background.block_on(close(&before));
    drop(before);

    let background = runtime();
    let here = open(&background);
    assert_eq!(here.stat().directories[0].service, Service::Recovering);
    front.block_on(async {
        for key in &keys {
            assert!(here.find(key.hash).await.is_none(), "a miss, at once");
        }
        store(&here, &keys[1].text, &bytes(200)).await;
        let new = store(&here, "https://a/new", &bytes(300)).await;
        assert_eq!(found(here.find(new.hash()).await).complete_length(), 300);
        here.forget(keys[2].hash);
    });
    background.block_on(async {
        here.recovered().await;
        assert_eq!(here.stat().directories[0].service, Service::Serving);
        assert_eq!(found(here.find(keys[0].hash).await).complete_length(), 100);
        written(&found(here.find(keys[1].hash).await)).await;
        here.tiers.memory.evict_all();
        assert_eq!(found(here.find(keys[1].hash).await).complete_length(), 200);
        assert!(here.find(keys[2].hash).await.is_none());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_one_directory_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_disk(directory.path());
    let here = open(&settings).await;
    let metrics = Metrics::new(1);
    let purges = here.purges().clone();
    let again = async || Store::open(&settings, purges.clone(), &metrics, Handle::current()).await;
    let second = again().await;
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    close(&here).await;
    drop(here);
    // A process that another test is starting has a copy of the lock until it is another program.
    while let Err(OpenError::InUse { .. }) = again().await {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_disk_hit_works_from_a_thread_of_its_own() {
    let background = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let settings = on_disk(directory.path());
    let metrics = Metrics::new(1);
    let handle = background.handle().clone();
    let purges = purges(&settings, None, &handle).unwrap();
    let opening = Store::open(&settings, purges, &metrics, handle);
    let here = background.block_on(opening).unwrap();
    background.block_on(here.recovered());
    let worker = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&worker, async {
        let key = CacheKey::new("https://a/1");
        written(&store(&here, &key.text, &bytes(50_000)).await).await;
        here.tiers.memory.evict_all();
        let head = found(here.find(key.hash).await);
        let body = tokio::task::spawn_local({
            let (here, head) = (here.clone(), head.clone());
            async move { read(&here, &head, 10..49_990).await }
        });
        assert_eq!(body.await.unwrap(), bytes(50_000).slice(10..49_990));
        close(&here).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_larger_than_memory_is_read_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        memory_bytes: 1 << 20,
        admission: Admission::Frequent,
        ..on_disk(directory.path())
    };
    let here = open(&settings).await;
    let body = bytes(8 << 20);
    let head = store(&here, "https://a/big", &body).await;
    written(&head).await;
    assert_eq!(here.missing(&head, 0..8 << 20), []);
    assert_eq!(read(&here, &head, 5..(8 << 20) - 5).await, body.slice(5..(8 << 20) - 5));
    assert_eq!(total(&here, Metric::StoreDiskDropped), 0);
}

#[tokio::test]
async fn a_late_part_does_not_bring_an_old_object_back() {
    let here = open(&small()).await;
    let key = CacheKey::new("https://a/1");
    let mut whole = response(&key.text, here.purges().sequence());
    whole.complete_length = Some(10_000);
    let old = partial(&here, whole).unwrap();
    let new = store(&here, &key.text, &bytes(100)).await;
    let range = old.slice_range(0);
    here.put_slice(&old, 0, bytes(4096)).await.unwrap();
    here.add_part(&old, range);
    assert_eq!(found(here.in_memory(key.hash)).object, new.object);
    // Nor when memory has let go of the newer one.
    here.tiers.memory.evict_all();
    here.add_part(&old, old.slice_range(1));
    assert!(here.in_memory(key.hash).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_for_one_piece_read_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let here = open(&on_disk(directory.path())).await;
    let key = CacheKey::new("https://a/1");
    written(&store(&here, &key.text, &bytes(3_000)).await).await;
    here.tiers.memory.evict_all();
    let asking: Vec<_> = (0..200)
        .map(|_| {
            let here = here.clone();
            tokio::spawn(async move { here.find(key.hash).await })
        })
        .collect();
    for asked in asking {
        found(asked.await.unwrap());
    }
    let reads = total(&here, Metric::StoreDiskReads);
    assert!(reads < 5, "{reads} reads for 200 requests");
}
