//! A descriptor by which a worker notifies its front-end: nearly always an eventfd.
//!
//! Owns the descriptor. Never changes its flags: the front-end shares them, and may wait by a read
//! that blocks. Never knows what a notification means. Keeps: no worker waits for a front-end that
//! does not read what it passed as a blocking descriptor.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::readlink;

use super::signal;
use super::watchdog::{Watched, has_room};

/// See the module's description.
#[derive(Debug)]
pub(super) enum Notifier {
    /// An eventfd: a write waits only if its counter is full, which the watchdog ends.
    Eventfd(Arc<Watched>),
    /// Anything else: each write is preceded by a look.
    Other(OwnedFd),
}

impl Notifier {
    pub(super) fn new(fd: OwnedFd) -> Notifier {
        if !is_eventfd(&fd) {
            return Notifier::Other(fd);
        }
        Watched::new(fd).map_or_else(Notifier::Other, Notifier::Eventfd)
    }

    /// Notifies the front-end. One that did not read so many notifications that there is no room
    /// for another has one already.
    #[inline]
    pub(super) fn notify(&self) {
        match self {
            Notifier::Eventfd(watched) => watched.notify(),
            Notifier::Other(fd) if has_room(fd) => signal(fd),
            Notifier::Other(_) => {}
        }
    }
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
    link.is_ok_and(|name| name.as_bytes() == b"anon_inode:[eventfd]")
}
