//! Syncs that fail. A store of which a guest's flush could not be synced is merged no further, whatever
//! the merge's own syncs say; to an origin of which one failed, the batch is copied again.

use super::*;
use crate::io::Errno;
use crate::request::Token;

/// A flush whose sync of the store fails, while `hold` is in force.
fn flush_fails(case: &mut Case) -> Token {
    case.world.faults.push(Fault { op: IoOp::Sync, file: STORE, skip: 0, lands: false });
    let flush = case.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
    case.world.settle();
    assert_eq!(case.store.state(), StoreState::CommitFailed);
    flush
}

/// The merge ends as one that a new start does not continue, its entries stay, and nothing makes
/// the failure forgotten.
fn is_not_merged(case: &mut Case, flush: Token, failure: MergeFailure, entries: u64) {
    case.world.settle();
    assert!(case.world.hosts[GUEST].finished.contains(&(flush, Status::Error)));
    assert_eq!(case.state(), MergeState::Failed(failure));
    assert_eq!(case.store.entries(), entries);
    let flush = case.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
    case.guest_reads_model();
    assert!(case.world.hosts[GUEST].finished.contains(&(flush, Status::Error)));
    assert_eq!(case.start_merge(), Err(MergeFailure::NotSynced));
    let mut second = case.crash();
    second.finish();
    second.check_finished();
}

/// A merge of which some entries are gone.
fn begun() -> (Case, u64) {
    let mut case = build(PLAIN);
    case.start_merge().unwrap();
    while case.store.entries() == PLAIN.entries {
        assert!(case.world.turn());
    }
    let entries = case.store.entries();
    assert!(entries > 0);
    (case, entries)
}

#[test]
fn s45_a_flush_that_fails_between_batches_ends_the_merge() {
    let (mut case, _) = begun();
    case.world.hosts[MERGE].engine.merge_pause(true);
    case.world.settle();
    let entries = case.store.entries();
    assert!(entries > 0);
    let flush = flush_fails(&mut case);
    let origin = case.origin();
    case.world.hosts[MERGE].engine.merge_pause(false);
    case.world.settle();
    assert!(case.origin() == origin, "nothing more was copied");
    is_not_merged(&mut case, flush, MergeFailure::NotSynced, entries);
}

/// At the last moment, when the store has become empty.
#[test]
fn s45_a_flush_that_fails_after_the_last_batch_ends_the_merge() {
    let mut case = build(PLAIN);
    case.start_merge().unwrap();
    // The first batch is of the last area, the second of 32 entries, the third of the rest.
    while case.store.entries() > 64 || case.world.hosts[MERGE].engine.merge_step() != Some("copy") {
        assert!(case.world.turn());
    }
    // Its end is not noticed while it is paused.
    case.world.hosts[MERGE].engine.merge_pause(true);
    case.world.settle();
    assert_eq!((case.store.entries(), case.state()), (0, MergeState::Paused));
    let flush = flush_fails(&mut case);
    case.world.hosts[MERGE].engine.merge_pause(false);
    is_not_merged(&mut case, flush, MergeFailure::NotSynced, 0);
}

#[test]
fn s45_a_flush_that_fails_while_chunks_are_copied_ends_the_merge() {
    let holds: [fn(&crate::io::Action) -> bool; 3] = [
        |action| action.op != IoOp::Read || action.tag.0 >> 48 == REQUEST,
        |action| action.op != IoOp::Write || action.file == STORE,
        |action| action.op != IoOp::Sync || action.file == STORE,
    ];
    for (hold, step) in holds.into_iter().zip(["copy", "copy", "sync origin"]) {
        let (mut case, entries) = begun();
        while case.world.hosts[MERGE].engine.merge_step() != Some("copy") {
            assert!(case.world.turn());
        }
        case.world.hold = Some(hold);
        case.world.settle();
        assert_eq!(case.world.hosts[MERGE].engine.merge_step(), Some(step));
        let flush = flush_fails(&mut case);
        case.world.hold = None;
        case.world.done.clear();
        case.world.settle();
        let wrote =
            |file| case.world.done.iter().any(|done| (done.0, done.1) == (IoOp::Write, file));
        assert!(!wrote(STORE), "nothing was erased");
        is_not_merged(&mut case, flush, MergeFailure::NotSynced, entries);
    }
}

/// The system tells of an error once, so the merge waits for a guest's sync that is in flight, and
/// learns how that ended.
#[test]
fn s45_entries_are_in_doubt_after_a_flush_that_failed_meanwhile() {
    for behind in [true, false] {
        let (mut case, entries) = if behind { (build(PLAIN), PLAIN.entries) } else { begun() };
        case.world.hold = Some(|action| action.op != IoOp::Sync || action.tag.0 >> 48 != ROUND);
        let flush = case.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
        case.world.settle();
        if behind {
            case.start_merge().unwrap();
            case.world.settle();
        }
        assert_eq!(case.world.hosts[MERGE].engine.merge_step(), Some("erase entries"));
        assert_eq!(case.world.hosts[MERGE].in_flight(), 0);
        case.world.faults.push(Fault { op: IoOp::Sync, file: STORE, skip: 0, lands: false });
        case.world.hold = None;
        case.world.settle();
        let mark = if behind { MergeMark::Failed } else { MergeMark::Unerased };
        assert_eq!(case.store.merge_mark(), mark);
        let failure = MergeFailure::SyncStore(Errno::EIO);
        is_not_merged(&mut case, flush, failure, entries);
    }
}

/// A batch whose origin could not be synced is copied again: what the sync lost is still in the store.
/// The guest's flushes fail all the same.
#[test]
fn s45_after_a_failed_sync_of_the_origin_the_batch_is_copied_again() {
    for (file, skip) in [(ORIGIN, 0), (ORIGIN2, 0), (ORIGIN, 2), (ORIGIN2, 2)] {
        let mut case = build(PLAIN);
        case.world.faults.push(Fault { op: IoOp::Sync, file, skip, lands: false });
        case.start_merge().unwrap();
        case.world.settle();
        assert!(matches!(case.state(), MergeState::Failed(MergeFailure::SyncOrigin(_))));
        case.finish();
        case.check_finished();
        let flush = case.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
        case.world.settle();
        assert!(case.world.hosts[GUEST].finished.contains(&(flush, Status::Error)));
        let second = case.crash();
        assert!(second.origin() == case.model, "{file:?} {skip}");
        second.check_finished();
    }
}

/// A guest's sync may be told, while chunks are copied, that some of these were lost.
#[test]
fn s45_a_batch_that_another_s_sync_lost_is_copied_again() {
    let mut case = build(PLAIN);
    case.start_merge().unwrap();
    while !case.world.done.iter().any(|done| (done.0, done.1) == (IoOp::Write, ORIGIN)) {
        assert!(case.world.turn());
    }
    case.world.hold = Some(|action| action.op != IoOp::Write);
    case.world.faults.push(Fault { op: IoOp::Sync, file: ORIGIN, skip: 0, lands: false });
    let flush = case.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
    case.world.settle();
    assert_eq!(case.world.hosts[GUEST].finished, [(flush, Status::Error)]);
    assert_eq!(case.world.hosts[MERGE].engine.merge_step(), Some("copy"));
    case.world.hold = None;
    case.world.settle();
    assert!(matches!(case.state(), MergeState::Failed(MergeFailure::SyncOrigin(_))));
    case.finish();
    assert!(case.crash().origin() == case.model);
}
