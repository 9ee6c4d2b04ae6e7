//! Discards of a snapshot that are passed down to its origin (`discard_passdown_origin`).

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::common::*;

const SECTORS: u64 = 2048;
const FEATURES: &str = "2 discard_zeroes_cow discard_passdown_origin";

fn line(origin: &Path, store: &Path, features: &str) -> String {
    let line = format!("0 {SECTORS} snapshot {} {} P 8 {features}", word(origin), word(store));
    line.trim_end().to_owned()
}

#[test]
fn what_a_snapshot_discards_is_discarded_of_its_origin_past_all_exceptions() {
    let scratch = scratch();
    let origin = scratch.file("origin.raw", &stamped(0, SECTORS, 1)).unwrap();
    scratch.file("snap.cow", &[0; 1 << 21]).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    let store = scratch.path("snap.cow");
    world.make("snap", &[line(&origin, &store, FEATURES)]);
    let socket = world.export(&scratch, "snap", true);
    let mut snap = disk(&socket);
    // The second of three chunks is the snapshot's own.
    snap.write(4096, &stamped(8, 8, 2)).unwrap();
    snap.discard(0, 3 * 4096).unwrap();
    snap.flush().unwrap();
    let below = fs::read(&origin).unwrap();
    assert_eq!(below[..3 * 4096], [0; 3 * 4096], "the origin has it still");
    assert_eq!(below[3 * 4096..], stamped(0, SECTORS, 1)[3 * 4096..], "more than was discarded");
    let mut expected = stamped(0, SECTORS, 1);
    expected[..3 * 4096].fill(0);
    assert_same("snap", &world.content(&scratch, "snap"), &expected);
    drop(snap);
    world.stop();
}

/// The device below answers them by its own line.
#[test]
fn what_a_device_over_a_snapshot_discards_is_discarded_as_by_the_snapshot() {
    for passes_down in [false, true] {
        let scratch = scratch();
        let origin = scratch.file("origin.raw", &stamped(0, SECTORS, 1)).unwrap();
        scratch.file("snap.cow", &[0; 1 << 21]).unwrap();
        let mut world = World::start(&monitor_only(&scratch));
        let features = if passes_down { FEATURES } else { "1 discard_zeroes_cow" };
        world.make("snap", &[line(&origin, &scratch.path("snap.cow"), features)]);
        world.make("over", &[format!("0 {SECTORS} linear snap 0")]);
        let socket = world.export(&scratch, "over", true);
        let mut over = disk(&socket);
        over.write(4096, &stamped(8, 8, 2)).unwrap();
        over.discard(0, 2 * 4096).unwrap();
        over.flush().unwrap();
        let mut expected = stamped(0, SECTORS, 1);
        expected[4096..2 * 4096].fill(0);
        if passes_down {
            expected[..4096].fill(0);
        }
        assert_same("over", &over.read_all().unwrap(), &expected);
        drop(over);
        world.stop();
    }
}

#[test]
fn a_snapshot_that_passes_discards_down_is_the_only_one_of_an_origin_that_can_be_written() {
    let scratch = scratch();
    let origin = scratch.file("origin.raw", &stamped(0, SECTORS, 1)).unwrap();
    for store in ["a.cow", "b.cow"] {
        scratch.file(store, &[0; 1 << 21]).unwrap();
    }
    let line = |store: &str, features| line(&origin, &scratch.path(store), features);
    let mut world = World::start(&monitor_only(&scratch));
    let refused = |world: &mut World, name: &str, table: &[String]| {
        world.call("device-create", json!({"name": name}));
        world.call("table-load", json!({"name": name, "table": table}));
        let said = world.refused("device-resume", json!({"name": name}));
        world.call("device-remove", json!({"name": name}));
        said
    };
    // Among the lines of one table.
    let second = line("b.cow", "").replacen("0 ", &format!("{SECTORS} "), 1);
    let said = refused(&mut world, "both", &[line("a.cow", FEATURES), second]);
    assert!(said.contains("two snapshots of an origin"), "{said}");
    for (first, other) in [(FEATURES, ""), ("", FEATURES), (FEATURES, FEATURES)] {
        world.make("a", &[line("a.cow", first)]);
        let said = refused(&mut world, "b", &[line("b.cow", other)]);
        assert!(said.contains("two snapshots of an origin, the other in 'a'"), "{said}");
        world.call("device-remove", json!({"name": "a"}));
        world.make("b", &[line("b.cow", other)]);
        world.call("device-remove", json!({"name": "b"}));
    }
    // On a device that is read-only.
    let linear = format!("0 {SECTORS} linear {} 0", word(&origin));
    world.call("device-create", json!({"name": "ro"}));
    world.call("table-load", json!({"name": "ro", "table": [linear], "read-only": true}));
    world.call("device-resume", json!({"name": "ro"}));
    let said = refused(&mut world, "snap", &[line("a.cow", FEATURES).replace(word(&origin), "ro")]);
    assert!(said.contains("read-only") && said.contains("leave the feature out"), "{said}");
    world.stop();
}
