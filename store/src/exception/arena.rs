//! The exception table cache: memory for leaves that need not stay in memory.
//!
//! Owns a mapped, unnamed file and its allocation: blocks of 64 KiB, each with leaves of one size.
//! Owns the bound on how much of the file is in memory, and the thread that keeps the bound. Never
//! knows the content of a leaf. Keeps: a leaf is zero when it is allocated, and has one owner; the
//! part of the file in memory stays below the bound, except for one block per thread (I12).
//!
//! The kernel keeps evicted pages in its page cache and on disk, and the next access brings them
//! back by a page fault, without a lock or waiting here. A thread announces each access first
//! ([`Arena::touch`]): usually one load. At fifteen sixteenths of the bound the **evictor** is
//! woken, and evicts blocks down to seven eighths; a thread that reaches the bound before the
//! evictor has come so far evicts, too. So the bound holds however threads are scheduled, and the
//! evictor of an idle process sleeps.
//!
//! Allocation takes no lock. Free leaves of a size form a stack whose first word points to the
//! next, and whose head has a tag that changes each time. A size without free leaves takes the
//! next leaf of its block, or another block. If the file cannot grow, this is not an error: leaves
//! then go to the heap, as without an arena, and one warning reports it.

mod clock;
mod mapping;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

use super::leaf::Class;
use clock::Clock;
use mapping::Mapping;

/// Bytes of a block: the most that the kernel maps around a fault.
pub(super) const BLOCK: u64 = 64 << 10;
/// Bytes of address space, and the largest size of the file: some 4 to 8 billion exceptions.
const RESERVED: u64 = 64 << 30;
/// How many times an access waits for other threads that evict blocks, before it exceeds the
/// bound.
const PATIENCE: usize = 64;
/// Blocks that the file grows by.
const GROW: u64 = 256;

/// Where tables keep their exceptions.
#[derive(Clone, Debug, Default)]
pub enum Memory {
    /// In the process's memory, all of them.
    #[default]
    Heap,
    /// In a file, with a bound on what is in memory.
    Arena(Arc<Arena>),
}

/// See the module's description.
pub struct Arena {
    shared: Arc<Shared>,
    evictor: Option<JoinHandle<()>>,
    /// To wake it.
    thread: Thread,
}

/// The part that the evictor shares.
struct Shared {
    mapping: Mapping,
    clock: Clock,
    /// Blocks that may be in memory.
    bound: usize,
    /// Blocks of these that are reserved for another use at present.
    aside: AtomicUsize,
    /// Blocks handed out, and the one that stands for none.
    used: AtomicU64,
    sizes: [Size; 1 << Class::BITS],
    /// The evictor was woken, and has not begun.
    asked: AtomicBool,
    /// The file could not grow, and the warning was given.
    refused: AtomicBool,
    ends: AtomicBool,
}

/// Leaves of one size.
#[derive(Default)]
struct Size {
    /// The block that leaves are taken from, and how many were taken: `block << 16 | leaves`.
    fresh: AtomicU64,
    /// The free leaves: `tag << 33 | offset of the first / 8`.
    free: AtomicU64,
}

/// Bits of an offset in words.
const OFFSET_BITS: u32 = 33;
const _: () = assert!(RESERVED / 8 <= 1 << OFFSET_BITS);

/// Bytes of the bound that are used for something else while this lives.
pub struct Aside<'a> {
    arena: &'a Arena,
    blocks: usize,
}

impl Arena {
    /// The smallest useful bound, in bytes: twice the size of one eviction.
    pub const LEAST: u64 = 8 << 20;

    /// An arena in a file in `dir`, of which no more than `bound` bytes are in memory.
    ///
    /// # Errors
    /// The system's error: for the directory, for 64 GiB of address space, or for a thread.
    pub fn new(dir: &Path, bound: u64) -> io::Result<Arc<Arena>> {
        let shared = Arc::new(Shared {
            mapping: Mapping::new(dir, RESERVED)?,
            clock: Clock::new((RESERVED / BLOCK) as usize),
            bound: (bound / BLOCK).max(1) as usize,
            aside: AtomicUsize::new(0),
            used: AtomicU64::new(1),
            sizes: Default::default(),
            asked: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        // If space cannot be reserved, fail now, and not for each leaf.
        shared.mapping.grow(GROW * BLOCK)?;
        let evicts = shared.clone();
        let evictor =
            std::thread::Builder::new().name("evictor".into()).spawn(move || evicts.evict())?;
        let thread = evictor.thread().clone();
        Ok(Arc::new(Arena { shared, evictor: Some(evictor), thread }))
    }

    /// Bytes that may be in memory.
    pub fn bound(&self) -> u64 {
        self.shared.bound as u64 * BLOCK
    }

    /// Bytes that are in memory, at most.
    pub fn resident(&self) -> u64 {
        self.shared.clock.resident() as u64 * BLOCK
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.shared.mapping.grown()
    }

    /// Bytes of it that are, or were, handed out.
    #[cfg(test)]
    pub fn used_bytes(&self) -> u64 {
        (self.shared.used() - 1) * BLOCK
    }

    /// The holder of this uses `bytes` of the bound for something else.
    pub fn set_aside(&self, bytes: u64) -> Aside<'_> {
        let blocks = bytes.div_ceil(BLOCK) as usize;
        self.shared.aside.fetch_add(blocks, Ordering::Relaxed);
        self.shared.sweep(self.shared.limit());
        Aside { arena: self, blocks }
    }

    /// The address of a new leaf with zero words; none if the file cannot grow.
    pub(super) fn allocate(&self, class: Class) -> Option<usize> {
        let offset = match self.pop(class) {
            Some(offset) => {
                let words = 0..class.words() as u64;
                words.for_each(|n| self.word(offset + n * 8).store(0, Ordering::Relaxed));
                offset
            }
            None => self.take_fresh(class)?,
        };
        Some(self.shared.mapping.address(offset))
    }

    /// Takes back the leaf at `address`. False if it is not of this arena.
    pub(super) fn free(&self, address: usize, class: Class) -> bool {
        let Some(offset) = self.shared.mapping.offset(address) else { return false };
        self.push(class, offset);
        true
    }

    /// The leaf at `address` is about to be accessed.
    #[inline]
    pub(super) fn touch(&self, address: usize) {
        if let Some(offset) = self.shared.mapping.offset(address) {
            self.touch_offset(offset);
        }
    }

    #[inline]
    fn touch_offset(&self, offset: u64) {
        let block = (offset / BLOCK) as usize;
        if !self.shared.clock.counts(block) {
            self.count(block);
        }
    }

    #[cold]
    fn count(&self, block: usize) {
        if !self.shared.clock.count(block) {
            return;
        }
        let limit = self.shared.limit();
        let is_over = |blocks| self.shared.clock.resident() > blocks;
        if is_over(limit - limit / 16) {
            self.wake();
        }
        for _ in 0..PATIENCE {
            if is_over(limit) {
                self.shared.sweep(limit);
            }
            if !is_over(limit) {
                return;
            }
            // Other threads are evicting the remaining blocks, and need the processor.
            std::thread::yield_now();
        }
    }

    fn wake(&self) {
        if !self.shared.asked.swap(true, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    /// A word, which is about to be used.
    fn word(&self, offset: u64) -> &AtomicU64 {
        self.touch_offset(offset);
        self.shared.mapping.word(offset)
    }

    fn size(&self, class: Class) -> &Size {
        &self.shared.sizes[class.to_bits() as usize]
    }

    fn push(&self, class: Class, offset: u64) {
        let head = &self.size(class).free;
        let next = self.word(offset);
        let mut now = head.load(Ordering::Relaxed);
        loop {
            next.store(now & ((1 << OFFSET_BITS) - 1), Ordering::Relaxed);
            let new = tagged(now, offset);
            match head.compare_exchange_weak(now, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => now = other,
            }
        }
    }

    fn pop(&self, class: Class) -> Option<u64> {
        let head = &self.size(class).free;
        let mut now = head.load(Ordering::Acquire);
        loop {
            let offset = (now & ((1 << OFFSET_BITS) - 1)) * 8;
            if offset == 0 {
                return None;
            }
            // Another thread may have taken the leaf by now, so that this is not an offset: then
            // the tag differs.
            let next = self.word(offset).load(Ordering::Relaxed) & ((1 << OFFSET_BITS) - 1);
            let new = tagged(now, next * 8);
            match head.compare_exchange_weak(now, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(offset),
                Err(other) => now = other,
            }
        }
    }

    /// The next leaf of the size's block, or the first of a new one.
    fn take_fresh(&self, class: Class) -> Option<u64> {
        let (bytes, fresh) = (class.words() as u64 * 8, &self.size(class).fresh);
        let each = BLOCK / bytes;
        let mut now = fresh.load(Ordering::Relaxed);
        loop {
            let (block, taken) = (now >> 16, now & 0xffff);
            let has_one = block != 0 && taken < each;
            let new = if has_one { now + 1 } else { self.shared.take_block(self)? << 16 | 1 };
            match fresh.compare_exchange(now, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if has_one => return Some(block * BLOCK + taken * bytes),
                Ok(_) => return Some((new >> 16) * BLOCK),
                Err(other) => {
                    if !has_one {
                        // Another thread has begun a block too: the leaves of this one are free.
                        let start = (new >> 16) * BLOCK;
                        (0..each).for_each(|n| self.push(class, start + n * bytes));
                    }
                    now = other;
                }
            }
        }
    }
}

/// The head of a stack that was `before` and begins at `offset` now.
fn tagged(before: u64, offset: u64) -> u64 {
    (((before >> OFFSET_BITS) + 1) << OFFSET_BITS) | (offset / 8)
}

impl Shared {
    /// Blocks that leaves may have in memory now.
    fn limit(&self) -> usize {
        self.bound.saturating_sub(self.aside.load(Ordering::Relaxed)).max(1)
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    fn sweep(&self, target: usize) {
        let let_go = |run: std::ops::Range<usize>| {
            self.mapping.let_go(run.start as u64 * BLOCK..run.end as u64 * BLOCK);
        };
        self.clock.sweep(target, self.used() as usize, let_go);
    }

    /// The number of a block that was never used; none if the file cannot grow.
    fn take_block(&self, arena: &Arena) -> Option<u64> {
        let mut block = self.used();
        loop {
            let grown = self.mapping.grown() / BLOCK;
            if grown < block + GROW / 2 {
                // The evictor keeps some blocks of the file ready ahead.
                arena.wake();
            }
            if grown <= block
                && let Err(error) = self.mapping.grow((block + 1) * BLOCK)
            {
                self.say_refused(&error);
                return None;
            }
            match self.used.compare_exchange(block, block + 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Some(block),
                Err(other) => block = other,
            }
        }
    }

    #[cold]
    fn say_refused(&self, error: &io::Error) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the file of --table-memory cannot grow ({error}): more exceptions lie in memory, \
                 beyond that bound; make room in --table-dir"
            );
        }
    }

    /// The evictor's loop.
    fn evict(&self) {
        loop {
            std::thread::park();
            if self.ends.load(Ordering::Acquire) {
                return;
            }
            // Synchronises with the last thread that woke the evictor, and so sees its cause.
            self.asked.swap(false, Ordering::SeqCst);
            let limit = self.limit();
            if self.clock.resident() > limit - limit / 16 {
                self.sweep(limit - limit / 8);
            }
            let ahead = self.used() + GROW / 2;
            if self.mapping.grown() / BLOCK < ahead {
                // A thread that needs more space tries it itself, and reports why it fails.
                let _ = self.mapping.grow((self.used() + GROW) * BLOCK);
            }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        self.thread.unpark();
        if let Some(evictor) = self.evictor.take()
            && evictor.join().is_err()
        {
            tracing::error!("the evictor ended by a panic");
        }
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.arena.shared.aside.fetch_sub(self.blocks, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena")
            .field("bound", &self.bound())
            .field("resident", &self.resident())
            .field("file_bytes", &self.file_bytes())
            .finish()
    }
}

#[cfg(all(test, not(any(miri, feature = "shuttle"))))]
pub(super) mod tests;
