//! The memory that I/O reads from and writes to.
//!
//! Owns a worker's scratch buffers, the bounce buffers that direct I/O needs for unaligned memory,
//! a region of zeroes, and `IoVecs`: the list of pieces of one transfer, the only place where an
//! address becomes something that the kernel writes to. Never knows which file or request the bytes
//! belong to. Keeps: every piece of a list is memory that stays mapped until the transfer has
//! ended: guest memory by [`GuestData`]'s contract, and the memory here because it lives as long as
//! the executor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use self::mapping::Mapping;
use super::{BufId, SLICE};
use crate::request::Token;

mod mapping;
#[cfg(test)]
mod tests;

/// The alignment of all memory here; no device needs more.
const PAGE: usize = 4096;
/// Bytes of a bounce buffer; longer transfers go through it piece by piece.
pub(crate) const BOUNCE: usize = 256 << 10;
/// Bytes of the region of zeroes; longer runs of zero name it more than once.
pub(crate) const ZEROES: usize = 1 << 20;
/// Bounce buffers that are kept for later transfers.
const BOUNCES_KEPT: usize = 32;
/// The most pieces that one system call takes (IOV_MAX).
pub(crate) const IOV_MAX: usize = 1024;

/// The places of requests' bytes.
///
/// The pushed pieces must stay mapped, and writable if the request is a read, until
/// [`Io::completed`](super::Io::completed) returns their action or the executor is dropped: the
/// kernel accesses them meanwhile. Another process may change the bytes at any time; no code here
/// forms a reference to them.
pub trait GuestData {
    /// Appends the pieces of memory with bytes `offset..offset + len` of the data of the request
    /// `token`, in order.
    fn push_iovecs(&self, token: Token, offset: u32, len: u32, out: &mut Vec<libc::iovec>);
}

/// The amount of a worker's scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchConfig {
    /// The number of buffers.
    pub buffers: u32,
    /// Bytes of each; rounded up to whole pages.
    pub size: u32,
    /// The pages that it is made of.
    pub pages: Pages,
}

impl ScratchConfig {
    /// One buffer of `size` bytes, which an engine divides.
    pub const fn one(size: u32, pages: Pages) -> ScratchConfig {
        ScratchConfig { buffers: 1, size, pages }
    }
}

/// The pages that memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Pages of 4 KiB, allocated as they are touched.
    Small,
    /// Pages of 2 MiB where the system has them, for large transfers in the background. A device gets a
    /// page as one segment, and many devices take only about as many segments at a time as 1 MiB of small
    /// pages needs. The first touch of a page takes long: it is cleared, and memory may be moved for it.
    Huge,
}

/// The memory of one executor.
#[derive(Debug)]
pub(crate) struct Memory {
    scratch: Mapping,
    size: usize,
    zeroes: Mapping,
    bounces: Vec<Mapping>,
}

impl Memory {
    /// Maps it. Pages are allocated on first use: most disks never use most of it, and a host has
    /// many.
    pub(crate) fn new(config: ScratchConfig) -> io::Result<Memory> {
        let size = (config.size as usize).next_multiple_of(PAGE);
        let len = size.checked_mul(config.buffers as usize).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Memory {
            scratch: Mapping::writable(len, config.pages)?,
            size,
            // Never written, so all of it is the kernel's one page of zeroes.
            zeroes: Mapping::read_only(ZEROES)?,
            bounces: Vec::with_capacity(BOUNCES_KEPT),
        })
    }

    fn scratch(&self, buf: BufId, offset: usize, len: usize) -> Option<libc::iovec> {
        if offset.checked_add(len)? > self.size {
            return None;
        }
        self.scratch.piece((buf.0 as usize).checked_mul(self.size)?.checked_add(offset)?, len)
    }

    /// Copies `bytes` into a scratch buffer; false if they do not fit.
    #[cfg(test)]
    pub(crate) fn put(&mut self, buf: BufId, offset: usize, bytes: &[u8]) -> bool {
        let Some(to) = self.scratch(buf, offset, bytes.len()) else { return false };
        // SAFETY: `to` lies within the mapping, which no slice of this process can overlap; only
        // the kernel does I/O there, through addresses.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.iov_base.cast(), bytes.len()) };
        true
    }

    /// Copies a part of a scratch buffer out; false if the buffer is shorter.
    pub(crate) fn get(&self, buf: BufId, offset: usize, bytes: &mut [u8]) -> bool {
        let Some(from) = self.scratch(buf, offset, bytes.len()) else { return false };
        // SAFETY: as in `put`, the other way round.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.iov_base.cast::<u8>().cast_const(),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
        true
    }

    /// Never unmaps the memory: something may still write to it.
    pub(crate) fn leak(&mut self) {
        for mapping in [&mut self.scratch, &mut self.zeroes] {
            mapping.leak();
        }
    }

    /// A bounce buffer; allocates only if no free one is left.
    pub(crate) fn bounce(&mut self) -> io::Result<Bounce> {
        match self.bounces.pop() {
            Some(mapping) => Ok(Bounce(mapping)),
            None => Mapping::writable(BOUNCE, Pages::Small).map(Bounce),
        }
    }

    /// The number of free bounce buffers.
    #[cfg(test)]
    pub(crate) fn bounces(&self) -> usize {
        self.bounces.len()
    }

    /// Takes a bounce buffer back.
    pub(crate) fn give_back(&mut self, bounce: Bounce) {
        if self.bounces.len() < BOUNCES_KEPT {
            self.bounces.push(bounce.0);
        }
    }
}

/// Slices of [`SLICE`] bytes: what a copy reads and writes.
#[derive(Debug)]
pub(crate) struct Slices(Mapping);

impl Slices {
    pub(crate) fn new(count: usize, pages: Pages) -> io::Result<Slices> {
        let len = count.checked_mul(SLICE).ok_or(io::ErrorKind::OutOfMemory)?;
        Mapping::writable(len, pages).map(Slices)
    }

    /// Never unmaps the memory: something may still read from it.
    pub(crate) fn leak(&mut self) {
        self.0.leak();
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len() / SLICE
    }

    /// `len` bytes of slice `index` from `offset`, to be written to a file; none if it is shorter.
    pub(crate) fn piece(&self, index: usize, offset: usize, len: usize) -> Option<libc::iovec> {
        if offset.checked_add(len)? > SLICE {
            return None;
        }
        self.0.piece(index.checked_mul(SLICE)?.checked_add(offset)?, len)
    }

    /// Slice `index`, to be filled.
    ///
    /// # Panics
    /// There are fewer.
    pub(crate) fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        let piece = self.piece(index, 0, SLICE).expect("a slice that there is");
        // SAFETY: the piece lies within the mapping, which `&mut self` keeps from everyone else in this
        // process for as long as the reference lives; the pages were zero at first, and are any bytes now.
        unsafe { std::slice::from_raw_parts_mut(piece.iov_base.cast(), piece.iov_len) }
    }
}

/// Aligned memory that replaces unaligned memory.
#[derive(Debug)]
pub(crate) struct Bounce(Mapping);

/// The pieces of memory of one transfer, from its first byte to its last.
#[derive(Debug, Default)]
pub(crate) struct IoVecs {
    list: Vec<libc::iovec>,
    /// The first piece that is not done; finished parts of it are cut off.
    at: usize,
}

// SAFETY: it holds addresses, not references; whether the memory behind them still exists does not
// depend on the thread.
unsafe impl Send for IoVecs {}

impl IoVecs {
    pub(crate) fn with_room(pieces: usize) -> IoVecs {
        IoVecs { list: Vec::with_capacity(pieces), at: 0 }
    }

    /// The number of pieces that there is room for.
    pub(crate) fn room(&self) -> usize {
        self.list.capacity()
    }

    /// Makes room for this many pieces, and forgets those that it has.
    pub(crate) fn reserve(&mut self, pieces: usize) {
        self.clear();
        self.list.reserve_exact(pieces);
    }

    /// Forgets all pieces and keeps the room for them.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.at = 0;
    }

    /// Appends bytes of a request.
    pub(crate) fn push_guest<G: GuestData>(&mut self, guest: &G, token: Token, at: u32, len: u32) {
        guest.push_iovecs(token, at, len, &mut self.list);
    }

    /// Appends bytes of a scratch buffer; false if the buffer is shorter.
    pub(crate) fn push_scratch(&mut self, memory: &Memory, buf: BufId, at: u32, len: u32) -> bool {
        let piece = memory.scratch(buf, at as usize, len as usize);
        self.list.extend(piece);
        piece.is_some()
    }

    /// Appends zeroes.
    pub(crate) fn push_zeroes(&mut self, memory: &Memory, mut len: usize) {
        while len > 0 {
            let count = len.min(ZEROES);
            self.list.extend(memory.zeroes.piece(0, count));
            len -= count;
        }
    }

    /// Appends the first `len` bytes of a bounce buffer.
    pub(crate) fn push_bounce(&mut self, bounce: &Bounce, len: usize) {
        self.list.extend(bounce.0.piece(0, len));
    }

    /// Appends a copy of `bytes` in `bounce`; false if they do not fit.
    pub(crate) fn push_copy(&mut self, bounce: &Bounce, bytes: &[u8]) -> bool {
        let Some(piece) = bounce.0.piece(0, bytes.len()) else { return false };
        // SAFETY: `piece` lies within the bounce buffer, which has no other user and which no slice
        // of this process can overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.iov_base.cast(), bytes.len())
        };
        self.list.push(piece);
        true
    }

    /// Fills the pieces with zeroes.
    pub(crate) fn fill_with_zeroes(&self) {
        for piece in &self.list[self.at..] {
            // SAFETY: the pieces are writable memory that stays mapped (this module's invariant).
            unsafe { std::ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) };
        }
    }

    /// Bytes in all pieces that are not done.
    pub(crate) fn total(&self) -> u64 {
        self.list[self.at..].iter().map(|piece| piece.iov_len as u64).sum()
    }

    /// Whether every piece starts and ends at a multiple of `align`, a power of two.
    pub(crate) fn aligned(&self, align: u32) -> bool {
        let or = self.list.iter().fold(0, |or, v| or | v.iov_base as usize | v.iov_len);
        or & (align as usize - 1) == 0
    }

    /// The pieces for the next system call.
    pub(crate) fn window(&self) -> &[libc::iovec] {
        let rest = &self.list[self.at..];
        &rest[..rest.len().min(IOV_MAX)]
    }

    /// Cuts `done` bytes off the front.
    pub(crate) fn advance(&mut self, mut done: usize) {
        while let Some(piece) = self.list.get_mut(self.at) {
            if done < piece.iov_len {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(done).cast();
                piece.iov_len -= done;
                return;
            }
            done -= piece.iov_len;
            self.at += 1;
        }
    }

    /// Copies the first `len` bytes that are not done into `bounce`.
    pub(crate) fn gather(&self, bounce: &Bounce, len: usize) {
        self.each_part(bounce, len, |mine, theirs, count| {
            // SAFETY: `each_part` passes `count` bytes within the bounce buffer and within a piece
            // of this list; the two never overlap, because only this executor uses bounce buffers.
            unsafe { std::ptr::copy_nonoverlapping(mine, theirs, count) }
        });
    }

    /// Copies `len` bytes of `bounce` to the place of the first bytes that are not done.
    pub(crate) fn scatter(&self, bounce: &Bounce, len: usize) {
        self.each_part(bounce, len, |mine, theirs, count| {
            // SAFETY: as in `gather`.
            unsafe { std::ptr::copy_nonoverlapping(theirs.cast_const(), mine, count) }
        });
    }

    fn each_part(&self, bounce: &Bounce, len: usize, copy: impl Fn(*mut u8, *mut u8, usize)) {
        let mut done = 0;
        for piece in &self.list[self.at..] {
            let count = piece.iov_len.min(len - done);
            let Some(part) = bounce.0.piece(done, count) else { return };
            copy(piece.iov_base.cast(), part.iov_base.cast(), count);
            done += count;
        }
    }

    /// `preadv` into the next pieces. A single piece uses `pread`, which needs no list in the
    /// kernel.
    pub(crate) fn read_from(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let (fd, offset) = (fd.as_raw_fd(), offset as i64);
        result(match self.window() {
            // SAFETY: the pieces are writable memory that stays mapped (this module's invariant).
            [one] => unsafe { pread(fd, one, offset) },
            // SAFETY: as above.
            many => unsafe { libc::preadv(fd, many.as_ptr(), many.len() as i32, offset) },
        })
    }

    /// `pwritev` of the next pieces, likewise.
    pub(crate) fn write_to(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let (fd, offset) = (fd.as_raw_fd(), offset as i64);
        result(match self.window() {
            // SAFETY: the pieces are readable memory that stays mapped (this module's invariant).
            [one] => unsafe { pwrite(fd, one, offset) },
            // SAFETY: as above.
            many => unsafe { libc::pwritev(fd, many.as_ptr(), many.len() as i32, offset) },
        })
    }
}

/// The C library's function does the same, and takes three times as long because a thread can be
/// cancelled there.
///
/// # Safety
/// As of `pread`: the piece is writable memory.
unsafe fn pread(fd: RawFd, piece: &libc::iovec, offset: i64) -> isize {
    let (base, len) = (piece.iov_base, piece.iov_len);
    // SAFETY: the arguments are those of this system call; the caller answers for the memory.
    unsafe { libc::syscall(libc::SYS_pread64, fd, base, len, offset) as isize }
}

/// Likewise.
///
/// # Safety
/// As of `pwrite`: the piece is readable memory.
unsafe fn pwrite(fd: RawFd, piece: &libc::iovec, offset: i64) -> isize {
    let (base, len) = (piece.iov_base, piece.iov_len);
    // SAFETY: as in `pread`.
    unsafe { libc::syscall(libc::SYS_pwrite64, fd, base, len, offset) as isize }
}

fn result(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
