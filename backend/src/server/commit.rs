//! `block-commit`: layers of a chain go down as a job.
//!
//! Owns the fit between the threads that copy and merge and the monitor's job: progress, pause,
//! cancel, when it is ready, and which change of tables is due when. Never knows how a chunk is
//! copied.
//!
//! A job whose top is the served device ("activates") is ready when the layers below have gone, and
//! ends by `job-complete`: the device's own store is merged then, as in a rollback, or goes into a
//! layer, step by step. Its stages:
//!
//! | stage | event | next stage |
//! | --- | --- | --- |
//! | `ChangingTables` | the copy begins | `Copying` |
//! | `ChangingTables` | there is nothing to copy: `Copied` | as from `Copying` |
//! | `Copying` | `Copied`, does not activate | `Done`: completed |
//! | `Copying` | `Copied`, activates | `ChangingTables`; when the layers have left, `Ready` |
//! | `Ready` | `complete`: `Pivoted(Merges)` | `Merging` |
//! | `Ready` | `complete`: `Pivoted(Steps)` | `CopyingIntoLayer` |
//! | `Ready` | `cancel`: `Cancelled` | `Done`: cancelled |
//! | `Merging` | `Merged` | completed |
//! | `CopyingIntoLayer` | `Copied` | `CopyingIntoLayer` again; after the last step completed |
//!
//! A cancel while the tables change is carried out before the next stage, and is refused from `Merging`
//! and `CopyingIntoLayer` on. A job that had been completed before a restart begins with one of these. A
//! failure ends it at any stage, and halts the commit.

mod driver;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use snapblk_qmp::{JobHandle, Outcome, derived_id, is_well_formed};
use snapblk_store::attached::AttachedWorker;
use snapblk_store::background::{
    CommitEnd, CommitHandle, CommitSource, FileExecutor, MergeEnd, MergeHandle, Pacing,
};
use snapblk_store::control::CommandError;
use snapblk_store::control::answer::Answer;
use snapblk_store::control::command::BlockCommit;
use snapblk_store::control::job::JobType;
use snapblk_store::device::{CommitJob, CommitWork, JobSettings, Pivot, PivotStep, User, job_user};
use snapblk_store::engine::MergeState;
use snapblk_store::table::Table;

use super::Server;
use super::commands::told;
use super::job::{CONFIG, SCRATCH, TICK, limit, report_io_error, settings, spec_of};

/// Copies in flight.
const COPIES: usize = 8;

impl Server {
    pub(super) fn start_commit(self: &Arc<Self>, c: BlockCommit) -> Result<Answer, CommandError> {
        let id = c.job_id.unwrap_or_else(|| match is_well_formed(&c.device) {
            true => c.device.clone(),
            false => derived_id("commit", &c.device),
        });
        let _alone = self.begins_job();
        self.jobs.check_id(&id)?;
        let job = CommitJob {
            device: c.device,
            top: c.top_node,
            base: c.base_node,
            settings: settings(c.speed, c.auto_finalize, c.auto_dismiss),
            ..CommitJob::default()
        };
        let (job, begin) = match self.devices.begin_commit_again(&id, &job).map_err(told)? {
            Some(halted) => (halted, Begin::Pivoted(Pivot::Merges)),
            None => {
                let work = self.devices.begin_commit(&id, &job).map_err(told)?;
                (job, Begin::Work(work))
            }
        };
        self.run_commit(&id, job, begin).map(|()| Answer::DONE)
    }

    /// Starts again the commits that ran, or had halted, when the process ended. One that cannot be is
    /// given up: its chain serves what it served.
    pub(super) fn resume_commits(self: &Arc<Self>) {
        let _alone = self.begins_job();
        for (id, job) in self.devices.commit_jobs() {
            if job.halted_merging.is_some() {
                self.go_on_with_commit(&id, &job.device);
                continue;
            }
            let named = self.resumed_id(&id, &job.device);
            let id = named.as_ref().map_or(id, String::clone);
            let work = named.and_then(|id| match job.pivoted {
                true => self.devices.resume_pivot(&id).map(Begin::Pivoted).map_err(told),
                false => self.devices.begin_commit(&id, &job).map(Begin::Work).map_err(told),
            });
            if let Err(error) = work.and_then(|work| self.run_commit(&id, job, work)) {
                does_not_go_on(&id, &error);
                self.halt_commit(&id);
            }
        }
    }

    /// Goes on with the commits that failed while their devices, of `resumed` and those above it, merged.
    pub(super) fn commit_what_resumed(self: &Arc<Self>, resumed: &str) {
        let _alone = self.begins_job();
        for (id, device) in self.devices.halted_commits(resumed) {
            self.go_on_with_commit(&id, &device);
        }
    }

    fn go_on_with_commit(self: &Arc<Self>, id: &str, device: &str) {
        let free = self.jobs.check_id(id).is_ok();
        let new = if free { id.to_owned() } else { self.free_id("commit", device) };
        let job = self.devices.commit_goes_on(id, &new).map_err(told);
        let begin = Begin::Pivoted(Pivot::Merges);
        if let Err(error) = job.and_then(|job| self.run_commit(&new, job, begin)) {
            does_not_go_on(id, &error);
        }
    }

    /// The name of the job by which the commit `id` of `device` goes on after a restart. A rollback that had
    /// failed when the commit began, and goes on as well, may have its own.
    fn resumed_id(&self, id: &str, device: &str) -> Result<String, CommandError> {
        if self.jobs.check_id(id).is_ok() {
            return Ok(id.to_owned());
        }
        let new = self.free_id("commit", device);
        self.devices.rename_commit(id, &new).map(|()| new).map_err(told)
    }

    fn halt_commit(&self, id: &str) {
        if let Err(error) = self.devices.halt_commit(id) {
            tracing::error!("the end of the job '{id}' could not be kept: {error}");
        }
    }

    /// Runs the commit `job`, which the devices know, from where it begins.
    fn run_commit(
        self: &Arc<Self>,
        id: &str,
        job: CommitJob,
        begin: Begin,
    ) -> Result<(), CommandError> {
        let spec = spec_of(id, JobType::Commit, job.settings);
        let JobSettings { paused, speed, .. } = job.settings;
        let (sender, events) = channel();
        let activates = match &begin {
            Begin::Work(work) => work.activates,
            Begin::Pivoted(_) => true,
        };
        let commit = Arc::new(Commit {
            server: Arc::downgrade(self),
            id: id.into(),
            job,
            activates,
            events: sender,
            state: Mutex::new(JobState {
                stage: match &begin {
                    Begin::Work(_) => Stage::ChangingTables,
                    Begin::Pivoted(Pivot::Merges) => Stage::Merging(None),
                    Begin::Pivoted(Pivot::Steps) => Stage::CopyingIntoLayer(None),
                },
                paused,
                speed,
                ..JobState::begin()
            }),
        });
        let driver = commit.clone();
        let handle = self.jobs.create(spec, |_| driver).inspect_err(|_| self.halt_commit(id))?;
        handle.start();
        // Before the work, which nothing would end without it.
        let watcher = commit.clone().watch_when_begun(events, handle.clone());
        let begun = watcher.and_then(|begin_watch| {
            match begin {
                Begin::Work(CommitWork { copy: Some(work), .. }) => {
                    commit.copy(self, work, Speed::Limited, Stage::Copying)
                }
                Begin::Work(CommitWork { copy: None, .. }) => {
                    commit.notify(JobEvent::Copied(CommitEnd::Finished));
                    Ok(())
                }
                Begin::Pivoted(Pivot::Merges) => commit.merge(self),
                Begin::Pivoted(Pivot::Steps) => {
                    commit.notify(JobEvent::Pivoted(Pivot::Steps));
                    Ok(())
                }
            }?;
            // It waits for this.
            let _ = begin_watch.send(());
            Ok(())
        });
        begun.map_err(|error| {
            self.halt_commit(id);
            handle.finish(Outcome::Failed(error.clone()));
            CommandError::generic(error)
        })
    }
}

fn does_not_go_on(id: &str, error: &CommandError) {
    tracing::error!("the commit '{id}' does not go on: {}", error.desc);
}

fn cannot_start(error: &std::io::Error) -> String {
    format!("the commit cannot start: {error}")
}

/// Where a job begins.
enum Begin {
    /// With this.
    Work(CommitWork),
    /// The user had ended it before a restart.
    Pivoted(Pivot),
}

/// What happens to a job, for the thread that watches it.
enum JobEvent {
    /// The copies ended, or there were none to make.
    Copied(CommitEnd),
    /// The user completed it, which changed the tables for this.
    Pivoted(Pivot),
    /// It was cancelled while nothing was at work.
    Cancelled,
    /// The merge of the device's own store ended.
    Merged(MergeEnd),
}

/// Where the work is.
enum Stage {
    /// It begins, or its layers leave the chain, which nobody can call back.
    ChangingTables,
    /// Its layers go down.
    Copying(CommitHandle),
    /// The user is to complete it.
    Ready,
    /// The device's own store goes into what lies below all layers.
    Merging(Option<MergeHandle>),
    /// The device's own store goes into a layer, step by step.
    CopyingIntoLayer(Option<CommitHandle>),
    /// Nothing is left to do, but perhaps to be finalized.
    Done,
}

/// What is at work.
enum Work<'a> {
    Copy(&'a CommitHandle),
    Merge(&'a MergeHandle),
}

impl Stage {
    /// None between two pieces of work.
    fn work(&self) -> Option<Work<'_>> {
        match self {
            Stage::Copying(copy) => Some(Work::Copy(copy)),
            Stage::CopyingIntoLayer(copy) => copy.as_ref().map(Work::Copy),
            Stage::Merging(merge) => merge.as_ref().map(Work::Merge),
            Stage::Done | Stage::ChangingTables | Stage::Ready => None,
        }
    }
}

/// How fast a copy is.
#[derive(Clone, Copy)]
enum Speed {
    /// As fast as the user allows.
    Limited,
    /// As fast as it goes.
    Full,
}

/// How far a job is, and what its user wants of it.
struct JobState {
    stage: Stage,
    /// A cancel came while there was nothing to cancel, or too late for the copy: it is carried out
    /// next.
    cancelled: bool,
    /// The user wants it paused.
    paused: bool,
    /// The user's limit in bytes per second; 0 for none.
    speed: u64,
    /// Whether the copy in hand keeps to it.
    keeps_to: Speed,
    /// Bytes that were copied before the stage in hand.
    before: u64,
}

impl JobState {
    fn begin() -> JobState {
        JobState {
            stage: Stage::ChangingTables,
            cancelled: false,
            paused: false,
            speed: 0,
            keeps_to: Speed::Limited,
            before: 0,
        }
    }

    /// The limit for the work in hand.
    fn limit(&self) -> Option<u64> {
        match self.keeps_to {
            Speed::Limited => limit(self.speed),
            Speed::Full => None,
        }
    }

    /// Goes on to `stage`, unless it was cancelled.
    fn advance(&mut self, stage: Stage) -> bool {
        self.stage = stage;
        !std::mem::take(&mut self.cancelled)
    }
}

/// The work of one job.
struct Commit {
    server: Weak<Server>,
    id: String,
    job: CommitJob,
    activates: bool,
    events: Sender<JobEvent>,
    state: Mutex<JobState>,
}

impl Commit {
    fn state(&self) -> MutexGuard<'_, JobState> {
        self.state.lock().expect("commit lock poisoned")
    }

    fn notify(&self, event: JobEvent) {
        // The watcher has gone only where the job is over.
        let _ = self.events.send(event);
    }

    /// Begins to copy layers that go.
    fn copy(
        &self,
        server: &Server,
        what: (CommitSource, Arc<Table>),
        speed: Speed,
        stage: impl FnOnce(CommitHandle) -> Stage,
    ) -> Result<(), String> {
        let (files, workers) = (server.devices.files().clone(), server.devices.workers().clone());
        let executor = FileExecutor::copying(files, SCRATCH, server.options, COPIES)
            .map_err(|error| cannot_start(&error))?;
        let events = self.events.clone();
        let on_end = move |end| {
            let _ = events.send(JobEvent::Copied(end));
        };
        let mut state = self.state();
        state.keeps_to = speed;
        let pacing = Pacing { speed: state.limit(), paused: state.paused };
        let copy = CommitHandle::start(workers, executor, CONFIG, what, pacing, on_end)
            .map_err(|error| cannot_start(&error))?;
        if !state.advance(stage(copy.clone())) {
            copy.cancel();
        }
        drop(state);
        self.attach(server, Arc::new(copy.clone())).inspect_err(|_| copy.cancel())
    }

    /// Begins to merge the device's own store, for which it has its table.
    fn merge(&self, server: &Server) -> Result<(), String> {
        let (files, workers) = (server.devices.files().clone(), server.devices.workers().clone());
        let executor = FileExecutor::new(files, SCRATCH, server.options)
            .map_err(|error| cannot_start(&error))?;
        let events = self.events.clone();
        let on_end = move |end| {
            let _ = events.send(JobEvent::Merged(end));
        };
        let mut state = self.state();
        state.keeps_to = Speed::Limited;
        let pacing = Pacing { speed: state.limit(), paused: state.paused };
        let merge = MergeHandle::start(workers, executor, CONFIG, pacing, on_end)
            .map_err(|error| cannot_start(&error))?;
        state.stage = Stage::Merging(Some(merge.clone()));
        drop(state);
        self.attach(server, Arc::new(merge.clone())).inspect_err(|_| merge.cancel())
    }

    /// Begins the next step of a job whose device's own store goes into a layer: how it did, if it is over.
    fn step(&self, server: &Server) -> Option<Outcome> {
        let step = server.devices.pivot_step(&self.id).map_err(|error| error.to_string());
        let begun = step.and_then(|step| match step {
            PivotStep::Done => Ok(true),
            PivotStep::Copy { source, table, again } => {
                // What the guest wrote meanwhile is caught up with as fast as that goes.
                let speed = if again { Speed::Full } else { Speed::Limited };
                let stage = |copy| Stage::CopyingIntoLayer(Some(copy));
                self.copy(server, (source, table), speed, stage).map(|()| false)
            }
        });
        match begun {
            Ok(done) => done.then_some(Outcome::Completed),
            Err(error) => Some(Outcome::Failed(error)),
        }
    }

    fn attach(&self, server: &Server, worker: Arc<dyn AttachedWorker>) -> Result<(), String> {
        // It writes by its own rules, not as a guest does.
        let user = User { writable: false, workers: vec![worker] };
        let attached = server.devices.attach(&self.job.device, &job_user(&self.id), user);
        attached.map_err(|error| error.to_string())
    }

    /// Starts the thread that follows the work once it is told that it has begun: it ends where nobody
    /// says so.
    fn watch_when_begun(
        self: Arc<Self>,
        events: Receiver<JobEvent>,
        handle: JobHandle,
    ) -> Result<Sender<()>, String> {
        let (begun, begins) = channel();
        let thread = std::thread::Builder::new().name("job".into());
        let watch = move || {
            if begins.recv().is_ok() {
                self.watch(&events, &handle);
            }
        };
        thread.spawn(watch).map_err(|error| cannot_start(&error))?;
        Ok(begun)
    }

    /// Follows the work from one stage to the next until the job is over.
    fn watch(&self, events: &Receiver<JobEvent>, handle: &JobHandle) {
        loop {
            let event = match events.recv_timeout(TICK) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => {
                    self.report_progress(handle);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.report_progress(handle);
            let Some(server) = self.server.upgrade() else { return };
            let outcome = match event {
                JobEvent::Copied(end) => {
                    server.devices.detach(&self.job.device, &job_user(&self.id));
                    self.copied(&server, &end, handle)
                }
                JobEvent::Pivoted(Pivot::Merges) => self.merge(&server).err().map(Outcome::Failed),
                JobEvent::Pivoted(Pivot::Steps) => self.step(&server),
                JobEvent::Cancelled => Some(Outcome::Cancelled),
                JobEvent::Merged(end) => {
                    server.devices.detach(&self.job.device, &job_user(&self.id));
                    Some(match end {
                        MergeEnd::Finished => Outcome::Completed,
                        MergeEnd::Cancelled => Outcome::Cancelled,
                        failed => {
                            report_io_error(handle, failed.io());
                            Outcome::Failed(failed.to_string())
                        }
                    })
                }
            };
            if let Some(outcome) = outcome {
                if outcome != Outcome::Completed {
                    server.halt_commit(&self.id);
                }
                return handle.finish(outcome);
            }
        }
    }

    /// The copies ended: how the job did, if it is over with that.
    fn copied(&self, server: &Server, end: &CommitEnd, handle: &JobHandle) -> Option<Outcome> {
        match end {
            CommitEnd::Finished => {}
            CommitEnd::Cancelled => return Some(Outcome::Cancelled),
            failed => {
                report_io_error(handle, failed.io());
                return Some(Outcome::Failed(failed.to_string()));
            }
        }
        let into_layer = {
            let mut state = self.state();
            let (copied, into_layer) = match &state.stage {
                Stage::Copying(copy) => (copy.progress().total, false),
                Stage::CopyingIntoLayer(Some(copy)) => (copy.progress().total, true),
                _ => (0, false),
            };
            state.before += copied;
            let next = match self.activates {
                _ if into_layer => Stage::CopyingIntoLayer(None),
                true => Stage::ChangingTables,
                false => Stage::Done,
            };
            if !state.advance(next) {
                return Some(Outcome::Cancelled);
            }
            into_layer
        };
        if !self.activates {
            return Some(Outcome::Completed);
        }
        if let Err(error) = server.devices.drop_layers(&self.id) {
            return Some(Outcome::Failed(error.to_string()));
        }
        server.thaw_guests_whose_devices_serve();
        if into_layer {
            return self.step(server);
        }
        if !self.state().advance(Stage::Ready) {
            return Some(Outcome::Cancelled);
        }
        self.report_progress(handle);
        None
    }

    /// Tells the job how far the work is, and whether it is paused or ready.
    fn report_progress(&self, handle: &JobHandle) {
        let state = self.state();
        let paused = match state.stage.work() {
            Some(Work::Copy(copy)) => {
                let progress = copy.progress();
                handle.progress(state.before + progress.done, state.before + progress.total);
                progress.paused
            }
            Some(Work::Merge(merge)) => {
                let progress = merge.progress();
                let bytes = |chunks: u64| state.before + chunks * progress.chunk;
                handle.progress(bytes(progress.done), bytes(progress.total));
                progress.state == MergeState::Paused
            }
            None => state.paused && matches!(state.stage, Stage::Ready),
        };
        // Again and again: one that is paused is ready when it has been resumed.
        match state.stage {
            _ if paused => handle.paused(),
            Stage::Ready => handle.ready(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use snapblk_qmp::JobDriver;

    use super::*;

    fn commit() -> (Commit, Receiver<JobEvent>) {
        let (sender, events) = channel();
        let commit = Commit {
            server: Weak::new(),
            id: "job".into(),
            job: CommitJob::default(),
            activates: true,
            events: sender,
            state: Mutex::new(JobState::begin()),
        };
        (commit, events)
    }

    #[test]
    fn what_completes_may_be_told_so_again_and_what_was_cancelled_may_not() {
        let (commit, _events) = commit();
        for stage in [Stage::Merging(None), Stage::CopyingIntoLayer(None)] {
            commit.state().stage = stage;
            commit.complete().expect("another client asked for it");
        }
        commit.state().stage = Stage::Ready;
        commit.cancel().unwrap();
        let error = commit.complete().expect_err("it was cancelled");
        assert!(error.contains("'job' is being cancelled"), "{error}");
    }

    #[test]
    fn a_cancel_is_remembered_while_the_layers_leave() {
        let (commit, events) = commit();
        assert!(commit.state().advance(Stage::ChangingTables), "it began");
        commit.cancel().unwrap();
        assert!(matches!(commit.state().stage, Stage::ChangingTables));
        assert!(!commit.state().advance(Stage::Ready), "the layers have left, and it is cancelled");
        assert!(events.try_recv().is_err(), "which is said once");
        assert!(commit.state().advance(Stage::Ready));
        commit.cancel().unwrap();
        assert!(matches!(events.try_recv(), Ok(JobEvent::Cancelled)));
    }
}
