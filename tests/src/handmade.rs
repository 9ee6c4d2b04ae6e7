//! A store made by hand, with any number of exceptions.
//!
//! Owns the necessary part of the kernel's format: a header, and areas of entries with sparse data
//! between them, in chunks of 4 KiB. Never uses the code under test.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a chunk.
pub const CHUNK: u64 = 4096;
/// Entries of 16 bytes in an area of one chunk.
pub const PER_AREA: u64 = CHUNK / 16;
/// The kernel's magic word, "SnAp".
const MAGIC: u32 = 0x7041_6e53;

/// Makes a store whose n-th exception is for the chunk `old[n]` of the disk. It has room for one
/// more area, no data, and space only for the metadata.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, old: &[u64]) -> io::Result<()> {
    let file = File::create(path)?;
    let mut header = Vec::new();
    for word in [MAGIC, 1, 1, (CHUNK / 512) as u32] {
        header.extend(word.to_le_bytes());
    }
    file.write_all_at(&header, 0)?;
    for (area, entries) in old.chunks(PER_AREA as usize).enumerate() {
        let at = area_chunk(area as u64);
        let mut bytes = Vec::with_capacity(CHUNK as usize);
        for (entry, old) in entries.iter().enumerate() {
            bytes.extend(old.to_le_bytes());
            bytes.extend((at + 1 + entry as u64).to_le_bytes());
        }
        file.write_all_at(&bytes, at * CHUNK)?;
    }
    // Room for the next area, because the last one may be full.
    let areas = old.len() as u64 / PER_AREA + 2;
    file.set_len(area_offset(areas))
}

/// The offset of an area in the store, in bytes.
pub fn area_offset(area: u64) -> u64 {
    area_chunk(area) * CHUNK
}

/// The offset of the n-th exception's data in the store, in bytes.
pub fn data_offset(n: u64) -> u64 {
    (area_chunk(n / PER_AREA) + 1 + n % PER_AREA) * CHUNK
}

/// The chunk of the store with an area: after the header, and the data of earlier areas.
fn area_chunk(area: u64) -> u64 {
    1 + area * (1 + PER_AREA)
}
