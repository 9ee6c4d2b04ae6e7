//! The path of a request: piece by piece to its place in the table, or parked until it can
//! proceed.
//!
//! Owns the translation of a [`Decision`] into the next step. Never knows how a chunk is moved or
//! a store committed.

use std::sync::Arc;

use super::core::{Core, FileRange};
use super::pending::{Asker, WaitsFor};
use crate::cow::{Store, StoreState};
use crate::exception::ChunkState;
use crate::io::IoOp;
use crate::request::Op;
use crate::table::Table;
use crate::target::{Decision, Target, Track};

/// Actions of an engine in flight, beyond which requests get no further pieces: how many pieces a request
/// has is up to the guest and to where its chunks lie.
pub(super) const MOST_ACTIONS: usize = 2048;
/// So many of them end before requests get pieces again, or each that ends would have all looked at.
const PAUSE: usize = 256;

/// Whether a request proceeds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// With its next piece, or with this one again.
    On,
    /// When something else ends: it was parked until its worker is woken, or queued for a commit.
    Aside,
}

impl Core {
    /// Advances a request as far as possible. It counts as waiting meanwhile: a part that fails
    /// immediately does not end the request during its own dispatch.
    pub(super) fn dispatch(&mut self, table: &Table, index: usize) {
        let pending = &mut self.requests[index];
        let waited = std::mem::replace(&mut pending.waits, WaitsFor::Dispatch);
        // A device may have been made shorter while this was held.
        pending.failed |= pending.start + pending.len > table.size().bytes();
        if waited == WaitsFor::Batch && self.has_batch_failed(table, index) {
            self.requests[index].failed = true;
        }
        let pending = &self.requests[index];
        if pending.no_space && !pending.failed {
            if self.still_lacks_room(table, index) {
                return self.park(index, WaitsFor::Room);
            }
            // It is retried, and may fail for another reason now.
            self.requests[index].no_space = false;
        }
        loop {
            let pending = &self.requests[index];
            if pending.failed || pending.cursor == pending.len {
                break;
            }
            self.crowded |= self.in_flight >= MOST_ACTIONS;
            if self.crowded {
                return self.park(index, WaitsFor::Wake);
            }
            if self.next_piece(table, index) == Flow::Aside {
                return;
            }
        }
        self.requests[index].waits = WaitsFor::Parts;
        self.maybe_ended(index);
    }

    /// An action ended. Requests that were given no more pieces get some, the eldest first.
    #[inline]
    pub(super) fn look_at_crowd(&mut self) {
        if self.crowded && self.in_flight + PAUSE <= MOST_ACTIONS {
            (self.crowded, self.freed) = (false, true);
        }
    }

    fn next_piece(&mut self, table: &Table, index: usize) -> Flow {
        let pending = &self.requests[index];
        let (op, at, left) =
            (pending.op, pending.start + pending.cursor, pending.len - pending.cursor);
        if self.is_merge(index) {
            return self.origin_write(table, index, left);
        }
        let decision = table.decide(op, at, left);
        match decision {
            Decision::Pass { file, offset, len, track } => {
                self.pass(table, index, FileRange { file, offset, len }, track)
            }
            Decision::Clear { len } => {
                self.act_for_request(IoOp::Clear, FileRange::nowhere(len), index, None);
                self.advance(index, len)
            }
            Decision::Nothing { len } => {
                self.discard_origin(table, index, len);
                self.advance(index, len)
            }
            Decision::Fail => {
                let is_full = |store: &Arc<Store>| store.state() == StoreState::Overflow;
                let pending = &mut self.requests[index];
                pending.no_space |= op != Op::Read && table.stores_of(at, 1).any(is_full);
                pending.failed = true;
                Flow::On
            }
            Decision::Move { exceptions, chunk, seen, len } => {
                self.move_chunk(table, index, exceptions, chunk, seen, len)
            }
            Decision::OriginWrite { len } => self.origin_write(table, index, len),
            Decision::WaitChunk { exceptions, chunk, seen } => {
                let ex = &table.exceptions()[exceptions];
                if ex.table.wait(chunk, seen, self.worker.bit()) {
                    let batch = matches!(seen, ChunkState::Busy(_));
                    self.park(index, if batch { WaitsFor::Batch } else { WaitsFor::Wake });
                    return Flow::Aside;
                }
                Flow::On
            }
            // The worker that ends the change wakes all workers.
            Decision::WaitState => {
                self.park(index, WaitsFor::Wake);
                Flow::Aside
            }
            Decision::WaitRoom => {
                self.park(index, WaitsFor::Room);
                Flow::Aside
            }
        }
    }

    /// Whether the batch that a request waited for has failed: the chunk is where it was before. Otherwise
    /// it is on the origin, or still waited for.
    #[cold]
    fn has_batch_failed(&self, table: &Table, index: usize) -> bool {
        let pending = &self.requests[index];
        let piece = table.piece(pending.start + pending.cursor, 1);
        let Target::Merge(merge) = piece.target else { return false };
        let ex = &table.exceptions()[merge.exceptions];
        matches!(ex.table.get(ex.chunk().chunk_of(piece.offset)), ChunkState::Mapped(_))
    }

    /// A piece of the request was handled.
    pub(super) fn advance(&mut self, index: usize, len: u64) -> Flow {
        self.requests[index].cursor += len;
        Flow::On
    }

    fn pass(
        &mut self,
        table: &Table,
        index: usize,
        range: FileRange,
        track: Option<Track>,
    ) -> Flow {
        let pending = &self.requests[index];
        let (op, at, left) =
            (pending.op, pending.start + pending.cursor, pending.len - pending.cursor);
        let mut tracked = None;
        if let Some(track) = track {
            let Some(id) = self.worker.track(track.of, track.start, track.len) else {
                // A range of this worker ends first, and then the parked requests are checked
                // again.
                self.park(index, WaitsFor::Wake);
                return Flow::Aside;
            };
            // The condition that allowed the range may have changed before the range was visible.
            let FileRange { file, offset, len } = range;
            let same = Decision::Pass { file, offset, len, track: Some(track) };
            if table.decide(op, at, left) != same {
                self.worker.untrack(id);
                return Flow::On;
            }
            tracked = Some(id);
        }
        self.act_for_request(io_op(table, op, at), range, index, tracked);
        self.discard_origin(table, index, range.len);
        self.advance(index, range.len)
    }

    /// `discard_passdown_origin`: the discard of a snapshot's range also goes to the origin's
    /// file, past all exceptions.
    fn discard_origin(&mut self, table: &Table, index: usize, len: u64) {
        let pending = &self.requests[index];
        let (op, at) = (pending.op, pending.start + pending.cursor);
        if op != Op::Discard {
            return;
        }
        let piece = table.piece(at, len);
        let Target::Snapshot(snapshot) = piece.target else { return };
        if !snapshot.features.discard_passdown_origin {
            return;
        }
        let origin = &table.exceptions()[snapshot.exceptions].origin;
        let mut done = 0;
        while done < len {
            done += match origin.decide(op, piece.offset + done, len - done) {
                Decision::Pass { file, offset, len, .. } => {
                    let range = FileRange { file, offset, len };
                    self.act_for_request(IoOp::Discard, range, index, None);
                    len
                }
                Decision::Nothing { len } | Decision::Clear { len } => len,
                _ => {
                    self.requests[index].failed = true;
                    break;
                }
            };
        }
    }

    /// Sends `[offset, offset + len)` of an origin below its snapshots, which allowed it.
    pub(super) fn pass_below(
        &mut self,
        table: &Table,
        index: usize,
        backing: &crate::target::Backing,
        offset: u64,
        len: u64,
    ) {
        let (op, at) = (self.requests[index].op, self.requests[index].start);
        let io = io_op(table, op, at);
        let mut done = 0;
        while done < len && !self.requests[index].failed {
            match backing.decide(op, offset + done, len - done) {
                Decision::Pass { file, offset, len, .. } => {
                    self.act_for_request(io, FileRange { file, offset, len }, index, None);
                    self.requests[index].cursor += len;
                    done += len;
                }
                Decision::Nothing { len } | Decision::Clear { len } => {
                    self.requests[index].cursor += len;
                    done += len;
                }
                _ => self.requests[index].failed = true,
            }
        }
    }

    /// Whether the request came from the merge that runs here.
    pub(super) fn is_merge(&self, index: usize) -> bool {
        self.requests[index].asker == Asker::Merge
    }
}

/// The operation on the file for a request that passes: a discard in a store must leave zeroes.
fn io_op(table: &Table, op: Op, at: u64) -> IoOp {
    match op {
        Op::Read => IoOp::Read,
        Op::Write => IoOp::Write,
        Op::WriteZeroes { unmap: true } => IoOp::Punch,
        Op::WriteZeroes { unmap: false } => IoOp::Zero,
        Op::Discard => match table.piece(at, 1).target {
            Target::Plain(_) | Target::Origin(_) => IoOp::Discard,
            Target::Snapshot(_) | Target::Merge(_) => IoOp::Punch,
        },
        Op::Flush => IoOp::Sync,
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
