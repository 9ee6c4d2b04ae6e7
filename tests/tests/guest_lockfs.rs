//! A real guest with a real agent: its file systems are frozen while a snapshot is taken, and
//! thawed in any case.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use snapblk_qmp::client::{Client as Qmp, ClientError};
use snapblk_tests::guest::{Disk, Guest, GuestConfig};
use snapblk_tests::server::{Place, Scratch, ServerCommand};

const DISK: u64 = 96 << 20;

fn call(qmp: &mut Qmp, command: &str, arguments: Value) {
    let said = qmp.call(command, arguments.clone());
    said.unwrap_or_else(|error| panic!("{command} {arguments}: {error}"));
}

/// A device that the guest has from its start and that gets its content later, and its socket.
fn view(qmp: &mut Qmp, scratch: &Scratch, name: &str) -> Disk {
    let socket = scratch.socket(&format!("{name}.sock"));
    call(qmp, "device-create", json!({"name": name}));
    swap(qmp, name, &format!("0 {} zero", DISK / 512));
    let addr = json!({"type": "unix", "path": socket});
    call(
        qmp,
        "block-export-add",
        json!({"type": "vhost-user-blk", "id": name, "node-name": name, "addr": addr}),
    );
    Disk::Served { socket, queues: 1 }
}

fn swap(qmp: &mut Qmp, name: &str, line: &str) {
    call(qmp, "table-load", json!({"name": name, "table": [line]}));
    call(qmp, "device-resume", json!({"name": name}));
}

/// The next event about a freeze or a suspend, with its agent.
fn event(qmp: &mut Qmp, wanted: &str, agent: &Path) {
    loop {
        let event = qmp.event(Some(Duration::from_secs(60))).expect("the monitor lives");
        let event = event.unwrap_or_else(|| panic!("no {wanted}"));
        if event["event"] == wanted {
            assert_eq!(event["data"]["agent"], agent.to_str().expect("a path of a test is text"));
            return;
        }
    }
}

/// The guest's report on an image: whether its journal must be replayed, fsck's status, whole files
/// and broken ones.
fn looked<'a>(words: &[&'a str]) -> (&'a str, u32, u32, u32) {
    let number = |at: usize| words[at].parse().expect("a number");
    (words[0], number(1), number(2), number(3))
}

#[test]
fn a_snapshot_of_a_frozen_guest_needs_no_recovery() {
    let scratch = Scratch::new(Place::Memory).unwrap();
    let image = scratch.sparse("disk.raw", DISK).unwrap();
    let agent = scratch.socket("agent.sock");
    let command = ServerCommand::snapblk(&scratch).unwrap();
    let command = command.arg("--blk-file").arg(image).arg("--num-queues").arg("1");
    let server = command.arg("--guest-agent").arg(&agent).start();
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    let mut qmp = Qmp::connect(server.monitor()).unwrap();
    let mut config = GuestConfig::new(include_str!("../guest/lockfs.sh"))
        .disk(Disk::Served { socket: server.socket().to_owned(), queues: 1 })
        .disk(view(&mut qmp, &scratch, "view-frozen"))
        .disk(view(&mut qmp, &scratch, "view-torn"));
    config.agent = Some(agent.clone());
    config.timeout = Duration::from_secs(400);
    let mut guest = Guest::boot(&config).unwrap_or_else(|error| panic!("{error}"));
    let ready = guest.wait_for_line("ready");
    ready.unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));

    let snapshot = |name: &str, cow: &str| json!({"device": "disk0", "name": name, "cow": cow});
    let mut torn = snapshot("torn", "torn.cow");
    torn["skip-lockfs"] = json!(true);
    call(&mut qmp, "snapshot-create", torn);
    // A command that fails while the guest is frozen.
    scratch.file("full.cow", b"something").unwrap();
    match qmp.call("snapshot-create", snapshot("other", "full.cow")) {
        Err(ClientError::Command(error)) => {
            assert!(error.desc.contains("full.cow is there and not empty"), "{error}");
        }
        other => panic!("it is not refused: {other:?}"),
    }
    call(&mut qmp, "snapshot-create", snapshot("frozen", "frozen.cow"));
    guest.send_line("taken").unwrap();
    guest.wait_for_line("goes-on").unwrap_or_else(|error| panic!("{error}"));

    // A device that stays suspended does not keep its guest frozen.
    call(&mut qmp, "device-suspend", json!({"name": "disk0"}));
    event(&mut qmp, "GUEST_THAWED_EARLY", &agent);
    call(&mut qmp, "device-resume", json!({"name": "disk0"}));
    for name in ["frozen", "torn"] {
        swap(&mut qmp, &format!("view-{name}"), &format!("0 {} linear {name} 0", DISK / 512));
    }
    guest.send_line("resumed").unwrap();
    let result = guest.finish().unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));
    result.expect_success();

    let said = result.said("frozen").next().expect("a look at the frozen image");
    let (needs, fsck, whole, broken) = looked(&said);
    assert_eq!((needs, fsck, broken), ("clean", 0, 0), "the frozen image");
    assert!(whole >= 20, "{whole} of the files that were written before");
    // Without a freeze, the same image is not clean; otherwise this test could not fail.
    let said = result.said("torn").next().expect("a look at the other image");
    let (needs, _, whole, _) = looked(&said);
    assert_eq!(needs, "needs-recovery", "the image of a guest that was not frozen");
    assert!(whole < 20, "nothing was synced, and {whole} files are there");
    let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "SIGTERM ended it with {status}");
}
