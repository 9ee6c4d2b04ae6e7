//! A store made by hand, with as many exceptions as are wanted.
//!
//! Owns the kernel's format as far as that takes: a header, and areas of entries with sparse data
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

/// Makes a store whose n-th exception is for the chunk `old[n]` of the disk. There is room for an
/// area more, no data, and space for the metadata alone.
///
/// # Errors
/// What the system says.
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
    // Room for the next area, so that the last one may be full.
    let areas = old.len() as u64 / PER_AREA + 2;
    file.set_len(area_offset(areas))
}

/// The byte of the store at which an area begins.
pub fn area_offset(area: u64) -> u64 {
    area_chunk(area) * CHUNK
}

/// The byte of the store at which the data of the n-th exception begins.
pub fn data_offset(n: u64) -> u64 {
    (area_chunk(n / PER_AREA) + 1 + n % PER_AREA) * CHUNK
}

/// The chunk of the store that an area lies in: behind the header, and the data of those before.
fn area_chunk(area: u64) -> u64 {
    1 + area * (1 + PER_AREA)
}
