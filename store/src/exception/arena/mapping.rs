//! The file of an arena, and its mapping.
//!
//! Owns the mapping and the unnamed file behind it, which is gone with the process. Never knows
//! what the file contains. Keeps: no word is allocated for which the file has no space, so that an
//! access cannot fail for lack of space; the mapping is aligned to a whole block, like the
//! kernel's mappings around a fault.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::BLOCK;

/// A sparse mapping of a file that grows into it.
pub(super) struct Mapping {
    /// The address of the file's first byte, aligned to a block.
    base: NonNull<u8>,
    /// The largest size of the file, in bytes.
    len: u64,
    /// The whole reservation: the mapping, and the rest around it.
    reserved: Range<usize>,
    file: File,
    /// The size of the file, for which it has space.
    grown: AtomicU64,
}

// SAFETY: the memory behind the pointer is used as atomics alone, which any thread may do.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A mapping of a new file in `dir` that can grow to `len` bytes.
    ///
    /// # Errors
    /// The system's error: for the directory, or for so much address space.
    pub(super) fn new(dir: &Path, len: u64) -> io::Result<Mapping> {
        let file = nameless(dir)?;
        let bytes = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let whole = bytes.checked_add(BLOCK as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let (none, no_reserve) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing else.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), whole, none, no_reserve)? };
        let start = start.expose_provenance();
        let base = start.next_multiple_of(BLOCK as usize);
        let mut mapping = Mapping {
            base: NonNull::new(std::ptr::with_exposed_provenance_mut(base))
                .ok_or(io::ErrorKind::OutOfMemory)?,
            len,
            reserved: start..start + whole,
            file,
            grown: AtomicU64::new(0),
        };
        mapping.map(bytes)?;
        Ok(mapping)
    }

    fn map(&mut self, bytes: usize) -> io::Result<()> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let flags = flags | MapFlags::FIXED | MapFlags::NORESERVE;
        let at = self.base.as_ptr().cast::<c_void>();
        // SAFETY: it takes the place of a part of what was reserved for it, which nothing uses.
        unsafe { mmap(at, bytes, prot, flags, self.file.as_fd(), 0)? };
        // Accesses are random, and each needs only one page; a core dump of all pages would be
        // large. Nothing depends on this advice if the kernel does not know it.
        for advice in [Advice::Random, Advice::LinuxNoHugepage, Advice::LinuxDontDump] {
            // SAFETY: the mapping is this one's own, and these change nothing of what it says.
            let _ = unsafe { madvise(at, bytes, advice) };
        }
        Ok(())
    }

    /// Bytes that the file has.
    pub(super) fn grown(&self) -> u64 {
        self.grown.load(Ordering::Acquire)
    }

    /// Extends the file to at least `len` bytes, all with space; they are zero.
    ///
    /// # Errors
    /// The system's error, for example if the file system cannot reserve space; `FileTooLarge`
    /// beyond the reservation.
    pub(super) fn grow(&self, len: u64) -> io::Result<()> {
        let has = self.grown();
        if len > self.len {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if has >= len {
            return Ok(());
        }
        // Other threads may do the same: existing content does not change.
        loop {
            match fallocate(&self.file, FallocateFlags::empty(), has, len - has) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.grown.fetch_max(len, Ordering::AcqRel);
        Ok(())
    }

    /// The word at byte `offset`.
    pub(super) fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.grown(), "a word of the arena");
        // SAFETY: it lies within the mapping, which lives as long as `self`.
        let word = unsafe { self.base.add(offset as usize) }.cast::<AtomicU64>();
        // SAFETY: the file has it, its address is a multiple of 8, and whoever else refers to it
        // does so as an atomic.
        unsafe { word.as_ref() }
    }

    /// The address of byte `offset`, from which a pointer is made again later.
    pub(super) fn address(&self, offset: u64) -> usize {
        self.base.as_ptr().expose_provenance() + offset as usize
    }

    /// The offset in the file of `address`, if it is in the mapping.
    #[inline]
    pub(super) fn offset(&self, address: usize) -> Option<u64> {
        let offset = (address as u64).wrapping_sub(self.base.as_ptr().addr() as u64);
        (offset < self.len).then_some(offset)
    }

    /// Removes the pages of these bytes from the process's memory. They stay in the file, and come
    /// back at the next access.
    pub(super) fn let_go(&self, bytes: Range<u64>) {
        let len = (bytes.end - bytes.start) as usize;
        let at = std::ptr::with_exposed_provenance_mut(self.address(bytes.start));
        // SAFETY: of a shared mapping of a file this drops what the process has of the file's
        // pages, not the pages: every word is the same before and after.
        let gone = unsafe { madvise(at, len, Advice::LinuxDontNeed) };
        debug_assert!(gone.is_ok(), "{gone:?}");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let at = std::ptr::with_exposed_provenance_mut(self.reserved.start);
        // SAFETY: all of it was reserved by this one, and every word borrowed `self` or was freed.
        let _ = unsafe { munmap(at, self.reserved.len()) };
    }
}

/// A new file in `dir` without a name.
fn nameless(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // For file systems and kernels that do not know the flag.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let path = dir.join(format!(".snapblk-table-{}", uuid::Uuid::new_v4()));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}
