//! The memory in which rings record chains in flight, so that the records outlive this process
//! (vhost-user, "Inflight I/O tracking").
//!
//! Owns the file that the front-end is given to keep, and the mapping of the file that it gives
//! back: one region per ring, one after another. Never knows the content of a region: see
//! [`Region`]. Keeps: a mapped file is as long as all its regions, whatever the front-end says.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use super::message::InflightLayout;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::vring::{MAX_QUEUE_SIZE, Region};

/// Why the memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflightError {
    #[error("an inflight area for {asked} queues was asked for, and there are {there}")]
    Queues { asked: u16, there: u16 },
    #[error(
        "an inflight area for queues of {0} descriptors was asked for, which is not a power of \
         two up to {MAX_QUEUE_SIZE}"
    )]
    Descriptors(u16),
    #[error("memory for requests in flight could not be made: {0}")]
    Create(#[from] Errno),
    #[error("an inflight area of {given} bytes was given, {needed} are needed")]
    TooShort { given: u64, needed: u64 },
    #[error("the inflight area cannot be used: {0}")]
    Map(#[from] MemoryError),
    #[error("the inflight area has no room for vring {0}")]
    NoRegion(u32),
}

/// Bytes for the regions of `layout`, for a device with `there` queues.
fn needed(layout: InflightLayout, there: u16) -> Result<u64, InflightError> {
    let InflightLayout { queues, descriptors, .. } = layout;
    if queues == 0 || queues > there {
        return Err(InflightError::Queues { asked: queues, there });
    }
    if !descriptors.is_power_of_two() || descriptors > MAX_QUEUE_SIZE {
        return Err(InflightError::Descriptors(descriptors));
    }
    Ok((Region::bytes(descriptors) * usize::from(queues)) as u64)
}

/// Makes new memory for the `asked` queues, and returns its place in its file.
pub(super) fn create(
    asked: InflightLayout,
    there: u16,
) -> Result<(InflightLayout, OwnedFd), InflightError> {
    let size = needed(asked, there)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("snapblk-inflight", flags)?;
    // All of it is allocated from the start: a store to it cannot fail for lack of memory.
    fallocate(&file, FallocateFlags::empty(), 0, size)?;
    // Neither side can truncate the memory that both have mapped.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok((InflightLayout { size, offset: 0, ..asked }, file))
}

/// Such memory, mapped.
pub(super) struct Inflight {
    shared: GuestMemory,
    descriptors: u16,
}

impl Inflight {
    /// Maps a front-end's memory, for a device with `there` queues.
    pub(super) fn map(
        layout: InflightLayout,
        file: OwnedFd,
        there: u16,
    ) -> Result<Inflight, InflightError> {
        let needed = needed(layout, there)?;
        if layout.size < needed {
            return Err(InflightError::TooShort { given: layout.size, needed });
        }
        // Mapped like a guest's memory that begins at 0; this also checks the file's length.
        let all = memory::Region { guest: 0, size: needed, user: 0, file_offset: layout.offset };
        let shared = GuestMemory::default().with_region(all, file)?;
        Ok(Inflight { shared, descriptors: layout.descriptors })
    }

    /// The region of ring `index`.
    pub(super) fn region(&self, index: u32) -> Result<Region, InflightError> {
        u16::try_from(index)
            .ok()
            .and_then(|index| Region::of(&self.shared, index, self.descriptors))
            .ok_or(InflightError::NoRegion(index))
    }
}
