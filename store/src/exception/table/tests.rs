use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::exception::{Arena, Layer};
use crate::units::StoreChunk;

fn place(chunk: u64) -> Place {
    Place { layer: Layer::FIRST, chunk: StoreChunk(chunk) }
}

fn moved(table: &ExceptionTable, chunk: u64, to: u64) {
    let claim = table.claim(Chunk(chunk), table.get(Chunk(chunk))).unwrap();
    let _ = table.publish(claim, place(to));
}

fn found(table: &ExceptionTable) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    let mut from = Chunk(0);
    while let Some((chunk, place)) = table.next_mapped(from) {
        all.push((chunk.0, place.chunk.0));
        from = Chunk(chunk.0 + 1);
    }
    all
}

#[test]
fn a_claimed_chunk_is_pending_until_published() {
    let table = ExceptionTable::new(1000);
    let claim = table.claim(Chunk(700), ChunkState::Unmapped).unwrap();
    assert_eq!(table.get(Chunk(700)), ChunkState::Pending);
    assert_eq!(table.claim(Chunk(700), ChunkState::Unmapped).unwrap_err(), ChunkState::Pending);
    assert_eq!(table.publish(claim, place(2)), WakeSet::NONE);
    assert_eq!(table.get(Chunk(700)), ChunkState::Mapped(place(2)));
}

#[test]
fn a_claim_put_back_leaves_the_chunk_as_it_was() {
    let table = ExceptionTable::new(10);
    table.load(Chunk(3), place(9));
    let claim = table.claim(Chunk(3), ChunkState::Mapped(place(9))).unwrap();
    assert_eq!(table.put_back(claim), WakeSet::NONE);
    assert_eq!(table.get(Chunk(3)), ChunkState::Mapped(place(9)));
}

#[test]
fn the_owner_learns_who_waits() {
    let table = ExceptionTable::new(10);
    let claim = table.claim(Chunk(3), ChunkState::Unmapped).unwrap();
    assert!(table.wait(Chunk(3), ChunkState::Pending, WorkerBit::of(5)));
    assert_eq!(table.publish(claim, place(2)), WorkerBit::of(5).into());
    assert!(!table.wait(Chunk(3), ChunkState::Pending, WorkerBit::of(5)));
}

#[test]
fn a_run_is_claimed_as_far_as_chunks_lie_alike() {
    let table = ExceptionTable::new(3 * 4096);
    table.load(Chunk(4090), place(9));
    let before = table.claim_run(Chunk(4000), 200, ChunkState::Unmapped).unwrap();
    assert_eq!((before.chunk(), before.count()), (Chunk(4000), 90));
    assert_eq!(
        table.claim_run(Chunk(4090), 8, ChunkState::Unmapped).unwrap_err(),
        ChunkState::Mapped(place(9))
    );
    // What is behind it does not lie behind it in the store.
    let one = table.claim_run(Chunk(4090), 8, ChunkState::Mapped(place(9))).unwrap();
    assert_eq!(one.count(), 1);
    // Over the end of a region.
    let mut behind = table.claim_run(Chunk(4091), 10, ChunkState::Unmapped).unwrap();
    let rest = behind.split_off(3);
    assert_eq!((behind.chunk(), behind.count()), (Chunk(4091), 3));
    assert_eq!((rest.chunk(), rest.count()), (Chunk(4094), 7));
    // Whoever waits for one of them is told.
    assert!(table.wait(Chunk(4097), ChunkState::Pending, WorkerBit::of(5)));
    assert_eq!(table.publish(behind, place(50)), WakeSet::NONE);
    assert_eq!(table.publish(rest, place(70)), WorkerBit::of(5).into());
    assert_eq!(table.put_back(one), WakeSet::NONE);
    assert_eq!(table.put_back(before), WakeSet::NONE);
    let mapped: Vec<_> = [(4090, 9), (4091, 50), (4092, 51), (4093, 52)]
        .into_iter()
        .chain((0..7).map(|n| (4094 + n, 70 + n)))
        .collect();
    assert_eq!(found(&table), mapped);
    // Chunks that lie behind each other in the store, some of which go back there.
    let mut run = table.claim_run(Chunk(4091), 10, ChunkState::Mapped(place(50))).unwrap();
    assert_eq!(run.count(), 3);
    let rest = run.split_off(1);
    assert_eq!(table.publish(run, place(80)), WakeSet::NONE);
    assert_eq!(table.put_back(rest), WakeSet::NONE);
    let places = [4090, 4091, 4092, 4093, 4094].map(|chunk| table.get(Chunk(chunk)));
    assert_eq!(places, [9, 80, 51, 52, 70].map(|at| ChunkState::Mapped(place(at))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

    #[test]
    fn runs_are_what_claims_of_each_chunk_are(
        runs in prop::collection::vec((0..TRIED, 1u64..600, 0u64..600, any::<bool>()), 1..40)
    ) {
        let table = ExceptionTable::new(TRIED);
        let mut map = BTreeMap::new();
        for (number, (from, most, split, ends_well)) in runs.into_iter().enumerate() {
            let most = most.min(TRIED - from);
            let entry = |chunk| map.get(&chunk).map_or(ChunkState::Unmapped, |&at| ChunkState::Mapped(place(at)));
            let first = entry(from);
            let lies_alike = |n: &u64| match first {
                ChunkState::Mapped(at) => entry(from + n) == ChunkState::Mapped(place(at.chunk.0 + n)),
                other => entry(from + n) == other,
            };
            let count = (0..most).take_while(lies_alike).count() as u64;
            let other = if first == ChunkState::Unmapped { ChunkState::Mapped(place(1)) } else { ChunkState::Unmapped };
            prop_assert_eq!(table.claim_run(Chunk(from), most, other).unwrap_err(), first);
            let mut claim = table.claim_run(Chunk(from), most, first).unwrap();
            prop_assert_eq!((claim.chunk(), claim.count()), (Chunk(from), count));
            let rest = (0 < split && split < count).then(|| claim.split_off(split));
            for (part, at) in [(Some(claim), 0), (rest, split)] {
                let Some(part) = part else { continue };
                let to = number as u64 * 1000 + at;
                if ends_well {
                    map.extend((0..part.count()).map(|n| (from + at + n, to + n)));
                    prop_assert_eq!(table.publish(part, place(to)), WakeSet::NONE);
                } else {
                    prop_assert_eq!(table.put_back(part), WakeSet::NONE);
                }
            }
            prop_assert!(found(&table).into_iter().eq(map.clone()));
        }
    }
}

#[test]
fn what_is_mapped_is_found_and_moved() {
    let table = ExceptionTable::new(10_000);
    for chunk in [0, 4095, 4096, 9_999] {
        table.load(Chunk(chunk), place(chunk + 2));
    }
    let memory = table.memory();
    assert_eq!(found(&table), [(0, 2), (4095, 4097), (4096, 4098), (9_999, 10_001)]);
    table.remap(|chunk, _| (chunk.0 != 4095).then(|| place(chunk.0 + 7)));
    assert_eq!(found(&table), [(0, 7), (4096, 4103), (9_999, 10_006)]);
    assert_eq!(table.get(Chunk(4095)), ChunkState::Unmapped);
    assert_eq!(table.memory(), memory, "regions that nothing is mapped in take no memory");
}

/// `count` different chunks below `chunks`, in no order that the table could know.
fn scattered(count: u64, chunks: u64) -> impl Iterator<Item = u64> + Clone {
    assert!(chunks.is_power_of_two());
    // An odd multiplier walks every number below a power of two; the rest mixes the upper bits in.
    let mix = move |n: u64| {
        let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % chunks;
        let n = (n ^ (n >> (chunks.ilog2() / 2))).wrapping_mul(0xbf58_476d_1ce4_e5b9) % chunks;
        n ^ (n >> (chunks.ilog2() / 2))
    };
    (0..count).map(mix)
}

#[cfg(not(miri))]
/// Bytes for each of `count` exceptions, all that the table takes among them.
fn bytes_each(table: &ExceptionTable, count: u64) -> f64 {
    table.memory() as f64 / count as f64
}

#[cfg(not(miri))]
const TEBIBYTE: u64 = 1 << 28;

#[cfg(not(miri))] // it is about numbers, not about memory
#[test]
fn an_exception_scattered_at_random_takes_16_bytes_at_most() {
    const COUNT: u64 = 1_000_000;
    let mut opened = ExceptionTable::new(TEBIBYTE);
    let read = scattered(COUNT, TEBIBYTE).zip(2..);
    opened.fill(read.clone().map(|(chunk, to)| (Chunk(chunk), place(to))));
    assert!(bytes_each(&opened, COUNT) <= 16.0, "{}", bytes_each(&opened, COUNT));
    for (chunk, to) in read.step_by(97) {
        assert_eq!(opened.get(Chunk(chunk)), ChunkState::Mapped(place(to)));
    }
    // As dense, and three times as dense, on a part of that disk; one after another.
    for (chunks, count) in [(TEBIBYTE / 16, COUNT / 16), (TEBIBYTE / 64, 3 * COUNT / 64)] {
        let claimed = ExceptionTable::new(chunks);
        scattered(count, chunks).for_each(|chunk| moved(&claimed, chunk, 2));
        assert!(bytes_each(&claimed, count) <= 16.0, "{count}: {}", bytes_each(&claimed, count));
    }
}

#[cfg(not(miri))] // it is about numbers, not about memory
#[test]
fn a_dense_exception_takes_9_bytes_at_most() {
    const COUNT: u64 = 100_000;
    let table = ExceptionTable::new(COUNT);
    (0..COUNT).for_each(|chunk| moved(&table, chunk, 2 + chunk));
    assert!(bytes_each(&table, COUNT) <= 9.0, "{}", bytes_each(&table, COUNT));
    assert!((0..COUNT).all(|n| table.get(Chunk(n)) == ChunkState::Mapped(place(2 + n))));
    assert_eq!(table.next_mapped(Chunk(COUNT - 1)), Some((Chunk(COUNT - 1), place(COUNT + 1))));
}

#[test]
fn memory_follows_what_changed() {
    let table = ExceptionTable::new(1 << 24);
    let empty = table.memory();
    assert!(empty <= 64 << 10, "{empty} bytes for 64 GiB of which nothing changed");
    moved(&table, 1 << 23, 2);
    assert!(table.memory() - empty <= 48);
}

/// However many chunks of a region are mapped, and wherever: none costs much more than 16 bytes.
#[cfg(not(miri))] // it is about numbers, not about memory
#[test]
fn a_region_is_never_much_larger_than_what_it_holds() {
    let table = ExceptionTable::new(4096);
    let empty = table.memory();
    for (n, chunk) in scattered(4096, 4096).enumerate() {
        moved(&table, chunk, 2);
        let (count, bytes) = (n + 1, table.memory() - empty);
        assert!(bytes <= 16 * count + 32, "{bytes} bytes for {count}");
    }
    assert_eq!(table.memory() - empty, 8 * 4096, "all of them are an array");
}

#[test]
fn a_chunk_that_is_mapped_in_a_lower_layer_takes_no_second_place() {
    let mut table = ExceptionTable::new(10_000);
    table.fill([5, 6, 9_000].map(|chunk| (Chunk(chunk), place(chunk))).into_iter());
    let upper = |chunk| Place { layer: Layer(2), chunk: StoreChunk(chunk) };
    table.fill([6, 7].map(|chunk| (Chunk(chunk), upper(chunk))).into_iter());
    assert_eq!(found(&table), [(5, 5), (6, 6), (7, 7), (9_000, 9_000)]);
    assert_eq!(table.get(Chunk(6)), ChunkState::Mapped(upper(6)));
    assert_eq!(table.get(Chunk(5)), ChunkState::Mapped(place(5)));
}

/// What is pending, and who waits for it, does not change by its region's growing.
#[test]
fn a_claim_outlives_the_leaf_it_was_made_in() {
    let all = if cfg!(miri) { 150 } else { 4096 };
    let table = ExceptionTable::new(4096);
    let claim = table.claim(Chunk(0), ChunkState::Unmapped).unwrap();
    let given_up = table.claim(Chunk(1), ChunkState::Unmapped).unwrap();
    assert!(table.wait(Chunk(0), ChunkState::Pending, WorkerBit::of(3)));
    (2..100).for_each(|chunk| moved(&table, chunk, chunk));
    assert_eq!(table.get(Chunk(0)), ChunkState::Pending);
    assert_eq!(table.publish(claim, place(7)), WorkerBit::of(3).into());
    assert_eq!(table.put_back(given_up), WakeSet::NONE);
    assert_eq!(table.get(Chunk(0)), ChunkState::Mapped(place(7)));
    assert_eq!(table.get(Chunk(1)), ChunkState::Unmapped);
    (100..all).for_each(|chunk| moved(&table, chunk, chunk));
    assert_eq!(table.get(Chunk(0)), ChunkState::Mapped(place(7)));
    assert_eq!(table.get(Chunk(1)), ChunkState::Unmapped);
}

/// Where tables are tried to lie: in memory, and in an arena where there can be one.
fn memories() -> Vec<Memory> {
    #[cfg(miri)]
    let arena = None;
    // One for all, so that tables get what others left behind.
    #[cfg(not(miri))]
    let arena = {
        static ARENA: std::sync::OnceLock<std::sync::Arc<Arena>> = std::sync::OnceLock::new();
        Some(ARENA.get_or_init(|| Arena::new(&std::env::temp_dir(), 1 << 20).unwrap()).clone())
    };
    std::iter::once(Memory::Heap).chain(arena.map(Memory::Arena)).collect()
}

/// What is entered a part at a time is what is entered at once, in no more memory.
#[test]
fn mappings_are_entered_in_parts() {
    let count = if cfg!(miri) { 100 } else { 20_000 };
    let all: Vec<(Chunk, Place)> =
        scattered(count, 1 << 16).zip(2..).map(|(chunk, to)| (Chunk(chunk), place(to))).collect();
    for memory in memories() {
        let mut whole = ExceptionTable::new_in(1 << 16, &memory);
        whole.fill(all.iter().copied());
        let mut parts = ExceptionTable::new_in(1 << 16, &memory);
        let mut counts = parts.counts();
        all.iter().for_each(|(chunk, _)| counts.add(*chunk));
        all.chunks(777).for_each(|part| parts.enter(&counts, part.iter().copied()));
        assert_eq!(found(&parts), found(&whole));
        assert_eq!(parts.memory(), whole.memory());
    }
}

/// A table that is several times as large as what may be in memory of it, under threads that look
/// and move: it says what one in memory would, and what is let go of is as it was.
#[cfg(not(miri))] // which has no files to map
#[test]
fn a_table_larger_than_its_bound_loses_nothing() {
    const CHUNKS: u64 = 1 << 20;
    const THREADS: u64 = 3;
    const BOUND: u64 = 1 << 20;
    let arena = Arena::new(&std::env::temp_dir(), BOUND).unwrap();
    let mut table = ExceptionTable::new_in(CHUNKS, &Memory::Arena(arena.clone()));
    let first: Vec<u64> = scattered(CHUNKS / 4, CHUNKS).collect();
    table.fill(first.iter().map(|&chunk| (Chunk(chunk), place(chunk + 1))));
    let most = std::sync::atomic::AtomicU64::new(0);
    let work = |thread: u64| {
        let others = scattered(CHUNKS / 2, CHUNKS).skip(first.len()).step_by(20);
        for (n, chunk) in (0..).zip(others).filter(|(n, _)| n % THREADS == thread) {
            moved(&table, chunk, chunk + 1);
            let known = first[n as usize * 13 % first.len()];
            assert_eq!(table.get(Chunk(known)), ChunkState::Mapped(place(known + 1)));
            most.fetch_max(arena.resident(), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|thread| drop(scope.spawn(move || work(thread))));
    });
    let most = most.into_inner();
    assert!(most <= BOUND + THREADS * (64 << 10), "{most} bytes were in memory");
    assert!(arena.file_bytes() > 3 * BOUND, "{} bytes: it fits", arena.file_bytes());
    let all = found(&table);
    let bytes = crate::exception::arena::tests::in_memory(&arena);
    assert!(bytes <= BOUND + (64 << 10), "{bytes} bytes are in memory after a look at all of it");
    assert_eq!(all.len(), first.len() + first.len().div_ceil(20));
    assert!(all.iter().all(|&(chunk, at)| at == chunk + 1));
    let used = arena.used_bytes();
    drop(table);
    let mut again = ExceptionTable::new_in(CHUNKS, &Memory::Arena(arena.clone()));
    again.fill(first.iter().map(|&chunk| (Chunk(chunk), place(chunk + 2))));
    assert_eq!(found(&again).len(), first.len());
    assert_eq!(arena.used_bytes(), used, "it takes what another table left behind");
}

/// Threads that race in one region, from its first chunk until it is an array: each chunk is moved
/// once, and what was published stays.
#[test]
fn threads_that_grow_a_region_lose_nothing() {
    const THREADS: u64 = 3;
    let count = if cfg!(miri) { 60 } else { 4096 };
    let tries = if cfg!(miri) { 1 } else { 20 };
    for memory in memories().into_iter().flat_map(|memory| vec![memory; tries]) {
        let table = ExceptionTable::new_in(4096, &memory);
        let moved = |thread: u64| {
            let mut own = 0;
            for chunk in scattered(4096, 4096).take(count) {
                match table.claim(Chunk(chunk), ChunkState::Unmapped) {
                    Ok(claim) => {
                        own += 1;
                        let _ = table.publish(claim, place(chunk * THREADS + thread));
                    }
                    Err(ChunkState::Mapped(at)) => {
                        assert_eq!(at.chunk.0 / THREADS, chunk);
                        assert_eq!(table.get(Chunk(chunk)), ChunkState::Mapped(at));
                    }
                    Err(other) => assert_eq!(other, ChunkState::Pending),
                }
            }
            own
        };
        let all: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || moved(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(all, count);
        assert_eq!(found(&table).len(), count);
    }
}

/// Chunks of the table that is tried against a map: regions, and a part of one.
const TRIED: u64 = if cfg!(miri) { 4300 } else { 3 * 4096 - 5 };

#[derive(Clone, Copy, Debug)]
enum Step {
    Move,
    GiveUp,
    Enter,
    /// Copied back, or begun to be and given up.
    Back(bool),
    Remap,
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64, u64, u64)>> {
    let step = prop_oneof![
        4 => Just(Step::Move),
        1 => Just(Step::GiveUp),
        1 => Just(Step::Enter),
        2 => any::<bool>().prop_map(Step::Back),
        1 => Just(Step::Remap),
    ];
    let (most, steps) = if cfg!(miri) { (30, 4) } else { (3000, 12) };
    prop::collection::vec((step, 0..TRIED, 1u64..40, 1u64..most), 1..steps)
}

/// Carries a step out on every `stride`th chunk from `from` on, in both.
fn carry_out(
    (step, from, stride, count): (Step, u64, u64, u64),
    table: &ExceptionTable,
    map: &mut BTreeMap<u64, u64>,
) {
    if matches!(step, Step::Remap) {
        let to = |chunk: u64, at: u64| {
            (!chunk.is_multiple_of(stride)).then_some((at + from) % (1 << 37))
        };
        table.remap(|chunk, at| to(chunk.0, at.chunk.0).map(place));
        *map = map.iter().filter_map(|(&chunk, &at)| Some((chunk, to(chunk, at)?))).collect();
        return;
    }
    for chunk in (0..count).map(|n| (from + n * stride) % TRIED) {
        let before = map.get(&chunk).copied();
        let seen = before.map_or(ChunkState::Unmapped, |at| ChunkState::Mapped(place(at)));
        assert_eq!(table.get(Chunk(chunk)), seen);
        let to = before.unwrap_or(chunk) + 1;
        match step {
            Step::Move => {
                let claim = table.claim(Chunk(chunk), seen).unwrap();
                assert_eq!(table.claim(Chunk(chunk), seen).unwrap_err(), ChunkState::Pending);
                assert_eq!(table.publish(claim, place(to)), WakeSet::NONE);
                map.insert(chunk, to);
            }
            Step::GiveUp => {
                let claim = table.claim(Chunk(chunk), seen).unwrap();
                assert_eq!(table.put_back(claim), WakeSet::NONE);
            }
            Step::Enter => {
                table.load(Chunk(chunk), place(to));
                map.insert(chunk, to);
            }
            Step::Back(done) => {
                let at = place(before.unwrap_or(0));
                assert_eq!(table.mark_busy(Chunk(chunk), at), before.is_some());
                if before.is_some() && done {
                    let _ = table.clear_busy(Chunk(chunk), at);
                    map.remove(&chunk);
                } else if before.is_some() {
                    let _ = table.keep_busy_mapped(Chunk(chunk), at);
                }
            }
            Step::Remap => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 100 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_table_says_what_a_map_would(steps in steps()) {
        for memory in memories() {
            let table = ExceptionTable::new_in(TRIED, &memory);
            let mut map = BTreeMap::new();
            for &step in &steps {
                carry_out(step, &table, &mut map);
                prop_assert_eq!(found(&table), Vec::from_iter(map.clone()));
            }
            for chunk in 0..TRIED {
                let mapped = map.get(&chunk).map_or(ChunkState::Unmapped, |&at| ChunkState::Mapped(place(at)));
                prop_assert_eq!(table.get(Chunk(chunk)), mapped);
            }
            let mut again = ExceptionTable::new_in(TRIED, &memory);
            again.fill(map.iter().map(|(&chunk, &at)| (Chunk(chunk), place(at))));
            prop_assert_eq!(found(&again), Vec::from_iter(map));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 64 }))]

    /// What is taken in, one layer over another, is what the lists say.
    #[test]
    fn what_is_taken_in_is_what_was_listed(
        lower in prop::collection::btree_map(0u64..40_000, 2u64..1 << 37, 0..300),
        upper in prop::collection::vec((0u64..40_000, 2u64..1 << 37), 0..2000),
        below in prop::sample::select(vec![300u64, 6000, 40_000]),
    ) {
        let mut table = ExceptionTable::new(40_000);
        let mut expected = BTreeMap::new();
        for (n, list) in [lower.into_iter().collect(), upper].into_iter().enumerate() {
            let layer = Layer(n as u16 + 1);
            let list: Vec<(u64, u64)> = list;
            let list: BTreeMap<_, _> = list.into_iter().map(|(old, at)| (old % below, at)).collect();
            let mut intake = Intake::new(40_000);
            for (old, new) in list {
                let (old, new) = (Chunk(old), StoreChunk(new));
                intake.add(old, new);
                expected.insert(old, Place { layer, chunk: new });
            }
            table.take_in(intake, layer);
        }
        for chunk in (0..40_000).map(Chunk) {
            let entry = expected.get(&chunk).map_or(ChunkState::Unmapped, |&place| ChunkState::Mapped(place));
            prop_assert_eq!(table.get(chunk), entry);
        }
    }
}

/// A leaf of every size, as full as it gets, also where searches go on at its other end.
#[cfg(not(miri))] // it is about numbers, not about memory
#[test]
fn a_leaf_that_was_taken_in_is_as_one_that_grew() {
    for count in (1..400).chain((400..=4096).step_by(29)) {
        let chunks: Vec<u64> = scattered(count, 4096).map(|chunk| 4095 - chunk).collect();
        let mut table = ExceptionTable::new(4096);
        let mut intake = Intake::new(4096);
        chunks.iter().for_each(|&chunk| intake.add(Chunk(chunk), StoreChunk(chunk + 2)));
        table.take_in(intake, Layer::FIRST);
        let mut filled = ExceptionTable::new(4096);
        filled.fill(chunks.iter().map(|&chunk| (Chunk(chunk), place(chunk + 2))));
        assert_eq!(table.memory(), filled.memory(), "{count}");
        assert!(chunks.iter().all(|&n| table.get(Chunk(n)) == ChunkState::Mapped(place(n + 2))));
        // It knows how full it is, and grows where the other does.
        for chunk in (0..4096).filter(|n| count % 15 == 0 && !chunks.contains(n)) {
            moved(&table, chunk, 2);
            moved(&filled, chunk, 2);
            assert_eq!(table.memory(), filled.memory(), "{count}");
        }
    }
}
