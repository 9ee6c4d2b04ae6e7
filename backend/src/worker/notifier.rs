//! A descriptor by which a worker notifies its front-end: nearly always an eventfd.
//!
//! Owns the descriptor, and whether a write to it may block. Never changes it: the front-end shares
//! its flags, and may wait by a read that blocks. Never knows what a notification means. Keeps: no
//! worker waits for a front-end that does not read what it passed as a blocking descriptor.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};

use super::signal;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Notifier {
    fd: OwnedFd,
    may_block: bool,
}

impl Notifier {
    pub(super) fn new(fd: OwnedFd) -> Notifier {
        let may_block = !fcntl_getfl(&fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
        Notifier { fd, may_block }
    }

    /// Notifies the front-end. One that did not read so many notifications that there is no room
    /// for another has one already.
    #[inline]
    pub(super) fn notify(&self) {
        if !self.may_block || self.has_room() {
            signal(&self.fd);
        }
    }

    #[cold]
    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}
