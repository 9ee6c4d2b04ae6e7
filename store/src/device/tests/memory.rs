//! Snapshots whose stores are in memory, after the process that had them.

use super::*;
use crate::cow::Persistence;
use crate::cow::store::StoreEvent;
use crate::device::moment::CreateSnapshot;
use crate::device::{InitialDevice, TableKind};

fn state_of(world: &World, snapshot: &str) -> StoreState {
    world.table(snapshot).exceptions()[0].store().state()
}

/// Starts again, and returns the snapshots that are said to be forgotten.
fn restarted(world: World, first: &[InitialDevice]) -> (World, Vec<String>) {
    let World { dir, devices, .. } = world;
    drop(devices);
    let mut world = World::at(dir);
    let (happened, happens) = channel();
    let happened = Mutex::new(happened);
    world.watch(move |event| happened.lock().unwrap().send(event).unwrap());
    world.devices.start(first, |_| Ok(())).unwrap();
    let forgotten = |event| match event {
        DeviceEvent::Store { device, event: StoreEvent::Forgotten, .. } => Some(device),
        _ => None,
    };
    let all = happens.try_iter().filter_map(forgotten).collect();
    (world, all)
}

/// A disk with a snapshot in memory.
fn with_a_snapshot() -> World {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    let action = MomentAction::Create(CreateSnapshot {
        device: "disk".into(),
        name: "snap".into(),
        cow: world.path("store"),
        chunk: None,
        size: None,
        persistence: Persistence::Transient,
        existing: false,
    });
    world.devices.take_moment(&[action], &|| Ok(())).unwrap();
    world
}

/// Empty, it would show what the origin holds by now: no image of any moment.
#[test]
fn a_snapshot_in_memory_of_a_served_disk_is_invalid_after_a_restart() {
    let mut world = with_a_snapshot();
    assert_eq!(state_of(&world, "snap"), StoreState::Valid);
    for _ in 0..2 {
        let (again, forgotten) = restarted(world, &[]);
        world = again;
        assert_eq!(forgotten, ["snap"]);
        assert_eq!(state_of(&world, "snap"), StoreState::Invalid);
    }
    world.devices.delete_snapshot("disk", "snap", true).unwrap();
}

/// As after a restart of the machine, if it was in /dev/shm.
#[test]
fn a_snapshot_in_memory_whose_file_is_gone_stops_no_other_disk() {
    let mut world = with_a_snapshot();
    for _ in 0..2 {
        let _ = std::fs::remove_file(world.path("store"));
        world = restarted(world, &[]).0;
        world.table("disk");
        let snap = &world.devices.query(Some("snap"), TableKind::Active).unwrap()[0].targets[0];
        assert_eq!((snap.state, &*snap.status), (Some(StoreState::Invalid), "Invalid"));
        assert!(!world.path("store").exists());
    }
    std::fs::write(world.path("store"), "a user's").unwrap();
    let said = world.devices.delete_snapshot("disk", "snap", true).unwrap_err().to_string();
    assert!(said.contains("is another file"), "{said}");
    let other = world.devices.delete_snapshot("snap", "snap", false);
    assert!(other.is_err() && world.path("store").exists());
    std::fs::remove_file(world.path("store")).unwrap();
    world.devices.delete_snapshot("disk", "snap", true).unwrap();
    assert!(world.devices.query(Some("snap"), TableKind::Active).is_err());
}

/// The arguments ask for it at each start: it is of that moment.
#[test]
fn a_snapshot_in_memory_that_the_arguments_name_is_new_at_each_start() {
    let mut world = World::new();
    world.file("disk", LEN);
    world.file("store", LEN);
    let table = |name: &str, line: &str| {
        let line = line.replace("{}", world.path("").to_str().unwrap());
        InitialDevice { name: name.into(), lines: parse_table([&*line]).unwrap(), read_only: false }
    };
    let first = [
        table("disk", &format!("0 {LEN} snapshot-origin {{}}/disk")),
        table("snap", &format!("0 {LEN} snapshot disk {{}}/store N 8")),
    ];
    world.devices.start(&first, |_| Ok(())).unwrap();
    for _ in 0..2 {
        let (again, forgotten) = restarted(world, &first);
        world = again;
        assert_eq!(forgotten, [""; 0]);
        assert_eq!(state_of(&world, "snap"), StoreState::Valid);
    }
}
