//! The entries that are merged together.
//!
//! Owns the size of a batch and the orders of its entries. Never knows what is done with them.
//! Keeps: a batch is the newest entries of the list, without a gap.

use std::ops::Range;

use super::RunningMerge;
use crate::cow::Entry;
use crate::units::Chunk;

/// Whether tests fail each step in turn: then a few entries must make several batches.
const TRIED: bool = cfg!(any(test, feature = "sim"));
/// The smallest batch, in entries and in bytes; this bounds how long a write to one of them waits.
const BATCH_ENTRIES: u64 = if TRIED { 16 } else { 256 };
const BATCH_BYTES: u64 = 4 << 20;
/// The largest batch. A batch is twice as large as the one before while no write had to wait for
/// one and none took long, so that an idle disk has few barriers.
pub(super) const MOST_ENTRIES: u64 = 16 * BATCH_ENTRIES;
const MOST_BYTES: u64 = 16 << 20;

/// Neighbours on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbours {
    pub(super) first: Chunk,
    pub(super) count: u64,
}

/// A batch: the newest entries; the same as runs in the order of the device; and the same in the
/// order of the store.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    pub(super) runs: Vec<Neighbours>,
    pub(super) by_place: Vec<Entry>,
}

impl RunningMerge {
    /// The entries from this one on are in the batch, or unerased.
    pub(super) fn top(&self) -> u64 {
        if !self.clean {
            return self.position;
        }
        self.position - self.batch.entries.len() as u64
    }

    /// The smallest batch, within one area. It is used if a write waited for the previous batch,
    /// and if the speed is limited: a whole batch is copied for the first byte that is allowed.
    fn is_small(&self) -> bool {
        self.reach == 1 || self.budget.is_some() || self.batches.is_some()
    }

    /// The largest number of newest entries in a batch.
    pub(super) fn batch_len(&self) -> u64 {
        let reach = if self.is_small() { 1 } else { self.reach };
        let entries = (BATCH_ENTRIES * reach).min(MOST_ENTRIES);
        let bytes = (BATCH_BYTES * reach).min(MOST_BYTES);
        entries.min((bytes / self.chunk).max(1))
    }

    /// Whether the batch can take more entries.
    pub(super) fn wants_more(&self) -> bool {
        let has = self.batch.entries.len() as u64;
        has == 0 || (!self.is_small() && has < self.batch_len() && self.top() > 0)
    }

    /// How many entries are read for it: for the smallest, those of one part.
    pub(super) fn missing(&self) -> u64 {
        if self.is_small() { 1 } else { self.batch_len() - self.batch.entries.len() as u64 }
    }

    /// Adds to the batch the loaded entries among the newest that are not in it.
    pub(super) fn take_newest(&mut self) {
        let (start, end) = (self.list.start(), self.top());
        let count = (end - start).min(self.batch_len() - self.batch.entries.len() as u64);
        self.batch.entries.splice(..0, self.list.get(end - count, end).iter().copied());
    }

    /// A batch is done: the next is larger, unless a write waited for this one or it took long.
    pub(super) fn adapt(&mut self, waited: bool) {
        let most = MOST_ENTRIES / BATCH_ENTRIES;
        self.reach = match (waited, self.slow) {
            (true, _) => 1,
            (false, true) => (self.reach / 2).max(1),
            (false, false) => (self.reach * 2).min(most),
        };
    }
}

impl Batch {
    /// Sorts its entries into the orders in which they are needed.
    pub(super) fn sort(&mut self) {
        self.by_place.clone_from(&self.entries);
        self.by_place.sort_unstable_by_key(|entry| entry.old);
        self.runs.clear();
        for &entry in &self.by_place {
            match self.runs.last_mut() {
                Some(run) if run.first.0 + run.count == entry.old.0 => run.count += 1,
                _ => self.runs.push(Neighbours { first: entry.old, count: 1 }),
            }
        }
        self.by_place.sort_unstable_by_key(|entry| entry.new);
    }

    /// Runs among `chunks`, in the order of the store, that are adjacent on the device too.
    pub(super) fn runs_of(&self, chunks: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut first = chunks.start;
        std::iter::from_fn(move || {
            let start = first;
            let old = self.by_place[..chunks.end].get(start)?.old;
            let follows = |n: &usize| self.by_place[*n].old.0 == old.0 + (n - start) as u64;
            first += (start..chunks.end).take_while(follows).count();
            Some(start..first)
        })
    }
}
