//! The verbs, and the command of the monitor that each stands for.

use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};
use snapblk_store::control::command as control;
use snapblk_store::control::job::BlockJobSetSpeed;

use super::CtlError;
use super::jobs::{CommitArgs, MergeArgs};
use super::transaction::TransactionArgs;
use crate::cli::size;
use crate::server::table_lines;

/// What a person can ask of a running server.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Show devices, exports and jobs
    Status,
    /// Print events as they come, and the progress of jobs, until interrupted
    Watch,

    /// List devices and their targets
    #[command(visible_alias = "query-devices")]
    Devices {
        /// Only this device
        device: Option<String>,
        /// The loaded tables instead of the live ones
        #[arg(long)]
        inactive: bool,
    },
    /// Print table lines, as dmsetup does: of one device as `load` takes them
    Table {
        /// Only this device
        device: Option<String>,
        /// The loaded tables instead of the live ones
        #[arg(long)]
        inactive: bool,
    },
    /// Make a device without a table
    #[command(visible_alias = "device-create")]
    Create {
        /// Its name
        device: String,
        /// An identity that outlives the name
        #[arg(long)]
        uuid: Option<String>,
    },
    /// Remove a device that nothing uses
    #[command(visible_alias = "device-remove")]
    Remove {
        /// The device
        device: String,
        /// Remove it even if chunks that it still owes to its store cannot be made durable, because the
        /// disk failed. A device in use is refused all the same
        #[arg(long)]
        force: bool,
    },
    /// Load a table beside the live one; `resume` swaps it in
    #[command(visible_alias = "table-load")]
    Load {
        /// The device
        device: String,
        /// Lines of the table, or @FILE with one line each
        #[arg(required = true, value_name = "LINE|@FILE")]
        table: Vec<String>,
        /// The device refuses writes under this table
        #[arg(long)]
        read_only: bool,
    },
    /// Drop the table that was loaded and not yet resumed
    #[command(visible_alias = "table-clear")]
    Clear {
        /// The device
        device: String,
    },
    /// Suspend a device: hold its requests until `resume`
    #[command(visible_alias = "device-suspend")]
    Suspend {
        /// The device
        device: String,
        /// Do not wait for requests in flight: hold and replay them
        #[arg(long)]
        noflush: bool,
        /// Do not ask the guest to freeze its file systems
        #[arg(long)]
        skip_lockfs: bool,
    },
    /// Resume a device, with the loaded table if there is one
    #[command(visible_alias = "device-resume")]
    Resume {
        /// The device
        device: String,
        /// Do not ask the guest of a device that serves to freeze its file systems before the swap
        #[arg(long)]
        skip_lockfs: bool,
    },
    /// Send a message to a device's target
    ///
    /// For example, writes to a full store of disk0 are to wait for room:
    ///
    ///   snapblk ctl monitor.sock message disk0 on-full wait=1m
    #[command(visible_alias = "device-message")]
    Message {
        /// The device
        device: String,
        /// The words of the message, as in `on-full wait=30s`
        #[arg(required = true)]
        message: Vec<String>,
        /// A sector of the device, as dmsetup has it
        #[arg(long, default_value_t = 0)]
        sector: u64,
    },

    /// Take a snapshot of a live disk
    #[command(visible_alias = "snapshot-create")]
    Snapshot(SnapshotArgs),
    /// Roll a disk back to a snapshot, while its guest runs
    #[command(visible_alias = "snapshot-merge")]
    Merge(MergeArgs),
    /// Delete a snapshot
    #[command(visible_alias = "snapshot-delete")]
    Delete {
        /// The disk
        device: String,
        /// The snapshot
        snapshot: String,
        /// Delete its store file, too
        #[arg(long)]
        delete_store: bool,
    },
    /// Put a new overlay on top of a live disk
    ///
    /// The guest's writes go to the overlay from now on. What the disk was becomes a layer below, with
    /// a name of its own. `commit` removes layers again. For example:
    ///
    ///   snapblk ctl monitor.sock overlay disk0 monday.cow
    #[command(visible_alias = "blockdev-snapshot-sync")]
    Overlay {
        /// The disk
        device: String,
        /// The overlay's file
        file: String,
        /// The name of the layer that the disk becomes below the overlay [default: DEVICE.N]
        #[arg(long, value_name = "NAME")]
        node_name: Option<String>,
        /// Use the store that the file holds instead of making one
        #[arg(long)]
        existing: bool,
        /// Do not ask the guest to freeze its file systems
        #[arg(long)]
        skip_lockfs: bool,
    },
    /// Take snapshots of several live disks at one moment: all or none
    Transaction(TransactionArgs),

    /// Make a disk longer, which its guest sees at once
    ///
    /// Given its present size, it only looks at the stores below it again: after one of their files
    /// was extended, for example.
    #[command(visible_alias = "block_resize")]
    Resize {
        /// The disk
        device: String,
        /// Its new size in bytes, as in 20G
        #[arg(value_parser = size::parse)]
        size: u64,
    },

    /// Commit overlays into the layer or base below them, while the guest runs
    ///
    /// Everything of the chain from --top down to above --base is written into --base; these layers
    /// are removed then. `snapblk ctl MONITOR table` shows the names of the layers. By default --top is
    /// the disk's own overlay. Such a commit becomes ready first; `job-complete` then completes it, and
    /// the disk is on --base. For example, all of disk0 into its base, and one layer into the one below:
    ///
    ///   snapblk ctl monitor.sock commit disk0 --wait
    ///
    ///   snapblk ctl monitor.sock commit disk0 --top disk0.2 --base disk0.1 --wait
    ///
    /// A base that was opened read-only, as it is with `serve --overlay`, is written only by a server
    /// that was started with `serve --force`.
    #[command(visible_alias = "block-commit")]
    Commit(CommitArgs),

    /// Report once, as an event, when a store has filled up to a size
    #[command(visible_alias = "block-set-write-threshold")]
    Threshold {
        /// The overlay or snapshot
        device: String,
        /// Bytes of the store in use, as in 8G; 0 for no event
        #[arg(value_parser = size::parse)]
        size: u64,
    },

    /// List exports
    #[command(visible_alias = "query-block-exports")]
    Exports,
    /// Serve a device as a vhost-user-blk disk
    #[command(visible_alias = "block-export-add")]
    Export(ExportArgs),
    /// Stop serving a device
    #[command(visible_alias = "block-export-del")]
    Unexport {
        /// The export's name
        id: String,
        /// Even if a front-end is connected: it is disconnected
        #[arg(long)]
        hard: bool,
    },

    /// List jobs
    #[command(visible_alias = "query-jobs")]
    Jobs,
    /// Wait for the end of a job, with a progress bar
    ///
    /// A job that is ready, or pending, ends only by `job-complete` or `job-finalize`: it is not waited
    /// for, and the exit status is 1.
    Wait {
        /// The job
        job: String,
        /// Complete it when it is ready
        #[arg(long)]
        complete: bool,
    },
    /// Limit the speed of a job
    ///
    /// For example: snapblk ctl monitor.sock speed merge-disk0 100M
    #[command(visible_alias = "block-job-set-speed")]
    Speed {
        /// The job
        job: String,
        /// Most bytes per second, as in 100M; 0 for no limit
        #[arg(value_parser = size::parse)]
        speed: u64,
    },
    /// Pause a job
    JobPause {
        /// The job
        job: String,
    },
    /// Resume a paused job
    JobResume {
        /// The job
        job: String,
    },
    /// Stop a job; a rollback goes on when it is begun again
    JobCancel {
        /// The job
        job: String,
    },
    /// Complete a job that is ready: the disk is then on its base
    JobComplete {
        /// The job
        job: String,
    },
    /// Finalize a pending job, which was started without auto-finalize
    JobFinalize {
        /// The job
        job: String,
    },
    /// Remove a job that is over from the list
    JobDismiss {
        /// The job
        job: String,
    },

    /// Tell whether the server runs, or is about to stop
    QueryStatus,
    /// Print the server's version
    #[command(visible_alias = "query-version")]
    Version,
    /// List the monitor's commands
    #[command(visible_alias = "query-commands")]
    Commands,
    /// Print the monitor's description of itself
    #[command(visible_alias = "query-qmp-schema")]
    Schema,
    /// Finish all requests, make them durable and stop the server
    Quit,
}

/// Arguments of `snapshot`.
#[derive(clap::Args, Debug)]
pub struct SnapshotArgs {
    /// The disk
    pub device: String,
    /// The snapshot's name
    pub name: String,
    /// The file that keeps what the disk overwrites
    #[arg(long, value_name = "FILE")]
    pub cow: String,
    /// Size of a chunk, the unit that is kept: a power of two from 512 to 1G, as in 64K [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub chunk_size: Option<u64>,
    /// Size of the file [default: room for every chunk of the disk]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub size: Option<u64>,
    /// What happens when the file is full, and whether the snapshot outlives a restart [default: PO]
    #[arg(long, value_enum)]
    pub persistent: Option<Persistent>,
    /// Use the store that the file holds instead of making one
    #[arg(long)]
    pub existing: bool,
    /// Do not ask the guest to freeze its file systems
    #[arg(long)]
    pub skip_lockfs: bool,
}

/// Arguments of `export`.
#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    /// The export's name
    pub id: String,
    /// The device
    pub device: String,
    /// The socket to create, for the front-end
    #[arg(required_unless_present = "fd")]
    pub socket: Option<String>,
    /// A listening socket that the server inherited, by its number, instead
    #[arg(long, value_name = "N", conflicts_with = "socket")]
    pub fd: Option<u32>,
    /// Let the guest write
    #[arg(long)]
    pub writable: bool,
    /// Number of virtqueues offered [default: 1]
    #[arg(long, value_name = "N")]
    pub num_queues: Option<u16>,
    /// Logical block size of the disk, 512 or 4096 [default: 512]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub logical_block_size: Option<u64>,
}

/// How a store keeps what it keeps, as in a table line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Persistent {
    /// When the file is full, the snapshot is lost
    #[value(name = "P")]
    P,
    /// The same where a write of the disk needs a copy; what only writes to the snapshot have filled can
    /// be read until the file grows
    #[value(name = "PO")]
    Po,
    /// Nothing is kept across a restart
    #[value(name = "N")]
    N,
}

/// A command of the monitor, with its arguments.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    /// Its name.
    pub(super) command: &'static str,
    /// A JSON object.
    pub(super) arguments: Value,
}

impl Request {
    pub(super) fn new(command: &'static str, arguments: &impl Serialize) -> Self {
        // The arguments are records of strings and numbers: they always serialize.
        Request { command, arguments: serde_json::to_value(arguments).unwrap_or_default() }
    }

    fn named(command: &'static str, name: &str) -> Self {
        Request { command, arguments: json!({ "name": name }) }
    }

    fn job(command: &'static str, id: &str) -> Self {
        Request { command, arguments: json!({ "id": id }) }
    }

    fn bare(command: &'static str) -> Self {
        Request { command, arguments: json!({}) }
    }
}

impl Verb {
    /// The command that this verb stands for. Reads the table file, if one is named.
    pub(super) fn request(&self) -> Result<Request, CtlError> {
        Ok(match self {
            Verb::Devices { device, inactive } | Verb::Table { device, inactive } => Request::new(
                "query-devices",
                &control::QueryDevices { name: device.clone(), inactive: set(*inactive) },
            ),
            Verb::Create { device, uuid } => Request::new(
                "device-create",
                &control::DeviceCreate { name: device.clone(), uuid: uuid.clone() },
            ),
            Verb::Remove { device, force } => Request::new(
                "device-remove",
                &control::DeviceRemove { name: device.clone(), force: set(*force) },
            ),
            Verb::Load { device, table, read_only } => Request::new(
                "table-load",
                &control::TableLoad {
                    name: device.clone(),
                    table: lines(table)?,
                    read_only: set(*read_only),
                },
            ),
            Verb::Clear { device } => Request::named("table-clear", device),
            Verb::Suspend { device, noflush, skip_lockfs } => Request::new(
                "device-suspend",
                &control::DeviceSuspend {
                    name: device.clone(),
                    noflush: set(*noflush),
                    skip_lockfs: set(*skip_lockfs),
                },
            ),
            Verb::Resume { device, skip_lockfs } => Request::new(
                "device-resume",
                &control::DeviceResume { name: device.clone(), skip_lockfs: set(*skip_lockfs) },
            ),
            Verb::Message { device, message, sector } => Request::new(
                "device-message",
                &control::DeviceMessage {
                    name: device.clone(),
                    sector: Some(*sector),
                    message: message.join(" "),
                },
            ),
            Verb::Snapshot(snapshot) => snapshot.request(),
            Verb::Transaction(transaction) => transaction.request(),
            Verb::Merge(merge) => merge.request(),
            Verb::Commit(commit) => commit.request(),
            Verb::Delete { device, snapshot, delete_store } => Request::new(
                "snapshot-delete",
                &control::SnapshotDelete {
                    device: device.clone(),
                    snapshot: snapshot.clone(),
                    delete_store: set(*delete_store),
                },
            ),
            Verb::Overlay { device, file, node_name, existing, skip_lockfs } => Request::new(
                "blockdev-snapshot-sync",
                &control::BlockdevSnapshotSync {
                    device: device.clone(),
                    snapshot_file: file.clone(),
                    snapshot_node_name: node_name.clone(),
                    mode: mode(*existing),
                    skip_lockfs: set(*skip_lockfs),
                },
            ),
            Verb::Resize { device, size } => resize(device, *size),
            Verb::Threshold { device, size } => threshold(device, *size),
            Verb::Export(export) => export.request(),
            Verb::Unexport { id, hard } => Request::new(
                "block-export-del",
                &control::BlockExportDel {
                    id: id.clone(),
                    mode: hard.then_some(control::BlockExportRemoveMode::Hard),
                },
            ),
            Verb::Exports => Request::bare("query-block-exports"),
            Verb::Status | Verb::Watch | Verb::Wait { .. } | Verb::Jobs => {
                Request::bare("query-jobs")
            }
            Verb::Speed { job, speed } => Request::new(
                "block-job-set-speed",
                &BlockJobSetSpeed { device: job.clone(), speed: *speed },
            ),
            Verb::JobPause { job } => Request::job("job-pause", job),
            Verb::JobResume { job } => Request::job("job-resume", job),
            Verb::JobCancel { job } => Request::job("job-cancel", job),
            Verb::JobComplete { job } => Request::job("job-complete", job),
            Verb::JobFinalize { job } => Request::job("job-finalize", job),
            Verb::JobDismiss { job } => Request::job("job-dismiss", job),
            Verb::QueryStatus => Request::bare("query-status"),
            Verb::Version => Request::bare("query-version"),
            Verb::Commands => Request::bare("query-commands"),
            Verb::Schema => Request::bare("query-qmp-schema"),
            Verb::Quit => Request::bare("quit"),
        })
    }
}

impl SnapshotArgs {
    fn request(&self) -> Request {
        let arguments = control::SnapshotCreate {
            device: self.device.clone(),
            name: self.name.clone(),
            cow: self.cow.clone(),
            chunk_size: self.chunk_size,
            size: self.size,
            persistent: self.persistent.map(|way| control::Persistent::As(way.on_the_wire())),
            mode: mode(self.existing),
            skip_lockfs: set(self.skip_lockfs),
        };
        Request::new("snapshot-create", &arguments)
    }
}

impl ExportArgs {
    fn request(&self) -> Request {
        let addr = match self.fd {
            Some(fd) => {
                control::SocketAddress::Fd(control::FdSocketAddress { str: fd.to_string() })
            }
            // Without a descriptor there is one.
            None => control::SocketAddress::Unix(control::UnixSocketAddress {
                path: self.socket.clone().unwrap_or_default(),
            }),
        };
        let options = control::VhostUserBlkOptions {
            addr,
            num_queues: self.num_queues,
            logical_block_size: self.logical_block_size,
        };
        let arguments = control::BlockExportAdd {
            id: self.id.clone(),
            node_name: self.device.clone(),
            writable: set(self.writable),
            writethrough: None,
            fixed_iothread: None,
            options: control::BlockExportOptions::VhostUserBlk(options),
        };
        Request::new("block-export-add", &arguments)
    }
}

impl Persistent {
    fn on_the_wire(self) -> control::Persistence {
        match self {
            Persistent::P => control::Persistence::Persistent,
            Persistent::Po => control::Persistence::PersistentOverflow,
            Persistent::N => control::Persistence::Transient,
        }
    }
}

fn resize(device: &str, size: u64) -> Request {
    let device = Some(device.to_owned());
    Request::new("block_resize", &control::BlockResize { device, node_name: None, size })
}

fn threshold(device: &str, write_threshold: u64) -> Request {
    let node_name = device.to_owned();
    let arguments = control::BlockSetWriteThreshold { node_name, write_threshold };
    Request::new("block-set-write-threshold", &arguments)
}

/// A flag as an argument: omitted if it is not set.
pub(super) fn set(flag: bool) -> Option<bool> {
    flag.then_some(true)
}

/// How the file of a new store is created or opened.
fn mode(existing: bool) -> Option<control::NewImageMode> {
    existing.then_some(control::NewImageMode::Existing)
}

fn lines(table: &[String]) -> Result<Vec<String>, CtlError> {
    table_lines(table).map_err(|(path, source)| CtlError::TableFile { path, source })
}
