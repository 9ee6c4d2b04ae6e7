//! Test doubles for the parts behind a worker, and a driver in front of it.
//!
//! The engine here is linear: the device is one file. Its executor carries everything out at once
//! and can hold completions back. It shares no code with the real engine.

mod driver;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snapblk_store::io::{Action, Completion, Errno, FileId, IoOp, Seg, Tag};
use snapblk_store::request::{Op, Request, Status, Token};
use snapblk_store::units::Sector;

use crate::binding::{
    Binding, DeviceEngine, DeviceIo, DeviceTable, Direct, Failure, Geometry, GuestData, Wake,
};
use crate::memory::{gather, scatter};
use crate::worker::{ResumeWith, WorkerHandle, new_eventfd, signal};

pub(crate) use driver::{Driver, MEMORY_SIZE, SIZE, USER_BASE, shared_memory};

/// How long a test waits for an expected event.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The latency of a fast disk.
const SHORTLY: Duration = Duration::from_micros(20);

/// A step of a worker during a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TestStep {
    /// The engine prefetches for a request at this byte.
    Ahead(u64),
    /// The engine is asked for the place of this byte.
    Now(u64),
    /// That many actions are submitted to the system, by the call that waits for them or by
    /// another.
    Submitted { count: usize, waits: bool },
}

/// A disk in memory, and the tests' controls of it.
pub(crate) struct TestDisk {
    pub file: File,
    /// Sectors; see [`TestDisk::resize`].
    size: AtomicU64,
    /// Completions are held back.
    held: AtomicBool,
    /// Writes find no room.
    full: AtomicBool,
    /// The guest's setting: the write cache is off.
    pub write_through: AtomicBool,
    /// Everything fails.
    pub fails: AtomicBool,
    /// All operations that were carried out.
    pub done: Mutex<Vec<IoOp>>,
    /// The workers' steps, in order.
    pub steps: Mutex<Vec<TestStep>>,
    /// How often any worker slept.
    pub sleeps: AtomicUsize,
    /// Actions end [`SHORTLY`] after a system call submitted them.
    pub takes_time: AtomicBool,
    /// How often any worker slept with I/O in flight.
    pub sleeps_over_io: AtomicUsize,
    /// Completions are posted as they come.
    pub posts_at_once: AtomicBool,
    /// An action without a request is always in flight.
    pub always_busy: AtomicBool,
    /// Actions end at once, but it does not count as memory.
    pub is_slow: AtomicBool,
    /// A driver's call descriptor, and how often the driver was interrupted before a sync.
    pub watched: Mutex<Option<(OwnedFd, u64)>>,
    /// Reads and writes need the engine.
    pub indirect: AtomicBool,
    /// The engine works by itself, without end, until it is told to stop.
    pub merges: AtomicBool,
    /// How often the engine was told to commit.
    pub commits: AtomicUsize,
    /// Held by who wants a worker to wait before it watches another descriptor.
    pub watching: Mutex<()>,
    /// No further descriptor can be watched.
    pub watches_no_more: AtomicBool,
    events: Mutex<Vec<OwnedFd>>,
}

impl TestDisk {
    pub(crate) fn new(sectors: u64) -> Arc<TestDisk> {
        let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, sectors * 512).unwrap();
        Arc::new(TestDisk {
            file: file.into(),
            size: AtomicU64::new(sectors),
            held: AtomicBool::default(),
            full: AtomicBool::default(),
            write_through: AtomicBool::default(),
            fails: AtomicBool::default(),
            done: Mutex::default(),
            steps: Mutex::default(),
            sleeps: AtomicUsize::default(),
            takes_time: AtomicBool::default(),
            sleeps_over_io: AtomicUsize::default(),
            posts_at_once: AtomicBool::default(),
            always_busy: AtomicBool::default(),
            is_slow: AtomicBool::default(),
            watched: Mutex::default(),
            indirect: AtomicBool::default(),
            merges: AtomicBool::default(),
            commits: AtomicUsize::default(),
            watching: Mutex::default(),
            watches_no_more: AtomicBool::default(),
            events: Mutex::default(),
        })
    }

    pub(crate) fn size(&self) -> Sector {
        Sector(self.size.load(Ordering::SeqCst))
    }

    /// Changes the size without a notification.
    pub(crate) fn resize(&self, sectors: u64) {
        rustix::fs::ftruncate(&self.file, sectors * 512).unwrap();
        self.size.store(sectors, Ordering::SeqCst);
    }

    pub(crate) fn hold(&self, on: bool) {
        self.held.store(on, Ordering::SeqCst);
        self.wake_all();
    }

    pub(crate) fn fill(&self, on: bool) {
        self.full.store(on, Ordering::SeqCst);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.events.lock().unwrap().iter().for_each(signal);
    }

    pub(crate) fn bytes(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    pub(crate) fn count(&self, op: IoOp) -> usize {
        self.done.lock().unwrap().iter().filter(|done| **done == op).count()
    }

    /// Waits until `op` was carried out `times` times.
    pub(crate) fn await_count(&self, op: IoOp, times: usize) {
        eventually(&format!("{times} times {op:?}"), || self.count(op) >= times);
    }

    fn carry_out(&self, action: &Action, pieces: &[libc::iovec]) -> Result<(), Errno> {
        let outcome = if self.fails.load(Ordering::SeqCst) {
            Err(Errno::EIO)
        } else {
            match action.op {
                IoOp::Read => {
                    let mut bytes = vec![0; action.len as usize];
                    self.file.read_exact_at(&mut bytes, action.offset).unwrap();
                    scatter(pieces, &bytes);
                }
                IoOp::Write => self.file.write_all_at(&gather(pieces), action.offset).unwrap(),
                IoOp::Zero | IoOp::Punch | IoOp::Discard => {
                    let zeroes = vec![0; action.len as usize];
                    self.file.write_all_at(&zeroes, action.offset).unwrap();
                }
                IoOp::Sync => {
                    if let Some((call, count)) = &mut *self.watched.lock().unwrap() {
                        *count += take_calls(call);
                    }
                }
                IoOp::Clear => {}
            }
            Ok(())
        };
        self.done.lock().unwrap().push(action.op);
        outcome
    }
}

/// How often a driver was interrupted since the last call.
pub(crate) fn take_calls(call: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(call, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

/// Waits for an effect of another thread that has no event.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "still not so: {what}");
        std::thread::yield_now();
    }
}

pub(crate) struct TestTable {
    pub disk: Arc<TestDisk>,
    pub read_only: bool,
}

impl DeviceTable for TestTable {
    fn size(&self) -> Sector {
        self.disk.size()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }
}

/// A request in flight in the engine; if it is write-through, whether its data is written.
struct Pending {
    request: Request,
    written: bool,
}

pub(crate) struct TestEngine {
    disk: Arc<TestDisk>,
    table: Option<Arc<TestTable>>,
    in_flight: HashMap<u64, Pending>,
    next_tag: u64,
    held: VecDeque<Request>,
    stopping: bool,
    actions: VecDeque<(Action, Seg)>,
    seg: [Seg; 1],
    finished: VecDeque<(Token, Status)>,
}

impl TestEngine {
    fn issue(&mut self, request: Request, written: bool) {
        let op = match request.op {
            _ if written => IoOp::Sync,
            Op::Read => IoOp::Read,
            Op::Write => IoOp::Write,
            Op::Flush => IoOp::Sync,
            Op::Discard => IoOp::Discard,
            Op::WriteZeroes { unmap: false } => IoOp::Zero,
            Op::WriteZeroes { unmap: true } => IoOp::Punch,
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        let action = Action {
            op,
            file: FileId(0),
            offset: request.sector.bytes(),
            len: request.len,
            segs: (0, u32::from(matches!(op, IoOp::Read | IoOp::Write))),
            tag: Tag(tag),
        };
        let seg = Seg::Guest { token: request.token, offset: 0, len: request.len as u32 };
        self.in_flight.insert(tag, Pending { request, written });
        self.actions.push_back((action, seg));
    }
}

impl DeviceEngine for TestEngine {
    type Table = TestTable;

    fn bind(&mut self, table: Option<Arc<TestTable>>) {
        assert!(self.is_quiet(), "a table is bound while something is in flight");
        self.table = table;
    }

    fn prefetch(&self, offset: u64) {
        self.disk.steps.lock().unwrap().push(TestStep::Ahead(offset));
    }

    fn direct(&self, _op: Op, offset: u64, _len: u64) -> Option<Direct> {
        self.disk.steps.lock().unwrap().push(TestStep::Now(offset));
        let direct = !self.disk.indirect.load(Ordering::SeqCst);
        direct.then_some(Direct { file: FileId(0), offset })
    }

    fn submit(&mut self, request: Request) {
        let table = self.table.as_ref().expect("a request without a table");
        assert!(request.sector.bytes() + request.len <= table.size().bytes());
        self.held.push_back(request);
    }

    fn make_durable(&mut self) {
        let in_flight = self.in_flight.values_mut().map(|pending| &mut pending.request);
        let changes = |request: &&mut Request| request.op != Op::Read;
        in_flight.chain(&mut self.held).filter(changes).for_each(|it| it.durable = true);
    }

    fn complete(&mut self, Completion { tag, result }: Completion) {
        let Pending { request, written } = self.in_flight.remove(&tag.0).unwrap();
        match result {
            Err(_) => self.finished.push_back((request.token, Status::Error)),
            Ok(()) if request.durable && !written => self.issue(request, true),
            Ok(()) => self.finished.push_back((request.token, Status::Ok)),
        }
    }

    fn step(&mut self) {
        let full = self.disk.full.load(Ordering::SeqCst);
        for request in std::mem::take(&mut self.held) {
            if full && request.op != Op::Read && request.op != Op::Flush {
                self.held.push_back(request);
            } else {
                self.issue(request, false);
            }
        }
    }

    fn pop_action(&mut self) -> Option<Action> {
        let (action, seg) = self.actions.pop_front()?;
        self.seg = [seg];
        Some(action)
    }

    fn segs(&self, action: &Action) -> &[Seg] {
        &self.seg[..action.segs.1 as usize]
    }

    fn meta_of(&self, _: &Action) -> &[u8] {
        &[]
    }

    fn pop_finished(&mut self) -> Option<(Token, Status)> {
        self.finished.pop_front()
    }

    fn is_quiet(&self) -> bool {
        let may_merge = self.table.is_some() && !self.stopping;
        let merging = may_merge && self.disk.merges.load(Ordering::SeqCst);
        self.in_flight.is_empty() && self.finished.is_empty() && !merging
    }

    fn fail_held(&mut self) {
        assert!(self.is_quiet());
        let failed = self.held.drain(..).map(|request| (request.token, Status::Error));
        self.finished.extend(failed);
    }

    fn fail_held_for_room(&mut self) {
        self.fail_held();
    }

    fn commit(&mut self) {
        self.disk.commits.fetch_add(1, Ordering::SeqCst);
    }

    fn set_stopping(&mut self, stopping: bool) {
        assert_ne!(self.stopping, stopping, "told twice");
        self.stopping = stopping;
    }

    fn may_sleep(&mut self) -> bool {
        self.held.is_empty() || self.disk.full.load(Ordering::SeqCst)
    }

    fn woke(&mut self) {}

    fn files(&self) -> &[FileId] {
        &[FileId(0)]
    }
}

pub(crate) struct TestIo {
    disk: Arc<TestDisk>,
    event: OwnedFd,
    watches: Vec<(u64, OwnedFd)>,
    fired: VecDeque<u64>,
    done: VecDeque<Completion>,
    /// Not submitted yet.
    queued: VecDeque<Completion>,
    /// Ends at that time.
    flying: VecDeque<(Instant, Completion)>,
}

impl TestIo {
    fn takes_time(&self) -> bool {
        self.disk.takes_time.load(Ordering::SeqCst)
    }

    fn submit_queued(&mut self, waits: bool) {
        if !self.queued.is_empty() {
            let step = TestStep::Submitted { count: self.queued.len(), waits };
            self.disk.steps.lock().unwrap().push(step);
        }
        let at = Instant::now() + SHORTLY;
        self.flying.extend(self.queued.drain(..).map(|ended| (at, ended)));
    }

    fn has_landed(&self) -> bool {
        let held = self.disk.held.load(Ordering::SeqCst);
        !held && self.flying.front().is_some_and(|(at, _)| *at <= Instant::now())
    }
}

const TEST_KEY: u64 = u64::MAX;

impl DeviceIo for TestIo {
    fn adopt_files(&mut self, _files: &[FileId]) {}

    fn submit<G: GuestData>(&mut self, action: &Action, segs: &[Seg], _: &[u8], guest: &G) {
        let mut pieces = Vec::new();
        for seg in segs {
            if let Seg::Guest { token, offset, len } = *seg {
                guest.push_iovecs(token, offset, len, &mut pieces);
            }
        }
        let result = self.disk.carry_out(action, &pieces);
        let ended = Completion { tag: action.tag, result };
        if self.takes_time() { &mut self.queued } else { &mut self.done }.push_back(ended);
    }

    fn is_synchronous(&self) -> bool {
        !self.takes_time()
    }

    fn is_in_memory(&self) -> bool {
        !self.takes_time() && !self.disk.is_slow.load(Ordering::SeqCst)
    }

    fn enter(&mut self) -> io::Result<()> {
        self.submit_queued(false);
        Ok(())
    }

    fn completed(&mut self) -> Option<Completion> {
        if self.has_landed() {
            return self.flying.pop_front().map(|(_, ended)| ended);
        }
        if self.disk.held.load(Ordering::SeqCst) { None } else { self.done.pop_front() }
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, key: u64) -> io::Result<()> {
        drop(self.disk.watching.lock());
        if self.disk.watches_no_more.load(Ordering::SeqCst) {
            return Err(io::Error::from(rustix::io::Errno::MFILE));
        }
        self.watches.push((key, fd.try_clone_to_owned()?));
        Ok(())
    }

    fn is_watched(&self, key: u64) -> bool {
        self.watches.iter().any(|(watched, _)| *watched == key)
    }

    fn unwatch(&mut self, key: u64) {
        self.watches.retain(|(watched, _)| *watched != key);
        self.fired.retain(|fired| *fired != key);
    }

    fn fired(&mut self) -> Option<u64> {
        self.fired.pop_front()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if !self.done.is_empty() && !self.disk.held.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.submit_queued(true);
        if let Some((at, _)) = self.flying.front()
            && !self.disk.held.load(Ordering::SeqCst)
        {
            self.disk.sleeps_over_io.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            return Ok(());
        }
        self.disk.sleeps.fetch_add(1, Ordering::SeqCst);
        let own = (TEST_KEY, &self.event);
        let watched: Vec<_> =
            self.watches.iter().map(|(key, fd)| (*key, fd)).chain([own]).collect();
        let mut fds: Vec<_> =
            watched.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::IN)).collect();
        let timeout = timeout.map(|t| Timespec::try_from(t).unwrap());
        poll(&mut fds, timeout.as_ref())?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut fired = Vec::new();
        for ((key, fd), ready) in watched.iter().zip(ready) {
            if ready {
                let _ = rustix::io::read(fd, &mut [0; 8]);
                fired.push(*key);
            }
        }
        self.fired.extend(fired.into_iter().filter(|key| *key != TEST_KEY));
        Ok(())
    }

    fn has_answers(&mut self) -> bool {
        self.is_ready()
    }

    fn post_at_once(&mut self, on: bool) {
        assert!(!on || self.in_flight() == 0);
        self.disk.posts_at_once.store(on, Ordering::SeqCst);
    }

    fn posts_at_once(&self) -> bool {
        self.disk.posts_at_once.load(Ordering::SeqCst)
    }

    fn is_ready(&mut self) -> bool {
        !self.fired.is_empty()
            || self.has_landed()
            || (!self.done.is_empty() && !self.disk.held.load(Ordering::SeqCst))
    }

    fn in_flight(&self) -> usize {
        let merging = usize::from(self.disk.always_busy.load(Ordering::SeqCst));
        self.done.len() + self.queued.len() + self.flying.len() + merging
    }
}

/// A device with one table that is active from the start.
pub(crate) struct TestBinding {
    pub disk: Arc<TestDisk>,
    pub read_only: bool,
    pub workers: Mutex<Vec<WorkerHandle<TestTable>>>,
}

impl TestBinding {
    pub(crate) fn new(disk: &Arc<TestDisk>) -> Arc<TestBinding> {
        let workers = Mutex::default();
        Arc::new(TestBinding { disk: disk.clone(), read_only: false, workers })
    }

    pub(crate) fn table(&self) -> Arc<TestTable> {
        Arc::new(TestTable { disk: self.disk.clone(), read_only: self.read_only })
    }
}

impl Binding for TestBinding {
    type Engine = TestEngine;
    type Io = TestIo;

    fn engine(&self, wake: Box<dyn Wake>, _writable: bool) -> io::Result<TestEngine> {
        // The disk wakes its executors by their own eventfd.
        drop(wake);
        Ok(TestEngine {
            disk: self.disk.clone(),
            table: None,
            in_flight: HashMap::new(),
            next_tag: 0,
            held: VecDeque::new(),
            stopping: false,
            actions: VecDeque::new(),
            seg: [Seg::Zero { len: 0 }],
            finished: VecDeque::new(),
        })
    }

    fn io(&self) -> io::Result<TestIo> {
        let event = new_eventfd()?;
        self.disk.events.lock().unwrap().push(event.try_clone()?);
        Ok(TestIo {
            disk: self.disk.clone(),
            event,
            watches: Vec::new(),
            fired: VecDeque::new(),
            queued: VecDeque::new(),
            flying: VecDeque::new(),
            done: VecDeque::new(),
        })
    }

    fn request_failed(&self, _: Failure) {}

    fn geometry(&self) -> Geometry {
        Geometry { size: self.disk.size(), read_only: self.read_only }
    }

    fn is_write_through(&self, _export: &str) -> bool {
        self.disk.write_through.load(Ordering::SeqCst)
    }

    fn set_write_through(&self, _export: &str, on: bool) {
        self.disk.write_through.store(on, Ordering::SeqCst);
    }

    fn attach(&self, _export: &str, workers: Vec<WorkerHandle<TestTable>>) {
        for worker in &workers {
            let resumed = worker.resume(ResumeWith::Table(Some(self.table())));
            resumed.wait(PATIENCE).unwrap().unwrap();
        }
        *self.workers.lock().unwrap() = workers;
    }

    fn detach(&self, _export: &str) {
        self.workers.lock().unwrap().clear();
    }
}
