//! Exports: several, added and deleted, read-only, inherited sockets, and front ends that come and
//! go.

use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::json;
use snapblk_qmp::client::Client as Qmp;
use snapblk_tests::client::{Client, Connect};
use snapblk_tests::server::{Memory, find_snapblk, output, spawn};

use crate::common::*;

const SECTORS: u64 = 2048;

#[test]
fn an_export_is_added_used_and_deleted() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("d", &[format!("0 {SECTORS} linear {} 0", word(&file))]);
    assert_eq!(world.call("query-block-exports", json!({})), json!([]));
    let socket = scratch.socket("e.sock");
    let mut add = export_args("e", "d", &socket, true);
    add["num-queues"] = json!(3);
    add["logical-block-size"] = json!(4096);
    world.call("block-export-add", add.clone());
    let shown = json!([{"id": "e", "type": "vhost-user-blk", "node-name": "d", "shutting-down": false,
                "connected": false}]);
    assert_eq!(world.call("query-block-exports", json!({})), shown);
    let said = world.refused("block-export-add", add.clone());
    assert!(said.contains("export 'e' already"), "{said}");
    let info = disk(&socket).info();
    assert_eq!((info.queues, info.block_size, info.read_only), (3, 4096, false));

    let mut connected = disk(&socket);
    connected.read(0, 512).unwrap();
    assert_eq!(world.call("query-block-exports", json!({}))[0]["connected"], true);
    let delete = |mode: &str| json!({"id": "e", "mode": mode});
    let said = world.refused("block-export-del", delete("safe"));
    assert!(said.contains("in use"), "{said}");
    world.refused("block-export-del", json!({"id": "e"}));
    connected.write(0, &stamped(0, 8, 2)).unwrap();
    world.call("block-export-del", delete("hard"));
    assert_eq!(world.event("BLOCK_EXPORT_DELETED")["data"], json!({"id": "e"}));
    assert!(!socket.exists());
    drop(connected);
    let said = world.refused("block-export-del", delete("safe"));
    assert!(said.contains("'e'"), "{said}");

    // Without a front end, a safe deletion suffices.
    world.call("block-export-add", add.clone());
    drop(disk(&socket));
    let gone = (0..200).any(|_| {
        let deleted = world.qmp.call("block-export-del", delete("safe")).is_ok();
        // The server sees the hang-up a little later than the client.
        std::thread::sleep(std::time::Duration::from_millis(if deleted { 0 } else { 10 }));
        deleted
    });
    assert!(gone);
    for (key, value) in
        [("num-queues", json!(0)), ("num-queues", json!(1000)), ("logical-block-size", json!(1000))]
    {
        let mut wrong = add.clone();
        wrong[key] = value;
        world.refused("block-export-add", wrong);
        assert!(!socket.exists());
    }
    // They hold nothing any more: the device can be removed.
    world.call("device-remove", json!({"name": "d"}));
    world.stop();
    assert_same("the file", &std::fs::read(&file).unwrap()[..4096], &stamped(0, 8, 2));
}

#[test]
fn a_read_only_export_refuses_writes_and_a_writable_one_beside_it_does_not() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let socket = scratch.socket("ro.sock");
    let mut add = export_args("ro", "disk0", &socket, false);
    add.as_object_mut().unwrap().remove("writable");
    world.call("block-export-add", add);
    assert_eq!(world.device("disk0")["open-count"], 2);
    let (mut read_only, mut writable) = (disk(&socket), world.disk());
    assert!(read_only.info().read_only && !writable.info().read_only);
    assert!(read_only.write(0, &[1; 512]).is_err_and(|error| error.is_refused()));
    assert!(read_only.discard(0, 4096).is_err_and(|error| error.is_refused()));
    writable.write(0, &stamped(0, 8, 2)).unwrap();
    assert_same("seen by both", &read_only.read(0, 4096).unwrap(), &stamped(0, 8, 2));
    world.stop();

    let world = World::start(&plain(&scratch, &file).arg("--read-only"));
    let mut disk = world.disk();
    assert!(disk.info().read_only);
    assert!(disk.write(0, &[1; 512]).is_err_and(|error| error.is_refused()));
    world.stop();
}

/// Clients of QEMU may say what is the default.
#[test]
fn qemu_s_arguments_that_ask_for_nothing_are_accepted() {
    let scratch = scratch();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("d", &["0 8 zero".to_owned()]);
    for argument in ["writethrough", "fixed-iothread"] {
        let mut add = export_args("d", "d", &scratch.socket("d.sock"), false);
        add[argument] = json!(true);
        let said = world.refused("block-export-add", add.clone());
        assert!(said.contains(&format!("'{argument}'")), "{said}");
        add[argument] = json!(false);
        world.call("block-export-add", add);
        world.call("block-export-del", json!({"id": "d"}));
    }
    let commit = |on_error| json!({"device": "d", "on-error": on_error});
    let said = world.refused("block-commit", commit("stop"));
    assert!(said.contains("'on-error' does not accept value 'stop' (it takes report)"), "{said}");
    let said = world.refused("block-commit", commit("report"));
    assert!(said.contains("is not an overlay"), "{said}");
    world.stop();
}

/// As in QEMU.
#[test]
fn an_export_s_id_is_an_identifier_and_it_promises_no_writes_that_fail() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&overlay(&scratch, &file));
    world.call("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": "top.cow"}));
    let socket = scratch.socket("e.sock");
    for id in ["", "a b", "1", "-a", "a/b", "\u{e4}"] {
        let said = world.refused("block-export-add", export_args(id, "disk0.1", &socket, false));
        assert!(said.starts_with(&format!("Invalid block export id '{id}'")), "{said}");
    }
    let said = world.refused("block-export-add", export_args("a", "disk0.1", &socket, true));
    assert!(said.contains("'disk0.1' is read-only") && said.contains("'writable'"), "{said}");
    assert_eq!(world.device("disk0.1")["open-count"], 1);
    world.call("block-export-add", export_args("a-1._B", "disk0.1", &socket, false));
    world.stop();
}

#[test]
fn a_socket_that_the_process_has_itself_is_named_as_that() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    for (path, by) in [
        (world.server.socket().to_owned(), "the export 'disk0'"),
        (world.server.monitor().to_owned(), "its monitor"),
    ] {
        let said = world.refused("block-export-add", export_args("e", "disk0", &path, false));
        assert!(said.contains("this process listens") && said.contains(by), "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
    world.disk().read(0, 512).unwrap();
    world.stop();

    let both = scratch.socket("both.sock");
    let mut command = Command::new(find_snapblk().unwrap());
    command.arg("serve").arg("--blk-file").arg(&file);
    command.arg("--monitor").arg(&both).arg("--socket-path").arg(&both);
    let output = output(&mut command).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("this process") && said.contains("the export 'disk0'"), "{said}");
}

/// Each guest has its own file system there, and would destroy the other's.
#[test]
fn two_disks_over_one_file_are_not_both_written() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let second = || {
        let command = plain(&scratch, &file).arg("--name").arg("b").arg("--blk-file").arg(&file);
        command.arg("--socket-path").arg(scratch.socket("b.sock"))
    };
    let said = does_not_start(&second());
    assert!(said.contains("'b' and 'disk0' have the same part of a file"), "{said}");
    let world = World::start(&second().arg("--read-only"));
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.stop();
    // Different parts of a file are allowed.
    let mut world = World::start(&monitor_only(&scratch));
    let half = SECTORS / 2;
    for (name, from) in [("low", 0), ("high", half), ("again", half - 1)] {
        world.make(name, &[format!("0 {half} linear {} {from}", word(&file))]);
    }
    world.export(&scratch, "low", true);
    world.export(&scratch, "high", true);
    let socket = scratch.socket("again.sock");
    world.refused("block-export-add", export_args("again", "again", &socket, true));
    // Nor by a later table.
    let again = format!("0 {half} zero");
    world.swap("again", &[again]);
    world.call("block-export-add", export_args("again", "again", &socket, true));
    let table = [format!("0 {half} linear {} 0", word(&file))];
    world.call("table-load", json!({"name": "again", "table": table}));
    world.refused("device-resume", json!({"name": "again"}));
    world.stop();
}

/// Two clients at once: one succeeds, and the other gets an error.
#[test]
fn a_device_goes_or_is_exported_never_both() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let mut other = Qmp::connect(world.server.monitor()).unwrap();
    for round in 0..20 {
        let cow = format!("{round}.cow");
        world.call("snapshot-create", json!({"device": "disk0", "name": "s", "cow": cow}));
        let socket = scratch.socket("s.sock");
        let add = export_args("x", "s", &socket, false);
        let delete = json!({"device": "disk0", "snapshot": "s", "delete-store": true});
        let (added, deleted) = std::thread::scope(|scope| {
            let deleted = scope.spawn(|| other.call("snapshot-delete", delete.clone()));
            (world.qmp.call("block-export-add", add), deleted.join().unwrap())
        });
        assert_ne!(added.is_ok(), deleted.is_ok(), "{round}: {added:?}, {deleted:?}");
        if added.is_ok() {
            assert_same("snapshot", &disk(&socket).read(0, 4096).unwrap(), &stamped(0, 8, 1));
            world.call("block-export-del", json!({"id": "x", "mode": "hard"}));
            world.call("snapshot-delete", delete);
        }
        assert_eq!(world.call("query-block-exports", json!({})).as_array().unwrap().len(), 1);
    }
    world.stop();
}

#[test]
fn several_disks_in_one_process() {
    let scratch = scratch();
    let a = scratch.file("a.raw", &stamped(0, SECTORS, 1)).unwrap();
    let b = scratch.file("b.raw", &stamped(0, SECTORS, 2)).unwrap();
    let (second, third) = (scratch.socket("second.sock"), scratch.socket("third.sock"));
    let command = plain(&scratch, &a)
        .arg("--name")
        .arg("second")
        .arg("--blk-file")
        .arg(&b)
        .arg("--overlay")
        .arg(scratch.path("b.cow"))
        .arg("--socket-path")
        .arg(&second)
        .arg("--name")
        .arg("third")
        .arg("--table")
        .arg("0 64 linear disk0 8")
        .arg("--table")
        .arg("64 64 zero")
        .arg("--socket-path")
        .arg(&third)
        .arg("--num-queues")
        .arg("1");
    let mut world = World::start(&command);
    let mut disks = [world.disk(), disk(&second), disk(&third)];
    assert_eq!(disks.each_ref().map(|disk| disk.info().queues), [2, cores(), 1]);
    let mut joined = stamped(8, 64, 1);
    joined.extend([0; 64 * 512]);
    assert_same("first", &disks[0].read_all().unwrap(), &stamped(0, SECTORS, 1));
    assert_same("second", &disks[1].read_all().unwrap(), &stamped(0, SECTORS, 2));
    assert_same("third", &disks[2].read_all().unwrap(), &joined);
    disks[1].write(0, &stamped(0, 8, 3)).unwrap();
    assert_eq!(world.call("query-block-exports", json!({})).as_array().unwrap().len(), 3);
    assert_eq!(world.device("disk0")["open-count"], 2);
    drop(disks);
    world.stop();
    assert_eq!(std::fs::read(&b).unwrap(), stamped(0, SECTORS, 2));
    // All disks have one state file, beside the first store.
    assert!(scratch.path("b.cow.state").exists());
    World::start(&command).stop();
}

fn cores() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(16)) as u16
}

#[test]
fn a_listening_socket_is_inherited() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let (path, monitor) = (scratch.socket("inherited.sock"), scratch.socket("m.sock"));
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = Command::new(find_snapblk().unwrap());
    command.args(["serve", "--fd", "0", "--blk-file"]).arg(&file).arg("--monitor").arg(&monitor);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let mut server = spawn(&mut command).unwrap();
    // It listens already: early front ends wait for the server.
    let mut first = disk(&path);
    assert_same("disk", &first.read_all().unwrap(), &stamped(0, SECTORS, 1));
    drop(first);
    disk(&path).write(0, &stamped(0, 8, 2)).unwrap();
    let mut qmp = std::iter::repeat_with(|| Qmp::connect(&monitor)).find_map(Result::ok).unwrap();
    qmp.call("quit", json!({})).unwrap();
    assert!(server.wait().unwrap().success());
    assert_same("the file", &std::fs::read(&file).unwrap()[..4096], &stamped(0, 8, 2));
}

#[test]
fn a_second_front_end_is_refused_and_the_first_notices_nothing() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let world = World::start(&plain(&scratch, &file));
    let mut first = world.disk();
    let connect = Connect::to(world.server.socket());
    for _ in 0..5 {
        assert!(Client::connect(&connect).is_err(), "a second front end is served");
        assert_same("first", &first.read(0, 4096).unwrap(), &stamped(0, 8, 1));
    }
    // It leaves, and the next one connects at once, several times.
    for _ in 0..20 {
        drop(first);
        first = world.disk();
        first.read(0, 512).unwrap();
    }
    world.stop();
}

/// A host has many disks, most of them idle: a queue takes only the memory that it uses.
#[test]
fn a_queue_that_does_little_takes_little_memory() {
    const QUEUES: u64 = 8;
    const EACH: u64 = 512 << 10;
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let store = scratch.sparse("disk.cow", 4 << 20).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    let line = format!("0 {SECTORS} snapshot {} {} PO 64", word(&file), word(&store));
    world.make("d", &[line]);
    let socket = scratch.socket("e.sock");
    let mut add = export_args("e", "d", &socket, true);
    add["num-queues"] = json!(QUEUES);
    let before = world.server.memory(Memory::Own).unwrap();
    world.call("block-export-add", add);
    let mut connected = disk(&socket);
    // A part of a chunk, which is read and written as a whole.
    connected.write(512, &stamped(1, 1, 2)).unwrap();
    assert_eq!(connected.read(512, 512).unwrap(), stamped(1, 1, 2));
    let each = world.server.memory(Memory::Own).unwrap().saturating_sub(before) / QUEUES;
    assert!((1..=EACH).contains(&each), "{each} bytes a queue");
    drop(connected);
    world.stop();
}

/// Queues may take all places that exist for them, and flushes still have some.
#[test]
fn more_queues_than_there_is_room_for_are_refused_and_flushes_go_on() {
    const ROOM: u64 = 480;
    const EACH: u64 = 62;
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("d", &[format!("0 {SECTORS} linear {} 0", word(&file))]);
    let add = |n: u64, queues: u64| {
        let (id, socket) = (format!("e{n}"), scratch.socket(&format!("e{n}.sock")));
        let mut add = export_args(&id, "d", &socket, true);
        add["num-queues"] = json!(queues);
        add
    };
    for n in 0..ROOM / EACH {
        world.call("block-export-add", add(n, EACH));
    }
    let said = world.refused("block-export-add", add(100, EACH));
    assert!(said.contains("480 queues") && said.contains("delete an export"), "{said}");
    // The refused export gave back the places that it had taken.
    world.call("block-export-add", add(101, ROOM % EACH));
    world.refused("block-export-add", add(102, 1));
    world.call("device-suspend", json!({"name": "d"}));
    world.call("device-resume", json!({"name": "d"}));
    world.call("block-export-del", json!({"id": "e0", "mode": "hard"}));
    world.call("block-export-add", add(102, 1));
    world.stop();
}

/// Where there is no memory for the thread that would stop it, an export is left as it is.
#[test]
fn an_export_for_whose_end_there_is_no_thread_serves_on() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("d", &[format!("0 {SECTORS} linear {} 0", word(&file))]);
    let socket = scratch.socket("e.sock");
    world.call("block-export-add", export_args("e", "d", &socket, true));
    let mut connected = disk(&socket);
    connected.write(4096, &stamped(8, 8, 2)).unwrap();
    let pid = world.server.pid();
    let limit = |bytes: &str| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={pid}")).arg(format!("--as={bytes}:"));
        assert!(output(&mut command).expect("prlimit, of util-linux").status.success());
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let has = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let has: u64 = has.trim().trim_end_matches(" kB").parse().unwrap();
    // Less than a thread's stack.
    limit(&((has + 512) << 10).to_string());
    let hard = json!({"id": "e", "mode": "hard"});
    let said = world.refused("block-export-del", hard.clone());
    assert!(said.contains("'e' serves on") && said.contains("thread"), "{said}");
    assert_eq!(connected.read(4096, 4096).unwrap(), stamped(8, 8, 2));
    let exports = world.call("query-block-exports", json!({}));
    assert_eq!((&exports[0]["id"], &exports[0]["shutting-down"]), (&json!("e"), &json!(false)));
    limit("unlimited");
    world.call("block-export-del", hard);
    assert_eq!(world.event("BLOCK_EXPORT_DELETED")["data"]["id"], "e");
    world.stop();
}

/// An export on the monitor's own socket would take its clients for front ends.
#[test]
fn a_socket_that_the_process_made_is_none_that_it_inherited() {
    let scratch = scratch();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("d", &[format!("0 {SECTORS} zero")]);
    let open = std::fs::read_dir(format!("/proc/{}/fd", world.server.pid())).unwrap();
    let mut sockets = 0;
    for fd in open.map(Result::unwrap) {
        let number: u32 = fd.file_name().to_str().unwrap().parse().unwrap();
        let link = std::fs::read_link(fd.path()).unwrap();
        if number > 2 && link.to_str().unwrap().starts_with("socket:") {
            let mut add = export_args("e", "d", &scratch.socket("none"), false);
            add["addr"] = json!({"type": "fd", "str": number.to_string()});
            let said = world.refused("block-export-add", add);
            assert!(said.contains("opened that itself"), "{said}");
            sockets += 1;
        }
    }
    assert!(sockets >= 2, "the monitor's, and its client's");
    world.stop();
}
