//! Chunks that are larger than a buffer, moved slice by slice.
//!
//! Owns the order of a slice (read if old bytes are missing, write, next slice), the zeroes after the
//! last one where the device ends within the chunk, and the claims that wait for a buffer. Unlike a
//! smaller chunk, this one has its place in the store before its bytes are read; a failed read gives the
//! place up. Never knows why a chunk is moved, nor what ends a claim.

use super::claim::Sliced;
use super::core::{Core, Kind};
use crate::io::{Errno, IoOp};
use crate::table::Table;
use crate::target::Exceptions;

/// What ended; the detail in the tag of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum SliceStep {
    /// A read of old bytes of the slice.
    Read,
    /// The write of the slice.
    Write,
    /// The zeroing of what is after the last slice.
    Zero,
}

const STEPS: [SliceStep; 3] = [SliceStep::Read, SliceStep::Write, SliceStep::Zero];

impl Core {
    /// Moves the next slice of a chunk that is larger than a buffer, or ends it.
    pub(super) fn next_slice(&mut self, table: &Table, claimed: usize) {
        let (_, valid) = self.sliced_chunk(table, claimed);
        let from = self.sliced(claimed).written;
        if from == valid {
            return self.zero_rest(table, claimed);
        }
        let to = self.slice_end(table, claimed);
        if self.claims[claimed].fill.covers(from, to) {
            return self.write_slice(table, claimed);
        }
        if self.claims[claimed].buf.is_none() {
            let Some(buf) = self.scratch.take() else {
                return self.slices_waiting.push_back(claimed);
            };
            self.claims[claimed].buf = Some((buf, 0));
        }
        let (buf, _) = self.claims[claimed].buf.expect("it was just taken");
        let tag = (Kind::Slice, SliceStep::Read as u16, claimed);
        let (reads, whole) = self.read_old(table, claimed, (from, to - from), &[buf], tag);
        let sliced = self.sliced(claimed);
        (sliced.reads, sliced.failed) = (reads, !whole);
        if reads == 0 {
            self.slice_unread(table, claimed);
        }
    }

    fn write_slice(&mut self, table: &Table, claimed: usize) {
        let (ex, _) = self.sliced_chunk(table, claimed);
        let (Sliced { data, written: from, .. }, to) =
            (*self.sliced(claimed), self.slice_end(table, claimed));
        let first = self.segs.len();
        self.push_chunk(claimed, (from, to), 0);
        let (place, _) = ex.store().place_of(data, 1);
        let offset = ex.chunk().store_offset(place) + from;
        let tag = (Kind::Slice, SliceStep::Write as u16, claimed);
        self.act(IoOp::Write, ex.store().file(), offset, to - from, first, tag);
    }

    /// Makes what of the chunk lies beyond the device read as zeroes: a longer table would read it.
    /// Its space is not needed yet, and it may be most of a gigabyte: where the store is sparse, it
    /// stays so.
    fn zero_rest(&mut self, table: &Table, claimed: usize) {
        let (ex, valid) = self.sliced_chunk(table, claimed);
        let data = self.sliced(claimed).data;
        let rest = ex.chunk().bytes() - valid;
        if rest == 0 {
            return self.written(table, claimed, data, Ok(()));
        }
        let (place, _) = ex.store().place_of(data, 1);
        let offset = ex.chunk().store_offset(place) + valid;
        let (first, tag) = (self.segs.len(), (Kind::Slice, SliceStep::Zero as u16, claimed));
        self.act(IoOp::Punch, ex.store().file(), offset, rest, first, tag);
    }

    /// A step of a slice ended.
    pub(super) fn slice_done(
        &mut self,
        table: &Table,
        claimed: usize,
        detail: u16,
        result: Result<(), Errno>,
    ) {
        let step = STEPS[usize::from(detail)];
        match (step, result) {
            (SliceStep::Read, result) => {
                let sliced = self.sliced(claimed);
                sliced.reads -= 1;
                sliced.failed |= result.is_err();
                match *sliced {
                    Sliced { reads: 1.., .. } => {}
                    Sliced { failed: true, .. } => self.slice_unread(table, claimed),
                    _ => self.write_slice(table, claimed),
                }
            }
            (SliceStep::Write, Ok(())) => {
                self.sliced(claimed).written = self.slice_end(table, claimed);
                self.next_slice(table, claimed);
            }
            (SliceStep::Write | SliceStep::Zero, result) => {
                let data = self.sliced(claimed).data;
                self.written(table, claimed, data, result);
            }
        }
    }

    fn slice_unread(&mut self, table: &Table, claimed: usize) {
        let data = self.sliced(claimed).data;
        self.written(table, claimed, data, Err(Errno::EIO));
    }

    fn sliced(&mut self, claimed: usize) -> &mut Sliced {
        self.claims[claimed].sliced.as_mut().expect("a large chunk has slices")
    }

    /// Where a sliced chunk belongs, and how many of its bytes a copy must hold.
    fn sliced_chunk<'t>(&self, table: &'t Table, claimed: usize) -> (&'t Exceptions, u64) {
        let claimed = &self.claims[claimed];
        let ex = &table.exceptions()[claimed.exceptions];
        (ex, ex.valid_len(claimed.claim.chunk()))
    }

    /// The end of the present slice in its chunk.
    fn slice_end(&mut self, table: &Table, claimed: usize) -> u64 {
        let (_, valid) = self.sliced_chunk(table, claimed);
        valid.min(self.sliced(claimed).written + u64::from(self.scratch.size()))
    }
}
