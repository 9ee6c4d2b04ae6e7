//! Full stores and other files that are said to have room.

use std::time::Instant;

use super::*;
use crate::cow::Store;
use crate::io::Errno;
use crate::request::Status;
use crate::table::Keeper;
use crate::wake::WakeSet;

const PATIENCE: Duration = Duration::from_secs(10);

/// The overlay `disk`, which waits for room, and its store.
fn patient() -> (World, Arc<Store>) {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    world.devices.set_patience("disk", PATIENCE);
    let store = world.table("disk").exceptions()[0].store().clone();
    (world, store)
}

/// Tends the store from `from` on, whenever due, and retries writes that find no room whenever it
/// continues, for at most `time`: returns the number of retries, and when they were given up.
fn tried(world: &World, store: &Store, from: Instant, time: Duration) -> (u32, Option<Instant>) {
    let (mut tries, mut now) = (0, from);
    while now < from + time {
        let Some(next) = world.devices.tend_full(now) else {
            assert_eq!(store.state(), StoreState::Valid);
            if !store.wait_for_room() {
                return (tries, Some(now));
            }
            tries += 1;
            assert!(tries < 100, "it is tried again and again");
            now += Duration::from_millis(1);
            continue;
        };
        assert!(next > now);
        now = next;
    }
    (tries, None)
}

/// Tends the store until it continues; returns when.
fn goes_on(world: &World, store: &Store, mut now: Instant) -> Instant {
    while let Some(next) = world.devices.tend_full(now) {
        now = next;
    }
    assert_eq!(store.state(), StoreState::Valid);
    now
}

#[test]
fn scenario_78_room_that_no_write_finds_is_waited_for_no_longer_and_tried_seldom() {
    let (world, store) = patient();
    // The store itself has room, and the file system reports some too.
    assert!(store.wait_for_room() && store.is_full_below());
    let from = Instant::now();
    let (tries, given_up) = tried(&world, &store, from, 3 * PATIENCE);
    let waited = given_up.expect("it is given up") - from;
    let second = Duration::from_secs(1);
    assert!(PATIENCE <= waited && waited <= PATIENCE + 2 * second, "{waited:?}");
    assert!((8..20).contains(&tries), "{tries}");
}

#[test]
fn scenario_78_a_write_that_found_room_makes_patient_again() {
    let (world, store) = patient();
    let (from, most) = (Instant::now(), PATIENCE * 9 / 10);
    assert!(store.wait_for_room());
    assert_eq!(tried(&world, &store, from, most).1, None);
    let now = goes_on(&world, &store, from + most);
    world.carry_out("disk", Op::Write, 8);
    assert!(store.wait_for_room());
    assert_eq!(tried(&world, &store, now, most).1, None);
}

/// The waiting request is gone, and the store has been valid since.
#[test]
fn scenario_78_who_comes_later_is_as_patient() {
    let (world, store) = patient();
    let (from, most) = (Instant::now(), PATIENCE * 9 / 10);
    assert!(store.wait_for_room());
    assert_eq!(tried(&world, &store, from, most).1, None);
    let now = goes_on(&world, &store, from + most) + 2 * PATIENCE;
    assert!(store.wait_for_room());
    assert_eq!(tried(&world, &store, now, most).1, None);
}

/// A mapped chunk needs no room in the store: a log without room does not delay it.
#[test]
fn what_waits_for_the_file_system_does_not_wait_for_the_log() {
    let (world, store) = patient();
    while store.log().has_room() {
        store.log().allocate(1);
    }
    assert!(store.wait_for_room_below() && store.is_full_below());
    goes_on(&world, &store, Instant::now());
    assert!(store.wait_for_room() && !store.is_full_below());
}

/// Carries out what an engine asks for until it comes to rest; writes to `full` find no room. How its
/// requests ended.
fn carried_out(engine: &mut Engine, full: Option<FileId>) -> Vec<Status> {
    let mut ended = Vec::new();
    loop {
        engine.step();
        let mut begun = false;
        while let Some(Action { op, file, tag, .. }) = engine.pop_action() {
            let finds_none = op == IoOp::Write && Some(file) == full;
            let result = if finds_none { Err(Errno::ENOSPC) } else { Ok(()) };
            engine.complete(Completion { tag, result });
            begun = true;
        }
        ended.extend(std::iter::from_fn(|| engine.pop_finished()).map(|(_, status)| status));
        if !begun && engine.is_quiet() {
            return ended;
        }
    }
}

fn write(engine: &mut Engine, sector: u64, sectors: u64) {
    let (token, sector, len) = (Token(0), Sector(sector), sectors * 512);
    engine.submit(Request { token, op: Op::Write, sector, len, durable: false });
}

/// A disk of two stores and a file, each 8 sectors of it, which waits for room; all are mapped.
fn of_three() -> (World, Engine) {
    let world = World::new();
    for name in ["base", "one", "two", "file"] {
        world.file(name, LEN);
    }
    let lines = ["0 8 snapshot {}/base {}/one PO 8", "8 8 snapshot {}/base {}/two PO 8"];
    world.device("disk", &[lines[0], lines[1], "16 8 linear {}/file 0"]).unwrap();
    world.devices.set_patience("disk", PATIENCE);
    let mut engine = world.engine("disk");
    write(&mut engine, 0, 24);
    assert_eq!(carried_out(&mut engine, None), [Status::Ok]);
    (world, engine)
}

#[test]
fn scenario_78_of_a_request_over_several_files_that_alone_is_full_which_had_no_room() {
    let (world, mut engine) = of_three();
    let table = world.table("disk");
    let keepers: Vec<Keeper<'_>> = table.all_keepers().collect();
    assert_eq!(keepers.len(), 3);
    for lacking in &keepers {
        let full = Some(lacking.file());
        write(&mut engine, 0, 24);
        assert_eq!(carried_out(&mut engine, full), [], "it is held");
        for keeper in &keepers {
            assert_eq!(keeper.is_full(), keeper.file() == lacking.file(), "{keeper:?}");
        }
        // It is tried again where somebody wakes the worker, and not before there is room.
        world.devices.workers().wake(WakeSet::ALL);
        assert_eq!(carried_out(&mut engine, full), []);
        assert!(world.devices.tend_full(Instant::now()).is_none() && !lacking.is_full());
        assert_eq!(carried_out(&mut engine, None), [Status::Ok]);
    }
}

/// As what is written first does.
#[test]
fn scenario_78_what_has_its_place_and_found_room_makes_patient_again() {
    let (world, mut engine) = of_three();
    let table = world.table("disk");
    let is_promised = |keeper: &Keeper<'_>| match keeper {
        Keeper::Store(store) => store.is_promised_room(),
        Keeper::Medium(medium) => medium.is_promised_room(),
    };
    for lacking in table.all_keepers() {
        let full = Some(lacking.file());
        write(&mut engine, 0, 24);
        carried_out(&mut engine, full);
        world.devices.tend_full(Instant::now());
        // Other parts of it found room; what had none has none yet.
        assert_eq!(carried_out(&mut engine, full), []);
        assert!(lacking.is_full() && is_promised(&lacking), "{lacking:?}");
        let mut now = Instant::now();
        while let Some(next) = world.devices.tend_full(now) {
            now = next;
        }
        assert_eq!(carried_out(&mut engine, None), [Status::Ok]);
        assert!(!is_promised(&lacking), "{lacking:?}");
    }
}

#[test]
fn scenario_78_what_a_plain_disk_has_no_room_for_fails_when_the_time_is_over() {
    let (world, mut engine) = of_three();
    let table = world.table("disk");
    let file = table.all_keepers().last().unwrap();
    let full = Some(file.file());
    let (from, mut tries) = (Instant::now(), 0);
    write(&mut engine, 16, 8);
    let (mut now, mut look) = (from, from);
    let ended = loop {
        let ended = carried_out(&mut engine, full);
        if !ended.is_empty() {
            break ended;
        }
        tries += 1;
        assert!(file.is_full() && look < from + 2 * PATIENCE, "it is held");
        now = look;
        look = world.devices.tend_full(now).unwrap_or(now + Duration::from_millis(1));
    };
    assert_eq!(ended, [Status::NoSpace]);
    let waited = now - from;
    assert!(PATIENCE <= waited && waited <= PATIENCE + Duration::from_secs(2), "{waited:?}");
    assert!((8..60).contains(&tries), "{tries}");
    // So does what comes at once behind it; when there is room, what finds none waits again.
    write(&mut engine, 16, 8);
    assert_eq!(carried_out(&mut engine, full), [Status::NoSpace]);
    assert!(look > now, "it looks for room");
    assert_eq!(world.devices.tend_full(look), None);
    write(&mut engine, 16, 8);
    assert_eq!(carried_out(&mut engine, full), []);
    assert!(file.is_full());
    // Nobody is patient any more.
    world.devices.set_patience("disk", Duration::ZERO);
    world.devices.tend_full(look);
    world.devices.tend_full(look + Duration::from_secs(1));
    assert_eq!(carried_out(&mut engine, full), [Status::NoSpace]);
}

/// What waits does not wait for longer than a front end, and nor does a table that comes instead.
#[test]
fn scenario_78_what_a_plain_disk_has_no_room_for_holds_nothing() {
    let (world, mut engine) = of_three();
    let full = world.table("disk").all_keepers().last().map(|file| file.file());
    write(&mut engine, 16, 8);
    assert_eq!(carried_out(&mut engine, full), []);
    assert!(engine.is_quiet());
    engine.fail_held_for_room();
    assert_eq!(carried_out(&mut engine, full), [Status::NoSpace]);
    write(&mut engine, 16, 8);
    assert_eq!(carried_out(&mut engine, full), []);
    world.file("other", LEN);
    engine.bind(None);
    world.load("disk", &["0 16 zero", "16 8 linear {}/other 0"]).unwrap();
    engine.bind(Some(world.table("disk")));
    assert_eq!(carried_out(&mut engine, full), [Status::Ok]);
}
