//! Rules between the lines of one table.
//!
//! Owns the refusals: an origin knows the snapshots of other devices, and a job merges one store, so a
//! table neither writes what lies below a snapshot of its own nor merges twice. Changes nothing.

use super::core::{Devices, Inner, Loaded};
use super::error::DeviceError;
use super::guards::{Range, written};
use super::targets::below;
use crate::io::Identity;
use crate::lines::{Param, TableLine, TargetSpec};
use crate::target::{Backing, Target};

/// What a line does to files that are not stores.
#[derive(Debug, Default)]
pub(super) struct Reach {
    writes: Vec<Range>,
    /// What its snapshot is of.
    reads: Vec<Range>,
}

/// Refuses lines of which one writes what another is a snapshot of, and second merges. `reach` is
/// by line.
fn refuse_at_odds(lines: &[TableLine], reach: &[Reach]) -> Result<(), DeviceError> {
    let mut merges = lines.iter().filter(|line| matches!(line.target, TargetSpec::Merge(_)));
    if let (Some(_), Some(second)) = (merges.next(), merges.next()) {
        return Err(DeviceError::refused(format!(
            "the line '{second}' is the second of its table that merges, and a table merges one store; \
             give it a device of its own"
        )));
    }
    let all = || lines.iter().zip(reach).enumerate();
    for (number, (line, of)) in all() {
        let meets = |one: &Range| of.writes.iter().any(|other| one.overlaps(other));
        let mut others = all().filter(|(other, _)| *other != number);
        if let Some((_, (other, _))) = others.find(|(_, (_, of))| of.reads.iter().any(meets)) {
            return Err(DeviceError::refused(format!(
                "the line '{line}' would write what the line '{other}' of the same table is a snapshot \
                 of, which would not keep that; give the snapshot a device of its own"
            )));
        }
    }
    Ok(())
}

impl Devices {
    /// Refuses a table that was built and is at odds with itself.
    pub(super) fn refuse_within(
        &self,
        lines: &[TableLine],
        table: &crate::table::Table,
    ) -> Result<(), DeviceError> {
        let reach = lines.iter().zip(table.lines()).map(|(line, live)| {
            let merges = matches!(line.target, TargetSpec::Merge(_));
            let writes = written(live).filter(|_| merges || !table.read_only());
            let reads = match &live.target {
                Target::Snapshot(snap) if line.target.snapshot().is_some() => Some(snap.exceptions),
                Target::Merge(merge) => Some(merge.exceptions),
                _ => None,
            };
            let ranges = |backing: &Backing| self.ranges(&backing.slice(0, live.len));
            Reach {
                writes: writes.map(ranges).unwrap_or_default(),
                reads: reads.map(|ex| ranges(&table.exceptions()[ex].origin)).unwrap_or_default(),
            }
        });
        refuse_at_odds(lines, &reach.collect::<Vec<_>>())
    }

    /// The same for one that is loaded, as far as its lines tell it; the rest is found when it is built.
    pub(super) fn refuse_loaded_within(
        &self,
        inner: &Inner,
        loaded: &Loaded,
    ) -> Result<(), DeviceError> {
        let reach = loaded.lines.iter().map(|line| {
            let len = line.len.bytes();
            let of = |param: &Param, start: u64| self.named(inner, param, (start, len));
            let writes = !loaded.read_only;
            match &line.target {
                TargetSpec::Linear { dev, offset } if writes => {
                    Reach { writes: of(dev, offset.bytes()), ..Reach::default() }
                }
                TargetSpec::Origin { origin } if writes => {
                    Reach { writes: of(origin, 0), ..Reach::default() }
                }
                TargetSpec::Snapshot(spec) => {
                    Reach { reads: of(&spec.origin, 0), ..Reach::default() }
                }
                TargetSpec::Merge(spec) => {
                    Reach { writes: of(&spec.origin, 0), reads: of(&spec.origin, 0) }
                }
                _ => Reach::default(),
            }
        });
        refuse_at_odds(&loaded.lines, &reach.collect::<Vec<_>>())
    }

    /// The bytes of files that a part of `param` is now; none if it is made of snapshots.
    fn named(&self, inner: &Inner, param: &Param, (start, len): (u64, u64)) -> Vec<Range> {
        match param {
            Param::Path(path) => {
                let end = start.saturating_add(len);
                let range = |Identity { dev, ino }| Range { file: (dev, ino), start, end };
                Identity::of_path(path).map(range).into_iter().collect()
            }
            Param::Device(name) => {
                let active = inner.devices.get(name).and_then(|device| device.active.as_ref());
                let backing = active.and_then(|active| below(active.table.lines()));
                let part = backing.filter(|all| start.saturating_add(len) <= all.len());
                part.map(|all| self.ranges(&all.slice(start, len))).unwrap_or_default()
            }
        }
    }
}
