use std::cell::RefCell;
use std::io;

use sha2::{Digest, Sha256};

use super::*;
use crate::units::{Chunk, StoreChunk};

fn entry(old: u64, new: u64) -> Entry {
    Entry { old: Chunk(old), new: StoreChunk(new) }
}

/// A store in memory that keeps a log of what was done to it.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    log: RefCell<Vec<String>>,
    fail_reads_from: Option<u64>,
    fail_writes: bool,
}

impl Memory {
    fn new(bytes: Vec<u8>) -> Memory {
        let (bytes, log) = (bytes.into(), RefCell::default());
        Memory { bytes, log, fail_reads_from: None, fail_writes: false }
    }

    /// A store of `chunks` chunks of 512 bytes with these entries.
    fn with_entries(chunks: usize, entries: &[(u64, u64)]) -> Memory {
        let mut bytes = vec![0; chunks * 512];
        bytes[..16].copy_from_slice(&[0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        for (at, (old, new)) in entries.iter().enumerate() {
            // Areas of 512-byte chunks: 32 entries each, at chunks 1, 34, 67.
            let place = (1 + at / 32 * 33) * 512 + at % 32 * 16;
            bytes[place..place + 8].copy_from_slice(&old.to_le_bytes());
            bytes[place + 8..place + 16].copy_from_slice(&new.to_le_bytes());
        }
        Memory::new(bytes)
    }
}

impl Storage for Memory {
    fn name(&self) -> String {
        "memory".into()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.borrow().len() as u64)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(buffer.len() <= SLICE, "reads go in slices");
        if self.fail_reads_from.is_some_and(|from| offset + buffer.len() as u64 > from) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let bytes = self.bytes.borrow();
        let from = bytes.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        assert!(data.len() <= SLICE, "writes go in slices");
        if self.fail_writes {
            return Err(io::Error::from_raw_os_error(28));
        }
        self.log.borrow_mut().push(format!("write {offset}+{}", data.len()));
        self.bytes.borrow_mut()[offset as usize..offset as usize + data.len()]
            .copy_from_slice(data);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.log.borrow_mut().push("sync".into());
        Ok(())
    }
}

fn kind_of(result: Result<OpenStore, StoreError>) -> StoreErrorKind {
    result.expect_err("must be refused").kind
}

fn problem_of(result: Result<OpenStore, StoreError>) -> Problem {
    match kind_of(result) {
        StoreErrorKind::Entry(problem) => problem,
        other => panic!("{other}"),
    }
}

#[test]
fn scenario_34_a_new_store_zeroes_its_area_before_the_header_lands() {
    let storage = Memory::new(vec![0xaa; 20 * 512]);
    storage.bytes.borrow_mut()[..16].fill(0);
    let options =
        OpenOptions { chunk: ChunkSize::from_sectors(1), create: true, ..OpenOptions::default() };
    let store = open(&storage, &options).unwrap();
    assert_eq!(*storage.log.borrow(), ["write 0+1024", "sync", "write 0+512", "sync"]);
    assert_eq!((store.valid, store.next, store.garbage), (true, DataIndex(0), false));
    assert!(storage.bytes.borrow()[16..1024].iter().all(|&byte| byte == 0));
    assert_eq!(open(&storage, &OpenOptions::default()).unwrap(), store);
    // Scenario 14: a fresh store reports 2 chunks.
    assert_eq!(store.usage(), Usage { allocated: 2, total: 20, metadata: 2 });
}

#[test]
fn nothing_is_made_unasked() {
    let storage = Memory::new(vec![0; 4096]);
    assert!(matches!(kind_of(open(&storage, &OpenOptions::default())), StoreErrorKind::Empty));
    assert!(storage.log.borrow().is_empty());
}

#[test]
fn a_store_below_two_chunks_is_refused() {
    let small = Memory::with_entries(1, &[]);
    let kind = kind_of(open(&small, &OpenOptions::default()));
    assert!(matches!(kind, StoreErrorKind::TooSmall { len: 512, needed: 1024 }), "{kind}");
    let nothing = Memory::new(Vec::new());
    let kind = kind_of(open(&nothing, &OpenOptions { create: true, ..Default::default() }));
    assert!(matches!(kind, StoreErrorKind::TooSmall { len: 0, .. }), "{kind}");
}

#[test]
fn scenario_18_an_exception_for_chunk_0_is_one() {
    let storage = Memory::with_entries(10, &[(0, 2), (7, 3)]);
    let store = open(&storage, &OpenOptions::default()).unwrap();
    assert_eq!(store.entries, [entry(0, 2), entry(7, 3)]);
    assert_eq!(store.next, DataIndex(2));
}

#[test]
fn scenario_16_a_full_area_is_not_handed_out_as_data() {
    let entries: Vec<_> = (0..32).map(|n| (n, n + 2)).collect();
    let store = open(&Memory::with_entries(40, &entries), &OpenOptions::default()).unwrap();
    assert_eq!(store.entries.len(), 32);
    assert_eq!(store.area(), 1);
    assert_eq!(store.geometry.next_free(store.next), StoreChunk(35), "34 is area 1");
}

#[test]
fn next_counts_from_the_highest_not_the_number() {
    // Holes, as after a merge from the middle or a failed write.
    let store =
        open(&Memory::with_entries(40, &[(5, 9), (6, 4)]), &OpenOptions::default()).unwrap();
    assert_eq!(store.geometry.next_free(store.next), StoreChunk(10));
}

#[test]
fn scenario_20_entries_that_cannot_be_right_are_refused_by_offset() {
    let refused = |entries: &[(u64, u64)], origin_len| {
        let options = OpenOptions { origin_len, ..Default::default() };
        problem_of(open(&Memory::with_entries(40, entries), &options))
    };
    assert_eq!(
        refused(&[(1, 2), (2, 40)], None),
        Problem {
            position: 1,
            offset: 528,
            kind: ProblemKind::OutsideStore { new: StoreChunk(40), chunks: 40 }
        }
    );
    for metadata in [1, 34] {
        assert_eq!(
            refused(&[(1, metadata)], None).kind,
            ProblemKind::Metadata { new: StoreChunk(metadata) }
        );
    }
    assert_eq!(
        refused(&[(3, 2), (4, 3)], Some(4 * 512)).kind,
        ProblemKind::OutsideOrigin { old: Chunk(4), chunks: 4 }
    );
    assert_eq!(
        refused(&[(7, 2), (8, 3), (7, 4)], None),
        Problem {
            position: 2,
            offset: 544,
            kind: ProblemKind::DuplicateOld { old: Chunk(7), first: 512 }
        }
    );
    assert_eq!(
        refused(&[(7, 3), (8, 2), (9, 3)], None).kind,
        ProblemKind::DuplicateNew { new: StoreChunk(3), first: 512 }
    );
}

#[test]
fn a_chunk_that_the_origin_ends_in_belongs_to_it() {
    let storage = Memory::with_entries(40, &[(3, 2)]);
    let options = OpenOptions { origin_len: Some(3 * 512 + 1), ..Default::default() };
    assert!(open(&storage, &options).is_ok());
}

#[test]
fn every_problem_is_reported_up_to_the_limit() {
    let storage = Memory::with_entries(40, &[(1, 99), (1, 1), (1, 5), (2, 5)]);
    let store = inspect(&storage).unwrap();
    assert_eq!(problems(&store, None, 10).len(), 5);
    assert_eq!(problems(&store, None, 3).len(), 3);
}

#[test]
fn scenario_19_garbage_behind_the_end_is_seen_and_zeroed() {
    let storage = Memory::with_entries(40, &[(1, 2), (2, 3)]);
    assert!(!open(&storage, &OpenOptions::default()).unwrap().garbage);
    // A torn area write: entry 2 is missing, entries 3 and 31 are there.
    storage.bytes.borrow_mut()[512 + 3 * 16] = 7;
    storage.bytes.borrow_mut()[512 + 31 * 16 + 8] = 9;
    let mut store = open(&storage, &OpenOptions::default()).unwrap();
    assert!(store.garbage);
    assert_eq!(store.entries.len(), 2, "and it is no mapping");
    storage.log.borrow_mut().clear();
    zero_garbage(&storage, &mut store).unwrap();
    assert_eq!(*storage.log.borrow(), ["write 544+480", "sync"]);
    let again = open(&storage, &OpenOptions::default()).unwrap();
    assert!(!again.garbage);
    assert_eq!(again.entries, store.entries);
}

#[test]
fn garbage_is_looked_for_in_the_whole_of_a_large_area() {
    // 4 MiB chunks: an area of four slices.
    let mut bytes = vec![0; 3 * (4 << 20)];
    bytes[..16].copy_from_slice(&[0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0x20, 0, 0]);
    let storage = Memory::new(bytes);
    assert!(!open(&storage, &OpenOptions::default()).unwrap().garbage);
    storage.bytes.borrow_mut()[(8 << 20) - 1] = 1;
    let store = open(&storage, &OpenOptions::default()).unwrap();
    assert_eq!(store.geometry.chunk.bytes(), 4 << 20);
    assert!(store.garbage);
    // The byte behind the area is data and none of our business.
    storage.bytes.borrow_mut()[(8 << 20) - 1] = 0;
    storage.bytes.borrow_mut()[8 << 20] = 1;
    assert!(!open(&storage, &OpenOptions::default()).unwrap().garbage);
}

#[test]
fn a_store_cut_short_behind_a_full_area_is_refused() {
    let entries: Vec<_> = (0..32).map(|n| (n, n + 2)).collect();
    let kind = kind_of(open(&Memory::with_entries(34, &entries), &OpenOptions::default()));
    assert!(
        matches!(kind, StoreErrorKind::CutShort { area: 1, offset: 17408, len: 17408 }),
        "{kind}"
    );
}

#[test]
fn a_read_error_fails_the_opening() {
    let entries: Vec<_> = (0..32).map(|n| (n, n + 2)).collect();
    let mut storage = Memory::with_entries(40, &entries);
    storage.fail_reads_from = Some(34 * 512);
    let error = open(&storage, &OpenOptions::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("store memory: cannot read its list of exceptions at byte 17408: ")
    );
}

#[test]
fn the_chunk_size_on_disk_wins() {
    let storage = Memory::with_entries(40, &[]);
    let options = OpenOptions { chunk: Some(ChunkSize::DEFAULT), ..Default::default() };
    assert_eq!(open(&storage, &options).unwrap().geometry.chunk.bytes(), 512);
}

#[test]
fn invalid_is_for_good() {
    let storage = Memory::with_entries(40, &[(1, 2)]);
    storage.bytes.borrow_mut()[4] = 0;
    let store = open(&storage, &OpenOptions::default()).unwrap();
    assert!(!store.valid);
    assert_eq!(store.count(), 0, "it has nothing to be used");
    // The header may be in the system's cache only, and stay there, if its sync failed.
    assert_eq!(*storage.log.borrow(), ["write 0+512", "sync"]);
    storage.log.borrow_mut().clear();
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    assert_eq!(open(&storage, &options).unwrap(), store);
    assert_eq!(*storage.log.borrow(), ["sync"]);
    assert_eq!(inspect(&storage).unwrap().entries, [entry(1, 2)]);
}

/// Its content is lost, whatever its list has become: a server goes on without it.
#[test]
fn an_invalid_store_opens_whatever_its_list_is() {
    let full: Vec<_> = (0..32).map(|n| (n, n + 2)).collect();
    let cut = Memory::with_entries(34, &full);
    let header = Memory::with_entries(1, &[]);
    let misplaced = Memory::with_entries(10, &[(0, 2), (1, 12)]);
    let twice = Memory::with_entries(10, &[(0, 2), (0, 3)]);
    let unreadable =
        Memory { fail_reads_from: Some(512), ..Memory::with_entries(10, &[(0, 2), (1, 3)]) };
    let known = OpenOptions { invalid: true, ..OpenOptions::default() };
    for (name, storage) in [
        ("cut", &cut),
        ("header", &header),
        ("misplaced", &misplaced),
        ("twice", &twice),
        ("unreadable", &unreadable),
    ] {
        for keep in [Keep::All, Keep::Newest] {
            kind_of(open(storage, &OpenOptions { keep, ..OpenOptions::default() }));
            let store = open(storage, &OpenOptions { keep, ..known }).unwrap();
            assert_eq!((store.valid, store.count()), (false, 0), "{name}, as the state says");
        }
        storage.bytes.borrow_mut()[4] = 0;
        let store = open(storage, &OpenOptions::default()).unwrap();
        assert_eq!((store.valid, store.count()), (false, 0), "{name}");
        assert!(!inspect(storage).unwrap().valid, "{name}");
        // What is no store is none.
        storage.bytes.borrow_mut()[8] = 2;
        let kind = kind_of(open(storage, &known));
        assert!(matches!(kind, StoreErrorKind::Header(_)), "{name}: {kind}");
    }
}

/// I14: it may not be durable, and whoever acts on it overwrites what is needed if it is not.
#[test]
fn an_invalid_header_that_cannot_be_written_again_is_not_believed() {
    let mut storage = Memory::with_entries(40, &[(0, 2)]);
    storage.bytes.borrow_mut()[4] = 0;
    storage.fail_writes = true;
    let kind = kind_of(open(&storage, &OpenOptions::default()));
    assert!(matches!(kind, StoreErrorKind::Io { what: "write its header", .. }), "{kind}");
    // Who knows it from elsewhere, or writes nothing, does not need the header.
    for (invalid, read_only) in [(true, false), (false, true)] {
        let options = OpenOptions { invalid, read_only, ..OpenOptions::default() };
        assert!(!open(&storage, &options).unwrap().valid);
    }
    storage.fail_writes = false;
    assert!(!open(&storage, &OpenOptions::default()).unwrap().valid);
    assert_eq!(storage.log.borrow()[2..], ["write 0+512", "sync"]);
}

#[test]
fn the_newest_entries_go_one_area_at_a_time() {
    let entries: Vec<_> = (0..34).map(|n| (n, if n < 32 { n + 2 } else { n + 3 })).collect();
    let storage = Memory::with_entries(40, &entries);
    let mut store = open(&storage, &OpenOptions::default()).unwrap();
    assert_eq!(*storage.log.borrow(), ["sync"], "what it says is durable when it is open");
    storage.log.borrow_mut().clear();
    remove_newest(&storage, &mut store, 2).unwrap();
    assert_eq!(*storage.log.borrow(), ["write 17408+32", "sync"]);
    remove_newest(&storage, &mut store, 31).unwrap();
    let again = open(&storage, &OpenOptions::default()).unwrap();
    assert_eq!(again.entries, store.entries);
    assert_eq!(again.entries, [entry(0, 2)]);
    assert_eq!(again.next, DataIndex(1));
}

// Scenario 17: what a real kernel wrote opens here, and reads identically.

struct Fixture {
    meta: serde_json::Value,
    cow: Vec<u8>,
    origin: Vec<u8>,
}

fn fixtures() -> Vec<Fixture> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden");
    let mut all = Vec::new();
    for folder in std::fs::read_dir(root).expect("fixtures are part of the repository") {
        let folder = folder.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let unpack = |name: &str| {
            let mut packed = io::BufReader::new(std::fs::File::open(folder.join(name)).unwrap());
            let mut bytes = Vec::new();
            lzma_rs::xz_decompress(&mut packed, &mut bytes).unwrap();
            bytes
        };
        let meta = std::fs::read(folder.join("meta.json")).unwrap();
        all.push(Fixture {
            meta: serde_json::from_slice(&meta).unwrap(),
            cow: unpack("cow.raw.xz"),
            origin: unpack("origin.raw.xz"),
        });
    }
    all
}

#[test]
fn scenario_17_the_kernel_s_stores_read_identically() {
    let all = fixtures();
    assert_eq!(all.len(), 12);
    for Fixture { meta, cow, origin } in all {
        let name = meta["name"].as_str().unwrap();
        let listed: Vec<Entry> = meta["cow"]["exceptions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| entry(of[0].as_u64().unwrap(), of[1].as_u64().unwrap()))
            .collect();
        let storage = Memory::new(cow.clone());
        let options = OpenOptions { origin_len: Some(origin.len() as u64), ..Default::default() };
        let mut store = open(&storage, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
        if !store.valid {
            store = inspect(&storage).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert_eq!(store.entries, listed, "{name}");
        assert_eq!(u64::from(store.geometry.chunk.sectors()), meta["chunk_sectors"], "{name}");
        assert_eq!(u64::from(store.valid), meta["cow"]["valid"].as_u64().unwrap(), "{name}");
        assert_eq!(store.garbage, meta["cow"]["tail_bytes_behind_end"] != 0, "{name}");
        let chunk = store.geometry.chunk;
        let mut content = origin;
        for &Entry { old, new } in &store.entries {
            let from = chunk.store_offset(new) as usize;
            let to = chunk.start_of(old) as usize;
            let len = (chunk.bytes() as usize).min(content.len() - to);
            content[to..to + len].copy_from_slice(&cow[from..from + len]);
        }
        let hash: String =
            Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(meta["sha256"]["snap"], hash, "{name}");
    }
}

#[test]
fn the_kernel_s_status_is_ours() {
    // The last status line of an active snapshot tells what the kernel counted.
    let mut seen = 0;
    for Fixture { meta, cow, .. } in fixtures() {
        let store = inspect(&Memory::new(cow)).unwrap();
        let lines = meta["status_and_table"].as_array().unwrap();
        let Some(line) = lines.iter().filter_map(|line| line.as_str()).rfind(|line| {
            line.starts_with("written") && line.contains(" snapshot ") && store.valid
        }) else {
            continue;
        };
        if meta["name"].as_str().unwrap().contains("merged") {
            continue;
        }
        let usage = store.usage();
        let ours = format!(" snapshot {}/{} {};", usage.allocated, usage.total, usage.metadata);
        assert!(line.contains(&ours), "{line} has no {ours}");
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

/// Entries that may be owed.
const OWED: usize = 20_000;

/// What an opening says: what is wrong, or all that does not depend on how much was kept.
fn said(storage: &Memory, keep: Keep, origin_len: Option<u64>) -> Result<OpenStore, String> {
    let options = OpenOptions { origin_len, keep, owed: OWED, ..OpenOptions::default() };
    open(storage, &options).map_err(|error| error.to_string())
}

/// All that an opening tells of.
#[derive(Default)]
struct Gathered(Vec<Entry>);

impl Gather for Gathered {
    fn take(&mut self, _: &Geometry, entries: &[Entry]) {
        self.0.extend(entries);
    }

    fn may_have_twice(&mut self) -> bool {
        let olds: std::collections::HashSet<Chunk> = self.0.iter().map(|entry| entry.old).collect();
        olds.len() < self.0.len()
    }
}

fn listed(storage: &Memory, store: &OpenStore) -> Vec<Entry> {
    let mut all = Vec::new();
    each_entry(storage, store, |at, entry| {
        assert_eq!(at, all.len() as u64);
        all.push(entry);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    all
}

#[test]
fn the_newest_entries_alone_stay_in_memory() {
    const COUNT: u64 = 120_000;
    // Falling, and each chunk of the store once: index n lies behind n / 32 + 1 areas.
    let entries: Vec<(u64, u64)> = (0..COUNT).map(|n| (COUNT - n, 2 + n + n / 32)).collect();
    let storage = Memory::with_entries(2 + (COUNT + COUNT / 32 + 40) as usize, &entries);
    let origin_len = Some((COUNT + 1) * 512);
    let all = said(&storage, Keep::All, origin_len).unwrap();
    let newest = said(&storage, Keep::Newest, origin_len).unwrap();
    assert!((OWED + 256..2 * (OWED + 256)).contains(&newest.entries.len()));
    assert_eq!(newest.entries[..], all.entries[newest.before as usize..]);
    assert_eq!(newest.count(), COUNT);
    assert_eq!((newest.next, newest.garbage, newest.usage()), (all.next, false, all.usage()));
    assert_eq!(listed(&storage, &newest), all.entries);
    let mut visits = 0;
    let stop = |_, _| {
        visits += 1;
        if visits == 100 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    each_entry(&storage, &newest, stop).unwrap();
    assert_eq!(visits, 100);
}

#[test]
fn one_wrong_entry_among_many_that_rise_is_found_wherever_it_is() {
    // Two areas' worth, each chunk behind the one before: 34 and 67 are areas.
    let right: Vec<(u64, u64)> = (0..50).map(|n| (n, 2 + n + n / 32)).collect();
    let storage = Memory::with_entries(80, &right);
    assert!(said(&storage, Keep::Newest, Some(50 * 512)).is_ok());
    for at in [0, 1, 16, 30, 31, 32, 40, 49] {
        let (old, new) = right[at];
        // Beyond the origin, named twice, the header, areas, beyond the store, where another lies.
        let wrong = [(50, new), (old.max(1) - 1, new), (old, 1), (old, 34), (old, 67), (old, 80)];
        for entry in wrong.into_iter().chain([(old, right[49 - at].1)]) {
            let mut entries = right.clone();
            entries[at] = entry;
            let storage = Memory::with_entries(80, &entries);
            let all = said(&storage, Keep::All, Some(50 * 512));
            assert_eq!(said(&storage, Keep::Newest, Some(50 * 512)), all, "{entry:?} at {at}");
            assert_eq!(all.is_err(), entry != right[at], "{entry:?} at {at}");
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None,
        ..proptest::prelude::ProptestConfig::default()
    })]

    /// With any list, right or wrong, all ways of opening say the same.
    #[test]
    fn an_opening_finds_the_same_whatever_it_keeps(
        entries in proptest::collection::vec((0u64..700, 0u64..1000), 0..60),
        spread in 1u64..12,
        origin in proptest::option::of(600u64..720),
    ) {
        // Mostly right: chunks of the store in their order, and old ones far apart.
        let entries: Vec<(u64, u64)> = (0..)
            .zip(entries)
            .map(|(n, (old, new))| {
                let old = if old % 13 == 0 { old } else { (n * 7 * spread + 1) % 599 };
                let new = if new % 97 == 0 { new } else { 2 + n + n / 32 };
                // Two zeroes would end the list.
                (old, if (old, new) == (0, 0) { 1 } else { new })
            })
            .collect();
        let storage = Memory::with_entries(800, &entries);
        let origin_len = origin.map(|chunks| chunks * 512);
        let (all, newest) =
            (said(&storage, Keep::All, origin_len), said(&storage, Keep::Newest, origin_len));
        proptest::prop_assert_eq!(&all, &newest);
        let options = OpenOptions { origin_len, owed: OWED, ..OpenOptions::default() };
        let mut gathered = Gathered::default();
        let gathering = open_gathering(&storage, &options, &mut gathered);
        proptest::prop_assert_eq!(&gathering.map_err(|error| error.to_string()), &all);
        if let Ok(store) = &all {
            proptest::prop_assert_eq!(&gathered.0, &store.entries);
        }
        if let Ok(store) = newest {
            proptest::prop_assert_eq!(listed(&storage, &store), store.entries);
        }
    }
}
