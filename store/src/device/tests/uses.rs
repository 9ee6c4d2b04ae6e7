//! Who uses a device, from when on, and what is refused meanwhile.

use super::*;
use crate::cow::Persistence;
use crate::device::moment::CreateSnapshot;
use crate::device::{MergeJob, TableKind, User};

/// The plain disk `disk` with its snapshot `snap`, and perhaps another way to write the file.
fn world() -> World {
    let world = World::new();
    world.file("disk", LEN);
    world.device("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    let snap = CreateSnapshot {
        device: "disk".into(),
        name: "snap".into(),
        cow: world.path("store"),
        chunk: None,
        size: None,
        persistence: Persistence::Persistent,
        existing: false,
    };
    world.devices.take_moment(&[MomentAction::Create(snap)], &|| Ok(())).unwrap();
    world
}

fn refused<T: std::fmt::Debug>(result: Result<T, DeviceError>) -> String {
    result.unwrap_err().to_string()
}

/// Between the check that a device may be exported and the first of the export's threads a command
/// of another client may come, for as long as it takes to start those.
#[test]
fn a_device_is_in_use_from_when_it_was_found_fit_for_that() {
    let world = world();
    world.devices.prepare("snap", "export", false).unwrap();
    let open = || world.devices.query(Some("snap"), TableKind::Active).unwrap()[0].open_count;
    assert_eq!(open(), 1);
    let job = MergeJob {
        device: "disk".into(),
        snapshot: "snap".into(),
        cow: String::new(),
        speed: 0,
        auto_finalize: true,
        auto_dismiss: true,
    };
    for said in [
        refused(world.devices.delete_snapshot("disk", "snap", true)),
        refused(world.devices.remove("snap", false)),
        refused(world.devices.begin_merge("job", &job)),
    ] {
        assert!(said.contains("the export 'export'"), "{said}");
    }
    assert!(world.path("store").exists());
    // Its threads come: it is one user still.
    let user = User { writable: false, workers: Vec::new() };
    world.devices.attach("snap", "export", user).unwrap();
    assert_eq!(open(), 1);
    // Or they cannot be started.
    world.devices.detach("snap", "export");
    assert_eq!(open(), 0);
    world.devices.delete_snapshot("disk", "snap", true).unwrap();
}

/// Of two ways to write the same, the second one is refused before the first has a thread.
#[test]
fn who_is_about_to_write_counts_as_a_writer() {
    let world = World::new();
    world.file("disk", LEN);
    for name in ["a", "b"] {
        world.device(name, &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    }
    world.devices.prepare("a", "export", true).unwrap();
    let origin = format!("0 {LEN} snapshot-origin {{}}/disk");
    let said = refused(world.load("b", &[&origin]));
    assert!(said.contains("'a'"), "{said}");
    world.devices.clear("b").unwrap();
    world.devices.detach("a", "export");
    world.load("b", &[&origin]).unwrap();
}
