//! The visible state of jobs: QEMU's states, verbs and the record of `query-jobs` (qapi/job.json).

use crate::{choice, record};

choice! {
    /// The types of jobs.
    pub enum JobType {
        /// Layers of a chain are committed into a lower one.
        Commit = "commit",
        /// A snapshot is merged into its origin.
        SnapshotMerge = "snapshot-merge",
    }
}

choice! {
    /// The state of a job.
    pub enum JobStatus {
        /// Created, not yet started.
        Created = "created",
        /// Running.
        Running = "running",
        /// Paused while it was running.
        Paused = "paused",
        /// It could end, and waits for `job-complete`.
        Ready = "ready",
        /// Paused while it was ready.
        Standby = "standby",
        /// Its work is done, and its end is carried out.
        Waiting = "waiting",
        /// Its work is done; it waits for `job-finalize` to make the work visible.
        Pending = "pending",
        /// It failed or was cancelled, and cleans up.
        Aborting = "aborting",
        /// Over; kept until it is dismissed.
        Concluded = "concluded",
        /// Removed; only seen in an event.
        Null = "null",
    }
}

choice! {
    /// The verbs of jobs.
    pub enum JobVerb {
        /// `job-cancel`
        Cancel = "cancel",
        /// `job-pause`
        Pause = "pause",
        /// `job-resume`
        Resume = "resume",
        /// `job-complete`
        Complete = "complete",
        /// `job-finalize`
        Finalize = "finalize",
        /// `job-dismiss`
        Dismiss = "dismiss",
    }
}

/// A command about jobs.
#[derive(Clone, Debug, PartialEq)]
pub enum JobCommand {
    /// `query-jobs`: returns [`Answer::Jobs`](super::Answer).
    Query,
    /// `job-*`
    Tell {
        /// The verb.
        verb: JobVerb,
        /// The job's name.
        id: String,
    },
    /// `block-job-set-speed`
    SetSpeed(BlockJobSetSpeed),
}

record! {
    /// Arguments of the `job-*` commands.
    pub struct JobId {
        /// The job.
        id: String,
    }
}

record! {
    /// Arguments of `block-job-set-speed`.
    pub struct BlockJobSetSpeed {
        /// The job, which QEMU calls so here.
        device: String,
        /// Bytes per second; 0 for no limit.
        speed: u64,
    }
}

record! {
    /// A job, as in `query-jobs`.
    pub struct JobInfo {
        /// Its name.
        id: String,
        /// Its type.
        kind as "type": JobType,
        /// Its state.
        status: JobStatus,
        /// Finished work, in its own unit.
        current_progress: u64,
        /// Total work, as estimated now, in the same unit.
        total_progress: u64,
        /// Its error; missing if it has none.
        error: Option<String>,
        /// True once `job-complete` was accepted, after which a job may be `ready` for long; missing
        /// before. QEMU does not say it.
        completing: Option<bool>,
    }
}
