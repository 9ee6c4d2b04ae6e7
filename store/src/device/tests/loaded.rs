//! Loaded tables that no resume has swapped in yet, and what they name.

use super::uses::world;
use super::*;
use crate::device::{RollbackJob, Suspend, TableKind};

/// Loads a line into the new device `name`.
fn loads(world: &World, name: &str, line: &str) -> Result<(), DeviceError> {
    let line = line.replace("{}", world.dir.path().to_str().unwrap());
    let _ = world.devices.create(name, None);
    world.devices.load(name, parse_table([line.as_str()]).unwrap(), false)
}

/// The line of a device.
fn line_of(world: &World, name: &str) -> String {
    let status = world.devices.query(Some(name), TableKind::Active).unwrap();
    status[0].targets[0].line.to_string()
}

/// A new process with the same directory, started without arguments.
fn started_again(World { dir, devices, .. }: World) -> World {
    drop(devices);
    let world = World::at(dir);
    world.devices.start(&[], |_| Ok(())).unwrap();
    world
}

fn refused<T: std::fmt::Debug>(result: Result<T, DeviceError>, why: &str) {
    let said = result.unwrap_err().to_string();
    assert!(said.contains(why), "{said}");
}

/// What no resume can swap in is told at once: a resume that fails leaves its guest waiting.
#[test]
fn scenario_43_a_merge_of_a_store_in_memory_is_not_loaded() {
    let world = world();
    world.file("cow", LEN);
    for origin in ["disk", "{}/disk"] {
        let line = format!("0 {LEN} snapshot-merge {origin} {{}}/cow N 8");
        refused(loads(&world, "x", &line), "merges a transient store");
        assert!(!world.devices.query(Some("x"), TableKind::Active).unwrap()[0].has_inactive_table);
    }
}

#[test]
fn a_store_in_a_device_is_not_loaded() {
    let world = world();
    world.file("cow", LEN);
    loads(&world, "cow", &format!("0 {LEN} linear {{}}/cow 0")).unwrap();
    world.devices.resume("cow").unwrap();
    for target in ["snapshot", "snapshot-merge"] {
        refused(loads(&world, "x", &format!("0 {LEN} {target} disk cow PO 8")), "'cow' is no file");
        assert!(!world.devices.query(Some("x"), TableKind::Active).unwrap()[0].has_inactive_table);
    }
}

/// A merge removes the snapshot's device.
#[test]
fn a_snapshot_that_a_loaded_table_names_is_not_merged() {
    let world = world();
    loads(&world, "x", &format!("0 {LEN} linear snap 0")).unwrap();
    let job =
        RollbackJob { device: "disk".into(), snapshot: "snap".into(), ..RollbackJob::default() };
    refused(world.devices.begin_rollback("job", &job), "in use by the device 'x'");
    world.devices.clear("x").unwrap();
    world.devices.begin_rollback("job", &job).unwrap();
}

/// A commit removes layers when it ends.
#[test]
fn no_table_that_names_a_layer_is_loaded_while_that_is_committed() {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    ["store", "store2", "store3"].iter().for_each(|store| world.overlay("disk", store));
    let named = |name: &str| Some(String::from(name));
    let (top, base) = (named("disk.3"), named("disk.2"));
    let job = CommitJob { device: "disk".into(), top, base, ..CommitJob::default() };
    world.devices.begin_commit("job", &job).unwrap();
    for layer in ["disk.3", "disk.2"] {
        refused(loads(&world, "x", &format!("0 {LEN} linear {layer} 0")), "the job 'job'");
    }
    world.devices.forget_commit("job").unwrap();
    loads(&world, "x", &format!("0 {LEN} linear disk.3 0")).unwrap();
}

/// Nothing serves a loaded table yet, and what it lacks may be back when it is resumed.
#[test]
fn a_loaded_table_that_lacks_something_does_not_keep_others_from_starting() {
    let world = world();
    world.file("other", LEN);
    loads(&world, "x", &format!("0 {LEN} linear {{}}/other 0")).unwrap();
    loads(&world, "y", &format!("0 {LEN} linear x 0")).unwrap();
    // As an earlier version allowed it.
    let state = std::fs::read_to_string(world.path("state")).unwrap();
    let state = state.replace(&format!("0 {LEN} linear x 0"), &format!("0 {LEN} linear gone 0"));
    std::fs::write(world.path("state"), state).unwrap();
    std::fs::remove_file(world.path("other")).unwrap();
    let world = started_again(world);
    world.table("disk");
    refused(world.devices.resume("x"), "other");
    refused(world.devices.resume("y"), "there is no device 'gone'");
    world.file("other", LEN);
    world.devices.resume("x").unwrap();
    assert_eq!(world.table("x").size(), Sector(LEN));
}

/// Its store has been moved away, and the path is another file's.
#[test]
fn a_file_that_took_a_store_s_place_is_not_deleted() {
    let world = world();
    let (store, kept) = (world.path("store"), world.path("kept"));
    std::fs::rename(&store, &kept).unwrap();
    std::fs::write(&store, b"another").unwrap();
    let delete = |with_store| world.devices.delete_snapshot("disk", "snap", with_store);
    refused(delete(true), "another file");
    assert_eq!(std::fs::read(&store).unwrap(), b"another");
    world.table("snap");
    delete(false).unwrap();
    assert!(store.exists() && kept.exists());
}

#[test]
fn a_store_that_other_tables_name_is_not_deleted() {
    let world = world();
    let snap = line_of(&world, "snap");
    let delete = |with_store| world.devices.delete_snapshot("disk", "snap", with_store);
    for (other, line) in
        [("new", snap.as_str()), ("reader", "0 8 linear {}/store 0"), ("serves", "0 8 zero")]
    {
        loads(&world, other, line).unwrap();
        if other == "serves" {
            world.devices.resume("serves").unwrap();
            world.load("serves", &["0 8 linear {}/store 0"]).unwrap();
        }
        for suspended in [false, true] {
            if suspended {
                world.devices.suspend("snap", Suspend::default()).unwrap();
            }
            refused(delete(true), &format!("a table of '{other}'"));
            world.table("snap");
            if suspended && other == "new" {
                refused(world.devices.resume("snap"), "loaded into 'new'");
                world.devices.clear(other).unwrap();
            }
            if suspended {
                world.devices.resume("snap").unwrap();
            }
        }
        world.devices.remove(other, false).unwrap();
    }
    // Without its store it is removed, and handed over.
    loads(&world, "new", &snap).unwrap();
    world.devices.suspend("snap", Suspend::default()).unwrap();
    delete(false).unwrap();
    world.devices.resume("new").unwrap();
    world.devices.delete_snapshot("disk", "new", true).unwrap();
    assert!(!world.path("store").exists());
}

/// A store that is made anew has nothing of the one that was there.
#[test]
fn what_is_recorded_of_a_store_goes_with_it() {
    for deleted in [true, false] {
        let world = world();
        let (snap, path) = (line_of(&world, "snap"), world.path("store"));
        let store = world.table("snap").exceptions()[0].store().clone();
        assert!(store.begin_invalidate());
        let _ = store.invalidated(false);
        world.devices.record_invalid(store.name());
        assert_eq!(store.state(), StoreState::Invalid);
        drop(store);
        let is_kept =
            || std::fs::read_to_string(world.path("state")).unwrap().contains("/store\"]");
        assert!(is_kept());
        world.devices.delete_snapshot("disk", "snap", deleted).unwrap();
        assert_eq!(is_kept(), !deleted);
        if deleted {
            std::fs::write(path, store_of(&[3])).unwrap();
        } else {
            world.file("store", LEN);
        }
        loads(&world, "snap", &snap).unwrap();
        world.devices.resume("snap").unwrap();
        assert_eq!(world.table("snap").exceptions()[0].store().state(), StoreState::Valid);
        assert!(!is_kept());
    }
}
