//! The meeting point of a job's thread and the threads that pause, slow, stop and end it.
//!
//! Owns the requests to the thread, the phase that it reports, and the waiting of each side for
//! the other. Never knows what the job does: its progress, and anything else that the two sides
//! exchange, is the job's own part (`J`).

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use crate::attached::{AttachedWorker, StopError};
use crate::table::Table;
use crate::workers::Wake;

const POISONED: &str = "job control lock poisoned";

/// Where the thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
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

/// What the thread is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requests {
    pub(super) stop: bool,
    pub(super) cancel: bool,
    pub(super) paused: bool,
    /// Bytes per second.
    pub(super) speed: Option<u64>,
}

/// What both sides see.
pub(super) struct Shared<J> {
    pub(super) requests: Requests,
    pub(super) phase: Phase,
    pub(super) job: J,
}

/// See the module's description.
pub(super) struct Control<J> {
    shared: Mutex<Shared<J>>,
    changed: Condvar,
    wake: Arc<dyn Wake>,
}

impl<J> Control<J> {
    /// For a thread that is running or stopped: a job of a device waits for its first
    /// [`go`](AttachedWorker::go). `wake` ends the thread's waiting for I/O.
    pub(super) fn new(wake: Arc<dyn Wake>, pacing: Pacing, phase: Phase, job: J) -> Arc<Self> {
        let Pacing { speed, paused } = pacing;
        let requests = Requests { stop: false, cancel: false, paused, speed };
        let shared = Mutex::new(Shared { requests, phase, job });
        Arc::new(Control { shared, changed: Condvar::new(), wake })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared<J>> {
        self.shared.lock().expect(POISONED)
    }

    /// Makes a request to the thread, and ends its waiting.
    fn request(&self, change: impl FnOnce(&mut Requests)) {
        self.report(|shared| change(&mut shared.requests));
        self.wake.wake();
    }

    /// A report of the thread.
    pub(super) fn report(&self, change: impl FnOnce(&mut Shared<J>)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits for a request or a report.
    pub(super) fn wait<'a>(&self, shared: MutexGuard<'a, Shared<J>>) -> MutexGuard<'a, Shared<J>> {
        self.changed.wait(shared).expect(POISONED)
    }

    /// Waits, as the thread, until it may run, or is cancelled.
    pub(super) fn wait_to_run(&self) {
        let mut shared = self.lock();
        while shared.phase == Phase::Stopped && !shared.requests.cancel {
            shared = self.wait(shared);
        }
        shared.phase = Phase::Running;
    }

    /// Waits until the thread has stopped or ended, at most until `deadline`; if it has not, the
    /// request is withdrawn.
    fn stopped(&self, deadline: Instant) -> Result<(), StopError> {
        let mut shared = self.lock();
        while shared.phase == Phase::Running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(shared);
                self.request(|requests| requests.stop = false);
                return Err(StopError::Deadline);
            }
            shared = self.changed.wait_timeout(shared, left).expect(POISONED).0;
        }
        Ok(())
    }

    /// Lets a thread that was asked to stop continue, with `change` applied if it has stopped.
    fn go(&self, change: impl FnOnce(&mut J)) {
        self.report(|shared| {
            shared.requests.stop = false;
            if shared.phase == Phase::Stopped {
                change(&mut shared.job);
                shared.phase = Phase::Running;
            }
        });
        self.wake.wake();
    }
}

/// A running job. A clone is the same job; when dropped, the job continues.
pub struct JobThread<J>(pub(super) Arc<Control<J>>);

impl<J> Clone for JobThread<J> {
    fn clone(&self) -> Self {
        JobThread(self.0.clone())
    }
}

impl<J> JobThread<J> {
    /// Pauses it after what is in flight.
    pub fn pause(&self) {
        self.0.request(|requests| requests.paused = true);
    }

    /// Continues it after a pause.
    pub fn resume(&self) {
        self.0.request(|requests| requests.paused = false);
    }

    /// Limits it to about this many bytes per second, or not at all.
    pub fn set_speed(&self, bytes: Option<u64>) {
        self.0.request(|requests| requests.speed = bytes);
    }

    /// Ends it after what is in flight; what was done stays done.
    pub fn cancel(&self) {
        self.0.request(|requests| requests.cancel = true);
    }
}

/// The job's own part of what both sides see.
pub(super) trait JobPart: Send {
    /// The device of the job has `table` from now on.
    fn set_table(&mut self, table: Arc<Table>);
}

impl<J: JobPart> AttachedWorker for JobThread<J> {
    fn stop(&self) {
        self.0.request(|requests| requests.stop = true);
    }

    fn stopped(&self, deadline: Instant) -> Result<(), StopError> {
        self.0.stopped(deadline)
    }

    /// Jobs do not commit on request: they write for no guest.
    fn commit(&self) {}

    fn go(&self, table: Arc<Table>) {
        self.0.go(|job| job.set_table(table));
    }
}
