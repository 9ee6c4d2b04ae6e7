//! Where the next entry of a store goes, and the block that contains it.
//!
//! Owns the position after the last committed entry and the bytes of the block at that position.
//! Belongs to the committer: one worker at a time. Never knows who needs the commit, and does no
//! I/O: it says which bytes to write where. Keeps I3: an area is zeroed before the one before it
//! is full.

use super::layout::{ENTRY_BYTES, Entry, Geometry};
use crate::units::StoreChunk;

/// Bytes of the largest metadata write.
const MAX_WRITE: u64 = 64 << 10;

/// See the module's description.
#[derive(Debug)]
pub struct Tail {
    geometry: Geometry,
    /// Entries in the store: the position of the next.
    position: u64,
    /// Areas up to this one are known to be zero after their entries.
    zeroed: u64,
    /// The bytes of the block that holds `position`, up to it; zero after.
    block: Vec<u8>,
}

impl Tail {
    /// The tail of a store that has `entries` entries, of which those in the last block are
    /// `last_block` (at most [`Tail::block_entries`]), with zeroes after them in that area.
    pub fn new(geometry: Geometry, entries: u64, last_block: &[Entry]) -> Self {
        let mut tail = Tail {
            geometry,
            position: entries,
            zeroed: entries / geometry.entries_per_area(),
            block: vec![0; Self::block_bytes(&geometry) as usize],
        };
        debug_assert_eq!(last_block.len() as u64, entries % Self::block_entries(&geometry));
        for (index, entry) in last_block.iter().enumerate() {
            tail.put(index, *entry);
        }
        tail
    }

    /// The newest entries were removed from the store: it has `entries` now, of which those in the
    /// last block are `last_block`, with zeroes after them in that area.
    pub fn truncate(&mut self, entries: u64, last_block: &[Entry]) {
        debug_assert!(entries <= self.position);
        *self = Tail::new(self.geometry, entries, last_block);
    }

    /// Bytes of a block: the least that is written for an entry.
    pub fn block_bytes(geometry: &Geometry) -> u64 {
        geometry.chunk.bytes().min(4096)
    }

    /// Entries of a block.
    pub fn block_entries(geometry: &Geometry) -> u64 {
        Self::block_bytes(geometry) / ENTRY_BYTES as u64
    }

    /// Entries in the store.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next area that must be zeroed before `count` more entries are written, if any, of those
    /// that a store of `device_chunks` chunks has.
    /// The caller zeroes it, and tells by [`Tail::zeroed`] before it writes entries.
    pub fn area_to_zero(&self, count: u64, device_chunks: u64) -> Option<StoreChunk> {
        // The one after the last that will be full. The allocation of these entries' chunks has
        // reserved no area after it.
        let last = (self.position + count) / self.geometry.entries_per_area();
        let next = self.zeroed + 1;
        let chunk = self.geometry.area_chunk(next);
        (next <= last && chunk.0 < device_chunks).then_some(chunk)
    }

    /// The requested area is zero.
    pub fn zeroed(&mut self) {
        self.zeroed += 1;
    }

    /// Takes entries from `entries` and puts the block or blocks they go into in `out`; returns
    /// the offset in the store where `out` is to be written, or none if there were no entries. To
    /// be called until then.
    pub fn write(
        &mut self,
        entries: &mut impl Iterator<Item = Entry>,
        out: &mut Vec<u8>,
    ) -> Option<u64> {
        out.clear();
        let per_area = self.geometry.entries_per_area();
        let per_block = Self::block_entries(&self.geometry);
        let first_block = self.position - self.position % per_block;
        let end = (first_block - first_block % per_area + per_area)
            .min(first_block + MAX_WRITE / ENTRY_BYTES as u64);
        let offset = self.geometry.entry_offset(first_block);
        let before = self.position;
        while self.position < end {
            let Some(entry) = entries.next() else { break };
            self.put((self.position % per_block) as usize, entry);
            self.position += 1;
            if self.position.is_multiple_of(per_block) {
                out.extend_from_slice(&self.block);
                self.block.fill(0);
            }
        }
        if self.position == before {
            return None;
        }
        if !self.position.is_multiple_of(per_block) {
            out.extend_from_slice(&self.block);
        }
        Some(offset)
    }

    fn put(&mut self, index: usize, entry: Entry) {
        self.block[index * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(&entry.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Chunk, ChunkSize};

    fn entry(n: u64) -> Entry {
        Entry { old: Chunk(n), new: StoreChunk(2 + n) }
    }

    /// Chunks of one sector: 32 entries an area, so area 0 at chunk 1, area 1 at 34, 2 at 67.
    fn geometry() -> Geometry {
        Geometry { chunk: ChunkSize::from_sectors(1).unwrap(), device_chunks: 1000 }
    }

    #[test]
    fn entries_fill_blocks_and_areas() {
        let mut tail = Tail::new(geometry(), 31, &(0..31).map(entry).collect::<Vec<_>>());
        let mut entries = (31..66).map(entry);
        let mut out = Vec::new();
        assert_eq!(tail.write(&mut entries, &mut out), Some(512));
        assert_eq!(out.len(), 512);
        assert_eq!(out[31 * 16], 31);
        assert_eq!(tail.write(&mut entries, &mut out), Some(34 * 512));
        assert_eq!(out[31 * 16], 63);
        assert_eq!(tail.write(&mut entries, &mut out), Some(67 * 512));
        assert_eq!((out.len(), out[16], out[32]), (512, 65, 0));
        assert_eq!(tail.write(&mut entries, &mut out), None);
        assert_eq!(tail.position(), 66);
    }

    #[test]
    fn entries_go_on_after_those_that_were_left() {
        let mut tail = Tail::new(geometry(), 40, &(32..40).map(entry).collect::<Vec<_>>());
        tail.truncate(33, &[entry(32)]);
        let mut out = Vec::new();
        assert_eq!(tail.write(&mut [entry(99)].into_iter(), &mut out), Some(34 * 512));
        assert_eq!((out[0], out[16], out[32]), (32, 99, 0));
        assert_eq!(
            tail.area_to_zero(30, geometry().device_chunks),
            Some(StoreChunk(67)),
            "nothing is known of the next area"
        );
    }

    #[test]
    fn the_next_area_is_zeroed_before_one_is_full() {
        let mut tail = Tail::new(geometry(), 0, &[]);
        assert_eq!(tail.area_to_zero(31, geometry().device_chunks), None, "it is not full then");
        assert_eq!(tail.area_to_zero(32, geometry().device_chunks), Some(StoreChunk(34)));
        tail.zeroed();
        assert_eq!(tail.area_to_zero(63, geometry().device_chunks), None);
        assert_eq!(tail.area_to_zero(64, geometry().device_chunks), Some(StoreChunk(67)));
        let small = Tail::new(geometry(), 0, &[]);
        assert_eq!(small.area_to_zero(32, 34), None);
        assert_eq!(small.area_to_zero(32, 35), Some(StoreChunk(34)), "it grew meanwhile");
    }
}
