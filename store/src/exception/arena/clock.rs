//! Which blocks of an arena may be in memory, and which are evicted next.
//!
//! Owns one bit per block, the number of blocks in memory, and the hand that passes over them.
//! Never knows the content of a block, nor how one is evicted. Keeps I12 for the table: a block
//! counts from before the first access until it is evicted.
//!
//! The kernel maps up to 64 KiB around an address that is read, aligned to that size (its
//! `fault_around_bytes`), if the file's pages are cached. That is a [`BLOCK`](super::BLOCK): a
//! thread marks a block before it looks into it, which is one load if the block has been marked
//! since the hand last passed. So the resident part is known without asking the kernel, and
//! nothing has to check it periodically.
//!
//! The hand evicts 64 neighbours at once: removing pages from a process interrupts each of its
//! running threads, so a second chance for blocks in use would cost more than it saves. An access
//! that began before its block was evicted may bring it back uncounted: one block per thread,
//! until that block or a neighbour is used again and the hand passes.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

/// Blocks that the hand evicts at once.
const STEP: usize = u64::BITS as usize;

/// See the module's description. Counts are in blocks. These words order no other memory accesses:
/// they only count.
pub(super) struct Clock {
    /// One bit per block.
    blocks: Box<[AtomicU64]>,
    /// Never below zero for long: a block's bit is set before it is counted.
    resident: AtomicI64,
    hand: AtomicUsize,
}

impl Clock {
    pub(super) fn new(blocks: usize) -> Clock {
        let blocks = (0..blocks.div_ceil(STEP)).map(|_| AtomicU64::new(0)).collect();
        Clock { blocks, resident: AtomicI64::new(0), hand: AtomicUsize::new(0) }
    }

    /// Blocks in memory.
    pub(super) fn resident(&self) -> usize {
        self.resident.load(Ordering::Relaxed).max(0) as usize
    }

    /// Whether `block` counts.
    #[inline]
    pub(super) fn counts(&self, block: usize) -> bool {
        self.blocks[block / STEP].load(Ordering::Relaxed) & (1 << (block % STEP)) != 0
    }

    /// `block` is about to be used. True if it did not count before.
    pub(super) fn count(&self, block: usize) -> bool {
        let bit = 1 << (block % STEP);
        let is_new = self.blocks[block / STEP].fetch_or(bit, Ordering::Relaxed) & bit == 0;
        if is_new {
            self.resident.fetch_add(1, Ordering::Relaxed);
        }
        is_new
    }

    /// Evicts blocks by `let_go` until no more than `target` of the first `used` are in memory; or
    /// gives up after one round, if they come back as quickly.
    pub(super) fn sweep(&self, target: usize, used: usize, let_go: impl Fn(Range<usize>)) {
        let steps = used.div_ceil(STEP);
        for _ in 0..steps {
            if self.resident() <= target {
                return;
            }
            let at = self.hand.fetch_add(1, Ordering::Relaxed) % steps;
            let gone = self.blocks[at].swap(0, Ordering::Relaxed).count_ones();
            if gone != 0 {
                let_go(at * STEP..(at * STEP + STEP).min(used));
                // Not before they are gone. A thread that used one meanwhile has counted it again,
                // which is one too many if it was evicted after that.
                self.resident.fetch_sub(gone.into(), Ordering::Relaxed);
            }
        }
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
        let clock = Clock::new(200);
        assert!(clock.count(5) && !clock.count(5) && clock.count(140));
        assert!(clock.counts(5) && !clock.counts(6) && !clock.counts(69));
        assert_eq!(clock.resident(), 2);
        let gone = swept(&clock, 0, 150);
        assert_eq!(gone, (0..64).chain(128..150).collect::<Vec<_>>(), "none of those between");
        assert_eq!(clock.resident(), 0);
        assert!(clock.count(5), "it is gone");
    }

    #[test]
    fn the_hand_goes_on_where_it_stopped() {
        let clock = Clock::new(4 * STEP);
        (0..4 * STEP).for_each(|block| assert!(clock.count(block)));
        assert_eq!(swept(&clock, 3 * STEP, 4 * STEP), (0..STEP).collect::<Vec<_>>());
        assert!(clock.count(3));
        assert_eq!(swept(&clock, 2 * STEP + 1, 4 * STEP), (STEP..2 * STEP).collect::<Vec<_>>());
        assert_eq!(swept(&clock, 4 * STEP, 4 * STEP), [0; 0], "few enough");
    }

    #[test]
    fn blocks_that_are_always_used_do_not_hold_a_sweep_up() {
        let clock = Clock::new(2 * STEP);
        (0..2 * STEP).for_each(|block| assert!(clock.count(block)));
        // As other threads would.
        let uses = |block| {
            clock.count(block);
        };
        clock.sweep(0, 2 * STEP, |run| run.for_each(uses));
        assert_eq!(clock.resident(), 2 * STEP, "all of them count");
    }
}
