//! `snapshot-merge`: a rollback as a job, begun by the command or by a table that is resumed.
//!
//! Owns the fit between the merge's thread and the monitor's job: progress, pause, cancel, and
//! what becomes of the device at the end. Never knows how a chunk is copied back.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use snapblk_qmp::{JobDriver, JobHandle, JobSpec, Outcome};
use snapblk_store::background::{FileExecutor, MergeEnd, MergeHandle};
use snapblk_store::control::CommandError;
use snapblk_store::control::answer::Answer;
use snapblk_store::control::command::SnapshotMerge;
use snapblk_store::control::event::{Event, MergeCompleted};
use snapblk_store::control::job::JobType;
use snapblk_store::device::{DeviceError, MergeJob, User};
use snapblk_store::engine::{EngineConfig, MergeFailure, MergeState};

use super::Server;
use super::commands::told;

/// How often a job's progress is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Memory of a merge: fewer requests than a guest has, larger copies.
const CONFIG: EngineConfig = EngineConfig { scratch: 8 << 20, requests: 256, claims: 1024 };

impl Server {
    pub(super) fn start_merge(self: &Arc<Self>, c: SnapshotMerge) -> Result<Answer, CommandError> {
        self.jobs.check_id(&c.job_id)?;
        let job = MergeJob {
            device: c.device,
            snapshot: c.snapshot,
            cow: String::new(),
            speed: c.speed.unwrap_or(0),
            auto_finalize: c.auto_finalize.unwrap_or(true),
            auto_dismiss: c.auto_dismiss.unwrap_or(true),
        };
        self.devices.begin_merge(&c.job_id, &job).map_err(told)?;
        self.run_merge(&c.job_id)?;
        Ok(Answer::DONE)
    }

    /// Starts again the merges that ran when the process ended.
    pub(super) fn resume_merges(self: &Arc<Self>) -> Result<(), CommandError> {
        self.devices.merge_jobs().keys().try_for_each(|id| self.run_merge(id))?;
        self.merge_what_resumed(None);
        Ok(())
    }

    /// Starts what a table with a `snapshot-merge` line does from its resume on, where no job does
    /// it yet. Its device serves, whether that can be started or not.
    pub(super) fn merge_what_resumed(self: &Arc<Self>, resumed: Option<&str>) {
        for (device, cow, users) in self.devices.merging(resumed) {
            if users.iter().any(|user| user.starts_with(USER)) {
                continue;
            }
            let (snapshot, id) = (device.clone(), self.free_id(&device));
            let (auto_finalize, auto_dismiss) = (true, true);
            let job = MergeJob { device, snapshot, cow, speed: 0, auto_finalize, auto_dismiss };
            if let Err(error) = self.run(&id, job, Began::ByTable) {
                tracing::error!("the merge of '{}' is not started: {}", &id, error.desc);
            }
        }
    }

    /// A name for the job that merges `device`.
    fn free_id(&self, device: &str) -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let device: String = device.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
        let first = format!("merge-{device}");
        let others = (2..1000).map(|n| format!("{first}-{n}"));
        let mut free = std::iter::once(first.clone()).chain(others);
        free.find(|id| self.jobs.check_id(id).is_ok()).unwrap_or(first)
    }

    /// Runs the merge of the job `id`, which the devices know.
    fn run_merge(self: &Arc<Self>, id: &str) -> Result<(), CommandError> {
        let Some(job) = self.devices.merge_jobs().remove(id) else { return Ok(()) };
        self.run(id, job, Began::ByCommand)
    }

    fn run(self: &Arc<Self>, id: &str, job: MergeJob, began: Began) -> Result<(), CommandError> {
        let spec = JobSpec {
            id: id.into(),
            kind: JobType::SnapshotMerge,
            speed: job.speed,
            auto_finalize: job.auto_finalize,
            auto_dismiss: job.auto_dismiss,
        };
        let rollback = Arc::new(Rollback {
            server: Arc::downgrade(self),
            id: id.into(),
            job,
            began,
            merge: OnceLock::new(),
        });
        let driver = rollback.clone();
        let handle = self.jobs.create(spec, |_| driver)?;
        let failed = |error: String| {
            handle.finish(Outcome::Failed(error.clone()));
            CommandError::generic(error)
        };
        handle.start();
        let merge = rollback.start(self, handle.clone()).map_err(failed)?;
        let user = user_name(id);
        // It writes the origin by its own rules, not as a guest does.
        let work = User { writable: false, workers: vec![Arc::new(merge)] };
        let attached = self.devices.attach(&rollback.job.device, &user, work);
        attached.map_err(|error| failed(error.to_string()))
    }
}

/// How the users of a device that are jobs are called.
const USER: &str = "job ";

fn user_name(id: &str) -> String {
    format!("{USER}{id}")
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
    merge: OnceLock<MergeHandle>,
}

impl Rollback {
    fn start(self: &Arc<Self>, server: &Server, handle: JobHandle) -> Result<MergeHandle, String> {
        let (files, workers) = (server.devices.files(), server.devices.workers());
        let say = |error: std::io::Error| format!("the merge cannot start: {error}");
        let table =
            server.devices.table(&self.job.device).map_err(|e: DeviceError| e.to_string())?;
        let executor =
            FileExecutor::new(files.clone(), CONFIG.scratch, server.options).map_err(say)?;
        let (ended, rest) = std::sync::mpsc::channel();
        let on_end = move |end| {
            // The watcher has gone only where the process ends.
            let _ = ended.send(end);
        };
        let speed = Some(self.job.speed).filter(|speed| *speed != 0);
        let merge = MergeHandle::start(workers.clone(), executor, CONFIG, table, speed, on_end)
            .map_err(say)?;
        // The only setter; the merge that is returned is the same one.
        let _ = self.merge.set(merge.clone());
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
            .map_err(say)?;
        Ok(merge)
    }

    fn ended(&self, end: &MergeEnd, handle: &JobHandle) {
        let Some(server) = self.server.upgrade() else { return };
        server.devices.detach(&self.job.device, &user_name(&self.id));
        let outcome = match end {
            MergeEnd::Finished => Outcome::Completed,
            // Another table took its place.
            MergeEnd::Cancelled | MergeEnd::Failed(MergeFailure::NoMerge) => Outcome::Cancelled,
            failed => Outcome::Failed(failed.to_string()),
        };
        if outcome != Outcome::Completed
            && self.began == Began::ByCommand
            && let Err(error) = server.devices.forget_merge(&self.id)
        {
            tracing::error!("the end of the job '{}' could not be kept: {error}", self.id);
        }
        handle.finish(outcome);
    }
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
        if let Some(merge) = self.merge.get() {
            merge.pause();
        }
    }

    fn resume(&self) {
        if let Some(merge) = self.merge.get() {
            merge.resume();
        }
    }

    fn cancel(&self) -> Result<(), String> {
        if let Some(merge) = self.merge.get() {
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
            ended.map_err(|error| error.to_string())?;
        }
        let MergeJob { device, snapshot, cow, .. } = self.job.clone();
        let cow = if cow.is_empty() { snapshot.clone() } else { cow };
        server.events.emit(&Event::MergeCompleted(MergeCompleted { device, snapshot, cow }));
        Ok(())
    }
}
