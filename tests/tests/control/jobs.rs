//! The begin of jobs: under the control of their devices, and one at a time.

use std::time::Duration;

use serde_json::{Value, json};
use snapblk_qmp::client::{Client as Qmp, ClientError};
use snapblk_tests::server::Scratch;

use crate::common::*;

const SECTORS: u64 = 8192;
/// Long enough for a job on these disks, which must not happen.
const LONG: Duration = Duration::from_millis(300);

fn suspend(world: &mut World, name: &str) {
    world.call("device-suspend", json!({"name": name}));
}

fn resume(world: &mut World, name: &str) {
    world.call("device-resume", json!({"name": name}));
}

/// Nothing called `name` happens for a while.
fn nothing_happens(world: &mut World, name: &str) {
    while let Some(event) = world.qmp.event(Some(LONG)).expect("the monitor lives") {
        assert_ne!(event["event"], name, "{event}");
    }
}

/// Its device's name cannot be one.
#[test]
fn a_commit_that_nobody_named_gets_a_name() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("vg+data", &[format!("0 {SECTORS} linear {} 0", word(&file))]);
    let overlay = json!({"device": "vg+data", "snapshot-file": scratch.path("store.cow")});
    world.call("blockdev-snapshot-sync", overlay);
    world.call("block-commit", json!({"device": "vg+data"}));
    assert_eq!(world.event("BLOCK_JOB_READY")["data"]["device"], "commit-vg_data");
    world.call("job-cancel", json!({"id": "commit-vg_data"}));
    world.stop();
}

/// A chunk a second at first, which would take a quarter of an hour.
#[test]
fn a_job_gets_another_speed_while_it_runs_and_keeps_it() {
    const SLOW: u64 = 1;
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(&scratch, &file);
    let mut world = World::start(&command);
    let speed = |world: &mut World, job: &str, speed: u64| {
        world.call("block-job-set-speed", json!({"device": job, "speed": speed}));
    };
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    world.disk().write(0, &stamped(0, SECTORS, 2)).unwrap();
    let merge = json!({"device": "disk0", "snapshot": "snap", "job-id": "j", "speed": SLOW});
    world.call("snapshot-merge", merge);
    world.call("job-pause", json!({"id": "j"}));
    speed(&mut world, "j", 0);
    world.kill();
    let mut world = World::start(&command);
    world.call("job-resume", json!({"id": "j"}));
    assert_eq!(world.event("BLOCK_JOB_COMPLETED")["data"]["speed"], 0);
    assert_same("disk0", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 1));

    for (node, cow) in [("low", "low.cow"), ("middle", "middle.cow")] {
        let overlay = json!({
            "device": "disk0", "snapshot-file": scratch.path(cow), "snapshot-node-name": node,
        });
        world.call("blockdev-snapshot-sync", overlay);
        world.disk().write(0, &stamped(0, SECTORS, 3)).unwrap();
    }
    let commit = json!({"device": "disk0", "job-id": "c", "top-node": "middle", "speed": SLOW});
    world.call("block-commit", commit);
    speed(&mut world, "c", 0);
    assert_eq!(world.event("BLOCK_JOB_COMPLETED")["data"]["speed"], 0);
    let said = world.refused_as(
        snapblk_store::control::ErrorClass::DeviceNotActive,
        "block-job-set-speed",
        json!({"device": "c", "speed": 0}),
    );
    assert!(said.contains("Job not found: 'c'"), "{said}");
    assert_same("disk0", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 3));
    world.stop();
}

/// A snapshot that is taken while a rollback of its suspended origin waits gets its copies: the
/// merge begins with the table that the resume brings.
#[test]
fn a_rollback_of_a_suspended_disk_begins_with_its_resume() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let first = json!({"device": "disk0", "name": "first", "cow": scratch.path("first.cow")});
    world.call("snapshot-create", first);
    let later = stamped(0, SECTORS, 2);
    world.disk().write(0, &later).unwrap();
    let cow = scratch.sparse("second.cow", SECTORS * 512 + (1 << 20)).unwrap();
    world.call("device-create", json!({"name": "second"}));
    let table = [format!("0 {SECTORS} snapshot disk0 {} PO 8", word(&cow))];
    world.call("table-load", json!({"name": "second", "table": table}));

    suspend(&mut world, "disk0");
    let merge = json!({"device": "disk0", "snapshot": "first", "job-id": "j"});
    world.call("snapshot-merge", merge);
    nothing_happens(&mut world, "MERGE_COMPLETED");
    assert_same("the file", &std::fs::read(&file).unwrap(), &later);
    resume(&mut world, "second");
    resume(&mut world, "disk0");
    world.event("MERGE_COMPLETED");
    world.event("BLOCK_JOB_COMPLETED");
    assert_same("disk0", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 1));
    assert_same("second", &world.content(&scratch, "second"), &later);
    world.stop();
}

/// A chain of two stores over a file: the content of the upper one's base, and of the disk.
fn chain(scratch: &Scratch, world: &mut World, device: &str) {
    for layer in 1..=2 {
        let cow = scratch.path(&format!("{device}-{layer}.cow"));
        world.call("blockdev-snapshot-sync", json!({"device": device, "snapshot-file": cow}));
        let socket = scratch.socket(&format!("{device}-{layer}.sock"));
        world.call("block-export-add", export_args("w", device, &socket, true));
        disk(&socket).write(0, &stamped(0, SECTORS, layer + 1)).unwrap();
        world.call("block-export-del", json!({"id": "w", "mode": "hard"}));
    }
}

#[test]
fn a_commit_of_a_suspended_disk_begins_with_its_resume() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(&scratch));
    world.make("d", &[format!("0 {SECTORS} linear {} 0", word(&file))]);
    chain(&scratch, &mut world, "d");
    suspend(&mut world, "d");
    world.call("block-commit", json!({"device": "d", "top-node": "d.2", "job-id": "c"}));
    nothing_happens(&mut world, "BLOCK_JOB_COMPLETED");
    assert_same("the file", &std::fs::read(&file).unwrap(), &stamped(0, SECTORS, 1));
    world.call("job-pause", json!({"id": "c"}));
    while world.call("query-jobs", json!({}))[0]["status"] != "paused" {}
    world.call("job-resume", json!({"id": "c"}));
    resume(&mut world, "d");
    world.event("BLOCK_JOB_COMPLETED");
    assert_same("the file", &std::fs::read(&file).unwrap(), &stamped(0, SECTORS, 2));
    assert_same("d", &world.content(&scratch, "d"), &stamped(0, SECTORS, 3));
    world.stop();
}

/// Two clients begin a commit each, at the same time and under one name: one of them is refused,
/// and its chain keeps its layers.
#[test]
fn one_name_is_the_name_of_one_job() {
    let scratch = scratch();
    let mut world = World::start(&monitor_only(&scratch));
    let devices = ["a", "b"];
    for device in devices {
        let file = scratch.file(device, &stamped(0, SECTORS, 1)).unwrap();
        world.make(device, &[format!("0 {SECTORS} linear {} 0", word(&file))]);
    }
    for round in 0..8 {
        for device in devices {
            let cow = scratch.path(&format!("{device}-{round}.cow"));
            world.call("blockdev-snapshot-sync", json!({"device": device, "snapshot-file": cow}));
            let top = scratch.path(&format!("{device}-{round}-top.cow"));
            world.call("blockdev-snapshot-sync", json!({"device": device, "snapshot-file": top}));
        }
        let before = world.tables();
        let tops: Vec<String> = devices
            .iter()
            .map(|device| {
                let below = |name: &&String| name.starts_with(&format!("{device}."));
                let mut names = before.iter().map(|(name, _)| name).filter(below);
                names.next_back().expect("a layer below").clone()
            })
            .collect();
        let monitor = world.server.monitor().to_owned();
        let begun: Vec<bool> = std::thread::scope(|scope| {
            let begin = |(device, top): (&&str, &String)| {
                let commit = json!({"device": device, "top-node": top, "job-id": "x"});
                let mut qmp = Qmp::connect(&monitor).expect("the monitor answers");
                scope.spawn(move || match qmp.call("block-commit", commit) {
                    Ok(_) => true,
                    Err(ClientError::Command(error)) => {
                        assert!(error.desc.contains("already"), "{}", error.desc);
                        false
                    }
                    Err(error) => panic!("{error}"),
                })
            };
            let threads: Vec<_> = devices.iter().zip(&tops).map(begin).collect();
            threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
        });
        for _ in begun.iter().filter(|begun| **begun) {
            let event = world.event("BLOCK_JOB_COMPLETED");
            assert_eq!(event["data"]["error"], Value::Null, "{event}");
        }
        while world.call("query-jobs", json!({})) != json!([]) {}
        let after = world.tables();
        for (begun, top) in begun.iter().zip(&tops) {
            let kept = after.iter().any(|(name, _)| name == top);
            assert_eq!(kept, !begun, "round {round}: '{top}' of {before:?} in {after:?}");
        }
    }
    world.stop();
}

/// Two clients resume a disk at the same time, whose loaded table merges: one job does that.
#[test]
fn what_two_clients_resume_merges_once() {
    let scratch = scratch();
    let mut world = World::start(&monitor_only(&scratch));
    for round in 0..6 {
        let [base, name, snap] = ["base", "d", "s"].map(|name| format!("{name}{round}"));
        let file = scratch.file(&base, &stamped(0, SECTORS, 1)).unwrap();
        let cow = scratch.sparse(&snap, SECTORS * 512 + (1 << 20)).unwrap();
        world.make(&base, &[format!("0 {SECTORS} linear {} 0", word(&file))]);
        world.make(&name, &[format!("0 {SECTORS} snapshot-origin {base}")]);
        world.make(&snap, &[format!("0 {SECTORS} snapshot {base} {} PO 8", word(&cow))]);
        let socket = scratch.socket("d.sock");
        world.call("block-export-add", export_args("w", &name, &socket, true));
        disk(&socket).write(0, &stamped(0, SECTORS, 2)).unwrap();
        world.call("block-export-del", json!({"id": "w", "mode": "hard"}));
        suspend(&mut world, &snap);
        let merge = [format!("0 {SECTORS} snapshot-merge {base} {} PO 8", word(&cow))];
        world.call("table-load", json!({"name": name, "table": merge}));
        let monitor = world.server.monitor().to_owned();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let mut qmp = Qmp::connect(&monitor).expect("the monitor answers");
                let resume = json!({"name": name});
                scope.spawn(move || qmp.call("device-resume", resume).expect("it resumes"));
            }
        });
        let mut created = 0;
        loop {
            let event = world.qmp.event(Some(Duration::from_secs(20))).expect("the monitor lives");
            let event = event.expect("the merge completes");
            created += u32::from(event["data"]["status"] == "created");
            if event["event"] == "MERGE_COMPLETED" {
                break;
            }
        }
        while world.call("query-jobs", json!({})) != json!([]) {}
        while let Some(event) = world.qmp.event(Some(Duration::ZERO)).expect("the monitor lives") {
            created += u32::from(event["data"]["status"] == "created");
        }
        assert_eq!(created, 1, "round {round}");
        assert_same("merged", &std::fs::read(&file).unwrap(), &stamped(0, SECTORS, 1));
    }
    world.stop();
}

/// After a rollback the file lies below `disk0-real`, and a chain over that is committed into it.
#[test]
fn a_chain_is_committed_into_what_its_base_lies_on() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let snapshot = json!({"device": "disk0", "name": "s", "cow": scratch.path("s.cow")});
    world.call("snapshot-create", snapshot);
    let merge = json!({"device": "disk0", "snapshot": "s", "job-id": "m"});
    world.call("snapshot-merge", merge);
    world.event("BLOCK_JOB_COMPLETED");
    let overlay = json!({"device": "disk0", "snapshot-file": scratch.path("top.cow")});
    world.call("blockdev-snapshot-sync", overlay);
    world.disk().write(0, &stamped(0, SECTORS, 2)).unwrap();
    let commit = json!({"device": "disk0", "job-id": "c"});

    // Who writes or reads what it lies on would meet the commit's writes.
    world.export(&scratch, "disk0-real", false);
    let said = world.refused("block-commit", commit.clone());
    assert!(said.contains("'disk0-real' is in use by the export"), "{said}");
    world.call("block-export-del", json!({"id": "disk0-real", "mode": "hard"}));
    world.call("block-commit", commit);
    world.event("BLOCK_JOB_READY");
    let socket = scratch.socket("real.sock");
    let export = export_args("real", "disk0-real", &socket, false);
    let said = world.refused("block-export-add", export);
    assert!(said.contains("the job 'c'"), "{said}");
    world.call("job-complete", json!({"id": "c"}));
    world.event("BLOCK_JOB_COMPLETED");
    assert_same("the file", &std::fs::read(&file).unwrap(), &stamped(0, SECTORS, 2));
    assert_same("disk0", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 2));
    world.stop();
}
