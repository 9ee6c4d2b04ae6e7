//! The watchdog over notifications: makes room in an eventfd whose counter is full.
//!
//! A write to an eventfd waits while the counter is full, if the descriptor blocks; a front-end can
//! fill it, and change that flag, whenever it likes. A worker that waited for it would hold up
//! whoever waits for the worker, also other disks. To look for room before each notification would
//! cost a system call, and prevent nothing; it is what remains where there is no watchdog.
//!
//! Owns one thread of the process, and which descriptors it watches. Never knows what a notification
//! means. Keeps: a notification is not taken away unless the counter is full, which no front-end
//! that reads it ever sees; nobody waits much longer than [`TICK`]; the thread sleeps while nobody
//! notifies.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::{new_eventfd, signal};

/// A notification that lasts from one look to the next may be stuck.
const TICK: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });
/// How often room is made at one look: a front-end may fill the counter again at once.
const ATTEMPTS: u32 = 64;

/// A descriptor that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    fd: OwnedFd,
    /// Notifications that began and ended: odd while one is under way.
    writes: AtomicU64,
}

impl Watched {
    /// Watches `fd`, an eventfd, for as long as the result lives; none, and `fd` again, if there is
    /// no thread for that.
    pub(super) fn new(fd: OwnedFd) -> Result<Arc<Watched>, OwnedFd> {
        let Some(watchdog) = watchdog() else { return Err(fd) };
        let watched = Arc::new(Watched { fd, writes: AtomicU64::new(0) });
        watchdog.add(&watched);
        Ok(watched)
    }

    /// Notifies. Only one thread does so at a time.
    #[inline]
    pub(super) fn notify(&self) {
        // Either the watchdog sees that this began, or it is seen here that it sleeps.
        self.writes.fetch_add(1, Ordering::SeqCst);
        wake();
        signal(&self.fd);
        self.writes.fetch_add(1, Ordering::Release);
    }

    /// Makes room, if the notification that was under way at `writes` waits for it.
    fn make_room(&self, writes: u64) {
        for _ in 0..ATTEMPTS {
            if self.writes.load(Ordering::SeqCst) != writes || has_room(&self.fd) {
                return;
            }
            // The front-end may have emptied it in between: then this must not wait either.
            let _ = take(&self.fd);
            std::thread::yield_now();
        }
    }
}

/// Whether a notification could be written without waiting.
pub(super) fn has_room(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    // A counter at its very end polls as an error.
    polled.is_ok() && fds[0].revents().contains(PollFlags::OUT)
}

/// A descriptor, and its [`Watched::writes`] at the last look.
#[derive(Debug)]
struct Seen {
    watched: Weak<Watched>,
    writes: u64,
}

struct Watchdog {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
    all: Mutex<Vec<Seen>>,
}

static WATCHDOG: Watchdog = Watchdog::new();

/// The watchdog with its thread; none if that cannot be started, or could make no room.
fn watchdog() -> Option<&'static Watchdog> {
    static STARTED: OnceLock<bool> = OnceLock::new();
    STARTED.get_or_init(|| WATCHDOG.start(take)).then_some(&WATCHDOG)
}

/// Takes what was counted, without waiting for it.
fn take(fd: &OwnedFd) -> rustix::io::Result<usize> {
    let mut count = [0; 8];
    preadv2(fd, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT)
}

/// Wakes the watchdog, if it sleeps.
#[inline]
fn wake() {
    if WATCHDOG.asleep.load(Ordering::SeqCst) {
        WATCHDOG.rouse();
    }
}

impl Watchdog {
    const fn new() -> Watchdog {
        Watchdog {
            thread: OnceLock::new(),
            asleep: AtomicBool::new(false),
            all: Mutex::new(Vec::new()),
        }
    }

    /// Starts its thread; false if that cannot be, or if the system cannot `take` without waiting:
    /// not from eventfds before Linux 5.8.
    fn start(&'static self, take: impl Fn(&OwnedFd) -> rustix::io::Result<usize>) -> bool {
        if !new_eventfd().is_ok_and(|empty| take(&empty) == Err(Errno::AGAIN)) {
            return false;
        }
        let thread = std::thread::Builder::new().name("watchdog".into());
        let thread = thread.spawn(|| self.run());
        thread.is_ok_and(|thread| self.thread.set(thread.thread().clone()).is_ok())
    }

    fn add(&self, watched: &Arc<Watched>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            // A front-end may replace its descriptors for ever, and notify nobody, so that no look
            // clears the list. Half of it is free afterwards: this is rare.
            all.retain(|seen| seen.watched.strong_count() > 0);
            let live = all.len();
            all.reserve(live + 1);
        }
        all.push(Seen { watched: Arc::downgrade(watched), writes: 0 });
    }

    #[cold]
    fn rouse(&self) {
        self.asleep.store(false, Ordering::SeqCst);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn run(&self) {
        loop {
            std::thread::sleep(TICK);
            if self.look(true) {
                continue;
            }
            self.asleep.store(true, Ordering::SeqCst);
            if self.look(false) {
                self.asleep.store(false, Ordering::SeqCst);
            }
            while self.asleep.load(Ordering::SeqCst) {
                std::thread::park();
            }
        }
    }

    /// Whether anyone has notified since the last look, or is about to; `helps` those who wait.
    fn look(&self, helps: bool) -> bool {
        let mut any = false;
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain_mut(|seen| {
            let Some(watched) = seen.watched.upgrade() else { return false };
            let writes = watched.writes.load(Ordering::SeqCst);
            let is_under_way = writes % 2 == 1;
            any |= is_under_way || writes != seen.writes;
            if helps && is_under_way && writes == seen.writes {
                watched.make_room(writes);
            }
            seen.writes = writes;
            true
        });
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As before Linux 5.8, or where a filter of system calls does not know this one.
    #[test]
    fn no_watchdog_starts_that_could_make_no_room() {
        static WATCHDOG: Watchdog = Watchdog::new();
        for answer in [Err(Errno::OPNOTSUPP), Err(Errno::NOSYS), Err(Errno::PERM), Ok(0)] {
            assert!(!WATCHDOG.start(|_| answer), "{answer:?}");
        }
        assert!(WATCHDOG.thread.get().is_none());
        assert!(WATCHDOG.start(take), "this system has what it needs");
    }

    /// Nobody is notified, so nobody looks.
    #[test]
    fn descriptors_that_are_gone_are_not_kept() {
        let watchdog = Watchdog::new();
        let watched = || {
            let watched =
                Arc::new(Watched { fd: new_eventfd().unwrap(), writes: AtomicU64::new(0) });
            watchdog.add(&watched);
            watched
        };
        let live: Vec<_> = (0..20).map(|_| watched()).collect();
        (0..2000).for_each(|_| drop(watched()));
        let all = watchdog.all.lock().unwrap();
        assert!(all.len() <= 4 * live.len(), "{} are kept", all.len());
        assert_eq!(all.iter().filter(|seen| seen.watched.strong_count() > 0).count(), live.len());
    }
}
