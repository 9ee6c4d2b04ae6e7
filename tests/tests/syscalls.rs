//! The number and kinds of system calls that the program makes for a guest's I/O.
//!
//! A front end that polls keeps 32 requests in flight; the kernel's tracepoints count. That needs
//! `perf` and permission to use it, which root has; without permission a message says so, and
//! nothing is proved.

use std::sync::{Mutex, PoisonError};

use snapblk_tests::bench::{Meter, SyscallCounter, SyscallKind};
use snapblk_tests::client::{Connect, Waiting};
use snapblk_tests::rng::Rng;
use snapblk_tests::server::{Place, Scratch, Server, ServerCommand};
use snapblk_tests::steady::{Ask, Steady};

/// Bytes of a request, and of a chunk.
const BLOCK: u64 = 4096;
/// Bytes of a disk.
const DISK: u64 = 64 << 20;
const DEPTH: usize = 32;
/// Requests that are counted.
const REQUESTS: u64 = 12_000;
/// The most system calls per request on a disk with O_DIRECT.
const ON_DISK: f64 = 0.1;
/// How often that is tried: a server that waits for a processor finds fewer completions at once,
/// and the machine may be busy.
const TRIES: usize = 3;
/// On tmpfs: one `pread` or `pwrite`, and the remaining kicks and sleeps.
const IN_MEMORY: f64 = 1.1;

/// For two queues, each flushed after 64 requests: on tmpfs and on a disk. A worker is woken from
/// time to time.
const TWO_QUEUES: [(Place, f64); 2] = [(Place::Memory, 1.3), (Place::Disk, 0.6)];

/// Waits for a lock per request, of first writes and of other writes, in one of [`TRIES`] at least: a first write in a
/// hundred finds its leaf of the table full and takes memory, and a list may still grow.
const WAITS_OF_TWO: [f64; 2] = [0.001, 0.0];
/// In each try.
const WAITS_AT_MOST: f64 = 0.01;

const fn kind(name: &'static str) -> SyscallKind {
    SyscallKind { name, filter: None }
}

/// Counted separately. A lock that is not free causes a `futex`.
const KINDS: [SyscallKind; 8] = [
    SyscallKind { name: "io_uring_enter", filter: Some("min_complete > 0") },
    SyscallKind { name: "io_uring_enter", filter: Some("min_complete == 0") },
    kind("pread64"),
    kind("pwrite64"),
    kind("pwritev"),
    kind("write"),
    kind("epoll_wait"),
    kind("futex"),
];

/// Two servers at a time would not have a core each.
static ALONE: Mutex<()> = Mutex::new(());

/// The system calls of a load.
struct Counted {
    /// All, per request.
    all: f64,
    /// Of these, waits for a lock and wakes of waiting threads.
    futex: f64,
}

/// Starts a server with one disk on `place`, with an empty overlay over it if requested.
fn start(scratch: &Scratch, overlay: bool, queues: usize) -> Server {
    let base = scratch.file("disk.raw", &vec![7; DISK as usize]).expect("a file");
    let mut command = ServerCommand::snapblk(scratch).unwrap_or_else(|error| panic!("{error}"));
    command = command.arg("--num-queues").arg(queues.to_string()).arg("--blk-file").arg(base);
    if overlay {
        command = command.arg("--overlay").arg(scratch.path("store.cow"));
    }
    command.start().unwrap_or_else(|error| panic!("{error}"))
}

/// Carries out `warm_up`, then counts during `asks`; none without permission.
fn count<W, A>(what: &str, place: Place, overlay: bool, warm_up: W, asks: A) -> Option<Counted>
where
    W: Iterator<Item = Ask>,
    A: Iterator<Item = Ask>,
{
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new(place).expect("a directory");
    let server = start(&scratch, overlay, 1);
    let connect = Connect { waiting: Waiting::Poll, ..Connect::to(server.socket()) };
    let mut load = Steady::connect(connect, DEPTH, BLOCK as usize).expect("a session");
    load.run(warm_up).expect("every request ends well");
    measure(what, &server, &scratch, || load.run(asks).expect("every request ends well"))
}

/// The same with two queues of one disk, each used by its own thread.
fn count_two<A>(what: &str, place: Place, overlay: bool, asks: [(A, A); 2]) -> Option<Counted>
where
    A: Iterator<Item = Ask> + Send,
{
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new(place).expect("a directory");
    let server = start(&scratch, overlay, 2);
    let connect = Connect { waiting: Waiting::Poll, ..Connect::to(server.socket()) }.queues(2);
    let mut loads = Steady::connect_each(connect, DEPTH, BLOCK as usize).expect("a session");
    let mut run = |asks: [A; 2]| {
        std::thread::scope(|scope| {
            let both = loads.iter_mut().zip(asks);
            let threads: Vec<_> = both
                .map(|(load, asks)| {
                    scope.spawn(|| load.run(asks).expect("every request ends well"))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a load")).sum()
        })
    };
    let [(warm_up, asks), (warm_up_of_other, asks_of_other)] = asks;
    let _: u64 = run([warm_up, warm_up_of_other]);
    measure(what, &server, &scratch, || run([asks, asks_of_other]))
}

/// Counts during `run`, which returns the number of requests. Not what the watchdog over notifications
/// does: it goes to sleep after a second without any, in which no request takes part.
fn measure(
    what: &str,
    server: &Server,
    scratch: &Scratch,
    run: impl FnOnce() -> u64,
) -> Option<Counted> {
    let counts = SyscallCounter::attach_to_kinds(server.pid(), "watchdog", scratch.dir(), &KINDS);
    let counts = counts.and_then(|mut counter| {
        counter.start();
        let done = run();
        counter.stop();
        Ok((counter.counts()?, done as f64))
    });
    let (counts, done) = match counts {
        Ok(found) => found,
        Err(error) if !rustix::process::geteuid().is_root() => {
            eprintln!("{what}: system calls are NOT COUNTED, as this user may not: {error}");
            return None;
        }
        Err(error) => panic!("system calls cannot be counted: {error}"),
    };
    let each = |count: u64| count as f64 / done;
    let kinds: Vec<String> = KINDS
        .iter()
        .zip(&counts[1..])
        .filter(|(_, count)| **count > 0)
        .map(|(kind, &count)| format!("{} {:.4}", kind_name(kind), each(count)))
        .collect();
    eprintln!("{what}: {:.4} system calls a request: {}", each(counts[0]), kinds.join(", "));
    Some(Counted { all: each(counts[0]), futex: each(counts[KINDS.len()]) })
}

fn kind_name(kind: &SyscallKind) -> String {
    let filter = kind.filter.map(|filter| format!(" ({filter})"));
    format!("{}{}", kind.name, filter.unwrap_or_default())
}

/// `REQUESTS` requests at random places of the disk.
fn random(seed: u64, ask: fn(u64, usize) -> Ask) -> impl Iterator<Item = Ask> {
    let mut rng = Rng::new(seed);
    (0..REQUESTS).map(move |_| ask(rng.below(DISK / BLOCK) * BLOCK, BLOCK as usize))
}

/// A write to each chunk of the disk from this one on, in random order.
fn first_writes(chunks: std::ops::Range<u64>) -> impl Iterator<Item = Ask> {
    let mut chunks: Vec<u64> = chunks.collect();
    Rng::new(1).shuffle(&mut chunks);
    chunks.into_iter().map(|chunk| Ask::Write(chunk * BLOCK, BLOCK as usize))
}

#[track_caller]
fn at_most(most: f64, counted: Option<Counted>) {
    if let Some(Counted { all, futex }) = counted {
        assert!(all <= most, "{all:.3} system calls a request, and {most} at most");
        assert!(futex == 0.0, "nobody waits for a lock");
    }
}

/// If there are too many, repeats the measurement, on a disk.
fn on_disk<A: Iterator<Item = Ask>>(what: &str, overlay: bool, asks: impl Fn() -> (A, A)) {
    let mut tries = (0..TRIES).map(|_| {
        let (warm_up, asks) = asks();
        count(what, Place::Disk, overlay, warm_up, asks)
    });
    let is_enough = |tried: &Option<_>| tried.as_ref().is_none_or(|c: &Counted| c.all <= ON_DISK);
    let found = tries.find(is_enough);
    at_most(ON_DISK, found.unwrap_or_else(|| panic!("{what}: more than {ON_DISK} each time")));
}

#[test]
fn a_batch_on_disk_goes_out_and_comes_back_in_few_system_calls() {
    for (what, ask) in
        [("disk, reads", Ask::Read as fn(u64, usize) -> Ask), ("disk, writes", Ask::Write)]
    {
        on_disk(what, false, || (random(1, ask), random(2, ask)));
    }
}

#[test]
fn a_batch_of_first_writes_on_disk_is_no_more() {
    on_disk("disk, first writes", true, || {
        (first_writes(0..4096), first_writes(4096..DISK / BLOCK))
    });
}

#[test]
fn on_tmpfs_a_request_is_one_system_call() {
    for (what, ask) in
        [("tmpfs, reads", Ask::Read as fn(u64, usize) -> Ask), ("tmpfs, writes", Ask::Write)]
    {
        at_most(IN_MEMORY, count(what, Place::Memory, false, random(1, ask), random(2, ask)));
    }
}

/// Those of a batch share a write.
#[test]
fn first_writes_on_tmpfs_are_less_than_one_system_call_each() {
    let (warm_up, rest) = (first_writes(0..2048), first_writes(2048..DISK / BLOCK));
    at_most(0.9, count("tmpfs, first writes", Place::Memory, true, warm_up, rest));
}

/// Two workers of one disk share words of its table and of its log, whose neighbouring words are
/// the other's; the leader of a commit takes the log's tail, which the other worker does not need
/// meanwhile.
///
/// A wait is seen here only if a lock is held for longer than a waiting thread spins, such as
/// during I/O; tidy checks that the files on the path of a request name no lock at all. Uncounted
/// requests come first: lists grow during a worker's first batches of a kind, and the memory
/// allocator has a lock.
#[test]
fn two_queues_of_a_disk_wait_for_no_lock() {
    let flushed = |asks: Vec<Ask>| {
        let with_flush = |(n, ask): (usize, Ask)| {
            [Some(ask), (n % 64 == 63).then_some(Ask::Flush)].into_iter().flatten()
        };
        asks.into_iter().enumerate().flat_map(with_flush).collect::<Vec<_>>().into_iter()
    };
    // One queue has the odd chunks, the other the even ones. Every eighth of these, and so some of
    // each leaf, is written before.
    let own = |of: u64, is_first: fn(u64) -> bool| {
        first_writes(0..DISK / BLOCK).filter(
            move |ask| matches!(ask, Ask::Write(at, _) if at / BLOCK % 2 == of && is_first(at / BLOCK / 2)),
        )
    };
    let again = |seed| random(seed, Ask::Write as fn(u64, usize) -> Ask);
    for (place, most) in TWO_QUEUES {
        let first = [0, 1].map(|of| {
            let (some, rest) = (own(of, |chunk| chunk % 8 == 0), own(of, |chunk| chunk % 8 != 0));
            (flushed(some.collect()), flushed(rest.collect()))
        });
        let written = [0, 1].map(|of| {
            let before = own(of, |_| true).chain(again(4 + of));
            (flushed(before.collect()), flushed(again(2 + of).collect()))
        });
        for ((what, asks), waits) in
            [("first writes", first), ("writes", written)].into_iter().zip(WAITS_OF_TWO)
        {
            let what = format!("{what} of two queues, {place:?}");
            let mut is_enough = false;
            for _ in 0..TRIES {
                let counted = count_two(&what, place, true, asks.clone());
                let Some(Counted { all, futex }) = counted else { return };
                assert!(all <= most, "{what}: {all:.3} system calls a request");
                assert!(futex <= WAITS_AT_MOST, "{what}: {futex:.4} waits for a lock a request");
                is_enough = futex <= waits;
                if is_enough {
                    break;
                }
            }
            assert!(is_enough, "{what}: more than {waits} waits for a lock a request each time");
        }
    }
}
