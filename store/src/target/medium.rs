//! A file that is not a store, in the form that tables use.
//!
//! Owns the state that all tables over the file share: whether its syncs can be relied on, who syncs it,
//! and whether guests' writes to it wait for room on its file system. Never knows which requests wait, nor
//! what makes room.

use std::fmt;
use std::time::Duration;

use crate::io::FileId;
use crate::io::room::Room;
use crate::rounds::Rounds;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Called when a file is full and writes wait for room. Workers call it, rarely: it must not block.
pub type OnFull = Box<dyn Fn() + Send + Sync>;

/// See the module's description. One object per file, however many tables name it.
pub struct Medium {
    /// Its name in actions.
    pub file: FileId,
    /// Its syncs, one at a time; none of a file in memory, whose syncs cannot fail.
    syncs: Option<Rounds>,
    sync_failed: AtomicBool,
    owes: AtomicBool,
    full: AtomicBool,
    room: Room,
    on_full: OnFull,
}

impl fmt::Debug for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Medium").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Medium {
    /// A medium that was just opened, with nobody to tell when it is full.
    pub fn new(file: FileId) -> Self {
        Medium::watched(file, true, Box::new(|| ()))
    }

    /// The same; `on_disk` says whether it can lose what was written, and so a sync of it fail;
    /// `on_full` is called when the file is full and writes wait for room.
    pub fn watched(file: FileId, on_disk: bool, on_full: OnFull) -> Self {
        let [sync_failed, owes, full] = [(); 3].map(|()| AtomicBool::new(false));
        let syncs = on_disk.then(Rounds::default);
        Medium { file, syncs, sync_failed, owes, full, room: Room::default(), on_full }
    }

    /// Its syncs, one at a time; none if everybody syncs it at any time, because that cannot fail.
    pub fn syncs(&self) -> Option<&Rounds> {
        self.syncs.as_ref()
    }

    /// A sync failed: earlier writes may be lost, so later syncs must not succeed. Sticky until
    /// the file is opened again.
    pub fn set_sync_failed(&self) {
        self.sync_failed.store(true, Ordering::Release);
    }

    /// Whether a sync failed.
    pub fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    /// A device wrote to it, and its table only reads it from now on: devices above flush it too,
    /// until it was synced.
    pub fn set_owing(&self, owes: bool) {
        self.owes.store(owes, Ordering::Release);
    }

    /// Whether it holds writes of a table that is gone, and was not synced since.
    pub fn is_owing(&self) -> bool {
        self.owes.load(Ordering::Acquire)
    }

    /// What finds no room below it waits for that, for as long as `patience`; for no time at all it
    /// fails at once, as it does from the start.
    pub fn set_patience(&self, patience: Duration) {
        self.room.set_patience(patience);
    }

    /// How long what needs room waits for it.
    pub fn patience(&self) -> Duration {
        self.room.patience()
    }

    /// Something found no room: true where it is to wait. Who ends the wait wakes the workers.
    pub fn wait_for_room(&self) -> bool {
        if !self.room.is_waited_for() {
            return false;
        }
        if !self.full.swap(true, Ordering::AcqRel) {
            (self.on_full)();
        }
        true
    }

    /// Whether what found no room waits.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// There is said to be room again: what waits goes on, and what finds none waits. The caller
    /// wakes the workers.
    pub fn go_on(&self) {
        self.room.set_promised(true);
        self.wait_anew();
    }

    /// A new table writes the file: what an earlier one found is forgotten, and the next write without room
    /// reports it again. The caller wakes the workers.
    pub fn forget_room(&self) {
        self.room.set_promised(false);
        self.wait_anew();
    }

    /// In this order: a write that may wait again sets the mark after it was cleared, and is reported.
    fn wait_anew(&self) {
        self.full.store(false, Ordering::Release);
        self.room.set_given_up(false);
    }

    /// Something that had waited found room, and was written.
    pub fn wrote(&self) {
        self.room.set_promised(false);
    }

    /// Whether nothing was written since there was said to be room again.
    pub fn is_promised_room(&self) -> bool {
        self.room.is_promised()
    }

    /// Nothing waits any longer: what finds no room fails, until there is some. The caller wakes
    /// the workers.
    pub fn give_up(&self) {
        self.room.set_given_up(true);
        self.full.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn what_finds_no_room_waits_while_somebody_is_patient_and_it_is_told_once() {
        let told = Arc::new(AtomicU32::new(0));
        let tells = told.clone();
        let on_full = move || {
            tells.fetch_add(1, Ordering::Relaxed);
        };
        let medium = Medium::watched(FileId(1), true, Box::new(on_full));
        assert!(!medium.wait_for_room() && !medium.is_full(), "nobody is patient");
        medium.set_patience(Duration::from_secs(1));
        assert!(medium.wait_for_room() && medium.wait_for_room() && medium.is_full());
        assert_eq!(told.load(Ordering::Relaxed), 1);
        medium.give_up();
        assert!(!medium.is_full() && !medium.wait_for_room());
        medium.go_on();
        assert!(medium.is_promised_room() && medium.wait_for_room());
        medium.wrote();
        assert!(!medium.is_promised_room());
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }
}
