//! The guest's memory: regions that the front-end shares, mapped into this process.
//!
//! Owns the mappings and both translations: guest-physical to host for buffers, front-end virtual
//! to guest-physical for the addresses of rings. Never knows the content of the memory.
//!
//! A [`GuestMemory`] is immutable; a change makes a new one that shares the remaining mappings.
//! The owner of I/O in flight to it keeps the `Arc`, and so the mappings, until the I/O has ended:
//! no pointer from here outlives the `GuestMemory` it came from.

#![cfg_attr(test, allow(unsafe_code))]

mod mapped;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion,
};

use mapped::Mapped;
pub use mapped::Window;

/// How many regions a front-end may add: as many as QEMU's own vhost-user library allows.
pub const MAX_REGIONS: usize = 509;

/// Bytes that the regions of a front-end may have together. Files are often sparse, so that large ones
/// cost nothing; but their addresses are those of the whole process, which has 128 TiB of them.
pub const MAX_BYTES: u64 = 16 << 40;

/// A region as the front-end describes it (vhost-user, "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// First address in the front-end's own address space.
    pub user: u64,
    /// The region's offset in its file, in bytes.
    pub file_offset: u64,
}

/// Why a region was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Its addresses or size are impossible.
    #[error("memory region at {0:#x} is empty or wraps around")]
    Bounds(u64),
    /// It cannot be mapped.
    #[error("memory region at {guest:#x} of {size:#x} bytes cannot be mapped: {why}")]
    Map {
        /// Its first guest-physical address.
        guest: u64,
        /// Its size in bytes.
        size: u64,
        /// The system's error.
        why: String,
    },
    /// Two regions share addresses.
    #[error("memory region at {0:#x} overlaps another one")]
    Overlap(u64),
    /// There are more regions than the front-end may add.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// They are larger together than a front-end's may be.
    #[error(
        "memory regions of {0:#x} bytes together, at most {MAX_BYTES:#x} are mapped; give this disk \
         to a guest with less memory"
    )]
    TooLarge(u64),
    /// A region to be removed does not exist.
    #[error("there is no memory region at {0:#x} to remove")]
    Unknown(u64),
}

/// A guest address that no region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest address {0:#x} is not in any memory region")]
pub struct BadAddress(pub u64);

/// All regions of a guest.
#[derive(Clone, Default)]
pub struct GuestMemory {
    /// For ranges that cross from one region to the next.
    map: GuestMemoryMmap,
    /// The regions at their places in this process, by guest address.
    mapped: Vec<Mapped>,
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory").field("regions", &self.mapped).finish()
    }
}

impl GuestMemory {
    /// Maps a table of regions.
    pub fn from_table(
        table: impl IntoIterator<Item = (Region, OwnedFd)>,
    ) -> Result<GuestMemory, MemoryError> {
        table.into_iter().try_fold(GuestMemory::default(), |memory, (region, file)| {
            memory.with_region(region, file)
        })
    }

    /// This memory and one more region.
    pub fn with_region(&self, region: Region, file: OwnedFd) -> Result<GuestMemory, MemoryError> {
        if self.mapped.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let wraps = |start: u64| start.checked_add(region.size).is_none();
        if region.size == 0
            || [region.guest, region.user, region.file_offset].map(wraps).contains(&true)
        {
            return Err(MemoryError::Bounds(region.guest));
        }
        let all = self.regions().fold(region.size, |all, other| all.saturating_add(other.size));
        if all > MAX_BYTES {
            return Err(MemoryError::TooLarge(all));
        }
        let unmappable =
            |why: String| MemoryError::Map { guest: region.guest, size: region.size, why };
        let file = File::from(file);
        // Access to a page past the file's end would kill the process.
        let about = file.metadata().map_err(|e| unmappable(e.to_string()))?;
        if about.is_file() && about.len() < region.file_offset + region.size {
            return Err(unmappable(format!("its file has only {:#x} bytes", about.len())));
        }
        let size = usize::try_from(region.size).map_err(|e| unmappable(e.to_string()))?;
        let file = FileOffset::new(file, region.file_offset);
        let mapping = MmapRegion::from_file(file, size).map_err(|e| unmappable(e.to_string()))?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(region.guest))
            .ok_or(MemoryError::Bounds(region.guest))?;
        let mapping = Arc::new(mapping);
        let map = self
            .map
            .insert_region(mapping.clone())
            .map_err(|_| MemoryError::Overlap(region.guest))?;
        let one = Mapped::new(region, mapping).ok_or(MemoryError::Bounds(region.guest))?;
        let mut mapped = self.mapped.clone();
        let at = mapped.partition_point(|other| other.region.guest < region.guest);
        mapped.insert(at, one);
        Ok(GuestMemory { map, mapped })
    }

    /// This memory without a region, which is identified by its addresses and size.
    pub fn without_region(&self, region: Region) -> Result<GuestMemory, MemoryError> {
        let same = |mapped: &Mapped| {
            let known = mapped.region;
            (known.guest, known.size, known.user) == (region.guest, region.size, region.user)
        };
        let at = self.mapped.iter().position(same).ok_or(MemoryError::Unknown(region.guest))?;
        let (map, _) = self
            .map
            .remove_region(GuestAddress(region.guest), region.size)
            .map_err(|_| MemoryError::Unknown(region.guest))?;
        let mut mapped = self.mapped.clone();
        mapped.remove(at);
        Ok(GuestMemory { map, mapped })
    }

    /// The region that contains `address`, if any.
    #[inline]
    fn region_of(&self, address: GuestAddress) -> Option<&Mapped> {
        let above = self.mapped.partition_point(|mapped| mapped.region.guest <= address.0);
        self.mapped.get(above.checked_sub(1)?)
    }

    /// The `len` bytes of one region that the front-end has at `user`; they must begin at a
    /// multiple of `align` bytes, in this process and in the guest.
    pub fn window(&self, user: u64, len: usize, align: usize) -> Option<Window> {
        let address = self.guest_of_user(user, len as u64)?;
        address.0.is_multiple_of(align as u64).then_some(())?;
        self.region_of(address)?.window(address.0, len, align)
    }

    /// The guest-physical address of front-end address `user`, if one region holds `len` bytes
    /// from there.
    pub fn guest_of_user(&self, user: u64, len: u64) -> Option<GuestAddress> {
        self.mapped.iter().find_map(|Mapped { region, .. }| {
            let offset = user.checked_sub(region.user)?;
            let fits = offset < region.size && len <= region.size - offset;
            fits.then_some(GuestAddress(region.guest + offset))
        })
    }

    /// Appends the places of `[address, address + len)` in this process: one piece, or one per
    /// region if the range crosses regions. Appends nothing if a part of it is in no region.
    ///
    /// The pieces stay valid as long as this `GuestMemory` lives.
    #[inline]
    pub fn push_iovecs(
        &self,
        address: GuestAddress,
        len: u32,
        out: &mut Vec<libc::iovec>,
    ) -> Result<(), BadAddress> {
        if let Some(base) = self.region_of(address).and_then(|of| of.host(address.0, len as usize))
        {
            out.push(libc::iovec { iov_base: base.as_ptr().cast(), iov_len: len as usize });
            return Ok(());
        }
        self.push_pieces(address, len, out)
    }

    /// The same for a range that is not all in one region.
    #[cold]
    fn push_pieces(
        &self,
        address: GuestAddress,
        len: u32,
        out: &mut Vec<libc::iovec>,
    ) -> Result<(), BadAddress> {
        let before = out.len();
        for slice in GuestMemoryBackend::get_slices(&self.map, address, len as usize) {
            let Ok(slice) = slice else {
                out.truncate(before);
                return Err(BadAddress(address.0));
            };
            out.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        Ok(())
    }

    /// Copies bytes out of the guest's memory. Inlined, so that a few bytes of known length take
    /// one or two moves.
    #[inline(always)]
    pub fn read(&self, address: GuestAddress, into: &mut [u8]) -> Result<(), BadAddress> {
        if self.region_of(address).is_some_and(|of| of.read(address.0, into)) {
            return Ok(());
        }
        self.read_pieces(address, into)
    }

    /// Copies bytes into the guest's memory; inlined likewise.
    #[inline(always)]
    pub fn write(&self, address: GuestAddress, from: &[u8]) -> Result<(), BadAddress> {
        if self.region_of(address).is_some_and(|of| of.write(address.0, from)) {
            return Ok(());
        }
        self.write_pieces(address, from)
    }

    #[cold]
    fn read_pieces(&self, address: GuestAddress, into: &mut [u8]) -> Result<(), BadAddress> {
        self.map.read_slice(into, address).map_err(|_| BadAddress(address.0))
    }

    #[cold]
    fn write_pieces(&self, address: GuestAddress, from: &[u8]) -> Result<(), BadAddress> {
        self.map.write_slice(from, address).map_err(|_| BadAddress(address.0))
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = Region> {
        self.mapped.iter().map(|mapped| mapped.region)
    }

    /// The map itself, for the test drivers.
    #[cfg(test)]
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// Anonymous memory for tests: one region of `size` bytes at guest address 0, which the
    /// front-end has at `user`.
    #[cfg(test)]
    pub(crate) fn anonymous(size: u64, user: u64) -> GuestMemory {
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, size).unwrap();
        let region = Region { guest: 0, size, user, file_offset: 0 };
        GuestMemory::default().with_region(region, file).unwrap()
    }
}

/// The bytes that pieces of a living [`GuestMemory`] hold, for tests that do I/O.
#[cfg(test)]
pub(crate) fn gather(pieces: &[libc::iovec]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        // SAFETY: pieces come from `push_iovecs` of a memory that is mapped for as long as the
        // request that they belong to is in flight, and that no other test thread writes.
        let piece = unsafe { std::slice::from_raw_parts(piece.iov_base.cast(), piece.iov_len) };
        bytes.extend_from_slice(piece);
    }
    bytes
}

/// Puts bytes where pieces of a living [`GuestMemory`] lie, for tests that do I/O.
#[cfg(test)]
pub(crate) fn scatter(pieces: &[libc::iovec], mut bytes: &[u8]) {
    for piece in pieces {
        let (now, later) = bytes.split_at(piece.iov_len);
        // SAFETY: as in `gather`; `now` is as long as the piece and not in guest memory.
        unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast(), now.len()) };
        bytes = later;
    }
}

/// The end of a process between two of its stores, for tests of what its successor finds.
#[cfg(test)]
pub(crate) mod fuse {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// Only the next `stores` stores of this thread through windows reach the memory.
    pub(crate) fn dies_after(stores: usize) {
        LEFT.set(stores);
    }

    /// Whether stores of this process no longer reach the memory. Its loads may then be stale.
    pub(crate) fn is_dead() -> bool {
        LEFT.get() == 0
    }

    /// The next process begins; true if the previous one had died.
    pub(crate) fn begins() -> bool {
        LEFT.replace(usize::MAX) == 0
    }

    /// Uses up one store.
    pub(in crate::memory) fn is_alive() -> bool {
        let left = LEFT.get();
        LEFT.set(left.saturating_sub(1));
        left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn file(size: u64) -> OwnedFd {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        file
    }

    fn region(guest: u64, size: u64, user: u64, file_offset: u64) -> Region {
        Region { guest, size, user, file_offset }
    }

    #[test]
    fn a_region_begins_at_its_offset_in_the_file() {
        let shared = file(0x3000);
        rustix::io::pwrite(&shared, b"here", 0x2010).unwrap();
        let memory =
            GuestMemory::from_table([(region(0x10_0000, 0x1000, 0x7000_0000, 0x2000), shared)])
                .unwrap();
        let mut bytes = [0; 4];
        memory.read(GuestAddress(0x10_0010), &mut bytes).unwrap();
        assert_eq!(&bytes, b"here");
        assert_eq!(memory.guest_of_user(0x7000_0010, 16), Some(GuestAddress(0x10_0010)));
        assert_eq!(memory.guest_of_user(0x7000_0ff8, 16), None, "past the region's end");
        assert_eq!(memory.guest_of_user(0x6fff_ffff, 1), None);
    }

    #[test]
    fn a_range_over_two_regions_is_two_pieces() {
        let memory = GuestMemory::from_table([
            (region(0x1000, 0x1000, 0x5000, 0), file(0x1000)),
            (region(0, 0x1000, 0x9000, 0), file(0x1000)),
        ])
        .unwrap();
        let mut pieces = Vec::new();
        memory.push_iovecs(GuestAddress(0xff0), 0x20, &mut pieces).unwrap();
        assert_eq!(pieces.iter().map(|p| p.iov_len).collect::<Vec<_>>(), [0x10, 0x10]);
        assert!(memory.push_iovecs(GuestAddress(0x1ff0), 0x20, &mut pieces).is_err());
        assert!(memory.push_iovecs(GuestAddress(u64::MAX), 2, &mut pieces).is_err());
        assert_eq!(pieces.len(), 2, "nothing of a bad range is appended");
    }

    #[test]
    fn bad_regions_are_refused_and_change_nothing() {
        let memory = GuestMemory::anonymous(0x2000, 0);
        let overlap = memory.with_region(region(0x1000, 0x1000, 0x8000, 0), file(0x1000));
        assert!(matches!(overlap, Err(MemoryError::Overlap(0x1000))));
        let past_end = memory.with_region(region(0x8000, 0x2000, 0x8000, 0), file(0x1000));
        assert!(matches!(past_end, Err(MemoryError::Map { .. })));
        // Sparse files: only addresses run out.
        let half = memory.with_region(region(1 << 41, 1 << 43, 1 << 41, 0), file(1 << 43)).unwrap();
        let too_large = half.with_region(region(1 << 44, 1 << 43, 1 << 44, 0), file(1 << 43));
        assert!(matches!(too_large, Err(MemoryError::TooLarge(all)) if all == (1 << 44) + 0x2000));
        for bad in [region(0x8000, 0, 0, 0), region(u64::MAX - 1, 0x1000, 0, 0)] {
            assert!(matches!(memory.with_region(bad, file(0x1000)), Err(MemoryError::Bounds(_))));
        }
        assert!(matches!(
            memory.without_region(region(0, 0x1000, 0, 0)),
            Err(MemoryError::Unknown(0))
        ));
        assert_eq!(memory.regions().len(), 1);
    }

    #[test]
    fn a_removed_region_stays_mapped_for_who_still_holds_the_memory() {
        let old = GuestMemory::anonymous(0x1000, 0);
        old.write(GuestAddress(8), b"kept").unwrap();
        let new = old.without_region(old.regions().next().unwrap()).unwrap();
        assert!(new.read(GuestAddress(8), &mut [0; 4]).is_err());
        let mut bytes = [0; 4];
        old.read(GuestAddress(8), &mut bytes).unwrap();
        assert_eq!(&bytes, b"kept");
    }
}
