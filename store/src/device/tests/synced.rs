//! Files whose sync failed: what a guest is told, and until when.

use super::*;
use crate::cow::MergeMark;
use crate::device::verbs::Suspend;
use crate::io::Errno;
use crate::request::Status;

const LINE: &str = "0 2048 linear {}/disk 0";

/// A guest's flush by way of the device's present table, whose syncs end as `ends` says: how it ended, and
/// how many syncs it took.
fn flush(world: &World, name: &str, ends: Result<(), Errno>) -> (Status, usize) {
    let mut engine = world.engine(name);
    let (token, op) = (Token(0), Op::Flush);
    engine.submit(Request { token, op, sector: Sector(0), len: 0, durable: false });
    let mut syncs = 0;
    loop {
        engine.step();
        while let Some(Action { op, tag, .. }) = engine.pop_action() {
            assert_eq!(op, IoOp::Sync);
            syncs += 1;
            engine.complete(Completion { tag, result: ends });
        }
        if let Some((_, status)) = engine.pop_finished() {
            return (status, syncs);
        }
    }
}

fn fails(world: &World, name: &str) {
    assert_eq!(flush(world, name, Err(Errno::EIO)), (Status::Error, 1));
}

/// As long as the failure is remembered, nothing is synced.
fn has_failed(world: &World, name: &str) {
    assert_eq!(flush(world, name, Ok(())), (Status::Error, 0), "{name}");
}

fn is_flushed(world: &World, name: &str) {
    assert_eq!(flush(world, name, Ok(())), (Status::Ok, 1), "{name}");
}

fn with_disks(names: &[&str]) -> World {
    let world = World::new();
    world.file("disk", LEN);
    names.iter().for_each(|name| world.device(name, &[LINE]).unwrap());
    world
}

#[test]
fn scenario_74_a_file_that_is_opened_again_by_a_table_can_be_flushed() {
    let world = with_disks(&["disk"]);
    is_flushed(&world, "disk");
    fails(&world, "disk");
    has_failed(&world, "disk");
    world.devices.suspend("disk", Suspend { noflush: true }).unwrap();
    world.devices.resume("disk").unwrap();
    has_failed(&world, "disk");
    world.load("disk", &[LINE]).unwrap();
    is_flushed(&world, "disk");
    fails(&world, "disk");
    has_failed(&world, "disk");
}

/// A command's flush fails, or another device's: a guest that was not told learns of it first.
#[test]
fn a_guest_learns_of_a_failed_sync_before_it_is_forgotten() {
    let world = with_disks(&["disk"]);
    world.table("disk").flush_set().media[0].medium.sync_failed();
    cannot_suspend(&world);
    world.load("disk", &[LINE]).unwrap();
    has_failed(&world, "disk");
    world.load("disk", &[LINE]).unwrap();
    is_flushed(&world, "disk");
}

fn cannot_suspend(world: &World) {
    let refused = world.devices.suspend("disk", Suspend::default());
    assert!(matches!(refused, Err(DeviceError::FlushFailed(_))), "{refused:?}");
}

/// It is the device's own business to open its file again.
#[test]
fn a_failed_sync_is_forgotten_for_the_device_whose_table_was_loaded() {
    let world = with_disks(&["disk", "other"]);
    fails(&world, "disk");
    has_failed(&world, "other");
    world.load("disk", &[LINE]).unwrap();
    is_flushed(&world, "disk");
    has_failed(&world, "other");
    world.load("other", &[LINE]).unwrap();
    is_flushed(&world, "other");
}

/// And for those above it; other commands, which change tables too, forget nothing.
#[test]
fn a_failed_sync_is_remembered_by_the_tables_that_commands_make() {
    let world = with_disks(&["lower"]);
    world.device("disk", &["0 2048 linear lower 0"]).unwrap();
    fails(&world, "disk");
    world.overlay("disk", "store");
    assert_eq!(flush(&world, "disk", Ok(())).0, Status::Error);
    world.load("lower", &[LINE]).unwrap();
    assert_eq!(flush(&world, "disk", Ok(())).0, Status::Ok);
}

/// A device that merges, and whose merge has failed; and its store.
fn failed_merge() -> (World, Arc<crate::cow::Store>) {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &["0 2048 snapshot-merge {}/disk {}/store P 8"]).unwrap();
    let store = world.table("disk").exceptions()[0].store().clone();
    store.set_merge_mark(MergeMark::Failed);
    (world, store)
}

fn resume(world: &World) {
    world.devices.suspend("disk", Suspend { noflush: true }).unwrap();
    world.devices.resume("disk").unwrap();
}

/// 45: reactivation completes a merge, so the device's files are opened again.
#[test]
fn scenario_45_a_store_of_a_failed_merge_is_opened_again_by_a_resume() {
    let (world, store) = failed_merge();
    resume(&world);
    let same = |store| Arc::ptr_eq(store, world.table("disk").exceptions()[0].store());
    assert!(same(&store), "there is no need");
    let _ = store.commit_failed();
    resume(&world);
    assert!(!same(&store));
    assert_eq!(world.table("disk").exceptions()[0].store().state(), StoreState::Valid);
}

#[test]
fn scenario_45_the_origin_of_a_failed_merge_is_opened_again_by_a_resume() {
    let (world, _) = failed_merge();
    let origin = world.table("disk").flush_set().media[0].clone();
    origin.medium.sync_failed();
    resume(&world);
    assert!(origin.has_failed(), "no guest was told");
    assert_eq!(flush(&world, "disk", Ok(())).0, Status::Error);
    resume(&world);
    assert!(!origin.has_failed());
}
