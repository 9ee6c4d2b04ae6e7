//! The monitor's commands, carried out.
//!
//! Owns the translation from a command to a verb, and from what went wrong to the monitor's error
//! classes. Never knows how a command travels.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;

use snapblk_qmp::{Handler, is_well_formed};
use snapblk_store::control::answer::{Answer, BlockExportInfo, BlockExportType};
use snapblk_store::control::command::{
    BlockExportAdd, BlockExportDel, BlockExportOptions, BlockExportRemoveMode, BlockResize,
    Command, DeviceMessage, SocketAddress, TransactionAction, VhostUserBlkOptions,
};
use snapblk_store::control::event::{BlockExportDeleted, Event};
use snapblk_store::control::{CommandError, ErrorClass};
use snapblk_store::device::{DeviceError, TableKind};
use snapblk_store::lines::parse_table;

use super::binding::Served;
use super::{DEADLINE, End, ExportState, Exported, OnFull, Server, info};
use crate::config::LogicalBlock;
use crate::export::{
    Export, ExportConfig, ExportError, Listener, Polling, SocketAddress as Listen, StopMode,
};

/// The monitor's hands.
pub(super) struct Hands(pub(super) Arc<Server>);

impl Handler for Hands {
    fn execute(&self, command: Command) -> Result<Answer, CommandError> {
        let done = self.0.execute(command);
        self.0.thaw_guests_whose_devices_serve();
        done
    }
}

/// What went wrong, in the monitor's words.
pub(super) fn told(error: DeviceError) -> CommandError {
    let class = match &error {
        DeviceError::NotFound(_) | DeviceError::NoSuchParam(_) => ErrorClass::DeviceNotFound,
        DeviceError::NoTable(_) | DeviceError::Suspended(_) => ErrorClass::DeviceNotActive,
        _ => ErrorClass::GenericError,
    };
    CommandError { class, desc: error.to_string() }
}

pub(super) fn done(result: Result<(), DeviceError>) -> Result<Answer, CommandError> {
    result.map(|()| Answer::DONE).map_err(told)
}

fn shutting_down(id: &str) -> CommandError {
    CommandError::generic(format!(
        "the export '{id}' is shutting down; wait for its BLOCK_EXPORT_DELETED"
    ))
}

impl Server {
    pub(super) fn execute(self: &Arc<Self>, command: Command) -> Result<Answer, CommandError> {
        let devices = &self.devices;
        match command {
            Command::DeviceCreate(c) => done(devices.create(&c.name, c.uuid.as_deref())),
            Command::DeviceRemove(c) => self.remove(&c),
            Command::TableLoad(c) => {
                let lines = parse_table(c.table.iter().map(String::as_str))
                    .map_err(|error| CommandError::generic(error.to_string()))?;
                done(devices.load(&c.name, lines, c.read_only.unwrap_or(false)))
            }
            Command::TableClear(c) => done(devices.clear(&c.name)),
            Command::DeviceSuspend(c) => self.suspend(&c),
            Command::DeviceResume(c) => self.resume(&c),
            Command::DeviceMessage(c) => self.message(&c),
            Command::QueryDevices(c) => {
                let inactive = c.inactive.unwrap_or(false);
                let kind = if inactive { TableKind::Inactive } else { TableKind::Active };
                let all = devices.query(c.name.as_deref(), kind).map_err(told)?;
                Ok(Answer::Devices(all.into_iter().map(info::device).collect()))
            }
            Command::SnapshotCreate(c) => self.transact(vec![TransactionAction::SnapshotCreate(c)]),
            Command::SnapshotMerge(c) => self.start_merge(c),
            Command::SnapshotDelete(c) => {
                let delete = c.delete_store.unwrap_or(false);
                done(devices.delete_snapshot(&c.device, &c.snapshot, delete))
            }
            Command::BlockdevSnapshotSync(c) => {
                self.transact(vec![TransactionAction::BlockdevSnapshotSync(c)])
            }
            Command::Transaction(c) => self.transaction(c),
            Command::BlockCommit(c) => self.start_commit(c),
            Command::BlockExportAdd(c) => {
                self.check_export(&c)?;
                let place = self.reserve_export(&c)?;
                self.serve_export(place, c, listen, Polling::Adaptive)
            }
            Command::BlockExportDel(c) => self.delete_export(&c),
            Command::BlockSetWriteThreshold(c) => {
                done(devices.set_write_threshold(&c.node_name, c.write_threshold))
            }
            Command::BlockResize(c) => self.resize(c),
            Command::QueryBlockExports => Ok(self.query_exports()),
            Command::Quit => {
                self.course.end(End::Quit);
                Ok(Answer::DONE)
            }
        }
    }

    /// The one message there is: `on-full fail`, or `on-full wait=30s`.
    fn message(&self, c: &DeviceMessage) -> Result<Answer, CommandError> {
        let device = self.devices.query(Some(&c.name), TableKind::Active).map_err(told)?;
        let (name, message) = (&c.name, &c.message);
        let sectors = device.iter().map(|device| device.size >> 9).sum::<u64>();
        if let Some(sector) = c.sector.filter(|sector| *sector != 0 && *sector >= sectors) {
            return Err(CommandError::generic(format!(
                "sector {sector} is outside of '{name}', which has {sectors}"
            )));
        }
        let Some(words) = message.strip_prefix("on-full ") else {
            return Err(CommandError::generic(format!(
                "no target of '{name}' knows the message '{message}'; give 'on-full fail' or, say, \
                 'on-full wait=30s'"
            )));
        };
        let on_full: OnFull = words.trim().parse().map_err(CommandError::generic)?;
        self.devices.change_patience(name, on_full.patience()).map_err(told)?;
        Ok(Answer::Message(String::new()))
    }

    fn resize(&self, c: BlockResize) -> Result<Answer, CommandError> {
        let ((Some(name), None) | (None, Some(name))) = (c.device, c.node_name) else {
            return Err(CommandError::generic("give one of 'device' and 'node-name'"));
        };
        self.devices.flush_ahead([name.as_str()]);
        done(self.devices.resize(&name, c.size))
    }

    /// Refuses what QEMU refuses of its clients. The program's arguments may name a disk otherwise,
    /// and ask for as much as its table allows, whatever that is at the time.
    fn check_export(&self, c: &BlockExportAdd) -> Result<(), CommandError> {
        if !is_well_formed(&c.id) {
            return Err(CommandError::generic(format!(
                "Invalid block export id '{}': use a letter, and then letters, digits, '-', '.' and '_'",
                c.id
            )));
        }
        let asked = [("writethrough", c.writethrough), ("fixed-iothread", c.fixed_iothread)];
        if let Some((argument, _)) = asked.iter().find(|(_, asked)| *asked == Some(true)) {
            return Err(CommandError::generic(format!(
                "no export here can have '{argument}'; leave that out, or give false"
            )));
        }
        let device = self.devices.query(Some(&c.node_name), TableKind::Active).map_err(told)?;
        if c.writable == Some(true) && device.iter().any(|device| device.read_only) {
            return Err(CommandError::generic(format!(
                "the device '{0}' is read-only, so an export of it cannot be writable; leave \
                 'writable' out, or give '{0}' a table that can be written",
                c.node_name
            )));
        }
        Ok(())
    }

    /// Takes the id of an export that is to be, and makes its socket, where front-ends wait.
    pub(super) fn bind_export(
        self: &Arc<Self>,
        command: BlockExportAdd,
    ) -> Result<BoundExport, CommandError> {
        let place = self.reserve_export(&command)?;
        let listener = listen(&command)?;
        Ok(BoundExport { place, command, listener })
    }

    /// Starts an export whose socket was made, with workers that sleep as `polling` says.
    pub(super) fn serve_bound_export(
        self: &Arc<Self>,
        bound: BoundExport,
        polling: Polling,
    ) -> Result<Answer, CommandError> {
        let BoundExport { place, command, listener } = bound;
        self.serve_export(place, command, |_| Ok(listener), polling)
    }

    /// Takes the id of an export that is to be, and its socket from this process's others. Nothing is
    /// held meanwhile that a query needs: what follows may wait for a suspend.
    fn reserve_export(self: &Arc<Self>, c: &BlockExportAdd) -> Result<Place, CommandError> {
        let mut exports = self.exports();
        match exports.get(&c.id).map(|exported| &exported.state) {
            None => {}
            Some(ExportState::Stopping) => return Err(shutting_down(&c.id)),
            Some(ExportState::Starting | ExportState::Served(_)) => {
                return Err(CommandError::generic(format!(
                    "there is an export '{}' already; choose another id",
                    c.id
                )));
            }
        }
        let BlockExportOptions::VhostUserBlk(VhostUserBlkOptions { addr, .. }) = &c.options;
        let socket = match addr {
            SocketAddress::Unix(unix) => Some(PathBuf::from(&unix.path)),
            SocketAddress::Fd(_) => None,
        };
        if let Some(socket) = &socket {
            self.refuse_own_socket(&exports, socket).map_err(CommandError::generic)?;
        }
        let (id, device) = (c.id.clone(), c.node_name.clone());
        exports.insert(id.clone(), Exported { state: ExportState::Starting, device, socket });
        Ok(Place { server: self.clone(), id })
    }

    /// Starts an export at its place in the list, on the socket that `listen` has.
    fn serve_export(
        self: &Arc<Self>,
        place: Place,
        c: BlockExportAdd,
        listen: impl FnOnce(&BlockExportAdd) -> Result<Listener, CommandError>,
        polling: Polling,
    ) -> Result<Answer, CommandError> {
        // Before anything of it starts: who removes the device meanwhile must be refused.
        let (id, device) = (c.id.clone(), c.node_name.clone());
        self.devices.prepare(&device, &id, c.writable.unwrap_or(false)).map_err(told)?;
        let export = listen(&c).and_then(|socket| self.start_export(c, socket, polling));
        let export = export.inspect_err(|_| self.devices.detach(&device, &id))?;
        let resized = (device.clone(), Box::new(export.size_changed()) as Box<_>);
        self.resizes().insert(id.clone(), resized);
        place.fill(export);
        Ok(Answer::DONE)
    }

    /// Starts the threads of an export whose device was prepared.
    fn start_export(
        &self,
        c: BlockExportAdd,
        socket: Listener,
        polling: Polling,
    ) -> Result<Export, CommandError> {
        let BlockExportOptions::VhostUserBlk(options) = c.options;
        let generic = |desc: String| CommandError::generic(desc);
        let block = options.logical_block_size.unwrap_or(512);
        let logical_block =
            u32::try_from(block).ok().and_then(LogicalBlock::from_bytes).ok_or_else(|| {
                generic(format!(
                    "a logical block of {block} bytes is not possible: use 512 or 4096"
                ))
            })?;
        let writable = c.writable.unwrap_or(false);
        let config = ExportConfig {
            id: c.id,
            socket,
            num_queues: options.num_queues.unwrap_or(1),
            writable,
            logical_block,
            serial: c.node_name.clone(),
            polling,
        };
        let failed = self.failures.of(&c.node_name);
        let (devices, device) = (self.devices.clone(), &c.node_name);
        let binding = Served::new(devices, device, writable, self.options, failed);
        Export::start(config, binding, |event| tracing::debug!("{event:?}"))
            .map_err(|error| generic(error.to_string()))
    }

    fn delete_export(self: &Arc<Self>, c: &BlockExportDel) -> Result<Answer, CommandError> {
        let mode = match c.mode {
            Some(BlockExportRemoveMode::Hard) => StopMode::Hard,
            None | Some(BlockExportRemoveMode::Safe) => StopMode::Safe,
        };
        let export = self.take_export(&c.id, mode)?;
        // As long as it takes, which is for its requests to say: nobody waits for that without end.
        let (send, ended) = channel();
        // One that gets no thread serves on: it would stop where it is dropped.
        let (hand, taken) = channel();
        let (server, id) = (self.clone(), c.id.clone());
        let stop = move || {
            if let Ok(export) = taken.recv() {
                let _ = send.send(server.stop_export(&id, export, mode));
            }
        };
        if let Err(error) = std::thread::Builder::new().name("stop".into()).spawn(stop) {
            self.put_back(&c.id, export);
            return Err(CommandError::generic(format!(
                "the export '{}' serves on: there is no thread to stop it in ({error}); try again",
                c.id
            )));
        }
        let _ = hand.send(export);
        let late = || {
            CommandError::generic(format!(
                "the export '{}' is shutting down and has not ended within {} s: its front-end, or a \
             file, holds a request up; wait for its BLOCK_EXPORT_DELETED, or disconnect that",
                c.id,
                DEADLINE.as_secs()
            ))
        };
        ended.recv_timeout(DEADLINE).map_err(|_| late())??;
        Ok(Answer::DONE)
    }

    /// Takes an export out of the list, to stop it.
    fn take_export(&self, id: &str, mode: StopMode) -> Result<Export, CommandError> {
        let mut exports = self.exports();
        let Some(Exported { state, .. }) = exports.get_mut(id) else {
            return Err(CommandError::generic(format!("there is no export '{id}'")));
        };
        match std::mem::replace(state, ExportState::Stopping) {
            ExportState::Served(export) if mode == StopMode::Safe && export.is_connected() => {
                *state = ExportState::Served(export);
                Err(CommandError::generic(ExportError::InUse(id.into()).to_string()))
            }
            ExportState::Served(export) => Ok(export),
            ExportState::Stopping => Err(shutting_down(id)),
            ExportState::Starting => {
                *state = ExportState::Starting;
                Err(CommandError::generic(format!(
                    "the export '{id}' is being added; wait until the command that does so has ended"
                )))
            }
        }
    }

    /// Stops an export that was taken out of the list, however long that takes, or puts it back.
    fn stop_export(
        &self,
        id: &str,
        mut export: Export,
        mode: StopMode,
    ) -> Result<(), CommandError> {
        if let Err(error) = export.stop(mode) {
            self.put_back(id, export);
            return Err(CommandError::generic(error.to_string()));
        }
        self.export_is_gone(id);
        Ok(())
    }

    /// An export that was taken out of the list is not stopped.
    fn put_back(&self, id: &str, export: Export) {
        if let Some(exported) = self.exports().get_mut(id) {
            exported.state = ExportState::Served(export);
        }
        self.stopped.notify_all();
    }

    fn export_is_gone(&self, id: &str) {
        self.resizes().remove(id);
        self.exports().remove(id);
        self.stopped.notify_all();
        // Who hears of it may use the name again.
        self.events.emit(&Event::BlockExportDeleted(BlockExportDeleted { id: id.into() }));
    }

    fn query_exports(&self) -> Answer {
        let info = |(id, exported): (&String, &Exported)| {
            let (shutting_down, connected) = match &exported.state {
                ExportState::Starting => return None,
                ExportState::Served(export) => (false, export.is_connected()),
                ExportState::Stopping => (true, false),
            };
            Some(BlockExportInfo {
                id: id.clone(),
                kind: BlockExportType::VhostUserBlk,
                node_name: exported.device.clone(),
                shutting_down,
                connected,
            })
        };
        Answer::Exports(self.exports().iter().filter_map(info).collect())
    }
}

/// The socket that a command names.
fn listen(c: &BlockExportAdd) -> Result<Listener, CommandError> {
    let BlockExportOptions::VhostUserBlk(VhostUserBlkOptions { addr, .. }) = &c.options;
    let address = match addr {
        SocketAddress::Unix(unix) => Listen::Path(unix.path.clone().into()),
        SocketAddress::Fd(fd) => {
            let number: i32 = fd.str.parse().map_err(|_| {
                CommandError::generic(format!("'{}' is not the number of a descriptor", fd.str))
            })?;
            let inherited = Listen::inherited(number);
            inherited.map_err(|error| CommandError::generic(error.to_string()))?
        }
    };
    Listener::open(address)
        .map_err(|error| CommandError::generic(format!("export {}: {error}", c.id)))
}

/// An export that is to be: its id is taken and its socket made, and both are given back where this is
/// dropped.
pub(super) struct BoundExport {
    place: Place,
    command: BlockExportAdd,
    listener: Listener,
}

/// The place in the list of an export that starts. It is free again where this is dropped.
struct Place {
    server: Arc<Server>,
    id: String,
}

impl Place {
    /// From now on the export is one of those that are served.
    fn fill(self, export: Export) {
        if let Some(exported) = self.server.exports().get_mut(&self.id) {
            exported.state = ExportState::Served(export);
        }
        // Without a place the process ends, and did not wait for it: it stops where it is dropped.
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut exports = self.server.exports();
        let starts = exports.get(&self.id).map(|exported| &exported.state);
        if matches!(starts, Some(ExportState::Starting)) {
            exports.remove(&self.id);
        }
        self.server.stopped.notify_all();
    }
}
