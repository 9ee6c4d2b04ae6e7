//! Moving chunks: claim, read what is missing, write in runs, publish.
//!
//! Owns chunks from their claim to their publication. A chunk gets a place in the store only when
//! its bytes are available, so that a slow or failed read neither delays the log nor leaves a hole
//! in it (I13); chunks that are ready in one batch share one run and one write. The order at the
//! end: the slot in the log, then the word in the table, then the waiting requests (I11: an
//! acknowledged write is in the log before anyone can know of it). Never knows why a chunk is
//! moved.

use std::ops::Range;

use super::claim::{Claimed, Fill, Sliced};
use super::core::{Core, FileRange, is_full};
use super::dispatch::Flow;
use super::lists::Gathered;
use super::pending::{Asker, WaitsFor};
use super::scratch::Buf;
use super::tag::Owner;
use crate::cow::{Allocation, Persistence};
use crate::exception::{ChunkState, Place};
use crate::io::{Errno, IoOp, Seg};
use crate::request::Op;
use crate::table::Table;
use crate::target::{Decision, Exceptions, ExceptionsId};
use crate::units::{Chunk, DataIndex};
use crate::wake::WakeSet;

/// Chunks written by one action, and their bytes.
const RUN_CHUNKS: u64 = 256;
const RUN_BYTES: u64 = 1 << 20;

/// A read of old bytes into buffers, for one claim or for neighbours.
#[derive(Debug)]
pub(super) struct OldRead {
    claims: Vec<usize>,
    outstanding: u32,
    failed: bool,
}

/// What was begun to read a range of old bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadsBegun {
    /// Actions.
    pub(super) count: u32,
    /// They cover the range: there is none for a part that cannot be read.
    pub(super) complete: bool,
}

/// Claims that are written to adjacent chunks of the store.
#[derive(Debug)]
pub(super) struct Run {
    first: DataIndex,
    claims: Vec<usize>,
}

/// How many chunks one action may write.
fn most_in_run(ex: &Exceptions) -> u64 {
    (RUN_BYTES / ex.chunk().bytes()).clamp(1, RUN_CHUNKS)
}

impl Core {
    /// A guest's write to a chunk that is not in the top store, or to several of them.
    pub(super) fn move_chunk(
        &mut self,
        table: &Table,
        index: usize,
        id: ExceptionsId,
        chunk: Chunk,
        seen: ChunkState,
        len: u64,
    ) -> Flow {
        let room = self.room_for_claims(id);
        if room == 0 {
            // One of this worker's own claims ends first, and then the parked requests are checked
            // again.
            self.park(index, WaitsFor::Wake);
            return Flow::Aside;
        }
        let ex = &table.exceptions()[id];
        let bytes = ex.chunk().bytes();
        let most = if self.is_large(ex) { 1 } else { most_in_run(ex).min(room) };
        let most = (len / bytes).clamp(1, most);
        let Ok(claim) = ex.table.claim_run(chunk, most, seen) else { return Flow::On };
        let count = claim.count();
        let len = len.min(count * bytes);
        let pending = &mut self.requests[index];
        let at = pending.cursor;
        let within = table.piece(pending.start + at, 1).offset & (bytes - 1);
        let fill = match pending.op {
            Op::WriteZeroes { .. } => Fill::Zero { within, len },
            _ => Fill::Guest { at, within, len },
        };
        pending.outstanding += 1;
        pending.cursor += len;
        let claimed = Claimed::new(claim, id, index, at, fill);
        let is_covered = fill.covers(0, claimed.valid_len(ex));
        let claim_index = self.insert_claim(claimed);
        if is_covered || self.is_large(ex) {
            self.gathered(id).push_back(claim_index, count);
        } else {
            self.fresh.push(claim_index);
        }
        Flow::On
    }

    /// Claims a chunk of the origin that a snapshot needs a copy of. False if its state has
    /// changed.
    pub(super) fn claim_copy(
        &mut self,
        table: &Table,
        index: usize,
        id: ExceptionsId,
        chunk: Chunk,
    ) -> bool {
        if self.room_for_claims(id) == 0 {
            return true;
        }
        let ex = &table.exceptions()[id];
        let Ok(claim) = ex.table.claim(chunk, ChunkState::Unmapped) else { return false };
        self.requests[index].outstanding += 1;
        let from = self.requests[index].cursor;
        let claimed = Claimed::new(claim, id, index, from, Fill::Nothing);
        let claim_index = self.insert_claim(claimed);
        if self.is_large(ex) {
            self.gathered(id).push_back(claim_index, 1);
        } else {
            self.fresh.push(claim_index);
        }
        true
    }

    /// How many more chunks of a snapshot may be claimed: one whose store hangs holds up no other.
    fn room_for_claims(&self, id: ExceptionsId) -> u64 {
        (self.config.claims as u64).saturating_sub(self.per_exceptions[id.index()].claimed)
    }

    fn gathered(&mut self, id: ExceptionsId) -> &mut Gathered {
        &mut self.per_exceptions[id.index()].gathered
    }

    fn insert_claim(&mut self, claimed: Claimed) -> usize {
        self.per_exceptions[claimed.exceptions.index()].claimed += claimed.claim.count();
        self.claims.insert(claimed)
    }

    fn remove_claim(&mut self, claim_index: usize) -> Claimed {
        let removed = self.claims.remove(claim_index);
        self.per_exceptions[removed.exceptions.index()].claimed -= removed.claim.count();
        removed
    }

    fn is_large(&self, ex: &Exceptions) -> bool {
        ex.chunk().bytes() > u64::from(self.scratch.size())
    }

    /// The bytes of the device that a copy of a claimed chunk must hold.
    fn span(&self, table: &Table, claim_index: usize) -> Range<u64> {
        let claimed = &self.claims[claim_index];
        let ex = &table.exceptions()[claimed.exceptions];
        let start = ex.chunk().start_of(claimed.claim.chunk());
        start..start + ex.valid_len(claimed.claim.chunk())
    }

    /// Reads the old bytes of the step's fresh claims; neighbours, and the same range in several
    /// snapshots, share a read.
    pub(super) fn start_old_reads(&mut self, table: &Table) {
        if self.fresh.is_empty() || self.scratch.free() == 0 {
            return;
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_unstable_by_key(|&claim_index| {
            let elsewhere = self.claims[claim_index].claim.before() != ChunkState::Unmapped;
            let Range { start, end } = self.span(table, claim_index);
            (elsewhere, start, end, self.claims[claim_index].exceptions)
        });
        let mut rest = &fresh[..];
        while !rest.is_empty() && self.scratch.free() > 0 {
            let (group, behind) = rest.split_at(self.joined(table, rest));
            rest = behind;
            self.start_old_read(table, group);
        }
        let waiting = fresh.len() - rest.len();
        fresh.drain(..waiting);
        // Claims whose read could not begin have been put back by now.
        fresh.append(&mut self.fresh);
        self.fresh = fresh;
    }

    /// How many of `claims`, sorted by their start, fit one read of one origin into consecutive
    /// buffers, each claim in one buffer.
    fn joined(&self, table: &Table, claims: &[usize]) -> usize {
        let origin =
            |claim_index: usize| &table.exceptions()[self.claims[claim_index].exceptions].origin;
        let may_share = |claim_index: usize| {
            let Claimed { claim, alone, .. } = &self.claims[claim_index];
            claim.before() == ChunkState::Unmapped && !alone
        };
        if !may_share(claims[0]) {
            return 1;
        }
        let size = u64::from(self.scratch.size());
        let room = (self.scratch.free() as u64 * size).min(RUN_BYTES.max(size));
        let Range { start, mut end } = self.span(table, claims[0]);
        let fits = |&&claim_index: &&usize| {
            let Range { start: from, end: to } = self.span(table, claim_index);
            let fits = may_share(claim_index)
                && origin(claim_index).is_same(origin(claims[0]))
                && from <= end
                && to - start <= room
                && (from - start) / size == (to - 1 - start) / size;
            end = end.max(to);
            fits
        };
        1 + claims[1..].iter().take_while(fits).count()
    }

    fn start_old_read(&mut self, table: &Table, group: &[usize]) {
        let Range { start, mut end } = self.span(table, group[0]);
        let size = u64::from(self.scratch.size());
        let mut bufs = std::mem::take(&mut self.read_bufs);
        bufs.clear();
        for &claim_index in group {
            let Range { start: from, end: to } = self.span(table, claim_index);
            let (which, offset) = ((from - start) / size, (from - start) % size);
            if let Some(&buf) = bufs.get(which as usize) {
                self.scratch.share(buf);
            } else {
                bufs.push(self.scratch.take().expect("as many are free as the group needs"));
            }
            self.claims[claim_index].buf = Some((bufs[which as usize], offset as u32));
            end = end.max(to);
        }
        let mut claims = self.spare_lists.take();
        claims.extend_from_slice(group);
        let index = self.old_reads.insert(OldRead { claims, outstanding: 0, failed: false });
        let ReadsBegun { count, complete } =
            self.read_old(table, group[0], 0..end - start, &bufs, Owner::OldRead(index));
        self.read_bufs = bufs;
        let read = &mut self.old_reads[index];
        (read.outstanding, read.failed) = (count, !complete);
        if count == 0 {
            self.old_read_ended(table, index);
        }
    }

    /// Reads a range of a claimed chunk's old bytes (past its end, those of its neighbours) into
    /// `bufs`, one after the other.
    pub(super) fn read_old(
        &mut self,
        table: &Table,
        claim_index: usize,
        range: Range<u64>,
        bufs: &[Buf],
        owner: Owner,
    ) -> ReadsBegun {
        let claimed = &self.claims[claim_index];
        let ex = &table.exceptions()[claimed.exceptions];
        let start = ex.chunk().start_of(claimed.claim.chunk()) + range.start;
        let before = claimed.claim.before();
        let len = range.end - range.start;
        let (mut count, mut done) = (0, 0);
        while done < len {
            let decision = match before {
                ChunkState::Mapped(place) => {
                    let (file, offset) = ex.file_offset(place, range.start);
                    Decision::Pass { file, offset, len, track: None }
                }
                _ => ex.origin.decide(Op::Read, start + done, len - done),
            };
            let (op, part) = match decision {
                Decision::Pass { file, offset, len, .. } => {
                    (IoOp::Read, FileRange { file, offset, len })
                }
                Decision::Clear { len } => (IoOp::Clear, FileRange::nowhere(len)),
                _ => return ReadsBegun { count, complete: false },
            };
            let first = self.segs.len();
            self.push_old(bufs, done, part.len);
            self.act(op, part, first, owner);
            count += 1;
            done += part.len;
        }
        ReadsBegun { count, complete: true }
    }

    /// Pushes the range `[from, from + len)` of all `bufs` together.
    fn push_old(&mut self, bufs: &[Buf], from: u64, len: u64) {
        let size = u64::from(self.scratch.size());
        let (mut at, to) = (from, from + len);
        while at < to {
            let within = at % size;
            let count = (size - within).min(to - at);
            let buf = bufs[(at / size) as usize];
            self.segs.push(self.scratch.seg(buf, within as u32, count as u32));
            at += count;
        }
    }

    pub(super) fn old_bytes_read(
        &mut self,
        table: &Table,
        index: usize,
        result: Result<(), Errno>,
    ) {
        let read = &mut self.old_reads[index];
        read.outstanding -= 1;
        read.failed |= result.is_err();
        if read.outstanding == 0 {
            self.old_read_ended(table, index);
        }
    }

    fn old_read_ended(&mut self, table: &Table, index: usize) {
        let mut read = self.old_reads.remove(index);
        let was_shared = read.claims.len() > 1;
        for claim_index in read.claims.drain(..) {
            if !read.failed {
                let id = self.claims[claim_index].exceptions;
                self.gathered(id).push_back(claim_index, 1);
            } else if was_shared {
                // Each claim is read again on its own: one that cannot be read must not fail the
                // others.
                let Claimed { buf, alone, .. } = &mut self.claims[claim_index];
                *alone = true;
                let buf = buf.take();
                self.release(table, buf);
                self.fresh.push(claim_index);
            } else {
                self.claim_failed(table, claim_index, Err(Errno::EIO));
            }
        }
        self.spare_lists.give_back(read.claims);
    }

    /// Gives places to the claims that have their bytes, and writes them as runs. A store that has
    /// to be committed first delays only its own claims.
    pub(super) fn write_gathered(&mut self, table: &Table) {
        for (id, _) in table.exceptions_by_id() {
            while !self.gathered(id).is_empty() && self.write_some_gathered(table, id) {}
        }
    }

    /// False if a commit has to make room first.
    fn write_some_gathered(&mut self, table: &Table, id: ExceptionsId) -> bool {
        let ex = &table.exceptions()[id];
        let log = ex.store().log();
        if !ex.store().state().can_commit() {
            // A commit cannot make room any more, and written chunks could not be read.
            self.first_gathered_failed(table, id, Errno::EIO);
            return true;
        }
        let large = self.is_large(ex);
        let most = if large { 1 } else { most_in_run(ex) };
        let wanted = most.min(self.gathered(id).chunks());
        match ex.store().allocate(wanted) {
            Allocation::Run { first, .. } if large => {
                let (claim_index, _) = self.gathered(id).pop_front().expect("it is not empty");
                self.claims[claim_index].sliced = Some(Sliced::new(first));
                self.next_slice(table, claim_index);
            }
            Allocation::Run { first, count } => self.write_runs(ex, id, first, count),
            Allocation::LogFull => {
                self.commit_soon(table, id);
                return false;
            }
            Allocation::StoreFull => self.first_gathered_failed(table, id, Errno::ENOSPC),
        }
        ex.store().look_at_threshold();
        if log.wants_commit() {
            self.commit_soon(table, id);
        }
        true
    }

    fn first_gathered_failed(&mut self, table: &Table, id: ExceptionsId, errno: Errno) {
        let (claim_index, _) = self.gathered(id).pop_front().expect("it is not empty");
        self.claim_failed(table, claim_index, Err(errno));
    }

    fn write_runs(&mut self, ex: &Exceptions, id: ExceptionsId, first: DataIndex, count: u64) {
        let mut done = 0;
        while done < count {
            let index = DataIndex(first.0 + done);
            let (place, together) = ex.store().place_of(index, count - done);
            let claims = self.take_gathered(ex, id, together);
            let from = self.segs.len();
            for &claim_index in &claims {
                let (claimed, bytes) = (&self.claims[claim_index], ex.chunk().bytes());
                let (valid, all) = (claimed.valid_len(ex), claimed.claim.count() * bytes);
                self.push_chunk(claim_index, 0..valid, all - valid);
            }
            let run = self.runs.insert(Run { first: index, claims });
            let range = FileRange {
                file: ex.store().file(),
                offset: ex.chunk().store_offset(place),
                len: together * ex.chunk().bytes(),
            };
            self.act(IoOp::Write, range, from, Owner::Run(run));
            done += together;
        }
    }

    /// Takes the first of the gathered claims, `chunks` chunks in all. If the last of them has more, the
    /// rest of it stays.
    fn take_gathered(&mut self, ex: &Exceptions, id: ExceptionsId, chunks: u64) -> Vec<usize> {
        let gathered = &mut self.per_exceptions[id.index()].gathered;
        let mut claims = self.spare_lists.take();
        let mut left = chunks;
        while left > 0 {
            let (claim_index, count) = gathered.pop_front().expect("as many as were given a place");
            claims.push(claim_index);
            if count > left {
                let rest = self.claims[claim_index].split_off(left, ex.chunk());
                self.requests[rest.request].outstanding += 1;
                gathered.push_front(self.claims.insert(rest), count - left);
            }
            left -= count.min(left);
        }
        claims
    }

    /// Pushes the segments for a range of the claim, and `tail` zeroes.
    pub(super) fn push_chunk(&mut self, claim_index: usize, range: Range<u64>, tail: u64) {
        let Range { start: from, end: to } = range;
        let claimed = &self.claims[claim_index];
        let new = claimed.fill.range();
        let (start, end) = (new.start.clamp(from, to), new.end.clamp(from, to));
        let old = |from: u64, to: u64| {
            let (buf, offset) = claimed.buf.expect("a chunk that is not covered has old bytes");
            let base = claimed.sliced.map_or(0, |sliced| sliced.written);
            self.scratch.seg(buf, offset + (from - base) as u32, (to - from) as u32)
        };
        if start == end {
            self.segs.push(old(from, to));
        } else {
            if from < start {
                self.segs.push(old(from, start));
            }
            self.segs.push(match claimed.fill {
                Fill::Guest { at, within, .. } => {
                    let Asker::Host(token) = self.requests[claimed.request].asker else {
                        unreachable!("the merge has no bytes of its own")
                    };
                    let offset = (at + (start - within)) as u32;
                    Seg::Guest { token, offset, len: (end - start) as u32 }
                }
                _ => Seg::Zero { len: (end - start) as u32 },
            });
            if end < to {
                self.segs.push(old(end, to));
            }
        }
        if tail != 0 {
            self.segs.push(Seg::Zero { len: tail as u32 });
        }
    }

    pub(super) fn run_written(&mut self, table: &Table, index: usize, result: Result<(), Errno>) {
        let mut run = self.runs.remove(index);
        let mut data = run.first;
        for claim_index in run.claims.drain(..) {
            let count = self.claims[claim_index].claim.count();
            self.written(table, claim_index, data, result);
            data.0 += count;
        }
        self.spare_lists.give_back(run.claims);
    }

    /// A claim's bytes are in the store, in consecutive data chunks from `data` on, or could not be
    /// written.
    pub(super) fn written(
        &mut self,
        table: &Table,
        claim_index: usize,
        data: DataIndex,
        result: Result<(), Errno>,
    ) {
        let ex = &table.exceptions()[self.claims[claim_index].exceptions];
        let log = ex.store().log();
        let count = self.claims[claim_index].claim.count();
        if result.is_err() {
            self.worker.all().wake(log.finish_run(data, None, count));
            return self.claim_failed(table, claim_index, result);
        }
        let Claimed { claim, request, buf, .. } = self.remove_claim(claim_index);
        ex.store().wrote();
        let (chunk, _) = ex.store().place_of(data, 1);
        let place = Place { layer: ex.top(), chunk };
        let leader = log.finish_run(data, Some(claim.chunk()), count);
        let waiting = ex.table.publish(claim, place);
        self.worker.all().wake(leader | waiting);
        self.release(table, buf);
        self.part_ended(request);
    }

    /// A claim failed: the chunk stays where it was. Of a guest's own overlay only the request fails; a
    /// snapshot of a served origin becomes invalid, and the origin's write goes on.
    fn claim_failed(&mut self, table: &Table, claim_index: usize, result: Result<(), Errno>) {
        let Claimed { claim, exceptions, request, from, fill, buf, .. } =
            self.remove_claim(claim_index);
        let ex = &table.exceptions()[exceptions];
        let waiting = ex.table.put_back(claim);
        self.worker.all().wake(waiting);
        self.release(table, buf);
        let store = ex.store();
        let for_origin = fill == Fill::Nothing;
        if is_full(result) && store.wait_for_room() {
            // It holds nothing while it waits, and is decided again when there is room. A write to
            // an origin is decided again anyway.
            let again = &mut self.requests[request].again;
            if !for_origin {
                *again = Some(again.map_or(from, |other| other.min(from)));
            }
            return self.part_ended(request);
        }
        if !for_origin && is_full(result) && store.persistence() == Persistence::PersistentOverflow
        {
            self.worker.all().wake(store.overflow());
        } else if for_origin || !store.is_guest_disk() {
            self.invalidate(store);
        }
        let pending = &mut self.requests[request];
        pending.no_space |= is_full(result);
        pending.failed |= !for_origin;
        self.part_ended(request);
    }

    /// Ends all claims as if their I/O had failed, because nobody will hear of it. The log gives the data
    /// chunks that they got to nobody else, so a write that ends later does no harm. (Only if the store is
    /// opened again before that write has ended, the new log may.)
    pub(super) fn abandon_claims(&mut self, table: &Table) {
        let log_of = |claimed: &Claimed| table.exceptions()[claimed.exceptions].store().log();
        let mut wake = WakeSet::NONE;
        for run in self.runs.drain() {
            let mut data = run.first;
            for claimed in run.claims.iter().map(|claimed| &self.claims[*claimed]) {
                wake |= log_of(claimed).finish_run(data, None, claimed.claim.count());
                data.0 += claimed.claim.count();
            }
        }
        for claimed in self.claims.drain() {
            if let Some(Sliced { data, .. }) = claimed.sliced {
                wake |= log_of(&claimed).finish_run(data, None, claimed.claim.count());
            }
            wake |= table.exceptions()[claimed.exceptions].table.put_back(claimed.claim);
        }
        self.worker.all().wake(wake);
    }

    fn release(&mut self, table: &Table, buf: Option<(Buf, u32)>) {
        // A claim ended: requests that waited for a free claim may proceed.
        self.freed = true;
        if let Some((buf, _)) = buf
            && self.scratch.release(buf)
        {
            // Otherwise fresh claims get it in the next turn of the step.
            if let Some(claim_index) = self.slices_waiting.pop_front() {
                self.next_slice(table, claim_index);
            }
        }
    }
}
