//! Why a state cannot be used, or kept.
//!
//! Owns the sentences: each names the file, what is wrong and what to do. Never knows how it was found
//! out.

use std::path::PathBuf;

use crate::io::lock::whoever;

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A system call failed.
    #[error("cannot {what} the state file {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The same, for one that is not used any more.
    #[error(
        "cannot {what} the state file {}: {source}. It says no more of its disks than the arguments, and \
         is to say where their state is from now on: let this user change its directory, or move it \
         away, or name the state to use by --state",
        path.display()
    )]
    Unused {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not a valid state file.
    #[error(
        "{} is not a state file of this version: {why}; restore it from a copy, or name the right one by \
         --state; without it, layers, snapshots and unfinished jobs of these disks are not known, and serving \
         the disks would damage them",
        path.display()
    )]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No start would read it.
    #[error(
        "the state file {} would have {bytes} bytes, more than the {most} that are read; commit layers with \
         'block-commit', delete snapshots, remove devices, or load shorter tables first",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// What it would have.
        bytes: u64,
        /// What is read at most.
        most: u64,
    },
    /// Another process keeps its state there.
    #[error(
        "the state file {} is in use by {}: two servers cannot share one; give each its own by --state",
        path.display(), whoever(others)
    )]
    Shared {
        /// The file.
        path: PathBuf,
        /// Which processes, as far as that can be seen.
        others: Vec<String>,
    },
    /// It changed, and not by this process.
    #[error(
        "the state file {} holds what this process did not write: another server kept its state there, \
         or the file was edited; start this one again, with its own --state if another uses that",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The state belongs to other arguments.
    #[error(
        "the state file knows the device '{device}' with the first table '{knows}', not '{given}'; \
         start with the old arguments, or give another --state"
    )]
    Other {
        /// The device.
        device: String,
        /// The table that it was first given.
        knows: String,
        /// The table that it is given now.
        given: String,
    },
    /// The file of a first table became shorter: the device cannot be made of that table any more.
    #[error(
        "{} became shorter: '{device}' needs {needs} bytes of it, and it has {has}; restore it, or make \
         it as long again (truncate -s {needs}) where what was cut off is known to be unused; --force \
         cannot go on with less than that", path.display()
    )]
    Shorter {
        /// The file.
        path: PathBuf,
        /// The device.
        device: String,
        /// Bytes that its first table needs.
        needs: u64,
        /// Bytes that the file has.
        has: u64,
    },
    /// A base changed while this program did not run.
    #[error(
        "{} changed since the store {} was used with it last (it had {had}, it has {has}): what \
         the store holds does not fit it any more; restore it, or use --force to go on", 
        base.display(), store
    )]
    BaseChanged {
        /// The base.
        base: PathBuf,
        /// A store over it.
        store: String,
        /// Its former size and time.
        had: String,
        /// Its present size and time.
        has: String,
    },
    /// The state knows a file of a new disk in another one, which commands changed.
    #[error(
        "the state file knows {} in '{device}', with what commands changed since, and '{disk}' would be \
         without that; start with the names that the disks had, or move the state file away if \
         nobody needs what it holds", file.display()
    )]
    Renamed {
        /// The file.
        file: PathBuf,
        /// The device that has it in the state.
        device: String,
        /// The new disk.
        disk: String,
    },
    /// A store is missing.
    #[error(
        "the store {} is gone; the device '{device}' cannot be what it was without it. Restore it, or move the \
         state file away if nobody needs what it knows of any of its disks: their layers, snapshots and jobs", 
        store.display()
    )]
    StoreGone {
        /// The store.
        store: PathBuf,
        /// The device.
        device: String,
    },
}
