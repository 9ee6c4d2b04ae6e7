//! Writes that have a place but find no room there: in a hole, or below a snapshot of the file system.
//!
//! Owns the file that a request's own action goes to, so that the request waits for that file only, and
//! the report that a waiting write has found room. Never knows how long a write waits, nor what makes
//! room. (Writes without a place yet find no room in `claims`.)

use super::core::Core;
use crate::io::FileId;
use crate::table::{Keeper, Table};
use crate::workers::TrackSlot;

/// A request's own action, as encoded in its tag: the range that it tracks, and the number of its file
/// among the table's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination(u16);

/// No range; or a file without a number here: one that is not written, or one of too many.
const NONE: u8 = 0xff;

impl Destination {
    pub(super) fn new(track: Option<TrackSlot>, file: Option<usize>) -> Destination {
        let file = file.and_then(|file| u8::try_from(file).ok()).unwrap_or(NONE);
        Destination(u16::from_be_bytes([file, track.map_or(NONE, TrackSlot::to_u8)]))
    }

    pub(super) fn from_detail(detail: u16) -> Destination {
        Destination(detail)
    }

    pub(super) fn detail(self) -> u16 {
        self.0
    }

    pub(super) fn track(self) -> Option<TrackSlot> {
        let [_, track] = self.0.to_be_bytes();
        (track != NONE).then(|| TrackSlot::from_u8(track))
    }

    /// Its file, where `files` are the table's.
    fn place(self, files: &[FileId]) -> NoRoomIn {
        let [file, _] = self.0.to_be_bytes();
        let known = (file != NONE).then(|| files.get(usize::from(file))).flatten();
        known.map_or(NoRoomIn::AnyFile, |file| NoRoomIn::File(*file))
    }
}

/// Where a request finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoomIn {
    /// In this file.
    File(FileId),
    /// In any of those that it writes: its table has more files than are told apart, which is rare.
    AnyFile,
}

/// The keepers of `place`, among the files that writes to `[start, start + len)` go to.
fn keepers(
    table: &Table,
    start: u64,
    len: u64,
    place: NoRoomIn,
) -> impl Iterator<Item = Keeper<'_>> {
    let is_it = move |keeper: &Keeper<'_>| {
        place == NoRoomIn::AnyFile || place == NoRoomIn::File(keeper.file())
    };
    table.keepers(start, len).filter(is_it)
}

impl Core {
    /// A request's own action found no room. If it may wait for room, the request is retried from its
    /// beginning when there may be some.
    #[cold]
    pub(super) fn found_no_room(&mut self, table: &Table, index: usize, to: Destination) {
        let place = to.place(&self.files);
        let pending = &mut self.requests[index];
        (pending.no_space, pending.no_room_in) = (true, Some(place));
        let mut waits = false;
        keepers(table, pending.start, pending.len, place)
            .for_each(|keeper| waits |= keeper.wait_for_room());
        match waits {
            true => pending.again = Some(0),
            false => pending.failed = true,
        }
        self.part_ended(index);
    }

    /// Whether the file in which a request found no room is still full.
    pub(super) fn still_lacks_room(&self, table: &Table, index: usize) -> bool {
        let pending = &self.requests[index];
        let Some(place) = pending.no_room_in else { return false };
        keepers(table, pending.start, pending.len, place).any(|keeper| keeper.is_full())
    }

    /// Reports the files that waiting writes have been written to.
    #[inline]
    pub(super) fn say_found_room(&mut self, table: &Table) {
        for place in self.found_room.drain(..) {
            keepers(table, 0, table.size().bytes(), place).for_each(|keeper| keeper.wrote());
        }
    }
}
