//! The loop of one virtqueue: takes a batch, has it carried out, completes it, sleeps.
//!
//! Owns the ring while it runs, the requests in flight and the order of a turn. Never knows how a
//! request is carried out, nor the vhost-user protocol. Runs to completion on its own thread. On
//! the path of a request nothing locks, allocates or logs, and one system call submits a batch and
//! waits for the next, except for the few requests that are polled for and the parts in which a
//! disk gets a long batch.
//!
//! Keeps I9: a worker that acknowledged a suspend has nothing in flight and takes nothing; the
//! guest's requests wait in the ring. Keeps I10: each chain is completed once. Keeps I17: before
//! it sleeps it arms everything that can wake it, and then checks again.

mod answers;
mod batch;
mod driver;
mod flights;
mod mailbox;
mod notifier;
mod poll;
mod queued;
mod quiesce;
mod ring;
mod watchdog;

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use snapblk_store::io::Completion;
use snapblk_store::request::{Op, Request, Status, Token};
use snapblk_store::units::Sector;

use crate::binding::{Binding, DeviceEngine, DeviceIo, DeviceTable, Failure, TableOf};
use crate::config::{LogicalBlock, SERIAL_LEN};
use crate::request::{BlkStatus, Limits, Parser};

use flights::{Flights, Memories};
pub use mailbox::{Kick, PendingReply, Reply, ResumeWith, RingStart, WorkerError, WorkerHandle};
use mailbox::{Mail, Mailbox, Outcome, WakeMailbox};
pub(crate) use mailbox::{new_eventfd, signal};
use notifier::Notifier;
use poll::AdaptivePoll;
pub use poll::Polling;
use queued::Queued;
use quiesce::Quiesce;
use ring::Ring;

#[cfg(test)]
mod tests;

/// The interval between two checks of a ring that is not kicked.
const UNKICKED_POLL: Duration = Duration::from_micros(200);

/// Marks the tags of the worker's own I/O.
const OWN_TAG: u64 = 1 << 63;
/// The worker's own flush.
const OWN_FLUSH: Token = Token(u32::MAX);

const WAKE_KEY: u64 = 0;
const KICK_KEY: u64 = 1;

/// The parameters of a worker at its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerOptions {
    /// The answer to GET_ID.
    pub(crate) serial: [u8; SERIAL_LEN],
    /// Whether the export lets guests write.
    pub(crate) writable: bool,
    /// The disk's logical block.
    pub(crate) block: LogicalBlock,
    /// Whether it may sleep.
    pub(crate) polling: Polling,
}

/// Starts a worker: suspended, without a table, without a ring.
pub(crate) fn spawn<B: Binding>(
    name: String,
    options: WorkerOptions,
    binding: Arc<B>,
) -> io::Result<(WorkerHandle<TableOf<B>>, JoinHandle<()>)> {
    let mailbox = Arc::new(Mailbox::new()?);
    let handle = WorkerHandle::new(mailbox.clone());
    let (send, started) = sync_channel(1);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let wake = Box::new(WakeMailbox(mailbox.clone()));
        let worker = binding.engine(wake, options.writable).and_then(|engine| {
            let io = binding.io()?;
            let failed = Box::new(move |failure| binding.request_failed(failure));
            Worker::new(engine, io, mailbox, options, failed)
        });
        match worker {
            Ok(worker) => {
                let _ = send.send(Ok(()));
                worker.run();
            }
            Err(e) => {
                let _ = send.send(Err(e));
            }
        }
    })?;
    started.recv().map_err(|_| io::Error::other("the worker's thread ended at once"))??;
    Ok((handle, thread))
}

/// Whether the device lets requests in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
}

struct Worker<E: DeviceEngine, I: DeviceIo> {
    // Before whatever its watches borrow.
    io: I,
    engine: E,
    ring: Option<Ring>,
    flights: Flights,
    memories: Memories,
    /// Whether the export lets guests write.
    writable: bool,
    parser: Parser,
    table: Option<Arc<E::Table>>,
    /// The one that it released last.
    last: Weak<E::Table>,
    gate: Gate,
    /// I/O of its own in flight.
    direct: usize,
    unsubmitted: Queued,
    polling: Polling,
    poll: AdaptivePoll,
    /// The same for I/O in flight.
    poll_io: AdaptivePoll,
    mailbox: Arc<Mailbox<E::Table>>,
    mail: VecDeque<Mail<E::Table>>,
    quiesce: Option<Quiesce>,
    /// No chain is taken until nothing is in flight, or until this time, for
    /// [`Worker::adapt_to_driver`].
    drains: Option<Instant>,
    /// Owed chunks are to be committed when it serves.
    commit_wanted: bool,
    /// [`OWN_FLUSH`] has not ended yet.
    own_flush: bool,
    /// The driver turned its cache off while there was no table to flush.
    flushes_at_resume: bool,
    stopping: bool,
    /// The receiver of failed requests.
    failed: Box<dyn Fn(Failure)>,
}

impl<E: DeviceEngine, I: DeviceIo> Drop for Worker<E, I> {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    fn new(
        engine: E,
        mut io: I,
        mailbox: Arc<Mailbox<E::Table>>,
        WorkerOptions { serial, writable, block, polling }: WorkerOptions,
        failed: Box<dyn Fn(Failure)>,
    ) -> io::Result<Self> {
        io.watch(mailbox.event(), WAKE_KEY)?;
        Ok(Worker {
            io,
            engine,
            ring: None,
            flights: Flights::default(),
            memories: Memories::default(),
            writable,
            parser: Parser::new(Limits { capacity: Sector(0), read_only: true, block, serial }),
            table: None,
            last: Weak::new(),
            gate: Gate::Closed,
            direct: 0,
            unsubmitted: Queued::default(),
            polling,
            poll: AdaptivePoll::for_driver(),
            poll_io: AdaptivePoll::for_disk(),
            mailbox,
            mail: VecDeque::new(),
            quiesce: None,
            drains: None,
            commit_wanted: false,
            own_flush: false,
            flushes_at_resume: false,
            stopping: false,
            failed,
        })
    }

    fn run(mut self) {
        while !self.has_ended() {
            if !self.turn() {
                self.idle();
            }
        }
        self.engine.fail_held();
        self.io.unwatch(KICK_KEY);
        self.io.unwatch(WAKE_KEY);
    }

    /// One turn; false if there was nothing to do.
    fn turn(&mut self) -> bool {
        let mut busy = self.read_mail();
        self.unsubmitted.begin_turn();
        let took = self.take_batch();
        busy |= took;
        busy |= self.drive();
        if self.submits_now(took, busy) {
            self.submit_queued();
        }
        busy |= self.reap();
        self.adapt_to_driver();
        self.interrupt();
        busy |= self.progress_quiesce();
        busy
    }

    /// Whether the ring's requests are taken.
    fn is_serving(&self) -> bool {
        self.drains.is_none() && self.may_serve()
    }

    /// The same, or they will be as soon as the I/O in flight has ended.
    fn may_serve(&self) -> bool {
        self.gate == Gate::Open
            && self.quiesce.is_none()
            && !self.stopping
            && self.table.is_some()
            && self.ring.as_ref().is_some_and(|ring| ring.enabled && ring.has_memory)
    }

    fn has_work(&self) -> bool {
        self.is_serving() && self.ring.as_ref().is_some_and(|ring| ring.vring.has_work())
    }

    fn submit(&mut self, token: Token, op: Op, sector: Sector, len: u64) {
        let durable = !matches!(op, Op::Read | Op::Flush) && self.is_write_through();
        self.engine.submit(Request { token, op, sector, len, durable });
    }

    fn is_write_through(&self) -> bool {
        self.ring.as_ref().is_some_and(|ring| ring.write_through)
    }

    /// Continues with the next range of a request, or completes it.
    fn next_range(&mut self, head: u16) {
        match self.flights.next_range(head) {
            Some(range) => {
                let len = Sector(range.sectors.into()).bytes();
                self.submit(Token(head.into()), range.op, range.sector, len);
            }
            None => self.finish(head, BlkStatus::Ok),
        }
    }

    /// Advances the engine, and carries out its actions.
    fn drive(&mut self) -> bool {
        let mut busy = false;
        if self.gate == Gate::Open {
            self.engine.step();
        }
        while let Some(action) = self.engine.pop_action() {
            self.charge(&action);
            let (segs, meta) = (self.engine.segs(&action), self.engine.meta_of(&action));
            self.io.submit(&action, segs, meta, &self.flights);
            self.unsubmitted.add();
            busy = true;
        }
        while let Some((token, status)) = self.engine.pop_finished() {
            self.ended(token, status);
            busy = true;
        }
        busy
    }

    /// Takes completions.
    fn reap(&mut self) -> bool {
        let mut busy = false;
        while let Some(Completion { tag, result }) = self.io.completed() {
            busy = true;
            if tag.0 & OWN_TAG == 0 {
                self.engine.complete(Completion { tag, result });
                continue;
            }
            self.direct -= 1;
            let head = (tag.0 & 0xffff) as u16;
            match result {
                Ok(()) => self.finish(head, BlkStatus::Ok),
                Err(errno) if errno.is_no_space() => self.submit_again(head),
                Err(_) => self.fail(head, false),
            }
        }
        busy
    }

    /// A request that the engine took ended.
    fn ended(&mut self, token: Token, status: Status) {
        if token == OWN_FLUSH {
            return self.own_flush_ended(status);
        }
        let head = token.0 as u16;
        match status {
            Status::Ok => self.next_range(head),
            Status::Error => self.fail(head, false),
            Status::NoSpace => self.fail(head, true),
        }
    }

    /// Nothing to do: polls for a while if that pays, then sleeps.
    fn idle(&mut self) {
        if self.polling == Polling::Always && self.is_serving() {
            // The ring, the mailbox and the inbox are checked in every turn, whatever the signal.
            while self.io.fired().is_some() {}
            std::hint::spin_loop();
            return;
        }
        let polling = self.is_serving()
            && self.direct == 0
            && self.io.in_flight() == 0
            && self.engine.is_quiet();
        if polling && self.poll_ring() {
            self.poll.hit();
            return;
        }
        if self.await_refill() {
            return;
        }
        let polling_io = self.may_poll_io();
        if polling_io && self.poll_io() {
            self.poll_io.hit();
            return;
        }
        let armed = self.is_serving();
        let mut timeout = self.drains.map(|limit| limit.saturating_duration_since(Instant::now()));
        if armed && let Some(ring) = &mut self.ring {
            match self.io.is_watched(KICK_KEY) {
                true if ring.vring.arm() => return ring.vring.disarm(),
                true => {}
                false => timeout = Some(UNKICKED_POLL),
            }
        }
        let registered = self.gate == Gate::Open;
        if registered && !self.engine.may_sleep() {
            return self.disarm(armed);
        }
        // Its signal may have been taken together with another one, before this check.
        if self.mailbox.is_pending() {
            if registered {
                self.engine.woke();
            }
            return self.disarm(armed);
        }
        let before = Instant::now();
        self.unsubmitted.submitted();
        self.note(|io| io.wait(timeout));
        if registered {
            self.engine.woke();
        }
        while self.io.fired().is_some() {}
        // A ring without kicks is checked again if nothing came at all.
        let slept = before.elapsed();
        let slept = if timeout.is_some_and(|limit| slept >= limit) { Duration::MAX } else { slept };
        if polling {
            self.poll.slept(slept);
        }
        if polling_io {
            self.poll_io.slept(slept);
        }
        self.disarm(armed);
    }

    /// Tells the driver not to kick, if it was told to.
    fn disarm(&mut self, armed: bool) {
        if armed && let Some(ring) = &mut self.ring {
            ring.vring.disarm();
        }
    }

    /// Submits queued actions, and continues.
    fn submit_queued(&mut self) {
        self.unsubmitted.submitted();
        self.note(|io| io.enter());
    }

    /// Calls the executor in a way that can fail only if the system is broken.
    fn note(&mut self, act: impl FnOnce(&mut I) -> io::Result<()>) {
        if let Err(e) = act(&mut self.io) {
            tracing::error!("waiting for input and output failed: {e}");
            // Whatever is wrong, it must not also take a whole core.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Messages.
impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    /// Reads messages. Those that cannot be carried out now wait, in their order.
    fn read_mail(&mut self) -> bool {
        if self.mailbox.is_pending() {
            self.mailbox.take(&mut self.mail);
        }
        let mut busy = false;
        while !self.ends_inherited_first()
            && let Some(at) = self.mail.iter().position(|mail| self.may_follow(mail))
        {
            if let Some(mail) = self.mail.remove(at) {
                self.follow(mail);
                busy = true;
            }
        }
        // A worker that is quiescing or suspended begins nothing new; it does with the next table.
        if self.commit_wanted && self.gate == Gate::Open && self.quiesce.is_none() && !self.stopping
        {
            self.commit_wanted = false;
            self.engine.commit();
        }
        busy
    }

    /// While the worker is quiescing, it carries out only a message that undoes that, or one that
    /// can wait.
    fn may_follow(&self, mail: &Mail<E::Table>) -> bool {
        match &self.quiesce {
            None => true,
            Some(quiesce) => match mail {
                Mail::Resume { .. } => quiesce.is_suspend(),
                mail => matches!(mail, Mail::Commit),
            },
        }
    }

    fn follow(&mut self, mail: Mail<E::Table>) {
        match mail {
            Mail::Suspend { reply, .. } if self.gate == Gate::Closed => reply.send(Ok(())),
            Mail::Suspend { flush, reply } => self.begin_quiesce(Quiesce::suspend(flush, reply)),
            Mail::Resume { with, reply } => reply.send(self.resume(with)),
            Mail::Memory { memory, reply } => {
                self.memories.replace(memory, &self.flights);
                self.relocate_ring();
                reply.send(());
            }
            Mail::StartRing { start, reply } => reply.send(self.start_ring(*start)),
            Mail::StopRing { reply } if self.ring.is_none() => reply.send(None),
            Mail::StopRing { reply } => self.begin_quiesce(Quiesce::stop_ring(reply)),
            Mail::WriteThrough { on, reply } => self.set_write_through(on, reply),
            Mail::Commit => self.commit_wanted = true,
            Mail::Stop => {
                self.stopping = true;
                self.engine.set_stopping(true);
            }
            Mail::Enable { on, reply } => {
                self.change_ring(|ring| ring.enabled = on);
                reply.send(());
            }
            Mail::Call { call, reply } => {
                self.change_ring(|ring| ring.set_call(call));
                reply.send(());
            }
            Mail::Err { err, reply } => {
                self.change_err(err);
                reply.send(());
            }
            Mail::Kick { kick, reply } => {
                self.change_kick(&kick);
                reply.send(());
            }
        }
    }

    fn resume(&mut self, with: ResumeWith<E::Table>) -> Outcome {
        match with {
            ResumeWith::Same if self.gate == Gate::Open => self.undo_quiesce(),
            ResumeWith::Same => {
                let table = self.last.upgrade().ok_or(WorkerError::NoTable)?;
                self.take_up(Some(table));
            }
            ResumeWith::Table(_) if self.gate == Gate::Open => {
                return Err(WorkerError::NotSuspended);
            }
            ResumeWith::Table(table) => self.take_up(table),
        }
        Ok(())
    }

    /// Serves a table from now on.
    fn take_up(&mut self, table: Option<Arc<E::Table>>) {
        if let Some(table) = &table {
            self.parser.limits.capacity = table.size();
            self.parser.limits.read_only = table.read_only() || !self.writable;
            self.last = Arc::downgrade(table);
        }
        self.engine.bind(table.clone());
        self.io.adopt_files(self.engine.files());
        self.gate = Gate::Open;
        if table.is_some() && std::mem::take(&mut self.flushes_at_resume) {
            self.begin_quiesce(Quiesce::write_through(None, true));
        }
        self.table = table;
    }

    /// Releases everything of the table that it served.
    fn let_go(&mut self) {
        self.engine.bind(None);
        self.io.adopt_files(self.engine.files());
        self.table = None;
    }
}
