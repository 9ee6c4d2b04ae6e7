//! Making the files that snapshots keep their exceptions in.
//!
//! Owns that nothing is overwritten unasked, and that a new file and its name are durable before
//! anyone relies on them.

use std::fs::{File, OpenOptions};
use std::path::Path;

use super::error::DeviceError;
use crate::cow::Geometry;
use crate::cow::open::create;
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

/// Makes a store of `size` bytes at `path`, sparse. True where it was made.
pub(super) fn make_store(
    path: &Path,
    chunk: ChunkSize,
    size: u64,
    existing: Existing,
) -> Result<bool, DeviceError> {
    let what = |verb: &str| format!("cannot {verb} the store {}", path.display());
    if let Ok(meta) = std::fs::metadata(path) {
        let device = !meta.is_file();
        match existing {
            Existing::Used if device || meta.len() > 0 => return Ok(false),
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
        create(&info, Geometry::of_len(chunk, size))?;
        sync_name(path)
    });
    if made.is_err() {
        // Ours: it was empty, or not there.
        let _ = std::fs::remove_file(path);
    }
    made.map(|()| true)
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

/// Makes the name of a new file durable.
pub(super) fn sync_name(path: &Path) -> Result<(), DeviceError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let what = format!("cannot make {} durable in its directory", path.display());
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(DeviceError::io(what))
}
