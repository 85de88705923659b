//! Fuzz target: what comes over the bus.

use super::record::{PurgeRecord, StreamCursor};

/// A record that is understood is written and read without a change, and what lists show of its
/// scopes is bounded. So is a position.
pub(crate) fn bus_record(data: &[u8]) {
    if let Some(record) = PurgeRecord::parse(data) {
        assert_eq!(PurgeRecord::parse(&record.to_bytes()).as_ref(), Some(&record));
        assert_eq!(record.purges().count(), record.scopes.len());
        for scope in &record.scopes {
            let shown = format!("{:?}", scope.shortened());
            assert!(shown.chars().count() <= 16 * 300, "{shown}");
        }
    }
    if let Some(position) = StreamCursor::parse(data) {
        assert_eq!(StreamCursor::parse(&position.to_bytes()), Some(position));
    }
}
