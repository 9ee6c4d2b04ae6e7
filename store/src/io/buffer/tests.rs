use super::*;

fn memory() -> Memory {
    Memory::new(ScratchConfig { buffers: 2, size: 5000 }).unwrap()
}

#[test]
fn scratch_buffers_are_whole_pages_apart() {
    let memory = memory();
    let (a, b) =
        (memory.scratch(BufId(0), 0, 8192).unwrap(), memory.scratch(BufId(1), 0, 8192).unwrap());
    assert_eq!(a.iov_base as usize % 4096, 0);
    assert_eq!(b.iov_base as usize - a.iov_base as usize, 8192);
    assert!(memory.scratch(BufId(0), 1, 8192).is_none());
    assert!(memory.scratch(BufId(2), 0, 1).is_none());
    assert!(memory.scratch(BufId(u32::MAX), usize::MAX, 1).is_none());
}

#[test]
fn a_list_is_cut_where_it_was_done() {
    let memory = memory();
    let mut pieces = IoVecs::default();
    for (buf, at, len) in [(0, 0, 100), (1, 4096, 200), (0, 512, 300)] {
        assert!(pieces.push_scratch(&memory, BufId(buf), at, len));
    }
    assert_eq!((pieces.total(), pieces.window().len()), (600, 3));
    pieces.advance(99);
    assert_eq!((pieces.total(), pieces.window()[0].iov_len), (501, 1));
    pieces.advance(1);
    assert_eq!((pieces.total(), pieces.window().len()), (500, 2));
    pieces.advance(250);
    assert_eq!((pieces.total(), pieces.window()[0].iov_len), (250, 250));
    pieces.advance(250);
    assert_eq!((pieces.total(), pieces.window().len()), (0, 0));
}

#[test]
fn alignment_counts_addresses_and_lengths() {
    let memory = memory();
    let aligned = |at, len| {
        let mut pieces = IoVecs::default();
        assert!(pieces.push_scratch(&memory, BufId(0), at, len));
        pieces.aligned(512)
    };
    assert!(aligned(0, 512) && aligned(1024, 2048));
    assert!(!aligned(1, 512) && !aligned(0, 511));
}

#[test]
fn zeroes_come_in_any_length_and_windows_are_bounded() {
    let memory = memory();
    let mut pieces = IoVecs::default();
    pieces.push_zeroes(&memory, 3 * ZEROES + 5);
    assert_eq!((pieces.total() as usize, pieces.window().len()), (3 * ZEROES + 5, 4));
    for _ in 0..IOV_MAX {
        pieces.push_zeroes(&memory, 1);
    }
    assert_eq!(pieces.window().len(), IOV_MAX);
}

#[test]
fn a_bounce_buffer_carries_bytes_both_ways() {
    let mut memory = memory();
    let bounce = memory.bounce().unwrap();
    assert!(memory.put(BufId(0), 0, &[1, 2, 3, 4, 5, 6]));
    let mut pieces = IoVecs::default();
    assert!(pieces.push_scratch(&memory, BufId(0), 4, 2));
    assert!(pieces.push_scratch(&memory, BufId(0), 0, 3));
    pieces.gather(&bounce, 5);
    assert!(memory.put(BufId(0), 0, &[9; 6]));
    pieces.scatter(&bounce, 4);
    let mut got = [0; 6];
    assert!(memory.get(BufId(0), 0, &mut got));
    assert_eq!(got, [1, 2, 9, 9, 5, 6]);
    memory.give_back(bounce);
    assert_eq!(memory.bounces.len(), 1);
}
