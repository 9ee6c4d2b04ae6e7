//! The ring of a worker: its start, and what changes while it runs.
//!
//! Owns what a worker knows of its ring beside the ring itself. Never takes a chain.

use std::os::fd::{AsFd, OwnedFd};

use super::driver::DriverWatch;
use super::notifier::Notifier;
use super::{KICK_KEY, Kick, Polling, RingStart, Worker};
use crate::binding::{DeviceEngine, DeviceIo};
use crate::vring::{Vring, VringError};

/// A ring that was started.
pub(super) struct Ring {
    pub(super) vring: Vring,
    pub(super) call: Option<Notifier>,
    pub(super) err: Option<Notifier>,
    pub(super) enabled: bool,
    /// It is in the front-end's present memory.
    pub(super) has_memory: bool,
    pub(super) write_through: bool,
    /// Chains were completed for which the driver was not interrupted.
    pub(super) interrupt_due: bool,
    /// How many requests the driver keeps in flight, or recently kept.
    pub(super) depth: u16,
    /// Bytes of actions since the last interrupt.
    pub(super) untold_bytes: u64,
    pub(super) told_broken: bool,
    pub(super) driver: DriverWatch,
}

impl Ring {
    pub(super) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call.map(Notifier::new);
        // The driver may have been interrupted through the eventfd that is gone now.
        if let Some(call) = &self.call {
            call.notify();
        }
    }
}

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    pub(super) fn change_ring(&mut self, change: impl FnOnce(&mut Ring)) {
        if let Some(ring) = &mut self.ring {
            change(ring);
        }
    }

    pub(super) fn start_ring(&mut self, start: RingStart) -> Result<(), VringError> {
        debug_assert!(self.flights.is_empty(), "a ring is started over another one's requests");
        let mut vring = Vring::start(start.setup, self.memories.current(), start.inflight)?;
        if self.polling == Polling::Always {
            // A kick would cost the driver a needless system call: if this end sleeps all the
            // same, its ring is not served, and a message ends that.
            vring.disarm();
        }
        self.flights.resize(vring.size());
        self.watch_kick(&start.kick);
        self.mailbox.set_broken(false);
        // This includes the time until the driver is known.
        self.io.post_at_once(false);
        // An earlier process may have been killed between a completion and its interrupt.
        let call = start.call.map(Notifier::new);
        if let Some(call) = call.as_ref().filter(|_| vring.is_tracked()) {
            call.notify();
        }
        self.ring = Some(Ring {
            vring,
            call,
            err: start.err.map(Notifier::new),
            enabled: start.enabled,
            has_memory: true,
            write_through: start.write_through,
            interrupt_due: false,
            depth: 0,
            untold_bytes: 0,
            told_broken: false,
            driver: DriverWatch::default(),
        });
        Ok(())
    }

    pub(super) fn change_kick(&mut self, kick: &Kick) {
        if self.ring.is_some() {
            self.watch_kick(kick);
        }
    }

    /// Watches a kick. A ring without a watch is polled.
    fn watch_kick(&mut self, kick: &Kick) {
        self.io.unwatch(KICK_KEY);
        if let Kick::Event(fd) = kick
            && let Err(error) = self.io.watch(fd.as_fd(), KICK_KEY)
        {
            tracing::warn!(
                "the kicks of a virtqueue cannot be waited for, and it is polled instead, which \
                 takes more of a core: {error}"
            );
        }
    }

    /// Continues in a new memory. Front-ends remove regions before they add others, even while a
    /// ring in one of them runs: the ring waits until it has memory again.
    pub(super) fn relocate_ring(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let had = std::mem::take(&mut ring.has_memory);
        match ring.vring.relocate(self.memories.current()) {
            Ok(()) => ring.has_memory = true,
            Err(e) if had => tracing::warn!("a virtqueue lost its memory and is not served: {e}"),
            Err(_) => {}
        }
    }
}
