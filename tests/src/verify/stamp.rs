//! The content of a sector: its own number and the generation of its last write.
//!
//! Owns the 512 bytes of a stamp and their parsing. Each word of a stamp depends on both numbers,
//! so a torn, shifted or misplaced sector differs from every correct one, and a wrong one shows its
//! source.

use std::fmt;

/// Bytes in a sector.
pub const SECTOR: usize = 512;

/// Identifies the write of a sector's bytes. Generation 0 is a sector of zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

impl Generation {
    /// Zeroes: never written, or zeroed.
    pub const ZEROES: Self = Self(0);
}

const WORDS: usize = SECTOR / 8;

/// The word at `index` of the stamp: the first two are the numbers, the rest depend on both.
fn word(sector: u64, generation: Generation, index: usize) -> u64 {
    match index {
        0 => sector,
        1 => u64::from(generation.0),
        _ => sector
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(u64::from(generation.0).wrapping_mul(0xd6e8_feb8_6659_fd93))
            .rotate_left(index as u32),
    }
}

/// Writes the stamp of `sector` in `generation` into the 512 bytes of `out`.
pub fn stamp(sector: u64, generation: Generation, out: &mut [u8]) {
    if generation == Generation::ZEROES {
        out.fill(0);
        return;
    }
    for (index, bytes) in out.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(sector, generation, index).to_le_bytes());
    }
}

/// Stamps all of `out`, whose first sector is `first`, in one generation.
pub fn stamp_run(first: u64, generation: Generation, out: &mut [u8]) {
    for (sector, bytes) in (first..).zip(out.chunks_exact_mut(SECTOR)) {
        stamp(sector, generation, bytes);
    }
}

/// Whether `bytes` is the stamp of `sector` in `generation`.
pub fn is_stamp(sector: u64, generation: Generation, bytes: &[u8]) -> bool {
    if generation == Generation::ZEROES {
        return bytes.iter().all(|&byte| byte == 0);
    }
    bytes
        .chunks_exact(8)
        .enumerate()
        .all(|(index, bytes)| bytes == word(sector, generation, index).to_le_bytes())
}

/// The result of parsing some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All zeroes.
    Zeroes,
    /// A whole stamp, possibly of another sector.
    Stamp {
        /// The sector in the stamp.
        sector: u64,
        /// Its generation.
        generation: Generation,
    },
    /// The beginning of a stamp, followed by other bytes.
    Torn {
        /// The sector in the beginning.
        sector: u64,
        /// Its generation.
        generation: Generation,
        /// The number of correct bytes.
        good: usize,
    },
    /// Not even the beginning of a stamp.
    Garbage,
}

impl Found {
    /// Parses the 512 bytes of a sector.
    pub fn new(bytes: &[u8]) -> Self {
        if bytes.iter().all(|&byte| byte == 0) {
            return Self::Zeroes;
        }
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect();
        let sector = words[0];
        let Ok(generation) = u32::try_from(words[1]).map(Generation) else {
            return Self::Garbage;
        };
        let good = (0..WORDS).take_while(|&i| words[i] == word(sector, generation, i)).count();
        match good {
            WORDS => Self::Stamp { sector, generation },
            0..=2 => Self::Garbage,
            _ => Self::Torn { sector, generation, good: good * 8 },
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => write!(f, "zeroes"),
            Self::Stamp { sector, generation: Generation(g) } => {
                write!(f, "sector {sector} of generation {g}")
            }
            Self::Torn { sector, generation: Generation(g), good } => {
                write!(f, "sector {sector} of generation {g} in its first {good} bytes only")
            }
            Self::Garbage => write!(f, "bytes that nobody wrote"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(sector: u64, generation: u32) -> [u8; SECTOR] {
        let mut bytes = [0xaa; SECTOR];
        stamp(sector, Generation(generation), &mut bytes);
        bytes
    }

    #[test]
    fn a_stamp_is_that_of_its_sector_and_generation_only() {
        let bytes = stamped(7, 3);
        assert!(is_stamp(7, Generation(3), &bytes));
        assert!(!is_stamp(8, Generation(3), &bytes));
        assert!(!is_stamp(7, Generation(4), &bytes));
        assert!(!is_stamp(7, Generation::ZEROES, &bytes));
        assert!(is_stamp(7, Generation::ZEROES, &stamped(7, 0)));
    }

    #[test]
    fn one_wrong_byte_anywhere_is_seen() {
        for at in 0..SECTOR {
            let mut bytes = stamped(7, 3);
            bytes[at] ^= 1;
            assert!(!is_stamp(7, Generation(3), &bytes), "byte {at}");
        }
    }

    #[test]
    fn a_wrong_sector_says_what_it_is() {
        assert_eq!(
            Found::new(&stamped(7, 3)),
            Found::Stamp { sector: 7, generation: Generation(3) }
        );
        assert_eq!(Found::new(&[0; SECTOR]), Found::Zeroes);
        assert_eq!(Found::new(&[0xee; SECTOR]), Found::Garbage);
        let mut torn = stamped(7, 3);
        torn[256..].copy_from_slice(&stamped(7, 4)[256..]);
        assert_eq!(
            Found::new(&torn),
            Found::Torn { sector: 7, generation: Generation(3), good: 256 }
        );
    }
}
