use std::cell::RefCell;
use std::io;

use super::*;
use crate::cow::log::LOG_WORDS;
use crate::cow::open::{OpenOptions, open};

/// A store in memory, and what was done to it.
struct Memory(RefCell<(Vec<u8>, Vec<String>)>);

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

/// I3 and I11, step by step: chunks of 512 bytes, 32 entries an area; 31 are there and one is owed.
#[test]
fn what_is_owed_is_entered_durably_behind_zeroes_that_are() {
    let mut bytes = vec![0xaa; 40 * 512];
    bytes[..1024].fill(0);
    bytes[..16].copy_from_slice(&[0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    for n in 0..31u64 {
        let at = 512 + n as usize * 16;
        bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&(n + 2).to_le_bytes());
    }
    let storage = Memory(RefCell::new((bytes, Vec::new())));
    let mut store = open(&storage, &OpenOptions::default()).unwrap();
    let log = Log::new(Words::private(LOG_WORDS), store.next, store.geometry.capacity());
    let _ = log.allocate(1);
    let _ = log.finish(DataIndex(31), Some(Chunk(77)));
    storage.0.borrow_mut().1.clear();
    assert!(adopt(&storage, &mut store, &log.copy_words()).unwrap());
    let steps = storage.0.borrow().1.clone();
    // What is behind the list; the next area, at chunk 34; the entry, with its block.
    let wanted = ["write 1008+16", "sync", "write 17408+512", "sync", "write 512+512", "sync"];
    assert_eq!(steps, wanted);
    let again = open(&storage, &OpenOptions::default()).unwrap();
    assert_eq!(again.entries.last(), Some(&(Chunk(77), StoreChunk(33))));
    assert_eq!(again, store);
}
