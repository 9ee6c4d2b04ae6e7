use super::*;

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
    let ring = Vring::start(setup, &memory).unwrap();
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

/// Known bug 22, I17: who arms looks again.
#[test]
fn arming_sees_what_came_before_it() {
    for event_idx in [false, true] {
        let (memory, mut ring) = ring(event_idx);
        assert!(!ring.arm(&memory));
        put(&memory, AVAILABLE + 2, 1);
        assert!(ring.has_work(&memory));
        assert!(ring.arm(&memory), "the driver may have looked before it was asked to kick");
        assert!(ring.take(&memory).is_some());
        assert!(!ring.arm(&memory));
        assert_eq!(ring.base(), 1);
    }
}

#[test]
fn kicks_are_asked_for_and_suppressed() {
    let (memory, mut ring) = ring(false);
    ring.disarm(&memory);
    assert_eq!(get(&memory, USED), 1, "VIRTQ_USED_F_NO_NOTIFY");
    ring.arm(&memory);
    assert_eq!(get(&memory, USED), 0);
    let (memory, mut ring) = self::ring(true);
    put(&memory, AVAILABLE + 2, 1);
    ring.take(&memory).unwrap();
    ring.arm(&memory);
    assert_eq!(get(&memory, USED + 4 + 8 * u64::from(SIZE)), 1, "kick for the second chain");
}

#[test]
fn interrupts_are_left_out_where_the_driver_does_not_want_them() {
    let (memory, mut ring) = ring(false);
    ring.complete(&memory, 0, 0);
    assert!(ring.wants_interrupt(&memory));
    put(&memory, AVAILABLE, 1);
    ring.complete(&memory, 1, 0);
    assert!(!ring.wants_interrupt(&memory), "VIRTQ_AVAIL_F_NO_INTERRUPT");
    let (memory, mut ring) = self::ring(true);
    put(&memory, AVAILABLE + 4 + 2 * u64::from(SIZE), 1);
    ring.complete(&memory, 0, 0);
    assert!(!ring.wants_interrupt(&memory), "only after the second");
    ring.complete(&memory, 1, 0);
    assert!(ring.wants_interrupt(&memory));
    ring.complete(&memory, 2, 0);
    assert!(!ring.wants_interrupt(&memory), "it was told, and has not asked again");
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
    let mut ring = Vring::start(setup, &memory).unwrap();
    ring.complete(&memory, 3, 42);
    assert_eq!(get(&memory, USED + 2), 6);
    assert_eq!(get(&memory, USED + 4 + 5 * 8), 3);
    assert_eq!(get(&memory, USED + 4 + 5 * 8 + 4), 42);
    ring.complete(&memory, SIZE, 0);
    assert_eq!(get(&memory, USED + 2), 6, "a head that is none has no place");
    assert_eq!(ring.base(), 9);
}
