//! The memory in which rings record chains in flight, so that the records outlive this process
//! (vhost-user, "Inflight I/O tracking").
//!
//! Owns the file that the front-end is given to keep, and the mapping of the file that it gives
//! back: one region per ring, one after another. Never knows the content of a region: see
//! [`Region`]. Keeps: a mapped file is as long as all its regions, whatever the front-end says; of the
//! files that front-ends were given, at most two take memory of this process, unless a front-end gives
//! an older one back than the last.

use std::os::fd::OwnedFd;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, memfd_create,
};
use rustix::io::Errno;
use rustix::param::page_size;

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

/// A file that a front-end was given.
struct Area {
    layout: InflightLayout,
    file: OwnedFd,
}

impl Area {
    /// New memory for the `asked` queues.
    fn create(asked: InflightLayout, there: u16) -> Result<Area, InflightError> {
        let size = needed(asked, there)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("snapblk-inflight", flags)?;
        let area = Area { layout: InflightLayout { size, offset: 0, ..asked }, file };
        area.allocate()?;
        // Neither side can truncate the memory that both have mapped.
        fcntl_add_seals(&area.file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(area)
    }

    /// All of it is allocated from the start: a store to it cannot fail for lack of memory.
    fn allocate(&self) -> Result<(), Errno> {
        fallocate(&self.file, FallocateFlags::empty(), 0, self.layout.size)
    }

    /// Gives its memory back: it holds zeroes, whoever has it. What anybody stores there from now on
    /// is counted as theirs.
    fn empty(&self) -> Result<(), Errno> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Of a page that it covers in part, only the content would go.
        let pages = self.layout.size.next_multiple_of(page_size() as u64);
        fallocate(&self.file, mode, 0, pages)
    }

    fn is(&self, file: &OwnedFd) -> bool {
        let (ours, theirs) = (fstat(&self.file), fstat(file));
        matches!((ours, theirs), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }
}

/// The files that front-ends of an export were given and that take memory of this process. A
/// front-end may ask for them without end, and keep all of them.
#[derive(Default)]
pub(super) struct Areas {
    /// The one that the front-end was given and has not given back.
    given: Option<Area>,
    /// The one that was given back last. The next front-end may be the same one, and have it still.
    back: Option<Area>,
}

impl Areas {
    /// Memory of zeroes for the `asked` queues, and its place in its file.
    pub(super) fn give(
        &mut self,
        asked: InflightLayout,
        there: u16,
    ) -> Result<(InflightLayout, OwnedFd), InflightError> {
        let alike = |area: &Area| {
            (area.layout.queues, area.layout.descriptors) == (asked.queues, asked.descriptors)
        };
        self.take_back()?;
        let area = match self.given.take().filter(alike) {
            Some(area) => {
                area.allocate()?;
                area
            }
            None => Area::create(asked, there)?,
        };
        let file = rustix::io::fcntl_dupfd_cloexec(&area.file, 0)?;
        let layout = area.layout;
        self.given = Some(area);
        Ok((layout, file))
    }

    /// Gives back the memory of a file that no ring has used.
    fn take_back(&self) -> Result<(), Errno> {
        self.given.as_ref().map_or(Ok(()), Area::empty)
    }

    /// The front-end is gone, and its rings have stopped. The next one may be another, and gets no
    /// file that this one has.
    pub(super) fn end_connection(&mut self) {
        if let Err(error) = self.take_back() {
            tracing::debug!("an inflight area keeps its memory: {error}");
        }
        self.given = None;
    }

    /// Rings will use this file, and no longer the one before it.
    pub(super) fn came_back(&mut self, file: &OwnedFd) {
        if self.back.as_ref().is_some_and(|area| area.is(file)) {
            return;
        }
        if let Some(Err(error)) = self.back.take().map(|area| area.empty()) {
            tracing::debug!("an inflight area keeps its memory: {error}");
        }
        self.back = self.given.take_if(|area| area.is(file));
    }
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
