//! Which data chunks are allocated, which of them hold data, and how far they are committed.
//!
//! Owns three positions that only grow, `committed ≤ next ≤ capacity`, and a ring of slots between
//! the first two: slot *i* says whether data chunk *i* is being written, holds the data of an old
//! chunk, or was given up. The chunks between `committed` and `next` are *owed*: positions and
//! ring can be in memory that outlives the process, so that a killed process loses no acknowledged
//! write (I11). Never knows the format, and does no I/O.
//!
//! Keeps I2 (the committer gets entries in allocation order), I13 (a slot waits only for its own
//! write; the committer waits only for slots) and I16 (a round covers everything that was
//! allocated before it started, and waits for all of it).
//!
//! One worker at a time commits, for all that need it: [`Log::advance`] elects it.

use std::collections::HashSet;
use std::ops::Range;

use super::words::Words;
use crate::rounds::{Join, RoundEnd, Rounds, Ticket, Turn};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::units::{Chunk, DataIndex};
use crate::wake::{WakeSet, WorkerBit};

/// Slots in the ring of the smallest log. Few for the model checker.
pub const RING: u64 = if cfg!(feature = "shuttle") { 8 } else { 32768 };

/// Positions of the shared words: the header of [`Words`] comes first.
const NEXT: usize = Words::HEADER;
const COMMITTED: usize = Words::HEADER + 1;
const SLOTS: usize = Words::HEADER + 2;
/// Its upper half is 0 where no sync failed, else `n + 1`: the data chunks from index
/// `COMMITTED + n` on are *unsynced*. Relative, because 32 bits hold no index. Or it is [`SYNCING`]
/// and the number of syncs in flight: none failed, but if the process is killed now, one may have.
const UNSYNCED: usize = Words::HALF;
/// No log is so long: earlier versions see nothing unsynced.
const SYNCING: u64 = 1 << 31;

/// Words of the smallest log. One that was made by an older version has fewer.
pub const LOG_WORDS: usize = words_for(RING);

/// Words of a log with so many slots, a power of two: the number of chunks that can be owed at a
/// time. A commit begins when half of them are owed, and takes two syncs.
pub const fn words_for(slots: u64) -> usize {
    assert!(slots.is_power_of_two());
    SLOTS + slots as usize
}

/// A slot, as it is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Writing,
    Watched,
    Skipped,
    Done(Chunk),
}

impl Slot {
    const fn to_word(self) -> u64 {
        match self {
            Slot::Writing => 0,
            Slot::Watched => 1,
            Slot::Skipped => 2,
            Slot::Done(old) => (old.0 << 2) | 3,
        }
    }

    const fn from_word(word: u64) -> Slot {
        match word & 3 {
            0 => Slot::Writing,
            1 => Slot::Watched,
            2 => Slot::Skipped,
            _ => Slot::Done(Chunk(word >> 2)),
        }
    }
}

/// The result of an attempt to take data chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// `count` chunks from `first` belong to the caller, which must end each by [`Log::finish`].
    Run {
        /// The first of them.
        first: DataIndex,
        /// How many, at least one.
        count: u64,
    },
    /// Every slot is in use: a commit makes room.
    LogFull,
    /// The store has no further data chunk.
    StoreFull,
}

/// See the module's description.
#[derive(Debug)]
pub struct Log {
    words: Words,
    /// Slots in the ring, a power of two.
    ring: u64,
    /// Whether chunks are ever committed; a transient store owes nothing.
    commits: bool,
    capacity: AtomicU64,
    rounds: Rounds,
    leader: AtomicU32,
}

impl Log {
    /// A log in which `next` chunks were allocated and committed. The number of `words` must be
    /// [`words_for`] some number of slots, and all words after the header must be 0.
    pub fn new(words: Words, next: DataIndex, capacity: u64) -> Self {
        let ring = slots(&words);
        assert!(ring.is_power_of_two(), "a ring of {ring} slots");
        let log = Log {
            words,
            ring,
            commits: true,
            capacity: AtomicU64::new(capacity),
            rounds: Rounds::default(),
            leader: AtomicU32::new(0),
        };
        log.words[COMMITTED].store(next.0, Ordering::Release);
        log.words[NEXT].store(next.0, Ordering::Release);
        log
    }

    /// The log of a store in memory: it never owes anything.
    pub fn transient(capacity: u64) -> Self {
        let words = Words::private(LOG_WORDS);
        Log { commits: false, ..Log::new(words, DataIndex(0), capacity) }
    }

    /// The owed chunks in a dead process's `words`: data chunks that hold acknowledged data, in
    /// allocation order, except unsynced ones; and the first that may be owed at all. Its ring may
    /// have been shorter.
    pub fn owed(words: &Words) -> (Vec<(DataIndex, Chunk)>, DataIndex) {
        let Range { start: first, end: next } = may_be_owed(words);
        let mut owed: Vec<_> = done(words, first..next.min(unsynced_from(words))).collect();
        // Twice if `move_owed` was cut off: both hold the same data.
        let mut seen = HashSet::new();
        owed.retain(|&(_, old)| seen.insert(old));
        (owed, DataIndex(first))
    }

    /// How many chunks in a dead process's `words` hold acknowledged data that is unsynced.
    pub fn unsynced_owed(words: &Words) -> usize {
        let Range { start: first, end: next } = may_be_owed(words);
        done(words, first.max(unsynced_from(words))..next).count()
    }

    /// A sync failed that was to make the data of the chunks from `from` on durable. The system
    /// goes on to show that data, but may not have written it, and does not say so again: no process
    /// may take these chunks for what they seem to hold.
    pub fn mark_unsynced(&self, from: DataIndex) {
        mark_unsynced(&self.words, from.0);
    }

    /// The same for all that a dead process's `words` owe.
    pub fn mark_owed_unsynced(words: &Words) {
        mark_unsynced(words, 0);
    }

    /// A sync of the store begins that may make owed data durable. If the process is killed in it,
    /// and it fails, nobody is told.
    pub fn sync_begins(&self) {
        Log::sync_of_owed_begins(&self.words);
    }

    /// It succeeded. (After one that failed something is unsynced, which says enough.)
    pub fn sync_ended(&self) {
        Log::sync_of_owed_ended(&self.words);
    }

    /// The same for what a dead process's `words` owe.
    pub fn sync_of_owed_begins(words: &Words) {
        change_unsynced(words, |now| match now {
            0 => Some(SYNCING + 1),
            SYNCING.. => Some(now + 1),
            _ => None,
        });
    }

    /// It succeeded.
    pub fn sync_of_owed_ended(words: &Words) {
        let last = SYNCING + 1;
        let fewer = |now| if now == last { 0 } else { now - 1 };
        change_unsynced(words, |now| (now >= last).then(|| fewer(now)));
    }

    /// Whether a process was killed in a sync of what `words` owe, and nobody knows how that ended.
    pub fn was_syncing(words: &Words) -> bool {
        unsynced_in(words) >= SYNCING
    }

    /// Whether a sync failed that was to make durable what `words` owe, or a part of it.
    pub fn has_unsynced(words: &Words) -> bool {
        (1..SYNCING).contains(&unsynced_in(words))
    }

    /// The most chunks that a dead process's `words` can owe.
    pub fn most_owed(words: &Words) -> u64 {
        let Range { start, end } = may_be_owed(words);
        end - start
    }

    /// Records in a dead process's `words` that the data of `old`, which was copied, is at `to`
    /// from now on, and that `from`, which is later, is free. A kill may interrupt this.
    pub fn move_owed(words: &Words, old: Chunk, from: DataIndex, to: DataIndex) {
        let set = |at: DataIndex, slot: Slot| {
            words[position(words, at.0)].store(slot.to_word(), Ordering::Release);
        };
        set(to, Slot::Done(old));
        set(from, Slot::Skipped);
    }

    /// Whether so many words are enough for a log.
    #[cfg(not(feature = "shuttle"))]
    pub fn fits(words: &Words) -> bool {
        words.len() > SLOTS
    }

    /// A copy of the words, as a file that outlives the process would have them.
    #[cfg(any(test, feature = "sim"))]
    pub fn copy_words(&self) -> Words {
        let copy = Words::private(self.words.len());
        for (to, from) in copy.iter().zip(self.words.iter()) {
            to.store(from.load(Ordering::Acquire), Ordering::Release);
        }
        copy
    }

    /// Whether the owed data chunk `index` holds data.
    #[cfg(any(test, feature = "sim"))]
    pub fn is_done(&self, index: DataIndex) -> bool {
        let word = self.words[self.position(index.0)].load(Ordering::Acquire);
        matches!(Slot::from_word(word), Slot::Done(_))
    }

    /// Data chunks allocated so far.
    pub fn next(&self) -> DataIndex {
        DataIndex(self.words[NEXT].load(Ordering::Acquire))
    }

    /// Everything below this is committed.
    #[inline]
    pub fn committed(&self) -> DataIndex {
        DataIndex(self.words[COMMITTED].load(Ordering::Acquire))
    }

    /// Data chunks the store has room for.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// Whether another chunk can be allocated.
    pub fn has_room(&self) -> bool {
        self.next().0 < self.capacity()
    }

    /// The store grew.
    pub fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Release);
    }

    /// Takes up to `wanted` data chunks, in one run.
    pub fn allocate(&self, wanted: u64) -> Allocation {
        let next = &self.words[NEXT];
        let mut first = next.load(Ordering::Acquire);
        loop {
            let room = self.capacity().saturating_sub(first);
            // `first` may be committed by now; then the exchange below fails.
            let owed = first.saturating_sub(self.committed().0);
            let ring = if self.commits { self.ring - owed.min(self.ring) } else { u64::MAX };
            let count = wanted.min(room).min(ring);
            if room == 0 {
                return Allocation::StoreFull;
            }
            if count == 0 {
                return Allocation::LogFull;
            }
            match next.compare_exchange(first, first + count, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => return Allocation::Run { first: DataIndex(first), count },
                Err(now) => first = now,
            }
        }
    }

    /// The most data chunks that can be owed at present; none only if nothing is owed.
    pub fn owed_count(&self) -> u64 {
        // In this order: chunks that are committed meanwhile may be counted, allocated ones are.
        let committed = self.words[COMMITTED].load(Ordering::SeqCst);
        let next = self.words[NEXT].load(Ordering::SeqCst);
        if self.commits { next - committed } else { 0 }
    }

    /// Whether the chunks that the caller just took, from `first` on, come before all others that
    /// are owed. After [`Log::owed_count`] returned none, this is true of the next allocation.
    #[inline]
    pub fn is_first_owed(&self, first: DataIndex) -> bool {
        self.commits && self.words[COMMITTED].load(Ordering::SeqCst) >= first.0
    }

    /// Whether so many chunks are owed that a commit should start now, before allocation has to
    /// wait.
    pub fn wants_commit(&self) -> bool {
        self.owed_count() > self.ring / 2
    }

    /// Data chunk `index` holds the data of `old`, or was given up. Returns the workers to wake:
    /// the leader, if it waits for this slot.
    pub fn finish(&self, index: DataIndex, old: Option<Chunk>) -> WakeSet {
        if !self.commits {
            return WakeSet::NONE;
        }
        let slot = old.map_or(Slot::Skipped, Slot::Done);
        let was = self.words[self.position(index.0)].swap(slot.to_word(), Ordering::AcqRel);
        match Slot::from_word(was) {
            Slot::Writing => WakeSet::NONE,
            Slot::Watched => WorkerBit::from_u32(self.leader.load(Ordering::Acquire)).into(),
            was => panic!("data chunk {} ended twice: {was:?}", index.0),
        }
    }

    /// [`Log::finish`] of `count` data chunks from `index` on. If they hold data, it is that of
    /// `old` and the chunks after it.
    pub fn finish_run(&self, index: DataIndex, old: Option<Chunk>, count: u64) -> WakeSet {
        (0..count).fold(WakeSet::NONE, |wake, n| {
            let old = old.map(|old| Chunk(old.0 + n));
            wake | self.finish(DataIndex(index.0 + n), old)
        })
    }

    /// For the leader: the first chunk from `from` on, below `upto`, that has not ended, or
    /// `upto`. The end of that chunk wakes the leader.
    pub fn first_unended(&self, from: DataIndex, upto: DataIndex) -> DataIndex {
        for index in from.0..upto.0 {
            let slot = &self.words[self.position(index)];
            match Slot::from_word(slot.load(Ordering::Acquire)) {
                Slot::Done(_) | Slot::Skipped => continue,
                Slot::Watched => return DataIndex(index),
                Slot::Writing => {}
            }
            let watched = slot.compare_exchange(
                Slot::Writing.to_word(),
                Slot::Watched.to_word(),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if watched.is_ok() {
                return DataIndex(index);
            }
        }
        upto
    }

    /// The entry of an ended chunk: the old chunk whose data it holds; none if it was given up.
    pub fn entry(&self, index: DataIndex) -> Option<Chunk> {
        match Slot::from_word(self.words[self.position(index.0)].load(Ordering::Acquire)) {
            Slot::Done(old) => Some(old),
            Slot::Skipped => None,
            slot => panic!("data chunk {} is not ended: {slot:?}", index.0),
        }
    }

    /// Everything below `upto` is durable: its slots are free again.
    pub fn set_committed(&self, upto: DataIndex) {
        let committed = self.committed();
        debug_assert!(committed <= upto && upto <= self.next());
        for index in committed.0..upto.0 {
            self.words[self.position(index)].store(Slot::Writing.to_word(), Ordering::Relaxed);
        }
        self.words[COMMITTED].store(upto.0, Ordering::Release);
    }

    /// Asks for a commit of everything written before this call: see [`Rounds::join`].
    pub fn join(&self, bit: WorkerBit) -> Join {
        let joined = self.rounds.join(bit);
        if let Join::Lead(_) = joined {
            self.leader.store(bit.to_u32(), Ordering::Release);
        }
        joined
    }

    /// One step towards a commit of everything written before the first call: see [`Rounds::advance`].
    pub fn advance(&self, ticket: &mut Option<Ticket>, bit: WorkerBit) -> Turn {
        let turn = self.rounds.advance(ticket, bit);
        if turn == Turn::Lead {
            self.leader.store(bit.to_u32(), Ordering::Release);
        }
        turn
    }

    /// Whether the round of `ticket` has ended; if not, `bit` is woken when the running one does.
    pub fn poll(&self, ticket: Ticket, bit: WorkerBit) -> bool {
        self.rounds.poll(ticket, bit)
    }

    /// Whether a round is running.
    pub fn is_committing(&self) -> bool {
        self.rounds.is_running()
    }

    /// The leader's round has ended: see [`Rounds::end`].
    pub fn end_round(&self, again: bool) -> RoundEnd {
        self.rounds.end(again)
    }

    #[inline]
    fn position(&self, index: u64) -> usize {
        SLOTS + (index & (self.ring - 1)) as usize
    }
}

/// The range of data chunks that `words` may owe.
fn may_be_owed(words: &Words) -> Range<u64> {
    let next = words[NEXT].load(Ordering::Acquire);
    let committed = words[COMMITTED].load(Ordering::Acquire).min(next);
    committed.max(next.saturating_sub(slots(words)))..next
}

/// The chunks among `range` that `words` say hold the data of an old chunk, and of which.
fn done(words: &Words, range: Range<u64>) -> impl Iterator<Item = (DataIndex, Chunk)> {
    range.filter_map(|index| {
        match Slot::from_word(words[position(words, index)].load(Ordering::Acquire)) {
            Slot::Done(old) => Some((DataIndex(index), old)),
            _ => None,
        }
    })
}

/// The data chunks of `words` from `from` on are unsynced.
fn mark_unsynced(words: &Words, from: u64) {
    let committed = words[COMMITTED].load(Ordering::Acquire);
    let new = from.saturating_sub(committed).min(SYNCING - 2) + 1;
    change_unsynced(words, |now| (now == 0 || now > new).then_some(new));
}

/// The first unsynced data chunk of `words`; all after it are, too.
fn unsynced_from(words: &Words) -> u64 {
    let from_committed = Some(unsynced_in(words)).filter(|half| (1..SYNCING).contains(half));
    let begins = |half| words[COMMITTED].load(Ordering::Acquire).saturating_add(half - 1);
    from_committed.map_or(u64::MAX, begins)
}

/// The upper half of the word at [`UNSYNCED`].
fn unsynced_in(words: &Words) -> u64 {
    words[UNSYNCED].load(Ordering::Acquire) >> 32
}

/// Changes it, if `change` says to what.
fn change_unsynced(words: &Words, change: impl Fn(u64) -> Option<u64>) {
    let mut now = words[UNSYNCED].load(Ordering::Acquire);
    while let Some(new) = change(now >> 32) {
        let word = new << 32 | u64::from(now as u32);
        match words[UNSYNCED].compare_exchange(now, word, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            Err(other) => now = other,
        }
    }
}

/// The slots of the ring in `words`: all after the positions.
fn slots(words: &Words) -> u64 {
    words.len().saturating_sub(SLOTS) as u64
}

/// The index in `words` of the slot of data chunk `index`.
fn position(words: &Words, index: u64) -> usize {
    SLOTS + (index % slots(words)) as usize
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
