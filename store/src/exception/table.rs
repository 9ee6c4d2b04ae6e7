//! The table that all workers share: one word a chunk, lock-free.
//!
//! Owns the words, the memory they lie in and the masks of who waits for one. A look-up is a load;
//! whoever wants to move a chunk claims it by one compare-and-swap and holds a [`Claim`] until it
//! publishes the new place or puts the old one back. Regions of [`LEAF_CHUNKS`] chunks get memory
//! when their first chunk is claimed, so memory follows what changed, not how large the disk is
//! (known bug 25).
//!
//! Waiting (I17): a waiter adds its bit to the mask of the chunk's bucket and then looks at the
//! word *again*; the owner changes the word and then takes the mask. Both masks and words are
//! changed by read-modify-writes or Release stores that the other side reads after its own, so one
//! of the two always sees the other.

#![allow(unsafe_code)]

use super::word::{Entry, Place};
use crate::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use crate::units::Chunk;

/// Chunks that share one allocation of the table: 4 KiB of words.
pub const LEAF_CHUNKS: u64 = 512;
/// Buckets of waiting masks; a collision costs a spurious wake and nothing else.
const BUCKETS: usize = 256;

struct Leaf {
    words: [AtomicU64; LEAF_CHUNKS as usize],
}

impl Leaf {
    fn new() -> Box<Leaf> {
        Box::new(Leaf { words: std::array::from_fn(|_| AtomicU64::new(0)) })
    }
}

/// The right, and the duty, to end a pending chunk. Not cloneable: one chunk has one owner (I5).
#[derive(Debug)]
#[must_use = "a claim that is dropped leaves its chunk pending for ever"]
pub struct Claim {
    chunk: Chunk,
    before: Entry,
}

impl Claim {
    /// Which chunk.
    pub fn chunk(&self) -> Chunk {
        self.chunk
    }

    /// Where its content lay when it was claimed: `Unmapped` or `Mapped` in a lower layer.
    pub fn before(&self) -> Entry {
        self.before
    }
}

/// Which chunks of a device live elsewhere.
pub struct ExceptionTable {
    chunks: u64,
    leaves: Box<[AtomicPtr<Leaf>]>,
    leaves_in_use: AtomicUsize,
    waiting: Box<[AtomicU64]>,
}

impl ExceptionTable {
    /// A table for a device of `chunks` chunks, all unmapped. Takes 8 bytes for every
    /// [`LEAF_CHUNKS`] chunks at once, the rest as chunks are claimed.
    pub fn new(chunks: u64) -> Self {
        let leaves = chunks.div_ceil(LEAF_CHUNKS) as usize;
        ExceptionTable {
            chunks,
            leaves: (0..leaves).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect(),
            leaves_in_use: AtomicUsize::new(0),
            waiting: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Chunks the table speaks of; one past the highest that may be asked for.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Bytes of memory taken.
    pub fn memory(&self) -> usize {
        self.leaves.len() * 8
            + self.leaves_in_use.load(Ordering::Relaxed) * size_of::<Leaf>()
            + BUCKETS * 8
    }

    /// What is known of `chunk`.
    #[inline]
    pub fn get(&self, chunk: Chunk) -> Entry {
        match self.word(chunk) {
            Some(word) => Entry::from_word(word.load(Ordering::Acquire)),
            None => Entry::Unmapped,
        }
    }

    /// Takes `chunk` for moving, if it is still as `seen` (`Unmapped` or `Mapped`) says; otherwise
    /// says what it is now.
    pub fn claim(&self, chunk: Chunk, seen: Entry) -> Result<Claim, Entry> {
        debug_assert!(matches!(seen, Entry::Unmapped | Entry::Mapped(_)));
        self.word_or_new(chunk)
            .compare_exchange(
                seen.to_word(),
                Entry::Pending.to_word(),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .map(|_| Claim { chunk, before: seen })
            .map_err(Entry::from_word)
    }

    /// Ends a claim: the chunk lies at `place` from now on. Returns who waited, a bit a worker.
    #[must_use = "these workers sleep until they are woken"]
    pub fn publish(&self, claim: Claim, place: Place) -> u64 {
        self.end(claim.chunk, Entry::Pending, Entry::Mapped(place))
    }

    /// Ends a claim that came to nothing: the chunk lies where it lay. Returns who waited.
    #[must_use = "these workers sleep until they are woken"]
    pub fn put_back(&self, claim: Claim) -> u64 {
        self.end(claim.chunk, Entry::Pending, claim.before)
    }

    /// Marks a mapped chunk as being copied back: from now on new writes to it wait. False where
    /// it is not mapped at `place`.
    pub fn mark_busy(&self, chunk: Chunk, place: Place) -> bool {
        let Some(word) = self.word(chunk) else { return false };
        word.compare_exchange(
            Entry::Mapped(place).to_word(),
            Entry::Busy(place).to_word(),
            Ordering::AcqRel,
            Ordering::Acquire,
        )
        .is_ok()
    }

    /// The chunk was copied back: it lies where the origin has it. Returns who waited.
    #[must_use = "these workers sleep until they are woken"]
    pub fn clear_busy(&self, chunk: Chunk, place: Place) -> u64 {
        self.end(chunk, Entry::Busy(place), Entry::Unmapped)
    }

    /// Copying back was given up: the chunk stays at `place`. Returns who waited.
    #[must_use = "these workers sleep until they are woken"]
    pub fn keep_busy_mapped(&self, chunk: Chunk, place: Place) -> u64 {
        self.end(chunk, Entry::Busy(place), Entry::Mapped(place))
    }

    /// Enters a mapping read from a store, over one of a lower layer; before any worker serves.
    pub fn load(&self, chunk: Chunk, place: Place) {
        self.word_or_new(chunk).store(Entry::Mapped(place).to_word(), Ordering::Release);
    }

    /// The first chunk from `from` on that is mapped, and where it lies.
    pub fn next_mapped(&self, from: Chunk) -> Option<(Chunk, Place)> {
        let mut chunk = from.0;
        while chunk < self.chunks {
            if self.leaves[(chunk / LEAF_CHUNKS) as usize].load(Ordering::Acquire).is_null() {
                chunk = (chunk / LEAF_CHUNKS + 1) * LEAF_CHUNKS;
                continue;
            }
            if let Entry::Mapped(place) = self.get(Chunk(chunk)) {
                return Some((Chunk(chunk), place));
            }
            chunk += 1;
        }
        None
    }

    /// Lets every mapped chunk lie where `place` says, nowhere for `None`; while no worker serves
    /// and no chunk is moved.
    pub fn remap(&self, mut place: impl FnMut(Chunk, Place) -> Option<Place>) {
        let mut from = Chunk(0);
        while let Some((chunk, was)) = self.next_mapped(from) {
            let entry = place(chunk, was).map_or(Entry::Unmapped, Entry::Mapped);
            self.word_or_new(chunk).store(entry.to_word(), Ordering::Release);
            from = Chunk(chunk.0 + 1);
        }
    }

    /// Registers worker `bit` as waiting for `chunk`, and looks again: true if it is still as
    /// `seen`, and the worker will be woken; false if it changed, and there is nothing to wait for.
    pub fn wait(&self, chunk: Chunk, seen: Entry, bit: u32) -> bool {
        self.waiting[Self::bucket(chunk)].fetch_or(1 << bit, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.get(chunk) == seen
    }

    fn end(&self, chunk: Chunk, from: Entry, to: Entry) -> u64 {
        let word = self.word(chunk).expect("a claimed chunk has a word");
        let was = word.swap(to.to_word(), Ordering::AcqRel);
        assert_eq!(Entry::from_word(was), from, "I5: {chunk:?} changed under its owner");
        fence(Ordering::SeqCst);
        let mask = &self.waiting[Self::bucket(chunk)];
        if mask.load(Ordering::SeqCst) == 0 { 0 } else { mask.swap(0, Ordering::AcqRel) }
    }

    fn bucket(chunk: Chunk) -> usize {
        (chunk.0 as usize) % BUCKETS
    }

    #[inline]
    fn word(&self, chunk: Chunk) -> Option<&AtomicU64> {
        debug_assert!(chunk.0 < self.chunks);
        let leaf = self.leaves[(chunk.0 / LEAF_CHUNKS) as usize].load(Ordering::Acquire);
        // SAFETY: a leaf pointer is null or came from `Box::into_raw` in `word_or_new`, is
        // published with Release after the leaf was initialised, and is freed only by `drop`.
        let leaf = unsafe { leaf.as_ref() }?;
        Some(&leaf.words[(chunk.0 % LEAF_CHUNKS) as usize])
    }

    fn word_or_new(&self, chunk: Chunk) -> &AtomicU64 {
        let slot = &self.leaves[(chunk.0 / LEAF_CHUNKS) as usize];
        if slot.load(Ordering::Acquire).is_null() {
            let new = Box::into_raw(Leaf::new());
            match slot.compare_exchange(
                std::ptr::null_mut(),
                new,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    self.leaves_in_use.fetch_add(1, Ordering::Relaxed);
                }
                // SAFETY: `new` came from `Box::into_raw` above and lost the race, so nobody else
                // has seen it.
                Err(_) => drop(unsafe { Box::from_raw(new) }),
            }
        }
        self.word(chunk).expect("the leaf was just made")
    }
}

impl Drop for ExceptionTable {
    fn drop(&mut self) {
        for slot in &self.leaves {
            let leaf = slot.load(Ordering::Acquire);
            if !leaf.is_null() {
                // SAFETY: the pointer came from `Box::into_raw`, and `&mut self` proves that no
                // worker holds a reference into the leaf.
                drop(unsafe { Box::from_raw(leaf) });
            }
        }
    }
}

impl std::fmt::Debug for ExceptionTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExceptionTable")
            .field("chunks", &self.chunks)
            .field("memory", &self.memory())
            .finish()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::exception::Layer;
    use crate::units::StoreChunk;

    fn place(chunk: u64) -> Place {
        Place { layer: Layer::FIRST, chunk: StoreChunk(chunk) }
    }

    #[test]
    fn a_claimed_chunk_is_pending_until_published() {
        let table = ExceptionTable::new(1000);
        let claim = table.claim(Chunk(700), Entry::Unmapped).unwrap();
        assert_eq!(table.get(Chunk(700)), Entry::Pending);
        assert_eq!(table.claim(Chunk(700), Entry::Unmapped).unwrap_err(), Entry::Pending);
        assert_eq!(table.publish(claim, place(2)), 0);
        assert_eq!(table.get(Chunk(700)), Entry::Mapped(place(2)));
    }

    #[test]
    fn a_claim_put_back_leaves_the_chunk_as_it_was() {
        let table = ExceptionTable::new(10);
        table.load(Chunk(3), place(9));
        let claim = table.claim(Chunk(3), Entry::Mapped(place(9))).unwrap();
        assert_eq!(table.put_back(claim), 0);
        assert_eq!(table.get(Chunk(3)), Entry::Mapped(place(9)));
    }

    #[test]
    fn the_owner_learns_who_waits() {
        let table = ExceptionTable::new(10);
        let claim = table.claim(Chunk(3), Entry::Unmapped).unwrap();
        assert!(table.wait(Chunk(3), Entry::Pending, 5));
        assert_eq!(table.publish(claim, place(2)), 1 << 5);
        assert!(!table.wait(Chunk(3), Entry::Pending, 5));
    }

    #[test]
    fn what_is_mapped_is_found_and_moved() {
        let table = ExceptionTable::new(10_000);
        for chunk in [0, 511, 512, 9_999] {
            table.load(Chunk(chunk), place(chunk + 2));
        }
        let memory = table.memory();
        let found = |table: &ExceptionTable| {
            let mut all = Vec::new();
            let mut from = Chunk(0);
            while let Some((chunk, place)) = table.next_mapped(from) {
                all.push((chunk.0, place.chunk.0));
                from = Chunk(chunk.0 + 1);
            }
            all
        };
        assert_eq!(found(&table), [(0, 2), (511, 513), (512, 514), (9_999, 10_001)]);
        table.remap(|chunk, _| (chunk.0 != 511).then(|| place(chunk.0 + 7)));
        assert_eq!(found(&table), [(0, 7), (512, 519), (9_999, 10_006)]);
        assert_eq!(table.get(Chunk(511)), Entry::Unmapped);
        assert_eq!(table.memory(), memory, "regions that nothing is mapped in take no memory");
    }

    #[test]
    fn memory_follows_what_changed() {
        let table = ExceptionTable::new(1 << 28);
        let empty = table.memory();
        for chunk in 0..512 {
            let claim = table.claim(Chunk(chunk), Entry::Unmapped).unwrap();
            let _ = table.publish(claim, place(2 + chunk));
        }
        assert_eq!(table.memory() - empty, 4096);
    }
}
