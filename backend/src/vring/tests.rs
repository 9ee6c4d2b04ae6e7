use super::*;
use vm_memory::GuestAddress;

const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 8;

fn ring(event_idx: bool) -> (GuestMemory, Vring) {
    let memory = GuestMemory::anonymous(0x10000, 0);
    let setup = VringSetup {
        size: SIZE,
        descriptor: 0x1000,
        available: AVAILABLE,
        used: USED,
        base: 0,
        event_idx,
    };
    let ring = Vring::start(setup, &memory, None).unwrap();
    (memory, ring)
}

fn put(memory: &GuestMemory, at: u64, value: u16) {
    memory.write(GuestAddress(at), &value.to_le_bytes()).unwrap();
}

fn get(memory: &GuestMemory, at: u64) -> u16 {
    let mut bytes = [0; 2];
    memory.read(GuestAddress(at), &mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

/// Known bug 22, I17: after arming, the device checks again.
#[test]
fn arming_sees_what_came_before_it() {
    for event_idx in [false, true] {
        let (memory, mut ring) = ring(event_idx);
        assert!(!ring.arm());
        put(&memory, AVAILABLE + 2, 1);
        assert!(ring.has_work());
        assert!(ring.arm(), "the driver may have looked before it was asked to kick");
        assert!(ring.take(&memory).is_some());
        assert!(!ring.arm());
        assert_eq!(ring.base(), 1);
    }
}

#[test]
fn kicks_are_asked_for_and_suppressed() {
    let (memory, mut ring) = ring(false);
    ring.disarm();
    assert_eq!(get(&memory, USED), 1, "VIRTQ_USED_F_NO_NOTIFY");
    ring.arm();
    assert_eq!(get(&memory, USED), 0);
    let (memory, mut ring) = self::ring(true);
    put(&memory, AVAILABLE + 2, 1);
    ring.take(&memory).unwrap();
    ring.arm();
    assert_eq!(get(&memory, USED + 4 + 8 * u64::from(SIZE)), 1, "kick for the second chain");
}

/// Whether a driver that made the chains from `old` on to before `new` available must kick: virtio
/// 1.2, 2.7.10, whose sample code this is.
fn must_kick(memory: &GuestMemory, old: u16, new: u16) -> bool {
    let event = get(memory, USED + 4 + 8 * u64::from(SIZE));
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[test]
fn a_kick_that_was_asked_for_by_index_is_put_off_when_this_end_is_awake() {
    let (memory, mut ring) = ring(true);
    for taken in 0..SIZE {
        ring.arm();
        assert!(must_kick(&memory, taken, taken + 1), "after {taken} chains");
        ring.disarm();
        for new in 1..=SIZE {
            assert!(!must_kick(&memory, taken, taken + new), "{new} after {taken} chains");
        }
        put(&memory, AVAILABLE + 2, taken + 1);
        ring.take(&memory).unwrap();
    }
}

#[test]
fn a_driver_that_looks_sees_what_it_is_not_told_of_yet() {
    for event_idx in [false, true] {
        let (memory, mut ring) = ring(event_idx);
        ring.complete(0, 0);
        ring.show();
        assert_eq!((get(&memory, USED + 2), ring.untold()), (1, 1));
        ring.complete(1, 0);
        assert_eq!((get(&memory, USED + 2), ring.untold()), (1, 2));
        assert!(ring.publish(), "it asked to hear of the first");
        assert_eq!((get(&memory, USED + 2), ring.untold()), (2, 0));
    }
}

#[test]
fn interrupts_are_left_out_where_the_driver_does_not_want_them() {
    let (memory, mut ring) = ring(false);
    ring.complete(0, 0);
    assert!(ring.publish());
    put(&memory, AVAILABLE, 1);
    ring.complete(1, 0);
    assert!(!ring.publish(), "VIRTQ_AVAIL_F_NO_INTERRUPT");
    let (memory, mut ring) = self::ring(true);
    put(&memory, AVAILABLE + 4 + 2 * u64::from(SIZE), 1);
    ring.complete(0, 0);
    assert!(!ring.publish(), "only after the second");
    ring.complete(1, 0);
    assert!(ring.publish());
    ring.complete(2, 0);
    assert!(!ring.publish(), "it was told, and has not asked again");
}

#[test]
fn the_used_ring_goes_on_where_the_guest_has_it() {
    let (memory, _) = ring(false);
    put(&memory, USED + 2, 5);
    let setup = VringSetup {
        size: SIZE,
        descriptor: 0x1000,
        available: AVAILABLE,
        used: USED,
        base: 9,
        event_idx: false,
    };
    let mut ring = Vring::start(setup, &memory, None).unwrap();
    ring.complete(3, 42);
    ring.publish();
    assert_eq!(get(&memory, USED + 2), 6);
    assert_eq!(get(&memory, USED + 4 + 5 * 8), 3);
    assert_eq!(get(&memory, USED + 4 + 5 * 8 + 4), 42);
    ring.complete(SIZE, 0);
    ring.publish();
    assert_eq!(get(&memory, USED + 2), 6, "a head that is none has no place");
    assert_eq!(ring.base(), 9);
}

#[test]
fn the_driver_sees_completions_once_they_are_published() {
    let (memory, mut ring) = ring(true);
    ring.complete(4, 1);
    ring.complete(5, 2);
    assert_eq!(get(&memory, USED + 2), 0);
    ring.publish();
    assert_eq!(get(&memory, USED + 2), 2);
    assert_eq!((get(&memory, USED + 4), get(&memory, USED + 12)), (4, 5));
}

#[test]
fn a_ring_outside_of_memory_or_not_aligned_is_refused() {
    let memory = GuestMemory::anonymous(0x10000, 0x7000_0000);
    let at = |offset| 0x7000_0000 + offset;
    let setup = VringSetup {
        size: SIZE,
        descriptor: at(0x1000),
        available: at(AVAILABLE),
        used: at(USED),
        base: 0,
        event_idx: false,
    };
    assert!(Vring::start(setup, &memory, None).is_ok());
    for bad in [
        VringSetup { descriptor: at(0x1008), ..setup },
        VringSetup { descriptor: at(0xffff), ..setup },
        VringSetup { available: at(0xfffe), ..setup },
        VringSetup { available: at(AVAILABLE + 1), ..setup },
        VringSetup { used: at(USED + 2), ..setup },
        VringSetup { used: u64::MAX, ..setup },
        VringSetup { used: 0, ..setup },
    ] {
        let refused = Vring::start(bad, &memory, None).map(|_| ()).unwrap_err();
        assert!(matches!(refused, VringError::Address { .. }), "{bad:?}");
    }
    for size in [0, 3, 2048] {
        let refused = Vring::start(VringSetup { size, ..setup }, &memory, None).map(|_| ());
        assert_eq!(refused, Err(VringError::Size(size)));
    }
}

mod beside_virtio_queue {
    //! For any content of a guest's tables, the walk is that of the `virtio-queue` crate.

    use proptest::prelude::*;
    use virtio_queue::{Queue, QueueT};
    use vm_memory::Bytes;

    use super::*;

    const TABLE: u64 = 0x1000;
    /// The targets of descriptors: mostly this page, which also contains indirect tables.
    const PAGE: u64 = 0x4000;

    fn descriptor() -> impl Strategy<Value = [u8; 16]> {
        let address = prop_oneof![4 => (0u64..64).prop_map(|n| PAGE + 16 * n), 1 => any::<u64>()];
        // The crate ends a walk at 4 GiB; here the parser checks that.
        let len = prop_oneof![4 => (0u32..9).prop_map(|n| 16 * n), 1 => 0u32..1 << 24];
        let next = prop_oneof![6 => 0u16..9, 1 => any::<u16>()];
        (address, len, 0u16..8, next).prop_map(|(address, len, flags, next)| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            bytes
        })
    }

    fn theirs(memory: &GuestMemory) -> Vec<(u64, u32, bool)> {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(TABLE as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let chain = queue.pop_descriptor_chain(memory.map()).unwrap();
        chain.map(|one| (one.addr().0, one.len(), one.is_write_only())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn the_walk_is_the_same(
            table in proptest::collection::vec(descriptor(), usize::from(SIZE)),
            indirect in proptest::collection::vec(descriptor(), 72),
            head in 0u16..9,
        ) {
            let (memory, mut ring) = ring(false);
            memory.write(GuestAddress(TABLE), table.as_flattened()).unwrap();
            memory.write(GuestAddress(PAGE), indirect.as_flattened()).unwrap();
            memory.map().write_obj(head, GuestAddress(AVAILABLE + 4)).unwrap();
            put(&memory, AVAILABLE + 2, 1);
            let mut chain = ring.take(&memory).unwrap();
            let mut ours = Vec::new();
            for one in chain.by_ref() {
                ours.push((one.address.0, one.len, one.writable));
            }
            prop_assert_eq!(ours, theirs(&memory));
        }
    }
}
