//! Requests of guests.

use snapblk_tests::disk::{Disk, DiskError};
use snapblk_tests::rng::Rng;
use snapblk_tests::verify::stamp::{Generation, SECTOR, stamp_run};

use crate::case::Case;

/// A few requests, one after the other.
pub(crate) struct Burst {
    rng: Rng,
    /// The generation of the last write.
    generation: u32,
    /// The requests so far.
    pub(crate) sent: Vec<String>,
}

impl Burst {
    pub(crate) fn new(rng: Rng, generation: u32) -> Burst {
        Burst { rng, generation, sent: Vec::new() }
    }

    /// A range in sectors: often smaller than a chunk, and rarely aligned to one.
    fn range(&mut self, sectors: u64) -> (u64, u64) {
        let most = [3, 20, 150, 700][self.rng.below(4) as usize];
        let len = (1 + self.rng.below(most)).min(sectors);
        let first = self.rng.below(sectors - len + 1);
        match self.rng.below(20) {
            0 => (sectors - len, len),
            1..5 => (first & !7, len),
            _ => (first, len),
        }
    }

    /// Sends the requests, and does to `bytes` what they should do.
    pub(crate) fn send(&mut self, disk: &mut Disk, bytes: &mut [u8]) -> Result<(), DiskError> {
        for _ in 0..=self.rng.below(6) {
            self.one(disk, bytes)?;
        }
        Ok(())
    }

    fn one(&mut self, disk: &mut Disk, bytes: &mut [u8]) -> Result<(), DiskError> {
        let (first, len) = self.range((bytes.len() / SECTOR) as u64);
        let (from, size) = (first * SECTOR as u64, len * SECTOR as u64);
        let part = &mut bytes[from as usize..(from + size) as usize];
        match self.rng.below(20) {
            0 | 1 => {
                self.sent.push("flush".into());
                disk.flush()
            }
            2 | 3 => {
                let unmap = self.rng.chance(50);
                self.sent.push(format!("write-zeroes {first}+{len} unmap={unmap}"));
                disk.write_zeroes(from, size, unmap)?;
                part.fill(0);
                Ok(())
            }
            4 | 5 if disk.info().max_discard > 0 => {
                self.sent.push(format!("discard {first}+{len}"));
                disk.discard(from, size)?;
                // From now on it reads as it was, or as zeroes.
                let found = disk.read(from, size as usize)?;
                for (old, new) in part.chunks_mut(SECTOR).zip(found.chunks(SECTOR)) {
                    assert!(old == new || new == [0; SECTOR], "a discard made other content");
                    old.copy_from_slice(new);
                }
                Ok(())
            }
            _ => {
                self.generation += 1;
                let mut data = vec![0; size as usize];
                stamp_run(first, Generation(self.generation), &mut data);
                self.sent.push(format!("write {first}+{len} of {}", self.generation));
                disk.write(from, &data)?;
                part.copy_from_slice(&data);
                Ok(())
            }
        }
    }
}

impl Case {
    pub(crate) fn requests(&mut self, of: usize) -> bool {
        let mut burst = self.burst();
        let family = &mut self.families[of];
        let front = self.fronts[of].as_mut().expect("it is connected");
        let done = burst.send(front, &mut family.top.bytes);
        let name = family.name.clone();
        self.note(&format!("to {name}: {}", burst.sent.join(", ")));
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
        true
    }

    pub(crate) fn requests_to_a_snapshot(&mut self, of: usize) -> bool {
        let Some(name) = self.snapshot(of, true) else { return false };
        let mut burst = self.burst();
        let mut bytes = self.families[of].snaps[&name].image.bytes.clone();
        let done = self.exported(&name, true, |disk| Ok(burst.send(disk, &mut bytes)));
        self.note(&format!("to {name}: {}", burst.sent.join(", ")));
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
        self.families[of].snaps.get_mut(&name).expect("it is there").image.bytes = bytes;
        true
    }
}
