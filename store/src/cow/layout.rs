//! The layout of a persistent store: pure codec and arithmetic.
//!
//! Owns the bytes of the header and of an entry, and the map between data indices, chunks of
//! the store and areas (the persistent exception store of Linux dm-snapshot, version 1). Never
//! reads or writes anything, and never knows what an entry is for. Keeps: no data index maps to
//! the header or to an area, and none is within [`Geometry::capacity`] whose area could not be
//! followed by the next one (the "defined full" of a store that ends at an area's end).
//!
//! ```text
//! chunk   0        1        2 … EPA+1        EPA+2      EPA+3 …
//!       header   area 0   data chunks       area 1     data chunks
//! ```

use std::ops::Range;

use crate::io::Late;
use crate::units::{Chunk, ChunkSize, DataIndex, StoreChunk};

#[cfg(test)]
mod tests;

/// "SnAp", the first word of a header.
pub const MAGIC: u32 = 0x7041_6e53;
/// The one version there is.
pub const VERSION: u32 = 1;
/// Bytes of a header with a meaning; the rest of its chunk is zero.
pub const HEADER_BYTES: usize = 16;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 16;
/// The smallest store: a header and an area.
pub const MIN_CHUNKS: u64 = 2;

/// Chunks of a store that are used: tables can name no others (512 TiB of 4 KiB chunks).
pub const MOST_CHUNKS: u64 = 1 << 37;

/// The header of a store, chunk 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether the store's content can be trusted; `false` is Invalid, for good.
    pub valid: bool,
    /// The size of all its chunks.
    pub chunk: ChunkSize,
}

/// Why 16 bytes are not the header of a store that can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Neither zero nor the magic word.
    #[error("its magic number is {0:#010x}, not {MAGIC:#010x}")]
    Magic(u32),
    /// An unknown version.
    #[error("its version is {0}, and only version {VERSION} is known")]
    Version(u32),
    /// Not a power of two from 1 to 2^21.
    #[error("its chunk size of {0} sectors is not a power of two from 1 to 2097152")]
    ChunkSize(u32),
}

impl Header {
    /// The header's bytes; the rest of the chunk is zero.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&u32::from(self.valid).to_le_bytes());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.chunk.sectors().to_le_bytes());
        bytes
    }

    /// The header in `bytes`; `None` if the magic word is 0: a store that has not been made yet.
    /// Any `valid` other than 0 counts as valid, as in the kernel.
    ///
    /// # Errors
    /// A foreign magic word, a version other than 1, an impossible chunk size.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Option<Header>, HeaderError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        match word(0) {
            0 => return Ok(None),
            MAGIC => {}
            other => return Err(HeaderError::Magic(other)),
        }
        if word(8) != VERSION {
            return Err(HeaderError::Version(word(8)));
        }
        let chunk = ChunkSize::from_sectors(word(12)).ok_or(HeaderError::ChunkSize(word(12)))?;
        Ok(Some(Header { valid: word(4) != 0, chunk }))
    }
}

/// One exception: a chunk of the device whose content is in a chunk of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The chunk of the device; 0 is an ordinary one.
    pub old: Chunk,
    /// The chunk with its content; 0 ends the list.
    pub new: StoreChunk,
}

impl Entry {
    /// Whether the list ends here; such entries also fill the free places of an area.
    pub fn is_end(&self) -> bool {
        self.new.0 == 0
    }

    /// The entry's bytes.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        (u128::from(self.old.0) | (u128::from(self.new.0) << 64)).to_le_bytes()
    }

    /// The entry in `bytes`; every 16 bytes are one.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Entry {
        let both = u128::from_le_bytes(*bytes);
        Entry { old: Chunk(both as u64), new: StoreChunk((both >> 64) as u64) }
    }
}

/// The size of a store and of its chunks, which determine the whole layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The size of its chunks.
    pub chunk: ChunkSize,
    /// Whole chunks in its file or device.
    pub device_chunks: u64,
}

/// How full a store is, in sectors: the three numbers of the kernel's status line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Allocated, including header and areas.
    pub allocated: u64,
    /// The whole store.
    pub total: u64,
    /// The header and the areas, up to the one in use.
    pub metadata: u64,
}

impl Geometry {
    /// The geometry of a store of `bytes` bytes; a partial last chunk is not used.
    pub const fn of_len(chunk: ChunkSize, bytes: u64) -> Geometry {
        Geometry { chunk, device_chunks: chunk.whole_in(bytes) }
    }

    /// Entries in an area (EPA): 32 to 2^26.
    #[inline]
    pub const fn entries_per_area(&self) -> u64 {
        self.chunk.bytes() / ENTRY_BYTES as u64
    }

    /// Chunks from one area to the next.
    const fn stride(&self) -> u64 {
        self.entries_per_area() + 1
    }

    /// The places of all areas, in bytes, which are written after the chunks between them: for a
    /// store of `count` entries whose next chunk is `next`.
    pub const fn areas(&self, count: u64, next: DataIndex) -> Late {
        let len = self.chunk.bytes();
        let per_area = self.entries_per_area();
        let gap = next.0.saturating_sub(count) / per_area;
        Late { len, every: self.stride() * len, full: count / per_area, gap }
    }

    /// The chunk of area `area`: `1 + area × (EPA + 1)`.
    #[inline]
    pub const fn area_chunk(&self, area: u64) -> StoreChunk {
        StoreChunk(1 + area * self.stride())
    }

    /// How full a store of `entries` entries is whose next data chunk is `next`.
    pub const fn usage(&self, entries: u64, next: DataIndex) -> Usage {
        let sectors = self.chunk.sectors() as u64;
        Usage {
            allocated: self.next_free(next).0 * sectors,
            total: self.device_chunks * sectors,
            metadata: (entries / self.entries_per_area() + 2) * sectors,
        }
    }

    /// Whether `chunk` holds entries, not data.
    #[inline]
    pub const fn is_area(&self, chunk: StoreChunk) -> bool {
        chunk.0 % self.stride() == 1
    }

    /// The chunk of the `index`th data chunk in allocation order.
    #[inline]
    pub const fn chunk_of_index(&self, index: DataIndex) -> StoreChunk {
        StoreChunk(2 + index.0 + index.0 / self.entries_per_area())
    }

    /// Which data chunk `chunk` is; `None` for the header and for areas.
    #[inline]
    pub const fn index_of(&self, chunk: StoreChunk) -> Option<DataIndex> {
        if chunk.0 < 2 || self.is_area(chunk) {
            return None;
        }
        Some(DataIndex(chunk.0 - 2 - (chunk.0 - 1) / self.stride()))
    }

    /// The chunks between the two areas around `chunk`, which is not an area.
    pub fn data_around(&self, chunk: StoreChunk) -> Range<u64> {
        let first = chunk.0 - (chunk.0 - 2) % self.stride();
        first..(first + self.entries_per_area()).min(self.device_chunks)
    }

    /// Data chunks that may be allocated: indices `0..capacity()`. A chunk that would fill an area
    /// is not among them if the next area does not fit in the store.
    pub const fn capacity(&self) -> u64 {
        let chunks = self.usable_chunks();
        if chunks <= MIN_CHUNKS {
            return 0;
        }
        let mut last = StoreChunk(chunks - 1);
        if self.is_area(last) {
            last = StoreChunk(last.0 - 1);
        }
        let Some(DataIndex(index)) = self.index_of(last) else { return 0 };
        let count = index + 1;
        let fills_area = count.is_multiple_of(self.entries_per_area());
        if fills_area && last.0 + 1 >= chunks { count - 1 } else { count }
    }

    /// Chunks that may be used for anything: all but those that no table can name.
    pub const fn usable_chunks(&self) -> u64 {
        if self.device_chunks < MOST_CHUNKS { self.device_chunks } else { MOST_CHUNKS }
    }

    /// Chunks of the smallest store that can hold `data` data chunks.
    pub const fn chunks_needed(&self, data: u64) -> u64 {
        1 + data + data / self.entries_per_area() + 1
    }

    /// Bytes of the smallest store that can hold every chunk of a device of `len` bytes.
    pub const fn full_len(chunk: ChunkSize, len: u64) -> u64 {
        let empty = Geometry { chunk, device_chunks: 0 };
        empty.chunks_needed(chunk.count_for(len)) * chunk.bytes()
    }

    /// The offset of the entry at place `position` of the list, in bytes.
    #[inline]
    pub const fn entry_offset(&self, position: u64) -> u64 {
        let area = self.area_chunk(position / self.entries_per_area());
        self.chunk.store_offset(area) + position % self.entries_per_area() * ENTRY_BYTES as u64
    }

    /// The end of area `area`, in bytes.
    pub const fn area_end(&self, area: u64) -> u64 {
        self.chunk.store_offset(StoreChunk(self.area_chunk(area).0 + 1))
    }

    /// The index to allocate next if `highest` is the highest data chunk in use.
    pub const fn next_after(&self, highest: Option<DataIndex>) -> DataIndex {
        match highest {
            Some(DataIndex(index)) => DataIndex(index + 1),
            None => DataIndex(0),
        }
    }

    /// `next_free` as the kernel counts it if `next` is allocated next: already skipped past an
    /// area (CVE-2013-4299), so never a chunk with entries.
    pub const fn next_free(&self, next: DataIndex) -> StoreChunk {
        self.chunk_of_index(next)
    }
}
