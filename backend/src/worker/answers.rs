//! What a worker reports to its driver: completions, and that its ring is out of order.
//!
//! Owns the last step of a request. Never knows how it was carried out. Keeps I10: each chain is
//! completed once.

use std::os::fd::OwnedFd;

use snapblk_store::io::{Action, IoOp};

use super::{Notifier, Worker};
use crate::binding::{DeviceEngine, DeviceIo, Failure};
use crate::request::BlkStatus;

/// The number of completions within a batch after which a sleeping driver is interrupted, if I/O
/// ends in memory; or half of the requests that it keeps in flight. A wake-up costs this end as
/// much as two requests, and takes as long as ten or more.
const ENOUGH: u16 = 16;
/// Bytes read and written for requests, likewise.
pub(super) const ENOUGH_BYTES: u64 = 64 << 10;

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    /// Completes a request that failed, possibly for lack of room, and reports this to the
    /// device's owner.
    #[cold]
    pub(super) fn fail(&mut self, head: u16, no_space: bool) {
        let failure = match self.answer(head, BlkStatus::IoError) {
            true => Failure::Read,
            false if no_space => Failure::NoSpace,
            false => Failure::Write,
        };
        (self.failed)(failure);
    }

    /// Completes a request.
    #[inline]
    pub(super) fn finish(&mut self, head: u16, status: BlkStatus) {
        self.answer(head, status);
    }

    /// Completes a request; true if it was one that returns data to the guest.
    #[inline]
    fn answer(&mut self, head: u16, status: BlkStatus) -> bool {
        let (slot, generation) = self.flights.close(head);
        let memory = self.memories.of(generation);
        let told = slot.status.is_some_and(|at| memory.write(at, &[status as u8]).is_ok());
        let len = match status {
            _ if !told => 0,
            BlkStatus::Ok => slot.writable_len,
            // After a failed read no data is certain, and the status byte is not at the start.
            _ if slot.writable_len > 1 => 0,
            _ => slot.writable_len,
        };
        // A write returns only the status byte.
        let read = slot.writable_len > 1;
        self.memories.left(generation);
        if let Some(ring) = &mut self.ring {
            ring.vring.complete(head, len);
            ring.driver.ended();
            ring.interrupt_due = true;
        }
        read
    }

    /// Leaves a request in flight for the next process that serves this ring.
    pub(super) fn leave(&mut self, head: u16) {
        let (_, generation) = self.flights.close(head);
        self.memories.left(generation);
    }

    /// Returns a chain that is not a request.
    pub(super) fn give_back(&mut self, head: u16) {
        if let Some(ring) = &mut self.ring {
            ring.vring.give_back(head, 0);
            ring.interrupt_due = true;
        }
    }

    /// Interrupts the driver for completions, if it wants to be.
    #[inline]
    pub(super) fn interrupt(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        if !std::mem::take(&mut ring.interrupt_due) {
            return;
        }
        ring.untold_bytes = 0;
        if ring.vring.publish() {
            ring.driver.waits();
            if let Some(call) = &ring.call {
                call.notify();
            }
        }
    }

    /// A batch begins, of which so many were taken: records how many requests the driver keeps in
    /// flight; there may be fewer on the ring now.
    #[inline]
    pub(super) fn note_depth(&mut self, taken: usize) {
        let Some(ring) = &mut self.ring else { return };
        let found = ring.vring.ahead().saturating_add(taken as u16);
        ring.depth = found.max(ring.depth - ring.depth.div_ceil(8));
    }

    /// Within a batch: publishes completions for a driver that polls. A sleeping driver is
    /// interrupted when there are enough for both ends to be at work.
    #[inline]
    pub(super) fn interrupt_between(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let most = (ring.depth / 2).min(ENOUGH);
        let enough = ring.vring.untold() >= most || ring.untold_bytes >= ENOUGH_BYTES;
        if enough || !self.io.is_in_memory() {
            self.interrupt();
        } else {
            ring.vring.show();
        }
    }

    /// An action is about to be carried out: its bytes count as time in which the driver waits.
    /// The driver is not made to wait for a sync, nor for an action without a length.
    #[inline]
    pub(super) fn charge(&mut self, action: &Action) {
        let Some(ring) = &mut self.ring else { return };
        ring.untold_bytes += action.len;
        if !matches!(action.op, IoOp::Read | IoOp::Write) && self.io.is_synchronous() {
            self.interrupt();
        }
    }

    pub(super) fn report_broken_ring(&mut self) {
        if let Some(ring) = &mut self.ring
            && ring.vring.is_broken()
            && !ring.told_broken
        {
            ring.told_broken = true;
            self.mailbox.set_broken(true);
            tracing::warn!("a guest broke its virtqueue; it is not served until it is set up anew");
            if let Some(err) = &ring.err {
                err.notify();
            }
        }
    }

    /// From now on another descriptor is signalled when the ring is out of order, which it may be
    /// already.
    pub(super) fn change_err(&mut self, err: Option<OwnedFd>) {
        let Some(ring) = &mut self.ring else { return };
        ring.err = err.map(Notifier::new);
        if let Some(err) = ring.err.as_ref().filter(|_| ring.told_broken) {
            err.notify();
        }
    }
}
