//! Origins: one object for each, however it is named, with its snapshots.
//!
//! Owns which devices snapshot which origin, and which overlays have no served origin and so are
//! guests' own disks. Never knows how a snapshot is kept. An origin is identified by the place of
//! its bytes, so that a path, a link to it and a linear device over it are one origin.

use std::collections::HashMap;

use super::build::{Active, Snap};
use super::core::Inner;
use super::error::DeviceError;
use crate::cow::Persistence;
use crate::io::FileId;
use crate::lines::TargetSpec;
use crate::target::{Backing, Content};
use crate::workers::TrackedObject;

/// The beginning of an origin's bytes, which stays the same when the origin grows, and if a
/// snapshot is shorter than its origin. Origins that begin alike and differ later count as one;
/// this only costs some unneeded exceptions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OriginKey(Option<Begin>);

/// A file's device and inode.
pub(super) type FileOf = (u64, u64);

/// The first byte that lies in a file: its place on the origin, the file, and its place there.
type Begin = (u64, FileOf, u64);

impl OriginKey {
    /// The key of `backing`; `identity` returns a file's device and inode.
    pub(super) fn of(backing: &Backing, identity: impl Fn(FileId) -> FileOf) -> OriginKey {
        let begin = backing.extents().iter().find_map(|extent| match &extent.content {
            Content::File { medium, offset } => {
                Some((extent.start, identity(medium.file), *offset))
            }
            Content::Zero | Content::Error => None,
        });
        OriginKey(begin)
    }
}

/// Numbers the origins whose ranges are tracked.
#[derive(Debug, Default)]
pub(super) struct Origins {
    known: HashMap<OriginKey, TrackedObject>,
    next: u32,
}

impl Origins {
    /// The number of the origin `key`.
    pub(super) fn id(&mut self, key: &OriginKey) -> TrackedObject {
        if let Some(id) = self.known.get(key) {
            return *id;
        }
        let id = self.fresh();
        self.known.insert(key.clone(), id);
        id
    }

    /// A number for something else whose ranges are tracked.
    pub(super) fn fresh(&mut self) -> TrackedObject {
        self.next += 1;
        TrackedObject(self.next)
    }
}

/// Whether line `line` of the device `name`, a snapshot of the origin `key`, is a guest's own disk
/// given the tables of `world`: an overlay that can grow, and whose base no origin writes. The
/// origin that a merge line itself merges into does not count.
pub(super) fn is_guest_disk<'a>(
    world: impl IntoIterator<Item = (&'a String, &'a Active)>,
    (name, line): (&str, usize),
    persistence: Persistence,
    key: &OriginKey,
) -> bool {
    let writes = |(other, active): (&String, &Active)| {
        let merges = |line: usize| matches!(active.lines[line].target, TargetSpec::Merge(_));
        let own = |at: usize| other == name && at == line && merges(at);
        active.origin_keys.iter().any(|(at, known)| known == key && !own(*at))
    };
    persistence == Persistence::PersistentOverflow && !world.into_iter().any(writes)
}

/// The refusal of a layer over `name`, which is `snap`, of an origin that is `served` or not.
pub(super) fn no_layer(name: &str, snap: &Snap, served: bool) -> DeviceError {
    let cow = snap.live.store.name();
    DeviceError::refused(match snap.live.store.persistence() {
        _ if served => format!(
            "'{name}' is a snapshot of a live origin, whose writes go on into its store, so nothing \
             can be stacked on it"
        ),
        Persistence::Transient => format!(
            "'{name}' keeps its changes in memory alone (N), and what is a layer must be on disk; \
             give it a store of its own with 'PO'"
        ),
        _ => format!(
            "the store {cow} of '{name}' becomes invalid when it is full (P), and with it every layer \
             above; load the table of '{name}' with 'PO' in place of 'P', and resume it, which keeps \
             the store"
        ),
    })
}

impl Inner {
    /// Whether a table writes the origin `key` for its snapshots.
    pub(super) fn is_served_origin(&self, key: &OriginKey) -> bool {
        let active = self.devices.values().filter_map(|device| device.active.as_ref());
        active.into_iter().any(|active| active.origin_keys.values().any(|known| known == key))
    }
}

/// Tells every store, after a change of tables, whether it is a guest's own disk. Nothing that
/// depends on it is in flight.
pub(super) fn mark_guest_disks(inner: &Inner) {
    let world = || {
        let all = inner.devices.iter();
        all.filter_map(|(name, device)| Some((name, device.active.as_ref()?)))
    };
    // There are few of them, and a guest waits.
    let origins: Vec<_> = world().filter(|(_, active)| !active.origin_keys.is_empty()).collect();
    for (name, active) in world() {
        for (line, snap) in &active.snaps {
            let Some(spec) = active.lines[*line].target.snapshot() else { continue };
            let origins = origins.iter().copied();
            let is_one = is_guest_disk(origins, (name, *line), spec.persistence, &snap.key);
            snap.live.store.set_guest_disk(is_one);
        }
    }
}
