//! The commands that a handler carries out, with their arguments.
//!
//! Commands that the monitor answers by itself (version, commands, jobs) are not here, except for
//! [`job::JobCommand`](super::job::JobCommand). spec/interface.md "The monitor".

use serde::{Deserialize, Serialize};

use super::shape::{Described, Shape};
use crate::{choice, record, union};

/// A command with its arguments, checked for shape and nothing else.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `device-create`: a new device without a table.
    DeviceCreate(DeviceCreate),
    /// `device-remove`: the device goes, unless something uses it.
    DeviceRemove(DeviceRemove),
    /// `table-load`: constructs the inactive table; the live one serves on.
    TableLoad(TableLoad),
    /// `table-clear`: drops the inactive table.
    TableClear(DeviceName),
    /// `device-suspend`: requests are stopped, those in flight end or are held.
    DeviceSuspend(DeviceSuspend),
    /// `device-resume`: swaps the inactive table in, if there is one, and serves.
    DeviceResume(DeviceName),
    /// `device-message`: a target's own command; answers [`Answer::Message`](super::Answer).
    DeviceMessage(DeviceMessage),
    /// `query-devices`: answers [`Answer::Devices`](super::Answer).
    QueryDevices(QueryDevices),
    /// `snapshot-create`: a point in time of a live origin.
    SnapshotCreate(SnapshotCreate),
    /// `snapshot-merge`: rolls the origin back to the snapshot, as a job.
    SnapshotMerge(SnapshotMerge),
    /// `snapshot-delete`: drops a snapshot.
    SnapshotDelete(SnapshotDelete),
    /// `metadata-snapshot-reserve`: publishes a frozen view of a store's exception table.
    MetadataSnapshotReserve(MetadataSnapshot),
    /// `metadata-snapshot-release`: drops it.
    MetadataSnapshotRelease(MetadataSnapshot),
    /// `blockdev-snapshot-sync`: a new overlay on top of a device, live.
    BlockdevSnapshotSync(BlockdevSnapshotSync),
    /// `block-export-add`: serves a device on a socket.
    BlockExportAdd(BlockExportAdd),
    /// `block-export-del`: stops that.
    BlockExportDel(BlockExportDel),
    /// `query-block-exports`: answers [`Answer::Exports`](super::Answer).
    QueryBlockExports,
    /// `block_resize`: a device gets another size.
    BlockResize(BlockResize),
    /// `block-commit`: layers of a chain go down into the one below, as a job.
    BlockCommit(BlockCommit),
    /// `block-set-write-threshold`: an event once, when a store fills up to there.
    BlockSetWriteThreshold(BlockSetWriteThreshold),
    /// `transaction`: all of the actions at one moment, or none.
    Transaction(Transaction),
    /// `quit`: drain, commit, stop the process.
    Quit,
}

record! {
    /// No arguments, or no answer.
    #[derive(Default)]
    pub struct Nothing {}
}

record! {
    /// Names a device.
    pub struct DeviceName {
        /// The device.
        name: String,
    }
}

record! {
    /// Arguments of `device-create`.
    pub struct DeviceCreate {
        /// The device's name; not yet taken.
        name: String,
        /// An identity beside the name; the device has none where missing.
        uuid: Option<String>,
    }
}

record! {
    /// Arguments of `device-remove`.
    pub struct DeviceRemove {
        /// The device.
        name: String,
        /// Also where what it owes cannot be made durable; never where something uses it.
        force: Option<bool>,
    }
}

record! {
    /// Arguments of `table-load`.
    pub struct TableLoad {
        /// The device.
        name: String,
        /// The lines, as `dmsetup` reads them.
        table: Vec<String>,
        /// The device refuses writes under this table.
        read_only: Option<bool>,
    }
}

record! {
    /// Arguments of `device-suspend`.
    pub struct DeviceSuspend {
        /// The device.
        name: String,
        /// Requests in flight are held and replayed, not waited for.
        noflush: Option<bool>,
        /// The guest is not asked to freeze its file systems.
        skip_lockfs: Option<bool>,
    }
}

record! {
    /// Arguments of `device-message`.
    pub struct DeviceMessage {
        /// The device.
        name: String,
        /// A sector of the target that is meant; the first target where missing.
        sector: Option<u64>,
        /// What it is told.
        message: String,
    }
}

record! {
    /// Arguments of `query-devices`.
    pub struct QueryDevices {
        /// Only this one.
        name: Option<String>,
        /// The inactive tables instead of the live ones.
        inactive: Option<bool>,
    }
}

choice! {
    /// How a store keeps its exceptions: the `P`, `PO`, `N` of a table line.
    pub enum Persistence {
        /// On disk; a full store is invalid.
        Persistent = "P",
        /// On disk; a full store overflows: reads serve, writes fail until it grows.
        PersistentOverflow = "PO",
        /// In memory only.
        Transient = "N",
    }
}

/// `persistent` of a command: how a store keeps its exceptions, or only whether it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Persistent {
    /// In which way.
    As(Persistence),
    /// True: on disk, `PO`. False: in memory, `N`.
    Whether(bool),
}

impl Persistent {
    /// The way that is meant.
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
    /// What is done about the file of a new store (QEMU's `NewImageMode`).
    pub enum NewImageMode {
        /// The file is there and is taken as it is.
        Existing = "existing",
        /// The file is made; one that is there and not empty is refused.
        AbsolutePaths = "absolute-paths",
    }
}

record! {
    /// Arguments of `snapshot-create`.
    pub struct SnapshotCreate {
        /// The live origin.
        device: String,
        /// The name of the snapshot's device; not yet taken.
        name: String,
        /// Path of the store.
        cow: String,
        /// Bytes, a power of two; the default is the tools' own.
        chunk_size: Option<u64>,
        /// Length of the store in bytes; as much as can be needed where missing.
        size: Option<u64>,
        /// `PO` where missing.
        persistent: Option<Persistent>,
        /// `absolute-paths` where missing.
        mode: Option<NewImageMode>,
        /// The guest is not asked to freeze its file systems.
        skip_lockfs: Option<bool>,
    }
}

record! {
    /// Arguments of `snapshot-merge`.
    pub struct SnapshotMerge {
        /// The origin that is rolled back.
        device: String,
        /// The snapshot it goes back to; must not be exported.
        snapshot: String,
        /// The job's name.
        job_id: String,
        /// Bytes per second; 0 or missing is as fast as it goes.
        speed: Option<u64>,
        /// False: waits for `job-finalize` at the end.
        auto_finalize: Option<bool>,
        /// False: the concluded job waits for `job-dismiss`.
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
        /// The store's file goes too; it stays where missing.
        delete_store: Option<bool>,
    }
}

record! {
    /// Arguments of `metadata-snapshot-reserve` and `metadata-snapshot-release`.
    pub struct MetadataSnapshot {
        /// The snapshot's device.
        device: String,
    }
}

record! {
    /// Arguments of `blockdev-snapshot-sync`.
    pub struct BlockdevSnapshotSync {
        /// The device that gets the overlay.
        device: String,
        /// Path of the overlay's store.
        snapshot_file: String,
        /// The name under which the old table lives on; `<device>.N` where missing.
        snapshot_node_name: Option<String>,
        /// `absolute-paths` where missing.
        mode: Option<NewImageMode>,
        /// The guest is not asked to freeze its file systems.
        skip_lockfs: Option<bool>,
    }
}

union! {
    /// Where an export listens (QEMU's `SocketAddress`).
    pub enum SocketAddress by "type" {
        /// A UNIX socket, made there.
        Unix(UnixSocketAddress) = "unix",
        /// A listening socket that the process was started with.
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
        /// False where missing: the guest sees a read-only disk.
        writable: Option<bool>,
        ..
        /// How it is exported.
        options: BlockExportOptions,
    }
}

union! {
    /// How a device is exported.
    pub enum BlockExportOptions by "type" {
        /// As a vhost-user-blk device.
        VhostUserBlk(VhostUserBlkOptions) = "vhost-user-blk",
    }
}

record! {
    /// A vhost-user-blk export's own options.
    pub struct VhostUserBlkOptions {
        /// Where it listens.
        addr: SocketAddress,
        /// Virtqueues, at least 1; 1 where missing.
        num_queues: Option<u16>,
        /// Bytes, 512 or 4096; 512 where missing.
        logical_block_size: Option<u64>,
    }
}

choice! {
    /// What becomes of the front-end of an export that is removed.
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
        /// `safe` where missing.
        mode: Option<BlockExportRemoveMode>,
    }
}

record! {
    /// Arguments of `block_resize`; one of the two names.
    pub struct BlockResize {
        /// The device.
        device: Option<String>,
        /// The device.
        node_name: Option<String>,
        /// Bytes.
        size: u64,
    }
}

record! {
    /// Arguments of `block-commit`.
    pub struct BlockCommit {
        /// The job's name; the device's where missing.
        job_id: Option<String>,
        /// The device whose chain is meant.
        device: String,
        /// The layer that takes the data; the lowest where missing.
        base_node: Option<String>,
        /// The highest layer that goes; the active one where missing.
        top_node: Option<String>,
        /// Bytes per second; 0 or missing is as fast as it goes.
        speed: Option<u64>,
        /// False: waits for `job-finalize` at the end.
        auto_finalize: Option<bool>,
        /// False: the concluded job waits for `job-dismiss`.
        auto_dismiss: Option<bool>,
    }
}

record! {
    /// Arguments of `block-set-write-threshold`.
    pub struct BlockSetWriteThreshold {
        /// The device whose store is watched.
        node_name: String,
        /// Bytes of the store in use; 0 stops watching.
        write_threshold: u64,
    }
}

record! {
    /// Arguments of `transaction`.
    pub struct Transaction {
        /// What is done, at one moment.
        actions: Vec<TransactionAction>,
        /// How; as QEMU's where missing.
        properties: Option<TransactionProperties>,
    }
}

record! {
    /// How a transaction is carried out.
    pub struct TransactionProperties {
        /// What becomes of the jobs that its actions start.
        completion_mode: Option<ActionCompletionMode>,
    }
}

choice! {
    /// What jobs that a transaction starts have to do with each other.
    pub enum ActionCompletionMode {
        /// Nothing.
        Individual = "individual",
        /// All of them succeed or none does. No action that there is starts a job.
        Grouped = "grouped",
    }
}

union! {
    /// One action of a transaction.
    pub enum TransactionAction by "type" in "data" {
        /// Nothing is done at all: for tests of clients.
        Abort(Nothing) = "abort",
        /// As the command of that name.
        BlockdevSnapshotSync(BlockdevSnapshotSync) = "blockdev-snapshot-sync",
        /// As the command of that name.
        SnapshotCreate(SnapshotCreate) = "snapshot-create",
    }
}
