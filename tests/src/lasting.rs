//! A front end that outlives its servers: when one is killed, it continues with the next, with its
//! memory, its rings and the inflight memory as they are, like QEMU.
//!
//! Owns one guest's memory, its rings and their requests, and the expected content of the disk:
//! each slot of a ring has its own block of the disk, so that the order of requests does not
//! matter. Keeps that each request ends once, with success, and with the right data.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::rng::Rng;

/// The time limit of a request in milliseconds, without a server's start.
const PATIENCE_MS: i32 = 20_000;
/// Descriptors of a ring, and its requests, which have three each.
const SIZE: u16 = 128;
const SLOTS: u16 = 40;
/// Bytes of a request, and of a slot's block.
const BLOCK: usize = 4096;
/// Bytes of memory for a ring and its requests, and the offsets of its parts.
const RING_SPACE: u64 = 1 << 20;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const STATUSES: u64 = 0x4000;
const DATA: u64 = 0x1_0000;
/// The address of the memory in the front end.
const USER_BASE: u64 = 0x7000_0000_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// VIRTIO_BLK_F_FLUSH, VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
const FEATURES: u64 = 1 << 9 | 1 << 32 | 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Read,
    Write(u64),
    Flush,
}

/// A slot: its request in flight, and the number that fills its block.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    asked: Option<Request>,
    holds: u64,
}

struct Ring {
    base: u64,
    available: u16,
    seen: u16,
    slots: Vec<Slot>,
    kick: EventFd,
    call: EventFd,
}

/// See the module's description.
pub struct Lasting {
    memory: GuestMemoryMmap,
    file: File,
    rings: Vec<Ring>,
    calls: Epoll,
    server: Option<Frontend>,
    inflight: Option<(VhostUserInflight, File)>,
    rng: Rng,
    written: u64,
    flushes: bool,
    /// Completed requests.
    pub ended: u64,
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an eventfd")
}

impl Lasting {
    /// A front end with `queues` rings, for a disk of zeroes.
    pub fn new(queues: u64, rng: Rng) -> Lasting {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        let size = queues * RING_SPACE;
        ftruncate(&file, size).expect("memory");
        let there = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
        let ranges = [(GuestAddress(0), size as usize, Some(there))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).expect("a mapping");
        let ring = |queue| Ring {
            base: queue * RING_SPACE,
            available: 0,
            seen: 0,
            slots: vec![Slot::default(); SLOTS.into()],
            kick: event(),
            call: event(),
        };
        let rings: Vec<Ring> = (0..queues).map(ring).collect();
        let calls = Epoll::new().expect("an epoll descriptor");
        for ring in &rings {
            let event = EpollEvent::new(EventSet::IN, 0);
            let added = calls.ctl(ControlOperation::Add, ring.call.as_raw_fd(), event);
            added.expect("an eventfd is watched");
        }
        let (server, inflight) = (None, None);
        Lasting {
            memory,
            file,
            rings,
            calls,
            server,
            inflight,
            rng,
            written: 0,
            flushes: true,
            ended: 0,
        }
    }

    /// The same with only reads and writes.
    pub fn without_flushes(mut self) -> Lasting {
        self.flushes = false;
        self
    }

    /// The size of the disk that it needs, in bytes.
    pub fn disk_len(&self) -> u64 {
        (self.rings.len() * usize::from(SLOTS) * BLOCK) as u64
    }

    /// Continues with the server at `socket`.
    pub fn connect(&mut self, socket: &Path) {
        let mut server = Frontend::connect(socket, self.rings.len() as u64).expect("a session");
        server.set_owner().expect("SET_OWNER");
        assert_eq!(server.get_features().expect("GET_FEATURES") & FEATURES, FEATURES);
        server.set_features(FEATURES).expect("SET_FEATURES");
        let protocol = Protocol::MQ | Protocol::INFLIGHT_SHMFD;
        assert!(server.get_protocol_features().expect("protocol features").contains(protocol));
        server.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
        let queues = self.rings.len() as u16;
        let (area, file) = self.inflight.get_or_insert_with(|| {
            let asked = VhostUserInflight::new(0, 0, queues, SIZE);
            server.get_inflight_fd(&asked).expect("GET_INFLIGHT_FD")
        });
        server.set_inflight_fd(area, file.as_raw_fd()).expect("SET_INFLIGHT_FD");
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: u64::from(queues) * RING_SPACE,
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        server.set_mem_table(&[region]).expect("SET_MEM_TABLE");
        for queue in 0..self.rings.len() {
            self.start(&mut server, queue);
        }
        self.server = Some(server);
    }

    fn start(&self, server: &mut Frontend, queue: usize) {
        let ring = &self.rings[queue];
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER_BASE + ring.base,
            used_ring_addr: USER_BASE + ring.base + USED,
            avail_ring_addr: USER_BASE + ring.base + AVAILABLE,
            log_addr: None,
        };
        server.set_vring_num(queue, SIZE).expect("SET_VRING_NUM");
        server.set_vring_addr(queue, &addresses).expect("SET_VRING_ADDR");
        // A dead server's position is unknown, except for its completions.
        server.set_vring_base(queue, self.used_index(queue)).expect("SET_VRING_BASE");
        server.set_vring_call(queue, &ring.call).expect("SET_VRING_CALL");
        server.set_vring_kick(queue, &ring.kick).expect("SET_VRING_KICK");
        server.set_vring_enable(queue, true).expect("SET_VRING_ENABLE");
    }

    fn used_index(&self, queue: usize) -> u16 {
        let at = GuestAddress(self.rings[queue].base + USED + 2);
        self.memory.load(at, Ordering::Acquire).expect("its memory")
    }

    /// The number of chains that the dead server recorded in flight.
    pub fn noted(&self) -> usize {
        let (area, file) = self.inflight.as_ref().expect("it was connected");
        let mut bytes = vec![0; area.mmap_size as usize];
        file.read_exact_at(&mut bytes, 0).expect("a memfd");
        let region = bytes.len() / self.rings.len();
        let marks = |region: &[u8]| region[16..].iter().step_by(16).filter(|b| **b != 0).count();
        bytes.chunks(region).map(marks).sum()
    }

    /// Requests that have not ended.
    pub fn in_flight(&self) -> usize {
        self.rings.iter().flat_map(|ring| &ring.slots).filter(|slot| slot.asked.is_some()).count()
    }

    /// Submits a request in every free slot.
    pub fn fill(&mut self) {
        for queue in 0..self.rings.len() {
            for slot in 0..SLOTS {
                if self.rings[queue].slots[usize::from(slot)].asked.is_none() {
                    let request = match self.rng.below(16) {
                        0 if self.flushes => Request::Flush,
                        0..8 => Request::Read,
                        _ => {
                            self.written += 1;
                            Request::Write(self.written)
                        }
                    };
                    self.ask(queue, slot, request);
                }
            }
            self.rings[queue].kick.write(1).expect("a kick");
        }
    }

    fn ask(&mut self, queue: usize, slot: u16, request: Request) {
        let (base, available) = (self.rings[queue].base, self.rings[queue].available);
        let (header, status) = (HEADERS + 16 * u64::from(slot), STATUSES + u64::from(slot));
        let data = DATA + u64::from(slot) * BLOCK as u64;
        let (kind, number, direction) = match request {
            Request::Read => (0u32, u64::MAX, WRITE),
            Request::Write(number) => (1, number, 0),
            Request::Flush => (4, 0, 0),
        };
        let block = queue as u64 * u64::from(SLOTS) + u64::from(slot);
        let sector = if request == Request::Flush { 0 } else { block * (BLOCK as u64 / 512) };
        self.put(base + header, kind);
        self.put(base + header + 8, sector);
        self.put(base + status, 0xffu8);
        let bytes = number.to_le_bytes().repeat(BLOCK / 8);
        self.memory.write_slice(&bytes, GuestAddress(base + data)).expect("its memory");
        let head = slot * 3;
        self.describe(base, head, header, 16, NEXT, head + 1);
        if request == Request::Flush {
            self.describe(base, head + 1, status, 1, WRITE, 0);
        } else {
            self.describe(base, head + 1, data, BLOCK as u32, NEXT | direction, head + 2);
            self.describe(base, head + 2, status, 1, WRITE, 0);
        }
        self.put(base + AVAILABLE + 4 + 2 * u64::from(available % SIZE), head);
        let available = available.wrapping_add(1);
        let at = GuestAddress(base + AVAILABLE + 2);
        self.memory.store(available, at, Ordering::Release).expect("its memory");
        self.rings[queue].available = available;
        self.rings[queue].slots[usize::from(slot)].asked = Some(request);
    }

    fn describe(&self, base: u64, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let entry = base + 16 * u64::from(index);
        self.put(entry, base + at);
        self.put(entry + 8, len);
        self.put(entry + 12, flags);
        self.put(entry + 14, next);
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).expect("its memory");
    }

    fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.read_obj(GuestAddress(at)).expect("its memory")
    }

    /// Takes completions; returns their number.
    pub fn reap(&mut self) -> usize {
        let mut ended = 0;
        for queue in 0..self.rings.len() {
            let used = self.used_index(queue);
            while self.rings[queue].seen != used {
                let Ring { base, seen, .. } = self.rings[queue];
                let head: u32 = self.get(base + USED + 4 + 8 * u64::from(seen % SIZE));
                self.rings[queue].seen = seen.wrapping_add(1);
                self.check(queue, head);
                ended += 1;
            }
        }
        self.ended += ended as u64;
        ended
    }

    fn check(&mut self, queue: usize, head: u32) {
        assert_eq!(head % 3, 0, "no request begins at descriptor {head}");
        let (base, at) = (self.rings[queue].base, head as usize / 3);
        let slot = &mut self.rings[queue].slots[at];
        let what = format!("slot {at} of queue {queue}");
        let request = slot.asked.take().unwrap_or_else(|| panic!("{what} ended twice"));
        if let Request::Write(number) = request {
            slot.holds = number;
        }
        let holds = slot.holds;
        assert_eq!(self.get::<u8>(base + STATUSES + at as u64), 0, "{what}: {request:?} failed");
        if request == Request::Read {
            let mut bytes = vec![0; BLOCK];
            let data = GuestAddress(base + DATA + (at * BLOCK) as u64);
            self.memory.read_slice(&mut bytes, data).expect("its memory");
            let right = bytes.chunks(8).all(|word| word == holds.to_le_bytes());
            assert!(right, "{what}: {:?}…, not write {holds}", &bytes[..8]);
        }
    }

    /// Waits for a completion, only by the server's interrupts.
    pub fn wait(&mut self) -> usize {
        loop {
            let ended = self.reap();
            if ended > 0 {
                return ended;
            }
            let called = self.calls.wait(PATIENCE_MS, &mut [EpollEvent::default()]).expect("epoll");
            assert!(called > 0, "no call for any of {} requests", self.in_flight());
            for ring in &self.rings {
                let _ = ring.call.read();
            }
        }
    }

    /// Waits until all requests have ended, and reads every block.
    pub fn finish(&mut self) {
        for round in 0..2 {
            while self.in_flight() > 0 {
                self.wait();
            }
            for queue in 0..self.rings.len() {
                for slot in (0..SLOTS).filter(|_| round == 0) {
                    self.ask(queue, slot, Request::Read);
                }
                self.rings[queue].kick.write(1).expect("a kick");
            }
        }
    }
}
