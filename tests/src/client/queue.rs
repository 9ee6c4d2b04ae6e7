//! One virtqueue of a client: requests in, completions out.
//!
//! Owns the requests in flight and their buffers, and the two notifications. A buffer is passed
//! with its request and returned with its completion, so no other code accesses it in between.
//! Never knows what the bytes mean.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_driver::{EventFd, QueueNotifier, VirtioBlkQueue, iovec};

use super::{Buffer, SharedTransport, Waiting};

/// A completed request.
#[derive(Debug)]
pub struct Completion {
    /// The number that the request was submitted with.
    pub user: u64,
    /// The buffer that it was submitted with, if any.
    pub buffer: Option<Buffer>,
    /// Its result.
    pub result: Result<(), RequestError>,
}

/// The device's status of a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// VIRTIO_BLK_S_IOERR.
    #[error("the device answered with an I/O error")]
    Io,
    /// VIRTIO_BLK_S_UNSUPP.
    #[error("the device answered that it does not support the request")]
    Unsupported,
    /// A status that virtio does not define.
    #[error("the device answered with a status that virtio does not know")]
    Protocol,
}

/// A request that could not be put on the ring; usually because the ring is full.
#[derive(Debug, thiserror::Error)]
#[error("the request could not be put on the ring: {source}")]
pub struct SubmitError {
    /// The buffer of the request.
    pub buffer: Option<Buffer>,
    /// The driver's error.
    pub source: io::Error,
}

#[derive(Debug)]
struct InFlight {
    user: u64,
    buffer: Option<Buffer>,
}

/// One virtqueue. Requests are put on the ring at once; [`Queue::kick`] notifies the server.
pub struct Queue {
    // Before `transport`, which owns the ring's memory: fields are dropped in this order.
    ring: VirtioBlkQueue<'static, u32>,
    notifier: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<u32>,
    segments: Vec<iovec>,
    unannounced: bool,
    waiting: Waiting,
    _transport: SharedTransport,
}

// SAFETY: the only field that is not `Send` by itself is `segments`, whose pointers are only used
// within one call of `transfer`.
unsafe impl Send for Queue {}

impl Queue {
    pub(super) fn new(
        mut ring: VirtioBlkQueue<'static, u32>,
        index: usize,
        queue_size: u16,
        waiting: Waiting,
        transport: SharedTransport,
    ) -> Self {
        ring.set_used_notif_enabled(false);
        Self {
            ring,
            notifier: transport.get_submission_notifier(index),
            call: transport.get_completion_fd(index),
            in_flight: (0..queue_size).map(|_| None).collect(),
            free: (0..u32::from(queue_size)).rev().collect(),
            segments: Vec::new(),
            unannounced: false,
            waiting,
            _transport: transport,
        }
    }

    /// Reads the bytes at `offset` into the buffer's part.
    pub fn read(&mut self, offset: u64, buffer: Buffer, user: u64) -> Result<(), SubmitError> {
        self.transfer(offset, buffer, user, false)
    }

    /// Writes the buffer's part to `offset`.
    pub fn write(&mut self, offset: u64, buffer: Buffer, user: u64) -> Result<(), SubmitError> {
        self.transfer(offset, buffer, user, true)
    }

    /// Makes earlier acknowledged writes durable.
    pub fn flush(&mut self, user: u64) -> Result<(), SubmitError> {
        self.submit(user, None, |ring, _, slot| ring.flush(slot))
    }

    /// Allows the device to discard `len` bytes at `offset`.
    pub fn discard(&mut self, offset: u64, len: u64, user: u64) -> Result<(), SubmitError> {
        self.submit(user, None, |ring, _, slot| ring.discard(offset, len, slot))
    }

    /// Makes `len` bytes at `offset` read as zeroes; with `unmap` their space may be deallocated.
    pub fn write_zeroes(
        &mut self,
        offset: u64,
        len: u64,
        unmap: bool,
        user: u64,
    ) -> Result<(), SubmitError> {
        self.submit(user, None, |ring, _, slot| ring.write_zeroes(offset, len, unmap, slot))
    }

    /// Requests that were submitted and not reaped yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// Notifies the server of submitted requests, unless it has suppressed that.
    pub fn kick(&mut self) -> io::Result<()> {
        if self.unannounced && self.ring.avail_notif_needed() {
            self.notifier.notify()?;
        }
        self.unannounced = false;
        Ok(())
    }

    /// Takes one completion from the ring, if there is one.
    pub fn reap(&mut self) -> Option<Completion> {
        let done = self.ring.completions().next()?;
        let request = self.in_flight[done.context as usize].take()?;
        self.free.push(done.context);
        let result = match -done.ret {
            0 => Ok(()),
            libc::EIO => Err(RequestError::Io),
            libc::ENOTSUP => Err(RequestError::Unsupported),
            _ => Err(RequestError::Protocol),
        };
        Some(Completion { user: request.user, buffer: request.buffer, result })
    }

    /// Waits for a completion, in the way that the client was configured; false if `timeout` ends
    /// first. Call [`Queue::kick`] before.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        match self.waiting {
            Waiting::Sleep => self.sleep(timeout),
            Waiting::Poll => Ok(self.spin(timeout)),
        }
    }

    fn sleep(&mut self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            // First enable interrupts, then check: a completion in between is seen or interrupts.
            self.ring.set_used_notif_enabled(true);
            let there = self.ring.completions().has_next();
            let called =
                there || self.called(deadline.saturating_duration_since(Instant::now()))?;
            self.ring.set_used_notif_enabled(false);
            if self.ring.completions().has_next() {
                return Ok(true);
            }
            // An interrupt for completions that were reaped before it was read: wait again.
            if !called {
                return Ok(false);
            }
        }
    }

    fn called(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let mut fds = [PollFd::from_borrowed_fd(self.call.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        self.call.read()?;
        Ok(true)
    }

    fn spin(&mut self, timeout: Duration) -> bool {
        const LOOKS_BETWEEN_CLOCKS: u32 = 256;
        let deadline = Instant::now() + timeout;
        loop {
            for _ in 0..LOOKS_BETWEEN_CLOCKS {
                if self.ring.completions().has_next() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    fn transfer(
        &mut self,
        offset: u64,
        buffer: Buffer,
        user: u64,
        write: bool,
    ) -> Result<(), SubmitError> {
        buffer.segments(&mut self.segments);
        self.submit(user, Some(buffer), |ring, segments, slot| {
            let (at, count) = (segments.as_ptr(), segments.len());
            // SAFETY: the segments lie within a buffer that `submit` keeps in `in_flight`,
            // inaccessible to all other code, until the device has completed the request. (A device
            // that never does keeps its own mapping.) The list itself is read before the return.
            let put =
                |put: unsafe fn(_, _, _, _, _) -> _| unsafe { put(ring, offset, at, count, slot) };
            put(if write { VirtioBlkQueue::writev } else { VirtioBlkQueue::readv })
        })
    }

    fn submit(
        &mut self,
        user: u64,
        buffer: Option<Buffer>,
        put: impl FnOnce(&mut VirtioBlkQueue<'static, u32>, &[iovec], u32) -> io::Result<()>,
    ) -> Result<(), SubmitError> {
        let Some(slot) = self.free.pop() else {
            return Err(SubmitError { buffer, source: io::ErrorKind::WouldBlock.into() });
        };
        match put(&mut self.ring, &self.segments, slot) {
            Ok(()) => {
                self.in_flight[slot as usize] = Some(InFlight { user, buffer });
                self.unannounced = true;
                Ok(())
            }
            Err(source) => {
                self.free.push(slot);
                Err(SubmitError { buffer, source })
            }
        }
    }
}
