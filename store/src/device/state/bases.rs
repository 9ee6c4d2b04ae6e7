//! The last known size and time of the files below guests' own disks.
//!
//! Owns which files these are, and that their recorded values are durable in the files, too: a
//! start refuses a file that differs. Never knows where the values are kept.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::build::Active;
use crate::io::durable::sync_file;
use crate::io::{FileId, FileInfo, Files};
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
type Look = (u64, i64);

/// The files below a guest's own disk that this process does not write; a merge writes them. With
/// `settled`, also files that were opened for writing and are no longer written: their values are
/// made durable, unless they are `known` already. Files `written` by jobs are excluded. `seen`
/// caches the results.
pub(super) fn bases(
    files: &Files,
    active: &Active,
    (settled, known): (bool, &[BaseState]),
    written: impl Fn(&Path) -> bool,
    seen: &mut BTreeMap<FileId, Option<Look>>,
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
            let look = seen.entry(medium.file).or_insert_with(|| what_it_is(&info, &medium, known));
            if let Some((size, modified)) = *look {
                let (path, store) = (info.path.clone(), snap.live.store.name().to_owned());
                bases.push(BaseState { path, store, size, modified });
            }
        }
    }
    bases
}

/// The size and time of the file of `medium`; durable if this process wrote it. A guest's flush
/// does not sync the time (fdatasync), and the state may be on another file system: after a power
/// cut, the file would seem to have been changed by another program.
fn what_it_is(info: &FileInfo, medium: &Medium, known: &[BaseState]) -> Option<Look> {
    let look = look_at(info)?;
    let is_known = |base: &BaseState| base.path == info.path && (base.size, base.modified) == look;
    if !info.writable || info.block_device || known.iter().any(is_known) {
        return Some(look);
    }
    if let Err(error) = sync_file(&info.file) {
        tracing::error!("cannot sync {}: {error}", info.path.display());
        // The error is reported to no other caller.
        medium.sync_failed();
    }
    look_at(info)
}

fn look_at(info: &FileInfo) -> Option<Look> {
    let meta = info.file.metadata().ok()?;
    Some((meta.len(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec()))
}
