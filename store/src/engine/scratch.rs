//! The scratch buffers of a worker: parts of one arena, all of one size while a table is served.
//!
//! Owns the free list and the use counts. Never knows the memory itself.

use crate::io::{BufId, Seg};

/// An engine uses only one arena.
const ARENA: BufId = BufId(0);

/// A buffer taken from the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buf(u32);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Scratch {
    arena: u32,
    size: u32,
    free: Vec<Buf>,
    uses: Vec<u32>,
}

impl Scratch {
    pub(super) fn new(arena: u32) -> Self {
        Scratch { arena, size: arena, free: Vec::new(), uses: Vec::new() }
    }

    /// Divides the arena again; nothing may be in use.
    pub(super) fn divide(&mut self, size: u32) {
        debug_assert!(self.is_idle());
        self.size = size.min(self.arena);
        let count = self.arena / self.size;
        self.free.clear();
        self.free.extend((0..count).rev().map(Buf));
        self.uses.clear();
        self.uses.resize(count as usize, 0);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.uses.len()
    }

    /// Bytes of a buffer.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// How many are free.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a buffer for one user.
    pub(super) fn take(&mut self) -> Option<Buf> {
        let buf = self.free.pop()?;
        self.uses[buf.0 as usize] = 1;
        Some(buf)
    }

    /// One more user of `buf`.
    pub(super) fn share(&mut self, buf: Buf) {
        self.uses[buf.0 as usize] += 1;
    }

    /// One user less; true if the buffer is free now.
    pub(super) fn release(&mut self, buf: Buf) -> bool {
        let uses = &mut self.uses[buf.0 as usize];
        *uses -= 1;
        if *uses == 0 {
            self.free.push(buf);
        }
        *uses == 0
    }

    /// The part `[offset, offset + len)` of `buf`.
    pub(super) fn seg(&self, buf: Buf, offset: u32, len: u32) -> Seg {
        debug_assert!(offset + len <= self.size);
        Seg::Scratch { buf: ARENA, offset: buf.0 * self.size + offset, len }
    }
}
