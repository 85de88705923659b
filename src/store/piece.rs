//! The values of the two tiers: records, and slices of bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::record::{ENTRY_OVERHEAD, Record, StoredHead};
use super::sites::{Site, Sites};
use crate::cache::VaryList;
use crate::cache::vary::Variant;

/// One value of the memory tier or of a directory.
#[derive(Debug)]
pub(super) enum Piece {
    Record(Record),
    /// Boxed, so that the many records take no more memory for it.
    Slice(Box<Slice>),
    /// Read from disk in another version, or damaged: a miss.
    Unknown,
}

/// A part of a body, of fixed size.
#[derive(Debug)]
pub(super) struct Slice {
    pub bytes: Bytes,
    /// Whether it is to be written to disk, see [`super::Admission`].
    pub wanted: AtomicBool,
    /// The site that is charged for it. `None` if it was read from disk without its head.
    pub site: Option<Arc<Site>>,
}

impl Piece {
    pub(super) fn slice(bytes: Bytes, wanted: bool, site: Option<Arc<Site>>) -> Self {
        Self::Slice(Box::new(Slice { bytes, wanted: AtomicBool::new(wanted), site }))
    }

    /// A second reference to the same bytes, for the disk writer.
    pub(super) fn share(&self) -> Self {
        match self {
            Self::Record(record) => Self::Record(record.clone()),
            Self::Slice(slice) => {
                let Slice { bytes, wanted, site } = &**slice;
                Self::slice(bytes.clone(), wanted.load(Ordering::Relaxed), site.clone())
            }
            Self::Unknown => Self::Unknown,
        }
    }

    /// Whether both are the same record in memory, or slices with the same bytes in memory.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Record(one), Self::Record(other)) => one.is_same(other),
            (Self::Slice(one), Self::Slice(other)) => one.bytes.as_ptr() == other.bytes.as_ptr(),
            _ => false,
        }
    }

    /// The form that it is.
    pub(super) fn as_form(&self) -> Option<&StoredHead> {
        match self {
            Self::Record(Record::Response(head)) => head.response.form.is_some().then_some(&**head),
            Self::Record(Record::Variants(_)) | Self::Slice(_) | Self::Unknown => None,
        }
    }

    /// The same piece, charged to `site` if it is a slice.
    pub(super) fn owned_by(mut self, site: Option<Arc<Site>>) -> Self {
        if let Self::Slice(slice) = &mut self {
            slice.site = site;
        }
        self
    }

    /// The site that is charged for it. No site is charged for variant lists.
    pub(super) fn site(&self, sites: &Sites) -> Option<Arc<Site>> {
        match self {
            Self::Record(Record::Response(head)) => Some(sites.of(&head.response.site)),
            Self::Slice(slice) => slice.site.clone(),
            Self::Record(Record::Variants(_)) | Self::Unknown => None,
        }
    }

    /// Whether it is a copy of another node's response, or a form of one.
    pub(super) fn is_copy(&self) -> bool {
        matches!(self, Self::Record(Record::Response(head)) if head.is_copy())
    }

    /// The body bytes in it.
    pub(super) fn body_bytes(&self) -> usize {
        match self {
            Self::Slice(slice) => slice.bytes.len(),
            Self::Record(Record::Response(head)) => head.inline.as_ref().map_or(0, Bytes::len),
            Self::Record(Record::Variants(_)) | Self::Unknown => 0,
        }
    }

    /// Bytes that it occupies in memory.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Record(Record::Response(head)) => head.weight(),
            Self::Record(Record::Variants(list)) => {
                let variants = list.sets.iter().map(|set| set.fields.len() + set.variants.len());
                let lists = variants.sum::<usize>() * size_of::<Variant>();
                ENTRY_OVERHEAD + size_of::<VaryList>() + lists
            }
            Self::Slice(slice) => ENTRY_OVERHEAD + size_of::<Slice>() + slice.bytes.len(),
            Self::Unknown => ENTRY_OVERHEAD,
        }
    }
}
