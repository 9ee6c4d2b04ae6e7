//! Memory from the system.
//!
//! Owns its pages, and gives them back. Never knows what they are used for.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::{PAGE, Pages};

/// Bytes of a huge page, on all machines with pages of 4 KiB.
const HUGE: usize = 2 << 20;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, whichever thread holds it.
unsafe impl Send for Mapping {}

impl Mapping {
    const NONE: Mapping = Mapping { base: NonNull::dangling(), len: 0 };

    /// Memory that is zero, and has no page until one is touched.
    pub(super) fn writable(len: usize, pages: Pages) -> io::Result<Mapping> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        if pages == Pages::Small || len < HUGE {
            return Mapping::new(len, prot);
        }
        let with_slack = len.checked_add(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut mapping = Mapping::new(with_slack, prot)?;
        mapping.cut_front(mapping.base.as_ptr().align_offset(HUGE));
        mapping.cut_back(len);
        // SAFETY: the mapping is our own. The advice changes nothing that a program can see; a system
        // without huge pages refuses it, and small ones do as well.
        let _ = unsafe { madvise(mapping.base.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok(mapping)
    }

    /// Memory that is zero and stays so: all of it is the kernel's one page of zeroes.
    pub(super) fn read_only(len: usize) -> io::Result<Mapping> {
        Mapping::new(len, ProtFlags::READ)
    }

    fn new(len: usize, prot: ProtFlags) -> io::Result<Mapping> {
        if len == 0 {
            return Ok(Mapping::NONE);
        }
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing else.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len })
    }

    /// Gives up the first `len` bytes, which are whole pages.
    fn cut_front(&mut self, len: usize) {
        let rest = self.cut(len);
        drop(std::mem::replace(self, rest));
    }

    /// Gives up what lies after the first `len` bytes, rounded up to whole pages.
    fn cut_back(&mut self, len: usize) {
        drop(self.cut(len.next_multiple_of(PAGE)));
    }

    /// Keeps the first `len` bytes, which are whole pages and no more than there are; the others are the
    /// result's.
    fn cut(&mut self, len: usize) -> Mapping {
        let rest = self.len - len;
        if rest == 0 {
            return Mapping::NONE;
        }
        // SAFETY: `len` is less than the length, so the address is within the mapping.
        let base = unsafe { self.base.add(len) };
        self.len = len;
        Mapping { base, len: rest }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// `len` bytes from `offset`, if they are within it.
    pub(super) fn piece(&self, offset: usize, len: usize) -> Option<libc::iovec> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset` is at most `self.len`, so the address is within the mapping or one
        // past it.
        let base = unsafe { self.base.as_ptr().add(offset) };
        Some(libc::iovec { iov_base: base.cast(), iov_len: len })
    }

    /// Never unmaps it.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::replace(self, Mapping::NONE));
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped by `new`, whole or a part of it that no other value has, and there is no
            // reference into it: none is ever handed out beyond a borrow of `self`.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}
