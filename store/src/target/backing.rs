//! Plain extents: what `linear`, `zero` and `error` map to, and what origins consist of.
//!
//! Owns the list of extents that a stack of linear tables reduces to, and which requests pass to
//! them. Never knows of exceptions.

use std::sync::Arc;

use super::{Decision, Medium};
use crate::request::Op;

/// The content of an extent.
#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes of a file, from `offset`.
    File {
        /// Which file.
        medium: Arc<Medium>,
        /// First byte in it.
        offset: u64,
    },
    /// Zeroes; writes are dropped.
    Zero,
    /// Every request fails.
    Error,
}

/// A range of bytes, all of one file or none.
#[derive(Clone, Debug)]
pub struct Extent {
    /// First byte, relative to the backing.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What they are.
    pub content: Content,
}

/// Extents that follow each other without a gap, from 0.
#[derive(Clone, Debug, Default)]
pub struct Backing {
    extents: Vec<Extent>,
}

impl Backing {
    /// The whole of a file from `offset`, `len` bytes.
    pub fn file(medium: Arc<Medium>, offset: u64, len: u64) -> Self {
        let mut backing = Backing::default();
        backing.push(len, Content::File { medium, offset });
        backing
    }

    /// Appends `len` bytes of `content`.
    pub fn push(&mut self, len: u64, content: Content) {
        if len != 0 {
            self.extents.push(Extent { start: self.len(), len, content });
        }
    }

    /// Total bytes.
    pub fn len(&self) -> u64 {
        self.extents.last().map_or(0, |last| last.start + last.len)
    }

    /// Whether it has no extents.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Its extents.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Whether both map every byte to the same place.
    pub fn is_same(&self, other: &Backing) -> bool {
        let same = |(a, b): (&Extent, &Extent)| {
            let content = match (&a.content, &b.content) {
                (
                    Content::File { medium: a, offset: x },
                    Content::File { medium: b, offset: y },
                ) => a.file == b.file && x == y,
                (Content::Zero, Content::Zero) | (Content::Error, Content::Error) => true,
                _ => false,
            };
            content && a.start == b.start && a.len == b.len
        };
        self.extents.len() == other.extents.len()
            && self.extents.iter().zip(&other.extents).all(same)
    }

    /// The part `[start, start + len)` of it.
    pub fn slice(&self, start: u64, len: u64) -> Backing {
        let mut slice = Backing::default();
        for extent in &self.extents {
            let from = start.max(extent.start);
            let to = (start + len).min(extent.start + extent.len);
            if from < to {
                let content = match &extent.content {
                    Content::File { medium, offset } => Content::File {
                        medium: medium.clone(),
                        offset: offset + (from - extent.start),
                    },
                    other => other.clone(),
                };
                slice.push(to - from, content);
            }
        }
        slice
    }

    /// The media that it uses.
    pub fn media(&self) -> impl Iterator<Item = &Arc<Medium>> {
        self.extents.iter().filter_map(|extent| match &extent.content {
            Content::File { medium, .. } => Some(medium),
            _ => None,
        })
    }

    /// The decision for `op` on `[offset, offset + len)`, up to the end of the extent.
    #[inline]
    pub fn decide(&self, op: Op, offset: u64, len: u64) -> Decision {
        let Some(extent) = self.at(offset) else { return Decision::Fail };
        let within = offset - extent.start;
        let len = len.min(extent.len - within);
        match &extent.content {
            Content::File { medium, offset } => {
                Decision::Pass { file: medium.file, offset: offset + within, len, track: None }
            }
            Content::Zero if op == Op::Read => Decision::Clear { len },
            Content::Zero => Decision::Nothing { len },
            Content::Error => Decision::Fail,
        }
    }

    #[inline]
    fn at(&self, offset: u64) -> Option<&Extent> {
        if let [only] = &self.extents[..] {
            return (offset < only.len).then_some(only);
        }
        let index = self.extents.partition_point(|extent| extent.start + extent.len <= offset);
        self.extents.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FileId;

    fn medium(id: u32) -> Arc<Medium> {
        Arc::new(Medium::new(FileId(id)))
    }

    #[test]
    fn a_request_goes_as_far_as_its_extent() {
        let mut backing = Backing::file(medium(1), 512, 1024);
        backing.push(1024, Content::Zero);
        backing.push(512, Content::Error);
        let pass = Decision::Pass { file: FileId(1), offset: 1024, len: 512, track: None };
        assert_eq!(backing.decide(Op::Read, 512, 4096), pass);
        assert_eq!(backing.decide(Op::Read, 1024, 4096), Decision::Clear { len: 1024 });
        assert_eq!(backing.decide(Op::Write, 1024, 512), Decision::Nothing { len: 512 });
        assert_eq!(backing.decide(Op::Read, 2048, 512), Decision::Fail);
        assert_eq!(backing.decide(Op::Read, 2560, 512), Decision::Fail);
    }

    #[test]
    fn a_slice_keeps_its_places() {
        let mut backing = Backing::file(medium(1), 0, 1024);
        backing.push(1024, Content::File { medium: medium(2), offset: 8192 });
        let slice = backing.slice(512, 1024);
        assert_eq!(slice.len(), 1024);
        let pass = Decision::Pass { file: FileId(2), offset: 8192, len: 512, track: None };
        assert_eq!(slice.decide(Op::Read, 512, 512), pass);
    }
}
