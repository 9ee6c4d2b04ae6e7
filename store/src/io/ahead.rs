//! Room in a file, reserved before it is written.
//!
//! Owns how far a file that fills up from its start has room of its own on disk. Never knows what
//! fills it, and does not reserve: it says what is to be. Keeps: each part is named once, whoever
//! asks; what comes of it is seen by nobody, as a reservation reads as a hole does.
//!
//! A write into a hole has to find room for itself, which a file system does not do without
//! waiting: io_uring hands each such write to a kernel thread. Reserved room (`fallocate`) is
//! written in line, and lies together.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The least and the most that is reserved at once, in bytes; between, an eighth of what there is.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 64 << 20;

/// How far a file's room is reserved, in bytes from its start.
#[derive(Debug)]
pub struct Ahead(AtomicU64);

impl Default for Ahead {
    /// Of a file that does not fill up: nothing is reserved.
    fn default() -> Ahead {
        Ahead(AtomicU64::new(u64::MAX))
    }
}

impl Ahead {
    /// The file fills up from byte `at` on.
    pub fn begin(&self, at: u64) {
        self.0.store(at, Ordering::Relaxed);
    }

    /// What to reserve, now that bytes from `start` to `end` are written: seldom anything.
    #[inline]
    pub(crate) fn next(&self, start: u64, end: u64) -> Option<Range<u64>> {
        let reserved = self.0.load(Ordering::Relaxed);
        if end.saturating_add(step(reserved) / 2) <= reserved {
            return None;
        }
        self.extend(reserved, start)
    }

    #[cold]
    fn extend(&self, reserved: u64, start: u64) -> Option<Range<u64>> {
        let from = reserved.max(start);
        let to = from.saturating_add(step(from));
        // Nothing is ordered by this, and who was quicker reserves.
        self.0
            .compare_exchange(reserved, to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
            .then_some(from..to)
    }
}

fn step(reserved: u64) -> u64 {
    (reserved / 8).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_fill_up_reserves_nothing() {
        let ahead = Ahead::default();
        assert_eq!(ahead.next(0, 4096), None);
        assert_eq!(ahead.next(1 << 50, (1 << 50) + 4096), None);
    }

    #[test]
    fn a_file_that_fills_up_is_reserved_once_and_always_ahead() {
        let ahead = Ahead::default();
        ahead.begin(4096);
        let (mut reserved, mut calls) = (4096, 0);
        for start in (4096..1 << 30).step_by(4096) {
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
        ahead.begin(0);
        assert_eq!(ahead.next(8 << 20, (8 << 20) + 512), Some(8 << 20..12 << 20));
        assert_eq!(ahead.next(0, 4096), None, "that is written already, or a hole for good");
    }
}
