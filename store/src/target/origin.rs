//! `snapshot-origin`: a disk whose snapshots keep the data that is overwritten.
//!
//! Owns the list of an origin's snapshots, and the check whether they allow a range to be written.
//! Never knows how their exceptions are made. Keeps I4 and I6.

use super::{Backing, Decision, Exceptions, ExceptionsId, TURN};
use crate::cow::StoreState;
use crate::exception::ChunkState;
use crate::request::Op;
use crate::units::Chunk;
use crate::workers::TrackedObject;

/// See the module's description.
#[derive(Debug)]
pub struct Origin {
    /// The extents below.
    pub backing: Backing,
    /// Its offset in the device that its snapshots name as origin, in bytes.
    pub start: u64,
    /// The id under which redirected reads of its snapshots are tracked.
    pub tracked: TrackedObject,
    /// The exceptions of the table that belong to its snapshots, largest chunk first.
    pub snapshots: Vec<ExceptionsId>,
}

/// One snapshot's answer to a write of one of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has a durable copy, or does not need one.
    Go,
    /// It needs a copy: claim the chunk.
    Copy,
    /// A worker is making a copy: wait for that.
    WaitChunk(ChunkState),
    /// It has a copy that is not durable yet: commit its store.
    Commit,
    /// It changes its state: wait for that.
    WaitState,
    /// It could not be marked invalid anywhere: the write must fail.
    Refuse,
}

impl Origin {
    /// The decision for `op` on `[offset, offset + len)` of the origin.
    #[inline]
    pub fn decide(&self, op: Op, offset: u64, len: u64) -> Decision {
        if op == Op::Read || self.snapshots.is_empty() {
            return self.backing.decide(op, offset, len);
        }
        Decision::OriginWrite { len }
    }

    /// How many bytes of a write at `offset` (of the origin as its snapshots see it) are decided
    /// at a time.
    pub fn window(&self, all: &[Exceptions], offset: u64, len: u64) -> u64 {
        let smallest = self.snapshots.iter().map(|&id| all[id].chunk());
        let Some(smallest) = smallest.min_by_key(|chunk| chunk.bytes()) else { return len };
        len.min(smallest.bytes() * TURN - smallest.offset_in(offset))
    }

    /// The answer of the snapshot `ex` to overwriting its `chunk`.
    pub fn verdict(ex: &Exceptions, chunk: Chunk) -> Verdict {
        match ex.store().state() {
            StoreState::Invalid => return Verdict::Go,
            StoreState::Invalidating => return Verdict::WaitState,
            StoreState::Unmarked => return Verdict::Refuse,
            StoreState::Valid
            | StoreState::Full
            | StoreState::Overflow
            | StoreState::CommitFailed => {}
        }
        match ex.table.get(chunk) {
            ChunkState::Unmapped => Verdict::Copy,
            entry @ (ChunkState::Pending | ChunkState::Busy(_)) => Verdict::WaitChunk(entry),
            ChunkState::Mapped(place) if ex.is_durable(place) => Verdict::Go,
            ChunkState::Mapped(_) => Verdict::Commit,
        }
    }

    /// The chunks of snapshot `ex` that `[offset, offset + len)` touches; none past its end.
    pub fn chunks(ex: &Exceptions, offset: u64, len: u64) -> impl Iterator<Item = Chunk> {
        let first = ex.chunk().chunk_of(offset).0;
        let end = (offset + len).min(ex.len);
        let last = if offset < end { ex.chunk().chunk_of(end - 1).0 + 1 } else { first };
        (first..last).map(Chunk)
    }
}
