//! The store's list of entries, read from its end.
//!
//! Owns the loaded part of the list and the reading of more: several parts in parallel, each into
//! a scratch buffer, from which the host passes the bytes on. Never knows what a batch is for.
//! Keeps: the loaded part has no gap, begins with a block, and agrees with the exception table.

use super::super::core::{Core, FileRange};
use super::super::scratch::Buf;
use super::super::tag::Owner;
use super::{MergeFailure, RunningMerge, Site, Stage, Step};
use crate::cow::Entry;
use crate::cow::layout::ENTRY_BYTES;
use crate::cow::tail::Tail;
use crate::exception::ChunkState;
use crate::io::{Errno, IoOp};
use crate::table::Table;

/// The most entries in a part: as many as fit the smallest copy buffer.
const PART_ENTRIES: u64 = 4096;

/// A part that was requested: whole blocks of one area.
#[derive(Debug)]
struct Part {
    buf: Buf,
    /// Bytes in the buffer.
    len: u32,
    /// Which entries of it are new.
    first: u64,
    end: u64,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct List {
    /// The entries from position `start` on, including removed ones until others are read.
    entries: Vec<Entry>,
    start: u64,
    /// The requested parts, the newest first.
    parts: Vec<Part>,
}

impl List {
    /// Whether the entries in `from..upto`, or none, are loaded.
    pub(super) fn has_all(&self, from: u64, upto: u64) -> bool {
        from >= upto || (self.start <= from && upto <= self.start + self.entries.len() as u64)
    }

    /// The entries `from..upto`; they are loaded, or there are none.
    pub(super) fn get(&self, from: u64, upto: u64) -> &[Entry] {
        if from == upto {
            return &[];
        }
        let at = |position: u64| (position - self.start) as usize;
        &self.entries[at(from)..at(upto)]
    }

    /// The first entry that is loaded.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The part that was read and is to be passed on next.
    pub(super) fn next_part(&self) -> Option<(Buf, u32)> {
        self.parts.first().map(|part| (part.buf, part.len))
    }

    /// Forgets the loaded entries: others follow, which end at position `end`.
    fn clear(&mut self, end: u64) {
        self.entries.clear();
        self.start = end;
    }
}

impl Core {
    /// Reads about the newest `count` entries of those below `end`.
    pub(super) fn read_list(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        end: u64,
        count: u64,
    ) {
        let store = site.store();
        let geometry = store.geometry();
        let block = Tail::block_entries(&geometry);
        let most = PART_ENTRIES.min(u64::from(self.scratch.size()) / ENTRY_BYTES as u64);
        let most = most - most % block;
        let mut upto = end;
        while end - upto < count && upto > 0 {
            // No buffer is free: the entries read so far suffice to continue, or the next step
            // tries again.
            let Some(buf) = self.scratch.take() else { break };
            let within = (upto - 1) % geometry.entries_per_area();
            let first = upto - 1 - within % most;
            // Whole blocks, which a file may require. Entries from `upto` on are ignored.
            let len = (upto - first).next_multiple_of(block) * ENTRY_BYTES as u64;
            let part = Part { buf, len: len as u32, first, end: upto };
            let segs = self.segs.len();
            self.segs.push(self.scratch.seg(buf, 0, part.len));
            let range = FileRange { file: store.file(), offset: geometry.entry_offset(first), len };
            let owner = Owner::Merge { step: Step::ReadList, index: job.list.parts.len() };
            self.act(IoOp::Read, range, segs, owner);
            job.list.parts.push(part);
            upto = first;
        }
        if upto != end {
            job.list.clear(end);
            job.stage = Stage::Reading { left: job.list.parts.len() as u32, failed: None };
        }
    }

    /// The part `index` was read.
    pub(super) fn list_read(
        &mut self,
        job: &mut RunningMerge,
        site: Site<'_>,
        index: usize,
        result: Result<(), Errno>,
    ) {
        let Stage::Reading { left, failed } = &mut job.stage else {
            unreachable!("nothing else reads the list for the merge")
        };
        *left -= 1;
        if let Err(errno) = result {
            let offset = site.store().geometry().entry_offset(job.list.parts[index].first);
            failed.get_or_insert(MergeFailure::ReadList { offset, errno });
        }
        if let (0, Some(failure)) = (*left, *failed) {
            self.list_failed(job, site, failure);
        }
    }

    /// The bytes that [`RunningMerge::wants`] named.
    pub(in crate::engine) fn merge_supply(&mut self, table: &Table, bytes: &[u8]) {
        let Some(mut job) = self.merge.take() else { return };
        if let (Some(_), Some(site)) = (job.wants(), Site::of(table, job.line)) {
            let part = job.list.parts.remove(0);
            self.scratch.release(part.buf);
            match take(&mut job, site, &part, bytes) {
                Err(failure) => self.list_failed(&mut job, site, failure),
                Ok(()) if job.list.parts.is_empty() => job.stage = Stage::Idle,
                Ok(()) => {}
            }
        }
        self.merge = Some(job);
    }

    fn list_failed(&mut self, job: &mut RunningMerge, site: Site<'_>, failure: MergeFailure) {
        for part in job.list.parts.drain(..) {
            self.scratch.release(part.buf);
        }
        self.end_merge(job, site, failure);
    }
}

impl RunningMerge {
    /// The parts to be passed on, once all have been read.
    pub(in crate::engine) fn wants(&self) -> Option<(Buf, u32)> {
        match self.stage {
            Stage::Reading { left: 0, .. } => self.list.next_part(),
            _ => None,
        }
    }
}

/// Adds a part of the list before the loaded entries; every entry must agree with the table.
fn take(
    job: &mut RunningMerge,
    site: Site<'_>,
    part: &Part,
    bytes: &[u8],
) -> Result<(), MergeFailure> {
    let geometry = site.store().geometry();
    let offset = |position| geometry.entry_offset(position);
    if bytes.len() != part.len as usize {
        return Err(MergeFailure::ReadList { offset: offset(part.first), errno: Errno::EIO });
    }
    let count = (part.end - part.first) as usize;
    let entries = bytes.as_chunks::<ENTRY_BYTES>().0[..count].iter().map(Entry::decode);
    for (position, entry) in (part.first..).zip(entries) {
        let known = !entry.is_end()
            && entry.old.0 < site.ex.table.chunks()
            && entry.new.0 < geometry.device_chunks
            && site.ex.table.get(entry.old) == ChunkState::Mapped(site.place(&entry));
        if !known {
            return Err(MergeFailure::Entry { position, offset: offset(position) });
        }
        job.list.entries.push(entry);
    }
    job.list.entries.rotate_right(count);
    job.list.start = part.first;
    Ok(())
}
