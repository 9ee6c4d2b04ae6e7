//! From lines to a table: a plan of which devices change together, built beside what serves.
//!
//! Owns the resolution of what lines name: files, devices, stores. Nothing is changed for workers
//! until a plan is applied; a plan that is dropped leaves everything as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::core::{Devices, Inner, Loaded};
use super::disks::Disk;
use super::error::DeviceError;
use super::live::{self, Live, LiveFor};
use super::origins::{FileOf, OriginKey};
use crate::cow::Persistence;
use crate::cow::open::{OpenOptions, OpenStore, open};
use crate::exception::{ExceptionTable, Layer};
use crate::io::{FileId, OpenMode};
use crate::lines::{Param, SnapshotSpec, TableLine, TargetSpec};
use crate::table::{Line, Table};
use crate::target::{Backing, Exceptions, ExtentPlace, Merge, Origin, Snapshot, Target};
use crate::units::ChunkSize;

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
}

impl Snap {
    pub(super) fn exceptions(&self) -> Exceptions {
        Exceptions {
            table: self.table.clone(),
            layers: self.layers.iter().map(|live| live.store.clone()).collect(),
            origin: self.origin.clone(),
            len: self.len,
        }
    }
}

/// An active table and what it keeps alive.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) lines: Vec<TableLine>,
    pub(super) read_only: bool,
    pub(super) table: Arc<Table>,
    /// By line.
    pub(super) snaps: BTreeMap<usize, Snap>,
    /// By line: of `snapshot-origin` and `snapshot-merge`.
    pub(super) origin_keys: BTreeMap<usize, OriginKey>,
    pub(super) disks: Vec<Arc<Disk>>,
}

impl Active {
    pub(super) fn loaded(&self) -> Loaded {
        Loaded { lines: self.lines.clone(), read_only: self.read_only }
    }

    /// Whether a line of it names the device `name`.
    pub(super) fn names(&self, name: &str) -> bool {
        lines_name(&self.lines, name)
    }

    /// The only line's snapshot, if that is all there is: what others can be stacked on.
    pub(super) fn whole_snapshot(&self) -> Option<&Snap> {
        match &self.lines[..] {
            [TableLine { target: TargetSpec::Snapshot(_), .. }] => self.snaps.get(&0),
            _ => None,
        }
    }

    /// Whether its exception table is that of a layer above, which says more than this device
    /// is: it must not serve so.
    pub(super) fn shares_table(&self) -> bool {
        self.snaps.values().any(|snap| snap.shared)
    }
}

pub(super) fn lines_name(lines: &[TableLine], name: &str) -> bool {
    lines.iter().flat_map(|line| line.target.params()).any(|p| p.device() == Some(name))
}

/// What a parameter comes down to.
enum Base {
    Plain(Backing),
    Stacked { snap: Snap, name: String },
}

/// Devices that change together: `None` where one goes.
pub(super) struct Plan<'a> {
    pub(super) devices: &'a Devices,
    pub(super) inner: &'a mut Inner,
    pub(super) next: BTreeMap<String, Option<Active>>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(devices: &'a Devices, inner: &'a mut Inner) -> Self {
        Plan { devices, inner, next: BTreeMap::new() }
    }

    /// The device's table as it will be.
    pub(super) fn active(&self, name: &str) -> Option<&Active> {
        match self.next.get(name) {
            Some(next) => next.as_ref(),
            None => self.inner.devices.get(name)?.active.as_ref(),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.inner.devices.keys().chain(self.next.keys()).cloned().collect();
        names.sort();
        names.dedup();
        names
    }

    /// Gives a device a table; `reuse` are live snapshots that may move into it.
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

    /// Builds a device's table once more, with what has joined the plan since.
    pub(super) fn renew(&mut self, name: &str) -> Result<(), DeviceError> {
        let Some(active) = self.active(name) else { return Ok(()) };
        let loaded = active.loaded();
        let snaps: Vec<Snap> = active.snaps.values().cloned().collect();
        self.set(name, &loaded, &snaps)
    }

    /// Gives a layer that others lie on a table of its own, read from its stores, so that it can
    /// serve.
    pub(super) fn thaw(&mut self, name: &str) -> Result<(), DeviceError> {
        let Some(active) = self.active(name) else { return Ok(()) };
        let loaded = active.loaded();
        let mut snaps = Vec::new();
        for snap in active.snaps.values() {
            snaps.push(self.own_table(name, snap)?);
        }
        self.set(name, &loaded, &snaps)
    }

    /// The snapshot `snap` of the device `name` with an exception table of its own.
    pub(super) fn own_table(&self, name: &str, snap: &Snap) -> Result<Snap, DeviceError> {
        if !snap.shared {
            return Ok(snap.clone());
        }
        // What the stores say is all there is only once nothing is owed to them.
        let flushed = self.active(name).is_none_or(|a| self.devices.config.flusher.flush(&a.table));
        if !flushed {
            return Err(DeviceError::FlushFailed(name.into()));
        }
        let chunk = snap.live.store.geometry().chunk;
        let table = Arc::new(read_layers(&snap.layers, chunk, snap.len)?);
        Ok(Snap { table, shared: false, ..snap.clone() })
    }

    /// Gives a device a table that is one overlay over the layers of `below`, whose exception
    /// table it shares: nothing is read again, and the entries say which layer they are of.
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
        let how = LiveFor { len: below.len, guest_disk: true, replaces: false };
        let (live, opened) = self.open_store(name, spec, how)?;
        if opened.geometry.chunk != below.live.store.geometry().chunk {
            return Err(DeviceError::refused(format!(
                "the store {} has chunks of {}, but the layers below have {}: give it theirs",
                spec.cow,
                opened.geometry.chunk,
                below.live.store.geometry().chunk
            )));
        }
        let live = Arc::new(live);
        let layers: Vec<_> = below.layers.iter().cloned().chain([live.clone()]).collect();
        if layers.len() > usize::from(Layer::MAX.0) {
            return Err(DeviceError::refused("a chain has at most 4095 layers; commit some first"));
        }
        if !opened.entries.is_empty() {
            return Err(DeviceError::refused(format!(
                "the store {} holds exceptions already; a new overlay begins empty",
                spec.cow
            )));
        }
        let snap = Snap { live, layers, shared: false, ..below.clone() };
        self.set(name, loaded, &[snap])
    }

    /// Builds anew what depends on the devices that change: tables that name them, and origins
    /// whose snapshots change.
    pub(super) fn follow(&mut self) -> Result<(), DeviceError> {
        let mut done: Vec<String> = self.next.keys().cloned().collect();
        while let Some(name) = self.names().into_iter().find(|name| self.is_stale(name, &done)) {
            self.renew(&name)?;
            done.push(name);
        }
        // Last, when every snapshot is what it will be: origins know their snapshots.
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

    /// A device's table, beside what it serves; `reuse` are live snapshots that may be in both.
    pub(super) fn build(
        &mut self,
        name: &str,
        loaded: &Loaded,
        reuse: &[Snap],
    ) -> Result<Active, DeviceError> {
        self.refuse_loop(name, &loaded.lines)?;
        let mut made = Made::default();
        let mut lines = Vec::new();
        for (number, line) in loaded.lines.iter().enumerate() {
            let target = self.target(name, number, line, loaded.read_only, reuse, &mut made)?;
            let (start, len) = (line.start.bytes(), line.len.bytes());
            lines.push(Line { start, len, target });
        }
        let block = made.disks.iter().map(|disk| disk.info.logical_block()).max().unwrap_or(512);
        let table = Table::new(lines, made.exceptions)
            .with_read_only(loaded.read_only)
            .with_logical_block(block);
        Ok(Active {
            lines: loaded.lines.clone(),
            read_only: loaded.read_only,
            table: Arc::new(table),
            snaps: made.snaps,
            origin_keys: made.origin_keys,
            disks: made.disks,
        })
    }

    fn target(
        &mut self,
        name: &str,
        number: usize,
        line: &TableLine,
        read_only: bool,
        reuse: &[Snap],
        made: &mut Made,
    ) -> Result<Target, DeviceError> {
        let len = line.len.bytes();
        let mode = if read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        match &line.target {
            TargetSpec::Zero => Ok(Target::Plain(plain(len, ExtentPlace::Zero))),
            TargetSpec::Error => Ok(Target::Plain(plain(len, ExtentPlace::Error))),
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
                    Ok(self.snapshot_target(&snap, Default::default(), made))
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
                let origin = self.origin(name, backing.slice(0, len), &key, made)?;
                made.origin_keys.insert(number, key);
                Ok(Target::Origin(origin))
            }
            TargetSpec::Snapshot(spec) => {
                let snap = self.snap(name, line, spec, reuse, made)?;
                let target = self.snapshot_target(&snap, spec.features, made);
                made.snaps.insert(number, snap);
                Ok(target)
            }
            TargetSpec::Merge(spec) => {
                let snap = self.snap(name, line, spec, reuse, made)?;
                self.merge_target(name, number, line, spec, snap, made)
            }
        }
    }

    /// Which origin `dev` is, and where it begins in it: what writes it is to be seen by its
    /// snapshots.
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

    fn snapshot_target(
        &mut self,
        snap: &Snap,
        features: crate::target::Features,
        made: &mut Made,
    ) -> Target {
        made.exceptions.push(snap.exceptions());
        // An overlay's base is read-only; anything else may be written by an origin.
        let tracked = (!snap.live.store.is_guest_disk()).then(|| self.inner.origins.id(&snap.key));
        Target::Snapshot(Snapshot { exceptions: made.exceptions.len() - 1, tracked, features })
    }

    fn merge_target(
        &mut self,
        name: &str,
        number: usize,
        line: &TableLine,
        spec: &SnapshotSpec,
        snap: Snap,
        made: &mut Made,
    ) -> Result<Target, DeviceError> {
        if spec.persistence == Persistence::Transient {
            let sentence = format!("the line '{line}' merges a transient store, which cannot be");
            return Err(DeviceError::refused(sentence));
        }
        if let Some(other) = self.merging(&snap.key, name) {
            let sentence =
                format!("'{other}' merges into this origin already; one merge at a time");
            return Err(DeviceError::refused(sentence));
        }
        let Base::Plain(backing) = self.resolve(&spec.origin, OpenMode::ReadWrite, made)? else {
            let sentence = format!("'{}' is a layer; commit it with 'block-commit'", spec.origin);
            return Err(DeviceError::refused(sentence));
        };
        let origin = self.origin(name, backing.slice(0, line.len.bytes()), &snap.key, made)?;
        made.exceptions.push(Exceptions { origin: backing, ..snap.exceptions() });
        let merge = Merge {
            exceptions: made.exceptions.len() - 1,
            origin,
            writes: self.inner.origins.fresh(),
        };
        made.origin_keys.insert(number, snap.key.clone());
        made.snaps.insert(number, snap);
        Ok(Target::Merge(merge))
    }

    fn merging(&self, key: &OriginKey, but: &str) -> Option<String> {
        self.names().into_iter().filter(|name| name != but).find(|name| {
            self.active(name).is_some_and(|active| {
                active.lines.iter().enumerate().any(|(number, line)| {
                    matches!(line.target, TargetSpec::Merge(_))
                        && active.snaps.get(&number).is_some_and(|snap| snap.key == *key)
                })
            })
        })
    }

    /// The origin `key` with all snapshots of it, but those that `name` itself merges.
    fn origin(
        &mut self,
        name: &str,
        backing: Backing,
        key: &OriginKey,
        made: &mut Made,
    ) -> Result<Origin, DeviceError> {
        self.refuse_layers_over(name, key)?;
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
        let mut numbers = Vec::new();
        for snap in &snapshots {
            snap.live.store.set_guest_disk(false);
            made.exceptions.push(snap.exceptions());
            numbers.push(made.exceptions.len() - 1);
        }
        let tracked = self.inner.origins.id(key);
        Ok(Origin { backing, start: 0, tracked, snapshots: numbers })
    }

    /// The live snapshot of a line: one that moves, or a store that is opened.
    fn snap(
        &mut self,
        name: &str,
        line: &TableLine,
        spec: &SnapshotSpec,
        reuse: &[Snap],
        made: &mut Made,
    ) -> Result<Snap, DeviceError> {
        if spec.features.discard_passdown_origin {
            return Err(DeviceError::refused(format!(
                "the line '{line}' asks for discard_passdown_origin, which is not built yet; leave \
                 it out"
            )));
        }
        let base = self.resolve(&spec.origin, OpenMode::ReadOnly, made)?;
        let len = line.len.bytes();
        let has = match &base {
            Base::Plain(backing) => backing.len(),
            Base::Stacked { snap, .. } => snap.len,
        };
        long_enough(line, &spec.origin, has, len)?;
        made.refuse_twice(spec)?;
        if let Some(snap) = reused(spec, len, reuse)? {
            let mut snap = snap.clone();
            snap.live.grow()?;
            if let Base::Plain(backing) = base {
                snap.key = self.key(&backing);
                snap.origin = backing;
            }
            return Ok(snap);
        }
        self.refuse_owned(name, spec)?;
        let (layers, key, origin) = match base {
            Base::Plain(backing) => (Vec::new(), self.key(&backing), backing),
            Base::Stacked { snap, name } => {
                self.refuse_children(&name)?;
                if self.is_served_origin(&snap.key) {
                    return Err(DeviceError::refused(format!(
                        "'{name}' is a snapshot of an origin that is served, so nothing can be \
                         stacked on it"
                    )));
                }
                (snap.layers, snap.key, snap.origin)
            }
        };
        self.refuse_own_origin(spec, &origin)?;
        let guest_disk = spec.persistence == Persistence::Overflow && !self.is_served_origin(&key);
        let replaces = same_store(spec, reuse).is_some();
        let (live, opened) = self.open_store(name, spec, LiveFor { len, guest_disk, replaces })?;
        let chunk = opened.geometry.chunk;
        self.refuse_unaligned(line, chunk, &live, &origin)?;
        if let Some(lower) = layers.last()
            && lower.store.geometry().chunk != chunk
        {
            return Err(DeviceError::refused(format!(
                "the store {} has chunks of {chunk}, but the layers below have {}: give it theirs",
                spec.cow,
                lower.store.geometry().chunk
            )));
        }
        // A layer is about to be stacked on: its own table would be read for nobody.
        let shared = self.inner.lower_layers.contains(name);
        let table = match shared {
            true => ExceptionTable::new(0),
            false => read_layers(&layers, chunk, len)?,
        };
        if !shared {
            live::load(&table, &opened, Layer(layers.len() as u16 + 1));
        }
        let live = Arc::new(live);
        let layers = layers.into_iter().chain([live.clone()]).collect();
        Ok(Snap { live, table: Arc::new(table), layers, key, origin, len, shared })
    }

    /// Opens a store; one that is known to be invalid is, whatever its header says.
    fn open_store(
        &mut self,
        name: &str,
        spec: &SnapshotSpec,
        how: LiveFor,
    ) -> Result<(Live, OpenStore), DeviceError> {
        let observer = self.devices.observer(name);
        let Inner { disks, state, .. } = &mut *self.inner;
        Live::open(disks, spec, how, state, observer)
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
        made: &mut Made,
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
        made: &mut Made,
    ) -> Result<Base, DeviceError> {
        match param {
            Param::Path(path) => {
                let disk = self.inner.disks.open(path, mode)?;
                let len = disk.len()? & !511;
                let backing = Backing::file(disk.medium.clone(), 0, len);
                made.disks.push(disk);
                Ok(Base::Plain(backing))
            }
            Param::Device(name) => {
                if !self.inner.devices.contains_key(name) && !self.next.contains_key(name) {
                    return Err(DeviceError::NotFound(name.clone()));
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

/// The live snapshot that moves; none where its store is to be opened again, for a device of
/// another length or with other options. Whatever its state is: only a table that is loaded for
/// the device itself opens a store again, never one that changes beside it.
fn reused<'s>(
    spec: &SnapshotSpec,
    len: u64,
    reuse: &'s [Snap],
) -> Result<Option<&'s Snap>, DeviceError> {
    let Some(snap) = same_store(spec, reuse) else { return Ok(None) };
    if snap.live.store.persistence() != spec.persistence {
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

/// The one of `snaps` whose store is that of `spec`, however it is named.
fn same_store<'s>(spec: &SnapshotSpec, snaps: &'s [Snap]) -> Option<&'s Snap> {
    let identity = crate::io::Identity::of_path(spec.cow.path()?).ok()?;
    snaps.iter().find(|snap| snap.live.disk.info.identity == identity)
}

#[derive(Default)]
struct Made {
    exceptions: Vec<Exceptions>,
    snaps: BTreeMap<usize, Snap>,
    origin_keys: BTreeMap<usize, OriginKey>,
    disks: Vec<Arc<Disk>>,
}

impl Made {
    fn refuse_twice(&self, spec: &SnapshotSpec) -> Result<(), DeviceError> {
        let identity = spec.cow.path().and_then(|path| crate::io::Identity::of_path(path).ok());
        let same = |snap: &Snap| Some(snap.live.disk.info.identity) == identity;
        if self.snaps.values().any(same) {
            return Err(DeviceError::refused(format!(
                "the store {} is named by two lines of the table; a store has one owner",
                spec.cow
            )));
        }
        Ok(())
    }
}

fn plain(len: u64, place: ExtentPlace) -> Backing {
    let mut backing = Backing::default();
    backing.push(len, place);
    backing
}

/// An exception table with what the stores of `layers` say on disk.
fn read_layers(
    layers: &[Arc<Live>],
    chunk: ChunkSize,
    len: u64,
) -> Result<ExceptionTable, DeviceError> {
    let table = ExceptionTable::new(chunk.count_for(len));
    for (below, lower) in layers.iter().enumerate() {
        let options = OpenOptions { chunk: None, create: false, origin_len: Some(len) };
        let opened = open(&*lower.disk.info, &options)?;
        live::load(&table, &opened, Layer(below as u16 + 1));
    }
    Ok(table)
}

/// The extents that lines come down to, if they are plain; an origin means what it maps, also
/// while a snapshot is merged into it.
fn below(lines: &[Line]) -> Option<Backing> {
    let mut all = Backing::default();
    for line in lines {
        let backing = match &line.target {
            Target::Plain(backing) => backing,
            Target::Origin(origin) => &origin.backing,
            Target::Merge(merge) => &merge.origin.backing,
            Target::Snapshot(_) => return None,
        };
        for extent in backing.extents() {
            all.push(extent.len, extent.place.clone());
        }
    }
    Some(all)
}

fn long_enough(line: &TableLine, what: &Param, has: u64, needed: u64) -> Result<(), DeviceError> {
    if needed <= has {
        return Ok(());
    }
    Err(DeviceError::TooShort {
        line: line.to_string(),
        what: what.to_string(),
        has: has >> 9,
        needed: needed >> 9,
    })
}
