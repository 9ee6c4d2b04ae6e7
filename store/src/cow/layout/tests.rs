use super::*;
use proptest::prelude::*;

/// 16 KiB chunks: 1024 entries an area, areas at 1, 1026, 2051 (the specification's example).
fn k16(device_chunks: u64) -> Geometry {
    Geometry { chunk: ChunkSize::from_sectors(32).unwrap(), device_chunks }
}

/// 512-byte chunks: 32 entries an area, areas at 1, 34, 67.
fn b512(device_chunks: u64) -> Geometry {
    Geometry { chunk: ChunkSize::from_sectors(1).unwrap(), device_chunks }
}

#[test]
fn scenario_14_header_is_byte_exact() {
    for (valid, word) in [(true, 1), (false, 0)] {
        let header = Header { valid, chunk: ChunkSize::from_sectors(8).unwrap() };
        let bytes = [0x53, 0x6e, 0x41, 0x70, word, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0];
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(&bytes), Ok(Some(header)));
        assert_eq!(&bytes[..4], b"SnAp");
    }
}

#[test]
fn scenario_20_foreign_headers_are_refused() {
    let good = Header { valid: true, chunk: ChunkSize::DEFAULT }.encode();
    let with = |at: usize, value: u32| {
        let mut bytes = good;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        Header::decode(&bytes)
    };
    assert_eq!(with(0, 0), Ok(None), "magic 0 is a store still to be made");
    assert_eq!(with(0, 0x7041_6e54), Err(HeaderError::Magic(0x7041_6e54)));
    assert_eq!(with(8, 2), Err(HeaderError::Version(2)));
    assert_eq!(with(8, 0), Err(HeaderError::Version(0)));
    for sectors in [0, 3, 1 << 22, u32::MAX] {
        assert_eq!(with(12, sectors), Err(HeaderError::ChunkSize(sectors)));
    }
    assert_eq!(with(4, 0), Ok(Some(Header { valid: false, chunk: ChunkSize::DEFAULT })));
    assert_eq!(with(4, 7), Ok(Some(Header { valid: true, chunk: ChunkSize::DEFAULT })));
}

#[test]
fn entries_are_little_endian_pairs() {
    let entry = Entry { old: Chunk(0x0102), new: StoreChunk(0x0a0b_0c0d_0e0f_1011) };
    let bytes = [2, 1, 0, 0, 0, 0, 0, 0, 0x11, 0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a];
    assert_eq!(entry.encode(), bytes);
    assert_eq!(Entry::decode(&bytes), entry);
    assert!(Entry { old: Chunk(0), new: StoreChunk(0) }.is_end());
    assert!(!Entry { old: Chunk(0), new: StoreChunk(2) }.is_end());
}

#[test]
fn areas_lie_where_the_specification_says() {
    let g = k16(1 << 20);
    assert_eq!(g.entries_per_area(), 1024);
    assert_eq!([0, 1, 2].map(|k| g.area_chunk(k).0), [1, 1026, 2051]);
    assert_eq!(b512(1000).entries_per_area(), 32);
    assert_eq!([0, 1, 2].map(|k| b512(1000).area_chunk(k).0), [1, 34, 67]);
    let gib = Geometry { chunk: ChunkSize::from_sectors(1 << 21).unwrap(), device_chunks: 9 };
    assert_eq!(gib.entries_per_area(), 67_108_864);
}

#[test]
fn scenario_15_the_first_chunk_behind_an_area_s_worth_skips_the_area() {
    let g = k16(1 << 20);
    assert_eq!(g.chunk_of_index(DataIndex(0)), StoreChunk(2));
    assert_eq!(g.chunk_of_index(DataIndex(1023)), StoreChunk(1025));
    assert_eq!(g.chunk_of_index(DataIndex(1024)), StoreChunk(1027));
    assert_eq!(g.chunk_of_index(DataIndex(2048)), StoreChunk(2052));
    assert_eq!(g.index_of(StoreChunk(0)), None);
    assert_eq!(g.index_of(StoreChunk(1)), None);
    assert_eq!(g.index_of(StoreChunk(1026)), None);
    assert_eq!(g.index_of(StoreChunk(2051)), None);
    assert_eq!(g.index_of(StoreChunk(1027)), Some(DataIndex(1024)));
}

#[test]
fn scenario_16_next_free_never_is_an_area() {
    let g = k16(1 << 20);
    assert_eq!(g.next_free(g.next_after(None)), StoreChunk(2));
    let last = g.index_of(StoreChunk(1025));
    assert_eq!(g.next_free(g.next_after(last)), StoreChunk(1027));
}

#[test]
fn scenario_29_full_is_defined_at_an_area_s_end() {
    // header, area 0, 32 data (2..=33), area 1 at 34, data from 35.
    let cases = [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 1),
        (33, 31),
        (34, 31), // chunk 33 is there, but area 1 (34) is not: the 32nd is refused
        (35, 32), // area 1 fits
        (36, 33),
        (67, 63), // 66 would fill area 1, and area 2 (67) does not fit
        (68, 64),
    ];
    for (chunks, capacity) in cases {
        assert_eq!(b512(chunks).capacity(), capacity, "{chunks} chunks");
    }
}

/// A table has no word for a chunk behind them.
#[test]
fn no_chunk_is_given_out_that_a_table_cannot_name() {
    for chunks in [MOST_CHUNKS - 1, MOST_CHUNKS, MOST_CHUNKS + 1, MOST_CHUNKS + 99, u64::MAX >> 9] {
        let store = b512(chunks);
        let last = store.chunk_of_index(DataIndex(store.capacity() - 1)).0;
        assert!(last < MOST_CHUNKS, "{chunks} chunks: {last}");
        assert!(last + 3 >= MOST_CHUNKS.min(chunks), "{chunks} chunks: {last}");
    }
}

#[test]
fn covering_n_chunks_takes_what_the_specification_says() {
    let g = k16(0);
    assert_eq!(g.chunks_needed(0), 2);
    assert_eq!(g.chunks_needed(1), 3);
    assert_eq!(g.chunks_needed(1023), 1025);
    assert_eq!(g.chunks_needed(1024), 1027);
    assert_eq!(g.chunks_needed(2048), 2052);
}

#[test]
fn entries_lie_in_their_area() {
    let g = k16(1 << 20);
    assert_eq!(g.entry_offset(0), 16384);
    assert_eq!(g.entry_offset(1023), 16384 + 16368);
    assert_eq!(g.area_end(0), 32768);
    assert_eq!(g.entry_offset(1024), 1026 * 16384);
    assert_eq!(g.entry_offset(1025), 1026 * 16384 + 16);
}

fn any_chunk() -> impl Strategy<Value = ChunkSize> {
    (0u32..=21).prop_map(|shift| ChunkSize::from_sectors(1 << shift).unwrap())
}

proptest! {
    #[test]
    fn index_and_chunk_are_inverse(chunk in any_chunk(), index in 0u64..1 << 40) {
        let g = Geometry { chunk, device_chunks: u64::MAX >> 31 };
        prop_assert_eq!(g.index_of(g.chunk_of_index(DataIndex(index))), Some(DataIndex(index)));
    }

    #[test]
    fn a_chunk_is_an_area_or_has_one_index(chunk in any_chunk(), at in 2u64..1 << 40) {
        let g = Geometry { chunk, device_chunks: u64::MAX >> 31 };
        match g.index_of(StoreChunk(at)) {
            Some(index) => prop_assert_eq!(g.chunk_of_index(index), StoreChunk(at)),
            None => prop_assert_eq!((at - 1) % (g.entries_per_area() + 1), 0),
        }
    }

    #[test]
    fn entries_survive_the_codec(old: u64, new: u64) {
        let entry = Entry { old: Chunk(old), new: StoreChunk(new) };
        prop_assert_eq!(Entry::decode(&entry.encode()), entry);
    }

    /// The capacity is the number of chunks that one-by-one allocation gives.
    #[test]
    fn capacity_is_what_allocating_one_by_one_gives(device_chunks in 0u64..400) {
        let g = b512(device_chunks);
        let (mut next_free, mut count) = (2u64, 0u64);
        loop {
            if device_chunks < next_free + 1 {
                break;
            }
            let after = next_free + 1;
            if after % 33 == 1 && after >= device_chunks {
                break; // it would fill the area, and the next area does not fit
            }
            count += 1;
            next_free = if after % 33 == 1 { after + 1 } else { after };
        }
        prop_assert_eq!(g.capacity(), count);
    }

    #[test]
    fn a_store_made_for_n_holds_n(chunk in any_chunk(), data in 0u64..1 << 36) {
        let needed = Geometry { chunk, device_chunks: 0 }.chunks_needed(data);
        prop_assert_eq!(Geometry { chunk, device_chunks: needed }.capacity(), data);
    }
}

#[test]
fn data_lies_between_two_areas() {
    // Areas at 1, 34 and 67; the store ends after chunk 69.
    let store = b512(70);
    for (first, last) in [(2, 33), (35, 66), (68, 69)] {
        for chunk in [first, first + 1, last] {
            assert_eq!(store.data_around(StoreChunk(chunk)), first..last + 1);
        }
    }
}
