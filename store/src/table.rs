//! A table in the form that workers use: immutable, shared, and swapped only while nothing is in
//! flight.
//!
//! Owns the mapping from a device's range to targets, and the lists that a flush and a worker
//! need. Never knows table lines as text, nor which worker serves the device.

use std::sync::Arc;

use crate::cow::{Persistence, Store, StoreState};
use crate::io::FileId;
use crate::request::Op;
use crate::target::{
    Backing, Decision, Exceptions, ExceptionsId, Medium, Snapshot, Synced, Target,
};
use crate::units::{SECTOR_SIZE, Sector};

/// One line: a range of the device and its target.
#[derive(Debug)]
pub struct Line {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The target that it maps to.
    pub target: Target,
}

/// What a flush of the device must make durable.
#[derive(Debug, Default)]
pub struct FlushSet {
    /// Stores whose log must be committed and whose data synced.
    pub stores: Vec<Arc<Store>>,
    /// The same, for stores that are merged into `media`: a device whose store is Invalid is its
    /// origin, and its flush is only the origin's.
    pub merged: Vec<Arc<Store>>,
    /// Other files to be synced.
    pub media: Vec<Arc<Synced>>,
    /// Files below the lowest layers: to be synced if they have unsynced writes.
    pub below: Vec<Arc<Synced>>,
}

/// Who says whether what finds no room in a file waits for it.
#[derive(Clone, Copy, Debug)]
pub enum Keeper<'a> {
    /// The store in it.
    Store(&'a Arc<Store>),
    /// The file itself.
    Medium(&'a Arc<Medium>),
}

impl Keeper<'_> {
    /// Its file.
    pub fn file(&self) -> FileId {
        match self {
            Keeper::Store(store) => store.file(),
            Keeper::Medium(medium) => medium.file,
        }
    }

    /// What has its place in the file found no room for it: true where that waits.
    pub fn wait_for_room(&self) -> bool {
        match self {
            Keeper::Store(store) => store.wait_for_room_below(),
            Keeper::Medium(medium) => medium.wait_for_room(),
        }
    }

    /// Whether what found no room waits.
    pub fn is_full(&self) -> bool {
        match self {
            Keeper::Store(store) => store.state() == StoreState::Full,
            Keeper::Medium(medium) => medium.is_full(),
        }
    }

    /// Something that had waited found room, and was written.
    pub fn wrote(&self) {
        match self {
            Keeper::Store(store) => store.wrote(),
            Keeper::Medium(medium) => medium.wrote(),
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Table {
    lines: Vec<Line>,
    exceptions: Vec<Exceptions>,
    flush: FlushSet,
    files: Vec<FileId>,
    read_only: bool,
}

/// A piece of one line of a table: the target with the range relative to it.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The line's target.
    pub target: &'a Target,
    /// First byte, relative to the target.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Table {
    /// A table of `lines` that follow each other without a gap from 0; the targets' numbers refer
    /// to `exceptions`.
    pub fn new(lines: Vec<Line>, exceptions: Vec<Exceptions>) -> Self {
        let mut end = 0;
        for line in &lines {
            assert_eq!(line.start, end, "table lines follow each other");
            end += line.len;
        }
        let flush = FlushSet::of(&lines, &exceptions);
        let mut files: Vec<FileId> = Vec::new();
        for line in &lines {
            let backing = match &line.target {
                Target::Plain(backing) => backing,
                Target::Snapshot(_) => continue,
                Target::Origin(origin) => &origin.backing,
                Target::Merge(merge) => &merge.origin.backing,
            };
            files.extend(backing.media().map(|medium| medium.file));
        }
        for ex in &exceptions {
            files.extend(ex.layers.iter().map(|store| store.file()));
            files.extend(ex.origin.media().map(|medium| medium.file));
        }
        files.sort();
        files.dedup();
        Table { lines, exceptions, flush, files, read_only: false }
    }

    /// A table for what concerns the whole of a file, as a sync does: it maps the first sector.
    pub fn over(medium: Arc<Medium>) -> Self {
        let target = Target::Plain(Backing::file(medium, 0, SECTOR_SIZE));
        Table::new(vec![Line { start: 0, len: SECTOR_SIZE, target }], Vec::new())
    }

    /// Sets whether writes are refused.
    pub fn with_read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// The device's length.
    pub fn size(&self) -> Sector {
        Sector::from_bytes(self.lines.last().map_or(0, |last| last.start + last.len))
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Every file that the table's requests may access.
    pub fn files(&self) -> &[FileId] {
        &self.files
    }

    /// Its lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Its exceptions; an [`ExceptionsId`] is a place in this list.
    #[inline]
    pub fn exceptions(&self) -> &[Exceptions] {
        &self.exceptions
    }

    /// Its exceptions, each with its name.
    pub fn exceptions_by_id(&self) -> impl Iterator<Item = (ExceptionsId, &Exceptions)> {
        (0..).map(ExceptionsId).zip(&self.exceptions)
    }

    /// What a flush must make durable.
    pub fn flush_set(&self) -> &FlushSet {
        &self.flush
    }

    /// The first piece of `[offset, offset + len)` that is in one line. The range is within the
    /// device.
    #[inline]
    pub fn piece(&self, offset: u64, len: u64) -> Piece<'_> {
        let line = match &self.lines[..] {
            [only] => only,
            lines => {
                let index = lines.partition_point(|line| line.start + line.len <= offset);
                &lines[index]
            }
        };
        let within = offset - line.start;
        debug_assert!(within < line.len, "a request past the device's end");
        Piece { target: &line.target, offset: within, len: len.min(line.len - within) }
    }

    /// The lines that map a part of `[offset, offset + len)`.
    fn lines_in(&self, offset: u64, len: u64) -> impl Iterator<Item = &Line> {
        let end = offset + len;
        self.lines.iter().filter(move |line| line.start < end && offset < line.start + line.len)
    }

    /// The stores that guests' writes to `[offset, offset + len)` go to, if the range is a
    /// snapshot's.
    pub fn stores_of(&self, offset: u64, len: u64) -> impl Iterator<Item = &Arc<Store>> {
        self.lines_in(offset, len).filter_map(|line| match &line.target {
            Target::Snapshot(snapshot) => Some(self.exceptions()[snapshot.exceptions].store()),
            Target::Plain(_) | Target::Origin(_) | Target::Merge(_) => None,
        })
    }

    /// Who keeps the files that writes in `[offset, offset + len)` go to.
    pub fn keepers(&self, offset: u64, len: u64) -> impl Iterator<Item = Keeper<'_>> {
        let lines = self.lines_in(offset, len).filter(|_| !self.read_only);
        lines.flat_map(|line| {
            let (store, backing) = match &line.target {
                Target::Plain(backing) => (None, Some(backing)),
                Target::Origin(origin) => (None, Some(&origin.backing)),
                Target::Merge(merge) => (None, Some(&merge.origin.backing)),
                Target::Snapshot(Snapshot { exceptions, features, .. }) => {
                    let ex = &self.exceptions()[*exceptions];
                    let below = features.discard_passdown_origin.then_some(&ex.origin);
                    (Some(ex.store()), below)
                }
            };
            let media = backing.into_iter().flat_map(Backing::media);
            store.into_iter().map(Keeper::Store).chain(media.map(Keeper::Medium))
        })
    }

    /// Who keeps all files that are written by way of the table.
    pub fn all_keepers(&self) -> impl Iterator<Item = Keeper<'_>> {
        self.keepers(0, self.size().bytes())
    }

    /// A request that begins at `offset` may be decided soon.
    #[inline]
    pub fn prefetch(&self, offset: u64) {
        let near = |id: ExceptionsId, offset| {
            let ex = &self.exceptions()[id];
            ex.table.prefetch(ex.chunk().chunk_of(offset));
        };
        let piece = self.piece(offset, 1);
        match piece.target {
            Target::Plain(_) | Target::Origin(_) => {}
            Target::Snapshot(snapshot) => near(snapshot.exceptions, piece.offset),
            Target::Merge(merge) => near(merge.exceptions, piece.offset),
        }
    }

    /// The decision for the first part of `op` on `[offset, offset + len)`.
    #[inline]
    pub fn decide(&self, op: Op, offset: u64, len: u64) -> Decision {
        if self.read_only && op != Op::Read {
            return Decision::Fail;
        }
        let piece = self.piece(offset, len);
        match piece.target {
            Target::Plain(backing) => backing.decide(op, piece.offset, piece.len),
            Target::Snapshot(snapshot) => {
                let ex = &self.exceptions()[snapshot.exceptions];
                snapshot.decide(ex, op, piece.offset, piece.len)
            }
            Target::Origin(origin) => origin.decide(op, piece.offset, piece.len),
            Target::Merge(merge) => {
                merge.decide(&self.exceptions()[merge.exceptions], op, piece.offset, piece.len)
            }
        }
    }
}

impl FlushSet {
    /// Whether one of its stores is invalid; then a flush fails even if everything else was
    /// flushed.
    pub fn has_invalid(&self) -> bool {
        let mut stores = self.stores.iter().chain(&self.merged);
        stores.any(|store| store.state().is_invalid())
    }

    /// The files that are not stores.
    fn files(&self) -> impl Iterator<Item = &Synced> {
        self.media.iter().chain(&self.below).map(|file| &**file)
    }

    /// It is that of a device's new table; the device had `old` until now.
    pub fn take_over(&self, old: &FlushSet) {
        for file in self.files() {
            let same = |old: &&Synced| Arc::ptr_eq(&old.medium, &file.medium);
            old.files().filter(same).take(1).for_each(|old| file.take_over(old));
        }
    }

    /// Its files that are not stores are opened again, as [`Synced::open_again`] says.
    pub fn open_again(&self) {
        self.files().for_each(Synced::open_again);
    }

    fn of(lines: &[Line], exceptions: &[Exceptions]) -> FlushSet {
        let mut set = FlushSet::default();
        for line in lines {
            match &line.target {
                Target::Plain(backing) => backing.media().for_each(|m| add(&mut set.media, m)),
                Target::Snapshot(snapshot) => {
                    let ex = &exceptions[snapshot.exceptions];
                    ex.layers.iter().for_each(|store| add_store(&mut set.stores, store));
                    ex.origin.media().for_each(|m| add(&mut set.below, m));
                }
                Target::Origin(origin) => {
                    origin.backing.media().for_each(|m| add(&mut set.media, m));
                }
                Target::Merge(merge) => {
                    add_store(&mut set.merged, exceptions[merge.exceptions].store());
                    merge.origin.backing.media().for_each(|m| add(&mut set.media, m));
                }
            }
        }
        set
    }
}

fn add_store(stores: &mut Vec<Arc<Store>>, store: &Arc<Store>) {
    let known = stores.iter().any(|known| Arc::ptr_eq(known, store));
    if !known && store.persistence() != Persistence::Transient {
        stores.push(store.clone());
    }
}

fn add(files: &mut Vec<Arc<Synced>>, medium: &Arc<Medium>) {
    if !files.iter().any(|known| known.medium.file == medium.file) {
        files.push(Arc::new(Synced::new(medium.clone())));
    }
}
