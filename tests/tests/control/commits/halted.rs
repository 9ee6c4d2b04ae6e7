//! A commit that fails after `job-complete`: its device merges, so it is not over.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::json;
use snapblk_tests::server::{Scratch, ServerCommand};

use super::*;
use crate::common::*;

/// A disk over one layer, whose commit fails in the merge, because the list of its store has changed.
/// Also returns the content of the disk, and the store as it was.
fn failed(scratch: &Scratch) -> (ServerCommand, World, Image, Vec<u8>) {
    let file = disk_file(scratch);
    let command = plain(scratch, &file);
    let mut world = World::start(&command);
    let images = chain(scratch, &mut world, 1);
    commit(&mut world, json!({}));
    is_ready(&mut world);
    world.disk().flush().unwrap();
    let store = scratch.path("1.cow");
    let whole = bytes(&store);
    let list = File::options().write(true).open(&store).unwrap();
    list.write_all_at(&[0xff; 4096], 4096).unwrap();
    world.call("job-complete", json!({"id": "c"}));
    let error = world.event("BLOCK_JOB_COMPLETED")["data"]["error"].clone();
    assert!(error.is_string(), "{error}");
    while world.event("JOB_STATUS_CHANGE")["data"]["status"] != "null" {}
    (command, world, images[1].clone(), whole)
}

/// After its cause is gone: by the command, by a resume, and at the next start.
#[test]
fn a_commit_whose_merge_failed_goes_on() {
    for way in ["command", "resume", "start"] {
        let scratch = scratch();
        let (command, mut world, image, whole) = failed(&scratch);
        let more = json!({"device": "disk0", "name": "snap", "cow": scratch.path("2.cow")});
        let said = world.refused("snapshot-create", more);
        assert!(said.contains("'block-commit' of 'disk0'"), "{said}");
        let export = export_args("e", "disk0.1", &scratch.path("e.sock"), false);
        let said = world.refused("block-export-add", export);
        assert!(said.contains("the job 'c'"), "{said}");
        std::fs::write(scratch.path("1.cow"), &whole).unwrap();
        match way {
            "command" => commit(&mut world, json!({"job-id": "again"})),
            "resume" => {
                world.call("device-suspend", json!({"name": "disk0"}));
                world.call("device-resume", json!({"name": "disk0"}));
            }
            _ => {
                world.kill();
                world = World::start(&command);
            }
        }
        becomes(&mut world, &["disk0"]);
        is_disk0(&world, &image);
        world.stop();
        assert_same("the file", &bytes(&scratch.path("disk.raw")), &image.0);
    }
}

/// A user may load another table instead, which ends the commit.
#[test]
fn a_commit_whose_merge_failed_ends_with_its_table() {
    let scratch = scratch();
    let (command, mut world, ..) = failed(&scratch);
    world.swap("disk0", &[format!("0 {SECTORS} linear disk0.1 0")]);
    let said = world.refused("block-commit", json!({"device": "disk0"}));
    assert!(said.contains("not an overlay"), "{said}");
    world.call("block-export-add", export_args("e", "disk0.1", &scratch.path("e.sock"), false));
    world.stop();
    let mut world = World::start(&command);
    assert_eq!(world.call("query-jobs", json!({})), json!([]));
    world.stop();
}
