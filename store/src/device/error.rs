//! The errors of device verbs, in sentences.

use std::path::PathBuf;
use std::time::Duration;

use crate::cow::StoreError;
use crate::cow::owed::OwedError;
use crate::io::{FileError, LockError};
use crate::lines::LineError;

use super::state::StateError;

/// Why a verb was not carried out. It changed nothing, unless the verb says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no such device.
    #[error("there is no device '{0}'")]
    NotFound(String),
    /// A line of a table names a device that does not exist.
    #[error("there is no device '{0}'; if that is a file, name it with a '/', as in './{0}'")]
    NoSuchParam(String),
    /// A device of this name exists.
    #[error("there is a device '{0}' already; choose another name, or remove it first")]
    Exists(String),
    /// The name is not valid.
    #[error(
        "'{0}' cannot name a device: use 1 to 127 bytes without '/', white space and control characters"
    )]
    BadName(String),
    /// It has no active table.
    #[error("the device '{0}' has no active table; load one and resume it")]
    NoTable(String),
    /// It is suspended.
    #[error("the device '{0}' is suspended; resume it first")]
    Suspended(String),
    /// It is in use.
    #[error("the device '{name}' is in use by {by}; stop that first")]
    InUse {
        /// The device.
        name: String,
        /// The users.
        by: String,
    },
    /// A table line is wrong.
    #[error(transparent)]
    Line(#[from] LineError),
    /// A file cannot be opened.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process uses a file.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A store is not valid.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store's owed chunks cannot be committed.
    #[error(transparent)]
    Owed(#[from] OwedError),
    /// The state file cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A range exceeds the object that it is in.
    #[error("the line '{line}' needs {needed} sectors of {what}, which has {has}")]
    TooShort {
        /// The line.
        line: String,
        /// The object.
        what: String,
        /// Its sectors.
        has: u64,
        /// The sectors that are needed.
        needed: u64,
    },
    /// A line cannot be built; `0` is the sentence.
    #[error("{0}")]
    Refused(String),
    /// A store has a live owner.
    #[error("the store {} is served by the device '{owner}' already; a store has one owner. To hand it over, \
         suspend '{owner}' first", store.display())]
    Owned {
        /// The store.
        store: PathBuf,
        /// The device that has it.
        owner: String,
    },
    /// Requests in flight did not end in time; nothing has changed.
    #[error("the requests in flight on '{0}' did not end in time; nothing was changed, try again")]
    Busy(String),
    /// A verb was undone, but for the state file, which could not be written again.
    #[error(
        "{cause}; but the state file names already what was undone, and cannot be written again: {state}. \
         This is tried again before the next command and at the end of the process; if it never succeeds, \
         the next start finds the command carried out"
    )]
    NotTakenBack {
        /// Why the verb was undone.
        cause: Box<DeviceError>,
        /// Why the file could not be written.
        state: Box<DeviceError>,
    },
    /// Owed chunks could not be made durable.
    #[error("what was written to '{0}' could not be made durable; see the events for the cause")]
    FlushFailed(String),
    /// Owed chunks were not durable in time; nothing has changed, and the flush goes on.
    #[error(
        "what was written to '{device}' was not durable within {} s: a file of it does not answer; \
         nothing was changed, try again when it does", limit.as_secs()
    )]
    FlushLate {
        /// The device.
        device: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation, with the file's name.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl DeviceError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> DeviceError {
        let what = what.into();
        move |source| DeviceError::Io { what, source }
    }

    /// Refuses invalid device names.
    pub(super) fn check_name(name: &str) -> Result<(), DeviceError> {
        let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() > 127 || name.contains(bad) {
            return Err(DeviceError::BadName(name.into()));
        }
        Ok(())
    }

    /// Refuses invalid UUIDs, which are any words, as in dmsetup.
    pub(super) fn check_uuid(uuid: &str) -> Result<(), DeviceError> {
        if uuid.len() > 128 || uuid.contains(char::is_control) {
            return Err(DeviceError::refused(
                "the UUID is no such: use at most 128 bytes, and no control characters",
            ));
        }
        Ok(())
    }

    pub(super) fn refused(sentence: impl Into<String>) -> DeviceError {
        DeviceError::Refused(sentence.into())
    }
}
