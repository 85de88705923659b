//! Fuzz targets: what comes over the bus, and what peers deliver.

use super::deliveries::DeliveryCall;
use super::record::{PurgeRecord, StreamCursor};
use crate::cache::{PurgeKind, PurgeScope};
use crate::purge::PurgeRequest;

/// A record or a cursor that can be read, or that is made of the bytes, is the same after it was written and
/// read again, and lists show a bounded part of a scope.
pub(crate) fn bus_record(data: &[u8]) {
    for record in PurgeRecord::parse(data).into_iter().chain([made_of(data)]) {
        assert_eq!(PurgeRecord::parse(&record.to_bytes()).as_ref(), Some(&record));
        assert_eq!(record.purges().count(), record.scopes.len());
        for scope in &record.scopes {
            let shown = format!("{:?}", scope.shortened());
            assert!(shown.chars().count() <= 16 * 300, "{shown}");
        }
    }
    if let Some(cursor) = StreamCursor::parse(data) {
        assert_eq!(StreamCursor::parse(&cursor.to_bytes()), Some(cursor));
    }
}

/// A call with deliveries that can be read is the same after it was written and read again.
pub(crate) fn peer_purges(data: &[u8]) {
    if let Some((call, lineage)) = DeliveryCall::parse(data) {
        let written = serde_json::to_vec(&call).expect("strings and numbers are JSON");
        assert_eq!(DeliveryCall::parse(&written), Some((call, lineage)));
    }
}

/// The first byte chooses kinds, the second is the refresh; each line is a scope.
fn made_of(data: &[u8]) -> PurgeRecord {
    let (choice, refresh) = (data.first().copied().unwrap_or(0), data.get(1).copied().unwrap_or(0));
    let scope = |(at, line): (usize, &[u8])| {
        let text = String::from_utf8_lossy(line).into();
        match (at + usize::from(choice)) % 5 {
            0 => PurgeScope::Url(text),
            1 => PurgeScope::Prefix(text),
            2 => PurgeScope::Tag(text),
            3 => PurgeScope::Site(text),
            _ => PurgeScope::All,
        }
    };
    let lines = data.split(|byte| *byte == b'\n').enumerate();
    let scopes: Vec<PurgeScope> = lines.map(scope).collect();
    let kind = if choice & 1 == 0 { PurgeKind::Soft } else { PurgeKind::Hard };
    let text = String::from_utf8_lossy(data).into_owned();
    let reason = (choice & 2 != 0).then(|| text.clone());
    let request = PurgeRequest { scopes, kind, reason, refresh: usize::from(refresh) };
    PurgeRecord::new(text, "n".to_owned(), f64::from(choice), request)
}
