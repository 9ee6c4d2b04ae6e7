//! Chunks that are larger than a buffer, moved slice by slice.
//!
//! Owns the order of a slice (read if old bytes are missing, write, next slice), the zeroes behind the
//! last one where the device ends within the chunk, and the claims that wait for a buffer. Unlike a smaller chunk, this one has its place in the store before its bytes
//! are read; a failed read gives the place up. Never knows why a chunk is moved, nor what ends a
//! claim.

use super::core::{Core, Kind};
use crate::io::{Errno, IoOp};
use crate::table::Table;
use crate::units::DataIndex;

impl Core {
    /// Moves the next slice of a chunk that is larger than a buffer, or ends it.
    pub(super) fn next_slice(&mut self, table: &Table, claimed: usize) {
        let ex = &table.exceptions()[self.claims[claimed].exceptions];
        let valid = ex.valid_len(self.claims[claimed].claim.chunk());
        let (data, from) = self.claims[claimed].slices.expect("a large chunk has slices");
        if from == valid {
            return self.zero_rest(table, claimed, (data, valid));
        }
        let to = valid.min(from + u64::from(self.scratch.size()));
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
        let tag = (Kind::Slice, 0, claimed);
        match self.read_old(table, claimed, (from, to - from), &[buf], tag) {
            (0, _) => self.written(table, claimed, data, Err(Errno::EIO)),
            (issued, ok) => self.slice_reads.push((claimed, issued, ok)),
        }
    }

    fn write_slice(&mut self, table: &Table, claimed: usize) {
        let ex = &table.exceptions()[self.claims[claimed].exceptions];
        let valid = ex.valid_len(self.claims[claimed].claim.chunk());
        let (data, from) = self.claims[claimed].slices.expect("a large chunk has slices");
        let to = valid.min(from + u64::from(self.scratch.size()));
        let first = self.segs.len();
        self.push_chunk(claimed, (from, to), 0);
        let (place, _) = ex.store().place_of(data, 1);
        let offset = ex.chunk().store_offset(place) + from;
        let tag = (Kind::Slice, 1, claimed);
        self.act(IoOp::Write, ex.store().file(), offset, to - from, first, tag);
    }

    /// Zeroes what of the chunk lies beyond the device: a longer table would read it.
    fn zero_rest(&mut self, table: &Table, claimed: usize, (data, valid): (DataIndex, u64)) {
        let ex = &table.exceptions()[self.claims[claimed].exceptions];
        let rest = ex.chunk().bytes() - valid;
        if rest == 0 {
            return self.written(table, claimed, data, Ok(()));
        }
        let (place, _) = ex.store().place_of(data, 1);
        let offset = ex.chunk().store_offset(place) + valid;
        let (first, tag) = (self.segs.len(), (Kind::Slice, 2, claimed));
        self.act(IoOp::Zero, ex.store().file(), offset, rest, first, tag);
    }

    /// A slice was read (`detail` 0) or written (1), or what is behind the last was zeroed (2).
    pub(super) fn slice_done(
        &mut self,
        table: &Table,
        claimed: usize,
        detail: u16,
        result: Result<(), Errno>,
    ) {
        let (data, from) = self.claims[claimed].slices.expect("a large chunk has slices");
        if detail == 0 {
            let of = |&(of, ..): &(usize, u32, bool)| of == claimed;
            let at = self.slice_reads.iter().position(of).expect("a slice is being read");
            let (_, left, ok) = &mut self.slice_reads[at];
            *left -= 1;
            *ok &= result.is_ok();
            if *left > 0 {
                return;
            }
            let (.., ok) = self.slice_reads.swap_remove(at);
            return if ok {
                self.write_slice(table, claimed)
            } else {
                self.written(table, claimed, data, Err(Errno::EIO))
            };
        }
        if result.is_err() || detail == 2 {
            return self.written(table, claimed, data, result);
        }
        let ex = &table.exceptions()[self.claims[claimed].exceptions];
        let valid = ex.valid_len(self.claims[claimed].claim.chunk());
        let to = valid.min(from + u64::from(self.scratch.size()));
        self.claims[claimed].slices = Some((data, to));
        self.next_slice(table, claimed);
    }
}
