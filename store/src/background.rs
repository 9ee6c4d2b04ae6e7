//! Work that a device does without a guest: flushes of a table, and merges.
//!
//! Owns the threads that do it, each with an engine and an executor of its own, so that control
//! never waits for a file longer than it wants to. Never knows why a table is flushed or merged,
//! nor how I/O is carried out ([`Executor`]).

mod merge;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

pub use self::merge::{MergeEnd, MergeHandle};
use crate::engine::{Engine, EngineConfig};
use crate::io::{Action, Completion, Errno, FileId, Seg};
use crate::request::{Op, Request, Status, Token};
use crate::table::Table;
use crate::units::Sector;
use crate::workers::{Wake, Workers};

/// Carries out the actions of one engine, and does all the waiting of its thread. There are no
/// guest's bytes in them.
pub trait Executor: Send {
    /// Takes up these files and lets others go; nothing is in flight.
    fn adopt(&mut self, files: &[FileId]);

    /// Takes up an action; `meta` has the bytes of its [`Seg::Meta`] parts, during this call.
    fn submit<'m>(&mut self, action: &Action, segs: &[Seg], meta: &dyn Fn(u32) -> &'m [u8]);

    /// How an action ended.
    fn completed(&mut self) -> Option<Completion>;

    /// Waits for a completion or for the waker, at most for `timeout`.
    ///
    /// # Errors
    /// What the system says; nothing can be waited for any more.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// What ends [`Executor::wait`], or the next one where it does not wait.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Reads `bytes` from `offset` of a file that was adopted, and waits for that.
    ///
    /// # Errors
    /// What the system says.
    fn read(&mut self, file: FileId, offset: u64, bytes: &mut [u8]) -> Result<(), Errno>;
}

/// A waker that is also somebody else's.
struct Shared(Arc<dyn Wake>);

impl Wake for Shared {
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
    fn new(workers: Arc<Workers>, executor: E, config: EngineConfig) -> Host<E> {
        let wake = Box::new(Shared(executor.waker()));
        Host { engine: Engine::new(workers, wake, config), executor }
    }

    fn bind(&mut self, table: Option<Arc<Table>>) {
        self.executor.adopt(table.as_ref().map_or(&[], |table| table.files()));
        self.engine.bind(table);
    }

    /// Waits until there is something to go on with, at most for `timeout`. To be called after
    /// [`Host::go_on`] and after everything that it brought was looked at.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.engine.may_sleep() {
            let waited = self.executor.wait(timeout);
            self.engine.woke();
            return waited;
        }
        self.executor.wait(Some(Duration::ZERO))
    }

    /// Goes on with what ended, and begins what comes next.
    fn go_on(&mut self) {
        while let Some(completion) = self.executor.completed() {
            self.engine.complete(completion);
        }
        self.engine.step();
        while let Some(wants) = self.engine.merge_wants() {
            let mut bytes = vec![0; wants.len as usize];
            let read = self.executor.read(wants.file, wants.offset, &mut bytes);
            self.engine.merge_supply(read.map(|()| &bytes[..]));
            self.engine.step();
        }
        while let Some(action) = self.engine.pop_action() {
            let Host { engine, executor } = self;
            executor.submit(&action, engine.segs(&action), &|slot| engine.meta(slot));
        }
    }

    /// Makes everything durable that `table`, which the engine serves, owes.
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
        loop {
            self.go_on();
            if let Some((_, ended)) = self.engine.pop_finished() {
                status = Some(ended);
            }
            // What the flush began for others ends, too, before the table goes.
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
    /// It still goes on.
    #[error("the files did not take what is owed in time")]
    Deadline,
    /// The thread that flushes cannot wait for its I/O.
    #[error("cannot wait for the files: {0}")]
    Wait(io::Error),
    /// That thread is gone, after such an error.
    #[error("nothing can be flushed: an earlier flush could not be waited for")]
    Gone,
}

type Reply = Sender<Result<(), FlushError>>;

/// A thread that flushes tables, one after the other. Ends when it is dropped and done.
#[derive(Debug)]
pub struct Flusher {
    orders: Sender<(Arc<Table>, Reply)>,
}

impl Flusher {
    /// Starts the thread. `config.scratch` is the executor's.
    ///
    /// # Errors
    /// No more threads.
    pub fn start<E: Executor + 'static>(
        workers: Arc<Workers>,
        executor: E,
        config: EngineConfig,
    ) -> io::Result<Flusher> {
        let (orders, taken) = mpsc::channel();
        let name = String::from("flush");
        std::thread::Builder::new().name(name).spawn(move || {
            serve(Host::new(workers, executor, config), &taken);
        })?;
        Ok(Flusher { orders })
    }

    /// Makes durable what `table` owes: commits its stores, and syncs its files. Its device may
    /// be suspended or serve.
    ///
    /// # Errors
    /// [`FlushError`]; after [`FlushError::Deadline`] the flush goes on, and the next one waits for
    /// it.
    pub fn flush(&self, table: Arc<Table>, deadline: Instant) -> Result<(), FlushError> {
        let (reply, answer) = mpsc::channel();
        self.orders.send((table, reply)).map_err(|_| FlushError::Gone)?;
        let left = deadline.saturating_duration_since(Instant::now());
        answer.recv_timeout(left).unwrap_or_else(|error| {
            Err(match error {
                mpsc::RecvTimeoutError::Timeout => FlushError::Deadline,
                mpsc::RecvTimeoutError::Disconnected => FlushError::Gone,
            })
        })
    }
}

fn serve<E: Executor>(mut host: Host<E>, taken: &Receiver<(Arc<Table>, Reply)>) {
    while let Ok((table, reply)) = taken.recv() {
        host.bind(Some(table));
        let result = host.flush();
        let goes_on = !matches!(result, Err(FlushError::Wait(_)));
        if goes_on {
            host.bind(None);
        }
        // Whoever asked may have stopped waiting.
        let _ = reply.send(result);
        if !goes_on {
            return;
        }
    }
}
