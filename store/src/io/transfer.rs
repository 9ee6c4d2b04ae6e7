//! One action in progress: which system call is next, and what its result means.
//!
//! Owns the continuation after a short read or write, the detour through a bounce buffer, the
//! reservation of space that a write needs first ([`Ahead`](super::Ahead)), and the ways of
//! zeroing a range, from the cheapest to plain writes. Performs no system call itself, so that
//! plain calls and io_uring cannot differ in this. Keeps I10: a transfer ends `Ok` only when
//! every byte of its range is done; the end of a file is `EIO`, never zeroes.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::buffer::{BOUNCE, Bounce, IoVecs, Memory, ZEROES};
use super::{Action, Errno, FileInfo, IoOp};

/// The most zeroes that one system call writes, in bytes.
const FILL: u64 = 16 * ZEROES as u64;

/// A file that a worker does I/O on: its properties, in the worker's own memory.
#[derive(Debug)]
pub(crate) struct WorkerFile {
    pub(crate) info: Arc<FileInfo>,
    /// Its place in the ring's table of files.
    pub(crate) fixed: Option<u32>,
    /// Its length in bytes when last checked.
    pub(crate) len: u64,
    /// How far down in [`ways`] this file had to go, for each of the three operations.
    tried: [u8; 3],
}

impl WorkerFile {
    pub(crate) fn new(info: Arc<FileInfo>, fixed: Option<u32>) -> WorkerFile {
        let len = info.len;
        WorkerFile { info, fixed, len, tried: [0; 3] }
    }

    /// Whether the range ends within the file; checks the length again before it returns false.
    fn reaches(&mut self, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len) else { return false };
        if end > self.len {
            self.len = self.info.current_len().unwrap_or(self.len);
        }
        end <= self.len
    }

    /// The part that must have space before bytes up to `end` are written, and is not known to
    /// have it: rarely anything.
    #[inline]
    fn lacks_room(&mut self, end: u64) -> Option<Range<u64>> {
        if self.info.ahead.allows(end) { None } else { self.late_part(end) }
    }

    #[cold]
    fn late_part(&mut self, end: u64) -> Option<Range<u64>> {
        let part = self.info.ahead.lacks(end)?;
        if self.reaches(part.start, part.end - part.start) {
            return Some(part);
        }
        self.info.ahead.ends(self.len, &part);
        None
    }

    /// The descriptor for a transfer.
    pub(crate) fn fd(&self, through: Through) -> BorrowedFd<'_> {
        match (through, &self.info.buffered) {
            (Through::Cache, Some(file)) => file.as_fd(),
            _ => self.info.file.as_fd(),
        }
    }
}

/// Which descriptor of a file a transfer goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    /// The file's own.
    Main,
    /// The page cache, for a range that direct I/O cannot serve: there the kernel keeps
    /// neighbouring sectors of one block safe from each other, across all workers.
    Cache,
}

/// A way to zero or discard a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `fallocate` with this mode.
    Allocate(i32),
    /// Write zeroes.
    Fill,
    /// Leave it: the content may be anything.
    Leave,
}

const ZERO_RANGE: Way = Way::Allocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE);
const PUNCH_HOLE: Way = Way::Allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
/// FALLOC_FL_NO_HIDE_STALE of linux/falloc.h.
const NO_HIDE_STALE: i32 = 0x04;
/// On a block device, the discard command itself, as long as the kernel has it.
const DISCARD: Way =
    Way::Allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE | NO_HIDE_STALE);

fn ways(op: IoOp) -> (usize, &'static [Way]) {
    match op {
        IoOp::Zero => (0, &[ZERO_RANGE, PUNCH_HOLE, Way::Fill]),
        IoOp::Punch => (1, &[PUNCH_HOLE, ZERO_RANGE, Way::Fill]),
        _ => (2, &[DISCARD, PUNCH_HOLE, Way::Leave]),
    }
}

/// The next system call of a transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    /// Read into these pieces from this byte.
    Read(&'a IoVecs, u64),
    /// Write these pieces to this byte.
    Write(&'a IoVecs, u64),
    /// `fallocate`.
    Allocate {
        /// Its flags.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// `fdatasync`.
    Sync,
}

/// The meaning of a system call's result for its transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is a next step.
    Again,
    /// It is over.
    Done(Result<(), Errno>),
}

#[derive(Debug, Default)]
enum Shape {
    /// Straight to the pieces.
    #[default]
    Direct,
    /// Through a bounce buffer, this many bytes in the present step.
    Bounced(Option<Bounce>, usize),
    /// Zeroing or discarding, by the n-th of its ways.
    Ways(u8),
    /// A flush.
    Sync,
}

/// One action in progress. Made once and reused, so that its lists keep their capacity.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) action: Action,
    pub(crate) through: Through,
    done: u64,
    shape: Shape,
    /// The part that must have space before it proceeds, and is reserved in the present step.
    room: Option<Range<u64>>,
    /// The action's own pieces.
    pub(crate) pieces: IoVecs,
    /// The substitute for them in the present step: a bounce buffer, or zeroes.
    stand_in: IoVecs,
    /// The copy of metadata that is among the pieces.
    meta: Option<Bounce>,
}

impl Transfer {
    /// With room for this many pieces.
    pub(crate) fn new(action: Action, pieces: usize) -> Transfer {
        Transfer {
            action,
            through: Through::Main,
            done: 0,
            shape: Shape::Direct,
            room: None,
            pieces: IoVecs::with_room(pieces),
            stand_in: IoVecs::with_room(FILL.div_ceil(ZEROES as u64) as usize),
            meta: None,
        }
    }

    /// Pieces that it has room for.
    pub(crate) fn room(&self) -> usize {
        self.pieces.room()
    }

    /// Makes room for this many pieces; nothing of it may be in flight.
    pub(crate) fn reserve(&mut self, pieces: usize) {
        self.pieces.reserve(pieces);
    }

    /// Accepts `action`; push its pieces next, and then call [`Transfer::start`].
    pub(crate) fn reset(&mut self, action: Action) {
        self.action = action;
        self.through = Through::Main;
        self.done = 0;
        self.shape = Shape::Direct;
        self.room = None;
        self.pieces.clear();
        self.stand_in.clear();
    }

    /// Appends a copy of `bytes` to the pieces; false if there is no memory for it.
    pub(crate) fn push_meta(&mut self, memory: &mut Memory, bytes: &[u8]) -> bool {
        let Ok(bounce) = memory.bounce() else { return false };
        let fits = self.pieces.push_copy(&bounce, bytes);
        self.meta = Some(bounce);
        fits
    }

    /// Gives the copy of metadata back, once nothing reads it any more.
    pub(crate) fn drop_meta(&mut self, memory: &mut Memory) {
        if let Some(bounce) = self.meta.take() {
            memory.give_back(bounce);
        }
    }

    /// Chooses how it will be done.
    pub(crate) fn start(&mut self, file: &mut WorkerFile, memory: &mut Memory) -> Outcome {
        let Action { op, offset, len, .. } = self.action;
        let align = u64::from(file.info.align);
        if op == IoOp::Sync {
            self.shape = Shape::Sync;
            return Outcome::Again;
        }
        if len == 0 {
            return Outcome::Done(Ok(()));
        }
        if !file.reaches(offset, len) {
            return Outcome::Done(Err(if op == IoOp::Read { Errno::EIO } else { Errno::ENOSPC }));
        }
        // A power of two: no division.
        if (offset | len) & (align - 1) != 0 {
            self.through = Through::Cache;
        }
        match op {
            IoOp::Read | IoOp::Write => {
                if self.pieces.total() != len {
                    return Outcome::Done(Err(Errno(libc::EFAULT)));
                }
                if self.through == Through::Main && !self.pieces.aligned(file.info.align) {
                    match memory.bounce() {
                        Ok(bounce) => self.shape = Shape::Bounced(Some(bounce), 0),
                        Err(error) => return Outcome::Done(Err(errno(&error))),
                    }
                }
            }
            _ => {
                let (which, _) = ways(op);
                self.shape = Shape::Ways(file.tried[which]);
                if let Some(Way::Leave) = self.way() {
                    return Outcome::Done(Ok(()));
                }
            }
        }
        if op == IoOp::Write {
            self.room = file.lacks_room(offset + len);
        }
        self.prepare(memory);
        Outcome::Again
    }

    fn way(&self) -> Option<Way> {
        match self.shape {
            Shape::Ways(at) => ways(self.action.op).1.get(at as usize).copied(),
            _ => None,
        }
    }

    /// Prepares the substitute for the pieces in the next step.
    fn prepare(&mut self, memory: &Memory) {
        let rest = self.action.len - self.done;
        let fill = self.way() == Some(Way::Fill);
        match &mut self.shape {
            Shape::Bounced(Some(bounce), count) => {
                *count = rest.min(BOUNCE as u64) as usize;
                self.stand_in.clear();
                self.stand_in.push_bounce(bounce, *count);
                if self.action.op == IoOp::Write {
                    self.pieces.gather(bounce, *count);
                }
            }
            Shape::Ways(_) if fill => {
                self.stand_in.clear();
                self.stand_in.push_zeroes(memory, rest.min(FILL) as usize);
            }
            _ => {}
        }
    }

    /// The system call that is next.
    pub(crate) fn step(&self) -> Step<'_> {
        let Action { op, offset, len, .. } = self.action;
        let at = offset + self.done;
        if let Some(room) = &self.room {
            let (mode, offset, len) =
                (libc::FALLOC_FL_KEEP_SIZE, room.start, room.end - room.start);
            return Step::Allocate { mode, offset, len };
        }
        match (&self.shape, self.way()) {
            (Shape::Sync, _) => Step::Sync,
            (_, Some(Way::Allocate(mode))) => Step::Allocate { mode, offset, len },
            (_, Some(_)) => Step::Write(&self.stand_in, at),
            (Shape::Bounced(..), _) if op == IoOp::Read => Step::Read(&self.stand_in, at),
            (Shape::Bounced(..), _) => Step::Write(&self.stand_in, at),
            _ if op == IoOp::Read => Step::Read(&self.pieces, at),
            _ => Step::Write(&self.pieces, at),
        }
    }

    /// Takes the answer to a step: a count, or a negative error number (as io_uring gives it).
    pub(crate) fn answer(
        &mut self,
        result: i32,
        file: &mut WorkerFile,
        memory: &mut Memory,
    ) -> Outcome {
        let outcome = match result {
            _ if self.room.is_some() => self.made_room(result, file),
            0.. => self.went_on(result as u64, file, memory),
            _ if matches!(-result, libc::EINTR | libc::EAGAIN) => Outcome::Again,
            _ => self.failed(-result, file, memory),
        };
        if let (Outcome::Done(_), Shape::Bounced(bounce, _)) = (outcome, &mut self.shape)
            && let Some(bounce) = bounce.take()
        {
            memory.give_back(bounce);
        }
        outcome
    }

    /// The space that it needs first is there, or not; a file system that cannot reserve is
    /// assumed to have it.
    fn made_room(&mut self, result: i32, file: &mut WorkerFile) -> Outcome {
        match -result {
            libc::EINTR | libc::EAGAIN => return Outcome::Again,
            ..=0 | libc::EOPNOTSUPP | libc::ENOSYS => {}
            error => return Outcome::Done(Err(Errno(error))),
        }
        if let Some(part) = self.room.take() {
            file.info.ahead.has(&part);
        }
        self.room = file.lacks_room(self.action.offset + self.action.len);
        Outcome::Again
    }

    fn went_on(&mut self, count: u64, file: &WorkerFile, memory: &mut Memory) -> Outcome {
        match &self.shape {
            Shape::Sync if file.info.is_cut_short() => {
                return Outcome::Done(Err(Errno::EIO));
            }
            Shape::Sync => return Outcome::Done(Ok(())),
            Shape::Bounced(Some(bounce), _) if self.action.op == IoOp::Read => {
                self.pieces.scatter(bounce, count as usize);
            }
            _ => {}
        }
        if let Some(Way::Allocate(_)) = self.way() {
            return Outcome::Done(Ok(()));
        }
        // Direct I/O continues at a whole block; the part of a block that it did is repeated.
        let count = match self.through {
            Through::Main => count & !(u64::from(file.info.align) - 1),
            Through::Cache => count,
        };
        if count == 0 {
            return Outcome::Done(Err(Errno::EIO));
        }
        self.done += count;
        self.pieces.advance(count as usize);
        if self.done >= self.action.len {
            return Outcome::Done(Ok(()));
        }
        self.prepare(memory);
        Outcome::Again
    }

    /// Continues with the next way if this one is not supported.
    fn failed(&mut self, error: i32, file: &mut WorkerFile, memory: &Memory) -> Outcome {
        let way = self.way();
        let (Shape::Ways(at), Some(Way::Allocate(_))) = (&mut self.shape, way) else {
            return Outcome::Done(Err(Errno(error)));
        };
        // A block device says EINVAL to a range that is not whole blocks; the next may fit.
        let lacking = matches!(error, libc::EOPNOTSUPP | libc::ENOSYS);
        let misfit = error == libc::EINVAL && file.info.block_device;
        if !(lacking || misfit) {
            return Outcome::Done(Err(Errno(error)));
        }
        *at += 1;
        let (next, (which, _)) = (*at, ways(self.action.op));
        if lacking {
            file.tried[which] = file.tried[which].max(next);
        }
        if self.way() == Some(Way::Leave) {
            return Outcome::Done(Ok(()));
        }
        self.prepare(memory);
        Outcome::Again
    }
}

/// The positive error number of `error`.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}
