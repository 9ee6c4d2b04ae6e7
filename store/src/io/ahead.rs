//! Space in a file, reserved before it is written.
//!
//! Owns how far a file that fills up from its start has space on disk, and which parts of it are
//! written so late that they must have space before. Never knows what fills the file, and does not
//! reserve: it says what to reserve, and is told the result. Keeps: a stretch is named once,
//! whichever worker asks; a reservation is never visible, as it reads like a hole; no write is
//! allowed whose late part has no space.
//!
//! A write into a hole must allocate space, for which a file system may wait: io_uring passes each
//! such write to a kernel thread. Reserved space (`fallocate`) is written inline, and is
//! contiguous.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The least and the most that is reserved at once, in bytes; in between, an eighth of the file.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 64 << 20;

/// Parts of a file that are written after the bytes between them, and that must have space by
/// then: `len` bytes at `len + n × every` for each n, with `every` greater than `len`. The bytes
/// between two parts are useless without the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Bytes in a part.
    pub len: u64,
    /// Bytes from one part to the next.
    pub every: u64,
    /// How many are full, and so have space; the next one may have been begun.
    pub full: u64,
    /// By how many parts the next write is ahead: as much is left unused in between, so that none
    /// of these is needed yet.
    pub gap: u64,
}

/// How far space in a file is reserved, in bytes from its start.
#[derive(Debug)]
pub struct Ahead {
    /// Everything before was named.
    named: AtomicU64,
    /// A worker reserves the stretch that was named last. One at a time, so that they end in
    /// order.
    under_way: AtomicBool,
    /// The file is known to have space from the one to the other.
    solid_from: AtomicU64,
    solid_to: AtomicU64,
    /// The end of a late part: it and those before it have space, and everything before its end
    /// may be written. 0 if not even the first is known to have space.
    allowed: AtomicU64,
    /// Everything before may be written all the same: it existed already, or no part is after it.
    exempt: AtomicU64,
    /// [`Late`], or 0.
    len: AtomicU64,
    every: AtomicU64,
    /// [`Late::gap`], in bytes.
    gap: AtomicU64,
}

impl Default for Ahead {
    /// For a file that does not fill up: nothing is reserved, and everything may be written.
    fn default() -> Ahead {
        let [named, allowed] = [u64::MAX; 2].map(AtomicU64::new);
        let [solid_from, solid_to, exempt, len, every, gap] = [0; 6].map(AtomicU64::new);
        let under_way = AtomicBool::new(false);
        Ahead { named, under_way, solid_from, solid_to, allowed, exempt, len, every, gap }
    }
}

impl Ahead {
    /// The file fills up from byte `at` on, which is after the first of its `late` parts, if it
    /// has any. Only while the file is not written.
    pub fn begin(&self, at: u64, late: Option<Late>) {
        self.solid_to.store(0, Ordering::Relaxed);
        self.named.store(at, Ordering::Relaxed);
        self.exempt.store(at, Ordering::Relaxed);
        let Some(Late { len, every, full, gap }) = late else {
            self.allowed.store(u64::MAX, Ordering::Release);
            return;
        };
        assert!(0 < len && len < every && 2 * len <= at, "{late:?} before {at}");
        self.len.store(len, Ordering::Relaxed);
        self.every.store(every, Ordering::Relaxed);
        self.gap.store(gap * every, Ordering::Relaxed);
        let allowed = full.checked_sub(1).map_or(0, |last| 2 * len + last * every);
        self.allowed.store(allowed, Ordering::Release);
    }

    /// What to reserve, now that bytes from `start` to `end` are written: rarely anything, and
    /// nothing while a worker reserves. To be followed by [`Ahead::ended`].
    #[inline]
    pub(crate) fn next(&self, start: u64, end: u64) -> Option<Range<u64>> {
        let named = self.named.load(Ordering::Relaxed);
        if end.saturating_add(step(named) / 2) <= named {
            return None;
        }
        self.extend(start)
    }

    #[cold]
    fn extend(&self, start: u64) -> Option<Range<u64>> {
        if self.under_way.swap(true, Ordering::Acquire) {
            return None;
        }
        let from = self.named.load(Ordering::Relaxed).max(start);
        let to = from.saturating_add(step(from));
        self.named.store(to, Ordering::Relaxed);
        Some(from..to)
    }

    /// The reservation of the named `room` is over: the file has all of it, or this is unknown.
    pub(crate) fn ended(&self, room: Range<u64>, reserved: bool) {
        if reserved {
            if self.solid_to.load(Ordering::Relaxed) != room.start {
                // Never the old end with the new start, which together would be meaningless.
                self.solid_to.store(0, Ordering::Relaxed);
                self.solid_from.store(room.start, Ordering::Release);
            }
            self.solid_to.store(room.end, Ordering::Release);
            self.advance();
        }
        self.under_way.store(false, Ordering::Release);
    }

    /// Whether a write that ends at `end` is allowed.
    #[inline]
    pub(crate) fn allows(&self, end: u64) -> bool {
        let needs = end.saturating_sub(self.gap.load(Ordering::Relaxed));
        needs <= self.allowed.load(Ordering::Acquire) || end <= self.exempt.load(Ordering::Relaxed)
    }

    /// The part that must have space next, before a write that ends at `end`; none if that write
    /// is allowed.
    pub(crate) fn lacks(&self, end: u64) -> Option<Range<u64>> {
        if self.allows(end) {
            return None;
        }
        Some(self.part_after(self.allowed.load(Ordering::Acquire)))
    }

    /// The file has `len` bytes, and does not contain all of `part`, which must have space next.
    /// Writes that need the part are not allowed, so that they do not count as allowed when the
    /// file has grown.
    pub(crate) fn ends(&self, len: u64, part: &Range<u64>) {
        self.exempt.fetch_max(len.min(part.start - 1), Ordering::Relaxed);
    }

    /// `part`, which had to have space next, has it.
    pub(crate) fn has(&self, part: &Range<u64>) {
        let allowed = self.allowed.load(Ordering::Acquire);
        // Another worker may have been quicker.
        if allowed != u64::MAX && self.part_after(allowed) == *part {
            self.allowed.fetch_max(part.end, Ordering::AcqRel);
            self.advance();
        }
    }

    /// Allows the writes for which the space reserved ahead suffices.
    fn advance(&self) {
        loop {
            let allowed = self.allowed.load(Ordering::Acquire);
            if allowed == u64::MAX {
                return;
            }
            let part = self.part_after(allowed);
            let to = self.solid_to.load(Ordering::Acquire);
            if to < part.end || self.solid_from.load(Ordering::Acquire) > part.start {
                return;
            }
            self.allowed.fetch_max(part.end, Ordering::AcqRel);
        }
    }

    /// The part after the one that ends at `end`.
    fn part_after(&self, end: u64) -> Range<u64> {
        let len = self.len.load(Ordering::Relaxed);
        let end = if end == 0 { 2 * len } else { end + self.every.load(Ordering::Relaxed) };
        end - len..end
    }
}

fn step(reserved: u64) -> u64 {
    (reserved / 8).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a store of 4 KiB chunks has them.
    const LATE: Late = Late { len: 4096, every: 257 * 4096, full: 0, gap: 0 };

    fn part(n: u64) -> Range<u64> {
        4096 + n * 257 * 4096..8192 + n * 257 * 4096
    }

    #[test]
    fn a_file_that_does_not_fill_up_reserves_nothing() {
        let ahead = Ahead::default();
        assert_eq!(ahead.next(0, 4096), None);
        assert_eq!(ahead.next(1 << 50, (1 << 50) + 4096), None);
        assert!(ahead.allows(u64::MAX) && ahead.lacks(u64::MAX).is_none());
    }

    #[test]
    fn a_file_that_fills_up_is_reserved_once_and_always_ahead() {
        // Of the second kind some lie in two stretches.
        for late in [LATE, Late { len: 64 << 10, every: 17 << 16, ..LATE }] {
            let (ahead, first) = (Ahead::default(), 2 * late.len);
            ahead.begin(first, Some(late));
            ahead.has(&(late.len..first));
            let (mut reserved, mut calls) = (first, 0);
            for start in (first..2 << 30).step_by(4096) {
                if let Some(room) = ahead.next(start, start + 4096) {
                    assert_eq!(room.start, reserved, "nothing twice, and nothing left out");
                    assert_eq!(ahead.next(start, start + 4096), None, "one at a time");
                    reserved = room.end;
                    calls += 1;
                    ahead.ended(room, true);
                }
                assert!(start + 4096 + LEAST / 2 <= reserved, "half a step is left at {start}");
                assert_eq!(ahead.lacks(start + 4096), None, "at {start}");
            }
            assert!(reserved <= (2 << 30) + MOST + MOST / 2, "{reserved}");
            assert!(calls < 80, "{calls}");
        }
    }

    #[test]
    fn a_write_after_a_gap_leaves_the_gap() {
        let ahead = Ahead::default();
        ahead.begin(8192, Some(LATE));
        assert_eq!(ahead.next(8 << 20, (8 << 20) + 512), Some(8 << 20..12 << 20));
        ahead.ended(8 << 20..12 << 20, true);
        assert_eq!(ahead.next(0, 4096), None, "that is written already, or a hole for good");
        assert_eq!(ahead.lacks(16384), Some(part(0)), "in the gap");
        (0..8).for_each(|n| ahead.has(&part(n)));
        assert_eq!(ahead.lacks(u64::MAX), Some(part(12)), "after it all that lie in it have room");
    }

    #[test]
    fn nothing_is_written_whose_late_part_has_no_room() {
        let ahead = Ahead::default();
        // An empty store: its first area may be a hole.
        ahead.begin(8192, Some(LATE));
        assert!(ahead.allows(8192), "what was there");
        assert_eq!(ahead.lacks(8193), Some(part(0)));
        ahead.has(&part(1));
        assert_eq!(ahead.lacks(8193), Some(part(0)), "not that one");
        ahead.has(&part(0));
        assert_eq!(ahead.lacks(8193), Some(part(1)));
        // Entries are in area 3, and chunks after area 6: failed writes have left gaps.
        ahead.begin(part(6).end + 40960, Some(Late { full: 3, ..LATE }));
        assert!(ahead.allows(part(6).end + 40960));
        for n in 3..8 {
            assert_eq!(ahead.lacks(part(6).end + 45056), Some(part(n)));
            ahead.has(&part(n));
        }
        assert!(ahead.allows(part(7).end) && !ahead.allows(part(7).end + 1));
        // Those that the gap is as large as are not needed, however many.
        ahead.begin(part(6).end + 40960, Some(Late { full: 3, gap: 3, ..LATE }));
        for n in 3..5 {
            assert_eq!(ahead.lacks(part(6).end + 45056), Some(part(n)));
            ahead.has(&part(n));
        }
        assert!(ahead.allows(part(7).end) && !ahead.allows(part(7).end + 1));
        ahead.begin(part(6).end + 40960, Some(Late { full: 3, ..LATE }));
        (3..8).for_each(|n| ahead.has(&part(n)));
        // A failed or lost reservation proves nothing, nor about the parts after it.
        let room = ahead.next(part(7).end, part(7).end + 4096).expect("it is time");
        ahead.ended(room, false);
        let at = part(7).end + (8 << 20);
        let room = ahead.next(at, at + 4096).expect("it is time");
        ahead.ended(room, true);
        assert_eq!(ahead.lacks(part(7).end + 1), Some(part(8)));
    }

    #[test]
    fn at_the_end_of_the_file_there_is_no_part_until_it_has_grown() {
        let ahead = Ahead::default();
        ahead.begin(8192, Some(LATE));
        ahead.has(&part(0));
        ahead.ends(part(1).start, &part(1));
        assert!(ahead.allows(part(1).start - 4096), "all that may be written");
        assert_eq!(ahead.lacks(part(1).start), Some(part(1)), "what may be when it has grown");
        // A store in memory instead, in the same file.
        ahead.begin(0, None);
        assert!(ahead.allows(u64::MAX));
    }
}
