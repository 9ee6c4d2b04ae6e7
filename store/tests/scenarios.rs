//! Single scenarios of the specification, each under several orders of events.
#![cfg(not(feature = "shuttle"))]

#[path = "scenarios/failing.rs"]
mod failing;
mod world;

use snapblk_store::cow::store::StoreEvent;
use snapblk_store::cow::{Persistence, StoreState};
use snapblk_store::io::sim::Fault;
use snapblk_store::io::{Errno, FileId, IoOp, Storage};
use snapblk_store::request::{Op, Status};
use snapblk_store::units::DataIndex;
use world::model::pattern;
use world::{BASE, Config, Req, Shape, Snap, World};

const OK: Option<Status> = Some(Status::Ok);
const ERROR: Option<Status> = Some(Status::Error);
const NO_SPACE: Option<Status> = Some(Status::NoSpace);
const PERSISTENT: Persistence = Persistence::Persistent;
const OVERFLOW: Persistence = Persistence::PersistentOverflow;

fn req(device: usize, op: Op, sector: u64, count: u64) -> Req {
    Req { device, op, sector, count, durable: false }
}

fn flush(device: usize) -> Req {
    req(device, Op::Flush, 0, 0)
}

fn snap(chunk: u32, persistence: Persistence, store: u64, sectors: u64) -> Snap {
    Snap { chunk, persistence, store, sectors }
}

fn origin(snaps: Vec<Snap>, sectors: u64) -> Config {
    Config { failures: true, ..Config::new(Shape::Origin(snaps), sectors) }
}

fn fault(file: FileId, op: IoOp, count: u32) -> Fault {
    let errno = Errno::EIO;
    Fault { file: Some(file), op: Some(op), range: None, after: 0, count, errno }
}

fn each(config: Config, test: impl Fn(&mut World)) {
    for seed in 0..30 {
        let mut world = World::new(config.clone(), seed);
        test(&mut world);
        world.check_quiet().unwrap();
    }
}

#[test]
fn s4_a_write_of_whole_chunks_reads_nothing() {
    each(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), |world| {
        assert_eq!(world.one(req(1, Op::Write, 8, 16)), Ok(OK));
        assert_eq!(world.sim.performed(world.base, IoOp::Read), 0);
        assert_eq!(world.one(req(1, Op::Write, 25, 2)), Ok(OK));
        assert_eq!(world.sim.performed(world.base, IoOp::Read), 1);
        world.judge_all().unwrap();
    });
}

#[test]
fn s5_sixteen_snapshots_of_mixed_chunk_sizes() {
    let kinds = [PERSISTENT, OVERFLOW, Persistence::Transient];
    let snaps: Vec<Snap> =
        (0..16).map(|n| snap(1 << (n % 5), kinds[n % 3], 600, 128 - n as u64)).collect();
    for seed in 0..6 {
        let mut config = Config::new(Shape::Origin(snaps.clone()), 128);
        config.depth = 24;
        let mut world = World::new(config, seed);
        for _ in 0..40 {
            let sector = world.rng.below(120);
            let count = 1 + world.rng.below(8);
            let device = world.rng.below(17) as usize;
            world.ask([req(0, Op::Write, sector, count)]);
            if device > 0 && sector + count <= 112 {
                world.ask([req(device, Op::Write, sector, count)]);
            }
        }
        world.run().unwrap();
        world.judge_all().unwrap();
        world.check_quiet().unwrap();
    }
}

/// Each look at a write that waits for one store would begin another wait for the other (I12).
#[test]
fn s5_a_slow_store_makes_no_more_commits_of_another_wait() {
    let snaps = vec![snap(8, PERSISTENT, 800, 512), snap(8, PERSISTENT, 800, 512)];
    each(Config { depth: 60, claims: 64, ..origin(snaps, 512) }, |world| {
        world.sim.hold(FileId(1), IoOp::Sync);
        world.sim.hold(FileId(2), IoOp::Write);
        for chunk in 0..50 {
            world.ask([req(0, Op::Write, chunk * 8, 8)]);
            world.run().unwrap();
            assert!(world.most_barriers() <= 2, "{} after {chunk}", world.most_barriers());
        }
        assert_eq!(world.ended, []);
        world.sim.release();
        world.run().unwrap();
        assert_eq!(world.ended.len(), 50);
        world.judge_all().unwrap();
    });
}

#[test]
fn s6_a_read_of_the_origin_across_chunks_is_one_read() {
    each(origin(vec![snap(1, PERSISTENT, 400, 64)], 64), |world| {
        assert_eq!(world.one(req(0, Op::Read, 3, 40)), Ok(OK));
        assert_eq!(world.sim.performed(world.base, IoOp::Read), 1);
    });
}

#[test]
fn s9_an_origin_without_snapshots_takes_a_write_of_1_mib() {
    each(origin(vec![], 4096), |world| {
        assert_eq!(world.one(req(0, Op::Write, 8, 2048)), Ok(OK));
        assert_eq!(world.sim.performed(world.base, IoOp::Write), 1, "whole");
        world.judge_all().unwrap();
    });
}

#[test]
fn s10_what_lies_past_a_snapshots_end_makes_no_exception() {
    each(origin(vec![snap(4, PERSISTENT, 400, 30)], 64), |world| {
        assert_eq!(world.one(req(0, Op::Write, 32, 32)), Ok(OK));
        assert_eq!(world.stores[0].log().next().0, 0);
        assert_eq!(world.one(req(0, Op::Write, 20, 30)), Ok(OK));
        assert_eq!(world.stores[0].log().next().0, 3);
        world.judge_all().unwrap();
    });
}

#[test]
fn s12_a_slow_read_of_a_snapshot_sees_old_data_and_the_origin_waits() {
    let mut config = origin(vec![snap(8, PERSISTENT, 400, 64)], 64);
    config.scratch = 64 << 10;
    each(config, |world| {
        world.ask([req(1, Op::Read, 0, 8)]);
        // Until the read is submitted to the disk, but has no effect yet.
        while world.sim.in_flight() == 0 {
            world.turn().unwrap();
        }
        world.sim.hold_submitted();
        let write = req(0, Op::Write, 0, 8);
        assert_eq!(world.one(write), Ok(None), "the write waits for the read");
        world.sim.release();
        world.run().unwrap();
        assert!(world.ended.contains(&(write, Status::Ok)));
        world.judge_all().unwrap();
    });
}

#[test]
fn s13_reads_of_a_snapshot_without_end_do_not_starve_an_origin_write() {
    let mut config = origin(vec![snap(8, PERSISTENT, 400, 64)], 64);
    config.queues = 2;
    each(config, |world| {
        let write = req(0, Op::Write, 0, 8);
        world.ask([write]);
        let mut turns = 0;
        while !world.ended.contains(&(write, Status::Ok)) {
            world.ask([req(1, Op::Read, 0, 8), req(1, Op::Read, 3, 4)]);
            for _ in 0..20 {
                world.turn().unwrap();
            }
            turns += 1;
            assert!(turns < 2000, "starved");
        }
        world.run().unwrap();
    });
}

/// A read after the write does not delay it, however long an earlier read does.
#[test]
fn s13_reads_behind_an_origin_write_do_not_go_to_the_origin() {
    let mut config = origin(vec![snap(8, PERSISTENT, 400, 64)], 64);
    config.scratch = 64 << 10;
    each(config, |world| {
        world.ask([req(1, Op::Read, 0, 8)]);
        while world.sim.in_flight() == 0 {
            world.turn().unwrap();
        }
        world.sim.hold_submitted();
        let write = req(0, Op::Write, 0, 8);
        assert_eq!(world.one(write), Ok(None), "the write waits for the read");
        let before = world.sim.performed(world.base, IoOp::Read);
        for sector in 0..5 {
            assert_eq!(world.one(req(1, Op::Read, sector, 3)), Ok(OK));
        }
        assert_eq!(world.sim.performed(world.base, IoOp::Read), before);
        world.sim.release();
        world.run().unwrap();
        world.judge_all().unwrap();
    });
}

/// A store of a header, an area and two data chunks; the last is never allocated if chunks are
/// larger than its area needs.
fn tiny(persistence: Persistence) -> Config {
    origin(vec![snap(8, persistence, 4 * 8, 64)], 64)
}

#[test]
fn s23_a_persistent_snapshot_filled_by_its_own_write_is_invalid_for_good() {
    each(tiny(PERSISTENT), |world| {
        assert_eq!(world.one(req(1, Op::Write, 0, 16)), Ok(OK));
        assert_eq!(world.one(req(1, Op::Write, 16, 8)), Ok(NO_SPACE));
        assert_eq!(world.state(0), StoreState::Invalid);
        assert!(world.events.list().contains(&("store0".into(), StoreEvent::Invalidated)));
        world.crash(true).unwrap();
        assert_eq!(world.state(0), StoreState::Invalid);
        assert_eq!(world.one(req(1, Op::Read, 0, 8)), Ok(ERROR));
    });
}

#[test]
fn s24_an_overflow_snapshot_reads_on_until_the_origin_needs_it() {
    each(tiny(OVERFLOW), |world| {
        assert_eq!(world.one(req(1, Op::Write, 0, 16)), Ok(OK));
        assert_eq!(world.one(req(1, Op::Write, 16, 8)), Ok(NO_SPACE));
        assert_eq!(world.state(0), StoreState::Overflow);
        assert_eq!(world.one(req(1, Op::Read, 0, 24)), Ok(OK));
        assert_eq!(world.one(req(0, Op::Write, 0, 8)), Ok(OK));
        assert_eq!(world.state(0), StoreState::Overflow, "that chunk had its copy");
        assert_eq!(world.one(req(1, Op::Read, 0, 24)), Ok(OK));
        assert_eq!(world.one(req(0, Op::Write, 32, 8)), Ok(OK));
        assert_eq!(world.state(0), StoreState::Invalid);
        assert_eq!(world.one(req(1, Op::Read, 0, 8)), Ok(ERROR));
    });
}

#[test]
fn s26_s27_a_copy_that_fails_costs_the_snapshot_and_not_the_origin() {
    for (file, op) in [(1, IoOp::Write), (0, IoOp::Read)] {
        each(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), |world| {
            assert_eq!(world.one(req(1, Op::Write, 40, 8)), Ok(OK));
            assert_eq!(world.one(flush(1)), Ok(OK));
            world.sim.add_fault(fault(FileId(file), op, 1));
            assert_eq!(world.one(req(0, Op::Write, 0, 8)), Ok(OK));
            assert_eq!(world.state(0), StoreState::Invalid);
            assert_eq!(world.one(req(1, Op::Read, 40, 8)), Ok(ERROR));
            world.crash(true).unwrap();
            assert_eq!(world.state(0), StoreState::Invalid);
        });
    }
}

#[test]
fn s26_an_invalidation_that_cannot_be_written_is_recorded_elsewhere_first() {
    each(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), |world| {
        world.sim.add_fault(fault(FileId(1), IoOp::Write, u32::MAX));
        assert_eq!(world.one(req(0, Op::Write, 0, 8)), Ok(OK));
        assert!(world.events.list().contains(&("store0".into(), StoreEvent::InvalidNotWritten)));
        assert_eq!(world.state(0), StoreState::Invalid);
    });
}

#[test]
fn s26_a_commit_that_fails_costs_the_snapshot_and_not_the_origin() {
    for after in 0..3 {
        each(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), |world| {
            world.sim.add_fault(Fault { after, ..fault(FileId(1), IoOp::Sync, 1) });
            for chunk in 0..4 {
                assert_eq!(world.one(req(0, Op::Write, chunk * 8, 8)), Ok(OK));
            }
            assert_eq!(world.state(0), StoreState::Invalid);
        });
    }
}

#[test]
fn s28_an_error_among_many_pending_leaves_none_hanging() {
    // Neighbours share a read: there are fewer reads.
    for (file, op, after) in [(1, IoOp::Write, 20), (0, IoOp::Read, 2), (1, IoOp::Sync, 0)] {
        let mut config =
            origin(vec![snap(2, PERSISTENT, 800, 256), snap(8, OVERFLOW, 800, 256)], 256);
        (config.depth, config.queues) = (100, 2);
        each(config, |world| {
            world.sim.add_fault(Fault { after, ..fault(FileId(file), op, 1) });
            world.ask((0..100).map(|n| req((n % 3) as usize, Op::Write, n * 2, 2)));
            world.ask([flush(1), flush(2)]);
            world.run().unwrap();
            assert!(world.sim.failed() > 0, "no {op:?} failed");
            assert_eq!(world.ended.len(), 102);
            let failed = |&&(req, status): &&(Req, Status)| req.device == 0 && status != Status::Ok;
            assert_eq!(world.ended.iter().find(failed), None);
            world.judge_all().unwrap();
        });
    }
}

/// Known bug 8: the waiters for a chunk belong to several workers.
#[test]
fn s28_who_waits_for_a_chunk_whose_copy_fails_goes_on() {
    let config = Config { queues: 2, depth: 8, ..overlay() };
    each(config, |world| {
        world.sim.add_fault(fault(world.base, IoOp::Read, 1));
        world.ask((0..8).map(|n| req(0, Op::Write, n, 1)));
        world.run().unwrap();
        assert_eq!(world.ended.len(), 8, "one of them waits for ever");
        assert!(world.sim.failed() > 0);
        world.judge_all().unwrap();
    });
}

#[test]
fn s29_a_store_that_ends_at_an_area_boundary_is_full_there() {
    // 32 entries per area: a header, an area, 32 chunks; area 1 would be the chunk past the end.
    let mut config = origin(vec![snap(1, PERSISTENT, 34, 64)], 64);
    config.depth = 1;
    each(config, |world| {
        for sector in 0..31 {
            assert_eq!(world.one(req(1, Op::Write, sector, 1)), Ok(OK));
        }
        assert_eq!(world.one(flush(1)), Ok(OK));
        assert_eq!(world.one(req(1, Op::Write, 31, 1)), Ok(NO_SPACE));
        assert_eq!(world.state(0), StoreState::Invalid);
    });
}

/// Runs until entries are being written, or nothing is left to do.
fn run_until_entries_are_written(world: &mut World) {
    while !world.writes_entries() && world.turn().unwrap() {}
}

#[test]
fn s33_what_a_torn_area_write_left_never_becomes_live() {
    let mut met = 0;
    for seed in 0..12 {
        // Areas of two blocks: 256 entries fill the first, and the second is not rewritten then.
        let sectors = 16 * 600;
        let config = Config::new(Shape::Overlay { chunk: 16, store: 16 * 1000 }, sectors);
        let mut world = World::new(Config { claims: 400, ..config }, seed);
        world.ask([req(0, Op::Write, 0, 16 * 300)]);
        world.run().unwrap();
        world.ask([flush(0)]);
        run_until_entries_are_written(&mut world);
        world.crash(true).unwrap();
        met += world.coverage.0.get("garbage behind the end").copied().unwrap_or(0);
        let rest = 256 - world.stores[0].entries().min(255);
        world.ask([req(0, Op::Write, 16 * 300, 16 * rest)]);
        world.run().unwrap();
        assert_eq!(world.one(flush(0)), Ok(OK));
        world.crash(true).unwrap();
        world.judge_all().unwrap();
    }
    assert!(met > 0, "no area was torn such that its end came before more entries");
}

#[test]
fn s36_entries_that_a_killed_process_wrote_and_did_not_sync_are_synced_before_they_count() {
    each(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), |world| {
        assert_eq!(world.one(req(1, Op::Write, 0, 8)), Ok(OK));
        world.ask([flush(1)]);
        run_until_entries_are_written(world);
        world.crash(false).unwrap();
        assert_eq!(world.one(Req { durable: true, ..req(0, Op::Write, 0, 8) }), Ok(OK));
        world.crash(true).unwrap();
        world.judge_all().unwrap();
    });
}

#[test]
fn s70_a_kill_costs_no_room() {
    let mut owing = 0;
    // The header, an area, and each chunk once.
    let config = Config::new(Shape::Overlay { chunk: 8, store: 10 * 8 }, 64);
    for seed in 0..30 {
        let mut world = World::new(config.clone(), seed);
        for kill in 0..8 {
            // The next chunk is often allocated before it when both are interrupted.
            world.ask([
                req(0, Op::Write, kill * 8 + 1, 3),
                req(0, Op::Write, (kill * 8 + 8) % 64, 8),
            ]);
            for _ in 0..(seed + kill) % 24 {
                world.turn().unwrap();
            }
            world.crash(false).unwrap();
            owing += world.coverage.0.get("killed owing").copied().unwrap_or(0);
        }
        assert_eq!(world.one(req(0, Op::Write, 0, 64)), Ok(OK), "seed {seed}");
        world.check_quiet().unwrap();
        world.judge_all().unwrap();
    }
    assert!(owing > 0, "nothing was ever owed");
}

#[test]
fn s35_a_store_is_durably_invalid_before_what_it_did_not_keep_is_overwritten() {
    each(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), |world| {
        world.sim.add_fault(fault(FileId(1), IoOp::Write, 1));
        assert_eq!(world.one(req(0, Op::Write, 0, 8)), Ok(OK));
        world.crash(true).unwrap();
        assert_eq!(world.state(0), StoreState::Invalid);
    });
}

#[test]
fn s35_an_invalid_header_that_a_killed_process_wrote_and_did_not_sync_stays() {
    each(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), |world| {
        world.sim.add_fault(fault(FileId(1), IoOp::Write, 1));
        world.ask([req(0, Op::Write, 0, 8)]);
        let written = |world: &World| world.sim.disk(FileId(1)).read(4, 1) == [0];
        while !written(world) {
            assert!(world.turn().unwrap());
        }
        world.crash(false).unwrap();
        assert_eq!(world.state(0), StoreState::Invalid);
        assert_eq!(world.one(Req { durable: true, ..req(0, Op::Write, 0, 8) }), Ok(OK));
        world.crash(true).unwrap();
        assert_eq!(world.state(0), StoreState::Invalid);
    });
}

/// Nobody is told: the system shows the header, and writes it no more.
#[test]
fn s35_an_invalid_header_whose_sync_failed_when_its_process_was_killed_stays() {
    let file = FileId(1);
    let mut met = 0;
    for seed in 0..60 {
        let mut world = World::new(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), seed);
        world.sim.add_fault(fault(file, IoOp::Write, 1));
        world.sim.add_fault(fault(file, IoOp::Sync, 1));
        world.ask([req(0, Op::Write, 0, 8)]);
        while world.sim.lost(file) == 0 {
            assert!(world.turn().unwrap());
        }
        if world.state(0) != StoreState::Invalidating {
            // The engine was told.
            continue;
        }
        world.crash(false).unwrap();
        assert_eq!(world.state(0), StoreState::Invalid);
        assert_eq!(world.one(Req { durable: true, ..req(0, Op::Write, 0, 8) }), Ok(OK));
        world.crash(true).unwrap();
        assert_eq!(world.state(0), StoreState::Invalid, "seed {seed}");
        met += 1;
    }
    assert!(met > 0, "the engine was told of each failure");
}

/// The commit's sync and the header's could overlap, and the first be told that the header was lost.
#[test]
fn s35_a_header_that_a_commit_s_sync_lost_is_not_taken_for_durable() {
    let data = Some((16 * 512, u64::MAX));
    for seed in 0..300 {
        let mut world = World::new(origin(vec![snap(8, PERSISTENT, 400, 64)], 64), seed);
        assert_eq!(world.one(req(1, Op::Write, 0, 8)), Ok(OK));
        // Without a failure, the commit must end all the same.
        world.sim.add_fault(fault(FileId(1), IoOp::Sync, (seed % 3 > 0).into()));
        world.sim.add_fault(Fault { range: data, ..fault(FileId(1), IoOp::Write, 1) });
        world.ask([flush(1), req(0, Op::Write, 16, 8)]);
        world.run().unwrap();
        world.check_quiet().unwrap();
        assert!(world.state(0) >= StoreState::Invalid, "seed {seed}");
        world.crash(true).unwrap();
        assert_eq!(world.state(0), StoreState::Invalid, "seed {seed}");
    }
}

#[test]
fn s21_a_transient_snapshot_is_empty_after_a_restart() {
    each(origin(vec![snap(8, Persistence::Transient, 400, 64)], 64), |world| {
        assert_eq!(world.one(req(1, Op::Write, 0, 8)), Ok(OK));
        world.crash(false).unwrap();
        assert_eq!(world.stores[0].log().next().0, 0);
        world.judge_all().unwrap();
    });
}

fn overlay() -> Config {
    Config { failures: true, ..Config::new(Shape::Overlay { chunk: 8, store: 400 }, 64) }
}

/// A longer table would read them.
#[test]
fn bytes_of_a_chunk_beyond_the_device_are_zero() {
    const CHUNK: usize = 512 * 512;
    for scratch in [64 << 10, 1 << 20] {
        let config = Config::new(Shape::Overlay { chunk: 512, store: 512 * 8 }, 1100);
        each(Config { scratch, ..config }, |world| {
            let file = world.store_file(0);
            let stale = vec![0xee; 6 * CHUNK];
            world.sim.storage(file).write_at(&stale, 2 * CHUNK as u64).unwrap();
            assert_eq!(world.one(req(0, Op::Write, 1090, 4)), Ok(OK));
            world.judge_all().unwrap();
            let written = world.sim.disk(file).read(2 * CHUNK as u64, CHUNK as u64);
            let (within, beyond) = written.split_at((1100 - 1024) * 512);
            assert!(within.iter().any(|byte| *byte != 0xee));
            assert!(beyond.iter().all(|byte| *byte == 0), "with buffers of {scratch} bytes");
            assert_eq!(world.sim.performed(file, IoOp::Zero), 0, "which would take space");
        });
    }
}

#[test]
fn s75_discard_and_write_zeroes_leave_snapshots_their_data() {
    each(origin(vec![snap(8, PERSISTENT, 400, 64), snap(2, OVERFLOW, 400, 64)], 64), |world| {
        assert_eq!(world.one(req(0, Op::Discard, 3, 20)), Ok(OK));
        assert_eq!(world.one(req(0, Op::WriteZeroes { unmap: true }, 30, 20)), Ok(OK));
        world.judge_all().unwrap();
    });
}
