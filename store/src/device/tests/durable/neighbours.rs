//! Writes that cannot be made durable, and what stands beside them.

use super::*;

/// The errors excused by an Invalid store are not excused for its neighbours.
#[test]
fn a_failed_commit_is_not_hidden_by_another_line_s_invalid_store() {
    let half = LEN / 2;
    let lines = [
        &*format!("0 {half} snapshot {{}}/disk {{}}/store P 8"),
        &*format!("{half} {half} snapshot {{}}/disk2 {{}}/store2 PO 8"),
    ];
    for fails in [false, true] {
        let world = World::new();
        ["disk", "disk2", "store", "store2"].iter().for_each(|name| world.file(name, LEN));
        world.device("snap", &lines).unwrap();
        world.carry_out("snap", Op::Write, LEN);
        let table = world.table("snap");
        let [invalid, other] = [0, 1].map(|number| table.exceptions()[number].store().clone());
        assert!(invalid.begin_invalidate());
        let _ = invalid.invalidated(true);
        if fails {
            let _ = other.commit_failed();
            cannot_flush(world.devices.suspend("snap", Suspend::default()));
            cannot_flush(world.devices.remove("snap", false));
        } else {
            world.devices.suspend("snap", Suspend::default()).unwrap();
            world.devices.remove("snap", false).unwrap();
            assert_eq!(other.log().owed_count(), 0);
        }
    }
}

/// `disk`: a line with an Invalid store, and a plain one.
fn beside_an_invalid_store() -> World {
    let world = World::new();
    let half = LEN / 2;
    ["disk", "disk2", "store"].iter().for_each(|name| world.file(name, LEN));
    let lines = [
        &*format!("0 {half} snapshot {{}}/disk {{}}/store P 8"),
        &*format!("{half} {half} linear {{}}/disk2 0"),
    ];
    world.device("disk", &lines).unwrap();
    let store = world.table("disk").exceptions()[0].store().clone();
    assert!(store.begin_invalidate());
    let _ = store.invalidated(true);
    world
}

/// Nor is a file that could not be synced.
#[test]
fn a_failed_sync_is_not_hidden_by_another_line_s_invalid_store() {
    let world = beside_an_invalid_store();
    let table = world.table("disk");
    world.devices.suspend("disk", Suspend::default()).unwrap();
    world.devices.resume("disk").unwrap();
    table.flush_set().media.iter().for_each(|file| file.medium.sync_failed());
    cannot_flush(world.devices.suspend("disk", Suspend::default()));
}

/// Nor is a flush that was not even tried.
#[test]
fn a_flush_that_cannot_run_is_not_hidden_by_another_line_s_invalid_store() {
    let world = beside_an_invalid_store();
    let workers = world.devices.workers();
    let engine = || Engine::new(workers, Box::new(NoWake), EngineConfig::default()).ok();
    let all: Vec<Engine> = std::iter::from_fn(engine).collect();
    cannot_flush(world.devices.suspend("disk", Suspend::default()));
    cannot_flush(world.devices.remove("disk", false));
    drop(all);
    world.devices.suspend("disk", Suspend::default()).unwrap();
    world.devices.remove("disk", false).unwrap();
}

/// What is owed since is not in doubt for a sync that failed before: it was written after that.
#[test]
fn a_failed_sync_that_a_store_was_opened_after_is_past() {
    let world = World::new();
    world.file("disk", 2 * LEN);
    world.file("store", LEN);
    let line = |len: u64| format!("0 {len} snapshot {{}}/disk {{}}/store PO 8");
    world.device("two", &[&line(LEN)]).unwrap();
    seen::fail(world.path("store").canonicalize().unwrap());
    world.load("two", &[&line(2 * LEN)]).unwrap_err();
    world.devices.resume("two").unwrap();
    let store = world.table("two").exceptions()[0].store().clone();
    assert_eq!((store.state(), world.table("two").size()), (StoreState::Valid, Sector(2 * LEN)));
    std::fs::write(world.path("bad"), [7; 8192]).unwrap();
    let bad = format!("0 {LEN} snapshot {{}}/disk {{}}/bad PO 8");
    world.device("three", &[&bad]).unwrap_err();
    assert_eq!(store.state(), StoreState::Valid);
}
