//! `snapshot-merge`: a rollback as a job.

use std::sync::Arc;

use snapblk_store::control::CommandError;
use snapblk_store::control::answer::Answer;
use snapblk_store::control::command::SnapshotMerge;

use super::Server;

impl Server {
    pub(super) fn start_merge(self: &Arc<Self>, c: SnapshotMerge) -> Result<Answer, CommandError> {
        let _ = c;
        Err(CommandError::command_not_found("merging is not wired yet"))
    }
}
