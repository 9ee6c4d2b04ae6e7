//! What can be wrong with a store, in sentences.
//!
//! Owns the wording, and the kinds to match on. Never knows how a fault was found.

use std::fmt;
use std::io;

use super::layout::{HeaderError, VERSION};
use crate::units::{Chunk, StoreChunk};

/// Why a store cannot be opened, made or changed.
#[derive(Debug, thiserror::Error)]
#[error("store {name}: {kind}")]
pub struct StoreError {
    /// The store's path.
    pub name: String,
    /// What is wrong.
    pub kind: StoreErrorKind,
}

/// What is wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreErrorKind {
    /// The system refused.
    #[error("cannot {what} at byte {offset}: {source}")]
    Io {
        /// What was tried: `read`, `write`, `flush`.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The header is zero: nothing has been stored there.
    #[error(
        "its header (byte 0) is zero, so it holds no store yet; make one with 'snapblk create'"
    )]
    Empty,
    /// Something else lies there.
    #[error("its header (byte 0) is not that of a version {VERSION} snapshot store: {0}")]
    Header(HeaderError),
    /// No room for a header and an area.
    #[error("it has {len} bytes, too few for a store: two chunks are {needed} bytes at least")]
    TooSmall {
        /// Its length in bytes.
        len: u64,
        /// The smallest length in bytes.
        needed: u64,
    },
    /// An area is full and the next, where the list goes on, is not there.
    #[error(
        "it ends at byte {len}, before area {area} at byte {offset}, where its list of exceptions \
         goes on: the file has been cut short; restore its length"
    )]
    CutShort {
        /// The area that is missing.
        area: u64,
        /// Where it should lie, in bytes.
        offset: u64,
        /// Length of the store in bytes.
        len: u64,
    },
    /// An entry that cannot be right.
    #[error("{0}; 'snapblk check{option}' lists all such entries", option = .0.found_with())]
    Entry(Problem),
}

impl StoreErrorKind {
    /// The error of the store called `name`.
    pub fn of(self, name: String) -> StoreError {
        StoreError { name, kind: self }
    }
}

/// An entry that cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its place in the list.
    pub position: u64,
    /// Where it lies in the store, in bytes.
    pub offset: u64,
    /// What is wrong with it.
    pub kind: ProblemKind,
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// It points behind the end of the store.
    OutsideStore {
        /// Where it points.
        new: StoreChunk,
        /// How many chunks the store has.
        chunks: u64,
    },
    /// It points at the header or an area.
    Metadata {
        /// Where it points.
        new: StoreChunk,
    },
    /// It is for a chunk behind the end of the origin.
    OutsideOrigin {
        /// Which chunk.
        old: Chunk,
        /// How many chunks the origin has, the last perhaps in part.
        chunks: u64,
    },
    /// An earlier entry is for the same chunk.
    DuplicateOld {
        /// Which chunk.
        old: Chunk,
        /// Where the earlier entry lies, in bytes.
        first: u64,
    },
    /// An earlier entry points at the same chunk of the store.
    DuplicateNew {
        /// Which chunk.
        new: StoreChunk,
        /// Where the earlier entry lies, in bytes.
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
        write!(f, "entry {} at byte {} ", self.position, self.offset)?;
        match self.kind {
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
