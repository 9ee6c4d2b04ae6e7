//! A split virtqueue, as the device sees it.
//!
//! Owns positions in the available and the used ring and the suppression of notifications in
//! both directions; the ring itself is `virtio-queue`'s, and no other module names it. Never
//! knows what a chain means. Whatever a guest writes into a ring ends in a chain that says it is
//! malformed or in a ring that is out of order, never in a panic or an endless loop.

use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryMmap, Permissions};

use crate::memory::GuestMemory;

/// The longest queue that is served; what QEMU and Linux allow.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver polls.
const NO_INTERRUPT: u16 = 1;

/// What a front-end said about a ring before it started it. Addresses are the front-end's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringSetup {
    /// Descriptors: a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptor: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// Where to go on in the available ring.
    pub base: u16,
    /// Whether VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// Why a ring cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VringError {
    /// Not a size a queue can have.
    #[error("a queue of {0} descriptors is not a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// Part of it is not in the guest's memory.
    #[error(
        "the {part} at front-end address {address:#x} is not in the guest's memory, or not aligned"
    )]
    Address {
        /// Which part.
        part: &'static str,
        /// What the front-end said.
        address: u64,
    },
}

/// One piece of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where it lies.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it; otherwise it reads it.
    pub writable: bool,
}

/// A chain of descriptors as the guest made it available.
#[derive(Debug)]
pub struct Chain<'m> {
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    unfinished: bool,
}

impl<'m> Chain<'m> {
    /// The chain's name in the used ring. Not necessarily below the queue's size.
    #[inline]
    pub fn head(&self) -> u16 {
        self.chain.head_index()
    }

    /// Whether the descriptors seen so far do not end the chain. After the last one this tells a
    /// chain that was cut short (a loop, an index out of range, a bad indirect table) from a
    /// whole one.
    #[inline]
    pub fn is_unfinished(&self) -> bool {
        self.unfinished
    }
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    #[inline]
    fn next(&mut self) -> Option<Descriptor> {
        let descriptor = self.chain.next()?;
        self.unfinished = descriptor.has_next();
        Some(Descriptor {
            address: descriptor.addr(),
            len: descriptor.len(),
            writable: descriptor.is_write_only(),
        })
    }
}

/// A ring that was started.
#[derive(Debug)]
pub struct Vring {
    queue: Queue,
    setup: VringSetup,
    /// The guest moved the available index further than a ring is long: nothing in it can be
    /// trusted until it is set up anew.
    broken: bool,
}

impl Vring {
    /// Starts at the setup's base; the used ring goes on where the guest's memory says.
    pub fn start(setup: VringSetup, memory: &GuestMemory) -> Result<Vring, VringError> {
        let size = setup.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(VringError::Size(size));
        }
        let mut queue = Queue::new(size).map_err(|_| VringError::Size(size))?;
        queue.set_event_idx(setup.event_idx);
        queue.set_next_avail(setup.base);
        let mut ring = Vring { queue, setup, broken: false };
        ring.relocate(memory)?;
        let used = ring
            .queue
            .used_idx(memory.map(), Ordering::Acquire)
            .map_err(|_| VringError::Address { part: "used ring", address: setup.used })?;
        ring.queue.set_next_used(used.0);
        Ok(ring)
    }

    /// Finds the ring again where the guest's memory was laid out anew.
    pub fn relocate(&mut self, memory: &GuestMemory) -> Result<(), VringError> {
        let size = u64::from(self.setup.size);
        let find = |part, address, len: u64, align: u64, access| {
            memory
                .guest_of_user(address, len)
                .filter(|found| found.0 % align == 0)
                .filter(|found| memory.map().check_range(*found, len as usize, access))
                .ok_or(VringError::Address { part, address })
        };
        let setup = self.setup;
        let table = find("descriptor table", setup.descriptor, 16 * size, 16, Permissions::Read)?;
        let available =
            find("available ring", setup.available, 6 + 2 * size, 2, Permissions::Read)?;
        let used = find("used ring", setup.used, 6 + 8 * size, 4, Permissions::ReadWrite)?;
        let halves =
            |address: GuestAddress| (Some(address.0 as u32), Some((address.0 >> 32) as u32));
        let (low, high) = halves(table);
        self.queue.set_desc_table_address(low, high);
        let (low, high) = halves(available);
        self.queue.set_avail_ring_address(low, high);
        let (low, high) = halves(used);
        self.queue.set_used_ring_address(low, high);
        self.queue.set_ready(true);
        Ok(())
    }

    /// The next chain, if there is one.
    #[inline]
    pub fn take<'m>(&mut self, memory: &'m GuestMemory) -> Option<Chain<'m>> {
        if self.broken {
            return None;
        }
        match self.queue.iter(memory.map()) {
            Ok(mut chains) => chains.next().map(|chain| Chain { chain, unfinished: true }),
            Err(_) => {
                self.broken = true;
                None
            }
        }
    }

    /// Whether chains are waiting.
    #[inline]
    pub fn has_work(&self, memory: &GuestMemory) -> bool {
        !self.broken
            && self
                .queue
                .avail_idx(memory.map(), Ordering::Acquire)
                .is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Gives a chain back; `len` bytes of its writable part were written. A head that is no
    /// descriptor of this queue has no place in the used ring and is dropped.
    #[inline]
    pub fn complete(&mut self, memory: &GuestMemory, head: u16, len: u32) {
        if head < self.setup.size && self.queue.add_used(memory.map(), head, len).is_err() {
            self.broken = true;
        }
    }

    /// Whether the driver wants to hear of what was completed since this was last asked.
    #[inline]
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> bool {
        if !self.setup.event_idx {
            let flags =
                memory.map().load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
            if flags.is_ok_and(|flags| u16::from_le(flags) & NO_INTERRUPT != 0) {
                return false;
            }
        }
        self.queue.needs_notification(memory.map()).unwrap_or(true)
    }

    /// Asks the driver to kick for the next chain. True where one came meanwhile: then it will
    /// not kick, and the ring must be looked at again.
    pub fn arm(&mut self, memory: &GuestMemory) -> bool {
        !self.broken && self.queue.enable_notification(memory.map()).unwrap_or(false)
    }

    /// Kicks are not needed now.
    pub fn disarm(&mut self, memory: &GuestMemory) {
        // Advisory: a guest that took the ring's memory away is noticed elsewhere.
        let _ = self.queue.disable_notification(memory.map());
    }

    /// Where a later start has to go on in the available ring.
    pub fn base(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Whether the guest broke the ring.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.setup.size
    }
}

#[cfg(test)]
mod tests;
