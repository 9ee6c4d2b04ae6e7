//! The words of one region: a small hash table, or one word per chunk.
//!
//! Owns the search for a chunk's word, and the move of all words to a larger leaf. Never knows
//! where a leaf is in memory or how long it lives. Keeps I12: a full leaf is replaced by one of the
//! next class, and no larger one.
//!
//! A **sparse** leaf uses open addressing with linear probing, and is insert-only: a slot is taken
//! once and keeps its chunk. So two threads that search for the same chunk walk the same slots and
//! meet in the same one, and a chunk has one word (I5). A leaf without room is replaced by one of
//! the next class. The last class is **flat**, indexed by the chunk's number, and is never
//! replaced.
//!
//! Moving: every word is frozen, and its frozen value is entered into the new leaf unless its
//! chunk is there. A thread that meets a frozen word helps, and does the same again from the
//! start. That is harmless, however late: frozen words do not change, chunks never leave a leaf,
//! and no word of the new leaf changes before *all* have been entered and the directory names it.

use super::word::{ChunkState, EMPTY, FROZEN, Key, Place, key_of};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Chunks of a region. Few for the model checker.
pub(super) const REGION: usize = if cfg!(feature = "shuttle") { 16 } else { 4096 };

/// Slots of sparse leaves, by class: with two words of their own, and the few bytes that an
/// allocator adds, they fill blocks that are multiples of 16 bytes, and of musl's sizes.
const SLOTS: [u16; 19] =
    [3, 5, 7, 11, 17, 27, 37, 59, 81, 123, 165, 251, 337, 507, 677, 1019, 1361, 2043, 2725];

/// Words before the slots of a sparse leaf: `references << 32 | slots taken`, and the leaf that
/// replaces it.
pub(super) const HEAD: usize = 2;
/// One reference to a sparse leaf, in the first word of its head.
pub(super) const REFERENCE: u64 = 1 << 32;

/// How large a leaf is, and whether it is flat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    /// Bits that it takes.
    pub(super) const BITS: u32 = 5;
    /// One word a chunk; there is no larger one.
    pub(super) const FLAT: Class = Class((1 << Self::BITS) - 1);

    pub(super) const fn from_bits(bits: u64) -> Class {
        Class(bits as u8)
    }

    pub(super) const fn to_bits(self) -> u64 {
        self.0 as u64
    }

    /// The smallest that has room for `count` chunks.
    pub(super) fn for_count(count: usize) -> Class {
        let fits =
            |slots: &u16| *slots as usize * 4 < REGION * 3 && limit(*slots as usize) >= count;
        SLOTS.iter().position(fits).map_or(Class::FLAT, |class| Class(class as u8))
    }

    fn next(self) -> Class {
        match SLOTS.get(self.0 as usize) {
            Some(&slots) => Class::for_count(limit(slots as usize) + 1),
            None => Class::FLAT,
        }
    }

    /// The word of a leaf at which a search for `key` begins.
    #[inline]
    pub(super) fn first(self, key: Key) -> usize {
        SLOTS.get(self.0 as usize).map_or(key.0 as usize, |&slots| HEAD + home(key, slots.into()))
    }

    /// Words of a leaf, with its head.
    pub(super) fn words(self) -> usize {
        SLOTS.get(self.0 as usize).map_or(REGION, |&slots| slots as usize + HEAD)
    }
}

/// Slots that may be taken: seven of eight, so that a search stays short; all of them in a leaf of
/// at most a cache line.
const fn limit(slots: usize) -> usize {
    if slots <= 8 { slots } else { slots * 7 / 8 }
}

/// A region's words.
#[derive(Clone, Copy)]
pub(super) enum Leaf<'a> {
    Flat(&'a [AtomicU64; REGION]),
    Sparse(Sparse<'a>),
}

/// See the module's description.
#[derive(Clone, Copy)]
pub(super) struct Sparse<'a> {
    /// [`HEAD`] words.
    head: &'a [AtomicU64],
    slots: &'a [AtomicU64],
}

/// How a change of a word ended.
pub(super) enum Changed {
    /// It was changed from this; the error: it is this, and must not be changed from it.
    Here(Result<ChunkState, ChunkState>),
    /// The leaf has no room, or is being replaced: replace it, and change the new leaf's word.
    Elsewhere(Class),
}

impl<'a> Leaf<'a> {
    pub(super) fn get(self, key: Key) -> ChunkState {
        match self {
            Leaf::Flat(words) => get_flat(words, key),
            Leaf::Sparse(leaf) => leaf.get(key),
        }
    }

    /// Changes the state of a chunk to the result of `to`, unless that is none.
    pub(super) fn change(
        self,
        key: Key,
        to: &mut dyn FnMut(ChunkState) -> Option<ChunkState>,
    ) -> Changed {
        match self {
            Leaf::Flat(words) => Changed::Here(change_flat(words, key, to)),
            Leaf::Sparse(leaf) => leaf.change(key, to),
        }
    }

    /// The first mapped chunk from `from` on, and its place.
    pub(super) fn next_mapped(self, from: Key) -> Option<(Key, Place)> {
        /// Up to here it is quicker to scan a leaf than to look up one chunk after another.
        const FEW: usize = 256;
        let mapped = |word| match ChunkState::from_word(word) {
            ChunkState::Mapped(place) => Some((key_of(word), place)),
            _ => None,
        };
        match self {
            Leaf::Sparse(leaf) if leaf.slots.len() <= FEW => leaf
                .slots
                .iter()
                .filter_map(|cell| mapped(cell.load(Ordering::Acquire)))
                .filter(|(key, _)| *key >= from)
                .min_by_key(|(key, _)| *key),
            Leaf::Sparse(leaf) => {
                (from.0..REGION as u16).map(Key).find_map(|key| match leaf.get(key) {
                    ChunkState::Mapped(place) => Some((key, place)),
                    _ => None,
                })
            }
            Leaf::Flat(words) => words[from.0 as usize..]
                .iter()
                .find_map(|cell| mapped(cell.load(Ordering::Acquire))),
        }
    }

    /// Enters a word that was frozen in another leaf, unless its chunk is here already.
    fn adopt(self, word: u64) {
        match self {
            Leaf::Flat(words) => {
                // If it fails, the chunk has a word here, which may be newer.
                let _ = swap(&words[key_of(word).0 as usize], EMPTY, word);
            }
            Leaf::Sparse(leaf) => leaf.adopt(word),
        }
    }
}

/// Enters a chunk's word into a leaf that is not shared yet. False if the leaf has no room.
pub(super) fn put(leaf: &mut [AtomicU64], class: Class, word: u64) -> bool {
    let key = key_of(word);
    if class == Class::FLAT {
        *leaf[key.0 as usize].get_mut() = word;
        return true;
    }
    let (head, slots) = leaf.split_at_mut(HEAD);
    let count = slots.len();
    let (before, from) = slots.split_at_mut(home(key, count));
    for slot in from.iter_mut().chain(before).map(AtomicU64::get_mut) {
        if *slot == EMPTY {
            let counts = head[0].get_mut();
            if (*counts % REFERENCE) as usize >= limit(count) {
                return false;
            }
            *counts += 1;
            *slot = word;
            return true;
        }
        if key_of(*slot) == key {
            *slot = word;
            return true;
        }
    }
    false
}

/// Working memory of [`build`], for reuse.
#[derive(Default)]
pub(super) struct Scratch {
    starts: Vec<u16>,
    over: Vec<u64>,
}

/// Enters words of different chunks into an empty leaf that is not shared yet and has room for
/// them: the same as one [`put`] after another, without a search for each.
pub(super) fn build(
    leaf: &mut [AtomicU64],
    class: Class,
    words: impl Iterator<Item = u64> + Clone,
    Scratch { starts, over }: &mut Scratch,
) {
    if class == Class::FLAT {
        words.for_each(|word| *leaf[key_of(word).0 as usize].get_mut() = word);
        return;
    }
    // First count the searches that begin at each slot; then assign their slots, all before those
    // of the next. So no search meets an empty slot.
    let (head, slots) = leaf.split_at_mut(HEAD);
    let count = slots.len();
    starts.clear();
    starts.resize(count, 0);
    words.clone().for_each(|word| starts[home(key_of(word), count)] += 1);
    let mut ahead = 0u16;
    for (slot, start) in (0..).zip(&mut *starts) {
        // How far after the slot the next free one lies, without a branch: it is anybody's guess.
        let next = ahead + std::mem::replace(start, slot + ahead);
        ahead = next.saturating_sub(1);
    }
    over.clear();
    let mut taken = 0;
    for word in words {
        let start = &mut starts[home(key_of(word), count)];
        match slots.get_mut(usize::from(*start)) {
            Some(slot) => *slot.get_mut() = word,
            None => over.push(word),
        }
        *start += 1;
        taken += 1;
    }
    *head[0].get_mut() += taken - over.len() as u64;
    // Searches that wrap around to the start of the leaf, past the words that are there by now.
    over.iter().for_each(|&word| _ = put(leaf, class, word));
}

/// The slot at which the search for a chunk begins. Neighbours, and chunks at any constant
/// distance, are spread: 2531 / 4096 is the golden ratio.
fn home(key: Key, slots: usize) -> usize {
    (key.0 as usize * 2531) % REGION * slots / REGION
}

/// The state of a chunk in a flat leaf.
#[inline]
pub(super) fn get_flat(words: &[AtomicU64; REGION], key: Key) -> ChunkState {
    ChunkState::from_word(words[key.0 as usize].load(Ordering::Acquire))
}

/// [`Leaf::change`] of a flat leaf.
pub(super) fn change_flat(
    words: &[AtomicU64; REGION],
    key: Key,
    mut to: impl FnMut(ChunkState) -> Option<ChunkState>,
) -> Result<ChunkState, ChunkState> {
    let cell = &words[key.0 as usize];
    let mut word = cell.load(Ordering::Acquire);
    loop {
        let now = ChunkState::from_word(word);
        let next = to(now).ok_or(now)?;
        match swap(cell, word, next.to_word(key)) {
            Ok(()) => return Ok(now),
            Err(other) => word = other,
        }
    }
}

impl<'a> Sparse<'a> {
    /// The leaf with these words, including its head.
    pub(super) fn of(words: &'a [AtomicU64]) -> Sparse<'a> {
        let (head, slots) = words.split_at(HEAD);
        Sparse { head, slots }
    }

    /// References, and slots taken.
    pub(super) fn counts(self) -> &'a AtomicU64 {
        &self.head[0]
    }

    /// The leaf that replaces it: the directory's word for that leaf, 0 while there is none.
    pub(super) fn next(self) -> &'a AtomicU64 {
        &self.head[1]
    }

    /// The slots in which a chunk may be, in the order of the search.
    fn path(self, key: Key) -> impl Iterator<Item = &'a AtomicU64> {
        let (before, from) = self.slots.split_at(home(key, self.slots.len()));
        from.iter().chain(before)
    }

    fn get(self, key: Key) -> ChunkState {
        for cell in self.path(key) {
            let word = cell.load(Ordering::Acquire) & !FROZEN;
            if word == EMPTY {
                break;
            }
            if key_of(word) == key {
                return ChunkState::from_word(word);
            }
        }
        ChunkState::Unmapped
    }

    fn change(self, key: Key, to: &mut dyn FnMut(ChunkState) -> Option<ChunkState>) -> Changed {
        let larger = |class: Class| Changed::Elsewhere(class.next());
        for cell in self.path(key) {
            let mut word = cell.load(Ordering::Acquire);
            loop {
                if word & FROZEN != 0 {
                    return larger(self.class());
                }
                if word != EMPTY && key_of(word) != key {
                    break;
                }
                let now = ChunkState::from_word(word);
                let Some(next) = to(now) else { return Changed::Here(Err(now)) };
                if word == EMPTY && self.taken() >= limit(self.slots.len()) {
                    return larger(self.class());
                }
                match swap(cell, word, next.to_word(key)) {
                    Ok(()) if word == EMPTY => {
                        self.counts().fetch_add(1, Ordering::Relaxed);
                        return Changed::Here(Ok(now));
                    }
                    Ok(()) => return Changed::Here(Ok(now)),
                    Err(other) => word = other,
                }
            }
        }
        match to(ChunkState::Unmapped) {
            Some(_) => larger(self.class()),
            None => Changed::Here(Err(ChunkState::Unmapped)),
        }
    }

    fn adopt(self, word: u64) {
        for cell in self.path(key_of(word)) {
            let now = match cell.load(Ordering::Acquire) {
                EMPTY => match swap(cell, EMPTY, word) {
                    Ok(()) => {
                        self.counts().fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    Err(now) => now,
                },
                now => now,
            };
            if key_of(now) == key_of(word) {
                return;
            }
        }
        unreachable!("a leaf has room for all that a smaller one held");
    }

    /// Freezes all words and enters their states into `next`.
    pub(super) fn move_to(self, next: Leaf<'_>) {
        for cell in self.slots {
            let word = cell.fetch_or(FROZEN, Ordering::AcqRel) & !FROZEN;
            if ChunkState::from_word(word) != ChunkState::Unmapped {
                next.adopt(word);
            }
        }
    }

    fn taken(self) -> usize {
        (self.counts().load(Ordering::Relaxed) % REFERENCE) as usize
    }

    fn class(self) -> Class {
        let of = |slots: &u16| *slots as usize == self.slots.len();
        SLOTS.iter().position(of).map_or(Class::FLAT, |class| Class(class as u8))
    }
}

fn swap(cell: &AtomicU64, from: u64, to: u64) -> Result<(), u64> {
    cell.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
}
