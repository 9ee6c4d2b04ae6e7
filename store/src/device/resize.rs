//! `block_resize`: a device is extended at its end, together with the devices and files below it.
//!
//! Owns which tables can grow without being written again, and the length of the files below them:
//! a file is extended, durably, before a table that needs it, and is restored if the resize fails.
//! Never makes anything shorter.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::build::Plan;
use super::core::{DeviceEvent, Devices, Inner, Loaded};
use super::disks::Disk;
use super::error::DeviceError;
use super::handover::{can_move, reactivate};
use super::serving::go;
use super::verbs::with_uppers;
use crate::io::{Identity, OpenMode};
use crate::lines::{Param, TargetSpec};
use crate::units::{MOST_SECTORS, SECTOR_SIZE, Sector};

/// The changes for a resize, from the lowest device up.
#[derive(Default)]
struct Growth {
    tables: Vec<(String, Loaded)>,
    /// Files by their paths and what these mean, and the bytes that they need.
    files: Vec<(PathBuf, Option<Identity>, u64)>,
}

/// A file that was extended.
struct Grown {
    disk: Arc<Disk>,
    before: u64,
}

impl Devices {
    /// Gives a device `bytes`. If it has that size already, only the length of the stores below it
    /// is read again.
    ///
    /// # Errors
    /// It would shrink, or its end cannot grow by itself. Nothing has changed then.
    pub fn resize(&self, name: &str, bytes: u64) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let before = inner.active(name)?.table.size();
        if !bytes.is_multiple_of(SECTOR_SIZE) {
            return Err(DeviceError::refused(format!(
                "{bytes} bytes are no whole number of sectors; give a multiple of {SECTOR_SIZE}"
            )));
        }
        let size = Sector::from_bytes(bytes);
        if size < before {
            return Err(DeviceError::refused(format!(
                "'{name}' has {} bytes and is not made smaller, which would lose what is there; \
                 load a shorter table when nothing exports it",
                before.bytes()
            )));
        }
        let mut growth = Growth::default();
        growth.of(inner, name, size)?;
        let grown = self.grow_files(inner, &growth.files)?;
        if let Err(error) = self.swap_longer(inner, name, &growth.tables) {
            grown.iter().for_each(Grown::undo);
            return Err(error);
        }
        if size != before {
            self.event(DeviceEvent::Resized { device: name.into(), bytes });
        }
        Ok(())
    }

    fn swap_longer(
        &self,
        inner: &mut Inner,
        name: &str,
        tables: &[(String, Loaded)],
    ) -> Result<(), DeviceError> {
        let serves = !inner.device(name)?.suspended;
        if serves {
            let loaded = inner.active(name)?.loaded();
            self.pause(inner, name, &loaded)?;
        }
        let mut plan = Plan::new(self, inner);
        let swapped = tables
            .iter()
            .try_for_each(|(name, loaded)| {
                let active = plan.inner.active(name)?;
                let snaps = active.snaps.iter();
                let moves = snaps.filter(|(line, snap)| can_move(snap, &loaded.lines[**line]));
                let reuse: Vec<_> = moves.map(|(_, snap)| snap.clone()).collect();
                plan.set(name, loaded, &reuse)
            })
            .and_then(|()| plan.follow())
            .and_then(|()| {
                self.apply(plan, |inner| {
                    tables.iter().for_each(|(name, _)| reactivate(inner, name));
                })
            });
        if swapped.is_err() && serves {
            go(inner, &with_uppers(inner, name));
        }
        swapped
    }

    fn grow_files(
        &self,
        inner: &mut Inner,
        files: &[(PathBuf, Option<Identity>, u64)],
    ) -> Result<Vec<Grown>, DeviceError> {
        let mut grown: Vec<Grown> = Vec::new();
        for (path, meant, bytes) in files {
            match self.grow_file(inner, (path, *meant), *bytes) {
                Ok(one) => grown.extend(one),
                Err(error) => {
                    grown.iter().for_each(Grown::undo);
                    return Err(error);
                }
            }
        }
        Ok(grown)
    }

    /// None if the file is long enough.
    fn grow_file(
        &self,
        inner: &mut Inner,
        (path, meant): (&Path, Option<Identity>),
        bytes: u64,
    ) -> Result<Option<Grown>, DeviceError> {
        let disk = inner.disks.open(path, OpenMode::ReadWrite, meant)?;
        let before = disk.len()?;
        // A block device keeps its length; if it is too short, building the table reports it.
        if before >= bytes || disk.info.block_device {
            return Ok(None);
        }
        let longer = disk.info.file.set_len(bytes).and_then(|()| {
            // A guest may be flushing it.
            match self.config.flusher.sync(&disk.medium) {
                true => Ok(()),
                false => Err(io::Error::other("its length cannot be made durable")),
            }
        });
        let one = Grown { disk, before };
        if longer.is_err() {
            one.undo();
        }
        let what = format!("cannot make {} longer", path.display());
        longer.map_err(DeviceError::io(what)).map(|()| Some(one))
    }
}

impl Growth {
    /// Collects the changes for the device `name` to have `size`.
    fn of(&mut self, inner: &Inner, name: &str, size: Sector) -> Result<(), DeviceError> {
        if size.0 > MOST_SECTORS {
            return Err(DeviceError::refused(format!(
                "'{name}' would have {size} sectors, and a device has at most 8 PiB"
            )));
        }
        let active = inner.active(name)?;
        let mut loaded = active.loaded();
        let before = active.table.size();
        if size > before
            && let Some(line) = loaded.lines.last_mut()
        {
            if let Some(snapshot) = snapshot_of(inner, name) {
                return Err(DeviceError::refused(format!(
                    "'{snapshot}' is a snapshot of '{name}' as long as that is now, and nothing \
                     could be rolled back to it any more; merge or delete it first"
                )));
            }
            line.len = Sector(size.0 - line.start.0);
            let (below, end) = match &line.target {
                TargetSpec::Zero | TargetSpec::Error => (None, Sector(0)),
                TargetSpec::Linear { dev, offset } => {
                    (Some(dev), Sector(offset.0.saturating_add(line.len.0)))
                }
                TargetSpec::Origin { origin } => (Some(origin), line.len),
                TargetSpec::Snapshot(spec) | TargetSpec::Merge(spec) => {
                    return Err(DeviceError::refused(format!(
                        "'{name}' is a {} and as long as '{}' below it; make that longer, load a \
                         table of {size} sectors, and resume",
                        line.target.name(),
                        spec.origin
                    )));
                }
            };
            match below {
                Some(Param::Device(below)) if inner.active(below)?.table.size() < end => {
                    self.of(inner, below, end)?;
                }
                Some(Param::Path(path)) if !active.read_only => {
                    let bytes = end.0.saturating_mul(SECTOR_SIZE);
                    self.files.push((path.clone(), active.paths.get(path), bytes));
                }
                _ => {}
            }
        }
        self.tables.push((name.into(), loaded));
        Ok(())
    }
}

/// A snapshot of the origin that `name` is.
fn snapshot_of<'a>(inner: &'a Inner, name: &str) -> Option<&'a String> {
    let keys = &inner.active(name).ok()?.origin_keys;
    let snapshots = inner.devices.iter().filter(|(other, _)| *other != name);
    let of = |active: &super::build::Active| {
        active.snaps.values().any(|snap| keys.values().any(|key| *key == snap.key))
    };
    let mut of_it = snapshots.filter(|(_, device)| device.active.as_ref().is_some_and(of));
    of_it.next().map(|(snapshot, _)| snapshot)
}

impl Grown {
    fn undo(&self) {
        if let Err(error) = self.disk.info.file.set_len(self.before) {
            let path = self.disk.info.path.display();
            tracing::warn!("{path} stays longer than it needs to be: {error}");
        }
    }
}
