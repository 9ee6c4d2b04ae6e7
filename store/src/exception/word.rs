//! One chunk's state, packed into the 64-bit word that workers compare and swap.
//!
//! ```text
//! 63 62 | 61     | 60 … 49 | 48 … 37 | 36 … 0
//! state | frozen | key     | layer   | chunk of that layer's store
//! ```
//!
//! The key says which chunk of its region the word describes. The zero word describes none. A chunk
//! that became unmapped again keeps a word, so that no word ever becomes zero again and a search
//! continues past it.

use crate::units::StoreChunk;

const STATE_SHIFT: u32 = 62;
const KEY_SHIFT: u32 = 49;
const KEY_MASK: u64 = (1 << 12) - 1;
const LAYER_SHIFT: u32 = 37;
const LAYER_MASK: u64 = (1 << 12) - 1;
const CHUNK_MASK: u64 = (1 << LAYER_SHIFT) - 1;
/// Makes the word of an unmapped chunk other than zero, whatever its key.
const UNMAPPED: u64 = 1;

/// The word of no chunk.
pub(super) const EMPTY: u64 = 0;
/// Set in every word of a leaf that a larger one replaces: the word does not change any more.
pub(super) const FROZEN: u64 = 1 << 61;

/// A chunk within its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) u16);

/// A store in a chain of stores, counted from the bottom: the first is 1. The origin, below all of
/// them, is not a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layer(pub u16);

impl Layer {
    /// The lowest store; the only one if stores are not stacked.
    pub const FIRST: Layer = Layer(1);
    /// The highest that a word can name.
    pub const MAX: Layer = Layer(LAYER_MASK as u16);
}

/// The place of a relocated chunk.
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

    /// The `n`th chunk after it in the same store.
    pub(super) const fn plus(self, n: u64) -> Place {
        Place { chunk: StoreChunk(self.chunk.0 + n), ..self }
    }
}

/// The state of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkState {
    /// It is on the origin.
    Unmapped,
    /// A worker is moving it; others wait.
    Pending,
    /// It was moved.
    Mapped(Place),
    /// It was moved, and is being copied back: reads proceed, writes wait.
    Busy(Place),
}

impl ChunkState {
    /// What the `n`th chunk after this one has, if both lie in the same way: mapped chunks next to each
    /// other in one store.
    pub(super) const fn plus(self, n: u64) -> ChunkState {
        match self {
            ChunkState::Mapped(place) => ChunkState::Mapped(place.plus(n)),
            ChunkState::Busy(place) => ChunkState::Busy(place.plus(n)),
            ChunkState::Unmapped | ChunkState::Pending => self,
        }
    }

    pub(super) const fn to_word(self, key: Key) -> u64 {
        let key = (key.0 as u64) << KEY_SHIFT;
        debug_assert!(key & !(KEY_MASK << KEY_SHIFT) == 0);
        key | match self {
            ChunkState::Unmapped => UNMAPPED,
            ChunkState::Pending => 1 << STATE_SHIFT,
            ChunkState::Mapped(place) => (2 << STATE_SHIFT) | place.bits(),
            ChunkState::Busy(place) => (3 << STATE_SHIFT) | place.bits(),
        }
    }

    /// The state in a word, frozen or not; none for the zero word.
    pub(super) const fn from_word(word: u64) -> ChunkState {
        let place = Place {
            layer: Layer(((word >> LAYER_SHIFT) & LAYER_MASK) as u16),
            chunk: StoreChunk(word & CHUNK_MASK),
        };
        match word >> STATE_SHIFT {
            0 => ChunkState::Unmapped,
            1 => ChunkState::Pending,
            2 => ChunkState::Mapped(place),
            _ => ChunkState::Busy(place),
        }
    }
}

/// The chunk that a word describes; meaningless for the zero word.
pub(super) const fn key_of(word: u64) -> Key {
    Key(((word >> KEY_SHIFT) & KEY_MASK) as u16)
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
        assert_eq!(ChunkState::from_word(EMPTY), ChunkState::Unmapped);
        assert_ne!(ChunkState::Unmapped.to_word(Key(0)), EMPTY);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]

        #[test]
        fn a_word_holds_every_key_layer_and_chunk(
            key in 0u16..4096, layer in 0u16..=4095, chunk in 0u64..(1 << 37)
        ) {
            let place = Place { layer: Layer(layer), chunk: StoreChunk(chunk) };
            for entry in [ChunkState::Unmapped, ChunkState::Pending, ChunkState::Mapped(place), ChunkState::Busy(place)] {
                let word = entry.to_word(Key(key));
                prop_assert_eq!(word & FROZEN, 0);
                prop_assert_eq!(ChunkState::from_word(word | FROZEN), entry);
                prop_assert_eq!(key_of(word | FROZEN), Key(key));
            }
        }
    }
}
