//! A store as the offline commands use it: opened, locked, read.
//!
//! Owns the order of these steps, so that every command sees the same store. Never serves a store.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use snapblk_store::cow::open::{inspect, open, problems};
use snapblk_store::cow::owed::{Gaps, Owed};
use snapblk_store::cow::{OpenOptions, OpenStore};
use snapblk_store::io::{FileInfo, Lock, OpenMode};

use super::CliError;

/// How long to wait for a file that is in use: the last I/O of a killed process ends soon after it,
/// and its locks are released then.
pub const LOCK_WAIT: Option<Duration> = Some(Duration::from_millis(500));

/// A store's file, locked for as long as this lives.
#[derive(Debug)]
pub struct StoreFile {
    /// The file.
    pub file: FileInfo,
    _lock: Lock,
    _claim: Option<File>,
}

/// Claims a block device that will be changed for this process, as long as the result lives: the
/// kernel's own users (a mounted file system, device-mapper) take no file locks.
///
/// # Errors
/// The device is in use by the kernel or another claimant.
pub fn claim(file: &FileInfo) -> Result<Option<File>, CliError> {
    if !file.block_device {
        return Ok(None);
    }
    match File::options().read(true).custom_flags(libc::O_EXCL).open(&file.path) {
        Ok(claim) => Ok(Some(claim)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(CliError::Refused(format!(
            "{} is in use by the system, perhaps mounted; stop that first",
            file.path.display()
        ))),
        Err(error) => Err(CliError::io("claim", &file.path)(error)),
    }
}

impl StoreFile {
    /// Opens `path` for reading; others may read it too.
    ///
    /// # Errors
    /// The file cannot be opened, or the store is being served.
    pub fn to_read(path: &Path) -> Result<StoreFile, CliError> {
        let file = FileInfo::open(path, OpenMode::ReadOnly, false)?;
        let lock = Lock::shared_read(&file, LOCK_WAIT)?;
        Ok(StoreFile { file, _lock: lock, _claim: None })
    }

    /// Opens `path` for changes, exclusively.
    ///
    /// # Errors
    /// The file cannot be opened, or is in use.
    pub fn to_write(path: &Path) -> Result<StoreFile, CliError> {
        let file = FileInfo::open(path, OpenMode::ReadWrite, false)?;
        let lock = Lock::exclusive(&file, LOCK_WAIT)?;
        let claim = claim(&file)?;
        Ok(StoreFile { file, _lock: lock, _claim: claim })
    }

    /// The store, checked; if `origin_len` is given in bytes, against that too. Owed chunks of a
    /// killed server are committed, or shown if the store may not be written. An Invalid store has
    /// its list where that can be read, and none otherwise.
    ///
    /// # Errors
    /// The file is not a store, or has an impossible entry.
    pub fn load(&self, origin_len: Option<u64>) -> Result<OpenStore, CliError> {
        // Before anything is believed that a killed server wrote: an error is reported only once.
        Owed::sync(&self.file).map_err(CliError::io("sync", &self.file.path))?;
        let read_only = !self.file.writable;
        let options = OpenOptions { origin_len, read_only, ..OpenOptions::default() };
        let mut store = open(&self.file, &options)?;
        if store.valid {
            self.settle(&mut store, origin_len)?;
        } else {
            let listed = self.inspect()?;
            if problems(&listed, origin_len, 1).is_empty() {
                store = listed;
            }
        }
        Ok(store)
    }

    fn settle(&self, store: &mut OpenStore, origin_len: Option<u64>) -> Result<(), CliError> {
        let owed = Owed::of(&self.file, store.geometry.chunk.sectors());
        if self.file.writable {
            owed.enter(&self.file, store, (origin_len, Gaps::Close))?;
            owed.settle()?;
        } else {
            owed.show(self.file.path.display().to_string(), store, origin_len)?;
        }
        Ok(())
    }

    /// The store as it is, valid or not.
    ///
    /// # Errors
    /// The file is not a store.
    pub fn inspect(&self) -> Result<OpenStore, CliError> {
        Ok(inspect(&self.file)?)
    }
}
