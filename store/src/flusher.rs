//! Flushes, and copies of a moment, by a thread of its own accord: what suspends, seals, orderly
//! ends and the last step of a commit need.
//!
//! Owns an engine and an executor for as long as one of them takes. Never knows what it is for.

use std::sync::Arc;

use crate::background::{CommitEnd, CommitSource, FileExecutor, FlushError, commit, flush};
use crate::device::Flusher;
use crate::engine::EngineConfig;
use crate::io::{Files, IoOptions};
use crate::table::Table;
use crate::workers::Workers;

/// A flush copies nothing.
const CONFIG: EngineConfig = EngineConfig { scratch: 64 << 10, requests: 4, claims: 4 };

/// A copy has a table's engine to itself, and a guest waits for it.
const COPY: EngineConfig = EngineConfig { scratch: 8 << 20, requests: 64, claims: 1024 };

/// Writes of a copy in flight.
const COPIES: usize = 8;

/// Flushes and copies on the calling thread.
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

    fn copy(&self, source: CommitSource, table: &Arc<Table>) -> CommitEnd {
        let files = self.files.clone();
        match FileExecutor::copying(files, COPY.scratch, self.options, COPIES) {
            Ok(executor) => commit(self.workers.clone(), executor, COPY, (source, table.clone())),
            Err(error) => CommitEnd::Wait(error),
        }
    }
}
