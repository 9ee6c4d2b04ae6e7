//! A write to an origin: its snapshots first keep the old data, durably.
//!
//! Owns the order of the steps; each turn evaluates them from scratch (known bugs 2 and 3). Keeps
//! I4 (an origin write never proceeds past a mapping that is still volatile) and I6 (nor past a
//! copy or a redirected read in flight).

use super::core::Core;
use super::dispatch::Flow;
use super::pending::Waits;
use crate::cow::StoreState;
use crate::table::Table;
use crate::target::origin::Verdict;
use crate::target::{Origin, Target};
use crate::units::{Chunk, SECTOR_SHIFT};

/// What prevents a write to a range of the origin.
#[derive(Default)]
struct Obstacles {
    /// Copies of this worker, and chunks and states that other workers change.
    waits: bool,
    /// A store is full, and a copy needs room in it.
    room: bool,
    /// Something changed during the evaluation.
    again: bool,
    /// A mapping is still volatile.
    commit: bool,
    /// The write must fail.
    refuse: bool,
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
        let found = self.look_at_snapshots(table, index, origin, at, len);
        if found.refuse {
            self.requests[index].failed = true;
            return Flow::On;
        }
        if found.again {
            return Flow::On;
        }
        if found.waits || found.room {
            self.park(index, if found.room { Waits::ForRoom } else { Waits::Yes });
            return Flow::Aside;
        }
        if found.commit {
            self.requests[index].waits = Waits::Yes;
            self.to_commit.push(index);
            return Flow::Aside;
        }
        let (start, sectors) = (at >> SECTOR_SHIFT, len >> SECTOR_SHIFT);
        if self.worker.all().overlaps(origin.tracked, start, sectors, self.worker.bit()) {
            self.park(index, Waits::Yes);
            return Flow::Aside;
        }
        if self.is_merge(index) {
            return self.advance(index, len);
        }
        self.pass_below(table, index, &origin.backing, piece.offset, len);
        Flow::On
    }

    fn look_at_snapshots(
        &mut self,
        table: &Table,
        index: usize,
        origin: &Origin,
        at: u64,
        len: u64,
    ) -> Obstacles {
        let mut found = Obstacles::default();
        for &exceptions in &origin.snapshots {
            let ex = &table.exceptions()[exceptions];
            for chunk in Origin::chunks(ex, at, len) {
                self.ask(table, index, exceptions, chunk, &mut found);
            }
        }
        found
    }

    fn ask(
        &mut self,
        table: &Table,
        index: usize,
        exceptions: usize,
        chunk: Chunk,
        found: &mut Obstacles,
    ) {
        let ex = &table.exceptions()[exceptions];
        match Origin::verdict(ex, chunk) {
            Verdict::Go => {}
            Verdict::Copy if ex.store().state() == StoreState::Full => found.room = true,
            // Already full, because of its own writes: it cannot keep the data that is overwritten
            // now.
            Verdict::Copy if ex.store().state() != StoreState::Valid => {
                self.invalidate(ex.store());
                found.waits = true;
            }
            // Its commit failed: its content can no longer be made durable.
            Verdict::Commit if ex.store().state() == StoreState::ReadOnly => {
                self.invalidate(ex.store());
                found.waits = true;
            }
            Verdict::Copy => {
                let claimed = self.claim_copy(table, index, exceptions, chunk);
                found.waits |= claimed;
                found.again |= !claimed;
            }
            Verdict::WaitChunk(seen) => {
                let waits = ex.table.wait(chunk, seen, self.worker.bit());
                found.waits |= waits;
                found.again |= !waits;
            }
            Verdict::Commit => {
                self.commit_stores[exceptions] = true;
                found.commit = true;
            }
            Verdict::WaitState => found.waits = true,
            Verdict::Refuse => found.refuse = true,
        }
    }
}
