//! A claim as the engine sees it: chunks of one request, and the sources of their bytes.
//!
//! Owns the chunks' [`Claim`] in the table until it ends, and the split of a claim of several
//! chunks. Never knows which I/O moves it.

use std::ops::Range;

use super::scratch::Buf;
use crate::exception::Claim;
use crate::target::{Exceptions, ExceptionsId};
use crate::units::{ChunkSize, DataIndex};

/// Which bytes of a chunk are new; for several chunks in one claim, all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// None: the chunk is copied.
    Nothing,
    /// `len` bytes from `within` come from the request, from its byte `at`.
    Guest { at: u64, within: u64, len: u64 },
    /// `len` bytes from `within` are zero.
    Zero { within: u64, len: u64 },
}

impl Fill {
    /// The new bytes of the chunk.
    pub(super) fn range(self) -> Range<u64> {
        match self {
            Fill::Nothing => 0..0,
            Fill::Guest { within, len, .. } | Fill::Zero { within, len } => within..within + len,
        }
    }

    pub(super) fn covers(self, from: u64, to: u64) -> bool {
        let Range { start, end } = self.range();
        start <= from && to <= end
    }

    /// For several chunks: the fill of the first `bytes`, and that of the rest.
    fn split_at(self, bytes: u64) -> (Fill, Fill) {
        match self {
            Fill::Nothing => (self, self),
            Fill::Guest { at, len, .. } => (
                Fill::Guest { at, within: 0, len: bytes },
                Fill::Guest { at: at + bytes, within: 0, len: len - bytes },
            ),
            Fill::Zero { len, .. } => {
                (Fill::Zero { within: 0, len: bytes }, Fill::Zero { within: 0, len: len - bytes })
            }
        }
    }
}

/// A claimed chunk, or several adjacent ones that the request covers completely.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) claim: Claim,
    pub(super) exceptions: ExceptionsId,
    pub(super) request: usize,
    /// The first byte of the request that belongs to it.
    pub(super) from: u64,
    pub(super) fill: Fill,
    /// The place of the old bytes, once their read has begun: from this byte of the buffer.
    pub(super) buf: Option<(Buf, u32)>,
    /// A read shared with neighbours failed, possibly only for a neighbour: the next read is its
    /// own.
    pub(super) alone: bool,
    /// For a chunk larger than a buffer, once it has its place.
    pub(super) sliced: Option<Sliced>,
}

/// A chunk that is moved slice by slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sliced {
    /// Its place.
    pub(super) data: DataIndex,
    /// Bytes that are written: the present slice is after them.
    pub(super) written: u64,
    /// Reads of the slice that have not ended.
    pub(super) reads: u32,
    /// A part of the slice could not be read.
    pub(super) failed: bool,
}

impl Sliced {
    /// A chunk that has got its place.
    pub(super) fn new(data: DataIndex) -> Sliced {
        Sliced { data, written: 0, reads: 0, failed: false }
    }
}

impl Claimed {
    /// A claim that has no old bytes yet, only those of the request, from its byte `from` on.
    pub(super) fn new(
        claim: Claim,
        exceptions: ExceptionsId,
        request: usize,
        from: u64,
        fill: Fill,
    ) -> Claimed {
        Claimed { claim, exceptions, request, from, fill, buf: None, alone: false, sliced: None }
    }

    /// Bytes that a copy of it must hold; for several chunks, all of them.
    pub(super) fn valid_len(&self, ex: &Exceptions) -> u64 {
        match self.claim.count() {
            1 => ex.valid_len(self.claim.chunk()),
            count => count * ex.chunk().bytes(),
        }
    }

    /// Keeps the first `count` of several chunks, and returns the rest as another part of the
    /// request.
    pub(super) fn split_off(&mut self, count: u64, chunk: ChunkSize) -> Claimed {
        let bytes = count * chunk.bytes();
        let (fill, rest) = self.fill.split_at(bytes);
        self.fill = fill;
        let claim = self.claim.split_off(count);
        Claimed::new(claim, self.exceptions, self.request, self.from + bytes, rest)
    }
}
