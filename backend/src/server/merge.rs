//! `snapshot-merge`: a rollback as a job, begun by the command or by a table that is resumed.
//!
//! Owns the fit between the merge's thread and the monitor's job: progress, pause, cancel, and
//! what becomes of the device at the end. Never knows how a chunk is copied back.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use snapblk_qmp::{JobDriver, JobHandle, Outcome, derived_id};
use snapblk_store::background::{FileExecutor, MergeEnd, MergeHandle, Pacing};
use snapblk_store::control::CommandError;
use snapblk_store::control::answer::Answer;
use snapblk_store::control::command::{DeviceRemove, SnapshotMerge};
use snapblk_store::control::event::{Event, MergeCompleted};
use snapblk_store::control::job::{JobType, JobVerb};
use snapblk_store::device::{Halt, JobSettings, Merging, RollbackJob, User, job_user};
use snapblk_store::engine::{MergeFailure, MergeState};

use super::Server;
use super::commands::{done, told};
use super::job::{
    CONFIG, SCRATCH, TICK, keep_pause, keep_speed, limit, report_io_error, settings, spec_of,
};

impl Server {
    pub(super) fn start_merge(self: &Arc<Self>, c: SnapshotMerge) -> Result<Answer, CommandError> {
        let _alone = self.begins_job();
        self.jobs.check_id(&c.job_id)?;
        let job = RollbackJob {
            device: c.device,
            snapshot: c.snapshot,
            settings: settings(c.speed, c.auto_finalize, c.auto_dismiss),
            ..RollbackJob::default()
        };
        self.devices.begin_rollback(&c.job_id, &job).map_err(told)?;
        let job = self.devices.rollback_jobs().remove(&c.job_id);
        // Where it is gone already it is over already.
        job.map_or(Ok(()), |job| self.run(&c.job_id, job, Began::ByCommand))?;
        Ok(Answer::DONE)
    }

    /// Starts again the merges that ran, or had failed, when the process ended. Their devices
    /// serve, whether that can be or not.
    pub(super) fn resume_merges(self: &Arc<Self>) {
        let _alone = self.begins_job();
        for (id, job) in self.devices.rollback_jobs() {
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
        for (id, job) in self.devices.failed_rollbacks(resumed) {
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
            let settings = settings(None, None, None);
            let job = RollbackJob { device, snapshot, cow, settings, halted: None };
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
        let job = self.devices.rollback_goes_on(id, &new).map_err(told);
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

    fn run(self: &Arc<Self>, id: &str, job: RollbackJob, began: Began) -> Result<(), CommandError> {
        let running = self.begin(id, job, began);
        if running.is_err() && began == Began::ByCommand {
            self.halt(id, Halt::Failed);
        }
        running
    }

    fn begin(
        self: &Arc<Self>,
        id: &str,
        job: RollbackJob,
        began: Began,
    ) -> Result<(), CommandError> {
        let spec = spec_of(id, JobType::SnapshotMerge, job.settings);
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
        if let Err(error) = self.devices.halt_rollback(id, halt) {
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
    job: RollbackJob,
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
        let JobSettings { speed, paused, .. } = self.job.settings;
        let pacing = Pacing { speed: limit(speed), paused };
        let merge =
            MergeHandle::start(workers.clone(), executor, CONFIG, pacing, on_end).map_err(say)?;
        let (watched, rollback) = (merge.clone(), self.clone());
        std::thread::Builder::new()
            .name("job".into())
            .spawn(move || {
                let end = loop {
                    match rest.recv_timeout(TICK) {
                        Ok(end) => break end,
                        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                            report_progress(&watched, &handle)
                        }
                        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
                    }
                };
                report_progress(&watched, &handle);
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
                if by_command && let Err(error) = server.devices.forget_rollback(&self.id) {
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
                report_io_error(handle, failed.io());
                Outcome::Failed(failed.to_string())
            }
        };
        handle.finish(outcome);
    }

    fn state(&self) -> MutexGuard<'_, RollbackState> {
        self.state.lock().expect("rollback lock poisoned")
    }

    /// The server, if it is to keep for a restart how the job is.
    fn keeper(&self) -> Option<Arc<Server>> {
        self.server.upgrade().filter(|_| self.began == Began::ByCommand)
    }
}

fn report_progress(merge: &MergeHandle, handle: &JobHandle) {
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
        keep_pause(self.keeper(), &self.id, true);
    }

    fn resume(&self) {
        let state = self.state();
        if let Some(merge) = &state.merge {
            merge.resume();
        }
        keep_pause(self.keeper(), &self.id, false);
    }

    fn set_speed(&self, speed: u64) {
        let state = self.state();
        if let Some(merge) = &state.merge {
            merge.set_speed(limit(speed));
        }
        keep_speed(self.keeper(), &self.id, speed);
    }

    /// The device reads as the snapshot, whatever becomes of the job: what is cancelled is the work,
    /// and the same command goes on with it.
    fn cancel(&self) -> Result<(), String> {
        let mut state = self.state();
        if let Some(server) = self.keeper() {
            let halted = server.devices.halt_rollback(&self.id, Halt::Cancelled);
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
            let ended = server.devices.end_rollback(&self.id, &self.job.device);
            ended.map_err(|error| {
                server.halt(&self.id, Halt::Failed);
                error.to_string()
            })?;
        }
        let RollbackJob { device, snapshot, cow, .. } = self.job.clone();
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
            job: RollbackJob::default(),
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
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(asked.iter().all(|asked| !asked.is_finished()), "nobody was told");
            drop(begun);
        });
    }
}
