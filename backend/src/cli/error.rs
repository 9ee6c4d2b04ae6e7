//! Why a command failed, and with which exit status.

use std::io;
use std::path::{Path, PathBuf};

use snapblk_store::cow::StoreError;
use snapblk_store::device::DeviceError;
use snapblk_store::io::{FileError, LockError};

/// Why a command failed: one sentence that names what was wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments do not go together.
    #[error("{0}")]
    Usage(String),
    /// Something in the world is not as the command needs it.
    #[error("{0}")]
    Refused(String),
    /// The store is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What a killed server owed it cannot be entered.
    #[error(transparent)]
    Owed(#[from] snapblk_store::cow::owed::OwedError),
    /// A file cannot be opened.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CliError {
    /// Exit status of the process: 2 for usage, 1 otherwise.
    pub fn status(&self) -> u8 {
        if matches!(self, CliError::Usage(_)) { 2 } else { 1 }
    }

    /// Turns the system's error for `what` on `path` into ours.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
        move |source| CliError::Io { what, path: path.to_owned(), source }
    }
}
