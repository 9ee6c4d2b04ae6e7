//! The end of a commit from the served device into a base below all layers: the device's own store
//! is merged into the base, and the device becomes what the base was.
//!
//! Owns the two changes of tables: to `snapshot-merge`, and to the base's. Never merges: that
//! happens as in a rollback, beside these changes.

use super::{Commit, linear, taken, whole};
use crate::device::build::Plan;
use crate::device::core::{Devices, Inner, Loaded};
use crate::device::error::DeviceError;
use crate::device::state::CommitJob;
use crate::lines::{Param, SnapshotSpec, TableLine, TargetSpec};
use crate::units::Sector;

/// How the served device's own store is committed into the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pivot {
    /// The device now has a `snapshot-merge` table; call [`Devices::end_pivot`] when the merge has
    /// finished.
    Merges,
    /// Call [`Devices::pivot_step`] for each next step, until it returns `Done`.
    Steps,
}

impl Devices {
    /// The user completes the job `id`, of whose chain only the device's own store is left. If the
    /// base is below all layers, the device takes a `snapshot-merge` table over it; the caller runs
    /// the merge with its own executor.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn pivot(&self, id: &str) -> Result<Pivot, DeviceError> {
        let inner = &mut *self.lock();
        let (job, mut commit) = taken(inner, id)?;
        let pivoted = CommitJob { pivoted: true, ..job.clone() };
        inner.state.commits.insert(id.into(), pivoted);
        let into_layer = job.base.as_ref().is_some_and(|base| inner.is_below(&job, base));
        let changed = if into_layer {
            self.keep(inner).map(|()| Pivot::Steps)
        } else {
            self.merge_into_base(inner, id, &job).map(|()| {
                commit.writer = None;
                Pivot::Merges
            })
        };
        if changed.is_err() {
            inner.state.commits.insert(id.into(), job);
        }
        inner.commits.insert(id.into(), commit);
        changed
    }

    fn merge_into_base(
        &self,
        inner: &mut Inner,
        id: &str,
        job: &CommitJob,
    ) -> Result<(), DeviceError> {
        let cut = inner.cut(job)?;
        if !cut.go.is_empty() {
            return Err(DeviceError::refused(format!(
                "'{}' has layers that are not committed yet",
                job.device
            )));
        }
        self.refuse_cut(inner, &cut)?;
        let active = inner.active(&job.device)?;
        let (loaded, snap) = (active.loaded(), whole(inner, &job.device)?);
        self.flush_valid(&job.device, active)?;
        let TargetSpec::Snapshot(spec) = &loaded.lines[0].target else {
            return Err(DeviceError::refused(format!("'{}' is not an overlay", job.device)));
        };
        let len = loaded.lines[0].len;
        let merge = TargetSpec::Merge(SnapshotSpec { origin: cut.base.param(), ..spec.clone() });
        let lines = vec![TableLine { start: Sector(0), len, target: merge }];
        let below = match cut.base.device() {
            Some(name) => Some((name, inner.active(name)?.loaded())),
            None => None,
        };
        let mut plan = Plan::new(self, inner);
        if let Some((name, loaded)) = below {
            plan.set(name, &Loaded { read_only: false, ..loaded }, &[])?;
        }
        plan.set(&job.device, &Loaded { lines, ..loaded.clone() }, &[snap])?;
        plan.follow()?;
        plan.undo = Box::new(|inner| _ = inner.state.commits.insert(id.into(), job.clone()));
        self.apply(plan, |_| ())
    }

    /// After a restart, takes the reservations of the job `id`, which the user has completed,
    /// again.
    ///
    /// # Errors
    /// Others use one of its reservations.
    pub fn resume_pivot(&self, id: &str) -> Result<Pivot, DeviceError> {
        let inner = &mut *self.lock();
        let Some(job) = inner.state.commits.get(id).cloned() else {
            return Err(DeviceError::refused(format!("there is no commit '{id}'")));
        };
        if merge_base(inner, &job.device).is_ok() {
            self.hold_merge(inner, id, &job)?;
            return Ok(Pivot::Merges);
        }
        let commit = match &job.base {
            Some(base) if inner.is_below(&job, base) => {
                let cut = inner.cut(&job)?;
                let mut commit = self.hold(inner, id, &job, &cut)?.0;
                commit.writer = Some(self.writer(inner, &job.device, &cut)?);
                commit
            }
            _ => Commit::of(&job.device),
        };
        inner.commits.insert(id.into(), commit);
        Ok(Pivot::Steps)
    }

    pub(super) fn hold_merge(
        &self,
        inner: &mut Inner,
        id: &str,
        job: &CommitJob,
    ) -> Result<(), DeviceError> {
        let base = merge_base(inner, &job.device)?;
        let active = inner.active(&job.device)?;
        let media = active.snaps.values().flat_map(|snap| snap.origin.media());
        let files = media.map(|medium| self.identity(medium.file)).collect();
        let mut held: Vec<String> = base.device().map(str::to_owned).into_iter().collect();
        held.extend(inner.under(base.device()));
        let chain = [job.device.clone()].into_iter().chain(held.clone()).collect();
        let commit = Commit { chain, held, files, ..Commit::of(&job.device) };
        inner.commits.insert(id.into(), commit);
        Ok(())
    }

    /// The merge of the job `id` has finished: its device becomes what the base was.
    ///
    /// # Errors
    /// The merged table stays then; its content is the same.
    pub fn end_pivot(&self, id: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let (job, commit) = taken(inner, id)?;
        inner.state.commits.remove(id);
        let ended = self.become_base(inner, id, &job);
        if ended.is_err() {
            inner.state.commits.insert(id.into(), job);
            inner.commits.insert(id.into(), commit);
        }
        ended
    }

    fn become_base(&self, inner: &mut Inner, id: &str, job: &CommitJob) -> Result<(), DeviceError> {
        let device = job.device.as_str();
        let base = merge_base(inner, device)?;
        let active = inner.active(device)?;
        let (len, read_only) = (active.table.size(), active.read_only);
        let below = base.device().map(|name| inner.active(name)).transpose()?;
        // A longer one stays below: the guest's disk keeps its size.
        let same = below.filter(|below| below.table.size() == len);
        let loaded = match same {
            Some(below) => Loaded { read_only, ..below.loaded() },
            None => Loaded::of(linear(len, base), read_only).meaning(&active.paths),
        };
        let gone = same.is_some().then(|| merge_base(inner, device)).transpose()?;
        let gone = gone.and_then(|base| base.device().map(str::to_owned));
        let mut plan = Plan::new(self, inner);
        if let Some(name) = &gone {
            plan.next.insert(name.clone(), None);
        }
        plan.set(device, &loaded, &[])?;
        plan.follow()?;
        plan.undo = Box::new(|inner| _ = inner.state.commits.insert(id.into(), job.clone()));
        self.apply(plan, |inner| {
            if let Some(name) = &gone {
                inner.devices.remove(name);
            }
        })
    }
}

/// The device or file that `device` merges into.
fn merge_base(inner: &Inner, device: &str) -> Result<Param, DeviceError> {
    match &inner.active(device)?.lines[..] {
        [TableLine { target: TargetSpec::Merge(spec), .. }] => Ok(spec.origin.clone()),
        _ => Err(DeviceError::refused(format!("'{device}' does not merge"))),
    }
}
