//! Devices: names with tables, built from files and other devices, and served while they change.
//!
//! Owns the open files, the live stores, the origins and the devices of a process, and the verbs
//! that change them. Never knows how a table is served, nor how a command arrived. Keeps I8 (one
//! live owner per store) and I9 (tables are swapped while nothing is in flight).

mod ahead;
mod build;
mod chain;
mod commit;
mod core;
mod disks;
mod error;
mod files;
mod flushes;
mod full;
mod guards;
mod handover;
mod kept;
mod live;
mod moment;
mod origins;
mod overdue;
mod passdown;
mod paths;
mod query;
mod removal;
mod resize;
mod rollback;
mod serving;
mod snapshots;
mod state;
mod targets;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
mod verbs;
mod within;
mod write_cache;

pub use self::core::{
    DeviceEvent, Devices, DevicesConfig, EventSink, Flushed, Flusher, User, job_user,
};
pub use commit::{CommitWork, Pivot, PivotStep};
pub use error::DeviceError;
pub use files::{make_empty, make_overlay_store, refuse_useless};
pub use moment::{CreateSnapshot, MomentAction, OverlaySnapshot};
pub use query::{DeviceStatus, TargetStatus};
pub use rollback::Merging;
pub use state::{
    CommitJob, Halt, InitialDevice, JobSettings, RollbackJob, State, StateContent, StateError,
    classify_state, classify_state_ignoring_settings, is_only_read, place_of_state,
    refuse_state_name,
};
pub use verbs::{Resumed, Suspend, TableKind};
