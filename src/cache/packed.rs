//! Small types for the parts of a stored response, of which memory may hold millions.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

/// A time span, or a time since 1970, in eight bytes. At most 584 years: a longer span is cut to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nanoseconds(u64);

impl Nanoseconds {
    /// As a span.
    pub(crate) fn span(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// One nanosecond later.
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// As a time.
    pub(crate) fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.span()
    }
}

impl From<Duration> for Nanoseconds {
    fn from(span: Duration) -> Self {
        Self(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<SystemTime> for Nanoseconds {
    fn from(time: SystemTime) -> Self {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().into()
    }
}

/// A time span in four bytes, rounded up to whole seconds. At most 136 years: a longer span is cut to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seconds(u32);

impl Seconds {
    /// As a span.
    pub(crate) fn span(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl From<Duration> for Seconds {
    fn from(span: Duration) -> Self {
        let seconds = span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0));
        Self(u32::try_from(seconds).unwrap_or(u32::MAX))
    }
}

/// The name of a site. All stored responses of the site share one copy in memory.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct SiteName(Arc<Text>);

/// The text behind one thin pointer.
#[derive(PartialEq, Eq, Hash)]
struct Text(Box<str>);

static SITES: LazyLock<RwLock<HashSet<SiteName>>> = LazyLock::new(RwLock::default);

impl From<&str> for SiteName {
    fn from(name: &str) -> Self {
        let known = SITES.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.unwrap_or_else(|| {
            let new = Self(Arc::new(Text(name.into())));
            let mut sites = SITES.write().unwrap_or_else(PoisonError::into_inner);
            if sites.len() < SITES_MAX {
                sites.insert(new.clone());
            }
            new
        })
    }
}

impl Deref for SiteName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.0
    }
}

impl Borrow<str> for SiteName {
    fn borrow(&self) -> &str {
        self
    }
}

impl fmt::Debug for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// The stored ranges of a body, behind one thin pointer: few responses have such a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredParts(Box<[Range<u64>]>);

impl Deref for StoredParts {
    type Target = [Range<u64>];

    fn deref(&self) -> &[Range<u64>] {
        &self.0
    }
}

impl<T: Into<Box<[Range<u64>]>>> From<T> for Box<StoredParts> {
    fn from(parts: T) -> Self {
        Self::new(StoredParts(parts.into()))
    }
}

/// Hashes of a response's tags, behind one thin pointer: most responses have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TagHashes(Option<Box<Box<[u64]>>>);

impl Deref for TagHashes {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        self.0.as_ref().map_or(&[], |hashes| hashes)
    }
}

/// The values of a variant's selecting fields. Nearly all responses have none: 8 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VariantText(Option<Box<Box<str>>>);

impl Deref for VariantText {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_ref().map_or("", |text| text)
    }
}

impl<T: Into<Box<str>>> From<T> for VariantText {
    fn from(text: T) -> Self {
        let text = text.into();
        Self((!text.is_empty()).then(|| Box::new(text)))
    }
}

impl<T: Into<Box<[u64]>>> From<T> for TagHashes {
    fn from(hashes: T) -> Self {
        let hashes = hashes.into();
        Self((!hashes.is_empty()).then(|| Box::new(hashes)))
    }
}

impl FromIterator<u64> for TagHashes {
    fn from_iter<I: IntoIterator<Item = u64>>(hashes: I) -> Self {
        hashes.into_iter().collect::<Vec<u64>>().into()
    }
}

/// The maximum number of shared names, which are never freed. Each response has its own copy of a name beyond it.
const SITES_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_as_they_were_put_and_ends_are_held() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_795_000_000, 123_456_789);
        assert_eq!(Nanoseconds::from(time).time(), time);
        let early = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Nanoseconds::from(early).time(), SystemTime::UNIX_EPOCH);
        assert_eq!(Nanoseconds::from(Duration::MAX), Nanoseconds(u64::MAX));
        assert!(Nanoseconds(u64::MAX).time() > time);
        for (millis, seconds) in [(0, 0), (1, 1), (1000, 1), (1001, 2)] {
            let span = Seconds::from(Duration::from_millis(millis)).span();
            assert_eq!(span, Duration::from_secs(seconds));
        }
        assert_eq!(Seconds::from(Duration::MAX), Seconds(u32::MAX));
    }

    #[test]
    fn a_site_has_its_name_once() {
        let names = [SiteName::from("of this test"), SiteName::from("of this test")];
        assert!(Arc::ptr_eq(&names[0].0, &names[1].0));
        assert_eq!(&*names[0], "of this test");
        assert_eq!(size_of::<SiteName>() + size_of::<Option<Box<StoredParts>>>(), 16);
    }
}
