//! What can go wrong with a device, in sentences.

use std::path::PathBuf;

use crate::cow::StoreError;
use crate::cow::owed::OwedError;
use crate::io::{FileError, LockError};
use crate::lines::LineError;

use super::state::StateError;

/// Why a verb was not carried out. Nothing was changed by it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no such device.
    #[error("there is no device '{0}'")]
    NotFound(String),
    /// There is one already.
    #[error("there is a device '{0}' already; choose another name, or remove it first")]
    Exists(String),
    /// The name cannot be one.
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
    /// It is used.
    #[error("the device '{name}' is in use by {by}; stop that first")]
    InUse {
        /// The device.
        name: String,
        /// Who uses it.
        by: String,
    },
    /// A table is wrong.
    #[error(transparent)]
    Line(#[from] LineError),
    /// A file cannot be opened.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is used by somebody else.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A store is not right.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What a store owes cannot be entered.
    #[error(transparent)]
    Owed(#[from] OwedError),
    /// The state file is not right.
    #[error(transparent)]
    State(#[from] StateError),
    /// A range lies outside of what it is in.
    #[error("the line '{line}' needs {needed} sectors of {what}, which has {has}")]
    TooShort {
        /// The line.
        line: String,
        /// Of what.
        what: String,
        /// Sectors it has.
        has: u64,
        /// Sectors that would be needed.
        needed: u64,
    },
    /// A line cannot be what it says; `0` is the sentence.
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
    /// Requests in flight did not end in time; everything is as it was.
    #[error("the requests in flight on '{0}' did not end in time; nothing was changed, try again")]
    Busy(String),
    /// What is owed could not be made durable.
    #[error("what was written to '{0}' could not be made durable; see the events for the cause")]
    FlushFailed(String),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the file's name.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

impl DeviceError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> DeviceError {
        let what = what.into();
        move |source| DeviceError::Io { what, source }
    }

    /// Refuses what cannot name a device.
    pub(super) fn check_name(name: &str) -> Result<(), DeviceError> {
        let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() > 127 || name.contains(bad) {
            return Err(DeviceError::BadName(name.into()));
        }
        Ok(())
    }

    pub(super) fn refused(sentence: impl Into<String>) -> DeviceError {
        DeviceError::Refused(sentence.into())
    }
}
