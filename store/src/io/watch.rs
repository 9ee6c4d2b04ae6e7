//! A descriptor that is watched for signals: nearly always an eventfd.
//!
//! Owns the descriptor, and emptying it. An eventfd's counter may grow while it is watched, since
//! each signal is reported as it comes, and reading it would cost a system call each time. Any
//! other descriptor that passes for an eventfd (it has no file type either) may fill up, and is
//! emptied each time. Never blocks, even if the descriptor's owner made it blocking. Never knows what a signal
//! means.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, ReadWriteFlags};

/// Bytes that are read at a time from a descriptor that is not an eventfd.
const PART: usize = 4096;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Watched {
    fd: OwnedFd,
    /// An eventfd.
    counts: bool,
}

impl Watched {
    /// `fd`, from which nothing was read yet.
    pub(crate) fn new(fd: OwnedFd) -> Watched {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let counts = link.is_ok_and(|of| of.as_os_str() == "anon_inode:[eventfd]");
        Watched { fd, counts }
    }

    /// It is readable. False if it stays readable without a signal: at its end, or if reading
    /// fails.
    pub(crate) fn is_signalled(&self) -> bool {
        self.counts || self.take()
    }

    /// Empties it, so that its owner does not take old signals for new ones; false if it can never
    /// signal.
    pub(crate) fn take(&self) -> bool {
        let mut bytes = [0; PART];
        loop {
            let mut room = [IoSliceMut::new(&mut bytes)];
            match rustix::io::preadv2(&self.fd, &mut room, u64::MAX, ReadWriteFlags::NOWAIT) {
                Ok(0) => return false,
                Ok(PART) | Err(Errno::INTR) => {}
                Ok(_) | Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
