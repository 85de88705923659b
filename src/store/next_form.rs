//! The forms that hits of a stored response use, found without a lookup. With many objects in memory a lookup costs several
//! accesses to memory that no cache of the processor has.
//!
//! The forms of one version of a response point to each other in a ring. The record of the response points to the form that a
//! lookup has found last: clients of a response mostly want the same coding, so that most hits find their form at once.
//!
//! ```text
//! source ─▶ gzip ─▶ zstd ─▶ br ─▶ gzip …          a lookup of br: source ─▶ br
//! ```
//!
//! A form that leaves memory takes its pointer along. The forms that are not found without it are added again when lookups find them.

use std::fmt;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapWeak;

use super::record::StoredHead;
use crate::cache::{Coding, Form};

/// The pointer from a response to a form of it, or from a form to the next one, while that form is in memory or in use. It does
/// not keep the content of a form in memory, only 256 bytes of its record.
pub(super) struct NextForm(ArcSwapWeak<StoredHead>);

impl NextForm {
    /// The form with this coding.
    #[inline]
    pub(super) fn find(&self, coding: Option<Coding>) -> Option<Arc<StoredHead>> {
        self.find_index(Form::index(coding))
    }

    /// Whether this very form is first.
    #[inline]
    pub(super) fn has_first(&self, form: &Arc<StoredHead>) -> bool {
        self.first().is_some_and(|first| Arc::ptr_eq(&first, form))
    }

    /// Puts a form that a lookup has found first. If two threads do so at once, one form may be lost: a later lookup adds it again.
    pub(super) fn put_first(&self, form: &Arc<StoredHead>) {
        let Some(first) = self.first() else { return self.set(form) };
        let known = self.find_index(form.form_marks.coding_index());
        if known.is_none_or(|known| !Arc::ptr_eq(&known, form)) {
            form.next_form.set(&first.next_form.first().unwrap_or_else(|| first.clone()));
            first.next_form.set(form);
        }
        self.set(form);
    }

    #[inline]
    fn find_index(&self, index: usize) -> Option<Arc<StoredHead>> {
        let mut form = self.first()?;
        for _ in 1..Form::CODINGS {
            if form.form_marks.coding_index() == index {
                break;
            }
            form = form.next_form.first()?;
        }
        (form.form_marks.coding_index() == index).then_some(form)
    }

    /// The form that a lookup has found last; of a form, the next one.
    #[inline]
    pub(super) fn first(&self) -> Option<Arc<StoredHead>> {
        self.0.load().upgrade()
    }

    fn set(&self, form: &Arc<StoredHead>) {
        self.0.store(Arc::downgrade(form));
    }
}

impl Default for NextForm {
    fn default() -> Self {
        Self(ArcSwapWeak::new(Weak::new()))
    }
}

impl fmt::Debug for NextForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NextForm({:?})", self.first().map(|form| form.object))
    }
}
