//! Linked forms: used without their source while the index has the very record that they were made from.

use super::forms::{BR, URL, form_of, hash, store_with_a_form, write_form};
use super::*;
use crate::cache::{Coding, Form};

const CODING: Coding = Coding::Brotli;

fn is_in_memory(here: &Store, hash: KeyHash) -> bool {
    here.tiers.memory.contains(&PieceKey::head(hash))
}

async fn is_found_alone(here: &Store) -> bool {
    here.tiers.memory.evict_all();
    here.linked_form(hash(), CODING).await.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_of_a_form_on_disk_reads_one_record() {
    let directory = tempfile::tempdir().unwrap();
    let (here, source, _) = store_with_a_form(&on_disk(directory.path())).await;
    let before = total(&here, Metric::StoreDiskReads);
    let form = here.linked_form(hash(), CODING).await.expect("it is linked");
    assert_eq!(total(&here, Metric::StoreDiskReads), before + 1);
    assert_eq!(read(&here, &form, 0..900).await, bytes(900));
    assert_eq!(form.source(), (hash(), source.object.get()));
    assert!(!is_in_memory(&here, hash()), "the source was not read");
    assert!(here.linked_form_in_memory(hash(), CODING).is_some(), "from now on in memory");
    assert!(here.linked_form(hash(), Coding::Gzip).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_in_memory_decides_for_its_forms() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&on_disk(directory.path())).await;
    found(here.find(hash()).await);
    assert!(here.linked_form(hash(), CODING).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_on_disk_ends_the_link() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&on_disk(directory.path())).await;
    let next = store(&here, URL, &bytes(3000)).await;
    written(&next).await;
    assert!(!is_found_alone(&here).await);
    let source = found(here.find(hash()).await);
    assert_eq!(source.object, next.object);
    assert!(here.form(hash(), &source, BR).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validated_source_is_read_until_its_form_is_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&on_disk(directory.path())).await;
    let source = found(here.find(hash()).await);
    let validated = here.replace(&source, source.response.clone());
    written(&validated).await;
    assert!(!is_found_alone(&here).await);
    let source = found(here.find(hash()).await);
    let Some(StoredForm::Outdated(form)) = here.form(hash(), &source, BR).await else {
        panic!("it is not outdated")
    };
    let renewed = here.renew_form(&form, form_of(&source, BR));
    written(&renewed).await;
    assert!(is_found_alone(&here).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_the_disk_has_lost_ends_the_link() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&on_disk(directory.path())).await;
    assert!(is_found_alone(&here).await);
    // Overwritten by the ring, over the site's share, or not written for lack of space in the queue.
    here.tiers.disks.forget(&PieceKey::head(hash()));
    assert!(here.linked_form_in_memory(hash(), CODING).is_none(), "also in memory");
    assert!(!is_found_alone(&here).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_form_is_used_alone_after_its_disk_was_out_of_service() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&on_disk(directory.path())).await;
    assert!(is_found_alone(&here).await);
    here.tiers.disks.fail(0);
    assert!(here.linked_form_in_memory(hash(), CODING).is_none());
    here.tiers.disks.try_again(0).await;
    assert_eq!(here.stat().directories[0].service, Service::Serving);
    // A newer version may not have reached the disk meanwhile.
    assert!(here.linked_form_in_memory(hash(), CODING).is_none());
    assert!(!is_found_alone(&here).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_come_back_after_a_restart_but_not_with_another_purge_log() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_disk(directory.path());
    let (here, source, form) = store_with_a_form(&on_disk(directory.path())).await;
    close(&here).await;
    drop((here, source, form));
    let here = open(&settings).await;
    let form = here.linked_form(hash(), CODING).await.expect("it is linked");
    assert_eq!(here.purge_verdict(&form), None);
    close(&here).await;
    drop((here, form));
    std::fs::remove_file(directory.path().join("purges/purge.log")).unwrap();
    let here = open(&settings).await;
    let form = here.linked_form(hash(), CODING).await.expect("it is linked");
    assert_eq!(here.purge_verdict(&form), Some(PurgeKind::Missed));
    // A form of this node's log, of a source from before: the purges of the source are not known.
    let source = found(here.find(hash()).await);
    written(&write_form(&here, &source, &bytes(800)).await).await;
    assert!(!is_found_alone(&here).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_covers_a_form_that_is_used_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&on_disk(directory.path())).await;
    let form = here.linked_form(hash(), CODING).await.expect("it is linked");
    assert_eq!(here.purge_verdict(&form), None);
    let scopes = [
        (PurgeScope::Url(URL.into()), PurgeKind::Hard),
        (PurgeScope::Site("site".into()), PurgeKind::Soft),
    ];
    for (scope, kind) in scopes.into_iter().rev() {
        let batch = PurgeBatch { purges: vec![(scope, kind)], ..PurgeBatch::default() };
        here.purges().purge(batch).await.unwrap();
        assert_eq!(here.purge_verdict(&form), Some(kind));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_of_content_that_the_origin_coded_is_not_linked() {
    let directory = tempfile::tempdir().unwrap();
    let here = open(&on_disk(directory.path())).await;
    let mut response = response(URL, here.purges().sequence());
    response.headers =
        [(http::header::CONTENT_ENCODING, "gzip".parse().unwrap())].into_iter().collect();
    let mut writer = here.writer(response);
    writer.push(bytes(3000)).await.unwrap();
    let source = writer.finish().await.unwrap();
    written(&source).await;
    written(&write_form(&here, &source, &bytes(900)).await).await;
    assert!(!is_found_alone(&here).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_was_written_before_its_source_is_linked_when_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let here = open(&on_disk(directory.path())).await;
    let source = store(&here, URL, &bytes(3000)).await;
    written(&source).await;
    here.tiers.disks.forget(&PieceKey::head(hash()));
    written(&write_form(&here, &source, &bytes(900)).await).await;
    source.disk_state.store(disk_state::MEMORY_ONLY, Ordering::Release);
    here.tiers.queue_head(&source);
    written(&source).await;
    assert!(!is_found_alone(&here).await);
    let source = found(here.find(hash()).await);
    assert!(here.form(hash(), &source, BR).await.is_some());
    let is_linked = async {
        while !is_found_alone(&here).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_linked).await.expect("it is linked");
}

/// The form is written in the order of the queue, whatever happened to its source meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_is_written_after_a_newer_source_is_not_linked_to_that() {
    let directory = tempfile::tempdir().unwrap();
    let here = open(&on_disk(directory.path())).await;
    let older = store(&here, URL, &bytes(3000)).await;
    written(&older).await;
    let newer = store(&here, URL, &bytes(3000)).await;
    written(&newer).await;
    written(&write_form(&here, &older, &bytes(900)).await).await;
    assert!(!is_found_alone(&here).await);
    let form = found(here.find(Form::hash(hash(), BR)).await);
    assert_eq!(form.response.form.as_ref().map(|form| form.source_entry.get()), Some(0));
}
