//! A plan: which devices change together, and their new tables, built beside the live ones.
//!
//! Owns active tables, and the question which other tables must change with a table. Never knows
//! what a line becomes (`targets` does). Workers see no change until a plan is applied; dropping a
//! plan leaves everything as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::core::{Devices, Inner, Loaded};
use super::disks::Disk;
use super::error::DeviceError;
use super::guards::on_top;
use super::handover::Lost;
use super::live::{Listed, Live, LiveFor, Wanted};
use super::origins::OriginKey;
use super::paths::Paths;
use super::serving::give_way;
use super::targets::read_layers;
use crate::cow::Persistence;
use crate::exception::ExceptionTable;
use crate::lines::{TableLine, TargetSpec};
use crate::table::Table;
use crate::target::{Backing, Exceptions, Features};
use crate::wake::WakeSet;

/// One snapshot line of an active table, live.
#[derive(Clone, Debug)]
pub(super) struct Snap {
    pub(super) live: Arc<Live>,
    pub(super) table: Arc<ExceptionTable>,
    /// By layer, from the bottom; the last is `live`.
    pub(super) layers: Vec<Arc<Live>>,
    pub(super) key: OriginKey,
    pub(super) origin: Backing,
    pub(super) len: u64,
    /// Whether `table` is that of a layer above.
    pub(super) shared: bool,
    /// What becomes of its discards.
    pub(super) features: Features,
}

impl Snap {
    /// Whether the store `live` is a layer below its own.
    pub(super) fn lies_on(&self, live: &Arc<Live>) -> bool {
        self.layers[..self.layers.len() - 1].iter().any(|lower| Arc::ptr_eq(lower, live))
    }

    /// Whether its store only stops to take changes when it is full (PO).
    pub(super) fn is_overflowing(&self) -> bool {
        self.live.store.persistence() == Persistence::PersistentOverflow
    }

    pub(super) fn exceptions(&self) -> Exceptions {
        Exceptions {
            table: self.table.clone(),
            layers: self.layers.iter().map(|live| live.store.clone()).collect(),
            origin: self.origin.clone(),
            len: self.len,
        }
    }
}

/// An active table and the objects that it keeps alive.
#[derive(Clone, Debug)]
pub(super) struct Active {
    pub(super) lines: Vec<TableLine>,
    pub(super) read_only: bool,
    pub(super) table: Arc<Table>,
    /// By line.
    pub(super) snaps: BTreeMap<usize, Snap>,
    /// By line: snapshots that have no store, and why.
    pub(super) lost: BTreeMap<usize, Lost>,
    /// By line: of `snapshot-origin` and `snapshot-merge`.
    pub(super) origin_keys: BTreeMap<usize, OriginKey>,
    pub(super) disks: Vec<Arc<Disk>>,
    /// The files that its paths mean.
    pub(super) paths: Paths,
}

impl Active {
    pub(super) fn loaded(&self) -> Loaded {
        let lost = self.lost.clone();
        Loaded { lost, ..Loaded::of(self.lines.clone(), self.read_only) }.meaning(&self.paths)
    }

    /// Whether a line of it names the device `name`.
    pub(super) fn names(&self, name: &str) -> bool {
        lines_name(&self.lines, name)
    }

    /// The only line's snapshot, if there is only this line: others can be stacked on it.
    pub(super) fn whole_snapshot(&self) -> Option<&Snap> {
        match &self.lines[..] {
            [TableLine { target: TargetSpec::Snapshot(_), .. }] => self.snaps.get(&0),
            _ => None,
        }
    }

    /// The store of its snapshot, if it has one and no other.
    pub(super) fn only_store(&self) -> Option<&Arc<Live>> {
        let mut snaps = self.snaps.values();
        snaps.next().filter(|_| snaps.next().is_none()).map(|snap| &snap.live)
    }

    /// Whether it uses the exception table of a layer above, which also has entries that this
    /// device must not show: it must not serve so.
    pub(super) fn shares_table(&self) -> bool {
        self.snaps.values().any(|snap| snap.shared)
    }
}

pub(super) fn lines_name(lines: &[TableLine], name: &str) -> bool {
    lines.iter().flat_map(|line| line.target.params()).any(|p| p.device() == Some(name))
}

/// What else is undone with a plan.
pub(super) type Undo<'a> = Box<dyn FnOnce(&mut Inner) + 'a>;

/// Devices that change together: `None` for a removed one.
pub(super) struct Plan<'a> {
    pub(super) devices: &'a Devices,
    pub(super) inner: &'a mut Inner,
    pub(super) next: BTreeMap<String, Option<Active>>,
    /// Suspended devices that serve again once the plan is applied.
    pub(super) released: Vec<String>,
    /// Asked while all workers are stopped, right before the tables change: the last check that
    /// can fail.
    pub(super) still: Option<&'a dyn Fn() -> Result<(), DeviceError>>,
    /// Takes back what was changed for it beforehand, if it is not applied.
    pub(super) undo: Undo<'a>,
    /// Whether it yields to workers: none was stopped for it, and none is before it is applied.
    pub(super) gives_way: bool,
}

impl<'a> Plan<'a> {
    pub(super) fn new(devices: &'a Devices, inner: &'a mut Inner) -> Self {
        Plan {
            devices,
            inner,
            next: BTreeMap::new(),
            released: Vec::new(),
            still: None,
            undo: Box::new(|_| ()),
            gives_way: false,
        }
    }

    /// Yields between two of its steps.
    pub(super) fn give_way(&self) {
        if self.gives_way {
            give_way(self.inner);
        }
    }

    /// The device's table after the plan.
    pub(super) fn active(&self, name: &str) -> Option<&Active> {
        match self.next.get(name) {
            Some(next) => next.as_ref(),
            None => self.inner.devices.get(name)?.active.as_ref(),
        }
    }

    /// The table that will serve the device.
    pub(super) fn served(&self, name: &str) -> Result<&Active, DeviceError> {
        if !self.is_taken(name) {
            return Err(DeviceError::NotFound(name.into()));
        }
        self.active(name).ok_or_else(|| DeviceError::NoTable(name.into()))
    }

    /// Whether a device of this name exists, or will exist.
    pub(super) fn is_taken(&self, name: &str) -> bool {
        self.inner.devices.contains_key(name) || self.next.contains_key(name)
    }

    pub(super) fn refuse_taken(&self, name: &str) -> Result<(), DeviceError> {
        if self.is_taken(name) { Err(DeviceError::Exists(name.into())) } else { Ok(()) }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.inner.devices.keys().chain(self.next.keys()).cloned().collect();
        names.sort();
        names.dedup();
        names
    }

    /// Gives a device a table; `reuse` are live snapshots that may move to it.
    pub(super) fn set(
        &mut self,
        name: &str,
        loaded: &Loaded,
        reuse: &[Snap],
    ) -> Result<(), DeviceError> {
        let active = self.build(name, loaded, reuse)?;
        self.next.insert(name.into(), Some(active));
        Ok(())
    }

    /// Builds a device's table again, with the devices that joined the plan since.
    pub(super) fn renew(&mut self, name: &str) -> Result<(), DeviceError> {
        let Some(active) = self.active(name) else { return Ok(()) };
        let loaded = active.loaded();
        let snaps: Vec<Snap> = active.snaps.values().cloned().collect();
        self.set(name, &loaded, &snaps)
    }

    /// Gives a layer that others are stacked on its own exception table, read from its stores, so
    /// that it can serve.
    pub(super) fn own_exception_table(&mut self, name: &str) -> Result<(), DeviceError> {
        let Some(active) = self.active(name) else { return Ok(()) };
        let loaded = active.loaded();
        let mut snaps = Vec::new();
        for snap in active.snaps.values() {
            snaps.push(self.own_table(name, snap)?);
        }
        self.set(name, &loaded, &snaps)
    }

    /// The snapshot `snap` of the device `name` with its own exception table.
    pub(super) fn own_table(&self, name: &str, snap: &Snap) -> Result<Snap, DeviceError> {
        if !snap.shared {
            return Ok(snap.clone());
        }
        // The stores' lists are complete only once nothing is owed.
        if let Some(active) = self.active(name) {
            self.devices.flush_valid(name, active)?;
        }
        let chunk = snap.live.store.geometry().chunk;
        let read = read_layers(&self.devices.config.memory, &snap.layers, chunk, snap.len);
        let table = Arc::new(read.inspect_err(|_| self.note_failed_syncs())?);
        Ok(Snap { table, shared: false, ..snap.clone() })
    }

    /// After a store that may be served could not be opened: the cause may be a sync whose error is
    /// not reported again.
    pub(super) fn note_failed_syncs(&self) {
        let active = self.inner.devices.values().filter_map(|device| device.active.as_ref());
        let snaps = active.flat_map(|active| active.snaps.values());
        let layers = snaps.flat_map(|snap| &snap.layers);
        let waiting = layers.fold(WakeSet::NONE, |all, live| all | live.note_failed_sync());
        self.devices.workers().wake(waiting);
    }

    /// Gives a device a table that is one overlay over the layers of `below`, whose exception table
    /// it shares: nothing is read again, and the entries name their layers.
    pub(super) fn set_on_top(
        &mut self,
        name: &str,
        loaded: &Loaded,
        below: &Snap,
    ) -> Result<(), DeviceError> {
        let TargetSpec::Snapshot(spec) = &loaded.lines[0].target else {
            return Err(DeviceError::refused(format!("'{name}' is to be an overlay")));
        };
        self.refuse_owned(name, spec)?;
        self.refuse_own_origin(spec, &below.origin)?;
        self.refuse_disk(name, spec)?;
        let list = Wanted::Newest;
        let how = LiveFor { len: below.len, guest_disk: true, replaces: false, list };
        let (live, Listed { store: opened, .. }) = self.open_store(name, spec, how)?;
        let live = Arc::new(live);
        let layers = on_top(&below.layers, &live)?;
        if opened.count() != 0 {
            return Err(DeviceError::refused(format!(
                "the store {} holds exceptions already; a new overlay begins empty",
                spec.cow
            )));
        }
        let snap = Snap { live, layers, shared: false, ..below.clone() };
        self.set(name, loaded, &[snap])
    }

    /// Rebuilds the tables that depend on the changing devices: tables that name them, and origins
    /// whose snapshots change.
    pub(super) fn follow(&mut self) -> Result<(), DeviceError> {
        self.follow_changes(self.next.keys().cloned().collect())
    }

    /// The same for the devices `done` of those in the plan.
    pub(super) fn follow_changes(&mut self, mut done: Vec<String>) -> Result<(), DeviceError> {
        while let Some(name) = self.names().into_iter().find(|name| self.is_stale(name, &done)) {
            self.renew(&name)?;
            done.push(name);
        }
        // Last, when every snapshot has its final form: origins know their snapshots.
        let origin = |active: &Active| !active.origin_keys.is_empty();
        let origins = self.next.iter().filter(|(_, next)| next.as_ref().is_some_and(origin));
        for name in origins.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.renew(&name)?;
        }
        Ok(())
    }

    fn is_stale(&self, name: &str, done: &[String]) -> bool {
        if done.iter().any(|done| done == name) {
            return false;
        }
        let Some(active) = self.active(name) else { return false };
        let names_one = done.iter().any(|changed| active.names(changed));
        let before = |changed: &String| {
            self.inner.devices.get(changed).and_then(|device| device.active.as_ref())
        };
        let after = |changed: &String| self.next.get(changed).and_then(|next| next.as_ref());
        let keys = |of: &Active| of.snaps.values().map(|s| s.key.clone()).collect::<Vec<_>>();
        let loses_or_gains = active.origin_keys.values().any(|key| {
            done.iter().any(|changed| {
                before(changed).is_some_and(|a| keys(a).contains(key))
                    || after(changed).is_some_and(|a| keys(a).contains(key))
            })
        });
        let snapshot_of_changed_origin = active.snaps.values().any(|snap| {
            done.iter().any(|changed| {
                let origin = |a: &Active| a.origin_keys.values().any(|key| *key == snap.key);
                before(changed).is_some_and(origin) != after(changed).is_some_and(origin)
            })
        });
        names_one || loses_or_gains || snapshot_of_changed_origin
    }
}
