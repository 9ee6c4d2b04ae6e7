//! Snapshots whose stores are in memory, after the process that had them.

use super::*;
use crate::cow::Persistence;
use crate::cow::store::StoreEvent;
use crate::device::InitialDevice;
use crate::device::moment::CreateSnapshot;

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

/// Empty, it would show what the origin holds by now: no image of any moment.
#[test]
fn a_snapshot_in_memory_of_a_served_disk_is_invalid_after_a_restart() {
    let mut world = World::new();
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
    assert_eq!(state_of(&world, "snap"), StoreState::Valid);
    for _ in 0..2 {
        let (again, forgotten) = restarted(world, &[]);
        world = again;
        assert_eq!(forgotten, ["snap"]);
        assert_eq!(state_of(&world, "snap"), StoreState::Invalid);
    }
    world.devices.delete_snapshot("disk", "snap", true).unwrap();
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
