//! The errors of stores, in sentences.
//!
//! Owns the wording, and the kinds to match on. Never knows how a fault was found.

use std::fmt;
use std::io;

use super::layout::{HeaderError, VERSION};
use crate::units::{Chunk, StoreChunk};

/// Why a store cannot be opened, created or changed.
#[derive(Debug, thiserror::Error)]
#[error("store {name}: {kind}")]
pub struct StoreError {
    /// The store's path.
    pub name: String,
    /// The error.
    pub kind: StoreErrorKind,
}

/// The errors of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreErrorKind {
    /// A system call failed.
    #[error("cannot {what} at byte {offset}: {source}")]
    Io {
        /// The operation: `read`, `write`, `flush`.
        what: &'static str,
        /// The offset in bytes.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// The header is zero: there is no store yet.
    #[error(
        "its header (byte 0) is zero, so it holds no store yet; make one with 'snapblk create'"
    )]
    Empty,
    /// The file is not a store.
    #[error("its header (byte 0) is not that of a version {VERSION} snapshot store: {0}")]
    Header(HeaderError),
    /// It has no room for a header and an area.
    #[error("it has {len} bytes, too few for a store: two chunks are {needed} bytes at least")]
    TooSmall {
        /// Its length in bytes.
        len: u64,
        /// The smallest length in bytes.
        needed: u64,
    },
    /// An area is full and the next one, with the rest of the list, is missing.
    #[error(
        "it ends at byte {len}, before area {area} at byte {offset}, where its list of exceptions \
         goes on: the file has been cut short; restore its length"
    )]
    CutShort {
        /// The missing area.
        area: u64,
        /// Its offset in bytes.
        offset: u64,
        /// Length of the store in bytes.
        len: u64,
    },
    /// An impossible entry.
    #[error("{0}; 'snapblk check{option}' lists all such entries", option = .0.found_with())]
    Entry(Problem),
}

impl StoreErrorKind {
    /// The error of the store called `name`.
    pub fn of(self, name: String) -> StoreError {
        StoreError { name, kind: self }
    }
}

/// An impossible entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its place in the list.
    pub position: u64,
    /// Its offset in the store, in bytes.
    pub offset: u64,
    /// The error.
    pub kind: ProblemKind,
}

/// The errors of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// It refers to a chunk past the end of the store.
    OutsideStore {
        /// That chunk.
        new: StoreChunk,
        /// Chunks of the store.
        chunks: u64,
    },
    /// It refers to the header or an area.
    Metadata {
        /// That chunk.
        new: StoreChunk,
    },
    /// It is for a chunk past the end of the origin.
    OutsideOrigin {
        /// That chunk.
        old: Chunk,
        /// Chunks of the origin, including a partial last one.
        chunks: u64,
    },
    /// An earlier entry is for the same chunk.
    DuplicateOld {
        /// The chunk.
        old: Chunk,
        /// The offset of the earlier entry, in bytes.
        first: u64,
    },
    /// An earlier entry refers to the same chunk of the store.
    DuplicateNew {
        /// The chunk.
        new: StoreChunk,
        /// The offset of the earlier entry, in bytes.
        first: u64,
    },
}

impl Problem {
    /// The option with which `snapblk check` finds it.
    fn found_with(&self) -> &'static str {
        match self.kind {
            ProblemKind::OutsideOrigin { .. } => " --origin",
            _ => "",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} at byte {} {}", self.position, self.offset, self.kind)
    }
}

/// The rest of a sentence about the entry.
impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ProblemKind::OutsideStore { new, chunks } => {
                write!(f, "points at chunk {} of a store of {chunks} chunks", new.0)
            }
            ProblemKind::Metadata { new } => {
                write!(f, "points at chunk {}, which holds metadata", new.0)
            }
            ProblemKind::OutsideOrigin { old, chunks } => {
                write!(f, "is for chunk {} of an origin of {chunks} chunks", old.0)
            }
            ProblemKind::DuplicateOld { old, first } => {
                write!(f, "is for chunk {}, as is the one at byte {first}", old.0)
            }
            ProblemKind::DuplicateNew { new, first } => {
                write!(f, "points at chunk {} of the store, as does the one at byte {first}", new.0)
            }
        }
    }
}
