//! `snapshot-merge`: a device with the content of a snapshot while the snapshot is copied back
//! into the origin.
//!
//! Owns what the merging device does with each kind of request. Never knows how far the merge is:
//! the table says which chunks are still in the store, which are being copied, and which are back
//! on the origin. Makes no new exceptions in its own store.

use super::{Decision, Exceptions, ExceptionsId, Origin, Track, run_len};
use crate::cow::{MergeMark, StoreState};
use crate::exception::{ChunkState, Place};
use crate::request::Op;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::units::{Chunk, SECTOR_SHIFT};
use crate::workers::{TrackedObject, Worker};

/// See the module's description.
#[derive(Debug)]
pub struct Merge {
    /// Which exceptions of the table are being merged.
    pub exceptions: ExceptionsId,
    /// The origin that it is merged into; its other snapshots are protected.
    pub origin: Origin,
    /// The id under which writes to mapped chunks are tracked.
    pub writes: TrackedObject,
    /// Whether the guest uses the device.
    pub in_use: InUse,
}

/// Set by each request of the guest, taken by the copying job.
#[derive(Debug, Default)]
pub struct InUse(AtomicBool);

impl InUse {
    /// A request came. A set flag is not written again, because workers share it.
    #[inline]
    fn note(&self) {
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request came since the last call.
    pub fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

impl Merge {
    /// The decision for `op` on `[offset, offset + len)` of the merging device.
    #[inline]
    pub fn decide(&self, ex: &Exceptions, op: Op, offset: u64, len: u64) -> Decision {
        self.in_use.note();
        match ex.store().state() {
            StoreState::Invalidating => return Decision::WaitState,
            StoreState::Invalid | StoreState::Unmarked => {
                return self.origin.decide(op, offset, len);
            }
            _ => {}
        }
        let chunk = ex.chunk().chunk_of(offset);
        let entry = ex.table.get(chunk);
        match (op, entry) {
            (Op::Discard, _) => Decision::Nothing { len },
            (Op::Read, ChunkState::Mapped(place) | ChunkState::Busy(place)) => {
                self.pass(ex, op, offset, len, chunk, place)
            }
            (_, ChunkState::Mapped(place)) => self.pass(ex, op, offset, len, chunk, place),
            // It is not known whether the chunk is still in the store: a write could go to the
            // wrong place.
            (_, ChunkState::Busy(_)) if ex.store().merge_mark() == MergeMark::Unerased => {
                Decision::Fail
            }
            (_, ChunkState::Busy(_) | ChunkState::Pending) => {
                Decision::WaitChunk { exceptions: self.exceptions, chunk, seen: entry }
            }
            (_, ChunkState::Unmapped) => {
                let size = ex.chunk();
                let home = |n: u64| ex.table.get(Chunk(chunk.0 + n)) == ChunkState::Unmapped;
                let run = run_len(size.bytes(), size.offset_in(offset), len, home);
                self.origin.decide(op, offset, len.min(run))
            }
        }
    }

    /// Passes as far as the store's chunks are adjacent, too.
    fn pass(
        &self,
        ex: &Exceptions,
        op: Op,
        offset: u64,
        len: u64,
        chunk: Chunk,
        at: Place,
    ) -> Decision {
        let size = ex.chunk();
        let within = size.offset_in(offset);
        let follows = |n: u64| match (op, ex.table.get(Chunk(chunk.0 + n))) {
            (_, ChunkState::Mapped(next)) | (Op::Read, ChunkState::Busy(next)) => {
                next.layer == at.layer && next.chunk.0 == at.chunk.0 + n
            }
            _ => false,
        };
        let len = len.min(run_len(size.bytes(), within, len, follows));
        let len = len.min(Worker::MAX_TRACKED_LEN << SECTOR_SHIFT);
        let track = (op != Op::Read).then_some(Track {
            of: self.writes,
            start: offset >> SECTOR_SHIFT,
            len: len >> SECTOR_SHIFT,
        });
        let (file, offset) = ex.file_offset(at, within);
        Decision::Pass { file, offset, len, track }
    }
}
