//! Copies of other nodes' responses: in memory only, whatever happens to them.

use super::*;
use crate::cache::{Coding, Form};

const COPIED: &str = "https://a/copied";
const OWN: &str = "https://a/own";

async fn copy(here: &Store, url: &str, body: &Bytes) -> Arc<StoredHead> {
    write(here.copy_writer(response(url, here.purges().sequence())), body).await
}

async fn write(mut writer: ObjectWriter, body: &Bytes) -> Arc<StoredHead> {
    writer.push(body.clone()).await.unwrap();
    writer.finish().await.unwrap()
}

fn hash(url: &str) -> KeyHash {
    CacheKey::new(url).hash
}

fn form_of(source: &StoredHead, coding: Option<Coding>) -> StoredResponse {
    let form = Form::new(coding, source.object.get(), 7);
    StoredResponse { form: Some(Box::new(form)), complete_length: None, ..source.response.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_and_its_forms_stay_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_disk(directory.path());
    let here = open(&settings).await;
    for _ in 0..2 {
        let head = copy(&here, COPIED, &bytes(3000)).await;
        assert!(here.in_memory(hash(COPIED)).is_some());
        assert!(found(here.find(hash(COPIED)).await).is_copy());
        let head = here.replace(&head, head.response.clone());
        assert!(head.is_copy(), "after a validation too");
        assert!(here.put_form(form_of(&head, Some(Coding::Brotli)), bytes(500)).is_copy());
        // Its content, decoded, takes several slices.
        let decoded = write(here.writer(form_of(&head, None)), &bytes(20_000)).await;
        assert!(decoded.is_copy() && decoded.inline.is_none());
        // Eviction the first time; a clean stop the second time.
        if total(&here, Metric::StoreForgotten) == 0 {
            here.tiers.memory.evict_all();
        }
    }
    close(&here).await;
    assert_eq!(total(&here, Metric::StoreDiskWrites), 0);
    drop(here);
    let here = open(&settings).await;
    assert!(here.find(hash(COPIED)).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_the_place_of_what_the_disk_has() {
    let directory = tempfile::tempdir().unwrap();
    let here = open(&on_disk(directory.path())).await;
    written(&store(&here, COPIED, &bytes(100)).await).await;
    let copied = copy(&here, COPIED, &bytes(200)).await;
    assert_eq!(found(here.find(hash(COPIED)).await).object, copied.object);
    here.tiers.memory.evict_all();
    assert!(here.find(hash(COPIED)).await.is_none(), "the older one does not come back");
    let own = store(&here, COPIED, &bytes(300)).await;
    written(&own).await;
    assert!(!own.is_copy(), "a response of the origin takes the place of a copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_variants_is_on_disk_with_its_variants() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_disk(directory.path());
    let fields = [http::header::ACCEPT_LANGUAGE];
    let list_of = |variant: &StoredHead| {
        let entry = Variant::new(
            variant.hash(),
            &fields,
            &HeaderMap::new(),
            &variant.response.headers,
            &[],
        );
        let mut list = VaryList::default();
        list.add(&fields, entry, 8);
        list
    };
    let (copied_list, own_list) = (hash("https://a/1"), hash("https://a/2"));
    for is_stopped in [false, true] {
        let here = open(&settings).await;
        let own = store(&here, OWN, &bytes(100)).await;
        written(&own).await;
        here.put_variants(own_list, list_of(&own), NewVariant::Own);
        let copied = copy(&here, COPIED, &bytes(100)).await;
        here.put_variants(copied_list, list_of(&copied), NewVariant::Copy);
        if !is_stopped {
            here.tiers.memory.evict_all();
        }
        close(&here).await;
        drop(here);
        let here = open(&settings).await;
        assert!(here.find(own_list).await.is_some() && here.find(hash(OWN)).await.is_some());
        assert!(here.find(copied_list).await.is_none() && here.find(hash(COPIED)).await.is_none());
        close(&here).await;
    }
}

#[tokio::test]
async fn memory_evicts_copies_like_others() {
    let settings = Settings { memory_bytes: 256 << 10, ..small() };
    let here = open(&settings).await;
    for number in 0..500 {
        copy(&here, &format!("https://a/{number}"), &bytes(4000)).await;
    }
    assert!(here.stat().memory_bytes <= settings.memory_bytes);
    let kept =
        (0..500).filter(|number| here.in_memory(hash(&format!("https://a/{number}"))).is_some());
    assert!((1..100).contains(&kept.count()));
}

#[tokio::test]
async fn copies_leave_most_of_memory_to_the_responses_of_the_origin() {
    let settings = Settings { memory_bytes: 1 << 20, ..small() };
    let here = open(&settings).await;
    let own: Vec<String> = (0..100).map(|number| format!("https://own/{number}")).collect();
    for url in &own {
        store(&here, url, &bytes(4000)).await;
    }
    for number in 0..1000 {
        copy(&here, &format!("https://a/{number}"), &bytes(4000)).await;
    }
    let kept = |url: &str| here.in_memory(hash(url)).is_some();
    assert!(own.iter().all(|url| kept(url)));
    let copies = (0..1000).filter(|number| kept(&format!("https://a/{number}"))).count();
    assert!((10..16).contains(&copies), "a sixteenth of memory is that of 15 copies: {copies}");
    assert_eq!(total(&here, Metric::PeerCopiesDisplaced), 1000 - copies as u64);
    // A response of the origin in the place of a copy is none.
    let url = "https://a/999";
    store(&here, url, &bytes(4000)).await;
    for number in 1000..1100 {
        copy(&here, &format!("https://a/{number}"), &bytes(4000)).await;
    }
    assert!(kept(url));
}
