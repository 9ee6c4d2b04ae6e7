//! Jobs: work that continues after the reply to the command that began it.
//!
//! Owns each job's state, with QEMU's transitions, verbs and events (qapi/job.json), and its record
//! after its end. Never knows what a job does: its [`JobDriver`] gets the user's commands, and its
//! [`JobHandle`] gets the progress of the work. Drivers are called without any lock held, so that
//! they may call the handle. A driver is told to pause, to resume and how fast to be by one thread at
//! a time, and last what clients said last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use snapblk_store::control::event::{
    BlockJobCompleted, BlockJobError, BlockJobPending, BlockJobProgress, ErrorAction, IoOperation,
    JobStatusChange,
};
use snapblk_store::control::job::{
    BlockJobSetSpeed, JobCommand, JobInfo, JobStatus, JobType, JobVerb,
};
use snapblk_store::control::{Answer, CommandError, ErrorClass, Event};

use crate::events::Events;

/// The work of a job, as the user controls it. No method waits for the work.
pub trait JobDriver: Send + Sync {
    /// Suspend the work; call [`JobHandle::paused`] when nothing is in flight any more.
    fn pause(&self);

    /// Continue.
    fn resume(&self);

    /// Keep to about this many bytes per second; 0 for no limit.
    fn set_speed(&self, speed: u64);

    /// End the work; then call [`JobHandle::finish`] with [`Outcome::Cancelled`], or with the
    /// actual outcome. For a job that has not started, or whose work is done but not finalized, no
    /// call is required: the job is over. The error says in one sentence why this is impossible.
    fn cancel(&self) -> Result<(), String>;

    /// The job is ready: end it, and call [`JobHandle::finish`]. Where it ends already, as another client
    /// asked, nothing is left to do, as in QEMU. The error says in one sentence why this is impossible.
    fn complete(&self) -> Result<(), String>;

    /// The work is done: make it visible. The job is over afterwards in any case.
    fn finalize(&self) -> Result<(), String> {
        Ok(())
    }
}

/// How the work of a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its work is done.
    Completed,
    /// It was stopped because of [`JobDriver::cancel`].
    Cancelled,
    /// It cannot continue; the sentence says why.
    Failed(String),
}

/// The definition of a new job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// Its name: a letter, then letters, digits, `-`, `.`, `_`.
    pub id: String,
    /// Its type.
    pub kind: JobType,
    /// Bytes per second at first; 0 for no limit.
    pub speed: u64,
    /// Whether it is finalized when its work is done; otherwise `job-finalize` does it.
    pub auto_finalize: bool,
    /// Whether it is removed when it is over; otherwise `job-dismiss` does it.
    pub auto_dismiss: bool,
    /// Paused from its start, with nothing in flight: as the user left it before a restart.
    pub paused: bool,
}

const POISONED: &str = "jobs lock poisoned";

/// All jobs of the process.
pub struct Jobs {
    events: Arc<Events>,
    list: Mutex<List>,
    /// A driver has been told whether to pause.
    told: Condvar,
    /// The number of jobs made so far.
    made: AtomicU64,
}

#[derive(Default)]
struct List {
    /// The oldest first.
    jobs: Vec<Job>,
}

struct Job {
    /// Distinguishes it from another of the same name.
    serial: u64,
    spec: JobSpec,
    driver: Arc<dyn JobDriver>,
    status: JobStatus,
    done: u64,
    total: u64,
    error: Option<String>,
    /// Its driver has accepted `job-complete`.
    completing: bool,
    /// What the user wants.
    wanted: Wishes,
    /// What the driver was told.
    told: Wishes,
    /// Whether a thread is telling the driver.
    telling: bool,
    /// Whether a thread is in `JobDriver::finalize`.
    finalizing: bool,
}

/// How a job is to work.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wishes {
    paused: bool,
    /// Bytes per second; 0 for no limit.
    speed: u64,
}

/// A job, for the code that does its work. Calls for a job that is over are ignored.
#[derive(Clone)]
pub struct JobHandle {
    jobs: Arc<Jobs>,
    serial: u64,
}

impl Jobs {
    /// An empty list; its events are sent to `events`.
    pub fn new(events: Arc<Events>) -> Arc<Self> {
        Arc::new(Jobs {
            events,
            list: Mutex::default(),
            told: Condvar::new(),
            made: AtomicU64::new(0),
        })
    }

    /// The receiver of the jobs' events.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Whether a job `id` can be created now: for a caller that must know before the work that
    /// makes the job possible.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_id(&self, id: &str) -> Result<(), CommandError> {
        if !is_well_formed(id) {
            return Err(ill_formed(id));
        }
        if self.lock().jobs.iter().any(|job| job.spec.id == id) {
            return Err(CommandError::generic(format!("Job ID '{id}' already in use")));
        }
        Ok(())
    }

    /// Creates a job that is not started yet. `driver` gets the job's handle; it is dropped if the
    /// job cannot be created.
    pub fn create(
        self: &Arc<Self>,
        spec: JobSpec,
        driver: impl FnOnce(JobHandle) -> Arc<dyn JobDriver>,
    ) -> Result<JobHandle, CommandError> {
        if !is_well_formed(&spec.id) {
            return Err(ill_formed(&spec.id));
        }
        let serial = self.made.fetch_add(1, Ordering::Relaxed);
        let handle = JobHandle { jobs: self.clone(), serial };
        let driver = driver(handle.clone());
        let mut list = self.lock();
        if list.jobs.iter().any(|job| job.spec.id == spec.id) {
            return Err(CommandError::generic(format!("Job ID '{}' already in use", spec.id)));
        }
        let wishes = Wishes { paused: spec.paused, speed: spec.speed };
        let mut job = Job {
            serial,
            wanted: wishes,
            told: wishes,
            telling: false,
            spec,
            driver,
            status: JobStatus::Created,
            done: 0,
            total: 0,
            error: None,
            completing: false,
            finalizing: false,
        };
        self.change(&mut job, JobStatus::Created);
        list.jobs.push(job);
        Ok(handle)
    }

    /// Carries out a job command.
    pub fn execute(self: &Arc<Self>, command: &JobCommand) -> Result<Answer, CommandError> {
        match command {
            JobCommand::Query => Ok(Answer::Jobs(self.query())),
            JobCommand::Tell { verb, id } => self.tell(*verb, id).map(|()| Answer::DONE),
            JobCommand::SetSpeed(BlockJobSetSpeed { device, speed }) => {
                self.set_speed(device, *speed).map(|()| Answer::DONE)
            }
        }
    }

    /// The jobs, the newest first.
    pub fn query(&self) -> Vec<JobInfo> {
        self.lock()
            .jobs
            .iter()
            .rev()
            .map(|job| JobInfo {
                id: job.spec.id.clone(),
                kind: job.spec.kind,
                // `pending` in an answer means that somebody is to finalize it.
                status: if job.finalizing { JobStatus::Waiting } else { job.status },
                current_progress: job.done,
                total_progress: job.total,
                error: job.error.clone(),
                completing: job.completing.then_some(true),
            })
            .collect()
    }

    /// Passes a user's command to the job `id`.
    pub fn tell(self: &Arc<Self>, verb: JobVerb, id: &str) -> Result<(), CommandError> {
        let mut list = self.lock();
        let job = list.find(id).ok_or_else(|| CommandError::generic(no_job(id)))?;
        if verb == JobVerb::Resume && !job.wanted.paused {
            return Err(CommandError::generic("Can't resume a job that was not paused"));
        }
        if !accepts(job.status, verb) || job.finalizing {
            return Err(job.refusal(verb.as_str()));
        }
        let handle = JobHandle { jobs: self.clone(), serial: job.serial };
        let driver = job.driver.clone();
        match verb {
            JobVerb::Pause if job.wanted.paused => {
                return Err(CommandError::generic("Job is already paused"));
            }
            JobVerb::Pause => {
                job.wanted.paused = true;
                drop(list);
                self.tell_wishes(handle.serial);
            }
            JobVerb::Resume => {
                self.unpause(job);
                drop(list);
                self.tell_wishes(handle.serial);
            }
            JobVerb::Cancel => {
                drop(list);
                driver.cancel().map_err(CommandError::generic)?;
                handle.cancelled();
            }
            JobVerb::Complete => {
                drop(list);
                driver.complete().map_err(CommandError::generic)?;
                // Not before: a refusal leaves what an earlier one did. Where it is gone it has completed.
                handle.with(|_, job| job.completing = job.is_unfinished());
            }
            JobVerb::Finalize => {
                job.finalizing = true;
                drop(list);
                handle.finalize();
            }
            JobVerb::Dismiss => {
                let serial = job.serial;
                self.forget(&mut list, serial);
            }
        }
        Ok(())
    }

    /// Limits the job `id` to about `speed` bytes per second; 0 for no limit.
    ///
    /// # Errors
    /// There is no such job, or its work is done.
    pub fn set_speed(&self, id: &str, speed: u64) -> Result<(), CommandError> {
        let mut list = self.lock();
        let job = list.find(id).ok_or_else(|| {
            // QEMU's class for a block job that is not there.
            CommandError { class: ErrorClass::DeviceNotActive, desc: no_job(id) }
        })?;
        if !job.is_unfinished() {
            return Err(job.refusal("set-speed"));
        }
        job.wanted.speed = speed;
        let serial = job.serial;
        drop(list);
        self.tell_wishes(serial);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().expect(POISONED)
    }

    /// Tells the driver what is wanted, until it knows what is wanted by then: another client may say
    /// otherwise between a change of the list and the call.
    fn tell_wishes(&self, serial: u64) {
        let is_telling = |list: &mut List| list.get(serial).is_some_and(|job| job.telling);
        loop {
            let mut list = self.told.wait_while(self.lock(), is_telling).expect(POISONED);
            let Some(job) = list.get(serial) else { return };
            let (told, wanted) = (job.told, job.wanted);
            if told == wanted {
                return;
            }
            (job.told, job.telling) = (wanted, true);
            let driver = job.driver.clone();
            drop(list);
            if told.speed != wanted.speed {
                driver.set_speed(wanted.speed);
            }
            match wanted.paused {
                _ if told.paused == wanted.paused => {}
                true => driver.pause(),
                false => driver.resume(),
            }
            if let Some(job) = self.lock().get(serial) {
                job.telling = false;
            }
            self.told.notify_all();
        }
    }

    /// Changes a job's state and sends an event.
    fn change(&self, job: &mut Job, status: JobStatus) {
        job.status = status;
        let id = job.spec.id.clone();
        self.events.emit(&Event::JobStatusChange(JobStatusChange { id, status }));
    }

    /// Clears a requested pause: the job continues.
    fn unpause(&self, job: &mut Job) {
        job.wanted.paused = false;
        match job.status {
            JobStatus::Paused => self.change(job, JobStatus::Running),
            JobStatus::Standby => self.change(job, JobStatus::Ready),
            _ => {}
        }
    }

    /// The job is over: sends its last events, and keeps its record until it is dismissed.
    fn conclude(&self, list: &mut List, serial: u64, outcome: Outcome) {
        let Some(job) = list.get(serial) else { return };
        job.finalizing = false;
        self.unpause(job);
        let started = job.status != JobStatus::Created;
        let progress = job.progress();
        match &outcome {
            Outcome::Completed => {}
            Outcome::Cancelled => job.error = Some("Operation canceled".to_owned()),
            Outcome::Failed(why) => job.error = Some(why.clone()),
        }
        if outcome != Outcome::Completed {
            self.change(job, JobStatus::Aborting);
        }
        if started {
            self.events.emit(&match outcome {
                Outcome::Cancelled => Event::BlockJobCancelled(progress),
                Outcome::Completed | Outcome::Failed(_) => {
                    let BlockJobProgress { kind, device, len, offset, speed } = progress;
                    let error = job.error.clone();
                    Event::BlockJobCompleted(BlockJobCompleted {
                        kind,
                        device,
                        len,
                        offset,
                        speed,
                        error,
                    })
                }
            });
        }
        self.change(job, JobStatus::Concluded);
        if job.spec.auto_dismiss || !started {
            self.forget(list, serial);
        }
    }

    fn forget(&self, list: &mut List, serial: u64) {
        if let Some(job) = list.get(serial) {
            self.change(job, JobStatus::Null);
        }
        list.jobs.retain(|job| job.serial != serial);
    }
}

impl List {
    fn get(&mut self, serial: u64) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.serial == serial)
    }

    fn find(&mut self, id: &str) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.spec.id == id)
    }
}

impl Job {
    fn progress(&self) -> BlockJobProgress {
        BlockJobProgress {
            kind: self.spec.kind,
            device: self.spec.id.clone(),
            len: self.total,
            offset: self.done,
            speed: self.wanted.speed,
        }
    }

    /// It is not in a state for the verb `what`.
    fn refusal(&self, what: &str) -> CommandError {
        let Job { spec: JobSpec { id, .. }, status, .. } = self;
        CommandError::generic(format!(
            "Job '{id}' in state '{status}' cannot accept command verb '{what}'"
        ))
    }

    /// Whether its work is running, or has not begun.
    fn is_unfinished(&self) -> bool {
        use JobStatus::{Created, Paused, Ready, Running, Standby};
        matches!(self.status, Created | Running | Paused | Ready | Standby)
    }
}

impl JobHandle {
    /// The work begins. False if the job was cancelled before that: there is nothing to do.
    pub fn start(&self) -> bool {
        self.with(|jobs, job| {
            let created = job.status == JobStatus::Created;
            if created {
                jobs.change(job, JobStatus::Running);
                if job.spec.paused && job.wanted.paused {
                    jobs.change(job, JobStatus::Paused);
                }
            }
            created
        })
        .unwrap_or(false)
    }

    /// `done` of `total` is done, in any unit; `done` never decreases.
    pub fn progress(&self, done: u64, total: u64) {
        self.with(|_, job| {
            job.done = job.done.max(done);
            job.total = total;
        });
    }

    /// Nothing is in flight any more, as [`JobDriver::pause`] requires.
    pub fn paused(&self) {
        self.with(|jobs, job| match job.status {
            JobStatus::Running if job.wanted.paused => jobs.change(job, JobStatus::Paused),
            JobStatus::Ready if job.wanted.paused => jobs.change(job, JobStatus::Standby),
            // It was resumed in the meantime, or is over.
            _ => {}
        });
    }

    /// The job could end now, and continues until `job-complete`. Only a running job becomes ready:
    /// a paused one calls this again after it is resumed.
    pub fn ready(&self) {
        self.with(|jobs, job| {
            if job.status == JobStatus::Running {
                jobs.change(job, JobStatus::Ready);
                jobs.events.emit(&Event::BlockJobReady(job.progress()));
            }
        });
    }

    /// The work had an I/O error.
    pub fn io_error(&self, operation: IoOperation, action: ErrorAction) {
        self.with(|jobs, job| {
            let device = job.spec.id.clone();
            jobs.events.emit(&Event::BlockJobError(BlockJobError { device, operation, action }));
        });
    }

    /// The work is over. If it is complete, and the job finalizes by itself, this calls the
    /// driver's `finalize`.
    pub fn finish(&self, outcome: Outcome) {
        let mut list = self.jobs.lock();
        let Some(job) = list.get(self.serial).filter(|job| job.is_unfinished()) else { return };
        if outcome != Outcome::Completed {
            return self.jobs.conclude(&mut list, self.serial, outcome);
        }
        self.jobs.unpause(job);
        self.jobs.change(job, JobStatus::Waiting);
        self.jobs.change(job, JobStatus::Pending);
        if job.spec.auto_finalize {
            job.finalizing = true;
            drop(list);
            return self.finalize();
        }
        let BlockJobProgress { kind, device: id, .. } = job.progress();
        self.jobs.events.emit(&Event::BlockJobPending(BlockJobPending { kind, id }));
    }

    /// Calls `finalize` for a job that is marked as finalizing, and ends the job.
    fn finalize(&self) {
        let Some(driver) = self.with(|_, job| job.driver.clone()) else { return };
        let outcome = match driver.finalize() {
            Ok(()) => Outcome::Completed,
            Err(why) => Outcome::Failed(why),
        };
        self.jobs.conclude(&mut self.jobs.lock(), self.serial, outcome);
    }

    /// The driver has accepted the user's cancel.
    fn cancelled(&self) {
        let mut list = self.jobs.lock();
        let Some(job) = list.get(self.serial) else { return };
        match job.status {
            JobStatus::Created | JobStatus::Pending if !job.finalizing => {
                self.jobs.conclude(&mut list, self.serial, Outcome::Cancelled);
            }
            _ if job.wanted.paused && job.is_unfinished() => {
                self.jobs.unpause(job);
                drop(list);
                self.jobs.tell_wishes(self.serial);
            }
            _ => {}
        }
    }

    fn with<T>(&self, change: impl FnOnce(&Jobs, &mut Job) -> T) -> Option<T> {
        let mut list = self.jobs.lock();
        list.get(self.serial).map(|job| change(&self.jobs, job))
    }
}

fn no_job(id: &str) -> String {
    format!("Job not found: '{id}'; 'query-jobs' says which there are")
}

fn ill_formed(id: &str) -> CommandError {
    CommandError::generic(format!(
        "Invalid job ID '{id}': use a letter, and then letters, digits, '-', '.' and '_'"
    ))
}

/// Whether a job in this state accepts this verb (QEMU's table of verbs).
fn accepts(status: JobStatus, verb: JobVerb) -> bool {
    use JobStatus::{Concluded, Created, Paused, Pending, Ready, Running, Standby, Waiting};
    match verb {
        JobVerb::Cancel => {
            matches!(status, Created | Running | Paused | Ready | Standby | Waiting | Pending)
        }
        JobVerb::Pause | JobVerb::Resume => {
            matches!(status, Created | Running | Paused | Ready | Standby)
        }
        JobVerb::Complete => matches!(status, Ready | Standby),
        JobVerb::Finalize => status == Pending,
        JobVerb::Dismiss => status == Concluded,
    }
}

/// QEMU's rule for identifiers of jobs and exports.
pub fn is_well_formed(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// An identifier for a job on `device` that nobody named: `verb` and the device's name, in which what
/// no identifier may have is replaced.
pub fn derived_id(verb: &str, device: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let device: String = device.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    format!("{verb}-{device}")
}

#[cfg(test)]
mod tests;
