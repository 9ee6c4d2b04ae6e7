//! The files of a process: opened once, and named by a small number in actions.
//!
//! Owns the descriptors, the abilities of each file (alignment of direct I/O, whether io_uring
//! serves it without blocking), its identity, and reserving space in it when it is opened. Never
//! knows the content of a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::retry_on_intr;

use super::ahead::Ahead;

#[cfg(test)]
mod tests;

/// Names an open file (or block device) in actions. Never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

impl FileId {
    /// In actions without a file ([`IoOp::Clear`](super::IoOp::Clear)).
    pub const NONE: FileId = FileId(u32::MAX);
}

/// Device and inode of a file, or the device number of a block device: two paths with the same
/// identity are one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Device of the file; for a block device its own number.
    pub dev: u64,
    /// Inode; 0 for a block device.
    pub ino: u64,
}

impl Identity {
    /// The file that `path` names, through symbolic links, without opening it.
    ///
    /// # Errors
    /// The system's error.
    pub fn of_path(path: &Path) -> io::Result<Identity> {
        Ok(Identity::of(&std::fs::metadata(path)?))
    }

    fn of(meta: &std::fs::Metadata) -> Identity {
        if meta.file_type().is_block_device() {
            Identity { dev: meta.rdev(), ino: 0 }
        } else {
            Identity { dev: meta.dev(), ino: meta.ino() }
        }
    }
}

/// The real path of `path`, so that files kept beside a file are found under each of its names.
/// `path` itself if it is not a symbolic link, or leads nowhere yet.
pub fn real_path(path: &Path) -> PathBuf {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => path.canonicalize().unwrap_or_else(|_| path.into()),
        _ => path.into(),
    }
}

/// The access that a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpenMode {
    /// Only reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// Why a file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot open {} for {}: {source}{}", path.display(), match mode { OpenMode::ReadOnly => "reading", OpenMode::ReadWrite => "reading and writing" }, what_to_do(source, *mode))]
    Open {
        /// The file.
        path: PathBuf,
        /// The requested access.
        mode: OpenMode,
        /// Why.
        source: io::Error,
    },
    /// A directory, a socket, a pipe or the like.
    #[error("{} is neither a regular file nor a block device; name one of these", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
}

/// What helps against the common reasons.
fn what_to_do(source: &io::Error, mode: OpenMode) -> &'static str {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match (source.kind(), mode) {
        (NotFound | NotADirectory, _) => "; name a file that is there",
        (PermissionDenied, OpenMode::ReadOnly) => "; let this user read it",
        (PermissionDenied, OpenMode::ReadWrite) => "; let this user read and write it",
        _ => "",
    }
}

/// An open file and its known properties. Immutable, except for its length and its space on disk.
#[derive(Debug)]
pub struct FileInfo {
    /// The descriptor all I/O goes through.
    pub file: File,
    /// The path by which it was named.
    pub path: PathBuf,
    /// The identity of the file.
    pub identity: Identity,
    /// Length in bytes when it was opened.
    pub len: u64,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether it was opened with O_DIRECT, and the alignment in bytes that offset, length and
    /// memory then need (otherwise 1).
    pub align: u32,
    /// Whether the page cache is bypassed (O_DIRECT).
    pub direct: bool,
    /// In addition to a direct `file` that needs more than sector alignment, or whose last sector
    /// is partial: the same file through the page cache, for unaligned ranges.
    pub buffered: Option<File>,
    /// A block device, not a regular file.
    pub block_device: bool,
    /// Whether io_uring carries out I/O inline; files of tmpfs, for example, are passed to kernel
    /// threads, and plain system calls are faster.
    pub uring: bool,
    /// How far space in it is reserved before it is written, and which writes are allowed.
    pub ahead: Ahead,
    /// Its least length while it is in use as a store; 0 if it may become shorter.
    pub least: AtomicU64,
}

impl FileInfo {
    /// Opens `path`; `direct` asks for O_DIRECT, which is omitted if the file system does not
    /// support it.
    ///
    /// # Errors
    /// The system's error, or [`FileError::Kind`] for a file without bytes at offsets.
    pub fn open(path: &Path, mode: OpenMode, direct: bool) -> Result<FileInfo, FileError> {
        let fail = |source| FileError::Open { path: path.to_owned(), mode, source };
        // Opening a pipe would block, so the kind comes first.
        let meta = std::fs::metadata(path).map_err(fail)?;
        let block_device = meta.file_type().is_block_device();
        if !block_device && !meta.is_file() {
            return Err(FileError::Kind { path: path.to_owned() });
        }
        let file = open_with(path, mode, 0).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let identity = Identity::of(&meta);
        let len = if block_device { length(&file, true).map_err(fail)? } else { meta.len() };
        let tmpfs = is_tmpfs(&file);
        let mut info = FileInfo {
            file,
            path: path.to_owned(),
            identity,
            len,
            writable: mode == OpenMode::ReadWrite,
            align: 1,
            direct: false,
            buffered: None,
            block_device,
            uring: !tmpfs,
            ahead: Ahead::default(),
            least: AtomicU64::new(0),
        };
        if direct && !tmpfs {
            info.make_direct(mode);
        }
        Ok(info)
    }

    /// Its length in bytes now.
    ///
    /// # Errors
    /// The system's error.
    pub fn current_len(&self) -> io::Result<u64> {
        length(&self.file, self.block_device)
    }

    /// From now on it is never shorter than `len`: see [`FileInfo::is_cut_short`].
    pub fn keeps(&self, len: u64) {
        if !self.block_device {
            self.least.store(len, Ordering::Relaxed);
        }
    }

    /// Whether another program made it shorter than its least length: the data after its end is
    /// lost, and a write there turns the rest into a hole. Reported once: the caller stops relying
    /// on the file, and records that in it. Takes a system call, for a file with a least length.
    pub fn is_cut_short(&self) -> bool {
        let least = self.least.load(Ordering::Relaxed);
        let len = if least == 0 { Ok(0) } else { self.current_len() };
        let cut = len.as_ref().is_ok_and(|len| *len < least);
        if cut {
            self.least.store(0, Ordering::Relaxed);
            tracing::error!(
                "{} is shorter than it was ({} bytes, not {least}), and what lay after its end is lost; \
                 restore it from a backup",
                self.path.display(),
                len.unwrap_or_default()
            );
        }
        cut
    }

    /// Reserves, as far as there is space, the parts that must have it before a write that ends at
    /// `end`. Waits for all I/O in flight on the file: for callers that have none.
    pub fn make_room(&self, end: u64) {
        while let Some(part) = self.ahead.lacks(end) {
            let (keep, len) = (FallocateFlags::KEEP_SIZE, part.end - part.start);
            match self.current_len() {
                Ok(in_all) if part.end <= in_all => {}
                Ok(in_all) => return self.ahead.ends(in_all, &part),
                Err(_) => return,
            }
            if retry_on_intr(|| fallocate(&self.file, keep, part.start, len)).is_err() {
                return;
            }
            self.ahead.has(&part);
        }
    }

    /// Bytes in a logical block of the device, for a block device; 512 for a file.
    pub fn logical_block(&self) -> u32 {
        if !self.block_device {
            return 512;
        }
        rustix::fs::ioctl_blksszget(&self.file).unwrap_or(512)
    }

    /// Exchanges the descriptor for one without the page cache, if that works.
    fn make_direct(&mut self, mode: OpenMode) {
        let Ok(file) = open_with(&self.path, mode, libc::O_DIRECT) else { return };
        if file.metadata().map(|meta| Identity::of(&meta)).ok() != Some(self.identity) {
            return;
        }
        let Some(align) = stated_alignment(&file).or_else(|| tried_alignment(&file)) else {
            return;
        };
        let align = align.max(self.logical_block());
        let buffered = std::mem::replace(&mut self.file, file);
        if align > 512 || !self.len.is_multiple_of(u64::from(align)) {
            self.buffered = Some(buffered);
        }
        self.align = align;
        self.direct = true;
    }
}

/// All open files of the process; shared by control and workers. Workers copy what they need
/// when they take a table, and look nothing up here while serving.
#[derive(Debug, Default)]
pub struct Files {
    open: RwLock<Vec<Option<Arc<FileInfo>>>>,
}

impl Files {
    /// Opens `path` and adds it; see [`FileInfo::open`].
    ///
    /// # Errors
    /// As [`FileInfo::open`].
    pub fn open(&self, path: &Path, mode: OpenMode, direct: bool) -> Result<FileId, FileError> {
        FileInfo::open(path, mode, direct).map(|info| self.add(info))
    }

    /// Adds an open file.
    pub fn add(&self, info: FileInfo) -> FileId {
        let mut open = self.write();
        open.push(Some(Arc::new(info)));
        FileId(open.len() as u32 - 1)
    }

    /// The file called `id`, if it is still open.
    pub fn get(&self, id: FileId) -> Option<Arc<FileInfo>> {
        self.read().get(id.0 as usize)?.clone()
    }

    /// The length in bytes that the file called `id` has now.
    ///
    /// # Errors
    /// The system's error; `NotFound` if no such file is open.
    pub fn current_len(&self, id: FileId) -> io::Result<u64> {
        self.get(id).ok_or(io::ErrorKind::NotFound)?.current_len()
    }

    /// Forgets the file; it is closed when its last user has released it.
    pub fn remove(&self, id: FileId) {
        if let Some(slot) = self.write().get_mut(id.0 as usize) {
            *slot = None;
        }
    }

    // A list of descriptors is consistent between any two statements: a panic elsewhere does no
    // harm.
    fn read(&self) -> RwLockReadGuard<'_, Vec<Option<Arc<FileInfo>>>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Option<Arc<FileInfo>>>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_with(path: &Path, mode: OpenMode, flags: i32) -> io::Result<File> {
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(mode == OpenMode::ReadWrite).custom_flags(flags).open(path)
    };
    // A guest's reads need no time stamps; only a file's owner may leave them out.
    match open(flags | libc::O_NOATIME) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(flags),
        opened => opened,
    }
}

fn length(file: &File, block_device: bool) -> io::Result<u64> {
    use rustix::fs::{SeekFrom, seek};
    if block_device {
        // The end of a block device is its size; no I/O here depends on the file position.
        return Ok(seek(file, SeekFrom::End(0))?);
    }
    Ok(file.metadata()?.len())
}

fn is_tmpfs(file: &File) -> bool {
    /// As in linux/magic.h.
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    rustix::fs::fstatfs(file).is_ok_and(|fs| {
        matches!(fs.f_type as u64 & 0xffff_ffff, TMPFS_MAGIC | RAMFS_MAGIC | HUGETLBFS_MAGIC)
    })
}

/// The alignment that the kernel states (STATX_DIOALIGN, Linux 6.1): the stricter of memory's and
/// the file's.
fn stated_alignment(file: &File) -> Option<u32> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let wanted = StatxFlags::DIOALIGN;
    let state = statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    if state.stx_mask & wanted.bits() == 0 || state.stx_dio_offset_align == 0 {
        return None;
    }
    Some(state.stx_dio_mem_align.max(state.stx_dio_offset_align))
}

/// The smallest alignment with which a direct read succeeds; none if there is no such alignment.
fn tried_alignment(file: &File) -> Option<u32> {
    use std::os::unix::fs::FileExt;
    let space = vec![0u8; 3 * 4096];
    let base = space.as_ptr().align_offset(4096);
    let mut space = space;
    // Memory that is aligned to `align` and to nothing more, so that the trial says enough.
    [512usize, 4096].into_iter().find_map(|align| {
        let start = base + align % 4096;
        file.read_at(&mut space[start..start + align], align as u64).ok().map(|_| align as u32)
    })
}
