//! What devices are, in the monitor's words.

use snapblk_store::control::answer::{
    DeviceInfo, DeviceState, LinearTarget, OriginTarget, SnapshotState, SnapshotTarget, Target,
    TargetInfo,
};
use snapblk_store::control::command::{Nothing, Persistence};
use snapblk_store::cow::{self, StoreState};
use snapblk_store::device::{DeviceStatus, TargetStatus};
use snapblk_store::lines::{SnapshotSpec, TableLine, TargetSpec};

/// A device, as `query-devices` shows it.
pub(super) fn device(status: DeviceStatus) -> DeviceInfo {
    let line = |target: &TargetStatus, words: &str| {
        let TableLine { start, len, target } = &target.line;
        let gap = if words.is_empty() { "" } else { " " };
        format!("{start} {len} {}{gap}{words}", target.name())
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
    // In the order in which the status line's words take precedence.
    let state = match status.state {
        Some(StoreState::Invalidating | StoreState::Invalid | StoreState::Unmarked) => {
            SnapshotState::Invalid
        }
        _ if status.merge_failed => SnapshotState::MergeFailed,
        Some(StoreState::Overflow | StoreState::CommitFailed) => SnapshotState::Overflow,
        None | Some(StoreState::Valid | StoreState::Full) => SnapshotState::Valid,
    };
    let usage = status.usage.filter(|_| state != SnapshotState::Invalid);
    SnapshotTarget {
        origin: spec.origin.to_string(),
        cow: spec.cow.to_string(),
        persistent: match spec.persistence {
            cow::Persistence::Persistent => Persistence::Persistent,
            cow::Persistence::PersistentOverflow => Persistence::PersistentOverflow,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_that_failed_over_an_invalid_store_is_invalid() {
        let of = |state, merge_failed| {
            let status = TargetStatus {
                line: "0 8 snapshot-merge /disk /store P 8".parse().expect("a line"),
                params: String::new(),
                status: String::new(),
                usage: Some((16, 64, 16)),
                state: Some(state),
                merge_failed,
            };
            let Target::SnapshotMerge(target) = target(&status).target else { panic!("it merges") };
            (target.state, target.allocated.is_some())
        };
        for state in [StoreState::Invalid, StoreState::Invalidating, StoreState::Unmarked] {
            assert_eq!(of(state, true), (SnapshotState::Invalid, false));
        }
        assert_eq!(of(StoreState::CommitFailed, true), (SnapshotState::MergeFailed, true));
        assert_eq!(of(StoreState::CommitFailed, false), (SnapshotState::Overflow, true));
    }
}
