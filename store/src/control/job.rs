//! Jobs as they are shown: QEMU's states, verbs and the record of `query-jobs` (qapi/job.json).

use crate::{choice, record};

choice! {
    /// What a job does.
    pub enum JobType {
        /// Layers of a chain go down into the one below.
        Commit = "commit",
        /// A snapshot is merged into its origin.
        SnapshotMerge = "snapshot-merge",
    }
}

choice! {
    /// Where a job is in its life.
    pub enum JobStatus {
        /// Made, not yet started.
        Created = "created",
        /// At work.
        Running = "running",
        /// Held while it was running.
        Paused = "paused",
        /// Could end as soon as it is told `job-complete`.
        Ready = "ready",
        /// Held while it was ready.
        Standby = "standby",
        /// Its work is done; others of the same transaction are waited for.
        Waiting = "waiting",
        /// Its work is done; what makes it visible waits for `job-finalize`.
        Pending = "pending",
        /// Has failed or was cancelled, and cleans up.
        Aborting = "aborting",
        /// Over; kept until it is dismissed.
        Concluded = "concluded",
        /// Gone; only ever seen in an event.
        Null = "null",
    }
}

choice! {
    /// What a job can be told.
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
    /// `query-jobs`: answers [`Answer::Jobs`](super::Answer).
    Query,
    /// `job-*`
    Tell {
        /// What it is told.
        verb: JobVerb,
        /// Which job.
        id: String,
    },
}

record! {
    /// Arguments of the `job-*` commands.
    pub struct JobId {
        /// The job.
        id: String,
    }
}

record! {
    /// A job, as `query-jobs` shows it.
    pub struct JobInfo {
        /// Its name.
        id: String,
        /// What it does.
        kind as "type": JobType,
        /// Where it is.
        status: JobStatus,
        /// Work done, in a unit of its own.
        current_progress: u64,
        /// Work done at the end, as estimated now, in the same unit.
        total_progress: u64,
        /// Why it failed; missing where it did not.
        error: Option<String>,
    }
}
