//! A device of the process, as an export's workers see it.
//!
//! Owns the fit between the device machine and the worker: the engine and the executor of each,
//! and how a worker is stopped and let go.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use snapblk_store::attached::{AttachedWorker, StopError};
use snapblk_store::device::{Devices, TableKind, User};
use snapblk_store::engine::{Direct, Engine, EngineConfig};
use snapblk_store::io::{
    Action, Completion, FileId, GuestData, Io, IoOptions, Pages, ScratchConfig, Seg,
};
use snapblk_store::request::{Op, Request, Status, Token};
use snapblk_store::table::Table;
use snapblk_store::units::Sector;
use snapblk_store::workers::Wake;

use super::failures::Failed;
use crate::binding::{Binding, DeviceEngine, DeviceIo, DeviceTable, Failure, Geometry};
use crate::worker::{PendingReply, ResumeWith, WorkerError, WorkerHandle};

const POISONED: &str = "geometry lock poisoned";

/// A device and what its workers are made with.
pub(super) struct Served {
    devices: Arc<Devices>,
    failed: Failed,
    device: String,
    writable: bool,
    options: IoOptions,
    /// Of the table that is served.
    served: Arc<Mutex<Option<Geometry>>>,
}

impl Served {
    /// `failed` is told of requests that fail.
    pub(super) fn new(
        devices: Arc<Devices>,
        device: &str,
        writable: bool,
        options: IoOptions,
        failed: Failed,
    ) -> Arc<Served> {
        let device = device.into();
        Arc::new(Served { devices, failed, device, writable, options, served: Arc::default() })
    }
}

impl Binding for Served {
    type Engine = Engine;
    type Io = Io;

    fn engine(&self, wake: Box<dyn Wake>, writable: bool) -> io::Result<Engine> {
        let worker = self.devices.workers().register_queue(wake)?;
        let mut engine = Engine::of(worker, EngineConfig::default());
        engine.set_only_reads(!writable);
        Ok(engine)
    }

    fn io(&self) -> io::Result<Io> {
        let scratch = ScratchConfig::one(EngineConfig::default().scratch, Pages::Small);
        Io::new(self.devices.files().clone(), scratch, self.options)
    }

    fn geometry(&self) -> Geometry {
        // A front-end asks this, and a command may hold the devices while it waits for another
        // disk.
        if let Some(served) = *self.served.lock().expect(POISONED) {
            return served;
        }
        let status = self.devices.query(Some(&self.device), TableKind::Active);
        let status = status.ok().and_then(|mut all| all.pop());
        status.map_or(Geometry { size: Sector(0), read_only: false }, |status| Geometry {
            size: Sector::from_bytes(status.size),
            read_only: status.read_only,
        })
    }

    fn is_write_through(&self, export: &str) -> bool {
        self.devices.is_write_through(&self.device, export)
    }

    fn set_write_through(&self, export: &str, on: bool) {
        if let Err(error) = self.devices.set_write_through(&self.device, export, on) {
            tracing::error!(
                "that the guest of the export '{export}' turned its write cache {} cannot be kept: \
                 {error}; a restart of this process would forget it",
                if on { "off" } else { "on" }
            );
        }
    }

    fn request_failed(&self, failure: Failure) {
        self.failed.note(failure);
    }

    fn attach(&self, export: &str, workers: Vec<WorkerHandle<Table>>) {
        let attached = |handle| -> Arc<dyn AttachedWorker> {
            let served = self.served.clone();
            Arc::new(Attached { handle, stopping: Mutex::new(None), served })
        };
        let workers = workers.into_iter().map(attached).collect();
        let user = User { writable: self.writable, workers };
        if let Err(error) = self.devices.attach(&self.device, export, user) {
            tracing::error!("the export {export} has nothing to serve: {error}");
        }
    }

    fn detach(&self, export: &str) {
        self.devices.detach(&self.device, export);
    }
}

struct Attached {
    handle: WorkerHandle<Table>,
    stopping: Mutex<Option<PendingReply<Result<(), WorkerError>>>>,
    served: Arc<Mutex<Option<Geometry>>>,
}

impl Attached {
    fn stopping(&self) -> std::sync::MutexGuard<'_, Option<PendingReply<Result<(), WorkerError>>>> {
        self.stopping.lock().expect("reply lock poisoned")
    }
}

impl AttachedWorker for Attached {
    fn stop(&self) {
        *self.stopping() = Some(self.handle.suspend(false));
    }

    fn stopped(&self, deadline: Instant) -> Result<(), StopError> {
        let Some(reply) = self.stopping().take() else { return Ok(()) };
        match reply.wait(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(())) | Ok(Err(WorkerError::Gone)) | Err(WorkerError::Gone) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                // Undone, also half-way; what it answers does not matter.
                drop(self.handle.resume(ResumeWith::Same));
                Err(StopError::Deadline)
            }
        }
    }

    fn commit(&self) {
        self.handle.commit();
    }

    fn go(&self, table: Arc<Table>) {
        // The last one stays for a device without a table.
        if table.size() > Sector(0) {
            let (size, read_only) = (table.size(), table.read_only());
            *self.served.lock().expect(POISONED) = Some(Geometry { size, read_only });
        }
        drop(self.handle.resume(ResumeWith::Table(Some(table))));
    }
}

impl DeviceTable for Table {
    fn size(&self) -> Sector {
        Table::size(self)
    }

    fn read_only(&self) -> bool {
        Table::read_only(self)
    }
}

impl DeviceEngine for Engine {
    type Table = Table;

    fn bind(&mut self, table: Option<Arc<Table>>) {
        Engine::bind(self, table);
    }

    #[inline]
    fn prefetch(&self, offset: u64) {
        Engine::prefetch(self, offset);
    }

    #[inline]
    fn direct(&self, op: Op, offset: u64, len: u64) -> Option<Direct> {
        Engine::direct(self, op, offset, len)
    }

    fn submit(&mut self, request: Request) {
        Engine::submit(self, request);
    }

    fn make_durable(&mut self) {
        Engine::make_durable(self);
    }

    fn complete(&mut self, completion: Completion) {
        Engine::complete(self, completion);
    }

    fn step(&mut self) {
        Engine::step(self);
    }

    fn pop_action(&mut self) -> Option<Action> {
        Engine::pop_action(self)
    }

    fn segs(&self, action: &Action) -> &[Seg] {
        Engine::segs(self, action)
    }

    fn meta_of(&self, action: &Action) -> &[u8] {
        Engine::meta_of(self, action)
    }

    fn pop_finished(&mut self) -> Option<(Token, Status)> {
        Engine::pop_finished(self)
    }

    fn is_quiet(&self) -> bool {
        Engine::is_quiet(self)
    }

    fn fail_held(&mut self) {
        Engine::fail_held(self);
    }

    fn fail_held_for_room(&mut self) {
        Engine::fail_held_for_room(self);
    }

    fn commit(&mut self) {
        Engine::commit(self);
    }

    fn set_stopping(&mut self, stopping: bool) {
        Engine::set_stopping(self, stopping);
    }

    fn may_sleep(&mut self) -> bool {
        Engine::may_sleep(self)
    }

    fn woke(&mut self) {
        Engine::woke(self);
    }

    fn files(&self) -> &[FileId] {
        Engine::files(self)
    }
}

impl DeviceIo for Io {
    fn adopt_files(&mut self, files: &[FileId]) {
        Io::adopt_files(self, files);
    }

    #[inline]
    fn submit<G: GuestData>(&mut self, action: &Action, segs: &[Seg], meta: &[u8], guest: &G) {
        Io::submit(self, action, segs, meta, guest);
    }

    fn is_synchronous(&self) -> bool {
        Io::is_synchronous(self)
    }

    fn is_in_memory(&self) -> bool {
        Io::is_in_memory(self)
    }

    fn enter(&mut self) -> io::Result<()> {
        Io::enter(self)
    }

    fn completed(&mut self) -> Option<Completion> {
        Io::completed(self)
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        Io::watch(self, fd, key)
    }

    fn is_watched(&self, key: u64) -> bool {
        Io::is_watched(self, key)
    }

    fn unwatch(&mut self, key: u64) {
        Io::unwatch(self, key);
    }

    fn fired(&mut self) -> Option<u64> {
        Io::fired(self)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        Io::wait(self, timeout)
    }

    fn has_answers(&mut self) -> bool {
        Io::has_answers(self)
    }

    fn post_at_once(&mut self, on: bool) {
        Io::post_at_once(self, on);
    }

    fn posts_at_once(&self) -> bool {
        Io::posts_at_once(self)
    }

    fn is_ready(&mut self) -> bool {
        Io::is_ready(self)
    }

    fn in_flight(&self) -> usize {
        Io::in_flight(self)
    }
}
