//! Words in a file that outlive the process: a store's log, after a kill.
//!
//! Owns the mapping of a file of 64-bit words, shared with the next process that opens it. Never
//! knows the meaning of a word. Keeps: every word has its space in the file system from the start,
//! so that no store to it can fail for lack of space.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::retry_on_intr;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

#[cfg(test)]
mod tests;

const WORD: usize = size_of::<AtomicU64>();

/// A file of words, mapped.
///
/// The file must not be cut short while it is mapped (an access beyond its end would end the
/// process): its owner keeps it locked, under a name of its own.
#[derive(Debug)]
pub struct SharedWords {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: it is a shared slice of atomics, and they may be used from any thread.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Makes the file `path` with `words` words of 0.
    ///
    /// # Errors
    /// The system's error; for an existing file, which is not changed, `AlreadyExists`.
    pub fn create(path: &Path, words: usize) -> io::Result<SharedWords> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let len = byte_len(words)?;
        let made = reserve(&file, len as u64).and_then(|()| SharedWords::map(&file, words));
        if made.is_err() {
            // A later start must not find an incomplete file.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Maps the words of the file `path`; a partial last word is ignored.
    ///
    /// # Errors
    /// The system's error; `InvalidData` for a file without a word.
    pub fn open(path: &Path) -> io::Result<SharedWords> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let words = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX) / WORD;
        if words == 0 {
            // Such as a file whose process was killed while it made it.
            return Err(io::ErrorKind::InvalidData.into());
        }
        // In a sparse file, a store would fail later instead of this call.
        reserve(&file, (words * WORD) as u64)?;
        SharedWords::map(&file, words)
    }

    /// Words without a name: for stores that end with the process, and for tests.
    ///
    /// # Errors
    /// There is no memory.
    pub fn anonymous(words: usize) -> io::Result<SharedWords> {
        let (len, prot) = (byte_len(words)?, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing else.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::SHARED)? };
        SharedWords::of(base, words)
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `base` is page-aligned memory of `words` words that stays mapped as long as
        // `self`; every bit pattern is an AtomicU64, and other processes that map the file also
        // change it through atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    fn map(file: &File, words: usize) -> io::Result<SharedWords> {
        let (len, prot) = (byte_len(words)?, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        let base =
            unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file.as_fd(), 0)? };
        SharedWords::of(base, words)
    }

    fn of(base: *mut core::ffi::c_void, words: usize) -> io::Result<SharedWords> {
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(SharedWords { base, words })
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and every slice of it borrowed `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.words * WORD) };
    }
}

impl std::ops::Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        self.words()
    }
}

fn byte_len(words: usize) -> io::Result<usize> {
    match words.checked_mul(WORD) {
        Some(0) | None => Err(io::ErrorKind::InvalidData.into()),
        Some(len) => Ok(len),
    }
}

/// Gives the file its length and its space.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, len)) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => write_out(file, len),
        Err(error) => Err(error.into()),
    }
}

/// If the file system cannot reserve: rewrites the present content, page by page.
fn write_out(file: &File, len: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    if file.metadata()?.len() < len {
        file.set_len(len)?;
    }
    let mut page = [0; 4096];
    let mut at = 0;
    while at < len {
        let count = page.len().min((len - at) as usize);
        file.read_exact_at(&mut page[..count], at)?;
        file.write_all_at(&page[..count], at)?;
        at += count as u64;
    }
    Ok(())
}
