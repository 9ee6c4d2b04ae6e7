//! Reading the list of entries.

use super::super::world::Fault;
use super::super::{MergeFailure, MergeState};
use super::case::*;
use crate::cow::MergeMark;
use crate::io::IoOp;

/// Runs a merge until it is paused after four batches.
fn before_the_fifth_batch(mut case: Case) -> Case {
    case.start_merge().unwrap();
    while case.world.hosts[MERGE].engine.merge().unwrap().done < 16 + 32 + 64
        || case.world.hosts[MERGE].engine.merge_step() != Some("copy")
    {
        assert!(case.world.turn());
    }
    case.world.hosts[MERGE].engine.merge_pause(true);
    case.world.settle();
    assert_eq!(case.world.hosts[MERGE].engine.merge().unwrap().done, 16 + 32 + 64 + 128);
    case
}

/// The parts of the list that a batch needs are read concurrently, each as whole blocks.
#[test]
fn the_list_of_a_batch_is_read_at_once() {
    let case = build(Shape { chunk: 2, sectors: 1501, entries: 700, holes: false, ..PLAIN });
    let mut case = before_the_fifth_batch(case);
    case.world.hold = Some(|action| action.op != IoOp::Read);
    case.world.hosts[MERGE].engine.merge_pause(false);
    case.world.settle();
    // A batch of 256, in areas of 64.
    assert_eq!(case.world.hosts[MERGE].engine.merge_step(), Some("between batches"));
    let parts = case.world.hosts[MERGE].in_flight();
    assert_eq!(parts, 4);
    assert_eq!(case.world.hosts[MERGE].bytes_in_flight(), parts as u64 * 1024);
    case.world.hold = None;
    case.world.settle();
    case.check_finished();
}

/// A part that cannot be read ends the merge, and nothing of the list is lost.
#[test]
fn a_list_that_cannot_be_read_is_read_again() {
    for skip in 0..6 {
        let case = build(Shape { chunk: 2, sectors: 1501, entries: 700, ..PLAIN });
        let mut case = before_the_fifth_batch(case);
        case.world.hosts[MERGE].engine.merge_pause(false);
        case.world.faults.push(Fault { op: IoOp::Read, file: STORE, skip, lands: false });
        case.world.settle();
        let failed = matches!(case.state(), MergeState::Failed(MergeFailure::ReadList { .. }));
        assert_eq!(failed, skip < 4, "{skip}: {:?}", case.state());
        assert_eq!(case.store.merge_mark(), MergeMark::Failed);
        case.finish();
        case.check_finished();
    }
}

/// An entry on disk that differs from the table: another program wrote there.
#[test]
fn a_list_that_changed_is_not_merged() {
    let mut case = build(PLAIN);
    let at = case.store.geometry().entry_offset(PLAIN.entries - 2) as usize;
    case.world.disks[STORE.0 as usize].now[at] ^= 1;
    case.start_merge().unwrap();
    case.world.settle();
    let position = PLAIN.entries - 2;
    let failure = MergeFailure::Entry { position, offset: at as u64 };
    assert_eq!(case.state(), MergeState::Failed(failure));
}
