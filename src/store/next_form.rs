//! The forms that hits of a stored response use, found without a lookup. With many objects in memory a lookup costs several
//! accesses to memory that no cache of the processor has.
//!
//! The record of a response points to one of its forms, whose record points to the next one, by ascending [`Form::index`]. All of
//! them were made of one version of the response.
//!
//! [`Form::index`]: crate::cache::Form::index

use std::fmt;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapWeak;

use super::record::StoredHead;

/// The pointer from a response to a form of it, or from a form to the next one, while that form is in memory or in use. It does
/// not keep the content of a form in memory, only 256 bytes of its record.
pub(super) struct NextForm(ArcSwapWeak<StoredHead>);

impl NextForm {
    pub(super) fn get(&self) -> Option<Arc<StoredHead>> {
        self.0.load().upgrade()
    }

    /// Adds a form that a lookup has found, unless there is one of its coding. If two threads add forms at once, one may be lost:
    /// a later lookup adds it again.
    pub(super) fn add(&self, form: &Arc<StoredHead>) {
        let Some(next) = self.get() else { return self.0.store(Arc::downgrade(form)) };
        let (index, next_index) = (form.form_marks.coding_index(), next.form_marks.coding_index());
        if next_index < index {
            next.next_form.add(form);
        } else if next_index > index {
            form.next_form.add(&next);
            self.0.store(Arc::downgrade(form));
        }
    }
}

impl Default for NextForm {
    fn default() -> Self {
        Self(ArcSwapWeak::new(Weak::new()))
    }
}

impl fmt::Debug for NextForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NextForm({:?})", self.get().map(|form| form.object))
    }
}
