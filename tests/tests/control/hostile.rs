//! Malicious front ends: they may damage only their own disk.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, ftruncate, memfd_create};
use rustix::io::pwrite;
use rustix::process::Signal;
use serde_json::{Value, json};
use snapblk_qmp::client::Client as Qmp;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::common::*;

const SECTORS: u64 = 2048;
/// A limit for operations that take no time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with one disk `d` and its export `e`; also returns the export's arguments, and a front
/// end's socket.
fn world(scratch: &snapblk_tests::server::Scratch) -> (World, Value, UnixStream) {
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&monitor_only(scratch));
    world.make("d", &[format!("0 {SECTORS} linear {} 0", word(&file))]);
    let socket = scratch.socket("e.sock");
    let add = export_args("e", "d", &socket, true);
    world.call("block-export-add", add.clone());
    (world, add, UnixStream::connect(&socket).unwrap())
}

/// VHOST_USER_GET_FEATURES, `times` times.
fn questions(times: usize) -> Vec<u8> {
    [1u32, 1, 0].map(u32::to_ne_bytes).as_flattened().repeat(times)
}

/// Whether a thread `name` of the process `pid` sleeps.
fn sleeps(pid: u32, name: &str) -> bool {
    let threads = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).unwrap();
    threads.flatten().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.contains(&format!("({name}) S"))
    })
}

/// Sends requests without reading a reply until the server waits for the replies to be read.
fn block_session(world: &World, socket: &mut UnixStream, export: &str) {
    socket.set_nonblocking(true).unwrap();
    let begin = Instant::now();
    loop {
        match socket.write(&questions(64)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // It has messages to read, and sleeps: it waits to send replies.
                if sleeps(world.server.pid(), &format!("session {export}")) {
                    return;
                }
            }
            Err(error) => panic!("the connection failed: {error}"),
        }
        assert!(begin.elapsed() < PATIENCE, "the session goes on");
    }
}

/// An export may take long to stop. Meanwhile it is known to be stopping, and only the client that
/// asked waits.
#[test]
fn an_export_that_takes_long_to_stop_holds_nobody_up() {
    let scratch = scratch();
    let (mut world, add, mut socket) = world(&scratch);
    let mut other = Qmp::connect(world.server.monitor()).unwrap();
    block_session(&world, &mut socket, "e");
    let deletes = std::thread::spawn(move || {
        other.call("block-export-del", json!({"id": "e", "mode": "hard"})).unwrap();
    });
    let begin = Instant::now();
    loop {
        let exports = world.call("query-block-exports", json!({}));
        if exports[0]["shutting-down"] == true {
            break;
        }
        assert!(exports[0].is_object(), "it went, and never was said to be going");
        assert!(begin.elapsed() < PATIENCE, "it is never said to be going");
    }
    let said = world.refused("block-export-del", json!({"id": "e", "mode": "hard"}));
    assert!(said.contains("'e' is shutting down"), "{said}");
    let said = world.refused("block-export-add", add.clone());
    assert!(said.contains("'e' is shutting down"), "{said}");
    let socket_of_other = scratch.socket("f.sock");
    world.call("block-export-add", export_args("f", "d", &socket_of_other, true));
    assert_same("disk", &disk(&socket_of_other).read(0, 512).unwrap(), &stamped(0, 1, 1));
    assert!(!deletes.is_finished(), "the session ended before the others were asked");
    assert_eq!(world.event("BLOCK_EXPORT_DELETED")["data"], json!({"id": "e"}));
    // After the event, the name and the socket can be used.
    world.call("block-export-add", add);
    deletes.join().unwrap();
    world.stop();
}

/// The log names the disk that a line is about.
#[test]
fn what_is_logged_of_a_session_names_its_export() {
    let scratch = scratch();
    let (mut world, mut add, mut socket) = world(&scratch);
    // Threads cannot have this name.
    (add["id"], add["addr"]["path"]) = (json!("f\0"), json!(scratch.socket("f.sock")));
    world.refused("block-export-add", add);
    // An unknown request.
    socket.write_all([4711u32, 1, 0].map(u32::to_ne_bytes).as_flattened()).unwrap();
    let begin = Instant::now();
    while !world.server.stderr().contains("session e a message of the front-end was refused") {
        assert!(begin.elapsed() < PATIENCE, "{}", world.server.stderr());
    }
    assert!(sleeps(world.server.pid(), "queue 0 of e"), "its worker's thread has the name, too");
    world.stop();
}

/// Makes the worker of the ring wait forever: for room in the counter with which it interrupts its
/// driver, and which did not block when it was passed. Reading the counter lets it continue.
fn block_worker(socket: &Path) -> (Frontend, EventFd) {
    const LEN: u64 = 1 << 20;
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, LEN).unwrap();
    let mut front = Frontend::connect(socket, 1).unwrap();
    front.set_owner().unwrap();
    front.set_features(front.get_features().unwrap()).unwrap();
    front.set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: LEN,
        userspace_addr: 0x10_0000,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    front.set_mem_table(&[region]).unwrap();
    front.set_vring_num(0, 16).unwrap();
    front.set_vring_base(0, 0).unwrap();
    let config = VringConfigData {
        queue_max_size: 16,
        queue_size: 16,
        flags: 0,
        desc_table_addr: 0x10_0000,
        used_ring_addr: 0x10_2000,
        avail_ring_addr: 0x10_1000,
        log_addr: None,
    };
    front.set_vring_addr(0, &config).unwrap();
    let kick = EventFd::new(0).unwrap();
    front.set_vring_kick(0, &kick).unwrap();
    front.set_vring_enable(0, true).unwrap();
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    front.set_vring_call(0, &call).unwrap();
    // Sending it to oneself changes its type without `unsafe`.
    let (here, there) = UnixStream::pair().unwrap();
    here.send_with_fd(&[0u8][..], call.as_raw_fd()).unwrap();
    let (_, same) = there.recv_with_fd(&mut [0u8]).unwrap();
    let same = same.unwrap();
    // The worker has it when it signals it for the first time.
    poll(&mut [PollFd::new(&same, PollFlags::IN)], None).unwrap();
    call.read().unwrap();
    fcntl_setfl(&same, OFlags::empty()).unwrap();
    call.write(u64::MAX - 1).unwrap();
    // A chain of one byte for the status: descriptor 0, which the device writes, and the index.
    pwrite(&memory, &[1, 0, 0, 0, 2], 8).unwrap();
    pwrite(&memory, &[1], 0x1002).unwrap();
    kick.write(1).unwrap();
    (front, call)
}

/// An export may be held up forever: the client that deletes it is told so, and of its end when
/// that comes. Meanwhile it is known as stopping.
#[test]
fn an_export_that_does_not_end_is_said_to_be_held_up() {
    let scratch = scratch();
    let (mut world, add, socket) = world(&scratch);
    drop(socket);
    let path = scratch.socket("e.sock");
    let (_front, call) = block_worker(&path);
    let delete = json!({"id": "e", "mode": "hard"});
    let said = world.refused("block-export-del", delete.clone());
    assert!(said.contains("'e' is shutting down and has not ended within 30 s"), "{said}");
    assert!(said.contains("BLOCK_EXPORT_DELETED"), "{said}");
    assert_eq!(world.call("query-block-exports", json!({}))[0]["shutting-down"], true);
    let said = world.refused("block-export-del", delete);
    assert!(said.contains("'e' is shutting down; wait"), "{said}");
    world.refused("device-remove", json!({"name": "d"}));
    call.read().unwrap();
    assert_eq!(world.event("BLOCK_EXPORT_DELETED")["data"], json!({"id": "e"}));
    assert_eq!(world.call("query-block-exports", json!({})), json!([]));
    world.call("block-export-add", add);
    assert_same("disk", &disk(&path).read(0, 512).unwrap(), &stamped(0, 1, 1));
    world.stop();
}

/// A signal ends the process nevertheless: the other disks' writes are committed, and the stuck
/// disk's acknowledged writes are there at the next start.
#[test]
fn a_disk_that_is_stuck_does_not_keep_the_process() {
    let scratch = scratch();
    let lines = ["a", "b"].map(|name| {
        let base = scratch.file(&format!("{name}.raw"), &stamped(0, SECTORS, 1)).unwrap();
        let store = scratch.sparse(&format!("{name}.cow"), 4 << 20).unwrap();
        format!("0 {SECTORS} snapshot {} {} P 8", word(&base), word(&store))
    });
    let export = |world: &mut World| ["a", "b"].map(|name| world.export(&scratch, name, true));
    let mut world = World::start(&monitor_only(&scratch));
    for (name, line) in ["a", "b"].into_iter().zip(lines) {
        world.make(name, &[line]);
    }
    let sockets = export(&mut world);
    disk(&sockets[0]).write(0, &stamped(0, 8, 2)).unwrap();
    let mut other = disk(&sockets[1]);
    other.write(0, &stamped(0, 8, 3)).unwrap();
    let _stuck = block_worker(&sockets[0]);
    world.server.signal(Signal::TERM).unwrap();
    let ends = "end in spite of a disk that is stuck";
    let status = world.server.wait(ends).or_else(|_| world.server.wait(ends)).unwrap();
    let said = world.server.stderr();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("export a of device a did not stop within 30 s and is given up"),
        "{said}"
    );
    assert!(!said.contains("not all of what other disks owe"), "{said}");
    drop(other);
    // The first entry of the first area, in chunk 1, names the place of chunk 0.
    let of_other = fs::read(scratch.path("b.cow")).unwrap();
    assert_eq!(of_other[4096 + 8], 2, "it was not committed");
    // The devices exist again.
    let mut world = World::start(&monitor_only(&scratch));
    let sockets = export(&mut world);
    for (socket, generation) in sockets.iter().zip([2, 3]) {
        let found = disk(socket).read(0, 4096).unwrap();
        assert_same("what was written", &found, &stamped(0, 8, generation));
    }
    world.stop();
}
