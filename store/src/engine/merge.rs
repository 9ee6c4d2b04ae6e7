//! Merging a snapshot back into its origin, while a device with the snapshot's content serves.
//!
//! Owns the order of a merge's steps, batch after batch. A batch is the newest entries of the
//! store, wherever their chunks are, so that they share the barriers:
//!
//! ```text
//! protect ─→ busy ─→ drain ─→ copy ─→ sync origin ─→ erase entries ─→ sync store ─→ release
//! ```
//!
//! 1. *protect*: every other snapshot of the origin has a durable copy of the data that will be
//!    overwritten, and no read that it redirected is in flight (I4, I6). Later steps cannot undo
//!    this: a mapping stays for as long as its table serves, a mapped chunk is not read from the
//!    origin, and a new snapshot of the origin takes a new table, before which this engine stops.
//! 2. *busy*, then *drain*, in that order: a write that reads the table after the chunk became busy
//!    waits; a write that read it before is tracked by then, and is found. In the other order, a
//!    write could start between the two and land in the store behind the copy.
//! 3. *sync origin* before *erase*: an entry is erased only when its chunk's content is on the
//!    origin, and no sync of the store, whoever asked for it, has failed by then. Nor has one of the
//!    origin since the batch's first byte was copied; what an earlier one lost is no batch's.
//!    *Sync store* before *release*: no write goes to the origin's chunk while its entry could come
//!    back and be merged over it (I7). Both syncs are parts of barriers, as those of flushes: the
//!    system may tell a flush of what the merge lost.
//!
//! Never knows time. Relies on a merged store taking no new exceptions: the list only shrinks.

mod batch;
mod copy;
mod erase;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod list;
mod protect;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
#[cfg(test)]
#[cfg_attr(feature = "shuttle", allow(dead_code, reason = "the model checker uses parts of it"))]
pub(super) mod world;

use std::sync::Arc;

use self::batch::{Batch, Neighbours};
use self::copy::Copies;
use self::list::List;
use super::core::Core;
use crate::cow::tail::Tail;
use crate::cow::{Entry, MergeMark, Persistence, Store, StoreState};
use crate::exception::{ChunkState, Place};
use crate::io::{Errno, IoOp};
use crate::table::Table;
use crate::target::{Exceptions, Merge, Synced, Target};

/// The progress of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeProgress {
    /// Its state.
    pub state: MergeState,
    /// Chunks copied back since it was started.
    pub done: u64,
    /// Chunks in the store at its start.
    pub total: u64,
    /// Bytes of a chunk.
    pub chunk: u64,
}

/// The state of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeState {
    /// It copies, or waits for an allowance or for parts of the list.
    Running,
    /// It was told to pause.
    Paused,
    /// The store is empty.
    Finished,
    /// It failed, and continues when it is started again.
    Failed(MergeFailure),
}

/// Why a merge failed, or cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeFailure {
    /// There is no merge in this table.
    #[error("the device's table has no snapshot-merge line")]
    NoMerge,
    /// A store in memory, or one above another.
    #[error("only a persistent store that lies directly on its origin can be merged")]
    Store,
    /// The store owes entries that are not on disk.
    #[error("the store owes a commit: flush the device before its store is merged")]
    Owed,
    /// The store's content cannot be trusted.
    #[error("the store is Invalid: there is nothing in it that can be merged")]
    Invalid,
    /// A sync of the store failed earlier.
    #[error("an earlier sync of the store failed: resume the device, which opens it again")]
    NotSynced,
    /// Another snapshot prevents the merge.
    #[error(
        "a snapshot of the origin can neither keep its data nor be marked invalid; remove it, and \
         resume the device"
    )]
    Protect,
    /// The list of entries could not be read.
    #[error("the store's list of exceptions cannot be read at byte {offset}: {errno}")]
    ReadList {
        /// Where in the store.
        offset: u64,
        /// Why.
        errno: Errno,
    },
    /// The list of entries changed after the store was opened.
    #[error(
        "entry {position} at byte {offset} of the store is not the one that was read when it was \
         opened: something else writes to the store"
    )]
    Entry {
        /// Its place in the list.
        position: u64,
        /// Its offset in the store.
        offset: u64,
    },
    /// A chunk could not be read.
    #[error("the store cannot be read: {0}")]
    ReadStore(Errno),
    /// A chunk could not be copied back.
    #[error("the origin cannot be written: {0}")]
    WriteOrigin(Errno),
    /// Copied chunks could not be made durable.
    #[error("the origin cannot be synced: {0}")]
    SyncOrigin(Errno),
    /// Entries could not be removed.
    #[error("the store's list of exceptions cannot be written: {0}")]
    WriteList(Errno),
    /// The removal of entries could not be made durable.
    #[error("the store cannot be synced: {0}; resume the device, which opens it again")]
    SyncStore(Errno),
}

impl MergeFailure {
    /// The failed operation, if it was I/O. An impossible entry counts as a failed read.
    pub fn io(&self) -> Option<IoOp> {
        match self {
            MergeFailure::ReadList { .. }
            | MergeFailure::Entry { .. }
            | MergeFailure::ReadStore(_) => Some(IoOp::Read),
            MergeFailure::WriteOrigin(_) | MergeFailure::WriteList(_) => Some(IoOp::Write),
            MergeFailure::SyncOrigin(_) | MergeFailure::SyncStore(_) => Some(IoOp::Sync),
            _ => None,
        }
    }
}

/// The part of a batch that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Step {
    ReadList,
    ReadStore,
    WriteOrigin,
    WriteList,
}

impl Step {
    /// By number.
    pub(super) const ALL: [Step; 4] =
        [Step::ReadList, Step::ReadStore, Step::WriteOrigin, Step::WriteList];
}

/// The present step of a merge. `left` counts operations in flight.
#[derive(Debug)]
enum Stage {
    /// Between batches.
    Idle,
    /// Parts of the list are being read, or were read and are passed on by the host.
    Reading { left: u32, failed: Option<MergeFailure> },
    /// Other snapshots make their copies; `next` is the first run not yet asked for.
    Protect { next: usize, left: u32, refused: bool },
    /// Waiting for writes to the batch's chunks; those of runs before `next` have ended.
    Drain { next: usize },
    /// Chunks are copied to the origin.
    Copy { failed: Option<MergeFailure> },
    /// The origin's media are synced.
    SyncOrigin,
    /// Entries are written over with zeroes, `left` areas of them; then the store is synced.
    Erase { what: Erased, left: u32, failed: Option<Errno> },
    /// It ended, one way or the other.
    Ended(MergeState),
}

/// The purpose of an erasure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Erased {
    /// Entries that an earlier, failed attempt may have left behind the list.
    Behind,
    /// The batch.
    Batch,
}

/// A merge in this engine.
#[derive(Debug)]
pub(super) struct RunningMerge {
    /// Which line of the table.
    line: usize,
    stage: Stage,
    /// Entries that are left.
    position: u64,
    total: u64,
    chunk: u64,
    paused: bool,
    /// The area after the list is known to be zero.
    clean: bool,
    /// Bytes that may be copied; none: as many as can be.
    budget: Option<i64>,
    /// Batches that may be begun; none: as many as can be.
    pub(super) batches: Option<u32>,
    list: List,
    batch: Batch,
    /// How many times as large as the smallest a batch may be.
    reach: u64,
    /// Batches take long.
    pub(super) slow: bool,
    copies: Copies,
    /// The origin's files, as they were when the batch's first byte was copied.
    origin: Vec<Arc<Synced>>,
    /// The blocks being written to the list, an area's each.
    meta: Vec<Vec<u8>>,
}

/// The range that a job works on.
#[derive(Clone, Copy)]
struct Site<'a> {
    /// First byte of the line on the device.
    start: u64,
    merge: &'a Merge,
    ex: &'a Exceptions,
    /// Bytes of the line that origin and snapshot both have.
    len: u64,
}

impl<'a> Site<'a> {
    fn of(table: &'a Table, line: usize) -> Option<Site<'a>> {
        let line = table.lines().get(line)?;
        let Target::Merge(merge) = &line.target else { return None };
        let ex = &table.exceptions()[merge.exceptions];
        let len = line.len.min(ex.len).min(merge.origin.backing.len());
        Some(Site { start: line.start, merge, ex, len })
    }

    fn store(&self) -> &'a Arc<Store> {
        self.ex.store()
    }

    /// The files of the origin, each once, as they are now.
    fn origin_files(&self) -> Vec<Arc<Synced>> {
        let mut files: Vec<Arc<Synced>> = Vec::new();
        for medium in self.merge.origin.backing.media() {
            if !files.iter().any(|known| known.medium.file == medium.file) {
                files.push(Arc::new(Synced::new(medium.clone())));
            }
        }
        files
    }

    /// Whether the store's content can be trusted. A failed sync of a guest's is known to the store,
    /// and to no sync after it: chunks may be stale.
    fn is_mergeable(&self) -> Result<(), MergeFailure> {
        match self.store().state() {
            StoreState::Valid | StoreState::Full | StoreState::Overflow => Ok(()),
            StoreState::CommitFailed => Err(MergeFailure::NotSynced),
            StoreState::Invalidating | StoreState::Invalid | StoreState::Unmarked => {
                Err(MergeFailure::Invalid)
            }
        }
    }

    /// The first byte of a run in its line, and how many of its bytes the origin has.
    fn span(&self, run: &Neighbours) -> (u64, u64) {
        let start = self.ex.chunk().start_of(run.first);
        (start, (run.count * self.ex.chunk().bytes()).min(self.len.saturating_sub(start)))
    }

    fn place(&self, entry: &Entry) -> Place {
        Place { layer: self.ex.top(), chunk: entry.new }
    }
}

impl RunningMerge {
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.stage, Stage::Idle | Stage::Ended(_))
    }

    /// How many requests for parts of the origin it waits for, if it waits for nothing else.
    pub(super) fn asked(&self) -> Option<usize> {
        match self.stage {
            Stage::Protect { left, .. } if left > 0 => Some(left as usize),
            _ => None,
        }
    }

    pub(super) fn progress(&self) -> MergeProgress {
        let state = match self.stage {
            Stage::Ended(state) => state,
            Stage::Idle | Stage::Reading { .. } if self.paused => MergeState::Paused,
            _ => MergeState::Running,
        };
        MergeProgress {
            state,
            done: self.total - self.position.min(self.total),
            total: self.total,
            chunk: self.chunk,
        }
    }

    #[cfg(any(test, feature = "sim"))]
    pub(super) fn step(&self) -> &'static str {
        match self.stage {
            Stage::Idle | Stage::Reading { .. } => "between batches",
            Stage::Protect { .. } => "protect",
            Stage::Drain { .. } => "drain",
            Stage::Copy { .. } => "copy",
            Stage::SyncOrigin => "sync origin",
            Stage::Erase { .. } => "erase entries",
            Stage::Ended(_) => "ended",
        }
    }

    pub(super) fn meta(&self, index: usize) -> &[u8] {
        &self.meta[index]
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Whether it waits for permission for another batch.
    pub(super) fn has_ended_batches(&self) -> bool {
        self.batches == Some(0) && matches!(self.stage, Stage::Idle)
    }

    pub(super) fn allow(&mut self, bytes: Option<u64>) {
        self.budget = bytes.map(|bytes| {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.budget.unwrap_or(0).min(0).saturating_add(bytes)
        });
    }

    /// Whether the entry `from` and all later ones outside the batch are loaded.
    fn has(&self, from: u64) -> bool {
        self.list.has_all(from, self.top())
    }
}

impl Core {
    pub(super) fn start_merge(&mut self, table: &Table) -> Result<(), MergeFailure> {
        if self.merge.as_ref().is_some_and(|job| !job.is_quiet()) {
            return Ok(());
        }
        let is_merge = |line: &crate::table::Line| matches!(line.target, Target::Merge(_));
        let line = table.lines().iter().position(is_merge).ok_or(MergeFailure::NoMerge)?;
        let site = Site::of(table, line).ok_or(MergeFailure::NoMerge)?;
        let store = site.store();
        if store.persistence() == Persistence::Transient || site.ex.layers.len() != 1 {
            return Err(MergeFailure::Store);
        }
        site.is_mergeable()?;
        if store.log().next() != store.log().committed() {
            return Err(MergeFailure::Owed);
        }
        let unerased = store.unerased();
        if unerased.is_empty() {
            store.set_merge_mark(MergeMark::Merging);
        }
        self.merge = Some(Box::new(RunningMerge {
            line,
            stage: Stage::Idle,
            position: store.entries() - unerased.len() as u64,
            total: store.entries(),
            chunk: site.ex.chunk().bytes(),
            paused: false,
            clean: false,
            budget: None,
            batches: None,
            list: List::default(),
            batch: Batch { entries: unerased, ..Batch::default() },
            reach: 1,
            slow: false,
            copies: Copies::default(),
            origin: Vec::new(),
            meta: Vec::new(),
        }));
        Ok(())
    }

    /// Advances the merge as far as possible.
    pub(super) fn step_merge(&mut self, table: &Table) {
        let Some(mut job) = self.merge.take() else { return };
        if let Some(site) = Site::of(table, job.line) {
            while self.advance_merge(&mut job, site) {}
        }
        self.merge = Some(job);
    }

    /// One step; false if it waits for something.
    fn advance_merge(&mut self, job: &mut RunningMerge, site: Site<'_>) -> bool {
        match job.stage {
            Stage::Idle => !self.stopping && !job.paused && self.next_batch(job, site),
            Stage::Protect { .. } => self.protect(job, site),
            Stage::Drain { .. } => self.drain(job, site),
            Stage::Copy { .. } => self.copy_home(job, site),
            Stage::SyncOrigin => self.merge_synced.take().is_some_and(|result| {
                self.origin_synced(job, site, result);
                true
            }),
            Stage::Erase { what, .. } => self.merge_synced.take().is_some_and(|result| {
                self.store_synced(job, site, what, result);
                true
            }),
            Stage::Reading { .. } | Stage::Ended(_) => false,
        }
    }

    /// Between batches: chooses what comes next.
    fn next_batch(&mut self, job: &mut RunningMerge, site: Site<'_>) -> bool {
        if let Err(failure) = site.is_mergeable() {
            self.end_merge(job, site, failure);
            return false;
        }
        let block = Tail::block_entries(&site.store().geometry());
        if !job.clean {
            if !job.list.has_all(job.position - job.position % block, job.position) {
                self.read_list(job, site, job.position, 1);
                return false;
            }
            self.erase_after_list(job, site);
            return false;
        }
        if job.position == 0 {
            job.stage = Stage::Ended(MergeState::Finished);
            return false;
        }
        if job.budget.is_some_and(|budget| budget <= 0) || job.batches == Some(0) {
            return false;
        }
        while job.wants_more() {
            if !job.has(job.top() - 1) {
                self.read_list(job, site, job.top(), job.missing());
                return false;
            }
            job.take_newest();
        }
        job.batch.sort();
        if let Some(budget) = &mut job.budget {
            *budget -= (job.batch.entries.len() as u64 * job.chunk) as i64;
        }
        if let Some(batches) = &mut job.batches {
            *batches -= 1;
        }
        job.stage = Stage::Protect { next: 0, left: 0, refused: false };
        true
    }

    pub(super) fn merge_io_done(
        &mut self,
        table: &Table,
        index: usize,
        step: Step,
        result: Result<(), Errno>,
    ) {
        let mut job = self.merge.take().expect("a merge's actions end before it does");
        let site = Site::of(table, job.line).expect("a table does not change under its actions");
        match step {
            Step::ReadList => self.list_read(&mut job, site, index, result),
            Step::ReadStore => self.store_read(&mut job, site, index, result),
            Step::WriteOrigin => self.origin_written(&mut job, site, index, result),
            Step::WriteList => self.list_written(&mut job, site, result),
        }
        self.merge = Some(job);
    }

    /// The merge fails. Unless its entries may have been erased, the batch stays in the store: the writes that
    /// wait for it fail, and later ones go there again.
    fn end_merge(&mut self, job: &mut RunningMerge, site: Site<'_>, failure: MergeFailure) {
        if site.store().merge_mark() != MergeMark::Unerased {
            for entry in job.batch.entries.drain(..) {
                let place = site.place(&entry);
                if site.ex.table.get(entry.old) == ChunkState::Busy(place) {
                    let waiting = site.ex.table.keep_busy_mapped(entry.old, place);
                    self.worker.all().wake(waiting);
                }
            }
            site.store().set_merge_mark(MergeMark::Failed);
        }
        tracing::error!(store = site.store().name(), "the merge stopped: {failure}");
        job.stage = Stage::Ended(MergeState::Failed(failure));
    }
}
