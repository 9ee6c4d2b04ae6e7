//! A write to an origin: its snapshots first keep the old data, durably.
//!
//! Owns the order of the steps; each turn evaluates them from scratch (known bugs 2 and 3). Keeps
//! I4 (an origin write never proceeds past a mapping that is still volatile) and I6 (nor past a
//! copy or a redirected read in flight).

use super::core::Core;
use super::dispatch::Flow;
use super::pending::WaitsFor;
use crate::cow::StoreState;
use crate::table::Table;
use crate::target::origin::Verdict;
use crate::target::{ExceptionsId, Origin, Target};
use crate::units::{Chunk, SECTOR_SHIFT};

/// What prevents a write to a range of the origin: of several obstacles, the greatest is dealt with
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    /// Nothing does.
    None,
    /// A mapping is still volatile.
    Commit,
    /// Copies of this worker, and chunks and states that other workers change.
    Wait,
    /// A store is full, and a copy needs room in it.
    Room,
    /// Something changed during the evaluation.
    Again,
    /// The write must fail.
    Refuse,
}

/// What began is waited for; otherwise the chunk has changed.
fn waits(begun: bool) -> Obstacle {
    if begun { Obstacle::Wait } else { Obstacle::Again }
}

impl Core {
    pub(super) fn origin_write(&mut self, table: &Table, index: usize, len: u64) -> Flow {
        let pending = &self.requests[index];
        let piece = table.piece(pending.start + pending.cursor, len);
        let origin = match piece.target {
            Target::Origin(origin) => origin,
            Target::Merge(merge) => &merge.origin,
            Target::Plain(_) | Target::Snapshot(_) => unreachable!("no origin decides this"),
        };
        let at = origin.start + piece.offset;
        let len = origin.window(table.exceptions(), at, piece.len.min(len));
        match self.look_at_snapshots(table, index, origin, at, len) {
            Obstacle::None => {}
            Obstacle::Commit => {
                self.await_commits(table, origin, at, len);
                self.requests[index].waits = WaitsFor::Commit;
                self.to_commit.push(index);
                return Flow::Aside;
            }
            Obstacle::Wait => {
                self.park(index, WaitsFor::Wake);
                return Flow::Aside;
            }
            Obstacle::Room => {
                self.park(index, WaitsFor::Room);
                return Flow::Aside;
            }
            Obstacle::Again => return Flow::On,
            Obstacle::Refuse => {
                self.requests[index].failed = true;
                return Flow::On;
            }
        }
        let (start, sectors) = (at >> SECTOR_SHIFT, len >> SECTOR_SHIFT);
        if self.worker.all().overlaps(origin.tracked, start, sectors, self.worker.bit()) {
            self.park(index, WaitsFor::Wake);
            return Flow::Aside;
        }
        if self.is_merge(index) {
            return self.advance(index, len);
        }
        self.pass_below(table, index, &origin.backing, piece.offset, len);
        Flow::On
    }

    /// The greatest obstacle. Every chunk of every snapshot is asked, whatever the others say: what is
    /// missing is begun for all of them together.
    fn look_at_snapshots(
        &mut self,
        table: &Table,
        index: usize,
        origin: &Origin,
        at: u64,
        len: u64,
    ) -> Obstacle {
        let mut greatest = Obstacle::None;
        for &id in &origin.snapshots {
            let ex = &table.exceptions()[id];
            for chunk in Origin::chunks(ex, at, len) {
                greatest = greatest.max(self.ask(table, index, id, chunk));
            }
        }
        greatest
    }

    /// The request that is about to wait for commits waits for one of each store in which a copy is
    /// volatile. What is committed by now needs none: the request is looked at again in any case.
    fn await_commits(&mut self, table: &Table, origin: &Origin, at: u64, len: u64) {
        for &id in &origin.snapshots {
            let ex = &table.exceptions()[id];
            let is_volatile = |chunk| Origin::verdict(ex, chunk) == Verdict::Commit;
            if Origin::chunks(ex, at, len).any(is_volatile) {
                self.want_commit(id);
            }
        }
    }

    /// Begins what a chunk needs before it may be overwritten.
    fn ask(&mut self, table: &Table, index: usize, id: ExceptionsId, chunk: Chunk) -> Obstacle {
        let ex = &table.exceptions()[id];
        match Origin::verdict(ex, chunk) {
            Verdict::Go => Obstacle::None,
            Verdict::Copy if ex.store().state() == StoreState::Full => Obstacle::Room,
            // Already full, because of its own writes: it cannot keep the data that is overwritten
            // now.
            Verdict::Copy if ex.store().state() != StoreState::Valid => {
                self.invalidate(ex.store());
                Obstacle::Wait
            }
            // Its commit failed: its content can no longer be made durable.
            Verdict::Commit if ex.store().state() == StoreState::CommitFailed => {
                self.invalidate(ex.store());
                Obstacle::Wait
            }
            Verdict::Copy => waits(self.claim_copy(table, index, id, chunk)),
            Verdict::WaitChunk(seen) => waits(ex.table.wait(chunk, seen, self.worker.bit())),
            // Now, although it may have to wait for something else first; but once, however often it is
            // looked at meanwhile.
            Verdict::Commit => {
                self.commit_soon(table, id);
                Obstacle::Commit
            }
            Verdict::WaitState => Obstacle::Wait,
            Verdict::Refuse => Obstacle::Refuse,
        }
    }
}
