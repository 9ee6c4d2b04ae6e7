//! Guests whose agents are asked to freeze: which commands ask, when, and that all of them thaw.
//! The agent belongs to the test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use snapblk_store::control::ErrorClass;
use snapblk_tests::disk::Disk;
use snapblk_tests::server::Scratch;

use crate::common::*;

const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";
const STATUS: &str = "guest-fsfreeze-status";
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest's action when it is told to freeze or to thaw.
type Act = Box<dyn FnMut(&str) -> Option<Value> + Send>;

/// An agent with the usual answers, unless `act` has another.
struct Agent {
    heard: Receiver<String>,
}

impl Agent {
    fn start(path: &Path, act: Act) -> Agent {
        let listener = UnixListener::bind(path).unwrap();
        let (hear, heard) = channel();
        let act = Arc::new(Mutex::new(act));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve(&stream, |command| {
                    // The test may have ended.
                    let _ = hear.send(command.to_owned());
                    act.lock().unwrap()(command)
                });
            }
        });
        Agent { heard }
    }

    fn heard(&self) -> String {
        self.heard.recv_timeout(PATIENCE).expect("the agent hears something")
    }

    fn heard_no_more(&self) {
        assert_eq!(self.heard.try_iter().collect::<Vec<_>>(), Vec::<String>::new());
    }
}

fn serve(mut stream: &UnixStream, mut act: impl FnMut(&str) -> Option<Value>) {
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let text: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
        let said: Value = serde_json::from_slice(&text).expect("a command");
        let command = said["execute"].as_str().expect("its name");
        let answer = match command {
            "guest-sync-delimited" => Some(json!({"return": said["arguments"]["id"]})),
            STATUS => act(command).or(Some(json!({"return": "thawed"}))),
            _ => act(command).or(Some(json!({"return": 1}))),
        };
        let Some(answer) = answer else { continue };
        let mark: &[u8] = if command == "guest-sync-delimited" { &[0xff] } else { &[] };
        if stream.write_all(&[mark, format!("{answer}\n").as_bytes()].concat()).is_err() {
            return;
        }
    }
}

struct Guest {
    scratch: Scratch,
    world: World,
    agent: Agent,
    disk: Disk,
    socket: PathBuf,
}

/// A connected plain disk whose guest's agent does `act`.
fn guest(act: impl FnMut(&str) -> Option<Value> + Send + 'static) -> Guest {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, 1024, 1)).unwrap();
    let socket = scratch.socket("agent.sock");
    let agent = Agent::start(&socket, Box::new(act));
    let world = World::start(&plain(&scratch, &file).arg("--guest-agent").arg(&socket));
    // The query whether the guest was left frozen.
    assert_eq!(agent.heard(), STATUS);
    let disk = world.disk();
    Guest { scratch, world, agent, disk, socket }
}

fn snapshot(name: &str) -> Value {
    json!({"device": "disk0", "name": name, "cow": format!("{name}.cow")})
}

#[test]
fn a_guest_is_frozen_before_its_disk_and_thawed_behind_it() {
    // Data that the guest writes during the freeze goes to the disk, and is in the snapshot.
    let late: Arc<Mutex<Option<Disk>>> = Arc::default();
    let writer = late.clone();
    let Guest { scratch, mut world, agent, disk, .. } = guest(move |command| {
        if let (FREEZE, Some(disk)) = (command, &mut *writer.lock().unwrap()) {
            disk.write(0, &stamped(0, 8, 2)).expect("the disk serves while the guest freezes");
        }
        if let (THAW, Some(disk)) = (command, &mut *writer.lock().unwrap()) {
            disk.write(0, &stamped(0, 8, 3)).expect("the disk serves when the guest is thawed");
        }
        None
    });
    *late.lock().unwrap() = Some(disk);
    world.call("snapshot-create", snapshot("one"));
    assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW]);
    let mut wanted = stamped(0, 1024, 1);
    wanted[..8 * 512].copy_from_slice(&stamped(0, 8, 2));
    assert_same("one", &world.content(&scratch, "one"), &wanted);
    wanted[..8 * 512].copy_from_slice(&stamped(0, 8, 3));
    assert_same("disk0", &world.content(&scratch, "disk0"), &wanted);
    agent.heard_no_more();
    world.stop();
}

#[test]
fn who_asks_for_it_is_not_frozen() {
    let Guest { scratch: _scratch, mut world, agent, disk, .. } = guest(|_| None);
    let mut skips = snapshot("one");
    skips["skip-lockfs"] = json!(true);
    world.call("snapshot-create", skips.clone());
    skips["name"] = json!("two");
    skips["cow"] = json!("two.cow");
    let actions = json!([{"type": "snapshot-create", "data": skips}]);
    world.call("transaction", json!({"actions": actions}));
    world.call("device-suspend", json!({"name": "disk0", "skip-lockfs": true}));
    world.call("device-resume", json!({"name": "disk0"}));
    world.call("device-suspend", json!({"name": "disk0", "noflush": true}));
    world.call("device-resume", json!({"name": "disk0"}));
    let load = json!({"name": "disk0", "table": world.table("disk0")});
    world.call("table-load", load);
    world.call("device-resume", json!({"name": "disk0", "skip-lockfs": true}));
    agent.heard_no_more();
    drop(disk);
    world.stop();
}

/// A resume that swaps a table suspends the device by itself.
#[test]
fn a_guest_is_frozen_while_the_table_of_its_serving_disk_is_swapped() {
    let Guest { scratch, mut world, agent, mut disk, .. } = guest(|_| None);
    let table = world.table("disk0");
    // Nothing is swapped.
    world.call("device-resume", json!({"name": "disk0"}));
    agent.heard_no_more();
    world.call("table-load", json!({"name": "disk0", "table": table}));
    world.call("device-resume", json!({"name": "disk0"}));
    assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW]);
    // It was frozen when the disk was suspended, and that is enough.
    world.call("device-suspend", json!({"name": "disk0"}));
    world.call("table-load", json!({"name": "disk0", "table": table}));
    world.call("device-resume", json!({"name": "disk0"}));
    assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW]);
    // The disk stays suspended, and the guest frozen, if the new table cannot serve.
    let gone = scratch.file("gone.raw", &stamped(0, 1024, 2)).unwrap();
    let line = format!("0 1024 linear {} 0", word(&gone));
    world.call("table-load", json!({"name": "disk0", "table": [line]}));
    std::fs::remove_file(&gone).unwrap();
    world.refused("device-resume", json!({"name": "disk0"}));
    assert_eq!(agent.heard(), FREEZE);
    agent.heard_no_more();
    world.call("device-resume", json!({"name": "disk0"}));
    assert_eq!(agent.heard(), THAW);
    agent.heard_no_more();
    disk.write(0, &stamped(0, 8, 2)).unwrap();
    world.stop();
}

#[test]
fn a_disk_without_a_guest_has_nobody_to_freeze() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, 1024, 1)).unwrap();
    let socket = scratch.socket("agent.sock");
    let mut world = World::start(&plain(&scratch, &file).arg("--guest-agent").arg(&socket));
    // The agent's socket does not exist, either.
    world.call("snapshot-create", snapshot("one"));
    let disk = world.disk();
    let said = world.refused("snapshot-create", snapshot("two"));
    assert!(said.contains("cannot connect to the guest agent"), "{said}");
    drop(disk);
    world.stop();
}

#[test]
fn every_way_to_take_a_moment_freezes_and_a_failure_thaws() {
    let Guest { scratch, mut world, agent, mut disk, .. } = guest(|_| None);
    scratch.file("full.cow", b"something").unwrap();
    let full = json!({"device": "disk0", "name": "two", "cow": "full.cow"});
    let said = world.refused("snapshot-create", full.clone());
    assert!(said.contains("full.cow is there and not empty"), "{said}");
    assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW]);
    let overlay = json!({"device": "disk0", "snapshot-file": "one.cow"});
    world.call("blockdev-snapshot-sync", overlay);
    assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW]);
    let action = json!({"type": "blockdev-snapshot-sync",
                        "data": {"device": "disk0", "snapshot-file": "two.cow"}});
    let abort = json!({"type": "abort", "data": {}});
    world.refused("transaction", json!({"actions": [action, abort]}));
    assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW]);
    world.call("transaction", json!({"actions": [action]}));
    assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW]);
    let nowhere = json!({"device": "nobody", "name": "two", "cow": "two.cow"});
    world.refused_as(ErrorClass::DeviceNotFound, "snapshot-create", nowhere);
    agent.heard_no_more();
    disk.write(0, &stamped(0, 8, 2)).unwrap();
    world.stop();
}

#[test]
fn a_suspended_device_keeps_its_guest_frozen_until_it_is_resumed() {
    let Guest { scratch: _scratch, mut world, agent, disk, .. } = guest(|_| None);
    world.call("device-suspend", json!({"name": "disk0"}));
    assert_eq!(agent.heard(), FREEZE);
    // One freeze is enough.
    world.call("device-suspend", json!({"name": "disk0"}));
    agent.heard_no_more();
    world.call("device-resume", json!({"name": "disk0"}));
    assert_eq!(agent.heard(), THAW);
    world.call("device-suspend", json!({"name": "disk0"}));
    assert_eq!(agent.heard(), FREEZE);
    // An orderly end thaws too.
    drop(disk);
    world.stop();
    assert_eq!(agent.heard(), THAW);
    agent.heard_no_more();
}

/// The device is not resumed: the limit is 10 seconds.
#[test]
fn a_guest_is_thawed_when_nobody_resumes_its_device() {
    let Guest { scratch: _scratch, mut world, agent, disk, socket } = guest(|_| None);
    world.call("device-suspend", json!({"name": "disk0"}));
    let event = world.event("GUEST_THAWED_EARLY");
    assert_eq!(event["data"]["agent"], json!(socket));
    assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW]);
    assert_eq!(world.device("disk0")["state"], "suspended");
    world.call("device-resume", json!({"name": "disk0"}));
    agent.heard_no_more();
    drop(disk);
    world.stop();
}

#[test]
fn what_the_agent_refuses_is_refused_and_nothing_has_changed() {
    let refuses = json!({"error": {"class": "GenericError", "desc": "a hook failed"}});
    let Guest { scratch, mut world, agent, mut disk, .. } =
        guest(move |command| (command == FREEZE).then(|| refuses.clone()));
    let tables = world.tables();
    world.call("table-load", json!({"name": "disk0", "table": tables[0].1}));
    for (command, arguments) in [
        ("snapshot-create", snapshot("one")),
        ("device-suspend", json!({"name": "disk0"})),
        ("blockdev-snapshot-sync", json!({"device": "disk0", "snapshot-file": "one.cow"})),
        ("device-resume", json!({"name": "disk0"})),
    ] {
        let said = world.refused(command, arguments);
        assert!(said.contains("a hook failed") && said.contains("skip-lockfs"), "{said}");
        assert_eq!([agent.heard(), agent.heard()], [FREEZE, THAW], "{command}");
    }
    assert_eq!(world.tables(), tables);
    let device = world.device("disk0");
    assert_eq!((&device["state"], &device["has-inactive-table"]), (&json!("active"), &json!(true)));
    assert!(!scratch.path("one.cow").exists());
    disk.write(0, &stamped(0, 8, 2)).unwrap();
    world.stop();
}

/// A killed process cannot thaw; the next one does.
#[test]
fn a_guest_that_was_left_frozen_is_thawed_by_the_next_process() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, 1024, 1)).unwrap();
    let socket = scratch.socket("agent.sock");
    let mut frozen = false;
    let act = move |command: &str| match command {
        FREEZE | THAW => {
            frozen = command == FREEZE;
            None
        }
        _ => Some(json!({"return": if frozen { "frozen" } else { "thawed" }})),
    };
    let agent = Agent::start(&socket, Box::new(act));
    let command = plain(&scratch, &file).arg("--guest-agent").arg(&socket);
    let mut world = World::start(&command);
    assert_eq!(agent.heard(), STATUS);
    let disk = world.disk();
    world.call("device-suspend", json!({"name": "disk0"}));
    assert_eq!(agent.heard(), FREEZE);
    world.kill();
    drop(disk);
    let mut world = World::start(&command);
    assert_eq!([agent.heard(), agent.heard()], [STATUS, THAW]);
    world.call("device-resume", json!({"name": "disk0"}));
    world.stop();
}

/// A verb for another device may end a suspend, or the suspended device: its guest is thawed then,
/// and not by its limit.
#[test]
fn a_guest_is_thawed_when_its_device_serves_again_or_goes_by_another_verb() {
    for verb in ["device-resume", "snapshot-delete", "snapshot-merge"] {
        let scratch = scratch();
        let origin = scratch.file("disk.raw", &stamped(0, 1024, 1)).unwrap();
        let cow = scratch.sparse("old.cow", 1 << 20).unwrap();
        let (agents, socket) = (scratch.socket("agent.sock"), scratch.socket("old.sock"));
        let agent = Agent::start(&agents, Box::new(|_| None));
        let (origin, cow) = (word(&origin), word(&cow));
        let line = format!("0 1024 snapshot base {cow} PO 8");
        let command = monitor_only(&scratch)
            .arg("--name=base")
            .arg(format!("--table=0 1024 snapshot-origin {origin}"))
            .arg("--name=old")
            .arg("--num-queues=1")
            .arg(format!("--table={line}"))
            .arg(format!("--socket-path={}", word(&socket)))
            .arg(format!("--guest-agent={}", word(&agents)));
        let mut world = World::start(&command);
        assert_eq!(agent.heard(), STATUS);
        let front = disk(&socket);
        if verb == "device-resume" {
            world.call("device-create", json!({"name": "new"}));
            world.call("table-load", json!({"name": "new", "table": [line]}));
        }
        world.call("device-suspend", json!({"name": "old"}));
        assert_eq!(agent.heard(), FREEZE);
        if verb != "device-resume" {
            drop(front);
            world.call("block-export-del", json!({"id": "old", "mode": "hard"}));
        }
        match verb {
            "device-resume" => world.call(verb, json!({"name": "new"})),
            "snapshot-delete" => world.call(verb, json!({"device": "base", "snapshot": "old"})),
            _ => world.call(verb, json!({"device": "base", "snapshot": "old", "job-id": "job"})),
        };
        assert_eq!(agent.heard.try_recv().as_deref(), Ok(THAW), "{verb}");
        agent.heard_no_more();
        world.stop();
    }
}
