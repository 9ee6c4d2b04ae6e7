//! Flushes by a thread of its own accord: what suspends, seals and orderly ends need.
//!
//! Owns an engine and an executor for as long as one flush takes. Never knows why it flushes.

use std::sync::Arc;

use crate::background::{FileExecutor, FlushError, flush};
use crate::device::Flusher;
use crate::engine::EngineConfig;
use crate::io::{Files, IoOptions};
use crate::table::Table;
use crate::workers::Workers;

/// A flush copies nothing.
const CONFIG: EngineConfig = EngineConfig { scratch: 64 << 10, requests: 4, claims: 4 };

/// Flushes on the calling thread.
pub struct CallerFlusher {
    files: Arc<Files>,
    workers: Arc<Workers>,
    options: IoOptions,
}

impl CallerFlusher {
    /// A flusher for the tables over these files, shared by these workers.
    pub fn new(files: Arc<Files>, workers: Arc<Workers>, options: IoOptions) -> Self {
        CallerFlusher { files, workers, options }
    }

    fn run(&self, table: &Arc<Table>) -> Result<(), FlushError> {
        let executor = FileExecutor::new(self.files.clone(), CONFIG.scratch, self.options)
            .map_err(FlushError::Wait)?;
        flush(self.workers.clone(), executor, CONFIG, table.clone())
    }
}

impl Flusher for CallerFlusher {
    fn flush(&self, table: &Arc<Table>) -> bool {
        let result = self.run(table);
        if let Err(error) = &result {
            tracing::error!("cannot flush: {error}");
        }
        result.is_ok()
    }
}
