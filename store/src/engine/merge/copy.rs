//! Copying a batch to the origin: reads of the store and writes of the origin, in parallel.
//!
//! Owns the pieces of the batch in flight. A piece is one read into one buffer, of chunks that are
//! adjacent in the store, and one write for each run of them that the origin has in one extent:
//! chunks that were copied out together are read together, wherever they belong. Never knows of
//! entries.

use std::ops::Range;

use slab::Slab;

use super::super::commit::Part;
use super::super::core::{Core, FileRange};
use super::super::scratch::Buf;
use super::super::tag::Owner;
use super::{Erased, MergeFailure, RunningMerge, Site, Stage, Step};
use crate::cow::Entry;
use crate::io::{Errno, IoOp};
use crate::request::Op;
use crate::target::Decision;

/// The approximate number of writes whose bytes are being read at a time. These and the writes in
/// flight are at most twice as many, so that the disk always has further requests.
const DEPTH: u32 = 64;

/// Bytes that are read together.
#[derive(Debug)]
struct Piece {
    buf: Buf,
    /// Which of the batch's chunks, in the order of the store.
    chunks: Range<usize>,
    /// For a chunk that is larger than a buffer: how many bytes of it other pieces read.
    from: u64,
    len: u64,
    /// Writes that have not ended; before the read has ended, an estimate of their number.
    left: u32,
}

/// The parts of a batch that are in flight, and the next one.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pieces: Slab<Piece>,
    /// The approximate number of writes whose bytes are being read.
    reading: u32,
    /// Writes that have not ended.
    writing: u32,
    /// The next chunk, in the order of the store, and how much of it was begun.
    next: usize,
    begun: u64,
}

impl Copies {
    /// Whether the next bytes may be read.
    fn has_room(&self) -> bool {
        self.reading < DEPTH && self.reading + self.writing < 2 * DEPTH
    }

    /// Which bytes to read next: chunks, and where in the first of them to begin; of `batch`, at
    /// most `most` bytes.
    fn take(&mut self, batch: &[Entry], chunk: u64, most: u64) -> Option<(Range<usize>, u64, u64)> {
        let rest = batch.get(self.next..)?;
        let first = *rest.first()?;
        if chunk <= most {
            let follows = |(n, entry): &(usize, &Entry)| entry.new.0 == first.new.0 + *n as u64;
            let count = rest.iter().enumerate().take((most / chunk) as usize).take_while(follows);
            let chunks = self.next..self.next + count.count();
            self.next = chunks.end;
            let len = chunks.len() as u64 * chunk;
            return Some((chunks, 0, len));
        }
        let (at, from) = (self.next, self.begun);
        let len = (chunk - from).min(most);
        self.begun += len;
        if self.begun == chunk {
            (self.next, self.begun) = (at + 1, 0);
        }
        Some((at..at + 1, from, len))
    }
}

impl Core {
    /// Begins as many pieces as possible; when all have ended, syncs the origin.
    pub(super) fn copy_home(&mut self, job: &mut RunningMerge, site: Site<'_>) -> bool {
        let Stage::Copy { failed } = job.stage else { return false };
        while failed.is_none() && job.copies.has_room() {
            if job.copies.next == job.batch.by_place.len() {
                break;
            }
            let Some(buf) = self.scratch.take() else { break };
            let most = u64::from(self.scratch.size());
            let taken = job.copies.take(&job.batch.by_place, job.chunk, most);
            let (chunks, from, len) = taken.expect("there are more");
            let place = site.place(&job.batch.by_place[chunks.start]);
            let left = job.batch.runs_of(chunks.clone()).count() as u32;
            job.copies.reading += left;
            let piece = Piece { buf, chunks, from, len, left };
            let index = job.copies.pieces.insert(piece);
            let first = self.segs.len();
            self.segs.push(self.scratch.seg(buf, 0, len as u32));
            let (file, offset) = site.ex.file_offset(place, from);
            let range = FileRange { file, offset, len };
            self.act(IoOp::Read, range, first, Owner::Merge { step: Step::ReadStore, index });
        }
        let all_begun = job.copies.next == job.batch.by_place.len();
        match failed {
            _ if !job.copies.pieces.is_empty() => {}
            Some(failure) => self.end_merge(job, site, failure),
            None if all_begun => self.sync_origin(job),
            // No buffer was free: the next step tries again.
            None => {}
        }
        false
    }

    pub(super) fn store_read(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        index: usize,
        result: Result<(), Errno>,
    ) {
        let piece = &mut job.copies.pieces[index];
        job.copies.reading -= std::mem::take(&mut piece.left);
        let read = result.map_err(MergeFailure::ReadStore);
        if let Err(failure) = read.and_then(|()| site.is_mergeable()) {
            return self.piece_ended(job, site, index, Some(failure));
        }
        let (chunks, from, len) = (piece.chunks.clone(), piece.from, piece.len);
        let batch = std::mem::take(&mut job.batch);
        for run in batch.runs_of(chunks.clone()) {
            let within = (run.start - chunks.start) as u64 * job.chunk;
            let start = site.ex.chunk().start_of(batch.by_place[run.start].old) + from;
            let bytes = (run.len() as u64 * job.chunk).min(len);
            let bytes = bytes.min(site.len.saturating_sub(start));
            self.write_home(job, site, index, within, start..start + bytes);
        }
        job.batch = batch;
        match job.copies.pieces[index].left {
            0 => self.piece_ended(job, site, index, None),
            _ => _ = self.copy_home(job, site),
        }
    }

    /// Writes a range of the line from a piece, from the piece's byte `within` on.
    fn write_home(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        index: usize,
        within: u64,
        range: Range<u64>,
    ) {
        let buf = job.copies.pieces[index].buf;
        let mut at = range.start;
        while at < range.end {
            let part = match site.merge.origin.backing.decide(Op::Write, at, range.end - at) {
                Decision::Pass { file, offset, len, .. } => FileRange { file, offset, len },
                Decision::Nothing { len } => {
                    at += len;
                    continue;
                }
                _ => return note(job, MergeFailure::WriteOrigin(Errno::EIO)),
            };
            let first = self.segs.len();
            let from = (within + (at - range.start)) as u32;
            self.segs.push(self.scratch.seg(buf, from, part.len as u32));
            self.act(IoOp::Write, part, first, Owner::Merge { step: Step::WriteOrigin, index });
            job.copies.pieces[index].left += 1;
            job.copies.writing += 1;
            at += part.len;
        }
    }

    pub(super) fn origin_written(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        index: usize,
        result: Result<(), Errno>,
    ) {
        if let Err(errno) = result {
            note(job, MergeFailure::WriteOrigin(errno));
        }
        job.copies.writing -= 1;
        job.copies.pieces[index].left -= 1;
        match job.copies.pieces[index].left {
            0 => self.piece_ended(job, site, index, None),
            _ => _ = self.copy_home(job, site),
        }
    }

    fn piece_ended(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        index: usize,
        failure: Option<MergeFailure>,
    ) {
        if let Some(failure) = failure {
            note(job, failure);
        }
        let piece = job.copies.pieces.remove(index);
        // Nothing else waits for a buffer: the copies of this batch's protection have ended.
        self.scratch.release(piece.buf);
        self.copy_home(job, site);
    }

    /// Everything was written: it must be durable before an entry is erased.
    fn sync_origin(&mut self, job: &mut RunningMerge) {
        job.stage = Stage::SyncOrigin;
        self.start_merge_barrier(std::mem::take(&mut job.origin).into_iter().map(Part::of));
    }

    /// The origin's files were synced; an error also if another sync failed since the batch's first
    /// byte was copied, whichever device asked for it: data of this batch may have been lost then.
    pub(super) fn origin_synced(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        result: Result<(), Errno>,
    ) {
        match result {
            Ok(()) => self.erase_batch(job, site),
            Err(errno) => self.end_merge(job, site, MergeFailure::SyncOrigin(errno)),
        }
    }

    fn erase_batch(&mut self, job: &mut RunningMerge, site: Site<'_>) {
        if let Err(failure) = site.is_mergeable() {
            return self.end_merge(job, site, failure);
        }
        let from = job.position - job.batch.entries.len() as u64;
        self.erase(job, site, from..job.position, Erased::Batch);
    }
}

/// The batch fails when its I/O in flight has ended; the first failure is reported.
fn note(job: &mut RunningMerge, failure: MergeFailure) {
    if let Stage::Copy { failed } = &mut job.stage {
        failed.get_or_insert(failure);
    }
}
