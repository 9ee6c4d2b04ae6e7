//! The transfers of one executor: those in flight, and those free for reuse.
//!
//! Owns their memory. Never knows what they transfer. Keeps: once there are as many as were ever
//! in flight at once, and one of them has reached the greatest length, nothing is allocated,
//! whichever of them carries which action; the pieces of a transfer in flight do not move.

use std::ops::{Index, IndexMut};

use super::Action;
use super::transfer::Transfer;

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    all: Vec<Transfer>,
    /// Places in `all` that are free.
    free: Vec<u32>,
    /// Pieces that each free transfer has room for: as many as any has had.
    room: usize,
}

impl Transfers {
    /// A transfer for `action`, and its place; if none is free, the number of transfers is doubled.
    pub(crate) fn take(&mut self, action: Action) -> u32 {
        if self.free.is_empty() {
            let first = self.all.len();
            let more = first.max(1);
            self.all.extend((0..more).map(|_| Transfer::new(action, self.room)));
            self.free.reserve(self.all.len());
            self.free.extend((first as u32..(first + more) as u32).rev());
        }
        let slot = self.free.pop().expect("there are some now");
        self.all[slot as usize].reset(action);
        slot
    }

    /// Takes back the transfer in this place, of which nothing is in flight any more.
    ///
    /// If it has grown, all free ones grow with it, and the others when they come back; otherwise
    /// each would grow during some later batch.
    pub(crate) fn give_back(&mut self, slot: u32) {
        let room = self.all[slot as usize].room();
        self.free.push(slot);
        if room > self.room {
            self.room = room;
            for free in &self.free {
                self.all[*free as usize].reserve(room);
            }
        } else if room < self.room {
            self.all[slot as usize].reserve(self.room);
        }
    }
}

impl Index<u32> for Transfers {
    type Output = Transfer;

    fn index(&self, slot: u32) -> &Transfer {
        &self.all[slot as usize]
    }
}

impl IndexMut<u32> for Transfers {
    fn index_mut(&mut self, slot: u32) -> &mut Transfer {
        &mut self.all[slot as usize]
    }
}

#[cfg(test)]
mod tests;
