use super::*;

fn log(capacity: u64) -> Log {
    Log::new(Words::private(LOG_WORDS), DataIndex(0), capacity)
}

fn run(first: u64, count: u64) -> Allocation {
    Allocation::Run { first: DataIndex(first), count }
}

#[test]
fn chunks_are_given_out_in_order_until_the_store_is_full() {
    let log = log(5);
    assert_eq!(log.allocate(3), run(0, 3));
    assert_eq!(log.allocate(3), run(3, 2));
    assert_eq!(log.allocate(1), Allocation::StoreFull);
    log.set_capacity(6);
    assert_eq!(log.allocate(3), run(5, 1));
}

#[test]
fn the_ring_bounds_what_is_owed() {
    let log = log(1 << 20);
    assert_eq!(log.allocate(1 << 20), run(0, RING));
    assert_eq!(log.allocate(1), Allocation::LogFull);
    assert_eq!(log.finish(DataIndex(0), Some(Chunk(9))), WakeSet::NONE);
    assert_eq!(log.first_unended(DataIndex(0), DataIndex(1)), DataIndex(1));
    log.set_committed(DataIndex(1));
    assert_eq!(log.allocate(2), run(RING, 1));
}

#[test]
fn who_owes_first_is_told_so() {
    let log = log(10);
    assert_eq!((log.owed_count(), log.allocate(2)), (0, run(0, 2)));
    assert!(log.is_first_owed(DataIndex(0)));
    assert_eq!((log.owed_count(), log.allocate(2)), (2, run(2, 2)));
    assert!(!log.is_first_owed(DataIndex(2)));
    log.set_committed(DataIndex(3));
    assert_eq!((log.owed_count(), log.allocate(1)), (1, run(4, 1)));
    assert!(!log.is_first_owed(DataIndex(4)));
    log.set_committed(DataIndex(5));
    assert_eq!((log.owed_count(), log.allocate(1)), (0, run(5, 1)));
    assert!(log.is_first_owed(DataIndex(5)));
    assert!(!Log::transient(10).is_first_owed(DataIndex(0)));
}

#[test]
fn a_longer_ring_lets_more_be_owed_before_a_commit() {
    let ring = 4 * RING;
    let log = Log::new(Words::private(words_for(ring)), DataIndex(7), 1 << 40);
    assert_eq!(log.allocate(ring / 2), run(7, ring / 2));
    assert!(!log.wants_commit());
    assert_eq!(log.allocate(1), run(7 + ring / 2, 1));
    assert!(log.wants_commit());
    assert_eq!(log.allocate(ring), run(8 + ring / 2, ring / 2 - 1));
    assert_eq!(log.allocate(1), Allocation::LogFull);
    for (old, index) in (7..7 + ring).enumerate() {
        assert_eq!(log.finish(DataIndex(index), Some(Chunk(old as u64))), WakeSet::NONE);
    }
    let (owed, first) = Log::owed(&log.words);
    assert_eq!((owed.len() as u64, first), (ring, DataIndex(7)));
    assert!(owed.iter().all(|&(index, old)| index.0 == 7 + old.0));
}

#[test]
fn what_is_unsynced_is_not_owed() {
    let log = log(20);
    assert_eq!(log.allocate(6), run(0, 6));
    for index in [0, 1, 2, 4, 5] {
        assert_eq!(log.finish(DataIndex(index), Some(Chunk(10 + index))), WakeSet::NONE);
    }
    log.set_committed(DataIndex(1));
    let owed = || Log::owed(&log.words).0.iter().map(|entry| entry.0.0).collect::<Vec<_>>();
    assert_eq!((owed(), Log::unsynced_owed(&log.words)), (vec![1, 2, 4, 5], 0));
    log.mark_unsynced(DataIndex(4));
    assert_eq!((owed(), Log::unsynced_owed(&log.words)), (vec![1, 2], 2));
    // All after them are, too, also later ones.
    log.mark_unsynced(DataIndex(5));
    assert_eq!(log.allocate(1), run(6, 1));
    assert_eq!(log.finish(DataIndex(6), Some(Chunk(16))), WakeSet::NONE);
    assert_eq!((owed(), Log::unsynced_owed(&log.words)), (vec![1, 2], 3));
    Log::mark_owed_unsynced(&log.words);
    assert_eq!((owed(), Log::unsynced_owed(&log.words)), (vec![], 5));
}

#[test]
fn a_sync_in_flight_makes_nothing_unsynced_and_is_counted() {
    let log = log(20);
    assert_eq!(log.allocate(2), run(0, 2));
    for index in 0..2 {
        assert_eq!(log.finish(DataIndex(index), Some(Chunk(index))), WakeSet::NONE);
    }
    let says = || (Log::was_syncing(&log.words), Log::has_unsynced(&log.words));
    log.words[UNSYNCED].store(8, Ordering::Relaxed);
    for _ in 0..2 {
        log.sync_begins();
        assert_eq!((says(), Log::unsynced_owed(&log.words)), ((true, false), 0));
        // Earlier versions take it for the first unsynced chunk.
        let first = (log.words[UNSYNCED].load(Ordering::Relaxed) >> 32) - 1;
        assert!(first > log.next().0);
    }
    log.sync_ended();
    assert!(says().0, "one is still in flight");
    log.sync_ended();
    assert_eq!(log.words[UNSYNCED].load(Ordering::Relaxed), 8);
    log.sync_begins();
    log.mark_unsynced(DataIndex(1));
    assert_eq!((says(), Log::unsynced_owed(&log.words)), ((false, true), 1));
    // What is unsynced stays so, whichever sync succeeds.
    log.sync_ended();
    log.sync_begins();
    assert_eq!((says(), Log::unsynced_owed(&log.words)), ((false, true), 1));
}

#[test]
fn the_leader_is_woken_by_the_slot_it_waits_for() {
    let log = log(10);
    assert!(matches!(log.join(WorkerBit::of(7)), Join::Lead(_)));
    assert_eq!(log.allocate(2), run(0, 2));
    assert_eq!(log.finish(DataIndex(1), Some(Chunk(5))), WakeSet::NONE);
    assert_eq!(log.first_unended(DataIndex(0), DataIndex(2)), DataIndex(0));
    assert_eq!(log.finish(DataIndex(0), None), WorkerBit::of(7).into());
    assert_eq!(log.first_unended(DataIndex(0), DataIndex(2)), DataIndex(2));
    assert_eq!(log.entry(DataIndex(0)), None);
    assert_eq!(log.entry(DataIndex(1)), Some(Chunk(5)));
}

/// As earlier versions made it.
#[test]
fn a_shorter_ring_is_read_as_long_as_it_is() {
    const SHORT: u64 = 8192;
    let words = Words::private(SLOTS + SHORT as usize);
    words[COMMITTED].store(3 * SHORT - 1, Ordering::Relaxed);
    words[NEXT].store(3 * SHORT + 2, Ordering::Relaxed);
    for (at, old) in [(SHORT - 1, 70), (0, 80), (1, 90)] {
        let done = Slot::Done(Chunk(old)).to_word();
        words[SLOTS + at as usize].store(done, Ordering::Relaxed);
    }
    let first = 3 * SHORT - 1;
    let owed = |olds: &[u64]| {
        let entries = olds.iter().zip(first..);
        entries.map(|(&old, at)| (DataIndex(at), Chunk(old))).collect::<Vec<_>>()
    };
    assert_eq!(Log::owed(&words), (owed(&[70, 80, 90]), DataIndex(first)));
    Log::move_owed(&words, Chunk(90), DataIndex(first + 2), DataIndex(first + 1));
    assert_eq!(Log::owed(&words), (owed(&[70, 90]), DataIndex(first)));
    assert!(Log::fits(&words) && !Log::fits(&Words::private(SLOTS)));
}

#[test]
fn what_a_dead_process_owed_is_found_again() {
    let words = Words::private(LOG_WORDS);
    let before = Log::new(words, DataIndex(3), 100);
    assert_eq!(before.allocate(3), run(3, 3));
    assert_eq!(before.finish(DataIndex(5), Some(Chunk(50))), WakeSet::NONE);
    assert_eq!(before.finish(DataIndex(3), Some(Chunk(30))), WakeSet::NONE);
    let (owed, first) = Log::owed(&before.words);
    assert_eq!(owed, [(DataIndex(3), Chunk(30)), (DataIndex(5), Chunk(50))]);
    assert_eq!(first, DataIndex(3));
}

#[test]
fn what_is_owed_moves_to_where_nothing_was_written() {
    let before = Log::new(Words::private(LOG_WORDS), DataIndex(3), 100);
    assert_eq!(before.allocate(3), run(3, 3));
    assert_eq!(before.finish(DataIndex(5), Some(Chunk(50))), WakeSet::NONE);
    // Cut off between the two: the earlier word counts.
    let both = before.copy_words();
    Log::move_owed(&both, Chunk(50), DataIndex(4), DataIndex(3));
    assert_eq!(Log::owed(&both).0, [(DataIndex(3), Chunk(50))]);
    Log::move_owed(&before.words, Chunk(50), DataIndex(5), DataIndex(3));
    assert_eq!(Log::owed(&before.words).0, [(DataIndex(3), Chunk(50))]);
    assert!(!before.is_done(DataIndex(5)));
}
