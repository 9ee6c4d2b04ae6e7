//! Disks that are as the arguments made them: no start is bound to their former size, and no file of a user
//! that lies where a state is to be is touched.

use super::*;
use crate::device::{InitialDevice, Suspend, TableKind};
use crate::io::durable::seen;

/// A disk of the arguments with `sectors` sectors.
fn given(world: &World, name: &str, sectors: u64, read_only: bool) -> InitialDevice {
    let line = format!("0 {sectors} linear {} 0", world.path(name).display());
    InitialDevice { name: name.into(), lines: parse_table([line.as_str()]).unwrap(), read_only }
}

fn again(World { dir, devices, .. }: World) -> World {
    drop(devices);
    World::at(dir)
}

fn start(world: &World, first: &[InitialDevice]) -> Result<(), DeviceError> {
    world.devices.start(first, |_| Ok(()))
}

#[test]
fn a_guest_s_write_cache_pins_neither_size_nor_arguments() {
    let world = World::new();
    world.file("disk", 2 * LEN);
    world.file("other", LEN);
    let disks = |world: &World, sectors, read_only| {
        [given(world, "disk", sectors, read_only), given(world, "other", LEN, false)]
    };
    start(&world, &disks(&world, LEN, false)).unwrap();
    assert!(!world.path("state").exists());
    world.devices.set_write_through("other", "guest", true).unwrap();
    world.devices.set_write_through("disk", "guest", true).unwrap();
    let mut world = world;
    for (sectors, read_only) in [(2 * LEN, false), (LEN / 2, true), (LEN, false)] {
        world = again(world);
        start(&world, &disks(&world, sectors, read_only)).unwrap();
        let table = world.table("disk");
        assert_eq!((table.size(), table.read_only()), (Sector(sectors), read_only));
        assert!(world.devices.is_write_through("disk", "guest"));
        assert!(world.devices.is_write_through("other", "guest"));
    }
    // A disk that is no longer served is not required.
    let world = again(world);
    start(&world, &disks(&world, LEN, false)[..1]).unwrap();
    assert!(!world.devices.is_write_through("other", "guest"));
    // Nor is there an unneeded file; its removal is durable, like its content was.
    seen::take();
    world.devices.set_write_through("disk", "guest", false).unwrap();
    assert!(!world.path("state").exists());
    assert_eq!(seen::take(), [std::fs::canonicalize(world.dir.path()).unwrap()]);
}

/// A state that was named and is not there is a new one to the next start. So it stays, and binds nothing.
#[test]
fn a_state_that_was_named_is_not_removed() {
    let world = World::new();
    world.file("disk", 2 * LEN);
    let state = world.path("state");
    let set = |world: &World, on| world.devices.set_write_through("disk", "guest", on).unwrap();
    let kept = || std::fs::read_to_string(&state).unwrap();
    world.devices.state_was_named();
    start(&world, &[given(&world, "disk", LEN, false)]).unwrap();
    assert!(!state.exists(), "nothing is made for nothing");
    set(&world, true);
    set(&world, false);
    assert!(kept().contains("generation = 2") && !kept().contains("disk"), "{}", kept());
    let world = again(world);
    world.devices.state_was_named();
    start(&world, &[given(&world, "disk", 2 * LEN, false)]).unwrap();
    assert_eq!(world.table("disk").size(), Sector(2 * LEN));
    assert!(kept().contains("generation = 3"), "{}", kept());
    // What somebody else removed is not made again, either.
    set(&world, true);
    std::fs::remove_file(&state).unwrap();
    set(&world, false);
    assert!(!state.exists());
    // One that was not named goes with what it says.
    set(&world, true);
    set(&world, false);
    let world = again(world);
    start(&world, &[given(&world, "disk", LEN, false)]).unwrap();
    assert!(!state.exists());
}

/// Servers that share a disk which they only read have no state, which only one of them could have.
#[test]
fn a_write_cache_of_a_disk_that_is_only_read_is_kept_when_it_is_written() {
    let world = World::new();
    world.file("disk", LEN);
    start(&world, &[given(&world, "disk", LEN, true)]).unwrap();
    for (export, off) in [("guest", true), ("other", true), ("other", false)] {
        world.devices.set_write_through("disk", export, off).unwrap();
    }
    world.devices.suspend("disk", Suspend::default()).unwrap();
    world.devices.resume("disk").unwrap();
    assert!(!world.path("state").exists());
    assert!(world.devices.is_write_through("disk", "guest"), "of this process it is known");
    world.load("disk", &[&format!("0 {LEN} linear {{}}/disk 0")]).unwrap();
    let again = again(world);
    start(&again, &[given(&again, "disk", LEN, true)]).unwrap();
    assert!(again.devices.is_write_through("disk", "guest"));
    assert!(!again.devices.is_write_through("disk", "other"));
}

/// A command's change is kept together with the first arguments, until it is undone.
#[test]
fn what_a_command_changed_is_held_to_the_first_arguments() {
    let world = World::new();
    world.file("disk", 2 * LEN);
    start(&world, &[given(&world, "disk", LEN, false)]).unwrap();
    world.devices.set_write_through("disk", "guest", true).unwrap();
    world.devices.suspend("disk", Suspend::default()).unwrap();
    let world = again(world);
    let refused = start(&world, &[given(&world, "disk", LEN, true)]);
    assert!(refused.is_err_and(|error| error.to_string().contains("start with the old arguments")));
    start(&world, &[given(&world, "disk", 2 * LEN, false)]).unwrap();
    assert_eq!(world.table("disk").size(), Sector(LEN));
    assert!(world.devices.is_write_through("disk", "guest"));
    world.devices.resume("disk").unwrap();
    let world = again(world);
    start(&world, &[given(&world, "disk", 2 * LEN, true)]).unwrap();
    assert_eq!(world.table("disk").size(), Sector(2 * LEN));
}

/// A store's content comes from a guest's writes, even if no command changed anything.
#[test]
fn a_disk_with_a_store_is_held_to_the_first_arguments() {
    let world = World::new();
    ["disk", "store"].iter().for_each(|name| world.file(name, LEN));
    let [disk, store] = ["disk", "store"].map(|name| world.path(name));
    let line = format!("0 {LEN} snapshot {} {} PO 8", disk.display(), store.display());
    let lines = parse_table([line.as_str()]).unwrap();
    let overlay = InitialDevice { name: "disk".into(), lines, read_only: false };
    start(&world, &[overlay]).unwrap();
    let world = again(world);
    assert!(start(&world, &[given(&world, "disk", LEN, false)]).is_err());
}

/// As earlier versions wrote it when a guest turned its write cache off.
#[test]
fn an_older_file_pins_no_more_than_a_new_one() {
    let old = |world: &World, suspended: bool| {
        let table = given(world, "disk", LEN, false).lines[0].to_string();
        let text = format!(
            "version = 1\ngeneration = 4\ninvalid = []\nbases = []\n[first.disk]\ntable = \
             [\"{table}\"]\nread-only = false\n[write-through]\ndisk = [\"guest\"]\n\
             [devices.disk]\nsuspended = {suspended}\nread-only = false\ntable = [\"{table}\"]\n\
             inactive-read-only = false\n[jobs]\n[commits]\n"
        );
        std::fs::write(world.path("state"), text).unwrap();
    };
    let world = World::new();
    world.file("disk", 2 * LEN);
    old(&world, false);
    start(&world, &[given(&world, "disk", 2 * LEN, true)]).unwrap();
    assert_eq!(world.table("disk").size(), Sector(2 * LEN));
    assert!(world.devices.is_write_through("disk", "guest"));
    let kept = std::fs::read_to_string(world.path("state")).unwrap();
    assert!(kept.contains("generation = 5") && !kept.contains("linear"), "{kept}");
    let world = again(world);
    old(&world, true);
    assert!(start(&world, &[given(&world, "disk", 2 * LEN, true)]).is_err());
}

/// If the directory cannot be synced, the next start sees the former state.
#[test]
fn a_file_that_cannot_go_durably_stays() {
    let world = World::new();
    world.file("disk", LEN);
    start(&world, &[given(&world, "disk", LEN, false)]).unwrap();
    world.devices.set_write_through("disk", "guest", true).unwrap();
    let before = std::fs::read(world.path("state")).unwrap();
    seen::take();
    seen::fail(std::fs::canonicalize(world.dir.path()).unwrap());
    let failed = world.devices.set_write_through("disk", "guest", false);
    assert!(failed.is_err_and(|error| error.to_string().contains("cannot remove")));
    assert_eq!(std::fs::read(world.path("state")).unwrap(), before);
    assert!(seen::take().iter().any(|name| name.ends_with("state.new")));
    world.devices.set_write_through("disk", "guest", true).unwrap();
    world.devices.set_write_through("disk", "guest", false).unwrap();
    assert!(!world.path("state").exists());
}

/// A disk that a client extended and removed has no size that the file could contradict.
#[test]
fn a_disk_that_was_removed_is_known_whatever_its_file_s_length() {
    let world = World::new();
    world.file("disk", LEN);
    world.file("other", LEN);
    let first = |world: &World, sectors| {
        [given(world, "disk", sectors, false), given(world, "other", LEN, false)]
    };
    start(&world, &first(&world, LEN)).unwrap();
    world.devices.resize("disk", 2 * LEN * 512).unwrap();
    world.devices.remove("disk", false).unwrap();
    let mut world = world;
    for sectors in [2 * LEN, LEN / 2] {
        world = again(world);
        start(&world, &first(&world, sectors)).unwrap();
        assert!(world.devices.require_table("disk").is_err(), "it stays removed");
        world.table("other");
    }
    let world = again(world);
    let read_only = [given(&world, "disk", LEN, true), given(&world, "other", LEN, false)];
    assert!(start(&world, &read_only).is_err(), "these are other arguments");
    // So it is where it was made again, without a table.
    start(&world, &first(&world, LEN)).unwrap();
    world.devices.create("disk", None).unwrap();
    let world = again(world);
    start(&world, &first(&world, 2 * LEN)).unwrap();
}

/// A new state is written beside the old one: under a name that a user's file may have, or what a
/// killed process left.
#[test]
fn a_file_of_a_user_beside_the_state_stays() {
    let world = World::new();
    let (new, old) = (world.path("state.new"), world.path("state"));
    for theirs in ["precious", "version 2 of the plan", "\0\0\0\0"] {
        std::fs::write(&new, theirs).unwrap();
        let said = world.devices.create("a", None).unwrap_err().to_string();
        assert!(said.contains("state.new") && said.contains("move it away"), "{said}");
        assert_eq!(std::fs::read_to_string(&new).unwrap(), theirs);
        assert!(!old.exists() && world.devices.query(Some("a"), TableKind::Active).is_err());
    }
    std::fs::remove_file(&new).unwrap();
    std::os::unix::fs::symlink(world.path("elsewhere"), &new).unwrap();
    world.devices.create("a", None).unwrap_err();
    assert!(!world.path("elsewhere").exists());
    std::fs::remove_file(&new).unwrap();
    let ours = "version = 1\ngeneration = 7\n";
    for (n, len) in [0, 4, ours.len()].into_iter().enumerate() {
        std::fs::write(&new, &ours[..len]).unwrap();
        world.devices.create(&format!("a{n}"), None).unwrap();
        assert!(!new.exists());
    }
}

/// As they are where a configuration file has the lower one, and the command line the upper.
#[test]
fn a_disk_may_be_given_before_the_one_that_it_lies_on() {
    let world = World::new();
    world.file("disk", LEN);
    let over = |name: &str, below: &str| {
        let line = format!("0 {LEN} linear {below} 0");
        let lines = parse_table([line.as_str()]).unwrap();
        InitialDevice { name: name.into(), lines, read_only: false }
    };
    let disks = |world: &World| {
        [over("top", "middle"), over("middle", "disk"), given(world, "disk", LEN, false)]
    };
    start(&world, &disks(&world)).unwrap();
    world.devices.suspend("disk", Suspend::default()).unwrap();
    let world = again(world);
    start(&world, &disks(&world)).unwrap();
    assert_eq!(world.table("top").size(), Sector(LEN));
    let world = World::new();
    let said = start(&world, &[over("a", "b"), over("b", "a")]).unwrap_err().to_string();
    assert!(said.contains("the disks 'a', 'b' lie on each other"), "{said}");
    let said = start(&world, &[over("own", "own")]).unwrap_err().to_string();
    assert!(said.contains("onto itself"), "{said}");
}
