//! `transaction`, and the commands that are a transaction of one action.
//!
//! Owns the translation of their arguments. Never knows how a moment is taken.

use std::path::PathBuf;

use snapblk_store::control::CommandError;
use snapblk_store::control::answer::Answer;
use snapblk_store::control::command::{
    ActionCompletionMode, NewImageMode, Persistence, Persistent, Transaction, TransactionAction,
};
use snapblk_store::cow;
use snapblk_store::device::{CreateSnapshot, MomentAction, OverlaySnapshot};
use snapblk_store::units::{ChunkSize, SECTOR_SIZE};

use super::Server;
use super::commands::done;

impl Server {
    pub(super) fn transaction(&self, c: Transaction) -> Result<Answer, CommandError> {
        let mode = c.properties.and_then(|properties| properties.completion_mode);
        if mode == Some(ActionCompletionMode::Grouped) && !c.actions.is_empty() {
            return Err(CommandError::generic(
                "the completion mode 'grouped' is for actions that start jobs, and none of these \
                 does; leave it out",
            ));
        }
        self.transact(c.actions)
    }

    /// Carries out `actions` at one moment, or none of them, with the guests frozen meanwhile whose
    /// agents are known.
    pub(super) fn transact(&self, actions: Vec<TransactionAction>) -> Result<Answer, CommandError> {
        let lockfs: Vec<bool> = actions.iter().map(|action| !skips_lockfs(action)).collect();
        let actions: Vec<MomentAction> =
            actions.into_iter().map(planned).collect::<Result<_, CommandError>>()?;
        self.devices.flush_ahead(actions.iter().filter_map(MomentAction::device));
        let frozen = actions.iter().zip(lockfs).filter(|(_, lockfs)| *lockfs);
        let still = self.freeze(frozen.filter_map(|(action, _)| action.device()))?;
        done(self.devices.take_moment(&actions, &|| still.confirm_still_frozen()))
    }
}

fn skips_lockfs(action: &TransactionAction) -> bool {
    let skip = match action {
        TransactionAction::Abort(_) => return true,
        TransactionAction::SnapshotCreate(c) => c.skip_lockfs,
        TransactionAction::BlockdevSnapshotSync(c) => c.skip_lockfs,
    };
    skip.unwrap_or(false)
}

fn planned(action: TransactionAction) -> Result<MomentAction, CommandError> {
    Ok(match action {
        TransactionAction::Abort(_) => MomentAction::Abort,
        TransactionAction::SnapshotCreate(c) => MomentAction::Create(CreateSnapshot {
            device: c.device,
            name: c.name,
            cow: PathBuf::from(c.cow),
            chunk: c.chunk_size.map(chunk_of_bytes).transpose()?,
            size: c.size,
            persistence: match c.persistent.map(Persistent::way) {
                None | Some(Persistence::PersistentOverflow) => {
                    cow::Persistence::PersistentOverflow
                }
                Some(Persistence::Persistent) => cow::Persistence::Persistent,
                Some(Persistence::Transient) => cow::Persistence::Transient,
            },
            existing: c.mode == Some(NewImageMode::Existing),
        }),
        TransactionAction::BlockdevSnapshotSync(c) => MomentAction::Overlay(OverlaySnapshot {
            device: c.device,
            cow: PathBuf::from(c.snapshot_file),
            below: c.snapshot_node_name,
            existing: c.mode == Some(NewImageMode::Existing),
        }),
    })
}

fn chunk_of_bytes(bytes: u64) -> Result<ChunkSize, CommandError> {
    u32::try_from(bytes / SECTOR_SIZE)
        .ok()
        .filter(|_| bytes.is_multiple_of(SECTOR_SIZE))
        .and_then(ChunkSize::from_sectors)
        .ok_or_else(|| {
            CommandError::generic(format!(
                "a chunk of {bytes} bytes is not possible: use a power of two from 512 to 1 GiB"
            ))
        })
}
