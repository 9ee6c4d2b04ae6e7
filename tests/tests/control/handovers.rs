//! A store that moves from one device's table to another's while its origin is written.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use snapblk_qmp::client::{Client as Qmp, ClientError};
use snapblk_tests::client::Connect;
use snapblk_tests::disk::{Disk, DiskError};
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Scratch, ServerCommand};

use crate::common::*;
use crate::history::{Clock, History};

/// 4 MiB and some sectors: not a whole number of chunks.
const SECTORS: u64 = 8192 + 5;

/// A disk of generation 1 with the snapshot `a`; the first half of the origin was written since,
/// and `a` has sectors of its own. Also returns the content of `a`.
fn world_with_snapshot(scratch: &Scratch) -> (ServerCommand, World, Vec<u8>) {
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(scratch, &file);
    let mut world = World::start(&command);
    world.call("snapshot-create", json!({"device": "disk0", "name": "a", "cow": "a.cow"}));
    world.disk().write(0, &stamped(0, SECTORS / 2, 2)).unwrap();
    let socket = world.export(scratch, "a", true);
    disk(&socket).write(77 * 512, &stamped(77, 30, 3)).unwrap();
    world.call("block-export-del", json!({"id": "a", "mode": "hard"}));
    let mut wanted = stamped(0, SECTORS, 1);
    wanted[77 * 512..107 * 512].copy_from_slice(&stamped(77, 30, 3));
    assert_same("a", &world.content(scratch, "a"), &wanted);
    (command, world, wanted)
}

/// Loads the table of the serving device `from` into the new device `to`.
fn load_copy(world: &mut World, from: &str, to: &str) -> Vec<String> {
    let table = world.table(from);
    world.call("device-create", json!({"name": to}));
    world.call("table-load", json!({"name": to, "table": table}));
    table
}

fn waits(disk: &mut Disk) {
    let silent = disk.end(Duration::from_millis(200));
    assert!(matches!(silent, Err(DiskError::Silent)), "{silent:?}");
}

fn is_invalid(world: &mut World, name: &str) {
    assert_eq!(world.status(name), [format!("0 {SECTORS} snapshot Invalid")]);
}

#[test]
fn scenario_49_the_data_is_intact_and_the_old_answers_with_errors() {
    let scratch = scratch();
    let (command, mut world, mut wanted) = world_with_snapshot(&scratch);
    let socket = world.export(&scratch, "a", true);
    let mut old = disk(&socket);
    let before = world.status("a");
    let table = load_copy(&mut world, "a", "b");
    let name = |name: &str| json!({"name": name});
    world.call("device-suspend", name("a"));
    old.begin_read(0, 4096).unwrap();
    waits(&mut old);
    world.call("device-resume", name("b"));
    assert!(old.end(Duration::from_secs(10)).is_err_and(|error| error.is_refused()));
    for at in [0, SECTORS - 8] {
        assert!(old.read(at * 512, 4096).is_err_and(|error| error.is_refused()));
        assert!(old.write(at * 512, &[0; 4096]).is_err_and(|error| error.is_refused()));
    }
    is_invalid(&mut world, "a");
    assert_eq!((world.table("b"), world.status("b")), (table.clone(), before));
    assert_same("b", &world.content(&scratch, "b"), &wanted);
    // It is written as a snapshot, and its origin knows it.
    let socket = world.export(&scratch, "b", true);
    disk(&socket).write(4000 * 512, &stamped(4000, 500, 4)).unwrap();
    wanted[4000 * 512..4500 * 512].copy_from_slice(&stamped(4000, 500, 4));
    world.disk().write(0, &stamped(0, SECTORS, 5)).unwrap();
    assert_same("b", &world.content(&scratch, "b"), &wanted);
    // The resumed source has no store any more.
    world.call("device-resume", name("a"));
    assert!(old.read(0, 4096).is_err_and(|error| error.is_refused()));

    world.kill();
    let mut world = World::start(&command);
    is_invalid(&mut world, "a");
    assert_eq!(world.device("a")["state"], "active");
    assert_same("b", &world.content(&scratch, "b"), &wanted);
    world.call("device-remove", name("a"));
    world.disk().write(0, &stamped(0, SECTORS, 6)).unwrap();
    assert_same("b", &world.content(&scratch, "b"), &wanted);
    world.stop();
    let mut world = World::start(&command);
    assert_same("b", &world.content(&scratch, "b"), &wanted);
    world.stop();
}

#[test]
fn scenario_50_a_destination_does_not_resume_while_its_source_is_live() {
    let scratch = scratch();
    let (_, mut world, wanted) = world_with_snapshot(&scratch);
    world.make("b", &[format!("0 {SECTORS} zero")]);
    let (a, b) = (world.export(&scratch, "a", false), world.export(&scratch, "b", false));
    let (mut source, mut destination) = (disk(&a), disk(&b));
    let table = world.table("a");
    world.call("table-load", json!({"name": "b", "table": table}));
    let said = world.refused("device-resume", json!({"name": "b"}));
    assert!(said.contains("suspend 'a' first"), "{said}");
    assert_eq!(world.device("b")["state"], "suspended");
    assert_same("a", &source.read_all().unwrap(), &wanted);
    world.disk().write(0, &stamped(0, 64, 7)).unwrap();
    destination.begin_read(0, 4096).unwrap();
    waits(&mut destination);
    // A plain resume serves the old table, and so does each further one.
    for _ in 0..2 {
        let said = world.call("device-resume", json!({"name": "b"}));
        let warning = said["warning"].as_str().unwrap();
        assert!(warning.contains("old table") && warning.contains("suspend 'a' first"), "{said}");
        let device = world.device("b");
        assert_eq!(device["state"], "active");
        assert_eq!(device["has-inactive-table"], true);
    }
    destination.end(Duration::from_secs(10)).unwrap();
    assert_eq!(destination.read(0, 4096).unwrap(), [0; 4096]);
    // What was loaded serves as soon as it can.
    world.call("device-suspend", json!({"name": "a"}));
    assert_eq!(world.call("device-resume", json!({"name": "b"})), json!({}));
    assert_same("b", &destination.read_all().unwrap(), &wanted);
    world.stop();
}

/// The old table also serves after a restart in between; a table that is loaded anew is not known to
/// fail, and its first resume that does is an error.
#[test]
fn scenario_50_after_a_failed_resume_the_old_table_serves_also_in_the_next_process() {
    let scratch = scratch();
    let (command, mut world, _) = world_with_snapshot(&scratch);
    world.make("b", &[format!("0 {SECTORS} zero")]);
    let load = json!({"name": "b", "table": world.table("a")});
    for _ in 0..2 {
        world.call("table-load", load.clone());
        let said = world.refused("device-resume", json!({"name": "b"}));
        assert!(said.contains("suspend 'a' first"), "{said}");
        world.kill();
        world = World::start(&command);
        assert_eq!(world.device("b")["state"], "suspended");
        let said = world.call("device-resume", json!({"name": "b"}));
        assert!(said["warning"].is_string(), "{said}");
        assert_eq!(world.device("b")["state"], "active");
    }
    world.stop();
}

#[test]
fn scenario_51_a_source_does_not_resume_while_a_destination_is_loaded() {
    let scratch = scratch();
    let (command, mut world, wanted) = world_with_snapshot(&scratch);
    let socket = world.export(&scratch, "a", false);
    let mut source = disk(&socket);
    let table = load_copy(&mut world, "a", "b");
    world.call("device-resume", json!({"name": "a"}));
    assert_same("it serves, and need not be resumed", &source.read_all().unwrap(), &wanted);
    world.call("device-suspend", json!({"name": "a"}));
    source.begin_read(0, 4096).unwrap();
    waits(&mut source);
    // Neither with its own table nor with another.
    for own in [false, true] {
        if own {
            let zero = format!("0 {SECTORS} zero");
            world.call("table-load", json!({"name": "a", "table": [zero]}));
        }
        let said = world.refused("device-resume", json!({"name": "a"}));
        assert!(said.contains("loaded into 'b'"), "{said}");
        assert_eq!(world.device("a")["has-inactive-table"], own);
    }
    waits(&mut source);
    world.call("table-clear", json!({"name": "a"}));
    world.call("table-clear", json!({"name": "b"}));
    world.call("device-resume", json!({"name": "a"}));
    source.end(Duration::from_secs(10)).unwrap();
    assert_same("a", &source.read_all().unwrap(), &wanted);

    // Killed during a handover, it is still during it.
    world.call("table-load", json!({"name": "b", "table": table}));
    world.call("device-suspend", json!({"name": "a"}));
    world.kill();
    let mut world = World::start(&command);
    assert_eq!(world.device("a")["state"], "suspended");
    world.refused("device-resume", json!({"name": "a"}));
    world.disk().write(0, &stamped(0, SECTORS, 8)).unwrap();
    world.call("device-resume", json!({"name": "b"}));
    assert_same("b", &world.content(&scratch, "b"), &wanted);
    world.stop();
}

#[test]
fn scenario_52_a_third_that_names_the_store_is_refused() {
    let scratch = scratch();
    let (command, mut world, wanted) = world_with_snapshot(&scratch);
    let table = load_copy(&mut world, "a", "b");
    world.call("device-create", json!({"name": "c"}));
    world.kill();
    let mut world = World::start(&command);
    for third in ["c", "a"] {
        let load = json!({"name": third, "table": table});
        let said = world.refused("table-load", load);
        assert!(said.contains("pairing failed") && said.contains("'b'"), "{said}");
        assert_eq!(world.device(third)["has-inactive-table"], false);
    }
    // Another table for the destination does not create a third.
    world.call("table-load", json!({"name": "b", "table": table}));
    world.call("table-clear", json!({"name": "b"}));
    world.call("table-load", json!({"name": "c", "table": table}));
    let said = world.refused("table-load", json!({"name": "b", "table": table}));
    assert!(said.contains("pairing failed") && said.contains("'c'"), "{said}");
    world.call("device-suspend", json!({"name": "a"}));
    world.call("device-resume", json!({"name": "c"}));
    assert_same("c", &world.content(&scratch, "c"), &wanted);
    world.stop();
}

#[test]
fn scenario_53_without_its_source_a_destination_is_invalid_and_the_store_is_not() {
    let scratch = scratch();
    let (command, mut world, wanted) = world_with_snapshot(&scratch);
    // Another store that stays in its place.
    world.call("snapshot-create", json!({"device": "disk0", "name": "o", "cow": "o.cow"}));
    let table = load_copy(&mut world, "a", "b");
    world.call("device-remove", json!({"name": "a"}));
    for resumed in [false, true] {
        if resumed {
            world.call("device-resume", json!({"name": "b"}));
            let said = world.event("SNAPSHOT_INVALIDATED")["data"].clone();
            assert_eq!(said["device"], "b");
            assert!(said["reason"].as_str().unwrap().contains("another table has"), "{said}");
            is_invalid(&mut world, "b");
            let socket = world.export(&scratch, "b", true);
            let mut disk = disk(&socket);
            assert!(disk.read(0, 4096).is_err_and(|error| error.is_refused()));
            assert!(disk.write(0, &[0; 4096]).is_err_and(|error| error.is_refused()));
        }
        world.kill();
        world = World::start(&command);
        assert_eq!(world.device("b")["has-inactive-table"], !resumed);
    }
    is_invalid(&mut world, "b");
    // Never on disk.
    world.swap("b", &table);
    assert_same("b", &world.content(&scratch, "b"), &wanted);
    world.stop();
}

#[test]
fn scenario_53_a_suspended_source_hands_over_at_its_removal() {
    let scratch = scratch();
    for killed in [false, true] {
        let (command, mut world, wanted) = world_with_snapshot(&scratch);
        let table = load_copy(&mut world, "a", "b");
        world.call("device-suspend", json!({"name": "a"}));
        world.call("device-remove", json!({"name": "a"}));
        world.refused_as(
            snapblk_store::control::ErrorClass::DeviceNotFound,
            "query-devices",
            json!({"name": "a"}),
        );
        assert_eq!(world.tables().len(), 3, "{:?}", world.tables());
        if killed {
            world.kill();
            world = World::start(&command);
        }
        // No device serves it, but it is still the same snapshot.
        world.disk().write(0, &stamped(0, SECTORS, 4)).unwrap();
        world.call("device-resume", json!({"name": "b"}));
        assert_eq!(world.table("b"), table);
        assert_same("b", &world.content(&scratch, "b"), &wanted);
        world.call("device-remove", json!({"name": "b"}));
        world.stop();
        for file in ["a.cow", "disk.raw.state"] {
            std::fs::remove_file(scratch.path(file)).unwrap();
        }
    }
    // Cleared, it has no owner.
    let (_, mut world, _) = world_with_snapshot(&scratch);
    load_copy(&mut world, "a", "b");
    world.call("device-suspend", json!({"name": "a"}));
    world.call("device-remove", json!({"name": "a"}));
    assert!(scratch.path("a.cow.owed").exists());
    world.call("table-clear", json!({"name": "b"}));
    assert!(!scratch.path("a.cow.owed").exists(), "the store is closed");
    world.call("device-remove", json!({"name": "b"}));
    world.stop();
}

/// Back and forth, each into an inactive table of the other device, while the origin is written.
#[test]
fn scenario_54_a_hundred_handovers_under_writes() {
    const ROUNDS: usize = 100;
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(&scratch, &file);
    let mut world = World::start(&command);
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let history = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        clock.wait_for(20);
        let from = clock.tick();
        let create = json!({"device": "disk0", "name": "a", "cow": "a.cow", "chunk-size": 16384});
        world.call("snapshot-create", create);
        let to = clock.tick();
        let table = world.table("a");
        world.call("device-create", json!({"name": "b"}));
        for round in 0..ROUNDS {
            let (source, destination) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
            clock.wait_for(3);
            world.call("table-load", json!({"name": destination, "table": table}));
            world.call("device-suspend", json!({"name": source, "noflush": round % 3 == 0}));
            world.call("device-resume", json!({"name": destination}));
        }
        clock.wait_for(20);
        clock.end();
        (load.join().expect("the load does not panic"), from, to)
    });
    let (history, from, to) = history;
    let image = world.content(&scratch, "a");
    history.assert_is_a_moment(&image, from, to);
    is_invalid(&mut world, "b");
    assert_same("disk0", &world.disk().read_all().unwrap(), &history.last_content());
    world.kill();
    let mut world = World::start(&command);
    assert_same("a", &world.content(&scratch, "a"), &image);
    world.stop();
    assert_same("the file", &std::fs::read(&file).unwrap(), &history.last_content());
}

/// Killed during handovers, under writes: one of the two devices has the store, and its image is
/// exact.
#[test]
fn scenario_72_killed_in_mid_handover_the_store_has_one_owner() {
    for round in 0..6 {
        let scratch = scratch();
        let (command, mut world, wanted) = world_with_snapshot(&scratch);
        let table = load_copy(&mut world, "a", "b");
        world.call("table-clear", json!({"name": "b"}));
        let qmp = Qmp::connect(world.server.monitor()).unwrap();
        let mut front = world.disk();
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let verbs = scope.spawn(|| hand_back_and_forth(qmp, &table, &done));
            let at = (0..SECTORS / 8).cycle().map(|n| n * 8);
            // After each verb of a handover, from the second round on.
            for at in at.take_while(|_| done.load(Ordering::SeqCst) < 3 + round) {
                front.write(at * 512, &stamped(at, 4, 9)).unwrap();
            }
            world.kill();
            verbs.join().expect("the verbs do not panic");
        });
        let mut world = World::start(&command);
        let mut owners = 0;
        for name in ["a", "b"] {
            world.call("table-clear", json!({"name": name}));
        }
        for name in ["a", "b"] {
            let device = world.device(name);
            let status = texts(&device["status"]);
            if status.iter().all(|line| line.ends_with("Invalid")) {
                continue;
            }
            world.call("device-resume", json!({"name": name}));
            assert_same(name, &world.content(&scratch, name), &wanted);
            owners += 1;
        }
        assert_eq!(owners, 1);
        world.disk().write(0, &stamped(0, SECTORS, 10)).unwrap();
        world.stop();
    }
}

/// Hands the store over until the server is gone.
fn hand_back_and_forth(mut qmp: Qmp, table: &[String], done: &AtomicUsize) {
    for (source, destination) in [("a", "b"), ("b", "a")].into_iter().cycle() {
        for (verb, arguments) in [
            ("table-load", json!({"name": destination, "table": table})),
            ("device-suspend", json!({"name": source})),
            ("device-resume", json!({"name": destination})),
        ] {
            match qmp.call(verb, arguments) {
                Ok(_) => _ = done.fetch_add(1, Ordering::SeqCst),
                Err(ClientError::Command(error)) => panic!("{verb}: {}", error.desc),
                Err(_) => return,
            }
        }
    }
}

/// The kernel's order: the merge is loaded into the origin's device, and no data is lost; halfway
/// through, it becomes a snapshot again.
#[test]
fn a_snapshot_becomes_a_merge_in_the_origins_device_and_a_snapshot_again() {
    let scratch = scratch();
    let (command, mut world, wanted) = world_with_snapshot(&scratch);
    let snapshot = world.table("a")[0].replace(" snapshot disk0 ", " snapshot disk0-real ");
    let merge = snapshot.replace(" snapshot ", " snapshot-merge ");
    let origin = world.table("disk0");
    let mut front = world.disk();
    world.call("table-load", json!({"name": "disk0", "table": [merge]}));
    let said = world.refused("device-resume", json!({"name": "disk0"}));
    assert!(said.contains("suspend 'a' first"), "{said}");
    world.call("device-suspend", json!({"name": "a"}));
    front.begin_read(0, 4096).unwrap();
    waits(&mut front);
    world.call("device-resume", json!({"name": "disk0"}));
    front.end(Duration::from_secs(10)).unwrap();
    assert_eq!(world.table("disk0"), [merge]);
    is_invalid(&mut world, "a");
    assert_same("disk0", &front.read_all().unwrap(), &wanted);
    world.call("device-remove", json!({"name": "a"}));
    front.write(0, &stamped(0, 40, 5)).unwrap();
    let mut wanted = wanted;
    wanted[..40 * 512].copy_from_slice(&stamped(0, 40, 5));

    // And back: its present content becomes the snapshot's, whose origin is the rest of the other.
    world.call("device-create", json!({"name": "c"}));
    world.call("table-load", json!({"name": "c", "table": [snapshot]}));
    world.call("table-load", json!({"name": "disk0", "table": origin}));
    world.call("device-suspend", json!({"name": "disk0"}));
    front.begin_read(0, 4096).unwrap();
    waits(&mut front);
    let before = std::fs::read(scratch.path("disk.raw")).unwrap();
    let said = world.refused("device-resume", json!({"name": "disk0"}));
    assert!(said.contains("loaded into 'c'"), "{said}");
    world.call("device-resume", json!({"name": "c"}));
    waits(&mut front);
    world.call("device-resume", json!({"name": "disk0"}));
    front.end(Duration::from_secs(10)).unwrap();
    assert_eq!(world.table("disk0"), origin);
    assert_same("c", &world.content(&scratch, "c"), &wanted);
    assert_same("disk0", &front.read_all().unwrap(), &before);
    front.write(0, &stamped(0, SECTORS, 6)).unwrap();
    assert_same("c", &world.content(&scratch, "c"), &wanted);
    let socket = world.export(&scratch, "c", true);
    disk(&socket).write(3000 * 512, &stamped(3000, 3000, 7)).unwrap();
    wanted[3000 * 512..6000 * 512].copy_from_slice(&stamped(3000, 3000, 7));
    world.kill();
    let mut world = World::start(&command);
    assert_same("c", &world.content(&scratch, "c"), &wanted);
    assert_same("disk0", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 6));
    world.stop();
}

/// It merges from its resume on, whoever loaded it; after a kill, it continues to the end.
#[test]
fn a_table_that_merges_does_so_from_its_resume_on() {
    let scratch = scratch();
    for killed in [false, true] {
        let (command, mut world, wanted) = world_with_snapshot(&scratch);
        let table = world.table("a")[0].replace(" snapshot disk0 ", " snapshot-merge disk0-real ");
        world.call("table-load", json!({"name": "disk0", "table": [table]}));
        world.call("device-suspend", json!({"name": "a"}));
        world.call("device-resume", json!({"name": "disk0"}));
        if killed {
            world.kill();
            world = World::start(&command);
        }
        assert_same("disk0", &world.disk().read_all().unwrap(), &wanted);
        if !killed {
            assert_eq!(world.event("MERGE_COMPLETED")["data"]["device"], "disk0");
            world.event("BLOCK_JOB_COMPLETED");
        }
        let merged = format!("0 {SECTORS} snapshot-merge 16/");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !world.status("disk0")[0].starts_with(&merged) {
            assert!(Instant::now() < deadline, "{:?}", world.status("disk0"));
        }
        assert_eq!(world.table("disk0"), [table], "it is its loader's");
        // Resumed again, it has nothing left to merge.
        world.call("device-resume", json!({"name": "disk0"}));
        assert_eq!(world.call("query-jobs", json!({})), json!([]));
        world.stop();
        assert_same("the file", &std::fs::read(scratch.path("disk.raw")).unwrap(), &wanted);
        for file in ["a.cow", "disk.raw.state"] {
            std::fs::remove_file(scratch.path(file)).unwrap();
        }
    }
}

/// The merge stops after its batch, and goes on when the table is loaded again. (A removal that comes
/// after its end is an ordinary one.)
#[test]
fn a_device_that_merges_by_a_table_is_removed_in_the_midst_of_it() {
    let scratch = scratch();
    let (_, mut world, wanted) = world_with_snapshot(&scratch);
    let name = |name: &str| json!({"name": name});
    let table = world.table("a")[0].replace(" snapshot disk0 ", " snapshot-merge disk0-real ");
    let load = json!({"name": "disk0", "table": [table]});
    world.call("block-export-del", json!({"id": "disk0", "mode": "hard"}));
    world.call("table-load", load.clone());
    world.call("device-suspend", name("a"));
    world.call("device-remove", name("a"));
    world.call("device-resume", name("disk0"));
    world.call("device-remove", name("disk0"));
    assert!(!world.tables().iter().any(|(device, _)| device == "disk0"));
    world.call("device-create", name("disk0"));
    world.call("table-load", load);
    world.call("device-resume", name("disk0"));
    assert_same("disk0", &world.content(&scratch, "disk0"), &wanted);
    let merged = format!("0 {SECTORS} snapshot-merge 16/");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !world.status("disk0")[0].starts_with(&merged) {
        assert!(Instant::now() < deadline, "{:?}", world.status("disk0"));
    }
    world.stop();
    assert_same("the file", &std::fs::read(scratch.path("disk.raw")).unwrap(), &wanted);
}

/// The merge would overwrite the writes of a second origin's guest.
#[test]
fn an_origin_does_not_stand_beside_a_merge() {
    let scratch = scratch();
    let (_, mut world, _) = world_with_snapshot(&scratch);
    let beside = format!("0 {SECTORS} snapshot-origin disk0-real");
    world.make("other", std::slice::from_ref(&beside));
    let snapshot = world.table("a")[0].clone();
    let merge = snapshot.replace(" snapshot disk0 ", " snapshot-merge disk0-real ");
    world.call("device-suspend", json!({"name": "a"}));
    world.call("table-load", json!({"name": "disk0", "table": [merge]}));
    let said = world.refused("device-resume", json!({"name": "disk0"}));
    assert!(said.contains("does not stand beside a merge"), "{said}");
    world.call("device-remove", json!({"name": "other"}));
    world.call("device-resume", json!({"name": "disk0"}));
    world.call("device-create", json!({"name": "other"}));
    world.call("table-load", json!({"name": "other", "table": [beside]}));
    let said = world.refused("device-resume", json!({"name": "other"}));
    assert!(said.contains("does not stand beside a merge"), "{said}");
    world.stop();
}

/// A store that is reopened for a device of another length while its origin is written: its new
/// table has every exception of the old one.
#[test]
fn a_snapshot_that_changes_its_length_under_writes_keeps_its_image() {
    const ROUNDS: u64 = 30;
    /// So long that there are always unwritten sectors.
    const SECTORS: u64 = (1 << 18) + 5;
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    world.call("snapshot-create", json!({"device": "disk0", "name": "a", "cow": "a.cow"}));
    let table = world.table("a")[0].clone();
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        for round in 0..ROUNDS {
            clock.wait_for(4);
            // Suspended by the resume itself, or before.
            if round % 2 == 0 {
                world.call("device-suspend", json!({"name": "a", "noflush": round % 4 == 0}));
            }
            let len = SECTORS - 1 - round % 4;
            world.swap("a", &[table.replace(&format!("0 {SECTORS} "), &format!("0 {len} "))]);
        }
        clock.wait_for(50);
        clock.end();
        load.join().expect("the load does not panic");
    });
    let wanted = stamped(0, SECTORS - 1 - (ROUNDS - 1) % 4, 1);
    assert_same("a", &world.content(&scratch, "a"), &wanted);
    world.stop();
}
