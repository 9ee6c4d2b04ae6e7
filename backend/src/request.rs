//! Descriptor chains in, virtio-blk requests out (virtio 1.2, 5.2.6).
//!
//! Owns everything that a guest can get wrong in a chain: for any content, [`Parser::parse`]
//! returns an action or the status for the guest. Never knows how a request is carried out, or what
//! else is in flight.

use snapblk_store::request::Op;
use snapblk_store::units::{SECTOR_SIZE, Sector};
use virtio_bindings::virtio_blk as blk;
use vm_memory::GuestAddress;

use crate::config::{LogicalBlock, MAX_RANGE_SECTORS, MAX_RANGES, SEG_MAX, SERIAL_LEN};
use crate::memory::GuestMemory;
use crate::vring::{Chain, Descriptor};

#[cfg(test)]
mod tests;

/// Bytes of the header at the start of a request: type, reserved, sector.
const HEADER_LEN: usize = 16;
/// Bytes of one range of a discard or write-zeroes request: sector, sectors, flags.
const RANGE_LEN: usize = 16;
/// The only flag of a range: its space may be deallocated.
const RANGE_UNMAP: u32 = 1;

/// The status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlkStatus {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoError = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

/// The most pieces of a chain that are kept: all segments and a separate status byte.
const MAX_PIECES: usize = SEG_MAX as usize + 1;

/// The most pieces of a request's data if it crosses regions of memory: as many as one system call
/// takes (IOV_MAX). No slot's list grows beyond that with the number of regions.
const MAX_IOVECS: usize = 1024;

/// The limits that requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The size of the device.
    pub capacity: Sector,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Requests begin with one.
    pub block: LogicalBlock,
    /// The answer to GET_ID.
    pub serial: [u8; SERIAL_LEN],
}

/// The content of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Read or write the data, from `sector` on. `len` is in bytes.
    Data {
        /// [`Op::Read`] or [`Op::Write`].
        op: Op,
        /// First sector.
        sector: Sector,
        /// Bytes, a multiple of 512 and not 0.
        len: u32,
    },
    /// Make all earlier writes durable.
    Flush,
    /// Discard or zero the slot's ranges, one after the other.
    Ranges,
    /// Only the answer is left.
    Answer(BlkStatus),
}

/// A range of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkRange {
    /// [`Op::Discard`] or [`Op::WriteZeroes`].
    pub op: Op,
    /// First sector.
    pub sector: Sector,
    /// Sectors, not 0.
    pub sectors: u32,
}

/// One request, in lists that are reused for the next.
#[derive(Debug, Default)]
pub struct RequestSlot {
    /// The places of its data in this process.
    pub data: Vec<libc::iovec>,
    /// Its ranges, in the driver's order.
    pub ranges: Vec<BlkRange>,
    /// The address of its status byte; none if the guest left no room for one.
    pub status: Option<GuestAddress>,
    /// Bytes written from the beginning of its writable part, if it is carried out: all of it,
    /// including the status byte, unless there is more room than an identification or a flush
    /// needs.
    pub writable_len: u32,
}

impl RequestSlot {
    /// A slot that holds an ordinary request without growing.
    pub fn with_room() -> RequestSlot {
        RequestSlot { data: Vec::with_capacity(SEG_MAX as usize), ..RequestSlot::default() }
    }
}

/// Parses chains, one at a time.
#[derive(Debug)]
pub struct Parser {
    /// The limits for requests.
    pub limits: Limits,
    /// The pieces of a chain without header and status: first the readable ones, then the writable
    /// ones.
    pieces: Vec<Descriptor>,
}

/// The pieces of a chain, sorted.
struct Shape {
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// How many of the pieces are readable; the rest are writable.
    readable: usize,
    writable_len: u32,
    well_formed: bool,
}

impl Parser {
    /// A parser that checks against `limits`.
    pub fn new(limits: Limits) -> Parser {
        Parser { limits, pieces: Vec::with_capacity(MAX_PIECES) }
    }

    /// Parses a chain into `slot`. `near` gets the sector of a read or write as soon as the header
    /// is known, before the rest of the chain is.
    pub fn parse(
        &mut self,
        chain: &mut Chain<'_>,
        memory: &GuestMemory,
        slot: &mut RequestSlot,
        near: impl Fn(Sector),
    ) -> Asked {
        let limits = &self.limits;
        slot.data.clear();
        slot.ranges.clear();
        let on_header = |header: &[u8; HEADER_LEN]| {
            let (kind, sector) = decode_header(header);
            if matches!(kind, blk::VIRTIO_BLK_T_IN | blk::VIRTIO_BLK_T_OUT)
                && sector < limits.capacity.0
            {
                near(Sector(sector));
            }
        };
        let shape = sort(chain, memory, &mut self.pieces, on_header);
        slot.writable_len = shape.writable_len;
        slot.status = take_status(&mut self.pieces);
        // A request that cannot be answered is not carried out.
        if !shape.well_formed || shape.header_len < HEADER_LEN || slot.status.is_none() {
            return Asked::Answer(BlkStatus::IoError);
        }
        let (kind, sector) = decode_header(&shape.header);
        let (readable, writable) = self.pieces.split_at(shape.readable);
        let asked = match kind {
            blk::VIRTIO_BLK_T_IN if readable.is_empty() => {
                map_data(writable, memory, &mut slot.data)
                    .and_then(|len| check_data(Op::Read, sector, len, limits))
            }
            blk::VIRTIO_BLK_T_OUT if writable.is_empty() => {
                map_data(readable, memory, &mut slot.data)
                    .and_then(|len| check_data(Op::Write, sector, len, limits))
            }
            blk::VIRTIO_BLK_T_FLUSH => {
                // Nothing is written in front of the status byte.
                if !writable.is_empty() {
                    slot.writable_len = 0;
                }
                Ok(Asked::Flush)
            }
            blk::VIRTIO_BLK_T_GET_ID => {
                // If there is more room than the identification takes, the status byte does not
                // follow it directly.
                if slot.writable_len > SERIAL_LEN as u32 + 1 {
                    slot.writable_len = SERIAL_LEN as u32;
                }
                answer_id(writable, memory, limits)
            }
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES if writable.is_empty() => {
                let zeroes = kind == blk::VIRTIO_BLK_T_WRITE_ZEROES;
                read_ranges(zeroes, readable, memory, limits, &mut slot.ranges)
            }
            blk::VIRTIO_BLK_T_IN
            | blk::VIRTIO_BLK_T_OUT
            | blk::VIRTIO_BLK_T_DISCARD
            | blk::VIRTIO_BLK_T_WRITE_ZEROES => Err(BlkStatus::IoError),
            _ => Err(BlkStatus::Unsupported),
        };
        asked.unwrap_or_else(Asked::Answer)
    }
}

impl Shape {
    /// Takes the header's bytes from the start of `piece`: nearly always all of them.
    #[inline]
    fn take_header(
        &mut self,
        piece: &mut Descriptor,
        memory: &GuestMemory,
        on_header: impl Fn(&[u8; HEADER_LEN]),
    ) {
        let missing = HEADER_LEN - self.header_len;
        if missing == 0 {
            return;
        }
        let taken = missing.min(piece.len as usize);
        let read = if taken == HEADER_LEN {
            memory.read(piece.address, &mut self.header)
        } else {
            let into = self.header_len..self.header_len + taken;
            memory.read(piece.address, &mut self.header[into])
        };
        self.well_formed &= read.is_ok();
        self.header_len += taken;
        if self.header_len == HEADER_LEN && read.is_ok() {
            on_header(&self.header);
        }
        piece.address.0 = piece.address.0.wrapping_add(taken as u64);
        piece.len -= taken as u32;
    }
}

/// Walks the chain: the header is its first 16 readable bytes, in any number of pieces. `on_header`
/// gets it when it is complete.
fn sort(
    chain: &mut Chain<'_>,
    memory: &GuestMemory,
    pieces: &mut Vec<Descriptor>,
    on_header: impl Fn(&[u8; HEADER_LEN]),
) -> Shape {
    pieces.clear();
    let mut shape = Shape {
        header: [0; HEADER_LEN],
        header_len: 0,
        readable: 0,
        writable_len: 0,
        well_formed: true,
    };
    let mut writable_seen = false;
    for mut piece in chain.by_ref() {
        if piece.writable {
            writable_seen = true;
            shape.writable_len = shape.writable_len.saturating_add(piece.len);
        } else {
            // All readable descriptors precede all writable ones (2.7.4.2).
            shape.well_formed &= !writable_seen;
            shape.take_header(&mut piece, memory, &on_header);
        }
        if piece.len == 0 {
            continue;
        }
        if pieces.len() < MAX_PIECES {
            shape.readable += usize::from(!piece.writable && !writable_seen);
            pieces.push(piece);
            continue;
        }
        // Of the excess pieces only the last matters: it has the status byte.
        shape.well_formed = false;
        if piece.writable
            && let Some(last) = pieces.last_mut()
        {
            *last = piece;
        }
    }
    shape.well_formed &= !chain.is_unfinished();
    shape
}

/// The last writable byte is the status; the bytes before it are data.
fn take_status(pieces: &mut Vec<Descriptor>) -> Option<GuestAddress> {
    let last = pieces.iter().rposition(|piece| piece.writable)?;
    let piece = &mut pieces[last];
    piece.len -= 1;
    let status = piece.address.0.checked_add(u64::from(piece.len)).map(GuestAddress);
    if piece.len == 0 {
        pieces.remove(last);
    }
    status
}

fn decode_header(header: &[u8; HEADER_LEN]) -> (u32, u64) {
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = *header;
    (u32::from_le_bytes([k0, k1, k2, k3]), u64::from_le_bytes(sector))
}

/// The places of the data in this process; returns its length.
fn map_data(
    pieces: &[Descriptor],
    memory: &GuestMemory,
    data: &mut Vec<libc::iovec>,
) -> Result<u32, BlkStatus> {
    if pieces.len() > SEG_MAX as usize {
        return Err(BlkStatus::IoError);
    }
    let mut len = 0u32;
    for piece in pieces {
        memory.push_iovecs(piece.address, piece.len, data).map_err(|_| BlkStatus::IoError)?;
        if data.len() > MAX_IOVECS {
            // One piece in many regions may have exceeded the list's reserved length.
            data.clear();
            return Err(BlkStatus::IoError);
        }
        len = len.checked_add(piece.len).ok_or(BlkStatus::IoError)?;
    }
    Ok(len)
}

fn check_data(op: Op, sector: u64, len: u32, limits: &Limits) -> Result<Asked, BlkStatus> {
    let refused = op == Op::Write && limits.read_only;
    let whole = len != 0 && u64::from(len).is_multiple_of(SECTOR_SIZE);
    let end = sector.checked_add(u64::from(len) / SECTOR_SIZE);
    let inside = end.is_some_and(|end| end <= limits.capacity.0);
    if refused || !whole || !inside || !limits.block.begins_at(sector) {
        return Err(BlkStatus::IoError);
    }
    Ok(Asked::Data { op, sector: Sector(sector), len })
}

fn answer_id(
    pieces: &[Descriptor],
    memory: &GuestMemory,
    limits: &Limits,
) -> Result<Asked, BlkStatus> {
    let mut rest = &limits.serial[..];
    for piece in pieces {
        let (now, later) = rest.split_at(rest.len().min(piece.len as usize));
        memory.write(piece.address, now).map_err(|_| BlkStatus::IoError)?;
        rest = later;
    }
    // A request without any room for the answer is an error.
    let written = rest.len() < SERIAL_LEN;
    Ok(Asked::Answer(if written { BlkStatus::Ok } else { BlkStatus::IoError }))
}

/// The ranges of a discard or write-zeroes request: 16 bytes each, in any number of pieces.
fn read_ranges(
    zeroes: bool,
    pieces: &[Descriptor],
    memory: &GuestMemory,
    limits: &Limits,
    ranges: &mut Vec<BlkRange>,
) -> Result<Asked, BlkStatus> {
    let len: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
    let count = len / RANGE_LEN as u64;
    if limits.read_only
        || !len.is_multiple_of(RANGE_LEN as u64)
        || !(1..=u64::from(MAX_RANGES)).contains(&count)
    {
        return Err(BlkStatus::IoError);
    }
    let mut bytes = [0u8; MAX_RANGES as usize * RANGE_LEN];
    let mut at = 0;
    for piece in pieces {
        let end = at + piece.len as usize;
        memory.read(piece.address, &mut bytes[at..end]).map_err(|_| BlkStatus::IoError)?;
        at = end;
    }
    for range in bytes[..at].chunks_exact(RANGE_LEN) {
        let range: &[u8; RANGE_LEN] = range.try_into().map_err(|_| BlkStatus::IoError)?;
        ranges.push(check_range(zeroes, range, limits)?);
    }
    Ok(Asked::Ranges)
}

fn check_range(
    zeroes: bool,
    bytes: &[u8; RANGE_LEN],
    limits: &Limits,
) -> Result<BlkRange, BlkStatus> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    // A discard must not have the flag, which only write-zeroes knows (5.2.6.2).
    let known = if zeroes { RANGE_UNMAP } else { 0 };
    if flags & !known != 0 {
        return Err(BlkStatus::Unsupported);
    }
    let end = sector.checked_add(u64::from(sectors));
    let inside = end.is_some_and(|end| end <= limits.capacity.0);
    let fits = sectors != 0 && sectors <= MAX_RANGE_SECTORS && inside;
    if !fits || !limits.block.begins_at(sector) {
        return Err(BlkStatus::IoError);
    }
    let op = if zeroes { Op::WriteZeroes { unmap: flags & RANGE_UNMAP != 0 } } else { Op::Discard };
    Ok(BlkRange { op, sector: Sector(sector), sectors })
}
