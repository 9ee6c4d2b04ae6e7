//! Writes that wait for a batch that fails before its entries are erased.

use super::*;
use crate::request::Token;

/// A merge that has a batch in hand, and a guest's write of `of` that waits for one of its chunks.
fn queued(of: u64) -> (Case, Token, u64) {
    let mut case = build(PLAIN);
    case.start_merge().unwrap();
    let ex = case.table.exceptions()[0].table.clone();
    let busy = || (0..ex.chunks()).find(|&n| matches!(ex.get(Chunk(n)), ChunkState::Busy(_)));
    let chunk = loop {
        // The engines advance, before any of the batch's I/O is carried out.
        case.world.hold = Some(|_| false);
        case.world.turn();
        if let Some(chunk) = busy() {
            break chunk;
        }
        case.world.hold = None;
        assert!(case.world.turn());
    };
    let data = stamp(chunk, 1, of);
    let token = case.world.hosts[GUEST].submit(Op::Write, chunk * 512, 512, data);
    case.world.settle();
    assert!(case.world.hosts[GUEST].finished.is_empty());
    case.world.hold = None;
    (case, token, chunk)
}

/// The batch in hand fails.
fn fails(case: &mut Case, op: IoOp, file: crate::io::FileId) {
    case.world.faults.push(Fault { op, file, skip: 0, lands: false });
    case.world.settle();
    assert!(matches!(case.state(), MergeState::Failed(_)));
    assert_eq!(case.store.merge_mark(), MergeMark::Failed);
}

/// 45: they fail, whichever step did; later ones go to the store.
#[test]
fn s45_writes_that_wait_for_a_batch_fail_with_it() {
    for (op, file) in [(IoOp::Read, STORE), (IoOp::Write, ORIGIN2), (IoOp::Sync, ORIGIN)] {
        let (mut case, token, chunk) = queued(0xbad);
        fails(&mut case, op, file);
        assert_eq!(case.world.hosts[GUEST].finished, [(token, Status::Error)], "{op:?}");
        case.guest_reads_model();
        let later = case.guest_write(chunk, 1, 0x600d);
        case.world.settle();
        case.ended_ok(later);
        case.guest_reads_model();
        let mut second = case.crash();
        second.finish();
        second.check_finished();
        if op != IoOp::Sync {
            case.finish();
            case.check_finished();
            assert!(case.origin() == case.model);
        }
    }
}

/// One that a suspend pushed back before is a later one.
#[test]
fn a_write_that_was_pushed_back_does_not_fail_with_the_batch() {
    let (mut case, token, chunk) = queued(0x600d);
    case.model[chunk as usize * SECTOR..][..SECTOR].copy_from_slice(&stamp(chunk, 1, 0x600d));
    case.world.hosts[GUEST].engine.bind(None);
    fails(&mut case, IoOp::Read, STORE);
    assert!(case.world.hosts[GUEST].finished.is_empty());
    case.world.hosts[GUEST].engine.bind(Some(case.table.clone()));
    case.world.settle();
    case.ended_ok(token);
    case.guest_reads_model();
    case.finish();
    assert!(case.origin() == case.model);
}
