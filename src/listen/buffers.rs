//! Spare buffers of a worker.
//!
//! A connection takes a buffer when it has bytes to read or write, and returns it when it has none. An idle
//! connection therefore holds no buffer, and a busy one uses memory that is still in the core's cache.

use std::cell::RefCell;

/// Replaces `buffer` by a spare one with room for a usual head, if it has no capacity.
pub(super) fn hold(buffer: &mut Vec<u8>) -> &mut Vec<u8> {
    if buffer.capacity() == 0 {
        *buffer = take();
    }
    buffer
}

/// Returns `buffer` with its content to the spare ones.
pub(super) fn release(buffer: &mut Vec<u8>) {
    give(std::mem::take(buffer));
}

fn take() -> Vec<u8> {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
}

/// A buffer of unusual capacity is freed, and any buffer when there are enough.
fn give(mut buffer: Vec<u8>) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if (BUFFER_BYTES..=KEPT_BYTES_MAX).contains(&buffer.capacity()) && spare.len() < KEPT_MAX {
            spare.push(buffer);
        }
    });
}

thread_local! {
    /// The last one returned is taken first.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

const BUFFER_BYTES: usize = 4 << 10;
const KEPT_BYTES_MAX: usize = 16 << 10;
const KEPT_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_buffer_is_reused_empty() {
        let mut buffer = take();
        buffer.extend_from_slice(b"GET");
        let place = buffer.as_ptr();
        give(buffer);
        let again = take();
        assert!(again.is_empty() && again.as_ptr() == place);
    }

    #[test]
    fn no_more_is_kept_than_is_worth_it() {
        give(Vec::new());
        give(Vec::with_capacity(KEPT_BYTES_MAX + 1));
        (0..=KEPT_MAX).for_each(|_| give(Vec::with_capacity(BUFFER_BYTES)));
        SPARE.with_borrow(|spare| {
            assert_eq!(spare.len(), KEPT_MAX);
            assert!(spare.iter().all(|buffer| buffer.capacity() == BUFFER_BYTES));
        });
    }
}
