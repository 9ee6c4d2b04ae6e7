//! The errors of commands, and their exit statuses.

use std::io;
use std::path::{Path, PathBuf};

use snapblk_store::cow::StoreError;
use snapblk_store::device::DeviceError;
use snapblk_store::io::{FileError, LockError};

/// Why a command failed: one sentence that says what is wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments cannot be combined.
    #[error("{0}")]
    Usage(String),
    /// The command's conditions are not met.
    #[error("{0}")]
    Refused(String),
    /// The store is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's owed chunks of a killed server cannot be committed.
    #[error(transparent)]
    Owed(#[from] snapblk_store::cow::owed::OwedError),
    /// A file cannot be opened.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store cannot be created.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A system call failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl CliError {
    /// Exit status of the process: 2 for usage, 1 otherwise.
    pub fn status(&self) -> u8 {
        if matches!(self, CliError::Usage(_)) { 2 } else { 1 }
    }

    /// Converts the system's error for `what` on `path`.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
        move |source| CliError::Io { what, path: path.to_owned(), source }
    }
}
