//! The amount that a job with a limited speed may copy, and when.
//!
//! Owns the share of each [`TICK`]. Never knows what is copied.

use std::time::{Duration, Instant};

/// How often a job with a limited speed gets its share.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// See the module's description.
pub(super) struct Pace {
    speed: Option<u64>,
    granted: Instant,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { speed: None, granted: Instant::now() }
    }

    /// The bytes that may be copied now, if that has changed.
    pub(super) fn due(&mut self, speed: Option<u64>, now: Instant) -> Option<Option<u64>> {
        let changed = speed != self.speed;
        self.speed = speed;
        let Some(speed) = speed else { return changed.then_some(None) };
        if changed {
            self.granted = now;
            return Some(Some(0));
        }
        let passed = now.saturating_duration_since(self.granted);
        let bytes = u128::from(speed) * passed.as_millis() / 1000;
        if passed < TICK || bytes == 0 {
            return None;
        }
        self.granted = now;
        Some(Some(u64::try_from(bytes).unwrap_or(u64::MAX)))
    }
}
