//! Snapshots in one call: of a live origin, on top of a live overlay, deleted, merged back.
//!
//! Owns what these commands do to tables. Each changes several devices in one plan, so that it
//! happens wholly or not at all, with one pause for the guest.

use std::path::{Path, PathBuf};

use super::build::{Plan, Snap};
use super::core::{Devices, Inner, Loaded};
use super::error::DeviceError;
use super::files::{Existing, Made, full_size, make_store, make_transient};
use super::state::MergeJob;
use crate::cow::{Persistence, StoreState};
use crate::lines::{Param, SnapshotSpec, TableLine, TargetSpec};
use crate::target::Features;
use crate::units::{ChunkSize, Sector};

/// `snapshot-create`.
#[derive(Clone, Debug)]
pub struct CreateSnapshot {
    /// The device to take a snapshot of.
    pub device: String,
    /// The snapshot's name.
    pub name: String,
    /// Where its store is to be made.
    pub cow: PathBuf,
    /// The store's chunk; 4 KiB where none is asked for.
    pub chunk: Option<ChunkSize>,
    /// The store's size in bytes; as much as could be needed where none is asked for.
    pub size: Option<u64>,
    /// How the store keeps exceptions.
    pub persistence: Persistence,
    /// Whether a store that is there is used.
    pub existing: bool,
}

/// `blockdev-snapshot-sync`.
#[derive(Clone, Debug)]
pub struct OverlaySnapshot {
    /// The device to put an overlay on.
    pub device: String,
    /// Where the overlay's store is to be made.
    pub cow: PathBuf,
    /// The name under which the old table lives on; `<device>.N` where none is asked for.
    pub below: Option<String>,
    /// Whether a store that is there is used.
    pub existing: bool,
}

fn line(len: Sector, target: TargetSpec) -> Vec<TableLine> {
    vec![TableLine { start: Sector(0), len, target }]
}

fn cow_param(path: &Path) -> Param {
    Param::from_path(path)
}

impl Devices {
    /// Takes a point in time of a live device, which goes on as an origin.
    ///
    /// # Errors
    /// Everything is as it was then; a store that was made is removed.
    pub fn create_snapshot(&self, request: &CreateSnapshot) -> Result<(), DeviceError> {
        DeviceError::check_name(&request.name)?;
        let inner = &mut *self.lock();
        let active = inner.active(&request.device)?;
        if inner.device(&request.device)?.suspended {
            return Err(DeviceError::Suspended(request.device.clone()));
        }
        if inner.devices.contains_key(&request.name) {
            return Err(DeviceError::Exists(request.name.clone()));
        }
        let len = active.table.size();
        let origin = match self.origin_of(inner, &request.device)? {
            OriginOf::Served(param) => Conversion { real: None, origin: param },
            OriginOf::Covered(real) => Conversion { real: None, origin: Param::Device(real) },
            OriginOf::Plain => {
                let real = format!("{}-real", request.device);
                if inner.devices.contains_key(&real) {
                    return Err(DeviceError::Exists(real));
                }
                Conversion { real: Some(real.clone()), origin: Param::Device(real) }
            }
        };
        let chunk = request.chunk.unwrap_or(ChunkSize::TOOLS);
        let size = request.size.unwrap_or_else(|| full_size(chunk, len.bytes()));
        let existing = if request.existing { Existing::Used } else { Existing::Refused };
        let made = match request.persistence {
            Persistence::Transient => make_transient(&request.cow, size)?,
            _ => make_store(&request.cow, chunk, size, existing)?,
        };
        if made != Made::Nothing {
            inner.state.forget_invalid(&request.cow);
        }
        self.take(inner, request, len, &origin).inspect_err(|_| made.undo(&request.cow))
    }

    fn take(
        &self,
        inner: &mut Inner,
        request: &CreateSnapshot,
        len: Sector,
        how: &Conversion,
    ) -> Result<(), DeviceError> {
        let before = inner.active(&request.device)?.loaded();
        let mut plan = Plan::new(self, inner);
        if let Some(real) = &how.real {
            plan.set(real, &before, &[])?;
        }
        let origin = line(len, TargetSpec::Origin { origin: how.origin.clone() });
        let loaded = Loaded::of(origin, before.read_only);
        plan.set(&request.device, &loaded, &[])?;
        let spec = SnapshotSpec {
            origin: Param::Device(request.device.clone()),
            cow: cow_param(&request.cow),
            persistence: request.persistence,
            chunk: request.chunk.or(Some(ChunkSize::TOOLS)),
            features: Features::default(),
        };
        let snapshot = Loaded::of(line(len, TargetSpec::Snapshot(spec)), false);
        plan.set(&request.name, &snapshot, &[])?;
        plan.follow()?;
        self.apply(plan, |_| ())
    }

    /// Puts a fresh overlay on top of a live device: its old table lives on below, read-only.
    /// Returns the name of what lives below.
    ///
    /// # Errors
    /// Everything is as it was then; a store that was made is removed.
    pub fn overlay_snapshot(&self, request: &OverlaySnapshot) -> Result<String, DeviceError> {
        let inner = &mut *self.lock();
        let active = inner.active(&request.device)?;
        let snap = active.whole_snapshot().cloned();
        if snap.as_ref().is_some_and(|snap| !snap.live.store.is_guest_disk()) {
            return Err(DeviceError::refused(format!(
                "'{}' is a snapshot of a live origin, whose writes go on into its store, so nothing \
                 can be stacked on it",
                request.device
            )));
        }
        let len = active.table.size();
        let chunk = snap.as_ref().map_or(ChunkSize::TOOLS, |s| s.live.store.geometry().chunk);
        let below = match &request.below {
            Some(name) if inner.devices.contains_key(name) => {
                return Err(DeviceError::Exists(name.clone()));
            }
            Some(name) => {
                DeviceError::check_name(name)?;
                name.clone()
            }
            None => free_name(inner, &request.device),
        };
        if !active.origin_keys.is_empty() {
            return Err(DeviceError::refused(format!(
                "'{0}' is an origin; 'snapshot-create' takes a snapshot of it",
                request.device
            )));
        }
        let existing = if request.existing { Existing::Used } else { Existing::Refused };
        let made = make_store(&request.cow, chunk, full_size(chunk, len.bytes()), existing)?;
        if made != Made::Nothing {
            inner.state.forget_invalid(&request.cow);
        }
        let stacked = self.stack(inner, request, &below, len, chunk, snap);
        stacked.inspect_err(|_| made.undo(&request.cow)).map(|()| below)
    }

    fn stack(
        &self,
        inner: &mut Inner,
        request: &OverlaySnapshot,
        below: &str,
        len: Sector,
        chunk: ChunkSize,
        snap: Option<Snap>,
    ) -> Result<(), DeviceError> {
        let before = inner.active(&request.device)?.loaded();
        let spec = SnapshotSpec {
            origin: Param::Device(below.into()),
            cow: cow_param(&request.cow),
            persistence: Persistence::Overflow,
            chunk: Some(chunk),
            features: Features::default(),
        };
        let frozen = Loaded { read_only: true, ..before.clone() };
        let shared: Vec<Snap> = match &snap {
            Some(snap) => vec![Snap { shared: true, ..snap.clone() }],
            None => inner.active(&request.device)?.snaps.values().cloned().collect(),
        };
        let mut plan = Plan::new(self, inner);
        plan.set(below, &frozen, &shared)?;
        plan.next.insert(request.device.clone(), None);
        let top = Loaded::of(line(len, TargetSpec::Snapshot(spec)), before.read_only);
        match &snap {
            Some(snap) => plan.set_on_top(&request.device, &top, snap)?,
            None => plan.set(&request.device, &top, &[])?,
        }
        plan.follow()?;
        // What was written below is made durable behind the guest's back; until then a flush
        // covers it too.
        let old = plan.inner.active(&request.device)?.table.clone();
        old.flush_set().media.iter().for_each(|medium| medium.set_owing(true));
        self.apply(plan, |_| ())?;
        if snap.is_none() {
            // A file that was written until now is a base from now on: what it is like is kept,
            // to be told from what it may be made to be. It has happened, kept or not.
            if let Err(error) = self.keep(inner) {
                tracing::error!("{error}; a change of the base would not be noticed");
            }
        }
        let table = inner.active(&request.device)?.table.clone();
        if self.config.flusher.flush(&table) {
            table.flush_set().below.iter().for_each(|medium| medium.set_owing(false));
            snap.iter().for_each(|snap| snap.live.store.set_sealed());
        }
        Ok(())
    }

    /// Deletes a snapshot: its device goes, its store file too where `delete_store` says so.
    ///
    /// # Errors
    /// Where it is no snapshot of `device`, or is used.
    pub fn delete_snapshot(
        &self,
        device: &str,
        snapshot: &str,
        delete_store: bool,
    ) -> Result<(), DeviceError> {
        let cow = {
            let inner = self.lock();
            self.snapshot_of(&inner, device, snapshot)?.live.disk.info.path.clone()
        };
        self.remove(snapshot, false)?;
        if delete_store {
            let what = format!("the snapshot is gone, but its store {} is not", cow.display());
            std::fs::remove_file(&cow).map_err(DeviceError::io(what))?;
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
    /// device goes, its store moves, and the job is kept under `id`. The merge itself is run by
    /// whoever has an executor, on the table returned by [`Devices::table`].
    ///
    /// # Errors
    /// Everything is as it was then.
    pub fn begin_merge(&self, id: &str, job: &MergeJob) -> Result<(), DeviceError> {
        let (device, snapshot) = (job.device.as_str(), job.snapshot.as_str());
        let inner = &mut *self.lock();
        let snap = self.snapshot_of(inner, device, snapshot)?;
        if let Some(user) = inner.device(snapshot)?.users.keys().next() {
            let by = format!("the export '{user}'");
            return Err(DeviceError::InUse { name: snapshot.into(), by });
        }
        if !matches!(snap.live.store.state(), StoreState::Valid | StoreState::Full) {
            return Err(DeviceError::refused(format!(
                "the snapshot '{snapshot}' is not valid, so there is nothing to roll back to"
            )));
        }
        let OriginOf::Served(origin) = self.origin_of(inner, device)? else {
            return Err(DeviceError::refused(format!("'{device}' is not an origin")));
        };
        let len = inner.active(device)?.table.size();
        if len.bytes() != snap.len {
            return Err(DeviceError::refused(format!(
                "'{device}' has another size than '{snapshot}' had when it was taken; it cannot \
                 become it"
            )));
        }
        let read_only = inner.active(device)?.read_only;
        let table = inner.active(snapshot)?.table.clone();
        if !self.config.flusher.flush(&table) {
            return Err(DeviceError::FlushFailed(snapshot.into()));
        }
        let cow = match &inner.active(snapshot)?.lines[0].target {
            TargetSpec::Snapshot(spec) => spec.clone(),
            _ => unreachable!("it is a whole snapshot"),
        };
        let mut plan = Plan::new(self, inner);
        plan.next.insert(snapshot.into(), None);
        let spec = SnapshotSpec { origin, ..cow };
        let lines = line(len, TargetSpec::Merge(spec));
        plan.set(device, &Loaded::of(lines, read_only), &[snap])?;
        plan.follow()?;
        let cow = plan.active(device).and_then(|active| active.lines[0].target.snapshot());
        let cow = cow.map(|spec| spec.cow.to_string()).unwrap_or_default();
        plan.inner.state.jobs.insert(id.into(), MergeJob { cow, ..job.clone() });
        let gone = plan.inner.devices.remove(snapshot);
        plan.next.remove(snapshot);
        let applied = self.apply(plan, |_| ());
        if applied.is_err() {
            inner.state.jobs.remove(id);
            inner.devices.extend(gone.map(|gone| (snapshot.to_owned(), gone)));
            self.keep(inner)?;
        }
        applied
    }

    /// The merge of the job `id` is over without being finished: it is not started again.
    ///
    /// # Errors
    /// Where that cannot be kept.
    pub fn forget_merge(&self, id: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        inner.state.jobs.remove(id);
        self.keep(inner)
    }

    /// The merge of the job `id` on `device` has finished: it is its origin again, or linear where
    /// no snapshot is left.
    ///
    /// # Errors
    /// The merged table stays then; it serves the same content.
    pub fn end_merge(&self, id: &str, device: &str) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let active = inner.active(device)?;
        let (len, read_only) = (active.table.size(), active.read_only);
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
        plan.set(device, &Loaded::of(line(len, target), read_only), &[])?;
        plan.follow()?;
        plan.inner.state.jobs.remove(id);
        self.apply(plan, |_| ())
    }

    fn origin_of(&self, inner: &Inner, device: &str) -> Result<OriginOf, DeviceError> {
        let active = inner.active(device)?;
        match &active.lines[..] {
            [TableLine { target: TargetSpec::Origin { origin }, .. }] => {
                Ok(OriginOf::Served(origin.clone()))
            }
            [TableLine { target: TargetSpec::Linear { dev, offset: Sector(0) }, .. }]
                if dev.device() == Some(&format!("{device}-real")) =>
            {
                Ok(OriginOf::Covered(format!("{device}-real")))
            }
            lines => match lines.iter().find(|line| line.target.snapshot().is_some()) {
                Some(line) if matches!(line.target, TargetSpec::Merge(_)) => {
                    Err(DeviceError::refused(format!(
                        "'{device}' merges a snapshot; wait until that has ended"
                    )))
                }
                Some(_) => Err(DeviceError::refused(format!(
                    "'{device}' is an overlay; 'blockdev-snapshot-sync' takes a snapshot of it"
                ))),
                None if active.origin_keys.is_empty() => Ok(OriginOf::Plain),
                None => Err(DeviceError::refused(format!(
                    "only a part of '{device}' is an origin; take the snapshot with 'table-load'"
                ))),
            },
        }
    }
}

/// What a device is to its snapshots.
enum OriginOf {
    /// It is an origin, over this.
    Served(Param),
    /// It is linear over its `-real` device, as a finished merge leaves it.
    Covered(String),
    /// It is neither.
    Plain,
}

struct Conversion {
    /// The device that the old table moves to.
    real: Option<String>,
    origin: Param,
}

fn free_name(inner: &Inner, device: &str) -> String {
    let mut number = 1;
    loop {
        let name = format!("{device}.{number}");
        if !inner.devices.contains_key(&name) {
            return name;
        }
        number += 1;
    }
}
