//! One live exception store, as workers see it.
//!
//! Owns the store's state, its log and its tail. Two live owners of one store are not
//! representable: a `Store` is made by opening the file under an exclusive lock, and shared only
//! within the tables that serve it. Never knows what maps to it. Keeps I8 and I14.

use std::sync::{Mutex, MutexGuard};

use super::layout::{Entry, Geometry, Usage};
use super::log::{Allocation, Log};
use super::tail::Tail;
use super::threshold::Threshold;
use crate::io::FileId;
use crate::io::room::Room;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::units::{ChunkSize, DataIndex, StoreChunk};
use crate::wake::WakeSet;

mod waits;

/// How a store keeps its exceptions: the letter in a table line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Persistence {
    /// `P`: on disk; full means Invalid.
    Persistent = 0,
    /// `PO`: on disk; filled by a snapshot write it overflows, and can grow.
    PersistentOverflow = 1,
    /// `N`: in memory only, gone with the process.
    Transient = 2,
}

impl Persistence {
    fn from_u8(value: u8) -> Persistence {
        [Persistence::Persistent, Persistence::PersistentOverflow, Persistence::Transient]
            [value as usize]
    }

    /// The letters of a table line.
    pub const fn letters(self) -> &'static str {
        match self {
            Persistence::Persistent => "P",
            Persistence::PersistentOverflow => "PO",
            Persistence::Transient => "N",
        }
    }
}

/// Whether a store can be used, and for what; in the order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StoreState {
    /// For everything.
    Valid = 0,
    /// It is full, and writes that need room in it wait: until it has grown, or no write waits any
    /// more.
    Full = 1,
    /// It was full: reads serve, writes fail, until it has grown and is opened again.
    Overflow = 2,
    /// A commit failed, of a store that may not become invalid: a guest's own overlay, or one that is
    /// merged. Reads serve, writes fail until it is opened again.
    CommitFailed = 3,
    /// It is being marked invalid on disk: no code may act on that yet (I14).
    Invalidating = 4,
    /// Its content cannot be trusted: no request reads or writes it, for good.
    Invalid = 5,
    /// Its content cannot be trusted, and this could not be recorded anywhere: writes to its
    /// origin fail.
    Unmarked = 6,
}

impl StoreState {
    /// Whether what it owes can be committed, and what is committed is what was written.
    #[inline]
    pub fn can_commit(self) -> bool {
        self <= StoreState::Overflow
    }

    /// Whether it is Invalid, or about to become so.
    #[inline]
    pub fn is_condemned(self) -> bool {
        self >= StoreState::Invalidating
    }

    /// Whether its content cannot be trusted, and code may act on that (I14).
    #[inline]
    pub fn is_invalid(self) -> bool {
        self >= StoreState::Invalid
    }

    fn from_u8(value: u8) -> StoreState {
        [
            StoreState::Valid,
            StoreState::Full,
            StoreState::Overflow,
            StoreState::CommitFailed,
            StoreState::Invalidating,
            StoreState::Invalid,
            StoreState::Unmarked,
        ][value as usize]
    }
}

/// The state of a store's merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MergeMark {
    /// It is not being merged.
    None = 0,
    /// It is being merged: its list shrinks, and it takes no new exceptions.
    Merging = 1,
    /// Its merge failed and waits to be started again; everything is where the table says.
    Failed = 2,
    /// As `Failed`, and it is not known whether the entries of the last batch are still on disk:
    /// their chunks stay busy, and writes to them fail until the merge is started again.
    Unerased = 3,
}

impl MergeMark {
    fn from_u8(value: u8) -> MergeMark {
        [MergeMark::None, MergeMark::Merging, MergeMark::Failed, MergeMark::Unerased]
            [value as usize]
    }
}

/// An event of a store, for its observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreEvent {
    /// It became Invalid, and its header on disk says so.
    Invalidated,
    /// It became Invalid, and its header could not be written: it must be recorded elsewhere, and
    /// [`Store::recorded`] called.
    InvalidNotWritten,
    /// It is in memory, and became Invalid because the process that had it is gone.
    Forgotten,
    /// It is full, and writes that need room wait.
    Full,
    /// It exceeded its threshold.
    ThresholdPassed {
        /// The threshold in bytes.
        threshold: u64,
        /// Bytes in use beyond the threshold.
        exceeded: u64,
    },
    /// It overflowed.
    Overflowed,
    /// A commit failed: it is read-only until it is opened again.
    CommitFailed,
}

/// Is told of the events of stores. Called by workers, rarely: it must not block.
pub trait StoreObserver: Send + Sync {
    /// `event` happened to the store called `name`.
    fn store_event(&self, name: &str, event: StoreEvent);

    /// The store owes something, and owed nothing before. Called on the path of a request, which
    /// waits for it.
    fn first_owed(&self);
}

/// The parts of a store when it is opened.
pub struct StoreParts {
    /// As the table names it.
    pub name: String,
    /// Its file.
    pub file: FileId,
    /// Its format.
    pub geometry: Geometry,
    /// How it keeps exceptions.
    pub persistence: Persistence,
    /// Whether it is a guest's own disk, which is never invalidated.
    pub guest_disk: bool,
    /// Whether it is valid on disk.
    pub valid: bool,
    /// Its allocated and owed chunks.
    pub log: Log,
    /// Where the next entry goes.
    pub tail: Tail,
    /// The observer of its events.
    pub observer: Box<dyn StoreObserver>,
}

/// The tail, unless a leader has it.
struct TailSlot {
    /// Entries on disk.
    entries: u64,
    tail: Option<Box<Tail>>,
    /// A truncation that came while a leader had the tail. Such a leader commits nothing: a store
    /// that is merged owes nothing.
    cut: Option<(u64, Vec<Entry>)>,
}

/// See the module's description.
pub struct Store {
    name: String,
    file: FileId,
    geometry: Geometry,
    /// Chunks it has now: it may grow.
    device_chunks: AtomicU64,
    persistence: AtomicU8,
    guest_disk: AtomicBool,
    sealed: AtomicBool,
    state: AtomicU8,
    room: Room,
    /// The file system below had no room.
    full_below: AtomicBool,
    threshold: Threshold,
    log: Log,
    tail: Mutex<TailSlot>,
    merge: AtomicU8,
    /// The entries that may or may not be on disk; [`MergeMark::Unerased`].
    unerased: Mutex<Vec<Entry>>,
    observer: Box<dyn StoreObserver>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("name", &self.name).field("state", &self.state()).finish()
    }
}

impl Store {
    /// A store that was just opened.
    pub fn new(parts: StoreParts) -> Self {
        let state = if parts.valid { StoreState::Valid } else { StoreState::Invalid };
        Store {
            name: parts.name,
            file: parts.file,
            geometry: parts.geometry,
            device_chunks: AtomicU64::new(parts.geometry.device_chunks),
            persistence: AtomicU8::new(parts.persistence as u8),
            guest_disk: AtomicBool::new(parts.guest_disk),
            sealed: AtomicBool::new(false),
            state: AtomicU8::new(state as u8),
            room: Room::default(),
            full_below: AtomicBool::new(false),
            threshold: Threshold::default(),
            log: parts.log,
            tail: Mutex::new(TailSlot {
                entries: parts.tail.position(),
                tail: Some(Box::new(parts.tail)),
                cut: None,
            }),
            merge: AtomicU8::new(MergeMark::None as u8),
            unerased: Mutex::new(Vec::new()),
            observer: parts.observer,
        }
    }

    /// As the table names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[inline]
    pub fn file(&self) -> FileId {
        self.file
    }

    /// The size of its chunks.
    #[inline]
    pub fn chunk(&self) -> ChunkSize {
        self.geometry.chunk
    }

    /// Its format, and the size it has now.
    pub fn geometry(&self) -> Geometry {
        let device_chunks = self.device_chunks.load(Ordering::Acquire);
        Geometry { device_chunks, ..self.geometry }
    }

    /// Its file has `device_chunks` chunks now; it never shrinks.
    pub fn grow(&self, device_chunks: u64) {
        self.device_chunks.fetch_max(device_chunks, Ordering::AcqRel);
        let geometry = self.geometry();
        self.log.set_capacity(match self.persistence() {
            Persistence::Transient => geometry.usable_chunks(),
            _ => geometry.capacity(),
        });
    }

    /// How it keeps exceptions.
    pub fn persistence(&self) -> Persistence {
        Persistence::from_u8(self.persistence.load(Ordering::Acquire))
    }

    /// A table takes the store over, as P or as PO: the table decides what a full store means.
    /// Nothing is in flight. A store is in memory or on disk for its whole life.
    pub fn set_persistence(&self, persistence: Persistence) {
        let transient = |of| of == Persistence::Transient;
        assert_eq!(transient(persistence), transient(self.persistence()), "it stays where it is");
        self.persistence.store(persistence as u8, Ordering::Release);
    }

    /// It is activated again: a store that was full, and has room now, takes writes.
    pub fn reactivate(&self) {
        if self.log.next().0 < self.log.capacity() {
            let (from, to) = (StoreState::Overflow as u8, StoreState::Valid as u8);
            // Any other state stays.
            let _ = self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Whether it is a guest's own disk.
    pub fn is_guest_disk(&self) -> bool {
        self.guest_disk.load(Ordering::Acquire)
    }

    /// It was determined whether it is a guest's own disk, over a base that no origin writes.
    pub fn set_guest_disk(&self, guest_disk: bool) {
        self.guest_disk.store(guest_disk, Ordering::Release);
    }

    /// Its allocated and owed chunks.
    #[inline]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Whether it can be used, and for what.
    #[inline]
    pub fn state(&self) -> StoreState {
        StoreState::from_u8(self.state.load(Ordering::Acquire))
    }

    /// Whether the mapping to `chunk` survives a power cut.
    #[inline]
    pub fn is_durable(&self, chunk: StoreChunk) -> bool {
        self.persistence() == Persistence::Transient
            || self.geometry.index_of(chunk).is_none_or(|index| index < self.log.committed())
    }

    /// The place of data chunk `index`, and how many chunks from there on are adjacent, at most
    /// `count`.
    pub fn place_of(&self, index: DataIndex, count: u64) -> (StoreChunk, u64) {
        if self.persistence() == Persistence::Transient {
            return (StoreChunk(index.0), count);
        }
        let area = self.geometry.entries_per_area();
        (self.geometry.chunk_of_index(index), count.min(area - index.0 % area))
    }

    /// Whether it takes no more writes, and all earlier ones are durable.
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// From now on it is sealed: whoever seals it has made all earlier writes durable.
    pub fn set_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Layers above it are about to be committed into it, or it is no longer a layer.
    pub fn unseal(&self) {
        self.sealed.store(false, Ordering::Release);
    }

    /// Takes the tail, to commit. Only the log's leader may call this.
    pub fn take_tail(&self) -> Box<Tail> {
        self.lock_tail().tail.take().expect("one leader at a time")
    }

    /// Gives the tail back.
    pub fn return_tail(&self, mut tail: Box<Tail>) {
        let mut slot = self.lock_tail();
        if let Some((entries, last_block)) = slot.cut.take() {
            tail.truncate(entries, &last_block);
        }
        slot.entries = tail.position();
        slot.tail = Some(tail);
    }

    /// The newest entries were removed from the store, durably, by its merge: see
    /// [`Tail::truncate`].
    pub fn truncate(&self, entries: u64, last_block: &[Entry]) {
        let mut slot = self.lock_tail();
        slot.entries = entries;
        match &mut slot.tail {
            Some(tail) => tail.truncate(entries, last_block),
            None => slot.cut = Some((entries, last_block.to_vec())),
        }
    }

    fn lock_tail(&self) -> MutexGuard<'_, TailSlot> {
        self.tail.lock().expect("tail lock poisoned")
    }

    /// The state of its merge.
    #[inline]
    pub fn merge_mark(&self) -> MergeMark {
        MergeMark::from_u8(self.merge.load(Ordering::Acquire))
    }

    /// Its merge starts, continues, failed, or was abandoned for another use. Only
    /// [`Store::set_unerased`] sets [`MergeMark::Unerased`], and only a merge ends it: until then the
    /// store cannot be handed to a table that does not merge it.
    pub fn set_merge_mark(&self, mark: MergeMark) {
        debug_assert!(mark == MergeMark::Merging || self.merge_mark() != MergeMark::Unerased);
        self.merge.store(mark as u8, Ordering::Release);
    }

    /// The merge could not remove `entries`, the newest: they may or may not be on disk.
    pub fn set_unerased(&self, entries: Vec<Entry>) -> WakeSet {
        *self.lock_unerased() = entries;
        self.merge.store(MergeMark::Unerased as u8, Ordering::Release);
        WakeSet::ALL
    }

    /// The entries that may or may not be on disk, oldest first; the newest of the store.
    pub fn unerased(&self) -> Vec<Entry> {
        self.lock_unerased().clone()
    }

    /// They are not on disk: their removal was repeated.
    pub fn clear_unerased(&self) {
        self.lock_unerased().clear();
    }

    fn lock_unerased(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.unerased.lock().expect("merge lock poisoned")
    }

    /// Starts invalidating: true for the one caller who must write the header and then call
    /// [`Store::invalidated`].
    pub fn begin_invalidate(&self) -> bool {
        let mut now = self.state.load(Ordering::Acquire);
        while !StoreState::from_u8(now).is_condemned() {
            let new = StoreState::Invalidating as u8;
            match self.state.compare_exchange(now, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
        false
    }

    /// The header was written durably, or could not be.
    pub fn invalidated(&self, written: bool) -> WakeSet {
        if written || self.persistence() == Persistence::Transient {
            self.state.store(StoreState::Invalid as u8, Ordering::Release);
            self.observer.store_event(&self.name, StoreEvent::Invalidated);
        } else {
            self.observer.store_event(&self.name, StoreEvent::InvalidNotWritten);
        }
        WakeSet::ALL
    }

    /// It is in memory, and holds nothing of what it was to hold: the process that had it is gone.
    /// Nobody serves it yet.
    pub fn forgotten(&self) {
        if self.begin_invalidate() {
            self.state.store(StoreState::Invalid as u8, Ordering::Release);
            self.observer.store_event(&self.name, StoreEvent::Forgotten);
        }
    }

    /// An invalidation that could not be written to the store was, or was not, recorded elsewhere.
    pub fn recorded(&self, recorded: bool) -> WakeSet {
        let state = if recorded { StoreState::Invalid } else { StoreState::Unmarked };
        self.state.store(state as u8, Ordering::Release);
        WakeSet::ALL
    }

    /// A write to the snapshot found it full. Writes that wait for room fail.
    pub fn overflow(&self) -> WakeSet {
        if self.degrade(StoreState::Overflow) {
            self.observer.store_event(&self.name, StoreEvent::Overflowed);
        }
        WakeSet::ALL
    }

    /// A commit failed: see [`StoreState::CommitFailed`]. Writes that wait for room fail.
    pub fn commit_failed(&self) -> WakeSet {
        if self.degrade(StoreState::CommitFailed) {
            self.observer.store_event(&self.name, StoreEvent::CommitFailed);
        }
        WakeSet::ALL
    }

    /// Takes up to `wanted` data chunks of its log, in one run, and tells the observer if the
    /// store begins to owe something.
    #[inline]
    pub fn allocate(&self, wanted: u64) -> Allocation {
        let allocation = self.log.allocate(wanted);
        if let Allocation::Run { first, .. } = allocation
            && self.log.is_first_owed(first)
        {
            self.observer.first_owed();
        }
        allocation
    }

    /// Reports once when more than `bytes` are in use, possibly at once; none clears the
    /// threshold.
    pub fn set_write_threshold(&self, bytes: Option<u64>) {
        self.threshold.set(bytes);
        self.look_at_threshold();
    }

    /// Its threshold, if one is set and was not passed.
    pub fn write_threshold(&self) -> Option<u64> {
        self.threshold.get()
    }

    /// Chunks were allocated. A threshold that is set meanwhile is reported at the next chunk at
    /// the latest.
    #[inline]
    pub fn look_at_threshold(&self) {
        if let Some(threshold) = self.threshold.get() {
            self.compare_with(threshold);
        }
    }

    #[cold]
    fn compare_with(&self, threshold: u64) {
        let next = match self.persistence() {
            Persistence::Transient => StoreChunk(self.log.next().0),
            _ => self.geometry.next_free(self.log.next()),
        };
        let exceeded = self.geometry.chunk.store_offset(next).saturating_sub(threshold);
        if exceeded > 0 && self.threshold.take(threshold) {
            let event = StoreEvent::ThresholdPassed { threshold, exceeded };
            self.observer.store_event(&self.name, event);
        }
    }

    /// Whether it owes chunks that can be committed, and that a timed commit should commit.
    pub fn has_committable(&self) -> bool {
        self.state().can_commit() && self.log.owed_count() > 0
    }

    fn degrade(&self, to: StoreState) -> bool {
        let was = self.state.fetch_max(to as u8, Ordering::AcqRel);
        StoreState::from_u8(was) < to
    }

    /// Sectors allocated, in total, and used by metadata: the three numbers of a status line.
    /// While the store is merged, the allocated sectors follow the remaining entries (as in the
    /// kernel): finished means that only metadata is left. The next allocation is independent of
    /// this: see [`Log::next`].
    pub fn usage(&self) -> Usage {
        let chunk = u64::from(self.geometry.chunk.sectors());
        if self.persistence() == Persistence::Transient {
            return Usage {
                allocated: self.log.next().0 * chunk,
                total: self.geometry().device_chunks * chunk,
                metadata: 0,
            };
        }
        let next = self.log.next();
        let owed = next.0.saturating_sub(self.log.committed().0);
        let position = self.entries() + owed;
        let merged = self.merge_mark() != MergeMark::None;
        let given_out = if merged { DataIndex(position) } else { next };
        self.geometry().usage(position, given_out)
    }

    /// Entries on disk.
    pub fn entries(&self) -> u64 {
        self.lock_tail().entries
    }
}
