//! Reads `[pools.NAME.retry]`.

use crate::config::reader::Section;
use crate::upstream::Retry;

/// Reads the table.
pub(super) fn read_retry(section: &Section<'_>, retry: &mut Retry) {
    section.read_within("attempts_max", &mut retry.attempts_max, 1..=10);
    section.read_within("budget_percent", &mut retry.budget_percent, 0..=100);
    section.read("budget_reserve", &mut retry.budget_reserve);
}
