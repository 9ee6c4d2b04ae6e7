//! What commands set on a device besides its table outlives the process.

use super::*;
use crate::device::{InitialDevice, JobSettings};
use crate::table::Keeper;

/// An overlay.
fn overlay() -> World {
    let world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    world.device("disk", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    world
}

fn restarted(world: World) -> World {
    let World { dir, devices, .. } = world;
    drop(devices);
    let world = World::at(dir);
    // The arguments' value.
    world.devices.set_patience("disk", Duration::from_secs(1));
    world.devices.start(&[], |_| Ok(())).unwrap();
    world
}

/// spec/cow-format.md, State.
#[test]
fn how_long_writes_wait_for_room_outlives_the_process() {
    let mut world = overlay();
    let patience = |world: &World| world.table("disk").exceptions()[0].store().patience();
    for seconds in [20, 0] {
        let wanted = Duration::from_secs(seconds);
        world.devices.change_patience("disk", wanted).unwrap();
        assert_eq!(patience(&world), wanted);
        world = restarted(world);
        assert_eq!(patience(&world), wanted);
    }
    std::fs::create_dir(world.path("state.new")).unwrap();
    world.devices.change_patience("disk", Duration::from_secs(5)).unwrap_err();
    assert_eq!(patience(&world), Duration::ZERO, "nothing has changed");
}

/// It binds a plain disk to nothing else: the next start takes its file as long as it is then.
#[test]
fn how_long_writes_of_a_plain_disk_wait_is_all_that_is_kept_of_it() {
    let world = World::new();
    let first = |len: u64| {
        world.file("disk", len);
        let line = format!("0 {len} linear {}/disk 0", world.path("").display());
        InitialDevice {
            name: "disk".into(),
            lines: parse_table([&*line]).unwrap(),
            read_only: false,
        }
    };
    let [one, other] = [first(LEN), first(LEN / 2)];
    world.file("disk", LEN);
    world.devices.start(&[one], |_| Ok(())).unwrap();
    world.devices.change_patience("disk", Duration::from_secs(20)).unwrap();
    let state = std::fs::read_to_string(world.path("state")).unwrap();
    assert!(state.contains("20000") && !state.contains("linear"), "{state}");
    let World { dir, devices, .. } = world;
    drop(devices);
    let world = World::at(dir);
    world.devices.start(&[other], |_| Ok(())).unwrap();
    let table = world.table("disk");
    let Some(Keeper::Medium(medium)) = table.all_keepers().next() else { panic!("a file") };
    assert_eq!(medium.patience(), Duration::from_secs(20));
}

#[test]
fn a_write_threshold_outlives_the_process_until_it_is_passed() {
    let mut world = overlay();
    let threshold = |world: &World| world.table("disk").exceptions()[0].store().write_threshold();
    world.devices.set_write_threshold("disk", 1 << 19).unwrap();
    world = restarted(world);
    assert_eq!(threshold(&world), Some(1 << 19));
    // Below the layers that come on top, it is still that of its store.
    world.overlay("disk", "store2");
    world = restarted(world);
    let store = |layer: usize| world.table("disk").exceptions()[0].layers[layer].write_threshold();
    assert_eq!([store(0), store(1)], [Some(1 << 19), None]);
    world.devices.passed_threshold("disk.1", 1);
    world = restarted(world);
    let store = |layer: usize| world.table("disk").exceptions()[0].layers[layer].write_threshold();
    assert_eq!(store(0), Some(1 << 19), "another one was passed");
    world.devices.passed_threshold("disk.1", 1 << 19);
    world = restarted(world);
    let store = |layer: usize| world.table("disk").exceptions()[0].layers[layer].write_threshold();
    assert_eq!(store(0), None);
}

/// Another job may have its name by then, as long as nobody goes on with it.
#[test]
fn the_settings_of_a_halted_job_stay() {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    world.overlay("disk", "store");
    let job = CommitJob { device: "disk".into(), ..CommitJob::default() };
    world.devices.begin_commit("j", &job).unwrap();
    world.devices.pivot("j").unwrap();
    let set = |speed, paused| {
        let change = |of: &mut JobSettings| (of.speed, of.paused) = (speed, paused);
        world.devices.keep_settings("j", change).unwrap();
        let JobSettings { speed, paused, .. } = world.devices.commit_jobs()["j"].settings;
        (speed, paused)
    };
    assert_eq!(set(5, true), (5, true));
    world.devices.halt_commit("j").unwrap();
    assert_eq!(set(7, true), (5, false));
}
