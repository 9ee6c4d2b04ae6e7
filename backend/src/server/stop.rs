//! The end of the process: its exports stop, and what its devices owe is made durable.
//!
//! Owns how long that may take. Never knows why an export does not stop. Keeps: one that does not
//! holds up no other disk, and loses nothing that was acknowledged, which lies in its files.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::{DEADLINE, ExportState, Exported, Server};
use crate::export::stop_all;

/// The most that the devices take for their end: they wait for a command's workers and flush, then for
/// their own workers, and for their own flushes four times as long; and a little more.
const CLOSES: Duration = DEADLINE.saturating_mul(8);

impl Server {
    /// Stops all exports and makes everything durable. False where something could not be.
    pub(super) fn stop(&self) -> bool {
        // While their disks still serve, where they do.
        self.lockfs.thaw_all();
        let given_up = self.stop_exports();
        for (id, device) in &given_up {
            tracing::error!(
                "export {id} of device {device} did not stop within {} s and is given up: its \
                 front-end, or a file, holds a request up; what was acknowledged is in the files of \
                 the disk, and the next start takes it in",
                DEADLINE.as_secs()
            );
        }
        // A command may still work on files that do not answer, and what shares a store with a disk
        // that was given up may have to wait for it.
        let (send, closed) = channel();
        let (devices, stopped) = (self.devices.clone(), given_up.is_empty());
        let but: Vec<String> = given_up.into_values().collect();
        let all_but = but.clone();
        let closes = move || send.send(devices.close(&all_but));
        if std::thread::Builder::new().name("close".into()).spawn(closes).is_err() {
            return self.devices.close(&but) && stopped;
        }
        let Ok(durable) = closed.recv_timeout(CLOSES) else {
            tracing::error!("not all of what the disks owe could be made durable");
            return false;
        };
        durable && stopped
    }

    /// Stops all exports; those that did not stop in time, and their devices.
    fn stop_exports(&self) -> BTreeMap<String, String> {
        let deadline = Instant::now() + DEADLINE;
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut given_up = BTreeMap::new();
        let mut exports = self.exports();
        loop {
            let all = std::mem::take(&mut *exports).into_iter();
            let (running, others) = all.partition(|(_, exported)| exported.is_served());
            *exports = others;
            drop(exports);
            let running: BTreeMap<String, Exported> = running;
            let devices = running.iter().map(|(id, it)| (id.clone(), it.device.clone()));
            let mut devices: BTreeMap<String, String> = devices.collect();
            let served = running.into_values().filter_map(|exported| match exported.state {
                ExportState::Served(export) => Some(export),
                ExportState::Starting | ExportState::Stopping => None,
            });
            let late = stop_all(served, left());
            given_up.extend(late.iter().filter_map(|id| devices.remove_entry(id)));
            // Those that a client of the monitor starts or stops are served then, or gone.
            exports = self.exports();
            let waits = |all: &mut BTreeMap<String, Exported>| {
                !all.is_empty() && !all.values().any(Exported::is_served)
            };
            let waited = self.stopped.wait_timeout_while(exports, left(), waits);
            let (stopped, timeout) = waited.expect("exports lock poisoned");
            exports = stopped;
            if timeout.timed_out() || exports.is_empty() {
                break;
            }
        }
        let late = std::mem::take(&mut *exports).into_iter();
        // One that has not started holds nothing.
        let late = late.filter(|(_, exported)| !matches!(exported.state, ExportState::Starting));
        given_up.extend(late.map(|(id, exported)| (id, exported.device)));
        given_up
    }
}
