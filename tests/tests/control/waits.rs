//! Full stores whose writes wait: `--on-full wait`, growth, and the end of the wait without it.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snapblk_tests::disk::Disk;
use snapblk_tests::server::{Scratch, ServerCommand, find_in_path, find_snapblk, spawn};

use super::common::{World, assert_same, disk, overlay, plain, scratch, serve, stamped, word};

mod files;

const SECTORS: u64 = 2048;
/// Room for 14 chunks of 4 KiB; two more are metadata.
const STORE: u64 = 16 * 4096;
/// Longer than any test takes, unless it hangs.
const LONG: &str = "wait=2m";
/// How long to wait for something that must not happen.
const MOMENT: Duration = Duration::from_millis(300);

/// A small store for an overlay over `base`, and the command that serves it.
fn small_overlay(scratch: &Scratch, base: &Path, on_full: &str) -> (PathBuf, ServerCommand) {
    let store = scratch.path("store.cow");
    let line = format!("0 {SECTORS} snapshot {} {} PO 8", word(base), word(&store));
    std::fs::File::create(&store).unwrap().set_len(STORE).unwrap();
    (store, serve(scratch).arg("--table").arg(line).arg("--on-full").arg(on_full))
}

fn grow(store: &Path, chunks: u64) {
    OpenOptions::new().write(true).open(store).unwrap().set_len(chunks * 4096).unwrap();
}

/// Writes all chunks that find room, and begins the next; returns its number.
fn fill(disk: &mut Disk) -> u64 {
    for n in 0..14 {
        disk.write(n * 4096, &stamped(n * 8, 8, 2)).unwrap();
    }
    disk.begin_write(14 * 4096, &stamped(14 * 8, 8, 2)).unwrap();
    14
}

fn chunk_is(disk: &mut Disk, n: u64, generation: u32) {
    assert_same("a chunk", &disk.read(n * 4096, 4096).unwrap(), &stamped(n * 8, 8, generation));
}

fn is_the_event(event: &Value, device: &str, store: &Path) {
    let data = &event["data"];
    assert_eq!((&data["device"], &data["node-name"]), (&json!(device), &json!(device)));
    assert_eq!((&data["action"], &data["operation"]), (&json!("stop"), &json!("write")));
    assert_eq!(data["nospace"], true);
    assert!(data["reason"].as_str().unwrap().contains(word(store)), "{data}");
}

/// The file is extended, and nothing else: the server notices by itself.
#[test]
fn scenario_78_a_held_write_goes_on_when_its_store_has_grown() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let (store, command) = small_overlay(&scratch, &base, LONG);
    let mut world = World::start(&command);
    let mut held = world.disk();
    fill(&mut held);
    is_the_event(&world.event("BLOCK_IO_ERROR"), "disk0", &store);
    assert!(held.end(MOMENT).is_err(), "it is held");
    assert_eq!(world.status("disk0"), [format!("0 {SECTORS} snapshot 128/128 16")]);
    assert_eq!(world.device("disk0")["targets"][0]["state"], "valid");
    grow(&store, 40);
    held.end(Duration::from_secs(20)).unwrap();
    for n in 0..15 {
        chunk_is(&mut held, n, 2);
    }
    world.kill();
    let world = World::start(&command);
    chunk_is(&mut world.disk(), 14, 2);
    chunk_is(&mut world.disk(), 15, 1);
    world.stop();
}

/// A held write does not prevent a suspend, and the next table carries it out.
#[test]
fn scenario_78_and_56_a_reload_with_a_bigger_store_loses_nothing() {
    for how in ["reload", "resize", "bigger file elsewhere"] {
        let scratch = scratch();
        let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
        let (store, command) = small_overlay(&scratch, &base, LONG);
        let mut world = World::start(&command);
        let mut held = world.disk();
        fill(&mut held);
        world.event("BLOCK_IO_ERROR");
        let began = Instant::now();
        world.call("device-suspend", json!({"name": "disk0"}));
        assert!(began.elapsed() < Duration::from_secs(10), "the suspend waits for the held write");
        let table = world.table("disk0");
        match how {
            "reload" => {
                grow(&store, 40);
                world.swap("disk0", &table);
            }
            "resize" => {
                grow(&store, 40);
                world.call("device-resume", json!({"name": "disk0"}));
                world.call("block_resize", json!({"device": "disk0", "size": SECTORS * 512}));
            }
            _ => {
                let bigger = scratch.path("bigger.cow");
                std::fs::copy(&store, &bigger).unwrap();
                grow(&bigger, 40);
                world.swap("disk0", &[table[0].replace("store.cow", "bigger.cow")]);
            }
        }
        held.end(Duration::from_secs(20)).unwrap_or_else(|error| panic!("{how}: {error}"));
        for n in 0..15 {
            chunk_is(&mut held, n, 2);
        }
        let status = world.status("disk0");
        assert_eq!(status, [format!("0 {SECTORS} snapshot 136/320 16")], "{how}");
        world.stop();
    }
}

/// Meanwhile all else is served; at the end of the time the write fails as without a wait.
#[test]
fn scenario_78_when_the_time_is_over_the_write_fails() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let (store, command) = small_overlay(&scratch, &base, "wait=2s");
    let mut world = World::start(&command);
    let mut held = world.disk();
    let began = Instant::now();
    fill(&mut held);
    world.event("BLOCK_IO_ERROR");
    assert!(held.end(Duration::from_secs(20)).is_err_and(|error| error.is_refused()));
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(world.event("SNAPSHOT_OVERFLOW")["data"]["cow"], word(&store));
    assert_eq!(world.status("disk0"), [format!("0 {SECTORS} snapshot Overflow")]);
    // The error's cause is reported, as in QEMU's event; so are later errors.
    assert!(held.write(20 * 4096, &[1; 4096]).is_err_and(|error| error.is_refused()));
    let data = world.event("BLOCK_IO_ERROR")["data"].clone();
    assert_eq!((&data["action"], &data["operation"]), (&json!("report"), &json!("write")));
    assert_eq!((&data["nospace"], &data["device"]), (&json!(true), &json!("disk0")), "{data}");
    assert_eq!(data["reason"], "No space left on device");
    chunk_is(&mut held, 13, 2);
    chunk_is(&mut held, 14, 1);
    // Scenario 25, by a resize to its present size.
    grow(&store, 40);
    world.call("block_resize", json!({"device": "disk0", "size": SECTORS * 512}));
    held.write(14 * 4096, &stamped(14 * 8, 8, 3)).unwrap();
    chunk_is(&mut held, 14, 3);
    world.stop();
}

/// The origin's guest waits for room in a snapshot's store; other disks of the process are not
/// affected, and the snapshot is kept.
#[test]
fn scenario_78_an_origins_writes_wait_for_its_snapshots() {
    let scratch = scratch();
    let file = scratch.file("disk.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&plain(&scratch, &file).arg("--on-full").arg(LONG));
    let snapshot =
        json!({"device": "disk0", "name": "snap", "cow": scratch.path("s.cow"), "size": STORE});
    world.call("snapshot-create", snapshot);
    let socket = world.export(&scratch, "snap", false);
    let (mut origin, mut snap) = (world.disk(), disk(&socket));
    fill(&mut origin);
    is_the_event(&world.event("BLOCK_IO_ERROR"), "snap", &scratch.path("s.cow"));
    assert!(origin.end(MOMENT).is_err(), "it is held");
    assert_same("snap", &snap.read_all().unwrap(), &stamped(0, SECTORS, 1));
    assert_eq!(world.status("snap"), [format!("0 {SECTORS} snapshot 128/128 16")]);
    grow(&scratch.path("s.cow"), 40);
    origin.end(Duration::from_secs(20)).unwrap();
    assert_same("snap", &snap.read_all().unwrap(), &stamped(0, SECTORS, 1));
    chunk_is(&mut origin, 14, 2);
    world.stop();
}

/// A full file system, with a store that owes chunks: all acknowledged writes become durable
/// nevertheless, and held writes continue when there is room.
#[test]
fn scenario_78_a_full_file_system_fails_no_flush() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS * 4, 1)).unwrap();
    let small = Small::new(&scratch);
    let mut world = World::start(&small.serve(&scratch, &base));
    let mut held = world.disk();
    let first = fill_up(&mut held);
    world.event("BLOCK_IO_ERROR");
    world.call("device-suspend", json!({"name": "disk0"}));
    world.call("device-resume", json!({"name": "disk0"}));
    assert_eq!(world.device("disk0")["targets"][0]["state"], "valid");
    assert!(held.end(MOMENT).is_err(), "there is no room yet");
    // Nor does another table help: held requests are not retried to find out. Only one such event
    // per second is sent.
    let table = world.table("disk0");
    world.swap("disk0", &table);
    while let Some(event) = world.qmp.event(Some(MOMENT * 5)).unwrap() {
        assert_ne!(event["event"], "BLOCK_IO_ERROR", "{event}");
    }
    assert!(held.end(MOMENT).is_err(), "there is no room yet");
    small.make_room();
    held.end(Duration::from_secs(20)).unwrap();
    held.flush().unwrap();
    for n in 0..=first {
        chunk_is(&mut held, n, 2);
    }
    world.stop();
}

/// Killed on a full file system, it starts there again: its owed chunks need only room that they
/// have already.
#[test]
fn scenario_78_a_full_file_system_fails_no_opening() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS * 4, 1)).unwrap();
    let small = Small::new(&scratch);
    let command = small.serve(&scratch, &base);
    let mut world = World::start(&command);
    let first = fill_up(&mut world.disk());
    world.event("BLOCK_IO_ERROR");
    world.kill();
    let mut world = World::start(&command);
    let mut held = world.disk();
    for n in 0..first {
        chunk_is(&mut held, n, 2);
    }
    chunk_is(&mut held, first + 1, 1);
    held.flush().unwrap();
    held.begin_write((first + 1) * 4096, &stamped((first + 1) * 8, 8, 2)).unwrap();
    world.event("BLOCK_IO_ERROR");
    small.make_room();
    held.end(Duration::from_secs(20)).unwrap();
    world.stop();
}

/// A mapped chunk that is a hole in the store: it needs room like an unmapped chunk.
#[test]
fn scenario_78_what_has_its_place_waits_for_room_too() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let small = Small::new(&scratch);
    let mut world = World::start(&small.serve(&scratch, &base));
    let mut held = world.disk();
    for n in 0..3 {
        held.write(n * 4096, &stamped(n * 8, 8, 2)).unwrap();
    }
    small.punch("store.cow", 3 * 4096, 4096);
    small.fill_up();
    held.begin_write(4096, &stamped(8, 8, 3)).unwrap();
    is_the_event(&world.event("BLOCK_IO_ERROR"), "disk0", &small.at.join("store.cow"));
    assert!(held.end(MOMENT).is_err(), "it is held");
    small.make_room();
    held.end(Duration::from_secs(20)).unwrap();
    for (n, generation) in [(0, 2), (1, 3), (2, 2)] {
        chunk_is(&mut held, n, generation);
    }
    world.stop();
}

/// Writes chunks until one finds no room, which is held; returns its number.
fn fill_up(disk: &mut Disk) -> u64 {
    // More than an area's chunks: the one after them was a hole.
    let found_none = (0..1024).find(|&n| {
        disk.begin_write(n * 4096, &stamped(n * 8, 8, 2)).unwrap();
        disk.end(MOMENT * if n < 256 { 10 } else { 1 }).is_err()
    });
    let first = found_none.expect("there is room for all");
    assert!(first > 256, "{first} chunks found room");
    first
}

/// A file system with room for 4 MiB, of which a filler has half. It is mounted at `at` only for
/// the servers that it starts, and lives as long as this.
struct Small {
    at: PathBuf,
    holder: Child,
}

impl Small {
    fn new(scratch: &Scratch) -> Small {
        const MOUNT: &str = "mount -t tmpfs -o size=4M small \"$0\" && \
                             head -c 2M /dev/zero > \"$0/filler\" && echo && exec cat";
        let at = scratch.path("small");
        std::fs::create_dir(&at).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", MOUNT]).arg(&at);
        let mut holder = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
        let ready = holder.stdout.as_mut().unwrap().read_exact(&mut [0]);
        let small = Small { at, holder };
        ready.expect("unshare of util-linux, and a kernel that lets everybody use it");
        small
    }

    /// Serves an overlay over `base` whose store is in it.
    fn serve(&self, scratch: &Scratch, base: &Path) -> ServerCommand {
        let command = self.command(scratch, LONG).arg("--blk-file").arg(base);
        command.arg("--overlay").arg(self.at.join("store.cow"))
    }

    /// What serves a disk, part of which may lie in it.
    fn command(&self, scratch: &Scratch, on_full: &str) -> ServerCommand {
        let nsenter = find_in_path("nsenter").expect("nsenter, of util-linux");
        let command = ServerCommand::new(nsenter, scratch).awaiting_monitor_alone();
        let snapblk = find_snapblk().unwrap_or_else(|error| panic!("{error}"));
        let (socket, monitor) = (command.socket().to_owned(), command.monitor().to_owned());
        let command = command.arg("--target").arg(self.holder.id().to_string());
        let command = command.arg("--user").arg("--mount").arg("--preserve-credentials");
        let command = command.arg(snapblk).arg("serve").arg("--on-full").arg(on_full);
        let command = command.arg("--state").arg(scratch.path("state"));
        command.arg("--socket-path").arg(socket).arg("--monitor").arg(monitor)
    }

    /// A file in it, by a path that all processes can use.
    fn seen(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.at.join(name).strip_prefix("/").unwrap())
    }

    /// Fills the remaining room.
    fn fill_up(&self) {
        let mut rest = std::fs::File::create(self.seen("rest")).unwrap();
        while rest.write_all(&[1; 4096]).is_ok() {}
    }

    /// Punches a hole into a file.
    fn punch(&self, name: &str, offset: u64, len: u64) {
        use rustix::fs::{FallocateFlags, fallocate};
        let file = OpenOptions::new().write(true).open(self.seen(name)).unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, offset, len).unwrap();
    }

    /// Removes the filler.
    fn make_room(&self) {
        std::fs::remove_file(self.seen("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A front end that disconnects does not wait either, nor does the end of the process.
#[test]
fn scenario_78_who_leaves_does_not_wait() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let (_, command) = small_overlay(&scratch, &base, LONG);
    let mut world = World::start(&command);
    let mut held = world.disk();
    fill(&mut held);
    world.event("BLOCK_IO_ERROR");
    let began = Instant::now();
    drop(held);
    let mut next = world.disk();
    chunk_is(&mut next, 13, 2);
    next.begin_write(20 * 4096, &stamped(160, 8, 2)).unwrap();
    assert!(next.end(MOMENT).is_err(), "it is held");
    world.stop();
    assert!(began.elapsed() < Duration::from_secs(30));
}

/// Waiting costs nothing.
#[test]
fn scenario_78_who_waits_for_room_uses_no_processor() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let (_, command) = small_overlay(&scratch, &base, LONG);
    let mut world = World::start(&command);
    let mut held = world.disk();
    fill(&mut held);
    world.event("BLOCK_IO_ERROR");
    let before = processor_time(world.server.pid());
    assert!(held.end(Duration::from_secs(2)).is_err(), "it is held");
    let used = processor_time(world.server.pid()) - before;
    assert!(used < Duration::from_millis(100), "{used:?} of two seconds");
    drop(held);
    world.stop();
}

fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; user and system time are words 14 and 15.
    let words: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = words[11..13].iter().map(|word| word.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// The policy of a running disk, by the monitor.
#[test]
fn the_monitor_changes_what_a_full_store_does() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let mut world = World::start(&overlay(&scratch, &base));
    let tell = |message: &str| json!({"name": "disk0", "message": message});
    for wrong in ["on-full", "on-full maybe", "on-full wait=1s more", "on-fool fail"] {
        world.refused("device-message", tell(wrong));
    }
    world.call("device-message", tell("on-full wait=2m"));
    world.stop();

    let (store, command) = small_overlay(&scratch, &base, "fail");
    let command = command.arg("--state").arg(scratch.path("other.state"));
    let mut world = World::start(&command);
    world.call("device-message", tell("on-full wait=2m"));
    let mut held = world.disk();
    fill(&mut held);
    is_the_event(&world.event("BLOCK_IO_ERROR"), "disk0", &store);
    assert!(held.end(MOMENT).is_err(), "it is held");
    world.call("device-message", tell("on-full fail"));
    assert!(held.end(Duration::from_secs(20)).is_err_and(|error| error.is_refused()));
    world.event("SNAPSHOT_OVERFLOW");
    world.stop();
}

/// QEMU's event, once per request.
#[test]
fn a_store_that_fills_up_says_so_once() {
    let scratch = scratch();
    let base = scratch.file("golden.raw", &stamped(0, SECTORS, 1)).unwrap();
    let (_, command) = small_overlay(&scratch, &base, "fail");
    let mut world = World::start(&command);
    let mut disk = world.disk();
    let threshold = |world: &mut World, bytes: u64| {
        let arguments = json!({"node-name": "disk0", "write-threshold": bytes});
        world.call("block-set-write-threshold", arguments);
    };
    // Two chunks are metadata: with four chunks of data the threshold of five is exceeded, with
    // three it is not.
    threshold(&mut world, 5 * 4096);
    for n in 0..3 {
        disk.write(n * 4096, &stamped(n * 8, 8, 2)).unwrap();
    }
    assert!(world.qmp.event(Some(MOMENT)).unwrap().is_none());
    disk.write(3 * 4096, &stamped(24, 8, 2)).unwrap();
    let told = json!({"node-name": "disk0", "amount-exceeded": 4096, "write-threshold": 5 * 4096});
    assert_eq!(world.event("BLOCK_WRITE_THRESHOLD")["data"], told);
    disk.write(4 * 4096, &stamped(32, 8, 2)).unwrap();
    assert!(world.qmp.event(Some(MOMENT)).unwrap().is_none(), "once");
    // A threshold that is exceeded already sends the event at once; a cancelled one never.
    threshold(&mut world, 4096);
    let told = json!({"node-name": "disk0", "amount-exceeded": 6 * 4096, "write-threshold": 4096});
    assert_eq!(world.event("BLOCK_WRITE_THRESHOLD")["data"], told);
    threshold(&mut world, 8 * 4096);
    threshold(&mut world, 0);
    disk.write(5 * 4096, &stamped(40, 64, 2)).unwrap();
    assert!(world.qmp.event(Some(MOMENT)).unwrap().is_none());

    world.make("plain", &["0 8 zero".into()]);
    let arguments = json!({"node-name": "plain", "write-threshold": 1});
    let said = world.refused("block-set-write-threshold", arguments);
    assert!(said.contains("'plain' has not one store"), "{said}");
    world.stop();
}
