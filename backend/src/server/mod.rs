//! The process: devices, their exports, the monitor, from start to an orderly end.
//!
//! Owns what lives as long as the process does. Never knows a request.

mod beforehand;
mod binding;
mod commands;
mod commit;
mod course;
mod failures;
mod flush_interval;
mod info;
mod job;
mod lockfs;
mod merge;
mod moment;
mod on_full;
mod place;
mod start;
mod stop;
mod table_file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use snapblk_qmp::{Events, Jobs};
use snapblk_store::control::command;
use snapblk_store::control::event::{
    BlockIoError, BlockWriteThreshold, DeviceChanged, ErrorAction, Event, IoOperation,
    SnapshotFailed,
};
use snapblk_store::cow::store::StoreEvent;
use snapblk_store::device::{DeviceEvent, Devices, DevicesConfig};
use snapblk_store::exception::Memory;
use snapblk_store::flusher::CallerFlusher;
use snapblk_store::io::{Files, IoOptions};
use snapblk_store::workers::Workers;

use crate::binding::Failure;
use crate::export::Export;
pub use crate::export::MAX_QUEUES;
use course::Course;
use failures::Failures;
pub use flush_interval::FlushInterval;
use lockfs::Lockfs;
pub use on_full::OnFull;
pub use start::{DiskArgs, DiskSocket, DiskSource, ServeArgs, ServeError, serve};
pub use table_file::table_lines;

/// How long requests in flight may take before a command that needs them to end is given up.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `quit`.
    Quit,
    /// SIGTERM, SIGINT or SIGHUP.
    Signal,
}

/// An export, and what it is one of.
struct Exported {
    state: ExportState,
    device: String,
    /// Where its front-end connects; none where the socket was inherited.
    socket: Option<PathBuf>,
}

/// How far an export is.
enum ExportState {
    /// It is not there yet: its id is taken, and its socket.
    Starting,
    /// It serves.
    Served(Export),
    /// Somebody stops it.
    Stopping,
}

impl Exported {
    fn is_served(&self) -> bool {
        matches!(self.state, ExportState::Served(_))
    }

    /// Whether a front-end is connected to it, and it is not being stopped.
    fn is_connected(&self) -> bool {
        matches!(&self.state, ExportState::Served(export) if export.is_connected())
    }
}

/// By export: the device that it serves, and what is to be called when that has another size.
type Resizes = BTreeMap<String, (String, Box<dyn Fn() + Send>)>;

/// The process's disks and what is done with them.
pub struct Server {
    devices: Arc<Devices>,
    exports: Mutex<BTreeMap<String, Exported>>,
    /// Where the monitor listens.
    monitor: OnceLock<PathBuf>,
    /// An export that was starting or stopping is served, or gone.
    stopped: Condvar,
    resizes: Arc<Mutex<Resizes>>,
    events: Arc<Events>,
    jobs: Arc<Jobs>,
    /// Held from the choice of a job's name until its work is attached to its device: two commands
    /// at once neither use one name, nor begin two jobs on one device.
    beginning: Mutex<()>,
    course: Arc<Course>,
    failures: Failures,
    options: IoOptions,
    lockfs: Lockfs,
}

impl Server {
    /// A server without devices. `agents` are the sockets of guests' agents, by disk; exceptions lie in
    /// `memory`; `course` is the process's.
    fn new(
        state: Option<PathBuf>,
        memory: Memory,
        force: bool,
        agents: &BTreeMap<String, PathBuf>,
        course: Arc<Course>,
    ) -> Arc<Server> {
        let files = Arc::new(Files::default());
        let workers = Arc::new(Workers::default());
        let options = IoOptions::default();
        let events = Events::new();
        let (happened, received) = channel::<DeviceEvent>();
        let happened = Mutex::new(happened);
        let config = DevicesConfig {
            direct: true,
            deadline: DEADLINE,
            state,
            force,
            memory,
            events: Arc::new(move |event| {
                let _ = happened.lock().expect("events lock poisoned").send(event);
            }),
            flusher: Arc::new(CallerFlusher::new(files.clone(), workers.clone(), options)),
        };
        let devices = Arc::new(Devices::new(files, workers, config));
        let resizes = Arc::<Mutex<Resizes>>::default();
        let (events_of, resizes_of) = (events.clone(), resizes.clone());
        let devices_of = Arc::downgrade(&devices);
        DeviceEvents { received, events: events_of, resizes: resizes_of, devices: devices_of }
            .start();
        let tells = events.clone();
        let server = Server {
            devices,
            exports: Mutex::default(),
            monitor: OnceLock::new(),
            stopped: Condvar::new(),
            resizes,
            jobs: Jobs::new(events.clone()),
            beginning: Mutex::default(),
            lockfs: Lockfs::new(agents, &events),
            failures: Failures::new(move |device, failure| tells.emit(&failed(device, failure))),
            events,
            course,
            options,
        };
        Arc::new(server)
    }

    fn resizes(&self) -> MutexGuard<'_, Resizes> {
        self.resizes.lock().expect("resizes lock poisoned")
    }

    fn exports(&self) -> MutexGuard<'_, BTreeMap<String, Exported>> {
        self.exports.lock().expect("exports lock poisoned")
    }

    /// See [`Server::beginning`].
    fn begins_job(&self) -> MutexGuard<'_, ()> {
        self.beginning.lock().expect("jobs' beginning lock poisoned")
    }

    /// Refuses a path at which this process listens already: that another one does is all that the
    /// socket itself says.
    fn refuse_own_socket(
        &self,
        exports: &BTreeMap<String, Exported>,
        path: &Path,
    ) -> Result<(), String> {
        let Ok(asked) = path.canonicalize() else { return Ok(()) };
        let is_it = |other: &PathBuf| other.canonicalize().is_ok_and(|other| other == asked);
        let by = if self.monitor.get().is_some_and(is_it) {
            String::from("its monitor")
        } else {
            let uses = |exported: &Exported| exported.socket.as_ref().is_some_and(is_it);
            match exports.iter().find(|(_, exported)| uses(exported)) {
                Some((id, _)) => format!("the export '{id}'"),
                None => return Ok(()),
            }
        };
        let path = path.display();
        Err(format!("this process listens on {path} already, for {by}; name another path"))
    }
}

/// Turns what happens to devices into what follows from it. Events may come from a worker, which
/// must not wait for a client, nor for the state file: a thread of their own passes them on.
struct DeviceEvents {
    received: Receiver<DeviceEvent>,
    events: Arc<Events>,
    resizes: Arc<Mutex<Resizes>>,
    devices: Weak<Devices>,
}

impl DeviceEvents {
    fn start(self) {
        let spawned =
            std::thread::Builder::new().name("events".into()).spawn(move || self.pass_on());
        if let Err(error) = spawned {
            tracing::error!("events of devices are lost: {error}");
        }
    }

    fn pass_on(self) {
        // When stores that are full are to be looked at again.
        let mut look_at: Option<Instant> = None;
        loop {
            let event = match look_at {
                None => self.received.recv().map_err(RecvTimeoutError::from),
                Some(at) => {
                    self.received.recv_timeout(at.saturating_duration_since(Instant::now()))
                }
            };
            match event {
                Ok(event) => {
                    if let DeviceEvent::Store { event: StoreEvent::Full, .. }
                    | DeviceEvent::FileFull { .. } = &event
                    {
                        look_at = Some(Instant::now());
                    }
                    self.follow(event);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if look_at.is_some_and(|at| at <= now) {
                look_at = self.devices.upgrade().and_then(|devices| devices.tend_full(now));
            }
        }
    }

    fn follow(&self, event: DeviceEvent) {
        match &event {
            DeviceEvent::Store { store, event: StoreEvent::InvalidNotWritten, .. } => {
                if let Some(devices) = self.devices.upgrade() {
                    devices.record_invalid(store);
                }
            }
            DeviceEvent::Store {
                device,
                event: StoreEvent::ThresholdPassed { threshold, .. },
                ..
            } => {
                if let Some(devices) = self.devices.upgrade() {
                    devices.passed_threshold(device, *threshold);
                }
            }
            DeviceEvent::Resized { device, .. } => {
                let resizes = self.resizes.lock().expect("resizes lock poisoned");
                let of_it = resizes.values().filter(|(of, _)| of == device);
                of_it.for_each(|(_, resized)| resized());
            }
            // It may have got another size while it was suspended, and so may those above it. Each
            // compares.
            DeviceEvent::Resumed(_) => {
                let resizes = self.resizes.lock().expect("resizes lock poisoned");
                resizes.values().for_each(|(_, resized)| resized());
            }
            DeviceEvent::FileFull { file } => {
                let devices = self.devices.upgrade();
                let waiting = devices.map(|devices| devices.waiting_for(file)).unwrap_or_default();
                let reason = format!(
                    "the file system of {} is full: writes wait until there is room",
                    file.display()
                );
                waiting.into_iter().for_each(|device| self.tell(&waits(device, reason.clone())));
            }
            _ => {}
        }
        if let Some(event) = monitor_event(event) {
            self.tell(&event);
        }
    }

    fn tell(&self, event: &Event) {
        log_failure(event);
        self.events.emit(event);
    }
}

/// Says what befell a store also where nobody listens to the monitor.
fn log_failure(event: &Event) {
    match event {
        Event::SnapshotInvalidated(SnapshotFailed { device, cow, reason }) => {
            tracing::error!("the snapshot '{device}' in {cow} is invalid: {reason}");
        }
        Event::SnapshotOverflow(SnapshotFailed { device, cow, reason }) => {
            tracing::error!("the store {cow} of '{device}' takes nothing more: {reason}");
        }
        Event::BlockIoError(BlockIoError { device, reason, .. }) => {
            tracing::warn!("'{device}': {reason}");
        }
        _ => {}
    }
}

/// The event of failed requests: one for all that failed since the last.
fn failed(device: &str, failure: Failure) -> Event {
    let no_space = failure == Failure::NoSpace;
    Event::BlockIoError(BlockIoError {
        node_name: Some(device.into()),
        device: device.into(),
        operation: if failure == Failure::Read { IoOperation::Read } else { IoOperation::Write },
        action: ErrorAction::Report,
        nospace: no_space.then_some(true),
        reason: if no_space { "No space left on device" } else { "Input/output error" }.into(),
    })
}

/// The event of writes that wait for room.
fn waits(device: String, reason: String) -> Event {
    Event::BlockIoError(BlockIoError {
        node_name: Some(device.clone()),
        device,
        operation: IoOperation::Write,
        action: ErrorAction::Stop,
        nospace: Some(true),
        reason,
    })
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
        DeviceEvent::Resized { .. } | DeviceEvent::FileFull { .. } => return None,
        DeviceEvent::ResumedInvalid { device, store } => Event::SnapshotInvalidated(failed(
            device,
            store,
            "it was resumed with a store that is invalid already, or that another table has",
        )),
        DeviceEvent::Store { device, store, event } => match event {
            StoreEvent::Invalidated => Event::SnapshotInvalidated(failed(
                device,
                store,
                "a chunk could not be kept or committed, or the store was full",
            )),
            StoreEvent::Forgotten => Event::SnapshotInvalidated(failed(
                device,
                store,
                "its store was in the memory of a process that has ended",
            )),
            StoreEvent::InvalidNotWritten => Event::SnapshotInvalidated(failed(
                device,
                store,
                "a chunk could not be kept, and the store could not be marked invalid",
            )),
            StoreEvent::Full => {
                waits(device, format!("the store {store} is full: writes wait until it has grown"))
            }
            StoreEvent::ThresholdPassed { threshold, exceeded } => {
                Event::BlockWriteThreshold(BlockWriteThreshold {
                    node_name: device,
                    amount_exceeded: exceeded,
                    write_threshold: threshold,
                })
            }
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
fn add_command(
    id: &str,
    device: &str,
    addr: command::SocketAddress,
    queues: u16,
) -> command::BlockExportAdd {
    command::BlockExportAdd {
        id: id.into(),
        node_name: device.into(),
        writable: Some(true),
        writethrough: None,
        fixed_iothread: None,
        options: command::BlockExportOptions::VhostUserBlk(command::VhostUserBlkOptions {
            addr,
            num_queues: Some(queues),
            logical_block_size: None,
        }),
    }
}
