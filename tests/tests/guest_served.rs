//! A real guest on a served disk: mkfs, files, fsck, fio with verification, and each boot's two
//! start/stop cycles, the firmware's and the kernel's, over a reboot.
//!
//! The same is put to qemu-storage-daemon, which proves the guest and its script.

use std::time::Duration;

use snapblk_tests::guest::{Disk, Guest, GuestConfig};
use snapblk_tests::server::{Place, Scratch, Server, ServerCommand};

const DISK: u64 = 96 << 20;

/// Boots a guest on the disk that `server` serves and has it prove, over a reboot, that the disk
/// keeps what it was given. The disk must be empty, and is at least 96 MiB; `cache` is how the guest
/// is to see its write cache.
fn a_guest_lives_on(server: &Server, queues: u16, cache: &[&str]) {
    let script = include_str!("../guest/served-disk.sh");
    let seed = std::process::id();
    println!("SEED={seed}");
    let mut config = GuestConfig::new(format!("SEED={seed} FIO_SIZE=16M\n{script}"))
        .disk(Disk::Served { socket: server.socket().to_owned(), queues });
    config.cpus = u32::from(queues);
    config.reboots = true;
    config.timeout = Duration::from_secs(240);
    let guest = Guest::boot(&config).unwrap_or_else(|error| panic!("{error}"));
    let result = guest.finish().unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));
    result.expect_success();
    assert_eq!(result.said("@booted").count(), 2, "the guest boots twice");
    assert_eq!(result.said("first-boot").next().as_deref(), Some(cache), "the write cache");
    let seen = result.said("second-boot").next();
    assert_eq!(seen, Some(vec![queues.to_string().as_str()]), "virtqueues in use");
}

fn start(command: &ServerCommand) -> Server {
    command.start().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_guest_lives_on_qemu_storage_daemon() {
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
    a_guest_lives_on(&start(&command), 2, &["write", "through"]);
}

#[test]
fn a_guest_lives_on_snapblk() {
    let scratch = Scratch::new(Place::Memory).unwrap();
    let image = scratch.sparse("disk.raw", DISK).unwrap();
    let command = ServerCommand::snapblk(&scratch).unwrap();
    let server = start(&command.arg("--blk-file").arg(image).arg("--num-queues").arg("2"));
    a_guest_lives_on(&server, 2, &["write", "back"]);
    let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "SIGTERM ended it with {status}");
}
