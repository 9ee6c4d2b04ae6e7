//! The devices of a process, and their parts.
//!
//! Owns the one lock under which verbs change them. Workers never take it: they hold tables, which
//! do not change. Nor does anything that a guest waits for: that has locks of its own, which no verb
//! holds while it waits for workers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::build::Active;
use super::commit::Commit;
use super::disks::Disks;
use super::error::DeviceError;
use super::files::MadeStores;
use super::flushes::Flushes;
use super::full::FullStores;
use super::handover::Lost;
use super::origins::Origins;
use super::overdue::Overdue;
use super::paths::Paths;
use super::state::{Kept, StateFile};
use crate::attached::AttachedWorker;
use crate::background::{CommitEnd, CommitSource};
use crate::cow::store::{StoreEvent, StoreObserver};
use crate::exception::Memory;
use crate::io::Files;
use crate::lines::TableLine;
use crate::table::Table;
use crate::target::Medium;
use crate::workers::Workers;

/// An event, for observers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// A store changed its state.
    Store {
        /// The device that it was opened for.
        device: String,
        /// Its name in the table.
        store: String,
        /// The change.
        event: StoreEvent,
    },
    /// A device was resumed with a store that is Invalid already, or that another table has: its requests
    /// fail.
    ResumedInvalid {
        /// The device.
        device: String,
        /// The store's name in the table.
        store: String,
    },
    /// The file system below a file that is no store is full, and what guests write waits:
    /// [`Devices::waiting_for`] says who.
    FileFull {
        /// Its path.
        file: PathBuf,
    },
    /// A device was suspended.
    Suspended(String),
    /// A device was resumed.
    Resumed(String),
    /// A device's size changed: guests must be told.
    Resized {
        /// The device.
        device: String,
        /// Its size now, in bytes.
        bytes: u64,
    },
}

/// The receiver of events. Must not block.
pub type EventSink = Arc<dyn Fn(DeviceEvent) + Send + Sync>;

/// The result of a flush of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything is durable.
    Done,
    /// Every commit and sync was tried, and has ended: stores and files know which failed.
    Failed,
    /// It did not come to an end: what was not tried is not durable, and nobody knows of it.
    NotRun,
}

/// Makes a table's owed chunks and unsynced writes durable, and copies from one table to another;
/// implemented by the owner of an executor.
pub trait Flusher: Send + Sync {
    /// Whether a flush of `table` may take as long as a disk likes; otherwise it ends at once.
    fn may_hang(&self, table: &Table) -> bool;

    /// Flushes everything that `table` maps to.
    fn try_flush(&self, table: &Arc<Table>) -> Flushed;

    /// Makes what was written to a file durable, with its length, while nobody else syncs it: the
    /// system tells one of them of an error. False if it failed.
    fn sync(&self, medium: &Arc<Medium>) -> bool {
        self.try_flush(&Arc::new(Table::over(medium.clone()))) == Flushed::Done
    }

    /// Writes the content of `source` to `table`, and makes it durable.
    fn copy(&self, source: CommitSource, table: &Arc<Table>) -> CommitEnd;
}

/// The options of the device layer.
pub struct DevicesConfig {
    /// Whether files are opened with O_DIRECT if possible.
    pub direct: bool,
    /// How long a verb waits for requests in flight to end before it fails.
    pub deadline: Duration,
    /// The path of the state file; none keeps nothing.
    pub state: Option<PathBuf>,
    /// Whether an origin that changed is accepted, and a base may be written.
    pub force: bool,
    /// The memory for the exceptions of tables.
    pub memory: Memory,
    /// The receiver of events.
    pub events: EventSink,
    /// Makes tables durable.
    pub flusher: Arc<dyn Flusher>,
}

/// A table that was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) lines: Vec<TableLine>,
    pub(super) read_only: bool,
    /// By line: snapshots that have no store, and why.
    pub(super) lost: BTreeMap<usize, Lost>,
    /// A resume tried it, and it could not serve.
    pub(super) failed: bool,
    /// The files that its paths mean, if a command made it of tables that serve; a user's means what
    /// they name now.
    pub(super) paths: Paths,
}

impl Loaded {
    /// A table with all of its stores, whose paths mean what they name now.
    pub(super) fn of(lines: Vec<TableLine>, read_only: bool) -> Loaded {
        Loaded { lines, read_only, ..Loaded::default() }
    }
}

/// One device.
#[derive(Default)]
pub(super) struct Device {
    pub(super) uuid: Option<String>,
    pub(super) active: Option<Active>,
    pub(super) inactive: Option<Loaded>,
    pub(super) suspended: bool,
    /// It was removed before another device took its stores over: it is hidden and suspended until
    /// that has happened.
    pub(super) removed: bool,
    /// By export, or other user.
    pub(super) users: BTreeMap<String, User>,
}

/// A user that serves a device.
pub struct User {
    /// Whether guests may write through it.
    pub writable: bool,
    /// The threads that serve it.
    pub workers: Vec<Arc<dyn AttachedWorker>>,
}

/// The prefix of users that are jobs; no export's name contains white space.
const JOB: &str = "job ";

/// The name of the job `id` as the user of a device.
pub fn job_user(id: &str) -> String {
    format!("{JOB}{id}")
}

impl Device {
    /// The jobs that work on it.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &str> {
        self.users.keys().filter_map(|user| user.strip_prefix(JOB))
    }

    /// The exports that serve it.
    pub(super) fn exports(&self) -> impl Iterator<Item = &String> {
        self.users.keys().filter(|user| !user.starts_with(JOB))
    }

    /// Whether a job works on it.
    pub(super) fn has_job(&self) -> bool {
        self.jobs().next().is_some()
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = &Arc<dyn AttachedWorker>> {
        self.users.values().flat_map(|user| &user.workers)
    }
}

/// The state that verbs change.
pub(super) struct Inner {
    pub(super) disks: Disks,
    pub(super) origins: Origins,
    pub(super) devices: BTreeMap<String, Device>,
    pub(super) state: Kept,
    /// By job: the running commits, and their reservations.
    pub(super) commits: BTreeMap<String, Commit>,
    /// Devices that threads without the lock are suspending: these and the devices above them do
    /// not change until that is over.
    pub(super) suspending: BTreeSet<String>,
    /// While the state is restored: the devices that are layers below others, and need no tables of
    /// their own.
    pub(super) lower_layers: BTreeSet<String>,
    /// Stores that were made for verbs which were undone; the state file names them still.
    pub(super) left_over: MadeStores,
}

impl Inner {
    pub(super) fn device(&self, name: &str) -> Result<&Device, DeviceError> {
        let device = self.devices.get(name).filter(|device| !device.removed);
        device.ok_or_else(|| DeviceError::NotFound(name.into()))
    }

    pub(super) fn device_mut(&mut self, name: &str) -> Result<&mut Device, DeviceError> {
        let device = self.devices.get_mut(name).filter(|device| !device.removed);
        device.ok_or_else(|| DeviceError::NotFound(name.into()))
    }

    pub(super) fn active(&self, name: &str) -> Result<&Active, DeviceError> {
        self.device(name)?.active.as_ref().ok_or_else(|| DeviceError::NoTable(name.into()))
    }
}

/// See the module's description.
pub struct Devices {
    pub(super) files: Arc<Files>,
    pub(super) workers: Arc<Workers>,
    pub(super) config: DevicesConfig,
    inner: Mutex<Inner>,
    /// A suspend has ended, or a user of a device.
    settled: Condvar,
    pub(super) overdue: Arc<Overdue>,
    pub(super) flushes: Arc<Flushes>,
    /// Taken after the devices, where both are.
    full: Mutex<FullStores>,
    /// Taken last.
    state: Arc<Mutex<StateFile>>,
}

impl Drop for Devices {
    fn drop(&mut self) {
        // The thread that waits for owed chunks must end.
        self.overdue.wake();
    }
}

const POISONED: &str = "devices lock poisoned";

impl Devices {
    /// An empty set of devices.
    pub fn new(files: Arc<Files>, workers: Arc<Workers>, config: DevicesConfig) -> Self {
        let inner = Inner {
            disks: Disks::new(files.clone(), &config),
            origins: Origins::default(),
            devices: BTreeMap::new(),
            state: Kept::at(config.state.clone()),
            commits: BTreeMap::new(),
            suspending: BTreeSet::new(),
            lower_layers: BTreeSet::new(),
            left_over: MadeStores::default(),
        };
        let state = inner.state.shared_file();
        let (inner, settled) = (Mutex::new(inner), Condvar::new());
        let (overdue, flushes) = (Arc::default(), Arc::default());
        let full = Mutex::default();
        Devices { files, workers, config, inner, settled, overdue, flushes, full, state }
    }

    /// The process's files.
    pub fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// The process's workers.
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// For a verb that changes tables: no device is between two states, and the state file says what
    /// is, if it can be written.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        let unsettled = |inner: &mut Inner| !inner.suspending.is_empty();
        let mut inner = self.settled.wait_while(self.lock_unsettled(), unsettled).expect(POISONED);
        self.settle_state(&mut inner);
        inner
    }

    /// The same also while devices are between two states: for callers that only read, change no table, or
    /// handle suspends under way themselves.
    pub(super) fn lock_unsettled(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect(POISONED)
    }

    /// What guests wait for that found no room.
    pub(super) fn full(&self) -> MutexGuard<'_, FullStores> {
        self.full.lock().expect(POISONED)
    }

    /// The state file, for what guests wait for.
    pub(super) fn state_file(&self) -> MutexGuard<'_, StateFile> {
        self.state.lock().expect(POISONED)
    }

    /// Waits until a suspend has ended.
    pub(super) fn wait_for_rest<'i>(&self, inner: MutexGuard<'i, Inner>) -> MutexGuard<'i, Inner> {
        self.settled.wait(inner).expect(POISONED)
    }

    /// Waits while `what` holds, which [`settle`](Self::settle) ends; false if it still does at the
    /// deadline.
    pub(super) fn settles(&self, what: impl FnMut(&mut Inner) -> bool) -> bool {
        let limit = self.config.deadline;
        let waited = self.settled.wait_timeout_while(self.lock_unsettled(), limit, what);
        !waited.expect(POISONED).1.timed_out()
    }

    /// Something that others may wait for has ended.
    pub(super) fn settle(&self) {
        self.settled.notify_all();
    }

    /// The devices `names` are suspended, or continue to serve.
    pub(super) fn came_to_rest(&self, inner: &mut Inner, names: &[String]) {
        inner.suspending.retain(|name| !names.contains(name));
        self.settle();
    }

    pub(super) fn event(&self, event: DeviceEvent) {
        (self.config.events)(event);
    }

    pub(super) fn observer(&self, owner: &Owner) -> Box<dyn StoreObserver> {
        let (events, overdue) = (self.config.events.clone(), self.overdue.clone());
        Box::new(Observer { owner: owner.clone(), events, overdue })
    }
}

/// The present device of the store, for observers: stores move.
#[derive(Clone, Debug)]
pub(super) struct Owner(Arc<Mutex<String>>);

impl Owner {
    pub(super) fn new(device: &str) -> Owner {
        Owner(Arc::new(Mutex::new(device.into())))
    }

    pub(super) fn becomes(&self, device: &str) {
        *self.0.lock().expect(POISONED) = device.into();
    }
}

struct Observer {
    owner: Owner,
    events: EventSink,
    overdue: Arc<Overdue>,
}

impl StoreObserver for Observer {
    fn store_event(&self, name: &str, event: StoreEvent) {
        let (device, store) = (self.owner.0.lock().expect(POISONED).clone(), name.into());
        (self.events)(DeviceEvent::Store { device, store, event });
    }

    fn first_owed(&self) {
        self.overdue.begins();
    }
}
