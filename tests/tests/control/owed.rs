//! Owed chunks of a killed process belong only to their own store.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use snapblk_tests::server::{Place, Scratch, find_snapblk, output};

use crate::common::*;

const SECTORS: u64 = 2048;

/// A store to which a killed process owed a chunk, without its state file.
fn owing(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let world = World::start(&overlay(scratch, &base));
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.kill();
    fs::remove_file(scratch.path("store.cow.state")).unwrap();
    assert!(scratch.path("store.cow.owed").exists());
    (base, scratch.path("store.cow"))
}

/// With the same name, and often the same inode.
#[test]
fn a_store_that_is_made_in_the_place_of_another_is_owed_nothing() {
    for place in [Place::Memory, Place::Disk] {
        for how in ["cut", "removed", "made anew"] {
            let scratch = scratch_on(place);
            let (base, store) = owing(&scratch);
            match how {
                "cut" => drop(File::create(&store).unwrap()),
                _ => fs::remove_file(&store).unwrap(),
            }
            if how == "made anew" {
                let mut create = Command::new(find_snapblk().unwrap());
                create.arg("create").arg(&store).arg("--origin").arg(&base);
                let said = output(&mut create).unwrap();
                assert!(said.status.success(), "{said:?}");
                assert!(!scratch.path("store.cow.owed").exists());
            }
            let world = World::start(&overlay(&scratch, &base));
            assert_same(how, &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 1));
            world.stop();
        }
    }
}

/// Another store of the same age was moved there.
#[test]
fn a_store_that_is_put_in_the_place_of_another_is_owed_nothing() {
    let scratch = scratch();
    let (base, store) = owing(&scratch);
    let other = scratch.path("other.cow");
    let mut create = Command::new(find_snapblk().unwrap());
    create.arg("create").arg(&other).arg("--origin").arg(&base);
    assert!(output(&mut create).unwrap().status.success());
    fs::rename(&other, &store).unwrap();
    let world = World::start(&overlay(&scratch, &base));
    assert_same("the other", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 1));
    world.stop();
}

/// Files may not exceed the process's file size limit: a request fails, or a command.
#[test]
fn a_limit_on_the_size_of_files_kills_nobody() {
    let scratch = scratch_on(Place::Disk);
    let base = scratch.sparse("disk.raw", SECTORS * 512).unwrap();
    let limited = ["-c", "ulimit -f 512; exec \"$0\" \"$@\""].map(Into::into);
    let command = plain(&scratch, &base).run_by("/bin/bash".into(), limited);
    let mut world = World::start(&command);
    let mut disk = world.disk();
    disk.write(0, &[7; 4096]).unwrap();
    assert!(disk.write(SECTORS * 512 - 4096, &[7; 4096]).unwrap_err().is_refused());
    let said = world
        .refused("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    assert!(said.contains("snap.cow") && said.contains("File too large"), "{said}");
    assert!(!scratch.path("snap.cow").exists());
    disk.write(4096, &[7; 4096]).unwrap();
    drop(disk);
    world.stop();
}
