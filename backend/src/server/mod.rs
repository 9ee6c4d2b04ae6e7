//! The process: devices, their exports, the monitor, from start to an orderly end.
//!
//! Owns what lives as long as the process does. Never knows a request.

mod binding;
mod commands;
mod commit;
mod info;
mod merge;
mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use snapblk_qmp::{Events, Jobs};
use snapblk_store::control::command::{self, Command};
use snapblk_store::control::event::{
    BlockIoError, DeviceChanged, ErrorAction, Event, IoOperation, SnapshotFailed,
};
use snapblk_store::cow::store::StoreEvent;
use snapblk_store::device::{DeviceEvent, Devices, DevicesConfig};
use snapblk_store::flusher::CallerFlusher;
use snapblk_store::io::{Files, IoOptions};
use snapblk_store::workers::Workers;

use crate::export::Export;
pub use start::{DiskArgs, DiskSocket, DiskSource, ServeArgs, ServeError, serve};

/// How long requests in flight may take before a command that needs them to end is given up.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `quit`.
    Quit,
    /// SIGTERM or SIGINT.
    Signal,
}

/// What a running export is an export of.
struct Exported {
    export: Export,
    device: String,
}

/// The process's disks and what is done with them.
pub struct Server {
    devices: Arc<Devices>,
    exports: Mutex<BTreeMap<String, Exported>>,
    events: Arc<Events>,
    jobs: Arc<Jobs>,
    ends: Mutex<Sender<End>>,
    /// Takes the names of devices on which a guest's request failed, and whether it was a read.
    failed: Mutex<Sender<(String, bool)>>,
    options: IoOptions,
}

impl Server {
    /// A server without devices, and where it is heard that the process is to end.
    fn new(state: Option<PathBuf>, force: bool) -> (Arc<Server>, Receiver<End>) {
        let files = Arc::new(Files::default());
        let workers = Arc::new(Workers::default());
        let options = IoOptions::default();
        let events = Events::new();
        let (happened, happens) = channel::<DeviceEvent>();
        let happened = Mutex::new(happened);
        let config = DevicesConfig {
            direct: true,
            deadline: DEADLINE,
            state,
            force,
            events: Arc::new(move |event| {
                let _ = happened.lock().expect("events lock poisoned").send(event);
            }),
            flusher: Arc::new(CallerFlusher::new(files.clone(), workers.clone(), options)),
        };
        let (ends, end) = channel();
        let devices = Arc::new(Devices::new(files, workers, config));
        pass_on(happens, events.clone(), Arc::downgrade(&devices));
        let server = Server {
            devices,
            exports: Mutex::default(),
            jobs: Jobs::new(events.clone()),
            failed: Mutex::new(tell_failures(events.clone())),
            events,
            ends: Mutex::new(ends),
            options,
        };
        (Arc::new(server), end)
    }

    fn exports(&self) -> MutexGuard<'_, BTreeMap<String, Exported>> {
        self.exports.lock().expect("exports lock poisoned")
    }

    /// Asks the process to end, in order.
    pub fn end(&self, end: End) {
        // Nobody listens where it ends already.
        let _ = self.ends.lock().expect("ends lock poisoned").send(end);
    }

    /// Stops all exports and makes everything durable. False where something could not be.
    fn stop(&self) -> bool {
        let exports = std::mem::take(&mut *self.exports());
        for (_, mut exported) in exports {
            // Stopping hard is never refused.
            let _ = exported.export.stop(crate::export::StopMode::Hard);
        }
        self.devices.close()
    }
}

/// Turns what happens to devices into the monitor's events. Events may come from a worker, which
/// must not wait for a client, nor for the state file: a thread of their own passes them on.
fn pass_on(happens: Receiver<DeviceEvent>, events: Arc<Events>, devices: Weak<Devices>) {
    let spawned = std::thread::Builder::new().name("events".into()).spawn(move || {
        for event in happens {
            if let DeviceEvent::Store { store, event: StoreEvent::InvalidNotWritten, .. } = &event
                && let Some(devices) = devices.upgrade()
            {
                devices.record_invalid(store);
            }
            if let Some(event) = monitor_event(event) {
                events.emit(&event);
            }
        }
    });
    if let Err(error) = spawned {
        tracing::error!("events of devices are lost: {error}");
    }
}

/// Passes failed requests on as events; they come from workers, which must not wait for a client.
fn tell_failures(events: Arc<Events>) -> Sender<(String, bool)> {
    let (send, receive) = channel::<(String, bool)>();
    let spawned = std::thread::Builder::new().name("failures".into()).spawn(move || {
        for (device, read) in receive {
            events.emit(&Event::BlockIoError(BlockIoError {
                node_name: Some(device.clone()),
                device,
                operation: if read { IoOperation::Read } else { IoOperation::Write },
                action: ErrorAction::Report,
                nospace: None,
                reason: "Input/output error".into(),
            }));
        }
    });
    if let Err(error) = spawned {
        tracing::error!("events of failed requests are lost: {error}");
    }
    send
}

fn monitor_event(event: DeviceEvent) -> Option<Event> {
    let failed = |device: String, cow: String, reason: &str| SnapshotFailed {
        device,
        cow,
        reason: reason.into(),
    };
    Some(match event {
        DeviceEvent::Suspended(device) => Event::DeviceSuspended(DeviceChanged { device }),
        DeviceEvent::Resumed(device) => Event::DeviceResumed(DeviceChanged { device }),
        DeviceEvent::Resized { .. } => return None,
        DeviceEvent::Store { device, store, event } => match event {
            StoreEvent::Invalidated => Event::SnapshotInvalidated(failed(
                device,
                store,
                "a chunk could not be kept or committed, or the store was full",
            )),
            StoreEvent::InvalidNotWritten => Event::SnapshotInvalidated(failed(
                device,
                store,
                "a chunk could not be kept, and the store could not be marked invalid",
            )),
            StoreEvent::Overflowed => Event::SnapshotOverflow(failed(
                device,
                store,
                "the store is full: reads serve, writes fail until it has grown",
            )),
            StoreEvent::CommitFailed => Event::SnapshotOverflow(failed(
                device,
                store,
                "a commit failed: the store is read-only until it is opened again",
            )),
        },
    })
}

/// The command that adds an export, for what the program's arguments ask for.
fn add_command(id: &str, device: &str, addr: command::SocketAddress, queues: u16) -> Command {
    Command::BlockExportAdd(command::BlockExportAdd {
        id: id.into(),
        node_name: device.into(),
        writable: Some(true),
        options: command::BlockExportOptions::VhostUserBlk(command::VhostUserBlkOptions {
            addr,
            num_queues: Some(queues),
            logical_block_size: None,
        }),
    })
}
