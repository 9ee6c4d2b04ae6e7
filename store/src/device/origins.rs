//! Origins: one object for each, however it is named, with its snapshots.
//!
//! Owns who snapshots what. Never knows how a snapshot is kept. An origin is known by where its
//! bytes lie, so that a path, a link to it and a linear device over it are one origin.

use std::collections::HashMap;

use crate::io::FileId;
use crate::target::{Backing, ExtentPlace};
use crate::workers::TrackedId;

/// Where an origin's bytes begin: what stays the same when it grows, and when a snapshot is shorter
/// than its origin. Origins that begin alike and go on differently count as one, which costs
/// exceptions that nobody needs and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OriginKey(Option<Begin>);

/// A file's device and inode.
pub(super) type FileOf = (u64, u64);

/// The first byte that lies in a file: its place on the origin, the file, and its place there.
type Begin = (u64, FileOf, u64);

impl OriginKey {
    /// The key of `backing`; `identity` tells a file's device and inode.
    pub(super) fn of(backing: &Backing, identity: impl Fn(FileId) -> FileOf) -> OriginKey {
        let begin = backing.extents().iter().find_map(|extent| match &extent.place {
            ExtentPlace::File { medium, offset } => {
                Some((extent.start, identity(medium.file), *offset))
            }
            ExtentPlace::Zero | ExtentPlace::Error => None,
        });
        OriginKey(begin)
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
