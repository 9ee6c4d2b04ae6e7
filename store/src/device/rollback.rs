//! Unfinished rollbacks, and merges that no command started.
//!
//! Owns the record of a rollback from its start to its end, also while no job runs it: from the
//! start, a device reads as its snapshot, so a cancelled or failed rollback is not over and can be
//! continued. Never knows how the jobs are run, nor the changes of tables (`snapshots`).

use std::collections::BTreeMap;

use super::build::{Active, Snap};
use super::commit;
use super::core::{Devices, Inner};
use super::error::DeviceError;
use super::serving::{blocked, go};
use super::state::{CommitJob, Halt, JobSettings, RollbackJob};
use super::verbs::{open_files_again, with_uppers};
use crate::cow::StoreState;
use crate::cow::store::MergeMark;
use crate::lines::{SnapshotSpec, TargetSpec};

/// A merge by a table that a user loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merging {
    /// The device that merges.
    pub device: String,
    /// The device that had the store before; the same device if no other names it any more.
    pub snapshot: String,
    /// Path of the store.
    pub cow: String,
    /// Whether a job runs it.
    pub has_job: bool,
}

impl Active {
    /// Whether a line of the table merges.
    pub(super) fn is_merging(&self) -> bool {
        self.merged().is_some()
    }

    /// The store that such a table merges.
    pub(super) fn merged(&self) -> Option<String> {
        self.merge_line().map(|(spec, _)| spec.cow.to_string())
    }

    /// The line that merges, which is the only one of its table that does, and its snapshot.
    fn merge_line(&self) -> Option<(&SnapshotSpec, Option<&Snap>)> {
        self.lines.iter().enumerate().find_map(|(number, line)| match &line.target {
            TargetSpec::Merge(spec) => Some((spec, self.snaps.get(&number))),
            _ => None,
        })
    }

    /// The snapshot that it merges.
    fn merged_snap(&self) -> Option<&Snap> {
        self.merge_line()?.1
    }

    /// Whether what it merges is a store that must be opened again first: a sync of it failed.
    fn is_unsynced(&self) -> bool {
        let unsynced = |snap: &Snap| snap.live.store.state() == StoreState::CommitFailed;
        self.merged_snap().is_some_and(unsynced)
    }

    /// Whether it merges, and that failed.
    fn has_failed_merge(&self) -> bool {
        self.snaps.values().any(|snap| snap.live.store.merge_mark() >= MergeMark::Failed)
    }

    /// Whether its store has nothing left to merge.
    fn is_invalid(&self) -> bool {
        self.merged_snap().is_some_and(|snap| snap.live.store.state().is_condemned())
    }
}

impl Devices {
    /// The serving devices that have something to merge by a table that a user loaded, among `name`
    /// and those above it, or among all.
    pub fn merging(&self, name: Option<&str>) -> Vec<Merging> {
        let inner = self.lock();
        // The merge of a commit belongs to its job, even before that job runs again.
        let commits = |name: &String| inner.commit_of(name).is_some();
        let commands = |name: &String| commits(name) || rollback_of(&inner, name).is_some();
        let merging = |name: &String| {
            let device = inner.devices.get(name).filter(|_| !commands(name))?;
            let snaps = &device.active.as_ref()?.snaps;
            let merges = |(line, snap): (&usize, &Snap)| {
                let target = &device.active.as_ref()?.lines[*line].target;
                let store = &snap.live.store;
                let finished = store.merge_mark() != MergeMark::None && store.entries() == 0;
                let TargetSpec::Merge(spec) = target else { return None };
                (!finished && !store.state().is_condemned()).then_some(&spec.cow)
            };
            let cow = snaps.iter().find_map(merges)?;
            let had_it = inner.devices.iter().find(|(other, device)| {
                let mut lines = device.active.iter().flat_map(|active| &active.lines);
                *other != name
                    && lines.any(|line| line.target.snapshot().is_some_and(|s| s.cow == *cow))
            });
            Some(Merging {
                device: name.clone(),
                snapshot: had_it.map_or(name, |(other, _)| other).clone(),
                cow: cow.to_string(),
                has_job: device.has_job(),
            })
        };
        on_or_all(&inner, name).iter().filter_map(merging).collect()
    }

    /// The jobs of failed rollbacks whose devices serve, among `name` and those above it.
    pub fn failed_rollbacks(&self, name: &str) -> BTreeMap<String, RollbackJob> {
        let inner = self.lock();
        let names = on_or_all(&inner, Some(name));
        let jobs = inner.state.rollbacks.iter();
        jobs.filter(|(_, job)| job.halted == Some(Halt::Failed) && names.contains(&job.device))
            .map(|(id, job)| (id.clone(), job.clone()))
            .collect()
    }

    /// The stopped rollback `id` continues as the job `new`, with that job's settings.
    ///
    /// # Errors
    /// It is running already, it has ended, or the state cannot be written.
    pub fn rollback_goes_on(&self, id: &str, new: &str) -> Result<RollbackJob, DeviceError> {
        let inner = &mut *self.lock();
        let known = inner.state.rollbacks.get(id).cloned();
        let Some(job) = known.filter(|job| job.halted.is_some() && can_begin(inner, job)) else {
            return Err(DeviceError::refused(format!("there is no rollback '{id}' to go on with")));
        };
        let job = RollbackJob { halted: None, ..job };
        self.replace(inner, id, new, job.clone())?;
        Ok(job)
    }

    /// `name` is resumed as it is: if its merge has failed, its files are opened again, as for a table that
    /// is loaded. What cannot be stays as it is, and fails the merge again.
    pub(super) fn reactivate_merge(&self, inner: &mut Inner, name: &str) {
        if let Err(error) = self.open_merged_again(inner, name) {
            tracing::error!("{error}");
        }
        let active = inner.device(name).ok().filter(|device| device.suspended);
        let active = active.and_then(|device| device.active.as_ref());
        if active.is_some_and(Active::has_failed_merge) {
            open_files_again(inner, name);
        }
    }

    /// If `name` merges a store of which a sync failed, the store is opened again, as for a table that is
    /// loaded: otherwise the merge cannot go on.
    ///
    /// # Errors
    /// The device goes on with the store as it is.
    pub(super) fn open_merged_again(
        &self,
        inner: &mut Inner,
        name: &str,
    ) -> Result<(), DeviceError> {
        let Some(active) = inner.device(name)?.active.as_ref().filter(|of| of.is_unsynced()) else {
            return Ok(());
        };
        let loaded = active.loaded();
        let paused = self.pause(inner, name, &loaded)?;
        let opened = self.swap_in(inner, name, &loaded, Box::new(|_| ()));
        go(inner, &paused);
        opened
    }

    /// Continues a stopped rollback, if `job` requests that: it is the job `id` from now on. False
    /// if there is none.
    pub(super) fn begin_again(
        &self,
        inner: &mut Inner,
        id: &str,
        job: &RollbackJob,
    ) -> Result<bool, DeviceError> {
        let device = &job.device;
        let found = rollback_of(inner, device).filter(|(_, known)| known.snapshot == job.snapshot);
        let Some((before, known)) = found else { return Ok(false) };
        if known.halted.is_none() || inner.active(device)?.is_invalid() {
            return Err(what_merges(inner, device));
        }
        if inner.device(device)?.suspended {
            return Err(DeviceError::Suspended(device.clone()));
        }
        if !can_begin(inner, known) {
            return Err(DeviceError::refused(format!(
                "the job that rolls '{device}' back was cancelled and has not ended yet; try again \
                 when it has"
            )));
        }
        let (before, job) = (before.clone(), RollbackJob { cow: known.cow.clone(), ..job.clone() });
        self.open_merged_again(inner, &job.device)?;
        self.replace(inner, &before, id, job).map(|()| true)
    }

    fn replace(
        &self,
        inner: &mut Inner,
        before: &str,
        id: &str,
        job: RollbackJob,
    ) -> Result<(), DeviceError> {
        let all = inner.state.rollbacks.clone();
        inner.state.rollbacks.remove(before);
        enter(&mut inner.state.rollbacks, id, job);
        let kept = self.keep(inner);
        if kept.is_err() {
            inner.state.rollbacks = all;
        }
        kept
    }

    /// The rollback of the job `id` stops, or has stopped, before its end. The device continues to
    /// read as the snapshot.
    ///
    /// # Errors
    /// The state cannot be written. A cancellation has no effect then; a failure is known until the
    /// end of the process.
    pub fn halt_rollback(&self, id: &str, halt: Halt) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let Some(job) = inner.state.rollbacks.get_mut(id) else { return Ok(()) };
        let settings = JobSettings { paused: false, ..job.settings };
        let halted = RollbackJob { halted: Some(halt), settings, ..job.clone() };
        let before = std::mem::replace(job, halted);
        let kept = self.keep(inner);
        if kept.is_err() && halt == Halt::Cancelled {
            inner.state.rollbacks.insert(id.into(), before);
        }
        kept
    }

    /// The rollback of the job `id` is over: a user loaded another table.
    ///
    /// # Errors
    /// The state cannot be written.
    pub fn forget_rollback(&self, id: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        inner.state.rollbacks.remove(id);
        self.keep(inner)
    }

    /// Whether a rollback or a commit that is not over has the name `id`, whether a job runs it or not.
    pub fn knows_job(&self, id: &str) -> bool {
        self.lock().state.has_job(id)
    }

    /// The user changed the settings of the job `id`, a rollback or a commit: a restart goes on with
    /// them.
    ///
    /// # Errors
    /// The state cannot be written.
    pub fn keep_settings(
        &self,
        id: &str,
        change: impl FnOnce(&mut JobSettings),
    ) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let Some(settings) = inner.state.settings_mut(id) else { return Ok(()) };
        let before = *settings;
        change(settings);
        if *settings == before { Ok(()) } else { self.keep(inner) }
    }
}

impl Inner {
    /// Forgets stopped rollbacks whose devices have other tables, which ended them: a merge that is
    /// loaded later has nothing to do with them. While a start makes its devices, some have none yet.
    pub(super) fn forget_ended_rollbacks(&mut self) {
        let devices = &self.devices;
        self.state.rollbacks.retain(|_, job| {
            let active = devices.get(&job.device).and_then(|device| device.active.as_ref());
            job.halted.is_none()
                || active.is_none_or(|active| active.merged().as_ref() == Some(&job.cow))
        });
    }
}

/// The serving devices among `name` and those above it, or among all.
pub(super) fn on_or_all(inner: &Inner, name: Option<&str>) -> Vec<String> {
    let mut names = match name {
        Some(name) => with_uppers(inner, name),
        None => inner.devices.keys().cloned().collect(),
    };
    names.retain(|name| !blocked(inner, name));
    names
}

/// Whether the job's device has its table, and no job works on it.
fn can_begin(inner: &Inner, job: &RollbackJob) -> bool {
    let has_job = inner.devices.get(&job.device).is_none_or(|device| device.has_job());
    rollback_of(inner, &job.device).is_some() && !has_job
}

/// Enters a job; another that stopped under its name gets another name.
pub(super) fn enter(jobs: &mut BTreeMap<String, RollbackJob>, id: &str, job: RollbackJob) {
    if let Some(other) = jobs.insert(id.into(), job) {
        let free = (2..).map(|n| format!("{id}-{n}")).find(|name| !jobs.contains_key(name));
        jobs.extend(free.map(|name| (name, other)));
    }
}

/// The rollback of `device`, and its job's name.
fn rollback_of<'i>(inner: &'i Inner, device: &str) -> Option<(&'i String, &'i RollbackJob)> {
    let cow = inner.devices.get(device)?.active.as_ref()?.merged()?;
    inner.state.rollbacks.iter().find(|(_, job)| job.device == device && job.cow == cow)
}

/// The refusal of other operations on `device`, whose table merges, and what to do about it.
pub(super) fn what_merges(inner: &Inner, device: &str) -> DeviceError {
    let invalid = inner.active(device).is_ok_and(Active::is_invalid);
    let sentence = match rollback_of(inner, device) {
        _ if invalid => format!(
            "the store that '{device}' merges is not valid, and nothing of it can be merged any \
             more; load a table of 'snapshot-origin' with 'table-load' and resume '{device}'"
        ),
        Some((id, RollbackJob { snapshot, halted: None, .. })) => format!(
            "the job '{id}' rolls '{device}' back to '{snapshot}'; wait until that has ended"
        ),
        Some((_, RollbackJob { snapshot, halted: Some(halt), .. })) => {
            let halted = match halt {
                Halt::Cancelled => "was cancelled",
                Halt::Failed => "failed",
            };
            format!(
                "the rollback of '{device}' to '{snapshot}' {halted} before its end; \
                 'snapshot-merge' of '{snapshot}' into '{device}' goes on with it"
            )
        }
        None => match inner.commit_of(device) {
            Some((_, CommitJob { halted_merging: Some(_), .. })) => commit::failed(device),
            Some((id, _)) => format!(
                "the job '{id}' commits '{device}' into its base; wait until that has ended"
            ),
            None => format!(
                "'{device}' merges by a table that was loaded, and keeps that; when \
                 MERGE_COMPLETED has come, load a table of 'snapshot-origin' with 'table-load' and \
                 resume '{device}'"
            ),
        },
    };
    DeviceError::refused(sentence)
}
