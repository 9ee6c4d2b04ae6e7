//! Origins: one object for each, however it is named, with its snapshots.
//!
//! Owns who snapshots what. Never knows how a snapshot is kept. An origin is known by where its
//! bytes lie, so that a path, a link to it and a linear device over it are one origin.

use std::collections::HashMap;

use crate::io::FileId;
use crate::target::{Backing, ExtentPlace};
use crate::workers::TrackedId;

/// Where an origin's bytes lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OriginKey(Vec<Piece>);

/// A file's device and inode.
type FileOf = (u64, u64);

/// First byte, bytes, and the file they lie in with the offset there.
type Piece = (u64, u64, Option<(FileOf, u64)>);

impl OriginKey {
    /// The key of `backing`; `identity` tells a file's device and inode.
    pub(super) fn of(backing: &Backing, identity: impl Fn(FileId) -> FileOf) -> OriginKey {
        let extent = |e: &crate::target::Extent| match &e.place {
            ExtentPlace::File { medium, offset } => {
                (e.start, e.len, Some((identity(medium.file), *offset)))
            }
            ExtentPlace::Zero | ExtentPlace::Error => (e.start, e.len, None),
        };
        // The length is left out of the last: a snapshot may be shorter than its origin.
        let mut extents: Vec<_> = backing.extents().iter().map(extent).collect();
        if let Some(last) = extents.last_mut() {
            last.1 = 0;
        }
        OriginKey(extents)
    }
}

/// Gives each origin the number under which its ranges are tracked.
#[derive(Debug, Default)]
pub(super) struct Origins {
    known: HashMap<OriginKey, TrackedId>,
    next: u32,
}

impl Origins {
    /// The number of the origin `key`.
    pub(super) fn id(&mut self, key: &OriginKey) -> TrackedId {
        if let Some(id) = self.known.get(key) {
            return *id;
        }
        let id = self.fresh();
        self.known.insert(key.clone(), id);
        id
    }

    /// A number for something else that is tracked.
    pub(super) fn fresh(&mut self) -> TrackedId {
        self.next += 1;
        TrackedId(self.next)
    }
}
