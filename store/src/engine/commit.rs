//! Durability: barriers that wait for it, and rounds that commit a store.
//!
//! Owns the barriers of this worker's requests and the rounds that this worker leads. A barrier
//! takes a ticket from every store and every other file that it needs; a round writes the
//! entries that its store owes, in allocation order, after a sync of the data (I1, I2, I3, I16).
//! Never knows the content of requests.

use std::sync::Arc;

use super::core::{Core, FileRange};
use super::tag::{MetaOf, Owner};
use crate::cow::layout::Entry;
use crate::cow::tail::Tail;
use crate::cow::{MergeMark, Store};
use crate::io::{Errno, IoOp, Seg};
use crate::rounds::{RoundEnd, Ticket, Turn};
use crate::table::Table;
use crate::target::{ExceptionsId, Synced};
use crate::units::{DataIndex, StoreChunk};

/// The largest area that is zeroed by writing and not by the file system.
const WRITTEN_ZEROES: u64 = 64 << 10;

#[derive(Debug)]
pub(super) enum Part {
    Store { store: Arc<Store>, ticket: Option<Ticket> },
    File { file: Arc<Synced>, ticket: Option<Ticket> },
    Done,
}

impl Part {
    pub(super) fn of(file: Arc<Synced>) -> Part {
        Part::File { file, ticket: None }
    }

    pub(super) fn of_store(store: Arc<Store>) -> Part {
        Part::Store { store, ticket: None }
    }
}

/// What happens to requests when their barrier has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Then {
    /// They end, with an error if the barrier failed.
    #[default]
    End,
    /// They are dispatched again, and find any failure themselves.
    Again,
    /// There are none: the merge that runs here goes on.
    Merge,
}

/// Requests, and the stores and files that must be durable before they proceed.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    requests: Vec<usize>,
    parts: Vec<Part>,
    then: Then,
    failed: bool,
}

/// Lists of barriers and rounds that have ended, so that none is allocated for the next.
#[derive(Debug, Default)]
pub(super) struct SpareCommits {
    /// Without requests and parts.
    barriers: Vec<Barrier>,
    metas: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for the writes of all chunks below `upto`.
    Collect,
    /// Zeroing areas ahead.
    Zero,
    /// Syncing the data, and the zeroes.
    SyncData,
    /// Writing entries.
    Write,
    /// Syncing the entries.
    SyncEntries,
}

/// A commit that this worker leads.
#[derive(Debug)]
pub(super) struct Round {
    store: Arc<Store>,
    tail: Box<Tail>,
    upto: DataIndex,
    /// All chunks below have ended.
    ended: DataIndex,
    /// The next chunk whose entry is to be written.
    next: DataIndex,
    /// Entries that it writes, known after [`Stage::Collect`].
    entries: u64,
    stage: Stage,
    /// Entries were written, and are to be synced.
    wrote: bool,
    meta: Vec<u8>,
}

impl Round {
    pub(super) fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// Whether it does I/O; before, it only waits for what other workers write.
    pub(super) fn has_begun(&self) -> bool {
        self.stage != Stage::Collect
    }

    /// Counts the entries that it writes, once all its chunks have ended.
    fn count_entries(&mut self) {
        let log = self.store.log();
        let chunks = (self.next.0..self.upto.0).map(DataIndex);
        self.entries = chunks.filter(|&chunk| log.entry(chunk).is_some()).count() as u64;
    }
}

/// Whether a store is a layer that owes nothing. One that a commit of layers left broken does not
/// concern the layers above it.
fn rests(store: &Store) -> bool {
    let owes = store.log().next() != store.log().committed();
    store.is_sealed() && (!owes || !store.state().can_commit())
}

impl Core {
    /// Starts the barriers that the requests of this step need.
    pub(super) fn start_barriers(&mut self, table: &Table) {
        if !self.to_end.is_empty() {
            let set = table.flush_set();
            let needed = |store: &&Arc<Store>| !rests(store);
            let usable = |store: &&Arc<Store>| !store.state().is_condemned();
            let merged = set.merged.iter().filter(usable);
            let stores = set.stores.iter().filter(needed).chain(merged).cloned();
            // Who only reads leads no sync that others wait for, but of what an earlier table left.
            let only_reads = self.only_reads || table.read_only();
            let left = |f: &&Arc<Synced>| f.medium.is_left_unsynced();
            let unsynced = |f: &&Arc<Synced>| !only_reads || left(f) || f.has_failed();
            let parts = stores
                .map(Part::of_store)
                .chain(set.media.iter().filter(unsynced).cloned().map(Part::of))
                .chain(set.below.iter().filter(left).cloned().map(Part::of));
            let mut barrier = self.new_barrier(Then::End);
            barrier.parts.extend(parts);
            barrier.requests.append(&mut self.to_end);
            self.start_barrier(barrier);
        }
        if !self.to_commit.is_empty() || self.per_exceptions.iter().any(|of| of.commit_wanted) {
            let mut barrier = self.new_barrier(Then::Again);
            for (of, ex) in self.per_exceptions.iter_mut().zip(table.exceptions()) {
                if std::mem::take(&mut of.commit_wanted) {
                    let owing = ex.layers.iter().filter(|store| !rests(store)).cloned();
                    barrier.parts.extend(owing.map(Part::of_store));
                }
            }
            barrier.requests.append(&mut self.to_commit);
            self.start_barrier(barrier);
        }
    }

    /// The merge that runs here waits for syncs of these, which begin after this call.
    pub(super) fn start_merge_barrier(&mut self, parts: impl Iterator<Item = Part>) {
        let mut barrier = self.new_barrier(Then::Merge);
        barrier.parts.extend(parts);
        self.start_barrier(barrier);
    }

    fn new_barrier(&mut self, then: Then) -> Barrier {
        let spare = self.spare_commits.barriers.pop().unwrap_or_else(|| Barrier {
            requests: Vec::with_capacity(self.config.requests),
            ..Barrier::default()
        });
        Barrier { then, failed: false, ..spare }
    }

    /// All stores that owe something should be committed, although no request waits for it.
    pub(super) fn commit_owed(&mut self, table: &Table) {
        let begins = |store: &Arc<Store>| store.has_committable() && !store.log().is_committing();
        for (id, ex) in table.exceptions_by_id() {
            if ex.layers.iter().any(begins) {
                self.commit_soon(table, id);
            }
        }
    }

    /// A store owes so much that it should be committed, whether or not a request waits for it.
    pub(super) fn commit_soon(&mut self, table: &Table, id: ExceptionsId) {
        let store = table.exceptions()[id].store();
        let waits =
            |part: &Part| matches!(part, Part::Store { store: of, .. } if Arc::ptr_eq(of, store));
        if !self.barriers.iter().any(|(_, barrier)| barrier.parts.iter().any(waits)) {
            self.want_commit(id);
        }
    }

    /// The next barrier commits the stores of these exceptions.
    pub(super) fn want_commit(&mut self, id: ExceptionsId) {
        self.per_exceptions[id.index()].commit_wanted = true;
    }

    fn start_barrier(&mut self, barrier: Barrier) {
        let index = self.barriers.insert(barrier);
        for part in 0..self.barriers[index].parts.len() {
            if let Part::File { file, .. } = &self.barriers[index].parts[part]
                && file.medium.syncs().is_none()
            {
                let file = file.medium.file;
                self.act_sync(file, Owner::Barrier { index, part });
            }
        }
        self.look_at_barrier(index);
    }

    /// Checks everything that waits for commits, after a wake.
    pub(super) fn look_at_commits(&mut self) {
        self.look_at_invalidations();
        for index in 0..self.rounds.capacity() {
            if self.rounds.get(index).is_some_and(|round| round.stage == Stage::Collect) {
                self.collect(index);
            }
        }
        for index in 0..self.barriers.capacity() {
            if self.barriers.contains(index) {
                self.look_at_barrier(index);
            }
        }
    }

    fn look_at_barrier(&mut self, index: usize) {
        for part in 0..self.barriers[index].parts.len() {
            let (store, mut ticket) = match &self.barriers[index].parts[part] {
                Part::Store { store, ticket } => (store.clone(), *ticket),
                Part::File { file, ticket } => {
                    let (file, ticket) = (file.clone(), *ticket);
                    self.look_at_file(index, part, file, ticket);
                    continue;
                }
                Part::Done => continue,
            };
            if self.has_committed(&store, &mut ticket) {
                // Looked at after the ticket ended: a round that failed says so before it ends.
                self.barriers[index].failed |= !store.state().can_commit();
                self.barriers[index].parts[part] = Part::Done;
            } else {
                self.barriers[index].parts[part] = Part::Store { store, ticket };
            }
        }
        self.maybe_end_barrier(index);
    }

    fn look_at_file(
        &mut self,
        index: usize,
        part: usize,
        file: Arc<Synced>,
        mut ticket: Option<Ticket>,
    ) {
        if self.has_synced(&file, &mut ticket) {
            // Looked at after the ticket ended, as above.
            self.file_synced(index, part, &file);
        } else {
            self.barriers[index].parts[part] = Part::File { file, ticket };
        }
    }

    /// A file of a barrier was synced, well or not.
    fn file_synced(&mut self, index: usize, part: usize, file: &Synced) {
        let barrier = &mut self.barriers[index];
        barrier.parts[part] = Part::Done;
        if let Some(failures) = file.failures() {
            barrier.failed = true;
            // A guest that only reads is not the one whose writes may be lost.
            if self.serves_guest && !self.only_reads && barrier.then == Then::End {
                file.tell(failures);
            }
        }
    }

    /// Whether a commit of `store` that began after this was asked first has ended, or none can succeed.
    /// Takes a ticket if there is none, leads if no worker does.
    fn has_committed(&mut self, store: &Arc<Store>, ticket: &mut Option<Ticket>) -> bool {
        while store.state().can_commit() {
            match store.log().advance(ticket, self.worker.bit()) {
                Turn::Ended => break,
                Turn::Wait => return false,
                Turn::Lead => self.lead(store.clone()),
            }
        }
        true
    }

    fn maybe_end_barrier(&mut self, index: usize) {
        if !self.barriers[index].parts.iter().all(|part| matches!(part, Part::Done)) {
            return;
        }
        let mut barrier = self.barriers.remove(index);
        barrier.parts.clear();
        if barrier.then == Then::Merge {
            self.merge_synced = Some(if barrier.failed { Err(Errno::EIO) } else { Ok(()) });
            self.freed = true;
        }
        for index in barrier.requests.drain(..) {
            match barrier.then {
                Then::Again => self.ready.push_back(index),
                Then::Merge => unreachable!("no request waits for a merge's syncs"),
                Then::End => {
                    self.requests[index].failed |= barrier.failed;
                    self.end_request(index);
                }
            }
        }
        self.spare_commits.barriers.push(barrier);
    }

    /// A file in memory was synced.
    pub(super) fn barrier_synced(&mut self, index: usize, part: usize, result: Result<(), Errno>) {
        let Part::File { file, .. } = &self.barriers[index].parts[part] else {
            unreachable!("it is done when its sync has ended")
        };
        let file = file.clone();
        if result.is_err() {
            file.medium.sync_failed();
        }
        self.file_synced(index, part, &file);
        self.maybe_end_barrier(index);
    }

    fn lead(&mut self, store: Arc<Store>) {
        // Since it was looked at last, another's round may have failed: then what it did not commit
        // must not be committed now.
        if !store.state().can_commit() {
            return self.worker.all().wake(store.log().end_round(false).wake);
        }
        let tail = store.take_tail();
        let next = store.log().committed();
        let upto = store.log().next();
        let round = Round {
            store,
            tail,
            upto,
            ended: next,
            next,
            entries: 0,
            stage: Stage::Collect,
            wrote: false,
            meta: self.spare_commits.metas.pop().unwrap_or_default(),
        };
        let index = self.rounds.insert(round);
        self.collect(index);
    }

    fn collect(&mut self, index: usize) {
        let round = &mut self.rounds[index];
        round.ended = round.store.log().first_unended(round.ended, round.upto);
        if round.ended == round.upto {
            round.count_entries();
            round.stage = Stage::Zero;
            self.zero_ahead(index);
        }
    }

    fn zero_ahead(&mut self, index: usize) {
        let round = &mut self.rounds[index];
        let entries = round.entries;
        let device_chunks = round.store.geometry().device_chunks;
        let tail = &round.tail;
        let area = if entries == 0 { None } else { tail.area_to_zero(entries, device_chunks) };
        match area {
            Some(area) => self.zero_area(index, area),
            None => {
                round.stage = Stage::SyncData;
                self.sync_round(index);
            }
        }
    }

    fn zero_area(&mut self, index: usize, area: StoreChunk) {
        let round = &self.rounds[index];
        let chunk = round.store.geometry().chunk;
        let range = FileRange {
            file: round.store.file(),
            offset: chunk.store_offset(area),
            len: chunk.bytes(),
        };
        let first = self.segs.len();
        let op = if chunk.bytes() <= WRITTEN_ZEROES {
            self.segs.push(Seg::Zero { len: chunk.bytes() as u32 });
            IoOp::Write
        } else {
            IoOp::Zero
        };
        self.act(op, range, first, Owner::Round(index));
    }

    fn sync_round(&mut self, index: usize) {
        let store = &self.rounds[index].store;
        store.log().sync_begins();
        let file = store.file();
        self.act_sync(file, Owner::Round(index));
    }

    fn write_entries(&mut self, index: usize) {
        let round = &mut self.rounds[index];
        let (store, upto) = (&round.store, round.upto);
        let mut next = round.next;
        let mut entries = std::iter::from_fn(|| {
            while next < upto {
                let data = next;
                next = DataIndex(next.0 + 1);
                if let Some(old) = store.log().entry(data) {
                    return Some(Entry { old, new: store.place_of(data, 1).0 });
                }
            }
            None
        });
        // An iterator that stops at an area's end has taken no entry it does not write: `write`
        // asks only while there is room.
        let offset = round.tail.write(&mut entries, &mut round.meta);
        round.next = next;
        let Some(offset) = offset else { return self.sync_entries(index) };
        round.wrote = true;
        let (file, len) = (round.store.file(), round.meta.len());
        let first = self.segs.len();
        self.segs.push(MetaOf::Round.seg(index, len));
        let range = FileRange { file, offset, len: len as u64 };
        self.act(IoOp::Write, range, first, Owner::Round(index));
    }

    fn sync_entries(&mut self, index: usize) {
        let round = &mut self.rounds[index];
        if !round.wrote {
            return self.end_round(index, Ok(()));
        }
        round.stage = Stage::SyncEntries;
        self.sync_round(index);
    }

    pub(super) fn round_io_done(&mut self, table: &Table, index: usize, result: Result<(), Errno>) {
        if result.is_err() {
            let Round { store, stage, upto, .. } = &self.rounds[index];
            let store = store.clone();
            match stage {
                Stage::SyncData => store.log().mark_unsynced(store.log().committed()),
                // The data of this round is durable, but perhaps not what was written meanwhile.
                Stage::SyncEntries => store.log().mark_unsynced(*upto),
                Stage::Collect | Stage::Zero | Stage::Write => {}
            }
            self.commit_failed(table, &store);
            return self.end_round(index, result);
        }
        let round = &mut self.rounds[index];
        if matches!(round.stage, Stage::SyncData | Stage::SyncEntries) {
            round.store.log().sync_ended();
        }
        match round.stage {
            Stage::Collect => unreachable!("a round that collects has nothing in flight"),
            Stage::Zero => {
                round.tail.zeroed();
                self.zero_ahead(index);
            }
            // It failed for another: this sync was not told.
            Stage::SyncData if !round.store.state().can_commit() => {
                self.end_round(index, Err(Errno::EIO));
            }
            Stage::SyncData => {
                round.stage = Stage::Write;
                self.write_entries(index);
            }
            Stage::Write if round.next < round.upto => self.write_entries(index),
            Stage::Write => self.sync_entries(index),
            Stage::SyncEntries => self.end_round(index, Ok(())),
        }
    }

    fn commit_failed(&mut self, table: &Table, store: &Arc<Store>) {
        // Its merge may be waiting for its turn, or was stopped before a restart.
        let is_merged = store.merge_mark() != MergeMark::None
            || table.flush_set().merged.iter().any(|merged| Arc::ptr_eq(merged, store));
        if !store.is_guest_disk() && !is_merged {
            return self.invalidate(store);
        }
        // Invalid, the device of a store that is merged would be an origin with half of the snapshot
        // in it.
        self.worker.all().wake(store.commit_failed());
    }

    pub(super) fn end_round(&mut self, index: usize, result: Result<(), Errno>) {
        let Round { store, tail, upto, meta, .. } = self.rounds.remove(index);
        self.spare_commits.metas.push(meta);
        store.return_tail(tail);
        if result.is_ok() {
            store.log().set_committed(upto);
        }
        // In a store that became unusable meanwhile nobody waits for another round, but for the end
        // of this one, to mark it.
        let again = result.is_ok() && !self.stopping && store.state().can_commit();
        let RoundEnd { wake, lead } = store.log().end_round(again);
        self.worker.all().wake(wake);
        self.freed = true;
        if lead.is_some() {
            self.lead(store);
        }
    }
}
