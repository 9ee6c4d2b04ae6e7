//! Memory that the client shares with the server.
//!
//! Owns one memfd mapping and hands out disjoint [`Buffer`]s of it. Never knows of requests: only
//! the owner of a `Buffer` accesses its bytes, so giving it away for as long as the device may
//! write to it is sufficient for safety.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Buffers start at multiples of this many bytes, which suits O_DIRECT.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// A mapping of shared memory, unmapped when its last user is dropped.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, valid in every thread; access to its bytes is only through
// `Buffer`s, and no two buffers overlap.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself offers no access to the bytes.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of a successful mmap, and no `Buffer` is left: each
        // holds an `Arc` of this mapping.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Shared memory from which buffers are allocated in order. They are not returned: a client
/// allocates the buffers that it needs once and reuses them.
#[derive(Debug)]
pub struct Pool {
    mapping: Arc<Mapping>,
    memfd: OwnedFd,
    taken: usize,
}

impl Pool {
    /// A pool of `len` bytes, rounded up to whole pages, which are all allocated from the start.
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1).next_multiple_of(BUFFER_ALIGNMENT);
        let memfd = memfd_create("snapblk-test-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&memfd, len as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &memfd,
                0,
            )?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { mapping: Arc::new(Mapping { base, len }), memfd, taken: 0 })
    }

    /// Allocates a zeroed, page-aligned buffer of `capacity` bytes.
    pub fn buffer(&mut self, capacity: usize) -> io::Result<Buffer> {
        let room = capacity.max(1).next_multiple_of(BUFFER_ALIGNMENT);
        if room > self.mapping.len - self.taken {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!(
                    "a buffer of {capacity} bytes does not fit in the {} bytes left of the pool",
                    self.mapping.len - self.taken
                ),
            ));
        }
        let start = self.taken;
        self.taken += room;
        Ok(Buffer {
            mapping: Arc::clone(&self.mapping),
            start,
            capacity,
            skip: 0,
            len: capacity,
            segment: usize::MAX,
        })
    }

    /// The address of the mapping in this process.
    pub(super) fn address(&self) -> usize {
        self.mapping.base.as_ptr() as usize
    }

    /// The length of the mapping in bytes.
    pub(super) fn len(&self) -> usize {
        self.mapping.len
    }

    /// The file behind the mapping, which the server maps too.
    pub(super) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

/// Bytes of a [`Pool`] with one owner, and the part of them for the next request.
#[derive(Debug)]
pub struct Buffer {
    mapping: Arc<Mapping>,
    start: usize,
    capacity: usize,
    skip: usize,
    len: usize,
    segment: usize,
}

impl Buffer {
    /// Sets the part for the next request: `len` bytes that begin `skip` bytes into the buffer.
    /// O_DIRECT refuses memory with a `skip` that is not a multiple of the device's alignment.
    ///
    /// # Panics
    /// The part does not lie within the buffer.
    pub fn set_part(&mut self, skip: usize, len: usize) {
        assert!(skip <= self.capacity && len <= self.capacity - skip, "{skip}+{len} is too much");
        self.skip = skip;
        self.len = len;
    }

    /// Makes the next request describe its part in segments of at most `bytes` each.
    pub fn set_segment(&mut self, bytes: usize) {
        self.segment = bytes.max(1);
    }

    /// Bytes in the part.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the part has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills the part with `data`.
    ///
    /// # Panics
    /// `data` is not as long as the part.
    pub fn store(&mut self, data: &[u8]) {
        assert_eq!(data.len(), self.len);
        // SAFETY: the part lies within the mapping (`set_part`, `Pool::buffer`), its bytes are
        // accessible only through `&mut self` while no request has the buffer, and `data` is other
        // memory.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.part(), self.len) }
    }

    /// Copies the part into `out`, replacing its content.
    pub fn load(&self, out: &mut Vec<u8>) {
        out.clear();
        out.resize(self.len, 0);
        // SAFETY: as in `store`, in the other direction; `out` has `len` bytes.
        unsafe { ptr::copy_nonoverlapping(self.part().cast_const(), out.as_mut_ptr(), self.len) }
    }

    /// The part as the segments of a request.
    pub(super) fn segments(&self, out: &mut Vec<virtio_driver::iovec>) {
        out.clear();
        let mut at = 0;
        while at < self.len {
            let len = self.segment.min(self.len - at);
            let base = self.part().wrapping_add(at).cast();
            out.push(virtio_driver::iovec { iov_base: base, iov_len: len });
            at += len;
        }
    }

    fn part(&self) -> *mut u8 {
        self.mapping.base.as_ptr().wrapping_add(self.start + self.skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_keep_their_bytes_apart() {
        let mut pool = Pool::new(3 * BUFFER_ALIGNMENT).unwrap();
        let mut one = pool.buffer(100).unwrap();
        let mut two = pool.buffer(BUFFER_ALIGNMENT).unwrap();
        one.store(&[1; 100]);
        two.store(&[2; BUFFER_ALIGNMENT]);
        let mut out = Vec::new();
        one.load(&mut out);
        assert_eq!(out, [1; 100]);
        assert!(pool.buffer(BUFFER_ALIGNMENT + 1).is_err());
        assert!(pool.buffer(BUFFER_ALIGNMENT).is_ok());
    }

    #[test]
    fn segments_cover_the_part_and_nothing_else() {
        let mut pool = Pool::new(BUFFER_ALIGNMENT).unwrap();
        let mut buffer = pool.buffer(4000).unwrap();
        buffer.set_part(8, 2500);
        buffer.set_segment(1000);
        let mut segments = Vec::new();
        buffer.segments(&mut segments);
        let found: Vec<_> =
            segments.iter().map(|s| (s.iov_base as usize - pool.address(), s.iov_len)).collect();
        assert_eq!(found, [(8, 1000), (1008, 1000), (2008, 500)]);
    }
}
