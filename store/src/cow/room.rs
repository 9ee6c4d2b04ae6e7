//! The policy for room in a store or in another file: how long a write without room waits, and the
//! threshold that is reported before.
//!
//! Owns what was requested, whether the wait is over, and whether that has been confirmed. Never
//! knows how much room there is, nor which requests wait.

use std::time::Duration;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// No threshold is set.
const NO_THRESHOLD: u64 = u64::MAX;

/// See the module's description.
pub(crate) struct Room {
    /// How long a write that needs room waits, in milliseconds.
    patience: AtomicU64,
    /// That time is over.
    given_up: AtomicBool,
    /// The file system below had no room.
    below: AtomicBool,
    /// The file system reports room again, and nothing was written to it yet.
    promised: AtomicBool,
    /// The threshold: bytes in use beyond which one event is sent.
    threshold: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        Room {
            patience: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
            below: AtomicBool::new(false),
            promised: AtomicBool::new(false),
            threshold: AtomicU64::new(NO_THRESHOLD),
        }
    }
}

impl Room {
    pub(crate) fn set_patience(&self, patience: Duration) {
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.patience.store(millis, Ordering::Release);
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience.load(Ordering::Acquire))
    }

    /// Whether a write that finds no room waits.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.patience.load(Ordering::Acquire) != 0 && !self.given_up.load(Ordering::Acquire)
    }

    pub(crate) fn set_given_up(&self, given_up: bool) {
        self.given_up.store(given_up, Ordering::Release);
    }

    pub(super) fn set_below(&self, below: bool) {
        self.below.store(below, Ordering::Release);
    }

    pub(super) fn is_below(&self) -> bool {
        self.below.load(Ordering::Acquire)
    }

    pub(crate) fn set_promised(&self, promised: bool) {
        self.promised.store(promised, Ordering::Release);
    }

    /// One load per first write.
    #[inline]
    pub(crate) fn is_promised(&self) -> bool {
        self.promised.load(Ordering::Acquire)
    }

    pub(super) fn set_threshold(&self, bytes: Option<u64>) {
        self.threshold.store(bytes.unwrap_or(NO_THRESHOLD), Ordering::SeqCst);
    }

    /// The threshold, if one is set: one load.
    #[inline]
    pub(super) fn threshold(&self) -> Option<u64> {
        Some(self.threshold.load(Ordering::SeqCst)).filter(|bytes| *bytes != NO_THRESHOLD)
    }

    /// The threshold was passed: true for the one caller that must report it.
    pub(super) fn take_threshold(&self, bytes: u64) -> bool {
        let order = Ordering::SeqCst;
        self.threshold.compare_exchange(bytes, NO_THRESHOLD, order, order).is_ok()
    }
}
