//! The allocator of the node's binary: mimalloc.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mimalloc;

/// mimalloc, asked for an alignment only if its memory would not have it anyway. The wrapper of the crate
/// always asks: mimalloc 3 then takes a slow path for sizes above 1 KiB that are no power of two, which cost
/// a forwarded request 1,300 instructions.
#[derive(Clone, Copy, Debug)]
pub struct Allocator;

/// Whether mimalloc aligns `size` bytes so without being asked. Its own limit is MI_MAX_ALIGN_SIZE.
fn is_natural(size: usize, align: usize) -> bool {
    align <= NATURAL_ALIGN && align <= size
}

impl Allocator {
    /// Lets the kernel give this process memory in pages of 4 KiB only. mimalloc asks for huge ones, and clearing one of
    /// 2 MiB held up all requests of a worker for 6 ms (measured in a virtual machine) whenever the cache grew. Hits cost
    /// the same without. Call it at the start; a kernel without the setting is left as it is.
    pub fn use_small_pages(self) {
        let _ = rustix::thread::disable_transparent_huge_pages(true);
    }
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: each function hands on what it was given, and mimalloc's contract is that of malloc.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as above.
        unsafe {
            match is_natural(size, align) {
                true => mimalloc::mi_malloc(size),
                false => mimalloc::mi_malloc_aligned(size, align),
            }
        }
        .cast()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as above.
        unsafe {
            match is_natural(size, align) {
                true => mimalloc::mi_zalloc(size),
                false => mimalloc::mi_zalloc_aligned(size, align),
            }
        }
        .cast()
    }

    unsafe fn dealloc(&self, place: *mut u8, _: Layout) {
        // SAFETY: as above.
        unsafe { mimalloc::mi_free(place.cast()) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            match is_natural(size, layout.align()) {
                true => mimalloc::mi_realloc(place.cast(), size),
                false => mimalloc::mi_realloc_aligned(place.cast(), size, layout.align()),
            }
        }
        .cast()
    }
}

/// The alignment of all memory that is at least as long (MI_MAX_ALIGN_SIZE).
const NATURAL_ALIGN: usize = 16;

#[cfg(test)]
#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_keeps_its_bytes() {
        for size in (1..2_000).chain([4_000, 4_096, 70_001, 1 << 20, (1 << 20) + 24]) {
            for align in [1, 2, 4, 8, 16, 32, 128, 4_096] {
                let layout = Layout::from_size_align(size, align).expect("a layout");
                // SAFETY: the layout is not empty, and that of what is written and freed.
                unsafe {
                    let zeroed = Allocator.alloc_zeroed(layout);
                    assert_eq!(zeroed as usize % align, 0, "{layout:?}");
                    assert!((0..size).all(|at| *zeroed.add(at) == 0), "{layout:?}");
                    zeroed.write_bytes(7, size);
                    let grown = Allocator.realloc(zeroed, layout, 2 * size);
                    assert_eq!(grown as usize % align, 0, "grown from {layout:?}");
                    assert!((0..size).all(|at| *grown.add(at) == 7), "{layout:?}");
                    let other = Allocator.alloc(layout);
                    assert_eq!(other as usize % align, 0, "{layout:?}");
                    Allocator.dealloc(other, layout);
                    let layout = Layout::from_size_align(2 * size, align).expect("a layout");
                    Allocator.dealloc(grown, layout);
                }
            }
        }
    }
}
