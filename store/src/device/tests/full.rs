//! Full stores that are said to have room.

use std::time::Instant;

use super::*;
use crate::cow::Store;

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

/// Tends the store from `from` on, each time that this is asked for, while writes that find no room
/// are tried whenever it goes on, for `time` at most: how often they were, and when they were given
/// up.
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

/// Tends the store until it goes on; when it does.
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
    // It has room itself, and the file system says that it has some too.
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

/// Who waited left, and it was valid ever since.
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

/// What has its place needs none of the store's: a log without room does not keep it waiting.
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
