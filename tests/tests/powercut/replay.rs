//! Disks after a power cut.
//!
//! Owns the durable content of each disk and the writes since its last flush. A cut keeps any part
//! of those: each write completely, not at all, or any of its sectors.

use snapblk_tests::disklog::Record;
use snapblk_tests::rng::Rng;
use snapblk_tests::verify::stamp::SECTOR;

type Pending = Vec<(usize, Vec<u8>)>;

pub(crate) struct Replay {
    durable: Vec<Vec<u8>>,
    pending: Vec<Pending>,
}

impl Replay {
    pub(crate) fn new(disks: Vec<Vec<u8>>) -> Replay {
        Replay { pending: vec![Vec::new(); disks.len()], durable: disks }
    }

    pub(crate) fn carry_out(&mut self, record: &Record) {
        match record {
            Record::Write { disk, offset, bytes } => {
                self.pending[*disk].push((*offset as usize, bytes.clone()));
            }
            Record::Flush { disk } => {
                for (offset, bytes) in self.pending[*disk].drain(..) {
                    self.durable[*disk][offset..offset + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
    }

    /// Unflushed writes, on all disks.
    pub(crate) fn owed(&self) -> usize {
        self.pending.iter().map(Vec::len).sum()
    }

    /// Whether `record` is a flush that makes writes durable.
    pub(crate) fn is_owed_at(&self, record: &Record) -> bool {
        matches!(record, Record::Flush { disk } if !self.pending[*disk].is_empty())
    }

    /// The disks after a cut now.
    pub(crate) fn cut(&self, rng: &mut Rng) -> Vec<Vec<u8>> {
        let mut disks = self.durable.clone();
        for (disk, pending) in disks.iter_mut().zip(&self.pending) {
            // On some disks everything is kept, on some nothing.
            let keep = [0, 10, 50, 90, 100][rng.below(5) as usize];
            for (offset, bytes) in pending {
                let torn = rng.chance(20);
                let whole = rng.chance(keep);
                for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                    if if torn { rng.chance(keep) } else { whole } {
                        let at = offset + n * SECTOR;
                        disk[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
        disks
    }
}
