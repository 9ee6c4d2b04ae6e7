//! A file that is not a store, in the form that tables use.
//!
//! Owns the state that all tables over the file share: how many of its syncs failed, who syncs it, and
//! whether guests' writes to it wait for room on its file system; and for each table, which of these
//! failures its flushes no longer report. Never knows which requests wait, nor what makes room.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::io::FileId;
use crate::io::room::Room;
use crate::rounds::Rounds;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::wake::WakeSet;

/// Called when a file is full and writes wait for room. Workers call it, rarely: it must not block.
pub type OnFull = Box<dyn Fn() + Send + Sync>;

/// See the module's description. One object per file, however many tables name it.
pub struct Medium {
    /// Its name in actions.
    pub file: FileId,
    /// Its syncs, one at a time; none of a file in memory, whose syncs cannot fail.
    syncs: Option<Rounds>,
    failed_syncs: AtomicU64,
    left_unsynced: AtomicBool,
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
        let [left_unsynced, full] = [(); 2].map(|()| AtomicBool::new(false));
        let (syncs, failed_syncs) = (on_disk.then(Rounds::default), AtomicU64::new(0));
        Medium { file, syncs, failed_syncs, left_unsynced, full, room: Room::default(), on_full }
    }

    /// Its syncs, one at a time; none if everybody syncs it at any time, because that cannot fail.
    pub fn syncs(&self) -> Option<&Rounds> {
        self.syncs.as_ref()
    }

    /// A sync failed: earlier writes may be lost, so no later flush of theirs may succeed.
    pub fn sync_failed(&self) {
        self.failed_syncs.fetch_add(1, Ordering::AcqRel);
    }

    /// How many syncs failed.
    pub fn failed_syncs(&self) -> u64 {
        self.failed_syncs.load(Ordering::Acquire)
    }

    /// A device wrote to it, and its table only reads it from now on: devices above flush it too,
    /// until it was synced.
    pub fn set_left_unsynced(&self, left: bool) {
        self.left_unsynced.store(left, Ordering::Release);
    }

    /// Whether it holds writes of a table that is gone, and was not synced since.
    pub fn is_left_unsynced(&self) -> bool {
        self.left_unsynced.load(Ordering::Acquire)
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

    /// There is said to be room again: what waits goes on, and what finds none waits.
    pub fn go_on(&self) -> WakeSet {
        self.room.set_promised(true);
        self.wait_anew()
    }

    /// A new table writes the file: what an earlier one found is forgotten, and the next write without room
    /// reports it again.
    pub fn forget_room(&self) -> WakeSet {
        self.room.set_promised(false);
        self.wait_anew()
    }

    /// In this order: a write that may wait again sets the mark after it was cleared, and is reported.
    fn wait_anew(&self) -> WakeSet {
        self.full.store(false, Ordering::Release);
        self.room.set_given_up(false);
        WakeSet::ALL
    }

    /// Something that had waited found room, and was written.
    pub fn wrote(&self) {
        self.room.set_promised(false);
    }

    /// Whether nothing was written since there was said to be room again.
    pub fn is_promised_room(&self) -> bool {
        self.room.is_promised()
    }

    /// Nothing waits any longer: what finds no room fails, until there is some.
    pub fn give_up(&self) -> WakeSet {
        self.room.set_given_up(true);
        self.full.store(false, Ordering::Release);
        WakeSet::ALL
    }
}

/// A medium as one table, or one batch of a merge, has it synced: a sync that failed fails all later
/// ones, until the file is opened again ([`Synced::open_again`]).
#[derive(Debug)]
pub struct Synced {
    /// The medium.
    pub medium: Arc<Medium>,
    /// How many of its syncs had failed when the file was opened.
    before: AtomicU64,
    /// How many had when a guest was last told that a flush failed.
    told: AtomicU64,
}

impl Synced {
    /// The medium as it is opened now: nothing was written yet that a failed sync could have lost.
    pub fn new(medium: Arc<Medium>) -> Self {
        let failed = medium.failed_syncs();
        Synced { medium, before: AtomicU64::new(failed), told: AtomicU64::new(failed) }
    }

    /// How many syncs have failed, if one has since it was opened.
    pub fn failures(&self) -> Option<u64> {
        let failed = self.medium.failed_syncs();
        (failed != self.before.load(Ordering::Acquire)).then_some(failed)
    }

    /// Whether a sync failed since it was opened.
    pub fn has_failed(&self) -> bool {
        self.failures().is_some()
    }

    /// A guest is told that what it wrote may be lost, because of these `failures`. Of one that comes
    /// meanwhile it is not told.
    pub fn tell(&self, failures: u64) {
        self.told.fetch_max(failures, Ordering::AcqRel);
    }

    /// It takes the place of `old` in another table of the same device: what was written by way of that
    /// can still be lost.
    pub fn take_over(&self, old: &Synced) {
        self.before.store(old.before.load(Ordering::Acquire), Ordering::Release);
        self.told.store(old.told.load(Ordering::Acquire), Ordering::Release);
    }

    /// The file is opened again, while nothing is in flight: flushes succeed again, unless a sync failed
    /// and no guest was told.
    pub fn open_again(&self) {
        self.before.store(self.told.load(Ordering::Acquire), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_failure_that_no_guest_was_told_of_outlives_the_opening() {
        let medium = Arc::new(Medium::new(FileId(1)));
        let synced = Synced::new(medium.clone());
        assert!(!synced.has_failed());
        medium.sync_failed();
        synced.open_again();
        assert!(synced.has_failed());
        assert!(!Synced::new(medium.clone()).has_failed(), "nothing was written by way of it");
        synced.tell(synced.failures().unwrap());
        assert!(synced.has_failed(), "until it is opened again");
        let next = Synced::new(medium.clone());
        next.take_over(&synced);
        assert!(next.has_failed());
        next.open_again();
        assert!(!next.has_failed());
        medium.sync_failed();
        let failures = next.failures().unwrap();
        medium.sync_failed();
        next.tell(failures);
        next.open_again();
        assert!(next.has_failed(), "the guest was told of the first alone");
    }

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
        assert_eq!(medium.give_up(), WakeSet::ALL);
        assert!(!medium.is_full() && !medium.wait_for_room());
        assert_eq!(medium.go_on(), WakeSet::ALL);
        assert!(medium.is_promised_room() && medium.wait_for_room());
        medium.wrote();
        assert!(!medium.is_promised_room());
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }
}
