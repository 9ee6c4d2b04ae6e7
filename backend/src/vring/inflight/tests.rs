use super::*;
use crate::memory::fuse;
use crate::vring::{MAX_QUEUE_SIZE, Vring, VringSetup};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use vm_memory::GuestAddress;

const AVAILABLE: u64 = 0x2000;
const USED_RING: u64 = 0x3000;
const SIZE: u16 = 8;
/// Descriptors of the region: more than the ring has.
const ROOM: u16 = 16;

/// A guest and its front-end, which outlive the processes that serve them.
struct Guest {
    memory: GuestMemory,
    /// The region of a queue that is not used, and that of the queue under test.
    shared: GuestMemory,
    available: u16,
    seen: u16,
    /// The chains that it waits for, in the order in which they were made available.
    asked: Vec<u16>,
}

impl Guest {
    fn new() -> Guest {
        let (memory, shared) =
            (GuestMemory::anonymous(0x1_0000, 0), GuestMemory::anonymous(0x1000, 0));
        Guest { memory, shared, available: 0, seen: 0, asked: Vec::new() }
    }

    fn put(&self, at: u64, value: u16) {
        self.memory.write(GuestAddress(at), &value.to_le_bytes()).unwrap();
    }

    fn get(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(GuestAddress(at), &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// The ring after earlier use: both indices are at `index`.
    fn used_until(mut self, index: u16) -> Guest {
        self.put(AVAILABLE + 2, index);
        self.put(USED_RING + 2, index);
        (self.available, self.seen) = (index, index);
        self
    }

    fn ask(&mut self, heads: &[u16]) {
        for &head in heads {
            self.put(AVAILABLE + 4 + 2 * u64::from(self.available % SIZE), head);
            self.available = self.available.wrapping_add(1);
            self.put(AVAILABLE + 2, self.available);
            self.asked.push(head);
        }
    }

    fn used(&self) -> u16 {
        self.get(USED_RING + 2)
    }

    /// Takes the completed chains, each of which must be awaited.
    fn harvest(&mut self) -> Vec<u16> {
        let mut got = Vec::new();
        while self.seen != self.used() {
            let head = self.get(USED_RING + 4 + 8 * u64::from(self.seen % SIZE));
            let at = self.asked.iter().position(|asked| *asked == head);
            self.asked.remove(at.unwrap_or_else(|| panic!("{head} ended twice")));
            self.seen = self.seen.wrapping_add(1);
            got.push(head);
        }
        got
    }

    fn field(&self, at: usize) -> GuestAddress {
        GuestAddress((Region::bytes(ROOM) + at) as u64)
    }

    /// The region's record at `at`.
    fn noted(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.shared.read(self.field(at), &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn note(&self, at: usize, bytes: &[u8]) {
        self.shared.write(self.field(at), bytes).unwrap();
    }

    fn start_at(&self, base: u16) -> Result<Vring, VringError> {
        let setup = VringSetup {
            size: SIZE,
            descriptor: 0x1000,
            available: AVAILABLE,
            used: USED_RING,
            base,
            event_idx: true,
        };
        Vring::start(setup, &self.memory, Region::of(&self.shared, 1, ROOM))
    }

    /// A process begins to serve the ring; its front-end has lost the position and sends the used
    /// index.
    fn start(&self) -> Vring {
        fuse::begins();
        self.start_at(self.used()).unwrap()
    }

    fn take(&self, ring: &mut Vring) -> Option<u16> {
        ring.take(&self.memory).map(|chain| chain.head())
    }

    fn take_all(&self, ring: &mut Vring) -> Vec<u16> {
        std::iter::from_fn(|| self.take(ring)).collect()
    }
}

/// The life of a process: it takes all chains and completes them out of order, in batches of
/// several lengths. Returns the chains that it took, or would have taken if it died in between;
/// none if it died before.
fn live(guest: &Guest) -> Option<Vec<u16>> {
    let mut ring = guest.start_at(guest.used()).unwrap();
    if fuse::is_dead() {
        return None;
    }
    let mut taken: Vec<u16> = std::iter::from_fn(|| guest.take(&mut ring)).take(3).collect();
    for &head in taken.iter().skip(1).rev() {
        ring.complete(head, 1);
    }
    ring.publish();
    let mut held: Vec<u16> = taken.first().copied().into_iter().collect();
    let more = guest.take_all(&mut ring);
    taken.extend(&more);
    held.extend(&more);
    for part in [1, 0] {
        for &head in held.iter().skip(part).step_by(2) {
            ring.complete(head, 1);
        }
        ring.publish();
    }
    Some(taken)
}

/// A process that lives to its end.
fn outlive(guest: &Guest) -> Vec<u16> {
    fuse::begins();
    live(guest).unwrap()
}

/// Two processes that are killed after that many of their stores, and a third. Returns whether each
/// of the first two lived to its end.
fn two_kills(one: usize, two: usize) -> [bool; 2] {
    // Indices that wrap around, and a ring that was used before.
    let mut guest = Guest::new().used_until(0xfffd);
    guest.ask(&[5, 0, 3, 7, 1]);
    let outlived = [one, two].map(|stores| {
        fuse::dies_after(stores);
        let taken = live(&guest);
        assert_eq!(taken.as_ref().unwrap_or(&guest.asked), &guest.asked, "{one}, {two} stores");
        let died = fuse::begins();
        // The guest continues meanwhile, with the descriptors that it got back.
        let free = guest.harvest();
        guest.ask(&free);
        !died
    });
    assert_eq!(outlive(&guest), guest.asked, "killed after {one} and {two} stores");
    guest.harvest();
    assert_eq!(guest.asked, [0_u16; 0], "killed after {one} and {two} stores");
    outlived
}

/// Processes are killed after each number of their stores. The next one takes exactly the chains
/// that were not completed, in the order in which they were made available; at the end each chain
/// was completed once.
#[test]
fn wherever_a_process_ends_the_next_does_what_is_left() {
    let (mut cuts, mut one) = (0, 0);
    loop {
        let mut two = 0;
        let outlived = loop {
            let [first, second] = two_kills(one, two);
            cuts += 1;
            two += 1;
            if second {
                break first;
            }
        };
        one += 1;
        if outlived {
            break;
        }
    }
    assert!(cuts > 1000, "{cuts} are not all");
}

/// Known bug 23.
#[test]
fn a_start_before_any_completion_forgets_nothing() {
    let mut guest = Guest::new().used_until(5);
    guest.ask(&[0, 4]);
    assert_eq!(guest.take_all(&mut guest.start()), [0, 4]);
    assert_eq!(guest.take_all(&mut guest.start()), [0, 4]);
    assert_eq!(guest.take_all(&mut guest.start()), [0, 4]);
}

#[test]
fn what_is_owed_is_work_and_comes_before_what_is_new() {
    let mut guest = Guest::new();
    guest.ask(&[6, 1]);
    let mut ring = guest.start();
    assert_eq!(guest.take(&mut ring), Some(6));
    assert_eq!(guest.take(&mut ring), Some(1));
    let mut ring = guest.start();
    assert!(ring.has_work(), "nothing new is there");
    assert_eq!((ring.base(), ring.inherited()), (0, 2), "what was not taken does not count");
    guest.ask(&[0]);
    assert_eq!(guest.take_all(&mut ring), [6, 1, 0]);
    assert!(!ring.has_work());
    assert_eq!(ring.base(), 3);
}

/// The layout is the protocol's: the next back-end may be another program.
#[test]
fn the_region_is_as_the_protocol_has_it() {
    assert_eq!([1, 3, 128].map(Region::bytes), [64, 64, 2112]);
    let mut guest = Guest::new().used_until(7);
    guest.ask(&[2, 5, 3]);
    let mut ring = guest.start();
    guest.take_all(&mut ring);
    assert_eq!((guest.noted(0), guest.noted(8), guest.noted(10)), (0, 1, ROOM));
    let entry = |head: usize| [0, 6, 8].map(|field| guest.noted(16 + 16 * head + field));
    assert_eq!([entry(2), entry(5), entry(3)], [[1, 0, 0], [1, 0, 1], [1, 0, 2]]);
    ring.complete(5, 0);
    ring.complete(3, 0);
    assert_eq!((guest.noted(12), guest.noted(14)), (3, 7), "the batch, not shown yet");
    assert_eq!([entry(5), entry(3)], [[1, 0, 1], [1, 5, 2]]);
    ring.publish();
    assert_eq!((guest.noted(12), guest.noted(14)), (3, 9));
    assert_eq!([entry(2), entry(5), entry(3)], [[1, 0, 0], [0, 0, 1], [0, 5, 2]]);
    let first = guest.shared.window(0, 64, 8).unwrap();
    assert!((0..64).all(|at| first.load_u8(at) == 0), "the other queue's region");
}

#[test]
fn a_ring_that_ended_cleanly_goes_on_where_it_was_and_so_does_one_that_begins_anew() {
    let mut guest = Guest::new();
    guest.ask(&[0, 1, 2]);
    assert_eq!(outlive(&guest), [0, 1, 2]);
    guest.harvest();
    guest.ask(&[1]);
    assert_eq!(guest.start().base(), 3);
    assert_eq!(outlive(&guest), [1]);
    // The guest's driver set the device up again, but the front-end kept the region.
    let mut guest = Guest { available: 0, seen: 0, asked: Vec::new(), ..guest };
    guest.put(AVAILABLE + 2, 0);
    guest.put(USED_RING + 2, 0);
    guest.ask(&[7, 0]);
    assert_eq!(outlive(&guest), [7, 0]);
    assert_eq!(guest.harvest().len(), 2);
}

/// The same, before any of the first ring's requests had ended: the used index does not show it.
#[test]
fn a_ring_that_waits_for_less_than_is_noted_begins_anew() {
    let mut guest = Guest::new().used_until(7);
    guest.ask(&[3, 5]);
    assert_eq!(guest.take_all(&mut guest.start()), [3, 5]);
    let shared = guest.shared.clone();
    let mut guest = Guest { shared, ..Guest::new().used_until(7) };
    guest.ask(&[6]);
    let mut ring = guest.start();
    assert_eq!(ring.inherited(), 0);
    assert_eq!(guest.take_all(&mut ring), [6]);
    ring.complete(6, 0);
    ring.publish();
    assert_eq!(guest.harvest(), [6]);
}

/// The front-end's memory may contain anything.
#[test]
fn a_region_of_nonsense_harms_nobody_but_its_guest() {
    let batches: [(u16, u16); 4] = [(0xffff, 1), (8, 3), (0, 8), (3, 0x7fff)];
    for (last, shown) in batches {
        for next in [0, 3, 9, 0xffff_u16] {
            let mut guest = Guest::new();
            guest.ask(&[1]);
            guest.take_all(&mut guest.start());
            for head in 0..usize::from(ROOM) {
                guest.note(16 + 16 * head, &[0xff; 6]);
                guest.note(16 + 16 * head + 6, &next.to_le_bytes());
                guest.note(16 + 16 * head + 8, &[0xff; 8]);
            }
            guest.note(12, &last.to_le_bytes());
            guest.note(14, &0u16.wrapping_sub(shown).to_le_bytes());
            guest.ask(&[0]);
            let mut ring = guest.start();
            let taken = guest.take_all(&mut ring);
            assert!(taken.len() <= usize::from(SIZE) + 2, "{taken:?}");
            taken.into_iter().for_each(|head| ring.complete(head, 0));
            ring.publish();
        }
    }
    let guest = Guest::new();
    let short = Region::of(&guest.shared, 1, SIZE / 2);
    let setup = VringSetup {
        size: SIZE,
        descriptor: 0x1000,
        available: AVAILABLE,
        used: USED_RING,
        base: 0,
        event_idx: true,
    };
    let refused = Vring::start(setup, &guest.memory, short).map(|_| ());
    assert_eq!(refused, Err(VringError::Tracked { size: 8, descriptors: 4 }));
    assert!(Region::of(&guest.shared, 100, ROOM).is_none(), "past the memory's end");
}

/// Known bug 19: a head that is in flight, and impossible heads, are not recorded.
#[test]
fn heads_that_cannot_be_disturb_no_others() {
    let mut guest = Guest::new();
    guest.ask(&[4, 2, 4, 8, u16::MAX]);
    let mut ring = guest.start();
    assert_eq!(guest.take_all(&mut ring), [4, 2, 4, 8, u16::MAX]);
    for head in [4, 8, u16::MAX] {
        ring.give_back(head, 0);
    }
    ring.publish();
    assert_eq!(guest.used(), 1);
    let marks: Vec<usize> = (0..8).filter(|head| guest.noted(16 + 16 * head) == 1).collect();
    assert_eq!(marks, [2, 4]);
}

/// The front-end may write it at any time: a value that is needed again is not read again.
#[test]
fn counters_that_change_while_they_are_read_harm_nobody() {
    const MANY: u16 = MAX_QUEUE_SIZE;
    let memory = GuestMemory::anonymous(0x1_0000, 0);
    let shared = GuestMemory::anonymous(0x8000, 0);
    let (available, used) = (0x4000, 0x8000);
    memory.write(GuestAddress(available + 2), &MANY.to_le_bytes()).unwrap();
    let setup = VringSetup { size: MANY, descriptor: 0, available, used, base: 0, event_idx: true };
    let start = || Vring::start(setup, &memory, Region::of(&shared, 0, MANY)).unwrap();
    assert_eq!(start().inherited(), 0, "a new region");
    let region = || shared.window(0, Region::bytes(MANY), 8).unwrap();
    (0..MANY).for_each(|head| region().store_u8(entry(head) + MARK, 1, Ordering::Relaxed));
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (region, mut seed) = (region(), 1u64);
            while !ends.load(Ordering::Relaxed) {
                for head in 0..MANY {
                    seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    region.store_u64(entry(head) + COUNTER, seed >> 32);
                }
            }
        });
        let starts = std::panic::catch_unwind(|| (0..1000).for_each(|_| drop(start())));
        ends.store(true, Ordering::Relaxed);
        assert!(starts.is_ok());
    });
    let mut ring = start();
    let heads: BTreeSet<u16> =
        std::iter::from_fn(|| Some(ring.take(&memory)?.head())).take(usize::from(MANY)).collect();
    assert_eq!(heads.len(), usize::from(MANY), "each once");
}
