//! The first steps of a batch: other snapshots get their copies, and writes are stopped.
//!
//! Owns the requests by which a merge asks for its part of the origin, and the busy marks. Never
//! knows how a snapshot's copy is made: an origin write does that.

use super::super::core::Core;
use super::super::pending::{Asker, Pending};
use super::{Copies, MergeFailure, RunningMerge, Site, Stage};
use crate::request::Op;
use crate::units::SECTOR_SHIFT;

/// Runs that are requested at a time.
const ASKED: u32 = 32;

impl Core {
    /// Requests the origin's part of each run; proceeds when all are allowed.
    pub(super) fn protect(&mut self, job: &mut RunningMerge, site: Site<'_>) -> bool {
        let Stage::Protect { next, left, refused } = &mut job.stage else { return false };
        while *left < ASKED && *next < job.batch.runs.len() && !*refused {
            let (start, len) = site.span(&job.batch.runs[*next]);
            *next += 1;
            if len != 0 {
                *left += 1;
                self.ask_for(site.start + start, len);
            }
        }
        match (*left, *refused) {
            (0, true) => {
                self.end_merge(job, site, MergeFailure::Protect);
                false
            }
            (0, false) => self.make_busy(job, site),
            _ => false,
        }
    }

    /// A request of the merge itself: `[start, start + len)` of the device will be overwritten
    /// below. It is an origin write that writes nothing.
    fn ask_for(&mut self, start: u64, len: u64) {
        self.take_in(Pending::new(Asker::Merge, Op::Write, start, len, false));
    }

    /// One of these requests ended: its range may be overwritten, or must not.
    pub(in crate::engine) fn merge_protected(&mut self, allowed: bool) {
        let stage = self.merge.as_mut().map(|job| &mut job.stage);
        let Some(Stage::Protect { left, refused, .. }) = stage else {
            unreachable!("only a batch that is being protected asks")
        };
        *left -= 1;
        *refused |= !allowed;
    }

    fn make_busy(&mut self, job: &mut RunningMerge, site: Site<'_>) -> bool {
        for (n, entry) in job.batch.entries.iter().enumerate() {
            if !site.ex.table.mark_busy(entry.old, site.place(entry)) {
                let position = job.position - job.batch.entries.len() as u64 + n as u64;
                let offset = site.store().geometry().entry_offset(position);
                self.end_merge(job, site, MergeFailure::Entry { position, offset });
                return false;
            }
        }
        job.stage = Stage::Drain { next: 0 };
        true
    }

    /// Proceeds when no write that began before the chunks were busy is in flight; otherwise this
    /// worker is woken when one ends.
    pub(super) fn drain(&mut self, job: &mut RunningMerge, site: Site<'_>) -> bool {
        let Stage::Drain { next } = &mut job.stage else { return false };
        for run in &job.batch.runs[*next..] {
            // All of the run, including the part that the origin does not have, which is written
            // too.
            let start = site.ex.chunk().start_of(run.first) >> SECTOR_SHIFT;
            let sectors = run.count * u64::from(site.ex.chunk().sectors());
            let (of, bit) = (site.merge.writes, self.worker.bit());
            if self.worker.all().overlaps(of, start, sectors, bit) {
                return false;
            }
            *next += 1;
        }
        job.copies = Copies::default();
        job.origin = site.origin_files();
        job.stage = Stage::Copy { failed: None };
        true
    }
}
