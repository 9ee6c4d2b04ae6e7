//! The state shared by workers, under every order of their steps that a random scheduler finds: no
//! worker sleeps forever, and none sees a forbidden state. A lost wake-up shows as a deadlock.
//!
//! `cargo test -p snapblk-store --features shuttle --test interleavings`; `SNAPBLK_SEEDS` sets the
//! number of schedules.

mod full;
mod log;
mod syncs;

use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use snapblk_store::cow::log::LOG_WORDS;
use snapblk_store::cow::store::{StoreEvent, StoreObserver, StoreParts};
use snapblk_store::cow::tail::Tail;
use snapblk_store::cow::words::Words;
use snapblk_store::cow::{Allocation, Geometry, Log, Persistence, Store};
use snapblk_store::engine::{Engine, EngineConfig};
use snapblk_store::exception::{ChunkState, ExceptionTable, Layer, Place};
use snapblk_store::io::{Action, Completion, Errno, FileId, IoOp, Seg};
use snapblk_store::request::{Op, Request, Status, Token};
use snapblk_store::table::{Line, Table};
use snapblk_store::target::snapshot::Features;
use snapblk_store::target::{Backing, Exceptions, ExceptionsId, Medium, Origin, Snapshot, Target};
use snapblk_store::units::{Chunk, ChunkSize, DataIndex, Sector, StoreChunk};
use snapblk_store::workers::{TrackedObject, Wake, Worker, Workers};

fn check(test: impl Fn() + Send + Sync + 'static) {
    check_more(1, test);
}

/// Like [`check`], with that many times as many schedules: for tests with few steps, few of whose
/// schedules matter.
fn check_more(times: usize, test: impl Fn() + Send + Sync + 'static) {
    let seeds = std::env::var("SNAPBLK_SEEDS").ok().and_then(|text| text.parse().ok());
    let seeds = times * seeds.unwrap_or(400);
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    let test = Arc::new(test);
    let again = test.clone();
    let random = RandomScheduler::new(seeds);
    shuttle::Runner::new(random, config.clone()).run(move || test());
    let priorities = PctScheduler::new(3, seeds * 2);
    shuttle::Runner::new(priorities, config).run(move || again());
}

/// An eventfd.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

struct Ring(Arc<Bell>);

impl Wake for Ring {
    fn wake(&self) {
        *self.0.rung.lock().unwrap() = true;
        self.0.changed.notify_one();
    }
}

/// A worker that sleeps like a host's.
struct Sleeper {
    worker: Worker,
    bell: Arc<Bell>,
}

impl Sleeper {
    fn new(workers: &Arc<Workers>) -> Sleeper {
        let bell = Arc::new(Bell::default());
        let worker = workers.register(Box::new(Ring(bell.clone()))).unwrap();
        Sleeper { worker, bell }
    }

    fn sleep(&self) {
        if self.worker.may_sleep() {
            self.bell.wait();
            self.worker.woke();
        }
        self.worker.take_wake();
    }
}

/// Runs `body` on `count` workers at once; they leave only when all have finished.
fn with_workers<T: Send + Sync + 'static>(
    count: usize,
    shared: T,
    body: impl Fn(usize, &Sleeper, &T) + Send + Sync + 'static,
) -> Arc<T> {
    let workers = Arc::new(Workers::with_capacity(count));
    let (shared, body) = (Arc::new(shared), Arc::new(body));
    let threads: Vec<_> = (0..count)
        .map(|number| {
            let sleeper = Sleeper::new(&workers);
            let (shared, body) = (shared.clone(), body.clone());
            thread::spawn(move || {
                body(number, &sleeper, &shared);
                sleeper
            })
        })
        .collect();
    let sleepers: Vec<Sleeper> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    drop(sleepers);
    shared
}

fn place(chunk: u64) -> Place {
    Place { layer: Layer::FIRST, chunk: StoreChunk(chunk) }
}

/// I5, I17: one of three workers moves the chunk, and the others wait until it has.
#[test]
fn a_chunk_is_moved_once_and_all_who_wait_are_woken() {
    check(|| {
        let shared = (ExceptionTable::new(1), AtomicU64::new(0));
        let shared = with_workers(3, shared, |number, me, (table, moves)| {
            loop {
                match table.get(Chunk(0)) {
                    ChunkState::Mapped(_) => break,
                    ChunkState::Unmapped => {
                        let Ok(claim) = table.claim(Chunk(0), ChunkState::Unmapped) else {
                            continue;
                        };
                        thread::yield_now();
                        // The first claim is given up once: the others must notice that, too.
                        if number == 0 && moves.fetch_add(100, Ordering::SeqCst) < 100 {
                            me.worker.all().wake(table.put_back(claim));
                            continue;
                        }
                        moves.fetch_add(1, Ordering::SeqCst);
                        me.worker.all().wake(table.publish(claim, place(2)));
                    }
                    seen => {
                        if table.wait(Chunk(0), seen, me.worker.bit()) {
                            me.sleep();
                        }
                    }
                }
            }
        });
        assert_eq!(shared.1.load(Ordering::SeqCst) % 100, 1);
    });
}

/// I5, I17: overlapping runs in a region whose leaf grows meanwhile. Each chunk is moved once, with
/// the run of its claim, and waiters for a chunk in the middle of a run are woken.
#[test]
fn runs_that_overlap_move_each_chunk_once() {
    check(|| {
        let moves: Vec<AtomicU64> = (0..20).map(|_| AtomicU64::new(0)).collect();
        let shared =
            with_workers(3, (ExceptionTable::new(20), moves), |number, me, (table, moves)| {
                // Two regions of 16 chunks; the third worker begins at the end of the others'
                // range.
                let (mut chunk, end) = [(10, 18), (12, 20), (15, 18)][number];
                while chunk < end {
                    match table.get(Chunk(chunk)) {
                        ChunkState::Mapped(_) => chunk += 1,
                        ChunkState::Unmapped => {
                            let most = end - chunk;
                            let run = table.claim_run(Chunk(chunk), most, ChunkState::Unmapped);
                            let Ok(claim) = run else { continue };
                            (0..claim.count()).for_each(|n| {
                                moves[(chunk + n) as usize].fetch_add(1, Ordering::SeqCst);
                            });
                            thread::yield_now();
                            chunk += claim.count();
                            let at = place(100 * number as u64 + claim.chunk().0);
                            me.worker.all().wake(table.publish(claim, at));
                        }
                        seen => {
                            if table.wait(Chunk(chunk), seen, me.worker.bit()) {
                                me.sleep();
                            }
                        }
                    }
                }
            });
        for chunk in 10..20 {
            assert_eq!(shared.1[chunk as usize].load(Ordering::SeqCst), 1);
            let ChunkState::Mapped(at) = shared.0.get(Chunk(chunk)) else { panic!("it was moved") };
            assert_eq!(at.chunk.0 % 100, chunk);
        }
    });
}

/// Moves `chunk` unless another worker has; returns its place.
fn moved(me: &Sleeper, table: &ExceptionTable, chunk: Chunk, to: u64) -> Place {
    loop {
        match table.get(chunk) {
            ChunkState::Mapped(at) => return at,
            ChunkState::Unmapped => {
                if let Ok(claim) = table.claim(chunk, ChunkState::Unmapped) {
                    thread::yield_now();
                    me.worker.all().wake(table.publish(claim, place(to)));
                }
            }
            seen => {
                if table.wait(chunk, seen, me.worker.bit()) {
                    me.sleep();
                }
            }
        }
    }
}

/// I5, I17, I18: three workers move chunks of one region, whose leaf is almost full and is replaced
/// meanwhile: three times, or once by the final array. All three want two of the chunks. Each is
/// moved once, an observed state is kept, and all waiters are woken, whichever leaf they used.
#[test]
fn a_region_that_grows_loses_nothing() {
    check(|| grow(&[0, 1, 2], 2 + 11));
    check(|| grow(&[0, 1, 2, 5, 6, 7, 8, 9], 16));
}

fn grow(loaded: &'static [u64], words: usize) {
    let table = ExceptionTable::new(16);
    loaded.iter().for_each(|&chunk| table.load(Chunk(chunk), place(chunk)));
    let empty = ExceptionTable::new(16).memory();
    let table = with_workers(3, table, |number, me, table| {
        let own = 10 + number as u64;
        let wanted = if number == 1 { [4, own, 3] } else { [3, 4, own] };
        let mut seen = Vec::new();
        for chunk in wanted.map(Chunk) {
            seen.push((chunk, moved(me, table, chunk, 100 + own)));
            for &(chunk, at) in &seen {
                assert_eq!(table.get(chunk), ChunkState::Mapped(at));
            }
        }
    });
    let mapped = |chunk| matches!(table.get(Chunk(chunk)), ChunkState::Mapped(_));
    let meant = |chunk| matches!(chunk, 3 | 4 | 10..13) || loaded.contains(&chunk);
    assert!((0..16).all(|chunk| mapped(chunk) == meant(chunk)));
    assert_eq!(table.memory() - empty, words * 8, "the leaves that were replaced are gone");
}

/// A chunk is merged, and then another, while their region grows: a writer of the chunk waits
/// meanwhile, and finds the final state.
#[test]
fn a_busy_chunk_in_a_region_that_grows_stays_busy() {
    check(|| {
        let table = ExceptionTable::new(16);
        (0..3).for_each(|chunk| table.load(Chunk(chunk), place(chunk)));
        let shared = (table, AtomicU64::new(0));
        with_workers(3, shared, |number, me, (table, copying)| match number {
            0 => {
                for chunk in 0..2 {
                    assert!(table.mark_busy(Chunk(chunk), place(chunk)));
                    copying.store(1, Ordering::SeqCst);
                    thread::yield_now();
                    copying.store(0, Ordering::SeqCst);
                    let waiting = match chunk {
                        0 => table.keep_busy_mapped(Chunk(0), place(0)),
                        _ => table.clear_busy(Chunk(1), place(1)),
                    };
                    me.worker.all().wake(waiting);
                }
            }
            1 => {
                let mut last = ChunkState::Mapped(place(1));
                while last != ChunkState::Unmapped {
                    last = table.get(Chunk(1));
                    if matches!(last, ChunkState::Busy(_))
                        && table.wait(Chunk(1), last, me.worker.bit())
                    {
                        me.sleep();
                    }
                    thread::yield_now();
                }
                assert_eq!(copying.load(Ordering::SeqCst), 0);
                assert_eq!(table.get(Chunk(0)), ChunkState::Mapped(place(0)));
                moved(me, table, Chunk(1), 51);
            }
            _ => (5..10).for_each(|chunk| {
                moved(me, table, Chunk(chunk), chunk);
            }),
        });
    });
}

/// I6: a read redirected to the origin never sees an origin write that followed the snapshot's
/// copy.
#[test]
fn an_origin_write_waits_for_redirected_reads() {
    const ID: TrackedObject = TrackedObject(9);
    check(|| {
        let shared = (ExceptionTable::new(1), AtomicU64::new(0));
        with_workers(3, shared, |number, me, (table, origin)| {
            if number == 0 {
                let claim = table.claim(Chunk(0), ChunkState::Unmapped).unwrap();
                me.worker.all().wake(table.publish(claim, place(2)));
                while me.worker.all().overlaps(ID, 0, 8, me.worker.bit()) {
                    me.sleep();
                }
                origin.store(1, Ordering::SeqCst);
                return;
            }
            for _ in 0..2 {
                match table.get(Chunk(0)) {
                    ChunkState::Unmapped => {
                        let track = me.worker.track(ID, 4, 4).unwrap();
                        if table.get(Chunk(0)) == ChunkState::Unmapped {
                            thread::yield_now();
                            assert_eq!(origin.load(Ordering::SeqCst), 0);
                        }
                        me.worker.untrack(track);
                    }
                    seen @ ChunkState::Pending if table.wait(Chunk(0), seen, me.worker.bit()) => {
                        me.sleep();
                    }
                    _ => {}
                }
            }
        });
    });
}

struct Silent;

impl StoreObserver for Silent {
    fn store_event(&self, _name: &str, _event: StoreEvent) {}

    fn first_owed(&self) {}
}

const CHUNK: u64 = 512;
const BASE: FileId = FileId(0);
const STORE: FileId = FileId(1);

/// An origin and one snapshot of it on disks in memory: two tables over one exception table.
struct Pair {
    store: Arc<Store>,
    tables: [Arc<Table>; 2],
    disks: Mutex<[Vec<u8>; 2]>,
}

impl Pair {
    fn new() -> Pair {
        let chunk = ChunkSize::from_sectors(1).unwrap();
        let geometry = Geometry { chunk, device_chunks: 40 };
        let words = Words::private(LOG_WORDS);
        let store = Arc::new(Store::new(StoreParts {
            name: "store".into(),
            file: STORE,
            geometry,
            persistence: Persistence::Persistent,
            guest_disk: false,
            valid: true,
            log: Log::new(words, DataIndex(0), geometry.capacity()),
            tail: Tail::new(geometry, 0, &[]),
            observer: Box::new(Silent),
        }));
        let medium = Arc::new(Medium::new(BASE));
        let len = 4 * CHUNK;
        let backing = || Backing::file(medium.clone(), 0, len);
        let table = Arc::new(ExceptionTable::new(4));
        let exceptions = || {
            let (table, layers) = (table.clone(), vec![store.clone()]);
            vec![Exceptions { table, layers, origin: backing(), len }]
        };
        let tracked = TrackedObject(1);
        let origin =
            Origin { backing: backing(), start: 0, tracked, snapshots: vec![ExceptionsId(0)] };
        let features = Features::default();
        let snapshot = Snapshot { exceptions: ExceptionsId(0), tracked: Some(tracked), features };
        let of = |target| Arc::new(Table::new(vec![Line { start: 0, len, target }], exceptions()));
        let tables = [of(Target::Origin(origin)), of(Target::Snapshot(snapshot))];
        let disks = [vec![1; len as usize], vec![0; 40 * CHUNK as usize]];
        Pair { store, tables, disks: Mutex::new(disks) }
    }
}

/// A host that carries every action out at once, on its own thread.
struct Host {
    engine: Engine,
    bell: Arc<Bell>,
    scratch: Vec<u8>,
    guest: Vec<u8>,
    /// How often it yields before it carries an action out.
    patience: u32,
}

impl Host {
    fn new(workers: &Arc<Workers>, table: &Arc<Table>) -> Host {
        let bell = Arc::new(Bell::default());
        let config = EngineConfig { scratch: 128 << 10, requests: 4, claims: 4 };
        let mut engine = Engine::new(workers, Box::new(Ring(bell.clone())), config).unwrap();
        engine.bind(Some(table.clone()));
        Host { engine, bell, scratch: vec![0; 128 << 10], guest: Vec::new(), patience: 1 }
    }

    fn carry_out(&mut self, pair: &Pair, action: Action) {
        let segs = self.engine.segs(&action).to_vec();
        (0..self.patience).for_each(|_| thread::yield_now());
        let mut disks = pair.disks.lock().unwrap();
        let mut at = action.offset as usize;
        if action.op != IoOp::Sync {
            let disk = &mut disks[action.file.0 as usize];
            for seg in &segs {
                let len = seg.len() as usize;
                let memory = match *seg {
                    Seg::Guest { offset, .. } => &mut self.guest[offset as usize..][..len],
                    Seg::Scratch { offset, .. } => &mut self.scratch[offset as usize..][..len],
                    Seg::Zero { .. } => &mut vec![0; len][..],
                    Seg::Meta { .. } => &mut self.engine.meta_of(&action).to_vec()[..],
                };
                match action.op {
                    IoOp::Read => memory.copy_from_slice(&disk[at..at + len]),
                    IoOp::Write => disk[at..at + len].copy_from_slice(memory),
                    other => panic!("{other:?} is not asked for here"),
                }
                at += len;
            }
        }
        drop(disks);
        self.engine.complete(Completion { tag: action.tag, result: Ok(()) });
    }

    fn request(&mut self, pair: &Pair, op: Op, chunk: u64, byte: u8) -> u8 {
        self.guest = vec![byte; CHUNK as usize];
        let len = if op == Op::Flush { 0 } else { CHUNK };
        let (token, sector) = (Token(1), Sector(if op == Op::Flush { 0 } else { chunk }));
        self.engine.submit(Request { token, op, sector, len, durable: false });
        loop {
            self.engine.step();
            if let Some(action) = self.engine.pop_action() {
                let mut next = Some(action);
                while let Some(action) = next {
                    self.carry_out(pair, action);
                    next = self.engine.pop_action();
                }
                continue;
            }
            if let Some((_, status)) = self.engine.pop_finished() {
                assert_eq!(status, Status::Ok);
                return self.guest[0];
            }
            if self.engine.may_sleep() {
                self.bell.wait();
                self.engine.woke();
            }
        }
    }

    /// Work of this worker that others need, such as a round that it leads, continues to its end.
    fn settle(&mut self, pair: &Pair) {
        loop {
            self.engine.step();
            let Some(action) = self.engine.pop_action() else { break };
            self.carry_out(pair, action);
        }
    }
}

/// Scenario 12 with whole engines: a read of the snapshot that is delayed anywhere, also between
/// its decision and its tracking, sees old data.
#[test]
fn an_engine_s_redirected_read_is_not_overtaken() {
    check(|| redirected_read(1));
    check(|| redirected_read(200));
}

fn redirected_read(patience: u32) {
    let pair = Arc::new(Pair::new());
    let workers = Arc::new(Workers::with_capacity(2));
    let [origin, mut snapshot] = [0, 1].map(|device| Host::new(&workers, &pair.tables[device]));
    snapshot.patience = patience;
    let run = |mut host: Host, body: fn(&mut Host, &Pair)| {
        let pair = pair.clone();
        thread::spawn(move || {
            body(&mut host, &pair);
            host.settle(&pair);
            host
        })
    };
    let threads = [
        run(origin, |host, pair| {
            host.request(pair, Op::Write, 0, 2);
        }),
        run(snapshot, |host, pair| {
            assert_eq!(host.request(pair, Op::Read, 0, 0xee), 1);
        }),
    ];
    drop(threads.map(|thread| thread.join().unwrap()));
}

/// Scenarios 1, 2, 12 and 69 with the whole engine on two or three threads: the snapshot reads old
/// data, whatever the origin's writers do.
#[test]
fn engines_of_an_origin_and_its_snapshot_agree() {
    check(|| {
        let pair = Arc::new(Pair::new());
        let workers = Arc::new(Workers::with_capacity(3));
        let run = |device: usize, body: fn(&mut Host, &Pair)| {
            let mut host = Host::new(&workers, &pair.tables[device]);
            let pair = pair.clone();
            thread::spawn(move || {
                body(&mut host, &pair);
                host.settle(&pair);
                host
            })
        };
        let threads = [
            run(0, |host, pair| {
                host.request(pair, Op::Write, 0, 2);
                host.request(pair, Op::Write, 1, 3);
            }),
            run(1, |host, pair| {
                assert_eq!(host.request(pair, Op::Read, 0, 0xee), 1);
                host.request(pair, Op::Write, 1, 4);
                assert_eq!(host.request(pair, Op::Read, 1, 0xee), 4);
                host.request(pair, Op::Flush, 0, 0);
            }),
            run(0, |host, pair| {
                // It leads no round for others: they elect another leader.
                host.engine.set_stopping(true);
                host.request(pair, Op::Write, 2, 5);
                host.request(pair, Op::Flush, 0, 0);
            }),
        ];
        let hosts = threads.map(|thread| thread.join().unwrap());
        for host in &hosts {
            assert!(host.engine.is_quiet());
        }
        assert_eq!(pair.store.log().committed(), pair.store.log().next());
        let mut hosts = hosts;
        let read = |host: &mut Host, chunk| host.request(&pair, Op::Read, chunk, 0xee);
        let image: Vec<u8> = (0..4).map(|chunk| read(&mut hosts[1], chunk)).collect();
        assert_eq!(image, [1, 4, 1, 1]);
        let image: Vec<u8> = (0..4).map(|chunk| read(&mut hosts[0], chunk)).collect();
        assert_eq!(image, [2, 3, 5, 1]);
    });
}

/// I17: a flush that joins the round of a worker that is about to stop, and leads no further round,
/// is not forgotten: its own worker leads the next round.
#[test]
fn a_flush_outlives_a_leader_that_stops() {
    check(|| {
        let pair = Arc::new(Pair::new());
        let workers = Arc::new(Workers::with_capacity(2));
        let run = |stopping: bool| {
            let mut host = Host::new(&workers, &pair.tables[1]);
            let pair = pair.clone();
            thread::spawn(move || {
                host.engine.set_stopping(stopping);
                host.request(&pair, Op::Flush, 0, 0);
                host.settle(&pair);
                host
            })
        };
        drop([run(true), run(false)].map(|thread| thread.join().unwrap()));
    });
}
