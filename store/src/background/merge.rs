//! A merge as a job: a separate thread that can be watched, paused, slowed, stopped and ended.
//!
//! Owns the thread and the order of its work. Never knows how a merge is done (its engine does),
//! nor the fate of the table afterwards. Releases the table before it reports that it stopped.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{Control, JobPart, JobThread, Pacing, Phase, Requests};
use super::pace::{Allowance, Pace, TICK};
use super::share::{Share, Turn};
use super::{Executor, Host};
use crate::engine::{EngineConfig, MergeFailure, MergeProgress, MergeState};
use crate::io::IoOp;
use crate::table::Table;
use crate::workers::Workers;

/// A batch that takes longer is followed by a smaller one.
const SLOW: Duration = Duration::from_millis(200);

/// How a merge ended.
#[derive(Debug)]
pub enum MergeEnd {
    /// The store is empty.
    Finished,
    /// It was cancelled, after a batch.
    Cancelled,
    /// It failed; a new one continues.
    Failed(MergeFailure),
    /// Its I/O can no longer be waited for.
    Wait(io::Error),
}

impl MergeEnd {
    /// The failed operation, if it was I/O.
    pub fn io(&self) -> Option<IoOp> {
        match self {
            MergeEnd::Failed(failure) => failure.io(),
            _ => None,
        }
    }
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

/// What a merge's thread and its owner exchange.
pub struct MergePart {
    /// The table to continue with.
    table: Option<Arc<Table>>,
    progress: MergeProgress,
}

impl JobPart for MergePart {
    fn set_table(&mut self, table: Arc<Table>) {
        self.table = Some(table);
    }
}

/// A running merge.
pub type MergeHandle = JobThread<MergePart>;

impl fmt::Debug for MergeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergeHandle").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl MergeHandle {
    /// A thread that merges the store of its table's `snapshot-merge` line from the first
    /// [`go`](AttachedWorker::go) on, which brings the table: it flushes, then copies, initially
    /// with `pacing`, until its end, which `on_end` gets in that thread. `config.scratch` is the
    /// executor's.
    ///
    /// # Errors
    /// Too many threads, or too many workers.
    pub fn start<E: Executor + 'static>(
        workers: Arc<Workers>,
        executor: E,
        config: EngineConfig,
        pacing: Pacing,
        on_end: impl FnOnce(MergeEnd) + Send + 'static,
    ) -> io::Result<MergeHandle> {
        let progress = MergeProgress { state: MergeState::Running, done: 0, total: 0, chunk: 0 };
        let part = MergePart { table: None, progress };
        let control = Control::new(executor.waker(), pacing, Phase::Stopped, part);
        let host = Host::new(&workers, executor, config)?;
        let handle = JobThread(control.clone());
        std::thread::Builder::new().name(String::from("merge")).spawn(move || {
            let (pace, share) = (Pace::new(), Share::new());
            let since = (0, Instant::now());
            let mut job = Job { host, control, total: None, pace, share, since };
            let end = job.run();
            job.ended(&end);
            on_end(end);
        })?;
        Ok(handle)
    }

    /// Its progress.
    pub fn progress(&self) -> MergeProgress {
        let shared = self.0.lock();
        let mut progress = shared.job.progress;
        let stopped = shared.phase == Phase::Stopped && progress.state == MergeState::Running;
        if shared.requests.paused && stopped {
            progress.state = MergeState::Paused;
        }
        progress
    }
}

/// How a merge goes on.
enum Poll {
    Goes,
    /// It was asked to stop, and nothing is in flight.
    Stopped,
    Ended(MergeEnd),
}

struct Job<E> {
    host: Host<E>,
    control: Arc<Control<MergePart>>,
    /// Chunks in the store when it was first started.
    total: Option<u64>,
    pace: Pace,
    share: Share,
    /// The time of its last progress.
    since: (u64, Instant),
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

    /// Waits until there is a table to work on; none if it was cancelled before.
    fn next_table(&self) -> Option<Arc<Table>> {
        let mut shared = self.control.lock();
        loop {
            if shared.requests.cancel {
                return None;
            }
            if let Some(table) = shared.job.table.take() {
                return Some(table);
            }
            shared = self.control.wait(shared);
        }
    }

    /// Merges until it ends, or has to stop.
    fn merge(&mut self) -> Option<MergeEnd> {
        // A flush that fails leaves owed chunks, or a file that cannot be merged to: the merge
        // itself reports which.
        if let Err(super::FlushError::Wait(error)) = self.host.flush() {
            return Some(MergeEnd::Wait(error));
        }
        if let Err(failure) = self.host.engine.start_merge() {
            return Some(MergeEnd::Failed(failure));
        }
        (self.pace, self.share) = (Pace::new(), Share::new());
        loop {
            let look_again = self.obey();
            self.host.go_on();
            match self.poll() {
                Poll::Goes => {}
                Poll::Stopped => return None,
                Poll::Ended(end) => return Some(end),
            }
            // A batch that ended just now no longer wakes a thread.
            let ended = !self.is_over() && self.host.engine.merge_has_ended_batches();
            let ended = ended.then_some(Duration::ZERO);
            if let Err(error) = self.host.wait(look_again.or(ended)) {
                return Some(MergeEnd::Wait(error));
            }
        }
    }

    /// Whether nothing is left to merge.
    fn is_over(&self) -> bool {
        let state = self.host.engine.merge().map(|progress| progress.state);
        matches!(state, Some(MergeState::Finished | MergeState::Failed(_)))
    }

    /// Passes requests on; returns when to check the time again, if necessary.
    fn obey(&mut self) -> Option<Duration> {
        // Then it leads nothing more for others.
        let is_over = self.is_over();
        let Requests { stop, cancel, paused, speed } = self.control.lock().requests;
        let engine = &mut self.host.engine;
        engine.set_stopping(stop || cancel || is_over);
        engine.merge_pause(paused);
        let now = Instant::now();
        match self.pace.due(speed, now) {
            Allowance::Unchanged => {}
            Allowance::Unlimited => engine.merge_budget(None),
            Allowance::Bytes(bytes) => engine.merge_budget(Some(bytes)),
        }
        let used = engine.take_merge_in_use();
        if speed.is_some() {
            // With a limited speed, the user decides how much is left to the guest.
            engine.merge_batches(None);
            return Some(TICK);
        }
        match self.share.next(used, engine.merge_has_ended_batches(), now) {
            Turn::Free => engine.merge_batches(None),
            Turn::End => engine.merge_batches(Some(0)),
            Turn::One => engine.merge_batches(Some(1)),
            Turn::Rest(rest) => {
                engine.merge_batches(Some(0));
                return Some(rest);
            }
        }
        None
    }

    /// Reports its progress, and how it goes on.
    fn poll(&mut self) -> Poll {
        let quiet = self.host.engine.is_quiet();
        let Some(mut progress) = self.host.engine.merge() else { return Poll::Goes };
        let total = *self.total.get_or_insert(progress.total);
        progress.done += total - progress.total;
        progress.total = total;
        self.judge(progress.done);
        let mut shared = self.control.lock();
        shared.job.progress = progress;
        match progress.state {
            // What it leads for others must end first: they wait for it.
            MergeState::Finished | MergeState::Failed(_) if !quiet => Poll::Goes,
            MergeState::Finished => Poll::Ended(MergeEnd::Finished),
            MergeState::Failed(failure) => Poll::Ended(MergeEnd::Failed(failure)),
            _ if quiet && shared.requests.cancel => Poll::Ended(MergeEnd::Cancelled),
            _ if quiet && shared.requests.stop => Poll::Stopped,
            _ => Poll::Goes,
        }
    }

    /// When a batch has ended, reports whether it took long: a write to one of its chunks waits for
    /// that time, and so does a suspend.
    fn judge(&mut self, done: u64) {
        let (before, since) = self.since;
        if done != before {
            let now = Instant::now();
            self.host.engine.set_merge_slow(now - since > SLOW);
            self.since = (done, now);
        }
    }

    /// Releases the table, and reports that it stopped, unless the request was withdrawn.
    fn stopped(&mut self) {
        let table = self.host.engine.table().cloned();
        self.host.bind(None);
        self.control.report(|shared| {
            if shared.requests.stop {
                drop(table);
                shared.phase = Phase::Stopped;
            } else {
                shared.job.table = table;
            }
        });
    }

    fn ended(&mut self, end: &MergeEnd) {
        let is_quiet = self.host.engine.is_quiet();
        debug_assert!(is_quiet || matches!(end, MergeEnd::Wait(_)), "others wait for it");
        if !matches!(end, MergeEnd::Wait(_)) && is_quiet {
            self.host.bind(None);
        }
        self.control.report(|shared| {
            shared.phase = Phase::Ended;
            if let MergeEnd::Failed(failure) = end {
                shared.job.progress.state = MergeState::Failed(*failure);
            }
        });
    }
}
