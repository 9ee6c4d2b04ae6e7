//! Scenarios 73 and 74: I/O that fails, and what guests are told.

use super::*;

#[test]
fn s73_an_error_of_the_base_fails_that_request_and_the_disk_stays_valid() {
    each(overlay(), |world| {
        world.sim.add_fault(fault(world.base, IoOp::Read, 1));
        assert_eq!(world.one(req(0, Op::Write, 1, 2)), Ok(ERROR));
        assert_eq!(world.state(0), StoreState::Valid);
        assert_eq!(world.one(req(0, Op::Write, 1, 2)), Ok(OK));
        world.sim.add_fault(fault(world.base, IoOp::Read, 1));
        assert_eq!(world.one(req(0, Op::Read, 32, 2)), Ok(ERROR));
        world.judge_all().unwrap();
    });
}

/// An unreadable sector of the base fails the requests that need it, and not those that were read
/// together with it.
#[test]
fn s73_what_cannot_be_read_fails_no_neighbour_of_its_batch() {
    each(overlay(), |world| {
        let bad = Some((35 * 512, 36 * 512));
        let bad = Fault { range: bad, count: 1000, ..fault(world.base, IoOp::Read, 1) };
        world.sim.add_fault(bad);
        world.ask((0..8).map(|chunk| req(0, Op::Write, chunk * 8 + 1, 2)));
        world.run().unwrap();
        let failed = world.ended.iter().filter(|(_, status)| *status == Status::Error);
        assert_eq!(failed.map(|(req, _)| req.sector).collect::<Vec<_>>(), [33]);
        assert_eq!(world.ended.len(), 8);
        world.sim.clear_faults();
        world.judge_all().unwrap();
    });
}

#[test]
fn s73_a_store_write_that_fails_fails_that_request_and_the_disk_stays_valid() {
    each(overlay(), |world| {
        world.sim.add_fault(fault(FileId(1), IoOp::Write, 1));
        assert_eq!(world.one(req(0, Op::Write, 1, 2)), Ok(ERROR));
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        assert_eq!(world.one(flush(0)), Ok(OK));
        world.crash(true).unwrap();
        assert_eq!(world.state(0), StoreState::Valid);
        world.judge_all().unwrap();
    });
}

#[test]
fn s73_a_base_that_always_fails_costs_the_requests_that_need_it() {
    let config = Config { bad_base_from: Some(32), ..overlay() };
    each(config, |world| {
        assert_eq!(world.one(req(0, Op::Write, 30, 8)), Ok(ERROR));
        assert_eq!(world.one(req(0, Op::Write, 33, 20)), Ok(ERROR));
        assert_eq!(world.one(req(0, Op::Read, 56, 8)), Ok(ERROR));
        assert_eq!(world.one(req(0, Op::Write, 40, 24)), Ok(OK));
        assert_eq!(world.one(req(0, Op::Read, 40, 24)), Ok(OK));
        assert_eq!(world.one(flush(0)), Ok(OK));
        assert_eq!(world.state(0), StoreState::Valid);
    });
}

#[test]
fn s74_writes_that_wait_for_a_commit_end_when_it_fails() {
    let config = Config::new(Shape::Overlay { chunk: 1, store: 38_000 }, 36_000);
    let mut world = World::new(Config { failures: true, claims: 8192, ..config }, 1);
    world.sim.hold(FileId(1), IoOp::Sync);
    world.ask((0..9).map(|n| req(0, Op::Write, n * 4000, 4000)));
    world.run().unwrap();
    assert!(world.ended.len() < 9, "more than the ring holds is owed");
    world.sim.add_fault(fault(FileId(1), IoOp::Sync, 1));
    world.sim.release();
    world.run().unwrap();
    assert_eq!(world.ended.len(), 9);
    assert_eq!(world.state(0), StoreState::CommitFailed);
    world.check_quiet().unwrap();
}

#[test]
fn s73_a_chunk_written_in_slices_survives_errors() {
    let config = Config::new(Shape::Overlay { chunk: 512, store: 512 * 8 }, 1100);
    each(Config { failures: true, scratch: 64 << 10, ..config }, |world| {
        let after = world.rng.below(6) as u32;
        let op = *world.rng.pick(&[IoOp::Read, IoOp::Write]);
        world.sim.add_fault(Fault { file: None, after, ..fault(FileId(0), op, 1) });
        world.ask([req(0, Op::Write, 100, 600), req(0, Op::Write, 1090, 10)]);
        world.run().unwrap();
        world.sim.clear_faults();
        world.judge_all().unwrap();
        assert_eq!(world.one(flush(0)), Ok(OK));
    });
}

/// The system shows what it could not write: a chunk that the store has of it would later read as what
/// was in the store before, also where the guest never wrote.
#[test]
fn s74_a_chunk_whose_data_s_sync_failed_is_not_entered() {
    let config = Config::new(Shape::Overlay { chunk: 128, store: 128 * 8 }, 256);
    each(Config { failures: true, ..config }, |world| {
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        world.sim.add_fault(fault(FileId(1), IoOp::Sync, 1));
        assert_eq!(world.one(flush(0)), Ok(ERROR));
        world.crash(false).unwrap();
        assert_eq!(world.stores[0].log().next(), DataIndex(0));
        assert_eq!(world.one(req(0, Op::Write, 136, 8)), Ok(OK));
        assert_eq!(world.one(flush(0)), Ok(OK));
        world.crash(true).unwrap();
        world.judge_all().unwrap();
    });
}

/// Nobody is told: the system shows the data, and writes it no more, whatever is flushed later.
#[test]
fn s74_data_whose_sync_failed_when_its_process_was_killed_is_written_again() {
    let file = FileId(1);
    let config = Config::new(Shape::Overlay { chunk: 8, store: 400 }, 64);
    let mut met = [0; 2];
    for seed in 0..80 {
        let mut world = World::new(Config { failures: true, ..config.clone() }, seed);
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        let entries = seed % 2 == 1;
        world.sim.add_fault(Fault { after: entries.into(), ..fault(file, IoOp::Sync, 1) });
        world.ended.clear();
        world.ask([flush(0)]);
        if entries {
            // A write that ends before the sync of the entries, which loses its data.
            world.sim.hold(file, IoOp::Sync);
            world.run().unwrap();
            assert_eq!(world.one(req(0, Op::Write, 24, 8)), Ok(OK));
            world.ended.clear();
            world.sim.release();
        }
        while world.sim.lost(file) == 0 {
            assert!(world.turn().unwrap());
        }
        if world.state(0) != StoreState::Valid {
            // The engine was told.
            continue;
        }
        assert_eq!(world.ended, []);
        world.crash(false).unwrap();
        let data = |world: &World| world.sim.disk(file).read(2 * 8 * 512, 2 * 8 * 512).to_vec();
        let before = data(&world);
        assert_eq!(world.one(flush(0)), Ok(OK));
        world.crash(true).unwrap();
        assert_eq!(world.stores[0].entries(), 1 + u64::from(entries));
        assert!(data(&world) == before, "seed {seed}");
        met[usize::from(entries)] += 1;
    }
    assert!(met.iter().all(|met| *met > 0), "{met:?}");
}

/// What was written while the entries were synced: their data may have been lost by that.
#[test]
fn s74_a_chunk_written_while_entries_are_synced_in_vain_is_not_entered() {
    let config = Config::new(Shape::Overlay { chunk: 8, store: 400 }, 64);
    each(Config { failures: true, ..config }, |world| {
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        world.sim.hold(FileId(1), IoOp::Write);
        world.ask([flush(0)]);
        world.run().unwrap();
        // The entries wait; a write comes and ends before their sync, or after it has begun.
        world.ask([req(0, Op::Write, 16, 4)]);
        world.run().unwrap();
        world.sim.release();
        world.sim.hold(FileId(1), IoOp::Sync);
        world.run().unwrap();
        assert_eq!(world.ended.pop().unwrap().1, Status::Ok);
        world.sim.add_fault(fault(FileId(1), IoOp::Sync, 1));
        world.sim.release();
        world.run().unwrap();
        assert_eq!(world.state(0), StoreState::CommitFailed);
        world.crash(false).unwrap();
        assert_eq!(world.one(flush(0)), Ok(OK));
        world.crash(true).unwrap();
        world.judge_all().unwrap();
    });
}

/// The system shows what it could not write: the entries seem to be there when the store is opened
/// again, and those behind them would be lost with them.
#[test]
fn s74_entries_whose_sync_failed_are_written_again() {
    // These entries fill a block, so that no later commit writes it again.
    let config = Config::new(Shape::Overlay { chunk: 1, store: 400 }, 64);
    each(Config { failures: true, ..config }, |world| {
        assert_eq!(world.one(req(0, Op::Write, 8, 32)), Ok(OK));
        world.sim.add_fault(Fault { after: 1, ..fault(FileId(1), IoOp::Sync, 1) });
        assert_eq!(world.one(flush(0)), Ok(ERROR));
        world.crash(false).unwrap();
        assert_eq!(world.one(req(0, Op::Write, 40, 8)), Ok(OK));
        assert_eq!(world.one(flush(0)), Ok(OK));
        world.crash(true).unwrap();
        world.judge_all().unwrap();
    });
}

#[test]
fn s74_after_a_failed_sync_flushes_fail_until_the_file_is_opened_again() {
    each(overlay(), |world| {
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        world.sim.add_fault(fault(FileId(1), IoOp::Sync, 1));
        assert_eq!(world.one(flush(0)), Ok(ERROR));
        assert_eq!(world.one(flush(0)), Ok(ERROR));
        assert_eq!(world.state(0), StoreState::CommitFailed);
        assert_eq!(world.one(req(0, Op::Read, 8, 8)), Ok(OK));
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(ERROR));
        world.crash(false).unwrap();
        assert_eq!(world.one(flush(0)), Ok(OK));
        assert_eq!(world.one(req(0, Op::Write, 16, 8)), Ok(OK));
    });
    let config = Config { origin_failures: true, ..Config::new(Shape::Plain, 64) };
    each(config, |world| {
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        world.sim.add_fault(fault(world.base, IoOp::Sync, 1));
        assert_eq!(world.one(flush(0)), Ok(ERROR));
        assert_eq!(world.one(flush(0)), Ok(ERROR));
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        world.crash(false).unwrap();
        assert_eq!(world.one(flush(0)), Ok(OK));
    });
}

/// The system shows what it could not write until the power fails, however many processes end
/// meanwhile. A flush of a later one promises what was written since, and only that.
#[test]
fn s74_what_a_failed_sync_lost_is_durable_once_it_is_written_again() {
    let config = Config { origin_failures: true, ..Config::new(Shape::Plain, 64) };
    each(config, |world| {
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        world.sim.add_fault(fault(world.base, IoOp::Sync, 1));
        assert_eq!(world.one(flush(0)), Ok(ERROR));
        for _ in 0..1 + world.rng.below(3) {
            world.crash(false).unwrap();
        }
        assert_eq!(world.one(req(0, Op::Write, 8, 4)), Ok(OK));
        // Another process may flush than wrote.
        for _ in 0..world.rng.below(3) {
            world.crash(false).unwrap();
        }
        assert_eq!(world.one(flush(0)), Ok(OK));
        let model = &world.devices[0].model;
        let promised = (0..64).filter(|&sector| !model.survives(sector, &pattern(BASE, sector)));
        assert_eq!(promised.collect::<Vec<_>>(), [8, 9, 10, 11]);
        world.crash(true).unwrap();
        world.judge_all().unwrap();
    });
}

/// Only one of the syncs that overlap is told of an error, and the others may end first.
#[test]
fn s74_no_flush_succeeds_because_another_was_told_of_the_error() {
    let config = Config { origin_failures: true, queues: 3, ..Config::new(Shape::Plain, 64) };
    for seed in 0..200 {
        let mut world = World::new(config.clone(), seed);
        assert_eq!(world.one(req(0, Op::Write, 8, 8)), Ok(OK));
        world.sim.add_fault(fault(world.base, IoOp::Sync, 1));
        world.ended.clear();
        world.ask([flush(0); 4]);
        world.run().unwrap();
        assert_eq!(world.ended, [(flush(0), Status::Error); 4], "seed {seed}");
        world.crash(true).unwrap();
    }
}

/// Flushes that come together need few syncs: at most one that runs and one after it.
#[test]
fn s74_flushes_share_the_syncs_of_a_file() {
    let config = Config { queues: 4, ..Config::new(Shape::Plain, 64) };
    for seed in 0..30 {
        let mut world = World::new(config.clone(), seed);
        assert_eq!(world.one(flush(0)), Ok(OK));
        assert_eq!(world.sim.performed(world.base, IoOp::Sync), 1);
        world.sim.hold(world.base, IoOp::Sync);
        world.ask([flush(0); 8]);
        world.run().unwrap();
        world.sim.release();
        world.run().unwrap();
        assert_eq!(world.sim.performed(world.base, IoOp::Sync), 3, "seed {seed}");
        world.check_quiet().unwrap();
    }
}
