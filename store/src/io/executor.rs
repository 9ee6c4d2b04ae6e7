//! The executor of one worker: it does all the worker's I/O and all its waiting.
//!
//! Owns the worker's io_uring (or, without one, its epoll), its transfers in flight and its memory
//! for I/O. Never knows what an action is for. Keeps: every submitted action completes exactly
//! once; nothing is allocated for an action once the lists have grown to the load; memory given to
//! the kernel outlives its use there.
//!
//! One thread uses it: it may be another than the one that made it, and is the same from the first
//! call on.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::buffer::{GuestData, Memory, ScratchConfig};
use super::sync::{Poller, carry_out};
use super::transfer::{Outcome, Step, Through, WorkerFile};
use super::transfers::Transfers;
use super::uring::{Event, Handle, Posting, Ring, Wait};
use super::{Action, BufId, Completion, Errno, FileId, FileInfo, Files, IoOp, Seg};

#[cfg(test)]
mod tests;

/// The options of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoOptions {
    /// Whether to use io_uring; without it, or if the system forbids it, plain system calls.
    pub uring: bool,
    /// Steps that are submitted to the kernel at once; more wait for the next system call.
    pub entries: u32,
}

impl Default for IoOptions {
    fn default() -> IoOptions {
        IoOptions { uring: true, entries: 256 }
    }
}

/// The part that waits, and that carries out steps for which plain calls would block the worker.
enum Driver {
    Ring(Box<Ring>),
    Poll(Poller),
}

/// Space that is being reserved ahead in a file; without a reported result, it is not known to be
/// there.
struct Reservation {
    info: Weak<FileInfo>,
    room: Range<u64>,
}

impl Reservation {
    fn end(mut self, reserved: bool) {
        let info = std::mem::take(&mut self.info);
        if let Some(info) = info.upgrade() {
            info.ahead.ended(self.room.clone(), reserved);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(info) = self.info.upgrade() {
            info.ahead.ended(self.room.clone(), false);
        }
    }
}

/// The executor of one worker.
pub struct Io {
    files: Arc<Files>,
    /// By file number.
    adopted: Vec<Option<Box<WorkerFile>>>,
    transfers: Transfers,
    /// Transfers that found the ring's queue full, in order.
    overflow: VecDeque<u32>,
    done: VecDeque<Completion>,
    fired: VecDeque<u64>,
    driver: Driver,
    /// No adopted file is on a disk, where a ring would serve it.
    in_memory: bool,
    /// Requested reservations, by number: one per file at a time.
    reserving: Vec<Option<Reservation>>,
    syscalls: u64,
    in_flight: usize,
    // Last, so that it goes last: see `Drop`.
    memory: Memory,
}

impl Io {
    /// An executor over the files of `files`, none of which it has adopted yet.
    ///
    /// # Errors
    /// No memory. If io_uring is forbidden, it works without, and logs this once per process.
    pub fn new(files: Arc<Files>, scratch: ScratchConfig, options: IoOptions) -> io::Result<Io> {
        let driver = match options.uring.then(|| Ring::new(options.entries, Posting::Deferred)) {
            Some(Ok(ring)) => Driver::Ring(Box::new(ring)),
            Some(Err(error)) => {
                warn_once(&error);
                Driver::Poll(Poller::new()?)
            }
            None => Driver::Poll(Poller::new()?),
        };
        Ok(Io {
            files,
            adopted: Vec::new(),
            transfers: Transfers::default(),
            overflow: VecDeque::new(),
            done: VecDeque::new(),
            fired: VecDeque::new(),
            driver,
            in_memory: true,
            reserving: Vec::new(),
            syscalls: 0,
            in_flight: 0,
            memory: Memory::new(scratch)?,
        })
    }

    /// Adopts exactly these files and releases others; makes no system call, since a guest may be
    /// waiting. An action on any other file ends with `EBADF`. Nothing may be in flight on a
    /// released file.
    pub fn adopt_files(&mut self, ids: &[FileId]) {
        for at in 0..self.adopted.len() {
            if ids.iter().any(|id| id.0 as usize == at) {
                continue;
            }
            let fixed = self.adopted[at].take().and_then(|file| file.fixed);
            if let (Driver::Ring(ring), Some(place)) = (&mut self.driver, fixed) {
                ring.unregister(place);
            }
        }
        for id in ids {
            let at = id.0 as usize;
            if self.adopted.len() <= at {
                self.adopted.resize_with(at + 1, || None);
            }
            let Some(info) = self.files.get(*id) else { continue };
            let fixed = match (&self.adopted[at], &mut self.driver) {
                (Some(known), _) => known.fixed,
                (None, Driver::Ring(ring)) if info.uring => {
                    use std::os::fd::AsFd;
                    ring.register(info.file.as_fd()).unwrap_or_default()
                }
                _ => None,
            };
            self.adopted[at] = Some(Box::new(WorkerFile::new(info, fixed)));
        }
        let reserving = self.reserving.len().max(self.adopted.len());
        self.reserving.resize_with(reserving, || None);
        self.in_memory = !self.adopted.iter().flatten().any(|of| of.info.uring);
    }

    /// Whether an action has ended when [`Io::submit`] returns: no file of those adopted is served
    /// by io_uring.
    pub fn is_synchronous(&self) -> bool {
        self.in_memory || matches!(self.driver, Driver::Poll(_))
    }

    /// Whether an action takes no longer than copying its data: no adopted file is on a disk.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Accepts an action: queues it, or carries it out if plain calls serve its file better.
    /// `segs` are its parts; `meta` the bytes of a [`Seg::Meta`] among them, which are copied;
    /// `guest` knows the places of requests' bytes. Never waits for room.
    pub fn submit<G: GuestData>(&mut self, action: &Action, segs: &[Seg], meta: &[u8], guest: &G) {
        self.in_flight += 1;
        let slot = self.transfers.take(*action);
        let transfer = &mut self.transfers[slot];
        for seg in segs {
            let known = match *seg {
                Seg::Guest { token, offset, len } => {
                    transfer.pieces.push_guest(guest, token, offset, len);
                    true
                }
                Seg::Scratch { buf, offset, len } => {
                    transfer.pieces.push_scratch(&self.memory, buf, offset, len)
                }
                Seg::Zero { len } => {
                    transfer.pieces.push_zeroes(&self.memory, len as usize);
                    true
                }
                Seg::Meta { .. } => transfer.push_meta(&mut self.memory, meta),
            };
            if !known {
                return self.finish(slot, Err(Errno(libc::EFAULT)));
            }
        }
        if action.op == IoOp::Clear {
            self.transfers[slot].pieces.fill_with_zeroes();
            return self.finish(slot, Ok(()));
        }
        let file = self.adopted.get_mut(action.file.0 as usize);
        let transfer = &mut self.transfers[slot];
        let Some(file) = file.and_then(Option::as_deref_mut) else {
            return self.finish(slot, Err(Errno(libc::EBADF)));
        };
        match transfer.start(file, &mut self.memory) {
            Outcome::Done(result) => self.finish(slot, result),
            Outcome::Again if file.info.uring && matches!(self.driver, Driver::Ring(_)) => {
                if !self.overflow.is_empty() || !self.push(slot) {
                    self.overflow.push_back(slot);
                }
                if action.op == IoOp::Write {
                    self.reserve_ahead(action);
                }
            }
            Outcome::Again => self.carry_through(slot),
        }
    }

    /// Submits queued steps and fetches answers that the kernel defers, without waiting; at most
    /// one system call, and none if there is nothing to do.
    ///
    /// # Errors
    /// The system's error.
    pub fn enter(&mut self) -> io::Result<()> {
        self.fill_queue();
        if let Driver::Ring(ring) = &mut self.driver
            && ring.wants_to_enter()
        {
            self.syscalls += 1;
            ring.enter(Wait::No)?;
        }
        self.reap();
        Ok(())
    }

    /// The result of a completed action that was not returned yet; no system call.
    pub fn completed(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.reap();
        }
        let completion = self.done.pop_front()?;
        self.in_flight -= 1;
        Some(completion)
    }

    /// Whether a completion or a signal is there, or the kernel defers some until [`Io::enter`];
    /// no system call.
    pub fn has_answers(&mut self) -> bool {
        let held_back = match &mut self.driver {
            Driver::Ring(ring) => ring.has_answers(),
            Driver::Poll(_) => false,
        };
        held_back || !self.done.is_empty() || !self.fired.is_empty()
    }

    /// The same, or whether steps have not been submitted, be they queued or still without a place in
    /// the queue; no system call.
    pub fn is_ready(&mut self) -> bool {
        let queued = match &mut self.driver {
            Driver::Ring(ring) => ring.wants_to_enter(),
            Driver::Poll(_) => false,
        };
        queued || !self.overflow.is_empty() || self.has_answers()
    }

    /// Has completions posted as they come, so that polling for them needs no system call; or, as
    /// initially, by the calls that wait for them, which costs less. Changes nothing while
    /// something is in flight, or if the kernel does not support it.
    pub fn post_at_once(&mut self, on: bool) {
        let posting = if on { Posting::AtOnce } else { Posting::Deferred };
        let Driver::Ring(ring) = &mut self.driver else { return };
        if self.in_flight > 0 || ring.in_flight > 0 || ring.posting == posting {
            return;
        }
        let reserving = &mut self.reserving;
        match ring.replace(posting, |number, reserved| ended(reserving, number, reserved)) {
            // The other ring's remaining results of reservations are dropped.
            Ok(()) if ring.posting == posting => self.reserving.fill_with(|| None),
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%error, "completions are posted as before");
                return;
            }
        }
        for file in self.adopted.iter_mut().flatten() {
            if file.fixed.take().is_some() {
                use std::os::fd::AsFd;
                file.fixed = ring.register(file.info.file.as_fd()).unwrap_or_default();
            }
        }
    }

    /// Whether completions are posted as they come.
    pub fn posts_at_once(&self) -> bool {
        matches!(&self.driver, Driver::Ring(ring) if ring.posting == Posting::AtOnce)
    }

    /// Watches an eventfd, from the next call of [`Io::enter`] or [`Io::wait`] on: when it is
    /// signalled, [`Io::fired`] returns `key`, once for several signals together. Its counter is
    /// consumed by [`Io::unwatch`] at the latest. The descriptor is duplicated, and the caller may
    /// close it. Without a ring only `wait` checks it.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn watch(&mut self, fd: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        let fd = fd.try_clone_to_owned()?;
        match &mut self.driver {
            Driver::Ring(ring) => {
                ring.watch(fd, key);
                Ok(())
            }
            Driver::Poll(poller) => poller.watch(fd, key),
        }
    }

    /// Stops the watch of `key`: it does not fire any more. A signal that came and was not yet
    /// returned is dropped, so the next user must check once without a signal.
    pub fn unwatch(&mut self, key: u64) {
        match &mut self.driver {
            Driver::Ring(ring) => {
                if let Err(error) = ring.unwatch(key) {
                    tracing::warn!(%error, "cannot cancel the watch of a descriptor");
                }
            }
            Driver::Poll(poller) => poller.unwatch(key),
        }
        self.fired.retain(|&fired| fired != key);
    }

    /// Whether `key` still fires. A watch whose descriptor cannot be read fires once more, and ends.
    pub fn is_watched(&self, key: u64) -> bool {
        match &self.driver {
            Driver::Ring(ring) => ring.is_watched(key),
            Driver::Poll(poller) => poller.is_watched(key),
        }
    }

    /// A key whose descriptor was signalled; no system call.
    pub fn fired(&mut self) -> Option<u64> {
        if self.fired.is_empty() {
            self.reap();
        }
        self.fired.pop_front()
    }

    /// Submits queued steps and waits, in the same system call, for a completion or a watched
    /// descriptor, at most for `timeout`. Does not wait if one of them is there already. May
    /// return early.
    ///
    /// # Errors
    /// The system's error.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.reap();
        if !self.done.is_empty() || !self.fired.is_empty() {
            return self.enter();
        }
        self.fill_queue();
        match &mut self.driver {
            Driver::Ring(ring) => {
                self.syscalls += 1;
                ring.enter(timeout.map_or(Wait::Forever, Wait::For))?;
            }
            Driver::Poll(poller) => {
                let fired = &mut self.fired;
                self.syscalls += 1;
                poller.wait(timeout, |key| fired.push_back(key))?;
            }
        }
        self.reap();
        Ok(())
    }

    /// Actions that were submitted and were not returned by [`Io::completed`] yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// System calls made so far for I/O and waiting.
    pub fn syscalls(&self) -> u64 {
        self.syscalls
    }

    /// Whether io_uring is in use.
    pub fn uses_uring(&self) -> bool {
        matches!(self.driver, Driver::Ring(_))
    }

    /// Puts `bytes` into a scratch buffer, at `offset`; false if they do not fit.
    #[cfg(test)]
    pub fn put_scratch(&mut self, buf: BufId, offset: usize, bytes: &[u8]) -> bool {
        self.memory.put(buf, offset, bytes)
    }

    /// Copies a part of a scratch buffer out; false if the buffer is too short.
    pub fn get_scratch(&self, buf: BufId, offset: usize, bytes: &mut [u8]) -> bool {
        self.memory.get(buf, offset, bytes)
    }

    fn finish(&mut self, slot: u32, result: Result<(), Errno>) {
        let tag = self.transfers[slot].action.tag;
        self.transfers[slot].drop_meta(&mut self.memory);
        self.done.push_back(Completion { tag, result });
        self.transfers.give_back(slot);
    }

    /// Carries out all steps of a transfer by plain calls.
    fn carry_through(&mut self, slot: u32) {
        let transfer = &mut self.transfers[slot];
        let at = transfer.action.file.0 as usize;
        let Some(file) = self.adopted[at].as_deref_mut() else { return };
        let result = loop {
            let answer = carry_out(transfer.step(), file.fd(transfer.through));
            self.syscalls += 1;
            match transfer.answer(answer, file, &mut self.memory) {
                Outcome::Again => {}
                Outcome::Done(result) => break result,
            }
        };
        self.finish(slot, result);
    }

    /// Queues a transfer's next step; false if the queue is full.
    fn push(&mut self, slot: u32) -> bool {
        let transfer = &self.transfers[slot];
        let file = self.adopted[transfer.action.file.0 as usize].as_deref();
        let (Driver::Ring(ring), Some(file)) = (&mut self.driver, file) else { return false };
        let step: Step<'_> = transfer.step();
        ring.push(slot, step, handle_of(file, transfer.through))
    }

    /// Reserves space for the writes that will follow `action`, if it is time for that.
    #[inline]
    fn reserve_ahead(&mut self, action: &Action) {
        let file = self.adopted[action.file.0 as usize].as_deref();
        if let (Driver::Ring(ring), Some(file)) = (&mut self.driver, file)
            && let Some(room) = file.info.ahead.next(action.offset, action.offset + action.len)
        {
            let room = room.start..room.end.min(file.len).max(room.start);
            let asked = Reservation { info: Arc::downgrade(&file.info), room: room.clone() };
            if !room.is_empty()
                && let Some(number) = self.reserving.iter().position(Option::is_none)
                && ring.reserve(number as u32, handle_of(file, Through::Main), room)
            {
                self.reserving[number] = Some(asked);
            }
        }
    }

    /// Queues the steps that had found no room, and the watches to be armed.
    fn fill_queue(&mut self) {
        // Watches first: a full queue of transfers must not keep a kick from being seen.
        if let Driver::Ring(ring) = &mut self.driver {
            ring.arm();
        }
        while let Some(&slot) = self.overflow.front() {
            if !self.push(slot) {
                return;
            }
            self.overflow.pop_front();
        }
    }

    /// Stops all watches, and waits until the kernel no longer uses the memory of any transfer;
    /// false if that fails.
    pub(crate) fn settle(&mut self) -> bool {
        match &mut self.driver {
            Driver::Ring(ring) => ring.settle(|_| {}),
            Driver::Poll(_) => true,
        }
    }

    /// Takes the kernel's answers.
    fn reap(&mut self) {
        loop {
            let Driver::Ring(ring) = &mut self.driver else { return };
            match ring.next() {
                None => return,
                Some(Event::Fired(key)) => self.fired.push_back(key),
                Some(Event::Answer(slot, result)) => self.answered(slot, result),
                Some(Event::Reserved(number, reserved)) => {
                    ended(&mut self.reserving, number, reserved);
                }
            }
        }
    }

    fn answered(&mut self, slot: u32, result: i32) {
        let transfer = &mut self.transfers[slot];
        let file = self.adopted[transfer.action.file.0 as usize].as_deref_mut();
        let Some(file) = file else { return self.finish(slot, Err(Errno(libc::EBADF))) };
        match transfer.answer(result, file, &mut self.memory) {
            Outcome::Done(result) => self.finish(slot, result),
            Outcome::Again => {
                if !self.push(slot) {
                    self.overflow.push_front(slot);
                }
            }
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if !self.settle() {
            // The kernel may still write there: better leak the memory than reuse it.
            tracing::warn!("I/O is still in flight at the end of a worker; its memory is kept");
            std::mem::forget(std::mem::take(&mut self.transfers));
            self.memory.leak();
        }
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("uring", &self.uses_uring())
            .field("in_flight", &self.in_flight)
            .field("syscalls", &self.syscalls)
            .finish_non_exhaustive()
    }
}

/// The reservation of this number ended.
fn ended(reserving: &mut [Option<Reservation>], number: u32, reserved: bool) {
    if let Some(asked) = reserving.get_mut(number as usize).and_then(Option::take) {
        asked.end(reserved);
    }
}

/// How the ring identifies the file.
fn handle_of(file: &WorkerFile, through: Through) -> Handle<'_> {
    match file.fixed {
        Some(place) if through == Through::Main => Handle::Fixed(place),
        _ => Handle::Fd(file.fd(through)),
    }
}

fn warn_once(error: &io::Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "io_uring cannot be used here ({error}): plain system calls serve instead, slower"
        );
    }
}
