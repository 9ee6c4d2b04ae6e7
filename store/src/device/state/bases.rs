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

/// A file that is only read, as it was when it was used last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct BaseState {
    /// Where.
    pub(super) path: PathBuf,
    /// The store over it.
    pub(super) store: String,
    /// Bytes.
    pub(super) size: u64,
    /// Last change, in nanoseconds since 1970.
    pub(super) modified: i64,
}

/// A file's length in bytes, and when it was changed last, in nanoseconds since 1970.
type Look = (u64, i64);

/// The files below a guest's own disk that nothing of this process writes; a merge writes them.
/// With `settled`, also those that were opened for writing, and are not written any more: what these
/// are like is made durable, unless it is `known` already. Those `written` by jobs are none. `seen` are
/// those that were looked at.
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

/// What the file of `medium` is like; durable where it was written by this process. The syncs of a
/// guest's flush leave out when it was changed (fdatasync), and the state may lie on another file
/// system: after a power cut it would be taken for one that somebody else changed.
fn what_it_is(info: &FileInfo, medium: &Medium, known: &[BaseState]) -> Option<Look> {
    let look = look_at(info)?;
    let is_known = |base: &BaseState| base.path == info.path && (base.size, base.modified) == look;
    if !info.writable || info.block_device || known.iter().any(is_known) {
        return Some(look);
    }
    if let Err(error) = sync_file(&info.file) {
        tracing::error!("cannot sync {}: {error}", info.path.display());
        // Nobody else is told of that again.
        medium.set_sync_failed();
    }
    look_at(info)
}

fn look_at(info: &FileInfo) -> Option<Look> {
    let meta = info.file.metadata().ok()?;
    Some((meta.len(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec()))
}
