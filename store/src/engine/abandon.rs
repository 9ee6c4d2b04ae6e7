//! The end of an engine of whose I/O nobody will hear.
//!
//! Owns what becomes of the rounds that it leads: they end as failed, since nobody knows how they
//! would have ended, and who waits for them learns of that. Never knows why the I/O cannot be waited
//! for. An engine that is quiet leads none.

use super::core::Core;
use crate::table::Table;

impl Core {
    /// Ends what it carries out for others. Its own requests never end.
    pub(super) fn abandon(&mut self, table: &Table) {
        // It leads no round after these.
        self.stopping = true;
        while let Some((index, _)) = self.syncs.iter().next() {
            self.synced(index, false);
        }
        while let Some((index, round)) = self.rounds.iter().next() {
            match round.has_begun() {
                true => self.round_io_done(table, index, false),
                false => self.end_round(index, false),
            }
        }
        self.abandon_invalidations();
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::sync::Arc;

    use crate::engine::{Engine, EngineConfig};
    use crate::io::{Completion, FileId, IoOp};
    use crate::request::{Op, Request, Status, Token};
    use crate::table::{Line, Table};
    use crate::target::{Backing, Medium, Target};
    use crate::units::Sector;
    use crate::workers::{Wake, Workers};

    struct NoWake;

    impl Wake for NoWake {
        fn wake(&self) {}
    }

    /// An engine that serves `table` and has been asked to flush it.
    fn flushing(workers: &Arc<Workers>, table: &Arc<Table>) -> Engine {
        let mut engine = Engine::new(workers, Box::new(NoWake), EngineConfig::default()).unwrap();
        engine.bind(Some(table.clone()));
        let (token, sector) = (Token(0), Sector(0));
        engine.submit(Request { token, op: Op::Flush, sector, len: 0, durable: false });
        engine.step();
        engine
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
        while let Some(action) = later.pop_action() {
            later.complete(Completion { tag: action.tag, result: Ok(()) });
            later.step();
        }
        assert_eq!(later.pop_finished(), Some((Token(0), Status::Error)));
    }
}
