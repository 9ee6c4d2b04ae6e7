//! Entering the chunks that a dead process owed into a store.
//!
//! Owns the comparison of a log's words with the store on disk, and the commit of the rest. Never
//! knows where the words are, or whether they can be trusted. Keeps I11; and that a kill costs no
//! room, where that room can be written: chunks allocated to writes that never ended are used
//! again. So a store with exactly the room that it can ever need does not fill up, however often
//! its process is killed.
//!
//! The caller has the store's lock. The lock is released when the dead process's last I/O is over,
//! so no write can still arrive at a chunk whose write was cut off.
//!
//! Entering is idempotent: the process may be killed in the middle of it, and any part of the
//! commit during which an earlier process was killed may have landed. Entries that landed are
//! written again with the others: if their sync failed, the system shows them and does not write
//! them any more, whatever is synced later, and the list would end before them after a power cut.
//! So is the owed data, if its process was killed in a sync, which may have failed.

use std::collections::HashMap;

use super::error::{ProblemKind, StoreError, StoreErrorKind};
use super::layout::{Entry, Geometry};
use super::log::Log;
use super::open::{OpenStore, misplaced, zero_garbage};
use super::tail::Tail;
use super::words::Words;
use crate::io::storage::{SLICE, Storage};
use crate::units::{Chunk, DataIndex, StoreChunk};

/// Why the owed chunks could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Another program has changed the store since.
    #[error("data chunk {} holds chunk {found:?}, but chunk {} is owed there", index.0, owed.0)]
    Changed {
        /// The chunk where they differ.
        index: DataIndex,
        /// The chunk's entry in the store, if any.
        found: Option<Chunk>,
        /// The chunk's owed entry.
        owed: Chunk,
    },
    /// An owed entry is impossible, as one in the store's list would be.
    #[error("an owed entry {kind}")]
    Misplaced {
        /// The error.
        kind: ProblemKind,
    },
    /// The store could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What happens to chunks that were allocated to writes which never ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gaps {
    /// They are allocated again: their writer is dead.
    Close,
    /// They stay as they are: the owner of `words` may still use them.
    Leave,
}

/// Enters the owed chunks of `words` into `store`, which is in `storage` and, if `origin_len` is
/// given in bytes, for a device of that length; then everything in the store is durable. True if
/// there was anything that the store did not have. With [`Gaps::Close`] owed chunks may move, and
/// `words` record their new places.
///
/// # Errors
/// See [`AdoptError`]; the store loses nothing then. An entry that is impossible is found before
/// anything is written.
pub fn adopt<S: Storage>(
    storage: &S,
    store: &mut OpenStore,
    words: &Words,
    (origin_len, gaps): (Option<u64>, Gaps),
) -> Result<bool, AdoptError> {
    let mut rest = missing(store, words, origin_len)?;
    let landed = landed(store, words);
    if landed > 0 || !rest.is_empty() {
        if Log::was_syncing(words) {
            write_again(storage, &store.geometry, &rest)?;
        }
        // Where a sync failed, what is owed all the same is durable, and nothing says which of it is
        // not once it has moved.
        if gaps == Gaps::Close && !Log::has_unsynced(words) {
            close_gaps(storage, store, words, &mut rest);
        }
        Log::sync_of_owed_begins(words);
        append(storage, store, (landed, &rest))?;
        Log::sync_of_owed_ended(words);
    }
    Ok(!rest.is_empty())
}

/// How many of the newest entries of `store` the process of `words` may not have synced.
fn landed(store: &OpenStore, words: &Words) -> usize {
    if Log::most_owed(words) == 0 {
        return 0;
    }
    let first = store.geometry.chunk_of_index(Log::owed(words).1);
    let landed = store.entries.iter().rev().take_while(|entry| entry.new >= first).count();
    // The block that they begin in is written whole.
    let is_at_hand = store.before == 0 || in_block(store, landed) <= store.entries.len() - landed;
    if is_at_hand { landed } else { 0 }
}

/// Adds the owed chunks of `words` to `store`, in memory only: for callers that must not write to
/// it.
///
/// # Errors
/// [`AdoptError::Changed`] and [`AdoptError::Misplaced`].
pub fn view(
    store: &mut OpenStore,
    words: &Words,
    origin_len: Option<u64>,
) -> Result<(), AdoptError> {
    for (index, old) in missing(store, words, origin_len)? {
        store.entries.push(Entry { old, new: store.geometry.chunk_of_index(index) });
        store.next = DataIndex(index.0 + 1);
    }
    Ok(())
}

/// The owed chunks that are not in `store` yet, in allocation order, checked as the store's list
/// was when it was opened.
fn missing(
    store: &OpenStore,
    words: &Words,
    origin_len: Option<u64>,
) -> Result<Vec<(DataIndex, Chunk)>, AdoptError> {
    let (owed, first) = Log::owed(words);
    if owed.is_empty() {
        return Ok(Vec::new());
    }
    let first = store.geometry.chunk_of_index(first);
    // The newest of each, if an invalid list has two.
    let landed: HashMap<StoreChunk, Chunk> = store
        .entries
        .iter()
        .filter(|entry| entry.new >= first)
        .map(|entry| (entry.new, entry.old))
        .collect();
    let origin_chunks = origin_len.map(|len| store.geometry.chunk.count_for(len));
    let mut rest = Vec::new();
    for (index, old) in owed {
        if index >= store.next {
            let entry = Entry { old, new: store.geometry.chunk_of_index(index) };
            if let Some(kind) = misplaced(&store.geometry, origin_chunks, entry) {
                return Err(AdoptError::Misplaced { kind });
            }
            rest.push((index, old));
            continue;
        }
        let found = landed.get(&store.geometry.chunk_of_index(index)).copied();
        if found != Some(old) {
            return Err(AdoptError::Changed { index, found, owed: old });
        }
    }
    Ok(rest)
}

/// Moves the last of `rest`, with their data, into the gaps of cut-off writes before them. The
/// data is copied first and then recorded in `words`: a kill in between changes nothing. A gap
/// that cannot be written remains, and only costs room.
fn close_gaps<S: Storage>(
    storage: &S,
    store: &OpenStore,
    words: &Words,
    rest: &mut [(DataIndex, Chunk)],
) {
    let (_, first) = Log::owed(words);
    let mut to = first.max(store.next);
    let mut at = 0;
    let mut last = rest.len();
    let chunk = store.geometry.chunk;
    let mut slice = vec![0; SLICE.min(chunk.bytes() as usize)];
    while at < last {
        let (from, old) = rest[last - 1];
        if rest[at].0 == to {
            at += 1;
        } else {
            let offset = |index| chunk.store_offset(store.geometry.chunk_of_index(index));
            let places = (offset(from), offset(to));
            if let Err(error) = copy(storage, places, chunk.bytes(), &mut slice) {
                tracing::warn!(
                    "{error}; room that a killed process had given out is not used again"
                );
                break;
            }
            Log::move_owed(words, old, from, to);
            last -= 1;
            rest[last].0 = to;
        }
        to.0 += 1;
    }
    rest.sort_unstable();
}

/// Writes the data of `rest`, in allocation order, to where it is. A sync that failed unseen left it
/// in the system's memory alone, from where no later sync writes it.
fn write_again<S: Storage>(
    storage: &S,
    geometry: &Geometry,
    rest: &[(DataIndex, Chunk)],
) -> Result<(), StoreError> {
    let chunk = geometry.chunk.bytes();
    let mut left = rest;
    while let Some(&(first, _)) = left.first() {
        let first = geometry.chunk_of_index(first);
        let follows = |&(&(index, _), place): &(&(DataIndex, Chunk), u64)| {
            geometry.chunk_of_index(index).0 == place
        };
        let most = (SLICE as u64 / chunk).max(1) as usize;
        let count = left.iter().zip(first.0..).take(most).take_while(follows).count();
        let at = geometry.chunk.store_offset(first);
        storage.write_again(at, count as u64 * chunk).map_err(|source| {
            let what = "write again what it is owed";
            StoreErrorKind::Io { what, offset: at, source }.of(storage.name())
        })?;
        left = &left[count..];
    }
    Ok(())
}

/// Copies `len` bytes of a store that is not being served, through `slice`.
fn copy<S: Storage>(
    storage: &S,
    (from, to): (u64, u64),
    len: u64,
    slice: &mut [u8],
) -> Result<(), StoreError> {
    for at in (0..len).step_by(slice.len()) {
        let failed = |what, offset| {
            let name = storage.name();
            move |source| StoreErrorKind::Io { what, offset, source }.of(name)
        };
        let piece = (len - at).min(slice.len() as u64);
        let (piece, from, to) = (&mut slice[..piece as usize], from + at, to + at);
        storage.read_at(piece, from).map_err(failed("read a chunk that it is owed", from))?;
        storage.write_at(piece, to).map_err(failed("write a chunk that it is owed", to))?;
    }
    Ok(())
}

/// Enters `owed` durably, after the newest `landed` entries, like the commit that did not happen.
fn append<S: Storage>(
    storage: &S,
    store: &mut OpenStore,
    (landed, owed): (usize, &[(DataIndex, Chunk)]),
) -> Result<(), StoreError> {
    zero_garbage(storage, store)?;
    let failed =
        |source| StoreErrorKind::Io { what: "write", offset: 0, source }.of(storage.name());
    let mut tail = tail_before(store, landed);
    let count = (landed + owed.len()) as u64;
    while let Some(area) = tail.area_to_zero(count, store.geometry.device_chunks) {
        let chunk = store.geometry.chunk;
        storage.write_zeroes(chunk.store_offset(area), chunk.bytes()).map_err(failed)?;
        tail.zeroed();
    }
    storage.sync().map_err(failed)?;
    let entry = |&(index, old): &(DataIndex, Chunk)| {
        let new = store.geometry.chunk_of_index(index);
        Entry { old, new }
    };
    let entries: Vec<Entry> = owed.iter().map(entry).collect();
    let again = &store.entries[store.entries.len() - landed..];
    let mut left = again.iter().chain(&entries).copied();
    let mut bytes = Vec::new();
    while let Some(offset) = tail.write(&mut left, &mut bytes) {
        storage.write_at(&bytes, offset).map_err(failed)?;
    }
    storage.sync().map_err(failed)?;
    store.entries.extend(entries);
    store.next = DataIndex(owed.last().map_or(store.next.0, |(last, _)| last.0 + 1));
    Ok(())
}

/// The tail after a store's entries, which must be followed by zeroes.
pub fn tail_of(store: &OpenStore) -> Tail {
    tail_before(store, 0)
}

/// The tail before the newest `count` entries of a store.
fn tail_before(store: &OpenStore, count: usize) -> Tail {
    let at = store.entries.len() - count;
    let last = &store.entries[at - in_block(store, count)..at];
    Tail::new(store.geometry, store.count() - count as u64, last)
}

/// How many entries before the newest `count` of a store are in the same block as the first of those.
fn in_block(store: &OpenStore, count: usize) -> usize {
    ((store.count() - count as u64) % Tail::block_entries(&store.geometry)) as usize
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
