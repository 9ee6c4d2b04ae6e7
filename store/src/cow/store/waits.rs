//! What finds no room in a store, and waits for it.
//!
//! Owns the way from Valid to Full and back. Never knows who waits, nor how room is made.

use std::time::Duration;

use super::{Store, StoreEvent, StoreState};
use crate::sync::atomic::Ordering;

impl Store {
    /// What needs room in it waits for that, if it is full, for as long as `patience`; for no time
    /// at all it fails at once, as it does from the start.
    pub fn set_patience(&self, patience: Duration) {
        self.room.set_patience(patience);
    }

    /// How long what needs room waits for it.
    pub fn patience(&self) -> Duration {
        self.room.patience()
    }

    /// Something found no room: true where it is to wait. Who ends the wait wakes the workers.
    pub fn wait_for_room(&self) -> bool {
        self.waits(self.log.has_room())
    }

    /// The same of what has its place, and found none for it in the file system below.
    pub fn wait_for_room_below(&self) -> bool {
        self.waits(true)
    }

    fn waits(&self, below: bool) -> bool {
        if !self.room.is_waited_for() {
            return false;
        }
        let (valid, full) = (StoreState::Valid as u8, StoreState::Full as u8);
        match self.state.compare_exchange(valid, full, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                self.room.set_below(below);
                self.observer.store_event(&self.name, StoreEvent::Full);
                true
            }
            Err(now) => now == full,
        }
    }

    /// Whether it was the file system below it that had none.
    pub fn is_full_below(&self) -> bool {
        self.room.is_below()
    }

    /// There is said to be room again: what waits goes on. The caller wakes the workers.
    pub fn go_on(&self) {
        self.room.set_promised(true);
        self.room.set_given_up(false);
        self.no_longer_full();
    }

    /// Something found room, and was written.
    #[inline]
    pub fn wrote(&self) {
        if self.room.is_promised() {
            self.room.set_promised(false);
        }
    }

    /// Whether nothing was written since there was said to be room again.
    pub fn is_promised_room(&self) -> bool {
        self.room.is_promised()
    }

    /// Nothing waits any longer: what finds no room fails, until there is some. The caller wakes
    /// the workers.
    pub fn give_up(&self) {
        self.room.set_given_up(true);
        self.no_longer_full();
    }

    fn no_longer_full(&self) {
        let (valid, full) = (StoreState::Valid as u8, StoreState::Full as u8);
        // Otherwise it is worse than full by now, or was not full.
        let _ = self.state.compare_exchange(full, valid, Ordering::AcqRel, Ordering::Acquire);
    }
}
