//! The store from outside: what is put in comes out, survives restarts, and full or failing disks.

mod bench;
mod copies;
mod crash;
mod forms;
mod linked_forms;
mod pending;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;

use rustix::fs::FallocateFlags;
use tokio::runtime::Handle;

use super::stat::{Service, SiteStat};
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
async fn what_was_written_is_found_and_read_for_every_length_and_range() {
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

fn on_disk(directory: &Path) -> Settings {
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
async fn what_was_purged_does_not_come_back_from_disk() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_in_trouble_is_left_out_and_comes_back() {
    let first = tempfile::tempdir().unwrap();
    let second = tempfile::tempdir().unwrap();
    let mut settings = on_disk(first.path());
    settings.directories.extend(on_disk(second.path()).directories);
    settings.disk_retry = Duration::from_secs(3600);
    let here = open(&settings).await;
    let keys: Vec<_> = (0..64).map(|number| CacheKey::new(format!("https://a/{number}"))).collect();
    for key in &keys {
        written(&store(&here, &key.text, &bytes(100)).await).await;
    }
    here.tiers.memory.evict_all();
    here.tiers.disks.fail(0);
    let mut found_now = 0;
    for key in &keys {
        found_now += usize::from(here.find(key.hash).await.is_some());
    }
    assert!((1..64).contains(&found_now), "{found_now} are on the other disk");
    assert_eq!(here.stat().directories[0].service, Service::Out);
    here.tiers.disks.try_again(0).await;
    assert_eq!(here.stat().directories[0].service, Service::Serving);
    for key in &keys {
        let head = found(here.find(key.hash).await);
        let verdict = here.purge_verdict(&head);
        // The records that a disk missed while it was out are not known.
        assert!(matches!(verdict, None | Some(PurgeKind::Missed)));
    }
    assert_eq!(total(&here, Metric::StoreDiskOuts), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_opened_leaves_the_node_serving() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("blocks"), "a file where a directory should be").unwrap();
    let settings = Settings { disk_retry: Duration::from_millis(50), ..on_disk(&path) };
    let here = open(&settings).await;
    let key = CacheKey::new("https://a/1");
    store(&here, &key.text, &bytes(100)).await;
    assert!(here.find(key.hash).await.is_some());
    assert_eq!(here.stat().directories[0].service, Service::Out);
    std::fs::remove_file(path.join("blocks")).unwrap();
    while here.stat().directories[0].service != Service::Serving {
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

async fn store_for(here: &Store, site: &str, url: &str, body: &Bytes) -> Arc<StoredHead> {
    let of_site = StoredResponse { site: site.into(), ..response(url, here.purges().sequence()) };
    let mut writer = here.writer(of_site);
    writer.push(body.clone()).await.unwrap();
    writer.finish().await.unwrap()
}

fn site(here: &Store, name: &str) -> SiteStat {
    here.stat().sites.into_iter().find(|site| &*site.site == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_are_counted_in_memory_and_on_disk_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { sites_max: 2, ..on_disk(directory.path()) };
    let here = open(&settings).await;
    for number in 0..10 {
        for (name, length) in [("large", 10_000), ("small", 100)] {
            let url = format!("https://{name}/{number}");
            written(&store_for(&here, name, &url, &bytes(length)).await).await;
        }
    }
    store_for(&here, "third", "https://third/", &bytes(10)).await;
    store_for(&here, "fourth", "https://fourth/", &bytes(10)).await;
    let (large, small, others) =
        (site(&here, "large"), site(&here, "small"), site(&here, "(others)"));
    assert_eq!((large.memory_objects, small.memory_objects, others.memory_objects), (10, 10, 2));
    assert!((100_000..130_000).contains(&large.memory_bytes), "{large:?}");
    let total = large.memory_bytes + small.memory_bytes + others.memory_bytes;
    assert_eq!(total, here.stat().memory_bytes, "nothing is counted twice, or not at all");
    here.forget(KeyHash::of(b"https://large/0"));
    assert_eq!(site(&here, "large").memory_objects, 9);
    close(&here).await;
    assert_eq!(site(&here, "large").memory_bytes, 0, "a stop empties memory");
    drop(here);
    let here = open(&settings).await;
    here.tiers.disks.count_sites(false).await;
    let (large, small) = (site(&here, "large"), site(&here, "small"));
    assert!((9..=10).contains(&large.disk_objects) && small.disk_objects == 10, "{large:?}");
    // A head and three slices, each with its header.
    assert!(large.disk_bytes >= 9 * 10_000 && small.disk_bytes >= 10 * 100, "{large:?}");
    let text = here.tiers.recorder.metrics().encode();
    assert!(text.contains("skerry_store_site_disk_bytes{site=\"large\"}"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_over_its_share_loses_its_own_oldest_and_writes_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let share = SiteShare { site: "greedy".to_owned(), percent_max: 10 };
    let settings =
        Settings { memory_bytes: 4 << 20, site_shares: vec![share], ..on_disk(directory.path()) };
    let here = open(&settings).await;
    let modest = store_for(&here, "modest", "https://modest/", &bytes(4000)).await;
    for number in 0..2000 {
        let url = format!("https://greedy/{number}");
        store_for(&here, "greedy", &url, &bytes(4000)).await;
    }
    let greedy = site(&here, "greedy");
    let max = greedy.memory_bytes_max.unwrap();
    assert!(greedy.memory_bytes <= max && greedy.memory_bytes > max / 2, "{greedy:?}");
    assert!(here.in_memory(modest.hash()).is_some(), "the others lose nothing");
    assert!(here.in_memory(KeyHash::of(b"https://greedy/1999")).is_some(), "the newest stays");
    let disk_max = greedy.disk_bytes_max.unwrap();
    while total(&here, Metric::StoreDiskOverShare) == 0 {
        for number in 0..1000 {
            let url = format!("https://greedy/more/{number}");
            store_for(&here, "greedy", &url, &bytes(16_000)).await;
        }
    }
    let queued_at_most = settings.write_queue_bytes as u64;
    assert!(site(&here, "greedy").disk_bytes <= disk_max + queued_at_most);
    written(&store_for(&here, "modest", "https://modest/2", &bytes(4000)).await).await;
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
async fn a_file_cut_off_while_it_is_used_gives_misses_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let here = open(&on_disk(directory.path())).await;
    for number in 0..200 {
        written(&store(&here, &format!("https://a/{number}"), &bytes(3_000 + number)).await).await;
    }
    here.tiers.memory.evict_all();
    let data = directory.path().join("blocks/data");
    std::fs::OpenOptions::new().write(true).open(data).unwrap().set_len(300_000).unwrap();
    let (mut whole, mut failed) = (0, 0);
    for number in 0..200 {
        let key = CacheKey::new(format!("https://a/{number}"));
        match here.look_up(key.hash).await {
            Ok(Some(Record::Response(head))) => {
                let length = head.complete_length();
                assert_eq!(read(&here, &head, 0..length).await, bytes(3_000 + number));
                whole += 1;
            }
            found => {
                assert_eq!(found.map(|_| ()), Err(ReadFailed), "told from what is not there");
                assert!(here.look_up(key.hash).await.unwrap().is_none(), "gone from then on");
                failed += 1;
            }
        }
    }
    assert!((1..200).contains(&whole), "{whole}");
    assert_eq!(total(&here, Metric::StoreDiskErrors), failed, "each was told");
    assert_eq!(here.stat().directories[0].service, Service::Serving);
    let again = store(&here, "https://a/199", &bytes(500)).await;
    written(&again).await;
    here.tiers.memory.evict_all();
    assert_eq!(found(here.find(again.hash()).await).complete_length(), 500);
}

/// A disk with a file system of its own, in a file. `None` where mounting is not permitted.
struct LoopDisk {
    mounted: tempfile::TempDir,
    image: tempfile::NamedTempFile,
}

impl LoopDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let (mounted, image) =
            (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        image.as_file().set_len(bytes).unwrap();
        let disk = Self { mounted, image };
        let made = disk.run("mkfs.ext4", &["-q", "-O", "^has_journal", &disk.image()]);
        let is_mounted = made && disk.run("mount", &["-o", "loop", &disk.image(), &disk.path()]);
        if !is_mounted {
            println!("skipped, no loop device can be mounted");
        }
        is_mounted.then_some(disk)
    }

    fn path(&self) -> String {
        self.mounted.path().display().to_string()
    }

    fn image(&self) -> String {
        self.image.path().display().to_string()
    }

    /// Whether every write waits from now on.
    fn freeze(&self, frozen: bool) -> bool {
        self.run("fsfreeze", &[if frozen { "-f" } else { "-u" }, &self.path()])
    }

    fn run(&self, command: &str, arguments: &[&str]) -> bool {
        let ran = std::process::Command::new(command).args(arguments).output();
        ran.is_ok_and(|output| output.status.success())
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        self.freeze(false);
        self.run("umount", &["-l", &self.path()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stalls_is_left_out_and_comes_back() {
    let Some(disk) = LoopDisk::mount(96 << 20) else { return };
    let log = tempfile::tempdir().unwrap();
    let settings = Settings {
        disk_deadline: Duration::from_millis(500),
        disk_retry: Duration::from_millis(20),
        ..on_disk(disk.mounted.path())
    };
    let here = open_with_log(&settings, Some(log.path())).await;
    let before = store(&here, "https://a/before", &bytes(10_000)).await;
    written(&before).await;
    assert!(disk.freeze(true));
    let during = store(&here, "https://a/during", &bytes(10_000)).await;
    while here.stat().directories[0].service != Service::Out {
        tokio::task::yield_now().await;
    }
    assert_eq!(total(&here, Metric::StoreDiskOuts), 1);
    assert!(here.in_memory(during.hash()).is_some(), "the node serves on");
    let more = store(&here, "https://a/more", &bytes(300)).await;
    assert_eq!(found(here.find(more.hash()).await).complete_length(), 300);
    assert!(here.find(KeyHash::of(b"https://a/never")).await.is_none());
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let threads_then = threads();
    tokio::time::sleep(10 * settings.disk_retry).await;
    assert!(threads() < threads_then + 8, "each try holds a thread that the last one holds");

    assert!(disk.freeze(false));
    while here.stat().directories[0].service != Service::Serving {
        tokio::task::yield_now().await;
    }
    written(&store(&here, "https://a/after", &bytes(10_000)).await).await;
    here.tiers.memory.evict_all();
    let head = found(here.find(before.hash()).await);
    assert_eq!(
        here.purge_verdict(&head),
        Some(PurgeKind::Missed),
        "it may have missed a newer one"
    );
    assert_eq!(read(&here, &head, 0..10_000).await, bytes(10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_the_disk_fails_are_misses_and_are_told() {
    let Some(disk) = LoopDisk::mount(96 << 20) else { return };
    let log = tempfile::tempdir().unwrap();
    let settings = on_disk(disk.mounted.path());
    let here = open_with_log(&settings, Some(log.path())).await;
    for number in 0..100 {
        written(&store(&here, &format!("https://a/{number}"), &bytes(3_000)).await).await;
    }
    here.tiers.memory.evict_all();
    // Nothing of the file is left in the page cache, and nothing of the disk beneath it.
    let data = File::open(disk.mounted.path().join("blocks/data")).unwrap();
    rustix::fs::fsync(&data).unwrap();
    rustix::fs::fadvise(&data, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    disk.image.as_file().set_len(1 << 20).unwrap();
    for number in 0..100 {
        let key = CacheKey::new(format!("https://a/{number}"));
        if let Some(Record::Response(head)) = here.find(key.hash).await {
            assert_eq!(read(&here, &head, 0..3_000).await, bytes(3_000));
        }
    }
    assert!(total(&here, Metric::StoreDiskErrors) > 0, "what failed was told");
    let again = store(&here, "https://a/1", &bytes(400)).await;
    assert_eq!(found(here.find(again.hash()).await).complete_length(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_read_only_at_the_start_leaves_the_node_serving() {
    let Some(disk) = SmallDisk::mount(80 << 20) else { return };
    let remount = |how: &str| {
        let mut command = std::process::Command::new("mount");
        let output = command.args(["-o", &format!("remount,{how}")]).arg(disk.0.path()).output();
        assert!(output.unwrap().status.success());
    };
    remount("ro");
    let log = tempfile::tempdir().unwrap();
    let settings = Settings { disk_retry: Duration::from_millis(20), ..on_disk(disk.0.path()) };
    let here = open_with_log(&settings, Some(log.path())).await;
    let head = store(&here, "https://a/1", &bytes(100)).await;
    assert!(here.find(head.hash()).await.is_some());
    assert_eq!(here.stat().directories[0].service, Service::Out);
    assert!(total(&here, Metric::StoreDiskOuts) > 0);
    remount("rw");
    while here.stat().directories[0].service != Service::Serving {
        tokio::task::yield_now().await;
    }
    written(&store(&here, "https://a/2", &bytes(100)).await).await;
}

/// A file system of its own that is soon full. `None` where mounting is not permitted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(directory)),
            other => {
                println!("skipped, no tmpfs can be mounted: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

/// Stores bodies of 60,000 bytes under numbered keys until each is on disk or was dropped.
async fn store_many(here: &Store, numbers: Range<u32>) -> Vec<Arc<StoredHead>> {
    let mut heads = Vec::new();
    let dropped = total(here, Metric::StoreDiskDropped);
    for number in numbers {
        let head = store(here, &format!("https://a/{number}"), &bytes(60_000)).await;
        // A piece that could not be written stays wanted.
        while head.disk_state.load(Ordering::Acquire) == disk_state::QUEUED
            && total(here, Metric::StoreDiskDropped) == dropped
        {
            tokio::task::yield_now().await;
        }
        heads.push(head);
    }
    heads
}

/// How many of them come back whole, from disk alone; no byte is wrong.
async fn whole(here: &Store, heads: &[Arc<StoredHead>]) -> usize {
    here.tiers.memory.evict_all();
    let mut whole = 0;
    for head in heads {
        let Some(Record::Response(head)) = here.find(head.hash()).await else { continue };
        // A piece that leaves memory and is not on disk any more is written, over something else.
        if let Ok(body) =
            crate::body::Body::stream(here.body(&head, 0..head.complete_length())).collect().await
        {
            assert_eq!(body.to_bytes(), bytes(60_000));
            whole += 1;
        }
    }
    whole
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_others_leave_no_room_makes_do_and_grows_again() {
    let Some(disk) = SmallDisk::mount(32 << 20) else { return };
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; 12 << 20]).unwrap();
    let log = tempfile::tempdir().unwrap();
    let settings = Settings {
        // Less than the disk has, so that what memory has is there too.
        memory_bytes: 1 << 20,
        disk_reserve: DiskReserve::Bytes(8 << 20),
        disk_retry: Duration::from_millis(20),
        ..on_disk(disk.0.path())
    };
    let here = open_with_log(&settings, Some(log.path())).await;
    let directory = || here.stat().directories[0].clone();
    assert!(!directory().is_short_of_space);
    let free = || {
        let stat = rustix::fs::statvfs(disk.0.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    store_many(&here, 0..400).await;
    assert_eq!(directory().service, Service::Serving, "a ring that cannot grow still turns");
    assert!(directory().is_short_of_space);
    let bytes_then = directory().bytes;
    assert!((10 << 20..=12 << 20).contains(&bytes_then), "{bytes_then}");
    assert!(free() >= 8 << 20, "the reserve stays free: {}", free());
    let counts = [Metric::StoreDiskDropped, Metric::StoreDiskOuts, Metric::StoreDiskShort];
    assert_eq!(counts.map(|metric| total(&here, metric)), [0, 0, 1], "told once");
    let text = here.tiers.recorder.metrics().encode();
    let gauge =
        format!("skerry_store_directory_bytes{{directory={:?}}} {bytes_then}", disk.0.path());
    assert!(text.contains(&gauge), "{text}");

    std::fs::remove_file(filler).unwrap();
    while directory().is_short_of_space {
        tokio::task::yield_now().await;
    }
    let more = store_many(&here, 1000..1400).await;
    assert!(directory().bytes > bytes_then, "it has grown");
    assert!(free() >= 8 << 20, "the reserve stays free: {}", free());
    let kept = directory().bytes;
    close(&here).await;
    drop(here);
    let here = open_with_log(&settings, Some(log.path())).await;
    assert_eq!(here.stat().directories[0].bytes, kept, "what it had is its own after a start");
    let came = whole(&here, &more).await;
    assert!(came > 250, "{came} of 400 are there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_room_for_one_block_waits_for_it() {
    let Some(disk) = SmallDisk::mount(16 << 20) else { return };
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; 14 << 20]).unwrap();
    let log = tempfile::tempdir().unwrap();
    let settings = Settings {
        disk_retry: Duration::from_millis(20),
        disk_reserve: DiskReserve::Auto,
        preallocate: true,
        ..on_disk(disk.0.path())
    };
    let here = open_with_log(&settings, Some(log.path())).await;
    assert_eq!(here.stat().directories[0].service, Service::Out);
    let head = store(&here, "https://a/1", &bytes(100)).await;
    assert!(here.find(head.hash()).await.is_some(), "the node serves on");
    std::fs::remove_file(filler).unwrap();
    while here.stat().directories[0].service != Service::Serving {
        tokio::task::yield_now().await;
    }
    written(&store(&here, "https://a/2", &bytes(100)).await).await;
    assert!(here.stat().directories[0].is_short_of_space, "16 MiB are no 64");
}

#[tokio::test(flavor = "multi_thread")]
async fn preallocation_takes_all_at_the_start_and_nobody_takes_it_away() {
    let Some(disk) = SmallDisk::mount(100 << 20) else { return };
    let settings = Settings {
        disk_reserve: DiskReserve::Bytes(1 << 20),
        preallocate: true,
        ..on_disk(disk.0.path())
    };
    let here = open(&settings).await;
    let directory = here.stat().directories[0].clone();
    assert_eq!((directory.bytes, directory.bytes_max), (64 << 20, 64 << 20));
    assert!(!directory.is_short_of_space);
    assert_eq!(misfits(&settings), [], "what it has is its own");
    let larger = Directory { path: disk.0.path().to_owned(), bytes: 128 << 20 };
    let misfit = misfits(&Settings { directories: vec![larger], ..settings }).remove(0);
    assert_eq!((misfit.directories, misfit.is_in_use), (vec![0], false));
    assert!((95 << 20..100 << 20).contains(&misfit.fits_bytes), "{}", misfit.fits_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_directories_of_one_file_system_must_fit_together() {
    let Some(disk) = SmallDisk::mount(100 << 20) else { return };
    let directory = |name: &str, bytes| Directory { path: disk.0.path().join(name), bytes };
    let fits = |one: u64, other: u64| {
        let directories = vec![directory("a/b", one << 20), directory("c", other << 20)];
        misfits(&Settings { directories, disk_reserve: DiskReserve::Auto, ..small() })
    };
    assert_eq!(fits(45, 40), []);
    let misfit = fits(85, 85).remove(0);
    assert_eq!(misfit.directories, [0, 1]);
    assert!(misfit.advice().contains("170.0 MiB of disk cache in 2 directories do not fit"));
    assert!(
        misfit.advice().contains("10.0 MiB are reserved (store.disk_reserve); at most 90.0 MiB")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_fail_are_told_and_the_node_serves_on() {
    let Some(disk) = SmallDisk::mount(24 << 20) else { return };
    let log = tempfile::tempdir().unwrap();
    let settings = Settings { disk_retry: Duration::from_secs(3600), ..on_disk(disk.0.path()) };
    let here = open_with_log(&settings, Some(log.path())).await;
    let mut heads = store_many(&here, 0..100).await;
    // Somebody takes away the space of a block that comes next, and all that is free.
    let data = File::options().write(true).open(layout::data_file(disk.0.path())).unwrap();
    let hole = here.stat().directories[0].bytes - (1 << 20);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&data, punch, hole, 1 << 20).unwrap();
    let filler = disk.0.path().join("filler");
    assert!(std::fs::write(&filler, vec![1; 24 << 20]).is_err(), "it is full");
    heads.extend(store_many(&here, 100..200).await);
    assert!(total(&here, Metric::StoreDiskDropped) > 0);
    assert_eq!(total(&here, Metric::StoreDiskOuts), 1);
    assert_eq!(here.stat().directories[0].service, Service::ReadOnly);
    let text = here.tiers.recorder.metrics().encode();
    assert!(text.contains("skerry_store_directory_in_service{directory="), "{text}");
    let came = whole(&here, &heads).await;
    assert!(came > 20, "{came} were written before the disk was full");
    std::fs::remove_file(filler).unwrap();
    here.tiers.disks.try_again(0).await;
    assert_eq!(here.stat().directories[0].service, Service::Serving);
    written(&store(&here, "https://a/later", &bytes(60_000)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_for_one_piece_read_it_once() {
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
