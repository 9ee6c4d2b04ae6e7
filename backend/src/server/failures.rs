//! Failed requests of guests, on their way from workers to whoever listens to the monitor.
//!
//! Owns two flags an export, one for reads and one for writes, and the thread that passes on what
//! they say. A guest can have as many requests fail as it likes: a worker sets a flag, and wakes
//! the thread where that was not set; it neither allocates nor waits. Never knows why a request
//! failed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

/// Between two looks at the flags: what fails meanwhile is told once.
const SPACING: Duration = Duration::from_millis(10);

/// See the module's description.
pub(super) struct Failures(Arc<Shared>);

#[derive(Default)]
struct Shared {
    exports: Mutex<Vec<Weak<Flags>>>,
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
}

/// Where the workers of one export say that a request failed.
pub(super) struct Failed {
    flags: Arc<Flags>,
    shared: Arc<Shared>,
}

impl Failures {
    /// `tell` is called with the device's name, and whether it was a read, in a thread of its own.
    pub(super) fn new(mut tell: impl FnMut(&str, bool) + Send + 'static) -> Failures {
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
        });
        match spawned {
            Ok(thread) => drop(shared.thread.set(thread.thread().clone())),
            Err(error) => tracing::error!("events of failed requests are lost: {error}"),
        }
        Failures(shared)
    }

    /// For an export of `device`.
    pub(super) fn of(&self, device: &str) -> Failed {
        let (read, write) = (AtomicBool::new(false), AtomicBool::new(false));
        let flags = Arc::new(Flags { device: device.into(), read, write });
        let mut exports = self.0.exports();
        exports.retain(|flags| flags.strong_count() != 0);
        exports.push(Arc::downgrade(&flags));
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
    /// A read failed, or something else.
    pub(super) fn note(&self, read: bool) {
        let flag = if read { &self.flags.read } else { &self.flags.write };
        if !flag.swap(true, Ordering::AcqRel) {
            self.shared.wake();
        }
    }
}

impl Shared {
    fn exports(&self) -> MutexGuard<'_, Vec<Weak<Flags>>> {
        // A list of which every state is one: a panic elsewhere spoils nothing.
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn pass_on(&self, tell: &mut impl FnMut(&str, bool)) {
        let exports: Vec<Arc<Flags>> = self.exports().iter().filter_map(Weak::upgrade).collect();
        for flags in exports {
            for (flag, read) in [(&flags.read, true), (&flags.write, false)] {
                // Cleared first: what fails while it is told is told again.
                if flag.swap(false, Ordering::AcqRel) {
                    tell(&flags.device, read);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use crate::testing::PATIENCE;

    /// Whoever tells of them may be slow, and the guest quick: what waits does not grow.
    #[test]
    fn any_number_of_failures_is_told_once_a_direction() {
        let (told, hears) = channel();
        let (go_on, waits) = channel::<()>();
        let failures = Failures::new(move |device, read| {
            told.send((device.to_owned(), read)).unwrap();
            let _ = waits.recv();
        });
        let (one, two) = (failures.of("one"), failures.of("two"));
        one.note(false);
        assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), ("one".into(), false));
        for n in 0..10_000 {
            one.note(n % 2 == 0);
        }
        two.note(true);
        drop(go_on);
        let mut rest: Vec<_> = (0..3).map(|_| hears.recv_timeout(PATIENCE).unwrap()).collect();
        rest.sort();
        assert_eq!(rest, [("one".into(), false), ("one".into(), true), ("two".into(), true)]);
        two.note(true);
        assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), ("two".into(), true));
        drop(failures);
        assert_eq!(hears.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    }
}
