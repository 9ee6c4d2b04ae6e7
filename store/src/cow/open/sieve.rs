//! Checking a store whose list is not to be in memory.
//!
//! Owns the same checks as [`problems`](super::problems), on entries that go by once or several
//! times. Keeps: it finds what that finds first; memory does not follow
//! the number of entries.
//!
//! Whether two entries name one chunk is a matter of all of them. Where chunks rise from entry to
//! entry, none does. Otherwise a bit for each chunk says whether it was named, for as many chunks at a
//! time as 8 MiB have bits, which is 256 GiB at chunks of 4 KiB; the list is read once for each.

use std::ops::{ControlFlow, Range};

use super::{Gather, OpenOptions, OpenStore, each_entry, misplaced, scan};
use crate::cow::error::{Problem, ProblemKind, StoreErrorKind};
use crate::cow::layout::{Entry, Geometry, Header};
use crate::io::storage::Storage;
use crate::units::{Chunk, StoreChunk};

/// Entries that stay beside what may be owed: the block that the next one goes into.
const BLOCK: usize = 256;
/// The list is read so many times at most to find chunks that are named twice.
const PASSES: u64 = 16;
/// Chunks whose bits are kept at a time, at least.
const WINDOW: u64 = if cfg!(test) { 64 } else { 64 << 20 };

/// One of the two numbers of an entry, over all entries.
#[derive(Clone, Copy, Default)]
struct Column {
    /// The last, and whether each was more than the one before.
    last: Option<u64>,
    falls: bool,
    highest: u64,
}

impl Column {
    #[inline]
    fn see(&mut self, value: u64) {
        self.falls |= self.last.is_some_and(|last| last >= value);
        self.last = Some(value);
        self.highest = self.highest.max(value);
    }

    /// The same for each of them, in their order.
    fn see_all(&mut self, mut values: impl Iterator<Item = u64>) {
        let Some(first) = values.next() else { return };
        self.see(first);
        let (mut last, mut falls, mut highest) = (first, false, self.highest);
        for value in values {
            falls |= last >= value;
            last = value;
            highest = highest.max(value);
        }
        *self = Column { last: Some(last), falls: self.falls | falls, highest };
    }
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Sieve {
    /// Entries that stay in memory, at least.
    newest: usize,
    /// Entries that went by.
    seen: u64,
    origin_chunks: Option<u64>,
    olds: Column,
    news: Column,
    /// Chunks of the store of which none is an area, as the last entry's was.
    data: Range<u64>,
    problem: Option<Problem>,
}

impl Sieve {
    /// The store in `storage`, of which the newest entries are in memory; and what is wrong with it,
    /// if anything is.
    pub(super) fn open<S: Storage>(
        storage: &S,
        header: Header,
        options: &OpenOptions,
        gather: &mut impl Gather,
    ) -> Result<(OpenStore, Option<Problem>), StoreErrorKind> {
        let origin_chunks = options.origin_len.map(|len| header.chunk.count_for(len));
        let newest = options.owed + BLOCK;
        let mut sieve = Sieve { newest, origin_chunks, ..Sieve::default() };
        let mut store = scan(storage, header, |store| sieve.see(store, gather))?;
        let highest = (sieve.seen != 0).then_some(StoreChunk(sieve.news.highest));
        store.next =
            store.geometry.next_after(highest.and_then(|chunk| store.geometry.index_of(chunk)));
        let problem = match sieve.problem {
            Some(problem) => Some(problem),
            None => sieve.twice(storage, &store, gather)?,
        };
        Ok((store, problem))
    }

    /// Looks at what is new in `store`, and leaves out what is old.
    fn see(&mut self, store: &mut OpenStore, gather: &mut impl Gather) {
        let first = (self.seen - store.before) as usize;
        for block in store.entries[first..].chunks(BLOCK) {
            if !self.see_block(&store.geometry, block) {
                block.iter().for_each(|&entry| self.see_entry(&store.geometry, entry));
            }
        }
        if self.problem.is_none() {
            gather.take(&store.geometry, &store.entries[first..]);
        }
        let old = store.entries.len().saturating_sub(self.newest);
        if old >= self.newest {
            store.entries.drain(..old);
            store.before += old as u64;
        }
    }

    /// Sees entries whose chunks of the store rise and lie between the same two areas, as those do
    /// that were written as they were allocated: the first and the last tell for all. False, and none
    /// was seen, where they do not, or one may be wrong.
    fn see_block(&mut self, geometry: &Geometry, block: &[Entry]) -> bool {
        let (Some(first), Some(last)) = (block.first(), block.last()) else { return true };
        let (mut olds, mut news) = (self.olds, self.news);
        olds.see_all(block.iter().map(|entry| entry.old.0));
        news.see_all(block.iter().map(|entry| entry.new.0));
        if news.falls || self.origin_chunks.is_some_and(|chunks| olds.highest >= chunks) {
            return false;
        }
        if !self.data.contains(&first.new.0) {
            if misplaced(geometry, None, *first).is_some() {
                return false;
            }
            self.data = geometry.data_around(first.new);
        }
        if !self.data.contains(&last.new.0) {
            return false;
        }
        (self.olds, self.news) = (olds, news);
        self.seen += block.len() as u64;
        true
    }

    #[inline]
    fn see_entry(&mut self, geometry: &Geometry, entry: Entry) {
        let Entry { old, new } = entry;
        if !self.data.contains(&new.0) || self.origin_chunks.is_some_and(|chunks| old.0 >= chunks) {
            self.look_closer(geometry, entry);
        }
        self.olds.see(old.0);
        self.news.see(new.0);
        self.seen += 1;
    }

    /// The arithmetic takes longer than everything else: once for each area's worth of data.
    #[cold]
    fn look_closer(&mut self, geometry: &Geometry, entry: Entry) {
        match misplaced(geometry, self.origin_chunks, entry) {
            None => self.data = geometry.data_around(entry.new),
            Some(kind) if self.problem.is_none() => {
                self.problem = Some(problem(geometry, self.seen, kind));
            }
            Some(_) => {}
        }
    }

    /// The first entry that names a chunk that an earlier one names.
    fn twice<S: Storage>(
        &self,
        storage: &S,
        store: &OpenStore,
        gather: &mut impl Gather,
    ) -> Result<Option<Problem>, StoreErrorKind> {
        let geometry = &store.geometry;
        let may_be_twice = self.olds.falls && gather.may_have_twice();
        if may_be_twice
            && let Some((first, at, old)) = pair(storage, store, &self.olds, |entry| entry.old.0)?
        {
            let first = geometry.entry_offset(first);
            let kind = ProblemKind::DuplicateOld { old: Chunk(old), first };
            return Ok(Some(problem(geometry, at, kind)));
        }
        if let Some((first, at, new)) = pair(storage, store, &self.news, |entry| entry.new.0)? {
            let first = geometry.entry_offset(first);
            let kind = ProblemKind::DuplicateNew { new: StoreChunk(new), first };
            return Ok(Some(problem(geometry, at, kind)));
        }
        Ok(None)
    }
}

fn problem(geometry: &Geometry, position: u64, kind: ProblemKind) -> Problem {
    Problem { position, offset: geometry.entry_offset(position), kind }
}

/// The places of the first two entries of which `of` says the same, and what: the pair whose second
/// comes first.
fn pair<S: Storage>(
    storage: &S,
    store: &OpenStore,
    column: &Column,
    of: impl Fn(Entry) -> u64,
) -> Result<Option<(u64, u64, u64)>, StoreErrorKind> {
    if !column.falls {
        return Ok(None);
    }
    let mut second: Option<(u64, u64)> = None;
    let window = WINDOW.max(column.highest / PASSES + 1).min(column.highest + 1);
    let mut bits = vec![0u64; window.div_ceil(64) as usize];
    let mut from = 0;
    while from <= column.highest {
        bits.fill(0);
        let mark = |at: u64, entry: Entry| {
            let value = of(entry);
            if value < from || value - from >= window {
                return ControlFlow::Continue(());
            }
            let (word, bit) = (((value - from) / 64) as usize, 1 << ((value - from) % 64));
            if bits[word] & bit != 0 {
                if second.is_none_or(|(earlier, _)| at < earlier) {
                    second = Some((at, value));
                }
                return ControlFlow::Break(());
            }
            bits[word] |= bit;
            ControlFlow::Continue(())
        };
        each_entry(storage, store, mark).map_err(|error| error.kind)?;
        from += window;
    }
    let Some((at, value)) = second else { return Ok(None) };
    let mut first = at;
    let find = |position: u64, entry: Entry| {
        if of(entry) != value {
            return ControlFlow::Continue(());
        }
        first = position;
        ControlFlow::Break(())
    };
    each_entry(storage, store, find).map_err(|error| error.kind)?;
    Ok(Some((first, at, value)))
}
