use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use super::*;

const MIB: u64 = 1 << 20;

fn arena(bound: u64) -> Arc<Arena> {
    Arena::new(&std::env::temp_dir(), bound).expect("an arena in the directory for such things")
}

fn word(arena: &Arena, address: usize, n: u64) -> &AtomicU64 {
    arena.word(arena.shared.mapping.offset(address).unwrap() + n * 8)
}

/// Bytes of the arena that this process has in memory, as the system counts.
pub(in crate::exception) fn in_memory(arena: &Arena) -> u64 {
    const PRESENT: u8 = 0x80;
    let page = rustix::param::page_size() as u64;
    let map = std::fs::File::open("/proc/self/pagemap").unwrap();
    // A word of 8 bytes a page, the highest bit in the last of them (the kernel's pagemap.rst).
    let mut words = vec![0; (arena.file_bytes() / page * 8) as usize];
    let first = arena.shared.mapping.address(0) as u64 / page;
    map.read_exact_at(&mut words, first * 8).unwrap();
    words.chunks(8).filter(|word| word[7] & PRESENT != 0).count() as u64 * page
}

#[test]
fn a_leaf_is_zero_and_nobody_else_s() {
    let arena = arena(MIB);
    let mut taken = BTreeSet::new();
    let classes = [Class::for_count(1), Class::for_count(100), Class::FLAT];
    for class in classes.iter().cycle().take(600) {
        let address = arena.allocate(*class).unwrap();
        for n in 0..class.words() as u64 {
            assert!(taken.insert(address + n as usize * 8));
            assert_eq!(word(&arena, address, n).swap(u64::MAX, Ordering::Relaxed), 0);
        }
    }
    assert!(arena.file_bytes() >= taken.len() as u64 * 8);
    assert!(arena.resident() <= MIB);
}

#[test]
fn what_was_freed_is_used_again_and_zero() {
    let arena = arena(MIB);
    let class = Class::for_count(20);
    let first: Vec<usize> = (0..5000).map(|_| arena.allocate(class).unwrap()).collect();
    for &address in &first {
        (0..class.words() as u64)
            .for_each(|n| word(&arena, address, n).store(7, Ordering::Relaxed));
        assert!(arena.free(address, class));
    }
    let used = arena.shared.used();
    let again: BTreeSet<usize> = (0..5000).map(|_| arena.allocate(class).unwrap()).collect();
    assert_eq!(again, first.into_iter().collect());
    assert_eq!(arena.shared.used(), used);
    for &address in &again {
        assert!(
            (0..class.words() as u64)
                .all(|n| word(&arena, address, n).load(Ordering::Relaxed) == 0)
        );
    }
    assert!(!arena.free(again.len(), class), "an address of somebody else");
}

#[test]
fn more_is_kept_than_is_in_memory() {
    let arena = arena(2 * MIB);
    let leaves: Vec<usize> = (0..1000).map(|_| arena.allocate(Class::FLAT).unwrap()).collect();
    for (n, &address) in leaves.iter().enumerate() {
        (0..4096)
            .step_by(512)
            .for_each(|w| word(&arena, address, w).store(n as u64 + w, Ordering::Relaxed));
        assert!(in_memory(&arena) <= 2 * MIB, "{} after leaf {n}", in_memory(&arena));
    }
    assert!(arena.file_bytes() >= 31 * MIB);
    for (n, &address) in leaves.iter().enumerate().rev() {
        for w in (0..4096).step_by(512) {
            assert_eq!(word(&arena, address, w).load(Ordering::Relaxed), n as u64 + w);
        }
        assert!(in_memory(&arena) <= 2 * MIB, "{} before leaf {n}", in_memory(&arena));
    }
    let counted = arena.resident();
    assert!(in_memory(&arena) <= counted, "{} of {counted}", in_memory(&arena));
    let aside = arena.set_aside(MIB);
    assert!(in_memory(&arena) <= MIB);
    drop(aside);
}

/// Where the evictor never has its turn, whoever looks keeps the bound.
#[test]
fn the_bound_holds_without_the_evictor() {
    let arena = arena(2 * MIB);
    // It counts as asked, so that nobody wakes it.
    arena.shared.asked.store(true, Ordering::SeqCst);
    for leaf in 0..200 {
        let address = arena.allocate(Class::FLAT).unwrap();
        (0..4096)
            .step_by(512)
            .for_each(|n| word(&arena, address, n).store(leaf + n, Ordering::Relaxed));
        assert!(in_memory(&arena) <= 2 * MIB, "{} after leaf {leaf}", in_memory(&arena));
    }
    assert!(arena.used_bytes() > 4 * MIB);
}

#[test]
fn a_file_that_cannot_grow_is_no_end() {
    let arena = arena(MIB);
    arena.shared.used.store(RESERVED / BLOCK, Ordering::Release);
    assert_eq!(arena.allocate(Class::FLAT), None);
    assert_eq!(arena.allocate(Class::for_count(1)), None);
}

/// Each thread has leaves of several sizes, fills them with its own, finds that there, and frees
/// them; all the time more is in use than may be in memory.
#[test]
fn threads_share_an_arena() {
    const THREADS: u64 = 3;
    let arena = arena(MIB);
    let work = |thread: u64| {
        let mut random = thread + 1;
        let mut has: Vec<(usize, Class, u64)> = Vec::new();
        for round in 0..3000u64 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(round | 1);
            let class = Class::for_count([3, 40, 300, 3000][(random >> 40) as usize % 4]);
            let mark = thread << 32 | round;
            let address = arena.allocate(class).unwrap();
            for n in 0..class.words() as u64 {
                assert_eq!(word(&arena, address, n).swap(mark, Ordering::Relaxed), 0);
            }
            has.push((address, class, mark));
            if has.len() > 60 {
                let (address, class, mark) = has.swap_remove((random >> 20) as usize % has.len());
                for n in 0..class.words() as u64 {
                    assert_eq!(word(&arena, address, n).load(Ordering::Relaxed), mark);
                }
                assert!(arena.free(address, class));
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || work(thread));
        }
    });
    let bound = MIB + THREADS * BLOCK;
    assert!(in_memory(&arena) <= bound, "{} of {bound}", in_memory(&arena));
}
