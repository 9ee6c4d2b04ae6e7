//! The end of an engine of whose I/O nobody will hear.
//!
//! Owns what becomes of its claims, and of the rounds that it leads: they end as failed, since nobody
//! knows how they would have ended, and who waits for them learns of that. Never knows why the I/O
//! cannot be waited for. An engine that is quiet has none. The batch of a merge stays as it is: whether
//! it is on the origin is not known, and writes to its chunks wait for the next start.

use super::core::Core;
use crate::io::Errno;
use crate::table::Table;

impl Core {
    /// Ends what it carries out for others. Its own requests never end.
    pub(super) fn abandon(&mut self, table: &Table) {
        // It leads no round after these.
        self.stopping = true;
        self.abandon_claims(table);
        while let Some((index, _)) = self.syncs.iter().next() {
            self.synced(index, Err(Errno::EIO));
        }
        while let Some((index, round)) = self.rounds.iter().next() {
            match round.has_begun() {
                true => self.round_io_done(table, index, Err(Errno::EIO)),
                false => self.end_round(index, Err(Errno::EIO)),
            }
        }
        self.abandon_invalidations();
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::sync::Arc;

    use crate::engine::merge::world::{Disk, open, store_image};
    use crate::engine::{Engine, EngineConfig};
    use crate::io::{Completion, FileId, IoOp};
    use crate::request::{Op, Request, Status, Token};
    use crate::table::{Line, Table};
    use crate::target::{Backing, Exceptions, ExceptionsId, Medium, Snapshot, Target};
    use crate::units::{ChunkSize, Sector};
    use crate::wake::WorkerBit;
    use crate::workers::{TrackedObject, Wake, Workers};

    /// Bytes of an overlay.
    const LEN: u64 = 8 * 4096;

    struct NoWake;

    impl Wake for NoWake {
        fn wake(&self) {}
    }

    /// An engine that serves `table` and has been asked for `op` on its first `len` bytes.
    fn asked(workers: &Arc<Workers>, table: &Arc<Table>, op: Op, len: u64) -> Engine {
        let mut engine = Engine::new(workers, Box::new(NoWake), EngineConfig::default()).unwrap();
        engine.bind(Some(table.clone()));
        let (token, sector) = (Token(0), Sector(0));
        engine.submit(Request { token, op, sector, len, durable: false });
        engine.step();
        engine
    }

    /// An engine that serves `table` and has been asked to flush it.
    fn flushing(workers: &Arc<Workers>, table: &Arc<Table>) -> Engine {
        asked(workers, table, Op::Flush, 0)
    }

    /// Carries out what the engine asks for, until it asks for nothing.
    fn carry_out(engine: &mut Engine) {
        while let Some(action) = engine.pop_action() {
            engine.complete(Completion { tag: action.tag, result: Ok(()) });
            engine.step();
        }
    }

    /// Eight chunks of an overlay with an empty store; reads of the origin are tracked.
    fn overlay() -> Arc<Table> {
        let chunk = ChunkSize::from_sectors(8).unwrap();
        let (exceptions, store) = open(&mut Disk::new(store_image(chunk, 64, &[])), FileId(1), LEN);
        let origin = Backing::file(Arc::new(Medium::new(FileId(0))), 0, LEN);
        let ex = Exceptions { table: exceptions, layers: vec![store], origin, len: LEN };
        let features = Default::default();
        let tracked = Some(TrackedObject(7));
        let target = Target::Snapshot(Snapshot { exceptions: ExceptionsId(0), tracked, features });
        Arc::new(Table::new(vec![Line { start: 0, len: LEN, target }], vec![ex]))
    }

    #[test]
    fn who_waits_for_a_chunk_of_an_engine_that_ends_moves_it() {
        // One ends while it reads the rest of a chunk, the other while it writes several.
        for (len, op) in [(512, IoOp::Read), (LEN, IoOp::Write)] {
            let (table, workers) = (overlay(), Arc::new(Workers::with_capacity(3)));
            let mut mover = asked(&workers, &table, Op::Write, len);
            let mut other = asked(&workers, &table, Op::Write, 512);
            assert!(other.pop_action().is_none(), "it waits for the mover");
            assert_eq!(mover.pop_action().map(|action| action.op), Some(op));
            drop(mover);
            other.step();
            carry_out(&mut other);
            assert_eq!(other.pop_finished(), Some((Token(0), Status::Ok)));
            assert!(other.is_quiet());
            let mut flush = flushing(&workers, &table);
            carry_out(&mut flush);
            assert_eq!(flush.pop_finished(), Some((Token(0), Status::Ok)), "no slot is in use");
        }
    }

    #[test]
    fn a_read_of_an_engine_that_ends_is_no_obstacle() {
        let (table, workers) = (overlay(), Arc::new(Workers::with_capacity(2)));
        let mut reader = asked(&workers, &table, Op::Read, 512);
        assert!(reader.pop_action().is_some());
        assert!(workers.overlaps(TrackedObject(7), 0, 1, WorkerBit::of(1)));
        drop(reader);
        assert!(!workers.overlaps(TrackedObject(7), 0, 1, WorkerBit::of(1)));
    }

    #[test]
    fn who_waits_for_a_sync_of_an_engine_that_ends_is_told_that_it_failed() {
        let medium = Arc::new(Medium::new(FileId(0)));
        let target = Target::Plain(Backing::file(medium, 0, 512));
        let table = Table::new(vec![Line { start: 0, len: 512, target }], Vec::new());
        let (table, workers) = (Arc::new(table), Arc::new(Workers::with_capacity(3)));
        let mut leader = flushing(&workers, &table);
        assert_eq!(leader.pop_action().map(|action| action.op), Some(IoOp::Sync));
        let mut waiter = flushing(&workers, &table);
        assert!(waiter.pop_action().is_none(), "the leader's sync is in flight");
        drop(leader);
        waiter.step();
        assert_eq!(waiter.pop_finished(), Some((Token(0), Status::Error)));
        // Nobody knows what was lost: no later one may succeed.
        let mut later = flushing(&workers, &table);
        carry_out(&mut later);
        assert_eq!(later.pop_finished(), Some((Token(0), Status::Error)));
    }
}
