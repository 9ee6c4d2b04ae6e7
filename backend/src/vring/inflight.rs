//! The chains of one queue in flight, recorded in memory that outlives the process (vhost-user,
//! "Inflight I/O tracking", split virtqueues).
//!
//! Owns the layout of a queue's region and the order of the stores to it. Never knows what a
//! request is, nor which side keeps the memory. Keeps I20, wherever the process ends: a head is marked
//! exactly from when its chain is taken until the driver is shown its completion, except for the
//! batch that was being published, which the used index identifies. So the driver's used index
//! plus the number of marks gives the position in the available ring of the first chain that was
//! not taken.
//!
//! Values that the front-end wrote into the region are compared, never used as offsets, and it may
//! change them at any time: with a nonsensical region, requests of its own guest are carried out
//! again or not at all. The same is true for a guest that makes a head available that is in flight.

use std::sync::atomic::Ordering;

use super::VringError;
use crate::memory::{GuestMemory, Window};

/// The offsets of the header's fields; before them are 8 bytes of features, all 0.
const VERSION: usize = 8;
const DESCRIPTORS: usize = 10;
const LAST_OF_BATCH: usize = 12;
const USED: usize = 14;
/// Bytes of the header, and of the entry of each descriptor.
const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 16;
/// The offsets of the fields of an entry.
const MARK: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// The version of this layout; 0 if a region was never used.
const SPLIT: u16 = 1;
/// A queue's region begins at a multiple of this many bytes.
const ALIGN: usize = 64;

/// The memory of one queue's region.
#[derive(Debug)]
pub struct Region {
    window: Window,
    descriptors: u16,
}

impl Region {
    /// Bytes of a region for a queue of `descriptors`, up to where the next one begins.
    pub fn bytes(descriptors: u16) -> usize {
        (HEADER_LEN + ENTRY_LEN * usize::from(descriptors)).next_multiple_of(ALIGN)
    }

    /// The region of queue `index` in `shared`, which begins with that of queue 0; none if it is
    /// not complete.
    pub fn of(shared: &GuestMemory, index: u16, descriptors: u16) -> Option<Region> {
        let len = Region::bytes(descriptors);
        let window = shared.window((usize::from(index) * len) as u64, len, 8)?;
        Some(Region { window, descriptors })
    }

    /// None of its recorded chains is wanted any more: it counts as new.
    pub fn forget(&self) {
        self.window.store_u16(VERSION, 0, Ordering::Release);
    }
}

/// The chains of a started ring in flight.
#[derive(Debug)]
pub(super) struct Inflight {
    window: Window,
    /// Descriptors of the ring.
    size: u16,
    /// The counter that the next chain is marked with.
    counter: u64,
    /// Chains that ended and were not published yet.
    ended: u16,
    /// Chains that an earlier process took and did not complete; the next one is last.
    inherited: Vec<u16>,
}

impl Inflight {
    /// Continues as the region records, or begins a new region. `available` and `used` are the
    /// ring's indices as the driver sees them; `base` is the position in the available ring that
    /// the front-end reports. Also returns that position.
    pub(super) fn start(
        region: Region,
        size: u16,
        (available, used): (u16, u16),
        base: u16,
    ) -> Result<(Inflight, u16), VringError> {
        let Region { window, descriptors } = region;
        if size > descriptors {
            return Err(VringError::Tracked { size, descriptors });
        }
        let mut inflight = Inflight { window, size, counter: 0, ended: 0, inherited: Vec::new() };
        let is_new = inflight.window.load_u16(VERSION, Ordering::Acquire) != SPLIT;
        let waits_for = available.wrapping_sub(used);
        if is_new || !inflight.end_batch(used) || !inflight.recall(waits_for) {
            inflight.begin(descriptors, used);
            return Ok((inflight, base));
        }
        let next = used.wrapping_add(inflight.inherited.len() as u16);
        Ok((inflight, next))
    }

    /// Nothing is in flight. The region counts as new until it is completely written.
    fn begin(&self, descriptors: u16, used: u16) {
        self.window.store_u16(VERSION, 0, Ordering::Release);
        for head in 0..descriptors {
            self.clear(head);
        }
        self.window.store_u16(DESCRIPTORS, descriptors, Ordering::Relaxed);
        self.window.store_u16(LAST_OF_BATCH, 0, Ordering::Relaxed);
        // The ring's index, not 0: otherwise a second start before anything ended would take the
        // difference for a batch, and its head, 0, for a completed chain.
        self.window.store_u16(USED, used, Ordering::Relaxed);
        self.window.store_u16(VERSION, SPLIT, Ordering::Release);
    }

    /// The batch that a process was publishing when it ended was published: it is no longer in
    /// flight. False if the region cannot be this ring's: a batch is no longer than a ring.
    fn end_batch(&self, used: u16) -> bool {
        let shown = used.wrapping_sub(self.window.load_u16(USED, Ordering::Acquire));
        if shown > self.size {
            tracing::warn!(
                "the inflight region of a virtqueue is another ring's ({shown} requests ended at \
                 once); it begins anew"
            );
            return false;
        }
        self.clear_batch(shown);
        self.window.store_u16(USED, used, Ordering::Release);
        true
    }

    /// Finds the chains left in flight, in the order in which they were taken. False if the region
    /// cannot be this ring's: its driver waits for so many requests, and each of these chains is
    /// one of them.
    fn recall(&mut self, waits_for: u16) -> bool {
        let marked = |head: &u16| self.window.load_u8(entry(*head) + MARK) != 0;
        let counter = |head: u16| self.window.load_u64(entry(head) + COUNTER);
        // Each counter is read once: the front-end may change it meanwhile.
        let noted = |head| (counter(head), head);
        let mut left: Vec<(u64, u16)> = (0..self.size).filter(marked).map(noted).collect();
        if left.len() > usize::from(waits_for) {
            tracing::warn!(
                "the inflight region of a virtqueue is another ring's ({} requests in flight, and \
                 its driver waits for {waits_for}); it begins anew",
                left.len()
            );
            return false;
        }
        left.sort_by_key(|&(counter, _)| std::cmp::Reverse(counter));
        self.counter = left.first().map_or(0, |&(last, _)| last.wrapping_add(1));
        if !left.is_empty() {
            tracing::warn!(
                "a virtqueue goes on with {} requests that were in flight when it ended",
                left.len()
            );
        }
        self.inherited = left.into_iter().map(|(_, head)| head).collect();
        true
    }

    /// The next chain that was left in flight, once; it stays marked as it was.
    #[inline]
    pub(super) fn next_inherited(&mut self) -> Option<u16> {
        self.inherited.pop()
    }

    /// Chains that were left in flight and not taken yet; no more than the ring has descriptors.
    #[inline]
    pub(super) fn inherited(&self) -> u16 {
        self.inherited.len() as u16
    }

    /// A chain was taken. A chain that is already in flight keeps its place.
    #[inline]
    pub(super) fn took(&mut self, head: u16) {
        if head < self.size && self.window.load_u8(entry(head) + MARK) == 0 {
            self.window.store_u64(entry(head) + COUNTER, self.counter);
            self.window.store_u8(entry(head) + MARK, 1, Ordering::Release);
            self.counter = self.counter.wrapping_add(1);
        }
    }

    /// A chain ended, and will be published with the next batch. `head` is a descriptor of the
    /// ring.
    #[inline]
    pub(super) fn ended(&mut self, head: u16) {
        let last = self.window.load_u16(LAST_OF_BATCH, Ordering::Relaxed);
        self.window.store_u16(entry(head) + NEXT, last, Ordering::Relaxed);
        self.window.store_u16(LAST_OF_BATCH, head, Ordering::Release);
        self.ended = self.ended.saturating_add(1);
    }

    /// All ended chains were published: the driver's used index is `used`.
    #[inline]
    pub(super) fn shown(&mut self, used: u16) {
        let ended = std::mem::take(&mut self.ended);
        self.clear_batch(ended.min(self.size));
        self.window.store_u16(USED, used, Ordering::Release);
    }

    /// The last `count` chains that ended are not in flight.
    #[inline]
    fn clear_batch(&self, count: u16) {
        let mut head = self.window.load_u16(LAST_OF_BATCH, Ordering::Acquire);
        for _ in 0..count {
            if head >= self.size {
                return;
            }
            self.clear(head);
            head = self.window.load_u16(entry(head) + NEXT, Ordering::Relaxed);
        }
    }

    /// Release: not before the used index that publishes its end.
    #[inline]
    fn clear(&self, head: u16) {
        self.window.store_u8(entry(head) + MARK, 0, Ordering::Release);
    }
}

/// The offset of the entry of a descriptor.
#[inline]
fn entry(head: u16) -> usize {
    HEADER_LEN + ENTRY_LEN * usize::from(head)
}

#[cfg(test)]
mod tests;
