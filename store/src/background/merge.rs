//! A merge as a job: a thread of its own, that can be watched, paused, slowed, stopped and ended.
//!
//! Owns the thread, its pace, and what is asked of it. Never knows how a merge is done (its engine
//! does), nor what becomes of the table afterwards. Lets go of the table before it says that it
//! stopped.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{Executor, Host};
use crate::attached::{AttachedWorker, StopError};
use crate::engine::{EngineConfig, MergeFailure, MergeProgress, MergeState};
use crate::table::Table;
use crate::workers::{Wake, Workers};

/// How often a merge whose speed is limited gets its share.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// How a merge ended.
#[derive(Debug)]
pub enum MergeEnd {
    /// Nothing is left in the store.
    Finished,
    /// It was cancelled, after a batch.
    Cancelled,
    /// It failed; a new one goes on.
    Failed(MergeFailure),
    /// Its I/O can no longer be waited for.
    Wait(io::Error),
}

impl fmt::Display for MergeEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MergeEnd::Finished => f.write_str("the merge is complete"),
            MergeEnd::Cancelled => f.write_str("the merge was cancelled"),
            MergeEnd::Failed(failure) => failure.fmt(f),
            MergeEnd::Wait(error) => write!(f, "cannot wait for the merge's files: {error}"),
        }
    }
}

/// Where the thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Running,
    Stopped,
    Ended,
}

/// What is asked of the thread, and what it says.
struct Control {
    stop: bool,
    cancel: bool,
    paused: bool,
    /// Bytes a second.
    speed: Option<u64>,
    /// The table to go on with.
    table: Option<Arc<Table>>,
    at: At,
    progress: MergeProgress,
}

struct Inner {
    control: Mutex<Control>,
    changed: Condvar,
    wake: Arc<dyn Wake>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().expect("merge control lock poisoned")
    }

    fn ask(&self, change: impl FnOnce(&mut Control)) {
        change(&mut self.lock());
        self.changed.notify_all();
        self.wake.wake();
    }
}

/// A merge that runs. Cloned, it is the same merge; dropped, the merge goes on.
#[derive(Clone)]
pub struct MergeHandle(Arc<Inner>);

impl fmt::Debug for MergeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergeHandle").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl MergeHandle {
    /// Starts to merge the store of `table`'s `snapshot-merge` line: flushes, then copies, until
    /// it ends, which `on_end` is told in the merge's own thread, at `speed` bytes a second at
    /// most from the first on. `config.scratch` is the executor's.
    ///
    /// # Errors
    /// No more threads.
    pub fn start<E: Executor + 'static>(
        workers: Arc<Workers>,
        executor: E,
        config: EngineConfig,
        table: Arc<Table>,
        speed: Option<u64>,
        on_end: impl FnOnce(MergeEnd) + Send + 'static,
    ) -> io::Result<MergeHandle> {
        let state = MergeState::Running;
        let inner = Arc::new(Inner {
            control: Mutex::new(Control {
                stop: false,
                cancel: false,
                paused: false,
                speed,
                table: Some(table),
                at: At::Running,
                progress: MergeProgress { state, done: 0, total: 0, chunk: 0 },
            }),
            changed: Condvar::new(),
            wake: executor.waker(),
        });
        let handle = MergeHandle(inner.clone());
        std::thread::Builder::new().name(String::from("merge")).spawn(move || {
            let host = Host::new(workers, executor, config);
            let mut job = Job { host, inner, total: None, pace: Pace::new() };
            let end = job.run();
            job.ended(&end);
            on_end(end);
        })?;
        Ok(handle)
    }

    /// How far it is.
    pub fn progress(&self) -> MergeProgress {
        self.0.lock().progress
    }

    /// Pauses it after the batch in hand.
    pub fn pause(&self) {
        self.0.ask(|control| control.paused = true);
    }

    /// Lets it go on after a pause.
    pub fn resume(&self) {
        self.0.ask(|control| control.paused = false);
    }

    /// Limits it to about this many bytes a second, or not at all.
    pub fn set_speed(&self, bytes: Option<u64>) {
        self.0.ask(|control| control.speed = bytes);
    }

    /// Ends it after the batch in hand; what was merged stays merged.
    pub fn cancel(&self) {
        self.0.ask(|control| control.cancel = true);
    }
}

impl AttachedWorker for MergeHandle {
    fn stop(&self) {
        self.0.ask(|control| control.stop = true);
    }

    fn stopped(&self, deadline: Instant) -> Result<(), StopError> {
        let mut control = self.0.lock();
        while control.at == At::Running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                control.stop = false;
                drop(control);
                self.0.ask(|_| ());
                return Err(StopError::Deadline);
            }
            let waited = self.0.changed.wait_timeout(control, left);
            control = waited.expect("merge control lock poisoned").0;
        }
        Ok(())
    }

    fn go(&self, table: Arc<Table>) {
        self.0.ask(|control| {
            control.stop = false;
            if control.at == At::Stopped {
                control.table = Some(table);
                control.at = At::Running;
            }
        });
    }
}

/// How much may be copied when.
pub(super) struct Pace {
    speed: Option<u64>,
    granted: Instant,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { speed: None, granted: Instant::now() }
    }

    /// The bytes that are due now, if there is something new to say.
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

struct Job<E> {
    host: Host<E>,
    inner: Arc<Inner>,
    /// Chunks there were when it was first started.
    total: Option<u64>,
    pace: Pace,
}

impl<E: Executor> Job<E> {
    fn run(&mut self) -> MergeEnd {
        while let Some(table) = self.next_table() {
            self.host.bind(Some(table));
            if let Some(end) = self.merge() {
                return end;
            }
            self.stopped();
        }
        MergeEnd::Cancelled
    }

    /// Waits until there is a table to work on; none where it was cancelled before.
    fn next_table(&self) -> Option<Arc<Table>> {
        let mut control = self.inner.lock();
        loop {
            if control.cancel {
                return None;
            }
            if let Some(table) = control.table.take() {
                return Some(table);
            }
            let waited = self.inner.changed.wait(control);
            control = waited.expect("merge control lock poisoned");
        }
    }

    /// Merges until it ends, or has to stop.
    fn merge(&mut self) -> Option<MergeEnd> {
        // A flush that fails leaves something owed, or a file that cannot be merged to: the merge
        // itself says which.
        if let Err(super::FlushError::Wait(error)) = self.host.flush() {
            return Some(MergeEnd::Wait(error));
        }
        if let Err(failure) = self.host.engine.start_merge() {
            return Some(MergeEnd::Failed(failure));
        }
        self.pace = Pace::new();
        loop {
            let limited = self.obey();
            self.host.go_on();
            if let Some(end) = self.look() {
                return end;
            }
            if let Err(error) = self.host.wait(limited.then_some(TICK)) {
                return Some(MergeEnd::Wait(error));
            }
        }
    }

    /// Passes on what is asked; true where time must be looked at again.
    fn obey(&mut self) -> bool {
        let control = self.inner.lock();
        let engine = &mut self.host.engine;
        engine.set_stopping(control.stop || control.cancel);
        engine.merge_pause(control.paused);
        if let Some(bytes) = self.pace.due(control.speed, Instant::now()) {
            engine.merge_budget(bytes);
        }
        control.speed.is_some()
    }

    /// Says how far it is; whether it is over, with an end or without.
    fn look(&mut self) -> Option<Option<MergeEnd>> {
        let quiet = self.host.engine.is_quiet();
        let mut progress = self.host.engine.merge()?;
        let total = *self.total.get_or_insert(progress.total);
        progress.done += total - progress.total;
        progress.total = total;
        let mut control = self.inner.lock();
        control.progress = progress;
        match progress.state {
            MergeState::Finished => Some(Some(MergeEnd::Finished)),
            MergeState::Failed(failure) => Some(Some(MergeEnd::Failed(failure))),
            _ if quiet && control.cancel => Some(Some(MergeEnd::Cancelled)),
            _ if quiet && control.stop => Some(None),
            _ => None,
        }
    }

    /// Lets go of the table, and says that it stopped; unless it need not any more.
    fn stopped(&mut self) {
        let table = self.host.engine.table().cloned();
        self.host.bind(None);
        let mut control = self.inner.lock();
        if control.stop {
            drop(table);
            control.at = At::Stopped;
        } else {
            control.table = table;
        }
        drop(control);
        self.inner.changed.notify_all();
    }

    fn ended(&mut self, end: &MergeEnd) {
        if !matches!(end, MergeEnd::Wait(_)) && self.host.engine.is_quiet() {
            self.host.bind(None);
        }
        let mut control = self.inner.lock();
        control.at = At::Ended;
        if let MergeEnd::Failed(failure) = end {
            control.progress.state = MergeState::Failed(*failure);
        }
        drop(control);
        self.inner.changed.notify_all();
    }
}
