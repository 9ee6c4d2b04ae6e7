//! Room in a file, reserved before it is written.
//!
//! Owns how far a file that fills up from its start has room of its own on disk, and which parts of
//! it are written so late that they must have room before. Never knows what fills it, and does not
//! reserve: it says what is to be, and is told what was. Keeps: a stretch is named once, whoever
//! asks; what comes of it is seen by nobody, as a reservation reads as a hole does; nothing is
//! allowed to be written whose later part has no room.
//!
//! A write into a hole has to find room for itself, which a file system does not do without
//! waiting: io_uring hands each such write to a kernel thread. Reserved room (`fallocate`) is
//! written in line, and lies together.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The least and the most that is reserved at once, in bytes; between, an eighth of what there is.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 64 << 20;

/// Parts of a file that are written after what lies between them, and that must have room by then:
/// `len` bytes at `len + n × every` for each n, with `every` greater than `len`. What lies between
/// two of them is of no use without the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Bytes in a part.
    pub len: u64,
    /// Bytes from one to the next.
    pub every: u64,
}

/// How far a file's room is reserved, in bytes from its start.
#[derive(Debug)]
pub struct Ahead {
    /// What lies before was named.
    named: AtomicU64,
    /// The end of a late part: it and those before it have room, and what lies before its end may be
    /// written. 0 where not even the first is known to.
    allowed: AtomicU64,
    /// The file's end as it was last, where no whole part lies behind what is allowed.
    end: AtomicU64,
    /// [`Late`], or 0.
    len: AtomicU64,
    every: AtomicU64,
}

impl Default for Ahead {
    /// Of a file that does not fill up: nothing is reserved, and all may be written.
    fn default() -> Ahead {
        let [named, allowed] = [u64::MAX; 2].map(AtomicU64::new);
        let [end, len, every] = [0; 3].map(AtomicU64::new);
        Ahead { named, allowed, end, len, every }
    }
}

impl Ahead {
    /// The file fills up from byte `at` on, which lies behind the first of its `late` parts, where
    /// it has such. The last one before that may have been begun, and have no room yet; those before
    /// are full. Before anybody writes it.
    pub fn begin(&self, at: u64, late: Option<Late>) {
        self.named.store(at, Ordering::Relaxed);
        let Some(Late { len, every }) = late else { return };
        assert!(0 < len && len < every && 2 * len <= at, "{late:?} before {at}");
        self.len.store(len, Ordering::Relaxed);
        self.every.store(every, Ordering::Relaxed);
        self.end.store(0, Ordering::Relaxed);
        let full = self.last_end(at).saturating_sub(every);
        self.allowed.store(self.last_end(full), Ordering::Release);
    }

    /// What to reserve, now that bytes from `start` to `end` are written: seldom anything.
    #[inline]
    pub(crate) fn next(&self, start: u64, end: u64) -> Option<Range<u64>> {
        let named = self.named.load(Ordering::Relaxed);
        if end.saturating_add(step(named) / 2) <= named {
            return None;
        }
        self.extend(named, start)
    }

    #[cold]
    fn extend(&self, named: u64, start: u64) -> Option<Range<u64>> {
        let from = named.max(start);
        let to = from.saturating_add(step(from));
        // Nothing is ordered by this, and who was quicker reserves.
        self.named
            .compare_exchange(named, to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
            .then_some(from..to)
    }

    /// Whether what ends at `end` may be written.
    #[inline]
    pub(crate) fn allows(&self, end: u64) -> bool {
        end <= self.allowed.load(Ordering::Acquire) || end <= self.end.load(Ordering::Relaxed)
    }

    /// The part that is to have room next, before what ends at `end` is written; none where that may
    /// be.
    pub(crate) fn lacks(&self, end: u64) -> Option<Range<u64>> {
        let allowed = self.allowed.load(Ordering::Acquire);
        (end > allowed).then(|| self.part_behind(allowed))
    }

    /// No whole part lies behind what is allowed, in a file of `len` bytes.
    pub(crate) fn ends(&self, len: u64) {
        self.end.fetch_max(len, Ordering::Relaxed);
    }

    /// All of `room` is the file's.
    pub(crate) fn has(&self, room: Range<u64>) {
        let allowed = self.allowed.load(Ordering::Acquire);
        // One that lies between may have none.
        if allowed != u64::MAX && room.start <= self.part_behind(allowed).start {
            self.allowed.fetch_max(self.last_end(room.end), Ordering::AcqRel);
        }
    }

    /// The part behind the one that ends at `end`.
    fn part_behind(&self, end: u64) -> Range<u64> {
        let len = self.len.load(Ordering::Relaxed);
        let end = if end == 0 { 2 * len } else { end + self.every.load(Ordering::Relaxed) };
        end - len..end
    }

    /// The end of the last part that ends at `at` or before; 0 where none does.
    fn last_end(&self, at: u64) -> u64 {
        let first = 2 * self.len.load(Ordering::Relaxed);
        let every = self.every.load(Ordering::Relaxed);
        at.checked_sub(first).map_or(0, |behind| first + behind / every * every)
    }
}

fn step(reserved: u64) -> u64 {
    (reserved / 8).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a store of 4 KiB chunks has them.
    const LATE: Late = Late { len: 4096, every: 257 * 4096 };

    #[test]
    fn a_file_that_does_not_fill_up_reserves_nothing() {
        let ahead = Ahead::default();
        assert_eq!(ahead.next(0, 4096), None);
        assert_eq!(ahead.next(1 << 50, (1 << 50) + 4096), None);
    }

    #[test]
    fn a_file_that_fills_up_is_reserved_once_and_always_ahead() {
        let ahead = Ahead::default();
        ahead.begin(8192, Some(LATE));
        let (mut reserved, mut calls) = (8192, 0);
        for start in (8192..1 << 30).step_by(4096) {
            if let Some(room) = ahead.next(start, start + 4096) {
                assert_eq!(room.start, reserved, "nothing twice, and nothing left out");
                reserved = room.end;
                calls += 1;
            }
            assert!(start + 4096 + LEAST / 2 <= reserved, "half a step is left at {start}");
        }
        assert!(reserved <= (1 << 30) + MOST + MOST / 2, "{reserved}");
        assert!(calls < 60, "{calls}");
    }

    #[test]
    fn a_write_behind_a_gap_leaves_the_gap() {
        let ahead = Ahead::default();
        ahead.begin(8192, Some(LATE));
        assert_eq!(ahead.next(8 << 20, (8 << 20) + 512), Some(8 << 20..12 << 20));
        assert_eq!(ahead.next(0, 4096), None, "that is written already, or a hole for good");
    }

    #[test]
    fn nothing_is_written_whose_late_part_has_no_room() {
        let ahead = Ahead::default();
        assert!(ahead.allows(u64::MAX) && ahead.lacks(u64::MAX).is_none());
        let part = |n: u64| 4096 + n * 257 * 4096..4096 + n * 257 * 4096 + 4096;
        // An empty store: its first area may be a hole.
        ahead.begin(part(0).end, Some(LATE));
        assert_eq!(ahead.lacks(1), Some(part(0)));
        ahead.has(part(0).start + 1..part(0).end);
        assert_eq!(ahead.lacks(part(0).end), Some(part(0)));
        ahead.has(part(0));
        assert!(ahead.allows(part(0).end));
        ahead.begin(part(3).end, Some(LATE));
        assert_eq!(ahead.lacks(part(3).end), Some(part(3)));
        ahead.has(part(3));
        assert!(ahead.allows(part(3).end) && !ahead.allows(part(3).end + 1));
        assert_eq!(ahead.lacks(part(3).end + 4096), Some(part(4)));
        ahead.has(part(4));
        assert!(ahead.allows(part(4).end) && !ahead.allows(part(4).end + 4096));
        // A stretch has room for those that lie in it as a whole.
        ahead.has(part(5).start..part(9).end - 1);
        assert_eq!(ahead.lacks(part(8).end + 1), Some(part(9)));
        // Behind a gap it says nothing of those in the gap.
        ahead.has(part(10).start..part(20).end);
        assert_eq!(ahead.lacks(part(15).start), Some(part(9)));
        ahead.has(part(9));
        assert_eq!(ahead.lacks(part(15).start), Some(part(10)));
        // At the end of the file there is none, until it has grown.
        ahead.ends(part(10).end - 1);
        assert!(ahead.allows(part(10).end - 1) && !ahead.allows(part(10).end));
        assert_eq!(ahead.lacks(part(10).end), Some(part(10)));
        // In the middle between two parts.
        ahead.begin(part(6).end + 40960, Some(LATE));
        ahead.has(part(6));
        assert_eq!(ahead.lacks(part(6).end + 45056), Some(part(7)));
    }
}
