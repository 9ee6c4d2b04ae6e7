//! Which blocks of an arena may be in memory, and which are let go of next.
//!
//! Owns a byte a block, the number of those that are in memory, and the hand that goes over them.
//! Never knows what lies in a block, nor how one is let go of. Keeps I12 for the table: a block
//! counts from before the first look at it until after it was let go of.
//!
//! The kernel maps up to 64 KiB around an address that is read, aligned to that (its
//! `fault_around_bytes`), if the file's pages are at hand. That is a [`BLOCK`](super::BLOCK): whoever
//! looks into one says so before, which is a load where it was said since the hand came by. So what
//! is in memory is known without asking the system; and nothing has to look at it from time to time.
//!
//! The hand gives a block that was used since it last came by a second chance (the *clock* of
//! operating systems). A look that began before a block was let go of may bring a block back that
//! does not count: one a thread at most, until it is used again or the hand comes by, which lets go
//! of what is said to be gone, too.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicUsize, Ordering};

/// Not in memory.
const GONE: u8 = 0;
/// In memory; not used since the hand came by.
const COLD: u8 = 1;
/// In memory, and used.
const HOT: u8 = 2;

/// Blocks that the hand goes over in one step.
const STEP: usize = 16;

/// See the module's description. Counts are blocks. Nothing is ordered by what is here: it says how
/// much there is, not what it says.
pub(super) struct Clock {
    blocks: Box<[AtomicU8]>,
    /// Passes below zero where a block is used and let go of at once by two.
    resident: AtomicI64,
    hand: AtomicUsize,
}

impl Clock {
    pub(super) fn new(blocks: usize) -> Clock {
        let blocks = (0..blocks).map(|_| AtomicU8::new(GONE)).collect();
        Clock { blocks, resident: AtomicI64::new(0), hand: AtomicUsize::new(0) }
    }

    /// Blocks in memory.
    pub(super) fn resident(&self) -> usize {
        self.resident.load(Ordering::Relaxed).max(0) as usize
    }

    /// Whether it is known that `block` is in use.
    #[inline]
    pub(super) fn is_hot(&self, block: usize) -> bool {
        self.blocks[block].load(Ordering::Relaxed) == HOT
    }

    /// `block` is about to be used. True where it was not in memory before.
    pub(super) fn warm(&self, block: usize) -> bool {
        let was_gone = self.blocks[block].swap(HOT, Ordering::Relaxed) == GONE;
        if was_gone {
            self.resident.fetch_add(1, Ordering::Relaxed);
        }
        was_gone
    }

    /// Lets go of blocks by `let_go` until no more than `target` of the first `used` are in memory;
    /// or gives up after the third time round, where they come back as quickly.
    pub(super) fn sweep(&self, target: usize, used: usize, let_go: impl Fn(Range<usize>)) {
        let steps = used.div_ceil(STEP);
        for _ in 0..3 * steps {
            if self.resident() <= target {
                return;
            }
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % steps * STEP;
            self.step(at..(at + STEP).min(used), &let_go);
        }
    }

    fn step(&self, blocks: Range<usize>, let_go: &impl Fn(Range<usize>)) {
        let mut start = blocks.start;
        for block in blocks.clone() {
            let cools = self.change(block, HOT, COLD);
            if cools {
                self.drop_run(start..block, let_go);
                start = block + 1;
            }
        }
        self.drop_run(start..blocks.end, let_go);
    }

    fn drop_run(&self, run: Range<usize>, let_go: &impl Fn(Range<usize>)) {
        if run.is_empty() {
            return;
        }
        let_go(run.clone());
        // Those that were used meanwhile are hot, and stay counted.
        let gone = run.filter(|&block| self.change(block, COLD, GONE)).count();
        self.resident.fetch_sub(gone as i64, Ordering::Relaxed);
    }

    fn change(&self, block: usize, from: u8, to: u8) -> bool {
        let relaxed = Ordering::Relaxed;
        self.blocks[block].compare_exchange(from, to, relaxed, relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn swept(clock: &Clock, target: usize, used: usize) -> Vec<usize> {
        let gone = RefCell::new(Vec::new());
        clock.sweep(target, used, |run| gone.borrow_mut().extend(run));
        gone.into_inner()
    }

    #[test]
    fn a_block_counts_once_from_its_first_use_until_it_is_let_go_of() {
        let clock = Clock::new(64);
        assert!(clock.warm(5) && !clock.warm(5) && clock.warm(40));
        assert!(clock.is_hot(5) && !clock.is_hot(6));
        assert_eq!(clock.resident(), 2);
        let gone = swept(&clock, 0, 64);
        assert!(gone.contains(&5) && gone.contains(&40));
        assert_eq!(clock.resident(), 0);
        assert!(clock.warm(5), "it is gone");
    }

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let clock = Clock::new(4 * STEP);
        (0..4 * STEP).for_each(|block| assert!(clock.warm(block)));
        assert_eq!(swept(&clock, 3 * STEP, 4 * STEP).len(), STEP, "after once round");
        // The hand stands behind the first step; all others are cold now.
        for block in (0..4 * STEP).step_by(2) {
            clock.warm(block);
        }
        let gone = swept(&clock, 3 * STEP, 4 * STEP);
        assert!(gone.iter().all(|block| block % 2 == 1), "{gone:?}");
    }

    #[test]
    fn blocks_that_are_always_used_do_not_hold_a_sweep_up() {
        let clock = Clock::new(2 * STEP);
        (0..2 * STEP).for_each(|block| assert!(clock.warm(block)));
        // As other threads would, between the hand's look and its letting go.
        let uses = |block| {
            clock.warm(block);
        };
        clock.sweep(0, 2 * STEP, |run| run.for_each(uses));
        assert_eq!(clock.resident(), 2 * STEP, "all of them count");
    }
}
