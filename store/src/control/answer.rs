//! The answers of commands.

use serde::Serialize;

use super::job::JobInfo;
use crate::{choice, record, union};

/// The answer of a command that was carried out; which variant goes with which command is said
/// at [`Command`](super::Command).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// It is done, and there is nothing to tell.
    Done(super::command::Nothing),
    /// A target's answer to a message; may be empty.
    Message(String),
    /// The devices.
    Devices(Vec<DeviceInfo>),
    /// The exports.
    Exports(Vec<BlockExportInfo>),
    /// The jobs.
    Jobs(Vec<JobInfo>),
}

impl Answer {
    /// It is done, and there is nothing to tell.
    pub const DONE: Answer = Answer::Done(super::command::Nothing {});
}

choice! {
    /// Whether a device serves.
    pub enum DeviceState {
        /// It does, if it has a table.
        Active = "active",
        /// It holds requests until it is resumed.
        Suspended = "suspended",
    }
}

record! {
    /// A device, as `query-devices` shows it.
    pub struct DeviceInfo {
        /// Its name.
        name: String,
        /// Its identity.
        uuid: Option<String>,
        /// Whether it serves.
        state: DeviceState,
        /// Bytes; 0 without a table.
        size: u64,
        /// Whether a table is loaded and waits for a resume.
        has_inactive_table: bool,
        /// Exports and tables that use it.
        open_count: u32,
        /// One line a target, as `dmsetup table` prints them.
        table: Vec<String>,
        /// One line a target, as `dmsetup status` prints them.
        status: Vec<String>,
        /// The same, in parts.
        targets: Vec<TargetInfo>,
    }
}

record! {
    /// A target of a table.
    pub struct TargetInfo {
        /// First byte of the device that it serves.
        start: u64,
        /// Bytes.
        length: u64,
        ..
        /// What it does there.
        target: Target,
    }
}

union! {
    /// What a target does, and how it is.
    pub enum Target by "type" {
        /// A range of a file or of a device.
        Linear(LinearTarget) = "linear",
        /// An origin whose snapshots keep what is overwritten.
        SnapshotOrigin(OriginTarget) = "snapshot-origin",
        /// A snapshot.
        Snapshot(SnapshotTarget) = "snapshot",
        /// An origin into which a snapshot is being merged.
        SnapshotMerge(SnapshotTarget) = "snapshot-merge",
        /// Every request fails.
        Error(super::command::Nothing) = "error",
        /// Reads are zeroes, writes vanish.
        Zero(super::command::Nothing) = "zero",
    }
}

record! {
    /// A range of a file or of a device.
    pub struct LinearTarget {
        /// Path or device name.
        device: String,
        /// First byte there.
        offset: u64,
    }
}

record! {
    /// An origin.
    pub struct OriginTarget {
        /// Path or device name.
        origin: String,
    }
}

choice! {
    /// Whether a snapshot can still be read and written.
    pub enum SnapshotState {
        /// Both.
        Valid = "valid",
        /// Neither: what it kept is lost.
        Invalid = "invalid",
        /// Its merge has stopped over an error.
        MergeFailed = "merge-failed",
        /// Read only: the store is full.
        Overflow = "overflow",
    }
}

record! {
    /// A snapshot, or the merge of one.
    pub struct SnapshotTarget {
        /// Path or device name of what lies below.
        origin: String,
        /// Path of the store.
        cow: String,
        /// How the store keeps its exceptions.
        persistent: super::command::Persistence,
        /// Bytes.
        chunk_size: u64,
        /// Whether it can be used.
        state: SnapshotState,
        /// Bytes of the store that are in use, metadata included; missing where invalid.
        allocated: Option<u64>,
        /// Bytes of the store; missing where invalid.
        total: Option<u64>,
        /// Bytes of metadata among those in use; missing where invalid.
        metadata: Option<u64>,
        /// Path of the reserved view of the exception table; `-` for none.
        metadata_snapshot: String,
    }
}

choice! {
    /// Kinds of export.
    pub enum BlockExportType {
        /// A vhost-user-blk device.
        VhostUserBlk = "vhost-user-blk",
    }
}

record! {
    /// An export, as `query-block-exports` shows it.
    pub struct BlockExportInfo {
        /// Its name.
        id: String,
        /// Its kind.
        kind as "type": BlockExportType,
        /// The device.
        node_name: String,
        /// Being removed, but not yet gone.
        shutting_down: bool,
    }
}
