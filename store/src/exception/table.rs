//! The table that all workers share: one word a chunk, lock-free.
//!
//! Owns the masks of who waits for a chunk, and the protocol by which a word changes. A look-up is
//! a load; whoever wants to move a chunk claims it by one compare-and-swap and holds a [`Claim`]
//! until it publishes the new place or puts the old one back. Never knows where words lie: a region
//! of 4096 chunks has a small hash table that grows, and an array in the end, so that memory
//! follows what changed, not how large the disk is (known bug 25). Keeps I5: a claim is the only way to
//! a pending word, and cannot be cloned.
//!
//! Waiting (I17): a waiter adds its bit to the mask of the chunk's bucket and then looks at the
//! word *again*; the owner changes the word and then takes the mask. Both masks and words are
//! changed by read-modify-writes that the other side reads after its own, so one of the two always
//! sees the other. A word that moved to a larger leaf is no way around that: the directory names
//! the new leaf before anyone changes the word there, so who looks after the change finds it.

use super::arena::Memory;
use super::directory::{Directory, Look};
use super::intake::Intake;
use super::leaf::{Changed, REGION, Scratch, build, change_flat, get_flat, put};
use super::word::{ChunkState, Key, Layer, Place, key_of};
use crate::sync::atomic::{Ordering, fence};
use crate::units::Chunk;
use crate::wake::{Waiters, WakeSet, WorkerBit};

/// Buckets of waiting masks; a collision costs a spurious wake and nothing else.
const BUCKETS: usize = 256;

/// The right, and the duty, to end a pending chunk, or some that follow each other. Not cloneable: one
/// chunk has one owner (I5).
#[derive(Debug)]
#[must_use = "a claim that is dropped leaves its chunks pending for ever"]
pub struct Claim {
    first: Chunk,
    /// Not 0.
    count: u64,
    /// Of the first; [`ChunkState::plus`] says what it was of the others.
    before: ChunkState,
}

impl Claim {
    /// Which chunk; the first where it is several.
    pub fn chunk(&self) -> Chunk {
        self.first
    }

    /// How many chunks.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Where its content lay when it was claimed, that of the first where it is several: `Unmapped` or
    /// `Mapped` in a lower layer.
    pub fn before(&self) -> ChunkState {
        self.before
    }

    /// Keeps the first `count`, which is neither none nor all, and returns the claim of the rest.
    pub fn split_off(&mut self, count: u64) -> Claim {
        assert!(0 < count && count < self.count, "two claims, of a chunk each at least");
        let first = Chunk(self.first.0 + count);
        let rest = Claim { first, count: self.count - count, before: self.before.plus(count) };
        self.count = count;
        rest
    }
}

/// Which chunks of a device live elsewhere.
pub struct ExceptionTable {
    chunks: u64,
    directory: Directory,
    waiting: Box<[Waiters]>,
}

/// How many mappings a table is about to get, by region: its leaves are made as large as that.
#[derive(Clone, Debug)]
pub struct Counts(Vec<u16>);

impl Counts {
    /// One more, of `chunk`.
    pub fn add(&mut self, chunk: Chunk) {
        let count = &mut self.0[(chunk.0 / REGION as u64) as usize];
        *count = count.saturating_add(1);
    }
}

impl ExceptionTable {
    /// A table for a device of `chunks` chunks, all unmapped. Takes 8 bytes for every 4096 chunks
    /// at once, the rest as chunks are claimed: 8 to 16 bytes each, up to 48 where they are far apart.
    pub fn new(chunks: u64) -> Self {
        Self::new_in(chunks, &Memory::Heap)
    }

    /// The same with what chunks take in `memory`.
    pub fn new_in(chunks: u64, memory: &Memory) -> Self {
        let regions = chunks.div_ceil(REGION as u64) as usize;
        ExceptionTable {
            chunks,
            directory: Directory::new(regions, memory.clone()),
            waiting: (0..BUCKETS).map(|_| Waiters::default()).collect(),
        }
    }

    /// Chunks the table speaks of; one past the highest that may be asked for.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Bytes taken; with an arena not all of them in memory.
    pub fn memory(&self) -> usize {
        self.directory.memory() + BUCKETS * 8
    }

    /// What is known of `chunk`.
    #[inline]
    pub fn get(&self, chunk: Chunk) -> ChunkState {
        let (region, key) = self.within(chunk);
        match self.directory.look(region) {
            Look::Flat(words) => get_flat(words, key),
            Look::Nothing => ChunkState::Unmapped,
            Look::Sparse => self.get_pinned(region, key),
        }
    }

    /// Has what [`ExceptionTable::get`] will look at brought near, without waiting for it: it is
    /// seldom in a cache, and far away.
    #[inline]
    pub fn prefetch(&self, chunk: Chunk) {
        let (region, key) = self.within(chunk);
        self.directory.prefetch(region, key);
    }

    #[inline(never)]
    fn get_pinned(&self, region: usize, key: Key) -> ChunkState {
        let pinned = self.directory.pin(region);
        pinned.map_or(ChunkState::Unmapped, |pinned| pinned.leaf().get(key))
    }

    /// Takes `chunk` for moving, if it is still as `seen` (`Unmapped` or `Mapped`) says; otherwise
    /// says what it is now.
    pub fn claim(&self, chunk: Chunk, seen: ChunkState) -> Result<Claim, ChunkState> {
        self.claim_run(chunk, 1, seen)
    }

    /// [`ExceptionTable::claim`] of `first` and of the chunks after it, `most` in all or fewer: as long as
    /// they are unmapped too, or lie one after the other in the same store as `first` does.
    pub fn claim_run(
        &self,
        first: Chunk,
        most: u64,
        seen: ChunkState,
    ) -> Result<Claim, ChunkState> {
        debug_assert!(matches!(seen, ChunkState::Unmapped | ChunkState::Mapped(_)));
        match self.change_run(first, most, seen, ChunkState::Pending) {
            (0, Some(now)) => Err(now),
            (count, _) => Ok(Claim { first, count, before: seen }),
        }
    }

    /// Ends a claim: its chunks lie at `place` and after that from now on. Returns which workers
    /// waited.
    pub fn publish(&self, claim: Claim, place: Place) -> WakeSet {
        self.end(claim.first, claim.count, ChunkState::Pending, ChunkState::Mapped(place))
    }

    /// Ends a claim that failed: its chunks lie where they lay before. Returns which workers waited.
    pub fn put_back(&self, claim: Claim) -> WakeSet {
        self.end(claim.first, claim.count, ChunkState::Pending, claim.before)
    }

    /// Marks a mapped chunk as being copied back: from now on new writes to it wait. False where
    /// it is not mapped at `place`.
    pub fn mark_busy(&self, chunk: Chunk, place: Place) -> bool {
        let at_place = |now| (now == ChunkState::Mapped(place)).then_some(ChunkState::Busy(place));
        self.change(chunk, at_place).is_ok()
    }

    /// The chunk was copied back: it lies where the origin has it. Returns who waited.
    pub fn clear_busy(&self, chunk: Chunk, place: Place) -> WakeSet {
        self.end(chunk, 1, ChunkState::Busy(place), ChunkState::Unmapped)
    }

    /// Copying back was given up: the chunk stays at `place`. Returns who waited.
    pub fn keep_busy_mapped(&self, chunk: Chunk, place: Place) -> WakeSet {
        self.end(chunk, 1, ChunkState::Busy(place), ChunkState::Mapped(place))
    }

    /// Enters mappings read from a store, over those of lower layers; before the table is shared.
    pub fn fill(&mut self, mappings: impl Iterator<Item = (Chunk, Place)> + Clone) {
        let mut counts = self.counts();
        mappings.clone().for_each(|(chunk, _)| counts.add(chunk));
        self.enter(&counts, mappings);
    }

    /// Enters what a store lists, as that of `layer`, over that of lower layers; before the table is
    /// shared. No chunk is named twice.
    pub fn take_in(&mut self, intake: Intake, layer: Layer) {
        assert!(intake.chunks() <= self.chunks, "mappings of this device");
        let mut scratch = Scratch::default();
        intake.drain(|region, mappings| {
            let is_new = self.directory.reserve(region, mappings.len());
            let words = mappings
                .iter()
                .map(|(key, chunk)| ChunkState::Mapped(Place { layer, chunk }).to_word(key));
            match self.directory.leaf_mut(region) {
                Some((class, leaf)) if is_new => build(leaf, class, words, &mut scratch),
                _ => words.for_each(|word| self.enter_word(region, word)),
            }
        });
    }

    fn enter_word(&mut self, region: usize, word: u64) {
        if !self.directory.leaf_mut(region).is_some_and(|(class, leaf)| put(leaf, class, word)) {
            let chunk = region as u64 * REGION as u64 + u64::from(key_of(word).0);
            let _ = self.change(Chunk(chunk), |_| Some(ChunkState::from_word(word)));
        }
    }

    /// To count what is about to be entered.
    pub fn counts(&self) -> Counts {
        Counts(vec![0; self.directory.regions()])
    }

    /// Enters a part of the mappings that were counted, over those of lower layers; before the
    /// table is shared. All at once, or as many at a time as there is memory for: they are sorted
    /// on the way.
    pub fn enter(
        &mut self,
        counts: &Counts,
        mappings: impl Iterator<Item = (Chunk, Place)> + Clone,
    ) {
        for (region, word) in self.by_stripe(mappings) {
            self.directory.reserve(region, counts.0[region].into());
            self.enter_word(region, word);
        }
    }

    /// `mappings` as regions and words, those of neighbouring regions together: entered at random
    /// over a large table they would mostly wait for memory.
    fn by_stripe(
        &self,
        mappings: impl Iterator<Item = (Chunk, Place)> + Clone,
    ) -> Vec<(usize, u64)> {
        const STRIPES: usize = 256;
        let regions = self.directory.regions().div_ceil(STRIPES).max(1);
        let mut starts = [0; STRIPES + 1];
        for (chunk, _) in mappings.clone() {
            starts[self.within(chunk).0 / regions + 1] += 1;
        }
        for stripe in 1..=STRIPES {
            starts[stripe] += starts[stripe - 1];
        }
        let mut sorted = vec![(0, 0); starts[STRIPES]];
        for (chunk, place) in mappings {
            let (region, key) = self.within(chunk);
            let at = &mut starts[region / regions];
            sorted[*at] = (region, ChunkState::Mapped(place).to_word(key));
            *at += 1;
        }
        sorted
    }

    /// Enters one mapping, over one of a lower layer; before any worker serves.
    #[cfg(any(test, feature = "sim"))]
    pub fn load(&self, chunk: Chunk, place: Place) {
        let _ = self.change(chunk, |_| Some(ChunkState::Mapped(place)));
    }

    /// The first chunk from `from` on that is mapped, and where it lies.
    pub fn next_mapped(&self, from: Chunk) -> Option<(Chunk, Place)> {
        let mut chunk = from.0;
        while chunk < self.chunks {
            let (region, key) = self.within(Chunk(chunk));
            let start = chunk - u64::from(key.0);
            if let Some(pinned) = self.directory.pin(region)
                && let Some((key, place)) = pinned.leaf().next_mapped(key)
            {
                return Some((Chunk(start + u64::from(key.0)), place));
            }
            chunk = start + REGION as u64;
        }
        None
    }

    /// Lets every mapped chunk lie where `place` says, nowhere for `None`; while no worker serves
    /// and no chunk is moved.
    pub fn remap(&self, mut place: impl FnMut(Chunk, Place) -> Option<Place>) {
        let mut from = Chunk(0);
        while let Some((chunk, was)) = self.next_mapped(from) {
            let entry = place(chunk, was).map_or(ChunkState::Unmapped, ChunkState::Mapped);
            let _ = self.change(chunk, |_| Some(entry));
            from = Chunk(chunk.0 + 1);
        }
    }

    /// Registers `worker` as waiting for `chunk`, and looks again: true if it is still as
    /// `seen`, and the worker will be woken; false if it changed, and there is nothing to wait for.
    pub fn wait(&self, chunk: Chunk, seen: ChunkState, worker: WorkerBit) -> bool {
        self.waiting[Self::bucket(chunk)].add(worker);
        fence(Ordering::SeqCst);
        self.get(chunk) == seen
    }

    fn end(&self, first: Chunk, count: u64, from: ChunkState, to: ChunkState) -> WakeSet {
        let ended = self.change_run(first, count, from, to);
        assert_eq!(ended, (count, None), "I5: {count} from {first:?} changed under their owner");
        fence(Ordering::SeqCst);
        let waited = |n| self.waiting[Self::bucket(Chunk(first.0 + n))].take();
        (0..count).fold(WakeSet::NONE, |all, n| all | waited(n))
    }

    /// Changes `count` chunks from `first` on, one after the other, from `from` to `to`, until one is
    /// something else; [`ChunkState::plus`] says what `from` and `to` are for each. Each leaf is looked up
    /// once for all of its chunks. Returns how many chunks were changed, and what the next one is if it was
    /// not.
    fn change_run(
        &self,
        first: Chunk,
        count: u64,
        from: ChunkState,
        to: ChunkState,
    ) -> (u64, Option<ChunkState>) {
        if count == 1 {
            let changed = self.change(first, |now| (now == from).then_some(to));
            return changed.map_or_else(|now| (0, Some(now)), |_| (1, None));
        }
        let mut done = 0;
        while done < count {
            let (region, key) = self.within(Chunk(first.0 + done));
            let here = (REGION as u64 - u64::from(key.0)).min(count - done);
            let keys = (key.0..).map(Key).take(here as usize);
            if let Look::Flat(words) = self.directory.look(region) {
                for key in keys {
                    let change = |now| (now == from.plus(done)).then(|| to.plus(done));
                    match change_flat(words, key, change) {
                        Ok(_) => done += 1,
                        Err(now) => return (done, Some(now)),
                    }
                }
                continue;
            }
            let pinned = self.directory.pin_or_make(region, here as usize);
            let leaf = pinned.leaf();
            for key in keys {
                let mut change = |now| (now == from.plus(done)).then(|| to.plus(done));
                match leaf.change(key, &mut change) {
                    Changed::Here(Ok(_)) => done += 1,
                    Changed::Here(Err(now)) => return (done, Some(now)),
                    Changed::Elsewhere(class) => {
                        pinned.replace(class);
                        break;
                    }
                }
            }
        }
        (done, None)
    }

    /// Changes what is known of `chunk` to what `to` makes of it, and returns what it was; the
    /// error is what it is, where `to` makes nothing of that.
    fn change(
        &self,
        chunk: Chunk,
        mut to: impl FnMut(ChunkState) -> Option<ChunkState>,
    ) -> Result<ChunkState, ChunkState> {
        let (region, key) = self.within(chunk);
        loop {
            if let Look::Flat(words) = self.directory.look(region) {
                return change_flat(words, key, to);
            }
            let pinned = self.directory.pin_or_make(region, 1);
            match pinned.leaf().change(key, &mut to) {
                Changed::Here(changed) => return changed,
                Changed::Elsewhere(class) => pinned.replace(class),
            }
        }
    }

    fn bucket(chunk: Chunk) -> usize {
        (chunk.0 as usize) % BUCKETS
    }

    /// The region of `chunk`, and which of its chunks it is.
    #[inline]
    fn within(&self, chunk: Chunk) -> (usize, Key) {
        debug_assert!(chunk.0 < self.chunks);
        ((chunk.0 / REGION as u64) as usize, Key((chunk.0 % REGION as u64) as u16))
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
mod tests;
