use super::*;
use proptest::prelude::*;
use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT as INDIRECT, VRING_DESC_F_NEXT as NEXT, VRING_DESC_F_WRITE as WRITE,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor as Split;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Address, Bytes};

use crate::memory::Region;
use crate::vring::{Vring, VringSetup};

const MEMORY: u64 = 0x40_0000;
const QUEUE: u16 = 256;
/// The addresses of headers, data, the status byte and indirect tables.
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x1_8000;
const TABLE: u64 = 0x30_0000;

const SERIAL: &[u8; 20] = b"serial-of-the-disk\0\0";
const CAPACITY: u64 = 2048;

type Desc = (u64, u32, u32, u16);

struct Guest {
    memory: GuestMemory,
    ring: Vring,
    available: GuestAddress,
    block: LogicalBlock,
}

impl Guest {
    fn new() -> Guest {
        let memory = GuestMemory::anonymous(MEMORY, 0);
        let mock = MockSplitQueue::new(memory.map(), QUEUE);
        let setup = VringSetup {
            size: QUEUE,
            descriptor: mock.desc_table_addr().0,
            available: mock.avail_addr().0,
            used: mock.used_addr().0,
            base: 0,
            event_idx: false,
        };
        let available = mock.avail_addr();
        let ring = Vring::start(setup, &memory, None).unwrap();
        Guest { memory, ring, available, block: LogicalBlock::B512 }
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(GuestAddress(HEADER), &header).unwrap();
    }

    /// Makes the chain that begins at descriptor 0 available.
    fn offer(&self, table: &[Desc]) {
        self.offer_head(table, 0);
    }

    fn offer_head(&self, table: &[Desc], head: u16) {
        for (n, &descriptor) in table.iter().enumerate() {
            self.store(n as u64 * 16, descriptor);
        }
        let map = self.memory.map();
        let index = map.read_obj::<u16>(self.available.unchecked_add(2)).unwrap();
        let slot = self.available.unchecked_add(4 + 2 * u64::from(index % QUEUE));
        map.write_obj(head, slot).unwrap();
        self.set_index(index.wrapping_add(1));
    }

    fn set_index(&self, index: u16) {
        self.memory.map().write_obj(index, self.available.unchecked_add(2)).unwrap();
    }

    fn store(&self, at: u64, (addr, len, flags, next): Desc) {
        let raw = RawDescriptor::from(Split::new(addr, len, flags as u16, next));
        self.memory.map().write_obj(raw, GuestAddress(at)).unwrap();
    }

    fn take(&mut self, read_only: bool) -> (Asked, RequestSlot) {
        let (capacity, block) = (Sector(CAPACITY), self.block);
        let limits = Limits { capacity, read_only, block, serial: *SERIAL };
        let mut slot = RequestSlot::with_room();
        let mut chain = self.ring.take(&self.memory).expect("a chain was offered");
        let asked = Parser::new(limits).parse(&mut chain, &self.memory, &mut slot, |_| {});
        (asked, slot)
    }

    fn ask(&mut self, table: &[Desc]) -> (Asked, RequestSlot) {
        self.offer(table);
        self.take(false)
    }

    /// A request of the usual three parts.
    fn ask_plain(&mut self, kind: u32, sector: u64, len: u32) -> (Asked, RequestSlot) {
        self.header(kind, sector);
        let data = if kind == 0 || kind == 8 { NEXT | WRITE } else { NEXT };
        self.ask(&[(HEADER, 16, NEXT, 1), (DATA, len, data, 2), (STATUS, 1, WRITE, 0)])
    }
}

const IO_ERROR: Asked = Asked::Answer(BlkStatus::IoError);
const UNSUPPORTED: Asked = Asked::Answer(BlkStatus::Unsupported);

fn lens(slot: &RequestSlot) -> Vec<usize> {
    slot.data.iter().map(|piece| piece.iov_len).collect()
}

#[test]
fn a_plain_read_and_write() {
    let mut guest = Guest::new();
    let (asked, slot) = guest.ask_plain(0, 7, 4096);
    assert_eq!(asked, Asked::Data { op: Op::Read, sector: Sector(7), len: 4096 });
    assert_eq!((slot.status, slot.writable_len), (Some(GuestAddress(STATUS)), 4097));
    assert_eq!(lens(&slot), [4096]);
    let (asked, slot) = guest.ask_plain(1, 2047, 512);
    assert_eq!(asked, Asked::Data { op: Op::Write, sector: Sector(2047), len: 512 });
    assert_eq!(slot.writable_len, 1);
}

/// A driver may split a request anywhere (virtio 1.2, 2.7.4.3): here the header is in three
/// unaligned pieces, with data from the middle of the last, and empty pieces between.
#[test]
fn any_layout() {
    let mut guest = Guest::new();
    guest.header(1, 3);
    let (asked, slot) = guest.ask(&[
        (HEADER, 3, NEXT, 1),
        (HEADER + 3, 0, NEXT, 2),
        (HEADER + 3, 10, NEXT, 3),
        (HEADER + 13, 3 + 100, NEXT, 4),
        (DATA + 1, 412, NEXT, 5),
        (STATUS + 3, 1, WRITE, 0),
    ]);
    assert_eq!(asked, Asked::Data { op: Op::Write, sector: Sector(3), len: 512 });
    assert_eq!(lens(&slot), [100, 412]);
    // A read whose status byte follows its data in one piece.
    guest.header(0, 0);
    let (asked, slot) = guest.ask(&[(HEADER, 16, NEXT, 1), (DATA, 513, WRITE, 0)]);
    assert_eq!(asked, Asked::Data { op: Op::Read, sector: Sector(0), len: 512 });
    assert_eq!(slot.status, Some(GuestAddress(DATA + 512)));
    assert_eq!(lens(&slot), [512]);
}

/// Each piece of a request may cross any number of regions: the list has a limit below that.
#[test]
fn data_in_too_many_regions_is_refused() {
    const REGIONS: u64 = 128;
    let mut guest = Guest::new();
    for n in 0..REGIONS {
        let file = rustix::fs::memfd_create("region", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let at = MEMORY + n * 512;
        let region = Region { guest: at, size: 512, user: at, file_offset: 0 };
        guest.memory = guest.memory.with_region(region, file).unwrap();
    }
    guest.header(1, 0);
    for (parts, pieces) in [(8, 1024), (9, 0)] {
        let mut table = vec![(HEADER, 16, NEXT, 1)];
        table.extend((0..parts).map(|n| (MEMORY, REGIONS as u32 * 512, NEXT, n + 2)));
        table.push((STATUS, 1, WRITE, 0));
        let (asked, slot) = guest.ask(&table);
        assert_eq!(asked == IO_ERROR, parts == 9, "{parts} parts");
        assert_eq!(slot.data.len(), pieces);
        assert!(slot.data.capacity() <= 2048 && slot.status.is_some());
    }
}

/// Known bug 18, scenario 66.
#[test]
fn nothing_past_the_end() {
    let mut guest = Guest::new();
    let ends = [(CAPACITY, 512), (CAPACITY - 7, 4096), (u64::MAX, 512), (u64::MAX / 512, 1024)];
    for (sector, len) in ends {
        for kind in [0, 1] {
            assert_eq!(guest.ask_plain(kind, sector, len).0, IO_ERROR, "{kind} at {sector}");
        }
    }
    assert_ne!(guest.ask_plain(1, CAPACITY - 8, 4096).0, IO_ERROR);
}

/// Known bug 19, scenario 66.
#[test]
fn no_data_or_broken_data() {
    let mut guest = Guest::new();
    for len in [0, 1, 511, 513] {
        assert_eq!(guest.ask_plain(0, 0, len).0, IO_ERROR, "{len} bytes");
        assert_eq!(guest.ask_plain(1, 0, len).0, IO_ERROR, "{len} bytes");
    }
    guest.header(1, 0);
    let (asked, slot) = guest.ask(&[(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE, 0)]);
    assert_eq!((asked, slot.status), (IO_ERROR, Some(GuestAddress(STATUS))));
    // Half a header.
    let (asked, slot) = guest.ask(&[(HEADER, 15, NEXT, 1), (STATUS, 1, WRITE, 0)]);
    assert_eq!((asked, slot.status), (IO_ERROR, Some(GuestAddress(STATUS))));
    // Addresses outside the memory, also of the header.
    for address in [MEMORY, MEMORY - 1, u64::MAX, u64::MAX - 100] {
        let (asked, _) =
            guest.ask(&[(HEADER, 16, NEXT, 1), (address, 512, NEXT, 2), (STATUS, 1, WRITE, 0)]);
        assert_eq!(asked, IO_ERROR, "data at {address:#x}");
        let (asked, _) = guest.ask(&[(address, 16, NEXT, 1), (STATUS, 1, WRITE, 0)]);
        assert_eq!(asked, IO_ERROR, "header at {address:#x}");
    }
}

#[test]
fn no_room_for_a_status() {
    let mut guest = Guest::new();
    guest.header(1, 0);
    let (asked, slot) = guest.ask(&[(HEADER, 16, NEXT, 1), (DATA, 512, 0, 0)]);
    // The write is well-formed but cannot be answered; nothing is written in any case.
    assert_eq!(slot.status, None);
    assert!(matches!(asked, Asked::Answer(_)), "a request that cannot be answered is not done");
}

#[test]
fn the_wrong_direction() {
    let mut guest = Guest::new();
    guest.header(0, 0);
    let read_from_readable =
        guest.ask(&[(HEADER, 16, NEXT, 1), (DATA, 512, NEXT, 2), (STATUS, 1, WRITE, 0)]);
    assert_eq!(read_from_readable.0, IO_ERROR);
    guest.header(1, 0);
    let write_to_writable =
        guest.ask(&[(HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)]);
    assert_eq!(write_to_writable.0, IO_ERROR);
    let readable_last =
        guest.ask(&[(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE | NEXT, 2), (DATA, 512, 0, 0)]);
    assert_eq!(readable_last.0, IO_ERROR);
    guest.header(4, 0);
    let order =
        guest.ask(&[(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE | NEXT, 2), (DATA, 512, 0, 0)]);
    assert_eq!(order.0, IO_ERROR, "what is read stands before what is written");
    assert_eq!(readable_last.1.status, Some(GuestAddress(STATUS)));
}

/// Known bug 19: loops, indices out of range, bad indirect tables.
#[test]
fn chains_that_do_not_end() {
    let mut guest = Guest::new();
    guest.header(0, 0);
    let own_tail: [&[Desc]; 4] = [
        &[(HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 1)],
        &[(HEADER, 16, NEXT, 0)],
        // Complete reads, except for their ends.
        &[(HEADER, 16, NEXT, 1), (DATA, 513, NEXT | WRITE, QUEUE)],
        &[(HEADER, 16, NEXT, 1), (DATA, 513, NEXT | WRITE, u16::MAX)],
    ];
    for table in own_tail {
        assert_eq!(guest.ask(table).0, IO_ERROR, "{table:?}");
    }
    for (address, len) in [(TABLE, 15), (TABLE, 0), (MEMORY, 64), (u64::MAX - 3, 64)] {
        assert_eq!(guest.ask(&[(address, len, INDIRECT, 0)]).0, IO_ERROR, "{address:#x} {len}");
    }
    // A table that refers to itself.
    guest.store(TABLE, (TABLE, 32, INDIRECT, 0));
    assert_eq!(guest.ask(&[(TABLE, 32, INDIRECT, 0)]).0, IO_ERROR);
}

/// Known bug 19: 129 segments where 126 were offered; and exactly 126.
#[test]
fn too_many_segments() {
    let mut guest = Guest::new();
    guest.header(0, 0);
    for (count, fits) in [(126, true), (127, false), (129, false), (250, false)] {
        let mut table = vec![(HEADER, 16, NEXT, 1)];
        table.extend((0..count).map(|n| (DATA + u64::from(n) * 512, 512, NEXT | WRITE, n + 2)));
        table.push((STATUS, 1, WRITE, 0));
        let (asked, slot) = guest.ask(&table);
        assert_eq!(asked != IO_ERROR, fits, "{count} segments");
        assert_eq!(slot.status, Some(GuestAddress(STATUS)), "{count} segments");
    }
}

#[test]
fn an_indirect_table() {
    let mut guest = Guest::new();
    guest.header(0, 9);
    let parts: [Desc; 3] =
        [(HEADER, 16, NEXT, 1), (DATA, 1024, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)];
    for (n, descriptor) in parts.into_iter().enumerate() {
        guest.store(TABLE + n as u64 * 16, descriptor);
    }
    let (asked, _) = guest.ask(&[(TABLE, 48, INDIRECT, 0)]);
    assert_eq!(asked, Asked::Data { op: Op::Read, sector: Sector(9), len: 1024 });
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut guest = Guest::new();
    for kind in [1, 11, 13] {
        guest.header(kind, 0);
        guest.memory.write(GuestAddress(DATA), &[0; 16]).unwrap();
        let len = if kind == 1 { 512 } else { 16 };
        guest.offer(&[(HEADER, 16, NEXT, 1), (DATA, len, NEXT, 2), (STATUS, 1, WRITE, 0)]);
        assert_eq!(guest.take(true).0, IO_ERROR, "type {kind}");
    }
    guest.header(0, 0);
    guest.offer(&[(HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)]);
    assert_ne!(guest.take(true).0, IO_ERROR);
}

#[test]
fn flush_identification_and_what_is_not_known() {
    let mut guest = Guest::new();
    guest.header(4, 0);
    let (asked, slot) = guest.ask(&[(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE, 0)]);
    assert_eq!((asked, slot.writable_len), (Asked::Flush, 1));
    let room = (DATA, 512, NEXT | WRITE, 2);
    let (asked, slot) = guest.ask(&[(HEADER, 16, NEXT, 1), room, (STATUS, 1, WRITE, 0)]);
    assert_eq!((asked, slot.writable_len), (Asked::Flush, 0), "its beginning is not written");
    let (asked, slot) = guest.ask_plain(8, 0, 20);
    assert_eq!((asked, slot.writable_len), (Asked::Answer(BlkStatus::Ok), 21));
    let mut id = [0; 20];
    guest.memory.read(GuestAddress(DATA), &mut id).unwrap();
    assert_eq!(&id, SERIAL);
    guest.header(8, 0);
    assert_eq!(guest.ask(&[(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE, 0)]).0, IO_ERROR);
    for kind in [2, 3, 5, 14, 16, 0x8000_0000, u32::MAX] {
        assert_eq!(guest.ask_plain(kind, 0, 512).0, UNSUPPORTED, "type {kind}");
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn ask_ranges(guest: &mut Guest, kind: u32, ranges: &[Vec<u8>]) -> (Asked, Vec<BlkRange>) {
    let bytes = ranges.concat();
    guest.memory.write(GuestAddress(DATA), &bytes).unwrap();
    let (asked, slot) = guest.ask_plain(kind, 0, bytes.len() as u32);
    (asked, slot.ranges)
}

#[test]
fn ranges_in_their_order_with_their_flags() {
    let mut guest = Guest::new();
    let (asked, ranges) =
        ask_ranges(&mut guest, 13, &[range(8, 8, 1), range(0, 4, 0), range(CAPACITY - 1, 1, 0)]);
    assert_eq!(asked, Asked::Ranges);
    let zeroes = |unmap, sector, sectors| BlkRange {
        op: Op::WriteZeroes { unmap },
        sector: Sector(sector),
        sectors,
    };
    assert_eq!(ranges, [zeroes(true, 8, 8), zeroes(false, 0, 4), zeroes(false, 2047, 1)]);
    let (asked, ranges) = ask_ranges(&mut guest, 11, &[range(16, 8, 0)]);
    assert_eq!(asked, Asked::Ranges);
    assert_eq!(ranges, [BlkRange { op: Op::Discard, sector: Sector(16), sectors: 8 }]);
}

#[test]
fn ranges_that_are_refused() {
    let mut guest = Guest::new();
    for kind in [11, 13] {
        let refused: [&[Vec<u8>]; 6] = [
            &[range(CAPACITY, 1, 0)],
            &[range(u64::MAX, 2, 0)],
            &[range(0, u32::MAX, 0)],
            &[range(0, 0, 0)],
            &[vec![0; 15]],
            &[],
        ];
        for ranges in refused {
            assert_eq!(ask_ranges(&mut guest, kind, ranges).0, IO_ERROR, "{kind} {ranges:?}");
        }
        let many = vec![range(0, 1, 0); 33];
        assert_eq!(ask_ranges(&mut guest, kind, &many).0, IO_ERROR);
        assert_eq!(ask_ranges(&mut guest, kind, &many[..32]).0, Asked::Ranges);
        assert_eq!(ask_ranges(&mut guest, kind, &[range(0, 1, 2)]).0, UNSUPPORTED);
    }
    assert_eq!(ask_ranges(&mut guest, 11, &[range(0, 1, 1)]).0, UNSUPPORTED, "unmap on discard");
}

/// As QEMU has it: requests begin with a logical block, whatever their length.
#[test]
fn requests_begin_with_a_logical_block() {
    let guest = &mut Guest { block: LogicalBlock::B4096, ..Guest::new() };
    assert_eq!(guest.ask_plain(0, 9, 4096).0, IO_ERROR);
    let whole = Asked::Data { op: Op::Read, sector: Sector(16), len: 512 };
    assert_eq!(guest.ask_plain(0, 16, 512).0, whole);
    for kind in [11, 13] {
        assert_eq!(ask_ranges(guest, kind, &[range(4, 8, 0)]).0, IO_ERROR);
        assert_eq!(ask_ranges(guest, kind, &[range(8, 8, 0)]).0, Asked::Ranges);
    }
}

#[test]
fn a_head_or_an_index_out_of_range() {
    let mut guest = Guest::new();
    guest.offer_head(&[], QUEUE);
    assert_eq!(guest.take(false).0, IO_ERROR);
    // More chains than descriptors: the ring cannot be trusted.
    guest.set_index(1 + QUEUE + 1);
    assert!(guest.ring.take(&guest.memory).is_none());
    assert!(guest.ring.is_broken());
    assert!(!guest.ring.has_work(), "a broken ring is not polled for ever");
}

fn any_descriptor() -> impl Strategy<Value = Desc> {
    let address = prop_oneof![
        4 => Just(HEADER),
        4 => DATA..DATA + 0x1000,
        2 => Just(STATUS),
        1 => Just(TABLE),
        1 => Just(MEMORY - 1),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        4 => Just(16u32),
        4 => (0u32..8).prop_map(|n| n * 512),
        4 => Just(1u32),
        2 => 0u32..64,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![6 => 0u32..4, 1 => 0u32..8, 1 => any::<u16>().prop_map(u32::from)];
    (address, len, flags, prop_oneof![8 => 0u16..8, 1 => any::<u16>()])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Scenario 66: for any content of the table, the chain is parsed, the request is within the
    /// device and has all its bytes, and a request that cannot be answered is not carried out.
    #[test]
    fn whatever_a_guest_writes(
        table in proptest::collection::vec(any_descriptor(), 1..8),
        inner in proptest::collection::vec(any_descriptor(), 0..8),
        kind in prop_oneof![Just(0u32), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()],
        sector in prop_oneof![4 => 0u64..CAPACITY + 8, 1 => any::<u64>()],
        head in prop_oneof![8 => 0u16..8, 1 => any::<u16>()],
    ) {
        let mut guest = Guest::new();
        for (n, descriptor) in inner.into_iter().enumerate() {
            guest.store(TABLE + n as u64 * 16, descriptor);
        }
        guest.header(kind, sector);
        guest.offer_head(&table, head);
        let (asked, slot) = guest.take(false);
        match asked {
            Asked::Data { sector, len, .. } => {
                prop_assert!(len > 0 && len % 512 == 0);
                prop_assert!(sector.0 + u64::from(len) / 512 <= CAPACITY);
                // All of it is accessible.
                prop_assert_eq!(crate::memory::gather(&slot.data).len(), len as usize);
            }
            Asked::Ranges => {
                let inside = |r: &BlkRange| r.sector.0 + u64::from(r.sectors) <= CAPACITY;
                prop_assert!(!slot.ranges.is_empty() && slot.ranges.iter().all(inside));
            }
            Asked::Flush | Asked::Answer(_) => {}
        }
        prop_assert!(slot.status.is_some() || matches!(asked, Asked::Answer(_)));
    }
}
