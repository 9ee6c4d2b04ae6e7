//! Handing a live store over: from the table that has it to a loaded table that names it.
//!
//! Owns which device may take a store from which, and when; and the remains of a table that gave
//! its store away. The *source* is the device whose active table has the store, the *destination*
//! the one whose inactive table names it. No link between the two is kept: each is looked up in
//! the tables when it is needed. Never knows the content of a store: its exceptions move as they
//! are, and nothing is read. Keeps I8: a store moves within one plan, so that there is one owner
//! before and after.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::build::{Active, Plan, Snap};
use super::core::{DeviceEvent, Devices, Inner, Loaded};
use super::error::DeviceError;
use super::full::written;
use crate::cow::{MergeMark, Persistence, StoreState};
use crate::io::Identity;
use crate::lines::{SnapshotSpec, TableLine, TargetSpec};
use crate::wake::WakeSet;

/// Why a snapshot's line has no store. Its status is Invalid; a newly loaded table opens the
/// store, if no other device has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Lost {
    /// Another table took it over: every request fails.
    HandedOver,
    /// It was to take the store over, but the source was removed before; or the store was in memory, and
    /// its file is gone since the process that had it. Every request fails; a merge becomes its plain
    /// origin.
    SourceGone,
}

/// Devices that give stores away, and from which of their lines.
type Sources = BTreeMap<String, Vec<usize>>;

fn identity_of(spec: &SnapshotSpec) -> Option<Identity> {
    Identity::of_path(spec.cow.path()?).ok()
}

fn identity(snap: &Snap) -> Identity {
    snap.live.disk.info.identity
}

impl Loaded {
    /// The lines that name a store, and the stores.
    fn wants(&self) -> impl Iterator<Item = (usize, Identity)> {
        let lines = self.lines.iter().enumerate();
        let wanted = lines.filter(|(number, _)| !self.lost.contains_key(number));
        wanted.filter_map(|(number, line)| Some((number, identity_of(line.target.snapshot()?)?)))
    }

    /// The line that names that store.
    fn names(&self, store: Identity) -> Option<&TableLine> {
        self.wants().find(|(_, wanted)| *wanted == store).map(|(number, _)| &self.lines[number])
    }
}

impl Active {
    /// The line with that store.
    fn has(&self, store: Identity) -> Option<usize> {
        self.snaps.iter().find(|(_, snap)| identity(snap) == store).map(|(number, _)| *number)
    }

    fn stores(&self) -> impl Iterator<Item = Identity> {
        self.snaps.values().map(identity)
    }
}

impl Inner {
    /// Whether the store of `spec` is live in some table.
    pub(super) fn lives(&self, spec: &SnapshotSpec) -> bool {
        identity_of(spec).is_some_and(|store| self.source(store, "").is_some())
    }

    /// The device other than `but` whose active table has the store, and the line.
    fn source(&self, store: Identity, but: &str) -> Option<(&str, usize)> {
        let others = self.devices.iter().filter(|(name, _)| *name != but);
        others
            .into_iter()
            .find_map(|(name, device)| Some((name.as_str(), device.active.as_ref()?.has(store)?)))
    }

    /// The device other than `but` whose inactive table names the store.
    fn destination(&self, store: Identity, but: &str) -> Option<&str> {
        let others = self.devices.iter().filter(|(name, _)| *name != but);
        let wants = |loaded: &Loaded| loaded.wants().any(|(_, wanted)| wanted == store);
        let mut names = others.filter(|(_, device)| device.inactive.as_ref().is_some_and(wants));
        names.next().map(|(name, _)| name.as_str())
    }

    /// The device that is to take a store over from `name`.
    pub(super) fn destination_of(&self, name: &str) -> Option<&str> {
        let active = self.devices.get(name)?.active.as_ref()?;
        active.stores().find_map(|store| self.destination(store, name))
    }

    /// Requires that a store has one destination.
    pub(super) fn refuse_third(&self, name: &str, loaded: &Loaded) -> Result<(), DeviceError> {
        for (number, store) in loaded.wants() {
            if let Some(other) = self.destination(store, name) {
                return Err(DeviceError::refused(format!(
                    "pairing failed: a table that names the store of the line '{}' is loaded into \
                     '{other}' already; clear that one first",
                    loaded.lines[number]
                )));
            }
        }
        Ok(())
    }

    /// Refuses to resume a source while a destination is loaded.
    pub(super) fn refuse_source(&self, name: &str) -> Result<(), DeviceError> {
        let Some(other) = self.destination_of(name) else { return Ok(()) };
        Err(DeviceError::refused(format!(
            "'{name}' is to hand its store over to the table that is loaded into '{other}'; resume \
             '{other}', or clear that table first"
        )))
    }

    /// The devices that give their stores to `loaded`, the new table of `name`.
    pub(super) fn sources(&self, name: &str, loaded: &Loaded) -> Result<Sources, DeviceError> {
        let mut sources = Sources::new();
        for (number, store) in loaded.wants() {
            let Some((source, line)) = self.source(store, name) else { continue };
            let device = &self.devices[source];
            if let (Some(active), Some(spec)) =
                (&device.active, loaded.lines[number].target.snapshot())
            {
                if !device.suspended {
                    let store = spec.cow.to_string().into();
                    return Err(DeviceError::Owned { store, owner: source.into() });
                }
                self.refuse_move(source, active, line, spec)?;
            }
            sources.entry(source.to_owned()).or_default().push(line);
        }
        Ok(sources)
    }

    /// Refuses to move the store of `line` of `source` to a line with `to` that is not a snapshot
    /// of the same origin.
    fn refuse_move(
        &self,
        source: &str,
        active: &Active,
        line: usize,
        to: &SnapshotSpec,
    ) -> Result<(), DeviceError> {
        let (snap, from) = (&active.snaps[&line], active.lines[line].target.snapshot());
        refuse_other_persistence(source, snap, to)?;
        let below = to.origin.device().and_then(|name| self.devices.get(name)?.active.as_ref());
        let stacked = below.is_some_and(|below| below.whole_snapshot().is_some());
        let layered = snap.layers.len() > 1;
        if stacked != layered || (layered && from.is_some_and(|from| from.origin != to.origin)) {
            return Err(other_origin(source, to));
        }
        let lies_on_it = |upper: &Snap| upper.lies_on(&snap.live);
        let all = self.devices.iter();
        let mut uppers = all.filter_map(|(name, device)| Some((name, device.active.as_ref()?)));
        if let Some((upper, _)) = uppers.find(|(_, a)| a.snaps.values().any(lies_on_it)) {
            let by = format!("the device '{upper}', which lies on its store");
            return Err(DeviceError::InUse { name: source.into(), by });
        }
        Ok(())
    }

    /// The stores that must be reopened for `loaded`, the new table of `name`, with their present
    /// devices: with a layer those above it, whose exception tables have its entries. Other stores
    /// of a serving device are not included.
    pub(super) fn reopened(&self, name: &str, loaded: &Loaded) -> Vec<(String, Snap)> {
        let reopened = |(number, store): (usize, Identity)| {
            let (owner, line) = self.source(store, "")?;
            let device = &self.devices[owner];
            let snap = device.active.as_ref()?.snaps.get(&line)?;
            let is_ours = owner == name || device.suspended;
            let moves = can_move(snap, &loaded.lines[number]);
            (is_ours && !moves).then(|| (owner.to_owned(), snap.clone()))
        };
        let mut all: Vec<(String, Snap)> = loaded.wants().filter_map(reopened).collect();
        let lies = |upper: &Snap| all.iter().any(|(_, lower)| upper.lies_on(&lower.live));
        let mut uppers = Vec::new();
        for (upper, device) in &self.devices {
            let snaps = device.active.iter().flat_map(|active| active.snaps.values());
            uppers.extend(snaps.filter(|snap| lies(snap)).map(|s| (upper.clone(), s.clone())));
        }
        all.extend(uppers);
        all
    }

    /// The devices whose requests may reach the store of `snap`.
    pub(super) fn users_of(&self, snap: &Snap) -> Vec<String> {
        let store = &snap.live.store;
        let uses = |active: &Active| {
            let mut layers = active.table.exceptions().iter().flat_map(|ex| &ex.layers);
            layers.any(|layer| std::sync::Arc::ptr_eq(layer, store))
        };
        let using = self.devices.iter().filter(|(_, d)| d.active.as_ref().is_some_and(uses));
        using.map(|(name, _)| name.clone()).collect()
    }

    /// Records which inactive tables wait for a store that no device has once `next` serves.
    /// Returns the record, so that it can be undone.
    pub(super) fn lose_sources(
        &mut self,
        next: &BTreeMap<String, Option<Active>>,
    ) -> Vec<(String, usize)> {
        let now = self.devices.values().filter_map(|device| device.active.as_ref());
        let live: Vec<Identity> = now.flat_map(Active::stores).collect();
        let unchanged = self.devices.iter().filter(|(name, _)| !next.contains_key(*name));
        let unchanged = unchanged.filter_map(|(_, device)| device.active.as_ref());
        let stays: Vec<Identity> =
            unchanged.chain(next.values().flatten()).flat_map(Active::stores).collect();
        let mut noted = Vec::new();
        for (name, device) in &mut self.devices {
            let Some(loaded) = &mut device.inactive else { continue };
            let wants: Vec<_> = loaded.wants().collect();
            for (number, store) in wants {
                if live.contains(&store) && !stays.contains(&store) {
                    loaded.lost.insert(number, Lost::SourceGone);
                    noted.push((name.clone(), number));
                }
            }
        }
        noted
    }

    /// Undoes [`Inner::lose_sources`].
    pub(super) fn find_sources(&mut self, noted: Vec<(String, usize)>) {
        for (name, number) in noted {
            let device = self.devices.get_mut(&name);
            if let Some(loaded) = device.and_then(|device| device.inactive.as_mut()) {
                loaded.lost.remove(&number);
            }
        }
    }
}

/// Refuses to make a store in memory of one on disk, which would be overwritten, and the other way
/// round, where its exceptions would be lost.
fn refuse_other_persistence(
    owner: &str,
    snap: &Snap,
    to: &SnapshotSpec,
) -> Result<(), DeviceError> {
    let transient = |persistence: Persistence| persistence == Persistence::Transient;
    if transient(snap.live.store.persistence()) == transient(to.persistence) {
        return Ok(());
    }
    Err(DeviceError::refused(format!(
        "'{owner}' keeps the store {} {}; a table takes it over as it is",
        to.cow,
        if transient(to.persistence) { "on disk (P or PO)" } else { "in memory (N)" }
    )))
}

fn other_origin(source: &str, to: &SnapshotSpec) -> DeviceError {
    DeviceError::refused(format!(
        "the store {} of '{source}' is not one of '{}': a store belongs to one origin",
        to.cow, to.origin
    ))
}

impl Plan<'_> {
    /// Gives `name` the table `loaded`, which takes over the stores of its old table and those of
    /// `sources`. It is read-only if others are stacked on it.
    pub(super) fn take_over(
        &mut self,
        name: &str,
        loaded: &Loaded,
        sources: &Sources,
    ) -> Result<(), DeviceError> {
        let reopened = self.inner.reopened(name, loaded);
        for (_, snap) in &reopened {
            refuse_unerased(snap, loaded)?;
        }
        let moves = |snap: &Snap| {
            !reopened.iter().any(|(_, other)| std::sync::Arc::ptr_eq(&other.live, &snap.live))
        };
        let own = self.inner.device(name)?.active.iter().flat_map(|active| active.snaps.values());
        let own: Vec<Snap> = own.cloned().collect();
        let mut given = Vec::new();
        for snap in &own {
            let Some(line) = loaded.names(identity(snap)) else { continue };
            let Some(to) = line.target.snapshot() else { continue };
            refuse_other_persistence(name, snap, to)?;
            // A snapshot's origin may have got another place. A merge would write to it.
            if matches!(line.target, TargetSpec::Merge(_)) {
                given.push((name, snap.key.clone(), identity(snap)));
            }
        }
        let mut reuse: Vec<Snap> = own.into_iter().filter(|snap| moves(snap)).collect();
        for (source, lines) in sources {
            let snaps = self.part_with(source, lines)?;
            given.extend(snaps.iter().map(|snap| (&**source, snap.key.clone(), identity(snap))));
            reuse.extend(snaps.into_iter().filter(moves));
        }
        let layer_of = self.child_of(name).filter(|_| !loaded.read_only);
        if let Some(child) = &layer_of {
            // Else neither a commit nor the next start could build the chain again.
            tracing::warn!("'{name}' stays read-only: '{child}' is stacked on it");
        }
        let read_only = loaded.read_only || layer_of.is_some();
        self.set(name, &Loaded { read_only, ..loaded.clone() }, &reuse)?;
        for (source, key, store) in given {
            let active = self.active(name);
            let Some(line) = active.and_then(|active| active.has(store)) else { continue };
            let taken = active.is_some_and(|active| active.snaps[&line].key == key);
            if let (false, Some(to)) = (taken, loaded.lines[line].target.snapshot()) {
                return Err(other_origin(source, to));
            }
        }
        Ok(())
    }

    /// Takes the stores of `lines` away from `source`, whose requests to them then fail.
    fn part_with(&mut self, source: &str, lines: &[usize]) -> Result<Vec<Snap>, DeviceError> {
        let device = &self.inner.devices[source];
        let Some(active) = &device.active else { return Ok(Vec::new()) };
        let mut loaded = active.loaded();
        loaded.lost.extend(lines.iter().map(|line| (*line, Lost::HandedOver)));
        let (mut given, mut rest) = (Vec::new(), Vec::new());
        for (line, snap) in &active.snaps {
            let part = if lines.contains(line) { &mut given } else { &mut rest };
            part.push(snap.clone());
        }
        // It continues with the table loaded into it; until then, waiting requests see no error.
        let releases = rest.is_empty() && device.inactive.is_none();
        if device.removed && rest.is_empty() {
            self.next.insert(source.into(), None);
        } else {
            self.set(source, &loaded, &rest)?;
            if releases {
                self.released.push(source.into());
            }
        }
        Ok(given)
    }
}

/// Whether a store stays live when a table with `line` is loaded for it. A store that only reads
/// since a commit failed is reopened: that is the meaning of reactivation. So is one that leaves a
/// merge: a snapshot allocates after the newest remaining exception, which is only known from the
/// disk. A transient store is never reopened, which would lose it: another length is refused.
pub(super) fn can_move(snap: &Snap, line: &TableLine) -> bool {
    let store = &snap.live.store;
    let is_transient = store.persistence() == Persistence::Transient;
    let kept = line
        .target
        .snapshot()
        .is_some_and(|spec| (spec.persistence == Persistence::Transient) == is_transient);
    let merges = matches!(line.target, TargetSpec::Merge(_));
    kept && (is_transient || snap.len == line.len.bytes())
        && store.state() != StoreState::CommitFailed
        && (merges || store.merge_mark() == MergeMark::None)
}

/// What the table of `name` makes of stores that were another's before, or had no room, and of other
/// files that had none below them. Nothing is in flight, and who waits is to be woken later.
pub(super) fn settle(name: &str, active: &Active) -> WakeSet {
    let mut waiting = WakeSet::NONE;
    for (line, snap) in &active.snaps {
        snap.live.owner.becomes(name);
        waiting |= snap.live.look_for_room();
        let store = &snap.live.store;
        if let Some(spec) = active.lines[*line].target.snapshot() {
            store.set_persistence(spec.persistence);
        }
    }
    written(active).fold(waiting, |all, disk| all | disk.medium.forget_room())
}

/// Refuses a store whose newest entries may not be on disk any more: entries that are read now may
/// be gone later.
fn refuse_unerased(snap: &Snap, loaded: &Loaded) -> Result<(), DeviceError> {
    let merges = loaded.lines.iter().any(|line| matches!(line.target, TargetSpec::Merge(_)));
    if merges || snap.live.store.merge_mark() != MergeMark::Unerased {
        return Ok(());
    }
    Err(DeviceError::refused(format!(
        "the merge of the store {} failed while it removed exceptions, and which of them are left \
         is not known; resume it as 'snapshot-merge' first",
        snap.live.store.name()
    )))
}

/// The device `name` is active again with another table: a store with room is no longer Full.
pub(super) fn reactivate(inner: &Inner, name: &str) {
    if let Some(active) = inner.devices.get(name).and_then(|device| device.active.as_ref()) {
        active.snaps.values().for_each(|snap| snap.live.store.reactivate());
    }
}

impl Devices {
    /// A device with a new table is resumed: says which of its stores are Invalid, or another table's.
    pub(super) fn say_invalid(&self, inner: &Inner, name: &str) {
        let Some(active) = inner.devices.get(name).and_then(|d| d.active.as_ref()) else { return };
        let stores = active.snaps.values().map(|snap| &snap.live.store);
        let invalid = stores.filter(|store| store.state().is_invalid());
        let invalid = invalid.map(|store| store.name().to_owned());
        let lost = active.lost.keys().filter_map(|line| active.lines[*line].target.snapshot());
        for store in invalid.chain(lost.map(|spec| spec.cow.to_string())) {
            self.event(DeviceEvent::ResumedInvalid { device: name.into(), store });
        }
    }

    /// Removes only the name of a suspended source whose stores a destination will take.
    pub(super) fn remove_source(&self, inner: &mut Inner, name: &str) -> Result<(), DeviceError> {
        let Some(mut device) = inner.devices.remove(name) else { return Ok(()) };
        let inactive = device.inactive.take();
        device.removed = true;
        // No device can be created with this name.
        let hidden = (1..).map(|n| format!("{name} (removed {n})"));
        let hidden = hidden.into_iter().find(|hidden| !inner.devices.contains_key(hidden));
        let hidden = hidden.unwrap_or_default();
        inner.devices.insert(hidden.clone(), device);
        self.keep(inner).inspect_err(|_| {
            if let Some(mut device) = inner.devices.remove(&hidden) {
                device.inactive = inactive;
                device.removed = false;
                inner.devices.insert(name.into(), device);
            }
        })
    }

    /// Releases removed sources that no longer have a destination.
    pub(super) fn forget_removed(&self, inner: &mut Inner) {
        let unwanted = |inner: &Inner| {
            let mut removed = inner.devices.iter().filter(|(_, device)| device.removed);
            removed.find(|(n, _)| inner.destination_of(n).is_none()).map(|(n, _)| n.clone())
        };
        while let Some(name) = unwanted(inner) {
            if let Err(error) = self.let_go(inner, &name) {
                tracing::error!("{error}");
                return;
            }
        }
    }
}
