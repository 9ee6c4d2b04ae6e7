//! Full stores, and stores that grow.

use std::fs::OpenOptions;
use std::process::Command;

use serde_json::json;
use snapblk_tests::server::{Place, Scratch, find_snapblk, output};

use crate::common::*;

/// 1 MiB.
const SECTORS: u64 = 2048;
/// A header, an area and 14 chunks of 4 KiB.
const STORE: u64 = 16 * 4096;

fn create_store(scratch: &Scratch, origin: &std::path::Path) -> std::path::PathBuf {
    let store = scratch.path("store.cow");
    let mut create = Command::new(find_snapblk().unwrap());
    create.arg("create").arg(&store).arg("--origin").arg(origin).args(["--size", "64K"]);
    let made = output(&mut create).unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(store.metadata().unwrap().len(), STORE);
    store
}

#[test]
fn scenario_24_and_25_an_overlay_that_overflows_and_grows() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let store = create_store(&scratch, &base);
    let mut world = World::start(&overlay(&scratch, &base));
    let mut disk = world.disk();
    let chunk = |n: u64, generation| stamped(n * 8, 8, generation);
    let mut written = 0;
    while disk.write(written * 4096, &chunk(written, 2)).is_ok() {
        written += 1;
    }
    assert_eq!(written, 14, "two of the sixteen chunks are metadata");
    let event = world.event("SNAPSHOT_OVERFLOW");
    assert_eq!(event["data"]["device"], "disk0");
    assert_eq!(event["data"]["cow"], word(&store));
    assert_eq!(world.status("disk0"), [format!("0 {SECTORS} snapshot Overflow")]);
    let target = &world.device("disk0")["targets"][0];
    assert_eq!((&target["state"], &target["persistent"]), (&json!("overflow"), &json!("PO")));

    // Reads succeed, mapped or not; writes fail, and flushes do not.
    let mut wanted = stamped(0, SECTORS, 1);
    wanted[..14 * 4096].copy_from_slice(&stamped(0, 14 * 8, 2));
    assert_same("full", &disk.read_all().unwrap(), &wanted);
    assert!(disk.write(0, &chunk(0, 3)).is_err_and(|error| error.is_refused()));
    disk.flush().unwrap();

    // A restart finds it full again, and reports it when a write needs room.
    drop(disk);
    world.stop();
    let mut world = World::start(&overlay(&scratch, &base));
    let mut disk = world.disk();
    assert_same("full later", &disk.read_all().unwrap(), &wanted);
    disk.write(0, &chunk(0, 3)).unwrap();
    wanted[..4096].copy_from_slice(&chunk(0, 3));
    assert!(disk.write(100 * 4096, &chunk(100, 3)).is_err_and(|error| error.is_refused()));
    world.event("SNAPSHOT_OVERFLOW");

    // Grown and reactivated, under a connected front end.
    OpenOptions::new().write(true).open(&store).unwrap().set_len(32 * 4096).unwrap();
    let table = world.table("disk0");
    world.swap("disk0", &table);
    assert_eq!(world.status("disk0"), [format!("0 {SECTORS} snapshot 128/256 16")]);
    disk.write(100 * 4096, &chunk(100, 4)).unwrap();
    wanted[100 * 4096..101 * 4096].copy_from_slice(&chunk(100, 4));
    assert_same("grown", &disk.read_all().unwrap(), &wanted);
    world.kill();
    let world = World::start(&overlay(&scratch, &base));
    assert_same("grown, killed", &world.disk().read_all().unwrap(), &wanted);
    world.stop();
}

/// A full layer is not the end: a new one goes on top.
#[test]
fn an_overflowed_overlay_takes_a_new_layer() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    create_store(&scratch, &base);
    let mut world = World::start(&overlay(&scratch, &base));
    let mut disk = world.disk();
    let written = (0..).find(|n| disk.write(n * 4096, &stamped(n * 8, 8, 2)).is_err()).unwrap();
    world.call("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": "one.cow"}));
    disk.write(0, &stamped(0, SECTORS, 3)).unwrap();
    assert_same("disk0", &disk.read_all().unwrap(), &stamped(0, SECTORS, 3));
    let mut below = stamped(0, SECTORS, 1);
    below[..written as usize * 4096].copy_from_slice(&stamped(0, written * 8, 2));
    assert_same("disk0.1", &world.content(&scratch, "disk0.1"), &below);
    world.kill();
    let mut world = World::start(&overlay(&scratch, &base));
    assert_same("disk0", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 3));
    assert_same("disk0.1", &world.content(&scratch, "disk0.1"), &below);
    world.stop();
}

/// Type P, filled by a write to the snapshot.
#[test]
fn scenario_23_a_snapshot_filled_by_its_own_writes_is_invalid() {
    let scratch = scratch();
    let base = scratch.file("base.raw", &stamped(0, SECTORS, 1)).unwrap();
    let store = scratch.sparse("p.cow", STORE).unwrap();
    let line = format!("0 {SECTORS} snapshot {} {} P 8", word(&base), word(&store));
    let command = serve(&scratch).arg("--table").arg(&line);
    let mut world = World::start(&command);
    let mut disk = world.disk();
    let written = (0..).find(|n| disk.write(n * 4096, &stamped(n * 8, 8, 2)).is_err()).unwrap();
    assert_eq!(written, 14);
    assert_eq!(world.event("SNAPSHOT_INVALIDATED")["data"]["device"], "disk0");
    for again in 0..2 {
        assert_eq!(world.status("disk0"), [format!("0 {SECTORS} snapshot Invalid")]);
        for at in [0, SECTORS / 2, SECTORS - 8] {
            assert!(disk.read(at * 512, 4096).is_err_and(|error| error.is_refused()), "{again}");
        }
        assert!(disk.write(0, &[0; 4096]).is_err_and(|error| error.is_refused()), "{again}");
        if again == 0 {
            drop(disk);
            world.stop();
            world = World::start(&command);
            disk = world.disk();
        }
    }
    drop(disk);
    world.stop();
    assert_eq!(std::fs::read(base).unwrap(), stamped(0, SECTORS, 1));
}

/// Type PO, filled by writes to its origin: the other half of scenario 24.
#[test]
fn scenario_24_an_origin_write_that_needs_room_makes_it_invalid() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let mut origin = world.disk();
    world.call(
        "snapshot-create",
        json!({"device": "disk0", "name": "po", "cow": "po.cow", "size": STORE}),
    );
    let socket = world.export(&scratch, "po", true);
    let mut snap = disk(&socket);
    let written = (0..).find(|n| snap.write(n * 4096, &stamped(n * 8, 8, 2)).is_err()).unwrap();
    assert_eq!(written, 14);
    assert_eq!(world.event("SNAPSHOT_OVERFLOW")["data"]["device"], "po");
    assert_eq!(world.status("po"), [format!("0 {SECTORS} snapshot Overflow")]);
    // The origin is written where the snapshot has its own chunk, which needs no room; then
    // elsewhere.
    origin.write(0, &stamped(0, 8, 3)).unwrap();
    assert_same("po", &snap.read(0, 4096).unwrap(), &stamped(0, 8, 2));
    assert_same("po", &snap.read(200 * 4096, 4096).unwrap(), &stamped(1600, 8, 1));
    origin.write(200 * 4096, &stamped(1600, 8, 3)).unwrap();
    assert_eq!(world.event("SNAPSHOT_INVALIDATED")["data"]["device"], "po");
    assert_eq!(world.status("po"), [format!("0 {SECTORS} snapshot Invalid")]);
    assert!(snap.read(0, 4096).is_err_and(|error| error.is_refused()));
    origin.flush().unwrap();
    world.stop();
}

/// What an overflowed snapshot has is whole: its reads are served, and so is a rollback to it.
#[test]
fn scenario_24_an_overflowed_snapshot_is_rolled_back_to() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    world.call(
        "snapshot-create",
        json!({"device": "disk0", "name": "po", "cow": "po.cow", "size": STORE}),
    );
    let mut origin = world.disk();
    origin.write(100 * 4096, &stamped(800, 16, 3)).unwrap();
    let socket = world.export(&scratch, "po", true);
    let mut snap = disk(&socket);
    let written = (0..).find(|n| snap.write(n * 4096, &stamped(n * 8, 8, 2)).is_err()).unwrap();
    assert_eq!(written, 12);
    assert_eq!(world.status("po"), [format!("0 {SECTORS} snapshot Overflow")]);
    drop(snap);
    world.call("block-export-del", json!({"id": "po", "mode": "hard"}));
    world.call("snapshot-merge", json!({"device": "disk0", "snapshot": "po", "job-id": "j"}));
    let mut wanted = stamped(0, SECTORS, 1);
    wanted[..12 * 4096].copy_from_slice(&stamped(0, 12 * 8, 2));
    assert_same("from the reply on", &origin.read_all().unwrap(), &wanted);
    world.event("MERGE_COMPLETED");
    world.event("BLOCK_JOB_COMPLETED");
    // What was full takes new writes: they go to the disk.
    origin.write(120 * 4096, &stamped(960, 8, 4)).unwrap();
    wanted[120 * 4096..121 * 4096].copy_from_slice(&stamped(960, 8, 4));
    assert_same("rolled back", &origin.read_all().unwrap(), &wanted);
    drop(origin);
    assert_eq!(world.table("disk0"), [format!("0 {SECTORS} linear disk0-real 0")]);
    world.stop();
    assert_same("the file", &std::fs::read(&file).unwrap(), &wanted);
}

/// As by a wrong `truncate`: later writes must not hide the loss.
#[test]
fn a_store_that_is_cut_short_takes_nothing_more() {
    for place in [Place::Memory, Place::Disk] {
        let scratch = scratch_on(place);
        let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
        let store = create_store(&scratch, &base);
        let mut world = World::start(&overlay(&scratch, &base));
        let mut disk = world.disk();
        for n in 0..3 {
            disk.write(n * 4096, &stamped(n * 8, 8, 2)).unwrap();
        }
        disk.flush().unwrap();
        let cut = |chunks: u64| {
            let file = OpenOptions::new().write(true).open(&store).unwrap();
            file.set_len(chunks * 4096).unwrap();
        };
        // Longer, and as long as that again, is accepted.
        cut(20);
        world.call("block_resize", json!({"device": "disk0", "size": SECTORS * 512}));
        disk.write(3 * 4096, &stamped(3 * 8, 8, 2)).unwrap();
        disk.flush().unwrap();
        cut(4);
        disk.write(5 * 4096, &stamped(5 * 8, 8, 2)).unwrap();
        assert!(disk.flush().is_err_and(|error| error.is_refused()));
        let event = world.event("SNAPSHOT_OVERFLOW");
        assert!(event["data"]["reason"].as_str().unwrap().contains("a commit failed"), "{event}");
        assert!(disk.write(0, &[0; 4096]).is_err_and(|error| error.is_refused()));
        let shown = world.device("disk0");
        assert_eq!(shown["status"], json!([format!("0 {SECTORS} snapshot Overflow")]));
        assert_eq!(shown["targets"][0]["state"], "overflow");
        assert_same("what is left", &disk.read(0, 8192).unwrap(), &stamped(0, 16, 2));
        let said = world.server.stderr();
        assert!(said.contains("store.cow is shorter than it was"), "{said}");
        world.kill();
    }
}
