//! A chain of descriptors, followed as it is read.
//!
//! Owns the walk: from a table to the next descriptor, or into an indirect table, once. Never
//! knows the content of the memory that descriptors name. Keeps: a walk ends after at most as many
//! descriptors as its table has, whatever the guest wrote.

use vm_memory::GuestAddress;

use crate::memory::{GuestMemory, Window};

/// `VIRTQ_DESC_F_NEXT`, `_WRITE` and `_INDIRECT`.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor: address, length, flags, next.
const LEN: usize = 16;

/// One piece of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its address.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it; otherwise it reads it.
    pub writable: bool,
}

/// A descriptor as it is in a table.
#[derive(Clone, Copy)]
struct Raw {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Raw {
    #[inline]
    fn of(address: u64, rest: u64) -> Raw {
        let (flags, next) = ((rest >> 32) as u16, (rest >> 48) as u16);
        Raw { address, len: rest as u32, flags, next }
    }
}

#[derive(Clone, Copy, Debug)]
enum Table<'r> {
    Ring(&'r Window),
    /// At this guest address.
    Indirect(u64),
}

/// A chain of descriptors as the guest made it available.
#[derive(Debug)]
pub struct Chain<'r> {
    memory: &'r GuestMemory,
    table: Table<'r>,
    /// Descriptors in the table.
    size: u32,
    head: u16,
    /// The next one; none at the end.
    next: Option<u16>,
    /// How many more there may be.
    left: u32,
    unfinished: bool,
}

impl<'r> Chain<'r> {
    #[inline]
    pub(super) fn new(memory: &'r GuestMemory, table: &'r Window, size: u16, head: u16) -> Self {
        let (table, size, next) = (Table::Ring(table), u32::from(size), Some(head));
        Chain { memory, table, size, head, next, left: size, unfinished: true }
    }

    /// The chain's name in the used ring. Not necessarily below the queue's size.
    #[inline]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Whether the descriptors seen so far do not end the chain. After the last one this tells a
    /// chain that was cut short (a loop, an index out of range, a bad indirect table) from a
    /// whole one.
    #[inline]
    pub fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    #[inline]
    fn raw(&self, index: u16) -> Option<Raw> {
        if u32::from(index) >= self.size {
            return None;
        }
        let at = LEN * usize::from(index);
        match self.table {
            Table::Ring(table) => Some(Raw::of(table.load_u64(at), table.load_u64(at + 8))),
            Table::Indirect(start) => {
                let mut bytes = [0; LEN];
                let address = start.checked_add(at as u64)?;
                self.memory.read(GuestAddress(address), &mut bytes).ok()?;
                let [a0, a1, a2, a3, a4, a5, a6, a7, rest @ ..] = bytes;
                let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
                Some(Raw::of(address, u64::from_le_bytes(rest)))
            }
        }
    }

    /// Continues at the first descriptor of the table that `raw` names, and ends in that table;
    /// none if it is not a table, or if the chain is in one already (2.7.5.3.1).
    #[inline]
    fn enter(&mut self, raw: Raw) -> Option<()> {
        let nested = matches!(self.table, Table::Indirect(_));
        // An index has 16 bits.
        let longest = LEN * usize::from(u16::MAX);
        let len = raw.len as usize;
        let whole = len != 0 && len.is_multiple_of(LEN) && len <= longest;
        if nested || !whole {
            return None;
        }
        self.size = raw.len / LEN as u32;
        self.left = self.size;
        self.table = Table::Indirect(raw.address);
        Some(())
    }
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    #[inline]
    fn next(&mut self) -> Option<Descriptor> {
        let next = self.next.take().filter(|_| self.left > 0)?;
        let mut raw = self.raw(next)?;
        if raw.flags & INDIRECT != 0 {
            self.enter(raw)?;
            raw = self.raw(0)?;
            if raw.flags & INDIRECT != 0 {
                return None;
            }
        }
        self.left -= 1;
        self.unfinished = raw.flags & NEXT != 0;
        self.next = self.unfinished.then_some(raw.next);
        Some(Descriptor {
            address: GuestAddress(raw.address),
            len: raw.len,
            writable: raw.flags & WRITE != 0,
        })
    }
}
