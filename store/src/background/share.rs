//! How a job shares the disk with the disk's guest.
//!
//! Owns when the job works and when it rests. While the guest uses the disk, the job works a
//! quarter of the time: one small batch, then a rest three times as long, at most a second.
//! Otherwise it works all the time. Never knows what the job does.

use std::time::{Duration, Instant};

/// After this time without a request of the guest, the job gets the whole disk.
const QUIET: Duration = Duration::from_millis(50);
/// The ratio of a rest to the work before it, and the longest rest.
const REST: u32 = 3;
const LONGEST_REST: Duration = Duration::from_secs(1);

/// The permission for the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Work without a limit.
    Free,
    /// Complete the work that was begun.
    End,
    /// Begin one batch.
    One,
    /// Rest for this time, then ask again.
    Rest(Duration),
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Share {
    used: Option<Instant>,
    state: State,
}

#[derive(Debug)]
enum State {
    Free,
    Working(Instant),
    Resting(Instant),
}

impl Share {
    pub(super) fn new() -> Share {
        Share { used: None, state: State::Free }
    }

    /// The next permission; `used` says whether the guest used the disk since the last call, `idle`
    /// whether the job has completed its permitted work.
    pub(super) fn next(&mut self, used: bool, idle: bool, now: Instant) -> Turn {
        if used {
            self.used = Some(now);
        }
        let quiet = self.used.is_none_or(|used| now.saturating_duration_since(used) >= QUIET);
        match self.state {
            _ if quiet => {
                self.state = State::Free;
                Turn::Free
            }
            State::Working(since) if idle => {
                let rest = (REST * now.saturating_duration_since(since)).min(LONGEST_REST);
                self.state = State::Resting(now + rest);
                Turn::Rest(rest)
            }
            State::Working(_) => Turn::End,
            State::Resting(until) if now < until => Turn::Rest(until - now),
            State::Resting(_) => {
                self.state = State::Working(now);
                Turn::One
            }
            State::Free => {
                self.state = State::Working(now);
                Turn::End
            }
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_disk_that_is_used_is_the_jobs_for_a_quarter_of_the_time() {
        let start = Instant::now();
        let mut share = Share::new();
        assert_eq!(share.next(false, true, start), Turn::Free);
        assert_eq!(share.next(true, false, start), Turn::End);
        assert_eq!(share.next(true, false, start + 4 * MS), Turn::End);
        assert_eq!(share.next(true, true, start + 5 * MS), Turn::Rest(15 * MS));
        assert_eq!(share.next(true, true, start + 9 * MS), Turn::Rest(11 * MS));
        assert_eq!(share.next(true, true, start + 20 * MS), Turn::One);
        assert_eq!(share.next(true, false, start + 21 * MS), Turn::End);
        assert_eq!(share.next(true, true, start + 22 * MS), Turn::Rest(6 * MS));
    }

    #[test]
    fn a_disk_that_nobody_uses_is_the_jobs() {
        let start = Instant::now();
        let mut share = Share::new();
        assert_eq!(share.next(true, false, start), Turn::End);
        assert_eq!(share.next(false, true, start + 900 * MS), Turn::Free);
        assert_eq!(share.next(true, false, start + 901 * MS), Turn::End);
        assert_eq!(share.next(true, true, start + 1900 * MS), Turn::Rest(LONGEST_REST));
    }
}
