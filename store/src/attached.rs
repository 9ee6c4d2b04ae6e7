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
    /// It still had requests in flight at the deadline; it was told to continue.
    #[error("requests in flight did not end in time")]
    Deadline,
}

/// A worker that serves a device's table. All calls but [`AttachedWorker::commit`] are made by the
/// device's owner, one at a time.
pub trait AttachedWorker: Send + Sync {
    /// Asks the worker to take no more requests. To be followed by
    /// [`AttachedWorker::stopped`]; several workers are asked before the first is waited for.
    fn stop(&self);

    /// Waits until nothing is in flight and no request is taken; the worker has released its table
    /// then. A worker that ended counts as stopped.
    ///
    /// # Errors
    /// [`StopError::Deadline`]: the worker is unchanged and continues to serve.
    fn stopped(&self, deadline: Instant) -> Result<(), StopError>;

    /// Asks the worker to commit the owed chunks of its table's stores, when it serves; the caller
    /// does not wait for that. May be called at any time, by any thread.
    fn commit(&self);

    /// Gives the worker a table and lets it take requests; requests that it held are dispatched
    /// again.
    fn go(&self, table: Arc<Table>);
}
