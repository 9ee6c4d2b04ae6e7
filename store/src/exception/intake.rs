//! Mappings on their way into a table: all that a store lists, by where they belong in it.
//!
//! Owns their memory, 8 bytes each, and their order: those of a **stripe** of regions lie together
//! from the start, those of a region when they are taken out. Never knows what they are read from,
//! nor the leaves that they end in. Keeps: of one old chunk named twice neither is lost.
//!
//! Entered as they come, mappings that are scattered over a large table would each wait for memory
//! several times, and leaves would be made too small. A stripe's mappings and leaves fit into a
//! processor's caches instead; and every leaf is made once, as large as it has to be.

use super::leaf::REGION;
use super::word::{Key, Place};
use crate::units::{Chunk, StoreChunk};

/// Stripes that there are in most tables: so many places at which memory grows do not push each
/// other out of the caches.
const STRIPES: usize = 256;
/// Mappings for which a stripe takes memory at once: first few, since many tables are small, then
/// more. Those of a region that is full take five pieces, which are a little more than its leaf:
/// what one stripe gives up is where the leaf of another fits.
const FIRST: usize = 32;
const GROWTH: usize = 8;
const MOST: usize = 1272;
const _: () = assert!(cfg!(feature = "shuttle") || FIRST + FIRST * GROWTH + 3 * MOST == REGION + 8);

const KEY_SHIFT: u32 = Place::MAX_CHUNK.trailing_ones();
const REGION_SHIFT: u32 = KEY_SHIFT + REGION.trailing_zeros();
/// log2 of the regions that a stripe can tell apart.
const REGION_BITS: u32 = u64::BITS - REGION_SHIFT;

/// A mapping within its stripe: `region of the stripe | key | chunk of the store`.
#[derive(Clone, Copy, Debug)]
struct Packed(u64);

impl Packed {
    const fn region(self) -> usize {
        (self.0 >> REGION_SHIFT) as usize
    }

    const fn key(self) -> Key {
        Key((self.0 >> KEY_SHIFT) as u16 & (REGION as u16 - 1))
    }

    /// In which word, and there in which bit, of the bits of a stripe's chunks.
    const fn bit(self) -> (usize, u64) {
        let within = self.0 >> KEY_SHIFT;
        ((within / 64) as usize, 1 << (within % 64))
    }
}

/// The mappings of some neighbouring regions.
#[derive(Debug, Default)]
struct Stripe {
    full: Vec<Vec<Packed>>,
    /// Has room, or nothing.
    last: Vec<Packed>,
}

impl Stripe {
    #[inline]
    fn push(&mut self, packed: Packed) {
        if self.last.len() == self.last.capacity() {
            self.begin_block();
        }
        self.last.push(packed);
    }

    #[cold]
    fn begin_block(&mut self) {
        let len = (GROWTH * self.last.len()).clamp(FIRST, MOST);
        let full = std::mem::replace(&mut self.last, Vec::with_capacity(len));
        if !full.is_empty() {
            self.full.push(full);
        }
    }

    fn len(&self) -> usize {
        self.blocks().map(<[Packed]>::len).sum()
    }

    fn blocks(&self) -> impl Iterator<Item = &[Packed]> {
        self.full.iter().chain([&self.last]).map(Vec::as_slice)
    }

    /// Calls `visit` for each, in the order in which they were added.
    fn each(&self, mut visit: impl FnMut(Packed)) {
        for block in self.blocks() {
            block.iter().for_each(|&packed| visit(packed));
        }
    }

    /// Those of a region together, in the order in which they came. `grouped` gets them; `ends`, which
    /// has a place for each region, where in it the region's end.
    fn group(&self, ends: &mut [usize], grouped: &mut Vec<Packed>) {
        ends.fill(0);
        self.each(|packed| ends[packed.region()] += 1);
        let mut sum = 0;
        for end in &mut *ends {
            sum += std::mem::replace(end, sum);
        }
        grouped.resize(sum, Packed(0));
        self.each(|packed| {
            let at = &mut ends[packed.region()];
            grouped[*at] = packed;
            *at += 1;
        });
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Intake {
    chunks: u64,
    /// log2 of the regions of a stripe.
    shift: u32,
    stripes: Vec<Stripe>,
}

impl Intake {
    /// For a device of `chunks` chunks; without a mapping.
    pub fn new(chunks: u64) -> Intake {
        let regions = chunks.div_ceil(REGION as u64);
        let each = regions.div_ceil(STRIPES as u64).next_power_of_two();
        let shift = each.trailing_zeros().min(REGION_BITS);
        let count = regions.div_ceil(1 << shift) as usize;
        let stripes = std::iter::repeat_with(Stripe::default).take(count).collect();
        Intake { chunks, shift, stripes }
    }

    /// Chunks of the device; one past the highest that may be added.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// One more: `old` lies in `new`, which is no more than [`Place::MAX_CHUNK`].
    #[inline]
    pub fn add(&mut self, old: Chunk, new: StoreChunk) {
        debug_assert!(old.0 < self.chunks && new.0 <= Place::MAX_CHUNK);
        let shift = self.shift + REGION.trailing_zeros();
        let within = old.0 & ((1 << shift) - 1);
        self.stripes[(old.0 >> shift) as usize].push(Packed(within << KEY_SHIFT | new.0));
    }

    /// Whether two of them are for the same chunk of the device.
    pub fn has_twice(&self) -> bool {
        let mut seen = vec![0u64; (REGION << self.shift).div_ceil(64)];
        self.stripes.iter().any(|stripe| {
            let mut twice = 0;
            stripe.each(|packed| {
                let (word, bit) = packed.bit();
                twice |= seen[word] & bit;
                seen[word] |= bit;
            });
            // Whichever is less to do.
            if seen.len() < 8 * stripe.len() {
                seen.fill(0);
            } else {
                stripe.each(|packed| seen[packed.bit().0] = 0);
            }
            twice != 0
        })
    }

    /// Hands each region's mappings to `enter`, in the order in which they were added. Gives their
    /// memory up on the way: what is made of them can take its place.
    pub(super) fn drain(mut self, mut enter: impl FnMut(usize, Mappings<'_>)) {
        let mut ends = vec![0; 1 << self.shift];
        let mut grouped = Vec::new();
        for (number, slot) in self.stripes.iter_mut().enumerate() {
            let stripe = std::mem::take(slot);
            stripe.group(&mut ends, &mut grouped);
            drop(stripe);
            let mut start = 0;
            for (region, &end) in ends.iter().enumerate() {
                if end != start {
                    enter(number << self.shift | region, Mappings(&grouped[start..end]));
                    start = end;
                }
            }
        }
    }
}

/// Mappings of one region.
#[derive(Clone, Copy)]
pub(super) struct Mappings<'a>(&'a [Packed]);

impl Mappings<'_> {
    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    /// Which of the region's chunks, and where it lies.
    pub(super) fn iter(self) -> impl Iterator<Item = (Key, StoreChunk)> + Clone {
        self.0.iter().map(|packed| (packed.key(), StoreChunk(packed.0 & Place::MAX_CHUNK)))
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
