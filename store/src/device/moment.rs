//! One moment of one device or of several: snapshots and overlays, planned together.
//!
//! Owns the effects of `snapshot-create`, `blockdev-snapshot-sync` and `transaction` on tables:
//! every action adds to one plan, which is applied once, so that all devices stop together, the
//! state is written once, and all continue. If anything fails, nothing has changed, and new files
//! are removed. Never knows how guests are frozen; the caller confirms, as the last step before the
//! swap, that they still are. Keeps I15: the layers below a new one are committed and sealed before
//! it serves.

use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use super::build::{Active, Plan, Snap};
use super::core::{Devices, Inner, Loaded};
use super::error::DeviceError;
use super::files::{Existing, Made, MadeStores, make_store, make_transient, no_such_store};
use super::origins::no_layer;
use super::rollback::what_merges;
use super::serving::{blocked, give_way};
use super::verbs::with_uppers;
use crate::cow::{Geometry, Persistence};
use crate::lines::{Param, SnapshotSpec, TableLine, TargetSpec};
use crate::target::Features;
use crate::units::{ChunkSize, Sector};

/// An action at a moment.
#[derive(Clone, Debug)]
pub enum MomentAction {
    /// `snapshot-create`.
    Create(CreateSnapshot),
    /// `blockdev-snapshot-sync`.
    Overlay(OverlaySnapshot),
    /// `abort`: it fails, so that the actions before it are undone.
    Abort,
}

/// `snapshot-create`: a snapshot of a live device, which continues as an origin.
#[derive(Clone, Debug)]
pub struct CreateSnapshot {
    /// The device to take a snapshot of.
    pub device: String,
    /// The snapshot's name.
    pub name: String,
    /// The path of its store.
    pub cow: PathBuf,
    /// The store's chunk size; 4 KiB if none is given.
    pub chunk: Option<ChunkSize>,
    /// The store's size in bytes; the greatest that can be needed if none is given.
    pub size: Option<u64>,
    /// How the store keeps exceptions.
    pub persistence: Persistence,
    /// Whether an existing store is used.
    pub existing: bool,
}

/// `blockdev-snapshot-sync`: a new overlay on top of a live device, whose old table continues
/// below, read-only.
#[derive(Clone, Debug)]
pub struct OverlaySnapshot {
    /// The device to put an overlay on.
    pub device: String,
    /// The path of the overlay's store.
    pub cow: PathBuf,
    /// The name of the device with the old table; `<device>.N` if none is given.
    pub below: Option<String>,
    /// Whether an existing store is used.
    pub existing: bool,
}

impl MomentAction {
    /// The device whose moment it is; none of [`MomentAction::Abort`].
    pub fn device(&self) -> Option<&str> {
        match self {
            MomentAction::Create(request) => Some(&request.device),
            MomentAction::Overlay(request) => Some(&request.device),
            MomentAction::Abort => None,
        }
    }
}

impl Devices {
    /// Carries out `actions`, in their order, at one point in time of all their devices. `still` is
    /// called while the devices are stopped, right before tables change: an error there undoes
    /// everything.
    ///
    /// # Errors
    /// Nothing has changed then; new stores are removed.
    pub fn take_moment(
        &self,
        actions: &[MomentAction],
        still: &dyn Fn() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if actions.is_empty() {
            return Ok(());
        }
        let mut inner = self.lock();
        self.take_moment_of(&mut inner, actions, still)?;
        self.flush_origins(inner, actions);
        Ok(())
    }

    /// Makes the data durable that new snapshots read from their origins: a power cut would
    /// otherwise take from them what a guest had not flushed at their moment. No guest is stopped
    /// for this, and no other command waits if there are only files to sync; a store with
    /// exceptions to commit stays where it is meanwhile.
    fn flush_origins(&self, inner: MutexGuard<'_, Inner>, actions: &[MomentAction]) {
        let taken = actions.iter().filter_map(|action| match action {
            MomentAction::Create(request) => Some(&request.device),
            _ => None,
        });
        let of = |device: &String| Some((device.clone(), inner.active(device).ok()?.clone()));
        let all: Vec<_> = taken.filter_map(of).collect();
        let files_alone = |active: &Active| {
            let set = active.table.flush_set();
            set.stores.is_empty() && set.merged.is_empty()
        };
        let (later, now): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, active)| files_alone(active));
        for (device, active) in now {
            give_way(&inner);
            self.flush_origin(&device, &active);
        }
        drop(inner);
        later.iter().for_each(|(device, active)| self.flush_origin(device, active));
    }

    fn flush_origin(&self, device: &str, active: &Active) {
        if self.flush_valid(device, active).is_err() {
            tracing::error!(
                "what was written to '{device}' before its snapshot is not durable; a power cut may \
                 take it from both"
            );
        }
    }

    /// The same, in the middle of another verb.
    pub(super) fn take_moment_of(
        &self,
        inner: &mut Inner,
        actions: &[MomentAction],
        still: &dyn Fn() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut made = MadeStores::default();
        // The plan, with its open stores, is dropped before the files are removed.
        let swapped = self.swap(inner, actions, &mut made, still);
        let overlaid = swapped.inspect_err(|_| {
            inner.left_over.extend(made);
            // A start that finds the new state needs them.
            if !inner.state.file().is_stale() {
                inner.left_over.undo();
            }
        })?;
        self.seal(inner, &overlaid);
        Ok(())
    }

    fn swap(
        &self,
        inner: &mut Inner,
        actions: &[MomentAction],
        made: &mut MadeStores,
        still: &dyn Fn() -> Result<(), DeviceError>,
    ) -> Result<Vec<Overlaid>, DeviceError> {
        let plan = Plan { gives_way: true, ..Plan::new(self, inner) };
        let mut moment = Moment { plan, made, seen: Vec::new(), overlaid: Vec::new() };
        for action in actions {
            moment.add(action)?;
        }
        let Moment { mut plan, overlaid, .. } = moment;
        for Overlaid { device, .. } in &overlaid {
            // Earlier writes below are made durable in the background; until then a flush covers
            // them, too.
            let old = plan.inner.active(device)?.table.clone();
            old.flush_set().media.iter().for_each(|file| file.medium.set_left_unsynced(true));
        }
        plan.still = Some(still);
        self.apply(plan, |_| ())?;
        Ok(overlaid)
    }

    /// Makes the data below new overlays durable. Until that has succeeded, a guest's flush covers
    /// it.
    fn seal(&self, inner: &mut Inner, overlaid: &[Overlaid]) {
        // Requests that came in while guests were stopped go first.
        give_way(inner);
        for Overlaid { device, sealed } in overlaid {
            give_way(inner);
            let Ok(active) = inner.active(device) else { continue };
            if self.flush_valid(device, active).is_ok() {
                let below = &active.table.flush_set().below;
                below.iter().for_each(|file| file.medium.set_left_unsynced(false));
                sealed.iter().for_each(|snap| snap.live.store.set_sealed());
            }
        }
    }

    /// The serving devices among `name` and those above it: their guests are stopped while `name`
    /// is suspended.
    ///
    /// # Errors
    /// There is no such device.
    pub fn serving_over(&self, name: &str) -> Result<Vec<String>, DeviceError> {
        let mut inner = self.lock_unsettled();
        // A guest whose disk is being suspended could not freeze. Other guests do not matter here.
        let all = loop {
            inner.device(name)?;
            let all = with_uppers(&inner, name);
            if !all.iter().any(|name| inner.suspending.contains(name)) {
                break all;
            }
            inner = self.wait_for_rest(inner);
        };
        Ok(all.into_iter().filter(|name| !blocked(&inner, name)).collect())
    }
}

/// A device that gets an overlay.
struct Overlaid {
    device: String,
    /// The former top; none if it was a plain disk.
    sealed: Option<Snap>,
}

/// The result of the actions so far.
struct Moment<'a, 'm> {
    plan: Plan<'a>,
    made: &'m mut MadeStores,
    /// The devices that an action names.
    seen: Vec<String>,
    overlaid: Vec<Overlaid>,
}

impl Moment<'_, '_> {
    fn add(&mut self, action: &MomentAction) -> Result<(), DeviceError> {
        if let Some(device) = action.device() {
            self.plan.inner.device(device)?;
            if self.seen.iter().any(|seen| seen == device) {
                return Err(DeviceError::refused(format!(
                    "two actions of the transaction name '{device}'; one moment of it is one action"
                )));
            }
            self.seen.push(device.into());
        }
        match action {
            MomentAction::Create(request) => self.create(request),
            MomentAction::Overlay(request) => self.overlay(request),
            MomentAction::Abort => Err(DeviceError::refused(
                "the transaction was given up by its action 'abort'; nothing has changed",
            )),
        }
    }

    fn create(&mut self, request: &CreateSnapshot) -> Result<(), DeviceError> {
        let device = &request.device;
        DeviceError::check_name(&request.name)?;
        if self.plan.inner.device(device)?.suspended {
            return Err(DeviceError::Suspended(device.clone()));
        }
        self.plan.refuse_taken(&request.name)?;
        let before = self.plan.served(device)?.loaded();
        let len = self.plan.served(device)?.table.size();
        let (real, origin) = match OriginOf::device(&self.plan, device)? {
            OriginOf::Served(param) => (None, param),
            OriginOf::Covered(real) => (None, Param::Device(real)),
            OriginOf::Plain => {
                let real = format!("{device}-real");
                if request.name == real {
                    return Err(DeviceError::refused(format!(
                        "'{real}' is what the disk below '{device}' will be called; choose another \
                         name for the snapshot"
                    )));
                }
                self.plan.refuse_taken(&real)?;
                (Some(real.clone()), Param::Device(real))
            }
        };
        let chunk = request.chunk.unwrap_or(ChunkSize::TOOLS);
        let size = request.size.unwrap_or_else(|| Geometry::full_len(chunk, len.bytes()));
        self.plan.inner.disks.refuse_state(&request.cow)?;
        self.plan.give_way();
        let made = match request.persistence {
            Persistence::Transient if request.existing && !request.cow.exists() => {
                return Err(no_such_store(&request.cow));
            }
            Persistence::Transient => make_transient(&request.cow, size)?,
            _ => make_store(&request.cow, chunk, size, existing(request.existing))?,
        };
        self.was_made(made, &request.cow);
        self.plan.give_way();
        let mut changed = vec![device.clone(), request.name.clone()];
        if let Some(real) = real {
            self.plan.set(&real, &before, &[])?;
            changed.push(real);
        }
        let origin = line(len, TargetSpec::Origin { origin });
        let loaded = Loaded::of(origin, before.read_only).meaning(&before.paths);
        self.plan.set(device, &loaded, &[])?;
        let spec = SnapshotSpec {
            origin: Param::Device(device.clone()),
            cow: Param::from_path(&request.cow),
            persistence: request.persistence,
            chunk: Some(chunk),
            features: Features::default(),
        };
        let snapshot = Loaded::of(line(len, TargetSpec::Snapshot(spec)), false);
        self.plan.set(&request.name, &snapshot, &[])?;
        self.refuse_unfit(made, &request.name)?;
        self.plan.give_way();
        self.plan.follow_changes(changed)
    }

    fn overlay(&mut self, request: &OverlaySnapshot) -> Result<(), DeviceError> {
        let device = &request.device;
        let active = self.plan.served(device)?;
        let snap = active.whole_snapshot().cloned();
        if let Some(snap) = &snap
            && !self.plan.is_guest_disk(device, snap)
        {
            return Err(no_layer(device, snap, self.plan.is_served_origin(&snap.key)));
        }
        let len = active.table.size();
        let chunk = snap.as_ref().map_or(ChunkSize::TOOLS, |s| s.live.store.geometry().chunk);
        let is_of = |snap: &Snap| active.origin_keys.values().any(|key| *key == snap.key);
        let has_snapshots = self
            .plan
            .names()
            .iter()
            .filter_map(|name| self.plan.active(name))
            .any(|other| other.snaps.values().any(is_of));
        let below = match &request.below {
            Some(name) => {
                self.plan.refuse_taken(name)?;
                DeviceError::check_name(name)?;
                name.clone()
            }
            None => self.free_name(device),
        };
        let mut keys = active.origin_keys.values();
        if let Some(other) = keys.find_map(|key| self.plan.origin_beside(key, device)) {
            return Err(DeviceError::refused(format!(
                "'{other}' is an origin of the same disk as '{device}' and would go on writing to it; \
                 remove it first"
            )));
        }
        if has_snapshots {
            return Err(DeviceError::refused(format!(
                "'{device}' is an origin with snapshots; 'snapshot-create' takes another of it"
            )));
        }
        let size = Geometry::full_len(chunk, len.bytes());
        self.plan.inner.disks.refuse_state(&request.cow)?;
        self.plan.give_way();
        let made = make_store(&request.cow, chunk, size, existing(request.existing))?;
        self.was_made(made, &request.cow);
        self.plan.give_way();
        self.stack(request, &below, chunk, snap.as_ref())?;
        self.refuse_unfit(made, device)?;
        self.overlaid.push(Overlaid { device: device.clone(), sealed: snap });
        self.plan.give_way();
        self.plan.follow_changes(vec![device.clone(), below])
    }

    /// Moves the table of the device to `below` and puts an overlay on top.
    fn stack(
        &mut self,
        request: &OverlaySnapshot,
        below: &str,
        chunk: ChunkSize,
        snap: Option<&Snap>,
    ) -> Result<(), DeviceError> {
        let active = self.plan.served(&request.device)?;
        let (mut before, len) = (active.loaded(), active.table.size());
        // An origin without snapshots: as a layer it never has one.
        for line in &mut before.lines {
            if let TargetSpec::Origin { origin } = &line.target {
                line.target = TargetSpec::Linear { dev: origin.clone(), offset: Sector(0) };
            }
        }
        let shared: Vec<Snap> = match snap {
            Some(snap) => vec![Snap { shared: true, ..snap.clone() }],
            None => active.snaps.values().cloned().collect(),
        };
        let spec = SnapshotSpec {
            origin: Param::Device(below.into()),
            cow: Param::from_path(&request.cow),
            persistence: Persistence::PersistentOverflow,
            chunk: Some(chunk),
            features: Features::default(),
        };
        let frozen = Loaded { read_only: true, ..before.clone() };
        self.plan.set(below, &frozen, &shared)?;
        self.plan.give_way();
        self.plan.next.insert(request.device.clone(), None);
        let lines = line(len, TargetSpec::Snapshot(spec));
        let top = Loaded::of(lines, before.read_only);
        match snap {
            Some(snap) => self.plan.set_on_top(&request.device, &top, snap),
            None => self.plan.set(&request.device, &top, &[]),
        }
    }

    fn was_made(&mut self, made: Made, cow: &Path) {
        if made != Made::Nothing {
            self.plan.inner.state.file().forget_invalid(cow);
        }
        self.made.push(made, cow);
    }

    /// Refuses a store of `device` that keeps nothing, since it is Invalid; and a new one that holds
    /// changes: another server has used it before its lock was taken here.
    fn refuse_unfit(&self, made: Made, device: &str) -> Result<(), DeviceError> {
        let snap = self.plan.active(device).and_then(Active::whole_snapshot);
        let store = snap.map(|snap| &snap.live.store);
        match store {
            Some(store) if store.state().is_invalid() => Err(DeviceError::refused(format!(
                "the store {} is Invalid, and stays so; remove its file, or choose another",
                store.name()
            ))),
            Some(store) if made != Made::Nothing && store.log().next().0 > 0 => {
                Err(DeviceError::refused(format!(
                    "another server has used the new store {} just now; choose another file",
                    store.name()
                )))
            }
            _ => Ok(()),
        }
    }

    fn free_name(&self, device: &str) -> String {
        let free = |number: &u32| !self.plan.is_taken(&format!("{device}.{number}"));
        let number = (1..).find(free).unwrap_or_default();
        format!("{device}.{number}")
    }
}

/// The role of a device for its snapshots.
pub(super) enum OriginOf {
    /// It is an origin over this device or file.
    Served(Param),
    /// It is linear over its `-real` device, as a finished merge leaves it.
    Covered(String),
    /// It is neither.
    Plain,
}

impl OriginOf {
    /// The role of `device` once `plan` is applied.
    pub(super) fn device(plan: &Plan<'_>, device: &str) -> Result<OriginOf, DeviceError> {
        let active = plan.served(device)?;
        match &active.lines[..] {
            [TableLine { target: TargetSpec::Origin { origin }, .. }] => {
                Ok(OriginOf::Served(origin.clone()))
            }
            [TableLine { target: TargetSpec::Linear { dev, offset: Sector(0) }, .. }]
                if dev.device() == Some(&format!("{device}-real")) =>
            {
                Ok(OriginOf::Covered(format!("{device}-real")))
            }
            lines => match lines.iter().position(|line| line.target.snapshot().is_some()) {
                Some(at) if matches!(lines[at].target, TargetSpec::Merge(_)) => {
                    Err(what_merges(plan.inner, device))
                }
                Some(at) => Err(match active.snaps.get(&at) {
                    Some(snap) if plan.is_served_origin(&snap.key) => no_layer(device, snap, true),
                    Some(snap) if !snap.is_overflowing() => no_layer(device, snap, false),
                    _ => DeviceError::refused(format!(
                        "'{device}' is an overlay; 'blockdev-snapshot-sync' takes a snapshot of it"
                    )),
                }),
                None if active.origin_keys.is_empty() => Ok(OriginOf::Plain),
                None => Err(DeviceError::refused(format!(
                    "only a part of '{device}' is an origin; take the snapshot with 'table-load'"
                ))),
            },
        }
    }
}

fn existing(used: bool) -> Existing {
    if used { Existing::Required } else { Existing::Refused }
}

/// A table of one line.
pub(super) fn line(len: Sector, target: TargetSpec) -> Vec<TableLine> {
    vec![TableLine { start: Sector(0), len, target }]
}
