//! The size and time of files below overlays, in the state.

use super::*;

impl World {
    /// Whether the state records the file `name` as one below a store.
    fn records(&self, name: &str) -> bool {
        let state = std::fs::read_to_string(self.path("state")).unwrap();
        let path = format!("path = \"{}\"", self.path(name).canonicalize().unwrap().display());
        state.split("[[bases]]").skip(1).any(|base| base.contains(&path))
    }
}

/// A change of it must be noticed, whatever commands come after the first overlay.
#[test]
fn a_base_that_was_a_served_disk_stays_recorded() {
    let world = World::new();
    world.linear("disk");
    assert!(!world.records("disk"));
    world.overlay("disk", "first");
    assert!(world.records("disk"));
    world.made_durable();
    // Nor may a kill before the tables change lose the record.
    let (device, cow) = ("disk".into(), world.path("second"));
    let second = OverlaySnapshot { device, cow, below: None, existing: false };
    let second = MomentAction::Overlay(second);
    let recorded = || {
        assert!(world.records("disk"));
        Ok(())
    };
    world.devices.take_moment(&[second], &recorded).unwrap();
    assert!(world.records("disk"));
    world.linear("other");
    assert!(world.records("disk") && !world.records("other"));
    world.devices.remove("other", false).unwrap();
    assert!(world.records("disk"));
    let synced = world.made_durable();
    assert!(!synced.contains(&"disk".into()), "nothing has changed: {synced:?}");
    let World { dir, devices, .. } = world;
    drop(devices);
    std::fs::write(dir.path().join("disk"), vec![1; LEN as usize * 512]).unwrap();
    let again = World::at(dir);
    let refused = again.devices.start(&[], |_| Ok(()));
    let changed = matches!(refused, Err(DeviceError::State(StateError::BaseChanged { .. })));
    assert!(changed, "{refused:?}");
}

/// Its disk was served until the table of an overlay was loaded.
#[test]
fn a_base_that_a_loaded_table_makes_is_recorded() {
    let world = World::new();
    world.linear("disk");
    world.file("store", LEN);
    world.load("disk", &[&format!("0 {LEN} snapshot {{}}/disk {{}}/store PO 8")]).unwrap();
    assert!(world.records("disk"));
}

/// A guest may write to it until the tables change, and when it is an origin, later too.
#[test]
fn a_base_that_is_an_origin_from_now_on_is_not_recorded() {
    let world = World::new();
    world.linear("disk");
    world.overlay("disk", "store");
    assert!(world.records("disk"));
    world.device("origin", &[&format!("0 {LEN} snapshot-origin {{}}/disk")]).unwrap();
    assert!(!world.records("disk"));
    world.devices.remove("origin", false).unwrap();
    assert!(world.records("disk"));
}

/// Those above it read it through a file of their own, which wrote nothing.
#[test]
fn the_time_of_a_base_is_durable_before_what_a_commit_leaves_is_recorded() {
    for dropped in [true, false] {
        let mut world = World::new();
        world.config().force = true;
        ["base", "store"].iter().for_each(|name| world.file(name, LEN));
        world.device("disk", &[&format!("0 {LEN} snapshot {{}}/base {{}}/store PO 8")]).unwrap();
        world.overlay("disk", "store2");
        let top = Some("disk.1".into());
        let job = CommitJob { device: "disk".into(), top, ..CommitJob::default() };
        world.devices.begin_commit("c", &job).unwrap();
        assert!(!world.records("base"), "it is written");
        world.made_durable();
        if dropped {
            assert!(world.devices.drop_layers("c").unwrap());
        } else {
            world.devices.forget_commit("c").unwrap();
        }
        assert!(world.records("base"));
        let durable = world.made_durable();
        let at = |name: &str| durable.iter().position(|of| of == name);
        assert!(at("base").is_some_and(|base| Some(base) < at("state.new")), "{durable:?}");
    }
}
