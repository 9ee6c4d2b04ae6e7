//! Flushes, and copies of a moment, on the calling thread: for suspends, seals, orderly ends and
//! the last step of a commit.
//!
//! Owns an engine for the duration of one operation, and the executor: a new one each time if
//! io_uring serves the files, one that is kept for the next flush if plain system calls do. Never
//! knows the purpose of an operation. Keeps: an idle executor has no file, and there is at most
//! one.

use std::sync::{Arc, Mutex, PoisonError};

use crate::background::{CommitEnd, CommitSource, FileExecutor, FlushError, commit, flush};
use crate::device::{Flushed, Flusher};
use crate::engine::EngineConfig;
use crate::io::{Files, IoOptions, Pages, ScratchConfig};
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
    /// An executor of plain system calls, which any thread may use. To make one, and its memory,
    /// takes longer than a flush in memory, and a guest whose processor it is waits meanwhile.
    plain: Mutex<Option<FileExecutor>>,
}

impl CallerFlusher {
    /// A flusher for the tables over these files, shared by these workers.
    pub fn new(files: Arc<Files>, workers: Arc<Workers>, options: IoOptions) -> Self {
        CallerFlusher { files, workers, options, plain: Mutex::new(None) }
    }

    fn run(&self, table: &Arc<Table>) -> Result<(), FlushError> {
        let ring = self.options.uring && self.has_disk(table);
        let options = IoOptions { uring: ring, ..self.options };
        let kept = if ring { None } else { self.plain().take() };
        let mut executor = match kept {
            Some(executor) => executor,
            None => {
                let scratch = ScratchConfig::one(CONFIG.scratch, Pages::Small);
                FileExecutor::new(self.files.clone(), scratch, options).map_err(FlushError::Wait)?
            }
        };
        let result = flush(self.workers.clone(), &mut executor, CONFIG, table.clone());
        // If its I/O could not be waited for, something may be in flight.
        if !ring && !matches!(result, Err(FlushError::Wait(_))) {
            *self.plain() = Some(executor);
        }
        result
    }

    /// Whether a file of `table` lies on a disk.
    fn has_disk(&self, table: &Table) -> bool {
        let file = |id: &_| self.files.get(*id);
        table.files().iter().filter_map(file).any(|of| of.uring)
    }

    fn plain(&self) -> std::sync::MutexGuard<'_, Option<FileExecutor>> {
        // The value is present or not: a panic elsewhere cannot damage it.
        self.plain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flusher for CallerFlusher {
    fn may_hang(&self, table: &Table) -> bool {
        // All others lie in memory.
        self.has_disk(table)
    }

    fn try_flush(&self, table: &Arc<Table>) -> Flushed {
        let result = self.run(table);
        match &result {
            // The device decides about this error, because it knows what is still owed.
            Err(FlushError::Failed) if table.flush_set().has_invalid() => {}
            Err(error) => tracing::error!("cannot flush: {error}"),
            Ok(()) => {}
        }
        match result {
            Ok(()) => Flushed::Done,
            Err(FlushError::Failed) => Flushed::Failed,
            Err(FlushError::TooManyWorkers(_) | FlushError::Wait(_)) => Flushed::NotRun,
        }
    }

    fn copy(&self, source: CommitSource, table: &Arc<Table>) -> CommitEnd {
        let files = self.files.clone();
        // A guest waits for this: small pages, which need no clearing at large.
        let scratch = ScratchConfig::one(COPY.scratch, Pages::Small);
        match FileExecutor::copying(files, scratch, self.options, COPIES) {
            Ok(executor) => commit(self.workers.clone(), executor, COPY, (source, table.clone())),
            Err(error) => CommitEnd::Wait(error),
        }
    }
}
