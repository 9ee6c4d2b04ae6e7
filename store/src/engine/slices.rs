//! Chunks that are larger than a buffer, moved slice by slice.
//!
//! Owns the order of a slice (read if old bytes are missing, write, next slice), the zeroes after the
//! last one where the device ends within the chunk, and the claims that wait for a buffer. Unlike a
//! smaller chunk, this one has its place in the store before its bytes are read; a failed read gives the
//! place up. Never knows why a chunk is moved, nor what ends a claim.

use super::claim::Sliced;
use super::claims::ReadsBegun;
use super::core::{Core, FileRange};
use super::tag::Owner;
use crate::io::{Errno, IoOp};
use crate::table::Table;
use crate::target::Exceptions;

/// What ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum SliceStep {
    /// A read of old bytes of the slice.
    Read,
    /// The write of the slice.
    Write,
    /// The zeroing of what is after the last slice.
    Zero,
}

impl SliceStep {
    /// By number.
    pub(super) const ALL: [SliceStep; 3] = [SliceStep::Read, SliceStep::Write, SliceStep::Zero];
}

impl Core {
    /// Moves the next slice of a chunk that is larger than a buffer, or ends it.
    pub(super) fn next_slice(&mut self, table: &Table, claim_index: usize) {
        let (_, valid) = self.sliced_chunk(table, claim_index);
        let from = self.sliced(claim_index).written;
        if from == valid {
            return self.zero_rest(table, claim_index);
        }
        let to = self.slice_end(table, claim_index);
        if self.claims[claim_index].fill.covers(from, to) {
            return self.write_slice(table, claim_index);
        }
        if self.claims[claim_index].buf.is_none() {
            let Some(buf) = self.scratch.take() else {
                return self.slices_waiting.push_back(claim_index);
            };
            self.claims[claim_index].buf = Some((buf, 0));
        }
        let (buf, _) = self.claims[claim_index].buf.expect("it was just taken");
        let owner = Owner::Slice { claim_index, step: SliceStep::Read };
        let ReadsBegun { count, complete } =
            self.read_old(table, claim_index, from..to, &[buf], owner);
        let sliced = self.sliced(claim_index);
        (sliced.reads, sliced.failed) = (count, !complete);
        if count == 0 {
            self.slice_unread(table, claim_index);
        }
    }

    fn write_slice(&mut self, table: &Table, claim_index: usize) {
        let (ex, _) = self.sliced_chunk(table, claim_index);
        let (Sliced { data, written: from, .. }, to) =
            (*self.sliced(claim_index), self.slice_end(table, claim_index));
        let first = self.segs.len();
        self.push_chunk(claim_index, from..to, 0);
        let (place, _) = ex.store().place_of(data, 1);
        let offset = ex.chunk().store_offset(place) + from;
        let range = FileRange { file: ex.store().file(), offset, len: to - from };
        let owner = Owner::Slice { claim_index, step: SliceStep::Write };
        self.act(IoOp::Write, range, first, owner);
    }

    /// Makes what of the chunk lies beyond the device read as zeroes: a longer table would read it.
    /// Its space is not needed yet, and it may be most of a gigabyte: where the store is sparse, it
    /// stays so.
    fn zero_rest(&mut self, table: &Table, claim_index: usize) {
        let (ex, valid) = self.sliced_chunk(table, claim_index);
        let data = self.sliced(claim_index).data;
        let rest = ex.chunk().bytes() - valid;
        if rest == 0 {
            return self.written(table, claim_index, data, Ok(()));
        }
        let (place, _) = ex.store().place_of(data, 1);
        let offset = ex.chunk().store_offset(place) + valid;
        let range = FileRange { file: ex.store().file(), offset, len: rest };
        let owner = Owner::Slice { claim_index, step: SliceStep::Zero };
        self.act(IoOp::Punch, range, self.segs.len(), owner);
    }

    /// A step of a slice ended.
    pub(super) fn slice_done(
        &mut self,
        table: &Table,
        claim_index: usize,
        step: SliceStep,
        result: Result<(), Errno>,
    ) {
        match (step, result) {
            (SliceStep::Read, result) => {
                let sliced = self.sliced(claim_index);
                sliced.reads -= 1;
                sliced.failed |= result.is_err();
                match *sliced {
                    Sliced { reads: 1.., .. } => {}
                    Sliced { failed: true, .. } => self.slice_unread(table, claim_index),
                    _ => self.write_slice(table, claim_index),
                }
            }
            (SliceStep::Write, Ok(())) => {
                self.sliced(claim_index).written = self.slice_end(table, claim_index);
                self.next_slice(table, claim_index);
            }
            (SliceStep::Write | SliceStep::Zero, result) => {
                let data = self.sliced(claim_index).data;
                self.written(table, claim_index, data, result);
            }
        }
    }

    fn slice_unread(&mut self, table: &Table, claim_index: usize) {
        let data = self.sliced(claim_index).data;
        self.written(table, claim_index, data, Err(Errno::EIO));
    }

    fn sliced(&mut self, claim_index: usize) -> &mut Sliced {
        self.claims[claim_index].sliced.as_mut().expect("a large chunk has slices")
    }

    /// Where a sliced chunk belongs, and how many of its bytes a copy must hold.
    fn sliced_chunk<'t>(&self, table: &'t Table, claim_index: usize) -> (&'t Exceptions, u64) {
        let claimed = &self.claims[claim_index];
        let ex = &table.exceptions()[claimed.exceptions];
        (ex, ex.valid_len(claimed.claim.chunk()))
    }

    /// The end of the present slice in its chunk.
    fn slice_end(&mut self, table: &Table, claim_index: usize) -> u64 {
        let (_, valid) = self.sliced_chunk(table, claim_index);
        valid.min(self.sliced(claim_index).written + u64::from(self.scratch.size()))
    }
}
