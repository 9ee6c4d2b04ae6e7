//! Malicious front ends: they may damage only their own disk.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Barrier;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::Signal;
use serde_json::{Value, json};
use snapblk_qmp::client::Client as Qmp;

use crate::common::*;

const SECTORS: u64 = 2048;
/// The interval at which it is looked whether a process has ended whose thread is held.
const LOOK: Duration = Duration::from_millis(20);
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

/// A thread of a server that stands still, as one does that waits for a disk.
struct Held {
    release: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Held {
    /// Holds the worker `name` of the process `pid` until this is dropped, or that process ends.
    fn worker(pid: u32, name: &str) -> Held {
        let comm = |task: &Path| fs::read_to_string(task.join("comm")).unwrap_or_default();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let task = tasks.flatten().map(|task| task.path()).find(|task| comm(task).trim() == name);
        let tid = task.and_then(|task| task.file_name()?.to_str()?.parse().ok()).expect("a worker");
        let (ready, is_held) = channel();
        let (release, released) = channel();
        // Only the thread that holds one can let it go.
        let tracer = std::thread::spawn(move || {
            let tid = Pid::from_raw(tid);
            ptrace::seize(tid, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(tid).unwrap();
            waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
            ready.send(()).unwrap();
            while let Err(RecvTimeoutError::Timeout) = released.recv_timeout(LOOK) {
                // A process ends when its last thread was seen to.
                let ended = waitpid(tid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
                if !matches!(ended, Ok(WaitStatus::StillAlive)) {
                    return;
                }
            }
            let _ = ptrace::detach(tid, None);
        });
        is_held.recv().expect("the worker is held");
        Held { release: Some(release), tracer: Some(tracer) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release.take();
        self.tracer.take().map(JoinHandle::join);
    }
}

/// An export may be held up forever: the client that deletes it is told so, and of its end when
/// that comes. Meanwhile it is known as stopping.
#[test]
fn an_export_that_does_not_end_is_said_to_be_held_up() {
    let scratch = scratch();
    let (mut world, add, socket) = world(&scratch);
    drop(socket);
    let path = scratch.socket("e.sock");
    let mut user = disk(&path);
    user.read(0, 512).unwrap();
    let held = Held::worker(world.server.pid(), "queue 0 of e");
    let delete = json!({"id": "e", "mode": "hard"});
    let said = world.refused("block-export-del", delete.clone());
    assert!(said.contains("'e' is shutting down and has not ended within 30 s"), "{said}");
    assert!(said.contains("BLOCK_EXPORT_DELETED"), "{said}");
    assert_eq!(world.call("query-block-exports", json!({}))[0]["shutting-down"], true);
    let said = world.refused("block-export-del", delete);
    assert!(said.contains("'e' is shutting down; wait"), "{said}");
    world.refused("device-remove", json!({"name": "d"}));
    drop(held);
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
    let _stuck = Held::worker(world.server.pid(), "queue 0 of a");
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

/// `quit` asks for an order as a signal does: the signal after it asks for no other.
#[test]
fn a_signal_after_quit_ends_it_at_once() {
    let scratch = scratch();
    let (mut world, ..) = world(&scratch);
    let _stuck = Held::worker(world.server.pid(), "queue 0 of e");
    world.call("quit", json!({}));
    world.event("SHUTDOWN");
    world.server.signal(Signal::TERM).unwrap();
    let status = world.server.wait("end after quit and a signal").unwrap();
    assert_eq!(status.code(), Some(128 + 15), "{}", world.server.stderr());
}

/// Several ask for the end, and it is announced once.
#[test]
fn an_end_that_several_ask_for_is_announced_once() {
    for _ in 0..4 {
        let scratch = scratch();
        let mut world = World::start(&monitor_only(&scratch));
        let clients: Vec<_> =
            (0..8).map(|_| Qmp::connect(world.server.monitor()).unwrap()).collect();
        let together = Barrier::new(clients.len());
        std::thread::scope(|scope| {
            for mut client in clients {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    // The end may come before the answer.
                    let _ = client.call("quit", json!({}));
                });
            }
        });
        let mut told = 0;
        while let Ok(Some(event)) = world.qmp.event(Some(Duration::from_secs(20))) {
            told += u32::from(event["event"] == "SHUTDOWN");
        }
        assert_eq!(told, 1);
        let status = world.server.wait("end after quit").unwrap();
        assert!(status.success(), "{}", world.server.stderr());
    }
}

/// A command waits for a disk that is stuck: front ends of other disks are answered meanwhile.
#[test]
fn a_disk_that_is_stuck_delays_no_front_end_of_another() {
    let scratch = scratch();
    let mut world = World::start(&monitor_only(&scratch));
    let sockets = ["a", "b"].map(|name| {
        let base = scratch.file(&format!("{name}.raw"), &stamped(0, SECTORS, 1)).unwrap();
        world.make(name, &[format!("0 {SECTORS} linear {} 0", word(&base))]);
        world.export(&scratch, name, true)
    });
    let mut first = disk(&sockets[0]);
    first.read(0, 512).unwrap();
    let held = Held::worker(world.server.pid(), "queue 0 of a");
    let mut qmp = Qmp::connect(world.server.monitor()).unwrap();
    let snapshot = json!({"device": "a", "snapshot-file": scratch.path("a.cow")});
    let waits = std::thread::spawn(move || qmp.call("blockdev-snapshot-sync", snapshot).is_err());
    let begin = Instant::now();
    while !scratch.path("a.cow").exists() {
        assert!(begin.elapsed() < PATIENCE, "the command has not begun");
        std::thread::yield_now();
    }
    let begin = Instant::now();
    let mut other = disk(&sockets[1]);
    assert_same("the other disk", &other.read(0, 512).unwrap(), &stamped(0, 1, 1));
    assert!(begin.elapsed() < PATIENCE, "{}", world.server.stderr());
    assert!(!waits.is_finished(), "nothing was in its way");
    drop(held);
    assert!(!waits.join().unwrap());
    world.stop();
}

/// Who adds an export waits for a disk that is stuck; who asks for the exports does not.
#[test]
fn an_export_that_waits_for_a_suspend_delays_no_query() {
    let scratch = scratch();
    let (mut world, _, socket) = world(&scratch);
    drop(socket);
    let mut user = disk(&scratch.socket("e.sock"));
    user.read(0, 512).unwrap();
    world.make("other", &["0 8 zero".into()]);
    let held = Held::worker(world.server.pid(), "queue 0 of e");
    let client = || Qmp::connect(world.server.monitor()).unwrap();
    let (mut suspends, mut adds) = (client(), client());
    let suspended =
        std::thread::spawn(move || suspends.call("device-suspend", json!({"name": "d"})));
    // One after the other, until one waits.
    let (added, adding) = channel();
    let beside = scratch.socket("x.sock");
    let adder = std::thread::spawn(move || {
        for n in 0.. {
            let id = format!("x{n}");
            let socket = beside.with_file_name(format!("{id}.sock"));
            adds.call("block-export-add", export_args(&id, "other", &socket, false)).unwrap();
            if added.send(()).is_err() {
                return;
            }
        }
    });
    loop {
        while adding.recv_timeout(LOOK).is_ok() {}
        let begin = Instant::now();
        world.call("query-block-exports", json!({}));
        assert!(begin.elapsed() < PATIENCE, "{}", world.server.stderr());
        if adding.try_recv().is_err() {
            break;
        }
    }
    assert!(!suspended.is_finished() && !adder.is_finished(), "nothing was in its way");
    drop(held);
    suspended.join().unwrap().unwrap();
    drop(adding);
    adder.join().unwrap();
    world.stop();
}
