//! An export: one device served on one socket.
//!
//! Owns the session's thread and the workers' threads, from start to stop. Never knows the device
//! behind its [`Binding`], nor what its guest does.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::binding::{Binding, Geometry, TableOf};
use crate::config::{LogicalBlock, serial as serial_of};
use crate::session::{Disk, Session, SessionControl};
pub use crate::session::{ListenError, Listener, SessionEvent, SocketAddress};
pub use crate::worker::Polling;
use crate::worker::{WorkerHandle, WorkerOptions, spawn};

/// The most queues of an export: each has a bit in the engine's wake masks.
pub const MAX_QUEUES: u16 = 62;

/// The parameters of an export.
#[derive(Debug)]
pub struct ExportConfig {
    /// Its name in the monitor.
    pub id: String,
    /// The socket that front-ends connect to.
    pub socket: Listener,
    /// Queues, 1 to [`MAX_QUEUES`].
    pub num_queues: u16,
    /// Whether guests may write, if the device can be written at all.
    pub writable: bool,
    /// Logical block.
    pub logical_block: LogicalBlock,
    /// The answer to GET_ID; cut at 20 bytes.
    pub serial: String,
    /// Whether its workers may sleep.
    pub polling: Polling,
}

/// How an export is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Only if no front-end is connected.
    Safe,
    /// Even if a front-end is connected; its requests in flight end first.
    Hard,
}

/// Why an export cannot start or stop.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// An impossible number of queues.
    #[error("export {id} cannot have {queues} queues; 1 to {MAX_QUEUES} are possible")]
    Queues {
        /// Which export.
        id: String,
        /// How many were asked for.
        queues: u16,
    },
    /// A thread, or a resource for it, could not be had.
    #[error("export {id}: a worker could not be started: {error}")]
    Worker {
        /// Which export.
        id: String,
        /// Why not.
        error: io::Error,
    },
    /// A safe stop was requested while a front-end is connected.
    #[error("export {0} is in use by a front-end; disconnect it, or stop the export hard")]
    InUse(String),
}

/// A running export. Stops when dropped.
pub struct Export {
    id: String,
    control: Arc<SessionControl>,
    session: Option<JoinHandle<()>>,
    /// Ends the workers; runs after the session.
    end_workers: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The workers started so far, until all are.
struct Started<T> {
    handles: Vec<WorkerHandle<T>>,
    threads: Vec<JoinHandle<()>>,
}

impl<T> Started<T> {
    fn end(self) {
        for handle in &self.handles {
            handle.stop();
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

impl Export {
    /// Starts to serve. `events` is called from the session's thread.
    pub fn start<B: Binding>(
        config: ExportConfig,
        binding: Arc<B>,
        events: impl Fn(SessionEvent) + Send + 'static,
    ) -> Result<Export, ExportError> {
        let ExportConfig { id, socket, num_queues, writable, logical_block, serial, polling } =
            config;
        if num_queues == 0 || num_queues > MAX_QUEUES {
            return Err(ExportError::Queues { id, queues: num_queues });
        }
        let worker_error = |error| ExportError::Worker { id: id.clone(), error };
        let control = Arc::new(SessionControl::new().map_err(worker_error)?);
        let disk = Arc::new(Disk {
            geometry: geometry_of(&binding, writable),
            block: logical_block,
            writeback: AtomicBool::new(!binding.is_write_through(&id)),
            keep_writeback: {
                let (id, binding) = (id.clone(), binding.clone());
                Box::new(move |writeback| binding.set_write_through(&id, !writeback))
            },
        });
        let options =
            WorkerOptions { serial: serial_of(&serial), writable, block: logical_block, polling };
        // The log names the disk by them. The kernel's names end at a zero byte.
        let named = id.replace('\0', "\u{fffd}");
        let workers = start_workers(&named, num_queues, options, &binding).map_err(worker_error)?;
        let handles = workers.handles.clone();
        let session = Session::new(socket, control.clone(), disk, handles, Box::new(events));
        binding.attach(&id, workers.handles.clone());
        let end_workers = {
            let id = id.clone();
            Box::new(move || {
                binding.detach(&id);
                workers.end();
            })
        };
        let mut export =
            Export { id: id.clone(), control, session: None, end_workers: Some(end_workers) };
        let thread = std::thread::Builder::new()
            .name(format!("session {named}"))
            .spawn(move || session.run())
            .map_err(|error| ExportError::Worker { id, error })?;
        export.session = Some(thread);
        Ok(export)
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether a front-end is connected.
    pub fn is_connected(&self) -> bool {
        self.control.is_connected()
    }

    /// The function to call when the device has another size.
    pub fn size_changed(&self) -> impl Fn() + Send + Sync + 'static {
        let control = self.control.clone();
        move || control.size_changed()
    }

    /// Ends it: requests in flight end, owed chunks are made durable, the socket is removed.
    pub fn stop(&mut self, mode: StopMode) -> Result<(), ExportError> {
        if mode == StopMode::Safe && self.is_connected() {
            return Err(ExportError::InUse(self.id.clone()));
        }
        self.control.stop();
        if let Some(session) = self.session.take()
            && session.join().is_err()
        {
            tracing::error!("the session of export {} ended by a panic", self.id);
        }
        if let Some(end_workers) = self.end_workers.take() {
            end_workers();
        }
        Ok(())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // Stopping hard is never refused.
        let _ = self.stop(StopMode::Hard);
    }
}

/// Stops exports in parallel, even with connected front-ends. Returns the names of those that did
/// not stop within `limit`; they continue to stop.
pub fn stop_all(exports: impl IntoIterator<Item = Export>, limit: Duration) -> BTreeSet<String> {
    let deadline = Instant::now() + limit;
    let (stopped, stops) = channel();
    let mut left = BTreeSet::new();
    for mut export in exports {
        let (id, stopped) = (export.id.clone(), stopped.clone());
        let stop = move || {
            // Stopping hard is never refused.
            let _ = export.stop(StopMode::Hard);
            let _ = stopped.send(export.id.clone());
        };
        // An export without a thread was dropped, and has stopped.
        if std::thread::Builder::new().name("stop".into()).spawn(stop).is_ok() {
            left.insert(id);
        }
    }
    while !left.is_empty()
        && let Ok(id) = stops.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        left.remove(&id);
    }
    left
}

/// The device's geometry as this export shows it.
fn geometry_of<B: Binding>(
    binding: &Arc<B>,
    writable: bool,
) -> Box<dyn Fn() -> Geometry + Send + Sync> {
    let binding = binding.clone();
    Box::new(move || {
        let geometry = binding.geometry();
        Geometry { read_only: geometry.read_only || !writable, ..geometry }
    })
}

fn start_workers<B: Binding>(
    export: &str,
    queues: u16,
    options: WorkerOptions,
    binding: &Arc<B>,
) -> io::Result<Started<TableOf<B>>> {
    let mut started = Started { handles: Vec::new(), threads: Vec::new() };
    for queue in 0..queues {
        match spawn(format!("queue {queue} of {export}"), options, binding.clone()) {
            Ok((handle, thread)) => {
                started.handles.push(handle);
                started.threads.push(thread);
            }
            Err(error) => {
                started.end();
                return Err(error);
            }
        }
    }
    Ok(started)
}
