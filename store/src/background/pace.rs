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

/// What a job may copy from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowance {
    /// As much as before.
    Unchanged,
    Unlimited,
    Bytes(u64),
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { speed: None, granted: Instant::now() }
    }

    /// What may be copied now.
    pub(super) fn due(&mut self, speed: Option<u64>, now: Instant) -> Allowance {
        let changed = speed != self.speed;
        self.speed = speed;
        let Some(speed) = speed else {
            return if changed { Allowance::Unlimited } else { Allowance::Unchanged };
        };
        if changed {
            self.granted = now;
            return Allowance::Bytes(0);
        }
        let passed = now.saturating_duration_since(self.granted);
        let bytes = u128::from(speed) * passed.as_millis() / 1000;
        if passed < TICK || bytes == 0 {
            return Allowance::Unchanged;
        }
        self.granted = now;
        Allowance::Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}
