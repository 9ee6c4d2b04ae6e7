//! Flushes and merges in their threads, on files.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::attached::{AttachedWorker, StopError};
use crate::cow::layout::Geometry;
use crate::cow::log::{LOG_WORDS, Log};
use crate::cow::store::{StoreEvent, StoreObserver, StoreParts};
use crate::cow::tail::Tail;
use crate::cow::words::Words;
use crate::cow::{self, Entry, Persistence, Store};
use crate::engine::{MergeFailure, MergeState};
use crate::exception::{ExceptionTable, Layer, Place};
use crate::io::{FileInfo, Files, IoOp, IoOptions, OpenMode, Pages, ScratchConfig, Storage};
use crate::rounds::Join;
use crate::table::Line;
use crate::target::{
    Backing, Content, Exceptions, ExceptionsId, Features, Medium, Merge, Origin, Snapshot, Target,
};
use crate::units::{Chunk, ChunkSize, StoreChunk};
use crate::wake::WorkerBit;
use crate::workers::TrackedObject;

pub(super) const ORIGIN: FileId = FileId(0);
pub(super) const STORE: FileId = FileId(1);
const CHUNK: ChunkSize = ChunkSize::TOOLS;
const CHUNKS: u64 = 900;
pub(super) const LEN: u64 = CHUNKS * CHUNK.bytes();
const SCRATCH: u32 = 1 << 20;
/// The bit of a worker that is none.
const OTHER: WorkerBit = WorkerBit::of(40);

/// Ends a wait; latched.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// Whether actions are carried out; while closed, they stay in flight.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<bool>>);

impl Gate {
    fn set_closed(&self, closed: bool) {
        *self.0.lock().unwrap() = closed;
    }
}

/// Plain system calls, one action after the other.
struct Plain {
    files: Vec<File>,
    scratch: Vec<u8>,
    gate: Gate,
    queue: VecDeque<(Action, Vec<Seg>, Vec<u8>)>,
    bell: Arc<Bell>,
    /// Another worker that asks for a round of this store during each of its syncs.
    asks: Option<Arc<Store>>,
}

impl Plain {
    fn new(dir: &Path, gate: &Gate) -> Plain {
        let open =
            |name: &str| File::options().read(true).write(true).open(dir.join(name)).unwrap();
        Plain {
            files: vec![open("origin"), open("store")],
            scratch: vec![0; SCRATCH as usize],
            gate: gate.clone(),
            queue: VecDeque::new(),
            bell: Arc::default(),
            asks: None,
        }
    }

    fn carry_out(&mut self, action: &Action, segs: &[Seg], meta: &[u8]) {
        if let (Some(store), IoOp::Sync, STORE) = (&self.asks, action.op, action.file) {
            assert!(matches!(store.log().join(OTHER), Join::Wait(_)), "the merge leads");
        }
        let file = &self.files[action.file.0 as usize];
        let mut at = action.offset;
        for seg in segs {
            let len = seg.len() as usize;
            match *seg {
                Seg::Scratch { offset, .. } => {
                    let bytes = &mut self.scratch[offset as usize..][..len];
                    match action.op {
                        IoOp::Read => file.read_exact_at(bytes, at).unwrap(),
                        _ => file.write_all_at(bytes, at).unwrap(),
                    }
                }
                Seg::Zero { .. } => file.write_all_at(&vec![0; len], at).unwrap(),
                Seg::Meta { .. } => file.write_all_at(meta, at).unwrap(),
                Seg::Guest { .. } => panic!("there is no guest"),
            }
            at += len as u64;
        }
        assert!(matches!(action.op, IoOp::Read | IoOp::Write | IoOp::Sync));
    }
}

impl Executor for Plain {
    fn adopt(&mut self, _: &[FileId]) {
        assert!(self.queue.is_empty());
    }

    fn submit(&mut self, action: &Action, segs: &[Seg], meta: &[u8]) {
        self.queue.push_back((*action, segs.to_vec(), meta.to_vec()));
    }

    fn completed(&mut self) -> Option<Completion> {
        if *self.gate.0.lock().unwrap() {
            return None;
        }
        let (action, segs, meta) = self.queue.pop_front()?;
        self.carry_out(&action, &segs, &meta);
        Some(Completion { tag: action.tag, result: Ok(()) })
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let ready = || !self.queue.is_empty() && !*self.gate.0.lock().unwrap();
        let mut rung = self.bell.rung.lock().unwrap();
        let end = Instant::now() + timeout.unwrap_or(Duration::from_secs(3600));
        while !*rung && !ready() && Instant::now() < end {
            // Opening a gate does not ring the bell.
            let left = end.saturating_duration_since(Instant::now());
            rung = self.bell.changed.wait_timeout(rung, left.min(TEST_TICK)).unwrap().0;
        }
        *rung = false;
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.bell.clone()
    }

    fn scratch(&self, seg: &Seg) -> Vec<u8> {
        let Seg::Scratch { offset, len, .. } = *seg else { panic!("that is not scratch") };
        self.scratch[offset as usize..][..len as usize].to_vec()
    }
}

const TEST_TICK: Duration = Duration::from_millis(5);

struct Nobody;

impl StoreObserver for Nobody {
    fn store_event(&self, _: &str, _: StoreEvent) {}

    fn first_owed(&self) {}
}

pub(super) struct Case {
    pub(super) dir: tempfile::TempDir,
    gate: Gate,
    pub(super) workers: Arc<Workers>,
    store: Arc<Store>,
    exceptions: Arc<ExceptionTable>,
}

/// An origin of ones and a store with `entries` chunks of twos, scattered.
pub(super) fn case(entries: u64) -> Case {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("origin"), vec![1; LEN as usize]).unwrap();
    let path = dir.path().join("store");
    File::create(&path).unwrap().set_len(1100 * CHUNK.bytes()).unwrap();
    let info = FileInfo::open(&path, OpenMode::ReadWrite, false).unwrap();
    let geometry = Geometry::of_len(CHUNK, 1100 * CHUNK.bytes());
    cow::open::create(&info, geometry).unwrap();
    for position in 0..entries {
        let new = geometry.chunk_of_index(crate::units::DataIndex(position));
        let entry = Entry { old: Chunk(position * 7 % CHUNKS), new };
        info.write_at(&entry.encode(), geometry.entry_offset(position)).unwrap();
        info.write_at(&vec![2; CHUNK.bytes() as usize], CHUNK.store_offset(new)).unwrap();
    }
    let options = cow::OpenOptions { origin_len: Some(LEN), ..Default::default() };
    let opened = cow::open::open(&info, &options).unwrap();
    let exceptions = ExceptionTable::new(CHUNKS);
    let all = &opened.entries;
    for &Entry { old, new: chunk } in all {
        exceptions.load(old, Place { layer: Layer::FIRST, chunk });
    }
    let block = Tail::block_entries(&geometry) as usize;
    let store = Store::new(StoreParts {
        name: "store".into(),
        file: STORE,
        geometry,
        persistence: Persistence::Persistent,
        guest_disk: false,
        valid: true,
        log: Log::new(Words::private(LOG_WORDS), opened.next, geometry.capacity()),
        tail: Tail::new(geometry, entries, &all[all.len() / block * block..]),
        observer: Box::new(Nobody),
    });
    Case {
        dir,
        gate: Gate::default(),
        workers: Arc::new(Workers::with_capacity(4)),
        store: Arc::new(store),
        exceptions: Arc::new(exceptions),
    }
}

/// The origin's file.
pub(super) fn origin() -> Backing {
    let mut backing = Backing::default();
    let medium = Arc::new(Medium::new(ORIGIN));
    backing.push(LEN, Content::File { medium, offset: 0 });
    backing
}

impl Case {
    /// The store's chunks over the origin.
    pub(super) fn mapped(&self) -> Exceptions {
        Exceptions {
            table: self.exceptions.clone(),
            layers: vec![self.store.clone()],
            origin: origin(),
            len: LEN,
        }
    }

    fn table(&self, merging: bool) -> Arc<Table> {
        let ex = self.mapped();
        let backing = origin();
        let target = if merging {
            let origin = Origin { backing, start: 0, tracked: TrackedObject(1), snapshots: vec![] };
            Target::Merge(Merge {
                exceptions: ExceptionsId(0),
                origin,
                writes: TrackedObject(2),
                in_use: Default::default(),
            })
        } else {
            Target::Snapshot(Snapshot {
                exceptions: ExceptionsId(0),
                tracked: None,
                features: Features::default(),
            })
        };
        Arc::new(Table::new(vec![Line { start: 0, len: LEN, target }], vec![ex]))
    }

    fn config(&self) -> EngineConfig {
        EngineConfig { scratch: SCRATCH, requests: 8, claims: 64 }
    }

    fn executor(&self) -> Plain {
        Plain::new(self.dir.path(), &self.gate)
    }

    fn merge(&self) -> (MergeHandle, Receiver<MergeEnd>) {
        let (handle, ended) = self.merge_at_rest();
        handle.go(self.table(true));
        (handle, ended)
    }

    fn merge_at_rest(&self) -> (MergeHandle, Receiver<MergeEnd>) {
        let (end, ended) = channel();
        let on_end = move |how| end.send(how).unwrap();
        let (workers, pacing) = (self.workers.clone(), Pacing::default());
        let handle =
            MergeHandle::start(workers, self.executor(), self.config(), pacing, on_end).unwrap();
        (handle, ended)
    }

    /// Chunks that are on the origin.
    pub(super) fn home(&self) -> u64 {
        let origin = std::fs::read(self.dir.path().join("origin")).unwrap();
        let chunks = origin.chunks(CHUNK.bytes() as usize);
        let whole = chunks.filter(|chunk| chunk.iter().all(|&byte| byte == 2));
        whole.count() as u64
    }

    /// An exception that was made but not committed.
    fn owe(&self, old: u64) -> StoreChunk {
        let cow::Allocation::Run { first, .. } = self.store.log().allocate(1) else { panic!() };
        let chunk = self.store.place_of(first, 1).0;
        self.exceptions.load(Chunk(old), Place { layer: Layer::FIRST, chunk });
        let _ = self.store.log().finish(first, Some(Chunk(old)));
        let info =
            FileInfo::open(&self.dir.path().join("store"), OpenMode::ReadWrite, false).unwrap();
        let data = vec![2; CHUNK.bytes() as usize];
        info.write_at(&data, CHUNK.store_offset(chunk)).unwrap();
        chunk
    }

    fn entries_on_disk(&self) -> Vec<Entry> {
        let info =
            FileInfo::open(&self.dir.path().join("store"), OpenMode::ReadOnly, false).unwrap();
        cow::open::open(&info, &cow::OpenOptions::default()).unwrap().entries
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn a_flush_commits_what_is_owed() {
    let case = case(3);
    let flush =
        || flush(case.workers.clone(), &mut case.executor(), case.config(), case.table(false));
    flush().unwrap();
    let chunk = case.owe(800);
    flush().unwrap();
    assert_eq!(case.entries_on_disk()[3..], [Entry { old: Chunk(800), new: chunk }]);
    assert_eq!(case.store.log().committed(), case.store.log().next());
}

/// A merge with both executors: io_uring, or plain calls.
#[test]
fn a_merge_of_files_runs_to_its_end() {
    for uring in [true, false] {
        let case = case(700);
        let files = Arc::new(Files::default());
        let open = |name: &str| {
            files.open(&case.dir.path().join(name), OpenMode::ReadWrite, false).unwrap()
        };
        assert_eq!((open("origin"), open("store")), (ORIGIN, STORE));
        let options = IoOptions { uring, ..Default::default() };
        let scratch = ScratchConfig::one(SCRATCH, Pages::Huge);
        let executor = || FileExecutor::new(files.clone(), scratch, options).unwrap();
        case.owe(705 * 7 % CHUNKS);
        let (end, ended) = channel();
        let on_end = move |how| end.send(how).unwrap();
        let (workers, pacing) = (case.workers.clone(), Pacing::default());
        let handle =
            MergeHandle::start(workers, executor(), case.config(), pacing, on_end).unwrap();
        handle.go(case.table(true));
        handle.stop();
        handle.stopped(soon()).unwrap();
        handle.go(case.table(true));
        let end = ended.recv().unwrap();
        assert!(matches!(end, MergeEnd::Finished), "{end}");
        assert_eq!(case.home(), 701);
        assert_eq!(case.entries_on_disk(), []);
    }
}

#[test]
fn a_merge_runs_to_its_end() {
    let case = case(700);
    // A chunk that has no exception.
    case.owe(705 * 7 % CHUNKS);
    let (handle, ended) = case.merge();
    let end = ended.recv().unwrap();
    assert!(matches!(end, MergeEnd::Finished), "{end}");
    assert_eq!(case.home(), 701);
    let progress = handle.progress();
    assert_eq!(progress.state, MergeState::Finished);
    assert_eq!((progress.done, progress.total), (701, 701));
    assert_eq!(case.entries_on_disk(), []);
    // A merge that ended counts as stopped.
    handle.stop();
    handle.stopped(Instant::now()).unwrap();
}

/// A merge begins when its device lets it, which may be suspended.
#[test]
fn a_merge_waits_for_its_table() {
    let case = case(700);
    let (handle, ended) = case.merge_at_rest();
    handle.stop();
    handle.stopped(Instant::now()).unwrap();
    assert_eq!(handle.progress().state, MergeState::Running);
    handle.pause();
    assert_eq!(handle.progress().state, MergeState::Paused);
    handle.resume();
    handle.cancel();
    assert!(matches!(ended.recv().unwrap(), MergeEnd::Cancelled));
    assert_eq!((case.store.entries(), case.home()), (700, 0));
}

/// 44: stopped between batches, without its table; continued from where it was.
#[test]
fn a_merge_stops_and_goes_on() {
    let case = case(700);
    case.gate.set_closed(true);
    let (handle, ended) = case.merge();
    handle.stop();
    let late = handle.stopped(Instant::now() + TEST_TICK);
    assert_eq!(late, Err(StopError::Deadline));
    handle.stop();
    case.gate.set_closed(false);
    handle.stopped(soon()).unwrap();
    assert_eq!(Arc::strong_count(&case.store), 1, "its table is gone");
    let left = case.store.entries();
    assert!(left > 0);
    assert_eq!(case.entries_on_disk().len() as u64, left);
    handle.go(case.table(true));
    assert!(matches!(ended.recv().unwrap(), MergeEnd::Finished));
    assert_eq!(case.home(), 700);
    assert_eq!((handle.progress().done, handle.progress().total), (700, 700));
}

/// Whoever flushes while a merge syncs waits for the merge's round, and for the next one, which the
/// merge leads too: it does not leave before that has ended.
#[test]
fn a_merge_ends_what_it_leads_for_others() {
    let case = case(700);
    let executor = Plain { asks: Some(case.store.clone()), ..case.executor() };
    let (end, ended) = channel();
    let on_end = move |how| end.send(how).unwrap();
    let (workers, pacing) = (case.workers.clone(), Pacing::default());
    let handle = MergeHandle::start(workers, executor, case.config(), pacing, on_end).unwrap();
    handle.go(case.table(true));
    assert!(matches!(ended.recv().unwrap(), MergeEnd::Finished));
    assert!(!case.store.log().is_committing(), "a flush would wait for ever");
    assert_eq!(case.home(), 700);
}

#[test]
fn a_merge_is_paused_slowed_and_cancelled() {
    let case = case(700);
    case.gate.set_closed(true);
    let (handle, ended) = case.merge();
    handle.pause();
    case.gate.set_closed(false);
    while handle.progress().state != MergeState::Paused {
        std::thread::yield_now();
    }
    let left = case.store.entries();
    assert!(left > 0 && ended.try_recv().is_err());
    // So slow that only the first batch is copied.
    handle.set_speed(Some(20));
    handle.resume();
    while handle.progress().state != MergeState::Running {
        std::thread::yield_now();
    }
    handle.cancel();
    assert!(matches!(ended.recv().unwrap(), MergeEnd::Cancelled));
    assert!(case.store.entries() + 256 >= left);
    assert_eq!(case.home(), 700 - case.store.entries());
}

#[test]
fn a_merge_that_cannot_start_says_why() {
    let case = case(700);
    assert!(case.store.begin_invalidate());
    let _ = case.store.invalidated(true);
    let (handle, ended) = case.merge();
    let end = ended.recv().unwrap();
    assert!(matches!(end, MergeEnd::Failed(MergeFailure::Invalid)), "{end}");
    assert_eq!(handle.progress().state, MergeState::Failed(MergeFailure::Invalid));
}
