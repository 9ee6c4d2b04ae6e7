//! The end of a snapshot in one call: deletion, or merge into its origin.
//!
//! Owns what these commands do to tables. Each changes several devices in one plan, so that it
//! happens wholly or not at all, with one pause for the guest.

use std::path::{Path, PathBuf};

use super::build::{Plan, Snap};
use super::core::{Device, Devices, Inner, Loaded};
use super::error::DeviceError;
use super::moment::{OriginOf, line};
use super::removal::refuse_used;
use super::rollback::enter;
use super::state::RollbackJob;
use crate::cow::owed::remove_store;
use crate::cow::{Persistence, StoreState};
use crate::io::{FileInfo, Identity};
use crate::lines::{SnapshotSpec, TableLine, TargetSpec};
use crate::units::Sector;

impl Devices {
    /// Deletes a snapshot: its device, and its store file if `delete_store` is set.
    ///
    /// # Errors
    /// It is not a snapshot of `device`, or is used; or its store is to be deleted, and a table of
    /// another device names that, or another file has its name by now. If the file cannot be deleted, the device is gone all the same.
    pub fn delete_snapshot(
        &self,
        device: &str,
        snapshot: &str,
        delete_store: bool,
    ) -> Result<(), DeviceError> {
        // Until the end: another client may load a table for the store, and take it over.
        let inner = &mut *self.lock();
        if let Some(cow) = lost_in_memory(inner, device, snapshot)? {
            if delete_store && cow.exists() {
                return Err(other_than_the_store(&cow));
            }
            return self.remove_from(inner, snapshot, false);
        }
        let store = self.snapshot_of(inner, device, snapshot)?.live.disk.info.clone();
        let cow = &store.path;
        if delete_store && store.block_device {
            return Err(DeviceError::refused(format!(
                "the store {} is a block device, which cannot be deleted; leave 'delete-store' out",
                cow.display()
            )));
        }
        if delete_store {
            refuse_replaced(&store)?;
            refuse_named(inner, snapshot, cow)?;
        }
        self.remove_from(inner, snapshot, false)?;
        if delete_store {
            let what = format!("the snapshot is gone, but its store {} is not", cow.display());
            // Another store may get its name.
            let was_invalid = inner.state.file().forget_invalid(cow);
            remove_store(cow).map_err(DeviceError::io(what)).inspect_err(|_| {
                inner.state.file().recall_invalid(&was_invalid);
            })?;
            if !was_invalid.is_empty()
                && let Err(error) = self.keep(inner)
            {
                tracing::error!(
                    "{error}; a new store {} would be taken for Invalid",
                    cow.display()
                );
            }
        }
        Ok(())
    }

    /// The live snapshot `snapshot` of the origin that `device` serves.
    pub(super) fn snapshot_of(
        &self,
        inner: &Inner,
        device: &str,
        snapshot: &str,
    ) -> Result<Snap, DeviceError> {
        let origin = inner.active(device)?;
        let snap = inner.active(snapshot)?.whole_snapshot().cloned();
        let of = |snap: &Snap| origin.origin_keys.values().any(|key| *key == snap.key);
        snap.filter(of).ok_or_else(|| {
            DeviceError::refused(format!("'{snapshot}' is not a snapshot of the device '{device}'"))
        })
    }

    /// Turns `job.device` into its snapshot `job.snapshot`, to be merged back: the snapshot's
    /// device is removed, its store moves, and the job is kept under `id`. The caller runs the
    /// merge with its own executor; [`Devices::attach`] gives it the table. If the same rollback
    /// stopped before its end, it continues.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn begin_rollback(&self, id: &str, job: &RollbackJob) -> Result<(), DeviceError> {
        let (device, snapshot) = (job.device.as_str(), job.snapshot.as_str());
        let inner = &mut *self.lock();
        if self.begin_again(inner, id, job)? {
            return Ok(());
        }
        let snap = self.snapshot_of(inner, device, snapshot)?;
        refuse_used(inner, snapshot)?;
        // One that overflowed has all that it had: only new writes to it failed.
        let state = snap.live.store.state();
        if !matches!(state, StoreState::Valid | StoreState::Full | StoreState::Overflow) {
            return Err(DeviceError::refused(format!(
                "the snapshot '{snapshot}' is not valid, so there is nothing to roll back to"
            )));
        }
        let OriginOf::Served(origin) = OriginOf::device(&Plan::new(self, inner), device)? else {
            return Err(DeviceError::refused(format!("'{device}' is not an origin")));
        };
        let len = inner.active(device)?.table.size();
        if len.bytes() != snap.len {
            return Err(DeviceError::refused(format!(
                "'{device}' has another size than '{snapshot}' had when it was taken; it cannot \
                 become it"
            )));
        }
        let (target, source) = (inner.active(device)?, inner.active(snapshot)?);
        let (read_only, paths) = (target.read_only, target.paths.and(&source.paths));
        self.flush_valid(snapshot, inner.active(snapshot)?)?;
        let cow = match &inner.active(snapshot)?.lines[0].target {
            TargetSpec::Snapshot(spec) => spec.clone(),
            _ => unreachable!("it is a whole snapshot"),
        };
        let mut plan = Plan::new(self, inner);
        plan.next.insert(snapshot.into(), None);
        let spec = SnapshotSpec { origin, ..cow };
        let lines = line(len, TargetSpec::Merge(spec));
        plan.set(device, &Loaded::of(lines, read_only).meaning(&paths), &[snap])?;
        plan.follow()?;
        let cow = plan.active(device).and_then(|active| active.lines[0].target.snapshot());
        let cow = cow.map(|spec| spec.cow.to_string()).unwrap_or_default();
        let rollbacks = plan.inner.state.rollbacks.clone();
        let others = &mut plan.inner.state.rollbacks;
        // A job of a table that was replaced since.
        others.retain(|_, other| other.device != device);
        enter(others, id, RollbackJob { cow, ..job.clone() });
        let gone = plan.inner.devices.remove(snapshot);
        plan.next.remove(snapshot);
        plan.undo = Box::new(|inner| {
            inner.state.rollbacks = rollbacks;
            inner.devices.extend(gone.map(|gone| (snapshot.to_owned(), gone)));
        });
        self.apply(plan, |_| ())
    }

    /// The merge of the job `id` on `device` has finished: the device is its origin again, or
    /// linear if no snapshot is left.
    ///
    /// # Errors
    /// The merged table stays then; its content is the same.
    pub fn end_rollback(&self, id: &str, device: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let active = inner.active(device)?;
        let (len, read_only) = (active.table.size(), active.read_only);
        let paths = active.paths.clone();
        let origin = match &active.lines[..] {
            [TableLine { target: TargetSpec::Merge(spec), .. }] => spec.origin.clone(),
            _ => return Err(DeviceError::refused(format!("'{device}' does not merge"))),
        };
        let key = active.origin_keys.values().next().cloned();
        let others = inner.devices.iter().filter(|(name, _)| *name != device).any(|(_, other)| {
            let active = other.active.as_ref();
            active.is_some_and(|a| a.snaps.values().any(|s| Some(&s.key) == key.as_ref()))
        });
        let target = if others {
            TargetSpec::Origin { origin }
        } else {
            TargetSpec::Linear { dev: origin, offset: Sector(0) }
        };
        let mut plan = Plan::new(self, inner);
        let loaded = Loaded::of(line(len, target), read_only).meaning(&paths);
        plan.set(device, &loaded, &[])?;
        plan.follow()?;
        let rollbacks = plan.inner.state.rollbacks.clone();
        plan.inner.state.rollbacks.remove(id);
        // The job stays known, and can be retried.
        plan.undo = Box::new(|inner| inner.state.rollbacks = rollbacks);
        self.apply(plan, |_| ())
    }
}

/// Refuses to delete what has the name of `store` if that is another file: the store was moved.
fn refuse_replaced(store: &FileInfo) -> Result<(), DeviceError> {
    match Identity::of_path(&store.path) {
        Ok(identity) if identity != store.identity => Err(other_than_the_store(&store.path)),
        _ => Ok(()),
    }
}

fn other_than_the_store(path: &Path) -> DeviceError {
    DeviceError::refused(format!(
        "{} is another file than the snapshot's store, which was moved or removed; leave \
         'delete-store' out, or move that file elsewhere",
        path.display()
    ))
}

/// The path of the store of `snapshot`, a snapshot of what `device` serves that was in memory, and of
/// which nothing is left.
fn lost_in_memory(
    inner: &Inner,
    device: &str,
    snapshot: &str,
) -> Result<Option<PathBuf>, DeviceError> {
    let (origin, lost) = (inner.active(device)?, inner.active(snapshot)?);
    let [TableLine { target: TargetSpec::Snapshot(spec), .. }] = &lost.lines[..] else {
        return Ok(None);
    };
    let served = |line: &TableLine| matches!(&line.target, TargetSpec::Origin { origin } if *origin == spec.origin);
    let of = spec.origin.device() == Some(device) || origin.lines.iter().any(served);
    let is_lost = lost.lost.contains_key(&0) && spec.persistence == Persistence::Transient;
    Ok(spec.cow.path().filter(|_| of && is_lost).map(Path::to_owned))
}

/// Refuses to delete the store `cow` of `snapshot` if a table of another device names the file: one
/// that is to take the store over, or that reads it as a disk.
fn refuse_named(inner: &Inner, snapshot: &str, cow: &Path) -> Result<(), DeviceError> {
    let Ok(store) = Identity::of_path(cow) else { return Ok(()) };
    let is_it = |path: &Path| Identity::of_path(path).is_ok_and(|of| of == store);
    let names_it = |lines: &[TableLine]| {
        let params = lines.iter().flat_map(|line| line.target.params());
        params.filter_map(|param| param.path()).any(is_it)
    };
    let uses = |(other, device): &(&String, &Device)| {
        *other != snapshot
            && (device.active.as_ref().is_some_and(|active| names_it(&active.lines))
                || device.inactive.as_ref().is_some_and(|loaded| names_it(&loaded.lines)))
    };
    match inner.devices.iter().find(uses) {
        None => Ok(()),
        Some((other, _)) => Err(DeviceError::refused(format!(
            "a table of '{other}' names the store {}, and would lose it; clear or replace that table \
             first, or leave 'delete-store' out",
            cow.display()
        ))),
    }
}
