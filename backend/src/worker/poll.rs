//! How long to poll a ring, and the I/O in flight, before going to sleep.
//!
//! Owns the option not to sleep at all; and, for the driver and for the disk each, one duration
//! and its adaptation: a sleep that ends soon should have been polled (two wake-ups between idle
//! cores cost 65 µs and more, a poll 17), a long one shows that polling was wasted. Never knows
//! what a request is.

use std::time::{Duration, Instant};

use super::Worker;
use crate::binding::{DeviceEngine, DeviceIo};

/// Whether a worker that has nothing to do may sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// It polls for a while if that pays, then sleeps.
    #[default]
    Adaptive,
    /// Never while its ring is served: it takes a whole core, and no request waits for a wake-up.
    Always,
}

/// The longest poll for the driver: the cost of waking the other end, on an idle core of a virtual
/// machine.
const DRIVER: Duration = Duration::from_micros(200);
/// For the disk: the cost of a wake-up of this end after a sleep.
const DISK: Duration = Duration::from_micros(100);
/// The shortest.
const FIRST: Duration = Duration::from_micros(6);
/// A sleep that ends sooner should have been polled. It includes the wake-ups of both ends, or the
/// time of the disk.
const SHORT: Duration = Duration::from_micros(600);
/// The most actions in flight that are polled for: with more, other requests fill the time that a
/// wake-up takes, and a poll for each would cost several times the processor time.
pub(super) const FEW: usize = 4;
/// Checks between two readings of the clock.
const SPINS: u32 = 32;
/// The number of unsuccessful longest polls in a row before a pause.
const MISSES: u32 = 3;
/// Sleeps without polling in a pause.
const FIRST_PAUSE: u32 = 64;
/// The longest pause, if polling is repeatedly in the way.
const LONGEST_PAUSE: u32 = 1 << 14;

/// The length of a poll, adapted to its success.
#[derive(Debug)]
pub(crate) struct AdaptivePoll {
    longest: Duration,
    /// Whether it may delay what it waits for: then pauses become longer.
    in_the_way: bool,
    window: Duration,
    misses: u32,
    pause: u32,
    next_pause: u32,
}

impl AdaptivePoll {
    /// For requests of the driver.
    pub(super) fn for_driver() -> Self {
        Self::up_to(DRIVER, true)
    }

    /// For completions of the disk.
    pub(super) fn for_disk() -> Self {
        Self::up_to(DISK, false)
    }

    fn up_to(longest: Duration, in_the_way: bool) -> Self {
        let window = Duration::ZERO;
        AdaptivePoll { longest, in_the_way, window, misses: 0, pause: 0, next_pause: FIRST_PAUSE }
    }

    /// How long to poll now.
    pub(crate) fn window(&self) -> Duration {
        self.window
    }

    /// Work came while polling.
    pub(crate) fn hit(&mut self) {
        self.misses = 0;
        self.next_pause = FIRST_PAUSE;
    }

    /// Nothing came during the window, and then the worker slept for `slept`.
    pub(crate) fn slept(&mut self, slept: Duration) {
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        if slept >= SHORT {
            self.misses = 0;
            self.window /= 2;
            if self.window < FIRST {
                self.window = Duration::ZERO;
            }
        } else if self.window == self.longest {
            // The longest poll brought nothing, and then work came. Once this is chance;
            // repeatedly it means that a driver waits for this core and polling is in its way. A
            // disk may only be slow at the moment.
            self.misses += 1;
            if self.misses < MISSES {
                return;
            }
            self.misses = 0;
            self.window = Duration::ZERO;
            self.pause = self.next_pause;
            if self.in_the_way {
                self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
            }
        } else {
            // One and a half times the duration that would have sufficed.
            self.window = ((self.window + slept) * 3 / 2).clamp(FIRST, self.longest);
        }
    }
}

/// Spins until `is_there`, at most for `window`; true if it is.
pub(super) fn spin_until(window: Duration, mut is_there: impl FnMut() -> bool) -> bool {
    if window == Duration::ZERO {
        return false;
    }
    let begin = Instant::now();
    while begin.elapsed() < window {
        for _ in 0..SPINS {
            if is_there() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    false
}

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    /// Polls the ring for as long as it seems worth; true if something came.
    pub(super) fn poll_ring(&self) -> bool {
        spin_until(self.poll.window(), || self.has_work() || self.mailbox.is_pending())
    }

    /// Whether the actions in flight may be polled for.
    pub(super) fn may_poll_io(&self) -> bool {
        self.is_serving() && !self.io.is_synchronous() && (1..=FEW).contains(&self.io.in_flight())
    }

    /// Polls the actions in flight and the ring for as long as it seems worth; true if something
    /// came or ended.
    pub(super) fn poll_io(&mut self) -> bool {
        let window = self.poll_io.window();
        if window == Duration::ZERO {
            return false;
        }
        // No system call if there is nothing to submit: a request may have a further step.
        self.submit_queued();
        // Another worker that wakes this one waits for the end of the poll.
        let came = spin_until(window, || {
            self.io.is_ready() || self.has_work() || self.mailbox.is_pending()
        });
        if came && self.io.is_ready() {
            // Deferred completions come with a system call.
            self.note(|io| io.enter());
            // The ring, the mailbox and the inbox are checked in every turn, whatever the signal.
            while self.io.fired().is_some() {}
        }
        came
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(20);
    const LONG: Duration = Duration::from_millis(5);

    #[test]
    fn short_sleeps_lengthen_the_poll_and_one_idle_spell_ends_it() {
        let mut poll = AdaptivePoll::for_driver();
        assert_eq!(poll.window(), Duration::ZERO);
        poll.slept(SOON);
        assert_eq!(poll.window(), SOON * 3 / 2);
        while poll.window() < DRIVER {
            poll.slept(SOON);
        }
        for _ in 0..6 {
            poll.slept(LONG);
        }
        assert_eq!(poll.window(), Duration::ZERO);
    }

    /// The first pauses of a poll after whose longest something comes within `slept`.
    fn pauses(mut poll: AdaptivePoll, slept: Duration) -> Vec<u32> {
        let longest = poll.longest;
        let mut pause = || {
            while poll.window() < longest {
                poll.slept(slept);
            }
            (0..MISSES).for_each(|_| poll.slept(slept));
            let mut paused = 0;
            while poll.window() == Duration::ZERO {
                poll.slept(slept);
                paused += 1;
            }
            paused
        };
        (0..3).map(|_| pause()).collect()
    }

    #[test]
    fn a_poll_that_is_in_the_way_pauses_for_longer_each_time() {
        assert_eq!(pauses(AdaptivePoll::for_driver(), SOON), [65, 129, 257]);
    }

    #[test]
    fn a_poll_for_a_slow_disk_is_tried_again_soon() {
        assert_eq!(pauses(AdaptivePoll::for_disk(), SOON), [65, 65, 65]);
    }
}
