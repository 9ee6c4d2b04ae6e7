//! Plain system calls: for files that io_uring would hand to kernel threads, and for systems that
//! forbid io_uring.
//!
//! Owns the calls for the steps of a transfer, and waiting for eventfds with epoll. Never decides
//! what a transfer does next; that is [`transfer`](super::transfer)'s.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use super::transfer::{Step, errno};

/// How many events one call of epoll takes.
const EVENTS: usize = 16;

/// Carries out one step; the answer is a count or a negative error number.
pub(crate) fn carry_out(step: Step<'_>, fd: BorrowedFd<'_>) -> i32 {
    let result = match step {
        Step::Read(pieces, offset) => pieces.read_from(fd, offset),
        Step::Write(pieces, offset) => pieces.write_to(fd, offset),
        Step::Allocate { mode, offset, len } => {
            let mode = FallocateFlags::from_bits_retain(mode as u32);
            fallocate(fd, mode, offset, len).map(|()| 0).map_err(io::Error::from)
        }
        Step::Sync => fdatasync(fd).map(|()| 0).map_err(io::Error::from),
    };
    match result {
        Ok(count) => count.min(i32::MAX as usize) as i32,
        Err(error) => -errno(&error).0,
    }
}

/// Waits for eventfds where there is no ring.
pub(crate) struct Poller {
    epoll: OwnedFd,
    watches: Vec<Option<(u64, OwnedFd)>>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, watches: Vec::new() })
    }

    pub(crate) fn watch(&mut self, fd: OwnedFd, key: u64) -> io::Result<()> {
        let free = self.watches.iter().position(Option::is_none);
        let at = free.unwrap_or(self.watches.len());
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
        match free {
            Some(at) => self.watches[at] = Some((key, fd)),
            None => self.watches.push(Some((key, fd))),
        }
        Ok(())
    }

    pub(crate) fn unwatch(&mut self, key: u64) {
        for slot in &mut self.watches {
            if let Some((_, fd)) = slot.take_if(|(held, _)| *held == key) {
                // Ours to forget in any case: the slot is what makes an event count.
                let _ = epoll::delete(&self.epoll, &fd);
            }
        }
    }

    /// Waits until a watched descriptor fires, at most for `timeout`, and consumes what fired;
    /// returns the system calls it took.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        mut fired: impl FnMut(u64),
    ) -> io::Result<u64> {
        let timeout = timeout.map(timespec);
        let mut room = [const { MaybeUninit::uninit() }; EVENTS];
        let events = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(1),
            Err(error) => return Err(error.into()),
        };
        for event in events.iter() {
            let at = event.data.u64() as usize;
            let Some(Some((key, fd))) = self.watches.get(at) else { continue };
            let key = *key;
            match rustix::io::read(fd, &mut [0; 8]) {
                Ok(1..) => fired(key),
                // Somebody else consumed it: nothing was signalled.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // It would be at its end, or refuse, for ever.
                Ok(0) | Err(_) => {
                    tracing::warn!(key, "a watched descriptor cannot be read");
                    let _ = epoll::delete(&self.epoll, fd);
                    self.watches[at] = None;
                }
            }
        }
        Ok(1 + events.len() as u64)
    }
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
