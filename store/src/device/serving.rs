//! The workers of exports that serve a device: stopping and releasing them, and yielding to them.
//!
//! Owns which of a device's workers serve when. Never knows how a table is built, nor when it
//! changes.
//!
//! The work before and after a swap of tables takes a millisecond of processor time in all,
//! possibly on the processor of a serving worker, and the scheduler's time slices are longer than
//! that. A command that sleeps between its steps delays a guest by only one step at a time
//! (docs/adr/0018-giving-way.md). It stops no worker before it has yielded for the last time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Device, Devices, Inner, User};
use super::error::DeviceError;
use crate::attached::AttachedWorker;

/// The shortest sleep that can be requested: with the timer's slack and a wake-up it takes twice as
/// long, and a worker does its pending work in that time.
const SLEEP: Duration = Duration::from_micros(50);

#[cfg(test)]
thread_local! {
    /// How many times this thread yielded.
    pub(super) static TIMES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The workers of one device.
pub(super) type Serving = Vec<Arc<dyn AttachedWorker>>;

impl Devices {
    /// Workers begin to serve a device on behalf of `user`, for whom it was prepared if that is a
    /// guest's export; while they do, it cannot be removed. They arrive stopped, and continue when
    /// the device serves.
    ///
    /// # Errors
    /// There is no such device.
    pub fn attach(&self, name: &str, user: &str, export: User) -> Result<(), DeviceError> {
        let inner = &mut *self.lock();
        let stopped = blocked(inner, name);
        let device = inner.device_mut(name)?;
        if let (Some(active), false) = (&device.active, stopped) {
            export.workers.iter().for_each(|worker| worker.go(active.table.clone()));
        }
        device.users.insert(user.into(), export);
        Ok(())
    }

    /// The workers of `user` no longer serve the device.
    pub fn detach(&self, name: &str, user: &str) {
        if let Ok(device) = self.lock().device_mut(name) {
            device.users.remove(user);
        }
        self.settle();
    }

    /// Waits until `user` does not serve the device any more.
    ///
    /// # Errors
    /// It has not ended in time.
    pub fn wait_for_detach(&self, name: &str, user: &str) -> Result<(), DeviceError> {
        let serves = |inner: &mut Inner| {
            inner.devices.get(name).is_some_and(|device| device.users.contains_key(user))
        };
        if self.settles(serves) { Ok(()) } else { Err(DeviceError::Busy(name.into())) }
    }

    /// Stops the workers of `names`; on an error, all continue.
    pub(super) fn stop(&self, inner: &Inner, names: &[String]) -> Result<(), DeviceError> {
        self.stop_workers(&serving(inner, names)).inspect_err(|_| go(inner, names))
    }

    /// Stops workers; on an error some of them have stopped.
    pub(super) fn stop_workers(&self, serving: &[(String, Serving)]) -> Result<(), DeviceError> {
        for worker in serving.iter().flat_map(|(_, workers)| workers) {
            worker.stop();
        }
        let deadline = Instant::now() + self.config.deadline;
        for (name, workers) in serving {
            if workers.iter().any(|worker| worker.stopped(deadline).is_err()) {
                return Err(DeviceError::Busy(name.clone()));
            }
        }
        Ok(())
    }
}

/// Whether the device, or one below it, is suspended or has no table.
pub(super) fn blocked(inner: &Inner, name: &str) -> bool {
    let Some(device) = inner.devices.get(name) else { return true };
    let Some(active) = &device.active else { return true };
    let below = active.lines.iter().flat_map(|line| line.target.params());
    device.suspended || below.filter_map(|p| p.device()).any(|below| blocked(inner, below))
}

/// The workers of those of `names` that serve.
pub(super) fn serving(inner: &Inner, names: &[String]) -> Vec<(String, Serving)> {
    let serve = names.iter().filter(|name| !blocked(inner, name));
    let workers = |name: &String| inner.devices[name].workers().cloned().collect();
    serve.map(|name| (name.clone(), workers(name))).collect()
}

/// Lets the workers of `names` serve the tables they have now.
pub(super) fn go(inner: &Inner, names: &[String]) {
    for name in names.iter().filter(|name| !blocked(inner, name)) {
        let device = &inner.devices[name];
        if let Some(active) = &device.active {
            device.workers().for_each(|worker| worker.go(active.table.clone()));
        }
    }
}

/// Between two steps of a command: yields the processor to the workers, if there are any.
pub(super) fn give_way(inner: &Inner) {
    if serves(inner) {
        sleep();
    }
}

/// Whether there are workers to yield to.
pub(super) fn serves(inner: &Inner) -> bool {
    let serves = |(name, device): (&String, &Device)| {
        device.workers().next().is_some() && !blocked(inner, name)
    };
    inner.devices.iter().any(serves)
}

/// Yields the processor.
pub(super) fn sleep() {
    #[cfg(test)]
    TIMES.set(TIMES.get() + 1);
    std::thread::sleep(SLEEP);
}
