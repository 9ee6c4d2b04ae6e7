//! The number of instructions that the program itself, without the kernel, executes for a guest's
//! I/O.
//!
//! Callgrind counts. It runs one thread at a time, and does not know that a thread may wait within
//! io_uring: the others would wait with it. So io_uring is refused to the program, which sleeps in
//! epoll; the path of a request on tmpfs, where every request is a system call of its own, is the
//! same.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use snapblk_tests::client::{Connect, Waiting};
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, ServerCommand, find_in_path};
use snapblk_tests::steady::{Ask, Steady};

/// Bytes of a request, and of a chunk.
const BLOCK: u64 = 4096;
/// Bytes of a disk.
const DISK: u64 = 64 << 20;
const DEPTH: usize = 32;
/// Requests of the shorter of two runs; the difference is the cost of requests, without that of a
/// session.
const FEW: u64 = 2_000;
const MANY: u64 = 10_000;

/// Instructions of all of the program's threads, from start to end, with `count` requests.
fn instructions(count: u64, overlay: bool, ask: impl Fn(u64) -> Ask) -> u64 {
    let scratch = Scratch::new(Place::Memory).expect("a directory");
    let base = scratch.file("disk.raw", &vec![7; DISK as usize]).expect("a file");
    let mut command = ServerCommand::snapblk(&scratch).unwrap_or_else(|error| panic!("{error}"));
    command = command.arg("--num-queues").arg("1").arg("--blk-file").arg(base);
    if overlay {
        command = command.arg("--overlay").arg(scratch.path("store.cow"));
    }
    let valgrind =
        find_in_path("valgrind").expect("valgrind: install Debian's package of that name");
    let found = scratch.path("callgrind");
    let args = ["-q", "--tool=callgrind", "--fair-sched=yes"].map(OsString::from);
    let mut out = OsString::from("--callgrind-out-file=");
    out.push(&found);
    let without = PathBuf::from(env!("CARGO_BIN_EXE_without-io-uring"));
    let command = command.run_by(valgrind, args.into_iter().chain([out])).run_by(without, []);
    let server = command.start().unwrap_or_else(|error| panic!("{error}"));
    let connect = Connect { waiting: Waiting::Poll, ..Connect::to(server.socket()) };
    let mut load = Steady::connect(connect, DEPTH, BLOCK as usize).expect("a session");
    load.run((0..count).map(&ask)).expect("every request ends well");
    drop(load);
    let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "{status}");
    total(&found)
}

/// The total in callgrind's output.
fn total(found: &Path) -> u64 {
    let text = std::fs::read_to_string(found).expect("callgrind's report");
    let line = text.lines().find_map(|line| line.strip_prefix("summary:"));
    line.and_then(|line| line.trim().parse().ok()).expect("a sum")
}

/// The limit per request: a quarter above the number when this was written, because it includes
/// polls of an unchanged ring.
struct Most {
    release: u32,
    /// For a debug build.
    debug: u32,
}

#[track_caller]
fn at_most(most: Most, what: &str, overlay: bool, ask: impl Fn(u64) -> Ask) {
    let [few, many] = [FEW, MANY].map(|count| instructions(count, overlay, &ask));
    let debug = cfg!(debug_assertions) && std::env::var_os("SNAPBLK").is_none();
    let most = f64::from(if debug { most.debug } else { most.release });
    let each = many.saturating_sub(few) as f64 / (MANY - FEW) as f64;
    eprintln!("{what}: {each:.0} instructions a request");
    assert!(each <= most, "{what}: {each:.0} instructions a request, and {most} at most");
}

/// The `n`th block in a random order.
fn block(n: u64) -> u64 {
    Rng::new(n).below(DISK / BLOCK) * BLOCK
}

#[test]
fn a_read_takes_few() {
    at_most(Most { release: 2100, debug: 12_000 }, "a read", false, |n| {
        Ask::Read(block(n), BLOCK as usize)
    });
}

#[test]
fn a_write_takes_few() {
    at_most(Most { release: 2200, debug: 12_800 }, "a write", false, |n| {
        Ask::Write(block(n), BLOCK as usize)
    });
}

#[test]
fn a_first_write_takes_few() {
    at_most(Most { release: 3900, debug: 29_500 }, "a first write", true, |n| {
        Ask::Write(n * BLOCK, BLOCK as usize)
    });
}
