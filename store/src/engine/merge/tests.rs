//! The scenarios of a merge, on disks that lose unsynced data.

mod case;
mod list;
mod queued;
mod synced;

use std::sync::Arc;

use case::*;

use super::world::{Fault, SECTOR};
use super::{MergeFailure, MergeState};
use crate::cow::{MergeMark, Persistence, StoreState};
use crate::exception::ChunkState;
use crate::io::IoOp;
use crate::request::{Op, Status};
use crate::table::{Line, Table};
use crate::target::{Exceptions, ExceptionsId, Snapshot, Target};
use crate::units::Chunk;

/// 39: an idle merge; the origin is the snapshot, and only metadata is left.
#[test]
fn s39_an_idle_merge_makes_the_origin_the_snapshot() {
    let large = Shape { chunk: 1024, sectors: 5000, entries: 5, ..PLAIN };
    let page = Shape { chunk: 8, sectors: 8005, entries: 900, ..PLAIN };
    for shape in [PLAIN, SMALLER, large, page] {
        let mut case = build(shape);
        assert_ne!(case.store.usage().allocated, case.store.usage().metadata);
        case.finish();
        assert!(case.origin() == case.model);
        case.check_finished();
        let mut again = case.crash();
        assert_eq!(again.store.entries(), 0, "durably");
        again.finish();
        again.check_finished();
    }
}

/// 37: the power fails at every step, also of the next merge, which has the same result.
#[test]
fn s37_a_merge_cut_at_every_step_is_completed_by_the_next() {
    for seed in 0..2 {
        for shape in [PLAIN, SMALLER] {
            let shape = Shape { seed: shape.seed + 10 * seed, ..shape };
            let mut case = build(shape);
            case.start_merge().unwrap();
            while case.world.turn() {
                let mut second = case.crash();
                second.check_other();
                assert!(second.image(0) == second.model, "what is left is still the snapshot");
                second.start_merge().unwrap();
                for _ in 0..case.world.rng.below(60) {
                    second.world.turn();
                }
                let mut third = second.crash();
                third.finish();
                third.check_finished();
            }
            case.check_finished();
        }
    }
}

/// 38: a flushed write to a merged chunk is newer than the merge.
#[test]
fn s38_a_write_to_a_merged_chunk_wins() {
    for seed in 0..30 {
        let mut case = build(Shape { seed, ..PLAIN });
        case.start_merge().unwrap();
        // One batch, or two, or three, whose areas are merged together.
        let begun = PLAIN.entries - seed % 3 * 30;
        while case.store.entries() >= begun {
            assert!(case.world.turn());
        }
        case.world.hosts[MERGE].engine.merge_pause(true);
        case.world.settle();
        assert!(case.store.entries() < PLAIN.entries, "some chunks are home");
        case.guest_write(0, PLAIN.sectors, 0x9e1);
        case.world.settle();
        case.guest_flush();
        case.world.hosts[MERGE].engine.merge_pause(false);
        for _ in 0..seed * 5 {
            case.world.turn();
        }
        let mut second = case.crash();
        second.guest_reads_model();
        second.finish();
        second.check_finished();
        assert!(second.origin() == case.model);
    }
}

/// The same without a flush: the write goes to the origin only once no crash can bring back the
/// entry, whose merge would overwrite it.
#[test]
fn s38_a_write_waits_until_its_entry_is_durably_gone() {
    let mut case = build(PLAIN);
    case.start_merge().unwrap();
    let ex = case.table.exceptions()[0].table.clone();
    let busy = || (0..ex.chunks()).find(|&n| matches!(ex.get(Chunk(n)), ChunkState::Busy(_)));
    let chunk = loop {
        assert!(case.world.turn());
        if let Some(chunk) = busy() {
            break chunk;
        }
    };
    case.world.hold = Some(|action| action.op != IoOp::Sync || action.file != STORE);
    let token = case.guest_write(chunk, 1, 0x38);
    case.world.settle();
    assert!(case.world.hosts[GUEST].finished.is_empty(), "the store's sync is held back");
    case.world.hold = None;
    case.world.settle();
    case.ended_ok(token);
    assert!(case.origin() == case.model);
}

/// 40, and 42 with it: a merge under random I/O, to its end or to a power cut.
#[test]
fn s40_a_merge_under_random_io_equals_the_model() {
    for seed in 0..60 {
        for shape in [PLAIN, SMALLER] {
            let mut case = build(Shape { seed: seed * 2 + 5, ..shape });
            case.start_merge().unwrap();
            let cut = (seed % 2 == 1).then_some(20 + seed as u32 * 13);
            case.random_io(120, cut);
            if cut.is_some() {
                let mut second = case.crash();
                second.check_other();
                second.finish();
                second.check_finished();
            } else {
                case.guest_reads_model();
                assert_eq!(case.state(), MergeState::Finished);
                assert!(case.origin() == case.model);
                case.check_finished();
                case.guest_flush();
                assert!(case.crash().origin() == case.model);
            }
        }
    }
}

/// 41: a write to the current batch waits for its end, then goes to the origin.
#[test]
fn s41_a_write_into_the_batch_in_hand_waits() {
    let mut case = build(PLAIN);
    case.start_merge().unwrap();
    // The batch is copied, and its origin's sync is held back.
    case.world.hold = Some(|action| action.op != IoOp::Sync || action.file == STORE);
    case.world.settle();
    let busy: Vec<u64> = (0..PLAIN.sectors)
        .filter(|&chunk| {
            matches!(case.table.exceptions()[0].table.get(Chunk(chunk)), ChunkState::Busy(_))
        })
        .collect();
    assert!(!busy.is_empty());
    let token = case.guest_write(busy[0], 1, 0x41);
    case.world.settle();
    assert!(case.world.hosts[GUEST].finished.is_empty());
    case.guest_reads_held(busy[0]);
    case.world.hold = None;
    case.world.settle();
    case.ended_ok(token);
    assert_eq!(case.state(), MergeState::Finished);
    assert!(case.origin() == case.model);
}

/// A write that was in flight when its chunk's batch began is in the copy.
#[test]
fn a_batch_waits_for_writes_that_began_before_it() {
    for seed in 0..20 {
        let mut case = build(Shape { seed, ..PLAIN });
        let token = case.guest_write(0, 100, 0x77);
        // The guest's writes to the store stay in flight while the merge continues.
        case.world.hold = Some(|action| action.op != IoOp::Write || action.tag.0 >> 48 != REQUEST);
        case.world.turn();
        assert!(case.world.hosts[GUEST].in_flight() > 0);
        case.start_merge().unwrap();
        case.world.settle();
        case.world.hold = None;
        case.world.settle();
        case.ended_ok(token);
        assert_eq!(case.state(), MergeState::Finished);
        assert!(case.origin() == case.model, "seed {seed}");
    }
}

/// 44: stopped after the current batch, and continued under a new table; half-way the status shows
/// the rest, and allocation is unchanged.
#[test]
fn s44_a_merge_that_was_stopped_goes_on() {
    let shape = Shape { other: Some(1), entries: 190, ..PLAIN };
    let mut case = build(shape);
    let next = case.store.log().next();
    case.start_merge().unwrap();
    let mut rounds = 0;
    while case.state() != MergeState::Finished {
        for _ in 0..30 {
            case.world.turn();
        }
        let engine = &mut case.world.hosts[MERGE].engine;
        engine.set_stopping(true);
        case.world.settle();
        let engine = &mut case.world.hosts[MERGE].engine;
        assert!(engine.is_quiet());
        let left = case.store.entries();
        assert_eq!(engine.merge().unwrap().total - engine.merge().unwrap().done, left);
        assert_eq!(case.store.usage().allocated, left + left / 32 + 2);
        engine.bind(None);
        engine.set_stopping(false);
        engine.bind(Some(case.table.clone()));
        assert!(engine.merge().is_none());
        case.guest_reads_model();
        case.start_merge().unwrap();
        rounds += 1;
        for _ in 0..5 {
            case.world.turn();
        }
    }
    assert!(rounds > 1);
    case.world.settle();
    case.check_finished();
    assert_eq!(case.store.log().next(), next);
}

/// 76: half a merge, back to a snapshot: new exceptions overwrite nothing that is live.
#[test]
fn s76_after_half_a_merge_a_snapshot_goes_on() {
    for seed in 0..10 {
        let mut case = build(Shape { seed, ..PLAIN });
        case.start_merge().unwrap();
        let mut flushes = 0;
        while case.store.entries() == PLAIN.entries {
            // The round for a guest's flush begins when the merge's ends, and has the tail when
            // entries are removed.
            let erases = case.world.hosts[MERGE].engine.merge_step() == Some("erase entries");
            if seed % 2 == 0 && erases && flushes < 32 {
                flushes += 1;
                case.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
            }
            assert!(case.world.turn());
        }
        for host in &mut case.world.hosts {
            host.engine.set_stopping(true);
        }
        case.world.settle();
        assert!(case.store.entries() > 0 && case.store.entries() < PLAIN.entries);
        case.store.set_merge_mark(MergeMark::None);
        let ex = &case.table.exceptions()[0];
        let len = ex.len;
        let ex = Exceptions {
            table: ex.table.clone(),
            layers: ex.layers.clone(),
            origin: ex.origin.clone(),
            len,
        };
        let snapshot =
            Snapshot { exceptions: ExceptionsId(0), tracked: None, features: Default::default() };
        let line = Line { start: 0, len, target: Target::Snapshot(snapshot) };
        let table = Arc::new(Table::new(vec![line], vec![ex]));
        for host in &mut case.world.hosts {
            host.engine.bind(None);
            host.engine.set_stopping(false);
            host.engine.bind(Some(table.clone()));
        }
        for sector in (0..PLAIN.sectors).step_by(7) {
            case.guest_write(sector, 1, 0x76);
        }
        case.world.settle();
        case.guest_flush();
        case.guest_reads_model();
        let second = case.crash();
        assert!(second.image(0) == case.model);
    }
}

/// A rollback that is paused or cancelled, or whose thread does not run yet, is served
/// nevertheless.
#[test]
fn a_sync_that_fails_before_a_merge_begins_does_not_undo_the_rollback() {
    let mut case = build(Shape { seed: 46, ..PLAIN });
    case.world.faults.push(Fault { op: IoOp::Sync, file: STORE, skip: 0, lands: false });
    case.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
    case.world.settle();
    assert_eq!(case.store.state(), StoreState::CommitFailed);
    case.guest_reads_model();
}

/// 45: an error at each kind of step; everything is still served, and a new start completes the
/// merge.
#[test]
fn s45_a_merge_that_failed_is_completed_by_the_next_start() {
    let faults =
        [(IoOp::Read, STORE), (IoOp::Write, ORIGIN), (IoOp::Write, STORE), (IoOp::Write, ORIGIN2)];
    for (op, file) in faults {
        for lands in [false, true] {
            for skip in [0, 1, 3] {
                let mut case = build(Shape { seed: 45 + u64::from(skip), ..PLAIN });
                case.world.faults.push(Fault { op, file, skip, lands });
                case.start_merge().unwrap();
                while !matches!(case.state(), MergeState::Failed(_)) {
                    assert!(case.world.turn(), "{op:?} {file:?} {skip}");
                }
                // A write that takes effect later would belong to the old merge.
                assert_eq!(case.world.hosts[MERGE].in_flight(), 0);
                case.world.settle();
                assert!(case.store.merge_mark() >= MergeMark::Failed);
                case.guest_reads_model();
                let mut second = case.crash();
                second.finish();
                second.check_finished();
                case.finish();
                assert_eq!(case.store.merge_mark(), MergeMark::Merging);
                let token = case.guest_write(0, PLAIN.sectors, 0x45);
                case.world.settle();
                case.ended_ok(token);
                assert!(case.origin() == case.model);
                case.check_finished();
            }
        }
    }
}

/// The same with a list that ends within a block; more of it may be in doubt than is left.
#[test]
fn s45_a_merge_whose_entries_could_not_be_removed_goes_on() {
    for entries in [20, 90] {
        for (skip, lands) in [(1, false), (1, true), (2, false), (3, false)] {
            let mut case = build(Shape { entries, ..SMALLER });
            case.world.faults.push(Fault { op: IoOp::Write, file: STORE, skip, lands });
            case.start_merge().unwrap();
            case.world.settle();
            // A short list ends before the last of them.
            case.world.faults.clear();
            case.finish();
            assert!(case.origin() == case.model, "{entries} {skip} {lands}");
            case.check_finished();
        }
    }
}

/// 45, after a batch was copied: if entries could not be removed, writes to their chunks fail,
/// others continue, and nothing hangs.
#[test]
fn s45_in_doubt_writes_to_the_batch_fail() {
    for lands in [false, true] {
        let mut case = build(PLAIN);
        // The first write to the list erases the entries behind it.
        case.world.faults.push(Fault { op: IoOp::Write, file: STORE, skip: 1, lands });
        case.start_merge().unwrap();
        case.world.hold = Some(|action| action.op != IoOp::Sync || action.file == STORE);
        case.world.settle();
        let ex = &case.table.exceptions()[0];
        let of = |busy: bool| {
            (0..ex.table.chunks())
                .find(|&chunk| matches!(ex.table.get(Chunk(chunk)), ChunkState::Busy(_)) == busy)
                .unwrap()
        };
        let (busy, other) = (of(true), of(false));
        let at = busy * 512;
        let queued = case.world.hosts[GUEST].submit(Op::Write, at, 512, stamp(busy, 1, 0xbad));
        case.world.settle();
        assert!(case.world.hosts[GUEST].finished.is_empty());
        case.world.hold = None;
        case.world.settle();
        assert!(matches!(case.state(), MergeState::Failed(MergeFailure::WriteList(_))));
        assert_eq!(case.world.hosts[GUEST].finished, [(queued, Status::Error)]);
        let later = case.world.hosts[GUEST].submit(Op::Write, at, 512, stamp(busy, 1, 0xbad));
        case.world.settle();
        assert!(case.world.hosts[GUEST].finished.contains(&(later, Status::Error)));
        let token = case.guest_write(other, 1, 0x600d);
        case.world.settle();
        case.ended_ok(token);
        case.guest_reads_model();
        case.guest_flush();
        let mut second = case.crash();
        assert!(second.image(0) == second.model);
        second.finish();
        second.check_finished();
        case.finish();
        case.check_finished();
    }
}

/// A guest's flushes fail after a failed sync, and only a reopened store merges on.
#[test]
fn s45_a_failed_sync_of_the_store_is_sticky() {
    for skip in [0, 1] {
        let mut case = build(PLAIN);
        case.world.faults.push(Fault { op: IoOp::Sync, file: STORE, skip, lands: false });
        case.start_merge().unwrap();
        case.world.settle();
        assert!(matches!(case.state(), MergeState::Failed(_)));
        let flush = case.world.hosts[GUEST].submit(Op::Flush, 0, 0, Vec::new());
        case.guest_reads_model();
        assert!(case.world.hosts[GUEST].finished.contains(&(flush, Status::Error)));
        assert_eq!(case.start_merge(), Err(MergeFailure::NotSynced));
        let mut second = case.crash();
        second.finish();
        second.check_finished();
    }
}

/// A failed sync leaves the zeroes visible and the entries on the disk. After reopening the store,
/// they are erased again before anything is written to their chunks' present place.
#[test]
fn s45_entries_that_a_failed_sync_left_do_not_come_back() {
    let page = Shape { chunk: 8, sectors: 8005, entries: 900, ..PLAIN };
    // The first batch; one of some areas; one of some blocks.
    for (shape, skip) in [(PLAIN, 1), (PLAIN, 3), (page, 3)] {
        a_sync_fails(shape, skip);
    }
}

fn a_sync_fails(shape: Shape, skip: u32) {
    let mut case = build(shape);
    case.world.faults.push(Fault { op: IoOp::Sync, file: STORE, skip, lands: false });
    case.start_merge().unwrap();
    case.world.settle();
    assert!(matches!(case.state(), MergeState::Failed(MergeFailure::SyncStore(_))));
    let disks = case.world.disks.clone();
    let (model, versions) = (case.model.clone(), case.versions.clone());
    let mut second = start(disks, shape, model, versions, Vec::new());
    assert!(second.store.entries() < shape.entries, "it sees the zeroes");
    second.start_merge().unwrap();
    second.world.hosts[MERGE].engine.merge_budget(Some(0));
    second.world.settle();
    let (geometry, left) = (second.store.geometry(), second.store.entries());
    let end = geometry.area_end(left / geometry.entries_per_area());
    let behind = geometry.entry_offset(left) as usize..end as usize;
    let list = &second.crash().world.disks[STORE.0 as usize].now;
    assert!(list[behind].iter().all(|&byte| byte == 0), "none is left behind the list");
    second.guest_write(0, shape.sectors, 0x5a5a);
    second.world.settle();
    second.guest_flush();
    let mut third = second.crash();
    assert!(third.image(0) == second.model);
    third.finish();
    third.check_finished();
}

/// 46: an Invalid store: the device is its origin, and nothing is merged.
#[test]
fn s46_with_an_invalid_store_the_device_is_its_origin() {
    let mut case = build(PLAIN);
    let before = case.origin();
    assert!(case.store.begin_invalidate());
    let _ = case.store.invalidated(true);
    assert_eq!(case.start_merge(), Err(MergeFailure::Invalid));
    case.model = before;
    case.guest_reads_model();
    let token = case.guest_write(3, 150, 0x46);
    case.world.settle();
    case.ended_ok(token);
    assert!(case.origin() == case.model);
    // Its flush is the origin's, without the store.
    case.world.done.clear();
    case.guest_flush();
    assert!(case.world.done.iter().any(|(op, file, _)| (*op, *file) == (IoOp::Sync, ORIGIN)));
    assert!(!case.world.done.iter().any(|(_, file, _)| *file == STORE));
}

/// 48: a discard succeeds, and does nothing.
#[test]
fn s48_a_discard_does_nothing() {
    let mut case = build(PLAIN);
    let len = PLAIN.sectors * 512;
    let token = case.world.hosts[GUEST].submit(Op::Discard, 0, len, Vec::new());
    case.world.settle();
    case.ended_ok(token);
    assert!(case.world.done.is_empty());
    case.guest_reads_model();
}

/// Zeroes are a write: into the store, or as an origin write that other snapshots survive.
#[test]
fn zeroes_are_written_where_a_write_goes() {
    let mut case = build(SMALLER);
    case.start_merge().unwrap();
    for _ in 0..60 {
        case.world.turn();
    }
    let (from, to) = (100 * SECTOR, 900 * SECTOR);
    let op = Op::WriteZeroes { unmap: true };
    case.model[from..to].fill(0);
    let token = case.world.hosts[GUEST].submit(op, from as u64, (to - from) as u64, Vec::new());
    case.world.settle();
    case.ended_ok(token);
    case.guest_reads_model();
    assert!(case.origin() == case.model);
    case.check_other();
}

/// A snapshot that cannot keep anything is invalidated, and the merge continues.
#[test]
fn a_snapshot_that_fails_does_not_stop_the_merge() {
    let mut case = build(SMALLER);
    case.world.faults.push(Fault { op: IoOp::Write, file: OTHER, skip: 2, lands: false });
    case.finish();
    assert_eq!(case.table.exceptions()[1].store().state(), crate::cow::StoreState::Invalid);
    assert!(case.origin() == case.model);
}

#[test]
fn the_budget_bounds_what_is_copied() {
    let mut case = build(PLAIN);
    case.start_merge().unwrap();
    case.world.hosts[MERGE].engine.merge_budget(Some(1));
    case.world.settle();
    let first = case.world.hosts[MERGE].engine.merge().unwrap();
    assert!(first.done > 0 && first.done <= 32, "one batch: {}", first.done);
    // The batch's excess is deducted from the next allowance.
    case.world.hosts[MERGE].engine.merge_budget(Some(first.done * 512 - 1));
    case.world.settle();
    assert_eq!(case.world.hosts[MERGE].engine.merge().unwrap().done, first.done);
    case.world.hosts[MERGE].engine.merge_budget(None);
    case.world.settle();
    assert_eq!(case.state(), MergeState::Finished);
}

/// Bytes are read while others are written, but not as many as possible: the disk has both.
#[test]
fn bytes_are_read_while_others_are_written() {
    let mut case = build(Shape { chunk: 2, sectors: 1501, entries: 700, holes: false, ..PLAIN });
    case.start_merge().unwrap();
    while case.world.hosts[MERGE].engine.merge().unwrap().done < 16 + 32 + 64 + 128 {
        assert!(case.world.turn());
    }
    while case.world.hosts[MERGE].engine.merge_step() != Some("copy") {
        assert!(case.world.turn());
    }
    case.world.hold = Some(|action| action.op != IoOp::Read);
    case.world.settle();
    let chunks = case.world.hosts[MERGE].bytes_in_flight() / 1024;
    assert!((64..128).contains(&chunks), "{chunks} chunks are read");
    case.world.hold = Some(|action| action.op != IoOp::Write);
    case.world.settle();
    let writes = case.world.hosts[MERGE].in_flight();
    assert!((128..192).contains(&writes), "{writes} writes");
    case.world.hold = None;
    case.world.settle();
    case.check_finished();
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let mut case = build(PLAIN);
    assert_eq!(case.store.persistence(), Persistence::Persistent);
    assert!(matches!(case.store.log().allocate(1), crate::cow::Allocation::Run { .. }));
    assert_eq!(case.start_merge(), Err(MergeFailure::Owed));
    case.world.hosts[MERGE].engine.bind(None);
    assert_eq!(case.start_merge(), Err(MergeFailure::NoMerge));
}
