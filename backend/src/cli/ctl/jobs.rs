//! The verbs that begin jobs.
//!
//! Owns their arguments, which they share with QEMU's block jobs. Never knows how a job is followed.

use snapblk_qmp::derived_id;
use snapblk_store::control::command as control;

use super::verb::Request;
use crate::cli::size;

/// Arguments of `merge`.
#[derive(clap::Args, Debug)]
pub struct MergeArgs {
    /// The disk
    pub device: String,
    /// The snapshot
    pub snapshot: String,
    /// Name of the job [default: merge-DEVICE]
    #[arg(long)]
    pub job_id: Option<String>,
    #[command(flatten)]
    options: JobArgs,
    /// Wait until the job is over, with a progress bar
    #[arg(long, conflicts_with = "no_auto_finalize")]
    pub wait: bool,
}

/// Arguments of `commit`.
#[derive(clap::Args, Debug)]
pub struct CommitArgs {
    /// The disk
    pub device: String,
    /// The highest layer to commit [default: the disk's own overlay]
    #[arg(long, value_name = "NAME")]
    pub top: Option<String>,
    /// The layer to commit into, which stays [default: the base below all layers]
    #[arg(long, value_name = "NAME")]
    pub base: Option<String>,
    /// Name of the job [default: commit-DEVICE]
    #[arg(long)]
    pub job_id: Option<String>,
    #[command(flatten)]
    options: JobArgs,
    /// Wait until the job is over, with a progress bar; complete it when it is ready
    #[arg(long, conflicts_with = "no_auto_finalize")]
    pub wait: bool,
}

/// What both have.
#[derive(clap::Args, Debug)]
struct JobArgs {
    /// Most bytes per second, as in 100M [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    speed: Option<u64>,
    /// At its end the job waits for `job-finalize`
    #[arg(long)]
    no_auto_finalize: bool,
    /// When it is over, the job stays in the list until `job-dismiss`
    #[arg(long)]
    no_auto_dismiss: bool,
}

impl JobArgs {
    fn auto_finalize(&self) -> Option<bool> {
        self.no_auto_finalize.then_some(false)
    }

    fn auto_dismiss(&self) -> Option<bool> {
        self.no_auto_dismiss.then_some(false)
    }

    /// What else the job `id` needs from its user, after how to follow it.
    fn then_finalize(&self, id: &str) -> String {
        if self.no_auto_finalize {
            format!(", until it is pending: `job-finalize {id}` ends it")
        } else {
            String::new()
        }
    }
}

impl MergeArgs {
    /// The name of the job.
    pub(super) fn job(&self) -> String {
        self.job_id.clone().unwrap_or_else(|| derived_id("merge", &self.device))
    }

    /// What to do next about it.
    pub(super) fn hint(&self) -> String {
        let id = self.job();
        format!("`wait {id}` follows it{}", self.options.then_finalize(&id))
    }

    pub(super) fn request(&self) -> Request {
        let arguments = control::SnapshotMerge {
            device: self.device.clone(),
            snapshot: self.snapshot.clone(),
            job_id: self.job(),
            speed: self.options.speed,
            auto_finalize: self.options.auto_finalize(),
            auto_dismiss: self.options.auto_dismiss(),
        };
        Request::new("snapshot-merge", &arguments)
    }
}

impl CommitArgs {
    /// The name of the job.
    pub(super) fn job(&self) -> String {
        self.job_id.clone().unwrap_or_else(|| derived_id("commit", &self.device))
    }

    /// What to do next about it. One of the disk's own overlay becomes ready.
    pub(super) fn hint(&self) -> String {
        let id = self.job();
        let then = self.options.then_finalize(&id);
        format!("`wait {id} --complete` follows it, and completes it when it is ready{then}")
    }

    pub(super) fn request(&self) -> Request {
        let arguments = control::BlockCommit {
            job_id: Some(self.job()),
            device: self.device.clone(),
            base_node: self.base.clone(),
            top_node: self.top.clone(),
            speed: self.options.speed,
            on_error: None,
            auto_finalize: self.options.auto_finalize(),
            auto_dismiss: self.options.auto_dismiss(),
        };
        Request::new("block-commit", &arguments)
    }
}
