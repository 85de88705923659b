//! Forms: found through their source only, kept through a validation, back after a restart.

use std::sync::Arc;

use super::*;
use crate::cache::{Coding, Form, KeyHash};

pub(super) const BR: Option<Coding> = Some(Coding::Brotli);
pub(super) const URL: &str = "https://a/";

pub(super) fn hash() -> KeyHash {
    CacheKey::new(URL).hash
}

/// The stored response of a form of `source`.
pub(super) fn form_of(source: &StoredHead, coding: Option<Coding>) -> StoredResponse {
    let form = Form::new(coding, source.object.get(), 7);
    StoredResponse { form: Some(Box::new(form)), complete_length: None, ..source.response.clone() }
}

pub(super) async fn write_form(here: &Store, source: &StoredHead, body: &Bytes) -> Arc<StoredHead> {
    let mut writer = here.writer(form_of(source, BR));
    writer.push(body.clone()).await.unwrap();
    writer.finish().await.unwrap()
}

/// `Content-Length` in the stored fields.
fn stated_length(form: &StoredHead) -> Option<u64> {
    let length = form.response.headers.values(&http::header::CONTENT_LENGTH).next()?;
    length.to_str().ok()?.parse().ok()
}

fn current(found: Option<StoredForm>) -> Arc<StoredHead> {
    match found {
        Some(StoredForm::Current(form)) => form,
        other => panic!("{other:?}"),
    }
}

/// A store with a response and a form of it, both on disk only.
pub(super) async fn store_with_a_form(
    settings: &Settings,
) -> (Store, Arc<StoredHead>, Arc<StoredHead>) {
    let here = open(settings).await;
    let source = store(&here, URL, &bytes(3000)).await;
    written(&source).await;
    let form = write_form(&here, &source, &bytes(900)).await;
    written(&form).await;
    here.tiers.memory.evict_all();
    (here, source, form)
}

#[tokio::test]
async fn a_form_is_found_by_its_coding_while_its_source_is_stored() {
    let here = open(&small()).await;
    for length in [10, 20_000] {
        let source = store(&here, URL, &bytes(length)).await;
        write_form(&here, &source, &bytes(length / 2)).await;
        let form = current(here.form_now(hash(), &source, BR));
        assert_eq!(read(&here, &form, 0..length as u64 / 2).await, bytes(length / 2));
        assert_eq!(stated_length(&form), Some(length as u64 / 2));
        assert!(here.form_now(hash(), &source, Some(Coding::Gzip)).is_none());
        assert!(here.form_now(hash(), &source, None).is_none());
        assert_eq!(found(here.in_memory(hash())).object, source.object, "under its own hash");

        let next = store(&here, URL, &bytes(length)).await;
        assert!(here.form_now(hash(), &next, BR).is_none(), "of another object");
    }
}

#[tokio::test]
async fn a_validated_source_outdates_the_fields_of_its_forms() {
    let here = open(&small()).await;
    let source = store(&here, URL, &bytes(20_000)).await;
    let form = here.put_form(form_of(&source, BR), bytes(5));
    // At the same time: the response time must differ all the same.
    let validated = here.replace(&source, source.response.clone());
    let Some(StoredForm::Outdated(outdated)) = here.form_now(hash(), &validated, BR) else {
        panic!("it is not outdated")
    };
    assert_eq!(outdated.object, form.object);
    let renewed = here.renew_form(&outdated, form_of(&validated, BR));
    assert_eq!((renewed.object, renewed.inline.clone()), (form.object, Some(bytes(5))));
    assert_eq!((stated_length(&form), stated_length(&renewed)), (Some(5), Some(5)));
    assert_eq!(current(here.form_now(hash(), &validated, BR)).object, form.object);
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_come_back_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_disk(directory.path());
    let here = open(&settings).await;
    let source = store(&here, URL, &bytes(20_000)).await;
    write_form(&here, &source, &bytes(9_000)).await;
    close(&here).await;
    drop((here, source));

    let here = open(&settings).await;
    let source = found(here.find(hash()).await);
    let StoredForm::Current(form) = here.form(hash(), &source, BR).await.expect("it is there")
    else {
        panic!("it is outdated")
    };
    assert_eq!(form.response.form.as_ref().map(|form| form.number), Some(7));
    assert_eq!(read(&here, &form, 0..9_000).await, bytes(9_000));
}

/// Settings whose memory holds a few dozen of the bodies that [`crowd`] stores.
fn crowded(directories: Vec<Directory>) -> Settings {
    Settings { memory_bytes: 256 << 10, directories, admission: Admission::All, ..small() }
}

/// Stores other responses until memory has evicted the source.
async fn crowd(here: &Store) {
    for number in 0..1000 {
        if !here.tiers.memory.contains(&PieceKey::head(hash())) {
            return;
        }
        store(here, &format!("https://b/{number}"), &bytes(4000)).await;
    }
    panic!("memory keeps the source");
}

fn form_is_in_memory(here: &Store) -> bool {
    here.tiers.memory.contains(&PieceKey::head(Form::hash(hash(), BR)))
}

#[tokio::test]
async fn a_form_leaves_memory_with_its_source_however_often_it_was_read() {
    let here = open(&crowded(Vec::new())).await;
    let source = store(&here, URL, &bytes(3000)).await;
    here.put_form(form_of(&source, BR), bytes(900));
    for _ in 0..10 {
        current(here.form_now(hash(), &source, BR));
    }
    // The form is read between all insertions and its source is not, so that memory alone keeps the form longer.
    for number in 0..1000 {
        here.in_memory(Form::hash(hash(), BR));
        store(&here, &format!("https://b/{number}"), &bytes(4000)).await;
        if !here.tiers.memory.contains(&PieceKey::head(hash())) {
            assert!(!form_is_in_memory(&here), "after insertion {number}");
            return;
        }
        assert!(form_is_in_memory(&here), "after insertion {number}");
    }
    panic!("memory keeps the source");
}

/// A store with a response and a form of it, both on disk, whose source memory has evicted.
async fn store_with_a_form_on_disk_only(directory: &Path) -> Store {
    let here = open(&crowded(on_disk(directory).directories)).await;
    let source = store(&here, URL, &bytes(3000)).await;
    written(&source).await;
    written(&write_form(&here, &source, &bytes(900)).await).await;
    current(here.form_now(hash(), &source, BR));
    crowd(&here).await;
    here
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_left_memory_with_its_source_is_read_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let here = store_with_a_form_on_disk_only(directory.path()).await;
    store(&here, "https://b/last", &bytes(4000)).await;
    assert!(!form_is_in_memory(&here));

    let source = found(here.find(hash()).await);
    let StoredForm::Current(form) = here.form(hash(), &source, BR).await.expect("on disk") else {
        panic!("it is outdated")
    };
    assert_eq!(read(&here, &form, 0..900).await, bytes(900));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_on_disk_whose_source_was_overwritten_is_used_by_no_later_source() {
    let directory = tempfile::tempdir().unwrap();
    let here = store_with_a_form_on_disk_only(directory.path()).await;
    // The ring has overwritten the source and not yet its form, which was written later.
    here.tiers.disks.forget(&PieceKey::head(hash()));
    assert!(here.find(hash()).await.is_none());
    let again = store(&here, URL, &bytes(3000)).await;
    assert!(here.form(hash(), &again, BR).await.is_none());
}

#[tokio::test]
async fn hits_find_the_form_that_a_lookup_found_while_it_and_its_source_are_the_same() {
    let here = open(&small()).await;
    let source = store(&here, URL, &bytes(20_000)).await;
    let form = here.put_form(form_of(&source, BR), bytes(5));
    assert!(source.used_form(BR).is_none(), "before the first lookup");
    current(here.form_now(hash(), &source, BR));
    assert!(Arc::ptr_eq(&source.used_form(BR).unwrap(), &form));
    for coding in [Some(Coding::Zstd), Some(Coding::Gzip), None] {
        assert!(source.used_form(coding).is_none());
    }

    // A form that replaces it is found once the old one is in use no more.
    drop(form);
    let hot = here.put_form(form_of(&source, BR), bytes(4));
    assert!(source.used_form(BR).is_none());
    current(here.form_now(hash(), &source, BR));
    assert!(Arc::ptr_eq(&source.used_form(BR).unwrap(), &hot));

    // After a 304 the fields of the form must be renewed first.
    let validated = here.replace(&source, source.response.clone());
    assert!(validated.used_form(BR).is_none());
    assert!(matches!(here.form_now(hash(), &validated, BR), Some(StoredForm::Outdated(_))));
    assert!(validated.used_form(BR).is_none());

    // Memory does not keep a form for its source.
    drop(hot);
    here.tiers.memory.evict_all();
    assert!(source.used_form(BR).is_none());
}

#[tokio::test]
async fn hits_find_the_forms_of_all_codings_in_whatever_order_lookups_found_them() {
    let here = open(&small()).await;
    for first in 0..Form::CODINGS {
        let source = store(&here, URL, &bytes(20_000)).await;
        let mut forms = Vec::new();
        for turn in 0..Form::CODINGS {
            let coding = Form::ALL[(first + turn * 3) % Form::CODINGS];
            forms.push((coding, here.put_form(form_of(&source, coding), bytes(5))));
            current(here.form_now(hash(), &source, coding));
            for (coding, form) in &forms {
                assert!(Arc::ptr_eq(&source.used_form(*coding).unwrap(), form));
            }
        }
        // A form that leaves memory takes its pointer along. Two lookups of each of the others find all of them again.
        here.tiers.memory.evict_all();
        while let Some((coding, form)) = forms.pop() {
            drop(form);
            assert!(source.used_form(coding).is_none());
            for (_, form) in forms.iter().chain(&forms) {
                source.next_form.put_first(form);
            }
            for (coding, form) in &forms {
                assert!(Arc::ptr_eq(&source.used_form(*coding).unwrap(), form));
            }
        }
    }
}

#[tokio::test]
async fn the_form_that_a_lookup_found_last_is_first() {
    let here = open(&small()).await;
    let source = store(&here, URL, &bytes(20_000)).await;
    let forms = Form::ALL.map(|coding| here.put_form(form_of(&source, coding), bytes(5)));
    for at in [0, 1, 0, 3, 2, 2, 1, 3] {
        current(here.form_now(hash(), &source, Form::ALL[at]));
        let first = source.next_form.first().unwrap();
        assert!(Arc::ptr_eq(&first, &forms[at]), "{at}");
    }
    for (coding, form) in Form::ALL.into_iter().zip(&forms) {
        assert!(Arc::ptr_eq(&source.used_form(coding).unwrap(), form));
    }
}

#[tokio::test]
async fn a_form_keeps_its_coding_and_a_source_that_it_has_none() {
    let here = open(&small()).await;
    let source = store(&here, URL, &bytes(20_000)).await;
    for _ in 0..2 {
        assert!(!source.has_coding());
    }
    for coding in Form::ALL {
        let form = here.put_form(form_of(&source, coding), bytes(5));
        for mark in Form::ALL {
            form.form_marks.expect(mark, false);
            form.form_marks.offer(mark);
        }
        form.form_marks.set_written_again();
        form.form_marks.set_uncoded();
        let found = Form::ALL
            .into_iter()
            .filter(|other| form.form_marks.coding_index() == Form::index(*other));
        assert!(found.eq([coding]), "{coding:?}");
    }
}
