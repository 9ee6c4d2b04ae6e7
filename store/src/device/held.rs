//! The one lock under which verbs change devices.
//!
//! Owns who has it, and that nobody who asks how devices are waits while a verb waits with the lock for
//! workers to come to rest, which a disk that hangs makes as long as its deadline. Never knows what a
//! verb does. Keeps: such a verb lends the devices to who asks, and changes nothing until it has them
//! back; who asks leaves nothing behind that would keep a file open.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard};

use super::core::{Device, Inner};

/// All devices, by name.
pub(super) type ByName = BTreeMap<String, Device>;

const POISONED: &str = "devices lock poisoned";

/// See the module's description.
pub(super) struct Held {
    /// Never waited for: who takes it has waited for `door` to open.
    inner: Mutex<Inner>,
    door: Mutex<Door>,
    /// The door is open, something is lent, or something came to rest.
    changed: Condvar,
}

#[derive(Default)]
struct Door {
    closed: bool,
    /// While who has closed the door waits for workers.
    lent: Option<ByName>,
    /// How many times devices came to rest.
    settled: u64,
}

/// The lock is held.
pub(super) struct Holding<'h> {
    /// None before it is held, and while it is let go of.
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
        // Who had it before may have left by a panic: then this one does, too, and so does the next.
        let mut holding = Holding { inner: None, held: self };
        holding.inner = Some(self.inner.lock().expect(POISONED));
        holding
    }

    /// Lets go of it, and takes it again when devices came to rest.
    pub(super) fn take_when_settled<'h>(&'h self, holding: Holding<'h>) -> Holding<'h> {
        // Whoever comes to rest says so with the lock.
        let seen = self.door().settled;
        drop(holding);
        let door = self.changed.wait_while(self.door(), |door| door.settled == seen);
        self.close(door.expect(POISONED))
    }

    /// Devices came to rest: said with the lock.
    pub(super) fn settled(&self) {
        self.door().settled += 1;
        self.changed.notify_all();
    }

    /// Carries `waits` out while the devices of `inner`, which is under this lock, are lent to who asks.
    pub(super) fn lend<R>(&self, inner: &mut Inner, waits: impl FnOnce() -> R) -> R {
        self.door().lent = Some(std::mem::take(&mut inner.devices));
        self.changed.notify_all();
        let result = waits();
        inner.devices = self.door().lent.take().expect("it was lent");
        result
    }

    /// What `asks` makes of all devices, as they are now.
    pub(super) fn ask<R>(&self, asks: impl FnOnce(&ByName) -> R) -> R {
        let has_to_wait = |door: &mut Door| door.closed && door.lent.is_none();
        let door = self.changed.wait_while(self.door(), has_to_wait).expect(POISONED);
        match &door.lent {
            Some(devices) => asks(devices),
            None => asks(&self.close(door).devices),
        }
    }
}
