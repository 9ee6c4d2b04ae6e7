//! `snapshot-merge`: rollback of a live disk.

use std::os::unix::fs::FileExt;

use serde_json::{Value, json};
use snapblk_store::control::ErrorClass;
use snapblk_tests::client::Connect;
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, ServerCommand};

use crate::common::*;
use crate::history::{Clock, History};

const SECTORS: u64 = 8192 + 3;

#[test]
fn scenario_39_a_rollback_gives_the_moment_back_and_the_disk_its_table() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let mut disk = world.disk();
    let create = |name: &str| json!({"device": "disk0", "name": name, "cow": format!("{name}.cow"), "chunk-size": 16384});
    world.call("snapshot-create", create("first"));
    disk.write(0, &stamped(0, SECTORS / 2, 2)).unwrap();
    world.call("snapshot-create", create("second"));
    let mut second = stamped(0, SECTORS / 2, 2);
    second.extend(stamped(SECTORS / 2, SECTORS - SECTORS / 2, 1));
    disk.write(0, &stamped(0, SECTORS, 3)).unwrap();

    let merge = |name: &str| json!({"device": "disk0", "snapshot": name, "job-id": name});
    world.call("snapshot-merge", merge("second"));
    assert_same("from the reply on", &disk.read_all().unwrap(), &second);
    let event = world.event("MERGE_COMPLETED");
    assert_eq!(event["data"]["snapshot"], "second");
    world.event("BLOCK_JOB_COMPLETED");
    assert_eq!(world.table("disk0"), [format!("0 {SECTORS} snapshot-origin disk0-real")]);
    assert_same("rolled back", &disk.read_all().unwrap(), &second);
    assert_same("first", &world.content(&scratch, "first"), &stamped(0, SECTORS, 1));
    assert!(scratch.path("second.cow").exists(), "the store stays");
    world.call("snapshot-merge", merge("first"));
    world.event("MERGE_COMPLETED");
    world.event("BLOCK_JOB_COMPLETED");
    assert_eq!(world.table("disk0"), [format!("0 {SECTORS} linear disk0-real 0")]);
    assert_same("rolled back twice", &disk.read_all().unwrap(), &stamped(0, SECTORS, 1));
    assert_eq!(world.call("query-jobs", json!({})), json!([]));
    drop(disk);
    world.stop();
    assert_same("the file", &std::fs::read(&file).unwrap(), &stamped(0, SECTORS, 1));
    let mut world = World::start(&plain(&scratch, &file));
    assert_eq!(world.tables().len(), 2);
    // And again: a snapshot of the disk, now linear over its -real.
    world.call("snapshot-create", create("third"));
    world.disk().write(0, &stamped(0, 99, 4)).unwrap();
    assert_same("third", &world.content(&scratch, "third"), &stamped(0, SECTORS, 1));
    world.stop();
}

#[test]
fn a_snapshot_that_is_exported_is_not_merged() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    world.export(&scratch, "snap", false);
    let tables = world.tables();
    let merge = json!({"device": "disk0", "snapshot": "snap", "job-id": "j"});
    let said = world.refused("snapshot-merge", merge.clone());
    assert!(said.contains("export 'snap'"), "{said}");
    let other = json!({"device": "snap", "snapshot": "disk0", "job-id": "j"});
    world.refused("snapshot-merge", other);
    assert_eq!(world.tables(), tables);
    assert_eq!(world.call("query-jobs", json!({})), json!([]));
    world.call("block-export-del", json!({"id": "snap", "mode": "hard"}));
    world.call("snapshot-merge", merge);
    world.event("MERGE_COMPLETED");
    world.stop();
}

/// Scenario 40, on the real program: writes during the rollback are there, the rest is the
/// snapshot's.
#[test]
fn scenario_40_a_rollback_under_load() {
    rollback_under_load(Place::Memory);
}

#[test]
fn scenario_40_a_rollback_under_load_on_disk() {
    rollback_under_load(Place::Disk);
}

fn rollback_under_load(place: Place) {
    let scratch = scratch_on(place);
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    // The rollback undoes a generation that no later write has.
    world.disk().write(0, &stamped(0, SECTORS, 1 << 30)).unwrap();
    let merge = json!({"device": "disk0", "snapshot": "snap", "job-id": "j", "speed": 4 << 20});
    world.call("snapshot-merge", merge);
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let history = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        world.event("MERGE_COMPLETED");
        clock.wait_for(50);
        clock.end();
        load.join().expect("the load does not panic")
    });
    assert!(history.len() > 100);
    assert_same("disk0", &world.disk().read_all().unwrap(), &history.last_content());
    world.event("BLOCK_JOB_COMPLETED");
    world.stop();
    assert_same("the file", &std::fs::read(&file).unwrap(), &history.last_content());
}

/// Scenario 72: killed during a merge, started with the first arguments, and killed again.
#[test]
fn scenario_72_killed_in_mid_merge_it_goes_on() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    let mut disk = world.disk();
    disk.write(0, &stamped(0, SECTORS, 2)).unwrap();
    let merge = json!({"device": "disk0", "snapshot": "snap", "job-id": "j", "speed": 1 << 20});
    world.call("snapshot-merge", merge);
    let mut wanted = stamped(0, SECTORS, 1);
    // An acknowledged write to a chunk that is merged last.
    disk.write(0, &stamped(0, 3, 5)).unwrap();
    wanted[..3 * 512].copy_from_slice(&stamped(0, 3, 5));
    let progress = |world: &mut World| {
        let jobs = world.call("query-jobs", json!({}));
        jobs[0]["current-progress"].as_u64().map(|at| (at, jobs[0]["total-progress"].clone()))
    };
    while progress(&mut world).is_some_and(|(at, _)| at == 0) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (jobs, tables) = (world.call("query-jobs", json!({})), world.tables());
    assert!(jobs[0]["id"] == "j", "it ended before it could be killed: {tables:?}");
    world.kill();
    for generation in 6..8 {
        let mut world = World::start(&plain(&scratch, &file));
        assert!(world.table("disk0")[0].contains("snapshot-merge"), "{:?}", world.tables());
        let mut disk = world.disk();
        assert_same("again", &disk.read_all().unwrap(), &wanted);
        // To a chunk that was merged first: the origin itself changes, and the next start accepts
        // that.
        let last = stamped(SECTORS - 5, 5, generation);
        disk.write((SECTORS - 5) * 512, &last).unwrap();
        wanted.splice(wanted.len() - 5 * 512.., last);
        world.kill();
    }
    let mut world = World::start(&plain(&scratch, &file));
    assert_same("again", &world.disk().read_all().unwrap(), &wanted);
    world.event("MERGE_COMPLETED");
    world.event("BLOCK_JOB_COMPLETED");
    assert_eq!(world.table("disk0"), [format!("0 {SECTORS} linear disk0-real 0")]);
    assert_same("rolled back", &world.disk().read_all().unwrap(), &wanted);
    world.stop();
    assert_same("the file", &std::fs::read(&file).unwrap(), &wanted);
}

/// Another snapshot's chunks are smaller than the merged one's.
#[test]
fn scenario_42_another_snapshot_with_smaller_chunks_is_unchanged() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let mut disk = world.disk();
    let create = |world: &mut World, name: &str, chunk: u64| {
        let cow = format!("{name}.cow");
        let create = json!({"device": "disk0", "name": name, "cow": cow, "chunk-size": chunk});
        world.call("snapshot-create", create);
    };
    create(&mut world, "before", 4096);
    disk.write(100 * 512, &stamped(100, 333, 2)).unwrap();
    create(&mut world, "merged", 65536);
    let merged = world.content(&scratch, "merged");
    disk.write(40 * 512, &stamped(40, 5000, 3)).unwrap();
    create(&mut world, "after", 4096);
    disk.write(0, &stamped(0, 2000, 4)).unwrap();
    let others = ["before", "after"];
    let wanted = others.map(|name| world.content(&scratch, name));
    assert_same("after", &wanted[1][40 * 512..5040 * 512], &stamped(40, 5000, 3));
    let merge = json!({"device": "disk0", "snapshot": "merged", "job-id": "j"});
    world.call("snapshot-merge", merge);
    world.event("MERGE_COMPLETED");
    assert_same("disk0", &disk.read_all().unwrap(), &merged);
    for (name, wanted) in others.iter().zip(&wanted) {
        assert_same(name, &world.content(&scratch, name), wanted);
    }
    world.event("BLOCK_JOB_COMPLETED");
    world.stop();
    assert_same("the file", &std::fs::read(&file).unwrap(), &merged);
}

#[test]
fn scenario_43_a_second_merge_and_one_of_a_store_in_memory_are_refused() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    for (name, kind) in [("one", "PO"), ("two", "P"), ("memory", "N")] {
        let cow = format!("{name}.cow");
        let create = json!({"device": "disk0", "name": name, "cow": cow, "persistent": kind});
        world.call("snapshot-create", create);
    }
    world.disk().write(0, &stamped(0, SECTORS, 2)).unwrap();
    let merge = |world: &mut World, name: &str, speed: u64| {
        let merge = json!({"device": "disk0", "snapshot": name, "job-id": name, "speed": speed});
        world.qmp.call("snapshot-merge", merge).map_err(|error| error.to_string())
    };
    let tables = world.tables();
    let said = merge(&mut world, "memory", 0).unwrap_err();
    assert!(said.contains("transient"), "{said}");
    assert_eq!(world.tables(), tables);
    merge(&mut world, "one", 1 << 20).unwrap();
    let said = merge(&mut world, "two", 0).unwrap_err();
    assert!(said.contains("disk0"), "{said}");
    // Nor by a table beside the merging one, through its device or past it.
    let table = world.table("two")[0].replace(" snapshot ", " snapshot-merge ");
    world.call("device-create", json!({"name": "second"}));
    world.call("device-suspend", json!({"name": "two"}));
    for origin in ["disk0", "disk0-real"] {
        let table = table.replace(" disk0 ", &format!(" {origin} "));
        world.call("table-load", json!({"name": "second", "table": [table]}));
        let said = world.refused("device-resume", json!({"name": "second"}));
        assert!(said.contains("one merge at a time"), "{said}");
    }
    world.call("table-clear", json!({"name": "second"}));
    world.call("device-resume", json!({"name": "two"}));
    for name in ["two", "memory"] {
        assert_same(name, &world.content(&scratch, name), &stamped(0, SECTORS, 1));
    }
    world.event("MERGE_COMPLETED");
    world.stop();
}

/// Snapshots of the origin, taken while the disk merges and is written: each is the content of the
/// origin's file at that moment.
#[test]
fn scenario_47_a_new_snapshot_in_mid_merge_is_exact_at_its_moment() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    world.disk().write(0, &stamped(0, SECTORS, 1 << 30)).unwrap();
    let merge = json!({"device": "disk0", "snapshot": "snap", "job-id": "j", "speed": 4 << 20});
    world.call("snapshot-merge", merge);
    let connect = Connect::to(world.server.socket()).pool(1 << 20);
    let clock = Clock::default();
    let (history, moments) = std::thread::scope(|scope| {
        let load = scope.spawn(|| History::write(&connect, Rng::fresh_seed(), &clock));
        let mut moments = Vec::new();
        for n in 0..3u32 {
            clock.wait_for(30);
            let name = format!("new{n}");
            let store = scratch.sparse(&format!("{name}.cow"), 16 << 20).unwrap();
            let chunk = 8 << n;
            world.call("device-suspend", json!({"name": "disk0"}));
            let moment = std::fs::read(&file).unwrap();
            let line = format!("0 {SECTORS} snapshot disk0 {} P {chunk}", word(&store));
            world.make(&name, &[line]);
            world.call("device-resume", json!({"name": "disk0"}));
            moments.push((name, moment));
        }
        // Each was taken before the merge was complete.
        let old = stamped(0, SECTORS, 1 << 30);
        let is_left = |(_, moment): &(String, Vec<u8>)| {
            moment.chunks(512).zip(old.chunks(512)).any(|(now, old)| now == old)
        };
        assert!(moments.iter().all(is_left), "it ended before the snapshot was taken");
        world.event("MERGE_COMPLETED");
        clock.wait_for(50);
        clock.end();
        (load.join().expect("the load does not panic"), moments)
    });
    for (name, moment) in moments {
        assert_same(&name, &world.content(&scratch, &name), &moment);
    }
    assert_same("disk0", &world.disk().read_all().unwrap(), &history.last_content());
    world.event("BLOCK_JOB_COMPLETED");
    world.stop();
    assert_same("the file", &std::fs::read(&file).unwrap(), &history.last_content());
}

/// A disk whose snapshot `snap` has all of its first generation.
fn with_a_snapshot(scratch: &Scratch) -> (ServerCommand, World) {
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(scratch, &file);
    let mut world = World::start(&command);
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    world.disk().write(0, &stamped(0, SECTORS, 2)).unwrap();
    (command, world)
}

fn roll_back(job: &str, speed: u64) -> Value {
    json!({"device": "disk0", "snapshot": "snap", "job-id": job, "speed": speed})
}

fn status_of(world: &mut World, job: &str) -> String {
    let jobs = world.call("query-jobs", json!({}));
    let jobs = jobs.as_array().unwrap().iter();
    let found: Vec<&Value> = jobs.filter(|info| info["id"] == job).collect();
    found.first().map_or("", |info| info["status"].as_str().unwrap()).to_owned()
}

/// Waits until the job has changed to `status`.
fn becomes(world: &mut World, job: &str, status: &str) {
    let wanted = json!({"id": job, "status": status});
    while world.event("JOB_STATUS_CHANGE")["data"] != wanted {}
}

/// The result is that of an uninterrupted rollback.
fn is_rolled_back(world: &mut World) {
    assert_eq!(world.event("MERGE_COMPLETED")["data"]["snapshot"], "snap");
    world.event("BLOCK_JOB_COMPLETED");
    assert_eq!(world.table("disk0"), [format!("0 {SECTORS} linear disk0-real 0")]);
    assert_same("rolled back", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 1));
    world.call("snapshot-create", json!({"device": "disk0", "name": "next", "cow": "next.cow"}));
}

/// The disk reads as the snapshot, so the rollback is not over: it continues where it stopped.
#[test]
fn a_cancelled_rollback_goes_on_by_the_same_command() {
    for restarted in [false, true] {
        let scratch = scratch();
        let (command, mut world) = with_a_snapshot(&scratch);
        world.call("snapshot-merge", roll_back("j", 262_144));
        let said = world.refused("snapshot-merge", roll_back("k", 0));
        assert!(said.contains("the job 'j'"), "{said}");
        world.call("job-cancel", json!({"id": "j"}));
        world.event("BLOCK_JOB_CANCELLED");
        becomes(&mut world, "j", "null");
        // Neither a resume nor a restart continues a cancelled rollback.
        world.call("device-suspend", json!({"name": "disk0"}));
        world.call("device-resume", json!({"name": "disk0"}));
        if restarted {
            world.kill();
            world = World::start(&command);
        }
        assert_eq!(world.call("query-jobs", json!({})), json!([]));
        assert_same("halted", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 1));
        let create = json!({"device": "disk0", "name": "next", "cow": "next.cow"});
        let said = world.refused("snapshot-create", create);
        assert!(said.contains("was cancelled") && said.contains("'snap'"), "{said}");
        let other = json!({"device": "disk0", "snapshot": "none", "job-id": "k"});
        world.refused_as(ErrorClass::DeviceNotFound, "snapshot-merge", other);
        world.call("snapshot-merge", roll_back("again", 0));
        is_rolled_back(&mut world);
        world.stop();
    }
}

/// In every state in which a job can be cancelled, this ends it, with an event.
#[test]
fn a_rollback_is_cancelled_while_paused_and_while_pending() {
    let scratch = scratch();
    let (command, mut world) = with_a_snapshot(&scratch);
    world.call("snapshot-merge", roll_back("j", 262_144));
    world.call("job-pause", json!({"id": "j"}));
    becomes(&mut world, "j", "paused");
    world.call("job-cancel", json!({"id": "j"}));
    world.event("BLOCK_JOB_CANCELLED");
    becomes(&mut world, "j", "null");
    let mut pending = roll_back("p", 0);
    pending["auto-finalize"] = json!(false);
    pending["auto-dismiss"] = json!(false);
    world.call("snapshot-merge", pending);
    becomes(&mut world, "p", "pending");
    let said = world.refused("snapshot-merge", roll_back("again", 0));
    assert!(said.contains("the job 'p'"), "{said}");
    world.call("job-cancel", json!({"id": "p"}));
    world.event("BLOCK_JOB_CANCELLED");
    assert_eq!(status_of(&mut world, "p"), "concluded");
    world.refused("job-cancel", json!({"id": "p"}));
    world.kill();
    let mut world = World::start(&command);
    assert_eq!(world.call("query-jobs", json!({})), json!([]), "it was cancelled");
    world.call("snapshot-merge", roll_back("p", 0));
    is_rolled_back(&mut world);
    world.stop();
}

/// Overwrites the list of a store with what is no list, and returns the file as it was.
fn spoil_list(store: &std::path::Path) -> Vec<u8> {
    let whole = std::fs::read(store).unwrap();
    let file = std::fs::File::options().write(true).open(store).unwrap();
    file.write_all_at(&vec![0xff; whole.len() - 4096], 4096).unwrap();
    whole
}

/// After its cause is gone: by the command, by a resume, and at the next start.
#[test]
fn a_failed_rollback_begins_again() {
    for way in ["command", "resume", "start"] {
        let scratch = scratch();
        let (command, mut world) = with_a_snapshot(&scratch);
        let store = scratch.path("snap.cow");
        let whole = spoil_list(&store);
        world.call("snapshot-merge", roll_back("j", 1 << 20));
        let said = world.event("BLOCK_JOB_ERROR")["data"].clone();
        assert_eq!(said, json!({"device": "j", "operation": "read", "action": "report"}));
        let error = world.event("BLOCK_JOB_COMPLETED")["data"]["error"].clone();
        assert!(error.is_string(), "{error}");
        becomes(&mut world, "j", "null");
        let create = json!({"device": "disk0", "name": "next", "cow": "next.cow"});
        let said = world.refused("snapshot-create", create);
        assert!(said.contains("failed") && said.contains("'snap'"), "{said}");
        std::fs::write(&store, &whole).unwrap();
        match way {
            "command" => {
                world.call("snapshot-merge", roll_back("again", 0));
            }
            "resume" => {
                world.call("device-suspend", json!({"name": "disk0"}));
                world.call("device-resume", json!({"name": "disk0"}));
                assert_eq!(status_of(&mut world, "j"), "running");
            }
            _ => {
                world.kill();
                world = World::start(&command);
                assert_eq!(status_of(&mut world, "j"), "running");
            }
        }
        is_rolled_back(&mut world);
        world.stop();
    }
}

/// The name of a failed rollback is free, though it goes on by that name at the next start.
#[test]
fn a_commit_with_the_name_of_a_failed_rollback_goes_on_too() {
    let scratch = scratch();
    let (command, mut world) = with_a_snapshot(&scratch);
    let store = scratch.path("snap.cow");
    let whole = spoil_list(&store);
    world.call("snapshot-merge", roll_back("j", 0));
    becomes(&mut world, "j", "null");
    std::fs::write(&store, &whole).unwrap();

    let base = scratch.file("base.raw", &stamped(0, SECTORS, 1)).unwrap();
    world.make("d", &[format!("0 {SECTORS} linear {} 0", word(&base))]);
    for layer in 1..=2 {
        let cow = scratch.path(&format!("d-{layer}.cow"));
        world.call("blockdev-snapshot-sync", json!({"device": "d", "snapshot-file": cow}));
        let socket = scratch.socket("d.sock");
        world.call("block-export-add", export_args("w", "d", &socket, true));
        disk(&socket).write(0, &stamped(0, SECTORS, layer + 1)).unwrap();
        world.call("block-export-del", json!({"id": "w", "mode": "hard"}));
    }
    let commit = json!({"device": "d", "top-node": "d.2", "job-id": "j", "speed": 1});
    world.call("block-commit", commit);
    world.kill();
    let mut world = World::start(&command);
    assert_eq!(status_of(&mut world, "commit-d"), "running");
    world.call("block-job-set-speed", json!({"device": "commit-d", "speed": 0}));
    while world.call("query-jobs", json!({})) != json!([]) {}
    assert_same("the base", &std::fs::read(&base).unwrap(), &stamped(0, SECTORS, 2));
    assert_eq!(world.table("disk0"), [format!("0 {SECTORS} linear disk0-real 0")]);
    world.stop();
}

/// A loaded table belongs to its loader: the refusal says what to do.
#[test]
fn a_merge_by_a_table_is_its_loader_s() {
    let scratch = scratch();
    let (_, mut world) = with_a_snapshot(&scratch);
    let table = world.table("snap")[0].replace(" snapshot disk0 ", " snapshot-merge disk0-real ");
    world.call("table-load", json!({"name": "disk0", "table": [table]}));
    world.call("device-suspend", json!({"name": "snap"}));
    world.call("device-resume", json!({"name": "disk0"}));
    assert_eq!(world.event("MERGE_COMPLETED")["data"]["snapshot"], "snap");
    let create = json!({"device": "disk0", "name": "next", "cow": "next.cow"});
    let said = world.refused("snapshot-create", create.clone());
    assert!(said.contains("table-load"), "{said}");
    world.call("device-remove", json!({"name": "snap"}));
    world.swap("disk0", &[format!("0 {SECTORS} snapshot-origin disk0-real")]);
    world.call("snapshot-create", create);
    world.stop();
}

#[test]
fn a_rollback_that_was_paused_is_paused_after_a_restart() {
    let scratch = scratch();
    let (command, mut world) = with_a_snapshot(&scratch);
    world.call("snapshot-merge", roll_back("j", 262_144));
    world.call("job-pause", json!({"id": "j"}));
    becomes(&mut world, "j", "paused");
    world.kill();
    let mut world = World::start(&command);
    assert_eq!(status_of(&mut world, "j"), "paused");
    world.call("job-resume", json!({"id": "j"}));
    world.kill();
    let mut world = World::start(&command);
    assert_eq!(status_of(&mut world, "j"), "running");
    world.stop();
}
