//! The guest's side of a ring, as simple as possible.

use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::PATIENCE;
use crate::memory::{GuestMemory, Region};
use crate::vring::VringSetup;
use crate::worker::{new_eventfd, signal};

/// Memory of the test's guest: 1 MiB per ring.
pub(crate) const MEMORY_SIZE: u64 = 4 << 20;
/// Its address in the test's front-end.
pub(crate) const USER_BASE: u64 = 0x7000_0000_0000;

const RING_SPACE: u64 = 1 << 20;
/// Descriptors of a ring.
pub(crate) const SIZE: u16 = 128;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x6000;
const HEADERS: u64 = 0x8000;
const STATUSES: u64 = 0xa000;
const DATA: u64 = 0x1_0000;
const DATA_LEN: u64 = 0x4000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Memory that both sides map: the descriptor for the device, and the guest's own view.
pub(crate) fn shared_memory() -> (OwnedFd, GuestMemory) {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, MEMORY_SIZE).unwrap();
    let region = Region { guest: 0, size: MEMORY_SIZE, user: USER_BASE, file_offset: 0 };
    let memory = GuestMemory::default().with_region(region, file.try_clone().unwrap()).unwrap();
    (file, memory)
}

/// One ring.
pub(crate) struct Driver {
    pub memory: GuestMemory,
    base: u64,
    available: u16,
    seen: u16,
    pub event_idx: bool,
    pub kick: OwnedFd,
    pub call: OwnedFd,
}

impl Driver {
    pub(crate) fn new(memory: &GuestMemory, queue: u64, event_idx: bool) -> Driver {
        Driver {
            memory: memory.clone(),
            base: queue * RING_SPACE + 0x1000,
            available: 0,
            seen: 0,
            event_idx,
            kick: new_eventfd().unwrap(),
            call: new_eventfd().unwrap(),
        }
    }

    pub(crate) fn setup(&self, base: u16) -> VringSetup {
        VringSetup {
            size: SIZE,
            descriptor: USER_BASE + self.base,
            available: USER_BASE + self.base + AVAILABLE,
            used: USER_BASE + self.base + USED,
            base,
            event_idx: self.event_idx,
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.map().write_obj(value, GuestAddress(self.base + at)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.map().read_obj(GuestAddress(self.base + at)).unwrap()
    }

    pub(crate) fn descriptor(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let entry = u64::from(index) * 16;
        self.put(entry, self.base + at);
        self.put(entry + 8, len);
        self.put(entry + 12, flags);
        self.put(entry + 14, next);
    }

    /// Makes a chain available, without a kick.
    pub(crate) fn publish(&mut self, head: u16) {
        self.list(head);
        self.show();
    }

    /// Puts a chain on the ring; [`Driver::show`] makes it visible.
    fn list(&mut self, head: u16) {
        self.put(AVAILABLE + 4 + u64::from(self.available % SIZE) * 2, head);
        self.available = self.available.wrapping_add(1);
    }

    /// Makes all chains on the ring available at once, without a kick.
    pub(crate) fn show(&self) {
        fence(Ordering::SeqCst);
        self.put(AVAILABLE + 2, self.available);
    }

    /// Claims that there are more chains than descriptors, as no correct driver does.
    pub(crate) fn claim_too_many(&self) {
        fence(Ordering::SeqCst);
        self.put(AVAILABLE + 2, self.available.wrapping_add(SIZE + 1));
    }

    /// Makes a request available, without a kick; `slot` (0 to 20) identifies it.
    pub(crate) fn ask(&mut self, slot: u16, kind: u32, sector: u64, data: &[u8]) {
        self.prepare(slot, kind, sector, data);
        self.show();
    }

    /// The same, invisible until [`Driver::show`].
    pub(crate) fn prepare(&mut self, slot: u16, kind: u32, sector: u64, data: &[u8]) {
        let head = slot * 3;
        let header = HEADERS + u64::from(slot) * 33;
        self.put(header, kind);
        self.put(header + 8, sector);
        self.put(STATUSES + u64::from(slot), 0xffu8);
        let to_guest = matches!(kind, 0 | 8);
        let at = GuestAddress(self.base + self.data_at(slot));
        self.memory.write(at, data).unwrap();
        let direction = if to_guest { WRITE } else { 0 };
        let (last, len) = (head + 2, data.len() as u32);
        if data.is_empty() {
            self.descriptor(head, header, 16, NEXT, last);
        } else {
            self.descriptor(head, header, 16, NEXT, head + 1);
            self.descriptor(head + 1, self.data_at(slot), len, NEXT | direction, last);
        }
        self.descriptor(last, STATUSES + u64::from(slot), 1, WRITE, 0);
        self.list(head);
    }

    fn data_at(&self, slot: u16) -> u64 {
        DATA + u64::from(slot) * DATA_LEN
    }

    pub(crate) fn data(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let at = GuestAddress(self.base + self.data_at(slot));
        self.memory.read(at, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn status(&self, slot: u16) -> u8 {
        self.get(STATUSES + u64::from(slot))
    }

    pub(crate) fn kick(&self) {
        signal(&self.kick);
    }

    /// Kicks if the device asked for that since the chains from `since` on were made visible
    /// (virtio 1.2, 2.7.10).
    pub(crate) fn kick_if_asked(&self, since: u16) {
        if self.is_asked_to_kick(since) {
            self.kick();
        }
    }

    /// Whether the device wants a kick for chains that were made available since `since`.
    pub(crate) fn is_asked_to_kick(&self, since: u16) -> bool {
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event: u16 = self.get(USED + 4 + u64::from(SIZE) * 8);
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(since)
        } else {
            self.get::<u16>(USED) & 1 == 0
        }
    }

    /// Chains made available so far.
    pub(crate) fn available(&self) -> u16 {
        self.available
    }

    /// The next completed chain: its head, and the number of written bytes.
    pub(crate) fn next_used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self.get(USED + 2);
        fence(Ordering::SeqCst);
        if index == self.seen {
            return None;
        }
        let entry = USED + 4 + u64::from(self.seen % SIZE) * 8;
        self.seen = self.seen.wrapping_add(1);
        Some((self.get(entry), self.get(entry + 4)))
    }

    /// Waits for the next completed chain, by the interrupt.
    pub(crate) fn await_used(&mut self) -> (u32, u32) {
        loop {
            if self.event_idx {
                self.put(AVAILABLE + 4 + u64::from(SIZE) * 2, self.seen);
                fence(Ordering::SeqCst);
            }
            if let Some(used) = self.next_used() {
                return used;
            }
            let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
            let limit = Timespec::try_from(PATIENCE).unwrap();
            let ready = poll(&mut fds, Some(&limit)).unwrap();
            assert_eq!(ready, 1, "no interrupt for a request");
            let _ = rustix::io::read(&self.call, &mut [0; 8]);
        }
    }

    /// The same by polling; requests no interrupt.
    pub(crate) fn spin_for_used(&mut self) -> (u32, u32) {
        let far = self.seen.wrapping_add(1 << 15);
        self.put(AVAILABLE + 4 + u64::from(SIZE) * 2, far);
        fence(Ordering::SeqCst);
        let begin = std::time::Instant::now();
        loop {
            if let Some(used) = self.next_used() {
                return used;
            }
            assert!(begin.elapsed() < PATIENCE, "a request does not end");
            std::thread::yield_now();
        }
    }

    /// One request from beginning to end: its status, and its data afterwards.
    pub(crate) fn run(&mut self, kind: u32, sector: u64, data: &[u8]) -> (u8, Vec<u8>) {
        self.ask(0, kind, sector, data);
        self.kick();
        assert_eq!(self.await_used().0, 0);
        (self.status(0), self.data(0, data.len()))
    }

    /// Forgets the ring's content, like a guest that sets the device up again.
    pub(crate) fn restart(&mut self) {
        let clean = vec![0; 0x8000];
        self.memory.write(GuestAddress(self.base), &clean).unwrap();
        self.available = 0;
        self.seen = 0;
    }
}
