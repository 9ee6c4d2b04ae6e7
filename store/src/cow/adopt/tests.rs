use std::cell::{Cell, RefCell};
use std::io;

use super::*;
use crate::cow::log::LOG_WORDS;
use crate::cow::open::{OpenOptions, open};

/// A store in memory, and the operations on it.
struct Memory(RefCell<(Vec<u8>, Vec<String>)>);

/// The same, with requested failures.
struct Failing<'a> {
    storage: &'a Memory,
    fails: Fails,
}

enum Fails {
    /// All operations, after that many.
    After(Cell<u64>),
    /// Writes at an offset.
    WriteAt(u64),
}

impl Failing<'_> {
    fn check(&self, write: Option<u64>) -> io::Result<()> {
        match &self.fails {
            Fails::After(left) => {
                left.set(left.get().checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?);
                Ok(())
            }
            Fails::WriteAt(offset) if write == Some(*offset) => {
                Err(io::ErrorKind::StorageFull.into())
            }
            Fails::WriteAt(_) => Ok(()),
        }
    }
}

impl Storage for Failing<'_> {
    fn name(&self) -> String {
        self.storage.name()
    }
    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(None)?;
        self.storage.read_at(buffer, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.check(Some(offset))?;
        self.storage.write_at(data, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.check(None)?;
        self.storage.sync()
    }
}

impl Storage for Memory {
    fn name(&self) -> String {
        "memory".into()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().0.len() as u64)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.copy_from_slice(&self.0.borrow().0[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let (bytes, log) = &mut *self.0.borrow_mut();
        bytes[offset as usize..][..data.len()].copy_from_slice(data);
        log.push(format!("write {offset}+{}", data.len()));
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.0.borrow_mut().1.push("sync".into());
        Ok(())
    }
}

/// A store of `chunks` chunks of 512 bytes, and the first `count` chunks as exceptions.
fn store_with(count: u64, chunks: usize) -> Memory {
    let mut bytes = vec![0xaa; chunks * 512];
    bytes[..1024].fill(0);
    bytes[..16].copy_from_slice(&[0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    for n in 0..count {
        let at = 512 + n as usize * 16;
        bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&(n + 2).to_le_bytes());
    }
    Memory(RefCell::new((bytes, Vec::new())))
}

/// Scenario 70: five of nine writes were interrupted. Completed ones are entered without gaps and
/// with their data, even if that is itself interrupted at any point.
#[test]
fn what_is_owed_takes_the_places_of_what_was_cut_off() {
    let cut_off = [28, 30, 31, 33, 34];
    let data = |index: u64| [index as u8; 512];
    let mut kills = 0;
    loop {
        let storage = store_with(28, 80);
        let mut store = open(&storage, &OpenOptions::default()).unwrap();
        let log = Log::new(Words::private(LOG_WORDS), store.next, store.geometry.capacity());
        let _ = log.allocate(9);
        for index in (28..37).filter(|index| !cut_off.contains(index)) {
            let chunk = store.geometry.chunk_of_index(DataIndex(index));
            storage.write_at(&data(index), chunk.0 * 512).unwrap();
            let _ = log.finish(DataIndex(index), Some(Chunk(100 + index)));
        }
        let words = log.copy_words();
        let killed = Failing { storage: &storage, fails: Fails::After(Cell::new(kills)) };
        let entered = adopt(&killed, &mut store, &words, (None, Gaps::Close));
        let mut store = open(&storage, &OpenOptions::default()).unwrap();
        adopt(&storage, &mut store, &words, (None, Gaps::Close)).unwrap();
        assert_eq!(store.next, DataIndex(32), "after {kills}");
        let mut new: Vec<Entry> = store.entries[28..].to_vec();
        new.sort_unstable();
        assert_eq!(new.iter().map(|entry| entry.old.0).collect::<Vec<_>>(), [129, 132, 135, 136]);
        for Entry { old, new: place } in new {
            let mut bytes = [0; 512];
            storage.read_at(&mut bytes, place.0 * 512).unwrap();
            assert_eq!(bytes, data(old.0 - 100), "after {kills}: chunk {} at {}", old.0, place.0);
        }
        if entered.is_ok() {
            break;
        }
        kills += 1;
    }
    assert!(kills > 10, "{kills}");
}

/// A gap that cannot be written stays a gap, and no acknowledged write is lost.
#[test]
fn a_gap_that_cannot_be_written_costs_room_only() {
    let storage = store_with(28, 80);
    let mut store = open(&storage, &OpenOptions::default()).unwrap();
    let log = Log::new(Words::private(LOG_WORDS), store.next, store.geometry.capacity());
    let _ = log.allocate(2);
    storage.write_at(&[7; 512], store.geometry.chunk_of_index(DataIndex(29)).0 * 512).unwrap();
    let _ = log.finish(DataIndex(29), Some(Chunk(129)));
    let bad = store.geometry.chunk_of_index(DataIndex(28));
    let failing = Failing { storage: &storage, fails: Fails::WriteAt(bad.0 * 512) };
    let entered = adopt(&failing, &mut store, &log.copy_words(), (None, Gaps::Close));
    assert!(entered.unwrap());
    let store = open(&storage, &OpenOptions::default()).unwrap();
    let last = store.geometry.chunk_of_index(DataIndex(29));
    assert_eq!(store.entries[28..], [Entry { old: Chunk(129), new: last }]);
    assert_eq!(store.next, DataIndex(30));
}

/// I3 and I11, step by step: chunks of 512 bytes, 32 entries per area; 31 exist and one is owed.
#[test]
fn what_is_owed_is_entered_durably_behind_zeroes_that_are() {
    let storage = store_with(31, 40);
    let mut store = open(&storage, &OpenOptions::default()).unwrap();
    let log = Log::new(Words::private(LOG_WORDS), store.next, store.geometry.capacity());
    let _ = log.allocate(1);
    let _ = log.finish(DataIndex(31), Some(Chunk(77)));
    storage.0.borrow_mut().1.clear();
    assert!(adopt(&storage, &mut store, &log.copy_words(), (None, Gaps::Close)).unwrap());
    let steps = storage.0.borrow().1.clone();
    // The rest of the list's block; the next area, at chunk 34; the entry, with its block.
    let wanted = ["write 1008+16", "sync", "write 17408+512", "sync", "write 512+512", "sync"];
    assert_eq!(steps, wanted);
    let again = open(&storage, &OpenOptions::default()).unwrap();
    assert_eq!(again.entries.last(), Some(&Entry { old: Chunk(77), new: StoreChunk(33) }));
    assert_eq!(again, store);
}

/// The sync may have failed, and nobody was told. An adoption that is cut off leaves it so, too.
#[test]
fn what_is_owed_is_written_again_if_its_process_was_killed_in_a_sync() {
    let mut kills = 0;
    loop {
        let storage = store_with(28, 80);
        let mut store = open(&storage, &OpenOptions::default()).unwrap();
        let log = Log::new(Words::private(LOG_WORDS), store.next, store.geometry.capacity());
        // The area at chunk 34 lies between them; one was cut off.
        let _ = log.allocate(8);
        for index in [28, 29, 31, 32, 33, 34, 35] {
            let _ = log.finish(DataIndex(index), Some(Chunk(100 + index)));
        }
        let words = log.copy_words();
        let killed = Failing { storage: &storage, fails: Fails::After(Cell::new(kills)) };
        if adopt(&killed, &mut store, &words, (None, Gaps::Leave)).is_ok() {
            assert!(!Log::was_syncing(&words));
            break;
        }
        assert!(Log::was_syncing(&words), "after {kills}");
        let mut store = open(&storage, &OpenOptions::default()).unwrap();
        storage.0.borrow_mut().1.clear();
        adopt(&storage, &mut store, &words, (None, Gaps::Leave)).unwrap();
        let steps = storage.0.borrow().1.clone();
        if store.count() == 35 && steps[0] != "write 15360+1024" {
            // They were listed already, and so their data is durable.
            assert!(steps.iter().all(|step| !step.contains("17920+")), "{steps:?}");
        } else {
            let again = ["write 15360+1024", "write 16896+512", "write 17920+2048"];
            assert_eq!(steps[..3], again, "after {kills}");
        }
        kills += 1;
    }
    assert!(kills > 4, "{kills}");
}

/// They may be in the system's cache only, and stay there, if their sync failed. Chunks of 512 bytes:
/// the second of two areas begins with the entry 32.
#[test]
fn entries_that_landed_are_written_again() {
    for owed in [3, 6] {
        let storage = store_with(32, 80);
        storage.0.borrow_mut().0[34 * 512..35 * 512].fill(0);
        let mut store = open(&storage, &OpenOptions::default()).unwrap();
        let log = Log::new(Words::private(LOG_WORDS), DataIndex(29), store.geometry.capacity());
        let _ = log.allocate(owed);
        for index in 29..29 + owed {
            let _ = log.finish(DataIndex(index), Some(Chunk(index)));
        }
        storage.0.borrow_mut().1.clear();
        let words = log.copy_words();
        assert_eq!(adopt(&storage, &mut store, &words, (None, Gaps::Close)).unwrap(), owed > 3);
        let steps = storage.0.borrow().1.clone();
        let zeroed = ["write 17408+512", "sync", "write 17408+512", "sync"];
        let written: &[&str] =
            if owed > 3 { &["write 512+512", "write 17408+512"] } else { &["write 512+512"] };
        assert_eq!(steps, [&zeroed[..], written, &["sync"]].concat(), "{owed} are owed");
        assert_eq!(open(&storage, &OpenOptions::default()).unwrap(), store);
        assert_eq!(store.count(), 29 + owed);
    }
}

/// Neither is written then: with what was there, they still make up what was acknowledged.
#[test]
fn what_no_store_could_list_is_not_entered() {
    let storage = store_with(28, 40);
    let mut store = open(&storage, &OpenOptions::default()).unwrap();
    let opened = store.clone();
    let log = Log::new(Words::private(LOG_WORDS), store.next, store.geometry.capacity());
    let _ = log.allocate(3);
    // The first write was cut off: what is behind it would move.
    let _ = log.finish(DataIndex(29), Some(Chunk(98)));
    let _ = log.finish(DataIndex(30), Some(Chunk(100)));
    let (words, len) = (log.copy_words(), Some(100 * 512));
    storage.0.borrow_mut().1.clear();
    let said = adopt(&storage, &mut store, &words, (len, Gaps::Close)).unwrap_err();
    let kind = ProblemKind::OutsideOrigin { old: Chunk(100), chunks: 100 };
    assert!(matches!(said, AdoptError::Misplaced { kind: found } if found == kind), "{said}");
    view(&mut store, &words, len).unwrap_err();
    // A store that somebody made shorter.
    store.geometry.device_chunks = 32;
    let said = adopt(&storage, &mut store, &words, (None, Gaps::Close)).unwrap_err();
    let kind = ProblemKind::OutsideStore { new: StoreChunk(32), chunks: 32 };
    assert!(matches!(said, AdoptError::Misplaced { kind: found } if found == kind), "{said}");
    store.geometry = opened.geometry;
    assert_eq!(store, opened);
    assert!(storage.0.borrow().1.is_empty(), "nothing was written");
    let owed = vec![(DataIndex(29), Chunk(98)), (DataIndex(30), Chunk(100))];
    assert_eq!(Log::owed(&words), (owed, DataIndex(28)));
    // The last, partial chunk is one.
    assert!(adopt(&storage, &mut store, &words, (Some(100 * 512 + 1), Gaps::Close)).unwrap());
}
