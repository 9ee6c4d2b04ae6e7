//! A commit of layers as a job: their content is written to the layers below, as a guest would
//! write it.
//!
//! Owns the thread, its pace, the choice of what to copy next, and the requests to the thread.
//! Never knows the target (a table, whose engine keeps the order of data and entries), nor the fate
//! of the layers. Reads only layers that are no longer written. When it reports that it has
//! finished, all its writes are durable.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use super::control::{Control, JobPart, JobThread, Pacing, Phase, Requests};
use super::pace::{Allowance, Pace, TICK};
use super::{CopyExecutor, FlushError, Host};
use crate::engine::EngineConfig;
use crate::exception::{Layer, Place};
use crate::io::{Errno, IoOp, SLICE};
use crate::request::{Op, Request, Status, Token};
use crate::table::Table;
use crate::target::Exceptions;
use crate::units::{Chunk, ChunkSize, SECTOR_SHIFT, Sector};
use crate::workers::{TooManyWorkers, Workers};

/// The chunks to be copied: those of the layers above a layer of a chain, with the content of the
/// highest.
#[derive(Debug)]
pub struct CommitSource {
    /// The highest layer's table, which does not change.
    pub exceptions: Exceptions,
    /// Chunks of this layer, and of those below it, are not copied; 0 if all are copied.
    pub above: Layer,
}

impl CommitSource {
    /// The first chunk from `from` on that is copied, and its place.
    fn next(&self, from: Chunk) -> Option<(Chunk, Place)> {
        let mut from = from;
        loop {
            let (chunk, place) = self.exceptions.table.next_mapped(from)?;
            if place.layer > self.above {
                return Some((chunk, place));
            }
            from = Chunk(chunk.0 + 1);
        }
    }

    /// Total bytes to be copied.
    fn total(&self) -> u64 {
        let mut total = 0;
        let mut from = Chunk(0);
        while let Some((chunk, _)) = self.next(from) {
            total += self.exceptions.own_len(chunk);
            from = Chunk(chunk.0 + 1);
        }
        total
    }

    /// The next range to be copied from byte `at` of the device on: up to the next gap, at most
    /// `room` bytes. Each of its parts is contiguous in a store. There are none only if nothing is
    /// left.
    fn pieces(&self, at: u64, room: NonZeroU64, pieces: &mut Vec<Piece>) -> Left {
        pieces.clear();
        let mut room = room.get();
        let size = self.exceptions.chunk();
        if at >= self.exceptions.len {
            return Left::Nothing;
        }
        let Some((first, _)) = self.next(size.chunk_of(at)) else { return Left::Nothing };
        let mut at = at.max(size.start_of(first));
        while let Some((chunk, place)) = self.next(size.chunk_of(at)) {
            if room == 0 || size.start_of(chunk) > at {
                break;
            }
            let within = size.offset_in(at);
            let len = room.min(self.exceptions.own_len(chunk) - within);
            match pieces.last_mut() {
                Some(last) if last.goes_on(size.bytes(), chunk, place) => last.len += len,
                _ => pieces.push(Piece { start: at, chunk, place, len }),
            }
            at += len;
            room -= len;
            if size.offset_in(at) != 0 || at >= self.exceptions.len {
                break;
            }
        }
        Left::More
    }
}

/// Whether a source has more to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It has: perhaps more than may be copied now.
    More,
    /// Everything was begun.
    Nothing,
}

/// Bytes that are contiguous in a store.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// First byte of the device.
    start: u64,
    /// The chunk it begins in, and its place.
    chunk: Chunk,
    place: Place,
    len: u64,
}

impl Piece {
    /// Whether `chunk` follows it, on the device and in the store.
    fn goes_on(&self, bytes: u64, chunk: Chunk, place: Place) -> bool {
        let more = chunk.0 - self.chunk.0;
        self.start + self.len == chunk.0 * bytes
            && self.place.layer == place.layer
            && self.place.chunk.0 + more == place.chunk.0
    }
}

/// How a commit ended.
#[derive(Debug)]
pub enum CommitEnd {
    /// Everything was written, and is durable.
    Finished,
    /// It was cancelled.
    Cancelled,
    /// A layer could not be read.
    Read(Errno),
    /// The base could not be written: the store is full, or its file cannot be written.
    Write,
    /// Written data could not be made durable.
    Flush,
    /// It did not begin: there are too many workers for another.
    TooManyWorkers(TooManyWorkers),
    /// Its I/O can no longer be waited for.
    Wait(io::Error),
}

impl CommitEnd {
    /// The failed operation, if it was I/O.
    pub fn io(&self) -> Option<IoOp> {
        match self {
            CommitEnd::Read(_) => Some(IoOp::Read),
            CommitEnd::Write => Some(IoOp::Write),
            CommitEnd::Flush => Some(IoOp::Sync),
            _ => None,
        }
    }
}

impl fmt::Display for CommitEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommitEnd::Finished => f.write_str("the commit is complete"),
            CommitEnd::Cancelled => f.write_str("the commit was cancelled"),
            CommitEnd::Read(errno) => {
                let error = io::Error::from_raw_os_error(errno.0);
                write!(f, "a layer cannot be read: {error}; the chain is as it was")
            }
            CommitEnd::Write => f.write_str(
                "the base cannot be written, or is full; the chain is as it was, make room and \
                 begin again",
            ),
            CommitEnd::Flush => {
                f.write_str("the base cannot be made durable; the chain is as it was")
            }
            CommitEnd::TooManyWorkers(error) => error.fmt(f),
            CommitEnd::Wait(error) => write!(f, "cannot wait for the commit's files: {error}"),
        }
    }
}

/// The progress of a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitProgress {
    /// Bytes that were written.
    pub done: u64,
    /// Total bytes.
    pub total: u64,
    /// It is paused, and nothing is in flight.
    pub paused: bool,
}

impl JobPart for CommitProgress {
    /// It keeps its table: it does not work on the device's own table.
    fn set_table(&mut self, _: Arc<Table>) {}
}

/// A running commit. The writes of this job are durable at its end.
pub type CommitHandle = JobThread<CommitProgress>;

impl fmt::Debug for CommitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitHandle").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl CommitHandle {
    /// A thread that writes the content of `source` to `table` from the first
    /// [`go`](AttachedWorker::go) on, initially with `pacing`, until its end, which `on_end` gets
    /// in that thread, after both were released. `config.scratch` is the executor's.
    ///
    /// # Errors
    /// Too many threads, or too many workers.
    pub fn start<E: CopyExecutor + 'static>(
        workers: Arc<Workers>,
        executor: E,
        config: EngineConfig,
        (source, table): (CommitSource, Arc<Table>),
        pacing: Pacing,
        on_end: impl FnOnce(CommitEnd) + Send + 'static,
    ) -> io::Result<CommitHandle> {
        let progress = CommitProgress::default();
        let control = Control::new(executor.waker(), pacing, Phase::Stopped, progress);
        let handle = JobThread(control.clone());
        let host = Host::new(&workers, executor, config)?;
        std::thread::Builder::new().name(String::from("commit")).spawn(move || {
            let end = Job::of(host, control.clone(), source).write_to(table);
            control.report(|shared| shared.phase = Phase::Ended);
            on_end(end);
        })?;
        Ok(handle)
    }

    /// Its progress.
    pub fn progress(&self) -> CommitProgress {
        let shared = self.0.lock();
        let stopped = shared.requests.paused && shared.phase == Phase::Stopped;
        CommitProgress { paused: shared.job.paused || stopped, ..shared.job }
    }
}

/// Writes the content of `source` to `table` on the calling thread, at full speed.
pub fn commit<E: CopyExecutor>(
    workers: Arc<Workers>,
    executor: E,
    config: EngineConfig,
    (source, table): (CommitSource, Arc<Table>),
) -> CommitEnd {
    let (pacing, progress) = (Pacing::default(), CommitProgress::default());
    let control = Control::new(executor.waker(), pacing, Phase::Running, progress);
    match Host::new(&workers, executor, config) {
        Ok(host) => Job::of(host, control, source).write_to(table),
        Err(error) => CommitEnd::TooManyWorkers(error),
    }
}

/// Bytes for the next copy: whole chunks if they fit, so that none is written twice; none while the
/// speed allows none.
fn room(allowed: Option<u64>, size: ChunkSize) -> Option<NonZeroU64> {
    let slice = SLICE as u64;
    let bytes = allowed.map_or(slice, |bytes| bytes.min(slice));
    // Rounded after it was limited, since a speed can be any number; a chunk may be larger.
    NonZeroU64::new(bytes.next_multiple_of(size.bytes()).min(slice))
}

struct Job<E> {
    host: Host<E>,
    control: Arc<Control<CommitProgress>>,
    source: CommitSource,
    /// Everything before this byte of the device was begun.
    at: u64,
    /// Copies that are not in flight.
    free: Vec<Token>,
    flying: usize,
    /// Bytes that may be begun, if the speed is limited.
    allowed: Option<u64>,
    pace: Pace,
    pieces: Vec<Piece>,
}

impl<E: CopyExecutor> Job<E> {
    fn of(host: Host<E>, control: Arc<Control<CommitProgress>>, source: CommitSource) -> Job<E> {
        let free = (0..host.executor.copies() as u32).rev().map(Token).collect();
        let (pace, pieces) = (Pace::new(), Vec::new());
        Job { host, control, source, at: 0, free, flying: 0, allowed: None, pace, pieces }
    }

    /// Writes all of it to `table`, and releases the table.
    fn write_to(mut self, table: Arc<Table>) -> CommitEnd {
        self.host.bind(Some(table));
        let end = self.run();
        if !matches!(end, CommitEnd::Wait(_)) {
            self.host.bind(None);
        }
        end
    }

    fn run(&mut self) -> CommitEnd {
        self.control.lock().job.total = self.source.total();
        self.control.wait_to_run();
        let mut failed = None;
        loop {
            let requests = self.obey();
            let hold = requests.stop || requests.cancel || requests.paused || failed.is_some();
            let mut all_begun = false;
            if !hold {
                match self.begin() {
                    Ok(left) => all_begun = left == Left::Nothing,
                    Err(errno) => failed = Some(CommitEnd::Read(errno)),
                }
            }
            self.host.go_on();
            if !self.collect() {
                failed.get_or_insert(CommitEnd::Write);
            }
            if self.flying == 0 {
                if let Some(failure) = failed.take() {
                    return self.settle(failure);
                }
                if requests.cancel {
                    return self.settle(CommitEnd::Cancelled);
                }
                if all_begun {
                    return self.settle(CommitEnd::Finished);
                }
                if requests.stop {
                    if let Err(error) = self.rest() {
                        return CommitEnd::Wait(error);
                    }
                    continue;
                }
                self.control.lock().job.paused = requests.paused;
            }
            if !hold && !all_begun && !self.free.is_empty() && self.allowed != Some(0) {
                // Copies ended after the last choice of the next.
                continue;
            }
            let limited = self.allowed.is_some();
            if let Err(error) = self.host.wait(limited.then_some(TICK)) {
                return CommitEnd::Wait(error);
            }
        }
    }

    /// Takes up new requests to the job.
    fn obey(&mut self) -> Requests {
        let mut shared = self.control.lock();
        let requests = shared.requests;
        match self.pace.due(requests.speed, Instant::now()) {
            Allowance::Unchanged => {}
            Allowance::Unlimited => self.allowed = None,
            Allowance::Bytes(bytes) => self.allowed = Some(bytes),
        }
        shared.job.paused &= requests.paused;
        requests
    }

    /// Begins as many copies as room and speed allow.
    fn begin(&mut self) -> Result<Left, Errno> {
        let size = self.source.exceptions.chunk();
        while let (Some(&token), Some(room)) = (self.free.last(), room(self.allowed, size)) {
            let mut pieces = std::mem::take(&mut self.pieces);
            let left = self.source.pieces(self.at, room, &mut pieces);
            let copied = match left {
                Left::More => self.copy(token, &pieces),
                Left::Nothing => Ok(()),
            };
            self.pieces = pieces;
            copied?;
            if left == Left::Nothing {
                return Ok(Left::Nothing);
            }
        }
        Ok(Left::More)
    }

    /// Reads `pieces`, of which there are some, and which are adjacent, and begins to write them as
    /// the copy `token`.
    fn copy(&mut self, token: Token, pieces: &[Piece]) -> Result<(), Errno> {
        let size = self.source.exceptions.chunk();
        let mut len = 0;
        for piece in pieces {
            let within = size.offset_in(piece.start);
            let (file, offset) = self.source.exceptions.file_offset(piece.place, within);
            self.host.executor.fetch(token, len as usize, file, offset, piece.len as usize)?;
            len += piece.len;
        }
        self.free.pop();
        self.flying += 1;
        self.at = pieces[0].start + len;
        if let Some(allowed) = &mut self.allowed {
            *allowed = allowed.saturating_sub(len);
        }
        let sector = Sector(pieces[0].start >> SECTOR_SHIFT);
        self.host.engine.submit(Request { token, op: Op::Write, sector, len, durable: false });
        self.control.lock().job.done += len;
        Ok(())
    }

    /// Takes back the copies that ended; false if one failed.
    fn collect(&mut self) -> bool {
        let mut ok = true;
        while let Some((token, status)) = self.host.engine.pop_finished() {
            self.free.push(token);
            self.flying -= 1;
            ok &= status == Status::Ok;
        }
        ok
    }

    /// Makes all writes durable, even of an incomplete commit: owed chunks must not outlive this
    /// engine.
    fn settle(&mut self, end: CommitEnd) -> CommitEnd {
        match (self.host.flush(), end) {
            (Err(FlushError::Wait(error)), _) => CommitEnd::Wait(error),
            (Err(FlushError::Failed), CommitEnd::Finished) => CommitEnd::Flush,
            (_, end) => end,
        }
    }

    /// Reports that it stopped, as soon as nothing is in flight, and waits until it may continue.
    fn rest(&mut self) -> io::Result<()> {
        self.host.engine.set_stopping(true);
        while !self.host.engine.is_quiet() {
            self.host.go_on();
            if !self.host.engine.is_quiet() {
                self.host.wait(None)?;
            }
        }
        self.control.report(|shared| {
            if shared.requests.stop {
                shared.phase = Phase::Stopped;
            }
        });
        self.control.wait_to_run();
        self.host.engine.set_stopping(false);
        Ok(())
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
