//! Reads the last entries of the stream that a node has applied, and chooses how many entries a read takes.

use redis::RedisResult;

use super::connection::RedisConnection;
use super::record::{PurgeRecord, StreamCursor, StreamEntry};

/// The last purges up to the cursor that this node has certainly applied, latest first: at most
/// [`PURGES_MAX`], of about 8 MiB, ordered after `oldest_ms` (milliseconds since 1970).
pub(super) async fn read(
    connection: &mut RedisConnection,
    cursor: &StreamCursor,
    oldest_ms: f64,
) -> RedisResult<Vec<PurgeRecord>> {
    let mut cursor = cursor.clone();
    let mut records = Vec::new();
    let (mut count, mut bytes) = (READ_COUNT_MIN, 0);
    while records.len() < PURGES_MAX && bytes < READ_BYTES {
        let entries = connection.read_back(cursor.id, count).await?;
        let is_young = |entry: &&StreamEntry| {
            entry.record.as_ref().is_none_or(|record| record.at_ms >= oldest_ms)
        };
        let applied: Vec<&StreamEntry> = cursor.applied(&entries).take_while(is_young).collect();
        bytes += entries.iter().map(|entry| entry.record_bytes).sum::<usize>();
        records.extend(applied.iter().filter_map(|entry| entry.record.clone()));
        let before = applied.last().and_then(|last| last.number.checked_sub(1).zip(last.previous));
        match before {
            Some((number, id)) if applied.len() == count => {
                (cursor.number, cursor.id) = (Some(number), id);
            }
            _ => break,
        }
        count = next_count(&entries, count);
    }
    records.truncate(PURGES_MAX);
    Ok(records)
}

/// Number of entries for the next read. Redis limits a read by entry count only, so choose a count
/// that gives about `READ_BYTES` at the size of the longest of the last entries.
pub(super) fn next_count(entries: &[StreamEntry], count: usize) -> usize {
    let Some(longest) = entries.iter().map(|entry| entry.record_bytes).max() else { return count };
    let fits = READ_BYTES / longest.max(1);
    fits.clamp(READ_COUNT_MIN, (2 * count).min(READ_COUNT_MAX))
}

/// Purges that a node confirms again after its start.
pub(super) const PURGES_MAX: usize = 256;
const READ_BYTES: usize = 8 << 20;
pub(super) const READ_COUNT_MIN: usize = 8;
/// Each read costs one fsync of the purge log, so this bounds the throughput on a slow disk: 512
/// entries per fsync.
const READ_COUNT_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_entries_are_read_in_smaller_parts() {
        let entries = |record_bytes| {
            let epoch = String::new();
            [StreamEntry {
                id: Default::default(),
                epoch,
                number: 1,
                previous: None,
                record: None,
                record_bytes,
            }]
        };
        assert_eq!(next_count(&entries(300), 8), 16, "the count grows step by step");
        assert_eq!(next_count(&entries(300), 512), 512);
        assert_eq!(next_count(&[], 64), 64);
        assert_eq!(next_count(&entries(100 << 10), 512), 81);
        assert_eq!(next_count(&entries(4 << 20), 512), 8);
    }
}
