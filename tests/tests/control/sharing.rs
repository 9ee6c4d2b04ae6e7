//! Two processes and one state file: none replaces or removes what the other one kept.

use serde_json::{Value, json};
use snapblk_tests::server::{Scratch, ServerCommand};

use crate::common::*;

const SECTORS: u64 = 2048;

/// A directory with a disk that is only read, and one disk for each of two servers.
fn disks() -> Scratch {
    let scratch = scratch();
    for name in ["iso.raw", "d1.raw", "d2.raw"] {
        scratch.file(name, &stamped(0, SECTORS, 1)).unwrap();
    }
    scratch
}

/// A server of the disk `dN.raw` with the state that is named.
fn with_state(own: &Scratch, disks: &Scratch, number: u8, state: &str) -> ServerCommand {
    plain(own, &disks.path(&format!("d{number}.raw"))).arg("--state").arg(disks.path(state))
}

/// A server of the disk that is only read, and then of the disk `dN.raw`, as `dataN`.
fn with_iso(own: &Scratch, disks: &Scratch, number: u8) -> ServerCommand {
    let data = format!("d{number}.raw");
    plain(own, &disks.path("iso.raw"))
        .arg("--read-only")
        .arg("--name")
        .arg(format!("data{number}"))
        .arg("--blk-file")
        .arg(disks.path(&data))
        .arg("--socket-path")
        .arg(own.socket("data.sock"))
}

fn states(disks: &Scratch) -> Vec<String> {
    let entries = std::fs::read_dir(disks.dir()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut states: Vec<_> = names.filter(|name| name.contains(".state")).collect();
    states.sort();
    states
}

fn overlay_of(disks: &Scratch, device: &str, file: &str) -> Value {
    json!({"device": device, "snapshot-file": disks.path(file)})
}

fn snapshot_of(disks: &Scratch, device: &str, file: &str) -> Value {
    json!({"device": device, "name": "snap", "cow": disks.path(file)})
}

/// The names beside the disks that have to do with states.
const NOTHING: [&str; 0] = [];

#[test]
fn a_state_that_another_process_keeps_is_left_alone() {
    let (disks, own) = (disks(), [scratch(), scratch(), scratch()]);
    let first = with_state(&own[0], &disks, 1, "common.state");
    let mut one = World::start(&first);
    let mut two = World::start(&with_state(&own[1], &disks, 2, "common.state"));
    one.call("blockdev-snapshot-sync", overlay_of(&disks, "disk0", "o1.cow"));
    one.disk().write(0, &stamped(0, 8, 2)).unwrap();
    let said = two.refused("snapshot-create", snapshot_of(&disks, "disk0", "s2.cow"));
    for part in ["common.state", "in use", "snapblk", "--state"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!disks.path("s2.cow").exists());
    // Nor does a third one start with it, until it is free.
    let third = with_state(&own[2], &disks, 2, "common.state");
    two.stop();
    let said = does_not_start(&third);
    assert!(said.contains("common.state is in use"), "{said}");
    one.stop();
    assert_eq!(states(&disks), ["common.state"]);
    let world = World::start(&first);
    assert_same("disk0", &world.disk().read(0, 4096).unwrap(), &stamped(0, 8, 2));
    world.stop();
}

#[test]
fn a_state_that_another_process_has_left_is_not_replaced() {
    let (disks, own) = (disks(), [scratch(), scratch()]);
    let first = with_state(&own[0], &disks, 1, "common.state");
    let mut one = World::start(&first);
    let mut two = World::start(&with_state(&own[1], &disks, 2, "common.state"));
    one.call("blockdev-snapshot-sync", overlay_of(&disks, "disk0", "o1.cow"));
    one.disk().write(0, &stamped(0, 8, 2)).unwrap();
    one.stop();
    for _ in 0..2 {
        let said = two.refused("snapshot-create", snapshot_of(&disks, "disk0", "s2.cow"));
        assert!(said.contains("common.state") && said.contains("--state"), "{said}");
        // The refused one does not keep the first from coming back.
        let world = World::start(&first);
        assert_same("disk0", &world.disk().read(0, 4096).unwrap(), &stamped(0, 8, 2));
        world.stop();
    }
    two.stop();
    assert_eq!(states(&disks), ["common.state"]);
}

/// The state is beside the disk that only one process can write.
#[test]
fn servers_of_one_image_that_is_only_read_have_a_state_each() {
    let (disks, own) = (disks(), [scratch(), scratch()]);
    let commands = [with_iso(&own[0], &disks, 1), with_iso(&own[1], &disks, 2)];
    let [mut one, mut two] = commands.each_ref().map(World::start);
    assert_eq!(states(&disks), NOTHING);
    one.call("blockdev-snapshot-sync", overlay_of(&disks, "data1", "o1.cow"));
    let mut data = disk(&own[0].socket("data.sock"));
    data.write(0, &stamped(0, 8, 2)).unwrap();
    data.flush().unwrap();
    two.call("snapshot-create", snapshot_of(&disks, "data2", "s2.cow"));
    disk(&own[1].socket("data.sock")).write(0, &stamped(0, 8, 3)).unwrap();
    one.stop();
    two.stop();
    assert_eq!(states(&disks), ["d1.raw.state", "d2.raw.state"]);
    let [one, mut two] = commands.each_ref().map(World::start);
    let data = |number: usize| disk(&own[number].socket("data.sock")).read(0, 4096).unwrap();
    assert_same("data1", &data(0), &stamped(0, 8, 2));
    assert_same("data2", &data(1), &stamped(0, 8, 3));
    assert_same("snap", &two.content(&own[1], "snap"), &stamped(0, SECTORS, 1));
    one.stop();
    two.stop();
}

/// A guest that turns its write cache off keeps no other server from starting.
#[test]
fn servers_of_one_disk_that_is_only_read_need_no_state() {
    let (disks, own) = (disks(), [scratch(), scratch()]);
    let command = |own| plain(own, &disks.path("iso.raw")).arg("--read-only");
    let one = World::start(&command(&own[0]));
    crate::resize::set_write_cache(&one, false);
    let two = World::start(&command(&own[1]));
    crate::resize::set_write_cache(&two, false);
    assert_eq!(states(&disks), NOTHING);
    one.stop();
    two.stop();
}

/// An earlier version kept it beside the first disk, also where that is only read.
#[test]
fn a_state_beside_the_first_disk_is_found_by_its_server_alone() {
    let (disks, own) = (disks(), [scratch(), scratch()]);
    let [first, second] = [with_iso(&own[0], &disks, 1), with_iso(&own[1], &disks, 2)];
    let mut one = World::start(&first.clone().arg("--state").arg(disks.path("iso.raw.state")));
    one.call("blockdev-snapshot-sync", overlay_of(&disks, "data1", "o1.cow"));
    disk(&own[0].socket("data.sock")).write(0, &stamped(0, 8, 2)).unwrap();
    one.stop();
    let one = World::start(&first);
    let mut data = disk(&own[0].socket("data.sock"));
    assert_same("data1", &data.read(0, 4096).unwrap(), &stamped(0, 8, 2));
    let mut two = World::start(&second);
    two.call("device-create", json!({"name": "extra"}));
    two.stop();
    one.stop();
    assert_eq!(states(&disks), ["d2.raw.state", "iso.raw.state"]);
    // With one beside each, nobody can tell.
    std::fs::copy(disks.path("iso.raw.state"), disks.path("d1.raw.state")).unwrap();
    let said = does_not_start(&first);
    for part in ["more than one state file", "iso.raw.state", "d1.raw.state", "'--state'"] {
        assert!(said.contains(part), "{said}");
    }
}

/// `command` with one more disk, over a file of its own.
fn and_disk(command: ServerCommand, own: &Scratch, name: &str, args: [&str; 4]) -> ServerCommand {
    let command = command.arg("--name").arg(name);
    let command = args.iter().fold(command, |command, arg| command.arg(arg));
    command.arg("--socket-path").arg(own.socket(&format!("{name}.sock")))
}

/// A server of the disks `names`, in this order: each is an overlay over `iso.raw` with a store of its name.
fn overlays(own: &Scratch, disks: &Scratch, names: &[&str]) -> ServerCommand {
    let base = disks.path("iso.raw");
    let command = monitor_only(own);
    names.iter().fold(command, |command, name| {
        let store = disks.path(&format!("{name}.cow"));
        let args = ["--blk-file", word(&base), "--overlay", word(&store)];
        and_disk(command, own, name, args)
    })
}

/// What the disk `name` holds.
fn content(own: &Scratch, name: &str) -> Vec<u8> {
    disk(&own.socket(&format!("{name}.sock"))).read(0, 8 * 512).unwrap()
}

fn write(own: &Scratch, name: &str, generation: u32) {
    let mut disk = disk(&own.socket(&format!("{name}.sock")));
    disk.write(0, &stamped(0, 8, generation)).unwrap();
    disk.flush().unwrap();
}

/// The new disk has a store, beside which a state is looked for first.
#[test]
fn a_disk_that_is_added_leaves_the_others_as_they_were() {
    let (disks, own) = (disks(), scratch());
    let plain = plain(&own, &disks.path("d1.raw"));
    let mut world = World::start(&plain);
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "disk0", "new.cow"));
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.stop();
    let (base, store) = (disks.path("iso.raw"), disks.path("b.cow"));
    let args = ["--blk-file", word(&base), "--overlay", word(&store)];
    let added = and_disk(plain.clone(), &own, "b", args);
    let world = World::start(&added);
    assert_same("disk0", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 2));
    world.disk().write(0, &stamped(0, 8, 3)).unwrap();
    write(&own, "b", 4);
    world.stop();
    assert_eq!(states(&disks), ["d1.raw.state"]);
    let below = std::fs::read(disks.path("d1.raw")).unwrap();
    assert_same("below the overlay", &below, &stamped(0, SECTORS, 1));
    // Both ways.
    for command in [added, plain] {
        let world = World::start(&command);
        assert_same("disk0", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 3));
        world.stop();
    }
}

#[test]
fn disks_in_another_order_are_as_they_were() {
    let (disks, own) = (disks(), scratch());
    let mut world = World::start(&overlays(&own, &disks, &["a", "b"]));
    write(&own, "a", 2);
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "a", "a2.cow"));
    write(&own, "a", 3);
    write(&own, "b", 4);
    world.stop();
    for (generation, order) in [["b", "a"], ["a", "b"]].iter().enumerate() {
        let world = World::start(&overlays(&own, &disks, order));
        assert_same("a", &content(&own, "a"), &stamped(0, 8, 3 + generation as u32));
        assert_same("b", &content(&own, "b"), &stamped(0, 8, 4));
        write(&own, "a", 4 + generation as u32);
        world.stop();
    }
    assert_eq!(states(&disks), ["a.cow.state"]);
}

/// Disks of two processes are served by one: a state that says no more than the arguments counts less
/// than one that does, and of two that do none is chosen.
#[test]
fn of_the_states_of_two_disks_none_is_lost_in_silence() {
    let (disks, own) = (disks(), scratch());
    for (name, generation) in [("a", 2), ("b", 3)] {
        let world = World::start(&overlays(&own, &disks, &[name]));
        write(&own, name, generation);
        world.stop();
    }
    let both = overlays(&own, &disks, &["a", "b"]);
    let world = World::start(&both);
    assert_same("a", &content(&own, "a"), &stamped(0, 8, 2));
    assert_same("b", &content(&own, "b"), &stamped(0, 8, 3));
    world.stop();
    let mut world = World::start(&overlays(&own, &disks, &["b"]));
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "b", "b2.cow"));
    write(&own, "b", 4);
    world.stop();
    let mut world = World::start(&both);
    assert_same("b", &content(&own, "b"), &stamped(0, 8, 4));
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "b", "b3.cow"));
    world.stop();
    let before = std::fs::read(disks.path("a.cow.state")).unwrap();
    let mut world = World::start(&overlays(&own, &disks, &["a"]));
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "a", "a2.cow"));
    world.stop();
    assert_ne!(std::fs::read(disks.path("a.cow.state")).unwrap(), before);
    for order in [["a", "b"], ["b", "a"]] {
        let said = does_not_start(&overlays(&own, &disks, &order));
        for part in ["a.cow.state", "b.cow.state", "more than one state file", "'--state'"] {
            assert!(said.contains(part), "{said}");
        }
    }
    // Whoever names one knows what that means.
    let named = both.arg("--state").arg(disks.path("b.cow.state"));
    let world = World::start(&named);
    assert_same("b", &content(&own, "b"), &stamped(0, 8, 4));
    world.stop();
}

/// A new state would hide the layers that another one knows, and the guest would write below them.
#[test]
fn a_state_that_is_not_there_hides_none_that_is() {
    let (disks, own) = (disks(), scratch());
    let alone = overlays(&own, &disks, &["a"]);
    let named = |state| alone.clone().arg("--state").arg(disks.path(state));
    let mut world = World::start(&alone);
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "a", "a-2.cow"));
    write(&own, "a", 2);
    world.stop();
    let before = std::fs::read(disks.path("a.cow")).unwrap();
    let said = does_not_start(&named("new.state"));
    for part in ["new.state", "a.cow.state", "knows", "'--state'"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(std::fs::read(disks.path("a.cow")).unwrap(), before);
    assert_eq!(states(&disks), ["a.cow.state"]);
    // One that is there was chosen.
    std::fs::copy(disks.path("a.cow.state"), disks.path("copy.state")).unwrap();
    let world = World::start(&named("copy.state"));
    assert_same("a", &content(&own, "a"), &stamped(0, 8, 2));
    world.stop();
    // Nobody needs what the other knew.
    std::fs::rename(disks.path("a.cow.state"), disks.path("away")).unwrap();
    World::start(&named("new.state")).stop();
}

/// A service always names the same state. If that has nothing to say any more, it hides what an older one
/// knows as before.
#[test]
fn a_state_that_was_named_stays_without_content() {
    let (disks, own) = (disks(), scratch());
    let unnamed = plain(&own, &disks.path("d1.raw"));
    let named = with_state(&own, &disks, 1, "s.state");
    let has_older = |world: &mut World| world.tables().into_iter().any(|(name, _)| name == "older");
    // What is not there yet is not made for nothing.
    World::start(&named).stop();
    assert_eq!(states(&disks), NOTHING);
    let mut world = World::start(&unnamed);
    world.call("device-create", json!({"name": "older"}));
    world.stop();
    std::fs::copy(disks.path("d1.raw.state"), disks.path("s.state")).unwrap();
    let older = std::fs::read(disks.path("d1.raw.state")).unwrap();
    let mut world = World::start(&named);
    assert!(has_older(&mut world));
    world.call("device-remove", json!({"name": "older"}));
    world.stop();
    for _ in 0..2 {
        assert_eq!(states(&disks), ["d1.raw.state", "s.state"]);
        let mut world = World::start(&named);
        assert!(!has_older(&mut world));
        world.stop();
    }
    assert_eq!(std::fs::read(disks.path("d1.raw.state")).unwrap(), older);
    let mut world = World::start(&unnamed);
    assert!(has_older(&mut world));
    world.stop();
}

/// A state that knows a disk by another name is neither used nor passed over: the disk's store would be
/// served without the layers above it.
#[test]
fn a_state_of_a_disk_that_has_another_name_now_is_not_passed_over() {
    let (disks, own) = (disks(), scratch());
    let [base, store] = [disks.path("d1.raw"), disks.path("vm.cow")];
    let alone = plain(&own, &base).arg("--overlay").arg(&store);
    let mut world = World::start(&alone);
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "disk0", "vm-2.cow"));
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.stop();
    let before = std::fs::read(&store).unwrap();
    let args = ["--blk-file", word(&base), "--overlay", word(&store)];
    // Another disk has its name, or none.
    let other = disks.path("other.cow");
    let first = plain(&own, &disks.path("d2.raw")).arg("--overlay").arg(&other);
    for command in [first, overlays(&own, &disks, &["other"])] {
        let said = does_not_start(&and_disk(command, &own, "y", args));
        for part in ["vm.cow.state", "other.cow.state", "'--state'"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(
            !other.exists() && std::fs::read(&store).unwrap() == before,
            "it changed something"
        );
    }
    assert_eq!(states(&disks), ["vm.cow.state"]);
    let world = World::start(&alone);
    assert_same("disk0", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 2));
    world.stop();
}

/// A state that says only what its arguments say is as good under another name.
#[test]
fn an_overlay_for_which_no_command_was_given_may_have_another_name() {
    let (disks, own) = (disks(), scratch());
    let world = World::start(&overlays(&own, &disks, &["a"]));
    write(&own, "a", 2);
    world.stop();
    let (base, store) = (disks.path("iso.raw"), disks.path("a.cow"));
    let args = ["--blk-file", word(&base), "--overlay", word(&store)];
    let renamed = and_disk(overlays(&own, &disks, &["b"]), &own, "new", args);
    let mut world = World::start(&renamed);
    assert_same("new", &content(&own, "new"), &stamped(0, 8, 2));
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "new", "new-2.cow"));
    world.stop();
    let said = does_not_start(&overlays(&own, &disks, &["a"]));
    assert!(said.contains("a.cow.state") && said.contains("b.cow.state"), "{said}");
}

/// Disks that were served alone before they were served together are not what they were alone.
#[test]
fn a_disk_whose_state_is_kept_with_that_of_others_is_not_served_without_it() {
    let (disks, own) = (disks(), scratch());
    let alone = |name| overlays(&own, &disks, &[name]);
    for (name, generation) in [("a", 2), ("b", 3)] {
        let world = World::start(&alone(name));
        write(&own, name, generation);
        world.stop();
    }
    let both = overlays(&own, &disks, &["a", "b"]);
    World::start(&both).stop();
    // Nothing was changed by a command: each may be served alone as before, and together again.
    let world = World::start(&alone("b"));
    assert_same("b", &content(&own, "b"), &stamped(0, 8, 3));
    world.stop();
    let mut world = World::start(&both);
    world.call("blockdev-snapshot-sync", overlay_of(&disks, "b", "b-2.cow"));
    write(&own, "b", 4);
    // Nothing of it depends on an orderly end.
    world.kill();
    let before = std::fs::read(disks.path("b.cow")).unwrap();
    let named = alone("b").arg("--state").arg(disks.path("b.cow.state"));
    for command in [alone("b"), named] {
        let said = does_not_start(&command);
        for part in ["a.cow.state", "b.cow.state", "'--state'"] {
            assert!(said.contains(part), "{said}");
        }
    }
    assert_eq!(std::fs::read(disks.path("b.cow")).unwrap(), before);
    // Both are moved together.
    let moved = scratch();
    for entry in std::fs::read_dir(disks.dir()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), moved.path(entry.file_name().to_str().unwrap())).unwrap();
    }
    let said = does_not_start(&overlays(&own, &moved, &["b"]));
    assert!(said.contains(word(&moved.path("a.cow.state"))), "{said}");
    let world = World::start(&both);
    assert_same("a", &content(&own, "a"), &stamped(0, 8, 2));
    assert_same("b", &content(&own, "b"), &stamped(0, 8, 4));
    world.stop();
    // Without the state nobody knows what it said.
    std::fs::rename(disks.path("a.cow.state"), disks.path("away")).unwrap();
    let said = does_not_start(&alone("b"));
    assert!(said.contains("a.cow.state") && said.contains("gone"), "{said}");
}

/// A start that may not say there where the state is says what to do.
#[test]
fn a_state_that_is_not_used_and_cannot_be_replaced_is_explained() {
    let (disks, own) = (disks(), scratch());
    let [a, b] = ["a", "b"].map(|name| overlays(&own, &disks, &[name]));
    World::start(&a).stop();
    World::start(&b).stop();
    let both = overlays(&own, &disks, &["a", "b"]);
    // Neither can be made: the lock, as in a directory that is another user's, nor the new state.
    for obstacle in ["b.cow.state.lock", "b.cow.state.new"] {
        std::fs::create_dir(disks.path(obstacle)).unwrap();
        let said = does_not_start(&both);
        for part in ["b.cow.state", "no more of its disks", "move it away", "--state"] {
            assert!(said.contains(part), "{said}");
        }
        std::fs::remove_dir(disks.path(obstacle)).unwrap();
    }
    std::fs::rename(disks.path("b.cow.state"), disks.path("away")).unwrap();
    World::start(&both).stop();
}

/// Each state knows the base of its own disk.
#[test]
fn a_base_that_changed_is_refused_whichever_state_knows_it() {
    let (disks, own) = (disks(), scratch());
    let [base, store] = [disks.path("d2.raw"), disks.path("b.cow")];
    let args = ["--blk-file", word(&base), "--overlay", word(&store)];
    let a = overlays(&own, &disks, &["a"]);
    let b = and_disk(monitor_only(&own), &own, "b", args);
    let both = and_disk(a.clone(), &own, "b", args);
    let mut changes = 2;
    let mut is_refused = |command: &ServerCommand| {
        std::fs::write(&base, stamped(0, SECTORS, changes)).unwrap();
        changes += 1;
        let said = does_not_start(command);
        assert!(said.contains("d2.raw changed since the store"), "{said}");
        World::start(&command.clone().arg("--force")).stop();
        World::start(command).stop();
    };
    for command in [&a, &b] {
        World::start(command).stop();
    }
    is_refused(&both);
    // Its own state only says where the other is.
    is_refused(&b);
}

/// Else the first command that is kept would replace it, or be refused for it.
#[test]
fn nothing_is_put_where_the_state_is_kept() {
    let (disks, own) = (disks(), scratch());
    let mut world = World::start(&plain(&own, &disks.path("d1.raw")));
    for name in ["d1.raw.state", "d1.raw.state.lock", "d1.raw.state.new"] {
        for (command, arguments) in [
            ("blockdev-snapshot-sync", overlay_of(&disks, "disk0", name)),
            ("snapshot-create", snapshot_of(&disks, "disk0", name)),
        ] {
            let said = world.refused(command, arguments);
            assert!(said.contains(name) && said.contains("keeps its state"), "{said}");
        }
    }
    assert_eq!(states(&disks), NOTHING);
    world.stop();
}

/// The link may lead nowhere yet.
#[test]
fn a_state_that_a_link_names_is_kept_where_it_leads() {
    let (disks, own) = (disks(), scratch());
    let (link, real) = (disks.path("link.state"), disks.path("real.state"));
    std::os::unix::fs::symlink("real.state", &link).unwrap();
    let command = with_state(&own, &disks, 1, "link.state");
    for generation in 2..4 {
        let mut world = World::start(&command);
        world.call(
            "blockdev-snapshot-sync",
            overlay_of(&disks, "disk0", &format!("{generation}.cow")),
        );
        assert!(disks.path("real.state.lock").exists());
        world.disk().write(0, &stamped(0, 8, generation)).unwrap();
        world.stop();
        assert!(link.is_symlink() && real.is_file());
    }
    let world = World::start(&command);
    assert_same("disk0", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 3));
    world.stop();
    assert_eq!(states(&disks), ["link.state", "real.state"]);
}
