//! `snapshot-merge`: a rollback as a job, begun by the command or by a table that is resumed.
//!
//! Owns the fit between the merge's thread and the monitor's job: progress, pause, cancel, and
//! what becomes of the device at the end. Never knows how a chunk is copied back.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use snapblk_qmp::{JobDriver, JobHandle, JobSpec, Outcome, derived_id};
use snapblk_store::background::{FileExecutor, MergeEnd, MergeHandle, Pacing};
use snapblk_store::control::CommandError;
use snapblk_store::control::answer::Answer;
use snapblk_store::control::command::{DeviceRemove, SnapshotMerge};
use snapblk_store::control::event::{ErrorAction, Event, IoOperation, MergeCompleted};
use snapblk_store::control::job::{JobType, JobVerb};
use snapblk_store::device::{Halt, MergeJob, Merging, User, job_user};
use snapblk_store::engine::{EngineConfig, MergeFailure, MergeState};
use snapblk_store::io::{IoOp, Pages, ScratchConfig};

use super::Server;
use super::commands::{done, told};

/// How often a job's progress is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Memory of a merge: fewer requests than a guest has, larger copies.
const CONFIG: EngineConfig = EngineConfig { scratch: 8 << 20, requests: 256, claims: 1024 };
/// Its memory.
const SCRATCH: ScratchConfig = ScratchConfig::one(CONFIG.scratch, Pages::Huge);

impl Server {
    pub(super) fn start_merge(self: &Arc<Self>, c: SnapshotMerge) -> Result<Answer, CommandError> {
        let _alone = self.begins_job();
        self.jobs.check_id(&c.job_id)?;
        let job = MergeJob {
            device: c.device,
            snapshot: c.snapshot,
            speed: c.speed.unwrap_or(0),
            auto_finalize: c.auto_finalize.unwrap_or(true),
            auto_dismiss: c.auto_dismiss.unwrap_or(true),
            ..MergeJob::default()
        };
        self.devices.begin_merge(&c.job_id, &job).map_err(told)?;
        let job = self.devices.merge_jobs().remove(&c.job_id);
        // Where it is gone already it is over already.
        job.map_or(Ok(()), |job| self.run(&c.job_id, job, Began::ByCommand))?;
        Ok(Answer::DONE)
    }

    /// Starts again the merges that ran, or had failed, when the process ended. Their devices
    /// serve, whether that can be or not.
    pub(super) fn resume_merges(self: &Arc<Self>) {
        let _alone = self.begins_job();
        for (id, job) in self.devices.merge_jobs() {
            match job.halted {
                Some(Halt::Cancelled) => {}
                Some(Halt::Failed) => self.go_on(&id, &job.device),
                None => not_started(&id, self.run(&id, job, Began::ByCommand)),
            }
        }
        self.merge_by_table(None);
    }

    /// Starts what a table with a `snapshot-merge` line does from its resume on, where no job does
    /// it yet: a rollback that failed goes on as what it was. Its device serves, whether that can
    /// be started or not.
    pub(super) fn merge_what_resumed(self: &Arc<Self>, resumed: &str) {
        let _alone = self.begins_job();
        for (id, job) in self.devices.failed_merges(resumed) {
            self.go_on(&id, &job.device);
        }
        self.merge_by_table(Some(resumed));
    }

    /// The merges of tables that a user loaded, of `resumed` and those above it, or of all.
    fn merge_by_table(self: &Arc<Self>, resumed: Option<&str>) {
        for Merging { device, snapshot, cow, has_job } in self.devices.merging(resumed) {
            if has_job {
                continue;
            }
            let id = self.free_id("merge", &device);
            let (auto_finalize, auto_dismiss) = (true, true);
            let job = MergeJob { auto_finalize, auto_dismiss, ..MergeJob::default() };
            let job = MergeJob { device, snapshot, cow, ..job };
            not_started(&id, self.run(&id, job, Began::ByTable));
        }
    }

    /// `device-remove`: a merge by a table that a user loaded stops after the batch in hand; whoever
    /// loads the table again goes on with it.
    pub(super) fn remove(self: &Arc<Self>, c: &DeviceRemove) -> Result<Answer, CommandError> {
        let _alone = self.begins_job();
        if let Some(id) = self.devices.job_of_removed(&c.name).map_err(told)? {
            // One that cannot be cancelled is ending by itself.
            let _ = self.jobs.tell(JobVerb::Cancel, &id);
            self.devices.wait_for_detach(&c.name, &job_user(&id)).map_err(told)?;
        }
        let removed = self.devices.remove(&c.name, c.force.unwrap_or(false));
        if removed.is_err() {
            self.merge_by_table(Some(&c.name));
        }
        done(removed)
    }

    /// Tries the rollback `id` of `device` again, which failed.
    fn go_on(self: &Arc<Self>, id: &str, device: &str) {
        let free = self.jobs.check_id(id).is_ok();
        let new = if free { id.to_owned() } else { self.free_id("merge", device) };
        let job = self.devices.merge_goes_on(id, &new).map_err(told);
        not_started(&new, job.and_then(|job| self.run(&new, job, Began::ByCommand)));
    }

    /// A name for a job that does `what` with `device`.
    pub(super) fn free_id(&self, what: &str, device: &str) -> String {
        let first = derived_id(what, device);
        let others = (2..1000).map(|n| format!("{first}-{n}"));
        let mut free = std::iter::once(first.clone()).chain(others);
        let is_free = |id: &String| self.jobs.check_id(id).is_ok() && !self.devices.knows_job(id);
        free.find(is_free).unwrap_or(first)
    }

    fn run(self: &Arc<Self>, id: &str, job: MergeJob, began: Began) -> Result<(), CommandError> {
        let running = self.begin(id, job, began);
        if running.is_err() && began == Began::ByCommand {
            self.halt(id, Halt::Failed);
        }
        running
    }

    fn begin(self: &Arc<Self>, id: &str, job: MergeJob, began: Began) -> Result<(), CommandError> {
        let spec = JobSpec {
            id: id.into(),
            kind: JobType::SnapshotMerge,
            speed: job.speed,
            auto_finalize: job.auto_finalize,
            auto_dismiss: job.auto_dismiss,
            paused: job.paused,
        };
        let rollback = Arc::new(Rollback {
            server: Arc::downgrade(self),
            id: id.into(),
            job,
            began,
            state: Mutex::default(),
        });
        let driver = rollback.clone();
        // One that ends at once, or is cancelled, is attached before.
        let mut state = rollback.state();
        let handle = self.jobs.create(spec, |_| driver)?;
        let failed = |error: String| {
            handle.finish(Outcome::Failed(error.clone()));
            CommandError::generic(error)
        };
        handle.start();
        let merge = rollback.start(self, handle.clone()).map_err(failed)?;
        state.merge = Some(merge.clone());
        // It writes the origin by its own rules, not as a guest does.
        let work = User { writable: false, workers: vec![Arc::new(merge.clone())] };
        let attached = self.devices.attach(&rollback.job.device, &job_user(id), work);
        attached.map_err(|error| {
            merge.cancel();
            failed(error.to_string())
        })
    }

    fn halt(&self, id: &str, halt: Halt) {
        if let Err(error) = self.devices.halt_merge(id, halt) {
            tracing::error!("how the job '{id}' ended could not be kept: {error}");
        }
    }
}

fn not_started(id: &str, started: Result<(), CommandError>) {
    if let Err(error) = started {
        tracing::error!("the merge of '{id}' is not started: {}", error.desc);
    }
}

/// Whose the device's table is while it merges, and when that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Began {
    /// The command changed it; so does its end, and a restart goes on with the job.
    ByCommand,
    /// Somebody loaded it, and changes it.
    ByTable,
}

/// The work of one job.
struct Rollback {
    server: Weak<Server>,
    id: String,
    job: MergeJob,
    began: Began,
    state: Mutex<RollbackState>,
}

/// What its verbs and its watcher share. Locked from before the job is listed until its merge is attached,
/// so that a verb of a job that begins finds the merge; and while whoever decides about its end does so.
#[derive(Default)]
struct RollbackState {
    /// None only if it could not be started.
    merge: Option<MergeHandle>,
    /// The user cancelled it.
    cancelled: bool,
}

impl Rollback {
    /// Starts its threads, which wait until its device lets them work.
    fn start(self: &Arc<Self>, server: &Server, handle: JobHandle) -> Result<MergeHandle, String> {
        let (files, workers) = (server.devices.files(), server.devices.workers());
        let say = |error: std::io::Error| format!("the merge cannot start: {error}");
        let executor = FileExecutor::new(files.clone(), SCRATCH, server.options).map_err(say)?;
        let (ended, rest) = std::sync::mpsc::channel();
        let on_end = move |end| {
            // The watcher has gone only where the process ends.
            let _ = ended.send(end);
        };
        let pacing = Pacing { speed: limit(self.job.speed), paused: self.job.paused };
        let merge =
            MergeHandle::start(workers.clone(), executor, CONFIG, pacing, on_end).map_err(say)?;
        let (watched, rollback) = (merge.clone(), self.clone());
        std::thread::Builder::new()
            .name("job".into())
            .spawn(move || {
                let end = loop {
                    match rest.recv_timeout(TICK) {
                        Ok(end) => break end,
                        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => tell(&watched, &handle),
                        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
                    }
                };
                tell(&watched, &handle);
                rollback.ended(&end, &handle);
            })
            .map_err(|error| {
                merge.cancel();
                say(error)
            })?;
        Ok(merge)
    }

    fn ended(&self, end: &MergeEnd, handle: &JobHandle) {
        let Some(server) = self.server.upgrade() else { return };
        let state = self.state();
        server.devices.detach(&self.job.device, &job_user(&self.id));
        let by_command = self.began == Began::ByCommand;
        let outcome = match end {
            // Another table took its place.
            MergeEnd::Failed(MergeFailure::NoMerge) => {
                if by_command && let Err(error) = server.devices.forget_merge(&self.id) {
                    tracing::error!("the end of the job '{}' could not be kept: {error}", self.id);
                }
                Outcome::Cancelled
            }
            // Whoever cancelled it was told so, also where the batch in hand was the last.
            _ if state.cancelled => Outcome::Cancelled,
            MergeEnd::Finished => Outcome::Completed,
            MergeEnd::Cancelled => Outcome::Cancelled,
            failed => {
                if by_command {
                    server.halt(&self.id, Halt::Failed);
                }
                tell_error(handle, failed.io());
                Outcome::Failed(failed.to_string())
            }
        };
        handle.finish(outcome);
    }

    fn state(&self) -> MutexGuard<'_, RollbackState> {
        self.state.lock().expect("rollback lock poisoned")
    }

    fn keep_pause(&self, paused: bool) {
        let Some(server) = self.server.upgrade().filter(|_| self.began == Began::ByCommand) else {
            return;
        };
        if let Err(error) = server.devices.keep_pause(&self.id, paused) {
            tracing::error!("a restart would not know how the job '{}' is: {error}", self.id);
        }
    }
}

/// A job's limit as its thread has it: 0 stands for none.
pub(super) fn limit(speed: u64) -> Option<u64> {
    Some(speed).filter(|speed| *speed != 0)
}

/// Keeps a job's limit for a restart.
pub(super) fn keep_speed(server: &Server, id: &str, speed: u64) {
    if let Err(error) = server.devices.keep_speed(id, speed) {
        tracing::error!("a restart would not know how fast the job '{id}' is to be: {error}");
    }
}

/// Says that a job met an I/O error, as QEMU does before it says that the job failed.
pub(super) fn tell_error(handle: &JobHandle, failed: Option<IoOp>) {
    let operation = match failed {
        Some(IoOp::Read) => IoOperation::Read,
        Some(_) => IoOperation::Write,
        None => return,
    };
    handle.io_error(operation, ErrorAction::Report);
}

fn tell(merge: &MergeHandle, handle: &JobHandle) {
    let progress = merge.progress();
    handle.progress(progress.done * progress.chunk, progress.total * progress.chunk);
    if progress.state == MergeState::Paused {
        handle.paused();
    }
}

impl JobDriver for Rollback {
    fn pause(&self) {
        let state = self.state();
        if let Some(merge) = &state.merge {
            merge.pause();
        }
        self.keep_pause(true);
    }

    fn resume(&self) {
        let state = self.state();
        if let Some(merge) = &state.merge {
            merge.resume();
        }
        self.keep_pause(false);
    }

    fn set_speed(&self, speed: u64) {
        let state = self.state();
        if let Some(merge) = &state.merge {
            merge.set_speed(limit(speed));
        }
        if let Some(server) = self.server.upgrade().filter(|_| self.began == Began::ByCommand) {
            keep_speed(&server, &self.id, speed);
        }
    }

    /// The device reads as the snapshot, whatever becomes of the job: what is cancelled is the work,
    /// and the same command goes on with it.
    fn cancel(&self) -> Result<(), String> {
        let mut state = self.state();
        if let Some(server) = self.server.upgrade().filter(|_| self.began == Began::ByCommand) {
            let halted = server.devices.halt_merge(&self.id, Halt::Cancelled);
            halted.map_err(|error| format!("the job '{}' is not cancelled: {error}", self.id))?;
        }
        state.cancelled = true;
        if let Some(merge) = &state.merge {
            merge.cancel();
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), String> {
        Err("a rollback completes by itself".into())
    }

    fn finalize(&self) -> Result<(), String> {
        let Some(server) = self.server.upgrade() else { return Ok(()) };
        if self.began == Began::ByCommand {
            let ended = server.devices.end_merge(&self.id, &self.job.device);
            ended.map_err(|error| {
                server.halt(&self.id, Halt::Failed);
                error.to_string()
            })?;
        }
        let MergeJob { device, snapshot, cow, .. } = self.job.clone();
        let cow = if cow.is_empty() { snapshot.clone() } else { cow };
        server.events.emit(&Event::MergeCompleted(MergeCompleted { device, snapshot, cow }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_waits_until_there_is_something_to_pause() {
        let rollback = Rollback {
            server: Weak::new(),
            id: "job".into(),
            job: MergeJob::default(),
            began: Began::ByTable,
            state: Mutex::default(),
        };
        std::thread::scope(|scope| {
            let begun = rollback.state();
            let asks: [fn(&Rollback); 2] = [Rollback::pause, Rollback::resume];
            let asked = asks.map(|ask| {
                scope.spawn({
                    let rollback = &rollback;
                    move || ask(rollback)
                })
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(asked.iter().all(|asked| !asked.is_finished()), "nobody was told");
            drop(begun);
        });
    }
}
