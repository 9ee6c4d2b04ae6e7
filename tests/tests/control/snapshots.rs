//! `snapshot-create` and `snapshot-delete`: points in time of a live disk.

use std::fs;
use std::process::Command;

use serde_json::json;
use snapblk_store::control::ErrorClass;
use snapblk_tests::client::Connect;
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, output};

use crate::common::*;
use crate::history::{Clock, History};

/// 4 MiB and some sectors: not a whole number of chunks.
const SECTORS: u64 = 8192 + 3;

fn disk_file(scratch: &Scratch) -> std::path::PathBuf {
    scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap()
}

#[test]
fn a_snapshot_turns_a_plain_disk_into_an_origin_over_its_old_table() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut disk = world.disk();
    let old = world.table("disk0");
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    let tables = [
        ("disk0", vec![format!("0 {SECTORS} snapshot-origin disk0-real")]),
        ("disk0-real", old),
        ("snap", vec![format!("0 {SECTORS} snapshot disk0 ./snap.cow PO 8")]),
    ];
    let tables: Vec<_> = tables.into_iter().map(|(name, table)| (name.to_owned(), table)).collect();
    assert_eq!(world.tables(), tables);
    // 8196 sectors are 1025 chunks of 8; a header, five areas, and one chunk to spare.
    let line = world.status("snap").remove(0);
    assert!(
        line.starts_with(&format!("0 {SECTORS} snapshot 16/")) && line.ends_with(" 16"),
        "{line}"
    );
    assert_eq!(world.status("disk0"), [format!("0 {SECTORS} snapshot-origin")]);

    disk.write(100 * 512, &stamped(100, 30, 2)).unwrap();
    disk.write((SECTORS - 1) * 512, &stamped(SECTORS - 1, 1, 2)).unwrap();
    assert_same("snap", &world.content(&scratch, "snap"), &stamped(0, SECTORS, 1));
    // Chunks 12 to 16 and the last: six exceptions after the header and the area.
    let line = world.status("snap").remove(0);
    assert!(line.starts_with(&format!("0 {SECTORS} snapshot 64/")), "{line}");
    let mut now = stamped(0, SECTORS, 1);
    now[100 * 512..130 * 512].copy_from_slice(&stamped(100, 30, 2));
    now[(SECTORS as usize - 1) * 512..].copy_from_slice(&stamped(SECTORS - 1, 1, 2));
    assert_same("disk0", &disk.read_all().unwrap(), &now);
    assert_same("the file", &fs::read(&file).unwrap(), &now);
    world.stop();
}

#[test]
fn scenario_1_to_4_a_written_snapshot_leaves_its_origin_alone() {
    let scratch = scratch();
    let mut world = World::start(&plain(&scratch, &disk_file(&scratch)));
    let mut origin = world.disk();
    world.call(
        "snapshot-create",
        json!({"device": "disk0", "name": "snap", "cow": "snap.cow", "chunk-size": 16384}),
    );
    let socket = world.export(&scratch, "snap", true);
    let mut snap = disk(&socket);
    // A part of a chunk, and a whole one.
    snap.write(40 * 512, &stamped(40, 3, 7)).unwrap();
    snap.write(64 * 512, &stamped(64, 32, 8)).unwrap();
    origin.write(32 * 512, &stamped(32, 64, 2)).unwrap();
    let mut wanted = stamped(0, SECTORS, 1);
    wanted[40 * 512..43 * 512].copy_from_slice(&stamped(40, 3, 7));
    wanted[64 * 512..96 * 512].copy_from_slice(&stamped(64, 32, 8));
    assert_same("snap", &snap.read_all().unwrap(), &wanted);
    let mut wanted = stamped(0, SECTORS, 1);
    wanted[32 * 512..96 * 512].copy_from_slice(&stamped(32, 64, 2));
    assert_same("origin", &origin.read_all().unwrap(), &wanted);
    world.stop();
}

#[test]
fn scenario_5_snapshots_under_load_are_each_of_one_moment() {
    snapshots_under_load(Place::Memory);
}

#[test]
fn scenario_5_snapshots_under_load_are_each_of_one_moment_on_disk() {
    snapshots_under_load(Place::Disk);
}

fn snapshots_under_load(place: Place) {
    let scratch = scratch_on(place);
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let mut moments = Vec::new();
    let history = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        for (n, chunk) in [4096, 65536, 512, 16384].into_iter().enumerate() {
            clock.wait_for(150);
            let (name, from) = (format!("snap{n}"), clock.tick());
            world.call(
                "snapshot-create",
                json!({"device": "disk0", "name": name, "cow": format!("{name}.cow"),
                       "chunk-size": chunk}),
            );
            moments.push((name, from, clock.tick()));
        }
        clock.wait_for(150);
        let early = world.content(&scratch, "snap0");
        clock.wait_for(100);
        clock.end();
        let history = load.join().expect("the load does not panic");
        history.assert_is_a_moment(&early, moments[0].1, moments[0].2);
        history
    });
    assert!(history.len() > 700);
    for (name, from, to) in &moments {
        history.assert_is_a_moment(&world.content(&scratch, name), *from, *to);
    }
    let last = history.last_content();
    assert_same("disk0", &world.disk().read_all().unwrap(), &last);

    // The same again after an orderly stop; nothing is created again.
    world.stop();
    let mut world = World::start(&plain(&scratch, &file));
    for (name, from, to) in &moments {
        history.assert_is_a_moment(&world.content(&scratch, name), *from, *to);
    }
    assert_same("disk0", &world.disk().read_all().unwrap(), &last);
    // And after some were deleted.
    world.call("snapshot-delete", json!({"device": "disk0", "snapshot": "snap1"}));
    world.disk().write(0, &stamped(0, SECTORS, 9000)).unwrap();
    for (name, from, to) in moments.iter().filter(|(name, ..)| name != "snap1") {
        history.assert_is_a_moment(&world.content(&scratch, name), *from, *to);
    }
    world.stop();
}

#[test]
fn scenario_75_discard_and_write_zeroes_keep_what_snapshots_need() {
    let scratch = scratch();
    let mut world = World::start(&plain(&scratch, &disk_file(&scratch)));
    let mut origin = world.disk();
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    origin.discard(0, 1 << 20).unwrap();
    origin.discard((1 << 20) + 512, 1024).unwrap();
    assert_same("snap", &world.content(&scratch, "snap"), &stamped(0, SECTORS, 1));
    world.stop();
}

#[test]
fn a_snapshot_that_is_deleted_is_gone_and_its_store_stays_or_goes() {
    let scratch = scratch();
    let mut world = World::start(&plain(&scratch, &disk_file(&scratch)));
    let mut origin = world.disk();
    for name in ["keep", "drop"] {
        let cow = format!("{name}.cow");
        world.call("snapshot-create", json!({"device": "disk0", "name": name, "cow": cow}));
    }
    let said = world.refused("snapshot-delete", json!({"device": "keep", "snapshot": "drop"}));
    assert!(said.contains("not a snapshot of the device 'keep'"), "{said}");
    let socket = world.export(&scratch, "drop", false);
    let delete = json!({"device": "disk0", "snapshot": "drop", "delete-store": true});
    let said = world.refused("snapshot-delete", delete.clone());
    assert!(said.contains("export 'drop'"), "{said}");
    drop(disk(&socket));
    world.call("block-export-del", json!({"id": "drop", "mode": "hard"}));
    world.call("snapshot-delete", delete);
    world.call("snapshot-delete", json!({"device": "disk0", "snapshot": "keep"}));
    let none = ErrorClass::DeviceNotFound;
    world.refused_as(none, "snapshot-delete", json!({"device": "disk0", "snapshot": "keep"}));
    assert!(scratch.path("keep.cow").exists() && !scratch.path("drop.cow").exists());
    origin.write(0, &stamped(0, 8, 2)).unwrap();
    assert_eq!(world.table("disk0"), [format!("0 {SECTORS} snapshot-origin disk0-real")]);
    assert!(!scratch.path("keep.cow.owed").exists());
    world.stop();
}

/// Every refusal; none of them changes anything.
#[test]
fn a_refused_snapshot_leaves_everything_as_it_was() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut origin = world.disk();
    scratch.file("full.cow", b"something").unwrap();
    let tables = world.tables();
    let files = |scratch: &Scratch| {
        let mut names: Vec<_> =
            fs::read_dir(scratch.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files(&scratch);
    let create = |name: &str, cow: &str| json!({"device": "disk0", "name": name, "cow": cow});
    let said = world.refused("snapshot-create", create("snap", "full.cow"));
    assert!(said.contains("full.cow is there and not empty"), "{said}");
    let said = world.refused("snapshot-create", create("disk0", "new.cow"));
    assert!(said.contains("'disk0' already"), "{said}");
    let said = world.refused("snapshot-create", create("snap", ""));
    assert!(said.contains("name of the store's file is empty"), "{said}");
    let said = world.refused("snapshot-create", create("snap", "."));
    assert!(said.contains("neither a regular file nor a block device"), "{said}");
    let mut larger = create("snap", "new.cow");
    larger["size"] = json!(u64::MAX);
    let said = world.refused("snapshot-create", larger);
    assert!(said.contains("cannot size the store new.cow") && said.contains("too large"), "{said}");
    world.refused("snapshot-create", create("a/b", "new.cow"));
    world.refused("snapshot-create", create("snap", "no/such/directory/new.cow"));
    let mut bad = create("snap", "new.cow");
    bad["chunk-size"] = json!(3000);
    let said = world.refused("snapshot-create", bad.clone());
    assert!(said.contains("3000 bytes is not possible"), "{said}");
    bad["chunk-size"] = json!(4096);
    // The same errors as those of 'create'.
    for size in [4096, 12287] {
        bad["size"] = json!(size);
        let said = world.refused("snapshot-create", bad.clone());
        assert!(said.contains("needs at least 12288"), "{said}");
    }
    let said = world.refused("snapshot-create", create("disk0-real", "new.cow"));
    assert!(said.contains("'disk0-real' is what the disk below"), "{said}");
    let mut existing = create("snap", "full.cow");
    existing["mode"] = json!("existing");
    let said = world.refused("snapshot-create", existing.clone());
    assert!(said.contains("full.cow"), "{said}");
    existing["cow"] = json!("disk.raw");
    let said = world.refused("snapshot-create", existing);
    assert!(said.contains("disk.raw"), "{said}");
    assert_eq!(world.tables(), tables);
    assert_eq!(files(&scratch), before);
    assert_eq!(fs::read(scratch.path("full.cow")).unwrap(), b"something");
    origin.write(0, &stamped(0, 8, 2)).unwrap();

    world.call("device-suspend", json!({"name": "disk0"}));
    let not_active = ErrorClass::DeviceNotActive;
    world.refused_as(not_active, "snapshot-create", create("snap", "new.cow"));
    world.call("device-resume", json!({"name": "disk0"}));
    assert_eq!(files(&scratch).iter().filter(|name| *name == "new.cow").count(), 0);

    // A device has the name for the old table.
    world.make("disk0-real", &["0 8 zero".into()]);
    let said = world.refused("snapshot-create", create("snap", "new.cow"));
    assert!(said.contains("disk0-real"), "{said}");
    world.call("device-remove", json!({"name": "disk0-real"}));
    world.call("snapshot-create", create("snap", "new.cow"));
    let tables = world.tables();
    // A store that another snapshot uses.
    let mut taken = create("other", "new.cow");
    taken["mode"] = json!("existing");
    let said = world.refused("snapshot-create", taken);
    assert!(said.contains("served by the device 'snap' already"), "{said}");
    assert_eq!(world.tables(), tables);
    world.stop();
}

#[test]
fn a_transient_snapshot_lasts_as_long_as_its_process() {
    let scratch = scratch();
    let command = plain(&scratch, &disk_file(&scratch));
    let mut world = World::start(&command);
    let mut origin = world.disk();
    world.call(
        "snapshot-create",
        json!({"device": "disk0", "name": "snap", "cow": "snap.cow", "persistent": "N"}),
    );
    assert_eq!(world.table("snap"), [format!("0 {SECTORS} snapshot disk0 ./snap.cow N 8")]);
    origin.write(0, &stamped(0, 64, 2)).unwrap();
    assert_same("snap", &world.content(&scratch, "snap"), &stamped(0, SECTORS, 1));
    let line = world.status("snap").remove(0);
    assert!(
        line.starts_with(&format!("0 {SECTORS} snapshot 64/")) && line.ends_with(" 0"),
        "{line}"
    );
    // It would show what was written since.
    world.stop();
    let mut world = World::start(&command);
    assert_eq!(world.status("snap"), [format!("0 {SECTORS} snapshot Invalid")]);
    world.call("snapshot-delete", json!({"device": "disk0", "snapshot": "snap"}));
    world.stop();
}

/// Scenario 8.
#[test]
fn a_store_is_neither_its_own_origin_nor_that_of_two() {
    let scratch = scratch();
    let a = word(&scratch.file("a.raw", &stamped(0, 2048, 1)).unwrap()).to_owned();
    let b = word(&scratch.file("b.raw", &stamped(0, 2048, 2)).unwrap()).to_owned();
    let c = word(&scratch.sparse("c.cow", 2 << 20).unwrap()).to_owned();
    let mut world = World::start(&monitor_only(&scratch));
    world.call("device-create", json!({"name": "s"}));
    let resume = |world: &mut World, table: String| {
        world.call("table-load", json!({"name": "s", "table": [table]}));
        world.refused("device-resume", json!({"name": "s"}))
    };
    let link = scratch.path("link.raw");
    std::os::unix::fs::symlink(&a, &link).unwrap();
    for cow in [a.as_str(), word(&link)] {
        let table = json!({"name": "s", "table": [format!("0 2048 snapshot {a} {cow} P 8")]});
        let said = world.refused("table-load", table);
        assert!(said.contains("is the origin itself"), "{said}");
    }
    // The meaning of a device may change until the resume.
    world.make("base", &[format!("0 2048 linear {a} 0")]);
    let said = resume(&mut world, format!("0 2048 snapshot base {a} P 8"));
    assert!(said.contains("is the origin itself"), "{said}");
    world.make("one", &[format!("0 2048 snapshot {b} {c} P 8")]);
    let said = resume(&mut world, format!("0 2048 snapshot {a} {c} P 8"));
    assert!(said.contains("served by the device 'one' already"), "{said}");
    // Also both lines of one table.
    let d = word(&scratch.sparse("d.cow", 2 << 20).unwrap()).to_owned();
    let lines = [format!("0 1024 snapshot {a} {d} P 8"), format!("1024 1024 snapshot {a} {d} P 8")];
    world.call("table-load", json!({"name": "s", "table": lines}));
    world.refused("device-resume", json!({"name": "s"}));
    world.stop();
}

/// Scenario 10: the origin is longer than the snapshot; and a snapshot over linear over a file.
#[test]
fn scenario_10_a_write_past_the_snapshot_makes_no_exception() {
    let scratch = scratch();
    let a = word(&scratch.file("a.raw", &stamped(0, 2048, 1)).unwrap()).to_owned();
    let c = word(&scratch.sparse("c.cow", 2 << 20).unwrap()).to_owned();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("low", &[format!("0 1024 linear {a} 0"), format!("1024 1024 linear {a} 1024")]);
    world.make("top", &["0 2048 snapshot-origin low".to_owned()]);
    world.make("snap", &[format!("0 1001 snapshot top {c} P 16")]);
    let socket = world.export(&scratch, "top", true);
    let mut top = disk(&socket);
    top.write(1001 * 512, &stamped(1001, 1000, 2)).unwrap();
    assert_eq!(world.status("snap"), ["0 1001 snapshot 32/4096 32"]);
    // A write that begins before its end: the last chunk, of which the snapshot has a part.
    top.write(1000 * 512, &stamped(1000, 2, 2)).unwrap();
    top.write(0, &stamped(0, 16, 2)).unwrap();
    assert_eq!(world.status("snap"), ["0 1001 snapshot 64/4096 32"]);
    assert_same("snap", &world.content(&scratch, "snap"), &stamped(0, 1001, 1));
    world.stop();
}

/// An origin that is reloaded with a greater length keeps its snapshots.
#[test]
fn an_origin_that_grows_keeps_its_snapshots() {
    let scratch = scratch();
    let a = word(&scratch.file("a.raw", &stamped(0, 1024, 1)).unwrap()).to_owned();
    let b = word(&scratch.file("b.raw", &stamped(0, 1024, 1)).unwrap()).to_owned();
    let c = word(&scratch.sparse("c.cow", 2 << 20).unwrap()).to_owned();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("low", &[format!("0 1024 linear {a} 0")]);
    world.make("top", &["0 1024 snapshot-origin low".to_owned()]);
    world.make("snap", &[format!("0 1024 snapshot top {c} P 8")]);
    world.swap("low", &[format!("0 1024 linear {a} 0"), format!("1024 1024 linear {b} 0")]);
    world.swap("top", &["0 2048 snapshot-origin low".to_owned()]);
    let socket = world.export(&scratch, "top", true);
    let mut top = disk(&socket);
    top.write(0, &stamped(0, 2048, 2)).unwrap();
    assert_same("snap", &world.content(&scratch, "snap"), &stamped(0, 1024, 1));
    world.stop();
}

/// A second writable path to an origin would bypass its snapshots.
#[test]
fn a_second_writable_way_to_an_origin_is_refused() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    let socket = scratch.socket("second.sock");
    let said =
        world.refused("block-export-add", export_args("second", "disk0-real", &socket, true));
    assert!(said.contains("disk0"), "{said}");
    let over = |world: &mut World, below: &str| {
        let name = format!("over-{}", below.rsplit('/').next().unwrap());
        world.call("device-create", json!({"name": name}));
        let line = format!("0 {SECTORS} linear {below} 0");
        world.call("table-load", json!({"name": name, "table": [line]}));
        (world.qmp.call("device-resume", json!({"name": name})).is_ok(), name)
    };
    // A device on top of the origin's own device is written through it.
    let (resumed, through) = over(&mut world, "disk0");
    assert!(resumed);
    for below in ["disk0-real", word(&file)] {
        let (resumed, name) = over(&mut world, below);
        if resumed {
            world.refused("block-export-add", export_args(&name, &name, &socket, true));
        }
    }
    // Reading is harmless.
    world.content(&scratch, "disk0-real");
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.call("block-export-add", export_args(&through, &through, &socket, true));
    disk(&socket).write(64 * 512, &stamped(64, 8, 2)).unwrap();
    assert_same("snap", &world.content(&scratch, "snap"), &stamped(0, SECTORS, 1));
    world.stop();
}

/// An invalidated snapshot stays invalid, whatever is done to its neighbours (scenario 23).
#[test]
fn scenario_23_an_invalid_snapshot_stays_invalid() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut origin = world.disk();
    for (name, kind) in [("p", "P"), ("n", "N"), ("gone", "P")] {
        world.call(
            "snapshot-create",
            json!({"device": "disk0", "name": name, "cow": format!("{name}.cow"),
                   "persistent": kind, "size": 16 * 4096}),
        );
    }
    // More than they have room for. The origin's write succeeds.
    origin.write(0, &stamped(0, 512, 2)).unwrap();
    origin.flush().unwrap();
    let told: Vec<_> =
        (0..3).map(|_| world.event("SNAPSHOT_INVALIDATED")["data"]["device"].clone()).collect();
    assert!(told.contains(&json!("p")) && told.contains(&json!("n")), "{told:?}");
    let all_invalid = |world: &mut World| {
        for name in ["p", "n"] {
            assert_eq!(world.status(name), [format!("0 {SECTORS} snapshot Invalid")]);
        }
    };
    all_invalid(&mut world);
    for name in ["p", "n"] {
        let socket = world.export(&scratch, name, true);
        let mut snap = disk(&socket);
        assert!(snap.read(0, 512).is_err_and(|error| error.is_refused()));
        assert!(snap.read((SECTORS - 1) * 512, 512).is_err_and(|error| error.is_refused()));
        assert!(snap.write(0, &[0; 512]).is_err_and(|error| error.is_refused()));
    }
    // It owes nothing any more, so its removal reports nothing.
    world.call("snapshot-delete", json!({"device": "disk0", "snapshot": "gone"}));
    let said = world.server.stderr();
    assert!(!said.contains("cannot flush"), "{said}");
    // A neighbour is created and deleted.
    world.call("snapshot-create", json!({"device": "disk0", "name": "new", "cow": "new.cow"}));
    all_invalid(&mut world);
    world.call("snapshot-delete", json!({"device": "disk0", "snapshot": "new"}));
    all_invalid(&mut world);
    origin.write(0, &stamped(0, 512, 3)).unwrap();
    drop(origin);
    world.stop();

    let mut world = World::start(&plain(&scratch, &file));
    assert_eq!(world.status("p"), [format!("0 {SECTORS} snapshot Invalid")]);
    world.stop();

    // What became of its list costs nothing more: the disk is served, and its snapshot fails.
    let mut store = fs::read(scratch.path("p.cow")).unwrap();
    store[4096..4112].fill(0xff);
    fs::write(scratch.path("p.cow"), &store[..3 * 4096]).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    assert_eq!(world.status("p"), [format!("0 {SECTORS} snapshot Invalid")]);
    assert_same("disk0", &world.content(&scratch, "disk0")[..512 * 512], &stamped(0, 512, 3));
    let mut snap = disk(&world.export(&scratch, "p", true));
    assert!(snap.read(0, 512).is_err_and(|error| error.is_refused()));
    drop(snap);
    world.call("block-export-del", json!({"id": "p", "mode": "hard"}));
    world.call("snapshot-delete", json!({"device": "disk0", "snapshot": "p"}));
    world.stop();
}

/// Scenario 54 with whole tables: each is loaded again under writes, and the image stays exact.
#[test]
fn scenario_54_tables_reloaded_under_writes_keep_the_image() {
    let scratch = scratch();
    let mut world = World::start(&plain(&scratch, &disk_file(&scratch)));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let history = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        for round in 0..40 {
            let name = if round % 2 == 0 { "snap" } else { "disk0" };
            let table = world.table(name);
            world.swap(name, &table);
            clock.wait_for(3);
        }
        clock.end();
        load.join().expect("the load does not panic")
    });
    assert_same("snap", &world.content(&scratch, "snap"), &stamped(0, SECTORS, 1));
    assert_same("disk0", &world.disk().read_all().unwrap(), &history.last_content());
    world.stop();
}

/// A golden image is not written while it has an overlay.
#[test]
fn what_an_overlay_lies_on_is_not_written() {
    let scratch = scratch();
    let base = disk_file(&scratch);
    let mut world = World::start(&overlay(&scratch, &base));
    world.make("raw", &[format!("0 {SECTORS} linear {} 0", word(&base))]);
    let socket = scratch.socket("raw.sock");
    let said = world.refused("block-export-add", export_args("raw", "raw", &socket, true));
    assert!(said.contains("'disk0'"), "{said}");
    assert_same("raw", &world.content(&scratch, "raw"), &stamped(0, SECTORS, 1));
    world.call("device-remove", json!({"name": "raw"}));
    // The image's lock is held again.
    let mut write = Command::new("qemu-io");
    write.args(["-f", "raw", "-c", "write 0 512", word(&base)]);
    let output = output(&mut write).unwrap();
    assert!(!output.status.success(), "the image is not locked any more");
    world.stop();
}

/// `persistent` is either the exact kind, or only true or false.
#[test]
fn a_snapshot_is_kept_as_it_is_asked_for() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let ways = [(json!(true), " PO "), (json!(false), " N "), (json!("P"), " P ")];
    for (number, (persistent, letter)) in ways.into_iter().enumerate() {
        let (name, cow) = (format!("s{number}"), format!("s{number}.cow"));
        let arguments =
            json!({"device": "disk0", "name": name, "cow": cow, "persistent": persistent});
        world.call("snapshot-create", arguments);
        let table = world.table(&name);
        assert!(table[0].contains(letter), "{persistent}: {table:?}");
    }
    for (persistent, why) in [(json!(1), "expected: string"), (json!("Q"), "'Q'")] {
        let arguments =
            json!({"device": "disk0", "name": "x", "cow": "x.cow", "persistent": persistent});
        let said = world.refused("snapshot-create", arguments);
        assert!(said.contains(why), "{said}");
    }
    world.stop();
}

/// Nothing would be kept in it, and what a guest asks of it would fail.
#[test]
fn no_snapshot_is_taken_with_a_store_that_is_invalid() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    world.call("snapshot-create", json!({"device": "disk0", "name": "s", "cow": "s.cow"}));
    world.call("snapshot-delete", json!({"device": "disk0", "snapshot": "s"}));
    let store = scratch.path("s.cow");
    let mut header = fs::read(&store).unwrap();
    assert_eq!(header[4], 1);
    header[4] = 0;
    fs::write(&store, &header).unwrap();
    let before = world.tables();
    for (command, mut arguments) in [
        ("snapshot-create", json!({"device": "disk0", "name": "s", "cow": "s.cow"})),
        ("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": "s.cow"})),
    ] {
        arguments["mode"] = json!("existing");
        let said = world.refused(command, arguments);
        assert!(said.contains("is Invalid"), "{said}");
        assert_eq!(world.tables(), before, "{command}");
    }
    assert_eq!(fs::read(&store).unwrap(), header);
    world.stop();
}
