//! `block-commit` of the active layer into another layer's store, live.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use snapblk_tests::client::Connect;
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Scratch, ServerCommand};

use super::*;
use crate::common::*;
use crate::history::{Clock, History};

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed().as_secs() < 60, "it does not come to that: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The active layer is committed into a layer; it is so small that no overlay is needed meanwhile.
#[test]
fn scenario_39_the_active_layer_goes_into_a_layer_and_the_disk_is_that_layer() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut images = chain(&scratch, &mut world, 4);
    commit(&mut world, json!({"base-node": "disk0.3"}));
    world.event("BLOCK_JOB_READY");
    assert_eq!(names(&mut world), ["disk0", "disk0.1", "disk0.2", "disk0.3"]);
    images[4].write(&world, 7);
    is_disk0(&world, &images[4]);
    world.call("job-complete", json!({"id": "c"}));
    images[4].write(&world, 8);
    completed(&mut world);
    assert_eq!(names(&mut world), ["disk0", "disk0.1", "disk0.2"]);
    let store = word(&scratch.path("2.cow")).to_owned();
    let table = [format!("0 {SECTORS} snapshot disk0.2 {store} PO 8")];
    assert_eq!(world.table("disk0"), table);
    is_disk0(&world, &images[4]);
    images[4].write(&world, 9);
    is_disk0(&world, &images[4]);
    assert_same("disk0.2", &world.content(&scratch, "disk0.2"), &images[1].0);
    // It is written and flushed like any disk.
    world.disk().flush().unwrap();
    world.kill();
    let mut world = World::start(&plain(&scratch, &file));
    assert_eq!(world.table("disk0"), table);
    is_disk0(&world, &images[4]);
    commit(&mut world, json!({"base-node": "disk0.2"}));
    is_ready(&mut world);
    world.call("job-complete", json!({"id": "c"}));
    completed(&mut world);
    is_disk0(&world, &images[4]);
    world.stop();
    assert_same("the file", &bytes(&file), &images[0].0);
}

/// The size of a disk that is copied in several steps.
const LARGE: u64 = 24 << 20;

/// A chain of two overlays on a large file; the top has all chunks.
fn large_chain(scratch: &Scratch, command: &ServerCommand) -> (World, Vec<u8>) {
    let mut world = World::start(command);
    for layer in 1..=2 {
        let cow = scratch.path(&format!("{layer}.cow"));
        world.call("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": cow}));
    }
    let image = stamped(0, LARGE / 512, 2);
    let mut disk = world.disk();
    for (at, piece) in image.chunks(1 << 20).enumerate() {
        disk.write((at as u64) << 20, piece).unwrap();
    }
    (world, image)
}

fn large_file(scratch: &Scratch) -> PathBuf {
    scratch.file("disk.raw", &stamped(0, LARGE / 512, 1)).unwrap()
}

/// The overlays that a job has put on top.
fn overlays(scratch: &Scratch) -> Vec<String> {
    let files = std::fs::read_dir(scratch.path("")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".commit-")).collect()
}

/// Scenario 40 for the active layer: writes during its commit are there.
#[test]
fn scenario_40_the_active_layer_goes_into_a_layer_under_load() {
    let scratch = scratch();
    let file = large_file(&scratch);
    let (mut world, image) = large_chain(&scratch, &plain(&scratch, &file));
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let history = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        clock.wait_for(60);
        commit(&mut world, json!({"base-node": "disk0.2", "speed": 32 << 20}));
        world.event("BLOCK_JOB_READY");
        clock.wait_for(20);
        world.call("job-complete", json!({"id": "c"}));
        let said = world.refused("job-cancel", json!({"id": "c"}));
        assert!(said.contains("was completed"), "{said}");
        until("there is an overlay", || !overlays(&scratch).is_empty());
        clock.wait_for(40);
        completed(&mut world);
        clock.wait_for(20);
        clock.end();
        load.join().expect("the load does not panic")
    });
    assert_eq!(names(&mut world), ["disk0", "disk0.1"]);
    assert_eq!(overlays(&scratch), Vec::<String>::new());
    let expected = history.last_content_over(&image);
    assert_same("disk0", &world.disk().read_all().unwrap(), &expected);
    world.stop();
    let world = World::start(&plain(&scratch, &file));
    assert_same("disk0", &world.disk().read_all().unwrap(), &expected);
    world.stop();
    assert_same("the file", &bytes(&file), &stamped(0, LARGE / 512, 1));
}

/// Killed while the active layer is copied, with an overlay on top; the overlay grows so much that
/// another follows it.
#[test]
fn scenario_37_killed_while_the_active_layer_goes_into_a_layer_it_goes_on() {
    let scratch = scratch();
    let file = large_file(&scratch);
    let command = plain(&scratch, &file);
    let (mut world, mut image) = large_chain(&scratch, &command);
    commit(&mut world, json!({"base-node": "disk0.2", "speed": 6 << 20}));
    world.event("BLOCK_JOB_READY");
    world.call("job-complete", json!({"id": "c"}));
    for kill in 0..3u32 {
        // On a busy machine the job may have ended meanwhile, but not before the first kill.
        let ended = kill > 0 && names(&mut world) == ["disk0", "disk0.1"];
        until("there is an overlay", || ended || !overlays(&scratch).is_empty());
        // More than is copied while the guest is stopped, each time in another place.
        let (first, len) = (u64::from(kill) * 6144 + 3, 10240);
        let run = stamped(first, len, 3 + kill);
        world.disk().write(first * 512, &run).unwrap();
        image[first as usize * 512..][..run.len()].copy_from_slice(&run);
        world.kill();
        world = World::start(&command);
        assert_same("disk0", &world.disk().read_all().unwrap(), &image);
    }
    becomes(&mut world, &["disk0", "disk0.1"]);
    assert_same("disk0", &world.disk().read_all().unwrap(), &image);
    until("the job ends", || world.call("query-jobs", json!({})) == json!([]));
    assert_eq!(overlays(&scratch), Vec::<String>::new());
    let store = word(&scratch.path("1.cow")).to_owned();
    let table = [format!("0 {} snapshot disk0.1 {store} PO 8", LARGE / 512)];
    assert_eq!(world.table("disk0"), table);
    world.kill();
    let world = World::start(&command);
    assert_same("disk0", &world.disk().read_all().unwrap(), &image);
    world.stop();
    assert_same("the file", &bytes(&file), &stamped(0, LARGE / 512, 1));
}
