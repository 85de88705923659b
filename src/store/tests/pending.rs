//! Records that wait for the disk: found there in place of older ones, and written in the order in which they were stored.

use super::forms::{URL, hash, store_with_a_form};
use super::*;
use crate::cache::Coding;

/// Settings of a store whose writer has time.
fn patient(directory: &Path) -> Settings {
    Settings { disk_deadline: Duration::from_secs(600), ..on_disk(directory) }
}

/// The object that a lookup finds which memory cannot answer.
async fn found_below_memory(here: &Store) -> Option<ObjectId> {
    here.tiers.memory.evict_all();
    here.find(hash()).await.map(|record| found(Some(record)).object)
}

/// Waits until all queued pieces are written.
async fn let_it_write(here: &Store, held: tokio::sync::OwnedSemaphorePermit) {
    drop(held);
    // Jobs that wait for space are before this one.
    drop(here.tiers.disks.hold(0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_waits_for_the_disk_is_found_instead_of_the_older_one_there() {
    let directory = tempfile::tempdir().unwrap();
    let (here, older, _) = store_with_a_form(&patient(directory.path())).await;
    assert!(here.linked_form(hash(), Coding::Brotli).await.is_some());
    let held = here.tiers.disks.hold(0).await;
    let newer = store(&here, URL, &bytes(2000)).await;
    assert_ne!(newer.object, older.object);
    assert_eq!(found_below_memory(&here).await, Some(newer.object));
    here.tiers.memory.evict_all();
    assert!(here.linked_form(hash(), Coding::Brotli).await.is_none(), "a form of the older one");
    assert!(here.linked_form_in_memory(hash(), Coding::Brotli).is_none());
    let_it_write(&here, held).await;
    written(&newer).await;
    assert_eq!(found_below_memory(&here).await, Some(newer.object));
    assert!(!here.tiers.disks.has_pending(0, &PieceKey::head(hash())), "it is in the index");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_whose_write_is_given_up_uncovers_no_older_one() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&patient(directory.path())).await;
    let held = here.tiers.disks.hold(0).await;
    let newer = store(&here, URL, &bytes(2000)).await;
    here.tiers.disks.fail(0);
    let_it_write(&here, held).await;
    here.tiers.memory.evict_all();
    drop(newer);
    here.tiers.disks.try_again(0).await;
    assert_eq!(here.stat().directories[0].service, Service::Serving);
    assert_eq!(found_below_memory(&here).await, None);
}

/// The first one is in slices, which are queued before its record: the record of the second one is queued first.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_several_responses_stays_on_disk_in_whatever_order_they_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&patient(directory.path())).await;
    let held = here.tiers.disks.hold(0).await;
    let queued = here.clone();
    // As its slices wait for the disk, the response is stored later: by itself it would wait here.
    let long = tokio::spawn(async move { store(&queued, URL, &bytes(20_000)).await });
    drop(held);
    let long = long.await.unwrap();
    let held = here.tiers.disks.hold(0).await;
    let again = here.replace(&long, long.response.clone());
    let last = store(&here, URL, &bytes(1000)).await;
    // An older record that is offered once more, as by a hit that began before.
    again.disk_state.store(disk_state::MEMORY_ONLY, Ordering::Release);
    here.tiers.queue_head(&again);
    let_it_write(&here, held).await;
    written(&last).await;
    assert_eq!(found_below_memory(&here).await, Some(last.object));
    close(&here).await;
    drop((here, long, again, last));
    let here = open(&on_disk(directory.path())).await;
    let stored = found(here.find(hash()).await);
    assert_eq!(stored.response.complete_length, Some(1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_forgotten_while_it_waits_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let (here, ..) = store_with_a_form(&patient(directory.path())).await;
    let held = here.tiers.disks.hold(0).await;
    store(&here, URL, &bytes(2000)).await;
    here.forget(hash());
    let_it_write(&here, held).await;
    assert_eq!(found_below_memory(&here).await, None);
}
