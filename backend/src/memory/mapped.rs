//! One region of the guest's memory at its address in this process, and the parts of it that
//! contain a ring.
//!
//! Owns every access by address. Never knows the content. Data that the guest changes at the same
//! time is at worst read torn: bytes are copied out first and checked then, and values shared with
//! the driver (indices, flags) are accessed by atomics.

#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::Region;

/// A region, mapped.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    pub(super) region: Region,
    base: NonNull<u8>,
    mapping: Arc<GuestRegionMmap>,
}

// SAFETY: `base` is the address of the mapping that the region holds, which is memory that all
// threads may access; nothing here depends on the thread.
unsafe impl Send for Mapped {}
// SAFETY: as above; accesses through a shared reference are copies and atomics.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// The region that `mapping` maps; none if it has no address.
    pub(super) fn new(region: Region, mapping: Arc<GuestRegionMmap>) -> Option<Mapped> {
        let base = NonNull::new(mapping.get_host_address(MemoryRegionAddress(0)).ok()?)?;
        Some(Mapped { region, base, mapping })
    }

    /// The place of `[address, address + len)` in this process, if all of it is in this region.
    #[inline]
    pub(super) fn host(&self, address: u64, len: usize) -> Option<NonNull<u8>> {
        let offset = address.checked_sub(self.region.guest)?;
        let fits = offset < self.region.size && len as u64 <= self.region.size - offset;
        // SAFETY: the offset lies within the mapping, which is one allocation.
        fits.then(|| unsafe { self.base.add(offset as usize) })
    }

    /// Copies bytes out; false if they are not all in this region.
    #[inline(always)]
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(from) = self.host(address, into.len()) else { return false };
        // SAFETY: `from` is that many bytes of a living mapping, and `into` is memory of this
        // process that no mapping of a guest shares.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies bytes in; false if they would not all be in this region.
    #[inline(always)]
    pub(super) fn write(&self, address: u64, from: &[u8]) -> bool {
        let Some(into) = self.host(address, from.len()) else { return false };
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_ptr(), from.len()) };
        true
    }

    /// The part that begins at `address`; none if it is not all in this region, or does not begin
    /// at a multiple of `align` in this process.
    pub(super) fn window(&self, address: u64, len: usize, align: usize) -> Option<Window> {
        let base = self.host(address, len)?;
        let is_aligned = base.addr().get().is_multiple_of(align);
        is_aligned.then(|| Window { base, len, _mapping: self.mapping.clone() })
    }
}

/// A piece of shared memory that is accessed repeatedly: a part of a ring, or of the records beside
/// one. It stays mapped as long as this lives.
///
/// Offsets are in bytes and must be multiples of the width. An offset past the end is a defect
/// here: offsets come from the size of the window, never from the guest.
#[derive(Debug)]
pub struct Window {
    base: NonNull<u8>,
    len: usize,
    _mapping: Arc<GuestRegionMmap>,
}

// SAFETY: as for `Mapped`, whose mapping it holds.
unsafe impl Send for Window {}

impl Window {
    #[inline]
    fn at<T>(&self, offset: usize) -> *mut T {
        let place = self.base.as_ptr().wrapping_add(offset).cast::<T>();
        assert!(offset + size_of::<T>() <= self.len && place.is_aligned(), "outside of a ring");
        place
    }

    /// The byte at `offset`.
    #[inline]
    pub fn load_u8(&self, offset: usize) -> u8 {
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU8::from_ptr(self.at(offset)) }.load(Ordering::Relaxed)
    }

    /// Stores a byte at `offset`.
    #[inline]
    pub fn store_u8(&self, offset: usize, value: u8, order: Ordering) {
        #[cfg(test)]
        if !super::fuse::is_alive() {
            return;
        }
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU8::from_ptr(self.at(offset)) }.store(value, order);
    }

    /// The little-endian number at `offset`.
    #[inline]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        // SAFETY: `at` gives an aligned place within a living mapping, and this side accesses it by
        // atomics alone.
        u16::from_le(unsafe { AtomicU16::from_ptr(self.at(offset)) }.load(order))
    }

    /// Stores a little-endian number at `offset`.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        #[cfg(test)]
        if !super::fuse::is_alive() {
            return;
        }
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }.store(value.to_le(), order);
    }

    /// Stores a little-endian number at `offset`, before any later store with Release.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32) {
        #[cfg(test)]
        if !super::fuse::is_alive() {
            return;
        }
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }.store(value.to_le(), Ordering::Relaxed);
    }

    /// The little-endian number at `offset`.
    #[inline]
    pub fn load_u64(&self, offset: usize) -> u64 {
        // SAFETY: as in `load_u16`.
        u64::from_le(unsafe { AtomicU64::from_ptr(self.at(offset)) }.load(Ordering::Relaxed))
    }

    /// Stores a little-endian number at `offset`, before any later store with Release.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) {
        #[cfg(test)]
        if !super::fuse::is_alive() {
            return;
        }
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }.store(value.to_le(), Ordering::Relaxed);
    }
}
