//! The last known size and time of the files below guests' own disks.
//!
//! Owns which files these are, and that their recorded values are durable in the files, too: a
//! start refuses a file that differs. Never knows where the values are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::build::Active;
use crate::device::core::{Devices, Flusher, Inner};
use crate::device::origins::is_guest_disk;
use crate::io::durable::sync_file;
use crate::io::{FileId, FileInfo};
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

/// What `look` finds of the files below guests' own disks that this process does not write, in the
/// tables of `inner` with those of `next` in place of what they replace; a merge writes them, and so do
/// jobs. A file that was opened for writing may be written until the tables change, unless it lies below
/// such a disk already.
pub(super) fn bases(
    devices: &Devices,
    inner: &Inner,
    next: &BTreeMap<String, Option<Active>>,
    mut look: impl FnMut(&FileInfo, &Arc<Medium>) -> Option<Look>,
) -> Vec<BaseState> {
    let written = |path: &Path| {
        let mut writes = inner.state.commits.values().flat_map(|commit| &commit.writes);
        writes.any(|written| written == path)
    };
    let tables = tables(inner, next);
    // There are few of them, and a guest may wait.
    let has_origin = |(_, active): &(&String, &Active)| !active.origin_keys.is_empty();
    let origins: Vec<_> = tables.iter().copied().filter(has_origin).collect();
    let rest = (!next.is_empty()).then(|| at_rest(inner));
    let mut bases = Vec::new();
    for (name, active) in tables {
        for (number, snap) in &active.snaps {
            let TargetSpec::Snapshot(spec) = &active.lines[*number].target else { continue };
            let at = (name.as_str(), *number);
            let is_own = || is_guest_disk(origins.iter().copied(), at, spec.persistence, &snap.key);
            let rests = |file| rest.as_ref().is_none_or(|rest| rest.contains(&file));
            let frozen = |info: &FileInfo, file| !info.writable || (rests(file) && is_own());
            let info_of =
                |medium: &Arc<Medium>| Some((medium.clone(), devices.files.get(medium.file)?));
            for (medium, info) in snap.origin.media().filter_map(info_of) {
                if !frozen(&info, medium.file) || written(&info.path) {
                    continue;
                }
                if let Some((size, modified)) = look(&info, &medium) {
                    let (path, store) = (info.path.clone(), snap.live.store.name().to_owned());
                    bases.push(BaseState { path, store, size, modified });
                }
            }
        }
    }
    bases
}

fn tables<'i>(
    inner: &'i Inner,
    next: &'i BTreeMap<String, Option<Active>>,
) -> Vec<(&'i String, &'i Active)> {
    let now = inner.devices.iter().filter(|(name, _)| !next.contains_key(*name));
    let now = now.filter_map(|(name, device)| Some((name, device.active.as_ref()?)));
    now.chain(next.iter().filter_map(|(name, next)| Some((name, next.as_ref()?)))).collect()
}

/// The files that no guest writes now: they lie below guests' own disks.
fn at_rest(inner: &Inner) -> BTreeSet<FileId> {
    let active = inner.devices.values().filter_map(|device| device.active.as_ref());
    let snaps = active.flat_map(|active| active.snaps.iter().map(move |snap| (active, snap)));
    let own = snaps.filter(|(active, (line, snap))| {
        let merges = matches!(active.lines[**line].target, TargetSpec::Merge(_));
        !merges && snap.live.store.is_guest_disk()
    });
    own.flat_map(|(_, (_, snap))| snap.origin.media()).map(|medium| medium.file).collect()
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
    sync_whole(info, medium, flusher);
    look_at(info)
}

/// Makes the files that the table of `writer` writes durable, with their times, before it closes them:
/// those who only read them go on, and cannot tell that they were written.
pub(in crate::device) fn sync_times(devices: &Devices, writer: &Active) {
    for file in &writer.table.flush_set().media {
        let info = devices.files.get(file.medium.file);
        if let Some(info) = info.filter(|info| info.writable && !info.block_device) {
            sync_whole(&info, &file.medium, &*devices.config.flusher);
        }
    }
}

fn sync_whole(info: &FileInfo, medium: &Arc<Medium>, flusher: &dyn Flusher) {
    // A guest may be flushing it, and must be told of any data that is lost. When that is durable,
    // only the time is left, and nobody writes the file.
    if flusher.sync(medium)
        && let Err(error) = sync_file(&info.file)
    {
        // The error is reported to no other caller.
        medium.sync_failed();
        tracing::error!("cannot sync {}: {error}", info.path.display());
    }
}

fn look_at(info: &FileInfo) -> Option<Look> {
    let meta = info.file.metadata().ok()?;
    Some((meta.len(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec()))
}
