//! Who is to be woken: a worker's bit, sets of workers, and those that wait for something.
//!
//! Owns the masks that these are. Never knows the workers, nor what they wait for. Orders nothing
//! beyond its own words: whoever adds itself to [`Waiters`] and looks again, or changes something and
//! then takes them, needs a fence in between (I17).
//!
//! If a process has more workers than [`BITS`], some share a bit, and a wake of one wakes all of them.
//! This is harmless: a woken worker checks its condition again.

use std::ops::{BitOr, BitOrAssign};

use crate::sync::atomic::{AtomicU64, Ordering};

/// Bits in a mask of workers.
const BITS: usize = 62;

/// A worker, as far as masks tell workers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerBit(u32);

impl WorkerBit {
    /// That of the worker with this number.
    #[inline]
    pub const fn of(worker: usize) -> WorkerBit {
        WorkerBit((worker % BITS) as u32)
    }

    /// For a word that workers share.
    #[inline]
    pub const fn to_u32(self) -> u32 {
        self.0
    }

    /// From such a word.
    #[inline]
    pub const fn from_u32(value: u32) -> WorkerBit {
        WorkerBit(value)
    }

    #[inline]
    const fn mask(self) -> u64 {
        1 << self.0
    }
}

/// The workers that must be woken because of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "these workers sleep until they are woken"]
pub struct WakeSet(u64);

impl WakeSet {
    /// Nobody waited.
    pub const NONE: WakeSet = WakeSet(0);
    /// Any of them may wait.
    pub const ALL: WakeSet = WakeSet(u64::MAX);

    /// Whether nobody waited.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `worker` is one of them.
    #[inline]
    pub const fn has(self, worker: WorkerBit) -> bool {
        self.0 & worker.mask() != 0
    }
}

impl From<WorkerBit> for WakeSet {
    #[inline]
    fn from(worker: WorkerBit) -> WakeSet {
        WakeSet(worker.mask())
    }
}

impl BitOr for WakeSet {
    type Output = WakeSet;

    #[inline]
    fn bitor(self, other: WakeSet) -> WakeSet {
        WakeSet(self.0 | other.0)
    }
}

impl BitOrAssign for WakeSet {
    #[inline]
    fn bitor_assign(&mut self, other: WakeSet) {
        self.0 |= other.0;
    }
}

/// The workers that wait for one thing.
#[derive(Debug)]
pub struct Waiters(AtomicU64);

impl Default for Waiters {
    fn default() -> Waiters {
        Waiters(AtomicU64::new(0))
    }
}

impl Waiters {
    /// `worker` waits, unless what it waits for has changed when it looks again.
    #[inline]
    pub fn add(&self, worker: WorkerBit) {
        self.0.fetch_or(worker.mask(), Ordering::SeqCst);
    }

    /// It has changed: those that wait do so no longer.
    #[inline]
    pub fn take(&self) -> WakeSet {
        if self.0.load(Ordering::SeqCst) == 0 {
            return WakeSet::NONE;
        }
        WakeSet(self.0.swap(0, Ordering::SeqCst))
    }
}
