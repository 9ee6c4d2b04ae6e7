//! Waiting for room in full stores (scenarios 25 and 78): nothing is lost, nothing hangs, and
//! requests that need no room continue meanwhile.
#![cfg(not(feature = "shuttle"))]

mod world;

use snapblk_store::cow::store::StoreEvent;
use snapblk_store::cow::{Persistence, StoreState};
use snapblk_store::io::sim::{Fault, Rng};
use snapblk_store::io::{Errno, IoOp};
use snapblk_store::request::{Op, Status};
use world::{Config, Req, Shape, Snap, World};

const OK: Option<Status> = Some(Status::Ok);
const ERROR: Option<Status> = Some(Status::Error);
const NO_SPACE: Option<Status> = Some(Status::NoSpace);

fn req(device: usize, op: Op, sector: u64, count: u64) -> Req {
    Req { device, op, sector, count, durable: false }
}

fn write(device: usize, sector: u64, count: u64) -> Req {
    req(device, Op::Write, sector, count)
}

/// An overlay of eight chunks, two of which find room.
fn overlay() -> Config {
    let shape = Shape::Overlay { chunk: 8, store: 4 * 8 };
    Config { queues: 2, failures: true, ..Config::new(shape, 64) }
}

/// An origin with a snapshot whose store has room for two chunks of eight.
fn origin(persistence: Persistence) -> Config {
    let snap = Snap { chunk: 8, persistence, store: 4 * 8, sectors: 64 };
    Config { queues: 2, failures: true, ..Config::new(Shape::Origin(vec![snap]), 64) }
}

fn each(config: &Config, test: impl Fn(&mut World)) {
    for seed in 0..30 {
        let mut world = World::new(config.clone(), seed);
        world.be_patient();
        test(&mut world);
        world.judge_all().unwrap();
        world.check_quiet().unwrap();
    }
}

/// The request does not end now.
fn is_held(world: &mut World, held: Req) {
    assert_eq!(world.one(held), Ok(None));
    assert_eq!(world.state(0), StoreState::Full);
}

/// The result of a request that was held until now.
fn ending(world: &mut World, held: Req) -> Option<Status> {
    world.run().unwrap();
    world.ended.iter().find(|(of, _)| *of == held).map(|&(_, status)| status)
}

#[test]
fn s78_a_write_that_finds_its_store_full_waits_until_that_has_grown() {
    each(&overlay(), |world| {
        assert_eq!(world.one(write(0, 0, 16)), Ok(OK));
        assert_eq!(world.state(0), StoreState::Valid, "nothing needed more room");
        let held = write(0, 18, 4);
        is_held(world, held);
        assert_eq!(world.events.list(), [("store0".into(), StoreEvent::Full)]);
        // Reads, also of the same chunk, writes of mapped chunks, flushes: all continue.
        for other in [
            req(0, Op::Read, 0, 18),
            req(0, Op::Read, 22, 42),
            write(0, 3, 9),
            req(0, Op::Flush, 0, 0),
            req(0, Op::Discard, 40, 8),
        ] {
            assert_eq!(world.one(other), Ok(OK), "{other:?}");
        }
        // A later write waits behind it, also across a suspend.
        let behind = write(0, 32, 8);
        is_held(world, behind);
        world.swap_tables().unwrap();
        world.run().unwrap();
        assert_eq!((world.ended.len(), world.state(0)), (0, StoreState::Full));
        world.grow(0, 8 * 8);
        assert_eq!(ending(world, held), OK);
        assert_eq!(ending(world, behind), OK);
        assert_eq!(world.state(0), StoreState::Valid);
    });
}

/// Mapped and unmapped chunks in one request, and zeroes: the part that was done before the store
/// was full does not affect the rest.
#[test]
fn s78_a_request_over_many_chunks_is_held_as_a_whole() {
    for op in [Op::Write, Op::WriteZeroes { unmap: true }] {
        each(&overlay(), |world| {
            assert_eq!(world.one(write(0, 16, 8)), Ok(OK));
            let held = req(0, op, 1, 60);
            is_held(world, held);
            world.grow(0, 8);
            assert_eq!(ending(world, held), None, "that was too little");
            world.swap_tables().unwrap();
            world.grow(0, 40 * 8);
            assert_eq!(ending(world, held), OK);
        });
    }
}

#[test]
fn s78_when_the_time_is_over_writes_fail_as_without_a_wait() {
    each(&overlay(), |world| {
        assert_eq!(world.one(write(0, 0, 16)), Ok(OK));
        let (first, second) = (write(0, 16, 8), write(0, 30, 12));
        is_held(world, first);
        is_held(world, second);
        world.give_up(0);
        assert_eq!((ending(world, first), ending(world, second)), (NO_SPACE, NO_SPACE));
        assert_eq!(world.state(0), StoreState::Overflow);
        assert_eq!(world.one(write(0, 0, 8)), Ok(NO_SPACE));
        assert_eq!(world.one(req(0, Op::Read, 0, 64)), Ok(OK));
        let events = [StoreEvent::Full, StoreEvent::Overflowed].map(|e| ("store0".into(), e));
        assert_eq!(world.events.list(), events);
    });
}

/// The origin's write waits for its copy; then the copy is made, or given up, as in the table of
/// failures.
#[test]
fn s78_an_origins_write_waits_for_room_in_its_snapshot() {
    for persistence in
        [Persistence::Persistent, Persistence::PersistentOverflow, Persistence::Transient]
    {
        // A transient store has no metadata.
        let room = if persistence == Persistence::Transient { 32 } else { 16 };
        for grows in [true, false] {
            each(&origin(persistence), |world| {
                assert_eq!(world.one(write(0, 0, room)), Ok(OK));
                let held = write(0, room - 4, 16);
                is_held(world, held);
                assert_eq!(world.one(req(0, Op::Read, 56, 8)), Ok(OK));
                assert_eq!(world.one(req(1, Op::Read, 0, 64)), Ok(OK));
                assert_eq!(world.one(write(0, 2, 3)), Ok(OK), "that has its copy");
                world.swap_tables().unwrap();
                if grows {
                    world.grow(0, 64);
                } else {
                    world.give_up(0);
                }
                assert_eq!(ending(world, held), OK);
                let state = if grows { StoreState::Valid } else { StoreState::Invalid };
                assert_eq!(world.state(0), state);
            });
        }
    }
}

/// A write to the snapshot itself.
#[test]
fn s78_a_persistent_snapshot_is_invalid_when_the_time_is_over() {
    each(&origin(Persistence::Persistent), |world| {
        assert_eq!(world.one(write(1, 0, 16)), Ok(OK));
        let held = write(1, 16, 8);
        is_held(world, held);
        world.give_up(0);
        assert_eq!(ending(world, held), NO_SPACE);
        assert_eq!(world.state(0), StoreState::Invalid);
    });
}

/// A store that was given up once is waited for again later.
#[test]
fn s25_s78_a_store_that_was_given_up_and_cured_is_waited_for_again() {
    each(&overlay(), |world| {
        assert_eq!(world.one(write(0, 0, 16)), Ok(OK));
        let first = write(0, 16, 8);
        is_held(world, first);
        world.give_up(0);
        assert_eq!(ending(world, first), NO_SPACE);
        assert_eq!(world.state(0), StoreState::Overflow);
        world.grow(0, 2 * 8);
        world.stores[0].reactivate();
        assert_eq!(world.one(write(0, 16, 16)), Ok(OK));
        let second = write(0, 40, 8);
        is_held(world, second);
        world.grow(0, 64);
        assert_eq!(ending(world, second), OK);
    });
}

/// A front end that disconnects does not wait.
#[test]
fn s78_what_waits_for_room_can_be_given_up_alone() {
    each(&overlay(), |world| {
        assert_eq!(world.one(write(0, 0, 16)), Ok(OK));
        let held = write(0, 16, 8);
        is_held(world, held);
        world.fail_held();
        assert_eq!(ending(world, held), NO_SPACE);
        world.grow(0, 64);
        assert_eq!(world.one(held), Ok(OK));
    });
}

/// The file system below a sparse store is full: the place that could not be written is skipped.
#[test]
fn s78_a_store_without_room_below_it_is_waited_for() {
    is_waited_for_below(Errno::ENOSPC);
}

/// Or it has room, but only for other users.
#[test]
fn s78_a_store_whose_owner_may_use_no_more_is_waited_for() {
    is_waited_for_below(Errno::EDQUOT);
}

fn is_waited_for_below(errno: Errno) {
    each(&overlay(), |world| {
        let file = Some(world.store_file(0));
        let (op, range, after) = (Some(IoOp::Write), None, 0);
        world.grow(0, 64);
        assert_eq!(world.one(write(0, 8, 8)), Ok(OK));
        world.sim.add_fault(Fault { file, op, range, after, count: 1, errno });
        let held = write(0, 0, 8);
        is_held(world, held);
        assert!(world.stores[0].is_full_below());
        // Acknowledged chunks can be committed meanwhile.
        assert!(world.stores[0].has_committable());
        assert_eq!(world.one(req(0, Op::Flush, 0, 0)), Ok(OK));
        assert!(!world.stores[0].has_committable());
        world.grow(0, 0);
        assert_eq!(ending(world, held), OK);
        assert!(world.stores[0].has_committable());
    });
}

/// If one part of a request finds room, the part that did not is still held.
#[test]
fn s78_a_request_of_which_a_part_finds_no_room_is_held_as_a_whole() {
    each(&overlay(), |world| {
        let file = Some(world.store_file(0));
        let (op, range, errno) = (Some(IoOp::Write), None, Errno::ENOSPC);
        world.grow(0, 64);
        // Adjacent on the device, but not in the store.
        assert_eq!(world.one(write(0, 8, 8)), Ok(OK));
        assert_eq!(world.one(write(0, 0, 8)), Ok(OK));
        world.sim.add_fault(Fault { file, op, range, after: 0, count: 1, errno });
        let held = write(0, 0, 16);
        is_held(world, held);
        world.grow(0, 0);
        assert_eq!(ending(world, held), OK);
    });
}

/// A mapped chunk may find no room, as in a hole that a discard left.
#[test]
fn s78_a_chunk_that_has_its_place_and_finds_no_room_is_waited_for() {
    for gives_up in [false, true] {
        each(&overlay(), |world| {
            let file = Some(world.store_file(0));
            let (op, range, errno) = (Some(IoOp::Write), None, Errno::ENOSPC);
            world.grow(0, 64);
            assert_eq!(world.one(write(0, 0, 24)), Ok(OK));
            world.sim.add_fault(Fault { file, op, range, after: 0, count: 1, errno });
            let held = write(0, 4, 8);
            is_held(world, held);
            assert!(world.stores[0].is_full_below());
            assert_eq!(world.one(write(0, 16, 8)), Ok(OK), "another goes on");
            world.swap_tables().unwrap();
            world.run().unwrap();
            assert_eq!(ending(world, held), None, "another table makes no room");
            if gives_up {
                world.sim.add_fault(Fault { file, op, range, after: 0, count: 1, errno });
                world.give_up(0);
                assert_eq!(ending(world, held), NO_SPACE);
            } else {
                world.grow(0, 0);
                assert_eq!(ending(world, held), OK);
            }
            assert_eq!(world.state(0), StoreState::Valid);
            assert_eq!(world.one(write(0, 4, 16)), Ok(OK));
        });
    }
}

/// A plain disk, or an origin, whose file has a hole: reads, flushes and what has room go on, and
/// snapshots keep what they kept.
#[test]
fn s78_what_the_file_of_a_disk_has_no_room_for_is_waited_for() {
    let plain = Config::new(Shape::Plain, 64);
    let plain = Config { queues: 2, failures: true, origin_failures: true, ..plain };
    let mut origin = Config { origin_failures: true, ..origin(Persistence::PersistentOverflow) };
    if let Shape::Origin(snaps) = &mut origin.shape {
        snaps[0].store = 64 * 8;
    }
    for (config, op) in [(&plain, Op::Write), (&origin, Op::WriteZeroes { unmap: false })] {
        each(config, |world| {
            let no_room = |world: &mut World| {
                let (file, errno) = (Some(world.base), Errno::ENOSPC);
                let fault = Fault { file, op: None, range: None, after: 0, count: 1, errno };
                let op = Some(if op == Op::Write { IoOp::Write } else { IoOp::Zero });
                world.sim.add_fault(Fault { op, ..fault });
            };
            let held = req(0, op, 4, 16);
            no_room(world);
            assert_eq!(world.one(held), Ok(None));
            assert!(world.is_waiting_for_room());
            for other in [req(0, Op::Read, 20, 44), write(0, 40, 8), req(0, Op::Flush, 0, 0)] {
                assert_eq!(world.one(other), Ok(OK), "{other:?}");
            }
            world.swap_tables().unwrap();
            assert_eq!(ending(world, held), None, "another table makes no room");
            world.base_has_room();
            assert_eq!(ending(world, held), OK);
            no_room(world);
            assert_eq!(world.one(held), Ok(None));
            no_room(world);
            world.give_base_up();
            assert_eq!(ending(world, held), NO_SPACE);
            no_room(world);
            assert_eq!(world.one(held), Ok(NO_SPACE), "nobody waits any more");
            world.base_has_room();
            no_room(world);
            assert_eq!(world.one(held), Ok(None));
            world.fail_held();
            assert_eq!(ending(world, held), NO_SPACE);
        });
    }
}

/// I17: the round that fails is led by the held write's worker, or by the other.
#[test]
fn s74_s78_what_waits_for_room_fails_where_a_commit_does() {
    each(&overlay(), |world| {
        assert_eq!(world.one(write(0, 0, 16)), Ok(OK));
        let held = write(0, 16, 8);
        is_held(world, held);
        let (file, op) = (Some(world.store_file(0)), Some(IoOp::Sync));
        let errno = Errno::EIO;
        world.sim.add_fault(Fault { file, op, range: None, after: 0, count: 1, errno });
        assert_eq!(world.one(req(0, Op::Flush, 0, 0)), Ok(ERROR));
        assert_eq!(world.state(0), StoreState::CommitFailed);
        assert!(world.ended.contains(&(held, Status::Error)), "{:?}", world.ended);
    });
}

/// I17: the write in flight when the store became full, and waiting was forbidden, belongs to
/// another worker.
#[test]
fn s78_what_waits_for_room_fails_where_another_write_overflows_the_store() {
    let overflows = std::cell::Cell::new(0);
    each(&overlay(), |world| {
        assert_eq!(world.one(write(0, 0, 16)), Ok(OK));
        world.ended.clear();
        world.ask([write(0, 18, 4), write(0, 34, 4)]);
        while world.state(0) != StoreState::Full {
            assert_eq!(world.turn(), Ok(true));
        }
        world.stores[0].set_patience(std::time::Duration::ZERO);
        world.run().unwrap();
        if world.state(0) == StoreState::Overflow {
            overflows.set(overflows.get() + 1);
        } else {
            world.give_up(0);
            world.run().unwrap();
        }
        let failed = world.ended.iter().filter(|(_, status)| *status == Status::NoSpace);
        assert_eq!(failed.count(), 2);
    });
    assert!((1..30).contains(&overflows.get()), "{} of 30", overflows.get());
}

/// All requests in any order, with stores that grow or are given up, and tables that are swapped
/// while requests are held. If stores only grow, no request may fail.
#[test]
fn s25_and_s78_anything_while_stores_fill_up_and_grow() {
    let (mut fulls, mut given_up) = (0, 0);
    for seed in world::budget::Budget::from_env(400).seeds() {
        let mut rng = Rng::new(seed ^ 0x7878);
        let only_grows = rng.chance(1, 2);
        let mut config = some_config(&mut rng);
        config.failures = !only_grows;
        let mut world = World::new(config, seed);
        world.be_patient();
        for _ in 0..3 {
            ask_some(&mut world, &mut rng);
            // A world that waits for room becomes idle repeatedly.
            for turn in 0.. {
                assert!(turn < 2000, "seed {seed}: no end");
                for _ in 0..rng.below(60) {
                    world.turn().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                }
                if rng.chance(1, 4) {
                    world.swap_tables().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                }
                world.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                let full: Vec<usize> = (0..world.stores.len())
                    .filter(|&store| world.state(store) == StoreState::Full)
                    .collect();
                let Some(&store) = full.first() else { break };
                fulls += 1;
                if !only_grows && rng.chance(1, 6) {
                    given_up += 1;
                    world.give_up(store);
                } else {
                    let more = 1 + rng.below(80);
                    world.grow(store, more);
                }
            }
            if rng.chance(1, 3) {
                let power = rng.chance(1, 2);
                world.crash(power).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                world.be_patient();
            }
        }
        world.judge_all().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        world.check_quiet().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(fulls > 200 && given_up > 10, "{fulls} times full, {given_up} times given up");
}

fn some_config(rng: &mut Rng) -> Config {
    let sectors = 40 + rng.below(160);
    let snap = |rng: &mut Rng| Snap {
        chunk: 1 << rng.below(5),
        persistence: *rng.pick(&[Persistence::Persistent, Persistence::PersistentOverflow]),
        store: 64 + rng.below(64),
        sectors: 8 + rng.below(sectors - 8),
    };
    let shape = match rng.below(2) {
        0 => Shape::Overlay { chunk: 1 << rng.below(5), store: 64 + rng.below(64) },
        _ => Shape::Origin((0..1 + rng.below(3)).map(|_| snap(rng)).collect()),
    };
    let mut config = Config::new(shape, sectors);
    config.queues = 1 + rng.below(3) as usize;
    config.depth = 1 + rng.below(24) as usize;
    config.claims = 1 + rng.below(20) as usize;
    config
}

fn ask_some(world: &mut World, rng: &mut Rng) {
    let sizes: Vec<u64> = match &world.config.shape {
        Shape::Origin(snaps) => {
            [world.config.sectors].into_iter().chain(snaps.iter().map(|s| s.sectors)).collect()
        }
        _ => vec![world.config.sectors],
    };
    for _ in 0..30 {
        let device = rng.below(sizes.len() as u64) as usize;
        let sector = rng.below(sizes[device]);
        let count = (1 + rng.below(40)).min(sizes[device] - sector);
        let op = match rng.below(8) {
            0..=4 => Op::Write,
            5 => Op::WriteZeroes { unmap: true },
            6 => Op::Read,
            _ => Op::Flush,
        };
        let (sector, count) = if op == Op::Flush { (0, 0) } else { (sector, count) };
        world.ask([Req { device, op, sector, count, durable: rng.chance(1, 12) }]);
    }
}
