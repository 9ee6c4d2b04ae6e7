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

            /// Name and data of every event.
            pub fn shapes() -> Vec<(&'static str, Shape)> {
                vec![$( ($wire, <$ty as Described>::shape()), )+]
            }
        }
    };
}

events! {
    /// An event.
    pub enum Event {
        /// A job changed its state.
        JobStatusChange(JobStatusChange) = "JOB_STATUS_CHANGE",
        /// A job ended, with success or an error.
        BlockJobCompleted(BlockJobCompleted) = "BLOCK_JOB_COMPLETED",
        /// A job was cancelled.
        BlockJobCancelled(BlockJobProgress) = "BLOCK_JOB_CANCELLED",
        /// A job had an I/O error.
        BlockJobError(BlockJobError) = "BLOCK_JOB_ERROR",
        /// A job can be completed now.
        BlockJobReady(BlockJobProgress) = "BLOCK_JOB_READY",
        /// A job waits for `job-finalize`.
        BlockJobPending(BlockJobPending) = "BLOCK_JOB_PENDING",
        /// An export was removed; its name is free.
        BlockExportDeleted(BlockExportDeleted) = "BLOCK_EXPORT_DELETED",
        /// A guest's request failed.
        BlockIoError(BlockIoError) = "BLOCK_IO_ERROR",
        /// The use of a store exceeds its threshold.
        BlockWriteThreshold(BlockWriteThreshold) = "BLOCK_WRITE_THRESHOLD",
        /// A snapshot lost its content.
        SnapshotInvalidated(SnapshotFailed) = "SNAPSHOT_INVALIDATED",
        /// A store is full; the snapshot can only be read.
        SnapshotOverflow(SnapshotFailed) = "SNAPSHOT_OVERFLOW",
        /// A snapshot has been merged into its origin.
        MergeCompleted(MergeCompleted) = "MERGE_COMPLETED",
        /// A device is suspended.
        DeviceSuspended(DeviceChanged) = "DEVICE_SUSPENDED",
        /// A device serves again.
        DeviceResumed(DeviceChanged) = "DEVICE_RESUMED",
        /// A guest was thawed before the operation that needed its freeze was over.
        GuestThawedEarly(GuestThaw) = "GUEST_THAWED_EARLY",
        /// A guest that was told to thaw did not confirm it.
        GuestThawFailed(GuestThaw) = "GUEST_THAW_FAILED",
        /// The process is stopping.
        Shutdown(Shutdown) = "SHUTDOWN",
    }
}

record! {
    /// A job changed its state.
    pub struct JobStatusChange {
        /// The job.
        id: String,
        /// Its new state.
        status: JobStatus,
    }
}

record! {
    /// The progress of a job.
    pub struct BlockJobProgress {
        /// Its type.
        kind as "type": JobType,
        /// The job's name (not a device's, as in QEMU).
        device: String,
        /// Total work, in the job's unit.
        len: u64,
        /// Finished work.
        offset: u64,
        /// Its limit in bytes per second; 0 for none.
        speed: u64,
    }
}

record! {
    /// The end of a job.
    pub struct BlockJobCompleted {
        /// Its type.
        kind as "type": JobType,
        /// The job's name (not a device's, as in QEMU).
        device: String,
        /// Total work, in the job's unit.
        len: u64,
        /// Finished work.
        offset: u64,
        /// Its limit in bytes per second; 0 for none.
        speed: u64,
        /// Its error; missing if it succeeded.
        error: Option<String>,
    }
}

choice! {
    /// The direction of an operation.
    pub enum IoOperation {
        /// Read from the disk.
        Read = "read",
        /// Written to the disk.
        Write = "write",
    }
}

choice! {
    /// The reaction to an I/O error.
    pub enum ErrorAction {
        /// It is ignored.
        Ignore = "ignore",
        /// It is reported to the requester.
        Report = "report",
        /// The work stops until the cause is removed.
        Stop = "stop",
    }
}

record! {
    /// A job had an I/O error.
    pub struct BlockJobError {
        /// The job's name (not a device's, as in QEMU).
        device: String,
        /// The failed operation.
        operation: IoOperation,
        /// The reaction.
        action: ErrorAction,
    }
}

record! {
    /// A job waits for `job-finalize`.
    pub struct BlockJobPending {
        /// Its type.
        kind as "type": JobType,
        /// The job.
        id: String,
    }
}

record! {
    /// An export was removed.
    pub struct BlockExportDeleted {
        /// The export.
        id: String,
    }
}

record! {
    /// A guest's request failed.
    pub struct BlockIoError {
        /// The device.
        device: String,
        /// The device again: its node has the same name.
        node_name: Option<String>,
        /// The failed operation.
        operation: IoOperation,
        /// The reaction.
        action: ErrorAction,
        /// Whether space was missing.
        nospace: Option<bool>,
        /// The error, for users.
        reason: String,
    }
}

record! {
    /// The use of a store exceeds its threshold.
    pub struct BlockWriteThreshold {
        /// The device of the store.
        node_name: String,
        /// Bytes in use beyond the threshold.
        amount_exceeded: u64,
        /// The threshold in bytes.
        write_threshold: u64,
    }
}

record! {
    /// A snapshot lost its content or its ability to take writes.
    pub struct SnapshotFailed {
        /// The snapshot's device.
        device: String,
        /// Path of its store.
        cow: String,
        /// The reason, for users.
        reason: String,
    }
}

record! {
    /// A snapshot has been merged into its origin.
    pub struct MergeCompleted {
        /// The origin's device.
        device: String,
        /// The name of the snapshot's former device.
        snapshot: String,
        /// The path of its store, which is now empty.
        cow: String,
    }
}

record! {
    /// The name of a device.
    pub struct DeviceChanged {
        /// The device.
        device: String,
    }
}

record! {
    /// The end of a guest's freeze.
    pub struct GuestThaw {
        /// The socket of the guest's agent.
        agent: String,
        /// The reason, for users.
        reason: String,
    }
}

choice! {
    /// The cause of the process's stop (QEMU's `ShutdownCause`).
    pub enum ShutdownCause {
        /// `quit`.
        HostQmpQuit = "host-qmp-quit",
        /// A signal.
        HostSignal = "host-signal",
        /// A fatal error.
        HostError = "host-error",
    }
}

record! {
    /// The process is stopping.
    pub struct Shutdown {
        /// Whether the guest requested it: never.
        guest: bool,
        /// The cause.
        reason: ShutdownCause,
    }
}
