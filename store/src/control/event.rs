//! The events of a process.
//!
//! Events that QEMU has carry QEMU's members (qapi/job.json, qapi/block-core.json,
//! qapi/block-export.json).

use serde::{Deserialize, Serialize};

use super::job::{JobStatus, JobType};
use super::shape::{Described, Shape};
use crate::{choice, record};

macro_rules! events {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$doc:meta])* $variant:ident($ty:ty) = $wire:literal, )+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event", content = "data")]
        pub enum $name { $( $(#[$doc])* #[serde(rename = $wire)] $variant($ty), )+ }

        impl $name {
            /// Its name on the wire.
            pub const fn name(&self) -> &'static str {
                match self { $( $name::$variant(_) => $wire, )+ }
            }

            /// Name and data of every event there is.
            pub fn shapes() -> Vec<(&'static str, Shape)> {
                vec![$( ($wire, <$ty as Described>::shape()), )+]
            }
        }
    };
}

events! {
    /// Something happened.
    pub enum Event {
        /// A job is in another state.
        JobStatusChange(JobStatusChange) = "JOB_STATUS_CHANGE",
        /// A job is over, well or with an error.
        BlockJobCompleted(BlockJobCompleted) = "BLOCK_JOB_COMPLETED",
        /// A job is over because it was cancelled.
        BlockJobCancelled(BlockJobProgress) = "BLOCK_JOB_CANCELLED",
        /// A job met an I/O error.
        BlockJobError(BlockJobError) = "BLOCK_JOB_ERROR",
        /// A job can be completed now.
        BlockJobReady(BlockJobProgress) = "BLOCK_JOB_READY",
        /// A job waits for `job-finalize`.
        BlockJobPending(BlockJobPending) = "BLOCK_JOB_PENDING",
        /// An export is gone; its name is free.
        BlockExportDeleted(BlockExportDeleted) = "BLOCK_EXPORT_DELETED",
        /// A request of a guest failed.
        BlockIoError(BlockIoError) = "BLOCK_IO_ERROR",
        /// A store has filled up to its threshold.
        BlockWriteThreshold(BlockWriteThreshold) = "BLOCK_WRITE_THRESHOLD",
        /// A snapshot has lost what it kept.
        SnapshotInvalidated(SnapshotFailed) = "SNAPSHOT_INVALIDATED",
        /// A store is full; the snapshot can only be read.
        SnapshotOverflow(SnapshotFailed) = "SNAPSHOT_OVERFLOW",
        /// A snapshot has been merged into its origin.
        MergeCompleted(MergeCompleted) = "MERGE_COMPLETED",
        /// A device holds requests from here on.
        DeviceSuspended(DeviceChanged) = "DEVICE_SUSPENDED",
        /// A device serves again.
        DeviceResumed(DeviceChanged) = "DEVICE_RESUMED",
        /// A guest was thawed before what it was frozen for was over.
        GuestThawedEarly(GuestThaw) = "GUEST_THAWED_EARLY",
        /// A guest that was told to thaw did not confirm that it has.
        GuestThawFailed(GuestThaw) = "GUEST_THAW_FAILED",
        /// The process stops.
        Shutdown(Shutdown) = "SHUTDOWN",
    }
}

record! {
    /// A job is in another state.
    pub struct JobStatusChange {
        /// The job.
        id: String,
        /// The state it is in now.
        status: JobStatus,
    }
}

record! {
    /// How far a job came.
    pub struct BlockJobProgress {
        /// What it does.
        kind as "type": JobType,
        /// The job's name (not a device's, as in QEMU).
        device: String,
        /// Work at the end, in the job's unit.
        len: u64,
        /// Work done.
        offset: u64,
        /// Its limit in bytes per second; 0 for none.
        speed: u64,
    }
}

record! {
    /// How a job ended.
    pub struct BlockJobCompleted {
        /// What it did.
        kind as "type": JobType,
        /// The job's name (not a device's, as in QEMU).
        device: String,
        /// Work at the end, in the job's unit.
        len: u64,
        /// Work done.
        offset: u64,
        /// Its limit in bytes per second; 0 for none.
        speed: u64,
        /// Why it failed; missing where it did not.
        error: Option<String>,
    }
}

choice! {
    /// Which way bytes went.
    pub enum IoOperation {
        /// From the disk.
        Read = "read",
        /// To the disk.
        Write = "write",
    }
}

choice! {
    /// What is done about an I/O error.
    pub enum ErrorAction {
        /// Nothing.
        Ignore = "ignore",
        /// Whoever asked is told.
        Report = "report",
        /// Work stops until somebody has done something about it.
        Stop = "stop",
    }
}

record! {
    /// A job met an I/O error.
    pub struct BlockJobError {
        /// The job's name (not a device's, as in QEMU).
        device: String,
        /// What failed.
        operation: IoOperation,
        /// What is done about it.
        action: ErrorAction,
    }
}

record! {
    /// A job waits for `job-finalize`.
    pub struct BlockJobPending {
        /// What it does.
        kind as "type": JobType,
        /// The job.
        id: String,
    }
}

record! {
    /// An export is gone.
    pub struct BlockExportDeleted {
        /// The export.
        id: String,
    }
}

record! {
    /// A request of a guest failed.
    pub struct BlockIoError {
        /// The device.
        device: String,
        /// The device again: here it is its own node.
        node_name: Option<String>,
        /// What failed.
        operation: IoOperation,
        /// What is done about it.
        action: ErrorAction,
        /// Whether it was for want of space.
        nospace: Option<bool>,
        /// The error, for a person.
        reason: String,
    }
}

record! {
    /// A store has filled up to its threshold.
    pub struct BlockWriteThreshold {
        /// The device whose store it is.
        node_name: String,
        /// Bytes in use beyond the threshold.
        amount_exceeded: u64,
        /// The threshold in bytes.
        write_threshold: u64,
    }
}

record! {
    /// A snapshot cannot do what it should any more.
    pub struct SnapshotFailed {
        /// The snapshot's device.
        device: String,
        /// Path of its store.
        cow: String,
        /// Why, for a person.
        reason: String,
    }
}

record! {
    /// A snapshot has been merged into its origin.
    pub struct MergeCompleted {
        /// The origin's device.
        device: String,
        /// What the snapshot's device was called.
        snapshot: String,
        /// Path of its store, empty now.
        cow: String,
    }
}

record! {
    /// Names a device.
    pub struct DeviceChanged {
        /// The device.
        device: String,
    }
}

record! {
    /// How a guest's freeze ended.
    pub struct GuestThaw {
        /// The socket of the guest's agent.
        agent: String,
        /// Why, for a person.
        reason: String,
    }
}

choice! {
    /// Who asked the process to stop (QEMU's `ShutdownCause`).
    pub enum ShutdownCause {
        /// `quit`.
        HostQmpQuit = "host-qmp-quit",
        /// A signal.
        HostSignal = "host-signal",
        /// An error that cannot be lived with.
        HostError = "host-error",
    }
}

record! {
    /// The process stops.
    pub struct Shutdown {
        /// Whether the guest wanted it: never.
        guest: bool,
        /// Who did.
        reason: ShutdownCause,
    }
}
