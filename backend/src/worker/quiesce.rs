//! Quiescing a worker: for a suspend, to stop its ring, or to become write-through.
//!
//! Owns the stages: the worker takes no more requests; requests in flight end; owed chunks are
//! made durable; the requester is told. Never knows the reason. Only one runs at a time; later
//! messages wait in the mailbox.

use snapblk_store::request::{Op, Request, Status};
use snapblk_store::units::Sector;

use super::mailbox::{Mail, Outcome, Reply, WorkerError};
use super::{Gate, KICK_KEY, OWN_FLUSH, Worker};
use crate::binding::{DeviceEngine, DeviceIo};

/// The purpose of quiescing.
#[derive(Debug)]
enum Purpose {
    Suspend {
        flush: bool,
        reply: Reply<Outcome>,
    },
    StopRing {
        reply: Reply<Option<u16>>,
    },
    WriteThrough {
        /// None if it was postponed: then nobody waits for it.
        reply: Option<Reply<Outcome>>,
        /// Whether the ring was write-through before.
        was: bool,
    },
}

/// The present stage.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Requests are in flight.
    Draining,
    /// The worker's own flush is in flight.
    Flushing,
    /// The flush ended.
    Flushed(Status),
}

/// A worker that is quiescing.
#[derive(Debug)]
pub(super) struct Quiesce {
    purpose: Purpose,
    stage: Stage,
}

impl Quiesce {
    pub(super) fn suspend(flush: bool, reply: Reply<Outcome>) -> Quiesce {
        Quiesce { purpose: Purpose::Suspend { flush, reply }, stage: Stage::Draining }
    }

    pub(super) fn stop_ring(reply: Reply<Option<u16>>) -> Quiesce {
        Quiesce { purpose: Purpose::StopRing { reply }, stage: Stage::Draining }
    }

    pub(super) fn write_through(reply: Option<Reply<Outcome>>, was: bool) -> Quiesce {
        Quiesce { purpose: Purpose::WriteThrough { reply, was }, stage: Stage::Draining }
    }

    pub(super) fn is_suspend(&self) -> bool {
        matches!(self.purpose, Purpose::Suspend { .. })
    }
}

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    /// Begins to quiesce.
    pub(super) fn begin_quiesce(&mut self, quiesce: Quiesce) {
        self.engine.set_stopping(true);
        self.quiesce = Some(quiesce);
    }

    /// Cancels the suspend that is under way, if any.
    pub(super) fn undo_quiesce(&mut self) {
        if let Some(quiesce) = self.quiesce.take() {
            self.engine.set_stopping(false);
            if let Purpose::Suspend { reply, .. } = quiesce.purpose {
                reply.send(Err(WorkerError::TimedOut));
            }
        }
    }

    /// The next message stops the ring, and requests of an earlier process were not taken yet,
    /// which a served ring does not leave behind. Later messages wait with it.
    pub(super) fn ends_inherited_first(&self) -> bool {
        matches!(self.mail.front(), Some(Mail::StopRing { .. }))
            && self.may_serve()
            && self.ring.as_ref().is_some_and(|ring| ring.vring.inherited() > 0)
    }

    /// Nothing is in flight. Requests may be held.
    pub(super) fn is_drained(&self) -> bool {
        self.direct == 0 && self.engine.is_quiet()
    }

    /// It was told to end, and has nothing left to wait for.
    pub(super) fn has_ended(&self) -> bool {
        self.stopping && self.is_drained()
    }

    /// The reply waits neither for requests that are held nor for ranges that come after the
    /// present one: these are later writes, and durable when they end.
    pub(super) fn set_write_through(&mut self, on: bool, reply: Reply<Outcome>) {
        let was = self.is_write_through();
        self.change_ring(|ring| ring.write_through = on);
        if on {
            self.engine.make_durable();
        }
        if on && self.can_flush() && self.ring.is_some() {
            self.begin_quiesce(Quiesce::write_through(Some(reply), was));
            return;
        }
        // A suspend has flushed, unless it was told not to: then the next table does, before it
        // serves. If a front-end waited for that, its whole guest would be stopped.
        self.flushes_at_resume = on && self.ring.is_some();
        reply.send(Ok(()));
    }

    /// Whether there is a table to flush: a suspended device has none.
    fn can_flush(&self) -> bool {
        self.gate == Gate::Open && self.table.is_some()
    }

    /// Continues quiescing; true if that changed anything.
    pub(super) fn progress_quiesce(&mut self) -> bool {
        let Some(Quiesce { purpose, stage }) = &self.quiesce else { return false };
        let flush = !matches!(purpose, Purpose::Suspend { flush: false, .. });
        match *stage {
            Stage::Flushing => false,
            _ if !self.is_drained() => false,
            Stage::Draining if self.must_empty() => self.drop_held(),
            // The flush of a suspend that was undone.
            Stage::Draining if self.own_flush => false,
            Stage::Draining => {
                if flush && self.can_flush() {
                    self.begin_own_flush();
                } else {
                    self.come_to_rest(Status::Ok);
                }
                true
            }
            Stage::Flushed(status) => {
                self.come_to_rest(status);
                true
            }
        }
    }

    /// A ring that stops cannot leave requests behind.
    fn must_empty(&self) -> bool {
        let stops =
            matches!(&self.quiesce, Some(q) if matches!(q.purpose, Purpose::StopRing { .. }));
        stops && !self.flights.is_empty()
    }

    /// Gives up the requests that would wait for longer than a front-end can; true if there were
    /// any. They fail, unless the next start of the ring finds them again.
    fn drop_held(&mut self) -> bool {
        let tracked = self.ring.as_ref().is_some_and(|ring| ring.vring.is_tracked());
        match self.gate {
            Gate::Closed => self.engine.fail_held(),
            Gate::Open => self.engine.fail_held_for_room(),
        }
        let mut any = false;
        while let Some((token, status)) = self.engine.pop_finished() {
            if tracked && status != Status::Ok {
                self.leave(token.0 as u16);
            } else {
                self.ended(token, status);
            }
            any = true;
        }
        any
    }

    fn begin_own_flush(&mut self) {
        if let Some(quiesce) = &mut self.quiesce {
            quiesce.stage = Stage::Flushing;
        }
        self.own_flush = true;
        self.engine.submit(Request {
            token: OWN_FLUSH,
            op: Op::Flush,
            sector: Sector(0),
            len: 0,
            durable: false,
        });
    }

    pub(super) fn own_flush_ended(&mut self, status: Status) {
        self.own_flush = false;
        // A suspend that was undone meanwhile no longer cares.
        if let Some(quiesce) = &mut self.quiesce
            && matches!(quiesce.stage, Stage::Flushing)
        {
            quiesce.stage = Stage::Flushed(status);
        }
    }

    /// It is quiesced.
    fn come_to_rest(&mut self, flushed: Status) {
        let Some(quiesce) = self.quiesce.take() else { return };
        let outcome = if flushed == Status::Ok { Ok(()) } else { Err(WorkerError::FlushFailed) };
        match quiesce.purpose {
            Purpose::Suspend { reply, .. } => {
                if outcome.is_ok() {
                    self.gate = Gate::Closed;
                    self.let_go();
                }
                reply.send(outcome);
            }
            Purpose::StopRing { reply } => {
                if outcome.is_err() {
                    tracing::error!(
                        "a virtqueue stopped and its last writes could not be made durable"
                    );
                }
                self.io.unwatch(KICK_KEY);
                reply.send(self.ring.take().map(|ring| ring.vring.base()));
            }
            Purpose::WriteThrough { reply: Some(reply), was } => {
                if outcome.is_err() {
                    self.change_ring(|ring| ring.write_through = was);
                }
                reply.send(outcome);
            }
            Purpose::WriteThrough { reply: None, .. } => {
                if outcome.is_err() {
                    tracing::error!(
                        "what was written before the cache was turned off cannot be made durable"
                    );
                }
            }
        }
        // Not before a table was released: until then it could begin something.
        self.engine.set_stopping(false);
    }
}
