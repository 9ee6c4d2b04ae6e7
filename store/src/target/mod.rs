//! Targets: what a device's range maps to, and what happens to a request for it.
//!
//! Owns only policy: given the present state of the exception table, a target decides what to do
//! with the next piece of a request ([`Decision`]). Never knows how that is carried out, who asks,
//! or how a store commits. Targets do not know each other. Keeps I19: whether a
//! decision names ranges to be tracked depends on the target alone.

pub mod backing;
pub mod medium;
pub mod merge;
pub mod origin;
pub mod snapshot;

pub use backing::{Backing, Content, Extent};
pub use medium::{Medium, Synced};
pub use merge::Merge;
pub use origin::Origin;
pub use snapshot::{Features, Snapshot};

use std::ops::Index;
use std::sync::Arc;

use crate::cow::Store;
use crate::exception::{ChunkState, ExceptionTable, Layer, Place};
use crate::io::FileId;
use crate::units::{Chunk, ChunkSize, MOST_SECTORS};
use crate::workers::{TrackedObject, Worker};

const _: () = assert!(MOST_SECTORS <= Worker::MAX_TRACKED_END);

/// Pieces longer than this many chunks are decided in several turns, so that one request does not
/// hold up those behind it.
pub const TURN: u64 = 256;

/// Which of a table's [`Exceptions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExceptionsId(pub u32);

impl ExceptionsId {
    /// Its place in lists that have one item for each of a table's exceptions.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One exception table, the stores of its mappings, and the origin below them.
#[derive(Debug)]
pub struct Exceptions {
    /// The exception table.
    pub table: Arc<ExceptionTable>,
    /// The stores by layer, from the bottom; the last takes new exceptions.
    pub layers: Vec<Arc<Store>>,
    /// The origin, which unmapped chunks are read from.
    pub origin: Backing,
    /// Length in bytes of the device that the table describes.
    pub len: u64,
}

impl Exceptions {
    /// The store that takes new exceptions.
    #[inline]
    pub fn store(&self) -> &Arc<Store> {
        self.layers.last().expect("a snapshot has a store")
    }

    /// That store's layer.
    #[inline]
    pub fn top(&self) -> Layer {
        Layer(self.layers.len() as u16)
    }

    /// The size of its chunks.
    #[inline]
    pub fn chunk(&self) -> ChunkSize {
        self.store().chunk()
    }

    /// Bytes of `chunk` that a copy of it must hold: less than a chunk for a partial last one.
    /// Bytes that only the origin has are included: the device may grow.
    #[inline]
    pub fn valid_len(&self, chunk: Chunk) -> u64 {
        let end = self.len.max(self.origin.len());
        self.chunk().bytes().min(end - self.chunk().start_of(chunk))
    }

    /// Bytes of `chunk` that the device has.
    #[inline]
    pub fn own_len(&self, chunk: Chunk) -> u64 {
        self.chunk().bytes().min(self.len - self.chunk().start_of(chunk))
    }

    /// Whether `place` is in the store that takes new exceptions.
    #[inline]
    pub fn is_top(&self, place: Place) -> bool {
        place.layer == self.top()
    }

    /// Whether the mapping to `place` survives a power cut.
    #[inline]
    pub fn is_durable(&self, place: Place) -> bool {
        self.layers[place.layer.0 as usize - 1].is_durable(place.chunk)
    }

    /// The file and the offset in it of byte `within` of the chunk at `place`.
    #[inline]
    pub fn file_offset(&self, place: Place, within: u64) -> (FileId, u64) {
        let store = &self.layers[place.layer.0 as usize - 1];
        (store.file(), self.chunk().store_offset(place.chunk) + within)
    }
}

impl Index<ExceptionsId> for [Exceptions] {
    type Output = Exceptions;

    #[inline]
    fn index(&self, id: ExceptionsId) -> &Exceptions {
        &self[id.index()]
    }
}

/// What to do with the next `len` bytes of a request. `len` is at most the requested length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Do it to this file, there.
    Pass {
        /// The file.
        file: FileId,
        /// First byte in it.
        offset: u64,
        /// Bytes.
        len: u64,
        /// If set, the range must be tracked while it is in flight: track it, decide again, and
        /// proceed if the decision is the same.
        track: Option<Track>,
    },
    /// It reads as zeroes.
    Clear {
        /// Bytes.
        len: u64,
    },
    /// There is nothing to do.
    Nothing {
        /// Bytes.
        len: u64,
    },
    /// It cannot be done.
    Fail,
    /// The write needs the chunk moved to the top store: claim it, and write it there. Where it
    /// covers the chunk, the same for those after it that lie alike.
    Move {
        /// Which exceptions of the table.
        exceptions: ExceptionsId,
        /// Which chunk.
        chunk: Chunk,
        /// The chunk's state in the table.
        seen: ChunkState,
        /// Bytes of the request that fall in the chunk, or as many whole chunks as it covers.
        len: u64,
    },
    /// A write to an origin: exceptions in its snapshots come first.
    OriginWrite {
        /// Bytes.
        len: u64,
    },
    /// A worker is moving the chunk: wait for that.
    WaitChunk {
        /// Which exceptions of the table.
        exceptions: ExceptionsId,
        /// Which chunk.
        chunk: Chunk,
        /// The chunk's state in the table.
        seen: ChunkState,
    },
    /// A store changes its state: wait for that.
    WaitState,
    /// A store is full, and the request needs room in it: wait for that.
    WaitRoom,
}

/// A range to be tracked, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    /// The origin, or other object, of the range.
    pub of: TrackedObject,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
}

/// How a line of a table handles its range.
#[derive(Debug)]
pub enum Target {
    /// `linear`, `zero` and `error`: extents, as they are.
    Plain(Backing),
    /// `snapshot`.
    Snapshot(Snapshot),
    /// `snapshot-origin`.
    Origin(Origin),
    /// `snapshot-merge`.
    Merge(Merge),
}

/// Bytes from `within` the first chunk of a run to the end of the run: the first chunk and as many
/// more as `joins` says, at most [`TURN`], and no more than `len` needs.
fn run_len(chunk: u64, within: u64, len: u64, joins: impl Fn(u64) -> bool) -> u64 {
    let mut n = 1;
    while n * chunk - within < len && n < TURN && joins(n) {
        n += 1;
    }
    n * chunk - within
}
