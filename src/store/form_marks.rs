//! Marks of a stored response that spare its requests lookups of forms.
//!
//! ```text
//! bits 0–3   absent    no form with the coding is worth a lookup
//! bits 4–7   present   a form with the coding has been in memory: it leaves memory with its source
//! bits 8–11  offered   the form has been offered for coding at a higher level
//! bit 12     written again   of a form: it has been written again, to link it to its source
//! bit 13     uncoded   the origin sent it without a coding
//! bits 14–15   of a form: its coding
//! ```
//!
//! One bit of each four for each coding, by [`Form::index`]. A record that is read from disk has its own coding only.

use std::sync::atomic::{AtomicU16, Ordering};

use crate::cache::{Coding, Form, StoredResponse};

/// The marks. A race between two threads loses none.
#[derive(Debug, Default)]
pub(super) struct FormMarks(AtomicU16);

impl FormMarks {
    /// The marks of a new record.
    pub(super) fn of(response: &StoredResponse) -> Self {
        let coding = response.form.as_ref().map_or(0, |form| Form::index(form.coding));
        Self(AtomicU16::new((coding as u16) << CODING_SHIFT))
    }

    /// The [`Form::index`] of this record, which is a form. Its [`Form`] is elsewhere in memory.
    #[inline]
    pub(super) fn coding_index(&self) -> usize {
        usize::from(self.0.load(Ordering::Relaxed) >> CODING_SHIFT)
    }

    /// Whether [`FormMarks::set_uncoded`] was called.
    #[inline]
    pub(super) fn is_uncoded(&self) -> bool {
        self.has(UNCODED)
    }

    /// Remembers that the origin sent the response without a coding.
    pub(super) fn set_uncoded(&self) {
        self.0.fetch_or(UNCODED, Ordering::Relaxed);
    }

    /// Whether a form with this coding may exist.
    #[inline]
    pub(super) fn may_exist(&self, coding: Option<Coding>) -> bool {
        !self.has(ABSENT << Form::index(coding))
    }

    pub(super) fn expect(&self, coding: Option<Coding>, expected: bool) {
        let bit = ABSENT << Form::index(coding);
        match expected {
            true => self.0.fetch_and(!bit, Ordering::Relaxed),
            false => self.0.fetch_or(bit, Ordering::Relaxed),
        };
    }

    /// Remembers that a form with this coding is in memory.
    #[inline]
    pub(super) fn set_present(&self, coding: Option<Coding>) {
        let bit = PRESENT << Form::index(coding);
        // Every hit of a form comes here, and writing takes the cache line from the other cores.
        if !self.has(bit) {
            self.0.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// The codings of the forms that have been in memory.
    pub(super) fn present(&self) -> impl Iterator<Item = Option<Coding>> {
        let marks = self.0.load(Ordering::Relaxed);
        Form::ALL.into_iter().filter(move |coding| marks & (PRESENT << Form::index(*coding)) != 0)
    }

    /// Marks the form with this coding as offered. Returns whether it was not before.
    pub(super) fn offer(&self, coding: Option<Coding>) -> bool {
        let bit = OFFERED << Form::index(coding);
        !self.has(bit) && self.0.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    pub(super) fn take_back_offer(&self, coding: Option<Coding>) {
        self.0.fetch_and(!(OFFERED << Form::index(coding)), Ordering::Relaxed);
    }

    /// Marks this form as written again. Returns whether it was not before.
    pub(super) fn set_written_again(&self) -> bool {
        self.0.fetch_or(WRITTEN_AGAIN, Ordering::Relaxed) & WRITTEN_AGAIN == 0
    }

    fn has(&self, bit: u16) -> bool {
        self.0.load(Ordering::Relaxed) & bit != 0
    }
}

const ABSENT: u16 = 1;
const PRESENT: u16 = 1 << Form::CODINGS;
const OFFERED: u16 = PRESENT << Form::CODINGS;
const WRITTEN_AGAIN: u16 = OFFERED << Form::CODINGS;

const UNCODED: u16 = WRITTEN_AGAIN << 1;
const CODING_SHIFT: u32 = UNCODED.trailing_zeros() + 1;

const _: () = assert!(Form::CODINGS <= 1 << (u16::BITS - CODING_SHIFT));
