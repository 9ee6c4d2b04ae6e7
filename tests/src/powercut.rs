//! What the load in the guest and the one who judges a power cut tell each other: marks.
//!
//! A mark is a sector that the load writes to a disk of its own. It is answered before the load goes
//! on, and the server has one log for all disks: where the mark is in the log, what it says has
//! happened. Never knows how a mark gets to the disk.

/// Bytes of a mark.
pub const MARK: usize = 512;
/// The first word of a mark.
const MAGIC: u32 = 0x4b52_414d;
/// Most writes in a batch.
pub const BATCH: usize = 24;

/// A write to the disk under test: sectors of 512 bytes, stamped with a generation of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batched {
    /// Later writes have greater ones.
    pub generation: u32,
    /// First sector.
    pub first: u32,
    /// How many.
    pub sectors: u32,
}

/// What the load knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// These are sent next; they do not overlap, and nothing that overlaps is in flight.
    Batch(Vec<Batched>),
    /// A flush was answered that was sent when all writes up to this generation were.
    Flushed(u32),
    /// All writes were flushed, and a snapshot of this was taken: the n-th.
    Taken(u32),
    /// A rollback to the n-th snapshot is asked for; nothing is in flight, and all is flushed.
    MergeAsked(u32),
    /// It was answered.
    MergeBegun(u32),
    /// Nothing of it is left to do.
    MergeEnded(u32),
}

impl Mark {
    /// The sector.
    pub fn encode(&self) -> [u8; MARK] {
        let (kind, words) = match self {
            Mark::Batch(writes) => {
                let words = writes.iter().flat_map(|w| [w.generation, w.first, w.sectors]);
                (1, words.collect::<Vec<_>>())
            }
            Mark::Flushed(upto) => (2, vec![*upto]),
            Mark::Taken(n) => (3, vec![*n]),
            Mark::MergeAsked(n) => (4, vec![*n]),
            Mark::MergeBegun(n) => (5, vec![*n]),
            Mark::MergeEnded(n) => (6, vec![*n]),
        };
        let mut bytes = [0; MARK];
        let all = [MAGIC, kind, words.len() as u32].into_iter().chain(words);
        for (place, word) in bytes.chunks_exact_mut(4).zip(all) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What a sector says; none where it is no mark.
    pub fn decode(bytes: &[u8]) -> Option<Mark> {
        let words = bytes.chunks_exact(4).map(|word| word.try_into().map(u32::from_le_bytes));
        let words = words.collect::<Result<Vec<u32>, _>>().ok()?;
        let [MAGIC, kind, count, rest @ ..] = &words[..] else { return None };
        let rest = rest.get(..*count as usize)?;
        Some(match (kind, rest) {
            (1, writes) => {
                let write = |w: &[u32]| Batched { generation: w[0], first: w[1], sectors: w[2] };
                Mark::Batch(writes.chunks_exact(3).map(write).collect())
            }
            (2, [upto]) => Mark::Flushed(*upto),
            (3, [n]) => Mark::Taken(*n),
            (4, [n]) => Mark::MergeAsked(*n),
            (5, [n]) => Mark::MergeBegun(*n),
            (6, [n]) => Mark::MergeEnded(*n),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_what_was_put_into_it() {
        let write = Batched { generation: 7, first: 9, sectors: 3 };
        for mark in [Mark::Batch(vec![write; BATCH]), Mark::Flushed(5), Mark::MergeEnded(1)] {
            assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        }
        assert_eq!(Mark::decode(&[0; MARK]), None);
    }
}
