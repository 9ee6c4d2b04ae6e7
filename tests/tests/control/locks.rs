//! Served files are locked against other processes.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;
use snapblk_tests::server::{Scratch, output};

use crate::common::*;

const SECTORS: u64 = 2048;

fn qemu(program: &str, arguments: &[&str]) -> Output {
    let output = output(Command::new(program).args(arguments));
    output.unwrap_or_else(|error| panic!("{program}: {error}; install Debian's qemu-utils"))
}

fn writes(file: &Path) -> Output {
    qemu("qemu-io", &["-f", "raw", "-c", "write 0 512", word(file)])
}

fn reads(file: &Path) -> Output {
    qemu("qemu-io", &["-r", "-f", "raw", "-c", "read 0 512", word(file)])
}

fn refused(output: &Output) -> bool {
    !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("lock")
}

fn golden(scratch: &Scratch) -> std::path::PathBuf {
    scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap()
}

#[test]
fn qemu_s_tools_see_what_is_served() {
    let scratch = scratch();
    let base = golden(&scratch);
    let world = World::start(&overlay(&scratch, &base));
    let store = scratch.path("store.cow");
    assert!(reads(&base).status.success(), "a golden image may be read by others");
    assert!(refused(&writes(&base)));
    assert!(refused(&qemu("qemu-img", &["resize", "-f", "raw", word(&base), "+1M"])));
    assert!(refused(&writes(&store)));
    assert!(refused(&reads(&store)));
    world.stop();
    assert!(writes(&base).status.success());
    assert!(writes(&scratch.sparse("free.raw", 4096).unwrap()).status.success());

    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let world = World::start(&plain(&scratch, &file));
    assert!(refused(&writes(&file)));
    assert!(refused(&reads(&file)));
    world.stop();
    assert!(writes(&file).status.success());
}

#[test]
fn processes_share_a_golden_image_and_nothing_else() {
    let shared = scratch();
    let base = golden(&shared);
    let (one, two) = (scratch(), scratch());
    let first = World::start(&overlay(&one, &base));
    let second = World::start(&overlay(&two, &base));
    first.disk().write(0, &stamped(0, 8, 2)).unwrap();
    second.disk().write(0, &stamped(0, 8, 3)).unwrap();
    assert_same("one", &first.disk().read(0, 4096).unwrap(), &stamped(0, 8, 2));
    assert_same("two", &second.disk().read(0, 4096).unwrap(), &stamped(0, 8, 3));
    // The store of the first; and the image itself, as writable.
    let three = scratch();
    let command = plain(&three, &base).arg("--overlay").arg(one.path("store.cow"));
    let command = command.arg("--state").arg(three.path("state"));
    let said = does_not_start(&command);
    assert!(said.contains("store.cow is in use"), "{said}");
    let said = does_not_start(&plain(&three, &base));
    assert!(said.contains("golden.raw is in use"), "{said}");
    first.stop();
    second.stop();
    World::start(&plain(&three, &base)).stop();
}

#[test]
fn within_a_process_a_file_is_opened_once() {
    let scratch = scratch();
    let base = golden(&scratch);
    let mut world = World::start(&plain(&scratch, &base));
    // A second device over the same file is not a second process.
    world.make("same", &[format!("0 {SECTORS} linear {} 0", word(&base))]);
    assert_same("same", &world.content(&scratch, "same"), &stamped(0, SECTORS, 1));
    world.call("device-remove", json!({"name": "same"}));
    assert!(refused(&writes(&base)), "the lock fell with the second device");
    world.stop();
}
