//! Common to the tests of the control plane: a server with its monitor, its disks and its files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snapblk_qmp::client::{Client as Qmp, ClientError};
use snapblk_store::control::ErrorClass;
use snapblk_tests::disk::Disk;
use snapblk_tests::server::{Place, Scratch, Server, ServerCommand};
use snapblk_tests::verify::stamp::{Found, Generation, SECTOR, stamp_run};

/// How long to wait for an event.
const PATIENCE: Duration = Duration::from_secs(20);

/// Directories of a test, in memory.
pub(crate) fn scratch() -> Scratch {
    scratch_on(Place::Memory)
}

/// Directories of a test: on disk, I/O is direct, and by io_uring if that is allowed.
pub(crate) fn scratch_on(place: Place) -> Scratch {
    Scratch::new(place).unwrap_or_else(|error| panic!("no directory for the test: {error}"))
}

/// A running server and a client of its monitor.
pub(crate) struct World {
    /// The process.
    pub(crate) server: Server,
    /// The monitor.
    pub(crate) qmp: Qmp,
}

impl World {
    /// Starts it.
    pub(crate) fn start(command: &ServerCommand) -> World {
        let server = command.start().unwrap_or_else(|error| panic!("{error}"));
        let qmp = Qmp::connect(server.monitor())
            .unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));
        World { server, qmp }
    }

    /// The first disk's front end. The server says why it refused one.
    pub(crate) fn disk(&self) -> Disk {
        Disk::connect(self.server.socket())
            .unwrap_or_else(|error| panic!("{error}\n{}", self.server.stderr()))
    }

    /// Carries a command out; it is not refused.
    pub(crate) fn call(&mut self, command: &str, arguments: Value) -> Value {
        self.qmp
            .call(command, arguments.clone())
            .unwrap_or_else(|e| panic!("{command} {arguments}: {e}\n{}", self.server.stderr()))
    }

    /// Carries a command out that must be refused; returns the sentence.
    pub(crate) fn refused(&mut self, command: &str, arguments: Value) -> String {
        self.refused_as(ErrorClass::GenericError, command, arguments)
    }

    /// Carries a command out that must be refused with `class`; returns the sentence.
    pub(crate) fn refused_as(
        &mut self,
        class: ErrorClass,
        command: &str,
        arguments: Value,
    ) -> String {
        match self.qmp.call(command, arguments.clone()) {
            Err(ClientError::Command(error)) => {
                assert_eq!(error.class, class, "{command} {arguments}: {}", error.desc);
                error.desc
            }
            other => panic!("{command} {arguments} is not refused: {other:?}"),
        }
    }

    /// The result of `query-devices` for one device.
    pub(crate) fn device(&mut self, name: &str) -> Value {
        self.call("query-devices", json!({"name": name}))[0].clone()
    }

    /// All devices' names and tables.
    pub(crate) fn tables(&mut self) -> Vec<(String, Vec<String>)> {
        let all = self.call("query-devices", json!({}));
        let all = all.as_array().expect("an array").iter();
        all.map(|d| (d["name"].as_str().expect("a name").to_owned(), texts(&d["table"]))).collect()
    }

    /// The table of one device.
    pub(crate) fn table(&mut self, name: &str) -> Vec<String> {
        texts(&self.device(name)["table"])
    }

    /// The status lines of one device.
    pub(crate) fn status(&mut self, name: &str) -> Vec<String> {
        texts(&self.device(name)["status"])
    }

    /// Loads a table and resumes.
    pub(crate) fn swap(&mut self, name: &str, table: &[String]) {
        self.call("table-load", json!({"name": name, "table": table}));
        self.call("device-resume", json!({"name": name}));
    }

    /// A new device with this table.
    pub(crate) fn make(&mut self, name: &str, table: &[String]) {
        self.call("device-create", json!({"name": name}));
        self.swap(name, table);
    }

    /// Exports `node` under its own name, and returns its socket.
    pub(crate) fn export(&mut self, scratch: &Scratch, node: &str, writable: bool) -> PathBuf {
        let socket = scratch.socket(&format!("{node}.sock"));
        self.call("block-export-add", export_args(node, node, &socket, writable));
        socket
    }

    /// The whole content of the device `node`, through an export of its own.
    pub(crate) fn content(&mut self, scratch: &Scratch, node: &str) -> Vec<u8> {
        let socket = scratch.socket(&format!("content-{node}.sock"));
        let id = format!("content-{node}");
        self.call("block-export-add", export_args(&id, node, &socket, false));
        let all = disk(&socket).read_all().unwrap_or_else(|error| panic!("{node}: {error}"));
        self.call("block-export-del", json!({"id": id, "mode": "hard"}));
        all
    }

    /// The next event `name`; others are skipped.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.qmp.event(Some(left)).expect("the monitor lives");
            let event = event.unwrap_or_else(|| panic!("no {name}\n{}", self.server.stderr()));
            if event["event"] == name {
                return event;
            }
        }
    }

    /// SIGTERM; it ends with 0.
    pub(crate) fn stop(self) {
        let stderr = self.server.stderr();
        let status = self.server.terminate().unwrap_or_else(|error| panic!("{error}"));
        assert!(status.success(), "SIGTERM ended it with {status}: {stderr}");
    }

    /// SIGKILL.
    pub(crate) fn kill(self) {
        self.server.kill().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// The arguments of `block-export-add`.
pub(crate) fn export_args(id: &str, node: &str, socket: &Path, writable: bool) -> Value {
    json!({
        "type": "vhost-user-blk", "id": id, "node-name": node, "writable": writable,
        "addr": {"type": "unix", "path": socket},
    })
}

/// A front end at `socket`.
pub(crate) fn disk(socket: &Path) -> Disk {
    Disk::connect(socket).unwrap_or_else(|error| panic!("{error}"))
}

/// The strings of an array.
pub(crate) fn texts(array: &Value) -> Vec<String> {
    let strings = array.as_array().unwrap_or_else(|| panic!("{array} is no array")).iter();
    strings.map(|text| text.as_str().expect("a string").to_owned()).collect()
}

/// `sectors` sectors from `first`, stamped with `generation`.
pub(crate) fn stamped(first: u64, sectors: u64, generation: u32) -> Vec<u8> {
    let mut bytes = vec![0; sectors as usize * SECTOR];
    stamp_run(first, Generation(generation), &mut bytes);
    bytes
}

/// Fails with the first sector that differs, and what it holds.
pub(crate) fn assert_same(what: &str, found: &[u8], wanted: &[u8]) {
    assert_eq!(found.len(), wanted.len(), "{what}: length");
    let differs = found.chunks(SECTOR).zip(wanted.chunks(SECTOR)).position(|(a, b)| a != b);
    if let Some(sector) = differs {
        let at = sector * SECTOR..(sector + 1) * SECTOR;
        let (found, wanted) = (Found::new(&found[at.clone()]), Found::new(&wanted[at]));
        panic!("{what}: sector {sector} holds {found}, not {wanted}");
    }
}

/// `snapblk serve` with one plain disk.
pub(crate) fn plain(scratch: &Scratch, file: &Path) -> ServerCommand {
    serve(scratch).arg("--blk-file").arg(file)
}

/// `snapblk serve` with one overlay over `base`; its store is `store.cow`.
pub(crate) fn overlay(scratch: &Scratch, base: &Path) -> ServerCommand {
    plain(scratch, base).arg("--overlay").arg(scratch.path("store.cow"))
}

/// `snapblk serve` with a socket and a monitor.
pub(crate) fn serve(scratch: &Scratch) -> ServerCommand {
    let command = ServerCommand::snapblk(scratch).unwrap_or_else(|error| panic!("{error}"));
    command.arg("--num-queues").arg("2")
}

/// `snapblk serve` with a monitor alone.
pub(crate) fn monitor_only(scratch: &Scratch) -> ServerCommand {
    ServerCommand::snapblk_monitor(scratch).unwrap_or_else(|error| panic!("{error}"))
}

/// The error of a server that does not start.
pub(crate) fn does_not_start(command: &ServerCommand) -> String {
    // Its sockets may be there before it finds that it cannot serve.
    let mut server = command.begin().unwrap_or_else(|error| panic!("{error}"));
    let status = server.wait("end instead of starting").unwrap_or_else(|error| panic!("{error}"));
    assert!(!status.success(), "it starts: {}", server.stderr());
    format!("{status}: {}", server.stderr())
}

/// A path as a word of a table line.
pub(crate) fn word(path: &Path) -> &str {
    path.to_str().expect("a path of a test is text")
}
