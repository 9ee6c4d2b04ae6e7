//! Checks against tables that would harm themselves, each other, or the devices below.
//!
//! Owns the refusals that need a view of more than one device. Changes nothing. Keeps I8:
//! no guest writes a store as a disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::build::{Active, Plan, Snap};
use super::core::{Devices, Inner, Loaded};
use super::error::DeviceError;
use super::live::Live;
use super::origins::{FileOf, OriginKey, is_guest_disk};
use super::verbs::guest_writes;
use crate::cow::{Persistence, open};
use crate::exception::Layer;
use crate::io::{FileId, FileInfo, Identity, OpenMode};
use crate::lines::{Param, SnapshotSpec, TableLine, TargetSpec};
use crate::target::{Backing, Content, Target};
use crate::units::ChunkSize;

/// Bytes of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) file: FileOf,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    pub(super) fn overlaps(&self, other: &Range) -> bool {
        self.file == other.file && self.start < other.end && other.start < self.end
    }
}

impl Devices {
    /// A file's device and inode.
    pub(super) fn identity(&self, file: FileId) -> FileOf {
        let info = self.files.get(file);
        info.map_or((0, u64::from(file.0)), |info| (info.identity.dev, info.identity.ino))
    }

    pub(super) fn ranges(&self, backing: &Backing) -> Vec<Range> {
        let range = |extent: &crate::target::Extent| match &extent.content {
            Content::File { medium, offset } => {
                let file = self.identity(medium.file);
                Some(Range { file, start: *offset, end: offset + extent.len })
            }
            Content::Zero | Content::Error => None,
        };
        backing.extents().iter().filter_map(range).collect()
    }

    /// Refuses tables with which a guest would write the bytes of an origin past that origin, or
    /// the bytes below an overlay: `writes` selects the devices to check, by their state in
    /// `next`.
    pub(super) fn refuse_second_writers(
        &self,
        inner: &Inner,
        next: &BTreeMap<String, Option<Active>>,
        writes: impl Fn(&str) -> bool,
    ) -> Result<(), DeviceError> {
        let now = |name: &String| match next.get(name) {
            Some(next) => next.as_ref(),
            None => inner.devices.get(name)?.active.as_ref(),
        };
        let names =
            || inner.devices.keys().chain(next.keys().filter(|n| !inner.devices.contains_key(*n)));
        for writer in inner.devices.keys() {
            let Some(active) = now(writer).filter(|a| !a.read_only) else { continue };
            let writes = writes(writer);
            if writes || active.table.lines().iter().any(merges) {
                let mut others = names().filter(|other| *other != writer);
                let hit = others.find(|o| now(o).is_some_and(|o| self.writes_store(active, o)));
                if let Some(owner) = hit {
                    return Err(DeviceError::refused(format!(
                        "'{writer}' would write into a store of '{owner}', whose data that would \
                         destroy; give '{writer}' a file of its own, or let it only be read"
                    )));
                }
            }
            if !writes {
                continue;
            }
            for owner in names().filter(|owner| *owner != writer) {
                let Some(origin) = now(owner) else { continue };
                if guest_writes(inner, owner) && !origin.read_only && self.share(active, origin) {
                    return Err(DeviceError::refused(format!(
                        "'{writer}' and '{owner}' have the same part of a file, and guests would \
                         write to both; give each a file of its own, or export one of them read-only"
                    )));
                }
                let world = names().filter_map(|name| Some((name, now(name)?)));
                if self.passes_by(active, (owner, origin), world) {
                    return Err(DeviceError::refused(format!(
                        "'{writer}' would be a second way to write what '{owner}' is made of, past \
                         its snapshots or below its overlay; write to '{owner}', or export \
                         '{writer}' read-only"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether writes to `writer`, or its merge, go to the file of one of `owner`'s stores.
    fn writes_store(&self, writer: &Active, owner: &Active) -> bool {
        let stores = || owner.snaps.values().flat_map(|snap| &snap.layers);
        let is_store = |file: FileId| {
            let written = self.identity(file);
            stores().any(|live| {
                let store = live.disk.info.identity;
                (store.dev, store.ino) == written
            })
        };
        let lines = || writer.table.lines().iter();
        let passed_down = lines().filter_map(|line| match &line.target {
            Target::Snapshot(snap) if snap.features.discard_passdown_origin => {
                Some(&writer.table.exceptions()[snap.exceptions].origin)
            }
            _ => None,
        });
        let mut all = lines().filter_map(written).chain(passed_down);
        all.any(|of| of.media().any(|medium| is_store(medium.file)))
    }

    /// Whether two tables name the same part of a file. Of two stacked devices the upper one names
    /// the lower.
    fn share(&self, one: &Active, other: &Active) -> bool {
        let named = |active: &Active| -> Vec<Range> {
            let lines = active.lines.iter().zip(active.table.lines());
            let of = lines.filter_map(|(line, live)| match (&line.target, &live.target) {
                (TargetSpec::Linear { dev, .. }, Target::Plain(backing)) => {
                    dev.path().map(|_| self.ranges(backing))
                }
                _ => None,
            });
            of.flatten().collect()
        };
        let others = named(other);
        named(one).iter().any(|range| others.iter().any(|other| range.overlaps(other)))
    }

    /// Whether a write to `writer` can reach bytes of `owner`'s origins, or below its overlays,
    /// without the knowledge of `owner`.
    fn passes_by<'a>(
        &self,
        writer: &Active,
        (name, owner): (&str, &Active),
        world: impl Iterator<Item = (&'a String, &'a Active)> + Clone,
    ) -> bool {
        let origins = |active: &Active| -> Vec<(OriginKey, Vec<Range>)> {
            let lines = active.table.lines().iter().enumerate();
            let origin = |(number, line): (usize, &crate::table::Line)| {
                let backing = match &line.target {
                    Target::Origin(origin) => &origin.backing,
                    Target::Merge(merge) => &merge.origin.backing,
                    Target::Plain(_) | Target::Snapshot(_) => return None,
                };
                Some((active.origin_keys.get(&number)?.clone(), self.ranges(backing)))
            };
            lines.filter_map(origin).collect()
        };
        let identity = |live: &Live| live.disk.info.identity;
        let tops = || writer.snaps.values().map(|snap| identity(&snap.live));
        let below = |snap: &Snap| -> Vec<Identity> {
            snap.layers
                .iter()
                .map(|live| identity(live))
                .filter(|it| *it != identity(&snap.live))
                .collect()
        };
        if owner.snaps.values().map(below).any(|layers| tops().any(|top| layers.contains(&top))) {
            return true;
        }
        // The base of a guest's own disk must not be written.
        let is_own = |(line, snap): &(&usize, &Snap)| {
            let spec = owner.lines[**line].target.snapshot();
            spec.is_some_and(|of| {
                is_guest_disk(world.clone(), (name, **line), of.persistence, &snap.key)
            })
        };
        let guest_disks = owner.snaps.iter().filter(is_own);
        let bases = guest_disks.map(|(_, snap)| (snap.key.clone(), self.ranges(&snap.origin)));
        let owned: Vec<_> = origins(owner).into_iter().chain(bases).collect();
        if owned.is_empty() {
            return false;
        }
        let reaches = |ranges: &[Range], but: Option<&OriginKey>| {
            owned
                .iter()
                .filter(|(key, _)| Some(key) != but)
                .any(|(_, of)| of.iter().any(|one| ranges.iter().any(|other| one.overlaps(other))))
        };
        let plain = writer.table.lines().iter().any(|line| match &line.target {
            Target::Plain(backing) => reaches(&self.ranges(backing), None),
            _ => false,
        });
        plain || origins(writer).iter().any(|(key, ranges)| reaches(ranges, Some(key)))
    }
}

/// Requires that the files and devices of a table exist.
pub(super) fn refuse_missing(inner: &Inner, loaded: &Loaded) -> Result<(), DeviceError> {
    let lines = loaded.lines.iter().enumerate();
    let used = lines.filter(|(number, _)| !loaded.lost.contains_key(number));
    for param in used.flat_map(|(_, line)| line.target.params()) {
        match (param.device(), param.path()) {
            (Some(device), _) if !inner.devices.contains_key(device) => {
                return Err(DeviceError::NoSuchParam(device.into()));
            }
            (_, Some(path)) => {
                let what = format!("cannot use {}", path.display());
                std::fs::metadata(path).map_err(DeviceError::io(what))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses to load a table that no resume could swap in, whatever else changes before: a failed
/// resume leaves its device suspended, with a waiting guest.
pub(super) fn refuse_hopeless(name: &str, lines: &[TableLine]) -> Result<(), DeviceError> {
    if devices_of(lines).iter().any(|below| below == name) {
        return Err(onto_itself(name));
    }
    for line in lines {
        if let Some(spec) = line.target.snapshot() {
            store_path(spec)?;
            refuse_as_disk(spec, line, lines)?;
        }
        if let TargetSpec::Merge(spec) = &line.target {
            refuse_transient(line, spec)?;
        }
        let Some((below, first)) = disk_of(line) else { continue };
        if let Some(path) = below.path() {
            let has = FileInfo::open(path, OpenMode::ReadOnly, false)?.len & !511;
            long_enough(line, below, has, first.saturating_add(line.len.bytes()))?;
        }
    }
    Ok(())
}

/// The file of a store, which cannot be in a device.
pub(super) fn store_path(spec: &SnapshotSpec) -> Result<&Path, DeviceError> {
    spec.cow.path().ok_or_else(|| {
        DeviceError::refused(format!(
            "the store '{}' is no file: write its path with a '/'",
            spec.cow
        ))
    })
}

/// The layers of an overlay in `top` over `below`, which share one exception table.
pub(super) fn on_top(below: &[Arc<Live>], top: &Arc<Live>) -> Result<Vec<Arc<Live>>, DeviceError> {
    let chunk = |live: &Live| live.store.chunk();
    if let Some(lower) = below.last().filter(|lower| chunk(lower) != chunk(top)) {
        return Err(DeviceError::refused(format!(
            "the store {} has chunks of {}, but the layers below have {}: give it theirs",
            top.store.name(),
            chunk(top),
            chunk(lower)
        )));
    }
    let most = Layer::MAX.0;
    if below.len() >= usize::from(most) {
        let sentence = format!("a chain has at most {most} layers; commit some first");
        return Err(DeviceError::refused(sentence));
    }
    Ok(below.iter().chain([top]).cloned().collect())
}

/// Whether `snap`, the live snapshot of the line `spec` of `name`, must be opened again because
/// layers in `below` were: its exception table has entries of theirs.
pub(super) fn is_opened_again(
    name: &str,
    spec: &SnapshotSpec,
    snap: &Snap,
    below: &[Arc<Live>],
) -> Result<bool, DeviceError> {
    let lower = &snap.layers[..snap.layers.len() - 1];
    let same = |are: fn(&Arc<Live>, &Arc<Live>) -> bool| {
        lower.len() == below.len() && lower.iter().zip(below).all(|(one, other)| are(one, other))
    };
    if same(Arc::ptr_eq) {
        return Ok(false);
    }
    if !same(|one, other| one.disk.info.identity == other.disk.info.identity) {
        return Err(DeviceError::refused(format!(
            "the store {} of '{name}' keeps changes to other layers than '{}' has; leave the layers \
             below '{name}' as they are, or remove '{name}' first",
            spec.cow, spec.origin
        )));
    }
    if snap.live.store.persistence() == Persistence::Transient {
        return Err(DeviceError::refused(format!(
            "the transient store {} of '{name}' would be lost if a layer below it was opened again; \
             remove '{name}' first",
            spec.cow
        )));
    }
    Ok(true)
}

/// What lies below a line, and from which of its bytes on.
fn disk_of(line: &TableLine) -> Option<(&Param, u64)> {
    match &line.target {
        TargetSpec::Linear { dev, offset } => Some((dev, offset.bytes())),
        TargetSpec::Origin { origin } => Some((origin, 0)),
        TargetSpec::Snapshot(spec) | TargetSpec::Merge(spec) => Some((&spec.origin, 0)),
        TargetSpec::Zero | TargetSpec::Error => None,
    }
}

/// Refuses a table in which the store of `line` is also the disk of a line.
fn refuse_as_disk(
    spec: &SnapshotSpec,
    line: &TableLine,
    lines: &[TableLine],
) -> Result<(), DeviceError> {
    let identity = |param: &Param| param.path().and_then(|path| Identity::of_path(path).ok());
    let Some(cow) = identity(&spec.cow) else { return Ok(()) };
    let is_cow = |other: &&TableLine| {
        disk_of(other).is_some_and(|(disk, _)| identity(disk).is_some_and(|disk| disk == cow))
    };
    match lines.iter().find(is_cow) {
        None => Ok(()),
        Some(other) if std::ptr::eq(other, line) => Err(own_origin(spec)),
        Some(other) => Err(DeviceError::refused(format!(
            "the store {} is also the disk of the line '{other}'; give the store a file of its own",
            spec.cow
        ))),
    }
}

/// What is in memory alone is not merged.
pub(super) fn refuse_transient(line: &TableLine, spec: &SnapshotSpec) -> Result<(), DeviceError> {
    if spec.persistence != Persistence::Transient {
        return Ok(());
    }
    let sentence = format!("the line '{line}' merges a transient store, which cannot be");
    Err(DeviceError::refused(sentence))
}

/// Requires that the device or file below a line is long enough for it.
pub(super) fn long_enough(
    line: &TableLine,
    what: &Param,
    has: u64,
    needed: u64,
) -> Result<(), DeviceError> {
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

fn onto_itself(name: &str) -> DeviceError {
    DeviceError::refused(format!("the table of '{name}' would map the device onto itself"))
}

fn own_origin(spec: &SnapshotSpec) -> DeviceError {
    DeviceError::refused(format!(
        "the store {} is the origin itself; give the snapshot a file of its own",
        spec.cow
    ))
}

impl Plan<'_> {
    /// Refuses a device on top of itself, directly or through others.
    pub(super) fn refuse_loop(&self, name: &str, lines: &[TableLine]) -> Result<(), DeviceError> {
        let mut below: Vec<String> = devices_of(lines);
        let mut seen = Vec::new();
        while let Some(next) = below.pop() {
            if next == name {
                return Err(onto_itself(name));
            }
            if !seen.contains(&next) {
                if let Some(active) = self.active(&next) {
                    below.extend(devices_of(&active.lines));
                }
                seen.push(next);
            }
        }
        Ok(())
    }

    /// Requires that a guest's disk keeps its size.
    pub(super) fn refuse_shrink(&self, name: &str) -> Result<(), DeviceError> {
        let device = self.inner.devices.get(name);
        let device = device.filter(|device| device.exports().next().is_some());
        let before = device.and_then(|device| device.active.as_ref()).map(|a| a.table.size());
        let after = self.active(name).map(|active| active.table.size());
        match (before, after) {
            (Some(before), Some(after)) if after < before && !self.devices.config.force => {
                Err(DeviceError::refused(format!(
                    "'{name}' is exported with {before} sectors and would have {after}; delete its \
                     exports first"
                )))
            }
            _ => Ok(()),
        }
    }

    /// I8: a store has one owner.
    pub(super) fn refuse_owned(&self, name: &str, spec: &SnapshotSpec) -> Result<(), DeviceError> {
        let Some(path) = spec.cow.path() else { return Ok(()) };
        let Ok(identity) = Identity::of_path(path) else { return Ok(()) };
        for other in self.names() {
            let Some(active) = self.active(&other) else { continue };
            let owns = |snap: &Snap| snap.live.disk.info.identity == identity;
            if other != name && active.snaps.values().any(owns) {
                return Err(DeviceError::Owned { store: path.into(), owner: other });
            }
        }
        Ok(())
    }

    /// I8: a new store is not made of another device's bytes.
    pub(super) fn refuse_disk(&self, name: &str, spec: &SnapshotSpec) -> Result<(), DeviceError> {
        let Some(path) = spec.cow.path() else { return Ok(()) };
        let Ok(identity) = Identity::of_path(path) else { return Ok(()) };
        let is_new = spec.persistence == Persistence::Transient
            || open::is_none(&FileInfo::open(path, OpenMode::ReadOnly, false)?);
        let is_cow = |file: FileId| self.identity(file) == (identity.dev, identity.ino);
        for other in self.names().into_iter().filter(|other| is_new && other != name) {
            let Some(active) = self.active(&other) else { continue };
            if backings(active).any(|of| of.media().any(|medium| is_cow(medium.file))) {
                return Err(DeviceError::refused(format!(
                    "the file {} is part of '{other}', whose data a store in it would overwrite; \
                     give the store a file of its own",
                    spec.cow
                )));
            }
        }
        Ok(())
    }

    /// A device that is stacked on `name`.
    pub(super) fn child_of(&self, name: &str) -> Option<String> {
        let is_stacked = |active: &Active| {
            active.snaps.iter().any(|(number, snap)| {
                let spec = active.lines[*number].target.snapshot();
                snap.layers.len() > 1 && spec.is_some_and(|of| of.origin.device() == Some(name))
            })
        };
        self.names().into_iter().find(|other| self.active(other).is_some_and(is_stacked))
    }

    /// A layer that others are stacked on can be neither written nor stacked on again, and nothing
    /// else may write into its store.
    pub(super) fn refuse_children(&self, name: &str) -> Result<(), DeviceError> {
        let Some(active) = self.active(name) else { return Ok(()) };
        if !active.read_only {
            return Err(DeviceError::refused(format!(
                "'{name}' may be written, so nothing can be stacked on it; use \
                 'blockdev-snapshot-sync' to put a new overlay on top of it"
            )));
        }
        if active.snaps.values().any(|snap| self.is_served_origin(&snap.key)) {
            return Err(DeviceError::refused(format!(
                "'{name}' is a snapshot of a live origin, whose writes go on into its store, so \
                 nothing can be stacked on it"
            )));
        }
        Ok(())
    }

    /// The base of layers is never written.
    pub(super) fn refuse_layers_over(
        &self,
        name: &str,
        key: &OriginKey,
    ) -> Result<(), DeviceError> {
        let layered = |snap: &Snap| snap.key == *key && snap.layers.len() > 1;
        let names = self.names();
        let mut others = names.iter().filter(|other| *other != name);
        match others.find(|n| self.active(n).is_some_and(|a| a.snaps.values().any(layered))) {
            Some(other) => Err(DeviceError::refused(format!(
                "'{other}' is a chain of overlays over this origin, which must not be written then"
            ))),
            None => Ok(()),
        }
    }

    /// C = O: a store cannot keep the data that is overwritten in itself.
    pub(super) fn refuse_own_origin(
        &self,
        spec: &SnapshotSpec,
        origin: &Backing,
    ) -> Result<(), DeviceError> {
        let Some(path) = spec.cow.path() else { return Ok(()) };
        let Ok(cow) = Identity::of_path(path) else { return Ok(()) };
        if origin.media().any(|medium| self.identity(medium.file) == (cow.dev, cow.ino)) {
            return Err(own_origin(spec));
        }
        Ok(())
    }

    /// Requires that a chunk is a multiple of the logical blocks of the store and the origin.
    pub(super) fn refuse_unaligned(
        &self,
        line: &TableLine,
        chunk: ChunkSize,
        live: &Live,
        origin: &Backing,
    ) -> Result<(), DeviceError> {
        let block = |file: FileId| self.devices.files.get(file).map_or(512, |i| i.logical_block());
        let most = origin.media().map(|medium| block(medium.file)).max().unwrap_or(512);
        let most = most.max(live.disk.info.logical_block());
        if chunk.bytes().is_multiple_of(u64::from(most)) {
            return Ok(());
        }
        Err(DeviceError::refused(format!(
            "the line '{line}' has chunks of {chunk}, which are not a multiple of the logical block \
             of {most} bytes below them"
        )))
    }
}

/// The disk that writes to a line go to, if it is not a store.
pub(super) fn written(line: &crate::table::Line) -> Option<&Backing> {
    match &line.target {
        Target::Plain(backing) => Some(backing),
        Target::Origin(origin) => Some(&origin.backing),
        Target::Merge(merge) => Some(&merge.origin.backing),
        Target::Snapshot(_) => None,
    }
}

fn merges(line: &crate::table::Line) -> bool {
    matches!(line.target, Target::Merge(_))
}

/// The disks that a device is made of, without its stores.
fn backings(active: &Active) -> impl Iterator<Item = &Backing> {
    let lines = active.table.lines().iter().filter_map(written);
    lines.chain(active.snaps.values().map(|snap| &snap.origin))
}

pub(super) fn devices_of(lines: &[TableLine]) -> Vec<String> {
    let params = lines.iter().flat_map(|line| line.target.params());
    params.filter_map(|param| param.device().map(str::to_owned)).collect()
}
