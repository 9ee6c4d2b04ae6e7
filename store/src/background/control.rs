//! The meeting point of a job's thread and the threads that pause, slow, stop and end it.
//!
//! Owns the requests to the thread, the state that it reports, and the waiting of each side for
//! the other. Never knows what the job does: its progress, and anything else that the two sides
//! exchange, is the job's own part (`S`).

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use crate::attached::StopError;
use crate::workers::Wake;

const POISONED: &str = "job control lock poisoned";

/// The state of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Running,
    Stopped,
    Ended,
}

/// The initial settings of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pacing {
    /// The limit in bytes per second; none for no limit.
    pub speed: Option<u64>,
    /// Whether it is paused, and copies nothing.
    pub paused: bool,
}

/// The requests to the thread, and its reports.
pub(super) struct Asked<S> {
    pub(super) stop: bool,
    pub(super) cancel: bool,
    pub(super) paused: bool,
    /// Bytes per second.
    pub(super) speed: Option<u64>,
    pub(super) at: At,
    pub(super) said: S,
}

/// See the module's description.
pub(super) struct Control<S> {
    asked: Mutex<Asked<S>>,
    changed: Condvar,
    wake: Arc<dyn Wake>,
}

impl<S> Control<S> {
    /// For a thread that is `at` running, or stopped: a job of a device waits for its first
    /// [`go`](Control::go). `wake` ends the thread's waiting for I/O.
    pub(super) fn new(wake: Arc<dyn Wake>, pacing: Pacing, at: At, said: S) -> Arc<Control<S>> {
        let Pacing { speed, paused } = pacing;
        let (stop, cancel) = (false, false);
        let asked = Asked { stop, cancel, paused, speed, at, said };
        Arc::new(Control { asked: Mutex::new(asked), changed: Condvar::new(), wake })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Asked<S>> {
        self.asked.lock().expect(POISONED)
    }

    /// Makes a request to the thread, and ends its waiting.
    pub(super) fn ask(&self, change: impl FnOnce(&mut Asked<S>)) {
        self.say(change);
        self.wake.wake();
    }

    /// A report of the thread.
    pub(super) fn say(&self, change: impl FnOnce(&mut Asked<S>)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits for a request or a report.
    pub(super) fn wait<'a>(&self, asked: MutexGuard<'a, Asked<S>>) -> MutexGuard<'a, Asked<S>> {
        self.changed.wait(asked).expect(POISONED)
    }

    /// Waits, as the thread, until it may run, or is cancelled.
    pub(super) fn wait_to_run(&self) {
        let mut asked = self.lock();
        while asked.at == At::Stopped && !asked.cancel {
            asked = self.wait(asked);
        }
        asked.at = At::Running;
    }

    /// Waits until the thread has stopped or ended, at most until `deadline`; if it has not, the
    /// request is withdrawn.
    pub(super) fn stopped(&self, deadline: Instant) -> Result<(), StopError> {
        let mut asked = self.lock();
        while asked.at == At::Running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(asked);
                self.ask(|asked| asked.stop = false);
                return Err(StopError::Deadline);
            }
            asked = self.changed.wait_timeout(asked, left).expect(POISONED).0;
        }
        Ok(())
    }

    /// Lets a thread that was asked to stop continue, with `change` applied if it has stopped.
    pub(super) fn go(&self, change: impl FnOnce(&mut S)) {
        self.ask(|asked| {
            asked.stop = false;
            if asked.at == At::Stopped {
                change(&mut asked.said);
                asked.at = At::Running;
            }
        });
    }
}
