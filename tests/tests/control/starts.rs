//! Starts that do not come to their end.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::json;

use crate::common::*;

const SECTORS: u64 = 8192;

/// It waits for a table, as another may for the locks of a disk.
#[test]
fn a_signal_ends_a_start_at_once() {
    let scratch = scratch();
    let table = scratch.path("table");
    mknodat(CWD, &table, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let command = monitor_only(&scratch).arg("--table").arg(format!("@{}", table.display()));
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2)] {
        let mut server = command.begin().unwrap();
        // Nobody reads it before the server does.
        let _nothing = File::options().write(true).open(&table).unwrap();
        server.signal(signal).unwrap();
        let status = server.wait("end instead of starting").unwrap();
        assert_eq!(status.code(), Some(128 + number), "{}", server.stderr());
    }
}

/// What is wrong with the state is wrong with no disk of the arguments.
#[test]
fn what_is_wrong_with_the_state_is_said_of_no_disk() {
    let scratch = scratch();
    let notes = scratch.file("notes.txt", b"not a state").unwrap();
    let said = does_not_start(&monitor_only(&scratch).arg("--state").arg(&notes));
    assert!(said.contains("notes.txt is not a state file") && !said.contains("disk '"), "{said}");
    // It is written when all disks are made.
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    fs::create_dir(scratch.path("store.cow.state.new")).unwrap();
    let command = plain(&scratch, &file).arg("--overlay").arg(scratch.path("store.cow"));
    let said = does_not_start(&command);
    assert!(said.contains("store.cow.state.new") && !said.contains("disk '"), "{said}");
    // What is wrong with a disk is said of it.
    let short = format!("0 {} linear {} 0", 2 * SECTORS, word(&file));
    let said =
        does_not_start(&monitor_only(&scratch).arg("--name").arg("d").arg("--table").arg(short));
    assert!(said.contains("disk 'd': the line '"), "{said}");
}

/// It is found before a rollback goes on, and before a guest is served, that a socket cannot be had.
#[test]
fn a_start_without_one_of_its_sockets_changes_nothing() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(&scratch, &file);
    let mut world = World::start(&command);
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    world.disk().write(0, &stamped(0, SECTORS, 2)).unwrap();
    // A chunk a second; when it goes on, as fast as that goes.
    let merge = json!({"device": "disk0", "snapshot": "snap", "job-id": "j", "speed": 1});
    world.call("snapshot-merge", merge);
    world.kill();
    let state = scratch.path("disk.raw.state");
    let slow = fs::read_to_string(&state).unwrap();
    assert!(slow.contains("speed = 1\n"), "{slow}");
    fs::write(&state, slow.replace("speed = 1\n", "speed = 0\n")).unwrap();
    let before = fs::read(&file).unwrap();
    fs::remove_file(command.monitor()).unwrap();
    let other = UnixListener::bind(command.monitor()).unwrap();
    let mut server = command.begin().unwrap();
    let status = server.wait("end for want of a socket").unwrap();
    let said = server.stderr();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("monitor.sock") && said.contains("another process"), "{said}");
    assert!(!server.socket().exists(), "its socket is left");
    assert_same("the file", &fs::read(&file).unwrap(), &before);
    drop(other);
    let world = World::start(&command);
    assert_same("disk0", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 1));
    world.stop();
}
