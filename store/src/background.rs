//! Work on a device without a guest: flushes of a table, merges, and commits of layers.
//!
//! Owns the separate engine and executor of such work, and the turns between the two. Never knows
//! why a table is flushed or merged, nor how I/O is carried out ([`Executor`]).

mod commit;
mod control;
mod files;
mod merge;
mod pace;
mod share;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use self::commit::{CommitEnd, CommitHandle, CommitProgress, CommitSource, commit};
pub use self::control::{JobThread, Pacing};
pub use self::files::FileExecutor;
pub use self::merge::{MergeEnd, MergeHandle};
use crate::engine::{Engine, EngineConfig};
use crate::io::{Action, Completion, Errno, FileId, Seg};
use crate::request::{Op, Request, Status, Token};
use crate::table::Table;
use crate::units::Sector;
use crate::workers::{TooManyWorkers, Wake, Workers};

/// Carries out the actions of one engine, and does all the waiting of its thread. The actions
/// contain no guest data.
pub trait Executor: Send {
    /// Adopts these files and releases others; nothing is in flight.
    fn adopt(&mut self, files: &[FileId]);

    /// Accepts an action; `meta` has the bytes of its [`Seg::Meta`] part, and is copied.
    fn submit(&mut self, action: &Action, segs: &[Seg], meta: &[u8]);

    /// The next completion.
    fn completed(&mut self) -> Option<Completion>;

    /// Waits for a completion or for the waker, at most for `timeout`.
    ///
    /// # Errors
    /// The system's error; nothing can be waited for any more.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The waker that ends [`Executor::wait`], or the next one if it is not waiting.
    fn waker(&self) -> Arc<dyn Wake>;

    /// The bytes of a [`Seg::Scratch`] that nothing in flight uses; none for other segments.
    fn scratch(&self, seg: &Seg) -> Vec<u8>;
}

impl<E: Executor> Executor for &mut E {
    fn adopt(&mut self, files: &[FileId]) {
        (**self).adopt(files);
    }

    fn submit(&mut self, action: &Action, segs: &[Seg], meta: &[u8]) {
        (**self).submit(action, segs, meta);
    }

    fn completed(&mut self) -> Option<Completion> {
        (**self).completed()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        (**self).wait(timeout)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        (**self).waker()
    }

    fn scratch(&self, seg: &Seg) -> Vec<u8> {
        (**self).scratch(seg)
    }
}

/// An executor with its own bytes, which requests write: those of the request `copy` are in memory
/// of [`SLICE`](crate::io::SLICE) bytes that nothing else uses until it has ended.
pub trait CopyExecutor: Executor {
    /// The number of such requests; their tokens are the numbers below it.
    fn copies(&self) -> usize;

    /// Reads `len` bytes from `offset` of a file into the bytes of `copy`, from the byte `at` on,
    /// and waits for that.
    ///
    /// # Errors
    /// The system's error.
    fn fetch(
        &mut self,
        copy: Token,
        at: usize,
        file: FileId,
        offset: u64,
        len: usize,
    ) -> Result<(), Errno>;
}

/// A waker that is shared.
struct SharedWake(Arc<dyn Wake>);

impl Wake for SharedWake {
    fn wake(&self) {
        self.0.wake();
    }
}

/// An engine with its executor.
struct Host<E> {
    engine: Engine,
    executor: E,
}

impl<E: Executor> Host<E> {
    fn new(
        workers: &Arc<Workers>,
        executor: E,
        config: EngineConfig,
    ) -> Result<Host<E>, TooManyWorkers> {
        let wake = Box::new(SharedWake(executor.waker()));
        let mut engine = Engine::new(workers, wake, config)?;
        engine.set_no_guest();
        Ok(Host { engine, executor })
    }

    fn bind(&mut self, table: Option<Arc<Table>>) {
        self.executor.adopt(table.as_ref().map_or(&[], |table| table.files()));
        self.engine.bind(table);
    }

    /// Waits until there is something to do, at most for `timeout`. To be called after
    /// [`Host::go_on`] and after all its results were handled.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.engine.may_sleep() {
            let waited = self.executor.wait(timeout);
            self.engine.woke();
            return waited;
        }
        self.executor.wait(Some(Duration::ZERO))
    }

    /// Handles completions, and begins the next actions.
    fn go_on(&mut self) {
        while let Some(completion) = self.executor.completed() {
            self.engine.complete(completion);
        }
        self.engine.step();
        while let Some(wants) = self.engine.merge_wants() {
            let bytes = self.executor.scratch(&wants);
            self.engine.merge_supply(&bytes);
            self.engine.step();
        }
        while let Some(action) = self.engine.pop_action() {
            let Host { engine, executor } = self;
            executor.submit(&action, engine.segs(&action), engine.meta_of(&action));
        }
    }

    /// Makes everything durable that `table` owes; the engine serves it.
    fn flush(&mut self) -> Result<(), FlushError> {
        let token = Token(0);
        self.engine.submit(Request {
            token,
            op: Op::Flush,
            sector: Sector(0),
            len: 0,
            durable: false,
        });
        let mut status = None;
        self.engine.set_stopping(false);
        loop {
            self.go_on();
            if let Some((_, ended)) = self.engine.pop_finished() {
                status = Some(ended);
                // Rounds that it leads for others also end before the table is released, and no
                // more begin.
                self.engine.set_stopping(true);
            }
            if status.is_some() && self.engine.is_quiet() {
                break;
            }
            self.wait(None).map_err(FlushError::Wait)?;
        }
        if status == Some(Status::Ok) { Ok(()) } else { Err(FlushError::Failed) }
    }
}

/// Why a table is not flushed.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// A commit or a sync failed.
    #[error("not everything could be made durable; open the files again")]
    Failed,
    /// There are too many workers for another.
    #[error(transparent)]
    TooManyWorkers(#[from] TooManyWorkers),
    /// Its I/O cannot be waited for.
    #[error("cannot wait for the files: {0}")]
    Wait(io::Error),
}

/// Makes the owed chunks and writes of `table` durable, on the calling thread: commits its stores,
/// and syncs its files. Its device may be suspended or serve. `config.scratch` is the executor's,
/// which has no file and nothing in flight afterwards unless its I/O could not be waited for.
///
/// # Errors
/// [`FlushError`].
pub fn flush<E: Executor>(
    workers: Arc<Workers>,
    executor: &mut E,
    config: EngineConfig,
    table: Arc<Table>,
) -> Result<(), FlushError> {
    let mut host = Host::new(&workers, executor, config)?;
    host.bind(Some(table));
    let flushed = host.flush();
    if !matches!(flushed, Err(FlushError::Wait(_))) {
        host.bind(None);
    }
    flushed
}
