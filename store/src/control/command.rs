//! The commands that a handler carries out, with their arguments.
//!
//! Commands that the monitor answers itself (version, commands, jobs) are not here, except for
//! [`job::JobCommand`](super::job::JobCommand).

use serde::{Deserialize, Serialize};

use super::shape::{Described, Shape};
use crate::{choice, record, union};

/// A command with its arguments, of which only the shape was checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `device-create`: a new device without a table.
    DeviceCreate(DeviceCreate),
    /// `device-remove`: removes an unused device.
    DeviceRemove(DeviceRemove),
    /// `table-load`: builds the inactive table; the live one continues to serve.
    TableLoad(TableLoad),
    /// `table-clear`: drops the inactive table.
    TableClear(DeviceName),
    /// `device-suspend`: stops requests; those in flight complete or are held.
    DeviceSuspend(DeviceSuspend),
    /// `device-resume`: swaps the inactive table in, if there is one, and serves.
    DeviceResume(DeviceResume),
    /// `device-message`: a target's own command; returns [`Answer::Message`](super::Answer).
    DeviceMessage(DeviceMessage),
    /// `query-devices`: returns [`Answer::Devices`](super::Answer).
    QueryDevices(QueryDevices),
    /// `snapshot-create`: a snapshot of a live origin.
    SnapshotCreate(SnapshotCreate),
    /// `snapshot-merge`: rolls the origin back to the snapshot, as a job.
    SnapshotMerge(SnapshotMerge),
    /// `snapshot-delete`: removes a snapshot.
    SnapshotDelete(SnapshotDelete),
    /// `blockdev-snapshot-sync`: a new overlay on top of a device, live.
    BlockdevSnapshotSync(BlockdevSnapshotSync),
    /// `block-export-add`: serves a device on a socket.
    BlockExportAdd(BlockExportAdd),
    /// `block-export-del`: removes an export.
    BlockExportDel(BlockExportDel),
    /// `query-block-exports`: returns [`Answer::Exports`](super::Answer).
    QueryBlockExports,
    /// `block_resize`: changes a device's size.
    BlockResize(BlockResize),
    /// `block-commit`: commits layers of a chain into a lower one, as a job.
    BlockCommit(BlockCommit),
    /// `block-set-write-threshold`: sends one event when the use of a store exceeds a threshold.
    BlockSetWriteThreshold(BlockSetWriteThreshold),
    /// `transaction`: carries out all actions at one moment, or none.
    Transaction(Transaction),
    /// `quit`: drains, commits and stops the process.
    Quit,
}

record! {
    /// No arguments, or no result.
    #[derive(Default)]
    pub struct Nothing {}
}

record! {
    /// The name of a device.
    pub struct DeviceName {
        /// The device.
        name: String,
    }
}

record! {
    /// Arguments of `device-create`.
    pub struct DeviceCreate {
        /// The device's name; must not exist.
        name: String,
        /// Its UUID; none if missing.
        uuid: Option<String>,
    }
}

record! {
    /// Arguments of `device-remove`.
    pub struct DeviceRemove {
        /// The device.
        name: String,
        /// Also if its owed chunks cannot be made durable; never if the device is used.
        force: Option<bool>,
    }
}

record! {
    /// Arguments of `table-load`.
    pub struct TableLoad {
        /// The device.
        name: String,
        /// The lines, in the format of `dmsetup`.
        table: Vec<String>,
        /// Whether the device refuses writes under this table.
        read_only: Option<bool>,
    }
}

record! {
    /// Arguments of `device-suspend`.
    pub struct DeviceSuspend {
        /// The device.
        name: String,
        /// Whether requests in flight are held and replayed instead of awaited.
        noflush: Option<bool>,
        /// Whether the guest is not asked to freeze its file systems.
        skip_lockfs: Option<bool>,
    }
}

record! {
    /// Arguments of `device-resume`.
    pub struct DeviceResume {
        /// The device.
        name: String,
        /// Whether the guest of a device that is not suspended is not asked to freeze its file systems
        /// before its table is swapped.
        skip_lockfs: Option<bool>,
    }
}

record! {
    /// Arguments of `device-message`.
    pub struct DeviceMessage {
        /// The device.
        name: String,
        /// A sector of the addressed target; the first target if missing.
        sector: Option<u64>,
        /// The message.
        message: String,
    }
}

record! {
    /// Arguments of `query-devices`.
    pub struct QueryDevices {
        /// Only this device.
        name: Option<String>,
        /// Whether to return the inactive tables instead of the live ones.
        inactive: Option<bool>,
    }
}

choice! {
    /// How a store keeps its exceptions: the `P`, `PO`, `N` of a table line.
    pub enum Persistence {
        /// On disk; a full store becomes invalid.
        Persistent = "P",
        /// On disk; a store that its own writes have filled overflows: reads succeed, and writes fail until
        /// it grows. Where an origin's write needs a copy, a full one becomes invalid.
        PersistentOverflow = "PO",
        /// In memory only.
        Transient = "N",
    }
}

/// `persistent` of a command: the kind of persistence, or only whether there is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Persistent {
    /// The kind.
    As(Persistence),
    /// True: on disk, `PO`. False: in memory, `N`.
    Whether(bool),
}

impl Persistent {
    /// The resulting kind.
    pub fn way(self) -> Persistence {
        match self {
            Persistent::As(way) => way,
            Persistent::Whether(true) => Persistence::PersistentOverflow,
            Persistent::Whether(false) => Persistence::Transient,
        }
    }
}

impl Described for Persistent {
    fn shape() -> Shape {
        Shape::Alternate { name: "Persistent", of: vec![Persistence::shape(), Shape::Bool] }
    }
}

choice! {
    /// What to do with the file of a new store (QEMU's `NewImageMode`).
    pub enum NewImageMode {
        /// The file exists and is used as it is.
        Existing = "existing",
        /// The file is created; an existing one must be empty.
        AbsolutePaths = "absolute-paths",
    }
}

record! {
    /// Arguments of `snapshot-create`.
    pub struct SnapshotCreate {
        /// The live origin.
        device: String,
        /// The name of the snapshot's device; must not exist.
        name: String,
        /// Path of the store.
        cow: String,
        /// Chunk size in bytes, a power of two; the default is that of the tools.
        chunk_size: Option<u64>,
        /// Length of the store in bytes; the greatest that can be needed if missing.
        size: Option<u64>,
        /// `PO` if missing.
        persistent: Option<Persistent>,
        /// `absolute-paths` if missing.
        mode: Option<NewImageMode>,
        /// Whether the guest is not asked to freeze its file systems.
        skip_lockfs: Option<bool>,
    }
}

record! {
    /// Arguments of `snapshot-merge`.
    pub struct SnapshotMerge {
        /// The origin to be rolled back.
        device: String,
        /// The snapshot; must not be exported.
        snapshot: String,
        /// The job's name.
        job_id: String,
        /// The limit in bytes per second; 0 or missing means none.
        speed: Option<u64>,
        /// If false, the job waits for `job-finalize` at the end.
        auto_finalize: Option<bool>,
        /// If false, the concluded job waits for `job-dismiss`.
        auto_dismiss: Option<bool>,
    }
}

record! {
    /// Arguments of `snapshot-delete`.
    pub struct SnapshotDelete {
        /// The origin.
        device: String,
        /// The snapshot's device.
        snapshot: String,
        /// Whether the store's file is deleted too; it stays if missing.
        delete_store: Option<bool>,
    }
}

record! {
    /// Arguments of `blockdev-snapshot-sync`.
    pub struct BlockdevSnapshotSync {
        /// The device that gets the overlay.
        device: String,
        /// Path of the overlay's store.
        snapshot_file: String,
        /// The name of the device with the old table; `<device>.N` if missing.
        snapshot_node_name: Option<String>,
        /// `absolute-paths` if missing.
        mode: Option<NewImageMode>,
        /// Whether the guest is not asked to freeze its file systems.
        skip_lockfs: Option<bool>,
    }
}

union! {
    /// The socket of an export (QEMU's `SocketAddress`).
    pub enum SocketAddress by "type" {
        /// A UNIX socket that is created there.
        Unix(UnixSocketAddress) = "unix",
        /// A listening socket that the process inherited.
        Fd(FdSocketAddress) = "fd",
    }
}

record! {
    /// A UNIX socket by its path.
    pub struct UnixSocketAddress {
        /// The path.
        path: String,
    }
}

record! {
    /// A socket by its descriptor.
    pub struct FdSocketAddress {
        /// The descriptor's number, in decimal.
        str: String,
    }
}

record! {
    /// Arguments of `block-export-add`.
    pub struct BlockExportAdd {
        /// The export's name.
        id: String,
        /// The device.
        node_name: String,
        /// If false or missing, the guest sees a read-only disk.
        writable: Option<bool>,
        /// QEMU's; must be false: a guest turns its write cache off itself.
        writethrough: Option<bool>,
        /// QEMU's; must be false: there are no I/O threads to choose from.
        fixed_iothread: Option<bool>,
        ..
        /// The kind of the export, with its options.
        options: BlockExportOptions,
    }
}

union! {
    /// The kind of an export, with its options.
    pub enum BlockExportOptions by "type" {
        /// As a vhost-user-blk device.
        VhostUserBlk(VhostUserBlkOptions) = "vhost-user-blk",
    }
}

record! {
    /// The options of a vhost-user-blk export.
    pub struct VhostUserBlkOptions {
        /// Its socket.
        addr: SocketAddress,
        /// Virtqueues, at least 1; 1 if missing.
        num_queues: Option<u16>,
        /// Logical block in bytes, 512 or 4096; 512 if missing.
        logical_block_size: Option<u64>,
    }
}

choice! {
    /// How a connected front-end affects the removal of an export.
    pub enum BlockExportRemoveMode {
        /// The export stays while one is connected.
        Safe = "safe",
        /// It is disconnected.
        Hard = "hard",
    }
}

record! {
    /// Arguments of `block-export-del`.
    pub struct BlockExportDel {
        /// The export.
        id: String,
        /// `safe` if missing.
        mode: Option<BlockExportRemoveMode>,
    }
}

record! {
    /// Arguments of `block_resize`; exactly one of the two names is needed.
    pub struct BlockResize {
        /// The device.
        device: Option<String>,
        /// The device.
        node_name: Option<String>,
        /// The new size in bytes.
        size: u64,
    }
}

record! {
    /// Arguments of `block-commit`.
    pub struct BlockCommit {
        /// The job's name; the device's if missing.
        job_id: Option<String>,
        /// The device with the chain.
        device: String,
        /// The layer that receives the data; the lowest if missing.
        base_node: Option<String>,
        /// The highest layer that is committed; the active one if missing.
        top_node: Option<String>,
        /// The limit in bytes per second; 0 or missing means none.
        speed: Option<u64>,
        /// `report` if missing.
        on_error: Option<BlockdevOnError>,
        /// If false, the job waits for `job-finalize` at the end.
        auto_finalize: Option<bool>,
        /// If false, the concluded job waits for `job-dismiss`.
        auto_dismiss: Option<bool>,
    }
}

choice! {
    /// What a failed I/O means for its job: of QEMU's values the one that jobs here know.
    pub enum BlockdevOnError {
        /// The job fails.
        Report = "report",
    }
}

record! {
    /// Arguments of `block-set-write-threshold`.
    pub struct BlockSetWriteThreshold {
        /// The device with the store.
        node_name: String,
        /// The threshold for bytes of the store in use; 0 removes it.
        write_threshold: u64,
    }
}

record! {
    /// Arguments of `transaction`.
    pub struct Transaction {
        /// The actions, carried out at one moment.
        actions: Vec<TransactionAction>,
        /// The properties; QEMU's defaults if missing.
        properties: Option<TransactionProperties>,
    }
}

record! {
    /// The properties of a transaction.
    pub struct TransactionProperties {
        /// How the jobs of its actions are related.
        completion_mode: Option<ActionCompletionMode>,
    }
}

choice! {
    /// The relation between the jobs of a transaction.
    pub enum ActionCompletionMode {
        /// They are independent.
        Individual = "individual",
        /// All of them succeed or none does. No present action starts a job.
        Grouped = "grouped",
    }
}

union! {
    /// One action of a transaction.
    pub enum TransactionAction by "type" in "data" {
        /// Aborts the whole transaction: for tests of clients.
        Abort(Nothing) = "abort",
        /// Like the command of this name.
        BlockdevSnapshotSync(BlockdevSnapshotSync) = "blockdev-snapshot-sync",
        /// Like the command of this name.
        SnapshotCreate(SnapshotCreate) = "snapshot-create",
    }
}
