use std::sync::atomic::{AtomicU8, AtomicU64};
use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;

use super::*;
use crate::cache::vary::{Variant, variant_hash};
use crate::cache::{CacheKey, Freshness, PurgeScope};

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
        headers,
        freshness: Freshness {
            response_time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            initial_age: Duration::from_secs(3),
            lifetime: Duration::from_secs(60),
            heuristic: false,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::from_secs(5),
            must_revalidate: true,
            no_cache: false,
            immutable: true,
        },
        tags: [1, 2].into(),
        stored_at_sequence,
        complete_length: None,
        parts: None,
    }
}

pub(super) fn head(url: &str, stored_at: PurgeSequence, lineage: u64) -> Head {
    Head {
        response: response(url, stored_at),
        object: ObjectId(1),
        inline: Some(Bytes::from_static(b"body")),
        slice_bytes: 4096,
        lineage,
        checked_up_to: AtomicU64::new(0),
        place: AtomicU8::new(place::MEMORY),
        hash: KeyHash::of(url.as_bytes()),
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
        ..Settings::default()
    }
}

async fn open(settings: &Settings) -> Store {
    let metrics = Metrics::new(1);
    Store::open(settings, Clock::system(), &metrics, Handle::current()).await.unwrap()
}

async fn store(store: &Store, url: &str, body: &Bytes) -> Arc<Head> {
    let mut writer = store.writer(response(url, store.sequence()));
    for piece in body.chunks(1000) {
        writer.push(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    writer.finish().await.unwrap()
}

async fn read(store: &Store, head: &Arc<Head>, range: Range<u64>) -> Bytes {
    let body = store.body(head, range.clone());
    assert_eq!(http_body::Body::size_hint(&body).exact(), Some(range.end - range.start));
    body.collect().await.unwrap().to_bytes()
}

fn found(record: Option<Record>) -> Arc<Head> {
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
        let head = found(here.in_memory(CacheKey::new(url).hash));
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
    let mut writer = here.writer(response(&key.text, here.sequence()));
    writer.push(bytes(10_000)).await.unwrap();
    drop(writer);
    assert!(here.find(key.hash).await.is_none());

    let mut promised = response(&key.text, here.sequence());
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
    let mut writer = here.writer(response("https://a/1", here.sequence()));
    writer.push(bytes(9_999)).await.unwrap();
    let error = writer.push(bytes(1)).await.unwrap_err();
    assert_eq!(error, WriteError::TooLarge { limit: 9_999 });
}

#[tokio::test]
async fn variants_stand_beside_each_other_under_the_list() {
    let here = open(&small()).await;
    let key = CacheKey::new("https://a/1");
    for variant in ["br", "gzip"] {
        let mut response = response(&key.text, here.sequence());
        response.variant = variant.into();
        let mut writer = here.writer(response);
        writer.push(Bytes::from(variant)).await.unwrap();
        writer.finish().await.unwrap();
    }
    let mut list = VaryList::default();
    for values in ["br", "gzip"] {
        let variant = Variant { hash: variant_hash(&key.text, values), language: None, others: 0 };
        list.note(&[http::header::ACCEPT_ENCODING], variant, 8);
    }
    here.put_variants(key.hash, list.clone());
    match here.in_memory(key.hash) {
        Some(Record::Variants(found)) => assert_eq!(*found, list),
        other => panic!("{other:?}"),
    }
    for variant in ["br", "gzip"] {
        let head = found(here.in_memory(variant_hash(&key.text, variant)));
        assert_eq!(
            read(&here, &head, 0..u64::from(head.slice_bytes).min(head.complete_length())).await,
            variant
        );
    }
}

#[tokio::test]
async fn an_object_is_whole_when_its_last_part_has_come() {
    let here = open(&small()).await;
    let key = CacheKey::new("https://a/1");
    let body = bytes(10_000);
    let mut whole = response(&key.text, here.sequence());
    whole.complete_length = Some(10_000);
    let head = here.partial(whole).unwrap();
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
    here.inner.memory.remove(&PieceKey::slice(head.object, 1));
    let mut body = here.body(&head, 0..10_000);
    assert!(body.frame().await.unwrap().is_ok());
    assert!(body.frame().await.unwrap().is_err());
    assert!(body.frame().await.is_none());
    assert!(here.missing(&head, 0..10_000).iter().eq([&(4096..8192)]));
}

#[tokio::test]
async fn a_replaced_head_keeps_its_body() {
    let here = open(&small()).await;
    let key = CacheKey::new("https://a/1");
    let old = store(&here, &key.text, &bytes(10_000)).await;
    let purge = (PurgeScope::All, PurgeKind::Soft);
    here.purge(PurgeBatch { purges: vec![purge], ..PurgeBatch::default() }).await.unwrap();
    assert_eq!(here.purge_verdict(&old), Some(PurgeKind::Soft));
    let mut fields = response(&key.text, here.sequence());
    fields.headers.insert("x-new", "1".parse().unwrap());
    here.replace(&old, fields);
    let new = found(here.in_memory(key.hash));
    assert_eq!(here.purge_verdict(&new), None);
    assert_eq!(new.response.headers["x-new"], "1");
    assert_eq!(read(&here, &new, 0..10_000).await, bytes(10_000));
}
