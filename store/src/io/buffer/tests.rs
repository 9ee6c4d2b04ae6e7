use super::*;

fn memory() -> Memory {
    Memory::new(ScratchConfig { buffers: 2, size: 5000, pages: Pages::Small }).unwrap()
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

/// The flags of the mapping that begins at `address`, as the kernel lists them.
fn flags_at(address: usize) -> Option<String> {
    let listed = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let start = format!("{address:x}-");
    let mut lines = listed.lines().skip_while(|line| !line.starts_with(&start));
    lines.find_map(|line| line.strip_prefix("VmFlags:")).map(str::to_owned)
}

#[test]
fn large_memory_is_huge_pages_if_asked_for() {
    const HUGE: usize = 2 << 20;
    let config = |pages| ScratchConfig { buffers: 2, size: HUGE as u32 + 5000, pages };
    for pages in [Pages::Small, Pages::Huge] {
        let memory = Memory::new(config(pages)).unwrap();
        let base = memory.scratch(BufId(0), 0, 1).unwrap().iov_base as usize;
        if pages == Pages::Huge {
            assert_eq!(base % HUGE, 0);
        }
        if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            let flags = flags_at(base).expect("the mapping is listed");
            assert_eq!(flags.contains(" hg"), pages == Pages::Huge, "{pages:?}:{flags}");
        }
        let last = memory.scratch(BufId(1), HUGE + 8191, 1).unwrap();
        assert_eq!(last.iov_base as usize, base + 2 * (HUGE + 8192) - 1);
    }
}

#[test]
fn slices_lie_behind_each_other() {
    let mut slices = Slices::new(3, Pages::Huge).unwrap();
    assert_eq!(slices.count(), 3);
    for index in 0..3 {
        assert!(slices.bytes_mut(index).iter().all(|&byte| byte == 0));
        slices.bytes_mut(index).fill(index as u8 + 1);
    }
    assert!((0..3).all(|index| slices.bytes_mut(index).iter().all(|&b| b == index as u8 + 1)));
    let base = slices.piece(0, 0, 1).unwrap().iov_base as usize;
    let last = slices.piece(2, SLICE - 7, 7).unwrap();
    assert_eq!((last.iov_base as usize, last.iov_len), (base + 3 * SLICE - 7, 7));
    assert!(slices.piece(0, 1, SLICE).is_none() && slices.piece(3, 0, 1).is_none());
    assert_eq!(Slices::new(0, Pages::Small).unwrap().count(), 0);
}
