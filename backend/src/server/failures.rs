//! Failed requests of guests, on their way from workers to whoever listens to the monitor.
//!
//! Owns flags of each export, one for reads, one for writes and one for writes that found no room, and
//! the thread that passes on what they say. A guest can have as many requests fail as it likes: a worker sets a flag, and wakes
//! the thread where that was not set; it neither allocates nor waits. Never knows why a request
//! failed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use crate::binding::Failure;

const FAILURES: [Failure; 3] = [Failure::Read, Failure::Write, Failure::NoSpace];

/// Between two looks at the flags: what fails meanwhile is told once.
const SPACING: Duration = Duration::from_millis(10);

/// See the module's description.
pub(super) struct Failures(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Those that are gone stay until what they said last was passed on.
    exports: Mutex<Vec<Arc<Flags>>>,
    /// Who passes them on.
    thread: OnceLock<Thread>,
    /// There may be a flag that is set.
    woken: AtomicBool,
    ended: AtomicBool,
}

struct Flags {
    device: String,
    read: AtomicBool,
    write: AtomicBool,
    no_space: AtomicBool,
}

impl Flags {
    fn of(&self, failure: Failure) -> &AtomicBool {
        match failure {
            Failure::Read => &self.read,
            Failure::Write => &self.write,
            Failure::NoSpace => &self.no_space,
        }
    }

    fn is_set(&self) -> bool {
        FAILURES.iter().any(|&failure| self.of(failure).load(Ordering::Acquire))
    }
}

/// Where the workers of one export say that a request failed.
pub(super) struct Failed {
    flags: Arc<Flags>,
    shared: Arc<Shared>,
}

impl Failures {
    /// `tell` is called with the device's name, and what failed, in a thread of its own.
    pub(super) fn new(mut tell: impl FnMut(&str, Failure) + Send + 'static) -> Failures {
        let shared = Arc::<Shared>::default();
        let sees = shared.clone();
        let spawned = std::thread::Builder::new().name("failures".into()).spawn(move || {
            while !sees.ended.load(Ordering::Acquire) {
                // Looked at before each sleep: telling may have slept, and taken a wake for its own.
                if sees.woken.swap(false, Ordering::AcqRel) {
                    sees.pass_on(&mut tell);
                    std::thread::sleep(SPACING);
                } else {
                    std::thread::park();
                }
            }
            sees.pass_on(&mut tell);
        });
        match spawned {
            Ok(thread) => drop(shared.thread.set(thread.thread().clone())),
            Err(error) => tracing::error!("events of failed requests are lost: {error}"),
        }
        Failures(shared)
    }

    /// For an export of `device`.
    pub(super) fn of(&self, device: &str) -> Failed {
        let [read, write, no_space] = FAILURES.map(|_| AtomicBool::new(false));
        let flags = Arc::new(Flags { device: device.into(), read, write, no_space });
        self.0.exports().push(flags.clone());
        Failed { flags, shared: self.0.clone() }
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.wake();
    }
}

impl Failed {
    /// A request failed.
    pub(super) fn note(&self, failure: Failure) {
        let flag = self.flags.of(failure);
        if !flag.swap(true, Ordering::AcqRel) {
            self.shared.wake();
        }
    }
}

impl Shared {
    fn exports(&self) -> MutexGuard<'_, Vec<Arc<Flags>>> {
        // A list of which every state is one: a panic elsewhere spoils nothing.
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn pass_on(&self, tell: &mut impl FnMut(&str, Failure)) {
        let mut exports = self.exports().clone();
        for flags in &exports {
            for failure in FAILURES {
                // Cleared first: what fails while it is told is told again.
                if flags.of(failure).swap(false, Ordering::AcqRel) {
                    tell(&flags.device, failure);
                }
            }
        }
        // Of those that are gone this list and that one have the last.
        exports.retain(|flags| Arc::strong_count(flags) == 2 && !flags.is_set());
        self.exports().retain(|flags| !exports.iter().any(|gone| Arc::ptr_eq(gone, flags)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use crate::testing::PATIENCE;

    /// The last requests of an export fail when it stops.
    #[test]
    fn what_an_export_says_last_is_told_when_it_is_gone() {
        let (told, hears) = channel();
        let failures = Failures::new(move |device, failure| {
            told.send((device.to_owned(), failure)).unwrap();
        });
        for n in 0..20 {
            let (name, failure) = (format!("disk{n}"), FAILURES[n % 3]);
            failures.of(&name).note(failure);
            assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), (name, failure));
        }
        failures.of("last").note(Failure::Read);
        let shared = failures.0.clone();
        drop(failures);
        assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), ("last".into(), Failure::Read));
        assert!(hears.recv_timeout(PATIENCE).is_err(), "the thread has ended");
        assert!(shared.exports().is_empty(), "and nobody is kept");
    }

    /// Whoever tells of them may be slow, and the guest quick: what waits does not grow.
    #[test]
    fn any_number_of_failures_is_told_once_a_kind() {
        let (told, hears) = channel();
        let (go_on, waits) = channel::<()>();
        let failures = Failures::new(move |device, failure| {
            told.send((device.to_owned(), failure)).unwrap();
            let _ = waits.recv();
        });
        let (one, two) = (failures.of("one"), failures.of("two"));
        one.note(Failure::Write);
        assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), ("one".into(), Failure::Write));
        for n in 0..10_000 {
            one.note(FAILURES[n % 3]);
        }
        two.note(Failure::Read);
        drop(go_on);
        let mut rest: Vec<_> = (0..4).map(|_| hears.recv_timeout(PATIENCE).unwrap()).collect();
        rest.sort();
        let of_one = FAILURES.map(|failure| ("one".into(), failure));
        let [read, write, no_space] = of_one;
        assert_eq!(rest, [read, write, no_space, ("two".into(), Failure::Read)]);
        two.note(Failure::Read);
        assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), ("two".into(), Failure::Read));
        drop(failures);
        assert_eq!(hears.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    }
}
