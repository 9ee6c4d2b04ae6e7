//! `ctl transaction`: snapshots of several disks in one line.

use snapblk_store::control::command as control;

use super::verb::{Request, set};

/// Arguments of `transaction`.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("actions").required(true).multiple(true))]
pub struct TransactionArgs {
    /// Snapshots, as DEVICE=NAME=FILE: the disk, the snapshot's name, the file that keeps what the
    /// disk overwrites
    #[arg(
        long, group = "actions", value_name = "DEVICE=NAME=FILE", value_parser = parts::<3>
    )]
    pub snapshot: Vec<[String; 3]>,
    /// Overlays, as DEVICE=FILE: the disk, the overlay's file
    #[arg(long, group = "actions", value_name = "DEVICE=FILE", value_parser = parts::<2>)]
    pub overlay: Vec<[String; 2]>,
    /// Do not ask the guests to freeze their file systems
    #[arg(long)]
    pub skip_lockfs: bool,
}

impl TransactionArgs {
    pub(super) fn request(&self) -> Request {
        let snapshots = self.snapshot.iter().cloned().map(|[device, name, cow]| {
            control::TransactionAction::SnapshotCreate(control::SnapshotCreate {
                device,
                name,
                cow,
                chunk_size: None,
                size: None,
                persistent: None,
                mode: None,
                skip_lockfs: set(self.skip_lockfs),
            })
        });
        let overlays = self.overlay.iter().cloned().map(|[device, snapshot_file]| {
            control::TransactionAction::BlockdevSnapshotSync(control::BlockdevSnapshotSync {
                device,
                snapshot_file,
                snapshot_node_name: None,
                mode: None,
                skip_lockfs: set(self.skip_lockfs),
            })
        });
        let actions = snapshots.chain(overlays).collect();
        Request::new("transaction", &control::Transaction { actions, properties: None })
    }
}

/// The parts of `A=B=…`; the last may contain a `=`.
fn parts<const N: usize>(text: &str) -> Result<[String; N], String> {
    let all: Vec<String> = text.splitn(N, '=').map(str::to_owned).collect();
    let whole = all.iter().all(|part| !part.is_empty());
    all.try_into().ok().filter(|_| whole).ok_or_else(|| {
        format!(
            "it must have {N} parts with '=' between them, as in {}",
            if N == 2 { "disk0=monday.cow" } else { "disk0=monday=monday.cow" }
        )
    })
}
