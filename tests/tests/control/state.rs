//! The state that outlives the process, and the end of a process.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};
use snapblk_tests::server::{Scratch, ServerCommand, find_snapblk, output};

use crate::common::*;

const SECTORS: u64 = 2048;

fn golden(scratch: &Scratch) -> std::path::PathBuf {
    scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap()
}

/// Names in the test's directory.
fn names(scratch: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(scratch.dir()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "stderr.log");
    names.sort();
    names
}

#[test]
fn an_orderly_end_leaves_nothing_but_files_with_content() {
    let scratch = scratch();
    let base = golden(&scratch);
    for end in ["SIGTERM", "quit"] {
        let mut world = World::start(&overlay(&scratch, &base));
        let mut disk = world.disk();
        disk.write(0, &stamped(0, 8, 2)).unwrap();
        assert!(scratch.path("store.cow.owed").exists());
        assert!(fs::symlink_metadata(world.server.socket()).unwrap().file_type().is_socket());
        let sockets = [world.server.socket().to_owned(), world.server.monitor().to_owned()];
        match end {
            "SIGTERM" => {
                world.server.signal(Signal::TERM).unwrap();
                let event = world.event("SHUTDOWN");
                assert_eq!(event["data"], json!({"guest": false, "reason": "host-signal"}));
            }
            _ => {
                world.call("quit", json!({}));
                let event = world.event("SHUTDOWN");
                assert_eq!(event["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
            }
        }
        let status = world.server.wait("end").unwrap();
        assert!(status.success(), "{end}: {status}\n{}", world.server.stderr());
        for socket in sockets {
            assert!(!socket.exists(), "{end}: {} is left", socket.display());
        }
        assert_eq!(names(&scratch), ["golden.raw", "store.cow", "store.cow.state"], "{end}");
        assert_eq!(world.server.stderr(), "", "{end}");
    }
    let mut world = World::start(&overlay(&scratch, &base));
    assert_same("later", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 2));
    world.call("quit", json!({}));
    world.server.wait("end").unwrap();
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let scratch = scratch();
    let base = golden(&scratch);
    let mut world = World::start(&overlay(&scratch, &base));
    let mut disk = world.disk();
    disk.write(0, &stamped(0, 8, 2)).unwrap();
    // Both are pending before it continues, and the lower number is read first: it does not wait
    // long for the second.
    world.server.halt().unwrap();
    world.server.signal(Signal::TERM).unwrap();
    world.server.signal(Signal::INT).unwrap();
    world.server.signal(Signal::CONT).unwrap();
    let status = world.server.wait("end").unwrap();
    assert_eq!(status.code(), Some(128 + 15), "{}", world.server.stderr());
    // Acknowledged writes outlive that too.
    let world = World::start(&overlay(&scratch, &base));
    assert_same("later", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 2));
    world.stop();
}

/// Kills the process after each kind of command, and starts it with its first arguments.
#[test]
fn scenario_72_each_command_outlives_the_process() {
    let scratch = scratch();
    let file = golden(&scratch);
    let command = plain(&scratch, &file);
    let steps = [
        ("device-create", json!({"name": "extra", "uuid": "u-1"})),
        ("table-load", json!({"name": "extra", "table": ["0 8 zero", "8 8 error"]})),
        ("device-resume", json!({"name": "extra"})),
        ("table-load", json!({"name": "extra", "table": ["0 32 zero"], "read-only": true})),
        ("device-suspend", json!({"name": "extra"})),
        ("table-clear", json!({"name": "extra"})),
        ("device-resume", json!({"name": "extra"})),
        ("snapshot-create", json!({"device": "disk0", "name": "a", "cow": "a.cow"})),
        (
            "snapshot-create",
            json!({"device": "disk0", "name": "b", "cow": "b.cow", "chunk-size": 32768,
                   "persistent": "P"}),
        ),
        ("snapshot-delete", json!({"device": "disk0", "snapshot": "a", "delete-store": true})),
        ("device-remove", json!({"name": "extra"})),
    ];
    let mut generation = 1;
    for (command_name, arguments) in steps {
        let mut world = World::start(&command);
        world.call(command_name, arguments);
        let devices = |world: &mut World| {
            let mut all = world.call("query-devices", json!({}));
            let inactive = world.call("query-devices", json!({"inactive": true}));
            for device in all.as_array_mut().unwrap() {
                // The last allocation may be seen before or after its commit.
                device.as_object_mut().unwrap().remove("open-count");
            }
            (
                all,
                inactive.as_array().unwrap().iter().map(|d| d["table"].clone()).collect::<Vec<_>>(),
            )
        };
        let before = devices(&mut world);
        world.kill();
        let mut world = World::start(&command);
        assert_eq!(devices(&mut world), before, "after {command_name}");
        let mut disk = world.disk();
        assert_same(command_name, &disk.read_all().unwrap(), &stamped(0, SECTORS, generation));
        if command_name == "snapshot-delete" {
            assert_same("b", &world.content(&scratch, "b"), &stamped(0, SECTORS, 1));
            generation += 1;
            disk.write(0, &stamped(0, SECTORS, generation)).unwrap();
            assert_same("b", &world.content(&scratch, "b"), &stamped(0, SECTORS, 1));
        }
        world.kill();
    }
    let mut world = World::start(&command);
    let tables: Vec<_> = world.tables().into_iter().map(|(name, _)| name).collect();
    assert_eq!(tables, ["b", "disk0", "disk0-real"]);
    assert_same("b", &world.content(&scratch, "b"), &stamped(0, SECTORS, 1));
    world.stop();
}

/// Every mismatch that the next start of an overlay refuses, and its sentence.
#[test]
fn a_state_that_does_not_fit_is_refused() {
    let scratch = scratch();
    let base = golden(&scratch);
    let world = World::start(&overlay(&scratch, &base));
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.stop();
    let state = scratch.path("store.cow.state");
    let kept = fs::read_to_string(&state).unwrap();
    let with_state = |command: ServerCommand| command.arg("--state").arg(&state);

    // Other arguments.
    let other = scratch.file("other.raw", &stamped(0, SECTORS, 1)).unwrap();
    let said = does_not_start(&with_state(plain(&scratch, &other)));
    assert!(said.contains("knows the device 'disk0'") && said.contains("other.raw"), "{said}");
    let table =
        format!("0 {SECTORS} snapshot {} {} PO 8", word(&base), word(&scratch.path("store.cow")));
    World::start(&with_state(serve(&scratch).arg("--table").arg(&table))).stop();

    // A torn or foreign file.
    for wrong in [&kept[..kept.len() / 2], "\0\0\0", "version = 99\ngeneration = 1\n", ""] {
        fs::write(&state, wrong).unwrap();
        let said = does_not_start(&overlay(&scratch, &base));
        assert!(said.contains("store.cow.state is not a state file"), "{wrong:?}: {said}");
        // Without it a store may be served below its layers.
        assert!(said.contains("restore it") && !said.contains("start anew"), "{said}");
    }
    // An image, no part of which is printed, and a pipe, which would never end.
    let image = scratch.sparse("image.raw", 1 << 20).unwrap();
    let long = scratch.sparse("long.raw", 1 << 40).unwrap();
    let pipe = scratch.path("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for (other, why) in [(&image, "line 1"), (&long, "1099511627776 bytes"), (&pipe, "no regular")]
    {
        let said = does_not_start(&overlay(&scratch, &base).arg("--state").arg(other));
        assert!(said.contains("is not a state file") && said.contains(why), "{said}");
        assert!(said.len() < 2000, "{} bytes", said.len());
    }
    // One long word, or an image given for lines of a table: the beginning of it, in print.
    fs::write(&state, format!("version = \"{}\"\n", "\\u0007x".repeat(1 << 16))).unwrap();
    let lines = format!("@{}", word(&image));
    for command in [overlay(&scratch, &base), serve(&scratch).arg("--table").arg(lines)] {
        let said = does_not_start(&command);
        assert!(said.contains("line '\\0\\0") || said.contains("line 1: "), "{said}");
        assert!(said.len() < 2000 && !said.contains(['\0', '\u{7}']), "{} bytes", said.len());
    }
    // A half-written new one beside it is nothing.
    fs::write(&state, &kept).unwrap();
    fs::write(scratch.path("store.cow.state.new"), "vers").unwrap();
    World::start(&overlay(&scratch, &base)).stop();

    // A base that was changed, in content or in length.
    fs::write(&base, stamped(0, SECTORS, 9)).unwrap();
    let said = does_not_start(&overlay(&scratch, &base));
    assert!(said.contains("golden.raw changed since") && said.contains("--force"), "{said}");
    let world = World::start(&overlay(&scratch, &base).arg("--force"));
    assert_same("forced", &world.disk().read(8 * 512, 4096).unwrap(), &stamped(8, 8, 9));
    world.stop();
    // After one forced start it is accepted.
    World::start(&overlay(&scratch, &base)).stop();

    // A base that became shorter: the changed length in the arguments is not the reported error,
    // and the overlay is not cut off.
    let whole = fs::read(&base).unwrap();
    fs::write(&base, &whole[..whole.len() / 2]).unwrap();
    for command in [overlay(&scratch, &base), overlay(&scratch, &base).arg("--force")] {
        let said = does_not_start(&command);
        let (needs, has) = (SECTORS * 512, SECTORS * 256);
        for part in [format!("needs {needs} bytes"), format!("has {has}"), "shorter".into()] {
            assert!(said.contains(&part) && said.contains("golden.raw"), "{said}");
        }
    }
    fs::write(&base, &whole).unwrap();
    World::start(&overlay(&scratch, &base).arg("--force")).stop();

    // The store is missing, or empty.
    let store = fs::read(scratch.path("store.cow")).unwrap();
    fs::remove_file(scratch.path("store.cow")).unwrap();
    let said = does_not_start(&overlay(&scratch, &base));
    assert!(said.contains("store.cow is gone"), "{said}");
    assert!(!scratch.path("store.cow").exists(), "it was made anew");
    fs::write(scratch.path("store.cow"), vec![0; store.len()]).unwrap();
    let said = does_not_start(&overlay(&scratch, &base));
    assert!(said.contains("store.cow is gone"), "{said}");
    fs::write(scratch.path("store.cow"), store).unwrap();
    let world = World::start(&overlay(&scratch, &base));
    assert_same("restored", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 2));
    world.stop();
    assert_eq!(leftovers(scratch.dir()), [""; 0]);
}

fn leftovers(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".owed")).collect()
}

/// A read-only disk of the first arguments is not served as writable for the second.
#[test]
fn read_only_is_part_of_the_first_arguments() {
    let scratch = scratch();
    let base = golden(&scratch);
    let mut world = World::start(&plain(&scratch, &base).arg("--read-only"));
    world.call("device-create", json!({"name": "extra"}));
    world.stop();
    let said = does_not_start(&plain(&scratch, &base));
    assert!(said.contains("(read-only)"), "{said}");
    let world = World::start(&plain(&scratch, &base).arg("--read-only"));
    assert!(world.disk().info().read_only);
    world.stop();
}

/// Owed chunks of a killed server are beside the store, not beside the link that it was opened by;
/// so is the state.
#[test]
fn what_is_owed_is_found_by_each_name_of_a_store() {
    let scratch = scratch();
    let base = golden(&scratch);
    fs::create_dir(scratch.path("sub")).unwrap();
    scratch.file("sub/real.cow", b"").unwrap();
    std::os::unix::fs::symlink("sub/real.cow", scratch.path("link.cow")).unwrap();
    let by = |name: &str| plain(&scratch, &base).arg("--overlay").arg(name);
    let world = World::start(&by("link.cow"));
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.kill();
    let mut info = Command::new(find_snapblk().unwrap());
    let info = output(info.arg("info").arg(scratch.path("sub/real.cow"))).unwrap();
    assert!(info.status.success(), "{info:?}");
    let text = String::from_utf8(info.stdout).unwrap();
    assert!(text.contains("1 chunk"), "{text}");
    assert!(!scratch.path("link.cow.owed").exists() && !scratch.path("link.cow.state").exists());
    // The state has the name that it was opened by.
    let said = does_not_start(&by("sub/real.cow"));
    assert!(said.contains("link.cow"), "{said}");
    let world = World::start(&by("sub/real.cow").arg("--state").arg("other.state"));
    assert_same("disk0", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 2));
    world.stop();
    // A deleted store is gone under both names.
    let mut world = World::start(&plain(&scratch, &base));
    std::os::unix::fs::symlink("sub/snap.cow", scratch.path("snap.cow")).unwrap();
    scratch.file("sub/snap.cow", b"").unwrap();
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    let delete = json!({"device": "disk0", "snapshot": "snap", "delete-store": true});
    world.call("snapshot-delete", delete);
    assert!(fs::symlink_metadata(scratch.path("snap.cow")).is_err());
    assert!(!scratch.path("sub/snap.cow").exists());
    world.stop();
}

/// An earlier version kept the state beside the link: it is found there, and stays there. If there
/// is another beside the file, neither is silently ignored.
#[test]
fn of_two_states_of_a_store_none_is_chosen_in_silence() {
    let scratch = scratch();
    let base = golden(&scratch);
    fs::create_dir(scratch.path("sub")).unwrap();
    scratch.file("sub/real.cow", b"").unwrap();
    std::os::unix::fs::symlink("sub/real.cow", scratch.path("link.cow")).unwrap();
    let by_link = plain(&scratch, &base).arg("--overlay").arg("link.cow");
    let (named, real) = (scratch.path("link.cow.state"), scratch.path("sub/real.cow.state"));
    let mut world = World::start(&by_link);
    world.call("device-create", json!({"name": "told"}));
    world.stop();
    fs::rename(&real, &named).unwrap();
    let mut world = World::start(&by_link);
    assert!(world.tables().iter().any(|(name, _)| name == "told"));
    world.call("device-create", json!({"name": "later"}));
    world.stop();
    assert!(named.exists() && !real.exists());

    // The file's own name does not lead to the link.
    World::start(&plain(&scratch, &base).arg("--overlay").arg("sub/real.cow")).stop();
    assert!(real.exists());
    let said = does_not_start(&by_link);
    for part in ["two state files", "link.cow.state", "sub/real.cow.state", "'--state'"] {
        assert!(said.contains(part), "{said}");
    }
    let mut world = World::start(&by_link.clone().arg("--state").arg("link.cow.state"));
    assert!(world.tables().iter().any(|(name, _)| name == "later"));
    world.stop();
    fs::remove_file(&named).unwrap();
    // The remaining state knows the store only by another name, and the error says so.
    let said = does_not_start(&by_link);
    assert!(said.contains("sub/real.cow"), "{said}");
}

/// Files whose names contain characters with a meaning in table lines.
#[test]
fn names_with_white_space_outlive_the_process() {
    let scratch = scratch();
    let base = scratch.file(r"a b\c.raw", &stamped(0, SECTORS, 1)).unwrap();
    let command = plain(&scratch, &base).arg("--overlay").arg("o\u{a0}1 \n.cow");
    let mut world = World::start(&command);
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.call("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": "top 2.cow"}));
    world.call("device-create", json!({"name": "lines"}));
    let line = format!(r"0 {SECTORS} linear ./a\ b\\c.raw 0");
    world.call("table-load", json!({"name": "lines", "table": [line], "read-only": true}));
    world.call("device-resume", json!({"name": "lines"}));
    let tables = world.tables();
    assert_eq!(tables[0].1, [format!(r"0 {SECTORS} snapshot disk0.1 ./top\ 2.cow PO 8")]);
    assert_eq!(tables[2].1, [line]);
    world.stop();
    for _ in 0..2 {
        let mut world = World::start(&command);
        assert_eq!(world.tables(), tables);
        assert_same("disk0", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 2));
        // The shown tables can be loaded.
        for (name, table) in &tables {
            let load = json!({"name": name, "table": table, "read-only": name != "disk0"});
            world.call("table-load", load);
            world.call("device-resume", json!({"name": name}));
        }
        assert_eq!(world.tables(), tables);
        assert_same("disk0", &world.disk().read(0, 8 * 512).unwrap(), &stamped(0, 8, 2));
        world.stop();
    }
    assert!(names(&scratch).contains(&"o\u{a0}1 \n.cow".to_owned()), "{:?}", names(&scratch));
    // A file of lines, one of which contains an escaped newline.
    let over = format!("0 {SECTORS} snapshot ./a\\ b\\\\c.raw ./new\\\n.cow PO 8\r\n\n");
    scratch.file("new\n.cow", &[0; 1 << 16]).unwrap();
    scratch.file("lines", over.as_bytes()).unwrap();
    World::start(&serve(&scratch).arg("--table").arg("@lines")).stop();
}

/// An unchanged plain disk leaves no state file.
#[test]
fn a_plain_disk_leaves_no_state() {
    let scratch = scratch();
    let world = World::start(&plain(&scratch, &golden(&scratch)));
    world.disk().write(0, &stamped(0, 8, 2)).unwrap();
    world.stop();
    assert_eq!(names(&scratch), ["golden.raw"]);
}

/// The header could not be written, so the state records that the store is invalid.
#[test]
fn a_store_that_the_state_calls_invalid_is() {
    let scratch = scratch();
    let file = golden(&scratch);
    let mut world = World::start(&plain(&scratch, &file));
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    world.stop();
    let state = scratch.path("golden.raw.state");
    let kept = fs::read_to_string(&state).unwrap();
    let invalid = format!(
        "invalid = [{:?}]\n{}",
        scratch.path("snap.cow"),
        kept.replace("invalid = []\n", "")
    );
    fs::write(&state, invalid).unwrap();
    // Its list is not read: an entry that cannot be right stops no disk.
    let mut store = fs::read(scratch.path("snap.cow")).unwrap();
    store[4096..4112].fill(0xff);
    fs::write(scratch.path("snap.cow"), store).unwrap();
    for _ in 0..2 {
        let mut world = World::start(&plain(&scratch, &file));
        assert_eq!(world.status("snap"), [format!("0 {SECTORS} snapshot Invalid")]);
        world.stop();
        // Now it can be written, and other programs see it, too.
        assert_eq!(fs::read(scratch.path("snap.cow")).unwrap()[4..8], [0; 4]);
    }
    // A new store of the same name is valid.
    let mut world = World::start(&plain(&scratch, &file));
    let delete = json!({"device": "disk0", "snapshot": "snap", "delete-store": true});
    world.call("snapshot-delete", delete);
    world.call("snapshot-create", json!({"device": "disk0", "name": "snap", "cow": "snap.cow"}));
    assert!(world.status("snap")[0].contains("snapshot 16/"));
    world.stop();
    let mut world = World::start(&plain(&scratch, &file));
    assert!(world.status("snap")[0].contains("snapshot 16/"));
    world.stop();
}

#[test]
fn what_cannot_be_served_is_said_in_one_sentence_and_leaves_nothing() {
    let scratch = scratch();
    let base = golden(&scratch);
    let said = does_not_start(&plain(&scratch, &scratch.path("none.raw")));
    assert!(said.contains("none.raw"), "{said}");
    let empty = scratch.sparse("empty.raw", 0).unwrap();
    let said = does_not_start(&plain(&scratch, &empty));
    assert!(said.contains("empty.raw") && said.contains("empty"), "{said}");
    // A file of another kind as the store.
    scratch.file("store.cow", b"not a store, but a file of some bytes").unwrap();
    let said = does_not_start(&overlay(&scratch, &base));
    assert!(said.contains("store.cow"), "{said}");
    // A socket that cannot be created.
    let command = monitor_only(&scratch).arg("--name").arg("x").arg("--blk-file").arg(&base);
    let command = command.arg("--socket-path").arg("no/such/directory/x.sock");
    let said = does_not_start(&command);
    assert!(said.contains("no/such/directory"), "{said}");
    assert_eq!(names(&scratch), ["empty.raw", "golden.raw", "store.cow"]);
}

/// Common mistakes are found before a store is created: after correcting the arguments there is no
/// unwanted store.
#[test]
fn a_start_that_fails_for_another_reason_makes_no_store() {
    let scratch = scratch();
    let base = golden(&scratch);
    let taken = scratch.socket("taken.sock");
    let _listens = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    scratch.file("file", b"no socket").unwrap();
    let nowhere = &*format!("0 {SECTORS} linear ./none.raw 0");
    let taken = word(&taken);
    // The same file by another path.
    let again = scratch.dir().join("..").join(scratch.dir().file_name().unwrap()).join("new.cow");
    let again = word(&again);
    let socket = |path| vec!["--socket-path", path];
    let second = |more: &[&'static str]| [&["--name", "b"][..], more].concat();
    for (arguments, says) in [
        (socket(taken), "taken.sock"),
        (socket("file"), "is not a socket"),
        (socket("no/where/x.sock"), "no/where/x.sock"),
        (vec!["--monitor", taken], "taken.sock"),
        (vec!["--monitor", "file"], "no socket"),
        (vec!["--monitor", "no/where/m.sock"], "no/where/m.sock"),
        (vec!["--fd", "77"], "descriptor 77"),
        (vec!["--socket-path", "one.sock", "--monitor", "one.sock"], "as well"),
        (
            [&socket("one.sock")[..], &second(&["--blk-file", "golden.raw"]), &socket("one.sock")]
                .concat(),
            "as well",
        ),
        ([&second(&["--table"])[..], &[nowhere]].concat(), "none.raw"),
        (second(&["--blk-file", "none.raw"]), "none.raw"),
        (second(&["--blk-file", "golden.raw", "--overlay", "no/where/b.cow"]), "no/where/b.cow"),
        (vec!["--state", "no/where/state"], "no/where/state"),
        (vec!["--state", "file/state"], "file/state"),
        (vec!["--state", "new.cow"], "keeps its state"),
        (vec!["--state", again], "keeps its state"),
        (vec!["--monitor", "new.cow.state.lock"], "keeps its state"),
        (
            second(&["--blk-file", "golden.raw", "--overlay", "new.cow.state.new"]),
            "keeps its state",
        ),
        (second(&["--table", "0 8 linear ./new.cow.state 0"]), "keeps its state"),
    ] {
        let mut command = Command::new(find_snapblk().unwrap());
        command.current_dir(scratch.dir()).arg("serve").arg("--blk-file").arg(&base);
        command.arg("--overlay").arg("new.cow").args(arguments);
        let output = output(&mut command).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(says), "{said}");
        assert_eq!(names(&scratch), ["file", "golden.raw"], "{said}");
    }
    // Without a store, only a command would find it out.
    let said = does_not_start(&plain(&scratch, &base).arg("--state").arg("no/where/state"));
    assert!(said.contains("no/where/state") && said.contains("--state"), "{said}");
}

#[test]
fn bytes_behind_the_last_sector_are_told_of() {
    let scratch = scratch();
    let file = scratch.file("odd.raw", &[1; 1000]).unwrap();
    let world = World::start(&plain(&scratch, &file));
    let said = world.server.stderr();
    assert!(said.contains("odd.raw has 1000 bytes: the last 488"), "{said}");
    assert_eq!(world.disk().read_all().unwrap(), [1; 512]);
    world.stop();
}

#[test]
fn a_name_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let scratch = scratch();
    let base = golden(&scratch);
    let name = std::ffi::OsString::from_vec(b"a\xff.raw".to_vec());
    let file = scratch.dir().join(&name);
    fs::copy(&base, &file).unwrap();
    let said = does_not_start(&plain(&scratch, &file));
    assert!(said.contains("names of files must be UTF-8"), "{said}");
    let said = does_not_start(&plain(&scratch, &base).arg("--overlay").arg(name));
    assert!(said.contains("names of files must be UTF-8"), "{said}");
}

/// A change that cannot be recorded is not made.
#[test]
fn a_command_that_cannot_be_kept_changes_nothing() {
    let scratch = scratch();
    let file = golden(&scratch);
    let dir = scratch.path("states");
    fs::create_dir(&dir).unwrap();
    let command = plain(&scratch, &file).arg("--state").arg(dir.join("state"));
    let mut world = World::start(&command);
    let mut disk = world.disk();
    world.call("snapshot-create", json!({"device": "disk0", "name": "kept", "cow": "kept.cow"}));
    world.call("device-create", json!({"name": "extra"}));
    world.call("table-load", json!({"name": "extra", "table": ["0 8 zero"]}));
    fs::rename(&dir, scratch.path("away")).unwrap();
    let (tables, all) = (world.tables(), |world: &mut World| {
        let all = world.call("query-devices", json!({}));
        let all = all.as_array().unwrap().iter();
        let state = |d: &Value| (d["state"].clone(), d["has-inactive-table"].clone());
        all.map(state).collect::<Vec<_>>()
    });
    let before = all(&mut world);
    let files = names(&scratch);
    for (command, arguments) in [
        ("device-create", json!({"name": "new"})),
        ("table-load", json!({"name": "extra", "table": ["0 16 zero"]})),
        ("table-clear", json!({"name": "extra"})),
        ("device-suspend", json!({"name": "disk0"})),
        ("device-remove", json!({"name": "kept"})),
        ("snapshot-create", json!({"device": "disk0", "name": "new", "cow": "new.cow"})),
        ("snapshot-delete", json!({"device": "disk0", "snapshot": "kept", "delete-store": true})),
        ("snapshot-merge", json!({"device": "disk0", "snapshot": "kept", "job-id": "j"})),
    ] {
        let said = world.refused(command, arguments);
        assert!(said.contains("states/state"), "{command}: {said}");
        assert_eq!(world.tables(), tables, "{command}");
        assert_eq!(all(&mut world), before, "{command}");
        assert_eq!(names(&scratch), files, "{command}");
        disk.write(0, &stamped(0, 8, 2)).unwrap();
    }
    world.refused("device-resume", json!({"name": "extra"}));
    assert_eq!(world.call("query-jobs", json!({})), json!([]));
    fs::rename(scratch.path("away"), &dir).unwrap();
    world.call("device-resume", json!({"name": "extra"}));
    assert_same("kept", &world.content(&scratch, "kept"), &stamped(0, SECTORS, 1));
    world.stop();
}

/// A disk of the arguments that a client removed stays removed, and others are served.
#[test]
fn a_disk_that_was_removed_is_not_exported_by_the_next_start() {
    let scratch = scratch();
    let (file, other) = (golden(&scratch), scratch.sparse("other.raw", 1 << 20).unwrap());
    let command = plain(&scratch, &file).arg("--name").arg("other").arg("--blk-file").arg(other);
    let mut world = World::start(&command);
    world.call("block_resize", json!({"device": "disk0", "size": 2 * SECTORS * 512}));
    world.call("block-export-del", json!({"id": "disk0", "mode": "hard"}));
    world.call("device-remove", json!({"name": "disk0"}));
    world.stop();
    let mut world = World::start(&command.clone().awaiting_monitor_alone());
    assert_eq!(world.call("query-block-exports", json!({})), json!([]));
    let said = world.server.stderr();
    assert!(said.contains("disk 'disk0' is not exported: there is no device 'disk0'"), "{said}");
    let names = world.tables().into_iter().map(|(name, _)| name);
    assert_eq!(names.collect::<Vec<_>>(), ["other"]);
    // Made again by a client, it is one of the arguments again.
    world.make("disk0", &[format!("0 {SECTORS} linear {} 0", word(&file))]);
    world.stop();
    let world = World::start(&command);
    let found = world.disk().read(0, SECTORS as usize * 512).unwrap();
    assert_same("made again", &found, &stamped(0, SECTORS, 1));
    world.stop();
}
