//! The monitor as used by QEMU's own library and by people, on the real server.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::{Value, json};
use snapblk_tests::server::{Scratch, find_snapblk, output};

use crate::common::*;

const SECTORS: u64 = 8192;

const HOW: &str = "install Python 3 with venv and pip (Debian: apt-get install python3-venv), or \
                   set SNAPBLK_PYTHON to an interpreter that has the packages of \
                   tests/python/requirements.txt";

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// An interpreter that has the packages; the same as that of the monitor's own tests.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| match std::env::var_os("SNAPBLK_PYTHON") {
        Some(python) => python.into(),
        None => environment(),
    })
}

fn environment() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let target = own.ancestors().nth(2).unwrap();
    let venv = target.join("python-venv");
    let requirements = scripts().join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).unwrap();
    let stamp = venv.join("requirements-installed.txt");
    let python = venv.join("bin/python");
    // Other test processes may do this at the same time.
    let lock = File::create(target.join("python-venv.lock")).unwrap();
    lock.lock().unwrap();
    if fs::read_to_string(&stamp).is_ok_and(|had| had == wanted) {
        return python;
    }
    let run = |program: &Path, arguments: &[&OsStr]| {
        let output = output(Command::new(program).args(arguments));
        let output = output.unwrap_or_else(|error| panic!("{program:?}: {error}; {HOW}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?} {arguments:?} failed: {said}{HOW}");
    };
    run(Path::new("python3"), &["-m".as_ref(), "venv".as_ref(), "--clear".as_ref(), venv.as_ref()]);
    let install = ["-m", "pip", "install", "--quiet", "--requirement"].map(OsStr::new);
    run(&python, &[&install[..], &[requirements.as_ref()]].concat());
    fs::write(&stamp, wanted).unwrap();
    python
}

fn script(name: &str, arguments: &[&Path]) {
    let mut command = Command::new(python());
    let output = output(command.arg(scripts().join(name)).args(arguments));
    let output = output.unwrap_or_else(|error| panic!("{:?}: {error}; {HOW}", python()));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed: {said}");
}

#[test]
fn qemu_qmp_negotiates_hears_events_and_quits() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    script("qmp_client.py", &[world.server.monitor()]);
    let status = world.server.wait("end after quit").unwrap();
    assert!(status.success(), "{status}");
    assert!(!world.server.monitor().exists());
}

#[test]
fn qemu_qmp_drives_every_command() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(&scratch, &file)
        .arg("--name")
        .arg("disk1")
        .arg("--blk-file")
        .arg(&base)
        .arg("--overlay")
        .arg(scratch.path("store.cow"));
    let mut world = World::start(&command);
    world.call("snapshot-create", json!({"device": "disk0", "name": "kept", "cow": "kept.cow"}));
    let mut disk = world.disk();
    disk.write(0, &stamped(0, SECTORS, 2)).unwrap();
    script("qmp_server.py", &[world.server.monitor(), scratch.dir()]);
    assert_same("rolled back", &disk.read_all().unwrap(), &stamped(0, SECTORS, 1));
    // This client got the events of the other's commands.
    world.event("BLOCK_EXPORT_DELETED");
    world.event("MERGE_COMPLETED");
    world.stop();
}

fn ctl(scratch: &Scratch, world: &World, words: &str) -> Output {
    let mut command = Command::new(find_snapblk().unwrap());
    command.current_dir(scratch.dir()).arg("ctl").arg(world.server.monitor());
    let words = words.split(' ').map(|word| word.replace('_', " "));
    output(command.args(words)).unwrap()
}

fn says(scratch: &Scratch, world: &World, words: &str) -> String {
    let output = ctl(scratch, world, words);
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ctl {words}: {error}");
    assert_eq!(error, "", "ctl {words}");
    out.into_owned()
}

#[test]
fn what_ctl_prints_of_a_table_can_be_loaded_again() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    scratch.file("a ", &stamped(0, 8, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file));
    let table = ["0 8 snapshot-origin ./a\\ ".to_owned(), "8 8 zero".to_owned()];
    world.make("d", &table);
    fs::write(scratch.path("lines"), says(&scratch, &world, "table d")).unwrap();
    for words in ["create e", "suspend d", "load e @lines", "remove d", "resume e"] {
        assert_eq!(says(&scratch, &world, words), "", "{words}");
    }
    assert_eq!(world.table("e"), table);
    world.stop();
}

#[test]
fn ctl_has_a_verb_for_everything() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(&scratch, &file)
        .arg("--name")
        .arg("disk1")
        .arg("--blk-file")
        .arg(&base)
        .arg("--overlay")
        .arg(scratch.path("store.cow"));
    let mut world = World::start(&command);
    let quiet =
        |world: &World, words: &str| assert_eq!(says(&scratch, world, words), "", "{words}");
    quiet(&world, "create d --uuid u");
    quiet(&world, "load d 0_8_zero --read-only");
    assert!(says(&scratch, &world, "table d --inactive").contains("0 8 zero"));
    quiet(&world, "clear d");
    fs::write(scratch.path("lines"), "# a comment\n0 8 error\n").unwrap();
    quiet(&world, "load d @lines");
    quiet(&world, "resume d");
    quiet(&world, "suspend d --noflush");
    assert!(says(&scratch, &world, "devices d").contains("suspended"));
    quiet(&world, "resume d");
    assert!(says(&scratch, &world, "table").contains("0 8 error"));
    let output = ctl(&scratch, &world, "message d hello");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no target of 'd'"));
    quiet(&world, "remove d");

    quiet(&world, "snapshot disk0 one --cow one.cow --chunk-size 16K --persistent P");
    quiet(&world, "snapshot disk0 two --cow two.cow --size 5M");
    quiet(&world, "delete disk0 one --delete-store");
    assert!(!scratch.path("one.cow").exists());
    quiet(&world, "overlay disk1 layer.cow --node-name lower");
    assert!(says(&scratch, &world, "table disk1").contains("snapshot lower ./layer.cow PO 8"));
    let socket = scratch.socket("e.sock");
    quiet(&world, &format!("export e disk1 {} --writable --num-queues 1", socket.display()));
    assert!(says(&scratch, &world, "exports").contains("e"));
    assert_same("exported", &disk(&socket).read_all().unwrap(), &stamped(0, SECTORS, 1));
    quiet(&world, "unexport e --hard");

    world.disk().write(0, &stamped(0, 64, 2)).unwrap();
    let shown = says(&scratch, &world, "status");
    for part in ["disk0", "disk1", "lower", "two", "snapshot-origin"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let status: Value = serde_json::from_str(&says(&scratch, &world, "status --json")).unwrap();
    assert_eq!(status["exports"][0]["id"], "disk0");
    says(&scratch, &world, "merge disk0 two --wait");
    assert_same("rolled back", &world.disk().read_all().unwrap(), &stamped(0, SECTORS, 1));
    says(&scratch, &world, "jobs");
    for verb in
        ["job-pause", "job-resume", "job-cancel", "job-complete", "job-finalize", "job-dismiss"]
    {
        let output = ctl(&scratch, &world, &format!("{verb} none"));
        assert_eq!(output.status.code(), Some(1), "{verb}");
    }
    assert!(says(&scratch, &world, "version").starts_with("snapblk"));
    assert!(says(&scratch, &world, "commands").contains("blockdev-snapshot-sync"));
    let schema: Value = serde_json::from_str(&says(&scratch, &world, "schema --json")).unwrap();
    assert!(schema.is_array());
    let output = ctl(&scratch, &world, "devices nobody");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("'nobody'"));
    quiet(&world, "quit");
    assert!(world.server.wait("end after quit").unwrap().success());
    let output = ctl(&scratch, &world, "status");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be reached"));
}

/// Its log may be on a full file system, or its reader may have gone: what it says is lost, and nothing
/// else.
#[test]
fn a_server_whose_log_cannot_be_written_serves() {
    let scratch = scratch();
    let full = "SNAPBLK_LOG=trace exec \"$0\" \"$@\" 2>/dev/full";
    let command = serve(&scratch).arg("--table").arg("0 2048 zero");
    let mut world = World::start(&command.run_by("/bin/sh".into(), ["-c", full].map(Into::into)));
    world.disk().read(0, 512).unwrap();
    world.call("device-create", json!({"name": "d"}));
    assert!(world.qmp.call("device-resume", json!({"name": "d"})).is_err());
    world.call("device-remove", json!({"name": "d"}));
    world.stop();
}
