//! Making the files that snapshots keep their exceptions in.
//!
//! Owns that nothing is overwritten unasked, and that a new file and its name are durable before
//! anyone relies on them.

use std::fs::{File, OpenOptions};
use std::path::Path;

use super::error::DeviceError;
use crate::cow::Geometry;
use crate::cow::open::create;
use crate::cow::owed::Owed;
use crate::io::durable::{sync_file, sync_name};
use crate::io::{FileInfo, OpenMode};
use crate::units::ChunkSize;

/// What may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// Nothing, or an empty file.
    Refused,
    /// A store, which is used as it is.
    Used,
}

/// Bytes of a store in which every chunk of a device of `len` bytes finds room.
pub(super) fn full_size(chunk: ChunkSize, len: u64) -> u64 {
    let geometry = Geometry::of_len(chunk, u64::MAX);
    // One chunk more than the data needs: the last one that would end an area is refused.
    (geometry.chunks_needed(chunk.count_for(len)) + 1) * chunk.bytes()
}

/// What was made of a file, so that it can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// Nothing: it is used as it was.
    Nothing,
    /// The file.
    File,
    /// What is in it: the file was there, and empty.
    Content,
}

impl Made {
    /// Leaves `path` as it was before.
    pub(super) fn undo(self, path: &Path) {
        // What cannot be undone is in the way of the next try, which says so.
        let _ = match self {
            Made::Nothing => Ok(()),
            Made::File => std::fs::remove_file(path),
            Made::Content => OpenOptions::new().write(true).truncate(true).open(path).map(drop),
        };
    }
}

/// Makes a store of `size` bytes at `path`, sparse.
pub(super) fn make_store(
    path: &Path,
    chunk: ChunkSize,
    size: u64,
    existing: Existing,
) -> Result<Made, DeviceError> {
    let what = |verb: &str| format!("cannot {verb} the store {}", path.display());
    let mut makes = Made::File;
    if let Ok(meta) = std::fs::metadata(path) {
        makes = Made::Content;
        let device = !meta.is_file();
        match existing {
            Existing::Used if device || meta.len() > 0 => return Ok(Made::Nothing),
            Existing::Refused if device || meta.len() > 0 => {
                return Err(DeviceError::refused(format!(
                    "{} is there and not empty; choose another file, or 'mode': 'existing' to use \
                     the store in it",
                    path.display()
                )));
            }
            _ => {}
        }
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path);
    let file = file.map_err(DeviceError::io(what("make")))?;
    let made = file.set_len(size).map_err(DeviceError::io(what("size"))).and_then(|()| {
        let info = FileInfo::open(path, OpenMode::ReadWrite, false)?;
        make_empty(&info, Geometry::of_len(chunk, size))
    });
    if made.is_err() {
        makes.undo(path);
    }
    made.map(|()| makes)
}

/// Makes a file of `size` bytes for a transient store, of which only the size matters: that it has
/// for good, since a start looks for the file that its device names.
pub(super) fn make_transient(path: &Path, size: u64) -> Result<Made, DeviceError> {
    let makes = match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() > 0 => {
            return Err(DeviceError::refused(format!(
                "{} is there and not empty; choose another file",
                path.display()
            )));
        }
        Ok(_) => Made::Content,
        Err(_) => Made::File,
    };
    let what = format!("cannot make the store {}", path.display());
    let made = File::create(path)
        .and_then(|file| file.set_len(size).and_then(|()| sync_file(&file)))
        .map_err(DeviceError::io(what))
        .and_then(|()| name_it(path));
    made.inspect_err(|_| makes.undo(path)).map(|()| makes)
}

/// Makes the store of an overlay over `len` bytes where there is none yet, as large as could be
/// needed; a store that is there is left alone.
///
/// # Errors
/// What the system says.
pub fn make_overlay_store(path: &Path, len: u64) -> Result<(), DeviceError> {
    let chunk = ChunkSize::TOOLS;
    make_store(path, chunk, full_size(chunk, len), Existing::Used).map(|_| ())
}

/// Makes `file`, which is as long as it is to be, an empty store, to which nothing is owed: it, its
/// length and its name are durable then.
///
/// # Errors
/// A store of fewer than two chunks, and what the system says.
pub fn make_empty(file: &FileInfo, geometry: Geometry) -> Result<(), DeviceError> {
    Owed::forget(file)?;
    create(file, geometry)?;
    if file.block_device { Ok(()) } else { name_it(&file.path) }
}

fn name_it(path: &Path) -> Result<(), DeviceError> {
    let what = format!("cannot make {} durable in its directory", path.display());
    sync_name(path).map_err(DeviceError::io(what))
}
