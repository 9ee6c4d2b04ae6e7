//! The results of commands.

use serde::Serialize;

use super::job::JobInfo;
use crate::{choice, record, union};

/// The result of a command that was carried out; [`Command`](super::Command) says which variant
/// belongs to which command.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// Done, without a result.
    Done(super::command::Nothing),
    /// What a device was resumed with.
    Resumed(Resumption),
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
    /// Done, without a result.
    pub const DONE: Answer = Answer::Done(super::command::Nothing {});
}

record! {
    /// The result of `device-resume`.
    pub struct Resumption {
        /// Why the device serves its old table and not the one that is loaded; missing if there is no
        /// such table.
        warning: Option<String>,
    }
}

choice! {
    /// The state of a device.
    pub enum DeviceState {
        /// It serves, if it has a table.
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
        /// Its UUID.
        uuid: Option<String>,
        /// Whether it serves or is suspended.
        state: DeviceState,
        /// Its size in bytes; 0 without a table.
        size: u64,
        /// Whether a loaded table waits for a resume.
        has_inactive_table: bool,
        /// The number of exports, jobs and live tables that use it.
        open_count: u32,
        /// One line per target, as `dmsetup table` prints them.
        table: Vec<String>,
        /// One line per target, as `dmsetup status` prints them.
        status: Vec<String>,
        /// The same, in parts.
        targets: Vec<TargetInfo>,
    }
}

record! {
    /// A target of a table.
    pub struct TargetInfo {
        /// The first byte of its range of the device.
        start: u64,
        /// The length of the range in bytes.
        length: u64,
        ..
        /// Its type, with its state.
        target: Target,
    }
}

union! {
    /// The type and state of a target.
    pub enum Target by "type" {
        /// A range of a file or of a device.
        Linear(LinearTarget) = "linear",
        /// An origin whose snapshots keep the data that is overwritten.
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
        /// The first byte there.
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
    /// The state of a snapshot.
    pub enum SnapshotState {
        /// It can be read and written.
        Valid = "valid",
        /// Its content is lost.
        Invalid = "invalid",
        /// Its merge failed.
        MergeFailed = "merge-failed",
        /// The store is full: it can only be read.
        Overflow = "overflow",
    }
}

record! {
    /// A snapshot, or the merge of one.
    pub struct SnapshotTarget {
        /// Path or device name of the origin.
        origin: String,
        /// Path of the store.
        cow: String,
        /// How the store keeps its exceptions.
        persistent: super::command::Persistence,
        /// The chunk size in bytes.
        chunk_size: u64,
        /// The state of the store.
        state: SnapshotState,
        /// Bytes of the store in use, including metadata; missing if invalid.
        allocated: Option<u64>,
        /// Size of the store in bytes; missing if invalid.
        total: Option<u64>,
        /// Bytes of metadata in use; missing if invalid.
        metadata: Option<u64>,
        /// Path of the reserved view of the exception table; `-` for none.
        metadata_snapshot: String,
    }
}

choice! {
    /// The kinds of exports.
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
        /// Whether it is being removed, but still exists.
        shutting_down: bool,
        /// Whether a front-end is connected; false while it is being removed. QEMU does not say it.
        connected: bool,
    }
}
