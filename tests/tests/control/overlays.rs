//! `blockdev-snapshot-sync`: a new overlay on top of a live disk.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use snapblk_tests::client::Connect;
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, find_snapblk, output};

use crate::common::*;
use crate::history::{Clock, History};

const SECTORS: u64 = 8192 + 3;

fn golden(scratch: &Scratch) -> std::path::PathBuf {
    scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap()
}

fn sync(cow: &str) -> serde_json::Value {
    json!({"device": "disk0", "snapshot-file": cow})
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn an_overlay_on_an_overlay_takes_the_writes_and_the_old_store_rests() {
    let scratch = scratch();
    let base = golden(&scratch);
    let mut world = World::start(&overlay(&scratch, &base));
    let mut disk = world.disk();
    let store = scratch.path("store.cow");
    let below = world.table("disk0");
    disk.write(0, &stamped(0, 100, 2)).unwrap();
    world.call("blockdev-snapshot-sync", sync("one.cow"));
    let tables = [
        ("disk0".to_owned(), vec![format!("0 {SECTORS} snapshot disk0.1 ./one.cow PO 8")]),
        ("disk0.1".to_owned(), below),
    ];
    assert_eq!(world.tables(), tables);
    let sealed = bytes(&store);
    let mut wanted = stamped(0, SECTORS, 1);
    wanted[..100 * 512].copy_from_slice(&stamped(0, 100, 2));
    assert_same("disk0", &disk.read_all().unwrap(), &wanted);
    let frozen = wanted.clone();
    // Part of a chunk that the layer below has, part of one that the image has, and a whole one.
    for (first, sectors) in [(3, 2), (4001, 3), (160, 8)] {
        disk.write(first * 512, &stamped(first, sectors, 3)).unwrap();
        wanted[first as usize * 512..(first + sectors) as usize * 512]
            .copy_from_slice(&stamped(first, sectors, 3));
    }
    disk.flush().unwrap();
    assert_same("disk0", &disk.read_all().unwrap(), &wanted);
    assert!(bytes(&store) == sealed, "the store below was written");
    assert_eq!(world.status("disk0"), [status(5)]);
    // The layer below can be read, and has the disk's former content.
    assert_same("disk0.1", &world.content(&scratch, "disk0.1"), &frozen);
    disk.write(0, &stamped(0, 50, 4)).unwrap();
    wanted[..50 * 512].copy_from_slice(&stamped(0, 50, 4));
    assert_same("disk0", &disk.read_all().unwrap(), &wanted);
    assert_same("disk0.1 again", &world.content(&scratch, "disk0.1"), &frozen);
    assert!(bytes(&base) == stamped(0, SECTORS, 1), "the golden image was written");
    drop(disk);
    world.stop();

    let mut world = World::start(&overlay(&scratch, &base));
    assert_same("disk0 later", &world.disk().read_all().unwrap(), &wanted);
    assert_same("disk0.1 later", &world.content(&scratch, "disk0.1"), &frozen);
    world.stop();

    /// Chunks of 8 sectors: header, area and that many exceptions, in a store for 1025 chunks.
    fn status(next: u64) -> String {
        // 1025 chunks need 5 areas and the header.
        format!("0 {SECTORS} snapshot {}/{} 16", next * 8, (1025 + 5 + 1) * 8)
    }
}

/// Files that begin with zeroes but have other content: they are not stores, and are not made into
/// any.
#[test]
fn what_is_no_store_is_not_overwritten() {
    let scratch = scratch();
    let base = golden(&scratch);
    let image = |name: &str, at: usize| {
        let mut image = vec![0; 1 << 20];
        image[at] = 0x53;
        scratch.file(name, &image).unwrap();
        (name.to_owned(), at, image)
    };
    let (btrfs, end) = (image("btrfs.img", (64 << 10) + 64), image("end.img", (128 << 10) - 1));
    let images = [image("fs.img", 1080), image("mbr.img", 446), btrfs, end];
    let refusal = |name: &str, at| format!("{name} begins with zeroes but holds data at byte {at}");
    for (name, at, _) in &images {
        let said = does_not_start(&plain(&scratch, &base).arg("--overlay").arg(name));
        assert!(said.contains(&refusal(name, at)), "{said}");
    }
    let mut world = World::start(&overlay(&scratch, &base));
    for (name, at, bytes_of) in &images {
        let mut existing = sync(name);
        existing["mode"] = json!("existing");
        let said = world.refused("blockdev-snapshot-sync", existing);
        assert!(said.contains(&refusal(name, at)), "{said}");
        assert!(bytes(&scratch.path(name)) == *bytes_of, "{name} was written");
    }
    // With the mode `existing`, a missing file is not created.
    let mut missing = sync("missing.cow");
    missing["mode"] = json!("existing");
    let said = world.refused("blockdev-snapshot-sync", missing);
    assert!(said.contains("there is no store missing.cow"), "{said}");
    world.make("other", &[format!("0 {SECTORS} zero")]);
    for kind in ["PO", "N"] {
        let create = json!({"device": "other", "name": "snap", "cow": "missing.cow",
                            "mode": "existing", "persistent": kind});
        let said = world.refused("snapshot-create", create);
        assert!(said.contains("there is no store missing.cow"), "{said}");
    }
    assert!(!scratch.path("missing.cow").exists());
    // A file with zeroes in all places where a file system would be is one.
    let (zero, _, _) = image("zero.img", 128 << 10);
    let mut existing = sync(&zero);
    existing["mode"] = json!("existing");
    world.call("blockdev-snapshot-sync", existing);
    world.stop();
}

#[test]
fn layers_under_load_are_each_of_one_moment() {
    layers_under_load(Place::Memory);
}

#[test]
fn layers_under_load_are_each_of_one_moment_on_disk() {
    layers_under_load(Place::Disk);
}

fn layers_under_load(place: Place) {
    let scratch = scratch_on(place);
    let base = golden(&scratch);
    let mut world = World::start(&overlay(&scratch, &base));
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let mut moments = Vec::new();
    let mut sealed = Vec::new();
    let history = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        for layer in 1..=3 {
            clock.wait_for(200);
            let from = clock.tick();
            world.call("blockdev-snapshot-sync", sync(&format!("{layer}.cow")));
            moments.push((format!("disk0.{layer}"), from, clock.tick()));
            let below = if layer == 1 { "store.cow".into() } else { format!("{}.cow", layer - 1) };
            sealed.push((scratch.path(&below), bytes(&scratch.path(&below))));
        }
        clock.wait_for(200);
        let early = world.content(&scratch, "disk0.2");
        clock.wait_for(100);
        clock.end();
        let history = load.join().expect("the load does not panic");
        history.assert_is_a_moment(&early, moments[1].1, moments[1].2);
        history
    });
    let last = history.last_content();
    assert_same("disk0", &world.disk().read_all().unwrap(), &last);
    let check = |world: &mut World| {
        for (name, from, to) in &moments {
            history.assert_is_a_moment(&world.content(&scratch, name), *from, *to);
        }
        for (path, held) in &sealed {
            assert!(bytes(path) == *held, "{} was written after it was sealed", path.display());
        }
        assert_same("disk0", &world.disk().read_all().unwrap(), &last);
    };
    check(&mut world);
    world.kill();
    let mut world = World::start(&overlay(&scratch, &base));
    check(&mut world);
    world.stop();
    assert!(bytes(&base) == stamped(0, SECTORS, 1), "the golden image was written");
}

#[test]
fn scenario_72_killed_right_after_the_command_and_started_with_the_first_arguments() {
    let scratch = scratch();
    let base = golden(&scratch);
    let mut wanted = stamped(0, SECTORS, 1);
    let mut tables = Vec::new();
    for layer in 1..=3u32 {
        let mut world = World::start(&overlay(&scratch, &base));
        if layer > 1 {
            assert_eq!(world.tables(), tables, "as it was left");
        }
        let mut disk = world.disk();
        let first = u64::from(layer) * 20;
        disk.write(first * 512, &stamped(first, 31, layer + 1)).unwrap();
        wanted[first as usize * 512..][..31 * 512].copy_from_slice(&stamped(first, 31, layer + 1));
        world.call("blockdev-snapshot-sync", sync(&format!("{layer}.cow")));
        tables = world.tables();
        world.kill();
        let mut world = World::start(&overlay(&scratch, &base));
        assert_eq!(world.tables(), tables);
        assert_same("disk0", &world.disk().read_all().unwrap(), &wanted);
        world.stop();
    }
    let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["disk0", "disk0.1", "disk0.2", "disk0.3"]);
}

/// Write, live snapshot, FLUSH, and the process is killed: the write is there, in the lower layer.
#[test]
fn scenario_71_a_write_before_the_snapshot_is_in_the_lower_layer() {
    let scratch = scratch();
    let base = golden(&scratch);
    let mut world = World::start(&overlay(&scratch, &base));
    let mut disk = world.disk();
    disk.write(8 * 512, &stamped(8, 16, 2)).unwrap();
    world.call("blockdev-snapshot-sync", sync("one.cow"));
    disk.flush().unwrap();
    world.kill();
    // The killed process's owed file does not help: it is removed.
    for store in ["store.cow", "one.cow"] {
        let _ = fs::remove_file(scratch.path(&format!("{store}.owed")));
    }
    let mut world = World::start(&overlay(&scratch, &base));
    let mut wanted = stamped(0, SECTORS, 1);
    wanted[8 * 512..24 * 512].copy_from_slice(&stamped(8, 16, 2));
    assert_same("disk0.1", &world.content(&scratch, "disk0.1"), &wanted);
    assert_same("disk0", &world.disk().read_all().unwrap(), &wanted);
    world.stop();
}

/// A plain disk becomes the frozen base of a chain.
#[test]
fn an_overlay_on_a_plain_disk_freezes_its_file() {
    let scratch = scratch();
    let file = golden(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut disk = world.disk();
    disk.write(0, &stamped(0, 8, 2)).unwrap();
    world.call("blockdev-snapshot-sync", sync("one.cow"));
    let frozen = bytes(&file);
    disk.write(0, &stamped(0, 80, 3)).unwrap();
    disk.flush().unwrap();
    assert!(bytes(&file) == frozen, "the file below was written");
    let mut wanted = stamped(0, SECTORS, 1);
    wanted[..80 * 512].copy_from_slice(&stamped(0, 80, 3));
    assert_same("disk0", &disk.read_all().unwrap(), &wanted);
    world.kill();
    let mut world = World::start(&plain(&scratch, &file));
    assert_same("disk0 later", &world.disk().read_all().unwrap(), &wanted);
    assert_same("disk0.1", &world.content(&scratch, "disk0.1"), &frozen);
    world.stop();
}

#[test]
fn a_base_is_known_from_its_first_moment() {
    let scratch = scratch();
    let file = golden(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.call("blockdev-snapshot-sync", sync("one.cow"));
    world.kill();
    fs::write(&file, stamped(0, SECTORS, 3)).unwrap();
    let said = does_not_start(&plain(&scratch, &file));
    assert!(said.contains("golden.raw changed"), "{said}");
}

#[test]
fn what_cannot_be_stacked_is_refused_and_nothing_has_changed() {
    let scratch = scratch();
    let base = golden(&scratch);
    let mut world = World::start(&overlay(&scratch, &base));
    let mut disk = world.disk();
    scratch.file("full.cow", b"something").unwrap();
    let tables = world.tables();
    let said = world.refused("blockdev-snapshot-sync", sync("full.cow"));
    assert!(said.contains("full.cow is there and not empty"), "{said}");
    let mut named = sync("new.cow");
    named["snapshot-node-name"] = json!("disk0");
    let said = world.refused("blockdev-snapshot-sync", named.clone());
    assert!(said.contains("'disk0' already"), "{said}");
    named["snapshot-node-name"] = json!("a b");
    world.refused("blockdev-snapshot-sync", named.clone());
    let said = world
        .refused("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "new.cow"}));
    assert!(said.contains("'blockdev-snapshot-sync'"), "{said}");
    assert!(!scratch.path("new.cow").exists());
    assert_eq!(world.tables(), tables);
    disk.write(0, &stamped(0, 8, 2)).unwrap();

    named["snapshot-node-name"] = json!("before-upgrade");
    world.call("blockdev-snapshot-sync", named);
    assert_eq!(
        world.table("disk0"),
        [format!("0 {SECTORS} snapshot before-upgrade ./new.cow PO 8")]
    );
    // A frozen layer has no writable exports.
    let socket = scratch.socket("frozen.sock");
    let writable = export_args("frozen", "before-upgrade", &socket, true);
    let said = world.refused("block-export-add", writable);
    assert!(said.contains("'before-upgrade' is read-only"), "{said}");
    let socket = world.export(&scratch, "before-upgrade", false);
    let mut frozen = crate::common::disk(&socket);
    assert!(frozen.info().read_only);
    assert!(frozen.write(0, &[0; 512]).is_err_and(|error| error.is_refused()));
    drop(frozen);
    let said = world.refused("device-remove", json!({"name": "before-upgrade"}));
    assert!(said.contains("in use"), "{said}");
    world.stop();

    // An origin has snapshots or layers.
    let scratch = crate::common::scratch();
    let mut world = World::start(&plain(&scratch, &golden(&scratch)));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    let said = world.refused("blockdev-snapshot-sync", sync("new.cow"));
    assert!(said.contains("'snapshot-create'"), "{said}");
    assert!(!scratch.path("new.cow").exists());
    world.stop();
}

#[test]
fn a_disk_whose_last_snapshot_was_deleted_takes_an_overlay() {
    let scratch = scratch();
    let base = golden(&scratch);
    let mut world = World::start(&plain(&scratch, &base));
    let create = |name: &str| json!({"device": "disk0", "name": name, "cow": format!("{name}.cow"), "size": 1 << 20});
    for name in ["a", "b"] {
        world.call("snapshot-create", create(name));
    }
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    for name in ["a", "b"] {
        world.refused("blockdev-snapshot-sync", sync("new.cow"));
        world.call("snapshot-delete", json!({"device": "disk0", "snapshot": name}));
    }
    world.call("blockdev-snapshot-sync", sync("new.cow"));
    let tables = |world: &mut World| {
        let table = |name: &str, line: &str| (name.to_owned(), vec![format!("0 {SECTORS} {line}")]);
        let real = format!("linear {} 0", word(&base));
        assert_eq!(
            world.tables(),
            [
                table("disk0", "snapshot disk0.1 ./new.cow PO 8"),
                table("disk0-real", &real),
                table("disk0.1", "linear disk0-real 0"),
            ]
        );
    };
    tables(&mut world);
    let mut below = stamped(0, SECTORS, 1);
    below[..4096].copy_from_slice(&stamped(0, 8, 2));
    world.disk().write(4096, &stamped(8, 8, 3)).unwrap();
    let mut top = below.clone();
    top[4096..8192].copy_from_slice(&stamped(8, 8, 3));
    for kill in [true, false] {
        assert_same("disk0", &world.disk().read_all().unwrap(), &top);
        assert_same("disk0.1", &world.content(&scratch, "disk0.1"), &below);
        if kill {
            world.kill();
            world = World::start(&plain(&scratch, &base));
            tables(&mut world);
        }
    }
    // Back into the disk, which has a snapshot again.
    world.call("block-commit", json!({"device": "disk0", "job-id": "j"}));
    world.event("BLOCK_JOB_READY");
    world.call("job-complete", json!({"id": "j"}));
    world.event("BLOCK_JOB_COMPLETED");
    assert_same("committed", &world.disk().read_all().unwrap(), &top);
    world.call("snapshot-create", create("c"));
    world.disk().write(0, &stamped(0, 8, 4)).unwrap();
    assert_same("c", &world.content(&scratch, "c"), &top);
    world.stop();
}

/// `full` is one size, whoever makes the store: a header, the chunks, an area for each 256 of them, and
/// the next area.
#[test]
fn a_store_for_every_chunk_has_one_size_whoever_makes_it() {
    let scratch = scratch();
    let base = golden(&scratch);
    let chunks = SECTORS.div_ceil(8);
    let full = (1 + chunks + chunks / 256 + 1) * 4096;
    let size = |name: &str| std::fs::metadata(scratch.path(name)).unwrap().len();
    let mut create = Command::new(find_snapblk().unwrap());
    create.arg("create").arg(scratch.path("store.cow")).arg("--origin").arg(&base);
    assert!(output(&mut create).unwrap().status.success());
    assert_eq!(size("store.cow"), full, "snapblk create");
    std::fs::remove_file(scratch.path("store.cow")).unwrap();
    let mut world = World::start(&overlay(&scratch, &base));
    assert_eq!(size("store.cow"), full, "serve --overlay");
    world.call("blockdev-snapshot-sync", sync("layer.cow"));
    assert_eq!(size("layer.cow"), full, "blockdev-snapshot-sync");
    world.stop();

    let other = crate::common::scratch();
    let mut world = World::start(&plain(&other, &golden(&other)));
    for kind in ["P", "N"] {
        let cow = format!("{kind}.cow");
        let args = json!({"device": "disk0", "name": kind, "cow": cow, "persistent": kind});
        world.call("snapshot-create", args);
        assert_eq!(std::fs::metadata(other.path(&cow)).unwrap().len(), full, "{kind}");
    }
    world.stop();
}
