//! Disks of a state that the arguments do not name any more, or name otherwise.

use super::*;
use crate::device::{InitialDevice, StateError};

/// A disk of the arguments: an overlay on `base` in `NAME.cow`, unless another store is named.
fn overlay(world: &World, name: &str, base: &str, store: Option<&str>) -> InitialDevice {
    let own = format!("{name}.cow");
    let [base, store] = [base, store.unwrap_or(&own)].map(|file| world.path(file));
    let line = format!("0 {LEN} snapshot {} {} PO 8", base.display(), store.display());
    InitialDevice { name: name.into(), lines: parse_table([&*line]).unwrap(), read_only: false }
}

fn again(World { dir, devices, .. }: World) -> World {
    drop(devices);
    World::at(dir)
}

fn start(world: &World, first: &[InitialDevice]) -> Result<(), DeviceError> {
    world.devices.start(first, |_| Ok(()))
}

/// The overlays `a` and `b`, each on its own base, were served; with another layer on `a` if
/// `layered`.
fn served(layered: bool) -> World {
    let world = World::new();
    for name in ["a", "b"] {
        world.file(&format!("{name}.raw"), LEN);
        world.file(&format!("{name}.cow"), LEN);
    }
    let disks = ["a", "b"].map(|name| overlay(&world, name, &format!("{name}.raw"), None));
    start(&world, &disks).unwrap();
    if layered {
        world.overlay("a", "a2.cow");
    }
    again(world)
}

fn is_known(world: &World, name: &str) -> bool {
    world.devices.lock().active(name).is_ok()
}

fn change(world: &World, base: &str) {
    std::fs::write(world.path(base), vec![1; LEN as usize * 512]).unwrap();
}

fn refused_base(done: Result<(), DeviceError>) {
    let changed = matches!(done, Err(DeviceError::State(StateError::BaseChanged { .. })));
    assert!(changed, "{done:?}");
}

/// Its base may have been changed since, for one, or its files are another process's.
#[test]
fn a_disk_that_left_the_arguments_stops_no_other_and_is_not_forgotten() {
    for layered in [false, true] {
        let mut world = served(layered);
        let b = |world: &World| [overlay(world, "b", "b.raw", None)];
        for _ in 0..2 {
            start(&world, &b(&world)).unwrap();
            assert!(is_known(&world, "b") && !is_known(&world, "a") && !is_known(&world, "a.1"));
            world = again(world);
        }
        let both = |world: &World| [overlay(world, "a", "a.raw", None), b(world)[0].clone()];
        start(&world, &both(&world)).unwrap();
        assert_eq!(world.table("a").exceptions()[0].layers.len(), if layered { 2 } else { 1 });
        world = again(world);
        change(&world, "a.raw");
        start(&world, &b(&world)).unwrap();
        world = again(world);
        refused_base(start(&world, &both(&world)));
    }
}

#[test]
fn what_commands_made_and_what_they_use_is_there_whatever_the_arguments() {
    let world = served(false);
    start(&world, &["a", "b"].map(|name| overlay(&world, name, &format!("{name}.raw"), None)))
        .unwrap();
    world.device("made", &[&format!("0 {LEN} linear a 0")]).unwrap();
    let world = again(world);
    start(&world, &[]).unwrap();
    assert!(is_known(&world, "made") && is_known(&world, "a") && !is_known(&world, "b"));
}

/// As the only disk of a start, and as one of several.
#[test]
fn a_disk_under_another_name_has_its_store_unless_commands_put_layers_on_it() {
    for layered in [false, true] {
        let mut world = served(layered);
        let renamed = |world: &World| {
            let new = overlay(world, "new", "a.raw", Some("a.cow"));
            [new, overlay(world, "b", "b.raw", None)]
        };
        for count in [1, 2] {
            let started = start(&world, &renamed(&world)[..count]);
            let refused = matches!(started, Err(DeviceError::State(StateError::Renamed { .. })));
            assert_eq!((started.is_ok(), refused), (!layered, layered), "{started:?}");
            world = again(world);
        }
    }
    let world = served(false);
    change(&world, "a.raw");
    refused_base(start(&world, &[overlay(&world, "new", "a.raw", Some("a.cow"))]));
}

/// Neither the guest nor its front-end sets its cache again.
#[test]
fn a_disk_that_left_the_arguments_finds_its_settings_again() {
    let mut world = served(false);
    let disks =
        |world: &World| ["a", "b"].map(|name| overlay(world, name, &format!("{name}.raw"), None));
    start(&world, &disks(&world)).unwrap();
    world.devices.set_write_through("a", "export", true).unwrap();
    for _ in 0..2 {
        world = again(world);
        start(&world, &disks(&world)[1..]).unwrap();
        world.devices.set_write_through("b", "export", true).unwrap();
    }
    world = again(world);
    start(&world, &disks(&world)).unwrap();
    assert!(["a", "b"].iter().all(|name| world.devices.is_write_through(name, "export")));
}

/// A threshold is no other disk.
#[test]
fn a_disk_with_a_setting_has_its_store_under_another_name() {
    let world = served(false);
    start(&world, &[overlay(&world, "a", "a.raw", None)]).unwrap();
    world.devices.set_write_threshold("a", 1 << 20).unwrap();
    let world = again(world);
    start(&world, &[overlay(&world, "new", "a.raw", Some("a.cow"))]).unwrap();
}

/// The state that knows it is not the one that is used.
#[test]
fn a_lost_store_that_another_state_knows_is_not_made_anew() {
    let world = served(false);
    std::fs::rename(world.path("state"), world.path("former")).unwrap();
    std::fs::remove_file(world.path("b.cow")).unwrap();
    world.devices.replaces_states(vec![world.path("former")]);
    let disks = ["c", "b"].map(|name| overlay(&world, name, &format!("{name}.raw"), None));
    world.file("c.raw", LEN);
    let make = |table: &InitialDevice| {
        assert_ne!(table.name, "b", "its store is lost");
        world.file("c.cow", LEN);
        Ok(())
    };
    let gone = world.devices.start(&disks, make).unwrap_err();
    let is_gone =
        matches!(&gone, DeviceError::State(StateError::StoreGone { device, .. }) if device == "b");
    assert!(is_gone, "{gone}");
}
