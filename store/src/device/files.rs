//! Making the files of stores.
//!
//! Owns the rules that nothing is overwritten unasked, which files count as empty, and that a new
//! file and its name are durable before any code relies on them. Keeps I8: a store is made, and
//! unmade, under the lock of its owner, in what is found empty under that lock.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::DeviceError;
use crate::cow::Geometry;
use crate::cow::open::{create, inspect, is_none};
use crate::cow::owed::Owed;
use crate::io::durable::{sync_file, sync_name};
use crate::io::storage::{SLICE, Storage};
use crate::io::{FileError, FileInfo, Identity, Lock, OpenMode, real_path};
use crate::units::ChunkSize;

#[cfg(test)]
mod tests;

/// Bytes of a block device that must be zero for a new store: as many as LVM clears.
const CLEARED: u64 = 4096;

/// Bytes of a regular file that must be zero for a new store: the first superblock of any usual file
/// system begins before (btrfs at 64 KiB, ISO 9660 at 32 KiB, ZFS at 16 KiB).
const SUPERBLOCKS: u64 = 128 << 10;

/// The smallest store that holds a change: header, area and one chunk. Smaller ones are used as they
/// are, but not made.
const USEFUL_CHUNKS: u64 = 3;

/// How long to wait for a lock on an empty file: of two processes that make a store in it, one may
/// let the other go first.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// Refuses to make a store of `bytes` bytes at `path` that has no room for any change.
///
/// # Errors
/// It is too small.
pub fn refuse_useless(path: &Path, geometry: Geometry, bytes: u64) -> Result<(), DeviceError> {
    if geometry.device_chunks >= USEFUL_CHUNKS {
        return Ok(());
    }
    let chunk = geometry.chunk.bytes();
    Err(DeviceError::refused(format!(
        "{} would have {bytes} bytes, and a store with chunks of {chunk} bytes needs at least {}",
        path.display(),
        USEFUL_CHUNKS * chunk
    )))
}

/// What may exist already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// Nothing, or an empty file.
    Refused,
    /// A store, which is used as it is.
    Used,
    /// The same, and it must be there.
    Required,
}

/// The change to a file, so that it can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// Nothing: an existing file is used as it was.
    Nothing,
    /// The file.
    File(Identity),
    /// Its content: the file existed, and was empty.
    Content(Identity),
}

impl Made {
    /// Leaves `path` as it was before, unless it is another file by now, somebody uses it, or
    /// somebody has used it: what was made may have become another server's store.
    pub(super) fn undo(self, path: &Path) {
        let (Made::File(identity) | Made::Content(identity)) = self else { return };
        let Ok(info) = FileInfo::open(path, OpenMode::ReadWrite, false) else { return };
        let Ok(_lock) = Lock::exclusive(&info, None) else { return };
        if info.identity == identity && !is_used(&info) {
            self.take_back(&info);
        }
    }

    /// The same for a file that was locked all the time.
    fn take_back(self, info: &FileInfo) {
        // A leftover that cannot be removed prevents the next attempt, which reports it.
        let _ = match self {
            Made::Nothing => Ok(()),
            Made::File(_) if !is_at(info) => Ok(()),
            // Not a link to it: the link existed before.
            Made::File(_) => std::fs::remove_file(real_path(&info.path)),
            Made::Content(_) => info.file.set_len(0),
        };
    }
}

/// Store files that were made, to be undone together.
#[derive(Debug, Default)]
pub(super) struct MadeStores(Vec<(Made, PathBuf)>);

impl MadeStores {
    pub(super) fn push(&mut self, made: Made, path: &Path) {
        self.0.push((made, path.to_owned()));
    }

    pub(super) fn extend(&mut self, other: MadeStores) {
        self.0.extend(other.0);
    }

    /// The latest first.
    pub(super) fn undo(&mut self) {
        while let Some((made, path)) = self.0.pop() {
            made.undo(&path);
        }
    }
}

/// Whether the store in `info` has any change, or is owed one.
fn is_used(info: &FileInfo) -> bool {
    let is_changed = match inspect(info) {
        Ok(store) => !store.valid || store.count() > 0,
        Err(_) => !is_none(info),
    };
    is_changed || Owed::most(info) > 0
}

/// Whether the path by which `info` was opened still leads to it.
fn is_at(info: &FileInfo) -> bool {
    Identity::of_path(&info.path).is_ok_and(|identity| identity == info.identity)
}

/// An empty file, locked: nobody else can make a store in it, or serve one.
struct Empty {
    info: FileInfo,
    _lock: Lock,
}

impl Empty {
    /// What is at `path`, or a new file; none if by now it is not empty.
    fn at(path: &Path) -> Result<Option<Empty>, DeviceError> {
        #[cfg(test)]
        tests::looked();
        let what = |verb: &str| format!("cannot {verb} the store {}", path.display());
        let mut options = OpenOptions::new();
        let made = options.read(true).write(true).create(true).truncate(false).open(path);
        made.map_err(DeviceError::io(what("make")))?;
        let info = FileInfo::open(path, OpenMode::ReadWrite, false)?;
        let lock = Lock::exclusive(&info, Some(LOCK_WAIT))?;
        // Looked at again: others may have used it until it was locked.
        if !is_at(&info) {
            return Err(DeviceError::refused(format!(
                "{} was replaced by another file just now; try again if that is what is to be used",
                path.display()
            )));
        }
        let len = info.current_len().map_err(DeviceError::io(what("look at")))?;
        Ok((len == 0).then_some(Empty { info, _lock: lock }))
    }
}

/// Makes a sparse store of `size` bytes at `path`.
pub(super) fn make_store(
    path: &Path,
    chunk: ChunkSize,
    size: u64,
    existing: Existing,
) -> Result<Made, DeviceError> {
    refuse_unfit(path)?;
    let is_there = match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() > 0 => return use_store(path, chunk, existing),
        Ok(_) => true,
        Err(_) if existing == Existing::Required => return Err(no_such_store(path)),
        Err(_) => false,
    };
    refuse_useless(path, Geometry::of_len(chunk, size), size)?;
    let Some(empty) = Empty::at(path)? else { return use_store(path, chunk, existing) };
    let what = format!("cannot size the store {}", path.display());
    make_in(&empty, is_there, |info| {
        set_len(&info.file, size).map_err(DeviceError::io(what))?;
        make_empty(info, Geometry::of_len(chunk, size))
    })
}

/// Fills `empty` by `make`, or leaves it as it was: a file that was there, or none.
fn make_in(
    empty: &Empty,
    is_there: bool,
    make: impl FnOnce(&FileInfo) -> Result<(), DeviceError>,
) -> Result<Made, DeviceError> {
    let info = &empty.info;
    let makes = if is_there { Made::Content } else { Made::File }(info.identity);
    make(info).inspect_err(|_| makes.take_back(info)).map(|()| makes)
}

/// Uses what is at `path`, and is not empty.
fn use_store(path: &Path, chunk: ChunkSize, existing: Existing) -> Result<Made, DeviceError> {
    if existing == Existing::Refused {
        return Err(DeviceError::refused(format!(
            "{} is there and not empty; choose another file, or 'mode': 'existing' to use the \
             store in it",
            path.display()
        )));
    }
    refuse_data(path, chunk).map(|()| Made::Nothing)
}

/// Refuses to make a store at an impossible path.
fn refuse_unfit(path: &Path) -> Result<(), DeviceError> {
    if path.as_os_str().is_empty() {
        return Err(DeviceError::refused("the name of the store's file is empty; give it one"));
    }
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() && !meta.file_type().is_block_device() => {
            Err(FileError::Kind { path: path.to_owned() }.into())
        }
        _ => Ok(()),
    }
}

/// A length that no file can have is a system error, too.
fn set_len(file: &File, size: u64) -> io::Result<()> {
    i64::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
    file.set_len(size)
}

/// Refuses a file that begins with zeroes but is not meant for a new store: an image of a file
/// system or of partitions, for example, whose header comes later. (A table line accepts it, as
/// the kernel does.)
fn refuse_data(path: &Path, chunk: ChunkSize) -> Result<(), DeviceError> {
    let what = || format!("cannot look at {}", path.display());
    let info = FileInfo::open(path, OpenMode::ReadOnly, false)?;
    // A new store reads nothing after its first two chunks. More of a file is looked at for the sake of
    // what else it may be; a device is often one that was used before, and need not be cleared.
    let looked_at = if info.block_device { CLEARED } else { (2 * chunk.bytes()).max(SUPERBLOCKS) };
    let end = looked_at.min(info.len);
    match data_within(&info, end).map_err(DeviceError::io(what()))? {
        None | Some(0..4) => Ok(()),
        Some(at) => Err(DeviceError::refused(format!(
            "{} begins with zeroes but holds data at byte {at}: it is no store; name another file, \
             or overwrite its first {end} bytes with zeroes if what it holds is to be lost",
            path.display()
        ))),
    }
}

/// The first byte of `info` before `end` that is not zero.
fn data_within(info: &FileInfo, end: u64) -> io::Result<Option<u64>> {
    let mut slice = vec![0; SLICE.min(end as usize)];
    let mut at = 0;
    while at < end {
        at = at.max(info.next_data(at)?);
        let count = SLICE.min(end.saturating_sub(at) as usize);
        info.read_at(&mut slice[..count], at)?;
        if let Some(place) = slice[..count].iter().position(|&byte| byte != 0) {
            return Ok(Some(at + place as u64));
        }
        at += count as u64;
    }
    Ok(None)
}

/// The error if nothing exists at `path`, although it was said to.
pub(super) fn no_such_store(path: &Path) -> DeviceError {
    DeviceError::refused(format!(
        "there is no store {}, and 'mode' is 'existing'; leave that out to make one",
        path.display()
    ))
}

/// Makes a file of `size` bytes for a transient store. Only its size matters, which is made
/// durable, since a start looks for the device's file.
pub(super) fn make_transient(path: &Path, size: u64) -> Result<Made, DeviceError> {
    refuse_unfit(path)?;
    let there = std::fs::metadata(path);
    let is_empty = |meta: &Metadata| meta.is_file() && meta.len() == 0;
    let empty = if there.as_ref().map_or(true, is_empty) { Empty::at(path)? } else { None };
    let empty = empty.ok_or_else(|| {
        let name = path.display();
        DeviceError::refused(format!("{name} is there and not empty; choose another file"))
    })?;
    let what = format!("cannot make the store {}", path.display());
    make_in(&empty, there.is_ok(), |info| {
        let sized = set_len(&info.file, size).and_then(|()| sync_file(&info.file));
        sized.map_err(DeviceError::io(what))?;
        name_it(path)
    })
}

/// Makes the store of an overlay over `len` bytes if there is none, with the greatest size that can
/// be needed; an existing store is left unchanged.
///
/// # Errors
/// A file that contains other data, or the system's error.
pub fn make_overlay_store(path: &Path, len: u64) -> Result<(), DeviceError> {
    let chunk = ChunkSize::TOOLS;
    make_store(path, chunk, Geometry::full_len(chunk, len), Existing::Used).map(|_| ())
}

/// Makes `file`, which has its final length, an empty store that owes nothing; the file, its length
/// and its name are durable then.
///
/// # Errors
/// A store of fewer than two chunks, or the system's error.
pub fn make_empty(file: &FileInfo, geometry: Geometry) -> Result<(), DeviceError> {
    Owed::forget(file)?;
    create(file, geometry)?;
    if file.block_device { Ok(()) } else { name_it(&file.path) }
}

fn name_it(path: &Path) -> Result<(), DeviceError> {
    let what = format!("cannot make {} durable in its directory", path.display());
    // Through a dangling link, a file is made at the link's target.
    sync_name(&real_path(path)).map_err(DeviceError::io(what))
}
