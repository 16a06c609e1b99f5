//! The allocator of a guest: small blocks from free lists, everything else from the standard allocator.
//!
//! A filter allocates a few small things for a request and frees them before its end. The standard allocator of this target (dlmalloc) is
//! made for programs that need their memory back in one piece, and takes about a hundred instructions to allocate and as many to free; a
//! list takes a dozen. What was freed is what the next allocation of its size gets, so a list never has more blocks than its size had in
//! use at once. They do not go back to the standard allocator.

#![allow(unsafe_code, reason = "an allocator hands out raw memory")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr::{self, null_mut};

/// Sizes of blocks are multiples of this, in bytes.
const STEP: usize = 16;

/// How many sizes have a list: up to 1 KiB, which is more than most hooks that wait are.
const SIZES: usize = 64;

/// What blocks are aligned to: as much as the standard allocator gives without being asked. Little asks for more.
const ALIGN: usize = 8;

#[cfg(all(target_arch = "wasm32", not(target_feature = "atomics")))]
#[global_allocator]
static ALLOCATOR: FreeLists<std::alloc::System> = FreeLists::over(std::alloc::System);

// SAFETY: this target has no threads.
#[cfg(all(target_arch = "wasm32", not(target_feature = "atomics")))]
unsafe impl<A> Sync for FreeLists<A> {}

/// Free blocks by size, and where they come from.
struct FreeLists<A> {
    lists: [Cell<*mut Free>; SIZES],
    source: A,
}

/// The beginning of a free block.
struct Free {
    next: *mut Free,
}

impl<A: GlobalAlloc> FreeLists<A> {
    const fn over(source: A) -> Self {
        Self { lists: [const { Cell::new(null_mut()) }; SIZES], source }
    }

    /// Which list blocks for this layout are in; `None` when the source serves it directly. A layout always gets the same answer.
    #[inline(always)]
    fn list(&self, layout: Layout) -> Option<&Cell<*mut Free>> {
        if layout.align() > ALIGN {
            return None;
        }
        // Nobody may ask for no bytes; who does is sent to the source.
        self.lists.get(layout.size().wrapping_sub(1) / STEP)
    }

    /// A new block for a list, from the source.
    ///
    /// # Safety
    /// `layout` is one that has a list.
    #[cold]
    #[inline(never)]
    unsafe fn refill(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the size is between 1 and `STEP * SIZES`, rounded up it is not 0 and far from overflowing; the alignment is a power of two.
        let layout = unsafe { Layout::from_size_align_unchecked(layout.size().next_multiple_of(STEP), ALIGN) };
        // SAFETY: the size is not 0.
        unsafe { self.source.alloc(layout) }
    }
}

// SAFETY: a block is in a list or with whoever allocated it, never both; it is at least as large and as aligned as each layout that its list
// serves (`list`, `refill`), and large enough for a `Free`. Everything else is the source's.
unsafe impl<A: GlobalAlloc> GlobalAlloc for FreeLists<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(list) = self.list(layout) else {
            // SAFETY: the caller keeps the contract, which is the same one.
            return unsafe { self.source.alloc(layout) };
        };
        let first = list.get();
        if first.is_null() {
            // SAFETY: it has a list.
            return unsafe { self.refill(layout) };
        }
        // SAFETY: `dealloc` wrote it there, and nobody else has had the block since.
        list.set(unsafe { (*first).next });
        first.cast()
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(list) = self.list(layout) else {
            // SAFETY: as in `alloc`; the layout that was served by the source then is so now.
            return unsafe { self.source.dealloc(block, layout) };
        };
        let free: *mut Free = block.cast();
        // SAFETY: the block is ours again. It has at least `STEP` bytes and is aligned to `ALIGN`, both enough for a pointer.
        unsafe { free.write(Free { next: list.get() }) };
        list.set(free);
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.list(layout).is_none() {
            // SAFETY: as in `alloc`. The source may know that memory is zero already.
            return unsafe { self.source.alloc_zeroed(layout) };
        }
        // SAFETY: as in `alloc`.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: it has that many bytes.
            unsafe { ptr::write_bytes(block, 0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller sees to it that the size does not overflow when it is rounded up to the alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (self.list(layout), self.list(wanted)) {
            // SAFETY: the caller keeps the contract; both layouts are the source's.
            (None, None) => unsafe { self.source.realloc(block, layout, size) },
            (Some(old), Some(new)) if ptr::eq(old, new) => block,
            _ => {
                // SAFETY: as in `alloc`.
                let new = unsafe { self.alloc(wanted) };
                if !new.is_null() {
                    // SAFETY: both have that many bytes, and are not the same.
                    unsafe { ptr::copy_nonoverlapping(block, new, layout.size().min(size)) };
                    // SAFETY: it is the caller's, with this layout.
                    unsafe { self.dealloc(block, layout) };
                }
                new
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::System;
    use std::collections::HashMap;

    use super::*;

    /// The standard allocator, which checks that what it gave comes back as it was, and counts what it has given.
    #[derive(Default)]
    struct Source {
        given: std::cell::RefCell<HashMap<usize, Layout>>,
        calls: Cell<usize>,
        full: Cell<bool>,
    }

    // SAFETY: passes everything on.
    unsafe impl GlobalAlloc for Source {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if self.full.get() {
                return null_mut();
            }
            assert_ne!(layout.size(), 0);
            self.calls.set(self.calls.get() + 1);
            // SAFETY: it is not empty.
            let block = unsafe { System.alloc(layout) };
            self.given.borrow_mut().insert(block.addr(), layout);
            block
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            assert_eq!(self.given.borrow_mut().remove(&block.addr()), Some(layout));
            // SAFETY: it was given with this layout.
            unsafe { System.dealloc(block, layout) };
        }
    }

    /// What a caller has, and the byte that all of it was filled with.
    struct Held {
        block: *mut u8,
        layout: Layout,
        mark: u8,
    }

    impl Held {
        fn bytes(&self) -> &[u8] {
            // SAFETY: it was allocated with this size and filled.
            unsafe { std::slice::from_raw_parts(self.block, self.layout.size()) }
        }

        fn check(&self) {
            assert!(self.block.addr().is_multiple_of(self.layout.align()), "{:?}", self.layout);
            assert!(
                self.bytes().iter().all(|byte| *byte == self.mark),
                "{:?} was written to by somebody else",
                self.layout
            );
        }

        fn fill(&self) {
            // SAFETY: it has so many bytes.
            unsafe { ptr::write_bytes(self.block, self.mark, self.layout.size()) };
        }
    }

    /// xorshift64, so that a failure comes again.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
        }

        fn layout(&mut self) -> Layout {
            let size = match self.below(4) {
                0 => 1 + self.below(40),
                1 => 1 + self.below(STEP * SIZES),
                2 => STEP * SIZES - 20 + self.below(40),
                _ => 1 + self.below(5000),
            };
            Layout::from_size_align(size, 1 << self.below(6)).unwrap()
        }
    }

    #[test]
    fn nothing_overlaps_and_everything_keeps_its_content() {
        let (lists, mut random) = (FreeLists::over(Source::default()), Random(0x2545_f491_4f6c_dd1d));
        let mut held: Vec<Held> = Vec::new();
        for step in 0..60_000_usize {
            let mark = u8::try_from(step % 251).unwrap();
            // Grows and shrinks in turns.
            let more = if step / 500 % 2 == 0 { 6 } else { 3 };
            match random.below(10) {
                choice if choice < more || held.is_empty() => {
                    let layout = random.layout();
                    // SAFETY: it is not empty.
                    let block = unsafe { lists.alloc(layout) };
                    held.push(Held { block, layout, mark });
                    held.last().unwrap().fill();
                }
                8 => {
                    let layout = random.layout();
                    // SAFETY: it is not empty.
                    let block = unsafe { lists.alloc_zeroed(layout) };
                    let zeroed = Held { block, layout, mark: 0 };
                    zeroed.check();
                    held.push(zeroed);
                }
                9 => {
                    let at = random.below(held.len());
                    let old = &mut held[at];
                    old.check();
                    let size = random.layout().size();
                    // SAFETY: it was allocated with this layout, and the size is not 0.
                    old.block = unsafe { lists.realloc(old.block, old.layout, size) };
                    let kept = Layout::from_size_align(size.min(old.layout.size()), old.layout.align()).unwrap();
                    Held { block: old.block, layout: kept, mark: old.mark }.check();
                    old.layout = Layout::from_size_align(size, old.layout.align()).unwrap();
                    old.fill();
                }
                _ => {
                    let old = held.swap_remove(random.below(held.len()));
                    old.check();
                    // SAFETY: it was allocated with this layout.
                    unsafe { lists.dealloc(old.block, old.layout) };
                }
            }
        }
        for old in held {
            old.check();
            // SAFETY: it was allocated with this layout.
            unsafe { lists.dealloc(old.block, old.layout) };
        }
        assert!(
            lists.source.given.borrow().values().all(|layout| layout.size() <= STEP * SIZES && layout.align() == ALIGN)
        );
    }

    #[test]
    fn a_list_has_no_more_blocks_than_were_in_use_at_once() {
        let lists = FreeLists::over(Source::default());
        let layout = |size| Layout::from_size_align(size, 1).unwrap();
        for round in 0..100 {
            // All of one list, whatever their exact size.
            let sizes = [33, 40, 48, 33 + round % 16];
            // SAFETY: none is empty.
            let blocks = sizes.map(|size| unsafe { lists.alloc(layout(size)) });
            for (block, size) in blocks.into_iter().zip(sizes) {
                // SAFETY: it was allocated with this layout.
                unsafe { lists.dealloc(block, layout(size)) };
            }
        }
        assert_eq!(lists.source.calls.get(), 4);
        let free = lists.source.given.borrow().clone();
        for (block, layout) in free {
            // SAFETY: nobody uses the lists any more.
            unsafe { lists.source.dealloc(ptr::with_exposed_provenance_mut(block), layout) };
        }
    }

    #[test]
    fn the_last_one_freed_is_the_first_one_given() {
        let lists = FreeLists::over(System);
        let layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: it is not empty.
        let (one, two) = unsafe { (lists.alloc(layout), lists.alloc(layout)) };
        assert_ne!(one, two);
        // SAFETY: they were allocated with this layout.
        unsafe { (lists.dealloc(one, layout), lists.dealloc(two, layout)) };
        // SAFETY: it is not empty.
        assert_eq!(unsafe { (lists.alloc(layout), lists.alloc(layout)) }, (two, one));
        let block = Layout::from_size_align(112, ALIGN).unwrap();
        // SAFETY: that is what `refill` asks for.
        unsafe { (System.dealloc(one, block), System.dealloc(two, block)) };
    }

    #[test]
    fn memory_that_is_not_there_is_told() {
        let lists = FreeLists::over(Source::default());
        let (small, large) = (Layout::from_size_align(10, 1).unwrap(), Layout::from_size_align(10_000, 1).unwrap());
        // SAFETY: it is not empty.
        let block = unsafe { lists.alloc(small) };
        // SAFETY: it has ten bytes.
        unsafe { ptr::write_bytes(block, 7, 10) };
        lists.source.full.set(true);
        // SAFETY: none is empty; the block was allocated with its layout.
        unsafe {
            assert!(lists.alloc(small).is_null());
            assert!(lists.alloc_zeroed(small).is_null());
            assert!(lists.alloc(large).is_null());
            // The block stays as it was.
            assert!(lists.realloc(block, small, 10_000).is_null());
            assert_eq!(std::slice::from_raw_parts(block, 10), [7; 10]);
            lists.source.dealloc(block, Layout::from_size_align(16, ALIGN).unwrap());
        }
    }
}
