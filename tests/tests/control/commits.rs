//! `block-commit`: layers of a chain are committed into lower ones, live, as jobs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use snapblk_tests::client::Connect;
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, ServerCommand};

mod halted;
mod layer;

use crate::common::*;
use crate::history::{Clock, History};

/// Not a multiple of a chunk.
const SECTORS: u64 = 8192 + 3;
/// Sectors that each layer of a chain writes at a time.
const RUN: u64 = 37;

fn disk_file(scratch: &Scratch) -> PathBuf {
    scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap()
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The expected content of a disk.
#[derive(Clone)]
struct Image(Vec<u8>);

impl Image {
    fn first() -> Image {
        Image(stamped(0, SECTORS, 1))
    }

    /// Writes a few runs of `generation`, some of which share chunks with others; the last one is
    /// at the end.
    fn write(&mut self, world: &World, generation: u32) {
        let mut disk = world.disk();
        let places = (0..40u64).map(|n| (n * 97 + u64::from(generation) * 61) % (SECTORS - RUN));
        for first in places.chain([SECTORS - RUN]) {
            let run = stamped(first, RUN, generation);
            disk.write(first * 512, &run).unwrap();
            self.0[first as usize * 512..][..run.len()].copy_from_slice(&run);
        }
    }
}

/// A chain of `layers` stores on a plain file: `disk0` over `disk0.<layers>` … `disk0.2` over
/// `disk0.1`, which is the file. Returns the content of each of them, from the file up.
fn chain(scratch: &Scratch, world: &mut World, layers: u32) -> Vec<Image> {
    let mut images = vec![Image::first()];
    for layer in 1..=layers {
        let cow = scratch.path(&format!("{layer}.cow"));
        world.call("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": cow}));
        let mut image = images.last().expect("the file's").clone();
        image.write(world, layer + 1);
        images.push(image);
    }
    images
}

fn commit(world: &mut World, arguments: Value) {
    let mut all = json!({"device": "disk0", "job-id": "c"});
    let (all_of, more) = (all.as_object_mut().unwrap(), arguments);
    all_of.extend(more.as_object().unwrap().clone());
    world.call("block-commit", all);
}

fn completed(world: &mut World) {
    let event = world.event("BLOCK_JOB_COMPLETED");
    assert_eq!(event["data"]["error"], Value::Null, "{event}");
    assert_eq!(event["data"]["type"], "commit");
    assert_eq!(event["data"]["offset"], event["data"]["len"]);
}

fn names(world: &mut World) -> Vec<String> {
    world.tables().into_iter().map(|(name, _)| name).collect()
}

fn is_disk0(world: &World, image: &Image) {
    assert_same("disk0", &world.disk().read_all().unwrap(), &image.0);
}

#[test]
fn the_top_layers_go_into_the_file() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut images = chain(&scratch, &mut world, 3);
    commit(&mut world, json!({"top-node": "disk0.3"}));
    completed(&mut world);
    assert_eq!(names(&mut world), ["disk0", "disk0.1"]);
    let store = word(&scratch.path("3.cow")).to_owned();
    assert_eq!(world.table("disk0"), [format!("0 {SECTORS} snapshot disk0.1 {store} PO 8")]);
    is_disk0(&world, &images[3]);
    assert_same("disk0.1", &world.content(&scratch, "disk0.1"), &images[2].0);
    images[3].write(&world, 9);
    is_disk0(&world, &images[3]);
    world.stop();
    assert_same("the file", &bytes(&file), &images[2].0);
    let world = World::start(&plain(&scratch, &file));
    is_disk0(&world, &images[3]);
    world.stop();
}

#[test]
fn layers_in_the_middle_go_into_the_layer_below_them() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut images = chain(&scratch, &mut world, 6);
    // The stores 1 to 5 are those of disk0.2 to disk0.6; 3 and 4 are committed into 2.
    assert_same("disk0.3", &world.content(&scratch, "disk0.3"), &images[2].0);
    commit(&mut world, json!({"top-node": "disk0.5", "base-node": "disk0.3"}));
    completed(&mut world);
    let left = ["disk0", "disk0.1", "disk0.2", "disk0.3", "disk0.6"];
    let check = |world: &mut World, images: &[Image]| {
        assert_eq!(names(world), left);
        is_disk0(world, &images[6]);
        for (name, image) in [("disk0.6", 5), ("disk0.3", 4), ("disk0.2", 1), ("disk0.1", 0)] {
            assert_same(name, &world.content(&scratch, name), &images[image].0);
        }
    };
    check(&mut world, &images);
    let store = word(&scratch.path("5.cow")).to_owned();
    assert_eq!(world.table("disk0.6"), [format!("0 {SECTORS} snapshot disk0.3 {store} PO 8")]);
    images[6].write(&world, 11);
    check(&mut world, &images);
    world.kill();
    let mut world = World::start(&plain(&scratch, &file));
    check(&mut world, &images);
    // Again, after the restart: all the rest into the file.
    commit(&mut world, json!({"top-node": "disk0.6"}));
    completed(&mut world);
    assert_eq!(names(&mut world), ["disk0", "disk0.1"]);
    is_disk0(&world, &images[6]);
    world.stop();
    assert_same("the file", &bytes(&file), &images[5].0);
}

#[test]
fn scenario_39_the_whole_chain_goes_and_the_disk_is_its_file_again() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut images = chain(&scratch, &mut world, 3);
    commit(&mut world, json!({}));
    let event = world.event("BLOCK_JOB_READY");
    assert_eq!(event["data"]["device"], "c");
    assert_eq!(names(&mut world), ["disk0", "disk0.1"]);
    is_disk0(&world, &images[3]);
    images[3].write(&world, 7);
    assert_eq!(world.call("query-jobs", json!({}))[0]["status"], "ready");
    world.call("job-complete", json!({"id": "c"}));
    images[3].write(&world, 8);
    completed(&mut world);
    assert_eq!(
        world.tables(),
        [("disk0".to_owned(), vec![format!("0 {SECTORS} linear {} 0", word(&file))])]
    );
    images[3].write(&world, 9);
    is_disk0(&world, &images[3]);
    world.stop();
    assert_same("the file", &bytes(&file), &images[3].0);
    let world = World::start(&plain(&scratch, &file));
    is_disk0(&world, &images[3]);
    world.stop();
}

#[test]
fn a_ready_commit_that_is_cancelled_leaves_the_chain() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let mut images = chain(&scratch, &mut world, 1);
    commit(&mut world, json!({}));
    world.event("BLOCK_JOB_READY");
    world.call("job-cancel", json!({"id": "c"}));
    world.event("BLOCK_JOB_CANCELLED");
    assert_eq!(names(&mut world), ["disk0", "disk0.1"]);
    images[1].write(&world, 9);
    is_disk0(&world, &images[1]);
    assert_same("disk0.1", &world.content(&scratch, "disk0.1"), &images[0].0);
    // A pending job, too; its layers are free again, and it can be started again.
    let cow = scratch.path("two.cow");
    world.call("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": cow}));
    commit(&mut world, json!({"top-node": "disk0.2", "auto-finalize": false}));
    world.event("BLOCK_JOB_PENDING");
    assert_eq!(names(&mut world), ["disk0", "disk0.1", "disk0.2"]);
    world.call("job-cancel", json!({"id": "c"}));
    commit(&mut world, json!({"top-node": "disk0.2", "auto-finalize": false}));
    world.event("BLOCK_JOB_PENDING");
    world.call("job-finalize", json!({"id": "c"}));
    completed(&mut world);
    assert_eq!(names(&mut world), ["disk0", "disk0.1"]);
    is_disk0(&world, &images[1]);
    world.stop();
    assert_same("the file", &bytes(&file), &images[1].0);
}

/// Scenario 40 for chains: concurrent writes are there, and all else is unchanged.
#[test]
fn scenario_40_commits_under_load() {
    under_load(Place::Memory);
}

#[test]
fn scenario_40_commits_under_load_on_disk() {
    under_load(Place::Disk);
}

fn under_load(place: Place) {
    let scratch = scratch_on(place);
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let sync = |name: &str| {
        let cow = scratch.path(name);
        json!({"device": "disk0", "snapshot-file": cow})
    };
    let history = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        for store in ["1.cow", "2.cow", "3.cow", "4.cow", "5.cow"] {
            world.call("blockdev-snapshot-sync", sync(store));
            clock.wait_for(60);
        }
        let speed = 8 << 20;
        commit(&mut world, json!({"top-node": "disk0.4", "base-node": "disk0.3", "speed": speed}));
        completed(&mut world);
        clock.wait_for(20);
        commit(&mut world, json!({"top-node": "disk0.5", "speed": speed}));
        completed(&mut world);
        clock.wait_for(20);
        commit(&mut world, json!({"speed": speed}));
        world.event("BLOCK_JOB_READY");
        clock.wait_for(20);
        world.call("job-complete", json!({"id": "c"}));
        completed(&mut world);
        clock.wait_for(20);
        clock.end();
        load.join().expect("the load does not panic")
    });
    assert_eq!(names(&mut world), ["disk0"]);
    assert_same("disk0", &world.disk().read_all().unwrap(), &history.last_content());
    world.stop();
    assert_same("the file", &bytes(&file), &history.last_content());
}

fn job(world: &mut World) -> Value {
    world.call("query-jobs", json!({}))[0].clone()
}

/// Waits until the job has made progress, but not ended.
fn in_the_middle(world: &mut World) {
    while job(world)["current-progress"] == 0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(job(world)["status"], "running", "it ended before it was looked at");
}

/// Waits until the chain consists of these devices, as at the end of a job that a new process
/// continued: the event may have come before this client connected.
fn becomes(world: &mut World, chain: &[&str]) {
    let begin = std::time::Instant::now();
    while names(world) != chain {
        assert!(begin.elapsed().as_secs() < 60, "the job does not end: {:?}", names(world));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Waits until the job is ready, possibly since before this client connected.
fn is_ready(world: &mut World) {
    while job(world)["status"] != "ready" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Hundreds of layers: they are created, read, opened again and committed.
#[test]
fn a_chain_of_300_layers_is_read_opened_again_and_committed() {
    const LAYERS: u64 = 300;
    let scratch = scratch();
    let file = disk_file(&scratch);
    let command = plain(&scratch, &file);
    let mut world = World::start(&command);
    let mut image = Image::first();
    let mut disk = world.disk();
    for layer in 0..LAYERS {
        let cow = scratch.path(&format!("{layer}.cow"));
        world.call("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": cow}));
        // Each has its own chunk, and a part of one that the layer before has.
        let first = layer * 24;
        let run = stamped(first, 30, layer as u32 + 2);
        disk.write(first * 512, &run).unwrap();
        image.0[first as usize * 512..][..run.len()].copy_from_slice(&run);
    }
    drop(disk);
    is_disk0(&world, &image);
    world.kill();
    let mut world = World::start(&command);
    is_disk0(&world, &image);
    assert_eq!(world.tables().len() as u64, LAYERS + 1);
    commit(&mut world, json!({"top-node": "disk0.200", "base-node": "disk0.100"}));
    completed(&mut world);
    is_disk0(&world, &image);
    commit(&mut world, json!({}));
    is_ready(&mut world);
    world.call("job-complete", json!({"id": "c"}));
    completed(&mut world);
    assert_eq!(names(&mut world), ["disk0"]);
    is_disk0(&world, &image);
    world.stop();
    assert_same("the file", &bytes(&file), &image.0);
}

/// Killed during a commit into a file, and again during the merge of the active layer; started with
/// the first arguments.
#[test]
fn scenario_37_killed_in_mid_commit_it_goes_on() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let command = plain(&scratch, &file);
    let mut world = World::start(&command);
    let mut images = chain(&scratch, &mut world, 3);
    // A commit copies a few hundred KiB.
    commit(&mut world, json!({"speed": 512 << 10}));
    in_the_middle(&mut world);
    images[3].write(&world, 9);
    let tables = world.tables();
    world.kill();
    let mut world = World::start(&command);
    assert_eq!(world.tables(), tables);
    is_disk0(&world, &images[3]);
    is_ready(&mut world);
    world.kill();
    let mut world = World::start(&command);
    is_ready(&mut world);
    world.call("job-complete", json!({"id": "c"}));
    images[3].write(&world, 10);
    assert!(world.table("disk0")[0].contains("snapshot-merge"), "{:?}", world.tables());
    world.kill();
    let mut world = World::start(&command);
    // The rest of the merge belongs to this job only.
    let jobs = world.call("query-jobs", json!({}));
    assert!(jobs.as_array().unwrap().iter().all(|job| job["id"] == "c"), "{jobs}");
    is_disk0(&world, &images[3]);
    becomes(&mut world, &["disk0"]);
    is_disk0(&world, &images[3]);
    world.stop();
    assert_same("the file", &bytes(&file), &images[3].0);
}

#[test]
fn scenario_37_killed_in_mid_commit_into_a_layer_it_goes_on() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let command = plain(&scratch, &file);
    let mut world = World::start(&command);
    let mut images = chain(&scratch, &mut world, 4);
    let arguments = json!({"top-node": "disk0.4", "base-node": "disk0.2", "speed": 256 << 10});
    commit(&mut world, arguments);
    in_the_middle(&mut world);
    images[4].write(&world, 9);
    world.kill();
    let mut world = World::start(&command);
    is_disk0(&world, &images[4]);
    becomes(&mut world, &["disk0", "disk0.1", "disk0.2"]);
    is_disk0(&world, &images[4]);
    assert_same("disk0.2", &world.content(&scratch, "disk0.2"), &images[3].0);
    assert_same("the file", &bytes(&file), &images[0].0);
    world.kill();
    let world = World::start(&command);
    is_disk0(&world, &images[4]);
    world.stop();
}

/// The arguments export what the commit writes: a client removed that export before the commit began.
#[test]
fn a_commit_into_a_disk_of_the_arguments_does_not_keep_the_server_from_starting() {
    let scratch = scratch();
    let (file, socket) = (disk_file(&scratch), scratch.socket("raw.sock"));
    let command = monitor_only(&scratch).arg("--force").arg("--name").arg("raw").arg("--blk-file");
    let command = command.arg(&file).arg("--read-only").arg("--socket-path").arg(&socket);
    let mut world = World::start(&command);
    world.make("golden", &[format!("0 {SECTORS} linear raw 0")]);
    let store = scratch.file("vm.cow", &vec![0; 8 << 20]).unwrap();
    world.make("vm", &[format!("0 {SECTORS} snapshot golden {} PO 8", word(&store))]);
    let vm = world.export(&scratch, "vm", true);
    let written = stamped(0, 64, 2);
    disk(&vm).write(0, &written).unwrap();
    world.call("block-export-del", json!({"id": "raw", "mode": "hard"}));
    let arguments = json!({"device": "vm", "job-id": "c"});
    world.call("block-commit", arguments);
    for _ in 0..2 {
        is_ready(&mut world);
        world.kill();
        world = World::start(&command);
        assert_eq!(world.call("query-block-exports", json!({})), json!([]));
    }
    let vm = world.export(&scratch, "vm", true);
    assert_same("vm", &disk(&vm).read(0, written.len()).unwrap(), &written);
    is_ready(&mut world);
    world.call("job-cancel", json!({"id": "c"}));
    while world.call("query-jobs", json!({})) != json!([]) {
        world.event("JOB_STATUS_CHANGE");
    }
    world.stop();
    let world = World::start(&command);
    let below = Image::first().0[..written.len()].to_vec();
    assert_same("raw", &disk(&socket).read(0, written.len()).unwrap(), &below);
    world.stop();
}

#[test]
fn a_commit_is_paused_and_goes_on() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let command = plain(&scratch, &file);
    let mut world = World::start(&command);
    let images = chain(&scratch, &mut world, 2);
    commit(&mut world, json!({"top-node": "disk0.2", "speed": 128 << 10}));
    in_the_middle(&mut world);
    world.call("job-pause", json!({"id": "c"}));
    while job(&mut world)["status"] != "paused" {
        world.event("JOB_STATUS_CHANGE");
    }
    let at = job(&mut world)["current-progress"].clone();
    // Several of the intervals in which its speed is applied.
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert_eq!(job(&mut world)["current-progress"], at);
    // A suspend of the disk does not wait for it.
    world.call("device-suspend", json!({"name": "disk0"}));
    world.call("device-resume", json!({"name": "disk0"}));
    // It is paused, as the user left it, and continues when allowed.
    world.kill();
    let mut world = World::start(&command);
    assert_eq!(job(&mut world)["status"], "paused");
    world.call("job-resume", json!({"id": "c"}));
    completed(&mut world);
    is_disk0(&world, &images[2]);
    world.stop();
    assert_same("the file", &bytes(&file), &images[1].0);
}

#[test]
fn what_cannot_be_committed_is_refused_and_nothing_has_changed() {
    let scratch = scratch();
    let file = disk_file(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    let said = world.refused("block-commit", json!({"device": "disk0"}));
    assert!(said.contains("'disk0' is not an overlay"), "{said}");
    let images = chain(&scratch, &mut world, 3);
    let tables = world.tables();
    let with = |more: Value| {
        let mut all = json!({"device": "disk0"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let cow = scratch.path("3.cow");
    for (arguments, why) in [
        (json!({"top-node": "other"}), "'other' is not a layer of the chain of 'disk0'"),
        (json!({"base-node": "other"}), "'other' is not a layer"),
        (json!({"top-node": "disk0.1"}), "'disk0.1' is not a layer"),
        (
            json!({"top-node": "other"}),
            "it has 'disk0', 'disk0.3', 'disk0.2' on the device 'disk0.1'",
        ),
        (json!({"base-node": cow}), "is the store of 'disk0': give that name"),
        (json!({"top-node": "disk0.2", "base-node": "disk0.3"}), "'disk0.3' is not below"),
        (json!({"top-node": "disk0.2", "base-node": "disk0.2"}), "'disk0.2' is not below"),
        (json!({"job-id": "1"}), "Invalid job ID"),
    ] {
        let said = world.refused("block-commit", with(arguments));
        assert!(said.contains(why), "{said}");
    }
    world.export(&scratch, "disk0.2", false);
    let said = world.refused("block-commit", with(json!({"top-node": "disk0.3"})));
    assert!(said.contains("'disk0.2' is in use by the export 'disk0.2'"), "{said}");
    world.call("block-export-del", json!({"id": "disk0.2", "mode": "hard"}));
    world.make("other", &[format!("0 {SECTORS} linear disk0.2 0")]);
    let said = world.refused("block-commit", with(json!({"top-node": "disk0.3"})));
    assert!(said.contains("'disk0.2' is in use by the device 'other'"), "{said}");
    world.call("device-remove", json!({"name": "other"}));
    assert_eq!(world.tables(), tables);

    // While one runs, no other may use its part of the chain.
    commit(&mut world, json!({"top-node": "disk0.3", "auto-finalize": false}));
    world.event("BLOCK_JOB_PENDING");
    let said = world.refused("block-commit", with(json!({"job-id": "d"})));
    assert!(said.contains("in use by the job 'c'"), "{said}");
    let cow = scratch.path("new.cow");
    let sync = json!({"device": "disk0", "snapshot-file": cow});
    let said = world.refused("blockdev-snapshot-sync", sync);
    assert!(said.contains("in use by the job 'c'"), "{said}");
    assert!(!cow.exists());
    let socket = scratch.socket("refused.sock");
    let said = world.refused("block-export-add", export_args("e", "disk0.3", &socket, false));
    assert!(said.contains("'disk0.3' is in use by the job 'c'"), "{said}");
    let line = format!("0 {SECTORS} linear {} 0", word(&file));
    world.call("device-create", json!({"name": "thief"}));
    world.call("table-load", json!({"name": "thief", "table": [line]}));
    let said = world.refused("device-resume", json!({"name": "thief"}));
    assert!(said.contains("disk.raw' is in use by the job 'c'"), "{said}");
    world.call("device-remove", json!({"name": "thief"}));
    world.call("job-cancel", json!({"id": "c"}));
    assert_eq!(world.tables(), tables);
    is_disk0(&world, &images[3]);
    world.stop();
}

#[test]
fn scenario_77_a_base_that_another_process_has_open_is_refused_by_name() {
    let shared = scratch();
    let base = shared.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let (one, two) = (scratch(), scratch());
    let forced = |scratch: &Scratch| -> ServerCommand { overlay(scratch, &base).arg("--force") };
    let mut first = World::start(&forced(&one));
    let second = World::start(&overlay(&two, &base));
    let mut image = Image::first();
    image.write(&first, 2);
    let said = first.refused("block-commit", json!({"device": "disk0"}));
    assert!(said.contains("golden.raw is in use"), "{said}");
    is_disk0(&first, &image);
    is_disk0(&second, &Image::first());
    second.stop();
    assert!(bytes(&base) == stamped(0, SECTORS, 1), "the golden image was written");
    first.stop();

    // No other process has it now, but it was not given as writable.
    let mut first = World::start(&overlay(&one, &base));
    let said = first.refused("block-commit", json!({"device": "disk0", "base-node": base}));
    assert!(said.contains("is the file below all layers of 'disk0'"), "{said}");
    let said = first.refused("block-commit", json!({"device": "disk0"}));
    assert!(said.contains("golden.raw") && said.contains("snapblk serve --force"), "{said}");
    first.stop();
    let mut first = World::start(&forced(&one));
    commit(&mut first, json!({}));
    first.event("BLOCK_JOB_READY");
    // Other processes are excluded from now on.
    let said = does_not_start(&overlay(&two, &base));
    assert!(said.contains("golden.raw"), "{said}");
    first.call("job-complete", json!({"id": "c"}));
    completed(&mut first);
    is_disk0(&first, &image);
    assert_eq!(first.table("disk0"), [format!("0 {SECTORS} linear {} 0", word(&base))]);
    first.stop();
    assert_same("the image", &bytes(&base), &image.0);
}
