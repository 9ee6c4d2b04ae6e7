//! Timed commits: unflushed chunks become durable some time after they were written.
//!
//! Owns that time, and the thread that waits for it. Workers do the commits, as if asked by a
//! flush, so that anything that stops workers waits for them, too. Keeps I17: the thread sleeps
//! without a limit only while nothing is owed, and the worker that first owes something wakes it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use super::core::{Device, Devices};
use super::serving::blocked;

/// Whether anything is owed, for a thread that sleeps until then.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// The thread will check for owed chunks, or is to be woken for that.
    begun: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Overdue {
    /// Chunks are owed from now on. Only a load if that is known.
    #[inline]
    pub(super) fn begins(&self) {
        if !self.has_begun() && !self.begun.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Devices {
    /// From now on a commit of owed chunks begins after `interval`, unless one begins before. A
    /// thread waits for that; it outlives the devices by at most `interval`. To be called once.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn commit_after(self: &Arc<Self>, interval: Duration) -> io::Result<()> {
        let (devices, overdue) = (Arc::downgrade(self), self.overdue.clone());
        let spawned = std::thread::Builder::new()
            .name("commits in time".into())
            .spawn(move || wait_and_commit(&devices, &overdue, interval))?;
        // A second thread would never be woken.
        let _ = self.overdue.thread.set(spawned.thread().clone());
        // Chunks that were owed before were not reported to the thread.
        self.overdue.wake();
        Ok(())
    }

    /// Commits everything that is owed. If anything was, checks once more.
    pub(super) fn commit_owed(&self) {
        self.overdue.begun.store(false, Ordering::SeqCst);
        let inner = &*self.lock_unsettled();
        let owing = |(_, device): &(&String, &Device)| has_committable(device);
        for (name, device) in inner.devices.iter().filter(owing) {
            self.overdue.begun.store(true, Ordering::SeqCst);
            // One is enough: all workers of a device serve the same stores. The device may be an
            // origin, whose worker then commits a snapshot's store although that is suspended, as
            // for an origin's write.
            let mut writers = device.users.values().filter(|user| user.writable);
            if let Some(worker) = writers.find_map(|user| user.workers.first())
                && !blocked(inner, name)
            {
                worker.commit();
            }
        }
    }
}

/// Whether a store of the device's table owes anything that can be committed.
fn has_committable(device: &Device) -> bool {
    let exceptions = device.active.iter().flat_map(|active| active.table.exceptions());
    exceptions.flat_map(|ex| &ex.layers).any(|store| store.has_committable())
}

/// Waits until something is owed, and then commits every `interval` until nothing is.
fn wait_and_commit(devices: &Weak<Devices>, overdue: &Overdue, interval: Duration) {
    while devices.strong_count() > 0 {
        if !overdue.has_begun() {
            std::thread::park();
            continue;
        }
        std::thread::sleep(interval);
        if let Some(devices) = devices.upgrade() {
            devices.commit_owed();
        }
    }
}
