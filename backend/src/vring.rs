//! A split virtqueue, as the device sees it.
//!
//! Owns positions in the available and the used ring and the suppression of notifications in both
//! directions (virtio 1.2, 2.7). Never knows what a chain means. Whatever a guest writes into a
//! ring results in a malformed chain or in a ring that is out of order, never in a panic or an
//! endless loop.
//!
//! Reads the available index only when it knows of no more chains, and publishes completions only
//! when asked: these words are in the driver's cache.
//!
//! With inflight memory, a ring whose process was killed continues with the chains that the
//! process took and did not complete: see [`Region`].

mod chain;
mod inflight;

use std::sync::atomic::{Ordering, fence};

use crate::memory::{GuestMemory, Window};

use inflight::Inflight;

pub use chain::{Chain, Descriptor};
pub use inflight::Region;

/// The longest queue that is served, as in QEMU and Linux.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver polls.
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device needs no kicks.
const NO_NOTIFY: u16 = 1;
/// A distance at which no driver arrives before this end sleeps again or has served thousands of
/// chains.
const FAR: u16 = 1 << 15;

/// The offset of the flags in the available and in the used ring.
const FLAGS: usize = 0;
/// The offset of the index in both.
const INDEX: usize = 2;
/// The offset of the entries in both.
const ENTRIES: usize = 4;

/// The front-end's description of a ring before its start. Addresses are the front-end's own.
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
    /// The position in the available ring to continue at.
    pub base: u16,
    /// Whether VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// Why a ring cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VringError {
    /// Not a valid size of a queue.
    #[error("a queue of {0} descriptors is not a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// Part of it is not in the guest's memory.
    #[error(
        "the {part} at front-end address {address:#x} is not in the guest's memory, or not aligned"
    )]
    Address {
        /// Which part.
        part: &'static str,
        /// The front-end's address for it.
        address: u64,
    },
    /// The front-end's inflight memory is for shorter queues.
    #[error(
        "the queue has {size} descriptors, and the inflight region was asked for with {descriptors}"
    )]
    Tracked {
        /// Descriptors of the queue.
        size: u16,
        /// Descriptors that the region has room for.
        descriptors: u16,
    },
}

/// A ring that was started.
#[derive(Debug)]
pub struct Vring {
    setup: VringSetup,
    table: Window,
    available: Window,
    used: Window,
    /// The position of the next chain in the available ring.
    next: u16,
    /// The available index when last read.
    seen: u16,
    /// The used index, including completions that are not published yet.
    completed: u16,
    /// The used index as the guest sees it.
    published: u16,
    /// The used index when the driver's request for an interrupt was last read.
    told: u16,
    /// The guest moved the available index further than a ring is long: nothing in the ring can be
    /// trusted until it is set up again.
    broken: bool,
    /// Where a later process finds the chains that this one has in flight.
    inflight: Option<Inflight>,
}

impl Vring {
    /// Starts at the setup's base, or with the chains that `region` records in flight; the used
    /// ring continues at the index in the guest's memory.
    pub fn start(
        setup: VringSetup,
        memory: &GuestMemory,
        region: Option<Region>,
    ) -> Result<Vring, VringError> {
        let size = setup.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(VringError::Size(size));
        }
        let (table, available, used) = parts(&setup, memory)?;
        let completed = used.load_u16(INDEX, Ordering::Acquire);
        let (inflight, base) = match region {
            None => (None, setup.base),
            Some(region) => {
                let indices = (available.load_u16(INDEX, Ordering::Acquire), completed);
                let (inflight, base) = Inflight::start(region, size, indices, setup.base)?;
                (Some(inflight), base)
            }
        };
        Ok(Vring {
            setup,
            table,
            available,
            used,
            next: base,
            seen: base,
            completed,
            published: completed,
            told: completed,
            broken: false,
            inflight,
        })
    }

    /// Finds the ring again after the guest's memory was mapped differently.
    pub fn relocate(&mut self, memory: &GuestMemory) -> Result<(), VringError> {
        (self.table, self.available, self.used) = parts(&self.setup, memory)?;
        Ok(())
    }

    /// The next chain, if there is one; its descriptors are followed as it is read. Chains left by
    /// an earlier process come first.
    #[inline]
    pub fn take<'r>(&'r mut self, memory: &'r GuestMemory) -> Option<Chain<'r>> {
        if let Some(head) = self.inflight.as_mut().and_then(Inflight::next_inherited) {
            return Some(Chain::new(memory, &self.table, self.setup.size, head));
        }
        if self.seen == self.next && !self.look() {
            return None;
        }
        let place = ENTRIES + 2 * usize::from(self.next & (self.setup.size - 1));
        let head = self.available.load_u16(place, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.took(head);
        }
        Some(Chain::new(memory, &self.table, self.setup.size, head))
    }

    /// Reads the driver's position; false if there is no more than was known.
    fn look(&mut self) -> bool {
        if self.broken {
            return false;
        }
        // Acquire: sees the entries and descriptors that were written before the index.
        let index = self.available.load_u16(INDEX, Ordering::Acquire);
        if index.wrapping_sub(self.next) > self.setup.size {
            self.broken = true;
            return false;
        }
        self.seen = index;
        self.seen != self.next
    }

    /// Whether chains are waiting.
    #[inline]
    pub fn has_work(&self) -> bool {
        !self.broken
            && (self.seen != self.next
                || self.inflight.as_ref().is_some_and(|it| it.inherited() > 0)
                || self.available.load_u16(INDEX, Ordering::Relaxed) != self.next)
    }

    /// Chains that were completed since [`Vring::publish`].
    #[inline]
    pub fn untold(&self) -> u16 {
        self.completed.wrapping_sub(self.told)
    }

    /// Chains that are known to wait.
    #[inline]
    pub fn ahead(&self) -> u16 {
        self.seen.wrapping_sub(self.next)
    }

    /// Completes a chain; `len` bytes of its writable part were written. The driver sees it once
    /// it is published. A head that is not a descriptor of this queue has no place in the used
    /// ring and is dropped.
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        if head < self.setup.size
            && let Some(inflight) = &mut self.inflight
        {
            inflight.ended(head);
        }
        self.give_back(head, len);
    }

    /// The same for a chain that is not a request: its head belongs to another chain, which stays
    /// in flight.
    #[inline]
    pub fn give_back(&mut self, head: u16, len: u32) {
        if head < self.setup.size {
            let place = ENTRIES + 8 * usize::from(self.completed & (self.setup.size - 1));
            self.used.store_u32(place, head.into());
            self.used.store_u32(place + 4, len);
            self.completed = self.completed.wrapping_add(1);
        }
    }

    /// Publishes completions for the driver, if it polls.
    #[inline]
    pub fn show(&mut self) {
        if self.published != self.completed {
            // Release: the entries, status bytes and data before the index.
            self.used.store_u16(INDEX, self.completed, Ordering::Release);
            self.published = self.completed;
            if let Some(inflight) = &mut self.inflight {
                inflight.shown(self.completed);
            }
        }
    }

    /// Publishes completions. True if the driver wants an interrupt.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.show();
        let since = self.completed.wrapping_sub(std::mem::replace(&mut self.told, self.completed));
        // Publish first, then read whether the driver waits; the driver does these two in the
        // other order (2.7.7.2).
        fence(Ordering::SeqCst);
        if !self.setup.event_idx {
            return self.available.load_u16(FLAGS, Ordering::Relaxed) & NO_INTERRUPT == 0;
        }
        let event = ENTRIES + 2 * usize::from(self.setup.size);
        let event = self.available.load_u16(event, Ordering::Relaxed);
        self.completed.wrapping_sub(event).wrapping_sub(1) < since
    }

    /// Asks the driver to kick for the next chain. True if one came meanwhile: then the driver
    /// will not kick, and the ring must be checked again.
    pub fn arm(&mut self) -> bool {
        if self.setup.event_idx {
            let event = ENTRIES + 8 * usize::from(self.setup.size);
            self.used.store_u16(event, self.next, Ordering::Relaxed);
        } else {
            self.used.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // Ask first, then look; the driver does these two in the other order.
        fence(Ordering::SeqCst);
        self.has_work()
    }

    /// Kicks are not needed now: a kick would cost the driver a system call, and this end another
    /// to wait for the next. With EVENT_IDX the requested kick is postponed.
    pub fn disarm(&mut self) {
        if self.setup.event_idx {
            let event = ENTRIES + 8 * usize::from(self.setup.size);
            self.used.store_u16(event, self.next.wrapping_add(FAR), Ordering::Relaxed);
        } else {
            self.used.store_u16(FLAGS, NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// The position in the available ring for a later start. Chains that an earlier process left
    /// and that were not taken do not count: without the inflight memory they must be found in the
    /// ring.
    pub fn base(&self) -> u16 {
        self.next.wrapping_sub(self.inherited())
    }

    /// Chains that an earlier process left and that were not taken yet.
    pub fn inherited(&self) -> u16 {
        self.inflight.as_ref().map_or(0, Inflight::inherited)
    }

    /// Whether a later start, even of another process, finds the chains that are in flight now.
    pub fn is_tracked(&self) -> bool {
        self.inflight.is_some()
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

/// The places of the descriptor table, the available and the used ring (virtio 1.2, 2.7: their
/// sizes and alignments).
fn parts(setup: &VringSetup, memory: &GuestMemory) -> Result<(Window, Window, Window), VringError> {
    let size = usize::from(setup.size);
    let find = |part, address, len, align| {
        memory.window(address, len, align).ok_or(VringError::Address { part, address })
    };
    Ok((
        find("descriptor table", setup.descriptor, 16 * size, 16)?,
        find("available ring", setup.available, 6 + 2 * size, 2)?,
        find("used ring", setup.used, 6 + 8 * size, 4)?,
    ))
}

#[cfg(test)]
mod tests;
