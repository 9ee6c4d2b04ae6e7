//! The threshold of a store: bytes in use beyond which one event is sent.
//!
//! Owns the threshold, and that one caller reports it. Never knows how much is in use.

use crate::sync::atomic::{AtomicU64, Ordering};

/// No threshold is set.
const NONE: u64 = u64::MAX;

/// See the module's description.
pub(super) struct Threshold(AtomicU64);

impl Default for Threshold {
    fn default() -> Self {
        Threshold(AtomicU64::new(NONE))
    }
}

impl Threshold {
    pub(super) fn set(&self, bytes: Option<u64>) {
        self.0.store(bytes.unwrap_or(NONE), Ordering::SeqCst);
    }

    /// The threshold, if one is set: one load.
    #[inline]
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|bytes| *bytes != NONE)
    }

    /// The threshold was passed: true for the one caller that must report it.
    pub(super) fn take(&self, bytes: u64) -> bool {
        self.0.compare_exchange(bytes, NONE, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}
