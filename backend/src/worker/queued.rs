//! Actions that were queued since the last submission to the kernel.
//!
//! Owns how many there are, how many of them are from before this turn, whether to gather more, and
//! when they are submitted. Never knows what an action does.

use super::Worker;
use super::poll::Polling;
use crate::binding::{DeviceEngine, DeviceIo};

/// The number of actions that are submitted even if more are about to come.
const MOST: usize = 64;

/// See the module's description.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queued {
    all: usize,
    /// Those that an earlier turn queued: never more than all.
    carried: usize,
}

impl Queued {
    /// A turn begins.
    #[inline]
    pub(super) fn begin_turn(&mut self) {
        self.carried = self.all;
    }

    /// One more.
    #[inline]
    pub(super) fn add(&mut self) {
        self.all += 1;
    }

    /// The kernel has them.
    #[inline]
    pub(super) fn submitted(&mut self) {
        *self = Queued::default();
    }

    /// Whether there is none.
    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.all == 0
    }

    /// Whether one was there before this turn.
    #[inline]
    pub(super) fn has_earlier(self) -> bool {
        self.carried > 0
    }

    /// Whether more may still be gathered, after a turn that `took` requests or none. If only
    /// requests that end at once arrive, the queued actions are submitted, or they would be
    /// delayed for as long as such requests arrive. If none came, the driver is about to respond
    /// to the latest completions.
    #[inline]
    pub(super) fn still_grows(self, took: bool) -> bool {
        self.all < MOST && (self.carried < self.all || !took)
    }
}

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    /// Whether the queued actions are submitted now; the first parts of a batch were.
    pub(super) fn submits_now(&mut self, took: bool, busy: bool) -> bool {
        if self.polling == Polling::Always {
            // No call in which it sleeps follows.
            return !self.unsubmitted.is_empty() || self.io.is_ready();
        }
        let grows = self.is_added_to() && self.unsubmitted.still_grows(took);
        if self.unsubmitted.is_empty() || grows {
            return false;
        }
        // A worker that goes on submits what it queued earlier. One that is about to sleep does so by
        // the call in which it waits, or before it polls.
        self.has_work() || (self.unsubmitted.has_earlier() && busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a turn that began with so many, and to which so many were added.
    fn after(carried: usize, added: usize) -> Queued {
        let mut queued = Queued::default();
        (0..carried).for_each(|_| queued.add());
        queued.begin_turn();
        (0..added).for_each(|_| queued.add());
        queued
    }

    #[test]
    fn what_does_not_grow_is_submitted() {
        assert!(after(0, 1).still_grows(true) && after(3, 4).still_grows(true));
        assert!(!after(7, 0).still_grows(true), "requests that end at once came instead");
        assert!(after(7, 0).still_grows(false), "none came yet");
        assert!(after(62, 1).still_grows(true), "there is room");
        assert!(!after(60, 4).still_grows(true) && !after(64, 0).still_grows(false), "enough");
    }

    #[test]
    fn what_follows_a_part_is_new() {
        let mut queued = after(1, 0);
        assert!(queued.has_earlier());
        queued.submitted();
        assert!(queued.is_empty());
        queued.add();
        assert!(!queued.has_earlier() && queued.still_grows(true));
    }
}
