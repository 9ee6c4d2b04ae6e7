//! What devices are, in the monitor's words.

use snapblk_store::control::answer::{
    DeviceInfo, DeviceState, LinearTarget, OriginTarget, SnapshotState, SnapshotTarget, Target,
    TargetInfo,
};
use snapblk_store::control::command::{Nothing, Persistence};
use snapblk_store::cow::{self, StoreState};
use snapblk_store::device::{DeviceStatus, TargetStatus};
use snapblk_store::lines::{SnapshotSpec, TargetSpec};

/// A device, as `query-devices` shows it.
pub(super) fn device(status: DeviceStatus) -> DeviceInfo {
    let line = |target: &TargetStatus, words: &str| {
        let (start, len) = (target.line.start, target.line.len);
        let text = format!("{start} {len} {} {words}", target.line.target.name());
        text.trim_end().to_owned()
    };
    DeviceInfo {
        table: status.targets.iter().map(|target| line(target, &target.params)).collect(),
        status: status.targets.iter().map(|target| line(target, &target.status)).collect(),
        targets: status.targets.iter().map(target).collect(),
        name: status.name,
        uuid: status.uuid,
        state: if status.suspended { DeviceState::Suspended } else { DeviceState::Active },
        size: status.size,
        has_inactive_table: status.has_inactive_table,
        open_count: u32::try_from(status.open_count).unwrap_or(u32::MAX),
    }
}

fn target(status: &TargetStatus) -> TargetInfo {
    let line = &status.line;
    let target = match &line.target {
        TargetSpec::Linear { dev, offset } => {
            Target::Linear(LinearTarget { device: dev.to_string(), offset: offset.bytes() })
        }
        TargetSpec::Zero => Target::Zero(Nothing {}),
        TargetSpec::Error => Target::Error(Nothing {}),
        TargetSpec::Origin { origin } => {
            Target::SnapshotOrigin(OriginTarget { origin: origin.to_string() })
        }
        TargetSpec::Snapshot(spec) => Target::Snapshot(snapshot(status, spec)),
        TargetSpec::Merge(spec) => Target::SnapshotMerge(snapshot(status, spec)),
    };
    TargetInfo { start: line.start.bytes(), length: line.len.bytes(), target }
}

fn snapshot(status: &TargetStatus, spec: &SnapshotSpec) -> SnapshotTarget {
    let state = match status.state {
        _ if status.merge_failed => SnapshotState::MergeFailed,
        None | Some(StoreState::Valid | StoreState::Full) => SnapshotState::Valid,
        Some(StoreState::Overflow | StoreState::ReadOnly) => SnapshotState::Overflow,
        Some(StoreState::Invalidating | StoreState::Invalid | StoreState::Unmarked) => {
            SnapshotState::Invalid
        }
    };
    let usage = status.usage.filter(|_| state != SnapshotState::Invalid);
    SnapshotTarget {
        origin: spec.origin.to_string(),
        cow: spec.cow.to_string(),
        persistent: match spec.persistence {
            cow::Persistence::Persistent => Persistence::Persistent,
            cow::Persistence::Overflow => Persistence::PersistentOverflow,
            cow::Persistence::Transient => Persistence::Transient,
        },
        chunk_size: spec.chunk.map_or(0, |chunk| chunk.bytes()),
        state,
        allocated: usage.map(|(allocated, ..)| allocated * 512),
        total: usage.map(|(_, total, _)| total * 512),
        metadata: usage.map(|(.., metadata)| metadata * 512),
        metadata_snapshot: "-".into(),
    }
}
