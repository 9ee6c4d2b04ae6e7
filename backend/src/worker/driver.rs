//! How the driver learns of completions, and the handling of a driver that polls for them.
//!
//! Owns what is known of the driver. Never knows what a request is. A driver that polls follows
//! each completion with its next request within microseconds. So the worker waits that long for
//! it, and submits the new requests together, by the call in which the worker sleeps. Completions
//! are then posted as they come, so that no system call is needed to see those after the first.

use std::time::{Duration, Instant};

use super::Worker;
use super::poll::{FEW, Polling, spin_until};
use crate::binding::{DeviceEngine, DeviceIo};

/// A driver that asked for no interrupt during so many requests in a row counts as polling. A
/// driver that sleeps mostly asks for one earlier.
const UNTOLD: u32 = 2048;
/// How long such a driver takes from one request to the next, at most.
const NEXT: Duration = Duration::from_micros(3);
/// How long it takes to follow completions with new requests: it cannot while its processor
/// handles the disk's interrupt.
const REFILL: Duration = Duration::from_micros(30);
/// The longest time for which no chain is taken so that nothing is in flight.
const DRAIN: Duration = Duration::from_millis(5);

/// How the driver learns of completions, as far as known.
#[derive(Debug, Default)]
pub(super) struct DriverWatch {
    /// Requests that ended since it last asked for an interrupt.
    untold: u32,
    /// It was found to poll, and the change for that was tried.
    suited: bool,
}

impl DriverWatch {
    /// A request ended.
    #[inline]
    pub(super) fn ended(&mut self) {
        self.untold = self.untold.saturating_add(1);
    }

    /// It asks for an interrupt.
    pub(super) fn waits(&mut self) {
        self.untold = 0;
    }

    /// Whether it polls: a driver that sleeps now and then asks for an interrupt first.
    fn polls(&self) -> bool {
        self.untold >= UNTOLD
    }
}

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    /// If the driver polls and keeps more than a few requests in flight, has completions posted as
    /// they come. That takes a moment in which nothing is in flight, so no chain is taken until
    /// then; only once per start of a ring, and not for long, since a disk may be slow.
    pub(super) fn adapt_to_driver(&mut self) {
        if self.drains.is_none() && self.is_refilled() && self.is_unsuited() {
            self.drains = Some(Instant::now() + DRAIN);
        }
        let Some(limit) = self.drains else { return };
        if self.ring.is_none() {
            self.drains = None;
            return;
        }
        if self.io.in_flight() == 0 {
            self.io.post_at_once(true);
            self.drains = None;
        } else if Instant::now() >= limit {
            self.drains = None;
        }
    }

    /// Whether this was not tried for this driver; it is now.
    fn is_unsuited(&mut self) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        !std::mem::replace(&mut ring.driver.suited, true) && !self.io.posts_at_once()
    }

    /// Whether a driver that polls keeps more than a few requests in flight: it follows each
    /// completion with another request.
    pub(super) fn is_refilled(&self) -> bool {
        self.flights.len() > FEW && self.has_polling_driver()
    }

    /// Whether a driver that polls is adding requests: it keeps more than a few in flight, or has
    /// added another one already, as after many completions at once.
    pub(super) fn is_added_to(&self) -> bool {
        self.has_polling_driver()
            && self.is_serving()
            && (self.flights.len() > FEW || self.has_work())
    }

    /// Whether the driver polls, and this end sleeps. A worker that never sleeps waits for nothing.
    pub(super) fn has_polling_driver(&self) -> bool {
        self.polling == Polling::Adaptive
            && !self.io.is_synchronous()
            && self.ring.as_ref().is_some_and(|ring| ring.driver.polls())
    }

    /// Gives such a driver the time to add another request; true if it did.
    pub(super) fn refill_goes_on(&self) -> bool {
        self.is_refilled() && spin_until(NEXT, || self.has_work())
    }

    /// Gives such a driver the time to respond to completions, and gathers further completions:
    /// its new requests are submitted together, by the call in which this end sleeps. True if a
    /// request or message came, or something ended.
    pub(super) fn await_refill(&mut self) -> bool {
        if !self.is_serving() || !self.is_refilled() || !self.io.posts_at_once() {
            return false;
        }
        if !self.unsubmitted.is_empty() && !self.io.has_answers() {
            return false;
        }
        if spin_until(REFILL, || self.has_work() || self.mailbox.is_pending()) {
            return true;
        }
        let ended = self.io.has_answers();
        // The ring, the mailbox and the inbox are checked in every turn, whatever the signal.
        while self.io.fired().is_some() {}
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_to_be_told_of_nothing_for_long_polls() {
        let mut driver = DriverWatch::default();
        for ended in 0..UNTOLD {
            assert!(!driver.polls(), "after {ended}");
            driver.ended();
        }
        assert!(driver.polls());
        driver.waits();
        assert!(!driver.polls());
        driver.ended();
        assert!(!driver.polls(), "it slept just now");
    }
}
