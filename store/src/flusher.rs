//! Flushes by a thread of its own accord: what suspends, seals and orderly ends need.
//!
//! Owns an engine and an executor for as long as one flush takes. Never knows why it flushes.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::device::Flusher;
use crate::engine::{Engine, EngineConfig};
use crate::io::buffer::{GuestData, ScratchConfig};
use crate::io::executor::{Io, IoOptions};
use crate::io::{Files, Tag};
use crate::request::{Op, Request, Status, Token};
use crate::table::Table;
use crate::units::Sector;
use crate::workers::{Wake, Workers};

/// Key of the engine's own wake among what its executor watches.
const WAKE: u64 = 0;

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

    fn run(&self, table: &Arc<Table>) -> std::io::Result<Status> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let config = EngineConfig { scratch: 64 << 10, requests: 4, claims: 4 };
        let wake = Box::new(EventWake(event.clone()));
        let mut engine = Engine::new(self.workers.clone(), wake, config);
        let scratch = ScratchConfig { buffers: 1, size: config.scratch };
        let mut io = Io::new(self.files.clone(), scratch, self.options)?;
        io.watch(event.as_fd(), WAKE)?;
        engine.bind(Some(table.clone()));
        io.adopt_files(engine.files());
        let (token, sector) = (Token(0), Sector(0));
        engine.submit(Request { token, op: Op::Flush, sector, len: 0, durable: true });
        loop {
            engine.step();
            while let Some(action) = engine.pop_action() {
                io.submit(&action, engine.segs(&action), engine.meta_of(&action), &NoGuest);
            }
            io.enter()?;
            let mut went_on = false;
            while let Some(completion) = io.completed() {
                debug_assert_ne!(completion.tag, Tag(u64::MAX));
                engine.complete(completion);
                went_on = true;
            }
            if let Some((_, status)) = engine.pop_finished() {
                engine.set_stopping(true);
                while !engine.is_quiet() {
                    drive(&mut engine, &mut io)?;
                }
                return Ok(status);
            }
            if !went_on && engine.may_sleep() {
                io.wait(None)?;
                engine.woke();
                while io.fired().is_some() {}
            }
        }
    }
}

/// One turn of an engine that only ends what it began.
fn drive(engine: &mut Engine, io: &mut Io) -> std::io::Result<()> {
    engine.step();
    while let Some(action) = engine.pop_action() {
        io.submit(&action, engine.segs(&action), engine.meta_of(&action), &NoGuest);
    }
    if engine.is_quiet() {
        return Ok(());
    }
    io.wait(Some(std::time::Duration::from_millis(10)))?;
    while let Some(completion) = io.completed() {
        engine.complete(completion);
    }
    while io.fired().is_some() {}
    Ok(())
}

impl Flusher for CallerFlusher {
    fn flush(&self, table: &Arc<Table>) -> bool {
        match self.run(table) {
            Ok(status) => status == Status::Ok,
            Err(error) => {
                tracing::error!("cannot flush: {error}");
                false
            }
        }
    }
}

struct EventWake(Arc<std::os::fd::OwnedFd>);

impl Wake for EventWake {
    fn wake(&self) {
        // The only failure is a counter that is full, and then it wakes all the same.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// A flush has no bytes of a guest.
struct NoGuest;

impl GuestData for NoGuest {
    fn push_iovecs(&self, _: Token, _: u32, _: u32, _: &mut Vec<libc::iovec>) {}
}
