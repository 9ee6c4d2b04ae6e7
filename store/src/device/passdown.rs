//! Which snapshots may pass discards down to their origin (`discard_passdown_origin`).
//!
//! Owns the refusals: a discard that reaches the origin past all exceptions is lost to every other
//! snapshot of it, so a snapshot that passes discards down must be the only one.
//! Changes nothing.

use std::collections::BTreeMap;

use super::build::{Plan, Snap};
use super::error::DeviceError;
use super::targets::Base;
use crate::io::OpenMode;
use crate::lines::{SnapshotSpec, TableLine, TargetSpec};
use crate::target::{Content, Features};

/// How a snapshot must open its origin.
pub(super) fn mode(spec: &SnapshotSpec) -> OpenMode {
    match spec.features.discard_passdown_origin {
        true => OpenMode::ReadWrite,
        false => OpenMode::ReadOnly,
    }
}

/// What the snapshot of `line` does with discards. Those of a merge go to its origin anyway, which
/// keeps what other snapshots need.
pub(super) fn features(line: &TableLine) -> Features {
    match &line.target {
        TargetSpec::Snapshot(spec) => spec.features,
        _ => Features::default(),
    }
}

impl Plan<'_> {
    /// Requires that the origin of a snapshot that passes discards down is writable, and not a
    /// snapshot.
    pub(super) fn refuse_passdown_to(
        &self,
        spec: &SnapshotSpec,
        base: &Base,
    ) -> Result<(), DeviceError> {
        if !spec.features.discard_passdown_origin {
            return Ok(());
        }
        let why = match base {
            Base::Stacked { name, .. } => format!("'{name}' is a snapshot of it too"),
            Base::Plain(backing) => {
                let is_fixed = |content: &Content| match content {
                    Content::File { medium, .. } => {
                        self.devices.files.get(medium.file).is_none_or(|info| !info.writable)
                    }
                    Content::Zero | Content::Error => false,
                };
                let below = spec.origin.device().and_then(|name| self.active(name));
                let fixed = below.is_some_and(|active| active.read_only)
                    || backing.extents().iter().any(|extent| is_fixed(&extent.content));
                if !fixed {
                    return Ok(());
                }
                "that is read-only".to_owned()
            }
        };
        Err(DeviceError::refused(format!(
            "discard_passdown_origin would discard parts of the origin {}, but {why}; leave the \
             feature out",
            spec.origin
        )))
    }

    /// Requires that a snapshot that passes discards down is its origin's only one: it is not made
    /// beside others, nor another beside it. `siblings` are the snapshots of the same table.
    pub(super) fn refuse_beside_passdown(
        &self,
        name: &str,
        line: &TableLine,
        snap: &Snap,
        siblings: &BTreeMap<usize, Snap>,
    ) -> Result<(), DeviceError> {
        let names = self.names();
        let others = names.iter().filter(|other| *other != name);
        let others = others.flat_map(|other| {
            let snaps = self.active(other).into_iter().flat_map(|active| active.snaps.values());
            snaps.map(move |snap| (other.as_str(), snap))
        });
        let store = |snap: &Snap| snap.live.disk.info.identity;
        let mut all = others.chain(siblings.values().map(|snap| (name, snap)));
        let beside = |other: &Snap| other.key == snap.key && store(other) != store(snap);
        let passes_down = |snap: &Snap| snap.features.discard_passdown_origin;
        match all.find(|(_, other)| beside(other) && (passes_down(snap) || passes_down(other))) {
            Some((other, _)) => Err(DeviceError::refused(format!(
                "the line '{line}' would make two snapshots of an origin, the other in '{other}', \
                 of which one passes discards down to it (discard_passdown_origin): the other \
                 would lose what it has not copied; leave the feature out"
            ))),
            None => Ok(()),
        }
    }
}
