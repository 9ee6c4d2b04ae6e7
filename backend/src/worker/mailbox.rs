//! How control sends messages to a worker.
//!
//! Owns the queue of messages of one worker, the eventfd that ends its sleep, and the flag that
//! its ring is out of order, which is the only thing that a worker reports unasked. The worker
//! checks one flag between batches and takes the lock only if the flag is set. Never knows what a
//! message does.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::binding::Wake;
use crate::memory::GuestMemory;
use crate::vring::{Region, VringSetup};

/// Signals an eventfd of this process's own: ends a sleep. Of others, only one that cannot block.
pub(crate) fn signal(fd: impl AsFd) {
    // The only failure of an existing eventfd is a full counter, which means that it is signalled.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// A new eventfd.
pub(crate) fn new_eventfd() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// The table that a worker continues with.
#[derive(Debug)]
pub enum ResumeWith<T> {
    /// The one it has, or had last if that still exists: an undone suspend.
    Same,
    /// This one, or none.
    Table(Option<Arc<T>>),
}

/// Why a worker could not carry out a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// A message that needs a suspended worker was sent to one that serves.
    #[error("the worker is not suspended")]
    NotSuspended,
    /// The table to continue with is gone.
    #[error("the table that the worker had is gone")]
    NoTable,
    /// Owed chunks could not be made durable.
    #[error("what was written could not be made durable")]
    FlushFailed,
    /// It did not finish in time.
    #[error("the worker did not answer in time")]
    TimedOut,
    /// The worker no longer exists.
    #[error("the worker has ended")]
    Gone,
}

/// How a kick reaches a ring.
#[derive(Debug)]
pub enum Kick {
    /// By an eventfd.
    Event(OwnedFd),
    /// Not at all: the ring is to be polled.
    Poll,
}

impl Kick {
    /// The same, by a descriptor of its own; where none is left, by polling.
    pub(crate) fn share(&self) -> Kick {
        match self {
            Kick::Event(fd) => fd.try_clone().map_or(Kick::Poll, Kick::Event),
            Kick::Poll => Kick::Poll,
        }
    }
}

/// The parameters that a worker needs to serve a ring.
#[derive(Debug)]
pub struct RingStart {
    /// The place of the ring.
    pub setup: VringSetup,
    /// Where it records its chains in flight, so that the record outlives the process.
    pub inflight: Option<Region>,
    /// How it is kicked.
    pub kick: Kick,
    /// The eventfd for interrupts.
    pub call: Option<OwnedFd>,
    /// The eventfd that reports a ring out of order.
    pub err: Option<OwnedFd>,
    /// Whether it may be served already.
    pub enabled: bool,
    /// Whether a write ends only when it is durable.
    pub write_through: bool,
}

/// Where the answer to a message goes.
#[derive(Debug)]
pub struct Reply<R>(SyncSender<R>);

impl<R> Reply<R> {
    pub(crate) fn send(self, answer: R) {
        // The sender may have given up waiting.
        let _ = self.0.try_send(answer);
    }
}

/// The answer to a message, to be waited for.
#[derive(Debug)]
pub struct PendingReply<R>(Receiver<R>);

impl<R> PendingReply<R> {
    /// Waits for at most `limit`.
    pub fn wait(&self, limit: Duration) -> Result<R, WorkerError> {
        self.0.recv_timeout(limit).map_err(|e| match e {
            RecvTimeoutError::Timeout => WorkerError::TimedOut,
            RecvTimeoutError::Disconnected => WorkerError::Gone,
        })
    }
}

pub(crate) type Outcome = Result<(), WorkerError>;

/// A message to a worker.
#[derive(Debug)]
pub(crate) enum Mail<T> {
    Suspend { flush: bool, reply: Reply<Outcome> },
    Resume { with: ResumeWith<T>, reply: Reply<Outcome> },
    Memory { memory: Arc<GuestMemory>, reply: Reply<()> },
    StartRing { start: Box<RingStart>, reply: Reply<Result<(), crate::vring::VringError>> },
    StopRing { reply: Reply<Option<u16>> },
    Enable { on: bool, reply: Reply<()> },
    Kick { kick: Kick, reply: Reply<()> },
    Call { call: Option<OwnedFd>, reply: Reply<()> },
    Err { err: Option<OwnedFd>, reply: Reply<()> },
    WriteThrough { on: bool, reply: Reply<Outcome> },
    Commit,
    Stop,
}

/// The messages of one worker.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: Mutex<Option<VecDeque<Mail<T>>>>,
    pending: AtomicBool,
    event: OwnedFd,
    /// The worker's ring is out of order.
    broken: AtomicBool,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> io::Result<Mailbox<T>> {
        Ok(Mailbox {
            queue: Mutex::new(Some(VecDeque::new())),
            pending: AtomicBool::new(false),
            event: new_eventfd()?,
            broken: AtomicBool::new(false),
        })
    }

    /// Leaves a message. It is lost, with its reply, if the worker has ended.
    fn post(&self, mail: Mail<T>) {
        let mut queue = self.queue.lock().expect("mailbox lock poisoned");
        if let Some(queue) = queue.as_mut() {
            queue.push_back(mail);
            self.pending.store(true, Ordering::Release);
            signal(&self.event);
        }
    }

    /// Whether there may be a message: one load.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Appends all messages to `into`.
    pub(crate) fn take(&self, into: &mut VecDeque<Mail<T>>) {
        let mut queue = self.queue.lock().expect("mailbox lock poisoned");
        self.pending.store(false, Ordering::Relaxed);
        if let Some(queue) = queue.as_mut() {
            into.append(queue);
        }
    }

    /// The worker ends: later and unread messages are lost.
    pub(crate) fn close(&self) {
        drop(self.queue.lock().expect("mailbox lock poisoned").take());
    }

    /// The worker's ring is out of order, or a new one was started.
    pub(crate) fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::Release);
    }

    /// The descriptor that ends the worker's sleep.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Wakes the worker of a mailbox, for the engine.
pub(crate) struct WakeMailbox<T>(pub(crate) Arc<Mailbox<T>>);

impl<T: Send + Sync> Wake for WakeMailbox<T> {
    fn wake(&self) {
        signal(&self.0.event);
    }
}

/// A running worker, as control sees it. Any thread may hold one, even after the worker has ended.
#[derive(Debug)]
pub struct WorkerHandle<T> {
    mailbox: Arc<Mailbox<T>>,
}

impl<T> Clone for WorkerHandle<T> {
    fn clone(&self) -> Self {
        WorkerHandle { mailbox: self.mailbox.clone() }
    }
}

impl<T> WorkerHandle<T> {
    pub(crate) fn new(mailbox: Arc<Mailbox<T>>) -> Self {
        WorkerHandle { mailbox }
    }

    fn ask<R>(&self, mail: impl FnOnce(Reply<R>) -> Mail<T>) -> PendingReply<R> {
        let (send, receive) = sync_channel(1);
        self.mailbox.post(mail(Reply(send)));
        PendingReply(receive)
    }

    /// Takes no more requests and lets those in flight end; with `flush`, makes owed chunks
    /// durable. The reply comes when nothing is in flight and the table was released. Requests
    /// that the engine holds stay held. [`resume`](Self::resume) with [`ResumeWith::Same`] undoes
    /// this, even half-way.
    pub fn suspend(&self, flush: bool) -> PendingReply<Result<(), WorkerError>> {
        self.ask(|reply| Mail::Suspend { flush, reply })
    }

    /// Serves again.
    pub fn resume(&self, with: ResumeWith<T>) -> PendingReply<Result<(), WorkerError>> {
        self.ask(|reply| Mail::Resume { with, reply })
    }

    /// Makes earlier writes durable when it serves, without waiting for that.
    pub fn commit(&self) {
        self.mailbox.post(Mail::Commit);
    }

    pub(crate) fn set_memory(&self, memory: Arc<GuestMemory>) -> PendingReply<()> {
        self.ask(|reply| Mail::Memory { memory, reply })
    }

    pub(crate) fn start_ring(
        &self,
        start: RingStart,
    ) -> PendingReply<Result<(), crate::vring::VringError>> {
        self.ask(|reply| Mail::StartRing { start: Box::new(start), reply })
    }

    /// Ends requests in flight; fails held requests, or leaves them for the next start of the
    /// ring; flushes. Returns the position at which the ring stopped, or none if there was no
    /// ring.
    pub(crate) fn stop_ring(&self) -> PendingReply<Option<u16>> {
        self.ask(|reply| Mail::StopRing { reply })
    }

    pub(crate) fn set_write_through(&self, on: bool) -> PendingReply<Outcome> {
        self.ask(|reply| Mail::WriteThrough { on, reply })
    }

    pub(crate) fn enable(&self, on: bool) -> PendingReply<()> {
        self.ask(|reply| Mail::Enable { on, reply })
    }

    pub(crate) fn set_kick(&self, kick: Kick) -> PendingReply<()> {
        self.ask(|reply| Mail::Kick { kick, reply })
    }

    pub(crate) fn set_call(&self, call: Option<OwnedFd>) -> PendingReply<()> {
        self.ask(|reply| Mail::Call { call, reply })
    }

    pub(crate) fn set_err(&self, err: Option<OwnedFd>) -> PendingReply<()> {
        self.ask(|reply| Mail::Err { err, reply })
    }

    /// Whether the guest broke the ring that was started last.
    pub(crate) fn is_broken(&self) -> bool {
        self.mailbox.broken.load(Ordering::Acquire)
    }

    pub(crate) fn stop(&self) {
        self.mailbox.post(Mail::Stop);
    }
}
