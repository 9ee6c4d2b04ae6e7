//! From lines to targets: one device's table, built beside the live one.
//!
//! Owns the resolution of the names in lines: files, devices, stores. Never knows which devices
//! change with it (`build` does), nor when workers get the table. A line whose store was lost is
//! built without it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::build::{Active, Plan, Snap};
use super::core::{Inner, Loaded, Owner};
use super::disks::Disk;
use super::error::DeviceError;
use super::guards::{is_opened_again, long_enough, on_top, refuse_transient};
use super::handover::Lost;
use super::live::{self, Listed, Live, LiveFor, Wanted};
use super::origins::{FileOf, OriginKey, is_guest_disk};
use super::passdown;
use super::paths::Meanings;
use super::serving::{serves, sleep};
use crate::cow::Persistence;
use crate::cow::open::OpenOptions;
use crate::exception::{ExceptionTable, Layer, Memory};
use crate::io::{FileId, Identity, OpenMode};
use crate::lines::{Param, SnapshotSpec, TableLine, TargetSpec};
use crate::table::{Line, Table};
use crate::target::{Backing, Content, Exceptions, ExceptionsId, Merge, Origin, Snapshot, Target};
use crate::units::ChunkSize;

/// What a parameter resolves to.
pub(super) enum Base {
    Plain(Backing),
    Stacked { snap: Snap, name: String },
}

/// What a snapshot lies on.
struct Below {
    /// From the bottom; none if it lies on its origin.
    layers: Vec<Arc<Live>>,
    key: OriginKey,
    origin: Backing,
}

impl Plan<'_> {
    pub(super) fn build(
        &mut self,
        name: &str,
        loaded: &Loaded,
        reuse: &[Snap],
    ) -> Result<Active, DeviceError> {
        self.refuse_loop(name, &loaded.lines)?;
        let paths = Meanings::given(&loaded.paths);
        let mut made = TableParts { paths, ..TableParts::default() };
        let mut lines = Vec::new();
        for (number, line) in loaded.lines.iter().enumerate() {
            let target = match loaded.lost.get(&number) {
                Some(lost) => self.without_store(name, number, line, *lost, &mut made)?,
                None => self.target(name, number, line, loaded.read_only, reuse, &mut made)?,
            };
            let (start, len) = (line.start.bytes(), line.len.bytes());
            lines.push(Line { start, len, target });
        }
        let table = Table::new(lines, made.exceptions).with_read_only(loaded.read_only);
        self.devices.refuse_within(&loaded.lines, &table)?;
        Ok(Active {
            lines: loaded.lines.clone(),
            read_only: loaded.read_only,
            table: Arc::new(table),
            snaps: made.snaps,
            lost: loaded.lost.clone(),
            origin_keys: made.origin_keys,
            disks: made.disks,
            paths: made.paths.found,
        })
    }

    fn target(
        &mut self,
        name: &str,
        number: usize,
        line: &TableLine,
        read_only: bool,
        reuse: &[Snap],
        made: &mut TableParts,
    ) -> Result<Target, DeviceError> {
        let len = line.len.bytes();
        let mode = if read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        match &line.target {
            TargetSpec::Zero => Ok(Target::Plain(plain(len, Content::Zero))),
            TargetSpec::Error => Ok(Target::Plain(plain(len, Content::Error))),
            TargetSpec::Linear { dev, offset } => match self.resolve_linear(dev, mode, made)? {
                Base::Plain(backing) => {
                    let start = offset.bytes();
                    long_enough(line, dev, backing.len(), start.saturating_add(len))?;
                    let backing = backing.slice(start, len);
                    match self.origin_below(dev)? {
                        Some((key, at)) if !read_only => {
                            let origin = self.origin(name, backing, &key, made)?;
                            made.origin_keys.insert(number, key);
                            Ok(Target::Origin(Origin { start: at + start, ..origin }))
                        }
                        _ => Ok(Target::Plain(backing)),
                    }
                }
                Base::Stacked { snap, name } if offset.0 == 0 && len == snap.len => {
                    let snap = self.own_table(&name, &snap)?;
                    let is_own = self.is_guest_disk(&name, &snap);
                    Ok(self.snapshot_target(&snap, is_own, made))
                }
                Base::Stacked { .. } => Err(DeviceError::refused(format!(
                    "the line '{line}' takes a part of the snapshot '{dev}'; take all of it"
                ))),
            },
            TargetSpec::Origin { origin } => {
                let Base::Plain(backing) = self.resolve(origin, mode, made)? else {
                    return Err(DeviceError::refused(format!(
                        "'{origin}' is a snapshot: snapshots of a snapshot are layers; use \
                         'blockdev-snapshot-sync'"
                    )));
                };
                long_enough(line, origin, backing.len(), len)?;
                let key = self.key(&backing);
                if let Some(other) = self.merging(&key, name) {
                    return Err(beside_a_merge(name, &other));
                }
                let origin = self.origin(name, backing.slice(0, len), &key, made)?;
                made.origin_keys.insert(number, key);
                Ok(Target::Origin(origin))
            }
            TargetSpec::Snapshot(spec) => {
                let snap = self.snap(name, line, spec, reuse, made)?;
                self.refuse_beside_passdown(name, line, &snap, &made.snaps)?;
                let (at, kept) = ((name, number), spec.persistence);
                let is_own = is_guest_disk(self.world(), at, kept, &snap.key);
                let target = self.snapshot_target(&snap, is_own, made);
                made.insert(number, spec, snap);
                Ok(target)
            }
            TargetSpec::Merge(spec) => {
                let snap = self.snap(name, line, spec, reuse, made)?;
                self.merge_target(name, number, line, spec, snap, made)
            }
        }
    }

    /// A snapshot's line that lost its store. A merge whose store is Invalid becomes its origin.
    fn without_store(
        &mut self,
        name: &str,
        number: usize,
        line: &TableLine,
        lost: Lost,
        made: &mut TableParts,
    ) -> Result<Target, DeviceError> {
        match &line.target {
            TargetSpec::Merge(spec) if lost == Lost::SourceGone => {
                let origin = TargetSpec::Origin { origin: spec.origin.clone() };
                let line = TableLine { target: origin, ..line.clone() };
                self.target(name, number, &line, false, &[], made)
            }
            _ => Ok(Target::Plain(plain(line.len.bytes(), Content::Error))),
        }
    }

    /// The origin that `dev` is, and the start of `dev` in it: the origin's snapshots must see
    /// writes to `dev`.
    fn origin_below(&self, dev: &Param) -> Result<Option<(OriginKey, u64)>, DeviceError> {
        let Some(active) = dev.device().and_then(|name| self.active(name)) else { return Ok(None) };
        match (active.table.lines(), active.origin_keys.get(&0)) {
            ([Line { target: Target::Origin(origin), .. }], Some(key)) => {
                Ok(Some((key.clone(), origin.start)))
            }
            _ if active.origin_keys.is_empty() => Ok(None),
            _ => Err(DeviceError::refused(format!(
                "only a part of '{dev}' is an origin, so nothing can lie on it"
            ))),
        }
    }

    fn snapshot_target(&mut self, snap: &Snap, is_own: bool, made: &mut TableParts) -> Target {
        let exceptions = made.add(snap.exceptions());
        // An overlay's base is read-only; an origin may write any other.
        let tracked = (!is_own).then(|| self.inner.origins.id(&snap.key));
        let features = snap.features;
        Target::Snapshot(Snapshot { exceptions, tracked, features })
    }

    fn merge_target(
        &mut self,
        name: &str,
        number: usize,
        line: &TableLine,
        spec: &SnapshotSpec,
        snap: Snap,
        made: &mut TableParts,
    ) -> Result<Target, DeviceError> {
        refuse_transient(line, spec)?;
        if let Some(other) = self.merging(&snap.key, name) {
            let sentence =
                format!("'{other}' merges into this origin already; one merge at a time");
            return Err(DeviceError::refused(sentence));
        }
        let Base::Plain(backing) = self.resolve(&spec.origin, OpenMode::ReadWrite, made)? else {
            let sentence = format!("'{}' is a layer; commit it with 'block-commit'", spec.origin);
            return Err(DeviceError::refused(sentence));
        };
        if let Some(other) = self.origin_beside(&snap.key, name) {
            return Err(beside_a_merge(&other, name));
        }
        let origin = self.origin(name, backing.slice(0, line.len.bytes()), &snap.key, made)?;
        let exceptions = made.add(Exceptions { origin: backing, ..snap.exceptions() });
        let merge = Merge {
            exceptions,
            origin,
            writes: self.inner.origins.fresh(),
            in_use: Default::default(),
        };
        made.origin_keys.insert(number, snap.key.clone());
        made.insert(number, spec, snap);
        Ok(Target::Merge(merge))
    }

    pub(super) fn merging(&self, key: &OriginKey, but: &str) -> Option<String> {
        self.names().into_iter().filter(|name| name != but).find(|name| {
            self.active(name).is_some_and(|active| {
                active.lines.iter().enumerate().any(|(number, line)| {
                    matches!(line.target, TargetSpec::Merge(_))
                        && active.snaps.get(&number).is_some_and(|snap| snap.key == *key)
                })
            })
        })
    }

    /// A device other than `but` that serves the origin `key` to a guest.
    pub(super) fn origin_beside(&self, key: &OriginKey, but: &str) -> Option<String> {
        self.names().into_iter().filter(|name| name != but).find(|name| {
            self.active(name).is_some_and(|active| {
                active.origin_keys.iter().any(|(line, known)| {
                    known == key && matches!(active.lines[*line].target, TargetSpec::Origin { .. })
                })
            })
        })
    }

    /// The origin `key` with all its snapshots, except those that `name` itself merges.
    fn origin(
        &mut self,
        name: &str,
        backing: Backing,
        key: &OriginKey,
        made: &mut TableParts,
    ) -> Result<Origin, DeviceError> {
        self.refuse_layers_over(name, key)?;
        // A snapshot that shares the table of a removed overlay has no table of its own exceptions.
        for other in self.names().iter().filter(|other| *other != name) {
            let shares = |snap: &Snap| snap.key == *key && snap.shared;
            if self.active(other).is_some_and(|active| active.snaps.values().any(shares)) {
                self.own_exception_table(other)?;
            }
        }
        let mut snapshots: Vec<Snap> = Vec::new();
        for other in self.names().iter().filter(|other| *other != name) {
            let Some(active) = self.active(other) else { continue };
            for (number, snap) in &active.snaps {
                let merges = matches!(active.lines[*number].target, TargetSpec::Merge(_));
                if snap.key == *key && !merges {
                    snapshots.push(snap.clone());
                }
            }
        }
        snapshots.sort_by_key(|snap| std::cmp::Reverse(snap.live.store.geometry().chunk.bytes()));
        let snapshots = snapshots.iter().map(|snap| made.add(snap.exceptions())).collect();
        let tracked = self.inner.origins.id(key);
        Ok(Origin { backing, start: 0, tracked, snapshots })
    }

    /// The live snapshot of a line: one that moves, or a newly opened store.
    fn snap(
        &mut self,
        name: &str,
        line: &TableLine,
        spec: &SnapshotSpec,
        reuse: &[Snap],
        made: &mut TableParts,
    ) -> Result<Snap, DeviceError> {
        let base = self.resolve(&spec.origin, passdown::mode(spec), made)?;
        self.refuse_passdown_to(spec, &base)?;
        let len = line.len.bytes();
        let has = match &base {
            Base::Plain(backing) => backing.len(),
            Base::Stacked { snap, .. } => snap.len,
        };
        long_enough(line, &spec.origin, has, len)?;
        let store = made.paths.identity(spec);
        made.refuse_twice(spec, store)?;
        let below = self.layers_below(base)?;
        if let Some(snap) = reused(spec, store, len, reuse)?
            && !is_opened_again(name, spec, snap, &below.layers)?
        {
            warn_of_chunk(spec, snap);
            let features = passdown::features(line);
            return Ok(Snap { features, key: below.key, origin: below.origin, ..snap.clone() });
        }
        made.paths.refuse_replaced(spec)?;
        self.refuse_owned(name, spec)?;
        self.refuse_own_origin(spec, &below.origin)?;
        self.refuse_disk(name, spec)?;
        self.opened_snap(name, line, spec, below)
    }

    /// What a snapshot of `base` lies on.
    fn layers_below(&self, base: Base) -> Result<Below, DeviceError> {
        let (snap, name) = match base {
            Base::Plain(origin) => {
                return Ok(Below { layers: Vec::new(), key: self.key(&origin), origin });
            }
            Base::Stacked { snap, name } => (snap, name),
        };
        self.refuse_children(&name)?;
        if self.is_served_origin(&snap.key) {
            return Err(DeviceError::refused(format!(
                "'{name}' is a snapshot of an origin that is served, so nothing can be stacked on it"
            )));
        }
        Ok(Below { layers: snap.layers, key: snap.key, origin: snap.origin })
    }

    /// A snapshot whose store is opened, with its exceptions and those of the layers below.
    fn opened_snap(
        &mut self,
        name: &str,
        line: &TableLine,
        spec: &SnapshotSpec,
        below: Below,
    ) -> Result<Snap, DeviceError> {
        let Below { layers: lower, key, origin } = below;
        let len = line.len.bytes();
        let guest_disk =
            spec.persistence == Persistence::PersistentOverflow && !self.is_served_origin(&key);
        let replaces = self.inner.lives(spec);
        // Another layer is about to be stacked on this one, or stays so: nothing would read a table of
        // its own.
        let had_none = || self.active(name).is_some_and(Active::shares_table);
        let shared =
            self.inner.lower_layers.contains(name) || (had_none() && self.child_of(name).is_some());
        let memory = &self.devices.config.memory;
        let list = if shared { Wanted::Newest } else { Wanted::by(memory) };
        let how = LiveFor { len, guest_disk, replaces, list };
        let (live, listed) = self.open_store(name, spec, how)?;
        let chunk = listed.store.geometry.chunk;
        self.refuse_unaligned(line, chunk, &live, &origin)?;
        let live = Arc::new(live);
        let layers = on_top(&lower, &live)?;
        let table = if shared {
            ExceptionTable::new(0)
        } else {
            let read = read_layers(memory, &lower, chunk, len);
            let mut table = read.inspect_err(|_| self.note_failed_syncs())?;
            let layer = Layer(layers.len() as u16);
            live::load(&mut table, memory, (&live.disk, listed), layer)?;
            table
        };
        let (table, features) = (Arc::new(table), passdown::features(line));
        Ok(Snap { live, table, layers, key, origin, len, shared, features })
    }

    /// Opens a store; as Invalid if that is recorded, whatever its header says.
    pub(super) fn open_store(
        &mut self,
        name: &str,
        spec: &SnapshotSpec,
        how: LiveFor,
    ) -> Result<(Live, Listed), DeviceError> {
        if let Some(path) = spec.cow.path()
            && self.devices.is_flushed_late(path)
        {
            let limit = self.devices.config.deadline;
            return Err(DeviceError::FlushLate { device: name.into(), limit });
        }
        let owner = Owner::new(name);
        let observer = self.devices.observer(&owner);
        let yields = self.gives_way && serves(self.inner);
        let between = || {
            if yields {
                sleep()
            }
        };
        let Inner { disks, state, .. } = &mut *self.inner;
        let opened = Live::open(disks, spec, how, state, (owner, observer), &between);
        between();
        opened.inspect_err(|_| self.note_failed_syncs())
    }

    /// The tables after the change.
    fn world(&self) -> impl Iterator<Item = (&String, &Active)> {
        let now = self.inner.devices.iter().filter(|(name, _)| !self.next.contains_key(*name));
        let now = now.filter_map(|(name, device)| Some((name, device.active.as_ref()?)));
        now.chain(self.next.iter().filter_map(|(name, next)| Some((name, next.as_ref()?))))
    }

    /// Whether `snap`, the only line of the device `name`, will be a guest's own disk.
    pub(super) fn is_guest_disk(&self, name: &str, snap: &Snap) -> bool {
        let spec = self.active(name).and_then(|active| active.lines[0].target.snapshot());
        spec.is_some_and(|of| is_guest_disk(self.world(), (name, 0), of.persistence, &snap.key))
    }

    pub(super) fn is_served_origin(&self, key: &OriginKey) -> bool {
        self.names()
            .iter()
            .filter_map(|name| self.active(name))
            .any(|active| active.origin_keys.values().any(|known| known == key))
    }

    fn resolve_linear(
        &mut self,
        param: &Param,
        mode: OpenMode,
        made: &mut TableParts,
    ) -> Result<Base, DeviceError> {
        let merges = |line: &TableLine| matches!(line.target, TargetSpec::Merge(_));
        let below = param.device().and_then(|name| self.active(name));
        if below.is_some_and(|active| active.lines.iter().any(merges)) {
            return Err(DeviceError::refused(format!(
                "'{param}' merges a snapshot, so only snapshots can lie on it until that has ended"
            )));
        }
        self.resolve(param, mode, made)
    }

    fn resolve(
        &mut self,
        param: &Param,
        mode: OpenMode,
        made: &mut TableParts,
    ) -> Result<Base, DeviceError> {
        match param {
            Param::Path(path) => {
                let disk = self.inner.disks.open(path, mode, made.paths.meant(path))?;
                made.paths.found.note(path, disk.info.identity);
                let len = disk.len()? & !511;
                let backing = Backing::file(disk.medium.clone(), 0, len);
                made.disks.push(disk);
                Ok(Base::Plain(backing))
            }
            Param::Device(name) => {
                if !self.is_taken(name) {
                    return Err(DeviceError::NoSuchParam(name.clone()));
                }
                let active = self.active(name).ok_or_else(|| DeviceError::NoTable(name.clone()))?;
                if let Some(snap) = active.whole_snapshot() {
                    return Ok(Base::Stacked { snap: snap.clone(), name: name.clone() });
                }
                made.disks.extend(active.disks.iter().cloned());
                below(active.table.lines()).map(Base::Plain).ok_or_else(|| {
                    DeviceError::refused(format!(
                        "the device '{name}' is not made of linear, zero, error and \
                         snapshot-origin alone, so nothing can lie on it"
                    ))
                })
            }
        }
    }

    pub(super) fn key(&self, backing: &Backing) -> OriginKey {
        OriginKey::of(backing, |file| self.identity(file))
    }

    pub(super) fn identity(&self, file: FileId) -> FileOf {
        self.devices.identity(file)
    }
}

/// The live snapshot of `store` that moves; none if that must be reopened for a device of another length.
/// Its state does not matter: a store is reopened only for a table loaded for the device itself or
/// for a layer below it.
fn reused<'s>(
    spec: &SnapshotSpec,
    store: Option<Identity>,
    len: u64,
    reuse: &'s [Snap],
) -> Result<Option<&'s Snap>, DeviceError> {
    let is_it = |snap: &&Snap| Some(snap.live.disk.info.identity) == store;
    let Some(snap) = reuse.iter().find(is_it) else { return Ok(None) };
    let transient = |of: Persistence| of == Persistence::Transient;
    if transient(snap.live.store.persistence()) != transient(spec.persistence) {
        return Ok(None);
    }
    if snap.len != len && spec.persistence == Persistence::Transient {
        return Err(DeviceError::refused(format!(
            "the transient store {} would be lost: its device cannot change its length",
            spec.cow
        )));
    }
    Ok((snap.len == len).then_some(snap))
}

/// The merge would overwrite what is written to the origin.
fn beside_a_merge(origin: &str, merges: &str) -> DeviceError {
    DeviceError::refused(format!(
        "'{merges}' merges a snapshot into the origin of '{origin}'; an origin does not stand beside \
         a merge: load the merge into its device, or wait until that has ended"
    ))
}

fn warn_of_chunk(spec: &SnapshotSpec, snap: &Snap) {
    let has = snap.live.store.chunk();
    if let Some(asked) = spec.chunk.filter(|asked| *asked != has) {
        tracing::warn!("the store {} has chunks of {has}, not the {asked} of its table", spec.cow);
    }
}

#[derive(Default)]
struct TableParts {
    exceptions: Vec<Exceptions>,
    snaps: BTreeMap<usize, Snap>,
    origin_keys: BTreeMap<usize, OriginKey>,
    disks: Vec<Arc<Disk>>,
    paths: Meanings,
}

impl TableParts {
    fn add(&mut self, exceptions: Exceptions) -> ExceptionsId {
        let id = ExceptionsId(self.exceptions.len() as u32);
        self.exceptions.push(exceptions);
        id
    }

    fn insert(&mut self, number: usize, spec: &SnapshotSpec, snap: Snap) {
        if let Some(path) = spec.cow.path() {
            self.paths.found.note(path, snap.live.disk.info.identity);
        }
        self.snaps.insert(number, snap);
    }

    fn refuse_twice(
        &self,
        spec: &SnapshotSpec,
        store: Option<Identity>,
    ) -> Result<(), DeviceError> {
        let same = |snap: &Snap| Some(snap.live.disk.info.identity) == store;
        if self.snaps.values().any(same) {
            return Err(DeviceError::refused(format!(
                "the store {} is named by two lines of the table; a store has one owner",
                spec.cow
            )));
        }
        Ok(())
    }
}

fn plain(len: u64, content: Content) -> Backing {
    let mut backing = Backing::default();
    backing.push(len, content);
    backing
}

/// An exception table with the entries on disk of the stores of `layers`.
pub(super) fn read_layers(
    memory: &Memory,
    layers: &[Arc<Live>],
    chunk: ChunkSize,
    len: u64,
) -> Result<ExceptionTable, DeviceError> {
    let mut table = ExceptionTable::new_in(chunk.count_for(len), memory);
    for (below, lower) in layers.iter().enumerate() {
        let options = OpenOptions { chunk: None, create: false, ..OpenOptions::default() };
        let listed = Listed::open(&lower.disk, options, len, Wanted::by(memory))?;
        live::load(&mut table, memory, (&lower.disk, listed), Layer(below as u16 + 1))?;
    }
    Ok(table)
}

/// The extents that lines resolve to, if they are plain; an origin resolves to what it maps, also
/// while a snapshot is merged into it.
pub(super) fn below(lines: &[Line]) -> Option<Backing> {
    let mut all = Backing::default();
    for line in lines {
        let backing = match &line.target {
            Target::Plain(backing) => backing,
            Target::Origin(origin) => &origin.backing,
            Target::Merge(merge) => &merge.origin.backing,
            Target::Snapshot(_) => return None,
        };
        for extent in backing.extents() {
            all.push(extent.len, extent.content.clone());
        }
    }
    Some(all)
}
