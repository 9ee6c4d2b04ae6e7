//! The workers of a device, as the owner of its tables sees them.
//!
//! Owns the protocol by which a worker's table is taken and replaced. Never knows what a worker
//! serves.

use std::sync::Arc;
use std::time::Instant;

use crate::table::Table;

/// Why a worker did not stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// It still had something in flight at the deadline; it was told to go on.
    #[error("requests in flight did not end in time")]
    Deadline,
}

/// A worker that serves a device's table. All calls but [`AttachedWorker::commit`] are made by the
/// device's owner, one at a time.
pub trait AttachedWorker: Send + Sync {
    /// Asks the worker to take no more requests. To be followed by
    /// [`AttachedWorker::stopped`]; several workers are asked before the first is waited for.
    fn stop(&self);

    /// Waits until nothing is in flight and nothing is taken; the worker has let go of its table
    /// then. A worker that ended counts as stopped.
    ///
    /// # Errors
    /// [`StopError::Deadline`]: the worker is as it was, and serves on.
    fn stopped(&self, deadline: Instant) -> Result<(), StopError>;

    /// Asks the worker to commit what the stores of its table owe, when it serves; nobody waits for
    /// that. At any time, by anybody.
    fn commit(&self);

    /// Gives the worker a table and lets it take requests; requests it held are looked at again.
    fn go(&self, table: Arc<Table>);
}
