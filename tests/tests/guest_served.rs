//! A real guest on a served disk: mkfs, files, fsck, fio with verification, and the two start/stop
//! cycles of each boot (the firmware's and the kernel's), over a reboot. Also a disk that grows
//! under a running guest, and one whose server is killed.
//!
//! The first also runs with qemu-storage-daemon, which verifies the guest and its script.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use snapblk_qmp::client::Client as Qmp;
use snapblk_tests::guest::{Disk, Guest, GuestConfig};
use snapblk_tests::server::{Place, Scratch, Server, ServerCommand};

const DISK: u64 = 96 << 20;

/// Boots a guest on the disk that `server` serves and has it verify, over a reboot, that the disk
/// keeps its data. The disk must be empty, and at least 96 MiB; `cache` is the expected kind of
/// write cache. The error is that of a guest that did not finish.
fn a_guest_lives_on(
    server: &Server,
    queues: u16,
    cache: &[&str],
    patience: Duration,
) -> Result<(), String> {
    let script = include_str!("../guest/served-disk.sh");
    let seed = std::process::id();
    println!("SEED={seed}");
    let mut config = GuestConfig::new(format!("SEED={seed} FIO_SIZE=16M\n{script}"))
        .disk(Disk::Served { socket: server.socket().to_owned(), queues });
    config.cpus = u32::from(queues);
    config.reboots = true;
    config.timeout = patience;
    let guest = Guest::boot(&config).map_err(|error| error.to_string())?;
    let result = guest.finish().map_err(|error| format!("{error}\n{}", server.stderr()))?;
    result.expect_success();
    assert_eq!(result.said("@booted").count(), 2, "the guest boots twice");
    assert_eq!(result.said("first-boot").next().as_deref(), Some(cache), "the write cache");
    let seen = result.said("second-boot").next();
    assert_eq!(seen, Some(vec![queues.to_string().as_str()]), "virtqueues in use");
    Ok(())
}

fn start(command: &ServerCommand) -> Server {
    command.start().unwrap_or_else(|error| panic!("{error}"))
}

/// Sometimes the guest waits forever for an interrupt from that server, with both idle. That is not
/// a defect of this project: it has three attempts.
#[test]
fn a_guest_lives_on_qemu_storage_daemon() {
    let mut failed = Vec::new();
    for _ in 0..3 {
        let scratch = Scratch::new(Place::Memory).unwrap();
        let image = scratch.sparse("disk.raw", DISK).unwrap();
        let command = ServerCommand::qemu_storage_daemon(&scratch).unwrap();
        let (image, socket) = (image.display(), command.socket().display().to_string());
        let command = command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={image}"))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={socket},writable=on,\
                 num-queues=2"
            ));
        let patience = Duration::from_secs(240);
        match a_guest_lives_on(&start(&command), 2, &["write", "through"], patience) {
            Ok(()) => return,
            Err(error) => failed.push(error),
        }
    }
    panic!("{}", failed.join("\n\n"));
}

#[test]
fn a_guest_lives_on_snapblk() {
    let scratch = Scratch::new(Place::Memory).unwrap();
    let image = scratch.sparse("disk.raw", DISK).unwrap();
    let command = ServerCommand::snapblk(&scratch).unwrap();
    let server = start(&command.arg("--blk-file").arg(image).arg("--num-queues").arg("2"));
    let lived = a_guest_lives_on(&server, 2, &["write", "back"], Duration::from_secs(600));
    lived.unwrap_or_else(|error| panic!("{error}"));
    let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "SIGTERM ended it with {status}");
}

/// By `block_resize`, then by a table: the guest's kernel is notified each time.
#[test]
fn scenario_57_and_68_a_running_guest_sees_its_disk_grow() {
    let sizes = [DISK / 512, (DISK + (1 << 20)) / 512, (DISK + (3 << 20)) / 512];
    let scratch = Scratch::new(Place::Memory).unwrap();
    let image = scratch.sparse("disk.raw", DISK).unwrap();
    let command = ServerCommand::snapblk(&scratch).unwrap();
    let server = start(&command.arg("--blk-file").arg(&image).arg("--num-queues").arg("2"));
    let mut monitor = Qmp::connect(server.monitor()).unwrap_or_else(|error| panic!("{error}"));
    let mut call = |command: &str, arguments: Value| {
        monitor.call(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"));
    };

    let mut config = GuestConfig::new(include_str!("../guest/resized-disk.sh"))
        .disk(Disk::Served { socket: server.socket().to_owned(), queues: 2 });
    config.timeout = Duration::from_secs(600);
    let mut guest = Guest::boot(&config).unwrap_or_else(|error| panic!("{error}"));
    for round in 1..sizes.len() {
        let seen = guest.wait_for_line("ready ").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(seen, sizes[round - 1].to_string());
        let wanted = sizes[round];
        if round == 1 {
            call("block_resize", json!({"device": "disk0", "size": wanted * 512}));
        } else {
            let file = fs::File::options().write(true).open(&image).unwrap();
            file.set_len(wanted * 512).unwrap();
            let line = format!("0 {wanted} linear {} 0", image.display());
            call("table-load", json!({"name": "disk0", "table": [line]}));
            call("device-resume", json!({"name": "disk0"}));
        }
        guest.send_line(&wanted.to_string()).unwrap();
    }
    let result = guest.finish().unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));
    result.expect_success();

    // The guest's writes behind the old end are in the file.
    let content = fs::read(&image).unwrap();
    let found: Vec<String> = sizes
        .windows(2)
        .map(|range| {
            let new = &content[range[0] as usize * 512..range[1] as usize * 512];
            sha256(&scratch.file("new", new).unwrap())
        })
        .collect();
    let said: Vec<String> = result.said("new").map(|words| words.concat()).collect();
    assert_eq!(found, said);
}

/// Scenario 65: QEMU keeps the inflight memory and connects to the next process, and the guest's
/// requests complete: a lost one never would, because a guest waits for its disk forever. It reads
/// everything back, and sees no error. The full store ensures that some are in flight.
#[test]
fn a_running_guest_goes_on_when_its_server_is_killed() {
    const MIB: u64 = 1 << 20;
    let scratch = Scratch::new(Place::Memory).unwrap();
    let (base, store) = (scratch.sparse("disk.raw", DISK).unwrap(), scratch.path("store.cow"));
    let room = |mib: u64| {
        let file = fs::File::options().write(true).create(true).truncate(false).open(&store);
        file.and_then(|file| file.set_len(mib * MIB)).unwrap();
    };
    room(1);
    let line = format!("0 {} snapshot {} {} PO 8", DISK / 512, base.display(), store.display());
    let command = ServerCommand::snapblk(&scratch).unwrap().arg("--num-queues").arg("2");
    let command = command.arg("--table").arg(line).arg("--on-full").arg("wait=10m");
    let mut server = start(&command);
    let seed = std::process::id();
    println!("SEED={seed}");
    let script = include_str!("../guest/killed-disk.sh");
    let mut config = GuestConfig::new(format!("SEED={seed} FIO_SIZE=8M\n{script}"))
        .disk(Disk::Served { socket: server.socket().to_owned(), queues: 2 });
    config.timeout = Duration::from_secs(300);
    let guest = Guest::boot(&config).unwrap_or_else(|error| panic!("{error}"));
    for mib in [3, 5, 32] {
        let mut monitor = Qmp::connect(server.monitor()).unwrap_or_else(|error| panic!("{error}"));
        loop {
            let event = monitor.event(Some(config.timeout)).unwrap();
            let event = event.unwrap_or_else(|| panic!("no write is held\n{}", server.stderr()));
            if event["event"] == "BLOCK_IO_ERROR" {
                break;
            }
        }
        server.kill().unwrap();
        room(mib);
        server = start(&command);
    }
    let result = guest.finish().unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));
    result.expect_success();
    let said = server.stderr();
    assert!(said.contains("requests that were in flight"), "{said}");
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum is installed");
    assert!(output.status.success(), "sha256sum could not read {}", path.display());
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().next().unwrap_or_default().to_owned()
}
