//! `snapshot`: an origin at an earlier moment, with later changes in a store. Stacked snapshots
//! are one table whose entries name their layer, so that reads cost the same for any number of
//! layers.
//!
//! Owns what a snapshot does with each kind of request. Never knows how a chunk is copied.
//! Keeps I15: a write to what a lower layer holds moves it to the top.

use super::{Decision, Exceptions, ExceptionsId, Track, run_len};
use crate::cow::StoreState;
use crate::exception::{ChunkState, Place};
use crate::request::Op;
use crate::units::{Chunk, SECTOR_SHIFT};
use crate::workers::{TrackedObject, Worker};

/// The features that a table line's feature words enable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Discarding a whole mapped chunk zeroes it in the store.
    pub discard_zeroes_cow: bool,
    /// A discard also goes to the origin's file, past all exceptions.
    pub discard_passdown_origin: bool,
}

/// See the module's description.
#[derive(Debug)]
pub struct Snapshot {
    /// The exceptions of the table that belong to it.
    pub exceptions: ExceptionsId,
    /// Set if something else may write to the origin: unmapped reads are tracked under this id.
    pub tracked: Option<TrackedObject>,
    /// Feature words.
    pub features: Features,
}

impl Snapshot {
    /// The decision for `op` on `[offset, offset + len)` of the snapshot.
    #[inline]
    pub fn decide(&self, ex: &Exceptions, op: Op, offset: u64, len: u64) -> Decision {
        let state = ex.store().state();
        match state {
            StoreState::Valid | StoreState::Full => {}
            StoreState::Overflow | StoreState::CommitFailed if op == Op::Read => {}
            StoreState::Invalidating => return Decision::WaitState,
            _ => return Decision::Fail,
        }
        let chunk = ex.chunk().chunk_of(offset);
        let entry = ex.table.get(chunk);
        match (op, entry) {
            (Op::Discard, _) => self.discard(ex, offset, len, chunk, entry),
            (_, ChunkState::Pending) => self.wait(chunk, entry),
            (Op::Read, ChunkState::Unmapped) => self.read_origin(ex, offset, len, chunk),
            (Op::Read, ChunkState::Mapped(place) | ChunkState::Busy(place)) => {
                self.pass(ex, offset, len, chunk, place)
            }
            (_, ChunkState::Mapped(place)) if ex.is_top(place) => {
                self.pass(ex, offset, len, chunk, place)
            }
            (_, ChunkState::Busy(_)) => self.wait(chunk, entry),
            (_, ChunkState::Unmapped | ChunkState::Mapped(_)) if state == StoreState::Full => {
                Decision::WaitRoom
            }
            (_, ChunkState::Unmapped | ChunkState::Mapped(_)) => {
                let (bytes, within) = (ex.chunk().bytes(), ex.chunk().offset_in(offset));
                let is_run = within == 0 && len >= bytes;
                let len = if is_run { len / bytes * bytes } else { len.min(bytes - within) };
                Decision::Move { exceptions: self.exceptions, chunk, seen: entry, len }
            }
        }
    }

    fn wait(&self, chunk: Chunk, seen: ChunkState) -> Decision {
        Decision::WaitChunk { exceptions: self.exceptions, chunk, seen }
    }

    /// Passes as far as the store's chunks are adjacent, too.
    fn pass(&self, ex: &Exceptions, offset: u64, len: u64, chunk: Chunk, at: Place) -> Decision {
        let size = ex.chunk();
        let within = size.offset_in(offset);
        let follows = |n: u64| match ex.table.get(Chunk(chunk.0 + n)) {
            ChunkState::Mapped(next) => next.layer == at.layer && next.chunk.0 == at.chunk.0 + n,
            _ => false,
        };
        let len = len.min(run_len(size.bytes(), within, len, follows));
        let (file, offset) = ex.file_offset(at, within);
        Decision::Pass { file, offset, len, track: None }
    }

    /// Reads the origin as far as chunks are unmapped.
    fn read_origin(&self, ex: &Exceptions, offset: u64, len: u64, chunk: Chunk) -> Decision {
        let size = ex.chunk();
        let unmapped = |n: u64| ex.table.get(Chunk(chunk.0 + n)) == ChunkState::Unmapped;
        let mut len = len.min(run_len(size.bytes(), size.offset_in(offset), len, unmapped));
        if self.tracked.is_some() {
            len = len.min(Worker::MAX_TRACKED_LEN << SECTOR_SHIFT);
        }
        match (ex.origin.decide(Op::Read, offset, len), self.tracked) {
            (Decision::Pass { file, offset: at, len, .. }, Some(of)) => {
                let track = Track { of, start: offset >> SECTOR_SHIFT, len: len >> SECTOR_SHIFT };
                Decision::Pass { file, offset: at, len, track: Some(track) }
            }
            (decision, _) => decision,
        }
    }

    fn discard(
        &self,
        ex: &Exceptions,
        offset: u64,
        len: u64,
        chunk: Chunk,
        entry: ChunkState,
    ) -> Decision {
        let within = ex.chunk().offset_in(offset);
        let len = len.min(ex.chunk().bytes() - within);
        let whole = within == 0 && len == ex.own_len(chunk);
        match entry {
            ChunkState::Mapped(place)
                if self.features.discard_zeroes_cow && whole && ex.is_top(place) =>
            {
                let (file, offset) = ex.file_offset(place, 0);
                Decision::Pass { file, offset, len, track: None }
            }
            ChunkState::Pending if self.features.discard_zeroes_cow && whole => {
                self.wait(chunk, entry)
            }
            _ => Decision::Nothing { len },
        }
    }
}
