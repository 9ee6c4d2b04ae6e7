//! What all jobs of the server have in common.
//!
//! Owns the memory of their work, the conversions of their settings, and what is kept of these for a
//! restart. Never knows what a job does, nor when it ends.

use std::sync::Arc;
use std::time::Duration;

use snapblk_qmp::{JobHandle, JobSpec};
use snapblk_store::control::event::{ErrorAction, IoOperation};
use snapblk_store::control::job::JobType;
use snapblk_store::device::JobSettings;
use snapblk_store::engine::EngineConfig;
use snapblk_store::io::{IoOp, Pages, ScratchConfig};

use super::Server;

/// How often a job's progress is looked at.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Memory of a job: fewer requests than a guest has, larger copies.
pub(super) const CONFIG: EngineConfig =
    EngineConfig { scratch: 8 << 20, requests: 256, claims: 1024 };
/// Its memory.
pub(super) const SCRATCH: ScratchConfig = ScratchConfig::one(CONFIG.scratch, Pages::Huge);

/// The settings in a command, or those that it has where it says nothing.
pub(super) fn settings(
    speed: Option<u64>,
    auto_finalize: Option<bool>,
    auto_dismiss: Option<bool>,
) -> JobSettings {
    JobSettings {
        speed: speed.unwrap_or(0),
        auto_finalize: auto_finalize.unwrap_or(true),
        auto_dismiss: auto_dismiss.unwrap_or(true),
        paused: false,
    }
}

/// The monitor's job `id`.
pub(super) fn spec_of(id: &str, kind: JobType, settings: JobSettings) -> JobSpec {
    let JobSettings { speed, auto_finalize, auto_dismiss, paused } = settings;
    JobSpec { id: id.into(), kind, speed, auto_finalize, auto_dismiss, paused }
}

/// A job's limit as its thread has it: 0 stands for none.
pub(super) fn limit(speed: u64) -> Option<u64> {
    Some(speed).filter(|speed| *speed != 0)
}

/// Keeps for a restart that the job `id` is paused, or is not; `server` is there if that is to be known.
pub(super) fn keep_pause(server: Option<Arc<Server>>, id: &str, paused: bool) {
    let Some(server) = server else { return };
    if let Err(error) = server.devices.keep_settings(id, |settings| settings.paused = paused) {
        tracing::error!("a restart would not know how the job '{id}' is: {error}");
    }
}

/// The same of its limit.
pub(super) fn keep_speed(server: Option<Arc<Server>>, id: &str, speed: u64) {
    let Some(server) = server else { return };
    if let Err(error) = server.devices.keep_settings(id, |settings| settings.speed = speed) {
        tracing::error!("a restart would not know how fast the job '{id}' is to be: {error}");
    }
}

/// Reports that a job met an I/O error, as QEMU does before it says that the job failed.
pub(super) fn report_io_error(handle: &JobHandle, failed: Option<IoOp>) {
    let operation = match failed {
        Some(IoOp::Read) => IoOperation::Read,
        Some(_) => IoOperation::Write,
        None => return,
    };
    handle.io_error(operation, ErrorAction::Report);
}
