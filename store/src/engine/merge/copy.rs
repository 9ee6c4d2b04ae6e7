//! Copying a batch home: reads of the store and writes of the origin, side by side.
//!
//! Owns which pieces of the batch are on their way. A piece is one read into one buffer, and as
//! many writes as the origin has extents there. Never knows of entries.

use slab::Slab;

use super::super::core::{Core, Kind};
use super::super::scratch::Buf;
use super::{Erased, MergeFailure, MergeJob, Site, Stage, Step};
use crate::io::{Errno, IoOp};
use crate::request::Op;
use crate::target::Decision;

/// Pieces on their way at a time.
const PIECES: usize = 32;

/// Bytes that go home by one read.
#[derive(Debug)]
struct Piece {
    buf: Buf,
    /// First byte in the line.
    start: u64,
    len: u64,
    /// Writes that have not ended.
    left: u32,
}

/// What of a batch is on its way, and what comes next.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pieces: Slab<Piece>,
    /// The run that comes next, and how much of it was begun.
    run: usize,
    begun: u64,
}

impl Core {
    /// Begins as many pieces as there is room for; when all have ended, syncs the origin.
    pub(super) fn copy_home(&mut self, job: &mut MergeJob, site: Site<'_>) -> bool {
        let Stage::Copy { failed } = job.stage else { return false };
        while failed.is_none() && job.copies.pieces.len() < PIECES {
            let Some(run) = job.batch.runs.get(job.copies.run) else { break };
            let (start, len) = site.span(run);
            if job.copies.begun == len {
                job.copies.run += 1;
                job.copies.begun = 0;
                continue;
            }
            let Some(buf) = self.scratch.take() else { break };
            let from = job.copies.begun;
            let len = (len - from).min(u64::from(self.scratch.size()));
            job.copies.begun += len;
            let piece = Piece { buf, start: start + from, len, left: 0 };
            let index = job.copies.pieces.insert(piece);
            let first = self.segs.len();
            self.segs.push(self.scratch.seg(buf, 0, len as u32));
            let (file, offset) = site.ex.file_offset(site.place(&run.first), from);
            let tag = (Kind::Merge, Step::ReadStore as u16, index);
            self.act(IoOp::Read, file, offset, len, first, tag);
        }
        let all_begun = job.copies.run == job.batch.runs.len();
        match failed {
            _ if !job.copies.pieces.is_empty() => {}
            Some(failure) => self.end_merge(job, site, failure),
            None if all_begun => self.sync_origin(job, site),
            // No buffer was free: the next step looks again.
            None => {}
        }
        false
    }

    pub(super) fn store_read(
        &mut self,
        job: &mut MergeJob,
        site: Site<'_>,
        index: usize,
        result: Result<(), Errno>,
    ) {
        if let Err(errno) = result {
            return self.piece_ended(job, site, index, Some(MergeFailure::ReadStore(errno)));
        }
        let Piece { buf, start, len, .. } = job.copies.pieces[index];
        let mut done = 0;
        while done < len {
            let at = start + done;
            let (file, offset, part) =
                match site.merge.origin.backing.decide(Op::Write, at, len - done) {
                    Decision::Pass { file, offset, len, .. } => (file, offset, len),
                    Decision::Nothing { len } => {
                        done += len;
                        continue;
                    }
                    _ => {
                        note(job, MergeFailure::WriteOrigin(Errno::EIO));
                        break;
                    }
                };
            let first = self.segs.len();
            self.segs.push(self.scratch.seg(buf, done as u32, part as u32));
            let tag = (Kind::Merge, Step::WriteOrigin as u16, index);
            self.act(IoOp::Write, file, offset, part, first, tag);
            job.copies.pieces[index].left += 1;
            done += part;
        }
        if job.copies.pieces[index].left == 0 {
            self.piece_ended(job, site, index, None);
        }
    }

    pub(super) fn origin_written(
        &mut self,
        job: &mut MergeJob,
        site: Site<'_>,
        index: usize,
        result: Result<(), Errno>,
    ) {
        if let Err(errno) = result {
            note(job, MergeFailure::WriteOrigin(errno));
        }
        job.copies.pieces[index].left -= 1;
        if job.copies.pieces[index].left == 0 {
            self.piece_ended(job, site, index, None);
        }
    }

    fn piece_ended(
        &mut self,
        job: &mut MergeJob,
        site: Site<'_>,
        index: usize,
        failure: Option<MergeFailure>,
    ) {
        if let Some(failure) = failure {
            note(job, failure);
        }
        let piece = job.copies.pieces.remove(index);
        // Nobody else waits for a buffer: the copies of this batch's protection have ended.
        self.scratch.release(piece.buf);
        self.copy_home(job, site);
    }

    /// Everything was written: it must be durable before an entry goes.
    fn sync_origin(&mut self, job: &mut MergeJob, site: Site<'_>) {
        let mut left = 0;
        let media: Vec<_> = site.merge.origin.backing.media().collect();
        for (n, medium) in media.iter().enumerate() {
            if media[..n].iter().any(|known| known.file == medium.file) {
                continue;
            }
            let first = self.segs.len();
            let tag = (Kind::Merge, Step::SyncOrigin as u16, n);
            self.act(IoOp::Sync, medium.file, 0, 0, first, tag);
            left += 1;
        }
        job.stage = Stage::SyncOrigin { left, failed: None };
        if left == 0 {
            self.erase_batch(job, site);
        }
    }

    /// One of the origin's media, the `index`th, was synced.
    pub(super) fn origin_synced(
        &mut self,
        job: &mut MergeJob,
        site: Site<'_>,
        index: usize,
        result: Result<(), Errno>,
    ) {
        let Stage::SyncOrigin { left, failed } = &mut job.stage else {
            unreachable!("nothing else syncs the origin")
        };
        let medium = site.merge.origin.backing.media().nth(index).expect("it was one of them");
        if result.is_err() {
            medium.set_sync_failed();
        }
        // Also where an earlier sync, of whomever, failed: what was lost then may be ours.
        if medium.sync_failed() {
            *failed = Some(MergeFailure::SyncOrigin(result.err().unwrap_or(Errno::EIO)));
        }
        *left -= 1;
        match (*left, *failed) {
            (0, Some(failure)) => self.end_merge(job, site, failure),
            (0, None) => self.erase_batch(job, site),
            _ => {}
        }
    }

    fn erase_batch(&mut self, job: &mut MergeJob, site: Site<'_>) {
        let from = job.position - job.batch.entries.len() as u64;
        self.erase(job, site, (from, job.position), Erased::Batch);
    }
}

/// The batch fails when what is in flight has ended; the first failure is told.
fn note(job: &mut MergeJob, failure: MergeFailure) {
    if let Stage::Copy { failed } = &mut job.stage {
        failed.get_or_insert(failure);
    }
}
