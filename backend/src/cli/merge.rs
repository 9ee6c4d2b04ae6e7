//! `snapblk merge`: writes a store's exceptions to the disk it was made for, offline.
//!
//! Owns the order of the steps. Keeps: an entry is removed only after its data is durable in the
//! origin, newest first, so that a merge that was killed at any point continues where it was and
//! ends with the same content.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use snapblk_store::cow::open::{remove_newest, zero_garbage};
use snapblk_store::cow::{OpenStore, StoreErrorKind};
use snapblk_store::device::is_only_read;
use snapblk_store::io::{FileInfo, Identity, Lock, OpenMode, Storage, real_path};
use snapblk_store::units::SECTOR_SIZE;

use super::dump::runs;
use super::store_file::{LOCK_WAIT, StoreFile, claim};
use super::{CliError, output, size};

#[cfg(test)]
mod tests;

/// The most bytes that are copied between two flushes of the origin (but at least a chunk).
const BATCH: u64 = 64 << 20;
/// Bytes that are copied at once.
const SLICE: u64 = 1 << 20;

/// Merge a store into its origin: the disk that it was made for
///
/// For example: snapblk merge --into disk.raw changes.cow
///
/// Neither may be in use. The store is empty and valid afterwards. A merge that was stopped, by
/// whatever, is finished by running it again.
///
/// Other snapshots of the disk, and other overlays on it, are wrong afterwards, and nothing tells:
/// they hold only what was changed while they were served. With several, merge with 'snapblk ctl
/// MONITOR merge' while the disk is served, which keeps the others.
#[derive(Debug, Args)]
pub struct Merge {
    /// The origin to write to
    #[arg(long, value_name = "ORIGIN")]
    into: PathBuf,
    /// The store to empty
    store: PathBuf,
    /// Write to a disk that is marked read-only, or that the store's server only reads. Overlays on it
    /// that are not in use now, and that snapblk cannot know of, are destroyed by that
    #[arg(long)]
    force: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Merged<'a> {
    #[serde(serialize_with = "output::name")]
    store: &'a Path,
    #[serde(serialize_with = "output::name")]
    into: &'a Path,
    chunks: u64,
    bytes: u64,
}

impl Merge {
    /// Merges.
    ///
    /// # Errors
    /// A store that is Invalid or damaged, a file that is in use, or a failed system call.
    pub fn run(&self) -> Result<(), CliError> {
        self.check_files()?;
        let file = StoreFile::to_write(&self.store)?;
        let origin = FileInfo::open(&self.into, OpenMode::ReadWrite, false)?;
        let _lock = Lock::exclusive(&origin, LOCK_WAIT)?;
        let _claim = claim(&origin)?;
        let mut store = file.load(Some(origin.len))?;
        if !store.valid {
            return Err(CliError::Refused(format!(
                "{} is marked Invalid: its content is lost and must not be merged",
                self.store.display()
            )));
        }
        let chunks = store.entries.len() as u64;
        let bar = self.bar(chunks);
        merge(&origin, &file.file, &mut store, |done| bar.inc(done))?;
        bar.finish_and_clear();
        let bytes = chunks * store.geometry.chunk.bytes();
        if self.json {
            return output::json(&Merged { store: &self.store, into: &self.into, chunks, bytes });
        }
        output::line(&format!(
            "merged {chunks} chunks ({}) into {}; {} is empty now",
            size::show(bytes),
            self.into.display(),
            self.store.display()
        ))
    }

    fn check_files(&self) -> Result<(), CliError> {
        let of = |path: &Path| Identity::of_path(path).map_err(CliError::io("look at", path));
        if of(&self.into)? == of(&self.store)? {
            return Err(CliError::Usage(format!(
                "{} and {} are one file; name the disk with --into, and the store",
                self.into.display(),
                self.store.display()
            )));
        }
        if self.force {
            return Ok(());
        }
        let meta = std::fs::metadata(&self.into).map_err(CliError::io("look at", &self.into))?;
        let shared = match meta.mode() & 0o222 {
            0 => Some("is marked read-only"),
            _ if self.is_only_read()? => Some("is only read by the server of this store"),
            _ => None,
        };
        shared.map_or(Ok(()), |shared| {
            Err(CliError::Refused(format!(
                "{} {shared}, as a disk shared by several overlays is: merging into it would \
                 destroy every other overlay on it; use --force if there is none",
                self.into.display()
            )))
        })
    }

    /// Whether the state beside the store, under either of its names, says that servers only read the
    /// disk.
    fn is_only_read(&self) -> Result<bool, CliError> {
        for store in [real_path(&self.store), self.store.clone()] {
            let mut state = store.into_os_string();
            state.push(".state");
            let says = is_only_read(Path::new(&state), &self.into).map_err(|error| {
                CliError::Refused(format!(
                    "{error}; it may say that other overlays need {}: use --force if there is none",
                    self.into.display()
                ))
            });
            if says? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn bar(&self, chunks: u64) -> ProgressBar {
        if self.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(
            "merging {wide_bar} {percent:>3} % {human_pos}/{human_len} chunks, {eta} left",
        );
        ProgressBar::new(chunks).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }
}

/// Copies all of `store`, whose file is `file`, to `origin`, newest entries first, and removes the
/// entries; `progress` gets the number of finished chunks each time.
fn merge<O: Storage, S: Storage>(
    origin: &O,
    file: &S,
    store: &mut OpenStore,
    mut progress: impl FnMut(u64),
) -> Result<(), CliError> {
    if store.garbage {
        zero_garbage(file, store)?;
    }
    let origin_len = origin.len().map_err(|error| failed(origin, "find its length", 0, error))?;
    // A disk has whole sectors; bytes after the last one belong to no disk.
    let origin_len = origin_len - origin_len % SECTOR_SIZE;
    let most = (BATCH / store.geometry.chunk.bytes()).max(1);
    let per_area = store.geometry.entries_per_area();
    while !store.entries.is_empty() {
        let count = store.entries.len() as u64;
        let in_area = (count - 1) % per_area + 1;
        let batch = in_area.min(most) as usize;
        let newest = store.entries[store.entries.len() - batch..].to_vec();
        for run in runs(store, newest) {
            let length = run.length.min(origin_len.saturating_sub(run.start));
            copy(origin, file, run.offset, run.start, length)?;
        }
        origin.sync().map_err(|error| failed(origin, "flush", 0, error))?;
        remove_newest(file, store, batch)?;
        progress(batch as u64);
    }
    Ok(())
}

fn copy<O: Storage, S: Storage>(
    origin: &O,
    file: &S,
    from: u64,
    to: u64,
    length: u64,
) -> Result<(), CliError> {
    let mut slice = vec![0; SLICE.min(length) as usize];
    let mut done = 0;
    while done < length {
        let piece = &mut slice[..SLICE.min(length - done) as usize];
        file.read_at(piece, from + done)
            .map_err(|error| failed(file, "read", from + done, error))?;
        origin
            .write_at(piece, to + done)
            .map_err(|error| failed(origin, "write", to + done, error))?;
        done += piece.len() as u64;
    }
    Ok(())
}

fn failed<T: Storage>(
    storage: &T,
    what: &'static str,
    offset: u64,
    source: std::io::Error,
) -> CliError {
    let kind = StoreErrorKind::Io { what, offset, source };
    CliError::Refused(format!(
        "the merge stopped: {}: {kind}; run it again to go on",
        storage.name()
    ))
}
