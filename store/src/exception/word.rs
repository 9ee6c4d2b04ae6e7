//! One chunk's state, packed into the 64-bit word that workers compare and swap.
//!
//! ```text
//! 63 62 | 61 … 49 | 48 … 37 | 36 … 0
//! state | zero    | layer   | chunk of that layer's store
//! ```

use crate::units::StoreChunk;

const STATE_SHIFT: u32 = 62;
const LAYER_SHIFT: u32 = 37;
const LAYER_MASK: u64 = (1 << 12) - 1;
const CHUNK_MASK: u64 = (1 << LAYER_SHIFT) - 1;

/// A store in a chain of them, from the bottom: the first is 1. What lies below all of them, the
/// origin, is no layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layer(pub u16);

impl Layer {
    /// The lowest store; the only one where stores are not stacked.
    pub const FIRST: Layer = Layer(1);
    /// The highest that a word can name.
    pub const MAX: Layer = Layer(LAYER_MASK as u16);
}

/// Where a relocated chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// In which store.
    pub layer: Layer,
    /// In which of its chunks.
    pub chunk: StoreChunk,
}

impl Place {
    /// The highest store chunk that a word can name: 2^37 − 1, 512 TiB of 4 KiB chunks.
    pub const MAX_CHUNK: u64 = CHUNK_MASK;
}

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// It lies where the origin has it.
    Unmapped,
    /// A worker is moving it; whoever meets it waits.
    Pending,
    /// It was moved.
    Mapped(Place),
    /// It was moved, and is being copied back: reads go on, writes wait.
    Busy(Place),
}

impl Entry {
    pub(super) const fn to_word(self) -> u64 {
        match self {
            Entry::Unmapped => 0,
            Entry::Pending => 1 << STATE_SHIFT,
            Entry::Mapped(place) => (2 << STATE_SHIFT) | place.bits(),
            Entry::Busy(place) => (3 << STATE_SHIFT) | place.bits(),
        }
    }

    pub(super) const fn from_word(word: u64) -> Entry {
        let place = Place {
            layer: Layer(((word >> LAYER_SHIFT) & LAYER_MASK) as u16),
            chunk: StoreChunk(word & CHUNK_MASK),
        };
        match word >> STATE_SHIFT {
            0 => Entry::Unmapped,
            1 => Entry::Pending,
            2 => Entry::Mapped(place),
            _ => Entry::Busy(place),
        }
    }
}

impl Place {
    const fn bits(self) -> u64 {
        debug_assert!(self.chunk.0 <= CHUNK_MASK && self.layer.0 as u64 <= LAYER_MASK);
        ((self.layer.0 as u64) << LAYER_SHIFT) | self.chunk.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_known_is_the_zero_word() {
        assert_eq!(Entry::Unmapped.to_word(), 0);
    }

    proptest! {
        #[test]
        fn a_word_holds_every_layer_and_chunk(layer in 1u16..=4095, chunk in 0u64..(1 << 37)) {
            let place = Place { layer: Layer(layer), chunk: StoreChunk(chunk) };
            for entry in [Entry::Mapped(place), Entry::Busy(place)] {
                prop_assert_eq!(Entry::from_word(entry.to_word()), entry);
            }
        }
    }
}
