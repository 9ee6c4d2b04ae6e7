//! The one lock under which verbs change devices.
//!
//! Owns the lock's holder, and lets queries proceed while a verb holds the lock and waits for workers to
//! come to rest: on a disk that hangs, that takes until the deadline. Never knows what a verb does. Keeps:
//! such a verb lends the devices to queries, and changes nothing until it has them back; a query keeps
//! nothing that would hold a file open.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard};

use super::core::{Device, Inner};

/// All devices, by name.
pub(super) type ByName = BTreeMap<String, Device>;

const POISONED: &str = "devices lock poisoned";

/// See the module's description.
pub(super) struct Held {
    /// Never contended: its holder has waited for `door` to open before.
    inner: Mutex<Inner>,
    door: Mutex<Door>,
    /// The door was opened, the devices were lent, or a device came to rest.
    changed: Condvar,
}

#[derive(Default)]
struct Door {
    closed: bool,
    /// Present while the holder waits for workers.
    lent: Option<ByName>,
    /// How many times devices have come to rest.
    settled: u64,
}

/// The lock is held.
pub(super) struct Holding<'h> {
    /// None before the lock is held, and while it is released.
    inner: Option<MutexGuard<'h, Inner>>,
    held: &'h Held,
}

impl Deref for Holding<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        self.inner.as_deref().expect("it is held")
    }
}

impl DerefMut for Holding<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        self.inner.as_deref_mut().expect("it is held")
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        drop(self.inner.take());
        self.held.door().closed = false;
        self.held.changed.notify_all();
    }
}

impl Held {
    pub(super) fn new(inner: Inner) -> Held {
        Held { inner: Mutex::new(inner), door: Mutex::default(), changed: Condvar::new() }
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().expect(POISONED)
    }

    /// Waits for the lock.
    pub(super) fn take(&self) -> Holding<'_> {
        self.close(self.door())
    }

    fn close<'h>(&'h self, door: MutexGuard<'h, Door>) -> Holding<'h> {
        let mut door = self.changed.wait_while(door, |door| door.closed).expect(POISONED);
        door.closed = true;
        drop(door);
        // If the holder before panicked, this one panics too, and so does the next.
        let mut holding = Holding { inner: None, held: self };
        holding.inner = Some(self.inner.lock().expect(POISONED));
        holding
    }

    /// Releases the lock, and takes it again when devices have come to rest.
    pub(super) fn take_when_settled<'h>(&'h self, holding: Holding<'h>) -> Holding<'h> {
        // A device comes to rest under the lock only.
        let seen = self.door().settled;
        drop(holding);
        let door = self.changed.wait_while(self.door(), |door| door.settled == seen);
        self.close(door.expect(POISONED))
    }

    /// Devices have come to rest. The caller holds the lock.
    pub(super) fn settled(&self) {
        self.door().settled += 1;
        self.changed.notify_all();
    }

    /// Runs `waits` while the devices of `inner`, which this lock guards, are lent to queries.
    pub(super) fn lend<R>(&self, inner: &mut Inner, waits: impl FnOnce() -> R) -> R {
        self.door().lent = Some(std::mem::take(&mut inner.devices));
        self.changed.notify_all();
        let result = waits();
        inner.devices = self.door().lent.take().expect("it was lent");
        result
    }

    /// The result of `asks` for all devices as they are now.
    pub(super) fn ask<R>(&self, asks: impl FnOnce(&ByName) -> R) -> R {
        let has_to_wait = |door: &mut Door| door.closed && door.lent.is_none();
        let door = self.changed.wait_while(self.door(), has_to_wait).expect(POISONED);
        match &door.lent {
            Some(devices) => asks(devices),
            None => asks(&self.close(door).devices),
        }
    }
}
