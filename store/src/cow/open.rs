//! Reading a store before it serves, and making a new one.
//!
//! Owns the blocking, sequential reading of a store's metadata and every check on it ([`layout`]
//! has the format). Never runs while the store is being served, and never knows what serves it.
//! Keeps: nothing is taken for a mapping that could not have been written as one; a header never
//! becomes durable before its empty area 0 is; no header is believed that says Invalid and may not be
//! durable (I14).
//!
//! [`layout`]: super::layout

use std::ops::ControlFlow;

use super::error::{Problem, ProblemKind, StoreError, StoreErrorKind};
use super::layout::{ENTRY_BYTES, Entry, Geometry, HEADER_BYTES, Header, MIN_CHUNKS, Usage};
use crate::io::storage::{SLICE, Storage};
use crate::units::{ChunkSize, DataIndex, SECTOR_SIZE};

mod sieve;
#[cfg(test)]
mod tests;

use sieve::Sieve;

/// How much of a store's list is in memory once it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All of it, 16 bytes an exception.
    #[default]
    All,
    /// Its newest entries alone: those that may be owed, and what a commit goes on after. The
    /// others are read again by [`each_entry`]. While it is checked it takes 8 MiB at most, or a bit
    /// for each sixteenth chunk of a disk where that is more.
    Newest,
}

/// What is expected of a store to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// The chunk size that the table asks for. The one on disk wins, with a warning; a new
    /// store is made with this one, or with [`ChunkSize::DEFAULT`].
    pub chunk: Option<ChunkSize>,
    /// Whether to make a store where there is none yet (its header is zero).
    pub create: bool,
    /// Length in bytes of the device that the store is for; entries beyond it are refused.
    pub origin_len: Option<u64>,
    /// How much of its list stays in memory.
    pub keep: Keep,
    /// The most entries that may be owed (`cow::owed`): these stay in memory.
    pub owed: usize,
    /// Whether it is known to be Invalid, whatever its header says.
    pub invalid: bool,
    /// Whether its file must not be written.
    pub read_only: bool,
}

/// Takes a store's whole list as it is read, for who needs all of it once and in an order of its
/// own.
pub trait Gather {
    /// The next of the list, which are right each by itself. Not told of where one was not.
    fn take(&mut self, geometry: &Geometry, entries: &[Entry]);

    /// Whether two of those that were taken may name the same chunk of the device; where they do
    /// it is true.
    fn may_have_twice(&mut self) -> bool;
}

/// Nobody.
impl Gather for () {
    fn take(&mut self, _: &Geometry, _: &[Entry]) {}

    fn may_have_twice(&mut self) -> bool {
        true
    }
}

/// A store as it lies on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenStore {
    /// Its chunk size and size.
    pub geometry: Geometry,
    /// Whether its header says so; otherwise it is Invalid and has no entries to be used: [`open`]
    /// leaves them out.
    pub valid: bool,
    /// Its exceptions in the order in which they were committed: the n-th lies at place n, after
    /// those that were left out.
    pub entries: Vec<Entry>,
    /// How many older ones are left out of `entries`; see [`Keep`].
    pub before: u64,
    /// The data index to allocate next: after the highest in use.
    pub next: DataIndex,
    /// Whether bytes from the end entry to the end of its area are other than zero; they must be
    /// zeroed ([`zero_garbage`]) before anything is committed to that area.
    pub garbage: bool,
}

impl OpenStore {
    /// A valid store of this shape without an exception.
    pub fn empty(geometry: Geometry) -> OpenStore {
        let (entries, next) = (Vec::new(), DataIndex(0));
        OpenStore { geometry, valid: true, entries, before: 0, next, garbage: false }
    }

    /// How many exceptions it has.
    pub fn count(&self) -> u64 {
        self.before + self.entries.len() as u64
    }

    /// The area into which the next entry goes.
    pub fn area(&self) -> u64 {
        self.count() / self.geometry.entries_per_area()
    }

    /// `allocated/total metadata` of the status line, in sectors.
    pub fn usage(&self) -> Usage {
        self.geometry.usage(self.count(), self.next)
    }
}

/// Opens the store in `storage`, checked, and makes durable what it says. Of one that is Invalid the
/// header alone is read: what lost its content opens whatever its list has become.
///
/// # Errors
/// Whatever cannot be read, is no store, or holds an entry that cannot be right.
pub fn open<S: Storage>(storage: &S, options: &OpenOptions) -> Result<OpenStore, StoreError> {
    open_by(storage, options, |header| match options.keep {
        Keep::All => {
            let store = scan(storage, header, |_| ())?;
            let problem = problems(&store, options.origin_len, 1).first().copied();
            Ok((store, problem))
        }
        Keep::Newest => Sieve::open(storage, header, options, &mut ()),
    })
}

/// The same with no more than the newest entries in memory, and all of them told to `gather`.
///
/// # Errors
/// As [`open`]'s; `gather` is to be forgotten then.
pub fn open_gathering<S: Storage>(
    storage: &S,
    options: &OpenOptions,
    gather: &mut impl Gather,
) -> Result<OpenStore, StoreError> {
    open_by(storage, options, |header| Sieve::open(storage, header, options, gather))
}

fn open_by<S: Storage>(
    storage: &S,
    options: &OpenOptions,
    read: impl FnOnce(Header) -> Result<(OpenStore, Option<Problem>), StoreErrorKind>,
) -> Result<OpenStore, StoreError> {
    let named = |kind: StoreErrorKind| kind.of(storage.name());
    let Some(header) = read_header(storage).map_err(named)? else {
        if !options.create {
            return Err(named(StoreErrorKind::Empty));
        }
        let len = length(storage).map_err(named)?;
        let chunk = options.chunk.unwrap_or(ChunkSize::DEFAULT);
        return create(storage, Geometry::of_len(chunk, len));
    };
    if let Some(asked) = options.chunk
        && asked != header.chunk
    {
        tracing::warn!(
            store = storage.name(),
            "the store has chunks of {}, not the {asked} of its table",
            header.chunk
        );
    }
    let store = if header.valid && !options.invalid {
        let (store, problem) = read(header).map_err(named)?;
        if let Some(problem) = problem {
            return Err(named(StoreErrorKind::Entry(problem)));
        }
        store
    } else {
        let len = length(storage).map_err(named)?;
        let empty = OpenStore::empty(Geometry::of_len(header.chunk, len));
        let mut store = OpenStore { valid: false, ..empty };
        // If the sync of that header failed when its process was killed, nobody was told: the system
        // shows it and does not write it any more, whatever is synced later. (What is known from
        // elsewhere needs no header.)
        if !header.valid && !options.invalid && !options.read_only {
            mark_invalid(storage, &mut store)?;
            return Ok(store);
        }
        store
    };
    // What a process wrote before it was killed may lie in the system's cache only. Whoever acts on
    // an entry, or on an Invalid header, lets data be overwritten that a power cut would want back
    // if the entry or the header were lost.
    flush(storage).map_err(named)?;
    Ok(store)
}

/// Reads the store in `storage` without judging its entries: for tools that report. `next` is
/// only meaningful where [`problems`] finds none. Of one that is Invalid it has what can be read.
///
/// # Errors
/// Whatever cannot be read or is no store.
pub fn inspect<S: Storage>(storage: &S) -> Result<OpenStore, StoreError> {
    let named = |kind: StoreErrorKind| kind.of(storage.name());
    let header = read_header(storage).map_err(named)?;
    scan(storage, header.ok_or(StoreErrorKind::Empty).map_err(named)?, |_| ()).map_err(named)
}

/// Calls `visit` for each entry of `store`, which lies in `storage` and was opened, with its place in
/// the list, from the first on until it breaks.
///
/// # Errors
/// What the system says.
pub fn each_entry<S: Storage>(
    storage: &S,
    store: &OpenStore,
    mut visit: impl FnMut(u64, Entry) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let geometry = &store.geometry;
    let mut slice = vec![0; SLICE.min(geometry.chunk.bytes() as usize)];
    let mut position = 0;
    while position < store.count() {
        let at = geometry.entry_offset(position);
        let read = storage.read_at(&mut slice, at);
        read.map_err(|source| {
            io_error("read its list of exceptions", at)(source).of(storage.name())
        })?;
        for bytes in slice.as_chunks::<ENTRY_BYTES>().0 {
            if position == store.count() || visit(position, Entry::decode(bytes)).is_break() {
                return Ok(());
            }
            position += 1;
        }
    }
    Ok(())
}

/// The entries of `store` that cannot be right, at most `limit`, in order of their kind.
/// With `origin_len` (bytes) those beyond the origin are among them.
pub fn problems(store: &OpenStore, origin_len: Option<u64>, limit: usize) -> Vec<Problem> {
    let geometry = &store.geometry;
    let origin_chunks = origin_len.map(|len| geometry.chunk.count_for(len));
    let problem = |position: usize, kind| Problem {
        position: position as u64,
        offset: geometry.entry_offset(position as u64),
        kind,
    };
    let mut found: Vec<Problem> = store
        .entries
        .iter()
        .enumerate()
        .filter_map(|(at, &entry)| Some(problem(at, misplaced(geometry, origin_chunks, entry)?)))
        .take(limit)
        .collect();
    let rest = limit - found.len();
    let olds = duplicates(store.entries.iter().map(|entry| entry.old.0), rest).into_iter();
    found.extend(olds.map(|(first, at)| {
        let first = geometry.entry_offset(first as u64);
        problem(at, ProblemKind::DuplicateOld { old: store.entries[at].old, first })
    }));
    let rest = limit - found.len();
    let news = duplicates(store.entries.iter().map(|entry| entry.new.0), rest).into_iter();
    found.extend(news.map(|(first, at)| {
        let first = geometry.entry_offset(first as u64);
        problem(at, ProblemKind::DuplicateNew { new: store.entries[at].new, first })
    }));
    found
}

/// What is wrong with an entry by itself.
pub(super) fn misplaced(
    geometry: &Geometry,
    origin_chunks: Option<u64>,
    Entry { old, new }: Entry,
) -> Option<ProblemKind> {
    if new.0 >= geometry.device_chunks {
        Some(ProblemKind::OutsideStore { new, chunks: geometry.device_chunks })
    } else if geometry.index_of(new).is_none() {
        Some(ProblemKind::Metadata { new })
    } else {
        let chunks = origin_chunks.filter(|&chunks| old.0 >= chunks)?;
        Some(ProblemKind::OutsideOrigin { old, chunks })
    }
}

/// Makes an empty, valid store: the header's chunk and area 0 are zeroed and made durable before
/// the header is, so that no old bytes ever come to life (scenario 34).
///
/// # Errors
/// A store of fewer than two chunks, and what the system says.
pub fn create<S: Storage>(storage: &S, geometry: Geometry) -> Result<OpenStore, StoreError> {
    let named = |kind: StoreErrorKind| kind.of(storage.name());
    let chunk = geometry.chunk.bytes();
    if geometry.device_chunks < MIN_CHUNKS {
        let len = length(storage).map_err(named)?;
        return Err(named(StoreErrorKind::TooSmall { len, needed: MIN_CHUNKS * chunk }));
    }
    // What is a hole stays one: a chunk may have a GiB.
    let data = storage.next_data(0).map_err(|error| named(io_error("look for data", 0)(error)))?;
    let (from, end) = (data - data % SECTOR_SIZE, MIN_CHUNKS * chunk);
    zeroes(storage, from, end.saturating_sub(from)).map_err(named)?;
    flush(storage).map_err(named)?;
    write_header(storage, &Header { valid: true, chunk: geometry.chunk }).map_err(named)?;
    Ok(OpenStore::empty(geometry))
}

/// Zeroes, durably, what lies after the end of `store`'s list in the current area.
///
/// # Errors
/// What the system says.
pub fn zero_garbage<S: Storage>(storage: &S, store: &mut OpenStore) -> Result<(), StoreError> {
    let start = store.geometry.entry_offset(store.count());
    let end = store.geometry.area_end(store.area());
    let named = |kind: StoreErrorKind| kind.of(storage.name());
    zeroes(storage, start, end - start).map_err(named)?;
    flush(storage).map_err(named)?;
    store.garbage = false;
    Ok(())
}

/// Removes the newest `count` entries of `store` for good, on disk (durably) and in memory. Where it
/// allocates next is only known when it is opened again: to look at all entries for each removal would
/// take a time that is quadratic.
/// `count` reaches no further back than the start of the area of the newest: a torn write then
/// leaves a shorter list, and never one with a gap.
///
/// # Errors
/// What the system says; `store` is unchanged then, and what is on disk may be either.
///
/// # Panics
/// Where `count` reaches into an earlier area.
pub fn remove_newest<S: Storage>(
    storage: &S,
    store: &mut OpenStore,
    count: usize,
) -> Result<(), StoreError> {
    if count == 0 {
        return Ok(());
    }
    let per_area = store.geometry.entries_per_area();
    let (start, last) = (store.count() - count as u64, store.count() - 1);
    assert_eq!(start / per_area, last / per_area, "one area at a time");
    let named = |kind: StoreErrorKind| kind.of(storage.name());
    let offset = store.geometry.entry_offset(start);
    zeroes(storage, offset, (count * ENTRY_BYTES) as u64).map_err(named)?;
    flush(storage).map_err(named)?;
    store.entries.truncate(store.entries.len() - count);
    Ok(())
}

/// Whether there is no store in `storage` yet: its header is zero.
pub fn is_none<S: Storage>(storage: &S) -> bool {
    matches!(read_header(storage), Ok(None))
}

/// Writes, durably, that `store` is Invalid.
///
/// # Errors
/// What the system says.
pub fn mark_invalid<S: Storage>(storage: &S, store: &mut OpenStore) -> Result<(), StoreError> {
    store.valid = false;
    let header = Header { valid: false, chunk: store.geometry.chunk };
    write_header(storage, &header).map_err(|kind| kind.of(storage.name()))
}

/// Writes the header's sector, which is the smallest thing that cannot be torn, and flushes.
fn write_header<S: Storage>(storage: &S, header: &Header) -> Result<(), StoreErrorKind> {
    let mut sector = [0; SECTOR_SIZE as usize];
    sector[..HEADER_BYTES].copy_from_slice(&header.encode());
    storage.write_at(&sector, 0).map_err(io_error("write its header", 0))?;
    flush(storage)
}

fn read_header<S: Storage>(storage: &S) -> Result<Option<Header>, StoreErrorKind> {
    let len = length(storage)?;
    if len < SECTOR_SIZE {
        return Err(StoreErrorKind::TooSmall { len, needed: MIN_CHUNKS * SECTOR_SIZE });
    }
    let mut bytes = [0; HEADER_BYTES];
    storage.read_at(&mut bytes, 0).map_err(io_error("read its header", 0))?;
    Header::decode(&bytes).map_err(StoreErrorKind::Header)
}

/// Reads the areas from the first to the one with the end entry; of an Invalid store, to the first
/// that cannot be read. Calls `read` after each, which may leave entries out by then.
fn scan<S: Storage>(
    storage: &S,
    header: Header,
    mut read: impl FnMut(&mut OpenStore),
) -> Result<OpenStore, StoreErrorKind> {
    let len = length(storage)?;
    let geometry = Geometry::of_len(header.chunk, len);
    if header.valid && geometry.device_chunks < MIN_CHUNKS {
        return Err(StoreErrorKind::TooSmall { len, needed: MIN_CHUNKS * header.chunk.bytes() });
    }
    let mut store = OpenStore { valid: header.valid, ..OpenStore::empty(geometry) };
    let mut slice = vec![0; SLICE.min(header.chunk.bytes() as usize)];
    for area in 0.. {
        let start = geometry.chunk.store_offset(geometry.area_chunk(area));
        if geometry.area_chunk(area).0 >= geometry.device_chunks {
            if header.valid {
                return Err(StoreErrorKind::CutShort { area, offset: start, len });
            }
            break;
        }
        let ended = match scan_area(storage, &mut store, start, &mut slice) {
            Err(_) if !header.valid => true,
            ended => ended?,
        };
        read(&mut store);
        if ended {
            break;
        }
        // More entries than there are data chunks: some are wrong, and nothing is gained by
        // reading on (nor could a hostile file make this take memory without end).
        if store.count() > geometry.device_chunks {
            break;
        }
    }
    store.next = next(&geometry, &store.entries);
    Ok(store)
}

/// Reads one area in slices; true where the list ended in it.
fn scan_area<S: Storage>(
    storage: &S,
    store: &mut OpenStore,
    start: u64,
    slice: &mut [u8],
) -> Result<bool, StoreErrorKind> {
    let end = start + store.geometry.chunk.bytes();
    let mut at = start;
    while at < end {
        storage.read_at(slice, at).map_err(io_error("read its list of exceptions", at))?;
        let entries = slice.as_chunks::<ENTRY_BYTES>().0.iter().map(Entry::decode);
        let ends = entries.clone().position(|entry| entry.is_end());
        let count = ends.unwrap_or(entries.len());
        store.entries.extend(entries.take(count));
        if let Some(place) = ends {
            store.garbage = slice[place * ENTRY_BYTES..].iter().any(|&byte| byte != 0)
                || any_but_zero(storage, at + slice.len() as u64, end, slice)?;
            return Ok(true);
        }
        at += slice.len() as u64;
    }
    Ok(false)
}

/// Whether anything but zero lies in `at..end`, holes left out; both are on a slice's border.
fn any_but_zero<S: Storage>(
    storage: &S,
    mut at: u64,
    end: u64,
    slice: &mut [u8],
) -> Result<bool, StoreErrorKind> {
    let len = slice.len() as u64;
    while at < end {
        let data = storage.next_data(at).map_err(io_error("look for data", at))?;
        at = at.max(data / len * len);
        if at >= end {
            break;
        }
        storage.read_at(slice, at).map_err(io_error("read its list of exceptions", at))?;
        if slice.iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
        at += len;
    }
    Ok(false)
}

/// The index after the highest that is in use; the skip past an area is in the arithmetic.
fn next(geometry: &Geometry, entries: &[Entry]) -> DataIndex {
    geometry.next_after(entries.iter().filter_map(|entry| geometry.index_of(entry.new)).max())
}

/// Pairs of places (an earlier one, this one) with the same value, at most `limit`. Values that
/// rise all the way, as the store's chunks do, cost no memory; others 8 bytes each.
fn duplicates(values: impl Iterator<Item = u64> + Clone, limit: usize) -> Vec<(usize, usize)> {
    if limit == 0 || values.clone().is_sorted_by(|a, b| a < b) {
        return Vec::new();
    }
    let mut sorted: Vec<u64> = values.clone().collect();
    sorted.sort_unstable();
    let mut twice: Vec<u64> =
        sorted.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    drop(sorted);
    twice.dedup();
    if twice.is_empty() {
        return Vec::new();
    }
    let mut first = vec![None; twice.len()];
    let mut found = Vec::new();
    for (at, value) in values.enumerate() {
        let Ok(which) = twice.binary_search(&value) else { continue };
        match first[which] {
            None => first[which] = Some(at),
            Some(earlier) if found.len() < limit => found.push((earlier, at)),
            Some(_) => break,
        }
    }
    found
}

fn length<S: Storage>(storage: &S) -> Result<u64, StoreErrorKind> {
    storage.len().map_err(io_error("find its length", 0))
}

fn zeroes<S: Storage>(storage: &S, offset: u64, len: u64) -> Result<(), StoreErrorKind> {
    storage.write_zeroes(offset, len).map_err(io_error("write zeroes", offset))
}

fn flush<S: Storage>(storage: &S) -> Result<(), StoreErrorKind> {
    storage.sync().map_err(io_error("flush", 0))
}

fn io_error(what: &'static str, offset: u64) -> impl Fn(std::io::Error) -> StoreErrorKind {
    move |source| StoreErrorKind::Io { what, offset, source }
}
