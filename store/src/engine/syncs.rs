//! Syncs of files that are not stores, one at a time for each file.
//!
//! Owns the syncs that this worker carries out for all who need one. Never knows who does. The system
//! tells of an error once, to one of the syncs that overlap; so a sync begins only when the one before
//! it has ended, whoever carried it out, and its failure is known to all. So a worker whose guest
//! holds it up holds up all whose flushes it leads; one that only reads leads none. Keeps I17.

use std::sync::Arc;

use super::core::Core;
use super::tag::Owner;
use crate::io::Errno;
use crate::rounds::{RoundEnd, Ticket, Turn};
use crate::target::{Medium, Synced};

impl Core {
    /// Whether a sync of `file` that began after this was asked first has ended, or one has failed.
    /// Takes a ticket if there is none, leads if no worker does.
    pub(super) fn has_synced(&mut self, file: &Synced, ticket: &mut Option<Ticket>) -> bool {
        let medium = &file.medium;
        let Some(syncs) = medium.syncs() else { return false };
        let bit = self.worker.bit();
        if file.has_failed() {
            return true;
        }
        match syncs.advance(ticket, bit) {
            Turn::Ended => true,
            Turn::Wait => false,
            Turn::Lead => {
                self.lead_sync(medium.clone());
                false
            }
        }
    }

    fn lead_sync(&mut self, medium: Arc<Medium>) {
        let file = medium.file;
        let index = self.syncs.insert(medium);
        self.act_sync(file, Owner::Sync(index));
    }

    /// A sync that this worker led has ended.
    pub(super) fn synced(&mut self, index: usize, result: Result<(), Errno>) {
        let medium = self.syncs.remove(index);
        // Before the round ends: whoever learns of its end must know how.
        if result.is_err() {
            medium.sync_failed();
        }
        let rounds = medium.syncs().expect("it was led");
        let RoundEnd { wake, lead } = rounds.end(result.is_ok() && !self.stopping);
        self.worker.all().wake(wake);
        self.freed = true;
        if lead.is_some() {
            self.lead_sync(medium);
        }
    }
}
