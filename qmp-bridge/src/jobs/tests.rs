//! The sequences of states and events are those of qemu-storage-daemon 10.0.2 for a
//! `blockdev-mirror` and a `blockdev-backup` with the same commands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use snapblk_store::control::ErrorClass;
use snapblk_store::control::event::{ErrorAction, IoOperation};
use snapblk_store::control::job::{JobStatus, JobType, JobVerb};

use super::{JobDriver, JobHandle, JobSpec, Jobs, Outcome, accepts, derived_id, is_well_formed};
use crate::events::{Events, Listener};

/// Records events as words.
#[derive(Default)]
struct Ear(Mutex<Vec<String>>);

impl Listener for Ear {
    fn hear(&self, line: &Arc<str>) {
        let event: Value = serde_json::from_str(line).unwrap();
        let name = event["event"].as_str().unwrap();
        let word = match name {
            "JOB_STATUS_CHANGE" => event["data"]["status"].as_str().unwrap().to_owned(),
            "BLOCK_JOB_COMPLETED" if event["data"].get("error").is_some() => {
                format!("{name}: {}", event["data"]["error"].as_str().unwrap())
            }
            _ => name.to_owned(),
        };
        self.0.lock().unwrap().push(word);
    }
}

/// A driver that carries out each command at once.
struct Prompt {
    job: JobHandle,
    told: Mutex<Vec<&'static str>>,
    refuse: Option<&'static str>,
}

impl JobDriver for Prompt {
    fn pause(&self) {
        self.told.lock().unwrap().push("pause");
        self.job.paused();
    }

    fn resume(&self) {
        self.told.lock().unwrap().push("resume");
    }

    fn set_speed(&self, speed: u64) {
        self.told.lock().unwrap().push(if speed == 0 { "unlimited" } else { "limited" });
    }

    fn cancel(&self) -> Result<(), String> {
        self.told.lock().unwrap().push("cancel");
        if self.refuse == Some("cancel") {
            return Err("the merge cannot be undone".to_owned());
        }
        self.job.finish_if_running(Outcome::Cancelled);
        Ok(())
    }

    fn complete(&self) -> Result<(), String> {
        self.told.lock().unwrap().push("complete");
        self.job.finish(Outcome::Completed);
        Ok(())
    }

    fn finalize(&self) -> Result<(), String> {
        self.told.lock().unwrap().push("finalize");
        match self.refuse {
            Some("finalize") => Err("the table cannot be swapped".to_owned()),
            _ => Ok(()),
        }
    }
}

impl JobHandle {
    /// Like a driver with work in flight; one that has not begun has nothing to finish.
    fn finish_if_running(&self, outcome: Outcome) {
        let begun =
            self.with(|_, job| !matches!(job.status, JobStatus::Created | JobStatus::Pending));
        if begun == Some(true) {
            self.finish(outcome);
        }
    }
}

struct Bench {
    jobs: Arc<Jobs>,
    ear: Arc<Ear>,
    driver: Mutex<Option<Arc<Prompt>>>,
}

impl Bench {
    fn new() -> Self {
        let events = Events::new();
        let ear = Arc::new(Ear::default());
        let listener: Arc<dyn Listener> = ear.clone();
        events.listen(Arc::downgrade(&listener));
        Bench { jobs: Jobs::new(events), ear, driver: Mutex::default() }
    }

    fn create(&self, finalize: bool, dismiss: bool, refuse: Option<&'static str>) -> JobHandle {
        let spec = JobSpec {
            id: "m1".to_owned(),
            kind: JobType::SnapshotMerge,
            speed: 0,
            auto_finalize: finalize,
            auto_dismiss: dismiss,
            paused: false,
        };
        self.create_as(spec, refuse)
    }

    fn create_as(&self, spec: JobSpec, refuse: Option<&'static str>) -> JobHandle {
        self.jobs
            .create(spec, |job| {
                let driver = Arc::new(Prompt { job, told: Mutex::default(), refuse });
                *self.driver.lock().unwrap() = Some(driver.clone());
                driver
            })
            .unwrap()
    }

    fn start(&self, finalize: bool, dismiss: bool, refuse: Option<&'static str>) -> JobHandle {
        let job = self.create(finalize, dismiss, refuse);
        assert!(job.start());
        self.heard();
        job
    }

    fn tell(&self, verb: JobVerb) -> Result<(), String> {
        self.jobs.tell(verb, "m1").map_err(|error| error.desc)
    }

    fn told(&self) -> Vec<&'static str> {
        self.driver.lock().unwrap().as_ref().unwrap().told.lock().unwrap().clone()
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.ear.0.lock().unwrap())
    }
}

#[test]
fn a_job_that_needs_nobody() {
    let bench = Bench::new();
    let job = bench.create(true, true, None);
    assert!(job.start());
    job.progress(3, 8);
    job.progress(8, 8);
    job.finish(Outcome::Completed);
    assert_eq!(
        bench.heard(),
        ["created", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]
    );
    assert_eq!(bench.told(), ["finalize"]);
    assert!(bench.jobs.query().is_empty());
}

/// Its state is as before until its work is done: that somebody completes it is said beside it.
#[test]
fn a_ready_job_that_completes_is_said_to() {
    struct Slow(AtomicBool);
    impl JobDriver for Slow {
        fn pause(&self) {}
        fn resume(&self) {}
        fn set_speed(&self, _: u64) {}
        fn cancel(&self) -> Result<(), String> {
            Ok(())
        }
        fn complete(&self) -> Result<(), String> {
            match self.0.swap(true, Ordering::Relaxed) {
                false => Ok(()),
                true => Err("it cannot be told so again".to_owned()),
            }
        }
    }
    let bench = Bench::new();
    let spec = JobSpec {
        id: "m1".to_owned(),
        kind: JobType::Commit,
        speed: 0,
        auto_finalize: true,
        auto_dismiss: true,
        paused: false,
    };
    let job = bench.jobs.create(spec, |_| Arc::new(Slow(AtomicBool::new(false)))).unwrap();
    job.start();
    job.ready();
    let shown = || {
        let info = bench.jobs.query().remove(0);
        (info.status, info.completing)
    };
    assert_eq!(shown(), (JobStatus::Ready, None));
    bench.tell(JobVerb::Complete).unwrap();
    assert_eq!(shown(), (JobStatus::Ready, Some(true)));
    // Another client takes it for one that nobody has told yet.
    bench.tell(JobVerb::Complete).unwrap_err();
    assert_eq!(shown(), (JobStatus::Ready, Some(true)));
}

/// `pending` would say that a client is to finalize it.
#[test]
fn a_job_that_finalizes_itself_is_not_shown_as_pending() {
    struct Looks {
        jobs: Arc<Jobs>,
        shown: Arc<Mutex<Option<JobStatus>>>,
    }
    impl JobDriver for Looks {
        fn pause(&self) {}
        fn resume(&self) {}
        fn set_speed(&self, _: u64) {}
        fn cancel(&self) -> Result<(), String> {
            Ok(())
        }
        fn complete(&self) -> Result<(), String> {
            Ok(())
        }
        fn finalize(&self) -> Result<(), String> {
            *self.shown.lock().unwrap() = Some(self.jobs.query()[0].status);
            Ok(())
        }
    }
    let bench = Bench::new();
    let shown = Arc::<Mutex<Option<JobStatus>>>::default();
    let spec = JobSpec {
        id: "m1".to_owned(),
        kind: JobType::Commit,
        speed: 0,
        auto_finalize: true,
        auto_dismiss: true,
        paused: false,
    };
    let driver = Looks { jobs: bench.jobs.clone(), shown: shown.clone() };
    let job = bench.jobs.create(spec, |_| Arc::new(driver)).unwrap();
    job.start();
    job.finish(Outcome::Completed);
    assert_eq!(*shown.lock().unwrap(), Some(JobStatus::Waiting));
}

/// As the user left it before a restart.
#[test]
fn a_job_that_is_paused_from_its_start_on() {
    let bench = Bench::new();
    let spec = JobSpec {
        id: "m1".to_owned(),
        kind: JobType::SnapshotMerge,
        speed: 0,
        auto_finalize: true,
        auto_dismiss: true,
        paused: true,
    };
    let job = bench.create_as(spec, None);
    assert!(job.start());
    assert_eq!(bench.heard(), ["created", "running", "paused"]);
    assert_eq!(bench.tell(JobVerb::Pause).unwrap_err(), "Job is already paused");
    bench.tell(JobVerb::Resume).unwrap();
    job.finish(Outcome::Completed);
    assert_eq!(bench.told(), ["resume", "finalize"]);
}

#[test]
fn a_job_that_waits_for_everything() {
    let bench = Bench::new();
    let job = bench.start(false, false, None);
    job.ready();
    bench.tell(JobVerb::Pause).unwrap();
    assert_eq!(bench.tell(JobVerb::Pause).unwrap_err(), "Job is already paused");
    bench.tell(JobVerb::Resume).unwrap();
    assert_eq!(bench.tell(JobVerb::Resume).unwrap_err(), "Can't resume a job that was not paused");
    bench.tell(JobVerb::Complete).unwrap();
    assert_eq!(
        bench.heard(),
        ["ready", "BLOCK_JOB_READY", "standby", "ready", "waiting", "pending", "BLOCK_JOB_PENDING"]
    );
    assert_eq!(
        bench.tell(JobVerb::Pause).unwrap_err(),
        "Job 'm1' in state 'pending' cannot accept command verb 'pause'"
    );
    bench.tell(JobVerb::Finalize).unwrap();
    assert_eq!(bench.heard(), ["BLOCK_JOB_COMPLETED", "concluded"]);
    let info = &bench.jobs.query()[0];
    assert_eq!((info.status, info.error.as_deref()), (JobStatus::Concluded, None));
    bench.tell(JobVerb::Dismiss).unwrap();
    assert_eq!(bench.heard(), ["null"]);
    let gone = bench.tell(JobVerb::Dismiss).unwrap_err();
    assert_eq!(gone, "Job not found: 'm1'; 'query-jobs' says which there are");
}

#[test]
fn cancelling_a_paused_job_resumes_it_first() {
    let bench = Bench::new();
    let job = bench.start(true, false, None);
    job.progress(1, 8);
    bench.tell(JobVerb::Pause).unwrap();
    bench.tell(JobVerb::Cancel).unwrap();
    assert_eq!(
        bench.heard(),
        ["paused", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded"]
    );
    let info = &bench.jobs.query()[0];
    assert_eq!(info.error.as_deref(), Some("Operation canceled"));
    assert_eq!((info.current_progress, info.total_progress), (1, 8));
}

#[test]
fn a_paused_job_whose_driver_takes_its_time_is_resumed_to_be_cancelled() {
    struct Slow;
    impl JobDriver for Slow {
        fn pause(&self) {}
        fn resume(&self) {}
        fn set_speed(&self, _: u64) {}
        fn cancel(&self) -> Result<(), String> {
            Ok(())
        }
        fn complete(&self) -> Result<(), String> {
            Ok(())
        }
    }
    let bench = Bench::new();
    let spec = JobSpec {
        id: "m1".to_owned(),
        kind: JobType::Commit,
        speed: 0,
        auto_finalize: true,
        auto_dismiss: true,
        paused: false,
    };
    let job = bench.jobs.create(spec, |_| Arc::new(Slow)).unwrap();
    job.start();
    bench.tell(JobVerb::Pause).unwrap();
    assert_eq!(bench.heard(), ["created", "running"]);
    job.paused();
    bench.tell(JobVerb::Cancel).unwrap();
    assert_eq!(bench.heard(), ["paused", "running"]);
    job.finish(Outcome::Cancelled);
    assert_eq!(bench.heard(), ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]);
}

/// A driver whose pause takes its time, in which another client's resume may come.
struct Racing {
    began: Mutex<Sender<()>>,
    resumes: (Mutex<Sender<()>>, Mutex<Receiver<()>>),
    told: Arc<Mutex<Vec<&'static str>>>,
}

impl JobDriver for Racing {
    fn pause(&self) {
        self.began.lock().unwrap().send(()).unwrap();
        // Not for long: it comes only if it overtakes this.
        let _ = self.resumes.1.lock().unwrap().recv_timeout(Duration::from_millis(200));
        self.told.lock().unwrap().push("pause");
    }

    fn resume(&self) {
        self.told.lock().unwrap().push("resume");
        self.resumes.0.lock().unwrap().send(()).unwrap();
    }

    fn set_speed(&self, _: u64) {}

    fn cancel(&self) -> Result<(), String> {
        Ok(())
    }

    fn complete(&self) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn what_a_driver_is_told_last_is_what_clients_said_last() {
    let bench = Bench::new();
    let (begin, began) = channel();
    let (resume, resumes) = channel();
    let told = Arc::<Mutex<Vec<_>>>::default();
    let driver = Racing {
        began: Mutex::new(begin),
        resumes: (Mutex::new(resume), Mutex::new(resumes)),
        told: told.clone(),
    };
    let spec = JobSpec {
        id: "m1".to_owned(),
        kind: JobType::Commit,
        speed: 0,
        auto_finalize: true,
        auto_dismiss: true,
        paused: false,
    };
    let job = bench.jobs.create(spec, |_| Arc::new(driver)).unwrap();
    assert!(job.start());
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| bench.tell(JobVerb::Pause).unwrap());
        began.recv().unwrap();
        bench.tell(JobVerb::Resume).unwrap();
        pause.join().unwrap();
    });
    assert_eq!(*told.lock().unwrap(), ["pause", "resume"]);
}

#[test]
fn a_late_word_of_a_pause_that_was_taken_back_changes_nothing() {
    let bench = Bench::new();
    let job = bench.start(true, true, None);
    job.paused();
    assert!(bench.heard().is_empty());
}

/// QEMU's `block-job-set-speed`: a job that is not there is no active block job.
#[test]
fn a_job_is_as_fast_as_clients_said_last() {
    let bench = Bench::new();
    let job = bench.start(false, true, None);
    let set = |speed| bench.jobs.set_speed("m1", speed);
    set(1 << 20).unwrap();
    set(1 << 20).unwrap();
    bench.tell(JobVerb::Pause).unwrap();
    set(0).unwrap();
    set(7).unwrap();
    assert_eq!(bench.told(), ["limited", "pause", "unlimited", "limited"]);
    assert_eq!(job.with(|_, job| job.progress().speed), Some(7), "events tell it");
    let said = bench.jobs.set_speed("other", 0).unwrap_err();
    assert_eq!(said.class, ErrorClass::DeviceNotActive);
    assert!(said.desc.starts_with("Job not found: 'other'"), "{}", said.desc);
    bench.tell(JobVerb::Resume).unwrap();
    job.finish(Outcome::Completed);
    let said = set(0).unwrap_err();
    let desc = "Job 'm1' in state 'pending' cannot accept command verb 'set-speed'";
    assert_eq!((said.class, said.desc.as_str()), (ErrorClass::GenericError, desc));
}

#[test]
fn a_failed_job_says_why() {
    let bench = Bench::new();
    let job = bench.start(true, false, None);
    job.io_error(IoOperation::Write, ErrorAction::Report);
    job.finish(Outcome::Failed("No space left on device".to_owned()));
    assert_eq!(
        bench.heard(),
        [
            "BLOCK_JOB_ERROR",
            "aborting",
            "BLOCK_JOB_COMPLETED: No space left on device",
            "concluded"
        ]
    );
    assert_eq!(bench.jobs.query()[0].error.as_deref(), Some("No space left on device"));
    assert!(bench.told().is_empty(), "nothing is finalized");
}

#[test]
fn what_cannot_be_finalized_has_failed() {
    let bench = Bench::new();
    let job = bench.start(true, false, Some("finalize"));
    job.finish(Outcome::Completed);
    assert_eq!(
        bench.heard(),
        [
            "waiting",
            "pending",
            "aborting",
            "BLOCK_JOB_COMPLETED: the table cannot be swapped",
            "concluded"
        ]
    );
}

#[test]
fn a_job_cancelled_before_it_starts_or_is_finalized_is_over_at_once() {
    let bench = Bench::new();
    let job = bench.create(true, false, None);
    bench.tell(JobVerb::Cancel).unwrap();
    assert_eq!(bench.heard(), ["created", "aborting", "concluded", "null"]);
    assert!(!job.start());

    let job = bench.start(false, true, None);
    job.finish(Outcome::Completed);
    bench.tell(JobVerb::Cancel).unwrap();
    assert_eq!(
        bench.heard(),
        [
            "waiting",
            "pending",
            "BLOCK_JOB_PENDING",
            "aborting",
            "BLOCK_JOB_CANCELLED",
            "concluded",
            "null"
        ]
    );
    job.finish(Outcome::Completed);
    job.progress(1, 1);
    assert!(bench.heard().is_empty(), "what is over is over");
}

#[test]
fn a_driver_may_refuse() {
    let bench = Bench::new();
    bench.start(true, true, Some("cancel"));
    bench.tell(JobVerb::Pause).unwrap();
    assert_eq!(bench.tell(JobVerb::Cancel).unwrap_err(), "the merge cannot be undone");
    assert_eq!(bench.jobs.query()[0].status, JobStatus::Paused);
}

#[test]
fn names_are_qemu_s_and_taken_once() {
    let bench = Bench::new();
    let spec = |id: &str| JobSpec {
        id: id.to_owned(),
        kind: JobType::Commit,
        speed: 0,
        auto_finalize: true,
        auto_dismiss: true,
        paused: false,
    };
    let create = |id: &str| {
        let driver = |job| -> Arc<dyn JobDriver> {
            Arc::new(Prompt { job, told: Mutex::default(), refuse: None })
        };
        bench.jobs.create(spec(id), driver).map(|_| ()).map_err(|error| error.desc)
    };
    for bad in ["", "1bad", "a b", "-x", "é"] {
        let said = create(bad).unwrap_err();
        assert!(said.starts_with(&format!("Invalid job ID '{bad}': use a letter")), "{said}");
    }
    create("a.b_c-1").unwrap();
    assert_eq!(create("a.b_c-1").unwrap_err(), "Job ID 'a.b_c-1' already in use");
    create("b").unwrap();
    let ids: Vec<String> = bench.jobs.query().into_iter().map(|job| job.id).collect();
    assert_eq!(ids, ["b", "a.b_c-1"]);
}

#[test]
fn a_job_that_nobody_named_can_be_called_by_its_name() {
    assert_eq!(derived_id("merge", "disk0.1"), "merge-disk0.1");
    assert_eq!(derived_id("merge", "vg+data é"), "merge-vg_data__");
    for device in ["", "1", "vg+data", "a/b", "é"] {
        assert!(is_well_formed(&derived_id("commit", device)), "{device}");
    }
}

/// QEMU's JobVerbTable; a `1` is "accepted". States in the order of [`JobStatus::ALL`].
#[test]
fn the_table_of_verbs_is_qemu_s() {
    for (verb, row) in [
        //                     C R P Y S W D X E N
        (JobVerb::Cancel, "1111111000"),
        (JobVerb::Pause, "1111100000"),
        (JobVerb::Resume, "1111100000"),
        (JobVerb::Complete, "0001100000"),
        (JobVerb::Finalize, "0000001000"),
        (JobVerb::Dismiss, "0000000010"),
    ] {
        let ours: String = JobStatus::ALL
            .iter()
            .map(|status| if accepts(*status, verb) { '1' } else { '0' })
            .collect();
        assert_eq!(ours, row, "{verb}");
    }
}
