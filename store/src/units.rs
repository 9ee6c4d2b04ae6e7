//! Units of address: sectors, bytes, chunks of a device and chunks of a store.
//!
//! Owns every shift and cast between them. Never knows what a chunk is mapped to, or why.
//! Every quantity that could be mistaken for another is a type of its own.

use std::fmt;

/// log2 of the sector that tables, virtio-blk and device-mapper count in.
pub const SECTOR_SHIFT: u32 = 9;
/// Bytes in a sector: 512.
pub const SECTOR_SIZE: u64 = 1 << SECTOR_SHIFT;

/// Sectors that a device can have: 8 PiB, the range in which workers can track what is in flight.
pub const MOST_SECTORS: u64 = 1 << 44;

/// A position or a length in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(pub u64);

impl Sector {
    /// The same position in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.0 << SECTOR_SHIFT
    }

    /// The sector that holds byte `bytes`; a partial sector is dropped.
    #[inline]
    pub const fn from_bytes(bytes: u64) -> Self {
        Sector(bytes >> SECTOR_SHIFT)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A chunk of the device that a snapshot presents (`old_chunk` in the store's format).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chunk(pub u64);

/// A chunk of the store (`new_chunk` in the store's format); 0 is the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreChunk(pub u64);

/// The number of a data chunk in allocation order, metadata chunks left out: the first is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataIndex(pub u64);

/// The size of a chunk: a power of two from 1 to 2^21 sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkSize {
    /// log2 of the size in bytes.
    shift: u8,
}

impl ChunkSize {
    /// The largest chunk, in sectors: 1 GiB.
    pub const MAX_SECTORS: u32 = 1 << 21;
    /// device-mapper's default for a table with 0: 32 sectors, 16 KiB.
    pub const DEFAULT: ChunkSize = ChunkSize { shift: 14 };
    /// The default of the tools: 4 KiB.
    pub const TOOLS: ChunkSize = ChunkSize { shift: 12 };

    /// A chunk of `sectors` sectors, or none if that is not a power of two from 1 to 2^21.
    pub const fn from_sectors(sectors: u32) -> Option<ChunkSize> {
        if sectors.is_power_of_two() && sectors <= Self::MAX_SECTORS {
            Some(ChunkSize { shift: (sectors.trailing_zeros() + SECTOR_SHIFT) as u8 })
        } else {
            None
        }
    }

    /// The size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The size in sectors.
    #[inline]
    pub const fn sectors(self) -> u32 {
        1 << (self.shift as u32 - SECTOR_SHIFT)
    }

    /// The chunk that holds byte `offset` of the device.
    #[inline]
    pub const fn chunk_of(self, offset: u64) -> Chunk {
        Chunk(offset >> self.shift)
    }

    /// The offset of byte `offset` of the device in its chunk.
    #[inline]
    pub const fn offset_in(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// The first byte of `chunk` on the device.
    #[inline]
    pub const fn start_of(self, chunk: Chunk) -> u64 {
        chunk.0 << self.shift
    }

    /// The first byte of `chunk` in the store.
    #[inline]
    pub const fn store_offset(self, chunk: StoreChunk) -> u64 {
        chunk.0 << self.shift
    }

    /// The number of chunks that cover `bytes` bytes, including a partial last one.
    #[inline]
    pub const fn count_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }

    /// The number of whole chunks in `bytes` bytes.
    #[inline]
    pub const fn whole_in(self, bytes: u64) -> u64 {
        bytes >> self.shift
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.sectors())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_powers_of_two_up_to_1_gib() {
        assert_eq!(ChunkSize::from_sectors(0), None);
        assert_eq!(ChunkSize::from_sectors(3), None);
        assert_eq!(ChunkSize::from_sectors(1 << 22), None);
        assert_eq!(ChunkSize::from_sectors(8).map(|c| c.bytes()), Some(4096));
        assert_eq!(ChunkSize::from_sectors(1 << 21).map(|c| c.bytes()), Some(1 << 30));
    }

    #[test]
    fn a_byte_lies_in_one_chunk() {
        let size = ChunkSize::from_sectors(8).unwrap();
        assert_eq!(size.chunk_of(4095), Chunk(0));
        assert_eq!(size.chunk_of(4096), Chunk(1));
        assert_eq!(size.offset_in(4097), 1);
        assert_eq!(size.start_of(Chunk(3)), 12288);
        assert_eq!(size.count_for(4097), 2);
        assert_eq!(size.whole_in(8191), 1);
    }
}
