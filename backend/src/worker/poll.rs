//! How long to look at a ring before going to sleep.
//!
//! Owns the choice not to sleep at all; and the one number, and how it follows what happened: a
//! sleep that ends soon would have been better polled away (two wake-ups between idle cores cost
//! 65 µs and more, a poll 17), a long one shows that polling was for nothing. Never knows the time:
//! it is told.

use std::time::Duration;

/// Whether a worker that has nothing to do may sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// It looks a little longer where that pays, then sleeps.
    #[default]
    Adaptive,
    /// Never while its ring is served: it takes its whole core, and no request waits for it to be
    /// woken.
    Always,
}

/// The longest poll: what it takes to wake the other end, on an idle core of a virtual machine.
const LONGEST: Duration = Duration::from_micros(200);
/// The shortest.
const FIRST: Duration = Duration::from_micros(6);
/// A sleep that ends sooner would have been better polled away. It has both ends' waking in it.
const SHORT: Duration = Duration::from_micros(600);
/// The longest polls in a row that bring nothing before polling counts as in the way.
const MISSES: u32 = 3;
/// Sleeps that pass without polling after polling was found to be in the way.
const FIRST_PAUSE: u32 = 64;
/// The longest such pause.
const LONGEST_PAUSE: u32 = 1 << 14;

/// The length of a poll, adapted to what it brings.
#[derive(Debug)]
pub(crate) struct AdaptivePoll {
    window: Duration,
    misses: u32,
    pause: u32,
    next_pause: u32,
}

impl Default for AdaptivePoll {
    fn default() -> Self {
        AdaptivePoll { window: Duration::ZERO, misses: 0, pause: 0, next_pause: FIRST_PAUSE }
    }
}

impl AdaptivePoll {
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
            self.window /= 2;
            if self.window < FIRST {
                self.window = Duration::ZERO;
            }
        } else if self.window == LONGEST {
            // The longest poll brought nothing and then work came at once. Now and then that is
            // chance; again and again the other end waits for this core, and polling is in its
            // way.
            self.misses += 1;
            if self.misses < MISSES {
                return;
            }
            self.misses = 0;
            self.window = Duration::ZERO;
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
        } else {
            // As long as would have been enough, and half as long again.
            self.window = ((self.window + slept) * 3 / 2).clamp(FIRST, LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(20);
    const LONG: Duration = Duration::from_millis(5);

    #[test]
    fn short_sleeps_lengthen_the_poll_and_one_idle_spell_ends_it() {
        let mut poll = AdaptivePoll::default();
        assert_eq!(poll.window(), Duration::ZERO);
        poll.slept(SOON);
        assert_eq!(poll.window(), SOON * 3 / 2);
        while poll.window() < LONGEST {
            poll.slept(SOON);
        }
        for _ in 0..6 {
            poll.slept(LONG);
        }
        assert_eq!(poll.window(), Duration::ZERO);
    }

    #[test]
    fn a_poll_that_is_in_the_way_pauses_for_longer_each_time() {
        let mut poll = AdaptivePoll::default();
        let pauses: Vec<u32> = (0..3)
            .map(|_| {
                while poll.window() < LONGEST {
                    poll.slept(SOON);
                }
                (0..MISSES).for_each(|_| poll.slept(SOON));
                let mut paused = 0;
                while poll.window() == Duration::ZERO {
                    poll.slept(SOON);
                    paused += 1;
                }
                paused
            })
            .collect();
        assert_eq!(pauses, [65, 129, 257]);
    }
}
