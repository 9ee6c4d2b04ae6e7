//! The requests that one worker has in flight, and the names by which completions find them.
//!
//! Owns the slabs of requests, claims, reads, runs, barriers, rounds and syncs, the outgoing queues
//! and the list of parked requests. The files beside this one say how each of them proceeds. Keeps
//! I10: a request leaves its slab once, when its last part ended; and I12: each slab has a bound, and
//! who finds one full waits.

use std::collections::VecDeque;
use std::sync::Arc;

use slab::Slab;

use super::claim::Claimed;
use super::claims::{OldRead, Run};
use super::commit::{Barrier, Round, SpareCommits};
use super::invalidate::Invalidation;
use super::lists::{Gathered, SpareLists};
use super::merge::{MergeProgress, RunningMerge};
use super::pending::{Asker, Pending, WaitsFor};
use super::room::{Destination, NoRoomIn};
use super::scratch::{Buf, Scratch};
use super::tag::{MetaOf, Owner};
use crate::io::{Action, Completion, Errno, FileId, IoOp, Seg};
use crate::request::{Op, Request, Status, Token};
use crate::table::Table;
use crate::target::{Medium, Target};
use crate::workers::{TrackSlot, Worker};

/// Bounds of an engine's memory.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Bytes of the host's scratch arena.
    pub scratch: u32,
    /// Requests at a time; the host must not exceed this.
    pub requests: usize,
    /// Chunks claimed at a time of each snapshot.
    pub claims: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig { scratch: 8 << 20, requests: 2048, claims: 2048 }
    }
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileRange {
    pub(super) file: FileId,
    /// First byte.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
}

impl FileRange {
    /// For what needs no file: `len` bytes of none.
    pub(super) fn nowhere(len: u64) -> FileRange {
        FileRange { file: FileId::NONE, offset: 0, len }
    }
}

/// What concerns one of the table's exceptions.
#[derive(Debug)]
pub(super) struct PerExceptions {
    /// Chunks of its claims.
    pub(super) claimed: u64,
    /// Its stores are to be committed.
    pub(super) commit_wanted: bool,
    /// Claims that have their bytes and are to be written in runs.
    pub(super) gathered: Gathered,
}

impl PerExceptions {
    fn new() -> Self {
        PerExceptions { claimed: 0, commit_wanted: false, gathered: Gathered::with_room() }
    }

    /// It concerns another table from now on; what memory it has, it keeps.
    fn reset(&mut self) {
        debug_assert!(self.gathered.is_empty());
        (self.claimed, self.commit_wanted) = (0, false);
    }
}

/// See the module's description.
pub(super) struct Core {
    pub(super) worker: Worker,
    pub(super) config: EngineConfig,
    /// Who asks is a guest: it knows of a flush that failed.
    pub(super) serves_guest: bool,
    pub(super) requests: Slab<Pending>,
    pub(super) claims: Slab<Claimed>,
    /// For each of the table's exceptions.
    pub(super) per_exceptions: Vec<PerExceptions>,
    pub(super) old_reads: Slab<OldRead>,
    pub(super) runs: Slab<Run>,
    pub(super) barriers: Slab<Barrier>,
    pub(super) rounds: Slab<Round>,
    /// Files that this worker syncs for all.
    pub(super) syncs: Slab<Arc<Medium>>,
    pub(super) invalidations: Slab<Invalidation>,
    pub(super) merge: Option<Box<RunningMerge>>,
    /// The syncs that the merge waits for have ended, well or not, and it has not seen this yet.
    pub(super) merge_synced: Option<Result<(), Errno>>,
    pub(super) scratch: Scratch,
    /// Requests that are ready to be dispatched.
    pub(super) ready: VecDeque<usize>,
    /// Requests that wait for a wake.
    pub(super) parked: Vec<usize>,
    /// Requests that wait for a barrier over everything, then end.
    pub(super) to_end: Vec<usize>,
    /// Requests that wait for the commits that are wanted, then are dispatched again.
    pub(super) to_commit: Vec<usize>,
    /// Claims whose old bytes have not been read yet: they are at the end of a step, or when a
    /// buffer is free.
    pub(super) fresh: Vec<usize>,
    /// The buffers of the read that is being started.
    pub(super) read_bufs: Vec<Buf>,
    /// Large claims that wait for a buffer.
    pub(super) slices_waiting: VecDeque<usize>,
    /// The table's files, sorted.
    pub(super) files: Vec<FileId>,
    /// Where a write that had waited for room found some.
    pub(super) found_room: Vec<NoRoomIn>,
    /// Lists of claims, so that none is allocated for a read or a run.
    pub(super) spare_lists: SpareLists,
    pub(super) spare_commits: SpareCommits,
    pub(super) actions: VecDeque<Action>,
    pub(super) segs: Vec<Seg>,
    pub(super) finished: VecDeque<(Token, Status)>,
    pub(super) in_flight: usize,
    /// There were too many of them, and requests get no further pieces: younger ones neither.
    pub(super) crowded: bool,
    pub(super) stopping: bool,
    /// Its requests write nothing, whatever the table allows.
    pub(super) only_reads: bool,
    /// A resource of this worker was freed: parked requests may proceed.
    pub(super) freed: bool,
}

impl Core {
    pub(super) fn new(worker: Worker, config: EngineConfig) -> Self {
        Core {
            worker,
            config,
            serves_guest: true,
            requests: Slab::with_capacity(config.requests),
            claims: Slab::with_capacity(config.claims),
            per_exceptions: Vec::new(),
            old_reads: Slab::with_capacity(config.claims),
            runs: Slab::with_capacity(64),
            barriers: Slab::with_capacity(16),
            rounds: Slab::with_capacity(4),
            syncs: Slab::with_capacity(16),
            invalidations: Slab::new(),
            merge: None,
            merge_synced: None,
            scratch: Scratch::new(config.scratch),
            ready: VecDeque::with_capacity(config.requests),
            parked: Vec::with_capacity(config.requests),
            to_end: Vec::with_capacity(config.requests),
            to_commit: Vec::with_capacity(config.requests),
            fresh: Vec::with_capacity(config.claims),
            read_bufs: Vec::new(),
            slices_waiting: VecDeque::new(),
            files: Vec::new(),
            found_room: Vec::new(),
            spare_lists: SpareLists::default(),
            spare_commits: SpareCommits::default(),
            actions: VecDeque::with_capacity(config.requests),
            segs: Vec::with_capacity(config.requests * 4),
            finished: VecDeque::with_capacity(config.requests),
            in_flight: 0,
            crowded: false,
            stopping: false,
            only_reads: false,
            freed: false,
        }
    }

    /// Prepares to serve `table`: sizes the buffers for its chunks.
    pub(super) fn adopt(&mut self, table: &Table) {
        let largest = table.exceptions().iter().map(|ex| ex.chunk().bytes()).max().unwrap_or(4096);
        let copies_out =
            |line: &crate::table::Line| matches!(line.target, Target::Origin(_) | Target::Merge(_));
        let least = if table.lines().iter().any(copies_out) { 64 << 10 } else { 4096 };
        self.scratch.divide(largest.clamp(least, 256 << 10) as u32);
        let exceptions = table.exceptions().len();
        self.per_exceptions.iter_mut().for_each(PerExceptions::reset);
        self.per_exceptions.resize_with(exceptions, PerExceptions::new);
        // No claim allocates.
        let most = self.config.claims * exceptions;
        self.claims.reserve(most);
        self.old_reads.reserve(most);
        self.fresh.reserve(most);
        self.files.clear();
        self.files.extend(table.files());
    }

    pub(super) fn admit(&mut self, request: Request) {
        let Request { token, op, sector, len, durable } = request;
        let durable = op == Op::Flush || (durable && op != Op::Read);
        self.take_in(Pending::new(Asker::Host(token), op, sector.bytes(), len, durable));
    }

    pub(super) fn take_in(&mut self, pending: Pending) {
        let index = self.requests.insert(pending);
        self.ready.push_back(index);
    }

    /// The host's requests that were taken so far, and change something, end durable, including
    /// those that are held.
    pub(super) fn make_durable(&mut self) {
        for (_, pending) in &mut self.requests {
            pending.durable |= pending.asker != Asker::Merge && pending.op != Op::Read;
        }
    }

    /// All parked requests may proceed, from their beginning: any part that was done was done
    /// under another table. A batch that they waited for was another table's, too.
    pub(super) fn replay(&mut self) {
        self.drop_merge();
        for &index in self.parked.iter().chain(&self.ready) {
            let pending = &mut self.requests[index];
            debug_assert_eq!(pending.outstanding, 0);
            (pending.cursor, pending.again) = (0, None);
            if pending.waits == WaitsFor::Batch {
                pending.waits = WaitsFor::Wake;
            }
        }
        self.freed = true;
    }

    /// The merge that ran here is gone; its requests hold nothing.
    fn drop_merge(&mut self) {
        (self.merge, self.merge_synced) = (None, None);
        let Core { requests, parked, ready, .. } = self;
        let mut keep = |index: &usize| {
            let merges = requests[*index].asker == Asker::Merge;
            if merges {
                requests.remove(*index);
            }
            !merges
        };
        parked.retain(&mut keep);
        ready.retain(keep);
    }

    /// Nothing can proceed without a table.
    pub(super) fn ignore_wake(&self) {
        self.worker.take_wake();
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight == 0
            && self.actions.is_empty()
            && self.claims.is_empty()
            && self.rounds.is_empty()
            && self.syncs.is_empty()
            && self.invalidations.is_empty()
            && self.barriers.is_empty()
            // Durable requests need a sync of the files of the table that wrote them.
            && self.to_end.is_empty()
            && self.merge.as_ref().is_none_or(|job| job.is_quiet() || self.is_merge_held(job))
            && self.finished.is_empty()
    }

    /// Whether the merge waits for nothing but room.
    fn is_merge_held(&self, job: &RunningMerge) -> bool {
        let held = |index: &&usize| {
            let pending = &self.requests[**index];
            pending.waits == WaitsFor::Room && pending.asker == Asker::Merge
        };
        job.asked().is_some_and(|asked| asked == self.parked.iter().filter(held).count())
    }

    /// Ends the requests that wait for room in a store, with an error.
    pub(super) fn fail_held_for_room(&mut self) {
        let Core { requests, parked, .. } = self;
        let mut failed = Vec::new();
        parked.retain(|&index| {
            let lacks_room = requests[index].waits == WaitsFor::Room;
            if lacks_room {
                failed.push(index);
            }
            !lacks_room
        });
        for index in failed {
            let pending = &mut self.requests[index];
            (pending.failed, pending.no_space, pending.waits) = (true, true, WaitsFor::Parts);
            self.maybe_ended(index);
        }
    }

    pub(super) fn fail_held(&mut self) {
        self.ready.clear();
        self.parked.clear();
        self.to_end.clear();
        self.to_commit.clear();
        for pending in self.requests.drain() {
            if let Asker::Host(token) = pending.asker {
                let lacks_room = pending.waits == WaitsFor::Room;
                let status = if lacks_room { Status::NoSpace } else { Status::Error };
                self.finished.push_back((token, status));
            }
        }
    }

    /// One turn: see [`super::Engine::step`].
    pub(super) fn step(&mut self, table: &Table) {
        if self.actions.is_empty() {
            self.segs.clear();
        }
        loop {
            if self.worker.take_wake() || std::mem::take(&mut self.freed) {
                self.freed = false;
                // Before those that came later.
                self.parked.drain(..).rev().for_each(|index| self.ready.push_front(index));
                self.look_at_commits();
            }
            while let Some(index) = self.ready.pop_front() {
                self.dispatch(table, index);
            }
            self.start_old_reads(table);
            self.step_merge(table);
            self.write_gathered(table);
            self.start_barriers(table);
            self.say_found_room(table);
            if self.ready.is_empty() && !self.freed {
                break;
            }
        }
    }

    pub(super) fn complete(&mut self, table: &Table, completion: Completion) {
        self.in_flight -= 1;
        self.look_at_crowd();
        let Completion { tag, result } = completion;
        match Owner::of(tag) {
            Owner::Request { index, to } => {
                if let Some(track) = to.track() {
                    self.worker.untrack(track);
                    self.freed = true;
                }
                let pending = &mut self.requests[index];
                if is_full(result) && pending.op != Op::Read {
                    return self.found_no_room(table, index, to);
                }
                pending.failed |= result.is_err();
                self.part_ended(index);
            }
            Owner::OldRead(index) => self.old_bytes_read(table, index, result),
            Owner::Run(index) => self.run_written(table, index, result),
            Owner::Slice { claim_index, step } => {
                self.slice_done(table, claim_index, step, result);
            }
            Owner::Barrier { index, part } => self.barrier_synced(index, part, result),
            Owner::Sync(index) => {
                self.synced(index, result);
                self.look_at_commits();
            }
            Owner::Round(index) => self.round_io_done(table, index, result),
            Owner::Invalidation(index) => self.invalidation_io_done(index, result),
            Owner::Merge { step, index } => {
                self.merge_io_done(table, index, step, result);
            }
        }
    }

    /// Queues an action whose parts were pushed to `segs` since `first`.
    pub(super) fn act(&mut self, op: IoOp, range: FileRange, first: usize, owner: Owner) {
        self.in_flight += 1;
        let FileRange { file, offset, len } = range;
        let segs = (first as u32, (self.segs.len() - first) as u32);
        self.actions.push_back(Action { op, file, offset, len, segs, tag: owner.to_tag() });
    }

    /// Queues a sync of `file`.
    pub(super) fn act_sync(&mut self, file: FileId, owner: Owner) {
        let range = FileRange { file, offset: 0, len: 0 };
        self.act(IoOp::Sync, range, self.segs.len(), owner);
    }

    /// Queues a request's own action.
    pub(super) fn act_for_request(
        &mut self,
        op: IoOp,
        range: FileRange,
        index: usize,
        track: Option<TrackSlot>,
    ) {
        let first = self.segs.len();
        let pending = &mut self.requests[index];
        pending.outstanding += 1;
        if let (IoOp::Read | IoOp::Write | IoOp::Clear, Asker::Host(token)) = (op, pending.asker) {
            let at = pending.cursor as u32;
            self.segs.push(Seg::Guest { token, offset: at, len: range.len as u32 });
        }
        // What reads needs no room.
        let file = if op == IoOp::Read { None } else { self.files.binary_search(&range.file).ok() };
        let to = Destination::new(track, file);
        self.act(op, range, first, Owner::Request { index, to });
    }

    /// A part of a request ended. If it failed, the request was marked before.
    pub(super) fn part_ended(&mut self, index: usize) {
        self.requests[index].outstanding -= 1;
        self.maybe_ended(index);
    }

    /// Looks whether a request's last part has ended, and where it goes then:
    ///
    /// ```text
    /// last part ended ─┬─ failed ────────────────────────────────────→ ends with an error
    ///                  ├─ a piece found no room, and may wait for it ─→ dispatched from there again
    ///                  ├─ to be durable ──────────────────────────────→ a barrier, then ends
    ///                  └─ else ───────────────────────────────────────→ ends
    /// ```
    pub(super) fn maybe_ended(&mut self, index: usize) {
        let pending = &mut self.requests[index];
        if pending.waits != WaitsFor::Parts || pending.outstanding != 0 {
            return;
        }
        if !pending.failed {
            if let Some(again) = pending.again.take() {
                (pending.cursor, pending.waits) = (again, WaitsFor::Dispatch);
                self.ready.push_back(index);
                return;
            }
            debug_assert_eq!(pending.cursor, pending.len, "it was dispatched to its end");
            self.found_room.extend(pending.no_room_in.take());
        }
        if pending.durable && !pending.failed {
            pending.waits = WaitsFor::Commit;
            self.to_end.push(index);
            return;
        }
        self.end_request(index);
    }

    pub(super) fn end_request(&mut self, index: usize) {
        let pending = self.requests.remove(index);
        debug_assert_eq!(pending.outstanding, 0);
        match pending.asker {
            Asker::Host(token) => {
                let status = match (pending.failed, pending.no_space) {
                    (false, _) => Status::Ok,
                    (true, false) => Status::Error,
                    (true, true) => Status::NoSpace,
                };
                self.finished.push_back((token, status));
            }
            Asker::Merge => self.merge_protected(!pending.failed),
        }
    }

    /// Parks a request until this worker is woken.
    pub(super) fn park(&mut self, index: usize, waits: WaitsFor) {
        self.requests[index].waits = waits;
        self.parked.push(index);
    }

    pub(super) fn meta(&self, slot: u32) -> &[u8] {
        match MetaOf::at(slot) {
            (MetaOf::Round, index) => self.rounds[index].meta(),
            (MetaOf::Invalidation, index) => self.invalidations[index].header(),
            (MetaOf::Merge, index) => self.merge.as_ref().map_or(&[], |job| job.meta(index)),
        }
    }

    #[cfg(any(test, feature = "sim"))]
    pub(super) fn killed(&mut self) {
        self.worker.killed();
        // Those that wait for these are gone, too.
        self.claims.clear();
        self.runs.clear();
        self.syncs.clear();
        self.rounds.clear();
        self.invalidations.clear();
    }

    pub(super) fn merge_progress(&self) -> Option<MergeProgress> {
        self.merge.as_ref().map(|job| job.progress())
    }
}

/// Whether a failure means that the file system below had no room, or none for the store's owner.
pub(super) fn is_full(result: Result<(), Errno>) -> bool {
    result.is_err_and(Errno::is_no_space)
}
