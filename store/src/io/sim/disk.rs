//! One simulated disk: its visible content, and the part that would survive a power cut.
//!
//! Owns the platter, the writes that are not durable yet in the order in which they took effect,
//! and the write that each durable sector comes from, so that an older write never replaces a newer
//! one. Never knows the writer, or the reason.

use super::Rng;
use crate::io::FileId;
use crate::units::SECTOR_SIZE;

const SECTOR: usize = SECTOR_SIZE as usize;

/// A write that is not durable.
#[derive(Debug)]
struct Unflushed {
    seq: u64,
    /// The tick at which its completion was returned.
    completed: Option<u64>,
    offset: u64,
    bytes: Vec<u8>,
    /// A sync that should have made it durable failed: none will.
    lost: bool,
}

/// The result of a power cut for one write that was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: FileId,
    /// First byte.
    pub offset: u64,
    /// Its sectors.
    pub sectors: u64,
    /// Those that reached the platter.
    pub kept: u64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Disk {
    name: String,
    content: Vec<u8>,
    platter: Vec<u8>,
    /// For each sector of the platter, its write.
    from: Vec<u64>,
    unflushed: Vec<Unflushed>,
    seq: u64,
}

impl Disk {
    pub(super) fn new(name: &str, bytes: Vec<u8>) -> Disk {
        let sectors = bytes.len().div_ceil(SECTOR);
        Disk {
            name: name.to_owned(),
            platter: bytes.clone(),
            content: bytes,
            from: vec![0; sectors],
            unflushed: Vec::new(),
            seq: 0,
        }
    }

    /// The name with which it was added.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.content.len() as u64
    }

    /// Extends it, durably, with zeroes.
    pub(super) fn grow(&mut self, bytes: u64) {
        self.content.resize(self.content.len().max(bytes as usize), 0);
        self.platter.resize(self.content.len(), 0);
        self.from.resize(self.content.len().div_ceil(SECTOR), 0);
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty()
    }

    /// The visible content.
    pub fn read(&self, offset: u64, len: u64) -> &[u8] {
        &self.content[offset as usize..][..len as usize]
    }

    /// How many writes a failed sync lost.
    pub(super) fn lost(&self) -> usize {
        self.unflushed.iter().filter(|write| write.lost).count()
    }

    /// The writes that are not durable, as (offset, length).
    pub(super) fn unflushed(&self) -> impl Iterator<Item = (u64, u64)> {
        self.unflushed.iter().map(|write| (write.offset, write.bytes.len() as u64))
    }

    pub(super) fn write(&mut self, offset: u64, bytes: Vec<u8>) -> u64 {
        self.seq += 1;
        self.content[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        let seq = self.seq;
        self.unflushed.push(Unflushed { seq, completed: None, offset, bytes, lost: false });
        seq
    }

    /// A write that fails, and takes effect in part.
    pub(super) fn write_some(&mut self, offset: u64, bytes: &[u8], rng: &mut Rng) {
        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
            if rng.chance(1, 2) {
                self.write(offset + (n * SECTOR) as u64, sector.to_vec());
            }
        }
    }

    pub(super) fn completed(&mut self, seq: u64, tick: u64) {
        if let Some(write) = self.unflushed.iter_mut().find(|write| write.seq == seq) {
            write.completed = Some(tick);
        }
    }

    pub(super) fn all_completed(&mut self, tick: u64) {
        for write in &mut self.unflushed {
            write.completed.get_or_insert(tick);
        }
    }

    /// A sync submitted at `at`: makes writes durable that completed before; or fails, and loses them
    /// permanently, and later ones too, of which the system then tells no other sync.
    pub(super) fn sync(&mut self, at: u64, fails: bool) {
        for write in std::mem::take(&mut self.unflushed) {
            let covered = write.completed.is_some_and(|completed| completed < at);
            if !covered || write.lost || fails {
                self.unflushed.push(Unflushed { lost: write.lost || fails, ..write });
                continue;
            }
            self.land(&write, |_| true);
        }
    }

    fn land(&mut self, write: &Unflushed, mut keep: impl FnMut(usize) -> bool) -> u64 {
        let mut kept = 0;
        let first = write.offset as usize / SECTOR;
        for (n, bytes) in write.bytes.chunks(SECTOR).enumerate() {
            if !keep(n) {
                continue;
            }
            kept += 1;
            if self.from[first + n] < write.seq {
                self.from[first + n] = write.seq;
                self.platter[(first + n) * SECTOR..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        kept
    }

    pub(super) fn power_cut(&mut self, file: FileId, rng: &mut Rng, cuts: &mut Vec<Cut>) {
        // Sometimes everything, or nothing, so that rare orders become frequent.
        let mood = rng.below(4);
        for write in std::mem::take(&mut self.unflushed) {
            let each = rng.below(4);
            let kept = self.land(&write, |_| match (mood, each) {
                (0, _) => false,
                (1, _) => true,
                (_, 0) => false,
                (_, 1) => true,
                _ => rng.chance(1, 2),
            });
            let sectors = write.bytes.len().div_ceil(SECTOR) as u64;
            cuts.push(Cut { file, offset: write.offset, sectors, kept });
        }
        self.content.copy_from_slice(&self.platter);
    }
}
