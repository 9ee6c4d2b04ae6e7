//! Plain system calls: for files that io_uring would pass to kernel threads, and for systems that
//! forbid io_uring.
//!
//! Owns the calls for the steps of a transfer, and waiting for eventfds with epoll. Never decides
//! the next step of a transfer; [`transfer`](super::transfer) does.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use super::transfer::{Step, errno};
use super::watch::Watched;

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

/// Waits for eventfds if there is no ring.
pub(crate) struct Poller {
    epoll: OwnedFd,
    watches: Vec<Option<(u64, Watched)>>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, watches: Vec::new() })
    }

    pub(crate) fn watch(&mut self, fd: OwnedFd, key: u64) -> io::Result<()> {
        let free = self.watches.iter().position(Option::is_none);
        let at = free.unwrap_or(self.watches.len());
        // Each signal is reported once, and other pollers may see it as well.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(at as u64), flags)?;
        let watch = Some((key, Watched::new(fd)));
        match free {
            Some(at) => self.watches[at] = watch,
            None => self.watches.push(watch),
        }
        Ok(())
    }

    pub(crate) fn is_watched(&self, key: u64) -> bool {
        self.watches.iter().flatten().any(|(held, _)| *held == key)
    }

    pub(crate) fn unwatch(&mut self, key: u64) {
        for slot in &mut self.watches {
            if let Some((_, watched)) = slot.take_if(|(held, _)| *held == key) {
                watched.take();
                // Ours to forget in any case: the slot is what makes an event count.
                let _ = epoll::delete(&self.epoll, &watched);
            }
        }
    }

    /// Waits until a watched descriptor fires, at most for `timeout`.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        mut fired: impl FnMut(u64),
    ) -> io::Result<()> {
        let timeout = timeout.map(timespec);
        let mut room = [const { MaybeUninit::uninit() }; EVENTS];
        let events = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in events.iter() {
            let (at, flags) = (event.data.u64() as usize, event.flags);
            let Some(Some((key, watched))) = self.watches.get(at) else { continue };
            let key = *key;
            if flags.contains(epoll::EventFlags::IN) && watched.is_signalled() {
                fired(key);
            } else {
                tracing::warn!(key, "a watched descriptor cannot be read");
                let _ = epoll::delete(&self.epoll, watched);
                self.watches[at] = None;
                fired(key);
            }
        }
        Ok(())
    }
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
