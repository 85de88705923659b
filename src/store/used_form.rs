//! The form that hits of a stored response use, which they find without a lookup. With many objects in memory a lookup costs
//! several accesses to memory that no cache of the processor has.

use std::fmt;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapWeak;

use super::record::StoredHead;

/// The form that a lookup found last, while it is in memory or in use. It belongs to one record: a new version or a validation of
/// the response begins with none. It does not keep the content of a form in memory, only 256 bytes of its record.
pub(super) struct UsedForm(ArcSwapWeak<StoredHead>);

impl UsedForm {
    pub(super) fn get(&self) -> Option<Arc<StoredHead>> {
        self.0.load().upgrade()
    }

    /// Notes a form for later hits. The first one stays, so that clients of different codings do not take turns in replacing it.
    pub(super) fn note(&self, form: &Arc<StoredHead>) {
        if self.get().is_none() {
            self.0.store(Arc::downgrade(form));
        }
    }
}

impl Default for UsedForm {
    fn default() -> Self {
        Self(ArcSwapWeak::new(Weak::new()))
    }
}

impl fmt::Debug for UsedForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UsedForm({:?})", self.get().map(|form| form.object))
    }
}
