//! Live stores: opened, locked, with what a killed process owed entered, ready for workers.
//!
//! Owns a store's file, its lock and the file of what it owes for as long as the store lives.
//! Never knows which device serves it. Keeps I8.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::core::Owner;
use super::disks::{Disk, Disks};
use super::error::DeviceError;
use super::guards::store_path;
use super::state::Kept;
use crate::cow::layout::MOST_CHUNKS;
use crate::cow::log::Log;
use crate::cow::open::{self, Gather, OpenOptions, OpenStore};
use crate::cow::owed::{Gaps, Owed, tail_of};
use crate::cow::store::{StoreObserver, StoreParts};
use crate::cow::{Entry, Geometry, Keep, Persistence, Store};
use crate::exception::{ExceptionTable, Intake, Layer, Memory, Place};
use crate::io::OpenMode;
use crate::lines::SnapshotSpec;
use crate::units::{ChunkSize, DataIndex, StoreChunk};
use crate::wake::WakeSet;

/// Bytes in memory for each exception that is about to be entered: itself, and sorted.
const BYTES_ENTERED: u64 = 32;
/// Exceptions that are entered at once: more make nothing quicker.
const LARGEST_PART: u64 = 2 << 20;

const _: () = assert!(MOST_CHUNKS - 1 == Place::MAX_CHUNK);

/// What a store is opened for.
#[derive(Clone, Copy, Debug)]
pub(super) struct LiveFor {
    /// Bytes of the device.
    pub(super) len: u64,
    /// Whether it is a guest's own disk.
    pub(super) guest_disk: bool,
    /// Whether it lives already, and may go on to live so where the new one comes to nothing.
    pub(super) replaces: bool,
    /// What becomes of its list.
    pub(super) list: Wanted,
}

/// What is wanted of a store's list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// All of it in memory, for a table that lies there too.
    All,
    /// The newest entries: others are read again, if they are needed.
    Newest,
}

impl Wanted {
    /// What a table that lies in `memory` wants.
    pub(super) fn by(memory: &Memory) -> Wanted {
        match memory {
            Memory::Heap => Wanted::All,
            Memory::Arena(_) => Wanted::Newest,
        }
    }
}

/// A store as it was opened, and what of its list is at hand.
#[derive(Debug)]
pub(super) struct Listed {
    /// With its newest entries.
    pub(super) store: OpenStore,
    taken: Option<Taken>,
}

/// A list on its way into a table.
#[derive(Debug)]
struct Taken {
    /// Bytes of the device.
    len: u64,
    /// None before the first.
    intake: Option<Intake>,
    /// Entries that were taken.
    count: u64,
    /// Whether one of them lies where no table can say: then the store is refused.
    beyond: bool,
}

impl Gather for Taken {
    fn take(&mut self, geometry: &Geometry, entries: &[Entry]) {
        self.count += entries.len() as u64;
        // Which most stores are too small for.
        self.beyond |= geometry.device_chunks > Place::MAX_CHUNK
            && entries.iter().any(|entry| entry.new.0 > Place::MAX_CHUNK);
        if self.beyond {
            return;
        }
        let chunks = geometry.chunk.count_for(self.len);
        let intake = self.intake.get_or_insert_with(|| Intake::new(chunks));
        entries.iter().for_each(|entry| intake.add(entry.old, entry.new));
    }

    fn may_have_twice(&mut self) -> bool {
        self.beyond || self.intake.as_ref().is_some_and(Intake::has_twice)
    }
}

impl Listed {
    /// Opens a store for a device of `len` bytes.
    ///
    /// # Errors
    /// As [`open::open`]'s, and an exception beyond what a table can say.
    pub(super) fn open(
        disk: &Disk,
        options: OpenOptions,
        len: u64,
        list: Wanted,
    ) -> Result<Listed, DeviceError> {
        let options = OpenOptions { origin_len: Some(len), keep: Keep::Newest, ..options };
        let (store, taken) = match list {
            Wanted::Newest => (open::open(disk, &options)?, None),
            Wanted::All => {
                let mut taken = Taken { len, intake: None, count: 0, beyond: false };
                let store = open::open_gathering(disk, &options, &mut taken)?;
                (store, Some(taken))
            }
        };
        let highest = store.next.0.checked_sub(1).map(DataIndex);
        if highest.is_some_and(|at| store.geometry.chunk_of_index(at).0 > Place::MAX_CHUNK) {
            return Err(DeviceError::refused(format!(
                "the store {} has an exception beyond its chunk {}; make one with larger chunks",
                disk.info.path.display(),
                Place::MAX_CHUNK
            )));
        }
        Ok(Listed { store, taken })
    }
}

/// A store that lives.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) store: Arc<Store>,
    pub(super) disk: Arc<Disk>,
    pub(super) owner: Owner,
    owed: Option<Owed>,
    /// The failed syncs of its file when it was opened: what it was opened after.
    failed_before: u64,
}

impl Live {
    /// Opens the store of `spec`, or makes it where its file is empty. One that `state` knows to
    /// be invalid is, whatever its header says. Calls `between` between its longest steps.
    pub(super) fn open(
        disks: &mut Disks,
        spec: &SnapshotSpec,
        LiveFor { len, guest_disk, replaces, list }: LiveFor,
        state: &Kept,
        (owner, observer): (Owner, Box<dyn StoreObserver>),
        between: &dyn Fn(),
    ) -> Result<(Live, Listed), DeviceError> {
        let path = store_path(spec)?;
        let disk = disks.open(path, OpenMode::ReadWrite, None)?;
        between();
        let transient = spec.persistence == Persistence::Transient;
        let recorded = !transient && state.file().is_invalid(path);
        let invalid = recorded && !open::is_none(&*disk);
        if recorded && !invalid {
            // The store that was there is gone.
            state.file().forget_invalid(path);
        }
        let mut listed = read_list(&disk, spec, invalid, (len, list))?;
        let opened = &mut listed.store;
        if invalid && let Err(error) = open::mark_invalid(&*disk, opened) {
            tracing::warn!("{error}; that the store is Invalid is in the state file alone");
        }
        let (log, owed) = if transient {
            (Log::transient(opened.geometry.usable_chunks()), None)
        } else {
            let (log, owed) = make_log(&disk, opened, (len, replaces), between)?;
            disk.info.keeps(disk.len()?);
            (log, Some(owed))
        };
        reserve_ahead(&disk, opened, transient);
        let store = Arc::new(Store::new(StoreParts {
            name: spec.cow.to_string(),
            file: disk.file(),
            geometry: opened.geometry,
            persistence: spec.persistence,
            guest_disk,
            valid: opened.valid,
            log,
            tail: tail_of(opened),
            observer,
        }));
        let failed_before = disk.medium.failed_syncs();
        Ok((Live { store, disk, owner, owed, failed_before }, listed))
    }

    /// Looks at the file's length again: a store that grew is longer, and what waits for room in it
    /// goes on where there is some by now.
    pub(super) fn look_for_room(&self) -> WakeSet {
        if self.has_found_room() { self.store.go_on() } else { WakeSet::NONE }
    }

    /// If the control plane could not sync its file, what it owes may be lost: no flush succeeds until
    /// it is opened again.
    pub(super) fn note_failed_sync(&self) -> WakeSet {
        if self.disk.medium.failed_syncs() <= self.failed_before {
            return WakeSet::NONE;
        }
        self.store.log().mark_unsynced(self.store.log().committed());
        self.store.commit_failed()
    }

    fn look_at_length(&self) -> Result<(), DeviceError> {
        let len = self.disk.len()?;
        let geometry = Geometry::of_len(self.store.chunk(), len);
        if geometry.device_chunks > self.store.geometry().device_chunks {
            self.disk.info.keeps(len);
        }
        self.store.grow(geometry.device_chunks);
        Ok(())
    }

    /// Whether there is room by now: below it where that was what had none, or in it.
    pub(super) fn has_found_room(&self) -> bool {
        if let Err(error) = self.look_at_length() {
            tracing::warn!("{error}");
        }
        let below = || self.disk.has_room_below(self.store.chunk().bytes());
        if self.store.is_full_below() { below() } else { self.store.log().has_room() }
    }
}

/// Reads the list of a store for a device of `len` bytes, or makes one where its file is empty. One
/// in memory is empty.
fn read_list(
    disk: &Disk,
    spec: &SnapshotSpec,
    invalid: bool,
    (len, list): (u64, Wanted),
) -> Result<Listed, DeviceError> {
    if spec.persistence == Persistence::Transient {
        let chunk = spec.chunk.unwrap_or(ChunkSize::DEFAULT);
        let store = OpenStore::empty(Geometry::of_len(chunk, disk.len()?));
        return Ok(Listed { store, taken: None });
    }
    if open::is_none(disk) {
        // Before it is made: else a kill in between would leave it what it is not owed.
        Owed::forget(&disk.info)?;
    }
    let (chunk, owed) = (spec.chunk, Owed::most(&disk.info));
    let options = OpenOptions { chunk, create: true, owed, invalid, ..OpenOptions::default() };
    Listed::open(disk, options, len, list)
}

/// The log of a store, after what a killed process owed was entered for a device of `len` bytes, and
/// the file of what it will owe. `replaces`: as in [`LiveFor`].
fn make_log(
    disk: &Disk,
    opened: &mut OpenStore,
    (len, replaces): (u64, bool),
    between: &dyn Fn(),
) -> Result<(Log, Owed), DeviceError> {
    let mut owed = Owed::of(&disk.info, opened.geometry.chunk.sectors());
    if opened.valid {
        // One that this replaces goes on where this comes to nothing.
        let gaps = if replaces { Gaps::Leave } else { Gaps::Close };
        if owed.enter(disk, opened, (Some(len), gaps))? {
            let path = disk.info.path.display();
            tracing::info!("entered what a killed process owed to {path}");
        }
        open::zero_garbage(disk, opened)?;
    }
    between();
    let words = owed.create(replaces)?;
    Ok((Log::new(words, opened.next, opened.geometry.capacity()), owed))
}

/// Reserves space in a store's file before a guest waits for that. Where there is no room, its first
/// write is told so.
fn reserve_ahead(disk: &Disk, opened: &OpenStore, transient: bool) {
    if disk.info.block_device {
        return;
    }
    let (geometry, next) = (opened.geometry, opened.next);
    // A write is acknowledged before the next area is written, which is in vain without.
    let areas = (!transient).then(|| geometry.areas(opened.count(), next));
    let next = if transient { StoreChunk(0) } else { geometry.chunk_of_index(next) };
    let from = geometry.chunk.store_offset(next);
    disk.info.ahead.begin(from, areas);
    disk.info.make_room(from + geometry.chunk.bytes());
}

impl Drop for Live {
    fn drop(&mut self) {
        let log = self.store.log();
        if let Some(owed) = &self.owed
            && !owed.discard_if_replaced()
            && (log.next() == log.committed() || self.store.state().is_invalid())
        {
            owed.remove();
        }
    }
}

/// Enters a store's exceptions into a table in `memory`, as those of `layer`. Where only the newest
/// are at hand, all are read again, twice: to count them, and to enter a part at a time.
pub(super) fn load(
    table: &mut ExceptionTable,
    memory: &Memory,
    (disk, Listed { store: opened, taken }): (&Disk, Listed),
    layer: Layer,
) -> Result<(), DeviceError> {
    let mapping = |entry: &Entry| (entry.old, Place { layer, chunk: entry.new });
    if let Some(Taken { intake, count, .. }) = taken {
        if let Some(intake) = intake {
            table.take_in(intake, layer);
        }
        // What a killed process owed.
        let later = &opened.entries[(count - opened.before) as usize..];
        table.fill(later.iter().map(mapping));
        return Ok(());
    }
    let opened = &opened;
    let (Memory::Arena(arena), 1..) = (memory, opened.before) else {
        table.fill(opened.entries.iter().map(mapping));
        return Ok(());
    };
    // A part, and the same sorted, take the place of half of what tables may have in memory.
    let part_len = (arena.bound() / 2 / BYTES_ENTERED).min(opened.count()).min(LARGEST_PART);
    let _aside = arena.set_aside(part_len * BYTES_ENTERED);
    let part_len = part_len as usize;
    let mut counts = table.counts();
    open::each_entry(disk, opened, |_, entry| {
        counts.add(entry.old);
        ControlFlow::Continue(())
    })?;
    let mut part = Vec::with_capacity(part_len);
    open::each_entry(disk, opened, |_, entry| {
        if part.len() == part_len {
            table.enter(&counts, part.iter().map(mapping));
            part.clear();
        }
        part.push(entry);
        ControlFlow::Continue(())
    })?;
    table.enter(&counts, part.iter().map(mapping));
    Ok(())
}
