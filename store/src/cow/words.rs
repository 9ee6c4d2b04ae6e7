//! The memory of a log: private, or a shared file that outlives the process.
//!
//! Owns the header by which a later process recognises words of this store and this boot. Never
//! knows the meaning of the words after the header.

use std::ops::Deref;

use crate::sync::atomic::AtomicU64;
#[cfg(not(feature = "shuttle"))]
use crate::{io::shared::SharedWords, sync::atomic::Ordering};

/// 64-bit words, atomically accessed.
#[derive(Debug)]
pub enum Words {
    /// In the process's own memory, gone with the process.
    Private(Box<[AtomicU64]>),
    /// In a file mapped shared: stored words survive a kill of the process.
    #[cfg(not(feature = "shuttle"))]
    Shared(SharedWords),
}

impl Words {
    /// Words at the front that identify the owner of the others.
    pub const HEADER: usize = 8;
    /// The header's word of which the owner of the words has the upper half for itself; earlier
    /// versions do not look at it.
    pub const HALF: usize = 5;
    /// "snapowe", the first word of a header; its last byte is the version of the layout.
    #[cfg(not(feature = "shuttle"))]
    const MAGIC: u64 = 0x736e_6170_6f77_6502;
    /// The first version's.
    #[cfg(not(feature = "shuttle"))]
    const MAGIC_1: u64 = 0x736e_6170_6f77_6501;
    /// Words of the first version: 8192 slots and the other words of a log.
    #[cfg(not(feature = "shuttle"))]
    const WORDS_1: usize = 8202;

    /// Whether a file whose first word this is may be that of a log: of any version, or one whose
    /// process was killed while it made it.
    #[cfg(not(feature = "shuttle"))]
    pub fn may_begin(first: u64) -> bool {
        first == 0 || first >> 8 == Self::MAGIC >> 8
    }

    /// Private words, all zero.
    pub fn private(count: usize) -> Words {
        Words::Private((0..count).map(|_| AtomicU64::new(0)).collect())
    }
}

/// The content of a header: the store and the boot.
#[cfg(not(feature = "shuttle"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordsHeader {
    /// The system's boot, as `/proc/sys/kernel/random/boot_id` has it.
    pub boot: u128,
    /// The store's file.
    pub store: crate::io::files::Identity,
    /// The store's chunk, in sectors.
    pub chunk_sectors: u32,
    /// The creation time of the store's file, in nanoseconds, because inodes are reused. 0 if it
    /// is not known.
    pub born: u64,
}

#[cfg(not(feature = "shuttle"))]
impl WordsHeader {
    /// Whether it can describe the store of `other`.
    pub fn is_of(&self, other: &WordsHeader) -> bool {
        let born = if self.born == 0 || other.born == 0 { other.born } else { self.born };
        WordsHeader { born, ..*self } == *other
    }

    /// Whether it describes the store of `other` except for the number of the device that the file
    /// system is on: it was attached again, or it is a clone.
    pub fn is_of_other_device(&self, other: &WordsHeader) -> bool {
        let store = crate::io::files::Identity { dev: other.store.dev, ..self.store };
        let is_elsewhere = self.store.dev != other.store.dev;
        is_elsewhere && self.born != 0 && WordsHeader { store, ..*self } == *other
    }
}

#[cfg(not(feature = "shuttle"))]
impl Words {
    /// The content of the header; none if there is no header, if it has another layout, or if it
    /// is followed by fewer or more words than it says.
    pub fn header(&self) -> Option<WordsHeader> {
        let word = |index: usize| self[index].load(Ordering::Acquire);
        if self.len() <= Self::HEADER {
            return None;
        }
        let is_whole = match word(0) {
            Self::MAGIC => word(6) == self.len() as u64,
            Self::MAGIC_1 => self.len() == Self::WORDS_1,
            _ => false,
        };
        is_whole.then(|| WordsHeader {
            boot: u128::from(word(1)) << 64 | u128::from(word(2)),
            store: crate::io::files::Identity { dev: word(3), ino: word(4) },
            chunk_sectors: word(Self::HALF) as u32,
            born: word(7),
        })
    }

    /// Writes the header; the magic last, so that an incomplete file is not recognised.
    pub fn set_header(&self, header: WordsHeader) {
        let store = |index: usize, value: u64| self[index].store(value, Ordering::Release);
        store(1, (header.boot >> 64) as u64);
        store(2, header.boot as u64);
        store(3, header.store.dev);
        store(4, header.store.ino);
        store(Self::HALF, u64::from(header.chunk_sectors));
        store(6, self.len() as u64);
        store(7, header.born);
        store(0, Self::MAGIC);
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        match self {
            Words::Private(words) => words,
            #[cfg(not(feature = "shuttle"))]
            Words::Shared(words) => words.words(),
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    const HEADER: WordsHeader = WordsHeader {
        boot: 3 << 64 | 4,
        store: crate::io::files::Identity { dev: 7, ino: 8 },
        chunk_sectors: 16,
        born: 9,
    };

    #[test]
    fn a_store_that_was_made_later_is_another() {
        let known = |born| WordsHeader { born, ..HEADER };
        assert!(HEADER.is_of(&HEADER));
        assert!(!known(10).is_of(&HEADER) && !HEADER.is_of(&known(10)));
        assert!(
            known(0).is_of(&HEADER) && HEADER.is_of(&known(0)),
            "a version before told nothing"
        );
        let other = WordsHeader { chunk_sectors: 8, ..HEADER };
        assert!(!other.is_of(&HEADER));
    }

    #[test]
    fn a_store_on_another_device_is_known_by_its_inode_and_birth() {
        let on =
            |dev, ino| WordsHeader { store: crate::io::files::Identity { dev, ino }, ..HEADER };
        assert!(on(6, 8).is_of_other_device(&HEADER) && !on(6, 8).is_of(&HEADER));
        assert!(!HEADER.is_of_other_device(&HEADER) && !on(6, 9).is_of_other_device(&HEADER));
        let unknown = |header| WordsHeader { born: 0, ..header };
        assert!(!unknown(on(6, 8)).is_of_other_device(&unknown(HEADER)));
        let another_boot = WordsHeader { boot: 1, ..on(6, 8) };
        assert!(!another_boot.is_of_other_device(&HEADER));
    }

    #[test]
    fn a_header_of_either_version_is_read_and_no_other() {
        let words = Words::private(Words::WORDS_1);
        assert_eq!(words.header(), None);
        words.set_header(HEADER);
        assert_eq!(words[0].load(Ordering::Relaxed), Words::MAGIC);
        assert_eq!(words.header(), Some(HEADER));
        words[0].store(Words::MAGIC_1, Ordering::Relaxed);
        assert_eq!(words.header(), Some(HEADER));
        words[0].store(Words::MAGIC + 1, Ordering::Relaxed);
        assert_eq!(words.header(), None);
    }

    /// The place of a slot depends on the number of slots.
    #[test]
    fn words_that_were_cut_short_or_that_grew_are_not_believed() {
        for magic in [Words::MAGIC, Words::MAGIC_1] {
            let whole = Words::private(Words::WORDS_1);
            whole.set_header(HEADER);
            whole[0].store(magic, Ordering::Relaxed);
            for len in [Words::HEADER, Words::WORDS_1 - 1, Words::WORDS_1 + 1] {
                let other = Words::private(len);
                for (to, from) in other.iter().zip(whole.iter()) {
                    to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                assert_eq!(other.header(), None, "{len} words");
            }
        }
    }
}
