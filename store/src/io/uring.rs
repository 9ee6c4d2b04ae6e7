//! The io_uring of one worker: it takes steps of transfers and returns results, and the same call
//! waits for eventfds.
//!
//! Owns the ring and its table of files. Never knows what a transfer is for. Keeps: memory given
//! to the kernel does not move until the kernel's result has been taken; a removed watch never
//! fires.
//!
//! A watch is one persistent poll that reports each signal (`IORING_POLL_ADD_MULTI`), so that a
//! sleep that a signal ends has no entry to prepare and no counter to read. The counter grows
//! meanwhile: it is consumed when the watch is removed, so that a later reader does not take old
//! signals for new ones.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::transfer::Step;
use super::watch::Watched;

/// How many files a worker's ring keeps registered; more go by their descriptors.
const FILES: u32 = 256;

/// The kind of an entry, in the top byte of its user data.
const KIND: u32 = 56;
const TRANSFER: u64 = 0;
const WATCH: u64 = 1;
const CANCEL: u64 = 2;
const RESERVE: u64 = 3;

/// When the kernel posts its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Posting {
    /// By a call of this thread, which costs least if the thread waits for them by a call.
    Deferred,
    /// As they come, at the cost of an interrupt of this thread: for a thread that polls.
    AtOnce,
}

/// The file of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Handle<'a> {
    /// A place in the table of registered files.
    Fixed(u32),
    /// A descriptor.
    Fd(BorrowedFd<'a>),
}

/// An event of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A step of the transfer in this slot was answered: a count, or a negative error number.
    Answer(u32, i32),
    /// The descriptor watched under this key was signalled.
    Fired(u64),
    /// The reservation of this number succeeded, or failed.
    Reserved(u32, bool),
}

#[derive(Debug)]
struct Watch {
    /// None: removed, and only kept until the kernel's answer has come.
    key: Option<u64>,
    watched: Watched,
    /// Whether the kernel has the poll, so that its last answer is still to come.
    armed: bool,
}

impl Watch {
    /// Whether an answer that it can be read is a signal. What ends a poll that was to stay may be
    /// that the descriptor cannot be waited for, and can always be read.
    fn is_signalled(&self) -> bool {
        if self.armed { self.watched.is_signalled() } else { self.watched.take() }
    }
}

/// A ring, used from one thread at a time; from the first use on, from that thread only.
pub(crate) struct Ring {
    ring: IoUring,
    enabled: bool,
    /// Free places in the table of files; empty if the kernel has no such table.
    places: Vec<u32>,
    watches: Vec<Option<Watch>>,
    /// Answers that are still to come for transfers.
    pub(crate) in_flight: usize,
    pub(crate) posting: Posting,
}

impl Ring {
    /// A ring for `entries` steps at a time; completions are posted as `posting` requests if the
    /// kernel supports that, otherwise at once.
    ///
    /// # Errors
    /// The system's error; `Unsupported` if its io_uring is too old (before Linux 5.17).
    pub(crate) fn new(entries: u32, posting: Posting) -> io::Result<Ring> {
        let (ring, posting) = build(entries, posting)?;
        let has = ring.params();
        if !(has.is_feature_ext_arg()
            && has.is_feature_nodrop()
            && has.is_feature_skip_cqe_on_success())
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (places, watches) = (Vec::new(), Vec::new());
        Ok(Ring { ring, enabled: false, places, watches, in_flight: 0, posting })
    }

    /// Becomes another ring, with the same watches and no registered file; stays this one if the
    /// kernel supports no other way. Nothing may be in flight; reservations that have ended
    /// meanwhile go to `reserved`, and a dropped ring reports no others.
    ///
    /// # Errors
    /// The system's error; the ring is unchanged then, with its watches.
    pub(crate) fn replace(
        &mut self,
        posting: Posting,
        mut ended: impl FnMut(u32, bool),
    ) -> io::Result<()> {
        debug_assert_eq!(self.in_flight, 0);
        let mut new = Ring::new(self.ring.params().sq_entries(), posting)?;
        if new.posting == self.posting {
            return Ok(());
        }
        let watched: Vec<(OwnedFd, u64)> = self
            .watches
            .iter()
            .flatten()
            .filter_map(|watch| Some((watch.watched.as_fd().try_clone_to_owned(), watch.key?)))
            .map(|(fd, key)| Ok((fd?, key)))
            .collect::<io::Result<_>>()?;
        let settled = self.settle(|event| {
            if let Event::Reserved(number, reserved) = event {
                ended(number, reserved);
            }
        });
        let ring = if settled { &mut new } else { &mut *self };
        for (fd, key) in watched {
            ring.watch(fd, key);
        }
        if !settled {
            return Err(io::Error::other("its watches cannot be cancelled"));
        }
        *self = new;
        Ok(())
    }

    /// Binds the ring to this thread; it cannot be done earlier, as a worker's executor is made
    /// by another.
    fn enable(&mut self) -> io::Result<()> {
        if self.enabled {
            return Ok(());
        }
        self.ring.submitter().register_enable_rings()?;
        self.enabled = true;
        if self.ring.submitter().register_files_sparse(FILES).is_ok() {
            self.places = (0..FILES).rev().collect();
        }
        Ok(())
    }

    /// Registers a file; none if the table is full or does not exist.
    pub(crate) fn register(&mut self, fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
        self.enable()?;
        let Some(place) = self.places.pop() else { return Ok(None) };
        match self.ring.submitter().register_files_update(place, &[fd.as_raw_fd()]) {
            Ok(_) => Ok(Some(place)),
            Err(_) => {
                self.places.push(place);
                Ok(None)
            }
        }
    }

    /// Releases a registered file.
    pub(crate) fn unregister(&mut self, place: u32) {
        if self.ring.submitter().register_files_update(place, &[-1]).is_ok() {
            self.places.push(place);
        }
    }

    /// Queues a step for the transfer in `slot`; false if the queue is full.
    ///
    /// The pieces that `step` names, and the list of them, stay as they are until the answer.
    pub(crate) fn push(&mut self, slot: u32, step: Step<'_>, file: Handle<'_>) -> bool {
        // More answers than there is room for would have to be fetched again and again.
        if self.in_flight >= self.ring.params().cq_entries() as usize / 2 {
            return false;
        }
        let entry = entry_for(step, file).user_data(TRANSFER << KIND | u64::from(slot));
        let pushed = self.push_entries(&[entry]);
        self.in_flight += usize::from(pushed);
        pushed
    }

    /// Queues a reservation of space in a file; false if the queue is full. Nothing waits for it:
    /// without it, writes only cost more.
    pub(crate) fn reserve(&mut self, number: u32, file: Handle<'_>, room: Range<u64>) -> bool {
        let (mode, offset, len) = (libc::FALLOC_FL_KEEP_SIZE, room.start, room.end - room.start);
        let entry = entry_for(Step::Allocate { mode, offset, len }, file)
            .user_data(RESERVE << KIND | u64::from(number));
        self.push_entries(&[entry])
    }

    fn push_entries(&mut self, entries: &[squeue::Entry]) -> bool {
        // SAFETY: the memory that the entries refer to (pieces of transfers) stays mapped and in
        // its place until the completion: transfers are reused only after it, and `Drop` of the
        // executor waits for it.
        unsafe { self.ring.submission().push_multiple(entries).is_ok() }
    }

    /// Whether a system call has anything to do: steps to submit, or deferred answers.
    pub(crate) fn wants_to_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Whether answers are there, or deferred until the next system call.
    pub(crate) fn has_answers(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// Submits queued steps and lets the kernel post its answers; waits for at least one answer if
    /// `wait` says so, at most that long. One system call.
    pub(crate) fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.enable()?;
        let submitter = self.ring.submitter();
        let result = match wait {
            // Fetches deferred completions too, if the ring's flags show any.
            Wait::No => submitter.submit(),
            Wait::Forever => submitter.submit_and_wait(1),
            Wait::For(limit) => {
                let limit = Timespec::from(limit);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes one answer.
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            let answer = self.ring.completion().next()?;
            let (kind, number) = (answer.user_data() >> KIND, answer.user_data() as u32);
            match kind {
                TRANSFER => {
                    self.in_flight -= 1;
                    return Some(Event::Answer(number, answer.result()));
                }
                WATCH => {
                    let goes_on = cqueue::more(answer.flags());
                    let at = number as usize;
                    if let Some(key) = self.watch_answered(at, answer.result(), goes_on) {
                        return Some(Event::Fired(key));
                    }
                }
                RESERVE => return Some(Event::Reserved(number, answer.result() == 0)),
                _ => {}
            }
        }
    }

    fn watch_answered(&mut self, at: usize, result: i32, goes_on: bool) -> Option<u64> {
        let watch = self.watches.get_mut(at)?.as_mut()?;
        watch.armed = goes_on;
        let Some(key) = watch.key else {
            if !goes_on {
                self.watches[at] = None;
            }
            return None;
        };
        match result {
            1.. if result & i32::from(libc::POLLIN) != 0 && watch.is_signalled() => Some(key),
            _ if matches!(-result, libc::EAGAIN | libc::EINTR | libc::ECANCELED) => None,
            // Nothing will come from it any more, or it cannot be waited for. It fires, so that nobody
            // sleeps over the end of the watch.
            _ => {
                tracing::warn!(key, answer = result, "a watched descriptor cannot be read");
                let _ = self.unwatch(key);
                Some(key)
            }
        }
    }

    /// Watches `fd`; it fires when it is signalled, or was.
    pub(crate) fn watch(&mut self, fd: OwnedFd, key: u64) {
        let watch = Watch { key: Some(key), watched: Watched::new(fd), armed: false };
        match self.watches.iter().position(Option::is_none) {
            Some(at) => self.watches[at] = Some(watch),
            None => self.watches.push(Some(watch)),
        }
    }

    pub(crate) fn is_watched(&self, key: u64) -> bool {
        self.watches.iter().flatten().any(|watch| watch.key == Some(key))
    }

    /// Queues the entries that watches need to fire (again); entries without room follow with the
    /// next call.
    pub(crate) fn arm(&mut self) {
        for at in 0..self.watches.len() {
            let Some(watch) = self.watches[at].as_mut() else { continue };
            if watch.armed || watch.key.is_none() {
                continue;
            }
            let poll =
                opcode::PollAdd::new(Fd(watch.watched.as_fd().as_raw_fd()), libc::POLLIN as u32)
                    .multi(true)
                    .build()
                    .user_data(WATCH << KIND | at as u64);
            if !self.push_entries(&[poll]) {
                return;
            }
            if let Some(watch) = self.watches[at].as_mut() {
                watch.armed = true;
            }
        }
    }

    /// Stops watching; it does not fire any more, and its counter is consumed.
    pub(crate) fn unwatch(&mut self, key: u64) -> io::Result<()> {
        for at in 0..self.watches.len() {
            let Some(watch) = self.watches[at].as_mut().filter(|w| w.key == Some(key)) else {
                continue;
            };
            watch.key = None;
            watch.watched.take();
            if !watch.armed {
                self.watches[at] = None;
                continue;
            }
            let cancel = opcode::AsyncCancel::new(WATCH << KIND | at as u64)
                .build()
                .user_data(CANCEL << KIND);
            if !self.push_entries(std::slice::from_ref(&cancel)) {
                self.enter(Wait::No)?;
                self.push_entries(&[cancel]);
            }
        }
        Ok(())
    }

    /// Stops all watches, and waits until the kernel no longer uses our memory; false if that
    /// fails.
    pub(crate) fn settle(&mut self, mut heard: impl FnMut(Event)) -> bool {
        let keys: Vec<u64> = self.watches.iter().flatten().filter_map(|w| w.key).collect();
        if keys.into_iter().any(|key| self.unwatch(key).is_err()) {
            return false;
        }
        loop {
            while let Some(event) = self.next() {
                heard(event);
            }
            let busy = self.in_flight > 0 || self.watches.iter().flatten().any(|w| w.armed);
            if !busy {
                return true;
            }
            if self.enter(Wait::Forever).is_err() {
                return false;
            }
        }
    }
}

/// How long to stay in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// Until there is an answer.
    Forever,
    /// Until there is an answer, at most that long.
    For(Duration),
}

/// With all cheap options that the kernel has (6.1), or without.
fn build(entries: u32, posting: Posting) -> io::Result<(IoUring, Posting)> {
    let basic = || {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries.saturating_mul(4)).setup_clamp().setup_r_disabled();
        builder
    };
    let mut newest = basic();
    newest.setup_submit_all().setup_single_issuer();
    if posting == Posting::Deferred {
        newest.setup_coop_taskrun().setup_taskrun_flag().setup_defer_taskrun();
    }
    match newest.build(entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok((basic().build(entries)?, Posting::AtOnce))
        }
        result => Ok((result?, posting)),
    }
}

/// Builds an entry for a registered file or for a descriptor.
macro_rules! on {
    ($file:expr, $fd:ident => $entry:expr) => {
        match $file {
            Handle::Fixed(place) => {
                let $fd = Fixed(place);
                $entry.build()
            }
            Handle::Fd(borrowed) => {
                let $fd = Fd(borrowed.as_raw_fd());
                $entry.build()
            }
        }
    };
}

fn entry_for(step: Step<'_>, file: Handle<'_>) -> squeue::Entry {
    match step {
        Step::Read(pieces, offset) => match pieces.window() {
            [one] if one.iov_len <= i32::MAX as usize => on!(file, fd =>
                opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(offset)),
            many => on!(file, fd =>
                opcode::Readv::new(fd, many.as_ptr(), many.len() as u32).offset(offset)),
        },
        Step::Write(pieces, offset) => match pieces.window() {
            [one] if one.iov_len <= i32::MAX as usize => on!(file, fd =>
                opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(offset)),
            many => on!(file, fd =>
                opcode::Writev::new(fd, many.as_ptr(), many.len() as u32).offset(offset)),
        },
        Step::Allocate { mode, offset, len } => {
            on!(file, fd => opcode::Fallocate::new(fd, len).offset(offset).mode(mode))
        }
        Step::Sync => on!(file, fd => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC)),
    }
}
