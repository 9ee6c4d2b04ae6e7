//! From arguments to a serving process, and to its end.
//!
//! Owns the order of both: a look at all that is asked for, the state before the devices, the devices
//! before the sockets, all sockets before anybody is served, the monitor last; at the end the monitor first,
//! then the exports, then what is owed. Keeps: once the devices have started the process ends in this
//! order, also where the rest of the start fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use snapblk_qmp::{self as qmp, Commands, Monitor, StartError};
use snapblk_store::control::CommandError;
use snapblk_store::control::command::{FdSocketAddress, SocketAddress, UnixSocketAddress};
use snapblk_store::control::event::{Event, Shutdown, ShutdownCause};
use snapblk_store::device::{DeviceError, InitialDevice, make_overlay_store};
use snapblk_store::exception::{Arena, Memory};
use snapblk_store::io::FileInfo;
use snapblk_store::lines::{LineError, Param, TableLine, TargetSpec, parse_table};
use snapblk_store::units::{ChunkSize, Sector};

use super::commands::{BoundExport, Hands};
use super::course::Course;
use super::{End, FlushInterval, OnFull, Server, add_command, beforehand, place, table_lines};
use crate::export::Polling;

/// How long clients of the monitor may take to read their last lines.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// Lines of a table.
    Lines(Vec<String>),
    /// A file.
    File {
        /// Which.
        path: PathBuf,
        /// The guest may only read.
        read_only: bool,
        /// The guest's writes go to this store.
        overlay: Option<PathBuf>,
    },
}

/// Where a disk's front-end connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSocket {
    /// A socket to be created at this path.
    Path(PathBuf),
    /// A socket that this process inherited: it listens, or is connected.
    Fd(i32),
}

/// One disk of the arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskArgs {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub source: DiskSource,
    /// Where its front-end connects; none for a disk that others are made of.
    pub socket: Option<DiskSocket>,
    /// Virtqueues; none for one a core.
    pub num_queues: Option<u16>,
    /// Whether its workers never sleep while a front-end is connected.
    pub poll: bool,
    /// What its writes do when a store is full.
    pub on_full: OnFull,
    /// The socket of its guest's agent.
    pub guest_agent: Option<PathBuf>,
}

impl DiskArgs {
    /// The virtqueues that it is to have.
    pub fn queues(&self) -> u16 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.num_queues.unwrap_or(cores.min(16) as u16)
    }
}

/// What to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeArgs {
    /// The disks.
    pub disks: Vec<DiskArgs>,
    /// Where the monitor listens.
    pub monitor: Option<PathBuf>,
    /// Bytes of exception tables that may be in memory; none for all of them.
    pub table_memory: Option<u64>,
    /// Where the others are; none for beside the state.
    pub table_dir: Option<PathBuf>,
    /// When first writes to stores that nobody flushes are made durable.
    pub flush_interval: FlushInterval,
    /// Where the state is kept; none for beside the first disk's store.
    pub state: Option<PathBuf>,
    /// Do it although a file's state speaks against it.
    pub force: bool,
}

/// Why the process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A device cannot be made.
    #[error("disk '{disk}': {error}")]
    Device {
        /// Which.
        disk: String,
        /// Why.
        error: DeviceError,
    },
    /// The same, of no disk alone: of the state, or of all devices that it has.
    #[error(transparent)]
    Devices(DeviceError),
    /// A table is wrong.
    #[error("disk '{disk}': {error}")]
    Line {
        /// Whose.
        disk: String,
        /// Why.
        error: LineError,
    },
    /// An export cannot be started.
    #[error("disk '{disk}': {}", error.desc)]
    Export {
        /// Which.
        disk: String,
        /// Why.
        error: CommandError,
    },
    /// The monitor cannot be served.
    #[error(transparent)]
    Monitor(#[from] StartError),
    /// A state file is where this version keeps it, and one where an earlier version did.
    #[error(
        "{of} has two state files: {}, which an earlier version made, and {}; each may know \
         what the other does not: move one of them away, or name the right one by '--state'",
        former.display(), present.display()
    )]
    TwoStates {
        /// The store or the disk.
        of: String,
        /// Beside the symbolic link, or the first disk.
        former: PathBuf,
        /// Beside the file.
        present: PathBuf,
    },
    /// Two processes, or one with other arguments, have kept the state of some of the disks each.
    #[error(
        "these disks have more than one state file, {} and {}; each knows what the other does not: \
         serve the disks of each by a process of its own, or name the right one by '--state'",
        one.display(), other.display()
    )]
    StateOfEach {
        /// One of them.
        one: PathBuf,
        /// Another one.
        other: PathBuf,
    },
    /// A state beside a file of the disks is about other disks, and commands changed them.
    #[error(
        "the state file {}, beside a file of these disks, knows it by another name or in another table, with \
         what commands changed since: {} does not have that; start with the arguments that it was made with, \
         or move it away if nobody needs what it holds, or name the right state by '--state'",
        strange.display(), used.display()
    )]
    StrangeState {
        /// It.
        strange: PathBuf,
        /// The one that would be used.
        used: PathBuf,
    },
    /// The state of one of the disks is that of a process with other disks.
    #[error(
        "these disks were served together with others, so their state is in {}, as {} says, and it is gone or \
         knows what the arguments do not say; start with all of those disks, or name the right state by '--state', or \
         move {} away if nobody needs what that state held",
        state.display(), says.display(), says.display()
    )]
    StateElsewhere {
        /// The file that says so.
        says: PathBuf,
        /// The state.
        state: PathBuf,
    },
    /// The named state is not there, and one beside a file of the disks knows what commands made of them.
    #[error(
        "there is no state file {}, and {}, beside a file of these disks, knows what commands changed of \
         them; name that one by '--state', or move it away if nobody needs what it holds",
        new.display(), knows.display()
    )]
    StateHidden {
        /// The named one.
        new: PathBuf,
        /// The other.
        knows: PathBuf,
    },
    /// The monitor's socket is to be another of this process.
    #[error("cannot serve a monitor: {0}")]
    OwnSocket(String),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something was written and could not be made durable.
    #[error("some of what was written could not be made durable; see the messages before this one")]
    NotDurable,
}

/// Serves until a signal or `quit`, and ends in order.
///
/// # Errors
/// Why it cannot start; or that not everything could be made durable at the end.
pub fn serve(args: &ServeArgs) -> Result<(), ServeError> {
    // Blocked before the first thread, which inherits it: signals are waited for, not handled.
    let signals = crate::signals::block().map_err(io("cannot block signals"))?;
    let course = Arc::new(Course::default());
    course.clone().follow(signals).map_err(io("cannot wait for signals"))?;
    let initial = first_tables(&args.disks)?;
    let place::Places { used: state, others } = match &args.state {
        Some(state) => place::named_state(state, &initial)?,
        None => place::default_state(args, &initial)?,
    };
    beforehand::look(args, &initial, state.as_deref())?;
    let agent = |disk: &DiskArgs| Some((disk.name.clone(), disk.guest_agent.clone()?));
    let agents = args.disks.iter().filter_map(agent).collect();
    let memory = memory(args, state.as_deref())?;
    let server = Server::new(state, memory, args.force, &agents, course.clone());
    if let FlushInterval::After(interval) = args.flush_interval {
        server.devices.commit_after(interval).map_err(io("cannot commit in time"))?;
    }
    if args.state.is_some() {
        server.devices.state_was_named();
    }
    server.devices.replaces_states(others);
    start_devices(&server, args, &initial)?;
    let served = serve_devices(&server, args, &course);
    course.ends();
    let is_durable = server.stop();
    served?;
    if is_durable { Ok(()) } else { Err(ServeError::NotDurable) }
}

/// Serves the devices, which have started, until the process is to end.
fn serve_devices(
    server: &Arc<Server>,
    args: &ServeArgs,
    course: &Course,
) -> Result<(), ServeError> {
    // From here on it ends in order, for whichever reason.
    let ends = course.serves();
    // What another process may have, before a job goes on and before a guest is served.
    let bind = |disk| bind_export(server, disk).map(|bound| (disk, bound));
    let exports = args.disks.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let socket = args.monitor.as_deref().map(|path| bind_monitor(server, path)).transpose()?;
    server.resume_merges();
    server.resume_commits();
    for (disk, bound) in exports {
        bound.map_or(Ok(()), |bound| start_export(server, disk, bound))?;
    }
    let mut monitor = None;
    if let Some(socket) = socket {
        let hands = Arc::new(Hands(server.clone()));
        let shared = Monitor::new(Commands::default(), hands, server.jobs.clone());
        monitor = Some((socket.serve(shared.clone())?, shared));
    }
    // Whoever asks after the first is not told of: it ends once.
    let reason = match ends.recv() {
        Ok(End::Quit) => ShutdownCause::HostQmpQuit,
        Ok(End::Signal) | Err(_) => ShutdownCause::HostSignal,
    };
    server.events.emit(&Event::Shutdown(Shutdown { guest: false, reason }));
    if let Some((qmp, shared)) = monitor {
        shared.announce_stop();
        qmp.stop(PATIENCE);
    }
    Ok(())
}

fn bind_monitor(server: &Server, path: &Path) -> Result<qmp::Bound, ServeError> {
    server.refuse_own_socket(&server.exports(), path).map_err(ServeError::OwnSocket)?;
    let bound = qmp::Bound::new(path)?;
    // The only setter.
    let _ = server.monitor.set(path.to_owned());
    Ok(bound)
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> ServeError {
    let what = what.to_owned();
    move |source| ServeError::Io { what, source }
}

fn start_devices(
    server: &Arc<Server>,
    args: &ServeArgs,
    initial: &[InitialDevice],
) -> Result<(), ServeError> {
    for disk in &args.disks {
        server.devices.set_patience(&disk.name, disk.on_full.patience());
    }
    let mut at = String::new();
    let make = |table: &InitialDevice| {
        at.clone_from(&table.name);
        let overlay = args.disks.iter().find_map(|disk| match &disk.source {
            DiskSource::File { overlay: Some(store), .. } if disk.name == table.name => Some(store),
            _ => None,
        });
        match overlay {
            Some(store) => {
                let len = table.lines.iter().map(|line| line.len.bytes()).sum();
                make_overlay_store(store, len)
            }
            None => Ok(()),
        }
    };
    server.devices.start(initial, make).map_err(|error| match error {
        // It names the file, and came before the disks or after them.
        DeviceError::State(_) => ServeError::Devices(error),
        _ if at.is_empty() => ServeError::Devices(error),
        _ => ServeError::Device { disk: at.clone(), error },
    })
}

/// The socket of a disk that has one, unless the disk is not exported.
fn bind_export(server: &Arc<Server>, disk: &DiskArgs) -> Result<Option<BoundExport>, ServeError> {
    let addr = match &disk.socket {
        None => return Ok(None),
        Some(DiskSocket::Path(path)) => {
            SocketAddress::Unix(UnixSocketAddress { path: path.to_string_lossy().into_owned() })
        }
        Some(DiskSocket::Fd(fd)) => SocketAddress::Fd(FdSocketAddress { str: fd.to_string() }),
    };
    if let Err(error) = server.devices.require_table(&disk.name) {
        // The start made its device, unless a client removed that: then it stays removed.
        not_exported(disk, &error);
        return Ok(None);
    }
    let bound = server.bind_export(add_command(&disk.name, &disk.name, addr, disk.queues()));
    bound.map(Some).map_err(|error| ServeError::Export { disk: disk.name.clone(), error })
}

fn start_export(
    server: &Arc<Server>,
    disk: &DiskArgs,
    bound: BoundExport,
) -> Result<(), ServeError> {
    let can_be = server.devices.require_table(&disk.name);
    if let Err(error) = can_be.and_then(|()| server.devices.require_unheld(&disk.name)) {
        // A commit that goes on writes it, or has removed it: it began when a client had removed the
        // export.
        not_exported(disk, &error);
        return Ok(());
    }
    let polling = if disk.poll { Polling::Always } else { Polling::Adaptive };
    let served = server.serve_bound_export(bound, polling);
    served.map(drop).map_err(|error| ServeError::Export { disk: disk.name.clone(), error })
}

fn not_exported(disk: &DiskArgs, error: &DeviceError) {
    tracing::warn!("disk '{}' is not exported: {error}", disk.name);
}

/// The tables that the arguments give their disks.
fn first_tables(disks: &[DiskArgs]) -> Result<Vec<InitialDevice>, ServeError> {
    let table = |disk: &DiskArgs| {
        let name = disk.name.clone();
        match &disk.source {
            DiskSource::Lines(lines) => {
                let lines = parsed_lines(&name, lines)?;
                Ok(InitialDevice { name, lines, read_only: false })
            }
            DiskSource::File { path, read_only, overlay } => {
                let len = length(path)?;
                let base = Param::from_path(path);
                let target = match overlay {
                    None => TargetSpec::Linear { dev: base, offset: Sector(0) },
                    Some(store) => TargetSpec::Snapshot(snapblk_store::lines::SnapshotSpec {
                        origin: base,
                        cow: Param::from_path(store),
                        persistence: snapblk_store::cow::Persistence::PersistentOverflow,
                        chunk: Some(ChunkSize::TOOLS),
                        features: Default::default(),
                    }),
                };
                let lines = vec![TableLine { start: Sector(0), len, target }];
                Ok(InitialDevice { name, lines, read_only: *read_only })
            }
        }
    };
    disks.iter().map(table).collect()
}

fn parsed_lines(disk: &str, lines: &[String]) -> Result<Vec<TableLine>, ServeError> {
    let all = table_lines(lines).map_err(|(path, error)| {
        let path = path.display();
        io(&format!("disk '{disk}': cannot read the table file {path}"))(error)
    })?;
    let wrong = |error| ServeError::Line { disk: disk.into(), error };
    parse_table(all.iter().map(String::as_str)).map_err(wrong)
}

fn length(path: &Path) -> Result<Sector, ServeError> {
    let mode = snapblk_store::io::OpenMode::ReadOnly;
    let info = FileInfo::open(path, mode, false).map_err(|error| ServeError::Io {
        what: "cannot serve a disk".into(),
        source: std::io::Error::other(error),
    })?;
    let sectors = Sector::from_bytes(info.len);
    if sectors.0 == 0 {
        return Err(ServeError::Io {
            what: format!("cannot serve {}", path.display()),
            source: std::io::Error::other(format!(
                "it has {} bytes; a disk has at least one sector of 512",
                info.len
            )),
        });
    }
    let left = info.len - sectors.bytes();
    if left > 0 {
        tracing::warn!(
            "{} has {} bytes: the last {left} are no whole sector of 512 and are not served",
            path.display(),
            info.len
        );
    }
    Ok(sectors)
}

/// Where exception tables lie: in memory, or in a file of which a part is.
fn memory(args: &ServeArgs, state: Option<&Path>) -> Result<Memory, ServeError> {
    let Some(bound) = args.table_memory else { return Ok(Memory::Heap) };
    let beside = state.and_then(Path::parent).map(|dir| match dir.as_os_str().is_empty() {
        true => Path::new("."),
        false => dir,
    });
    let dir = args.table_dir.as_deref().or(beside).unwrap_or(Path::new("/var/tmp"));
    let what = format!("cannot keep exception tables in a file in {}", dir.display());
    Arena::new(dir, bound).map(Memory::Arena).map_err(io(&what))
}
