//! The files of a process: opened once, named by a small number in actions.
//!
//! Owns the descriptors, what each file can do (alignment of direct I/O, whether io_uring
//! serves it without blocking) and its identity. Never knows what is stored in a file.

use std::fs::File;
use std::sync::{Arc, RwLock};

/// Names an open file (or block device) in actions. Never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// Device and inode of a file, or the device number of a block device: two paths with the same
/// identity are one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Device the file lies on; for a block device its own number.
    pub dev: u64,
    /// Inode; 0 for a block device.
    pub ino: u64,
}

/// An open file and what is known about it. Immutable, but for its length on disk.
#[derive(Debug)]
pub struct FileInfo {
    /// The descriptor all I/O goes through.
    pub file: File,
    /// As it was named.
    pub path: std::path::PathBuf,
    /// Which file it is.
    pub identity: Identity,
    /// Length in bytes when it was opened.
    pub len: u64,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether it was opened with O_DIRECT, and the alignment in bytes that offset, length and
    /// memory then need (1 where it was not).
    pub align: u32,
    /// Whether the page cache is out of the way (O_DIRECT).
    pub direct: bool,
    /// A block device, not a regular file.
    pub block_device: bool,
    /// Whether io_uring carries I/O out in line; files of tmpfs, for one, are handed to kernel
    /// threads, and plain system calls are faster.
    pub uring: bool,
}

/// All open files of the process; shared by control and workers. Workers copy what they need
/// when they take a table, and look nothing up here while serving.
#[derive(Debug, Default)]
pub struct Files {
    open: RwLock<Vec<Option<Arc<FileInfo>>>>,
}

impl Files {
    /// Adds an open file.
    pub fn add(&self, info: FileInfo) -> FileId {
        let mut open = self.open.write().expect("files lock poisoned");
        open.push(Some(Arc::new(info)));
        FileId(open.len() as u32 - 1)
    }

    /// The file called `id`, if it is still open.
    pub fn get(&self, id: FileId) -> Option<Arc<FileInfo>> {
        self.open.read().expect("files lock poisoned").get(id.0 as usize)?.clone()
    }

    /// Forgets the file; it closes when its last user has let go of it.
    pub fn remove(&self, id: FileId) {
        if let Some(slot) = self.open.write().expect("files lock poisoned").get_mut(id.0 as usize) {
            *slot = None;
        }
    }
}
