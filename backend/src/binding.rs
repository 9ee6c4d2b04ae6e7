//! The seam between an export and the parts behind it: the engine, its executor, and the device
//! layer that owns tables.
//!
//! Owns the traits through which a worker uses them. The product's types and the tests' doubles
//! both implement them, and the worker is compiled for each, so that hot calls are inlined. Never
//! knows how a request is carried out.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

pub use snapblk_store::engine::Direct;
pub use snapblk_store::io::GuestData;
use snapblk_store::io::{Action, Completion, FileId, Seg};
use snapblk_store::request::{Op, Request, Status, Token};
use snapblk_store::units::Sector;
pub use snapblk_store::workers::Wake;

use crate::worker::WorkerHandle;

/// A device's table, as far as the guest's protocol needs it.
pub trait DeviceTable: Send + Sync + 'static {
    /// Size of the device.
    fn size(&self) -> Sector;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
}

/// The engine of one worker: requests in, actions out. Lives and dies on the worker's thread.
pub trait DeviceEngine: 'static {
    /// The table that it serves.
    type Table: DeviceTable;

    /// Takes a table; only while [`is_quiet`](Self::is_quiet). Held requests are dispatched again
    /// at the next [`step`](Self::step).
    fn bind(&mut self, table: Option<Arc<Self::Table>>);
    /// A request for the data at `offset`, in bytes, may be submitted soon.
    fn prefetch(&self, offset: u64);
    /// The place of the range, if a read or write of it needs no engine at all. `offset` and `len`
    /// are bytes.
    fn direct(&self, op: Op, offset: u64, len: u64) -> Option<Direct>;
    /// Takes a request; its range is within the table.
    fn submit(&mut self, request: Request);
    /// Every request that it has, except for reads, ends only when it is durable.
    fn make_durable(&mut self);
    /// One of its actions ended.
    fn complete(&mut self, completion: Completion);
    /// Advances woken requests and issues gathered actions. Once per batch.
    fn step(&mut self);
    /// Its next action.
    fn pop_action(&mut self) -> Option<Action>;
    /// The parts of an action that [`pop_action`](Self::pop_action) returned last.
    fn segs(&self, action: &Action) -> &[Seg];
    /// The bytes of its [`Seg::Meta`] part, if it has one.
    fn meta_of(&self, action: &Action) -> &[u8];
    /// The next request that ended.
    fn pop_finished(&mut self) -> Option<(Token, Status)>;
    /// Nothing in flight, nothing claimed, no commit led. Requests may be held.
    fn is_quiet(&self) -> bool;
    /// Ends all held requests with an error, also those that wait for other workers. Called while
    /// quiet.
    fn fail_held(&mut self);
    /// Ends with an error the requests that are held because there is no room for them. Called
    /// while quiet.
    fn fail_held_for_room(&mut self);
    /// Makes earlier writes durable in the next steps, although no request waits for it.
    fn commit(&mut self);
    /// Sets whether it starts work by itself (a merge's next run, a commit for other workers); it
    /// must not while the worker is quiescing.
    fn set_stopping(&mut self, stopping: bool);
    /// Announces that the worker goes to sleep; false if there is something to check first.
    fn may_sleep(&mut self) -> bool;
    /// The worker no longer sleeps.
    fn woke(&mut self);
    /// The files of the table that was bound.
    fn files(&self) -> &[FileId];
}

/// The executor of one worker: it does all the worker's I/O and waiting.
pub trait DeviceIo: 'static {
    /// Sets the files that actions will name from now on.
    fn adopt_files(&mut self, files: &[FileId]);
    /// Queues an action, or carries it out.
    fn submit<G: GuestData>(&mut self, action: &Action, segs: &[Seg], meta: &[u8], guest: &G);
    /// Whether an action has ended when [`submit`](Self::submit) returns.
    fn is_synchronous(&self) -> bool;
    /// Whether an action takes no longer than copying its data.
    fn is_in_memory(&self) -> bool;
    /// Submits queued actions to the kernel, without waiting.
    fn enter(&mut self) -> io::Result<()>;
    /// The next action that ended.
    fn completed(&mut self) -> Option<Completion>;
    /// Also waits for `fd`, an eventfd, until [`unwatch`](Self::unwatch); an error if it cannot, for
    /// lack of descriptors, say.
    fn watch(&mut self, fd: BorrowedFd<'_>, key: u64) -> io::Result<()>;
    /// Whether it still waits for it: a watch whose descriptor cannot be read fires once more, and
    /// ends.
    fn is_watched(&self, key: u64) -> bool;
    /// Stops waiting for it; after this it never fires again.
    fn unwatch(&mut self, key: u64);
    /// The key of a watched eventfd that was signalled; its counter is back at 0.
    fn fired(&mut self) -> Option<u64>;
    /// Submits, and waits for a completion or a watched eventfd, in one system call.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// Whether a completion or a signal is there, or is deferred until [`enter`](Self::enter).
    fn has_answers(&mut self) -> bool;
    /// Has completions posted as they come, or deferred until a call; only while nothing is in
    /// flight.
    fn post_at_once(&mut self, on: bool);
    /// Whether they are posted as they come.
    fn posts_at_once(&self) -> bool;
    /// As [`has_answers`](Self::has_answers), or whether queued actions have not been submitted to
    /// the kernel.
    fn is_ready(&mut self) -> bool;
    /// Actions that have not ended yet.
    fn in_flight(&self) -> usize;
}

/// The properties of a disk that its guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Its size.
    pub size: Sector,
    /// Whether it may be written.
    pub read_only: bool,
}

/// A failed request, as reported to the device's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// A request that returns data to the guest.
    Read,
    /// Another request.
    Write,
    /// Another request, for lack of room.
    NoSpace,
}

/// The object of an export: a device of the process.
pub trait Binding: Send + Sync + 'static {
    /// The engine of its workers.
    type Engine: DeviceEngine;
    /// The executor of its workers.
    type Io: DeviceIo;

    /// Makes the engine of a worker, on the worker's thread. Only a `writable` one gets writes.
    fn engine(&self, wake: Box<dyn Wake>, writable: bool) -> io::Result<Self::Engine>;
    /// Makes the executor of a worker, on the worker's thread.
    fn io(&self) -> io::Result<Self::Io>;
    /// The device as it is now, or as it was last if it has no table.
    fn geometry(&self) -> Geometry;
    /// Whether every write must be durable when it ends, as the export's guest last set it.
    fn is_write_through(&self, export: &str) -> bool;
    /// The guest set it. Returns when the setting survives the process, as far as possible.
    fn set_write_through(&self, export: &str, on: bool);
    /// A guest's request failed. Called by a worker, rarely; must not block.
    fn request_failed(&self, failure: Failure);
    /// An export's workers begin to serve the device. They start suspended and without a table:
    /// the device layer resumes each of them with its table when the device is active.
    fn attach(&self, export: &str, workers: Vec<WorkerHandle<TableOf<Self>>>);
    /// The workers no longer serve the device.
    fn detach(&self, export: &str);
}

/// The table type of a binding.
pub type TableOf<B> = <<B as Binding>::Engine as DeviceEngine>::Table;
