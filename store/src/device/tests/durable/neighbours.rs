//! Tables of several lines, of which one cannot make its writes durable.

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
        invalid.invalidated(true);
        if fails {
            other.commit_failed();
            cannot_flush(world.devices.suspend("snap", Suspend::default()));
            cannot_flush(world.devices.remove("snap", false));
        } else {
            world.devices.suspend("snap", Suspend::default()).unwrap();
            world.devices.remove("snap", false).unwrap();
            assert_eq!(other.log().owes(), 0);
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
    store.invalidated(true);
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
