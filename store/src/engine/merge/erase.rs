//! Erasing entries for good, and releasing their chunks.
//!
//! Owns the bytes that are written over the end of the list, and the state of a batch once they
//! are, or may be, durable. The list loses only its end, so whatever part of a write lands, the
//! result is a shorter list without a gap.

use std::ops::Range;

use super::super::commit::Part;
use super::super::core::{Core, FileRange};
use super::super::tag::{MetaOf, Owner};
use super::batch::MOST_ENTRIES;
use super::{Erased, MergeFailure, RunningMerge, Site, Stage, Step};
use crate::cow::layout::ENTRY_BYTES;
use crate::cow::tail::Tail;
use crate::cow::{Entry, MergeMark};
use crate::exception::ChunkState;
use crate::io::{Errno, IoOp};
use crate::wake::WakeSet;

impl Core {
    /// When a merge is started: erases the entries after the list. An earlier removal that
    /// failed, or was torn, left entries there that a later crash could bring back.
    pub(super) fn erase_after_list(&mut self, job: &mut RunningMerge, site: Site<'_>) {
        let geometry = site.store().geometry();
        let area = job.position / geometry.entries_per_area();
        if geometry.area_chunk(area).0 >= geometry.device_chunks {
            return self.erased(job, site, Erased::Behind);
        }
        let end = (area + 1) * geometry.entries_per_area();
        // Later areas cannot be reached: each is zeroed before the list grows into it.
        let upto = end.min(job.position + MOST_ENTRIES);
        self.erase(job, site, job.position..upto, Erased::Behind);
    }

    /// Writes zeroes over `entries` of the list and over the rest of their last block: one write
    /// per area.
    pub(super) fn erase(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        entries: Range<u64>,
        what: Erased,
    ) {
        let Range { start: from, end: upto } = entries;
        let store = site.store();
        let geometry = store.geometry();
        let (block, area) = (Tail::block_entries(&geometry), geometry.entries_per_area());
        let mut first = from - from % block;
        let mut bytes: Vec<u8> = job.list.get(first, from).iter().flat_map(Entry::encode).collect();
        job.meta.clear();
        while first < upto {
            let end = (first - first % area + area).min(upto.next_multiple_of(block));
            let len = (end - first) as usize * ENTRY_BYTES;
            bytes.resize(len, 0);
            let segs = self.segs.len();
            self.segs.push(MetaOf::Merge.seg(job.meta.len(), len));
            job.meta.push(std::mem::take(&mut bytes));
            let range = FileRange {
                file: store.file(),
                offset: geometry.entry_offset(first),
                len: len as u64,
            };
            self.act(IoOp::Write, range, segs, Owner::Merge { step: Step::WriteList, index: 0 });
            first = end;
        }
        job.stage = Stage::Erase { what, left: job.meta.len() as u32, failed: None };
    }

    pub(super) fn list_written(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        result: Result<(), Errno>,
    ) {
        let Stage::Erase { left, failed, .. } = &mut job.stage else {
            unreachable!("nothing else writes the list for the merge")
        };
        *left -= 1;
        *failed = failed.or(result.err());
        match (*left, *failed) {
            (0, Some(errno)) => return self.not_erased(job, site, MergeFailure::WriteList(errno)),
            (0, None) => {}
            _ => return,
        }
        self.start_merge_barrier(std::iter::once(Part::of_store(site.store().clone())));
    }

    /// The store was synced; an error also if a guest's sync of it failed meanwhile: that one may have
    /// been told that the removal was lost. The store knows, so that no later flush succeeds.
    pub(super) fn store_synced(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        what: Erased,
        result: Result<(), Errno>,
    ) {
        match site.is_mergeable() {
            Ok(()) if result.is_ok() => self.erased(job, site, what),
            Ok(()) | Err(MergeFailure::NotSynced) => {
                self.not_erased(job, site, MergeFailure::SyncStore(Errno::EIO));
            }
            Err(failure) => self.not_erased(job, site, failure),
        }
    }

    /// The entries are gone for good: their chunks are on the origin, and waiting requests go
    /// there.
    fn erased(&mut self, job: &mut RunningMerge, site: Site<'_>, what: Erased) {
        let store = site.store();
        if what == Erased::Batch {
            job.position -= job.batch.entries.len() as u64;
        }
        let block = Tail::block_entries(&store.geometry());
        let first = job.position - job.position % block;
        store.truncate(job.position, job.list.get(first, job.position));
        let mut waiting = WakeSet::NONE;
        for entry in job.batch.entries.drain(..) {
            let place = site.place(&entry);
            debug_assert_eq!(site.ex.table.get(entry.old), ChunkState::Busy(place));
            waiting |= site.ex.table.clear_busy(entry.old, place);
        }
        self.worker.all().wake(waiting);
        if what == Erased::Batch {
            job.adapt(!waiting.is_empty());
        }
        job.clean = true;
        store.clear_unerased();
        if store.merge_mark() != MergeMark::Merging {
            store.set_merge_mark(MergeMark::Merging);
        }
        job.stage = Stage::Idle;
    }

    /// They may or may not be gone: their chunks may be written neither in the store nor on the
    /// origin until the removal was repeated.
    fn not_erased(&mut self, job: &mut RunningMerge, site: Site<'_>, failure: MergeFailure) {
        let store = site.store();
        let mut waiting = WakeSet::ALL;
        if !job.batch.entries.is_empty() {
            waiting |= store.set_unerased(std::mem::take(&mut job.batch.entries));
        }
        self.end_merge(job, site, failure);
        // Not before: they would look at a merge that has not ended.
        self.worker.all().wake(waiting);
    }
}
