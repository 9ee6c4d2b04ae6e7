//! Marks: messages from the load in the guest to the judge of a power cut.
//!
//! A mark is a sector that the load writes to its own disk. It is answered before the load
//! continues, and the server has one log for all disks: at the mark's position in the log, the
//! event that it names has happened. Never knows how a mark gets to the disk.

/// Bytes of a mark.
pub const MARK: usize = 512;
/// The first word of a mark.
const MAGIC: u32 = 0x4b52_414d;
/// The most writes in a batch.
pub const BATCH: usize = 24;

/// A write to the disk under test: sectors of 512 bytes, stamped with its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batched {
    /// Greater for later writes.
    pub generation: u32,
    /// First sector.
    pub first: u32,
    /// The number of sectors.
    pub sectors: u32,
}

/// An event of the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// These writes are sent next; they do not overlap, and nothing in flight overlaps them.
    Batch(Vec<Batched>),
    /// A flush was answered that was sent after all writes up to this generation were answered.
    Flushed(u32),
    /// All writes were flushed, and the n-th snapshot of this content was taken.
    Taken(u32),
    /// A rollback to the n-th snapshot is requested; nothing is in flight, and all is flushed.
    MergeAsked(u32),
    /// The request was answered.
    MergeBegun(u32),
    /// The rollback is complete.
    MergeEnded(u32),
}

impl Mark {
    /// The mark's sector.
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

    /// The mark in a sector; none if it is not one.
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
