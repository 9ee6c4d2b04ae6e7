use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// By region: its chunks in the order in which they come out, and where they lie.
fn drained(intake: Intake) -> Vec<(usize, Vec<(u16, u64)>)> {
    let mut all = Vec::new();
    intake.drain(|region, mappings| {
        assert_eq!(mappings.iter().count(), mappings.len());
        all.push((region, mappings.iter().map(|(key, new)| (key.0, new.0)).collect()));
    });
    all
}

fn intake(chunks: u64, mappings: &[(u64, u64)]) -> Intake {
    let mut intake = Intake::new(chunks);
    mappings.iter().for_each(|&(old, new)| intake.add(Chunk(old), StoreChunk(new)));
    intake
}

#[test]
fn nothing_comes_out_where_nothing_was_added() {
    for chunks in [0, 1, 4096, 1 << 40] {
        assert!(!intake(chunks, &[]).has_twice());
        assert_eq!(drained(intake(chunks, &[])), []);
    }
}

#[test]
fn the_ends_of_a_large_disk_and_of_a_large_store_are_kept_apart() {
    const CHUNKS: u64 = 1 << 38;
    let far = Place::MAX_CHUNK;
    let mappings = [(CHUNKS - 1, far), (0, far), (4095, 2), (4096, far - 1), (CHUNKS / 2, 9)];
    let has = drained(intake(CHUNKS, &mappings));
    let last = (CHUNKS / 4096) as usize - 1;
    let expected = [
        (0, vec![(0, far), (4095, 2)]),
        (1, vec![(0, far - 1)]),
        ((CHUNKS / 2 / 4096) as usize, vec![(0, 9)]),
        (last, vec![(4095, far)]),
    ];
    assert_eq!(has, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 128 }))]

    /// Each region once, with what was added to it in that order; and what was added twice is told.
    #[test]
    fn what_was_added_comes_out_by_region(
        chunks in prop::sample::select(vec![5000u64, 1 << 20, 3 << 26, 1 << 33]),
        seeds in prop::collection::vec((any::<u64>(), 0..=Place::MAX_CHUNK), 0..2000),
        near in any::<bool>(),
    ) {
        // Near each other some are for one chunk, and many in one stripe.
        let below = if near { chunks.min(1 << 14) } else { chunks };
        let mappings: Vec<(u64, u64)> =
            seeds.into_iter().map(|(old, new)| (old % below, new)).collect();
        let mut expected = BTreeMap::<usize, Vec<(u16, u64)>>::new();
        for &(old, new) in &mappings {
            let of = expected.entry((old / 4096) as usize).or_default();
            of.push(((old % 4096) as u16, new));
        }
        let olds: std::collections::BTreeSet<u64> = mappings.iter().map(|&(old, _)| old).collect();
        let intake = intake(chunks, &mappings);
        prop_assert_eq!(intake.has_twice(), olds.len() < mappings.len());
        prop_assert_eq!(drained(intake), expected.into_iter().collect::<Vec<_>>());
    }
}
