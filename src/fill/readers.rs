//! The readers of a fill: their cursors, and the wakers of those that wait. Pure: no lock.

use std::task::Waker;

/// The cursors of all readers, and the wakers of those that wait.
#[derive(Debug, Default)]
pub(super) struct Readers {
    slots: Vec<Option<ReaderSlot>>,
    free: Vec<usize>,
    /// The furthest cursor, while the body is arriving.
    pub fastest: Option<u64>,
    waiting: usize,
}

#[derive(Debug)]
struct ReaderSlot {
    cursor: u64,
    waker: Option<Waker>,
}

impl Readers {
    /// Adds a reader at `cursor`. Returns its slot.
    pub(super) fn enter(&mut self, cursor: u64) -> usize {
        self.fastest = self.fastest.max(Some(cursor));
        let new = Some(ReaderSlot { cursor, waker: None });
        if let Some(slot) = self.free.pop() {
            self.slots[slot] = new;
            return slot;
        }
        self.slots.push(new);
        self.slots.len() - 1
    }

    /// Removes a reader while the body is arriving: the fill follows the fastest of the others.
    pub(super) fn leave(&mut self, slot: usize) {
        let cursor = self.leave_after_end(slot);
        if self.fastest == Some(cursor) {
            self.fastest = self.cursors().max();
        }
    }

    /// Removes a reader when the body has ended and no reader sets the pace any more. Returns its cursor.
    pub(super) fn leave_after_end(&mut self, slot: usize) -> u64 {
        let reader = self.slots[slot].take().expect("a reader leaves once");
        self.free.push(slot);
        self.waiting -= usize::from(reader.waker.is_some());
        reader.cursor
    }

    /// Registers the waker of a reader that waits for bytes.
    pub(super) fn wait(&mut self, slot: usize, waker: &Waker) {
        let reader = self.slots[slot].as_mut().expect("the reader is there");
        match &mut reader.waker {
            Some(known) => known.clone_from(waker),
            empty => {
                *empty = Some(waker.clone());
                self.waiting += 1;
            }
        }
    }

    /// Number of readers.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Moves a reader to `cursor`. Returns whether it is now the fastest one, or as fast: the fill
    /// follows the fastest reader.
    pub(super) fn advance(&mut self, slot: usize, cursor: u64) -> bool {
        let reader = self.slots[slot].as_mut().expect("the reader is there");
        reader.cursor = cursor;
        let fastest = self.fastest.unwrap_or(0);
        self.fastest = Some(fastest.max(cursor));
        cursor >= fastest
    }

    /// Takes the wakers of all waiting readers. Call it under the lock; wake them after releasing it.
    pub(super) fn take_wakers(&mut self, into: &mut Vec<Waker>) {
        if self.waiting == 0 {
            return;
        }
        self.waiting = 0;
        into.extend(self.slots.iter_mut().flatten().filter_map(|reader| reader.waker.take()));
    }

    pub(super) fn cursors(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().flatten().map(|reader| reader.cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_fastest_leaves_the_next_one_paces() {
        let mut readers = Readers::default();
        let (slow, fast) = (readers.enter(0), readers.enter(0));
        assert!(readers.advance(fast, 500));
        assert!(!readers.advance(slow, 100));
        readers.leave(fast);
        assert_eq!((readers.fastest, readers.count()), (Some(100), 1));
        assert!(readers.advance(slow, 200));
        readers.leave(slow);
        assert_eq!((readers.fastest, readers.count()), (None, 0));
    }

    #[test]
    fn a_reader_that_leaves_takes_its_waker_along() {
        let mut readers = Readers::default();
        let (first, second) = (readers.enter(0), readers.enter(0));
        readers.wait(first, Waker::noop());
        readers.wait(first, Waker::noop());
        readers.wait(second, Waker::noop());
        readers.leave(first);
        let mut wakers = Vec::new();
        readers.take_wakers(&mut wakers);
        assert_eq!((wakers.len(), readers.waiting), (1, 0));
    }
}
