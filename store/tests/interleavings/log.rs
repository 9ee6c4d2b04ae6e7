//! The log: a leader covers the chunks that it promised, and uncommitted chunks are always
//! reported.

use shuttle::sync::atomic::{AtomicBool, Ordering};

use snapblk_store::cow::log::{LOG_WORDS, RING};
use snapblk_store::cow::words::Words;
use snapblk_store::cow::{Allocation, Log};
use snapblk_store::rounds::{Join, RoundEnd};
use snapblk_store::units::{Chunk, DataIndex};
use snapblk_store::wake::WakeSet;

use super::{Sleeper, check, check_more, with_workers};

fn commit(me: &Sleeper, log: &Log) {
    let bit = me.worker.bit();
    let lead = |log: &Log| {
        loop {
            let upto = log.next();
            while log.first_unended(log.committed(), upto) < upto {
                me.sleep();
            }
            for index in log.committed().0..upto.0 {
                log.entry(DataIndex(index));
            }
            log.set_committed(upto);
            let RoundEnd { wake, lead } = log.end_round(true);
            me.worker.all().wake(wake);
            if lead.is_none() {
                break;
            }
        }
    };
    let ticket = match log.join(bit) {
        Join::Lead(ticket) => {
            lead(log);
            ticket
        }
        Join::Wait(ticket) => ticket,
    };
    while !log.poll(ticket, bit) {
        me.sleep();
    }
}

/// I2, I16: a worker whose ticket has ended finds its own chunks committed; no worker waits
/// forever, not even if the ring is full.
#[test]
fn a_commit_covers_what_was_written_before_it_was_joined() {
    check(|| {
        let log = Log::new(Words::private(LOG_WORDS), DataIndex(0), 100);
        let log = with_workers(3, log, |number, me, log| {
            for round in 0..2 {
                let Allocation::Run { first, count } = log.allocate(RING / 3 + 1) else {
                    commit(me, log);
                    continue;
                };
                for index in first.0..first.0 + count {
                    let old = (number != round).then_some(Chunk(index));
                    me.worker.all().wake(log.finish(DataIndex(index), old));
                }
                commit(me, log);
                assert!(log.committed().0 >= first.0 + count);
            }
        });
        assert_eq!(log.committed(), log.next());
    });
}

/// I17: the thread that commits unflushed chunks sleeps without a limit only if nothing is owed,
/// and the worker of the first owed chunk wakes it.
#[test]
fn whatever_is_owed_somebody_was_told_of() {
    check_more(20, || {
        let log = Log::new(Words::private(LOG_WORDS), DataIndex(0), 100);
        let one = |log: &Log| {
            let Allocation::Run { first, .. } = log.allocate(1) else { panic!("no room") };
            (log.is_first_owed(first), log.finish(first, Some(Chunk(first.0))))
        };
        assert_eq!(one(&log), (true, WakeSet::NONE));
        let shared = (log, AtomicBool::new(true));
        let shared = with_workers(3, shared, move |number, me, (log, told)| match number {
            0 => {
                told.store(false, Ordering::SeqCst);
                if log.owed_count() > 0 {
                    told.store(true, Ordering::SeqCst);
                }
            }
            1 => commit(me, log),
            _ => {
                let (is_first, waiting) = one(log);
                if is_first {
                    told.store(true, Ordering::SeqCst);
                }
                me.worker.all().wake(waiting);
            }
        });
        let (log, told) = &*shared;
        assert!(
            log.owed_count() == 0 || told.load(Ordering::SeqCst),
            "{} are owed",
            log.owed_count()
        );
    });
}
