//! The server's allocations and log lines while a guest does I/O.
//!
//! The server runs in this process, with all its threads, and a real front end drives it; the
//! process's allocator counts all allocations except the front end's. This is one test, because the
//! allocations of another test's threads would be counted too.

mod counter;

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use snapblk::server::{DiskArgs, DiskSocket, DiskSource, OnFull, ServeArgs, serve};
use snapblk_qmp::client::Client as Qmp;
use snapblk_tests::client::Connect;
use snapblk_tests::lasting::Lasting;
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch};
use snapblk_tests::steady::{Ask, Steady};

use counter::{Counting, Seen, during};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PATIENCE: Duration = Duration::from_secs(20);
const DEPTH: usize = 32;
/// Bytes of a chunk, and of a request that covers one.
const CHUNK: usize = 4096;
/// Chunks in a region of the exception table (`docs/adr/0013-growing-leaves.md`).
const REGION: u64 = 4096;
/// Bytes of a disk.
const DISK: u64 = (2 * TRIES + 2) * REGION * CHUNK as u64;
/// Sizes of the successive leaves of a region, until it has one word per chunk.
const LEAVES: [usize; 20] = [
    40, 56, 72, 104, 152, 232, 312, 488, 664, 1000, 1336, 2024, 2712, 4072, 5432, 8168, 10904,
    16360, 21816, 32768,
];
/// Requests of each kind.
const REQUESTS: u64 = 4096;
/// Requests that are submitted together.
const ROUND: usize = 256;
/// How often a kind of requests may be repeated before a repetition allocates nothing: lists grow
/// with the load, there are some per request in flight, and batches differ.
const TRIES: u64 = 7;

/// A server in this process.
struct Served {
    thread: JoinHandle<()>,
    qmp: Qmp,
    load: Steady,
}

/// Serves disks in a thread; the last one has the socket.
fn serve_disks(scratch: &Scratch, mut disks: Vec<DiskArgs>) -> (JoinHandle<()>, Qmp, PathBuf) {
    let (socket, monitor) = (scratch.socket("vhost.sock"), scratch.socket("monitor.sock"));
    let last = disks.last_mut().expect("a disk");
    last.socket = Some(DiskSocket::Path(socket.clone()));
    let args = ServeArgs { disks, monitor: Some(monitor.clone()), ..ServeArgs::default() };
    let thread = std::thread::spawn(move || serve(&args).expect("it serves, and ends well"));
    let qmp = connect(&monitor, &thread);
    (thread, qmp, socket)
}

impl Served {
    fn start(scratch: &Scratch, disks: Vec<DiskArgs>) -> Served {
        let (thread, qmp, socket) = serve_disks(scratch, disks);
        let load = Steady::connect(Connect::to(socket), DEPTH, CHUNK);
        Served { thread, qmp, load: load.expect("a session") }
    }

    fn stop(self) {
        let Served { thread, mut qmp, load } = self;
        drop(load);
        qmp.call("quit", json!({})).expect("it ends");
        thread.join().expect("it ended well");
    }

    /// The server's actions for these requests. It must log nothing meanwhile.
    fn seen(&mut self, asks: impl Iterator<Item = Ask>) -> Seen {
        let load = &mut self.load;
        let seen = during(|| {
            load.run(asks).expect("every request ends well");
        });
        assert_eq!(seen.logged, 0, "a guest's requests are not logged");
        seen
    }

    /// The number of allocations of these sizes, and of others, for these requests.
    fn allocates(&mut self, sizes: &[usize], asks: impl Iterator<Item = Ask>) -> (usize, usize) {
        let asks: Vec<Ask> = asks.collect();
        let (mut of_these, mut others) = (0, 0);
        for round in asks.chunks(ROUND) {
            let seen = self.seen(round.iter().copied());
            let found = seen.sizes.iter().filter(|size| sizes.contains(size)).count();
            of_these += found;
            others += seen.allocations as usize - found;
        }
        (of_these, others)
    }

    /// These requests allocate nothing, once all lists have grown to the load.
    #[track_caller]
    fn costs_nothing(&mut self, what: &str, asks: impl Iterator<Item = Ask> + Clone) {
        let tries = (0..TRIES).map(|_| self.allocates(&[], asks.clone()).1);
        settles(what, tries);
    }
}

/// One of several tries has no avoidable allocations.
#[track_caller]
fn settles(what: &str, mut tries: impl Iterator<Item = usize>) {
    let mut found = Vec::new();
    let settled = tries.any(|allocations| {
        found.push(allocations);
        allocations == 0
    });
    eprintln!("{what}: {found:?} allocations");
    assert!(settled, "{what} go on to allocate: {found:?}");
}

/// The monitor is the last to exist.
fn connect(monitor: &Path, server: &JoinHandle<()>) -> Qmp {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Qmp::connect(monitor) {
            Ok(qmp) => return qmp,
            Err(error) => assert!(Instant::now() < deadline && !server.is_finished(), "{error}"),
        }
        // There is no event for a socket that begins to listen.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn disk(name: &str, source: DiskSource) -> DiskArgs {
    DiskArgs {
        name: name.to_owned(),
        source,
        socket: None,
        num_queues: Some(1),
        poll: false,
        on_full: OnFull::default(),
        guest_agent: None,
    }
}

fn file(path: PathBuf, overlay: Option<PathBuf>) -> DiskSource {
    DiskSource::File { path, read_only: false, overlay }
}

/// `REQUESTS` random requests of a chunk's size to two regions from this one on.
fn random(region: u64, ask: fn(u64, usize) -> Ask) -> impl Iterator<Item = Ask> + Clone {
    let mut rng = Rng::new(region);
    (0..REQUESTS).map(move |_| ask((region * REGION + rng.below(2 * REGION)) * CHUNK as u64, CHUNK))
}

/// One write to each of these chunks, either of all of it or of two sectors in its middle.
fn each(chunks: std::ops::Range<u64>, whole: bool) -> impl Iterator<Item = Ask> + Clone {
    chunks.map(move |chunk| {
        let start = chunk * CHUNK as u64;
        if whole { Ask::Write(start, CHUNK) } else { Ask::Write(start + 512, 1024) }
    })
}

/// A first write to each chunk of a region, and the flush after it, allocate only the region's
/// leaves. `write` returns the requests for some chunks.
#[track_caller]
fn leaves_alone<A: Iterator<Item = Ask>>(
    what: &str,
    served: &mut Served,
    regions: std::ops::Range<u64>,
    write: impl Fn(std::ops::Range<u64>) -> A,
) {
    let tries = regions.map(|region| {
        let chunks = region * REGION..(region + 1) * REGION;
        let (leaves, others) = served.allocates(&LEAVES, write(chunks));
        assert!(leaves >= LEAVES.len(), "a region has {leaves} leaves, one after the other");
        let flush = served.seen(std::iter::once(Ask::Flush)).allocations as usize;
        // A list may have the size of a leaf.
        others + flush + leaves - LEAVES.len()
    });
    settles(what, tries);
}

fn plain(place: Place) {
    let scratch = Scratch::new(place).expect("a directory");
    let base = scratch.sparse("disk.raw", DISK).expect("a file");
    let mut served = Served::start(&scratch, vec![disk("disk0", file(base, None))]);
    served.costs_nothing("writes", random(0, Ask::Write));
    served.costs_nothing("reads", random(0, Ask::Read));
    served.stop();
}

fn overlay(place: Place) {
    let scratch = Scratch::new(place).expect("a directory");
    let base = scratch.sparse("golden.raw", DISK).expect("a file");
    let store = scratch.path("store.cow");
    let mut served = Served::start(&scratch, vec![disk("disk0", file(base, Some(store)))]);
    served.costs_nothing("reads of an empty overlay", random(0, Ask::Read));
    let (whole, part) = (0..TRIES, TRIES..2 * TRIES);
    leaves_alone("first writes", &mut served, whole, |chunks| each(chunks, true));
    leaves_alone("first writes of parts", &mut served, part, |chunks| each(chunks, false));
    served.costs_nothing("writes to what is mapped", random(0, Ask::Write));
    served.costs_nothing("reads of what is mapped", random(0, Ask::Read));
    served.costs_nothing("reads of what is not mapped", random(2 * TRIES, Ask::Read));
    served.stop();
}

/// An origin with a snapshot: each first write to a chunk waits for a commit.
fn origin(place: Place) {
    let scratch = Scratch::new(place).expect("a directory");
    let base = scratch.sparse("disk.raw", DISK).expect("a file").display().to_string();
    let store = scratch.sparse("store.cow", DISK).expect("a file").display().to_string();
    let line = |rest: String| DiskSource::Lines(vec![format!("0 {} {rest}", DISK / 512)]);
    let disks = vec![
        disk("base", line(format!("linear {base} 0"))),
        disk("snap", line(format!("snapshot base {store} P 8"))),
        disk("disk0", line("snapshot-origin base".to_owned())),
    ];
    let mut served = Served::start(&scratch, disks);
    served.costs_nothing("reads of an origin", random(0, Ask::Read));
    leaves_alone("copies", &mut served, 0..TRIES, |chunks| each(chunks, true));
    served.costs_nothing("writes to what was copied", each(0..REGION, true));
    served.stop();
}

/// A front end that keeps the inflight memory.
fn tracked(place: Place) {
    let scratch = Scratch::new(place).expect("a directory");
    let mut guest = Lasting::new(1, Rng::new(1)).without_flushes();
    let base = scratch.sparse("disk.raw", guest.disk_len()).expect("a file");
    let (thread, mut qmp, socket) = serve_disks(&scratch, vec![disk("disk0", file(base, None))]);
    guest.connect(&socket);
    let round = |guest: &mut Lasting| {
        let enough = guest.ended + ROUND as u64;
        while guest.ended < enough {
            guest.fill();
            guest.wait();
        }
    };
    // The session's log lines have been written by then.
    round(&mut guest);
    let tries = (0..TRIES).map(|_| {
        let rounds = (0..16).map(|_| during(|| round(&mut guest)));
        let found: Vec<Seen> = rounds.collect();
        assert!(found.iter().all(|seen| seen.logged == 0), "{found:?}");
        found.iter().map(|seen| seen.allocations as usize).sum()
    });
    settles("requests that are kept track of", tries);
    guest.finish();
    drop(guest);
    qmp.call("quit", json!({})).expect("it ends");
    thread.join().expect("it ended well");
}

#[test]
fn a_guest_s_io_allocates_and_logs_nothing() {
    counter::leave_out_this_thread();
    counter::start();
    for place in [Place::Memory, Place::Disk] {
        plain(place);
        tracked(place);
        overlay(place);
        origin(place);
    }
}
