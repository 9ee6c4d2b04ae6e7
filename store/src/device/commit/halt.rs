//! A commit that failed after the user had completed it: its device merges its own store into the
//! base, so the commit is not over, and can only go on.
//!
//! Owns the record of such a commit until it goes on. The base stays reserved meanwhile, but not the
//! device's own table: a user may load another one, which ends the commit. Never knows how jobs are
//! run.

use super::{Commit, by_job};
use crate::device::core::{Devices, Inner};
use crate::device::error::DeviceError;
use crate::device::rollback::on_or_all;
use crate::device::state::{CommitJob, JobSettings};

impl Commit {
    /// Whether its device may change its own table.
    pub(super) fn leaves_its_device(&self) -> bool {
        !self.chain.contains(&self.device)
    }
}

impl Inner {
    /// The store that the table of `device` merges as a whole.
    fn merged(&self, device: &str) -> Option<String> {
        self.devices.get(device)?.active.as_ref()?.merged()
    }

    /// The commit that stopped while `device` merged, and its job's name; none if `device` has another
    /// table by now.
    pub(in crate::device) fn halted_commit(&self, device: &str) -> Option<(&String, &CommitJob)> {
        let merged = self.merged(device)?;
        let halted = |job: &CommitJob| job.halted_merging.as_ref() == Some(&merged);
        self.state.commits.iter().find(|(_, job)| job.device == device && halted(job))
    }

    /// The commit that `device` merges for, whether a job runs or not.
    pub(in crate::device) fn commit_of(&self, device: &str) -> Option<(&String, &CommitJob)> {
        let mut jobs = self.state.commits.iter();
        let runs = jobs.find(|(_, job)| job.device == device && job.halted_merging.is_none());
        runs.or_else(|| self.halted_commit(device))
    }

    /// Whether the commit `id` of `device` halted, and has ended since: its device has another table.
    fn is_replaced(&self, id: &str, device: &str) -> bool {
        let halted = self.state.commits.get(id).is_some_and(|job| job.halted_merging.is_some());
        halted && self.halted_commit(device).is_none_or(|(other, _)| other != id)
    }

    /// The commits whose reservations are in force, by their jobs' names.
    pub(super) fn reserving(&self) -> impl Iterator<Item = (&String, &Commit)> {
        self.commits.iter().filter(|(id, commit)| !self.is_replaced(id, &commit.device))
    }

    /// Forgets halted commits whose devices have other tables.
    pub(super) fn forget_replaced(&mut self) {
        let jobs = self.state.commits.iter();
        let replaced = jobs.filter(|(id, job)| self.is_replaced(id, &job.device));
        for id in replaced.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.state.commits.remove(&id);
            self.commits.remove(&id);
        }
    }
}

impl Devices {
    /// The job `id` stops before its end. If its device merges already, it can go on. Otherwise it is
    /// over, as [`Devices::forget_commit`] says.
    ///
    /// # Errors
    /// The state cannot be written.
    pub fn halt_commit(&self, id: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let job = inner.state.commits.get(id).filter(|job| job.pivoted).cloned();
        let merged = job.as_ref().and_then(|job| inner.merged(&job.device));
        let (Some(job), Some(merged)) = (job, merged) else { return self.forget(inner, id) };
        if let Some(commit) = inner.commits.get_mut(id) {
            commit.chain.retain(|name| *name != commit.device);
        }
        let settings = JobSettings { paused: false, ..job.settings };
        let halted = CommitJob { halted_merging: Some(merged), settings, ..job };
        inner.state.commits.insert(id.into(), halted);
        self.keep(inner)
    }

    /// The halted commits whose devices serve, among `name` and those above it: their jobs' names, and
    /// the devices.
    pub fn halted_commits(&self, name: &str) -> Vec<(String, String)> {
        let inner = &*self.lock();
        let serving = on_or_all(inner, Some(name)).into_iter();
        let halted = serving.filter_map(|device| Some((inner.halted_commit(&device)?.0, device)));
        halted.map(|(id, device)| (id.clone(), device)).collect()
    }

    /// The halted commit `id` goes on as the job `new`, with its settings: the caller runs the merge.
    ///
    /// # Errors
    /// It has ended, or another has that name, or the state cannot be written.
    pub fn commit_goes_on(&self, id: &str, new: &str) -> Result<CommitJob, DeviceError> {
        let inner = &mut *self.lock();
        let job = inner.state.commits.get(id).cloned();
        let is_it = |job: &CommitJob| inner.halted_commit(&job.device).is_some_and(|it| it.0 == id);
        let Some(job) = job.filter(is_it) else {
            return Err(DeviceError::refused(format!("there is no commit '{id}' to go on with")));
        };
        self.go_on_with(inner, id, new, job)
    }

    /// The commit `id`, which no job runs yet, is `new` from now on.
    ///
    /// # Errors
    /// The state cannot be written. Nothing has changed then.
    pub fn rename_commit(&self, id: &str, new: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let before = inner.state.commits.clone();
        let job = inner.state.commits.remove(id);
        inner.state.commits.extend(job.map(|job| (new.to_owned(), job)));
        self.keep(inner).inspect_err(|_| inner.state.commits = before)
    }

    /// If a commit of `asked.device` has halted, it goes on as the job `new`, with the settings of
    /// `asked`.
    ///
    /// # Errors
    /// It is another commit, its job has not ended yet, its device is suspended, or as
    /// [`Devices::commit_goes_on`].
    pub fn begin_commit_again(
        &self,
        new: &str,
        asked: &CommitJob,
    ) -> Result<Option<CommitJob>, DeviceError> {
        let inner = &mut *self.lock();
        let device = &asked.device;
        let Some((id, job)) = inner.halted_commit(device) else { return Ok(None) };
        let top = asked.top.as_ref().is_none_or(|top| top == device);
        if !top || (asked.base != job.base && asked.base.is_some()) {
            return Err(DeviceError::refused(failed(device)));
        }
        if inner.device(device)?.suspended {
            return Err(DeviceError::Suspended(device.clone()));
        }
        let job = CommitJob { settings: asked.settings, ..job.clone() };
        let id = id.clone();
        self.go_on_with(inner, &id, new, job).map(Some)
    }

    fn go_on_with(
        &self,
        inner: &mut Inner,
        id: &str,
        new: &str,
        job: CommitJob,
    ) -> Result<CommitJob, DeviceError> {
        if inner.device(&job.device)?.has_job() {
            return Err(DeviceError::refused(format!(
                "{} has not ended yet; try again when it has",
                by_job(id)
            )));
        }
        if new != id && inner.state.commits.contains_key(new) {
            return Err(DeviceError::refused(format!(
                "{} is another commit; choose another name",
                by_job(new)
            )));
        }
        self.open_merged_again(inner, &job.device)?;
        let before = inner.state.commits.remove(id);
        let reserved = inner.commits.remove(id);
        let job = CommitJob { halted_merging: None, ..job };
        inner.state.commits.insert(new.into(), job.clone());
        let kept = self.hold_merge(inner, new, &job).and_then(|()| self.keep(inner));
        if let Err(error) = kept {
            inner.state.commits.remove(new);
            inner.commits.remove(new);
            inner.state.commits.extend(before.map(|job| (id.to_owned(), job)));
            inner.commits.extend(reserved.map(|commit| (id.to_owned(), commit)));
            return Err(error);
        }
        Ok(job)
    }
}

/// What is said of other operations on `device` while its commit has halted.
pub(in crate::device) fn failed(device: &str) -> String {
    format!(
        "the commit of '{device}' into its base failed before its end; 'block-commit' of '{device}', \
         without other arguments than before, goes on with it"
    )
}
