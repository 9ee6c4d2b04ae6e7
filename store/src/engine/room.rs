//! What has its place and finds no room for it: in a hole, below a snapshot of the file system.
//!
//! Owns which file a request's own action goes to, so that only that is waited for, and when what
//! had waited for it was written. Never knows how long that is waited for, nor who makes room. (What
//! has no place yet finds none in `claims`.)

use super::core::Core;
use crate::io::FileId;
use crate::table::{Keeper, Table};
use crate::workers::TrackId;

/// A request's own action, as its tag has it: the range that it tracks, and the place of the file
/// that it goes to among the table's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Goes(u16);

/// No range, or a file that has no place of its own here: one that is not written, or one of many.
const NONE: u8 = 0xff;

impl Goes {
    pub(super) fn new(track: Option<TrackId>, file: Option<usize>) -> Goes {
        let file = file.and_then(|file| u8::try_from(file).ok()).unwrap_or(NONE);
        Goes(u16::from_be_bytes([file, track.map_or(NONE, TrackId::to_u8)]))
    }

    pub(super) fn from_detail(detail: u16) -> Goes {
        Goes(detail)
    }

    pub(super) fn detail(self) -> u16 {
        self.0
    }

    pub(super) fn track(self) -> Option<TrackId> {
        let [_, track] = self.0.to_be_bytes();
        (track != NONE).then(|| TrackId::from_u8(track))
    }

    /// Which of `files`; [`ANY`] where that is not known.
    fn file(self, files: &[FileId]) -> FileId {
        let [file, _] = self.0.to_be_bytes();
        if file == NONE { ANY } else { files.get(usize::from(file)).copied().unwrap_or(ANY) }
    }
}

/// Any of those that a request writes: tables of so many files are rare.
const ANY: FileId = FileId(u32::MAX);

/// Who keeps `file`, of those that `[start, start + len)` is written to.
fn keepers(table: &Table, range: (u64, u64), file: FileId) -> impl Iterator<Item = Keeper<'_>> {
    let is_it = move |keeper: &Keeper<'_>| file == ANY || keeper.file() == file;
    table.keepers(range.0, range.1).filter(is_it)
}

impl Core {
    /// A request's own action found no room. The request is tried again from its beginning when
    /// there may be some, where that is waited for.
    #[cold]
    pub(super) fn found_no_room(&mut self, table: &Table, index: usize, goes: Goes) {
        let file = goes.file(&self.files);
        let pending = &mut self.requests[index];
        (pending.no_space, pending.lacks) = (true, Some(file));
        let mut waits = false;
        let range = (pending.start, pending.len);
        keepers(table, range, file).for_each(|keeper| waits |= keeper.wait_for_room());
        if waits {
            pending.again = Some(0);
        }
        self.part_ended(index, waits);
    }

    /// Whether the file in which a request found no room has none yet.
    pub(super) fn still_lacks_room(&self, table: &Table, index: usize) -> bool {
        let pending = &self.requests[index];
        let range = (pending.start, pending.len);
        let Some(file) = pending.lacks else { return false };
        keepers(table, range, file).any(|keeper| keeper.is_full())
    }

    /// Says of files that what had waited for them was written.
    #[inline]
    pub(super) fn say_found_room(&mut self, table: &Table) {
        for file in self.found_room.drain(..) {
            let all = (0, table.size().bytes());
            keepers(table, all, file).for_each(|keeper| keeper.wrote());
        }
    }
}
