//! The policy for room in a file: how long what finds none waits.
//!
//! Owns what was requested, whether the wait is over, and whether that has been confirmed. Never
//! knows what the file holds, whether it is full, nor what waits.

use std::time::Duration;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// See the module's description. One per file: where it is a store, the store's; else the medium's.
#[derive(Default)]
pub(crate) struct Room {
    /// How long a write that needs room waits, in milliseconds.
    patience: AtomicU64,
    /// That time is over.
    given_up: AtomicBool,
    /// The file system reports room again, and nothing was written to it yet.
    promised: AtomicBool,
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

    pub(crate) fn set_promised(&self, promised: bool) {
        self.promised.store(promised, Ordering::Release);
    }

    /// One load per first write.
    #[inline]
    pub(crate) fn is_promised(&self) -> bool {
        self.promised.load(Ordering::Acquire)
    }
}
