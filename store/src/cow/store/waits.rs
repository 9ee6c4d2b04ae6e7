//! Waiting for room in a full store.
//!
//! Owns the transitions from Valid to Full and back. Never knows which requests wait, nor how room
//! is made.

use std::time::Duration;

use super::{Store, StoreEvent, StoreState};
use crate::sync::atomic::Ordering;
use crate::wake::WakeSet;

impl Store {
    /// Requests that need room in a full store wait for at most `patience`; with zero, the initial
    /// value, they fail at once.
    pub fn set_patience(&self, patience: Duration) {
        self.room.set_patience(patience);
    }

    /// How long requests wait for room.
    pub fn patience(&self) -> Duration {
        self.room.patience()
    }

    /// A request found no room: true if it must wait. The thread that ends the wait wakes the
    /// workers.
    pub fn wait_for_room(&self) -> bool {
        self.waits(self.log.has_room())
    }

    /// The same for a mapped chunk that found no room in the file system below.
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
                self.full_below.store(below, Ordering::Release);
                self.observer.store_event(&self.name, StoreEvent::Full);
                true
            }
            Err(now) => now == full,
        }
    }

    /// Whether the file system below had no room.
    pub fn is_full_below(&self) -> bool {
        self.full_below.load(Ordering::Acquire)
    }

    /// There should be room again: waiting requests continue.
    pub fn go_on(&self) -> WakeSet {
        self.room.set_promised(true);
        self.room.set_given_up(false);
        self.no_longer_full()
    }

    /// A request found room, and was written.
    #[inline]
    pub fn wrote(&self) {
        if self.room.is_promised() {
            self.room.set_promised(false);
        }
    }

    /// Whether nothing was written since there should be room again.
    pub fn is_promised_room(&self) -> bool {
        self.room.is_promised()
    }

    /// Requests wait no longer: those that find no room fail, until there is some.
    pub fn give_up(&self) -> WakeSet {
        self.room.set_given_up(true);
        self.no_longer_full()
    }

    fn no_longer_full(&self) -> WakeSet {
        let (valid, full) = (StoreState::Valid as u8, StoreState::Full as u8);
        // Otherwise its state is now worse than Full, or it was not full.
        let _ = self.state.compare_exchange(full, valid, Ordering::AcqRel, Ordering::Acquire);
        WakeSet::ALL
    }
}
