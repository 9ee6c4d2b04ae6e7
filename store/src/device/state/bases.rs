//! The last known size and time of the files below guests' own disks.
//!
//! Owns which files these are, and that their recorded values are durable in the files, too: a
//! start refuses a file that differs. Never knows where the values are kept.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::build::Active;
use crate::device::core::Flusher;
use crate::io::durable::sync_file;
use crate::io::{FileInfo, Files};
use crate::lines::TargetSpec;
use crate::target::Medium;

/// A file that is only read, as it was at its last use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BaseState {
    /// Its path.
    pub(super) path: PathBuf,
    /// The store over it.
    pub(super) store: String,
    /// Bytes.
    pub(super) size: u64,
    /// Last change, in nanoseconds since 1970.
    pub(super) modified: i64,
}

/// A file's length in bytes, and its last change, in nanoseconds since 1970.
pub(super) type Look = (u64, i64);

/// The files below a guest's own disk that this process does not write, as `look` finds them; a merge
/// writes them. With `settled`, also files that were opened for writing and are no longer written.
/// Files `written` by jobs are excluded.
pub(super) fn bases(
    files: &Files,
    active: &Active,
    settled: bool,
    written: impl Fn(&Path) -> bool,
    mut look: impl FnMut(&FileInfo, &Arc<Medium>) -> Option<Look>,
) -> Vec<BaseState> {
    let mut bases = Vec::new();
    for (number, snap) in &active.snaps {
        if matches!(active.lines[*number].target, TargetSpec::Merge(_)) {
            continue;
        }
        let info_of = |medium: &Arc<Medium>| Some((medium.clone(), files.get(medium.file)?));
        let frozen =
            |info: &FileInfo| !info.writable || (settled && snap.live.store.is_guest_disk());
        for (medium, info) in snap.origin.media().filter_map(info_of) {
            if !frozen(&info) || written(&info.path) {
                continue;
            }
            if let Some((size, modified)) = look(&info, &medium) {
                let (path, store) = (info.path.clone(), snap.live.store.name().to_owned());
                bases.push(BaseState { path, store, size, modified });
            }
        }
    }
    bases
}

/// The size and time of the file of `medium`; durable if this process wrote it, unless they are
/// `known` already. A guest's flush does not sync the time (fdatasync), and the state may be on
/// another file system: after a power cut, the file would seem to have been changed by another
/// program.
pub(super) fn what_it_is(
    info: &FileInfo,
    medium: &Arc<Medium>,
    known: &[BaseState],
    flusher: &dyn Flusher,
) -> Option<Look> {
    let look = look_at(info)?;
    let is_known = |base: &BaseState| base.path == info.path && (base.size, base.modified) == look;
    if !info.writable || info.block_device || known.iter().any(is_known) {
        return Some(look);
    }
    // A guest may be flushing it, and must be told of any data that is lost. When that is durable,
    // only the time is left, and nobody writes the file.
    if flusher.sync(medium)
        && let Err(error) = sync_file(&info.file)
    {
        // The error is reported to no other caller.
        medium.sync_failed();
        tracing::error!("cannot sync {}: {error}", info.path.display());
    }
    look_at(info)
}

fn look_at(info: &FileInfo) -> Option<Look> {
    let meta = info.file.metadata().ok()?;
    Some((meta.len(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec()))
}
