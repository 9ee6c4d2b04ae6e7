//! Which leaf each region has, and how long leaves live.
//!
//! Owns every pointer to a leaf, and its memory where that is not an `arena`'s. Never knows what
//! their words say. Keeps I18 (a leaf is not freed while anyone may look at it) and, with it, I12: a
//! leaf that was replaced goes as soon as the last call that was in it when that happened has
//! returned.
//!
//! A region's word is `pins:11 | class:5 | address:48`, 0 while it has no leaf. Flat leaves live as
//! long as the directory, so a look at one is a load and an index. Sparse ones are **pinned**
//! first, by adding one to the very word that names them: whoever replaces the word gets the number
//! of those who still are in the old leaf, and moves it to the leaf's own count of references. Each
//! of them takes itself back where it finds its pin: in the word while that names its leaf, else in
//! the leaf. Who takes the last reference frees it. There is no epoch, no list of what is to be
//! freed, and nothing that a sleeping worker could hold up.
//!
//! | what happens to a sparse leaf | the region's word | the leaf's count |
//! | --- | --- | --- |
//! | it is pinned | + 1 pin | |
//! | a pin goes while the word names it | − 1 pin | |
//! | it is replaced | names the next leaf, no pins | + those pins − [`NAMED`] |
//! | a pin goes after that | | − 1 |
//! | its count reaches 0 | | it is freed, and the next one's goes down by 1 |
//!
//! References to a sparse leaf: [`NAMED`] while a region's word names it or is about to, one from
//! the leaf that it replaces while that lives (who helps to move words gets to it that way), and
//! the pins that were moved to it.

#![allow(unsafe_code)]

use super::arena::Memory;
use super::leaf::{Class, HEAD, Leaf, REFERENCE, REGION, Sparse};
use super::word::Key;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// More references than there can be pins.
const NAMED: u64 = 1 << 20;

/// A region's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RegionWord(u64);

impl RegionWord {
    const NONE: RegionWord = RegionWord(0);
    const ADDRESS_BITS: u32 = 48;
    const PIN_SHIFT: u32 = Self::ADDRESS_BITS + Class::BITS;
    /// One who is in the leaf. There is room for 2047, and at most as many as there are threads:
    /// each is in one region's leaf at a time, twice where it looks again from within.
    const PIN: u64 = 1 << Self::PIN_SHIFT;

    const fn class(self) -> Class {
        Class::from_bits(self.0 >> Self::ADDRESS_BITS & ((1 << Class::BITS) - 1))
    }

    const fn pins(self) -> u64 {
        self.0 >> Self::PIN_SHIFT
    }

    const fn without_pins(self) -> RegionWord {
        RegionWord(self.0 & (Self::PIN - 1))
    }

    fn address(self) -> *mut AtomicU64 {
        let address = self.0 & ((1 << Self::ADDRESS_BITS) - 1);
        std::ptr::with_exposed_provenance_mut(address as usize)
    }

    /// Memory for an empty leaf, with these references.
    fn allocate(memory: &Memory, class: Class, references: u64) -> RegionWord {
        let address = Self::in_arena(memory, class).unwrap_or_else(|| {
            let words: Box<[AtomicU64]> = (0..class.words()).map(|_| AtomicU64::new(0)).collect();
            Box::into_raw(words).cast::<AtomicU64>().expose_provenance()
        }) as u64;
        assert!(address >> Self::ADDRESS_BITS == 0, "memory lies below 2^48 unless asked for");
        let slot = RegionWord(class.to_bits() << Self::ADDRESS_BITS | address);
        // SAFETY: it was made above, and nobody else has it.
        if let Leaf::Sparse(leaf) = unsafe { slot.leaf() } {
            leaf.counts().store(references * REFERENCE, Ordering::Relaxed);
        }
        slot
    }

    fn in_arena(memory: &Memory, class: Class) -> Option<usize> {
        match memory {
            // The model checker's atomics are no words.
            Memory::Arena(arena) if !cfg!(feature = "shuttle") => arena.allocate(class),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        self.class().words() * 8
    }

    /// # Safety
    /// The word came from [`RegionWord::allocate`], and the leaf is not freed during `'a`.
    unsafe fn leaf<'a>(self) -> Leaf<'a> {
        let words = std::ptr::slice_from_raw_parts(self.address(), self.class().words());
        // SAFETY: `allocate` made that many words there, and the caller sees to it that they stay;
        // they are atomics, and nothing else ever refers to them.
        let words = unsafe { &*words };
        match words.try_into() {
            Ok(words) if self.class() == Class::FLAT => Leaf::Flat(words),
            _ => Leaf::Sparse(Sparse::of(words)),
        }
    }

    /// # Safety
    /// The word came from [`RegionWord::allocate`] of this memory, and this is the only use of the leaf
    /// from now on.
    unsafe fn free(self, memory: &Memory) {
        if let Memory::Arena(arena) = memory
            && arena.free(self.address().addr(), self.class())
        {
            return;
        }
        let words = std::ptr::slice_from_raw_parts_mut(self.address(), self.class().words());
        // SAFETY: `allocate` took them from a box of that many words, and nobody else has them.
        drop(unsafe { Box::from_raw(words) });
    }
}

/// See the module's description.
pub(super) struct Directory {
    regions: Box<[AtomicU64]>,
    /// Where leaves lie.
    memory: Memory,
    /// Bytes of all leaves.
    bytes: AtomicUsize,
}

/// What a region has.
pub(super) enum Look<'a> {
    Nothing,
    Flat(&'a [AtomicU64; REGION]),
    /// To be pinned.
    Sparse,
}

/// A leaf that stays while this lives.
pub(super) struct Pinned<'a> {
    directory: &'a Directory,
    region: usize,
    /// Without pins.
    slot: RegionWord,
}

impl Directory {
    pub(super) fn new(regions: usize, memory: Memory) -> Directory {
        let regions = (0..regions).map(|_| AtomicU64::new(0)).collect();
        Directory { regions, memory, bytes: AtomicUsize::new(0) }
    }

    pub(super) fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Bytes taken, in memory or not.
    pub(super) fn memory(&self) -> usize {
        self.regions.len() * 8 + self.bytes.load(Ordering::Relaxed)
    }

    /// What `region` has, if that can be said without pinning it.
    #[inline]
    pub(super) fn look(&self, region: usize) -> Look<'_> {
        let slot = RegionWord(self.regions[region].load(Ordering::Acquire));
        if slot.class() == Class::FLAT {
            self.touch(slot);
            // SAFETY: the word came from `allocate`, with `REGION` words for this class, and was
            // published with Release; a flat leaf is freed by `drop` alone.
            return Look::Flat(unsafe { &*slot.address().cast() });
        }
        if slot == RegionWord::NONE { Look::Nothing } else { Look::Sparse }
    }

    /// Asks the processor for the word at which a look for `key` begins, and does not wait for it.
    #[inline]
    pub(super) fn prefetch(&self, region: usize, key: Key) {
        let slot = RegionWord(self.regions[region].load(Ordering::Relaxed));
        if slot != RegionWord::NONE {
            prefetch(slot.address().wrapping_add(slot.class().first(key)));
        }
    }

    /// The leaf of `region`, if it has one.
    pub(super) fn pin(&self, region: usize) -> Option<Pinned<'_>> {
        let cell = &self.regions[region];
        if RegionWord(cell.load(Ordering::Relaxed)) == RegionWord::NONE {
            return None;
        }
        // A region that has a leaf always has one.
        let slot = RegionWord(cell.fetch_add(RegionWord::PIN, Ordering::Acquire)).without_pins();
        Some(Pinned { directory: self, region, slot })
    }

    /// The leaf of `region`, and where it has none one with room for `count` chunks.
    pub(super) fn pin_or_make(&self, region: usize, count: usize) -> Pinned<'_> {
        loop {
            if let Some(pinned) = self.pin(region) {
                return pinned;
            }
            self.make(region, Class::for_count(count));
        }
    }

    /// Gives `region` a leaf with room for `count` chunks, where it has none: true there.
    pub(super) fn reserve(&mut self, region: usize, count: usize) -> bool {
        let has_none = RegionWord(*self.regions[region].get_mut()) == RegionWord::NONE;
        if has_none {
            self.make(region, Class::for_count(count));
        }
        has_none
    }

    /// The words of `region`'s leaf, if it has one.
    pub(super) fn leaf_mut(&mut self, region: usize) -> Option<(Class, &mut [AtomicU64])> {
        let slot = RegionWord(*self.regions[region].get_mut());
        if slot == RegionWord::NONE {
            return None;
        }
        self.touch(slot);
        let words = std::ptr::slice_from_raw_parts_mut(slot.address(), slot.class().words());
        // SAFETY: `allocate` made that many words there, and `&mut self` proves that nobody is in
        // any leaf.
        Some((slot.class(), unsafe { &mut *words }))
    }

    /// The leaf is about to be looked at.
    #[inline]
    fn touch(&self, slot: RegionWord) {
        if let Memory::Arena(arena) = &self.memory {
            arena.touch(slot.address().addr());
        }
    }

    fn make(&self, region: usize, class: Class) {
        let new = self.allocate(class, NAMED);
        let swapped = self.regions[region].compare_exchange(
            RegionWord::NONE.0,
            new.0,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if swapped.is_err() {
            // SAFETY: it lost the race, so nobody else has seen it.
            unsafe { self.free(new) };
        }
    }

    fn allocate(&self, class: Class, references: u64) -> RegionWord {
        let slot = RegionWord::allocate(&self.memory, class, references);
        self.bytes.fetch_add(slot.bytes(), Ordering::Relaxed);
        slot
    }

    /// # Safety
    /// As [`RegionWord::free`].
    unsafe fn free(&self, slot: RegionWord) {
        self.bytes.fetch_sub(slot.bytes(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { slot.free(&self.memory) };
    }

    /// Gives up one reference to a sparse leaf; the last frees it, and gives up the leaf's own to
    /// the one that replaced it.
    fn release(&self, mut slot: RegionWord) {
        while slot.class() != Class::FLAT {
            self.touch(slot);
            // SAFETY: the reference that is given up below keeps it until then.
            let Leaf::Sparse(leaf) = (unsafe { slot.leaf() }) else { return };
            if leaf.counts().fetch_sub(REFERENCE, Ordering::AcqRel) / REFERENCE != 1 {
                return;
            }
            let next = RegionWord(leaf.next().load(Ordering::Acquire));
            // SAFETY: it was the last reference: no region's word names the leaf, no leaf that
            // lives leads to it, and everyone who was in it has left.
            unsafe { self.free(slot) };
            slot = next;
        }
    }
}

impl Pinned<'_> {
    pub(super) fn leaf(&self) -> Leaf<'_> {
        self.directory.touch(self.slot);
        // SAFETY: the pin keeps it as long as `self` lives.
        unsafe { self.slot.leaf() }
    }

    /// Sees to it that a larger leaf takes the place of this one: of `class`, unless somebody else
    /// has begun with another.
    pub(super) fn replace(&self, class: Class) {
        let Leaf::Sparse(leaf) = self.leaf() else { return };
        let mut next = RegionWord(leaf.next().load(Ordering::Acquire));
        if next == RegionWord::NONE {
            let new = self.directory.allocate(class, NAMED + 1);
            let none = RegionWord::NONE.0;
            match leaf.next().compare_exchange(none, new.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => next = new,
                Err(other) => {
                    next = RegionWord(other);
                    // SAFETY: it lost the race, so nobody else has seen it.
                    unsafe { self.directory.free(new) };
                }
            }
        }
        self.directory.touch(next);
        // SAFETY: this leaf, which is pinned, has a reference to it.
        leaf.move_to(unsafe { next.leaf() });
        self.name(next, leaf);
    }

    /// Makes the region's word name `next` instead of `leaf`, which is this one, unless somebody
    /// did before.
    fn name(&self, next: RegionWord, leaf: Sparse<'_>) {
        let cell = &self.directory.regions[self.region];
        let mut now = RegionWord(cell.load(Ordering::Relaxed));
        while now.without_pins() == self.slot {
            match cell.compare_exchange(now.0, next.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    // The pins become the leaf's, and the word no longer names it. In one step: one
                    // of the pins is our own, so the count stays above 0.
                    let references = now.pins().wrapping_sub(NAMED);
                    leaf.counts().fetch_add(references.wrapping_mul(REFERENCE), Ordering::AcqRel);
                    return;
                }
                Err(other) => now = RegionWord(other),
            }
        }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let cell = &self.directory.regions[self.region];
        let mut now = RegionWord(cell.load(Ordering::Relaxed));
        // The word cannot have come to name another leaf at this address: this one still lives.
        while now.without_pins() == self.slot {
            let less = now.0 - RegionWord::PIN;
            match cell.compare_exchange_weak(now.0, less, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => now = RegionWord(other),
            }
        }
        self.directory.release(self.slot);
    }
}

/// Asks for the cache line of an address, which need not be one that can be read.
#[inline]
fn prefetch(address: *const AtomicU64) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, that has no effect but on caches, and faults at no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    let _ = address;
}

impl Drop for Directory {
    fn drop(&mut self) {
        for region in &mut self.regions {
            let mut slot = RegionWord(*region.get_mut());
            while slot != RegionWord::NONE {
                if let Memory::Arena(arena) = &self.memory {
                    arena.touch(slot.address().addr());
                }
                // SAFETY: `&mut self` proves that nobody is in any leaf. Those that were replaced
                // are gone with whoever was in them; the region's is left, and the one that was
                // to replace it where a panic came between.
                let next = match unsafe { slot.leaf() } {
                    Leaf::Flat(_) => RegionWord::NONE,
                    Leaf::Sparse(leaf) => RegionWord(leaf.next().load(Ordering::Acquire)),
                };
                // SAFETY: nothing refers to it any more.
                unsafe { slot.free(&self.memory) };
                // The region's own word may have pins of calls that were forgotten.
                slot = next;
            }
        }
    }
}

const _: () = assert!(HEAD == 2);

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
