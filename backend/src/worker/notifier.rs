//! The eventfd by which a worker notifies its front-end.
//!
//! Owns the descriptor. Never changes its flags: the front-end shares them, and may wait by a read
//! that blocks. Never knows what a notification means. Keeps: no worker waits for a front-end that
//! does not read it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::signal;
use super::watchdog::{Watched, has_room};

/// See the module's description.
#[derive(Debug)]
pub(super) enum Notifier {
    /// A write waits only if the counter is full, which the watchdog ends.
    Watched(Arc<Watched>),
    /// There is no watchdog: each write is preceded by a look.
    Unwatched(OwnedFd),
}

impl Notifier {
    pub(super) fn new(fd: OwnedFd) -> Notifier {
        Watched::new(fd).map_or_else(Notifier::Unwatched, Notifier::Watched)
    }

    /// Notifies the front-end. One that did not read so many notifications that there is no room
    /// for another has one already.
    #[inline]
    pub(super) fn notify(&self) {
        match self {
            Notifier::Watched(watched) => watched.notify(),
            Notifier::Unwatched(fd) if has_room(fd) => signal(fd),
            Notifier::Unwatched(_) => {}
        }
    }
}
